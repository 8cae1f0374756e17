"""The fast way from pages to rows: Rust reads the JSON into Arrow, Arrow makes the columns, Python never sees a tweet.

It is all or nothing. Whatever it cannot read exactly as the exact way would (a value of the wrong type, an id that is no
number, a page that is no JSON) raises `Unfit` for the whole batch, and the caller asks again with fewer pages.
Keys without a column are not seen here; `sample.py` looks for them.
"""

import contextlib
import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import arro3.io
import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from compaction_dags.compaction.decode.asked import EVERYTHING, Asked
from compaction_dags.compaction.decode.model import (
    HTML,
    ID,
    INCLUDES,
    SHAPES,
    Column,
    Items,
    Leaf,
    Path,
    Shape,
    key_column,
)
from compaction_dags.compaction.decode.pages import RawPage
from compaction_dags.compaction.rows import file_schema, united
from schemas.curated import DECODED, TABLES, TIME
from schemas.snowflake import EPOCH_MS, SHIFT

Parser: TypeAlias = Callable[[bytes, int, pa.Schema], pa.RecordBatch]
"""JSON objects, one after the other, how many, and the schema to read them with -> one row per object. Raises anything
for bad JSON.
"""

_MISREAD_ESCAPE: Final = re.compile(rb"\\u(?:0000|[dD](?:8[4-9a-fA-F]|[9abAB]))")
_SURELY_SHALLOW: Final = 10_000
"""A page of X has about 4,000 brackets; a stack of 1 MB holds arro3's recursion of this depth."""
_ENTITIES: Final = (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&"))
"""What X escapes. The ampersand last, or what it makes would be decoded again."""
_PANIC: Final = "PanicException"
"""What a panic of Rust is in Python: a BaseException of a class that cannot be imported (PyO3's pyo3_runtime)."""
_EXACT_IN_DOUBLE: Final = 2**53
_FIRST_TIME: Final = -62_135_596_800_000_000
"""Microseconds from 1970 to the beginning of year 1."""
_LAST_TIME: Final = 253_402_300_799_999_999
"""The same to the last microsecond of year 9999."""
_OF_POSTS: Final = frozenset(table for table in DECODED if "referenced_tweets" in TABLES[table].names)
_KINDS: Final = {"replied_to_id": "replied_to", "quoted_id": "quoted", "retweeted_id": "retweeted"}


class Unfit(Exception):
    """The batch holds something that only the exact way can read."""


def parse_arro3(data: bytes, objects: int, schema: pa.Schema) -> pa.RecordBatch:
    """Read by arrow-rs, which takes two thirds of the CPU of pyarrow.json. Only for bodies that are `safe_for_arro3`."""
    reader = arro3.io.read_json(io.BytesIO(data), schema, batch_size=objects + 1)
    return _only_batch(pa.RecordBatchReader.from_stream(reader).read_all())


def safe_for_arro3(body: bytes) -> bool:
    """Whether arro3 (0.9.1) may be given the body. What it does otherwise, found by the tests:

    - A value that does not fit is quoted in the error; a NUL in that text is a panic across a C interface, and nesting
      is recursed into until the stack is used up. Either ends the whole process.
    - An escaped surrogate pair beyond U+1FFFF is read as another character, silently.
    """
    if b"\0" in body or _MISREAD_ESCAPE.search(body):
        return False
    brackets = np.count_nonzero((np.frombuffer(body, np.uint8) | 0x20) == ord("{"))  # `[` is `{` without that bit
    return bool(brackets <= _SURELY_SHALLOW) or _is_shallow(body)


def _is_shallow(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=msgspec.Raw)  # stops at Python's own limit of recursion
    except (RecursionError, msgspec.DecodeError):
        return False
    return True


def parse_pyarrow(data: bytes, _objects: int, schema: pa.Schema) -> pa.RecordBatch:
    """Read by pyarrow: the tested alternative, and the way for bodies that arro3 must not be given."""
    table = pyarrow.json.read_json(
        io.BytesIO(data),
        read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    )
    return _only_batch(table)


def decode(pages: Sequence[RawPage], parse: Parser, asked: Asked | None = None) -> dict[str, pa.Table]:
    """The rows of the pages, by table. Raises Unfit if any of the pages holds anything out of the ordinary.

    `asked`: what pages before these held, which makes reading others like them faster.
    """
    try:
        answers = _answers(pages, parse, asked or Asked())
        sent = _Sent(answers)
        if pc.any(pc.and_(sent.at(("data",)).is_null(), sent.at(("meta",)).is_null())).as_py():
            raise Unfit("a page with neither data nor meta")
        books = _Books(pages)
        parts = {"tweets": [_table("tweets", sent.at(("data",)), books)]}
        for key, table in INCLUDES.items():
            parts.setdefault(table, []).append(_table(table, sent.at(("includes", key)), books))
    except (pa.ArrowException, OverflowError) as error:
        raise Unfit(str(error)[:200]) from error
    return {table: united(parts[table], file_schema(table)) for table in DECODED}


# --- JSON to Arrow, as X's answers are shaped ---


def _answers(pages: Sequence[RawPage], parse: Parser, asked: Asked) -> pa.StructArray:
    if asked.narrow is not EVERYTHING:
        with contextlib.suppress(Unfit):  # most likely they hold something that none before them held
            return _parse(pages, parse, asked.narrow)
    answers = _parse(pages, parse, EVERYTHING)
    asked.show(answers)
    return answers


def _parse(pages: Sequence[RawPage], parse: Parser, schema: pa.Schema) -> pa.StructArray:
    """One struct per page, in order. The envelope around each body keeps a torn page from passing for two, or for none."""
    lines = [part for i, page in enumerate(pages) for part in (b'{"i":%d,"p":' % i, page.body, b"}\n")]
    try:
        batch = parse(b"".join(lines), len(pages), schema)
    except Unfit:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise  # not the parser's: a task that timed out, say
        raise Unfit(str(error)[:200]) from error
    if batch.num_rows != len(pages) or not batch.column("i").equals(pa.array(range(len(pages)), pa.int32())):
        raise Unfit("a page is not one JSON value")
    answers = batch.column("p")
    if answers.null_count:
        raise Unfit("a page is null")
    return answers


def _only_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema)


