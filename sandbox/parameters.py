"""What a request to search or counts asks for: X's rules for its parameters, and the complaint X sends for each breach.

Wording as in recorded answers of X where there is one; the limits are those of x's documents for self-serve accounts.
"""

import hashlib
import re
import struct
from base64 import b32decode, b32encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sandbox.pages import ACCEPTED, Fields, known_fields
from sandbox.rules import RuleError, parse
from sandbox.world import REACH_MS
from schemas.snowflake import EPOCH_MS, MAX_ID, SHIFT

QUERY_LENGTH = 512
"""Characters of a rule, for self-serve accounts."""
HORIZON_MS = 10_000
"""Search and counts know nothing younger than this."""

_ID = re.compile(r"[0-9]{1,19}")
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)")
_WINDOW = ("query", "start_time", "end_time", "since_id", "until_id", "next_token", "pagination_token")
SEARCH_PARAMETERS = (*_WINDOW, "max_results", "sort_order", *ACCEPTED)
COUNTS_PARAMETERS = (*_WINDOW, "granularity", "search_count.fields", "post.fields", "tweet.fields")


@dataclass(frozen=True, slots=True)
class BadParameters(Exception):
    """What is wrong with a request: X's `errors` of a 400."""

    errors: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Window:
    """The ids asked for, both bounds exclusive, already cut to what X would look at; and where a page goes on."""

    since_id: int
    until_id: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class SearchAsked:
    """A checked search request."""

    rule: str
    window: Window
    max_results: int
    by_relevancy: bool
    fields: Fields
    token: str | None
    digest: bytes

    def token_at(self, until_id: int, offset: int = 0) -> str:
        """The opaque next_token for the page that begins below `until_id`, or after `offset` posts by relevancy."""
        return b32encode(struct.pack(">QI", until_id, offset) + self.digest).decode().lower().rstrip("=")


@dataclass(frozen=True, slots=True)
class CountsAsked:
    """A checked counts request. Bounds of time in Unix milliseconds, those of ids exclusive."""

    rule: str
    window: Window
    start_ms: int
    end_ms: int
    bucket_ms: int
    post_names: bool


def search_asked(given: Mapping[str, str], now_ms: int) -> SearchAsked:
    """Check a search request. Raises BadParameters."""
    check = _Check(given, now_ms, SEARCH_PARAMETERS)
    rule = check.rule()
    max_results = check.number("max_results", 10, 10, 100)
    order = check.one_of("sort_order", ("recency", "relevancy"), "recency")
    for name, accepted in ACCEPTED.items():
        check.listed(name, accepted)
    if "tweet.fields" in given and "post.fields" in given:
        check.complain("post.fields", "The `post.fields` parameter cannot be used together with `tweet.fields`")
    window, _, _ = check.window()
    digest = hashlib.blake2b(
        "\0".join([rule, order, *(given.get(name, "") for name in _WINDOW[1:5])]).encode(), digest_size=8
    ).digest()
    token, position = check.token(digest)
    check.done()
    if position is not None:
        window = Window(window.since_id, min(position[0], window.until_id), position[1])
    return SearchAsked(
        rule=rule,
        window=window,
        max_results=max_results,
        by_relevancy=order == "relevancy",
        fields=known_fields(tuple(sorted((name, given[name]) for name in ACCEPTED if name in given))),
        token=token,
        digest=digest,
    )


def counts_asked(given: Mapping[str, str], now_ms: int) -> CountsAsked:
    """Check a counts request. Raises BadParameters."""
    check = _Check(given, now_ms, COUNTS_PARAMETERS)
    rule = check.rule()
    granularity = check.one_of("granularity", ("minute", "hour", "day"), "hour")
    window, start_ms, end_ms = check.window()
    check.token(b"")
    check.done()
    bucket = {"minute": 60_000, "hour": 3_600_000, "day": 86_400_000}[granularity]
    post_names = "post.fields" in given or "post_count" in given.get("search_count.fields", "")
    return CountsAsked(rule, window, start_ms, end_ms, bucket, post_names)


def first_id(ms: int) -> int:
    """The smallest id of a Unix millisecond."""
    return max(0, ms - EPOCH_MS) << SHIFT


