"""Near duplicates among unit rows, in time linear in their number: a cache full of one picture answers everybody so.

Rows that agree bit for bit (as float16) are found by their hash. For the rest, rows meet in buckets of sign patterns of
random directions (random hyperplanes, several tables), and only rows of one bucket are compared, exactly. So a row is
only ever left out for an earlier one that stays and whose cosine with it reaches the threshold; a pair beyond the
threshold is missed with a probability of about MISS.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from bindsearch.errors import InputError
from bindsearch.index.base import Progress, no_progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.types import FloatArray, IntArray

LOWEST = 0.98
"""Below this a duplicate is no duplicate, and the tables would have to be many."""
MISS = 1e-3
_MOST_TABLES = 16
_BLOCK_ROWS = 8192
_MOST_TOGETHER = 4096
_SEED = 20261121


def check_threshold(threshold: float | None) -> None:
    """Refuse a least cosine of near duplicates that is out of its range, LOWEST to 1.

    Raises:
        InputError: naming both.
    """
    if threshold is not None and not LOWEST <= threshold <= 1:
        raise InputError(f"near_duplicate: expected a cosine from {LOWEST} to 1, or null, got {threshold}.")


def find_duplicates(rows: FloatArray, threshold: float | None, progress: Progress = no_progress) -> IntArray:
    """Find for each row an earlier one that it repeats.

    Args:
        rows: (n, d) float32 or float16 unit rows, may be mapped; read several times. Not modified.
        threshold: least cosine of a near duplicate, LOWEST to 1; None: only rows that are equal as float16.
        progress: told of tables done.

    Returns:
        (n,) int64: the row that is repeated, which itself repeats none; -1 for rows that stay.

    Raises:
        InputError: a threshold out of its range.
    """
    check_threshold(threshold)
    witness = _same_bytes(rows)
    if threshold is None or rows.shape[0] < 2:
        return witness
    mean = _mean(rows)
    bits, tables = plan_tables(threshold, _centred_norm(rows, mean))
    planes = np.random.default_rng(_SEED).standard_normal((tables, rows.shape[1], bits), dtype=np.float32)
    for table in range(tables):
        progress("duplicates", table, tables)
        alive = np.flatnonzero(witness < 0)
        codes = _codes(rows, alive, mean, planes[table])
        order = np.argsort(codes, kind="stable")
        edges = np.flatnonzero(np.diff(codes[order])) + 1
        for bucket in np.split(order, edges):
            if bucket.size > 1:
                _settle(rows, alive[bucket], threshold, witness)
    progress("duplicates", tables, tables)
    return _repaired(rows, witness, threshold)


def plan_tables(threshold: float, norm: float) -> tuple[int, int]:
    """Choose the longest pattern for which few enough tables miss a pair at the threshold with probability MISS.

    Two rows at an angle a about their mean agree in a random sign with probability 1 - a / pi.

    Args:
        threshold: cosine of the pair.
        norm: how long rows are after their mean is taken away; where it is next to nothing, all share one bucket.

    Returns:
        Signs a pattern, and how many tables.
    """
    apart = math.sqrt(max(2 - 2 * threshold, 2.0**-20))
    agree = 1 - 2 * math.asin(min(1.0, apart / max(2 * norm, 1e-9))) / math.pi
    for bits in range(30, 0, -1):
        meet = min(max(agree**bits, 1e-12), 1 - 1e-9)
        tables = math.ceil(math.log(MISS) / math.log1p(-meet))
        if tables <= _MOST_TABLES:
            return bits, tables
    return 0, 1


def _same_bytes(rows: FloatArray) -> IntArray:
    """Point each row that equals an earlier one, as float16, at it. Takes 16 bytes a row."""
    count, dim = rows.shape
    odd = np.random.default_rng(_SEED).integers(0, 2**63, dim, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    hashes = np.empty(count, dtype=np.uint64)
    for start in range(0, count, _BLOCK_ROWS):
        block = np.ascontiguousarray(rows[start : start + _BLOCK_ROWS], dtype=np.float16).view(np.uint16)
        hashes[start : start + _BLOCK_ROWS] = block.astype(np.uint64) @ odd  # modulo 2**64
    order = np.argsort(hashes, kind="stable")
    again = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    witness = np.full(count, -1, dtype=np.int64)
    first: dict[bytes, int] = {}
    for place in np.unique(np.concatenate([order[again], order[again + 1]])).tolist():
        row = np.ascontiguousarray(rows[place], dtype=np.float16).tobytes()
        earlier = first.setdefault(row, place)
        if earlier != place:
            witness[place] = earlier
    return witness


def _mean(rows: FloatArray) -> FloatArray:
    total = np.zeros(rows.shape[1], dtype=np.float64)
    for start in range(0, rows.shape[0], _BLOCK_ROWS):
        total += rows[start : start + _BLOCK_ROWS].astype(np.float32).sum(axis=0, dtype=np.float64)
    return np.asarray(total / max(1, rows.shape[0]), dtype=np.float32)


def _centred_norm(rows: FloatArray, mean: FloatArray) -> float:
    """Give the length that nine of ten rows of a sample have at least, after their mean is taken away."""
    sample = rows[:: max(1, rows.shape[0] // 4096)].astype(np.float32) - mean
    return float(np.quantile(np.linalg.norm(sample, axis=1), 0.1))


def _codes(rows: FloatArray, alive: IntArray, mean: FloatArray, planes: FloatArray) -> NDArray[np.uint32]:
    """Give the sign pattern of each row: (m,) uint32."""
    codes = np.empty(alive.size, dtype=np.uint32)
    powers = (np.uint32(1) << np.arange(planes.shape[1], dtype=np.uint32)).astype(np.uint32)
    for start in range(0, alive.size, _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        signs = (rows[alive[part]].astype(np.float32) - mean) @ planes > 0
        codes[part] = signs.astype(np.uint32) @ powers
    return codes


def _settle(rows: FloatArray, places: IntArray, threshold: float, witness: IntArray) -> None:
    """Compare the rows of one bucket, those of a large one in overlapping halves. Overwrites `witness`.

    Halves overlap by the distance that a pair at the threshold can have at most, so that each such pair stands in one.
    """
    if places.size <= _MOST_TOGETHER:
        _settle_together(rows, places, threshold, witness)
        return
    here = rows[places].astype(np.float32)
    centred = here - here.mean(axis=0)
    axis = centred[np.argmax((centred * centred).sum(axis=1))]
    for _ in range(3):  # towards the direction in which they spread most
        axis = centred.T @ (centred @ axis)
        axis = axis / max(float(np.linalg.norm(axis)), 1e-12)
    along, reach = centred @ axis, math.sqrt(max(2 - 2 * threshold, 0.0)) + 1e-3
    middle = float(np.median(along))
    left, right = along <= middle + reach, along >= middle
    if max(int(left.sum()), int(right.sum())) > 0.9 * places.size:
        _settle_together(rows, places, threshold, witness)
        return
    _settle(rows, places[left], threshold, witness)
    still = places[right]
    _settle(rows, still[witness[still] < 0], threshold, witness)


def _settle_together(rows: FloatArray, places: IntArray, threshold: float, witness: IntArray) -> None:
    """Compare all of some rows, in order; each that repeats an earlier one that stays is pointed at it."""
    places = np.sort(places)
    kept = np.empty(0, dtype=np.int64)
    for start in range(0, places.size, 1024):
        block = places[start : start + 1024]
        near = rows[block].astype(np.float32)
        for first in range(0, kept.size, 4096):
            part = kept[first : first + 4096]
            products = near @ rows[part].astype(np.float32).T
            best = products.argmax(axis=1)
            found = (products[np.arange(block.size), best] >= threshold) & (witness[block] < 0)
            witness[block[found]] = part[best[found]]
        products = near @ near.T
        for row in np.flatnonzero((np.tril(products, -1) >= threshold).any(axis=1)).tolist():
            earlier = np.flatnonzero((products[row, :row] >= threshold) & (witness[block[:row]] < 0))
            if earlier.size and witness[block[row]] < 0:
                witness[block[row]] = block[earlier[0]]
        kept = np.concatenate([kept, block[witness[block] < 0]])


def _repaired(rows: FloatArray, witness: IntArray, threshold: float) -> IntArray:
    """Point each row at one that stays; where that one is too far away after all, the row stays itself."""
    settled = witness.copy()
    for place in np.flatnonzero(witness >= 0).tolist():
        root = int(settled[place])
        if settled[root] < 0:
            continue
        root = int(settled[root])  # earlier rows are settled: their witness stays
        near = float(rows[place].astype(np.float32) @ rows[root].astype(np.float32)) >= threshold
        settled[place] = root if near else -1
    return settled
