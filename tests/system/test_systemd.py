"""The unit under a real systemd, with the unchanged service in it: it starts, hangs, stops and fails as an operator expects."""

import json
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sandbox.conservation import Conserved
from sandbox.s3 import RunningS3, running_s3
from sandbox.x_api import ApiSettings, RunningXApi, running_x_api
from tests.scenarios.place import WORLD, Place, until
from tests.system.machine import TWEETLAKE, Machine, booted

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

READY_SECONDS, IDLE_MEGABYTES = 2.0, 120.0
STATE = "/var/lib/tweetlake"
UNIT = "tweetlake.service"
DROP_IN = f"/etc/systemd/system/{UNIT}.d/test.conf"
SHORTER_TIMES = "[Service]\nWatchdogSec=3\nRestartSec=0.2\n"
SEEN = {"tea": "tea", "both": "(python OR coffee) lang:en"}
"""What most tests collect. Those whose posts are accounted for have a rule of their own: X keeps books by rule."""

# Not the service: what hangs in it, once, and what the service can reach.

HANG = """
import asyncio, pathlib
from ingester import __main__, pulse, uploader

SOON, expect = {"uploader"}, pulse.Pulse.expect
pulse.Pulse.expect = lambda self, name, within_seconds=None: expect(self, name, 2.0 if name in SOON else within_seconds)
mark, ship = pathlib.Path("/var/lib/tweetlake/has-hung"), uploader.Uploader._ship

async def hangs_once(self, name):
    if self.last_shipped_at is not None and not mark.exists():
        mark.touch()
        await asyncio.Event().wait()
    await ship(self, name)

uploader.Uploader._ship = hangs_once
__main__.main(["run"])
"""
LOOPS = '{"uploader", "journal", "gate", "poller tea", "poller both"}'
REACH = """
import json, mmap, os, pathlib, socket, subprocess

def tried(deed):
    try:
        deed()
    except Exception as error:
        return type(error).__name__
    return "done"

credential = pathlib.Path(os.environ["CREDENTIALS_DIRECTORY"], "x-bearer-token")
writes = ["/etc", "/usr", "/opt/tweetlake", "/var", "/var/lib", "/home", "/root", "/run", "/dev", "/proc/sys/kernel"]
found = {folder: tried(lambda: pathlib.Path(folder, "written").write_text("x")) for folder in writes}
found |= {
    "token's file": tried(lambda: open("/etc/tweetlake/x-bearer-token")),
    "credential": tried(lambda: credential.read_text()),
    "spool": tried(lambda: pathlib.Path("/var/lib/tweetlake/written").write_text("x")),
    "other processes": tried(lambda: os.listdir("/proc/1")),
    "become root": tried(lambda: os.setuid(0)),
    "namespace": tried(lambda: subprocess.run(["unshare", "--user", "true"], check=True)),
    "packets": tried(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
    "code in data": tried(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)),
    "a home": tried(lambda: os.listdir("/root")),
    "uid": os.getuid(),
}
pathlib.Path("/var/lib/tweetlake/reach.json").write_text(json.dumps(found))
os.execv("/opt/tweetlake/bin/tweetlake", ["tweetlake", "run"])
"""


