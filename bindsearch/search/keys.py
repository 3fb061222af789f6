"""Items by name: from keys, as hits show them, to ids."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from bindsearch.errors import MissingInputError
from bindsearch.types import item_id, to_text

if TYPE_CHECKING:
    from bindsearch.index.snapshot import Snapshot
    from bindsearch.types import IntArray

ONE = (str, int, np.integer)
"""What names one item by itself: a key or an id, of numpy too."""

_SPAN = re.compile(r"(?s)(.+)#t=(\d+(?:\.\d*)?(?:e[+-]?\d+)?),(\d+(?:\.\d*)?(?:e[+-]?\d+)?)")


def find_key(snapshot: Snapshot, key: str) -> IntArray:
    """Find the ids of a key: the item itself, else one span of it (KEY#t=START,END), else all its spans.

    Bytes of a key that are no UTF-8 are looked for as the item table writes them.

    Returns:
        (m,) int64; empty where there is no such item.
    """
    key = to_text(key)
    exact = np.array([item_id(key)], dtype=np.int64)
    match = _SPAN.fullmatch(key)
    named = match and np.array([item_id(match[1], (float(match[2]), float(match[3])))], dtype=np.int64)
    for ids in (exact, named):
        if ids is not None and snapshot.locate(ids)[0][0] >= 0:
            return ids
    import pyarrow.compute as pc

    found = [np.empty(0, dtype=np.int64)]
    for segment in snapshot.segments:
        ids = segment.index.ids[pc.equal(segment.column("key"), key).to_numpy()]
        found.append(ids[segment.index.positions(ids) >= 0])
    return np.concatenate(found)


def _as_id(item: int) -> IntArray:
    """Give a whole number as an id, (1,) int64; empty where no item can have it."""
    fits = isinstance(item, int | np.integer) and 0 <= int(item) < 2**63
    return np.array([item] if fits else [], dtype=np.int64)


def resolve_items(snapshot: Snapshot, items: str | int | Iterable[str | int]) -> IntArray:
    """Give the ids of keys and ids, (m,) int64; a bare one is one item.

    Raises:
        MissingInputError: naming the first that is not there.
    """
    found = [np.empty(0, dtype=np.int64)]
    for item in (items,) if isinstance(items, ONE) else items:
        ids = find_key(snapshot, item) if isinstance(item, str) else _as_id(item)
        if not ids.size or snapshot.locate(ids)[0][0] < 0:
            raise MissingInputError(f"{snapshot.path}: no item {item!r}. The keys stand in: bindsearch query --json")
        found.append(ids)
    return np.concatenate(found)
