"""The service on a simulated world in virtual time: what was asked is stored once, in order, whatever interrupts it."""

import asyncio
import itertools
from datetime import timedelta

import pytest

from ingester.errors import NeedsOperator, Transient
from schemas import snowflake
from schemas.state import State
from tests.ingester.simulation import Crash, MemoryStore, SimulatedX, VirtualClock, live, pages, settings, stored_ids


@pytest.fixture
def world(tmp_path):
    clock = VirtualClock()
    return settings(tmp_path), clock, SimulatedX(clock), MemoryStore()


def expected(x: SimulatedX, run) -> list[int]:
    state = final_state(run)
    return x.existing(state.start_id, state.frontier_id)


def final_state(run):
    return run.service._work.journal.state.queries["one"]


async def test_everything_of_the_windows_is_stored_exactly_once(world):
    configured, clock, x, store = world
    run = await live(configured, clock, x, store, seconds=600)
    ids = stored_ids(store.records())
    assert len(ids) > 1000
    assert sorted(ids) == expected(x, run)
    assert sorted(x.served) == sorted(ids), "nothing was paid for that is not stored"
    assert not final_state(run).todo
    assert run.spool.waiting() == []


async def test_a_restart_goes_on_at_the_frontier(world):
    configured, clock, x, store = world
    await live(configured, clock, x, store, seconds=100)
    clock.seconds += 20
    run = await live(configured, clock, x, store, seconds=100)
    ids = stored_ids(store.records())
    assert sorted(ids) == expected(x, run)


async def test_an_outage_of_hours_is_cut_into_slices_and_worked_off_between_live_polls(world):
    configured, clock, x, store = world
    await live(configured, clock, x, store, seconds=60)
    clock.seconds += 5 * 3600
    run = await live(configured, clock, x, store, seconds=400)
    plans = [record for record in store.records() if record["kind"] == "plan"]
    assert len(plans) == 1
    assert len(plans[0]["intervals"]) == 6
    assert sorted(stored_ids(store.records())) == expected(x, run)
    assert not final_state(run).todo


@pytest.mark.parametrize("kill_after", range(1, 60, 3))
async def test_a_crash_in_the_middle_of_paging_pays_at_most_one_page_twice(world, kill_after):
    configured, clock, x, store = world
    await live(configured, clock, x, store, seconds=60)
    clock.seconds += 3 * 3600
    await live(configured, clock, x, store, seconds=kill_after, crash=True)
    run = await live(configured, clock, x, store, seconds=300)
    ids = stored_ids(store.records())
    assert sorted(ids) == expected(x, run)
    assert len(x.served) - len(ids) <= x.page_size, "only the page under way was asked for again"


async def test_a_lost_disk_goes_on_from_s3_alone(world, tmp_path):
    configured, clock, x, store = world
    await live(configured, clock, x, store, seconds=100)
    elsewhere = settings(tmp_path / "new-disk")
    run = await live(elsewhere, clock, x, store, seconds=100)
    assert sorted(stored_ids(store.records())) == expected(x, run)
    sequences = [name.sequence for name in store.microbatches()]
    assert len(set(sequences)) == len(sequences)


async def test_with_no_state_and_s3_unreachable_it_waits_visibly(world):
    configured, clock, x, store = world
    store.faults.append(lambda verb, _key: NeedsOperator("no such bucket") if clock.seconds < 300 else None)
    run = await live(configured, clock, x, store, seconds=250, during=lambda run: None)
    assert x.requests == []
    assert any("no such bucket" in problem.detail for problem in run.telemetry.problems)
    await live(configured, clock, x, store, seconds=250)
    assert x.requests


@pytest.mark.parametrize("error", [Transient("503"), NeedsOperator("403")])
async def test_an_outage_of_s3_loses_nothing_and_ends_by_itself(world, error):
    configured, clock, x, store = world
    store.faults.append(lambda verb, _key: error if verb == "put" and 100 < clock.seconds < 4000 else None)
    run = await live(configured, clock, x, store, seconds=4100)
    assert sorted(stored_ids(store.records())) == expected(x, run)
    assert run.spool.waiting() == []
    assert len(store.microbatches()) > 60


async def test_an_answer_lost_after_a_put_is_success(world):
    configured, clock, x, store = world
    store.lose_answers = True
    run = await live(configured, clock, x, store, seconds=100)
    assert run.spool.count("quarantine") == 0
    assert sorted(stored_ids(store.records())) == expected(x, run)


async def test_other_content_under_our_key_is_set_aside_and_told(world):
    configured, clock, x, store = world
    taken = []

    def squat(verb, key):
        if verb == "put" and not taken:
            taken.append(key)
            store.objects[key] = (b"x", {"sha256": "0" * 64})

    store.faults.append(squat)
    run = await live(configured, clock, x, store, seconds=200)
    assert run.spool.count("quarantine") == 1
    assert run.spool.waiting() == []
    assert "quarantine" in str(run.service.report.health()["reasons"])


