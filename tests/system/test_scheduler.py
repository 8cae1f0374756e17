"""The DAGs under a real scheduler: however an hour comes to be compacted, the tables hold the same rows.

The tests share one Airflow and come in this order; each has a lake of its own with the same raw in it.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from deltalake import DeltaTable

from compaction_dags.compaction import job
from schemas.keys import LakeKeys, RawHour
from schemas.settings import load
from tests.dags.place import Lake
from tests.system.running_airflow import RunningAirflow

pytestmark = [pytest.mark.system, pytest.mark.timeout(200)]

ONE = timedelta(hours=1)
TICK = datetime.now(UTC).replace(minute=5, second=0, microsecond=0) - ONE
"""A tick that is over. The raw hours of these tests are before it, whatever the minute is."""
HOURS = [RawHour.of(TICK - back * ONE) for back in (4, 3, 2)]
NAMES = [str(hour) for hour in HOURS]
LONGEST = timedelta(seconds=60)
"""Of a test here; they take up to half of that."""
RAW_DECIDES = ("tweets", "referenced_tweets", "users", "media", "places", "polls", "rejects", "coverage")


@pytest.fixture(autouse=True)
def no_tick_within(airflow: RunningAirflow) -> None:
    """Lets a tick that is near pass first: a DAG that is not paused runs for it, and does the hours that the test is to do.
    Upkeep sweeps all of raw too, once a night.
    """

    def quiet() -> bool:
        return all(
            until > datetime.now(UTC) + LONGEST
            and all(run["state"] in {"success", "failed"} for run in airflow.runs(dag_id))
            for dag_id, until in airflow.next_ticks().items()
        )

    airflow.wait("the end of the tick", quiet, LONGEST.total_seconds() * 2)


def fill(lake: Lake) -> None:
    """Three raw hours, a page each, whose tweets overlap."""
    for hour in HOURS:
        lake.collect(hour.start)


def rows(lake: Lake) -> dict[str, list[str]]:
    """Every row of every table that raw decides, without what is this lake's own."""
    options = {**lake.environment, "AWS_ENDPOINT_URL": lake.server.endpoint_url, "AWS_ALLOW_HTTP": "true"}
    found = {}
    for name in RAW_DECIDES:
        uri = f"s3://{lake.server.bucket}/{LakeKeys(lake.prefix).table(name)}"
        table = DeltaTable(uri, storage_options=options).to_pyarrow_table()
        found[name] = sorted(str(row).replace(lake.prefix, "") for row in table.to_pylist())
    return found


