"""Whose turn it is to ask X: one gate for all queries, within X's rate limit, the budget, the disk and what X refuses."""

import asyncio
import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from ingester.answers import Meaning, Verdict
from ingester.budget import Allowed, Purse, Reservation
from ingester.errors import Stopping
from ingester.model import Answer
from ingester.ports import Clock
from ingester.pulse import FOR_EVER, Beat, unheard
from ingester.retry import within
from ingester.telemetry import Telemetry
from ingester.x_time import XTime
from schemas.records import SEARCH
from schemas.state import State

LIVE, BACKLOG, ASIDE = 0, 1, 2
"""Priorities: live polls come first, the backlog fills what is left of the rate window, audits can wait."""

PROBE_AFTER = {
    Meaning.NOT_ALLOWED: 60.0,
    Meaning.NO_CREDITS: 300.0,
    Meaning.CAP_REACHED: 900.0,
}
"""Seconds until one request probes whether X still refuses: slow enough to cost nothing, fast enough to resume."""
LONGEST_RATE_WAIT = 960.0
"""X's window is 15 minutes; a reset further off than that plus a minute is a wrong clock."""
WAIT_WITHOUT_RESET = 60.0
"""After a 429 that does not say when."""
LIVE_SHARE_CAP = 0.8
"""The backlog may always have a fifth of the rate window, however many queries poll."""
ROOM_CHECK_SECONDS = 5.0
LONGEST_HOLD = 60.0
"""Seconds until a cap is looked at again, so that a clock that was corrected is noticed."""


@dataclass(slots=True)
class RateWindow:
    """X's rate window of one endpoint as its headers tell it: all limits come from there, none from tables."""

    limit: int | None = None
    remaining: int | None = None
    reset_at: datetime | None = None
    """By X's clock."""
    refusals: int = 0
    """429s in a row."""

    def learn(self, answer: Answer, limited: bool, now: datetime) -> None:
        header = answer.headers.get
        try:
            self.limit = int(header("x-rate-limit-limit", ""))
            self.remaining = int(header("x-rate-limit-remaining", ""))
            self.reset_at = datetime.fromtimestamp(int(header("x-rate-limit-reset", "")), UTC)
        except (ValueError, OverflowError, OSError):
            if limited:
                self.reset_at = now + timedelta(seconds=WAIT_WITHOUT_RESET)
        self.refusals = self.refusals + 1 if limited else 0
        latest = now + timedelta(seconds=LONGEST_RATE_WAIT)
        if self.reset_at is not None:
            self.reset_at = min(self.reset_at, latest)
        if limited:  # a reset that is over, as some limiters are late, must not be a hot loop
            self.remaining = 0
            soonest = now + timedelta(seconds=min(WAIT_WITHOUT_RESET, 2.0**self.refusals))
            self.reset_at = max(self.reset_at or latest, soonest)

    def seconds_until_free(self, now: datetime, keep: int) -> float:
        """0 when a request may go out that leaves `keep` for others; otherwise the wait for the reset."""
        if self.remaining is None or self.reset_at is None or self.remaining > keep:
            return 0.0
        return max(0.0, (self.reset_at - now).total_seconds() + 1.0)


@dataclass(frozen=True, slots=True)
class Hold:
    """Why nobody is asked for now."""

    reason: str
    until: datetime | None
    seconds: float
    kind: str
    """`rate`, `backlog` (only the backlog waits), `budget`, `disk`, or what X refuses by: a meaning of an answer."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The right to one request, of up to `max_results` posts if it is for a page; give it back to the gate."""

    max_results: int
    reserved: Reservation


@dataclass(order=True, slots=True)
class _Waiting:
    priority: int
    arrival: int
    wanted: int = field(compare=False)
    cost: int = field(compare=False)
    endpoint: str = field(compare=False)
    turn: "asyncio.Future[Turn]" = field(compare=False)


