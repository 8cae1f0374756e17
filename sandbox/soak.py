"""The soak: real ingesters, killed at random moments while X and S3 misbehave; then all is compacted and counted.

Each collector is a lane of its own: its spool, its lake, its queries. They share the simulated X and, through a proxy,
the S3 server. Nothing of it outlives this process, whatever that dies of.
"""

import contextlib
import http.client
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from sandbox.conservation import Conserved, Lake, check
from sandbox.leash import kill, leashed
from sandbox.s3 import RunningS3, running_s3
from sandbox.s3_faults import S3Fault, S3Proxy, running_s3_proxy
from sandbox.soak_report import Asked, Figures
from sandbox.world import WorldSettings
from sandbox.x_api import ApiSettings, RunningXApi, running_x_api

TOPICS = (
    ("python", "coffee"), ("football", "climate"), ("rust", "music"), ("cinema", "cycling"), ("gardening", "space"),
    ("books", "travel"),
)  # fmt: skip
"""What the lanes look for, so that each has posts of its own."""

X_FAULTS: list[dict[str, Any]] = [
    {"kind": "rate_429", "probability": 0.02, "seconds": 1}, {"kind": "unauthorized_401", "probability": 0.001},
    {"kind": "server_503_json", "probability": 0.02}, {"kind": "server_503_html", "probability": 0.02},
    {"kind": "server_500_empty", "probability": 0.01}, {"kind": "html_200", "probability": 0.005},
    {"kind": "not_json_200", "probability": 0.005}, {"kind": "hang", "probability": 0.005, "seconds": 8},
    {"kind": "slow", "probability": 0.02, "seconds": 1}, {"kind": "reset", "probability": 0.02},
    {"kind": "cut_body", "probability": 0.02}, {"kind": "repeat_next_token", "probability": 0.01},
    {"kind": "empty_page_with_token", "probability": 0.01}, {"kind": "short_page", "probability": 0.05},
    {"kind": "ids_out_of_order", "probability": 0.01}, {"kind": "unknown_field", "probability": 0.05},
]  # fmt: skip
LATE: dict[str, Any] = {"kind": "late_index", "probability": 0.02, "seconds": 30}
"""Only with an overlap: without one, what is indexed later than 12 s is not to be had."""
S3_FAULTS = (
    S3Fault("conflict_409", "put", probability=0.02), S3Fault("error_500", probability=0.02),
    S3Fault("slow_down_503", probability=0.02), S3Fault("denied_403", probability=0.002),
    S3Fault("reset", probability=0.02), S3Fault("reset_in_request", probability=0.02),
    S3Fault("flip_request", probability=0.01), S3Fault("slow", probability=0.03),
    S3Fault("hang", probability=0.005, seconds=8), S3Fault("lose_answer", probability=0.05),
    S3Fault("reset_in_answer", probability=0.02),
)  # fmt: skip
OUTAGE_EVERY, OUTAGE_SECONDS = (30.0, 60.0), (3.0, 10.0)
"""S3 is away now and then: the bounds of a random time between two outages, and of how long one is."""

CATCH_UP_SECONDS = 240.0
"""Longer than any wait that the service may have begun while the faults were on."""
STOP_SECONDS = 60.0
RESTART_SECONDS = 1.0
"""Until a process that ended by itself is started again."""
KILLED_IN_START = 0.25
"""The share of processes whose time runs from their start, not from their first search."""
MOST_TROUBLES = 5
"""A lane whose process ended by itself so often is given up."""

_SETTINGS = """\
[x]
base_url = "{x}"
timeout_seconds = 5

[spool]
directory = "{spool}"
seal_after_seconds = {seal}

[lake]
bucket = "{bucket}"
endpoint_url = "{s3}"
prefix = "{prefix}"
lease_seconds = 5

[budget]
usd_per_month = 10000000
reconcile = false   # the lanes share one account: each would book what the others read

[health]
port = 0
"""
_QUERY = """
[[query]]
name = "{name}"
rule = "{rule}"
poll_every_seconds = {poll}
first_poll_hours = {hours}
overlap_seconds = {overlap}
"""


