"""The benchmark of the service as a process: how soon it asks after a start, what it needs, how fresh S3 is.

Each figure comes from a real `tweetlake run` against the simulated X and a real S3 server, and is held against a bound.
"""

import io
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
import fastavro

from benchmarks.ingest_server import pages
from benchmarks.service_place import (
    Place,
    Process,
    ServiceEnded,
    black_hole,
    copy_spool,
    fill,
    refusing,
    silent,
)
from sandbox.s3 import RunningS3, running_s3
from sandbox.world import WorldSettings
from sandbox.x_api import ApiSettings, RunningXApi, running_x_api
from schemas import snowflake
from schemas.keys import LakeKeys

NO_LIMIT = ApiSettings(search_limit=10**9)

WAITING, STARTS, RESUME_SECONDS = 10_000, 5, 2.0
BACKLOG_TWEETS, BACKLOG_HOURS, MEMORY_BYTES = 500_000, 168, 150_000_000
IDLE_QUERIES, IDLE_POLL, SETTLE_SECONDS, IDLE_SECONDS, IDLE_SHARE = 20, 60.0, 15.0, 150.0, 0.01
SCRAPE_QUERIES, SCRAPES, SCRAPE_SECONDS = 100, 30, 0.02
SCRAPE_EVERY = 1.2
"""Seconds: an answer is given again for one."""
FRESH_MARGIN = 15.0
"""Seconds beside poll and seal: X's index is 12 behind, the rest is ours."""
SHORT, DEFAULTS = (2.0, 4.0, 120.0), (30.0, 60.0, 240.0)
"""Poll and seal as set, and how long to look, in seconds."""
HEALTH_QUERIES, HEALTH_POLL, HEALTH_RATE, HEALTH_SECONDS = 10, 1.0, 1_000, 20.0
HEALTH_LATE = 0.1
"""Seconds: less than a hundredth of the default interval between two polls."""
LONGEST_START, LONGEST_BACKLOG = 60.0, 1_800.0
RULE = "python OR coffee OR football OR music OR climate"


@dataclass(frozen=True, slots=True)
class Found:
    """A figure beside its bound; the detail is for people."""

    what: str
    figure: str
    bound: str
    holds: bool
    detail: str = ""

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "**missed**"
        return f"| {self.what} | {self.figure} | {self.bound} | {verdict} | {self.detail} |"


@dataclass(frozen=True, slots=True)
class World:
    """Where the benchmarks of one run happen."""

    directory: Path
    s3: RunningS3


# How soon it asks after a start.


def resume(world: World) -> Iterator[Found]:
    """From just before the process is started to the first search that the simulated X saw, by its own record."""
    template = world.directory / "template"
    _say(f"sealing {WAITING:,} microbatches ...")
    fill(template, WAITING, "bench", RULE, [_shortened(page) for page in pages(20)])
    ways: dict[str, Callable[[], AbstractContextManager[str | None]]] = {
        "up": nullcontext,
        "refuses": refusing,
        "never answers": silent,
        "a black hole": black_hole,
    }
    with running_x_api(WorldSettings(tweets_per_second=1), NO_LIMIT, process=True) as x:
        _start(world, x, template, None)  # not counted: from here on the lake knows this spool
        for words, way in ways.items():
            with way() as endpoint:
                starts = [_start(world, x, template, endpoint) for _ in _counted(STARTS, f"start with S3 {words}")]
            taken, cpu = zip(*starts, strict=True)
            yield Found(
                f"first request with {WAITING:,} waiting, S3 {words}",
                f"{statistics.median(taken):.2f} s, at most {max(taken):.2f} s",
                f"{RESUME_SECONDS:.0f} s",
                max(taken) <= RESUME_SECONDS,
                f"{STARTS} starts: {', '.join(f'{seconds:.2f}' for seconds in taken)}; "
                f"about {statistics.median(cpu):.2f} s of CPU until then",
            )


def _shortened(page: bytes) -> bytes:
    """Ten of its tweets, as they come in a minute of a quiet query."""
    found = json.loads(page)
    return json.dumps({"data": found["data"][:10], "meta": {"result_count": 10}}).encode()


