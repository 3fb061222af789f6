"""Curves of a run: loss and retrieval of every stage as JSON, and as a plot where matplotlib is installed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bindsearch.config import to_json_dict
from bindsearch.train.config import TrainConfig


def write_curves(config: TrainConfig, folders: Sequence[Path], output: Path) -> dict[str, Any]:
    """Gather the curves of the stages that are done, and plot them.

    Args:
        config: of the run.
        folders: where the stages' notes lie, `<stage>.json`; of two notes of one stage, the later folder's count.
        output: of the JSON; the plot lies beside it with the suffix .svg.

    Returns:
        What was written: config, and seconds and curve of each stage by name.
    """
    stages: dict[str, Any] = {}
    for stage in config.stages:
        for folder in folders:
            path = folder / f"{stage.name}.json"
            if path.is_file():
                notes = json.loads(path.read_text(encoding="utf-8"))
                stages[stage.name] = {"seconds": notes["seconds"], "curve": notes["curve"]}
    written = {"config": to_json_dict(config), "stages": stages}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    if stages:
        plot_curves(stages, output.with_suffix(".svg"))
    return written


def plot_curves(stages: dict[str, Any], path: Path) -> None:
    """Plot every figure of each stage over its steps; does nothing without matplotlib.

    Args:
        stages: name -> seconds and curve, as `write_curves` gathers them.
        path: of the svg; the same curves give the same bytes.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        return
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "bindsearch"
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(stages), figsize=(4.2 * len(stages), 4.0), squeeze=False)
    for axes, (name, stage) in zip(panels[0], stages.items(), strict=True):
        keys = [key for key in stage["curve"][-1] if key not in ("step", "loss")] if stage["curve"] else []
        for key in keys:
            have = [(point["step"], point[key]) for point in stage["curve"] if key in point]
            axes.plot(*zip(*have, strict=True), label=key, marker=".")
        axes.set(title=f"{name} ({stage['seconds'] / 60:.0f} min)", xlabel="step", ylim=(0, 1.02))
        if keys:
            axes.legend(fontsize=5, loc="lower right", ncols=2)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
