"""Spherical k-means over a sample, and the assignment of all rows: the lists of an inverted file.

Products are taken in int8 (small_products.py): five times as fast as float32 here, and what they round away does not
show in the lists (docs/adr/0091). Everything is seeded; threads do not change the result.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.index.checks import wide_rows
from bindsearch.index.small_products import NearCentroids, in_threads, thread_count, to_int8

if TYPE_CHECKING:
    from bindsearch.index.base import Progress
    from bindsearch.types import FloatArray, IntArray

_BLOCK_ROWS = 4096
_SAMPLE_BYTES = 2 << 30


def default_lists(count: int) -> int:
    """Give the number of lists where no recipe says one: the power of two nearest to 4 sqrt(n), at most n / 4."""
    wanted = 2 ** round(np.log2(4 * np.sqrt(max(count, 1))))
    return int(max(1, min(wanted, count // 4)))


def train_centroids(rows: Any, lists: int, rows_per_list: int, rounds: int, progress: Progress) -> FloatArray:
    """Find unit centroids by k-means on a sample.

    Args:
        rows: (n, d) float16 or float32 unit rows; may be mapped. Not modified.
        lists: how many centroids, at most n.
        rows_per_list: size of the sample for each of them; 3 bytes a number of it stay in memory, 2 GB at most.
        rounds: how often centroids move.
        progress: told of the rounds.

    Returns:
        (lists, d) float32 unit rows.
    """
    count, dim = rows.shape
    rng = np.random.default_rng(20261121)
    size = min(count, max(lists, min(lists * rows_per_list, _SAMPLE_BYTES // (3 * dim))))
    chosen = np.sort(rng.choice(count, size, replace=False))
    sample, codes = np.empty((size, dim), dtype=np.float16), np.empty((size, dim), dtype=np.int8)
    for start in range(0, size, _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        sample[part] = rows[chosen[part]]
        codes[part] = to_int8(sample[part], one_scale=False)[0]
    centroids: FloatArray = sample[np.sort(rng.choice(size, lists, replace=False))].astype(np.float32)
    for turn in range(rounds):
        near = NearCentroids(to_int8(centroids, one_scale=True)[0])
        nearest = np.concatenate(in_threads(near.nearest, _split(codes)))
        centroids = _means(sample, nearest, lists, rng)
        progress("k-means", turn + 1, rounds)
    return centroids


def assign(rows: Any, centroids: FloatArray, progress: Progress) -> IntArray:
    """Give the nearest centroid of every row.

    Args:
        rows: (n, d) float16 or float32 unit rows; may be mapped. Not modified.
        centroids: (lists, d) float32 unit rows. Not modified.
        progress: told of the rows.

    Returns:
        (n,) int64.
    """
    near, count = NearCentroids(to_int8(centroids, one_scale=True)[0]), rows.shape[0]
    nearest = np.empty(count, dtype=np.int64)
    stride = _BLOCK_ROWS * thread_count()

    def work(start: int) -> None:
        block = rows[start : start + _BLOCK_ROWS]
        nearest[start : start + block.shape[0]] = near.nearest(to_int8(block, one_scale=False)[0])

    for start in range(0, count, stride):
        in_threads(work, range(start, min(start + stride, count), _BLOCK_ROWS))
        progress("assign", min(start + stride, count), count)
    return nearest


def list_means(rows: Any, sizes: IntArray) -> FloatArray:
    """Give the mean of each list, of rows that are sorted by list.

    Args:
        rows: (n, d) float16 or float32; may be mapped. Not modified.
        sizes: (lists,) int64 rows of each list, in their order; their sum is n.

    Returns:
        (lists, d) float32; zeros for an empty list.
    """
    ends = np.cumsum(sizes)
    sums = np.zeros((sizes.size, rows.shape[1]), dtype=np.float32)
    numbers = np.repeat(np.arange(sizes.size), sizes)
    for start in range(0, int(ends[-1]), _BLOCK_ROWS):
        _add_sums(sums, rows[start : start + _BLOCK_ROWS], numbers[start : start + _BLOCK_ROWS])
    sums /= np.maximum(sizes, 1).astype(np.float32)[:, None]
    return sums


def _means(sample: Any, nearest: IntArray, lists: int, rng: np.random.Generator) -> FloatArray:
    """Move centroids to the means of their rows, scaled to length 1; an empty one goes to a row of the largest list."""
    order = np.argsort(nearest, kind="stable")
    sums = np.zeros((lists, sample.shape[1]), dtype=np.float32)
    for part in _split(order):
        _add_sums(sums, sample[part], nearest[part])
    sizes = np.bincount(nearest, minlength=lists)
    empty = np.flatnonzero(sizes == 0)
    if empty.size:
        crowded = np.flatnonzero(sizes[nearest] >= np.sort(sizes[nearest])[-empty.size])
        sums[empty] = sample[rng.choice(crowded, empty.size, replace=False)].astype(np.float32)
    return unit_or_axis(sums)


def unit_or_axis(vectors: FloatArray) -> FloatArray:
    """Scale (m, d) vectors to length 1; zeros become the first axis."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    units[norms[:, 0] == 0, 0] = 1
    return np.asarray(units, dtype=np.float32)


def _add_sums(sums: FloatArray, block: Any, numbers: IntArray) -> None:
    """Add rows to the sums of their lists; `numbers` ascend."""
    wide, bounds = wide_rows(block), np.flatnonzero(numbers[1:] != numbers[:-1]) + 1
    # np.add.reduceat takes ten times as long and more
    for first, last in pairwise([0, *bounds.tolist(), numbers.size]):
        sums[numbers[first]] += wide[first:last].sum(axis=0)


def _split(values: Any) -> list[Any]:
    return [values[start : start + _BLOCK_ROWS] for start in range(0, values.shape[0], _BLOCK_ROWS)]
