"""Range search: every item that scores at least so much, block by block, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from bindsearch.index.checks import unit_queries
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
    """
    units = unit_queries(vector, snapshot.manifest.dim)
    query = units.astype(np.float32)
    for number, segment in enumerate(snapshot.segments):
        mask = segment.index.alive if selection is None else selection.masks[number]
        rows = Survivors(segment.index, np.flatnonzero(mask))
        for start, block in rows.blocks():
            near = np.flatnonzero((query @ block.T)[0] >= least - 2 * rows.margin) + start
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
