"""Ask a mixed folder by words, by a picture, by a sound and by picture + sound: how many of the five best are right.

Both with the embeddings as they are and centred by modality, as `bindsearch index --centre` does.

python -m benchmarks.bench_quadruples              # benchmarks/results/quadruples.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import write_result, write_score
from benchmarks.shares import share_of
from benchmarks.written import World, list_files, write_files
from bindsearch.models.spaces import load_space
from bindsearch.world.scene import names

COMMAND = "python -m benchmarks.bench_quadruples"
MODALITIES = ("image", "audio", "text")


def embed_world(space: Any, world: World, home: Path) -> dict[str, np.ndarray]:
    """Write a world as `bindsearch world write` does and embed its files: (n, d) unit rows a modality."""
    folder = write_files(world, home, MODALITIES)
    return {modality: space.embed(modality, list_files(world, folder, modality)) for modality in MODALITIES}


def centre(rows: dict[str, np.ndarray], means: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Take each modality's mean from its rows and bring them back to unit length."""
    moved = {modality: rows[modality] - means[modality] for modality in rows}
    return {modality: some / np.linalg.norm(some, axis=1, keepdims=True) for modality, some in moved.items()}


def measure_quadruples(space: Any, folder: Path, n: int, kind: str, centred: bool, asked: int = 600) -> dict[str, Any]:
    """Ask a folder of n scenes, three files each; count right subjects among the top five."""
    mixed = World(f"mixed-{n}", "demo", n)
    questions = World(f"asked-{kind}", "demo", asked, 500_000, kind)
    rows, terms = embed_world(space, mixed, folder), embed_world(space, questions, folder)
    if centred:
        means = {modality: rows[modality].mean(axis=0) for modality in MODALITIES}
        rows, terms = centre(rows, means), centre(terms, means)
    gallery, subject = np.concatenate([rows[m] for m in MODALITIES]), np.tile(mixed.scenes.subject, len(MODALITIES))
    terms["image+audio"] = terms["image"] + terms["audio"]
    scenes, right = questions.scenes, {}
    for name, rows_asked in terms.items():
        best = np.argsort(-(rows_asked @ gallery.T), axis=1)[:, :5]
        right[name] = (subject[best] == scenes.subject[:, None]).sum(axis=1)
    clear = (scenes.light == names("light").index("day")) & (scenes.size != names("size").index("small"))
    clear &= (scenes.count == names("count").index("one")) & (scenes.motion == names("motion").index("still"))
    return {
        "scenes in the folder": n,
        "queries show": {"full": "subject and setting", "subject": "the subject alone"}[kind],
        "centred": centred,
        "all": count_right(right, np.ones(asked, bool)),
        "clear pictures (one, still, by day, not small)": count_right(right, clear),
    }


def count_right(right: dict[str, np.ndarray], which: np.ndarray) -> dict[str, Any]:
    """Sum up some quadruples: how many of the five best answers to each of their queries are right."""
    worst = np.min(list(right.values()), axis=0)[which]
    inside = worst >= 4
    return {
        "quadruples": len(worst),
        "share with at least 4 of 5 in all four": share_of(inside),
        "of the first 20": int(inside[:20].sum()),
        "share with at least 4 of 5": {
            name: round(float((count[which] >= 4).mean()), 3) for name, count in right.items()
        },
        "mean right of 5": {name: round(float(count[which].mean()), 3) for name, count in right.items()},
    }


def main() -> None:
    """Measure, print, write JSON and the scoreboard's row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="bindsearch-mini")
    parser.add_argument("--folder", type=Path, help="keep files here")
    arguments = parser.parse_args()
    space, began = load_space(arguments.space), time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        home = arguments.folder or Path(temporary)
        quadruples = [
            measure_quadruples(space, home, 300, kind, centred)
            for centred in (True, False)
            for kind in ("subject", "full")
        ]
    result = {"space": space.space_id, "quadruples": quadruples, "seconds": round(time.monotonic() - began)}
    write_result("quadruples", result)
    for row, how in ((quadruples[0], "centred"), (quadruples[2], "not centred")):
        figure = row["all"]["share with at least 4 of 5 in all four"]
        name = f"mini: quadruples with 4 of 5 right in all four, {how}"
        write_score(name, figure["value"], "share of 600", "20 clear ones of 20 in tests/test_demo.py", COMMAND, figure)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
