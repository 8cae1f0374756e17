"""The lease: one spool asks X, whatever dies, is cut off or comes back; and what two ingesters on one lake lose and pay."""

import asyncio
import json

import pytest

from ingester.errors import NeedsOperator, Transient
from ingester.lease import Lease, Standing
from ingester.telemetry import Telemetry
from schemas.keys import LakeKeys
from tests.ingester.simulation import MemoryStore, Run, SimulatedX, VirtualClock, settings, stored_ids

KEY = LakeKeys().lease


class Machine:
    """One owner-to-be with its own way to the common S3 and its own lease loop."""

    def __init__(self, clock, objects, spool_id, seconds=20.0):
        self.clock = clock
        self.store = MemoryStore(objects)
        self.telemetry = Telemetry(now=clock.now)
        self.lease = Lease(
            self.store, LakeKeys(), clock, self.telemetry, spool_id=spool_id, seconds=seconds, version="0"
        )
        self.task = asyncio.ensure_future(self.lease.run())

    def cut_off(self, error=None):
        self.store.black_hole(self.clock)
        if error is not None:
            self.store.faults = [lambda _verb, _key: error]

    def heal(self):
        self.store.faults = []

    def die(self):
        self.task.cancel()

    @property
    def owns(self):
        return self.lease.standing is Standing.OURS

    def told(self):
        return [problem.event for problem in self.telemetry.problems for _ in range(problem.times)]


@pytest.fixture
async def world():
    clock, objects, machines = VirtualClock(), {}, []

    def machine(spool_id, **more):
        machines.append(Machine(clock, objects, spool_id, **more))
        return machines[-1]

    machine.clock, machine.objects = clock, objects
    yield machine
    for one in machines:
        one.die()
    await asyncio.gather(*(one.task for one in machines), return_exceptions=True)


async def passes(world, seconds, condition=lambda: False):
    await world.clock.drive(world.clock.seconds + seconds, condition)


async def releases(world, machine):
    release = asyncio.ensure_future(machine.lease.release())
    await passes(world, 60, release.done)
    release.result()


async def test_the_first_one_takes_it_and_renews_it_in_time(world):
    a = world("aaaaaaaa")
    seen = set()
    for _ in range(20):
        await passes(world, 10)
        seen.add(world.objects[KEY][0])
    assert a.owns
    assert 9 <= len(seen) <= 11, "one renewal in 20 s"
    claim = json.loads(world.objects[KEY][0])
    assert {"spool_id", "host", "pid", "since", "renewed", "version"} <= claim.keys()
    assert a.lease.term == 1


async def test_a_newcomer_waits_as_long_as_the_owner_renews(world):
    a = world("aaaaaaaa")
    await passes(world, 1)
    b = world("bbbbbbbb")
    await passes(world, 3600)
    assert (a.owns, b.owns) == (True, False)
    assert b.told() == ["lease_waiting"], "told once"
    assert "aaaaaaaa" in b.lease.why_waiting()
    assert b.lease.status()["owner"]["spool_id"] == "aaaaaaaa"


async def test_a_newcomer_takes_over_three_renewal_times_after_the_owner_died(world):
    a = world("aaaaaaaa")
    await passes(world, 50)
    b = world("bbbbbbbb")
    await passes(world, 50)
    a.die()
    died = world.clock.seconds
    await passes(world, 300, lambda: b.owns)
    assert 40 <= world.clock.seconds - died <= 66, "three renewal times after the last renewal, and one look"
    assert b.lease.inherited


async def test_a_newcomer_with_no_wait_behind_it_cannot_take_over_a_lease_that_looks_old(world):
    a = world("aaaaaaaa")
    await passes(world, 1)
    a.die()
    await passes(world, 86_400)
    b = world("bbbbbbbb")
    began = world.clock.seconds
    await passes(world, 300, lambda: b.owns)
    assert 60 <= world.clock.seconds - began <= 66


async def test_a_longer_renewal_time_of_the_owner_is_respected(world):
    world("aaaaaaaa", seconds=200.0)
    await passes(world, 1)
    b = world("bbbbbbbb", seconds=5.0)
    await passes(world, 2000)
    assert not b.owns


async def test_a_restart_on_the_same_spool_goes_on_at_once(world):
    a = world("aaaaaaaa")
    await passes(world, 30)
    a.die()
    again = world("aaaaaaaa")
    await passes(world, 0.1)
    assert again.owns
    assert not again.lease.inherited, "nobody else can have collected"


