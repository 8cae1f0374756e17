"""Where the service goes on: the state off the newest microbatch, in the spool or in S3, whichever is later."""

import asyncio
import io
from dataclasses import dataclass
from datetime import timedelta

from ingester.errors import NeedsOperator, SpoolDamaged, SpoolFull, Transient
from ingester.microbatch import load_state
from ingester.ports import Clock, ObjectStore
from ingester.retry import Backoff
from ingester.spool import Found, Spool
from ingester.state import State
from ingester.telemetry import Telemetry
from schemas.keys import LakeKeys, MicrobatchName

DAYS_BACK = 32
"""How far S3 is searched: longer than X's reach and than a month's budget."""
DAYS_COMPARED = 2
"""The newest days with microbatches whose sequences are compared: a clock may have been off around midnight."""
RETRY_WHEN_FULL = 5.0
"""Seconds between looks for room on a full disk."""
PATIENCE_WITH_LOCAL_STATE = 10.0
"""Seconds S3 may take to answer when the spool already has a state: a start never needs S3 then."""


@dataclass(frozen=True, slots=True)
class Start:
    """The state to go on from, and the first free sequence number."""

    state: State
    next_sequence: int
    where: str


async def recover(spool: Spool, clock: Clock, telemetry: Telemetry) -> None:
    """Salvage what a crash left, and tell it. Waits as long as the disk is full: sealing needs room beside the open file.

    Raises NewerFormat or SpoolBroken.
    """
    while True:
        try:
            salvaged = await asyncio.to_thread(spool.recover)
        except SpoolFull as error:
            telemetry.spool_full(str(error))
            await clock.sleep(RETRY_WHEN_FULL)
        else:
            break
    for found in salvaged:
        telemetry.salvaged(str(found.sealed.name), records=found.sealed.records, lost_bytes=found.lost_bytes)


async def find_start(
    spool: Spool, store: ObjectStore, keys: LakeKeys, clock: Clock, telemetry: Telemetry, backoff: Backoff | None = None
) -> Start:
    """The later of what spool and S3 hold, by sequence: a restored disk is older than S3, a new disk has S3 alone.

    With nothing in the spool it waits for S3, visibly and for as long as it takes: starting from nothing would pay
    again for what is stored already. Raises NewerFormat when a newer program wrote the state.
    """
    backoff = backoff or Backoff(first_seconds=1.0, cap_seconds=30.0)
    local = await asyncio.to_thread(spool.newest, telemetry.unreadable)
    while True:
        try:
            async with asyncio.timeout(PATIENCE_WITH_LOCAL_STATE if local else None):
                remote, highest = await _newest_in_s3(store, keys, clock, telemetry, above=local)
            break
        except (Transient, NeedsOperator, TimeoutError) as error:
            detail = str(error) or "S3 did not answer in time"
            if local is not None:
                telemetry.state_unreachable(f"going on from the spool: {detail}", 0.0)
                remote, highest = None, local.name.sequence
                break
            wait = backoff.next_wait()
            telemetry.state_unreachable(detail, wait)
            await clock.sleep(wait)
    highest = max([highest, *(name.sequence for name in await asyncio.to_thread(spool.all_names))])
    if remote is not None:
        return Start(remote.state, highest + 1, where=f"S3, {remote.name}")
    if local is not None:
        return Start(local.state, highest + 1, where=f"spool, {local.name}")
    return Start(State(), highest + 1, where="nowhere: the first start")


async def _newest_in_s3(
    store: ObjectStore, keys: LakeKeys, clock: Clock, telemetry: Telemetry, *, above: Found | None
) -> tuple[Found | None, int]:
    """The newest readable microbatch in S3 that is later than `above`, and the highest sequence seen there."""
    names: list[MicrobatchName] = []
    days_found = 0
    tomorrow = clock.now().date() + timedelta(days=1)
    for back in range(DAYS_BACK + 1):
        found = _parse(await store.list_keys(keys.raw_date(tomorrow - timedelta(days=back))))
        names += found
        days_found += bool(found)
        if days_found == DAYS_COMPARED:
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
