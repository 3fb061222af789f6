"""The modality gap: how far apart modalities lie in one joint space, measured and drawn.

Contrastive spaces leave each modality in a cone of its own (W. Liang et al., "Mind the gap", NeurIPS 2022). Measured,
as the rows are stored and with each modality's mean taken away (`bindsearch index --centre`):

    centroid_norm      |mean of unit rows|: 1 is one direction, 0 none; with `spread` = 1 - centroid_norm²
    uniformity         log mean exp(-2 |x - y|²) over pairs of items: 0 is one point, lower is more evenly spread;
                       of two modalities over all their items together
    centroid_distance  |mean of A - mean of B|
    alignment          mean |a - b|² over true pairs: 0 is the same point
    nearer_own         share of items nearer to their own modality's mean than to the other's, each modality weighing
                       the same; 0.5 where there is no gap. As stored, the means are of the other nine tenths of the
                       items: an item, or its true pair, draws a mean of few items to itself

Alignment and uniformity: T. Wang and P. Isola, ICML 2020, with alpha = 2 and t = 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import InputError
from bindsearch.evaluate.report import check_plot
from bindsearch.evaluate.rows import Rows, codes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Real = NDArray[np.float64]

LARGEST_SAMPLE = 2000
"""Items a modality that uniformity and the drawing take at most; all pairs of them are seen."""
DRAWN = 300
PARTS = 10
"""Parts whose items are compared with the means of the others' items."""
_BLOCK = 512


def measure_gap(rows: Rows, pair: str | None = None, seed: int = 0) -> dict[str, Any]:
    """Measure the gap between all pairs of modalities, as stored and centred.

    Args:
        rows: what is embedded. Not modified.
        pair: column whose equal values are true pairs; None: "pair" or "group" where there is one, else no alignment.
        seed: of the samples.

    Returns:
        Plain JSON types: source, space_id, pair, sample, left_out (modality -> why it cannot be measured), and for
        `stored` and `centred`: modalities (name -> n, centroid_norm, spread, uniformity) and pairs (a, b,
        centroid_distance, uniformity, nearer_own; with true pairs matched, alignment, cosine_matched, cosine_other).

    Raises:
        InputError: no modality can be measured: each has fewer than two items, or one that is the mean of them all.
    """
    column = rows.pair_column(pair)
    value = None if column is None else codes(rows.column(column))
    vectors: dict[str, Real] = {}
    moved: dict[str, Real] = {}
    left_out: dict[str, str] = {}
    for name in rows.modalities:
        whole = rows.vectors[rows.where(name)].astype(np.float64)
        try:
            moved[name] = centred(whole)
        except InputError as error:
            left_out[name] = str(error)
        else:
            vectors[name] = whole
    if not vectors:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise InputError(f"{rows.source}: no modality can be measured: {reasons}. Embed more items.")
    places = {name: rows.where(name) for name in vectors}
    numbers = {name: np.full(here.size, -1) if value is None else value[here] for name, here in places.items()}
    return {
        "source": rows.source,
        "space_id": rows.space_id,
        "pair": column,
        "sample": LARGEST_SAMPLE,
        "left_out": left_out,
        "stored": _measure(vectors, numbers, {name: _parts_of(vectors[name], numbers[name]) for name in vectors}, seed),
        "centred": _measure(moved, numbers, {name: _one_part(moved[name]) for name in vectors}, seed),
    }


def centred(rows: Real) -> Real:
    """Take the mean from rows and normalise them again: (n, d) float64 -> (n, d) float64 unit rows.

    Raises:
        InputError: fewer than two rows, or one of them is the mean.
    """
    if len(rows) < 2:
        raise InputError("one item alone has no spread")
    moved = rows - rows.mean(axis=0)
    norms = np.linalg.norm(moved, axis=1, keepdims=True)
    if (norms < 1e-6).any():
        raise InputError("an item is the mean of them all; nothing is left of it when that is taken away")
    return np.asarray(moved / norms, dtype=np.float64)


def _measure(
    vectors: Mapping[str, Real],
    numbers: Mapping[str, NDArray[np.int64]],
    parts: Mapping[str, _Parts],
    seed: int,
) -> dict[str, Any]:
    means = {name: part.mean(axis=0) for name, part in vectors.items()}
    samples = {name: _sample(part, seed) for name, part in vectors.items()}
    modalities = {
        name: {
            "n": len(part),
            "centroid_norm": _plain(np.linalg.norm(means[name])),
            "spread": _plain(1 - (means[name] ** 2).sum()),
            "uniformity": _plain(uniformity(samples[name])),
        }
        for name, part in vectors.items()
    }
    names = list(vectors)
    pairs = []
    for place, a in enumerate(names):
        for b in names[place + 1 :]:
            record: dict[str, Any] = {
                "a": a,
                "b": b,
                "centroid_distance": _plain(np.linalg.norm(means[a] - means[b])),
                "uniformity": _plain(uniformity(np.concatenate([samples[a], samples[b]]))),
                "nearer_own": _plain((parts[a].nearer_than(parts[b]) + parts[b].nearer_than(parts[a])) / 2),
            }
            record.update(_align((vectors[a], numbers[a]), (vectors[b], numbers[b]), means[a] @ means[b]))
            pairs.append(record)
    return {"modalities": modalities, "pairs": pairs}


