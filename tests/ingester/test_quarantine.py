"""A damaged microbatch is set aside, and what it had covered is asked again, once, before anything later ships."""

from collections import Counter
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ingester.errors import Transient
from ingester.microbatch import read_records
from ingester.quarantine import _named_apart
from schemas.keys import LakeKeys, MicrobatchName
from schemas.records import Interval
from schemas.state import ON_TOP, QueryState, State, apply, covered_between, fold
from tests.ingester.simulation import Crash, MemoryStore, SimulatedX, VirtualClock, live, settings, stored_ids

AT = datetime(2026, 11, 20, 13, 5, tzinfo=UTC)
TOP = 60
"""Ids of the property tests lie below it."""


# What was covered, as arithmetic.


def ids(intervals):
    """What is missing, by rule and by whether it is asked on top of the regular collection."""
    found = {}
    for interval in intervals:
        kind = (interval.rule, interval.reason if interval.reason in ON_TOP else None)
        found.setdefault(kind, set()).update(range(interval.since_id + 1, interval.upper))
    return {kind: numbers for kind, numbers in found.items() if numbers}


def query_of(state):
    return state.queries.get("q") or QueryState(None, start_id=0, frontier_id=0)


@st.composite
def records(draw):
    """One record as the service writes them: a rule, a live or planned window's page, plans above and below, gaps."""
    kind = draw(st.sampled_from(["page", "page", "page", "plan", "plan", "gap", "rule"]))
    return kind, draw(st.integers(0, 10)), draw(st.integers(1, 15)), draw(st.integers(0, 15)), draw(st.booleans())


def written(state, drawn, rule):
    """The record that a service in this state would write of what was drawn."""
    kind, place, length, depth, flag = drawn
    query = query_of(state)
    frontier = query.frontier_id
    base = {"kind": kind, "at": AT, "query": "q", "rule": rule}
    if kind == "rule":
        return base
    if kind == "plan":
        since = max(-1, frontier - 1 - place) if flag else frontier - 1
        reason = "reread" if flag else "backlog"
        cut = min(length, 5)
        bounds = [(since, since + 1 + cut), (since + cut, since + 1 + length)]
        planned = [Interval(low, high, rule, reason).to_record() for low, high in bounds if high - low > 1]
        return base | {"intervals": planned, "frontier_id": None if flag else since + 1 + length}
    if kind == "gap":
        todo = (
            query.todo[place % len(query.todo)]
            if query.todo
            else Interval(frontier - 1, frontier + length, rule, "live")
        )
        return base | {"reason": "out_of_reach", "since_id": todo.since_id, "until_id": todo.upper}
    asked = (
        query.todo[place % len(query.todo)]
        if query.todo and flag
        else Interval(frontier - 1, frontier + length, rule, "live")
    )
    below = max(asked.upper - depth, asked.since_id + 1)
    page = base | {"rule": asked.rule, "reason": asked.reason, "since_id": asked.since_id, "until_id": asked.until_id}
    return page | {"asked_below": asked.upper, "resume_below": below, "is_last": depth > 10}


def grown(state, history):
    for drawn, rule in history:
        state = apply(state, written(state, drawn, rule))
    return state


# A rule changes only at a start, and a microbatch belongs to one life: so it has one rule.
lives = st.tuples(st.lists(records(), max_size=8), st.sampled_from(["r", "s"])).map(
    lambda life: [(one, life[1]) for one in life[0]]
)
begun = State(queries={"q": QueryState("r", start_id=5, frontier_id=5)})


def replanned(state, intervals):
    plan = {"kind": "plan", "at": AT, "query": "q", "intervals": [interval.to_record() for interval in intervals]}
    return apply(state, plan)


