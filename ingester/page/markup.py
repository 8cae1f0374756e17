"""HTML that cannot be forgotten to escape: whatever is not `Html` already is text, and is escaped."""

from collections.abc import Iterable
from html import escape

VOID = frozenset({"br", "link", "meta"})
"""Elements of HTML that have no end tag, of those used here."""


class Html(str):
    """Markup. Made by `el`, `doc` and `join`; anything else that is a str is text."""

    __slots__ = ()


Child = str | float | None | Iterable["Child"]


def el(tag: str, *children: Child, **attributes: str | float | bool | None) -> Html:
    """An element. Children that are no Html are escaped; None is left out.

    Attributes: a closing underscore is dropped (`class_`), others become hyphens (`aria_label`); True stands alone, None
    and False are left out.
    """
    written = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in VOID:
        return Html(f"<{tag}{written}>")
    return Html(f"<{tag}{written}>{join(children)}</{tag}>")


def join(children: Child) -> Html:
    """Children one after the other."""
    if children is None:
        return Html()
    if isinstance(children, Html):
        return children
    if isinstance(children, (str, int, float)):
        return Html(escape(str(children)))
    return Html("".join(join(child) for child in children))


def doc(*, head: Child, body: Child) -> str:
    """A whole document in English."""
    return "<!doctype html>\n" + el("html", el("head", head), el("body", body), lang="en") + "\n"


def _attribute(name: str, value: str | float | bool | None) -> str:
    name = name.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
