"""Knobs of an approximate backend, and the search for the cheapest way of turning them that reaches an overlap.

A backend has up to two knobs: a breadth (how much it looks at: nprobe, efSearch) and a depth (how many candidates are
scored from the rows: rerank). Nothing here knows what is a good value of either. Each depth is doubled from the
answer's length on; at each, the least breadth that suffices is found by doubling and bisection; the cheapest pair in
CPU time wins. Where the backend has margins, wider settings are then cut by the least margin that suffices, and kept
where that is cheaper: a query that needs little takes little (docs/adr/0113).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bindsearch.index.recipe import MARGIN

DEPTH = "rerank"

WIDER = (1.0, 1.5, 3.0)
"""How much wider a knob is tried when a margin cuts it."""


@dataclass(frozen=True)
class Point:
    """What was measured with some settings.

    Attributes:
        settings: knob -> value.
        overlap: mean overlap_at_k with the exact answers.
        low: its lower confidence bound.
        likely: the bound that is expected of all held-out queries, of which some were asked.
        ms: CPU milliseconds a query, in batches of BATCH.
    """

    settings: dict[str, int]
    overlap: float
    low: float
    likely: float
    ms: float

    @property
    def qps(self) -> float:
        """Queries a second of one core."""
        return 1000.0 / self.ms


@dataclass(frozen=True)
class Knobs:
    """What can be turned.

    Attributes:
        breadth, depth: names; None: the backend has no such knob.
        most: name -> the largest value that changes anything.
        exact: whether every answer is proven, so that no sample need confirm it.
    """

    breadth: str | None
    depth: str | None
    most: Mapping[str, int] = field(default_factory=dict)
    exact: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, int], most: Mapping[str, int], exact: bool = False) -> Knobs:
        """Sort a backend's settings into breadth and depth; an exact one has none that matter."""
        if exact:
            return cls(None, None, {}, True)
        breadth = next((name for name in settings if name != DEPTH and not name.endswith(MARGIN)), None)
        return cls(breadth, DEPTH if DEPTH in settings else None, most)

    @property
    def cuts(self) -> list[tuple[str, str]]:
        """Pairs of a knob and the margin that cuts it."""
        return [(name, name + MARGIN) for name in (self.breadth, self.depth) if name and name + MARGIN in self.most]

    def uncut(self) -> Knobs:
        """Give the same without margins: where the worst query counts, nobody's luck is relied on."""
        return replace(self, most={name: value for name, value in self.most.items() if not name.endswith(MARGIN)})

    def doubled(self, settings: Mapping[str, int]) -> dict[str, int]:
        """Give each knob twice its value, up to where more changes nothing."""
        return {name: min(self.most.get(name, value), 2 * value) for name, value in settings.items()}

    def settings(self, breadth: int, depth: int) -> dict[str, int]:
        """Name two values."""
        pairs = ((self.breadth, breadth), (self.depth, depth))
        return {name: value for name, value in pairs if name is not None}


