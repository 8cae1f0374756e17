"""Setting a lost microbatch aside: what it had covered goes back to todo, durably, before it moves and a later one ships.

What it covered is known without reading it: the state before it against the state that the next one was opened with.
The `plan` records carry a name made of the microbatch's, which the state remembers, so a crash before the file has moved
does not plan it a second time.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from ingester.journal import Journal
from ingester.ports import Clock
from ingester.spool import Lost, Spool
from ingester.telemetry import Telemetry
from ingester.windows import cut
from schemas.keys import MicrobatchName
from schemas.records import Interval, RawRecord
from schemas.state import QUARANTINE, State, covered_between


class Quarantine:
    """Where damaged microbatches go."""

    def __init__(self, spool: Spool, journal: Journal, clock: Clock, telemetry: Telemetry) -> None:
        self._spool = spool
        self._journal = journal
        self._clock = clock
        self._telemetry = telemetry

    async def set_aside(self, name: MicrobatchName, reason: str) -> None:
        """Give back what is lost with a sealed file, and move it, with those damaged right behind it.

        Doing it again after a crash goes on where it stopped. Raises SpoolFull (call it again) or SpoolBroken.
        """
        opened = self._journal.next_checkpoint  # before the spool is looked at: what is sealed meanwhile is found there
        lost = await asyncio.to_thread(self._spool.lost_with, name)
        notes = [reason]
        await self._journal.append_decided(lambda: self._given_back(lost, lost.behind or opened, notes))
        for damaged in reversed(lost.names):  # the one that named the plans comes last: a crash in between finds it
            await asyncio.to_thread(self._spool.set_aside, damaged, "; ".join(notes))
            self._telemetry.quarantined(str(damaged), "; ".join(notes))

    def _given_back(self, lost: Lost, behind: State, notes: list[str]) -> Iterable[RawRecord]:
        """The records that give back what was covered. What a person should know goes to the notes."""
        name = lost.names[0]
        here = {one.sequence for one in (*self._spool.waiting(), *self._spool.names("quarantine"))}
        if not here.issuperset(range(name.sequence, self._journal.next_sequence)):
            notes.append("nothing is asked again: the state was taken from S3 since, where this file never was")
            return
        if lost.before is None:
            notes.append("what it covered is not known: nothing before it is left to compare with")
            return
        answered = [order for order in behind.orders if order not in lost.before.orders]
        if orders := [order for order in answered if not order.startswith(QUARANTINE)]:
            notes.append(f"orders carried out in it, give them again if they matter: {', '.join(orders)}")
        for query, intervals in covered_between(lost.before, behind).items():
            order = f"{QUARANTINE}-{name}-{query}"
            if order not in self._journal.state.orders:
                yield from self._asked_again(order, query, intervals)

    def _asked_again(self, order: str, query: str, intervals: list[Interval]) -> Iterable[RawRecord]:
        state, now = self._journal.state.queries[query], self._clock.now()
        if state.rule is not None:
            apart = _named_apart(_slices(intervals), {interval.key for interval in state.todo})
            yield {
                "kind": "plan",
                "at": now,
                "query": query,
                "rule": apart[0].rule,
                "reason": QUARANTINE,
                "order": order,
                "intervals": [interval.to_record() for interval in apart],
            }
            self._telemetry.planned(query, len(apart), QUARANTINE)
            return
        for interval in intervals:
            yield {
                "kind": "gap",
                "at": now,
                "query": query,
                "rule": interval.rule,
                "reason": "query_removed",
                "since_id": interval.since_id,
                "until_id": interval.until_id,
            }
            self._telemetry.gap_recorded(query, "query_removed", str(interval))


def _slices(intervals: Iterable[Interval]) -> Iterable[Interval]:
    for interval in intervals:
        for since_id, until_id in cut(interval.since_id, interval.until_id):
            yield replace(interval, since_id=since_id, until_id=until_id)


def _named_apart(intervals: Iterable[Interval], taken: set[tuple[int, int]]) -> list[Interval]:
    """Bounds are the name of an interval in todo: one whose name is taken begins an id lower, which costs nothing."""
    apart = []
    for interval in intervals:
        while interval.key in taken:
            interval = replace(interval, since_id=interval.since_id - 1)  # noqa: PLW2901
        taken.add(interval.key)
        apart.append(interval)
    return apart
