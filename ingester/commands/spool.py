"""`tweetlake spool`: look at the local queue of microbatches, salvage it, ship a rescued one, retire a lost one."""

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from ingester.commands.common import EXIT_BUSY, EXIT_IO, console_of_output, settings_problems_told, with_config
from ingester.errors import (
    KeyTaken,
    NewerFormat,
    SpoolBroken,
    SpoolDamaged,
    SpoolFull,
    SpoolLocked,
    Transient,
    TweetlakeError,
)
from schemas.keys import LakeKeys, MicrobatchName
from schemas.settings import EXIT_CONFIG, Settings, load

if TYPE_CHECKING:
    from ingester.ports import Destination, Stores
    from ingester.spool import Spool

ATTEMPTS = 8
"""Tries in a row of a command that S3 does not answer: two minutes. The service never stops trying; a person can."""

_T = TypeVar("_T")


@click.group(invoke_without_command=True)
@with_config
@click.pass_context
def spool(context: click.Context, config: Path | None) -> None:
    """Look at the local queue of microbatches, and mend it. Without a command it is listed.

    \b
    Examples:
      tweetlake spool
      tweetlake spool verify --config tweetlake.toml
      tweetlake spool ship /mnt/rescued/spool
    """
    context.obj = config
    if context.invoked_subcommand is None:
        context.invoke(spool_list, config=config)


@spool.command("list")
@with_config
def spool_list(config: Path | None) -> None:
    """List the microbatches in the spool by sequence, with their state.

    States: open (being written), sealed (waits for S3), shipped (the newest that S3 has), quarantine (look at it).

    \b
    Example:
      tweetlake spool list --config tweetlake.toml
    """
    from ingester.ports import Destination
    from ingester.spool import FOLDERS

    settings = _settings(config)
    home = Destination.of(settings.lake)
    table = Table(box=None, pad_edge=False)
    for heading in ("microbatch", "state", "bytes", "records", "pages", "note"):
        table.add_column(
            heading,
            no_wrap=heading != "note",
            justify="left" if heading in {"microbatch", "state", "note"} else "right",
        )
    with _problems_told():
        found = _spool(settings)
        rows = sorted((name, folder) for folder in FOLDERS for name in found.names(folder))
        for name, folder in rows:
            with contextlib.suppress(FileNotFoundError):  # the service has moved it meanwhile
                size = found.file(name, folder).stat().st_size
                table.add_row(str(name), folder, f"{size:,}", *_described(found, name, folder, home))
        console = console_of_output()
        console.print(table if rows else "The spool is empty.")
        count = {folder: found.count(folder) for folder in FOLDERS}
        total = f"{count['sealed']} waiting, {count['quarantine']} in quarantine, {found.used_bytes():,} bytes"
        console.print(f"{total}, spool id {found.stored_id() or 'none yet'}", highlight=False)


def _described(found: "Spool", name: MicrobatchName, folder: str, home: "Destination") -> tuple[str, str, Text]:
    """Records, pages and what is worth a note."""
    if folder == "quarantine":
        return "", "", Text(found.reason(name))
    if folder == "open":
        return "", "", Text()
    try:
        sealed = found.describe(name, folder)
    except SpoolDamaged as error:
        return "", "", Text(str(error))
    note = Text() if sealed.destination in {None, home} else Text(f"for {sealed.destination}")
    return str(sealed.records), str(sealed.pages), note


@spool.command("verify")
@with_config
def spool_verify(config: Path | None) -> None:
    """Read every microbatch to its end, compare all checksums.

    Of sealed, shipped and open ones. Exits 1 if one is damaged. Changes nothing; the service may run meanwhile. What is damaged is found by the service too, when it ships it.

    \b
    Example:
      tweetlake spool verify
    """
    from ingester.microbatch import check_whole, whole_part

    with _problems_told():
        found = _spool(_settings(config))
        damaged = verified = 0
        for name, folder in _with_progress(
            [(n, f) for f in ("shipped", "sealed", "open") for n in sorted(found.names(f))], "verifying"
        ):
            path = found.file(name, folder)
            try:
                if folder == "open":
                    records, end = whole_part(path)
                    click.echo(f"open: {name}: {records} whole records, {path.stat().st_size - end} bytes behind them")
                else:
                    check_whole(path)
                verified += 1
            except (SpoolDamaged, FileNotFoundError) as error:
                if path.exists():  # else the service has moved it meanwhile
                    damaged += 1
                    click.echo(f"damaged: {name} ({folder}): {error}")
    click.echo(f"{verified} microbatches are whole, {damaged} damaged")
    sys.exit(1 if damaged else 0)


@spool.command("salvage")
@with_config
def spool_salvage(config: Path | None) -> None:
    """Seal what a dead process left open, so that it can ship.

    The service does so itself when it starts. Every whole record is kept. The service must not run.

    \b
    Example:
      sudo -u tweetlake tweetlake spool salvage
    """
    with _problems_told(), _held(_spool(_settings(config))) as found:
        _salvage(found)


