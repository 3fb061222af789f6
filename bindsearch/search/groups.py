"""Groups: answers of one source file stand together, the best of them first; the others are listed behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import UnknownNameError

if TYPE_CHECKING:
    import pyarrow as pa

    from bindsearch.types import IntArray

SOURCE = ("source", "member")
"""What says that two items come from one file: the file, and the part of it where it is an archive."""


def group_columns(name: str, known: Sequence[str]) -> tuple[str, ...]:
    """Give the columns that make a group.

    Args:
        name: "source", for the file, a column of the item table, or a name in its attributes.
        known: the columns that there are.

    Raises:
        UnknownNameError: no such column.
    """
    if name == "source":
        return tuple(column for column in SOURCE if column in known)
    if name not in known:
        raise UnknownNameError("column to group by", name, ("source", *known))
    return (name,)


def first_of_group(table: pa.Table) -> IntArray:
    """Say which answer each stands behind.

    Args:
        table: (n,) rows of the columns that make a group, best answer first. Not modified.

    Returns:
        (n,) int64: the place of the first answer with the same values; its own for the first one. An answer without
        any value belongs to no group but its own.
    """
    first: dict[tuple[Any, ...], int] = {}
    places = np.arange(table.num_rows, dtype=np.int64)
    for place, values in enumerate(zip(*(column.to_pylist() for column in table.columns), strict=True)):
        if any(value is not None for value in values):
            places[place] = first.setdefault(values, place)
    return places
