"""The DAG compact_tweets on a real lake: raw microbatches in an S3 server, curated tables out, by `dag.test()`."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sandbox import airflow
from schemas.keys import LakeKeys, RawHour
from schemas.orders import Order
from tests.compaction.collector import gap
from tests.compaction.pages import microbatch, raw_key
from tests.dags import laboratory
from tests.dags.conftest import Laboratory
from tests.dags.laboratory import Run
from tests.dags.place import FIVE_PAST_TWO, NOON, Lake

pytestmark = pytest.mark.dag


def run(running: Laboratory, lake: Lake, conf: dict[str, Any] | None = None, *, minutes: int = 0) -> Run:
    return running(laboratory.run, lake.environment, conf or {}, FIVE_PAST_TWO + timedelta(minutes=minutes))


def test_stale_hours_before_the_current_one_reach_the_table_and_a_second_run_has_nothing_to_do(
    running: Laboratory, lake: Lake
) -> None:
    collected = lake.collect(NOON) | lake.collect(NOON) | lake.collect(NOON + timedelta(hours=1))
    lake.collect(NOON + timedelta(hours=2))

    first = run(running, lake)
    assert first.state == "success"
    assert first.states == dict.fromkeys(
        ["stale_hours", "compact[2026-11-20T12]", "compact[2026-11-20T13]", "announce", "totals"], "success"
    ) | {"order_holes": "skipped"}
    assert first.announced == ["2026-11-20T12", "2026-11-20T13"]
    assert (first.results["totals"]["raw_hours"], first.results["totals"]["microbatches"]) == (2, 3)
    assert lake.tweets() == sorted(collected)

    second = run(running, lake, minutes=1)
    assert second.state == "success"
    assert second.results["stale_hours"] == []
    assert {second.states[name] for name in ("compact", "announce", "totals")} == {"skipped"}
    assert second.announced == []
    assert lake.tweets() == sorted(collected)


def test_the_open_hour_is_taken_when_asked_for(running: Laboratory, lake: Lake) -> None:
    collected = lake.collect(NOON + timedelta(hours=2))
    done = run(running, lake, {"include_open": True})
    assert done.announced == ["2026-11-20T14"]
    assert lake.tweets() == sorted(collected)


def test_an_hour_named_by_parameter_is_done_again_and_changes_nothing(running: Laboratory, lake: Lake) -> None:
    collected = lake.collect(NOON) | lake.collect(NOON + timedelta(hours=1))
    run(running, lake)
    again = run(running, lake, {"hours": ["2026-11-20T12"]}, minutes=1)
    assert again.state == "success"
    assert again.announced == ["2026-11-20T12"]
    assert lake.tweets() == sorted(collected)


def test_a_late_microbatch_makes_its_hour_stale_again(running: Laboratory, lake: Lake) -> None:
    collected = lake.collect(NOON)
    run(running, lake)
    collected |= lake.collect(NOON)
    late = run(running, lake, minutes=1)
    assert late.announced == ["2026-11-20T12"]
    assert lake.tweets() == sorted(collected)


def test_holes_are_ordered_after_compacting_when_asked_for(running: Laboratory, lake: Lake) -> None:
    given_up = gap("lake", NOON, NOON + timedelta(minutes=20))
    key = raw_key(1, NOON, lake.prefix)
    lake.server.client().put_object(Bucket=lake.server.bucket, Key=key, Body=microbatch([given_up]))
    done = run(running, lake, {"order_holes": True})
    assert done.state == "success"
    keys = LakeKeys(lake.prefix)
    (name,) = done.results["order_holes"]
    found = lake.server.client().get_object(Bucket=lake.server.bucket, Key=keys.request(name))["Body"].read()
    order = Order.from_json(name, found)
    assert (order.query, order.since, order.until) == ("lake", NOON, NOON + timedelta(minutes=20))
    again = run(running, lake, {"order_holes": True}, minutes=1)
    assert again.states == dict.fromkeys(["stale_hours", "order_holes"], "success") | dict.fromkeys(
        ["compact", "announce", "totals"], "skipped"
    )
    assert again.results["order_holes"] == []


def test_the_command_line_of_airflow_runs_it_too(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the demo does: `airflow dags test` in a child process, in a closed environment."""
    for name, value in lake.environment.items():
        monkeypatch.setenv(name, value)
    hour = RawHour.of(datetime.now(UTC) - timedelta(hours=1))
    collected = lake.collect(hour.start)
    environment = airflow.airflow_environment(tmp_path / "airflow", lake.settings)
    airflow.migrate(environment)
    told: list[str] = []
    airflow.run_dag(
        environment, on_line=lambda line: told.extend(filter(None, [airflow.own_words(line)])), timeout_seconds=80
    )
    assert told[0] == f"raw hours to compact: 1, {hour} to {hour}"
    assert told[1] == f"{hour}: 1 of 1 microbatches read"
    assert told[2].startswith(f"{hour}: raw hours 1, microbatches 1, pages 1, ")
    assert lake.tweets() == sorted(collected)
