"""The front door: the command line, and the only place where the parts are built and joined."""

import asyncio
import contextlib
import json
import os
import sys
import traceback
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from rich.console import Console
from rich.table import Table

from ingester.errors import NeedsOperator, SpoolBroken, SpoolLocked, Transient, TweetlakeError
from schemas.settings import EXIT_CONFIG, Settings, SettingsError, load, load_x_secret

if TYPE_CHECKING:
    from ingester.spool import Spool

EXIT_SOFTWARE, EXIT_IO, EXIT_BUSY, EXIT_NOT_RUNNING = 70, 74, 75, 3
"""sysexits.h: internal error, disk, try again later; and systemctl's own code for a service that is not running."""
ADDRESS_FILE = "http-address"
"""In the spool folder: where the running service listens, so that `status` finds it also with port 0."""

_config = click.option(
    "--config", type=click.Path(path_type=Path), help="Settings file. Default: $TWEETLAKE_CONFIG, then /etc/tweetlake/."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tweetlake")
def main() -> None:
    """Collect posts from X around the clock: nothing lost, nothing paid twice, every gap told.

    \b
    Examples:
      tweetlake check --config tweetlake.toml
      tweetlake run --config tweetlake.toml
      tweetlake status
      tweetlake spool list
    """


@main.command()
@_config
def run(config: Path | None) -> None:
    """Poll X, keep every answer, ship it to S3; until SIGTERM.

    \b
    Example:
      X_BEARER_TOKEN=... tweetlake run --config /etc/tweetlake/tweetlake.toml
    \b
    Exit codes: 0 stopped, 78 settings, 74 disk, 75 another process has the spool, 70 anything else.
    """
    with _settings_problems_told():
        settings = load(config)
        load_x_secret(settings.x.bearer_token_file)
    loop = asyncio.new_event_loop()
    code = loop.run_until_complete(_serve(settings))
    # Everything is durable by now. Leaving here does not wait for a thread that still waits for S3.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


async def _serve(settings: Settings) -> int:
    from ingester.clock import SystemClock
    from ingester.health import HealthServer
    from ingester.model import field_set
    from ingester.s3 import S3
    from ingester.service import Service
    from ingester.spool import Spool
    from ingester.telemetry import Telemetry, configure_logging

    configure_logging()
    clock = SystemClock()
    telemetry = Telemetry(now=clock.now)
    spool = Spool(settings.spool.directory, codec=settings.spool.codec)
    address = settings.spool.directory / ADDRESS_FILE
    x = server = None
    try:
        spool.acquire()
        x = await _open_x(settings, clock, telemetry)
        service = Service(
            settings,
            spool=spool,
            source=x,
            store=S3(settings.lake),
            clock=clock,
            telemetry=telemetry,
            fields=field_set(settings.x.fields, settings.x.expansions),
            version=version("tweetlake"),
        )
        server = HealthServer(
            status=service.status, readiness=service.readiness, health=service.health, registry=telemetry.registry
        )
        try:
            url = await server.start(settings.health.host, settings.health.port)
        except OSError as error:
            click.echo(f"tweetlake: health.host and health.port cannot be listened on: {error}", err=True)
            return EXIT_CONFIG
        beside = address.with_suffix(".tmp")
        beside.write_text(url)
        beside.replace(address)  # whoever reads it finds a whole one
        telemetry.started(version=version("tweetlake"), spool=str(settings.spool.directory), url=url)
        await service.run()
    except (SpoolLocked, SpoolBroken) as error:
        return _told(error)
    except BaseExceptionGroup as group:
        telemetry.died([str(error) for error in group.exceptions])
        return max(_told(error) for error in group.exceptions)
    finally:
        if server is not None:
            address.unlink(missing_ok=True)
            await server.stop()
        if x is not None:
            await x.close()
        spool.release()
    return 0


def _told(error: BaseException) -> int:
    """Say why the process ends, and with which exit code."""
    if not isinstance(error, TweetlakeError):
        traceback.print_exception(error)
        return EXIT_SOFTWARE
    click.echo(f"tweetlake: {error}", err=True)
    return EXIT_BUSY if isinstance(error, SpoolLocked) else EXIT_IO


async def _open_x(settings: Settings, clock: Any, telemetry: Any) -> Any:
    """The session with X; exchanging key and secret for a token is tried until X answers."""
    from ingester.retry import Backoff
    from ingester.x_api import XApi

    backoff = Backoff(first_seconds=1.0, cap_seconds=60.0)
    while True:
        try:
            secret = load_x_secret(settings.x.bearer_token_file)
            return await XApi.open(secret, settings.x.base_url, clock, timeout_seconds=settings.x.timeout_seconds)
        except (Transient, NeedsOperator) as error:
            wait = backoff.next_wait()
            telemetry.request_failed("oauth2", str(error), wait)
            await clock.sleep(wait)


@main.command()
@_config
def check(config: Path | None) -> None:
    """Check the settings and the secret; every problem at once, with its fix. Exits 78 when there is one.

    \b
    Example:
      tweetlake check --config tweetlake.toml
    """
    from ingester.model import field_set
    from ingester.pacing import Prices

    problems = []
    settings = None
    try:
        settings = load(config)
    except SettingsError as error:
        problems += error.problems
    try:
        load_x_secret(settings.x.bearer_token_file if settings else None)
    except SettingsError as error:
        problems += error.problems
    if problems:
        for problem in problems:
            click.echo(str(problem))
        click.echo(f"\n{len(problems)} problem{'s' if len(problems) > 1 else ''}. Nothing was started.")
        sys.exit(EXIT_CONFIG)
    assert settings is not None
    prices = Prices(settings.price, field_set(settings.x.fields, settings.x.expansions))
    click.echo("Settings and secret are good.")
    for query in settings.query:
        click.echo(f"  query {query.name}: every {query.poll_every_seconds:g} s: {query.rule}")
    worst = prices.worst_case(settings.x.max_results) / 1e6
    click.echo(f"  a page of {settings.x.max_results} posts is booked at ${worst:.2f} at most (x.fields, x.expansions)")
    click.echo(f"  budget: {_budget_words(settings)}")
    click.echo(
        f"  raw goes to s3://{settings.lake.bucket}/{settings.lake.prefix}raw/ through {settings.spool.directory}"
    )


def _budget_words(settings: Settings) -> str:
    caps = {name: cap for name, cap in settings.budget.model_dump().items() if cap is not None}
    return ", ".join(f"{name} = {cap:g}" for name, cap in caps.items()) or "no cap"


@main.command()
@_config
@click.option("--json", "as_json", is_flag=True, help="The whole status as JSON.")
def status(config: Path | None, as_json: bool) -> None:
    """Ask the running service how it is. Exits 0 when healthy, 1 when not, 3 when it does not run.

    \b
    Examples:
      tweetlake status
      tweetlake status --json | jq .queries
    """
    with _settings_problems_told():
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


@main.group(invoke_without_command=True)
@_config
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
@_config
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
@_config
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

    with _settings_problems_told():
        settings = load(config or click.get_current_context().obj)
    if not settings.spool.directory.is_dir():
        click.echo(f"spool.directory {settings.spool.directory} does not exist yet", err=True)
        sys.exit(1)
    return Spool(settings.spool.directory)


@contextlib.contextmanager
def _settings_problems_told() -> Iterator[None]:
    try:
        yield
    except SettingsError as error:
        _exit_with(error)


def _exit_with(error: SettingsError) -> NoReturn:
    click.echo(f"tweetlake: {error}", err=True)
    sys.exit(EXIT_CONFIG)


if __name__ == "__main__":
    main(prog_name="tweetlake")
