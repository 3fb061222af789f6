"""A scene as a picture: the setting's ground, clutter, the subject from its parts, then light and noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindsearch.errors import InputError, UnknownNameError
from bindsearch.world.grounds import GROUNDS, TAU, plain, tint
from bindsearch.world.scene import Scenes, draw, names, spread, table
from bindsearch.world.shapes import Array, Canvas, bar, box, column, ellipse, polygon, ring, turn, wave

CHUNK = 24
CLUTTER = 5


def render_images(scenes: Scenes, size_px: int = 64) -> NDArray[np.uint8]:
    """Draw each scene as a square picture.

    Args:
        scenes: n scenes.
        size_px: side length; a large picture scaled down looks like a small one.

    Returns:
        (n, size_px, size_px, 3) uint8, RGB. A row depends on its scene and the size alone.

    Raises:
        InputError: size_px is below 8.
    """
    if size_px < 8:
        raise InputError(f"size_px: expected at least 8, got {size_px}.")
    out = np.zeros((len(scenes), size_px, size_px, 3), dtype=np.uint8)
    chunk = max(1, CHUNK * 4096 // size_px**2)
    for setting in np.unique(scenes.setting):
        for subject in np.unique(scenes.subject[scenes.setting == setting]):
            same = np.flatnonzero((scenes.setting == setting) & (scenes.subject == subject))
            for start in range(0, len(same), chunk):
                which = same[start : start + chunk]
                out[which] = _render_alike(scenes.rows(which), int(subject), int(setting), size_px)
    return out


def _render_alike(scenes: Scenes, subject: int, setting: int, size_px: int) -> NDArray[np.uint8]:
    canvas = Canvas(len(scenes), size_px)
    paint_ground = GROUNDS[names("setting")[setting]] if setting >= 0 else plain
    seeds = scenes.seed
    canvas.move(
        spread(seeds, "view.shift", -0.14, 0.14, 2),
        spread(seeds, "view.zoom", 0.75, 1.2),
        draw(seeds, "view.mirror") - np.float32(0.5),
    )
    paint_ground(canvas, seeds)
    canvas.rest()
    _weather(canvas, scenes)
    _paint_clutter(canvas, scenes)
    if subject >= 0:
        _paint_subject(canvas, scenes, names("subject")[subject])
    _light(canvas, scenes)
    return np.rint(np.clip(canvas.rgb, 0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)


def _weather(canvas: Canvas, scenes: Scenes) -> None:
    """Dye the ground and lay broad soft patches of light and shade on it, so that its mean colours say little."""
    seeds = scenes.seed
    canvas.rgb *= spread(seeds, "ground.dye", 0.62, 1.2, 3)[:, :, None, None]
    canvas.rgb += spread(seeds, "ground.lift", -0.06, 0.2)[:, None, None, None]
    waves = spread(seeds, "ground.waves", -7.0, 7.0, 3, 2)
    phases = spread(seeds, "ground.phases", 0.0, 6.28, 3)
    depth = spread(seeds, "ground.depth", 0.06, 0.22)
    patches = np.zeros((), dtype=np.float32)
    for k in range(3):
        patches = patches + np.sin(
            canvas.x * column(waves[:, k, 0]) + canvas.y * column(waves[:, k, 1]) + column(phases[:, k])
        )
    canvas.shade(1 + column(depth) * patches)


def _paint_clutter(canvas: Canvas, scenes: Scenes) -> None:
    """Strew small things of any colour, fewer on a plain ground, in front of the ground and behind the subject."""
    seeds = scenes.seed
    many = np.where(scenes.setting >= 0, CLUTTER, 1)
    for k in range(CLUTTER):
        here = draw(seeds, f"clutter.{k}") * CLUTTER < many * 0.7
        u, v = canvas.x - column(draw(seeds, f"clutter.x{k}")), canvas.y - column(draw(seeds, f"clutter.y{k}"))
        u, v = turn(u, v, spread(seeds, f"clutter.a{k}", 0, 3.14))
        rx, ry = spread(seeds, f"clutter.rx{k}", 0.02, 0.07), spread(seeds, f"clutter.ry{k}", 0.02, 0.05)
        distance = ellipse(u, v, rx, ry) if k % 2 else box(u, v, rx, ry, 0.01)
        cover = canvas.coverage(distance) * column(here.astype(np.float32))
        canvas.paint(cover, draw(seeds, f"clutter.c{k}", 3))


def _paint_subject(canvas: Canvas, scenes: Scenes, name: str) -> None:
    seeds = scenes.seed
    wide, tall = spread(seeds, "pose.wide", 0.88, 1.14), spread(seeds, "pose.tall", 0.88, 1.14)
    u, v = turn(canvas.x - column(scenes.x), column(scenes.y) - canvas.y, spread(seeds, "pose.tilt", -0.26, 0.26))
    u = u / column(scenes.scale * scenes.facing * wide)
    v = v / column(scenes.scale * tall)
    paints = _palette(scenes)
    for k, part in enumerate(table("subjects")[name]["parts"]):
        distance, du, dv = _part_distance(part, u, v, scenes, f"{name}.{k}")
        cover = canvas.coverage(distance, scenes.scale, part.get("soft", 0.0))
        colour = paints[part["fill"]] if part["fill"] in paints else _fixed(part["fill"], len(scenes))
        tone = np.float32(0.92) + np.float32(0.16) * np.clip(v, -1, 1)
        if part.get("texture", "none") != "none":
            tone = tone * _texture(part["texture"], du, dv, draw(seeds, f"{name}.{k}.texture"))
        canvas.paint(cover, colour[:, :, None, None] * tone[:, None])


def _palette(scenes: Scenes) -> dict[str, Array]:
    seeds = scenes.seed
    rgb = np.array([entry["rgb"] for entry in table("colours").values()], dtype=np.float32)
    body = np.clip(rgb[scenes.colour] + spread(seeds, "body.jitter", -0.06, 0.06, 3), 0.03, 1)
    white = np.float32(1)
    accent = tint(seeds, "accent", tuple(tuple(row) for row in rgb.tolist()), 0.08)
    return {
        "body": body,
        "deep": body * np.float32(0.58) + np.float32(0.02),
        "pale": body + np.float32(0.5) * (white - body),
        "fleece": body + np.float32(0.55) * (white - body),
        "accent": accent,
    }


def _fixed(fill: str, n: int) -> Array:
    levels = [int(fill[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return np.tile(np.array(levels, dtype=np.float32), (n, 1))


def _part_distance(part: dict[str, Any], u: Array, v: Array, scenes: Scenes, stream: str) -> tuple[Array, Array, Array]:
    """Signed distance of a part in the subject's own units, and the part's own coordinates for its texture."""
    seeds, at, kind = scenes.seed, part["at"], part["kind"]
    shift = spread(seeds, stream + ".shift", -0.025, 0.025, 2)
    grow = spread(seeds, stream + ".grow", 0.9, 1.12)
    swing = np.deg2rad(part.get("swing", 0.0)) * spread(seeds, stream + ".swing", -1, 1)
    x, y = (at[0], at[1]) if kind != "polygon" else (float(np.mean(at[0::2])), float(np.mean(at[1::2])))
    du, dv = turn(u - column(x + shift[:, 0]), v - column(y + shift[:, 1]), swing)
    if kind == "ellipse":
        du, dv = turn(du, dv, np.deg2rad(at[4]))
        return ellipse(du, dv, at[2] * grow, at[3] * grow), du, dv
    if kind == "box":
        du, dv = turn(du, dv, np.deg2rad(at[5]))
        return box(du, dv, at[2] * grow, at[3] * grow, at[4]), du, dv
    if kind == "bar":
        return bar(du, dv, (0.0, 0.0, at[2] - x, at[3] - y), at[4] * grow, at[5] * grow), du, dv
    if kind == "ring":
        return ring(du, dv, at[2] * grow, at[3]), du, dv
    if kind == "polygon":
        return (
            polygon(du, dv, [((a - x) * grow, (b - y) * grow) for a, b in zip(at[0::2], at[1::2], strict=True)]),
            du,
            dv,
        )
    raise InputError(f"data/subjects.json: unknown kind of part {kind!r}. Known: ellipse, bar, box, polygon, ring.")


def _texture(kind: str, u: Array, v: Array, phase: Array) -> Array:
    """Give factors on a part's colour, (n, H, W)."""
    p = column(phase)
    if kind not in _TEXTURE_DEPTH:
        raise UnknownNameError("texture in data/subjects.json", kind, _TEXTURE_DEPTH)
    if kind == "stripes":
        mark = (wave(u * 4 + v * np.float32(1.2) + p) - np.float32(0.5)) * 4 + np.float32(0.5)
    elif kind == "bands":
        mark = (wave(u * np.float32(2.6) + np.float32(0.1) * p) - np.float32(0.5)) * 5 + np.float32(0.5)
    elif kind == "spots":
        mark = (np.sin(u * 14 + p * 6) * np.sin(v * 14 + p * 9) - np.float32(0.25)) * 5
    elif kind == "patches":
        mark = (np.sin(u * 6 + p * TAU) + np.sin(v * 8 + u * 3 + p * 9) - np.float32(0.15)) * 5
    else:
        mark = (np.sin(u * 22 + p * 6) * np.sin(v * 22) + np.float32(0.1)) * 3
    factor: Array = 1 - np.float32(_TEXTURE_DEPTH[kind]) * np.clip(mark, 0, 1)
    return factor


