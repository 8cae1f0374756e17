"""The DAG `compact_tweets`: when, how often and in what order raw hours are compacted. The work is compaction's."""

import os
from datetime import UTC, datetime, timedelta

from airflow.sdk import CronTriggerTimetable, Param, TriggerRule, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from compaction_dags import steps

HOURS_AT_ONCE = int(os.environ.get("TWEETLAKE_HOURS_AT_ONCE", "2"))
"""Mapped tasks of one run at the same time: each needs up to two cores and 0.8 GB when an hour is large. With more
workers, more."""


@dag(
    dag_id="compact_tweets",
    description="Brings raw microbatches into the curated tables: every raw hour that is stale, whole.",
    schedule=CronTriggerTimetable("5 * * * *", timezone="UTC"),
    start_date=datetime(2026, 11, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["tweetlake", "compaction"],
    default_args={"owner": "tweetlake", **steps.RETRIES},
    params={
        "hours": Param(
            [],
            type="array",
            items={"type": "string", "pattern": steps.RAW_HOUR},
            maxItems=steps.MOST_HOURS,
            description="Raw hours (UTC) to compact whether stale or not, such as 2026-11-20T13. Empty: all stale hours.",
        ),
        "include_open": Param(
            False, type="boolean", description="Also compact the current hour, into which the ingester still writes."
        ),
        "order_holes": Param(
            False,
            type="boolean",
            description="Then order what of the last seven days was not collected, each hole once. X bills what it finds.",
        ),
    },
    doc_md="""
### compact_tweets

Lists the raw hours whose microbatches the curated tables have not consumed, and compacts each of them whole.
What is to be done is read from the lake, not from the clock: an outage, a late microbatch, a retry, a cleared task or a
second run heals on the next tick, and doing an hour again changes nothing.

* **settings**: the file named by `TWEETLAKE_CONFIG`, the ingester's own; AWS credentials by boto3's usual chain.
* **an hour again**: trigger with `{"hours": ["2026-11-20T13"]}`.
* **the current hour too**: trigger with `{"include_open": true}`.
* **holes**: trigger with `{"order_holes": true}`: what `coverage` says was not collected, and X still has, is left under
  `control/requests/` for the ingester. `tweetlake-compact order-holes` tells before what it costs at most.
* **downstream**: schedule on the asset `tweetlake://curated/tweets`; its partition keys are the raw hours.
* **a failed hour** stays stale and is tried again by the next run; the other hours are not held up by it.
""",
)
def compact_tweets() -> None:
    """Stale hours, then each of them, then word of it and the sums, then holes."""

    @task(execution_timeout=timedelta(minutes=10))
    def stale_hours() -> list[str]:
        """The raw hours to compact, oldest first. Not more than one run can map: the newest, as they matter most."""
        from compaction_dags.compaction import job
        from schemas import settings

        context = get_current_context()
        return steps.newest_of(
            job.plan_hours(
                settings.load(),
                include_open=context["params"]["include_open"],
                hours=context["params"]["hours"] or None,
                now=context["dag_run"].run_after,
            )
        )

    @task(execution_timeout=timedelta(minutes=10), trigger_rule=TriggerRule.NONE_FAILED)
    def order_holes() -> list[str]:
        """Only on request, as it costs money. After an hour that failed nothing is known of what is missing."""
        from compaction_dags.compaction import holes
        from schemas import settings

        context = get_current_context()
        if not context["params"]["order_holes"]:
            raise AirflowSkipException("order_holes is not asked for")
        found = [hole.order for hole in holes.order_holes(settings.load(), context["dag_run"].run_after)]
        for order in found:
            steps.log.info("ordered: %s, %s to %s", order.query, order.since.isoformat(), order.until.isoformat())
        steps.log.info("holes ordered: %d", len(found))
        return [order.name for order in found]

    steps.compact_each(stale_hours(), HOURS_AT_ONCE) >> order_holes()


compact_tweets()
