"""Small variations of what a tower sees, so that it does not learn files by heart."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SHIFT_SHARE = 1 / 16
"""Pictures move by up to this share of a side."""


def vary(
    modality: str, x: Tensor, rng: np.random.Generator, batch: int | None = None, rows: slice = slice(None)
) -> Tensor:
    """Vary a batch of inputs, or some rows of one: what happens to a row does not depend on which others are there.

    Args:
        modality: of the inputs; texts and features stay as they are.
        x: (b, ...) as `preprocess` makes a clip. Not modified.
        rng: of the step: the same draws, the same result.
        batch: rows that are drawn for; None: as many as x has.
        rows: which of them x is.

    Returns:
        Of the same shape and dtype.
    """
    count = len(x) if batch is None else batch
    if modality in ("image", "video", "depth", "thermal"):
        gains = torch.from_numpy(rng.uniform(0.9, 1.1, count).astype(np.float32))[rows]
        shifted = _shifted(x, rng, count, rows)
        return shifted * gains.reshape(-1, *[1] * (x.ndim - 1)) if modality in ("image", "video") else shifted
    if modality == "audio":
        return _masked(x, rng, count, rows)
    if modality == "imu":
        gains = torch.from_numpy(rng.uniform(0.9, 1.1, count).astype(np.float32))[rows]
        return x * gains[:, None, None]
    return x


def _shifted(x: Tensor, rng: np.random.Generator, count: int, rows: slice) -> Tensor:
    """Move each picture of (B, ..., H, W) by its own draw; edges are repeated."""
    height, width = x.shape[-2:]
    reach = max(1, round(min(height, width) * SHIFT_SHARE))
    flat = x.reshape(len(x), -1, height, width)
    padded = F.pad(flat, (reach, reach, reach, reach), mode="replicate")
    left, top = rng.integers(0, 2 * reach + 1, (2, count))[:, rows]
    parts = [padded[i, :, t : t + height, a : a + width] for i, (a, t) in enumerate(zip(left, top, strict=True))]
    return torch.stack(parts).reshape(x.shape)


def _masked(x: Tensor, rng: np.random.Generator, count: int, rows: slice) -> Tensor:
    """Change level and tilt of (B, 1, M, T) spectrograms, and blank one band and one span of time.

    Source: Park et al. 2019, "SpecAugment", of the kind that ImageBind trains its audio with.
    """
    bins, frames = x.shape[2:]
    tilt = torch.linspace(-1, 1, bins)[None, None, :, None]
    gains = torch.from_numpy(rng.uniform(-0.12, 0.12, (2, count, 1, 1, 1)).astype(np.float32))[:, rows]
    x = x + gains[0] + gains[1] * tilt
    for axis, size in ((2, bins), (3, frames)):
        start, width = rng.integers(0, size, count)[rows], rng.integers(0, max(1, size // 8), count)[rows]
        index = np.arange(size)
        hidden = torch.from_numpy((index >= start[:, None]) & (index < (start + width)[:, None]))
        x = x.masked_fill(hidden[:, None, :, None] if axis == 2 else hidden[:, None, None, :], 0.0)
    return x
