"""Orders under control/requests/: what commands and DAGs ask the ingester to collect (again), one create-only object each."""

import hashlib
import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

_STAMP = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True, slots=True)
class Order:
    """Collect a stretch of a query's timeline (again)."""

    name: str
    query: str
    since: datetime
    """Inclusive, UTC."""
    until: datetime
    """Exclusive, UTC."""

    @classmethod
    def new(cls, query: str, since: datetime, until: datetime, now: datetime) -> Self:
        """An order with a name of its own that sorts by time."""
        return cls(f"{now.astimezone(UTC):{_STAMP}}-{secrets.token_hex(4)}", query, since, until)

    @classmethod
    def of_hole(cls, query: str, since: datetime, until: datetime) -> Self:
        """An order whose name says what it asks for: the same hole has the same."""
        what = f"{query}\n{since.astimezone(UTC).isoformat()}\n{until.astimezone(UTC).isoformat()}"
        digest = hashlib.sha256(what.encode()).hexdigest()[:16]
        return cls(f"{since.astimezone(UTC):{_STAMP}}-{digest}", query, since, until)

    def to_json(self) -> bytes:
        since, until = (moment.astimezone(UTC).isoformat() for moment in (self.since, self.until))
        return json.dumps({"kind": "backfill", "query": self.query, "since": since, "until": until}).encode()

    @classmethod
    def from_json(cls, name: str, content: bytes) -> Self:
        """Read what `to_json` wrote. Raises ValueError with what is wrong."""
        try:
            found = json.loads(content)
            if found["kind"] != "backfill":
                raise ValueError(f"kind {found['kind']!r} is unknown")
            since, until = datetime.fromisoformat(found["since"]), datetime.fromisoformat(found["until"])
            query = found["query"]
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"not an order: {error!r}") from error
        if since.tzinfo is None or until.tzinfo is None:
            raise ValueError("since and until need a time zone")
        if not isinstance(query, str) or since >= until:
            raise ValueError("query is a name, and since lies before until")
        return cls(name, query, since, until)