@hypothesis_settings(max_examples=400, deadline=None)
@given(before=st.lists(lives, max_size=3), rule=st.sampled_from(["r", "s"]), lost=st.lists(records(), max_size=10))
def test_what_is_given_back_is_what_left_todo_and_what_came_below_the_frontier(before, rule, lost):
    state = fold(begun, [])
    for life in before:
        state = grown(state, life)
    state = apply(state, {"kind": "rule", "at": AT, "query": "q", "rule": rule})
    after = grown(state, [(drawn, rule) for drawn in lost])
    was, now = query_of(state), query_of(after)
    returned = covered_between(state, after).get("q", [])

    had, has = ids(was.todo), ids(now.todo)
    planned = set().union(*(numbers for (_, on_top), numbers in has.items() if on_top is None))
    expected = {kind: numbers - has.get(kind, set()) for kind, numbers in had.items()}
    new = set(range(was.frontier_id, now.frontier_id)) - planned
    expected[rule, None] = expected.get((rule, None), set()) | new
    assert ids(returned) == {kind: numbers for kind, numbers in expected.items() if numbers}
    for kind, numbers in ids(returned).items():
        assert not numbers & has.get(kind, set()), "what is still in todo is not doubled"

    apart = _named_apart(returned, {interval.key for interval in now.todo})
    again = query_of(replanned(after, apart))
    assert len(again.todo) == len(now.todo) + len(returned), "no name clashes"
    assert again.frontier_id == now.frontier_id
    missing = ids(again.todo)
    for kind, numbers in had.items():
        assert numbers <= missing.get(kind, set()), "all that was to do is to do again"
    assert set(range(was.frontier_id, now.frontier_id)) <= set().union(
        set(), *(n for (_, top), n in missing.items() if top is None)
    )

    covered = fold(replanned(after, apart), [last_page(interval) for interval in apart])
    assert covered == after, "covering again exactly what was given back ends where it was"


def last_page(interval):
    return {
        "kind": "page", "at": AT, "query": "q", "rule": interval.rule, "reason": interval.reason, "is_last": True,
        "since_id": interval.since_id, "until_id": interval.until_id, "asked_below": interval.upper,
    }  # fmt: skip


def test_a_query_that_began_in_the_lost_file_is_given_back_from_its_start():
    begin = {"kind": "rule", "at": AT, "query": "q", "rule": "r", "frontier_id": 20}
    page = {"kind": "page", "at": AT, "query": "q", "rule": "r", "since_id": 19, "until_id": 50, "is_last": True}
    (interval,) = covered_between(State(), fold(State(), [begin, page]))["q"]
    assert (interval.since_id, interval.until_id, interval.rule, interval.reason) == (19, 50, "r", "quarantine")


def test_nothing_is_given_back_between_a_state_and_itself_or_an_earlier_one():
    later = fold(begun, [{"kind": "page", "at": AT, "query": "q", "since_id": 4, "until_id": 30, "is_last": True}])
    assert covered_between(later, later) == {}
    assert covered_between(later, begun) == {}


def test_the_rule_of_what_was_in_todo_is_kept_and_what_is_new_has_the_rule_of_its_life():
    changed = fold(begun, [
        {"kind": "plan", "at": AT, "query": "q", "intervals": [Interval(4, 20, "r", "backlog").to_record()], "frontier_id": 20},
        {"kind": "rule", "at": AT, "query": "q", "rule": "s"},
    ])  # fmt: skip
    page = {"kind": "page", "at": AT, "query": "q", "rule": "s", "reason": "live", "since_id": 19, "until_id": 30}
    after = fold(changed, [page | {"is_last": True}, last_page(Interval(4, 20, "r", "backlog"))])
    found = {(interval.since_id, interval.until_id): interval.rule for interval in covered_between(changed, after)["q"]}
    assert found == {(4, 20): "r", (19, 30): "s"}


# A service that finds one.


@pytest.fixture
def world(tmp_path):
    """S3 takes nothing for the first ten minutes, so that microbatches wait."""
    clock = VirtualClock()
    store = MemoryStore()
    store.faults.append(lambda verb, _key: Transient("503") if verb == "put" and clock.seconds < 600 else None)
    return settings(tmp_path), clock, SimulatedX(clock), store


def query_after(run):
    return run.service._work.journal.state.queries["one"]


