"""Answers, token by token: the library's own `generate` with what a connector injects.

How the next token is drawn is a logits processor of ours, for two reasons: the reference's nucleus keeps a token when
exactly p lies before it, the library's drops it; and each request draws from its own generator, so that concurrent
requests share no random state.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bindsearch.errors import InputError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from bindsearch.llm.base import Connection

CONTEXT_TOKENS = 512


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        max_new_tokens: at most; fewer where the context ends first.
        temperature: 0 takes the likeliest token; else logits are divided by it.
        top_p: the nucleus: a token stays while the mass before it is <= top_p.
        seed: of the request's own generator, of 64 bits; None draws one.
        context_tokens: prompt and answer together. 512 is what the released adapters were trained with.
    """

    max_new_tokens: int = 256
    temperature: float = 0.1
    top_p: float = 0.75
    seed: int | None = None
    context_tokens: int = CONTEXT_TOKENS

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be meant."""
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens: expected 1 or more, got {self.max_new_tokens}.")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature: expected 0 or more, got {self.temperature}.")
        if not 0 <= self.top_p <= 1:
            raise InputError(f"top_p: expected a share between 0 and 1, got {self.top_p}.")
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise InputError(f"seed: expected a whole number of 64 bits, up to {2**64 - 1}, got {self.seed}.")

    def room(self, prompt_tokens: int) -> int:
        """Tell how many tokens an answer to a prompt of that length may have.

        Raises:
            InputError: the prompt fills the context.
        """
        left = self.context_tokens - prompt_tokens
        if left < 1:
            raise InputError(
                f"The prompt has {prompt_tokens} tokens, the context {self.context_tokens}: no room for an answer. "
                "Shorten the question."
            )
        return min(left, self.max_new_tokens)


def nucleus(logits: torch.Tensor, temperature: float, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the probabilities that are drawn from: the smallest set of likeliest tokens whose mass passes top_p.

    Args:
        logits: (B, V) floats. Not modified.
        temperature: above 0.
        top_p: a token stays while the mass before it is <= top_p; the first always stays.

    Returns:
        Probabilities (B, V) float32, falling, 0 outside the nucleus, rows adding up to 1; and their ids (B, V) int64.

    Source: golden top_p_filter.
    """
    shares, ids = torch.sort((logits.float() / temperature).softmax(-1), dim=-1, descending=True)
    before = shares.cumsum(-1) - shares
    kept = shares.masked_fill(before > top_p, 0.0)
    return kept / kept.sum(-1, keepdim=True), ids


class _Draw:
    """A logits processor: the drawn token's logit stays, the others become minus infinity."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self.sampling = sampling
        self.generator = torch.Generator(device)
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)

    def __call__(self, _ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        shares, ids = nucleus(scores, self.sampling.temperature, self.sampling.top_p)
        drawn = ids.gather(1, torch.multinomial(shares, 1, generator=self.generator))
        return torch.full_like(scores, float("-inf")).scatter(1, drawn, 0.0)


class _Stop:
    """A stopping criterion: true for every row once nobody reads on."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_options: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), dtype=torch.bool, device=input_ids.device)


class _Ids:
    """A streamer that puts each new id into a queue; the prompt comes first and is left out."""

    def __init__(self, out: queue.Queue[int | BaseException | None]) -> None:
        self.out, self.prompt = out, True

    def put(self, value: torch.Tensor) -> None:
        if self.prompt:
            self.prompt = False
            return
        for token in value.reshape(-1).tolist():
            self.out.put(token)

    def end(self) -> None:
        """Do nothing: the thread says when it is done."""


def padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad prompts on the left: ids and mask, (B, L) int64 each."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def generate(
    connection: Connection,
    embeddings: torch.Tensor,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    eos: int,
    **options: Any,
) -> list[list[int]]:
    """Answer prompts.

    Args:
        connection: of the connector with its Llama, which is in eval mode.
        embeddings: (1, ...) for all prompts or (B, ...), one each. Not modified.
        prompts: B lists of ids, each beginning with the start token.
        sampling: how tokens are drawn and how many.
        eos: id that ends an answer; it is left out of the result.
        options: more arguments of the library's generate.

    Returns:
        B lists of ids, each cut at its end token, at max_new_tokens and at the end of the context.

    Raises:
        InputError: no prompt, an empty one, or one that fills the context.
    """
    rooms = [sampling.room(len(prompt)) for prompt in prompts]
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise InputError("Nothing to answer: give at least one prompt, each with at least one token.")
    if len(embeddings) not in (1, len(prompts)):
        raise InputError(f"{len(prompts)} prompts, {len(embeddings)} embeddings: give one for all, or one each.")
    llama = connection.llama
    ids, mask = padded(prompts, llama.get_input_embeddings().weight.device)
    with torch.no_grad(), connection.inject(embeddings):
        inputs = connection.inputs(ids, mask)
        out = llama.generate(**inputs, **_arguments(llama, sampling, max(rooms), eos), **options)
    start = ids.shape[1] if "input_ids" in inputs else 0  # where embeddings go in, only new ids come out
    return [_until(row[start : start + room].tolist(), eos) for row, room in zip(out, rooms, strict=True)]


def stream(
    connection: Connection, embeddings: torch.Tensor, prompt: Sequence[int], sampling: Sampling, eos: int
) -> Iterator[int]:
    """Answer one prompt, giving each id as soon as it is drawn; leaving the loop stops the model.

    Args, raises: as `generate`, for one prompt. An error of the model is raised where the ids are read.
    """
    sampling.room(len(prompt))
    out: queue.Queue[int | BaseException | None] = queue.Queue()
    stop = _Stop()

    def work() -> None:
        try:
            generate(connection, embeddings, [prompt], sampling, eos, streamer=_Ids(out), stopping_criteria=[stop])
            out.put(None)
        except BaseException as error:  # the reader raises it
            out.put(error)

    thread = threading.Thread(target=work, name="bindsearch-answer", daemon=True)
    thread.start()
    try:
        while (got := out.get()) is not None:
            if isinstance(got, BaseException):
                raise got
            if got == eos:
                return
            yield got
    finally:
        stop.event.set()
        thread.join()


def _arguments(llama: LlamaForCausalLM, sampling: Sampling, new_tokens: int, eos: int) -> dict[str, Any]:
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, use_cache=True, eos_token_id=eos, pad_token_id=0
    )
    if sampling.temperature == 0:
        return {"generation_config": config}
    device = llama.get_input_embeddings().weight.device
    return {"generation_config": config, "logits_processor": [_Draw(sampling, device)]}


def _until(ids: list[int], eos: int) -> list[int]:
    return ids[: ids.index(eos)] if eos in ids else ids