async def test_a_release_lets_a_successor_begin_at_its_next_look(world):
    a = world("aaaaaaaa")
    await passes(world, 30)
    b = world("bbbbbbbb")
    await passes(world, 30)
    await releases(world, a)
    released = world.clock.seconds
    await passes(world, 100, lambda: b.owns)
    assert world.clock.seconds - released <= 5
    assert b.lease.inherited
    await passes(world, 100)
    assert b.owns, "who released it does not renew it"


async def test_an_owner_that_is_cut_off_goes_on_and_stops_when_it_sees_its_successor(world):
    a = world("aaaaaaaa")
    b = world("bbbbbbbb")
    await passes(world, 30)
    a.cut_off()
    await passes(world, 600)
    assert (a.owns, b.owns) == (True, True), "a cannot know; this is what a partition costs"
    assert a.told() == ["lease_unreachable"]
    a.heal()
    healed = world.clock.seconds
    await passes(world, 100, lambda: not a.owns)
    assert world.clock.seconds - healed <= 25
    assert a.told() == ["lease_unreachable", "lease_lost"]
    assert (a.lease.status()["standing"], b.lease.status()["standing"]) == ("theirs", "ours")
    await passes(world, 600)
    assert (a.owns, b.owns) == (False, True), "no ping-pong"
    b.die()
    await passes(world, 70)
    assert a.owns
    assert a.lease.term == 2
    assert a.lease.inherited


async def test_an_outage_for_everybody_changes_no_owner(world):
    a, b = world("aaaaaaaa"), world("bbbbbbbb")
    await passes(world, 30)
    for one in (a, b):
        one.cut_off(Transient("503"))
    await passes(world, 3600)
    b.heal()  # the waiting one sees S3 first
    await passes(world, 15)
    a.heal()
    await passes(world, 600)
    assert (a.owns, b.owns) == (True, False)
    assert a.lease.term == 1


async def test_an_answer_that_was_lost_is_recognised_as_ours(world):
    a = world("aaaaaaaa")
    a.store.lose_replies = 1
    await passes(world, 5)
    assert a.owns, "the taking, whose answer was lost"
    a.store.lose_replies = 3
    await passes(world, 200)
    assert a.owns
    assert a.lease.term == 1
    assert "lease_lost" not in a.told()


async def test_of_two_that_start_together_one_wins(world):
    machines = [world(spool_id * 8) for spool_id in "abcdef"]
    await passes(world, 300)
    assert sum(one.owns for one in machines) == 1
    assert sum(one.lease.term for one in machines) == 1


async def test_a_copy_of_the_spool_on_another_machine_takes_it_and_the_first_one_stops(world):
    a = world("aaaaaaaa")
    await passes(world, 33)
    copy = world("aaaaaaaa")
    await passes(world, 30)
    assert (a.owns, copy.owns) == (False, True)
    await passes(world, 600)
    assert (a.owns, copy.owns) == (False, True), "no ping-pong"


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[1]", b'{"spool_id": 5}', b"null"])
async def test_what_is_no_claim_is_waited_for_and_then_replaced(world, content):
    world.objects[KEY] = (content, {})
    a = world("aaaaaaaa")
    await passes(world, 50)
    assert not a.owns
    assert "cannot be read" in a.lease.why_waiting()
    await passes(world, 20)
    assert a.owns


async def test_a_lease_deleted_by_hand_is_taken_again_as_a_new_term(world):
    a = world("aaaaaaaa")
    await passes(world, 30)
    del world.objects[KEY]
    await passes(world, 30)
    assert a.owns
    assert a.lease.term == 2, "somebody else may have collected meanwhile"


@pytest.mark.parametrize("error", [Transient("503"), NeedsOperator("403"), None])
async def test_s3_is_never_asked_in_a_hot_loop(world, error):
    a = world("aaaaaaaa")
    calls = []
    a.store.faults.append(lambda verb, _key: calls.append(verb))
    a.store.faults.append(lambda _verb, _key: error or asyncio.Event().wait())
    await passes(world, 3600)
    assert 100 < len(calls) < 700
    assert a.told() == ["lease_unreachable"], "told once"


async def test_who_has_a_state_goes_on_when_s3_says_nothing_and_looks_again_when_it_does(world):
    a = world("aaaaaaaa")
    a.cut_off()
    granted = asyncio.ensure_future(a.lease.granted(1.0))
    began = world.clock.seconds
    await passes(world, 100, granted.done)
    assert (granted.result(), world.clock.seconds - began) == (0, 1.0)
    ended = asyncio.ensure_future(a.lease.ended(0))
    await passes(world, 100)
    assert not ended.done()
    a.heal()
    await passes(world, 30)
    assert ended.done()
    assert await a.lease.granted(1.0) == 1


