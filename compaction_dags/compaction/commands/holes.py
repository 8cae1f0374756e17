"""`tweetlake-compact order-holes`: what was not collected, and X still has, is ordered again."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from compaction_dags.compaction.commands.common import errors_told, with_config
from schemas.settings import Settings, load

if TYPE_CHECKING:
    from compaction_dags.compaction.holes import Hole


@click.command("order-holes")
@with_config
@click.option("--query", "queries", multiple=True, help="Only holes of this query; repeatable.")
@click.option("--yes", is_flag=True, help="Do not ask before they are ordered.")
def order_holes(config: Path | None, queries: tuple[str, ...], yes: bool) -> None:
    """Find what of the last seven days was not collected and will not be, and order it again, each hole once.

    Says what it would cost at most and asks before. The running service takes the orders within a minute and collects
    them between its live polls, within the budget.

    \b
    Examples:
      tweetlake-compact order-holes
      tweetlake-compact order-holes --query python --yes

    Exit codes: 0 done, or there is no hole; 1 declined; 75 raw hours wait to be compacted first, or S3 does not answer.
    """
    from compaction_dags.compaction import holes

    with errors_told():
        settings = load(config)
        names = {query.name for query in settings.query}
        if unknown := sorted(set(queries) - names):
            there_are = ", ".join(sorted(names)) or "none"
            raise click.BadParameter(
                f"the settings have no query {', '.join(unknown)}; there are: {there_are}", param_hint="--query"
            )
        found = holes.find_holes(settings, queries=queries)
        for hole in found:
            click.echo(_in_words(hole, settings))
        if not found:
            click.echo("no holes that X still has and that were not ordered before")
            return
        click.echo(_cost(found, settings))
        if not yes:
            click.confirm(f"Order {len(found)}?", abort=True)
        holes.leave_orders(settings, found)
        click.echo(f"ordered {len(found)}; watch them with: tweetlake status")


def _in_words(hole: "Hole", settings: Settings) -> str:
    order, usd = hole.order, hole.most_usd(settings)
    most = "nothing is known of how much it has" if usd is None else f"at most {hole.most_posts:,} posts, ${usd:,.2f}"
    return f"{order.query}: {order.since:%Y-%m-%dT%H:%M:%SZ} to {order.until:%Y-%m-%dT%H:%M:%SZ}; {most}"


def _cost(found: "Sequence[Hole]", settings: Settings) -> str:
    known = [usd for hole in found if (usd := hole.most_usd(settings)) is not None]
    more = f", and {len(found) - len(known)} of which nothing is known" if len(known) < len(found) else ""
    return f"together at most ${sum(known):,.2f} for the posts{more}; what comes with them may be billed too"
