"""Made-up raw of one hour for the compaction benchmark: microbatches, and the same pages in the forms that peers read best.

An hour is 360 microbatches of 14 pages of 100 tweets; smaller and larger ones have fewer or more microbatches, at the same
pace. About every tenth tweet comes again with other counts. Forms:

    raw/*.avro      what the ingester seals: pages verbatim, Avro, zstandard
    typed/T/*.avro  one record per object, fields typed and nested as X sends them; Avro by fastavro, no codec
    lines/*.ndjson  a page a line
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

PAGES_A_FILE, TWEETS_A_PAGE = 14, 100
TWEETS_A_FILE = PAGES_A_FILE * TWEETS_A_PAGE
FILES_AN_HOUR = 360
HOUR = "2026-11-20T12"
_FILES_A_WORLD = 45


def build(folder: Path, files: int, processes: int, forms: bool) -> list[tuple[str, Path]]:
    """Write the microbatches, and the other forms if asked for; key and file of each microbatch."""
    for name in ("raw", "lines", "typed"):
        (folder / name).mkdir(parents=True)
    worlds = [range(start, min(start + _FILES_A_WORLD, files)) for start in range(0, files, _FILES_A_WORLD)]
    with ProcessPoolExecutor(processes) as pool:
        made = pool.map(partial(_world, folder, files, forms), worlds)
        return [each for part in made for each in part]


def _world(folder: Path, files: int, forms: bool, numbers: range) -> list[tuple[str, Path]]:
    """Some microbatches in a row; tweets come again only within them."""
    from ingester.microbatch import SEALED_LEVELS
    from tests.compaction.pages import NOON, World, microbatch, page_record, raw_key

    apart_ms = max(2, round(2 * 3_600_000 * 0.9 / (max(files, FILES_AN_HOUR) * TWEETS_A_FILE)))
    start = NOON + timedelta(seconds=3_600 * numbers[0] / max(files, FILES_AN_HOUR))
    world = World(numbers[0], start, users=20_000, hot=2_000, apart_ms=apart_ms)
    made = []
    for number in numbers:
        at = NOON + timedelta(seconds=3_600 * number / max(files, FILES_AN_HOUR))
        pages = [(at + timedelta(milliseconds=100 * n), world.body(TWEETS_A_PAGE)) for n in range(PAGES_A_FILE)]
        path = folder / "raw" / f"{number:06d}.avro"
        records = [page_record(body, when) for when, body in pages]
        path.write_bytes(microbatch(records, number + 1, blocks=False, level=SEALED_LEVELS["zstandard"]))
        made.append((raw_key(number + 1), path))
        if forms:
            _typed(folder / "typed", number, pages)
            _lines(folder / "lines", number, pages)
    return made


def _lines(folder: Path, number: int, pages: list[tuple[datetime, bytes]]) -> None:
    lines = [b'{"moment":%d,"page":%b}' % (_microseconds(at), body) for at, body in pages]
    (folder / f"{number:06d}.ndjson").write_bytes(b"\n".join(lines))


def _typed(folder: Path, number: int, pages: list[tuple[datetime, bytes]]) -> None:
    import fastavro

    for table, rows in typed_rows(pages).items():
        (folder / table).mkdir(exist_ok=True)
        with (folder / table / f"{number:06d}.avro").open("wb") as file:
            fastavro.writer(file, record_schema(table), rows, codec="null")


def typed_rows(pages: list[tuple[datetime, bytes]]) -> dict[str, list[dict[str, Any]]]:
    """The objects of pages by table, values in their types, and when their page was received."""
    from compaction_dags.compaction.decode.model import INCLUDES

    rows: dict[str, list[dict[str, Any]]] = {}
    for at, body in pages:
        answer = json.loads(body)
        for key, found in ({"data": answer["data"]} | answer["includes"]).items():
            table = INCLUDES.get(key, "tweets")
            for each in found:
                rows.setdefault(table, []).append(_fit(each, shape_type(table)) | {"at": _microseconds(at)})
    return rows


def typed_pages(pages: list[tuple[datetime, bytes]]) -> Iterator[dict[str, Any]]:
    """The pages as one typed record each."""
    for page in pages:
        yield typed_rows([page])


def _fit(value: Any, type_: Any) -> Any:
    import pyarrow as pa

    if value is None:
        return None
    if pa.types.is_struct(type_):
        return {each.name: _fit(value[each.name], each.type) for each in type_ if each.name in value}
    if pa.types.is_list(type_):
        return [_fit(each, type_.value_type) for each in value]
    if pa.types.is_timestamp(type_):
        return _microseconds(datetime.fromisoformat(value))
    return int(value) if pa.types.is_integer(type_) else value


def _microseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1_000_000)


def moment(microseconds: int) -> datetime:
    """A time as records have it."""
    return datetime.fromtimestamp(microseconds / 1_000_000, UTC)


@cache
def shape_type(table: str) -> Any:
    """The Arrow type of a table's objects as X sends them, ids and times in their own types."""
    from compaction_dags.compaction.decode.model import SHAPES

    return _type(SHAPES[table])


def _type(node: Any) -> Any:
    import pyarrow as pa

    from compaction_dags.compaction.decode.model import ID, IGNORED, JSON, Items, Object, Shape

    match node:
        case Shape(tree=tree):
            return _type(tree)
        case Object(keys=keys):
            fields = [(key, type_) for key, child in keys.items() if (type_ := _type(child)) is not None]
            return pa.struct(fields) if fields else None
        case Items(element=element):
            return pa.list_(_type(element))
    if node.form in (IGNORED, JSON):
        return None
    return pa.int64() if node.form == ID else node.type


@cache
def record_schema(table: str) -> Any:
    """Avro: every field nullable, every type written out under a name of its own, as most readers want it."""
    import fastavro

    names = count()
    schema = _avro(shape_type(table), table, names)
    schema["fields"].append({"name": "at", "type": "long"})
    return fastavro.parse_schema(schema)


@cache
def page_schema() -> Any:
    """Avro of a whole page, nested."""
    import fastavro

    from schemas.curated import DECODED

    names = count()
    fields = []
    for table in DECODED:
        rows = _avro(shape_type(table), table, names)
        rows["fields"].append({"name": "at", "type": "long"})
        fields.append({"name": table, "type": ["null", {"type": "array", "items": rows}], "default": None})
    return fastavro.parse_schema({"type": "record", "name": "page", "fields": fields})


def _avro(type_: Any, name: str, names: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_struct(type_):
        fields = [
            {"name": each.name, "type": ["null", _avro(each.type, each.name, names)], "default": None} for each in type_
        ]
        return {"type": "record", "name": f"{name}_{next(names)}", "fields": fields}
    if pa.types.is_list(type_):
        return {"type": "array", "items": ["null", _avro(type_.value_type, name, names)]}
    if pa.types.is_timestamp(type_):
        return {"type": "long", "logicalType": "timestamp-micros"}
    if pa.types.is_integer(type_):
        return "long"
    return {"string": "string", "bool": "boolean", "double": "double"}[str(type_)]


def fill(client: Any, bucket: str, made: list[tuple[str, Path]]) -> None:
    """Put the microbatches into a bucket as the ingester does."""
    for key, path in made:
        data = path.read_bytes()
        metadata = {"sha256": hashlib.sha256(data).hexdigest(), "records": str(PAGES_A_FILE)}
        client.put_object(Bucket=bucket, Key=key, Body=data, Metadata=metadata)
