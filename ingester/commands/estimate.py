"""`tweetlake estimate`: what a month of each query would cost, from X's own counts of the last seven days."""

import asyncio
import json
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from ingester.commands.common import WIDE, console_of_output, settings_problems_told, with_config
from ingester.page.words import count
from schemas.secrets import load_x_secret
from schemas.settings import Settings, load

if TYPE_CHECKING:
    from ingester.budget import Prices
    from ingester.model import CountsRequest

DAYS_A_MONTH = 30
BARS = "▁▂▃▄▅▆▇█"
HOURS_A_BAR = 4
NARROWEST = 80
"""Columns that whole figures need; a narrower terminal wraps the lines itself."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What one query would bring and cost, if the next month is as the last week."""

    query: str
    posts_per_hour: list[int]
    """X's counts of the last seven days, oldest first."""
    posts_per_month: int
    usd_posts_only: float
    """Posts, re-reads and the counts audit, as if nothing included were billed."""
    usd_worst_case: float
    """The same with everything billed that the chosen fields can bring along."""
    requests_per_quarter_hour: int
    """At the busiest hour, for X's rate window."""


@click.command()
@with_config
@click.option("--rule", "rules", multiple=True, help="Estimate this rule instead of the settings' queries; repeatable.")
@click.option("--yes", is_flag=True, help="Do not ask before X is asked.")
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON.")
def estimate(config: Path | None, rules: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Tell for each query what a month would cost. Asks X's counts endpoint once a query, which X bills per request, and
    asks you before; a script says --yes.

    \b
    Examples:
      tweetlake estimate
      tweetlake estimate --rule "python lang:en" --rule "rust lang:en"
      tweetlake estimate --yes --json | jq '.[].usd_worst_case'
    """
    from ingester.budget import Prices
    from ingester.errors import NeedsOperator, Transient
    from ingester.model import field_set

    with settings_problems_told():
        settings = load(config)
        load_x_secret(settings.x.bearer_token_file)
    asked = {rule: rule for rule in rules} or {query.name: query.rule for query in settings.query}
    cost = len(asked) * settings.price.counts_request_usd
    if not yes:
        question = f"X is asked {count(len(asked), 'time')}, for ${cost:.3f}. Go on?"
        click.confirm(question, default=True, abort=True, err=True)  # standard output may be read by a program
    try:
        counts = asyncio.run(_count(settings, list(asked.values())))
    except (Transient, NeedsOperator) as error:
        click.echo(f"tweetlake: X gave no counts: {error}", err=True)
        sys.exit(1)
    prices = Prices(settings.price, field_set(settings.x.fields, settings.x.expansions))
    forecasts = [forecast(settings, prices, name, hours) for name, hours in zip(asked, counts, strict=True)]
    if as_json:
        click.echo(json.dumps([asdict(found) for found in forecasts]))
    else:
        _print(console_of_output(), settings, forecasts, cost)


def forecast(settings: Settings, prices: "Prices", name: str, posts_per_hour: list[int]) -> Forecast:
    """The figures of one query, by the settings' prices; a rule that is no query is polled like a query by default."""
    hours = max(1, len(posts_per_hour))
    posts = round(sum(posts_per_hour) / hours * 24 * DAYS_A_MONTH)
    query = next((query for query in settings.query if query.name == name), settings.query[0])
    polls = DAYS_A_MONTH * 86_400 / query.poll_every_seconds
    reread = query.overlap_seconds * polls + query.reread_minutes * 60 * DAYS_A_MONTH * 24
    repeats = posts / (DAYS_A_MONTH * 86_400) * reread
    extra = repeats * settings.price.repeat_post_usd
    extra += DAYS_A_MONTH * settings.price.counts_request_usd if settings.audit.counts_daily else 0.0
    pages = max(posts_per_hour, default=0) / settings.x.max_results / 4
    return Forecast(
        query=name,
        posts_per_hour=posts_per_hour,
        posts_per_month=posts,
        usd_posts_only=round(posts * settings.price.post_usd + extra, 2),
        usd_worst_case=round(prices.worst_case(posts) / 1e6 + extra, 2),
        requests_per_quarter_hour=round(max(900 / query.poll_every_seconds, pages)),
    )


async def _count(settings: Settings, rules: list[str]) -> list[list[int]]:
    """Posts per hour of the last seven whole days of hours, for each rule. Raises Transient or NeedsOperator."""
    from ingester.clock import SystemClock
    from ingester.model import CountsRequest
    from ingester.x_api import XApi

    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    start = end - timedelta(days=7) + timedelta(hours=1)
    secret = load_x_secret(settings.x.bearer_token_file)
    x = await XApi.open(secret, settings.x.base_url, SystemClock(), timeout_seconds=settings.x.timeout_seconds)
    try:
        return [await _hours(x, CountsRequest(rule, start, end)) for rule in rules]
    finally:
        await x.close()


async def _hours(x: Any, request: "CountsRequest") -> list[int]:
    from ingester.answers import Meaning, judge
    from ingester.errors import NeedsOperator

    answer = await x.counts(request)
    verdict = judge(answer)
    if verdict.meaning is not Meaning.PAGE:
        raise NeedsOperator(f"{request.rule!r}: {verdict.detail}")
    try:
        buckets = json.loads(answer.body).get("data", [])
        return [int(bucket.get("tweet_count", bucket.get("post_count"))) for bucket in buckets]
    except (ValueError, TypeError, AttributeError) as error:
        raise NeedsOperator(f"{request.rule!r}: the answer holds no counts") from error


def _print(console: Console, settings: Settings, forecasts: list[Forecast], cost: float) -> None:
    console.width = max(console.width, NARROWEST)
    table = _table(forecasts, with_bars=True)
    if console.measure(table, options=console.options.update(max_width=2 * WIDE)).maximum > console.width:
        table = _table(forecasts, with_bars=False)
    console.print(table)
    least, most = sum(f.usd_posts_only for f in forecasts), sum(f.usd_worst_case for f in forecasts)
    console.print(
        f"\nAll together: ${least:,.2f} to ${most:,.2f} a month. The worst case counts every user and post that the "
        'chosen fields can bring along (x.fields, x.expansions); with x.fields = "lean" both are the same.'
    )
    for line in _against_caps(settings, least, most):
        console.print(line)
    console.print(f"Asking cost ${cost:.3f}.")


def _table(forecasts: list[Forecast], *, with_bars: bool) -> Table:
    """Names are folded where it is narrow, figures never."""
    table = Table(box=None, pad_edge=False)
    table.add_column("query", max_width=40, overflow="fold")
    if with_bars:
        table.add_column("last seven days", no_wrap=True)
    for heading in ("posts/month", "$ posts only", "$ worst case", "requests/15 min"):
        table.add_column(heading, justify="right", no_wrap=True)
    for found in forecasts:
        figures = (
            f"{found.posts_per_month:,}",
            f"{found.usd_posts_only:,.2f}",
            f"{found.usd_worst_case:,.2f}",
            f"{found.requests_per_quarter_hour:,}",
        )
        table.add_row(found.query, *([_sparkline(found.posts_per_hour)] if with_bars else []), *figures)
    return table


def _against_caps(settings: Settings, least: float, most: float) -> list[str]:
    """When the caps would be reached, in words."""
    cap = settings.budget.usd_per_month
    if cap is None:
        return ["budget.usd_per_month is not set: nothing ends the spending but X's own limit."]
    if most <= cap:
        return [f"budget.usd_per_month = {cap:g} is enough, also in the worst case."]
    first = cap / most * DAYS_A_MONTH
    if least <= cap:
        return [
            f"budget.usd_per_month = {cap:g} is enough for the posts; in the worst case it ends on day {first:.0f}."
        ]
    last = cap / least * DAYS_A_MONTH
    return [f"budget.usd_per_month = {cap:g} ends between day {first:.0f} and day {last:.0f} of the month."]


def _sparkline(posts_per_hour: list[int]) -> str:
    """The week as a line of bars, four hours each."""
    sums = [sum(posts_per_hour[start : start + HOURS_A_BAR]) for start in range(0, len(posts_per_hour), HOURS_A_BAR)]
    highest = max(sums, default=0) or 1
    return "".join(BARS[round(value / highest * (len(BARS) - 1))] for value in sums)
