"""The one durable stream: append a record, then the state follows. Decides when a microbatch is opened and sealed."""

import asyncio
from collections.abc import Callable, Iterable
from datetime import timedelta

from ingester.errors import SpoolFull
from ingester.microbatch import Sealed
from ingester.ports import Clock
from ingester.pulse import Beat, unheard
from ingester.spool import Spool, lacks_room
from ingester.telemetry import Telemetry
from schemas import state as states
from schemas.keys import MicrobatchName, RawHour
from schemas.records import RawRecord
from schemas.state import State

RETRY_WHEN_FULL = 5.0
"""Seconds between looks for room on a full disk."""
ROOM_IS_KNOWN_FOR = 2.0
"""Seconds; looking at 10,000 waiting files before every request would cost more than the request."""


class Journal:
    """State and spool, joined: `state` is never ahead of what is durable (invariant I1)."""

    def __init__(
        self,
        spool: Spool,
        clock: Clock,
        telemetry: Telemetry,
        *,
        state: State,
        next_sequence: int,
        seal_after_seconds: float,
        seal_after_bytes: int,
        max_bytes: int,
        min_free_bytes: int,
        beat: Beat = unheard,
        excuse: Beat = unheard,
    ) -> None:
        self.state = state
        self.sealed = asyncio.Event()
        """Set whenever a microbatch was sealed; the uploader clears it."""
        self._spool = spool
        self._clock = clock
        self._telemetry = telemetry
        self._next_sequence = next_sequence
        self._seal_after_seconds = seal_after_seconds
        self._seal_after_bytes = seal_after_bytes
        self._max_bytes = max_bytes
        self._min_free_bytes = min_free_bytes
        self._beat = beat
        self._excuse = excuse
        self._lock = asyncio.Lock()
        self._opened = 0.0
        self._opened_with = state
        self._hour: RawHour | None = None
        self._lacks_room: str | None = None
        self._room_known_until = float("-inf")

    @property
    def next_checkpoint(self) -> State:
        """The state that the open microbatch was opened with, or that the next one will be if none is open."""
        return self._opened_with if self._spool.open_name else self.state

    @property
    def next_sequence(self) -> int:
        """The number of the open microbatch, or of the next one if none is open."""
        return name.sequence if (name := self._spool.open_name) else self._next_sequence

    async def append(self, record: RawRecord) -> None:
        """Make a record durable and fold it into the state. Waits as long as the disk is full.

        Raises SpoolBroken when the disk cannot be trusted any more. A cancelled caller does not tear it: the record is
        then durable or was never begun.
        """
        await self.append_decided(lambda: [record])

    async def append_decided(self, decide: Callable[[], Iterable[RawRecord]]) -> None:
        """Append what is decided once nobody else appends or changes the state. As `append` otherwise."""
        await asyncio.shield(asyncio.ensure_future(self._append_decided(decide)))

    async def seal(self, reason: str, *, if_older_than: float = 0.0) -> bool:
        """Seal the open microbatch, if there is one and it has been open for so many seconds. Not torn either.

        False when the disk is too full for it: it stays open.
        """
        return await asyncio.shield(asyncio.ensure_future(self._seal_if_older(reason, if_older_than)))

    async def adopt(self, state: State, next_sequence: int) -> None:
        """Go on from a later state, which another spool wrote. What is open is sealed before, so that no file mixes both."""
        await asyncio.shield(asyncio.ensure_future(self._adopt(state, next_sequence)))

    async def run(self) -> None:
        """Seal by age, also when nothing arrives, and leave a heartbeat in every hour. Ends only by cancellation."""
        wait = self._seconds_to_wait()
        while True:
            self._beat(wait)
            await self._clock.sleep(wait)
            self._beat()
            is_sealed = await self.seal("age", if_older_than=self._seal_after_seconds)
            if self._hour is None or self._hour < RawHour.of(self._clock.now()):
                await self.append({"kind": "heartbeat", "at": self._clock.now()})
            wait = self._seconds_to_wait() if is_sealed else RETRY_WHEN_FULL

    async def lacks_room(self) -> str | None:
        """Why nothing more may be asked for, as far as the disk is concerned; None when there is room."""
        if self._clock.monotonic() < self._room_known_until:
            return self._lacks_room
        used, free = await asyncio.to_thread(lambda: (self._spool.used_bytes(), self._spool.free_bytes()))
        reason = lacks_room(used, free, self._max_bytes, self._min_free_bytes)
        if reason is not None and self._lacks_room is None:
            self._telemetry.spool_full(reason)
        self._lacks_room = reason
        self._room_known_until = self._clock.monotonic() + ROOM_IS_KNOWN_FOR
        return reason

    async def _append_decided(self, decide: Callable[[], Iterable[RawRecord]]) -> None:
        async with self._lock:
            for record in decide():
                await self._append(record)

    async def _append(self, record: RawRecord) -> None:
        while True:
            try:
                await self._write(record)
            except SpoolFull as error:
                self._telemetry.spool_full(str(error))
                self._excuse(RETRY_WHEN_FULL)  # whoever appends waits for this
                await self._clock.sleep(RETRY_WHEN_FULL)
            else:
                break
        self.state = states.apply(self.state, record)
        if self._spool.open_bytes >= self._seal_after_bytes:
            await self._seal("size")

    async def _write(self, record: RawRecord) -> None:
        hour = RawHour.of(record.get("received_at") or self._clock.now())
        # Only a later hour turns the page: small disorder at the boundary, or a clock set back, opens no new file.
        if self._hour is not None and hour > self._hour:
            await self._seal_open_file("hour")
        if self._spool.open_name is None:
            name = MicrobatchName(self._next_sequence, hour, self._spool.spool_id)
            self._opened_with = self.state
            await asyncio.to_thread(self._spool.open_microbatch, name, self.state)
            self._next_sequence += 1
            self._opened = self._clock.monotonic()
            self._hour = hour
        await asyncio.to_thread(self._spool.append, record)

    async def _seal_if_older(self, reason: str, seconds: float) -> bool:
        async with self._lock:
            return self._spool.open_name is None or self._age() < seconds or await self._seal(reason)

    async def _adopt(self, state: State, next_sequence: int) -> None:
        async with self._lock:
            while not await self._seal("takeover"):
                self._excuse(RETRY_WHEN_FULL)
                await self._clock.sleep(RETRY_WHEN_FULL)
            self.state, self._next_sequence = state, max(next_sequence, self._next_sequence)

    async def _seal(self, reason: str) -> bool:
        try:
            await self._seal_open_file(reason)
        except SpoolFull as error:
            self._telemetry.spool_full(str(error))  # it stays open and is tried again
            return False
        return True

    async def _seal_open_file(self, reason: str) -> None:
        sealed: Sealed | None = await asyncio.to_thread(self._spool.seal)
        if sealed is not None:
            self._telemetry.sealed(str(sealed.name), reason, records=sealed.records, size=sealed.bytes)
            self.sealed.set()

    def _age(self) -> float:
        return self._clock.monotonic() - self._opened

    def _seconds_to_wait(self) -> float:
        now = self._clock.now()
        to_next_hour = (RawHour.of(now).start + timedelta(hours=1) - now).total_seconds()
        to_seal = self._seal_after_seconds - self._age() if self._spool.open_name else self._seal_after_seconds
        return min(max(to_seal, 0.05), to_next_hour + 0.05)
