"""`tweetlake-compact freshness`: two figures for monitoring."""

import json
from pathlib import Path

import click

from compaction_dags.compaction.commands.common import errors_told, with_config
from schemas.settings import load


@click.command()
@with_config
def freshness(config: Path | None) -> None:
    """Tell the newest post in `tweets` and the oldest raw hour that waits to be compacted, as one line of JSON.

    \b
    Example:
      tweetlake-compact freshness | jq .newest_tweet_age_seconds
    """
    from compaction_dags.compaction import freshness as figures

    with errors_told():
        click.echo(json.dumps(figures.freshness(load(config)).as_dict()))
