"""The stage of `bindsearch train`: batches of a user's pairs, what fits although it is no pair, held-out figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from bindsearch.models.bind import Tower
from bindsearch.train.augment import vary
from bindsearch.train.bind_config import BindConfig, ScheduleConfig
from bindsearch.train.config import StageConfig
from bindsearch.train.loop import Batch, Stage, fast_numbers
from bindsearch.train.new_tower import TowerPlan
from bindsearch.train.pair_files import PairRow
from bindsearch.train.prepared import Ledger, PreparedRows
from bindsearch.train.processes import own_rows
from bindsearch.train.recall import recall_figures

if TYPE_CHECKING:
    from bindsearch.types import FloatArray

NEAR, CANDIDATES = 16, 16384
"""Rows that are drawn together as each other's hard negatives, out of so many that are looked at."""
_ROWS_AT_ONCE = 128
_STATISTICS_ROWS = 20000


@dataclass(frozen=True)
class BoundPairs:
    """Pairs that can be read on both sides.

    Attributes:
        anchors: key -> (d,) float32 unit row.
        inputs: of the tower in training.
        train, held_out: pairs.
        bad: ledger of the rest.
    """

    anchors: dict[str, FloatArray]
    inputs: PreparedRows
    train: list[PairRow]
    held_out: list[PairRow]
    bad: Ledger

    def anchor_rows(self, rows: Sequence[PairRow]) -> FloatArray:
        """Stack the anchors of pairs: (n, d) float32."""
        return np.stack([self.anchors[row[0]] for row in rows])

    def statistics_rows(self) -> Tensor:
        """Give inputs to standardise by, of training pairs alone: (n, ...) float32, at most 20,000."""
        keys = list(dict.fromkeys(row[1] for row in self.train))[:_STATISTICS_ROWS]
        return torch.from_numpy(self.inputs.stack(keys, [0] * len(keys)))


class Kinship:
    """Says which pairs fit one another: the same file, the same words, the same label.

    Args:
        rows: pairs.
        anchors: (n, d) of them; equal rows are equal captions.
    """

    def __init__(self, rows: Sequence[PairRow], anchors: FloatArray) -> None:
        """Give each file, caption and label a number."""
        words = np.unique(anchors.astype(np.float16).view(np.uint16), axis=0, return_inverse=True)[1]
        self.codes = [words.reshape(-1), _codes([row[0] for row in rows]), _codes([row[1] for row in rows])]
        if any(row[2] is not None for row in rows):
            labels = [f"={row[2]}" if row[2] is not None else f"{number}" for number, row in enumerate(rows)]
            self.codes.append(_codes(labels))

    def among(self, rows: NDArray[np.int64], labels: bool = True) -> NDArray[np.bool_]:
        """Give (B, B) bool for some pairs, the diagonal True."""
        used = self.codes if labels else self.codes[:3]
        found = np.zeros((len(rows), len(rows)), dtype=bool)
        for codes in used:
            found |= codes[rows][:, None] == codes[rows][None, :]
        return found


