"""The numbers of a training run: one JSON file. Loads no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from bindsearch.config import from_json_dict
from bindsearch.errors import InputError, MissingInputError


@dataclass(frozen=True)
class StageConfig:
    """One stage: a modality is bound to images.

    Attributes:
        name: of the stage, and of its files.
        modality: bound to image: text or audio.
        train_anchor: train the image tower as well; False freezes it and caches its embeddings.
        steps, batch: optimiser steps, and pairs a step.
        learning_rate, weight_decay, warmup_steps, clip_norm: of AdamW; the rate rises linearly and falls as a cosine.
        temperature: fixed; None learns the tower's logit scale.
        shared_setting, shared_subject: shares of a batch drawn from two settings, and from three subjects: hard
            negatives that agree in the other attribute.
        mask_false_negatives: leave out pairs that fit although they are not a pair.
        first_scene: number of the pool's first scene in the training split.
        pool: scenes in the pool.
        partial: share of scenes without subject or without setting.
    """

    name: str
    modality: str
    steps: int
    train_anchor: bool = False
    batch: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 200
    clip_norm: float = 1.0
    temperature: float | None = None
    shared_setting: float = 0.4
    shared_subject: float = 0.2
    mask_false_negatives: bool = True
    first_scene: int = 0
    pool: int = 60000
    partial: float = 0.24

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.steps < 1 or self.batch < 2 or self.pool < self.batch:
            raise InputError(f"stage {self.name}: needs steps >= 1, batch >= 2 and pool >= batch.")
        if not 0 <= self.shared_setting + self.shared_subject <= 1:
            raise InputError(f"stage {self.name}: shared_setting + shared_subject must lie between 0 and 1.")


@dataclass(frozen=True)
class TrainConfig:
    """A whole run.

    Attributes:
        space: name of the space and of its packaged architecture.
        seed: of weights, batches and augmentation.
        stages: in order.
        validation: scenes of the validation split that are measured on.
        measure_every, checkpoint_every_s: steps between measurements, seconds between checkpoints.
        log_every: steps between lines of the log.
    """

    space: str
    seed: int
    stages: tuple[StageConfig, ...]
    validation: int = 1000
    measure_every: int = 250
    checkpoint_every_s: float = 240.0
    log_every: int = 50


def load_train_config(path: str | Path) -> TrainConfig:
    """Read a run's numbers from JSON.

    Raises:
        MissingInputError: no such file.
        InputError: the JSON does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInputError(f"{path}: no such training configuration.")
    return from_json_dict(TrainConfig, json.loads(path.read_text(encoding="utf-8")), str(path))
