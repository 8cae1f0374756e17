"""What is compared when an hour is compacted: this project's job, what others do with the same pages, and the least work.

Each is a function of the folder that `compaction_data` filled, run in a process of its own. It returns what it read and
kept: `rows`, distinct `tweets`, and the sum of their `likes`, by which all must agree.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.compaction_data import HOUR

Found = dict[str, Any]
TABLES = ("tweets", "referenced_tweets", "users", "media", "places", "polls")


def _settings(processes: int) -> Any:
    from schemas.settings import Compaction, Lake, Query, Settings

    lake = Lake(bucket=os.environ["BENCH_BUCKET"], endpoint_url=os.environ["BENCH_ENDPOINT"])
    return Settings(lake=lake, query=[Query(name="lake", rule="lake")], compaction=Compaction(processes=processes))


def _tweetlake(processes: int) -> Found:
    """The whole job: list, read, verify, decode, fold, merge, check, commit; all tables; S3 to S3."""
    from compaction_dags.compaction.job import compact_hour
    from compaction_dags.compaction.memory import leave_pandas_out

    leave_pandas_out()  # as the command does
    done = compact_hour(_settings(processes), HOUR)
    return {"rows": done.rows_in, "tweets": done.tweets_written, "likes": None}


def tweetlake(_folder: Path) -> Found:
    return _tweetlake(2)


def tweetlake_alone(_folder: Path) -> Found:
    return _tweetlake(1)


def again(_folder: Path) -> Found:
    """What the command does when nothing is new: find that out."""
    from compaction_dags.compaction import job
    from compaction_dags.compaction.memory import leave_pandas_out

    leave_pandas_out()
    settings = _settings(0)
    done = job.compact(settings, job.plan_hours(settings, include_open=True, full=True))
    return {"rows": done.rows_in, "tweets": done.tweets_written, "likes": None}


def polars(folder: Path) -> Found:
    """Typed Avro, one record an object, uncompressed: the kind its own reader takes least for."""
    import polars as pl

    return _folded_by_polars(folder, lambda paths: pl.concat([pl.read_avro(path) for path in paths]))


def polars_avro(folder: Path) -> Found:
    """The same files, all read at once by the package polars-avro: faster, for twice the memory."""
    from polars_avro import read_avro

    return _folded_by_polars(folder, read_avro)


def _folded_by_polars(folder: Path, read: Callable[[list[Path]], Any]) -> Found:
    with tempfile.TemporaryDirectory() as out:
        for table in TABLES:
            frame = read(sorted((folder / "typed" / table).glob("*.avro")))
            key = "media_key" if table == "media" else "id"
            rows = frame.height
            frame = frame.sort("at").unique(key, keep="last", maintain_order=True).sort(key)
            frame.write_parquet(f"{out}/{table}.parquet", compression="zstd", compression_level=3)
            if table == "tweets":
                likes = frame["public_metrics"].struct.field("like_count").sum()
                found = {"rows": rows, "tweets": frame.height, "likes": likes}
    return found


def duckdb(folder: Path) -> Found:
    """Pages as lines of JSON, read with their types given."""
    import duckdb as engine

    from benchmarks.compaction_data import shape_type
    from compaction_dags.compaction.decode.model import INCLUDES

    # One kind of name is read; the other is empty here, and to read it would be to DuckDB's cost.
    parts = {"tweets": "page.data"} | {
        table: f"page.includes.{key}" for key, table in reversed(INCLUDES.items()) if key != "posts"
    }
    included = ", ".join(f'"{key}" {_sql(shape_type(table))}[]' for key, table in INCLUDES.items() if key != "posts")
    page = f"STRUCT(data {_sql(shape_type('tweets'))}[], includes STRUCT({included}))"
    with tempfile.TemporaryDirectory() as out:
        line = engine.connect(config={"threads": len(os.sched_getaffinity(0)), "temp_directory": out})
        line.execute(
            f"CREATE TABLE pages AS SELECT moment, page FROM read_json('{folder}/lines/*.ndjson', "
            f"format = 'newline_delimited', columns = {{'moment': 'BIGINT', 'page': '{page}'}}, maximum_object_size = 100000000)"
        )
        for table, path in parts.items():
            key = "media_key" if table == "media" else "id"
            line.execute(f"CREATE TABLE {table}_all AS SELECT moment, unnest({path}) AS sent FROM pages")
            line.execute(
                f"CREATE TABLE {table} AS SELECT arg_max(sent, moment) AS sent FROM {table}_all GROUP BY sent.{key}"
            )
            line.execute(
                f"COPY (SELECT sent.* FROM {table} ORDER BY sent.{key}) TO '{out}/{table}.parquet' "
                "(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 3)"
            )
        ((rows,),) = line.sql("SELECT count(*) FROM tweets_all").fetchall()
        ((tweets, likes),) = line.sql("SELECT count(*), sum(sent.public_metrics.like_count) FROM tweets").fetchall()
    return {"rows": rows, "tweets": tweets, "likes": int(likes)}


def _sql(type_: Any) -> str:
    import pyarrow as pa

    if pa.types.is_struct(type_):
        return "STRUCT(" + ", ".join(f'"{each.name}" {_sql(each.type)}' for each in type_) + ")"
    if pa.types.is_list(type_):
        return _sql(type_.value_type) + "[]"
    if pa.types.is_timestamp(type_):
        return "TIMESTAMP"
    return {"int64": "BIGINT", "int32": "BIGINT", "bool": "BOOLEAN", "double": "DOUBLE", "string": "VARCHAR"}[
        str(type_)
    ]


def _normalized(objects: Iterator[tuple[str, int, dict[str, Any]]]) -> Found:
    import pandas as pd

    by_table: dict[str, list[dict[str, Any]]] = {}
    for table, at, sent in objects:
        by_table.setdefault(table, []).append(sent | {"_at": at})
    with tempfile.TemporaryDirectory() as out:
        for table in TABLES:
            frame = pd.json_normalize(by_table.pop(table)).sort_values("_at", kind="stable")
            rows = len(frame)
            frame = frame.drop_duplicates("media_key" if table == "media" else "id", keep="last")
            if table == "tweets":
                likes = int(frame["public_metrics.like_count"].sum())
                found = {"rows": rows, "tweets": len(frame), "likes": likes}
            frame.to_parquet(f"{out}/{table}.parquet", compression="zstd")
    return found


def pandas(folder: Path) -> Found:
    """fastavro + json_normalize on the same verbatim pages, by json.loads: less to read for it than typed Avro."""
    import fastavro

    from compaction_dags.compaction.decode.model import INCLUDES

    def objects() -> Iterator[tuple[str, int, dict[str, Any]]]:
        for path in sorted((folder / "raw").glob("*.avro")):
            with path.open("rb") as file:
                for record in fastavro.reader(file):
                    answer = json.loads(record["body"])
                    at = record["received_at"].timestamp()
                    for key, found in ({"data": answer["data"]} | answer["includes"]).items():
                        for sent in found:
                            yield INCLUDES.get(key, "tweets"), at, sent

    return _normalized(objects())


def pandas_typed(folder: Path) -> Found:
    """fastavro + json_normalize on typed Avro."""
    import fastavro

    def objects() -> Iterator[tuple[str, int, dict[str, Any]]]:
        for table in TABLES:
            for path in sorted((folder / "typed" / table).glob("*.avro")):
                with path.open("rb") as file:
                    for record in fastavro.reader(file):
                        assert isinstance(record, dict)
                        yield table, record["at"], record

    return _normalized(objects())


def floor(folder: Path) -> Found:
    """The least that has to be done, each part by itself on data in memory: decompress, parse, fold, write Parquet.

    Beside it what else the job does with every page and row: check hashes, make columns of what was parsed, spill.
    """
    import hashlib
    import io

    import fastavro

    from compaction_dags.compaction.decode import Asked, fast, page_batches
    from compaction_dags.compaction.memory import keep_for_reuse, leave_pandas_out
    from compaction_dags.compaction.merge import latest_rows, merged_tweets
    from compaction_dags.compaction.parquet import write_file
    from compaction_dags.compaction.raw_reader import read_microbatch
    from compaction_dags.compaction.rows import file_schema, united
    from compaction_dags.compaction.spill import Spill
    from schemas.curated import DECODED, KEYS

    keep_for_reuse()
    leave_pandas_out()
    spent: dict[str, float] = {}

    def timed(part: str, do: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = do()
        spent[part] = spent.get(part, 0.0) + time.process_time() - began
        return result

    def parse(data: bytes, objects: int, schema: Any) -> Any:
        return timed("parse", lambda: fast.parse_arro3(data, objects, schema))

    asked = Asked()
    tables: dict[str, list[Any]] = {name: [] for name in DECODED}
    with tempfile.TemporaryDirectory() as work:
        spill = Spill(Path(work))
        for path in sorted((folder / "raw").glob("*.avro")):
            data = path.read_bytes()
            bodies = [
                record["body"] for record in timed("decompress", lambda d=data: list(fastavro.reader(io.BytesIO(d))))
            ]
            timed("hashes", lambda d=data, b=bodies: [hashlib.sha256(each).digest() for each in (d, *b)])
            for batch in page_batches(read_microbatch(data, path.name).pages, 1 << 30):
                rows = timed("columns", lambda b=batch: fast.decode(b, parse, asked))
                for name in DECODED:
                    kept = rows[name].take(list(range(rows[name].num_rows)))  # or what was parsed would stay in memory
                    tables[name].append(kept)
                    timed("spill", lambda n=name, k=kept: spill.add(n, k))
        for name in DECODED:
            timed("spill", lambda n=name: spill.runs(n))
            table = united(tables.pop(name), file_schema(name)).combine_chunks()
            folded = timed(
                "fold", lambda t=table, n=name: merged_tweets(t) if n == "tweets" else latest_rows(t, KEYS[n])
            )
            timed("parquet", lambda t=folded, n=name: write_file(n, [t], Path(work)))
            if name == "tweets":
                found = {"rows": table.num_rows, "tweets": folded.num_rows, "likes": None}
    spent["columns"] -= spent["parse"]  # which is a part of it
    return found | {"spent": spent}


CONTENDERS: dict[str, Callable[[Path], Found]] = {
    "tweetlake": tweetlake,
    "tweetlake, one process": tweetlake_alone,
    "again": again,
    "polars": polars,
    "polars-avro": polars_avro,
    "duckdb": duckdb,
    "pandas": pandas,
    "pandas, typed": pandas_typed,
    "floor": floor,
}


def main() -> None:
    import resource

    name, folder = sys.argv[1:]
    found = CONTENDERS[name](Path(folder))
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    found["cpu"] = sum(each.ru_utime + each.ru_stime for each in (own, others))
    found["rss_mb"] = int(peak.split()[1]) / 1_024
    found["helper_mb"] = others.ru_maxrss / 1_024  # of the largest; there is one
    print(json.dumps(found))


if __name__ == "__main__":
    main()
