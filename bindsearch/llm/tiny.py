"""A tiny Llama of one's own: tokenizer from texts, stock model with random weights, and its folder on disk.

The folder is in Hugging Face's layout (config.json, model.safetensors, tokenizer.model): the library and `llm.load`
read it like any other Llama.
"""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bindsearch.errors import InputError, MissingExtraError
from bindsearch.llm.prompts import INSTRUCTION, RESPONSE, START

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

_SPACE = "▁"


@dataclass(frozen=True)
class TinyConfig:
    """Sizes of a Llama.

    Attributes:
        width: D.
        layers, heads: of attention; D is a multiple of the heads.
        inner: width inside the MLPs.
        pieces: of the tokenizer, at most; 256 of them are the bytes.
        context_tokens: positions.
    """

    width: int = 192
    layers: int = 4
    heads: int = 6
    inner: int = 512
    pieces: int = 900
    context_tokens: int = 512

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit together."""
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise InputError(f"llama: {self.heads} heads do not divide a width of {self.width} into even parts.")


def need_extra(what: str) -> None:
    """Say in one line what is missing.

    Raises:
        MissingExtraError: transformers or sentencepiece is not installed.
    """
    for package in ("transformers", "sentencepiece"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "llm", what)


def train_tokenizer(texts: Iterable[str], pieces: int, path: Path) -> None:
    """Train a sentencepiece tokenizer as Llama's is (BPE, bytes for what is unknown) and write it.

    The fixed parts of the prompt are one piece each: a tiny model need not read its template word by word.

    Args:
        texts: all that it must know; the same texts in the same order give the same bytes.
        pieces: at most.
        path: of tokenizer.model.
    """
    need_extra("A Llama's tokenizer")
    from sentencepiece import SentencePieceTrainer

    out = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=out,
        model_type="bpe",
        vocab_size=pieces,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=[part.replace(" ", _SPACE) for part in (f" {START}", RESPONSE, f"\n\n{INSTRUCTION}")],
        num_threads=1,
        minloglevel=2,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out.getvalue())


def build_llama(config: TinyConfig, pieces: int, seed: int) -> LlamaForCausalLM:
    """Build the library's stock model with random weights, in float32 and eval mode.

    Args:
        config: sizes.
        pieces: that the tokenizer has.
        seed: of the weights.
    """
    need_extra("A language model")
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        llama = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=pieces,
                hidden_size=config.width,
                intermediate_size=config.inner,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                max_position_embeddings=config.context_tokens,
                rms_norm_eps=1e-6,
                tie_word_embeddings=False,
            )
        )
    llama.generation_config = GenerationConfig()
    return llama.eval()


def save_llama(llama: LlamaForCausalLM, folder: Path, dtype: torch.dtype) -> None:
    """Write config.json and model.safetensors, as `find_llama` looks for them.

    Args:
        llama: Not modified.
        folder: written to; a tokenizer.model belongs beside them.
        dtype: of the file.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    facts = llama.config.to_diff_dict()
    facts |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    state = {key: value.detach().to(dtype).contiguous() for key, value in llama.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
