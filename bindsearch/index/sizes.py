"""Bytes of a segment, from its formats: what a search keeps reading, and what lies on disk beside.

A search of an exact index without codes reads all rows; any other reads the files that its backend wrote, and of the
rows only the candidates, which stay on disk, mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.index.recipe import Recipe

if TYPE_CHECKING:
    from bindsearch.index.manifest import Manifest, SegmentEntry

ROWS_FILE = "vectors.npy"
COMMON_FILES = (ROWS_FILE, "ids.npy", "order.npy", "table_rows.npy", "items.parquet")
"""Files that every segment has or may have; the others are its backend's."""
ITEM_BYTES = 48
"""Of an item in the Parquet table, compressed; keys, sources and captions decide it, so that it is a guess."""

Formula = Callable[[int, int, Mapping[str, Any]], int]


def row_bytes(rows: int, dim: int, row_dtype: str) -> int:
    """Bytes of vectors.npy."""
    return rows * dim * np.dtype(row_dtype).itemsize + 128


def read_bytes(recipe: Recipe, rows: int, dim: int) -> int | None:
    """Predict the bytes that searches of a segment keep reading; None for a backend whose format is not known here."""
    if recipe.backend in ("flat", "faiss-flat"):
        return row_bytes(rows, dim, recipe.row_dtype)
    formula = FORMULAS.get(recipe.backend)
    return None if formula is None else formula(rows, dim, recipe.build)


def disk_bytes(recipe: Recipe, rows: int, dim: int) -> int | None:
    """Predict all bytes of a segment on disk; the item table is guessed."""
    read = read_bytes(recipe, rows, dim)
    if read is None:
        return None
    beside = 0 if recipe.backend in ("flat", "faiss-flat") else row_bytes(rows, dim, recipe.row_dtype)
    return read + beside + rows * (8 + 4 + 4 + ITEM_BYTES)


def stored_read_bytes(manifest: Manifest) -> int:
    """Add up the bytes that searches of an index keep reading, from the sizes of its files."""
    return sum(_segment_read_bytes(entry) for entry in manifest.segments)


def _segment_read_bytes(entry: SegmentEntry) -> int:
    own = {name: file.size_bytes for name, file in entry.files.items() if name not in COMMON_FILES}
    return sum(own.values()) if own else entry.files[ROWS_FILE].size_bytes


def _codes(rows: int, dim: int, _: Mapping[str, Any]) -> int:
    """int8 codes of index/byte_codes.py: d bytes a row, and what the bound needs."""
    return rows * (dim + 12)


FORMULAS: dict[str, Formula] = {"bytes": _codes}
