"""What the DAG tests do with Airflow, in a process of its own: Airflow takes over logging, warnings and the environment.

Every function here runs in the child that conftest.py starts; arguments and results are plain values.
"""

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock


def serve(requests: Connection, environment: dict[str, str]) -> None:
    """The child: answer one call after the other until the parent is done with it, or gone."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    assert "airflow" not in sys.modules
    os.environ.clear()
    os.environ.update(environment)
    with contextlib.suppress(EOFError):
        while True:
            function, arguments = requests.recv()
            try:
                requests.send((function(*arguments), None))
            except Exception as error:  # noqa: BLE001 - whatever it is, the parent raises it
                error.add_note(traceback.format_exc())
                requests.send((None, error))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@dataclass(frozen=True)
class TaskFacts:
    """A task as the DAG file declares it."""

    upstream: set[str]
    downstream: set[str]
    mapped: bool
    retries: int
    execution_timeout_seconds: float
    trigger_rule: str
    outlets: list[str]
    at_once: int | None


@dataclass(frozen=True)
class DagFacts:
    """A DAG as Airflow loads it."""

    catchup: bool
    max_active_runs: int
    tags: set[str]
    doc: str
    timetable: str
    params: dict[str, Any]
    tasks: dict[str, TaskFacts]


@dataclass(frozen=True)
class FolderFacts:
    """The DAGs folder as Airflow loads it."""

    import_errors: dict[str, str]
    files: list[str]
    dags: dict[str, DagFacts]


@dataclass(frozen=True)
class Run:
    """What a run of the DAG left in Airflow's database. Mapped tasks are named `compact[<what the UI shows>]`."""

    state: str
    states: dict[str, str]
    tries: dict[str, int]
    results: dict[str, Any]
    announced: list[str]


def load() -> FolderFacts:
    """Load the DAGs folder. Needs no database."""
    bag = _bag()
    return FolderFacts(
        import_errors=bag.import_errors,
        files=sorted(Path(stat.file).name for stat in bag.dagbag_stats),
        dags={dag_id: _facts_of(dag) for dag_id, dag in sorted(bag.dags.items())},
    )


def _facts_of(dag: Any) -> DagFacts:
    return DagFacts(
        catchup=dag.catchup,
        max_active_runs=dag.max_active_runs,
        tags=set(dag.tags),
        doc=dag.doc_md or "",
        timetable=type(dag.timetable).__name__,
        params=dag.params.dump(),
        tasks={
            task.task_id: TaskFacts(
                upstream=set(task.upstream_task_ids),
                downstream=set(task.downstream_task_ids),
                mapped=bool(task.is_mapped),
                retries=task.retries,
                execution_timeout_seconds=task.execution_timeout.total_seconds(),
                trigger_rule=str(task.trigger_rule),
                outlets=[asset.uri for asset in task.outlets],
                at_once=task.max_active_tis_per_dagrun,
            )
            for task in dag.tasks
        },
    )


def next_runs(dag_id: str, after: datetime, before: datetime) -> list[tuple[datetime, datetime | None]]:
    """The ticks between two moments, each with its logical date, of the DAG as the scheduler sees it."""
    ticks = _scheduled_dag(dag_id).iter_dagrun_infos_between(after, before)
    return [(info.run_after, info.logical_date) for info in ticks]


def tasks_the_scheduler_sees(dag_id: str) -> dict[str, set[str]]:
    """Per task, what is upstream of it, after the DAG went through JSON and back."""
    return {task.task_id: set(task.upstream_task_ids) for task in _scheduled_dag(dag_id).tasks}


def refusal_of(dag_id: str, conf: Mapping[str, Any]) -> str | None:
    """Why these parameters are refused when a run is triggered; None if they are taken."""
    from airflow.exceptions import ParamValidationError

    try:
        _scheduled_dag(dag_id).params.deep_merge(dict(conf)).validate()
    except ParamValidationError as error:
        return str(error)
    return None


def decisions_on_errors(dag_id: str, task_id: str) -> dict[str, str]:
    """What a task does about each error that compaction may raise, and about a bad settings file."""
    from compaction_dags.compaction import errors
    from schemas.settings import SettingsError

    policy = _bag().dags[dag_id].task_dict[task_id].retry_policy
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and kind is not errors.CompactionError]
    raised = [SettingsError("file", []), *(kind("") for kind in kinds)]
    return {type(error).__name__: policy.evaluate(error, 1, 5).action.value for error in raised}


def make_database() -> None:
    from airflow.utils.db import initdb

    initdb()


def run(
    environment: Mapping[str, str],
    conf: Mapping[str, Any],
    run_after: datetime,
    *,
    dag_id: str = "compact_tweets",
    retrying: bool = False,
) -> Run:
    """Run a DAG to its end by `dag.test()`, with these environment variables, as if it were due at `run_after`.

    Unless `retrying`, a failure is final at once, where the DAG would wait and try again.
    """
    dag = _bag().dags[dag_id]
    if not retrying:
        for task in dag.tasks:
            task.retries = 0
    with mock.patch.dict(os.environ, environment):
        return _facts(dag.test(run_after=run_after, logical_date=None, run_conf=dict(conf)))


def run_of(dag_id: str, environment: Mapping[str, str], conf: Mapping[str, Any], run_after: datetime) -> Run:
    """As `run`, of any DAG."""
    return run(environment, conf, run_after, dag_id=dag_id)


def run_retrying(environment: Mapping[str, str], run_after: datetime) -> Run:
    """As `run`, with the DAG's own retries."""
    return run(environment, {}, run_after, retrying=True)


def run_with_failing_hour(failing: str, hours: list[str], run_after: datetime, config: str) -> Run:
    """Run compact_tweets over a compaction that refuses one hour for good and does the others."""
    from compaction_dags.compaction import job
    from compaction_dags.compaction.checks import HourSummary
    from compaction_dags.compaction.errors import RawMissingError

    def compact_hour(settings: object, hour: str, progress: object) -> HourSummary:
        if hour == failing:
            raise RawMissingError(hour)
        return HourSummary(raw_hours=1, pages=2)

    with mock.patch.object(job, "plan_hours", return_value=hours), mock.patch.object(job, "compact_hour", compact_hour):
        return run_retrying({"TWEETLAKE_CONFIG": config}, run_after)


def _bag() -> Any:
    from airflow.dag_processing.dagbag import DagBag

    return DagBag()


def _scheduled_dag(dag_id: str) -> Any:
    from airflow.serialization.serialized_objects import DagSerialization

    stored = json.dumps(DagSerialization.to_dict(_bag().dags[dag_id]))
    return DagSerialization.from_dict(json.loads(stored))


def _facts(dag_run: Any) -> Run:
    from airflow.models.asset import AssetEvent
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        tasks = {_name(task): task for task in dag_run.get_task_instances(session=session)}
        xcoms = session.scalars(
            select(XComModel).where(XComModel.run_id == dag_run.run_id, XComModel.key == "return_value")
        )
        places = {(task.task_id, task.map_index): name for name, task in tasks.items()}
        events = session.scalars(select(AssetEvent).where(AssetEvent.source_run_id == dag_run.run_id))
        return Run(
            state=str(dag_run.state),
            states={name: str(task.state) for name, task in tasks.items()},
            tries={name: task.try_number for name, task in tasks.items()},
            results={places[xcom.task_id, xcom.map_index]: XComModel.deserialize_value(xcom) for xcom in xcoms},
            announced=sorted(event.partition_key for event in events),
        )


def _name(task: Any) -> str:
    return task.task_id if task.map_index < 0 else f"{task.task_id}[{task.rendered_map_index}]"
