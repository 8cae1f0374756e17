"""Settings that change between two starts: queries come, go, come back and get other names; no stretch counts as covered
that was never asked.
"""

import pytest

from ingester.windows import INDEX_LAG
from schemas import snowflake
from tests.ingester.simulation import MemoryStore, SimulatedX, VirtualClock, live, pages, settings, stored_ids

HOUR, DAY = 3600.0, 86_400.0


class Collection:
    """One spool through lives with other queries; the queries are told by name and rule."""

    def __init__(self, directory):
        self.directory = directory
        self.clock = VirtualClock()
        self.x = SimulatedX(self.clock, tweets_per_second=0.1)
        self.store = MemoryStore()

    async def life(self, seconds=120, *, crash=False, **rules):
        query = [
            {"name": name, "rule": rule, "poll_every_seconds": 30, "first_poll_hours": 0, "overlap_seconds": 0}
            for name, rule in rules.items()
        ]
        configured = settings(self.directory, query=query)
        self.run = await live(configured, self.clock, self.x, self.store, seconds=seconds, crash=crash)

    @property
    def states(self):
        return self.run.service._work.journal.state.queries

    def records(self, name, kind):
        return [record for record in self.store.records() if record["kind"] == kind and record["query"] == name]

    def stored(self, name):
        return set(stored_ids(self.records(name, "page")))

    def untold_holes(self, name):
        """Ids below the frontier that are neither stored nor in todo nor in a recorded gap."""
        state = self.states[name]
        holes = set(self.x.existing(state.start_id, state.frontier_id)) - self.stored(name)
        told = [(gap["since_id"], gap["until_id"]) for gap in self.records(name, "gap")]
        told += [(interval.since_id, interval.upper) for interval in state.todo]
        return {number for number in holes if not any(since < number < until for since, until in told)}


@pytest.fixture
def collection(tmp_path):
    return Collection(tmp_path)


async def test_a_query_that_comes_back_goes_on_from_its_frontier_and_the_stretch_between_is_asked(collection):
    await collection.life(one="python", two="rust")
    await collection.life(two="rust")
    frontier = collection.states["one"].frontier_id
    collection.clock.seconds += 3 * HOUR
    await collection.life(two="rust")
    assert collection.states["one"].frontier_id == frontier, "it is kept"
    await collection.life(one="python", two="rust", seconds=300)
    state = collection.states["one"]
    assert not state.todo
    assert collection.stored("one") == set(collection.x.existing(state.start_id, state.frontier_id))
    assert collection.records("one", "gap") == []


async def test_a_query_that_comes_back_with_another_rule_asks_the_stretch_between_with_that(collection):
    await collection.life(one="python", two="rust")
    await collection.life(two="rust")
    frontier = collection.states["one"].frontier_id
    collection.clock.seconds += 3 * HOUR
    await collection.life(one="python lang:en", two="rust", seconds=300)
    assert not collection.untold_holes("one")
    later = [request for request in collection.x.requests if request.query == "one" and request.until_id > frontier + 1]
    assert {request.rule for request in later} == {"python lang:en"}


async def test_a_query_that_comes_back_after_ten_days_tells_what_x_has_forgotten(collection):
    collection.x.tweets_per_second = 0.01
    await collection.life(one="python", two="rust")
    await collection.life(two="rust")
    frontier = collection.states["one"].frontier_id
    collection.clock.seconds += 10 * DAY
    await collection.life(one="python", two="rust", seconds=1200)
    gaps = collection.records("one", "gap")
    assert [gap["reason"] for gap in gaps] == ["out_of_reach"]
    assert gaps[0]["since_id"] < frontier
    assert not collection.untold_holes("one")
    assert not collection.states["one"].todo


async def test_what_a_query_had_to_do_when_it_was_removed_stays_told_as_a_gap_when_it_comes_back(collection):
    await collection.life(one="python", two="rust")
    collection.clock.seconds += 3 * HOUR
    await collection.life(one="python", two="rust", seconds=1.3, crash=True)
    assert collection.states["one"].todo
    await collection.life(two="rust")
    await collection.life(one="python", two="rust")
    assert {gap["reason"] for gap in collection.records("one", "gap")} == {"query_removed"}
    assert not collection.untold_holes("one")


async def test_a_query_that_comes_back_after_a_month_begins_anew(collection):
    await collection.life(one="python", two="rust")
    await collection.life(two="rust")
    collection.clock.seconds += 33 * DAY
    asked = len(collection.x.requests)
    back = snowflake.first_id_at(collection.clock.true_now())
    await collection.life(one="python", two="rust")
    state = collection.states["one"]
    assert snowflake.time_of(state.start_id) > snowflake.time_of(back) - 2 * INDEX_LAG, "first_poll_hours is 0"
    assert all(
        request.since_id >= state.start_id - 1 for request in collection.x.requests[asked:] if request.query == "one"
    )
    assert not collection.untold_holes("one")
    assert collection.records("one", "gap") == [], "nothing of it was promised"


async def test_a_removed_query_is_forgotten_after_a_month_and_not_before(collection):
    await collection.life(one="python", two="rust")
    await collection.life(two="rust")
    collection.clock.seconds += 31 * DAY
    await collection.life(two="rust")
    assert "one" in collection.states
    collection.clock.seconds += 2 * DAY
    await collection.life(two="rust")
    assert "one" not in collection.states
    await collection.life(two="rust")
    assert "one" not in collection.states, "the checkpoint does not know it either"
    assert collection.states["two"].rule == "rust"


async def test_a_new_name_is_a_new_query_and_the_old_one_is_kept(collection):
    await collection.life(old="python")
    frontier = collection.states["old"].frontier_id
    collection.clock.seconds += HOUR
    await collection.life(new="python")
    assert collection.states["new"].start_id > frontier, "it begins first_poll_hours back, as any new one"
    assert (collection.states["old"].rule, collection.states["old"].frontier_id) == (None, frontier)
    assert not collection.untold_holes("new")


async def test_a_query_that_is_added_does_not_move_the_others(collection):
    await collection.life(one="python")
    collection.clock.seconds += HOUR
    await collection.life(one="python", two="rust", three="go", seconds=200)
    for name in ("one", "two", "three"):
        assert not collection.untold_holes(name)
        assert not collection.states[name].todo
    served = [len(pages(collection.records(name, "page"))) for name in ("one", "two", "three")]
    assert served[0] > served[1] == served[2]


async def test_a_rule_that_changes_and_changes_back_leaves_no_stretch_out(collection):
    for rule in ("python", "python lang:en", "python"):
        await collection.life(one=rule)
        collection.clock.seconds += 2 * HOUR
    await collection.life(one="python", seconds=300)
    assert not collection.untold_holes("one")
    assert [record["rule"] for record in collection.records("one", "rule")] == ["python", "python lang:en", "python"]