def _codes(names: Sequence[str]) -> NDArray[np.int64]:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def draw_rows(anchors: FloatArray, batch: int, hard: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw one batch: some rows with their nearest in the frozen space, the rest of any kind; none twice.

    Args:
        anchors: (n, d) float32 unit rows. Not modified.
        batch: at most n.
        hard: share of the batch that is drawn near one another.
        rng: of the step.

    Returns:
        (batch,) int64.
    """
    chosen: list[NDArray[np.int64]] = []
    count = len(anchors)
    near = min(NEAR, count)
    looked = np.arange(count) if count <= CANDIDATES else np.unique(rng.integers(0, count, CANDIDATES))
    rows = anchors[looked]
    for seed in rng.integers(0, len(looked), round(batch * hard / NEAR)):
        chosen.append(looked[np.argpartition(-(rows @ rows[seed]), near - 1)[:near]])
    chosen.append(rng.choice(count, batch, replace=False))
    together = np.concatenate(chosen)
    _, first = np.unique(together, return_index=True)
    return together[np.sort(first)][:batch]


def bind_stage(
    config: BindConfig,
    plan: TowerPlan,
    tower: Tower,
    bound: BoundPairs,
    place: tuple[Path, str],
) -> Stage:
    """Make the stage that trains a tower against frozen anchors.

    Args:
        config: of the run.
        plan: of the tower.
        tower: overwritten by training.
        bound: pairs.
        place: folder of the checkpoint; and what identifies the data.
    """
    schedule, modality = config.schedule, plan.modality
    batch = min(schedule.batch, len(bound.train))
    rows = bound.anchor_rows(bound.train)
    anchors, kin = torch.from_numpy(rows), Kinship(bound.train, rows)

    def draw(rng: np.random.Generator) -> Batch:
        chosen = draw_rows(rows, batch, schedule.hard, rng)
        keys = [bound.train[place][1] for place in chosen]
        clips = [int(rng.integers(0, bound.inputs.clips[key])) for key in keys]
        mine = own_rows(batch)  # each process reads and varies what it encodes
        x = torch.from_numpy(bound.inputs.stack(keys[mine], clips[mine]))
        x = as_input(vary(modality, x, rng, batch, mine) if schedule.augment else x, modality)
        frozen, alike = anchors[chosen], torch.from_numpy(kin.among(chosen))
        return Batch(
            batch,
            lambda part: frozen[part],
            lambda part: tower(x[part.start - mine.start : part.stop - mine.start]),
            alike,
        )

    return Stage(
        _stage_config(schedule, modality, batch),
        config.seed,
        {modality: tower},
        draw,
        tower.scale,
        lambda: held_out_figures(bound, tower, modality),
        place[0],
        (schedule.checkpoint_every_s, schedule.measure_every, schedule.log_every),
        place[1],
    )


def _stage_config(schedule: ScheduleConfig, modality: str, batch: int) -> StageConfig:
    return StageConfig(
        name="bind",
        modality=modality,
        steps=schedule.steps,
        batch=batch,
        chunk=schedule.chunk,
        learning_rate=schedule.learning_rate,
        weight_decay=schedule.weight_decay,
        warmup_steps=schedule.warmup_steps,
        temperature=schedule.temperature,
        false_negatives=schedule.false_negatives,
        pool=batch,
    )


def as_input(x: Tensor, modality: str) -> Tensor:
    """Give a still picture its axis of one frame: (B, 3, H, W) -> (B, 3, 1, H, W); others stay as they are."""
    return x.unsqueeze(2) if modality == "image" else x


@torch.no_grad()
def embed_inputs(tower: Tower, inputs: PreparedRows, keys: Sequence[str], modality: str) -> FloatArray:
    """Embed prepared items as a space does: the mean over each item's unit clips, normalised: (n, d) float32."""
    tower.eval()
    clips = [(key, clip) for key in keys for clip in range(inputs.clips[key])]
    parts = []
    for at in range(0, len(clips), _ROWS_AT_ONCE):
        names, numbers = zip(*clips[at : at + _ROWS_AT_ONCE], strict=True)
        with fast_numbers():
            x = as_input(torch.from_numpy(inputs.stack(names, numbers)), modality)
            parts.append(F.normalize(tower(x).float(), dim=1))
    owner = torch.from_numpy(np.repeat(np.arange(len(keys)), [inputs.clips[key] for key in keys]))
    unit = torch.cat(parts)
    sums = torch.zeros(len(keys), unit.shape[1]).index_add_(0, owner, unit)
    rows: FloatArray = F.normalize(sums, dim=1).numpy()
    return rows


def held_out_figures(bound: BoundPairs, tower: Tower, modality: str) -> dict[str, float]:
    """Measure retrieval among the held-out pairs."""
    pairs = bound.held_out
    anchors = bound.anchor_rows(pairs)
    others = embed_inputs(tower, bound.inputs, [row[1] for row in pairs], modality)
    fits = Kinship(pairs, anchors).among(np.arange(len(pairs)), labels=False)
    labels = [row[2] for row in pairs]
    return recall_figures(others, anchors, fits, labels if any(label is not None for label in labels) else None)


def measured(notes: dict[str, Any]) -> dict[str, float]:
    """Give the last held-out figures of a run's notes; {} before the first."""
    last = notes["curve"][-1] if notes["curve"] else {}
    return {name: value for name, value in last.items() if name not in ("step", "loss")}
