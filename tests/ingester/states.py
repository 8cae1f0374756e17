"""The unchanged service brought into the states that its status page has to show, in virtual time; by name."""

import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from ingester.errors import NeedsOperator
from ingester.lease import Claim
from ingester.model import SearchRequest
from ingester.page import render
from schemas.keys import LakeKeys
from tests.ingester.simulation import MemoryStore, Run, SimulatedX, VirtualClock, settings

EVIL = "<script>alert('rule')</script> \"&' lang:en"
"""A rule, and an error text of X, that would be markup if it were not escaped."""
QUERIES = [
    {"name": "python", "rule": "python lang:en -is:retweet", "poll_every_seconds": 30, "first_poll_hours": 0},
    {"name": "coffee-and-tea", "rule": f"(coffee OR tea) {EVIL}", "poll_every_seconds": 60, "first_poll_hours": 0},
    {"name": "climate", "rule": "climate has:links", "poll_every_seconds": 30, "first_poll_hours": 0},
]
NO_CAP = {"usd_per_month": None, "reconcile": False}
RATE = {"x-rate-limit-limit": "450", "x-rate-limit-remaining": "417"}


@dataclass
class Place:
    """A running service, and what it collects in."""

    run: Run
    clock: VirtualClock
    x: SimulatedX
    store: MemoryStore

    @property
    def status(self) -> dict[str, Any]:
        return self.run.service.report.status()

    def page(self) -> str:
        report = self.run.service.report
        return render(report.status(), report.history.samples)

    async def passes(self, seconds: float) -> None:
        """Let the world go on, while the report looks at the disk every minute."""
        ends = self.clock.seconds + seconds
        while self.clock.seconds < ends:
            await self.clock.drive(min(ends, self.clock.seconds + 60))
            for name in self.run.spool.waiting()[:1]:  # sealed by this clock, not by the machine's
                os.utime(self.run.spool.sealed_file(name), (at := self.clock.now().timestamp() - 900, at))
            await self.run.service.report.look()


State = Callable[[Path], Awaitable[Place]]


def begun(directory: Path, **changes: Any) -> Place:
    clock = VirtualClock()
    x, store = SimulatedX(clock), MemoryStore()
    reset = clock.true_now() + timedelta(minutes=12)
    x.headers = {**RATE, "x-rate-limit-reset": f"{reset.timestamp():.0f}"}
    values: dict[str, Any] = {"query": QUERIES, "budget": {**NO_CAP, "usd_per_month": 150.0, "usd_per_day": 12.0}}
    run = Run(settings(directory, **(values | changes)), clock, x, store)
    return Place(run, clock, x, store)


def a_day_before(place: Place, *, lag: float = 25.0, hours: int = 24) -> None:
    """Minutes as they may have been, for the charts: the service itself has lived for less."""
    history, posts = place.run.service.report.history, 0
    for minute in range(hours * 60):
        seconds = 60.0 * (minute - hours * 60)
        posts += round(120 + 80 * math.sin(minute / 180) + 25 * math.sin(minute * 2.4))
        behind = lag * (1 + 0.4 * math.sin(minute / 7)) * (6 if 700 < minute < 760 else 1)
        history.note(
            place.clock.now() + timedelta(seconds=seconds),
            seconds,
            posts=posts,
            lag=None if 300 < minute < 330 else behind,
            spool_bytes=round(4e6 + 1.2e8 * max(0.0, math.sin((minute - 700) / 200)) ** 4),
        )


async def normal(directory: Path) -> Place:
    """All is well, for some minutes."""
    place = begun(directory)
    a_day_before(place)
    await place.passes(400)
    return place


async def behind(directory: Path) -> Place:
    """A day's backlog is being worked off."""
    new = {"name": "new", "rule": "football", "poll_every_seconds": 30, "first_poll_hours": 24}
    place = begun(directory, query=[*QUERIES, new], budget=NO_CAP)
    a_day_before(place, lag=4_000.0, hours=5)
    await place.passes(60)
    return place


async def paused(directory: Path) -> Place:
    """The day's budget is used up."""
    place = begun(directory, budget={**NO_CAP, "usd_per_month": 150.0, "usd_per_day": 3.0})
    a_day_before(place)
    await place.passes(1200)
    return place


async def broken(directory: Path) -> Place:
    """X refuses the credentials, S3 the uploads, and a file is in quarantine; it went well before."""
    place = begun(directory)
    a_day_before(place, hours=3)
    await place.passes(300)

    def refused(_request: SearchRequest) -> Any:
        return place.x.answer(401, {"title": "Unauthorized", "detail": f"Unauthorized {EVIL}"})

    place.x.faults.append(refused)
    place.store.faults = [
        lambda verb, _key: NeedsOperator(f"403 AccessDenied: PutObject {EVIL}") if verb == "put" else None
    ]
    await place.passes(900)
    quarantine = place.run.spool.sealed_file(place.run.spool.waiting()[0]).parent.parent / "quarantine"
    (quarantine / "2026-11-20T11-000000000007-0badf00d.avro").write_bytes(b"damaged")
    await place.run.service.report.look()
    return place


async def one_late(directory: Path) -> Place:
    """X says that one rule is wrong."""
    place = begun(directory)

    def wrong(request: SearchRequest) -> Any:
        body = {"title": "Invalid Request", "errors": [{"message": f"no such operator {EVIL}"}]}
        return place.x.answer(400, body) if request.query == "climate" else None

    place.x.faults.append(wrong)
    await place.passes(600)
    return place


async def empty(directory: Path) -> Place:
    """The first second of the first life."""
    return begun(directory)


async def standing_by(directory: Path) -> Place:
    """Another ingester has the lease."""
    place = begun(directory)
    claim = Claim("ffffffff", f"elsewhere{EVIL}", 1, "", "", 200.0, "0")
    place.store.objects[LakeKeys().lease] = (claim.to_json(), {})
    await place.passes(120)
    return place


async def no_room(directory: Path) -> Place:
    """The disk has less left than the settings keep."""
    place = begun(directory, spool={"directory": directory / "spool", "min_free_bytes": 10**18})
    await place.passes(300)
    return place


STATES: dict[str, State] = {
    "normal": normal,
    "behind": behind,
    "paused": paused,
    "broken": broken,
    "late": one_late,
    "empty": empty,
    "standing by": standing_by,
    "no room": no_room,
}


@asynccontextmanager
async def in_state(name: str, directory: Path) -> AsyncIterator[Place]:
    """A service in a state, until the block ends."""
    place = await STATES[name](directory)
    try:
        yield place
    finally:
        await place.run.die()
