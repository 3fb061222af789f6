"""Training on conversations: loss on the answers alone, exact resume, what is trained named by the stage.

Every random choice of step s is drawn from (seed, stage, s), as in `loop.py`: a resumed run repeats an undisturbed one
bit for bit on one machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bindsearch.config import to_json_dict
from bindsearch.llm.llava import IGNORED
from bindsearch.train.answer_config import AnswerStageConfig
from bindsearch.train.loop import build_optimiser, fast_numbers, learning_rate, step_generator
from bindsearch.train.steps import run_steps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.llm.base import Connection
    from bindsearch.llm.conversations import Chat, Conversation

_PAD = 0


@dataclass
class Talk:
    """What a stage trains on.

    Attributes:
        conversations: n of them.
        rows: (n, ...) float16, what the connector reads of each one's picture; None for conversations without any.
        chat: writes them as token ids.
        shuffled: turns do not build on one another: a step takes some of them in any order; otherwise the first ones.
        facts: what all that is, JSON-able: names and hashes.
    """

    conversations: list[Conversation]
    rows: NDArray[np.float16] | None
    chat: Chat
    shuffled: bool
    facts: dict[str, Any]


@dataclass
class AnswerStage:
    """One stage, ready to run.

    Attributes:
        config: its numbers.
        seed: of the run.
        connection: connector and Llama.
        parts: what is trained, by name; overwritten by training.
        talk: what it is trained on.
        measure: gives figures on validation scenes.
        folder: of the checkpoint.
        model: what connector and Llama are, JSON-able: their settings, and hashes of the weights at the start, frozen
            ones as well.
        times: checkpoint_every_s, measure_every, log_every.
    """

    config: AnswerStageConfig
    seed: int
    connection: Connection
    parts: dict[str, nn.Module]
    talk: Talk
    measure: Callable[[], dict[str, float]]
    folder: Path
    model: dict[str, Any]
    times: tuple[float, int, int] = (180.0, 500, 50)

    @property
    def path(self) -> Path:
        """Where the checkpoint lies."""
        return self.folder / f"{self.config.name}.safetensors"

    @property
    def facts(self) -> dict[str, Any]:
        """What it is made of: a checkpoint of other numbers, seed, data, model or weights at the start is refused."""
        return {"stage": to_json_dict(self.config), "seed": self.seed, "data": self.talk.facts, **self.model}


@dataclass(frozen=True)
class AnswerBatch:
    """Token rows of B conversations.

    Attributes:
        ids: (B, L) int64, padded on the right: no token reads what comes after it.
        labels: (B, L) int64: the ids of answers, IGNORED elsewhere.
        features: what the connector reads, (B, ...) float32; None without pictures.
    """

    ids: Tensor
    labels: Tensor
    features: Tensor | None


def draw_batch(talk: Talk, config: AnswerStageConfig, rng: np.random.Generator) -> AnswerBatch:
    """Draw a step's conversations and their turns; noise and shorter vectors as the stage says."""
    picked = rng.integers(0, len(talk.conversations), config.batch)
    written = []
    for number in picked.tolist():
        turns = talk.conversations[number].turns
        if talk.shuffled and config.turns < len(turns):
            order = rng.permutation(len(turns))[: config.turns]
            turns = tuple(turns[place] for place in order)
        written.append(talk.chat.row(turns[: config.turns]))
    longest = max(len(ids) for ids, _ in written)
    ids = torch.full((len(written), longest), _PAD)
    labels = torch.full((len(written), longest), IGNORED)
    for row, (own, learned) in enumerate(written):
        ids[row, : len(own)] = torch.tensor(own)
        labels[row, : len(own)] = torch.where(torch.tensor(learned), ids[row, : len(own)], IGNORED)
    features = None
    if talk.rows is not None:
        features = _varied(talk.rows[picked].astype(np.float32), config, rng)
    return AnswerBatch(ids, labels, features)


def _varied(rows: NDArray[np.float32], config: AnswerStageConfig, rng: np.random.Generator) -> Tensor:
    """Add noise to (B, ...) rows and shorten them; both drawn for each row of the batch."""
    shape = (len(rows),) + (1,) * (rows.ndim - 1)
    if config.noise:
        level = rng.uniform(0, config.noise, shape).astype(np.float32)
        rows = rows + level * rng.standard_normal(rows.shape, dtype=np.float32)
    if config.shortest < 1:
        rows = rows * rng.uniform(config.shortest, 1, shape).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(rows))


def answer_loss(connection: Connection, batch: AnswerBatch) -> Tensor:
    """Give the mean cross entropy of the answers' tokens; the Llama's head sees the places of answers alone.

    A batch without an answer has a loss of 0 that teaches nothing: the mean over no token would be no number.
    """
    llama = connection.llama
    if batch.features is None:
        hidden = llama.model(input_ids=batch.ids).last_hidden_state
        return _entropy(llama, hidden, batch.labels)
    with connection.inject(batch.features):
        inputs, labels = connection.training_inputs(batch.ids, batch.labels)
        hidden = llama.model(**inputs).last_hidden_state
    return _entropy(llama, hidden, labels)


def _entropy(llama: Any, hidden: Tensor, labels: Tensor) -> Tensor:
    wanted = labels[:, 1:] != IGNORED
    logits = llama.lm_head(hidden[:, :-1][wanted])
    return F.cross_entropy(logits.float(), labels[:, 1:][wanted]) if len(logits) else logits.float().sum()


def train_answers(
    stage: AnswerStage,
    stop_after: int | None = None,
    say: Callable[[str], None] = print,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run a stage from its checkpoint, or from the start, to its end; overwrites what it trains.

    Args:
        stage: what to run.
        stop_after: leave after this many steps in all, with a checkpoint; for tests of resuming.
        say: where the log's lines go.
        stopped: asked after each step; True leaves with a checkpoint.

    Returns:
        Notes: step, curve, seconds.

    Raises:
        MismatchError: the folder holds a checkpoint of other numbers.
    """
    only_these_learn(stage.connection, stage.parts)
    optimiser = build_optimiser(stage.parts, stage.config)

    def take(step: int) -> float:
        return answer_step(stage, optimiser, step)

    notes = run_steps(stage, stage.parts, optimiser, take, stop_after, say, stopped)
    for module in (stage.connection.llama, *stage.parts.values()):
        module.requires_grad_(False)
        module.eval()
    return notes


def only_these_learn(connection: Connection, parts: dict[str, nn.Module]) -> None:
    """Freeze Llama and connector, then let the parts learn."""
    connection.llama.requires_grad_(False)
    for part in parts.values():
        part.requires_grad_(True)


def answer_step(stage: AnswerStage, optimiser: torch.optim.Optimizer, step: int) -> float:
    """Take one step; overwrites the parts and the optimiser. Returns the loss."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(stage.config, step)
    rng = step_generator(stage.seed, stage.config.name, step)
    batch = draw_batch(stage.talk, stage.config, rng)
    optimiser.zero_grad(set_to_none=True)
    with fast_numbers():
        loss = answer_loss(stage.connection, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    learned = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    torch.nn.utils.clip_grad_norm_(learned, stage.config.clip_norm)
    optimiser.step()
    return float(loss.detach())
