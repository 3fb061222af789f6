"""LLaMA-Adapter V2's connector: patches become ten visual tokens, which the last layers attend to beside the words.

Here the connector reads a sequence of features, (B, L, d): CLIP's patch tokens. A row of the joint space is a sequence
of one: (B, d) is read as (B, 1, d).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from bindsearch.errors import InputError, MismatchError, ShapeError
from bindsearch.llm.base import Connection, Connector, rows_for
from bindsearch.llm.lora import base_output

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from bindsearch.llm.lora import LoraTerms


@dataclass(frozen=True)
class VisualConfig:
    """Sizes of the visual path: `dim` of the features, `width`, `depth` and `heads` of the blocks, `tokens` kept."""

    dim: int
    width: int
    depth: int
    heads: int
    tokens: int = 10

    def __post_init__(self) -> None:
        """Refuse heads that do not divide the width."""
        if self.heads < 1 or self.width % self.heads:
            raise InputError(
                f"llama-adapter-v2: {self.heads} heads do not divide the visual path's width of {self.width}. Give the "
                "heads that it was trained with: llm.load(..., visual_heads=...), in a run's numbers connector.heads."
            )


class VisualAttention(nn.Module):
    """Plain multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, L, D) to (B, L, D). Not modified."""
        rows, length, width = x.shape
        q, k, v = self.qkv(x).reshape(rows, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        out: torch.Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class VisualMlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, L, D) to (B, L, D). Not modified."""
        out: torch.Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class VisualBlock(nn.Module):
    """Pre-norm transformer block; the LayerNorms' eps is 1e-5, the ratio of the MLP 4."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-5)
        self.attn = VisualAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-5)
        self.mlp = VisualMlp(width, 4 * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, L, D) to (B, L, D). Not modified."""
        x = x + self.attn(self.norm1(x))
        out: torch.Tensor = x + self.mlp(self.norm2(x))
        return out


class AdapterV2Connector(Connector):
    """Visual tokens, learned rows a layer, and gated attention to both in the last layers.

    Args:
        visual: sizes of the visual path.
        width, heads, layers: of the Llama.
        query_layers: how many of its last layers attend (31 of 32 in 7B).
        new_gates: one more scalar a layer, in files with LoRA.

    Source: goldens v2_state, v2_forward.
    """

    name = "llama-adapter-v2"

    def __init__(
        self, visual: VisualConfig, width: int, heads: int, layers: int, query_layers: int, new_gates: bool = False
    ) -> None:
        super().__init__()
        self.visual, self.width, self.heads, self.query_layers = visual, width, heads, query_layers
        self.clip_proj = nn.Linear(visual.dim, visual.width)
        self.clip_proj_norm = nn.LayerNorm(visual.width)
        self.visual_query = nn.Embedding(visual.tokens, visual.width)
        self.visual_blocks = nn.ModuleList([VisualBlock(visual.width, visual.heads) for _ in range(visual.depth)])
        self.visual_proj = nn.Linear(visual.width, width)
        self.visual_proj_norm = nn.LayerNorm(width)
        self.adapter_query = nn.Embedding(query_layers * visual.tokens, width)
        self.gates = nn.ParameterList([torch.zeros(1, heads, 1, 1) for _ in range(layers)])
        self.new_gates = nn.ParameterList([torch.ones(1, 1, 1, 1) for _ in range(layers if new_gates else 0)])

    def visual_tokens(self, features: torch.Tensor) -> torch.Tensor:
        """Distil features (B, L, d) to visual tokens (B, tokens, D). Not modified."""
        x = self.clip_proj_norm(self.clip_proj(features))
        query = self.visual_query.weight.expand(len(x), -1, -1)
        x = torch.cat([query, x], dim=1)
        for block in self.visual_blocks:
            x = block(x)
        out: torch.Tensor = self.visual_proj_norm(self.visual_proj(x[:, : self.visual.tokens]))
        return out

    def connect(self, llama: LlamaForCausalLM, lora: LoraTerms | None = None) -> AdapterV2Connection:
        """Install silent hooks in the last layers; see `Connector.connect`."""
        config = llama.config
        ours = (self.width, len(self.gates), self.heads)
        theirs = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
        if ours != theirs or self.query_layers > config.num_hidden_layers:
            raise MismatchError(
                f"This connector was made for a Llama of width {ours[0]}, {ours[1]} layers, {ours[2]} heads; "
                f"this one has width {theirs[0]}, {theirs[1]} layers, {theirs[2]} heads. Bring that Llama."
            )
        return AdapterV2Connection(self, llama, lora)


