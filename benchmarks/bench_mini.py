"""Measure bindsearch-mini on scenes that training never met, through files and the pipeline as shipped.

python -m benchmarks.bench_mini              # benchmarks/results/mini.json and mini.svg
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
from bindsearch.models.spaces import load_space
from bindsearch.train.measure import accuracy, named_shares, top_hits
from bindsearch.train.pool import audio_rows
from bindsearch.world.image import render_images
from bindsearch.world.scene import SPLITS, Scenes, names, sample, split_seeds
from bindsearch.world.write import SUFFIXES, write_world

BARS = {"text->image": 0.85, "audio->image": 0.85, "audio->text": 0.75}
PAIRS = (
    ("text", "image"),
    ("audio", "image"),
    ("audio", "text"),
    ("image", "text"),
    ("image", "audio"),
    ("text", "audio"),
)


def embed_world(space: Any, folder: Path, n: int, modality: str) -> np.ndarray:
    """Embed the files of one modality of a written world: (n, d) float32 unit rows, in the scenes' order."""
    paths = [folder / f"scene-{number:05d}{SUFFIXES[modality]}" for number in range(n)]
    if modality == "text":
        return space.embed("text", [path.read_text(encoding="utf-8").strip() for path in paths])
    return space.embed(modality, paths)


def written(
    space: Any, folder: Path, seed: int, n: int, kind: str, modalities: tuple[str, ...]
) -> tuple[Scenes, dict[str, np.ndarray]]:
    """Write a world and embed it."""
    write_world(n, folder, seed=seed, kind=kind, modalities=modalities)
    scenes = sample(np.arange(n, dtype=np.uint64) + np.uint64(seed), kind)
    return scenes, {modality: embed_world(space, folder, n, modality) for modality in modalities}


def measure_pairs(scenes: Scenes, rows: dict[str, np.ndarray]) -> dict[str, Any]:
    """Top hit among all scenes for every pair of modalities."""
    return {f"{a}->{b}": named_shares(scenes, scenes, top_hits(rows[a], rows[b])) for a, b in PAIRS}


def measure_neighbours(test: Scenes, reference: int = 5000) -> dict[str, Any]:
    """Nearest neighbour on raw pixels and on the mean log-mel, among training scenes: what needs no learning."""
    import torch

    train = sample(split_seeds("train", reference))
    mels = {"mels": 64, "frames": 204, "clips": 1}
    raw = {
        "pixels": [render_images(part, 64).reshape(len(part), -1) for part in (train, test)],
        "mean log-mel": [audio_rows(part, mels)[:, :, :198].mean(axis=2) for part in (train, test)],
    }
    figures = {}
    for name, (known, asked) in raw.items():
        near = (
            torch.cdist(torch.from_numpy(asked.astype(np.float32)), torch.from_numpy(known.astype(np.float32)))
            .argmin(1)
            .numpy()
        )
        figures[name] = {
            attribute: accuracy(getattr(test, attribute), getattr(train, attribute)[near])
            for attribute in ("subject", "setting")
        }
    return figures


def measure_composition(space: Any, folder: Path, gallery: tuple[Scenes, np.ndarray], n: int) -> dict[str, Any]:
    """Ask with a picture of a setting alone plus a sound of a subject alone for exactly that pair."""
    places, place_rows = written(space, folder / "places", SPLITS["test"] + 100_000, n, "setting", ("image",))
    voices, voice_rows = written(space, folder / "voices", SPLITS["test"] + 200_000, n, "subject", ("audio",))
    scenes, images = gallery
    wanted = voices.subject.astype(np.int16) * 64 + places.setting
    pairs = (scenes.subject.astype(np.int16) * 64 + scenes.setting).astype(np.int16)
    terms = {"picture alone": place_rows["image"], "sound alone": voice_rows["audio"]}
    terms["sum"] = terms["picture alone"] + terms["sound alone"]
    terms["sum"] = terms["sum"] / np.linalg.norm(terms["sum"], axis=1, keepdims=True)
    figures: dict[str, Any] = {name: accuracy(wanted, pairs[top_hits(rows, images)]) for name, rows in terms.items()}
    best = max(figures["picture alone"]["value"], figures["sound alone"]["value"])
    figures["gain over the better term"] = round(figures["sum"]["value"] / max(best, 1e-9), 2)
    return figures


