"""What indexes took where they were measured, carried over to other sizes and machines.

growth.json is written by `python -m benchmarks.bench_index law`: for each recipe, at several numbers of rows, CPU
milliseconds a query at several overlaps (of the query set that took longest) and seconds of building, beside the rates
of the machine that measured. Between and beyond the measured sizes a power law holds, for scans of all rows a straight
line; another machine scales by the rate that the recipe depends on. It is a forecast, there to choose what to build;
what was built is measured.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from bindsearch.index.rates import Rates
from bindsearch.index.recipe import Recipe

FILE = Path(__file__).with_name("growth.json")


@dataclass(frozen=True)
class Growth:
    """The measurements of one recipe.

    Attributes:
        scales_with: name of the rate of `Rates` that its time depends on.
        dim: columns of the rows measured.
        rates: of the machine that measured.
        points: a number of rows each: {"rows", "build_s", "ms": {overlap: milliseconds}}, ascending.
    """

    scales_with: str
    dim: int
    rates: Rates
    points: Sequence[Mapping[str, Any]]

    def ms(self, rows: int, dim: int, recall: float, rates: Rates) -> float:
        """Forecast the CPU milliseconds of a query asked alone, at an overlap."""
        measured = [(float(point["rows"]), _at_overlap(point["ms"], recall)) for point in self.points]
        scans_all = all("1" in point["ms"] for point in self.points)
        return (straight if scans_all else power_law)(measured, rows) * self._scale(dim, rates)

    def build_s(self, rows: int, dim: int, rates: Rates) -> float:
        """Forecast the CPU seconds of building."""
        measured = [(float(point["rows"]), float(point["build_s"])) for point in self.points]
        return power_law(measured, rows) * self._scale(dim, rates)

    def recall_within(self, rows: int, dim: int, latency_ms: float, rates: Rates) -> float:
        """Forecast the largest overlap that a query reaches within a time: 1 at most, 0 where none does."""
        if self.ms(rows, dim, 1.0, rates) <= latency_ms:
            return 1.0
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if self.ms(rows, dim, middle, rates) <= latency_ms else (low, middle)
        return low

    def _scale(self, dim: int, rates: Rates) -> float:
        return dim / self.dim * self.rates.of(self.scales_with) / rates.of(self.scales_with)


def power_law(measured: Sequence[tuple[float, float]], at: float) -> float:
    """Carry measurements to another size: exact at each, a power law between two, the fitted one beyond the ends.

    Args:
        measured: (size, value), ascending, both above 0; with one alone the value grows like the size.
        at: the size wanted.
    """
    if len(measured) == 1:
        return measured[0][1] * at / measured[0][0]
    for (left, low), (right, high) in itertools.pairwise(measured):
        if left <= at <= right:
            share = math.log(at / left) / math.log(right / left)
            return math.exp((1 - share) * math.log(low) + share * math.log(high))
    size, value = measured[0] if at < measured[0][0] else measured[-1]
    return value * float((at / size) ** exponent(measured))


def straight(measured: Sequence[tuple[float, float]], at: float) -> float:
    """Carry measurements of a scan of all rows to another size: so much a row, and what a query takes besides.

    Args:
        measured: as of `power_law`.
        at: the size wanted.
    """
    if len(measured) == 1:
        return power_law(measured, at)
    right = next((number for number in range(1, len(measured)) if measured[number][0] >= at), len(measured) - 1)
    (x0, y0), (x1, y1) = measured[right - 1], measured[right]
    return max(y0 + (y1 - y0) / (x1 - x0) * (at - x0), 0.1 * min(y0, y1))


def exponent(measured: Sequence[tuple[float, float]]) -> float:
    """Fit the power of a power law: least squares in logarithms."""
    sizes, values = ([math.log(pair[side]) for pair in measured] for side in (0, 1))
    mean_size, mean_value = sum(sizes) / len(sizes), sum(values) / len(values)
    spread = sum((size - mean_size) ** 2 for size in sizes)
    return sum((s - mean_size) * (v - mean_value) for s, v in zip(sizes, values, strict=True)) / spread


def _at_overlap(ms: Mapping[str, float], recall: float) -> float:
    """Interpolate times over overlaps: straight in log(time) over log(1 - overlap), beyond the ends too."""
    known = sorted((float(overlap), value) for overlap, value in ms.items())
    exact = [value for overlap, value in known if overlap >= 1.0]
    pairs = [(-math.log(1 - overlap), math.log(value)) for overlap, value in known if overlap < 1.0]
    if not pairs:
        return exact[0]
    wanted = -math.log(max(1e-9, 1 - recall))
    if len(pairs) == 1:
        return math.exp(pairs[0][1])
    right = next((at for at in range(1, len(pairs)) if pairs[at][0] >= wanted), len(pairs) - 1)
    (x0, y0), (x1, y1) = pairs[right - 1], pairs[right]
    return math.exp(y0 + max(0.0, (y1 - y0) / (x1 - x0)) * (wanted - x0))


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return table


def growth_of(recipe: Recipe, table: Mapping[str, Any] | None = None) -> Growth | None:
    """Find the measurements of a recipe's backend; None where nobody measured it."""
    table = table if table is not None else _table()
    found = table["recipes"].get(f"{recipe.backend} {recipe.row_dtype}")
    if found is None or not found["points"]:
        return None
    return Growth(found["scales_with"], found["dim"], Rates(**found["rates"]), found["points"])