def uniformity(rows: Real) -> float:
    """Give log mean exp(-2 |x - y|²) over all pairs of different rows.

    Args:
        rows: (n, d) float64 unit rows, at least two. Not modified.

    Source: T. Wang and P. Isola 2020, equation 3, t = 2.
    """
    total = 0.0
    for start in range(0, len(rows), _BLOCK):
        kernel = np.exp(-2 * np.maximum(2 - 2 * rows[start : start + _BLOCK] @ rows.T, 0))
        places = np.arange(len(kernel))
        kernel[places, places + start] = 0
        total += float(kernel.sum())
    return float(np.log(max(total, np.finfo(np.float64).tiny) / (len(rows) * (len(rows) - 1))))


@dataclass(frozen=True)
class _Parts:
    """A modality cut in parts, and the mean that the items of each part are compared with.

    Attributes:
        rows: (n, d) float64.
        parts: (n,) int64 from 0 to p - 1.
        means: (p, d) float64.
    """

    rows: Real
    parts: NDArray[np.int64]
    means: Real

    def nearer_than(self, other: _Parts) -> float:
        """Give the share of rows that are nearer to their own modality's mean than to another's, ties for half."""
        total = 0.0
        for part, (own, others) in enumerate(zip(self.means, other.means, strict=True)):
            axis, middle = own - others, (own @ own - others @ others) / 2
            side = self.rows[self.parts == part] @ axis - middle
            scale = 1e-12 + 1e-9 * np.linalg.norm(axis)
            total += float((side > scale).sum() + (np.abs(side) <= scale).sum() / 2)
        return total / len(self.rows)


def _parts_of(rows: Real, numbers: NDArray[np.int64]) -> _Parts:
    """Cut rows in parts, true pairs together, each compared with the mean of what is outside it."""
    places = np.arange(len(rows))
    parts = np.where(numbers < 0, places, numbers) % PARTS
    if len(np.unique(parts)) < 2:  # all are one another's pairs
        parts = places % PARTS
    sums = (parts == np.arange(PARTS)[:, None]).astype(np.float64) @ rows
    outside = len(rows) - np.bincount(parts, minlength=PARTS)
    return _Parts(rows, parts, (sums.sum(axis=0) - sums) / outside[:, None])


def _one_part(rows: Real) -> _Parts:
    """Compare centred rows with the mean of all: each item's own share of it was taken away with it."""
    return _Parts(rows, np.zeros(len(rows), dtype=np.int64), rows.mean(axis=0)[None])


def _align(
    a: tuple[Real, NDArray[np.int64]], b: tuple[Real, NDArray[np.int64]], mean_cosine: float
) -> dict[str, float | int]:
    """Measure true pairs: every item of one with every item of the other that has the same number.

    The cosines of a group add up to the product of its two sums: memory grows with the items, not with the pairs.
    """
    (numbers_a, counts_a, sums_a), (numbers_b, counts_b, sums_b) = _grouped(*a), _grouped(*b)
    _, in_a, in_b = np.intersect1d(numbers_a, numbers_b, assume_unique=True, return_indices=True)
    matched = int(counts_a[in_a] @ counts_b[in_b])
    if not matched:
        return {"matched": 0}
    total = float((sums_a[in_a] * sums_b[in_b]).sum())
    cosine = total / matched
    everything = len(a[1]) * len(b[1])
    return {
        "matched": matched,
        "alignment": _plain(2 - 2 * cosine),
        "cosine_matched": _plain(cosine),
        "cosine_other": _plain((mean_cosine * everything - total) / max(everything - matched, 1)),
    }


def _grouped(rows: Real, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], Real]:
    """Give each number from 0 on, (g,) ascending, how many rows have it, (g,), and their sum, (g, d)."""
    order = np.argsort(numbers, kind="stable")[np.count_nonzero(numbers < 0) :]
    found, first, counts = np.unique(numbers[order], return_index=True, return_counts=True)
    sums = np.add.reduceat(rows[order], first) if found.size else rows[:0]
    return found, counts, np.asarray(sums)


def _sample(rows: Real, seed: int) -> Real:
    if len(rows) <= LARGEST_SAMPLE:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), LARGEST_SAMPLE, replace=False))]


def _plain(value: Any) -> float:
    return float(f"{float(value):.6g}")


# ---- for people ------------------------------------------------------------------------------------------------------


