"""Whatever X answers: retried, paused with a visible reason, or recorded; never a hot loop, never a hole."""

import itertools
import json

import pytest

from ingester.answers import Meaning, judge
from ingester.errors import Transient
from tests.ingester.simulation import MemoryStore, SimulatedX, VirtualClock, live, pages, settings, stored_ids

TITLES = {
    400: {"title": "Invalid Request", "errors": [{"message": "bad rule", "parameters": {}}]},
    401: {"title": "Unauthorized", "type": "about:blank", "status": 401, "detail": "Unauthorized"},
    402: {"type": "https://api.twitter.com/2/problems/credits", "title": "CreditsDepleted", "detail": "no credits"},
    403: {
        "title": "Client Forbidden",
        "reason": "client-not-enrolled",
        "type": "https://api.x.com/2/problems/client-forbidden",
    },
    404: {"title": "Not Found"},
    429: {"title": "Too Many Requests", "detail": "Too Many Requests", "type": "about:blank", "status": 429},
    500: b"",
    502: b"<html>bad gateway</html>",
    503: {"title": "Service Unavailable", "status": 503},
}
CAP = {
    "title": "UsageCapExceeded",
    "period": "Monthly",
    "scope": "Product",
    "type": "https://api.x.com/2/problems/usage-capped",
}


@pytest.fixture
def world(tmp_path):
    clock = VirtualClock()
    return settings(tmp_path), clock, SimulatedX(clock), MemoryStore()


def while_between(clock, begin, end, make):
    return lambda request: make() if begin < clock.seconds < end else None


@pytest.mark.parametrize(
    ("body", "status", "meaning"),
    [
        (TITLES[400], 400, Meaning.BAD_REQUEST),
        (TITLES[401], 401, Meaning.NOT_ALLOWED),
        (TITLES[402], 402, Meaning.NO_CREDITS),
        (TITLES[402], 403, Meaning.NO_CREDITS),
        (TITLES[403], 403, Meaning.NOT_ALLOWED),
        (TITLES[429], 429, Meaning.RATE_LIMITED),
        ({"errors": [{"code": 88, "message": "Rate limit exceeded"}]}, 429, Meaning.RATE_LIMITED),
        (CAP, 429, Meaning.CAP_REACHED),
        ({"title": "UsageCapExceeded"}, 429, Meaning.CAP_REACHED),
        (b"<html>", 429, Meaning.RATE_LIMITED),
        (b"<html>", 503, Meaning.TROUBLE),
        (b"", 500, Meaning.TROUBLE),
        (b"[]", 401, Meaning.NOT_ALLOWED),
        (b"{}", 408, Meaning.TROUBLE),
        (b"", 302, Meaning.TROUBLE),
    ],
)
def test_every_answer_has_its_meaning(body, status, meaning):
    assert judge(SimulatedX(VirtualClock()).answer(status, body)).meaning is meaning


@pytest.mark.parametrize("status", sorted(TITLES))
async def test_a_refusal_is_asked_seldom_and_ends_by_itself(world, status):
    configured, clock, x, store = world
    x.faults.append(while_between(clock, 100, 1900, lambda: x.answer(status, TITLES[status])))
    counted = []
    x.faults.append(lambda request: counted.append(clock.seconds))
    run = await live(configured, clock, x, store, seconds=3600)
    during = [request for request in x.requests]  # noqa: C416
    refused = len(during) - len(pages(store.records()))
    assert 1 <= refused <= 120, "about one request a minute at most, after the first tries"
    ids = stored_ids(store.records())
    state = run.service._work.journal.state.queries["one"]
    assert sorted(ids) == x.existing(state.start_id, state.frontier_id)
    assert state.todo == ()
    assert run.telemetry.problems, "it was told"


async def test_a_429_without_reset_waits_a_minute_not_a_loop(world):
    configured, clock, x, store = world
    x.faults.append(while_between(clock, 100, 400, lambda: x.answer(429, TITLES[429])))
    await live(configured, clock, x, store, seconds=600)
    refused = len(x.requests) - len(pages(store.records()))
    assert 1 <= refused <= 6


