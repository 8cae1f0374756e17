"""A collector in small: ships pages that say what they cover, with the checkpoints that an ingester would write."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from schemas import snowflake
from schemas.raw import FORMAT, META_CHECKPOINT, META_FORMAT
from schemas.state import State, fold, to_checkpoint
from tests.compaction.conftest import Place, page_of
from tests.compaction.pages import encode, page_record


def bounds(start: datetime, end: datetime) -> tuple[int, int]:
    """Exclusive bounds in ids of the time from `start` up to `end`."""
    return (snowflake.first_id_at(start) - 1, snowflake.first_id_at(end))


def ids_within(start: datetime, end: datetime, count: int) -> list[int]:
    """Ids evenly spread."""
    low, high = bounds(start, end)
    return [low + 1 + (high - low - 1) * number // count for number in range(count)]


@dataclass
class Collector:
    """One spool that writes into a lake."""

    place: Place
    state: State = field(default_factory=State)

    def ship(self, records: Iterable[dict[str, Any]], at: datetime, *, is_lost: bool = False) -> None:
        """A microbatch; one that is lost never reaches S3."""
        made = list(records)
        header = {META_FORMAT: FORMAT, META_CHECKPOINT: to_checkpoint(self.state)}
        if not is_lost:
            self.place.ship(made, at, metadata=header)
        self.state = fold(self.state, made)  # type: ignore[arg-type]

    def begin(self, at: datetime, *queries: str) -> None:
        """The queries' collection begins here."""
        start = snowflake.first_id_at(at)
        self.ship(
            [{"kind": "rule", "at": at, "query": query, "rule": "r", "frontier_id": start} for query in queries], at
        )

    def beat(self, at: datetime) -> None:
        self.ship([{"kind": "heartbeat", "at": at}], at)


def window(
    query: str, start: datetime, end: datetime, ids: Sequence[int], at: datetime | None = None, **changes: Any
) -> dict[str, Any]:
    """The only page of a window."""
    since_id, until_id = bounds(start, end)
    told = {"since_id": since_id, "until_id": until_id, "asked_below": until_id, "is_last": True, "rule": "r"}
    return page_record(page_of(ids), at or end, query, **(told | changes))


def gap(query: str, start: datetime, end: datetime, reason: str = "out_of_reach") -> dict[str, Any]:
    since_id, until_id = bounds(start, end)
    return {"kind": "gap", "at": end, "query": query, "rule": "r", "reason": reason,
            "since_id": since_id, "until_id": until_id}  # fmt: skip


def counts(
    query: str, at: datetime, buckets: Iterable[tuple[datetime, datetime, int]], word: str = "tweet_count"
) -> dict[str, Any]:
    """X's answer about these buckets."""
    data = [{"start": f"{start:%Y-%m-%dT%H:%M:%S.000Z}", "end": f"{end:%Y-%m-%dT%H:%M:%S.000Z}", word: count}
            for start, end, count in buckets]  # fmt: skip
    return page_record(encode({"data": data, "meta": {}}), at, query, endpoint="counts_recent", reason="audit")
