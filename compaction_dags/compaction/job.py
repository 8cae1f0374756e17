"""Compacting one raw hour, and all that are stale: read, decode, spill, transform, merge, check, commit.

Always the whole raw hour, so that doing it again is the same. `tweets` is committed first and `ingested_files` last: a
crash in between only means that the hour is still stale and is done again, with the same result.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from compaction_dags.compaction import plan, transform
from compaction_dags.compaction.checks import HourSummary, Merged, check_event_hour, check_summary
from compaction_dags.compaction.decode import RawPage, Reject, decode_pages, page_batches
from compaction_dags.compaction.errors import (
    AccountingError,
    CompactionError,
    ConflictError,
    RawMissingError,
    UnknownFormatError,
)
from compaction_dags.compaction.lake import Lake, RawContent, RawObject
from compaction_dags.compaction.merge import latest_rows, merged_tweets
from compaction_dags.compaction.raw_reader import Microbatch, read_microbatch
from compaction_dags.compaction.spill import Spill, Stored, cut, event_hours, ids_of, partition_of, together
from compaction_dags.compaction.tables import Build, Change, CuratedTable, DataFile, Partition, file_schema
from schemas.curated import DECODED, KEYS, TABLES
from schemas.keys import RawHour
from schemas.settings import Settings

SIDE_TABLES = tuple(name for name in DECODED if name != "tweets")
"""Replaced whole by raw hour."""

_OF_ONE_HOUR = (AccountingError, ConflictError, RawMissingError, UnknownFormatError)

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

    An hour whose raw is gone is among them, for `compact_hour` to refuse: it fails by itself, and every time.
    """
    if hours:
        return sorted({str(RawHour.parse(hour)) for hour in hours})
    lake = Lake(settings.lake)
    found = plan.find_stale(
        lake,
        CuratedTable(lake, "ingested_files"),
        now=now or datetime.now(UTC),
        include_open=include_open,
        full=full,
    )
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
    settings: Settings,
    hours: Iterable[str],
    progress: Progress = lambda *_: None,
    now: datetime | None = None,
    failed: Callable[[str, CompactionError], None] | None = None,
) -> HourSummary:
    """Compact hours one after the other. The sum of what was done.

    An hour that fails for a reason of its own does not hold up the others: `failed` is called with it and its error;
    without `failed` the first such error is raised at the end. Every other error ends it at once.
    """
    total = HourSummary()
    errors: list[CompactionError] = []
    for hour in hours:
        try:
            total += compact_hour(settings, hour, progress, now)
        except _OF_ONE_HOUR as error:
            errors.append(error)
            if failed is not None:
                failed(hour, error)
    if errors and failed is None:
        raise errors[0]
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
    rejects: int = 0


