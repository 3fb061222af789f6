"""The eight settings: structure tells them apart, in colour, distance and heat alike; their colours overlap on purpose.

Inverse distances are multiples of the subject's own (1 is beside the subject, 0 the sky); heat is in degrees Celsius
above the setting's ambient temperature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bindsearch.world.scene import Seeds, draw, spread
from bindsearch.world.shapes import Array, Canvas, bar, box, column, dots, ellipse, wave

TAU = np.float32(2 * np.pi)
SKIES = (
    (0.45, 0.68, 0.95),
    (0.75, 0.8, 0.86),
    (0.95, 0.7, 0.55),
    (0.35, 0.5, 0.75),
    (0.8, 0.75, 0.9),
    (0.6, 0.82, 0.8),
)
EARTHS = (
    (0.84, 0.74, 0.5),
    (0.55, 0.5, 0.45),
    (0.9, 0.86, 0.78),
    (0.45, 0.55, 0.35),
    (0.7, 0.52, 0.42),
    (0.62, 0.66, 0.72),
)

FLOWERS = ((0.95, 0.3, 0.35), (0.98, 0.9, 0.3), (0.92, 0.92, 0.95), (0.6, 0.35, 0.8))


def tint(seeds: Seeds, name: str, choices: tuple[tuple[float, float, float], ...], jitter: float = 0.12) -> Array:
    """Choose a colour a seed and jitter it: (n, 3) float32."""
    code = np.floor(draw(seeds, name) * len(choices)).astype(int)
    base = np.asarray(choices, dtype=np.float32)[code]
    out: Array = np.clip(base + spread(seeds, name + ".jitter", -jitter, jitter, 3), 0.02, 1.0)
    return out


def sky(canvas: Canvas, seeds: Seeds) -> None:
    """Paint a sky from one colour above to another below, over the whole picture."""
    top, bottom = tint(seeds, "sky.top", SKIES), tint(seeds, "sky.bottom", SKIES)
    colour = top[:, :, None, None] + canvas.y[:, None] * (bottom - top)[:, :, None, None]
    canvas.fill(colour, 0.0, column(spread(seeds, "sky.heat", -26.0, -14.0)) * (np.float32(1.3) - canvas.y))


def plane(canvas: Canvas, horizon: Any, steep: Any = 1.9) -> Array:
    """Inverse distance of level ground below a horizon: it grows evenly downwards, (n, H, 1) or (n, H, W)."""
    out: Array = np.clip(below(canvas, horizon) * np.float32(-1) * column(steep), 0.03, 2.5)
    return out


def below(canvas: Canvas, height: Any) -> Array:
    """Signed distance of everything below a height: number, (n,) or (n, 1, W)."""
    return (column(height) if np.ndim(height) < 3 else height) - canvas.y


def ripple(canvas: Canvas, seeds: Seeds, name: str, periods: tuple[float, float], depth: float) -> Array:
    """Give a wavy profile over x, (n, 1, W), within ±depth."""
    a, b = spread(seeds, name + ".a", *periods), spread(seeds, name + ".b", *periods)
    p = draw(seeds, name + ".p", 2)
    out: Array = np.float32(depth) * (
        np.float32(0.65) * np.sin(TAU * (canvas.x * column(a) + column(p[:, 0])))
        + np.float32(0.35) * np.sin(TAU * (canvas.x * column(2.3 * b) + column(p[:, 1])))
    )
    return out


def beach(canvas: Canvas, seeds: Seeds) -> None:
    """Sea with crests, a foaming shore, dotted sand and a parasol."""
    sky(canvas, seeds)
    horizon = spread(seeds, "beach.h", 0.26, 0.46)
    shore = column(horizon + spread(seeds, "beach.shore", 0.16, 0.3)) + ripple(
        canvas, seeds, "beach.edge", (0.5, 1.3), 0.03
    )
    sea = tint(seeds, "beach.sea", ((0.12, 0.42, 0.6), (0.2, 0.6, 0.62), (0.35, 0.45, 0.52), (0.1, 0.25, 0.4)))
    flat = plane(canvas, horizon)
    canvas.paint(canvas.coverage(below(canvas, horizon)), sea, flat, -7.0)
    swell = np.sin(TAU * (canvas.x * column(spread(seeds, "beach.f", 1.5, 3.5)) + column(draw(seeds, "beach.p"))))
    crest = wave(canvas.y * column(spread(seeds, "beach.n", 13.0, 18.0)) + np.float32(0.22) * swell)
    foam = tint(seeds, "beach.foam", ((0.95, 0.97, 0.98),), 0.05)
    inside = canvas.coverage(below(canvas, horizon))
    canvas.paint(
        np.clip((crest - np.float32(0.72)) * 6, 0, 1) * inside * np.float32(0.85),
        foam,
        flat * 2 + np.float32(0.12),
        -4.0,
    )
    sand = tint(seeds, "beach.sand", EARTHS)
    canvas.paint(canvas.coverage(below(canvas, shore - np.float32(0.035))), foam, flat * np.float32(1.3), -3.0)
    ground = canvas.coverage(below(canvas, shore))
    canvas.paint(ground, sand, flat, 11.0)
    specks = canvas.coverage(dots(canvas.x, canvas.y, 15.0, 0.16, draw(seeds, "beach.dots"), 0.6))
    canvas.paint(specks * ground, sand * np.float32(0.62), flat * np.float32(1.08), 14.0)
    px, py = column(spread(seeds, "beach.px", 0.08, 0.92)), column(spread(seeds, "beach.py", 0.5, 0.64))
    u, v = canvas.x - px, canvas.y - py
    canvas.paint(
        canvas.coverage(bar(u, v, (0.0, 0.0, 0.02, 0.3), 0.009, 0.009)),
        tint(seeds, "beach.pole", ((0.4, 0.3, 0.2),)),
        0.7,
        4.0,
    )
    canopy = np.maximum(ellipse(u, v, 0.17, 0.14), v)
    gores = np.floor(u * np.float32(17.0)) % 2
    one, two = tint(seeds, "beach.one", SKIES, 0.3), tint(seeds, "beach.two", EARTHS, 0.3)
    colour = one[:, :, None, None] + gores[:, None] * (two - one)[:, :, None, None]
    canvas.paint(canvas.coverage(canopy), colour, np.float32(0.72) - v, 9.0 + 5.0 * gores)


def forest(canvas: Canvas, seeds: Seeds) -> None:
    """Trunks from top to bottom under a leafy roof, undergrowth below."""
    sky(canvas, seeds)
    greens = ((0.2, 0.42, 0.18), (0.45, 0.5, 0.2), (0.6, 0.42, 0.15), (0.15, 0.3, 0.28), (0.5, 0.6, 0.5))
    back = tint(seeds, "forest.back", greens)
    canvas.paint(np.full((1, 1, 1), 0.55, dtype=np.float32), back, 0.22, -4.0)
    floor = spread(seeds, "forest.floor", 0.68, 0.84)
    level = plane(canvas, floor - 0.12, 2.4)
    canvas.paint(canvas.coverage(below(canvas, floor)), tint(seeds, "forest.ground", EARTHS + greens), level, -1.0)
    wood = tint(seeds, "forest.wood", ((0.3, 0.2, 0.12), (0.5, 0.42, 0.35), (0.2, 0.18, 0.16), (0.75, 0.72, 0.68)))
    where, widths = draw(seeds, "forest.x", 8), spread(seeds, "forest.w", 0.014, 0.045, 8)
    feet, lean = spread(seeds, "forest.y", -0.02, 0.14, 8), spread(seeds, "forest.lean", -0.05, 0.05, 8)
    for k in range(8):
        x = (k + where[:, k]) / 8
        stem = bar(canvas.x, canvas.y, (x + lean[:, k], -0.1, x, floor + feet[:, k]), widths[:, k] * 0.8, widths[:, k])
        shade, heat = spread(seeds, f"forest.s{k}", 0.6, 1.1)[:, None], spread(seeds, f"forest.c{k}", 2.0, 6.0)
        canvas.paint(canvas.coverage(stem), wood * shade, 0.36 + 2.6 * np.maximum(feet[:, k], 0), heat)
    roof = (
        canvas.y
        - column(spread(seeds, "forest.roof", 0.12, 0.26))
        + ripple(canvas, seeds, "forest.r", (2.0, 4.0), 0.06)
    )
    leaves = dots(canvas.x, canvas.y, 9.0, 0.45, draw(seeds, "forest.leaf"))
    canvas.paint(
        canvas.coverage(np.maximum(leaves, roof - np.float32(0.12))),
        tint(seeds, "forest.l2", greens) * np.float32(0.8),
        0.75,
        -2.5,
    )
    canvas.paint(canvas.coverage(roof), tint(seeds, "forest.l1", greens), 0.6, -3.5)
    bush = below(canvas, spread(seeds, "forest.bush", 0.9, 0.96)) * np.float32(-1)
    tufts = wave(canvas.x * column(spread(seeds, "forest.t", 9.0, 14.0)) + column(draw(seeds, "forest.tp")))
    canvas.paint(canvas.coverage(-bush - tufts * np.float32(0.09)), tint(seeds, "forest.l3", greens), 1.5, -2.0)


def city(canvas: Canvas, seeds: Seeds) -> None:
    """Paint a row of houses with lit windows, a kerb and a road with a dashed line."""
    sky(canvas, seeds)
    street = spread(seeds, "city.road", 0.72, 0.84)
    heights = draw(seeds, "city.h", 6)
    walls = ((0.5, 0.45, 0.42), (0.35, 0.38, 0.45), (0.7, 0.6, 0.5), (0.6, 0.35, 0.3), (0.75, 0.77, 0.78))
    offset = spread(seeds, "city.o", -0.12, 0.02)
    pane = tint(seeds, "city.pane", ((0.98, 0.9, 0.55), (0.15, 0.18, 0.25), (0.7, 0.85, 0.95)))
    for k in range(6):
        left, wide = offset + k * 0.2, 0.19 + 0.02 * heights[:, k]
        top = 0.08 + 0.34 * heights[:, (k * 5 + 2) % 6]
        u, v = canvas.x - column(left + wide / 2), canvas.y - column(top + 0.5)
        house = canvas.coverage(box(u, v, wide / 2, 0.5, 0.0))
        away, heat = spread(seeds, f"city.z{k}", 0.26, 0.6), spread(seeds, f"city.c{k}", 0.0, 6.0)
        canvas.paint(house, tint(seeds, f"city.w{k}", walls), away, heat)
        rows = wave((canvas.y - column(top)) * column(spread(seeds, f"city.n{k}", 9.0, 11.5)))
        columns = wave((canvas.x - column(left)) * column(spread(seeds, f"city.m{k}", 14.0, 17.0)))
        glass = np.clip((rows - np.float32(0.45)) * 5, 0, 1) * np.clip((columns - np.float32(0.4)) * 5, 0, 1)
        canvas.paint(house * glass, pane, away * np.float32(0.72), heat + 7.0)
    flat = plane(canvas, street - 0.3, 2.2)
    canvas.paint(
        canvas.coverage(below(canvas, street - 0.03)), tint(seeds, "city.kerb", ((0.75, 0.75, 0.75),)), flat * 1.15, 3.0
    )
    canvas.paint(
        canvas.coverage(below(canvas, street)),
        tint(seeds, "city.tar", ((0.25, 0.25, 0.28), (0.4, 0.4, 0.42), (0.35, 0.3, 0.3))),
        flat,
        10.0,
    )
    middle = (street + 1.0) / 2
    dash = canvas.coverage(np.abs(canvas.y - column(middle)) - np.float32(0.016))
    gaps = wave(canvas.x * np.float32(4.5) + column(draw(seeds, "city.dash"))) > np.float32(0.45)
    canvas.paint(dash * gaps, np.ones((len(seeds), 3), dtype=np.float32) * np.float32(0.9), flat, 5.0)


def desert(canvas: Canvas, seeds: Seeds) -> None:
    """Dunes behind dunes with wind ripples, a sun and cactuses."""
    sky(canvas, seeds)
    sx, sy = column(draw(seeds, "desert.sx")), column(spread(seeds, "desert.sy", 0.08, 0.2))
    canvas.paint(
        canvas.coverage(ellipse(canvas.x - sx, canvas.y - sy, 0.085, 0.085)),
        tint(seeds, "desert.sun", ((1.0, 0.95, 0.7), (1.0, 0.8, 0.5))),
        None,
        38.0,
    )
    sand = tint(seeds, "desert.sand", EARTHS)
    base = spread(seeds, "desert.h", 0.32, 0.44)
    for k, (drop, depth) in enumerate(((0.0, 0.07), (0.16, 0.09), (0.36, 0.08))):
        crest = column(base + drop) + ripple(canvas, seeds, f"desert.{k}", (0.6, 1.2), depth)
        dune = canvas.coverage(below(canvas, crest))
        slope = np.float32(0.1 + 0.22 * k) + (canvas.y - crest) * np.float32(0.5 + 0.45 * k)
        canvas.paint(dune, sand * np.float32(0.72 + 0.16 * k), slope, (5.0, 9.0, 14.0)[k])
        lines = wave((canvas.y - crest) * np.float32(15.0 - 3.0 * k) + np.float32(0.3) * np.sin(TAU * canvas.x * 2))
        lines = np.clip((lines - np.float32(0.7)) * 4, 0, 1)
        lines *= dune * np.float32(0.4)
        canvas.paint(lines, sand * np.float32(0.5), slope * np.float32(0.75), 1.0)
    green = tint(seeds, "desert.green", ((0.2, 0.45, 0.22), (0.35, 0.42, 0.25), (0.15, 0.32, 0.28)))
    for k in range(2):
        u = (canvas.x - column((draw(seeds, f"desert.x{k}") + k) * 0.5)) * column(
            np.where(draw(seeds, f"desert.f{k}") < 0.5, -1, 1)
        )
        v = canvas.y - column(spread(seeds, f"desert.y{k}", 0.5, 0.72))
        arms = np.minimum(
            bar(u, v, (0.0, -0.24, 0.0, 0.1), 0.034, 0.034), bar(u, v, (0.0, -0.04, 0.1, -0.06), 0.022, 0.022)
        )
        arms = np.minimum(arms, bar(u, v, (0.1, -0.06, 0.1, -0.17), 0.022, 0.022))
        arms = np.minimum(arms, bar(u, v, (0.0, 0.02, -0.09, 0.0), 0.02, 0.02))
        arms = np.minimum(arms, bar(u, v, (-0.09, 0.0, -0.09, -0.1), 0.02, 0.02))
        canvas.paint(canvas.coverage(arms), green, 0.6 + 0.15 * k, -7.0)


def snow(canvas: Canvas, seeds: Seeds) -> None:
    """Peaks with white caps, conifers on a white slope, falling flakes."""
    sky(canvas, seeds)
    rock = tint(seeds, "snow.rock", ((0.4, 0.42, 0.5), (0.55, 0.5, 0.48), (0.3, 0.35, 0.45)))
    white = tint(seeds, "snow.white", ((0.93, 0.95, 0.98), (0.8, 0.86, 0.95), (0.95, 0.9, 0.88)), 0.06)
    ground = spread(seeds, "snow.h", 0.56, 0.7)
    for k in range(3):
        px, top = (k + draw(seeds, f"snow.x{k}")) / 3, spread(seeds, f"snow.t{k}", 0.06, 0.26)
        slope = column(spread(seeds, f"snow.s{k}", 1.0, 1.6))
        face = (column(top) + slope * np.abs(canvas.x - column(px)) - canvas.y) * np.float32(0.7)
        canvas.paint(canvas.coverage(face), rock * np.float32(0.85 + 0.12 * k), 0.13 + 0.05 * k, 3.0 + k)
        jag = np.float32(0.05) * wave(canvas.x * np.float32(11.0) + column(draw(seeds, f"snow.j{k}")))
        canvas.paint(canvas.coverage(np.maximum(face, canvas.y - column(top + 0.13) - jag)), white, None, -5.0)
    slope = column(ground) + ripple(canvas, seeds, "snow.g", (0.5, 1.0), 0.03)
    canvas.paint(
        canvas.coverage(below(canvas, slope)),
        white * np.float32(0.94),
        plane(canvas, slope - np.float32(0.12), 2.0),
        -2.0,
    )
    green = tint(seeds, "snow.tree", ((0.12, 0.3, 0.2), (0.2, 0.3, 0.35), (0.25, 0.35, 0.2)))
    for k in range(4):
        u = canvas.x - column((k + draw(seeds, f"snow.c{k}")) / 4)
        foot = ground + spread(seeds, f"snow.f{k}", 0.02, 0.16)
        tall = spread(seeds, f"snow.k{k}", 0.2, 0.3)
        level = (canvas.y - column(foot - tall)) / column(tall)
        width = np.float32(0.035) + np.float32(0.06) * level - np.float32(0.035) * ((level * 3) % 1 < np.float32(0.35))
        tree = np.maximum(np.abs(u) - width, np.abs(level - np.float32(0.5)) - np.float32(0.5))
        canvas.paint(canvas.coverage(tree), green, 0.4 + 1.6 * (foot - ground), 4.0)
    flakes = dots(canvas.x, canvas.y, spread(seeds, "snow.n", 8.0, 11.0), 0.13, draw(seeds, "snow.flakes"), 0.75)
    canvas.paint(canvas.coverage(flakes), np.full((len(seeds), 3), 0.96, dtype=np.float32), 1.3, -6.0)


def meadow(canvas: Canvas, seeds: Seeds) -> None:
    """Paint a rolling field full of flowers and blades, a fence across it."""
    sky(canvas, seeds)
    hill = column(spread(seeds, "meadow.h", 0.34, 0.52)) + ripple(canvas, seeds, "meadow.r", (0.4, 0.9), 0.05)
    grass = tint(seeds, "meadow.grass", ((0.4, 0.62, 0.25), (0.65, 0.65, 0.3), (0.3, 0.5, 0.4), (0.72, 0.62, 0.35)))
    field = canvas.coverage(below(canvas, hill))
    flat = plane(canvas, hill, 1.9)
    canvas.paint(field, grass, flat, 0.0)
    blades = wave(
        canvas.x * column(spread(seeds, "meadow.b", 20.0, 26.0)) + np.float32(0.4) * np.sin(canvas.y * np.float32(30.0))
    )
    blades = np.clip((blades - np.float32(0.6)) * 3, 0, 1)
    blades *= field * np.float32(0.4)
    canvas.paint(blades, grass * np.float32(0.55), flat * np.float32(1.3), -5.0)
    rail = spread(seeds, "meadow.fence", 0.4, 0.56)
    wood = tint(seeds, "meadow.wood", ((0.55, 0.4, 0.28), (0.92, 0.9, 0.86), (0.4, 0.36, 0.34)))
    fence = np.minimum(
        np.abs(canvas.y - column(rail)) - np.float32(0.011), np.abs(canvas.y - column(rail + 0.07)) - np.float32(0.011)
    )
    post = np.abs(
        (wave(canvas.x * np.float32(6.0) + column(draw(seeds, "meadow.post")))) / np.float32(12.0)
    ) - np.float32(0.013)
    post = np.maximum(post, np.abs(canvas.y - column(rail + 0.04)) - np.float32(0.1))
    canvas.paint(canvas.coverage(np.minimum(fence, post)), wood, 0.62, 8.0)
    for k in range(2):
        bloom = dots(
            canvas.x, canvas.y, spread(seeds, f"meadow.n{k}", 8.0, 11.0), 0.27, draw(seeds, f"meadow.d{k}"), 0.65
        )
        low = canvas.y > hill + np.float32(0.1)
        canvas.paint(
            canvas.coverage(bloom) * low,
            tint(seeds, f"meadow.f{k}", FLOWERS, 0.08),
            flat * np.float32(1.25) + np.float32(0.05),
            4.0,
        )


def cave(canvas: Canvas, seeds: Seeds) -> None:
    """Paint a mouth of light in rock, stone teeth from above and below."""
    rock = tint(
        seeds, "cave.rock", ((0.3, 0.27, 0.26), (0.42, 0.38, 0.4), (0.25, 0.3, 0.36), (0.5, 0.42, 0.35), *EARTHS), 0.1
    )
    mx, my = spread(seeds, "cave.x", 0.3, 0.7), spread(seeds, "cave.y", 0.4, 0.55)
    aside = np.maximum(np.abs(canvas.x - column(mx)), np.abs(canvas.y - column(my)) * np.float32(1.2))
    walls = np.float32(0.22) + np.float32(1.35) * aside
    colour = rock[:, :, None, None] * (np.float32(0.7) + np.float32(0.5) * canvas.y[:, None])
    canvas.fill(colour, walls, 0.0)
    cracks = dots(canvas.x, canvas.y, spread(seeds, "cave.n", 6.0, 9.0), 0.35, draw(seeds, "cave.d"))
    canvas.paint(canvas.coverage(cracks) * np.float32(0.5), rock * np.float32(0.65), walls * np.float32(0.8), -2.5)
    rough = (
        np.float32(0.05)
        * np.sin(canvas.x * np.float32(31.0) + column(spread(seeds, "cave.p", 0, 6)))
        * np.sin(canvas.y * np.float32(27.0))
    )
    mouth = (
        ellipse(
            canvas.x - column(mx),
            canvas.y - column(my),
            spread(seeds, "cave.rx", 0.24, 0.4),
            spread(seeds, "cave.ry", 0.2, 0.34),
        )
        + rough
    )
    canvas.paint(canvas.coverage(mouth - np.float32(0.05)), rock * np.float32(0.5), 0.2, 2.0)
    canvas.paint(canvas.coverage(mouth), tint(seeds, "cave.light", SKIES), 0.0, spread(seeds, "cave.out", 8.0, 14.0))
    for k, name in enumerate(("cave.up", "cave.down")):
        teeth = wave(canvas.x * column(spread(seeds, name, 4.0, 6.5)) + column(draw(seeds, name + ".p")))
        tall = column(spread(seeds, name + ".h", 0.2, 0.32)) * (
            np.float32(0.6)
            + np.float32(0.4) * np.sin(canvas.x * np.float32(19.0) + column(spread(seeds, name + ".q", 0, 6)))
        )
        edge = canvas.y if k == 0 else 1 - canvas.y
        canvas.paint(
            canvas.coverage((edge - tall * teeth - np.float32(0.03)) * np.float32(0.35)),
            rock * np.float32(0.82 if k == 0 else 1.15),
            1.1,
            -2.0 - k,
        )


def kitchen(canvas: Canvas, seeds: Seeds) -> None:
    """Paint a tiled wall with a window, a shelf of pots, a worktop and a chequered floor."""
    walls = SKIES + EARTHS
    wall = tint(seeds, "kitchen.wall", walls)
    canvas.fill(wall, 0.55, 0.0)
    tiles = column(spread(seeds, "kitchen.n", 7.0, 10.0))
    joint = np.maximum(wave(canvas.x * tiles + column(draw(seeds, "kitchen.p"))), wave(canvas.y * tiles))
    canvas.paint(np.clip((joint - np.float32(0.82)) * 7, 0, 1), wall * np.float32(0.68), 0.48, -1.5)
    wx = column(spread(seeds, "kitchen.x", 0.2, 0.8))
    frame = tint(seeds, "kitchen.frame", ((0.95, 0.95, 0.93), (0.45, 0.32, 0.22)))
    u, v = canvas.x - wx, canvas.y - np.float32(0.2)
    canvas.paint(canvas.coverage(box(u, v, 0.15, 0.15, 0.0)), frame, 0.6, -3.0)
    panes = np.maximum(box(u, v, 0.13, 0.13, 0.0), np.float32(0.012) - np.minimum(np.abs(u), np.abs(v)))
    canvas.paint(canvas.coverage(panes), tint(seeds, "kitchen.pane", SKIES), 0.0, -9.0)
    top = spread(seeds, "kitchen.top", 0.46, 0.58)
    for k in range(3):
        px = column((k + draw(seeds, f"kitchen.pot{k}")) / 3)
        pot = box(
            canvas.x - px, canvas.y - column(top - 0.05), spread(seeds, f"kitchen.w{k}", 0.04, 0.075), 0.05, 0.015
        )
        heat = np.where(
            draw(seeds, f"kitchen.on{k}") < 0.6, spread(seeds, f"kitchen.hot{k}", 18.0, 50.0), np.float32(1)
        )
        canvas.paint(canvas.coverage(pot), tint(seeds, f"kitchen.c{k}", walls, 0.3), 0.68, heat)
    canvas.paint(
        canvas.coverage(box(canvas.x - np.float32(0.5), canvas.y - column(top + 0.02), 0.7, 0.025)),
        tint(seeds, "kitchen.worktop", EARTHS),
        0.82,
        -2.0,
    )
    cabinet = tint(seeds, "kitchen.cabinet", walls)
    canvas.paint(canvas.coverage(below(canvas, top + 0.045)), cabinet, 0.72, 1.0)
    doors = wave(canvas.x * np.float32(3.5) + column(draw(seeds, "kitchen.door")))
    canvas.paint(
        canvas.coverage(below(canvas, top + 0.045)) * (doors > np.float32(0.92)), cabinet * np.float32(0.55), 0.6, -1.0
    )
    floor = spread(seeds, "kitchen.floor", 0.78, 0.86)
    checks = (
        np.floor(canvas.x * np.float32(8.0) + column(draw(seeds, "kitchen.ph")))
        + np.floor((canvas.y - column(floor)) * np.float32(14.0))
    ) % 2
    one, two = tint(seeds, "kitchen.f1", EARTHS), tint(seeds, "kitchen.f2", ((0.15, 0.15, 0.18), (0.95, 0.95, 0.95)))
    canvas.paint(
        canvas.coverage(below(canvas, floor)),
        one[:, :, None, None] + checks[:, None] * (two - one)[:, :, None, None],
        plane(canvas, floor - 0.36, 2.0),
        2.0 * checks - 4.0,
    )


def plain(canvas: Canvas, seeds: Seeds) -> None:
    """Paint a studio ground: one colour running into another."""
    one, two = tint(seeds, "plain.1", SKIES + EARTHS, 0.2), tint(seeds, "plain.2", SKIES + EARTHS, 0.2)
    colour = one[:, :, None, None] + canvas.y[:, None] * (two - one)[:, :, None, None]
    canvas.fill(colour, column(spread(seeds, "plain.z", 0.25, 0.5)) + np.float32(0.2) * canvas.y, canvas.y * 2)


GROUNDS: dict[str, Callable[[Canvas, Seeds], None]] = {
    "beach": beach,
    "forest": forest,
    "city": city,
    "desert": desert,
    "snow": snow,
    "meadow": meadow,
    "cave": cave,
    "kitchen": kitchen,
}
