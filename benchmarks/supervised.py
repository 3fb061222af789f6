"""A network of a tower's size with a linear layer, trained from scratch on a few labelled items."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.models.architecture import ArchitectureConfig

SPATIAL = ("image", "video", "depth", "thermal")


@dataclass(frozen=True)
class Schooling:
    """How it is trained.

    Attributes:
        steps: at most; the same for any number of shots.
        batch: items a step, or all where there are fewer.
        learning_rate, weight_decay: of AdamW; the rate warms up over a tenth of the steps and falls by a cosine.
        seconds: limit of one training; where it cuts one off, the result says so.
    """

    steps: int = 200
    batch: int = 48
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    seconds: float = 180.0


def jitter(x: Any, modality: str, rng: np.random.Generator) -> Any:
    """Shift each item a little, change its gain and add noise: (B, ...) float32 -> the same shape."""
    import torch

    axes = (-2, -1) if modality in SPATIAL else (-1,)
    reach = [max(1, x.shape[axis] // (16 if modality in SPATIAL else 6)) for axis in axes]
    moved = [
        torch.roll(one, [int(rng.integers(-far, far + 1)) for far in reach], [axis + one.ndim for axis in axes])
        for one in x
    ]
    gain = torch.from_numpy(rng.uniform(0.9, 1.1, (len(x), *([1] * (x.ndim - 1)))).astype(np.float32))
    noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32)) * 0.05
    return torch.stack(moved) * gain + noise


def train_and_test(
    architecture: ArchitectureConfig,
    modality: str,
    shots: tuple[NDArray[np.floating], NDArray[np.int64]],
    test: tuple[NDArray[np.floating], NDArray[np.int64]],
    schooling: Schooling,
    seed: int,
) -> dict[str, Any]:
    """Train on the shots and count what is right of the test.

    Args:
        architecture: of the space; its tower of that modality is drawn anew from the seed.
        modality: image and video take the vision tower.
        shots: (n, S, ...) prepared clips and (n,) codes. Not modified.
        test: likewise.
        schooling: how.
        seed: of weights, batches and jitter.

    Returns:
        accuracy, steps done, seconds, share right of the shots themselves, and whether the clock cut it off.
    """
    import torch
    from torch.nn import functional as F

    from bindsearch.models.bind import build_tower

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tower = build_tower(architecture, "vision" if modality == "video" or modality == "image" else modality, seed=seed)
    head = torch.nn.Linear(architecture.dim, int(test[1].max()) + 1)
    weights = [*tower.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=schooling.learning_rate, weight_decay=schooling.weight_decay)
    x, y = shots[0].astype(np.float32), torch.from_numpy(shots[1])

    def forward(clips: Any) -> Any:
        return head(tower(clips.unsqueeze(2) if modality == "image" else clips))

    began, done = time.monotonic(), 0
    warm = max(1, schooling.steps // 10)
    for step in range(schooling.steps):
        rate = min(1.0, (step + 1) / warm) * 0.5 * (1 + np.cos(np.pi * step / schooling.steps))
        for group in optimiser.param_groups:
            group["lr"] = schooling.learning_rate * rate
        rows = rng.choice(len(x), min(schooling.batch, len(x)), replace=False)
        clips = x[rows, rng.integers(0, x.shape[1], len(rows))]
        loss = F.cross_entropy(forward(jitter(torch.from_numpy(clips), modality, rng)), y[rows])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        done = step + 1
        if time.monotonic() - began > schooling.seconds:
            break
    tower.eval()
    right = [float(np.mean(_predict(forward, *each) == each[1])) for each in (test, shots)]
    return {
        "accuracy": round(right[0], 5),
        "on the shots": round(right[1], 5),
        "steps": done,
        "cut off": done < schooling.steps,
        "seconds": round(time.monotonic() - began, 1),
    }


def _predict(forward: Any, x: NDArray[np.floating], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Name the best class of each item by the mean of its clips' probabilities."""
    import torch

    del y
    flat = x.reshape(-1, *x.shape[2:])
    with torch.inference_mode():
        parts = [
            torch.softmax(forward(torch.from_numpy(flat[at : at + 128].astype(np.float32))), dim=1)
            for at in range(0, len(flat), 128)
        ]
    shares = torch.cat(parts).numpy().reshape(len(x), x.shape[1], -1).mean(axis=1)
    return shares.argmax(axis=1)
