"""The training loop: AdamW, warm-up and cosine, bfloat16 where the processor has it, checkpoints, exact resume.

Every random choice of step s is drawn from (seed, stage, s), and nothing else is random: a resumed run repeats an
undisturbed one bit for bit on one machine.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bindsearch.config import content_hash, to_json_dict
from bindsearch.train.checkpoint import load_checkpoint, save_checkpoint
from bindsearch.train.config import StageConfig
from bindsearch.train.loss import info_nce


@dataclass(frozen=True)
class Batch:
    """What a step trains on.

    Attributes:
        anchors, others: give (B, d) embeddings when called; called inside autocast.
        no_negative: (B, B) bool, or None.
    """

    anchors: Callable[[], Tensor]
    others: Callable[[], Tensor]
    no_negative: Tensor | None


@dataclass
class Stage:
    """One stage, ready to run.

    Attributes:
        config: its numbers.
        seed: of the run.
        towers: the towers that are trained, by name; overwritten by training.
        draw: step's generator -> Batch.
        scale: gives the multiplier of the cosines, a tensor where it is learned.
        measure: gives figures on validation scenes.
        folder: of the checkpoint.
        times: checkpoint_every_s, measure_every, log_every.
    """

    config: StageConfig
    seed: int
    towers: dict[str, nn.Module]
    draw: Callable[[np.random.Generator], Batch]
    scale: Callable[[], Tensor | float]
    measure: Callable[[], dict[str, float]]
    folder: Path
    times: tuple[float, int, int] = (240.0, 250, 50)
    curve: list[dict[str, float]] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """Where the checkpoint lies."""
        return self.folder / f"{self.config.name}.safetensors"

    @property
    def id(self) -> str:
        """Hash of the stage's numbers, the seed and the towers' numbers: a checkpoint of another one is refused."""
        towers = {name: to_json_dict(tower.config) for name, tower in self.towers.items()}
        return content_hash({"stage": to_json_dict(self.config), "seed": self.seed, "towers": towers})


def learning_rate(config: StageConfig, step: int) -> float:
    """Give the rate of a step (from 0): linear warm-up, then a cosine down to zero."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def build_optimiser(towers: dict[str, nn.Module], config: StageConfig) -> torch.optim.AdamW:
    """Build AdamW; matrices and kernels decay, tables, norms, biases and scales do not."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for tower in towers.values():
        for key, parameter in tower.named_parameters():
            plain = parameter.ndim < 2 or key.endswith(("pos_embed", "cls_token", "bias_k", "bias_v"))
            (free if plain else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), eps=1e-8)


def step_generator(seed: int, stage: str, step: int) -> np.random.Generator:
    """Give the generator of everything random in one step."""
    return np.random.default_rng([seed, zlib.crc32(stage.encode()), step])


def has_bfloat16() -> bool:
    """Say whether this processor multiplies bfloat16 in hardware."""
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool((check and check()) or (amx and amx()))


def train_stage(stage: Stage, stop_after: int | None = None, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run a stage from its checkpoint, or from the start, to its end; overwrites the towers.

    Args:
        stage: what to run.
        stop_after: leave after this many steps in all, with a checkpoint; for tests of resuming.
        say: where the log's lines go.

    Returns:
        Notes: step, curve, seconds.

    Raises:
        MismatchError: the folder holds a checkpoint of other numbers.
    """
    config = stage.config
    checkpoint_every_s, measure_every, log_every = stage.times
    optimiser = build_optimiser(stage.towers, config)
    notes: dict[str, Any] = {"config": stage.id, "step": 0, "curve": stage.curve, "seconds": 0.0}
    if stage.path.exists():
        notes = load_checkpoint(stage.path, stage.towers, optimiser, stage.id)
        say(f"{config.name}: resumed at step {notes['step']} of {config.steps}")
    end = config.steps if stop_after is None else min(stop_after, config.steps)
    began = saved = time.monotonic()
    before = float(notes["seconds"])
    for step in range(int(notes["step"]), end):
        loss = train_step(stage, optimiser, step)
        notes["step"], notes["seconds"] = step + 1, round(before + time.monotonic() - began, 1)
        if (step + 1) % log_every == 0:
            scale = float(torch.as_tensor(stage.scale()).detach())
            say(
                f"{config.name}: step {step + 1}/{config.steps} loss {loss:.4f} scale {scale:.2f} "
                f"{notes['seconds']:.0f} s"
            )
        if (step + 1) % measure_every == 0 or step + 1 == config.steps:
            figures = {"step": step + 1, "loss": round(loss, 4), **stage.measure()}
            notes["curve"].append(figures)
            say(f"{config.name}: {figures}")
        if time.monotonic() - saved > checkpoint_every_s or step + 1 == end:
            save_checkpoint(stage.path, stage.towers, optimiser, notes)
            saved = time.monotonic()
    return notes


def train_step(stage: Stage, optimiser: torch.optim.Optimizer, step: int) -> float:
    """Take one step; overwrites towers and optimiser. Returns the loss."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(stage.config, step)
    for tower in stage.towers.values():
        tower.train()
    rng = step_generator(stage.seed, stage.config.name, step)
    torch.manual_seed(int(rng.integers(0, 2**62)))  # dropout and drop path
    batch = stage.draw(rng)
    with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
        anchors, others = batch.anchors(), batch.others()
    loss = info_nce(anchors, others, stage.scale(), batch.no_negative)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = [parameter for tower in stage.towers.values() for parameter in tower.parameters()]
    torch.nn.utils.clip_grad_norm_(parameters, stage.config.clip_norm)
    optimiser.step()
    return float(loss.detach())
