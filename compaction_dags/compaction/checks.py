"""The arithmetic that must hold before anything is committed: no row vanishes without being counted."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from compaction_dags.compaction.errors import AccountingError
from compaction_dags.compaction.tables import Change, Partition

_MOST_KEYS: Final = 100
"""How many keys are named in a summary: a page can hold any."""


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
    unknown_keys: Counter[str] = field(default_factory=Counter)
    """Keys of X's answers without a column, by path, with how often they were met; they are kept in `extras`."""
    misfits: Counter[str] = field(default_factory=Counter)
    """Values that do not fit their column, by path; they are kept in `extras` too."""

    @property
    def counts(self) -> dict[str, int]:
        """The plain numbers."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, int)}

    def as_dict(self) -> dict[str, Any]:
        """As JSON may hold it, the commonest keys only."""
        return self.counts | {
            "unknown_keys": dict(self.unknown_keys.most_common(_MOST_KEYS)),
            "misfits": dict(self.misfits.most_common(_MOST_KEYS)),
        }

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "HourSummary":
        """From `as_dict`; what else is there is passed over."""
        known: dict[str, Any] = {each.name: found[each.name] for each in fields(cls) if each.name in found}
        known |= {name: Counter(value) for name, value in known.items() if isinstance(value, Mapping)}
        return cls(**known)

    def __add__(self, other: "HourSummary") -> "HourSummary":
        return HourSummary(**{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)})


@dataclass(slots=True)
class Merged:
    """Rows of one event hour, counted where they pass. Ids are counted apart from merging, so that its errors show."""

    read: int = 0
    """New rows, repeats included."""
    ids: int = 0
    """Distinct ids among them."""
    merged: int = 0
    """Rows that merging made of them."""
    duplicates: Counter[str] = field(default_factory=Counter)
    """Rows that it left out, by the microbatch they came from."""
    kept: int = 0
    """Rows that the user's transform left of these."""
    filtered: Counter[str] = field(default_factory=Counter)
    """Rows that it did not, by the microbatch they came from."""
    together: int = 0
    """Distinct ids of what was kept and what was in the table."""
    removed: int = 0
    """Rows of this raw hour in the table that a rebuild of it does not give any more."""
    repeated: int = 0
    """Rows in the table beyond one an id, as another engine may have written them; one stays."""

    def __add__(self, other: "Merged") -> "Merged":
        return Merged(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Merged)))


def check_event_hour(partition: Partition, change: Change, counts: Merged) -> None:
    """The shrink guard: no tweet is lost that was there or is new, and none is made up. Raises AccountingError.

    Only what a rebuild removed, and what was there twice, may be missing: both are counted apart.
    """
    before, after = change.rows_before - counts.removed - counts.repeated, change.rows_after
    if after != counts.together or after < before:
        raise AccountingError(
            f"tweets {partition}: {before} rows and {counts.kept} new ones make {counts.together}, "
            f"but {after} would be written; nothing was committed"
        )


def check_summary(summary: HourSummary) -> None:
    """What was decoded = written + duplicates + filtered, each counted at its own place. Raises AccountingError."""
    accounted = summary.tweets_written + summary.duplicates + summary.filtered
    if summary.rows_in != accounted or min(summary.counts.values()) < 0:
        raise AccountingError(f"rows do not add up, nothing was committed: {summary}")
