"""`tweetlake backfill`: order a stretch of a query's timeline; the running service asks X for it."""

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from ingester.commands.common import settings_problems_told, with_config
from schemas.orders import Order
from schemas.settings import Query, Settings, load

REACH = timedelta(days=7)
"""How far back X answers."""
TAKEN_WITHIN = timedelta(minutes=5)
"""Until the service has taken the order and asked; what X forgets meanwhile is not worth ordering."""


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
@click.option("--yes", is_flag=True, help="Do not ask before it is ordered.")
def backfill(config: Path | None, name: str, since: datetime, until: datetime, yes: bool) -> None:
    """Order a stretch of a query's timeline to be collected, again or for the first time.

    The order is an object under control/requests/ in the bucket. The running service takes it within a minute, asks X
    between its live polls, within the budget; what was collected before is paid again unless it was today (UTC). Says
    what posts cost and which caps hold, and asks before. What X has no more, older than seven days, is left out.

    \b
    Examples:
      tweetlake backfill --query python --since 2026-11-19T06:00 --until 2026-11-19T09:00
      tweetlake backfill --query python --since 2026-11-19 --until 2026-11-20T00:00+01:00 --yes
    """
    with settings_problems_told():
        settings = load(config)
    now = datetime.now(UTC)
    query = _check(settings, name, since, until, now)
    order = Order.new(name, _within_reach(since, now), min(until, now), now)
    click.echo(_price(settings))
    click.echo(_caps(settings, query))
    if not yes:
        click.confirm(f"Order query {name}, {_stretch(order)}?", abort=True)
    key = _leave(settings, order)
    click.echo(f"Ordered {order.name}: query {name}, {_stretch(order)}.")
    click.echo(f"It lies at s3://{settings.lake.bucket}/{key} until the running service takes it, within a minute.")
    click.echo("Watch it with: tweetlake status")


def _check(settings: Settings, name: str, since: datetime, until: datetime, now: datetime) -> Query:
    """Refuse what cannot be carried out; returns the query that is named."""
    queries = {query.name: query for query in settings.query}
    if name not in queries:
        raise click.BadParameter(f"no query {name!r}; there are: {', '.join(queries)}", param_hint="--query")
    if since >= until:
        raise click.BadParameter("must lie before --until", param_hint="--since")
    if since >= now:
        raise click.BadParameter("lies in the future; polling will collect that by itself", param_hint="--since")
    if until <= _oldest(now):
        raise click.BadParameter("lies more than seven days back; X answers no further", param_hint="--until")
    return queries[name]


def _oldest(now: datetime) -> datetime:
    """Where X will still answer when the order is carried out."""
    return now - REACH + TAKEN_WITHIN


def _within_reach(since: datetime, now: datetime) -> datetime:
    """The start of what X can answer; says what is left out."""
    oldest = _oldest(now)
    if since < oldest:
        click.echo(f"X answers seven days back: what lies before {_minute(oldest)} is left out.", err=True)
    return max(since, oldest)


def _price(settings: Settings) -> str:
    """What posts cost: how many X will find is known to nobody before they were asked for."""
    from ingester.budget import Prices
    from ingester.model import field_set

    prices = Prices(settings.price, field_set(settings.x.fields, settings.x.expansions))
    least, most = settings.price.post_usd * 1_000, prices.worst_case(1_000) / 1e6
    along = f", or ${most:,.2f} if X bills all that may come along (x.fields, x.expansions)" if most > least else ""
    return f"How many posts it finds is not known before: 1,000 cost ${least:,.2f}{along}."


def _caps(settings: Settings, query: Query) -> str:
    """Every cap within which it is carried out."""
    owners = {"budget": settings.budget, f"query {query.name}": query}
    names = ("usd_per_month", "usd_per_day", "posts_per_month", "posts_per_day")
    caps = [
        f"{owner}.{name} = {cap:g}"
        for owner, section in owners.items()
        for name in names
        if (cap := getattr(section, name, None)) is not None
    ]
    if not caps:
        return "No cap of the settings limits it; budget.usd_per_month would."
    return f"It is carried out within the caps: {', '.join(caps)}."


def _stretch(order: Order) -> str:
    return f"{_minute(order.since)} to {_minute(order.until)}"


def _minute(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%MZ}"


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