def flip_in_body(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def flip_in_checkpoint(path):
    content = path.read_bytes()
    assert content.count(b'"format":1') == 1
    path.write_bytes(content.replace(b'"format":1', b'"fromat":1'))


def another_number_in_checkpoint(path):
    content = path.read_bytes()
    path.write_bytes(
        content.replace(b'"frontier_id":2', b'"frontier_id":1') if b'"frontier_id":2' in content else content + b"?"
    )


def no_header(path):
    path.write_bytes(b"\0" * 50 + path.read_bytes()[50:])


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-500])


def no_sidecar(path):
    path.with_name(f"{path.name}.json").unlink()


def half_a_sidecar(path):
    path.with_name(f"{path.name}.json").write_text('{"name": "2026')


DAMAGES = (
    flip_in_body,
    flip_in_checkpoint,
    another_number_in_checkpoint,
    no_header,
    cut_off,
    no_sidecar,
    half_a_sidecar,
)


def check_all_is_stored_once(world, run, names, *, paid_again, perhaps=frozenset()):
    """Everything is in S3 once; what the lost files held was asked a second time, and nothing else was but `perhaps`."""
    _, _, x, store = world
    state = query_after(run)
    stored = stored_ids(store.records())
    assert sorted(stored) == x.existing(state.start_id, state.frontier_id)
    assert not state.todo
    assert sorted(run.spool.names("quarantine")) == sorted(names)
    assert run.spool.waiting() == []
    again = {number for number, times in Counter(x.served).items() if times > 1}
    assert set(paid_again) <= again <= set(paid_again) | perhaps
    assert max(Counter(x.served).values()) <= 2


async def interrupted(world, seconds):
    """A first life that ends with several microbatches waiting; returns their files, oldest first, and their ids."""
    configured, clock, x, store = world
    run = await live(configured, clock, x, store, seconds=seconds)
    files = [run.spool.sealed_file(name) for name in run.spool.waiting()]
    return files, [stored_ids(list(read_records(file))) for file in files]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("place", [0, 2, 3], ids=["first", "middle", "last but one"])
async def test_a_damaged_file_is_set_aside_and_what_it_covered_is_asked_again(world, damage, place):
    configured, clock, x, store = world
    files, ids_of = await interrupted(world, 290)
    assert len(files) == 5
    assert ids_of[place]
    damage(files[place])
    run = await live(configured, clock, x, store, seconds=700)
    check_all_is_stored_once(world, run, [MicrobatchName.parse(files[place].name)], paid_again=ids_of[place])
    assert any(problem.event == "quarantined" for problem in run.telemetry.problems)


async def test_what_it_covered_is_planned_durably_before_anything_later_ships(world):
    configured, clock, x, store = world
    files, _ = await interrupted(world, 290)
    flip_in_body(files[1])
    seen = {}

    def look(verb, key):
        if verb == "put" and clock.seconds > 600 and MicrobatchName.parse(key).sequence == 3 and not seen:
            spool = configured.spool.directory
            waiting = [*(spool / "sealed").glob("*.avro"), *(spool / "open").iterdir()]
            records = [record for path in waiting for record in read_records(path)]
            seen["plans"] = [record for record in records if record.get("reason") == "quarantine"]

    store.faults.append(look)
    await live(configured, clock, x, store, seconds=700)
    assert [plan["query"] for plan in seen["plans"]] == ["one"]


async def test_files_damaged_in_a_row_are_set_aside_together(world):
    configured, clock, x, store = world
    files, ids_of = await interrupted(world, 290)
    for place in (1, 2):
        flip_in_body(files[place])
    run = await live(configured, clock, x, store, seconds=700)
    names = [MicrobatchName.parse(files[place].name) for place in (1, 2)]
    check_all_is_stored_once(world, run, names, paid_again=ids_of[1] + ids_of[2])


