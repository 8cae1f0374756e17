"""The pure fold: pages, plans and gaps in any order keep the arithmetic of what is covered."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.records import Interval
from schemas.state import Money, QueryState, State, apply, fold, from_checkpoint, to_checkpoint

AT = datetime(2026, 11, 20, 13, 5, tzinfo=UTC)


def page(since, until, *, oldest=None, below=None, last=False, problem=None, cost=0):
    return {
        "kind": "page", "at": AT, "received_at": AT, "query": "q", "rule": "r", "reason": "live", "since_id": since,
        "until_id": until, "asked_below": below or until, "oldest_id": oldest, "is_last": last, "problem": problem,
        "cost_microusd": cost, "posts_billed": 1 if cost else 0,
    }  # fmt: skip


def plan(*intervals, frontier=None):
    return {
        "kind": "plan", "at": AT, "query": "q", "rule": "r", "frontier_id": frontier,
        "intervals": [Interval(s, u, "r", "backlog").to_record() for s, u in intervals],
    }  # fmt: skip


def todo(state):
    return [(interval.since_id, interval.upper) for interval in state.queries["q"].todo]


def test_a_last_page_alone_covers_its_window():
    state = fold(State(), [page(100, 200, oldest=150, last=True)])
    assert todo(state) == []
    assert state.queries["q"].frontier_id == 200


def test_pages_lower_what_is_missing_and_the_last_ends_it():
    state = fold(State(), [page(100, 200, oldest=180)])
    assert todo(state) == [(100, 180)]
    state = apply(state, page(100, 200, oldest=140, below=180))
    assert todo(state) == [(100, 140)]
    assert todo(apply(state, page(100, 200, below=140, last=True))) == []


def test_a_page_whose_predecessor_is_missing_covers_nothing():
    state = fold(State(), [page(100, 200, oldest=180)])
    assert todo(apply(state, page(100, 200, oldest=120, below=150))) == [(100, 180)]
    assert todo(apply(state, page(100, 200, below=150, last=True))) == [(100, 180)]


def test_a_page_with_a_problem_costs_but_covers_nothing():
    state = fold(State(), [page(100, 200, last=True), page(199, 300, problem="html", cost=500)])
    assert state.queries["q"].frontier_id == 200
    assert state.money.day.microusd == 500


def test_a_gap_clips_what_it_names_and_no_more():
    state = fold(State(), [plan((100, 200), (199, 300), frontier=300)])
    gap = {"kind": "gap", "at": AT, "query": "q", "since_id": 100, "until_id": 151}
    state = apply(state, gap)
    assert todo(state) == [(150, 200), (199, 300)]
    assert todo(apply(state, {**gap, "since_id": 150, "until_id": 300})) == []
    whole = apply(state, {**gap, "since_id": 199, "until_id": 300})
    assert todo(whole) == [(150, 200)]


def test_a_reread_that_is_given_up_leaves_what_was_never_read():
    reread = plan((100, 151))
    reread["intervals"][0]["reason"] = "reread"
    state = fold(State(), [plan((100, 200), frontier=200), reread])
    gap = {"kind": "gap", "at": AT, "query": "q", "since_id": 100, "until_id": 151, "reason": "reread_given_up"}
    assert todo(apply(state, gap)) == [(100, 200)]
    assert todo(apply(state, {**gap, "reason": "out_of_reach"})) == [(150, 200)]


def test_an_unknown_kind_changes_nothing():
    state = fold(State(), [page(100, 200, oldest=180)])
    assert apply(state, {"kind": "from the future", "at": AT}) == state


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 5_000_000), st.integers(0, 100)), max_size=30))
def test_money_is_the_sum_of_the_period_that_counts(bookings):
    money, booked = Money(), []
    at = AT
    for hours, cost, posts in bookings:
        at += timedelta(hours=hours)
        money = money.plus(at, cost, posts)
        booked.append((at, cost, posts))
    today = [entry for entry in booked if entry[0].date() == at.date()]
    assert money.within(at).day.microusd == sum(cost for _, cost, _ in today)
    assert money.within(at).day.posts == sum(posts for _, _, posts in today)
    month = [entry for entry in booked if entry[0].month == at.month]
    assert money.within(at).month.microusd == sum(cost for _, cost, _ in month)


def test_a_clock_set_back_does_not_empty_the_purse():
    money = Money().plus(AT, 100, 1).plus(AT - timedelta(days=2), 50, 1)
    assert money.within(AT - timedelta(days=2)).day.microusd == 150


ids = st.integers(0, 2**63 - 1)
intervals = st.builds(
    Interval, since_id=ids, until_id=ids, rule=st.text(), reason=st.sampled_from(["live", "backlog"]),
    resume_below=st.none() | ids,
)  # fmt: skip
moneys = st.builds(lambda cost, posts: Money().plus(AT, cost, posts), st.integers(0, 10**12), st.integers(0, 10**6))
queries = st.builds(
    QueryState, rule=st.none() | st.text(), start_id=ids, frontier_id=ids,
    todo=st.lists(intervals, max_size=5).map(tuple), money=moneys,
)  # fmt: skip


@given(st.builds(State, queries=st.dictionaries(st.text(min_size=1), queries, max_size=4), money=moneys))
def test_a_checkpoint_is_the_state(state):
    assert from_checkpoint(to_checkpoint(state)) == state


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 2, "queries": {}}', '{"format": 1}', '{"format":"x"}'])
def test_what_is_no_checkpoint_is_refused(text):
    with pytest.raises(ValueError):
        from_checkpoint(text)
