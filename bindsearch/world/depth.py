"""A scene as distances: what a depth camera returns, in metres, with its noise and its gaps."""

from __future__ import annotations

import numpy as np

from bindsearch.world.frames import paint_frames
from bindsearch.world.motion import STILL_S
from bindsearch.world.scene import Scenes, draw, spread
from bindsearch.world.shapes import Array, Canvas, column

CELLS = 64
FAR_M = 60.0
STEP = 1 / 512
"""Quantum of the inverse distance, 1/m: steps grow with the square of the distance, as those of a stereo camera."""


def render_depths(scenes: Scenes, size_px: int = 64) -> Array:
    """Measure the distance of each pixel of each scene, at the time STILL_S.

    Afterimages stand between what is behind them and where the subject was, in inverse distance.

    Args:
        scenes: n scenes.
        size_px: side length.

    Returns:
        (n, size_px, size_px) float32 metres up to FAR_M; 0 where nothing came back (sky, gaps). A row depends on its
        scene and the size alone.

    Raises:
        InputError: size_px is below 8.
    """
    out = np.zeros((len(scenes), size_px, size_px), dtype=np.float32)
    for rows, _, canvas in paint_frames(scenes, size_px, (STILL_S,), ("near",)):
        out[rows] = _measure(canvas, scenes.rows(rows))
    return out


def _measure(canvas: Canvas, scenes: Scenes) -> Array:
    """Turn inverse distances in multiples of the subject's into noisy metres with gaps."""
    seeds, near = scenes.seed, canvas.near
    near /= column(scenes.distance_m)
    tilt = column(spread(seeds, "depth.side", -0.25, 0.25)) * (canvas.x - np.float32(0.5))
    near *= 1 + tilt + column(spread(seeds, "depth.fall", -0.25, 0.25)) * (canvas.y - np.float32(0.5))
    cell = np.minimum((canvas.y[0, :, 0] * CELLS).astype(int), CELLS - 1)
    chance = draw(seeds, "depth.noise", CELLS, CELLS)[:, cell][:, :, cell]
    away = near < np.float32(1 / FAR_M)
    near += column(spread(seeds, "depth.amount", 0.005, 0.045)) * (chance - np.float32(0.5))
    near = np.maximum(np.rint(near / np.float32(STEP)), 1) * np.float32(STEP)
    gaps = draw(seeds, "depth.gaps", CELLS, CELLS)[:, cell][:, :, cell] < column(spread(seeds, "depth.gap", 0.0, 0.05))
    out: Array = np.where(away | gaps, np.float32(0), np.minimum(1 / near, np.float32(FAR_M)))
    return out
