"""The conservation oracle: what X served and what its search knew, held id by id against raw and curated of one lake.

It trusts no figure of the programs that it checks: raw is read with fastavro and json, curated with delta-rs.
"""

import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, cast

import fastavro
from deltalake import DeltaTable

from sandbox.s3 import RunningS3
from sandbox.x_api import RunningXApi
from schemas import snowflake
from schemas.keys import LakeKeys, MicrobatchName
from schemas.snowflake import MAX_ID

REACH = timedelta(days=7)
CLIPPED_WITHIN = timedelta(minutes=4)
"""What is given up as out of reach may still have been reachable for so long."""
_CLUES = 5
"""Of so many lost posts it is told where they were seen last."""
ON_TOP = {"reread_given_up", "backfill_given_up"}
"""Gaps of what was asked on top of the regular collection: what was covered stays covered."""

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Microbatch:
    """A raw object: when S3 got it, and what it holds."""

    key: str
    shipped_at: datetime
    records: list[Record]


@dataclass(frozen=True, slots=True)
class Lake:
    """One lake below a prefix, looked at from outside."""

    s3: RunningS3
    prefix: str = ""
    """Empty, or a path that ends in a slash."""

    def microbatches(self) -> Iterator[Microbatch]:
        """All of raw, in the order of its sequence."""
        client = self.s3.client()
        listed = client.get_paginator("list_objects_v2").paginate(
            Bucket=self.s3.bucket, Prefix=LakeKeys(self.prefix).raw
        )
        found = [each for page in listed for each in page.get("Contents", [])]
        for each in sorted(found, key=lambda each: MicrobatchName.parse(each["Key"])):
            content = client.get_object(Bucket=self.s3.bucket, Key=each["Key"])["Body"].read()
            records = cast("list[Record]", list(fastavro.reader(io.BytesIO(content))))
            yield Microbatch(each["Key"], each["LastModified"], records)

    def rows(self, table: str, columns: list[str]) -> list[dict[str, Any]]:
        """Of a curated table."""
        options = self.s3.environment() | {
            "AWS_ENDPOINT_URL": self.s3.endpoint_url, "AWS_ALLOW_HTTP": "true", "aws_conditional_put": "etag",
        }  # fmt: skip
        uri = f"s3://{self.s3.bucket}/{LakeKeys(self.prefix).table(table)}"
        rows: list[dict[str, Any]] = (
            DeltaTable(uri, storage_options=options).to_pyarrow_table(columns=columns).to_pylist()
        )
        return rows


@dataclass(frozen=True, slots=True)
class Gap:
    """An interval that was recorded as not covered."""

    query: str
    reason: str
    since_id: int
    until_id: int
    is_real: bool
    """Whether it could not be covered indeed."""


@dataclass(slots=True)
class Conserved:
    """What came of the comparison. Can be added up over lakes."""

    served: int = 0
    """Posts that went out in complete answers, repeats included."""
    distinct: int = 0
    """The same without repeats, each query for itself."""
    stored_twice: int = 0
    """Posts that raw holds again for the same query."""
    curated: int = 0
    lost: set[int] = field(default_factory=set)
    clues: list[str] = field(default_factory=list)
    """Where each lost post was last seen."""
    indexed_late: set[int] = field(default_factory=set)
    """Posts that search did not know yet whenever their stretch was asked for."""
    withdrawn: set[int] = field(default_factory=set)
    """Posts of an answer that a crash took: when their stretch was asked for again, search did not know them any more,
    as a newer version had replaced them.
    """
    duplicated: int = 0
    """Rows in curated beyond one an id."""
    invented: set[int] = field(default_factory=set)
    mislabelled: int = 0
    """Rows whose `matched_queries` are not the queries that found the post."""
    gaps: list[Gap] = field(default_factory=list)
    ages: list[float] = field(default_factory=list)
    """Seconds from the creation of each post that was made since its query began, until S3 had it."""

    @property
    def unreal_gaps(self) -> list[Gap]:
        return [gap for gap in self.gaps if not gap.is_real]

    @property
    def holds(self) -> bool:
        """Nothing lost, duplicated in curated, invented or mislabelled, and no gap that is not real."""
        wrong = (self.lost, self.duplicated, self.invented, self.mislabelled, self.unreal_gaps)
        return bool(self.served) and not any(wrong)

    def __add__(self, other: "Conserved") -> "Conserved":
        return Conserved(
            self.served + other.served,
            self.distinct + other.distinct,
            self.stored_twice + other.stored_twice,
            self.curated + other.curated,
            self.lost | other.lost,
            self.clues + other.clues,
            self.indexed_late | other.indexed_late,
            self.withdrawn | other.withdrawn,
            self.duplicated + other.duplicated,
            self.invented | other.invented,
            self.mislabelled + other.mislabelled,
            self.gaps + other.gaps,
            self.ages + other.ages,
        )

    def __str__(self) -> str:
        return (
            f"served {self.served:,} ({self.distinct:,} distinct), curated {self.curated:,}; "
            f"{len(self.lost)} lost, {self.duplicated} duplicated, {len(self.invented)} invented, "
            f"{self.mislabelled} mislabelled, {len(self.indexed_late)} indexed late, {len(self.withdrawn)} withdrawn, "
            f"{self.stored_twice} stored twice, "
            f"{len(self.gaps)} gaps ({len(self.unreal_gaps)} not real)"
            + "".join(f"; {clue}" for clue in self.clues[:_CLUES])
        )


