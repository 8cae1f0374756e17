"""The front door of the sandbox: `python -m sandbox x-api`, `s3`, `demo` and `soak`."""

import asyncio
import json
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sandbox.world import WorldSettings
    from sandbox.x_api import ApiSettings


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """A whole world on one machine, no account needed: a simulated X API, a real S3 server, and the demo of both.

    Everything listens on 127.0.0.1 and ends with Ctrl-C.
    """


@main.command("x-api")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8400, show_default=True, help="Port to listen on; 0 is any free one.")
@click.option("--token", default="sandbox-token", show_default=True, help="Bearer token to accept.")
@click.option("--seed", default=1, show_default=True, help="Which world: the same seed gives the same posts.")
@click.option("--rate", default=10.0, show_default=True, help="Posts per second in the whole world.")
@click.option("--backlog-hours", default=2.0, show_default=True, help="Hours of the past that can be found, up to 168.")
@click.option("--deleted-share", default=0.0, show_default=True, help="Share of the posts that vanish within a day.")
@click.option("--search-limit", default=450, show_default=True, help="Searches per rate-limit window.")
@click.option("--window-seconds", default=900.0, show_default=True, help="Length of a rate-limit window.")
@click.option("--settings", default=None, hidden=True, help="All settings as JSON, from another process.")
@click.option("--quiet", is_flag=True, help="Print the URL and nothing else.")
def x_api(
    host: str,
    port: int,
    token: str,
    seed: int,
    rate: float,
    backlog_hours: float,
    deleted_share: float,
    search_limit: int,
    window_seconds: float,
    settings: str | None,
    quiet: bool,
) -> None:
    """Simulate X: recent search, counts, usage and tokens over HTTP.

    \b
    Examples:
      python -m sandbox x-api --backlog-hours 24
      curl -H 'Authorization: Bearer sandbox-token' \\
        'http://127.0.0.1:8400/2/tweets/search/recent?query=python%20lang:en%20-is:retweet'
      curl -d '[{"kind": "rate_429", "next_n": 2}]' http://127.0.0.1:8400/_sandbox/faults
      curl http://127.0.0.1:8400/_sandbox/stats
    """
    from sandbox.world import WorldSettings
    from sandbox.x_api import ApiSettings

    try:
        if settings is not None:
            given = json.loads(settings)
            world, api = WorldSettings(**given["world"]), ApiSettings(**given["api"])
        else:
            world = WorldSettings(seed, rate, backlog_hours, deleted_share=deleted_share)
            api = ApiSettings(host, port, token, search_limit=search_limit, window_seconds=window_seconds)
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from None
    asyncio.run(_serve_x_api(world, api, quiet))


async def _serve_x_api(world: "WorldSettings", api: "ApiSettings", quiet: bool) -> None:
    from sandbox.x_api import XApi

    server = XApi(world, api)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        await server.start()
    except OSError as error:
        raise click.ClickException(f"cannot listen on {api.host}:{api.port}: {error.strerror}") from None
    click.echo(server.url)
    if not quiet:
        click.echo(
            f"""
A simulated X: seed {world.seed}, {world.tweets_per_second:g} posts a second, {world.backlog_hours:g} h of the past.
  token   {api.token}
  try     curl -H 'Authorization: Bearer {api.token}' '{server.url}/2/tweets/search/recent?query=python'
  faults  curl -d '[{{"kind": "server_503_html", "probability": 0.2}}]' {server.url}/_sandbox/faults
  stats   curl {server.url}/_sandbox/stats
In tweetlake.toml: [x] base_url = "{server.url}", and X_BEARER_TOKEN={api.token} in the environment. Ctrl-C ends it."""
        )
    try:
        await stopped.wait()
    finally:
        await server.stop()


