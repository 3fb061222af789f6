"""What a connector is: something that lets a Llama read embeddings, by hooks that one request switches on.

    connection = connector.connect(llama)        sizes compared, silent hooks installed once
    with connection.inject(embeddings):          this thread's request, and no other's
        llama(**connection.inputs(ids, mask))
    connection.close()                           the Llama is stock again

Hooks belong to modules, requests to threads: what a request injects lives in a context variable that the hooks read,
so that requests of several threads run on one Llama at the same time without seeing each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bindsearch.errors import InputError, ShapeError, UnsupportedError

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import LlamaForCausalLM

    from bindsearch.llm.lora import LoraTerms

_ACTIVE: ContextVar[Mapping[int, Any] | None] = ContextVar("bindsearch_llm_requests", default=None)


class Connector(nn.Module, ABC):
    """Learned parameters between embeddings and a Llama."""

    name: str = ""

    @abstractmethod
    def connect(self, llama: LlamaForCausalLM, lora: LoraTerms | None = None) -> Connection:
        """Compare sizes and install hooks that do nothing until a request injects.

        Args:
            llama: a stock model. Gains hooks; its parameters are not modified.
            lora: low-rank terms that are attached to the same model: what is injected passes the linears without them.

        Raises:
            MismatchError: the connector was made for another size of Llama.
        """


class Connection(ABC):
    """A connector and the Llama it is connected to. Also a context manager that closes it."""

    def __init__(self, llama: LlamaForCausalLM) -> None:
        self.llama = llama
        self._handles: list[RemovableHandle] = []

    @abstractmethod
    def prepare(self, embeddings: torch.Tensor) -> Any:
        """Compute what the hooks of one request need. Called once a request.

        Args:
            embeddings: what the connector reads, on any device. Not modified.

        Raises:
            ShapeError, InputError: not the shape that the connector reads, or not finite.
        """

    @contextmanager
    def inject(self, embeddings: torch.Tensor) -> Iterator[None]:
        """Let the Llama read `embeddings` in this thread until the block ends.

        Args:
            embeddings: (B, d) or what the connector reads. One row serves any batch; B rows serve B, or B times as
                many (beams, several answers to one question: rows of one question lie together). Not modified.

        Raises:
            UnsupportedError: gradient checkpointing is on: it runs layers again in threads where no request is open.
        """
        if self.llama.training and any(getattr(part, "gradient_checkpointing", False) for part in self.llama.modules()):
            raise UnsupportedError(
                "Gradient checkpointing runs layers again outside the request, without what was injected. "
                "Switch it off: llama.activation_checkpointing_disable()"
            )
        token = _ACTIVE.set({**(_ACTIVE.get() or {}), id(self): self.prepare(embeddings)})
        try:
            yield
        finally:
            _ACTIVE.reset(token)

    @property
    def state(self) -> Any:
        """What `prepare` made for the request of this thread; None outside."""
        return (_ACTIVE.get() or {}).get(id(self))

    def inputs(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Give the arguments of the Llama for token ids (B, L) int64 and their mask (B, L) of 0 and 1.

        A connector that puts tokens into the sequence gives inputs_embeds and a longer mask instead.
        """
        return {"input_ids": ids, "attention_mask": mask}

    def training_inputs(self, ids: torch.Tensor, labels: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Give the arguments of the Llama for rows padded on the right, and their labels, inside `inject`.

        Args:
            ids: (B, L) int64. Not modified.
            labels: (B, L) int64. Not modified.
        """
        return {"input_ids": ids}, labels

    def close(self) -> None:
        """Remove the hooks."""
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> Connection:
        """Give the connection."""
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the hooks."""
        self.close()


def check_embeddings(embeddings: torch.Tensor, dim: int, where: str) -> None:
    """Refuse what is no (B, d) table of finite floats.

    Raises:
        ShapeError: another shape or an integer dtype.
        InputError: NaN or infinite values, with the first row that has one.
    """
    if embeddings.ndim != 2 or embeddings.shape[1] != dim or not embeddings.shape[0]:
        raise ShapeError(f"{where}: expected embeddings of shape (B, {dim}), got {tuple(embeddings.shape)}.")
    if not embeddings.is_floating_point():
        raise ShapeError(f"{where}: expected embeddings as floats, got {embeddings.dtype}.")
    finite = torch.isfinite(embeddings).all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0, 0])
        raise InputError(f"{where}: row {row} of the embeddings holds NaN or infinite values. Embed that item again.")


def rows_for(injected: torch.Tensor, rows: int, where: str) -> torch.Tensor:
    """Repeat what B requests inject for a batch of `rows`: beams and answers of one request lie together.

    Args:
        injected: (B, ...). Not modified.
        rows: of the batch that runs: 1 and B broadcast, a multiple of B repeats each row.
        where: the connector's name, for messages.

    Raises:
        ShapeError: `rows` is no multiple of B.
    """
    given = injected.shape[0]
    if given in (1, rows):
        return injected
    if rows % given:
        raise ShapeError(f"{where}: {given} embeddings were injected, the batch has {rows} rows: no multiple of it.")
    return injected.repeat_interleave(rows // given, dim=0)
