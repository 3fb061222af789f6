"""A scene's subject as points on its surface: the parts it is painted from, inflated to round bodies.

Camera coordinates: x to the right, y downwards, z away from the camera, all in metres; a frame width at 1 m is 1 m.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindsearch.errors import InputError
from bindsearch.world.frames import place_copies
from bindsearch.world.motion import STILL_S, poses
from bindsearch.world.scene import Floats, Scenes, draw, names, table
from bindsearch.world.sprites import EXTENT, part_distance

CANDIDATES = 8192
BLOCK = 8


def render_points(scenes: Scenes, n_points: int = 1024) -> Floats:
    """Strew points over the surface of each scene's subject, at the time STILL_S.

    Args:
        scenes: n scenes. Several subjects share the points.
        n_points: P, at least 1.

    Returns:
        (n, P, 3) float32 metres, x right, y down, z away from the camera; zeros where there is no subject. A row
        depends on its scene and P alone, and projects onto the subject of the scene's picture.

    Raises:
        InputError: n_points is below 1.
    """
    if n_points < 1:
        raise InputError(f"n_points: expected at least 1, got {n_points}.")
    out = np.zeros((len(scenes), n_points, 3), dtype=np.float32)
    for code in np.unique(scenes.subject[scenes.subject >= 0]):
        alike = np.flatnonzero(scenes.subject == code)
        for start in range(0, len(alike), BLOCK):
            rows = alike[start : start + BLOCK]
            some = scenes.rows(rows)
            out[rows] = _put(some, _surface(some, names("subject")[code], n_points))
    return out


def _surface(scenes: Scenes, name: str, n_points: int) -> Floats:
    """Give points (n, P, 3) in the subject's own units: u to the front, v up, w out of the picture's plane."""
    parts = table("subjects")[name]["parts"]
    chances = draw(scenes.seed, f"{name}.parts", len(parts), 5)
    flat = draw(scenes.seed, "points", 2, 1, CANDIDATES) * np.float32(2 * EXTENT) - np.float32(EXTENT)
    thick = np.zeros((len(scenes), CANDIDATES), dtype=np.float32)
    for k, part in enumerate(parts):
        distance = part_distance(part, flat[:, 0], flat[:, 1], chances[:, k])[0][:, 0]
        radius = np.float32(_radius(part))
        inside = np.clip(-distance, 0, radius)
        np.maximum(thick, np.sqrt(inside * (2 * radius - inside)), out=thick)
    out = np.empty((len(scenes), n_points, 3), dtype=np.float32)
    for row, bulge in enumerate(thick):
        within = np.flatnonzero(bulge > 0)
        at = np.arange(n_points)
        chosen = within[at % len(within)]
        side = np.where((at + at // len(within)) % 2, np.float32(1), np.float32(-1))
        out[row] = np.stack([flat[row, 0, 0, chosen], flat[row, 1, 0, chosen], bulge[chosen] * side], axis=1)
    return out


def _radius(part: dict[str, Any]) -> float:
    """Half the thickness of a part where it is thickest, in the subject's units."""
    at, kind = part["at"], part["kind"]
    if kind == "bar":
        return float(max(at[4:6]))
    if kind == "ring":
        return float(at[3])
    if kind in ("ellipse", "box"):
        return float(min(at[2:4]))
    corners = list(zip(at[0::2], at[1::2], strict=True))
    pairs = list(zip(corners, corners[1:] + corners[:1], strict=True))
    area = abs(sum(ax * by - bx * ay for (ax, ay), (bx, by) in pairs)) / 2
    return float(area / sum(math.dist(a, b) for a, b in pairs))


def _put(scenes: Scenes, points: Floats) -> Floats:
    """Turn, size and place the subject's points, (n, P, 3) in its units, as its picture shows it. Overwrites points."""
    pose = poses(scenes, np.array([STILL_S]))
    now = {key: getattr(pose, key)[:, 0].astype(np.float32) for key in ("dx", "dy", "angle", "zoom")}
    which: NDArray[np.intp] = np.arange(points.shape[1])[None, :] % (scenes.count[:, None] + 1)
    copies = [place_copies(scenes, copy, now) for copy in range(3)]
    place = {key: np.choose(which, [copy[key][:, None] for copy in copies]) for key in copies[0]}
    away = (scenes.distance_m / now["zoom"])[:, None]
    a, b = points[:, :, 0] * place["wide"], points[:, :, 1] * place["tall"]
    x = place["x"] - np.float32(0.5) + place["cos"] * a - place["sin"] * b
    y = place["y"] - np.float32(0.5) - (place["sin"] * a + place["cos"] * b) * place["squash"]
    points[:, :, 2] = away + points[:, :, 2] * (scenes.scale * scenes.distance_m)[:, None]
    points[:, :, 0], points[:, :, 1] = x * points[:, :, 2], y * points[:, :, 2]
    return points
