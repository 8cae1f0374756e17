"""What a parser is asked for: the Arrow schema of X's answers, and of what no page has held so far only that it is not there.

X's answers could hold some 500 values and most hold half of them. Looking for the others in every object is a fifth of the
work of parsing, and they make as many columns again; that a value is null is asked once for a whole object or array.
"""

from typing import Final

import pyarrow as pa

from compaction_dags.compaction.decode.model import (
    ID,
    IGNORED,
    INCLUDES,
    JSON,
    SHAPES,
    Items,
    Leaf,
    Node,
    Object,
    Shape,
)


def _input(node: Node | Shape) -> pa.DataType | None:
    """How a node is read from JSON; None: not at all."""
    match node:
        case Shape(tree=tree):
            return _input(tree)
        case Object(keys=keys):
            fields = [(key, type_) for key, child in keys.items() if (type_ := _input(child)) is not None]
            return pa.struct(fields) if fields else None
        case Items(element=element):
            return pa.list_(_input(element))
        case Leaf():
            return _input_value(node)


def _input_value(leaf: Leaf) -> pa.DataType | None:
    """Ids and times are read as text and whole numbers as doubles, because the readers would otherwise take a little too
    much: `1.9` as 1, `5` as a moment of 1970.
    """
    if leaf.form == IGNORED:
        return None
    if leaf.form == JSON:
        return pa.null()  # whatever is there is for the exact way
    if leaf.form == ID or pa.types.is_timestamp(leaf.type):
        return pa.string()
    return pa.float64() if pa.types.is_integer(leaf.type) else leaf.type


_PAGE: Final = pa.struct(
    [
        ("data", pa.list_(_input(SHAPES["tweets"]))),
        ("includes", pa.struct([(key, pa.list_(_input(SHAPES[table]))) for key, table in INCLUDES.items()])),
        ("meta", pa.struct([("result_count", pa.float64())])),
    ]
)


def _envelope(page: pa.DataType) -> pa.Schema:
    """`i` is the number of a page, `p` is the page."""
    return pa.schema([("i", pa.int32()), ("p", page)])


EVERYTHING: Final = _envelope(_PAGE)
"""The schema with all that X's answers may hold."""


class Asked:
    """The schema to parse the next pages with, learnt from those before.

    Where `narrow` has a null type, a parser refuses whatever is not null: pages it can read have nothing more than it
    asks for. Those it refuses are to be read with EVERYTHING and shown here.
    """

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self.narrow = EVERYTHING

    def show(self, pages: pa.StructArray) -> None:
        """Pages that were read with EVERYTHING."""
        before = len(self._seen)
        _look(pages, "", self._seen)
        if len(self._seen) > before:
            self.narrow = _envelope(_narrowed(_PAGE, "", self._seen))


def _look(array: pa.Array, path: str, seen: set[str]) -> None:
    """Note the paths at which there is anything but null."""
    if array.null_count == len(array):
        return
    seen.add(path)
    if pa.types.is_struct(array.type):
        for index, each in enumerate(array.type):
            _look(array.field(index), f"{path}.{each.name}", seen)
    elif pa.types.is_list(array.type):
        _look(array.values, f"{path}[]", seen)


def _narrowed(type_: pa.DataType, path: str, seen: set[str]) -> pa.DataType:
    if path not in seen:
        return pa.null()
    if pa.types.is_struct(type_):
        return pa.struct([(each.name, _narrowed(each.type, f"{path}.{each.name}", seen)) for each in type_])
    if pa.types.is_list(type_) and f"{path}[]" in seen:
        return pa.list_(_narrowed(type_.value_type, f"{path}[]", seen))
    return type_  # of a list that was always empty, too: pyarrow.json 26 misreads lists of nulls
