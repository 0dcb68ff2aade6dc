"""HTML that is escaped where text enters it: an element is a function call."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Union

VOID = frozenset({"br", "circle", "hr", "img", "input", "line", "link", "meta", "path", "rect"})


class Html(str):
    """Text that is HTML already. Whatever else enters an element is escaped."""

    __slots__ = ()


Child = Union[str, int, float, None, Iterable["Child"]]  # noqa: UP007 - `|` cannot name itself
Attribute = str | int | float | bool | None


def tag(name: str, /, *children: Child, **attributes: Attribute) -> Html:
    """`<name ...>children</name>`.

    Attributes are written as Python takes them: `class_`, `aria_label`. None and False leave one out, True writes its
    name alone. Children may be nested; None is nothing.
    """
    start = f"<{name}{''.join(_attribute(key, value) for key, value in attributes.items())}"
    return Html(f"{start}/>" if name in VOID else f"{start}>{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Html:
    """Children one after the other, without an element round them."""
    return Html("".join(map(_text, children)))


def _text(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, str):
        return escape(child)
    if isinstance(child, int | float):
        return str(child)
    return join(child)


def _attribute(key: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
