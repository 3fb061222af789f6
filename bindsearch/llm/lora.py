"""Low-rank terms beside the seven linears of a Llama's layers: as side branches, or merged into the weights."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bindsearch.errors import UnsupportedError
from bindsearch.llm.keys import LINEARS

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import LlamaForCausalLM

SEVEN = tuple(hf for hf in LINEARS.values())


class LoraBranch(nn.Module):
    """up(down(x)): rank r, scale 1."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., inputs) to (..., outputs). Not modified."""
        out: torch.Tensor = self.up(self.down(x.to(self.down.weight.dtype)))
        return out.to(x.dtype)

    def product(self) -> torch.Tensor:
        """Give the full matrix (outputs, inputs) in float32."""
        return self.up.weight.float() @ self.down.weight.float()


class LoraTerms(nn.Module):
    """The low-rank terms of all layers.

    Args:
        sizes: hf name of a linear (q_proj, ...) -> (inputs, outputs).
        layers: of the Llama.
        rank: of every term.
    """

    def __init__(self, sizes: dict[str, tuple[int, int]], layers: int, rank: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: LoraBranch(*size, rank) for name, size in sizes.items()}) for _ in range(layers)
        )
        self.merged = False
        self._handles: list[RemovableHandle] = []

    def branch(self, layer: int, name: str) -> LoraBranch:
        """Give the term beside one linear."""
        found = self.layers[layer][name]  # type: ignore[index]
        assert isinstance(found, LoraBranch)  # noqa: S101 - tells the type; a ModuleDict says Module
        return found

    def attach(self, llama: LlamaForCausalLM) -> None:
        """Add the terms to the outputs of the linears, by hooks that stay until `detach`.

        Works on quantised weights too. Order counts: attach before a connector connects, so that it sees these outputs.
        """
        self._refuse_twice()
        for layer, block in enumerate(llama.model.layers):
            for path in SEVEN:
                name = path.split(".")[1]
                hook = partial(_add_branch, self.branch(layer, name))
                self._handles.append(block.get_submodule(path).register_forward_hook(hook))

    def merge(self, llama: LlamaForCausalLM) -> None:
        """Add the terms to the weights themselves: nothing to compute beside them afterwards.

        Overwrites the weights of the seven linears of every layer.

        Raises:
            UnsupportedError: the weights are quantised.
        """
        self._refuse_twice()
        with torch.no_grad():
            for layer, block in enumerate(llama.model.layers):
                for path in SEVEN:
                    weight = block.get_submodule(path).weight
                    if not weight.is_floating_point():
                        raise UnsupportedError("Weights of 8 or 4 bits take no LoRA terms: use merge_lora=False.")
                    product = self.branch(layer, path.split(".")[1]).product()
                    weight.copy_((weight.float() + product.to(weight.device)).to(weight.dtype))
        self.merged = True

    def detach(self) -> None:
        """Remove the hooks."""
        while self._handles:
            self._handles.pop().remove()

    def _refuse_twice(self) -> None:
        if self.merged or self._handles:
            raise UnsupportedError("These LoRA terms are on a Llama already: load the model again.")


def _add_branch(branch: LoraBranch, _module: nn.Module, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
    beside: torch.Tensor = branch(args[0])
    return out + beside


def base_output(linear: nn.Module, x: torch.Tensor, lora: LoraTerms | None, layer: int, name: str) -> torch.Tensor:
    """Apply a linear as the base has it, without its low-rank term.

    Args:
        linear: of the Llama; quantised or not. Its `forward` runs without its hooks, so a side branch stays out.
        x: (B, D) or (B, L, D). Not modified.
        lora: terms on that Llama; what was merged is subtracted.
        layer: of the linear.
        name: of the linear: q_proj, k_proj or v_proj.

    Returns:
        The same leading shape, with the linear's outputs.
    """
    out: torch.Tensor = linear.forward(x)
    return out - lora.branch(layer, name)(x) if lora is not None and lora.merged else out
