"""What a month costs by the number of posts, X's part beside AWS's: `python -m deploy.costs` prints the table of docs/deploy.md.

List prices in US dollars of November 2026, region us-east-1, without taxes and free tiers. They change: look at X's and AWS's
own pages before you rely on them.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ingester.orders import LOOK_EVERY_SECONDS
from schemas.settings import Lake, Price, Spool

VOLUMES = (10_000, 100_000, 1_000_000)
"""Posts a month, as docs/deploy.md shows them."""
MACHINE_USD_PER_HOUR = {
    "t4g.small": 0.0168, "t4g.medium": 0.0336, "t4g.large": 0.0672, "t4g.xlarge": 0.1344,
    "t3.small": 0.0208, "t3.medium": 0.0416, "t3.large": 0.0832, "t3.xlarge": 0.1664,
}  # fmt: skip
IPV4_USD_PER_HOUR = 0.005
DISK_USD_PER_GIB = 0.08
"""EBS gp3."""
STORED_USD_PER_GB = 0.023
"""S3 Standard."""
WRITE_USD, READ_USD = 0.005 / 1_000, 0.0004 / 1_000
"""S3: one PUT or LIST; one GET or HEAD."""
SECRET_USD = 0.40
ALARMS_USD = 2 * 0.10

ROOT_GIB, DATA_GIB = 16, 10
"""The disks of deploy/tweetlake.yaml."""
HOURS = 730
"""Of a month."""
STORED_MONTHS = 12
BYTES_PER_POST = 1_000
"""Raw and tables together, with room: benchmarks/README.md has 216 bytes of raw and 116 of a row in `tweets`; users, places
and the other tables come on top, and the many small files of a quiet collection."""
WRITES_PER_COMPACTION, READS_PER_COMPACTION = 100, 600
"""Of an hourly run over an hour of 60 files: 58 and 400 were counted for posts without users, places and media."""


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that is paid for."""

    what: str
    usd: float


def month(posts: int, machine: str = "t4g.small") -> list[Line]:
    """What a month costs in which so many posts are read, each once."""
    return [
        Line("X: posts", posts * Price().post_usd),
        Line("X: the daily audit of one query", HOURS / 24 * Price().counts_request_usd),
        Line(f"machine, {machine}", HOURS * MACHINE_USD_PER_HOUR[machine]),
        Line("its public IPv4 address", HOURS * IPV4_USD_PER_HOUR),
        Line(f"its disks, {ROOT_GIB} + {DATA_GIB} GiB", (ROOT_GIB + DATA_GIB) * DISK_USD_PER_GIB),
        Line("S3: requests", _requests_usd()),
        Line(
            f"S3: what {STORED_MONTHS} such months leave",
            posts * STORED_MONTHS * BYTES_PER_POST / 1e9 * STORED_USD_PER_GB,
        ),
        Line("secret and alarms", SECRET_USD + ALARMS_USD),
    ]


def _requests_usd() -> float:
    """They go by the clock, not by the posts: sealed files, the lease, looks for orders, compactions."""
    seconds = HOURS * 3_600
    writes = (
        seconds / Spool().seal_after_seconds + seconds / Lake(bucket="any").lease_seconds + seconds / LOOK_EVERY_SECONDS
    )
    return (writes + HOURS * WRITES_PER_COMPACTION) * WRITE_USD + HOURS * READS_PER_COMPACTION * READ_USD


def table(volumes: Iterable[int] = VOLUMES, machine: str = "t4g.small") -> str:
    """The same for several volumes, as Markdown."""
    months = {posts: month(posts, machine) for posts in volumes}
    rows = [
        _row("USD a month", [f"{posts:,} posts" for posts in months]),
        "|---|" + "---:|" * len(months),
        *(_row(lines[0].what, [_usd(line.usd) for line in lines]) for lines in zip(*months.values(), strict=True)),
        _row("**together**", [f"**{_usd(sum(line.usd for line in lines))}**" for lines in months.values()]),
    ]
    return "\n".join(rows)


def _row(first: str, others: Iterable[str]) -> str:
    return "| " + " | ".join([first, *others]) + " |"


def _usd(amount: float) -> str:
    return f"{amount:,.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.costs",
        description="What a month costs: X's posts, the machine, S3. By list prices of November 2026 in us-east-1: look them up.",
        epilog="example: python -m deploy.costs 50000 --machine t4g.medium",
    )
    parser.add_argument("posts", type=_count, nargs="*", default=VOLUMES, help="posts a month, a column each")
    parser.add_argument("--machine", choices=MACHINE_USD_PER_HOUR, default="t4g.small", help="default: %(default)s")
    given = parser.parse_args(arguments)
    print(table(given.posts, given.machine))


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of posts")
    return int(text)


if __name__ == "__main__":
    main()
