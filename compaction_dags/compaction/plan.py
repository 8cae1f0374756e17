"""Which raw hours are stale: what lies in raw differs from what `ingested_files` says was consumed. Not the clock decides."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from compaction_dags.compaction.errors import RawMissingError
from compaction_dags.compaction.lake import Lake, RawObject
from compaction_dags.compaction.tables import CuratedTable, Partition
from schemas.keys import RawHour

LOOK_BACK = timedelta(hours=72)
"""How far back every run looks; an older raw hour changes only by hand, and a full sweep finds it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run has to do."""

    hours: tuple[RawHour, ...]
    """Stale hours, oldest first."""
    refused: dict[RawHour, tuple[str, ...]]
    """Hours of which microbatches that were consumed are missing in raw: left as they are, a person has to look."""


def find_stale(lake: Lake, consumed: CuratedTable, *, now: datetime, include_open: bool, full: bool = False) -> Plan:
    """Compare raw with what was consumed, as sets. `include_open` takes the current hour too."""
    days = {day.isoformat() for day in _days_back(now)}
    known = _consumed(consumed, lambda partition: full or partition.date in days)
    listed = _listed(lake, lake.days() if full else _days_back(now))  # after that, for the same reason as in list_hour
    current = RawHour.of(now)
    stale, refused = [], {}
    for hour in sorted(listed.keys() | known.keys()):
        if hour >= current and not include_open:
            continue
        present, before = set(listed.get(hour, ())), known.get(hour, set())
        missing = before - {found.identity for found in present}
        if missing:
            refused[hour] = tuple(sorted(key for key, _ in missing))
        elif {found.identity for found in present} != before:
            stale.append(hour)
    return Plan(tuple(stale), refused)


def list_hour(lake: Lake, hour: RawHour, consumed: CuratedTable) -> list[RawObject]:
    """The microbatches of a raw hour. Raises RawMissingError, naming the keys, if some that were consumed are gone."""
    wanted = Partition(hour.date.isoformat(), hour.start.hour)
    before = _consumed(consumed, lambda partition: partition == wanted).get(hour, set())
    listed = lake.raw_of_hour(hour)  # after that, or what another run consumes meanwhile would seem to be missing
    missing = sorted(key for key, _ in before - {found.identity for found in listed})
    if missing:
        raise RawMissingError(_missing_words(hour, missing))
    return listed


def _missing_words(hour: RawHour, missing: Sequence[str]) -> str:
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return (
        f"raw hour {hour}: {len(missing)} microbatches that were consumed are missing in raw or changed: "
        f"{', '.join(missing[:3])}{more}. The tables were left as they are; restore the objects"
    )


def _listed(lake: Lake, days: Iterable[date]) -> dict[RawHour, list[RawObject]]:
    hours: dict[RawHour, list[RawObject]] = {}
    for day in days:
        hours |= lake.raw_of_day(day)
    return hours


def _days_back(now: datetime) -> list[date]:
    """The days of the look-back, and tomorrow's: the ingester's clock may be ahead."""
    first, last = (now - LOOK_BACK).astimezone(UTC).date(), now.astimezone(UTC).date() + timedelta(days=1)
    return [first + timedelta(days=number) for number in range((last - first).days + 1)]


def _consumed(table: CuratedTable, wanted: Callable[[Partition], bool]) -> dict[RawHour, set[tuple[str, int]]]:
    snapshot = table.open()
    if snapshot is None:
        return {}
    partitions = [partition for partition in snapshot.files if wanted(partition)]
    return {
        RawHour.parse(str(partition)): set(zip(rows["raw_key"].to_pylist(), rows["bytes"].to_pylist(), strict=True))
        for partition, rows in table.read_many(snapshot, partitions, ["raw_key", "bytes"])
    }
