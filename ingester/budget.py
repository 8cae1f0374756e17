"""What X's answers cost and whether another one is within the caps: prices, caps, repeats of the day. Waits for nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from ingester.model import Bill, FieldSet, PageFacts
from schemas.records import RawRecord
from schemas.settings import Budget, Price, Query
from schemas.state import Money, day_of

SMALLEST_PAGE = 10
"""X's lower bound of max_results."""


def microusd(usd: float) -> int:
    """Dollars of the settings as whole millionths."""
    return round(usd * 1_000_000)


class Prices:
    """What a page costs by the settings' prices, before it is asked (worst case) and after."""

    def __init__(self, price: Price, fields: FieldSet) -> None:
        self.post = microusd(price.post_usd)
        self.counts_request = microusd(price.counts_request_usd)
        self._user = microusd(price.user_usd)
        self._repeat = microusd(price.repeat_post_usd)
        self._bill_includes = price.bill_includes
        self._fields = fields

    def worst_case(self, posts: int) -> int:
        """Millionths of a dollar that a page of `posts` posts can cost. Mentioned users are counted once a post:
        X sets no bound on them, and what really came is booked afterwards.
        """
        included = self._fields.included_posts_per_post * self.post + self._fields.users_per_post * self._user
        return posts * (self.post + (included if self._bill_includes else 0))

    def bill(self, page: PageFacts, repeats: int) -> Bill:
        """What a page is booked at. X dedups per resource and UTC day; only ids known to have been read are repeats."""
        fresh = page.result_count - repeats + (page.included_posts if self._bill_includes else 0)
        users = page.included_users if self._bill_includes else 0
        cost = fresh * self.post + repeats * self._repeat + users * self._user
        return Bill(microusd=cost, posts=fresh, repeats=repeats, users=users)


class ReadToday:
    """Ids already read this UTC day, as far as this process knows: the last fifty thousand or more, so that memory is
    bounded. Ids are forgotten but never guessed, so costs may be booked too high and never too low.
    """

    GENERATION = 50_000
    """Ids; the last whole generation and the one that grows are kept: about 10 MB."""

    def __init__(self) -> None:
        self._day = ""
        self._growing: set[int] = set()
        self._before: set[int] = set()

    def repeats(self, page: PageFacts, at: datetime) -> int:
        """How many posts of the page were read before today; remembers them all."""
        if (day := day_of(at)) != self._day:
            self._day, self._growing, self._before = day, set(), set()
        fresh = {number for number in page.post_ids if number not in self._growing and number not in self._before}
        if len(self._growing) >= self.GENERATION:
            self._growing, self._before = set(), self._growing
        self._growing |= fresh
        return len(page.post_ids) - len(fresh)


