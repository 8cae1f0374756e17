"""Whose turn it is to ask X: one gate for all queries, within X's rate limit, the budget, the disk and what X refuses."""

import asyncio
import heapq
import itertools
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from ingester.answers import Meaning, Verdict
from ingester.errors import Stopping
from ingester.model import Answer, Bill, FieldSet, PageFacts
from ingester.ports import Clock
from ingester.state import Money, State, day_of
from ingester.telemetry import Telemetry
from schemas.settings import Budget, Price

LIVE, BACKLOG = 0, 1
"""Priorities: live polls come first, the backlog fills what is left of the rate window."""

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
SMALLEST_PAGE = 10
"""X's lower bound of max_results."""
ROOM_CHECK_SECONDS = 5.0


def microusd(usd: float) -> int:
    """Dollars of the settings as whole millionths."""
    return round(usd * 1_000_000)


class Prices:
    """What a page costs by the settings' prices, before it is asked (worst case) and after."""

    def __init__(self, price: Price, fields: FieldSet) -> None:
        self._post = microusd(price.post_usd)
        self._user = microusd(price.user_usd)
        self._repeat = microusd(price.repeat_post_usd)
        self._bill_includes = price.bill_includes
        self._fields = fields

    def worst_case(self, posts: int) -> int:
        """Millionths of a dollar that a page of `posts` posts can cost. Mentioned users are counted once a post:
        X sets no bound on them, and what really came is booked afterwards.
        """
        included = self._fields.included_posts_per_post * self._post + self._fields.users_per_post * self._user
        return posts * (self._post + (included if self._bill_includes else 0))

    def bill(self, page: PageFacts, repeats: int) -> Bill:
        """What a page is booked at. X dedups per resource and UTC day; only ids known to have been read are repeats."""
        fresh = page.result_count - repeats + (page.included_posts if self._bill_includes else 0)
        users = page.included_users if self._bill_includes else 0
        cost = fresh * self._post + repeats * self._repeat + users * self._user
        return Bill(microusd=cost, posts=fresh, repeats=repeats, users=users)


class ReadToday:
    """Ids already read this UTC day, as far as this process knows; after a restart only too few, so costs are never
    booked too low.
    """

    def __init__(self) -> None:
        self._day = ""
        self._ids: set[int] = set()

    def repeats(self, page: PageFacts, at: datetime) -> int:
        """How many posts of the page were read before today; remembers them all."""
        if (day := day_of(at)) != self._day:
            self._day, self._ids = day, set()
        fresh = [number for number in page.post_ids if number not in self._ids]
        self._ids.update(fresh)
        return len(page.post_ids) - len(set(fresh))


