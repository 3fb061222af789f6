"""Attributes as columns: what stands as JSON in one column of the item table becomes a typed column a name.

A filter on an attribute would otherwise parse every row of the table (docs/adr/0104). The columns are derived when a
segment is written and lie beside its item table, in the same order, as an Arrow file that is mapped: attributes.arrow.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindsearch.errors import MismatchError

if TYPE_CHECKING:
    import pyarrow as pa

FILE = "attributes.arrow"
_BLOCK_ROWS = 8192
_FAR = 1 << 53


def write_attributes(folder: Path) -> bool:
    """Derive attributes.arrow from items.parquet of a segment's folder; says whether there was anything to write."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(folder / "items.parquet", pre_buffer=False)
    if "attributes" not in file.schema_arrow.names:
        return False
    batches = (batch.column(0) for batch in file.iter_batches(_BLOCK_ROWS, columns=["attributes"], use_threads=False))
    table = attribute_columns(batches)
    if not table.num_columns:
        return False
    with pa.OSFile(str(folder / FILE), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return True


def attribute_columns(blocks: Iterable[pa.Array]) -> pa.Table:
    """Turn JSON objects into columns.

    Args:
        blocks: Arrow text, one JSON object a row; null: none.

    Returns:
        A column a name in the order of first appearance, null where a row lacks it: bool, int64 or float64 where all
        values are, else text (numbers among words as they are written; lists and objects as JSON).
    """
    import pyarrow as pa

    columns: dict[str, list[Any]] = {}
    rows = 0
    for block in blocks:
        values = _by_name(block.to_pylist())
        for name in values:
            if name not in columns:
                columns[name] = [pa.nulls(rows)] if rows else []
        for name, parts in columns.items():
            here = values.get(name)
            parts.append(pa.nulls(len(block)) if here is None else _array(here))
        rows += len(block)
    names = list(columns)
    return pa.table([_joined(columns.pop(name)) for name in names], names=names)


def _by_name(texts: list[str | None]) -> dict[str, list[Any]]:
    """Parse a block: name -> a value a row."""
    found: dict[str, list[Any]] = {}
    for row, text in enumerate(texts):
        if not text:
            continue
        for name, value in json.loads(text).items():
            if value is not None:
                if name not in found:
                    found[name] = [None] * len(texts)
                found[name][row] = value
    return found


def _array(values: list[Any]) -> Any:
    """Give values as an Arrow array of one kind; text where they are of several."""
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int} and all(value is None or -(1 << 63) <= value < 1 << 63 for value in values):
        return pa.array(values, pa.int64())
    if kinds <= {int, float} and all(not isinstance(value, int) or abs(value) <= _FAR for value in values):
        return pa.array(values, pa.float64())
    return pa.array([None if value is None else _text(value) for value in values], pa.string())


def _text(value: Any) -> str:
    """Write a value as text: words as they are, a whole number without a point, the rest as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, ensure_ascii=False)


def _joined(parts: list[Any]) -> Any:
    """Put the blocks of a column together, as one kind."""
    import pyarrow as pa

    kinds = {part.type for part in parts if not pa.types.is_null(part.type)}
    if kinds == {pa.int64(), pa.float64()}:
        far = any(far_from_zero(part) for part in parts if part.type == pa.int64())
        kinds = {pa.string() if far else pa.float64()}
    kind = kinds.pop() if len(kinds) == 1 else pa.string()
    if kind == pa.string():
        parts = [part if part.type == kind else pa.array(map(_or_none, part.to_pylist()), kind) for part in parts]
    return pa.chunked_array([part if part.type == kind else part.cast(kind) for part in parts], kind)


def _or_none(value: Any) -> str | None:
    return None if value is None else _text(value)


def text_of(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Write a column as the text that it would be were it joined with one of text: numbers as JSON writes them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_floating(column.type):
        return pc.cast(column, pa.string())
    return pa.chunked_array(
        [pa.array(map(_or_none, part.to_pylist()), pa.string()) for part in column.chunks], pa.string()
    )


def far_from_zero(column: pa.ChunkedArray) -> bool:
    """Say whether whole numbers of a column lie where float64 does not hold each of them."""
    import pyarrow.compute as pc

    ends = pc.min_max(column).as_py().values()
    return any(end is not None and abs(end) > _FAR for end in ends)


def map_attributes(folder: Path, rows: int) -> pa.Table | None:
    """Map attributes.arrow of a segment's folder.

    Args:
        folder: of the segment.
        rows: that the table must have.

    Returns:
        The columns, in the order of the item table; None where another process has swept the segment away.

    Raises:
        MismatchError: it is not an Arrow file, or has another number of rows.
    """
    import pyarrow as pa

    path = folder / FILE
    try:
        with path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        table = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped))).read_all()
    except FileNotFoundError:
        return None
    except (pa.ArrowInvalid, ValueError, OSError) as error:
        raise MismatchError(f"{path}: not readable as an Arrow file ({error}). Build the index again.") from error
    if table.num_rows != rows:
        raise MismatchError(f"{path}: {table.num_rows} rows, the manifest says {rows}. Build the index again.")
    return table
