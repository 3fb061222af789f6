"""A Llama with LLaVA's connector, from LLaVA's files; asked in the words that LLaVA was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bindsearch.errors import MismatchError, MissingInputError, UnknownNameError
from bindsearch.llm.fingerprint import check_base, fingerprint_of, recorded_base
from bindsearch.llm.llama_files import find_llama, load_llama
from bindsearch.llm.llava import IMAGE_TAG, tokenize
from bindsearch.llm.llava_files import load_projector, merge_lora
from bindsearch.llm.model import DTYPES, AdapterLlama
from bindsearch.llm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from bindsearch.llm.conversations import Turn

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""How LLaVA 1.5's training conversations begin."""
NAMES = ("mm_projector", "non_lora_trainables")


def is_llava(path: Path) -> bool:
    """Say whether a file or folder is named as LLaVA names its connectors."""
    return path.name.startswith(NAMES) or any((path / f"{name}.bin").is_file() for name in NAMES)


def load_llava(
    projector: str | Path, llama: str | Path, dtype: str = "bfloat16", device: str = "cpu", attention: str = "sdpa"
) -> LlavaLlama:
    """Load a projector and the Llama it was made for; LoRA terms beside it are merged.

    Args:
        projector: mm_projector.bin, or the folder of a LoRA checkpoint.
        llama: folder, as of `llm.load`.
        dtype: as there.
        device: as there.
        attention: as there.

    Raises:
        MissingInputError, WeightsError, MismatchError: as of `llm.load`, `load_projector` and `merge_lora`.
    """
    if dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, DTYPES)
    projector = Path(projector)
    connector = load_projector(projector)
    files = find_llama(Path(llama))
    if files.tokenizer is None:
        raise MissingInputError(f"{files.folder}: no tokenizer.model beside the weights or one level up. Bring it.")
    base = load_llama(files, False, DTYPES[dtype], device, attention)
    mark = fingerprint_of(base)
    if connector.width != base.config.hidden_size:
        raise MismatchError(
            f"{projector} was not made for {files.folder} (width: projector {connector.width}, Llama "
            f"{base.config.hidden_size}). Bring the Llama it was made with."
        )
    check_base(recorded_base(projector), mark, str(projector), str(files.folder))
    tokenizer = Tokenizer(files.tokenizer)
    if tokenizer.size != base.config.vocab_size:
        raise MismatchError(
            f"{files.tokenizer}: {tokenizer.size} pieces, the Llama has {base.config.vocab_size}. "
            "Bring the tokenizer.model of this Llama."
        )
    if projector.is_dir() and (projector / "adapter_config.json").is_file():
        merge_lora(base, projector)
    return LlavaLlama(base, connector.to(device), tokenizer, base=mark)


class LlavaLlama(AdapterLlama):
    """A Llama that reads an embedding as a token of its prompt; see `AdapterLlama`."""

    def prompt(self, question: str, context: str = "") -> list[int]:
        """Give the ids of a question's prompt, with the image's tag in it."""
        return self.chat().prompt((), f"{question}\n{context}" if context else question)

    def chat(self, context_tokens: int = 512) -> LlavaChat:
        """Give what writes the prompts of several turns."""
        return LlavaChat(self.tokenizer, context_tokens)


class LlavaChat:
    """Writes conversations as LLaVA 1.5 was trained on them; the image stands before the first question."""

    def __init__(self, tokenizer: Tokenizer, context_tokens: int = 512) -> None:
        self.tokenizer, self.context_tokens = tokenizer, context_tokens

    def prompt(self, turns: Sequence[Turn], question: str) -> list[int]:
        """Give the ids of a question after the turns before it; the oldest turns go where the context is too short."""
        while True:
            questions = [*(turn.question for turn in turns), question]
            ids = self._encode(f"{SYSTEM} USER: {IMAGE_TAG}\n{questions[0]} ASSISTANT:")
            for turn, asked in zip(turns, questions[1:], strict=True):
                ids += [*self.tokenizer.pieces(turn.answer), self.tokenizer.eos]
                ids += self.tokenizer.pieces(f"USER: {asked} ASSISTANT:")
            if len(ids) <= self.context_tokens // 2 or not turns:
                return ids
            turns = turns[1:]

    def _encode(self, text: str) -> list[int]:
        return tokenize(text, self.tokenizer.encode, self.tokenizer.bos)
