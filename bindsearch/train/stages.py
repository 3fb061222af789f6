"""The stages of a whole space, one after another: each from its checkpoint, or read back where it is done.

prepare -> run_stages -> write_space
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bindsearch.modalities.bpe import closed_id_map
from bindsearch.models.architecture import load_preprocess
from bindsearch.models.bind import ArchitectureConfig, Tower, build_tower, load_architecture
from bindsearch.models.manifest import SpaceManifest
from bindsearch.models.weights import getters, save_space
from bindsearch.store.files import commit_bytes
from bindsearch.train.binding import NAMING, Run, bound_to, build_stage
from bindsearch.train.checkpoint import finished_notes, load_checkpoint
from bindsearch.train.config import StageConfig, TrainConfig
from bindsearch.train.loop import Stage, stage_facts
from bindsearch.train.naming import Naming
from bindsearch.world.text import vocabulary

ORDER = ("image", "video", "text", "audio", "depth", "thermal", "imu")
TOWER_OF = {"image": "vision", "video": "vision"}
"""Towers of modalities whose tower is named otherwise."""

Say = Callable[[str], None]
Train = Callable[[Stage], dict[str, Any]]


def load_numbers(space: str) -> dict[str, dict[str, Any]]:
    """Read a space's preprocessing numbers, with the id map of the world's words."""
    numbers = load_preprocess(space)
    numbers.setdefault("text", {})["id_map"] = list(closed_id_map(vocabulary()))
    return numbers


def fit_vocabulary(architecture: ArchitectureConfig, words: int, say: Say) -> ArchitectureConfig:
    """Give the text tower as many token rows as the world's words need."""
    text = architecture.towers.get("text")
    if text is None or text.stem.vocabulary == words:
        return architecture
    say(f"{architecture.name}.json says vocabulary {text.stem.vocabulary}; the world's words need {words}: taken.")
    fitting = replace(text, stem=replace(text.stem, vocabulary=words))
    return replace(architecture, towers={**architecture.towers, "text": fitting})


def prepare(config: TrainConfig, folder: Path, workers: int, say: Say) -> Run:
    """Gather what all stages share."""
    numbers = load_numbers(config.space)
    architecture = fit_vocabulary(load_architecture(config.space), len(numbers["text"]["id_map"]), say)
    return Run(config, architecture, numbers, folder, workers)


def seeded(run: Run, seed: int) -> Run:
    """Give the run of another seed: its checkpoints lie in a folder of their own, its pools do not."""
    folder = run.folder / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    return replace(run, config=replace(run.config, seed=seed), folder=folder, pool=run.pool_folder)


def finished_towers(run: Run, stage: StageConfig, trained: dict[str, Tower]) -> dict[str, Tower] | None:
    """Read a stage that is done on the towers before it, without its pools; None where there is work left."""
    names = ("vision", "text") if stage.train_anchor else (stage.modality,)
    path = run.folder / f"{stage.name}.safetensors"
    towers: dict[str, Any] = {name: build_tower(run.architecture, name, seed=run.config.seed) for name in names}
    if stage.naming:
        towers[NAMING] = Naming(run.architecture.dim, run.config.seed)
    facts = stage_facts(stage, run.config.seed, dict(towers), bound_to(run, stage, trained))
    notes = finished_notes(path, facts, stage.steps)
    if notes is None:
        return None
    load_checkpoint(path, dict(towers), None, facts)
    if not notes_path(run, stage).exists():  # it was stopped between its last checkpoint and its notes
        write_notes(run, stage, notes)
    return towers


def notes_path(run: Run, stage: StageConfig) -> Path:
    """Say where a stage's notes lie, as `write_curves` gathers them."""
    return run.folder / f"{stage.name}.json"


def write_notes(run: Run, stage: StageConfig, notes: dict[str, Any]) -> None:
    """Write a stage's steps, seconds and curve."""
    commit_bytes(notes_path(run, stage), json.dumps(notes, indent=1).encode("ascii"))


def run_stages(
    run: Run, stages: Sequence[StageConfig], say: Say, train: Train | None, seed: int | None = None
) -> dict[str, Tower]:
    """Run stages in order; those that are done are read back.

    Args:
        run: what they share.
        stages: of `run.config`, in its order: all of them, or some.
        say: where the log's lines go.
        train: takes a stage's steps and gives its notes; None ends before the first stage that is not done.
        seed: of the stages that leave the image tower as it is; None: the configuration's.

    Returns:
        The trained towers, and the classifiers of stages that have them under `NAMING`.
    """
    trained: dict[str, Tower] = {}
    for stage in stages:
        here = run if seed is None or stage.train_anchor else seeded(run, seed)
        done = finished_towers(here, stage, trained)
        if done is None and train is None:
            break
        head = f"stage {run.config.stages.index(stage) + 1}/{len(run.config.stages)}: {stage.name}"
        if done is None and train is not None:
            say(head)
            began = time.monotonic()
            ready = build_stage(here, stage, trained)
            say(f"{stage.name}: prepared in {time.monotonic() - began:.0f} s")
            write_notes(here, stage, train(ready))
            done = ready.towers  # type: ignore[assignment]
        else:
            say(f"{head}: done before")
        trained.update({name: tower.eval() for name, tower in done.items()})  # type: ignore[union-attr]
    return trained


def write_space(
    run: Run, towers: dict[str, Tower], folder: Path, source: dict[str, Any], name: str = ""
) -> SpaceManifest:
    """Write the trained towers as a space in float16, with the numbers that preprocessing needs.

    Args:
        run: says the architecture and the numbers.
        towers: from `run_stages`.
        folder: of the space.
        source: what the space says of where it comes from, before its stages.
        name: of the space; "" names it as its architecture.
    """
    config = run.config
    towers = {name: tower for name, tower in towers.items() if name != NAMING}
    stages = [f"{stage.name}: {stage.steps} steps of {stage.batch}" for stage in config.stages]
    there = {modality for modality in ORDER if TOWER_OF.get(modality, modality) in towers}
    architecture = replace(run.architecture, towers={n: t for n, t in run.architecture.towers.items() if n in towers})
    manifest = SpaceManifest(
        name=name or run.architecture.name,
        architecture=architecture,
        modalities=tuple(modality for modality in ORDER if modality in there),
        preprocess={modality: dict(numbers) for modality, numbers in run.numbers.items() if modality in there},
        source={**source, "stages": stages},
        licence="Apache-2.0",
    )
    return save_space(folder, manifest, {name: getters(tower) for name, tower in towers.items()}, dtype="float16")


@contextmanager
def logged(path: Path, say: Say) -> Iterator[Say]:
    """Give what says a line and adds it, with the time, to a log."""
    with path.open("a", encoding="utf-8") as log:

        def both(line: str) -> None:
            say(line)
            log.write(f"{time.strftime('%H:%M:%S', time.gmtime())} {line}\n")
            log.flush()

        yield both
