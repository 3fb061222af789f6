"""The depths that a ranking is asked for: 256, 512, 1024 ... items, whatever the page (docs/adr/0160).

A list of answers must not depend on how much of it is asked for. So the depth at which an item was found is a property
of the list, its step: of a proven ranking it follows from the item's place; of an approximate one, which at a greater
depth may find items in front of those that it found before, from the first of the depths that found it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from bindsearch.types import IntArray

FIRST = 256
LAST = 16_384
_SPARE = 4


def depth_for(count: int) -> int:
    """Give the first of the depths that is at least `count`."""
    depth = FIRST
    while depth < count:
        depth *= 2
    return depth


def first_depth(wanted: int) -> int:
    """Give the depth at which a search for so many answers begins: four times as many, but no more than needed."""
    return max(min(depth_for(_SPARE * wanted), LAST), depth_for(wanted))


def steps_of(count: int) -> IntArray:
    """Give the step of each place of a proven ranking: (count,) int64, ascending."""
    steps = np.full(count, FIRST, dtype=np.int64)
    while steps.size and (behind := np.arange(count) >= steps).any():
        steps[behind] *= 2
    return steps


def pools(steps: IntArray, wanted: int) -> IntArray:
    """Say how many answers each turn of an order that picks may pick from: those of the steps up to its own.

    Args:
        steps: (n,) int64 step of each answer, ascending. Not modified.
        wanted: how many turns.

    Returns:
        (min(wanted, n),) int64: turn i has a pool of more than i answers; as large as `first_depth` asks, if there are.
    """
    turns = np.arange(min(wanted, steps.size))
    reach = np.array([min(depth_for(_SPARE * (turn + 1)), LAST) for turn in turns.tolist()], dtype=np.int64)
    return np.searchsorted(steps, np.maximum(steps[turns], reach), side="right").astype(np.int64)
