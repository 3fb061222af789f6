"""Exact search by byte codes as a backend, and beside any other backend that has codes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from bindsearch.errors import InputError
from bindsearch.index.base import ExactReport, Progress, no_progress
from bindsearch.index.byte_codes import FACTS, ByteCodes
from bindsearch.index.byte_scan import Best, ByteScan
from bindsearch.index.checks import map_array, read_asking, unit_queries
from bindsearch.index.flat import FlatIndex
from bindsearch.index.recipe import ROW_DTYPES, SearchSettings, check_settings
from bindsearch.index.refined import check_numbers
from bindsearch.index.rows import ABILITIES
from bindsearch.registry import INDEXES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.index.base import IndexBackend
    from bindsearch.types import BoolArray, FloatArray, IntArray

_QUERIES_AT_ONCE = 1024


class BytesIndex(FlatIndex):
    """Exact search by int8 codes that decide which rows must be read; see `byte_codes.py` and `IndexBackend`.

    `build` of a recipe may name `head_width`: directions of the heads, 0 for none.
    """

    name: ClassVar[str] = "bytes"
    abilities: ClassVar[frozenset[str]] = frozenset(ABILITIES) - {"add"}
    asks: ClassVar[bool] = True

    @classmethod
    def build_files(cls, folder: Path, build: Mapping[str, Any], progress: Progress = no_progress) -> None:
        """See `IndexBackend.build_files`."""
        cls.check_build(build)
        write_codes(folder, build.get("head_width"), progress)

    @classmethod
    def check_build(cls, build: Mapping[str, Any]) -> None:
        """See `IndexBackend.check_build`."""
        check_numbers(cls.name, build, {"head_width": 0})

    @classmethod
    def open(cls, folder: Path) -> Self:
        """See `IndexBackend.open`."""
        index = super().open(folder)
        if (folder / FACTS).is_file() or len(index):
            index.codes = open_codes(folder, index)
        return index

    def _search(
        self,
        queries: FloatArray,
        k: int,
        selector: BoolArray | IntArray | None,
        settings: SearchSettings | None,
    ) -> tuple[FloatArray, IntArray, IntArray]:
        """See `IndexBackend._search`."""
        check_settings(settings, self.settings)
        if self.codes is None:  # an index without rows
            return super()._search(queries, k, selector, settings)
        scores, ids, report = self.search_exact(queries, k, selector)
        return scores, ids, report.widened


def write_codes(folder: Path, head_width: int | None = None, progress: Progress = no_progress) -> None:
    """Write byte codes beside vectors.npy of a folder, as it lies there now; arguments as of `ByteCodes.build`.

    Where the folder holds directions that queries come from (ASKING), heads hold them first.
    """
    rows = map_array(folder / "vectors.npy", ROW_DTYPES, 2)
    ByteCodes.build(folder, rows, head_width, read_asking(folder), progress)


def open_codes(folder: Path, index: IndexBackend) -> ByteCodes:
    """Open the byte codes of an index's rows.

    Raises:
        FileNotFoundError: a file is missing.
        InputError: a file is truncated, or the codes are not of as many rows and columns.
    """
    codes = ByteCodes.open(folder)
    if (len(codes), codes.dim) != (index.ids.shape[0], index.dim):
        raise InputError(
            f"{folder}: codes of ({len(codes)}, {codes.dim}) rows and columns, "
            f"vectors.npy has ({index.ids.shape[0]}, {index.dim}). Build the index again."
        )
    return codes


def search_codes(
    index: IndexBackend, codes: ByteCodes, queries: FloatArray, k: int, mask: BoolArray | None
) -> tuple[FloatArray, IntArray, ExactReport]:
    """Find the k best rows of each query, proven.

    Args:
        index: holds the rows.
        codes: of its rows.
        queries: (q, d) float32, finite, no zero rows. Not modified.
        k: at least 1.
        mask: (n,) bool of the rows that may be answers, or None for all. Not modified.

    Returns:
        scores (q, k) float32 and ids (q, k) int64 as of `IndexBackend.search`; what the proof took.
    """
    units: NDArray[np.float64] = unit_queries(queries, index.dim)
    if k < 1:
        raise InputError(f"k: expected at least 1, got {k}.")
    allowed = len(codes) if mask is None else int(np.count_nonzero(mask))
    kept = max(1, min(k, allowed))
    scores = np.full((units.shape[0], k), -np.inf, dtype=np.float32)
    ids = np.full((units.shape[0], k), -1, dtype=np.int64)
    touched, widened = np.zeros(units.shape[0], dtype=np.int64), np.zeros(units.shape[0], dtype=np.int64)
    for start in range(0, units.shape[0] if allowed else 0, _QUERIES_AT_ONCE):
        part = slice(start, start + _QUERIES_AT_ONCE)
        best = Best(units[part], kept, index.ids, index._exact_scores)
        widened[part] = ByteScan(codes, best, mask).run()
        scores[part, :kept], touched[part] = best.scores, best.touched
        ids[part, :kept] = np.where(best.rows >= 0, index.ids[np.maximum(best.rows, 0)], -1)
    return scores, ids, ExactReport(touched, allowed, widened)


INDEXES.register(BytesIndex.name, BytesIndex)
