"""The ingest benchmark: tweets per CPU-second from a gzip'd HTTP answer to a durable spool, side by side with others.

Server and client are processes of their own, each on its core. Clients take turns within a round, so that whatever else
the machine does hits all of them. What each client is, and what it leaves out, stands in `benchmarks/README.md`.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from benchmarks.ingest_clients import CLIENTS

ROOT = Path(__file__).resolve().parents[1]
BASE = "tweetlake"
"""The client that the ratios are against, and that has to keep the bounds."""
UNREAD = "floor"
"""The client that keeps nothing, so has nothing to be held against the others."""
MOST_PAGES = 1_000
"""All pages lie within the hour that a new query starts back."""
PEER = "twarc"
"""What people use today."""
LEAST_TWEETS, LEAST_RATIO = 28_000, 5.0
"""Bounds: tweets per CPU-second, and how many times those of the peer."""
LONGEST_RUN = 600
"""Seconds until a client that does not end is given up."""

Results = dict[tuple[str, int], list[dict[str, Any]]]


@click.command()
@click.option("--pages", default="100,200,400", show_default=True, help="Pages of 100 tweets, one run for each size.")
@click.option("--rounds", default=3, type=click.IntRange(min=1), show_default=True, help="Medians are over these.")
@click.option(
    "--warm-up",
    default=20,
    type=click.IntRange(1, 100),
    show_default=True,
    help="Pages that do not count, at the start of each run.",
)
@click.option("--client", "clients", multiple=True, type=click.Choice(list(CLIENTS)), help="Only these; default: all.")
@click.option("--hard", is_flag=True, help="Texts and addresses of random letters: what compresses worse than X's can.")
@click.option("--directory", type=click.Path(path_type=Path, exists=True), help="Where to write. Default: $TMPDIR.")
def main(pages: str, rounds: int, warm_up: int, clients: tuple[str, ...], hard: bool, directory: Path | None) -> None:
    """Measure, and print tables as Markdown.

    \b
    Examples:
      make bench-ingest
      make bench-ingest ARGS="--rounds 5 --client tweetlake"
    """
    sizes = _sizes(pages)
    names = list(clients or CLIENTS)
    server_core, client_core = _cores()
    click.echo(f"making {warm_up + sizes[-1] + 1} pages ...", err=True)
    with tempfile.TemporaryDirectory(prefix="bench-ingest-", dir=directory) as scratch:
        with _server(warm_up + sizes[-1] + 1, server_core, hard) as facts:
            results: Results = {}
            for turn in range(rounds):
                for size in sizes:
                    for name in _in_turn(names, turn):
                        click.echo(f"round {turn + 1} of {rounds}: {name}, {size} pages", err=True)
                        found = _run(name, facts["url"], Path(scratch), warm_up, size, client_core)
                        results.setdefault((name, size), []).append(found)
        click.echo(_machine(Path(scratch), client_core, server_core))
    _check_same_tweets(results, sizes)
    click.echo(
        f"\nA page: 100 tweets, {facts['json_bytes'] / 1000:.0f} kB of JSON, {facts['gzip_bytes'] / 1000:.0f} kB gzip'd. "
        f"Medians of {rounds} interleaved rounds (lowest to highest).\n"
    )
    for size in sizes:
        click.echo(_table(results, names, size))
    click.echo(_growth(results, names, sizes))
    sys.exit(0 if _holds(results, sizes[-1]) else 1)


def _holds(results: Results, size: int) -> bool:
    """Print what the bounds are held against, at the largest size; False when one is missed."""
    found = []
    if (BASE, size) in results:
        found.append((f"{BASE}, tweets per CPU-second", size * 100 / _median(results, BASE, size, "cpu"), LEAST_TWEETS))
    if (BASE, size) in results and (PEER, size) in results:
        rounds = zip(results[BASE, size], results[PEER, size], strict=True)
        ratios = [theirs["cpu"] / ours["cpu"] for ours, theirs in rounds]
        spread = f"lowest {min(ratios):.1f}, highest {max(ratios):.1f}"
        found.append((f"times those of {PEER} in the same round ({spread})", statistics.median(ratios), LEAST_RATIO))
    if found:
        click.echo(f"\n| at {size} pages | median | at least | verdict |\n|---|---:|---:|---|")
    for what, figure, bound in found:
        click.echo(f"| {what} | {figure:,.1f} | {bound:,.0f} | {'holds' if figure >= bound else '**missed**'} |")
    return all(figure >= bound for _, figure, bound in found)


def _sizes(pages: str) -> list[int]:
    try:
        sizes = sorted({int(size) for size in pages.split(",")})
    except ValueError as error:
        raise click.BadParameter("numbers with commas between them", param_hint="--pages") from error
    if not 1 <= sizes[0] <= sizes[-1] <= MOST_PAGES:
        raise click.BadParameter(f"from 1 to {MOST_PAGES}", param_hint="--pages")
    return sizes


def _in_turn(names: list[str], turn: int) -> list[str]:
    """Another one begins in every round."""
    shift = turn % len(names)
    return names[shift:] + names[:shift]


def _cores() -> tuple[int, int]:
    """The server's core and the client's. With one core they share it: CPU still counts apart, wall does not."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        click.echo("only one core: server and client share it, so wall times say little", err=True)
    return cores[-1], cores[0]


