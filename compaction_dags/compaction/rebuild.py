"""Rebuilding a range of raw hours into place: what raw and today's code give, against what the tables hold.

Newest hour first. A tweet that several raw hours have seen stands in the table as the latest of them saw it. If that one
does not give it any more, it is removed, and the earlier hour, whose turn comes later, puts it back as it saw it: as if
all had been compacted from nothing. Only the queries that found a tweet and its first fetch are never taken back.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from compaction_dags.compaction import job, plan
from compaction_dags.compaction.differences import Difference, Rebuilding
from compaction_dags.compaction.job import Progress
from compaction_dags.compaction.lake import Lake
from compaction_dags.compaction.tables import CuratedTable
from schemas.keys import RawHour
from schemas.settings import Settings

_HOUR = timedelta(hours=1)
_NAMED = 3
"""Of hours that are told of, as a range may be long."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What rebuilding one raw hour showed."""

    hour: str
    differences: Mapping[str, Difference]
    """By table: what it held, against what raw gives."""
    done_at: datetime

    @property
    def is_equal(self) -> bool:
        """Whether every row of every table was what raw gives."""
        return all(difference.is_none for difference in self.differences.values())

    @property
    def seen_before(self) -> str | None:
        """The earliest raw hour that had seen tweets which were removed, if there is one before this."""
        moment = self.differences["tweets"].first_fetched_at
        hour = None if moment is None else str(RawHour.of(moment))
        return hour if hour is not None and hour < self.hour else None

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "hour": self.hour,
            "is_equal": self.is_equal,
            "seen_before": self.seen_before,
            "done_at": self.done_at.isoformat(),
            "differences": {name: one.as_dict() for name, one in self.differences.items()},
        }


def hours_between(settings: Settings, since: str, until: str) -> list[str]:
    """The raw hours from `since` to `until`, both included, that raw or the tables have; newest first.

    Raises RawMissingError if microbatches of any of them are gone: before anything is rebuilt, so that nothing shrinks.
    Raises ValueError if the bounds are no hours, or in the wrong order.
    """
    first, last = RawHour.parse(since), RawHour.parse(until)
    if first > last:
        raise ValueError(f"the range ends before it begins: {first} to {last}")
    lake = Lake(settings.lake)
    return [str(hour) for hour in reversed(plan.find_between(lake, CuratedTable(lake, "ingested_files"), first, last))]


def without_raw(hours: Collection[str], since: str, until: str) -> str | None:
    """Which hours from `since` to `until` are not among `hours`, as a sentence."""
    first, last = RawHour.parse(since).start, RawHour.parse(until).start
    every = [str(RawHour(first + number * _HOUR)) for number in range((last - first) // _HOUR + 1)]
    missing = [hour for hour in every if hour not in hours]
    if not missing:
        return None
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    return f"no raw in {', '.join(missing[:_NAMED])}{more}"


def rebuild_hour(
    settings: Settings,
    hour: str,
    *,
    check_only: bool = False,
    progress: Progress = lambda *_: None,
    now: datetime | None = None,
) -> Rebuilt:
    """Rebuild one raw hour into place, or only compare. Doing it again shows no differences and writes nothing.

    Raises what `job.compact_hour` raises, and RawMissingError if microbatches are gone or not what was consumed.
    """
    rebuilding = Rebuilding(check_only=check_only)
    job.compact_hour(settings, hour, progress, now, rebuilding)
    return Rebuilt(hour, rebuilding.differences, datetime.now(UTC))


def out_of_turn(reports: Iterable[Mapping[str, Any]]) -> list[str]:
    """Of reports (`Rebuilt.as_dict`): the hours that were rebuilt before a later hour removed tweets which they may give.

    Compacting them once more puts these back. Empty if the hours were rebuilt in order.
    """
    known = sorted(reports, key=lambda report: str(report["hour"]))
    return [
        earlier["hour"]
        for number, earlier in enumerate(known)
        if any(
            later["seen_before"] is not None
            and later["seen_before"] <= earlier["hour"]
            and later["done_at"] > earlier["done_at"]
            for later in known[number + 1 :]
        )
    ]


def in_words(report: Mapping[str, Any]) -> list[str]:
    """A report (`Rebuilt.as_dict`) as sentences: a line for the hour, or one for each table that differs."""
    hour, differences = report["hour"], report["differences"]
    rows = sum(one["same"] for one in differences.values())
    if report["is_equal"]:
        return [f"{hour}: equal, {rows:,} rows"]
    lines = [_table_in_words(hour, name, one) for name, one in differences.items() if _differs(one)]
    if report["seen_before"]:
        lines.append(f"{hour}: raw hours since {report['seen_before']} had seen some of the removed tweets too")
    return lines


def _differs(difference: Mapping[str, Any]) -> bool:
    return any(difference[kind] for kind in ("added", "removed", "changed"))


def _table_in_words(hour: str, name: str, difference: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{kind} {difference[kind]:,}" for kind in ("same", "added", "removed", "changed"))
    columns = ", ".join(f"{column} {count:,}" for column, count in difference["columns"].items())
    examples = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in difference["examples"].items())
    return f"{hour} {name}: {counts}{f' ({columns})' if columns else ''}; for example {examples}"


def all_in_words(reports: Iterable[Mapping[str, Any]], since: str) -> list[str]:
    """The reports of a range that begins at `since`: what differs, what is left to do, and how many hours it was."""
    known = list(reports)
    different = [report for report in known if not report["is_equal"]]
    lines = [line for report in different for line in in_words(report)]
    if words := advice(different, since):
        lines.append(words)
    return [*lines, f"raw hours: {len(known)}, of them different: {len(different)}"]


def advice(reports: Iterable[Mapping[str, Any]], since: str) -> str | None:
    """What is left to be done before the range, if anything."""
    before = [report["seen_before"] for report in reports if report["seen_before"] and report["seen_before"] < since]
    if not before:
        return None
    return (
        f"raw hours since {min(before)} had seen some of the removed tweets too, and were not rebuilt: "
        "rebuild them as well, and those that they still give come back"
    )