@main.command()
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Keep the objects here for the next time; without it they go at the end.",
)
@click.option("--port", default=8333, show_default=True, help="Port to listen on; 0 is any free one.")
@click.option("--bucket", default="lake", show_default=True, help="Bucket to have.")
@click.option("--kind", type=click.Choice(["seaweedfs", "moto"]), default=None, help="Which server; default: the best.")
def s3(directory: Path | None, port: int, bucket: str, kind: str | None) -> None:
    """Run a real S3 server: SeaweedFS, or moto where its wheel is missing.

    \b
    Examples:
      python -m sandbox s3 --directory ./lake
      python -m sandbox s3 --kind moto --port 0
    """
    from sandbox.s3 import Kind, S3Failed, running_s3

    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    chosen: Kind | None = "moto" if kind == "moto" else "seaweedfs" if kind else None
    try:
        with running_s3(directory, kind=chosen, bucket=bucket, port=port) as server:
            click.echo(server.endpoint_url)
            variables = " ".join(f"{name}={value}" for name, value in server.environment().items())
            click.echo(
                f"""
{server.kind}, bucket {server.bucket}, objects {f"in {server.directory}" if directory else "gone at the end"}.
  environment  {variables}
In tweetlake.toml: [lake] bucket = "{server.bucket}", endpoint_url = "{server.endpoint_url}". Ctrl-C ends it."""
            )
            while not stopped.wait(1.0):
                pass
    except S3Failed as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-data"),
    show_default=True,
    help="Where everything is written; emptied at the start if an earlier demo made it.",
)
@click.option(
    "--hours",
    type=click.FloatRange(min=0.1, max=168),
    default=3.0,
    show_default=True,
    help="Hours of the past to collect; X keeps seven days.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0.1, max=100),
    default=3.0,
    show_default=True,
    help="Posts per second in the whole world.",
)
@click.option(
    "--live-seconds",
    type=click.FloatRange(min=0, max=3600),
    default=12.0,
    show_default=True,
    help="How long to go on collecting after the past.",
)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Which world.")
def demo(directory: Path, hours: float, rate: float, live_seconds: float, seed: int) -> None:
    """Collect from a simulated X into a local lake and look at the table.

    \b
    Examples:
      python -m sandbox demo
      python -m sandbox demo --hours 24 --rate 1
    """
    from rich.console import Console

    from sandbox.demo import DemoSettings, run

    try:
        settings = DemoSettings(directory, hours, rate, live_seconds, seed)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        code = run(settings, Console(highlight=False))
    except KeyboardInterrupt:
        click.echo("\nstopped; nothing is left running", err=True)
        code = 130
    raise SystemExit(code)


@main.command()
@click.option(
    "--minutes", type=click.FloatRange(min=0.1), default=None, help="How long under fire; 10 without --kills."
)
@click.option("--kills", type=click.IntRange(min=1), default=None, help="End after so many SIGKILLs instead.")
@click.option(
    "--kill-every",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="Seconds from a collector's first search to its kill, about; 0: none.",
)
@click.option(
    "--faults", type=click.Choice(["on", "off"]), default="on", show_default=True, help="Failures of X and S3."
)
@click.option(
    "--collectors",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Ingesters side by side, each with its own lake.",
)
@click.option(
    "--tweets-per-second",
    type=click.FloatRange(min=0.1),
    default=20.0,
    show_default=True,
    help="In X's whole world, of which the queries see a part.",
)
@click.option(
    "--overlap",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Seconds that each poll reads again; then X indexes some posts late.",
)
@click.option("--seed", default=1, show_default=True, help="Of the world, the faults and the moments of the kills.")
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Leave spools, objects and logs here.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Write the report here too, as Markdown.",
)
def soak(
    minutes: float | None,
    kills: int | None,
    kill_every: float,
    faults: str,
    collectors: int,
    tweets_per_second: float,
    overlap: float,
    seed: int,
    keep: Path | None,
    report: Path | None,
) -> None:
    """Kill real ingesters again and again while X and S3 fail, then show that nothing was lost.

    Exits 1 if anything was lost, is twice in curated, or is a gap that is not real; docs/soak.md tells how to read it.

    \b
    Examples:
      python -m sandbox soak
      python -m sandbox soak --kills 500 --collectors 2 --report docs/soak-report.md
      python -m sandbox soak --minutes 3 --kill-every 0 --faults off
    """
    from rich.console import Console

    from sandbox.soak import made
    from sandbox.soak import soak as run
    from sandbox.soak_report import Asked

    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise click.UsageError(f"--keep: {keep} is not empty")
    if kills is not None and not kill_every:
        raise click.UsageError("--kills needs a --kill-every above 0")
    asked = Asked(
        minutes=10.0 if minutes is None and kills is None else minutes,
        kills=kills,
        kill_every=kill_every,
        faults=faults == "on",
        collectors=collectors,
        seed=seed,
        overlap=overlap,
        tweets_per_second=tweets_per_second,
    )
    console = Console(highlight=False)
    try:
        figures = run(asked, console, keep=keep.resolve() if keep else None)
    except KeyboardInterrupt:
        click.echo("\nstopped; nothing is left running", err=True)
        raise SystemExit(130) from None
    if report is not None:
        report.write_text(figures.markdown(made()), "utf-8")
    figures.print(console)
    raise SystemExit(1 if figures.verdict else 0)


if __name__ == "__main__":
    main(prog_name="python -m sandbox")