async def test_gone_for_more_than_seven_days_the_rest_is_told_as_a_gap(world):
    configured, clock, x, store = world
    await live(configured, clock, x, store, seconds=60)
    before = snowflake.first_id_at(clock.true_now())
    clock.seconds += 9 * 86_400
    x.tweets_per_second = 0.01
    run = await live(configured, clock, x, store, seconds=900)
    gaps = [record for record in store.records() if record["kind"] == "gap"]
    assert [gap["reason"] for gap in gaps] == ["out_of_reach"]
    state = final_state(run)
    stored = set(stored_ids(store.records()))
    lost = [number for number in x.existing(before, state.frontier_id) if number not in stored]
    assert lost, "two days cannot be had any more"
    assert all(gaps[0]["since_id"] < number < gaps[0]["until_id"] for number in lost), "every hole is told"
    assert all(
        answer.since_id > snowflake.first_id_at(clock.true_now() - timedelta(days=7)) for answer in x.requests[-5:]
    )


@pytest.mark.parametrize("minutes_inside", [-2.5, -1.5, 0.0, 0.5, 1.5, 2.5, 3.5])
async def test_at_the_edge_of_the_seven_days_every_hole_is_told(world, minutes_inside):
    configured, clock, x, store = world
    await live(configured, clock, x, store, seconds=60)
    clock.seconds += 7 * 86_400 - minutes_inside * 60
    x.tweets_per_second = 0.2
    await live(configured, clock, x, store, seconds=4)
    records = store.records()
    gaps = [(record["since_id"], record["until_id"]) for record in records if record["kind"] == "gap"]
    planned = [record["intervals"] for record in records if record["kind"] == "plan"][-1]
    covered = gaps + [(interval["since_id"], interval["until_id"]) for interval in planned]
    covered += [(record["since_id"], record["until_id"]) for record in pages(records)]
    reached = min(since for since, _ in covered)
    for since, until in sorted(covered):
        assert since <= reached, "a stretch that nothing tells of"
        reached = max(reached, until - 1)


async def test_polls_keep_their_beat_and_do_not_bunch(tmp_path):
    query = {"name": "one", "rule": "python", "poll_every_seconds": 30, "first_poll_hours": 0.01, "overlap_seconds": 0}
    clock = VirtualClock()
    clock.seconds = 1000.0  # a machine that has been up for a while
    x = SimulatedX(clock)
    await live(settings(tmp_path, query=[query]), clock, x, MemoryStore(), seconds=100)
    assert len(x.requests) == 4


async def test_overlap_reads_again_a_little_and_loses_nothing(tmp_path):
    query = {"name": "one", "rule": "python", "poll_every_seconds": 30, "first_poll_hours": 0, "overlap_seconds": 30}
    configured, clock = settings(tmp_path, query=[query]), VirtualClock()
    x, store = SimulatedX(clock), MemoryStore()
    run = await live(configured, clock, x, store, seconds=300)
    ids = stored_ids(store.records())
    assert sorted(set(ids)) == expected(x, run)
    assert len(ids) > len(set(ids))
    assert sum(record["posts_repeated"] for record in pages(store.records())) == len(ids) - len(set(ids))


async def test_a_clock_that_jumps_back_and_forth_makes_no_hole(world):
    configured, clock, x, store = world

    async def life(offset):
        clock.offset = timedelta(seconds=offset)
        return await live(configured, clock, x, store, seconds=120)

    for offset in (0, 3600, -7200, 90):
        run = await life(offset)
    stored = stored_ids(store.records())
    # X's clock decides where windows end; the first window of a life may be planned before it is known.
    missing = set(expected(x, run)) - set(stored)
    assert not missing


async def test_removed_queries_leave_their_todo_as_gaps(world, tmp_path):
    configured, clock, x, store = world
    await live(configured, clock, x, store, seconds=60)
    clock.seconds += 3 * 3600
    await live(configured, clock, x, store, seconds=2, crash=True)
    other = settings(tmp_path, query=[{"name": "two", "rule": "rust", "first_poll_hours": 0}])
    run = await live(other, clock, x, store, seconds=60)
    state: State = run.service._work.journal.state
    assert state.queries["one"].todo == ()
    assert state.queries["one"].rule is None
    reasons = {record["reason"] for record in store.records() if record["kind"] == "gap"}
    assert reasons == {"query_removed"}


async def test_a_changed_rule_applies_from_the_frontier_and_old_intervals_keep_theirs(world, tmp_path):
    configured, clock, x, store = world
    await live(configured, clock, x, store, seconds=60)
    clock.seconds += 3 * 3600
    await live(configured, clock, x, store, seconds=3, crash=True)
    asked_before = len(x.requests)
    query = {
        "name": "one",
        "rule": "python lang:en",
        "poll_every_seconds": 30,
        "first_poll_hours": 0,
        "overlap_seconds": 0,
    }
    await live(settings(tmp_path, query=[query]), clock, x, store, seconds=200)
    later = x.requests[asked_before:]
    assert {request.rule for request in later} == {"python", "python lang:en"}
    boundary = min(request.since_id for request in later if request.rule == "python lang:en")
    assert all(request.until_id <= boundary + 1 for request in later if request.rule == "python")


