"""A subject drawn once a scene from its parts, in its own units, to be put into frames wherever it stands."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from bindsearch.errors import InputError, UnknownNameError
from bindsearch.world.grounds import TAU, tint
from bindsearch.world.scene import Scenes, draw, names, spread, table
from bindsearch.world.shapes import Array, bar, box, column, ellipse, polygon, ring, turn, wave

EXTENT = 1.16
"""A sprite reaches from -EXTENT to EXTENT in the subject's units, both ways."""
RIM = 0.07
"""Width of the darker rim of every part, in the subject's units: it keeps apart what has one colour."""
SHIFT, GROW = 0.025, (0.9, 1.12)
TEXTURE_DEPTH = {"stripes": 0.5, "bands": 0.85, "spots": 0.5, "patches": 0.88, "wool": 0.25}
GLASS = "#bcd9ea"
"""Panes stand back in the distances."""
FILL_HEAT = {
    "body": 1.0,
    "deep": 0.82,
    "pale": 0.7,
    "fleece": 0.5,
    "accent": 0.6,
    "#15130f": 1.2,
    "#2a2523": 1.15,
    "#f4f1e8": 0.45,
    "#8d949c": 0.3,
    GLASS: -0.25,
    "#cf2020": 1.15,
    "#f08a1d": 0.75,
    "#e7a0a0": 1.15,
}
"""How much of a subject's warmth (or cold) a part shows: glass mirrors the sky, fleece keeps it in."""


def paint_sprites(scenes: Scenes, side_px: int, planes: tuple[str, ...]) -> Array:
    """Draw the subject of each scene by itself, not yet turned, sized or placed.

    Args:
        scenes: n scenes.
        side_px: side length of a sprite.
        planes: which of "rgb" (three channels), "near" and "heat".

    Returns:
        (n, C, side_px, side_px) float32: the channels of the planes in that order, then the coverage in [0, 1]; all are
        multiplied by the coverage. Row 0 is the lowest: v grows with the row. "near" is a relief in [-1, 1], "heat" a
        share of the subject's warmth above ambient. Without a subject all zeros.
    """
    channels = 1 + sum(3 if plane == "rgb" else 1 for plane in planes)
    out = np.zeros((len(scenes), channels, side_px, side_px), dtype=np.float32)
    for code in np.unique(scenes.subject[scenes.subject >= 0]):
        rows = np.flatnonzero(scenes.subject == code)
        for start in range(0, len(rows), 48):
            some = rows[start : start + 48]
            out[some] = _paint_alike(scenes.rows(some), names("subject")[code], side_px, planes)
    return out


def _paint_alike(scenes: Scenes, name: str, side_px: int, planes: tuple[str, ...]) -> Array:
    parts = table("subjects")[name]["parts"]
    channels = 1 + sum(3 if plane == "rgb" else 1 for plane in planes)
    out = np.zeros((len(scenes), channels, side_px, side_px), dtype=np.float32)
    centres = ((np.arange(side_px) + 0.5) * (2 * EXTENT / side_px) - EXTENT).astype(np.float32)
    pixel = 2 * EXTENT / side_px
    chances = draw(scenes.seed, f"{name}.parts", len(parts), 5)
    paints = _palette(scenes) if "rgb" in planes else {}
    for k, part in enumerate(parts):
        left, low, right, high = _bounds(name, k)
        xs = slice(max(0, int((left + EXTENT) / pixel - 1)), min(side_px, int((right + EXTENT) / pixel + 2)))
        ys = slice(max(0, int((low + EXTENT) / pixel - 1)), min(side_px, int((high + EXTENT) / pixel + 2)))
        u, v = centres[None, None, xs], centres[None, ys, None]
        distance, du, dv = part_distance(part, u, v, chances[:, k])
        cover = np.clip(np.float32(0.5) - distance / np.float32(pixel + part.get("soft", 0.0)), 0, 1)
        piece = out[:, :, ys, xs]
        piece *= (1 - cover)[:, None]
        piece[:, -1] += cover
        texture = _texture(part.get("texture", "none"), du, dv, chances[:, k, 4])
        at = 0
        if "rgb" in planes:
            colour = paints[part["fill"]] if part["fill"] in paints else _fixed(part["fill"], len(scenes))
            tone = np.clip(distance * np.float32(-1 / RIM), 0, 1) * np.float32(0.42)
            tone += np.float32(0.6) + np.float32(0.14) * np.clip(v, -1, 1)
            tone *= cover * texture
            piece[:, 0:3] += tone[:, None] * colour[:, :, None, None]
            at = 3
        if "near" in planes:
            bulge = np.clip(distance * np.float32(-1 / 0.22), 0, 1)
            layer = np.float32(-0.7 if part["fill"] == GLASS else 0.45 * (k + 1) / len(parts))
            piece[:, at] += cover * (np.float32(0.55) * bulge * (2 - bulge) + layer)
            at += 1
        if "heat" in planes:
            warmth = np.float32(part.get("heat", FILL_HEAT.get(part["fill"], 0.8)))
            piece[:, at] += cover * warmth * (np.float32(0.6) + np.float32(0.4) * texture)
    return out