def cheapest(
    measure: Callable[[Mapping[str, int]], Point], knobs: Knobs, target: float, k: int, near: Point | None = None
) -> Point | None:
    """Find the settings of least CPU time that likely reach a target.

    Args:
        measure: gives the point of settings; asked for the same ones again and again.
        knobs: what can be turned; overlap and time are taken to grow with each.
        target: overlap to reach, by `Point.likely`.
        k: answers a query; no depth is below it.
        near: what was found for a lower target, to begin near to; None: from the least on.

    Returns:
        The point, or None where no settings reach the target.
    """
    if knobs.depth is None and knobs.breadth is None:
        point = measure({})
        return point if point.likely >= target else None
    deepest = knobs.most.get(knobs.depth or "", k)
    depth, breadth, worse = min(k, deepest), 1, 0
    if near is not None:
        depth = max(depth, near.settings.get(knobs.depth or "", 0) // 2)
        breadth = near.settings.get(knobs.breadth or "", 1)
    best: Point | None = None
    while True:
        if best is not None and measure(knobs.settings(1, depth)).ms >= best.ms:
            break  # whatever looks as deep, or deeper, costs more
        found, breadth = _least_breadth(measure, knobs, depth, breadth, target)
        if found is not None and (best is None or found.ms < best.ms):
            best, worse = found, 0
        elif best is not None:
            worse += 1
        if depth >= deepest or knobs.depth is None or worse == 2:  # past the valley: two depths in a row cost more
            break
        depth = min(deepest, 2 * depth)
    if best is None or knobs.depth is None:
        return best
    for step in (2**0.5, 2**0.25):  # between the doublings
        centre = best.settings[knobs.depth]
        for beside in (round(centre / step), round(centre * step)):
            if k <= beside <= deepest:
                start = best.settings[knobs.breadth] if knobs.breadth else 1
                found, _ = _least_breadth(measure, knobs, beside, start, target)
                best = best if found is None else min(best, found, key=lambda each: each.ms)
    return _cut(measure, knobs, _trimmed(measure, knobs, best, target), target)


def _least_breadth(
    measure: Callable[[Mapping[str, int]], Point], knobs: Knobs, depth: int, start: int, target: float
) -> tuple[Point | None, int]:
    """Find the least breadth that reaches the target at a depth; gives its point and where the next depth may start."""
    if knobs.breadth is None:
        point = measure(knobs.settings(1, depth))
        return (point if point.likely >= target else None), 1
    most = knobs.most.get(knobs.breadth, 1)
    return _least(lambda breadth: measure(knobs.settings(breadth, depth)), start, most, target, share=8, slowing=True)


def _least(
    at: Callable[[int], Point], start: int, most: int, target: float, share: int, slowing: bool = False
) -> tuple[Point | None, int]:
    """Find the least value of a knob that reaches a target, to a `share` of it.

    Gives its point, or None, and where to begin at the next depth.

    Args:
        at: measures with a value of the knob.
        start: where to begin.
        most: its largest value.
        target: overlap to reach, by `Point.likely`.
        share: 8 is to an eighth.
        slowing: gains that shrink are taken to shrink on; where they add up to too little, it is given up.
    """
    low, high, gain, before = 0, start, 0.0, at(start)
    if before.likely >= target:
        while high > 1 and at(high // 2).likely >= target:
            high //= 2
        low = high // 2
    else:
        while high < most:
            low, high = high, min(most, 2 * high)
            point = at(high)
            if point.likely >= target:
                break
            gain, last = point.likely - before.likely, gain
            if slowing and gain < last and point.likely + gain * gain / (last - gain) < target:
                return None, max(start, high // 4)
            before = point
        else:
            return None, max(start, high // 4)
    while high - low > max(1, high // share):
        middle = (low + high) // 2
        low, high = (low, middle) if at(middle).likely >= target else (middle, high)
    return at(high), high


def _trimmed(measure: Callable[[Mapping[str, int]], Point], knobs: Knobs, best: Point, target: float) -> Point:
    """Take from each knob what the target does not need, by bisection, finer than the search before."""
    for name, share in ((knobs.depth, 2), (knobs.breadth, 6)):
        if name is None:
            continue
        high = best.settings[name]
        low = high - high // share
        while high - low > max(1, high // 32):
            middle = (low + high) // 2
            point = measure({**best.settings, name: middle})
            if point.likely >= target:
                high = middle
                best = min(best, point, key=lambda each: each.ms)
            else:
                low = middle
    return best


def _cut(measure: Callable[[Mapping[str, int]], Point], knobs: Knobs, best: Point, target: float) -> Point:
    """Widen a knob and cut it by the least margin that the target allows, for each knob that has one.

    A margin that leaves next to nothing takes the least time that a margin can; where that is no less than without,
    there is nothing to gain.
    """
    for name, margin in knobs.cuts:
        narrow, start = best, math.isqrt(knobs.most[margin])
        for wider in WIDER:
            wide = {**narrow.settings, name: min(knobs.most[name], round(wider * narrow.settings[name]))}
            if measure({**wide, margin: 1}).ms >= best.ms:
                break
            found, start = _least(_turned(measure, wide, margin), start, knobs.most[margin], target, share=16)
            best = best if found is None else min(best, found, key=lambda each: each.ms)
    return best


def _turned(
    measure: Callable[[Mapping[str, int]], Point], settings: Mapping[str, int], name: str
) -> Callable[[int], Point]:
    """Give what measures settings with one more knob at a value."""
    return lambda value: measure({**settings, name: value})


def front(points: Sequence[Point]) -> list[Point]:
    """Give the points that no other point beats in both time and overlap, cheapest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda each: (each.ms, -each.overlap)):
        if not kept or point.overlap > kept[-1].overlap:
            kept.append(point)
    return kept
