"""One query: decide the next step, ask X for one page, make it durable. One step is one request."""

import asyncio
import hashlib
import json
import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from ingester.answers import Meaning, Verdict, judge
from ingester.budget import LostAnswers, OwnCaps, Prices, ReadToday, negated, spend
from ingester.chain import Chain, Following, follow
from ingester.errors import AnswerLost, Stopping, Transient
from ingester.journal import Journal
from ingester.model import Answer, Bill, FieldSet, PageFacts, SearchRequest
from ingester.pacing import BACKLOG, LIVE, Gate
from ingester.ports import Clock, Source
from ingester.pulse import FOR_EVER, Beat, unheard
from ingester.retry import Backoff
from ingester.telemetry import Telemetry
from ingester.windows import Windows
from ingester.x_time import date_of
from schemas import snowflake
from schemas.records import SEARCH, Interval, RawRecord
from schemas.settings import Query

INDEX_REACHES = timedelta(seconds=9)
"""A window that ends later than this before an answer's Date was not wholly in X's index: 10 s, less Date's rounding."""
FIRST_REST, LONGEST_REST = 2.0, 300.0
"""Seconds for which an interval that X does not answer is left alone, while X answers others."""
STUCK_AFTER = 5
"""Rests in a row; then it is told, and what has a rule that is not used any more is given up."""
REFUSED_AFTER = 3
"""400s in a row, with no page in between: the rule, not a token or a bound, is what X does not take."""
LONGEST_CAP_WAIT = 60.0
"""Seconds until a query's own cap is looked at again."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Nothing to do for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask for the next page of an interval: up to `posts` of them."""

    interval: Interval
    priority: int
    posts: int


