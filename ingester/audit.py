"""The counts audit: once a day X is asked how many posts each hour of every query had; the answers are raw pages.

They are the only figure about completeness that does not come from ourselves. The compaction compares.
"""

import hashlib
import json
from dataclasses import replace
from datetime import datetime, timedelta

from ingester.answers import CountsFacts, counts_facts
from ingester.aside import ask_aside
from ingester.budget import Prices
from ingester.errors import Stopping
from ingester.journal import Journal
from ingester.model import Answer, CountsRequest
from ingester.pacing import Gate
from ingester.ports import Clock, Source
from ingester.pulse import Beat, unheard
from ingester.retry import Backoff
from ingester.telemetry import Telemetry
from schemas import snowflake
from schemas.records import COUNTS, RawRecord
from schemas.settings import Query
from schemas.state import QueryState

SETTLED_AFTER = timedelta(minutes=30)
"""A day is asked for when it is over for so long: posts are indexed late and counted later."""
REACH = timedelta(days=6)
"""How far back a day is made up for; X counts seven days."""
FIRST_LOOK_SECONDS = 60.0
"""After the start: new queries have begun by then, and the first polls have the first turns."""
LOOK_AGAIN_SECONDS = 600.0
"""Between two looks."""
LONGEST_WAIT = 6 * 3600.0
"""Between two tries, when X goes on refusing: not every plan has the counts endpoint."""
MOST_PAGES = 20
"""X's specification knows pages of counts; its documents say there is only one."""


class Audit:
    """Asks for the counts of whole UTC days, of all queries."""

    def __init__(
        self,
        queries: list[Query],
        *,
        source: Source,
        journal: Journal,
        gate: Gate,
        prices: Prices,
        clock: Clock,
        telemetry: Telemetry,
        backoff: Backoff | None = None,
        beat: Beat = unheard,
    ) -> None:
        self._queries = queries
        self._source = source
        self._journal = journal
        self._gate = gate
        self._prices = prices
        self._clock = clock
        self._telemetry = telemetry
        self._beat = beat
        self._backoff = backoff or Backoff(first_seconds=2 * LOOK_AGAIN_SECONDS, cap_seconds=LONGEST_WAIT)

    async def run(self) -> None:
        """Look for days to audit, for ever. Ends when the service stops."""
        await self._gate.x_time.known.wait()
        await self._sleep(FIRST_LOOK_SECONDS)
        try:
            while True:
                due = [(query, request) for query in self._queries if (request := self._due(query)) is not None]
                answered = [await self._ask(query, request) for query, request in due]
                if all(answered):
                    self._backoff.succeeded()
                    await self._sleep(LOOK_AGAIN_SECONDS)
                else:
                    await self._sleep(self._backoff.next_wait())
        except Stopping:
            return

    async def _sleep(self, seconds: float) -> None:
        self._beat(seconds)
        await self._clock.sleep(seconds)
        self._beat()

    def _due(self, query: Query) -> CountsRequest | None:
        """The days that are over and not counted yet, in one request: X bills the request, not the hours."""
        state = self._journal.state.queries.get(query.name)
        now = self._gate.x_time.now()
        end = (now - SETTLED_AFTER).replace(hour=0, minute=0, second=0, microsecond=0)
        if state is None or state.audited_id >= snowflake.first_id_at(end):
            return None
        start = max(_begin(state), end - REACH)
        return CountsRequest(query.rule, start, end) if start < end else None

    async def _ask(self, query: Query, request: CountsRequest) -> bool:
        """Ask for all pages of it and keep them. False when one failed: all are asked again at another look."""
        for index in range(MOST_PAGES):
            facts = await self._ask_page(query, request, index)
            if facts is None or facts.problem is not None:
                return False
            if facts.next_token is None:
                return True
            request = replace(request, next_token=facts.next_token)
        return False

    async def _ask_page(self, query: Query, request: CountsRequest, index: int) -> CountsFacts | None:
        cost = self._prices.counts_request
        answer = await ask_aside(
            self._gate, self._telemetry, COUNTS, lambda: self._source.counts(request), cost=cost, beat=self._beat
        )
        if answer is None:
            return None
        facts = counts_facts(answer.body)
        record = _record(query, request, answer, facts, cost)
        record["at"], record["page_index"] = self._gate.x_time.now(), index
        await self._journal.append(record)
        self._telemetry.audited(query.name, request.start, request.end, facts.total, facts.problem)
        return facts


def _begin(state: QueryState) -> datetime:
    """The hour that the next count begins with: where the last one ended, or where the collection begins."""
    begin = snowflake.time_of(max(state.audited_id, state.start_id))
    return begin.replace(minute=0, second=0, microsecond=0)


def _record(query: Query, request: CountsRequest, answer: Answer, facts: CountsFacts, cost: int) -> RawRecord:
    return {
        "kind": "page",
        "query": query.name,
        "rule": request.rule,
        "reason": "audit",
        "since_id": snowflake.first_id_at(request.start) - 1,
        "until_id": snowflake.first_id_at(request.end),
        "endpoint": COUNTS,
        "request": json.dumps(dict(answer.parameters), ensure_ascii=False),
        "is_last": facts.problem is None and facts.next_token is None,
        "problem": facts.problem,
        "requested_at": answer.requested_at,
        "received_at": answer.received_at,
        "status": answer.status,
        "headers": json.dumps(answer.kept_headers),
        "result_count": facts.buckets,
        "next_token": facts.next_token,
        "cost_microusd": cost,
        "body_sha256": hashlib.sha256(answer.body).hexdigest(),
        "body": answer.body,
    }
