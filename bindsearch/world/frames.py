"""What every frame camera sees: one painting of a scene gives its colours, distances and temperatures.

The ground is painted once for all frames of a scene. The subject is drawn once as a sprite and put into a frame once a
copy and once an exposure: a frame is a time exposure, the subject now over two paler afterimages of where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindsearch.errors import InputError
from bindsearch.world.grounds import GROUNDS, plain
from bindsearch.world.motion import exposure_times, poses
from bindsearch.world.scene import Scenes, draw, names, spread, table
from bindsearch.world.shapes import Array, Canvas, box, column, ellipse, turn
from bindsearch.world.sprites import EXTENT, paint_sprites

BLOCK, CHUNK = 1024, 48
CLUTTER = 5
OPACITIES = (0.45, 0.65, 1.0)
"""Of what a frame shows, oldest first; its times are `exposure_times`."""
SPRITE_SHARE = 0.9
RELIEF = 0.3
VIEWS = {"low": (-0.15, 1.1), "level": (0.0, 1.0), "high": (0.16, 0.84)}
"""Rise of the ground in frame widths, and how tall things stand."""


def paint_frames(
    scenes: Scenes, size_px: int, times_s: Sequence[float], planes: tuple[str, ...]
) -> Iterator[tuple[NDArray[np.intp], int, Canvas]]:
    """Paint the frames of scenes, a few scenes of one setting at a time, without light, lens or sensor.

    Args:
        scenes: n scenes.
        size_px: side length of a frame; a large frame scaled down looks like a small one.
        times_s: T times of frames.
        planes: which of "rgb", "near" and "heat"; the others are not painted.

    Yields:
        Rows of `scenes`, number of the frame, and a canvas of these rows at that time, free to be overwritten. Every
        row and frame comes once; it depends on its scene, the time and the size alone.

    Raises:
        InputError: size_px is below 8.
    """
    if size_px < 8:
        raise InputError(f"size_px: expected at least 8, got {size_px}.")
    share = max(1, size_px // 64) ** 2
    block, chunk = max(1, BLOCK // share), max(1, CHUNK // share)
    for first in range(0, len(scenes), block):
        some = scenes.rows(slice(first, first + block))
        sprites = paint_sprites(some, max(8, round(SPRITE_SHARE * size_px)), planes)
        for setting in np.unique(some.setting):
            same = np.flatnonzero(some.setting == setting)
            for start in range(0, len(same), chunk):
                rows = same[start : start + chunk]
                for number, canvas in enumerate(_paint_alike(some.rows(rows), sprites[rows], size_px, times_s, planes)):
                    yield rows + first, number, canvas


def _paint_alike(
    scenes: Scenes, sprites: Array, size_px: int, times_s: Sequence[float], planes: tuple[str, ...]
) -> Iterator[Canvas]:
    canvas = Canvas(len(scenes), size_px, planes)
    _paint_ground(canvas, scenes)
    _paint_clutter(canvas, scenes)
    gains = _gains(scenes, planes)
    for number, time_s in enumerate(times_s):
        frame = canvas if number == len(times_s) - 1 else canvas.copy()
        _paint_subjects(frame, scenes, sprites, gains, time_s)
        yield frame


def _paint_ground(canvas: Canvas, scenes: Scenes) -> None:
    """Paint the setting; dye it and lay broad soft patches of light on it, so that its mean colours say little."""
    seeds, setting = scenes.seed, int(scenes.setting[0])
    rise = np.array([rise for rise, _ in VIEWS.values()], dtype=np.float32)[scenes.view]
    shift = spread(seeds, "view.shift", -0.14, 0.14, 2) * np.array([1.0, 0.45], dtype=np.float32)
    shift[:, 1] += rise
    canvas.move(shift, spread(seeds, "view.zoom", 0.75, 1.2), draw(seeds, "view.mirror") - np.float32(0.5))
    (GROUNDS[names("setting")[setting]] if setting >= 0 else plain)(canvas, seeds)
    canvas.rest()
    waves = spread(seeds, "ground.waves", -7.0, 7.0, 3, 2)
    phases = spread(seeds, "ground.phases", 0.0, 6.28, 3)
    patches = np.zeros((), dtype=np.float32)
    for k in range(3):
        along, down = canvas.x * column(waves[:, k, 0]) + column(phases[:, k]), canvas.y * column(waves[:, k, 1])
        patches = patches + np.sin(along) * np.cos(down) + np.cos(along) * np.sin(down)
    if canvas.rgb.size:
        canvas.rgb *= spread(seeds, "ground.dye", 0.62, 1.2, 3)[:, :, None, None]
        canvas.rgb += spread(seeds, "ground.lift", -0.06, 0.16)[:, None, None, None]
        canvas.rgb *= (1 + column(spread(seeds, "ground.depth", 0.06, 0.22)) * patches)[:, None]
    if canvas.near.size:
        canvas.near *= column(np.exp2(spread(seeds, "ground.near", -0.6, 0.05)))
    if canvas.heat.size:
        canvas.heat *= np.where(canvas.heat > 0, column(_sun(scenes)), column(spread(seeds, "ground.cold", 0.7, 1.2)))
        canvas.heat += column(spread(seeds, "ground.warm", 0.3, 1.6)) * patches


def _paint_clutter(canvas: Canvas, scenes: Scenes) -> None:
    """Strew small things of any colour, fewer on a plain ground, in front of the ground and behind the subject."""
    seeds, n = scenes.seed, len(scenes)
    size = round(1 / float(canvas.pixel))
    many = np.where(scenes.setting >= 0, CLUTTER, 1)
    chance = draw(seeds, "clutter", CLUTTER, 11)
    side = min(size, int(np.ceil(0.18 * size)) + 2)
    row, step = np.arange(n)[:, None, None], np.arange(side)
    for k in range(CLUTTER):
        here, x, y, a, rx, ry, near, heat = (chance[:, k, i] for i in range(8))
        left = np.clip((x * size - side / 2).astype(int), 0, size - side)[:, None, None] + step[None, None, :]
        top = np.clip((y * size - side / 2).astype(int), 0, size - side)[:, None, None] + step[None, :, None]
        u, v = turn(
            (left + np.float32(0.5)).astype(np.float32) * canvas.pixel - column(x),
            (top + np.float32(0.5)).astype(np.float32) * canvas.pixel - column(y),
            a * np.float32(np.pi),
        )
        rx, ry = np.float32(0.02) + np.float32(0.05) * rx, np.float32(0.02) + np.float32(0.03) * ry
        cover = canvas.coverage(ellipse(u, v, rx, ry) if k % 2 else box(u, v, rx, ry, 0.01))
        cover *= column((here * CLUTTER < many * 0.7).astype(np.float32))
        if canvas.rgb.size:
            old = canvas.rgb[row, :, top, left]
            canvas.rgb[row, :, top, left] = old + cover[..., None] * (chance[:, k, None, None, 8:11] - old)
        if canvas.near.size:
            away = canvas.near[row, top, left]
            level = column(np.float32(0.4) + np.float32(0.8) * near)
            canvas.near[row, top, left] = away + cover * (np.maximum(away, level) - away)
        if canvas.heat.size:
            warm = canvas.heat[row, top, left]
            canvas.heat[row, top, left] = warm + cover * (column(np.float32(-8) + np.float32(22) * heat) - warm)


def _gains(scenes: Scenes, planes: tuple[str, ...]) -> dict[str, Array]:
    """Give (n, 2) by plane: what a subject has all over, and what a sprite's channel adds to it."""
    ones = np.ones(len(scenes), dtype=np.float32)
    gains: dict[str, Array] = {}
    if "near" in planes:
        gains["near"] = np.stack([ones, ones * np.float32(RELIEF)], axis=1)
    if "heat" in planes:
        gains["heat"] = np.stack([ground_heat(scenes), subject_heat(scenes)], axis=1)
    return gains


