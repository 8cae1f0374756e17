"""Parquet files of the curated tables: rows cut into row groups, encoded, and described for the Delta log.

The same rows become the same bytes, however they were divided before: a file is known by its digest.
"""

import hashlib
import io
import itertools
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from compaction_dags.compaction.rows import file_schema, whole
from schemas.curated import KEYS

ROWS_PER_GROUP = 16_384
"""Rows of a Parquet row group: the unit in which readers skip, and in which merging reads and writes. About 15 MB of
tweets in memory; twice as many rows make a file smaller by 0.3% only."""
_REJECTS_PER_GROUP = 64
"""The same for `rejects`, each of which may be a whole page: 300 kB."""
_CHUNKS_PER_GROUP = 4
"""The rows of a group are brought together in so many parts: only those of one part are in memory twice."""


_LAST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A Parquet file on this machine that is to become a data file."""

    path: Path
    content: str
    """Digest of its bytes."""
    rows: int
    stats: str


def read_files(name: str, files: Iterable[Any], columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of Parquet files of a table, whole and in memory. Files are paths or open ones."""
    wanted = file_schema(name).names if columns is None else columns
    schema = pa.schema([file_schema(name).field(each) for each in wanted])
    tables = [schema.empty_table()]
    for file in files:
        stored = pq.ParquetFile(file, pre_buffer=True)
        present = [each for each in wanted if each in stored.schema_arrow.names]
        tables.append(whole(stored.read(columns=present), schema))
    return pa.concat_tables(tables)


def local_file(name: str, work: Path) -> Path:
    """A name in a folder for a Parquet file of a table that no other has."""
    return work / f"{name}-{secrets.token_hex(8)}.parquet"


def write_file(name: str, tables: Iterable[pa.Table], work: Path) -> list[LocalFile]:
    """Write rows to one file, the same bytes for the same rows. No rows, no file."""
    schema = file_schema(name)
    file = local_file(name, work)
    ranges = {each: _Range() for each in ranged_columns(name)}
    rows = 0
    writer: pq.ParquetWriter | None = None
    try:
        for group in _row_groups(tables, schema, _REJECTS_PER_GROUP if name == "rejects" else ROWS_PER_GROUP):
            writer = writer or pq.ParquetWriter(file, schema, **_parquet_options(name))
            writer.write_table(group, row_group_size=group.num_rows)
            rows += group.num_rows
            for column, seen in ranges.items():
                seen.add(group[column])
            del group  # or it stays in memory while the next one is put together
    finally:
        if writer is not None:
            writer.close()
    return [LocalFile(file, _digest(file), rows, _stats(rows, ranges))] if rows else []


def _row_groups(tables: Iterable[pa.Table], schema: pa.Schema, rows: int) -> Iterator[pa.Table]:
    """The same rows in pieces of so many, in chunks of the same length, however they were divided before: a file's
    bytes depend on both.
    """
    chunks = _chunks(tables, rows // _CHUNKS_PER_GROUP)
    while group := list(itertools.islice(chunks, _CHUNKS_PER_GROUP)):
        yield whole(_taken_together(group), schema)


def _taken_together(tables: list[pa.Table]) -> pa.Table:
    """The rows of all. The list is emptied, so that they are let go once they are written."""
    rows = pa.concat_tables(tables, promote_options="default")
    tables.clear()
    return rows


def _chunks(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of one chunk, all but the last of so many rows."""
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        rest = table
        while count + rest.num_rows >= rows:
            taken = rows - count
            yield _one([*waiting, rest.slice(0, taken)])
            rest, waiting, count = rest.slice(taken), [], 0
        waiting.append(rest)
        count += rest.num_rows
    if count:
        yield _one(waiting)


def _one(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables, promote_options="default").combine_chunks()


_DELTA_ENCODED = {"id", "conversation_id", "created_at", "editable_until", "edit_history_tweet_ids.list.element"}
"""Sorted or nearly so: DELTA_BINARY_PACKED makes a file of tweets a tenth smaller than dictionaries do."""


_SELDOM_TWICE = {
    *("text", "text_sent", "author_id", "in_reply_to_user_id", "impression_count", "media_keys"),
    *("mentions.id", "mentions.username", "urls.url", "urls.expanded_url", "urls.display_url", "urls.unwound_url"),
    *("media_key", "url", "preview_image_url", "variants.url"),
    *("name", "username", "description", "profile_image_url", "tweet_count"),
}
"""Columns whose values hardly ever come again within a row group: a dictionary of them is as long as they are. Without
one, files are a tenth smaller and take a tenth less CPU to write.
"""


@cache
def _parquet_options(name: str) -> dict[str, Any]:
    """Zstd 3, page index, large dictionaries, delta encoding of what is sorted. A Bloom filter on the key would only
    cost: files are sorted by it. Arrow's own schema is left out: half of a small file would be that.
    """
    schema = file_schema(name)
    sink = io.BytesIO()
    pq.write_table(schema.empty_table(), sink)
    columns = pq.ParquetFile(sink).schema
    leaves = {columns.column(index).path: columns.column(index).physical_type for index in range(len(columns))}
    delta = [leaf for leaf, physical in leaves.items() if leaf in _DELTA_ENCODED and physical == "INT64"]
    options: dict[str, Any] = {
        "compression": "zstd",
        "compression_level": 3,
        "write_page_index": True,
        "store_schema": False,
        "dictionary_pagesize_limit": 4 * 1024 * 1024,
        "use_dictionary": [
            leaf for leaf in leaves if leaf not in delta and leaf.replace(".list.element", "") not in _SELDOM_TWICE
        ],
        "column_encoding": dict.fromkeys(delta, "DELTA_BINARY_PACKED"),
    }
    if name in KEYS:
        options["sorting_columns"] = [pq.SortingColumn(schema.get_field_index(KEYS[name]))]
    return options


def ranged_columns(name: str) -> list[str]:
    """The columns of a table whose least and greatest value per file stand in the Delta log."""
    schema = file_schema(name)
    numbers = [
        each
        for each in (KEYS.get(name, ""), "created_at")
        if each in schema.names and not pa.types.is_string(schema.field(each).type)
    ]
    return [*numbers, "raw_key"] if name == "tweets" else numbers  # a rebuild looks for the rows of a raw hour


class _Range:
    """Least and greatest of a column seen piece by piece, and how many nulls."""

    def __init__(self) -> None:
        self.least: Any = None
        self.greatest: Any = None
        self.nulls = 0

    def add(self, column: pa.ChunkedArray) -> None:
        self.nulls += column.null_count
        found = pc.min_max(column).as_py()
        if found["min"] is not None:
            self.least = found["min"] if self.least is None else min(self.least, found["min"])
            self.greatest = found["max"] if self.greatest is None else max(self.greatest, found["max"])


def _stats(rows: int, ranges: Mapping[str, _Range]) -> str:
    """Statistics of a file as the Delta protocol writes them: engines skip files by them. Times have milliseconds
    there, so the least is rounded down and the greatest up.
    """
    known = {name: found for name, found in ranges.items() if found.least is not None}
    return json.dumps(
        {
            "numRecords": rows,
            "minValues": {name: _json(found.least) for name, found in known.items()},
            "maxValues": {name: _json(found.greatest, timedelta(microseconds=999)) for name, found in known.items()},
            "nullCount": {name: found.nulls for name, found in ranges.items()},
        }
    )


def _json(value: Any, more: timedelta = timedelta()) -> Any:
    if isinstance(value, datetime):
        return (min(value, _LAST - more) + more).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return value


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:32]
