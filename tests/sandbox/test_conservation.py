"""The oracle itself: it finds each thing that can go wrong between X and curated, and nothing in a lake that is whole."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from sandbox.conservation import Microbatch, check
from schemas import snowflake

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
RULES = {"python": "python", "coffee": "coffee"}


def post(seconds):
    """The id of a post made so many seconds after noon."""
    return snowflake.first_id_at(NOON + timedelta(seconds=seconds))


class World:
    """An X that served what it is told to have served. Search knows a post from its time on, or `late` seconds later, until
    it is `replaced`, so many seconds after its time.
    """

    def __init__(self, **served):
        self._served = served
        self.exists = {rule: set(ids) for rule, ids in served.items()}
        self.late = {}
        self.replaced = {}

    def served(self, rule):
        return dict.fromkeys(self._served.get(rule, []), 1)

    def malformed(self, rule):
        return [{"id": "7", "kind": "weird_id"}] if rule == "python" else []

    def truth(self, rule, since, until, at=None):
        def known(one):
            shown = snowflake.time_of(one) + timedelta(seconds=self.late.get(one, 0))
            gone = self.replaced.get(one, float("inf"))
            return at is None or shown.timestamp() <= at < snowflake.time_of(one).timestamp() + gone

        return {one for one in self.exists.get(rule, ()) if since < one < until and known(one)}


class Lake:
    """Two windows a query, ten seconds each, asked for right after they ended; one file for each window."""

    def __init__(self, world):
        self.records = [self.begun(name) for name in RULES]
        self.records += [
            self.page(name, start, [one for one in world.served(name) if post(start) <= one < post(start + 10)])
            for start in (0, 10)
            for name in RULES
        ]
        self.curated = {}
        for name in RULES:
            for one in world.served(name):
                self.curated.setdefault(one, []).append(name)
        self.extra_rows = []

    def begun(self, name):
        began = NOON + timedelta(seconds=3)
        return {"kind": "rule", "query": name, "rule": RULES[name], "frontier_id": post(0) - 1, "at": began}

    def page(self, name, start, ids, **changed):
        until = post(start + 10)
        body = json.dumps({"data": [{"id": str(one)} for one in ids]}).encode()
        return {
            "kind": "page", "query": name, "endpoint": "search_recent", "reason": "live", "problem": None, "is_last": True,
            "since_id": post(start) - 1, "until_id": until, "asked_below": until, "resume_below": None,
            "requested_at": NOON + timedelta(seconds=start + 10), "body": body, **changed,
        }  # fmt: skip

    def gap(self, name, start, reason, at):
        bounds = {"since_id": post(start) - 1, "until_id": post(start + 10)}
        return {"kind": "gap", "query": name, "reason": reason, "at": at, **bounds}

    def microbatches(self):
        yield Microbatch("raw", NOON + timedelta(seconds=30), self.records)

    def rows(self, table, columns):
        rows = [{"id": one, "matched_queries": queries} for one, queries in self.curated.items()]
        return rows + self.extra_rows


@pytest.fixture
def world():
    return World(python=[post(1), post(5), post(15)], coffee=[post(5), post(17)])


@pytest.fixture
def lake(world):
    return Lake(world)


def test_a_whole_lake_holds(lake, world):
    found = check(lake, world, RULES)
    assert found.holds
    assert (found.served, found.distinct, found.curated, found.stored_twice) == (5, 5, 4, 0)
    assert sorted(found.ages) == [13, 15, 25, 25], "of posts that were made since their query began"


def test_a_post_that_was_served_and_is_not_in_raw_is_lost(lake, world):
    lake.records[2] = lake.page("python", 0, [post(1)])
    found = check(lake, world, RULES)
    assert found.lost == {post(5)}
    assert not found.holds


def test_a_post_that_raw_has_and_curated_has_not_is_lost(lake, world):
    del lake.curated[post(17)]
    assert check(lake, world, RULES).lost == {post(17)}


def test_a_post_that_search_knew_and_nobody_asked_for_is_lost(lake, world):
    world.exists["python"].add(post(7))
    assert check(lake, world, RULES).lost == {post(7)}


def test_a_stretch_that_no_page_covers_is_lost_though_the_frontier_is_above(lake, world):
    world.exists["python"].add(post(7))
    world.late[post(7)] = 60
    lake.records[2] = lake.page("python", 0, [post(1), post(5)], is_last=False, resume_below=post(8))
    assert check(lake, world, RULES).lost == {post(7)}


def test_a_post_that_search_did_not_know_when_it_was_asked_for_was_indexed_late(lake, world):
    world.exists["python"].add(post(7))
    world.late[post(7)] = 60
    found = check(lake, world, RULES)
    assert (found.lost, found.indexed_late) == (set(), {post(7)})
    assert found.holds
    world.late[post(7)] = 2
    assert check(lake, world, RULES).lost == {post(7)}


def test_a_post_of_an_answer_that_a_crash_took_and_that_was_replaced_before_it_was_asked_again_is_withdrawn(
    lake, world
):
    lake.records[2] = lake.page("python", 0, [post(1)])
    lake.curated[post(5)] = ["coffee"]
    world.replaced[post(5)] = 4
    found = check(lake, world, RULES)
    assert (found.lost, found.withdrawn) == (set(), {post(5)})
    assert found.holds
    world.replaced[post(5)] = 6
    assert check(lake, world, RULES).lost == {post(5)}, "search still had it when it was asked for"


def test_a_post_that_was_served_in_a_stretch_that_no_kept_page_covers_is_lost_whether_it_was_replaced_or_not(
    lake, world
):
    world.replaced[post(5)] = 4
    lake.records[2] = lake.page("python", 0, [post(1)], is_last=False, resume_below=post(8))
    assert check(lake, world, RULES).lost == {post(5)}


def test_a_page_with_a_problem_covers_nothing_but_its_posts_count(lake, world):
    lake.records[2]["problem"] = "the body is not JSON"
    world.exists["python"].add(post(7))
    assert check(lake, world, RULES).lost == {post(7)}


def test_two_rows_of_one_id_are_told(lake, world):
    lake.extra_rows = [{"id": post(1), "matched_queries": ["python"]}]
    found = check(lake, world, RULES)
    assert found.duplicated == 1
    assert not found.holds


def test_a_post_stored_twice_by_one_query_is_counted_and_harms_nothing(lake, world):
    lake.records.append(lake.page("python", 0, [post(1), post(5)]))
    found = check(lake, world, RULES)
    assert found.stored_twice == 2
    assert found.holds


def test_what_x_never_served_is_invented(lake, world):
    lake.curated[post(3)] = ["python"]
    assert check(lake, world, RULES).invented == {post(3)}
    lake.records.append(lake.page("coffee", 0, [post(4), 7]))
    assert check(lake, world, RULES).invented == {post(3), post(4)}, "a malformed object that was served is not"


def test_a_row_names_the_queries_that_found_it_and_no_other(lake, world):
    lake.curated[post(5)] = ["python"]
    found = check(lake, world, RULES)
    assert found.mislabelled == 1
    assert not found.holds


@pytest.mark.parametrize(
    ("reason", "query", "days", "is_real"),
    [
        ("out_of_reach", "python", 8, True),
        ("out_of_reach", "python", 6, False),
        ("query_removed", "python", 0, False),
        ("query_removed", "tea", 0, True),
        ("refused", "python", 0, False),
    ],
)
def test_a_gap_is_real_if_it_could_not_be_covered(lake, world, reason, query, days, is_real):
    lake.records.append(lake.gap(query, 0, reason, NOON + timedelta(days=days)))
    found = check(lake, world, RULES)
    assert [gap.is_real for gap in found.gaps] == [is_real]
    assert found.holds is is_real


def test_what_lies_in_a_gap_is_not_lost_unless_it_was_asked_for_on_top(lake, world):
    world.exists["python"].add(post(7))
    lake.records.append(lake.gap("python", 0, "reread_given_up", NOON))
    assert check(lake, world, RULES).lost == {post(7)}
    lake.records.append(lake.gap("python", 0, "out_of_reach", NOON + timedelta(days=8)))
    found = check(lake, world, RULES)
    assert not found.lost
    assert found.holds


def test_lakes_add_up(lake, world):
    one, other = check(lake, world, RULES), check(lake, World(python=[post(1)]), RULES)
    both = one + other
    assert both.served == one.served + other.served
    assert both.invented == other.invented
    assert not both.holds
    assert "0 lost" in str(both)


def test_nothing_served_proves_nothing():
    world = World()
    assert not check(Lake(world), world, RULES).holds
