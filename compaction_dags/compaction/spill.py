"""Rows on their way from pages to tables, kept on disk in sorted runs, so that memory does not grow with an hour.

What a batch of pages gives a table is one run: a file sorted by the table's key. Runs, and curated files, which are
sorted too, are read back together by ranges of keys, each of about as many rows, however the keys are spread.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from compaction_dags.compaction.tables import Partition, conformed, file_schema
from schemas import snowflake
from schemas.keys import RawHour

ROWS_PER_RANGE = 16_384
"""About how many rows are merged at a time: some 25 MB of tweets, of which merging holds a few copies."""
_STRIDE = 16
"""Every so many rows a key is kept in memory, to cut ranges by."""
_HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class KeyRange:
    """The keys from `least` up to `beyond`, which is not in it. None is no bound."""

    least: Any = None
    beyond: Any = None


EVERY_KEY = KeyRange()


class SortedRows(Protocol):
    """Rows on disk that can be had by key."""

    bounds: tuple[Any, Any]
    """Least and greatest key; None where it is not known."""
    sample: pa.Array
    """Every 16th key."""

    def between(self, keys: KeyRange) -> pa.Table:
        """The rows of a range, sorted by key."""


def cut(sources: Sequence[SortedRows], within: KeyRange = EVERY_KEY, rows: int = ROWS_PER_RANGE) -> Iterator[KeyRange]:
    """Ranges that make up `within`, in order and without holes, each with about `rows` rows of all sources together."""
    if not sources:
        return
    keys = pa.concat_arrays([_inside(source.sample, within) for source in sources])
    keys = keys.take(pc.sort_indices(keys))
    step = max(rows // _STRIDE, 1)
    least = within.least
    for beyond in keys[step::step].to_pylist():
        if least is None or beyond > least:
            yield KeyRange(least, beyond)
            least = beyond
    yield KeyRange(least, within.beyond)


def together(sources: Sequence[SortedRows], keys: KeyRange, schema: pa.Schema) -> pa.Table:
    """The rows of a range out of all sources, those of the first source first."""
    found = [source.between(keys) for source in sources if _overlap(source.bounds, keys)]
    return pa.concat_tables([schema.empty_table(), *found])


def partition_of(hour: RawHour) -> Partition:
    """The partition an hour is in the tables."""
    return Partition(hour.date.isoformat(), hour.start.hour)


def ids_of(event_hour: Partition) -> KeyRange:
    """The ids of the tweets that were made in an event hour."""
    start = RawHour.parse(str(event_hour)).start
    beyond = snowflake.first_id_at(start + timedelta(hours=1))
    return KeyRange(snowflake.first_id_at(start), beyond if beyond <= snowflake.MAX_ID else None)


def event_hours(ids: pa.ChunkedArray) -> set[Partition]:
    """The hours in which tweets were made, read off their ids."""
    hours = np.unique(((ids.to_numpy() >> snowflake.SHIFT) + snowflake.EPOCH_MS) // _HOUR_MS).tolist()
    return {partition_of(RawHour(datetime.fromtimestamp(hour * 3_600, UTC))) for hour in hours}


class Spill:
    """The runs of every table, as Arrow IPC files in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._runs: dict[str, list[Run]] = {}
        self._unsorted: dict[str, list[Path]] = {}

    def add(self, table: str, key: str, rows: pa.Table) -> None:
        """Keep rows, given in any order, as a run. Rows without a key are left out."""
        if rows[key].null_count:
            rows = rows.filter(pc.is_valid(rows[key]))
        if rows.num_rows:
            rows = _in_order(rows, key)
            self._runs.setdefault(table, []).append(Run(self._write(table, rows), key, rows[key]))

    def add_unsorted(self, table: str, rows: pa.Table) -> None:
        """Keep rows of a table that has no key."""
        self._unsorted.setdefault(table, []).append(self._write(table, rows))

    def runs(self, table: str) -> "list[Run]":
        """Everything `add` got for a table."""
        return self._runs.get(table, [])

    def unsorted(self, table: str) -> Iterator[pa.Table]:
        """Everything `add_unsorted` got for a table, in the order it came."""
        return (_mapped(path) for path in self._unsorted.get(table, []))

    def _write(self, table: str, rows: pa.Table) -> Path:
        self._count += 1
        path = self._folder / f"{self._count:06d}.arrow"
        schema = file_schema(table)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_table(rows.select(schema.names).cast(schema).combine_chunks())
        return path


