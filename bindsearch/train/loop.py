"""The training loop: AdamW, warm-up and cosine, bfloat16 where the processor has it, gradient caching, exact resume.

Every random choice of step s is drawn from (seed, stage, s), and nothing else is random: a resumed run repeats an
undisturbed one bit for bit on one machine.

A step: encode the batch, in chunks if it is large; take the loss and its gradient at the embeddings; send that gradient
back through the towers. A batch of several chunks is encoded twice, first without a graph, then chunk by chunk with one
and with the same random numbers, so that memory does not grow with the batch (Gao et al. 2021, "Scaling deep
contrastive learning batch size under memory limited setup").
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bindsearch.config import to_json_dict
from bindsearch.train.config import Schedule, StageConfig
from bindsearch.train.loss import info_nce
from bindsearch.train.processes import average_statistics, gather_rows, own_rows, rank, sum_gradients
from bindsearch.train.steps import run_steps

Encode = Callable[[slice], Tensor]


@dataclass(frozen=True)
class Batch:
    """What a step trains on.

    Attributes:
        size: B, pairs of all processes together.
        anchors, others: rows of the batch -> (b, d) embeddings, any norm; called inside autocast, and twice for the
            same rows where the batch is cut in chunks.
        alike: (B, B) bool: [i, j] says that anchor i and other j fit although they are no pair; or None.
        added: a loss of the anchors' embeddings (B, d) that is added; or None.
    """

    size: int
    anchors: Encode
    others: Encode
    alike: Tensor | None = None
    added: Callable[[Tensor], Tensor] | None = None


@dataclass
class Stage:
    """One stage, ready to run.

    Attributes:
        config: its numbers.
        seed: of the run.
        towers: the towers that are trained, by name; overwritten by training.
        draw: step's generator -> Batch; the same in every process.
        scale: gives the multiplier of the cosines, a tensor where it is learned.
        measure: gives figures on validation scenes.
        folder: of the checkpoint.
        times: checkpoint_every_s, measure_every, log_every.
        data: what it is trained on, as far as `config` does not say; a checkpoint of other data is refused.
        watch: told the loss of each step that was taken.
        noted: told the notes (see `train_stage`) after each measurement.
    """

    config: StageConfig
    seed: int
    towers: dict[str, nn.Module]
    draw: Callable[[np.random.Generator], Batch]
    scale: Callable[[], Tensor | float]
    measure: Callable[[], dict[str, float]]
    folder: Path
    times: tuple[float, int, int] = (240.0, 250, 50)
    data: str = ""
    watch: Callable[[float], None] = lambda loss: None  # noqa: ARG005
    noted: Callable[[dict[str, Any]], None] = lambda notes: None  # noqa: ARG005

    @property
    def path(self) -> Path:
        """Where the checkpoint lies."""
        return self.folder / f"{self.config.name}.safetensors"

    @property
    def facts(self) -> dict[str, Any]:
        """What it is made of: see `stage_facts`."""
        return stage_facts(self.config, self.seed, self.towers, self.data)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that training moves."""
        return [parameter for tower in self.towers.values() for parameter in tower.parameters()]


def stage_facts(config: StageConfig, seed: int, towers: dict[str, nn.Module], data: str = "") -> dict[str, Any]:
    """Gather a stage's numbers, the seed, the data and the towers' numbers: a checkpoint of other ones is refused."""
    numbers = {name: _numbers(tower) for name, tower in towers.items()}
    return {"stage": to_json_dict(config), "seed": seed, "towers": numbers, "data": data}


def _numbers(tower: nn.Module) -> Any:
    config = getattr(tower, "config", None)
    return to_json_dict(config) if config is not None else {k: list(v.shape) for k, v in tower.state_dict().items()}


def learning_rate(config: Schedule, step: int) -> float:
    """Give the rate of a step (from 0): linear warm-up, then a cosine down to `final_rate` of the full rate."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * share))
    return config.learning_rate * (config.final_rate + (1 - config.final_rate) * cosine)


def build_optimiser(towers: dict[str, nn.Module], config: Schedule) -> torch.optim.AdamW:
    """Build AdamW; matrices and kernels decay, tables, norms, biases and scales do not."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for tower in towers.values():
        for key, parameter in tower.named_parameters():
            plain = parameter.ndim < 2 or key.endswith(("pos_embed", "cls_token", "bias_k", "bias_v"))
            (free if plain else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=1e-8)


def step_generator(seed: int, stage: str, step: int) -> np.random.Generator:
    """Give the generator of everything random in one step."""
    return np.random.default_rng([seed, zlib.crc32(stage.encode()), step])


