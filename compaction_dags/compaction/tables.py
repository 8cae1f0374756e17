"""The curated tables: Delta Lake tables whose Parquet files pyarrow writes and whose commits name them, one by one.

A commit replaces whole partitions: it adds the new files and removes the old ones of each touched partition, on the very
version that was read, or fails. `partition_filters` is never used: it is a cross product and would take bystanders.
"""

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, CommitProperties, RemoveAction

from compaction_dags.compaction.errors import ConflictError, LakeUnreachableError
from compaction_dags.compaction.lake import Lake
from schemas.curated import KEYS, TABLES

ROWS_PER_GROUP = 65_536
"""Rows of a Parquet row group: the unit in which readers skip and in which merging holds rows in memory."""
PATIENCE_SECONDS = 300.0
"""How long a commit that others are always ahead of is tried again."""


@dataclass(frozen=True, slots=True, order=True)
class Partition:
    """A UTC hour of a table: its `date` and `hour` columns."""

    date: str
    hour: int

    @property
    def folder(self) -> str:
        return f"date={self.date}/hour={self.hour:02d}"

    def __str__(self) -> str:
        return f"{self.date}T{self.hour:02d}"


@dataclass(frozen=True, slots=True)
class DataFile:
    """A Parquet file of one partition. Its name is made from its content: the same rows have the same name."""

    path: str
    """Below the table's root, as in the Delta log."""
    partition: Partition
    size: int = field(compare=False)
    rows: int = field(compare=False)
    stats: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A version of a table and the files it is made of."""

    table: DeltaTable
    files: Mapping[Partition, tuple[DataFile, ...]]

    @property
    def version(self) -> int:
        return int(self.table.version())

    def of(self, partition: Partition) -> tuple[DataFile, ...]:
        return self.files.get(partition, ())

    def rows(self, partition: Partition) -> int:
        return sum(file.rows for file in self.of(partition))


@dataclass(frozen=True, slots=True)
class Change:
    """What a partition's files were and are to be."""

    old: tuple[DataFile, ...]
    new: tuple[DataFile, ...]

    @property
    def is_one(self) -> bool:
        """Names come from the content: the same names are the same rows."""
        return {file.path for file in self.old} != {file.path for file in self.new}


Check = Callable[[Partition, int, int], None]
"""Called before a commit with a partition and its rows before and after; raises to stop it."""

Build = Callable[[Partition, Sequence[DataFile]], Iterable[pa.Table]]
"""Makes a partition's new rows from its present files: tables in the order they are to be written, sorted by key."""


