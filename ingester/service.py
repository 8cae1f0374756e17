"""The life of the process: start, work, stop. Told in `Service.run`; everything else serves it."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from ingester.boot import Start, find_start, recover, spool_start
from ingester.budget import ReadToday
from ingester.errors import LoopDied, Stopping, Transient
from ingester.journal import Journal
from ingester.lease import Lease, Standing
from ingester.model import FieldSet
from ingester.notify import Notifier, in_a_sentence
from ingester.ports import Clock, Destination, Source, Stores
from ingester.pulse import FOR_EVER, PATIENCE_SECONDS, Pulse
from ingester.report import Report
from ingester.retry import Backoff, within
from ingester.spool import Spool
from ingester.telemetry import Telemetry
from ingester.term import Term
from ingester.uploader import Uploader
from ingester.x_time import XTime
from schemas.keys import LakeKeys
from schemas.settings import Settings

LEASE_PATIENCE = 0.25
"""Seconds S3 may take to say whose the lease is when the spool has a state to go on from: a few of its usual answers. When
it says so later, the state is compared later.
"""
STATE_PATIENCE = 1.0
"""The same for its newest state, once it has answered for the lease."""
PROBE_SECONDS = 360.0
"""How long one question for X's time may take: longer than x.timeout_seconds can be."""
START_SECONDS = 60.0
"""What a start that still moves asks systemd for, again and again: a disk may hold many files, or be full."""
LOOK_EVERY_SECONDS = 5.0
"""How often it is looked whether the loops still move, and what systemd shall show. Thrice per watchdog, if that is more."""

_T = TypeVar("_T")
_Loops = dict[str, Coroutine[Any, Any, None]]


