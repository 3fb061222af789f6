"""Figures on unseen scenes: whether the best of all answers carries the query's subject, its setting, its motion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindsearch.evaluate.metrics import wilson
from bindsearch.world.scene import Codes, Scenes

_SEEN = ("subject", "setting", "motion")
CARRIED: dict[str, tuple[str, ...]] = {
    "image": _SEEN,
    "video": _SEEN,
    "text": _SEEN,
    "german": _SEEN,
    "audio": ("subject", "setting"),
    "depth": _SEEN,
    "thermal": _SEEN,
    "imu": ("motion",),
}
"""What each kind of rows can tell; "german" is text in the second language."""


def top_hits(queries: NDArray[np.float32], rows: NDArray[np.float32], block: int = 1024) -> NDArray[np.int64]:
    """Give each query's best row: (q, d) and (n, d) unit rows -> (q,) int64."""
    best = [np.argmax(queries[at : at + block] @ rows.T, axis=1) for at in range(0, len(queries), block)]
    return np.concatenate(best).astype(np.int64)


def other_hits(rows: NDArray[np.float32], block: int = 1024) -> NDArray[np.int64]:
    """Give each row's best other row: (n, d) unit rows -> (n,) int64."""
    best = []
    for at in range(0, len(rows), block):
        scores = rows[at : at + block] @ rows.T
        scores[np.arange(len(scores)), np.arange(at, at + len(scores))] = -np.inf
        best.append(np.argmax(scores, axis=1))
    return np.concatenate(best).astype(np.int64)


def accuracy(asked: Codes, found: Codes) -> dict[str, float]:
    """Give the share of equal codes with its 95 % interval, see `interval`."""
    return interval(float(np.mean(asked == found)), len(asked))


def interval(share: float, n: int) -> dict[str, float]:
    """Give a share of n with its 95 % interval (`evaluate.metrics.wilson`): value, low, high and n, four digits."""
    figure = wilson(share, n)
    return {"value": round(share, 4), "low": round(figure.low, 4), "high": round(figure.high, 4), "n": n}


def named_shares(asked: Scenes, found: Scenes, hits: NDArray[np.int64]) -> dict[str, Any]:
    """Give the accuracies of subject, of setting and of both at once of the best hits."""
    got = found.rows(hits)
    both = (asked.subject.astype(np.int32) * 64 + asked.setting, got.subject.astype(np.int32) * 64 + got.setting)
    return {
        "subject": accuracy(asked.subject, got.subject),
        "setting": accuracy(asked.setting, got.setting),
        "both": accuracy(both[0].astype(np.int16), both[1].astype(np.int16)),
    }


def pair_figures(
    scenes: Scenes, rows: Mapping[str, NDArray[np.float32]], pairs: Sequence[tuple[str, str]]
) -> dict[str, float]:
    """Give top-1 accuracies of every attribute that both sides carry.

    Args:
        scenes: n scenes.
        rows: kind, a key of CARRIED -> (n, d) unit rows of these scenes.
        pairs: kinds asked with and found among; two equal ones leave a row's own scene out.

    Returns:
        "asked->found attribute" -> share of queries.
    """
    figures: dict[str, float] = {}
    for asked, found in pairs:
        hits = other_hits(rows[asked]) if asked == found else top_hits(rows[asked], rows[found])
        for attribute in CARRIED[asked]:
            if attribute in CARRIED[found]:
                codes = getattr(scenes, attribute)
                figures[f"{asked}->{found} {attribute}"] = round(float(np.mean(codes[hits] == codes)), 4)
    return figures