class _Sent:
    """What objects were sent with, by path. Each object on the way is taken apart once."""

    def __init__(self, objects: pa.StructArray) -> None:
        self.objects = objects
        self._found: dict[Path, pa.Array] = {(): objects}

    def at(self, path: Path) -> pa.Array:
        """The values at the path, null where anything on the way is. Of a null type if no page holds any."""
        if path not in self._found:
            parent = self.at(path[:-1])
            if pa.types.is_null(parent.type):
                return parent
            names = [(*path[:-1], each.name) for each in parent.type]
            self._found |= zip(names, parent.flatten(), strict=True)
        return self._found[path]


# --- Arrow to Arrow: from what was sent to what a column holds ---


def _values(array: pa.Array, leaf: Leaf) -> pa.Array:
    if array.null_count == len(array):
        return pa.nulls(len(array), leaf.type)
    if leaf.form == ID:
        if not pc.all(pc.ascii_is_decimal(array)).as_py():
            raise Unfit("an id is not a number")
        return pc.cast(array, pa.int64())
    if pa.types.is_timestamp(leaf.type):
        return _times(pc.cast(array, leaf.type))
    if pa.types.is_integer(leaf.type):
        return _whole_numbers(array, leaf.type)
    if pa.types.is_floating(leaf.type) and not pc.all(pc.is_finite(array)).as_py():
        raise Unfit("a number is not finite")
    return array


def _times(array: pa.Array) -> pa.Array:
    ends = pc.min_max(array)
    if ends["min"].value < _FIRST_TIME or ends["max"].value > _LAST_TIME:
        raise Unfit("a time before year 1 or after year 9999")
    return array


