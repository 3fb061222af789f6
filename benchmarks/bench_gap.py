"""The modality gap of a space on the world, and what centring does to search: mixed folders and single modalities.

python -m benchmarks.bench_gap                            # results/gap.json and gap.svg
python -m benchmarks.bench_gap --embeddings runs/world --table runs/world/attributes.parquet

A mixed folder holds every modality of n scenes; questions are other scenes in one modality each. Right answers carry
the question's subject (for imu, which says nothing of it, the motion) in a modality that shows it. Means are those of
the folder, as `index --centre` takes them. Figures: share of the ten best answers that are right; share of the ten
best that are of the question's own modality; mean average precision; and recall of the one best answer within each
single modality.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import write_result, write_score
from bindsearch.evaluate import Rows, bootstrap, read_rows
from bindsearch.evaluate.matrix import plain
from bindsearch.evaluate.metrics import average_precision
from bindsearch.evaluate.rows import codes
from bindsearch.gap import measure_gap, write_plot
from bindsearch.index.centring import Centring

SAID = {
    "right in ten": "share of the ten best that are right",
    "own modality in ten": "share of the ten best that are of the query's own modality",
    "mean average precision": "mean average precision",
}
"""Figure -> how the scoreboard calls it."""
COMMAND = "python -m benchmarks.bench_gap"
BEST = 10
CARRIES = {"imu": ("motion",), "audio": ("subject",)}
"""Attributes that a modality shows, the one it is judged by first; what is not named shows subject and motion."""


def embed_world(n: int, space_name: str, folder: Path) -> Rows:
    """Embed unseen scenes in every modality of a space."""
    from bindsearch.embed import EmbedOptions, run_embed
    from bindsearch.models.spaces import load_space

    run_embed([f"world:test:0..{n}"], folder, load_space(space_name), options=EmbedOptions(workers=0))
    return read_rows(folder)


def split_scenes(rows: Rows, asked: int) -> tuple[np.ndarray, np.ndarray]:
    """Tell the scenes that ask (the last ones) from those of the folder: two (n,) bool."""
    scene = codes(rows.columns["group"])
    names = np.unique(scene)
    ask = np.isin(scene, names[np.argsort(names)][-asked:])
    return ask, ~ask


def carried(modality: str) -> tuple[str, ...]:
    """Name the attributes that a modality shows; questions are judged by the first."""
    return CARRIES.get(modality, ("subject", "motion"))


def means_of(rows: Rows, folder: np.ndarray) -> Centring:
    """Take the means of a folder's modalities."""
    places = {name: folder & (rows.modality == name) for name in rows.modalities}
    means = {name: rows.vectors[here].mean(axis=0, dtype=np.float64) for name, here in places.items()}
    return Centring(means, {name: int(here.sum()) for name, here in places.items()})


def centre(rows: Rows, means: Centring) -> np.ndarray:
    """Centre all rows, each by its modality: (n, d) float32."""
    moved = np.empty_like(rows.vectors)
    for name in rows.modalities:
        here = rows.where(name)
        moved[here] = means.apply(rows.vectors[here], name, "rows")
    return moved


def ask(
    rows: Rows, vectors: np.ndarray, sides: tuple[np.ndarray, np.ndarray], modality: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Ask the mixed folder with one modality, and each single modality of it; gives figures a query, and the rest."""
    attribute = carried(modality)[0]
    shows = [name for name in rows.modalities if attribute in carried(name)]
    label = codes(rows.columns[attribute])
    queries = np.flatnonzero(sides[0] & (rows.modality == modality))
    there = np.flatnonzero(sides[1])
    right_there = np.isin(rows.modality[there], shows)
    scores = vectors[queries].astype(np.float64) @ vectors[there].astype(np.float64).T
    right = (label[queries][:, None] == label[there][None]) & right_there[None]
    best = np.argsort(-scores, axis=1, kind="stable")[:, :BEST]
    alone = {}
    for name in shows:
        part = np.flatnonzero(rows.modality[there] == name)
        first = part[np.argmax(scores[:, part], axis=1)]
        alone[name] = round(float(right[np.arange(len(queries)), first].mean()), 4)
    figures = {
        "right in ten": np.take_along_axis(right, best, axis=1).mean(axis=1),
        "own modality in ten": (rows.modality[there][best] == modality).mean(axis=1),
        "mean average precision": average_precision(scores, right),
    }
    even = round(float((rows.modality[there] == modality).mean()), 4)
    return figures, {"attribute": attribute, "even share": even, "best of one modality": alone}


def measure(rows: Rows, asked: int) -> dict[str, Any]:
    """Measure search as stored and centred."""
    sides = split_scenes(rows, asked)
    moved = centre(rows, means_of(rows, sides[1]))
    found = {}
    for modality in rows.modalities:
        stored, facts = ask(rows, rows.vectors, sides, modality)
        centred, more = ask(rows, moved, sides, modality)
        found[modality] = {
            "attribute": facts["attribute"],
            "even share": facts["even share"],
            "stored": {name: bootstrap(each) for name, each in stored.items()},
            "centred": {name: bootstrap(each) for name, each in centred.items()},
            "gain a query": {name: bootstrap(centred[name] - stored[name]) for name in stored},
            "best of one modality": {"stored": facts["best of one modality"], "centred": more["best of one modality"]},
        }
    return {"folder": int(sides[1].sum()), "by modality": plain(found)}


def overall(search: dict[str, Any], state: str, figure: str) -> float:
    """Average a figure over the modalities that ask."""
    return float(np.mean([each[state][figure]["value"] for each in search["by modality"].values()]))


def main() -> None:
    """Measure, print, write JSON, plot and scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="bindsearch-mini")
    parser.add_argument("--n", type=int, default=2600, help="scenes, those that ask included")
    parser.add_argument("--asked", type=int, default=600)
    parser.add_argument("--embeddings", type=Path, help="take these in place of embedding the world")
    parser.add_argument("--table", type=Path, help="attributes of their scenes, by stem")
    parser.add_argument("--name", default="gap", help="of the result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.embeddings:
            rows = read_rows(arguments.embeddings)
        else:
            rows = embed_world(arguments.n, arguments.space, Path(temporary) / "embeddings")
    if arguments.table:
        rows = rows.joined(arguments.table, "stem")
    gap = measure_gap(rows)
    result = {
        "space": rows.space_id,
        "gap": {name: gap[name] for name in ("stored", "centred")},
        "search": measure(rows, arguments.asked),
    }
    path = write_result(arguments.name, result)
    write_plot(rows, gap, path.with_suffix(".svg"))
    for figure, said in SAID.items():
        stored, centred = (overall(result["search"], state, figure) for state in ("stored", "centred"))
        print(f"{figure}: stored {stored:.3f}, centred {centred:.3f}")
        if arguments.embeddings is None and arguments.n == 2600:
            write_score(f"gap: {said}, change by centring", round(centred - stored, 4), "share", "reported", COMMAND)
    print(json.dumps(result["search"], indent=1))


if __name__ == "__main__":
    main()
