"""How a subject moves: one function of time that every moving modality reads, frames and inertial sensor alike.

still     stands
slide     goes from side to side
bounce    hops: free flight, then a springy landing
spin      turns round the axis that points at the camera
shake     trembles, several times a second
approach  comes nearer and goes away
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bindsearch.world.scene import Floats, Scenes, draw, names, spread

STILL_S = 1.0
"""A still picture is the frame at this time."""
CLIP_S = 2.0
IMU_S = 10.0
TAU = 2 * np.pi


@dataclass(frozen=True)
class Poses:
    """Where n subjects are at T times.

    Attributes:
        dx, dy: (n, T) float64 offset from the scene's place in frame widths at the subject's distance, y downwards.
        angle: (n, T) float64 turn in radians, counter-clockwise as the camera sees it.
        zoom: (n, T) float64 size factor; the subject is at distance_m / zoom.
    """

    dx: NDArray[np.float64]
    dy: NDArray[np.float64]
    angle: NDArray[np.float64]
    zoom: NDArray[np.float64]


def poses(scenes: Scenes, times_s: NDArray[np.float64]) -> Poses:
    """Give the pose of each scene's subject at some times.

    Args:
        scenes: n scenes; one without a subject, or standing still, has zeros and zoom 1.
        times_s: (T,) seconds. Not modified.

    Returns:
        Poses of shape (n, T); a row depends on its scene and the time alone, and is twice differentiable in time up to
        the landing of a hop.
    """
    times = np.asarray(times_s, dtype=np.float64)[None, :]
    shape = (len(scenes), times.shape[1])
    dx, dy, angle, zoom = np.zeros(shape), np.zeros(shape), np.zeros(shape), np.ones(shape)
    for code, name in enumerate(names("motion")):
        rows = np.flatnonzero(scenes.motion == code)
        if not len(rows) or name == "still":
            continue
        some = scenes.rows(rows)
        reach, pace = some.reach[:, None].astype(float), some.pace[:, None].astype(float)
        if name == "slide":
            dx[rows] = 0.19 * reach * np.sin(TAU * (0.62 * pace * (times - STILL_S) + _turning(some)))
        elif name == "bounce":
            dy[rows] = -0.26 * reach * _hop(0.95 * pace * (times - STILL_S) + _flight(some))
        elif name == "spin":
            sense = np.where(some.phase < 0.5, -1.0, 1.0)[:, None]
            angle[rows] = sense * TAU * (0.55 * pace * times + draw(some.seed, "spin.start")[:, None])
        elif name == "approach":
            zoom[rows] = np.exp(0.42 * reach * np.sin(TAU * (0.62 * pace * (times - STILL_S) + _turning(some))))
        elif name == "shake":
            for target, size in ((dx, 0.036), (dy, 0.036), (angle, 0.16)):
                target[rows] = reach * size * _tremble(some, times, "dx" if target is dx else str(size))
    return Poses(dx, dy, angle, zoom)


def _turning(scenes: Scenes) -> Floats:
    """Phase (n, 1) at STILL_S: well between the turning points, so that a time exposure shows the way."""
    way = np.where(scenes.phase < 0.5, 0.0, 0.5)
    return (way + spread(scenes.seed, "motion.turn", -0.07, 0.12))[:, None].astype(np.float32)


def _flight(scenes: Scenes) -> Floats:
    """Phase (n, 1) at STILL_S: rising fast, or falling fast."""
    return np.where(
        scenes.phase < 0.5,
        spread(scenes.seed, "motion.up", 0.3, 0.5),
        0.5 + spread(scenes.seed, "motion.down", 0.33, 0.45),
    )[:, None].astype(np.float32)


def _hop(rounds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the height of hops in [0, 1]: a parabola of flight, and a fifth of the round on springy legs."""
    ground = 0.2
    u = rounds - np.floor(rounds)
    flight = (u - ground) / (1 - ground)
    speed = 4 / (1 - ground)
    crouch = -speed * ground / np.pi * np.sin(np.pi * u / ground)
    return np.where(u < ground, crouch, 4 * flight * (1 - flight))


def _tremble(scenes: Scenes, times: NDArray[np.float64], axis: str) -> NDArray[np.float64]:
    """Sum three fast sinusoids to about unit size."""
    seeds = scenes.seed
    hz = spread(seeds, f"shake.hz.{axis}", 4.0, 7.5, 3).astype(float) * scenes.pace[:, None]
    phase = draw(seeds, f"shake.phase.{axis}", 3).astype(float)
    total = np.zeros((len(seeds), times.shape[1]))
    for k in range(3):
        total += np.sin(TAU * (hz[:, k : k + 1] * times + phase[:, k : k + 1]))
    return total * 0.8
