"""Figures on unseen scenes: whether the best of all answers carries the query's subject, its setting, both."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindsearch.world.scene import Codes, Scenes


def top_hits(queries: NDArray[np.float32], rows: NDArray[np.float32], block: int = 1024) -> NDArray[np.int64]:
    """Give each query's best row: (q, d) and (n, d) unit rows -> (q,) int64."""
    best = [np.argmax(queries[at : at + block] @ rows.T, axis=1) for at in range(0, len(queries), block)]
    return np.concatenate(best).astype(np.int64)


def accuracy(asked: Codes, found: Codes) -> dict[str, float]:
    """Give the share of equal codes with its 95 % interval.

    Source: Wilson's score interval.
    """
    n, share = len(asked), float(np.mean(asked == found))
    z = 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return {"value": round(share, 4), "low": round(centre - half, 4), "high": round(centre + half, 4), "n": n}


def named_shares(asked: Scenes, found: Scenes, hits: NDArray[np.int64]) -> dict[str, Any]:
    """Give the accuracies of subject, of setting and of both at once of the best hits."""
    got = found.rows(hits)
    both = (asked.subject.astype(np.int32) * 64 + asked.setting, got.subject.astype(np.int32) * 64 + got.setting)
    return {
        "subject": accuracy(asked.subject, got.subject),
        "setting": accuracy(asked.setting, got.setting),
        "both": accuracy(both[0].astype(np.int16), both[1].astype(np.int16)),
    }