@pytest.mark.parametrize(
    "step",
    [
        "opened", "record_written", "record_durable", "sealed_file_written", "sidecar_written", "sealed_file_renamed",
        "sealed", "open_file_gone", "shipped_file_moved", "older_files_gone",
    ],
)  # fmt: skip
@pytest.mark.parametrize("occurrence", [1, 2, 5])
async def test_death_at_every_durable_step_loses_nothing(world, step, occurrence):
    configured, clock, x, store = world
    seen = 0

    def die(now):
        nonlocal seen
        if now == step:
            seen += 1
            if seen == occurrence:
                raise Crash

    with pytest.raises(Crash):
        await live(configured, clock, x, store, seconds=1200, on_step=die)
    run = await live(configured, clock, x, store, seconds=200)
    ids = stored_ids(store.records())
    assert sorted(set(ids)) == expected(x, run), "nothing lost"
    assert len(ids) - len(set(ids)) <= x.page_size, "at most the page under way is stored twice"
    assert run.spool.count("open") == 0


async def test_stopping_leaves_nothing_open_and_ships_what_was_sealed(world):
    configured, clock, x, store = world
    run = await live(configured, clock, x, store, seconds=45)
    assert run.spool.names("open") == []
    assert run.spool.names("sealed") == []
    assert len(run.spool.names("shipped")) == 1


async def test_cancelling_a_caller_does_not_tear_a_record(world):
    configured, clock, x, store = world

    def during(run):
        journal = run.service._work.journal
        task = asyncio.ensure_future(journal.append({"kind": "heartbeat", "at": clock.now()}))
        task.cancel()

    await live(configured, clock, x, store, seconds=45, during=during)
    assert store.records()


async def test_a_full_spool_stops_asking_and_goes_on_by_itself_when_s3_is_back(tmp_path):
    clock = VirtualClock()
    x, store = SimulatedX(clock, tweets_per_second=50), MemoryStore()
    spool = {"directory": tmp_path / "spool", "min_free_bytes": 0, "max_bytes": 1_000_000, "codec": "null"}
    configured = settings(tmp_path, spool=spool)
    store.faults.append(lambda verb, _key: Transient("503") if verb == "put" and clock.seconds < 3000 else None)
    seen = []
    x.faults.append(lambda request: seen.append(clock.seconds))

    async def life(seconds):
        return await live(configured, clock, x, store, seconds=seconds, crash=True)

    run = await life(2900)
    assert run.spool.used_bytes() < 1_200_000, "a page or two over the quota at most"
    assert max(seen) < 1500, "asking stopped long before S3 came back"
    assert any(
        problem.event == "spool_full" and "spool.max_bytes" in problem.detail for problem in run.telemetry.problems
    )
    run = await live(configured, clock, x, store, seconds=600)
    ids = stored_ids(store.records())
    assert not final_state(run).todo
    assert sorted(set(ids)) == expected(x, run)


async def test_a_disk_with_too_little_left_is_named_with_its_setting(tmp_path):
    clock = VirtualClock()
    x = SimulatedX(clock)
    spool = {"directory": tmp_path / "spool", "min_free_bytes": 10**18}
    run = await live(settings(tmp_path, spool=spool), clock, x, MemoryStore(), seconds=120)
    assert x.requests == []
    assert "spool.min_free_bytes" in str(run.service.report.health()["reasons"])


async def test_every_hour_of_life_has_a_microbatch_also_while_nothing_may_be_asked(world):
    configured, clock, x, store = world
    x.faults.append(lambda request: x.answer(402, {"title": "CreditsDepleted"}))
    await live(configured, clock, x, store, seconds=2 * 3600)
    hours = {key.rsplit("/", 1)[1][:13] for key in store.objects if "raw/" in key}
    assert hours == {f"2026-11-20T{hour}" for hour in range(12, 15)}
    kinds = {record["kind"] for record in store.records()}
    assert "heartbeat" in kinds
    assert "page" not in kinds


async def test_polls_that_find_nothing_are_coverage_too(world):
    configured, clock, x, store = world
    x.existing = lambda since_id, until_id: []
    run = await live(configured, clock, x, store, seconds=300)
    kept = pages(store.records())
    assert len(kept) >= 9
    assert all(record["is_last"] and record["result_count"] == 0 and not record["problem"] for record in kept)
    bounds = [(record["since_id"], record["until_id"]) for record in kept]
    assert all(later[0] == before[1] - 1 for before, later in itertools.pairwise(bounds)), "without a hole"
    assert final_state(run).frontier_id == bounds[-1][1]


async def test_a_renamed_query_is_a_new_one_and_the_old_one_is_told_to_be_over(world, tmp_path):
    configured, clock, x, store = world
    await live(configured, clock, x, store, seconds=100)
    renamed = configured.query[0].model_dump() | {"name": "uno"}
    run = await live(settings(tmp_path, query=[renamed]), clock, x, store, seconds=100)
    queries = run.service._work.journal.state.queries
    assert (queries["one"].rule, queries["uno"].rule) == (None, "python")
    assert queries["uno"].start_id >= queries["one"].frontier_id
