"""All rows scanned by a sign a column (RaBitQ), the best of them scored from the rows: no lists, nothing to train.

It is an inverted file of one list, so that its codes are mapped like those of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bindsearch.index.ivf_codes import IvfRabitqIndex
from bindsearch.index.recipe import NO_MARGIN
from bindsearch.registry import INDEXES

if TYPE_CHECKING:
    from bindsearch.index.base import Progress
    from bindsearch.types import IntArray


class RabitqIndex(IvfRabitqIndex):
    """RaBitQ's codes of all rows, scanned in registers; see `IndexBackend`. Its recipe has no numbers.

    Source: Gao and Long, RaBitQ, SIGMOD 2024.
    """

    name: ClassVar[str] = "rabitq"
    settings: ClassVar[Mapping[str, int]] = {"rerank": 400, "rerank_margin": NO_MARGIN}
    build_numbers: ClassVar[Mapping[str, int]] = {}

    @classmethod
    def _sort_by_list(
        cls,
        folder: Path,  # noqa: ARG003 - the rows stay as they are
        rows: Any,
        numbers: Mapping[str, int],  # noqa: ARG003
        progress: Progress,  # noqa: ARG003
    ) -> IntArray:
        return np.array([rows.shape[0]], dtype=np.int64)


INDEXES.register(RabitqIndex.name, RabitqIndex)
