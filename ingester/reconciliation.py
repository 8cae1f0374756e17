"""Holding our books against X's: once an hour X is asked what it counted as read today; what it has more is booked too.

It can have more when something else uses the same app. It can have less: what X repeats within a day or includes in a page
is booked at its worst, and then our figure stays; what was booked for answers that never arrived is given back.
"""

from ingester.answers import posts_by_day
from ingester.aside import ask_aside
from ingester.budget import LostAnswers, Prices, negated, spend
from ingester.errors import Stopping
from ingester.journal import Journal
from ingester.model import Bill
from ingester.pacing import Gate
from ingester.ports import Clock, Source
from ingester.pulse import Beat, unheard
from ingester.telemetry import Telemetry
from schemas.records import USAGE
from schemas.state import day_of

EVERY_SECONDS = 3600.0
DAYS = 2
"""Today is what is compared; X may still name it by yesterday's date just after midnight."""


class Reconciliation:
    """Compares hourly and books the difference as a `spend` record."""

    def __init__(
        self,
        *,
        source: Source,
        journal: Journal,
        gate: Gate,
        prices: Prices,
        lost_answers: LostAnswers,
        clock: Clock,
        telemetry: Telemetry,
        beat: Beat = unheard,
    ) -> None:
        self.x_counted: int | None = None
        """Posts that X counted today, when it was asked last; None if it cannot be told."""
        self._source = source
        self._journal = journal
        self._gate = gate
        self._prices = prices
        self._lost_answers = lost_answers
        self._clock = clock
        self._telemetry = telemetry
        self._beat = beat

    async def run(self) -> None:
        """Compare for ever. Ends when the service stops."""
        await self._gate.x_time.known.wait()
        try:
            while True:
                await self._compare()
                self._beat(EVERY_SECONDS)
                await self._clock.sleep(EVERY_SECONDS)
        except Stopping:
            return

    async def _compare(self) -> None:
        answer = await ask_aside(self._gate, self._telemetry, USAGE, lambda: self._source.usage(DAYS), beat=self._beat)
        if answer is None:
            return
        counted = posts_by_day(answer.body)
        if counted is None:
            self._telemetry.aside_failed(USAGE, "what X counted cannot be told apart for this app")
            return
        now = self._gate.x_time.now()
        self.x_counted = counted.get(day_of(now), 0)
        booked = self._journal.state.money.within(now).day.posts
        self._telemetry.reconciled(self.x_counted, booked)
        if (missing := self.x_counted - booked - self._gate.posts_under_way) > 0:
            self._telemetry.usage_differs(self.x_counted, booked)
            await self._journal.append(spend("reconciled", Bill(missing * self._prices.post, missing), now))
        for query, bill in self._lost_answers.take_some(booked - self.x_counted, now).items():
            await self._journal.append(spend("answered", negated(bill), now, query))
