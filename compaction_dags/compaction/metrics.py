"""The compaction's numbers for Prometheus, read off the lake at one moment: freshness, completeness, recent runs, tables.

Nothing here remembers: the same lake gives the same numbers, whoever compacts it and however often this is asked.
`docs/metrics.md` has every metric, by type, labels and meaning.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from prometheus_client import CollectorRegistry, Gauge

from compaction_dags.compaction.freshness import Freshness, freshness
from compaction_dags.compaction.lake import Lake
from compaction_dags.compaction.tables import CuratedTable, Partition, Snapshot
from schemas.curated import TABLES
from schemas.keys import RawHour
from schemas.settings import Settings

COUNTED_HOURS = 24
"""How many hours of a query the completeness is told of: the newest ones that X has counted."""
RECENT = timedelta(hours=24)
"""Raw hours that began so long ago, or later, are recent."""
_COUNTED_WITHIN = timedelta(days=8)
"""X counts seven days back, once a day."""
SUMS = ("rows", "duplicates", "filtered", "rejects")


@dataclass(frozen=True, slots=True)
class Completeness:
    """What was collected of a query's posts beside what X counts, over some hours."""

    hours: int
    collected: int
    counted: int


@dataclass(frozen=True, slots=True)
class Recent:
    """What compaction made of the recent raw hours."""

    sums: Mapping[str, int]
    """Rows of `data`, duplicates, filtered, rejects."""
    unknown_keys: int
    """Keys of X's answers without a column, each counted once."""
    last_run_at: datetime | None


@dataclass(frozen=True, slots=True)
class Numbers:
    """All of it."""

    fresh: Freshness
    completeness: Mapping[str, Completeness]
    recent: Recent
    tables: Mapping[str, Snapshot]


def gather(settings: Settings, now: datetime | None = None) -> Numbers:
    """Read the lake, and write nothing. Raises the errors of the lake."""
    now = now or datetime.now(UTC)
    fresh = freshness(settings, now)
    lake = Lake(settings.lake)
    tables = {name: CuratedTable(lake, name) for name in TABLES}
    opened = {name: snapshot for name, table in tables.items() if (snapshot := table.open()) is not None}

    def rows(name: str, columns: Sequence[str], since: datetime) -> dict[Partition, list[dict[str, Any]]]:
        if name not in opened:
            return {}
        wanted = [partition for partition in sorted(opened[name].files) if since <= partition.start <= now]
        return {hour: found.to_pylist() for hour, found in tables[name].read_many(opened[name], wanted, columns)}

    counted = rows("completeness", ("query", "collected", "counted", "is_covered", "covered"), now - _COUNTED_WITHIN)
    consumed = rows("ingested_files", (*SUMS, "unknown_keys", "ingested_at"), now - RECENT)
    # What waits to be compacted is missing in the table, but is not lost.
    waits = fresh.oldest_stale_hour
    settled = {hour: found for hour, found in counted.items() if waits is None or str(hour) < waits}
    return Numbers(
        fresh,
        {query.name: found for query in settings.query if (found := _completeness(query.name, settled)) is not None},
        _recent([row for found in consumed.values() for row in found]),
        opened,
    )


def exposed(numbers: Numbers) -> CollectorRegistry:
    """As Prometheus reads them."""
    registry = CollectorRegistry()

    def gauge(name: str, doc: str, *labels: str) -> Gauge:
        return Gauge(f"tweetlake_{name}", doc, labels, registry=registry)

    def when(name: str, doc: str, moment: datetime | None) -> None:
        if moment is not None:
            gauge(name, doc).set(moment.timestamp())

    fresh, recent = numbers.fresh, numbers.recent
    when("compaction_checked_timestamp_seconds", "When these numbers were read, as Unix time.", fresh.checked_at)
    when(
        "curated_newest_tweet_timestamp_seconds",
        "When the newest post in the table tweets was made, as Unix time.",
        fresh.newest_tweet_at,
    )
    gauge("curated_stale_partitions", "Partitions of raw, an hour each, that wait to be compacted, or cannot be.").set(
        fresh.stale_hours
    )
    when(
        "curated_oldest_stale_timestamp_seconds",
        "When the oldest raw hour that waits began, as Unix time; none without one.",
        RawHour.parse(fresh.oldest_stale_hour).start if fresh.oldest_stale_hour else None,
    )
    when(
        "compaction_last_run_timestamp_seconds",
        "When a recent raw hour was last consumed, as Unix time.",
        recent.last_run_at,
    )
    for name, doc in (
        ("rows", "Posts in the pages of the recent raw hours, before duplicates were folded."),
        ("duplicates", "Repeats of a post within its raw hour, in the recent raw hours."),
        ("filtered", "Posts of the recent raw hours that the transform dropped."),
        ("rejects", "Objects of the recent raw hours that could not be used."),
    ):
        gauge(f"compaction_recent_{name}", doc).set(recent.sums[name])
    gauge("compaction_recent_unknown_keys", "Keys without a column that X's answers of the recent raw hours had.").set(
        recent.unknown_keys
    )
    collected = gauge(
        "completeness_collected_posts", "Posts in the table tweets of the newest hours that X counted.", "query"
    )
    counted = gauge("completeness_counted_posts", "Posts of the newest hours that X counted, by its count.", "query")
    length = gauge("completeness_counted_seconds", "How long the newest hours that X counted are together.", "query")
    for query, found in numbers.completeness.items():
        collected.labels(query).set(found.collected)
        counted.labels(query).set(found.counted)
        length.labels(query).set(found.hours * 3600)
    files = gauge("curated_table_files", "Data files of the table's newest version.", "table")
    size = gauge("curated_table_bytes", "Bytes of the data files of the table's newest version.", "table")
    rows = gauge("curated_table_rows", "Rows of the table's newest version.", "table")
    for table, snapshot in numbers.tables.items():
        present = [file for partition in snapshot.files.values() for file in partition]
        files.labels(table).set(len(present))
        size.labels(table).set(sum(file.size for file in present))
        rows.labels(table).set(sum(file.rows for file in present))
    return registry


def _completeness(query: str, hours: Mapping[Partition, Iterable[Mapping[str, Any]]]) -> Completeness | None:
    """None as long as X has counted no hour of it."""
    rows = _since_begun([row for _, found in sorted(hours.items()) for row in found if row["query"] == query])
    counted = [row for row in rows if row["counted"] is not None][-COUNTED_HOURS:]
    if not counted:
        return None
    return Completeness(len(counted), sum(row["collected"] for row in counted), sum(row["counted"] for row in counted))


def _since_begun(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """X counts the days before a query began too, and all of the hour in which it did."""
    first = next((number for number, row in enumerate(rows) if row["covered"]), len(rows))
    is_whole = first < len(rows) and rows[first]["is_covered"]
    return rows[first if is_whole else first + 1 :]


def _recent(rows: Sequence[Mapping[str, Any]]) -> Recent:
    keys = {key for row in rows if row["unknown_keys"] for key in json.loads(row["unknown_keys"])}
    moments = [row["ingested_at"] for row in rows if row["ingested_at"] is not None]
    sums = {name: sum(row[name] or 0 for row in rows) for name in SUMS}
    return Recent(sums, len(keys), max(moments, default=None))
