"""What differs between the rows a table has and those that a rebuild gives: counted, by column, with a few examples."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from compaction_dags.compaction.merge import latest_rows
from compaction_dags.compaction.parquet import LocalFile, read_files
from compaction_dags.compaction.rows import file_schema
from compaction_dags.compaction.spill import Opened, cut, stored, together
from compaction_dags.compaction.tables import (
    CuratedTable,
    DataFile,
    Make,
    Partition,
    Present,
)
from schemas.curated import KEYS

EXAMPLES = 5
"""Keys that are told of each kind of difference."""


@dataclass(slots=True)
class Difference:
    """The rows of one table, as they are against as they come out of raw."""

    same: int = 0
    added: int = 0
    removed: int = 0
    changed: int = 0
    columns: Counter[str] = field(default_factory=Counter)
    """Of the changed rows: how many differ in which column."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """A few keys by kind: added, removed, changed."""
    first_fetched_at: datetime | None = None
    """Of the removed tweets, the earliest fetch: an earlier raw hour may still give them."""

    @property
    def is_none(self) -> bool:
        return not (self.added or self.removed or self.changed)

    def __add__(self, other: "Difference") -> "Difference":
        kinds = self.examples.keys() | other.examples.keys()
        moments = [moment for moment in (self.first_fetched_at, other.first_fetched_at) if moment is not None]
        return Difference(
            self.same + other.same,
            self.added + other.added,
            self.removed + other.removed,
            self.changed + other.changed,
            self.columns + other.columns,
            {kind: [*self.examples.get(kind, []), *other.examples.get(kind, [])][:EXAMPLES] for kind in sorted(kinds)},
            min(moments, default=None),
        )

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "same": self.same,
            "added": self.added,
            "removed": self.removed,
            "changed": self.changed,
            "columns": dict(self.columns),
            "examples": self.examples,
        }

    def note(self, kind: str, keys: pa.ChunkedArray) -> None:
        """Keep a few of these keys as examples."""
        known = self.examples.get(kind, [])
        if len(keys) and len(known) < EXAMPLES:
            self.examples[kind] = [*known, *map(str, keys.slice(0, EXAMPLES - len(known)).to_pylist())]


class Rebuilding:
    """What is to be done with rows that a raw hour gives anew, and what turned out to differ."""

    def __init__(self, *, check_only: bool) -> None:
        self.check_only = check_only
        """Nothing is written."""
        self._found: dict[str, dict[Partition, Difference]] = {}

    def noting(self, table: CuratedTable, make: Make, work: Path) -> Make:
        """The same `make`, with what it makes compared with what is there; made again, it is compared again."""

        def noted(present: Present) -> Mapping[Partition, Sequence[LocalFile]]:
            made = make(present)
            found = self._found.setdefault(table.name, {})
            for partition, files in present.items():
                found[partition] = compare(table, files, made.get(partition, ()), work)
            return made

        return noted

    @property
    def differences(self) -> dict[str, Difference]:
        """By table."""
        return {
            name: sum((found[partition] for partition in sorted(found)), Difference())
            for name, found in self._found.items()
        }


def compare(table: CuratedTable, old: Sequence[DataFile], new: Sequence[LocalFile], work: Path) -> Difference:
    """The difference between the files of a partition and those that would take their place."""
    if sorted(file.content for file in old) == sorted(file.content for file in new):
        return Difference(same=sum(file.rows for file in new))
    fetched = [table.fetch(file, work) for file in old]
    try:
        made = [file.path for file in new]
        return _by_key(table.name, fetched, made) if table.name in KEYS else _by_row(table.name, fetched, made)
    finally:
        for file in fetched:
            file.unlink()


def _by_key(name: str, old: Sequence[Path], new: Sequence[Path]) -> Difference:
    key, schema = KEYS[name], file_schema(name)
    before, after = ([stored(file, name) for file in files] for files in (old, new))
    opened = Opened(before), Opened(after)
    found = Difference()
    for keys in cut([*before, *after]):
        was, now = (together(one, keys, schema) for one in opened)
        folded, rebuilt = latest_rows(was, key), latest_rows(now, key)
        found.removed += was.num_rows - folded.num_rows  # keys that stood there twice
        stays = pc.is_in(folded[key], value_set=rebuilt[key].combine_chunks())
        was_there = pc.is_in(rebuilt[key], value_set=folded[key].combine_chunks())
        _note_gone(found, folded.filter(pc.invert(stays)), key)
        _note_new(found, rebuilt.filter(pc.invert(was_there)), key)
        _note_changed(found, folded.filter(stays), rebuilt.filter(was_there), key)
    return found


def _note_gone(found: Difference, gone: pa.Table, key: str) -> None:
    found.removed += gone.num_rows
    found.note("removed", gone[key])
    if gone.num_rows and "first_fetched_at" in gone.schema.names:
        earliest = pc.min(gone["first_fetched_at"]).as_py()
        found.first_fetched_at = min(filter(None, [found.first_fetched_at, earliest]), default=None)


def _note_new(found: Difference, new: pa.Table, key: str) -> None:
    found.added += new.num_rows
    found.note("added", new[key])


def _note_changed(found: Difference, was: pa.Table, now: pa.Table, key: str) -> None:
    """Rows of the same keys in the same order."""
    changed: set[int] = set()
    for name in was.schema.names:
        if not was[name].equals(now[name]):
            pairs = zip(was[name].to_pylist(), now[name].to_pylist(), strict=True)
            rows = [row for row, (one, other) in enumerate(pairs) if one != other]
            found.columns[name] += len(rows)
            changed.update(rows)
    found.changed += len(changed)
    found.same += was.num_rows - len(changed)
    found.note("changed", was[key].take(pa.array(sorted(changed), pa.int64())))


def _by_row(name: str, old: Sequence[Path], new: Sequence[Path]) -> Difference:
    """Of a table without a key: a row that differs in anything is another row."""
    was, now = (Counter(_frozen(row) for row in read_files(name, files).to_pylist()) for files in (old, new))
    gone, added = was - now, now - was
    found = Difference(same=(was & now).total(), added=added.total(), removed=gone.total())
    for kind, rows in (("added", added), ("removed", gone)):
        found.note(kind, pa.chunked_array([[str(row[0]) for row in rows]], pa.string()))
    return found


def _frozen(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.values())
