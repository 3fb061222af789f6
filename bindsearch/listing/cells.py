"""Rows of a table that somebody else wrote, as Python values: what Python cannot hold does not end the reading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


def plain_rows(table: pa.RecordBatch | pa.Table, first: int = 0) -> list[Mapping[str, Any] | str]:
    """Turn rows of a table into Python values.

    Args:
        table: a piece of a file. Not modified.
        first: number of its first row in the file.

    Returns:
        Column -> value a row. A time that Python's own cannot hold (nanoseconds, the year 300,000) becomes its text; a
        row with a cell that nothing can be made of (a text that is not UTF-8) becomes where that is and why.
    """
    try:
        return list(table.to_pylist())
    except (ValueError, ArithmeticError):
        return [_plain_row(table, number, first) for number in range(table.num_rows)]


def _plain_row(table: pa.RecordBatch | pa.Table, number: int, first: int) -> Mapping[str, Any] | str:
    import pyarrow as pa

    row: dict[str, Any] = {}
    for name, column in zip(table.schema.names, table.columns, strict=True):
        try:
            row[name] = _plain_cell(column, number)
        except (ValueError, ArithmeticError, pa.ArrowException) as error:
            why = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            return f"column {name!r} of row {first + number}: {why}"
    return row


def _plain_cell(column: Any, number: int) -> Any:
    import pyarrow as pa

    try:
        return column[number].as_py()
    except (ValueError, ArithmeticError):
        if not pa.types.is_temporal(column.type):
            raise
        return column.slice(number, 1).cast(pa.string())[0].as_py()
