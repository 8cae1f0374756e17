"""What compaction costs: this project's whole job against fastavro + json + pandas on the same raw microbatches.

    python -m benchmarks.bench_compaction                       # 50,000 tweets, three rounds, growth to 4x
    python -m benchmarks.bench_compaction --tweets 500000 --rounds 1 --scales 1

Every run is a process of its own, its modules compiled beforehand; rounds are interleaved, figures are medians. CPU is
user + system of the whole process, imports too; RSS is its peak (VmHWM). The project reads from and commits to a real S3
server on this machine, whose own CPU is not counted; the peer reads local files and writes local Parquet, which is to its
favour. Both must find the same tweets.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOUR = "2026-11-20T12"
PAGES_A_FILE, TWEETS_A_PAGE = 14, 100


@dataclass(frozen=True)
class Run:
    """One run of one contender."""

    cpu: float
    wall: float
    rss_mb: float
    tweets: int
    likes: int
    """Sum over the distinct tweets: both must have kept the same version of each."""


# --- the contenders, each in a child process ---


def tweetlake(_folder: Path) -> dict[str, int]:
    """The whole job: list, read, verify, decode, deduplicate, merge, check, commit; all tables."""
    from compaction_dags.compaction.job import compact_hour

    summary = compact_hour(_settings(), HOUR).as_dict()
    return {"rows": summary["rows_in"], "tweets": summary["tweets_written"], "likes": -1}


def decode_only(folder: Path) -> dict[str, int]:
    """Read, verify and decode, and throw the rows away."""
    import pyarrow.compute as pc

    from compaction_dags.compaction.decode import decode_pages, page_batches
    from compaction_dags.compaction.raw_reader import read_microbatch

    pages = (page for path in sorted(folder.glob("*.avro")) for page in read_microbatch(path, path.name).pages)
    rows = 0
    for batch in page_batches(pages):
        tables = decode_pages(batch).tables
        rows += tables["tweets"].num_rows
        pc.sum(tables["tweets"]["like_count"])
    return {"rows": rows, "tweets": -1, "likes": -1}


def pandas(folder: Path) -> dict[str, int]:
    """fastavro + json + json_normalize + drop_duplicates + to_parquet; the same six tables, kept in memory."""
    import fastavro
    import pandas as pd

    objects: dict[str, list[dict[str, Any]]] = {}
    rows = 0
    for path in sorted(folder.glob("*.avro")):
        with path.open("rb") as file:
            for record in fastavro.reader(file):
                answer = json.loads(record["body"])
                parts = {"data": answer.get("data", [])} | answer.get("includes", {})
                rows += len(parts["data"])
                for name, found in parts.items():
                    objects.setdefault(name, []).extend(each | {"_at": record["received_at"]} for each in found)
    with tempfile.TemporaryDirectory() as out:
        for name, found in objects.items():
            frame = pd.json_normalize(found).sort_values("_at", kind="stable")
            frame = frame.drop_duplicates("media_key" if name == "media" else "id", keep="last")
            if name == "data":
                tweets, likes = len(frame), int(frame["public_metrics.like_count"].sum())
            frame.to_parquet(f"{out}/{name}.parquet", compression="zstd")
    return {"rows": rows, "tweets": tweets, "likes": likes}


CONTENDERS: dict[str, Callable[[Path], dict[str, int]]] = {
    "tweetlake": tweetlake,
    "pandas": pandas,
    "decode only": decode_only,
}


def _settings() -> Any:
    from schemas.settings import Lake, Query, Settings

    lake = Lake(bucket="lake", endpoint_url=os.environ["BENCH_ENDPOINT"], region=os.environ["AWS_REGION"])
    return Settings(lake=lake, query=[Query(name="lake", rule="lake")])


def _child(name: str, folder: Path) -> None:
    found = CONTENDERS[name](folder)
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    found["cpu_ms"] = int(1_000 * sum(each.ru_utime + each.ru_stime for each in usage))
    found["rss_kb"] = int(peak.split()[1])
    print(json.dumps(found))


# --- the measuring side ---


class Bench:
    """The raw microbatches of each scale, on disk and in the bucket, and the runs over them."""

    def __init__(self, server: Any, work: Path) -> None:
        self._server = server
        self._client = server.client()
        self._work = work

    def build(self, tweets: int) -> tuple[Path, list[tuple[str, Path]]]:
        """Write the microbatches of one raw hour; returns their folder, and their keys with their files."""
        from tests.compaction.pages import World, microbatches

        folder = self._work / str(tweets)
        folder.mkdir()
        files = max(1, round(tweets / PAGES_A_FILE / TWEETS_A_PAGE))
        made = []
        for key, data in microbatches(World(), files, PAGES_A_FILE, tweets=TWEETS_A_PAGE):
            path = folder / key.rsplit("/", 1)[-1]
            path.write_bytes(data)
            made.append((key, path))
        return folder, made

    def fill(self, made: Iterable[tuple[str, Path]]) -> None:
        """Make the bucket hold these microbatches as the ingester puts them, and nothing else."""
        import hashlib

        self._empty("")
        for key, path in made:
            data = path.read_bytes()
            metadata = {"sha256": hashlib.sha256(data).hexdigest(), "records": str(PAGES_A_FILE)}
            self._client.put_object(Bucket=self._server.bucket, Key=key, Body=data, Metadata=metadata)

    def run(self, name: str, folder: Path) -> Run:
        """One contender on one folder, from an empty `curated/`."""
        self._empty("curated/")
        environment = (
            os.environ
            | self._server.environment()
            | {
                "BENCH_ENDPOINT": self._server.endpoint_url,
                "PYTHONDONTWRITEBYTECODE": "",  # compiling modules is no part of what is measured
                "PYTHONPYCACHEPREFIX": str(self._work / "pycache"),
            }
        )
        command = [sys.executable, "-m", "benchmarks.bench_compaction", "--child", name, str(folder)]
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        wall = time.perf_counter() - start
        found = json.loads(done.stdout.splitlines()[-1])
        likes = self._likes() if name == "tweetlake" else found["likes"]
        return Run(found["cpu_ms"] / 1_000, wall, found["rss_kb"] / 1_024, found["tweets"], likes)

    def _likes(self) -> int:
        import pyarrow.compute as pc
        from deltalake import DeltaTable

        options = self._server.environment() | {
            "AWS_ENDPOINT_URL": self._server.endpoint_url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
        }
        table = DeltaTable(f"s3://{self._server.bucket}/curated/tweets", storage_options=options)
        return int(pc.sum(table.to_pyarrow_table(columns=["like_count"])["like_count"]).as_py())

    def _empty(self, prefix: str) -> None:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._server.bucket, Prefix=prefix)
        for key in [entry["Key"] for page in pages for entry in page.get("Contents", [])]:
            self._client.delete_object(Bucket=self._server.bucket, Key=key)


def _median(runs: list[Run], value: str) -> float:
    return statistics.median(getattr(run, value) for run in runs)


def _line(label: str, runs: list[Run], rows: int) -> None:
    cpu = _median(runs, "cpu")
    figures = f"{cpu:9.2f} {_median(runs, 'wall'):9.2f} {_median(runs, 'rss_mb'):9.0f} {rows / cpu:14,.0f}"
    spread = f"{min(run.cpu for run in runs):.2f}-{max(run.cpu for run in runs):.2f}"
    print(f"{label:<34}{figures}   {spread}")


def _head(title: str) -> None:
    print(f"\n{title}\n{'':<34}{'CPU s':>9} {'wall s':>9} {'RSS MB':>9} {'tweets/CPU s':>14}   CPU spread")


def _compare(bench: Bench, tweets: int, rounds: int) -> dict[str, list[Run]]:
    small, few = bench.build(1)
    bench.fill(few)
    for name in CONTENDERS:
        print(f"warming up: {name}", file=sys.stderr)
        bench.run(name, small)
    folder, made = bench.build(tweets)
    bench.fill(made)
    rows = len(made) * PAGES_A_FILE * TWEETS_A_PAGE
    size = sum(path.stat().st_size for _, path in made)
    runs: dict[str, list[Run]] = {name: [] for name in CONTENDERS}
    for number in range(rounds):
        for name in CONTENDERS:
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
            runs[name].append(bench.run(name, folder))
    mine, theirs = runs["tweetlake"][0], runs["pandas"][0]
    if (mine.tweets, mine.likes) != (theirs.tweets, theirs.likes):
        sys.exit(f"they do not agree: {mine.tweets} tweets, {mine.likes} likes; {theirs.tweets}, {theirs.likes}")
    _head(
        f"{rows:,} tweets in {len(made)} microbatches ({size / 1e6:.1f} MB); {mine.tweets:,} distinct, both agree; "
        f"{rounds} rounds"
    )
    _line("tweetlake, whole job, S3 to Delta", runs["tweetlake"], rows)
    _line("fastavro + json_normalize, local", runs["pandas"], rows)
    _line("tweetlake, read + decode only", runs["decode only"], rows)
    print("\ntweetlake as a part of the peer, round by round, median:")
    for label, value in (("CPU", "cpu"), ("wall", "wall"), ("peak RSS", "rss_mb")):
        pairs = zip(runs["tweetlake"], runs["pandas"], strict=True)
        ratios = [getattr(one, value) / getattr(other, value) for one, other in pairs]
        print(f"  {label:<9} {statistics.median(ratios):.2f}   (1/{1 / statistics.median(ratios):.1f})")
    return runs


def _growth(bench: Bench, tweets: int, scales: list[int], rounds: int) -> None:
    runs: dict[int, list[Run]] = {}
    rows: dict[int, int] = {}
    for scale in scales:
        folder, made = bench.build(tweets * scale + scale)  # a folder of its own, also for the scale 1
        bench.fill(made)
        rows[scale] = len(made) * PAGES_A_FILE * TWEETS_A_PAGE
        for number in range(rounds):
            print(f"{scale}x, round {number + 1} of {rounds}", file=sys.stderr)
            runs.setdefault(scale, []).append(bench.run("tweetlake", folder))
    _head("growth of the whole job")
    for scale in scales:
        _line(f"{scale}x", runs[scale], rows[scale])
    first, last = scales[0], scales[-1]
    per_tweet = [_median(runs[scale], "cpu") / rows[scale] for scale in (first, last)]
    print(f"\nfrom {first}x to {last}x: CPU per tweet {per_tweet[1] / per_tweet[0]:.2f}x, ", end="")
    print(f"peak RSS {_median(runs[last], 'rss_mb') / _median(runs[first], 'rss_mb'):.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_compaction", description=__doc__.splitlines()[0])
    parser.add_argument("--tweets", type=int, default=50_000, help="tweets of the comparison (default 50,000)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    parser.add_argument("--scales", default="1,2,4", help="growth of the job, multiples of --tweets; one: none")
    parser.add_argument("--child", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        _child(arguments.child[0], Path(arguments.child[1]))
        return
    from sandbox.s3 import running_s3

    scales = [int(scale) for scale in arguments.scales.split(",")]
    with tempfile.TemporaryDirectory(prefix="tweetlake-bench-") as work, running_s3() as server:
        bench = Bench(server, Path(work))
        print(f"S3: {server.kind}; {os.cpu_count()} cores, Python {sys.version.split()[0]}")
        _compare(bench, arguments.tweets, arguments.rounds)
        if len(scales) > 1:
            _growth(bench, arguments.tweets, scales, arguments.rounds)


if __name__ == "__main__":
    main()
