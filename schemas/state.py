"""The state of a collection, computed and never stored ahead: a checkpoint folded over the records that follow it. Pure.

State = the checkpoint in the newest microbatch's header + `apply` over its records. Covered, per query, is everything
from `start_id` up to the frontier that is neither in todo nor was recorded as a gap.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Self

from schemas.records import COUNTS, Interval, RawRecord

CHECKPOINT_FORMAT = 1
"""Version of a checkpoint. A reader refuses a higher one."""
QUARANTINE = "quarantine"
"""The reason of an interval that a lost microbatch had covered."""
ON_TOP = frozenset({"reread", "backfill"})
"""Reasons of intervals that are asked on top of the regular collection."""
GIVEN_UP = "_given_up"
"""Ends the reason of a gap record for what was asked on top: `backfill_given_up`."""
FORGOTTEN = "forgotten"
"""The reason of a rule record after which a query is not known any more."""
ORDERS_REMEMBERED = 100
"""An order's object is deleted as soon as its plan is durable, so a few would do."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Money booked in one period: whole millionths of a US dollar, and posts at the full price."""

    period: str = ""
    """`2026-11-20` for a UTC day, `2026-11` for a month; compares as time does."""
    microusd: int = 0
    posts: int = 0

    def plus(self, period: str, microusd: int, posts: int) -> Self:
        """Add to the period, or begin a newer one. A clock that jumped back never empties a purse."""
        if period > self.period:
            return replace(self, period=period, microusd=microusd, posts=posts)
        return replace(self, microusd=self.microusd + microusd, posts=self.posts + posts)

    def within(self, period: str) -> Self:
        """What counts against the caps of `period`."""
        return self if period <= self.period else replace(self, period=period, microusd=0, posts=0)


@dataclass(frozen=True, slots=True)
class Money:
    """What was booked this UTC day and this UTC month."""

    day: Spent = Spent()
    month: Spent = Spent()

    def plus(self, at: datetime, microusd: int, posts: int) -> Self:
        return replace(
            self,
            day=self.day.plus(day_of(at), microusd, posts),
            month=self.month.plus(month_of(at), microusd, posts),
        )

    def within(self, at: datetime) -> Self:
        return replace(self, day=self.day.within(day_of(at)), month=self.month.within(month_of(at)))


def day_of(at: datetime) -> str:
    """The UTC day, X's period for repeats: `2026-11-20`."""
    return at.astimezone(UTC).strftime("%Y-%m-%d")


def month_of(at: datetime) -> str:
    """The UTC month of the budget: `2026-11`."""
    return at.astimezone(UTC).strftime("%Y-%m")


@dataclass(frozen=True, slots=True)
class QueryState:
    """Where one query is."""

    rule: str | None
    """The rule that applies; None after the query was removed from the settings."""
    start_id: int
    """Lower bound of the collection, exclusive: where the query began."""
    frontier_id: int
    """Everything below it is covered, in todo or a gap."""
    todo: tuple[Interval, ...] = ()
    """Not covered yet, oldest first."""
    money: Money = Money()
    audited_id: int = 0
    """Posts below it were counted by X (the counts endpoint), as far as the collection reaches."""

    def find(self, key: tuple[int, int]) -> Interval | None:
        return next((interval for interval in self.todo if interval.key == key), None)

    def with_todo(self, intervals: Iterable[Interval]) -> Self:
        kept = {interval.key: interval for interval in intervals if not interval.is_empty}
        return replace(self, todo=tuple(kept[key] for key in sorted(kept)))


@dataclass(frozen=True, slots=True)
class State:
    """Everything the service knows about its work."""

    queries: Mapping[str, QueryState] = field(default_factory=lambda: MappingProxyType({}))
    money: Money = Money()
    orders: tuple[str, ...] = ()
    """The orders answered last; one that lies under control/requests/ still is not answered again."""

    def with_query(self, name: str, query: QueryState) -> Self:
        return replace(self, queries={**self.queries, name: query})


def apply(state: State, record: RawRecord) -> State:
    """The state after one more durable record. An unknown kind changes nothing: a newer writer may add kinds."""
    state = _book(state, record)
    match record["kind"]:
        case "page":
            return _page(state, record)
        case "plan":
            return _plan(state, record)
        case "gap":
            return _gap(state, record)
        case "rule":
            return _rule(state, record)
    return state


def fold(state: State, records: Iterable[RawRecord]) -> State:
    """`apply` over many."""
    for record in records:
        state = apply(state, record)
    return state


def _book(state: State, record: RawRecord) -> State:
    cost, posts = record.get("cost_microusd") or 0, record.get("posts_billed") or 0
    if not cost and not posts:
        return state
    at = record["at"]
    state = replace(state, money=state.money.plus(at, cost, posts))
    name = record.get("query")
    query = state.queries.get(name or "")
    if name is None or query is None:
        return state
    return state.with_query(name, replace(query, money=query.money.plus(at, cost, posts)))