def check(lake: Lake, x: RunningXApi, rules: Mapping[str, str]) -> Conserved:
    """Compare a lake that has caught up and was compacted with the world that X has. `rules` is rule by query name.

    The faults that decide when posts are indexed have to be set still.
    """
    raw = _Raw(lake.microbatches())
    rows = lake.rows("tweets", ["id", "matched_queries"])
    curated = {row["id"]: set(row["matched_queries"]) for row in rows}
    found = Conserved(curated=len(curated), duplicated=len(rows) - len(curated), ages=raw.ages)
    found.gaps = [_gap(record, rules) for record in raw.gaps]
    odd = {item["id"] for rule in rules.values() for item in x.malformed(rule)}  # served too, with something wrong
    for name, rule in rules.items():
        served, stored = x.served(rule), raw.posts[name]
        found.served += sum(served.values())
        found.distinct += len(served)
        found.stored_twice += sum(stored.values()) - len(stored)
        told = [(gap.since_id, gap.until_id) for gap in found.gaps if gap.query == name and gap.reason not in ON_TOP]
        known = x.truth(rule, raw.start(name), raw.frontier(name)) | served.keys()
        for post in known - stored.keys():
            if any(since < post < until for since, until in told):
                continue
            was_served = post in served
            if raw.was_hidden(name, post, rule, x):
                (found.withdrawn if was_served else found.indexed_late).add(post)
                continue
            found.lost.add(post)
            words = "served" if was_served else "never served"
            found.clues.append(f"{post} of {name}: {words}, not in raw, {raw.covering(name, post)}")
        uncurated = stored.keys() - curated.keys() - _numbers(odd)
        found.clues += [f"{post} of {name}: in raw, not in curated" for post in uncurated]
        found.lost |= uncurated
        found.invented |= stored.keys() - served.keys() - _numbers(odd)
    found.invented |= curated.keys() - set().union(*raw.posts.values())
    found.mislabelled = sum(
        queries != {name for name in rules if post in raw.posts[name]}
        for post, queries in curated.items()
        if str(post) not in odd
    )
    return found


@dataclass(frozen=True, slots=True)
class _Page:
    """What a page covers of its query's line of ids: from `lowest` to below `below`."""

    lowest: int
    below: int
    requested_at: float


class _Raw:
    """Raw, read once."""

    def __init__(self, microbatches: Iterable[Microbatch]) -> None:
        self.posts: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self.gaps: list[Record] = []
        self.ages: list[float] = []
        self._pages: defaultdict[str, list[_Page]] = defaultdict(list)
        self._starts: dict[str, int] = {}
        self._began: dict[str, datetime] = {}
        self._frontiers: dict[str, int] = {}
        for microbatch in microbatches:
            for record in microbatch.records:
                if record["kind"] == "page" and record["endpoint"] == "search_recent":
                    self._page(record, microbatch.shipped_at)
                elif record["kind"] == "gap":
                    self.gaps.append(record)
                elif record["kind"] == "rule" and record["frontier_id"]:
                    self._starts.setdefault(record["query"], record["frontier_id"])
                    self._began.setdefault(record["query"], record["at"])

    def start(self, query: str) -> int:
        """Where the query began, exclusive."""
        return self._starts.get(query, MAX_ID)

    def frontier(self, query: str) -> int:
        """The upper end of the newest window that is done, exclusive."""
        return self._frontiers.get(query, 0)

    def was_hidden(self, query: str, post: int, rule: str, x: RunningXApi) -> bool:
        """Whether search did not know the post at any time at which a page that covers it, and was kept, was asked for."""
        pages = [page for page in self._pages[query] if page.lowest <= post < page.below]
        return bool(pages) and not any(x.truth(rule, post - 1, post + 1, at=page.requested_at) for page in pages)

    def covering(self, query: str, post: int) -> str:
        """Which pages say that they cover the post."""
        pages = [page for page in self._pages[query] if page.lowest <= post < page.below]
        made = snowflake.time_of(post).timestamp()
        asked = ", ".join(f"{page.requested_at - made:.3f}" for page in pages)
        return f"covered by {len(pages)} pages" + (f", asked for {asked} s after it was made" if pages else "")

    def _page(self, record: Record, shipped_at: datetime) -> None:
        name = record["query"]
        counted = self.posts[name]
        for post in _posts(record["body"]):
            if (created := snowflake.time_of(post)) >= self._began[name] and not counted[post]:
                self.ages.append((shipped_at - created).total_seconds())
            counted[post] += 1
        if record["problem"] is not None:
            return
        if record["is_last"]:
            self._frontiers[name] = max(self.frontier(name), record["until_id"])
        lowest = record["since_id"] + 1 if record["is_last"] else record["resume_below"]
        if lowest is not None:
            self._pages[name].append(_Page(lowest, record["asked_below"], record["requested_at"].timestamp()))


def _posts(body: bytes) -> list[int]:
    """The ids in `data` that are ids."""
    try:
        data = json.loads(body)["data"]
    except (ValueError, TypeError, KeyError):
        return []
    return sorted(_numbers(str(item.get("id", "")) for item in data))


def _numbers(ids: Iterable[str | None]) -> set[int]:
    return {int(one) for one in ids if one and one.isascii() and one.isdigit() and int(one) <= MAX_ID}


def _gap(record: Record, rules: Mapping[str, str]) -> Gap:
    real = {
        "out_of_reach": snowflake.time_of(record["until_id"]) <= record["at"] - REACH + CLIPPED_WITHIN,
        "query_removed": record["query"] not in rules,
    }
    reason = record["reason"]
    is_real = real.get(reason, reason in ON_TOP)
    return Gap(record["query"], reason, record["since_id"], record["until_id"], is_real)