@functools.cache
def _bounds(name: str, k: int) -> tuple[float, float, float, float]:
    """Say which rectangle a part never leaves: left, low, right, high in the subject's units."""
    part = table("subjects")[name]["parts"][k]
    at, kind = part["at"], part["kind"]
    if kind in ("polygon", "bar"):
        thick = 0.0 if kind == "polygon" else max(at[4], at[5]) * GROW[1]
        ends = at if kind == "polygon" else at[:4]
        xs, ys = ends[0::2], ends[1::2]
        x, y = (sum(xs) / len(xs), sum(ys) / len(ys)) if kind == "polygon" else (at[0], at[1])
        grow = GROW[1] if kind == "polygon" else 1.0
        corners = [((a - x) * grow, (b - y) * grow) for a, b in zip(xs, ys, strict=True)]
    else:
        x, y = at[0], at[1]
        thick = 0.0
        wide, tall = (at[2] + at[3],) * 2 if kind == "ring" else (at[2], at[3])
        angle = 0.0 if kind == "ring" else math.radians(at[4 if kind == "ellipse" else 5])
        cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
        hx, hy = (wide * cos + tall * sin) * GROW[1], (wide * sin + tall * cos) * GROW[1]
        corners = [(-hx, -hy), (hx, hy)]
    arm = max(math.hypot(a, b) for a, b in corners)
    margin = thick + SHIFT + 0.03 + 1.5 * part.get("soft", 0.0) + min(arm * math.radians(part.get("swing", 0.0)), arm)
    if part.get("swing", 0.0) > 60:
        corners = [(-arm, -arm), (arm, arm)]
    return (
        x + min(a for a, _ in corners) - margin,
        y + min(b for _, b in corners) - margin,
        x + max(a for a, _ in corners) + margin,
        y + max(b for _, b in corners) + margin,
    )


def part_distance(part: dict[str, Any], u: Array, v: Array, chance: Array) -> tuple[Array, Array, Array]:
    """Signed distance of a part, and the part's own coordinates for its texture; chance is (n, 5) of the scene's."""
    at, kind = part["at"], part["kind"]
    shift = (chance[:, :2] * 2 - 1) * np.float32(SHIFT)
    grow = np.float32(GROW[0]) + np.float32(GROW[1] - GROW[0]) * chance[:, 2]
    x, y = (at[0], at[1]) if kind != "polygon" else (float(np.mean(at[0::2])), float(np.mean(at[1::2])))
    du, dv = u - column(x + shift[:, 0]), v - column(y + shift[:, 1])
    angle = math.radians(part.get("swing", 0.0)) * (chance[:, 3] * 2 - 1)
    angle = angle + math.radians(
        {"ellipse": at[4], "box": at[-1]}.get(kind, 0.0) if kind in ("ellipse", "box") else 0.0
    )
    if np.any(angle):
        du, dv = turn(du, dv, angle)
    if kind == "ellipse":
        distance = ellipse(du, dv, at[2] * grow, at[3] * grow)
    elif kind == "box":
        distance = box(du, dv, at[2] * grow, at[3] * grow, at[4])
    elif kind == "bar":
        distance = bar(du, dv, (0.0, 0.0, at[2] - x, at[3] - y), at[4] * grow, at[5] * grow)
    elif kind == "ring":
        distance = ring(du, dv, at[2] * grow, at[3])
    elif kind == "polygon":
        corners = [((a - x) * grow, (b - y) * grow) for a, b in zip(at[0::2], at[1::2], strict=True)]
        distance = polygon(du, dv, corners)
    else:
        raise InputError(f"data/subjects.json: unknown kind of part {kind!r}. Known: ellipse, bar, box, polygon, ring.")
    return distance, du, dv


def _palette(scenes: Scenes) -> dict[str, Array]:
    seeds = scenes.seed
    rgb = np.array([entry["rgb"] for entry in table("colours").values()], dtype=np.float32)
    body = np.clip(rgb[scenes.colour] + spread(seeds, "body.jitter", -0.06, 0.06, 3), 0.03, 1)
    white = np.float32(0.9)
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


def _texture(kind: str, u: Array, v: Array, phase: Array) -> Array:
    """Give factors on a part's colour, (n, H, W), or one factor."""
    if kind == "none":
        return np.ones((1, 1, 1), dtype=np.float32)
    p = column(phase)
    if kind not in TEXTURE_DEPTH:
        raise UnknownNameError("texture in data/subjects.json", kind, TEXTURE_DEPTH)
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
    factor: Array = 1 - np.float32(TEXTURE_DEPTH[kind]) * np.clip(mark, 0, 1)
    return factor
