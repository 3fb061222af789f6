"""Few-shot curves: accuracy of a linear probe on k examples a label, over several draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import InputError, MissingExtraError
from bindsearch.probe.linear import INVERSE_PENALTY, fit_probe

if TYPE_CHECKING:
    from bindsearch.types import FloatArray, IntArray


@dataclass(frozen=True)
class Cell:
    """Accuracy at one number of shots.

    Attributes:
        shots: examples a label.
        draws: accuracy of each draw on the same test items.
    """

    shots: int
    draws: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the draws."""
        return float(np.mean(self.draws))

    @property
    def deviation(self) -> float:
        """Standard deviation over the draws (of a sample); 0 for one draw."""
        return float(np.std(self.draws, ddof=1)) if len(self.draws) > 1 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON types."""
        return {
            "shots": self.shots,
            "mean": round(self.mean, 5),
            "deviation": round(self.deviation, 5),
            "min": round(min(self.draws), 5),
            "max": round(max(self.draws), 5),
            "draws": [round(value, 5) for value in self.draws],
        }


@dataclass(frozen=True)
class Curve:
    """Accuracy over the number of shots.

    Attributes:
        cells: one a number of shots.
        labels: how many.
        items, tested: labelled items, and those of them that only test.
        majority: share of the most frequent label among the tested.
        left_out: numbers of shots for which a label has too few examples, and that label.
    """

    cells: tuple[Cell, ...]
    labels: int
    items: int
    tested: int
    majority: float
    left_out: tuple[tuple[int, str], ...] = ()

    @property
    def chance(self) -> float:
        """What guessing among the labels gets."""
        return 1 / self.labels

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON types."""
        return {
            "labels": self.labels,
            "items": self.items,
            "tested": self.tested,
            "chance": round(self.chance, 5),
            "majority": round(self.majority, 5),
            "cells": [cell.to_json() for cell in self.cells],
            "left_out": [{"shots": shots, "label": label} for shots, label in self.left_out],
        }


def few_shot(
    rows: FloatArray,
    labels: Sequence[str],
    shots: Sequence[int] = (1, 2, 4, 8),
    repeats: int = 5,
    *,
    units: Sequence[str] | None = None,
    test_share: float = 0.5,
    inverse_penalty: float = INVERSE_PENALTY,
    seed: int = 0,
) -> Curve:
    """Measure a linear probe on k examples a label, for several k and several draws.

    Args:
        rows: (n, d) float32 unit rows. Not modified.
        labels: n names.
        shots: numbers of examples a label.
        repeats: draws a number of shots.
        units: n names of what belongs together (spans of one recording): never in both halves, and one example of a
            draw each; None: every item by itself.
        test_share: share of the units that only test, drawn label by label; the same for all draws.
        inverse_penalty: see `fit_probe`.
        seed: of all draws.

    Raises:
        InputError: a number that makes no sense, fewer than two labels, or no number of shots that can be drawn.
    """
    _check_numbers(shots, repeats, test_share)
    names = np.array(list(labels))
    unit = np.arange(len(names)) if units is None else np.unique(np.array(list(units)), return_inverse=True)[1]
    classes = sorted(set(names.tolist()))
    if len(classes) < 2:
        raise InputError(f"probe: expected at least two labels, got {', '.join(map(repr, classes)) or 'none'}.")
    rng = np.random.default_rng(seed)
    tests = _test_units(names, unit, classes, test_share, rng)
    tested = np.flatnonzero(np.isin(unit, tests))
    if not len(tested):
        most = max(len(set(unit[names == name].tolist())) for name in classes)
        raised = f"Raise --test-share to {math.ceil(1000 / most) / 1000:g} or more, or label" if most > 1 else "Label"
        raise InputError(
            f"probe: a test share of {test_share:g} leaves no item to test: no label has more than {most} examples. "
            f"{raised} more items."
        )
    pool = {name: np.flatnonzero((names == name) & ~np.isin(unit, tests)) for name in classes}
    room = {name: len(set(unit[here].tolist())) for name, here in pool.items()}
    scarce = min(classes, key=lambda name: room[name])
    left_out = tuple((k, scarce) for k in shots if k > room[scarce])
    if len(left_out) == len(shots):
        raise InputError(
            f"probe: {scarce!r} has {room[scarce]} examples to draw from beside those that test, {min(shots)} are "
            "needed. Label more items, ask for fewer --shots, or lower --test-share."
        )
    cells = []
    for k in (k for k in shots if k <= room[scarce]):
        draws = []
        for _ in range(repeats):
            drawn = np.concatenate([_draw(pool[name], unit, k, rng) for name in classes])
            probe = fit_probe(rows[drawn], names[drawn].tolist(), inverse_penalty)
            draws.append(float(np.mean(np.array(probe.predict(rows[tested])) == names[tested])))
        cells.append(Cell(k, tuple(draws)))
    majority = float(np.unique(names[tested], return_counts=True)[1].max() / len(tested))
    return Curve(tuple(cells), len(classes), len(names), len(tested), majority, left_out)


def _check_numbers(shots: Sequence[int], repeats: int, test_share: float) -> None:
    if not shots or min(shots) < 1 or repeats < 1:
        raise InputError(f"probe: expected shots and repeats from 1, got shots {list(shots)}, repeats {repeats}.")
    if not 0 < test_share < 1:
        raise InputError(f"probe: expected a test share between 0 and 1, got {test_share}.")


def _test_units(names: Any, unit: IntArray, classes: Sequence[str], share: float, rng: np.random.Generator) -> IntArray:
    """Draw the units that test, label by label; a unit of several labels belongs to the first of them."""
    first: dict[int, Any] = {}
    for place, each in enumerate(unit.tolist()):
        first.setdefault(each, names[place])
    chosen: list[int] = []
    for name in classes:
        own = np.array([each for each, label in first.items() if label == name], dtype=np.int64)
        chosen += rng.permutation(own)[: round(share * len(own))].tolist()
    return np.array(chosen, dtype=np.int64)


def _draw(pool: IntArray, unit: IntArray, k: int, rng: np.random.Generator) -> IntArray:
    """Draw k rows of different units."""
    shuffled = rng.permutation(pool)
    _, first = np.unique(unit[shuffled], return_index=True)
    drawn: IntArray = shuffled[np.sort(first)[:k]]
    return drawn


def plot_curves(curves: Mapping[str, Curve], path: str | Path, title: str = "") -> Path:
    """Draw accuracy over shots, a line a modality with its deviation over draws, and chance.

    Args:
        curves: by modality. Not modified.
        path: .svg, .png or .pdf; folders on the way are made.
        title: above the plot.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "probe", "a plot of a linear probe") from error
    with mpl.rc_context({"svg.hashsalt": "probe"}):
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.subplots()
        for name, curve in curves.items():
            shots = [cell.shots for cell in curve.cells]
            means, spreads = [cell.mean for cell in curve.cells], [cell.deviation for cell in curve.cells]
            axes.errorbar(shots, means, yerr=spreads, marker="o", capsize=3, label=name)
        chance = next(iter(curves.values())).chance
        axes.axhline(chance, color="black", linewidth=0.8, linestyle=":", label="chance")
        ticks = sorted({cell.shots for curve in curves.values() for cell in curve.cells})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("examples a label")
        axes.set_ylabel("accuracy")
        axes.set_title(title, fontsize=10)
        axes.legend(fontsize=8)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
    return path
