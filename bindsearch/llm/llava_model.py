"""A Llama with LLaVA's connector, from LLaVA's files or a pair of ours; asked in the words that it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bindsearch.errors import MismatchError, MissingInputError, UnknownNameError, UnsupportedError
from bindsearch.llm.checkpoints import adapter_shapes, check_finite, fill, lora_terms, rank_of, read_adapter
from bindsearch.llm.conversations import Chat
from bindsearch.llm.fingerprint import check_base, fingerprint_of, recorded_base
from bindsearch.llm.generate import CONTEXT_TOKENS
from bindsearch.llm.keys import place_of
from bindsearch.llm.llama_files import find_llama, load_llama
from bindsearch.llm.llava import IMAGE_ID, IMAGE_TAG, tokenize
from bindsearch.llm.llava_files import (
    LORA_CONFIG,
    check_no_words,
    connector_of,
    merge_lora,
    read_projector,
    split_state,
)
from bindsearch.llm.model import DTYPES, AdapterLlama
from bindsearch.llm.tokenizer import Tokenizer
from bindsearch.models.weights import check_keys

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from bindsearch.llm.conversations import Turn
    from bindsearch.llm.fingerprint import BaseFingerprint
    from bindsearch.llm.llava import LlavaConnector

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""How LLaVA 1.5's training conversations begin."""
NAMES = ("mm_projector", "non_lora_trainables")


def is_llava(path: Path) -> bool:
    """Say whether a file or folder is named as LLaVA names its connectors."""
    return path.name.startswith(NAMES) or any((path / f"{name}.bin").is_file() for name in NAMES)


def check_llava_options(path: Path, merge_lora: bool, quantize: str | None, visual_heads: int | None) -> None:
    """Refuse options of `llm.load` that LLaVA's files do not take.

    Raises:
        UnsupportedError: naming the option.
    """
    if quantize is not None:
        raise UnsupportedError(f"{path}: quantize={quantize!r}: LLaVA's Llama is not quantised here. Leave it out.")
    if visual_heads is not None:
        raise UnsupportedError(f"{path}: visual_heads={visual_heads}: LLaVA has no visual blocks. Leave it out.")
    if not merge_lora and (path / LORA_CONFIG).is_file():
        raise UnsupportedError(f"{path}: merge_lora=False: LLaVA's LoRA terms are always merged here. Leave it out.")


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
        UnsupportedError: the file holds trained word embeddings as well, or as of `merge_lora`.
    """
    projector = Path(projector)
    parts, where = read_projector(projector)
    check_no_words(parts, where)
    connector = connector_of(parts, where)
    base, tokenizer, mark = _load_base(connector, projector, llama, (dtype, device, attention))
    if projector.is_dir() and (projector / LORA_CONFIG).is_file():
        merge_lora(base, projector)
    return LlavaLlama(base, connector.to(device), tokenizer, base=mark)


def load_llava_pair(
    adapter: Path, llama: Path, prompts: str, dtype: str = "float32", device: str = "cpu", attention: str = "sdpa"
) -> AdapterLlama:
    """Load the projector of a pair, with the norms and LoRA terms that were trained with it, and the pair's Llama.

    Args:
        adapter: .safetensors: the projector in LLaVA's names, the rest in ImageBind-LLM's.
        llama: folder, as of `llm.load`.
        prompts: how it is asked, as it was trained: "alpaca" after the image's tag, or "llava".
        dtype: as there.
        device: as there.
        attention: as there.

    Raises:
        MissingInputError, WeightsError, MismatchError: as of `llm.load`.
        UnknownNameError: other prompts.
    """
    if prompts not in PROMPTS:
        raise UnknownNameError("prompts", prompts, PROMPTS)
    state = read_adapter(adapter)
    connector = connector_of(split_state(state, str(adapter)), str(adapter))
    base, tokenizer, mark = _load_base(connector, adapter, llama, (dtype, device, attention))
    lora = lora_terms(rank_of(state), base.config)
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    check_keys(shapes, adapter_shapes(connector, lora, base), str(adapter))
    check_finite(state, str(adapter))
    fill({key: value for key, value in state.items() if place_of(key) is not None}, None, lora, base)
    if lora is not None:
        lora = lora.to(device)
        lora.merge(base)
    return PROMPTS[prompts](base, connector.to(device), tokenizer, lora, base=mark)


def _load_base(
    connector: LlavaConnector, projector: Path, llama: str | Path, how: tuple[str, str, str]
) -> tuple[LlamaForCausalLM, Tokenizer, BaseFingerprint]:
    """Load the Llama that a projector was made for; `how` is dtype, device and attention.

    Raises:
        MissingInputError, WeightsError, MismatchError, UnknownNameError: as of `llm.load`.
    """
    dtype, device, attention = how
    if dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, DTYPES)
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
    return base, tokenizer, mark


class TaggedLlama(AdapterLlama):
    """A Llama that reads an embedding as a token of its prompt, asked in the words that `train-llm` trains on."""

    def prompt(self, question: str, context: str = "") -> list[int]:
        """Give the ids of a question's prompt, the image's tag after the start token."""
        start, *rest = super().prompt(question, context)
        return [start, IMAGE_ID, *rest]

    def chat(self, context_tokens: int = CONTEXT_TOKENS) -> Chat:
        """Give what writes the prompts of several turns."""
        return Chat(self.tokenizer, IMAGE_ID, context_tokens)


class LlavaLlama(AdapterLlama):
    """A Llama that reads an embedding as a token of its prompt; see `AdapterLlama`."""

    def prompt(self, question: str, context: str = "") -> list[int]:
        """Give the ids of a question's prompt, with the image's tag in it."""
        return self.chat().prompt((), f"{question}\n{context}" if context else question)

    def chat(self, context_tokens: int = 512) -> LlavaChat:
        """Give what writes the prompts of several turns."""
        return LlavaChat(self.tokenizer, context_tokens)


PROMPTS: dict[str, type[AdapterLlama]] = {"alpaca": TaggedLlama, "llava": LlavaLlama}
"""How a pair's Llama is asked, by the name that its manifest has for it."""


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
