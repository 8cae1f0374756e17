"""What the report tells, gathered from `completeness` and `coverage`. The same tables give the same figures."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from compaction_dags.compaction.coverage import COVERED, GAP, TODO, Timeline, timelines
from compaction_dags.compaction.lake import Lake
from compaction_dags.compaction.tables import CuratedTable, Partition
from schemas import snowflake
from schemas.settings import Settings
from schemas.state import joined, without

DEFAULT_SPAN = timedelta(days=7)
LOST = "lost"
"""Told by no raw hour, though the frontier passed it."""
UNKNOWN = "unknown"
"""Before the collection began, after its newest page, or of raw hours that nobody compacted: the tables say nothing."""
HOUR = timedelta(hours=1)
_COMPLETENESS = ("query", "collected", "counted", "counted_at", "is_covered", "covered")
_NOTHING = Timeline((), (), (), ())
_COVERAGE = ("query", "kind", "since_id", "until_id", "reason")


@dataclass(frozen=True, slots=True)
class Hour:
    """An hour of a query."""

    start: datetime
    collected: int
    counted: int | None
    covered: float
    """Share of the hour that pages cover, 0 to 1."""
    is_covered: bool

    @property
    def ratio(self) -> float | None:
        return self.collected / self.counted if self.counted else None

    @property
    def is_proved(self) -> bool:
        """Covered wholly, and counted by X."""
        return self.is_covered and self.counted is not None


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a query's time."""

    kind: str
    """covered, todo, gap, lost or unknown."""
    start: datetime
    end: datetime
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class QueryFigures:
    """All that is told of a query."""

    name: str
    hours: tuple[Hour, ...]
    stretches: tuple[Stretch, ...]
    """In order of time, without holes; none overlaps another."""
    known_since: datetime | None = None
    """The earliest that is told of it, of what was fetched since the report begins; None: nothing is."""

    @property
    def collected(self) -> int:
        return sum(hour.collected for hour in self.hours)

    @property
    def counted_hours(self) -> list[Hour]:
        return [hour for hour in self.hours if hour.counted is not None]

    @property
    def ratio(self) -> float | None:
        """Of the hours that X counted."""
        counted = sum(hour.counted or 0 for hour in self.counted_hours)
        return sum(hour.collected for hour in self.counted_hours) / counted if counted else None

    @property
    def proved(self) -> int:
        return sum(hour.is_proved for hour in self.hours)

    @property
    def told(self) -> list[Stretch]:
        """The stretches of which something is known."""
        return [stretch for stretch in self.stretches if stretch.kind != UNKNOWN]

    @property
    def covered(self) -> float | None:
        """The share of the time of which something is known."""
        lengths = {kind: timedelta() for kind in (COVERED, TODO, GAP, LOST)}
        for stretch in self.told:
            lengths[stretch.kind] += stretch.end - stretch.start
        whole = sum(lengths.values(), timedelta())
        return lengths[COVERED] / whole if whole else None


@dataclass(frozen=True, slots=True)
class Figures:
    """The report in numbers."""

    since: datetime
    until: datetime
    """Exclusive. Both are whole hours."""
    queries: tuple[QueryFigures, ...]


def gather(
    settings: Settings,
    *,
    queries: Sequence[str] = (),
    since: datetime | None = None,
    until: datetime | None = None,
) -> Figures | None:
    """The figures of these queries, or of all that the tables know; the last seven days they know, unless told otherwise.

    None if there is nothing to tell.
    """
    lake = Lake(settings.lake)
    completeness, coverage = (CuratedTable(lake, name) for name in ("completeness", "coverage"))
    known = completeness.open()
    if known is None or not known.files:
        return None
    fetched = coverage.open()
    newest = _newest(known.files, fetched.files if fetched else ())
    until = _ceiling(min(until, newest)) if until else newest
    since = _floor(since) if since else until - DEFAULT_SPAN
    wanted = [partition for partition in sorted(known.files) if since <= partition.start < until]
    hours = {partition: rows.to_pylist() for partition, rows in completeness.read_many(known, wanted, _COMPLETENESS)}
    told: dict[Partition, list[dict[str, Any]]] = {}
    if fetched is not None:  # what covers an hour was fetched in it or later
        later = [partition for partition in sorted(fetched.files) if partition.start >= since]
        told = {partition: rows.to_pylist() for partition, rows in coverage.read_many(fetched, later, _COVERAGE)}
    lines = timelines(told)
    names = {row["query"] for rows in hours.values() for row in rows} | lines.keys()
    chosen = sorted(names & set(queries) if queries else names)
    reasons = _reasons(told)
    return Figures(
        since,
        until,
        tuple(
            QueryFigures(
                name,
                tuple(
                    _hour(partition, row) for partition, rows in hours.items() for row in rows if row["query"] == name
                ),
                _stretches(lines.get(name, _NOTHING), reasons.get(name, []), since, until),
                _known_since(lines.get(name, _NOTHING)),
            )
            for name in chosen
        ),
    )


def _newest(hours: Collection[Partition], fetched: Iterable[Partition]) -> datetime:
    """The end of the newest hour of posts; one far ahead of all fetching is no post's, but that of an id out of the air."""
    latest = max(fetched, default=None)
    likely = [hour for hour in hours if latest is None or hour.start <= latest.start + HOUR]
    return max(likely or hours).start + HOUR


def _hour(partition: Partition, row: Mapping[str, Any]) -> Hour:
    start = partition.start
    whole = snowflake.first_id_at(start + HOUR) - snowflake.first_id_at(start)
    covered = sum(stretch["until_id"] - stretch["since_id"] - 1 for stretch in row["covered"] or [])
    return Hour(start, row["collected"], row["counted"], covered / whole, bool(row["is_covered"]))


def _stretches(
    line: Timeline, reasons: Sequence[tuple[int, int, str]], since: datetime, until: datetime
) -> tuple[Stretch, ...]:
    lowest, highest = snowflake.first_id_at(since), snowflake.first_id_at(until)
    unknown = without([(lowest, highest)], _all_of(line))
    parts = ((COVERED, line.covered), (TODO, line.todo), (GAP, line.gaps), (LOST, line.lost), (UNKNOWN, unknown))
    found = [
        Stretch(
            kind,
            snowflake.time_of(low),
            snowflake.time_of(high),
            tuple(sorted({why for start, end, why in reasons if start < high and low < end})) if kind == GAP else (),
        )
        for kind, ranges in parts
        for low, high in joined((max(low, lowest), min(high, highest)) for low, high in ranges)
    ]
    return tuple(sorted(found, key=lambda stretch: (stretch.start, stretch.end)))


def _all_of(line: Timeline) -> list[tuple[int, int]]:
    return joined([*line.covered, *line.todo, *line.gaps, *line.lost])


def _known_since(line: Timeline) -> datetime | None:
    told = _all_of(line)
    return snowflake.time_of(told[0][0]) if told else None


def _reasons(told: Mapping[Partition, Sequence[Mapping[str, Any]]]) -> dict[str, list[tuple[int, int, str]]]:
    """Why there are gaps, by query."""
    found: dict[str, list[tuple[int, int, str]]] = {}
    for rows in told.values():
        for row in rows:
            if row["kind"] == GAP:
                found.setdefault(row["query"], []).append((row["since_id"] + 1, row["until_id"], row["reason"] or ""))
    return found


def _floor(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _ceiling(moment: datetime) -> datetime:
    whole = _floor(moment)
    return whole if whole == moment else whole + HOUR
