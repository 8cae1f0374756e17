"""What a raw hour tells of the collection: what was covered, what is left to do, gaps, changed rules. Pure.

Covered is what pages that lie in raw say they cover, file by file: a microbatch that never reached S3 covers nothing,
nor does a page whose bytes are damaged. What is left to do stands in the state after the hour's newest microbatch.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from schemas import snowflake
from schemas.records import RawRecord
from schemas.state import FORGOTTEN, State, apply, covered_by, from_checkpoint, given_up_by, joined, without

FRONTIER, COVERED, TODO, GAP, RULE = "frontier", "covered", "todo", "gap", "rule"
"""Kinds of rows."""
_KINDS = (FRONTIER, COVERED, TODO, GAP, RULE)
DAMAGED = "damaged"
"""The reason of a gap that a page left whose bytes cannot be used."""
_ODD = (KeyError, TypeError, ValueError, AttributeError)
"""What a record raises that is none of ours: only damage makes one."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A row in the making: a stretch of a query's id line, both bounds exclusive."""

    query: str
    kind: str
    since_id: int | None
    until_id: int | None = None
    rule: str | None = None
    reason: str | None = None

    @property
    def ids(self) -> tuple[int, int]:
        """As a half-open range."""
        assert self.since_id is not None
        assert self.until_id is not None
        return (self.since_id + 1, self.until_id)


@dataclass(frozen=True, slots=True)
class Account:
    """What one microbatch tells. Small and plain, so that it travels between processes."""

    sequence: int
    spool_id: str
    told: tuple[Stretch, ...] = ()
    """What its own records say: covered, gap, rule."""
    frontiers: Mapping[str, int] | None = None
    """Of every query when it was opened; None if its checkpoint cannot be read."""
    left: tuple[Stretch, ...] = ()
    """Todo and frontier of every query after its last record; a frontier begins where the query began."""


@dataclass(slots=True)
class Listener:
    """Hears the records of one microbatch, in their order."""

    checkpoint: str
    _state: State | None = field(init=False, default=None)
    _frontiers: dict[str, int] | None = field(init=False, default=None)
    _covered: dict[tuple[str, str], list[tuple[int, int]]] = field(init=False, default_factory=dict)
    _told: list[Stretch] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        try:
            self._state = from_checkpoint(self.checkpoint)
        except ValueError:
            return
        self._frontiers = {name: query.frontier_id for name, query in self._state.queries.items()}

    def hear(self, record: Any, *, is_damaged: bool = False) -> None:
        """One more record; `is_damaged`: a page whose body is not what X sent."""
        try:
            self._hear(record, is_damaged)
        except _ODD:
            self._state = None  # what it would have changed is not known

    def account(self, sequence: int, spool_id: str) -> Account:
        """What was heard up to now."""
        covered = [
            Stretch(query, COVERED, low - 1, high, rule)
            for (query, rule), stretches in self._covered.items()
            for low, high in joined(stretches)
        ]
        known = self._frontiers if self._state is not None else None
        return Account(sequence, spool_id, (*covered, *self._told), known, tuple(_left(self._state)))

    def _hear(self, record: RawRecord, is_damaged: bool) -> None:
        query = record.get("query")
        before = self._state
        if before is not None:
            self._state = apply(before, record)
        if query is None:
            return
        covered, given_up = covered_by(record), given_up_by(record)
        if covered is not None and is_damaged:
            self._told.append(Stretch(query, GAP, *covered.key, covered.rule, DAMAGED))
        elif covered is not None:
            self._covered.setdefault((query, covered.rule), []).append((covered.since_id + 1, covered.until_id))
        elif given_up is not None:
            self._told.append(Stretch(query, GAP, *given_up.key, given_up.rule, given_up.reason))
        elif record["kind"] == "rule":
            self._told.append(_rule(query, record, before, self._state))


def _rule(query: str, record: RawRecord, before: State | None, after: State | None) -> Stretch:
    """A changed rule, from the frontier on."""
    known = before.queries.get(query) if before else None
    now = after.queries.get(query) if after else None
    at = now or known
    frontier = at.frontier_id if at else record.get("frontier_id")
    if record.get("reason") == FORGOTTEN:
        reason = FORGOTTEN
    elif record.get("rule") is None:
        reason = "removed"
    else:
        reason = "added" if known is None else "changed"
    return Stretch(query, RULE, None if frontier is None else frontier - 1, None, record.get("rule"), reason)


