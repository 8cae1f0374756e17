"""This machine's clock is wrong, jumps, or stands still with the machine: no hole, no crash, no hot loop, no budget that
never resets. X's clock decides windows and money; the wall clock only names hours.
"""

from datetime import UTC, datetime, timedelta

import pytest

from ingester.errors import NeedsOperator, Transient
from schemas import snowflake
from tests.ingester.simulation import (
    START,
    MemoryStore,
    Run,
    SimulatedX,
    VirtualClock,
    live,
    pages,
    settings,
    stored_ids,
)

JUMPS = {
    "an hour ahead": timedelta(hours=1),
    "two hours back": timedelta(hours=-2),
    "eight days ahead": timedelta(days=8),
    "forty days ahead": timedelta(days=40),
    "1970": datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC) - START,
    "2040": datetime(2040, 2, 29, 23, 59, 30, tzinfo=UTC) - START,
}
jumps = pytest.mark.parametrize("offset", JUMPS.values(), ids=JUMPS)


class World:
    """One machine, its X and its S3; every call to S3 is counted."""

    def __init__(self, directory, **changes):
        self.clock = VirtualClock()
        self.x = SimulatedX(self.clock)
        self.store = MemoryStore()
        self.calls = 0
        self.store.faults.append(self._count)
        self.directory = directory
        self.settings = settings(directory, **changes)

    def _count(self, _verb, _key):
        self.calls += 1

    async def life(self, seconds, **more):
        self.run = await live(self.settings, self.clock, self.x, self.store, seconds=seconds, **more)

    def boot(self):
        self.run = Run(self.settings, self.clock, self.x, self.store)

    async def passes(self, seconds):
        """Let time pass; nothing may be done in a hurry."""
        asked, called, told = len(self.x.requests), self.calls, len(self.run.told())
        await self.clock.drive(self.clock.seconds + seconds)
        assert not self.run.task.done()
        assert len(self.x.requests) - asked <= seconds / 30 + 15
        assert self.calls - called <= seconds / 4 + 30
        assert len(self.run.told()) - told <= 5

    @property
    def state(self):
        return self.run.service._work.journal.state.queries["one"]

    def holds(self, twice=0):
        """Nothing is missing, and no more posts were paid twice than that."""
        ids = stored_ids(self.store.records())
        expected = self.x.existing(self.state.start_id, self.state.frontier_id)
        assert not self.state.todo
        assert sorted(set(ids)) == expected
        assert len(self.x.served) - len(expected) <= twice
        sequences = [name.sequence for name in self.store.microbatches()]
        assert sequences == sorted(set(sequences))
        lag = self.clock.true_now() - snowflake.time_of(self.state.frontier_id)
        assert lag < timedelta(seconds=60), "it is up to date by X's clock"


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@jumps
async def test_a_jump_while_it_runs_and_the_jump_back_make_no_hole(world, offset):
    world.boot()
    await world.passes(310)
    world.clock.offset = offset
    await world.passes(610)
    world.clock.offset = timedelta()
    await world.passes(610)
    await world.run.stop()
    world.holds()
    assert not [record for record in pages(world.store.records()) if record["problem"]]
    assert "gap_recorded" not in world.run.told()


@jumps
async def test_a_jump_in_the_middle_of_a_request_makes_no_hole(world, offset):
    async def search(request, search=world.x.search):
        answer = await search(request)
        if 300 < world.clock.seconds < 330:
            world.clock.offset = offset
            answer = type(answer)(
                **{name: getattr(answer, name) for name in answer.__slots__} | {"received_at": world.clock.now()}
            )
        return answer

    world.x.search = search
    world.boot()
    await world.passes(310)
    await world.passes(610)
    await world.run.stop()
    world.holds()


@jumps
async def test_started_with_a_wrong_clock_it_goes_on_from_its_spool(world, offset):
    await world.life(305)
    world.clock.offset = offset
    await world.life(305)
    world.clock.offset = timedelta()
    await world.life(305)
    world.holds()


@jumps
async def test_started_with_a_wrong_clock_it_goes_on_from_s3_alone(world, offset, tmp_path):
    await world.life(305)
    world.clock.offset = offset
    world.settings = settings(tmp_path / "new-disk")
    await world.life(305)
    world.clock.offset = timedelta()
    world.settings = settings(tmp_path / "another-disk")
    await world.life(305)
    world.holds()
    assert len({name.spool_id for name in world.store.microbatches()}) == 3


