"""The work on a raw hour that can be divided: microbatches into sorted runs, and runs into Parquet files.

Each process of a run has one worker. It reads from the lake and writes to this machine's disk only; whatever it is given
and gives back travels between processes.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, Self

import pyarrow as pa
import pyarrow.compute as pc

from compaction_dags.compaction import transform
from compaction_dags.compaction.checks import Merged
from compaction_dags.compaction.counts import Count
from compaction_dags.compaction.coverage import Account
from compaction_dags.compaction.decode import Asked, RawPage, Reject, decode_pages, page_batches
from compaction_dags.compaction.lake import Lake, RawObject
from compaction_dags.compaction.memory import give_back, keep_for_reuse, leave_pandas_out
from compaction_dags.compaction.merge import latest_rows, merged_tweets
from compaction_dags.compaction.parquet import LocalFile, write_file
from compaction_dags.compaction.raw_reader import Microbatch, read_microbatch
from compaction_dags.compaction.rows import file_schema, united, whole
from compaction_dags.compaction.spill import KeyRange, Opened, SortedRows, Spill, cut, event_hours, together
from compaction_dags.compaction.tables import Partition
from compaction_dags.compaction.transform import Transform
from schemas.curated import DECODED, KEYS
from schemas.settings import Lake as LakeSettings

SIDE_TABLES = tuple(name for name in DECODED if name != "tweets")
"""Replaced whole by raw hour."""
_FETCHES_AHEAD = 4


@dataclass(slots=True)
class Noted:
    """What is noted of one microbatch, for its row in `ingested_files`."""

    found: RawObject
    sha256: str = ""
    sequence: int = -1
    spool_id: str = ""
    records: int = 0
    pages: int = 0
    rows: int = 0
    rejects: int = 0
    unknown_keys: Counter[str] = field(default_factory=Counter)
    account: Account = field(default_factory=lambda: Account(-1, ""))
    """What it tells of the collection."""
    counts: list[Count] = field(default_factory=list)


@dataclass(slots=True)
class StepRead:
    """What reading some microbatches gave, beside the rows that went into runs."""

    microbatches: list[Noted] = field(default_factory=list)
    event_hours: set[Partition] = field(default_factory=set)
    rejects: list[Path] = field(default_factory=list)
    """Files of `spill.keep_unsorted`."""
    misfits: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "StepRead") -> "StepRead":
        return StepRead(
            self.microbatches + other.microbatches,
            self.event_hours | other.event_hours,
            self.rejects + other.rejects,
            self.misfits + other.misfits,
        )


@dataclass(frozen=True, slots=True)
class TweetsShare:
    """Tweets that make one file: those of an event hour in a range of ids."""

    table: ClassVar[str] = "tweets"
    ids: KeyRange
    new: tuple[SortedRows, ...]
    old: tuple[SortedRows, ...]
    rebuilt: frozenset[str] = frozenset()
    """Microbatches whose rows in the table are rebuilt: they count no more, but for who found a tweet and when first."""


@dataclass(frozen=True, slots=True)
class SideRows:
    """Rows of a table that is replaced whole."""

    table: str
    runs: tuple[SortedRows, ...]


Written = tuple[list[LocalFile], Merged]
"""The files of a task, and for tweets what was counted meanwhile."""


class Worker:
    """What one process does of a raw hour."""

    def __init__(self, lake: Lake, function: Transform | None, folder: Path) -> None:
        self._lake = lake
        self._transform = function
        self._folder = folder
        self._asked = Asked()
        folder.mkdir()
        self._spill = Spill(folder, {name: partial(latest_rows, key=KEYS[name]) for name in SIDE_TABLES})

    @classmethod
    def made(cls, settings: LakeSettings, function: str, folder: Path) -> Self:
        """One in a process of its own."""
        keep_for_reuse()
        if not function:
            leave_pandas_out()
        return cls(Lake(settings), transform.load(function), folder)

    # Reading.

    def read(self, microbatches: Sequence[RawObject]) -> StepRead:
        """Every page of the microbatches, a bounded number of bytes at a time, to rows on disk."""
        step = StepRead()
        noted = {found.key: Noted(found) for found in microbatches}
        for batch in page_batches(self._pages(step, noted)):
            decoded = decode_pages(batch, asked=self._asked)
            tweets = decoded.tables["tweets"]
            for key, count in counted(tweets["raw_key"]).items():
                noted[key].rows += count
            step.event_hours |= event_hours(tweets["id"])
            for key, unknown in decoded.unknown_keys_of.items():
                noted[key].unknown_keys += unknown
            step.misfits += decoded.misfits
            for name, rows in decoded.tables.items():
                self._spill.add(name, rows)
            self._reject(step, noted, decoded.rejects)
        step.microbatches = list(noted.values())
        return step

    def runs(self) -> dict[str, list[SortedRows]]:
        """All that was read, by table."""
        found = {name: self._spill.runs(name) for name in DECODED}
        give_back()
        return found

    def _pages(self, step: StepRead, noted: dict[str, Noted]) -> Iterator[RawPage]:
        """The pages of the microbatches, the next ones being fetched while this one is decoded."""
        with ThreadPoolExecutor(_FETCHES_AHEAD) as ahead:
            contents = ahead.map(self._lake.get, [one.found for one in noted.values()])
            for one, content in zip(noted.values(), contents, strict=True):
                microbatch = read_microbatch(content.data, one.found.key, content.sha256, content.records)
                for page in microbatch.pages:
                    one.pages += 1
                    yield page
                self._note(step, noted, microbatch)

    def _note(self, step: StepRead, noted: dict[str, Noted], microbatch: Microbatch) -> None:
        one = noted[microbatch.raw_key]
        one.sha256, one.records = microbatch.sha256, microbatch.records
        one.sequence, one.spool_id = microbatch.sequence, microbatch.spool_id
        one.account, one.counts = microbatch.account, microbatch.counts
        self._reject(step, noted, microbatch.rejects)

    def _reject(self, step: StepRead, noted: dict[str, Noted], rejects: Sequence[Reject]) -> None:
        for reject in rejects:
            noted[reject.raw_key].rejects += 1
        if rejects:
            rows = [asdict(reject) | {"fetched_at": reject.received_at_us} for reject in rejects]
            table = pa.Table.from_pylist(rows, schema=file_schema("rejects"))
            step.rejects.append(self._spill.keep_unsorted("rejects", table))

    # Writing.

    def write(self, task: TweetsShare | SideRows) -> Written:
        """The files of a task, a range of keys at a time."""
        counts = Merged()
        rows = self._merged(task, counts) if isinstance(task, TweetsShare) else self._latest(task)
        files = write_file(task.table, rows, self._folder)
        give_back()
        return files, counts

    def _merged(self, share: TweetsShare, counts: Merged) -> Iterator[pa.Table]:
        """The new tweets of a share, merged with those that are there."""
        schema, key = file_schema("tweets"), KEYS["tweets"]
        runs = self._spill.joined("tweets", share.new, share.ids)
        new, old = Opened(runs), Opened(share.old)
        for ids in cut([*share.old, *runs], share.ids):
            fresh = self._new_tweets(together(new, ids, schema), counts)
            stored = together(old, ids, schema)
            if share.rebuilt:
                stored = _behind(stored, fresh, share.rebuilt, counts)
            counts.together += distinct(fresh[key], stored[key])
            counts.repeated += stored.num_rows - distinct(stored[key])
            yield merged_tweets(united([fresh, stored], schema)) if stored.num_rows else fresh

    def _new_tweets(self, read: pa.Table, counts: Merged) -> pa.Table:
        """New tweets, one row an id, as the user's transform leaves them."""
        folded = merged_tweets(read)
        kept = self._transform.apply(whole(folded, file_schema("tweets"))) if self._transform else folded
        counts.read += read.num_rows
        counts.ids += distinct(read[KEYS["tweets"]])
        counts.merged += folded.num_rows
        counts.kept += kept.num_rows
        of_file = counted(folded["raw_key"])
        counts.duplicates += counted(read["raw_key"]) - of_file
        if self._transform:
            counts.filtered += of_file - counted(kept["raw_key"])
        return kept

    def _latest(self, side: SideRows) -> Iterator[pa.Table]:
        """The latest row of every object."""
        runs = self._spill.joined(side.table, side.runs)
        opened = Opened(runs)
        for keys in cut(runs):
            yield latest_rows(together(opened, keys, file_schema(side.table)), KEYS[side.table])


