"""Why a filter lets nothing pass: the values that it asks for and no item has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bindsearch.errors import UnknownNameError
from bindsearch.search.columns import read_column
from bindsearch.search.where import Filter, parse_filter

if TYPE_CHECKING:
    from bindsearch.index.snapshot import Snapshot


def absent_values(snapshot: Snapshot, where: str | Filter) -> list[str]:
    """Name the values that a filter compares a column with and that stand in no row of it.

    Args:
        snapshot: the index.
        where: a filter that can be evaluated. A value that is only excluded ("!=", "not in") may be named as well.

    Returns:
        A line a value, with the nearest values that the column does have.
    """
    import pyarrow.compute as pc

    where = parse_filter(where) if isinstance(where, str) else where
    lines, known = [], dict[str, list[str]]()
    for column, text in where.asked_for():
        if column not in known:
            distinct = [pc.unique(read_column(segment, column)) for segment in snapshot.segments]
            known[column] = sorted({str(each) for part in distinct for each in part.to_pylist() if each is not None})
        if text not in known[column]:
            lines.append(str(UnknownNameError(f"value of the column {column!r}", text, known[column])))
    return lines
