"""Snowflake ids: every X id carries the millisecond it was made, so an id is also a point in time.

Layout (X's own description of its ids): 41 bits of milliseconds since X's epoch, then 22 bits of worker and sequence.
A tweet's creation hour is therefore known without asking for `created_at`, and a time can be asked for as an id.
"""

from datetime import UTC, datetime, timedelta

EPOCH_MS = 1_288_834_974_657
"""Unix milliseconds of X's epoch, 2010-11-04T01:42:54.657Z."""
SHIFT = 22
"""Bits below the time."""
MAX_ID = 2**63 - 1
"""Ids are signed 64-bit; X's own pattern allows 19 digits, which may lie beyond."""


def first_id_at(moment: datetime) -> int:
    """The smallest id that can have been made at `moment` (aware); 0 for moments before X's epoch."""
    milliseconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    return max(0, (milliseconds - EPOCH_MS) << SHIFT)


def time_of(tweet_id: int) -> datetime:
    """When the id was made, in UTC with millisecond precision."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=(tweet_id >> SHIFT) + EPOCH_MS)


def shift(tweet_id: int, by: timedelta) -> int:
    """The id moved in time by `by`, never below 0 nor beyond int64."""
    return min(MAX_ID, max(0, tweet_id + ((by // timedelta(milliseconds=1)) << SHIFT)))
