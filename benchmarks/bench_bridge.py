"""Does the visual cache help search? Queries of every modality carried over the gap, on scenes that nobody trained on.

python -m benchmarks.bench_bridge --folder runs/emergence      # results/bridge.json and its rows of the scoreboard

2,000 test scenes: those numbered below 500 choose the numbers of the blend (k, t, w), the next 500 ask, the last 1,000
are asked for, as images alone and as a mixed folder of images, texts and sounds. The cache is the folder's own images,
or 2,000 images of other scenes (validation). Right answers carry the question's subject (imu: its motion) and, for the
second figure, its setting too. Figures: share of the ten best that are right; mean average precision. Intervals of 95 %
are over queries, and of the gain over queries too. "centred" is the other cure of the gap: each modality's mean (of the
first 500 scenes) taken from rows and queries, without a cache and with it.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.record import write_result, write_score
from benchmarks.written import World, rows_of
from bindsearch.cache import VisualCache
from bindsearch.evaluate import bootstrap
from bindsearch.evaluate.matrix import plain
from bindsearch.evaluate.metrics import average_precision
from bindsearch.models.spaces import load_space

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float = NDArray[np.float32]
    Labels = NDArray[np.int64]

COMMAND = "python -m benchmarks.bench_bridge"
ASK = ("text", "audio", "depth", "thermal", "imu", "image")
MIXED = ("image", "text", "audio")
N, TUNE, QUERIES = 2000, 500, 500
BEST = 10
GRID = {"cache_size": (5, 10, 50), "inverse_temperature": (20.0, 50.0, 100.0), "weight": (0.25, 0.5, 0.75)}
DEFAULT = (10, 20.0, 0.5)


@dataclass(frozen=True)
class Folder:
    """What is asked for: rows (n, d) float32, and of each row the labels that make an answer right."""

    rows: Float
    labels: dict[str, Labels]


def label_sets(scenes: Any) -> dict[str, Labels]:
    """Give what tells scenes apart: one number a scene, by what is judged."""
    subject, setting = scenes.subject.astype(np.int64), scenes.setting.astype(np.int64)
    return {
        "subject": subject,
        "subject and setting": subject * 1000 + setting,
        "motion": scenes.motion.astype(np.int64),
    }


def judged(view: str) -> tuple[str, ...]:
    """Name what a modality's questions are judged by."""
    return ("motion",) if view == "imu" else ("subject", "subject and setting")


def figures(queries: Float, folder: Folder, wanted: Labels, what: str) -> dict[str, NDArray[np.float64]]:
    """Ask a folder; gives figures a query."""
    scores = queries.astype(np.float64) @ folder.rows.astype(np.float64).T
    right = wanted[:, None] == folder.labels[what][None]
    return {"right in ten": _in_ten(scores, right), "average precision": average_precision(scores, right)}


