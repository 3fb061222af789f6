"""Products of unit vectors in small numbers: int8 for finding near centroids, float16 for scoring candidates.

numkong chooses its kernels by the processor at run time (AMX, VNNI, AVX2, NEON) and needs no torch.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from bindsearch.index.checks import wide_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.types import FloatArray, IntArray

    Int8Array = NDArray[np.int8]

T = TypeVar("T")
R = TypeVar("R")

_GATHER_BYTES = 1 << 20
_PRODUCT_BYTES = 16 << 20
HALF_ERROR = 1.01 * 2.0**-11
"""The most that rounding a unit query to float16 moves its product with a unit row."""
_THREADED_QUERIES = 16
"""Fewer are not worth starting threads for."""


def thread_count() -> int:
    """Count the processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def in_threads(work: Callable[[T], R], parts: Iterable[T]) -> list[R]:
    """Do the parts of a work, in threads where the process has several processors; results in the order of parts."""
    if thread_count() == 1:
        return [work(part) for part in parts]
    with ThreadPoolExecutor(thread_count()) as pool:
        return list(pool.map(work, parts))


def to_int8(rows: FloatArray, one_scale: bool) -> tuple[Int8Array, FloatArray]:
    """Scale rows to the range of int8 and round.

    Args:
        rows: (n, d) float32 or float16. Not modified.
        one_scale: whether all rows are scaled alike, so that products with them compare.

    Returns:
        codes (n, d) int8, C-contiguous, and scales (n,) float32: scale times code is the row, to rounding.
    """
    wide = rows.copy() if rows.dtype == np.float32 else wide_rows(np.ascontiguousarray(rows))
    scales = np.abs(wide).max(axis=None if one_scale else 1, keepdims=True, initial=np.float32(1e-30)) / np.float32(127)
    wide /= scales
    codes = np.rint(wide, out=wide).astype(np.int8)
    return codes, np.broadcast_to(scales[:, 0], rows.shape[:1])


class NearCentroids:
    """Centroids packed for finding those nearest to many vectors; thread-safe.

    Scores come from int8: for unit vectors of 1024 columns they are off by about 0.001.
    """

    def __init__(self, centroids: Int8Array) -> None:
        """Pack (m, d) int8 centroids of like length; those of the largest product with a vector count as nearest."""
        import numkong

        self.count = centroids.shape[0]
        self._packed = numkong.dots_pack(centroids)
        self._products: Any = numkong.dots_packed

    def nearest(self, codes: Int8Array) -> IntArray:
        """Give the nearest centroid of each of (n, d) int8 vectors, (n,) int64."""
        nearest = np.empty(codes.shape[0], dtype=np.int64)
        step = max(64, _PRODUCT_BYTES // (4 * self.count))
        for start in range(0, codes.shape[0], step):
            products = np.asarray(self._products(codes[start : start + step], self._packed))
            nearest[start : start + step] = products.argmax(axis=1)
        return nearest

    def probe(
        self, codes: Int8Array, count: int, margins: FloatArray | None = None
    ) -> tuple[IntArray, NDArray[np.int32]]:
        """Find the `count` nearest centroids of each of (q, d) int8 vectors.

        Args:
            codes: the vectors. Not modified.
            count: how many a vector, at most.
            margins: (q,) float32: centroids whose product with a vector is less than its largest by more are left out;
                None: none.

        Returns:
            their numbers (q, n) int64, n <= count, ascending, C-contiguous, -1 for none at the end, and their products
            with the vectors, int32.
        """
        products = np.asarray(self._products(codes, self._packed))
        if margins is not None:
            return _within(products, count, margins)
        if count >= self.count:
            every = np.arange(self.count, dtype=np.int64)
            return np.ascontiguousarray(np.broadcast_to(every, products.shape)), products
        near = np.sort(_largest(products, count), axis=1)
        return near, np.take_along_axis(products, near, axis=1)


def _largest(products: NDArray[np.int32], count: int) -> IntArray:
    """Give the numbers of the `count` largest products of each row, in no order."""
    first = products.shape[1] - count
    largest: IntArray = np.argpartition(products, first, axis=1)[:, first:]
    return largest


def _within(products: NDArray[np.int32], count: int, margins: FloatArray) -> tuple[IntArray, NDArray[np.int32]]:
    """Find the largest products of each row, `count` at most, within a margin of the largest; as `probe` gives them."""
    wanted = products >= (products.max(axis=1) - margins)[:, None].astype(np.int32)
    held = np.count_nonzero(wanted, axis=1)
    if count < products.shape[1] and (many := np.flatnonzero(held > count)).size:
        wanted[many], held[many] = False, count
        wanted[many[:, None], _largest(products[many], count)] = True
    rows, columns = np.nonzero(wanted)
    places = np.arange(rows.size) - (np.cumsum(held) - held)[rows]
    near = np.full((held.size, int(held.max(initial=0))), -1, dtype=np.int64)
    found = np.zeros(near.shape, dtype=np.int32)
    near[rows, places], found[rows, places] = columns, products[rows, columns]
    return near, found


def gather_rows(rows: Any, places: IntArray, out: Any = None) -> Any:
    """Copy rows: (n, d) rows, which may be mapped, and (m,) int64 places -> (m, d), in `out` where it is given."""
    _ = rows[places, 0]  # these wait for memory together; rows that are copied wait one after the other
    return np.take(rows, places, axis=0, out=out, mode="clip" if out is not None else "raise")


def score_places(rows: Any, queries: Any, places: IntArray) -> FloatArray:
    """Score candidate rows, each query its own.

    Args:
        rows: (n, d) float16, float32 or int8, C-contiguous; may be mapped. Not modified.
        queries: (q, d) float32 unit rows; of int8 rows int8 codes. Not modified.
        places: (q, m) int64 row positions, -1 for none, ascending in each row. Not modified.

    Returns:
        (q, m) float32, -inf for none. Of float16 rows the queries are rounded to float16 as well: off by up to 2^-11
        of the score, which ranks candidates; the base class scores the best of them exactly. Products of int8 are
        rounded to float32 once.
    """
    scores = np.empty(places.shape, dtype=np.float32)
    count = places.shape[0]
    parts = 2 * thread_count() if count >= _THREADED_QUERIES else 1
    edges = [count * part // parts for part in range(parts + 1)]

    def score(part: tuple[int, int]) -> None:
        _score_part(rows, queries[slice(*part)], places[slice(*part)], scores[slice(*part)])

    in_threads(score, itertools.pairwise(edges)) if parts > 1 else score((0, count))
    scores[places < 0] = -np.inf
    return scores


def _score_part(rows: Any, queries: Any, places: IntArray, scores: FloatArray) -> None:
    """Score the candidates of some queries in one thread; see `score_places`. Overwrites `scores`."""
    import numkong

    step = max(1, _GATHER_BYTES // (rows.shape[1] * rows.itemsize))  # gathered rows stay in the second cache
    buffer = np.empty((min(step, places.shape[1]), rows.shape[1]), dtype=rows.dtype)
    small = queries.astype(rows.dtype)
    for number, every in enumerate(places):
        none = int(np.searchsorted(every, 0))  # those without a row come first
        here = every[none:]
        packed = None if rows.dtype == np.float32 else numkong.dots_pack(small[number : number + 1])
        for start in range(0, here.size, step):
            part = here[start : start + step]
            block = gather_rows(rows, part, buffer[: part.size])
            found = block @ small[number] if packed is None else np.asarray(numkong.dots_packed(block, packed))[:, 0]
            scores[number, none + start : none + start + part.size] = found
