"""Several questions about one embedding: each is read with the questions and answers before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bindsearch.llm.conversations import Turn
from bindsearch.llm.generate import Sampling

if TYPE_CHECKING:
    import torch

    from bindsearch.llm.model import AdapterLlama
    from bindsearch.types import FloatArray


class Dialogue:
    """Questions and answers about one embedding.

    Args:
        model: that answers.
        embeddings: (1, d) floats. Not modified.
        sampling: how tokens are drawn; None takes the reference's settings.

    Attributes:
        turns: so far; the oldest are no longer read once they fill half of the context.
    """

    def __init__(
        self, model: AdapterLlama, embeddings: torch.Tensor | FloatArray, sampling: Sampling | None = None
    ) -> None:
        self.model, self.embeddings, self.sampling = model, embeddings, sampling or Sampling()
        self.turns: list[Turn] = []
        self._chat = model.chat(self.sampling.context_tokens)

    def ask(self, question: str) -> Iterator[str]:
        """Ask one more question, giving pieces of the answer as they come; the turn is kept when all are read.

        Raises:
            ShapeError, InputError: as `AdapterLlama.answer`.
        """
        prompt = self._chat.prompt(self.turns, question)
        pieces = []
        for piece in self.model.pieces(self.embeddings, prompt, self.sampling):
            pieces.append(piece)
            yield piece
        self.turns.append(Turn(question, "".join(pieces).strip()))
