"""Looking after one curated table: small files, files that nobody needs any more, its log. Rows never change here.

Compaction itself writes as few files as a partition's rows need, and no file can hold rows of two partitions. So what is
rolled up are partitions into which another engine wrote files of its own.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from compaction_dags.compaction.errors import AccountingError, CompactionError
from compaction_dags.compaction.job import ROWS_PER_FILE
from compaction_dags.compaction.lake import Lake
from compaction_dags.compaction.parquet import LocalFile, write_file
from compaction_dags.compaction.rows import file_schema
from compaction_dags.compaction.spill import EVERY_KEY, KeyRange, Opened, SortedRows, cut, shares, stored, together
from compaction_dags.compaction.tables import (
    CuratedTable,
    DataFile,
    Partition,
    Present,
    Snapshot,
)
from schemas.curated import KEYS, TABLES
from schemas.settings import Settings

LEAST_GRACE = timedelta(hours=24)
"""A file that a compaction has stored and not committed yet looks like one that nobody needs; and readers take a while."""
MOST_GRACE = timedelta(days=7)
"""Delta's log forgets after a week when a file was replaced: then only the file's own age would protect it."""

Tell = Callable[[str], None]
"""Called with a sentence about what is being done."""


@dataclass(frozen=True, slots=True)
class Tended:
    """What was done for a table, and how large it is now."""

    partitions_rolled_up: int = 0
    files_deleted: int = 0
    bytes_freed: int = 0
    log_entries_deleted: int = 0
    log_bytes_freed: int = 0
    files: int = 0
    bytes: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)

    def __add__(self, other: "Tended") -> "Tended":
        mine, theirs = self.as_dict(), other.as_dict()
        return Tended(**{name: mine[name] + theirs[name] for name in mine})


def tend(settings: Settings, name: str, *, grace: timedelta = MOST_GRACE, tell: Tell = lambda _: None) -> Tended:
    """Look after one table. Safe at any time and as often as one likes, beside compactions and readers.

    `grace`: how long files are kept that the newest version does not name. Raises ValueError if that is out of bounds.
    """
    if not LEAST_GRACE <= grace <= MOST_GRACE:
        raise ValueError(f"grace must be from {LEAST_GRACE} to {MOST_GRACE}, not {grace}")
    lake = Lake(settings.lake)
    table = CuratedTable(lake, name)
    if table.open() is None:
        return Tended()
    rolled_up = _roll_up(table, tell)
    deleted = _vacuum(lake, table, grace, tell)
    forgotten = _shorten_log(lake, table)
    files = _newest(table).files.values()
    return Tended(
        partitions_rolled_up=rolled_up,
        files_deleted=len(deleted),
        bytes_freed=sum(deleted.values()),
        log_entries_deleted=len(forgotten),
        log_bytes_freed=sum(forgotten.values()),
        files=sum(map(len, files)),
        bytes=sum(file.size for each in files for file in each),
    )


def tend_all(settings: Settings, *, grace: timedelta = MOST_GRACE, tell: Tell = lambda _: None) -> Tended:
    """Look after every table, one after the other, and tell what was done. One that fails does not hold up the others;
    its error is raised at the end.
    """
    total = Tended()
    errors: list[CompactionError] = []
    for name in TABLES:
        try:
            done = tend(settings, name, grace=grace, tell=tell)
        except CompactionError as error:
            tell(f"{name}: {error}")
            errors.append(error)
        else:
            tell(
                f"{name}: files {done.files:,}, bytes {done.bytes:,}, freed {done.bytes_freed + done.log_bytes_freed:,}"
            )
            total += done
    if errors:
        raise errors[0]
    return total


def _newest(table: CuratedTable) -> Snapshot:
    snapshot = table.open()
    assert snapshot is not None, "tables are never dropped"
    return snapshot


# --- small files ---


def _roll_up(table: CuratedTable, tell: Tell) -> int:
    """Make as few files as the rows need of those in partitions that another engine wrote into. How many partitions."""
    scattered = {
        partition: files
        for partition, files in _newest(table).files.items()
        if len(files) > 1 and not all(file.content for file in files)
    }
    for partition, files in scattered.items():
        tell(f"{table.name} {partition}: rolling up {len(files)} files")
        with tempfile.TemporaryDirectory(prefix="tweetlake-") as work:
            table.replace(
                [partition],
                lambda present, work=work: _rolled_up(table, present, Path(work)),  # type: ignore[misc]
                metadata={"tweetlake.upkeep": "roll-up", "tweetlake.version": version("tweetlake")},
                now=datetime.now(UTC),
                sources=max(file.sources for file in files),
            )
    return len(scattered)


def _rolled_up(table: CuratedTable, present: Present, work: Path) -> Mapping[Partition, Sequence[LocalFile]]:
    return {partition: _few_files(table, partition, files, work) for partition, files in present.items()}


def _few_files(table: CuratedTable, partition: Partition, files: Sequence[DataFile], work: Path) -> list[LocalFile]:
    """The same rows in as few files as compaction would have written. Raises AccountingError if they are not the same."""
    fetched = [table.fetch(file, work) for file in files]
    before = sum(pq.read_metadata(file).num_rows for file in fetched)
    if table.name in KEYS:
        sources = [stored(file, table.name) for file in fetched]
        parts = shares(sources, EVERY_KEY, ROWS_PER_FILE) if table.name == "tweets" else [EVERY_KEY]
        made = [one for keys in parts for one in write_file(table.name, _sorted(sources, keys), work)]
    else:
        made = write_file(table.name, [table.read(files)], work)
    if sum(file.rows for file in made) != before:
        raise AccountingError(
            f"{table.name} {partition}: {before} rows would become {sum(file.rows for file in made)}; "
            "nothing was committed"
        )
    return made


def _sorted(sources: Sequence[SortedRows], within: KeyRange) -> Iterator[pa.Table]:
    opened = Opened(sources)
    for keys in cut(sources, within):
        yield together(opened, keys, file_schema(sources[0].table)).sort_by(sources[0].key)


# --- files that no version needs ---


def _vacuum(lake: Lake, table: CuratedTable, grace: timedelta, tell: Tell) -> dict[str, int]:
    """Delete what neither the newest version nor the grace needs, left-overs of broken runs too. Each file's bytes.

    Delta names files that were deleted long ago again; what is there is seen by listing.
    """
    there = lake.sizes(f"{lake.keys.table(table.name)}/")
    doomed = {path: there[path] for path in table.vacuum(grace, dry_run=True) if path in there}
    if doomed:  # or the log would grow by two entries a day that say nothing
        tell(f"{table.name}: deleting {len(doomed):,} files, {sum(doomed.values()):,} bytes")
        table.vacuum(grace, dry_run=False)
    return doomed


# --- the log ---


def _shorten_log(lake: Lake, table: CuratedTable) -> dict[str, int]:
    """Make a checkpoint of the newest version, unless there is one, and delete what the log's retention allows (30 days,
    the table's property delta.logRetentionDuration). What was deleted, each with its bytes.
    """
    log = f"{lake.keys.table(table.name)}/_delta_log/"
    before = lake.sizes(log)
    version_now = _newest(table).version
    has_checkpoint = any(key.startswith(f"{log}{version_now:020d}.checkpoint.") for key in before)
    table.shorten_log(with_checkpoint=not has_checkpoint)
    after = lake.sizes(log)
    return {key: size for key, size in before.items() if key not in after}
