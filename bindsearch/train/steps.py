"""The steps of one stage: from its checkpoint on, with a log, figures on the way, and a checkpoint before it leaves."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from bindsearch.errors import BindSearchError
from bindsearch.train.checkpoint import begin_notes, has_finite_weights, load_checkpoint, save_checkpoint, steps_done
from bindsearch.train.processes import rank

SAY_S = 30.0
"""A line of the log comes after so many seconds at the latest: where steps are slow, stderr may be a file."""


class Numbered(Protocol):
    """What the steps need of a stage's numbers."""

    @property
    def name(self) -> str:
        """For the log."""

    @property
    def steps(self) -> int:
        """How many there are in all."""


class Course(Protocol):
    """What the steps need of a stage.

    Attributes:
        times: checkpoint_every_s, measure_every, log_every.
    """

    times: tuple[float, int, int]

    @property
    def config(self) -> Numbered:
        """Its numbers."""

    def measure(self) -> dict[str, float]:
        """Give figures on validation scenes."""

    @property
    def path(self) -> Path:
        """Of the checkpoint."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What it is made of, JSON-able: a checkpoint of anything else is refused."""


def run_steps(
    stage: Course,
    parts: dict[str, nn.Module],
    optimiser: torch.optim.Optimizer,
    take: Callable[[int], float],
    stop_after: int | None = None,
    say: Callable[[str], None] = print,
    stopped: Callable[[], bool] = lambda: False,
    beside: Callable[[], str] = lambda: "",
    noted: Callable[[dict[str, Any]], None] = lambda notes: None,  # noqa: ARG005
) -> dict[str, Any]:
    """Run a stage from its checkpoint, or from the start, to its end.

    Args:
        stage: what to run. Under torchrun every process runs the same one; the first one writes the checkpoints.
        parts: what is trained, by name; overwritten.
        optimiser: of the parts; overwritten.
        take: step's number (from 0) -> its loss; moves the parts.
        stop_after: leave after this many steps in all, with a checkpoint; for tests of resuming.
        say: where the log's lines go, one every `log_every` steps and one after SAY_S: the mean loss of the last
            `log_every` steps, or of as many as there were.
        stopped: asked after each step; True leaves with a checkpoint. Not for several processes: one would wait.
        beside: words that a line of the log adds to the loss.
        noted: told the notes after each measurement. Not to be modified.

    Returns:
        Notes: step, curve, seconds.

    Raises:
        MismatchError: the folder holds a checkpoint of other numbers.
        BindSearchError: a loss, or what is to be saved, is not finite; the checkpoint stays as it was.
    """
    config = stage.config
    checkpoint_every_s, measure_every, log_every = stage.times
    notes: dict[str, Any] = begin_notes(stage.facts)
    if stage.path.exists():
        notes = load_checkpoint(stage.path, parts, optimiser, stage.facts)
        say(f"{config.name}: resumed at step {notes['step']} of {config.steps}")
    end = config.steps if stop_after is None else min(stop_after, config.steps)
    began = saved = time.monotonic()
    before, losses = float(notes["seconds"]), deque[float](maxlen=log_every)
    said = began
    for step in range(int(notes["step"]), end):
        losses.append(take(step))
        if not math.isfinite(losses[-1]):
            raise _run_away(stage, optimiser, step, f"the loss is {losses[-1]}")
        notes["step"], notes["seconds"] = step + 1, round(before + time.monotonic() - began, 1)
        if (step + 1) % log_every == 0 or time.monotonic() - said >= SAY_S:
            mean, said = sum(losses) / len(losses), time.monotonic()
            words = f"{config.name}: step {step + 1}/{config.steps} loss {mean:.4f}{beside()}"
            say(f"{words} {notes['seconds']:.0f} s")
        if (step + 1) % measure_every == 0 or step + 1 == config.steps:
            figures = {"step": step + 1, "loss": round(losses[-1], 4), **stage.measure()}
            notes["curve"].append(figures)
            noted(notes)
            say(f"{config.name}: {', '.join(f'{name} {value}' for name, value in figures.items())}")
        leave = step + 1 == end or stopped()
        if rank() == 0 and (time.monotonic() - saved > checkpoint_every_s or leave):
            if not has_finite_weights(parts):
                raise _run_away(stage, optimiser, step, "its weights are not finite")
            save_checkpoint(stage.path, parts, optimiser, notes)
            saved = time.monotonic()
        if leave:
            break
    return notes


def _run_away(stage: Course, optimiser: torch.optim.Optimizer, step: int, what: str) -> BindSearchError:
    """Say where a training ran away, what is kept, and what to type next."""
    rate = max(float(group["lr"]) for group in optimiser.param_groups)
    kept = f"{stage.path} keeps step {steps_done(stage.path)}" if stage.path.exists() else "no checkpoint was written"
    return BindSearchError(
        f"{stage.path.parent}: {stage.config.name}: after step {step + 1} of {stage.config.steps}, at learning rate "
        f"{rate:g}, {what}; {kept}. Train with a smaller learning rate into another folder, or look for inputs that "
        "are no numbers."
    )
