"""One term of asking X: the gate, the pollers and what they need, built on a journal whose state is known."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from ingester.budget import Prices, Purse, ReadToday
from ingester.errors import Transient
from ingester.journal import Journal
from ingester.model import FieldSet
from ingester.pacing import Gate
from ingester.poller import Poller
from ingester.ports import Clock, Source
from ingester.retry import Backoff
from ingester.telemetry import Telemetry
from schemas.settings import Settings


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
        clock: Clock,
        telemetry: Telemetry,
        fields: FieldSet,
        read_today: ReadToday,
    ) -> None:
        self.journal = journal
        self._settings = settings
        self._source = source
        self._clock = clock
        self._telemetry = telemetry
        self._over = asyncio.Event()
        prices = Prices(settings.price, fields)
        self.gate = Gate(
            clock,
            telemetry,
            purse=Purse(settings.budget, prices),
            state=lambda: journal.state,
            lacks_room=journal.lacks_room,
            polls_per_second=sum(1 / query.poll_every_seconds for query in settings.query),
            concurrency=settings.x.concurrency,
        )
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
                max_results=settings.x.max_results,
                stop=self._over,
            )
            for query in settings.query
        ]

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What runs for as long as the term, by name."""
        return {"gate": self.gate.run()}

    def polls(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What ends by itself after `end`, or once it has done its work, by name."""
        polls = {f"poller {poller.query.name}": poller.run() for poller in self.pollers}
        return {"time": self._learn_time(), **polls}

    def end(self) -> None:
        """Nothing more is asked; answers under way are still kept."""
        self._over.set()
        self.gate.stop()

    async def settle_queries(self) -> None:
        """What a removed query still had to do becomes a gap; its frontier is kept, in case it comes back."""
        present = {query.name for query in self._settings.query}
        for name, query in self.journal.state.queries.items():
            if name in present or query.rule is None:
                continue
            for interval in query.todo:
                await self.journal.append(
                    {
                        "kind": "gap",
                        "at": self._clock.now(),
                        "query": name,
                        "rule": interval.rule,
                        "reason": "query_removed",
                        "since_id": interval.since_id,
                        "until_id": interval.upper,
                    }
                )
                self._telemetry.gap_recorded(name, "query_removed", str(interval))
            await self.journal.append({"kind": "rule", "at": self._clock.now(), "query": name, "rule": None})
            self._telemetry.rule_changed(name, None)

    async def _learn_time(self) -> None:
        """Ask X for its time until it answers; the pollers wait for it."""
        x_time = self.gate.x_time
        backoff = Backoff(first_seconds=1.0, cap_seconds=60.0)
        while not x_time.known.is_set():
            try:
                answer = await self._source.probe()
            except Transient as error:
                problem = str(error)
            else:
                x_time.learn(answer)
                problem = "the answer has no Date header"
            if not x_time.known.is_set():
                wait = backoff.next_wait()
                self._telemetry.request_failed("time", problem, wait)
                await self._clock.sleep(wait)