def _left(state: State | None) -> Iterator[Stretch]:
    for name, query in state.queries.items() if state else ():
        for interval in query.todo:
            yield Stretch(name, TODO, interval.since_id, interval.upper, interval.rule, interval.reason)
        if query.rule is not None:
            yield Stretch(name, FRONTIER, query.start_id - 1, query.frontier_id, query.rule)


def rows_of_hour(accounts: Iterable[Account], *, is_closed: bool) -> list[dict[str, Any]]:
    """The rows of a raw hour, from what all its microbatches tell, in the order of the table."""
    ordered = sorted(accounts, key=lambda account: (account.sequence, account.spool_id))
    known = [account for account in ordered if account.frontiers is not None]
    told = [stretch for account in ordered for stretch in account.told]
    covered = _merged(stretch for stretch in told if stretch.kind == COVERED)
    gaps = _merged((stretch for stretch in told if stretch.kind == GAP), less=covered)
    left = [_begun(stretch, known[0].frontiers or {}) for stretch in known[-1].left] if known else []
    rules = [stretch for stretch in told if stretch.kind == RULE]
    stretches = sorted([*left, *covered, *gaps, *rules], key=_place)
    return [_row(stretch, is_closed=is_closed) for stretch in stretches]


@dataclass(frozen=True, slots=True)
class Timeline:
    """What became of a query's line, in half-open ranges of ids, no two of which overlap."""

    covered: tuple[tuple[int, int], ...]
    todo: tuple[tuple[int, int], ...]
    gaps: tuple[tuple[int, int], ...]
    lost: tuple[tuple[int, int], ...]
    """What a frontier passed and no raw hour tells of."""


def timelines(hours: Mapping[Any, Iterable[Mapping[str, Any]]]) -> dict[str, Timeline]:
    """The rows of raw hours (by hour, whatever sorts them) put together, by query."""
    by_query: dict[str, dict[str, list[tuple[int, int]]]] = {}
    newest = max((hour for hour, rows in hours.items() if any(row["kind"] == FRONTIER for row in rows)), default=None)
    for hour, rows in hours.items():
        for row in rows:
            if row["kind"] != RULE and (row["kind"] != TODO or hour == newest):
                stretches = by_query.setdefault(row["query"], {}).setdefault(row["kind"], [])
                stretches.append((row["since_id"] + 1, row["until_id"]))
    return {query: _timeline(stretches) for query, stretches in sorted(by_query.items())}


def _timeline(stretches: Mapping[str, Sequence[tuple[int, int]]]) -> Timeline:
    told: list[tuple[int, int]] = []
    parts = []
    for kind in (COVERED, TODO, GAP, FRONTIER):
        parts.append(tuple(joined(without(joined(stretches.get(kind, ())), told))))
        told += parts[-1]
    return Timeline(*parts)


def _merged(told: Iterable[Stretch], less: Iterable[Stretch] = ()) -> list[Stretch]:
    """As few stretches as possible of each query, rule and reason, less what is taken from the same query."""
    taken: dict[str, list[tuple[int, int]]] = {}
    for stretch in less:
        taken.setdefault(stretch.query, []).append(stretch.ids)
    alike: dict[tuple[str, str, str | None, str | None], list[tuple[int, int]]] = {}
    for stretch in told:
        alike.setdefault((stretch.query, stretch.kind, stretch.rule, stretch.reason), []).append(stretch.ids)
    return [
        Stretch(query, kind, low - 1, high, rule, reason)
        for (query, kind, rule, reason), ids in alike.items()
        for low, high in joined(without(ids, taken.get(query, [])))
    ]


def _begun(stretch: Stretch, frontiers: Mapping[str, int]) -> Stretch:
    """A frontier's stretch begins where it stood when the hour began."""
    if stretch.kind != FRONTIER or stretch.query not in frontiers:
        return stretch
    begun = min(frontiers[stretch.query], stretch.until_id or 0)
    return replace(stretch, since_id=begun - 1)


def _place(stretch: Stretch) -> tuple[Any, ...]:
    since_id = -1 if stretch.since_id is None else stretch.since_id
    return (stretch.query, _KINDS.index(stretch.kind), since_id, stretch.until_id or 0, stretch.rule or "")


def _row(stretch: Stretch, *, is_closed: bool) -> dict[str, Any]:
    since_id, until_id = stretch.since_id, stretch.until_id
    return {
        "query": stretch.query,
        "kind": stretch.kind,
        "since_id": since_id,
        "until_id": until_id,
        "starts_at": None if since_id is None else snowflake.time_of(since_id + 1),
        "ends_at": None if until_id is None else snowflake.time_of(until_id),
        "rule": stretch.rule,
        "reason": stretch.reason,
        "is_closed": is_closed,
    }
