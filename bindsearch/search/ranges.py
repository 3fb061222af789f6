"""Range search: every item that scores at least so much, block by block, in bounded memory."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bindsearch.errors import InputError
from bindsearch.index.checks import unit_queries
from bindsearch.search.ranking import Ranker, plan_of
from bindsearch.search.survivors import Survivors

if TYPE_CHECKING:
    from bindsearch.index.snapshot import Snapshot
    from bindsearch.search.selectors import Selection
    from bindsearch.types import FloatArray, IntArray

_SCORED_AT_ONCE = 4096


def iter_range(
    snapshot: Snapshot, vector: FloatArray, least: float, selection: Selection | None = None
) -> Iterator[tuple[FloatArray, IntArray]]:
    """Iterate over all items that score at least `least`; every stored row that may pass is read once.

    Args:
        snapshot: the index.
        vector: (1, d) float32, centred where the index is. Not modified.
        least: cosine; items that score just this pass.
        selection: what may be an answer; None: everything.

    Yields:
        scores (m,) float32 and ids (m,) int64 with m >= 1, exact as of `IndexBackend.search`, in descending order
        within a block of rows and in no order between blocks.

    Raises:
        InputError: `least` is no number.
    """
    if math.isnan(least):
        raise InputError(f"least: expected a cosine from -1 to 1, got {least}.")
    units = unit_queries(vector, snapshot.manifest.dim)
    query = units.astype(np.float32)
    for number, segment in enumerate(snapshot.segments):
        mask = segment.index.alive if selection is None else selection.masks[number]
        rows = Survivors(segment.index, np.flatnonzero(mask))
        # scores are cut off at -1, below which lie products with rows of float16 that are a little longer than 1
        reach = least - 2 * rows.margin if least > -1 else -np.inf
        for start, block in rows.blocks():
            near = np.flatnonzero((query @ block.T)[0] >= reach) + start
            for at in range(0, near.size, _SCORED_AT_ONCE):
                places = near[at : at + _SCORED_AT_ONCE]
                scores = rows.score(units, places)
                passing = scores >= np.float32(least)
                if passing.any():
                    scores, ids = scores[passing], rows.ids[places[passing]]
                    order = np.lexsort((ids, -scores))
                    yield scores[order], ids[order]


def best_in_range(
    snapshot: Snapshot, vector: FloatArray, least: float, limit: int, selection: Selection | None = None
) -> tuple[FloatArray, IntArray, int]:
    """Give the best of the items that score at least `least`; arguments as of `iter_range`.

    Args:
        snapshot: the index.
        vector: (1, d) float32. Not modified.
        least: cosine.
        limit: how many at most; memory holds about twice as many.
        selection: what may be an answer; None: everything.

    Returns:
        scores and ids of the best ones, in order, and how many items there are in the range.
    """
    scores = np.empty(0, dtype=np.float32)
    ids = np.empty(0, dtype=np.int64)
    total = 0
    for more_scores, more_ids in iter_range(snapshot, vector, least, selection):
        total += int(more_ids.size)
        scores, ids = np.concatenate([scores, more_scores]), np.concatenate([ids, more_ids])
        if ids.size > 2 * limit:
            order = np.lexsort((ids, -scores))[:limit]
            scores, ids = scores[order], ids[order]
    order = np.lexsort((ids, -scores))[:limit]
    return scores[order], ids[order], total


@dataclass(frozen=True)
class RangeRanker(Ranker):
    """Ranks the items of a range, each found, whatever the backend.

    Attributes:
        least: cosine.
        limit: how many at most.
        totals: how many items there are in the range, one entry a ranking.
    """

    least: float = -1.0
    limit: int = 1
    totals: list[int] = field(default_factory=list)

    @property
    def proven(self) -> bool:
        """Every row that passes is read."""
        return True

    def rank(self, vectors: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
        """Find the best items of the range for one query, at most `limit` and k; what ran is added to `plans`.

        Args:
            vectors: (1, d) float32, centred where the index is. Not modified.
            k: at least 1.

        Returns:
            scores (1, m) float32 and ids (1, m) int64, best first.
        """
        began = time.perf_counter()
        most = min(k, self.limit)
        scores, ids, total = best_in_range(self.snapshot, vectors, self.least, most, self.selection)
        self.totals.append(total)
        self.plans.append(plan_of(self.snapshot, self.selection, 1, time.perf_counter() - began))
        return scores[None], ids[None]
