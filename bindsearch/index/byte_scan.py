"""Exact search by byte codes: find every row that may belong into the answer, score those in full, prove the rest away.

    seed    each query looks at the blocks whose mean code it likes best and scores their best rows in full: a bar, the
            k-th score so far, that is nearly the final one where rows lie in order of likeness
    plan    on a sample of blocks, count how much the heads would rule out; queries for which that pays take them
    scan    all blocks, in rounds: products of codes, the largest of a block against the least that could reach the bar
            (`ByteTable.floors`), and only where that is reached the rows one by one
    settle  rows that may reach the bar are scored in full, best bounds first; the bar rises and drops others

The answer is proven: a row that was not scored in full has an upper bound below the bar, and the bar is the k-th score,
less 2**-23 for what float arithmetic may lose. Rows whose score ties with the k-th are scored, so that ids decide.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from bindsearch.index.byte_stretch import FEW_QUERIES, Found, Stretch, allowed_rows, maxima, pick, reaching
from bindsearch.index.byte_table import BLOCK_ROWS, MARGIN, Asked, Multiplier

if TYPE_CHECKING:
    from bindsearch.index.byte_codes import ByteCodes
    from bindsearch.index.byte_table import Wide
    from bindsearch.types import BoolArray, FloatArray, IntArray

    Score = Callable[[Wide, IntArray], FloatArray]

GROUP = 64
"""Queries multiplied at once; more make the kernel slower (docs/adr/0095)."""

_FIRST_SHARE = 32
_GROWTH = 4
_ROUND_PAIRS = 1 << 24
_CALL_PAIRS = 1 << 17
_CALL_BLOCKS = 64
_OVERFETCH = 16
_SETTLE_BYTES = 64 << 20
_PENDING_ROWS = 1 << 20
_SAMPLE_BLOCKS = 16
_THREAD_PAIRS = 1 << 20


class Best:
    """The k best rows of each query so far, scored in full."""

    def __init__(self, units: Wide, k: int, ids: IntArray, score: Score) -> None:
        """Start without rows.

        Args:
            units: (q, d) float64 unit rows. Not modified.
            k: how many rows a query keeps.
            ids: (n,) int64 of the rows; decide between equal scores. Not modified.
            score: (q, d) float64 queries and (q, m) int64 rows, -1 for none, to (q, m) float32 scores in full.
        """
        self.units, self.k, self.ids, self._score = units, k, ids, score
        count = units.shape[0]
        self.scores = np.full((count, k), -np.inf, dtype=np.float32)
        self.rows = np.full((count, k), -1, dtype=np.int64)
        self.touched = np.zeros(count, dtype=np.int64)
        self.bars = np.full(count, -np.inf)

    def offer(self, queries: IntArray, rows: IntArray) -> None:
        """Score rows in full and keep the best.

        Args:
            queries: (m,) int64 numbers of queries, each once. Not modified.
            rows: (m, j) int64 rows of each that were not offered before, -1 for none. Not modified.
        """
        scores = np.concatenate([self.scores[queries], self._score(self.units[queries], rows)], axis=1)
        rows = np.concatenate([self.rows[queries], rows], axis=1)
        self.touched[queries] += (rows[:, self.k :] >= 0).sum(axis=1)
        ids = np.where(rows >= 0, self.ids[np.maximum(rows, 0)], np.iinfo(np.int64).max)
        order = np.lexsort((ids, -scores), axis=1)[:, : self.k]
        self.scores[queries] = np.take_along_axis(scores, order, axis=1)
        self.rows[queries] = np.take_along_axis(rows, order, axis=1)
        self.raise_bars(queries, self.scores[queries, -1])

    def raise_bars(self, queries: IntArray, kth: FloatArray) -> None:
        """Raise the bars to k-th scores. At -1 scores are cut off, so that no bound is below: no bar then."""
        bars = np.where(kth > -1 + 4 * MARGIN, kth.astype(np.float64) - 2 * MARGIN, -np.inf)
        self.bars[queries] = np.maximum(self.bars[queries], bars)


class ByteScan:
    """One search by byte codes; see the module. Used once."""

    def __init__(self, codes: ByteCodes, best: Best, mask: BoolArray | None, threads: int | None = None) -> None:
        """Prepare a search.

        Args:
            codes: of the rows.
            best: the queries, nothing found yet.
            mask: (n,) bool of the rows that may be answers, or None for all. Not modified.
            threads: at most so many; None: as many as this process may run on.
        """
        self.codes, self.best, self.mask = codes, best, mask
        self.full = codes.ask(best.units)
        self.heads = codes.ask_heads(best.units) if codes.heads is not None else None
        self.threads = threads or _cores()
        self._widened = np.zeros(len(self.full), dtype=np.int64)
        self._seeded = np.empty(0, dtype=np.int64)

    def run(self) -> IntArray:
        """Search; `best` holds the answers then. Gives (q,) how many rows were scored after the scan to prove them."""
        everyone = np.arange(len(self.full), dtype=np.int64)
        self._seed(everyone)
        by_heads = self._plan(everyone)
        for some, heads in ((everyone[by_heads], True), (everyone[~by_heads], False)):
            for start in range(0, some.size, GROUP):
                self._scan(some[start : start + GROUP], heads)
        return self._widened

    # ---- seed and plan -----------------------------------------------------------------------------------------------

    def _seed(self, queries: IntArray) -> None:
        """Score the best rows of the most promising blocks, so that the scan begins with a bar."""
        blocks, multiplier = self.codes.full.blocks, Multiplier()
        seeds = min(4, 1 + blocks // 256)
        found = []
        for start in range(0, queries.size, GROUP):
            some = queries[start : start + GROUP]
            likes = self.codes.full.scales[:, None] * multiplier.multiply(
                self.codes.means, self.full.some(some).packed, some.size
            )
            liked = np.argpartition(-likes, seeds - 1, axis=0)[:seeds] if seeds < blocks else np.argsort(-likes, axis=0)
            for block in np.unique(liked):
                who = some[(liked == block).any(axis=0)]
                found.append(self._best_of(int(block), who, multiplier))
        every = Found.join(found)
        keys = np.sort(self._keys(every))
        left = np.sort(self._keys(self._settle(every, last=False, drop=False)))
        self._seeded = keys[~np.isin(keys, left)]

    def _best_of(self, block: int, queries: IntArray, multiplier: Multiplier) -> Found:
        """Give the k best bounds of a block, and a few more, for each of some queries."""
        rows = allowed_rows(self.mask, block, block + 1, len(self.codes))
        asked = self.full.some(queries)
        if not rows.size:
            return Found.join([])
        products = multiplier.multiply(pick(self.codes.full.codes, rows), asked.packed, queries.size)
        count = min(rows.size, self.best.k + _OVERFETCH)
        chosen = np.argpartition(-products, count - 1, axis=0)[:count] if count < rows.size else None
        which = np.repeat(np.arange(queries.size), rows.size if chosen is None else count)
        places = np.tile(np.arange(rows.size), queries.size) if chosen is None else chosen.T.ravel()
        bounds = self.codes.full.bounds(asked, rows[places], which, products[places, which])
        return Found(queries[which], rows[places], bounds)

    def _plan(self, queries: IntArray) -> BoolArray:
        """Say which queries take the heads: those for which heads and what they leave cost less than all codes."""
        heads, asked = self.codes.heads, self.heads
        if heads is None or asked is None:
            return np.zeros(queries.size, dtype=bool)
        few = queries.size <= FEW_QUERIES
        whole = max(1, len(self.codes) // BLOCK_ROWS)
        sample = np.unique(np.linspace(0, whole - 1, _SAMPLE_BLOCKS).astype(np.int64))
        rows = (sample[:, None] * BLOCK_ROWS + np.arange(BLOCK_ROWS)).ravel()
        codes = heads.codes[rows[rows < len(self.codes)]]
        floors = heads.floors(asked, self.best.bars, 0, heads.blocks)[sample]
        cost, multiplier = np.empty(queries.size), Multiplier()
        for start in range(0, queries.size, GROUP):
            some = queries[start : start + GROUP]
            products = multiplier.multiply(codes, asked.some(some).packed, some.size)
            blocks = (maxima(products) >= floors[:, some]).mean(axis=0)
            rows_left = reaching(products, floors[:, some]).mean(axis=0) if few else 0.0
            cost[some] = 5 * rows_left + 0.25 * blocks if few else 1.5 * blocks
        return np.asarray(cost + 1.5 * heads.codes.shape[1] / self.codes.dim < 1)

    # ---- scan --------------------------------------------------------------------------------------------------------

    def _scan(self, queries: IntArray, heads: bool) -> None:
        """Go through all blocks for at most GROUP queries and settle what was found."""
        blocks = self.codes.full.blocks
        stride = int(np.clip(_CALL_PAIRS // (BLOCK_ROWS * queries.size), 1, _CALL_BLOCKS))
        asked = (self.full.some(queries), self.heads.some(queries) if heads and self.heads is not None else None)
        most = max(stride, _ROUND_PAIRS // (BLOCK_ROWS * queries.size))
        pending, first, size = Found.join([]), 0, max(stride, blocks // _FIRST_SHARE)
        while first < blocks:
            last = min(first + min(size, most), blocks)
            calls = [(at, min(at + stride, last)) for at in range(first, last, stride)]
            fresh = self._round(queries, asked, calls)
            pending = Found.join([pending, fresh.take(~np.isin(self._keys(fresh), self._seeded))])
            if last == blocks or pending.rows.size > 2 * queries.size * (self.best.k + _OVERFETCH):
                pending = self._settle(pending, last == blocks)
            first, size = last, _GROWTH * size

    def _keys(self, found: Found) -> IntArray:
        """Give each pair of a query and a row one number."""
        return found.queries * len(self.codes) + found.rows

    def _round(self, queries: IntArray, asked: tuple[Asked, Asked | None], calls: list[tuple[int, int]]) -> Found:
        """Scan runs of blocks, on several threads where that pays."""
        bars = self.best.bars[queries]
        workers = min(self.threads, len(calls))
        if (calls[-1][1] - calls[0][0]) * BLOCK_ROWS * (queries.size + 8) < _THREAD_PAIRS:
            workers = 1
        shares = [calls[len(calls) * at // workers : len(calls) * (at + 1) // workers] for at in range(workers)]

        def work(share: list[tuple[int, int]]) -> Found:
            return Stretch(self.codes, self.mask, queries, asked, bars).run(share)

        if workers == 1:
            return work(shares[0])
        with ThreadPoolExecutor(workers) as pool:
            return Found.join(list(pool.map(work, shares)))

    # ---- settle ------------------------------------------------------------------------------------------------------

    def _settle(self, found: Found, last: bool, drop: bool = True) -> Found:
        """Score what may reach the bars in full, best bounds first.

        Args:
            found: pairs, in any order. Not modified.
            last: go on until nothing is left that may reach a bar; else score the k best of each query, and a few more.
            drop: leave out of what is given back the pairs that cannot reach their bar any more.

        Returns:
            The pairs that were not scored.
        """
        best = self.best
        step, scored = best.k + _OVERFETCH, 0
        while True:
            if drop:
                found = found.take(found.bounds >= best.bars[found.queries])
            if not found.rows.size:
                return found
            found = found.take(np.lexsort((-found.bounds, found.queries)))
            starts = np.flatnonzero(np.diff(found.queries, prepend=-1))
            sizes = np.diff(np.append(starts, found.rows.size))
            ranks = np.arange(found.rows.size) - np.repeat(starts, sizes)
            self._offer(found.take(ranks < step), min(step, int(sizes.max())), scored)
            found = found.take(ranks >= step)
            if not last and (not drop or found.rows.size < _PENDING_ROWS):
                return found
            scored += step
            step = min(2 * step, max(1, _SETTLE_BYTES // (8 * self.codes.dim)))

    def _offer(self, found: Found, width: int, scored: int) -> None:
        """Offer pairs, sorted by query, `width` at most of each, in blocks that fit in memory."""
        which, places = np.unique(found.queries, return_inverse=True)
        starts = np.flatnonzero(np.diff(found.queries, prepend=-1))
        rows = np.full((which.size, width), -1, dtype=np.int64)
        rows[places, np.arange(found.rows.size) - starts[places]] = found.rows
        if scored:
            self._widened[which] += (rows >= 0).sum(axis=1)
        step = max(1, _SETTLE_BYTES // (8 * self.codes.dim * width))
        for at in range(0, which.size, step):
            self.best.offer(which[at : at + step], rows[at : at + step])


def _cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
