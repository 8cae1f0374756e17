"""The last day, a sample a minute, for the charts of the status page: in memory only, bounded, begun anew at a start."""

from collections import deque
from datetime import datetime
from typing import NamedTuple

SAMPLE_SECONDS = 60.0
KEPT_SAMPLES = 24 * 60
"""A day of minutes: about 300 kB."""


class Sample(NamedTuple):
    """One minute."""

    at: datetime
    """Its end, by this machine's clock."""
    posts_per_minute: float
    lag_seconds: float | None
    """The largest lag of any query in it; None while none was known."""
    spool_bytes: int
    """The most that the spool held in it."""


class History:
    """Makes samples of what is looked at more often."""

    def __init__(self, kept: int = KEPT_SAMPLES) -> None:
        self.samples: deque[Sample] = deque(maxlen=kept)
        self._began: float | None = None
        self._posts = 0
        self._lag: float | None = None
        self._spool_bytes = 0

    def note(self, at: datetime, seconds: float, *, posts: int, lag: float | None, spool_bytes: int) -> None:
        """What is so now: `seconds` of the monotonic clock, `posts` counted since the start. Ends the minute if it is over."""
        if self._began is None:
            self._began, self._posts = seconds, posts
        self._lag = max((known for known in (self._lag, lag) if known is not None), default=None)
        self._spool_bytes = max(self._spool_bytes, spool_bytes)
        if (took := seconds - self._began) < SAMPLE_SECONDS:
            return
        rate = (posts - self._posts) * 60.0 / took
        self.samples.append(Sample(at, rate, self._lag, self._spool_bytes))
        self._began, self._posts, self._lag, self._spool_bytes = seconds, posts, None, 0
