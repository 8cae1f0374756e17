"""Rows on their way from pages to partitions, kept on disk by table and bucket, so that memory does not grow with an hour."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from compaction_dags.compaction.tables import Partition
from schemas import snowflake
from schemas.keys import RawHour

BUCKETS_PER_HOUR = 12
"""Tweets of one event hour are kept and merged in id ranges of five minutes: at 500,000 tweets an hour some 40,000 rows
(35 MB) at a time."""
_BUCKET_MS = 3_600_000 // BUCKETS_PER_HOUR


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """A range of tweet ids: five minutes of creation time."""

    number: int

    @property
    def partition(self) -> Partition:
        """The event hour it lies in."""
        milliseconds = self.number * _BUCKET_MS
        return partition_of(RawHour.of(datetime.fromtimestamp(milliseconds / 1000, UTC)))


def partition_of(hour: RawHour) -> Partition:
    return Partition(hour.date.isoformat(), hour.start.hour)


def buckets_of(partition: Partition) -> Iterator[Bucket]:
    """Every bucket of an event hour, in order."""
    first = int(RawHour.parse(str(partition)).start.timestamp() * 1000) // _BUCKET_MS
    return (Bucket(first + offset) for offset in range(BUCKETS_PER_HOUR))


def _numbers(ids: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.int64]:
    """The bucket number of every id."""
    found: npt.NDArray[np.int64] = ((ids.to_numpy() >> snowflake.SHIFT) + snowflake.EPOCH_MS) // _BUCKET_MS
    return found


class Spill:
    """Arrow IPC files under one folder: `tweets` by bucket, the other tables whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._tweets: dict[Bucket, list[Path]] = {}
        self._others: dict[str, list[Path]] = {}

    def add_tweets(self, rows: pa.Table) -> None:
        """Keep decoded tweets in their buckets."""
        if rows.num_rows == 0:
            return
        numbers = _numbers(rows["id"])
        order = np.argsort(numbers, kind="stable")
        ordered, numbers = rows.take(pa.array(order)), numbers[order]
        starts = np.flatnonzero(np.r_[True, numbers[1:] != numbers[:-1]])
        for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True):
            part = ordered.slice(int(start), int(end - start))
            self._tweets.setdefault(Bucket(int(numbers[start])), []).append(self._write(part))

    def add(self, table: str, rows: pa.Table) -> None:
        """Keep rows of a table that is replaced whole."""
        if rows.num_rows:
            self._others.setdefault(table, []).append(self._write(rows))

    def tweets(self, bucket: Bucket) -> pa.Table | None:
        """The tweets of a bucket, unsorted and with duplicates; None if there are none."""
        return _read(self._tweets.get(bucket, []))

    def partitions(self) -> list[Partition]:
        """The event hours that got tweets, in order."""
        return sorted({bucket.partition for bucket in self._tweets})

    def rows(self, table: str) -> pa.Table | None:
        """Everything kept of a table; None if nothing was."""
        return _read(self._others.get(table, []))

    def _write(self, rows: pa.Table) -> Path:
        self._count += 1
        path = self._folder / f"{self._count:06d}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_table(rows.combine_chunks())
        return path


def _read(paths: list[Path]) -> pa.Table | None:
    if not paths:
        return None
    return pa.concat_tables(pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in paths)


class RowsById:
    """A curated file of tweets, read by buckets in order: each row group is read once, and held while it is needed."""

    def __init__(self, file: pq.ParquetFile) -> None:
        self._file = file
        self._ranges = [_number_range(file, group) for group in range(file.num_row_groups)]
        self._held: dict[int, tuple[pa.Table, npt.NDArray[np.int64]]] = {}

    def of(self, bucket: Bucket) -> pa.Table:
        """The rows whose id lies in the bucket."""
        wanted = [group for group, (least, most) in enumerate(self._ranges) if least <= bucket.number <= most]
        for group in [*self._held]:
            if group not in wanted:
                del self._held[group]
        found = [self._file.schema_arrow.empty_table()]
        for group in wanted:
            if group not in self._held:
                rows = self._file.read_row_group(group)
                self._held[group] = (rows, _numbers(rows["id"]))
            rows, numbers = self._held[group]
            start, end = np.searchsorted(numbers, [bucket.number, bucket.number + 1])  # rows are sorted by id
            found.append(rows.slice(int(start), int(end - start)))
        return pa.concat_tables(found)


def _number_range(file: pq.ParquetFile, group: int) -> tuple[int, int]:
    column = file.schema_arrow.get_field_index("id")
    statistics = file.metadata.row_group(group).column(column).statistics
    least, most = _numbers(pa.array([statistics.min, statistics.max], pa.int64()))
    return int(least), int(most)
