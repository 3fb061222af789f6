"""`bindsearch train` on a user's files: a projector beside the audio tower, timm backbones beside our image tower.

    python -m benchmarks.bench_projector                     # about 20 minutes on 2 cores
    python -m benchmarks.bench_projector --smoke             # a minute, figures that mean nothing, nothing is written

Everything goes through the command line, on files: pictures, sounds, captions, a table of features. The scenes of the
classifier, of the pairs, and of the test are different ones, and none of the pairs' was seen by bindsearch-mini.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from benchmarks.record import write_result, write_score
from benchmarks.sound_classifier import features_of, own_accuracy, train_classifier
from bindsearch.store import open_store
from bindsearch.train.measure import accuracy, top_hits
from bindsearch.world.audio import render_waves
from bindsearch.world.scene import Scenes, sample, split_seeds
from bindsearch.world.write import write_world

FIRST_PAIR = 800_000
TARGET, LIMIT_S = 0.9, 300.0
COMMAND = "python -m benchmarks.bench_projector"
Rows = NDArray[np.float32]


def bindsearch(*words: str | Path, cwd: Path) -> float:
    """Run the command line; give its seconds."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "bindsearch", *map(str, words)], cwd=cwd, check=True)
    return round(time.perf_counter() - began, 1)


def write_pairs(folder: Path, count: int) -> list[str]:
    """Write pictures and sounds of scenes as files, and the two manifests; give the stems."""
    first = int(split_seeds("train", 1, FIRST_PAIR)[0])
    write_world(count, folder, first, 64, modalities=("image", "audio", "text"), workers=2, progress=False)
    stems = sorted(path.stem for path in folder.glob("*.png"))
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path_a", "path_b"))
        writer.writerows((f"{stem}.png", f"{stem}.wav") for stem in stems)
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text_a", "path_b"))
        writer.writerows(((folder / f"{stem}.txt").read_text().strip(), f"{stem}.png") for stem in stems)
    return stems


def write_features(model: Any, folder: Path, stems: list[str]) -> None:
    """Write the other encoder's features of the sounds as a table by path."""
    waves = np.stack([soundfile.read(folder / f"{stem}.wav", dtype="float32")[0] for stem in stems])
    keys = np.array([f"{stem}.wav" for stem in stems])
    np.savez(folder / "features.npz", keys=keys, features=features_of(model, waves))


def test_waves(scenes: Scenes) -> Rows:
    """Sound the test's scenes: (n, T) float32."""
    parts = [render_waves(scenes.rows(np.arange(at, min(at + 256, len(scenes))))) for at in range(0, len(scenes), 256)]
    return np.concatenate(parts)


def embedded(folder: Path, space: str | Path, source: str, modality: str, cwd: Path) -> Rows:
    """Embed through the command line, and give the rows in the order of the scenes' numbers."""
    bindsearch("embed", source, "--modality", modality, "--space", space, "-o", folder, "-q", cwd=cwd)
    store = open_store(folder)
    keys = store.items(["key"]).column("key").to_pylist()
    order = np.argsort([int(key.split(":")[-1].split("#")[0]) for key in keys], kind="stable")
    return store.vectors()[order]


def shares(scenes: Scenes, asked: Rows, found: Rows) -> dict[str, Any]:
    """Give the top-1 accuracies of subject, setting and both, and how often the very scene comes first."""
    hits = top_hits(asked, found)
    got = scenes.rows(hits)
    both = [each.subject.astype(np.int16) * 64 + each.setting for each in (scenes, got)]
    return {
        "subject": accuracy(scenes.subject, got.subject),
        "setting": accuracy(scenes.setting, got.setting),
        "both": accuracy(both[0], both[1]),
        "scene": accuracy(np.arange(len(scenes), dtype=np.int16), hits.astype(np.int16)),
    }


def measure_projector(
    work: Path, arguments: argparse.Namespace, scenes: Scenes, base: dict[str, Rows]
) -> dict[str, Any]:
    """Train the classifier, then the projector on its features; compare it with the audio tower."""
    files = work / "files"
    stems = write_pairs(files, arguments.pairs)
    model = train_classifier(work, arguments.classifier_scenes)
    waves = test_waves(scenes)
    write_features(model, files, stems)
    shutil.rmtree(work / "projector", ignore_errors=True)
    words = ["train", "pairs.csv", "--features", "features.npz", "-o", work / "projector", "--steps", arguments.steps]
    seconds = bindsearch(*words, "--batch", "512", "--learning-rate", "0.002", "-q", cwd=files)
    keys = np.array([f"world:test:{number}#audio" for number in range(len(scenes))])
    np.savez(work / "test.npz", keys=keys, features=features_of(model, waves))
    rows = embedded(work / "rows-projector", work / "projector" / "space", "test.npz", "features", work)
    pairs = {
        f"{asked}->{found}": shares(scenes, {"audio": base["audio"], "projector": rows}[asked], base[found])
        for asked in ("audio", "projector")
        for found in ("image", "text")
    }
    ratios = {
        f"{found} {name}": round(
            pairs[f"projector->{found}"][name]["value"] / max(pairs[f"audio->{found}"][name]["value"], 1e-9), 4
        )
        for found in ("image", "text")
        for name in ("subject", "setting", "both")
    }
    report = json.loads((work / "projector" / "report.json").read_text())
    return {
        "command": "bindsearch train pairs.csv --features features.npz -o RUN",
        "seconds": seconds,
        "parameters": report["parameters"],
        "pairs": report["pairs"],
        "classifier": own_accuracy(model, waves, scenes),
        "accuracies": pairs,
        "ratios": ratios,
        "held_out": report["figures"],
    }


