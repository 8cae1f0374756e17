"""`tweetlake backfill`: order a stretch of a query's timeline; the running service asks X for it."""

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from ingester.commands.common import settings_problems_told, with_config
from schemas.orders import Order
from schemas.settings import Settings, load

REACH = timedelta(days=7)
"""How far back X answers."""


class Moment(click.ParamType[datetime]):
    """A time such as 2026-11-19T06:00; without a zone it is UTC."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            found = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is no time; write it as 2026-11-19T06:00 (UTC), or with a zone", param, ctx)
        return found if found.tzinfo else found.replace(tzinfo=UTC)


@click.command()
@with_config
@click.option("--query", "name", required=True, help="Name of a query of the settings; its rule of now is asked.")
@click.option("--since", type=Moment(), required=True, help="From here on (inclusive), for example 2026-11-19T06:00.")
@click.option("--until", type=Moment(), required=True, help="Up to here (exclusive).")
def backfill(config: Path | None, name: str, since: datetime, until: datetime) -> None:
    """Order a stretch of a query's timeline to be collected, again or for the first time.

    The order is an object under control/requests/ in the bucket. The running service takes it within a minute, asks X
    between its live polls, within the budget; what was collected before is paid again unless it was today (UTC).

    \b
    Examples:
      tweetlake backfill --query python --since 2026-11-19T06:00 --until 2026-11-19T09:00
      tweetlake backfill --query python --since 2026-11-19 --until 2026-11-20T00:00+01:00
    """
    with settings_problems_told():
        settings = load(config)
    now = datetime.now(UTC)
    _check(settings, name, since, until, now)
    order = Order.new(name, since, min(until, now), now)
    key = _leave(settings, order)
    click.echo(f"Ordered {order.name}: query {name}, {order.since:%Y-%m-%dT%H:%MZ} to {order.until:%Y-%m-%dT%H:%MZ}.")
    click.echo(f"It lies at s3://{settings.lake.bucket}/{key} until the running service takes it, within a minute.")
    click.echo("Watch it with: tweetlake status")


def _check(settings: Settings, name: str, since: datetime, until: datetime, now: datetime) -> None:
    """Refuse what cannot be carried out; warn of what only half can."""
    names = [query.name for query in settings.query]
    if name not in names:
        raise click.BadParameter(f"no query {name!r}; there are: {', '.join(names)}", param_hint="--query")
    if since >= until:
        raise click.BadParameter("must lie before --until", param_hint="--since")
    if since >= now:
        raise click.BadParameter("lies in the future; polling will collect that by itself", param_hint="--since")
    if until <= now - REACH:
        raise click.BadParameter("lies more than seven days back; X answers no further", param_hint="--until")
    if since < now - REACH:
        click.echo(f"X answers seven days back: what lies before {now - REACH:%Y-%m-%dT%H:%MZ} is given up.", err=True)


def _leave(settings: Settings, order: Order) -> str:
    from ingester.errors import NeedsOperator, Transient
    from ingester.s3 import S3
    from schemas.keys import LakeKeys

    key = LakeKeys(settings.lake.prefix).request(order.name)
    try:
        asyncio.run(S3(settings.lake).replace(key, order.to_json(), etag=None))
    except (Transient, NeedsOperator) as error:
        click.echo(f"tweetlake: the order could not be left: {error}", err=True)
        sys.exit(1)
    return key
