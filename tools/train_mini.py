"""Train bindsearch-mini from nothing: draw the world, bind text, then the other modalities, to images; write the space.

The space's folder gets a card, README.md, whose figures are those of the run.

python tools/train_mini.py runs/mini                      # every stage; resumes where it was stopped
python tools/train_mini.py runs/mini --stage image-text   # no further than this stage
python tools/train_mini.py runs/mini --partial            # write the space with the towers that are trained so far
python tools/train_mini.py runs/mini --seed 2 --output runs/mini/space-2    # stage 2 again from another seed

A stage that is done is read back in a second. Stages that train the image tower keep the configuration's seed; with
`--seed` the others start from that one, in a folder of their own, on the same first stage.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from mini_card import space_bytes, write_card

from bindsearch.modalities.bpe import closed_id_map
from bindsearch.models.architecture import load_preprocess
from bindsearch.models.bind import ArchitectureConfig, Tower, build_tower, load_architecture
from bindsearch.models.manifest import SpaceManifest
from bindsearch.models.weights import getters, save_space
from bindsearch.train.binding import NAMING, Run, bound_to, build_stage
from bindsearch.train.checkpoint import finished_notes, load_checkpoint
from bindsearch.train.config import StageConfig, TrainConfig, load_train_config
from bindsearch.train.curves import write_curves
from bindsearch.train.loop import stage_facts, train_stage
from bindsearch.train.naming import Naming
from bindsearch.world.text import vocabulary

PACKAGE = Path(str(resources.files("bindsearch")))
BUNDLED = PACKAGE / "models" / "spaces" / "bindsearch-mini"
RESULTS = PACKAGE.parent / "benchmarks" / "results"
ORDER = ("image", "video", "text", "audio", "depth", "thermal", "imu")
LIMIT_BYTES = 12_000_000

Say = Callable[[str], None]


def load_numbers(space: str) -> dict[str, dict[str, Any]]:
    """Read a space's preprocessing numbers, with the id map of the world's words."""
    numbers = load_preprocess(space)
    numbers["text"]["id_map"] = list(closed_id_map(vocabulary()))
    return numbers


def fit_vocabulary(architecture: ArchitectureConfig, words: int, say: Say) -> ArchitectureConfig:
    """Give the text tower as many token rows as the world's words need."""
    text = architecture.towers["text"]
    if text.stem.vocabulary == words:
        return architecture
    say(f"{architecture.name}.json says vocabulary {text.stem.vocabulary}; the world's words need {words}: taken.")
    fitting = replace(text, stem=replace(text.stem, vocabulary=words))
    return replace(architecture, towers={**architecture.towers, "text": fitting})


def prepare(config: TrainConfig, folder: Path, workers: int, say: Say) -> Run:
    """Gather what all stages share."""
    numbers = load_numbers(config.space)
    architecture = fit_vocabulary(load_architecture(config.space), len(numbers["text"]["id_map"]), say)
    return Run(config, architecture, numbers, folder, workers)


def finished_towers(run: Run, stage: StageConfig, trained: dict[str, Tower]) -> dict[str, Tower] | None:
    """Read a stage that is done on the towers before it, without its pools; None where there is work left."""
    names = ("vision", "text") if stage.train_anchor else (stage.modality,)
    path = run.folder / f"{stage.name}.safetensors"
    towers: dict[str, Any] = {name: build_tower(run.architecture, name, seed=run.config.seed) for name in names}
    if stage.naming:
        towers[NAMING] = Naming(run.architecture.dim, run.config.seed)
    facts = stage_facts(stage, run.config.seed, dict(towers), bound_to(run, stage, trained))
    if finished_notes(path, facts, stage.steps) is None:
        return None
    load_checkpoint(path, dict(towers), None, facts)
    return towers


def run_stages(run: Run, seed: int | None, only: str | None, partial: bool, say: Say) -> dict[str, Tower]:
    """Run the stages in order; returns the trained towers."""
    trained: dict[str, Tower] = {}
    for number, stage in enumerate(run.config.stages):
        here = run if seed is None or stage.train_anchor else seeded(run, seed)
        done = finished_towers(here, stage, trained)
        if done is None and partial:
            break
        head = f"stage {number + 1}/{len(run.config.stages)}: {stage.name}"
        if done is None:
            say(head)
            began = time.monotonic()
            ready = build_stage(here, stage, trained)
            say(f"{stage.name}: prepared in {time.monotonic() - began:.0f} s")
            notes = train_stage(ready, say=say)
            (here.folder / f"{stage.name}.json").write_text(json.dumps(notes, indent=1), encoding="utf-8")
            done = ready.towers  # type: ignore[assignment]
        else:
            say(f"{head}: done before")
        trained.update({name: tower.eval() for name, tower in done.items()})  # type: ignore[union-attr]
        if stage.name == only:
            break
    return trained


