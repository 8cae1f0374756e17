"""What X counted: from the body of a counts answer to posts per whole hour, in either vocabulary. Pure."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

_HOUR = timedelta(hours=1)
_MOST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Count:
    """X's count of one query's posts in one hour."""

    query: str
    hour: datetime
    """When the hour begins, UTC."""
    counted: int
    counted_at: datetime


def counts_of(body: bytes, query: str, counted_at: datetime) -> list[Count]:
    """The whole hours of an answer; a bucket that is cut off by the bounds of the request says nothing about its hour.

    Raises ValueError if it holds no counts.
    """
    try:
        answer = json.loads(body)
        buckets = answer.get("data", [])
        return [Count(query, hour, counted, counted_at) for hour, counted in _whole_hours(buckets)]
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"no counts: {type(error).__name__}: {error}") from error


def _whole_hours(buckets: list[dict[str, Any]]) -> Iterator[tuple[datetime, int]]:
    for bucket in buckets:
        start, end = (_moment(bucket[name]) for name in ("start", "end"))
        if end - start != _HOUR or start != start.replace(minute=0, second=0, microsecond=0):
            continue
        counted = bucket["tweet_count"] if "tweet_count" in bucket else bucket["post_count"]
        if not isinstance(counted, int) or isinstance(counted, bool) or not 0 <= counted <= _MOST:
            raise ValueError(f"a count of {counted!r}")
        yield start, counted


def _moment(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return found.astimezone(UTC)
