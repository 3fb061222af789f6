"""ImageBind-LLM's connector: one vector a query, through a bind network, into the attention of every layer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from bindsearch.errors import MismatchError, UnknownNameError
from bindsearch.llm.base import Connection, Connector, check_embeddings, rows_for
from bindsearch.llm.lora import base_output

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from bindsearch.llm.lora import LoraTerms

Norm = Literal["rmsnorm", "layernorm"]
RMS_EPS, LAYERNORM_EPS = 1e-6, 1e-5


class RMSNorm(nn.Module):
    """Divide by the root of the mean square, computed in float32, then the gain."""

    def __init__(self, width: int, eps: float = RMS_EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last axis of x (..., D); same shape and dtype. Not modified."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


class BindBlock(nn.Module):
    """A residual block: h + f2(SiLU(f1 n) * f3 n) with n = norm(h)."""

    def __init__(self, width: int, hidden: int, norm: Norm) -> None:
        super().__init__()
        legacy = norm == "layernorm"
        self.norm = nn.LayerNorm(width, eps=LAYERNORM_EPS) if legacy else RMSNorm(width)
        self.f1 = nn.Linear(width, hidden, bias=legacy)
        self.f2 = nn.Linear(hidden, width, bias=legacy)
        self.f3 = nn.Linear(width, hidden, bias=legacy)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Map (..., D) to (..., D). Not modified."""
        n = self.norm(h)
        out: torch.Tensor = h + self.f2(F.silu(self.f1(n)) * self.f3(n))
        return out


class BindNetwork(nn.Module):
    """From an embedding to a vector of the Llama's width: a linear, then three residual blocks, no norm at the end.

    Args:
        dim: d of the embeddings.
        width: D of the Llama.
        hidden: inner width of the blocks, 4 D.
        norm: "rmsnorm" (7B.pth), or "layernorm" of the first release (7B-beta.pth), whose blocks have biases.

    Source: paper section 3.1.2; goldens bind_rmsnorm, bind_legacy_layernorm.
    """

    def __init__(self, dim: int, width: int, hidden: int, norm: Norm = "rmsnorm", blocks: int = 3) -> None:
        super().__init__()
        if norm not in ("rmsnorm", "layernorm"):
            raise UnknownNameError("norm of a bind network", norm, ("rmsnorm", "layernorm"))
        self.proj = nn.Linear(dim, width)
        self.blocks = nn.ModuleList([BindBlock(width, hidden, norm) for _ in range(blocks)])

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Map (B, d) to (B, D). Not modified; the norm of a row counts."""
        h: torch.Tensor = self.proj(embeddings)
        for block in self.blocks:
            h = block(h)
        return h


class BindConnector(Connector):
    """Bind network, one learned row a layer, one gate a head and layer, zero at the start.

    In layer l, with a = network(f) + prefix_l and v = Wv a (the base's Wv, without LoRA), every position's head h gains
    tanh(gate_lh) v_h before Wo. No key is formed and nothing enters the KV cache.

    Args:
        dim, width, hidden, norm: as `BindNetwork`.
        layers, heads: of the Llama.

    Source: golden full_forward.
    """

    name = "imagebind-llm"

    def __init__(self, dim: int, width: int, hidden: int, layers: int, heads: int, norm: Norm = "rmsnorm") -> None:
        super().__init__()
        self.dim, self.width, self.heads = dim, width, heads
        self.network = BindNetwork(dim, width, hidden, norm)
        self.prefix = nn.Embedding(layers, width)
        self.gates = nn.ParameterList([torch.zeros(1, heads, 1, 1) for _ in range(layers)])

    def connect(self, llama: LlamaForCausalLM, lora: LoraTerms | None = None) -> BindConnection:
        """Install silent hooks before every output projection; see `Connector.connect`."""
        config = llama.config
        ours = (self.width, len(self.gates), self.heads)
        theirs = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
        if ours != theirs:
            raise MismatchError(
                f"This connector was made for a Llama of width {ours[0]}, {ours[1]} layers, {ours[2]} heads; "
                f"this one has width {theirs[0]}, {theirs[1]} layers, {theirs[2]} heads. Bring that Llama."
            )
        return BindConnection(self, llama, lora)


class BindConnection(Connection):
    """A bind connector's hooks on one Llama."""

    def __init__(self, connector: BindConnector, llama: LlamaForCausalLM, lora: LoraTerms | None) -> None:
        super().__init__(llama)
        self.connector, self.lora = connector, lora
        for layer, block in enumerate(llama.model.layers):
            hook = partial(self._add, layer)
            self._handles.append(block.self_attn.o_proj.register_forward_pre_hook(hook))

    def prepare(self, embeddings: torch.Tensor) -> list[torch.Tensor]:
        """Compute what every layer adds, once a request: one (B, 1, heads * head_dim) a layer."""
        check_embeddings(embeddings, self.connector.dim, "imagebind-llm")
        proj = self.connector.network.proj.weight
        bound = self.connector.network(embeddings.to(proj.device, proj.dtype))
        return [self._delta(layer, bound) for layer in range(len(self.connector.gates))]

    def _delta(self, layer: int, bound: torch.Tensor) -> torch.Tensor:
        attention = self.llama.model.layers[layer].self_attn
        gain = self.llama.model.layers[layer].input_layernorm.weight  # what the layer computes in, even if quantised
        token = (bound + self.connector.prefix.weight[layer]).to(gain.device, gain.dtype)
        value = base_output(attention.v_proj, token, self.lora, layer, "v_proj")
        heads = value.reshape(len(token), -1, 1, attention.head_dim)  # (B, key heads, 1, head_dim)
        heads = heads.repeat_interleave(attention.num_key_value_groups, dim=1)
        gate = self.connector.gates[layer].float().tanh().to(gain.device, gain.dtype)
        added: torch.Tensor = gate * heads
        return added.transpose(1, 2).flatten(2)

    def _add(self, layer: int, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if (deltas := self.state) is None:
            return None
        return (args[0] + rows_for(deltas[layer], len(args[0]), "imagebind-llm"), *args[1:])
