"""A scene as a picture: what the frame camera sees, under the scene's light, with a lens and grain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bindsearch.world.frames import paint_frames
from bindsearch.world.motion import STILL_S
from bindsearch.world.scene import Scenes, draw, names, spread
from bindsearch.world.shapes import Canvas, column

LIGHTS = {
    "day": ((1.0, 1.0, 1.0), 0.0),
    "dusk": ((1.0, 0.74, 0.6), 0.0),
    "night": ((0.48, 0.53, 0.7), 0.0),
    "fog": ((1.0, 1.0, 1.0), 0.36),
}
"""Colour of the light and share of mist."""
GRAIN_CELLS = 48
SHOULDER = 0.72


def render_images(scenes: Scenes, size_px: int = 64) -> NDArray[np.uint8]:
    """Draw each scene as a square picture, at the time STILL_S.

    Args:
        scenes: n scenes.
        size_px: side length; a large picture scaled down looks like a small one.

    Returns:
        (n, size_px, size_px, 3) uint8, RGB. A row depends on its scene and the size alone.

    Raises:
        InputError: size_px is below 8.
    """
    out = np.zeros((len(scenes), size_px, size_px, 3), dtype=np.uint8)
    for rows, _, canvas in paint_frames(scenes, size_px, (STILL_S,), ("rgb",)):
        out[rows] = develop(canvas, scenes.rows(rows), STILL_S)
    return out


def develop(canvas: Canvas, scenes: Scenes, time_s: float) -> NDArray[np.uint8]:
    """Apply time of day, a lamp from one side, a colour cast, contrast and grain: (n, H, W, 3) uint8.

    Args:
        canvas: of the same n scenes, with colours. Overwritten.
        scenes: n scenes.
        time_s: of the frame: its grain is its own.
    """
    seeds, rgb = scenes.seed, canvas.rgb
    gains = np.array([LIGHTS[name][0] for name in names("light")], dtype=np.float32)[scenes.light]
    mist = np.array([LIGHTS[name][1] for name in names("light")], dtype=np.float32)[scenes.light]
    mist = mist * spread(seeds, "mist", 0.8, 1.2)
    cast = gains * spread(seeds, "cast", 0.84, 1.16, 3) * spread(seeds, "gain", 0.78, 1.1)[:, None]
    side = (
        1
        + column(spread(seeds, "side", -0.5, 0.5)) * (canvas.x - np.float32(0.5))
        + column(spread(seeds, "fall", -0.4, 0.4)) * (canvas.y - np.float32(0.5))
    )
    rgb *= ((1 - mist)[:, None] * cast)[:, :, None, None]
    rgb += (np.float32(0.8) * mist[:, None] * cast)[:, :, None, None]
    rgb *= side[:, None]
    amount = column(spread(seeds, "grain", 0.0, 0.1))
    grain = draw(seeds, f"grain.{round(time_s * 1000)}", GRAIN_CELLS, GRAIN_CELLS) - np.float32(0.5)
    cell = np.minimum((canvas.y[0, :, 0] * GRAIN_CELLS).astype(int), GRAIN_CELLS - 1)
    rgb += (column(spread(seeds, "lift", -0.05, 0.08)) + amount * grain[:, cell][:, :, cell])[:, None]
    rgb -= np.float32(0.6) * np.maximum(rgb - np.float32(SHOULDER), 0)
    rgb *= np.float32(255)
    rgb += np.float32(0.5)
    return np.clip(rgb, 0, 255, out=rgb).astype(np.uint8).transpose(0, 2, 3, 1)