def has_bfloat16() -> bool:
    """Say whether this processor multiplies bfloat16 in hardware."""
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool((check and check()) or (amx and amx()))


def fast_numbers(device: str = "cpu") -> AbstractContextManager[None]:
    """Compute in bfloat16 inside, where the device has it."""
    return torch.autocast(device, torch.bfloat16, enabled=device != "cpu" or has_bfloat16())


def train_stage(
    stage: Stage,
    stop_after: int | None = None,
    say: Callable[[str], None] = print,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run a stage from its checkpoint, or from the start, to its end; overwrites the towers.

    Args:
        stage: what to run. Under torchrun every process runs the same one; the first one writes the checkpoints.
        stop_after: leave after this many steps in all, with a checkpoint; for tests of resuming.
        say: where the log's lines go.
        stopped: asked after each step; True leaves with a checkpoint. Not for several processes: one would wait.

    Returns:
        Notes: step, curve, seconds.

    Raises:
        MismatchError: the folder holds a checkpoint of other numbers.
    """
    optimiser = build_optimiser(stage.towers, stage.config)

    def scale() -> str:
        return f" scale {float(torch.as_tensor(stage.scale()).detach()):.2f}"

    def take(step: int) -> float:
        loss = train_step(stage, optimiser, step)
        stage.watch(loss)
        return loss

    return run_steps(stage, stage.towers, optimiser, take, stop_after, say, stopped, scale, stage.noted)


def train_step(stage: Stage, optimiser: torch.optim.Optimizer, step: int) -> float:
    """Take one step; overwrites towers and optimiser. Returns the loss."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(stage.config, step)
    for tower in stage.towers.values():
        tower.train()
    optimiser.zero_grad(set_to_none=True)
    loss = backward(stage, step)
    sum_gradients(stage.parameters)
    average_statistics(stage.towers.values())
    torch.nn.utils.clip_grad_norm_(stage.parameters, stage.config.clip_norm)
    optimiser.step()
    return loss


def backward(stage: Stage, step: int) -> float:
    """Put the gradients of one step into the towers; returns the loss over the whole batch.

    Under torchrun, each process adds what its own rows contribute; `sum_gradients` completes them.
    """
    config = stage.config
    rng = step_generator(stage.seed, config.name, step)
    seed = int(rng.integers(0, 2**40))
    batch = stage.draw(rng)
    mine = own_rows(batch.size)
    sides = [_Side(batch.anchors, seed, mine, config.chunk), _Side(batch.others, seed + 2**41, mine, config.chunk)]
    whole = [gather_rows(side.encode(), batch.size).requires_grad_() for side in sides]
    loss = info_nce(whole[0], whole[1], stage.scale(), batch.alike, config.false_negatives)
    if batch.added is not None:
        loss = loss + batch.added(whole[0])
    loss.backward()  # type: ignore[no-untyped-call]
    if rank() != 0:  # gradients of the scale and of `added` are complete in every process: one of them counts
        for parameter in stage.parameters:
            parameter.grad = None
    for side, rows in zip(sides, whole, strict=True):
        if rows.grad is not None:
            side.send_back(rows.grad[mine])
    return float(loss.detach())


class _Side:
    """One side of a batch: this process's rows, at once or in chunks."""

    def __init__(self, encode: Encode, seed: int, rows: slice, chunk: int | None) -> None:
        size = chunk or rows.stop - rows.start
        self.parts = [slice(at, min(at + size, rows.stop)) for at in range(rows.start, rows.stop, size)]
        self.call, self.seed = encode, seed
        self.at_once: Tensor | None = None

    def encode(self) -> Tensor:
        """Embed the rows: with a graph where there is one chunk, without where there are more."""
        if len(self.parts) == 1:
            self.at_once = self._rows(self.parts[0])
            return self.at_once
        with torch.no_grad():
            return torch.cat([self._rows(part) for part in self.parts])

    def send_back(self, gradient: Tensor) -> None:
        """Add the gradient of the embeddings (b, d) to the towers' parameters."""
        if self.at_once is not None:
            if self.at_once.requires_grad:
                self.at_once.backward(gradient)  # type: ignore[no-untyped-call]
            return
        first = self.parts[0].start
        for part in self.parts:
            rows = self._rows(part)
            if not rows.requires_grad:
                return
            rows.backward(gradient[part.start - first : part.stop - first])  # type: ignore[no-untyped-call]

    def _rows(self, part: slice) -> Tensor:
        torch.manual_seed(self.seed + part.start)  # dropout and drop path
        with fast_numbers():
            return self.call(part).float()
