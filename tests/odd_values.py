"""Values where others were expected, and documents that somebody, or a failing disk, has changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st

HUGE = "a-number-beyond-what-python-prints"
"""Stands for one in what is written as YAML."""
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=12),
    st.sampled_from(["", " ", "a|b", "distill.x", "..", "../../outside", "/etc/passwd", "#", "${HOME}",
                     "$NOT_SET_ANYWHERE", "~", "\0", "1e999", "~nosuchuser/x", "/" + "x" * 300, "/x" * 3000]),
    st.sampled_from([2**63, -(2**63) - 1, HUGE]),
    st.sampled_from([[], {}, [[]], [None], {"type": None}, {"type": []}, {"type": "kl"}, {"x": {"y": []}}, [1, "a"]]),
    st.recursive(st.none() | st.integers(-3, 3), lambda inner: st.lists(inner, max_size=2)
                 | st.dictionaries(st.text(max_size=3), inner, max_size=2), max_leaves=6),
)  # fmt: skip


def fuzzing(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path of a nested value, but the root."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def some_place(draw: st.DrawFn, value: Any) -> tuple[Any, Any]:
    """A mapping or list inside a value, and one of its keys; an example without any is not tried."""
    found = list(places(value))
    assume(found)
    *above, key = draw(st.sampled_from(found))
    holder = value
    for part in above:
        holder = holder[part]
    return holder, key


def changed(value: Any) -> st.SearchStrategy[bytes]:
    """Bytes in the place of a JSON document: with some of its values gone, renamed or replaced, cut off, or others."""
    whole = json.dumps(value).encode()

    @st.composite
    def edited(draw: st.DrawFn) -> bytes:
        found = copy.deepcopy(value)
        for _ in range(draw(st.integers(1, 3))):
            holder, key = some_place(draw, found)
            kind = draw(st.sampled_from(["replace", "replace", "delete", "rename"]))
            if kind == "replace":
                holder[key] = copy.deepcopy(draw(ODD))
            elif kind == "delete" or not isinstance(holder, dict):
                del holder[key]
            else:
                holder[draw(st.text(max_size=8))] = holder.pop(key)
        return json.dumps(found).encode("utf-8", "surrogatepass")

    cut = st.integers(0, len(whole)).map(lambda end: whole[:end])
    flipped = st.tuples(st.integers(0, len(whole) - 1), st.integers(1, 255)).map(
        lambda at: whole[: at[0]] + bytes([whole[at[0]] ^ at[1]]) + whole[at[0] + 1 :]
    )
    return st.one_of(edited(), edited(), cut, flipped, ODD.map(lambda odd: json.dumps(odd).encode()), st.binary())


def put(path: Path, content: bytes) -> None:
    """In a file of its own: what is kept by content has links to it elsewhere."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
