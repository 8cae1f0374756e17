"""The command that looks after the curated tables: `tweetlake-compact maintain`."""

import json
import sys
from datetime import timedelta
from pathlib import Path

import click

from compaction_dags.compaction.commands.common import errors_told, say, with_config, worst
from schemas.settings import load


@click.command()
@with_config
@click.option(
    "--grace-hours",
    type=click.IntRange(24, 168),
    default=168,
    show_default=True,
    help="How long files are kept that no version needs any more.",
)
def maintain(config: Path | None, grace_hours: int) -> None:
    """Compact what is stale in all of raw, then make the tables smaller: files, old versions, log.

    Rows do not change. Prints what was done as one line of JSON, last on standard output. Run it once a day where there
    is no Airflow.

    \b
    Examples:
      tweetlake-compact maintain
      tweetlake-compact --config tweetlake.toml maintain --grace-hours 24
    """
    from compaction_dags.compaction import job, upkeep

    def tell(words: str) -> None:
        click.echo(words, err=True)

    with errors_told():
        settings = load(config)
        errors: list[Exception] = []
        hours = job.plan_hours(settings, include_open=False, full=True)
        tell(f"stale raw hours: {', '.join(hours) or 'none'}")
        summary = job.compact(settings, hours, failed=lambda _, error: errors.append(error))
        total = upkeep.tend_all(settings, grace=timedelta(hours=grace_hours), tell=tell)
        for error in errors:
            say(error)
        click.echo(json.dumps({"compacted": summary.as_dict(), "tended": total.as_dict()}))
        sys.exit(worst(errors))