def _start(world: World, x: RunningXApi, template: Path, endpoint: str | None) -> tuple[float, float]:
    """Seconds until the first request, and seconds of CPU until it was seen."""
    place = Place(world.directory / "resume", x, world.s3, {"bench": RULE}, endpoint=endpoint)
    place.directory.mkdir(exist_ok=True)
    copy_spool(template, place.spool)
    os.sync()  # links to write are not the start's own
    with place.running() as process:
        _until(process, lambda: any(at >= process.began for at in x.asked_at(RULE)), LONGEST_START)
        return min(at for at in x.asked_at(RULE) if at >= process.began) - process.began, process.cpu()


# What it needs.


def memory(world: World) -> Iterator[Found]:
    """The peak of the whole process while it reads a week's backlog, with S3 up."""
    seconds = BACKLOG_HOURS * 3600
    with running_x_api(WorldSettings(tweets_per_second=1, backlog_hours=2), NO_LIMIT, process=True) as x:
        share = len(x.truth(RULE)) / (2 * 3600)
    settings = WorldSettings(tweets_per_second=BACKLOG_TWEETS / seconds / share, backlog_hours=BACKLOG_HOURS)
    with running_x_api(settings, NO_LIMIT, process=True) as x:
        place = Place(world.directory / "memory", x, world.s3, {"bench": RULE}, hours=BACKLOG_HOURS)
        course: list[tuple[int, int]] = []
        with place.running() as process:

            def caught_up() -> bool:
                served = x.stats()["posts_served"]
                course.append((served, process.memory()["VmRSS"]))
                _say(f"{served:,} tweets, RSS {course[-1][1] / 1e6:.0f} MB", over=True)
                return process.has_caught_up()

            _until(process, caught_up, LONGEST_BACKLOG, every=1.0)
            _say("")
            peak, took, cpu = process.memory()["VmHWM"], time.time() - process.began, process.cpu()
        served = course[-1][0]
    tenths = [next(rss for tweets, rss in course if tweets >= served * tenth / 10) for tenth in range(1, 11)]
    yield Found(
        f"peak memory over a backlog of {served:,} tweets",
        f"{peak / 1e6:.1f} MB",
        f"{MEMORY_BYTES / 1e6:.0f} MB",
        peak <= MEMORY_BYTES,
        f"RSS at each tenth: {', '.join(f'{rss / 1e6:.0f}' for rss in tenths)} MB; {took:.0f} s, {cpu:.0f} s of CPU",
    )


def idle(world: World) -> Iterator[Found]:
    """CPU of the whole process while queries are asked and nothing is found."""
    rules = {f"nothing{number}": f"nobodysaysthis{number}" for number in range(IDLE_QUERIES)}
    with running_x_api(WorldSettings(tweets_per_second=1), NO_LIMIT, process=True) as x:
        place = Place(world.directory / "idle", x, world.s3, rules, poll=IDLE_POLL)
        with place.running() as process:
            _until(process, process.has_asked_all, LONGEST_START)
            _say(f"idle for {SETTLE_SECONDS + IDLE_SECONDS:.0f} s ...")
            time.sleep(SETTLE_SECONDS)
            start_up, asked = process.cpu(), _requests(x)
            time.sleep(IDLE_SECONDS)
            used, asked = process.cpu() - start_up, _requests(x) - asked
    share = used / IDLE_SECONDS
    yield Found(
        f"CPU of {IDLE_QUERIES} queries at {IDLE_POLL:.0f} s, nothing new",
        f"{share:.2%} of one core",
        f"{IDLE_SHARE:.0%}",
        share < IDLE_SHARE,
        f"{used:.2f} s in {IDLE_SECONDS:.0f} s for {asked} requests to X; {start_up:.2f} s before that",
    )


def scrape(world: World) -> Iterator[Found]:
    """How long Prometheus waits for /metrics while many queries are asked."""
    rules = {f"query{number}": f"nobodysaysthis{number}" for number in range(SCRAPE_QUERIES)}
    with running_x_api(WorldSettings(tweets_per_second=1), NO_LIMIT, process=True) as x:
        place = Place(world.directory / "scrape", x, world.s3, rules, poll=IDLE_POLL)
        with place.running() as process:
            _until(process, process.has_asked_all, LONGEST_START)
            took, lines = [], 0
            for _ in _counted(SCRAPES, "scrape"):
                time.sleep(SCRAPE_EVERY)
                answer, seconds = process.scrape()
                took.append(seconds)
                lines = answer.count(b"\n")
    took.sort()
    p50, p90 = statistics.median(took), took[int(len(took) * 0.9)]
    yield Found(
        f"/metrics with {SCRAPE_QUERIES} queries",
        f"p50 {p50 * 1000:.1f} ms, p90 {p90 * 1000:.1f} ms",
        f"{SCRAPE_SECONDS * 1000:.0f} ms",
        p50 <= SCRAPE_SECONDS,
        f"{SCRAPES} scrapes of {lines:,} lines, {took[0] * 1000:.1f} to {took[-1] * 1000:.1f} ms",
    )


