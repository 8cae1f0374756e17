"""The DAG `rebuild_curated`: a range of raw hours rebuilt from raw into place, on demand. The work is rebuild's."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import Param, TriggerRule, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

from compaction_dags import steps

HOURS_AT_ONCE = 1
"""In order, newest first, or some have to be compacted once more. An hour uses several processes by itself."""


@dag(
    dag_id="rebuild_curated",
    description="Rebuilds a range of raw hours from raw into place, or proves that the tables hold what raw gives.",
    schedule=None,
    start_date=datetime(2026, 11, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["tweetlake", "compaction"],
    default_args={"owner": "tweetlake", **steps.RETRIES},
    params={
        "since": Param(
            type="string", pattern=steps.RAW_HOUR, description="First raw hour (UTC), such as 2026-11-20T00."
        ),
        "until": Param(type="string", pattern=steps.RAW_HOUR, description="Last raw hour, included."),
        "check_only": Param(
            False, type="boolean", description="Write nothing, only compare. The run fails if anything differs."
        ),
    },
    doc_md="""
### rebuild_curated

Trigger it with `{"since": "2026-11-20T00", "until": "2026-11-20T23"}` after a transform was changed or a decoder mended, or
with `"check_only": true` to have it proved that the tables hold what raw gives.

* **before anything else** the whole range is looked at: if a microbatch that was consumed is gone, nothing is touched.
* **rebuild**, a task a raw hour, newest first: rows that this hour does not give any more are removed, all others replaced
  by what raw gives; rows of other raw hours stay. Equal rows make no new version.
* **once_more**: only if a retry mixed up the order, hours that may give back what a later one removed.
* **verdict**: the differences of every table (same, added, removed, changed rows; columns; a few keys) in its log.
""",
)
def rebuild_curated() -> None:
    """The hours of the range, each rebuilt, word of those that changed, and the differences."""

    @task(execution_timeout=timedelta(minutes=30))
    def raw_hours() -> list[str]:
        """The raw hours of the range, newest first. Fails if microbatches of any of them are gone."""
        from compaction_dags.compaction import rebuild
        from schemas import settings

        params = get_current_context()["params"]
        if params["since"] > params["until"]:
            raise AirflowFailException(f"since {params['since']} comes after until {params['until']}")
        hours = rebuild.hours_between(settings.load(), params["since"], params["until"])
        if len(hours) > steps.MOST_HOURS:
            raise AirflowFailException(f"{len(hours)} raw hours are more than one run takes: {steps.MOST_HOURS}")
        steps.log.info("raw hours to rebuild: %d%s", len(hours), f", {hours[0]} to {hours[-1]}" if hours else "")
        return hours

    @task(
        execution_timeout=timedelta(hours=2),
        max_active_tis_per_dagrun=HOURS_AT_ONCE,
        map_index_template="{{ hour }}",
    )
    def rebuild(hour: str) -> dict[str, Any]:
        """One raw hour. Doing it again shows no differences."""
        from compaction_dags.compaction import rebuild
        from schemas import settings

        steps.named_in_the_ui(hour)
        check_only = get_current_context()["params"]["check_only"]
        done = rebuild.rebuild_hour(settings.load(), hour, check_only=check_only, progress=steps.told_now_and_then)
        report = done.as_dict()
        for line in rebuild.in_words(report):
            steps.log.info(line)
        return report | {"is_as_before": check_only or done.is_equal}

    @task(execution_timeout=timedelta(minutes=5), trigger_rule=TriggerRule.ALL_DONE_MIN_ONE_SUCCESS)
    def out_of_turn(reports: Sequence[Mapping[str, Any]]) -> list[str]:
        """Hours that a retry let come before a later one which removed tweets that they may give."""
        from compaction_dags.compaction import rebuild

        return [] if get_current_context()["params"]["check_only"] else rebuild.out_of_turn(reports[:])

    @task(execution_timeout=timedelta(minutes=5))
    def verdict(reports: Sequence[Mapping[str, Any]]) -> bool:
        """Whether all was equal. Not reached when an hour failed, and so the run fails with it."""
        from compaction_dags.compaction import rebuild

        params = get_current_context()["params"]
        for line in rebuild.all_in_words(reports[:], params["since"]):
            steps.log.info(line)
        is_equal = all(report["is_equal"] for report in reports[:])
        if params["check_only"] and not is_equal:
            raise AirflowFailException("the tables are not what raw gives; rebuild these hours")
        return is_equal

    reports: Any = rebuild.expand(hour=raw_hours())
    steps.compact.override(task_id="once_more", max_active_tis_per_dagrun=HOURS_AT_ONCE).expand(
        hour=out_of_turn(reports)
    )
    steps.announce(reports)
    verdict(reports)


rebuild_curated()