def measure_quadruples(space: Any, folder: Path, n: int, kind: str, asked: int = 600) -> dict[str, Any]:
    """Ask a mixed folder by text, image, audio and image + audio; count right subjects among the top five."""
    where = folder / f"mixed-{n}-{kind}"
    scenes, rows = written(space, where / "world", SPLITS["demo"], n, "full", ("image", "audio", "text"))
    gallery = np.concatenate([rows[m] for m in ("image", "audio", "text")])
    subject = np.tile(scenes.subject, 3)
    start = SPLITS["demo"] + 500_000
    queries, terms = written(space, where / "asked", start, asked, kind, ("image", "audio", "text"))
    both = terms["image"] + terms["audio"]
    terms["image+audio"] = both / np.linalg.norm(both, axis=1, keepdims=True)
    right = {}
    for name, rows_asked in terms.items():
        best = np.argsort(-(rows_asked @ gallery.T), axis=1)[:, :5]
        right[name] = (subject[best] == queries.subject[:, None]).sum(axis=1)
    clear = (queries.light == names("light").index("day")) & (queries.size != names("size").index("small"))
    clear &= queries.colour != names("colour").index("white")
    return {
        "scenes in the folder": n,
        "queries show": {"full": "subject and setting", "subject": "the subject alone"}[kind],
        "all": count_right(right, np.ones(asked, bool)),
        "clear pictures (by day, not small, not white)": count_right(right, clear),
    }


def count_right(right: dict[str, np.ndarray], which: np.ndarray) -> dict[str, Any]:
    """Sum up some quadruples: how many of the five best answers to each of their queries are right."""
    worst = np.min(list(right.values()), axis=0)[which]
    return {
        "quadruples": len(worst),
        "share with at least 4 of 5 in all four": accuracy(
            np.ones(len(worst), np.int16), (worst >= 4).astype(np.int16)
        ),
        "of the first 20": int((worst[:20] >= 4).sum()),
        "share with at least 4 of 5": {
            name: round(float((count[which] >= 4).mean()), 3) for name, count in right.items()
        },
        "mean right of 5": {name: round(float(count[which].mean()), 3) for name, count in right.items()},
    }


def draw_plot(result: dict[str, Any], path: Path) -> None:
    """Draw the accuracies of all pairs with their intervals, chance and bars."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "mini"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 3.2))
    labels = [f"{a}->{b}" for a, b in PAIRS]
    for shift, attribute in ((-0.2, "subject"), (0.2, "setting")):
        rows = [result["pairs"][label][attribute] for label in labels]
        values = [row["value"] for row in rows]
        errors = [
            [v - row["low"] for v, row in zip(values, rows, strict=True)],
            [row["high"] - v for v, row in zip(values, rows, strict=True)],
        ]
        axes.bar(np.arange(len(labels)) + shift, values, 0.38, yerr=errors, capsize=2, label=attribute)
    axes.axhline(1 / len(names("subject")), color="black", linewidth=0.8, linestyle=":", label="chance, subject")
    axes.set_xticks(
        range(len(labels)),
        [f"{label}\n(never paired)" if set(label.split("->")) == {"audio", "text"} else label for label in labels],
        fontsize=8,
    )
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("top hit among 2,000 unseen scenes")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.2), ncol=3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def write_scores(result: dict[str, Any]) -> None:
    """Put the headline figures on the scoreboard."""
    command = "python -m benchmarks.bench_mini"
    for pair, bar in BARS.items():
        for attribute in ("subject", "setting"):
            figure = result["pairs"][pair][attribute]
            write_score(f"mini: {pair}, {attribute}", figure["value"], "top-1 of 2,000", f">= {bar}", command, figure)
    for raw, row in result["nearest neighbour"].items():
        for attribute, figure in row.items():
            write_score(f"mini: 1-NN on {raw}, {attribute}", figure["value"], "accuracy", "< 0.40", command, figure)
    together = result["composition"]["sum"]
    write_score("mini: place + sound, exact pair", together["value"], "top-1", ">= 1.5 x a term", command, together)
    gain = result["composition"]["gain over the better term"]
    write_score("mini: place + sound over the better term", gain, "ratio", ">= 1.5", command)
    key = next(key for key in result["quadruples"][0] if key.startswith("all"))
    figure = result["quadruples"][0][key]["share with at least 4 of 5 in all four"]
    name = "mini: quadruples with 4 of 5 right in all four"
    write_score(name, figure["value"], "share of 600", "20 of 20 in tests/test_demo.py", command, figure)


def main() -> None:
    """Measure, print, write JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="bindsearch-mini")
    parser.add_argument("--n", type=int, default=2000)
    arguments = parser.parse_args()
    space, began = load_space(arguments.space), time.time()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        scenes, rows = written(space, folder / "all", SPLITS["test"], arguments.n, "full", ("image", "audio", "text"))
        result: dict[str, Any] = {
            "space": space.space_id,
            "n": arguments.n,
            "chance": {"subject": round(1 / 24, 4), "setting": 0.125, "both": round(1 / 192, 4)},
            "pairs": measure_pairs(scenes, rows),
            "trained": ["text->image", "audio->image", "image->text", "image->audio"],
            "emergent": ["audio->text", "text->audio"],
            "bars": BARS,
            "nearest neighbour": measure_neighbours(scenes),
            "composition": measure_composition(space, folder, (scenes, rows["image"]), arguments.n),
            "quadruples": [measure_quadruples(space, folder, 300, kind) for kind in ("subject", "full")],
        }
    result["seconds"] = round(time.time() - began)
    path = write_result("mini", result)
    draw_plot(result, path.with_suffix(".svg"))
    if arguments.n == 2000:
        write_scores(result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
