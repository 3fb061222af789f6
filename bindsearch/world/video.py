"""A scene as frames: the picture at several times; only what moves, and the grain, differ from frame to frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bindsearch.errors import InputError
from bindsearch.world.frames import paint_frames
from bindsearch.world.image import develop
from bindsearch.world.motion import CLIP_S
from bindsearch.world.scene import Scenes

RATE_FPS = 8
TIMES_S = tuple(number / RATE_FPS for number in range(int(CLIP_S * RATE_FPS)))


def render_videos(scenes: Scenes, size_px: int = 64, times_s: Sequence[float] = TIMES_S) -> NDArray[np.uint8]:
    """Draw frames of each scene.

    Args:
        scenes: n scenes.
        size_px: side length of a frame.
        times_s: T times; by default CLIP_S seconds at RATE_FPS. The frame at STILL_S is the scene's picture.

    Returns:
        (n, T, size_px, size_px, 3) uint8, RGB. A frame depends on its scene, its time and the size alone.

    Raises:
        InputError: size_px is below 8, or no time is given.
    """
    times = tuple(float(time_s) for time_s in times_s)
    if not times:
        raise InputError("times_s: expected at least one time in seconds, got none.")
    out = np.zeros((len(scenes), len(times), size_px, size_px, 3), dtype=np.uint8)
    for rows, number, canvas in paint_frames(scenes, size_px, times, ("rgb",)):
        out[rows, number] = develop(canvas, scenes.rows(rows), times[number])
    return out
