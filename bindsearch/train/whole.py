"""`bindsearch train` on stages: a whole space from nothing, on the drawn world.

check_whole -> prepare -> run_stages (each from its checkpoint) -> the space
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bindsearch.config import canonical_json, content_hash, to_json_dict
from bindsearch.errors import InputError, MismatchError, UnknownNameError, UnsupportedError
from bindsearch.models.bind import ArchitectureConfig
from bindsearch.store.files import commit_bytes
from bindsearch.train.binding import NAMING, Run, check_stage
from bindsearch.train.checkpoint import differences
from bindsearch.train.config import StageConfig, TrainConfig, check_rates, load_train_config
from bindsearch.train.curves import write_curves
from bindsearch.train.loop import Stage, train_stage
from bindsearch.train.run_lock import lock_run
from bindsearch.train.stages import TOWER_OF, Say, logged, prepare, run_stages, write_notes, write_space
from bindsearch.train.watched import first_signal, watched
from bindsearch.world.scene import VERSION
from bindsearch.world.text import LANGUAGES

SETTINGS, REPORT, SPACE = "train.json", "report.json", "space"
CURVES, LOG = "curves.json", "train.log"
_TAKEN = {Path(name).stem for name in (SETTINGS, REPORT, CURVES)}
_FILE_NAME = re.compile(r"\w[\w.-]*")
_PICTURES = ("size_px", "mean", "std")
_CODES = ("subject", "setting", "motion", "colour", "count", "place", "size", "light", "view")
"""What two scenes can agree in."""


@dataclass
class WholeReport:
    """What a run did.

    Attributes:
        folder: of the run.
        space: folder of the space, which `load_space` takes.
        space_id: of the space.
        modalities: that it encodes.
        parameters: of its towers together.
        stages: of each stage its name, steps, seconds (all runs together) and last figures.
    """

    folder: str
    space: str
    space_id: str
    modalities: list[str]
    parameters: int
    stages: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Write plain JSON types."""
        return asdict(self)

    def to_text(self) -> str:
        """Write a few lines for a person."""
        lines = [f"{self.folder}: {', '.join(self.modalities)}; {self.parameters / 1e6:.2f} M parameters"]
        for stage in self.stages:
            figures = ", ".join(f"{name} {value:.3f}" for name, value in list(stage["figures"].items())[:2])
            lines.append(f"  {stage['name']}: {stage['steps']} steps, {stage['seconds']:.0f} s; {figures}")
        return "\n".join(
            [*lines, f"  {self.space_id}", f"  Next: bindsearch embed SRC --space {self.space} -o EMBEDDINGS"]
        )


@dataclass(frozen=True)
class WholeOptions:
    """What a run may be told beside its configuration.

    Attributes:
        workers: processes that draw the world; 0 draws in this one.
        progress: bars on stderr.
        say: where the log's lines go, beside the log.
        name: of the space; "" names it as its architecture.
    """

    workers: int = 2
    progress: bool = False
    say: Say = print
    name: str = ""


def load_whole_config(path: str | Path) -> TrainConfig:
    """Read the stages of a whole space; an architecture of one's own is a file, and lies relative to this one.

    Raises:
        InputError: as `load_train_config`.
    """
    config = load_train_config(path)
    own = config.space.endswith(".json")
    return replace(config, space=str(Path(path).parent / config.space)) if own else config


def run_whole(config: TrainConfig, folder: str | os.PathLike[str], options: WholeOptions | None = None) -> WholeReport:
    """Train every tower of a space from nothing, from the folder's checkpoints where it has some, and write the space.

    Args:
        config: what to do.
        folder: of pools, checkpoints, curves, log, report and the space; the same configuration goes on in it.
        options: see there.

    Returns:
        What was done.

    Raises:
        InputError, UnsupportedError: the configuration cannot be meant; nothing was begun.
        MismatchError: the folder holds another run, or a stage of other numbers.
        BindSearchError: another run trains in the folder.
        KeyboardInterrupt: SIGINT or SIGTERM came; the step in hand was finished and kept.
    """
    options, folder = options or WholeOptions(), Path(folder)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UnsupportedError("the stages of a whole space are trained by one process. Start it without torchrun.")
    told: list[str] = []
    run = prepare(config, folder, options.workers, told.append)
    check_whole(config, run.architecture, run.numbers)
    with lock_run(folder):
        _check_same(run)
        with logged(folder / LOG, options.say) as say:
            for line in told:
                say(line)
            return _run(replace(run, say=say), options, say)


