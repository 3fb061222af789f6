"""Search settings from measurements: the cheapest that give the overlap asked for, on queries like those to come.

An approximate backend has up to two knobs: a breadth (how much it looks at: nprobe, efSearch) and a depth (how many
candidates are scored from the rows: rerank). Nothing here knows what is a good value of either. Each depth is doubled
from the answer's length on; at each, the least breadth that suffices is found by doubling and bisection; the cheapest
pair in CPU time wins. Where the backend has margins, wider settings are then cut by the least margin that suffices, and
kept where that is cheaper: a query that needs little takes little (docs/adr/0113). What is chosen must hold on all
held-out queries: the lower confidence bound of their mean overlap, not the mean, has to reach what was asked, so that
the allowance shrinks as the sample grows (docs/adr/0109).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.index.recipe import MARGIN

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.index.snapshot import Snapshot
    from bindsearch.types import FloatArray, IntArray

    BoolArray = NDArray[np.bool_]

DEPTH = "rerank"
CONFIDENCE = 0.95
BATCH = 500
"""Queries a batch while measuring throughput; `ms` of a query asked alone is measured apart."""
SCOUTS = 256
"""Queries that the search for settings uses; all of them confirm what it found."""

WIDER = (1.0, 1.5, 3.0)
"""How much wider a knob is tried when a margin cuts it."""

_ALONE = 48
_LEAST_S = 0.03

Search = Callable[["FloatArray", int, Mapping[str, int]], "tuple[FloatArray, IntArray]"]
"""(queries (q, d), k, settings) -> scores (q, k), ids (q, k)."""


@dataclass(frozen=True)
class Sample:
    """Held-out queries of one modality, with their true answers.

    Attributes:
        modality: of the queries.
        source: where they come from, for people.
        queries: (q, d) float32 unit rows.
        least: (q,) float32, the score of the k-th true answer: whoever reaches it belongs into the answer, ties too.
        own: (q,) int64 id of the indexed row that a query is, left out of its answers; -1: it is none.
        selectors: a mask a segment of the rows that may be answers; None: all.
    """

    modality: str
    source: str
    queries: FloatArray
    least: FloatArray
    own: IntArray
    selectors: tuple[BoolArray, ...] | None = None

    def first(self, count: int) -> Sample:
        """Give the first queries alone."""
        part = slice(0, count)
        return replace(self, queries=self.queries[part], least=self.least[part], own=self.own[part])

    def __len__(self) -> int:
        """Count the queries."""
        return int(self.queries.shape[0])


@dataclass(frozen=True)
class Point:
    """What was measured with some settings.

    Attributes:
        settings: knob -> value.
        overlap: mean overlap_at_k with the exact answers.
        low: its lower confidence bound.
        ms: CPU milliseconds a query, in batches of BATCH.
    """

    settings: dict[str, int]
    overlap: float
    low: float
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


class Measure:
    """Measures settings on a sample, each once.

    What is worth it is timed at least twice, and the least time counts: pages of mapped files that nobody has read yet
    make a first search several times as long, and those who look farther come to more of them.

    Attributes:
        sample: the queries.
        points: all that was measured so far.
        worth: the overlap from which on the time matters.
    """

    def __init__(self, search: Search, sample: Sample, k: int, confidence: float = CONFIDENCE) -> None:
        """Take what searches; results are compared with `sample.least`."""
        self._search, self.sample, self._k, self._confidence = search, sample, k, confidence
        self._found: dict[tuple[tuple[str, int], ...], Point] = {}
        self.worth = 0.0

    @property
    def points(self) -> list[Point]:
        """All points, cheapest first."""
        return sorted(self._found.values(), key=lambda point: point.ms)

    def __call__(self, settings: Mapping[str, int]) -> Point:
        """Measure settings, or recall what was measured."""
        key = tuple(sorted(settings.items()))
        if key not in self._found:
            self._found[key] = self._measure(dict(settings))
        return self._found[key]

    def _measure(self, settings: dict[str, int]) -> Point:
        queries, own = self.sample.queries, self.sample.own
        extra = int((own >= 0).any())
        began, times = time.process_time(), list[float]()
        while True:
            begin = time.process_time()
            parts = [
                self._search(queries[start : start + BATCH], self._k + extra, settings)
                for start in range(0, len(queries), BATCH)
            ]
            times.append(time.process_time() - begin)
            if len(times) == 1:
                scores, ids = (np.concatenate(each) for each in zip(*parts, strict=True))
                overlaps = overlap_at_k(scores, ids, self.sample.least, own, self._k)
            elif time.process_time() - began >= _LEAST_S:
                break
            if overlaps.mean() < self.worth:
                break
        ms = max(min(times) / len(queries) * 1e3, 1e-6)
        return Point(settings, float(overlaps.mean()), lower_bound(overlaps, self._confidence), ms)

    def alone_ms(self, settings: Mapping[str, int]) -> float:
        """Measure the CPU milliseconds of a query asked alone: the median over some of the sample."""
        spent = []
        for row in range(min(_ALONE, len(self.sample))):
            begin = time.process_time()
            self._search(self.sample.queries[row : row + 1], self._k, settings)
            spent.append(time.process_time() - begin)
        return float(np.median(spent)) * 1e3


def overlap_at_k(scores: FloatArray, ids: IntArray, least: FloatArray, own: IntArray, k: int) -> NDArray[np.float64]:
    """Give the share of each query's k true answers that was found.

    Args:
        scores: (q, m) float32 exact scores of what was found, best first; m >= k. Not modified.
        ids: (q, m) int64; -1 for none. Not modified.
        least: (q,) float32, see `Sample`. Not modified.
        own: (q,) int64, see `Sample`. Not modified.
        k: how long the true answer is.

    Returns:
        (q,) float64. Equal scores count alike, whichever of them was found.
    """
    right = (scores >= least[:, None]) & (ids >= 0) & (ids != own[:, None])
    return np.asarray(np.minimum(right.sum(axis=1), k) / float(k), dtype=np.float64)


def lower_bound(overlaps: NDArray[np.float64], confidence: float = CONFIDENCE) -> float:
    """Bound the mean overlap of all such queries from below.

    One-sided normal bound of the mean, with one more query that finds nothing: a sample that was answered perfectly has
    no spread, which does not mean that the next query is answered perfectly too.

    Args:
        overlaps: (q,) in [0, 1]. Not modified.
        confidence: that the true mean is above the bound.
    """
    padded = np.append(overlaps, 0.0)
    mean = float(padded.mean())
    centred = overlaps - overlaps.mean()
    error = math.sqrt(float(centred @ centred) / max(len(overlaps) - 1, 1) / len(overlaps))
    return max(0.0, mean - NormalDist().inv_cdf(confidence) * error)


# ---- the search ------------------------------------------------------------------------------------------------------


def cheapest(
    measure: Callable[[Mapping[str, int]], Point], knobs: Knobs, target: float, k: int, near: Point | None = None
) -> Point | None:
    """Find the settings of least CPU time whose mean overlap reaches a target.

    Args:
        measure: gives the point of settings; asked for the same ones again and again.
        knobs: what can be turned; overlap and time are taken to grow with each.
        target: mean overlap to reach.
        k: answers a query; no depth is below it.
        near: what was found for a lower target, to begin near to; None: from the least on.

    Returns:
        The point, or None where no settings reach the target.
    """
    if knobs.depth is None and knobs.breadth is None:
        point = measure({})
        return point if point.overlap >= target else None
    deepest = knobs.most.get(knobs.depth or "", k)
    depth, breadth, worse = min(k, deepest), 1, 0
    if near is not None:
        depth = max(depth, near.settings.get(knobs.depth or "", 0) // 2)
        breadth = near.settings.get(knobs.breadth or "", 1)
    best: Point | None = None
    while True:
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
        return (point if point.overlap >= target else None), 1
    most = knobs.most.get(knobs.breadth, 1)
    return _least(lambda breadth: measure(knobs.settings(breadth, depth)), start, most, target, share=8, slowing=True)


def _least(
    at: Callable[[int], Point], start: int, most: int, target: float, share: int, slowing: bool = False
) -> tuple[Point | None, int]:
    """Find the least value of a knob that reaches a target, to a `share` of it: its point, or None, and where it ended.

    Args:
        at: measures with a value of the knob.
        start: where to begin.
        most: its largest value.
        target: mean overlap to reach.
        share: 8 is to an eighth.
        slowing: gains that shrink are taken to shrink on; where they add up to too little, it is given up.
    """
    low, high, gain, before = 0, start, 0.0, at(start)
    if before.overlap >= target:
        while high > 1 and at(high // 2).overlap >= target:
            high //= 2
        low = high // 2
    else:
        while high < most:
            low, high = high, min(most, 2 * high)
            point = at(high)
            if point.overlap >= target:
                break
            gain, last = point.overlap - before.overlap, gain
            if slowing and gain < last and point.overlap + gain * gain / (last - gain) < target:
                return None, high
            before = point
        else:
            return None, high
    while high - low > max(1, high // share):
        middle = (low + high) // 2
        low, high = (low, middle) if at(middle).overlap >= target else (middle, high)
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
            if point.overlap >= target:
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


@dataclass(frozen=True)
class Tuned:
    """What tuning one modality gave.

    Attributes:
        chosen: the cheapest point whose lower bound reaches the target; None: no settings do.
        best: the point of the largest lower bound that was confirmed.
        alone_ms: of a query asked alone, with the chosen settings (else the best).
        curve: the front of all points measured on the scouts, the confirmed ones in place of theirs.
    """

    sample: Sample
    chosen: Point | None
    best: Point
    alone_ms: float
    curve: list[Point]

    def to_json(self, k: int) -> dict[str, Any]:
        """Write plain JSON types, for the manifest."""
        point = self.chosen or self.best
        return {
            "settings": point.settings,
            f"overlap_at_{k}": round(point.overlap, 5),
            "overlap_low": round(point.low, 5),
            "ms": round(self.alone_ms, 4),
            "batch_ms": round(point.ms, 4),
            "qps": round(point.qps, 1),
            "queries": len(self.sample),
            "source": self.sample.source,
            "curve": [
                {"settings": each.settings, f"overlap_at_{k}": round(each.overlap, 5), "qps": round(each.qps, 1)}
                for each in self.curve
            ],
        }


def tune(search: Search, sample: Sample, knobs: Knobs, target: float, k: int) -> Tuned:
    """Choose the settings of one modality; see `Tuner`, which does it for several targets."""
    return Tuner(search, sample, knobs, k)(target)


class Tuner:
    """Chooses settings on one sample; what one target measured serves the next.

    Scouts find the cheapest settings for a mean overlap; all queries confirm the lower bound. Where it falls short, the
    scouts look for that much more, near to what they found.
    """

    def __init__(self, search: Search, sample: Sample, knobs: Knobs, k: int) -> None:
        """Take what is tuned, held-out queries, what can be turned, and how many answers a query has."""
        self._sample, self._knobs, self._k = sample, knobs, k
        self._scout, self._judge = Measure(search, sample.first(SCOUTS), k), Measure(search, sample, k)
        self._near: Point | None = None

    def __call__(self, target: float) -> Tuned:
        """Find the cheapest settings whose overlap reaches a target with confidence; lower targets come first."""
        self._scout.worth = self._judge.worth = target
        if self._knobs.exact:
            proven = replace(self._judge({}), low=1.0)
            return Tuned(self._sample, proven, proven, self._judge.alone_ms({}), [proven])
        chosen = self._choose(target)
        if not self._judge.points:
            self._judge(max(self._scout.points, key=lambda each: each.overlap).settings)
        return self._tuned(chosen, max(self._judge.points, key=lambda each: each.low))

    def confirm(self, settings: Mapping[str, int]) -> Tuned:
        """Measure settings that were found otherwise on all queries: the best, chosen for no overlap."""
        return self._tuned(None, self._judge(settings))

    def _tuned(self, chosen: Point | None, best: Point) -> Tuned:
        exact = {tuple(sorted(each.settings.items())): each for each in self._judge.points}
        seen = [exact.get(tuple(sorted(each.settings.items())), each) for each in self._scout.points]
        alone_ms = self._judge.alone_ms((chosen or best).settings)
        return Tuned(self._sample, chosen, best, alone_ms, front(seen))

    def _choose(self, target: float) -> Point | None:
        aim = target
        while True:
            found = cheapest(self._scout, self._knobs, min(aim, 1.0), self._k, self._near)
            if found is None:
                return None
            self._near = found
            point = self._judge(found.settings)
            if point.low >= target:
                return point
            if aim >= 1.0:
                return None
            aim += max(target - point.low, (1.0 - aim) / 8)


def snapshot_search(snapshot: Snapshot, selectors: Sequence[BoolArray] | None = None) -> Search:
    """Give the search of an index's snapshot in the form that is tuned; selectors as of `Snapshot.search`."""

    def search(queries: FloatArray, k: int, settings: Mapping[str, int]) -> tuple[FloatArray, IntArray]:
        return snapshot.search(queries, k, selectors, settings)

    return search
