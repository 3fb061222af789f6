"""A folder with embeddings.npy, items.parquet and identity.json; or any .npy file of vectors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bindsearch.errors import InputError
from bindsearch.exchange.rows import Export, Import, cells_of, check_matrix, identity_of, identity_text
from bindsearch.row_table import read_npy
from bindsearch.store import item_schema
from bindsearch.store.files import commit_bytes, read_parquet

VECTORS, ITEMS, IDENTITY = "embeddings.npy", "items.parquet", "identity.json"
_ROWS = 8192
ONE_FILE = False
"""Whether the layout is one file; else it is a folder."""


def write(export: Export, out: Path) -> None:
    """Write the folder; vectors float16, row i of the table for row i; what says whose they are comes last."""
    import pyarrow.parquet as pq

    out.mkdir(parents=True, exist_ok=True)
    shape = (export.rows, export.identity.dim)
    (out / IDENTITY).unlink(missing_ok=True)  # an earlier export's must not stand beside vectors of this one
    with (out / VECTORS).open("wb") as file, pq.ParquetWriter(out / ITEMS, item_schema(), compression="zstd") as items:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
        for half, table in export.blocks:
            file.write(np.ascontiguousarray(half).tobytes())
            items.write_table(table.cast(item_schema()))
        file.flush()
        os.fsync(file.fileno())
    commit_bytes(out / IDENTITY, (identity_text(export.identity) + "\n").encode("ascii"))


def read(path: Path) -> Import:
    """Read such a folder, or a .npy file alone.

    Raises:
        MissingInputError: not there.
        InputError: no vectors, or a table of another number of rows.
    """
    file = path / VECTORS if path.is_dir() else path
    vectors = check_matrix(read_npy(file, mapped=True), str(file))
    items = path / ITEMS
    if not path.is_dir() or not items.exists():
        return Import(None, _blocks(vectors, None, items))
    table = read_parquet(items)
    if table.num_rows != len(vectors):
        raise InputError(f"{path}: {len(vectors)} vectors, but {table.num_rows} rows in {ITEMS}.")
    identity = path / IDENTITY
    text = identity.read_bytes() if identity.exists() else None
    return Import(identity_of(text, identity), _blocks(vectors, table, items))


def _blocks(vectors: np.ndarray, table: Any, items: Path) -> Iterator[tuple[np.ndarray, Sequence[Mapping[str, Any]]]]:
    for start in range(0, len(vectors), _ROWS):
        part = np.asarray(vectors[start : start + _ROWS])
        yield part, [{}] * len(part) if table is None else cells_of(table.slice(start, _ROWS), items, start)
