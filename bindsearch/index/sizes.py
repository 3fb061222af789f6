"""Bytes of a segment, from its formats: what a search keeps reading, and what lies on disk beside.

A search of an exact index without codes reads all rows; any other reads the files that its backend wrote, and of the
rows only the candidates, which stay on disk, mapped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.index.byte_codes import HEAD_FROM_DIM, HEAD_FROM_ROWS, HEAD_WIDTH
from bindsearch.index.byte_table import BLOCK_ROWS
from bindsearch.index.hnsw import HnswIndex
from bindsearch.index.ivf_codes import IvfPqIndex, IvfRabitqIndex, IvfSq8Index, code_groups
from bindsearch.index.kmeans import default_lists
from bindsearch.index.recipe import Recipe
from bindsearch.index.svs import SvsIndex

if TYPE_CHECKING:
    from bindsearch.index.manifest import Manifest, SegmentEntry

ROWS_FILE = "vectors.npy"
COMMON_FILES = (ROWS_FILE, "ids.npy", "order.npy", "table_rows.npy", "items.parquet", "attributes.arrow")
"""Files that every segment has or may have; the others are its backend's."""
CODE_FILES = ("codes", "heads")
"""How the names of byte codes begin; beside another backend they serve exact search alone."""
ITEM_BYTES = 48
"""Of an item in the Parquet table, compressed; keys, sources and captions decide it, so that it is a guess."""

HEADER_BYTES = 128
"""Of an .npy file, before its numbers."""
FACTS_BYTES = 128
"""Upper limit of codes.json; twice as many with heads."""

Formula = Callable[[int, int, Mapping[str, Any]], int]
CodeBytes = Callable[[int, Mapping[str, Any]], int]
"""Bytes from the number of columns and the numbers of a recipe."""


def row_bytes(rows: int, dim: int, row_dtype: str) -> int:
    """Bytes of vectors.npy."""
    return rows * dim * np.dtype(row_dtype).itemsize + HEADER_BYTES


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
    return sum(_segment_read_bytes(entry, entry.backend or manifest.backend) for entry in manifest.segments)


def _segment_read_bytes(entry: SegmentEntry, backend: str) -> int:
    beside = () if backend == "bytes" else CODE_FILES
    own = [
        file.size_bytes
        for name, file in entry.files.items()
        if name not in COMMON_FILES and not name.startswith(tuple(beside))
    ]
    return sum(own) if own else entry.files[ROWS_FILE].size_bytes


def _byte_codes(rows: int, dim: int, build: Mapping[str, Any]) -> int:
    """index/byte_codes.py: a byte a column, a slack a row, means a block; from some size on heads."""
    blocks = -(-rows // BLOCK_ROWS)
    full = rows * (dim + 4) + blocks * (dim + 8) + 5 * HEADER_BYTES + FACTS_BYTES
    width = int(build.get("head_width", HEAD_WIDTH if dim >= HEAD_FROM_DIM and rows >= HEAD_FROM_ROWS else 0))
    heads = rows * (width + 8) + blocks * 8 + 4 * width * dim + 4 * HEADER_BYTES + FACTS_BYTES
    return full + (heads if width else 0)


def _lists(code_bytes: CodeBytes, block_rows: int, book: CodeBytes) -> Formula:
    """index/ivf.py: directions, scales, sizes of lists; codes and positions of rows, lists filled up to whole blocks.

    Args:
        code_bytes: of a row.
        block_rows: rows that lists are filled up to multiples of.
        book: bytes of what the codes mean, likewise.
    """

    def formula(rows: int, dim: int, build: Mapping[str, Any]) -> int:
        lists = min(rows, int(build.get("nlist", 0)) or default_lists(rows))
        filled = -(-rows // block_rows) * block_rows
        if lists > 1 and block_rows > 1:
            # lists are as uneven as clusters are: like an exponential law, of which this is the mean filled up
            filled = math.ceil(block_rows * lists / -math.expm1(-block_rows * lists / rows))
        return lists * (dim + 12) + filled * (code_bytes(dim, build) + 8) + 3 * HEADER_BYTES + book(dim, build)

    return formula


def _pq_bytes(dim: int, build: Mapping[str, Any]) -> int:
    return code_groups(dim, int(build.get("code_columns", 0))) // 2


def _pq_book(dim: int, build: Mapping[str, Any]) -> int:
    """index/rotation.py: 16 words and the columns of each group, 8 a group where there are many; an int8 rotation."""
    return 4 * 17 * 8 * 2 * _pq_bytes(dim, build) + dim * (dim + 4) + 3 * HEADER_BYTES


def _none(*_: Any) -> int:
    return 0


def _sign_bytes(dim: int, _: Mapping[str, Any]) -> int:
    return -(-dim // 8) + 8


def _graph(rows: int, dim: int, build: Mapping[str, Any]) -> int:
    """index/hnsw.py: a byte a column; 2 M links a node, M a node and higher level; where they start, and its level."""
    links = int(build.get("M", HnswIndex.build_numbers["M"]))
    return rows * (dim + 8 * links + round(4 * links / (links - 1)) + 12) + 8 * dim


def _svs(rows: int, dim: int, build: Mapping[str, Any]) -> int:
    """index/svs.py: links and their number a node; float16 rows, or a byte a column of both LeanVec codes."""
    columns = 2 * dim if not build.get("leanvec") else dim + min(dim, int(build["leanvec"]))
    return rows * (columns + 4 * (1 + int(build.get("degree", SvsIndex.build_numbers["degree"]))))


FORMULAS: dict[str, Formula] = {
    "bytes": _byte_codes,
    "ivf-pq": _lists(_pq_bytes, IvfPqIndex.block_rows, _pq_book),
    "ivf-rabitq": _lists(_sign_bytes, IvfRabitqIndex.block_rows, _none),
    "ivf-sq8": _lists(lambda dim, _: dim, IvfSq8Index.block_rows, lambda dim, _: 8 * dim + HEADER_BYTES),
    "rabitq": lambda rows, dim, _: _lists(_sign_bytes, IvfRabitqIndex.block_rows, _none)(rows, dim, {"nlist": 1}),
    "hnsw": _graph,
    "svs": _svs,
}
