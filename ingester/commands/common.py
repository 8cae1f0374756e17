"""What every command needs: the option --config, settings problems told as sentences, the exit codes."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console

from schemas.settings import CONFIG_ENV, DEFAULT_CONFIG, EXIT_CONFIG, SettingsError

EXIT_SOFTWARE, EXIT_IO, EXIT_BUSY, EXIT_NOT_RUNNING = 70, 74, 75, 3
"""sysexits.h: internal error, disk, try again later; and systemctl's own code for a service that is not running."""
ADDRESS_FILE = "http-address"
"""In the spool folder: where the running service listens, so that `status` finds it also with port 0."""

with_config = click.option(
    "--config",
    type=click.Path(path_type=Path),
    help=f"Settings file. Default: ${CONFIG_ENV}, then {DEFAULT_CONFIG}",
)


WIDE = 200
"""Columns where nobody said how many there are: a pipe, a file. Wide enough for whole names and figures."""


def console_of_output() -> Console:
    """As wide as the terminal; wide enough for whole names when the output goes elsewhere."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


@contextlib.contextmanager
def settings_problems_told() -> Iterator[None]:
    """Say what is wrong with the settings and exit 78."""
    try:
        yield
    except SettingsError as error:
        click.echo(f"tweetlake: {error}", err=True)
        sys.exit(EXIT_CONFIG)