@dataclass
class _Request:
    """Keys and values a layer, and what the layer that runs left for its output projection."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    rotation: tuple[torch.Tensor, torch.Tensor] | None = None
    query: torch.Tensor | None = field(default=None, repr=False)


class AdapterV2Connection(Connection):
    """Hooks on one Llama: take the rotation and the queries, add the gated attention before the output projection."""

    def __init__(self, connector: AdapterV2Connector, llama: LlamaForCausalLM, lora: LoraTerms | None) -> None:
        super().__init__(llama)
        self.connector, self.lora = connector, lora
        self.first = len(llama.model.layers) - connector.query_layers
        for layer in range(self.first, len(llama.model.layers)):
            attention = llama.model.layers[layer].self_attn
            self._handles += [
                attention.register_forward_pre_hook(self._take_rotation, with_kwargs=True),
                attention.q_proj.register_forward_hook(self._take_query),
                attention.o_proj.register_forward_pre_hook(partial(self._add, layer)),
            ]

    def prepare(self, embeddings: torch.Tensor) -> _Request:
        """Compute keys and values of every layer, once a request: (B, key heads, tokens, head_dim) each.

        Args:
            embeddings: (B, L, d), or (B, d): one token each. Not modified.
        """
        dim = self.connector.visual.dim
        wide = embeddings[:, None, :] if embeddings.ndim == 2 else embeddings
        if wide.ndim != 3 or wide.shape[2] != dim or not wide.numel():
            shape = tuple(embeddings.shape)
            raise ShapeError(f"llama-adapter-v2: expected features (B, {dim}) or (B, L, {dim}), got {shape}.")
        if not bool(torch.isfinite(wide).all()):
            raise InputError("llama-adapter-v2: the features hold NaN or infinite values. Embed that item again.")
        proj = self.connector.clip_proj.weight
        visual = self.connector.visual_tokens(wide.to(proj.device, proj.dtype))
        rows = self.connector.adapter_query.weight.view(self.connector.query_layers, -1, self.connector.width)
        keys: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        for place, learned in enumerate(rows):
            layer = self.first + place
            block = self.llama.model.layers[layer]
            gain = block.input_layernorm.weight
            tokens = (visual + learned).to(gain.device, gain.dtype)
            for name, into in (("k_proj", keys), ("v_proj", values)):
                out = base_output(getattr(block.self_attn, name), tokens, self.lora, layer, name)
                into.append(out.reshape(*out.shape[:2], -1, block.self_attn.head_dim).transpose(1, 2))
        return _Request(keys, values)

    def _take_rotation(self, _module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.state is not None:
            self.state.rotation = kwargs["position_embeddings"]

    def _take_query(self, _module: nn.Module, _args: tuple[Any, ...], out: torch.Tensor) -> None:
        if self.state is not None:
            self.state.query = out

    def _add(self, layer: int, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        request: _Request | None = self.state
        if request is None or request.query is None or request.rotation is None:
            return None
        attention = self.llama.model.layers[layer].self_attn
        query = request.query.reshape(*request.query.shape[:2], -1, attention.head_dim).transpose(1, 2)
        cos, sin = (table.unsqueeze(1) for table in request.rotation)
        low, high = query.chunk(2, dim=-1)
        query = query * cos + torch.cat([-high, low], dim=-1) * sin
        place = layer - self.first
        groups = attention.num_key_value_groups
        key, value = (
            rows_for(table[place], len(query), self.connector.name).repeat_interleave(groups, dim=1)
            for table in (request.keys, request.values)
        )
        scores = (query @ key.transpose(2, 3)) * attention.scaling
        gate = self.connector.gates[layer].float().tanh()
        if len(self.connector.new_gates):
            gate = gate * self.connector.new_gates[layer].float()
        share = scores.float().softmax(-1) * gate.to(scores.device)
        request.query = None
        return (args[0] + (share.to(value.dtype) @ value).transpose(1, 2).flatten(2), *args[1:])