async def test_who_has_no_state_waits_until_it_is_ours(world):
    a = world("aaaaaaaa")
    a.cut_off()
    granted = asyncio.ensure_future(a.lease.granted(None))
    await passes(world, 1000)
    assert not granted.done()
    a.heal()
    await passes(world, 30)
    assert granted.result() == 1


async def test_switched_off_nothing_is_written_and_everybody_asks(world):
    a, b = world("aaaaaaaa", seconds=0), world("bbbbbbbb", seconds=0)
    await passes(world, 100)
    assert (a.owns, b.owns) == (True, True)
    assert await a.lease.granted(None) == 0
    await releases(world, a)
    assert world.objects == {}
    assert a.lease.status()["standing"] == "off"


async def test_a_release_whose_renewal_had_lost_its_answer_is_written_all_the_same(world):
    a = world("aaaaaaaa")
    await passes(world, 1)
    a.store.lose_replies = 1
    await passes(world, 20, lambda: a.store.lose_replies == 0)
    await releases(world, a)
    assert json.loads(world.objects[KEY][0])["released"] is True


async def test_a_release_never_touches_the_lease_of_a_successor(world):
    a, b = world("aaaaaaaa"), world("bbbbbbbb")
    await passes(world, 30)
    a.cut_off()
    await passes(world, 100)
    a.heal()
    content = world.objects[KEY][0]
    await releases(world, a)
    assert world.objects[KEY][0] == content
    assert b.owns


# Two whole services on one lake.


class Collector:
    """A machine with a disk of its own: lives come and go, the spool stays."""

    def __init__(self, clock, objects, directory, **changes):
        self.clock = clock
        self.x = SimulatedX(clock)
        self.store = MemoryStore(objects)
        self.settings = settings(directory, **changes)
        self.run = None

    def boot(self):
        self.run = Run(self.settings, self.clock, self.x, self.store)
        return self

    def cut_off(self):
        self.store.black_hole(self.clock)

    def heal(self):
        self.store.faults = []

    @property
    def state(self):
        return self.run.service._work.journal.state.queries["one"]


@pytest.fixture
async def lake(tmp_path):
    clock, objects, machines = VirtualClock(), {}, []

    def machine(name, **changes):
        machines.append(Collector(clock, objects, tmp_path / name, **changes))
        return machines[-1]

    machine.clock, machine.objects = clock, objects
    machine.everything = MemoryStore(objects)
    yield machine
    for one in machines:
        if one.run is not None:
            await one.run.die()


def nothing_is_lost(lake, last):
    """Every id from where the collection began to where it is now, in S3."""
    stored = stored_ids(lake.everything.records())
    state = last.state
    assert not state.todo
    missing = set(last.x.existing(state.start_id, state.frontier_id)) - set(stored)
    assert not missing
    return stored


def paid(*machines):
    return sum(len(machine.x.served) for machine in machines)


async def test_the_second_of_two_ingesters_asks_nothing_and_starts_as_soon_as_the_first_stops(lake):
    a, b = lake("a").boot(), lake("b")
    await passes(lake, 100)
    b.boot()
    await passes(lake, 900)
    assert b.x.requests == []
    ready = b.run.service.report.readiness()
    assert not ready["ready"]
    assert a.run.spool.spool_id in ready["reasons"][0]
    assert b.run.service.report.status()["lease"]["standing"] == "theirs"
    await a.run.stop()
    stopped = lake.clock.seconds
    await passes(lake, 60, lambda: b.x.requests)
    assert lake.clock.seconds - stopped <= 6
    await passes(lake, 300)
    await b.run.stop()
    stored = nothing_is_lost(lake, b)
    assert paid(a, b) == len(stored) == len(set(stored)), "nothing was paid twice"


async def test_when_the_first_dies_the_second_takes_over_and_the_first_stands_by_when_it_is_back(lake):
    a, b = lake("a").boot(), lake("b").boot()
    await passes(lake, 615)
    await a.run.die()
    died = lake.clock.seconds
    await passes(lake, 200, lambda: b.x.requests)
    assert 40 <= lake.clock.seconds - died <= 75
    await passes(lake, 300)
    a.boot()
    asked = len(a.x.requests)
    await passes(lake, 900)
    assert len(a.x.requests) == asked, "it stands by"
    assert a.run.spool.waiting() == [], "what its disk still had is shipped all the same"
    await b.run.stop()
    await passes(lake, 200)
    assert len(a.x.requests) > asked
    await a.run.stop()
    stored = nothing_is_lost(lake, a)
    unshipped = 60 * a.x.tweets_per_second
    assert paid(a, b) - len(set(stored)) <= unshipped + a.x.page_size, "what the dead one had not shipped yet"


