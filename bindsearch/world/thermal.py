"""A scene as temperatures: what a thermal camera reads, in degrees Celsius, with its drift and its noise."""

from __future__ import annotations

import numpy as np

from bindsearch.world.frames import ambient_c, paint_frames
from bindsearch.world.motion import STILL_S
from bindsearch.world.scene import Scenes, draw, spread
from bindsearch.world.shapes import Array, Canvas, column

CELLS = 64
LOWEST_C, HIGHEST_C = -40.0, 120.0


def render_thermals(scenes: Scenes, size_px: int = 64) -> Array:
    """Read the temperature at each pixel of each scene, at the time STILL_S.

    Args:
        scenes: n scenes.
        size_px: side length.

    Returns:
        (n, size_px, size_px) float32 degrees Celsius from LOWEST_C to HIGHEST_C. A row depends on its scene and the
        size alone.

    Raises:
        InputError: size_px is below 8.
    """
    out = np.zeros((len(scenes), size_px, size_px), dtype=np.float32)
    for rows, _, canvas in paint_frames(scenes, size_px, (STILL_S,), ("heat",)):
        out[rows] = _read(canvas, scenes.rows(rows))
    return out


def _read(canvas: Canvas, scenes: Scenes) -> Array:
    """Turn degrees above ambient into a reading: gain and offset drift, a warm side, striped and grainy noise."""
    seeds, heat = scenes.seed, canvas.heat
    heat *= column(spread(seeds, "thermal.gain", 0.85, 1.15))
    heat += column(ambient_c(scenes) + spread(seeds, "thermal.offset", -3.0, 3.0))
    heat += column(spread(seeds, "thermal.side", -5.0, 5.0)) * (canvas.x - np.float32(0.5))
    heat += column(spread(seeds, "thermal.fall", -5.0, 5.0)) * (canvas.y - np.float32(0.5))
    cell = np.minimum((canvas.y[0, :, 0] * CELLS).astype(int), CELLS - 1)
    noise = draw(seeds, "thermal.noise", CELLS, CELLS)[:, cell][:, :, cell] - np.float32(0.5)
    heat += column(spread(seeds, "thermal.grain", 0.8, 4.0)) * noise
    stripes = (draw(seeds, "thermal.stripes", CELLS)[:, cell] - np.float32(0.5))[:, None, :]
    heat += column(spread(seeds, "thermal.stripe", 0.0, 2.0)) * stripes
    return np.clip(heat, np.float32(LOWEST_C), np.float32(HIGHEST_C), out=heat)