class Run:
    """A file of rows sorted by key."""

    def __init__(self, path: Path, key: str, keys: pa.ChunkedArray) -> None:
        self._path = path
        self._key = key
        self.bounds = (keys[0].as_py(), keys[-1].as_py())
        self.sample = _every_so_many(keys)

    def between(self, keys: KeyRange) -> pa.Table:
        """The rows of a range. They are read from disk as they are used, and let go with the table."""
        return _sliced(_mapped(self._path), self._key, keys)


class Stored:
    """A curated file. Ranges are to be asked for in order: a row group is read once, and held while they need it."""

    def __init__(self, file: pq.ParquetFile, table: str, key: str) -> None:
        self._file = file
        self._key = key
        self._schema = file_schema(table)
        self.bounds = (None, None)
        self._groups = [_bounds(file, key, group) for group in range(file.num_row_groups)]
        self._held: dict[int, pa.Table] = {}
        self.sample = _every_so_many(file.read(columns=[key])[key])

    def between(self, keys: KeyRange) -> pa.Table:
        """The rows of a range, sorted within each row group."""
        wanted = [group for group, bounds in enumerate(self._groups) if _overlap(bounds, keys)]
        self._held = {group: self._held[group] if group in self._held else self._read(group) for group in wanted}
        found = [_sliced(rows, self._key, keys) for rows in self._held.values()]
        return pa.concat_tables([self._schema.empty_table(), *found])

    def _read(self, group: int) -> pa.Table:
        return _in_order(conformed(self._file.read_row_group(group), self._schema), self._key)


def _mapped(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _in_order(rows: pa.Table, key: str) -> pa.Table:
    """Sorted by key; what is sorted already, as files of our own are, is not copied."""
    keys = rows[key].combine_chunks()
    if pc.all(pc.greater_equal(keys.slice(1), keys.slice(0, max(len(keys) - 1, 0)))).as_py() is not False:
        return rows
    return rows.take(pc.sort_indices(keys))


def _every_so_many(keys: pa.ChunkedArray) -> pa.Array:
    return keys.combine_chunks().take(pa.array(range(0, len(keys), _STRIDE), pa.int64()))


def _inside(keys: pa.Array, within: KeyRange) -> pa.Array:
    if within.least is not None:
        keys = keys.filter(pc.greater_equal(keys, within.least))
    return keys if within.beyond is None else keys.filter(pc.less(keys, within.beyond))


def _overlap(bounds: tuple[Any, Any], keys: KeyRange) -> bool:
    least, greatest = bounds
    begins_before = keys.beyond is None or least is None or least < keys.beyond
    return begins_before and (keys.least is None or greatest is None or greatest >= keys.least)


def _bounds(file: pq.ParquetFile, key: str, group: int) -> tuple[Any, Any]:
    """Least and greatest key of a row group; None where its writer did not say."""
    columns = file.metadata.row_group(group)
    (statistics,) = (
        columns.column(index).statistics
        for index in range(columns.num_columns)
        if columns.column(index).path_in_schema == key
    )
    return (statistics.min, statistics.max) if statistics is not None and statistics.has_min_max else (None, None)


def _sliced(rows: pa.Table, key: str, keys: KeyRange) -> pa.Table:
    """The part of sorted rows that lies in a range."""
    start = 0 if keys.least is None else _count_below(rows[key], keys.least)
    end = rows.num_rows if keys.beyond is None else _count_below(rows[key], keys.beyond)
    return rows.slice(start, end - start)


def _count_below(column: pa.ChunkedArray, bound: Any) -> int:
    return int(pc.sum(pc.less(column, pa.scalar(bound, column.type))).as_py() or 0)
