"""The demo: the unchanged service and the real Airflow, from a simulated X to a table on this disk, checked by the oracle.

Every step shows what it does while it does it. The conservation check compares ids, not counts: what X served (its own
ledger), what raw holds (read with nothing but fastavro and json), what is curated (read from the files on disk).
"""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import fastavro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from sandbox.airflow import airflow_environment, migrate, own_words, run_dag
from sandbox.leash import leashed
from sandbox.s3 import RunningS3, running_s3
from sandbox.world import WorldSettings
from sandbox.x_api import RunningXApi, running_x_api

QUERIES = {"python": "python", "systems-en": "(python OR rust) lang:en"}
"""Two rules that overlap, so that `matched_queries` has something to unite. Both see retweets, for the transform."""
BAR_MINUTES = 5
MOST_POSTS = 100_000
"""In the past of the world. The two rules see a third of them, and X answers 450 searches of 100 posts before it pauses."""
TRANSFORM = "compaction_dags.examples:clean_and_filter"

_SETTINGS = """\
# Written by the demo. The same file is read by `tweetlake`, `tweetlake-compact` and the DAG.
[x]
base_url = "{x_url}"

{queries}
[spool]
directory = "{spool}"
seal_after_seconds = 5

[lake]
bucket = "{bucket}"
endpoint_url = "{s3_url}"

[budget]
usd_per_month = 2000.0   # simulated money

[transform]
function = "{transform}"

[health]
port = 0
"""
_QUERY = """\
[[query]]
name = "{name}"
rule = "{rule}"
poll_every_seconds = 10
first_poll_hours = {hours}
overlap_seconds = 20

"""


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What the demo collects, and where it leaves it."""

    directory: Path
    hours: float = 3.0
    tweets_per_second: float = 3.0
    live_seconds: float = 12.0
    seed: int = 1

    def __post_init__(self) -> None:
        """Refuse what would end in the middle, before an earlier demo is removed for it."""
        posts = self.hours * 3600 * self.tweets_per_second
        if not posts <= MOST_POSTS:  # nor is "nan" a number of posts
            raise ValueError(
                f"{self.hours:g} h at {self.tweets_per_second:g} posts a second are {posts:,.0f} posts, and this X pauses "
                f"after about {MOST_POSTS:,}: choose a lower --rate or fewer --hours"
            )


@dataclass(slots=True)
class Times:
    """How long each step took, in seconds, in order."""

    steps: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measured(self, step: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.steps[step] = time.monotonic() - began


def run(settings: DemoSettings, console: Console) -> int:
    """Run the whole of it. Returns 0 when nothing was lost, duplicated or invented."""
    directory = settings.directory.resolve()
    _clear(directory)
    times = Times()
    console.rule("Tweetlake demo")
    console.print(_banner(settings, directory))
    world = WorldSettings(
        seed=settings.seed, tweets_per_second=settings.tweets_per_second, backlog_hours=settings.hours
    )
    with ExitStack() as stack:
        with times.measured("start X and S3"):
            x = stack.enter_context(running_x_api(world, process=True))
            s3 = stack.enter_context(running_s3(directory / "s3"))
            aside = stack.enter_context(ThreadPoolExecutor(1))
        console.print(f"[bold]1[/] X answers at {x.url}, S3 ({s3.kind}) at {s3.endpoint_url}")
        config = _write_settings(settings, directory, x, s3)
        os.environ.update(s3.environment())  # boto3, delta-rs and every child find the keys the usual way
        airflow = airflow_environment(directory / "airflow", config)
        preparing = aside.submit(migrate, airflow)  # while the service collects
        with times.measured("collect"):
            _collect(settings, directory, config, x, console)
        with times.measured("compact in Airflow"):
            _compact(airflow, preparing, console)
        with times.measured("check"):
            lake = directory / "lake"
            client = s3.client()
            _copy(client, s3.bucket, "curated/", lake)
            found = _look(client, s3.bucket, lake, x)
    _report(console, found, lake, times)
    return 0 if found.conserved else 1


def _banner(settings: DemoSettings, directory: Path) -> str:
    past = "1 hour" if settings.hours == 1 else f"{settings.hours:g} hours"
    return (
        f"A simulated X with {past} of posts, a real S3 server, the unchanged service, the real Airflow.\n"
        f"All on 127.0.0.1; everything it writes is under {directory}\n"
    )


def _clear(directory: Path) -> None:
    """Remove what an earlier demo left; nothing else: a folder that is not ours is not touched."""
    mark = directory / ".tweetlake-demo"
    if directory.exists() and any(directory.iterdir()) and not mark.exists():
        raise SystemExit(f"{directory} is not empty and was not made by the demo; name another with --directory")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    mark.touch()


def _write_settings(settings: DemoSettings, directory: Path, x: RunningXApi, s3: RunningS3) -> Path:
    queries = "".join(_QUERY.format(name=name, rule=rule, hours=settings.hours) for name, rule in QUERIES.items())
    file = directory / "tweetlake.toml"
    file.write_text(
        _SETTINGS.format(
            x_url=x.url,
            queries=queries,
            spool=directory / "spool",
            bucket=s3.bucket,
            s3_url=s3.endpoint_url,
            transform=TRANSFORM,
        )
    )
    return file


# Collecting.


def _collect(settings: DemoSettings, directory: Path, config: Path, x: RunningXApi, console: Console) -> None:
    """Run the service until the backlog is done and some live polls were made; then stop it as systemd would."""
    console.print("[bold]2[/] tweetlake run: the backlog page by page, live polls between; microbatches go to S3")
    command = [sys.executable, "-m", "ingester", "run", "--config", str(config)]
    log = directory / "ingester.log"
    with log.open("wb") as lines:
        with leashed(command, stdout=lines, stderr=lines, env=os.environ | {"X_BEARER_TOKEN": x.token}) as service:
            _watch(settings, service, directory / "spool" / "http-address", x, console, log)
        if service.returncode != 0:
            raise _failure(f"the service ended with {service.returncode}", log)


def _watch(
    settings: DemoSettings,
    service: "subprocess.Popen[bytes]",
    address: Path,
    x: RunningXApi,
    console: Console,
    log: Path,
) -> None:
    give_up = time.monotonic() + 300
    caught_up_at: float | None = None
    with _progress(console) as progress:
        bar = progress.add_task("posts read from X", total=sum(len(x.truth(rule)) for rule in QUERIES.values()))
        while caught_up_at is None or time.monotonic() - caught_up_at < settings.live_seconds:
            if service.poll() is not None:
                raise _failure(f"the service ended with {service.returncode}", log)
            if caught_up_at is None and time.monotonic() > give_up:
                raise _failure("the service did not catch up within 300 s", log)
            progress.update(bar, completed=x.stats()["posts_served"])
            status = _status(address)
            if caught_up_at is None and status is not None and _caught_up(status):
                caught_up_at = time.monotonic()
                progress.update(bar, description="posts read from X, now live", total=None)
            time.sleep(0.2)


def _failure(what: str, log: Path) -> SystemExit:
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    return SystemExit(f"{what}; the end of its log, {log}:\n{tail}")


def _caught_up(status: dict[str, Any]) -> bool:
    queries = status["queries"]
    return bool(queries) and all(
        query["last_page_at"] and not query["todo_intervals"] and query["lag_seconds"] < 60 for query in queries
    )


def _status(address: Path) -> dict[str, Any] | None:
    try:
        with urllib.request.urlopen(f"{address.read_text()}/status", timeout=5) as answer:  # noqa: S310 - our own
            found: dict[str, Any] = json.load(answer)
            return found
    except (OSError, ValueError):
        return None


# Compacting.


def _compact(environment: dict[str, str], preparing: "Future[None]", console: Console) -> None:
    console.print("[bold]3[/] airflow dags test compact_tweets: stale raw hours to Delta tables, current hour included")
    with console.status("preparing Airflow's metadata (SQLite)"):
        preparing.result()

    def show(line: str) -> None:
        if (words := own_words(line)) is not None:
            console.print(f"    {words}", highlight=False)

    with console.status("Airflow is running the DAG"):
        run_dag(environment, conf={"include_open": True}, on_line=show)


# Looking at what came of it.


@dataclass(slots=True)
class Found:
    """What the check saw, by ids."""

    served: set[int]
    raw: set[int]
    curated: list[int]
    filtered: set[int]
    rows: dict[str, int]
    created: list[datetime]
    sample: Any
    microbatches: int
    pages: int
    booked_usd: float
    stats: dict[str, Any]
    both: int

    @property
    def lost(self) -> int:
        return len(self.served - self.raw) + len(self.raw - set(self.curated) - self.filtered)

    @property
    def invented(self) -> int:
        return len(self.raw - self.served) + len(set(self.curated) - self.raw)

    @property
    def duplicated(self) -> int:
        return len(self.curated) - len(set(self.curated))

    @property
    def conserved(self) -> bool:
        return bool(self.served) and not (self.lost or self.duplicated or self.invented)


def _keys(client: Any, bucket: str, prefix: str) -> list[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [found["Key"] for page in pages for found in page.get("Contents", [])]


def _copy(client: Any, bucket: str, prefix: str, to: Path) -> None:
    for key in _keys(client, bucket, prefix):
        target = to / key
        target.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(bucket, key, str(target))


def _look(client: Any, bucket: str, lake: Path, x: RunningXApi) -> Found:
    from deltalake import DeltaTable

    raw: dict[int, dict[str, Any]] = {}
    pages, microusd = 0, 0
    keys = _keys(client, bucket, "raw/")
    for key in keys:
        content = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        for record in cast("Iterator[dict[str, Any]]", fastavro.reader(BytesIO(content))):
            if record["kind"] == "page":
                pages += 1
                microusd += record["cost_microusd"]
                raw |= {int(item["id"]): item for item in json.loads(record["body"]).get("data", [])}
    tables = {path.name: DeltaTable(str(path)) for path in sorted((lake / "curated").iterdir())}
    rows = {name: table.to_pyarrow_dataset().count_rows() for name, table in tables.items()}
    tweets = (
        tables["tweets"]
        .to_pyarrow_table(columns=["id", "created_at", "lang", "text", "like_count", "matched_queries"])
        .sort_by([("id", "descending")])
    )
    return Found(
        served={number for name in QUERIES.values() for number in x.served(name)},
        raw=set(raw),
        curated=tweets["id"].to_pylist(),
        filtered={number for number, item in raw.items() if _dropped_by_the_example(item)},
        rows=rows,
        created=tweets["created_at"].to_pylist(),
        sample=tweets.slice(0, 4).to_pylist(),
        microbatches=len(keys),
        pages=pages,
        booked_usd=microusd / 1e6,
        stats=x.stats(),
        both=sum(len(names) > 1 for names in tweets["matched_queries"].to_pylist()),
    )


def _dropped_by_the_example(item: dict[str, Any]) -> bool:
    """What the shipped transform says it drops, told once more in plain Python from X's own JSON."""
    retweet = any(reference["type"] == "retweeted" for reference in item.get("referenced_tweets", []))
    return retweet or item.get("lang") != "en"


