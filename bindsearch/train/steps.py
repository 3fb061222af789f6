"""The steps of one stage: from its checkpoint on, with a log, figures on the way, and a checkpoint before it leaves."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bindsearch.train.checkpoint import load_checkpoint, save_checkpoint
from bindsearch.train.processes import rank


@dataclass
class Course:
    """What surrounds a step.

    Attributes:
        name: of the stage, for the log.
        steps: how many there are in all.
        id: hash that a checkpoint must bear.
        path: of the checkpoint.
        parts: what is trained, by name.
        optimiser: of the parts.
        take: step's number (from 0) -> its loss; moves the parts.
        measure: gives figures on validation scenes.
        times: checkpoint_every_s, measure_every, log_every.
        beside: words that a line of the log adds to the loss.
        curve: figures so far.
    """

    name: str
    steps: int
    id: str
    path: Path
    parts: dict[str, nn.Module]
    optimiser: torch.optim.Optimizer
    take: Callable[[int], float]
    measure: Callable[[], dict[str, float]]
    times: tuple[float, int, int]
    beside: Callable[[], str] = lambda: ""
    curve: list[dict[str, float]] = field(default_factory=list)


def run_steps(
    course: Course,
    stop_after: int | None = None,
    say: Callable[[str], None] = print,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run a stage from its checkpoint, or from the start, to its end; overwrites its parts.

    Args:
        course: what to run. Under torchrun every process runs the same one; the first one writes the checkpoints.
        stop_after: leave after this many steps in all, with a checkpoint; for tests of resuming.
        say: where the log's lines go: the mean loss since the last one, or of as many steps as there were.
        stopped: asked after each step; True leaves with a checkpoint. Not for several processes: one would wait.

    Returns:
        Notes: step, curve, seconds.

    Raises:
        MismatchError: the folder holds a checkpoint of other numbers.
    """
    checkpoint_every_s, measure_every, log_every = course.times
    notes: dict[str, Any] = {"config": course.id, "step": 0, "curve": course.curve, "seconds": 0.0}
    if course.path.exists():
        notes = load_checkpoint(course.path, course.parts, course.optimiser, course.id)
        say(f"{course.name}: resumed at step {notes['step']} of {course.steps}")
    end = course.steps if stop_after is None else min(stop_after, course.steps)
    began = saved = time.monotonic()
    before, losses = float(notes["seconds"]), deque[float](maxlen=log_every)
    for step in range(int(notes["step"]), end):
        losses.append(course.take(step))
        notes["step"], notes["seconds"] = step + 1, round(before + time.monotonic() - began, 1)
        if (step + 1) % log_every == 0:
            mean = sum(losses) / len(losses)
            words = f"{course.name}: step {step + 1}/{course.steps} loss {mean:.4f}{course.beside()}"
            say(f"{words} {notes['seconds']:.0f} s")
        if (step + 1) % measure_every == 0 or step + 1 == course.steps:
            figures = {"step": step + 1, "loss": round(losses[-1], 4), **course.measure()}
            notes["curve"].append(figures)
            say(f"{course.name}: {figures}")
        leave = step + 1 == end or stopped()
        if rank() == 0 and (time.monotonic() - saved > checkpoint_every_s or leave):
            save_checkpoint(course.path, course.parts, course.optimiser, notes)
            saved = time.monotonic()
        if leave:
            break
    return notes
