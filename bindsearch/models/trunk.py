"""The trunk of a tower: tokens -> tokens, pre-norm blocks, batch first, fused attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bindsearch.models.architecture import TrunkConfig
from bindsearch.models.parts import EPS, LayerNorm, Linear


class Attention(nn.Module):
    """Multi-head self-attention with an optional learned key and value beside those of the tokens."""

    def __init__(self, config: TrunkConfig, device: torch.device | str) -> None:
        super().__init__()
        width = config.width
        self.heads, self.causal = config.heads, config.causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width, device=device))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width, device=device))
        self.out_proj = Linear(width, width, device=device)
        if config.kv_bias:
            self.bias_k: Tensor | None = nn.Parameter(torch.empty(1, 1, width, device=device))
            self.bias_v: Tensor | None = nn.Parameter(torch.empty(1, 1, width, device=device))
        else:
            self.bias_k = self.bias_v = None

    def forward(self, x: Tensor) -> Tensor:
        """Attend.

        Args:
            x: (N, L, D). Not modified.

        Returns:
            (N, L, D).

        Source: the reference appends `bias_k` and `bias_v` after the packed projection, as one more key and value
            that no mask hides; the scale is 1 / sqrt(D / heads).
        """
        count, length, width = x.shape
        packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = packed.view(count, length, 3, self.heads, -1).permute(
            2, 0, 3, 1, 4
        )  # (N, heads, L, D / heads)
        mask = None
        if self.bias_k is not None and self.bias_v is not None:
            key = torch.cat((key, self._split(self.bias_k, count)), dim=2)
            value = torch.cat((value, self._split(self.bias_v, count)), dim=2)
            if self.causal:
                mask = torch.ones(length, length + 1, dtype=torch.bool, device=x.device).tril()
                mask[:, -1] = True
        if self.training and x.device.type == "cpu":
            y = _attend(query, key, value, mask if mask is not None or not self.causal else _causal(length, x.device))
        else:
            y = F.scaled_dot_product_attention(query, key, value, mask, is_causal=self.causal and mask is None)
        return self.out_proj(y.transpose(1, 2).reshape(count, length, width))  # type: ignore[no-any-return]

    def _split(self, bias: Tensor, count: int) -> Tensor:
        return bias.view(1, self.heads, 1, -1).expand(count, -1, -1, -1)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attend by plain products: (N, heads, L, size) each -> the same; `mask` says what is seen.

    The fused kernel's way back takes eight times as long on a processor for the few tokens of a small tower (ADR 0067).
    """
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.softmax(scores, dim=-1).to(value.dtype) @ value


def _causal(length: int, device: torch.device) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


class Mlp(nn.Module):
    """Linear, exact (erf) GELU, linear."""

    def __init__(self, config: TrunkConfig, device: torch.device | str) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.fc1 = Linear(config.width, hidden, device=device)
        self.fc2 = Linear(hidden, config.width, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, D) -> (N, L, D)."""
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: TrunkConfig, drop_path: float, device: torch.device | str) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm_1 = LayerNorm(config.width, EPS, device)
        self.attn = Attention(config, device)
        self.norm_2 = LayerNorm(config.width, EPS, device)
        self.mlp = Mlp(config, device)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, D) -> (N, L, D)."""
        x = x + self._dropped(self.attn(self.norm_1(x)))
        return x + self._dropped(self.mlp(self.norm_2(x)))

    def _dropped(self, branch: Tensor) -> Tensor:
        """Zero the branch of a random part of the batch while training, and scale the rest up."""
        if not self.training or self.drop_path == 0.0:
            return branch
        keep = 1.0 - self.drop_path
        return branch * branch.new_empty(branch.shape[0], 1, 1).bernoulli_(keep).div_(keep)


class Trunk(nn.Module):
    """All blocks of a tower; no norm at the end, the head has it."""

    def __init__(self, config: TrunkConfig, device: torch.device | str) -> None:
        super().__init__()
        self.config = config
        self.pre_norm = LayerNorm(config.width, EPS, device) if config.pre_norm else None
        last = max(config.blocks - 1, 1)
        self.blocks = nn.ModuleList(
            Block(config, config.drop_path * number / last, device) for number in range(config.blocks)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, L, D) -> (N, L, D)."""
        if self.pre_norm is not None:
            tokens = self.pre_norm(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens
