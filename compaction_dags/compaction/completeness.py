"""How complete an hour of a query is: what was collected beside what X counts, and whether pages cover all of the hour.

Rows are brought up to date where tweets were merged, pages covered something or X's count arrived. What is in the table
`tweets` is counted when the rows are made, and made again if another run was ahead: so the last one that writes an hour
has seen every merge before it. Counts and coverage add to what the present row says.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from compaction_dags.compaction.counts import Count
from compaction_dags.compaction.parquet import LocalFile, write_file
from compaction_dags.compaction.tables import CuratedTable, DataFile, Partition, Present
from schemas import snowflake
from schemas.keys import RawHour
from schemas.state import joined, without

_HOUR = timedelta(hours=1)
_REACH = timedelta(days=8)
"""X answers seven days back: what a damaged record says beyond that touches no hour."""
_AHEAD = timedelta(days=1)
"""A clock may be off."""


@dataclass(frozen=True, slots=True)
class News:
    """What a run has to tell of some hours."""

    raw_hour: RawHour
    merged: frozenset[Partition]
    """Hours of which tweets were merged."""
    covered: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    """What pages cover, by query, as half-open ranges of ids."""
    counts: Sequence[Count] = ()
    """What X counted."""

    @property
    def hours(self) -> set[Partition]:
        """All hours that there is something to tell of."""
        counted = {hour_of(count.hour) for count in self.counts}
        return {*self.merged, *counted, *self._covered_hours()}

    def _covered_hours(self) -> Iterable[Partition]:
        start = self.raw_hour.start
        reach = (snowflake.first_id_at(start - _REACH), snowflake.first_id_at(start + _AHEAD))
        for low, high in _within((ids for stretches in self.covered.values() for ids in stretches), reach):
            hour, last = (snowflake.time_of(number) for number in (low, high - 1))
            hour = hour.replace(minute=0, second=0, microsecond=0)
            while hour <= last:
                yield hour_of(hour)
                hour += _HOUR


def hour_of(moment: datetime) -> Partition:
    """The event hour of a moment."""
    return Partition.of(RawHour.of(moment))


class Ledger:
    """Brings hours of the table up to date."""

    def __init__(self, completeness: CuratedTable, tweets: CuratedTable, news: News, work: Path) -> None:
        self._completeness = completeness
        self._tweets = tweets
        self._news = news
        self._work = work
        self._newest: dict[tuple[str, Partition], Count] = {}
        for count in sorted(news.counts, key=lambda count: count.counted_at):
            self._newest[count.query, hour_of(count.hour)] = count

    def make(self, present: Present) -> Mapping[Partition, Sequence[LocalFile]]:
        """The new files of these hours, all at once."""
        collected = self._collected(present)
        made = {}
        for partition, files in present.items():
            rows = self._rows(partition, files, collected[partition])
            table = pa.Table.from_pylist(rows, schema=self._completeness.file_schema)
            made[partition] = write_file(self._completeness.name, [table], self._work)
        return made

    def _collected(self, partitions: Iterable[Partition]) -> dict[Partition, Counter[str]]:
        """How many tweets of each hour each query matched, as the table `tweets` is now."""
        collected = {partition: Counter[str]() for partition in partitions}
        if (snapshot := self._tweets.open()) is not None:
            files = [file for partition in collected for file in snapshot.of(partition)]
            for file, matched in self._tweets.of_each(files, ["matched_queries"], _times_matched):
                collected[file.partition] += matched
        return collected

    def _rows(self, partition: Partition, files: Sequence[DataFile], collected: Counter[str]) -> list[dict[str, Any]]:
        before = {row["query"]: row for row in self._completeness.read(files).to_pylist()}
        counted = {query for query, hour in self._newest if hour == partition}
        ids = _ids_of(partition)
        covered = {
            query: found for query, stretches in self._news.covered.items() if (found := _within(stretches, ids))
        }
        queries = sorted({*before, *collected, *counted, *covered})
        return [
            self._row(query, partition, before.get(query, {}), collected[query], covered.get(query, []))
            for query in queries
        ]

    def _row(
        self,
        query: str,
        partition: Partition,
        before: Mapping[str, Any],
        collected: int,
        covered: Sequence[tuple[int, int]],
    ) -> dict[str, Any]:
        counted, counted_at = before.get("counted"), before.get("counted_at")
        news = self._newest.get((query, partition))
        if news is not None and (counted_at is None or news.counted_at >= counted_at):
            counted, counted_at = news.counted, news.counted_at
        known = [(stretch["since_id"] + 1, stretch["until_id"]) for stretch in before.get("covered") or []]
        stretches = joined([*known, *covered])
        return {
            "query": query,
            "collected": collected,
            "counted": counted,
            "counted_at": counted_at,
            "ratio": collected / counted if counted else None,
            "is_covered": not without([_ids_of(partition)], stretches),
            "covered": [{"since_id": low - 1, "until_id": high} for low, high in stretches],
        }


def _times_matched(tweets: pa.Table) -> Counter[str]:
    """How many tweets each query matched."""
    counts = pc.list_flatten(tweets["matched_queries"]).value_counts()
    return Counter(dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)))


def _ids_of(partition: Partition) -> tuple[int, int]:
    return (snowflake.first_id_at(partition.start), snowflake.first_id_at(partition.start + _HOUR))


def _within(stretches: Iterable[tuple[int, int]], ids: tuple[int, int]) -> list[tuple[int, int]]:
    """What of the stretches lies in a range."""
    return joined((max(low, ids[0]), min(high, ids[1])) for low, high in stretches)
