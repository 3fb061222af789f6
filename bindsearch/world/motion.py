"""How a subject moves: one function of time that every moving modality reads, frames and inertial sensor alike.

still     stands
slide     goes from side to side
bounce    hops: free flight, then a springy landing
spin      turns round the axis that points at the camera
shake     trembles, several times a second
approach  comes nearer and goes away

A still shows motion by what its time exposure holds, so that a moment is chosen in which it can: between turning
points; going away rather than coming nearer, which would hide the smaller self behind the larger one (docs/adr/0161).
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
AGES_S = (0.32, 0.16, 0.0)
"""How long ago a time exposure dwelt on what it shows, oldest first; a tremble's see `exposure_times`."""
DWELL_S = tuple(number / 64 for number in range(1, 21))
"""Ages among which the turning points of a tremble are looked for."""


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
        times_s: (T,) seconds, or (n, T): a scene's own. Not modified.

    Returns:
        Poses of shape (n, T); a row depends on its scene and the time alone, and is twice differentiable in time up to
        the landing of a hop.
    """
    asked = np.asarray(times_s, dtype=np.float64)
    every = np.broadcast_to(asked, (len(scenes), asked.shape[-1]))
    shape = every.shape
    dx, dy, angle, zoom = np.zeros(shape), np.zeros(shape), np.zeros(shape), np.ones(shape)
    for code, name in enumerate(names("motion")):
        rows = np.flatnonzero(scenes.motion == code)
        if not len(rows) or name == "still":
            continue
        some, times = scenes.rows(rows), every[rows]
        reach, pace = some.reach[:, None].astype(float), some.pace[:, None].astype(float)
        if name == "slide":
            dx[rows] = 0.19 * reach * np.sin(TAU * (0.62 * pace * (times - STILL_S) + _turning(some)))
        elif name == "bounce":
            dy[rows] = -0.26 * reach * _hop(0.95 * pace * (times - STILL_S) + _flight(some))
        elif name == "spin":
            sense = np.where(some.phase < 0.5, -1.0, 1.0)[:, None]
            angle[rows] = sense * TAU * (0.8 * pace * times + draw(some.seed, "spin.start")[:, None])
        elif name == "approach":
            zoom[rows] = np.exp(0.42 * reach * np.sin(TAU * (0.62 * pace * (times - STILL_S) + _leaving(some))))
        elif name == "shake":
            for target, axis, size in ((dx, "dx", 0.07), (dy, "dy", 0.07), (angle, "angle", 0.28)):
                target[rows] = reach * size * _tremble(some, times, axis)
    return Poses(dx, dy, angle, zoom)


def exposure_times(scenes: Scenes, time_s: float) -> NDArray[np.float64]:
    """Say which moments a time exposure shows.

    Args:
        scenes: n scenes.
        time_s: when the exposure ends, in seconds.

    Returns:
        (n, 3) seconds, the last one time_s itself: AGES_S before it, and of what trembles the last turning points of
        its way from side to side, where it dwells longest.
    """
    times = np.broadcast_to(time_s - np.array(AGES_S), (len(scenes), len(AGES_S))).copy()
    rows = np.flatnonzero(scenes.motion == names("motion").index("shake"))
    if len(rows):
        some, before = scenes.rows(rows), time_s - np.array(DWELL_S)
        away = _tremble(some, np.broadcast_to(before, (len(rows), len(before))), "dx")
        times[rows, 0] = before[away.argmin(axis=1)]
        times[rows, 1] = before[away.argmax(axis=1)]
    return times


def _turning(scenes: Scenes) -> Floats:
    """Phase (n, 1) at STILL_S: well between the turning points, so that a time exposure shows the way."""
    way = np.where(scenes.phase < 0.5, 0.0, 0.5)
    return (way + spread(scenes.seed, "motion.turn", -0.07, 0.12))[:, None].astype(np.float32)


def _leaving(scenes: Scenes) -> Floats:
    """Phase (n, 1) at STILL_S: going away, well between the turning points."""
    return (0.5 + spread(scenes.seed, "motion.turn", -0.07, 0.12))[:, None].astype(np.float32)


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
    """Sum three fast sinusoids to about unit size; at STILL_S each is on its way through the middle."""
    seeds = scenes.seed
    hz = spread(seeds, f"shake.hz.{axis}", 4.0, 7.5, 3).astype(float) * scenes.pace[:, None]
    way = np.where(draw(seeds, f"shake.way.{axis}", 3) < 0.5, 0.0, 0.5)
    phase = way + spread(seeds, f"shake.phase.{axis}", -0.06, 0.06, 3).astype(float)
    total = np.zeros((len(seeds), times.shape[1]))
    for k in range(3):
        total += np.sin(TAU * (hz[:, k : k + 1] * (times - STILL_S) + phase[:, k : k + 1]))
    return total * 0.8