async def test_days_of_a_future_that_was_none_do_not_hide_the_newest_state(world, tmp_path):
    for days in (400, 401, 402, 403):
        world.clock.offset = timedelta(days=days)
        await world.life(65)
    world.clock.offset = timedelta()
    await world.life(305)
    world.settings = settings(tmp_path / "new-disk")
    await world.life(305)
    world.holds()


@jumps
async def test_a_day_that_was_none_neither_frees_the_budget_nor_holds_it_for_ever(tmp_path, offset):
    query = {"name": "one", "rule": "python", "poll_every_seconds": 30, "first_poll_hours": 1, "overlap_seconds": 0}
    world = World(tmp_path, budget={"usd_per_month": None, "usd_per_day": 20.0, "reconcile": False}, query=[query])
    world.boot()
    await world.clock.drive(600)
    spent = len(world.x.served) * 0.005
    assert 15 < spent <= 20
    world.clock.offset = offset
    await world.clock.drive(3000)
    assert len(world.x.served) * 0.005 <= 20, "it is still the same day at X"
    world.clock.offset = timedelta()
    await world.clock.drive(12 * 3600 + 600)  # beyond X's midnight
    assert 20 < len(world.x.served) * 0.005 <= 40, "the next day's money, and no more"
    await world.run.die()


@jumps
async def test_money_spent_while_the_clock_was_wrong_counts_on_the_day_it_was_at_x(tmp_path, offset):
    query = {"name": "one", "rule": "python", "poll_every_seconds": 30, "first_poll_hours": 1, "overlap_seconds": 0}
    world = World(tmp_path, budget={"usd_per_month": None, "usd_per_day": 20.0, "reconcile": False}, query=[query])
    world.clock.offset = offset
    world.boot()
    await world.clock.drive(600)
    assert 15 < len(world.x.served) * 0.005 <= 20
    await world.run.stop()
    world.clock.offset = timedelta()
    world.boot()
    await world.clock.drive(3600)
    assert len(world.x.served) * 0.005 <= 20
    await world.clock.drive(12 * 3600 + 600)
    assert 20 < len(world.x.served) * 0.005 <= 40
    await world.run.die()


async def test_a_machine_that_slept_for_hours_catches_up(world):
    world.boot()
    await world.passes(310)
    world.clock.start += timedelta(hours=5)  # both clocks of the world moved, the machine's monotonic one stood still
    await world.clock.drive(world.clock.seconds + 900)
    await world.run.stop()
    world.holds()


async def test_a_machine_whose_monotonic_clock_counts_its_sleep_catches_up_too(world):
    world.boot()
    await world.passes(310)
    world.clock.seconds += 5 * 3600
    await world.clock.drive(world.clock.seconds + 900)
    await world.run.stop()
    world.holds()


async def test_a_sleep_beyond_x_s_reach_is_told(world):
    world.x.tweets_per_second = 0.02
    world.boot()
    await world.passes(310)
    world.clock.start += timedelta(days=9)
    await world.clock.drive(world.clock.seconds + 1800)
    await world.run.stop()
    gaps = [record for record in world.store.records() if record["kind"] == "gap"]
    assert [gap["reason"] for gap in gaps] == ["out_of_reach"]
    ids = set(stored_ids(world.store.records()))
    missing = [
        number for number in world.x.existing(world.state.start_id, world.state.frontier_id) if number not in ids
    ]
    assert missing
    assert all(gaps[0]["since_id"] < number < gaps[0]["until_id"] for number in missing)


async def test_s3_that_refuses_a_clock_that_is_too_far_off_is_waited_for(world):
    def skewed(_verb, _key):
        is_off = abs(world.clock.offset) > timedelta(minutes=15)
        return NeedsOperator("403 RequestTimeTooSkewed") if is_off else None

    world.store.faults.append(skewed)
    world.boot()
    await world.passes(310)
    world.clock.offset = timedelta(hours=1)
    await world.clock.drive(world.clock.seconds + 1200)
    world.clock.offset = timedelta()
    await world.passes(300)
    await world.run.stop()
    world.holds()


@jumps
async def test_a_query_without_pages_is_called_late_whatever_the_clock_says(world, offset):
    world.boot()
    await world.clock.drive(310)
    world.clock.offset = offset
    health = world.run.service.report.health
    broken = [check["kind"] for check in health()["components"] if not check["ok"]]
    assert broken == ["clock"], "a jump is told, and is no lateness"
    world.x.faults.append(lambda _request: Transient("reset"))
    await world.clock.drive(world.clock.seconds + 200)
    assert "query one had no page for" in str(health()["reasons"])
    await world.run.die()