_TEXTURE_DEPTH = {"stripes": 0.5, "bands": 0.85, "spots": 0.5, "patches": 0.88, "wool": 0.25}


LIGHTS = {
    "day": ((1.0, 1.0, 1.0), 0.0),
    "dusk": ((1.0, 0.74, 0.62), 0.0),
    "night": ((0.42, 0.46, 0.62), 0.0),
    "fog": ((1.0, 1.0, 1.0), 0.42),
}


def _light(canvas: Canvas, scenes: Scenes) -> None:
    """Apply time of day, a lamp from one side, a colour cast, contrast and grain. Overwrites the canvas."""
    seeds = scenes.seed
    gains = np.array([LIGHTS[name][0] for name in names("light")], dtype=np.float32)[scenes.light]
    mist = np.array([LIGHTS[name][1] for name in names("light")], dtype=np.float32)[scenes.light]
    canvas.rgb += column(mist * spread(seeds, "mist", 0.8, 1.2))[:, None] * (np.float32(0.8) - canvas.rgb)
    cast = gains * spread(seeds, "cast", 0.84, 1.16, 3) * spread(seeds, "gain", 0.72, 1.15)[:, None]
    side = (
        1
        + column(spread(seeds, "side", -0.5, 0.5)) * (canvas.x - np.float32(0.5))
        + column(spread(seeds, "fall", -0.4, 0.4)) * (canvas.y - np.float32(0.5))
    )
    canvas.rgb *= cast[:, :, None, None]
    canvas.shade(side)
    canvas.rgb += column(spread(seeds, "lift", -0.05, 0.08))[:, None]
    cells = 48
    amount = column(spread(seeds, "grain", 0.0, 0.1))
    grain = draw(seeds, "grain.field", cells, cells) - np.float32(0.5)
    row = np.minimum((canvas.y[0, :, 0] * cells).astype(int), cells - 1)
    canvas.rgb += (amount * grain[:, row][:, :, row])[:, None]