async def test_two_damaged_files_apart_are_each_given_back_once(world):
    configured, clock, x, store = world
    files, ids_of = await interrupted(world, 290)
    for place in (0, 3):
        no_header(files[place])
    run = await live(configured, clock, x, store, seconds=700)
    names = [MicrobatchName.parse(files[place].name) for place in (0, 3)]
    check_all_is_stored_once(world, run, names, paid_again=ids_of[0] + ids_of[3])


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
async def test_when_the_newest_is_damaged_the_state_of_the_one_before_it_applies_and_the_rest_is_asked_again(
    world, damage
):
    configured, clock, x, store = world
    files, ids_of = await interrupted(world, 290)
    damage(files[-1])
    run = await live(configured, clock, x, store, seconds=700)
    check_all_is_stored_once(world, run, [MicrobatchName.parse(files[-1].name)], paid_again=ids_of[-1])
    assert not [record for record in store.records() if record.get("reason") == "quarantine"], (
        "nothing had to be planned"
    )
    assert "unreadable" in {problem.event for problem in run.telemetry.problems}


async def test_the_newest_sealed_in_this_life_is_given_back_from_the_open_ones_checkpoint(world):
    configured, clock, x, store = world
    damaged = []

    def damage_newest(verb, key):
        waiting = sorted((configured.spool.directory / "sealed").glob("*.avro"))
        if verb == "put" and clock.seconds > 590 and not damaged:
            assert list((configured.spool.directory / "open").iterdir())
            damaged.extend(waiting[-1:])
            flip_in_body(damaged[0])

    store.faults.insert(0, damage_newest)
    run = await live(configured, clock, x, store, seconds=1200)
    lost = stored_ids(list(read_records(run.spool.file(MicrobatchName.parse(damaged[0].name), "quarantine"))))
    again = {number for number, times in Counter(x.served).items() if times > 1}
    assert set(lost) <= again
    check_all_is_stored_once(world, run, [MicrobatchName.parse(damaged[0].name)], paid_again=again)
    assert len(again) <= 150, "one microbatch of 60 s at two tweets a second, not what the open one holds"


async def test_other_content_under_its_key_gives_back_too(world):
    configured, clock, x, store = world
    files, ids_of = await interrupted(world, 290)
    name = MicrobatchName.parse(files[2].name)
    store.objects[LakeKeys().microbatch(name)] = (b"x", {"sha256": "0" * 64})
    run = await live(configured, clock, x, store, seconds=700)
    del store.objects[LakeKeys().microbatch(name)]
    check_all_is_stored_once(world, run, [name], paid_again=ids_of[2])


@pytest.mark.parametrize("last", range(8))
@pytest.mark.parametrize("damaged", [(1,), (1, 2)], ids=["one", "two in a row"])
async def test_a_crash_at_any_step_of_setting_aside_changes_nothing(world, damaged, last):
    """The steps: the plan's record written, durable; and for each file its reason written, it moved, its sidecar too."""
    configured, clock, x, store = world
    files, ids_of = await interrupted(world, 290)
    for place in damaged:
        flip_in_body(files[place])
    begun, steps = [], []

    def begins(verb, key):
        if verb == "put" and clock.seconds > 600 and MicrobatchName.parse(key).sequence == 2:
            begun.append(key)

    def die(step):
        steps.extend([step] if begun else [])
        if len(steps) == last + 1:
            raise Crash

    store.faults.append(begins)
    with pytest.raises(Crash):
        await live(configured, clock, x, store, seconds=700, on_step=die)
    # A live poll may have come between: then the page that was not durable yet is asked for again.
    under_way = frozenset(x.served[-100:] if steps.count("record_written") > 1 else ())
    run = await live(configured, clock, x, store, seconds=700)
    names = [MicrobatchName.parse(files[place].name) for place in damaged]
    for name in names:
        assert run.spool.describe(name, "quarantine").name == name, "its sidecar came with it"
    lost = [number for place in damaged for number in ids_of[place]]
    check_all_is_stored_once(world, run, names, paid_again=lost, perhaps=under_way)


