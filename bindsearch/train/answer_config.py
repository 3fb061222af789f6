"""The numbers of a language model's training: one JSON file. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from bindsearch.errors import InputError, UnknownNameError
from bindsearch.llm.tiny import TinyConfig
from bindsearch.train.config import check_seed, read_config

TASKS = ("reading", "captions", "instructions")
TRAINED = ("connector", "llama", "norms", "lora")
CONNECTORS = ("imagebind-llm", "llama-adapter-v2", "llava")


@dataclass(frozen=True)
class ConnectorConfig:
    """Which connector, and how large.

    Attributes:
        kind: imagebind-llm, llama-adapter-v2 or llava.
        hidden: inner width of the bind network; of V2, width of the visual path; of LLaVA's projector unused.
        depth, heads, tokens: V2: visual blocks, their heads, and visual tokens (query_len).
        query_layers: V2: how many of the Llama's last layers attend; None: all but the first.
        projector: LLaVA: linear or mlpNx_gelu.
        lora_rank: of the terms that a stage with "lora" trains; 0: none.
    """

    kind: str = "imagebind-llm"
    hidden: int = 768
    depth: int = 2
    heads: int = 4
    tokens: int = 10
    query_layers: int | None = None
    projector: str = "mlp2x_gelu"
    lora_rank: int = 0

    def __post_init__(self) -> None:
        """Refuse other kinds."""
        if self.kind not in CONNECTORS:
            raise UnknownNameError("connector", self.kind, CONNECTORS)


@dataclass(frozen=True)
class AnswerStageConfig:
    """One stage.

    Attributes:
        name: of the stage, and of its files.
        task: reading (text alone: a scene told in words, then asked about), captions (describe the picture), or
            instructions (questions of every kind).
        steps, batch: optimiser steps, and conversations a step.
        trains: of TRAINED: the connector, the whole Llama, its norms and biases, its LoRA terms.
        turns: of a conversation a step takes at most, drawn anew each time; of a user's data the first ones.
        learning_rate, weight_decay, warmup_steps, clip_norm, betas, final_rate: of AdamW; the rate rises linearly and
            falls as a cosine to `final_rate` of it.
        noise: the pictures' embeddings get Gaussian noise of a standard deviation drawn from 0 to this for each.
        shortest: and are scaled by a factor drawn from this to 1, as mixtures of modalities come out short.
    """

    name: str
    task: str
    steps: int
    batch: int = 64
    trains: tuple[str, ...] = ("connector",)
    turns: int = 5
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    clip_norm: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    final_rate: float = 0.0
    noise: float = 0.0
    shortest: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        where = f"stage {self.name}"
        if self.task not in TASKS:
            raise UnknownNameError(f"task of {where}", self.task, TASKS)
        for part in self.trains:
            if part not in TRAINED:
                raise UnknownNameError(f"trains of {where}", part, TRAINED)
        if not self.trains or self.steps < 1 or self.batch < 1 or self.turns < 1:
            raise InputError(f"{where}: needs something to train, and steps, batch and turns of 1 or more.")
        if self.noise < 0 or not 0 < self.shortest <= 1:
            raise InputError(
                f"{where}: noise of 0 or more and shortest above 0 to 1, got {self.noise}, {self.shortest}."
            )


@dataclass(frozen=True)
class AnswerConfig:
    """A whole run.

    Attributes:
        space: whose image embeddings are read.
        seed: of weights and batches.
        stages: in order; each goes on with what the one before it left.
        llama: sizes of a new Llama; unused where a folder of weights is given.
        connector: which one.
        scenes: of the pool, the first ones of the training split; some without subject, some without setting.
        validation: scenes of the validation split that are measured on.
        measure_every, log_every: steps between measurements, and between lines of the log.
        checkpoint_every_s: seconds between checkpoints.
    """

    stages: tuple[AnswerStageConfig, ...]
    space: str = "bindsearch-mini"
    seed: int = 0
    llama: TinyConfig = field(default_factory=TinyConfig)
    connector: ConnectorConfig = field(default_factory=ConnectorConfig)
    scenes: int = 60000
    validation: int = 200
    measure_every: int = 500
    log_every: int = 50
    checkpoint_every_s: float = 180.0

    def __post_init__(self) -> None:
        """Refuse what no run can be begun with."""
        check_seed(self.seed)


def read_run_config(
    path: Path | None, seed: int | None = None, space: str | None = None, llama: bool = False, data: bool = False
) -> AnswerConfig:
    """Read a run's numbers, the packaged ones where no file is named, and put in what was said beside.

    Args:
        path: JSON, or None: `pair.json`, and for a Llama that exists `connector.json`.
        seed: in place of the file's.
        space: in place of the file's.
        llama: a Llama is given: nothing is trained on text alone.
        data: conversations are given: no stage is made from the world.
    """
    packaged = Path(__file__).parent / ("connector.json" if llama else "pair.json")
    config = load_answer_config(path or packaged)
    stages = tuple(stage for stage in config.stages if not (llama or data) or stage.task != "reading")
    if data and path is None:
        stages = tuple(stage for stage in stages if stage.task == "instructions")
    given = {name: value for name, value in {"seed": seed, "space": space}.items() if value is not None}
    return replace(config, stages=stages, **given)  # type: ignore[arg-type]


def load_answer_config(path: str | Path) -> AnswerConfig:
    """Read a run's numbers from JSON; raises as `read_config`."""
    return read_config(AnswerConfig, path)
