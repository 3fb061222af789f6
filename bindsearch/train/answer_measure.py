"""What a language model answers about scenes, read back and compared with what is so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from bindsearch.llm.generate import Sampling, generate
from bindsearch.world.instructions import Question, ask, read_answer
from bindsearch.world.scene import ABSENT, Scenes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.llm.base import Connection
    from bindsearch.llm.conversations import Chat
    from bindsearch.types import FloatArray

MEASURED = ("subject", "colour", "count", "place", "setting", "motion", "is_subject", "is_colour")
_NEW_TOKENS = 24
_BATCH = 256


def answer_all(connection: Connection, chat: Chat, features: FloatArray, questions: Sequence[str]) -> list[str]:
    """Answer one question about each of n embeddings, the likeliest token at a time.

    Args:
        connection: of a connector with its Llama, in eval mode.
        chat: writes the prompts.
        features: (n, ...) floats that the connector reads. Not modified.
        questions: n of them.
    """
    sampling = Sampling(max_new_tokens=_NEW_TOKENS, temperature=0, context_tokens=chat.context_tokens)
    texts: list[str] = []
    for at in range(0, len(questions), _BATCH):
        part = slice(at, at + _BATCH)
        prompts = [chat.prompt((), question) for question in questions[part]]
        given = torch.from_numpy(np.ascontiguousarray(features[part], dtype=np.float32))
        rows = generate(connection, given, prompts, sampling, chat.tokenizer.eos)
        texts += [chat.tokenizer.decode(row).strip() for row in rows]
    return texts


def ask_about(connection: Connection, chat: Chat, features: FloatArray, scenes: Scenes, kind: str) -> NDArray[np.int8]:
    """Ask one question of a kind about each of n scenes.

    Args:
        connection: of a connector with its Llama, in eval mode.
        chat: writes the prompts.
        features: (n, ...) floats that the connector reads, of the scenes. Not modified.
        scenes: n of them.
        kind: of `world.instructions.ask`.

    Returns:
        (n,) int8: 1 where the answer is right, 0 where it is not, -1 where the scene has no such attribute: not asked.
    """
    question = ask(scenes, kind, plain=True)
    there = np.flatnonzero(question.codes != ABSENT)
    texts = answer_all(connection, chat, features[there], [question.turns[row].question for row in there])
    return read_back(question, texts)


def read_back(question: Question, texts: Sequence[str]) -> NDArray[np.int8]:
    """Say which answers are right, (n,) int8 as `ask_about`; `texts` are of the scenes that have it, in order."""
    there = np.flatnonzero(question.codes != ABSENT)
    right = np.full(question.codes.size, -1, dtype=np.int8)
    right[there] = np.array([read_answer(question.kind, text) for text in texts]) == question.codes[there]
    return right


def measure_answers(
    connection: Connection, chat: Chat, features: FloatArray, scenes: Scenes, kinds: Sequence[str] = MEASURED
) -> dict[str, float]:
    """Give the share of right answers by kind of question, over the scenes that have the attribute."""
    figures = {}
    for kind in kinds:
        right = ask_about(connection, chat, features, scenes, kind)
        figures[kind] = round(float(right[right >= 0].mean()), 4)
    return figures