def soak(asked: Asked, console: Console, *, keep: Path | None = None) -> Figures:
    """Run all of it; `keep` is where spools, objects and logs stay. Ctrl-C is passed on when nothing runs any more."""
    with ExitStack() as stack:
        directory = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tweetlake-soak-")))
        # Edited posts would vanish from search after they were served to a process that died: X's doing, not a loss.
        world = WorldSettings(asked.seed, asked.tweets_per_second, asked.backlog_hours, edited_share=0.0)
        x = stack.enter_context(running_x_api(world, ApiSettings(search_limit=10**9), process=True))
        s3 = stack.enter_context(running_s3(directory / "s3"))
        proxy = stack.enter_context(running_s3_proxy(s3, seed=asked.seed))
        lanes = [Lane(number, asked, directory, x, proxy.s3) for number in range(asked.collectors)]
        console.print(
            f"{asked}\nX at {x.url}, S3 ({s3.kind}) at {s3.endpoint_url} behind {proxy.s3.endpoint_url}", soft_wrap=True
        )
        began = time.monotonic()
        _live(asked, lanes, x, proxy, console)
        figures = Figures(asked, Conserved(), time.monotonic() - began)
        with console.status("compacting and comparing"):
            _count(figures, lanes, x, s3, proxy)
    return figures


def made() -> str:
    """Where and when, for a report."""
    machine = f"Python {platform.python_version()} on {os.cpu_count()} cores ({platform.machine()})"
    return f"Made by `make soak` on {datetime.now(UTC):%Y-%m-%d} with {machine}."


# One lane.


@dataclass(slots=True)
class Life:
    """One process: when it was started and when it ended, in Unix seconds, and how."""

    began: float
    ended: float = 0.0
    end: str = ""


class Abandoned(Exception):
    """The soak is being ended by hand."""


