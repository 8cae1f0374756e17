"""The arithmetic that must hold before anything is committed: no row vanishes without being counted."""

from dataclasses import asdict, dataclass, field
from typing import Any

from compaction_dags.compaction.errors import AccountingError
from compaction_dags.compaction.tables import Partition


@dataclass(frozen=True, slots=True)
class HourSummary:
    """What compacting one raw hour did; the keys of the one-line summary."""

    raw_hours: int = 0
    microbatches: int = 0
    pages: int = 0
    rows_in: int = 0
    """Posts in `data` of the pages, repeats included."""
    tweets_written: int = 0
    """Distinct tweets of this raw hour in the table afterwards, new or brought up to date."""
    duplicates: int = 0
    """Repeats of a tweet within this raw hour."""
    filtered: int = 0
    """Tweets that the user's transform dropped."""
    rejected: int = 0
    """Objects, pages or parts of files that could not be used; each is a row of `rejects`."""

    def as_dict(self) -> dict[str, int]:
        return asdict(self)

    def __add__(self, other: "HourSummary") -> "HourSummary":
        mine, theirs = self.as_dict(), other.as_dict()
        return HourSummary(**{name: mine[name] + theirs[name] for name in mine})


@dataclass(slots=True)
class Counts:
    """Rows of one raw hour on their way, counted where they pass. Counting an event hour again starts it anew."""

    rows_in: int = 0
    distinct: dict[Partition, int] = field(default_factory=dict)
    kept: dict[Partition, int] = field(default_factory=dict)

    @property
    def duplicates(self) -> int:
        return self.rows_in - sum(self.distinct.values())

    @property
    def filtered(self) -> int:
        return sum(self.distinct.values()) - sum(self.kept.values())


def check_partition(name: str, partition: Partition, *, before: int, after: int, new: int) -> None:
    """The shrink guard: merging never loses rows, nor makes more than there were. Raises AccountingError."""
    if after < before or after < new:
        raise AccountingError(
            f"{name} {partition}: {before} rows and {new} new ones would become {after}; not committed"
        )
    if after > before + new:
        raise AccountingError(
            f"{name} {partition}: {before} rows and {new} new ones cannot make {after}; not committed"
        )


def check_summary(summary: HourSummary) -> None:
    """Rows in = written + duplicates + filtered. Raises AccountingError."""
    accounted = summary.tweets_written + summary.duplicates + summary.filtered
    if summary.rows_in != accounted or min(summary.as_dict().values()) < 0:
        raise AccountingError(f"rows do not add up: {summary}")


def words(summary: HourSummary) -> dict[str, Any]:
    """The summary for a commit's metadata: texts, as every reader of the Delta log expects."""
    return {name: str(count) for name, count in summary.as_dict().items()}