@pytest.mark.parametrize("hours", [0.05, 0.5, 2])
async def test_cut_off_from_s3_while_another_takes_over_nothing_is_lost_and_only_that_stretch_is_paid_twice(
    lake, hours
):
    a, b = lake("a").boot(), lake("b").boot()
    await passes(lake, 615)
    a.cut_off()
    await passes(lake, hours * 3600)
    assert a.x.requests[-1].until_id > b.x.requests[0].since_id, "both ask; a cannot know"
    a.heal()
    await passes(lake, 30)
    asked = len(a.x.requests)
    await passes(lake, 1800)
    assert len(a.x.requests) == asked, "it stopped asking when it saw the lease"
    assert a.run.spool.waiting() == [], "and shipped what it had"
    both = set(a.x.served) & set(b.x.served)
    bound = (hours * 3600 + 60 + 25) * a.x.tweets_per_second + a.x.page_size
    assert len(both) <= bound, "the partition, what was not shipped before, and the time to notice"
    await b.run.stop()
    await passes(lake, 600)
    await a.run.stop()
    stored = nothing_is_lost(lake, a)
    assert set(a.x.served) | set(b.x.served) == set(stored)
    assert paid(a, b) - len(set(stored)) == len(both), "handing over and back cost nothing more"


async def test_a_long_partition_in_which_the_cut_off_one_wrote_more_does_not_win_over_its_successor(lake):
    a, b = lake("a"), lake("b")
    hasty = a.settings.spool.model_copy(update={"seal_after_seconds": 5})  # a file a poll, where b has one in two
    a.settings = a.settings.model_copy(update={"spool": hasty})
    a.boot()
    b.boot()
    await passes(lake, 300)
    a.cut_off()
    await passes(lake, 3600)
    a.heal()
    await passes(lake, 60)
    await b.run.stop()
    await passes(lake, 100)
    assert a.state.frontier_id >= b.state.frontier_id
    names = lake.everything.microbatches()
    assert names[-1].spool_id == a.run.spool.spool_id
    assert len({name.sequence for name in names}) == len(names), "no sequence twice"


async def test_who_inherits_the_lease_asks_nothing_before_it_has_seen_what_the_other_one_left(lake):
    a, b = lake("a").boot(), lake("b").boot()
    await passes(lake, 300)
    await a.run.die()
    await passes(lake, 300)
    a.boot()
    a.store.faults = [lambda verb, _key: Transient("503") if verb == "list" else None]
    await passes(lake, 100)
    asked = len(a.x.requests)
    await b.run.stop()
    await passes(lake, 300)
    assert len(a.x.requests) == asked
    assert "state_unreachable" in a.run.told()
    a.store.faults = []
    await passes(lake, 60)
    assert len(a.x.requests) > asked
    await a.run.stop()
    nothing_is_lost(lake, a)


async def test_a_lost_machine_is_replaced_by_an_empty_one(lake):
    a = lake("a").boot()
    await passes(lake, 605)
    await a.run.die()
    b = lake("b").boot()
    await passes(lake, 300)
    await b.run.stop()
    stored = nothing_is_lost(lake, b)
    assert len(b.x.requests) > 3
    assert len(stored) == len(set(stored))


async def test_with_s3_silent_at_the_start_a_restart_goes_on_and_stops_when_it_sees_another_owner(lake):
    a, b = lake("a").boot(), lake("b").boot()
    await passes(lake, 300)
    await a.run.die()
    await passes(lake, 300)
    a.cut_off()
    a.boot()
    began, asked = lake.clock.seconds, len(a.x.requests)
    await passes(lake, 10, lambda: len(a.x.requests) > asked)
    assert lake.clock.seconds - began <= 2, "a start never needs S3 when the disk is there"
    await passes(lake, 300)
    a.heal()
    await passes(lake, 30)
    asked = len(a.x.requests)
    await passes(lake, 300)
    assert len(a.x.requests) == asked
    assert "lease_waiting" in a.run.told()
    await b.run.stop()
    await passes(lake, 300)
    await a.run.stop()
    nothing_is_lost(lake, a)


async def test_with_s3_silent_at_the_start_the_owner_compares_as_soon_as_it_answers(lake):
    a = lake("a").boot()
    await passes(lake, 300)
    await a.run.stop()
    a.cut_off()
    a.boot()
    await passes(lake, 300)
    a.heal()
    await passes(lake, 300)
    await a.run.stop()
    stored = nothing_is_lost(lake, a)
    assert paid(a) == len(stored) == len(set(stored)), "beginning another term cost nothing"


async def test_the_lease_can_be_switched_off(lake):
    a, b = lake("a", lake={"bucket": "lake-bucket", "lease_seconds": 0}).boot(), lake("b").boot()
    await passes(lake, 100)
    assert a.x.requests
    assert b.x.requests