async def test_a_429_with_reset_waits_for_it(world):
    configured, clock, x, store = world
    start = clock.true_now().timestamp()

    def limited(request):
        if 100 < clock.seconds < 700:
            return x.answer(
                429,
                TITLES[429],
                **{
                    "x-rate-limit-limit": "450",
                    "x-rate-limit-remaining": "0",
                    "x-rate-limit-reset": str(int(start + 700)),
                },
            )
        return None

    x.faults.append(limited)
    run = await live(configured, clock, x, store, seconds=900)
    assert len(x.requests) - len(pages(store.records())) == 1
    state = run.service._work.journal.state.queries["one"]
    assert sorted(stored_ids(store.records())) == x.existing(state.start_id, state.frontier_id)


async def test_the_monthly_cap_pauses_although_requests_remain(world):
    configured, clock, x, store = world
    headers = {"x-rate-limit-limit": "40000", "x-rate-limit-remaining": "39999", "x-rate-limit-reset": "1"}
    x.faults.append(while_between(clock, 100, 10_000, lambda: x.answer(429, CAP, **headers)))
    run = await live(configured, clock, x, store, seconds=3600)
    refused = len(x.requests) - len(pages(store.records()))
    assert 2 <= refused <= 6
    assert "cap_reached" in str(run.service.report.health()["reasons"])


async def test_no_answer_is_tried_again_with_back_off(world):
    configured, clock, x, store = world
    x.faults.append(while_between(clock, 100, 1000, lambda: Transient("reset")))
    run = await live(configured, clock, x, store, seconds=1200)
    assert len(x.requests) - len(pages(store.records())) < 80
    state = run.service._work.journal.state.queries["one"]
    assert sorted(stored_ids(store.records())) == x.existing(state.start_id, state.frontier_id)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>maintenance</html>",
        b"",
        b"[1, 2]",
        b'"text"',
        b"null",
        b"{",
        b"\xff\xfe",
        b'{"data": 5}',
        b"[" * 100_000,
    ],
)
async def test_a_200_that_is_no_page_is_kept_and_its_window_asked_again(world, body):
    configured, clock, x, store = world
    x.faults.append(while_between(clock, 100, 160, lambda: x.answer(200, body)))
    run = await live(configured, clock, x, store, seconds=400)
    odd = [record for record in pages(store.records()) if record["problem"]]
    assert odd
    assert all(record["body"] == body for record in odd), "raw keeps what X sent, byte for byte"
    state = run.service._work.journal.state.queries["one"]
    assert sorted(stored_ids(store.records())) == x.existing(state.start_id, state.frontier_id)


async def test_odd_ids_do_not_stop_the_window(world):
    configured, clock, x, store = world
    items = [
        {"id": "99999999999999999999"},
        {"id": "-5"},
        {"id": "abc"},
        {"text": "no id"},
        {"id": 7},
        "not an object",
        None,
    ]
    body = json.dumps({"data": items, "meta": {"result_count": 7}}).encode()
    x.faults.append(while_between(clock, 100, 125, lambda: x.answer(200, body)))
    await live(configured, clock, x, store, seconds=300)
    kept = [record for record in pages(store.records()) if record["body"] == body]
    assert len(kept) == 1
    assert kept[0]["is_last"]
    assert kept[0]["oldest_id"] is None


def endless(x, *, ids, token):
    """A page that always says there is more."""
    body = {"meta": {"result_count": len(ids), "next_token": token()}}
    if ids:
        body["data"] = [{"id": str(number)} for number in ids]
    return x.answer(200, body)


