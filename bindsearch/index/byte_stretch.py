"""The inner loop of exact search by byte codes: which pairs of a query and a row may reach the query's bar.

Only integers are looked at while rows stream by: products, and the least product that a block needs
(`ByteTable.floors`). What is left is judged by its own bound at the end of a stretch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bindsearch.index.byte_table import BLOCK_ROWS, Asked, ByteTable, Multiplier, greatest, pack

if TYPE_CHECKING:
    from bindsearch.index.byte_codes import ByteCodes
    from bindsearch.index.byte_table import Bytes, Products, Wide
    from bindsearch.types import BoolArray, IntArray

FEW_QUERIES = 4
"""So many queries judge rows one by one by their heads; more of them whole blocks."""

_ROWS_AT_ONCE = 4096
_KEPT_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Found:
    """Pairs of a query and a row that may reach the query's bar.

    Attributes:
        queries: (m,) int64 numbers of queries.
        rows: (m,) int64 row positions.
        bounds: (m,) float64 upper bounds of their scores.
    """

    queries: IntArray
    rows: IntArray
    bounds: Wide

    @classmethod
    def join(cls, parts: list[Found]) -> Found:
        """Put finds one after the other."""
        none = np.empty(0, dtype=np.int64)
        return cls(
            np.concatenate([none, *(part.queries for part in parts)]),
            np.concatenate([none, *(part.rows for part in parts)]),
            np.concatenate([np.empty(0), *(part.bounds for part in parts)]),
        )

    def take(self, which: IntArray | BoolArray) -> Found:
        """Give some of the pairs."""
        return Found(self.queries[which], self.rows[which], self.bounds[which])


class Stretch:
    """What one thread scans in a round: calls of a few blocks each, for one group of queries. Used once."""

    def __init__(
        self,
        codes: ByteCodes,
        mask: BoolArray | None,
        queries: IntArray,
        asked: tuple[Asked, Asked | None],
        bars: Wide,
    ) -> None:
        """Prepare a stretch.

        Args:
            codes: of the rows.
            mask: (n,) bool of the rows that may be answers, or None for all. Not modified.
            queries: (q,) int64 numbers of the queries. Not modified.
            asked: the queries for all codes, and for the heads where these shall be used.
            bars: (q,) float64, what a row's score must reach. Not modified.
        """
        self.codes, self.mask, self.queries, self.bars = codes, mask, queries, bars
        self.asked, self.heads = asked
        self.first = 0
        self.floors = self.head_floors = np.empty((0, queries.size), dtype=np.int32)
        self._multiplier = Multiplier()
        self._reached = np.empty(0, dtype=bool)
        self._waiting = 0
        self._raw: list[tuple[IntArray, IntArray, Products]] = []
        self._kept: list[Found] = []

    def run(self, calls: list[tuple[int, int]]) -> Found:
        """Find the pairs of the blocks first..last - 1 of each call that may reach the bars."""
        self.first, last = calls[0][0], calls[-1][1]
        self.floors = self.codes.full.floors(self.asked, self.bars, self.first, last)
        if self.heads is not None and self.codes.heads is not None:
            self.head_floors = self.codes.heads.floors(self.heads, self.bars, self.first, last)
        for call in calls:
            self._scan(*call)
            if self._waiting > _KEPT_AT_ONCE:
                self._judge()
        self._judge()
        return Found.join(self._kept)

    def _scan(self, first: int, last: int) -> None:
        start, stop = first * BLOCK_ROWS, min(last * BLOCK_ROWS, len(self.codes))
        if self.mask is not None and np.count_nonzero(self.mask[start:stop]) < (stop - start) // 2:
            self._rows(allowed_rows(self.mask, first, last, len(self.codes)))
            return
        if self.heads is None or self.codes.heads is None:
            self._blocks(first, last, None)
            return
        hits = self._hits(self.codes.heads, self.heads, first, last)
        blocks = np.flatnonzero(hits.any(axis=1))
        if self.queries.size <= FEW_QUERIES:
            self._rows(self._by_heads(self.codes.heads, self.heads, first + blocks))
            return
        for block in blocks.tolist():
            self._blocks(first + block, first + block + 1, np.flatnonzero(hits[block]))

    def _hits(self, heads: ByteTable, asked: Asked, first: int, last: int) -> BoolArray:
        """Say which queries may find a row in which block, by heads: (blocks, q) bool."""
        start, stop = first * BLOCK_ROWS, min(last * BLOCK_ROWS, len(self.codes))
        products = self._multiplier.multiply(heads.codes[start:stop], asked.packed, len(asked))
        return np.asarray(maxima(products) >= self.head_floors[first - self.first : last - self.first])

    def _by_heads(self, heads: ByteTable, asked: Asked, blocks: IntArray) -> IntArray:
        """Give the rows of blocks that any of the queries may want, judged one by one by their heads."""
        if not blocks.size:
            return blocks
        count = len(self.codes)
        rows = np.concatenate([allowed_rows(self.mask, block, block + 1, count) for block in blocks.tolist()])
        if not rows.size:
            return rows
        products = self._multiplier.multiply(pick(heads.codes, rows), asked.packed, len(asked))
        reach = products * (asked.steps * float(heads.scales[0]))[None, :] + asked.fixed[None, :]
        reach += heads.slacks[rows].astype(np.float64) @ asked.weights.T
        return np.asarray(rows[(reach >= self.bars[None, :]).any(axis=1)])

    def _blocks(self, first: int, last: int, which: IntArray | None) -> None:
        """Find pairs in whole blocks, for some of the queries or all."""
        start, stop = first * BLOCK_ROWS, min(last * BLOCK_ROWS, len(self.codes))
        floors = self.floors[first - self.first : last - self.first]
        packed, count = self.asked.packed, self.queries.size
        if which is not None:
            floors, packed, count = floors[:, which], pack(self.asked.codes[which]), which.size
        products = self._multiplier.multiply(self.codes.full.codes[start:stop], packed, count)
        if self._reached.size < products.size:
            self._reached = np.empty(products.size, dtype=bool)
        at = np.flatnonzero(reaching(products, floors, self._reached))
        if at.size:
            rows, columns = np.divmod(at, count)
            self._note(rows + start, columns if which is None else which[columns], products[rows, columns])

    def _rows(self, rows: IntArray) -> None:
        """Find pairs among single rows."""
        for at in range(0, rows.size, _ROWS_AT_ONCE):
            some = rows[at : at + _ROWS_AT_ONCE]
            products = self._multiplier.multiply(pick(self.codes.full.codes, some), self.asked.packed, len(self.asked))
            place, columns = np.nonzero(products >= self.floors[some // BLOCK_ROWS - self.first])
            self._note(some[place], columns, products[place, columns])

    def _note(self, rows: IntArray, columns: IntArray, products: Products) -> None:
        """Keep pairs that reached their floors until they are judged."""
        self._raw.append((rows, columns, products))
        self._waiting += rows.size

    def _judge(self) -> None:
        """Keep, of the pairs that reached their floors, those of allowed rows whose own bounds reach their bars."""
        if not self._raw:
            return
        rows, columns, products = (np.concatenate(parts) for parts in zip(*self._raw, strict=True))
        self._raw, self._waiting = [], 0
        bounds = self.codes.full.bounds(self.asked, rows, columns, products)
        keep = bounds >= self.bars[columns]
        if self.mask is not None:
            keep &= self.mask[rows]
        self._kept.append(Found(self.queries[columns[keep]], rows[keep], bounds[keep]))


def allowed_rows(mask: BoolArray | None, first: int, last: int, count: int) -> IntArray:
    """Give the rows of blocks first..last - 1, of `count` in all, that may be answers."""
    start, stop = first * BLOCK_ROWS, min(last * BLOCK_ROWS, count)
    if mask is None:
        return np.arange(start, stop, dtype=np.int64)
    return np.flatnonzero(mask[start:stop]) + start


def maxima(products: Products) -> Products:
    """Give the largest product of each block, the last of which may be short: (m, q) -> (blocks, q)."""
    whole = products.shape[0] // BLOCK_ROWS * BLOCK_ROWS
    if whole == products.shape[0]:
        return greatest(products, BLOCK_ROWS)
    rest = products[whole:].max(axis=0)[None]
    return np.concatenate([greatest(products[:whole], BLOCK_ROWS), rest]) if whole else rest


def reaching(products: Products, floors: Products, room: BoolArray | None = None) -> BoolArray:
    """Say which products of whole blocks, the last of which may be short, reach their floors.

    Args:
        products: (m, q) int32. Not modified.
        floors: (blocks, q) int32. Not modified.
        room: at least m * q bool that the answer is written into; None: fresh.

    Returns:
        (m, q) bool.
    """
    count, width = products.shape
    whole = count // BLOCK_ROWS
    room = np.empty(count * width, dtype=bool) if room is None else room
    reach = room[: count * width].reshape(count, width)
    runs, cut = (whole, BLOCK_ROWS, width), whole * BLOCK_ROWS
    np.greater_equal(products[:cut].reshape(runs), floors[:whole, None], out=reach[:cut].reshape(runs))
    if cut < count:
        np.greater_equal(products[cut:], floors[whole], out=reach[cut:])
    return reach


def pick(codes: Bytes, rows: IntArray) -> Bytes:
    """Give rows of codes, without a copy where they follow one another."""
    if rows.size and rows[-1] - rows[0] == rows.size - 1:
        return codes[rows[0] : rows[-1] + 1]
    return np.ascontiguousarray(codes[rows])
