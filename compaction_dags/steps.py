"""What the DAGs have in common: how often a task is tried, an hour compacted as a task, and the word of it downstream.

This file and the DAG files are all that knows Airflow. Tasks import what they need when they run, so that parsing stays
light.
"""

import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import Asset, ExceptionRetryPolicy, RetryAction, RetryRule, TriggerRule, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

log = logging.getLogger("tweetlake.steps")

CURATED_TWEETS = Asset(name="tweetlake_tweets", uri="tweetlake://curated/tweets")
"""Updated once per raw hour that changed it, with that hour (`2026-11-20T13`) as partition key."""

MOST_HOURS = 500
"""Hours of one run. Airflow refuses to map more than 1024 tasks; what is left over waits for the next run."""

RAW_HOUR = r"^\d{4}-\d{2}-\d{2}T([01]\d|2[0-3])$"
"""What a raw hour looks like as a parameter."""

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


def newest_of(hours: list[str]) -> list[str]:
    """Of raw hours, oldest first, as many as one run can map: the newest, as they matter most. Told in the log."""
    chosen = hours[-MOST_HOURS:]
    log.info("raw hours to compact: %d%s", len(chosen), f", {chosen[0]} to {chosen[-1]}" if chosen else "")
    if left := len(hours) - len(chosen):
        log.info("older raw hours that wait for the next run: %d", left)
    return chosen


def told_now_and_then(hour: str, done: int, total: int) -> None:
    """Progress of an hour, as four lines at most."""
    if done * 4 // total > (done - 1) * 4 // total:
        log.info("%s: %d of %d microbatches read", hour, done, total)


def in_words(counts: Mapping[str, Any]) -> str:
    """Counts as a sentence; where there is one for each of several keys, the keys with theirs, if there are any."""
    return ", ".join(
        f"{name.replace('_', ' ')} {_number(count)}" for name, count in counts.items() if count or count == 0
    )


def _number(count: Any) -> str:
    if isinstance(count, Mapping):
        return "(" + ", ".join(f"{key} {number:,}" for key, number in count.items()) + ")"
    return f"{count:,}"


@task(execution_timeout=timedelta(hours=1), map_index_template="{{ hour }}")
def compact(hour: str) -> dict[str, Any]:
    """One raw hour, all its microbatches, into every curated table. Doing it again changes nothing."""
    from compaction_dags.compaction import job
    from schemas import settings

    named_in_the_ui(hour)
    counts = job.compact_hour(settings.load(), hour, told_now_and_then).as_dict()
    log.info("%s: %s", hour, in_words(counts))
    return {"hour": hour, **counts}


@task(
    execution_timeout=timedelta(minutes=5),
    outlets=[CURATED_TWEETS],
    # An hour that was committed is announced even if another one failed: the next run will not do it again.
    trigger_rule=TriggerRule.ALL_DONE_MIN_ONE_SUCCESS,
)
def announce(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tells every DAG downstream which hours are new."""
    hours = [summary["hour"] for summary in summaries[:] if not summary.get("is_as_before")]
    if not hours:
        raise AirflowSkipException("no hour is new")  # or there would be an event without a partition
    get_current_context()["outlet_events"][CURATED_TWEETS].add_partitions(hours)
    return hours


@task(execution_timeout=timedelta(minutes=5))
def totals(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums of the run. Not reached when an hour failed, and so the run fails with it."""
    from compaction_dags.compaction.checks import HourSummary

    sums = sum((HourSummary.of(summary) for summary in summaries[:]), HourSummary()).as_dict()
    log.info("together: %s", in_words(sums))
    return sums


def compact_each(hours: Any, at_once: int) -> Any:
    """Hours that a task returns, each compacted by a task of its own, then word of it and the sums, which are returned."""
    summaries: Any = compact.override(max_active_tis_per_dagrun=at_once).expand(hour=hours)
    announce(summaries)
    return totals(summaries)


def named_in_the_ui(hour: str) -> None:
    """What `map_index_template="{{ hour }}"` shows."""
    get_current_context()["hour"] = hour  # type: ignore[typeddict-unknown-key]
