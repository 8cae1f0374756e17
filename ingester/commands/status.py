"""`tweetlake status`: ask the running service how it is."""

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from ingester.commands.common import ADDRESS_FILE, EXIT_NOT_RUNNING, settings_problems_told, with_config
from schemas.settings import load

CAPS = {
    "usd_per_month": "usd_this_month",
    "usd_per_day": "usd_today",
    "posts_per_month": "posts_this_month",
    "posts_per_day": "posts_today",
}
"""Each cap of the budget with the figure that it bounds."""


@click.command()
@with_config
@click.option("--json", "as_json", is_flag=True, help="The whole status as JSON.")
def status(config: Path | None, as_json: bool) -> None:
    """Ask the running service how it is. Exits 0 when healthy, 1 when not, 3 when it does not run.

    \b
    Examples:
      tweetlake status
      tweetlake status --json | jq .queries
    """
    with settings_problems_told():
        settings = load(config)
    try:
        address = (settings.spool.directory / ADDRESS_FILE).read_text().strip()
    except OSError:  # not running, or the folder is another user's, as under systemd
        address = f"http://{settings.health.host}:{settings.health.port}"
    try:
        with urllib.request.urlopen(f"{address}/status", timeout=5) as answer:  # noqa: S310 - our own address
            found: dict[str, Any] = json.load(answer)
    except (urllib.error.URLError, OSError, ValueError) as error:
        click.echo(f"tweetlake does not run at {address} ({error}). Start it with: tweetlake run", err=True)
        sys.exit(EXIT_NOT_RUNNING)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _print_status(found)
    sys.exit(0 if found["healthy"] else 1)


def _print_status(found: dict[str, Any]) -> None:
    console = Console()
    if found["healthy"]:
        console.print(f"[green]collecting[/], tweetlake {found['version']}, since {found['started_at']}")
    else:
        console.print("[red]not well:[/]")
        for reason in found["reasons"]:
            console.print(f"  - {reason}", markup=False)
    if found["queries"]:
        table = Table(box=None, pad_edge=False)
        for heading in ("query", "planned until", "lag s", "todo", "last page", "$ this month", "problem"):
            table.add_column(heading)
        for query in found["queries"]:
            keys = (
                "name",
                "planned_until",
                "lag_seconds",
                "todo_intervals",
                "last_page_at",
                "usd_this_month",
                "problem",
            )
            table.add_row(*("" if query[key] is None else str(query[key]) for key in keys))
        console.print(table)
    spool, s3, budget = found["spool"], found["s3"], found["budget"]
    console.print(f"spool  {spool['waiting']} waiting, {spool['bytes']:,} bytes, {spool['quarantine']} in quarantine")
    console.print(
        f"s3     last shipped {s3['last_shipped_at'] or 'nothing yet'}{' - ' + s3['problem'] if s3['problem'] else ''}"
    )
    if budget:
        console.print(f"spent  ${budget['usd_today']:.2f} today, ${budget['usd_this_month']:.2f} this month")
        for cap, spent in CAPS.items():
            if (limit := budget["caps"].get(cap)) is not None:
                console.print(
                    f"       budget.{cap} = {limit:,g}: {100 * budget[spent] / limit if limit else 100:.0f}% used"
                )