class Service:
    """One ingester: one spool, one bucket, any number of queries."""

    def __init__(
        self,
        settings: Settings,
        *,
        spool: Spool,
        source: Source,
        stores: Stores,
        clock: Clock,
        telemetry: Telemetry,
        fields: FieldSet,
        version: str,
        notifier: Notifier | None = None,
    ) -> None:
        self._settings = settings
        self._spool = spool
        self._source = source
        self._stores = stores
        self._home = Destination.of(settings.lake)
        self._store = stores(self._home)
        self._clock = clock
        self._telemetry = telemetry
        self._fields = fields
        self._keys = LakeKeys(settings.lake.prefix)
        self._notifier = notifier or Notifier()
        self._pulse = Pulse(clock, PATIENCE_SECONDS + settings.x.timeout_seconds)
        seconds = settings.lake.lease_seconds
        self._lease = Lease(
            self._store,
            self._keys,
            clock,
            telemetry,
            spool_id=spool.spool_id,
            seconds=seconds,
            version=version,
            beat=self._pulse.expect("lease"),
        )
        self._x_time = XTime(clock, telemetry)
        self.report = Report(settings, spool, self._lease, self._x_time, clock, telemetry, version)
        self.report.pulse = self._pulse
        self._started = asyncio.Event()
        self._stop = asyncio.Event()
        self._at_once = asyncio.Event()
        self._read_today = ReadToday()
        self._tasks = asyncio.TaskGroup()
        self._kept: list[asyncio.Task[None]] = []
        self._journal: Journal | None = None
        self._uploader: Uploader | None = None
        self._work: Term | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._polls: list[asyncio.Task[None]] = []

    async def run(self, beside: _Loops | None = None) -> None:
        """Start, work until SIGTERM or SIGINT, stop within the grace time.

        The spool must be acquired. `beside` are loops of others that live as long, by name. Raises LoopDied, in an
        ExceptionGroup, when one of the loops ended: a dead loop ends the process.
        """
        with self._signals():
            async with self._tasks:
                loops = {"lease": self._lease.run(), "time": self._learn_time(), "pulse": self._watch_loops()}
                self._kept += self._keep({**loops, **(beside or {})})
                with suppress(Stopping):
                    await self._live()
                await self._wind_down()
                await _end(self._kept)
        self._telemetry.stopped(waiting=len(self._spool.waiting()))

    def stop(self, reason: str) -> None:
        """Ask the service to stop; it finishes what it has begun. Asked twice it leaves at once: what is durable stays so."""
        self._telemetry.stopping(reason)
        self._notifier.stopping()
        self._notifier.says("stops: finishes what it has begun and ships it")
        if self._stop.is_set():
            self._at_once.set()
        self._stop.set()

    async def _live(self) -> None:
        """Term after term until the service stops. Raises Stopping."""
        started = self._pulse.expect("start")
        await self._unless_stopped(recover(self._spool, self._clock, self._telemetry, started))
        if (
            local := await self._unless_stopped(spool_start(self._spool, self._telemetry, self._read_today))
        ) is not None:
            self._begin(local)
        self._pulse.forget("start")
        self._becomes_ready()
        while True:
            term = await self._unless_stopped(self._lease.granted(LEASE_PATIENCE if self._journal else None))
            await self._unless_stopped(self._find_state())
            await self._unless_stopped(self._x_time.known.wait())
            await self._unless_stopped(self._begin_term())
            await self._unless_stopped(self._lease.ended(term))
            await self._end_term()
            self.report.term = None

    # Start.

    async def _find_state(self) -> None:
        """Compare what the spool has with what S3 has, which somebody else may have written."""
        if self._journal is not None and self._lease.standing is Standing.UNKNOWN:
            # As soon as S3 answers, whose the lease is, another term begins: then it is compared.
            self._telemetry.state_unreachable("going on from the spool: S3 does not say whose the lease is", 0.0)
            return
        if self._journal is not None:
            await self._journal.seal("takeover")
        patience = None if self._lease.inherited else STATE_PATIENCE
        start = await find_start(self._spool, self._store, self._keys, self._clock, self._telemetry, patience=patience)
        if self._journal is None:
            self._begin(start)
        elif start.is_from_s3:
            await self._journal.adopt(start.state, start.next_sequence)
        self._telemetry.state_found(start.where, start.next_sequence - 1, len(start.state.queries))

    def _begin(self, start: Start) -> None:
        """Once a state is known: from here on what is in the spool is shipped, also while X may not be asked."""
        self._journal = Journal(
            self._spool,
            self._clock,
            self._telemetry,
            state=start.state,
            next_sequence=start.next_sequence,
            seal_after_seconds=self._settings.spool.seal_after_seconds,
            seal_after_bytes=self._settings.spool.seal_after_bytes,
            max_bytes=self._settings.spool.max_bytes,
            min_free_bytes=self._settings.spool.min_free_bytes,
            beat=self._pulse.expect("journal"),
            excuse=self._pulse.excuse,
        )
        self._uploader = Uploader(
            self._spool,
            self._stores,
            self._home,
            self._journal,
            self._clock,
            self._telemetry,
            beat=self._pulse.expect("uploader"),
        )
        self.report.uploader = self._uploader
        self._kept += self._keep({"journal": self._journal.run(), "uploader": self._uploader.run()})

    async def _learn_time(self) -> None:
        """Ask X for its time, free of charge, until it answers; afterwards it is learned from every answer."""
        beat = self._pulse.expect("time")
        backoff = Backoff(first_seconds=1.0, cap_seconds=60.0)
        while not self._x_time.known.is_set():
            beat(PROBE_SECONDS)
            try:
                self._x_time.learn(await within(self._clock, PROBE_SECONDS, self._source.probe()))
                problem = "its Date header is missing, or far from this machine's clock, and is asked for once more"
            except (Transient, TimeoutError) as error:
                problem = str(error)
            if not self._x_time.known.is_set():
                wait = backoff.next_wait()
                self._telemetry.request_failed("time", problem, wait)
                beat(wait)
                await self._clock.sleep(wait)
        beat(FOR_EVER)
        await asyncio.Event().wait()

    async def _begin_term(self) -> None:
        assert self._journal is not None
        term = self._work = self.report.term = Term(
            self._settings,
            journal=self._journal,
            source=self._source,
            store=self._store,
            keys=self._keys,
            clock=self._clock,
            x_time=self._x_time,
            telemetry=self._telemetry,
            fields=self._fields,
            read_today=self._read_today,
            pulse=self._pulse,
        )
        self._loops = self._keep(term.loops(), lambda: term.is_over)
        await term.settle_queries()
        self._polls = self._keep(term.polls(), lambda: term.is_over)

    # Alive.

    def _becomes_ready(self) -> None:
        """The loops run. What they still wait for outside, the sentence says."""
        self._started.set()
        self._notifier.ready()
        self._tell_what_it_does()

    async def _watch_loops(self) -> None:
        """A sign of life as long as every loop moves; none any more once one hangs, so that systemd starts anew."""
        allowed = self._notifier.watchdog_seconds
        seconds = min(LOOK_EVERY_SECONDS, allowed / 3) if allowed else LOOK_EVERY_SECONDS
        told: set[str] = set()
        while True:
            late = self._pulse.late()
            for name in late.keys() - told:
                self._telemetry.loop_hung(name, late[name], _where(name))
            told = set(late)
            if not late:
                self._notifier.alive()
            if not late and not self._started.is_set():
                self._notifier.starts_longer(START_SECONDS)
            if not self._stop.is_set():
                self._tell_what_it_does(late)
            await self._clock.sleep(seconds)

    def _tell_what_it_does(self, late: Iterable[str] = ()) -> None:
        if self._notifier.is_heard:
            self._notifier.says(self._sentence(late))

    def _sentence(self, late: Iterable[str] = ()) -> str:
        if names := ", ".join(late):
            return f"hangs: {names} made no progress for too long; a restart goes on where it stopped"
        if not self._started.is_set():
            return "starts: looks at what the spool holds"
        try:
            return in_a_sentence(self.report.status(), is_ready=self.report.readiness()["ready"])
        except Exception as error:  # noqa: BLE001 - what tells must not end what collects
            self._telemetry.answering_failed("STATUS", repr(error))
            return "runs; what it does cannot be told: see answering_failed in the journal"

    # Stop.

    async def _end_term(self) -> None:
        """No more requests; those under way are finished, as long as the grace time allows."""
        if self._work is None or self._work.is_over:
            return
        self._work.end()
        if self._polls:
            with suppress(TimeoutError):
                await within(self._clock, self._settings.service.grace_seconds / 2, asyncio.wait(self._polls))
        await _end([*self._polls, *self._loops])
        self._polls, self._loops = [], []

    async def _finish(self) -> None:
        """Finish, seal, ship, and let a successor begin."""
        await self._end_term()
        if self._journal is not None and self._uploader is not None:
            await self._journal.seal("shutdown")
            await self._uploader.finish()
        await self._lease.release()

    async def _wind_down(self) -> None:
        """`_finish` within the grace time. What that does not allow waits safely on disk."""
        finish = asyncio.ensure_future(self._finish())
        grace = asyncio.ensure_future(self._clock.sleep(self._settings.service.grace_seconds))
        at_once = asyncio.ensure_future(self._at_once.wait())
        await asyncio.wait({finish, grace, at_once}, return_when=asyncio.FIRST_COMPLETED)
        if finish.done():
            finish.result()
        await _end([finish, grace, at_once])

    # What serves both.

    def _keep(self, loops: _Loops, may_end: Callable[[], bool] = lambda: False) -> list["asyncio.Task[None]"]:
        """Run loops, by name; one that ends before it may ends the process."""
        tasks = [self._tasks.create_task(_watch(name, loop, may_end), name=name) for name, loop in loops.items()]
        for task in tasks:
            task.add_done_callback(lambda task: self._pulse.forget(task.get_name()))
        return tasks

    async def _unless_stopped(self, step: Coroutine[Any, Any, _T]) -> _T:
        """A step that may take long. Raises Stopping when the service stops before."""
        task, stop = asyncio.ensure_future(step), asyncio.ensure_future(self._stop.wait())
        either: set[asyncio.Future[Any]] = {task, stop}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        finally:
            task.cancel()
            stop.cancel()
        raise Stopping("the service is stopping")

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


def _where(name: str) -> str | None:
    """The line of ours at which the task of this name waits, for whoever has to find out why; None if it cannot be told."""
    task = next((task for task in asyncio.all_tasks() if task.get_name() == name), None)
    waits: Any = task and task.get_coro()
    place = None
    while (frame := getattr(waits, "cr_frame", None)) is not None:
        file = Path(frame.f_code.co_filename)
        place = (
            f"{file.name}:{frame.f_lineno} in {frame.f_code.co_name}" if file.parent == Path(__file__).parent else place
        )
        waits = waits.cr_await
    return place


async def _watch(name: str, loop: Awaitable[None], may_end: Callable[[], bool]) -> None:
    try:
        await loop
    except Exception as error:
        raise LoopDied(f"{name}: {error}") from error
    if not may_end():
        raise LoopDied(f"{name}: it ended by itself")


async def _end(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