def _behind(stored: pa.Table, fresh: pa.Table, rebuilt: frozenset[str], counts: Merged) -> pa.Table:
    """Rows of the table so that those which are rebuilt stand behind the fresh ones, or are gone where there is none."""
    is_rebuilt = pc.is_in(stored["raw_key"], value_set=pa.array(sorted(rebuilt), pa.string()))
    is_given = pc.is_in(stored[KEYS["tweets"]], value_set=fresh[KEYS["tweets"]].combine_chunks())
    stays = pc.or_(pc.invert(is_rebuilt), is_given)
    counts.removed += stored.num_rows - int(pc.sum(stays).as_py() or 0)
    at = stored.schema.get_field_index("fetched_at")
    before_all = pa.scalar(0, stored.schema.field(at).type)
    return stored.set_column(
        at, stored.schema.field(at), pc.if_else(is_rebuilt, before_all, stored["fetched_at"])
    ).filter(stays)


def distinct(*columns: pa.ChunkedArray) -> int:
    """How many different values there are in columns of ids."""
    chunks = [chunk for column in columns for chunk in column.chunks]
    return int(pc.count_distinct(pa.chunked_array(chunks, pa.int64())).as_py())


def counted(column: pa.ChunkedArray) -> Counter[str]:
    """How often each value is there."""
    counts = column.value_counts()
    return Counter(dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)))