def _requests(x: RunningXApi) -> int:
    return sum(x.stats()["requests"]["search"].values())


# How fresh S3 is.


def fresh(world: World, poll: float, seal: float, seconds: float) -> Iterator[Found]:
    """The age of the newest tweet in raw, looked at once a second from outside."""
    with running_x_api(WorldSettings(tweets_per_second=20, backlog_hours=0.1), NO_LIMIT, process=True) as x:
        place = Place(world.directory / f"fresh-{poll:.0f}", x, world.s3, {"bench": RULE}, poll, seal)
        with place.running() as process:
            _until(process, process.has_asked_all, LONGEST_START)
            newest = _Newest(world.s3, place.prefix)
            # The first file is as old as the backlog; the second one is of the steady state.
            _until(process, lambda: newest.files() >= 2, LONGEST_START + 3 * seal)
            ages = []
            for _ in _counted(int(seconds), "second of looking at S3"):
                time.sleep(1.0 - time.time() % 1.0)
                newest.files()
                ages.append(time.time() - newest.created)
    ages.sort()
    p50, p95 = statistics.median(ages), ages[int(len(ages) * 0.95)]
    bound = poll + seal + FRESH_MARGIN
    yield Found(
        f"age of the newest tweet in S3, poll {poll:.0f} s, seal {seal:.0f} s",
        f"p50 {p50:.1f} s, p95 {p95:.1f} s",
        f"{bound:.0f} s",
        p95 <= bound,
        f"{len(ages)} looks, {ages[0]:.1f} to {ages[-1]:.1f} s, {newest.files()} files",
    )


class _Newest:
    """The newest tweet of raw, read off the objects themselves."""

    def __init__(self, s3: RunningS3, prefix: str) -> None:
        self._client = s3.client()
        self._bucket = s3.bucket
        self._prefix = LakeKeys(prefix).raw
        self._seen: set[str] = set()
        self.created = 0.0
        """Unix seconds."""

    def files(self) -> int:
        """Read what is new, and tell how many objects there are."""
        listed = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
        keys = {found["Key"] for page in listed for found in page.get("Contents", [])}
        for key in keys - self._seen:
            body = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
            for record in fastavro.reader(io.BytesIO(body)):
                tweets = json.loads(record["body"] or b"{}").get("data", [])
                created = (snowflake.time_of(int(tweet["id"])).timestamp() for tweet in tweets)
                self.created = max(self.created, max(created, default=0.0))
        self._seen = keys
        return len(keys)


# Whether being asked holds up asking.


def health(world: World) -> Iterator[Found]:
    """How late polls are, by the simulated X's own record, while nobody asks how it is and while a crowd does."""
    rules = {f"nothing{number}": f"nobodysaysthis{number}" for number in range(HEALTH_QUERIES)}
    with running_x_api(WorldSettings(tweets_per_second=1), NO_LIMIT, process=True) as x:
        place = Place(world.directory / "health", x, world.s3, rules, poll=HEALTH_POLL)
        with place.running() as process:
            _until(process, process.has_asked_all, LONGEST_START)
            _say(f"polls alone and under {HEALTH_RATE:,} requests a second, {HEALTH_SECONDS:.0f} s each ...")
            time.sleep(SETTLE_SECONDS)
            began, cpu = time.time(), process.cpu()
            time.sleep(HEALTH_SECONDS)
            between, alone = time.time(), process.cpu() - cpu
            url = (place.spool / "http-address").read_text()
            command = [sys.executable, "-m", "benchmarks.health_load", url, str(HEALTH_RATE), str(HEALTH_SECONDS)]
            load = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            ended, loaded = time.time(), process.cpu() - cpu - alone
        asked = [x.asked_at(rule) for rule in rules.values()]
    quiet, busy = _lateness(asked, began, between), _lateness(asked, between, ended)
    yield Found(
        f"how late polls are under {load['rate']:,.0f} requests a second",
        f"median {1000 * statistics.median(busy):.0f} ms, p99 {1000 * _p99(busy):.0f} ms",
        f"p99 {1000 * HEALTH_LATE:.0f} ms",
        _p99(busy) <= HEALTH_LATE and load["rate"] >= 0.95 * HEALTH_RATE and not load["failed"],
        f"without: median {1000 * statistics.median(quiet):.0f} ms, p99 {1000 * _p99(quiet):.0f} ms; {len(busy)} polls with, "
        f"{len(quiet)} without; answers p99 {1000 * load['p99']:.0f} ms, {load['failed']} failed; CPU of the service "
        f"{loaded / HEALTH_SECONDS:.0%} of a core with, {alone / HEALTH_SECONDS:.0%} without",
    )


