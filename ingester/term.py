"""One term of asking X: the gate, the pollers and what else asks, once the state and X's time are known."""

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

from ingester.audit import Audit
from ingester.budget import LostAnswers, Prices, Purse, ReadToday
from ingester.journal import Journal
from ingester.model import FieldSet
from ingester.orders import Orders
from ingester.pacing import Gate
from ingester.poller import Poller
from ingester.ports import Clock, ObjectStore, Source
from ingester.pulse import Pulse
from ingester.reconciliation import Reconciliation
from ingester.telemetry import Telemetry
from ingester.windows import give_up
from ingester.x_time import XTime
from schemas import snowflake
from schemas.keys import LakeKeys
from schemas.settings import Settings
from schemas.state import FORGOTTEN

REMEMBERED = timedelta(days=32)
"""How long a removed query's frontier is kept: longer than X's reach and than a month of its budget."""


class Term:
    """From the right to ask X until it ends, by a stop or because another ingester has the right. Asks nobody by itself:
    whoever holds the term runs `loops` and `polls`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        journal: Journal,
        source: Source,
        store: ObjectStore,
        keys: LakeKeys,
        clock: Clock,
        x_time: XTime,
        telemetry: Telemetry,
        fields: FieldSet,
        read_today: ReadToday,
        pulse: Pulse,
    ) -> None:
        self.journal = journal
        self._settings = settings
        self._source = source
        self._clock = clock
        self._telemetry = telemetry
        self._over = asyncio.Event()
        self.began_seconds = clock.monotonic()
        prices = Prices(settings.price, fields)
        self.gate = Gate(
            clock,
            telemetry,
            x_time=x_time,
            purse=Purse(settings.budget, prices),
            state=lambda: journal.state,
            lacks_room=journal.lacks_room,
            polls_per_second=sum(1 / query.poll_every_seconds for query in settings.query),
            concurrency=settings.x.concurrency,
            beat=pulse.expect("gate"),
        )
        lost_answers = LostAnswers()
        self.pollers = [
            Poller(
                query,
                source=source,
                journal=journal,
                gate=self.gate,
                clock=clock,
                telemetry=telemetry,
                fields=fields,
                prices=prices,
                read_today=read_today,
                lost_answers=lost_answers,
                max_results=settings.x.max_results,
                stop=self._over,
                beat=pulse.expect(f"poller {query.name}"),
            )
            for query in settings.query
        ]
        self.orders = Orders(
            settings.query,
            store=store,
            keys=keys,
            journal=journal,
            clock=clock,
            x_time=x_time,
            telemetry=telemetry,
            beat=pulse.expect("orders"),
        )
        asking: dict[str, Any] = {
            "source": source,
            "journal": journal,
            "gate": self.gate,
            "prices": prices,
            "clock": clock,
            "telemetry": telemetry,
        }
        self.audit = self.reconciliation = None
        if settings.audit.counts_daily:
            self.audit = Audit(settings.query, **asking, beat=pulse.expect("audit"))
        if settings.budget.reconcile:
            self.reconciliation = Reconciliation(
                **asking, lost_answers=lost_answers, beat=pulse.expect("reconciliation")
            )

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What runs for as long as the term, by name."""
        return {"gate": self.gate.run()}

    def polls(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What ends by itself soon after `end`, by name."""
        polls = {f"poller {poller.query.name}": poller.run() for poller in self.pollers}
        asides = {"orders": self.orders, "audit": self.audit, "reconciliation": self.reconciliation}
        beside = {name: self._until_over(aside.run()) for name, aside in asides.items() if aside is not None}
        return {**polls, **beside}

    def end(self) -> None:
        """Nothing more is asked; answers under way are still kept."""
        self._over.set()
        self.gate.stop()

    async def settle_queries(self) -> None:
        """What a removed query still had to do becomes a gap; its frontier is kept for a month, in case it comes back.

        Then it goes on from there: what lies between is asked, or told as out of X's reach. Later it begins anew.
        """
        present = {query.name for query in self._settings.query}
        forgotten_id = snowflake.first_id_at(self.gate.x_time.now() - REMEMBERED)
        for name, query in self.journal.state.queries.items():
            if query.rule is None and query.frontier_id < forgotten_id:
                await self._tell_rule(name, FORGOTTEN)
            if query.rule is None or name in present:
                continue
            for interval in query.todo:
                await give_up(name, interval, "query_removed", self.journal, self._clock, self._telemetry)
            await self._tell_rule(name, None)

    async def _tell_rule(self, removed: str, reason: str | None) -> None:
        at = self._clock.now()
        await self.journal.append({"kind": "rule", "at": at, "query": removed, "rule": None, "reason": reason})
        self._telemetry.rule_changed(removed, None)

    async def _until_over(self, loop: Coroutine[Any, Any, None]) -> None:
        """Run a loop that knows no end. What it has begun to write is written all the same."""
        task, over = asyncio.ensure_future(loop), asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait({task, over}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            over.cancel()
            task.cancel()
