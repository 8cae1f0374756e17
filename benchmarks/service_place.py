"""A place to measure the service in: its settings, a spool that may hold thousands of microbatches, and the real process,
with what the kernel says of it.
"""

import json
import os
import shutil
import socket
import subprocess
import sysconfig
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from ingester.answers import page_facts
from ingester.spool import FOLDERS, Spool
from sandbox.leash import kill, leashed
from sandbox.s3 import RunningS3
from sandbox.x_api import RunningXApi
from schemas import snowflake
from schemas.keys import MicrobatchName, RawHour
from schemas.records import SEARCH, RawRecord
from schemas.state import State, apply

TICKS = os.sysconf("SC_CLK_TCK")

_SETTINGS = """\
[x]
base_url = "{x}"

[spool]
directory = "{spool}"
seal_after_seconds = {seal}

[lake]
bucket = "{bucket}"
endpoint_url = "{s3}"
prefix = "{prefix}"

[budget]
usd_per_month = 10000000

[health]
port = 0
"""
_QUERY = """
[[query]]
name = "{name}"
rule = "{rule}"
poll_every_seconds = {poll}
first_poll_hours = {hours}
"""


@dataclass(frozen=True, slots=True)
class Place:
    """One collection. `endpoint` is where the service looks for S3: not where it is, if it is to find none."""

    directory: Path
    x: RunningXApi
    s3: RunningS3
    rules: Mapping[str, str]
    poll: float = 30.0
    seal: float = 60.0
    hours: float = 1.0
    endpoint: str | None = None

    @property
    def spool(self) -> Path:
        return self.directory / "spool"

    @property
    def prefix(self) -> str:
        return f"{self.directory.name}/"

    @contextmanager
    def running(self) -> Iterator["Process"]:
        """`tweetlake run` while the block lasts; killed at its end, for nothing that counts comes after."""
        self.directory.mkdir(exist_ok=True)
        settings = _SETTINGS.format(
            x=self.x.url,
            spool=self.spool,
            seal=self.seal,
            bucket=self.s3.bucket,
            s3=self.endpoint or self.s3.endpoint_url,
            prefix=self.prefix,
        )
        queries = (
            _QUERY.format(name=name, rule=rule, poll=self.poll, hours=self.hours) for name, rule in self.rules.items()
        )
        config, log = self.directory / "tweetlake.toml", self.directory / "log"
        config.write_text(settings + "".join(queries))
        command = [Path(sysconfig.get_path("scripts")) / "tweetlake", "run", "--config", config]
        environment = {**os.environ, **self.s3.environment(), "X_BEARER_TOKEN": self.x.token}
        with log.open("wb") as output:
            began = time.time()
            with leashed([*map(str, command)], stderr=output, env=environment) as keeper:
                yield Process(keeper, began, self.spool, log)
                kill(keeper)


class ServiceEnded(Exception):
    """The service ended or does not come to where it should; the message ends with its last words."""


@dataclass(frozen=True, slots=True)
class Process:
    """A service that runs, seen from outside."""

    keeper: "subprocess.Popen[bytes]"
    began: float
    """Unix seconds, just before it and the keeper it runs under were started."""
    spool: Path
    log: Path

    @property
    def pid(self) -> int:
        """The service's own, below its keeper. Raises ServiceEnded."""
        keeper = self.keeper.pid
        while self.keeper.poll() is None:
            if children := Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split():
                return int(children[0])
            time.sleep(0.01)  # the keeper has only just begun
        raise self.gives_up(f"the service ended with {self.keeper.returncode}")

    def status(self) -> dict[str, Any] | None:
        """What it answers about itself; None when it does not."""
        try:
            address = (self.spool / "http-address").read_text()
            with urllib.request.urlopen(f"{address}/status", timeout=5) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except OSError:
            return None

    def scrape(self) -> tuple[bytes, float]:
        """What Prometheus would get, and how many seconds it waited for it."""
        address = (self.spool / "http-address").read_text()
        began = time.perf_counter()
        with urllib.request.urlopen(f"{address}/metrics", timeout=5) as answer:
            return answer.read(), time.perf_counter() - began

    def has_asked_all(self) -> bool:
        """Whether every query got a page."""
        status = self.status()
        return bool(status and status["queries"] and all(query["last_page_at"] for query in status["queries"]))

    def has_caught_up(self) -> bool:
        """Whether nothing is left to ask and S3 has all but the newest."""
        status = self.status()
        return bool(
            status
            and status["queries"]
            and all(query["last_page_at"] and not query["todo_intervals"] for query in status["queries"])
            and status["spool"]["waiting"] == 0
        )

    def memory(self) -> dict[str, int]:
        """Bytes by the kernel's names: VmHWM, VmRSS, RssAnon."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        pairs = (line.split()[:2] for line in lines if line.startswith(("VmHWM:", "VmRSS:", "RssAnon:")))
        return {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes in pairs}

    def cpu(self) -> float:
        """Seconds of CPU so far, user and system, of all threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def gives_up(self, what: str) -> ServiceEnded:
        """The error to raise when it does not do what it should."""
        return ServiceEnded(f"{what}:\n{self.log.read_text()[-3000:]}")


# A spool full of microbatches.


def fill(spool: Path, count: int, name: str, rule: str, pages: list[bytes]) -> None:
    """Seal so many microbatches by the service's own code, a page of each minute in each, the newest two minutes old.

    They do not say which lake they belong to, so they go to the one of the settings.
    """
    made = Spool(spool)
    made.acquire()
    now = datetime.now(UTC).replace(microsecond=0)
    state = State()
    bound = snowflake.first_id_at(now - timedelta(minutes=count + 2))
    for sequence in range(1, count + 1):
        at = now - timedelta(minutes=count + 2 - sequence)
        since, bound = bound, snowflake.first_id_at(at)
        record = _page_record(name, rule, since - 1, bound, at, pages[sequence % len(pages)])
        made.open_microbatch(MicrobatchName(sequence, RawHour.of(at), made.spool_id), state)
        made.append(record)
        made.seal()
        state = apply(state, record)
    made.release()


def _page_record(name: str, rule: str, since_id: int, until_id: int, at: datetime, body: bytes) -> RawRecord:
    facts = page_facts(body)
    return {
        "kind": "page",
        "at": at,
        "query": name,
        "rule": rule,
        "reason": "live",
        "since_id": since_id,
        "until_id": until_id,
        "asked_below": until_id,
        "endpoint": SEARCH,
        "page_index": 0,
        "is_last": True,
        "requested_at": at,
        "received_at": at,
        "status": 200,
        "newest_id": facts.newest_id,
        "oldest_id": facts.oldest_id,
        "result_count": facts.result_count,
        "cost_microusd": facts.result_count * 5_000,
        "posts_billed": facts.result_count,
        "body_sha256": sha256(body).hexdigest(),
        "body": body,
    }


def copy_spool(source: Path, target: Path) -> None:
    """A spool like another one, at the cost of links: the service moves and removes sealed files, it never writes to one."""
    shutil.rmtree(target, ignore_errors=True)
    for folder in FOLDERS:
        shutil.copytree(source / folder, target / folder, copy_function=os.link)
    shutil.copy(source / "spool-id", target)


# Where S3 should be and is not.


@contextmanager
def refusing() -> Iterator[str]:
    """An address where nobody listens: every connection is refused at once."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # kept, so that nobody else comes to listen there
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextmanager
def silent() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(100)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def black_hole() -> Iterator[str]:
    """An address where every packet vanishes: a queue of connections that is full, so Linux drops who comes to it."""
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
