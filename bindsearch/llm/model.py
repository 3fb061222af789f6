"""A Llama with an adapter: load both, ask a question about embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch

from bindsearch.errors import InputError, MismatchError, MissingInputError, UnknownNameError
from bindsearch.llm.checkpoints import (
    RELEASED_HEADS,
    AdapterFacts,
    build_connector,
    build_lora,
    check_fits,
    check_state,
    describe,
    fill,
    heads_of,
    read_adapter,
)
from bindsearch.llm.conversations import Chat
from bindsearch.llm.fingerprint import check_base, fingerprint_of, recorded_base
from bindsearch.llm.generate import CONTEXT_TOKENS, Sampling, generate, stream
from bindsearch.llm.llama_files import find_llama, load_llama
from bindsearch.llm.prompts import alpaca
from bindsearch.llm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from bindsearch.llm.base import Connector
    from bindsearch.llm.conversations import Prompts
    from bindsearch.llm.fingerprint import BaseFingerprint
    from bindsearch.llm.lora import LoraTerms
    from bindsearch.types import FloatArray

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_REPLACEMENT = "�"


def load(
    adapter: str | Path,
    llama: str | Path,
    dtype: str = "bfloat16",
    device: str = "cpu",
    merge_lora: bool = True,
    quantize: Literal["8bit", "4bit"] | None = None,
    attention: str = "sdpa",
    visual_heads: int | None = None,
) -> AdapterLlama:
    """Load an adapter and the Llama it was made for.

    Args:
        adapter: 7B.pth, 7B-pretrained.pth or 7B-beta.pth of ImageBind-LLM, a file of LLaMA-Adapter V2, LLaVA's
            mm_projector.bin, or the folder of a LoRA checkpoint of LLaVA's.
        llama: folder in Meta's layout (params.json, consolidated.*.pth) or Hugging Face's (config.json), or one above.
        dtype: of the Llama's weights: float32, bfloat16, float16, float64. The connector stays in float32.
        device: "cpu", "cuda", ...
        merge_lora: add the low-rank terms to the weights (fastest); else compute them beside. Quantised: always beside.
        quantize: "8bit" or "4bit" weights, by bitsandbytes.
        attention: the library's implementation: "sdpa", "eager", ...
        visual_heads: heads of V2's visual blocks, which no tensor tells; None takes what the file records, else the
            16 of the released ones.

    Raises:
        MissingExtraError: transformers, sentencepiece or bitsandbytes is not installed.
        MissingInputError: a file or folder is not there.
        WeightsError: a damaged or wrong file: keys are listed by name.
        MismatchError: an adapter of another size of Llama, or recorded for another one (see `record_base`), or with
            other visual heads; a tokenizer of another vocabulary.
        UnsupportedError: an option that adapters of this kind do not take, or trained word embeddings beside LLaVA's.
    """
    if dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, DTYPES)
    from bindsearch.llm.llava_model import check_llava_options, is_llava, load_llava

    if is_llava(Path(adapter)):
        check_llava_options(Path(adapter), merge_lora, quantize, visual_heads)
        return load_llava(adapter, llama, dtype, device, attention)
    state = read_adapter(Path(adapter))
    facts = describe(state, str(adapter))
    files = find_llama(Path(llama))
    if files.tokenizer is None:
        raise MissingInputError(f"{files.folder}: no tokenizer.model beside the weights or one level up. Bring it.")
    tokenizer = Tokenizer(files.tokenizer)
    check_state(state, facts, str(adapter))
    heads = heads_of(Path(adapter), visual_heads) if facts.kind == "llama-adapter-v2" else RELEASED_HEADS
    base = load_llama(files, facts.biases, DTYPES[dtype], device, attention, quantize)
    check_fits(facts, base.config, str(adapter), str(files.folder))
    mark = None if quantize else fingerprint_of(base)
    check_base(recorded_base(adapter), mark, str(adapter), str(files.folder))
    if tokenizer.size != base.config.vocab_size:
        raise MismatchError(
            f"{files.tokenizer}: {tokenizer.size} pieces, the Llama has {base.config.vocab_size}. "
            "Bring the tokenizer.model of this Llama."
        )
    connector, lora = build_connector(facts, heads).to(device), build_lora(facts, base.config)
    fill(state, connector, lora, base)
    if lora is not None:
        lora = lora.to(device, DTYPES[dtype] if quantize is None and not merge_lora else torch.float32)
        if merge_lora and quantize is None:
            lora.merge(base)
        else:
            lora.attach(base)
    return AdapterLlama(base, connector, tokenizer, lora, facts, mark)


class AdapterLlama:
    """A Llama that answers questions about embeddings. Several threads may ask at the same time.

    Attributes:
        llama: the library's stock model; without a request it reads text alone.
        connector, lora: what the adapter brought.
        connection: the connector's hooks on that Llama.
        tokenizer: text <-> ids.
        facts: what the adapter file is; None for one that was not read from a file.
        base: which Llama it is, taken before anything was merged; None where it is not known.
    """

    def __init__(
        self,
        llama: LlamaForCausalLM,
        connector: Connector,
        tokenizer: Tokenizer,
        lora: LoraTerms | None = None,
        facts: AdapterFacts | None = None,
        base: BaseFingerprint | None = None,
    ) -> None:
        self.llama, self.lora, self.tokenizer, self.facts = llama, lora, tokenizer, facts
        self.base = base
        self.connector = connector.eval().requires_grad_(False)
        if lora is not None:
            lora.eval().requires_grad_(False)
        self.connection = connector.connect(llama, lora)

    def logits(self, embeddings: torch.Tensor | FloatArray, ids: torch.Tensor, **options: Any) -> torch.Tensor:
        """Score every token of given sequences.

        Args:
            embeddings: (1, d) or (B, d) floats. Not modified.
            ids: (B, L) int64; for LLaVA with the image's tag in each row. Not modified.
            options: more arguments of the model, such as the attention_mask of (B, L).

        Returns:
            (B, L, V) in the Llama's dtype; for LLaVA the tag's place is that of the embedding.

        Raises:
            ShapeError, InputError: embeddings or ids that the connector does not read.
        """
        device = self.llama.get_input_embeddings().weight.device
        mask = options.pop("attention_mask", torch.ones_like(ids))
        with torch.no_grad(), self.connection.inject(torch.as_tensor(embeddings)):
            inputs = self.connection.inputs(ids.to(device), mask.to(device))
            out: torch.Tensor = self.llama(**inputs, **options).logits
        return out

    @overload
    def answer(
        self,
        embeddings: torch.Tensor | FloatArray,
        question: str,
        *,
        context: str = ...,
        sampling: Sampling | None = ...,
        stream: Literal[False] = ...,
    ) -> str: ...

    @overload
    def answer(
        self,
        embeddings: torch.Tensor | FloatArray,
        question: str,
        *,
        context: str = ...,
        sampling: Sampling | None = ...,
        stream: Literal[True],
    ) -> Iterator[str]: ...

    def answer(
        self,
        embeddings: torch.Tensor | FloatArray,
        question: str,
        *,
        context: str = "",
        sampling: Sampling | None = None,
        stream: bool = False,
    ) -> str | Iterator[str]:
        """Answer one question about one embedding.

        Args:
            embeddings: (1, d) floats, from a query or the visual cache. Not modified.
            question: what to ask.
            context: more text that belongs to it.
            sampling: how tokens are drawn; None takes the reference's settings.
            stream: give pieces of text as they come.

        Raises:
            ShapeError, InputError: several rows, another d, NaN, or a question that fills the context.
        """
        given = torch.as_tensor(embeddings)
        if len(given) != 1:
            raise InputError(f"answer: expected one embedding, got {len(given)}. For several: answers(...).")
        if stream:
            return self.pieces(given, self.prompt(question, context), sampling or Sampling())
        return self.answers(given, [question], [context], sampling)[0]

    def answers(
        self,
        embeddings: torch.Tensor | FloatArray,
        questions: Sequence[str],
        contexts: Sequence[str] | None = None,
        sampling: Sampling | None = None,
    ) -> list[str]:
        """Answer questions in one batch: one embedding for all, or one each.

        Args, raises: as `answer`, with B questions, B contexts and (1, d) or (B, d) embeddings.
        """
        contexts = [""] * len(questions) if contexts is None else contexts
        prompts = [self.prompt(*pair) for pair in zip(questions, contexts, strict=True)]
        given = torch.as_tensor(embeddings)
        ids = generate(self.connection, given, prompts, sampling or Sampling(), self.tokenizer.eos)
        return [self.tokenizer.decode(row).strip() for row in ids]

    def prompt(self, question: str, context: str = "") -> list[int]:
        """Give the ids of a question's prompt."""
        return self.tokenizer.encode(alpaca(question, context))

    def chat(self, context_tokens: int = CONTEXT_TOKENS) -> Prompts:
        """Give what writes the prompts of several turns."""
        return Chat(self.tokenizer, context_tokens=context_tokens)

    def pieces(self, embeddings: torch.Tensor | FloatArray, prompt: Sequence[int], sampling: Sampling) -> Iterator[str]:
        """Go on with a prompt, giving pieces of text as they come.

        Args:
            embeddings: (1, d) floats. Not modified.
            prompt: ids, beginning with the start token.
            sampling: how tokens are drawn.

        Raises:
            ShapeError, InputError: as `answer`.
        """
        given = torch.as_tensor(embeddings)
        if len(given) != 1:
            raise InputError(f"pieces: expected one embedding, got {len(given)}.")
        ids: list[int] = []
        said = ""
        for token in stream(self.connection, given, prompt, sampling, self.tokenizer.eos):
            ids.append(token)
            text = self.tokenizer.decode(ids)
            if not text.endswith(_REPLACEMENT):  # a character may take several tokens
                yield text[len(said) :]
                said = text
        if (text := self.tokenizer.decode(ids)) != said:
            yield text[len(said) :]
