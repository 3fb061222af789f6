"""A tower made fast: the same numbers as `bind.Tower` to rounding, from layers laid out as the switches say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bindsearch.models.attention import ExtraToken, Layout, attend
from bindsearch.models.bind import Tower
from bindsearch.models.packed import bfloat16_instructions, build_linear
from bindsearch.models.parts import LayerNorm, TextStem

if TYPE_CHECKING:
    from bindsearch.models.switches import Switches
    from bindsearch.models.trunk import Block

CAP_MB = {"cpu": 128, "cuda": 4096}
_STEP = 8
"""Clips of a pass, and lengths of compiled texts, are multiples of it."""


class QuickBlock:
    """One block, over rows of all sequences of a batch."""

    def __init__(self, block: Block, switches: Switches, kind: str, dtype: torch.dtype, wide: bool, last: bool) -> None:
        """Lay the block's layers out.

        Args:
            block: in eval mode. Not modified.
            switches: see there.
            kind: of attention, "sdpa" or "products".
            dtype: that layers compute in; weights are converted as they are laid out.
            wide: norms and the residual stream are float32, whatever the layers are.
            last: only one row of each sequence will be asked for.
        """
        attention, width = block.attn, block.norm_1.weight.shape[0]
        self.heads, self.causal, self.kind = attention.heads, attention.causal, kind
        self.dtype = dtype
        self.norm_1, self.norm_2 = _norm(block.norm_1, wide), _norm(block.norm_2, wide)
        weight, bias = attention.in_proj_weight.to(dtype), attention.in_proj_bias.to(dtype)
        if last:
            self.to_query = build_linear(weight[:width], bias[:width], switches)
            self.to_keys = build_linear(weight[width:], bias[width:], switches)
        else:
            self.to_all = build_linear(weight, bias, switches)
        layers = (attention.out_proj, block.mlp.fc1, block.mlp.fc2)
        self.out, self.fc1, self.fc2 = (
            build_linear(layer.weight.to(dtype), layer.bias.to(dtype), switches) for layer in layers
        )
        self.extra = None
        if attention.bias_k is not None and attention.bias_v is not None:
            shape = (1, self.heads, 1, width // self.heads)
            self.extra = ExtraToken(attention.bias_k.view(shape).to(dtype), attention.bias_v.view(shape).to(dtype))

    def __call__(self, x: Tensor, layout: Layout) -> Tensor:
        """(rows, D) -> (rows, D); overwrites x."""
        packed = layout.spread(self.to_all(self.norm_1(x).to(self.dtype)))
        query, key, value = packed.chunk(3, dim=2)
        y = attend(query, key, value, self.heads, self.causal, self.extra, self.kind)
        return self._finish(x, layout.gather(y))

    def pooled(self, x: Tensor, layout: Layout, rows: Tensor) -> Tensor:
        """Compute one row of each sequence, the last one that it may see: (rows, D), (N,) int64 -> (N, D).

        With a causal mask this is right where each sequence's last row is asked for, or where later rows are none of
        its own (`layout.places`).
        """
        normed = self.norm_1(x).to(self.dtype)
        keys, values = layout.spread(self.to_keys(normed)).chunk(2, dim=2)
        query = self.to_query(normed[rows])
        if self.causal:
            y = self._causal_rows(query, keys, values, layout, rows)
        else:
            y = attend(query[:, None], keys, values, self.heads, False, self.extra, self.kind)
        return self._finish(x[rows], y.reshape(len(rows), -1))

    def _causal_rows(self, query: Tensor, keys: Tensor, values: Tensor, layout: Layout, rows: Tensor) -> Tensor:
        """Attend from one row of each sequence to those up to it."""
        flat = rows if layout.places is None else layout.places[rows]
        last = flat % layout.length  # (N,) place inside its own sequence
        seen = torch.arange(layout.length, device=rows.device)[None, :] <= last[:, None]  # (N, L)
        if self.extra is not None:
            seen = torch.cat((seen, torch.ones_like(seen[:, :1])), dim=1)
        split = [each.view(layout.count, -1, self.heads, query.shape[1] // self.heads).transpose(1, 2)
                 for each in (query[:, None], keys, values)]  # fmt: skip
        if self.extra is not None:
            split[1] = torch.cat((split[1], self.extra.key.expand(layout.count, -1, -1, -1)), dim=2)
            split[2] = torch.cat((split[2], self.extra.value.expand(layout.count, -1, -1, -1)), dim=2)
        return F.scaled_dot_product_attention(split[0], split[1], split[2], seen[:, None, None, :])

    def _finish(self, x: Tensor, y: Tensor) -> Tensor:
        """Add what attention gave, then the MLP; overwrites x."""
        x += self.out(y)
        x += self.fc2(self.fc1(self.norm_2(x).to(self.dtype), gelu=True))
        return x


def _norm(norm: LayerNorm, wide: bool) -> Callable[[Tensor], Tensor]:
    weight, bias = (norm.weight.float(), norm.bias.float()) if wide else (norm.weight, norm.bias)
    return lambda x: F.layer_norm(x, weight.shape, weight, bias, norm.eps)


class QuickTower(nn.Module):
    """A tower laid out for speed; encodes only.

    Attributes:
        input_dtype: number type that media are given in; texts are int64.
    """

    def __init__(self, tower: Tower, switches: Switches, dtype: torch.dtype | None = None) -> None:
        """Take a tower apart and lay its layers out.

        Args:
            tower: in eval mode, without gradients. Its trunk is emptied block by block, so that its weights and the
                copies are not both in memory.
            switches: see there.
            dtype: that layers compute in; None is what the tower has. With a wide residual stream the rest keeps what
                it has, at full precision where the tower was loaded so.
        """
        super().__init__()
        self.name, self.config, self.dim = tower.name, tower.config, tower.dim
        self.switches = switches
        self.stem, self.head, self.scale, self._check = tower.stem, tower.head, tower.scale, tower.check
        weight = tower.head.proj.weight
        self.device, dtype = weight.device, dtype or weight.dtype
        self.item_bytes = dtype.itemsize
        self.wide = switches.wide_residual and dtype == torch.bfloat16
        self.input_dtype = torch.float32 if self.wide else dtype
        self.kind = self._attention(dtype)
        self._last = switches.last_block and self.config.head.pool != "mean"
        if self.wide:
            self.head.float()
            if not isinstance(self.stem, TextStem):  # a text's table is large, and its rows are widened as they come
                self.stem.float()
        pre_norm = tower.trunk.pre_norm
        self._pre_norm = None if pre_norm is None else _norm(pre_norm, self.wide)
        self._blocks: list[QuickBlock] = []
        while len(tower.trunk.blocks):
            last = self._last and len(tower.trunk.blocks) == 1
            block = cast("Block", tower.trunk.blocks.pop(0))
            self._blocks.append(QuickBlock(block, switches, self.kind, dtype, self.wide, last))
        self._run = self._compiled() if switches.compiled != "off" else self._trunk

    def _attention(self, dtype: torch.dtype) -> str:
        """Choose the attention; the fused kernel is the slower one in bfloat16 without matrix units."""
        if self.switches.attention != "auto":
            return self.switches.attention
        plain = self.device.type == "cpu" and dtype == torch.bfloat16 and bfloat16_instructions() != "amx_bf16"
        return "products" if plain else "sdpa"

    def _compiled(self) -> Callable[..., Tensor]:
        kind = self.switches.compiled
        if kind == "graphs":
            return torch.compile(self._trunk, mode="reduce-overhead", dynamic=False)
        return torch.compile(self._trunk, backend=kind, dynamic=False)

    def check(self, x: Tensor) -> None:
        """Refuse an input that the stem would misread; see `Tower.check`."""
        self._check(x)

    def logit_scale(self) -> float:
        """Give the multiplier that a softmax over this tower's cosines uses, clamped."""
        return float(self.scale().detach())

    def forward(self, x: Tensor) -> Tensor:
        """Encode one clip an entry; as `Tower.forward`.

        Args:
            x: (N, *stem shape) of `input_dtype`, text (N, context) int64. Not modified.

        Returns:
            (N, d) neither normalised nor scaled: float32 with a wide residual stream, else of the tower's type.

        Raises:
            ShapeError: naming the tower, the expected and the given shape.
        """
        self.check(x)
        if not x.shape[0]:
            return x.new_zeros((0, self.dim), dtype=self.input_dtype)
        if self.config.head.pool == "end":
            tokens, layout, rows = self._texts(x)
        else:
            tokens = self.stem(x)
            layout = Layout(tokens.shape[0], tokens.shape[1])
            rows = torch.arange(layout.count, device=tokens.device) * layout.length
            tokens = tokens.reshape(layout.count * layout.length, -1)
        if self.wide:
            tokens = tokens.float()
        y = self._run(tokens, layout, rows)
        if self.config.head.pool == "mean":
            return self.head(y.view(layout.count, layout.length, -1), None)  # type: ignore[no-any-return]
        return self.head(y[:, None], torch.zeros_like(rows))  # type: ignore[no-any-return]

    def _texts(self, ids: Tensor) -> tuple[Tensor, Layout, Tensor]:
        """Embed ids: (rows, D), how rows are cut in texts, and the pooled row of each text."""
        pooled = self.head.pooled_index(ids)
        causal, count = self.config.trunk.causal, ids.shape[0]
        length = int(pooled.max()) + 1 if self.switches.trimmed and causal else ids.shape[1]
        if self.switches.compiled != "off":  # few shapes: each one is compiled, or captured, anew
            length = min(-(-length // _STEP) * _STEP, ids.shape[1])
        tokens = self.stem(ids[:, :length])
        starts = torch.arange(count, device=ids.device) * length
        flat = tokens.reshape(count * length, -1)
        if not (self.switches.ragged and self.switches.trimmed and causal and self.device.type == "cpu"):
            return flat, Layout(count, length), starts + pooled
        places = (torch.arange(length)[None, :] <= pooled[:, None]).reshape(-1).nonzero()[:, 0]
        return flat[places], Layout(count, length, places), (pooled + 1).cumsum(0) - 1

    def _trunk(self, x: Tensor, layout: Layout, rows: Tensor) -> Tensor:
        """(rows, D) -> the pooled (N, D), or all rows where their mean is pooled."""
        x = x.clone() if self._pre_norm is None else self._pre_norm(x)
        for block in self._blocks[:-1]:
            x = block(x, layout)
        if self._last and self._blocks:
            return self._blocks[-1].pooled(x, layout, rows)
        for block in self._blocks[-1:]:  # a projector has none
            x = block(x, layout)
        return x if self.config.head.pool == "mean" else x[rows]

    def batches(self, clips: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
        """Say which clips go together: as many as the memory cap allows, texts of like length.

        Args:
            clips: (N, ...) as `forward` takes them. Not modified.

        Yields:
            int64 numbers of the clips of one forward pass. It depends on the clips and the switches alone: the same
            clips give the same passes, and so the same bits.
        """
        rows = np.full(len(clips), self._rows_of_clip(), dtype=np.int64)
        order = np.arange(len(clips))
        if self.config.head.pool == "end" and self.switches.trimmed and self.config.trunk.causal and len(clips):
            rows = self.head.pooled_index(torch.from_numpy(clips)).numpy() + 1
            order = np.argsort(rows, kind="stable")
        start = 0
        while start < len(order):
            end = start + self._how_many(rows[order[start:]])
            yield order[start:end]
            start = end

    def _how_many(self, rows: np.ndarray[Any, Any]) -> int:
        """Give how many of the clips fit, at least one; a multiple of 8 where they are more."""
        cap = (self.switches.cap_mb or CAP_MB.get(self.device.type, CAP_MB["cpu"])) << 20
        longest = np.maximum.accumulate(rows)
        number = int(np.searchsorted(np.arange(1, len(rows) + 1) * longest * self._row_bytes(longest), cap, "right"))
        return max(1, number if number < _STEP or number == len(rows) else number - number % _STEP)

    def _row_bytes(self, length: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Estimate the bytes that one row of a sequence takes while its block is computed."""
        trunk = self.config.trunk
        layers = (4 + trunk.mlp_ratio) * trunk.width * self.item_bytes + 3 * 4 * trunk.width
        scores = 2 * trunk.heads * (length + 1) * self.item_bytes if self.kind == "products" else 0
        return cast("np.ndarray[Any, Any]", layers + scores)

    def _rows_of_clip(self) -> int:
        stem = self.config.stem
        return stem.shape[0] if stem.kind == "text" else int(np.prod(stem.grid)) + 1


def quicken(module: nn.Module, switches: Switches, dtype: torch.dtype) -> nn.Module:
    """Lay a loaded tower out for speed; a module of another library is left as it is.

    Args:
        module: from a space's loader; taken apart where it is a `Tower`.
        switches: see there.
        dtype: that it is to compute in.
    """
    return QuickTower(module, switches, dtype) if isinstance(module, Tower) else module.to(dtype)
