"""The raw record as code: the Avro schema, its codec settings and the names of the header's metadata."""

import json
from importlib import resources
from typing import Any

FORMAT = "1"
"""Version of the raw record. A reader refuses a higher one; a new optional field does not raise it."""

ADDED_SINCE = frozenset({"order", "resume_below"})
"""Optional fields that the first files of this format do not have."""

META_FORMAT = "tweetlake.format"
META_SEQUENCE = "tweetlake.sequence"
META_SPOOL_ID = "tweetlake.spool_id"
META_CHECKPOINT = "tweetlake.checkpoint"
META_DESTINATION = "tweetlake.destination"
"""Avro header metadata: the format, the sequence number, the spool id, the checkpoint (JSON) and the lake that the file
belongs to (JSON: bucket, prefix, endpoint_url, region). Older files have no destination."""


def load_schema() -> dict[str, Any]:
    """The Avro schema of `raw_record.avsc`, as a plain dictionary."""
    schema: dict[str, Any] = json.loads(resources.files("schemas").joinpath("raw_record.avsc").read_text("utf-8"))
    return schema
