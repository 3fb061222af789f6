"""Shares of right answers, with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.evaluate.metrics import wilson

if TYPE_CHECKING:
    from numpy.typing import NDArray


def share_of(right: NDArray[np.bool_]) -> dict[str, Any]:
    """Give the share of true entries with Wilson's 95 % interval."""
    return interval(float(np.mean(right)), len(right))


def interval(share: float, n: int) -> dict[str, Any]:
    """Give a share of n trials with Wilson's 95 % interval, four digits."""
    figure = wilson(share, n)
    ends = {name: round(float(getattr(figure, name)), 4) for name in ("value", "low", "high")}
    return {**ends, "n": n}


def accuracy(asked: NDArray[np.int16], found: NDArray[np.int16]) -> dict[str, Any]:
    """Give the share of equal codes."""
    return share_of(asked == found)
