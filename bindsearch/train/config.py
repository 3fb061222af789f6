"""The numbers of a training run: one JSON file. Loads no torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from bindsearch.config import from_json_dict
from bindsearch.errors import InputError, MissingInputError, UnknownNameError

C = TypeVar("C")

FALSE_NEGATIVES = ("mask", "positive", "keep")
STYLES = ("varied", "plain", "full")
LARGEST_SEED = 2**63 - 1


def check_seed(seed: int) -> None:
    """Refuse what torch's and NumPy's generators do not both take.

    Raises:
        InputError: below 0, or over 63 bits.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"seed: expected a whole number from 0 to {LARGEST_SEED}, got {seed}.")


def check_rates(where: str, learning_rate: float, temperature: float | None) -> None:
    """Refuse a learning rate or a temperature that cannot be meant; `where` begins the message.

    Raises:
        InputError: naming the number and what is usual.
    """
    if not 0 < learning_rate < math.inf:
        raise InputError(f"{where}: learning_rate is a number above 0, got {learning_rate}. Usual: 0.001.")
    if temperature is not None and not 0 < temperature <= 1:
        raise InputError(f"{where}: temperature lies between 0 and 1, got {temperature}. Usual: 0.05 to 0.2.")


class Schedule(Protocol):
    """What an optimiser and its learning rate need of a stage's numbers."""

    @property
    def steps(self) -> int:
        """Optimiser steps."""

    @property
    def learning_rate(self) -> float:
        """Full rate."""

    @property
    def weight_decay(self) -> float:
        """Of matrices and kernels."""

    @property
    def warmup_steps(self) -> int:
        """Steps in which the rate rises."""

    @property
    def betas(self) -> tuple[float, float]:
        """Of AdamW."""

    @property
    def final_rate(self) -> float:
        """Share of the rate at the end."""


@dataclass(frozen=True)
class StageConfig:
    """One stage: a modality is bound to an anchor.

    Attributes:
        name: of the stage, and of its files.
        modality: bound to the anchor: text, audio, depth, thermal, imu, or a user's own.
        steps, batch: optimiser steps, and pairs a step over all processes.
        anchor: image or video, of the image tower.
        train_anchor: train the image tower as well; False freezes it and caches its embeddings.
        chunk: pairs that are encoded at once; a larger batch is encoded twice, chunk by chunk (gradient caching), with
            the same gradients; None encodes the batch at once.
        learning_rate, weight_decay, warmup_steps, clip_norm, betas: of AdamW; the rate rises linearly and falls as a
            cosine.
        final_rate: share of the rate that the cosine ends at.
        temperature: fixed; None learns the tower's logit scale.
        false_negatives: pairs that fit although they are no pair are left out ("mask"), count as pairs ("positive"), or
            stay negatives ("keep").
        alike: attributes that make two scenes fit one another; a stage with text asks the captions instead.
        shared_setting, shared_subject: shares of a batch drawn from two settings, and from three subjects: hard
            negatives that agree in the other attribute.
        naming: weight of the loss of naming what an anchor shows, beside the contrastive one; only where the anchor is
            trained.
        naming_weights: of the named attributes, in the order of `naming.NAMED`.
        video_share: share of a batch whose anchors are clips of two frames; only where the anchor is trained.
        styles: of captions, in equal shares: varied, plain (subject or setting or both), full (with the motion).
        languages: of captions, in equal shares.
        first_scene, pool, clips: number of the pool's first scene in the training split; scenes with a still, followed
            by scenes with a clip.
        partial: share of scenes without subject or without setting.
    """

    name: str
    modality: str
    steps: int
    batch: int = 256
    anchor: str = "image"
    train_anchor: bool = False
    chunk: int | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 200
    clip_norm: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    final_rate: float = 0.0
    temperature: float | None = None
    false_negatives: str = "mask"
    alike: tuple[str, ...] = ("subject", "setting")
    shared_setting: float = 0.4
    shared_subject: float = 0.2
    naming: float = 0.0
    naming_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    video_share: float = 0.0
    styles: tuple[str, ...] = ("varied",)
    languages: tuple[str, ...] = ("english",)
    first_scene: int = 0
    pool: int = 60000
    clips: int = 0
    partial: float = 0.24

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        where = f"stage {self.name}"
        if self.steps < 1 or self.batch < 2 or self.pool + self.clips < self.batch:
            raise InputError(f"{where}: needs steps >= 1, batch >= 2 and pool + clips >= batch.")
        if not 0 <= self.shared_setting + self.shared_subject <= 1:
            raise InputError(f"{where}: shared_setting + shared_subject must lie between 0 and 1.")
        if self.chunk is not None and self.chunk < 1:
            raise InputError(f"{where}: chunk must be 1 or more, got {self.chunk}. Leave it out for a batch at once.")
        if self.false_negatives not in FALSE_NEGATIVES:
            raise UnknownNameError(f"false_negatives of {where}", self.false_negatives, FALSE_NEGATIVES)
        for style in self.styles:
            if style not in STYLES:
                raise UnknownNameError(f"style of {where}", style, STYLES)
        if self.anchor not in ("image", "video"):
            raise UnknownNameError(f"anchor of {where}", self.anchor, ("image", "video"))
        if not 0 <= self.video_share <= 1 or (
            self.video_share > 0 and round(self.video_share * self.batch) > self.clips
        ):
            raise InputError(f"{where}: video_share {self.video_share} of {self.batch} needs as many clips as that.")
        if self.naming < 0:
            raise InputError(f"{where}: naming is the weight of a loss, 0 or more; got {self.naming}.")
        if len(self.naming_weights) != 4 or min(self.naming_weights) < 0:
            raise InputError(
                f"{where}: naming_weights are four numbers of 0 or more, for subject, setting, motion and colour; got "
                f"{', '.join(map(str, self.naming_weights)) or 'none'}."
            )
        if not self.train_anchor and (self.naming or self.video_share):
            raise InputError(
                f"{where}: naming {self.naming} and video_share {self.video_share} are for a stage that trains the "
                "image tower. Add train_anchor: true, or leave both out."
            )


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

    def __post_init__(self) -> None:
        """Refuse what no run can be begun with."""
        check_seed(self.seed)


def holds_stages(path: str | Path) -> bool:
    """Say whether a file holds the stages of a whole space; False where it is no JSON, or none at all."""
    path = Path(path)
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(data, dict) and "stages" in data


def load_train_config(path: str | Path) -> TrainConfig:
    """Read a run's numbers from JSON; raises as `read_config`."""
    return read_config(TrainConfig, path)


def read_config(kind: type[C], path: str | Path) -> C:
    """Read a configuration of a kind from JSON.

    Raises:
        MissingInputError: no such file.
        InputError: the JSON does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInputError(f"{path}: no such training configuration.")
    return from_json_dict(kind, json.loads(path.read_text(encoding="utf-8")), str(path))
