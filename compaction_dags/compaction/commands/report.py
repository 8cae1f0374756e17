"""`tweetlake-compact report`: what was collected, as one HTML page."""

from datetime import UTC, datetime
from pathlib import Path

import click

from compaction_dags.compaction.commands.common import errors_told, with_config
from schemas.settings import load

_TIME = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H", "%Y-%m-%dT%H:%M"])
_SUCH_AS = "2026-11-20T13"


@click.command()
@with_config
@click.option("--query", "queries", multiple=True, help="Only this query; repeatable.")
@click.option(
    "--since",
    type=_TIME,
    metavar=_SUCH_AS,
    help="From this hour on, or this day (UTC). Default: seven days before --until.",
)
@click.option(
    "--until",
    type=_TIME,
    metavar=_SUCH_AS,
    help="Up to this hour, or day (UTC). Default: the end of the newest hour in the tables.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="Where the page is written.",
)
def report(
    config: Path | None, queries: tuple[str, ...], since: datetime | None, until: datetime | None, output: Path
) -> None:
    """Draw for every query what was collected: posts an hour, coverage, and what X counted.

    One page that needs nothing else: it can be mailed, opened on a phone, kept.

    \b
    Examples:
      tweetlake-compact report
      tweetlake-compact report --query python --since 2026-11-01 --until 2026-11-15T12 --output p.html
    """
    from compaction_dags.compaction.report import figures, page

    since, until = (moment.replace(tzinfo=UTC) if moment else None for moment in (since, until))
    if since and until and since >= until:
        raise click.BadParameter("must lie before --until", param_hint="--since")
    with errors_told():
        found = figures.gather(load(config), queries=queries, since=since, until=until)
        if found is None:
            click.echo("there is nothing to report yet: no raw hour was compacted")
            return
        if since and since >= found.until:
            raise click.BadParameter(
                f"the tables know nothing after {found.until:%Y-%m-%dT%H:%M}", param_hint="--since"
            )
        if missing := sorted(set(queries) - {query.name for query in found.queries}):
            raise click.BadParameter(f"nothing is known of {', '.join(missing)}", param_hint="--query")
        output.write_text(page.page(found), "utf-8")
        click.echo(
            f"{output}: {len(found.queries)} queries, {found.since:%Y-%m-%dT%H:%MZ} to {found.until:%Y-%m-%dT%H:%MZ}"
        )
        if unknown := [query.name for query in found.queries if not query.told]:
            click.echo(f"nothing is known of this time: {', '.join(unknown)}", err=True)
