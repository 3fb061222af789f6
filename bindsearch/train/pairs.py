"""Pairs for a stage: which scenes meet in a batch, what the towers see of them, which of them are no negatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from bindsearch.registry import MODALITIES
from bindsearch.train.config import StageConfig
from bindsearch.train.pool import MEL_SCALE
from bindsearch.types import Media
from bindsearch.world.scene import Scenes
from bindsearch.world.text import SAID, is_true_of, said_codes, write_captions

Rows = NDArray[np.int64]


class BatchDrawer:
    """Draws the rows of a batch from a pool, some of them alike in one attribute.

    Args:
        scenes: of the pool.
        config: shares of alike rows and the batch size.
    """

    def __init__(self, scenes: Scenes, config: StageConfig) -> None:
        """Sort the pool by setting and by subject."""
        self.config, self.size = config, len(scenes)
        self.by_setting = [np.flatnonzero(scenes.setting == code) for code in range(-1, int(scenes.setting.max()) + 1)]
        self.by_subject = [np.flatnonzero(scenes.subject == code) for code in range(-1, int(scenes.subject.max()) + 1)]

    def rows(self, rng: np.random.Generator) -> Rows:
        """Draw one batch: rows of a few settings, rows of a few subjects, rows of any kind; none twice."""
        alike = [
            (self.by_setting, 2, round(self.config.batch * self.config.shared_setting)),
            (self.by_subject, 3, round(self.config.batch * self.config.shared_subject)),
        ]
        chosen: list[Rows] = []
        for groups, count, wanted in alike:
            picked = np.concatenate([groups[code] for code in rng.choice(len(groups), count, replace=False)])
            if wanted and len(picked):
                chosen.append(rng.choice(picked, min(wanted, len(picked)), replace=False))
        chosen.append(rng.choice(self.size, self.config.batch, replace=False))
        together = np.concatenate(chosen)
        _, first = np.unique(together, return_index=True)
        return together[np.sort(first)][: self.config.batch]


def normalise_images(rows: NDArray[np.uint8], numbers: Mapping[str, Any], rng: np.random.Generator | None) -> Tensor:
    """Bring pictures to what the image tower takes.

    Args:
        rows: (B, H, W, 3) uint8. Not modified.
        numbers: of the image modality: mean and std.
        rng: of the augmentation: shifts of up to 4 px, blur, brightness; None changes nothing.

    Returns:
        (B, 3, 1, H, W) float32.
    """
    x = torch.from_numpy(rows).permute(0, 3, 1, 2).float() / 255
    if rng is not None:
        x = _shift(x, rng, 4)
        blur = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        amount = torch.from_numpy(rng.uniform(-0.25, 0.5, (len(rows), 1, 1, 1)).astype(np.float32))
        x = x + amount * (blur - x)
        x = (x * torch.from_numpy(rng.uniform(0.85, 1.15, (len(rows), 1, 1, 1)).astype(np.float32))).clamp(0, 1)
    mean, std = (torch.tensor(numbers[key], dtype=torch.float32)[:, None, None] for key in ("mean", "std"))
    return ((x - mean) / std).unsqueeze(2)


def _shift(x: Tensor, rng: np.random.Generator, reach: int) -> Tensor:
    side = x.shape[-1]
    padded = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    left, top = rng.integers(0, 2 * reach + 1, (2, len(x)))
    parts = [padded[i, :, t : t + side, a : a + side] for i, (a, t) in enumerate(zip(left, top, strict=True))]
    return torch.stack(parts)


def mel_batch(rows: NDArray[np.int8], rng: np.random.Generator | None) -> Tensor:
    """Bring kept mel rows to what the audio tower takes.

    Args:
        rows: (B, M, T) int8 from a pool. Not modified.
        rng: of the augmentation: loudness, tilt, one masked band and one masked time; None changes nothing.

    Returns:
        (B, 1, M, T) float32.
    """
    x = torch.from_numpy(rows).float() / MEL_SCALE
    if rng is not None:
        count, bins, frames = x.shape
        tilt = torch.linspace(-1, 1, bins)[None, :, None]
        gains = torch.from_numpy(rng.uniform(-0.12, 0.12, (2, count, 1, 1)).astype(np.float32))
        x = x + gains[0] + gains[1] * tilt
        for axis, reach in ((1, bins // 8), (2, frames // 8)):
            start, width = rng.integers(0, x.shape[axis], count), rng.integers(0, reach, count)
            index = np.arange(x.shape[axis])
            hidden = torch.from_numpy((index >= start[:, None]) & (index < (start + width)[:, None]))
            x = x.masked_fill(hidden.unsqueeze(3 - axis), 0.0)
    return x.unsqueeze(1)


class TextRows:
    """Captions of scenes as token ids, a new wording each time.

    Args:
        numbers: of the text modality: context length and id map.
    """

    def __init__(self, numbers: Mapping[str, Any]) -> None:
        """Load the tokenizer once."""
        self.modality = MODALITIES["text"]
        self.config = self.modality.config("default", **numbers)

    def ids(self, texts: tuple[str, ...]) -> Tensor:
        """Encode texts: (B, L) int64."""
        rows = [self.modality.preprocess(Media("text", text, "character", name=text), self.config) for text in texts]
        return torch.from_numpy(np.concatenate(rows))

    def draw(self, scenes: Scenes, variant: int) -> tuple[Tensor, NDArray[np.bool_]]:
        """Describe scenes: ids (B, L) int64, and (B, B) bool: caption j is true of scene i."""
        captions = write_captions(scenes, variant=variant)
        return self.ids(captions.texts), is_true_of(said_codes(scenes), captions.said)


def alike(scenes: Scenes) -> NDArray[np.bool_]:
    """Say which scenes sound alike: (B, B) bool, the same subject in the same setting."""
    said = np.zeros((len(scenes), len(SAID)), dtype=bool)
    said[:, :2] = True
    return is_true_of(said_codes(scenes), said)
