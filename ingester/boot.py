"""Where the service goes on: the state off the newest microbatch, in the spool or in S3, whichever is later."""

import asyncio
import io
from dataclasses import dataclass
from datetime import timedelta

from ingester.answers import page_facts
from ingester.budget import ReadToday
from ingester.errors import NeedsOperator, SpoolDamaged, SpoolFull, Transient
from ingester.microbatch import load_state, read_records
from ingester.ports import Clock, ObjectStore
from ingester.pulse import Beat, unheard
from ingester.retry import Backoff, within
from ingester.spool import Found, Spool
from ingester.telemetry import Telemetry
from schemas.keys import LakeKeys, MicrobatchName
from schemas.records import SEARCH
from schemas.state import State

DAYS_COMPARED = 2
"""The newest days with microbatches whose sequences are compared: a clock may have been off around midnight."""
MOST_DAYS = 40
"""Days looked at in S3 when this machine's clock calls all of them the future."""
RETRY_WHEN_FULL = 5.0
"""Seconds between looks for room on a full disk."""
TAKEOVER_STEP = 1_000_000
"""Who goes on from another spool's state leaves so many sequences free. The other one may still write, cut off from S3 and
not knowing that it was succeeded: what it wrote then must never count as the later state.
"""


@dataclass(frozen=True, slots=True)
class Start:
    """The state to go on from, and the first free sequence number."""

    state: State
    next_sequence: int
    where: str
    is_from_s3: bool = False


async def recover(spool: Spool, clock: Clock, telemetry: Telemetry, beat: Beat = unheard) -> None:
    """Salvage what a crash left, and tell it. Waits as long as the disk is full: sealing needs room beside the open file.

    Raises NewerFormat or SpoolBroken.
    """
    while True:
        try:
            salvaged = await asyncio.to_thread(spool.recover)
        except SpoolFull as error:
            telemetry.spool_full(str(error))
            beat(RETRY_WHEN_FULL)
            await clock.sleep(RETRY_WHEN_FULL)
        else:
            break
    for found in salvaged:
        telemetry.salvaged(str(found.sealed.name), records=found.sealed.records, lost_bytes=found.lost_bytes)


async def spool_start(spool: Spool, telemetry: Telemetry, read_today: ReadToday) -> Start | None:
    """Where the spool alone would go on; None when it has no state. What its newest microbatch read today is remembered:
    the first polls read a little of it again.
    """
    local = await asyncio.to_thread(spool.newest, telemetry.unreadable)
    if local is None:
        return None
    await asyncio.to_thread(_remember, spool, local.name, read_today)
    return Start(local.state, await _highest_in(spool) + 1, where=f"spool, {local.name}")


async def find_start(
    spool: Spool,
    store: ObjectStore,
    keys: LakeKeys,
    clock: Clock,
    telemetry: Telemetry,
    *,
    patience: float | None,
    backoff: Backoff | None = None,
) -> Start:
    """The later of what spool and S3 hold, by sequence: a restored disk is older than S3, a new disk has S3 alone.

    With a state in the spool S3 may take so many seconds of `patience`. Without one, or with None, S3 is waited for,
    visibly and for as long as it takes: starting from less than is stored would pay again for the rest.
    Raises NewerFormat when a newer program wrote the state.
    """
    local = await asyncio.to_thread(spool.newest, telemetry.unreadable)
    if local is None or patience is None:
        backoff = backoff or Backoff(first_seconds=1.0, cap_seconds=30.0)
        remote, highest = await _wait_for_s3(store, keys, clock, telemetry, backoff, above=local)
    else:
        try:
            remote, highest = await within(clock, patience, _newest_in_s3(store, keys, clock, telemetry, above=local))
        except (Transient, NeedsOperator, TimeoutError) as error:
            telemetry.state_unreachable(f"going on from the spool: {error}", 0.0)
            remote, highest = None, local.name.sequence
    highest = max(highest, await _highest_in(spool))
    newest = remote or local
    if newest is None:
        return Start(State(), highest + 1, where="nowhere: the first start")
    step = 1 if newest.name.spool_id == spool.spool_id else TAKEOVER_STEP
    where = "S3" if remote else "spool"
    return Start(newest.state, highest + step, where=f"{where}, {newest.name}", is_from_s3=remote is not None)


def _remember(spool: Spool, name: MicrobatchName, read_today: ReadToday) -> None:
    path = next(path for folder in ("sealed", "shipped") if (path := spool.file(name, folder)).exists())
    for record in read_records(path):
        body, at = record.get("body"), record["at"]  # by X's clock, which names the day that X bills
        if record.get("endpoint") == SEARCH and body is not None:
            read_today.repeats(page_facts(body), at)


async def _highest_in(spool: Spool) -> int:
    names = await asyncio.to_thread(spool.all_names)
    return max((name.sequence for name in names), default=0)


async def _wait_for_s3(
    store: ObjectStore, keys: LakeKeys, clock: Clock, telemetry: Telemetry, backoff: Backoff, *, above: Found | None
) -> tuple[Found | None, int]:
    while True:
        try:
            return await _newest_in_s3(store, keys, clock, telemetry, above=above)
        except (Transient, NeedsOperator) as error:
            wait = backoff.next_wait()
            telemetry.state_unreachable(str(error), wait)
            await clock.sleep(wait)


async def _newest_in_s3(
    store: ObjectStore, keys: LakeKeys, clock: Clock, telemetry: Telemetry, *, above: Found | None
) -> tuple[Found | None, int]:
    """The newest readable microbatch in S3 that is later than `above`, and the highest sequence seen there.

    The days are S3's own list, not counted back from this machine's clock, which may be anything. Days of the future
    are looked at too, but do not count: once the clock was wrong there.
    """
    names: list[MicrobatchName] = []
    tomorrow = keys.raw_date(clock.now().date() + timedelta(days=1))
    days = sorted(await store.list_folders(keys.raw), reverse=True)[:MOST_DAYS]
    compared = 0
    for day in days:
        found = _parse(await store.list_keys(day))
        names += found
        compared += bool(found) and day <= tomorrow
        if compared == DAYS_COMPARED:
            break
    highest = max((name.sequence for name in names), default=0)
    floor = above.name.sequence if above else -1
    for name in sorted(names, reverse=True):
        if name.sequence <= floor:
            break
        key = keys.microbatch(name)
        try:
            content = await store.get(key)
            return Found(name, await asyncio.to_thread(load_state, io.BytesIO(content), key)), highest
        except SpoolDamaged as error:
            telemetry.unreadable(key, str(error))
    return None, highest


def _parse(keys: list[str]) -> list[MicrobatchName]:
    names = []
    for key in keys:
        try:
            names.append(MicrobatchName.parse(key))
        except ValueError:
            continue
    return names