def _run(run: Run, options: WholeOptions, say: Say) -> WholeReport:
    """Train what is not done yet, and write what came of it."""
    config, folder = run.config, run.folder

    def train(stage: Stage) -> dict[str, Any]:
        def noted(notes: dict[str, Any]) -> None:
            write_notes(run, stage.config, notes)
            write_curves(config, [folder], folder / CURVES)

        interrupted = threading.Event()
        stage.noted = noted
        with first_signal(interrupted), watched(stage, options.progress):
            notes = train_stage(stage, None, say, interrupted.is_set)
        if interrupted.is_set():
            raise KeyboardInterrupt  # the checkpoint holds all steps so far
        return notes

    towers = run_stages(run, config.stages, say, train)
    curves = write_curves(config, [folder], folder / CURVES)["stages"]
    source = {"made_by": "bindsearch train", "seed": config.seed}
    space = write_space(run, towers, folder / SPACE, source, options.name)
    towers.pop(NAMING, None)
    parameters = sum(each.numel() for tower in towers.values() for each in tower.parameters())
    report = WholeReport(str(folder), str(folder / SPACE), space.space_id, list(space.modalities), parameters)
    for stage in config.stages:
        kept = curves[stage.name]
        figures = {name: value for name, value in kept["curve"][-1].items() if "->" in name}
        report.stages.append({"name": stage.name, "steps": stage.steps, "seconds": kept["seconds"], "figures": figures})
    commit_bytes(folder / REPORT, (json.dumps(report.to_json(), indent=1) + "\n").encode("ascii"))
    say(f"{report.space_id}: {', '.join(report.modalities)} in {report.space}")
    return report


def _check_same(run: Run) -> None:
    """Refuse a folder that another run began to train in; note in any other what this run is.

    Stages are not compared here: each one's checkpoint knows what it is made of, and stages may be added at the end.

    Raises:
        MismatchError: naming what differs, both values.
    """
    path = run.folder / SETTINGS
    mine = {
        "architecture": run.architecture.name,
        "preprocess": content_hash(run.numbers),
        "seed": run.config.seed,
        "world": VERSION,
    }
    there = json.loads(path.read_text(encoding="utf-8"))["id"] if path.is_file() else None
    if there is not None and any(run.folder.glob("*.safetensors")):
        for name, ours, theirs in differences(json.loads(canonical_json(mine)), there):
            raise MismatchError(
                f"{run.folder}: was begun with {name} = {theirs}, this run has {ours}. Use another folder (-o), or the "
                "same settings to go on."
            )
    whole = {"config": to_json_dict(run.config), "id": mine}
    commit_bytes(path, (json.dumps(whole, indent=1) + "\n").encode("ascii"))


def check_whole(config: TrainConfig, architecture: ArchitectureConfig, numbers: dict[str, dict[str, Any]]) -> None:
    """Refuse before the first step what would end a run at its last stage.

    Args:
        config: of the run.
        architecture: of its space.
        numbers: preprocessing numbers, modality by modality.

    Raises:
        InputError, UnsupportedError: naming the stage and what to write instead.
    """
    if not config.stages:
        raise InputError("stages: there are none. Write one of text with train_anchor first; see docs/train.md.")
    if config.validation < 2 or config.measure_every < 1 or config.log_every < 1 or not config.checkpoint_every_s > 0:
        raise InputError(
            "the run: needs validation >= 2, measure_every >= 1, log_every >= 1 and checkpoint_every_s above 0."
        )
    name, count = Counter(stage.name for stage in config.stages).most_common(1)[0]
    if count > 1:
        raise InputError(f"stage {name}: {count} stages have this name, and would share a checkpoint. Rename one.")
    trained: set[str] = set()
    for stage in config.stages:
        _check_numbers(stage)
        check_stage(stage, trained)
        _check_towers(stage, architecture, numbers)
        trained |= {"vision", "text"} if stage.train_anchor else {stage.modality}


def _check_numbers(stage: StageConfig) -> None:
    """Refuse what a stage's numbers alone show."""
    where = f"stage {stage.name}"
    if not _FILE_NAME.fullmatch(stage.name) or stage.name in _TAKEN:
        raise InputError(
            f"{where}: names its files; letters, digits, points and dashes, and none of {', '.join(sorted(_TAKEN))}."
        )
    check_rates(where, stage.learning_rate, stage.temperature)
    if stage.pool < stage.batch - round(stage.batch * stage.video_share):
        raise InputError(f"{where}: a pool of {stage.pool} scenes is smaller than a batch's {stage.batch}.")
    for kind, given, known in (
        ("attribute in alike", stage.alike, _CODES),
        ("language", stage.languages, LANGUAGES),
    ):
        for word in given:
            if word not in known:
                raise UnknownNameError(f"{kind} of {where}", word, known)


def _check_towers(stage: StageConfig, architecture: ArchitectureConfig, numbers: dict[str, dict[str, Any]]) -> None:
    """Refuse a stage that the architecture has no tower for, or no preprocessing numbers."""
    kinds = ("image", "video", "text") if stage.train_anchor else (stage.anchor, stage.modality)
    for kind in kinds:
        tower = TOWER_OF.get(kind, kind)
        if tower not in architecture.towers:
            raise InputError(
                f"stage {stage.name}: {architecture.name} has no tower {tower}. It has "
                f"{', '.join(architecture.towers)}."
            )
        needed = _PICTURES if tower == "vision" else ()
        lacking = [name for name in needed if name not in numbers.get(kind, {})]
        if lacking or kind not in numbers:
            raise InputError(
                f"stage {stage.name}: {architecture.name} has no preprocessing numbers of {kind}"
                f"{': ' + ', '.join(lacking) if lacking else ''}. Write them into its file under preprocess.{kind}."
            )
