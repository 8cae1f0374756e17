"""The life of the process: start, work, stop. Told in `Service.run`; everything else serves it."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ingester.boot import find_start, recover
from ingester.budget import ReadToday
from ingester.journal import Journal
from ingester.model import FieldSet
from ingester.ports import Clock, ObjectStore, Source
from ingester.report import Report
from ingester.spool import Spool
from ingester.telemetry import Telemetry
from ingester.term import Term
from ingester.uploader import Uploader
from schemas.keys import LakeKeys
from schemas.settings import Settings


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
        self.report = Report(settings, spool, clock, telemetry, version)
        self._settings = settings
        self._spool = spool
        self._source = source
        self._store = store
        self._clock = clock
        self._telemetry = telemetry
        self._fields = fields
        self._keys = LakeKeys(settings.lake.prefix)
        self._stop = asyncio.Event()
        self._read_today = ReadToday()
        self._work: Term | None = None

    async def run(self) -> None:
        """Start, work until SIGTERM or SIGINT, stop within the grace time.

        The spool must be acquired. Raises what ended a loop, in an ExceptionGroup: a dead loop ends the process.
        """
        with self._signals():
            journal = await self._begin_or_stop()
            if journal is None:
                return
            uploader = Uploader(self._spool, self._store, journal, self._keys, self._clock, self._telemetry)
            self._work = self._new_term(journal)
            self.report.uploader, self.report.term = uploader, self._work
            async with asyncio.TaskGroup() as group:
                beside = {"journal": journal.run(), "uploader": uploader.run(), **self._work.loops()}
                loops = [group.create_task(loop, name=name) for name, loop in beside.items()]
                await self._work.settle_queries()
                polls = [group.create_task(poll, name=name) for name, poll in self._work.polls().items()]
                await self._stop.wait()
                await self._wind_down(self._work, uploader, polls)
                for task in [*polls, *loops]:
                    task.cancel()
        self._telemetry.stopped(waiting=len(self._spool.waiting()))

    def stop(self, reason: str) -> None:
        """Ask the service to stop; it finishes what it has begun."""
        self._telemetry.stopping(reason)
        self._stop.set()

    # Start.

    async def _begin_or_stop(self) -> Journal | None:
        """`_begin` may wait long for S3; a signal ends that wait."""
        begin = asyncio.ensure_future(self._begin())
        stop = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({begin, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if begin.done():
            return begin.result()
        begin.cancel()
        return None

    async def _begin(self) -> Journal:
        await recover(self._spool, self._clock, self._telemetry)
        start = await find_start(self._spool, self._store, self._keys, self._clock, self._telemetry)
        self._telemetry.state_found(start.where, start.next_sequence - 1, len(start.state.queries))
        return Journal(
            self._spool,
            self._clock,
            self._telemetry,
            state=start.state,
            next_sequence=start.next_sequence,
            seal_after_seconds=self._settings.spool.seal_after_seconds,
            seal_after_bytes=self._settings.spool.seal_after_bytes,
            max_bytes=self._settings.spool.max_bytes,
            min_free_bytes=self._settings.spool.min_free_bytes,
        )

    def _new_term(self, journal: Journal) -> Term:
        return Term(
            self._settings,
            journal=journal,
            source=self._source,
            store=self._store,
            keys=self._keys,
            clock=self._clock,
            telemetry=self._telemetry,
            fields=self._fields,
            read_today=self._read_today,
        )

    # Stop.

    async def _wind_down(self, term: Term, uploader: Uploader, polls: list["asyncio.Task[None]"]) -> None:
        """Finish the requests under way, seal, ship; what the grace time does not allow waits safely on disk."""
        grace = self._settings.service.grace_seconds
        try:
            async with asyncio.timeout(grace):
                term.end()
                await asyncio.wait(polls, timeout=grace / 2)
                await term.journal.seal("shutdown")
                await uploader.finish()
        except TimeoutError:
            pass

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
        """For /readyz."""
        return self.report.readiness()

    def health(self) -> dict[str, Any]:
        """For /healthz."""
        return self.report.health()

    def status(self) -> dict[str, Any]:
        """For /status."""
        return self.report.status()