class CuratedTable:
    """One curated table in the lake."""

    def __init__(self, lake: Lake, name: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.schema = TABLES[name]
        self.file_schema = pa.schema([column for column in self.schema if column.name not in {"date", "hour"}])
        self._lake = lake
        self._root = lake.keys.table(name)
        self._monotonic = monotonic

    # Reading.

    def open(self) -> Snapshot | None:
        """The newest version; None if the table does not exist yet."""
        try:
            table = DeltaTable(self._lake.uri(self._root), storage_options=self._lake.delta_options())
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            raise LakeUnreachableError(f"{self._lake.uri(self._root)}: {error}") from error
        return Snapshot(table, _files(table))

    def open_or_create(self) -> Snapshot:
        """The newest version, making the table on first use. Two who make it at once get the same one."""
        for _ in range(3):
            if (snapshot := self.open()) is not None:
                return snapshot
            try:
                DeltaTable.create(
                    self._lake.uri(self._root),
                    schema=self.schema,
                    mode="error",
                    partition_by=["date", "hour"],
                    name=self.name,
                    description=(self.schema.metadata or {}).get(b"doc", b"").decode(),
                    storage_options=self._lake.delta_options(),
                    commit_properties=CommitProperties(max_commit_retries=0),
                )
            except (CommitFailedError, DeltaError, OSError):
                continue  # somebody else made it meanwhile; if not, opening it says why
        snapshot = self.open()
        if snapshot is None:
            raise LakeUnreachableError(f"{self._lake.uri(self._root)} can be neither opened nor made")
        return snapshot

    def fetch(self, file: DataFile, work: Path) -> pq.ParquetFile:
        """A data file, copied beside the work and opened: its row groups can then be read one by one."""
        local = work / f"{self.name}-{file.path.replace('/', '-')}"
        if not local.exists():
            self._lake.get_file(f"{self._root}/{unquote(file.path)}", local)
        return pq.ParquetFile(local, memory_map=True)

    def read(
        self, snapshot: Snapshot, partitions: Iterable[Partition], work: Path, columns: list[str] | None = None
    ) -> pa.Table:
        """The rows of some partitions, whole; for small tables."""
        files = [file for partition in partitions for file in snapshot.of(partition)]
        wanted = [name for name in self.file_schema.names if columns is None or name in columns]
        schema = pa.schema([self.file_schema.field(name) for name in wanted])
        tables = [self.fetch(file, work).read(columns=wanted).cast(schema) for file in files]
        return pa.concat_tables(tables) if tables else schema.empty_table()

    # Writing.

    def replace(
        self,
        partitions: Iterable[Partition],
        build: Build,
        work: Path,
        metadata: Mapping[str, Any],
        now: datetime,
        check: Check = lambda *_: None,
    ) -> bool:
        """Replace whole partitions by what `build` makes of them, in one commit; partitions left out stay untouched.

        When another writer was ahead: if the touched partitions are as they were, commit again; otherwise build those
        that changed again. Returns whether there was anything to commit. Raises ConflictError after PATIENCE_SECONDS.
        """
        wanted = sorted(set(partitions))
        if not wanted:
            return False
        give_up = self._monotonic() + PATIENCE_SECONDS
        built: dict[Partition, Change] = {}
        while True:
            snapshot = self.open_or_create()
            for partition in wanted:
                present = snapshot.of(partition)
                if partition not in built or built[partition].old != present:
                    built[partition] = Change(present, self._write(partition, build(partition, present), work))
                change = built[partition]
                check(partition, sum(file.rows for file in change.old), sum(file.rows for file in change.new))
            changed = {partition: change for partition, change in built.items() if change.is_one}
            if not changed:
                return False
            try:
                self._commit(snapshot, changed, metadata, now)
            except CommitFailedError as error:
                if self._monotonic() > give_up:
                    raise ConflictError(
                        f"{self.name}: other writers were ahead for {PATIENCE_SECONDS:.0f} s; run the hour again"
                    ) from error
            else:
                return True

    def _commit(
        self,
        snapshot: Snapshot,
        changed: Mapping[Partition, Change],
        metadata: Mapping[str, Any],
        now: datetime,
    ) -> None:
        moment = int(now.timestamp() * 1000)
        actions: list[AddAction | RemoveAction] = []
        for partition, change in changed.items():
            values: dict[str, str | None] = {"date": partition.date, "hour": str(partition.hour)}
            actions += [
                RemoveAction(file.path, True, moment, file.size, values)
                for file in change.old
                if file not in change.new
            ]
            actions += [
                AddAction(file.path, file.size, values, moment, True, file.stats)
                for file in change.new
                if file not in change.old
            ]
        try:
            snapshot.table.create_write_transaction(
                actions,
                mode="append",
                schema=self.schema,
                partition_by=["date", "hour"],
                commit_properties=CommitProperties(custom_metadata=dict(metadata), max_commit_retries=0),
            )
        except CommitFailedError:
            raise
        except (DeltaError, OSError) as error:
            raise LakeUnreachableError(f"{self._lake.uri(self._root)}: {error}") from error

    def _write(self, partition: Partition, tables: Iterable[pa.Table], work: Path) -> tuple[DataFile, ...]:
        """Write the rows of a partition as one Parquet file and store it; no rows, no file."""
        beside = work / f"{self.name}-{partition}.parquet"
        key_name, key, times, rows = KEYS.get(self.name), _Range(), _Range(), 0
        writer: pq.ParquetWriter | None = None
        for table in _in_row_groups(tables, self.file_schema):
            writer = writer or pq.ParquetWriter(
                beside, self.file_schema, **_parquet_options(self.name, self.file_schema)
            )
            writer.write_table(table, row_group_size=table.num_rows)
            rows += table.num_rows
            if key_name is not None and pa.types.is_integer(self.file_schema.field(key_name).type):
                key.add(table[key_name])
            if "created_at" in table.column_names:
                times.add(table["created_at"])
        if writer is None:
            return ()
        writer.close()
        path = f"{partition.folder}/part-{_digest(beside)}.parquet"
        self._lake.put_file(f"{self._root}/{path}", beside)
        size = beside.stat().st_size
        beside.unlink()
        return (DataFile(path, partition, size, rows, _stats(rows, {key_name or "": key, "created_at": times})),)


def _in_row_groups(tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows in pieces of about ROWS_PER_GROUP: small pieces make poor row groups, large ones cost memory."""
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        waiting.append(table.select(schema.names).cast(schema))
        count += table.num_rows
        if count >= ROWS_PER_GROUP:
            whole = pa.concat_tables(waiting).combine_chunks()
            waiting, count = [], 0
            for start in range(0, whole.num_rows, ROWS_PER_GROUP):
                yield whole.slice(start, ROWS_PER_GROUP)
    if count:
        yield pa.concat_tables(waiting).combine_chunks()


_DELTA_ENCODED = ("id", "conversation_id", "created_at")
"""Sorted or nearly so: DELTA_BINARY_PACKED is smaller than a dictionary there (measured 8% of a file)."""


@cache
def _leaves(name: str) -> tuple[str, ...]:
    """Every leaf column of a table as Parquet names it."""
    sink = io.BytesIO()
    schema = pa.schema([column for column in TABLES[name] if column.name not in {"date", "hour"}])
    pq.write_table(schema.empty_table(), sink)
    columns = pq.ParquetFile(sink).schema
    return tuple(columns.column(index).path for index in range(len(columns)))


def _parquet_options(name: str, schema: pa.Schema) -> dict[str, Any]:
    """Zstd 3, page index, large dictionaries, delta encoding of what is sorted."""
    delta = [
        column
        for column in _DELTA_ENCODED
        if column in schema.names and not pa.types.is_string(schema.field(column).type)
    ]
    options: dict[str, Any] = {
        "compression": "zstd",
        "compression_level": 3,
        "write_page_index": True,
        "dictionary_pagesize_limit": 4 * 1024 * 1024,
        "use_dictionary": [leaf for leaf in _leaves(name) if leaf not in delta],
        "column_encoding": dict.fromkeys(delta, "DELTA_BINARY_PACKED"),
    }
    key = KEYS.get(name)
    if key is not None:
        options["sorting_columns"] = [pq.SortingColumn(schema.get_field_index(key))]
    return options


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
    """Statistics of a file as the Delta protocol writes them: engines skip files by them."""
    known = {name: found for name, found in ranges.items() if found.least is not None}
    return json.dumps(
        {
            "numRecords": rows,
            "minValues": {name: _json(found.least) for name, found in known.items()},
            "maxValues": {name: _json(found.greatest) for name, found in known.items()},
            "nullCount": {name: found.nulls for name, found in known.items()},
        }
    )


def _json(value: Any) -> Any:
    return value.isoformat(timespec="milliseconds").replace("+00:00", "Z") if isinstance(value, datetime) else value


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:32]


def _files(table: DeltaTable) -> dict[Partition, tuple[DataFile, ...]]:
    found: dict[Partition, list[DataFile]] = {}
    actions = pa.table(table.get_add_actions(flatten=True))
    columns = ("path", "size_bytes", "num_records", "partition.date", "partition.hour")
    present = [name for name in columns if name in actions.column_names]
    for row in actions.select(present).to_pylist():
        partition = Partition(row["partition.date"], int(row["partition.hour"]))
        found.setdefault(partition, []).append(
            DataFile(row["path"], partition, int(row["size_bytes"]), int(row.get("num_records") or 0))
        )
    return {partition: tuple(sorted(files, key=lambda file: file.path)) for partition, files in found.items()}
