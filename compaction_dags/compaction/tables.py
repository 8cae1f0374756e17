"""The curated tables: Delta Lake tables whose commits name their files, one by one.

A commit replaces whole partitions: it adds the new files and removes the old ones of each touched partition, on the very
version that was read, or fails. `partition_filters` is never used: it is a cross product and would take bystanders.
A file never changes and its name is never used again, so neither a reader nor VACUUM can meet another file in its place.
"""

import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import pyarrow as pa
from deltalake import DeltaTable, Schema
from deltalake.exceptions import (
    CommitFailedError,
    DeltaError,
    DeltaProtocolError,
    SchemaMismatchError,
    TableNotFoundError,
)
from deltalake.transaction import AddAction, CommitProperties, RemoveAction

from compaction_dags.compaction.errors import ConflictError, LakeRefusedError, LakeUnreachableError
from compaction_dags.compaction.lake import Lake
from compaction_dags.compaction.parquet import LocalFile, local_file, ranged_columns, read_files, write_file
from compaction_dags.compaction.rows import PARTITIONED_BY, file_schema
from schemas.curated import TABLES
from schemas.keys import RawHour

PATIENCE_SECONDS = 300.0
"""How long a commit that others are always ahead of is tried again."""

_ONCE = CommitProperties(max_commit_retries=0)
_READS_AT_ONCE = 8
_WRITES_AT_ONCE = 4
_WHOLE_UP_TO = 1 << 20
"""Bytes of a file that is fetched whole, though only some columns are asked for: one request instead of several."""


@dataclass(frozen=True, slots=True, order=True)
class Partition:
    """A UTC hour of a table: its `date` and `hour` columns."""

    date: str
    hour: int

    @classmethod
    def of(cls, hour: RawHour) -> "Partition":
        """Where an hour lies."""
        return cls(hour.date.isoformat(), hour.start.hour)

    @property
    def start(self) -> datetime:
        """The aware UTC moment the hour begins."""
        return datetime.fromisoformat(self.date).replace(hour=self.hour, tzinfo=UTC)

    @property
    def folder(self) -> str:
        return f"date={self.date}/hour={self.hour:02d}"

    def __str__(self) -> str:
        return f"{self.date}T{self.hour:02d}"


_NAME = re.compile(r"part-(?P<content>[0-9a-f]{32})-(?P<sources>\d+)-[0-9a-f]{8}\.parquet")


@dataclass(frozen=True, slots=True)
class DataFile:
    """A Parquet file of one partition."""

    path: str
    """Below the table's root."""
    partition: Partition
    size: int = field(compare=False)
    rows: int = field(compare=False)
    stats: str = field(default="", compare=False)
    raw_keys: tuple[str, str] | None = field(default=None, compare=False)
    """The first and the last microbatch that rows of it come from; None if that is not known."""

    @property
    def content(self) -> str:
        """Digest of its bytes, which is in its name: the same rows have the same. Empty if another engine wrote it."""
        return found["content"] if (found := self._named()) else ""

    @property
    def sources(self) -> int:
        """How many microbatches it was made from, where it holds all of a raw hour; else 0."""
        return int(found["sources"]) if (found := self._named()) else 0

    def may_come_from(self, prefix: str) -> bool:
        """Whether rows of it may come from microbatches whose key begins so."""
        if self.raw_keys is None:
            return True
        first, last = self.raw_keys
        return first[: len(prefix)] <= prefix <= last

    def _named(self) -> re.Match[str] | None:
        return _NAME.fullmatch(self.path.rsplit("/", 1)[-1])


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


@dataclass(frozen=True, slots=True)
class Change:
    """What a partition's files were and are to be."""

    old: tuple[DataFile, ...]
    new: tuple[DataFile, ...]

    @property
    def rows_before(self) -> int:
        return sum(file.rows for file in self.old)

    @property
    def rows_after(self) -> int:
        return sum(file.rows for file in self.new)


Made = TypeVar("Made")

Present = Mapping[Partition, tuple[DataFile, ...]]
"""Partitions and the files they have."""

Make = Callable[[Present], Mapping[Partition, Sequence[LocalFile]]]
"""Makes the new files of partitions from their present ones: all at once, so that it can divide the work."""

