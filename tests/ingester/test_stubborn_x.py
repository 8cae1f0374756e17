"""X does one odd thing again and again: it never answers one interval, answers with no page, loses answers it bills, has a
wrong clock, or limits until a moment that is over. The rest goes on, nothing counts as covered, and caps hold.
"""

import json
from datetime import UTC, datetime, timedelta

import pytest

from ingester.answers import judge
from ingester.errors import AnswerLost
from ingester.page.verdict import of_query, verdict
from schemas import snowflake
from tests.ingester.simulation import MemoryStore, Run, SimulatedX, VirtualClock, live, pages, settings, stored_ids

HTTP = "%a, %d %b %Y %H:%M:%S GMT"
QUERY = {"name": "one", "rule": "good", "poll_every_seconds": 60, "first_poll_hours": 1}
TOO_LONG = {"title": "Invalid Request", "errors": [{"message": "Rule must be <= 512 characters"}]}
HOUR = 3600


def world():
    clock = VirtualClock()
    return clock, SimulatedX(clock), MemoryStore()


def of_one(run):
    return run.service._journal.state.queries["one"]


def missing(x, state, store):
    """What counts as covered and was not stored."""
    left = {number for interval in state.todo for number in x.existing(interval.since_id, interval.upper)}
    return set(x.existing(state.start_id, state.frontier_id)) - set(stored_ids(store.records())) - left


# --- an interval that is not answered ---


async def test_what_a_refused_rule_left_behind_does_not_hold_up_the_mended_one(tmp_path):
    clock, x, store = world()
    x.faults.append(lambda request: x.answer(400, TOO_LONG) if request.rule == "bad" else None)
    await live(settings(tmp_path, query=[QUERY | {"rule": "bad"}]), clock, x, store, seconds=HOUR)
    begun, asked = clock.seconds, len(x.requests)
    run = Run(settings(tmp_path, query=[QUERY]), clock, x, store)
    await clock.drive(begun + HOUR)
    state = of_one(run)
    since = snowflake.first_id_at(clock.start + timedelta(seconds=begun))
    await run.stop()
    left = {number for interval in state.todo for number in x.existing(interval.since_id, interval.upper)}
    assert not set(x.existing(since, state.frontier_id)) - set(x.served) - left
    assert "bad" not in {interval.rule for interval in state.todo}
    assert len(x.requests) - asked < 60 * 4
    gaps = [record for record in store.records() if record["kind"] == "gap"]
    assert {(gap["rule"], gap["reason"]) for gap in gaps} == {("bad", "refused")}, (
        "told, so that it can be ordered anew"
    )


async def test_many_intervals_that_x_refuses_do_not_hold_up_live_ones(tmp_path):
    clock, x, store = world()
    x.faults.append(lambda request: x.answer(400, TOO_LONG) if request.rule == "bad" else None)
    await live(settings(tmp_path, query=[QUERY | {"rule": "bad"}]), clock, x, store, seconds=12 * HOUR)
    begun = clock.seconds
    run = Run(settings(tmp_path, query=[QUERY]), clock, x, store)
    await clock.drive(begun + 900)
    todo = of_one(run).todo
    await run.stop()
    assert len([interval for interval in todo if interval.rule == "bad"]) >= 10
    assert len([interval for interval in todo if interval.rule == "good"]) <= 2
    since = snowflake.first_id_at(clock.start + timedelta(seconds=begun))
    late = snowflake.first_id_at(clock.start + timedelta(seconds=begun + 700))
    assert not set(x.existing(since, late)) - set(x.served)


async def test_a_rule_that_x_refuses_is_told_before_it_counts_as_late(tmp_path):
    clock, x, store = world()
    x.faults.append(lambda _: x.answer(400, TOO_LONG))
    run = Run(settings(tmp_path, query=[QUERY | {"poll_every_seconds": 3600}]), clock, x, store)
    await clock.drive(120)
    status = run.service.report.status()
    await run.stop()
    (query,), (check,) = status["queries"], [one for one in status["components"] if one["name"] == "query:one"]
    assert check["reason"] == "query one: X refuses it: 400: Rule must be <= 512 characters"
    assert check["fix"].startswith("mend query.rule")
    assert of_query(query, status).word == "refused by X"
    assert query["late_seconds"] == 0.0


