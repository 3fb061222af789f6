"""The truth: every row scored with numpy. Other backends are compared with it by value."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bindsearch.index.base import IndexBackend
from bindsearch.registry import INDEXES

if TYPE_CHECKING:
    from bindsearch.index.recipe import SearchSettings
    from bindsearch.types import BoolArray, FloatArray, IntArray


class FlatIndex(IndexBackend):
    """Exact search by one matrix product a block of rows; see `IndexBackend`."""

    name: ClassVar[str] = "flat"

    def _scan(
        self,
        queries: FloatArray,
        fetch: int,
        mask: BoolArray | None,
        settings: SearchSettings,  # noqa: ARG002 - it has none
    ) -> tuple[FloatArray, IntArray]:
        """See `IndexBackend._scan`."""
        best = np.empty((queries.shape[0], 0), dtype=np.float32)
        places = np.empty((queries.shape[0], 0), dtype=np.int64)
        for start, block in self.blocks():
            scores = queries @ block.T  # (q, rows of the block)
            if mask is not None:
                scores[:, ~mask[start : start + block.shape[0]]] = -np.inf
            top = _largest(scores, fetch)
            best = np.concatenate([best, np.take_along_axis(scores, top, axis=1)], axis=1)
            places = np.concatenate([places, top + start], axis=1)
            top = _largest(best, fetch)
            best, places = np.take_along_axis(best, top, axis=1), np.take_along_axis(places, top, axis=1)
        ranks = np.argsort(-best, axis=1, kind="stable")
        best, places = np.take_along_axis(best, ranks, axis=1), np.take_along_axis(places, ranks, axis=1)
        return best, np.where(np.isneginf(best), -1, places)


def _largest(scores: FloatArray, count: int) -> IntArray:
    """Give the columns of the `count` largest scores of each row, in no order."""
    if scores.shape[1] <= count:
        return np.broadcast_to(np.arange(scores.shape[1], dtype=np.int64), scores.shape)
    return np.argpartition(scores, scores.shape[1] - count, axis=1)[:, -count:]


INDEXES.register(FlatIndex.name, FlatIndex)
