"""Gauge the world's rendering before binding anything to it, with a small supervised network and a nearest neighbour.

A modality is good to bind when the network names subject and setting (the motion, for imu) after a few minutes and the
nearest neighbour on raw input does not: then the task is learnable and no lookup.

    python tools/gauge_world.py image --n 40000 --epochs 4
    python tools/gauge_world.py imu --n 8000 --epochs 4
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bindsearch.train.pool import MEL_SCALE, audio_rows
from bindsearch.world.image import render_images
from bindsearch.world.imu import SAMPLES, render_imus
from bindsearch.world.scene import Scenes, sample, split_seeds


def raw_input(modality: str, scenes: Scenes) -> np.ndarray:
    """Render scenes into what the gauge's network sees: (n, C, H, W) float32 around 0."""
    if modality == "image":
        pixels = render_images(scenes, 64).transpose(0, 3, 1, 2)
        return (pixels.astype(np.float32) / 255 - 0.5) / 0.27
    return audio_rows(scenes, {"mels": 64, "frames": 204, "clips": 1})[:, None].astype(np.float32) / MEL_SCALE


def nearest_neighbour(
    modality: str, train: np.ndarray, test: np.ndarray, labels: tuple[np.ndarray, np.ndarray]
) -> float:
    """Accuracy of the nearest neighbour in raw pixels, or in the mean log-mel."""
    flat = [
        part.reshape(len(part), -1) if modality == "image" else part.mean(axis=-1).reshape(len(part), -1)
        for part in (train, test)
    ]
    one, two = (torch.from_numpy(np.ascontiguousarray(part)) for part in flat)
    near = torch.cdist(two, one).argmin(dim=1).numpy()
    return float((labels[0][near] == labels[1]).mean())


def log_spectra(signals: np.ndarray, bands: int | None = None) -> np.ndarray:
    """Log power spectra of recordings, all channels in one row.

    Args:
        signals: (n, C, T) float32. Not modified.
        bands: sum the power over so many bands of equal width in octaves; None keeps every frequency.

    Returns:
        (n, C * F) float32.
    """
    rows = []
    for at in range(0, len(signals), 500):
        part = signals[at : at + 500]
        window = np.hanning(part.shape[2])
        power = np.abs(np.fft.rfft((part - part.mean(axis=2, keepdims=True)) * window, axis=2)) ** 2
        if bands:
            edges = np.unique(np.round(np.geomspace(1, power.shape[2] - 1, bands + 1)).astype(int))
            power = np.add.reduceat(power, edges[:-1], axis=2)
        rows.append(np.log(power + 1e-6).reshape(len(part), -1).astype(np.float32))
    return np.concatenate(rows)


def nearest(train: np.ndarray, test: np.ndarray, labels: tuple[np.ndarray, np.ndarray]) -> float:
    """Accuracy of the nearest neighbour among rows (n, F)."""
    near = torch.cdist(torch.from_numpy(test), torch.from_numpy(train)).argmin(dim=1).numpy()
    return float((labels[0][near] == labels[1]).mean())


def squashed(signals: np.ndarray) -> torch.Tensor:
    """Bring recordings to what the small network sees: turning as loud as pushing, large values pressed together."""
    scaled = signals * np.array([1, 1, 1, 8, 8, 8], dtype=np.float32)[:, None]
    return torch.from_numpy(np.sign(scaled) * np.log1p(np.abs(scaled) / 2))


def sequence_net(channels: int, classes: int) -> nn.Module:
    """Build a convolutional network over time, of four stages."""
    layers: list[nn.Module] = []
    for width, size, stride in ((64, 16, 8), (64, 9, 4), (96, 9, 2), (128, 9, 2)):
        layers += [nn.Conv1d(channels, width, size, stride, 4), nn.BatchNorm1d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(channels, classes))