def _in_ten(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    best = np.argpartition(-scores, BEST, axis=1)[:, :BEST]
    return np.asarray(np.take_along_axis(right, best, axis=1).mean(axis=1))


def choose(cache: VisualCache, queries: Float, folder: Folder, wanted: Labels, what: str) -> tuple[int, float, float]:
    """Choose k, t and w on scenes that are not measured."""
    best, chosen = -1.0, DEFAULT
    right = wanted[:, None] == folder.labels[what][None]
    for k, t, w in itertools.product(*GRID.values()):
        scores = cache.enhance(queries, int(k), t, w) @ folder.rows.T
        if (value := float(_in_ten(scores, right).mean())) > best:
            best, chosen = value, (int(k), float(t), float(w))
    return chosen


def measure(rows: dict[str, Float], scenes: Any, caches: dict[str, VisualCache]) -> dict[str, Any]:
    """Measure every modality that asks, each cache, both folders."""
    labels = label_sets(scenes)
    there = slice(TUNE + QUERIES, N)
    alone = Folder(rows["image"][there], {name: each[there] for name, each in labels.items()})
    mixed = Folder(
        np.concatenate([rows[view][there] for view in MIXED]),
        {name: np.tile(each[there], len(MIXED)) for name, each in labels.items()},
    )
    result: dict[str, Any] = {}
    for view, (name, folder) in itertools.product(ASK, (("images", alone), ("mixed", mixed))):
        for what in judged(view):
            tune, asked = rows[view][:TUNE], rows[view][TUNE : TUNE + QUERIES]
            own, wanted = labels[what][:TUNE], labels[what][TUNE : TUNE + QUERIES]
            plain_figures = figures(asked, folder, wanted, what)
            entry: dict[str, Any] = {"without": {key: plain(bootstrap(each)) for key, each in plain_figures.items()}}
            for label, cache in caches.items():
                chosen = choose(cache, tune, folder, own, what)
                for how, numbers in (("default", DEFAULT), ("chosen", chosen)):
                    moved = figures(cache.enhance(asked, *numbers), folder, wanted, what)
                    entry[f"{label}, {how}"] = {
                        "numbers": dict(zip(GRID, numbers, strict=True)),
                        **{key: plain(bootstrap(each)) for key, each in moved.items()},
                        "gain": {key: plain(bootstrap(moved[key] - plain_figures[key])) for key in moved},
                    }
            moved_rows, moved_asked = centred(rows, view, folder, asked)
            near = VisualCache.of_vectors(moved_rows.rows[: N - TUNE - QUERIES])
            for label, each in (("centred", moved_asked), ("centred, own images", near.enhance(moved_asked, *DEFAULT))):
                moved = figures(each, moved_rows, wanted, what)
                entry[label] = {
                    **{key: plain(bootstrap(value)) for key, value in moved.items()},
                    "gain": {key: plain(bootstrap(moved[key] - plain_figures[key])) for key in moved},
                }
            result[f"{view} -> {name}, {what}"] = entry
            say(f"{view} -> {name}, {what}", entry)
    return result


def centred(rows: dict[str, Float], view: str, folder: Folder, asked: Float) -> tuple[Folder, Float]:
    """Take each modality's mean from a folder's rows and from queries; the folder's images stand first."""
    means = {name: each[:TUNE].mean(axis=0, dtype=np.float64) for name, each in rows.items()}
    each = N - TUNE - QUERIES
    taken = np.concatenate([np.tile(means[name], (each, 1)) for name in MIXED[: len(folder.rows) // each]])
    return Folder(_unit(folder.rows - taken), folder.labels), _unit(asked - means[view])


def _unit(rows: NDArray[np.float64]) -> Float:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def say(name: str, entry: dict[str, Any]) -> None:
    """Print a question's figures, a line each."""
    print(f"{name:40} without {entry['without']['right in ten']['value']:.3f}", flush=True)
    for how, found in entry.items():
        if how != "without":
            gain = found["gain"]["right in ten"]
            numbers = ", ".join(f"{value:g}" for value in found.get("numbers", {}).values())
            print(
                f"    {how:21} {found['right in ten']['value']:.3f} gain {gain['value']:+.3f} "
                f"[{gain['low']:+.3f}, {gain['high']:+.3f}]  k, t, w = {numbers}"
            )


def main() -> None:
    """Measure, print, write JSON and scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="bindsearch-mini")
    parser.add_argument("--folder", type=Path, help="keep files and embeddings here, and go on from them")
    arguments = parser.parse_args()
    space = load_space(arguments.space)
    with tempfile.TemporaryDirectory() as temporary:
        home = arguments.folder or Path(temporary)
        test, other = World("test-full", "test", N), World("validation-full", "validation", N)
        rows = {view: rows_of(space, test, home, view) for view in ASK}
        images = rows_of(space, other, home, "image")
    caches = {
        "own images": VisualCache.of_vectors(rows["image"][TUNE + QUERIES :]),
        "other images": VisualCache.of_vectors(images),
    }
    found = measure(rows, test.scenes, caches)
    write_result(
        "bridge", {"space": space.space_id, "n": N, "tune": TUNE, "queries": QUERIES, "questions": plain(found)}
    )
    for view in ("text", "audio"):
        for how in ("own images, default", "other images, chosen"):
            gain = found[f"{view} -> images, subject"][how]["gain"]["right in ten"]
            name = f"bridge: {view} -> images, {how}: gain in right of ten"
            write_score(name, round(float(gain["value"]), 4), "share", "reported", COMMAND, plain(gain))


if __name__ == "__main__":
    main()
