"""`bindsearch train`: bind a tower to a frozen space on a user's pairs, and write the space that it joins.

read_pairs -> anchors embedded, inputs prepared (both kept on disk) -> held-out pairs -> train_stage -> the space
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bindsearch.config import canonical_json, to_json_dict
from bindsearch.errors import InputError, MismatchError, TooManyBadError
from bindsearch.models.spaces import Space, load_space
from bindsearch.store.files import commit_bytes
from bindsearch.train.bind_config import BindConfig
from bindsearch.train.bind_stage import BoundPairs, bind_stage, measured
from bindsearch.train.checkpoint import differences
from bindsearch.train.loop import train_stage
from bindsearch.train.new_tower import TowerPlan, plan_tower, start_tower, take_statistics, write_joined_space
from bindsearch.train.pair_files import Pairs, hold_out, read_pairs
from bindsearch.train.prepared import PreparedRows, check_any, embed_anchors, prepare_inputs, read_anchors
from bindsearch.train.processes import join_processes
from bindsearch.train.recall import write_curves
from bindsearch.train.run_lock import lock_run
from bindsearch.train.same_files import check_files
from bindsearch.train.watched import first_signal, watched

SETTINGS, FILES, LEDGER = "train.json", "files.json", "bad.jsonl"
REPORT, READY, SPACE = "report.json", "ready.json", "space"
ANCHORS, CHECKPOINT = "anchors", "bind.safetensors"
_POLL_S = 0.5


@dataclass
class BindReport:
    """What a run did.

    Attributes:
        folder: of the run; `space` in it is what `load_space` takes.
        space: folder of the space that was written; "" where the run was stopped before.
        space_id: of the joint space, which is the frozen one's.
        tower_id: of the tower that was trained.
        modality, anchor: of the two sides.
        parameters: of the tower that was trained.
        pairs: "train", "held_out" and "bad".
        steps: done.
        seconds: "prepare", "train" (all runs together).
        figures: retrieval among the held-out pairs at the end.
        ledger: file that says why each bad pair is bad; "" where none is.
    """

    folder: str
    space: str = ""
    space_id: str = ""
    tower_id: str = ""
    modality: str = ""
    anchor: str = ""
    parameters: int = 0
    pairs: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    ledger: str = ""

    def to_json(self) -> dict[str, Any]:
        """Write plain JSON types."""
        return asdict(self)

    def to_text(self) -> str:
        """Write a few lines for a person."""
        counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in self.pairs.items())
        lines = [
            f"{self.folder}: {self.modality} bound to {self.anchor} of {self.space_id}",
            f"  pairs: {counts}; {self.steps} steps, {self.parameters / 1e6:.2f} M parameters",
            f"  time: prepare {self.seconds['prepare']:.0f} s, train {self.seconds['train']:.0f} s",
        ]
        lines += [f"  {name}: {value:.3f}" for name, value in self.figures.items()]
        if self.figures and self.pairs.get("held_out"):
            lines.append(f"  by chance: recall_at_1 of about {1 / self.pairs['held_out']:.3f}")
        if self.ledger:
            lines.append(f"  bad pairs: reasons in {self.ledger}")
        if self.space:
            lines.append(f"  {self.tower_id}")
            rows = " --modality features" if self.modality == "features" else ""  # no suffix says it
            lines.append(f"  Next: bindsearch embed SRC{rows} --space {self.space} -o EMBEDDINGS")
        return "\n".join(lines)


@dataclass(frozen=True)
class RunOptions:
    """What a run may be told beside its configuration.

    Attributes:
        workers: decode processes; 0 decodes in this one.
        progress: bars on stderr.
        say: where the log's lines go.
        stop_after: leave after so many steps in all, with a checkpoint.
    """

    workers: int = 2
    progress: bool = False
    say: Callable[[str], None] = print
    stop_after: int | None = None


def run_bind(config: BindConfig, folder: str | os.PathLike[str], options: RunOptions | None = None) -> BindReport:
    """Train a tower on a user's pairs, from the folder's checkpoint if it has one, and write the space that it joins.

    Args:
        config: what to do.
        folder: of caches, checkpoint, curves, report and the space; the same configuration goes on in it.
        options: see there. Under torchrun every process calls this alike; the first one prepares and writes.

    Returns:
        What was done.

    Raises:
        MissingInputError: no manifest, no pair, or next to none that can be read.
        InputError: the configuration cannot be meant.
        TooManyBadError: more broken pairs than `max_bad` allows; the reasons are in the ledger.
        MismatchError: the folder holds a run of another configuration, or of other files, that has begun to train.
        BindSearchError: another run trains in the folder.
        KeyboardInterrupt: SIGINT or SIGTERM came; the step in hand was finished and kept.
    """
    options = options or RunOptions()
    number = int(os.environ.get("RANK", "0"))
    if number:
        options = RunOptions(0, False, lambda line: None, options.stop_after)  # noqa: ARG005
    began = time.monotonic()
    run = _open_run(config, Path(folder))
    with nullcontext() if number else lock_run(run.folder):
        if number == 0:
            _prepare(run, options)
        else:
            _wait_for(run)
        return _bind(run, options, began, write=number == 0)


def _bind(run: _Run, options: RunOptions, began: float, write: bool) -> BindReport:
    """Train on what is prepared; one process writes what came of it."""
    join_processes()
    bound = _bound_pairs(run)
    report = BindReport(str(run.folder), space_id=run.space.space_id, modality=run.pairs.modality)
    report.anchor, report.seconds["prepare"] = run.pairs.anchor, round(time.monotonic() - began, 1)
    report.pairs = {"train": len(bound.train), "held_out": len(bound.held_out), "bad": len(bound.bad)}
    report.ledger = str(run.folder / LEDGER) if bound.bad else ""
    _train(run, bound, options, report, write)
    return report


@dataclass(frozen=True)
class _Run:
    """A run that is opened: what it is made of."""

    config: BindConfig
    folder: Path
    pairs: Pairs
    space: Space
    plan: TowerPlan
    id: dict[str, Any]


def _open_run(config: BindConfig, folder: Path) -> _Run:
    pairs = read_pairs(config.pairs)
    space = load_space(config.space)
    if pairs.anchor not in space.modalities:
        raise InputError(
            f"{config.space}: does not encode {pairs.anchor}, side a of {config.pairs.manifest}. It encodes "
            f"{', '.join(space.modalities)}. Name another --space, or swap the columns."
        )
    plan = plan_tower(config, pairs.modality, space)
    settings = to_json_dict(config)
    for name in ("manifest", "features", "max_bad"):  # where they lie is no part of what is trained
        del settings["pairs"][name]
    identity = {
        "config": {**settings, "space": space.space_id},
        "pairs": pairs.id,
        "anchor": f"{pairs.anchor} {space.tower_id(pairs.anchor)} {space.preset_id(pairs.anchor)}",
        "modality": pairs.modality,
    }
    return _Run(config, folder, pairs, space, plan, identity)


def _check_same(run: _Run) -> None:
    """Refuse a folder that another run began to train in; note in any other what this run is.

    A run that was refused, or killed, before its first checkpoint leaves nothing that another could spoil.

    Raises:
        MismatchError: naming what differs, both values.
    """
    path = run.folder / SETTINGS
    mine = json.loads(canonical_json(run.id))
    there = json.loads(path.read_text(encoding="utf-8"))["id"] if path.is_file() else None
    begun = (run.folder / REPORT).exists() or any(
        run.folder.glob("*.safetensors")
    )  # this command's, or a whole space's
    if there is not None and begun:
        for name, ours, theirs in differences(mine, there):
            raise MismatchError(
                f"{run.folder}: was begun with {name} = {theirs}, this run has {ours}. Use another folder (-o), or the "
                "same settings to go on."
            )
        return
    (run.folder / FILES).unlink(missing_ok=True)
    if there is not None and there.get("anchor") != mine["anchor"]:
        shutil.rmtree(run.folder / ANCHORS, ignore_errors=True)  # made by another tower
    whole = {"config": to_json_dict(run.config), "id": mine}
    commit_bytes(path, (json.dumps(whole, indent=1) + "\n").encode("ascii"))


def _prepare(run: _Run, options: RunOptions) -> None:
    """Check that the run is the one that was begun, embed the anchors, prepare the inputs, say that both are there."""
    from tqdm import tqdm

    _check_same(run)
    files = len(run.pairs.anchors) + len(run.pairs.others)
    with tqdm(total=files, desc="check", unit="file", disable=None if options.progress else True) as bar:
        check_files(run.pairs, run.folder / FILES, bar.update)
    (run.folder / READY).unlink(missing_ok=True)
    unusable = f"; {len(run.pairs.bad)} rows of the list name none" if run.pairs.bad else ""
    options.say(f"pairs: {len(run.pairs.rows)} of {run.pairs.anchor} and {run.pairs.modality} listed{unusable}")
    embed_anchors(run.pairs, run.space, run.folder / ANCHORS, options.workers, options.progress)
    _read_inputs(run, options)
    commit_bytes(run.folder / READY, canonical_json(run.id).encode("ascii"))


def _wait_for(run: _Run) -> None:
    """Wait until the first process has prepared this very run."""
    while True:
        path = run.folder / READY
        if path.is_file() and path.read_bytes() == canonical_json(run.id).encode("ascii"):
            return
        time.sleep(_POLL_S)


def _read_inputs(run: _Run, options: RunOptions | None = None) -> PreparedRows:
    from tqdm import tqdm

    options = options or RunOptions(0)
    modality = run.pairs.modality
    config = run.space.modality(modality).config("default", **run.plan.preprocess)
    items = list(run.pairs.others.values())
    workers = 0 if modality in ("features", "text") else options.workers
    with tqdm(total=len(items), desc="prepare", unit="item", disable=None if options.progress else True) as bar:
        return prepare_inputs(items, config, run.folder / "prepared", workers, bar.update)


def _bound_pairs(run: _Run) -> BoundPairs:
    """Put together what can be read, split off what is held out, write the ledger.

    Raises:
        TooManyBadError, MissingInputError: too little is left.
    """
    anchors, bad_anchors = read_anchors(list(run.pairs.anchors.values()), run.folder / ANCHORS)
    inputs = _read_inputs(run)
    bad = [*run.pairs.bad, *bad_anchors, *inputs.bad]
    lines = "".join(canonical_json(line) + "\n" for line in bad)
    if int(os.environ.get("RANK", "0")) == 0:
        commit_bytes(run.folder / LEDGER, lines.encode("ascii"))
    kept = [row for row in run.pairs.rows if row[0] in anchors and row[1] in inputs]
    listed = len(run.pairs.rows) + len(run.pairs.bad)
    share = 1 - len(kept) / listed
    settings = run.config.pairs
    if share > settings.max_bad:
        kinds = ", ".join(f"{count} {reason}" for reason, count in Counter(_brief(line) for line in bad).most_common(3))
        raise TooManyBadError(
            f"{settings.manifest}: {listed - len(kept)} of {listed} pairs are broken ({share:.1%}), over --max-bad "
            f"{settings.max_bad:g}: {kinds}. All reasons: {run.folder / LEDGER}"
        )
    check_any(len(kept), listed, str(run.folder / LEDGER))
    held = hold_out(kept, settings.held_out, settings.max_held_out)
    train = [row for row, out in zip(kept, held, strict=True) if not out]
    return BoundPairs(anchors, inputs, train, [row for row, out in zip(kept, held, strict=True) if out], bad)


def _brief(line: dict[str, Any]) -> str:
    """Say why, without the name of what it is, so that equal reasons are counted together."""
    reason = line["reason"].removeprefix(f"{line['key']}: ").replace(line["key"], "it")
    return f"x side {line['side'] or '?'}: {reason[:60]}"


def _train(run: _Run, bound: BoundPairs, options: RunOptions, report: BindReport, write: bool) -> None:
    """Train, and write what came of it; fills the report."""
    tower = start_tower(run.plan, run.config.seed)
    take_statistics(tower, bound.statistics_rows)
    report.parameters = sum(parameter.numel() for parameter in tower.parameters())
    schedule = run.config.schedule
    interrupted = threading.Event()
    stage = bind_stage(run.config, run.plan, tower, bound, (run.folder, canonical_json(run.id)))
    if write:
        stage.noted = lambda notes: write_curves(notes, run.folder)
    with first_signal(interrupted), watched(stage, options.progress):
        notes = train_stage(stage, options.stop_after, options.say, interrupted.is_set)
    if interrupted.is_set() and int(notes["step"]) < schedule.steps:
        raise KeyboardInterrupt  # the checkpoint holds all steps so far
    report.steps, report.seconds["train"] = int(notes["step"]), float(notes["seconds"])
    report.figures = measured(notes)
    if not write or report.steps < schedule.steps:
        return
    name = run.config.name or f"{run.space.name}+{run.pairs.modality}"
    source = {
        "made_by": "bindsearch train",
        "pairs": len(bound.train),
        "steps": report.steps,
        "seed": run.config.seed,
        "tower": to_json_dict(run.config.tower),
    }
    facts = (run.pairs.anchor, source)
    manifest = write_joined_space(run.folder / SPACE, tower.eval(), run.plan, run.space, name, facts)
    report.space, report.tower_id = str(run.folder / SPACE), manifest.tower_id(run.pairs.modality)
    commit_bytes(run.folder / REPORT, (json.dumps(report.to_json(), indent=1) + "\n").encode("ascii"))
