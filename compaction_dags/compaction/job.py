"""Compacting one raw hour, and all that are stale: read, decode, spill, transform, merge, check, commit.

Always the whole raw hour, so that doing it again is the same. `tweets` is committed first and `ingested_files` last: a
crash in between only means that the hour is still stale and is done again, with the same result.
"""

import itertools
import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from compaction_dags.compaction import coverage, plan, transform
from compaction_dags.compaction.checks import HourSummary, Merged, check_event_hour, check_summary
from compaction_dags.compaction.completeness import Ledger, News
from compaction_dags.compaction.crew import Crew
from compaction_dags.compaction.differences import Rebuilding
from compaction_dags.compaction.errors import (
    AccountingError,
    CompactionError,
    ConflictError,
    HelperLostError,
    RawMissingError,
    UnexpectedError,
    UnknownFormatError,
)
from compaction_dags.compaction.lake import Lake, RawObject
from compaction_dags.compaction.memory import keep_for_reuse
from compaction_dags.compaction.parquet import LocalFile
from compaction_dags.compaction.spill import KeyRange, SortedRows, ids_of, read_unsorted, shares, stored
from compaction_dags.compaction.tables import (
    Build,
    Change,
    Check,
    CuratedTable,
    DataFile,
    Make,
    Partition,
    Present,
)
from compaction_dags.compaction.worker import SIDE_TABLES, SideRows, StepRead, TweetsShare, Worker, Written
from schemas.curated import TABLES
from schemas.keys import RawHour
from schemas.settings import Settings

log = logging.getLogger("tweetlake.compaction")

ROWS_PER_FILE = 131_072
"""Tweets of a file, eight row groups: about 18 MB. An hour with more has several files, which processes write at once."""
_BYTES_PER_STEP: Final = 2_000_000
_BYTES_PER_PROCESS: Final = 12_000_000
"""Raw that makes it worth to start one more process, which takes a second of CPU: about three seconds of work."""
_TABLES_AT_ONCE: Final = 4
_HOURS_BACK: Final = 72
"""How far back it is looked for a microbatch without unknown keys."""
_MOST_PROCESSES: Final = 2
"""Unless the settings ask for more: a machine has other things to do, and memory grows with them."""
_OF_ONE_HOUR = (AccountingError, ConflictError, HelperLostError, RawMissingError, UnknownFormatError)

REBUILT = ("tweets", *SIDE_TABLES, "rejects")
"""What a rebuild compares: the tables whose rows pages alone decide. The others tell of the run, and of the time since."""

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
    return [str(hour) for hour in found.waiting]


def compact_hour(
    settings: Settings,
    hour: str,
    progress: Progress = lambda *_: None,
    now: datetime | None = None,
    rebuilding: Rebuilding | None = None,
) -> HourSummary:
    """Compact one raw hour, all its microbatches, into every curated table. Doing it again changes nothing.

    `rebuilding`: rows of this raw hour that are not given any more are removed, and what differs is noted there.

    Raises the errors of `errors.py`; whatever it raises, tables hold a whole version and the hour can be done again.
    """
    keep_for_reuse()
    with tempfile.TemporaryDirectory(prefix="tweetlake-") as work:
        return _Hour(settings, RawHour.parse(hour), Path(work), now or datetime.now(UTC), rebuilding).run(progress)


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

    def note(hour: str, error: CompactionError) -> None:
        errors.append(error)
        if failed is not None:
            failed(hour, error)

    for hour in hours:
        try:
            total += compact_hour(settings, hour, progress, now)
        except _OF_ONE_HOUR as error:
            note(hour, error)
        except (CompactionError, OSError):
            raise
        except Exception as error:
            log.exception("%s: unexpected", hour)
            note(hour, UnexpectedError(f"raw hour {hour}: {error!r}; this is a bug, please report it"))
    if errors and failed is None:
        raise errors[0]
    return total


