"""The exact way from a page to rows: plain Python, object by object, for everything the fast way cannot take.

It keeps every object that has a usable key. A value that does not fit its column and a key without a column go to the
row's `extras`, at their own paths; an object without a usable key goes to the rejects; a page that is no answer of X
goes there as a whole. Nothing else is lost, and nothing raises but `TooDeep`.
"""

import html
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pyarrow as pa

from compaction_dags.compaction.decode.model import (
    HTML,
    ID,
    IGNORED,
    INCLUDES,
    INCLUDES_KEYS,
    JSON,
    PAGE_KEYS,
    SHAPES,
    Column,
    Items,
    Leaf,
    Node,
    Object,
    Path,
    Shape,
    key_column,
)
from compaction_dags.compaction.decode.pages import RawPage, Reject
from compaction_dags.compaction.rows import file_schema
from schemas.curated import DECODED
from schemas.snowflake import MAX_ID, time_of

_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_DIGITS: Final = re.compile(r"\d+", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST_WHOLE_NUMBER: Final = 40
"""Digits of a JSON number that are read as one; Python's own limit is 4300, and no column holds more than 19."""


class TooDeep(Exception):
    """The page is nested more deeply than Python reads."""


class _Unusable(Exception):
    """The object has no usable key."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class _Misfit(Exception):
    """The value does not fit."""


@dataclass(slots=True)
class Found:
    """What the exact way made of some pages."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {table: [] for table in DECODED})
    rejects: list[Reject] = field(default_factory=list)
    unknown_keys: Counter[str] = field(default_factory=Counter)
    misfits: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Found") -> None:
        for table, rows in other.rows.items():
            self.rows[table] += rows
        self.rejects += other.rejects
        self.unknown_keys += other.unknown_keys
        self.misfits += other.misfits

    def tables(self) -> dict[str, pa.Table]:
        """The rows in Arrow."""
        return {table: pa.Table.from_pylist(rows, schema=file_schema(table)) for table, rows in self.rows.items()}

    @property
    def unknown_columns(self) -> bool:
        """Whether objects, not only the page around them, had keys without a column."""
        return any(path.split(".", 1)[0] in DECODED for path in self.unknown_keys)


def decode(pages: Sequence[RawPage]) -> Found:
    """The rows of the pages, and what could not be used. Raises TooDeep."""
    found = Found()
    for page in pages:
        try:
            found.add(_page(page))
        except RecursionError as error:  # of reading it, or of writing a part of it down again, which goes deeper
            raise TooDeep(f"{page.raw_key} record {page.record_index}: nested too deeply") from error
    return found


def load(body: bytes) -> Any:
    """JSON as forgiving as can be: bytes that are not UTF-8 and numbers beyond all bounds are no reason to lose a page.
    Raises ValueError and RecursionError.
    """
    text = body.decode("utf-8-sig", errors="surrogateescape")
    return json.loads(text, strict=False, parse_int=_whole, parse_float=_real, parse_constant=str)


def _whole(text: str) -> int | str:
    return int(text) if len(text) <= _LONGEST_WHOLE_NUMBER else text


def _real(text: str) -> float | str:
    number = float(text)
    return number if math.isfinite(number) else text


def _page(page: RawPage) -> Found:
    found = Found()
    try:
        answer = load(page.body)
    except ValueError as error:
        return _refuse(found, page, "page_not_json", str(error))
    if not isinstance(answer, dict):
        return _refuse(found, page, "page_not_object", f"the answer is a JSON {_kind(answer)}")
    if answer.get("data") is None and answer.get("meta") is None:
        return _refuse(
            found, page, "page_not_search", f"neither data nor meta; keys: {_clean(', '.join(answer))[:200]}"
        )
    found.unknown_keys.update(_clean(key) for key in answer if key not in PAGE_KEYS)
    _objects(found, page, "tweets", "data", answer.get("data"))
    includes = answer.get("includes")
    if includes is None:
        return found
    if not isinstance(includes, dict):
        return _refuse(found, page, "includes_not_object", f"includes is a JSON {_kind(includes)}", includes)
    found.unknown_keys.update(f"includes.{_clean(key)}" for key in includes if key not in INCLUDES_KEYS)
    for key, table in INCLUDES.items():
        _objects(found, page, table, f"includes.{key}", includes.get(key))
    return found


def _refuse(found: Found, page: RawPage, reason: str, detail: str, part: Any = None) -> Found:
    body = page.body if part is None else dump(part).encode()
    found.rejects.append(_reject(page, reason, detail, None, body))
    return found


def _objects(found: Found, page: RawPage, table: str, path: str, objects: Any) -> None:
    if objects is None:
        return
    if not isinstance(objects, list):
        reason = "data_not_array" if path == "data" else "includes_not_array"
        _refuse(found, page, reason, f"{path} is a JSON {_kind(objects)}", objects)
        return
    for number, sent in enumerate(objects):
        try:
            found.rows[table].append(_row(found, page, table, sent))
        except _Unusable as error:
            detail = f"{path}[{number}]: {error.detail}"
            found.rejects.append(_reject(page, error.reason, detail, _id_as_sent(table, sent), dump(sent).encode()))


def _reject(page: RawPage, reason: str, detail: str, tweet_id: str | None, body: bytes) -> Reject:
    return Reject(
        page.raw_key, page.record_index, page.query, reason, detail, tweet_id, body, received_at_us=page.received_at_us
    )


def _id_as_sent(table: str, sent: Any) -> str | None:
    key = sent.get(key_column(table).name) if isinstance(sent, dict) else None
    return _clean(str(key))[:64] if isinstance(key, str | int | float) and not isinstance(key, bool) else None


def _kind(value: Any) -> str:
    kinds = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return kinds.get(type(value), "null")


# --- one object ---


def _row(found: Found, page: RawPage, table: str, sent: Any) -> dict[str, Any]:
    if not isinstance(sent, dict):
        raise _Unusable("not_object", f"a JSON {_kind(sent)}, not an object")
    _check_key(table, sent)
    shape = SHAPES[table]
    seen = _Leftovers(found)
    fitted, left = seen.fit_object(sent, shape.tree, table)
    row = _columns(fitted, shape)
    row["extras"] = dump(left) if left else None
    row |= {"raw_key": page.raw_key, "record_index": page.record_index, "fetched_at": _moment(page.received_at_us)}
    if table == "tweets":
        row["matched_queries"] = [page.query]
        row["first_fetched_at"] = row["fetched_at"]
    if "referenced_tweets" in row:
        _complete_post(row, fitted, shape)
    return row


def _moment(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def _check_key(table: str, sent: dict[str, Any]) -> None:
    column = key_column(table)
    key = sent.get(column.name)
    if key is None or key == "":
        raise _Unusable("no_id", f"no {column.name}")
    try:
        _leaf(key, Leaf(column.field.type, column.form))
    except _Misfit as error:
        raise _Unusable(_id_reason(key, column), f"{column.name} {_clean(str(key))[:80]!r}: {error}") from error


def _id_reason(key: Any, column: Column) -> str:
    if column.form != ID or isinstance(key, bool) or not isinstance(key, str | int):
        return "id_wrong_type"
    text = str(key)
    if _DIGITS.fullmatch(text):
        return "id_out_of_range"
    return "id_negative" if _DIGITS.fullmatch(text.removeprefix("-")) else "id_not_number"


def _complete_post(row: dict[str, Any], fitted: dict[str, Any], shape: Shape) -> None:
    if row["created_at"] is None:
        row["created_at"] = time_of(row["id"])
    urls = next(column for column in shape.columns if column.name == "urls")
    *notes, plain = urls.paths
    if _first(fitted, tuple(notes)) is not None:
        row["urls_sent"] = _at(fitted, plain)
    for name, kind in (("replied_to_id", "replied_to"), ("quoted_id", "quoted"), ("retweeted_id", "retweeted")):
        references = [item for item in row["referenced_tweets"] or [] if item is not None]
        ids = [item["id"] for item in references if item["type"] == kind and item["id"] is not None]
        row[name] = ids[0] if ids else None


# --- values: what fits goes on, what does not is left over ---

_NOTHING: Final = object()


class _Leftovers:
    """Reads a tree of values and hands back, beside what fits, what is left over in the same shape as it was sent."""

    def __init__(self, found: Found) -> None:
        self._found = found

    def fit_object(self, sent: dict[str, Any], tree: Object, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
        fitted: dict[str, Any] = {}
        left: dict[str, Any] = {}
        for key, value in sent.items():
            node = tree.keys.get(key)
            if node is None:
                self._found.unknown_keys[f"{path}.{_clean(key)}"] += 1
                left[key] = value
            elif value is not None:
                fitted[key], rest = self._fit(value, node, f"{path}.{key}")
                if rest is not _NOTHING:
                    left[key] = rest
        return fitted, left

    def _fit(self, value: Any, node: Node, path: str) -> tuple[Any, Any]:
        match node:
            case Object() if isinstance(value, dict):
                fitted, left = self.fit_object(value, node, path)
                return fitted, left or _NOTHING
            case Items() if isinstance(value, list):
                return self._fit_items(value, node.element, path)
            case Leaf():
                try:
                    return _leaf(value, node), _NOTHING
                except _Misfit:
                    pass
        return self._misfit(value, path)

    def _fit_items(self, items: list[Any], element: Leaf | Shape, path: str) -> tuple[Any, Any]:
        if isinstance(element, Leaf):
            try:
                return [None if item is None else _leaf(item, element) for item in items], _NOTHING
            except _Misfit:
                return self._misfit(items, path)
        if not all(item is None or isinstance(item, dict) for item in items):
            return self._misfit(items, path)
        pairs = [(None, {}) if item is None else self.fit_object(item, element.tree, path) for item in items]
        rest = [left for _, left in pairs]
        rows = [None if fitted is None else _columns(fitted, element) for fitted, _ in pairs]
        return rows, rest if any(rest) else _NOTHING

    def _misfit(self, value: Any, path: str) -> tuple[Any, Any]:
        self._found.misfits[path] += 1
        return None, value


def _columns(fitted: dict[str, Any], shape: Shape) -> dict[str, Any]:
    row = {}
    for column in shape.columns:
        value = _first(fitted, column.paths)
        row[column.name] = html.unescape(value) if value is not None and column.form == HTML else value
    return row


def _first(fitted: dict[str, Any], paths: tuple[Path, ...]) -> Any:
    for path in paths:
        value = _at(fitted, path)
        if value is not None:
            return value
    return None


def _at(fitted: Any, path: Path) -> Any:
    for part in path:
        if fitted is None:
            return None
        is_short = isinstance(part, int) and part >= len(fitted)
        fitted = None if is_short else fitted[part] if isinstance(part, int) else fitted.get(part)
    return fitted


def _leaf(value: Any, leaf: Leaf) -> Any:
    """The value as its column holds it. Raises _Misfit."""
    type_ = leaf.type
    if leaf.form == IGNORED:
        return None
    if leaf.form == JSON:
        return dump(value)
    if leaf.form == ID:
        return _id(value)
    if pa.types.is_timestamp(type_):
        return _time(value)
    if pa.types.is_integer(type_):
        return _integer(value, type_.bit_width)
    if pa.types.is_floating(type_):
        return _float(value)
    wanted = bool if pa.types.is_boolean(type_) else str
    if not isinstance(value, wanted):
        raise _Misfit(f"a JSON {_kind(value)}")
    return _clean(value) if isinstance(value, str) else value


def _id(value: Any) -> int:
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        digits = value.lstrip("0") or "0"
        number = int(digits) if len(digits) < _LONGEST_WHOLE_NUMBER else MAX_ID + 1
    elif isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        number = value
    else:
        raise _Misfit("not a whole number from 0")
    if number > MAX_ID:
        raise _Misfit("beyond 64 bits")
    return number


def _time(value: Any) -> datetime:
    """An ISO 8601 time; UTC where it does not say."""
    if not isinstance(value, str):
        raise _Misfit(f"a JSON {_kind(value)}")
    try:
        moment = datetime.fromisoformat(value)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise _Misfit("not a time") from error


def _integer(value: Any, bits: int) -> int:
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,40}", value, re.ASCII):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        value = _float(value)
        if not value.is_integer():
            raise _Misfit("not a whole number")
        value = int(value)
    if not -(1 << bits - 1) <= value < 1 << bits - 1:
        raise _Misfit(f"beyond {bits} bits")
    whole: int = value
    return whole


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _Misfit(f"a JSON {_kind(value)}")
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        raise _Misfit("not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise _Misfit("not a number") from error
    if not math.isfinite(number):
        raise _Misfit("not finite")
    return number


def dump(value: Any) -> str:
    """Compact JSON text of anything that JSON text gave."""
    return _clean(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _clean(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot hold, as U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", errors="surrogatepass").decode("utf-16-le", errors="replace")
