"""How well held-out pairs find each other, and the curves of a run as JSON and as a plot."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bindsearch.store.files import commit_bytes

if TYPE_CHECKING:
    from bindsearch.types import FloatArray

AT = (1, 5, 10)


def recall_figures(
    others: FloatArray, anchors: FloatArray, fits: NDArray[np.bool_], labels: Sequence[str | None] | None = None
) -> dict[str, float]:
    """Measure retrieval among held-out pairs, both ways.

    Args:
        others: (n, d) float32 unit rows. Not modified.
        anchors: (n, d) float32 unit rows; row i is paired with row i of the others. Not modified. Rows of either side
            that are not finite are never found, and stand before what they do not belong to.
        fits: (n, n) bool: other i and anchor j are a pair, or show the same file.
        labels: of each pair, where there are; None where one has none.

    Returns:
        "b->a recall_at_1" and so on, for k below n: the share of queries with a fitting row among the first k, of equal
        scores the unfitting ones counted first; "b->a label" is the share whose best row has the query's label.
    """
    scores = others @ anchors.T
    figures: dict[str, float] = {}
    for name, table, right in (("b->a", scores, fits), ("a->b", scores.T, fits.T)):
        sure = np.where(np.isfinite(table), table, np.where(right, -np.inf, np.inf))
        best = np.where(right, sure, -np.inf).max(axis=1)
        ranks = np.where(np.isfinite(best), 1 + (~right & (sure >= best[:, None])).sum(axis=1), np.inf)
        figures |= {
            f"{name} recall_at_{k}": round(float((ranks <= k).mean()), 4) for k in AT if k == 1 or k < len(fits)
        }
        if labels is not None:
            known = np.array([label is not None for label in labels])
            codes = np.unique([label or "" for label in labels], return_inverse=True)[1]
            found = (codes[sure.argmax(axis=1)] == codes) & np.isfinite(sure.max(axis=1))
            figures[f"{name} label"] = round(float(found[known].mean()), 4)
    return figures


def write_curves(notes: dict[str, Any], folder: Path) -> None:
    """Write loss and retrieval over the steps as curves.json, and as curves.svg where matplotlib is installed.

    Args:
        notes: of `train_stage`: step, seconds, curve with at least one point. Not modified.
        folder: of the run.
    """
    text = json.dumps({name: notes[name] for name in ("step", "seconds", "curve")}, indent=1)
    commit_bytes(folder / "curves.json", (text + "\n").encode("ascii"))
    try:
        import matplotlib as mpl
    except ImportError:
        return
    with mpl.rc_context({"svg.hashsalt": "bindsearch"}):
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.2))
        FigureCanvasSVG(figure)
        left, right = figure.subplots(1, 2)
        steps = [point["step"] for point in notes["curve"]]
        left.plot(steps, [point["loss"] for point in notes["curve"]], marker=".")
        left.set(title="loss", xlabel="step")
        for name in [key for key in notes["curve"][-1] if key not in ("step", "loss")]:
            right.plot(steps, [point[name] for point in notes["curve"]], label=name, marker=".")
        right.set(title="held-out pairs", xlabel="step", ylim=(0, 1.02))
        right.legend(fontsize=7, loc="lower right")
        figure.tight_layout()
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    commit_bytes(folder / "curves.svg", drawn.getvalue())
