"""A part of a real S3 server for one test: settings that name it, and what puts microbatches into it."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from deltalake import DeltaTable

from sandbox.s3 import RunningS3
from schemas.keys import LakeKeys
from tests.compaction.pages import World, encode, microbatch, page_record, raw_key

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
FIVE_PAST_TWO = NOON + timedelta(hours=2, minutes=5)


@dataclass
class Lake:
    """A part of the bucket for one test, the settings that name it, and what puts tweets into it."""

    server: RunningS3
    prefix: str
    settings: Path
    world: World
    sequence: int = 0

    @property
    def environment(self) -> dict[str, str]:
        return {**self.server.environment(), "TWEETLAKE_CONFIG": str(self.settings)}

    def collect(self, hour: datetime, tweets: int = 30) -> set[int]:
        """Ship one microbatch of one page, as the ingester does. Returns its tweet ids."""
        self.sequence += 1
        page = self.world.page(tweets)
        body = microbatch([page_record(encode(page), hour + timedelta(minutes=self.sequence))], self.sequence)
        key = raw_key(self.sequence, hour, self.prefix)
        metadata = {"sha256": hashlib.sha256(body).hexdigest(), "records": "1"}
        self.server.client().put_object(Bucket=self.server.bucket, Key=key, Body=body, Metadata=metadata)
        return {int(tweet["id"]) for tweet in page["data"]}

    def tweets(self) -> list[int]:
        """Every id in the curated table, sorted, repeated if it stands there more than once."""
        options = {
            **self.server.environment(),
            "AWS_ENDPOINT_URL": self.server.endpoint_url,
            "AWS_ALLOW_HTTP": "true",
        }
        uri = f"s3://{self.server.bucket}/{LakeKeys(self.prefix).table('tweets')}"
        return sorted(DeltaTable(uri, storage_options=options).to_pyarrow_table(columns=["id"])["id"].to_pylist())


def new_lake(server: RunningS3, directory: Path) -> Lake:
    """An empty one, named after a folder that is given once."""
    prefix = f"{directory.name}/"
    settings = directory / "tweetlake.toml"
    settings.write_text(
        f"""
[lake]
bucket = "{server.bucket}"
prefix = "{prefix}"
endpoint_url = "{server.endpoint_url}"
region = "{server.region}"

[[query]]
name = "lake"
rule = "lake lang:en"
"""
    )
    return Lake(server, prefix, settings, World(seed=7, start=NOON))