def ambient_c(scenes: Scenes) -> Array:
    """Give each scene's air temperature in degrees Celsius, (n,)."""
    table_c = np.array([entry["ambient_c"] for entry in table("settings").values()] + [20.0], dtype=np.float32)
    return table_c[scenes.setting] + spread(scenes.seed, "ambient", -6.0, 6.0)


def _sun(scenes: Scenes) -> Array:
    """Give how strongly the sun has warmed the ground, (n,)."""
    by_light = np.array([1.0, 0.8, 0.5, 0.65], dtype=np.float32)[scenes.light]
    out: Array = by_light * spread(scenes.seed, "ground.sun", 0.7, 1.15)
    return out


def ground_heat(scenes: Scenes) -> Array:
    """Give how much warmer than the air the ground round each subject is, in degrees, (n,)."""
    own = np.array([entry["ground_c"] for entry in table("settings").values()] + [1.0], dtype=np.float32)
    return own[scenes.setting] * _sun(scenes)


def subject_heat(scenes: Scenes) -> Array:
    """Give how much each subject is warmer than the ground round it, in degrees, (n,).

    What is as warm as the ground has stood in the sun or in the shade: no subject comes nearer to it than 10 degrees.
    """
    seeds = scenes.seed
    own = np.array([entry["heat_c"] for entry in table("subjects").values()] + [20.0], dtype=np.float32)[scenes.subject]
    above = own + spread(seeds, "heat", -4.0, 4.0) - ambient_c(scenes) - ground_heat(scenes)
    side = np.where(draw(seeds, "heat.sun") < 0.6, np.float32(1), np.float32(-1))
    side = np.where(np.abs(above) < 4, side, np.where(above < 0, np.float32(-1), np.float32(1)))
    out: Array = np.where(np.abs(above) < 13, side * spread(seeds, "heat.least", 10.0, 16.0), above)
    return out.astype(np.float32)


