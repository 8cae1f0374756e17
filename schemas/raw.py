"""The raw record as code: the Avro schema, its version and the names of the header's metadata."""

import json
from importlib import resources
from typing import Any

FORMAT = "1"
"""Version of the raw record. A reader refuses a higher one; a new optional field does not raise it."""

ADDED_SINCE = frozenset({"order", "resume_below"})
"""Optional fields that the first files of this format do not have."""

# Avro header metadata.
META_FORMAT = "tweetlake.format"
"""The version that the file is written in."""
META_SEQUENCE = "tweetlake.sequence"
"""The number of the microbatch within its spool."""
META_SPOOL_ID = "tweetlake.spool_id"
"""Whose microbatch it is."""
META_CHECKPOINT = "tweetlake.checkpoint"
"""The state when the file was opened, as JSON."""
META_DESTINATION = "tweetlake.destination"
"""The lake that the file belongs to, as JSON: bucket, prefix, endpoint_url, region. Older files have none."""


def load_schema() -> dict[str, Any]:
    """The Avro schema of `raw_record.avsc`, as a plain dictionary."""
    schema: dict[str, Any] = json.loads(resources.files("schemas").joinpath("raw_record.avsc").read_text("utf-8"))
    return schema