def to_text(result: Mapping[str, Any]) -> str:
    """Write a measured gap as tables: modalities, then pairs, each as stored and centred."""
    heads = (
        ("modality", "n", "centroid norm", "spread", "uniformity"),
        ("pair", "centroid distance", "nearer own", "uniformity", "alignment", "cosine of pairs", "of others"),
    )
    parts = []
    for state in ("stored", "centred"):
        found = result[state]
        modalities = [
            [name, str(each["n"]), *(_cell(each, key) for key in ("centroid_norm", "spread", "uniformity"))]
            for name, each in found["modalities"].items()
        ]
        keys = ("centroid_distance", "nearer_own", "uniformity", "alignment", "cosine_matched", "cosine_other")
        pairs = [[f"{each['a']} – {each['b']}", *(_cell(each, key) for key in keys)] for each in found["pairs"]]
        title = {"stored": "As stored", "centred": "With each modality's mean taken away"}[state]
        parts.append("\n".join([title, _table(heads[0], modalities)]))
        parts.append(_table(heads[1], pairs))
    pairs_by = f"pairs by {result['pair']}" if result["pair"] else "no column of pairs, so no alignment"
    left_out = "".join(f"\nleft out: {name}: {reason}" for name, reason in result["left_out"].items())
    return "\n\n".join([*parts, f"space {result['space_id']}; {pairs_by}; a gap of 0 has nearer own = 0.5{left_out}"])


def _cell(record: Mapping[str, Any], key: str) -> str:
    return f"{record[key]:.3f}" if key in record else ""


def _table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    whole = [list(head), *rows]
    widths = [max(len(row[column]) for row in whole) for column in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in whole)


@dataclass(frozen=True)
class Drawing:
    """Rows in the plane.

    Attributes:
        points: modality -> (n, 2) float64.
        explained: (2,) share of the variance on each axis.
    """

    points: Mapping[str, Real]
    explained: Real


def project(rows: Rows, modalities: Iterable[str], centre: bool, seed: int = 0) -> Drawing:
    """Project up to DRAWN items a modality on the two main axes of all of them together (PCA).

    Args:
        rows: what is embedded. Not modified.
        modalities: to draw.
        centre: take each modality's mean away first.
        seed: of the sample.
    """
    parts = {}
    for name in modalities:
        whole = rows.vectors[rows.where(name)].astype(np.float64)
        whole = centred(whole) if centre else whole
        chosen = np.random.default_rng(seed).permutation(len(whole))[:DRAWN]
        parts[name] = whole[np.sort(chosen)]
    together = np.concatenate(list(parts.values()))
    middle = together.mean(axis=0)
    _, strengths, axes = np.linalg.svd(together - middle, full_matrices=False)
    axes = axes[:2] * np.sign(axes[:2, :1] + (axes[:2, :1] == 0))  # the sign of an axis is free: fix it
    points = {name: (part - middle) @ axes.T for name, part in parts.items()}
    return Drawing(points, np.asarray(strengths[:2] ** 2 / (strengths**2).sum()))


def write_plot(rows: Rows, result: Mapping[str, Any], path: Path, seed: int = 0) -> Path:
    """Draw the items in the plane as stored and centred, and the figures of each pair as bars.

    Raises:
        InputError, MissingExtraError: as `evaluate.report.check_plot`.
    """
    check_plot(path)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "bindsearch"}):
        figure = Figure(figsize=(11, 7), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=(1.3, 1))
        top, bottom = parts
        for axes, state in zip(top.subplots(1, 2), ("stored", "centred"), strict=True):
            drawing = project(rows, result[state]["modalities"], state == "centred", seed)
            for name, points in drawing.points.items():
                axes.scatter(points[:, 0], points[:, 1], s=7, alpha=0.6, label=name, rasterized=True)
            axes.set_title(f"{state} (PCA, {100 * drawing.explained.sum():.0f} % of the variance)", fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.legend(fontsize=7)
        keys = ("centroid_distance", "nearer_own", "alignment")
        for axes, key in zip(bottom.subplots(1, 3), keys, strict=True):
            _draw_bars(axes, result, key)
        figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
    return path


def _draw_bars(axes: Any, result: Mapping[str, Any], key: str) -> None:
    """Draw one figure of all pairs, stored beside centred."""
    names = [f"{each['a']}–{each['b']}" for each in result["stored"]["pairs"]]
    for shift, state in ((-0.2, "stored"), (0.2, "centred")):
        values = [each.get(key, np.nan) for each in result[state]["pairs"]]
        axes.bar(np.arange(len(names)) + shift, values, 0.38, label=state)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    axes.set_title(key.replace("_", " "), fontsize=9)
    axes.margins(y=0.25)  # room above the bars for the legend
    axes.legend(fontsize=7, loc="upper right", ncols=2)