def _paint_subjects(canvas: Canvas, scenes: Scenes, sprites: Array, gains: dict[str, Array], time_s: float) -> None:
    """Put every copy of every exposure in, oldest exposure first."""
    size = round(1 / float(canvas.pixel))
    pose = poses(scenes, exposure_times(scenes, time_s))
    placed = []
    still = scenes.motion == names("motion").index("still")
    for e, opacity in enumerate(OPACITIES):
        for copy in range(3):
            shown = (scenes.subject >= 0) & (scenes.count >= copy)
            rows = np.flatnonzero(shown & ~still) if e < len(OPACITIES) - 1 else np.flatnonzero(shown)
            now = {key: getattr(pose, key)[rows, e].astype(np.float32) for key in ("dx", "dy", "angle", "zoom")}
            placed.append(
                (rows, np.full(len(rows), opacity, dtype=np.float32), place_copies(scenes.rows(rows), copy, now))
            )
    rows = np.concatenate([row for row, _, _ in placed])
    opacities = np.concatenate([opacity for _, opacity, _ in placed])
    where = {key: np.concatenate([place[key] for _, _, place in placed]) for key in placed[0][2]} if placed else {}
    sides = np.minimum(size, np.ceil((where["half"] * 2 * size + 2) / 8).astype(int) * 8)
    pieces: list[Any] = [None] * len(rows)
    corners = np.zeros((len(rows), 2), dtype=int)
    for width in np.unique(sides):
        which = np.flatnonzero(sides == width)
        spot = {key: values[which] for key, values in where.items()}
        some, corners[which] = _warp(sprites[rows[which]], spot, int(width), size)
        for at, piece in zip(which.tolist(), some, strict=True):
            pieces[at] = piece
    for at, row in enumerate(rows.tolist()):
        left, top = corners[at].tolist()
        spot_y, spot_x = slice(top, top + pieces[at].shape[-1]), slice(left, left + pieces[at].shape[-1])
        gain = {plane: values[row] for plane, values in gains.items()}
        _lay(canvas, row, (spot_y, spot_x), pieces[at] * opacities[at], where["zoom"][at], gain)