def seeded(run: Run, seed: int) -> Run:
    """Give the run of another seed: its checkpoints lie in a folder of their own, its pools do not."""
    folder = run.folder / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    return replace(run, config=replace(run.config, seed=seed), folder=folder, pool=run.pool_folder)


def write_space(run: Run, towers: dict[str, Tower], folder: Path, seed: int | None, say: Say) -> None:
    """Write the trained towers as a space in float16, with the numbers that preprocessing needs, and its card."""
    config = run.config
    towers = {name: tower for name, tower in towers.items() if name != NAMING}
    stages = [f"{stage.name}: {stage.steps} steps of {stage.batch}" for stage in config.stages]
    there = {modality for modality in ORDER if {"image": "vision", "video": "vision"}.get(modality, modality) in towers}
    architecture = replace(run.architecture, towers={n: t for n, t in run.architecture.towers.items() if n in towers})
    source: dict[str, Any] = {"made_by": "tools/train_mini.py", "seed": config.seed, "stages": stages}
    if seed is not None:
        source["seed_of_stage_2"] = seed
    manifest = SpaceManifest(
        name=config.space,
        architecture=architecture,
        modalities=tuple(modality for modality in ORDER if modality in there),
        preprocess={modality: dict(numbers) for modality, numbers in run.numbers.items() if modality in there},
        source=source,
        licence="Apache-2.0",
    )
    written = save_space(folder, manifest, {name: getters(tower) for name, tower in towers.items()}, dtype="float16")
    size = space_bytes(folder)
    say(f"{written.space_id}: {', '.join(manifest.modalities)}; {size} bytes in {folder}")
    if size > LIMIT_BYTES:
        say(f"{folder}: {size} bytes, over the limit of {LIMIT_BYTES}. Make a tower narrower in {config.space}.json.")


def main() -> None:
    """Train, then write the space."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="checkpoints, pools and log")
    parser.add_argument("--config", type=Path, default=PACKAGE / "train" / "mini.json")
    parser.add_argument("--output", type=Path, help="space to write; the bundled one where it is not given")
    parser.add_argument(
        "--curves",
        type=Path,
        help="JSON of the curves, a plot and the log beside it; benchmarks/results/mini_training.json for the bundled "
        "space, otherwise in the folder (with --seed, in that seed's folder)",
    )
    parser.add_argument("--stage", help="stop after this stage, write no space")
    parser.add_argument("--partial", action="store_true", help="train nothing: write the towers that are done")
    parser.add_argument("--seed", type=int, help="of the stages that leave the image tower as it is; needs --output")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    arguments = parser.parse_args()
    writes = arguments.partial or arguments.stage is None
    if arguments.seed is not None and writes and arguments.output is None:
        parser.error(f"--seed {arguments.seed} would take the bundled space's place: say --output FOLDER.")
    config = load_train_config(arguments.config)
    if arguments.stage is not None and arguments.stage not in [stage.name for stage in config.stages]:
        parser.error(f"--stage {arguments.stage}: the stages are {', '.join(stage.name for stage in config.stages)}.")
    torch.set_num_threads(arguments.threads)
    own = arguments.folder if arguments.seed is None else arguments.folder / f"seed-{arguments.seed}"
    own.mkdir(parents=True, exist_ok=True)
    began = time.time()
    bundled = writes and arguments.output is None
    curves = arguments.curves or (RESULTS if bundled else own) / "mini_training.json"
    with (arguments.folder / "train.log").open("a", encoding="utf-8") as log:

        def say(line: str) -> None:
            print(line, flush=True)
            log.write(f"{time.strftime('%H:%M:%S', time.gmtime())} {line}\n")
            log.flush()

        run = prepare(config, arguments.folder, arguments.workers, say)
        towers = run_stages(run, arguments.seed, arguments.stage, arguments.partial, say)
        written = write_curves(config, list(dict.fromkeys((arguments.folder, own))), curves)
        if writes:
            output = arguments.output or BUNDLED
            write_space(run, towers, output, arguments.seed, say)
            write_card(output, written)
        named = ", ".join(name for name in towers if name != NAMING)
        say(f"trained {named} in {(time.time() - began) / 60:.1f} min")
    copy_log(arguments.folder / "train.log", curves.with_suffix(".log"))


def copy_log(log: Path, copy: Path) -> None:
    """Copy the log; paths in it start at the project."""
    text = log.read_text(encoding="utf-8")
    copy.write_text(text.replace(f"{PACKAGE.parent}/", ""), encoding="utf-8")


if __name__ == "__main__":
    main()
