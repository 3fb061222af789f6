"""Another encoder: a small classifier of the world's sounds, supervised on subject and setting, that knows no images.

It shares nothing with the audio tower: its own spectrogram, a plain convolutional network, a softmax over classes. What
it pools before its classes are the precomputed features that a projector starts from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from bindsearch.world.audio import RATE_HZ, render_waves
from bindsearch.world.scene import names, sample, split_seeds

BANDS, WINDOW, HOP = 48, 512, 256
WIDTHS = (32, 64, 96, 128)
WIDTH = 2 * WIDTHS[-1]
FIRST_SCENE = 700_000
"""Number of the first scene that it learns from, in the training split: no other part of the benchmark uses these."""
_BLOCK = 512


class SoundClassifier(nn.Module):
    """Waves -> features -> classes of subject and of setting, absent ones being classes of their own."""

    def __init__(self) -> None:
        """Draw weights from torch's generator."""
        super().__init__()
        self.register_buffer("bank", torch.from_numpy(triangles()))
        layers: list[nn.Module] = []
        inputs = 1
        for width in WIDTHS:
            layers += [nn.Conv2d(inputs, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
        self.layers = nn.Sequential(*layers)
        self.subject = nn.Linear(WIDTH, len(names("subject")) + 1)
        self.setting = nn.Linear(WIDTH, len(names("setting")) + 1)

    def features(self, waves: Tensor) -> Tensor:
        """(B, T) float32 in [-1, 1] -> (B, WIDTH)."""
        spectrum = torch.stft(waves, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True).abs() ** 2
        levels = torch.log10(self.bank @ spectrum + 1e-8).unsqueeze(1)  # (B, 1, bands, frames)
        levels = (levels - levels.mean(dim=(2, 3), keepdim=True)) / 2
        found = self.layers(levels)
        return torch.cat((found.mean(dim=(2, 3)), found.amax(dim=(2, 3))), dim=1)

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) float32 -> logits of subjects and of settings; the last class is none."""
        found = self.features(waves)
        return self.subject(found), self.setting(found)


def triangles() -> NDArray[np.float32]:
    """Give overlapping triangles, evenly spaced in log2 of frequency from 80 Hz up: (BANDS, WINDOW / 2 + 1)."""
    edges = np.geomspace(80, RATE_HZ / 2 * 0.98, BANDS + 2)
    hz = np.arange(WINDOW // 2 + 1) * RATE_HZ / WINDOW
    rising = (hz[None, :] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hz[None, :]) / (edges[2:] - edges[1:-1])[:, None]
    bank = np.clip(np.minimum(rising, falling), 0, None)
    narrow = bank.sum(axis=1) == 0  # a triangle between two bins of the spectrum takes the nearest one
    bank[narrow, np.abs(hz[None, :] - edges[1:-1][narrow][:, None]).argmin(axis=1)] = 1.0
    return bank.astype(np.float32)


def train_classifier(folder: Path, scenes: int, epochs: int = 6, seed: int = 3) -> SoundClassifier:
    """Train on scenes of its own, or read what an earlier call trained."""
    from safetensors.torch import load_file, save_file

    torch.manual_seed(seed)
    model = SoundClassifier()
    path = folder / f"classifier-{scenes}-{epochs}.safetensors"
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model.eval()
    chosen = sample(split_seeds("train", scenes, FIRST_SCENE), "mixed", 0.24)
    blocks = [chosen.rows(np.arange(at, min(at + _BLOCK, scenes))) for at in range(0, scenes, _BLOCK)]
    waves = torch.from_numpy(np.concatenate([render_waves(block).astype(np.float16) for block in blocks]))
    wanted = [
        torch.from_numpy(np.where(codes < 0, len(names(name)), codes).astype(np.int64))
        for name, codes in (("subject", chosen.subject), ("setting", chosen.setting))
    ]
    steps = epochs * (scenes // 64)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for epoch in range(epochs):
        right = 0
        for rows in torch.randperm(scenes)[: scenes // 64 * 64].reshape(-1, 64):
            answers = model(waves[rows].float())
            loss = sum(F.cross_entropy(found, want[rows]) for found, want in zip(answers, wanted, strict=True))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            right += int((answers[0].argmax(1) == wanted[0][rows]).sum())
        print(f"classifier: epoch {epoch + 1}/{epochs}, subject {right / (scenes // 64 * 64):.3f}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return model.eval()


@torch.no_grad()
def features_of(model: SoundClassifier, waves: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, T) float32 waves -> (n, WIDTH) float32 features."""
    parts = [model.features(torch.from_numpy(waves[at : at + 64])) for at in range(0, len(waves), 64)]
    return torch.cat(parts).numpy()


@torch.no_grad()
def own_accuracy(model: SoundClassifier, waves: NDArray[np.float32], scenes: Any) -> dict[str, float]:
    """Give the classifier's own accuracy of subject and setting on scenes that have both."""
    answers = [model(torch.from_numpy(waves[at : at + 64])) for at in range(0, len(waves), 64)]
    subject, setting = (torch.cat(parts).argmax(1).numpy() for parts in zip(*answers, strict=True))
    return {
        "subject": round(float((subject == scenes.subject).mean()), 4),
        "setting": round(float((setting == scenes.setting).mean()), 4),
    }
