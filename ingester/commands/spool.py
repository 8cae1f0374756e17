"""`tweetlake spool`: look at the local queue of microbatches and mend it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from ingester.commands.common import settings_problems_told, with_config
from schemas.settings import load

if TYPE_CHECKING:
    from ingester.spool import Spool


@click.group(invoke_without_command=True)
@with_config
@click.pass_context
def spool(context: click.Context, config: Path | None) -> None:
    """Look at the local queue of microbatches; without a command it is listed.

    \b
    Examples:
      tweetlake spool
      tweetlake spool verify --config tweetlake.toml
    """
    context.obj = config
    if context.invoked_subcommand is None:
        context.invoke(spool_list, config=config)


@spool.command("list")
@with_config
def spool_list(config: Path | None) -> None:
    """List the microbatches in the spool by sequence, with their state.

    \b
    Example:
      tweetlake spool list --config tweetlake.toml
    """
    from ingester.spool import FOLDERS

    table = Table(box=None, pad_edge=False)
    for heading in ("microbatch", "state", "bytes", "records", "pages"):
        table.add_column(heading)
    found = _spool(config)
    for folder in FOLDERS:
        for name in sorted(found.names(folder)):
            described = found.describe(name, folder) if folder in {"sealed", "shipped"} else None
            size = found.file(name, folder).stat().st_size
            counts = [str(described.records), str(described.pages)] if described else ["", ""]
            table.add_row(str(name), folder, f"{size:,}", *counts)
    Console().print(table if table.row_count else "The spool is empty.")


@spool.command("verify")
@with_config
def spool_verify(config: Path | None) -> None:
    """Compare every sealed microbatch with its SHA-256. Exits 1 if one is damaged.

    \b
    Example:
      tweetlake spool verify
    """
    found = _spool(config)
    names = found.waiting()
    damaged = [name for name in names if not found.verify(found.describe(name))]
    for name in damaged:
        click.echo(f"damaged: {name}")
    click.echo(f"{len(names)} sealed microbatches, {len(damaged)} damaged")
    sys.exit(1 if damaged else 0)


def _spool(config: Path | None) -> "Spool":
    from ingester.spool import Spool

    with settings_problems_told():
        settings = load(config or click.get_current_context().obj)
    if not settings.spool.directory.is_dir():
        click.echo(f"spool.directory {settings.spool.directory} does not exist yet", err=True)
        sys.exit(1)
    return Spool(settings.spool.directory)