@pytest.mark.parametrize("status", [503, 400])
async def test_one_window_that_x_never_answers_holds_up_nothing_and_is_told(tmp_path, status):
    clock, x, store = world()
    at = snowflake.first_id_at(clock.start + timedelta(seconds=593))

    def older_part_of_one_window(request):
        upper = int(request.next_token) if request.next_token else request.until_id
        is_older = request.next_token or len(x.existing(request.since_id, request.until_id)) <= 100
        return x.answer(status, {"title": "trouble"}) if request.since_id < at < upper and is_older else None

    x.faults.append(older_part_of_one_window)
    run = Run(settings(tmp_path, query=[QUERY | {"first_poll_hours": 0}]), clock, x, store)
    await clock.drive(2 * HOUR)
    state, health = of_one(run), run.service.report.health()
    refused, words = run.told().count("request_refused"), verdict(run.service.report.status()).word
    unserved = set(x.existing(state.start_id, state.frontier_id)) - set(x.served)
    stuck = min(state.todo, key=lambda interval: interval.since_id)
    assert unserved <= {number for each in state.todo for number in x.existing(each.since_id, each.upper)}
    assert stuck.since_id < at < stuck.until_id
    assert len(state.todo) <= 2
    assert len(unserved) < 300
    assert refused < 120, "less than one a live poll"
    assert not health["healthy"]
    assert any("X answers, but not for" in reason for reason in health["reasons"])
    assert words == "Collecting, with something to mend"
    x.faults.clear()
    await clock.drive(clock.seconds + HOUR)
    state, health = of_one(run), run.service.report.health()
    await run.stop()
    assert stuck.key not in {interval.key for interval in state.todo}
    assert not missing(x, state, store)
    assert health["healthy"], health["reasons"]


# --- answers that are none ---


@pytest.mark.parametrize(
    "body",
    [
        b"{}", b'{"errors":[{"title":"Internal Error"}]}', b'{"title":"Service Unavailable","status":503}',
        b'{"meta":{}}', b'{"meta":{"result_count":40}}', b'{"meta":{"result_count":true}}', b'{"data":[],"meta":null}',
        b'{"data":[],"meta":{"result_count":0,"next_token":5}}', b'{"meta":{"result_count":0,"next_token":"\\ud800"}}',
    ],
)  # fmt: skip
async def test_a_200_that_is_no_page_covers_nothing(tmp_path, body):
    clock, x, store = world()
    x.faults.append(lambda _: x.answer(200, body) if 100 < clock.seconds < 200 else None)
    run = await live(settings(tmp_path, query=[QUERY]), clock, x, store, seconds=900)
    state = run.service._work.journal.state.queries["one"]
    assert not missing(x, state, store)
    assert len(state.todo) <= 1
    problems = [record for record in pages(store.records()) if record["problem"]]
    assert problems, "its bytes are kept"
    assert sum(record["cost_microusd"] for record in problems) == 40 * 5_000 * len(problems) * (b"40" in body)


async def test_a_page_that_does_not_say_whether_there_is_more_is_gone_on_below(tmp_path):
    clock, x, store = world()

    def without_meta(request):
        if not 100 < clock.seconds < 400:
            return None
        ids = sorted(x.existing(request.since_id, request.until_id), reverse=True)[:10]
        return x.answer(
            200, {"data": [{"id": str(number)} for number in ids]} if ids else {"meta": {"result_count": 0}}
        )

    x.faults.append(without_meta)
    run = await live(settings(tmp_path, query=[QUERY | {"first_poll_hours": 0}]), clock, x, store, seconds=950)
    state = run.service._work.journal.state.queries["one"]
    assert not missing(x, state, store)


@pytest.mark.parametrize("deep", [b"[" * 100_000, b'{"a":' * 100_000])
def test_no_body_is_too_deep_to_be_judged(deep):
    page = judge(SimulatedX(VirtualClock()).answer(200, b'{"meta":{"result_count":0},"x":' + deep)).page
    assert page is not None
    assert page.problem


def test_half_a_character_in_what_x_says_is_no_half_a_character_of_ours():
    judged = judge(SimulatedX(VirtualClock()).answer(400, b'{"detail":"\\ud800"}'))
    assert judged.detail.encode() == b"400: ?"


# --- answers that are lost ---


def losing(x, clock, since, until):
    """X reads, bills and answers, and the answer does not arrive."""
    real = x.search

    async def search(request):
        answer = await real(request)
        if since < clock.seconds < until:
            raise AnswerLost("no whole answer in time")
        return answer

    x.search = search


@pytest.mark.parametrize("reconcile", [False, True])
async def test_a_cap_holds_though_no_answer_arrives(tmp_path, reconcile):
    clock, x, store = world()
    x.tweets_per_second = 5
    losing(x, clock, 100, 1e9)
    budget = {"usd_per_day": 5.0, "usd_per_month": None, "reconcile": reconcile}
    run = Run(settings(tmp_path, budget=budget), clock, x, store)
    await clock.drive(6 * HOUR)
    await run.stop()
    assert 2.0 < len(x.read_on["2026-11-20"]) * 0.005 <= 5.0


async def test_what_was_lost_is_given_back_once_x_answers_again(tmp_path):
    clock, x, store = world()
    losing(x, clock, 100, 400)
    run = Run(settings(tmp_path), clock, x, store)
    await clock.drive(390)
    during, read = of_one(run).money.day, len(x.read_on["2026-11-20"])
    await clock.drive(1000)
    after = run.service._journal.state.money.day
    await run.stop()
    assert during.posts > read
    assert after.posts == len(x.read_on["2026-11-20"])
    assert after.microusd == after.posts * 5_000
    assert {record["reason"] for record in store.records() if record["kind"] == "spend"} == {"unanswered", "answered"}


