"""Exact search among some rows of a backend: gathered in row order, block by block; the others are not read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bindsearch.index.checks import wide_rows
from bindsearch.index.flat import FlatIndex
from bindsearch.index.small_products import HALF_ERROR, gather_rows, score_places

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from bindsearch.index.base import IndexBackend
    from bindsearch.index.recipe import SearchSettings
    from bindsearch.types import BoolArray, FloatArray, IntArray

_BLOCK_ROWS = 1024
_SCORES_AT_ONCE = 1 << 22
_MANY = 16
"""Survivors for each answer, from which on one query alone is scored roughly first."""


class Survivors(FlatIndex):
    """The rows that a filter lets pass, as an index of their own.

    Proof, ties and the exact scores are those of `IndexBackend`; only where rows come from differs. Rows stored as
    float16 are widened a block at a time by numkong, which is exact and 17 times as fast as numpy (docs/adr/0103).
    """

    name: ClassVar[str] = "survivors"

    def __init__(self, base: IndexBackend, places: IntArray) -> None:
        """Take some living rows of a backend.

        Args:
            base: the backend; its stored rows are read. Not modified.
            places: (m,) int64 row positions, ascending. Not modified.
        """
        super().__init__(base._rows, base.ids[places], order=places)
        self._base, self._places = base, places

    def blocks(self) -> Iterator[tuple[int, FloatArray]]:
        """Iterate over (first place, (m, d) float32 rows); a block is valid until the next one is asked for."""
        wide = np.empty((_BLOCK_ROWS, self.dim), dtype=np.float32)
        for start in range(0, self._places.size, _BLOCK_ROWS):
            here = self._places[start : start + _BLOCK_ROWS]
            if here[-1] - here[0] == here.size - 1:  # neighbours: nothing to gather
                rows: Any = self._rows[here[0] : here[-1] + 1]
            else:
                rows = gather_rows(self._rows, here)
            yield start, wide_rows(rows, wide[: here.size])

    @property
    def margin(self) -> float:
        """The most that a float32 product of a unit query with a row of `blocks` can be off."""
        return self._margin()

    def score(self, unit: NDArray[np.float64], places: IntArray) -> FloatArray:
        """Score some survivors exactly.

        Args:
            unit: (1, d) float64 unit query. Not modified.
            places: (m,) int64, counting the survivors. Not modified.

        Returns:
            (m,) float32, as of `IndexBackend.search`.
        """
        return np.asarray(self._exact_scores(unit, places[None])[0])

    def _scan(
        self,
        queries: FloatArray,
        fetch: int,
        mask: BoolArray | None,  # noqa: ARG002  # survivors pass, all of them
        settings: SearchSettings,  # noqa: ARG002  # a scan has none
    ) -> tuple[FloatArray, IntArray]:
        """See `IndexBackend._scan`; there is no mask among survivors."""
        asked, count = queries.shape[0], self._places.size
        if asked == 1 and self._rows.dtype == np.float16 and count > _MANY * fetch:
            return self._scan_roughly(queries, fetch)
        room = _BLOCK_ROWS * max(1, min(-(-count // _BLOCK_ROWS), _SCORES_AT_ONCE // (asked * _BLOCK_ROWS)))
        scores = np.empty((asked, room), dtype=np.float32)
        best = np.empty((asked, 0), dtype=np.float32)
        places = np.empty((asked, 0), dtype=np.int64)
        used = 0
        for start, block in self.blocks():
            scores[:, used : used + block.shape[0]] = queries @ block.T
            used += block.shape[0]
            if used == room or start + block.shape[0] == count:
                first = start + block.shape[0] - used
                top = _largest(scores[:, :used], fetch)
                best = np.concatenate([best, np.take_along_axis(scores, top, axis=1)], axis=1)
                places = np.concatenate([places, top + first], axis=1)
                used = 0
        top = _largest(best, fetch)
        best, places = np.take_along_axis(best, top, axis=1), np.take_along_axis(places, top, axis=1)
        ranks = np.argsort(-best, axis=1, kind="stable")
        return np.take_along_axis(best, ranks, axis=1), np.take_along_axis(places, ranks, axis=1)

    def _scan_roughly(self, query: FloatArray, fetch: int) -> tuple[FloatArray, IntArray]:
        """Find the same for one query by products in float16, and by float32 products of whom those leave in doubt.

        Widening takes longer than gathering. A row among the `fetch` best has a rough product above the `fetch`-th
        largest of those, less twice what one may be off.
        """
        rough = score_places(self._rows, query, self._places[None])[0]
        least = np.partition(rough, rough.size - fetch)[rough.size - fetch] - 2 * (HALF_ERROR + self._margin())
        likely = np.flatnonzero(rough >= least)
        scores = wide_rows(gather_rows(self._rows, self._places[likely])) @ query[0]
        best = np.argsort(-scores, kind="stable")[:fetch]
        return scores[None, best], likely[None, best]

    def _exact_scores(self, units: NDArray[np.float64], places: IntArray) -> FloatArray:
        """See `IndexBackend._exact_scores`; places count the survivors."""
        return self._base._exact_scores(units, np.where(places < 0, -1, self._places[places]))


def _largest(scores: FloatArray, count: int) -> IntArray:
    """Give the columns of the `count` largest scores of each row, in no order."""
    if scores.shape[1] <= count:
        return np.broadcast_to(np.arange(scores.shape[1], dtype=np.int64), scores.shape)
    return np.argpartition(scores, scores.shape[1] - count, axis=1)[:, -count:]
