"""The DAG `compact_tweets`: when, how often and in what order raw hours are compacted. The work is compaction's.

Only this file knows Airflow. Tasks import what they need when they run, so that parsing stays light.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import (
    Asset,
    CronTriggerTimetable,
    ExceptionRetryPolicy,
    Param,
    RetryAction,
    RetryRule,
    TriggerRule,
    dag,
    get_current_context,
    task,
)

log = logging.getLogger("tweetlake.compact_tweets")

CURATED_TWEETS = Asset(name="tweetlake_tweets", uri="tweetlake://curated/tweets")
"""Updated once per compacted hour, with the raw hour (`2026-11-20T13`) as partition key."""

MOST_HOURS = 500
"""Hours of one run. Airflow refuses to map more than 1024 tasks; what is left over waits for the next run."""

HOURS_AT_ONCE = 2
"""Mapped tasks of one run at the same time: each needs up to a core and half a gigabyte."""

RETRIES = {
    "retries": 4,
    "retry_delay": timedelta(seconds=30),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=10),
    "retry_policy": ExceptionRetryPolicy(
        rules=[
            RetryRule(
                exception=[
                    "schemas.settings.SettingsError",
                    "compaction_dags.compaction.errors.AccountingError",
                    "compaction_dags.compaction.errors.LakeRefusedError",
                    "compaction_dags.compaction.errors.RawMissingError",
                    "compaction_dags.compaction.errors.TransformError",
                    "compaction_dags.compaction.errors.UnknownFormatError",
                ],
                action=RetryAction.FAIL,
                reason="Trying again changes nothing: a person has to mend it.",
            ),
        ]
    ),
}
"""Waiting helps against an S3 that is slow or away. It does not help against what a person has to mend."""


@dag(
    dag_id="compact_tweets",
    description="Brings raw microbatches into the curated tables: every raw hour that is stale, whole.",
    schedule=CronTriggerTimetable("5 * * * *", timezone="UTC"),
    start_date=datetime(2026, 11, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["tweetlake", "compaction"],
    default_args={"owner": "tweetlake", **RETRIES},
    params={
        "hours": Param(
            [],
            type="array",
            items={"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}T([01]\d|2[0-3])$"},
            maxItems=MOST_HOURS,
            description="Raw hours (UTC) to compact whether stale or not, such as 2026-11-20T13. Empty: all stale hours.",
        ),
        "include_open": Param(
            False, type="boolean", description="Also compact the current hour, into which the ingester still writes."
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
* **downstream**: schedule on the asset `tweetlake://curated/tweets`; its partition keys are the raw hours.
* **a failed hour** stays stale and is tried again by the next run; the other hours are not held up by it.
""",
)
def compact_tweets() -> None:
    """Stale hours, then each of them, then word of it and the sums."""

    @task(execution_timeout=timedelta(minutes=10))
    def stale_hours() -> list[str]:
        """The raw hours to compact, oldest first. Not more than one run can map: the newest, as they matter most."""
        from compaction_dags.compaction import job
        from schemas import settings

        context = get_current_context()
        hours: list[str] = job.plan_hours(
            settings.load(),
            include_open=context["params"]["include_open"],
            hours=context["params"]["hours"] or None,
            now=context["dag_run"].run_after,
        )
        chosen = hours[-MOST_HOURS:]
        log.info("raw hours to compact: %d%s", len(chosen), f", {chosen[0]} to {chosen[-1]}" if chosen else "")
        if left := len(hours) - len(chosen):
            log.info("older raw hours that wait for the next run: %d", left)
        return chosen

    @task(
        execution_timeout=timedelta(hours=1),
        max_active_tis_per_dagrun=HOURS_AT_ONCE,
        map_index_template="{{ hour }}",
    )
    def compact(hour: str) -> dict[str, Any]:
        """One raw hour, all its microbatches, into every curated table. Doing it again changes nothing."""
        from compaction_dags.compaction import job
        from schemas import settings

        get_current_context()["hour"] = hour  # type: ignore[typeddict-unknown-key]  # what map_index_template shows
        counts = job.compact_hour(settings.load(), hour).as_dict()
        log.info("%s: %s", hour, _in_words(counts))
        return {"hour": hour, **counts}

    @task(
        execution_timeout=timedelta(minutes=5),
        outlets=[CURATED_TWEETS],
        # An hour that was committed is announced even if another one failed: the next run will not do it again.
        trigger_rule=TriggerRule.ALL_DONE_MIN_ONE_SUCCESS,
    )
    def announce(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
        """Tells every DAG downstream which hours are new."""
        hours = [summary["hour"] for summary in summaries[:]]
        get_current_context()["outlet_events"][CURATED_TWEETS].add_partitions(hours)
        return hours

    @task(execution_timeout=timedelta(minutes=5))
    def totals(summaries: Sequence[Mapping[str, Any]]) -> dict[str, int]:
        """The sums of the run. Not reached when an hour failed, and so the run fails with it."""
        sums = Counter[str]()
        for summary in summaries[:]:
            sums.update({name: count for name, count in summary.items() if name != "hour"})
        log.info("together: %s", _in_words(sums))
        return dict(sums)

    summaries: Any = compact.expand(hour=stale_hours())  # an XComArg now, the summaries when a task receives it
    announce(summaries)
    totals(summaries)


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items())


compact_tweets()
