"""int8 codes of rows, and upper bounds of products that are read off them.

A table holds m codes a row, a scale a block of rows, and slacks: lengths of what the codes leave out. Every bound here
has one form,

    product of query and row <= step * scale * N + fixed + weights . slacks,
    N = codes of the query . codes of the row,

where N is an exact integer and the others are numbers of the query (step, fixed, weights) or of the row. Which lengths
the slacks are is said, and proven, by `byte_codes.py` (all columns) and `byte_head.py` (the leading directions).

The integers come from numkong, which picks its kernel at run time and lets other threads run meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.types import FloatArray, IntArray

    Bytes = NDArray[np.int8]
    Products = NDArray[np.int32]
    Wide = NDArray[np.float64]

BLOCK_ROWS = 512
LEVELS = 127
MARGIN = 2.0**-24
"""What float64 may lose, generously; bounds are compared with a bar that stands this much lower (ADR 0095)."""

_HALVED_TO = 16
_INT_MAX = 2**31 - 1


@dataclass(frozen=True)
class ByteTable:
    """Codes of n rows in blocks of BLOCK_ROWS.

    Attributes:
        codes: (n, m) int8 in [-127, 127], C-contiguous; may be memory-mapped.
        scales: (blocks,) float32 above 0: a block's value of one step.
        slacks: (n, j) float32, lengths that the codes leave out, rounded up.
        tops: (blocks, j) float32, the largest slacks of each block.
    """

    codes: Bytes
    scales: FloatArray
    slacks: FloatArray
    tops: FloatArray

    @property
    def blocks(self) -> int:
        """How many blocks there are; the last may be shorter."""
        return int(self.scales.shape[0])

    def floors(self, asked: Asked, bars: Wide, first: int, last: int) -> Products:
        """Give the least N of each block at which a row's bound may reach the bar.

        Args:
            asked: the q queries.
            bars: (q,) float64, the score that a row must be able to reach; -inf: every row. Not modified.
            first: number of the first block.
            last: number after the last block.

        Returns:
            (last - first, q) int32; a row below it cannot reach the bar.
        """
        left = bars[None, :] - asked.fixed[None, :] - self.tops[first:last].astype(np.float64) @ asked.weights.T
        with np.errstate(over="ignore"):
            floors = np.floor(left / (self.scales[first:last].astype(np.float64)[:, None] * asked.steps[None, :]))
        return np.clip(floors, -_INT_MAX, _INT_MAX).astype(np.int32)

    def bounds(self, asked: Asked, rows: IntArray, queries: IntArray, products: Products) -> Wide:
        """Give the upper bounds of pairs of rows and queries, (m,) float64, from their (m,) products."""
        reach = asked.steps[queries] * self.scales[rows // BLOCK_ROWS] * products
        reach += asked.fixed[queries]
        reach += np.einsum("ij,ij->i", self.slacks[rows].astype(np.float64), asked.weights[queries])
        return np.asarray(reach, dtype=np.float64)


@dataclass(frozen=True)
class Asked:
    """q queries as a table needs them.

    Attributes:
        codes: (q, m) int8.
        steps: (q,) float64, the value of one step of a query's codes.
        fixed: (q,) float64, what the query's own rounding may add to any row's product.
        weights: (q, j) float64, what each slack of a row may add a unit.
    """

    codes: Bytes
    steps: Wide
    fixed: Wide
    weights: Wide

    def some(self, which: IntArray) -> Asked:
        """Give the same of a few queries."""
        return Asked(self.codes[which], self.steps[which], self.fixed[which], self.weights[which])

    def __len__(self) -> int:
        """Count the queries."""
        return int(self.codes.shape[0])

    @cached_property
    def packed(self) -> Any:
        """The codes in the layout that the kernel wants."""
        return pack(self.codes)


def pack(codes: Bytes) -> Any:
    """Lay out (q, m) int8 codes for `multiply`."""
    import numkong

    return numkong.dots_pack(np.ascontiguousarray(codes))


class Multiplier:
    """Products of int8 codes into memory that is used again; one a thread."""

    def __init__(self) -> None:
        """Start without memory."""
        self._outs: dict[tuple[int, int], tuple[Any, Products]] = {}

    def multiply(self, codes: Bytes, packed: Any, count: int) -> Products:
        """Multiply rows with packed queries.

        Args:
            codes: (m, width) int8, C-contiguous. Not modified.
            packed: of `count` queries.
            count: how many queries were packed.

        Returns:
            (m, count) int32, exact; valid until the next call with this shape.
        """
        import numkong

        shape = (int(codes.shape[0]), count)
        if shape not in self._outs:
            if len(self._outs) > 64:
                self._outs.clear()
            out = numkong.zeros(shape, dtype="int32")
            self._outs[shape] = out, np.asarray(out)
        out, view = self._outs[shape]
        numkong.dots_packed(codes, packed, out=out)
        return view


def quantise(values: Wide, peaks: Wide) -> tuple[Bytes, Wide]:
    """Round vectors to codes.

    Args:
        values: (m, width) float64. Not modified.
        peaks: (m,) float64 above 0: the value of the code 127. Not modified.

    Returns:
        codes (m, width) int8; steps (m,) float64, so that values are about codes * steps.
    """
    steps = peaks / LEVELS
    codes = np.rint(values / steps[:, None])
    return np.clip(codes, -LEVELS, LEVELS).astype(np.int8), steps


def greatest(products: Products, rows: int) -> Products:
    """Give the largest product of each run of `rows` rows: (m, q) int32 -> (m / rows, q)."""
    runs = products.reshape(-1, rows, products.shape[1])
    if products.shape[1] < _HALVED_TO or rows % _HALVED_TO:
        return np.asarray(runs.max(axis=1))
    half = rows // 2
    found = np.maximum(runs[:, :half], runs[:, half:])
    while half % 2 == 0 and half > _HALVED_TO:
        half //= 2
        np.maximum(found[:, :half], found[:, half : 2 * half], out=found[:, :half])
    return np.asarray(found[:, :half].max(axis=1))


def up(values: Wide) -> FloatArray:
    """Round lengths up: to float32, above what float64 may have lost in sums of up to 2**17 squares."""
    wider = values * (1 + 1e-9) + 1e-12
    return np.nextafter(wider.astype(np.float32), np.float32(np.inf))
