"""`tweetlake check`: are the settings, the secret and everything the service needs good, and what do they mean."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ingester.commands.common import with_config
from schemas.secrets import XSecret, load_health_token, load_x_secret
from schemas.settings import EXIT_CONFIG, Settings, SettingsError, load

if TYPE_CHECKING:
    from ingester.trial import Finding

EXIT_BAD = 1
_MARKS = {"good": ("ok  ", "green"), "note": ("note", "yellow"), "bad": ("BAD ", "red")}


@click.command()
@with_config
@click.option(
    "--offline", is_flag=True, help="Only the settings with their caps, and the secret; ask neither X nor S3."
)
@click.option("--json", "as_json", is_flag=True, help="What was found as JSON, one object a line.")
def check(config: Path | None, offline: bool, as_json: bool) -> None:
    """Try everything the service needs, as the user and with the credentials it will have; each problem with its fix.

    Settings, secret, caps, spool and disk, port, X's credentials and clock (by asking for the app's usage, which costs nothing),
    and every S3 call that the service makes. Nothing is left behind.

    Exit codes: 0 good, 78 settings or secret, 1 anything else that is bad.

    \b
    Examples:
      tweetlake check --config tweetlake.toml
      tweetlake check --offline && sudo systemctl restart tweetlake
      tweetlake check --json | jq 'select(.outcome == "bad")'
    """
    settings, secret = _settings(config)
    if not as_json:
        _tell_meaning(settings)
    outcomes = asyncio.run(_tell(settings, secret, offline, as_json))
    bad = outcomes.count("bad")
    if not as_json and (bad or not offline):
        click.echo("\nAll good." if not bad else f"\n{bad} bad; each with its fix above.")
    sys.exit(EXIT_BAD if bad else 0)


def _settings(config: Path | None) -> tuple[Settings, XSecret]:
    """What both files say; every problem of both is told, and ends it."""
    problems = []
    settings = secret = None
    try:
        settings = load(config)
    except SettingsError as error:
        problems += error.problems
    try:
        secret = load_x_secret(settings.x.bearer_token_file if settings else None)
    except SettingsError as error:
        problems += error.problems
    try:
        load_health_token(settings.health.token_file if settings else None)
    except SettingsError as error:
        problems += error.problems
    if settings is None or secret is None or problems:
        for problem in problems:
            click.echo(str(problem))
        click.echo(f"\n{len(problems)} problem{'s' if len(problems) > 1 else ''}. Nothing was started.")
        sys.exit(EXIT_CONFIG)
    return settings, secret


def _tell_meaning(settings: Settings) -> None:
    from ingester.budget import Prices
    from ingester.model import field_set

    prices = Prices(settings.price, field_set(settings.x.fields, settings.x.expansions))
    click.echo("Settings and secret are good.")
    for query in settings.query:
        click.echo(f"  query {query.name}: every {query.poll_every_seconds:g} s: {query.rule}")
    worst = prices.worst_case(settings.x.max_results) / 1e6
    click.echo(f"  a page of {settings.x.max_results} posts is booked at ${worst:.2f} at most (x.fields, x.expansions)")
    click.echo(f"  budget: {_budget_words(settings)}")
    click.echo(
        f"  raw goes to s3://{settings.lake.bucket}/{settings.lake.prefix}raw/ through {settings.spool.directory}\n"
    )


def _budget_words(settings: Settings) -> str:
    caps = {name: cap for name, cap in settings.budget.model_dump(exclude={"reconcile"}).items() if cap is not None}
    return ", ".join(f"{name} = {cap:g}" for name, cap in caps.items()) or "no cap"


async def _tell(settings: Settings, secret: XSecret, offline: bool, as_json: bool) -> list[str]:
    """Try part after part, telling each finding as it comes."""
    outcomes = []
    async for finding in _trials(settings, secret, offline):
        outcomes.append(finding.outcome.value)
        if as_json:
            click.echo(json.dumps(asdict(finding) | {"outcome": finding.outcome.value}))
            continue
        mark, colour = _MARKS[finding.outcome.value]
        click.echo(f"{click.style(mark, fg=colour)}  {finding.subject}: {finding.what}")
        if finding.fix:
            click.echo(f"      fix: {finding.fix}")
    return outcomes


async def _trials(settings: Settings, secret: XSecret, offline: bool) -> AsyncIterator["Finding"]:
    from ingester import trial
    from ingester.clock import SystemClock
    from ingester.errors import NeedsOperator, Transient
    from ingester.ports import Destination
    from ingester.s3 import S3
    from ingester.x_api import XApi
    from schemas.keys import LakeKeys

    for finding in trial.try_caps(settings):
        yield finding
    if offline:
        return
    for finding in trial.try_spool(settings.spool):
        yield finding
    token = load_health_token(settings.health.token_file)
    ours = _spool_id(settings.spool.directory)
    yield trial.try_port(settings.health, ours, token.get_secret_value() if token else None)
    if (reach := trial.try_reach(settings.health, has_token=token is not None)) is not None:
        yield reach
    try:
        x = await XApi.open(secret, settings.x.base_url, SystemClock(), timeout_seconds=settings.x.timeout_seconds)
    except (Transient, NeedsOperator) as error:
        fix = "look at X_API_KEY and X_API_SECRET, the network and x.base_url"
        yield trial.Finding("x credentials", trial.Outcome.BAD, str(error), fix)
    else:
        try:
            async for finding in trial.try_x(x):
                yield finding
        finally:
            await x.close()
    destination = Destination.of(settings.lake)
    async for finding in trial.try_s3(S3(destination), LakeKeys(settings.lake.prefix), f"s3 {settings.lake.bucket}"):
        yield finding


def _spool_id(directory: Path) -> str | None:
    """Empty when there is none yet, None when this user may not read it."""
    from ingester.spool import Spool

    try:
        return Spool(directory).stored_id() or ""
    except OSError:
        return None