class _Hour:
    """One raw hour on its way through."""

    def __init__(
        self, settings: Settings, hour: RawHour, work: Path, now: datetime, rebuilding: Rebuilding | None
    ) -> None:
        self._rebuilding = rebuilding
        self._settings = settings
        self._hour = hour
        self._now = now
        self._work = work
        self._lake = Lake(settings.lake)
        self._tables = {name: CuratedTable(self._lake, name) for name in TABLES}
        self._transform = transform.load(settings.transform.function)
        self._read = StepRead()
        self._event_hours: set[Partition] = set()
        self._runs: dict[str, list[SortedRows]] = {}
        self._sides: dict[str, list[LocalFile]] = {}
        self._merged: dict[Partition, Merged] = {}
        self._is_closed = False
        self._accounting: dict[str, str] = {}

    def run(self, progress: Progress) -> HourSummary:
        """The story of an hour."""
        closed = plan.closed_spools(self._lake, self._hour)
        listed = plan.list_hour(self._lake, self._hour, self._tables["ingested_files"])
        self._is_closed = plan.is_closed(listed, closed)
        with self._crew(listed) as crew:
            self._decode(crew, listed, progress)
            if self._rebuilding is not None:
                self._prepare_rebuild()
            self._merge_tweets(crew)
            if not self._sides:
                self._write(crew, [])
        summary = self._summary()
        self._accounting = {"tweetlake.summary": json.dumps(summary.as_dict())}
        self._replace_the_rest()
        if self._tells_of_the_run:
            self._replace_whole("ingested_files", self._ingested_rows)
        self._tell_unknown_keys(summary)
        return summary

    def _crew(self, listed: Sequence[RawObject]) -> Crew[Worker]:
        """As many processes as are worth it."""
        settings = self._settings
        own = Worker(self._lake, self._transform, self._work / "0")
        others = range(1, processes(settings.compaction.processes, sum(found.size for found in listed)))
        return Crew(
            own,
            [
                partial(Worker.made, settings.lake, settings.transform.function, self._work / str(number))
                for number in others
            ],
        )

    # Reading.

    def _decode(self, crew: Crew[Worker], listed: Sequence[RawObject], progress: Progress) -> None:
        """Every page of the hour to rows on disk, a few microbatches at a time."""
        done = itertools.count(1)

        def tell(step: StepRead) -> None:
            for _ in step.microbatches:
                progress(str(self._hour), next(done), len(listed))

        for step in crew.map(Worker.read, list(steps(listed)), tell):
            self._read += step
        self._event_hours |= self._read.event_hours
        for runs in crew.everywhere(Worker.runs):
            for name, found in runs.items():
                self._runs.setdefault(name, []).extend(found)

    # Tweets: by event hour, merged with what is there.

    def _merge_tweets(self, crew: Crew[Worker]) -> None:
        self._put("tweets", self._event_hours, lambda present: self._tweets(crew, present), check=self._check_tweets)

    def _tweets(self, crew: Crew[Worker], present: Present) -> dict[Partition, list[LocalFile]]:
        """The tweets of these event hours: those in the table and the new ones, divided into files of some size."""
        wanted = [(hour, share) for hour, files in present.items() for share in self._shares(hour, files)]
        made: dict[Partition, list[LocalFile]] = {hour: [] for hour in present}
        self._merged |= {hour: Merged() for hour in present}
        for (hour, _), (files, counts) in zip(wanted, self._write(crew, [share for _, share in wanted]), strict=True):
            made[hour] += files
            self._merged[hour] += counts
        return made

    def _write(self, crew: Crew[Worker], shares: Sequence[TweetsShare]) -> list[Written]:
        """The files of tweets. The first time those of the side tables too: last, as they are short and whoever has
        written fewer tweets is free for them.
        """
        sides = [] if self._sides else [SideRows(name, tuple(self._runs[name])) for name in SIDE_TABLES]
        tasks: list[TweetsShare | SideRows] = [*shares, *sides]
        written = crew.map(Worker.write, tasks)
        self._sides |= {side.table: files for side, (files, _) in zip(sides, written[len(shares) :], strict=True)}
        return written[: len(shares)]

    def _shares(self, event_hour: Partition, present: Sequence[DataFile]) -> list[TweetsShare]:
        within = ids_of(event_hour)
        new = [run for run in self._runs["tweets"] if run.overlaps(within)]
        old = [stored(self._tables["tweets"].fetch(file, self._work), "tweets") for file in present]
        rebuilt = frozenset(noted.found.key for noted in self._read.microbatches) if self._rebuilding else frozenset()
        return [
            TweetsShare(ids, _holding(ids, new), _holding(ids, old), rebuilt)
            for ids in shares([*old, *new], within, ROWS_PER_FILE)
        ]

    def _check_tweets(self, changes: Mapping[Partition, Change]) -> None:
        for event_hour, change in changes.items():
            check_event_hour(event_hour, change, self._merged[event_hour])
        check_summary(self._summary())

    def _summary(self) -> HourSummary:
        merged, files = self._merged.values(), self._read.microbatches
        return HourSummary(
            raw_hours=1,
            microbatches=len(files),
            pages=sum(noted.pages for noted in files),
            rows_in=sum(noted.rows for noted in files),
            tweets_written=sum(counts.kept for counts in merged),
            duplicates=sum(counts.read - counts.ids for counts in merged),
            filtered=sum(counts.merged - counts.kept for counts in merged),
            rejected=sum(noted.rejects for noted in files),
            unknown_keys=sum((noted.unknown_keys for noted in files), Counter[str]()),
            misfits=self._read.misfits,
        )

    # The other tables: by raw hour, replaced whole.

    def _replace_the_rest(self) -> None:
        """Every table that neither comes first nor last. Replacing one is mostly waiting for S3, so several are at once."""
        every: list[Callable[[], object]] = [partial(self._replace_side, name) for name in SIDE_TABLES]
        every.append(partial(self._replace_whole, "rejects", lambda *_: map(read_unsorted, self._read.rejects)))
        if self._tells_of_the_run:
            every.append(lambda: self._tell_completeness(self._tell_coverage()))
        at_once = _TABLES_AT_ONCE if self._rebuilding is None else 1  # comparing holds a table's rows in memory
        with ThreadPoolExecutor(at_once) as threads:
            for replaced in [threads.submit(replace) for replace in every]:
                replaced.result()

    @property
    def _tells_of_the_run(self) -> bool:
        return self._rebuilding is None or not self._rebuilding.check_only

    def _replace_side(self, name: str) -> None:
        self._replace(name, lambda present: dict.fromkeys(present, self._sides[name]))

    def _replace_whole(self, name: str, build: Build) -> None:
        self._replace(name, self._tables[name].making(build, self._work))

    def _replace(self, name: str, make: Make) -> None:
        self._put(name, [Partition.of(self._hour)], make, sources=len(self._read.microbatches))

    def _put(
        self,
        name: str,
        partitions: Iterable[Partition],
        make: Make,
        *,
        sources: int = 0,
        check: Check = lambda _: None,
    ) -> None:
        table = self._tables[name]
        if self._rebuilding is not None and name in REBUILT:
            make = self._rebuilding.noting(table, make, self._work)
            if self._rebuilding.check_only:
                snapshot = table.open()
                make({partition: snapshot.of(partition) if snapshot else () for partition in partitions})
                return
        table.replace(partitions, make, metadata=self._metadata(), now=self._now, sources=sources, check=check)

    # Rebuilding.

    def _prepare_rebuild(self) -> None:
        """Nothing is removed because raw changed, and no row of this raw hour is overlooked. Raises RawMissingError."""
        table = self._tables["ingested_files"]
        snapshot = table.open()
        files = snapshot.of(Partition.of(self._hour)) if snapshot else ()
        rows = table.read(files, ["raw_key", "sha256"])
        known = dict(zip(rows["raw_key"].to_pylist(), rows["sha256"].to_pylist(), strict=True))
        changed = [
            noted.found.key
            for noted in self._read.microbatches
            if noted.sha256 != known.get(noted.found.key, noted.sha256)
        ]
        if changed:
            raise RawMissingError(
                f"raw hour {self._hour}: {len(changed)} microbatches are not what was consumed: "
                f"{', '.join(changed[:3])}. The tables were left as they are; restore the objects"
            )
        self._event_hours |= self._with_rows_of_this_hour()

    def _with_rows_of_this_hour(self) -> set[Partition]:
        """Event hours in the table that hold tweets of this raw hour, whether pages still give any or not."""
        table, prefix = self._tables["tweets"], self._lake.keys.raw_hour(self._hour)
        if (snapshot := table.open()) is None:
            return set()
        likely = [
            file
            for event_hour, files in snapshot.files.items()
            if event_hour not in self._event_hours
            for file in files
            if file.may_come_from(prefix)
        ]
        found = table.of_each(likely, ["raw_key"], lambda rows: pc.any(pc.starts_with(rows["raw_key"], prefix)).as_py())
        return {file.partition for file, comes_from_it in found if comes_from_it}

    # What was collected, and what was not.

    def _tell_coverage(self) -> dict[str, list[tuple[int, int]]]:
        """Returns what pages of this raw hour cover, by query."""
        accounts = [noted.account for noted in self._read.microbatches]
        rows = coverage.rows_of_hour(accounts, is_closed=self._is_closed)
        table = pa.Table.from_pylist(rows, schema=self._tables["coverage"].file_schema)
        self._replace_whole("coverage", lambda *_: [table])
        covered: dict[str, list[tuple[int, int]]] = {}
        for row in rows:
            if row["kind"] == coverage.COVERED:
                covered.setdefault(row["query"], []).append((row["since_id"] + 1, row["until_id"]))
        return covered

    def _tell_completeness(self, covered: Mapping[str, Sequence[tuple[int, int]]]) -> None:
        counts = [count for noted in self._read.microbatches for count in noted.counts]
        news = News(self._hour, frozenset(self._event_hours), covered, counts)
        completeness = self._tables["completeness"]
        ledger = Ledger(completeness, self._tables["tweets"], news, self._work)
        completeness.replace(news.hours, ledger.make, metadata=self._metadata(), now=self._now)

    def _ingested_rows(self, _partition: Partition, present: Sequence[DataFile]) -> list[pa.Table]:
        """A row a microbatch. What is there already stays as it is if only the time of reading would change."""
        table = self._tables["ingested_files"]
        name, digest = (self._transform.name, self._transform.version) if self._transform else (None, None)
        filtered = sum((counts.filtered for counts in self._merged.values()), Counter[str]())
        duplicates = sum((counts.duplicates for counts in self._merged.values()), Counter[str]())
        rows = [
            {
                "raw_key": noted.found.key,
                "sequence": noted.sequence,
                "spool_id": noted.spool_id,
                "bytes": noted.found.size,
                "etag": noted.found.etag,
                "sha256": noted.sha256,
                "records": noted.records,
                "pages": noted.pages,
                "rows": noted.rows,
                "filtered": filtered[noted.found.key],
                "rejects": noted.rejects,
                "transform": name,
                "transform_version": digest,
                "code_version": version("tweetlake"),
                "ingested_at": self._now,
                "is_closed": self._is_closed,
                "duplicates": duplicates[noted.found.key],
                "unknown_keys": json.dumps(noted.unknown_keys) if noted.unknown_keys else None,
            }
            for noted in sorted(self._read.microbatches, key=lambda one: one.found.key)
        ]
        new = pa.Table.from_pylist(rows, schema=table.file_schema)
        old = table.read(present)
        return [old if old.drop_columns("ingested_at").equals(new.drop_columns("ingested_at")) else new]

    def _metadata(self) -> dict[str, str]:
        """What a commit says of itself in the Delta log; once tweets are merged, the row accounting of the run too."""
        return {"tweetlake.raw_hour": str(self._hour), "tweetlake.version": version("tweetlake")} | self._accounting

    def _tell_unknown_keys(self, summary: HourSummary) -> None:
        """Say in the log which keys have no column, and which hours to rebuild once they have one."""
        if not summary.unknown_keys:
            return
        files = sorted(self._read.microbatches, key=lambda one: one.found.key)
        since = str(self._hour) if not files[0].unknown_keys else self._last_clean_hour()
        log.warning(
            "%s: keys of X's answers without a column, kept in extras: %s. Samples were without them %s: "
            "once they have a column, rebuild the raw hours from there on",
            self._hour,
            ", ".join(f"{key} {count:,}" for key, count in summary.unknown_keys.most_common(20)),
            f"until raw hour {since}" if since else "never in the hours before",
        )

    def _last_clean_hour(self) -> str:
        """The newest raw hour before this one with a microbatch in which no such key was found; empty: none is near."""
        table, this = self._tables["ingested_files"], Partition.of(self._hour)
        if (snapshot := table.open()) is None:
            return ""
        before = sorted((partition for partition in snapshot.files if partition < this), reverse=True)
        for partition in before[:_HOURS_BACK]:
            if table.read(snapshot.of(partition), ["unknown_keys"])["unknown_keys"].null_count:
                return str(partition)
        return ""


def _holding(ids: KeyRange, sources: Iterable[SortedRows]) -> tuple[SortedRows, ...]:
    return tuple(one for one in sources if one.overlaps(ids))


def steps(listed: Iterable[RawObject]) -> Iterator[list[RawObject]]:
    """Microbatches to be read in one go: a few, as small batches are dear, and not too many to be dealt out evenly."""
    step: list[RawObject] = []
    size = 0
    for found in listed:
        if step and size + found.size > _BYTES_PER_STEP:
            yield step
            step, size = [], 0
        step.append(found)
        size += found.size
    if step:
        yield step


def processes(wanted: int, size: int) -> int:
    """How many processes compact an hour of so many bytes of raw. `wanted`: the setting; 0 leaves it to size and cores."""
    if wanted:
        return wanted
    return max(1, min(len(os.sched_getaffinity(0)), _MOST_PROCESSES, size // _BYTES_PER_PROCESS))
