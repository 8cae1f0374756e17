"""A machine from bare Debian to curated rows, by the script that AWS's machines run; then reboot, upgrade and the way back.

The tests come in this order, on one machine: X is the sandbox, S3 a real server whose users have exactly the policies of
the template, and what else the machine asks of AWS is a double at the address where every instance asks.
"""

import json
import multiprocessing
import re
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from sandbox.conservation import check
from sandbox.s3 import RunningS3, running_s3
from sandbox.x_api import ApiSettings, RunningXApi, running_x_api
from tests.deploy.aws_double import METADATA, Account, running_aws
from tests.deploy.releases import next_release, release_of_this_checkout, wheelhouse
from tests.deploy.template import ACCOUNT, stack
from tests.deploy.watched_s3 import as_role
from tests.house.checkout import ROOT
from tests.scenarios.place import WORLD, Place, until
from tests.system.machine import Machine, booted, empty_disk, network_of_its_own
from tests.system.running_airflow import RunningAirflow

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]

PREFIX = "prod/"
RULES = {"tea": "tea", "both": "(python OR coffee) lang:en"}
WHEELS = Path("/opt/wheels-of-this-test")
MACHINE = "/usr/local/sbin/tweetlake-machine"
INGESTER, SCHEDULER, API = "tweetlake.service", "airflow-scheduler.service", "airflow-api-server.service"
AIRFLOW = (API, SCHEDULER, "airflow-dag-processor.service")
NEXT = "0.1.1"

TWO_HOURS_BEHIND = """
import datetime
from ingester import __main__, clock

class Behind(clock.SystemClock):
    def now(self):
        return super().now() - datetime.timedelta(hours=2)

clock.SystemClock = Behind
__main__.main(["run"])
"""
"""A machine whose clock was not set yet. What it collects lies in a raw hour that is over, so the next tick compacts it."""

REACH = """
import json, os, pathlib, sys, urllib.request

def tried(deed):
    try:
        deed()
    except Exception as error:
        return type(error).__name__
    return "done"

def file(path):
    return tried(lambda: pathlib.Path(path).read_bytes())

token = urllib.request.Request("http://169.254.169.254/latest/api/token", method="PUT")
token.add_header("X-aws-ec2-metadata-token-ttl-seconds", "60")
found = {
    "metadata": tried(lambda: urllib.request.urlopen(token, timeout=5)),
    "ingester's role": file("/run/tweetlake-credentials/ingester/credentials.json"),
    "compaction's role": file("/run/tweetlake-credentials/compaction/credentials.json"),
    "X's token": file("/run/tweetlake-secrets/x-bearer-token"),
    "Airflow's keys": file("/etc/tweetlake/airflow-secrets.env"),
    "Airflow's page": file("/var/lib/tweetlake-airflow/passwords.json"),
    "spool": tried(lambda: os.listdir("/var/lib/tweetlake/spool")),
    "programs": tried(lambda: pathlib.Path("/opt/tweetlake-releases/current/written").write_text("")),
    "settings": tried(lambda: pathlib.Path("/etc/tweetlake/written").write_text("")),
}
pathlib.Path(sys.argv[1], "reach.json").write_text(json.dumps(found))
"""
MAY_REACH = {
    INGESTER: {"ingester's role", "spool"},
    SCHEDULER: {"compaction's role", "Airflow's page"},
    API: {"Airflow's page"},
}
STATES = {
    INGESTER: "/var/lib/tweetlake",
    SCHEDULER: "/var/lib/tweetlake-airflow",
    API: "/var/lib/tweetlake-airflow/logs",
}


