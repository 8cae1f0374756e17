"""`tweetlake check`: are the settings and the secret good, and what do they mean."""

import sys
from pathlib import Path

import click

from ingester.commands.common import with_config
from schemas.settings import EXIT_CONFIG, Settings, SettingsError, load, load_x_secret


@click.command()
@with_config
def check(config: Path | None) -> None:
    """Check the settings and the secret; every problem at once, with its fix. Exits 78 when there is one.

    \b
    Example:
      tweetlake check --config tweetlake.toml
    """
    from ingester.budget import Prices
    from ingester.model import field_set

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
    caps = {name: cap for name, cap in settings.budget.model_dump(exclude={"reconcile"}).items() if cap is not None}
    return ", ".join(f"{name} = {cap:g}" for name, cap in caps.items()) or "no cap"
