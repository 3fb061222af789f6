"""Attention of the quick towers: rows of several sequences in, rows out; fused kernel or plain products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

SCORES_BYTES = 8 << 20
"""Scores of so many sequences are made at once that they stay near the cache."""


@dataclass(frozen=True)
class Layout:
    """How the rows of a batch are cut in sequences.

    Attributes:
        count: N sequences.
        length: L, of the longest.
        places: (rows,) int64, place of each row in (N * L), where sequences differ in length; None where rows are
            N * L in order.
    """

    count: int
    length: int
    places: Tensor | None = None

    def spread(self, rows: Tensor) -> Tensor:
        """(rows, D) -> (N, L, D), zeros where a sequence has ended."""
        if self.places is None:
            return rows.view(self.count, self.length, -1)
        out = rows.new_zeros(self.count * self.length, rows.shape[1])
        out[self.places] = rows
        return out.view(self.count, self.length, -1)

    def gather(self, padded: Tensor) -> Tensor:
        """(N, L, D) -> (rows, D)."""
        flat = padded.reshape(self.count * self.length, -1)
        return flat if self.places is None else flat[self.places]


@dataclass(frozen=True)
class ExtraToken:
    """The learned key and value that stand beside those of the tokens: each (1, heads, 1, size)."""

    key: Tensor
    value: Tensor


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, causal: bool, extra: ExtraToken | None, kind: str
) -> Tensor:
    """Attend.

    Args:
        query: (N, Q, D), Q is L, or 1 for one row that sees all keys.
        key: (N, L, D). Not modified.
        value: as key.
        heads: the D numbers are cut in so many.
        causal: a token sees itself and those before it, and the extra token; only with Q = L.
        extra: put behind the keys.
        kind: "sdpa" or "products".

    Returns:
        (N, Q, D).
    """
    count, length, width = key.shape
    split = [each.view(count, each.shape[1], heads, -1).transpose(1, 2) for each in (query, key, value)]
    if extra is not None:
        split[1] = torch.cat((split[1], extra.key.expand(count, -1, -1, -1)), dim=2)
        split[2] = torch.cat((split[2], extra.value.expand(count, -1, -1, -1)), dim=2)
    seen = _seen(length, extra is not None, key.device) if causal else None
    if kind == "sdpa":
        y = F.scaled_dot_product_attention(split[0], split[1], split[2], seen)
        return y.transpose(1, 2).reshape(count, -1, width)
    return _products(split[0], split[1], split[2], seen)


def _seen(length: int, extra: bool, device: torch.device) -> Tensor:
    """Give (L, L or L + 1) bool: which keys a token sees."""
    seen = torch.ones(length, length + extra, dtype=torch.bool, device=device).tril()
    if extra:
        seen[:, -1] = True
    return seen


def _products(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None) -> Tensor:
    """Attend by two batched products, some sequences at a time: (N, heads, Q, size) -> (N, Q, heads * size)."""
    count, heads, length, size = query.shape
    out = query.new_empty(count, length, heads, size)
    bias = None
    if seen is not None:
        bias = torch.zeros(seen.shape, dtype=query.dtype, device=query.device).masked_fill_(~seen, float("-inf"))
    nothing = query.new_zeros(1, 1, 1) if bias is None else bias[None]
    step = max(1, SCORES_BYTES // (heads * length * key.shape[2] * query.element_size()))
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        q, k, v = (each[part].reshape(-1, each.shape[2], size) for each in (query, key, value))
        scores = torch.baddbmm(nothing, q, k.transpose(1, 2), beta=0 if bias is None else 1, alpha=size**-0.5)
        y = torch.bmm(torch.softmax(scores, dim=-1), v)
        out[part] = y.view(-1, heads, length, size).transpose(1, 2)
    return out.view(count, length, heads * size)
