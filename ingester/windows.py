"""Which intervals a query plans: the live window, backlog in slices, re-reads, and the gap at the end of X's reach.

Deciding only: what is decided is made durable through the journal, and the state follows from there.
"""

from dataclasses import replace
from datetime import datetime, timedelta

from ingester.journal import Journal
from ingester.ports import Clock
from ingester.telemetry import Telemetry
from ingester.x_time import XTime
from schemas import snowflake
from schemas.records import Interval
from schemas.settings import Query
from schemas.state import GIVEN_UP, ON_TOP, QueryState

INDEX_LAG = timedelta(seconds=12)
"""X answers up to 10 s before now (recorded: end_time defaults to now - 10 s); two seconds are for clocks."""
LONGEST_WINDOW = timedelta(hours=1)
"""Longer stretches are cut into slices, so that live polls are never behind a long window."""
REACH = timedelta(days=7)
"""How far back recent search answers; older bounds are a 400."""
REACH_MARGIN = timedelta(minutes=1)
"""X rounds its bound to the minute, and it moves while we ask: nothing older than its reach less this is asked for."""
CLIP_MARGIN = timedelta(minutes=3)
"""What must be clipped is clipped this much inside X's reach, so that a slow backlog leaves one gap in two minutes."""


class Windows:
    """The plans of one query."""

    def __init__(self, query: Query, journal: Journal, x_time: XTime, clock: Clock, telemetry: Telemetry) -> None:
        self.query = query
        self._journal = journal
        self._x_time = x_time
        self._clock = clock
        self._telemetry = telemetry
        self._reread_at: datetime | None = None

    @property
    def state(self) -> QueryState:
        """Where the query is; only after `begin`."""
        return self._journal.state.queries[self.query.name]

    async def begin(self) -> None:
        """A query that is new starts `first_poll_hours` back; a changed rule applies from the frontier."""
        known = self._journal.state.queries.get(self.query.name)
        if known is not None and known.rule == self.query.rule:
            return
        start = None
        if known is None:
            back = max(timedelta(hours=self.query.first_poll_hours), INDEX_LAG)
            start = snowflake.first_id_at(self._x_time.now() - min(back, REACH - 2 * CLIP_MARGIN))
        await self._journal.append(
            {
                "kind": "rule",
                "at": self._clock.now(),
                "query": self.query.name,
                "rule": self.query.rule,
                "frontier_id": start,
            }
        )
        self._telemetry.rule_changed(self.query.name, self.query.rule)

    async def live(self) -> Interval | None:
        """The window from the frontier to X's now; when it is long, older slices become todo first."""
        until_id = snowflake.first_id_at(self._x_time.now() - INDEX_LAG)
        frontier = self.state.frontier_id
        if until_id <= frontier:
            return None
        slices = cut(frontier - 1, until_id)
        overlap = timedelta(seconds=self.query.overlap_seconds)
        lowest = max(self._lowest(), snowflake.shift(slices[0][0], -overlap))
        slices[0] = (min(lowest, slices[0][0]), slices[0][1])  # only the overlap may be cut off without a word
        windows = [
            Interval(since, until, self.query.rule, "live" if until == until_id else "backlog")
            for since, until in slices
        ]
        if len(windows) > 1:
            await self._plan("backlog", windows, frontier_id=until_id)
        return windows[-1]

    async def reread(self) -> None:
        """At every full hour by X's clock, the last `reread_minutes` once more, for posts that X shows very late."""
        if not self.query.reread_minutes:
            return
        now = self._x_time.now()
        due, next_hour = self._reread_at, now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
        self._reread_at = next_hour
        if due is None or now < due or any(interval.reason == "reread" for interval in self.state.todo):
            return
        since = max(self._lowest(), snowflake.first_id_at(now - timedelta(minutes=self.query.reread_minutes)))
        if since < self.state.frontier_id - 1:
            slices = cut(since, self.state.frontier_id)
            await self._plan("reread", [Interval(*bounds, self.query.rule, "reread") for bounds in slices])

    async def give_up_what_is_out_of_reach(self) -> None:
        """X forgets after seven days: what can no longer be asked becomes a gap, before every request."""
        too_old, clip = self._reach_id(REACH_MARGIN), self._reach_id(CLIP_MARGIN)
        state = self.state
        lost = [interval for interval in state.todo if interval.since_id < too_old]
        if state.frontier_id <= too_old:
            lost.append(Interval(state.frontier_id - 1, clip + 1, self.query.rule, "live"))
        for interval in lost:
            part = replace(interval, resume_below=min(interval.upper, clip + 1))
            await self.give_up(part, "out_of_reach")

    async def give_up(self, interval: Interval, reason: str) -> None:
        """What is missing of the interval will not be asked for."""
        await give_up(self.query.name, interval, reason, self._journal, self._clock, self._telemetry)

    async def _plan(self, reason: str, intervals: list[Interval], frontier_id: int | None = None) -> None:
        await self._journal.append(
            {
                "kind": "plan",
                "at": self._clock.now(),
                "query": self.query.name,
                "rule": self.query.rule,
                "reason": reason,
                "frontier_id": frontier_id,
                "intervals": [interval.to_record() for interval in intervals],
            }
        )
        self._telemetry.planned(self.query.name, len(intervals), reason)

    def _lowest(self) -> int:
        """The lowest since_id for what is read a second time: where the query began, or X's reach."""
        return max(self.state.start_id - 1, self._reach_id(REACH_MARGIN))

    def _reach_id(self, margin: timedelta) -> int:
        """The lowest since_id that X answers, with a margin."""
        return snowflake.first_id_at(self._x_time.now() - REACH + margin)


async def give_up(
    query: str, interval: Interval, reason: str, journal: Journal, clock: Clock, telemetry: Telemetry
) -> None:
    """What is missing of the interval will not be asked for. That is a gap, unless it was asked on top of the regular
    collection: then what was covered stays covered.
    """
    told = reason if interval.reason not in ON_TOP else f"{interval.reason}{GIVEN_UP}"
    await journal.append(
        {
            "kind": "gap",
            "at": clock.now(),
            "query": query,
            "rule": interval.rule,
            "reason": told,
            "since_id": interval.since_id,
            "until_id": interval.upper,
        }
    )
    telemetry.gap_recorded(query, told, str(interval))


def cut(since_id: int, until_id: int) -> list[tuple[int, int]]:
    """Slices of at most LONGEST_WINDOW from `since_id` up, as exclusive bounds that leave no id out."""
    slices = []
    while (upper := snowflake.shift(since_id, LONGEST_WINDOW)) + 1 < until_id:
        slices.append((since_id, upper + 1))
        since_id = upper
    return [*slices, (since_id, until_id)]
