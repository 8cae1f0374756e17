"""The arithmetic that must hold before anything is committed: no row vanishes without being counted."""

from collections import Counter
from dataclasses import asdict, dataclass, field

from compaction_dags.compaction.errors import AccountingError
from compaction_dags.compaction.tables import Change, Partition


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
class Merged:
    """New rows of one event hour, counted where they pass on their way into it."""

    read: int = 0
    distinct: int = 0
    kept: int = 0
    filtered: Counter[str] = field(default_factory=Counter)
    """By the microbatch they came from."""


def check_partition(name: str, partition: Partition, change: Change, new: int) -> None:
    """The shrink guard: merging never loses rows, nor makes more than there were. Raises AccountingError."""
    before, after = change.rows_before, change.rows_after
    if not max(before, new) <= after <= before + new:
        raise AccountingError(
            f"{name} {partition}: {before} rows and {new} new ones cannot make {after}; nothing was committed"
        )


def check_summary(summary: HourSummary) -> None:
    """What was decoded = written + duplicates + filtered, each counted at its own place. Raises AccountingError."""
    accounted = summary.tweets_written + summary.duplicates + summary.filtered
    if summary.rows_in != accounted or min(summary.as_dict().values()) < 0:
        raise AccountingError(f"rows do not add up, nothing was committed: {summary}")
