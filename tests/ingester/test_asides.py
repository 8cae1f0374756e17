"""What is asked aside of the polls: orders carried out once, the counts audit, X's own figures; on the simulated world."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from ingester.answers import counts_facts, posts_by_day
from schemas import snowflake
from schemas.keys import LakeKeys
from schemas.orders import Order
from tests.ingester.simulation import (
    START,
    Crash,
    MemoryStore,
    SimulatedX,
    VirtualClock,
    live,
    pages,
    settings,
    stored_ids,
)

KEYS = LakeKeys()
PRICED = {"usd_per_month": None, "reconcile": True}


@pytest.fixture
def world(tmp_path):
    clock = VirtualClock()
    return settings(tmp_path), clock, SimulatedX(clock, tweets_per_second=0.5), MemoryStore()


def order(store, query="one", since=START - timedelta(hours=5), until=START - timedelta(hours=3), name=None):
    made = Order.new(query, since, until, START)
    store.objects[KEYS.request(name or made.name)] = (made.to_json(), {})
    return made


def state_of(run):
    return run.service._work.journal.state


# Orders.


async def test_an_order_is_collected_whole_and_taken_away(world):
    configured, clock, x, store = world
    made = order(store)
    run = await live(configured, clock, x, store, seconds=400)
    bounds = snowflake.first_id_at(made.since) - 1, snowflake.first_id_at(made.until)
    assert set(x.existing(*bounds)) <= set(stored_ids(store.records()))
    assert not [key for key in store.objects if key.startswith(KEYS.requests)]
    asked = [record for record in pages(store.records()) if record["reason"] == "backfill"]
    assert min(record["since_id"] for record in asked) == bounds[0]
    assert max(record["until_id"] for record in asked) == bounds[1]
    assert state_of(run).queries["one"].todo == ()
    assert state_of(run).orders == (made.name,)


async def test_an_order_leaves_the_stretch_before_the_collection_unclaimed(world):
    configured, clock, x, store = world
    order(store)
    run = await live(configured, clock, x, store, seconds=400)
    assert snowflake.time_of(state_of(run).queries["one"].start_id) > START - timedelta(minutes=1)


async def test_an_order_whose_object_cannot_be_taken_away_is_carried_out_once(world):
    configured, clock, x, store = world
    made = order(store)
    store.faults.append(lambda verb, key: Crash() if verb == "delete" and key.startswith(KEYS.requests) else None)
    with pytest.raises(Crash):  # after the plan, before the object is gone
        await live(configured, clock, x, store, seconds=120)
    store.faults.clear()
    run = await live(configured, clock, x, store, seconds=400)
    plans = [record for record in store.records() if record["kind"] == "plan" and record["order"]]
    assert [plan["order"] for plan in plans] == [made.name]
    assert not [key for key in store.objects if key.startswith(KEYS.requests)]
    ids = stored_ids(store.records())
    bounds = snowflake.first_id_at(made.since) - 1, snowflake.first_id_at(made.until)
    assert sum(bounds[0] < number < bounds[1] for number in ids) - len(x.existing(*bounds)) <= x.page_size
    assert state_of(run).orders == (made.name,)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "not an order"),
        (b"[1]", "not an order"),
        (b"\xff", "not an order"),
        (b'{"kind": "delete"}', "delete"),
        (b'{"kind": "backfill", "query": "one", "since": "2026-11-20T00:00", "until": "2026-11-20T01:00"}', "time zone"),
        (Order("n", "one", START, START ).to_json(), "before until"),
        (Order("n", "nobody", START - timedelta(hours=1), START).to_json(), "nobody"),
        (Order("n", "one", START + timedelta(days=1), START + timedelta(days=2)).to_json(), "future"),
    ],
)  # fmt: skip
async def test_an_order_that_cannot_be_carried_out_is_told_once_and_stays(world, content, named):
    configured, clock, x, store = world
    store.objects[KEYS.request("odd")] = (content, {})
    run = await live(configured, clock, x, store, seconds=400)
    told = [problem for problem in run.telemetry.problems if problem.event == "order_refused"]
    assert [problem.times for problem in told] == [1]
    assert named in told[0].detail
    assert KEYS.request("odd") in store.objects


async def test_what_an_order_wants_beyond_x_s_reach_is_given_up_and_the_rest_collected(world):
    configured, clock, x, store = world
    x.tweets_per_second = 0.01
    order(store, since=START - timedelta(days=9), until=START - timedelta(days=6))
    run = await live(configured, clock, x, store, seconds=1500)
    given_up = [record for record in store.records() if record["kind"] == "gap"]
    assert {record["reason"] for record in given_up} == {"backfill_given_up"}
    lowest = snowflake.first_id_at(clock.true_now() - timedelta(days=7) + timedelta(minutes=20))
    within = x.existing(lowest, snowflake.first_id_at(START - timedelta(days=6)))
    assert set(within) <= set(stored_ids(store.records()))
    assert state_of(run).queries["one"].todo == ()


async def test_orders_wait_while_s3_is_away(world):
    from ingester.errors import NeedsOperator

    configured, clock, x, store = world
    order(store)
    store.faults.append(
        lambda verb, key: NeedsOperator("403") if key.startswith(KEYS.requests) and clock.seconds < 200 else None
    )
    run = await live(configured, clock, x, store, seconds=900)
    assert any(problem.event == "orders_unreachable" for problem in run.telemetry.problems)
    assert state_of(run).orders


# Re-reads.


async def test_posts_that_x_shows_an_hour_late_are_found_by_reading_again(tmp_path):
    query = {
        "name": "one", "rule": "python", "poll_every_seconds": 30, "first_poll_hours": 0, "overlap_seconds": 0,
        "reread_minutes": 70,
    }  # fmt: skip
    clock = VirtualClock()
    x, store = SimulatedX(clock, tweets_per_second=0.5), MemoryStore()
    hidden = snowflake.first_id_at(START + timedelta(minutes=5)), snowflake.first_id_at(START + timedelta(minutes=6))
    real = x.existing

    def existing(since_id, until_id):
        late = clock.seconds < 1800
        return [n for n in real(since_id, until_id) if not (late and hidden[0] < n < hidden[1])]

    x.existing = existing
    run = await live(settings(tmp_path, query=[query]), clock, x, store, seconds=4000)
    assert set(real(*hidden)) <= set(stored_ids(store.records()))
    reread = [record for record in pages(store.records()) if record["reason"] == "reread"]
    assert reread
    assert sum(record["posts_repeated"] for record in reread) > 1000, "repeats are booked at their own price"
    assert state_of(run).queries["one"].todo == ()


# The counts audit.


def audited(tmp_path, **more):
    return settings(tmp_path, audit={"counts_daily": True}, **more)


async def test_every_day_is_counted_once_and_kept_as_x_sent_it(tmp_path, world):
    _, clock, x, store = world
    query = {"name": "one", "rule": "python", "poll_every_seconds": 600, "first_poll_hours": 0, "overlap_seconds": 0}
    configured = audited(
        tmp_path, query=[query], spool=settings(tmp_path).spool.model_dump() | {"seal_after_seconds": 1800}
    )
    x.tweets_per_second = 0.02
    for _ in range(8):  # eight lives of six hours
        await live(configured, clock, x, store, seconds=6 * 3600)
    kept = [record for record in pages(store.records()) if record["endpoint"] == "counts_recent"]
    assert [(record["since_id"] + 1, record["until_id"]) for record in kept] == [
        (snowflake.first_id_at(begin), snowflake.first_id_at(end))
        for begin, end in (
            (datetime(2026, 11, 20, 12, tzinfo=UTC), datetime(2026, 11, 21, tzinfo=UTC)),
            (datetime(2026, 11, 21, tzinfo=UTC), datetime(2026, 11, 22, tzinfo=UTC)),
        )
    ]
    assert [record["result_count"] for record in kept] == [12, 24]
    assert all(record["cost_microusd"] == 5_000 and record["is_last"] for record in kept)
    hours = [bucket["tweet_count"] for record in kept for bucket in json.loads(record["body"])["data"]]
    stored = stored_ids(store.records())
    whole = snowflake.first_id_at(datetime(2026, 11, 20, 13, tzinfo=UTC)), kept[1]["until_id"]
    assert sum(hours[1:]) == sum(whole[0] <= number < whole[1] for number in stored) > 1000


@pytest.mark.parametrize("status", [403, 429, 500, 200])
async def test_a_refused_audit_is_asked_seldom_and_does_not_hold_up_the_polls(tmp_path, world, status):
    _, clock, x, store = world
    clock.seconds = 13 * 3600  # after midnight, with yesterday due
    x.counts_faults.append(lambda request: x.answer(status, b"<html>"))
    configured = audited(
        tmp_path,
        query=[
            {"name": "one", "rule": "python", "poll_every_seconds": 30, "first_poll_hours": 5, "overlap_seconds": 0}
        ],
    )
    run = await live(configured, clock, x, store, seconds=3600)
    assert 1 <= len(x.counts_requests) <= 7
    assert state_of(run).queries["one"].audited_id == 0
    events = {problem.event for problem in run.telemetry.problems}
    assert events & {"aside_failed", "audit_problem"}
    ids, state = stored_ids(store.records()), state_of(run).queries["one"]
    assert sorted(ids) == x.existing(state.start_id - 1, state.frontier_id)


async def test_counts_that_come_in_pages_are_followed_to_the_last(tmp_path, world):
    _, clock, x, store = world
    clock.seconds = 13 * 3600

    def paged(request):
        body = {"data": [], "meta": {"total_tweet_count": 0}}
        if request.next_token is None:
            body["meta"]["next_token"] = "more"
        return x.answer(200, body)

    x.counts_faults.append(paged)
    configured = audited(tmp_path, query=[{"name": "one", "rule": "python", "first_poll_hours": 5}])
    run = await live(configured, clock, x, store, seconds=300)
    assert [request.next_token for request in x.counts_requests] == [None, "more"]
    assert state_of(run).queries["one"].audited_id


@pytest.mark.parametrize(
    ("body", "total", "problem"),
    [
        (b'{"data": [{"tweet_count": 3}], "meta": {"total_tweet_count": 3}}', 3, False),
        (b'{"data": [{"post_count": 3}], "meta": {"total_post_count": 3}}', 3, False),
        (b'{"meta": {"total_tweet_count": 0}}', 0, False),
        (b'{"data": 5, "meta": {}}', 0, True),
        (b'{"data": [], "meta": {"total_tweet_count": "3"}}', 0, True),
        (b"<html>", 0, True),
    ],
)
def test_counts_are_read_in_both_vocabularies_and_nothing_is_guessed(body, total, problem):
    facts = counts_facts(body)
    assert (facts.total, facts.problem is not None) == (total, problem)


# What X billed.


async def test_what_x_counted_and_we_did_not_is_booked_and_told(tmp_path, world):
    _, clock, x, store = world
    x.served_elsewhere = 500
    run = await live(settings(tmp_path, budget=PRICED), clock, x, store, seconds=4000)
    money = state_of(run).money
    assert money.day.posts == len(set(x.served)) + 500
    assert money.day.microusd == money.day.posts * 5_000
    spends = [record for record in store.records() if record["kind"] == "spend"]
    assert [record["posts_billed"] for record in spends] == [500]
    assert any(problem.event == "usage_differs" for problem in run.telemetry.problems)
    assert run.service.report.status()["budget"]["x_counted_posts_today"] >= 500


async def test_our_own_books_stay_when_they_agree(tmp_path, world):
    _, clock, x, store = world
    run = await live(settings(tmp_path, budget=PRICED), clock, x, store, seconds=8000)
    assert not [record for record in store.records() if record["kind"] == "spend"]
    assert state_of(run).money.day.posts == len(set(x.served))


def usage(*apps):
    return json.dumps({"data": {"daily_client_app_usage": list(apps)}}).encode()


@pytest.mark.parametrize(
    ("body", "counted"),
    [
        (usage({"usage": [{"date": "2026-11-20T00:00:00.000Z", "usage": "12"}]}), {"2026-11-20": 12}),
        (usage({"usage": [{"date": "2026-11-20", "usage": 12}]}), {"2026-11-20": 12}),
        (usage({"usage": []}), {}),
        (usage({"usage": []}, {"usage": []}), None),
        (usage(), None),
        (usage({"usage": [{"date": "2026-11-20"}]}), None),
        (usage({"usage": [{"date": "2026-11-20", "usage": "many"}]}), None),
        (b'{"data": {}}', None),
        (b"{}", None),
        (b"<html>", None),
    ],
)
def test_what_x_counted_is_taken_only_when_it_is_this_app_s(body, counted):
    assert posts_by_day(body) == counted


async def test_usage_that_cannot_be_told_apart_books_nothing(tmp_path, world):
    _, clock, x, store = world
    x.usage_answer = lambda: x.answer(200, usage({"usage": []}, {"usage": []}))
    run = await live(settings(tmp_path, budget=PRICED), clock, x, store, seconds=300)
    assert not [record for record in store.records() if record["kind"] == "spend"]
    assert any(problem.event == "aside_failed" for problem in run.telemetry.problems)


# A query's own caps.


async def test_a_query_at_its_own_cap_pauses_alone_and_resumes_at_midnight(tmp_path):
    def query(name, **more):
        return {
            "name": name,
            "rule": name,
            "poll_every_seconds": 60,
            "first_poll_hours": 0,
            "overlap_seconds": 0,
        } | more

    clock = VirtualClock()
    x, store = SimulatedX(clock, tweets_per_second=0.5), MemoryStore()
    configured = settings(tmp_path, query=[query("one", usd_per_day=2.0), query("two")])
    run = await live(configured, clock, x, store, seconds=2 * 3600)
    queries = state_of(run).queries
    assert 1.9 <= queries["one"].money.day.microusd / 1e6 <= 2.0
    assert queries["two"].money.day.microusd / 1e6 > 15
    assert "query one.usd_per_day" in str(run.service.report.health()["reasons"])
    assert run.told().count("query_paused") == 1
    clock.seconds = 11.9 * 3600
    run = await live(configured, clock, x, store, seconds=1200)
    money = state_of(run).queries["one"].money
    assert money.day.period == "2026-11-21"
    assert 1.9 <= money.day.microusd / 1e6 <= 2.0
    assert [record["reason"] for record in store.records() if record["kind"] == "gap"] == []
