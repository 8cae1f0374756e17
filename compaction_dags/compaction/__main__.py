"""The front door of compaction without Airflow: `tweetlake-compact`, which compacts unless a command is named."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from compaction_dags.compaction.commands.common import RAW_HOUR, errors_told, say, with_config, worst
from compaction_dags.compaction.commands.completion import completion
from compaction_dags.compaction.commands.freshness import freshness
from compaction_dags.compaction.commands.holes import order_holes
from compaction_dags.compaction.commands.metrics import metrics
from compaction_dags.compaction.commands.rebuild import rebuild
from compaction_dags.compaction.commands.report import report
from compaction_dags.compaction.commands.upkeep import maintain
from schemas.settings import Settings, load

if TYPE_CHECKING:
    from compaction_dags.compaction.job import Progress as Report


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@with_config
@click.option(
    "--raw-hour", "hours", multiple=True, type=RAW_HOUR, help="Only this raw hour (UTC), stale or not; repeatable."
)
@click.option("--closed-only", is_flag=True, help="Leave out the current hour, as the DAG does.")
@click.option("--full", is_flag=True, help="Compare all of raw, not only the last 72 hours.")
@click.version_option(package_name="tweetlake")
@click.pass_context
def main(context: click.Context, config: Path | None, hours: tuple[str, ...], closed_only: bool, full: bool) -> None:
    """Compact raw microbatches into the curated tables: every raw hour that is stale, whole.

    Prints what was done as one line of JSON, last on standard output.

    \b
    Examples:
      tweetlake-compact
      tweetlake-compact --config tweetlake.toml --closed-only
      tweetlake-compact --raw-hour 2026-11-20T13 --raw-hour 2026-11-20T14

    An hour that fails for a reason of its own is told and does not hold up the others. One that --raw-hour names and of
    which there is no raw is told, and is no failure. Rows wait in $TMPDIR while an hour is being read: about 1 kB a tweet.

    Exit codes: 0 done, 78 settings, 75 S3 does not answer or others were ahead (try again), 1 anything else.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # with what is left in $TMPDIR cleared
    if context.invoked_subcommand is not None:
        if hours or closed_only or full:
            raise click.UsageError("--raw-hour, --closed-only and --full are for compacting, without a command")
        return
    with errors_told():
        sys.exit(_compact(load(config), hours, closed_only, full))


def _compact(settings: Settings, hours: tuple[str, ...], closed_only: bool, full: bool) -> int:
    """Compact, print the summary, and say how it went as an exit code."""
    from compaction_dags.compaction import job
    from compaction_dags.compaction.memory import leave_pandas_out

    if not settings.transform.function:
        leave_pandas_out()
    console = Console(stderr=True)
    wanted = job.plan_hours(settings, include_open=not closed_only, hours=hours or None, full=full)
    errors: dict[str, Exception] = {}
    read: set[str] = set()
    with _shown(console, len(wanted)) as report:

        def note(hour: str, done: int, total: int) -> None:
            read.add(hour)
            report(hour, done, total)

        summary = job.compact(settings, wanted, note, failed=errors.__setitem__)
    for hour in (hour for hour in wanted if hour not in read and hour not in errors):
        click.echo(f"no raw in {hour}", err=True)
    for error in errors.values():
        say(error)
    click.echo(json.dumps(summary.as_dict()))
    return worst(errors.values())


@contextmanager
def _shown(console: Console, hours: int) -> Iterator["Report"]:
    """A bar on a terminal, a line per hour otherwise; on standard error."""
    if not hours:
        console.print("nothing is stale")
    if not console.is_terminal:
        yield (
            lambda hour, done, total: (
                click.echo(f"{hour}: {total} microbatches read", err=True) if done == total else None
            )
        )
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bars = {}

        def report(hour: str, done: int, total: int) -> None:
            if hour not in bars:
                bars[hour] = progress.add_task(hour)
            progress.update(bars[hour], completed=done, total=total)

        yield report


for command in (completion, freshness, maintain, metrics, order_holes, rebuild, report):
    main.add_command(command)


if __name__ == "__main__":
    main(prog_name="tweetlake-compact")