@pytest.fixture(scope="module")
def expected(server: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What the tables must hold: the same raw compacted without any Airflow."""
    from tests.dags.place import new_lake

    lake = new_lake(server, tmp_path_factory.mktemp("expected"))
    fill(lake)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        settings = load(lake.settings)
        job.compact(settings, job.plan_hours(settings, include_open=False))
    found = rows(lake)
    assert len(found["tweets"]) > 60
    return found


def spans(tasks: Iterable[dict[str, Any]]) -> list[tuple[datetime, datetime]]:
    return sorted((moment(one["start_date"]), moment(one["end_date"])) for one in tasks)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_a_missed_tick_is_made_up_for_at_once_with_two_hours_in_parallel(
    airflow: RunningAirflow, lake: Lake, expected: dict[str, list[str]]
) -> None:
    """The DAG was paused while ticks passed. Unpaused, it runs for the last one, and that does everything."""
    fill(lake)
    airflow.unpause("compact_tweets")
    run, *_ = airflow.wait("the run of the last tick", lambda: airflow.runs("compact_tweets"))
    run_id = run["dag_run_id"]
    assert run["run_type"] == "scheduled"
    assert airflow.finished("compact_tweets", run_id) == "success", airflow.tail()

    tasks = airflow.tasks("compact_tweets", run_id)
    assert {f"compact[{name}]" for name in NAMES} <= tasks.keys()
    (_, first_end), (second_start, _), *_ = spans(tasks[f"compact[{name}]"] for name in NAMES)
    assert second_start < first_end, "two mapped hours at the same time"
    assert airflow.announced("compact_tweets", run_id) == NAMES
    assert rows(lake) == expected
    assert f"{NAMES[0]}: 1 of 1 microbatches read" in airflow.log_of(
        "compact_tweets", run_id, tasks[f"compact[{NAMES[0]}]"]
    )


def test_a_run_by_hand_and_a_cleared_hour_leave_the_same(
    airflow: RunningAirflow, lake: Lake, expected: dict[str, list[str]]
) -> None:
    fill(lake)
    run_id = airflow.trigger("compact_tweets")
    assert airflow.finished("compact_tweets", run_id) == "success", airflow.tail()
    assert rows(lake) == expected

    before = airflow.tasks("compact_tweets", run_id)
    cleared = before[f"compact[{NAMES[1]}]"]
    airflow.ask(
        "POST",
        "dags/compact_tweets/clearTaskInstances",
        {"dry_run": False, "dag_run_id": run_id, "task_ids": [["compact", cleared["map_index"]]], "only_failed": False},
    )

    def done_again() -> bool:
        now = airflow.tasks("compact_tweets", run_id)[f"compact[{NAMES[1]}]"]
        return now["state"] == "success" and moment(now["start_date"]) > moment(cleared["end_date"])

    airflow.wait("the cleared task", done_again)
    assert airflow.finished("compact_tweets", run_id) == "success"
    after = airflow.tasks("compact_tweets", run_id)
    untouched = {name for name in before if after[name]["start_date"] == before[name]["start_date"]}
    assert untouched == before.keys() - {f"compact[{NAMES[1]}]"}
    assert rows(lake) == expected


def test_a_backfill_of_old_ticks_leaves_the_same(
    airflow: RunningAirflow, lake: Lake, expected: dict[str, list[str]]
) -> None:
    """Each of its runs compacts what was stale before its own tick."""
    fill(lake)
    ticks = [hour.start + ONE + timedelta(minutes=5) for hour in HOURS]
    airflow.command(
        "backfill", "create", "--dag-id", "compact_tweets", "--from-date", ticks[0].isoformat(),
        "--to-date", ticks[-1].isoformat(), "--max-active-runs", "1", "--reprocess-behavior", "none",
    )  # fmt: skip

    def backfilled() -> list[dict[str, Any]]:
        return [run for run in airflow.runs("compact_tweets") if run["run_type"] == "backfill"]

    airflow.wait("the backfill's runs", lambda: len(backfilled()) == len(HOURS))
    for run, name in zip(backfilled(), NAMES, strict=True):
        assert airflow.finished("compact_tweets", run["dag_run_id"]) == "success", airflow.tail()
        assert airflow.announced("compact_tweets", run["dag_run_id"])[-1] == name
    assert rows(lake) == expected


def test_a_failure_names_the_s3_key_and_is_not_tried_again(airflow: RunningAirflow, lake: Lake) -> None:
    fill(lake)
    assert airflow.finished("compact_tweets", airflow.trigger("compact_tweets")) == "success"
    client, prefix = lake.server.client(), LakeKeys(lake.prefix).raw_hour(HOURS[0])
    key = client.list_objects_v2(Bucket=lake.server.bucket, Prefix=prefix)["Contents"][0]["Key"]
    client.delete_object(Bucket=lake.server.bucket, Key=key)
    run_id = airflow.trigger("compact_tweets", hours=NAMES[:1])
    assert airflow.finished("compact_tweets", run_id) == "failed"
    task = airflow.tasks("compact_tweets", run_id)[f"compact[{NAMES[0]}]"]
    assert task["try_number"] == 1
    assert key in airflow.log_of("compact_tweets", run_id, task)


def test_upkeep_and_a_proof_from_raw_run_too_and_change_nothing(
    airflow: RunningAirflow, lake: Lake, expected: dict[str, list[str]]
) -> None:
    """Upkeep sweeps first: nothing else compacts these hours."""
    fill(lake)
    airflow.unpause("maintain_tables")
    (run,) = airflow.wait("the run of last night", lambda: airflow.runs("maintain_tables"))
    nightly, by_hand = run["dag_run_id"], airflow.trigger("maintain_tables", grace_hours=24)
    announced: list[str] = []
    for run_id in (nightly, by_hand):
        assert airflow.finished("maintain_tables", run_id) == "success", airflow.tail()
        announced += airflow.announced("maintain_tables", run_id)
    assert announced == NAMES
    assert rows(lake) == expected
    airflow.unpause("rebuild_curated")
    proof = airflow.trigger("rebuild_curated", since=NAMES[0], until=NAMES[-1], check_only=True)
    assert airflow.finished("rebuild_curated", proof) == "success", airflow.tail()
    assert rows(lake) == expected
