"""Plots of bench_index: overlap against queries a second, and growth over the number of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.vectors import QUERIES


def _pyplot(salt: str) -> Any:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = salt
    from matplotlib import pyplot

    return pyplot


def draw_overlap(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw a panel a query set: overlap_at_10 over queries a second, a line a recipe and size, IndexFlatIP dotted."""
    pyplot = _pyplot("index")
    figure, axes = pyplot.subplots(1, len(QUERIES), figsize=(12, 4.2), sharey=True)
    for axis, kind in zip(axes, QUERIES, strict=True):
        for name, by_rows in found.items():
            for rows, figures in sorted(by_rows.items(), key=lambda each: int(each[0])):
                curve = sorted(figures["sets"][kind]["curve"], key=lambda each: each["batch_ms"])
                speed = [1000 / each["batch_ms"] for each in curve]
                overlap = [each["overlap_at_10"] for each in curve]
                (line,) = axis.plot(speed, overlap, marker=".", label=f"{name}, {int(rows):,}")
                flat = figures["sets"][kind]["flat"]["shipped_100_ms"]
                axis.axvline(1000 / flat, color=line.get_color(), linestyle=":", linewidth=1)
        axis.set(xscale="log", title=f"queries: {kind}", xlabel="queries a second, one core")
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="overlap_at_10", ylim=(0.7, 1.005))
    axes[-1].legend(fontsize=7)
    figure.suptitle("dotted: IndexFlatIP as shipped, batches of 100", fontsize=9)
    _save(figure, path)


def draw_growth(found: dict[str, dict[str, Any]], growth: dict[str, dict[str, float]], path: Path) -> None:
    """Draw build time, bytes and query time over rows, with the fitted exponents."""
    pyplot = _pyplot("growth")
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 4))
    panels = (
        ("build CPU time", "CPU minutes", lambda each: each["build"]["cpu_min"]),
        ("bytes beside the rows", "bytes", lambda each: each["bytes"]["beside_rows_bytes"]),
        ("query time, offset, 0.95", "CPU ms", lambda each: each["sets"]["offset"]["targets"]["0.95"]["batch_ms"]),
    )
    for axis, (title, unit, read) in zip(axes, panels, strict=True):
        for name, by_rows in found.items():
            sizes = sorted(by_rows, key=int)
            values = [read(by_rows[size]) for size in sizes]
            power = growth[name].get(title)
            label = name if power is None else f"{name}: N^{power:.2f}"
            axis.plot([int(size) for size in sizes], values, marker="o", label=label)
        axis.set(xscale="log", yscale="log", title=title, xlabel="rows", ylabel=unit)
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=7)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
