"""How far behind the curated tables are, in two figures for monitoring: the newest post, the oldest hour that waits."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from compaction_dags.compaction import plan
from compaction_dags.compaction.lake import Lake
from compaction_dags.compaction.tables import CuratedTable
from schemas import snowflake
from schemas.settings import Settings

_AHEAD = timedelta(hours=1)
"""An id further ahead than clocks go wrong is no post's."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """How the tables stand at a moment."""

    checked_at: datetime
    newest_tweet_at: datetime | None
    """When the newest post in `tweets` was made; None: there is none."""
    oldest_stale_hour: str | None
    """The oldest raw hour before the current one that waits to be compacted, or cannot be; None: none does."""
    stale_hours: int

    def as_dict(self) -> dict[str, Any]:
        newest = self.newest_tweet_at
        return {
            "checked_at": self.checked_at.isoformat(timespec="seconds"),
            "newest_tweet_at": newest.isoformat(timespec="milliseconds") if newest else None,
            "newest_tweet_age_seconds": round((self.checked_at - newest).total_seconds()) if newest else None,
            "oldest_stale_hour": self.oldest_stale_hour,
            "stale_hours": self.stale_hours,
        }


def freshness(settings: Settings, now: datetime | None = None) -> Freshness:
    """Read no rows: the newest post stands in the table's log, and stale hours are found as the plan does."""
    now = now or datetime.now(UTC)
    lake = Lake(settings.lake)
    waiting = plan.find_stale(lake, CuratedTable(lake, "ingested_files"), now=now, include_open=False).waiting
    return Freshness(now, _newest(lake, now), str(waiting[0]) if waiting else None, len(waiting))


def _newest(lake: Lake, now: datetime) -> datetime | None:
    snapshot = CuratedTable(lake, "tweets").open()
    if snapshot is None:
        return None
    files = pa.table(snapshot.table.get_add_actions(flatten=True))
    ids = files["max.id"].to_pylist() if "max.id" in files.column_names else []
    beyond = snowflake.first_id_at(now + _AHEAD)
    newest = max((number for number in ids if number is not None and number < beyond), default=None)
    return None if newest is None else snowflake.time_of(newest)
