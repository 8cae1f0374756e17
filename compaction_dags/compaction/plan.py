"""Which raw hours are stale: what lies in raw differs from what `ingested_files` says was consumed. Not the clock decides.

An hour is closed when each spool that wrote into it has a microbatch of a later raw hour in raw, as a spool ships strictly
in its order, or was retired by command. One that was consumed while it was provisional is stale once more when it is closed.
"""

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from compaction_dags.compaction.errors import RawMissingError
from compaction_dags.compaction.lake import Lake, RawObject
from compaction_dags.compaction.tables import CuratedTable, Partition
from schemas.keys import MicrobatchName, RawHour

LOOK_BACK = timedelta(hours=72)
"""How far back every run looks; an older raw hour changes only by hand, and a full sweep finds it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run has to do."""

    hours: tuple[RawHour, ...]
    """Stale hours, oldest first."""
    refused: dict[RawHour, tuple[str, ...]]
    """Hours of which microbatches that were consumed are missing in raw: left as they are, a person has to look."""

    @property
    def waiting(self) -> list[RawHour]:
        """All of them, oldest first: what curated has not taken up."""
        return sorted({*self.hours, *self.refused})


def find_stale(lake: Lake, consumed: CuratedTable, *, now: datetime, include_open: bool, full: bool = False) -> Plan:
    """Compare raw with what was consumed, as sets. `include_open` takes the current hour too."""
    days = {day.isoformat() for day in _days_back(now)}
    known = _consumed(consumed, lambda partition: full or partition.date in days)
    listed = _listed(lake, lake.days() if full else _days_back(now))  # after that, for the same reason as in list_hour
    current, forgotten = RawHour.of(now), _forgotten_before(lake, now)
    closed_since = _closed_since(lake, [hour for hour, before in known.items() if before.is_provisional], listed)
    stale, refused = [], {}
    for hour in sorted(listed.keys() | known.keys()):
        if (hour >= current and not include_open) or hour < forgotten:
            continue
        present = {found.identity for found in listed.get(hour, ())}
        before = known[hour].microbatches if hour in known else set()
        missing = before - present
        if missing:
            refused[hour] = tuple(sorted(key for key, _ in missing))
        elif present != before or hour in closed_since:
            stale.append(hour)
    return Plan(tuple(stale), refused)


def _forgotten_before(lake: Lake, now: datetime) -> RawHour:
    """The first raw hour of which the bucket keeps all: of an older one it may have deleted some or all by now."""
    kept = lake.settings.raw_days
    return RawHour.of(now - timedelta(days=kept)) if kept else RawHour(datetime.min.replace(tzinfo=UTC))


def list_hour(lake: Lake, hour: RawHour, consumed: CuratedTable) -> list[RawObject]:
    """The microbatches of a raw hour. Raises RawMissingError, naming the keys, if some that were consumed are gone."""
    wanted = Partition.of(hour)
    known = _consumed(consumed, lambda partition: partition == wanted).get(hour)
    before = known.microbatches if known else set()
    listed = lake.raw_of_hour(hour)  # after that, or what another run consumes meanwhile would seem to be missing
    _check_all_there(hour, before, listed)
    return listed


def find_between(lake: Lake, consumed: CuratedTable, first: RawHour, last: RawHour) -> list[RawHour]:
    """The hours of a range that raw or the tables have, oldest first. Raises RawMissingError if microbatches are gone."""
    known = _consumed(consumed, lambda partition: str(first) <= str(partition) <= str(last))
    days = [first.date + timedelta(days=number) for number in range((last.date - first.date).days + 1)]
    listed = {hour: found for hour, found in _listed(lake, days).items() if first <= hour <= last}
    for hour, before in sorted(known.items()):
        _check_all_there(hour, before.microbatches, listed.get(hour, ()))
    return sorted(listed.keys() | known.keys())


def closed_spools(lake: Lake, hour: RawHour) -> frozenset[str]:
    """The spools that wrote into a raw hour and cannot add to it any more.

    To be asked before the hour is listed for good: what comes in between then is of a spool that is not among these, or
    was there before.
    """
    wrote = _spools(lake.raw_of_hour(hour))
    may_write = set(wrote)
    for later in lake.raw_after(hour):
        may_write -= _spools([later])
        if not may_write:
            break
    if may_write:
        may_write -= lake.retired_spools()
    return frozenset(wrote - may_write)


def is_closed(listed: Sequence[RawObject], closed: Collection[str]) -> bool:
    """Whether none of the spools that wrote these microbatches of an hour can add to it any more."""
    return _spools(listed) <= set(closed)


def _closed_since(
    lake: Lake, provisional: Iterable[RawHour], listed: Mapping[RawHour, Sequence[RawObject]]
) -> set[RawHour]:
    """Those of the hours that are not provisional any more."""
    if not (hours := [hour for hour in provisional if hour in listed]):
        return set()
    newest = {spool: hour for hour in sorted(listed) for spool in _spools(listed[hour])}
    retired = lake.retired_spools()
    return {
        hour
        for hour in hours
        if is_closed(listed[hour], {*retired, *(spool for spool, last in newest.items() if last > hour)})
    }


def _spools(listed: Iterable[RawObject]) -> set[str]:
    spools = set()
    for found in listed:
        with contextlib.suppress(ValueError):  # what has another name came from no spool
            spools.add(MicrobatchName.parse(found.key).spool_id)
    return spools


def _check_all_there(hour: RawHour, consumed: set[tuple[str, int]], listed: Iterable[RawObject]) -> None:
    missing = sorted(key for key, _ in consumed - {found.identity for found in listed})
    if missing:
        raise RawMissingError(_missing_words(hour, missing))


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


@dataclass(frozen=True, slots=True)
class _Consumed:
    """What `ingested_files` says of a raw hour."""

    microbatches: set[tuple[str, int]]
    is_provisional: bool


def _consumed(table: CuratedTable, wanted: Callable[[Partition], bool]) -> dict[RawHour, _Consumed]:
    snapshot = table.open()
    if snapshot is None:
        return {}
    partitions = [partition for partition in snapshot.files if wanted(partition)]
    return {
        RawHour(partition.start): _Consumed(
            set(zip(rows["raw_key"].to_pylist(), rows["bytes"].to_pylist(), strict=True)),
            is_provisional=False in rows["is_closed"].to_pylist(),
        )
        for partition, rows in table.read_many(snapshot, partitions, ["raw_key", "bytes", "is_closed"])
    }