@dataclass
class Installed(Place):
    """A collection whose service is the unit of the machine."""

    machine: Machine | None = None
    began: float = field(default_factory=time.time)

    @property
    def spool(self) -> Path:
        return self.machine.root / "var/lib/private/tweetlake/spool"

    def install(self) -> None:
        """Settings, environment and token, where the unit expects them."""
        config = self.config.read_text().replace(str(self.spool), f"{STATE}/spool")
        environment = "".join(f"{name}={value}\n" for name, value in self.s3.environment().items())
        self.machine.write("/etc/tweetlake/tweetlake.toml", config)
        self.machine.write("/etc/tweetlake/tweetlake.env", environment, 0o600)
        self.machine.write("/etc/tweetlake/x-bearer-token", f"{self.x.token}\n", 0o600)

    def change(self, drop_in: str) -> None:
        self.machine.write(DROP_IN, drop_in)
        self.machine.run("systemctl", "daemon-reload")

    def start(self) -> None:
        """Returns once systemd calls it started."""
        self.machine.run("systemctl", "start", UNIT)

    def stop(self) -> None:
        self.machine.run("systemctl", "stop", UNIT)

    @property
    def unit(self) -> dict[str, str]:
        return self.machine.show(UNIT)

    @property
    def process(self) -> Path:
        """Its process, as this machine's /proc has it."""
        numbers = (each for each in Path("/proc").iterdir() if each.name.isdigit())
        return next(each for each in numbers if self._is_service(each))

    def _is_service(self, process: Path) -> bool:
        """Whether it has the main process' number in the machine's own counting."""
        try:
            there = (process / "ns/pid").readlink() == Path(f"/proc/{self.machine.init}/ns/pid").readlink()
            counted = re.search(r"^NSpid:.*\s(\d+)$", (process / "status").read_text(), re.MULTILINE)
        except OSError:
            return False
        return there and counted is not None and counted[1] == self.unit["MainPID"]

    def journal(self, *options: str) -> list[str]:
        """What this test's service has said, and systemd about it."""
        return self.machine.journal(UNIT, "--output=cat", f"--since=@{self.began:.3f}", *options)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.journal() if line.startswith("{")]

    def has_told(self, event: str) -> bool:
        return any(line["event"] == event for line in self.events())

    def until(self, condition: Callable[[], object], seconds: float = 40.0) -> None:
        try:
            until(condition, seconds)
        except AssertionError as error:
            said = "\n".join(self.journal()[-30:])
            raise AssertionError(f"{error}; systemd: {self.unit['StatusText']!r}\n{said}") from None

    def goes_on(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end)

    def settles(self) -> None:
        """Wait until it has caught up and S3 has what it sealed."""
        self.until(lambda: self.has_caught_up and not self.status["spool"]["waiting"])


class Accounts:
    """What became of every post of the collections that were told, compacted while other tests go on.

    In a process of its own, as the threads of the libraries must begin in the machine's network.
    """

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool
        self._begun: dict[str, Future[Conserved]] = {}

    def begin(self, place: "Installed") -> None:
        lake = copy(place)
        lake.machine = None  # of no interest there, and not to be sent
        self._begun[place.prefix] = self._pool.submit(Place.conserved, lake)

    def found(self) -> dict[str, Conserved]:
        return {name: future.result() for name, future in self._begun.items()}


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with booted() as machine, machine.network():
        machine.run(TWEETLAKE / "bin/tweetlake", "install-service")
        yield machine


@pytest.fixture(scope="module")
def lake(machine: Machine) -> Iterator[RunningS3]:
    with running_s3(kind="seaweedfs") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="module")
def accounts(machine: Machine, lake: RunningS3) -> Iterator[Accounts]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield Accounts(pool)


@pytest.fixture(scope="module")
def x(machine: Machine) -> Iterator[RunningXApi]:
    with running_x_api(WORLD, ApiSettings(search_limit=100_000), process=True) as x:
        yield x


@pytest.fixture
def rules() -> dict[str, str]:
    return SEEN


