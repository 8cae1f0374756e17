"""One collection to try things on: its settings, its X, its lake, and the unchanged service in a process of its own."""

import contextlib
import http.client
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from compaction_dags.compaction import job
from compaction_dags.compaction.checks import HourSummary
from sandbox.conservation import Conserved, Lake, check
from sandbox.leash import leashed
from sandbox.s3 import RunningS3
from sandbox.world import WorldSettings
from sandbox.x_api import ApiSettings, RunningXApi, running_x_api
from schemas.settings import load
from tests.house.checkout import text

Told = TypeVar("Told")
Story = Callable[[Any], None]

WORLD = WorldSettings(seed=7, tweets_per_second=3, backlog_hours=1)
RULES = {"python": "python", "coffee": "coffee OR espresso", "both": "(python OR coffee) lang:en"}

_SETTINGS = """\
[x]
base_url = "{x.url}"
timeout_seconds = {timeout}

[spool]
directory = "{spool}"
seal_after_seconds = {seal}

[lake]
bucket = "{s3.bucket}"
endpoint_url = "{s3.endpoint_url}"
prefix = "{prefix}"
lease_seconds = 1

[budget]
usd_per_month = 100000
reconcile = {reconcile}

[health]
port = 0
"""
_QUERY = """
[[query]]
name = "{name}"
rule = "{rule}"
poll_every_seconds = 2
first_poll_hours = {hours}
overlap_seconds = {overlap}
"""