async def test_each_query_gets_back_what_was_its_own(tmp_path, world):
    _, clock, x, store = world
    queries = [
        {"name": name, "rule": rule, "poll_every_seconds": 30, "first_poll_hours": 0, "overlap_seconds": 0}
        for name, rule in (("one", "python"), ("two", "rust"))
    ]
    configured = settings(tmp_path, query=queries)
    files, _ = await interrupted((configured, clock, x, store), 290)
    flip_in_body(files[2])
    run = await live(configured, clock, x, store, seconds=700)
    plans = [record for record in store.records() if record["kind"] == "plan"]
    assert {(plan["query"], plan["intervals"][0]["rule"]) for plan in plans} == {("one", "python"), ("two", "rust")}
    for name, state in run.service._work.journal.state.queries.items():
        stored = stored_ids([record for record in store.records() if record["query"] == name])
        assert sorted(stored) == x.existing(state.start_id, state.frontier_id)


async def test_what_was_covered_of_a_query_removed_since_is_told_as_a_gap(tmp_path, world):
    _, clock, x, store = world
    files, ids_of = await interrupted(world, 290)
    flip_in_body(files[2])
    other = settings(tmp_path, query=[{"name": "two", "rule": "rust", "first_poll_hours": 0}])
    run = await live(other, clock, x, store, seconds=700)
    (gap,) = [record for record in store.records() if record["kind"] == "gap"]
    assert (gap["query"], gap["rule"], gap["reason"]) == ("one", "python", "query_removed")
    assert x.existing(gap["since_id"], gap["until_id"]) == sorted(ids_of[2])
    assert not run.service._work.journal.state.queries["one"].todo


async def test_hours_are_given_back_in_slices(tmp_path):
    clock, store = VirtualClock(), MemoryStore()
    x = SimulatedX(clock, tweets_per_second=0.02)
    configured = settings(tmp_path)
    await live(configured, clock, x, store, seconds=60)
    clock.seconds += 5 * 3600
    store.faults.append(lambda verb, _key: Transient("503") if verb == "put" and clock.seconds < 19_000 else None)
    files, _ = await interrupted((configured, clock, x, store), 100)
    flip_in_body(files[0])
    run = await live(configured, clock, x, store, seconds=2000)
    (plan,) = [record for record in store.records() if record["reason"] == "quarantine" and record["kind"] == "plan"]
    assert len(plan["intervals"]) >= 5
    assert sorted(stored_ids(store.records())) == x.existing(query_after(run).start_id, query_after(run).frontier_id)


async def test_what_another_spool_has_collected_since_is_not_given_back(tmp_path):
    """The state was taken from S3, where this file never was: the other spool began before it."""
    clock, store = VirtualClock(), MemoryStore()
    x = SimulatedX(clock)
    ours, theirs = settings(tmp_path / "ours"), settings(tmp_path / "theirs")
    await live(ours, clock, x, store, seconds=70)
    store.faults.append(lambda verb, _key: Transient("503") if verb == "put" and 70 < clock.seconds < 400 else None)
    files, _ = await interrupted((ours, clock, x, store), 200)
    clock.seconds = 500
    await live(theirs, clock, x, store, seconds=600)
    now = clock.seconds

    def damage_newest(verb, _key):
        if verb == "put" and clock.seconds >= now and files[-1].exists() and files[-1].stat().st_size != 1:
            files[-1].write_bytes(b"?")

    store.faults.append(damage_newest)
    run = await live(ours, clock, x, store, seconds=200)
    assert run.spool.names("quarantine") == [MicrobatchName.parse(files[-1].name)]
    stored = stored_ids(store.records())
    assert sorted(set(stored)) == x.existing(query_after(run).start_id, query_after(run).frontier_id)
    assert max(Counter(x.served).values()) == 2, "once by each, and not a third time"


async def test_without_anything_to_compare_with_it_is_told_that_nothing_was_given_back(world):
    configured, clock, x, store = world
    files, _ = await interrupted(world, 290)
    for path in files[:2]:  # a disk that began with the third, whose header is gone
        for one in (path, path.with_name(f"{path.name}.json")):
            one.unlink()
    no_header(files[2])
    run = await live(configured, clock, x, store, seconds=700)
    assert any("what it covered is not known" in problem.detail for problem in run.telemetry.problems)
    assert run.spool.waiting() == []