def _lay(canvas: Canvas, row: int, spot: tuple[slice, slice], piece: Array, zoom: Any, gain: dict[str, Array]) -> None:
    """Blend one warped sprite into one frame: (C, side, side), channels as in `paint_sprites`."""
    keep = 1 - piece[-1]
    at = 0
    if canvas.rgb.size:
        view = canvas.rgb[(row, slice(None), *spot)]
        view *= keep
        view += piece[:3]
        at = 3
    if canvas.near.size:
        view = canvas.near[(row, *spot)]
        view *= keep
        view += (gain["near"][0] * piece[-1] + gain["near"][1] * piece[at]) * zoom
        at += 1
    if canvas.heat.size:
        view = canvas.heat[(row, *spot)]
        view *= keep
        view += gain["heat"][0] * piece[-1] + gain["heat"][1] * piece[at]


def place_copies(scenes: Scenes, copy: int, now: dict[str, Array]) -> dict[str, Array]:
    """Say where a copy of each subject is: centre, size, turn, and half the side of a square that holds it."""
    seeds, count = scenes.seed, scenes.count.astype(np.float32)
    squash = np.array([tall for _, tall in VIEWS.values()], dtype=np.float32)[scenes.view]
    wide, tall = spread(seeds, "pose.wide", 0.88, 1.14), spread(seeds, "pose.tall", 0.88, 1.14)
    own = draw(seeds, f"copy.{copy}", 3) * 2 - 1
    several = np.where(count > 0, np.float32(1), np.float32(0))
    angle = spread(seeds, "pose.tilt", -0.22, 0.22) + now["angle"] + own[:, 2] * np.float32(0.1) * several
    scale = scenes.scale * now["zoom"] * (1 + np.float32(0.06) * own[:, 0] * several)
    gap = scenes.scale * np.array([0.0, 1.7, 1.5], dtype=np.float32)[scenes.count]
    cos, sin = np.cos(angle), np.sin(angle)
    hx = np.abs(cos) * wide + np.abs(sin) * tall
    hy = (np.abs(sin) * wide + np.abs(cos) * tall) * squash
    return {
        "x": scenes.x + now["dx"] + (copy - count / 2) * gap,
        "y": scenes.y + now["dy"] + np.float32(0.05) * own[:, 1] * several,
        "cos": cos,
        "sin": sin,
        "wide": scale * wide * scenes.facing,
        "tall": scale * tall,
        "squash": squash,
        "zoom": now["zoom"],
        "half": np.maximum(hx, hy) * scale * np.float32(EXTENT),
    }


def _warp(sprites: Array, spot: dict[str, Array], side: int, size: int) -> tuple[Array, NDArray[np.intp]]:
    """Bend (m, C, S, S) sprites to where they are: (m, C, side, side) pieces and their corners (m, 2), left first."""
    import torch

    corners = np.stack([spot["x"], spot["y"]], axis=1) * size - side / 2
    corners = np.clip(np.rint(corners).astype(int), 0, size - side)
    step = np.arange(side, dtype=np.float32) + np.float32(0.5)
    dx = (corners[:, :1] + step) / np.float32(size) - spot["x"][:, None]
    dy = (spot["y"][:, None] - (corners[:, 1:] + step) / np.float32(size)) / spot["squash"][:, None]
    cos, sin = spot["cos"][:, None], spot["sin"][:, None]
    wide, tall = spot["wide"][:, None] * np.float32(EXTENT), spot["tall"][:, None] * np.float32(EXTENT)
    grid = np.empty((len(sprites), side, side, 2), dtype=np.float32)
    grid[..., 0] = (cos / wide * dx)[:, None, :] + (sin / wide * dy)[:, :, None]
    grid[..., 1] = (cos / tall * dy)[:, :, None] - (sin / tall * dx)[:, None, :]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            bent = torch.nn.functional.grid_sample(
                torch.from_numpy(sprites), torch.from_numpy(grid), mode="bilinear", align_corners=False
            )
    finally:
        torch.set_num_threads(threads)
    return bent.numpy(), corners.astype(np.intp)