async def test_a_cap_that_lost_answers_used_up_is_free_again_once_x_has_counted(tmp_path):
    clock, x, store = world()
    x.tweets_per_second = 0.01
    losing(x, clock, 100, 1800)
    budget = {"usd_per_day": 3.0, "usd_per_month": None, "reconcile": True}
    run = Run(settings(tmp_path, budget=budget), clock, x, store)
    await clock.drive(1900)
    paused = run.service._work.gate.hold
    await clock.drive(2 * HOUR)
    day = run.service._journal.state.money.day
    await run.stop()
    assert paused is not None
    assert paused.kind == "budget"
    assert day.posts == len(x.read_on["2026-11-20"])


# --- clocks and limits ---


@pytest.mark.parametrize("off", [timedelta(days=30), timedelta(hours=5), timedelta(days=-3)], ids=str)
async def test_one_answer_with_a_wrong_date_is_not_believed(tmp_path, off):
    clock, x, store = world()
    struck = []

    def wrong(_):
        if clock.seconds > 100 and not struck:
            struck.append(1)
            return x.answer(503, b"", date=(clock.true_now() + off).strftime(HTTP))
        return None

    x.faults.append(wrong)
    run = Run(settings(tmp_path), clock, x, store)
    await clock.drive(2 * HOUR)
    state = of_one(run)
    await run.stop()
    assert struck
    assert not [record for record in store.records() if record["kind"] == "gap"]
    assert snowflake.time_of(state.frontier_id) > clock.true_now() - timedelta(minutes=3)


@pytest.mark.parametrize("past", [1, 3600])
async def test_a_limit_that_is_over_by_its_own_words_is_no_hot_loop(tmp_path, past):
    clock, x, store = world()

    def limited(_):
        if 100 < clock.seconds < 160:
            reset = str(int(clock.true_now().timestamp()) - past)
            rate = {"x-rate-limit-limit": "450", "x-rate-limit-remaining": "0", "x-rate-limit-reset": reset}
            return x.answer(429, {"title": "Too Many Requests"}, **rate)
        return None

    x.faults.append(limited)
    await live(settings(tmp_path), clock, x, store, seconds=300)
    refused = len(x.requests) - len(pages(store.records()))
    assert 2 < refused < 10


async def test_a_reset_far_off_is_a_wrong_clock_also_without_a_429(tmp_path):
    clock, x, store = world()
    struck = []

    def far(_):
        if clock.seconds > 100 and not struck:
            struck.append(1)
            reset = str(int(clock.true_now().timestamp()) + 86_400)
            rate = {"x-rate-limit-limit": "450", "x-rate-limit-remaining": "0", "x-rate-limit-reset": reset}
            return x.answer(200, {"meta": {"result_count": 0}}, **rate)
        return None

    x.faults.append(far)
    run = Run(settings(tmp_path), clock, x, store)
    await clock.drive(HOUR)
    await run.stop()
    assert struck
    assert len(x.requests) > 20


async def test_repeats_after_a_restart_are_those_of_x_s_day_whatever_our_clock_says(tmp_path):
    clock = VirtualClock(datetime(2026, 11, 20, 23, 40, tzinfo=UTC))
    clock.offset = timedelta(hours=1)
    x, store = SimulatedX(clock), MemoryStore()
    spool = {"directory": tmp_path / "spool", "min_free_bytes": 0, "seal_after_seconds": 3600}
    query = [QUERY | {"first_poll_hours": 0, "overlap_seconds": 1800}]
    await live(settings(tmp_path, query=query, spool=spool), clock, x, store, seconds=1190)
    clock.seconds = 1205
    run = Run(settings(tmp_path, query=query, spool=spool), clock, x, store)
    await clock.drive(1230)
    booked = run.service._journal.state.money.day
    await run.stop()
    assert booked.posts >= len(x.read_on["2026-11-21"]) > 100


async def test_an_order_of_years_is_one_stretch_given_up_and_the_days_that_x_has(tmp_path):
    clock, x, store = world()
    run = Run(settings(tmp_path, query=[QUERY]), clock, x, store)
    await clock.drive(120)
    order = {"kind": "backfill", "query": "one", "since": "2010-01-01T00:00:00Z", "until": "2026-11-20T00:00:00Z"}
    store.objects["control/requests/20261120T120000Z-aaaa.json"] = (json.dumps(order).encode(), {})
    await clock.drive(400)
    todo = of_one(run).todo
    await run.stop()
    plans = [record for record in store.records() if record["kind"] == "plan" and record["reason"] == "backfill"]
    assert len(plans) == 1
    assert 100 < len(plans[0]["intervals"]) < 180
    given_up = [record for record in store.records() if record["kind"] == "gap"]
    assert len(given_up) <= 4
    assert {record["reason"] for record in given_up} == {"backfill_given_up"}
    assert len(todo) < 180
