"""X's now: the Date header of X's answers, carried on by the monotonic clock."""

import asyncio
from datetime import UTC, datetime, timedelta

from ingester.model import Answer
from ingester.ports import Clock
from ingester.telemetry import Telemetry


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
        self._x_at_anchor = clock.now()
        self._anchor = clock.monotonic()

    @property
    def skew(self) -> timedelta:
        """X's clock minus this machine's."""
        return self.now() - self._clock.now()

    def now(self) -> datetime:
        return self._x_at_anchor + timedelta(seconds=self._clock.monotonic() - self._anchor)

    def learn(self, answer: Answer) -> None:
        """Date has whole seconds and the answer took time, so only a larger difference is believed."""
        date = date_of(answer)
        if date is None:
            return
        took = answer.received_at - answer.requested_at
        took = min(max(took, timedelta()), timedelta(seconds=60))  # the wall clock may have jumped meanwhile
        seen = date + timedelta(seconds=0.5) + took / 2
        if not self.known.is_set() or abs(seen - self.now()) > timedelta(seconds=1) + took / 2:
            self._x_at_anchor, self._anchor = seen, self._clock.monotonic()
            self.known.set()
        if abs(self.skew - self._told_skew) > timedelta(seconds=2):
            self._told_skew = self.skew
            self._telemetry.clock_off(-self.skew.total_seconds())


def date_of(answer: Answer) -> datetime | None:
    """The Date header (RFC 9110), or None if there is none that can be read."""
    try:
        return datetime.strptime(answer.headers.get("date", ""), "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
    except ValueError:
        return None
