"""Train bindsearch-mini from nothing: draw the world, bind text, then audio, to images, write the bundled space.

python tools/train_mini.py runs/mini            # resumes where it was stopped
python tools/train_mini.py runs/mini --stage image-text
"""

from __future__ import annotations

import argparse
import json
import time
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from bindsearch.config import to_json_dict
from bindsearch.modalities.bpe import closed_id_map
from bindsearch.models.architecture import load_preprocess
from bindsearch.models.bind import ArchitectureConfig, Tower, load_architecture
from bindsearch.models.manifest import SpaceManifest
from bindsearch.models.weights import getters, save_space
from bindsearch.train.binding import image_audio_stage, image_text_stage
from bindsearch.train.config import TrainConfig, load_train_config
from bindsearch.train.loop import train_stage
from bindsearch.world.text import vocabulary

PACKAGE = Path(str(resources.files("bindsearch")))


def load_numbers(space: str) -> dict[str, dict[str, Any]]:
    """Read a space's preprocessing numbers, with the id map of the world's words."""
    numbers = load_preprocess(space)
    numbers["text"]["id_map"] = list(closed_id_map(vocabulary()))
    return numbers


def run_stages(config: TrainConfig, folder: Path, only: str | None) -> dict[str, Tower]:
    """Run the stages in order; returns the trained towers."""
    architecture: ArchitectureConfig = load_architecture(config.space)
    numbers = load_numbers(config.space)
    rows, words = architecture.towers["text"].stem.vocabulary, len(numbers["text"]["id_map"])
    if rows != words:
        raise SystemExit(
            f"{config.space}.json: vocabulary is {rows}, the world's words need {words}. Write {words} there."
        )
    trained: dict[str, Tower] = {}
    for number, stage_config in enumerate(config.stages):
        if stage_config.modality == "text":
            stage = image_text_stage(config, stage_config, architecture, numbers, trained, folder)
        else:
            stage = image_audio_stage(config, stage_config, architecture, numbers, trained, folder)
        print(f"stage {number + 1}/{len(config.stages)}: {stage_config.name}", flush=True)
        notes = train_stage(stage, say=lambda line: print(line, flush=True))
        (folder / f"{stage_config.name}.json").write_text(json.dumps(notes, indent=1), encoding="utf-8")
        trained.update({name: tower.eval() for name, tower in stage.towers.items()})  # type: ignore[misc]
        if stage_config.name == only:
            break
    return trained


def write_space(config: TrainConfig, towers: dict[str, Tower], folder: Path) -> None:
    """Write the trained towers as a space in float16, with the numbers that preprocessing needs."""
    stages = [f"{stage.name}: {stage.steps} steps of {stage.batch}" for stage in config.stages]
    manifest = SpaceManifest(
        name=config.space,
        architecture=load_architecture(config.space),
        modalities=("image", "text", "audio"),
        preprocess=load_numbers(config.space),
        source={"made_by": "tools/train_mini.py", "seed": config.seed, "stages": stages},
        licence="Apache-2.0",
    )
    written = save_space(folder, manifest, {name: getters(tower) for name, tower in towers.items()}, dtype="float16")
    size = sum(record.size_bytes for record in written.towers.values())
    print(f"{written.space_id}: {size / 1e6:.2f} MB in {folder}", flush=True)


def write_curves(config: TrainConfig, folder: Path, output: Path) -> None:
    """Write loss and retrieval of every stage as JSON, and a plot where matplotlib is installed."""
    stages = {
        stage.name: json.loads((folder / f"{stage.name}.json").read_text(encoding="utf-8")) for stage in config.stages
    }
    curves = {name: {"seconds": notes["seconds"], "curve": notes["curve"]} for name, notes in stages.items()}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"config": to_json_dict(config), "stages": curves}, indent=1) + "\n", encoding="utf-8")
    try:
        import matplotlib as mpl
    except ImportError:
        print("no matplotlib here: the curves are in the JSON alone", flush=True)
        return
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "mini"
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(curves), figsize=(4.2 * len(curves), 3.2), squeeze=False)
    for axes, (name, stage) in zip(panels[0], curves.items(), strict=True):
        shown = [key for key in stage["curve"][-1] if key.endswith(("subject", "setting"))]
        asked = "audio" if "audio->vision subject" in shown else "text"
        for key in shown:
            if key.startswith((asked, "vision")):
                have = [(point["step"], point[key]) for point in stage["curve"] if key in point]
                axes.plot(*zip(*have, strict=True), label=key, marker=".")
        axes.set(title=f"{name} ({stage['seconds'] / 60:.0f} min)", xlabel="step", ylim=(0, 1.02))
        axes.legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(output.with_suffix(".svg"), metadata={"Date": None})


def main() -> None:
    """Train, then write the space."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="checkpoints, pools and curves")
    parser.add_argument("--config", type=Path, default=PACKAGE / "train" / "mini.json")
    parser.add_argument(
        "--output", type=Path, default=PACKAGE / "models" / "spaces" / "bindsearch-mini", help="space to write"
    )
    parser.add_argument("--curves", type=Path, default=PACKAGE.parent / "benchmarks" / "results" / "mini_training.json")
    parser.add_argument("--stage", help="stop after this stage")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    began = time.time()
    towers = run_stages(load_train_config(arguments.config), arguments.folder, arguments.stage)
    if "audio" in towers:
        write_space(load_train_config(arguments.config), towers, arguments.output)
        write_curves(load_train_config(arguments.config), arguments.folder, arguments.curves)
    print(f"trained {', '.join(towers)} in {(time.time() - began) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