@dataclass(slots=True)
class Rest:
    """An interval that X did not answer though it answered others: not asked again before `until` (monotonic)."""

    interval: Interval
    backoff: Backoff
    until: float
    problem: str


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
        lost_answers: LostAnswers,
        max_results: int,
        stop: asyncio.Event,
        backoff: Backoff | None = None,
        beat: Beat = unheard,
    ) -> None:
        self.query = query
        self.windows = Windows(query, journal, gate.x_time, clock, telemetry)
        self.last_page_at: datetime | None = None
        self.last_page_seconds: float | None = None
        """The same by the monotonic clock: how long ago it was, whatever the wall clock did."""
        self.last_problem: str | None = None
        self._source = source
        self._journal = journal
        self._gate = gate
        self._clock = clock
        self._telemetry = telemetry
        self._fields = fields
        self._prices = prices
        self._own_caps = OwnCaps(query, prices)
        self._read_today = read_today
        self._max_results = max_results
        self._stop = stop
        self._beat = beat
        self._backoff = backoff or Backoff(first_seconds=1.0, cap_seconds=60.0)
        self._chains: dict[tuple[int, int], Chain] = {}
        self._resting: dict[tuple[int, int], Rest] = {}
        self._failed_at: dict[tuple[int, int], float] = {}
        """When no page came of an interval (monotonic)."""
        self._is_answered = False
        """Whether one came of the last request, so that X answers this query at all."""
        self._is_refused = False
        """Whether X said of the last request that it is a bad one."""
        self._lost_answers = lost_answers
        self._next_poll = 0.0

    async def run(self) -> None:
        """Step after step until the service stops. Raises SpoolBroken."""
        await self.windows.begin()
        try:
            while not self._stop.is_set():
                match await self._next_step():
                    case Sleep(seconds):
                        await self._sleep(seconds)
                    case Ask() as ask:
                        await self._sleep(await self._ask(ask))
        except Stopping:
            return

    # Deciding.

    async def _next_step(self) -> Sleep | Ask:
        await self.windows.give_up_what_is_out_of_reach()
        posts = self._posts_within_own_caps()
        if posts == 0:
            return Sleep(LONGEST_CAP_WAIT)
        await self.windows.reread()
        if self._clock.monotonic() >= self._next_poll:
            self._next_poll = self._after(self._next_poll)
            if (live := await self.windows.live()) is not None:
                return Ask(live, LIVE, posts)
        unfinished = self._not_resting()
        for interval in unfinished:
            if interval.reason == "live":
                return Ask(interval, LIVE, posts)
        if unfinished:
            return Ask(unfinished[0], BACKLOG, posts)
        return Sleep(min([self._next_poll, *(rest.until for rest in self._resting.values())]) - self._clock.monotonic())

    def _not_resting(self) -> list[Interval]:
        """What is to be asked, oldest first; what failed comes after all that did not, and what failed last comes last."""
        todo, now = self.windows.state.todo, self._clock.monotonic()
        if not self._failed_at:
            return list(todo)
        keys = {interval.key for interval in todo}
        self._failed_at = {key: at for key, at in self._failed_at.items() if key in keys}
        self._resting = {key: rest for key, rest in self._resting.items() if key in keys}
        due = [each for each in todo if each.key not in self._resting or self._resting[each.key].until <= now]
        return sorted(due, key=lambda each: self._failed_at.get(each.key, -math.inf))

    @property
    def refused(self) -> str | None:
        """What X says against what is asked, again and again, when no page comes in between."""
        return self.last_problem if self._is_refused and self._backoff.failures >= REFUSED_AFTER else None

    @property
    def stuck(self) -> Rest | None:
        """The first interval that X does not answer, again and again, while it answers others."""
        return next((rest for rest in self._resting.values() if rest.backoff.failures >= STUCK_AFTER), None)

    def _posts_within_own_caps(self) -> int:
        """How many posts a page may have by the query's own caps; 0 is told, once."""
        allowed = self._own_caps.page(self.windows.state.money, self._gate.x_time.now(), self._max_results)
        if allowed.cap and allowed.cap != self.last_problem:
            self._telemetry.query_paused(self.query.name, allowed.cap, allowed.reset)
        if allowed.cap:
            self.last_problem = allowed.cap
        return allowed.posts

    def _after(self, due: float) -> float:
        """When the next live poll is due: on the beat, unless that is past already."""
        every, now = self.query.poll_every_seconds, self._clock.monotonic()
        return due + every if due + every > now else now + every

    # Asking.

    async def _ask(self, ask: Ask) -> float:
        """Ask for one page and keep it. Returns the seconds to wait before the next step."""
        interval, chain = ask.interval, self._chains.get(ask.interval.key)
        patience = None if ask.priority == LIVE else max(0.0, self._next_poll - self._clock.monotonic())
        wanted = min(ask.posts, chain.max_results) if chain else ask.posts
        self._beat(FOR_EVER)  # the gate is heard itself
        turn = await self._gate.turn(ask.priority, wanted, patience)
        self._beat()
        if turn is None:
            return 0.0
        if chain and turn.max_results < chain.max_results:  # a budget nears its end: smaller pages, by bounds
            del self._chains[interval.key]
            chain = None
        request = SearchRequest(
            query=self.query.name,
            rule=interval.rule,
            since_id=interval.since_id,
            until_id=chain.until_id if chain else interval.upper,
            next_token=chain.next_token if chain else None,
            max_results=turn.max_results,
            fields=self._fields,
        )
        try:
            wait = await self._ask_once(interval, request)
        finally:
            self._gate.give_back(turn)
        was_answered, self._is_answered = self._is_answered, wait is None
        if wait is None:
            self._resting.pop(interval.key, None)
            self._failed_at.pop(interval.key, None)
            return 0.0
        self._failed_at[interval.key] = self._clock.monotonic()
        if self.windows.state.find(interval.key) is None:  # a live window that was not answered at all is still due
            self._next_poll = self._clock.monotonic()
        elif wait > 0 and was_answered:  # X answers, but not this
            await self._leave_alone(interval)
        return wait

    async def _leave_alone(self, interval: Interval) -> None:
        """Let the others go first, for longer each time. A rule that X refuses and that is no longer used never gets better."""
        rest = self._resting.get(interval.key)
        backoff = rest.backoff if rest else Backoff(FIRST_REST, LONGEST_REST)
        until = self._clock.monotonic() + backoff.next_wait()
        self._resting[interval.key] = Rest(interval, backoff, until, self.last_problem or "")
        if self._is_refused and interval.rule != self.query.rule and backoff.failures >= STUCK_AFTER:
            await self.windows.give_up(interval, "refused")

    async def _ask_once(self, interval: Interval, request: SearchRequest) -> float | None:
        """One request. None when its page was kept, else the seconds to wait before asking again."""
        try:
            answer = await self._source.search(request)
        except Transient as error:
            self._is_refused = False
            if isinstance(error, AnswerLost):
                await self._book_lost(request.max_results)
            wait = self._backoff.next_wait()
            self.last_problem = str(error)
            self._telemetry.request_failed(self.query.name, str(error), wait)
            return wait
        verdict = judge(answer)
        self._is_refused = verdict.meaning is Meaning.BAD_REQUEST
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
        chain = self._chains.pop(interval.key, None)
        problem = _ahead_of_index(interval, answer)
        found = follow(interval, page, chain, max_results=request.max_results, problem=problem)
        now = self._gate.x_time.now()  # the day and month that X bills it in, whatever this machine's clock says
        bill = self._book(page, now, request.max_results)
        record = _record(interval, answer, page, bill, found)
        record["at"], record["query"] = now, self.query.name
        record["page_index"] = chain.next_index if chain else 0
        await self._journal.append(record)
        await self._give_back_lost()
        self._telemetry.page_stored(
            self.query.name,
            posts=page.result_count,
            size=len(answer.body),
            microusd=bill.microusd,
            interval=str(interval),
            last=found.is_last,
        )
        if found.problem is not None:
            wait = self._backoff.next_wait()
            self.last_problem = found.problem
            self._telemetry.page_problem(self.query.name, found.problem, wait)
            return wait
        if found.remark is not None:
            self._telemetry.page_problem(self.query.name, found.remark, 0.0)
        if found.brings_news or found.is_last:  # pages that only promise more do not end a back-off
            self._backoff.succeeded()
        self.last_problem = None
        self.last_page_at, self.last_page_seconds = answer.received_at, self._clock.monotonic()
        if found.chain is not None:
            self._chains[interval.key] = found.chain
        return None

    def _book(self, page: PageFacts, at: datetime, asked: int) -> Bill:
        if not page.is_countable:  # X may have counted
            return Bill(microusd=self._prices.worst_case(asked), posts=asked)
        return self._prices.bill(page, self._read_today.repeats(page, at))

    async def _book_lost(self, posts: int) -> None:
        """X bills what it sent, whether it arrives or not."""
        at = self._gate.x_time.now()
        bill = Bill(self._prices.worst_case(posts), posts)
        self._lost_answers.add(self.query.name, bill, at)
        await self._journal.append(spend("unanswered", bill, at, self.query.name))

    async def _give_back_lost(self) -> None:
        """X answers again: what was in the answers that were lost comes again, is booked then, and billed once a day."""
        at = self._gate.x_time.now()
        bill = self._lost_answers.take(self.query.name, at)
        if bill.posts:
            await self._journal.append(spend("answered", negated(bill), at, self.query.name))

    async def _sleep(self, seconds: float) -> None:
        """Wait, or wake when the service stops."""
        if seconds <= 0:
            self._beat()
            return
        self._beat(seconds)
        sleep = asyncio.ensure_future(self._clock.sleep(seconds))
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({sleep, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            stop.cancel()


def _ahead_of_index(interval: Interval, answer: Answer) -> str | None:
    """Why the page cannot prove that its window is covered, if it ends where X's index had not arrived yet."""
    date = date_of(answer)
    if date is None or snowflake.time_of(interval.until_id) <= date - INDEX_REACHES:
        return None
    return "the window ends after what X had indexed by its own clock"


def _record(interval: Interval, answer: Answer, page: PageFacts, bill: Bill, found: Following) -> RawRecord:
    return {
        "kind": "page",
        "rule": interval.rule,
        "reason": interval.reason,
        "since_id": interval.since_id,
        "until_id": interval.until_id,
        "asked_below": interval.upper,
        "resume_below": found.missing_below,
        "endpoint": SEARCH,
        "request": json.dumps(dict(answer.parameters), ensure_ascii=False),
        "is_last": found.is_last,
        "problem": found.problem,
        "requested_at": answer.requested_at,
        "received_at": answer.received_at,
        "status": answer.status,
        "headers": json.dumps(answer.kept_headers),
        "newest_id": max(found.inside, default=None),
        "oldest_id": min(found.inside, default=None),
        "result_count": page.result_count,
        "next_token": page.next_token,
        "cost_microusd": bill.microusd,
        "posts_billed": bill.posts,
        "posts_repeated": bill.repeats,
        "users_billed": bill.users,
        "body_sha256": hashlib.sha256(answer.body).hexdigest(),
        "body": answer.body,
    }