def _whole_numbers(array: pa.Array, type_: pa.DataType) -> pa.Array:
    ends = pc.min_max(array).as_py()
    if ends["min"] <= -_EXACT_IN_DOUBLE or ends["max"] >= _EXACT_IN_DOUBLE:
        raise Unfit("a number that a double does not hold exactly")
    return pc.cast(array, type_)  # raises where a fraction or a NaN would be lost


def _list(array: pa.ListArray, values: pa.Array) -> pa.ListArray:
    """The same lists with other values."""
    mask = array.is_null() if array.null_count else None
    return pa.ListArray.from_arrays(array.offsets, values, mask=mask)


def _convert(array: pa.Array, node: Leaf | Items) -> pa.Array:
    if isinstance(node, Leaf):
        return _values(array, node)
    if isinstance(node.element, Leaf):
        return _list(array, _values(array.values, node.element))
    return _list(array, _structs(array.values, node.element))


def _structs(array: pa.StructArray, shape: Shape) -> pa.StructArray:
    """Structs in the form of the shape's columns."""
    fields = [column.field for column in shape.columns]
    sent = _Sent(array)
    children = [
        pa.nulls(len(array), column.field.type) if (found := _column(sent, column, shape)) is None else found
        for column in shape.columns
    ]
    mask = array.is_null() if array.null_count else None
    return pa.StructArray.from_arrays(children, fields=fields, mask=mask)


def _column(sent: _Sent, column: Column, shape: Shape) -> pa.Array | None:
    """One column: the first of its sources that is there. None if X sent nothing for it in any object."""
    chosen: pa.Array | None = None
    for path in column.paths:
        *names, last = path
        found = sent.at(tuple(names) if isinstance(last, int) else path)
        if found.null_count == len(found):
            continue
        values = _convert(found, shape.nodes[path])
        if isinstance(last, int):
            values = pc.list_element(values, last)  # raises where the list is shorter
        chosen = values if chosen is None else pc.coalesce(chosen, values)
        if chosen.null_count == 0:
            break
    if chosen is None:
        return None
    if column.form == HTML:
        chosen = _unescaped(chosen)
    return chosen if chosen.type.equals(column.field.type) else chosen.cast(column.field.type)


def _unescaped(texts: pa.Array) -> pa.Array:
    """Text with HTML entities decoded. Python sees only the few texts with an ampersand that is none of X's own."""
    mask = pc.fill_null(pc.match_substring(texts, "&"), False)
    escaped = texts.filter(mask)
    if not len(escaped):
        return texts
    plain, theirs = escaped, pc.count_substring(escaped, "&")
    for entity, character in _ENTITIES:
        theirs = pc.subtract(theirs, pc.count_substring(escaped, entity))
        plain = pc.replace_substring(plain, entity, character)
    others = pc.not_equal(theirs, 0)
    if pc.any(others).as_py():
        decoded = [html.unescape(text) for text in escaped.filter(others).to_pylist()]
        plain = pc.replace_with_mask(plain, others, pa.array(decoded, pa.string()))
    return pc.replace_with_mask(texts, mask, plain)


# --- rows with their bookkeeping ---


class _Books:
    """What every row says of the page it came from; one value per page, to be taken by page."""

    def __init__(self, pages: Sequence[RawPage]) -> None:
        self.raw_key = pa.array([page.raw_key for page in pages], pa.string())
        self.record_index = pa.array([page.record_index for page in pages], pa.int32())
        self.fetched_at = pa.array([page.received_at_us for page in pages], pa.int64()).cast(TIME)
        self.query = pa.array([page.query for page in pages], pa.string())


