"""The DAG `maintain_tables`: when the curated tables are looked after. The work is upkeep's."""

from datetime import UTC, datetime, timedelta

from airflow.sdk import CronTriggerTimetable, Param, dag, get_current_context, task

from compaction_dags import steps

HOURS_AT_ONCE = 1
"""The sweep finds few hours or none, and `compact_tweets` may run beside it."""


@dag(
    dag_id="maintain_tables",
    description="Looks for stale hours in all of raw, and keeps the curated tables small: files, log, old versions.",
    schedule=CronTriggerTimetable("35 3 * * *", timezone="UTC"),
    start_date=datetime(2026, 11, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["tweetlake", "compaction"],
    default_args={"owner": "tweetlake", **steps.RETRIES},
    params={
        # The bounds of upkeep.py, which is not imported here: parsing stays light. A test compares them.
        "grace_hours": Param(
            168,
            type="integer",
            minimum=24,
            maximum=168,
            description="Hours for which files that no version needs any more are kept: for readers, and to go back.",
        ),
    },
    doc_md="""
### maintain_tables

* **sweep**: compares all of raw, not only the last 72 hours, with what was consumed, and compacts what is stale.
* **tend**, one table after the other: partitions with more files than their rows need are rolled up; files that no version younger
  than `grace_hours` names are deleted (VACUUM, those of broken runs too); the log gets a checkpoint; entries of the log
  that are older than the table's log retention (30 days) are deleted.

Rows never change here. The log of `tend` tells files, partitions and bytes. Running it again is safe at any time.
""",
)
def maintain_tables() -> None:
    """The sweep, and beside it every table."""

    @task(execution_timeout=timedelta(minutes=30))
    def sweep() -> list[str]:
        """The stale raw hours of all time, but the current one."""
        from compaction_dags.compaction import job
        from schemas import settings

        now = get_current_context()["dag_run"].run_after
        return steps.newest_of(job.plan_hours(settings.load(), include_open=False, now=now, full=True))

    @task(execution_timeout=timedelta(hours=2))
    def tend() -> dict[str, int]:
        """Every table: small files, old files, its log. The sums. One that fails does not hold up the others."""
        from compaction_dags.compaction import upkeep
        from schemas import settings

        grace = timedelta(hours=get_current_context()["params"]["grace_hours"])
        done = upkeep.tend_all(settings.load(), grace=grace, tell=steps.log.info).as_dict()
        steps.log.info("together: %s", steps.in_words(done))
        return done

    steps.compact_each(sweep(), HOURS_AT_ONCE)
    tend()


maintain_tables()
