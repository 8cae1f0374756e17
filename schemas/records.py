"""What stands in the durable stream: records, the intervals in them, and the endpoints they name. Pure values."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, Self, TypedDict

from schemas import snowflake

SEARCH = "search_recent"
COUNTS = "counts_recent"
USAGE = "usage"
"""Endpoints, as raw records name them; X limits each apart."""


class IntervalRecord(TypedDict):
    """An interval as it stands in a raw record and in a checkpoint."""

    since_id: int
    until_id: int
    resume_below: int | None
    rule: str
    reason: str


class RawRecord(TypedDict, total=False):
    """One record of the durable stream; `schemas/raw_record.avsc` tells what each field means."""

    kind: Literal["page", "plan", "gap", "spend", "heartbeat", "rule"]
    at: datetime
    query: str | None
    rule: str | None
    reason: str | None
    since_id: int | None
    until_id: int | None
    asked_below: int | None
    resume_below: int | None
    frontier_id: int | None
    intervals: list[IntervalRecord]
    order: str | None
    endpoint: str | None
    request: str | None
    page_index: int | None
    is_last: bool | None
    problem: str | None
    requested_at: datetime | None
    received_at: datetime | None
    status: int | None
    headers: str | None
    newest_id: int | None
    oldest_id: int | None
    result_count: int | None
    next_token: str | None
    cost_microusd: int | None
    posts_billed: int | None
    posts_repeated: int | None
    users_billed: int | None
    body_sha256: str | None
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Interval:
    """A stretch of a query's id line, both bounds exclusive as X's since_id and until_id are.

    X's pages run from new to old, so what is still missing is always the lower part: ids below `resume_below`.
    """

    since_id: int
    until_id: int
    rule: str
    reason: str
    resume_below: int | None = None

    @property
    def key(self) -> tuple[int, int]:
        """What names the interval among those of its query."""
        return (self.since_id, self.until_id)

    @property
    def upper(self) -> int:
        """Upper bound of what is still missing, exclusive."""
        return self.until_id if self.resume_below is None else min(self.resume_below, self.until_id)

    @property
    def is_empty(self) -> bool:
        """True when no id can lie in what is still missing."""
        return self.upper - self.since_id <= 1

    def resumed_below(self, number: int | None) -> Self:
        """The interval when only ids below `number` are missing; a number outside the bounds changes nothing."""
        if number is None or not self.since_id < number < self.until_id:
            return self
        return replace(self, resume_below=number)

    def to_record(self) -> IntervalRecord:
        return {
            "since_id": self.since_id,
            "until_id": self.until_id,
            "resume_below": self.resume_below,
            "rule": self.rule,
            "reason": self.reason,
        }

    @classmethod
    def from_record(cls, record: IntervalRecord) -> Self:
        return cls(
            since_id=record["since_id"],
            until_id=record["until_id"],
            rule=record["rule"],
            reason=record["reason"],
            resume_below=record["resume_below"],
        )

    def __str__(self) -> str:
        return f"{snowflake.time_of(self.since_id):%m-%dT%H:%M:%S}..{snowflake.time_of(self.upper):%H:%M:%S}Z"