def written(ms: int) -> str:
    """A Unix millisecond as X writes times."""
    moment = datetime.fromtimestamp(ms / 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"


def _minute(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms // 1000, UTC):%Y-%m-%dT%H:%MZ}"


class _Check:
    def __init__(self, given: Mapping[str, str], now_ms: int, names: tuple[str, ...]) -> None:
        self._given = given
        self._now_ms = now_ms
        self._errors: list[dict[str, Any]] = []
        for name in given:
            if name not in names:
                self.complain(name, f"The query parameter [{name}] is not one of [{','.join(names)}]")

    def complain(self, name: str, message: str) -> None:
        value = self._given.get(name)
        self._errors.append({"parameters": {name: [] if value is None else [value]}, "message": message})

    def done(self) -> None:
        if self._errors:
            raise BadParameters(tuple(self._errors))

    def rule(self) -> str:
        rule = self._given.get("query", "")
        if not rule.strip():
            self.complain("query", "Request parameter `query` can not be empty")
        elif len(rule) > QUERY_LENGTH:
            self.complain("query", f"Rule length exceeds the max limit of {QUERY_LENGTH}. Please reduce the length by {len(rule) - QUERY_LENGTH}")  # fmt: skip
        else:
            try:
                parse(rule)
            except RuleError as error:
                self.complain("query", f"There were errors processing your request: {error}")
        return rule

    def number(self, name: str, default: int, low: int, high: int) -> int:
        text = self._given.get(name)
        if text is None:
            return default
        if not re.fullmatch(r"-?[0-9]{1,9}", text) or not low <= int(text) <= high:
            self.complain(name, f"The `{name}` query parameter value [{text}] is not between {low} and {high}")
            return default
        return int(text)

    def one_of(self, name: str, accepted: tuple[str, ...], default: str) -> str:
        text = self._given.get(name, default)
        if text not in accepted:
            self.complain(name, f"The `{name}` query parameter value [{text}] is not one of [{','.join(accepted)}]")
            return default
        return text

    def listed(self, name: str, accepted: list[str]) -> None:
        for value in self._given.get(name, accepted[0]).split(","):
            if value not in accepted:
                self.complain(
                    name, f"The `{name}` query parameter value [{value}] is not one of [{','.join(accepted)}]"
                )

    def window(self) -> tuple[Window, int, int]:
        """Ids and times asked for; the index ends ten seconds before now and begins seven days before now."""
        since, until = self._id("since_id"), self._id("until_id")
        start, end = self._time("start_time"), self._time("end_time")
        if (since is not None or until is not None) and (start is not None or end is not None):
            at_fault = "since_id" if since is not None else "until_id"
            self.complain(
                at_fault,
                "Invalid use of 'since_id' or 'until_id' in conjunction with 'start_time' or 'end_time'.",
            )
        horizon, reach = self._now_ms - HORIZON_MS, self._now_ms - REACH_MS
        for name, moment in (("start_time", start), ("end_time", end)):
            shown = f"Invalid '{name}':'{'' if moment is None else _minute(moment)}'. '{name}'"
            if moment is not None and moment > horizon:
                self.complain(name, f"{shown} must be a minimum of 10 seconds prior to the request time.")
            elif moment is not None and moment < reach // 60_000 * 60_000:
                self.complain(name, f"{shown} must be on or after {_minute(reach)}")
        if start is not None and end is not None and start >= end:
            self.complain(
                "start_time", f"Invalid 'start_time':'{_minute(start)}'. 'start_time' must be before 'end_time'."
            )
        start_ms = start if start is not None else reach - HORIZON_MS if since is None else (since >> SHIFT) + EPOCH_MS
        end_ms = end if end is not None else horizon if until is None else (until >> SHIFT) + EPOCH_MS + 1
        end_ms = min(end_ms, horizon)
        return (
            Window(
                since if since is not None else first_id(start_ms) - 1,
                min(until if until is not None else MAX_ID, first_id(end_ms)),
            ),
            max(start_ms, reach - HORIZON_MS),
            end_ms,
        )

    def _id(self, name: str) -> int | None:
        text = self._given.get(name)
        if text is None:
            return None
        if not _ID.fullmatch(text):
            self.complain(name, f"The `{name}` query parameter value [{text}] does not match ^[0-9]{{1,19}}$")
            return None
        oldest = first_id(self._now_ms - REACH_MS)
        if int(text) < oldest:
            self.complain(
                name,
                f"'{name}' must be a tweet id created after {_minute(self._now_ms - REACH_MS)}. "
                f"Please use a '{name}' that is larger than {oldest}",
            )
        return min(int(text), MAX_ID)

    def _time(self, name: str) -> int | None:
        text = self._given.get(name)
        if text is None:
            return None
        match = _TIME.fullmatch(text)
        try:
            moment = datetime.fromisoformat(match[1] + match[2].replace("Z", "+00:00")) if match else None
        except ValueError:
            moment = None
        if moment is None:
            self.complain(name, f"The `{name}` query parameter value [{text}] is not a valid RFC3339 date-time")
            return None
        return int(moment.timestamp()) * 1000

    def token(self, digest: bytes) -> tuple[str | None, tuple[int, int] | None]:
        tokens = [name for name in ("next_token", "pagination_token") if name in self._given]
        if not tokens:
            return None, None
        if len(tokens) > 1:
            self.complain("next_token", "At most one of [next_token, pagination_token] can be used")
            return None, None
        text = self._given[tokens[0]]
        try:
            raw = b32decode(text.upper() + "=" * (-len(text) % 8))
            until_id, offset = struct.unpack(">QI", raw[:12])
        except (ValueError, struct.error):
            raw, until_id, offset = b"", 0, 0
        if not digest or raw[12:] != digest:
            self.complain(tokens[0], f"The `{tokens[0]}` query parameter value [{text}] is not valid for this request")
            return None, None
        return text, (until_id, offset)
