"""Sealed microbatches to S3, strictly by sequence: create-only PUT, then forget the local file. Never gives up."""

import asyncio
from datetime import datetime
from pathlib import Path

from ingester.errors import ChecksumRefused, KeyTaken, NeedsOperator, SpoolDamaged, SpoolFull, Transient
from ingester.journal import Journal
from ingester.microbatch import Sealed
from ingester.ports import Clock, ObjectStore
from ingester.quarantine import Quarantine
from ingester.retry import Backoff
from ingester.spool import Spool
from ingester.telemetry import Telemetry
from schemas.keys import LakeKeys, MicrobatchName

PROBE_SECONDS = 30.0
"""How often a paused uploader tries again: after wrong credentials, missing rights, a missing bucket."""


class Uploader:
    """Ships what the spool holds. One at a time, oldest first, so that S3 never has a hole in the sequence."""

    def __init__(
        self,
        spool: Spool,
        store: ObjectStore,
        journal: Journal,
        keys: LakeKeys,
        clock: Clock,
        telemetry: Telemetry,
        *,
        backoff: Backoff | None = None,
    ) -> None:
        self.last_shipped_at: datetime | None = None
        self.last_problem: str | None = None
        self._spool = spool
        self._store = store
        self._journal = journal
        self._keys = keys
        self._clock = clock
        self._telemetry = telemetry
        self._quarantine = Quarantine(spool, journal, clock, telemetry)
        self._progressed = asyncio.Event()
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
            await self._journal.sealed.wait()

    async def finish(self) -> None:
        """Wait until everything sealed is stored or set aside; `run` does the work."""
        while self._spool.count("sealed"):
            self._progressed.clear()
            await self._progressed.wait()

    async def _try(self, name: MicrobatchName) -> None:
        """One attempt. After it the file is out of the way, or it is time for the next one."""
        try:
            await self._ship(name)
        except (Transient, SpoolFull) as error:
            wait = self._backoff.next_wait()
            self.last_problem = str(error)
            self._telemetry.upload_failed(str(name), str(error), wait)
            await self._clock.sleep(wait)
        except NeedsOperator as error:
            self.last_problem = str(error)
            self._telemetry.upload_paused(str(name), str(error), PROBE_SECONDS)
            await self._clock.sleep(PROBE_SECONDS)
        else:
            self._backoff.succeeded()
            self.last_problem = None

    async def _ship(self, name: MicrobatchName) -> None:
        """Store a microbatch and forget it, or set it aside when it cannot be stored."""
        try:
            sealed = await asyncio.to_thread(self._spool.describe, name)
            already = await self._put(sealed)
        except SpoolDamaged as error:
            await self._quarantine.set_aside(name, str(error))
            return
        await asyncio.to_thread(self._spool.forget, name)
        self.last_shipped_at = self._clock.now()
        self._telemetry.shipped(str(name), size=sealed.bytes, already=already)

    async def _put(self, sealed: Sealed) -> bool:
        """Create the object; True if S3 had it already, as after an answer that was lost. Raises SpoolDamaged."""
        key = self._keys.microbatch(sealed.name)
        file: Path = self._spool.sealed_file(sealed.name)
        try:
            await self._store.put_new(key, file, sealed.sha256, sealed.metadata)
        except KeyTaken:
            stored = await self._store.head(key)
            if stored is None:
                raise Transient(f"{key} was there and is gone again") from None
            if stored.metadata.get("sha256") != sealed.sha256:
                raise SpoolDamaged(f"s3 key {key} holds other content (SHA-256 differs)") from None
            return True
        except ChecksumRefused as error:
            if not await asyncio.to_thread(self._spool.verify, sealed):
                raise SpoolDamaged(f"{file} is not what was sealed (SHA-256 differs)") from error
            raise Transient(f"{key}: the bytes changed on their way; the file is whole") from error
        return False
