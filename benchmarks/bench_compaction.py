"""What compaction costs, against others on the same pages and against its bounds. Exits with 1 when one is missed.

    python -m benchmarks.bench_compaction              # 45 microbatches, three rounds, growth to 8x
    python -m benchmarks.bench_compaction --hour       # a full hour: 360 microbatches, 504,000 tweets; growth to 4 million
    python -m benchmarks.bench_compaction --parts compare,size

Every run is a process of its own, its modules compiled beforehand; rounds are interleaved, figures are medians, ratios are
made within a round. CPU is user + system of the process and its helpers, imports too; memory is the kernel's VmHWM. The
project reads from and commits to a real S3 server on this machine, whose own CPU is not counted; peers read and write
local files, each the form it reads best, which is to their favour. All must find the same tweets.

What is bound for an hour (memory) is judged with --hour only.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import compaction_data as data

PEERS = ("polars", "polars-avro", "duckdb", "pandas", "pandas, typed")
CPU_BOUNDS = (
    ("polars", "Polars on typed Avro", 1.1),
    ("polars-avro", "Polars on typed Avro, read by polars-avro", 1.1),
    ("duckdb", "DuckDB on lines of JSON", 0.5),
    ("pandas", "pandas on verbatim pages", 1 / 7),
    ("pandas, typed", "pandas on typed Avro", 1 / 7),
)
PARTS = ("compare", "floor", "size", "growth", "most")


@dataclass(frozen=True)
class Run:
    cpu: float
    wall: float
    rss_mb: float
    """Of the process itself."""
    helper_mb: float
    tweets: int
    likes: int | None
    spent: dict[str, float] = field(default_factory=dict)

    @property
    def all_mb(self) -> float:
        return self.rss_mb + self.helper_mb

    @property
    def largest_mb(self) -> float:
        return max(self.rss_mb, self.helper_mb)


@dataclass
class Bounds:
    """What has to hold, told as it is found."""

    missed: int = 0

    def judge(self, what: str, value: float, most: float, unit: str = "") -> None:
        holds = value <= most
        self.missed += not holds
        print(f"  {'holds ' if holds else 'MISSED'}  {what:<58} {value:10.2f}{unit} (bound {most:g}{unit})")


class Bench:
    """Raw on disk and in buckets, and the runs over them."""

    def __init__(self, server: Any, work: Path) -> None:
        self._server = server
        self._client = server.client()
        self._work = work

    def build(self, files: int, *, forms: bool = False) -> Path:
        """The microbatches of an hour, in a folder and in a bucket of its name."""
        folder = self._work / f"raw-{files}{'-forms' * forms}"
        if not folder.exists():
            print(f"making {files} microbatches up ...", file=sys.stderr)
            made = data.build(folder, files, len(os.sched_getaffinity(0)), forms)
            self._client.create_bucket(Bucket=folder.name)
            data.fill(self._client, folder.name, made)
        return folder

    def run(self, name: str, folder: Path) -> Run:
        """One contender; for the project from an empty `curated/`."""
        if name.startswith("tweetlake"):
            self._empty(folder.name, "curated/")
        environment = (
            os.environ
            | self._server.environment()
            | {
                "BENCH_ENDPOINT": self._server.endpoint_url,
                "BENCH_BUCKET": folder.name,
                "PYTHONDONTWRITEBYTECODE": "",  # compiling modules is no part of what is measured
                "PYTHONPYCACHEPREFIX": str(self._work / "pycache"),
            }
        )
        print(f"{name}, {folder.name} ...", file=sys.stderr)
        command = [sys.executable, "-m", "benchmarks.compaction_peers", name, str(folder)]
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        wall = time.perf_counter() - start
        found = json.loads(done.stdout.splitlines()[-1])
        likes = self._likes(folder.name) if name.startswith("tweetlake") else found["likes"]
        return Run(
            found["cpu"], wall, found["rss_mb"], found["helper_mb"], found["tweets"], likes, found.get("spent", {})
        )

    def delta(self, bucket: str, table: str) -> Any:
        from deltalake import DeltaTable

        options = self._server.environment() | {
            "AWS_ENDPOINT_URL": self._server.endpoint_url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
        }
        return DeltaTable(f"s3://{bucket}/curated/{table}", storage_options=options)

    def _likes(self, bucket: str) -> int:
        import pyarrow.compute as pc

        rows = self.delta(bucket, "tweets").to_pyarrow_table(columns=["like_count"])
        return int(pc.sum(rows["like_count"]).as_py())

    def _empty(self, bucket: str, prefix: str) -> None:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        for key in [entry["Key"] for page in pages for entry in page.get("Contents", [])]:
            self._client.delete_object(Bucket=bucket, Key=key)


def _median(runs: Sequence[Run], value: str) -> float:
    return statistics.median(getattr(run, value) for run in runs)


def _ratio(ours: Sequence[Run], theirs: Sequence[Run], value: str, their_value: str = "") -> float:
    pairs = zip(ours, theirs, strict=True)
    return statistics.median(getattr(one, value) / getattr(other, their_value or value) for one, other in pairs)


def _head(title: str) -> None:
    print(
        f"\n{title}\n{'':<28}{'CPU s':>8} {'wall s':>8} {'RSS MB':>8} {'helper':>8} {'tweets/CPU s':>13}   CPU from to"
    )


def _line(label: str, runs: Sequence[Run], rows: int) -> None:
    cpu = _median(runs, "cpu")
    figures = (
        f"{cpu:8.2f} {_median(runs, 'wall'):8.2f} {_median(runs, 'rss_mb'):8.0f} {_median(runs, 'helper_mb'):8.0f}"
    )
    spread = f"{min(run.cpu for run in runs):.2f} {max(run.cpu for run in runs):.2f}"
    print(f"{label:<28}{figures} {rows / cpu:13,.0f}   {spread}", flush=True)


def _load() -> str:
    return f"load {os.getloadavg()[0]:.1f}"


def compare(
    bench: Bench, bounds: Bounds, files: int, rounds: int, peers: Sequence[str], *, hour: bool, floor: bool
) -> None:
    names = ["tweetlake", "tweetlake, one process", *peers, *(["floor"] if floor else [])]
    warm = bench.build(1, forms=True)
    for name in (*names, "again"):
        bench.run(name, warm)
    folder = bench.build(files, forms=True)
    runs: dict[str, list[Run]] = {name: [] for name in (*names, "again")}
    for _ in range(rounds):
        for name in names:
            runs[name].append(bench.run(name, folder))
            if name == "tweetlake, one process":
                versions = bench.delta(folder.name, "tweets").version()
                runs["again"].append(bench.run("again", folder))
                assert bench.delta(folder.name, "tweets").version() == versions, "a re-run made a new version"
    told = {(name, run.tweets, run.likes) for name in names if name != "floor" for run in runs[name]}
    if len({(tweets, likes) for _, tweets, likes in told}) != 1:
        sys.exit(f"they do not agree: {sorted(told)}")
    rows = files * data.TWEETS_A_FILE
    tweets = runs["tweetlake"][0].tweets
    _head(f"{rows:,} tweets in {files} microbatches; {tweets:,} distinct, all agree; {rounds} rounds, {_load()}")
    for name in (*names, "again"):
        _line(name, runs[name], rows)
    ours, alone = runs["tweetlake"], runs["tweetlake, one process"]
    fastest = min(peers, key=lambda name: _median(runs[name], "wall"))
    print("\nbounds, two processes where it is not said otherwise:")
    for name, words, most in CPU_BOUNDS:
        if name in peers:
            bounds.judge(f"CPU, parts of {words}", _ratio(ours, runs[name], "cpu"), most)
            print(f"          with one process {_ratio(alone, runs[name], 'cpu'):.2f}")
    bounds.judge(f"wall, parts of {fastest}, the fastest here", _ratio(ours, runs[fastest], "wall"), 0.7)
    bounds.judge("a re-run with nothing new, CPU", _median(runs["again"], "cpu"), 2, " s")
    sides = (("one process", alone, "rss_mb"), ("sum of two", ours, "all_mb"))
    for name, (label, part, value) in itertools.product([name for name in peers if name.startswith("polars")], sides):
        ratio = _ratio(part, runs[name], value, "rss_mb")
        if hour:
            bounds.judge(f"peak RSS, {label}, parts of {name}", ratio, 0.15)
        else:
            print(f"          peak RSS, {label}, parts of {name}: {ratio:.2f} (judged with --hour)")
    if floor:
        _tell_floor(runs["floor"], alone)


def _tell_floor(floors: Sequence[Run], alone: Sequence[Run]) -> None:
    parts = {name: statistics.median(run.spent[name] for run in floors) for name in floors[0].spent}
    whole = _median(alone, "cpu")
    least = sum(parts[name] for name in ("decompress", "parse", "fold", "parquet"))
    print(
        f"\nphysical floor {least:.2f} s: {100 * least / whole:.0f} % of the {whole:.2f} s of one process; CPU s of each part:"
    )
    for name, spent in parts.items():
        print(f"  {name:<12}{spent:7.2f}  {100 * spent / whole:3.0f} %")
    rest = whole - sum(parts.values())
    print(
        f"  {'the rest':<12}{rest:7.2f}  {100 * rest / whole:3.0f} %   imports, S3, reading runs back, Delta, the log"
    )


def size(bench: Bench, bounds: Bounds, files: int) -> None:
    """Bytes in raw and on disk. Typed Avro of a few microbatches, as one writes it: a nested record a page, fastavro."""
    import io

    import fastavro

    from compaction_dags.compaction.raw_reader import read_microbatch

    folder = bench.build(files, forms=True)
    sampled = sorted((folder / "raw").glob("*.avro"))[:: max(files // 6, 1)]
    sealed = typed = together = 0
    for path in sampled:
        pages = [(data.moment(page.received_at_us), page.body) for page in read_microbatch(path, path.name).pages]
        records = list(data.typed_pages(pages))
        for interval in (1, 1 << 30):  # a page a block, as it comes; all in one, as our sealed files
            out = io.BytesIO()
            fastavro.writer(out, data.page_schema(), records, codec="zstandard", sync_interval=interval)
            typed, together = (typed + out.tell(), together) if interval == 1 else (typed, together + out.tell())
        sealed += path.stat().st_size
    a_tweet = len(sampled) * data.TWEETS_A_FILE
    print(f"\nraw, bytes a tweet, {len(sampled)} microbatches: sealed {sealed / a_tweet:.0f}, typed nested Avro "
          f"(zstandard) a page a block {typed / a_tweet:.0f}, in one block {together / a_tweet:.0f}")  # fmt: skip
    bounds.judge("sealed raw, parts of typed nested Avro", sealed / typed, 0.7)
    bench.run("tweetlake", folder)
    actions = bench.delta(folder.name, "tweets").get_add_actions(flatten=True)
    import pyarrow as pa

    files_of = pa.table(actions)
    rows, stored = sum(files_of["num_records"].to_pylist()), sum(files_of["size_bytes"].to_pylist())
    bounds.judge("tweets on disk, bytes a row", stored / rows, 150)


def growth(bench: Bench, bounds: Bounds, files: int, scales: Sequence[int], rounds: int) -> None:
    for name in ("tweetlake, one process", "tweetlake"):
        runs: dict[int, list[Run]] = {}
        for scale in scales:
            folder = bench.build(files * scale)
            runs[scale] = [bench.run(name, folder) for _ in range(rounds)]
        _head(f"growth, {name}, {_load()}")
        for scale in scales:
            _line(f"{scale}x", runs[scale], scale * files * data.TWEETS_A_FILE)
        first, last = scales[0], scales[-1]
        a_tweet = _median(runs[last], "cpu") / last / (_median(runs[first], "cpu") / first)
        grown = _median(runs[last], "largest_mb") / _median(runs[first], "largest_mb")
        bounds.judge(f"CPU a tweet at {last}x, parts of {first}x", a_tweet, 1.05)
        bounds.judge(f"largest process at {last}x, parts of {first}x", grown, 1.15)
        at_an_hour = min(scales, key=lambda scale: abs(scale * files - data.FILES_AN_HOUR))
        if at_an_hour * files == data.FILES_AN_HOUR:
            bounds.judge(
                "RSS of the largest process, 504,000 tweets", _median(runs[at_an_hour], "largest_mb"), 400, " MB"
            )


def most(bench: Bench, bounds: Bounds) -> None:
    files = 10 * data.FILES_AN_HOUR
    run = bench.run("tweetlake", bench.build(files))
    _head(f"the most, {_load()}")
    _line("two processes", [run], files * data.TWEETS_A_FILE)
    bounds.judge("peaks of both processes together, 5 million tweets", run.all_mb, 1_024, " MB")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_compaction", description=__doc__.splitlines()[0])
    parser.add_argument("--microbatches", type=int, default=45, help="of 1,400 tweets (default 45)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    parser.add_argument("--scales", default="1,8", help="growth, multiples of the microbatches (default 1,8)")
    parser.add_argument(
        "--hour", action="store_true", help="a full hour, and 5 million tweets: about an hour, 30 GB of disk"
    )
    parser.add_argument("--against", default=";".join(PEERS), help=f"of {';'.join(PEERS)}; default all")
    parser.add_argument("--parts", default="", help=f"of {','.join(PARTS)}; default all but most, with --hour all")
    chosen = parser.parse_args()
    files = data.FILES_AN_HOUR if chosen.hour else chosen.microbatches
    parts = chosen.parts.split(",") if chosen.parts else [part for part in PARTS if chosen.hour or part != "most"]
    from sandbox.s3 import running_s3

    bounds = Bounds()
    with tempfile.TemporaryDirectory(prefix="tweetlake-bench-") as work, running_s3() as server:
        bench = Bench(server, Path(work))
        print(f"S3: {server.kind}; {len(os.sched_getaffinity(0))} cores, Python {sys.version.split()[0]}, {_load()}")
        if "compare" in parts:
            compare(
                bench, bounds, files, chosen.rounds, chosen.against.split(";"), hour=chosen.hour, floor="floor" in parts
            )
        if "size" in parts:
            size(bench, bounds, files)
        if "growth" in parts:
            growth(bench, bounds, files, [int(scale) for scale in chosen.scales.split(",")], chosen.rounds)
        if "most" in parts:
            most(bench, bounds)
    print(f"\n{'every bound holds' if not bounds.missed else f'bounds missed: {bounds.missed}'}; {_load()} at the end")
    sys.exit(1 if bounds.missed else 0)


if __name__ == "__main__":
    main()
