"""What holds for every DAG: it loads without a database, is light to parse, survives the scheduler, and has our manners."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sandbox.airflow import airflow_environment, dags_folder
from tests.dags import laboratory
from tests.dags.conftest import Laboratory
from tests.dags.laboratory import DagFacts, FolderFacts
from tests.house.checkout import ROOT

pytestmark = pytest.mark.dag

DAGS = ["compact_tweets", "maintain_tables", "rebuild_curated"]
"""One file each, of the same name. A new one has to be named here."""

NEVER_TWICE = {
    "SettingsError",
    "AccountingError",
    "LakeRefusedError",
    "RawMissingError",
    "TransformError",
    "UnknownFormatError",
}
"""What a person has to mend. Waiting heals the others."""

HEAVY = ("pyarrow", "pandas", "numpy", "deltalake", "boto3", "botocore", "fastavro", "arro3")


@pytest.fixture(scope="session", params=DAGS)
def dag_id(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def facts(folder: FolderFacts, dag_id: str) -> DagFacts:
    return folder.dags[dag_id]


def test_the_folder_loads_without_a_database_and_holds_these_dags(folder: FolderFacts) -> None:
    assert folder.import_errors == {}
    assert list(folder.dags) == DAGS


def test_only_dag_files_are_parsed(folder: FolderFacts) -> None:
    assert folder.files == [f"{name}.py" for name in DAGS]


def test_missed_ticks_are_not_made_up_for_and_runs_do_not_overlap(facts: DagFacts) -> None:
    assert (facts.catchup, facts.max_active_runs) == (False, 1)


def test_it_can_be_found_and_read_in_the_ui(facts: DagFacts, dag_id: str) -> None:
    assert facts.tags == {"tweetlake", "compaction"}
    assert f"### {dag_id}" in facts.doc
    assert all(f"`{name}`" in facts.doc or f'"{name}"' in facts.doc for name in facts.params)


def test_every_task_is_tried_again_and_bounded_in_time(facts: DagFacts) -> None:
    for task in facts.tasks.values():
        assert task.retries >= 2
        assert 0 < task.execution_timeout_seconds <= 7200


def test_what_is_mapped_is_bounded_at_once(facts: DagFacts) -> None:
    assert all(0 < (task.at_once or 0) <= 2 for task in facts.tasks.values() if task.mapped)


def test_where_there_are_more_workers_a_run_may_take_more_hours_at_once(tmp_path: Path) -> None:
    code = "from compaction_dags.compact_tweets import HOURS_AT_ONCE; print(HOURS_AT_ONCE)"
    environment = airflow_environment(tmp_path, tmp_path / "none.toml") | {"TWEETLAKE_HOURS_AT_ONCE": "8"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "8"


def test_only_what_waiting_can_heal_is_tried_again(loading: Laboratory, facts: DagFacts, dag_id: str) -> None:
    for task in facts.tasks:
        decisions = loading(laboratory.decisions_on_errors, dag_id, task)
        assert {name for name, action in decisions.items() if action == "fail"} == NEVER_TWICE
        assert set(decisions.values()) == {"fail", "default"}


def test_the_scheduler_sees_the_same_dag(loading: Laboratory, facts: DagFacts, dag_id: str) -> None:
    seen = loading(laboratory.tasks_the_scheduler_sees, dag_id)
    assert seen == {name: task.upstream for name, task in facts.tasks.items()}


def test_it_ticks_as_it_is_told_to(loading: Laboratory, dag_id: str) -> None:
    midnight = datetime(2026, 11, 20, tzinfo=UTC)
    ticks = loading(laboratory.next_runs, dag_id, midnight, midnight + timedelta(days=2))
    assert len(ticks) == {"compact_tweets": 48, "maintain_tables": 2, "rebuild_curated": 0}[dag_id]


def test_parsing_loads_nothing_heavy(tmp_path: Path, dag_id: str) -> None:
    """In a process that has imported Airflow alone, so that what is left is what the DAG file brings."""
    code = f"""
import json, runpy, sys
import airflow.sdk
before = set(sys.modules)
runpy.run_path({str(dags_folder() / f"{dag_id}.py")!r})
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
    named = {"compaction_dags", "compaction_dags.steps", "compaction_dags.compaction"}
    assert set(ours) <= named | {"compaction_dags.compaction.errors"}


def test_the_linter_s_rules_for_airflow_3_are_kept() -> None:
    """`make check` has them among all others; here they alone, so that an exception made elsewhere shows."""
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "AIR", str(dags_folder())],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
