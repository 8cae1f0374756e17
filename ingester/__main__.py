"""The front door: the command line, and the only place where the parts are built and joined."""

import asyncio
import contextlib
import ctypes
import faulthandler
import importlib
import os
import sys
import traceback
from collections.abc import Coroutine
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingester.commands.backfill import backfill
from ingester.commands.check import check
from ingester.commands.common import (
    ADDRESS_FILE,
    EXIT_BUSY,
    EXIT_IO,
    EXIT_SOFTWARE,
    settings_problems_told,
    with_config,
)
from ingester.commands.completion import completion
from ingester.commands.estimate import estimate
from ingester.commands.install import install_service
from ingester.commands.spool import spool
from ingester.commands.status import status
from ingester.errors import (
    LoopDied,
    NeedsOperator,
    NewerFormat,
    SpoolBroken,
    SpoolLocked,
    Transient,
    TweetlakeError,
)
from ingester.model import Answer, CountsRequest, SearchRequest
from ingester.ports import Clock, Destination
from ingester.retry import Backoff
from schemas.secrets import load_health_token, load_x_secret
from schemas.settings import EXIT_CONFIG, Health, Settings, load

if TYPE_CHECKING:
    from ingester.telemetry import Telemetry
    from ingester.x_api import XApi

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
"""Of glibc's malloc.h."""
_LARGE = 1 << 20


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
@with_config
def run(config: Path | None) -> None:
    """Poll X, keep every answer, ship it to S3; until SIGTERM.

    Exit codes: 0 stopped, 78 settings, 74 disk, 75 another process has the spool, 70 anything else.

    \b
    Example:
      X_BEARER_TOKEN=... tweetlake run --config /etc/tweetlake/tweetlake.toml
    """
    faulthandler.enable(2)  # where it hung, should the watchdog of systemd end it by SIGABRT
    _share_memory_between_threads()
    with settings_problems_told():
        settings = load(config)
        load_x_secret(settings.x.bearer_token_file)
        load_health_token(settings.health.token_file)
    loop = asyncio.new_event_loop()
    code = loop.run_until_complete(_serve(settings))
    # Everything is durable by now. Leaving here does not wait for a thread that still waits for S3.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _share_memory_between_threads() -> None:
    """Keep glibc from giving each thread an arena of its own: they add tens of megabytes that are never given back. And
    keep it giving back at once what is large: it would learn from the tables that zstandard makes while sealing not to.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        for name, value in ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _LARGE)):
            ctypes.CDLL(None).mallopt(name, value)


async def _serve(settings: Settings) -> int:
    from ingester import gauges
    from ingester.clock import SystemClock
    from ingester.health import HealthServer
    from ingester.logs import configure_logging
    from ingester.model import field_set
    from ingester.notify import Notifier
    from ingester.page import render
    from ingester.s3 import S3
    from ingester.service import Service
    from ingester.spool import Spool
    from ingester.telemetry import Telemetry

    configure_logging()
    clock = SystemClock()
    telemetry = Telemetry(now=clock.now)
    destination = Destination.of(settings.lake)
    spool = Spool(settings.spool.directory, codec=settings.spool.codec, destination=destination)
    address = settings.spool.directory / ADDRESS_FILE
    x = server = None
    try:
        spool.acquire()
        x = _OpeningX(_open_x(settings, clock, telemetry))
        service = Service(
            settings,
            spool=spool,
            source=x,
            stores=cache(S3),
            clock=clock,
            telemetry=telemetry,
            fields=field_set(settings.x.fields, settings.x.expansions),
            version=version("tweetlake"),
            notifier=Notifier.from_environment(os.environ, os.getpid()),
        )
        report = service.report
        looking = asyncio.ensure_future(report.look())  # in a thread, beside the rest of a start
        server = HealthServer(
            status=report.status,
            readiness=report.readiness,
            health=report.health,
            page=lambda: render(report.status(), report.history.samples),
            registry=telemetry.registry,
            clock=clock,
            telemetry=telemetry,
            token=load_health_token(settings.health.token_file),
        )
        telemetry.expect(query.name for query in settings.query)
        gauges.expose(telemetry.registry, report.status, settings)
        try:
            url = await server.start(settings.health.host, settings.health.port, is_open=settings.health.is_open)
        except OSError as error:
            return _not_listening(settings.health, error)
        with contextlib.suppress(OSError):  # on a full disk: then `status` asks health.host and health.port
            beside = address.with_suffix(".tmp")
            beside.write_text(url)
            beside.replace(address)  # whoever reads it finds a whole one
        await looking  # from here on no answer has to ask the disk
        telemetry.started(version=version("tweetlake"), spool=str(settings.spool.directory), url=url)
        await service.run({"health": server.run(), "watch": report.watch()})
    except (TweetlakeError, BaseExceptionGroup) as error:
        errors = error.exceptions if isinstance(error, BaseExceptionGroup) else [error]
        telemetry.died([str(each) for each in errors])
        return max(_told(each) for each in errors)
    finally:
        if server is not None:
            address.unlink(missing_ok=True)
            await server.stop()
        if x is not None:
            await x.close()
        spool.release()
    return 0


def _not_listening(settings: Health, error: OSError) -> int:
    from ingester.trial import why_not_listening

    what, fix = why_not_listening(settings, error)
    click.echo(f"tweetlake: health.port {settings.port} of {settings.host}: {what}\n  fix: {fix}", err=True)
    return EXIT_CONFIG


def _told(error: BaseException) -> int:
    """Say why the process ends, and with which exit code."""
    cause = error.__cause__ if isinstance(error, LoopDied) else error
    click.echo(f"tweetlake: {error}", err=True)
    match cause:
        case SpoolBroken():
            return EXIT_IO
        case SpoolLocked():
            return EXIT_BUSY
        case NewerFormat():
            return EXIT_CONFIG
    traceback.print_exception(cause)
    return EXIT_SOFTWARE


class _OpeningX:
    """X, opened beside the rest of a start: tweepy is slow to import, and a token may have to be asked for first."""

    def __init__(self, opening: Coroutine[Any, Any, "XApi"]) -> None:
        self._opening = asyncio.ensure_future(opening)

    async def search(self, request: SearchRequest) -> Answer:
        return await (await self._opened()).search(request)

    async def counts(self, request: CountsRequest) -> Answer:
        return await (await self._opened()).counts(request)

    async def usage(self, days: int) -> Answer:
        return await (await self._opened()).usage(days)

    async def probe(self) -> Answer:
        return await (await self._opened()).probe()

    async def close(self) -> None:
        if self._opening.done() and not self._opening.exception():
            await self._opening.result().close()
        self._opening.cancel()

    async def _opened(self) -> "XApi":
        return await asyncio.shield(self._opening)  # who does not wait any longer does not end it for the others


async def _open_x(settings: Settings, clock: Clock, telemetry: "Telemetry") -> "XApi":
    """The session with X; exchanging key and secret for a token is tried until X answers."""
    x_api = await asyncio.to_thread(importlib.import_module, "ingester.x_api")
    backoff = Backoff(first_seconds=1.0, cap_seconds=60.0)
    while True:
        try:
            secret = load_x_secret(settings.x.bearer_token_file)
            x: XApi = await x_api.XApi.open(
                secret, settings.x.base_url, clock, timeout_seconds=settings.x.timeout_seconds
            )
        except (Transient, NeedsOperator) as error:
            wait = backoff.next_wait()
            telemetry.request_failed("oauth2", str(error), wait)
            await clock.sleep(wait)
        else:
            return x


for command in (backfill, estimate, install_service, check, completion, status, spool):
    main.add_command(command)


if __name__ == "__main__":
    main(prog_name="tweetlake")