@pytest.mark.parametrize("kind", ["same token", "new tokens", "same page", "ids outside"])
async def test_a_page_that_says_more_for_ever_is_no_loop(world, kind):
    configured, clock, x, store = world
    numbers = itertools.count()
    held = {}

    def fault(request):
        if not 100 < clock.seconds < 1000:
            return None
        if kind == "same token":
            return endless(x, ids=[], token=lambda: "again")
        if kind == "new tokens":
            return endless(x, ids=[], token=lambda: f"t{next(numbers)}")
        if kind == "same page":
            ids = held.setdefault((request.since_id), x.existing(request.since_id, request.until_id)[-10:])
            return endless(x, ids=ids, token=lambda: f"t{next(numbers)}")
        return endless(x, ids=[request.until_id + 5], token=lambda: f"t{next(numbers)}")

    x.faults.append(fault)
    run = await live(configured, clock, x, store, seconds=1500)
    assert any(record["problem"] for record in pages(store.records()))
    state = run.service._work.journal.state.queries["one"]
    missing = set(x.existing(state.start_id, state.frontier_id)) - set(stored_ids(store.records()))
    assert not missing
    assert len(x.requests) < 1500, "bounded, also when every page asks for another"


async def test_an_expired_token_goes_on_by_bounds_and_pays_nothing_twice(tmp_path):
    clock = VirtualClock()
    x, store = SimulatedX(clock, tweets_per_second=20), MemoryStore()
    refused = []

    def expired(request):
        if request.next_token and len(refused) < 3:
            refused.append(request)
            return x.answer(400, {"title": "Invalid Request", "errors": [{"message": "next_token expired"}]})
        return None

    x.faults.append(expired)
    run = await live(settings(tmp_path), clock, x, store, seconds=115)
    ids = stored_ids(store.records())
    state = run.service._work.journal.state.queries["one"]
    assert len(refused) == 3
    assert sorted(ids) == x.existing(state.start_id, state.frontier_id)
    assert len(x.served) == len(ids)


async def test_a_backlog_that_waits_for_the_rate_window_does_not_delay_its_own_live_polls(tmp_path):
    query = {"name": "one", "rule": "python", "poll_every_seconds": 30, "first_poll_hours": 100, "overlap_seconds": 0}
    clock = VirtualClock()
    x, store = SimulatedX(clock, tweets_per_second=1), MemoryStore()
    reset = clock.true_now().timestamp() + 10_000
    x.headers = {"x-rate-limit-limit": "450", "x-rate-limit-remaining": "20", "x-rate-limit-reset": str(int(reset))}
    await live(settings(tmp_path, query=[query]), clock, x, store, seconds=600)
    frontiers = [record["until_id"] for record in pages(store.records()) if record["reason"] == "live"]
    assert len(set(frontiers)) >= 18, "a live window every 30 s although the backlog waits"


async def test_a_backlog_does_not_delay_the_live_polls_of_another_query(tmp_path):
    queries = [
        {"name": "old", "rule": "old", "poll_every_seconds": 60, "first_poll_hours": 100, "overlap_seconds": 0},
        {"name": "live", "rule": "live", "poll_every_seconds": 30, "first_poll_hours": 0, "overlap_seconds": 0},
    ]
    clock = VirtualClock()
    x, store = SimulatedX(clock, tweets_per_second=1), MemoryStore()
    state = {"remaining": 450, "reset": clock.true_now().timestamp() + 900}

    def rate(request):
        now = clock.true_now().timestamp()
        if now >= state["reset"]:
            state.update(remaining=450, reset=now + 900)
        state["remaining"] -= 1
        x.headers = {
            "x-rate-limit-limit": "450",
            "x-rate-limit-remaining": str(state["remaining"]),
            "x-rate-limit-reset": str(int(state["reset"])),
        }
        return x.answer(429, TITLES[429]) if state["remaining"] < 0 else None

    x.faults.append(rate)
    asked = []
    x.faults.append(lambda request: asked.append((clock.seconds, request.rule)))
    await live(
        settings(tmp_path, query=queries, spool={"directory": tmp_path / "spool", "min_free_bytes": 0}),
        clock,
        x,
        store,
        seconds=3600,
    )
    times = [at for at, rule in asked if rule == "live"]
    longest = max(b - a for a, b in itertools.pairwise(times))
    assert longest <= 60, "never more than one interval late"
    assert sum(1 for _, rule in asked if rule == "old") > 1000, "the backlog uses what is left"
    assert not any(record["status"] == 429 for record in pages(store.records()))
