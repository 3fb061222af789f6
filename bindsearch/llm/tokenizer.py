"""The Llama's tokenizer: sentencepiece as it is, with the start token put before every prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bindsearch.errors import InputError, MissingExtraError, MissingInputError, WeightsError
from bindsearch.listing.naming import is_utf8


class Tokenizer:
    """Text <-> ids of a tokenizer.model.

    Raises:
        MissingExtraError: sentencepiece is not installed.
        MissingInputError: no such file.
        WeightsError: not a sentencepiece model.
    """

    def __init__(self, path: Path) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise MissingExtraError("sentencepiece", "llm", "A Llama's tokenizer") from error
        if not path.is_file():
            raise MissingInputError(f"{path}: no such file. Bring the tokenizer.model that came with this Llama.")
        try:
            self._model = SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise WeightsError(f"{path}: no sentencepiece model ({error}).") from error
        self.path = path

    @property
    def size(self) -> int:
        """How many pieces there are."""
        return int(self._model.vocab_size())

    @property
    def bos(self) -> int:
        """Id that starts a text."""
        return int(self._model.bos_id())

    @property
    def eos(self) -> int:
        """Id that ends an answer."""
        return int(self._model.eos_id())

    def encode(self, text: str) -> list[int]:
        """Give the ids of a prompt: the start token, then its pieces, no end token."""
        return [self.bos, *self.pieces(text)]

    def pieces(self, text: str) -> list[int]:
        """Give the ids of a text without a start or end token.

        Raises:
            InputError: the text holds bytes that are no UTF-8.
        """
        if not is_utf8(text):
            raise InputError(f"{ascii(text)[:80]}: not in UTF-8, which a language model reads. Type it again.")
        return list(self._model.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Give the text of ids; bytes that make no character become U+FFFD."""
        return str(self._model.decode(list(ids)))