@dataclass
class Lane:
    """One collector, started again after every end."""

    number: int
    asked: Asked
    parent: Path
    x: RunningXApi
    s3: RunningS3
    lives: list[Life] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    """No more kills: catch up and stop."""
    abandoned: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._random = random.Random(f"{self.asked.seed}/{self.number}")
        self.directory.mkdir(parents=True)
        queries = "".join(
            _QUERY.format(name=name, rule=rule, poll=self.asked.poll_every, hours=self.asked.backlog_hours, overlap=self.asked.overlap)
            for name, rule in self.rules.items()
        )  # fmt: skip
        settings = _SETTINGS.format(
            x=self.x.url, spool=self.spool, seal=self.asked.seal_after, bucket=self.s3.bucket, s3=self.s3.endpoint_url, prefix=self.prefix
        )  # fmt: skip
        self.config.write_text(settings + queries)

    @property
    def rules(self) -> dict[str, str]:
        """Two queries that overlap. Beyond the topics there are, a word that nobody says makes the rules differ."""
        lap, topic = divmod(self.number, len(TOPICS))
        one, other = TOPICS[topic]
        further = f" -lap{lap}" if lap else ""
        return {one: one + further, "both-en": f"({one} OR {other}) lang:en{further}"}

    @property
    def prefix(self) -> str:
        return f"lane-{self.number}/"

    @property
    def directory(self) -> Path:
        return self.parent / self.prefix.rstrip("/")

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
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.s3.environment(), "X_BEARER_TOKEN": self.x.token}

    @property
    def kills(self) -> int:
        return sum(life.end == "killed" for life in self.lives)

    def run(self) -> None:
        """Life after life, until it is over: the last one catches up and is stopped."""
        try:
            while not self._live_once() and len(self.troubles) < MOST_TROUBLES:
                pass
        except Abandoned:
            pass

    def status(self) -> dict[str, Any] | None:
        """What the process says about itself; None while there is none that answers."""
        try:
            with urllib.request.urlopen(f"{(self.spool / 'http-address').read_text()}/status", timeout=5) as answer:  # noqa: S310 - our own
                found: dict[str, Any] = json.load(answer)
                return found
        except (OSError, ValueError, http.client.HTTPException):
            return None

    def _live_once(self) -> bool:
        """One process. True when it was the last one: it was begun when all was over, and ended well."""
        command = [sys.executable, "-m", "ingester", "run", "--config", str(self.config)]
        is_last = self.over.is_set() or not self.asked.kill_every
        life = Life(time.time())
        self.lives.append(life)
        with self.log.open("ab") as log, leashed(command, stdout=log, stderr=log, env=self.environment) as process:
            if not is_last:
                self._wait_for_death(process)
                life.end = "" if process.poll() is not None else "killed"
                kill(process)
            elif self._survives(process):
                self._catch_up(process)
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_SECONDS)
            else:
                is_last = False
        life.ended = time.time()
        if not life.end:
            life.end = f"exit {process.returncode}"
            if process.returncode != 0:
                self.troubles.append(f"lane {self.number}: a process ended by itself, {life.end}: {self._last_words()}")
            self.over.wait(RESTART_SECONDS)
        return is_last

    def _wait_for_death(self, process: "subprocess.Popen[bytes]") -> None:
        """Until a random moment, the end of all, or its own end.

        The time runs from its first search, however slow the machine is; for a few, from their start.
        """
        seconds = self._random.uniform(0.1, 1.9) * self.asked.kill_every
        if self._random.random() < 1 - KILLED_IN_START:
            searches = self._searches()
            self._lives_until(lambda: self._searches() > searches, process)
        moment = time.monotonic() + seconds
        self._lives_until(lambda: time.monotonic() >= moment, process)

    def _lives_until(self, is_time: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
        while process.poll() is None and not self._is_over(0.05) and not is_time():
            pass

    def _searches(self) -> int:
        """How many X has had, whatever it answered."""
        per_rule = self.x.stats()["per_rule"]
        return sum(per_rule[rule]["requests"] for rule in self.rules.values() if rule in per_rule)

    def _survives(self, process: "subprocess.Popen[bytes]") -> bool:
        """Until all is over. False if it ended by itself before."""
        while process.poll() is None:
            if self._is_over(0.05):
                return True
        return False

    def _is_over(self, within: float) -> bool:
        if self.abandoned.is_set():
            raise Abandoned
        return self.over.wait(within)

    def _catch_up(self, process: "subprocess.Popen[bytes]") -> None:
        ends = time.monotonic() + CATCH_UP_SECONDS
        while time.monotonic() < ends and process.poll() is None:
            if self.has_caught_up():
                return
            if self.abandoned.wait(0.2):
                raise Abandoned
        if process.poll() is None:
            self.troubles.append(f"lane {self.number} did not catch up within {CATCH_UP_SECONDS:.0f} s")

    def has_caught_up(self) -> bool:
        """Every query live, nothing left to do, nothing waiting for S3."""
        status = self.status()
        if not status or not status["queries"] or status["spool"]["waiting"]:
            return False
        return all(q["last_page_at"] and not q["todo_intervals"] and q["lag_seconds"] < 30 for q in status["queries"])

    # What is left when it is over.

    def first_requests(self) -> list[float]:
        """Seconds from the start of each process until X had its first search."""
        asked = sorted(moment for rule in self.rules.values() for moment in self.x.asked_at(rule))
        first = (next((at for at in asked if life.began <= at < life.ended), None) for life in self.lives)
        return [at - life.began for life, at in zip(self.lives, first, strict=True) if at is not None]

    def problems(self) -> Counter[str]:
        """The problems that the service told, by event."""
        return Counter(line["event"] for line in self._lines() if line.get("level") == "warning" and "detail" in line)

    def files(self, folder: str) -> int:
        """How many microbatches lie in a folder of the spool."""
        return sum(1 for _ in (self.spool / folder).glob("*.avro"))

    def compact(self, s3: RunningS3) -> None:
        """All of raw, by the command that users run, straight from the server."""
        command = [sys.executable, "-m", "compaction_dags.compaction", "--config", str(self.config)]
        environment = self.environment | {"TWEETLAKE__LAKE__ENDPOINT_URL": s3.endpoint_url}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            self.troubles.append(
                f"lane {self.number}: tweetlake-compact ended with {done.returncode}: {done.stderr[-500:]}"
            )

    def _last_words(self) -> str:
        return " / ".join(self.log.read_text(errors="replace").splitlines()[-3:])

    def _lines(self) -> Iterator[Mapping[str, Any]]:
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # a killed process may leave half a line
                yield json.loads(line)


# All of them.


def _live(asked: Asked, lanes: list[Lane], x: RunningXApi, proxy: S3Proxy, console: Console) -> None:
    """Until the time is up, enough were killed or every lane has given up; then without faults until every lane has caught
    up and stopped.
    """
    weather = _Weather(asked, x, proxy)
    with ThreadPoolExecutor(len(lanes)) as pool, _progress(asked, console) as bar:
        runs = [pool.submit(lane.run) for lane in lanes]
        try:
            began = time.monotonic()
            while not _is_enough(asked, lanes, time.monotonic() - began) and not all(run.done() for run in runs):
                weather.changes()
                bar.show(lanes, x, time.monotonic() - began)
                _wait(runs)
            weather.clears_up()
            for lane in lanes:
                lane.over.set()
            while not all(run.done() for run in runs):
                bar.show(lanes, x, time.monotonic() - began)
                _wait(runs)
        finally:
            for lane in lanes:
                lane.abandoned.set()
        for run in runs:
            run.result()


def _wait(runs: list["Future[None]"]) -> None:
    """A moment. Raises what ended a lane that must not end yet."""
    time.sleep(0.25)
    for run in runs:
        if run.done():
            run.result()


def _is_enough(asked: Asked, lanes: list[Lane], seconds: float) -> bool:
    if asked.kills is not None and sum(lane.kills for lane in lanes) >= asked.kills:
        return True
    return asked.minutes is not None and seconds >= asked.minutes * 60


class _Weather:
    """The faults of X and S3."""

    def __init__(self, asked: Asked, x: RunningXApi, proxy: S3Proxy) -> None:
        self._asked = asked
        self._x = x
        self._proxy = proxy
        self._random = random.Random(asked.seed)
        self._late = [LATE] if asked.overlap else []
        self._next_outage = time.monotonic() + self._random.uniform(*OUTAGE_EVERY)
        if asked.faults:
            x.set_faults(*X_FAULTS, *self._late)
            proxy.set_faults(*S3_FAULTS)

    def changes(self) -> None:
        """S3 goes away now and then, and comes back by itself."""
        if not self._asked.faults or time.monotonic() < self._next_outage:
            return
        seconds = self._random.uniform(*OUTAGE_SECONDS)
        self._next_outage = time.monotonic() + seconds + self._random.uniform(*OUTAGE_EVERY)
        self._proxy.set_faults(S3Fault("outage", seconds=seconds), *S3_FAULTS)

    def clears_up(self) -> None:
        """No more faults; but when posts are indexed stays as it was, for the comparison."""
        self._proxy.set_faults()
        if self._asked.faults:
            self._x.set_faults(*self._late)


def _count(figures: Figures, lanes: list[Lane], x: RunningXApi, s3: RunningS3, proxy: S3Proxy) -> None:
    stats = x.stats()
    figures.x_requests = stats["requests"].get("search", {})
    figures.paid_again_later = stats["posts_billed"] - stats["distinct_posts"]
    figures.s3_passed, figures.s3_struck = proxy.passed, proxy.struck
    for lane in lanes:
        lane.compact(s3)
        figures.ends.update(life.end for life in lane.lives)
        figures.first_requests += lane.first_requests()
        figures.problems += lane.problems()
        figures.quarantined += lane.files("quarantine")
        figures.left_in_spool += lane.files("sealed") + lane.files("open")
        figures.found += check(Lake(s3, lane.prefix), x, lane.rules)
        figures.troubles += lane.troubles


class _Bar:
    """How far it is; on anything but a terminal a line now and then."""

    def __init__(self, asked: Asked, progress: Progress) -> None:
        self._asked = asked
        self._progress = progress
        self._task = progress.add_task("", total=asked.kills or (asked.minutes or 0) * 60)
        self._next_look = self._next_line = 0.0

    def show(self, lanes: list[Lane], x: RunningXApi, seconds: float) -> None:
        kills = sum(lane.kills for lane in lanes)
        self._progress.update(self._task, completed=kills if self._asked.kills else seconds)
        if seconds < self._next_look:
            return
        self._next_look = seconds + 2
        lags = [
            query["lag_seconds"] or 0
            for lane in lanes
            if (status := lane.status()) is not None
            for query in status["queries"]
        ]
        lag = f"{max(lags):.0f} s" if lags else "unknown"
        what = "catching up" if lanes[0].over.is_set() else "under fire"
        words = f"{what}: {kills:,} kills, {x.stats()['posts_served']:,} posts served, lost so far unknown, lag {lag}"
        self._progress.update(self._task, description=words)
        if not self._progress.console.is_terminal and seconds >= self._next_line:
            self._next_line = seconds + 30
            self._progress.console.print(f"{seconds:5.0f} s {words}", soft_wrap=True)


@contextlib.contextmanager
def _progress(asked: Asked, console: Console) -> Iterator[_Bar]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        yield _Bar(asked, progress)
