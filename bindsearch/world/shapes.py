"""Shapes as signed distances, and a canvas that paints them: resolution-free drawing of n pictures at once.

A signed distance is negative inside a shape and grows by one a unit of length outside it; a shape's edge is softened
over one pixel, so a picture drawn small looks like one drawn large and scaled down.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def column(values: Any) -> Array:
    """Give (n,) numbers two trailing axes so that they meet (n, H, W) grids; a plain number stays one."""
    array = np.asarray(values, dtype=np.float32)
    return array[:, None, None] if array.ndim == 1 else array


def turn(u: Array, v: Array, angle: Any) -> tuple[Array, Array]:
    """Turn coordinates (n, H, W) by minus the angle (radians, number or (n,)): the shape turns by plus it."""
    cos, sin = column(np.cos(angle)), column(np.sin(angle))
    return cos * u + sin * v, cos * v - sin * u


def ellipse(u: Array, v: Array, rx: Any, ry: Any) -> Array:
    """Signed distance of an ellipse round the origin, to first order.

    Args:
        u: (n, H, W) or broadcastable coordinate. Not modified.
        v: the other coordinate. Not modified.
        rx: half axis along u, number or (n,).
        ry: half axis along v.
    """
    rx, ry = column(rx), column(ry)
    p, q = (u / rx) ** 2, (v / ry) ** 2
    slope = np.sqrt(p / rx**2 + q / ry**2)
    slope += np.float32(1e-6)
    square = p + q
    near = np.sqrt(square)
    square -= near
    square /= slope
    out: Array = square
    return out


def bar(u: Array, v: Array, ends: tuple[Any, Any, Any, Any], r1: Any, r2: Any) -> Array:
    """Signed distance of a bar with round ends whose half width runs from r1 to r2.

    Args:
        u: (n, H, W) or broadcastable coordinate. Not modified.
        v: the other coordinate. Not modified.
        ends: x1, y1, x2, y2, each a number or (n,).
        r1: half width at the first end.
        r2: half width at the second end.
    """
    x1, y1, x2, y2 = (column(end) for end in ends)
    dx, dy = x2 - x1, y2 - y1
    square = dx * dx + dy * dy + np.float32(1e-6)
    pu, pv = u - x1, v - y1
    along = pu * (dx / square) + pv * (dy / square)
    np.clip(along, 0, 1, out=along)
    pu = pu - along * dx
    pv = pv - along * dy
    pu *= pu
    pv *= pv
    pu = pu + pv
    out: Array = np.sqrt(pu, out=pu)
    along *= column(r2) - column(r1)
    along += column(r1)
    out -= along
    return out


def box(u: Array, v: Array, hx: Any, hy: Any, radius: Any = 0.0) -> Array:
    """Signed distance of a box round the origin with half sizes hx, hy and rounded corners."""
    radius = column(radius)
    qu = np.abs(u) - (column(hx) - radius)
    qv = np.abs(v) - (column(hy) - radius)
    outside = np.sqrt(np.maximum(qu, 0) ** 2 + np.maximum(qv, 0) ** 2)
    out: Array = outside + np.minimum(np.maximum(qu, qv), 0) - radius
    return out


def polygon(u: Array, v: Array, corners: list[tuple[Any, Any]]) -> Array:
    """Signed distance of a convex polygon (greatest distance of its edge lines; corners in any turning sense)."""
    xs, ys = [float(np.mean(x)) for x, _ in corners], [float(np.mean(y)) for _, y in corners]
    area = sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))
    sense = 1.0 if area > 0 else -1.0
    edges = []
    for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = np.asarray(x2) - np.asarray(x1), np.asarray(y2) - np.asarray(y1)
        length = np.sqrt(ex * ex + ey * ey) + 1e-6
        edges.append(column(sense * ey / length) * (u - column(x1)) - column(sense * ex / length) * (v - column(y1)))
    distance = edges[0]
    for edge in edges[1:]:
        distance = np.maximum(distance, edge)
    return distance


def ring(u: Array, v: Array, radius: Any, half_width: Any) -> Array:
    """Signed distance of a ring round the origin."""
    return np.abs(np.sqrt(u * u + v * v) - column(radius)) - column(half_width)


def dots(x: Array, y: Array, cells: Any, radius: Any, phase: Any, share: float = 1.0) -> Array:
    """Signed distance of dots strewn over the plane, one to a cell of a jittered grid.

    Args:
        x: (n, H, W) or broadcastable coordinate. Not modified.
        y: the other coordinate. Not modified.
        cells: cells a unit of length, number or (n,).
        radius: of a dot, in cells.
        phase: (n,) numbers that make one strewing differ from another.
        share: share of the cells that hold a dot.

    Returns:
        Distance in units of x and y.
    """
    cells, phase = column(cells), column(phase)
    gx, gy = x * cells, y * cells
    i, j = np.floor(gx), np.floor(gy)
    first = np.sin(i * np.float32(12.9898) + j * np.float32(78.233) + phase * np.float32(37.7)) * np.float32(437.585)
    first -= np.floor(first)
    second = first * np.float32(57.31)
    second -= np.floor(second)
    du = gx - i - (np.float32(0.25) + first * np.float32(0.5))
    dv = gy - j - (np.float32(0.25) + second * np.float32(0.5))
    distance = np.sqrt(du * du + dv * dv) - column(radius)
    if share < 1.0:
        third = second * np.float32(31.17)
        third -= np.floor(third)
        distance = np.where(third < share, distance, np.float32(1.0))
    out: Array = distance / cells
    return out


def wave(t: Array) -> Array:
    """Give a triangle wave of period 1 between 0 and 1."""
    out: Array = np.float32(2) * np.abs(t - np.floor(t + np.float32(0.5)))
    return out


PLANES = ("rgb", "near", "heat")


class Canvas:
    """n square pictures being painted, in up to three planes that share every shape: colour, distance, heat.

    Attributes:
        x, y: (n or 1, 1, W) and (n or 1, H, 1) pixel centres in frame widths; y grows downwards.
        pixel: size of a pixel in frame widths.
        rgb: (n, 3, H, W) float32, linear levels where 1 is white; overwritten by painting.
        near: (n, H, W) float32, inverse distance, where 1 is the subject's distance and 0 is the sky.
        heat: (n, H, W) float32, degrees Celsius above the ambient temperature.

    A plane that is not wanted has no pixels (H = W = 0).
    """

    def __init__(self, n: int, size_px: int, planes: tuple[str, ...] = ("rgb",)) -> None:
        """Start with black pictures of things infinitely far and at the ambient temperature."""
        centres = (np.arange(size_px, dtype=np.float32) + np.float32(0.5)) / np.float32(size_px)
        self._x, self._y = centres[None, None, :], centres[None, :, None]
        self.x, self.y = self._x, self._y
        self.pixel = np.float32(1.0 / size_px)
        side = {plane: size_px if plane in planes else 0 for plane in PLANES}
        self.rgb = np.zeros((n, 3, side["rgb"], side["rgb"]), dtype=np.float32)
        self.near = np.zeros((n, side["near"], side["near"]), dtype=np.float32)
        self.heat = np.zeros((n, side["heat"], side["heat"]), dtype=np.float32)

    def move(self, shift: Array, zoom: Array, mirrored: Array) -> None:
        """Look at another piece of the plane: what is painted next is shifted (n, 2), zoomed and mirrored (n,)."""
        sense = column(np.where(mirrored < 0, np.float32(-1), np.float32(1)))
        self.x = (self._x - np.float32(0.5)) * sense * column(zoom) + np.float32(0.5) + column(shift[:, 0])
        self.y = (self._y - np.float32(0.5)) * column(zoom) + np.float32(0.5) + column(shift[:, 1])

    def rest(self) -> None:
        """Go back to the frame's own coordinates."""
        self.x, self.y = self._x, self._y

    def copy(self) -> Canvas:
        """Give a canvas that looks the same and is painted on its own."""
        twin = Canvas(0, 1, ())
        twin._x, twin._y, twin.x, twin.y, twin.pixel = self._x, self._y, self.x, self.y, self.pixel
        twin.rgb, twin.near, twin.heat = self.rgb.copy(), self.near.copy(), self.heat.copy()
        return twin

    def coverage(self, distance: Array, unit: Any = 1.0, soft: float = 0.0) -> Array:
        """Turn a signed distance into a coverage in [0, 1].

        Args:
            distance: (n, H, W) or broadcastable. Not modified.
            unit: frame widths a unit of the distance, number or (n,).
            soft: additional width of the edge in units of the distance.
        """
        edge = self.pixel / column(unit) + np.float32(soft)
        cover = distance * (np.float32(-1) / edge)
        cover += np.float32(0.5)
        return np.clip(cover, 0, 1, out=cover)

    def fill(self, colour: Array, near: Any = 0.0, heat: Any = 0.0) -> None:
        """Cover everything; arguments as in `paint`. Overwrites the planes."""
        if self.rgb.size:
            self.rgb[:] = colour[:, :, None, None] if colour.ndim == 2 else colour
        if self.near.size:
            self.near[:] = column(near)
        if self.heat.size:
            self.heat[:] = column(heat)

    def paint(self, cover: Array, colour: Array, near: Any = None, heat: Any = None) -> None:
        """Blend a thing in. Overwrites the planes.

        Args:
            cover: (n, H, W) or broadcastable, in [0, 1]. Not modified.
            colour: (n, 3), or (n, 3, H, W) where it varies. Not modified.
            near: inverse distance, number, (n,) or (n, H, W); None: a mark on what is there, at no distance of its own.
            heat: degrees above ambient, number, (n,) or (n, H, W); None: as warm as what is there.
        """
        if self.rgb.size:
            change = (colour[:, :, None, None] if colour.ndim == 2 else colour) - self.rgb
            change *= cover[:, None]
            self.rgb += change
        if self.near.size and near is not None:
            self.near += cover * (column(near) - self.near)
        if self.heat.size and heat is not None:
            self.heat += cover * (column(heat) - self.heat)