class _Hour:
    """One raw hour on its way through."""

    def __init__(self, settings: Settings, hour: RawHour, work: Path, now: datetime) -> None:
        self._hour = hour
        self._now = now
        self._work = work
        self._lake = Lake(settings.lake)
        self._tables = {name: CuratedTable(self._lake, name) for name in TABLES}
        self._transform = transform.load(settings.transform.function)
        spill = work / "spill"
        spill.mkdir()
        self._spill = Spill(spill)
        self._files: dict[str, _File] = {}
        self._event_hours: set[Partition] = set()
        self._merged: dict[Partition, Merged] = {}

    def run(self, progress: Progress) -> HourSummary:
        """The story of an hour."""
        listed = plan.list_hour(self._lake, self._hour, self._tables["ingested_files"])
        self._decode(listed, progress)
        self._merge_tweets()
        for name in SIDE_TABLES:
            self._replace_whole(name, self._side_rows(name))
        self._replace_whole("rejects", lambda *_: self._spill.unsorted("rejects"))
        self._replace_whole("ingested_files", self._ingested_rows)
        return self._summary()

    # Reading.

    def _decode(self, listed: Sequence[RawObject], progress: Progress) -> None:
        """Every page of the hour, a bounded number of bytes at a time, to rows on disk."""
        for batch in page_batches(self._pages(listed, progress)):
            decoded = decode_pages(batch)
            tweets = decoded.tables["tweets"]
            for key, count in _counted(tweets["raw_key"]).items():
                self._files[key].rows += count
            self._event_hours |= event_hours(tweets["id"])
            self._spill.add("tweets", KEYS["tweets"], tweets)
            for name in SIDE_TABLES:
                self._spill.add(name, KEYS[name], latest_rows(decoded.tables[name], KEYS[name]))
            self._reject(decoded.rejects)

    def _pages(self, listed: Sequence[RawObject], progress: Progress) -> Iterator[RawPage]:
        """The pages of the microbatches, the next one being fetched while this one is decoded."""
        with ThreadPoolExecutor(1) as ahead:
            coming = [ahead.submit(self._lake.get, found) for found in listed[:1]]
            for number, found in enumerate(listed, start=1):
                content: RawContent = coming.pop().result()
                coming = [ahead.submit(self._lake.get, later) for later in listed[number : number + 1]]
                noted = self._files[found.key] = _File(found)
                microbatch = read_microbatch(content.data, found.key, content.sha256, content.records)
                for page in microbatch.pages:
                    noted.pages += 1
                    yield page
                self._note(noted, microbatch)
                progress(str(self._hour), number, len(listed))

    def _note(self, noted: _File, microbatch: Microbatch) -> None:
        noted.sha256, noted.records = microbatch.sha256, microbatch.records
        noted.sequence, noted.spool_id = microbatch.sequence, microbatch.spool_id
        self._reject(microbatch.rejects)

    def _reject(self, rejects: Sequence[Reject]) -> None:
        for reject in rejects:
            self._files[reject.raw_key].rejects += 1
        if rejects:
            rows = [asdict(reject) | {"fetched_at": reject.received_at_us} for reject in rejects]
            self._spill.add_unsorted("rejects", pa.Table.from_pylist(rows, schema=file_schema("rejects")))

    # Tweets: by event hour, merged with what is there.

    def _merge_tweets(self) -> None:
        self._tables["tweets"].replace(
            self._event_hours,
            self._merged_hour,
            self._work,
            metadata=self._metadata(),
            now=self._now,
            check=self._check_tweets,
        )

    def _merged_hour(self, event_hour: Partition, present: Sequence[DataFile]) -> Iterator[pa.Table]:
        """The tweets of one event hour: those in the table and the new ones, a range of ids at a time."""
        counts = self._merged[event_hour] = Merged()
        table, key = self._tables["tweets"], KEYS["tweets"]
        stored = [Stored(table.fetch(file, self._work), "tweets", key) for file in present]
        runs = self._spill.runs("tweets")
        for ids in cut([*stored, *runs], ids_of(event_hour)):
            new = self._new_tweets(together(runs, ids, table.file_schema), counts)
            old = together(stored, ids, table.file_schema)
            counts.together += _distinct(new[key], old[key])
            yield merged_tweets(pa.concat_tables([new, old])) if old.num_rows else new

    def _new_tweets(self, read: pa.Table, counts: Merged) -> pa.Table:
        """New tweets, one row an id, as the user's transform leaves them."""
        distinct = merged_tweets(read)
        kept = self._transform.apply(distinct) if self._transform else distinct
        counts.read += read.num_rows
        counts.ids += _distinct(read[KEYS["tweets"]])
        counts.merged += distinct.num_rows
        counts.kept += kept.num_rows
        counts.filtered += _counted(distinct["raw_key"]) - _counted(kept["raw_key"])
        return kept

    def _check_tweets(self, changes: Mapping[Partition, Change]) -> None:
        for event_hour, change in changes.items():
            check_event_hour(event_hour, change, self._merged[event_hour])
        check_summary(self._summary())

    def _summary(self) -> HourSummary:
        merged, files = self._merged.values(), self._files.values()
        return HourSummary(
            raw_hours=1,
            microbatches=len(files),
            pages=sum(noted.pages for noted in files),
            rows_in=sum(noted.rows for noted in files),
            tweets_written=sum(counts.kept for counts in merged),
            duplicates=sum(counts.read - counts.ids for counts in merged),
            filtered=sum(counts.merged - counts.kept for counts in merged),
            rejected=sum(noted.rejects for noted in files),
        )

    # The other tables: by raw hour, replaced whole.

    def _replace_whole(self, name: str, build: Build) -> None:
        self._tables[name].replace(
            [partition_of(self._hour)],
            build,
            self._work,
            metadata=self._metadata(),
            now=self._now,
            sources=len(self._files),
        )

    def _side_rows(self, name: str) -> Build:
        def build(_partition: Partition, _present: Sequence[DataFile]) -> Iterator[pa.Table]:
            runs = self._spill.runs(name)
            for keys in cut(runs):
                yield latest_rows(together(runs, keys, file_schema(name)), KEYS[name])

        return build

    def _ingested_rows(self, _partition: Partition, present: Sequence[DataFile]) -> list[pa.Table]:
        """A row a microbatch. What is there already stays as it is if only the time of reading would change."""
        table = self._tables["ingested_files"]
        name, digest = (self._transform.name, self._transform.version) if self._transform else (None, None)
        filtered = sum((counts.filtered for counts in self._merged.values()), Counter[str]())
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
                "filtered": filtered[key],
                "rejects": noted.rejects,
                "transform": name,
                "transform_version": digest,
                "code_version": version("tweetlake"),
                "ingested_at": self._now,
            }
            for key, noted in sorted(self._files.items())
        ]
        new = pa.Table.from_pylist(rows, schema=table.file_schema)
        old = table.read(present)
        return [old if old.drop_columns("ingested_at").equals(new.drop_columns("ingested_at")) else new]

    def _metadata(self) -> dict[str, str]:
        """What a commit says of itself in the Delta log."""
        return {"tweetlake.raw_hour": str(self._hour), "tweetlake.version": version("tweetlake")}


def _distinct(*columns: pa.ChunkedArray) -> int:
    chunks = [chunk for column in columns for chunk in column.chunks]
    return int(pc.count_distinct(pa.chunked_array(chunks, pa.int64())).as_py())


def _counted(column: pa.ChunkedArray) -> Counter[str]:
    counts = column.value_counts()
    return Counter(dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)))