class Purse:
    """The caps of the budget against what the state says was spent and what is under way."""

    def __init__(self, budget: Budget, prices: Prices) -> None:
        self._budget = budget
        self._prices = prices
        self._reserved_microusd = 0
        self._reserved_posts = 0

    def affordable(self, money: Money, at: datetime, wanted: int) -> tuple[int, str, datetime | None]:
        """How many posts a page may have now (0 or 10 to `wanted`), else the cap in the way and when it resets."""
        now = money.within(at)
        budget = self._budget
        tomorrow = (at + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        next_month = (at.replace(day=1) + timedelta(days=32)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        allowed = wanted
        for name, cap, spent, reset in (
            ("usd_per_month", budget.usd_per_month, now.month.microusd, next_month),
            ("usd_per_day", budget.usd_per_day, now.day.microusd, tomorrow),
        ):
            if cap is None:
                continue
            left = microusd(cap) - spent - self._reserved_microusd
            each = self._prices.worst_case(1)
            allowed = min(allowed, left // each if each else wanted)
            if allowed < SMALLEST_PAGE:
                return 0, self._sentence(name, f"${cap:g}", f"${spent / 1e6:.2f}"), reset
        for name, limit, posts, reset in (
            ("posts_per_month", budget.posts_per_month, now.month.posts, next_month),
            ("posts_per_day", budget.posts_per_day, now.day.posts, tomorrow),
        ):
            if limit is None:
                continue
            allowed = min(allowed, limit - posts - self._reserved_posts)
            if allowed < SMALLEST_PAGE:
                return 0, self._sentence(name, f"{limit:,}", f"{posts:,}"), reset
        return allowed, "", None

    def _sentence(self, name: str, cap: str, spent: str) -> str:
        under_way = f" and ${self._reserved_microusd / 1e6:.2f} under way" if self._reserved_microusd else ""
        return f"budget.{name} is {cap}, {spent} is booked{under_way}; another page could exceed it"

    def reserve(self, posts: int) -> None:
        self._reserved_microusd += self._prices.worst_case(posts)
        self._reserved_posts += posts

    def release(self, posts: int) -> None:
        self._reserved_microusd -= self._prices.worst_case(posts)
        self._reserved_posts -= posts


@dataclass(slots=True)
class RateWindow:
    """X's rate window as its headers tell it: all limits come from there, none from tables."""

    limit: int | None = None
    remaining: int | None = None
    reset_at: datetime | None = None
    """By X's clock."""

    def learn(self, answer: Answer, limited: bool, now: datetime) -> None:
        header = answer.headers.get
        try:
            self.limit = int(header("x-rate-limit-limit", ""))
            self.remaining = int(header("x-rate-limit-remaining", ""))
            self.reset_at = datetime.fromtimestamp(int(header("x-rate-limit-reset", "")), UTC)
        except (ValueError, OverflowError, OSError):
            if limited:
                self.reset_at = now + timedelta(seconds=WAIT_WITHOUT_RESET)
        if limited:
            self.remaining = 0
            latest = now + timedelta(seconds=LONGEST_RATE_WAIT)
            self.reset_at = min(self.reset_at or latest, latest)

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


@dataclass(frozen=True, slots=True)
class Turn:
    """The right to one request of up to `max_results` posts; give it back to the gate."""

    max_results: int


@dataclass(order=True, slots=True)
class _Waiting:
    priority: int
    arrival: int
    wanted: int = field(compare=False)
    turn: "asyncio.Future[Turn]" = field(compare=False)


class Gate:
    """Every request to X passes here. `run` must be running."""

    def __init__(
        self,
        clock: Clock,
        telemetry: Telemetry,
        *,
        purse: Purse,
        state: Callable[[], State],
        lacks_room: Callable[[], Awaitable[str | None]],
        polls_per_second: float,
        concurrency: int,
    ) -> None:
        self.x_time = XTime(clock, telemetry)
        self.rate = RateWindow()
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
        self._queue: list[_Waiting] = []
        self._arrivals = itertools.count()
        self._changed = asyncio.Event()
        self._refused: Verdict | None = None
        self._probe_at = 0.0
        self._stopping = False

    async def turn(self, priority: int, wanted: int, within: float | None = None) -> Turn | None:
        """Wait for the right to ask for a page of up to `wanted` posts.

        None if it did not come `within` so many seconds: who waits with a backlog page must still be on time for its
        next live poll. Raises Stopping.
        """
        if self._stopping:
            raise Stopping("the service is stopping")
        waiting = _Waiting(priority, next(self._arrivals), wanted, asyncio.get_running_loop().create_future())
        heapq.heappush(self._queue, waiting)
        self._changed.set()
        if within is None:
            return await waiting.turn
        patience = asyncio.ensure_future(self._clock.sleep(within))
        either: set[asyncio.Future[Any]] = {waiting.turn, patience}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            patience.cancel()
        if not waiting.turn.done():
            waiting.turn.cancel()
            return None
        return waiting.turn.result()

    def give_back(self, turn: Turn) -> None:
        """The request is over and, if it was a page, booked."""
        self._purse.release(turn.max_results)
        self._free += 1
        self._changed.set()

    def learn(self, answer: Answer, verdict: Verdict) -> None:
        """Take from an answer what it says about the next one."""
        self.x_time.learn(answer)
        self.rate.learn(answer, verdict.meaning is Meaning.RATE_LIMITED, self.x_time.now())
        if verdict.meaning in PROBE_AFTER:
            self._refused = verdict
            self._probe_at = self._clock.monotonic() + PROBE_AFTER[verdict.meaning]
        elif verdict.meaning is Meaning.PAGE:
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
                await self._changed.wait()
                continue
            hold = await self._grant(self._queue[0])
            self._show(hold)
            if hold is not None:
                await self._changed_within(hold.seconds)

    async def _grant(self, waiting: _Waiting) -> Hold | None:
        posts, hold = await self._may_ask(waiting)
        if hold is not None:
            return hold
        if not waiting.turn.done():
            self._free -= 1
            self._purse.reserve(posts)
            if self.rate.remaining is not None:
                self.rate.remaining -= 1
            if self._refused is not None:  # this one is the probe; the others go on waiting
                self._probe_at = self._clock.monotonic() + PROBE_AFTER[self._refused.meaning]
            waiting.turn.set_result(Turn(posts))
        return None

    async def _may_ask(self, waiting: _Waiting) -> tuple[int, Hold | None]:
        now = self.x_time.now()
        if self._refused is not None and (left := self._probe_at - self._clock.monotonic()) > 0:
            reason = f"X refuses ({self._refused.meaning.value}): {self._refused.detail}"
            return 0, Hold(reason, now + timedelta(seconds=left), left)
        keep = self._kept_for_live(now) if waiting.priority == BACKLOG else 0
        if (wait := self.rate.seconds_until_free(now, keep)) > 0:
            words = "X's rate window is used up" if keep == 0 else "the rest of X's rate window is kept for live polls"
            return 0, Hold(words, self.rate.reset_at, wait)
        posts, cap, reset = self._purse.affordable(self._state().money, now, waiting.wanted)
        if cap:
            return 0, Hold(cap, reset, min(60.0, (reset - now).total_seconds() + 1) if reset else 60.0)
        if (no_room := await self._lacks_room()) is not None:
            return 0, Hold(no_room, None, ROOM_CHECK_SECONDS)
        return posts, None

    def _kept_for_live(self, now: datetime) -> int:
        if self.rate.limit is None or self.rate.reset_at is None:
            return 0
        left = max(0.0, (self.rate.reset_at - now).total_seconds())
        polls = math.ceil(self._polls_per_second * left) + len(
            self._state().queries
        )  # one more each: they are not even
        return int(min(polls, self.rate.limit * LIVE_SHARE_CAP))

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


class XTime:
    """X's now: the Date header of X's answers, carried on by the monotonic clock.

    A window must not reach beyond what X's index answers, or its upper part would count as covered and never be asked
    for. So nothing is planned before X has told its time, and jumps of this machine's wall clock do not matter.
    """

    def __init__(self, clock: Clock, telemetry: Telemetry) -> None:
        self.known = asyncio.Event()
        """Set once X has told its time."""
        self._clock = clock
        self._telemetry = telemetry
        self._told_skew = timedelta()
        self._x_at_anchor = clock.now()
        self._anchor = clock.monotonic()

    @property
    def skew(self) -> timedelta:
        """X's clock minus this machine's."""
        return self.now() - self._clock.now()

    def now(self) -> datetime:
        return self._x_at_anchor + timedelta(seconds=self._clock.monotonic() - self._anchor)

    def learn(self, answer: Answer) -> None:
        """Date has whole seconds and the answer took time, so only a larger difference is believed."""
        date = date_of(answer)
        if date is None:
            return
        took = answer.received_at - answer.requested_at
        took = min(max(took, timedelta()), timedelta(seconds=60))  # the wall clock may have jumped meanwhile
        seen = date + timedelta(seconds=0.5) + took / 2
        if not self.known.is_set() or abs(seen - self.now()) > timedelta(seconds=1) + took / 2:
            self._x_at_anchor, self._anchor = seen, self._clock.monotonic()
            self.known.set()
        if abs(self.skew - self._told_skew) > timedelta(seconds=2):
            self._told_skew = self.skew
            self._telemetry.clock_off(-self.skew.total_seconds())


def date_of(answer: Answer) -> datetime | None:
    """The Date header (RFC 9110), or None if there is none that can be read."""
    try:
        return datetime.strptime(answer.headers.get("date", ""), "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
    except ValueError:
        return None
