"""The seams: what the loops need of X, of S3 and of time, cut at the smallest verb."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, Self

from ingester.model import Answer, CountsRequest, SearchRequest
from schemas.settings import Lake


class Source(Protocol):
    """X. Called by a poller once it is its turn, one page a call."""

    async def search(self, request: SearchRequest) -> Answer:
        """Ask for one page. Returns the answer whatever its status.

        Raises Transient when no whole answer came (name, connection, time-out, cut body); the caller backs off.
        """
        ...

    async def counts(self, request: CountsRequest) -> Answer:
        """Ask how many posts there were. As `search` otherwise; X bills the request, not the posts."""
        ...

    async def usage(self, days: int) -> Answer:
        """Ask what X counted as read on the last `days` UTC days. As `search` otherwise; free of charge."""
        ...

    async def probe(self) -> Answer:
        """Any cheap answer, for its Date header: no credentials are sent and no object is read, so it costs nothing.

        Raises Transient. Called at start until it answers.
        """
        ...


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object's key, size in bytes and metadata as S3 tells them."""

    key: str
    size: int
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Versioned:
    """An object's content and the ETag that names this version of it."""

    content: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class Destination:
    """The lake that a microbatch belongs to: fixed when it is opened, whatever the settings say later."""

    bucket: str
    prefix: str
    endpoint_url: str
    region: str

    @classmethod
    def of(cls, lake: Lake) -> Self:
        return cls(**{field.name: getattr(lake, field.name) for field in fields(cls)})

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """What a newer program wrote beside what is known here is ignored. Raises KeyError or TypeError."""
        return cls(**{field.name: str(found[field.name]) for field in fields(cls)})

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}" + (f" at {self.endpoint_url}" if self.endpoint_url else "")


class ObjectStore(Protocol):
    """S3, or what speaks like it: raw objects are created once, control objects change under If-Match. One attempt a call.

    Every method raises Transient (back off and call again: 409, 5xx, SlowDown, reset, time-out) or NeedsOperator
    (pause and probe: 401, 403, NoSuchBucket, any other 4xx).
    """

    async def open(self) -> None:
        """Get ready for calls, which may take half a second. What goes wrong here goes wrong in the next call too."""
        ...

    async def put_new(self, key: str, file: Path, sha256: str, metadata: Mapping[str, str]) -> None:
        """Create an object from a file, with its SHA-256 (hex) checked by S3.

        Raises KeyTaken if the key exists already, ChecksumRefused if S3 computed another SHA-256.
        """
        ...

    async def head(self, key: str) -> StoredObject | None:
        """What lies under the key; None if nothing does."""
        ...

    async def get(self, key: str) -> bytes:
        """The whole object. Raises NeedsOperator if nothing lies there."""
        ...

    async def list_keys(self, prefix: str) -> list[str]:
        """Every key below the prefix, in order. Called for a day of raw at a time."""
        ...

    async def list_folders(self, prefix: str) -> list[str]:
        """The prefixes one level below, each with its slash, in order. Called for the days of raw."""
        ...

    async def read(self, key: str) -> Versioned | None:
        """A small control object; None if nothing lies there."""
        ...

    async def replace(self, key: str, content: bytes, *, etag: str | None) -> str:
        """Replace the version that `etag` names, or create the object if it is None. Returns the new ETag.

        Raises KeyTaken if something else lies there by now. An answer that was lost is Transient: read to see who won.
        """
        ...

    async def delete(self, key: str) -> None:
        """Remove a control object; nothing happens if there is none."""
        ...


Stores = Callable[[Destination], ObjectStore]
"""The store of a lake; the same one for the same lake."""


class Clock(Protocol):
    """Time. The wall clock may jump; only durations use the monotonic one."""

    def now(self) -> datetime:
        """Aware UTC wall time."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait; returns at once for zero or less."""
        ...
