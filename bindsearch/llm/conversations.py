r"""Conversations about pictures, in LLaVA's JSON, and as token rows of which the answers alone are learned.

    [{"id": "17", "image": "world:17#image", "conversations": [
        {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A dog."}, ...]}, ...]

Source: the format of LLaVA's instruction data (arXiv 2304.08485).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from bindsearch.errors import InputError, MissingInputError
from bindsearch.llm.prompts import alpaca, next_turn

if TYPE_CHECKING:
    from bindsearch.llm.tokenizer import Tokenizer

IMAGE_TAG = "<image>"
SPEAKERS = ("human", "gpt")


class Turn(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """Turns about one picture.

    Attributes:
        id: of the record.
        turns: at least one.
        image: file or address of the picture; None where there is none.
    """

    id: str
    turns: tuple[Turn, ...]
    image: str | None = None


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> None:
    """Write LLaVA's JSON, one record a line; a kill leaves the old file or the new one."""
    lines = [json.dumps(_record(each), ensure_ascii=False) for each in conversations]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    temporary.replace(path)


def _record(conversation: Conversation) -> dict[str, Any]:
    said: list[dict[str, str]] = []
    for number, turn in enumerate(conversation.turns):
        tag = f"{IMAGE_TAG}\n" if conversation.image is not None and number == 0 else ""
        said += [{"from": "human", "value": tag + turn.question}, {"from": "gpt", "value": turn.answer}]
    image = {} if conversation.image is None else {"image": conversation.image}
    return {"id": conversation.id, **image, "conversations": said}


def read_conversations(path: Path) -> list[Conversation]:
    """Read LLaVA's JSON.

    Raises:
        MissingInputError: no such file, or no conversation in it.
        InputError: not of this form; the record is named.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file. It should hold conversations in LLaVA's JSON.")
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: no JSON ({error}).") from error
    if not isinstance(records, list):
        raise InputError(f"{path}: expected a list of records, got {type(records).__name__}.")
    if not records:
        raise MissingInputError(f"{path}: holds no conversation.")
    return [_conversation(record, f"{path}: record {number}") for number, record in enumerate(records)]


def _conversation(record: Any, where: str) -> Conversation:
    said = record.get("conversations") if isinstance(record, dict) else None
    if not isinstance(said, list) or not said or len(said) % 2:
        raise InputError(f"{where}: expected 'conversations', a list of questions and answers by turns.")
    for number, one in enumerate(said):
        if (
            not isinstance(one, dict)
            or one.get("from") != SPEAKERS[number % 2]
            or not isinstance(one.get("value"), str)
        ):
            raise InputError(
                f"{where}: message {number}: expected {{'from': '{SPEAKERS[number % 2]}', 'value': text}}."
            )
    image = record.get("image")
    if image is not None and not isinstance(image, str):
        raise InputError(f"{where}: image: expected one name, got {image!r}.")
    texts = [sys.intern(one["value"].replace(IMAGE_TAG, "").strip()) for one in said]
    turns = tuple(Turn(*pair) for pair in zip(texts[::2], texts[1::2], strict=True))
    return Conversation(str(record.get("id", "")), turns, image)


class Prompts(Protocol):
    """Writes the prompts of a conversation."""

    def prompt(self, turns: Sequence[Turn], question: str) -> list[int]:
        """Give the ids of a question after the turns before it; the oldest turns go where the context is too short."""


class Chat:
    """Writes conversations as a Llama reads them: the adapters' template, further turns after it.

    Args:
        tokenizer: of the Llama.
        tag_id: id that stands for the picture, put after the start token; None: the connector needs none.
        context_tokens: rows are cut to this.
    """

    def __init__(self, tokenizer: Tokenizer, tag_id: int | None = None, context_tokens: int = 512) -> None:
        self.tokenizer, self.tag_id, self.context_tokens = tokenizer, tag_id, context_tokens
        self._known: dict[tuple[str, int], list[int]] = {}

    def prompt(self, turns: Sequence[Turn], question: str) -> list[int]:
        """Give the ids of a question after the turns before it; the oldest turns go where the context is too short.

        Args:
            turns: question and answer of each turn before. Not modified.
            question: what is asked now.
        """
        while True:
            ids = self._start()
            for number, turn in enumerate(turns):
                ids += [*self._question(turn.question, number), *self._answer(turn.answer)]
            ids += self._question(question, len(turns))
            if len(ids) <= self.context_tokens // 2 or not turns:
                return ids
            turns = turns[1:]

    def row(self, turns: Sequence[Turn]) -> tuple[list[int], list[bool]]:
        """Give the ids of a conversation, and which of them are learned: those of its answers."""
        ids, learned = self._start(), [False]
        learned *= len(ids)
        for number, turn in enumerate(turns):
            question, answer = self._question(turn.question, number), self._answer(turn.answer)
            ids += [*question, *answer]
            learned += [False] * len(question) + [True] * len(answer)
        return ids[: self.context_tokens], learned[: self.context_tokens]

    def has_room(self, turn: Turn) -> bool:
        """Say whether the context keeps something of a turn's answer where the turn comes first."""
        return any(self.row((turn,))[1])

    def _start(self) -> list[int]:
        return [self.tokenizer.bos] if self.tag_id is None else [self.tokenizer.bos, self.tag_id]

    def _question(self, question: str, number: int) -> list[int]:
        return self._pieces(question, 1 if number else 0)

    def _answer(self, answer: str) -> list[int]:
        return self._pieces(answer, 2)

    def _pieces(self, text: str, role: int) -> list[int]:
        found = self._known.get((text, role))
        if found is None:
            written = text if role == 2 else next_turn(text) if role else alpaca(text)
            found = self.tokenizer.pieces(written) + ([self.tokenizer.eos] if role == 2 else [])
            if len(self._known) < 1 << 20:
                self._known[text, role] = found
        return found