def _table(table: str, lists: pa.ListArray, books: _Books) -> pa.Table:
    """One row per object of the lists, one list per page. Only the columns that hold anything."""
    schema = file_schema(table)
    if lists.null_count == len(lists) or not len(rows := lists.flatten()):
        return schema.empty_table()
    objects, shape = _Sent(rows), SHAPES[table]
    found = ((column.name, _column(objects, column, shape)) for column in shape.columns if column.paths)
    sent = {name: values for name, values in found if values is not None}
    _check_keys(sent.get(key_column(table).name))
    columns = sent | _computed(table, objects, sent) | _bookkeeping(table, pc.list_parent_indices(lists), books)
    held = pa.schema([each for each in schema if each.name in columns])
    return pa.Table.from_arrays([columns[name] for name in held.names], schema=held)


def _check_keys(keys: pa.Array | None) -> None:
    if keys is None or keys.null_count:
        raise Unfit("an object without its key")
    if pa.types.is_string(keys.type) and pc.any(pc.equal(keys, "")).as_py():
        raise Unfit("an object with an empty key")


def _bookkeeping(table: str, page_of: pa.Array, books: _Books) -> dict[str, pa.Array]:
    fetched_at = books.fetched_at.take(page_of)
    columns = {
        "raw_key": books.raw_key.take(page_of),
        "record_index": books.record_index.take(page_of),
        "fetched_at": fetched_at,
    }
    if table == "tweets":
        columns["matched_queries"] = pa.ListArray.from_arrays(
            pa.array(range(len(page_of) + 1), pa.int32()), books.query.take(page_of)
        )
        columns["first_fetched_at"] = fetched_at
    return columns


def _milliseconds(ids: pa.Array) -> npt.NDArray[np.int64]:
    numbers: npt.NDArray[np.int64] = ids.to_numpy(zero_copy_only=False)
    return (numbers >> SHIFT) + EPOCH_MS


def _computed(table: str, objects: _Sent, sent: dict[str, pa.Array]) -> dict[str, pa.Array]:
    """Columns of posts that X does not send as such, those that hold anything."""
    if table not in _OF_POSTS:
        return {}
    computed = {"created_at": _created(sent), "urls_sent": _urls_sent(objects, SHAPES[table])}
    if "referenced_tweets" in sent:
        computed |= _references(sent["referenced_tweets"])
    return {name: values for name, values in computed.items() if values is not None}


def _created(sent: dict[str, pa.Array]) -> pa.Array:
    created = sent.get("created_at")
    if created is not None and not created.null_count:
        return created
    of_ids = pa.array(_milliseconds(sent["id"]) * 1_000, pa.int64()).cast(TIME)
    return of_ids if created is None else pc.coalesce(created, of_ids)


def _urls_sent(objects: _Sent, shape: Shape) -> pa.Array | None:
    urls = next(column for column in shape.columns if column.name == "urls")
    *notes, plain = urls.paths
    of_notes = _column(objects, Column.of(urls.field, notes), shape)
    sent = _column(objects, Column.of(urls.field, [plain]), shape)
    if of_notes is None or sent is None:
        return None
    return pc.if_else(of_notes.is_valid(), sent, pa.nulls(1, sent.type)[0])


def _references(references: pa.ListArray) -> dict[str, pa.Array]:
    """The id of the first reference of each kind, per post."""
    post_of = pc.list_parent_indices(references).to_numpy(zero_copy_only=False)
    sent = _Sent(references.flatten())
    types, ids = sent.at(("type",)), sent.at(("id",))
    columns = {}
    for name, kind in _KINDS.items():
        found = pc.and_(pc.fill_null(pc.equal(types, kind), False), ids.is_valid())
        posts = post_of[found.to_numpy(zero_copy_only=False)]
        values = np.zeros(len(references), np.int64)
        missing = np.ones(len(references), np.bool_)
        values[posts[::-1]] = ids.filter(found).to_numpy(zero_copy_only=False)[::-1]  # the last to be set stays
        missing[posts] = False
        columns[name] = pa.array(values, pa.int64(), mask=missing) if len(posts) else None
    return columns