class LostAnswers:
    """What answers of this UTC day that never arrived were booked at, by query, until it is known better: X answers that
    query again, or tells what it counted. Forgotten with the process and with the day: then it stays booked.
    """

    def __init__(self) -> None:
        self._day = ""
        self._of: dict[str, Bill] = {}

    def add(self, query: str, bill: Bill, at: datetime) -> None:
        self._forget_other_days(at)
        before = self._of.get(query, Bill(0, 0))
        self._of[query] = Bill(before.microusd + bill.microusd, before.posts + bill.posts)

    def take(self, query: str, at: datetime) -> Bill:
        """What is booked of a query, which is known better from now on."""
        self._forget_other_days(at)
        return self._of.pop(query, Bill(0, 0))

    def take_some(self, posts: int, at: datetime) -> dict[str, Bill]:
        """Up to so many posts of what is booked, by query."""
        self._forget_other_days(at)
        taken: dict[str, Bill] = {}
        for query, bill in list(self._of.items()):
            if (part := min(posts - sum(one.posts for one in taken.values()), bill.posts)) > 0:
                taken[query] = Bill(bill.microusd * part // bill.posts, part)
                self._of[query] = Bill(bill.microusd - taken[query].microusd, bill.posts - part)
        return taken

    def _forget_other_days(self, at: datetime) -> None:
        if (day := day_of(at)) != self._day:
            self._day, self._of = day, {}


def negated(bill: Bill) -> Bill:
    """To give back what was booked."""
    return Bill(-bill.microusd, -bill.posts)


def spend(reason: str, bill: Bill, at: datetime, query: str | None = None) -> RawRecord:
    """The record of money that no page tells of."""
    return {
        "kind": "spend",
        "at": at,
        "query": query,
        "reason": reason,
        "cost_microusd": bill.microusd,
        "posts_billed": bill.posts,
    }


@dataclass(frozen=True, slots=True)
class Allowed:
    """How many posts the next page may have; with 0, the cap in the way as a sentence, and when it resets."""

    posts: int
    cap: str = ""
    reset: datetime | None = None


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a request under way may cost at most."""

    microusd: int
    posts: int


@dataclass(frozen=True, slots=True)
class _Cap:
    setting: str
    limit: int
    spent: int
    reset: datetime
    in_posts: bool = False

    def sentence(self) -> str:
        if self.in_posts:
            return f"{self.setting} is {self.limit:,}, {self.spent:,} are booked or under way"
        return f"{self.setting} is ${self.limit / 1e6:g}, ${self.spent / 1e6:.2f} is booked or under way"


class Purse:
    """The caps that all queries share, against what the state says was spent and what is under way."""

    def __init__(self, budget: Budget, prices: Prices) -> None:
        self._budget = budget
        self._prices = prices
        self.reserved = Reservation(0, 0)
        """What all requests under way may cost."""

    def page(self, money: Money, at: datetime, wanted: int) -> Allowed:
        """Whether a page may be asked for now: 10 to `wanted` posts, or none."""
        return _page_within(self._caps(money, at), wanted, self._prices)

    def request(self, money: Money, at: datetime, cost: int) -> Allowed:
        """Whether a request of a fixed cost (millionths of a dollar) may be sent; it reads no posts."""
        for cap in self._caps(money, at):
            if not cap.in_posts and cap.spent + cost > cap.limit:
                return Allowed(0, f"{cap.sentence()}; another request would exceed it", cap.reset)
        return Allowed(0)

    def worst_case(self, posts: int, cost: int) -> Reservation:
        """What a request for `posts` posts and a fixed `cost` may come to."""
        return Reservation(self._prices.worst_case(posts) + cost, posts)

    def reserve(self, part: Reservation) -> None:
        self.reserved = Reservation(self.reserved.microusd + part.microusd, self.reserved.posts + part.posts)

    def release(self, part: Reservation) -> None:
        self.reserve(Reservation(-part.microusd, -part.posts))

    def _caps(self, money: Money, at: datetime) -> Iterator[_Cap]:
        now, budget, reserved = money.within(at), self._budget, self.reserved
        yield from _dollar_caps("budget", budget.usd_per_month, budget.usd_per_day, now, at, reserved.microusd)
        for name, limit, posts, reset in (
            ("posts_per_month", budget.posts_per_month, now.month.posts, _next_month(at)),
            ("posts_per_day", budget.posts_per_day, now.day.posts, _tomorrow(at)),
        ):
            if limit is not None:
                yield _Cap(f"budget.{name}", limit, posts + reserved.posts, reset, in_posts=True)


class OwnCaps:
    """A query's own caps. It has one request under way at most, so nothing has to be reserved."""

    def __init__(self, query: Query, prices: Prices) -> None:
        self._query = query
        self._prices = prices

    def page(self, money: Money, at: datetime, wanted: int) -> Allowed:
        """Whether the query may ask for a page now: 10 to `wanted` posts, or none."""
        query = self._query
        caps = _dollar_caps(f"query {query.name}", query.usd_per_month, query.usd_per_day, money.within(at), at)
        return _page_within(caps, wanted, self._prices)


def _page_within(caps: Iterator[_Cap], wanted: int, prices: Prices) -> Allowed:
    allowed = wanted
    for cap in caps:
        each = 1 if cap.in_posts else prices.worst_case(1)
        allowed = min(allowed, (cap.limit - cap.spent) // each if each else wanted)
        if allowed < SMALLEST_PAGE:
            return Allowed(0, f"{cap.sentence()}; another page could exceed it", cap.reset)
    return Allowed(allowed)


def _dollar_caps(
    owner: str, per_month: float | None, per_day: float | None, now: Money, at: datetime, reserved: int = 0
) -> Iterator[_Cap]:
    if per_month is not None:
        yield _Cap(f"{owner}.usd_per_month", microusd(per_month), now.month.microusd + reserved, _next_month(at))
    if per_day is not None:
        yield _Cap(f"{owner}.usd_per_day", microusd(per_day), now.day.microusd + reserved, _tomorrow(at))


def _tomorrow(at: datetime) -> datetime:
    return (at + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)


def _next_month(at: datetime) -> datetime:
    return (at.replace(day=1) + timedelta(days=32)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