@dataclass
class Place:
    """One collection. `seen_s3` is what the service is told to use, `s3` the server itself."""

    directory: Path
    x: RunningXApi
    s3: RunningS3
    prefix: str
    seen_s3: RunningS3
    rules: Mapping[str, str] = field(default_factory=lambda: RULES)
    hours: float = 1.0
    overlap: float = 5.0
    seal: float = 2.0
    timeout: float = 5.0
    is_alone: bool = True
    """Whether X's account is asked by this collection only; else what others read is not its own to book."""

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        queries = "".join(
            _QUERY.format(name=name, rule=rule, hours=self.hours, overlap=self.overlap)
            for name, rule in self.rules.items()
        )
        settings = _SETTINGS.format(
            x=self.x, timeout=self.timeout, spool=self.spool, seal=self.seal, s3=self.seen_s3, prefix=self.prefix,
            reconcile=str(self.is_alone).lower(),
        )  # fmt: skip
        self.config.write_text(settings + queries)
        self.log.touch()

    @property
    def config(self) -> Path:
        return self.directory / "tweetlake.toml"

    @property
    def spool(self) -> Path:
        return self.directory / "spool"

    @property
    def log(self) -> Path:
        return self.directory / "service.log"

    @property
    def lake(self) -> Lake:
        return Lake(self.s3, f"{self.prefix}/")

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.s3.environment(), "X_BEARER_TOKEN": self.x.token}

    # The service.

    @contextlib.contextmanager
    def running(self, environment: Mapping[str, str] | None = None) -> Iterator["Service"]:
        """The service while the block lasts; what it says goes to `log`. It is told to stop at the end."""
        command = [sys.executable, "-m", "ingester", "run", "--config", str(self.config)]
        with self.log.open("ab") as log, leashed(command, env=environment or self.environment, stderr=log) as process:
            yield Service(self, process)

    def collect(self, *, live_seconds: float = 0.0) -> None:
        """Run the service until it has caught up, and a while longer; it has to end well."""
        with self.running() as service:
            service.until(lambda: self.has_caught_up, 120)
            service.goes_on(live_seconds)
        assert service.process.returncode == 0

    def get(self, path: str) -> tuple[int, str]:
        """What the service answers about itself."""
        address = (self.spool / "http-address").read_text()
        try:
            with urllib.request.urlopen(address + path, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    @property
    def status(self) -> dict[str, Any] | None:
        """None when it does not answer."""
        try:
            return json.loads(self.get("/status")[1])
        except (OSError, http.client.HTTPException):  # the process is killed while it answers
            return None

    @property
    def has_caught_up(self) -> bool:
        """Whether every query is live and nothing is left to do."""
        status = self.status
        return bool(
            status and status["queries"]
            and all(q["last_page_at"] and not q["todo_intervals"] and q["lag_seconds"] < 30 for q in status["queries"])
        )  # fmt: skip

    @property
    def shipped(self) -> int:
        """Microbatches that the spool is rid of, by the log."""
        return sum(line["event"] == "shipped" for line in self.lines())

    @property
    def pages_served(self) -> int:
        """Whole pages that X sent to its queries."""
        per_rule = self.x.stats()["per_rule"]
        return sum(per_rule[rule]["pages"] for rule in self.rules.values() if rule in per_rule)

    def lines(self) -> Iterator[dict[str, Any]]:
        """What the service logged."""
        for line in self.log.read_text().splitlines():
            with contextlib.suppress(ValueError):  # a killed process may leave half a line
                yield json.loads(line)

    def problems(self) -> Counter[str]:
        """Every problem event in the log, and how often it came."""
        return Counter(line["event"] for line in self.lines() if line["level"] == "warning" and "detail" in line)

    def met(self, event: str) -> int:
        """How often the running service has met a problem, written or not, by its own count."""
        found = re.search(
            rf'^tweetlake_problems_total{{event="{event}"}} (\S+)$', self.get("/metrics")[1], re.MULTILINE
        )
        return int(float(found[1])) if found else 0

    # The lake.

    def compact(self) -> HourSummary:
        settings = load(self.config)
        lake = settings.lake.model_copy(update={"endpoint_url": self.s3.endpoint_url})
        settings = settings.model_copy(update={"lake": lake})
        return job.compact(settings, job.plan_hours(settings, include_open=True))

    def conserved(self) -> Conserved:
        """Compact, and hold curated and raw against what X served."""
        self.compact()
        return check(self.lake, self.x, self.rules)


@dataclass
class Service:
    """A running service."""

    place: Place
    process: Any

    def until(self, condition: Callable[[], object], seconds: float) -> None:
        """Wait for something to come true while the service runs."""

        def holds() -> bool:
            assert self.process.poll() is None, f"the service ended with {self.process.returncode}: {self.last_words}"
            return bool(condition())

        until(holds, seconds)

    def settles(self) -> None:
        """Wait until it has caught up and S3 has what it sealed."""
        self.until(lambda: self.place.has_caught_up and not self.place.status["spool"]["waiting"], 120)

    @property
    def last_words(self) -> str:
        return "\n".join(self.place.log.read_text().splitlines()[-20:])

    def goes_on(self, seconds: float) -> None:
        """Let it run for so long."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end, seconds + 5)


def until(condition: Callable[[], object], seconds: float) -> None:
    """Wait for something outside to come true. Looking costs both sides CPU, so the longer it takes the less it is done."""
    end, pause = time.monotonic() + seconds, 0.02
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(pause)  # another process is watched; it has no event to await
        pause = min(2 * pause, 0.3)
    raise AssertionError(f"did not come true within {seconds} s")


@contextlib.contextmanager
def new_places(s3: RunningS3, directory: Path, prefix: str) -> Iterator[Callable[..., Place]]:
    """Makes places by name, below one prefix. Each has an X of its own if none is given; its service may see another S3."""
    with contextlib.ExitStack() as stack:

        def make(
            name: str = "place",
            *,
            x: RunningXApi | None = None,
            seen_s3: RunningS3 | None = None,
            world: WorldSettings = WORLD,
            **settings: Any,
        ) -> Place:
            if x is None:
                x = stack.enter_context(running_x_api(world, ApiSettings(search_limit=100_000), process=True))
            return Place(directory / name, x, s3, f"{prefix}/{name}", seen_s3 or s3, **settings)

        yield make


class SideBySide(Generic[Told]):
    """Stories that mostly wait, told at the same time and once; the tests of a module look at what came of each."""

    def __init__(self) -> None:
        self._settings: dict[Story, dict[str, Any]] = {}

    def story(self, **settings: Any) -> Callable[[Story], Story]:
        """Notes a story, and what its place needs."""

        def note(story: Story) -> Story:
            self._settings[story] = settings
            return story

        return note

    @contextlib.contextmanager
    def told(self, tell: Callable[[Story, dict[str, Any]], Told]) -> Iterator[Callable[[Story], Told]]:
        """Begins all. Gives what came of one, once it has ended; raises what went wrong in it."""
        with ThreadPoolExecutor(len(self._settings)) as pool:
            ends = {story: pool.submit(tell, story, settings) for story, settings in self._settings.items()}
            yield lambda story: ends[story].result()


def busiest_second(times: Iterable[float]) -> int:
    """The most of these moments that lie within one second."""
    moments = sorted(times)
    return max((bisect_right(moments, first + 1) - index for index, first in enumerate(moments)), default=0)


def runbook_events() -> set[str]:
    """The problem events that have a row in the runbook."""
    section = text("docs/runbook.md").split("## What the log")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
