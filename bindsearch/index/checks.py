"""What index backends refuse: vectors, queries and ids that cannot be meant, files that are not what they should be."""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import InputError, ShapeError
from bindsearch.index.recipe import norm_tolerance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.types import FloatArray, IntArray

ASKING = "asking.npy"
"""File of a segment: (j, d) float32 means of queries of the modalities that will ask; codes hold them first."""

_HEADER_BYTES = 128
_BROKEN_HEADER = (ValueError, OSError, EOFError, SyntaxError, TypeError, OverflowError, MemoryError, TokenError)
"""What numpy raises on the header of a .npy file, which is a Python literal, when bytes of it are altered."""


def unit_rows(vectors: Any, what: str, dim: int | None = None) -> FloatArray:
    """Check vectors and normalise them.

    Args:
        vectors: (n, d) float32. Not modified.
        what: their name in messages.
        dim: the d expected; None: any.

    Returns:
        (n, d) float32, a C-contiguous copy with unit rows (normalised in float64).

    Raises:
        ShapeError: wrong shape or dtype; both are named.
        InputError: a row that is not finite or is zero.
    """
    return _unit(vectors, what, dim).astype(np.float32)


def stored_rows(vectors: Any, what: str, dim: int | None, row_dtype: str) -> Any:
    """Check vectors and give them as they are stored: unit float32 rows, rounded to `row_dtype`.

    Rows that are stored as float16 already, unit but for that rounding, stay as they are: reading and storing them
    again, as compacting does, changes no bit.

    Args:
        vectors: (n, d) float32. Not modified.
        what: their name in messages.
        dim: the d expected; None: any.
        row_dtype: "float32" or "float16".

    Returns:
        (n, d) of row_dtype, C-contiguous, a copy.

    Raises:
        ShapeError, InputError: as in `unit_rows`.
    """
    units = unit_rows(vectors, what, dim)
    if row_dtype == "float32":
        return units
    rows = units.astype(row_dtype)
    few = vectors[:, :16]  # tells almost all rows that were never stored
    maybe = np.flatnonzero((few.astype(row_dtype) == few).all(axis=1))
    as_they_are = vectors[maybe].astype(row_dtype)
    stored = (as_they_are == vectors[maybe]).all(axis=1)
    stored &= (np.abs(as_they_are - units[maybe]) <= norm_tolerance(row_dtype)).all(axis=1)
    rows[maybe[stored]] = as_they_are[stored]
    return rows


def wide_rows(rows: Any, out: FloatArray | None = None) -> FloatArray:
    """Give stored rows as float32: themselves, or float16 widened by numkong, exactly, 17 times as fast as by numpy.

    Args:
        rows: (m, d) float32 or float16, C-contiguous. Not modified.
        out: (m, d) float32, overwritten where rows must be widened; None: a new array.
    """
    if rows.dtype == np.float32:
        return np.asarray(rows)
    import numkong

    wide = np.empty(rows.shape, dtype=np.float32) if out is None else out
    if rows.size:
        numkong.astype(rows, "float32", out=wide)
    return wide


def unit_queries(queries: Any, dim: int) -> NDArray[np.float64]:
    """Check queries (q, d) float32 and give them as float64 unit rows; errors as in `unit_rows`."""
    return _unit(queries, "query", dim)


def _unit(vectors: Any, what: str, dim: int | None) -> NDArray[np.float64]:
    wanted = "any" if dim is None else str(dim)
    shape, dtype = getattr(vectors, "shape", None), getattr(vectors, "dtype", None)
    if shape is None or len(shape) != 2 or (dim is not None and shape[1] != dim) or shape[1] == 0:
        raise ShapeError(
            f"{what}: expected shape (any, {wanted}), got {shape if shape is not None else type(vectors)}."
        )
    if dtype != np.float32:
        raise ShapeError(f"{what}: expected dtype float32, got {dtype}. Convert: x.astype('float32').")
    wide = vectors.astype(np.float64)
    norms = np.sqrt((wide * wide).sum(axis=1))
    bad = ~np.isfinite(norms) | (norms == 0)
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(f"{what}: row {row} has the norm {norms[row]}; expected a finite norm above 0.")
    return np.asarray(wide / norms[:, None], dtype=np.float64)


def check_ids(ids: IntArray, count: int) -> None:
    """Refuse ids that are not (count,) int64, negative, or not each once.

    Raises:
        ShapeError, InputError: naming what was expected and what came.
    """
    if ids.shape != (count,) or ids.dtype != np.int64:
        raise ShapeError(f"ids: expected shape ({count},) int64, got {ids.shape} {ids.dtype}.")
    if count and int(ids.min()) < 0:
        raise InputError(f"ids: expected ids in [0, 2**63), got {int(ids.min())}.")
    ordered = np.sort(ids)
    twice = ordered[1:] == ordered[:-1]
    if twice.any():
        raise InputError(f"ids: the id {int(ordered[1:][twice][0])} comes twice. Give each item a key of its own.")


def read_asking(folder: Path) -> FloatArray | None:
    """Read the directions that queries of a segment come from, (j, d) float32; None where it has none."""
    path = folder / ASKING
    return np.array(map_array(path, "float32", 2)) if path.is_file() else None


def map_array(path: Path, dtype: str | tuple[str, ...], axes: int) -> Any:
    """Map a .npy file read-only; nothing is ever unpickled.

    Args:
        path: the file.
        dtype: the one expected, or several that may be.
        axes: how many.

    Raises:
        FileNotFoundError: it is gone; whoever knows the folder can say what to type.
        InputError: truncated, or another dtype or number of axes; both values are named.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise
    except _BROKEN_HEADER as error:
        try:
            if path.stat().st_size > _HEADER_BYTES:
                raise
            array = np.load(path, allow_pickle=False)  # without rows: it cannot be mapped, only read
        except _BROKEN_HEADER:
            raise InputError(f"{path}: truncated or not a .npy file ({error}). Build the index again.") from error
    known = (dtype,) if isinstance(dtype, str) else dtype
    if array.dtype.name not in known or array.ndim != axes or not array.flags.c_contiguous:
        wanted = " or ".join(known)
        raise InputError(f"{path}: expected {axes} axes of {wanted}, got shape {array.shape} of {array.dtype}.")
    array.flags.writeable = False
    return np.asarray(array)
