"""Does a page hold keys without a column? Asked of one page per microbatch, so it is made cheap: nothing is built but names.

msgspec checks a page against the known keys in C. Anything it does not accept, for whatever reason, counts as a hit:
the exact way then finds out.
"""

from typing import Any, Final

import msgspec

from compaction_dags.compaction.decode.model import INCLUDES, SHAPES, Items, Leaf, Node, Object, Shape


def _check_of(node: Node | Shape, name: str) -> Any:
    match node:
        case Shape(tree=tree):
            return _check_of(tree, name)
        case Object(keys=keys):
            fields = [(key, _check_of(child, f"{name}_{key}"), None) for key, child in keys.items()]
            return msgspec.defstruct(name, fields, forbid_unknown_fields=True, gc=False) | None
        case Items(element=Shape() as shape):
            return list[_check_of(shape, name)] | None  # type: ignore[misc]
        case Leaf() | Items():
            return msgspec.Raw


def _decoder(table: str) -> Any:
    return msgspec.json.Decoder(list[_check_of(SHAPES[table], table)] | None)  # type: ignore[misc]


_DATA: Final = _decoder("tweets")
_INCLUDES: Final = {key: _decoder(table) for key, table in INCLUDES.items()}
_PARTS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)


def has_unknown_keys(body: bytes) -> bool:
    """Whether objects of the page have keys without a column, or the page is not as X's answers are."""
    try:
        parts = _PARTS.decode(body) or {}
        if "data" in parts:
            _DATA.decode(parts["data"])
        includes = _PARTS.decode(parts.get("includes", b"null")) or {}
        for key, decoder in _INCLUDES.items():
            if key in includes:
                decoder.decode(includes[key])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return True
    return False
