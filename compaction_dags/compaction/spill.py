"""Rows on their way from pages to tables, kept on disk in sorted runs, so that memory does not grow with an hour.

Decoded rows wait in memory until there are enough for a run: a file sorted by the table's key, in small pieces. Runs, and
curated files, which are sorted too, are read back together by ranges of keys, each of about as many rows, however the keys
are spread. Which rows are where is a value that another process can be given; files are opened where they are read.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from compaction_dags.compaction.rows import file_schema, united, whole
from compaction_dags.compaction.tables import Partition
from schemas import snowflake
from schemas.curated import KEYS
from schemas.keys import RawHour

ROWS_PER_RANGE = 4_096
"""About how many rows are merged at a time: some 4 MB of tweets, of which merging holds a few copies."""
BYTES_WAITING = 16_000_000
"""How much waits in memory for runs, all tables together. The longer runs are, the fewer have to be merged."""
ROWS_PER_PIECE = 1_024
"""What is read of a run at once: while runs are merged, one piece of each may be in memory."""
MOST_TOGETHER = 16
"""Runs that are read together, a piece of each in memory: 20 MB of users, which are spread over all of their keys."""
_KEYS_COUNTED_AT_ONCE = 16_384
"""Of pieces whose keys are counted all columns may stay in memory meanwhile: 20 MB of tweets."""
_STRIDE = 32
"""Every so many rows a key is kept in memory, to cut ranges by."""
_HOUR_MS = 3_600_000

Bounds = tuple[Any, Any]
"""Least and greatest key; None where it is not known."""


@dataclass(frozen=True, slots=True)
class KeyRange:
    """The keys from `least` up to `beyond`, which is not in it. None is no bound."""

    least: Any = None
    beyond: Any = None


EVERY_KEY = KeyRange()


@dataclass(frozen=True, slots=True)
class SortedRows:
    """A file on this machine with rows of a table, in pieces that can be read one by one: a run, or a curated file."""

    path: Path
    table: str
    pieces: tuple[Bounds, ...]
    """Of the keys in each piece."""
    sample: pa.Array
    """Every 32nd key, sorted."""

    @property
    def key(self) -> str:
        return KEYS[self.table]

    def overlaps(self, keys: KeyRange) -> bool:
        """Whether rows of the range may be in it."""
        return any(_overlap(bounds, keys) for bounds in self.pieces)


class Opened:
    """Several files of sorted rows being read together. Ranges are to be asked for in order: a piece is read once, and
    held while they need it.
    """

    def __init__(self, sources: Iterable[SortedRows], columns: Sequence[str] | None = None) -> None:
        self._sources = [(source, _open(source, columns)) for source in sources]
        self._held: list[dict[int, pa.Table]] = [{} for _ in self._sources]

    @property
    def schema(self) -> pa.Schema:
        """The columns that any of the sources has."""
        return pa.unify_schemas([pieces.schema for _, pieces in self._sources])

    def between(self, keys: KeyRange) -> list[pa.Table]:
        """The rows of a range out of all sources, those of the first source first; each table sorted by key."""
        found = []
        for number, (source, pieces) in enumerate(self._sources):
            wanted = [piece for piece, bounds in enumerate(source.pieces) if _overlap(bounds, keys)]
            before = self._held[number]
            held = {piece: before[piece] if piece in before else pieces.read(piece) for piece in wanted}
            self._held[number] = held
            found += [_sliced(rows, source.key, keys) for rows in held.values()]
        return found


def cut(sources: Sequence[SortedRows], within: KeyRange = EVERY_KEY, rows: int = ROWS_PER_RANGE) -> Iterator[KeyRange]:
    """Ranges that make up `within`, in order and without holes, each with about `rows` rows of all sources together."""
    if not sources:
        return
    keys = _sampled(sources, within)
    keys = keys.take(pc.sort_indices(keys))
    step = max(rows // _STRIDE, 1)
    least = within.least
    for beyond in keys[step::step].to_pylist():
        if least is None or beyond > least:
            yield KeyRange(least, beyond)
            least = beyond
    yield KeyRange(least, within.beyond)


def shares(sources: Sequence[SortedRows], within: KeyRange, keys_each: int) -> list[KeyRange]:
    """`within` cut behind every `keys_each` distinct keys that are there, exactly, so that the same keys give the same
    shares whatever files they are in.
    """
    most = (len(_sampled(sources, within)) + len(sources)) * _STRIDE
    if most <= keys_each:
        return [within]
    opened = Opened([source for source in sources if source.overlaps(within)], [sources[0].key])
    found: list[KeyRange] = []
    least, count = within.least, 0
    for part in cut(sources, within, min(keys_each, _KEYS_COUNTED_AT_ONCE)):
        keys = np.unique(pa.concat_tables(tables)[0].to_numpy()) if (tables := opened.between(part)) else np.empty(0)
        for beyond in keys[-count % keys_each if count else keys_each :: keys_each].tolist():
            found.append(KeyRange(least, beyond))
            least = beyond
        count += len(keys)
    return [*found, KeyRange(least, within.beyond)]


def together(sources: Opened, keys: KeyRange, schema: pa.Schema) -> pa.Table:
    """The rows of a range out of all sources as one table, those of the first source first. It has the columns that any
    of them has; all of them if there is no row.
    """
    return united(sources.between(keys), schema)


def ids_of(event_hour: Partition) -> KeyRange:
    """The ids of the tweets that were made in an event hour."""
    start = event_hour.start
    beyond = snowflake.first_id_at(start + timedelta(hours=1))
    return KeyRange(snowflake.first_id_at(start), beyond if beyond <= snowflake.MAX_ID else None)


def event_hours(ids: pa.ChunkedArray) -> set[Partition]:
    """The hours in which tweets were made, read off their ids."""
    hours = np.unique(((ids.to_numpy() >> snowflake.SHIFT) + snowflake.EPOCH_MS) // _HOUR_MS).tolist()
    return {Partition.of(RawHour(datetime.fromtimestamp(hour * 3_600, UTC))) for hour in hours}


Fold = Callable[[pa.Table], pa.Table]
"""Makes of rows in any order rows sorted by key."""


class Spill:
    """The runs of every table, as Arrow IPC files in one folder."""

    def __init__(
        self, folder: Path, folds: Mapping[str, Fold] = MappingProxyType({}), bytes_waiting: int = BYTES_WAITING
    ) -> None:
        """`folds` may leave out rows of a table that do not count; where there is none, all are kept."""
        self._folder = folder
        self._folds = folds
        self._most_bytes = bytes_waiting
        self._count = 0
        self._waiting: dict[str, list[pa.Table]] = {}
        self._bytes: Counter[str] = Counter()
        self._runs: dict[str, list[SortedRows]] = {}

    def add(self, table: str, rows: pa.Table) -> None:
        """Keep rows, given in any order."""
        if table in self._folds:
            rows = self._folded(table, rows)
        if rows.num_rows:
            self._waiting.setdefault(table, []).append(rows)
            self._bytes[table] += rows.get_total_buffer_size()
            if self._bytes.total() > self._most_bytes:
                self._write_run(self._bytes.most_common(1)[0][0])

    def runs(self, table: str) -> list[SortedRows]:
        """Everything `add` got for a table."""
        self._write_run(table)
        return self._runs.get(table, [])

    def joined(self, table: str, runs: Sequence[SortedRows], within: KeyRange = EVERY_KEY) -> list[SortedRows]:
        """The rows of these runs, those of the first run first, in few enough runs to be read together. What lies outside
        of the range may be left out, and so may rows that do not count.
        """
        joined = list(runs)
        while len(joined) > MOST_TOGETHER:
            starts = range(0, len(joined), MOST_TOGETHER)
            joined = [self._joined(table, joined[start : start + MOST_TOGETHER], within) for start in starts]
        return joined

    def keep_unsorted(self, table: str, rows: pa.Table) -> Path:
        """Keep rows of a table that has no key, in a file for `read_unsorted`."""
        return self._write([rows], file_schema(table))

    def _write_run(self, table: str) -> None:
        waiting = self._waiting.pop(table, [])
        del self._bytes[table]
        if not waiting:
            return
        rows = self._folded(table, united(waiting, file_schema(table)))
        self._runs.setdefault(table, []).append(self._run(table, [rows], rows.schema))

    def _joined(self, table: str, runs: Sequence[SortedRows], within: KeyRange) -> SortedRows:
        opened = Opened(runs)
        parts = (self._folded(table, together(opened, keys, opened.schema)) for keys in cut(runs, within))
        return self._run(table, parts, opened.schema)

    def _folded(self, table: str, rows: pa.Table) -> pa.Table:
        if table in self._folds:
            return self._folds[table](rows)
        return rows.take(pc.sort_indices(rows[KEYS[table]]))

    def _run(self, table: str, parts: Iterable[pa.Table], schema: pa.Schema) -> SortedRows:
        """Write sorted rows as a run, with these columns."""
        bounds: list[Bounds] = []
        sampled = [file_schema(table).empty_table()[KEYS[table]].combine_chunks()]

        def seen() -> Iterator[pa.Table]:
            for rows in parts:
                if not rows.num_rows:
                    continue
                keys = rows[KEYS[table]].combine_chunks()
                pieces = [keys.slice(start, ROWS_PER_PIECE) for start in range(0, len(keys), ROWS_PER_PIECE)]
                bounds.extend((piece[0].as_py(), piece[-1].as_py()) for piece in pieces)
                sampled.append(_every_so_many(keys))
                yield rows

        path = self._write(seen(), schema)
        return SortedRows(path, table, tuple(bounds), pa.concat_arrays(sampled))

    def _write(self, parts: Iterable[pa.Table], schema: pa.Schema) -> Path:
        self._count += 1
        path = self._folder / f"{self._count:06d}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for rows in parts:
                writer.write_table(whole(rows, schema).combine_chunks(), ROWS_PER_PIECE)
        return path


def read_unsorted(path: Path) -> pa.Table:
    """The rows of a file of `keep_unsorted`."""
    return pa.ipc.open_file(pa.OSFile(str(path))).read_all()


def stored(path: Path, table: str) -> SortedRows:
    """A curated file that was copied to this machine; it may be of an older release or of another engine."""
    key = KEYS[table]
    with pq.ParquetFile(path) as file:
        pieces = tuple(_bounds(file, key, group) for group in range(file.num_row_groups))
        keys = file.read(columns=[key])[key].combine_chunks()
    return SortedRows(path, table, pieces, _every_so_many(keys.take(pc.sort_indices(keys))))


# --- pieces ---


class _Pieces(Protocol):
    schema: pa.Schema

    def read(self, piece: int) -> pa.Table:
        """Its rows, sorted by key."""


class _RunPieces:
    def __init__(self, source: SortedRows, columns: Sequence[str] | None) -> None:
        file = pa.OSFile(str(source.path))
        self.schema = pa.ipc.open_file(file).schema
        fields = None if columns is None else [self.schema.get_field_index(name) for name in columns]
        options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        self._file = pa.ipc.open_file(file, options=options)

    def read(self, piece: int) -> pa.Table:
        return pa.Table.from_batches([self._file.get_batch(piece)])


class _StoredPieces:
    def __init__(self, source: SortedRows, columns: Sequence[str] | None) -> None:
        schema = file_schema(source.table)
        self._columns = columns
        self.schema = schema if columns is None else pa.schema([schema.field(name) for name in columns])
        self._key = source.key
        self._file = pq.ParquetFile(source.path)

    def read(self, piece: int) -> pa.Table:
        rows = self._file.read_row_group(piece, self._columns, use_threads=False)
        return _in_order(whole(rows, self.schema), self._key)


def _open(source: SortedRows, columns: Sequence[str] | None) -> _Pieces:
    kind = _RunPieces if source.path.suffix == ".arrow" else _StoredPieces
    return kind(source, columns)


def _in_order(rows: pa.Table, key: str) -> pa.Table:
    """Sorted by key; what is sorted already, as files of our own are, is not copied."""
    keys = rows[key].combine_chunks()
    if pc.all(pc.greater_equal(keys.slice(1), keys.slice(0, max(len(keys) - 1, 0)))).as_py() is not False:
        return rows
    return rows.take(pc.sort_indices(keys))


def _every_so_many(keys: pa.Array) -> pa.Array:
    return keys.take(pa.array(range(0, len(keys), _STRIDE), pa.int64()))


def _sampled(sources: Sequence[SortedRows], within: KeyRange) -> pa.Array:
    return pa.concat_arrays([_inside(source.sample, within) for source in sources])


def _inside(keys: pa.Array, within: KeyRange) -> pa.Array:
    if within.least is not None:
        keys = keys.filter(pc.greater_equal(keys, within.least))
    return keys if within.beyond is None else keys.filter(pc.less(keys, within.beyond))


def _overlap(bounds: Bounds, keys: KeyRange) -> bool:
    least, greatest = bounds
    begins_before = keys.beyond is None or least is None or least < keys.beyond
    return begins_before and (keys.least is None or greatest is None or greatest >= keys.least)


def _bounds(file: pq.ParquetFile, key: str, group: int) -> Bounds:
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
