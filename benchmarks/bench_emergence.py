"""What binds by binding to images alone: every pair of modalities of bindsearch-mini on scenes that nobody trained on.

python -m benchmarks.bench_emergence                                   # results/emergence.json and emergence.svg
python -m benchmarks.bench_emergence --space bindsearch-mini runs/mini/seed-21 runs/mini/seed-22 --folder runs/emergence

Files are written by `write_world` and read and embedded by `space.embed`. Several spaces are seeds of the second stage
on one first stage: figures are their means. With --folder, files and embeddings are kept, and a run goes on from them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.arithmetic import measure_arithmetic
from benchmarks.pairs import (
    CARRIES,
    EMERGENT_SHARE,
    LABELS,
    TRAINED_BAR,
    VIEWS,
    average,
    judge,
    kind_of,
    measure_pairs,
    share_none,
    translate,
    worst,
)
from benchmarks.raw import measure_neighbours, measure_position
from benchmarks.record import drop_scores, write_result, write_score
from benchmarks.written import LANGUAGES, World, full_captions, rows_of
from bindsearch.models.spaces import load_space

if TYPE_CHECKING:
    import numpy as np

    from bindsearch.models.space import Space

COMMAND = "python -m benchmarks.bench_emergence"
NAMED = (
    ("audio->text", "subject"),
    ("audio->text", "setting"),
    ("depth->audio", "subject"),
    ("depth->audio", "setting"),
    ("imu->text", "motion"),
    ("german->text", "subject"),
)
"""Emergent pairs with a row of their own on the scoreboard."""


def embed_all(space: Space, world: World, home: Path) -> dict[str, np.ndarray]:
    """Embed every column of the report that a space has: (n, d) unit rows each."""
    rows = {}
    for view in VIEWS:
        if ("text" if view in LANGUAGES else view) in space.modalities:
            began = time.monotonic()
            rows[view] = rows_of(space, world, home, view)
            print(f"{space.space_id}: {world.name}, {view}: {time.monotonic() - began:.0f} s", flush=True)
    return rows


def measure_split(
    spaces: Sequence[Space], world: World, home: Path, beside: World | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Judge all pairs on one split, among another one's scenes too if asked; give the first space's embeddings."""
    rows = [embed_all(space, world, home) for space in spaces]
    more = [None if beside is None else (beside.scenes, embed_all(space, beside, home)) for space in spaces]
    figures = average([measure_pairs(world.scenes, each, other) for each, other in zip(rows, more, strict=True)])
    return judge(figures), rows[0]