@dataclass
class OnMachine(Place):
    """The collection of the machine, as its ingester is told it."""

    machine: Machine | None = None

    @property
    def spool(self) -> Path:
        """It lies on a volume that is mounted in the machine alone."""
        return Path("/proc", str(self.machine.init), "root", "var/lib/private/tweetlake/spool")

    def give_settings(self) -> None:
        config = re.sub(r'(?m)^directory = ".*"$', 'directory = "/var/lib/tweetlake/spool"', self.config.read_text())
        self.machine.write("/etc/tweetlake/tweetlake.toml", config)

    @property
    def collects(self) -> bool:
        return self.machine.show(INGESTER)["ActiveState"] == "active" and self.has_caught_up

    def until(self, condition: Callable[[], object], seconds: float = 60) -> None:
        try:
            until(condition, seconds)
        except AssertionError as error:
            said = "\n".join(self.machine.journal(INGESTER, "--output=cat")[-20:])
            raise AssertionError(f"{error}\n{said}") from None

    def settles(self) -> None:
        """Wait until it has caught up and S3 has what it sealed."""
        self.until(lambda: self.collects and not self.status["spool"]["waiting"])

    @property
    def sequence(self) -> int:
        """Of the newest microbatch in S3."""
        return max(int(each.key.split("-")[-2]) for each in self.lake.microbatches())


class AirflowOnMachine(RunningAirflow):
    """Tells the journal when something goes wrong."""

    machine: Machine

    def tail(self, lines: int = 25) -> str:
        return "\n".join(line for unit in AIRFLOW for line in self.machine.journal(unit, "--output=cat")[-lines:])


# The world.


