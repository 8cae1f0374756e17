"""`tweetlake-compact metrics`: the compaction's numbers as Prometheus reads them."""

from pathlib import Path

import click

from compaction_dags.compaction.commands.common import errors_told, with_config
from schemas.settings import load


@click.command()
@with_config
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A file for node_exporter's textfile collector, replaced at once. Default: standard output.",
)
def metrics(config: Path | None, output: Path | None) -> None:
    """Tell Prometheus how fresh and how complete the tables are, what recent runs did, and how large the tables are.

    Only reads the lake. Run it every quarter of an hour, apart from what compacts, so that it tells when that stands still.

    \b
    Examples:
      tweetlake-compact metrics
      tweetlake-compact metrics --output /var/lib/prometheus/node-exporter/tweetlake.prom
    """
    from prometheus_client import generate_latest, write_to_textfile

    from compaction_dags.compaction import metrics as numbers

    with errors_told():
        registry = numbers.exposed(numbers.gather(load(config)))
        if output is None:
            click.echo(generate_latest(registry), nl=False)
        else:
            write_to_textfile(str(output), registry)
