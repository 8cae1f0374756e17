"""X's now: the Date header of X's answers, carried on by the monotonic clock."""

import asyncio
from datetime import UTC, datetime, timedelta

from ingester.model import Answer
from ingester.ports import Clock
from ingester.telemetry import Telemetry

BELIEVED_AT_ONCE = timedelta(minutes=1)
"""A Date that is further off is believed once a second answer agrees: what stands in front of X may have a wrong clock, and
what is planned by it is durable.
"""
AGREES = timedelta(seconds=10)


class XTime:
    """What time it is at X.

    A window must not reach beyond what X's index answers, or its upper part would count as covered and never be asked
    for. So nothing is planned before X has told its time, and jumps of this machine's wall clock do not matter.
    """

    def __init__(self, clock: Clock, telemetry: Telemetry) -> None:
        self.known = asyncio.Event()
        """Set once X has told its time."""
        self._clock = clock
        self._telemetry = telemetry
        self._told_skew = timedelta()
        self._doubted: datetime | None = None
        """What X's time was at the beginning of the monotonic clock, by the answer that was not believed."""
        self._x_at_anchor = clock.now()
        self._anchor = clock.monotonic()

    @property
    def skew(self) -> timedelta:
        """X's clock minus this machine's."""
        return self.now() - self._clock.now()

    def now(self) -> datetime:
        return self._x_at_anchor + timedelta(seconds=self._clock.monotonic() - self._anchor)

    def learn(self, answer: Answer) -> None:
        """Date has whole seconds and the answer took time, so a small difference is none; a large one must be said twice."""
        date = date_of(answer)
        if date is None:
            return
        took = answer.received_at - answer.requested_at
        took = min(max(took, timedelta()), timedelta(seconds=60))  # the wall clock may have jumped meanwhile
        seen = date + timedelta(seconds=0.5) + took / 2
        off = abs(seen - self.now())
        if off > BELIEVED_AT_ONCE and not self._is_said_again(seen):
            return
        self._doubted = None
        if not self.known.is_set() or off > timedelta(seconds=1) + took / 2:
            self._x_at_anchor, self._anchor = seen, self._clock.monotonic()
            self.known.set()
        if abs(self.skew - self._told_skew) > timedelta(seconds=2):
            self._told_skew = self.skew
            self._telemetry.clock_off(-self.skew.total_seconds())

    def _is_said_again(self, seen: datetime) -> bool:
        """Whether the answer before said the same. If not, this one is remembered."""
        beginning = seen - timedelta(seconds=self._clock.monotonic())
        if self._doubted is not None and abs(beginning - self._doubted) <= AGREES:
            return True
        self._doubted = beginning
        return False


def date_of(answer: Answer) -> datetime | None:
    """The Date header (RFC 9110), or None if there is none that can be read."""
    try:
        return datetime.strptime(answer.headers.get("date", ""), "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
    except ValueError:
        return None
