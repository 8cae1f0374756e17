"""One query: decide the next step, ask X for one page, make it durable. One step is one request."""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from ingester.answers import Meaning, Verdict, judge
from ingester.errors import Stopping, Transient
from ingester.journal import Journal
from ingester.model import SEARCH, Answer, Bill, FieldSet, Interval, PageFacts, RawRecord, SearchRequest
from ingester.pacing import BACKLOG, LIVE, Gate, Prices, ReadToday, date_of
from ingester.ports import Clock, Source
from ingester.retry import Backoff
from ingester.state import QueryState
from ingester.telemetry import Telemetry
from schemas import snowflake
from schemas.settings import Query

INDEX_LAG = timedelta(seconds=12)
"""X answers up to 10 s before now (recorded: end_time defaults to now - 10 s); two seconds are for clocks."""
INDEX_REACHES = timedelta(seconds=9)
"""A window that ends later than this before an answer's Date was not wholly in X's index: 10 s, less Date's rounding."""
LONGEST_WINDOW = timedelta(hours=1)
"""Longer stretches are cut into slices, so that live polls are never behind a long window."""
REACH = timedelta(days=7)
"""How far back recent search answers; older bounds are a 400."""
REACH_MARGIN = timedelta(minutes=1)
"""X rounds its bound to the minute, and it moves while we ask: nothing older than its reach less this is asked for."""
CLIP_MARGIN = timedelta(minutes=3)
"""What must be clipped is clipped this much inside X's reach, so that a slow backlog leaves one gap in two minutes."""
MOST_IDLE_PAGES = 20
"""Pages in a row without one new post, with X saying each time that there is more."""

_KEPT_HEADERS = ("date", "content-type", "x-request-id", "x-transaction-id", "x-response-time")


@dataclass(frozen=True, slots=True)
class Sleep:
    """Nothing to do for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask for the next page of an interval."""

    interval: Interval
    priority: int


@dataclass(frozen=True, slots=True)
class Chain:
    """Pages of one interval followed by token. Lost with the process: then the interval goes on by its bounds."""

    until_id: int
    next_token: str
    next_index: int
    max_results: int
    idle: int
    """Pages in a row that brought nothing new."""


