"""Ranks, recall, average precision and their intervals; equal scores are never resolved by luck.

Scores are cosines in float64, rounded to nine decimals: what differs by less is a tie (the rows on disk are float16,
and identical rows must tie whatever the order of the sums). Two rules for ties, named wherever a figure is printed:

    pessimistic   among equal scores every wrong answer stands before every right one (the default)
    expected      the mean over all orders of the equal ones

95 % intervals: Wilson's for shares of queries, the percentile bootstrap over groups of queries that belong together
(captions of one clip) for what is no share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import InputError, ShapeError, UnknownNameError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.types import BoolArray, FloatArray, IntArray

    Real = NDArray[np.float64]
    Relevance = Callable[[slice], BoolArray]

TIES = ("pessimistic", "expected")
DECIMALS = 9
ROUNDS = 1000

_Z = 1.959963984540054
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Figure:
    """A measured figure with its 95 % interval.

    Attributes:
        value: the figure.
        low, high: ends of the interval.
        n: how many queries (or items) it rests on.
        interval: "wilson" or "bootstrap".
    """

    value: float
    low: float
    high: float
    n: int
    interval: str

    def to_json(self) -> dict[str, Any]:
        """Write plain JSON types, six digits."""
        ends = {name: float(f"{getattr(self, name):.6g}") for name in ("value", "low", "high")}
        return {**ends, "n": self.n, "interval": self.interval}


def wilson(share: float, n: int) -> Figure:
    """Give a share of n independent trials with Wilson's 95 % interval.

    Args:
        share: in [0, 1]; may stand between two counts where ties are expected values.
        n: trials.

    Raises:
        InputError: no trial, or no share.

    Source: E. B. Wilson, 1927; z = 1.96.
    """
    if n < 1 or not 0 <= share <= 1:
        raise InputError(f"wilson: expected a share in [0, 1] of at least one trial, got {share} of {n}.")
    spread = 1 + _Z * _Z / n
    middle = (share + _Z * _Z / (2 * n)) / spread
    half = _Z * np.sqrt(share * (1 - share) / n + _Z * _Z / (4 * n * n)) / spread
    low, high = max(0.0, float(middle - half)), min(1.0, float(middle + half))
    return Figure(float(share), min(low, float(share)), max(high, float(share)), n, "wilson")


def bootstrap(
    values: Real, statistic: str = "mean", groups: IntArray | None = None, seed: int = 0, rounds: int = ROUNDS
) -> Figure:
    """Give a mean or median with the percentile bootstrap's 95 % interval.

    Args:
        values: (n,) float64, one a query. Not modified.
        statistic: "mean" or "median".
        groups: (n,) int64: queries of one number are drawn together, since they are not independent; None: each alone.
        seed: of the draws.
        rounds: how many draws.

    Raises:
        InputError: no value.
        UnknownNameError: another statistic.
    """
    if statistic not in ("mean", "median"):
        raise UnknownNameError("statistic", statistic, ("mean", "median"))
    if not values.size:
        raise InputError("bootstrap: no value to draw from.")
    order = np.argsort(values, kind="stable")
    ordered = values[order].astype(np.float64)
    group = np.arange(values.size) if groups is None else np.unique(groups, return_inverse=True)[1]
    group, count = group[order], int(group.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = np.empty(rounds)
    for number in range(rounds):
        weight = np.bincount(rng.integers(0, count, count), minlength=count)[group]
        if statistic == "mean":
            drawn[number] = float((weight * ordered).sum() / weight.sum())
        else:
            drawn[number] = _weighted_median(ordered, weight)
    value = float(ordered.mean()) if statistic == "mean" else float(np.median(ordered))
    low, high = (float(end) for end in np.percentile(drawn, [2.5, 97.5]))
    return Figure(value, min(low, value), max(high, value), int(values.size), "bootstrap")


def _weighted_median(ordered: Real, weight: IntArray) -> float:
    """Give the median of values in ascending order, value i being there weight[i] times."""
    ends = np.cumsum(weight)
    lower, upper = np.searchsorted(ends, [(ends[-1] + 1) // 2, ends[-1] // 2 + 1])
    return float(ordered[lower] + ordered[upper]) / 2


@dataclass(frozen=True)
class Judged:
    """How queries did: everything that recall, rank and average precision are made from.

    Attributes:
        above: (q,) int64: wrong answers that score higher than the best right one.
        tied_wrong, tied_right: (q,) int64: answers that score exactly as the best right one.
        right: (q,) int64: right answers in the gallery; 0: the query cannot be answered.
        gallery: (q,) int64: answers that were allowed.
        precision: (q,) float64 average precision under the rule `ties`; 0 where nothing is right.
        ties: the rule.
    """

    above: IntArray
    tied_wrong: IntArray
    tied_right: IntArray
    right: IntArray
    gallery: IntArray
    precision: Real
    ties: str

    def hits(self, k: int) -> Real:
        """Give, for each query, whether a right answer is among the best k: (q,) float64, under ties a probability."""
        room = k - self.above  # places that are left for the tied block
        if self.ties == "pessimistic":
            found = (self.tied_wrong < room).astype(np.float64)
        else:
            found = 1 - none_drawn(self.tied_wrong + self.tied_right, self.tied_right, room)
        return np.where(self.right > 0, found, 0.0)

    def ranks(self) -> Real:
        """Give the rank of the best right answer, from 1: (q,) float64; one behind the gallery where there is none."""
        if self.ties == "pessimistic":
            rank = self.above + self.tied_wrong + 1.0
        else:
            rank = self.above + (self.tied_wrong + self.tied_right + 1) / (self.tied_right + 1)
        return np.where(self.right > 0, rank, self.gallery + 1.0)

    def chance(self, k: int) -> Real:
        """Give the probability that a random order has a right answer among the first k: (q,) float64."""
        return 1 - none_drawn(self.gallery, self.right, np.full(self.gallery.shape, k, dtype=np.int64))

    def ties_matter(self) -> int:
        """Count the queries whose best right answer ties with a wrong one."""
        return int(((self.tied_wrong > 0) & (self.right > 0)).sum())


def none_drawn(total: IntArray, marked: IntArray, drawn: IntArray) -> Real:
    """Give the probability that a draw without replacement holds no marked one.

    Args:
        total: (q,) int64: things in the urn. Not modified.
        marked: (q,) int64: of them, marked. Not modified.
        drawn: (q,) int64: things drawn; below 0 means none, above `total` all. Not modified.

    Returns:
        (q,) float64: C(total - marked, drawn) / C(total, drawn).
    """
    out = np.ones(total.shape, dtype=np.float64)
    number = np.clip(drawn, 0, total)
    for step in range(int(number.max(initial=0))):
        left = np.maximum(total - marked - step, 0) / np.maximum(total - step, 1)
        out *= np.where(step < number, left, 1.0)
    return out


def check_ties(ties: str) -> None:
    """Refuse a rule for ties that there is not.

    Raises:
        UnknownNameError: naming those of TIES.
    """
    if ties not in TIES:
        raise UnknownNameError("rule for ties", ties, TIES)


def judge(
    queries: FloatArray,
    gallery: FloatArray,
    relevant: Relevance,
    barred: Relevance | None = None,
    ties: str = "pessimistic",
) -> Judged:
    """Score queries against a gallery and note where the right answers stand.

    Args:
        queries: (q, d) float32 unit rows. Not modified.
        gallery: (n, d) float32 unit rows. Not modified.
        relevant: gives for some queries, rows [start, stop), which answers are right: (stop - start, n) bool.
        barred: likewise, which answers are no answers (the query itself); None: every one is.
        ties: see TIES.

    Raises:
        ShapeError: queries and gallery have different d, or a relevance has another shape.
        UnknownNameError: no such rule.
    """
    check_ties(ties)
    if queries.shape[1:] != gallery.shape[1:]:
        raise ShapeError(f"evaluate: queries have shape {queries.shape}, the gallery {gallery.shape}.")
    wide = gallery.astype(np.float64)
    parts = [
        judge_scores(
            np.round(queries[block].astype(np.float64) @ wide.T, DECIMALS),
            relevant(block),
            None if barred is None else barred(block),
            ties,
        )
        for block in _blocks(len(queries), len(gallery))
    ]
    return join_judged(parts, ties)


def join_judged(parts: list[Judged], ties: str) -> Judged:
    """Put the judgements of several blocks of queries together, in their order."""
    whole = np.empty(0, dtype=np.int64)
    names = ("above", "tied_wrong", "tied_right", "right", "gallery")
    joined = {name: np.concatenate([whole, *(getattr(part, name) for part in parts)]) for name in names}
    return Judged(**joined, precision=np.concatenate([np.empty(0), *(part.precision for part in parts)]), ties=ties)


def judge_scores(scores: Real, relevant: BoolArray, barred: BoolArray | None = None, ties: str = TIES[0]) -> Judged:
    """Judge a block of scores.

    Args:
        scores: (q, n) float64, higher is better; equal ones are ties. Not modified.
        relevant: (q, n) bool. Not modified.
        barred: (q, n) bool, what is no answer; None: nothing. Not modified.
        ties: see TIES.

    Raises:
        ShapeError: the shapes differ.
        UnknownNameError: no such rule.
    """
    check_ties(ties)
    for what, mask in (("relevance", relevant), ("barred", barred)):
        if mask is not None and mask.shape != scores.shape:
            raise ShapeError(f"evaluate: scores have shape {scores.shape}, {what} {mask.shape}.")
    allowed = np.ones(scores.shape, dtype=bool) if barred is None else ~barred
    right = relevant & allowed
    score = np.where(allowed, scores, -np.inf)
    best = np.max(np.where(right, score, -np.inf), axis=1, initial=-np.inf)[:, None]
    wrong = allowed & ~right
    return Judged(
        above=(wrong & (score > best)).sum(axis=1).astype(np.int64),
        tied_wrong=(wrong & (score == best)).sum(axis=1).astype(np.int64),
        tied_right=(right & (score == best)).sum(axis=1).astype(np.int64),
        right=right.sum(axis=1).astype(np.int64),
        gallery=allowed.sum(axis=1).astype(np.int64),
        precision=average_precision(score, right, ties),
        ties=ties,
    )


def average_precision(scores: Real, right: BoolArray, ties: str = TIES[0]) -> Real:
    """Give the average precision of each query.

    Args:
        scores: (q, n) float64; -inf for what is no answer. Not modified.
        right: (q, n) bool. Not modified.
        ties: "pessimistic", or "expected": the mean over all orders of equal scores.

    Returns:
        (q,) float64; 0 where nothing is right.

    Raises:
        UnknownNameError: no such rule.

    Source: for expected ties, F. McSherry and M. Najork, "Computing information retrieval performance measures
    efficiently in the presence of tied scores", ECIR 2008.
    """
    check_ties(ties)
    order = np.lexsort((right, -scores), axis=1)  # among equals the wrong ones first
    hit = np.take_along_axis(right, order, axis=1)
    place = np.arange(1, scores.shape[1] + 1)
    total = np.maximum(hit.sum(axis=1), 1)
    precision = np.asarray((hit * (hit.cumsum(axis=1) / place)).sum(axis=1) / total, dtype=np.float64)
    if ties == "expected":
        ordered = np.take_along_axis(scores, order, axis=1)
        for row in np.flatnonzero(_crossing(ordered, hit)):
            precision[row] = _expected_precision(ordered[row], hit[row])
    return precision


def _crossing(ordered: Real, hit: BoolArray) -> BoolArray:
    """Say which rows have neighbours of equal score, one right and one wrong."""
    same = ordered[:, 1:] == ordered[:, :-1]
    return np.asarray((same & (hit[:, 1:] != hit[:, :-1])).any(axis=1))


def _expected_precision(ordered: Real, hit: BoolArray) -> float:
    """Average the precision at each right answer over all orders of equal scores; scores are in descending order."""
    starts = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1])
    sizes = np.diff(np.concatenate([starts, [ordered.size]]))
    rights = np.add.reduceat(hit.astype(np.int64), starts)
    total, before = 0.0, 0
    for start, size, right in zip(starts.tolist(), sizes.tolist(), rights.tolist(), strict=True):
        if right:
            place = np.arange(size)  # wrong or right ones of the block that stand before
            among = place * (right - 1) / max(size - 1, 1)
            total += right / size * float(((before + 1 + among) / (start + place + 1)).sum())
        before += right
    return total / max(before, 1)


def _blocks(queries: int, gallery: int) -> Iterator[slice]:
    step = max(1, _BLOCK_BYTES // (8 * max(gallery, 1)))
    for start in range(0, queries, step):
        yield slice(start, min(start + step, queries))
