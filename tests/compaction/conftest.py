"""A lake of its own for every test, on one real S3 server: what puts raw into it, compacts it and reads it as others do."""

import hashlib
import itertools
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from compaction_dags.compaction import job
from compaction_dags.compaction.checks import HourSummary
from compaction_dags.compaction.lake import Lake
from compaction_dags.compaction.tables import CuratedTable, Snapshot
from sandbox.s3 import RunningS3, running_s3
from schemas.curated import TABLES
from schemas.keys import LakeKeys, MicrobatchName, RawHour
from schemas.settings import Lake as LakeSettings
from schemas.settings import Query, Settings, Transform
from tests.compaction.pages import NOON, SPOOL_ID, encode, microbatch, page_record


@pytest.fixture(scope="session")
def s3() -> Iterator[RunningS3]:
    """SeaweedFS, not moto: it really compares and refuses."""
    with running_s3(kind="seaweedfs") as server:
        yield server


@dataclass
class Place:
    """One lake below a prefix of its own."""

    s3: RunningS3
    prefix: str
    directory: Path
    endpoint_url: str = ""
    _sequence: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _lakes: dict[tuple[str, str], Lake] = field(default_factory=dict)

    @property
    def keys(self) -> LakeKeys:
        return LakeKeys(self.prefix)

    def settings(self, function: str = "") -> Settings:
        """Settings of this lake, with a transform if one is named."""
        return Settings(
            lake=LakeSettings(
                bucket=self.s3.bucket,
                prefix=self.prefix,
                endpoint_url=self.endpoint_url or self.s3.endpoint_url,
                region=self.s3.region,
            ),
            query=[Query(name="lake", rule="lake")],
            transform=Transform(function=function),
        )

    def config(self, function: str = "", **lake: str) -> Path:
        """The same as a file; `lake` replaces settings of that section."""
        settings = self.settings(function)
        section = settings.lake.model_dump(include={"bucket", "prefix", "endpoint_url", "region"}) | lake
        file = self.directory / "tweetlake.toml"
        file.write_text(
            "[lake]\n" + "".join(f'{name} = "{value}"\n' for name, value in section.items())
            + f'[[query]]\nname = "lake"\nrule = "lake"\n[transform]\nfunction = "{function}"\n'
        )  # fmt: skip
        return file

    def lake(self) -> Lake:
        """One for all, as making an S3 client takes a while; another one for another endpoint or secret."""
        key = (self.endpoint_url, os.environ["AWS_SECRET_ACCESS_KEY"])
        if key not in self._lakes:
            self._lakes[key] = Lake(self.settings().lake)
        return self._lakes[key]

    # Raw.

    def ship(self, records: Iterable[dict[str, Any]], hour: datetime = NOON, **changes: Any) -> str:
        """Put a microbatch of these records as the ingester does; `changes` as in pages.microbatch. Returns its key."""
        sequence = next(self._sequence)
        made = list(records)
        return self.put(microbatch(made, sequence, **changes), hour, sequence, records=len(made))

    def put(self, data: bytes, hour: datetime, sequence: int | None = None, records: int = 1, sha256: str = "") -> str:
        """Put the bytes of a microbatch, whole or not."""
        name = MicrobatchName(next(self._sequence) if sequence is None else sequence, RawHour.of(hour), SPOOL_ID)
        key = self.keys.microbatch(name)
        metadata = {"sha256": sha256 or hashlib.sha256(data).hexdigest(), "records": str(records)}
        self.s3.client().put_object(Bucket=self.s3.bucket, Key=key, Body=data, Metadata=metadata)
        return key

    def ship_tweets(self, ids: Iterable[int], at: datetime = NOON, query: str = "lake", **fields: Any) -> str:
        """Put a microbatch of one page with these tweets."""
        return self.ship([page_record(page_of(ids, **fields), at, query)], at)

    def objects(self, below: str = "") -> list[str]:
        pages = (
            self.s3.client()
            .get_paginator("list_objects_v2")
            .paginate(Bucket=self.s3.bucket, Prefix=self.prefix + below)
        )
        return [found["Key"] for page in pages for found in page.get("Contents", [])]

    # Compaction.

    def compact(self, *hours: datetime, function: str = "", now: datetime | None = None) -> HourSummary:
        """Compact these raw hours, or all that are stale."""
        settings = self.settings(function)
        wanted = [str(RawHour.of(hour)) for hour in hours] or job.plan_hours(settings, include_open=True, full=True)
        return job.compact(settings, wanted, now=now)

    # Curated.

    def table(self, name: str) -> CuratedTable:
        return CuratedTable(self.lake(), name)

    def delta(self, name: str) -> DeltaTable:
        return DeltaTable(self.uri(name), storage_options=self.lake().delta_options())

    def uri(self, name: str) -> str:
        return f"s3://{self.s3.bucket}/{self.keys.table(name)}"

    def rows(self, name: str, columns: list[str] | None = None) -> list[dict[str, Any]]:
        """All rows of a table, in order of its first column, as another program reads them."""
        rows: pa.Table = self.delta(name).to_pyarrow_table(columns=columns)
        return sorted(rows.to_pylist(), key=lambda row: (str(row.get("raw_key")), *map(str, list(row.values())[:1])))

    def tweets(self, columns: list[str] | None = None) -> dict[int, dict[str, Any]]:
        """All tweets by id; fails if an id stands there twice."""
        wanted = None if columns is None else ["id", *columns]
        rows = self.delta("tweets").to_pyarrow_table(columns=wanted).to_pylist()
        found = {row["id"]: row for row in rows}
        assert len(found) == len(rows), "an id stands in the table more than once"
        return found

    def versions(self) -> dict[str, int]:
        return {name: self.delta(name).version() for name in TABLES}

    def snapshot(self, name: str) -> Snapshot:
        found = self.table(name).open()
        assert found is not None
        return found


@pytest.fixture
def place(s3: RunningS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    return Place(s3, f"{uuid.uuid4().hex[:12]}/", tmp_path)


def page_of(ids: Iterable[int], **fields: Any) -> bytes:
    """A page with one small tweet per id."""
    return encode({"data": [{"id": str(number), "text": f"tweet {number}"} | fields for number in ids], "meta": {}})


def hours(count: float) -> timedelta:
    return timedelta(hours=count)
