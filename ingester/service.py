"""The life of the process: start, work, stop. Told in `Service.run`; everything else serves it."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ingester.boot import find_start
from ingester.budget import Prices, Purse, ReadToday
from ingester.errors import Transient
from ingester.journal import Journal
from ingester.model import SEARCH, FieldSet
from ingester.pacing import Gate
from ingester.poller import Poller
from ingester.ports import Clock, ObjectStore, Source
from ingester.retry import Backoff
from ingester.spool import Spool
from ingester.telemetry import Telemetry
from ingester.uploader import Uploader
from schemas import snowflake
from schemas.keys import LakeKeys
from schemas.settings import Settings

LATE_AFTER_POLLS = 3
LATE_AFTER_SECONDS = 90.0
"""A query is late when it had no page for three of its intervals, and at least for this long."""


@dataclass(slots=True)
class _Work:
    """The parts at work, once the state is known."""

    journal: Journal
    gate: Gate
    uploader: Uploader
    pollers: list[Poller]


class Service:
    """One ingester: one spool, one bucket, any number of queries."""

    def __init__(
        self,
        settings: Settings,
        *,
        spool: Spool,
        source: Source,
        store: ObjectStore,
        clock: Clock,
        telemetry: Telemetry,
        fields: FieldSet,
        version: str,
    ) -> None:
        self._settings = settings
        self._spool = spool
        self._source = source
        self._store = store
        self._clock = clock
        self._telemetry = telemetry
        self._fields = fields
        self._version = version
        self._keys = LakeKeys(settings.lake.prefix)
        self._stop = asyncio.Event()
        self._started_at = clock.now()
        self._work: _Work | None = None

    async def run(self) -> None:
        """Start, work until SIGTERM or SIGINT, stop within the grace time.

        The spool must be acquired. Raises what ended a loop, in an ExceptionGroup: a dead loop ends the process.
        """
        with self._signals():
            work = await self._begin_or_stop()
            if work is None:
                return
            self._work = work
            async with asyncio.TaskGroup() as group:
                loops = [
                    group.create_task(loop)
                    for loop in (work.gate.run(), work.journal.run(), work.uploader.run(), self._learn_time(work.gate))
                ]
                polls = [group.create_task(poller.run()) for poller in work.pollers]
                await self._stop.wait()
                await self._wind_down(work, loops, polls)
        self._telemetry.stopped(waiting=len(self._spool.waiting()))

    def stop(self, reason: str) -> None:
        """Ask the service to stop; it finishes what it has begun."""
        self._telemetry.stopping(reason)
        self._stop.set()

    # Start.

    async def _begin_or_stop(self) -> _Work | None:
        """`_begin` may wait long for S3; a signal ends that wait."""
        begin = asyncio.ensure_future(self._begin())
        stop = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({begin, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if begin.done():
            return begin.result()
        begin.cancel()
        return None

    async def _begin(self) -> _Work:
        for salvaged in await asyncio.to_thread(self._spool.recover):
            name = str(salvaged.sealed.name)
            self._telemetry.salvaged(name, records=salvaged.sealed.records, lost_bytes=salvaged.lost_bytes)
        start = await find_start(self._spool, self._store, self._keys, self._clock, self._telemetry)
        self._telemetry.state_found(start.where, start.next_sequence - 1, len(start.state.queries))
        settings = self._settings
        journal = Journal(
            self._spool,
            self._clock,
            self._telemetry,
            state=start.state,
            next_sequence=start.next_sequence,
            seal_after_seconds=settings.spool.seal_after_seconds,
            seal_after_bytes=settings.spool.seal_after_bytes,
            max_bytes=settings.spool.max_bytes,
            min_free_bytes=settings.spool.min_free_bytes,
        )
        prices = Prices(settings.price, self._fields)
        gate = Gate(
            self._clock,
            self._telemetry,
            purse=Purse(settings.budget, prices),
            state=lambda: journal.state,
            lacks_room=journal.lacks_room,
            polls_per_second=sum(1 / query.poll_every_seconds for query in settings.query),
            concurrency=settings.x.concurrency,
        )
        read_today = ReadToday()
        pollers = [
            Poller(
                query,
                source=self._source,
                journal=journal,
                gate=gate,
                clock=self._clock,
                telemetry=self._telemetry,
                fields=self._fields,
                prices=prices,
                read_today=read_today,
                max_results=settings.x.max_results,
                stop=self._stop,
            )
            for query in settings.query
        ]
        await self._tell_removed_queries(journal)
        uploader = Uploader(self._spool, self._store, journal, self._keys, self._clock, self._telemetry)
        return _Work(journal, gate, uploader, pollers)

    async def _tell_removed_queries(self, journal: Journal) -> None:
        """What a removed query still had to do becomes a gap; its frontier is kept, in case it comes back."""
        present = {query.name for query in self._settings.query}
        for name, query in journal.state.queries.items():
            if name in present or query.rule is None:
                continue
            for interval in query.todo:
                await journal.append(
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
            await journal.append({"kind": "rule", "at": self._clock.now(), "query": name, "rule": None})
            self._telemetry.rule_changed(name, None)

    async def _learn_time(self, gate: Gate) -> None:
        """Ask X for its time until it answers; the pollers wait for it."""
        backoff = Backoff(first_seconds=1.0, cap_seconds=60.0)
        while not gate.x_time.known.is_set():
            try:
                answer = await self._source.probe()
            except Transient as error:
                wait = backoff.next_wait()
                self._telemetry.request_failed("time", str(error), wait)
                await self._clock.sleep(wait)
            else:
                gate.x_time.learn(answer)
                if not gate.x_time.known.is_set():
                    wait = backoff.next_wait()
                    self._telemetry.request_failed("time", "the answer has no Date header", wait)
                    await self._clock.sleep(wait)

    # Stop.

    async def _wind_down(
        self, work: _Work, loops: list["asyncio.Task[None]"], polls: list["asyncio.Task[None]"]
    ) -> None:
        """Finish the requests under way, seal, ship; what the grace time does not allow waits safely on disk."""
        try:
            async with asyncio.timeout(self._settings.service.grace_seconds):
                work.gate.stop()
                await asyncio.wait(polls, timeout=self._settings.service.grace_seconds / 2)
                await work.journal.seal("shutdown")
                await work.uploader.finish()
        except TimeoutError:
            pass
        for task in [*polls, *loops]:
            task.cancel()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        names = (signal.SIGTERM, signal.SIGINT)
        for name in names:
            loop.add_signal_handler(name, self.stop, name.name)
        try:
            yield
        finally:
            for name in names:
                loop.remove_signal_handler(name)

    # What it says about itself.

    def readiness(self) -> dict[str, Any]:
        """Why it could not begin to work, if so: no state yet, or X never accepted the credentials."""
        reasons = []
        if self._work is None:
            reasons.append("the state has not been found yet (waiting for S3)")
        elif not self._work.gate.x_time.known.is_set():
            reasons.append("X has not answered at all yet")
        elif not self._work.gate.allowed_once:
            reasons.append("X has not answered with a page yet")
        return {"ready": not reasons, "reasons": reasons}

    def health(self) -> dict[str, Any]:
        """Why it does not collect as it should, if so."""
        reasons = list(self.readiness()["reasons"])
        work = self._work
        if work is not None:
            if work.gate.hold is not None:
                reasons.append(f"asking X is paused: {work.gate.hold.reason}")
            reasons += [
                f"query {poller.query.name} had no page for {late:.0f} s: {poller.last_problem or 'no reason known'}"
                for poller in work.pollers
                if (late := self._lateness(poller)) > 0
            ]
            if work.uploader.last_problem is not None:
                reasons.append(f"uploading: {work.uploader.last_problem}")
        if quarantined := self._spool.count("quarantine"):
            reasons.append(f"{quarantined} files in quarantine")
        return {"healthy": not reasons, "reasons": reasons}

    def _lateness(self, poller: Poller) -> float:
        since = poller.last_page_at or self._started_at
        seconds = (self._clock.now() - since).total_seconds()
        return seconds if seconds > max(LATE_AFTER_POLLS * poller.query.poll_every_seconds, LATE_AFTER_SECONDS) else 0.0

    def status(self) -> dict[str, Any]:
        """Everything a person may want to see, as JSON."""
        work = self._work
        return {
            "version": self._version,
            "started_at": _text(self._started_at),
            "now": _text(self._clock.now()),
            **self.health(),
            "spool": {
                "id": self._spool.spool_id,
                "waiting": self._spool.count("sealed"),
                "quarantine": self._spool.count("quarantine"),
                "bytes": self._spool.used_bytes(),
                "open_bytes": self._spool.open_bytes,
            },
            "s3": {
                "bucket": self._settings.lake.bucket,
                "last_shipped_at": _text(work.uploader.last_shipped_at) if work else None,
                "problem": work.uploader.last_problem if work else None,
            },
            "x": _x_status(work) if work else None,
            "budget": self._budget_status(work) if work else None,
            "queries": [self._query_status(work, poller) for poller in work.pollers] if work else [],
            "problems": [
                {"at": _text(problem.at), "event": problem.event, "detail": problem.detail}
                for problem in reversed(self._telemetry.problems)
            ],
        }

    def _budget_status(self, work: _Work) -> dict[str, Any]:
        money = work.journal.state.money.within(work.gate.x_time.now())
        return {
            "usd_today": money.day.microusd / 1e6,
            "usd_this_month": money.month.microusd / 1e6,
            "posts_today": money.day.posts,
            "posts_this_month": money.month.posts,
            "caps": self._settings.budget.model_dump(),
        }

    def _query_status(self, work: _Work, poller: Poller) -> dict[str, Any]:
        name = poller.query.name
        state = work.journal.state.queries.get(name)
        now = work.gate.x_time.now()
        covered = snowflake.time_of(state.frontier_id) if state else None
        month = state.money.within(now).month if state else None
        return {
            "name": name,
            "rule": poller.query.rule,
            "planned_until": _text(covered),
            "lag_seconds": round((now - covered).total_seconds(), 1) if covered else None,
            "todo_intervals": len(state.todo) if state else 0,
            "todo": [str(interval) for interval in state.todo[:5]] if state else [],
            "last_page_at": _text(poller.last_page_at),
            "problem": poller.last_problem,
            "usd_this_month": month.microusd / 1e6 if month else 0.0,
        }


def _x_status(work: _Work) -> dict[str, Any]:
    rate, hold = work.gate.rates[SEARCH], work.gate.hold
    return {
        "paused": hold.reason if hold else None,
        "paused_until": _text(hold.until) if hold else None,
        "rate_limit": rate.limit,
        "rate_remaining": rate.remaining,
        "rate_reset_at": _text(rate.reset_at),
        "clock_skew_seconds": work.gate.x_time.skew.total_seconds(),
    }


def _text(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment else None
