"""The DAG compact_tweets as a timetable: its shape, ticks and refusals."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from tests.dags import laboratory
from tests.dags.conftest import Laboratory
from tests.dags.laboratory import DagFacts, FolderFacts

pytestmark = pytest.mark.dag


@pytest.fixture(scope="session")
def facts(folder: FolderFacts) -> DagFacts:
    return folder.dags["compact_tweets"]


def test_hours_are_listed_then_mapped_then_announced_and_summed(facts: DagFacts) -> None:
    assert {name: task.upstream for name, task in facts.tasks.items()} == {
        "stale_hours": set(),
        "compact": {"stale_hours"},
        "announce": {"compact"},
        "totals": {"compact"},
        "order_holes": {"totals"},
    }
    assert [name for name, task in facts.tasks.items() if task.mapped] == ["compact"]


def test_one_run_leaves_memory_for_the_ingester(facts: DagFacts) -> None:
    assert facts.tasks["compact"].at_once == 2


def test_only_announce_updates_the_asset(facts: DagFacts) -> None:
    assert {name: task.outlets for name, task in facts.tasks.items() if task.outlets} == {
        "announce": ["tweetlake://curated/tweets"]
    }


def test_a_run_compacts_what_is_stale_unless_told_otherwise(facts: DagFacts) -> None:
    assert facts.params == {"hours": [], "include_open": False, "order_holes": False}


@pytest.mark.parametrize(
    "conf",
    [
        {"hours": ["2026-11-20"]},
        {"hours": ["2026-11-20T24"]},
        {"hours": ["2026-11-20T13:05"]},
        {"hours": "2026-11-20T13"},
        {"hours": [13]},
        {"hours": ["2026-11-20T13"] * 501},
        {"include_open": "yes"},
        {"order_holes": 1},
    ],
    ids=lambda conf: json.dumps(conf)[:40],
)
def test_parameters_that_make_no_sense_are_refused_before_the_run(loading: Laboratory, conf: dict[str, object]) -> None:
    refusal = loading(laboratory.refusal_of, "compact_tweets", conf)
    assert refusal is not None
    assert next(iter(conf)) in refusal


@pytest.mark.parametrize("conf", [{}, {"hours": ["2026-11-20T13", "2026-11-20T00"]}, {"include_open": True}], ids=str)
def test_parameters_that_make_sense_are_taken(loading: Laboratory, conf: dict[str, object]) -> None:
    assert loading(laboratory.refusal_of, "compact_tweets", conf) is None


def test_it_ticks_five_minutes_past_every_hour_in_utc(loading: Laboratory) -> None:
    midnight = datetime(2026, 11, 20, tzinfo=UTC)
    ticks = loading(laboratory.next_runs, "compact_tweets", midnight, midnight + timedelta(hours=26))
    expected = [midnight + timedelta(hours=hour, minutes=5) for hour in range(26)]
    assert [run_after for run_after, _ in ticks] == expected
    assert [logical_date for _, logical_date in ticks] == expected