def _lateness(asked: list[list[float]], began: float, ended: float) -> list[float]:
    """Seconds behind each query's own beat, which is where its least late poll of the whole time stands."""
    found = []
    for times in asked:
        seen = [at for at in times if at >= began - SETTLE_SECONDS / 2]
        behind = [(at, (at - seen[0]) - round((at - seen[0]) / HEALTH_POLL) * HEALTH_POLL) for at in seen]
        beat = min(late for _, late in behind)
        found += [late - beat for at, late in behind if began <= at < ended]
    return found


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


# What serves all.


def _until(process: Process, condition: Callable[[], bool], seconds: float, *, every: float = 0.25) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert process.pid  # raises when it has ended
        if time.monotonic() > ends:
            raise process.gives_up(f"not within {seconds:.0f} s")
        time.sleep(every)


def _counted(times: int, what: str) -> Iterator[int]:
    for number in range(times):
        _say(f"{what}: {number + 1} of {times}", over=True)
        yield number
    _say("")


def _say(words: str, *, over: bool = False) -> None:
    """Progress, for people; on a terminal it may take its own place."""
    if over and not sys.stderr.isatty():
        return
    click.echo(f"\r\x1b[K{words}" if sys.stderr.isatty() else words, nl=not over and bool(words), err=True)


PARTS = ("resume", "memory", "idle", "scrape", "fresh", "health")


def _parts(_context: click.Context, _parameter: click.Parameter, given: str) -> list[str]:
    asked = given.split(",")
    if unknown := set(asked) - set(PARTS):
        raise click.BadParameter(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return [part for part in PARTS if part in asked]


@click.command()
@click.option("--only", "parts", default=",".join(PARTS), show_default=True, callback=_parts, help="Only these parts.")
@click.option("--defaults", is_flag=True, help="fresh: with the settings' default poll and seal, over four minutes.")
def main(parts: list[str], defaults: bool) -> None:
    """Measure, hold against the bounds, and print a table as Markdown. Exits with 1 when a bound is missed.

    \b
    Examples:
      make bench-service
      make bench-service ARGS="--only resume,memory"
      make bench-service ARGS="--only fresh --defaults"
    """
    holds = True
    with tempfile.TemporaryDirectory(prefix="bench-service-") as scratch, running_s3() as s3:
        world = World(Path(scratch), s3)
        found = {
            "resume": lambda: resume(world),
            "memory": lambda: memory(world),
            "idle": lambda: idle(world),
            "scrape": lambda: scrape(world),
            "fresh": lambda: fresh(world, *(DEFAULTS if defaults else SHORT)),
            "health": lambda: health(world),
        }
        click.echo(_machine(s3))
        click.echo("\n| what | figure | bound | verdict | |\n|---|---:|---:|---|---|")
        try:
            for each in itertools.chain.from_iterable(found[part]() for part in parts):
                click.echo(str(each))
                holds = holds and each.holds
        except ServiceEnded as error:
            raise click.ClickException(str(error)) from error
    sys.exit(0 if holds else 1)


def _machine(s3: RunningS3) -> str:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), platform.machine())
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"Linux {platform.release()}, Python {platform.python_version()}, S3 by {s3.kind}."
    )


if __name__ == "__main__":
    main()