Build = Callable[[Partition, Sequence[DataFile]], Iterable[pa.Table]]
"""Makes a partition's new rows from its present files: tables in the order they are to be written, sorted by key."""

Check = Callable[[Mapping[Partition, Change]], None]
"""Called right before a commit with everything that was built for it; raises to stop it."""


class CuratedTable:
    """One curated table in the lake."""

    def __init__(self, lake: Lake, name: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.schema = TABLES[name]
        self.file_schema = file_schema(name)
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
            raise self._trouble(error) from error
        return Snapshot(table, _files(table))

    def fetch(self, file: DataFile, work: Path) -> Path:
        """A data file, copied to this machine's disk."""
        local = local_file(self.name, work)
        self._lake.get_file(f"{self._root}/{file.path}", local)
        return local

    def read(self, files: Iterable[DataFile], columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of some files, whole and in memory; for small tables."""
        return read_files(self.name, (self._opened(file, columns) for file in files), columns)

    def _opened(self, file: DataFile, columns: Sequence[str] | None) -> Any:
        """A data file to read from: of a large one only what is asked for is fetched."""
        key = f"{self._root}/{file.path}"
        if columns is None or file.size <= _WHOLE_UP_TO:
            return pa.BufferReader(self._lake.read(key))
        return pa.PythonFile(self._lake.open(key, file.size), mode="r")

    def read_many(
        self, snapshot: Snapshot, partitions: Iterable[Partition], columns: Sequence[str]
    ) -> Iterator[tuple[Partition, pa.Table]]:
        """The rows of many partitions, one after the other, several being fetched at once."""
        wanted = list(partitions)
        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            tables = pool.map(lambda partition: self.read(snapshot.of(partition), columns), wanted)
            yield from zip(wanted, tables, strict=True)

    def of_each(
        self, files: Iterable[DataFile], columns: Sequence[str], what: Callable[[pa.Table], Made]
    ) -> Iterator[tuple[DataFile, Made]]:
        """What is made of the rows of each file, several being fetched at once: all of them need not fit into memory."""
        wanted = list(files)
        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            made = pool.map(lambda file: what(self.read([file], columns)), wanted)
            yield from zip(wanted, made, strict=True)

    # Writing.

    def making(self, build: Build, work: Path) -> Make:
        """What writes the rows that `build` gives for a partition as one file; for tables of moderate size."""
        return lambda present: {
            partition: write_file(self.name, build(partition, files), work) for partition, files in present.items()
        }

    def replace(
        self,
        partitions: Iterable[Partition],
        make: Make,
        *,
        metadata: Mapping[str, str],
        now: datetime,
        sources: int = 0,
        check: Check = lambda _: None,
    ) -> bool:
        """Replace whole partitions by what `make` makes of them, in one commit; partitions left out stay untouched.

        When another writer was ahead: if the touched partitions are as they were, commit again; otherwise make those
        that changed again. `sources`: how many microbatches a file is made from that holds all of a raw hour; it never
        takes the place of one that was made from more. Returns whether there was anything to commit.

        Raises ConflictError after PATIENCE_SECONDS, and when such a file is in place; what `check` raises; and
        LakeRefusedError if the table is not one of this release.
        """
        wanted = sorted(set(partitions))
        give_up = self._monotonic() + PATIENCE_SECONDS
        built: dict[Partition, Change] = {}
        while True:
            snapshot = self._open_to_write(give_up)
            missing: dict[Partition, tuple[DataFile, ...]] = {}
            for partition in wanted:
                present = snapshot.of(partition)
                known = built.get(partition)
                if known is not None and present == known.new:
                    built[partition] = Change(present, present)  # our commit came through, but its answer did not
                elif known is None or present != known.old:
                    self._check_not_outdated(partition, present, sources)
                    missing[partition] = present
            made = make(missing) if missing else {}
            for partition, present in missing.items():
                built[partition] = Change(present, self._placed(partition, made.get(partition, ()), present, sources))
            check(built)
            changed = {partition: change for partition, change in built.items() if change.new != change.old}
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

    def _check_not_outdated(self, partition: Partition, present: Sequence[DataFile], sources: int) -> None:
        if any(file.sources > sources for file in present):
            raise ConflictError(
                f"{self.name} {partition}: another run has used microbatches that came after this one began; "
                "run the hour again"
            )

    def _commit(
        self, snapshot: Snapshot, changed: Mapping[Partition, Change], metadata: Mapping[str, str], now: datetime
    ) -> None:
        """Raises CommitFailedError if another writer was ahead, or if it seems so."""
        moment = int(now.timestamp() * 1000)
        actions: list[AddAction | RemoveAction] = []
        for partition, change in changed.items():
            values: dict[str, str | None] = {"date": partition.date, "hour": str(partition.hour)}
            actions += [RemoveAction(file.path, True, moment, file.size, values) for file in change.old]
            actions += [AddAction(file.path, file.size, values, moment, True, file.stats) for file in change.new]
        try:
            snapshot.table.create_write_transaction(
                actions,
                mode="append",
                schema=self.schema,
                partition_by=PARTITIONED_BY,
                commit_properties=CommitProperties(custom_metadata=dict(metadata), max_commit_retries=0),
            )
        except CommitFailedError:
            raise
        except (DeltaError, OSError) as error:
            raise self._trouble(error) from error

    def _placed(
        self, partition: Partition, made: Sequence[LocalFile], present: tuple[DataFile, ...], sources: int
    ) -> tuple[DataFile, ...]:
        """The files as data files: stored, unless they are there already."""
        there = {file.content: file for file in present}
        with ThreadPoolExecutor(_WRITES_AT_ONCE) as pool:
            placed = pool.map(lambda file: there.get(file.content) or self._stored(partition, file, sources), made)
            return tuple(sorted(placed, key=lambda file: file.path))

    def _stored(self, partition: Partition, file: LocalFile, sources: int) -> DataFile:
        path = f"{partition.folder}/part-{file.content}-{sources}-{secrets.token_hex(4)}.parquet"
        self._lake.put_file(f"{self._root}/{path}", file.path)
        return DataFile(path, partition, file.path.stat().st_size, file.rows, file.stats)

    # Upkeep.

    def vacuum(self, grace: timedelta, *, dry_run: bool) -> list[str]:
        """The keys of the files that neither the newest version nor the grace needs, and of those that no version knows;
        deleted, unless it is a dry run. Also names files that are gone already.
        """
        table = self._opened_table()
        try:
            paths = table.vacuum(
                int(grace.total_seconds() // 3600), dry_run=dry_run, enforce_retention_duration=False, full=True
            )
        except (DeltaError, OSError) as error:
            raise self._trouble(error) from error
        return [f"{self._root}/{unquote(path)}" for path in paths]

    def shorten_log(self, *, with_checkpoint: bool) -> None:
        """Delete entries of the log that are older than its retention and that a checkpoint makes needless."""
        table = self._opened_table()
        try:
            if with_checkpoint:
                table.create_checkpoint()
            table.cleanup_metadata()
        except (DeltaError, OSError) as error:
            raise self._trouble(error) from error

    def _opened_table(self) -> DeltaTable:
        snapshot = self.open()
        if snapshot is None:
            raise LakeRefusedError(f"{self._lake.uri(self._root)}: there is no such table any more")
        return snapshot.table

    # The table itself.

    def _open_to_write(self, give_up: float) -> Snapshot:
        """The newest version, with all columns of this release; the table is made on first use.

        Two who make or widen it at once get the same one.
        """
        while True:
            snapshot = self.open()
            missing = [] if snapshot is None else self._missing_columns(snapshot.table)
            unset = {} if snapshot is None else self._unset_properties(snapshot.table)
            if snapshot is not None and not missing and not unset:
                return snapshot
            try:
                if snapshot is None:
                    self._create()
                elif missing:
                    snapshot.table.alter.add_columns(missing, commit_properties=_ONCE)
                else:
                    snapshot.table.alter.set_table_properties(unset, commit_properties=_ONCE)
            except (DeltaError, OSError) as error:  # most likely somebody else was first, which opening it again shows
                if not isinstance(error, DeltaError) or self._monotonic() > give_up:
                    raise self._trouble(error) from error

    def _create(self) -> None:
        DeltaTable.create(
            self._lake.uri(self._root),
            schema=self.schema,
            mode="error",
            partition_by=PARTITIONED_BY,
            name=self.name,
            description=(self.schema.metadata or {}).get(b"doc", b"").decode(),
            configuration=_properties(self.name),
            storage_options=self._lake.delta_options(),
            commit_properties=_ONCE,
        )

    def _unset_properties(self, table: DeltaTable) -> dict[str, str]:
        """Properties that a table of an older release lacks."""
        found = table.metadata().configuration
        return {name: value for name, value in _properties(self.name).items() if name not in found}

    def _missing_columns(self, table: DeltaTable) -> list[Any]:
        """The columns this release has and the table has not, whole or in part. Raises LakeRefusedError."""
        stored = _leaf_types(pa.schema(table.schema()))
        ours = _leaf_types(self.schema)
        unknown = sorted(stored.keys() - ours.keys())
        other = sorted(path for path in stored.keys() & ours.keys() if stored[path] != ours[path])
        if unknown:
            raise LakeRefusedError(
                f"{self._lake.uri(self._root)} has columns that this release does not know and would lose: "
                f"{', '.join(unknown)}; update Tweetlake, or drop them"
            )
        if other:
            raise LakeRefusedError(
                f"{self._lake.uri(self._root)} has columns of other types than this release: "
                + ", ".join(f"{path} ({stored[path]}, not {ours[path]})" for path in other)
                + "; move the table away and compact its hours again"
            )
        missing = {path.split(".")[0] for path in ours.keys() - stored.keys()}
        return [each for each in Schema.from_arrow(self.schema).fields if each.name in missing]

    def _trouble(self, error: Exception) -> LakeRefusedError | LakeUnreachableError:
        """What delta-rs raised, as what a caller has to know: does waiting help?

        boto3 is asked first, and raises if the trouble is the bucket, the credentials or the line: it says so better.
        """
        self._lake.days()
        said = " ".join(re.sub(r"\x1b\[\d*m|↳", " ", str(error)).split())
        refused = isinstance(error, DeltaProtocolError | SchemaMismatchError) or re.search(
            r"necessary privileges|Unauthenticated|AccessDenied|Forbidden|NoSuchBucket|\b40[13]\b", said
        )
        kind = LakeRefusedError if refused else LakeUnreachableError
        return kind(f"{self._lake.uri(self._root)}: {said}")


# --- the Delta log ---


def _properties(name: str) -> dict[str, str]:
    """Delta's properties of a table.

    Which columns have ranges must be said: readers through pyarrow take a range that is missing for one that no value
    is in, and find nothing (deltalake 1.6: `lang >= null`).
    """
    ranged = ranged_columns(name)
    statistics = {"dataSkippingStatsColumns": ",".join(ranged)} if ranged else {"dataSkippingNumIndexedCols": "0"}
    often = {"checkpointInterval": "20"}  # opening reads the commits since the last checkpoint
    return {f"delta.{key}": value for key, value in (often | statistics).items()}


def _files(table: DeltaTable) -> dict[Partition, tuple[DataFile, ...]]:
    found: dict[Partition, list[DataFile]] = {}
    actions = pa.table(table.get_add_actions(flatten=True))
    columns = ("path", "size_bytes", "num_records", "partition.date", "partition.hour", "min.raw_key", "max.raw_key")
    for row in actions.select([name for name in columns if name in actions.column_names]).to_pylist():
        partition = Partition(row["partition.date"], int(row["partition.hour"]))
        path = unquote(row["path"])  # the log writes it as a URL, and delta-rs makes one again of what we give it
        first, last = row.get("min.raw_key"), row.get("max.raw_key")
        found.setdefault(partition, []).append(
            DataFile(
                path,
                partition,
                int(row["size_bytes"]),
                int(row.get("num_records") or 0),
                raw_keys=None if first is None or last is None else (first, last),
            )
        )
    return {partition: tuple(sorted(files, key=lambda file: file.path)) for partition, files in found.items()}


def _leaf_types(schema: pa.Schema) -> dict[str, str]:
    """Every column that holds values, nested ones too, by its path: `urls.images.width`."""
    found: dict[str, str] = {}

    def look(path: str, type_: pa.DataType) -> None:
        if pa.types.is_list(type_) or pa.types.is_large_list(type_):
            look(path, type_.value_type)
        elif pa.types.is_struct(type_):
            for each in type_:
                look(f"{path}.{each.name}", each.type)
        else:
            found[path] = str(type_).removeprefix("large_")

    for each in schema:
        look(each.name, each.type)
    return found