def _page(state: State, record: RawRecord) -> State:
    name, planned = record.get("query"), _planned(record)
    if name is None or planned is None:
        return state  # a page that could not be followed covers nothing
    since_id, until_id = planned.key
    if record.get("endpoint") == COUNTS:
        return _counted(state, name, until_id, whole=bool(record.get("is_last")))
    query = state.queries.get(name) or QueryState(record.get("rule"), start_id=since_id, frontier_id=since_id)
    asked = query.find(planned.key) or planned
    if (record.get("asked_below") or until_id) < asked.upper:
        return state  # a page before this one is missing, so what lies above is not covered
    others = [interval for interval in query.todo if interval.key != asked.key]
    left = [] if record.get("is_last") else [_resumed(asked, record)]
    query = replace(query.with_todo(others + left), frontier_id=max(query.frontier_id, until_id))
    return state.with_query(name, query)


def _planned(record: RawRecord) -> Interval | None:
    """The whole interval that a page belongs to; None if the page could not be followed."""
    since_id, until_id = record.get("since_id"), record.get("until_id")
    if since_id is None or until_id is None or record.get("problem"):
        return None
    return Interval(since_id, until_id, record.get("rule") or "", record.get("reason") or "")


def _counted(state: State, name: str, until_id: int, *, whole: bool) -> State:
    query = state.queries.get(name)
    if query is None or not whole:
        return state
    return state.with_query(name, replace(query, audited_id=max(query.audited_id, until_id)))


def _resumed(asked: Interval, record: RawRecord) -> Interval:
    if (below := record.get("resume_below")) is not None:
        return asked.resumed_below(below)
    oldest = record.get("oldest_id")  # the record is older than the field
    return asked.resumed_below(oldest) if oldest is not None and oldest < asked.upper else asked


def _plan(state: State, record: RawRecord) -> State:
    name = record.get("query")
    intervals = [Interval.from_record(interval) for interval in record.get("intervals") or []]
    if order := record.get("order"):
        state = replace(state, orders=(*state.orders, order)[-ORDERS_REMEMBERED:])
    if name is None or not intervals:
        return state
    lowest = min(interval.since_id for interval in intervals)
    query = state.queries.get(name) or QueryState(record.get("rule"), start_id=lowest, frontier_id=lowest)
    frontier = max(query.frontier_id, record.get("frontier_id") or 0)
    # What is under way already keeps its place when it is planned again.
    query = replace(query.with_todo([*intervals, *query.todo]), frontier_id=frontier)
    return state.with_query(name, query)


def _gap(state: State, record: RawRecord) -> State:
    """What a gap names is no longer to be done; an interval that reaches beyond it keeps the rest. What was asked on top
    of the regular collection is given up alone.
    """
    name, since_id, until_id = record.get("query"), record.get("since_id"), record.get("until_id")
    query = state.queries.get(name or "")
    if name is None or query is None or since_id is None or until_id is None:
        return state
    on_top = (record.get("reason") or "").removesuffix(GIVEN_UP)
    left = (
        _above(interval, since_id, until_id) if on_top not in ON_TOP or interval.reason == on_top else interval
        for interval in query.todo
    )
    # A gap above the frontier (the service was away for more than X's reach) moves it: that part is told, not planned.
    query = replace(query.with_todo(left), frontier_id=max(query.frontier_id, until_id))
    return state.with_query(name, query)


def _above(interval: Interval, since_id: int, until_id: int) -> Interval:
    if since_id <= interval.since_id < until_id - 1:
        return replace(interval, since_id=min(until_id - 1, interval.upper))
    return interval


def _rule(state: State, record: RawRecord) -> State:
    name = record.get("query")
    if name is None:
        return state
    if record.get("reason") == FORGOTTEN:
        return replace(state, queries={other: query for other, query in state.queries.items() if other != name})
    known = state.queries.get(name)
    frontier = record.get("frontier_id")
    if known is None:
        start = frontier or 0
        return state.with_query(name, QueryState(record.get("rule"), start_id=start, frontier_id=start))
    moved = known.frontier_id if frontier is None else max(known.frontier_id, frontier)
    return state.with_query(name, replace(known, rule=record.get("rule"), frontier_id=moved))


def covered_by(record: RawRecord) -> Interval | None:
    """What a page covers by its own word, whatever became of the pages before it: from where it was asked down to what
    it left, or to the lower end of its interval if it is the last. None for whatever covers nothing.
    """
    planned = _planned(record)
    if record["kind"] != "page" or record.get("endpoint") == COUNTS or planned is None:
        return None
    asked = planned.resumed_below(record.get("asked_below"))
    below = planned.since_id if record.get("is_last") else _resumed(asked, record).upper - 1
    covered = Interval(below, asked.upper, planned.rule, planned.reason)
    return None if covered.is_empty else covered


