"""Answers that differ: near duplicates hidden behind the best of them, and maximal marginal relevance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bindsearch.errors import InputError

if TYPE_CHECKING:
    from bindsearch.types import FloatArray, IntArray


def hide_duplicates(rows: FloatArray, threshold: float) -> tuple[IntArray, FloatArray]:
    """Find the answers that are near duplicates of a better one.

    Each answer, best first, is kept unless its cosine with one kept before is above the threshold; it then stands
    behind the kept one that it is nearest to. So the kept ones of a longer list begin with those of a shorter one.

    Args:
        rows: (n, d) float32 unit rows of the answers, best first. Not modified.
        threshold: cosine in (-1, 1].

    Returns:
        behind (n,) int64: the place of the answer that each stands behind, its own where it is kept; and the cosine
        with it (n,) float32, 1 for itself.

    Raises:
        InputError: a threshold outside (-1, 1].
    """
    if not -1 < threshold <= 1:
        raise InputError(f"near duplicates: expected a cosine above -1 and at most 1, got {threshold:g}.")
    count = rows.shape[0]
    behind = np.arange(count, dtype=np.int64)
    cosines = np.ones(count, dtype=np.float32)
    kept: list[int] = []
    shown = np.empty_like(rows)
    for place in range(count):
        near = shown[: len(kept)] @ rows[place]
        best = int(np.argmax(near)) if kept else -1
        if best >= 0 and near[best] > threshold:
            behind[place], cosines[place] = kept[best], near[best]
        else:
            shown[len(kept)] = rows[place]
            kept.append(place)
    return behind, cosines


def order_diverse(scores: FloatArray, rows: FloatArray, pools: IntArray, balance: float) -> IntArray:
    """Order answers by maximal marginal relevance: each next one scores well and is unlike those before it.

    Args:
        scores: (n,) float32, the best one first. Not modified.
        rows: (n, d) float32 unit rows. Not modified.
        pools: (m,) int64, ascending, at most n: the turn i picks among the first pools[i] answers, more than i. So the
            order for fewer turns is the beginning of that for more, whatever n. Not modified.
        balance: lambda in [0, 1]: 1 is the order by score, 0 looks at unlikeness alone after the first.

    Returns:
        (m,) int64 places, in the new order. Equal values go to the better answer.

    Raises:
        InputError: a balance outside [0, 1].

    Source: Carbonell and Goldstein 1998: argmax of lambda * score - (1 - lambda) * max over chosen of cosine.
    """
    if not 0 <= balance <= 1:
        raise InputError(f"diversity: expected a balance from 0 to 1, got {balance:g}.")
    relevance = balance * scores.astype(np.float64)
    nearest = np.full(scores.size, -np.inf)
    left = np.ones(scores.size, dtype=bool)
    chosen: list[int] = []
    for pool in pools.tolist():
        value = relevance[:pool] - (1 - balance) * nearest[:pool] if chosen else relevance[:pool]
        best = int(np.argmax(np.where(left[:pool], value, -np.inf))) if chosen else 0
        chosen.append(best)
        left[best] = False
        cosines = np.einsum("nd,d->n", rows, rows[best])  # a BLAS rounds a row by where it stands among how many
        nearest = np.maximum(nearest, cosines.astype(np.float64))
    return np.array(chosen, dtype=np.int64)