def measure_image_towers(
    work: Path, arguments: argparse.Namespace, scenes: Scenes, base: dict[str, Rows]
) -> dict[str, Any]:
    """Bind image towers to the frozen text tower, each for the same steps on the same pairs; compare them."""
    found: dict[str, Any] = {}
    for tower in ("own", *(f"timm:{name}" for name in arguments.timm)):
        folder = work / f"image-{tower.replace(':', '-')}"
        shutil.rmtree(folder, ignore_errors=True)
        words = ["train", "captions.csv", "-o", folder, "--tower", tower, "--steps", arguments.image_steps]
        seconds = bindsearch(*words, "--batch", "128", "-q", cwd=work / "files")
        images = f"world:test:0..{len(scenes)}#image"
        rows = embedded(work / f"rows-{folder.name}", folder / "space", images, "image", work)
        report = json.loads((folder / "report.json").read_text())
        found[tower] = {
            "seconds": seconds,
            "seconds_training": report["seconds"]["train"],
            "parameters": report["parameters"],
            "text->image": shares(scenes, base["text"], rows),
            "audio->image": shares(scenes, base["audio"], rows),
        }
        print(tower, json.dumps(found[tower]["text->image"]), flush=True)
    return found


def main() -> None:
    """Run both sides, and write the result and its rows on the scoreboard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/bench_projector"), help="files, caches and runs")
    parser.add_argument("--space", default="bindsearch-mini")
    parser.add_argument("--pairs", type=int, default=8000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--image-steps", type=int, default=300)
    parser.add_argument("--timm", nargs="*", default=["resnet18", "vit_tiny_patch16_224"])
    parser.add_argument("--classifier-scenes", type=int, default=12000)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--smoke", action="store_true", help="tiny numbers; writes no result")
    arguments = parser.parse_args()
    if arguments.smoke:
        small = {"pairs": 400, "steps": 60, "image_steps": 3, "classifier_scenes": 640, "test": 200}
        vars(arguments).update(small)
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["BINDSEARCH_SPACE"] = arguments.space
    scenes = sample(split_seeds("test", arguments.test))
    base = {}
    for modality in ("image", "text", "audio"):
        shutil.rmtree(work / f"rows-{modality}", ignore_errors=True)
        source = f"world:test:0..{arguments.test}#{modality}"
        base[modality] = embedded(work / f"rows-{modality}", arguments.space, source, modality, work)
    for folder in work.glob("rows-*-*"):
        shutil.rmtree(folder)
    shutil.rmtree(work / "rows-projector", ignore_errors=True)
    result = {
        "parameters": {name: value for name, value in vars(arguments).items() if name not in ("work", "smoke")},
        "projector": measure_projector(work, arguments, scenes, base),
        "full_image_tower": {
            f"{asked}->image": shares(scenes, base[asked], base["image"]) for asked in ("text", "audio")
        },
        "image_towers": measure_image_towers(work, arguments, scenes, base),
    }
    print(json.dumps(result, indent=1))
    if arguments.smoke:
        return
    write_result("projector", result)
    write_scores(result)


def write_scores(result: dict[str, Any]) -> None:
    """Put the headline figures on the scoreboard."""
    projector, towers = result["projector"], result["image_towers"]
    for name in ("subject", "setting"):
        write_score(
            f"projector on another encoder's features: sound to image, {name}, over the full audio tower's",
            projector["ratios"][f"image {name}"],
            "share",
            f">= {TARGET}",
            COMMAND,
        )
    write_score(
        "projector: minutes of `bindsearch train`", projector["seconds"] / 60, "min", "<= 5 on 2 cores", COMMAND
    )
    for tower, figures in towers.items():
        value = figures["text->image"]["subject"]
        write_score(
            f"image tower {tower} bound to text, {result['parameters']['image_steps']} steps: text to image, subject",
            value["value"],
            "share",
            "reported",
            COMMAND,
            {"low": value["low"], "high": value["high"]},
        )


if __name__ == "__main__":
    main()