class Poller:
    """Polls one query for ever: live windows on time, what is left in todo between them."""

    def __init__(
        self,
        query: Query,
        *,
        source: Source,
        journal: Journal,
        gate: Gate,
        clock: Clock,
        telemetry: Telemetry,
        fields: FieldSet,
        prices: Prices,
        read_today: ReadToday,
        max_results: int,
        stop: asyncio.Event,
        backoff: Backoff | None = None,
    ) -> None:
        self.query = query
        self.last_page_at: datetime | None = None
        self.last_problem: str | None = None
        self._source = source
        self._journal = journal
        self._gate = gate
        self._clock = clock
        self._telemetry = telemetry
        self._fields = fields
        self._prices = prices
        self._read_today = read_today
        self._max_results = max_results
        self._stop = stop
        self._backoff = backoff or Backoff(first_seconds=1.0, cap_seconds=60.0)
        self._chains: dict[tuple[int, int], Chain] = {}
        self._next_poll = 0.0

    async def run(self) -> None:
        """Step after step until the service stops. Raises SpoolBroken."""
        if not await self._x_time_is_known():
            return
        await self._begin()
        try:
            while not self._stop.is_set():
                match await self._next_step():
                    case Sleep(seconds):
                        await self._sleep(seconds)
                    case Ask(interval, priority):
                        await self._sleep(await self._ask(interval, priority))
        except Stopping:
            return

    async def _x_time_is_known(self) -> bool:
        """Wait until X has told its time; False when the service stops before."""
        known = asyncio.ensure_future(self._gate.x_time.known.wait())
        stop = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({known, stop}, return_when=asyncio.FIRST_COMPLETED)
        known.cancel()
        stop.cancel()
        return self._gate.x_time.known.is_set()

    # Deciding.

    async def _begin(self) -> None:
        """A query that is new starts `first_poll_hours` back; a changed rule applies from the frontier."""
        known = self._journal.state.queries.get(self.query.name)
        if known is not None and known.rule == self.query.rule:
            return
        start = None
        if known is None:
            back = max(timedelta(hours=self.query.first_poll_hours), INDEX_LAG)
            start = snowflake.first_id_at(self._gate.x_time.now() - min(back, REACH - 2 * CLIP_MARGIN))
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

    async def _next_step(self) -> Sleep | Ask:
        await self._tell_what_is_out_of_reach()
        if self._clock.monotonic() >= self._next_poll:
            self._next_poll = self._after(self._next_poll)
            if (live := await self._plan_live()) is not None:
                return Ask(live, LIVE)
        unfinished = self._state.todo
        for interval in unfinished:
            if interval.reason == "live":
                return Ask(interval, LIVE)
        if unfinished:
            return Ask(unfinished[0], BACKLOG)
        return Sleep(self._next_poll - self._clock.monotonic())

    def _after(self, due: float) -> float:
        """When the next live poll is due: on the beat, unless that is past already."""
        every, now = self.query.poll_every_seconds, self._clock.monotonic()
        return due + every if due + every > now else now + every

    async def _plan_live(self) -> Interval | None:
        """The window from the frontier to X's now; when it is long, older slices become todo first."""
        until_id = snowflake.first_id_at(self._gate.x_time.now() - INDEX_LAG)
        frontier = self._state.frontier_id
        if until_id <= frontier:
            return None
        slices = _cut(frontier, until_id)
        overlap = timedelta(seconds=self.query.overlap_seconds)
        lowest = max(self._state.start_id, self._reach_id(REACH_MARGIN), snowflake.shift(slices[0][0], -overlap))
        slices[0] = (min(lowest, slices[0][0]), slices[0][1])  # only the overlap may be cut off without a word
        windows = [
            Interval(since, until, self.query.rule, "live" if until == until_id else "backlog")
            for since, until in slices
        ]
        if len(windows) > 1:
            await self._journal.append(
                {
                    "kind": "plan",
                    "at": self._clock.now(),
                    "query": self.query.name,
                    "rule": self.query.rule,
                    "reason": "backlog",
                    "frontier_id": until_id,
                    "intervals": [window.to_record() for window in windows],
                }
            )
            self._telemetry.planned(self.query.name, len(windows), "backlog")
        return windows[-1]

    async def _tell_what_is_out_of_reach(self) -> None:
        """X forgets after seven days: what can no longer be asked becomes a gap, before every request."""
        too_old, clip = self._reach_id(REACH_MARGIN), self._reach_id(CLIP_MARGIN)
        state = self._state
        lost = [interval for interval in state.todo if interval.since_id < too_old]
        if state.frontier_id <= too_old:
            lost.append(Interval(state.frontier_id - 1, clip + 1, self.query.rule, "live"))
        for interval in lost:
            until_id = min(interval.upper, clip + 1)
            await self._journal.append(
                {
                    "kind": "gap",
                    "at": self._clock.now(),
                    "query": self.query.name,
                    "rule": interval.rule,
                    "reason": "out_of_reach",
                    "since_id": interval.since_id,
                    "until_id": until_id,
                }
            )
            self._telemetry.gap_recorded(self.query.name, "out_of_reach", str(replace(interval, resume_below=until_id)))

    def _reach_id(self, margin: timedelta) -> int:
        """The lowest since_id that X answers, with a margin."""
        return snowflake.first_id_at(self._gate.x_time.now() - REACH + margin)

    @property
    def _state(self) -> QueryState:
        return self._journal.state.queries[self.query.name]

    # Asking.

    async def _ask(self, interval: Interval, priority: int) -> float:
        """Ask for one page and keep it. Returns the seconds to wait before the next step."""
        chain = self._chains.get(interval.key)
        patience = None if priority == LIVE else max(0.0, self._next_poll - self._clock.monotonic())
        turn = await self._gate.turn(priority, chain.max_results if chain else self._max_results, patience)
        if turn is None:
            return 0.0
        if chain and turn.max_results < chain.max_results:  # the budget nears its end: smaller pages, by bounds
            del self._chains[interval.key]
            chain = None
        request = SearchRequest(
            query=self.query.name,
            rule=interval.rule,
            since_id=interval.since_id,
            until_id=chain.until_id if chain else interval.upper,
            next_token=chain.next_token if chain else None,
            max_results=chain.max_results if chain else turn.max_results,
            fields=self._fields,
        )
        try:
            wait = await self._ask_once(interval, request)
        finally:
            self._gate.give_back(turn)
        if wait is None:
            return 0.0
        if self._state.find(interval.key) is None:  # a live window that was not answered at all is still due
            self._next_poll = self._clock.monotonic()
        return wait

    async def _ask_once(self, interval: Interval, request: SearchRequest) -> float | None:
        """One request. None when its page was kept, else the seconds to wait before asking again."""
        try:
            answer = await self._source.search(request)
        except Transient as error:
            wait = self._backoff.next_wait()
            self.last_problem = str(error)
            self._telemetry.request_failed(self.query.name, str(error), wait)
            return wait
        verdict = judge(answer)
        self._gate.learn(answer, verdict)
        seconds = (answer.received_at - answer.requested_at).total_seconds()
        self._telemetry.answered(self.query.name, verdict.meaning.value, max(0.0, seconds))
        if verdict.page is not None:
            return await self._keep(interval, request, answer, verdict.page)
        return self._after_refusal(interval, verdict)

    def _after_refusal(self, interval: Interval, verdict: Verdict) -> float:
        """No page came. What holds for all queries waits at the gate; here is what is this query's own."""
        self.last_problem = verdict.detail
        if verdict.meaning is Meaning.BAD_REQUEST and self._chains.pop(interval.key, None) is not None:
            return 0.0  # the token may have expired: the interval goes on by its bounds
        if verdict.meaning in {Meaning.BAD_REQUEST, Meaning.TROUBLE}:
            wait = self._backoff.next_wait() * (5 if verdict.meaning is Meaning.BAD_REQUEST else 1)
            self._telemetry.request_refused(self.query.name, verdict.detail, wait)
            return wait
        return 0.0

    async def _keep(self, interval: Interval, request: SearchRequest, answer: Answer, page: PageFacts) -> float | None:
        """Make the page durable; the state follows from the record. None, or the seconds to wait after a problem."""
        chain = self._chains.get(interval.key)
        index = chain.next_index if chain else 0
        problem = page.problem or _ahead_of_index(interval, answer) or _no_progress(interval, page, chain)
        bill = self._book(page, answer.received_at, request.max_results)
        is_last = problem is None and page.next_token is None
        record = _record(interval, answer, page, bill, index)
        record["is_last"], record["problem"] = is_last, problem
        record["at"], record["query"] = self._clock.now(), self.query.name
        await self._journal.append(record)
        self._telemetry.page_stored(
            self.query.name,
            posts=page.result_count,
            size=len(answer.body),
            microusd=bill.microusd,
            interval=str(interval),
            last=is_last,
        )
        frontier = snowflake.time_of(self._state.frontier_id)
        self._telemetry.query_progressed(self.query.name, frontier, len(self._state.todo))
        self._chains.pop(interval.key, None)
        if problem is not None:
            wait = self._backoff.next_wait()
            self.last_problem = problem
            self._telemetry.page_problem(self.query.name, problem, wait)
            return wait
        news = _brings_news(interval, page)
        if news or is_last:  # pages that only promise more do not end a back-off
            self._backoff.succeeded()
        self.last_problem, self.last_page_at = None, answer.received_at
        if page.next_token is not None:
            idle = 0 if news else (chain.idle if chain else 0) + 1
            self._chains[interval.key] = Chain(
                request.until_id, page.next_token, next_index=index + 1, max_results=request.max_results, idle=idle
            )
        return None

    def _book(self, page: PageFacts, at: datetime, asked: int) -> Bill:
        if page.problem is not None:  # nobody can count what came; X may have
            return Bill(microusd=self._prices.worst_case(asked), posts=asked)
        return self._prices.bill(page, self._read_today.repeats(page, at))

    async def _sleep(self, seconds: float) -> None:
        """Wait, or wake when the service stops."""
        if seconds <= 0:
            return
        sleep = asyncio.ensure_future(self._clock.sleep(seconds))
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({sleep, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            stop.cancel()


def _cut(frontier: int, until_id: int) -> list[tuple[int, int]]:
    """Slices of at most LONGEST_WINDOW from the frontier up, as exclusive bounds that leave no id out."""
    slices, since = [], frontier - 1
    while (upper := snowflake.shift(since, LONGEST_WINDOW)) + 1 < until_id:
        slices.append((since, upper + 1))
        since = upper
    return [*slices, (since, until_id)]


def _ahead_of_index(interval: Interval, answer: Answer) -> str | None:
    """Why the page cannot prove that its window is covered, if it ends where X's index had not arrived yet."""
    date = date_of(answer)
    if date is None or snowflake.time_of(interval.until_id) <= date - INDEX_REACHES:
        return None
    return "the window ends after what X had indexed by its own clock"


def _brings_news(interval: Interval, page: PageFacts) -> bool:
    return any(interval.since_id < number < interval.upper for number in page.post_ids)


def _no_progress(interval: Interval, page: PageFacts, chain: Chain | None) -> str | None:
    """Why following this page would go round in circles, if it would."""
    if page.next_token is None or _brings_news(interval, page):
        return None
    if page.post_ids:
        return "X says there is more, but the page has nothing below what is stored already"
    if chain is not None and page.next_token == chain.next_token:
        return "X repeats a next_token"
    if chain is not None and chain.idle >= MOST_IDLE_PAGES:
        return f"{MOST_IDLE_PAGES} pages in a row without a post, and X says there is more"
    return None


def _record(interval: Interval, answer: Answer, page: PageFacts, bill: Bill, index: int) -> RawRecord:
    inside = [number for number in page.post_ids if interval.since_id < number < interval.until_id]
    return {
        "kind": "page",
        "rule": interval.rule,
        "reason": interval.reason,
        "since_id": interval.since_id,
        "until_id": interval.until_id,
        "asked_below": interval.upper,
        "endpoint": SEARCH,
        "request": json.dumps(dict(answer.parameters), ensure_ascii=False),
        "page_index": index,
        "requested_at": answer.requested_at,
        "received_at": answer.received_at,
        "status": answer.status,
        "headers": json.dumps(_kept(answer.headers)),
        "newest_id": max(inside, default=None),
        "oldest_id": min(inside, default=None),
        "result_count": page.result_count,
        "next_token": page.next_token,
        "cost_microusd": bill.microusd,
        "posts_billed": bill.posts,
        "posts_repeated": bill.repeats,
        "users_billed": bill.users,
        "body_sha256": hashlib.sha256(answer.body).hexdigest(),
        "body": answer.body,
    }


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in headers.items() if k in _KEPT_HEADERS or k.startswith("x-rate-limit-")}
