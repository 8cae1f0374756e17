"""The DAG maintain_tables: its shape, its parameter, and a run on a real lake by `dag.test()`."""

import json
from datetime import timedelta

import pytest

from compaction_dags.compaction import upkeep
from tests.dags import laboratory
from tests.dags.conftest import Laboratory
from tests.dags.laboratory import DagFacts, FolderFacts
from tests.dags.place import FIVE_PAST_TWO, NOON, Lake

pytestmark = pytest.mark.dag


@pytest.fixture(scope="session")
def facts(folder: FolderFacts) -> DagFacts:
    return folder.dags["maintain_tables"]


def test_hours_are_swept_and_tables_tended_beside_each_other(facts: DagFacts) -> None:
    assert {name: task.upstream for name, task in facts.tasks.items()} == {
        "sweep": set(),
        "compact": {"sweep"},
        "announce": {"compact"},
        "totals": {"compact"},
        "tend": set(),
    }
    assert [name for name, task in facts.tasks.items() if task.mapped] == ["compact"], "a task costs seconds"


def test_the_grace_is_a_week_unless_told_otherwise(facts: DagFacts) -> None:
    assert facts.params == {"grace_hours": upkeep.MOST_GRACE / timedelta(hours=1)}


@pytest.mark.parametrize(
    ("hours", "taken"), [(23, False), (24, True), (168, True), (169, False), ("24", False)], ids=str
)
def test_the_bounds_of_the_grace_are_those_of_upkeep(loading: Laboratory, hours: object, taken: bool) -> None:
    refusal = loading(laboratory.refusal_of, "maintain_tables", {"grace_hours": hours})
    assert (refusal is None) == taken
    if isinstance(hours, int):
        assert taken == (upkeep.LEAST_GRACE <= timedelta(hours=hours) <= upkeep.MOST_GRACE)


def test_hours_that_no_tick_looks_at_any_more_are_compacted_and_every_table_is_tended(
    running: Laboratory, lake: Lake
) -> None:
    collected = lake.collect(NOON - timedelta(days=30)) | lake.collect(NOON)
    run = running(laboratory.run_of, "maintain_tables", lake.environment, {}, FIVE_PAST_TWO)
    assert run.state == "success", json.dumps(run.states)
    assert run.announced == ["2026-10-21T12", "2026-11-20T12"]
    assert run.results["tend"]["files_deleted"] == 0
    assert lake.tweets() == sorted(collected)
