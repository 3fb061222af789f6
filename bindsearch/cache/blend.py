"""The formulas of the visual cache, as pure functions over arrays; Source: golden imagebind_llm, files (1).

    mixture   f = sum_m w_m / (sum w + 1e-6) * x_m                  not normalised again
    blend     a = softmax(t * s),  r = unit(sum_j a_j v_j),  y = unit((1 - w) f + w r)

v_j are the rows of the k nearest cached images, s their inner products with f. The mixture of the language model is not
the query algebra (`bindsearch.query`), which normalises its sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import InputError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.types import FloatArray, IntArray

    Real = NDArray[np.float64]

CACHE_SIZE = 10
INVERSE_TEMPERATURE = 20.0
WEIGHT = 0.5
"""What the reference enhances with since 2023-06-02."""
SMALLEST_NORM = 1e-6
"""A sum shorter than this has no direction worth the name."""
_WEIGHTS_EPS = 1e-6


def check_rows(rows: Any, what: str, dim: int | None = None) -> FloatArray:
    """Refuse what are no vectors; give them as float32.

    Args:
        rows: (B, d) of any float dtype. Not modified.
        what: their name in messages.
        dim: the d expected; None: any.

    Returns:
        (B, d) float32; `rows` itself where it is that already.

    Raises:
        ShapeError: another shape, or no floats.
        InputError: a row that is not finite or is zero; it is named.
    """
    shape, dtype = getattr(rows, "shape", None), getattr(rows, "dtype", None)
    if shape is None or len(shape) != 2 or (dim is not None and shape[1] != dim) or shape[1] == 0:
        got = tuple(shape) if shape is not None else type(rows).__name__
        raise ShapeError(f"{what}: expected shape (any, {'any' if dim is None else dim}), got {got}.")
    if dtype is None or np.dtype(dtype).kind != "f":
        raise ShapeError(f"{what}: expected floats, got {dtype}. Convert: x.astype('float32').")
    narrow = np.asarray(rows, dtype=np.float32)
    norms = np.linalg.norm(narrow, axis=1)
    bad = ~np.isfinite(norms) | (norms == 0)
    if bad.any():
        place = int(np.argmax(bad))
        raise InputError(f"{what}: row {place} has the norm {norms[place]}; expected a finite norm above 0.")
    return narrow


def check_blend(inverse_temperature: float, weight: float) -> None:
    """Refuse settings that cannot be meant.

    Raises:
        InputError: a temperature that is negative or not finite, a weight outside 0 to 1.
    """
    if not (math.isfinite(inverse_temperature) and inverse_temperature >= 0):
        raise InputError(f"inverse_temperature: expected a finite number from 0 on, got {inverse_temperature}.")
    if not 0 <= weight <= 1:
        raise InputError(f"weight: expected a number from 0 to 1, got {weight}.")


def mix(parts: Sequence[FloatArray], weights: Sequence[float]) -> FloatArray:
    """Mix the embeddings of several modalities as ImageBind-LLM does: by weight over the sum of weights + 1e-6.

    Rows are normalised first; the sum is not: unlike modalities give a short vector, which the search and the blend see
    as it is. One modality alone comes out with norm w / (w + 1e-6).

    Args:
        parts: at least one, (B, d) each, of any float dtype and any norm above 0. Not modified.
        weights: one a part, finite, from 0 on, not all 0.

    Returns:
        (B, d) float32.

    Raises:
        ShapeError: parts of different shapes.
        InputError: a weight that cannot be meant; a row that is not finite or is zero.
    """
    units = []
    for number, part in enumerate(parts):
        wide = check_rows(part, f"part {number}").astype(np.float64)
        units.append(wide / np.linalg.norm(wide, axis=1, keepdims=True))
    return _weighted(units, weights).astype(np.float32)


def mix_raw(parts: Sequence[FloatArray], weights: Sequence[float]) -> FloatArray:
    """Mix embeddings before their normalisation, as ImageBind-LLM's image output does.

    Args:
        parts: (B, d) each, pre-norm; those of points divided by 5 beforehand. Not modified.
        weights: as in `mix`.

    Returns:
        (B, d) float32; errors as in `mix`.
    """
    rows = [check_rows(part, f"part {number}").astype(np.float64) for number, part in enumerate(parts)]
    return _weighted(rows, weights).astype(np.float32)


def _weighted(parts: Sequence[Real], weights: Sequence[float]) -> Real:
    if not parts or len(parts) != len(weights):
        raise InputError(f"mixture: expected one weight a part and at least one, got {len(parts)} and {len(weights)}.")
    for part in parts:
        if part.shape != parts[0].shape:
            raise ShapeError(f"mixture: parts of shapes {parts[0].shape} and {part.shape}; expected the same.")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise InputError(f"mixture: expected finite weights from 0 on, not all 0, got {list(weights)}.")
    total = float(sum(weights)) + _WEIGHTS_EPS
    mixed = np.zeros_like(parts[0])
    for part, weight in zip(parts, weights, strict=True):
        mixed += (weight / total) * part
    return mixed


def attention(queries: FloatArray, rows: FloatArray, there: NDArray[np.bool_], inverse_temperature: float) -> Real:
    """Weigh cached rows by softmax of their inner products with the query.

    Args:
        queries: (B, d) float32. Not modified.
        rows: (B, k, d) float32; those that are not `there` must be finite. Not modified.
        there: (B, k) bool; at least one a row.
        inverse_temperature: multiplies the products.

    Returns:
        (B, k) float64, each row sums to 1; 0 where nothing is there.
    """
    # one product a row of the batch, in float64: the same numbers whatever the batch
    products = np.matmul(rows.astype(np.float64), queries.astype(np.float64)[:, :, None])[:, :, 0]
    logits = np.where(there, inverse_temperature * products, -np.inf)
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), dtype=np.float64)


def retrieved(rows: FloatArray, weights: Real) -> Real:
    """Average cached rows by weight and normalise: (B, k, d) and (B, k) to (B, d) float64 unit rows.

    Raises:
        InputError: the rows of a query cancel out.
    """
    total = np.matmul(weights[:, None, :], rows.astype(np.float64))[:, 0, :]
    return _unit(total, "the cached rows of query")


def blend(queries: FloatArray, found: Real, weight: float) -> FloatArray:
    """Move queries towards what was found for them.

    Args:
        queries: (B, d) float32, of any norm: a mixture is shorter than 1. Not modified.
        found: (B, d) float64 unit rows. Not modified.
        weight: of what was found, 0 to 1.

    Returns:
        (B, d) float32 unit rows.

    Raises:
        InputError: a query and what was found for it cancel out.
    """
    total = (1 - weight) * queries.astype(np.float64) + weight * found
    return _unit(total, "query and cached rows of query").astype(np.float32)


def _unit(rows: Real, what: str) -> Real:
    norms = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    if (norms < SMALLEST_NORM).any():
        place = int(np.argmin(norms))
        raise InputError(f"cache: {what} {place} cancel out (norm {norms[place, 0]:.1e}). Change the weight.")
    return np.asarray(rows / norms, dtype=np.float64)


def masked_ids(ids: IntArray) -> tuple[IntArray, NDArray[np.bool_]]:
    """Put a real id in place of each missing hit (-1), so that nothing is read that is not there.

    Args:
        ids: (B, k) int64, -1 where a search found no more. Not modified.

    Returns:
        (B, k) int64 ids that exist, and (B, k) bool: which of them were found.

    Raises:
        InputError: a query with no hit at all.
    """
    there = ids >= 0
    if not there.any(axis=1).all():
        raise InputError(f"cache: query {int(np.argmin(there.any(axis=1)))} has no cached neighbour.")
    first = ids[np.arange(ids.shape[0]), there.argmax(axis=1)]
    return np.where(there, ids, first[:, None]), there
