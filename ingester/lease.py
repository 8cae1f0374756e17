"""Who may ask X for this lake: the one spool that owns the lease, a small object in the bucket which its owner renews.

Constraints, before any code:
- A second ingester costs money twice, never data: names hold the spool id, so keys never collide. So the lease guards
  no data; it keeps two ingesters from paying for the same posts.
- It is written by If-Match only (the first time create-only), so of two writers one wins, whatever their clocks say.
- It is stale when its ETag did not change for three renewal times by the looker's own monotonic clock, while it was
  looking. What happened while S3 did not answer proves nothing: perhaps the owner could not renew either.
- Who owns it goes on while S3 cannot be reached, and stops as soon as it sees that it is somebody else's.
- It belongs to a spool, so a restart goes on at once. But a process that has owned it takes only its own writing for
  its own: another one on a copy of the same spool is somebody else.
"""

import asyncio
import os
import socket
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Self

import msgspec

from ingester.errors import KeyTaken, NeedsOperator, Transient
from ingester.ports import Clock, ObjectStore, Versioned
from ingester.pulse import Beat, unheard
from ingester.retry import Backoff, within
from ingester.telemetry import Telemetry
from schemas.keys import LakeKeys

CALL_SECONDS = 5.0
"""What one call to S3 may take."""
STALE_AFTER = 3
"""Renewal times without a renewal."""
LOOKS = 4
"""By who waits, in a renewal time: so that it begins soon after the owner has stopped."""
SHORTEST = 1.0
"""Seconds between two renewals, at least."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What the object says."""

    spool_id: str
    host: str
    pid: int
    since: str
    """When the process began to want it; with host and pid it names the process."""
    renewed: str
    """By the owner's clock, for people only."""
    lease_seconds: float
    version: str
    released: bool = False
    """The owner has stopped, and S3 has all that it had."""

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    @classmethod
    def from_json(cls, content: bytes) -> Self | None:
        """None for what is no claim: that is somebody else's, and goes stale as any other."""
        try:
            return msgspec.json.decode(content, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    def is_by_same_process(self, other: "Claim | None") -> bool:
        mine = (self.spool_id, self.host, self.pid, self.since)
        return other is not None and mine == (other.spool_id, other.host, other.pid, other.since)

    def __str__(self) -> str:
        return f"spool {self.spool_id} on {self.host} (process {self.pid}), renewed {self.renewed}"


class Standing(Enum):
    """Whose the lease is, as far as is known."""

    UNKNOWN = "unknown"
    OURS = "ours"
    THEIRS = "theirs"


class Lease:
    """Looks, takes and renews in `run`; others wait for what comes of it."""

    def __init__(
        self,
        store: ObjectStore,
        keys: LakeKeys,
        clock: Clock,
        telemetry: Telemetry,
        *,
        spool_id: str,
        seconds: float,
        version: str,
        backoff: Backoff | None = None,
        beat: Beat = unheard,
    ) -> None:
        self.standing = Standing.UNKNOWN if seconds else Standing.OURS
        self.term = 0
        """Counts how often it became ours. Whoever began in an earlier term has to look for the state again."""
        self.inherited = False
        """Whether somebody else may have collected since this spool did: then S3 knows more than the spool."""
        self.owner: Claim | None = None
        """The claim that was seen last, when it is not ours."""
        self.problem: str | None = None
        """Why S3 cannot be asked, if so."""
        self._store = store
        self._key = keys.lease
        self._clock = clock
        self._telemetry = telemetry
        self._is_on = bool(seconds)
        self._seconds = max(seconds, SHORTEST)
        self._backoff = backoff or Backoff(first_seconds=1.0, cap_seconds=self._seconds)
        now = clock.now().isoformat()
        self._claim = Claim(spool_id, socket.gethostname(), os.getpid(), now, now, self._seconds, version)
        self._etag: str | None = None
        """Of our own last writing, while it is ours."""
        self._seen: str | None = None
        """The ETag of somebody else's; it has not changed since `_seen_since`."""
        self._seen_since = self._looked_at = 0.0
        self._asked = asyncio.Event()
        """Set when the store was ready to be asked, at `_asked_at`."""
        self._asked_at = 0.0
        self._changed = asyncio.Event()
        self._stepping = asyncio.Lock()
        self._is_over = False
        self._beat = beat

    async def run(self) -> None:
        """Look until it is ours, then renew it. Ends only by cancellation."""
        if self._is_on:
            await self._store.open()
        self._asked_at = self._clock.monotonic()
        self._asked.set()
        while True:
            self._beat()
            async with self._stepping:
                wait = await self._step()
            self._beat(wait)
            await self._clock.sleep(wait)

    async def granted(self, patience: float | None) -> int:
        """Wait until it is ours; returns the term.

        With `patience`, which is for who has a state in its spool, 0 when S3 cannot be asked, or has not said whose it is
        for so many seconds since it was.
        """
        if patience is not None and self._is_on:
            await self._asked.wait()
        while self.standing is not Standing.OURS:
            if patience is None or self.standing is Standing.THEIRS:
                await self._changed.wait()
                continue
            if self.problem is not None:
                return 0
            try:
                left = self._asked_at + patience - self._clock.monotonic()
                await within(self._clock, left, self._changed.wait())
            except TimeoutError:
                if self.standing is Standing.UNKNOWN:  # the answer may have come with the last moment
                    return 0
        return self.term

    async def ended(self, term: int) -> None:
        """Wait until the lease is another term's, or somebody else's."""
        while self.term == term and self.standing is not Standing.THEIRS:
            await self._changed.wait()

    async def release(self) -> None:
        """Let a successor begin at once. Only when S3 has all that the spool had: the successor goes on from there."""
        async with self._stepping:
            self._is_over = True
            if self._etag is None:
                return
            self._claim = replace(self._claim, released=True)
            try:
                await self._renew()
            except (KeyTaken, Transient, NeedsOperator, TimeoutError) as error:
                self._telemetry.lease_unreachable(f"it could not be released, a successor will wait: {error}")
            else:
                self._telemetry.lease_released()

    def why_waiting(self) -> str | None:
        """Why X may not be asked, if so."""
        if self.standing is not Standing.THEIRS:
            return None
        owner = self.owner or "somebody whose writing cannot be read"
        return f"another ingester has the lease: {owner}; it is taken over in {self._seconds_to_stale():.0f} s if it stays so"

    def status(self) -> dict[str, Any]:
        """For people."""
        return {
            "standing": self.standing.value if self._is_on else "off",
            "owner": msgspec.to_builtins(self.owner),
            "waiting": self.why_waiting(),
            "problem": self.problem,
        }

    # Looking and writing.

    async def _step(self) -> float:
        """One renewal, or one look. Returns the seconds to wait before the next."""
        if not self._is_on or self._is_over:
            return 3600.0
        try:
            if self._etag is not None:
                await self._renew()
            if self._etag is None:
                await self._look()
        except KeyTaken:  # somebody was faster; the next look tells who
            self._etag = None
        except (Transient, NeedsOperator, TimeoutError) as error:
            if self.problem is None:
                self._telemetry.lease_unreachable(str(error))
            self.problem = str(error)
            self._becomes(self.standing)  # who waits goes on without an answer, or waits for the next
            return self._backoff.next_wait()
        self._backoff.succeeded()
        self.problem = None
        return self._seconds / LOOKS if self._etag is None else self._seconds

    async def _look(self) -> None:
        found = await self._read()
        claim = Claim.from_json(found.content) if found else None
        if found is not None and self._claim.is_by_same_process(claim):  # the answer to our writing was lost
            self._etag = found.etag
            if self.standing is not Standing.OURS:
                self._becomes_ours()
        elif found is None or self._may_take(found, claim):
            # Before the writing, whose answer may be lost.
            self.inherited = claim is None or claim.spool_id != self._claim.spool_id or self.term > 0
            await self._write(found.etag if found else None)
            self._becomes_ours()
        else:
            self._becomes_theirs(claim)

    def _may_take(self, found: Versioned, claim: Claim | None) -> bool:
        now = self._clock.monotonic()
        looked_all_the_time = now - self._looked_at <= self._seconds + CALL_SECONDS
        self._looked_at = now
        if found.etag != self._seen or not looked_all_the_time:
            self._seen, self._seen_since = found.etag, now
        is_restart = claim is not None and claim.spool_id == self._claim.spool_id and self.term == 0
        return is_restart or (claim is not None and claim.released) or self._seconds_to_stale(claim) <= 0

    def _seconds_to_stale(self, claim: Claim | None = None) -> float:
        claim = claim or self.owner
        seconds = max(self._seconds, claim.lease_seconds if claim else 0.0)
        return self._seen_since + STALE_AFTER * seconds - self._clock.monotonic()

    async def _renew(self) -> None:
        """Write over our own writing. Leaves no ETag when that is somebody else's by now."""
        try:
            await self._write(self._etag)
        except KeyTaken:
            self._etag = None
            found = await self._read()
            if found is not None and self._claim.is_by_same_process(Claim.from_json(found.content)):
                await self._write(found.etag)  # the answer to an earlier writing was lost

    async def _read(self) -> Versioned | None:
        return await within(self._clock, CALL_SECONDS, self._store.read(self._key))

    async def _write(self, etag: str | None) -> None:
        content = replace(self._claim, renewed=self._clock.now().isoformat()).to_json()
        self._etag = await within(self._clock, CALL_SECONDS, self._store.replace(self._key, content, etag=etag))

    # What comes of it.

    def _becomes_ours(self) -> None:
        self.owner = self._seen = None
        self.term += 1
        self._telemetry.lease_taken(self.term)
        self._becomes(Standing.OURS)

    def _becomes_theirs(self, claim: Claim | None) -> None:
        is_new = self.standing is not Standing.THEIRS or not (self.owner and self.owner.is_by_same_process(claim))
        was_ours, self.owner = self.standing is Standing.OURS, claim
        self._becomes(Standing.THEIRS)
        if is_new:
            told = self._telemetry.lease_lost if was_ours else self._telemetry.lease_waiting
            told(str(self.why_waiting()))

    def _becomes(self, standing: Standing) -> None:
        self.standing = standing
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
