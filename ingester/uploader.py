"""Sealed microbatches to S3, strictly by sequence: create-only PUT, then forget the local file. Never gives up."""

import asyncio
from datetime import datetime
from pathlib import Path

from ingester.errors import ChecksumRefused, KeyTaken, NeedsOperator, SpoolDamaged, SpoolFull, Transient
from ingester.journal import Journal
from ingester.microbatch import Sealed, hash_file, holds_all_of
from ingester.ports import Clock, Destination, ObjectStore, Stores
from ingester.pulse import FOR_EVER, Beat, unheard
from ingester.quarantine import Quarantine
from ingester.retry import Backoff
from ingester.spool import Spool
from ingester.telemetry import Telemetry
from schemas.keys import LakeKeys, MicrobatchName

PROBE_SECONDS = 30.0
"""How often a paused uploader tries again: after wrong credentials, missing rights, a missing bucket."""
SLOWEST_LINE = 10_000
"""Bytes a second; an upload at less than that hangs."""


class Uploader:
    """Ships what the spool holds. One at a time, oldest first, so that S3 never has a hole in the sequence.

    Each goes to the lake it belongs to, also after the settings name another; `home` is for those that do not say.
    """

    def __init__(
        self,
        spool: Spool,
        stores: Stores,
        home: Destination,
        journal: Journal,
        clock: Clock,
        telemetry: Telemetry,
        *,
        backoff: Backoff | None = None,
        beat: Beat = unheard,
    ) -> None:
        self.last_shipped_at: datetime | None = None
        self.last_problem: str | None = None
        self.is_paused = False
        """Whether it waits for a person: credentials, rights or the bucket."""
        self._spool = spool
        self._stores = stores
        self._home = home
        self._journal = journal
        self._clock = clock
        self._telemetry = telemetry
        self._quarantine = Quarantine(spool, journal, clock, telemetry)
        self._progressed = asyncio.Event()
        self._beat = beat
        self._backoff = backoff or Backoff(first_seconds=0.5, cap_seconds=60.0)

    async def run(self) -> None:
        """Ship for ever. Ends only by cancellation."""
        while True:
            self._journal.sealed.clear()
            for name in await asyncio.to_thread(self._spool.waiting):
                while self._spool.is_waiting(name):
                    await self._try(name)
                self._progressed.set()
            self._progressed.set()
            self._beat(FOR_EVER)
            await self._journal.sealed.wait()
            self._beat()

    async def finish(self) -> None:
        """Wait until everything sealed is stored or set aside; `run` does the work."""
        while self._spool.count("sealed"):
            self._progressed.clear()
            await self._progressed.wait()

    async def _try(self, name: MicrobatchName) -> None:
        """One attempt. After it the file is out of the way, or it is time for the next one."""
        self._beat()
        try:
            await self._ship(name)
        except (Transient, SpoolFull) as error:
            wait = self._backoff.next_wait()
            self.last_problem, self.is_paused = str(error), False
            self._telemetry.upload_failed(str(name), str(error), wait)
            self._beat(wait)
            await self._clock.sleep(wait)
        except NeedsOperator as error:
            self.last_problem, self.is_paused = str(error), True
            self._telemetry.upload_paused(str(name), str(error), PROBE_SECONDS)
            self._beat(PROBE_SECONDS)
            await self._clock.sleep(PROBE_SECONDS)
        else:
            self._backoff.succeeded()
            self.last_problem, self.is_paused = None, False

    async def _ship(self, name: MicrobatchName) -> None:
        """Store a microbatch and forget it, or set it aside when it cannot be stored."""
        try:
            sealed = await asyncio.to_thread(self._spool.describe, name)
            belongs = sealed.destination or self._home
            self._beat(sealed.bytes / SLOWEST_LINE)
            already = await store_new(self._stores(belongs), belongs, self._spool.sealed_file(name), sealed)
        except SpoolDamaged as error:
            await self._quarantine.set_aside(name, str(error))
            return
        await asyncio.to_thread(self._spool.forget, name)
        self.last_shipped_at = self._clock.now()
        self._telemetry.shipped(str(name), size=sealed.bytes, already=already)


async def store_new(store: ObjectStore, belongs: Destination, file: Path, sealed: Sealed) -> bool:
    """Create the object of a sealed file. True if S3 had it already, as after an answer that was lost.

    Raises SpoolDamaged when it can never be stored, Transient or NeedsOperator.
    """
    key = LakeKeys(belongs.prefix).microbatch(sealed.name)
    try:
        await store.put_new(key, file, sealed.sha256, sealed.metadata)
    except KeyTaken:
        if await _has(store, key, file, sealed):
            return True
        raise SpoolDamaged(f"s3 key {key} holds other content (SHA-256 and records differ)") from None
    except ChecksumRefused as error:
        if await asyncio.to_thread(hash_file, file) == sealed.sha256:
            raise Transient(f"{key}: the bytes changed on their way; the file is whole") from error
        if await store.head(key) is not None and await _has(store, key, file, sealed):
            return True
        raise SpoolDamaged(f"{file} is not what was sealed (SHA-256 differs)") from error
    return False


async def _has(store: ObjectStore, key: str, file: Path, sealed: Sealed) -> bool:
    """Whether an object is the sealed one. A restored disk seals the same records anew, as other bytes."""
    stored = await store.head(key)
    if stored is None:
        raise Transient(f"{key} was there and is gone again")
    if stored.metadata.get("sha256") == sealed.sha256:
        return True
    if await asyncio.to_thread(hash_file, file) != sealed.sha256:
        return False
    return await asyncio.to_thread(holds_all_of, await store.get(key), file)
