"""What needs no learning: the nearest neighbour on raw input. And what an embedding keeps beside the attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.shares import accuracy
from bindsearch.world.scene import Scenes, sample, split_seeds

if TYPE_CHECKING:
    from numpy.typing import NDArray

REFERENCE = 5000
SIZE_PX = 64
MELS = {"mels": 64, "frames": 204, "clips": 1}
IMU_BANDS = 48
RAW = {
    "pixels": ("subject", "setting", "motion"),
    "mean log-mel": ("subject", "setting"),
    "depth": ("subject", "setting", "motion"),
    "thermal": ("subject", "setting", "motion"),
    "IMU spectrum": ("motion",),
    "IMU spectrum, 48 bands": ("motion",),
    "IMU amplitudes": ("motion",),
}


def raw_rows(name: str, scenes: Scenes) -> NDArray[np.float32]:
    """Render scenes and lay each out as one row of numbers, (n, F) float32."""
    if name == "pixels":
        from bindsearch.world.image import render_images

        return render_images(scenes, SIZE_PX).reshape(len(scenes), -1).astype(np.float32)
    if name == "mean log-mel":
        from bindsearch.train.pool import audio_rows

        return audio_rows(scenes, MELS)[:, :, :198].mean(axis=2, dtype=np.float32)
    if name == "depth":
        from bindsearch.world.depth import render_depths

        return render_depths(scenes, SIZE_PX).reshape(len(scenes), -1)
    if name == "thermal":
        from bindsearch.world.thermal import render_thermals

        return render_thermals(scenes, SIZE_PX).reshape(len(scenes), -1)
    from bindsearch.world.imu import render_imus

    return imu_spectra(render_imus(scenes), name)


def imu_spectra(signals: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """Lay out recordings (n, 6, T) by frequency, (n, F) float32.

    "IMU spectrum" is the logarithm of the power at every frequency, "IMU spectrum, 48 bands" that of its sums over
    bands of equal width in octaves, "IMU amplitudes" the amplitudes themselves, where the loudest frequencies decide.
    """
    power = np.abs(np.fft.rfft((signals - signals.mean(axis=2, keepdims=True)) * np.hanning(signals.shape[2]))) ** 2
    if name.endswith("amplitudes"):
        return np.sqrt(power).reshape(len(signals), -1).astype(np.float32)
    if name.endswith("bands"):
        edges = np.unique(np.round(np.geomspace(1, power.shape[2] - 1, IMU_BANDS + 1)).astype(int))
        power = np.add.reduceat(power, edges[:-1], axis=2)
    return np.log(power + 1e-6).reshape(len(signals), -1).astype(np.float32)


def measure_neighbours(test: Scenes, reference: int = REFERENCE) -> dict[str, Any]:
    """Name each unseen scene after the nearest of some training scenes, by Euclidean distance on raw input."""
    import torch

    train = sample(split_seeds("train", reference))
    figures: dict[str, Any] = {}
    for name, attributes in RAW.items():
        known, asked = (torch.from_numpy(_in_blocks(name, part)) for part in (train, test))
        near = torch.cdist(asked, known).argmin(1).numpy()
        figures[name] = {
            attribute: accuracy(getattr(test, attribute), getattr(train, attribute)[near]) for attribute in attributes
        }
        print(f"1-NN on {name}: { ({key: row['value'] for key, row in figures[name].items()}) }", flush=True)
    return figures


def _in_blocks(name: str, scenes: Scenes, block: int = 250) -> NDArray[np.float32]:
    parts = [raw_rows(name, scenes.rows(slice(at, at + block))) for at in range(0, len(scenes), block)]
    return np.concatenate(parts)


def measure_position(scenes: Scenes, rows: Mapping[str, NDArray[np.float32]], seed: int = 0) -> dict[str, Any]:
    """Decode where the subject stands from embeddings, by ridge regression.

    Args:
        scenes: n scenes.
        rows: (n, d) unit rows a column of the report. Not modified.
        seed: of the split into five folds.

    Returns:
        By column the share of variance explained (R^2) of x, y and the logarithm of the distance: each fold predicted
        from the other four, the penalty chosen inside them; mean over folds with least and greatest.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.metrics import r2_score
    from sklearn.model_selection import KFold

    targets = {"x": scenes.x, "y": scenes.y, "log distance": np.log(scenes.distance_m)}
    figures: dict[str, Any] = {}
    for view, values in rows.items():
        figures[view] = {}
        for name, target in targets.items():
            scores = []
            for known, asked in KFold(5, shuffle=True, random_state=seed).split(values):
                model = RidgeCV(alphas=np.logspace(-4, 3, 15)).fit(values[known], target[known])
                scores.append(float(r2_score(target[asked], model.predict(values[asked]))))
            spread = {"low": round(min(scores), 4), "high": round(max(scores), 4), "folds": len(scores)}
            figures[view][name] = {"value": round(float(np.mean(scores)), 4), **spread}
    return figures