def _report(console: Console, found: Found, lake: Path, times: Times) -> None:
    console.print("[bold]4[/] what came of it\n")
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_row("requests to X", f"{sum(sum(outcomes.values()) for outcomes in found.stats['requests'].values()):,}")
    facts.add_row("posts read", f"{found.stats['posts_served']:,} ({len(found.served):,} distinct)")
    billed = found.stats["usd"]
    facts.add_row(
        "money (simulated)", f"${found.booked_usd:,.2f} booked, included objects too; X's bill for posts ${billed:,.2f}"
    )
    facts.add_row("raw", f"{found.microbatches} microbatches, {found.pages} pages")
    facts.add_row("by both queries", f"{found.both:,} tweets, one row each")
    facts.add_row("tweets by time", f"{_bars(found.created)} a bar is {BAR_MINUTES} minutes, newest right")
    facts.add_row("curated rows", ", ".join(f"{name} {count:,}" for name, count in found.rows.items()))
    console.print(facts)
    sample = Table(title="the newest rows of tweets", title_justify="left", box=None, pad_edge=False)
    for column in ("created_at", "lang", "likes", "matched_queries", "text"):
        sample.add_column(column, no_wrap=column != "text", max_width=60)
    for row in found.sample:
        words = [
            f"{row['created_at']:%H:%M:%S}",
            row["lang"],
            str(row["like_count"]),
            ", ".join(row["matched_queries"]),
        ]
        sample.add_row(*words, row["text"][:100])
    console.print(sample)
    verdict = "[green]holds[/]" if found.conserved else "[red]DOES NOT HOLD[/]"
    console.print(
        f"\nconservation {verdict}: served {len(found.served):,} = curated {len(set(found.curated)):,} "
        f"+ filtered {len(found.filtered):,}; {found.lost} lost, {found.duplicated} duplicated, {found.invented} invented"
    )
    console.print("[bold]5[/] what took the time: ", end="")
    spent = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in times.steps.items())
    console.print(f"{spent} (most of it Airflow's own start)\n")
    table = lake / "curated" / "tweets"
    console.print(f"The tables lie in {lake / 'curated'}. Open them ({Path(sys.executable)}):\n", soft_wrap=True)
    for line in (
        f'from deltalake import DeltaTable; t = DeltaTable("{table}"); t.to_pandas()',
        'import duckdb; d = t.to_pyarrow_dataset(); duckdb.sql("select hour, count(*) from d group by hour").show()',
        f'import polars; polars.read_delta("{table}")',
    ):
        console.print(f"  {line}", soft_wrap=True, markup=False, highlight=False)


def _bars(created: list[datetime]) -> str:
    """How many tweets there are in every BAR_MINUTES, as a row of bars."""
    if not created:
        return ""
    slots = Counter(int(moment.timestamp()) // (60 * BAR_MINUTES) for moment in created)
    highest = max(slots.values())
    heights = (slots[slot] * 7 // highest for slot in range(min(slots), max(slots) + 1))
    return "".join("▁▂▃▄▅▆▇█"[height] for height in heights)


def _progress(console: Console) -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("    {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=False)