def given_up_by(record: RawRecord) -> Interval | None:
    """What a gap record gives up of the regular collection. None also if it was asked on top of that: then what was
    covered stays covered.
    """
    since_id, until_id, reason = record.get("since_id"), record.get("until_id"), record.get("reason") or ""
    if record["kind"] != "gap" or since_id is None or until_id is None:
        return None
    if reason.removesuffix(GIVEN_UP) in ON_TOP:
        return None
    given_up = Interval(since_id, until_id, record.get("rule") or "", reason)
    return None if given_up.is_empty else given_up


def covered_between(before: State, after: State) -> dict[str, list[Interval]]:
    """What the records between two states covered, per query, as intervals that ask for it again.

    That is what left todo, and what came below the frontier and is not in todo. Gaps are among it: their records are
    lost with the others, and what X cannot give will be told as a gap again.
    """
    covered: dict[str, list[Interval]] = {}
    for name, now in after.queries.items():
        was = before.queries.get(name) or QueryState(None, start_id=now.start_id, frontier_id=now.start_id)
        had, has = _missing(was.todo), _missing(now.todo)
        gone = {kind: without(stretches, has.get(kind, [])) for kind, stretches in had.items()}
        if (rule := now.rule if now.rule is not None else was.rule) is not None:
            planned = [stretch for (_, reason), found in has.items() if reason == QUARANTINE for stretch in found]
            new = without([(was.frontier_id, now.frontier_id)], planned)
            gone[rule, QUARANTINE] = gone.get((rule, QUARANTINE), []) + new
        covered[name] = [
            Interval(low - 1, high, rule, reason)
            for (rule, reason), stretches in sorted(gone.items())
            for low, high in joined(stretches)
        ]
    return {name: intervals for name, intervals in covered.items() if intervals}


def _missing(todo: Iterable[Interval]) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """Stretches of ids, upper bound exclusive, by what they are asked for. What is asked on top of the regular
    collection does not count for it.
    """
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for interval in todo:
        reason = interval.reason if interval.reason in ON_TOP else QUARANTINE
        found.setdefault((interval.rule, reason), []).append((interval.since_id + 1, interval.upper))
    return found


def joined(stretches: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same ids in as few stretches as possible, in order."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(stretches):
        if found and low <= found[-1][1]:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        elif low < high:
            found.append((low, high))
    return found


def without(stretches: Iterable[tuple[int, int]], taken: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The stretches less what is taken."""
    left = list(stretches)
    for low, high in taken:
        parts = (part for start, end in left for part in ((start, min(end, low)), (max(start, high), end)))
        left = [(start, end) for start, end in parts if start < end]
    return left


def to_checkpoint(state: State) -> str:
    """The state as JSON for a microbatch's header."""
    return json.dumps(
        {
            "format": CHECKPOINT_FORMAT,
            "money": _money_to_json(state.money),
            "orders": state.orders,
            "queries": {
                name: {
                    "rule": query.rule,
                    "start_id": query.start_id,
                    "frontier_id": query.frontier_id,
                    "todo": [interval.to_record() for interval in query.todo],
                    "money": _money_to_json(query.money),
                    "audited_id": query.audited_id,
                }
                for name, query in sorted(state.queries.items())
            },
        },
        separators=(",", ":"),
    )


def from_checkpoint(text: str) -> State:
    """Read what `to_checkpoint` wrote. Raises ValueError for anything else, also for a newer format."""
    try:
        found = json.loads(text)
        if found["format"] > CHECKPOINT_FORMAT:
            raise ValueError(f"checkpoint format {found['format']} is newer than this program knows")
        queries = {
            name: QueryState(
                rule=query["rule"],
                start_id=query["start_id"],
                frontier_id=query["frontier_id"],
                todo=tuple(Interval.from_record(interval) for interval in query["todo"]),
                money=_money_from_json(query["money"]),
                audited_id=query.get("audited_id", 0),
            )
            for name, query in found["queries"].items()
        }
        return State(queries=queries, money=_money_from_json(found["money"]), orders=tuple(found.get("orders", ())))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a checkpoint: {error!r}") from error


def _money_to_json(money: Money) -> dict[str, list[Any]]:
    return {
        "day": [money.day.period, money.day.microusd, money.day.posts],
        "month": [money.month.period, money.month.microusd, money.month.posts],
    }


def _money_from_json(found: Mapping[str, list[Any]]) -> Money:
    return Money(day=Spent(*found["day"]), month=Spent(*found["month"]))
