"""The command that rebuilds raw hours into place, or proves that they need it not: `tweetlake-compact rebuild`."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from compaction_dags.compaction.commands.common import EXIT_FAILED, RAW_HOUR, errors_told, with_config
from schemas.settings import load


@click.command()
@with_config
@click.option("--since", required=True, type=RAW_HOUR, help="First raw hour (UTC), such as 2026-11-20T13.")
@click.option("--until", required=True, type=RAW_HOUR, help="Last raw hour, included.")
@click.option("--check-only", is_flag=True, help="Write nothing, only compare. Exit code 1 if anything differs.")
def rebuild(config: Path | None, since: str, until: str, check_only: bool) -> None:
    """Rebuild raw hours into place from raw, newest first, and tell every difference.

    This is how a changed transform or a mended decoder takes effect on what was compacted before. Rows that a raw hour
    does not give any more are removed. Prints a line of JSON per hour on standard output. Hours of which there is no raw
    are told, and are no failure.

    \b
    Example:
      tweetlake-compact rebuild --since 2026-11-20T00 --until 2026-11-20T23 --check-only
    """
    from compaction_dags.compaction import rebuild as rebuilding

    if since > until:
        raise click.UsageError(f"--since {since} comes after --until {until}")
    reports: list[dict[str, Any]] = []
    with errors_told():
        settings = load(config)
        hours = rebuilding.hours_between(settings, since, until)
        if words := rebuilding.without_raw(set(hours), since, until):
            click.echo(words, err=True)
        for hour in hours:
            report = rebuilding.rebuild_hour(settings, hour, check_only=check_only).as_dict()
            reports.append(report)
            for line in rebuilding.in_words(report):
                click.echo(line, err=True)
            click.echo(json.dumps(report))
        if words := rebuilding.advice(reports, since):
            click.echo(words, err=True)
    sys.exit(EXIT_FAILED if check_only and not all(report["is_equal"] for report in reports) else 0)