@spool.command("ship")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@with_config
def spool_ship(config: Path | None, directory: Path) -> None:
    """Upload a spool folder rescued from another disk.

    What was left open is salvaged first. Each goes where it belongs, which it says itself; older files go to the lake of
    the settings. Nothing is overwritten in S3 and nothing is deleted here, so it can be called again. Exits 1 if
    something could not be stored.

    \b
    Example:
      tweetlake spool ship /mnt/rescued/var/lib/tweetlake/spool
    """
    from ingester.ports import Destination
    from ingester.s3 import S3
    from ingester.spool import FOLDERS, Spool

    settings = _settings(config)
    if not any((directory / folder).is_dir() for folder in FOLDERS):
        raise click.BadParameter(f"is no spool: it has none of {', '.join(FOLDERS)}", param_hint="DIRECTORY")
    with _problems_told(), _held(Spool(directory)) as found:
        _salvage(found)
        home = Destination.of(settings.lake)
        outcomes = asyncio.run(_ship(found, cache(S3), home))
        left = found.count("quarantine")
    click.echo(", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in ("stored", "already there", "refused")))
    if left:
        click.echo(f"{left} in quarantine were left alone: look at them first")
    sys.exit(1 if "refused" in outcomes else 0)


async def _ship(found: "Spool", stores: "Stores", home: "Destination") -> list[str]:
    """What came of each, by sequence. Raises NeedsOperator or Transient when S3 takes nothing more."""
    outcomes = []
    names = sorted((name, folder) for folder in ("shipped", "sealed") for name in found.names(folder))
    for name, folder in _with_progress(names, "shipping"):
        outcome, detail = await _ship_one(found, name, folder, stores, home)
        click.echo(f"{outcome}: {name}: {detail}")
        outcomes.append(outcome)
    return outcomes


async def _ship_one(
    found: "Spool", name: MicrobatchName, folder: str, stores: "Stores", home: "Destination"
) -> tuple[str, str]:
    from ingester.retry import Backoff
    from ingester.uploader import store_new

    backoff = Backoff(first_seconds=0.5, cap_seconds=30.0)
    while True:
        try:
            sealed = found.describe(name, folder)
            belongs = sealed.destination or home
            already = await store_new(stores(belongs), belongs, found.file(name, folder), sealed)
        except SpoolDamaged as error:
            return "refused", str(error)
        except Transient as error:
            wait = backoff.next_wait()
            if backoff.failures == ATTEMPTS:
                raise
            click.echo(f"{error}; trying again in {wait:.1f} s", err=True)
            await asyncio.sleep(wait)
        else:
            return "already there" if already else "stored", str(belongs)


@spool.command("retire")
@click.argument("spool_id", metavar="ID")
@with_config
def spool_retire(config: Path | None, spool_id: str) -> None:
    """Say that a spool will never write again.

    So that the hours it wrote into can be closed. For a machine or disk that is gone for good. ID is the last part of its microbatches' names. Ship first what can be
    rescued: an hour that was closed is compacted again when something arrives all the same, but was called complete.

    \b
    Example:
      tweetlake spool retire 9f86d081
    """
    from ingester.s3 import S3
    from ingester.spool import Spool

    settings = _settings(config)
    if not re.fullmatch("[0-9a-f]{8}", spool_id):
        raise click.BadParameter(
            f"{spool_id!r} is none: eight of 0-9 and a-f, the end of a microbatch's name", param_hint="ID"
        )
    with _problems_told():
        if Spool(settings.spool.directory).stored_id() == spool_id:
            where = f"the spool of this machine, {settings.spool.directory}"
            raise click.BadParameter(f"{spool_id} is {where}; a retired spool never writes again", param_hint="ID")
        key = LakeKeys(settings.lake.prefix).retired(spool_id)
        content = json.dumps({"spool_id": spool_id, "retired_at": datetime.now(UTC).isoformat(timespec="seconds")})
        try:
            asyncio.run(S3(settings.lake).replace(key, content.encode(), etag=None))
        except KeyTaken:
            click.echo(f"{spool_id} was retired before: s3://{settings.lake.bucket}/{key}")
        else:
            click.echo(f"{spool_id} is retired: s3://{settings.lake.bucket}/{key}")


# What the commands share.


def _settings(config: Path | None) -> Settings:
    with settings_problems_told():
        return load(config or click.get_current_context().obj)


def _spool(settings: Settings) -> "Spool":
    from ingester.spool import Spool

    if not settings.spool.directory.is_dir():
        click.echo(f"spool.directory {settings.spool.directory} does not exist yet", err=True)
        sys.exit(1)
    return Spool(settings.spool.directory)


@contextlib.contextmanager
def _held(found: "Spool") -> Iterator["Spool"]:
    found.acquire()
    try:
        yield found
    finally:
        found.release()


def _salvage(found: "Spool") -> None:
    aside = found.count("quarantine")
    salvaged = found.recover()
    for one in salvaged:
        lost = f"the last {one.lost_bytes:,} bytes were a torn record, which was never reported as stored"
        click.echo(
            f"salvaged: {one.sealed.name}: {one.sealed.records} records ({one.sealed.pages} pages), "
            + (lost if one.lost_bytes else "nothing lost")
        )
    if aside := found.count("quarantine") - aside:
        click.echo(f"{aside} could not be read and went to quarantine/")
    if not salvaged and not aside:
        click.echo("Nothing was left open.")


@contextlib.contextmanager
def _problems_told() -> Iterator[None]:
    """Say why it cannot be done, and exit with a code that tells the kind."""
    codes: dict[type[Exception], int] = {
        SpoolLocked: EXIT_BUSY,
        SpoolFull: EXIT_IO,
        SpoolBroken: EXIT_IO,
        NewerFormat: EXIT_CONFIG,
    }
    try:
        yield
    except (TweetlakeError, OSError) as error:
        click.echo(f"tweetlake: {error}", err=True)
        sys.exit(codes.get(type(error), 1))


def _with_progress(items: list[_T], doing: str) -> Iterable[_T]:
    """A bar on standard error, if that is a terminal."""
    console, to_terminal = Console(stderr=True), sys.stdout.isatty()
    bar = Progress(console=console, transient=True, disable=not console.is_terminal, redirect_stdout=to_terminal)
    with bar as progress:
        yield from progress.track(items, description=doing)
