"""Rows that share something, directly or through others: what must not be torn apart."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


def link_rows(rows: Iterable[Sequence[Hashable]]) -> NDArray[np.int64]:
    """Give one number to all rows that share a name, directly or through others.

    Args:
        rows: the names of each; a row without any is alone.

    Returns:
        (n,) int64, from 0 in the order of the rows.
    """
    parent: dict[Hashable, Hashable] = {}

    def root(name: Hashable) -> Hashable:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    first: list[Hashable] = []
    for number, names in enumerate(rows):
        own = [*names] or [("alone", number)]
        first.append(own[0])
        for name in own[1:]:
            parent[root(name)] = root(own[0])
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(root(name), len(numbers)) for name in first], dtype=np.int64)