@pytest.fixture(scope="module")
def tarballs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The release of this checkout, and the one after it."""
    place = tmp_path_factory.mktemp("releases")
    return [release_of_this_checkout(place), next_release(NEXT, place)]


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with (
        network_of_its_own(f"{METADATA}/32") as network,
        empty_disk(2048) as disk,
        booted(bare, {wheelhouse(): WHEELS}, network, disk) as machine,
        machine.network(),
    ):
        yield machine


def bare(root: Path) -> None:
    """Without what this machine has beside its packages."""
    shutil.rmtree(root / "etc/postgresql", ignore_errors=True)


@pytest.fixture(scope="module")
def s3(machine: Machine) -> Iterator[RunningS3]:
    with running_s3(kind="seaweedfs") as server:
        yield server


@pytest.fixture(scope="module")
def x(machine: Machine) -> Iterator[RunningXApi]:
    with running_x_api(WORLD, ApiSettings(search_limit=100_000), process=True) as x:
        yield x


@pytest.fixture(scope="module")
def account(machine: Machine, s3: RunningS3) -> Iterator[Account]:
    roles = {arn(role): as_role(s3, role, PREFIX) for role in ("IngesterRole", "CompactionRole")}
    secret = stack().outputs["StoreToken"].split("--secret-id ")[1].split()[0]
    with running_aws(Account(as_role(s3, "InstanceRole", PREFIX), roles, secret)) as account:
        endpoints = {"STS": account.url, "SECRETS_MANAGER": account.url, "S3": s3.endpoint_url}
        lines = [f"AWS_ENDPOINT_URL_{name}={url}\n" for name, url in endpoints.items()]
        machine.write("/etc/tweetlake/aws-endpoints.env", "".join(lines))
        yield account


def arn(role: str) -> str:
    return f"arn:aws:iam::{ACCOUNT}:role/{role}"


@pytest.fixture(scope="module")
def place(machine: Machine, s3: RunningS3, x: RunningXApi, tmp_path_factory: pytest.TempPathFactory) -> OnMachine:
    directory = tmp_path_factory.mktemp("place")
    return OnMachine(
        directory, x, s3, PREFIX.rstrip("/"), s3, rules=RULES, hours=0.2, seal=1.0, is_alone=False, machine=machine
    )


@pytest.fixture(scope="module")
def airflow(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> AirflowOnMachine:
    """Its API, asked as the person asks it who has the password."""
    running = AirflowOnMachine("http://127.0.0.1:8080", {}, tmp_path_factory.mktemp("airflow"))
    running.machine = machine
    password = json.loads(machine.run("cat", "/var/lib/tweetlake-airflow/passwords.json"))["admin"]
    who = {"username": "admin", "password": password}

    def token() -> str | None:
        try:
            answer = running._json("POST", f"{running.url}/auth/token", who, {"Content-Type": "application/json"})
        except OSError:
            return None
        return answer["access_token"]

    running._token = running.wait("a token of Airflow", token, 120)
    running.wait("a healthy Airflow", running.is_healthy, 120)
    return running


@pytest.fixture(scope="module")
def bootstrap(machine: Machine, tarballs: list[Path]) -> str:
    """The first release, unpacked as the user data does it: its one command."""
    folder = machine.root / "var/tmp/first"
    folder.mkdir()
    shutil.copy(tarballs[0], folder)
    machine.run("tar", "--extract", "--directory", "/var/tmp/first", "--file", f"/var/tmp/first/{tarballs[0].name}")
    return f"/var/tmp/first/{tarballs[0].name.removesuffix('.tar.gz')}/deploy/bootstrap"


def told(account: Account, s3: RunningS3) -> list[str]:
    """What the user data of the template gives."""
    return [
        "--bucket", s3.bucket, "--prefix", PREFIX, "--region", s3.region, "--secret", account.secret,
        "--ingester-role", arn("IngesterRole"), "--compaction-role", arn("CompactionRole"), "--data-device", "/dev/sdf",
    ]  # fmt: skip


# Preparing it.


def test_each_wrong_parameter_is_one_clear_line(machine: Machine, bootstrap: str) -> None:
    said = machine.run(bootstrap, "install", "--bucket", "lake", "--region", "us-east-1", check=False)
    assert [line.split(" is missing")[0] for line in said.splitlines()] == [
        "--ingester-role",
        "--compaction-role",
        "--secret",
    ]
    wrong = {"--bucket": "My_Lake", "--region": "Frankfurt", "--ingester-role": "nobody", "--secret": "arn:aws:ssm:x"}
    given = [part for pair in {**wrong, "--compaction-role": arn("CompactionRole")}.items() for part in pair]
    said = machine.run(bootstrap, "install", *given, check=False)
    assert dict(re.findall(r"^(--\S+) '(\S+)' is not \S", said, re.MULTILINE)) == wrong
    assert len(said.splitlines()) == len(wrong)


def test_what_was_interrupted_is_told_and_simply_run_again(
    machine: Machine, account: Account, s3: RunningS3, bootstrap: str
) -> None:
    """The first try gets no further than uv; the second is killed wherever it is after half a minute."""
    install = [bootstrap, "install", *told(account, s3), "--wheels"]
    machine.run("sh", "-c", f"mkdir /var/tmp/few && cp {WHEELS}/uv-* /var/tmp/few")
    said = machine.run(*install, "/var/tmp/few", check=False)
    assert "fix: can this machine reach the package index?" in said, said
    assert "Traceback" not in said
    assert not (machine.root / "opt/tweetlake-releases/current").is_symlink()
    # The operator's own: no run of a DAG before there is something to compact.
    machine.write("/etc/tweetlake/airflow-local.env", "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION=True\n")
    print("\nkilled in the midst of:\n", machine.run("timeout", "--signal=KILL", "30", *install, WHEELS, check=False))
    began = time.monotonic()
    said = machine.run(*install, WHEELS, seconds=400)
    print(f"\ninstalled in {time.monotonic() - began:.0f} s\n{said}")
    assert "release 0.1.0 is in place" in said
    assert "next: put X's token into the secret" in said


def test_all_units_come_up_but_the_ingester_which_says_what_it_waits_for(machine: Machine, account: Account) -> None:
    for unit in (*AIRFLOW, "tweetlake-imds-guard.service"):
        assert machine.show(unit)["ActiveState"] == "active", machine.journal(unit)[-20:]
    assert machine.show(INGESTER)["ActiveState"] != "active"
    said = "\n".join(machine.journal("tweetlake-secret.service", "--output=cat"))
    assert "X's token was not put into the secret yet" in said
    assert f"aws secretsmanager put-secret-value --region us-east-1 --secret-id {account.secret}" in said
    assert 'bucket = "lake"' in machine.run("cat", "/etc/tweetlake/tweetlake.toml")
    assert (
        machine.run("findmnt", "--noheadings", "--output", "SOURCE", "/var/lib/private/tweetlake").strip() == "/dev/sdf"
    )


@pytest.mark.parametrize("unit", [INGESTER, *AIRFLOW])
def test_a_unit_raises_no_doubt_and_is_hardly_exposed(machine: Machine, unit: str) -> None:
    assert machine.run("systemd-analyze", "verify", unit) == ""
    told = machine.run("systemd-analyze", "security", "--no-pager", unit).splitlines()[-1]
    assert float(re.search(r"exposure level for \S+: ([0-9.]+)", told)[1]) <= 2.0, told


def test_no_unit_that_a_release_brings_raises_a_doubt(machine: Machine) -> None:
    shipped = [file.name for file in (ROOT / "deploy/files/etc/systemd/system").iterdir() if file.is_file()]
    units = [name.replace("@.", "@ingester.") for name in shipped]
    assert len(units) > 8
    assert machine.run("systemd-analyze", "verify", *units) == ""


def test_nothing_listens_to_other_machines(machine: Machine, airflow: AirflowOnMachine) -> None:
    heard = [line.split() for line in machine.run("ss", "-Hltnp").splitlines()]
    own = {columns[3] for columns in heard if len(columns) > 5}  # without a process: a server of this test
    assert "127.0.0.1:8080" in own
    assert {address for address in own if not address.startswith("127.")} == set()
    assert "postgres" not in machine.run("ss", "-Hltnp")


# Running.


def test_the_ingester_starts_by_itself_once_the_token_is_there_and_collects(
    machine: Machine, account: Account, place: OnMachine, x: RunningXApi
) -> None:
    place.give_settings()
    machine.write("/opt/behind.py", TWO_HOURS_BEHIND)
    drop_in = "[Service]\nExecStart=\nExecStart=/opt/tweetlake/bin/python /opt/behind.py\n"
    machine.write(f"/etc/systemd/system/{INGESTER}.d/test.conf", drop_in)
    machine.write("/etc/systemd/system/tweetlake-secret.service.d/test.conf", "[Service]\nRestartSec=1\n")
    machine.run("systemctl", "daemon-reload")
    account.token = x.token
    place.settles()
    assert x.token not in machine.run("journalctl", "--no-pager", "--output=cat")
    assert arn("IngesterRole") in account.assumed


def test_the_scheduler_runs_the_hourly_dag_by_itself_and_rows_appear(
    place: OnMachine, airflow: AirflowOnMachine, account: Account
) -> None:
    airflow.unpause("compact_tweets")
    [run] = airflow.wait("the run of the last tick", lambda: airflow.runs("compact_tweets"))
    assert run["run_type"] == "scheduled"
    assert airflow.finished("compact_tweets", run["dag_run_id"], 200) == "success", airflow.tail()
    assert arn("CompactionRole") in account.assumed
    rows = place.lake.rows("tweets", ["id"])
    assert len(rows) > 50


# Looking after it.


def test_installed_again_it_is_as_it_was_and_goes_on(
    machine: Machine, place: OnMachine, airflow: AirflowOnMachine
) -> None:
    """With what it was told before. The ingester is restarted, and nothing is made anew."""
    kept = [
        "/etc/tweetlake/machine.json", "/etc/tweetlake/tweetlake.toml", "/etc/tweetlake/airflow-secrets.env",
        "/var/lib/tweetlake-airflow/passwords.json", "/etc/systemd/system/airflow-scheduler.service",
    ]  # fmt: skip
    before, runs = machine.run("stat", "--format=%n %i %Y", *kept), len(airflow.runs("compact_tweets"))
    said = machine.run(MACHINE, "install", seconds=200)
    assert "installing" not in said, said
    assert "making" not in said, said
    assert machine.run("stat", "--format=%n %i %Y", *kept) == before
    place.settles()
    airflow.wait("a healthy Airflow", airflow.is_healthy, 120)
    assert len(airflow.runs("compact_tweets")) == runs


def test_what_grows_is_cleaned(machine: Machine) -> None:
    logs = "/var/lib/tweetlake-airflow/logs/dag_id=compact_tweets"
    [fresh, *_] = machine.run("find", logs, "-name", "*.log").splitlines()
    machine.run("sh", "-c", f"mkdir {logs}/old; touch -d '-31 days' {logs}/old/a.log; touch -d '-31 days' {logs}/old")
    machine.run("systemd-tmpfiles", "--clean", "tweetlake.conf")
    assert machine.run("find", f"{logs}/old", "-name", "*.log", check=False).count("a.log") == 0
    assert machine.run("ls", fresh).strip() == fresh
    machine.run("systemctl", "start", "tweetlake-airflow-clean.service", seconds=120)


# What each may do.


def test_the_keys_on_the_machine_are_those_of_each_role(machine: Machine, s3: RunningS3, account: Account) -> None:
    """test_least_privilege.py goes through all that the roles may and may not do."""
    [raw, *_] = keys(s3, "raw/")
    [curated, *_] = keys(s3, "curated/tweets/")
    ingester, compaction = (as_on_the_machine(machine, s3, program) for program in ("ingester", "compaction"))
    assert may(lambda: ingester.get_object(Bucket=s3.bucket, Key=raw))
    assert may(lambda: compaction.get_object(Bucket=s3.bucket, Key=curated))
    refused = {
        "the ingester reads a table": lambda: ingester.get_object(Bucket=s3.bucket, Key=curated),
        "the ingester writes a table": lambda: ingester.put_object(Bucket=s3.bucket, Key=curated, Body=b""),
        "the ingester deletes raw": lambda: ingester.delete_object(Bucket=s3.bucket, Key=raw),
        "the compaction writes raw": lambda: compaction.put_object(Bucket=s3.bucket, Key=f"{raw}.avro", Body=b""),
        "the compaction deletes raw": lambda: compaction.delete_object(Bucket=s3.bucket, Key=raw),
        "the machine lists the lake": lambda: account.instance.client().list_objects_v2(
            Bucket=s3.bucket, Prefix=PREFIX
        ),
        "the machine reads raw": lambda: account.instance.client().get_object(Bucket=s3.bucket, Key=raw),
    }
    assert {name for name, call in refused.items() if may(call)} == set()


def keys(s3: RunningS3, below: str) -> list[str]:
    found = s3.client().list_objects_v2(Bucket=s3.bucket, Prefix=PREFIX + below)
    return [each["Key"] for each in found["Contents"]]


def as_on_the_machine(machine: Machine, s3: RunningS3, program: str) -> Any:
    """A client with what lies there for a program."""
    found = json.loads(machine.run("cat", f"/run/tweetlake-credentials/{program}/credentials.json"))
    return replace(s3, access_key=found["AccessKeyId"], secret_key=found["SecretAccessKey"]).client()


def may(call: Callable[[], Any]) -> bool:
    try:
        call()
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 403:
            raise
        return False
    return True


# Booting again.


def test_after_a_reboot_it_goes_on_where_it_was(machine: Machine, place: OnMachine, account: Account) -> None:
    before, spool, pages = place.sequence, (place.spool / "spool-id").read_text(), place.pages_served
    account.assumed.clear()
    machine.write("/opt/reach.py", REACH)
    machine.remove(f"/etc/systemd/system/{INGESTER}.d/test.conf")  # the clock is right from now on
    for unit, state in STATES.items():
        drop_in = f"[Service]\nExecStartPost=/usr/bin/python3 /opt/reach.py {state}\n"
        machine.write(f"/etc/systemd/system/{unit}.d/reach.conf", drop_in)
    machine.reboot()
    place.settles()
    for unit in AIRFLOW:
        assert machine.show(unit)["ActiveState"] == "active", machine.journal(unit)[-20:]
    assert (place.spool / "spool-id").read_text() == spool
    assert place.sequence > before
    assert place.pages_served > pages
    assert set(account.assumed) == {arn("IngesterRole"), arn("CompactionRole")}


@pytest.mark.parametrize("unit", MAY_REACH)
def test_a_program_reaches_what_is_its_own_and_not_the_metadata(machine: Machine, unit: str) -> None:
    found = json.loads(machine.run("cat", f"{STATES[unit]}/reach.json"))
    assert {name for name, outcome in found.items() if outcome == "done"} == MAY_REACH[unit], found
    machine.run("/usr/bin/python3", "/opt/reach.py", "/var/tmp")
    assert json.loads(machine.run("cat", "/var/tmp/reach.json"))["metadata"] == "done", (
        "root can, so there is something"
    )


# Another release, and back.


def test_an_upgrade_from_the_bucket_keeps_the_spool_and_goes_on(
    machine: Machine, place: OnMachine, s3: RunningS3, tarballs: list[Path]
) -> None:
    s3.client().put_object(Bucket=s3.bucket, Key=f"releases/{tarballs[1].name}", Body=tarballs[1].read_bytes())
    before, spool = place.sequence, (place.spool / "spool-id").read_text()
    settings = machine.run("cat", "/etc/tweetlake/tweetlake.toml")
    began = time.monotonic()
    said = machine.run(MACHINE, "upgrade", NEXT, "--wheels", WHEELS, seconds=300)
    print(f"\nupgraded in {time.monotonic() - began:.0f} s\n{said}")
    assert machine.run("/opt/tweetlake/bin/tweetlake", "--version").strip().endswith(NEXT)
    place.settles()
    assert (place.spool / "spool-id").read_text() == spool
    assert place.sequence > before
    assert machine.run("cat", "/etc/tweetlake/tweetlake.toml") == settings
    assert f"release    {NEXT} (before: 0.1.0)" in machine.run(MACHINE, "status")


def test_a_release_that_is_not_there_changes_nothing(machine: Machine) -> None:
    said = machine.run(MACHINE, "upgrade", "9.9.9", check=False)
    assert "releases/tweetlake-9.9.9.tar.gz cannot be fetched" in said
    assert "Traceback" not in said
    assert f"release    {NEXT}" in machine.run(MACHINE, "status")


def test_another_build_of_the_same_version_is_refused(machine: Machine, tarballs: list[Path]) -> None:
    """Whoever has that version installed would never get it."""
    name = tarballs[1].name.removesuffix(".tar.gz")
    with tarfile.open(tarballs[1]) as tarball:
        tarball.extractall(machine.root / "var/tmp", filter="data")
    [wheel] = (machine.root / "var/tmp").glob(f"{name}/*.whl")
    wheel.write_bytes(wheel.read_bytes() + b"x")
    machine.run("tar", "--create", "--gzip", "--directory", "/var/tmp", "--file", "/var/tmp/again.tar.gz", name)
    said = machine.run(MACHINE, "upgrade", "/var/tmp/again.tar.gz", check=False)
    assert f"release {NEXT} is installed already, and is another build of that version" in said
    assert f"release    {NEXT}" in machine.run(MACHINE, "status")


def test_the_way_back_is_one_command(machine: Machine, place: OnMachine) -> None:
    began = time.monotonic()
    said = machine.run(MACHINE, "rollback", seconds=200)
    print(f"\nput back in {time.monotonic() - began:.0f} s\n{said}")
    assert machine.run("/opt/tweetlake/bin/tweetlake", "--version").strip().endswith("0.1.0")
    assert machine.run("readlink", "/opt/tweetlake-releases/previous").strip() == NEXT
    place.settles()


# In the end.


def test_through_all_of_it_nothing_was_lost_and_nothing_is_there_twice(
    machine: Machine, place: OnMachine, airflow: AirflowOnMachine
) -> None:
    place.settles()
    machine.run("systemctl", "stop", INGESTER)
    run = airflow.trigger("compact_tweets", include_open=True)
    assert airflow.finished("compact_tweets", run, 200) == "success", airflow.tail()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(check, place.lake, place.x, RULES).result()
    print(f"\n{found}")
    assert found.holds, str(found)
    assert not found.indexed_late
    assert not found.withdrawn
    assert not found.gaps
