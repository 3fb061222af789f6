"""One Parquet file: a fixed-size list of float16 beside the item columns, the identity in the file's metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import InputError
from bindsearch.exchange.rows import Export, Import, cells_of, check_matrix, identity_of, identity_text
from bindsearch.store import item_schema
from bindsearch.store.files import commit_file

if TYPE_CHECKING:
    import pyarrow as pa

VECTOR = "embedding"
_NAMES = (VECTOR, "embeddings", "vector", "vectors", "emb", "feature", "features")
_META = "bindsearch"
ONE_FILE = True
"""Whether the layout is one file; else it is a folder."""
_ROWS = 8192


def write(export: Export, out: Path) -> None:
    """Write the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.list_(pa.float16(), export.identity.dim)
    schema = item_schema().append(pa.field(VECTOR, kind, nullable=False))
    schema = schema.with_metadata({_META: identity_text(export.identity)})

    def fill(file: Any) -> None:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for half, table in export.blocks:
                values = pa.array(np.ascontiguousarray(half).ravel(), type=pa.float16())
                column = pa.FixedSizeListArray.from_arrays(values, type=kind)
                writer.write_table(table.cast(item_schema()).append_column(schema.field(VECTOR), column).cast(schema))

    out.parent.mkdir(parents=True, exist_ok=True)
    commit_file(out, fill)


def read(path: Path) -> Import:
    """Read such a file, or any with one column of lists of floats, of one length.

    Raises:
        InputError: not there, no Parquet, or no such column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: no Parquet file: {error}") from error
    metadata = schema.metadata or {}
    return Import(identity_of(metadata.get(_META.encode()), path), _blocks(path, _vector_column(schema, path)))


def _vector_column(schema: pa.Schema, path: Path) -> str:
    import pyarrow as pa

    lists = [
        field.name
        for field in schema
        if pa.types.is_fixed_size_list(field.type) or pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
        if pa.types.is_floating(field.type.value_type)
    ]
    named = [name for name in _NAMES if name in lists]
    if not named and len(lists) != 1:
        found = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise InputError(f"{path}: expected one column of lists of floats, or one named {VECTOR!r}; got {found}.")
    return named[0] if named else str(lists[0])


def _blocks(path: Path, column: str) -> Iterator[tuple[np.ndarray, Sequence[Mapping[str, Any]]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = 0
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=_ROWS, use_threads=False):
            lists = batch.column(batch.schema.get_field_index(column))
            lengths = set(lists.value_lengths().to_pylist()) if not pa.types.is_fixed_size_list(lists.type) else set()
            if lists.null_count or len(lengths) > 1:
                got = ", ".join(sorted(map(str, lengths)))
                raise InputError(f"{path}: column {column!r}: expected vectors of one length, got {got}.")
            flat = lists.flatten().to_numpy(zero_copy_only=False)
            vectors = check_matrix(flat.reshape(len(batch), -1), f"{path}: column {column!r}")
            yield vectors, cells_of(batch.drop_columns([column]), path, first)
            first += len(batch)
