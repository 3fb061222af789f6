"""Pairs for a stage: which scenes meet in a batch, what the towers see of them, which of them are no negatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from bindsearch.world.text import is_true_of, said_codes, write_captions

Rows = NDArray[np.int64]
Generator = np.random.Generator
VARIANTS = 1 << 20
"""Wordings to draw from."""


class BatchDrawer:
    """Draws the rows of a batch from a pool, some of them alike in one attribute.

    Args:
        scenes: of the pool.
        config: shares of alike rows.
        batch: rows to draw.
    """

    def __init__(self, scenes: Scenes, config: StageConfig, batch: int) -> None:
        """Sort the pool by setting and by subject."""
        self.config, self.size, self.batch = config, len(scenes), batch
        self.by_setting = [np.flatnonzero(scenes.setting == code) for code in range(-1, int(scenes.setting.max()) + 1)]
        self.by_subject = [np.flatnonzero(scenes.subject == code) for code in range(-1, int(scenes.subject.max()) + 1)]

    def rows(self, rng: Generator) -> Rows:
        """Draw one batch: rows of a few settings, rows of a few subjects, rows of any kind; none twice."""
        alike = [
            (self.by_setting, 2, round(self.batch * self.config.shared_setting)),
            (self.by_subject, 3, round(self.batch * self.config.shared_subject)),
        ]
        chosen: list[Rows] = []
        for groups, count, wanted in alike:
            picked = np.concatenate([groups[code] for code in rng.choice(len(groups), count, replace=False)])
            if wanted and len(picked):
                chosen.append(rng.choice(picked, min(wanted, len(picked)), replace=False))
        chosen.append(rng.choice(self.size, self.batch, replace=False))
        together = np.concatenate(chosen)
        _, first = np.unique(together, return_index=True)
        return together[np.sort(first)][: self.batch]


def normalise_images(rows: NDArray[np.uint8], numbers: Mapping[str, Any], rng: Generator | None) -> Tensor:
    """Bring stills to what the image tower takes: (B, H, W, 3) uint8 -> (B, 3, 1, H, W); see `normalise_clips`."""
    return normalise_clips(rows[:, None], numbers, rng)


def normalise_clips(rows: NDArray[np.uint8], numbers: Mapping[str, Any], rng: Generator | None) -> Tensor:
    """Bring clips to what the image tower takes.

    Args:
        rows: (B, T, H, W, 3) uint8. Not modified.
        numbers: of the image or video modality: mean and std.
        rng: of the augmentation, the same for all frames of a clip: shifts of up to 4 px, blur or sharpening,
            brightness; None changes nothing.

    Returns:
        (B, 3, T, H, W) float32.
    """
    count, frames, height, width, _ = rows.shape
    x = torch.from_numpy(rows).permute(0, 1, 4, 2, 3).reshape(count, frames * 3, height, width).float() / 255
    if rng is not None:
        x = shift(x, rng, 4)
        blur = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        x = x + _factors(rng, -0.25, 0.5, count) * (blur - x)
        x = (x * _factors(rng, 0.85, 1.15, count)).clamp(0, 1)
    mean, std = (torch.tensor(numbers[key], dtype=torch.float32)[:, None, None] for key in ("mean", "std"))
    return ((x.view(count, frames, 3, height, width) - mean) / std).transpose(1, 2)


def _factors(rng: Generator, low: float, high: float, count: int) -> Tensor:
    return torch.from_numpy(rng.uniform(low, high, (count, 1, 1, 1)).astype(np.float32))


def shift(x: Tensor, rng: Generator, reach: int) -> Tensor:
    """Move each picture of (B, C, H, W) by up to `reach` pixels; its edge is repeated."""
    side = x.shape[-1]
    padded = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    left, top = rng.integers(0, 2 * reach + 1, (2, len(x)))
    parts = [padded[i, :, t : t + side, a : a + side] for i, (a, t) in enumerate(zip(left, top, strict=True))]
    return torch.stack(parts)


def mel_batch(rows: NDArray[np.int8], rng: Generator | None) -> Tensor:
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


def grid_batch(rows: NDArray[np.float16], rng: Generator | None) -> Tensor:
    """Bring kept depth or thermal rows to what their towers take.

    Args:
        rows: (B, 1, H, W) float16 from a pool. Not modified.
        rng: of the augmentation: shifts of up to 4 px, a factor, an offset, noise, one erased rectangle; None changes
            nothing.

    Returns:
        (B, 1, H, W) float32.
    """
    x = torch.from_numpy(rows).float()
    if rng is not None:
        x = shift(x, rng, 4)
        deviation = x.std(dim=(1, 2, 3), keepdim=True)
        noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
        x = x * _factors(rng, 0.93, 1.07, len(x)) + deviation * _factors(rng, -0.15, 0.15, len(x))
        x = x + noise * deviation * _factors(rng, 0.0, 0.04, len(x))
        x = _erase(x, rng)
    return x


def _erase(x: Tensor, rng: Generator) -> Tensor:
    """Set a rectangle of up to a quarter of each side to the picture's mean, in half of the pictures."""
    hidden = torch.from_numpy(rng.random(len(x)) < 0.5)[:, None, None, None]
    for axis in (2, 3):
        side = x.shape[axis]
        start, length = rng.integers(0, side, len(x)), rng.integers(1, side // 4 + 1, len(x))
        index = np.arange(side)
        inside = torch.from_numpy((index >= start[:, None]) & (index < (start + length)[:, None]))
        hidden = hidden & inside[:, None].unsqueeze(5 - axis)
    return torch.where(hidden, x.mean(dim=(1, 2, 3), keepdim=True), x)


def imu_batch(rows: NDArray[np.float16], rng: Generator | None) -> Tensor:
    """Bring kept inertial rows to what the IMU tower takes.

    Args:
        rows: (B, 6, T) float16 from a pool. Not modified.
        rng: of the augmentation: a factor a channel and noise; None changes nothing.

    Returns:
        (B, 6, T) float32.
    """
    x = torch.from_numpy(rows).float()
    if rng is not None:
        count, channels, _ = x.shape
        gains = torch.from_numpy(rng.uniform(0.92, 1.08, (count, channels, 1)).astype(np.float32))
        noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
        x = x * gains + 0.01 * noise
    return x


PREPARE: dict[str, Callable[[NDArray[Any], Generator | None], Tensor]] = {
    "audio": mel_batch,
    "depth": grid_batch,
    "thermal": grid_batch,
    "imu": imu_batch,
}
"""Kept rows of a modality -> what its tower takes."""


class TextRows:
    """Captions of scenes as token ids, a new wording each time.

    Args:
        numbers: of the text modality: context length and id map.
    """

    def __init__(self, numbers: Mapping[str, Any]) -> None:
        """Load the tokenizer once."""
        self.modality = MODALITIES["text"]
        self.config = self.modality.config("default", **numbers)

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Encode texts: (B, L) int64."""
        rows = [self.modality.preprocess(Media("text", text, "character", name=text), self.config) for text in texts]
        return torch.from_numpy(np.concatenate(rows))

    def draw(
        self,
        scenes: Scenes,
        rng: Generator,
        languages: Sequence[str] = ("english",),
        styles: Sequence[str] = ("varied",),
    ) -> tuple[Tensor, NDArray[np.bool_]]:
        """Describe scenes, each in one language and style: ids (B, L), and (B, B): caption j is true of scene i."""
        kinds = [(language, style) for language in languages for style in styles]
        kind_of = rng.permutation(np.arange(len(scenes)) % len(kinds))
        texts: list[str] = [""] * len(scenes)
        said: NDArray[np.bool_] | None = None
        for number, (language, style) in enumerate(kinds):
            rows = np.flatnonzero(kind_of == number)
            captions = write_captions(scenes.rows(rows), language, int(rng.integers(VARIANTS)), style)
            said = np.zeros((len(scenes), captions.said.shape[1]), dtype=bool) if said is None else said
            said[rows] = captions.said
            for row, text in zip(rows, captions.texts, strict=True):
                texts[row] = text
        return self.ids(texts), is_true_of(said_codes(scenes), np.asarray(said))


def alike(scenes: Scenes, attributes: Sequence[str] = ("subject", "setting")) -> NDArray[np.bool_]:
    """Say which scenes agree in some attributes: (B, B) bool."""
    same = np.ones((len(scenes), len(scenes)), dtype=bool)
    for attribute in attributes:
        codes = getattr(scenes, attribute)
        same &= codes[:, None] == codes[None, :]
    return same
