"""Whether workers can be added: 24 raw hours compacted by Airflow with one LocalExecutor worker and with two, same tables.

A real Airflow (scheduler, DAG processor, API server) on PostgreSQL and a real S3 server, once for each number of workers,
over the same raw. Tweets come again in the next raw hour, so neighbouring hours write into the same files. Each worker
compacts in one process. It fails unless every table holds the same rows.
"""

import argparse
import hashlib
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.compaction_data import PAGES_A_FILE, TWEETS_A_FILE
from sandbox.s3 import RunningS3, running_s3
from schemas.curated import KEYS, TABLES
from schemas.keys import LakeKeys
from tests.compaction.pages import World, microbatch, page_record, raw_key
from tests.system.running_airflow import RunningAirflow, running_airflow

HOURS = 24
OF_THE_RUN = ("ingested_at",)
"""What tells when the work was done."""
_ORDER = ("date", "hour", "query", "since_id", "raw_key", "page_index")
PATIENCE_SECONDS = 1_800.0

_SETTINGS = """
[lake]
bucket = "{bucket}"
endpoint_url = "{url}"
region = "{region}"

[compaction]
processes = 1

[[query]]
name = "lake"
rule = "lake lang:en"
"""


@dataclass
class Done:
    """What one way took: seconds of the run, and of its mapped tasks added up; most of them at the same time."""

    workers: int
    run: float
    tasks: float
    at_once: int
    rows: dict[str, Any]


def raw(files: int) -> list[tuple[str, bytes]]:
    """Key and content of every microbatch of 24 hours that are over."""
    first = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=HOURS + 1)
    world = World(7, first, apart_ms=2 * 3_600_000 // (files * TWEETS_A_FILE))
    made = []
    for number in range(HOURS * files):
        at = first + timedelta(hours=1) * number / files
        records = [page_record(world.body(), at + timedelta(seconds=page)) for page in range(PAGES_A_FILE)]
        made.append((raw_key(number + 1, at), microbatch(records, number + 1, blocks=False)))
    return made


def fill(server: RunningS3, bucket: str, made: list[tuple[str, bytes]]) -> None:
    """Put the microbatches there as the ingester does."""
    client = server.client()
    client.create_bucket(Bucket=bucket)
    for key, body in made:
        metadata = {"sha256": hashlib.sha256(body).hexdigest(), "records": str(PAGES_A_FILE)}
        client.put_object(Bucket=bucket, Key=key, Body=body, Metadata=metadata)


def compacted(server: RunningS3, bucket: str, workers: int, work: Path) -> Done:
    """Airflow with so many workers, and its run of the last tick, which does all that is stale."""
    config = work / "tweetlake.toml"
    config.write_text(_SETTINGS.format(bucket=bucket, url=server.endpoint_url, region=server.region))
    limits = {"AIRFLOW__CORE__PARALLELISM": str(workers), "TWEETLAKE_HOURS_AT_ONCE": str(workers)}
    with running_airflow(work / "airflow", config, server.environment(), limits) as airflow:
        airflow.unpause("compact_tweets")
        (run,) = airflow.wait("the run of the last tick", lambda: airflow.runs("compact_tweets"))
        run_id = run["dag_run_id"]
        state = airflow.finished("compact_tweets", run_id, PATIENCE_SECONDS)
        if state != "success":
            sys.exit(f"with {workers} workers the run ended as {state}\n{airflow.tail()}")
        seconds, spans = _times(airflow, run_id)
    return Done(workers, seconds, sum(end - start for start, end in spans), _most_at_once(spans), _rows(server, bucket))


def _times(airflow: RunningAirflow, run_id: str) -> tuple[float, list[tuple[float, float]]]:
    """Seconds of the run, and from when to when each of its mapped tasks ran."""
    tasks = airflow.tasks("compact_tweets", run_id)
    spans = [_span(task) for name, task in tasks.items() if name.startswith("compact[")]
    assert len(spans) == HOURS, f"{len(spans)} raw hours were compacted, not {HOURS}"
    start, end = _span(airflow.ask("GET", f"dags/compact_tweets/dagRuns/{run_id}"))
    return end - start, spans


def _span(found: dict[str, Any]) -> tuple[float, float]:
    start, end = (datetime.fromisoformat(found[name]).timestamp() for name in ("start_date", "end_date"))
    return start, end


def _most_at_once(spans: list[tuple[float, float]]) -> int:
    return max(sum(start <= moment < end for start, end in spans) for moment, _ in spans)


def _rows(server: RunningS3, bucket: str) -> dict[str, Any]:
    """Every row of every table, in order, without what tells of the run."""
    from deltalake import DeltaTable

    options = {**server.environment(), "AWS_ENDPOINT_URL": server.endpoint_url, "AWS_ALLOW_HTTP": "true"}
    found = {}
    for name in TABLES:
        rows = DeltaTable(f"s3://{bucket}/{LakeKeys().table(name)}", storage_options=options).to_pyarrow_table()
        rows = rows.drop_columns([column for column in OF_THE_RUN if column in rows.column_names])
        order = [column for column in (KEYS.get(name), *_ORDER) if column in rows.column_names]
        found[name] = rows.sort_by([(column, "ascending") for column in order]).combine_chunks()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_workers", description=__doc__.splitlines()[0])
    parser.add_argument("--microbatches", type=int, default=3, help="of 1,400 tweets in each raw hour (default 3)")
    parser.add_argument("--workers", default="1,2", help="numbers of workers (default 1,2)")
    chosen = parser.parse_args()
    numbers = [int(number) for number in chosen.workers.split(",")]
    console = Console(width=110)
    made, done = raw(chosen.microbatches), []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or Airflow's parts would live on
    with tempfile.TemporaryDirectory(prefix="tweetlake-bench-") as work, running_s3(kind="seaweedfs") as server:
        for workers in numbers:
            with console.status(f"{HOURS} raw hours, {workers} worker(s)"):
                bucket, place = f"workers-{workers}", Path(work) / str(workers)
                place.mkdir()
                fill(server, bucket, made)
                done.append(compacted(server, bucket, workers, place))
    _tell(console, done, chosen.microbatches)


def _tell(console: Console, done: list[Done], files: int) -> None:
    tweets = HOURS * files * TWEETS_A_FILE
    table = Table(title=f"{HOURS} raw hours, {tweets:,} tweets; load {os.getloadavg()[0]:.1f} at {time.strftime('%F')}")
    for column in ("workers", "run, s", "mapped tasks added up, s", "at once", "of the first"):
        table.add_column(column, justify="right")
    for one in done:
        table.add_row(
            str(one.workers), f"{one.run:.1f}", f"{one.tasks:.1f}", str(one.at_once), f"{one.run / done[0].run:.2f}"
        )
    console.print(table)
    first = done[0]
    differing = [
        f"{name} with {one.workers}"
        for one in done[1:]
        for name in TABLES
        if not one.rows[name].equals(first.rows[name])
    ]
    if differing:
        sys.exit(f"tables differ: {', '.join(differing)}")
    counted = ", ".join(f"{name} {rows.num_rows:,}" for name, rows in first.rows.items())
    console.print(f"every table holds the same rows: {counted}")


if __name__ == "__main__":
    main()
