"""Search settings from measurements: the cheapest that give the overlap asked for, on queries like those to come.

`knobs.py` looks for settings; here they are measured, and what is chosen must hold on all held-out queries: the lower
confidence bound of their mean overlap, not the mean, has to reach what was asked, so that the allowance shrinks as the
sample grows (docs/adr/0109).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.index.knobs import Knobs, Point, cheapest, front

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.index.snapshot import Snapshot
    from bindsearch.types import BoolArray, FloatArray, IntArray

CONFIDENCE = 0.95
BATCH = 500
"""Queries a batch while measuring throughput; `ms` of a query asked alone is measured apart."""
SCOUTS = 256
"""Queries that the search for settings uses; all of them confirm what it found."""

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
            -inf where a query has none.
        own: (q,) int64 id of the indexed row that a query is, left out of its answers; -1: it is none.
        selectors: a mask a segment of the rows that may be answers; None: all.
        answers: how many true answers each query has, where those are fewer than are asked for.
    """

    modality: str
    source: str
    queries: FloatArray
    least: FloatArray
    own: IntArray
    selectors: tuple[BoolArray, ...] | None = None
    answers: int | None = None

    def first(self, count: int) -> Sample:
        """Give the first queries alone."""
        part = slice(0, count)
        return replace(self, queries=self.queries[part], least=self.least[part], own=self.own[part])

    def __len__(self) -> int:
        """Count the queries."""
        return int(self.queries.shape[0])


class Measure:
    """Measures settings on a sample, each once.

    What is worth it is timed at least twice, and the least time counts: pages of mapped files that nobody has read yet
    make a first search several times as long, and those who look farther come to more of them.

    Attributes:
        sample: the queries.
        points: all that was measured so far.
        worth: the overlap from which on the time matters.
    """

    def __init__(self, search: Search, sample: Sample, k: int, of: int | None = None) -> None:
        """Take what searches; results are compared with `sample.least`. The sample is the first of `of` queries."""
        self._search, self.sample, self._k, self._of = search, sample, k, of or len(sample)
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
                overlaps = overlap_at_k(scores, ids, self.sample.least, own, self.sample.answers or self._k)
            elif time.process_time() - began >= _LEAST_S:
                break
            if overlaps.mean() < self.worth:
                break
        ms = max(min(times) / len(queries) * 1e3, 1e-6)
        return Point(settings, float(overlaps.mean()), lower_bound(overlaps), lower_bound(overlaps, self._of), ms)

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
        (q,) float64. Equal scores count alike, whichever of them was found. Of nothing, all was found: 1.
    """
    right = (scores >= least[:, None]) & (ids >= 0) & (ids != own[:, None])
    shares = np.minimum(right.sum(axis=1), k) / float(k)
    return np.asarray(np.where(np.isneginf(least), 1.0, shares), dtype=np.float64)


def lower_bound(overlaps: NDArray[np.float64], count: int | None = None) -> float:
    """Bound the mean overlap of all such queries from below, with CONFIDENCE that the true mean is above.

    One-sided normal bound of the mean, with one more query that finds nothing: a sample that was answered perfectly has
    no spread, which does not mean that the next query is answered perfectly too.

    Args:
        overlaps: (q,) in [0, 1]. Not modified.
        count: of a larger sample that this one is part of: the bound that it would give if it were like this one.
    """
    count = count or len(overlaps)
    centred = overlaps - overlaps.mean()
    error = math.sqrt(float(centred @ centred) / max(len(overlaps) - 1, 1) / count)
    mean = float(overlaps.mean()) * count / (count + 1)
    return max(0.0, mean - NormalDist().inv_cdf(CONFIDENCE) * error)


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

    Scouts find the cheapest settings that all queries should confirm; all queries confirm the lower bound. Where it
    falls short, the scouts look for that much more, near to what they found.
    """

    def __init__(self, search: Search, sample: Sample, knobs: Knobs, k: int) -> None:
        """Take what is tuned, held-out queries, what can be turned, and how many answers a query has."""
        self._sample, self._knobs, self._k = sample, knobs, k
        self._scout, self._judge = Measure(search, sample.first(SCOUTS), k, len(sample)), Measure(search, sample, k)
        self._near: Point | None = None

    def __call__(self, target: float) -> Tuned:
        """Find the cheapest settings whose overlap reaches a target with confidence; lower targets come first."""
        self._scout.worth = self._judge.worth = target
        if self._knobs.exact:
            proven = replace(self._judge({}), low=1.0)
            return Tuned(self._sample, proven, proven, self._judge.alone_ms({}), [proven])
        chosen = self._choose(target)
        widest = max(self._scout.points, key=lambda each: (each.overlap, -each.ms))
        if chosen is None and (widest.overlap >= target or not self._judge.points):
            point = self._judge(widest.settings)
            chosen = point if point.low >= target else None
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
        ceiling = lower_bound(np.ones(len(self._sample)))  # what a sample confirms that is answered perfectly
        aim = min(target, ceiling)
        while True:
            found = cheapest(self._scout, self._knobs, aim, self._k, self._near)
            if found is None:
                return None
            self._near = found
            point = self._judge(found.settings)
            if point.low >= target:
                return point
            if aim >= ceiling:
                return None
            aim = min(ceiling, aim + max(target - point.low, (1.0 - aim) / 8))


def snapshot_search(snapshot: Snapshot, selectors: Sequence[BoolArray] | None = None) -> Search:
    """Give the search of an index's snapshot in the form that is tuned; selectors as of `Snapshot.search`."""

    def search(queries: FloatArray, k: int, settings: Mapping[str, int]) -> tuple[FloatArray, IntArray]:
        return snapshot.search(queries, k, selectors, settings)

    return search
