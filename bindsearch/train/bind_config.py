"""What `bindsearch train` is told: pairs of files, the frozen space, the new tower, the schedule. Loads no torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from bindsearch.config import from_json_dict
from bindsearch.errors import InputError, MissingInputError, UnknownNameError
from bindsearch.listing.tables import TABLE_SUFFIXES
from bindsearch.makers import maker_of
from bindsearch.registry import MODALITIES
from bindsearch.train.config import FALSE_NEGATIVES, check_rates, check_seed

TOWER_KINDS = ("own", "timm", "projector")
LONGEST_CHECKPOINT_S = 600.0
SMALLEST_PX = 16
DEFAULT_LABEL = "label"


def _check_from(least: float, **values: float | None) -> None:
    """Refuse numbers below the least or not finite; None is no number.

    Raises:
        InputError: naming the first one.
    """
    for name, value in values.items():
        if value is not None and not least <= value < math.inf:
            raise InputError(f"{name}: expected a number from {least:g} on, got {value}.")


@dataclass(frozen=True)
class PairsConfig:
    """Where the pairs are.

    Attributes:
        manifest: CSV, TSV, JSONL or Parquet with one pair a row: columns `path_a` (or `text_a`: the words themselves),
            `path_b` (or `text_b`) and perhaps `label`. Paths are relative to the manifest's folder. Or media that are
            made: "world:train:0..5000" pairs each scene's two modalities.
        anchor: modality of side a, which the frozen space encodes; "" goes by the suffix of the first path.
        modality: modality of side b, whose tower is trained; "" goes by suffix; "features" where `features` is given.
        features: table of vectors of another encoder (see row_table.py) that are looked up by `path_b`.
        label: column whose equal values say that two pairs fit one another; several are joined: "subject,setting".
        held_out: share of the pairs that is measured on and never trained on; no file is on both sides.
        max_held_out: at most so many pairs are measured on.
        max_bad: share of broken pairs above which training does not start.
    """

    manifest: str
    anchor: str = ""
    modality: str = ""
    features: str = ""
    label: str = DEFAULT_LABEL
    held_out: float = 0.1
    max_held_out: int = 1000
    max_bad: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in (self.anchor, self.modality):
            if name and name not in MODALITIES:
                raise UnknownNameError("modality of pairs", name, MODALITIES.names())
        if not 0 < self.held_out < 1 or self.max_held_out < 2:
            raise InputError(f"held_out: expected a share between 0 and 1 and max_held_out >= 2, got {self.held_out}.")
        if not 0 <= self.max_bad <= 1:
            raise InputError(f"max_bad: expected a share from 0 to 1, got {self.max_bad}.")
        if self.features and self.modality not in ("", "features"):
            raise InputError(
                f"features: {self.features} is given, so that side b is 'features', not {self.modality!r}."
            )


@dataclass(frozen=True)
class NewTowerConfig:
    """The tower that is trained.

    Attributes:
        kind: "own" (of this project), "timm" (a backbone by name, a linear head) or "projector" (a linear layer on
            features).
        architecture: of an own tower: a packaged architecture, a space's folder, or a JSON file; the tower of the same
            modality is taken.
        backbone: of a timm tower: the model's name.
        pretrained: start a timm tower from its released weights.
        size_px: side of the pictures that the tower sees; None: as the frozen space has them.
        hidden: width of one hidden layer before the last linear; None: the paper's linear head.
        dropout: chance to zero a number before the linear, while training.
        drop_path: of an own tower, while training.
    """

    kind: str = "own"
    architecture: str = "bindsearch-mini"
    backbone: str = ""
    pretrained: bool = False
    size_px: int | None = None
    hidden: int | None = None
    dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        """Refuse kinds that do not exist, numbers that cannot be meant, and what the kind has no use for."""
        if self.kind not in TOWER_KINDS:
            raise UnknownNameError("kind of tower", self.kind, TOWER_KINDS)
        if (self.kind == "timm") != bool(self.backbone):
            raise InputError("tower: `backbone` names a timm model, and goes with the kind 'timm': --tower timm:NAME.")
        if self.pretrained and self.kind != "timm":
            raise InputError(
                f"tower: pretrained starts a timm model from its released weights; the kind {self.kind!r} has none. "
                "Leave it away, or take one: --tower timm:NAME."
            )
        if self.size_px is not None and self.kind == "projector":
            raise InputError(f"tower: a projector sees features, no pictures. Leave size_px {self.size_px} away.")
        if self.drop_path and self.kind != "own":
            raise InputError(f"tower: drop_path is of an own tower, not of the kind {self.kind!r}. Leave it away.")
        _check_from(1, hidden=self.hidden)
        _check_from(SMALLEST_PX, size_px=self.size_px)
        for name, chance in (("dropout", self.dropout), ("drop_path", self.drop_path)):
            if not 0 <= chance < 1:
                raise InputError(f"tower: {name} is a chance from 0 to below 1, got {chance}.")


@dataclass(frozen=True)
class ScheduleConfig:
    """How it is trained.

    Attributes:
        steps, batch: optimiser steps, and pairs a step over all processes (at most as many as there are).
        chunk: pairs encoded at once; larger batches go chunk by chunk with the same gradients; None: the whole batch.
        learning_rate, weight_decay, warmup_steps: of AdamW; the rate rises linearly and falls as a cosine.
        temperature: fixed; None learns it.
        false_negatives: what becomes of pairs that fit although they are no pair, by label, equal file or equal
            caption: "mask", "positive" or "keep".
        hard: share of a batch drawn near one another in the frozen space: hard negatives.
        augment: vary pictures and sounds a little.
        measure_every, checkpoint_every_s, log_every: steps between measurements, seconds between checkpoints (at most
            600), steps between lines.
    """

    steps: int = 1000
    batch: int = 256
    chunk: int | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    temperature: float | None = 0.07
    false_negatives: str = "mask"
    hard: float = 0.25
    augment: bool = True
    measure_every: int = 100
    checkpoint_every_s: float = 240.0
    log_every: int = 50

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.steps < 1 or self.batch < 2 or self.measure_every < 1 or self.log_every < 1:
            raise InputError("schedule: needs steps >= 1, batch >= 2, measure_every >= 1 and log_every >= 1.")
        _check_from(0, weight_decay=self.weight_decay, warmup_steps=self.warmup_steps)
        _check_from(1, chunk=self.chunk)
        check_rates("schedule", self.learning_rate, self.temperature)
        if self.false_negatives not in FALSE_NEGATIVES:
            raise UnknownNameError("way with false negatives", self.false_negatives, FALSE_NEGATIVES)
        if not 0 <= self.hard <= 1:
            raise InputError(f"schedule: hard is a share between 0 and 1, got {self.hard}.")
        if not 0 < self.checkpoint_every_s <= LONGEST_CHECKPOINT_S:
            raise InputError(
                f"schedule: checkpoint_every_s is at most {LONGEST_CHECKPOINT_S:.0f}, got {self.checkpoint_every_s}."
            )


@dataclass(frozen=True)
class BindConfig:
    """A whole run of `bindsearch train` on a user's pairs.

    Attributes:
        pairs: where they are.
        space: the frozen one, as `load_space` takes it.
        tower: what is trained.
        schedule: how.
        seed: of weights, batches and augmentation.
        name: of the new space; "" names it after the frozen one and the modality.
    """

    pairs: PairsConfig
    space: str = "bindsearch-mini"
    tower: NewTowerConfig = field(default_factory=NewTowerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    seed: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        """Refuse what no run can be begun with."""
        check_seed(self.seed)


def load_bind_config(path: str | Path) -> BindConfig:
    """Read a run's configuration, or make the default one for a manifest of pairs.

    Args:
        path: a .json file of `BindConfig`, whose paths are relative to it; a manifest of pairs; or made media.

    Raises:
        MissingInputError: no such file.
        InputError: neither the one nor the other, or JSON that does not fit.
    """
    if maker_of(str(path)) is not None:
        return BindConfig(PairsConfig(str(path), label="subject,setting"))
    path = Path(path)
    if not path.is_file():
        raise MissingInputError(f"{path}: no such configuration or manifest of pairs.")
    if path.suffix.lower() in TABLE_SUFFIXES:
        return BindConfig(PairsConfig(str(path)))
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: neither JSON nor a manifest ({', '.join(TABLE_SUFFIXES)}): {error}") from error
    if isinstance(data, dict) and "stages" in data:
        raise InputError(f"{path}: holds the stages of a whole space of its own: bindsearch train {path} -o RUN")
    if not isinstance(data, dict) or not isinstance(data.get("pairs"), dict):
        raise InputError(f'{path}: expected an object with "pairs": {{"manifest": "pairs.csv"}}; see docs/train.md.')
    for name in ("manifest", "features"):
        if data["pairs"].get(name) and maker_of(str(data["pairs"][name])) is None:
            data["pairs"][name] = str(path.parent / str(data["pairs"][name]))
    return from_json_dict(BindConfig, data, str(path))
