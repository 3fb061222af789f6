"""One figure, and how it is measured: repeated until its time is up, the median is told."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

FEWEST = 3
MOST = 200


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        part: "limits", "rates", "start" or "index".
        name: what was measured.
        value: median over the runs.
        unit: of the value.
        low, high: least and greatest of the runs.
        runs: how many there were.
        note: what a reader must know beside it.
    """

    part: str
    name: str
    value: float
    unit: str
    low: float
    high: float
    runs: int
    note: str = ""


def seconds_of(run: Callable[[], object], budget_s: float, fewest: int = FEWEST) -> list[float]:
    """Time calls until a budget is used up, after one that is not counted.

    Args:
        run: what is timed; it must have finished when it returns.
        budget_s: wall-clock seconds for all of them; where the first call alone takes longer, it is what counts.
        fewest: calls that are counted in any other case.

    Returns:
        Wall-clock seconds of each counted call.
    """
    began = time.perf_counter()
    run()
    first_s = time.perf_counter() - began
    if first_s > budget_s:
        return [first_s]
    found: list[float] = []
    while len(found) < fewest or (time.perf_counter() - began < budget_s and len(found) < MOST):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return found


def rate_figure(part: str, name: str, unit: str, work: float, times: list[float], note: str = "") -> Figure:
    """Turn times of equal work into a rate: work over the median time."""
    return Figure(
        *(part, name, work / statistics.median(times), unit),
        *(work / max(times), work / min(times), len(times)),
        note=note,
    )


def time_figure(part: str, name: str, unit: str, times: list[float], scale: float = 1.0, note: str = "") -> Figure:
    """Give the median of times, multiplied by `scale`."""
    return Figure(
        part, name, statistics.median(times) * scale, unit, min(times) * scale, max(times) * scale, len(times), note
    )