def draw_matrix(result: Mapping[str, Any], path: Path) -> None:
    """Draw one heat map an attribute: rows ask, columns answer; trained pairs framed, bars of emergent pairs below."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "emergence"
    from matplotlib import pyplot as plt

    panels = [(name, [view for view in VIEWS if view in views]) for name, views in CARRIES.items()]
    figure, axes = plt.subplots(1, len(panels), figsize=(18.5, 6.2))
    for axis, (attribute, views) in zip(axes, panels, strict=True):
        _draw_panel(axis, attribute, views, result["pairs"])
    figure.suptitle(
        f"Top-1 accuracy among {result['n']:,} unseen scenes, rows ask columns. Framed: trained on. Small: the bar of "
        f"an emergent pair ({EMERGENT_SHARE:g} of its weaker link through the image tower).",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _draw_panel(axis: Any, attribute: str, views: list[str], pairs: Mapping[str, Any]) -> None:
    import numpy as np
    from matplotlib.patches import Rectangle

    grid = np.full((len(views), len(views)), np.nan)
    for i, a in enumerate(views):
        for j, b in enumerate(views):
            entry = pairs.get(f"{a}->{b}", {}).get("attributes", {}).get(attribute)
            if entry is None:
                continue
            grid[i, j] = entry["value"]
            colour = "white" if entry["value"] < 0.6 else "black"
            axis.text(j, i - 0.08, f"{entry['value']:.3f}", ha="center", va="center", fontsize=8, color=colour)
            note = {"trained": "", "one tower": "one tower"}.get(kind_of(a, b), f"bar {entry.get('bar', 0):.2f}")
            if note and (kind_of(a, b) != "emergent" or "bar" in entry):
                axis.text(j, i + 0.28, note, ha="center", va="center", fontsize=5.5, color=colour)
            if kind_of(a, b) == "trained":
                axis.add_patch(Rectangle((j - 0.47, i - 0.47), 0.94, 0.94, fill=False, linewidth=2, edgecolor="black"))
    axis.imshow(grid, vmin=0, vmax=1, cmap="viridis")
    labels = [LABELS.get(view, view) for view in views]
    axis.set_xticks(range(len(views)), labels, rotation=35, ha="right", fontsize=8)
    axis.set_yticks(range(len(views)), labels, fontsize=8)
    axis.set_title(attribute, fontsize=10)


def write_scores(result: Mapping[str, Any]) -> None:
    """Put the headline figures on the scoreboard, and take those of the benchmark before this one away."""
    drop_scores("python -m benchmarks.bench_mini")
    unit = f"top-1 of {result['n']:,}"
    pair, attribute, entry = worst(result["pairs"], "trained")
    name, bar = "emergence: worst trained pair", f">= {TRAINED_BAR}; {pair}, {attribute}"
    write_score(name, entry["value"], unit, bar, COMMAND, entry)
    pair, attribute, entry = worst(result["pairs"], "emergent", "share")
    name = "emergence: worst never-trained pair, share of the weaker of the two trained pairs it rests on"
    bar = f">= {EMERGENT_SHARE}; {pair}, {attribute}"
    write_score(name, entry["share"], "ratio", bar, COMMAND)
    for pair, attribute in NAMED:
        entry = result["pairs"].get(pair, {}).get("attributes", {}).get(attribute)
        if entry:
            a, b = (LABELS.get(view, view) for view in pair.split("->"))
            name, bar = f"emergence: {a} -> {b}, {attribute}", f">= {entry['bar']:.3f}, never paired"
            write_score(name, entry["value"], unit, bar, COMMAND, entry)
    among = {"compositional": unit, "compositional among all": f"top-1 of {2 * result['n']:,}"}
    for part, gallery in among.items():
        pair, attribute, entry = worst(result[part], "emergent")
        name = "emergence: subjects in settings never met, worst emergent pair"
        name += "" if part == "compositional" else ", scenes of all pairs among the answers"
        write_score(name, entry["value"], gallery, f"no bar; {pair}, {attribute}", COMMAND, entry)
    for raw, row in result["nearest neighbour"].items():
        for attribute in [one for one in ("subject", "setting") if one in row] or ["motion"]:
            name, figure = f"raw: 1-NN on {raw}, {attribute}", row[attribute]
            bar = "< 0.40" if attribute == "subject" or raw.startswith("IMU") else "no bar"
            write_score(name, figure["value"], "accuracy", bar, COMMAND, figure)
    for kind, row in result.get("arithmetic", {}).items():
        figure = row["weighted sum"]
        write_score(f"arithmetic: {kind}, exact", figure["value"], unit, f">= {row['bar']}", COMMAND, figure)
    if "translation" in result:
        figure = result["translation"]["german->text"]["all three"]
        name = "translation: German -> English, subject + setting + motion"
        write_score(name, figure["value"], unit, "no bar", COMMAND, figure)
    for axis in ("x", "y"):
        figure = result["position"]["image"][axis]
        write_score(f"position: {axis} of the subject from image", figure["value"], "R^2", "no bar", COMMAND, figure)


def measure(spaces: Sequence[Space], n: int, home: Path, skip: Sequence[str] = ()) -> dict[str, Any]:
    """Measure everything that the report says, in one run.

    Args:
        spaces: seeds of the second stage on one first stage.
        n: scenes a split.
        home: folder of files and embeddings.
        skip: parts that are left out: compositional, raw, arithmetic.
    """
    test = World("test-full", "test", n)
    pairs, rows = measure_split(spaces, test, home)
    first = spaces[0]
    result: dict[str, Any] = {
        "spaces": [{name: space.tower_id(name) for name in space.modalities} for space in spaces],
        "space": first.space_id,
        "n": n,
        "pairs": pairs,
        "share nothing": share_none(tuple(rows)),
        "position": measure_position(test.scenes, rows),
    }
    if "german" in rows:
        texts = {view: full_captions(test.scenes, view) for view in LANGUAGES}
        result["translation"] = translate(test.scenes, texts, rows)
    if "compositional" not in skip:
        never = World("compositional-full", "compositional", n)
        result["compositional"] = measure_split(spaces, never, home)[0]
        result["compositional among all"] = measure_split(spaces, never, home, test)[0]
    if "raw" not in skip:
        result["nearest neighbour"] = measure_neighbours(test.scenes)
    if "arithmetic" not in skip:
        result["arithmetic"] = measure_arithmetic(first, home, n, max(100, n // 2))
    return result


def main() -> None:
    """Measure, print, write JSON, plot and the scoreboard's rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", nargs="+", default=["bindsearch-mini"], help="the shipped one first")
    parser.add_argument("--n", type=int, default=2000, help="scenes; fewer only tries the script and writes no result")
    parser.add_argument("--folder", type=Path, help="keep files and embeddings here")
    parser.add_argument("--skip", nargs="*", default=[], choices=("compositional", "raw", "arithmetic"))
    arguments = parser.parse_args()
    began = time.monotonic()
    spaces = [load_space(name) for name in arguments.space]
    with tempfile.TemporaryDirectory() as temporary:
        result = measure(spaces, arguments.n, arguments.folder or Path(temporary), arguments.skip)
    result["seconds"] = round(time.monotonic() - began)
    tried = arguments.n != 2000 or arguments.skip
    say(result)
    if tried:
        print("a trial: nothing written (n is not 2,000, or parts were skipped)")
        return
    path = write_result("emergence", result)
    draw_matrix(result, path.with_suffix(".svg"))
    write_scores(result)


def say(result: Mapping[str, Any]) -> None:
    """Print the figures, a line a pair, and which bars do not hold."""
    for pair, row in result["pairs"].items():
        figures = ", ".join(
            f"{name} {entry['value']:.3f}" + ("" if entry.get("met", True) else f" (below {entry['bar']:.3f})")
            for name, entry in row["attributes"].items()
        )
        print(f"{pair:20} {row['kind']:9} {figures}")
    for kind, row in result.get("arithmetic", {}).items():
        print(f"{kind}: {row['weighted sum']['value']:.3f} (bar {row['bar']}), weights {row['weights']}")
    print({view: {name: one["value"] for name, one in row.items()} for view, row in result["position"].items()})
    for pair, row in result.get("translation", {}).items():
        print(pair, {name: one["value"] if isinstance(one, dict) else one for name, one in row.items()})


if __name__ == "__main__":
    main()
