"""Orders that commands and DAGs leave under control/requests/: read, planned once, and taken away. Only this asks X for them.

An order is answered by `plan` records that carry its id; the state remembers it, so a crash before its object is deleted
does not plan it again.
"""

from ingester.errors import NeedsOperator, Transient
from ingester.journal import Journal
from ingester.ports import Clock, ObjectStore
from ingester.pulse import Beat, unheard
from ingester.retry import Backoff
from ingester.telemetry import Telemetry
from ingester.windows import LONGEST_WINDOW, REACH, cut
from ingester.x_time import XTime
from schemas import snowflake
from schemas.keys import LakeKeys
from schemas.orders import Order
from schemas.records import Interval
from schemas.settings import Query

LOOK_EVERY_SECONDS = 60.0
"""A LIST each time: 43,000 a month, which S3 bills with about a fifth of a dollar."""


class Orders:
    """Looks for orders and plans them."""

    def __init__(
        self,
        queries: list[Query],
        *,
        store: ObjectStore,
        keys: LakeKeys,
        journal: Journal,
        clock: Clock,
        telemetry: Telemetry,
        backoff: Backoff | None = None,
        x_time: XTime,
        beat: Beat = unheard,
    ) -> None:
        self._rules = {query.name: query.rule for query in queries}
        self._store = store
        self._keys = keys
        self._journal = journal
        self._clock = clock
        self._x_time = x_time
        self._telemetry = telemetry
        self._backoff = backoff or Backoff(first_seconds=5.0, cap_seconds=300.0)
        self._refused: set[str] = set()
        self._beat = beat

    async def run(self) -> None:
        """Look for ever. Ends only by cancellation."""
        while True:
            wait = LOOK_EVERY_SECONDS
            self._beat()
            try:
                for key in await self._store.list_keys(self._keys.requests):
                    self._beat()
                    await self._carry_out(key)
                self._backoff.succeeded()
            except (Transient, NeedsOperator) as error:
                wait += self._backoff.next_wait()
                self._telemetry.orders_unreachable(str(error), wait)
            self._beat(wait)
            await self._clock.sleep(wait)

    async def _carry_out(self, key: str) -> None:
        name = key.rsplit("/", 1)[-1].removesuffix(".json")
        if name in self._refused:
            return
        if name not in self._journal.state.orders:
            found = await self._store.read(key)
            if found is None:
                return
            try:
                order = Order.from_json(name, found.content)
                rule = self._rule_of(order)
                if order.query not in self._journal.state.queries:
                    return  # a query that has just been added and not begun; the next look finds it
                await self._plan(order, rule)
            except ValueError as error:
                self._refused.add(name)  # it stays where it is, for a person to see
                self._telemetry.order_refused(name, str(error))
                return
        await self._store.delete(key)

    def _rule_of(self, order: Order) -> str:
        rule = self._rules.get(order.query)
        if rule is None:
            raise ValueError(f"no query {order.query!r} in the settings; there are: {', '.join(sorted(self._rules))}")
        return rule

    async def _plan(self, order: Order, rule: str) -> None:
        """Raises ValueError when there is nothing to plan. What lies beyond X's reach is given up when its turn comes."""
        state = self._journal.state.queries[order.query]
        until_id = min(snowflake.first_id_at(order.until), state.frontier_id)
        since_id = snowflake.first_id_at(order.since) - 1
        slices = self._slices(since_id, until_id) if since_id + 1 < until_id else []
        if not slices:
            raise ValueError("it lies in the future; polling will collect it")
        await self._journal.append(
            {
                "kind": "plan",
                "at": self._clock.now(),
                "query": order.query,
                "rule": rule,
                "reason": "backfill",
                "order": order.name,
                "intervals": [Interval(*bounds, rule, "backfill").to_record() for bounds in slices],
            }
        )
        self._telemetry.order_taken(order.name, order.query, len(slices))

    def _slices(self, since_id: int, until_id: int) -> list[tuple[int, int]]:
        """What X has surely forgotten is one slice, however long it is: it is given up when its turn comes."""
        forgotten = snowflake.first_id_at(self._x_time.now() - REACH - LONGEST_WINDOW)
        if since_id >= forgotten:
            return cut(since_id, until_id)
        if until_id <= forgotten + 1:
            return [(since_id, until_id)]
        return [(since_id, forgotten + 1), *cut(forgotten, until_id)]
