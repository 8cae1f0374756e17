"""Holes that X can still fill: gaps, and what was lost, found in `coverage` and ordered again, each once.

An order is what `tweetlake backfill` leaves: an object under control/requests/, which the ingester takes away. A copy of
it stays under control/ordered/, written after it: a crash in between leaves the same order again, under the same name,
which the ingester answers once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from compaction_dags.compaction import plan
from compaction_dags.compaction.coverage import timelines
from compaction_dags.compaction.errors import StaleHoursError
from compaction_dags.compaction.lake import Lake
from compaction_dags.compaction.tables import CuratedTable
from schemas import snowflake
from schemas.orders import Order
from schemas.settings import Settings
from schemas.state import joined, without

REACH = timedelta(days=7)
"""How far back X answers."""
MARGIN = timedelta(hours=1)
"""What X forgets within this time is not worth an order: the ingester has to take it and to find the time to ask."""
_LOOK_BACK = REACH + timedelta(days=1)
_MILLISECOND = timedelta(milliseconds=1)
_COVERAGE = ("query", "kind", "since_id", "until_id", "reason")
_HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Hole:
    """A stretch of a query's timeline that nobody collected and nobody will, unless it is ordered."""

    order: Order
    most_posts: int | None
    """As many as X counted there, or as the fullest hour of the query had; None: nothing is known of the query."""

    def most_usd(self, settings: Settings) -> float | None:
        """What its posts cost at most, by the settings' price of a post."""
        return None if self.most_posts is None else self.most_posts * settings.price.post_usd


def order_holes(settings: Settings, now: datetime | None = None, *, queries: Sequence[str] = ()) -> list[Hole]:
    """Find all holes and order them, of these queries or of all. What a DAG calls after compacting.

    Raises StaleHoursError as long as closed raw hours wait to be compacted, and the errors of the lake.
    """
    found = find_holes(settings, now, queries=queries)
    leave_orders(settings, found)
    return found


def find_holes(settings: Settings, now: datetime | None = None, *, queries: Sequence[str] = ()) -> list[Hole]:
    """The holes that X still has and that were never ordered, oldest first. Raises as `order_holes` does."""
    now = now or datetime.now(UTC)
    lake = Lake(settings.lake)
    _check_nothing_waits(lake, now)
    within = (snowflake.first_id_at(now - REACH + MARGIN), snowflake.first_id_at(now))
    hours = _by_hour(lake, "coverage", _COVERAGE, now)
    ordered = _ordered(lake, now)
    volumes = _volumes(_by_hour(lake, "completeness", ("query", "collected", "counted"), now))
    known = {query.name for query in settings.query}
    wanted = known & set(queries) if queries else known
    orders = [
        _order(query, low, high)
        for query, line in timelines(hours).items()
        if query in wanted
        for low, high in _within([*line.gaps, *line.lost], within, less=ordered.get(query, ()))
    ]
    return [
        Hole(order, volumes[order.query].most_posts(order) if order.query in volumes else None)
        for order in sorted(orders, key=lambda order: (order.since, order.query))
    ]


def leave_orders(settings: Settings, holes: Iterable[Hole]) -> None:
    """Leave them for the ingester."""
    lake = Lake(settings.lake)
    for order in (hole.order for hole in holes):
        lake.put_new(lake.keys.request(order.name), order.to_json())
        lake.put_new(f"{lake.keys.ordered}{order.name}.json", order.to_json())


def _check_nothing_waits(lake: Lake, now: datetime) -> None:
    """What a raw hour that was not compacted covers is not known, and would be paid for twice."""
    found = plan.find_stale(lake, CuratedTable(lake, "ingested_files"), now=now, include_open=False)
    if found.waiting:
        raise StaleHoursError(
            f"{len(found.waiting)} raw hours wait to be compacted, the first is {found.waiting[0]}: what they hold is no hole; "
            "compact them, then order what is left"
        )


def _by_hour(lake: Lake, name: str, columns: Sequence[str], now: datetime) -> dict[str, list[dict[str, Any]]]:
    """The rows of the last days by hour; the names of hours sort by time."""
    table = CuratedTable(lake, name)
    snapshot = table.open()
    if snapshot is None:
        return {}
    first = (now - _LOOK_BACK).astimezone(UTC).date().isoformat()
    partitions = [partition for partition in sorted(snapshot.files) if partition.date >= first]
    return {str(partition): rows.to_pylist() for partition, rows in table.read_many(snapshot, partitions, columns)}


def _ordered(lake: Lake, now: datetime) -> dict[str, list[tuple[int, int]]]:
    """What was ordered before, or is now, in ranges of ids by query."""
    oldest = f"{(now - 2 * _LOOK_BACK).astimezone(UTC):%Y%m%dT%H%M%SZ}"
    found: dict[str, list[tuple[int, int]]] = {}
    for prefix in (lake.keys.requests, lake.keys.ordered):
        for key in sorted(lake.sizes(prefix)):
            name = key.removeprefix(prefix).removesuffix(".json")
            if name >= oldest and (order := _read(lake, key, name)) is not None:
                ids = (snowflake.first_id_at(order.since), snowflake.first_id_at(order.until))
                found.setdefault(order.query, []).append(ids)
    return found


def _read(lake: Lake, key: str, name: str) -> Order | None:
    """An order that lies there; None if it is none, or was taken away just now."""
    content = lake.read_if_there(key)
    try:
        return Order.from_json(name, content) if content is not None else None
    except ValueError:
        return None


def _within(
    stretches: Iterable[tuple[int, int]], bounds: tuple[int, int], less: Iterable[tuple[int, int]]
) -> list[tuple[int, int]]:
    return joined(without([(max(low, bounds[0]), min(high, bounds[1])) for low, high in joined(stretches)], less))


def _order(query: str, low: int, high: int) -> Order:
    """Orders are given in times: whole milliseconds, which ids have."""
    return Order.of_hole(query, snowflake.time_of(low), snowflake.time_of(high - 1) + _MILLISECOND)


@dataclass(slots=True)
class _Volume:
    """What is known of how much a query finds."""

    fullest: int = 0
    """Posts of its fullest hour, collected or counted."""
    counted: dict[str, int] = field(default_factory=dict)
    """X's count by hour."""

    def most_posts(self, order: Order) -> int:
        """As if every hour that is touched were missing whole, and the fullest one where X did not count."""
        hour = order.since.replace(minute=0, second=0, microsecond=0)
        total = 0
        while hour < order.until:
            total += self.counted.get(f"{hour:%Y-%m-%dT%H}", self.fullest)
            hour += _HOUR
        return total


def _volumes(hours: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[str, _Volume]:
    found: dict[str, _Volume] = {}
    for hour, rows in hours.items():
        for row in rows:
            volume = found.setdefault(row["query"], _Volume())
            volume.fullest = max(volume.fullest, row["collected"], row["counted"] or 0)
            if row["counted"] is not None:
                volume.counted[hour] = row["counted"]
    return found
