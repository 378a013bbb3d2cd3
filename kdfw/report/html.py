"""HTML in which nothing unescaped can slip through: text is escaped unless it was built here.

Elements are built by `element`; plain `str` children and attribute values are escaped, `Markup` children are not, and
the only ways to make a `Markup` are `element`, `join` and the two constants of the page (its style and its script).
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Union


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = Union[str, int, float, None, "Markup", Iterable["Child"]]
VOID = frozenset({"br", "col", "hr", "img", "input", "link", "meta"})


def element(tag: str, *children: Child, **attributes: str | int | float | bool | None) -> Markup:
    """`<tag attribute="...">children</tag>`, escaped.

    Attribute names: a trailing underscore is dropped (`class_`), other underscores become hyphens (`aria_label`).
    None and False leave an attribute out, True writes it bare. Children that are None are left out.
    """
    written = []
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        key = name.rstrip("_").replace("_", "-")
        written.append(f" {key}" if value is True else f' {key}="{html.escape(_text(value), quote=True)}"')
    opened = f"<{tag}{''.join(written)}>"
    return Markup(opened if tag in VOID else f"{opened}{join(children)}</{tag}>")


def join(children: Iterable[Child], separator: str = "") -> Markup:
    """Children side by side, escaped."""
    return Markup(html.escape(separator).join(_render(child) for child in children))


def _render(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return str(child)
    if isinstance(child, (str, int, float)):
        return html.escape(_text(child), quote=True)
    return join(child)


def _text(value: str | int | float) -> str:
    return clean(f"{value:g}" if isinstance(value, float) else str(value))


def clean(text: str) -> str:
    """The text without characters that HTML and XML cannot hold (control characters, lone surrogates)."""
    return "".join(
        "\ufffd"
        if (ord(character) < 32 and character not in "\n\r\t") or 0xD800 <= ord(character) <= 0xDFFF
        else character
        for character in text
    )
