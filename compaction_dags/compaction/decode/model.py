"""What decoding knows of X's answers, read off the curated schemas: for each table which keys there are and what they feed.

A `Shape` is a kind of JSON object: the tree of its known keys, and the columns that are filled from the tree. The tree's
leaves say how a value is read; both ways of decoding follow the same tree.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Self, TypeAlias

import pyarrow as pa

from schemas.curated import DECODED, DERIVED, KEYS, TABLES

Path: TypeAlias = tuple[str | int, ...]
"""Keys from an object down to a value; a number, only at the end, is an element of an array."""

ID, HTML, JSON = "id", "html", "json"
"""The forms of schemas.curated that change how a value is read."""
IGNORED: Final = "ignored"
"""Form of a key that is known and has no column."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A value without known keys of its own: `type` is its column's."""

    type: pa.DataType
    form: str = ""


@dataclass(frozen=True, slots=True)
class Items:
    """An array."""

    element: "Leaf | Shape"


@dataclass(frozen=True, slots=True)
class Object:
    """A JSON object with known keys."""

    keys: dict[str, "Node"] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Column:
    """A column and where its value may come from, the first that is there."""

    name: str
    field: pa.Field
    form: str
    paths: tuple[Path, ...]

    @classmethod
    def of(cls, arrow_field: pa.Field, paths: Iterable[Path]) -> Self:
        return cls(arrow_field.name, arrow_field, _metadata(arrow_field, "form"), tuple(paths))


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of JSON object and the columns it fills."""

    columns: tuple[Column, ...]
    tree: Object
    nodes: dict[Path, Leaf | Items]
    """What is at each path of a column."""


Node: TypeAlias = Leaf | Items | Object

_KNOWN_WITHOUT_COLUMN: Final[dict[str, tuple[str, ...]]] = {
    "tweets": ("geo.coordinates.type",),
    "referenced_tweets": ("geo.coordinates.type",),
    "places": ("geo.geometry.type",),
}
_KNOWN_EMPTY: Final[dict[str, tuple[str, ...]]] = {"places": ("geo.properties",)}
"""Objects that X sends empty; whatever comes in them is unknown."""

PAGE_KEYS: Final = frozenset({"data", "includes", "meta", "errors"})
INCLUDES: Final[dict[str, str]] = {
    "users": "users",
    "media": "media",
    "places": "places",
    "polls": "polls",
    "tweets": "referenced_tweets",
    "posts": "referenced_tweets",
}
"""Keys of `includes` and the table their objects go to."""
INCLUDES_KEYS: Final = frozenset({*INCLUDES, "topics"})
"""`topics` are known, and no post refers to one: they stay in raw."""


def _metadata(arrow_field: pa.Field, name: str) -> str:
    value: bytes = (arrow_field.metadata or {}).get(name.encode(), b"")
    return value.decode()


def _path(text: str) -> Path:
    *names, last = text.split(".")
    if last.endswith("]"):
        last, _, index = last[:-1].partition("[")
        return (*names, last, int(index))
    return (*names, last)


def _node(arrow_field: pa.Field, indexed: bool) -> Leaf | Items:
    type_ = arrow_field.type
    form = _metadata(arrow_field, "form")
    if indexed:
        return Items(Leaf(type_, form))
    if not pa.types.is_list(type_):
        return Leaf(type_, "" if form == HTML else form)
    if pa.types.is_struct(type_.value_type):
        return Items(_shape(type_.value_type))
    return Items(Leaf(type_.value_type, form))


def _plant(tree: Object, path: Path, node: Node) -> None:
    names = [part for part in path if isinstance(part, str)]
    for name in names[:-1]:
        branch = tree.keys.setdefault(name, Object())
        if not isinstance(branch, Object):
            raise TypeError(f"schemas.curated: {path} goes through a value")
        tree = branch
    if tree.keys.setdefault(names[-1], node) != node:
        raise TypeError(f"schemas.curated: {path} is read in two ways")


def _shape(fields: Iterable[pa.Field], table: str = "") -> Shape:
    columns = []
    tree = Object()
    nodes: dict[Path, Leaf | Items] = {}
    for arrow_field in fields:
        source = _metadata(arrow_field, "source")
        paths = () if source.startswith(DERIVED) else tuple(_path(text) for text in source.split("|"))
        columns.append(Column.of(arrow_field, paths))
        for path in paths:
            nodes[path] = _node(arrow_field, isinstance(path[-1], int))
            _plant(tree, path, nodes[path])
    for text in _KNOWN_WITHOUT_COLUMN.get(table, ()):
        _plant(tree, _path(text), Leaf(pa.null(), IGNORED))
    for text in _KNOWN_EMPTY.get(table, ()):
        _plant(tree, _path(text), Object())
    return Shape(tuple(columns), tree, nodes)


SHAPES: Final[dict[str, Shape]] = {table: _shape(TABLES[table], table) for table in DECODED}
"""The shape of the objects of every decoded table."""


def key_column(table: str) -> Column:
    """The column that names an object of the table."""
    return next(column for column in SHAPES[table].columns if column.name == KEYS[table])
