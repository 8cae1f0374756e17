"""The DAG compact_tweets as a timetable: it loads, is light to parse, has the right shape, ticks and refusals."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sandbox.airflow import airflow_environment, dags_folder
from tests.dags import laboratory
from tests.dags.conftest import Laboratory
from tests.dags.laboratory import DagFacts

pytestmark = pytest.mark.dag

HEAVY = ("pyarrow", "pandas", "numpy", "deltalake", "boto3", "botocore", "fastavro", "arro3")


def test_the_folder_loads_without_a_database_and_holds_this_one_dag(facts: DagFacts) -> None:
    assert facts.import_errors == {}
    assert facts.dag_ids == ["compact_tweets"]


def test_only_dag_files_are_parsed(facts: DagFacts) -> None:
    assert facts.files == ["compact_tweets.py"]


def test_missed_ticks_are_not_made_up_for_and_runs_do_not_overlap(facts: DagFacts) -> None:
    assert (facts.catchup, facts.max_active_runs) == (False, 1)


def test_it_can_be_found_and_read_in_the_ui(facts: DagFacts) -> None:
    assert facts.tags == {"tweetlake", "compaction"}
    assert "TWEETLAKE_CONFIG" in facts.doc
    assert "include_open" in facts.doc


def test_hours_are_listed_then_mapped_then_announced_and_summed(facts: DagFacts) -> None:
    assert {name: task.upstream for name, task in facts.tasks.items()} == {
        "stale_hours": set(),
        "compact": {"stale_hours"},
        "announce": {"compact"},
        "totals": {"compact"},
    }
    assert [name for name, task in facts.tasks.items() if task.mapped] == ["compact"]


def test_every_task_is_tried_again_and_bounded_in_time(facts: DagFacts) -> None:
    for task in facts.tasks.values():
        assert task.retries >= 2
        assert 0 < task.execution_timeout_seconds <= 3600


def test_only_what_waiting_can_heal_is_tried_again(loading: Laboratory) -> None:
    decisions = loading(laboratory.decisions_on_errors)
    assert {name for name, action in decisions.items() if action == "default"} == {
        "ConflictError",
        "LakeUnreachableError",
    }
    assert {name for name, action in decisions.items() if action == "fail"} == decisions.keys() - {
        "ConflictError",
        "LakeUnreachableError",
    }


def test_one_run_leaves_memory_for_the_ingester(facts: DagFacts) -> None:
    assert facts.tasks["compact"].at_once == 2


def test_only_announce_updates_the_asset(facts: DagFacts) -> None:
    assert {name: task.outlets for name, task in facts.tasks.items() if task.outlets} == {
        "announce": ["tweetlake://curated/tweets"]
    }


def test_a_run_compacts_what_is_stale_unless_told_otherwise(facts: DagFacts) -> None:
    assert facts.params == {"hours": [], "include_open": False}


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
    ],
    ids=lambda conf: json.dumps(conf)[:40],
)
def test_parameters_that_make_no_sense_are_refused_before_the_run(loading: Laboratory, conf: dict[str, object]) -> None:
    refusal = loading(laboratory.refusal_of, conf)
    assert refusal is not None
    assert next(iter(conf)) in refusal


@pytest.mark.parametrize("conf", [{}, {"hours": ["2026-11-20T13", "2026-11-20T00"]}, {"include_open": True}], ids=str)
def test_parameters_that_make_sense_are_taken(loading: Laboratory, conf: dict[str, object]) -> None:
    assert loading(laboratory.refusal_of, conf) is None


def test_it_ticks_five_minutes_past_every_hour_in_utc(loading: Laboratory) -> None:
    midnight = datetime(2026, 11, 20, tzinfo=UTC)
    ticks = loading(laboratory.next_runs, midnight, midnight + timedelta(hours=26))
    expected = [midnight + timedelta(hours=hour, minutes=5) for hour in range(26)]
    assert [run_after for run_after, _ in ticks] == expected
    assert [logical_date for _, logical_date in ticks] == expected


def test_the_scheduler_sees_the_same_dag(loading: Laboratory, facts: DagFacts) -> None:
    seen = loading(laboratory.tasks_the_scheduler_sees)
    assert seen == {name: task.upstream for name, task in facts.tasks.items()}


def test_parsing_loads_nothing_heavy(tmp_path: Path) -> None:
    """In a process that has imported Airflow alone, so that what is left is what the DAG file brings."""
    code = f"""
import json, runpy, sys
import airflow.sdk
before = set(sys.modules)
runpy.run_path({str(dags_folder() / "compact_tweets.py")!r})
print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
print(json.dumps(sorted(name for name in set(sys.modules) - before if name.startswith("compaction_dags"))))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=airflow_environment(tmp_path, tmp_path / "none.toml"),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded, ours = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    assert not set(HEAVY) & set(loaded)
    assert set(ours) <= {"compaction_dags", "compaction_dags.compaction", "compaction_dags.compaction.errors"}