def gauge_imu(n: int, epochs: int, seed: int) -> dict[str, Any]:
    """Run network and nearest neighbour on the motion, n training and 2,000 unseen scenes."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    train, test = sample(split_seeds("train", n)), sample(split_seeds("validation", 2000))
    start = time.time()
    x, y = render_imus(train), render_imus(test)
    result: dict[str, Any] = {"modality": "imu", "n": n, "renders_per_s": round((n + 2000) / (time.time() - start))}
    known, few = (train.motion[:5000], test.motion), x[:5000]
    result["nearest_motion"] = nearest(log_spectra(few), log_spectra(y), known)
    result["nearest_motion_48_bands"] = nearest(log_spectra(few, 48), log_spectra(y, 48), known)
    waves = [part.reshape(len(part), 6 * SAMPLES) for part in (few, y)]
    result["nearest_motion_waveform"] = nearest(waves[0], waves[1], known)
    print(result, flush=True)
    if epochs:
        start = time.time()
        net, seen = sequence_net(6, 6), squashed(x)
        labels, rng, batch = torch.from_numpy(train.motion.astype(np.int64)), np.random.default_rng(seed), 128
        optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
        steps = epochs * (n // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps, pct_start=0.1)
        for _ in range(epochs):
            order = rng.permutation(n)
            for at in range(0, n - batch + 1, batch):
                which = torch.from_numpy(order[at : at + batch])
                loss = F.cross_entropy(net(seen[which]), labels[which])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
        net.eval()
        with torch.no_grad():
            out = torch.cat([net(part) for part in squashed(y).split(250)]).argmax(dim=1).numpy()
        result["net_motion"] = float((out == test.motion).mean())
        result["train_s"] = round(time.time() - start)
    return result


def small_net(channels: int, classes: tuple[int, int]) -> nn.Module:
    """Build a convolutional network of four stages with one output row for both attributes."""
    widths, layers, last = (32, 64, 128, 192), [], channels
    for width in widths:
        layers += [
            nn.Conv2d(last, width, 3, 2, 1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        last = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(last, sum(classes)))


def train_net(net: nn.Module, x: torch.Tensor, labels: torch.Tensor, epochs: int, seed: int) -> None:
    """Train both attributes at once with AdamW and one cosine."""
    batch, rng = 128, np.random.default_rng(seed)
    steps = epochs * (len(x) // batch)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps, pct_start=0.1)
    net.train()
    step = 0
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for at in range(0, len(x) - batch + 1, batch):
            which = torch.from_numpy(order[at : at + batch])
            with torch.autocast("cpu", torch.bfloat16):
                out = net(x[which].contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(out[:, :24].float(), labels[which, 0]) + F.cross_entropy(
                out[:, 24:].float(), labels[which, 1]
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            step += 1
            if step % 100 == 0:
                print(f"step {step}/{steps} loss {loss.item():.3f}", flush=True)


def gauge(modality: str, n: int, epochs: int, seed: int) -> dict[str, Any]:
    """Run network and nearest neighbour on n training and 2,000 unseen scenes."""
    torch.manual_seed(seed)
    torch.set_num_threads(2)
    train, test = sample(split_seeds("train", n)), sample(split_seeds("validation", 2000))
    start = time.time()
    x, y = raw_input(modality, train), raw_input(modality, test)
    rendered_s = time.time() - start
    result: dict[str, Any] = {"modality": modality, "n": n, "renders_per_s": round((n + 2000) / rendered_s)}
    for attribute in ("subject", "setting"):
        known = (getattr(train, attribute)[:5000], getattr(test, attribute))
        result[f"nearest_{attribute}"] = nearest_neighbour(modality, x[:5000], y, known)
    print(result, flush=True)
    if epochs:
        start = time.time()
        net = small_net(x.shape[1], (24, 8))
        labels = torch.from_numpy(np.stack([train.subject, train.setting], 1).astype(np.int64))
        train_net(net, torch.from_numpy(x), labels, epochs, seed)
        net.eval()
        with torch.no_grad():
            out = torch.cat([net(torch.from_numpy(y[at : at + 250])) for at in range(0, 2000, 250)])
        named = out[:, :24].argmax(1).numpy(), out[:, 24:].argmax(1).numpy()
        result["net_subject"] = float((named[0] == test.subject).mean())
        result["net_setting"] = float((named[1] == test.setting).mean())
        result["train_s"] = round(time.time() - start)
        per = [round(float((named[0] == k)[test.subject == k].mean()), 2) for k in range(24)]
        print(
            "per subject",
            per,
            "per setting",
            [round(float((named[1] == k)[test.setting == k].mean()), 2) for k in range(8)],
        )
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modality", choices=("image", "audio", "imu"))
    parser.add_argument("--n", type=int, default=30000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sizes = (arguments.n, arguments.epochs, arguments.seed)
    print(json.dumps(gauge_imu(*sizes) if arguments.modality == "imu" else gauge(arguments.modality, *sizes)))