@contextmanager
def _server(pages: int, core: int, hard: bool) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-m", "benchmarks.ingest_server", "--pages", str(pages), "--core", str(core)]
    command += ["--hard"] if hard else []
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise click.ClickException("the server ended before it listened")
        yield json.loads(line)
        # Leaving closes its standard input, which ends it.


def _run(name: str, url: str, scratch: Path, warm_up: int, pages: int, core: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        command = [sys.executable, "-m", "benchmarks.ingest_clients", name, "--url", url, "--directory", directory]
        command += ["--warm-up", str(warm_up), "--pages", str(pages), "--core", str(core)]
        log = Path(directory) / "log"
        with log.open("wb") as stderr:
            done = subprocess.run(
                command,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                check=False,
                timeout=LONGEST_RUN,
            )
        if done.returncode != 0:
            raise click.ClickException(f"{name} failed:\n{log.read_text()[-3000:]}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def _check_same_tweets(results: Results, sizes: list[int]) -> None:
    """Every client must have kept the same tweets, all of them."""
    for size in sizes:
        kept = [(name, run) for (name, of), runs in results.items() if of == size and name != UNREAD for run in runs]
        if any(run["tweets"] != size * 100 for _, run in kept) or len({run["ids"] for _, run in kept}) > 1:
            counts = ", ".join(f"{name} {run['tweets']} ({run['ids'][:8]})" for name, run in kept)
            raise click.ClickException(f"the clients did not keep the same {size * 100} tweets: {counts}")


def _table(results: Results, names: list[str], size: int) -> str:
    rows = [
        f"| {size} pages | tweets per CPU-second | times | CPU ms a page | wall ms a page | peak RSS MB | bytes a tweet |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    base = _median(results, BASE, size, "cpu") if (BASE, size) in results else None
    for name in names:
        cpu, wall = _median(results, name, size, "cpu"), _median(results, name, size, "wall")
        speeds = [size * 100 / run["cpu"] for run in results[name, size]]
        written = results[name, size][0]["bytes_written"]
        rows.append(
            f"| {name} | **{size * 100 / cpu:,.0f}** ({min(speeds):,.0f} to {max(speeds):,.0f}) "
            f"| {base / cpu if base else 1:.2f} | {cpu / size * 1000:.2f} | {wall / size * 1000:.2f} "
            f"| {_median(results, name, size, 'peak_rss') / 1e6:.0f} | {f'{written / size / 100:,.0f}' if written else ''} |"
        )
        if results[name, size][0]["sealed_cpu"] is not None:
            cpu = _median(results, name, size, "sealed_cpu")
            sealed = results[name, size][0]["bytes_sealed"]
            rows.append(
                f"| {name}, sealed too | {size * 100 / cpu:,.0f} | {base / cpu if base else 1:.2f} "
                f"| {cpu / size * 1000:.2f} | | | {sealed / size / 100:,.0f} |"
            )
    return "\n".join([*rows, ""])


def _growth(results: Results, names: list[str], sizes: list[int]) -> str:
    """CPU per page by the number of pages: a flat row means that cost grows with the pages and with nothing else."""
    rows = [
        "| CPU ms a page at | " + " | ".join(f"{size} pages" for size in sizes) + " |",
        "|---|" + "---:|" * len(sizes),
    ]
    for name in names:
        costs = [_median(results, name, size, "cpu") / size * 1000 for size in sizes]
        rows.append(f"| {name} | " + " | ".join(f"{cost:.2f}" for cost in costs) + " |")
    return "\n".join(rows)


def _median(results: Results, name: str, size: int, figure: str) -> float:
    found: list[float] = [run[figure] for run in results[name, size]]
    return statistics.median(found)


def _machine(scratch: Path, client_core: int, server_core: int) -> str:
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), platform.machine())
    disk = subprocess.run(["stat", "-f", "-c", "%T", scratch], capture_output=True, text=True, check=False)
    libraries = ("aiohttp", "fastavro", "isal", "msgspec", "tweepy", "twarc")
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {model}, {os.cpu_count()} cores (client on {client_core}, server on "
        f"{server_core}), load {os.getloadavg()[0]:.1f}, Linux {platform.release()}, {disk.stdout.strip() or 'unknown'} "
        f"disk, Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in libraries) + "."
    )


if __name__ == "__main__":
    main()
