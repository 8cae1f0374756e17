"""The values that go into decoding and come out of it: pages, rejects and decoded tables."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class RawPage:
    """One verified answer of X out of a raw microbatch."""

    raw_key: str
    """S3 key of the microbatch."""
    record_index: int
    """Position of the page's record in it, from 0, records of every kind counted."""
    query: str
    received_at_us: int
    """When the answer had arrived, microseconds since 1970 UTC."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Reject:
    """Something that could not be used: an object of a page, a page, a record or what is left of a file."""

    raw_key: str
    record_index: int | None
    query: str | None
    reason: str
    """One word, to be counted by."""
    detail: str
    tweet_id: str | None
    """The id as sent, of whatever kind of object it is; None where there is none."""
    body: bytes | None
    received_at_us: int | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """The rows of some pages, one row per object of X's answers: not deduplicated, in no promised order."""

    tables: dict[str, pa.Table]
    """By the names in schemas.curated.DECODED, each with the columns of `rows.file_schema`. Of those that
    hold nothing in any row any may be left out.
    """
    rejects: list[Reject]
    unknown_keys: Counter[str] = field(default_factory=Counter)
    """Keys of X's answers that have no column, by path (`tweets.new_key`), with how often they were met."""
    unknown_keys_of: dict[str, Counter[str]] = field(default_factory=dict)
    """The same by microbatch, where there are any."""
    misfits: Counter[str] = field(default_factory=Counter)
    """Values that did not fit their column and went to `extras`, by path."""


def page_batches(pages: Iterable[RawPage], max_bytes: int = 6_000_000) -> Iterator[list[RawPage]]:
    """The pages in batches of at most `max_bytes` of bodies (one page may be larger): what bounds decoding's memory."""
    batch: list[RawPage] = []
    size = 0
    for page in pages:
        if batch and size + len(page.body) > max_bytes:
            yield batch
            batch, size = [], 0
        batch.append(page)
        size += len(page.body)
    if batch:
        yield batch
