"""Compacting one raw hour, and all that are stale: read, decode, spill, transform, merge, check, commit.

Always the whole raw hour, so that doing it again is the same. `tweets` is committed first and `ingested_files` last: a
crash in between only means that the hour is still stale and is done again, with the same result.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa

from compaction_dags.compaction import plan, transform
from compaction_dags.compaction.checks import Counts, HourSummary, check_partition, check_summary
from compaction_dags.compaction.decode import RawPage, Reject, decode_pages, page_batches
from compaction_dags.compaction.errors import RawMissingError
from compaction_dags.compaction.lake import Lake, RawContent, RawObject
from compaction_dags.compaction.merge import latest_rows, merged_tweets
from compaction_dags.compaction.raw_reader import Microbatch, read_microbatch
from compaction_dags.compaction.spill import RowsById, Spill, buckets_of, partition_of
from compaction_dags.compaction.tables import Build, Check, CuratedTable, DataFile, Partition
from schemas.curated import DECODED, KEYS
from schemas.keys import RawHour
from schemas.settings import Settings

SIDE_TABLES = tuple(name for name in DECODED if name != "tweets")
"""Replaced whole by raw hour."""

Progress = Callable[[str, int, int], None]
"""Called with the raw hour, the microbatches read so far and how many there are."""


def plan_hours(
    settings: Settings,
    *,
    include_open: bool,
    hours: Sequence[str] | None = None,
    now: datetime | None = None,
    full: bool = False,
) -> list[str]:
    """The raw hours to compact, oldest first: those given, or all that are stale.

    Raises RawMissingError when there is nothing else to do but an hour whose raw is gone; otherwise such an hour is left
    for `compact_hour` to refuse, so that it fails by itself and does not hold up the others.
    """
    if hours:
        return sorted({str(RawHour.parse(hour)) for hour in hours})
    lake = Lake(settings.lake)
    with tempfile.TemporaryDirectory(prefix="tweetlake-") as work:
        found = plan.find_stale(
            lake,
            CuratedTable(lake, "ingested_files"),
            Path(work),
            now=now or datetime.now(UTC),
            include_open=include_open,
            full=full,
        )
    if found.refused and not found.hours:
        hour, missing = next(iter(found.refused.items()))
        raise RawMissingError(plan.missing_words(hour, missing))
    return [str(hour) for hour in sorted({*found.hours, *found.refused})]


def compact_hour(
    settings: Settings, hour: str, progress: Progress = lambda *_: None, now: datetime | None = None
) -> HourSummary:
    """Compact one raw hour, all its microbatches, into every curated table. Doing it again changes nothing.

    Raises the errors of `errors.py`; whatever it raises, tables hold a whole version and the hour can be done again.
    """
    with tempfile.TemporaryDirectory(prefix="tweetlake-") as work:
        return _Hour(settings, RawHour.parse(hour), Path(work), now or datetime.now(UTC)).run(progress)


def compact(
    settings: Settings, hours: Iterable[str], progress: Progress = lambda *_: None, now: datetime | None = None
) -> HourSummary:
    """Compact hours one after the other. The sum of what was done."""
    total = HourSummary()
    for hour in hours:
        total += compact_hour(settings, hour, progress, now)
    return total


@dataclass(slots=True)
class _File:
    """What is noted of one microbatch, for its row in `ingested_files`."""

    found: RawObject
    sha256: str = ""
    sequence: int = -1
    spool_id: str = ""
    records: int = 0
    pages: int = 0
    rows: int = 0
    filtered: int = 0
    rejects: int = 0


class _Hour:
    """One raw hour on its way through."""

    def __init__(self, settings: Settings, hour: RawHour, work: Path, now: datetime) -> None:
        self._hour = hour
        self._now = now
        self._work = work
        self._lake = Lake(settings.lake)
        self._transform = transform.load(settings.transform.function)
        self._partition = partition_of(hour)
        spill = work / "spill"
        spill.mkdir()
        self._spill = Spill(spill)
        self._files: dict[str, _File] = {}
        self._rejects: list[Reject] = []
        self._rows_in = 0
        self._counts = Counts()
        self._filtered: dict[Partition, Counter[str]] = {}

    def run(self, progress: Progress) -> HourSummary:
        """The story of an hour."""
        listed = self._lake.raw_of_hour(self._hour)
        plan.check_nothing_missing(self._hour, listed, CuratedTable(self._lake, "ingested_files"), self._work)
        self._decode(listed, progress)
        self._replace("tweets", self._spill.partitions(), self._merge_tweets, self._check_tweets)
        summary = self._summary()
        for name in SIDE_TABLES:
            self._replace(name, [self._partition], self._side_rows(name))
        self._replace("rejects", [self._partition], self._reject_rows)
        self._replace("ingested_files", [self._partition], self._ingested_rows)
        return summary

    # Reading.

    def _decode(self, listed: Sequence[RawObject], progress: Progress) -> None:
        """Every page of the hour, a bounded number of bytes at a time, to rows on disk."""
        for batch in page_batches(self._pages(listed, progress)):
            decoded = decode_pages(batch)
            tweets = decoded.tables["tweets"]
            self._rows_in += tweets.num_rows
            for key, count in _counted(tweets["raw_key"]).items():
                self._files[key].rows += count
            self._spill.add_tweets(tweets)
            for name in SIDE_TABLES:
                self._spill.add(name, latest_rows(decoded.tables[name], KEYS[name]))
            self._rejects += decoded.rejects
        for reject in self._rejects:
            self._files[reject.raw_key].rejects += 1

    def _pages(self, listed: Sequence[RawObject], progress: Progress) -> Iterator[RawPage]:
        """The pages of the microbatches, the next one being fetched while this one is decoded."""
        with ThreadPoolExecutor(1) as ahead:
            coming = [ahead.submit(self._lake.get, found) for found in listed[:1]]
            for number, found in enumerate(listed):
                content: RawContent = coming.pop().result()
                coming = [ahead.submit(self._lake.get, later) for later in listed[number + 1 : number + 2]]
                noted = self._files[found.key] = _File(found)
                microbatch = read_microbatch(content.data, found.key, content.sha256, content.records)
                for page in microbatch.pages:
                    noted.pages += 1
                    yield page
                self._note(noted, microbatch)
                progress(str(self._hour), number + 1, len(listed))

    def _note(self, noted: _File, microbatch: Microbatch) -> None:
        noted.sha256, noted.records = microbatch.sha256, microbatch.records
        noted.sequence, noted.spool_id = microbatch.sequence, microbatch.spool_id
        self._rejects += microbatch.rejects

    # Merging.

    def _merge_tweets(self, partition: Partition, present: Sequence[DataFile]) -> Iterator[pa.Table]:
        """The tweets of one event hour: those in the table and the new ones, five minutes of ids at a time."""
        table = CuratedTable(self._lake, "tweets")
        files = [RowsById(table.fetch(file, self._work)) for file in present]
        self._counts.distinct[partition] = self._counts.kept[partition] = 0
        self._filtered[partition] = Counter()
        for bucket in buckets_of(partition):
            old = [rows for file in files if (rows := file.of(bucket)).num_rows]
            spilled = self._spill.tweets(bucket)
            new = [] if spilled is None else [self._new_tweets(partition, spilled, table.file_schema)]
            if old and new:
                yield merged_tweets(pa.concat_tables([*old, *new]))
            else:
                yield from [*old, *new]

    def _new_tweets(self, partition: Partition, spilled: pa.Table, schema: pa.Schema) -> pa.Table:
        """The new tweets of a bucket, one row an id, as the user's transform leaves them."""
        distinct = merged_tweets(spilled.select(schema.names).cast(schema))
        kept = self._transform.apply(distinct) if self._transform else distinct
        self._counts.distinct[partition] += distinct.num_rows
        self._counts.kept[partition] += kept.num_rows
        dropped = _counted(distinct["raw_key"])
        dropped.subtract(_counted(kept["raw_key"]))
        self._filtered[partition].update(dropped)
        return kept.sort_by("id")

    def _check_tweets(self, partition: Partition, before: int, after: int) -> None:
        check_partition("tweets", partition, before=before, after=after, new=self._counts.kept[partition])

    def _summary(self) -> HourSummary:
        self._counts.rows_in = self._rows_in
        for counted in self._filtered.values():
            for key, count in counted.items():
                self._files[key].filtered += count
        summary = HourSummary(
            raw_hours=1,
            microbatches=len(self._files),
            pages=sum(noted.pages for noted in self._files.values()),
            rows_in=self._rows_in,
            tweets_written=sum(self._counts.kept.values()),
            duplicates=self._counts.duplicates,
            filtered=self._counts.filtered,
            rejected=len(self._rejects),
        )
        check_summary(summary)
        return summary

    # The other tables, replaced whole.

    def _side_rows(self, name: str) -> Build:
        def build(_partition: Partition, _present: Sequence[DataFile]) -> list[pa.Table]:
            rows = self._spill.rows(name)
            return [] if rows is None else [latest_rows(rows, KEYS[name])]

        return build

    def _reject_rows(self, _partition: Partition, _present: Sequence[DataFile]) -> list[pa.Table]:
        schema = CuratedTable(self._lake, "rejects").file_schema
        columns = {
            "raw_key": [reject.raw_key for reject in self._rejects],
            "record_index": [reject.record_index for reject in self._rejects],
            "query": [reject.query for reject in self._rejects],
            "tweet_id": [reject.tweet_id for reject in self._rejects],
            "reason": [reject.reason for reject in self._rejects],
            "detail": [reject.detail for reject in self._rejects],
            "body": [reject.body for reject in self._rejects],
            "fetched_at": [reject.received_at_us for reject in self._rejects],
        }
        return [pa.table([pa.array(columns[column.name], column.type) for column in schema], schema=schema)]

    def _ingested_rows(self, _partition: Partition, present: Sequence[DataFile]) -> list[pa.Table]:
        """A row a microbatch. What is there already stays as it is if only the time of reading would change."""
        table = CuratedTable(self._lake, "ingested_files")
        name, digest = (self._transform.name, self._transform.version) if self._transform else (None, None)
        rows = [
            {
                "raw_key": key,
                "sequence": noted.sequence,
                "spool_id": noted.spool_id,
                "bytes": noted.found.size,
                "etag": noted.found.etag,
                "sha256": noted.sha256,
                "records": noted.records,
                "pages": noted.pages,
                "rows": noted.rows,
                "filtered": noted.filtered,
                "rejects": noted.rejects,
                "transform": name,
                "transform_version": digest,
                "code_version": version("tweetlake"),
                "ingested_at": self._now,
            }
            for key, noted in sorted(self._files.items())
        ]
        new = pa.Table.from_pylist(rows, schema=table.file_schema)
        old = [table.fetch(file, self._work).read().cast(table.file_schema) for file in present]
        if len(old) == 1 and old[0].drop_columns("ingested_at").equals(new.drop_columns("ingested_at")):
            return old
        return [new]

    def _replace(
        self, name: str, partitions: Sequence[Partition], build: Build, check: Check = lambda *_: None
    ) -> None:
        metadata = {"tweetlake.raw_hour": str(self._hour), "tweetlake.version": version("tweetlake")}
        CuratedTable(self._lake, name).replace(partitions, build, self._work, metadata, self._now, check)


def _counted(column: pa.ChunkedArray) -> Counter[str]:
    counts = column.value_counts()
    pairs = zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)
    return Counter({str(value): count for value, count in pairs})