@pytest.fixture
def service(
    machine: Machine,
    lake: RunningS3,
    x: RunningXApi,
    rules: dict[str, str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Installed]:
    """Installed and not started; a test changes what it needs."""
    place = Installed(
        tmp_path,
        x,
        lake,
        request.function.__name__,
        lake,
        rules=rules,
        hours=0.2,
        seal=1.0,
        is_alone=False,
        machine=machine,
    )
    place.install()
    place.change(SHORTER_TIMES)
    yield place
    machine.run("systemctl", "stop", UNIT)
    machine.run("systemctl", "reset-failed", UNIT, check=False)
    x.set_faults()
    for left in ("/var/lib/private/tweetlake", "/var/lib/tweetlake", DROP_IN):
        machine.remove(left)


# Starting.


def test_the_unit_raises_no_doubt_and_is_hardly_exposed(machine: Machine) -> None:
    assert machine.run("systemd-analyze", "verify", UNIT) == ""
    told = machine.run("systemd-analyze", "security", "--no-pager", UNIT).splitlines()[-1]
    found = re.search(r"exposure level for tweetlake.service: ([0-9.]+)", told)
    assert found, told
    assert float(found[1]) <= 1.5, told


def test_as_shipped_it_is_ready_in_two_seconds_in_little_memory_and_collects_with_the_credential(
    service: Installed, capsys: pytest.CaptureFixture[str]
) -> None:
    service.machine.remove(DROP_IN)
    service.machine.run("systemctl", "daemon-reload")
    took = seconds_to_ready(service)
    if took > READY_SECONDS:  # it read the programs from the disk for the first time
        took = seconds_to_ready(service)
    service.settles()
    unit = service.unit
    assert (unit["ActiveState"], unit["SubState"], unit["NRestarts"]) == ("active", "running", "0")
    service.until(lambda: service.unit["StatusText"].startswith("collects 2 queries"), 15)
    memory = int(re.search(r"VmRSS:\s+(\d+) kB", (service.process / "status").read_text())[1]) / 1024
    with capsys.disabled():
        print(
            f"\n  from exec to READY: {took:.2f} s; resident when idle: {memory:.0f} MB; {service.unit['StatusText']}"
        )
    assert took <= READY_SECONDS
    assert memory <= IDLE_MEGABYTES
    environment = (service.process / "environ").read_text()
    assert "CREDENTIALS_DIRECTORY=/run/credentials/tweetlake.service" in environment
    assert service.x.token not in environment


def seconds_to_ready(service: Installed) -> float:
    """From the program's exec until READY=1, by systemd's own clock, without what it waited for a processor that others had."""
    service.machine.run("systemctl", "restart", UNIT)
    _, waited, _ = (service.process / "schedstat").read_text().split()
    unit = service.unit
    took = int(unit["ActiveEnterTimestampMonotonic"]) - int(unit["ExecMainStartTimestampMonotonic"])
    return took / 1e6 - int(waited) / 1e9


# Hanging.


@pytest.mark.parametrize("rules", [{"own": "python"}])
def test_stopped_in_its_tracks_it_is_ended_and_started_anew_and_goes_on(service: Installed, accounts: Accounts) -> None:
    service.start()
    service.until(lambda: service.pages_served > 3)
    os.kill(int(service.process.name), signal.SIGSTOP)
    service.until(lambda: service.unit["NRestarts"] == "1", 20)
    said = "\n".join(service.journal())
    assert "Watchdog timeout (limit 3s)!" in said
    assert "Fatal Python error: Aborted" in said, "the stacks tell where it hung"
    before = service.pages_served
    service.until(lambda: service.pages_served > before)
    service.settles()
    service.stop()
    accounts.begin(service)


@pytest.mark.parametrize("rules", [{"own": "coffee OR espresso"}])
def test_one_loop_that_hangs_is_told_and_ends_the_signs_of_life(service: Installed, accounts: Accounts) -> None:
    service.machine.write("/opt/hangs.py", HANG)
    service.change(f"{SHORTER_TIMES}ExecStart=\nExecStart={TWEETLAKE}/bin/python /opt/hangs.py\n")
    service.start()
    service.until(lambda: service.has_told("loop_hung"))
    service.until(lambda: service.unit["StatusText"].startswith("hangs: uploader"), 5)
    service.until(lambda: service.unit["NRestarts"] == "1", 20)
    assert "Watchdog timeout (limit 3s)!" in "\n".join(service.journal())
    service.settles()
    service.stop()
    accounts.begin(service)


def test_waiting_for_something_outside_is_no_standstill(service: Installed) -> None:
    service.x.set_faults({"kind": "unauthorized_401", "probability": 1.0})
    service.machine.write(
        "/opt/hangs.py", HANG.replace("uploader.Uploader._ship = hangs_once", "").replace('{"uploader"}', LOOPS)
    )
    service.change(f"{SHORTER_TIMES}ExecStart=\nExecStart={TWEETLAKE}/bin/python /opt/hangs.py\n")
    service.start()
    service.until(lambda: service.has_told("asking_paused"))
    service.goes_on(6)  # more than what a hanging loop would get
    unit = service.unit
    assert unit["NRestarts"] == "0"
    assert "X refuses" in unit["StatusText"], unit["StatusText"]


# Stopping.


def test_told_to_stop_it_ships_what_it_has_and_ends_well(service: Installed) -> None:
    service.start()
    service.until(lambda: service.pages_served > 3)
    service.stop()
    unit = service.unit
    assert (unit["ActiveState"], unit["Result"], unit["ExecMainStatus"]) == ("inactive", "success", "0")
    assert not list((service.spool / "sealed").glob("*.avro"))
    assert not list((service.spool / "open").iterdir())
    assert [line["event"] for line in service.events()][-1] == "stopped"


# Failing.


def test_wrong_settings_fail_the_start_once_and_say_what_to_do(service: Installed) -> None:
    settings = service.machine.root / "etc/tweetlake/tweetlake.toml"
    settings.write_text(settings.read_text().replace("poll_every_seconds = 2", "pol_every_seconds = 2", 1))
    service.change("[Service]\nRestartSec=0.2\n")
    told = service.machine.run("systemctl", "start", UNIT, check=False)
    assert "failed" in told
    service.goes_on(1)  # several of RestartSec=
    unit = service.unit
    assert (unit["ActiveState"], unit["Result"], unit["ExecMainStatus"]) == ("failed", "exit-code", "78")
    assert unit["NRestarts"] == "0"
    said = "\n".join(service.journal())
    assert "pol_every_seconds" in said
    assert "fix: did you mean query.poll_every_seconds?" in said


def test_without_the_token_it_does_not_start_and_with_it_it_comes_by_itself(service: Installed) -> None:
    service.machine.remove("/etc/tweetlake/x-bearer-token")
    service.machine.run("systemctl", "start", UNIT, check=False)
    assert service.unit["ExecMainStatus"] == "243"
    service.install()
    service.until(lambda: service.unit["ActiveState"] == "active", 15)
    service.until(lambda: service.pages_served > 0)


# What it can reach, and what it leaves in the journal.


def test_it_reaches_its_state_and_its_credential_and_nothing_else(service: Installed) -> None:
    service.machine.write("/opt/reach.py", REACH)
    service.change(f"[Service]\nExecStart=\nExecStart={TWEETLAKE}/bin/python /opt/reach.py\n")
    service.start()
    found = json.loads((service.spool.parent / "reach.json").read_text())
    assert found.pop("uid") >= 61184, "a user of its own, made for this life"
    assert {name for name, outcome in found.items() if outcome == "done"} == {"credential", "spool"}, found
    assert (service.spool.parent.stat().st_mode & 0o777) == 0o700


def test_the_journal_reads_well_and_holds_no_token(service: Installed) -> None:
    service.x.set_faults({"kind": "server_503_html", "next_n": 3})  # the first meets the question for the time
    service.start()
    service.until(lambda: service.has_told("shipped") and service.has_told("request_refused"))
    service.stop()
    said = service.journal()
    assert [line for line in said if line.startswith("<")] == [], "the priority is a field, not text"
    first = next(line for line in said if line.startswith("{"))
    assert list(json.loads(first))[:3] == ["timestamp", "level", "event"]
    warnings = [json.loads(line)["event"] for line in service.journal("--priority=warning") if line.startswith("{")]
    assert "request_refused" in warnings
    assert "shipped" not in warnings
    assert service.x.token not in "\n".join(said)


def test_after_hanging_nothing_is_lost_and_nothing_there_twice(accounts: Accounts) -> None:
    """Of the collections of the tests above."""
    found = accounts.found()
    assert {name: str(each) for name, each in found.items() if not each.holds} == {}
    assert {name: each.curated > 50 for name, each in found.items()} == dict.fromkeys(found, True)