class Gate:
    """Every request to X passes here. `run` must be running."""

    def __init__(
        self,
        clock: Clock,
        telemetry: Telemetry,
        *,
        x_time: XTime,
        purse: Purse,
        state: Callable[[], State],
        lacks_room: Callable[[], Awaitable[str | None]],
        polls_per_second: float,
        concurrency: int,
        beat: Beat = unheard,
    ) -> None:
        self.x_time = x_time
        self.rates: defaultdict[str, RateWindow] = defaultdict(RateWindow)
        """By endpoint: X limits each apart."""
        self.hold: Hold | None = None
        """What everybody waits for at the moment, for people to see."""
        self.allowed_once = False
        """True once X answered a request with a page: the credentials are good."""
        self._clock = clock
        self._telemetry = telemetry
        self._purse = purse
        self._state = state
        self._lacks_room = lacks_room
        self._polls_per_second = polls_per_second
        self._free = concurrency
        self._beat = beat
        self._queue: list[_Waiting] = []
        self._arrivals = itertools.count()
        self._changed = asyncio.Event()
        self._refused: Verdict | None = None
        self._probe_at = 0.0
        self._stopping = False

    async def turn(
        self, priority: int, wanted: int, patience: float | None = None, *, endpoint: str = SEARCH, cost: int = 0
    ) -> Turn | None:
        """Wait for the right to ask for a page of up to `wanted` posts, or (0) for an answer of a fixed `cost`, which is
        in millionths of a dollar.

        None if it did not come within so many seconds of `patience`: who waits with a backlog page must still be on time for its
        next live poll. Raises Stopping.
        """
        if self._stopping:
            raise Stopping("the service is stopping")
        granted: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(priority, next(self._arrivals), wanted, cost, endpoint, granted)
        heapq.heappush(self._queue, waiting)
        self._changed.set()
        if patience is None:
            return await waiting.turn
        try:
            return await within(self._clock, patience, waiting.turn)
        except TimeoutError:
            return None

    def give_back(self, turn: Turn) -> None:
        """The request is over and, if it was a page, booked."""
        self._purse.release(turn.reserved)
        self._free += 1
        self._changed.set()

    @property
    def posts_under_way(self) -> int:
        """Posts that requests not answered yet may bring."""
        return self._purse.reserved.posts

    def learn(self, answer: Answer, verdict: Verdict, endpoint: str = SEARCH) -> None:
        """Take from an answer what it says about the next one."""
        self.x_time.learn(answer)
        self.rates[endpoint].learn(answer, verdict.meaning is Meaning.RATE_LIMITED, self.x_time.now())
        # What X allows or refuses elsewhere says nothing about search, except that the credits are gone.
        holds_here = endpoint == SEARCH or verdict.meaning is Meaning.NO_CREDITS
        if holds_here and verdict.meaning in PROBE_AFTER:
            self._refused = verdict
            self._probe_at = self._clock.monotonic() + PROBE_AFTER[verdict.meaning]
        elif endpoint == SEARCH and verdict.meaning is Meaning.PAGE:
            self._refused = None
            self.allowed_once = True
        self._changed.set()

    def stop(self) -> None:
        """Nobody gets a turn any more; those who wait are told."""
        self._stopping = True
        for waiting in self._queue:
            if not waiting.turn.done():
                waiting.turn.set_exception(Stopping("the service is stopping"))
        self._queue.clear()

    async def run(self) -> None:
        """Grant turns, highest priority first. Ends only by cancellation."""
        while True:
            self._changed.clear()
            self._queue = [waiting for waiting in self._queue if not waiting.turn.done()]
            heapq.heapify(self._queue)
            if not self._queue or self._free == 0:
                # Who waits for a turn relies on this: with all of them given out, one has to come back in time.
                self._beat(0.0 if self._queue else FOR_EVER)
                await self._changed.wait()
                continue
            self._beat()
            if (seconds := await self._grant_first()) is not None:
                self._beat(seconds)
                await self._changed_within(seconds)

    async def _grant_first(self) -> float | None:
        """Grant one turn: the first of each endpoint has a try, as what holds up searches may not hold up others. None if
        one was granted, else the seconds to wait. Meanwhile others may come to the front, or a stop send all home.
        """
        firsts: dict[str, _Waiting] = {}
        for waiting in sorted(self._queue):
            firsts.setdefault(waiting.endpoint, waiting)
        seconds = LONGEST_HOLD
        for endpoint, waiting in firsts.items():
            hold = await self._grant(waiting)
            if endpoint == SEARCH:
                self._show(hold)
            if hold is None:
                return None
            seconds = min(seconds, hold.seconds)
        return seconds

    async def _grant(self, waiting: _Waiting) -> Hold | None:
        posts, hold = await self._may_ask(waiting)
        if hold is not None:
            return hold
        if not waiting.turn.done():
            self._free -= 1
            reserved = self._purse.worst_case(posts, waiting.cost)
            self._purse.reserve(reserved)
            rate = self.rates[waiting.endpoint]
            if rate.remaining is not None:
                rate.remaining -= 1
            if self._refused is not None:  # this one is the probe; the others go on waiting
                self._probe_at = self._clock.monotonic() + PROBE_AFTER[self._refused.meaning]
            waiting.turn.set_result(Turn(posts, reserved))
        return None

    async def _may_ask(self, waiting: _Waiting) -> tuple[int, Hold | None]:
        now = self.x_time.now()
        if self._refused is not None and (left := self._probe_at - self._clock.monotonic()) > 0:
            reason = f"X refuses ({self._refused.meaning.value}): {self._refused.detail}"
            return 0, Hold(reason, now + timedelta(seconds=left), left, self._refused.meaning.value)
        keep = self._kept_for_live(now) if waiting.priority == BACKLOG else 0
        rate = self.rates[waiting.endpoint]
        if (wait := rate.seconds_until_free(now, keep)) > 0:
            words = "X's rate window is used up" if keep == 0 else "the rest of X's rate window is kept for live polls"
            return 0, Hold(words, rate.reset_at, wait, "rate" if keep == 0 else "backlog")
        allowed = self._affordable(waiting, now)
        if allowed.cap:
            left = (allowed.reset - now).total_seconds() + 1 if allowed.reset else LONGEST_HOLD
            return 0, Hold(allowed.cap, allowed.reset, min(LONGEST_HOLD, left), "budget")
        if (no_room := await self._lacks_room()) is not None:
            return 0, Hold(no_room, None, ROOM_CHECK_SECONDS, "disk")
        return allowed.posts, None

    def _affordable(self, waiting: _Waiting, now: datetime) -> Allowed:
        money = self._state().money
        if waiting.wanted:
            return self._purse.page(money, now, waiting.wanted)
        return self._purse.request(money, now, waiting.cost)

    def _kept_for_live(self, now: datetime) -> int:
        rate = self.rates[SEARCH]
        if rate.limit is None or rate.reset_at is None:
            return 0
        left = max(0.0, (rate.reset_at - now).total_seconds())
        one_more_each = len(self._state().queries)  # live polls are not even
        polls = math.ceil(self._polls_per_second * left) + one_more_each
        return int(min(polls, rate.limit * LIVE_SHARE_CAP))

    def _show(self, hold: Hold | None) -> None:
        before = self.hold.reason if self.hold else None
        if (hold.reason if hold else None) != before:
            if hold is not None:
                self._telemetry.asking_paused(hold.reason, hold.until)
            else:
                self._telemetry.asking_resumed()
        self.hold = hold

    async def _changed_within(self, seconds: float) -> None:
        sleep = asyncio.ensure_future(self._clock.sleep(seconds))
        changed = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait({sleep, changed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            changed.cancel()
