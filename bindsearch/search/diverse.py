"""Answers that differ: near duplicates hidden behind the best of them, and maximal marginal relevance.

A BLAS rounds a row's product by where it stands among how many. So rows are multiplied in blocks of one shape, filled
up with zeros, in which each row has the place that it has in the list: its cosines do not depend on how long that is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bindsearch.errors import InputError

if TYPE_CHECKING:
    from bindsearch.types import FloatArray, IntArray

_BLOCK = 128


def hide_duplicates(rows: FloatArray, threshold: float) -> tuple[IntArray, FloatArray]:
    """Find the answers that are near duplicates of a better one.

    Each answer, best first, is kept unless its cosine with one kept before is above the threshold; it then stands
    behind the kept one that it is nearest to. So the kept ones of a longer list begin with those of a shorter one.
    Rows that are equal to the last bit have the cosine 1, and none has more: a threshold of 1 hides nothing.

    Args:
        rows: (n, d) float32 rows of the answers, best first, none zero; normalised in a copy, since those that were
            rounded to float16 are only nearly unit. Not modified.
        threshold: cosine in (-1, 1].

    Returns:
        behind (n,) int64: the place of the answer that each stands behind, its own where it is kept; and the cosine
        with it (n,) float32, 1 for itself.

    Raises:
        InputError: a threshold outside (-1, 1].
    """
    if not -1 < threshold <= 1:
        raise InputError(f"near duplicates: expected a cosine above -1 and at most 1, got {threshold:g}.")
    behind = np.arange(rows.shape[0], dtype=np.int64)
    cosines = np.ones(rows.shape[0], dtype=np.float32)
    blocks = _unit_blocks(rows)
    shown = np.zeros_like(blocks)
    kept: list[int] = []
    kept_rows: dict[bytes, int] = {}
    for number, block in enumerate(blocks):
        before, first = len(kept), number * _BLOCK
        near, place_of = _nearest_shown(block, shown, before)
        own = np.minimum(np.matmul(block, block.T.copy()), np.float32(1))
        for place in range(first, min(first + _BLOCK, rows.shape[0])):
            at = place - first
            best, cosine = (kept[place_of[at]], near[at]) if before else (place, np.float32(-np.inf))
            if new := kept[before:]:
                among = own[at, np.array(new) - first]
                nearest = int(np.argmax(among))
                if among[nearest] > cosine:
                    best, cosine = new[nearest], among[nearest]
            bits = rows[place].tobytes()
            if bits in kept_rows:
                best, cosine = kept_rows[bits], np.float32(1)
            if float(cosine) > threshold:
                behind[place], cosines[place] = best, cosine
            else:
                shown[len(kept) // _BLOCK, len(kept) % _BLOCK] = block[at]
                kept.append(place)
                kept_rows.setdefault(bits, place)
    return behind, cosines


def _nearest_shown(block: FloatArray, shown: FloatArray, count: int) -> tuple[FloatArray, IntArray]:
    """Find the nearest of the first `count` rows of some blocks, (b, _BLOCK, d), to each row of another block.

    Returns:
        (_BLOCK,) float32 cosines and (_BLOCK,) int64 places among these rows, the first of equal ones; no rows where
        `count` is 0.
    """
    if not count:
        return np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64)
    products = np.matmul(block, shown[: -(-count // _BLOCK)].transpose(0, 2, 1))  # (b, _BLOCK, _BLOCK)
    near = np.minimum(products.transpose(1, 0, 2).reshape(_BLOCK, -1)[:, :count], np.float32(1))
    places = np.argmax(near, axis=1)
    return near[np.arange(_BLOCK), places], places


def _unit_blocks(rows: FloatArray) -> FloatArray:
    """Lay rows into blocks as `_blocks` does, each of them divided by its norm, which is taken in float64."""
    blocks = _blocks(rows)
    for block in blocks:
        norms = np.sqrt(np.einsum("nd,nd->n", block, block, dtype=np.float64))
        block /= np.where(norms > 0, norms, 1)[:, None]  # filled up rows stay zero
    return blocks


def _blocks(rows: FloatArray) -> FloatArray:
    """Lay (n, d) rows into blocks (b, _BLOCK, d), the last one filled up with zeros; a copy."""
    count, dim = rows.shape
    filled = np.zeros((-(-count // _BLOCK) * _BLOCK, dim), dtype=np.float32)
    filled[:count] = rows
    return filled.reshape(-1, _BLOCK, dim)


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
    count = int(pools[-1]) if pools.size else 0
    blocks = _blocks(rows[:count])
    relevance = balance * scores[:count].astype(np.float64)
    nearest = np.full(count, -np.inf, dtype=np.float32)
    left = np.ones(count, dtype=bool)
    chosen: list[int] = []
    for pool in pools.tolist():
        value = relevance[:pool] - (1 - balance) * nearest[:pool].astype(np.float64) if chosen else relevance[:pool]
        best = int(np.argmax(np.where(left[:pool], value, -np.inf))) if chosen else 0
        chosen.append(best)
        left[best] = False
        np.maximum(nearest, np.matmul(blocks, rows[best]).reshape(-1)[:count], out=nearest)
    return np.array(chosen, dtype=np.int64)
