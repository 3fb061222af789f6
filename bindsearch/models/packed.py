"""Linear layers laid out for the processor: packed once for oneDNN, or in 8 bits; and what the processor can do."""

from __future__ import annotations

from functools import cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from bindsearch.errors import InputError
from bindsearch.models.switches import Switches

_ZERO_POINT = 128
_LARGEST = 127.0


class LinearLike(Protocol):
    """A linear layer as a call; `gelu` puts the exact GELU after it."""

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        """(rows, K) -> (rows, N), both of the layer's own number type."""
        ...


@cache
def bfloat16_instructions() -> str:
    """Name what the processor multiplies bfloat16 with: "amx_bf16", "avx512_bf16", or "" where it would be emulated."""
    if torch.cpu._is_amx_tile_supported():
        return "amx_bf16"
    return "avx512_bf16" if torch.cpu._is_avx512_bf16_supported() else ""


@cache
def sums_bytes_whole() -> bool:
    """Find by trying whether the processor sums products of bytes without loss.

    Without VNNI (or AMX) oneDNN adds two products of 0..255 and -127..127 in 16 bits, which saturate at 32,767.
    """
    columns = 64
    weight = torch.ops.onednn.qlinear_prepack(torch.full((columns, columns), 127, dtype=torch.int8), None)
    zero, one = torch.zeros(columns, dtype=torch.int32), torch.ones(columns)
    x = torch.full((columns, columns), 255, dtype=torch.uint8)
    y = torch.ops.onednn.qlinear_pointwise(x, 1.0, 0, weight, one, zero, None, 1.0, 0, torch.float32, "none", [], "")
    return bool((y == 255 * 127 * columns).all())


def fast_dtype(device: torch.device) -> torch.dtype:
    """Choose what "--dtype fast" computes in: bfloat16 where the device has instructions for it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if bfloat16_instructions() else torch.float32


def can_pack(weight: Tensor) -> bool:
    """Say whether oneDNN takes this weight: on the CPU, in a type that it multiplies."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and (weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


class PlainLinear:
    """The layer as torch computes it, from weights as they are."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Keep both as they are.

        Args:
            weight: (N, K).
            bias: (N,) or None.
        """
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        """(rows, K) -> (rows, N)."""
        y = F.linear(x, self.weight, self.bias)
        return F.gelu(y) if gelu else y


class PackedLinear:
    """The layer with its weight in oneDNN's own layout, made once; else it is made anew in every call."""

    def __init__(self, weight: Tensor, bias: Tensor | None, fused_gelu: bool) -> None:
        """Copy the weight to the layout of the processor's kernels.

        Args:
            weight: (N, K) float32 or bfloat16 on the CPU. Not modified, and not kept.
            bias: (N,) of the same type, or None.
            fused_gelu: the GELU is computed while the product's tiles are in the cache.
        """
        self.bias, self.fused_gelu = bias, fused_gelu
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        """(rows, K) -> (rows, N)."""
        fused = "gelu" if gelu and self.fused_gelu else "none"
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, fused, [], "none")
        return F.gelu(y) if gelu and not self.fused_gelu else y


class Int8Linear:
    """The layer in 8 bits: a scale for each row of the weight, and one for each token, found as it comes."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Round the weight to -127..127 of its rows' largest magnitude, and lay it out.

        Args:
            weight: (N, K) on the CPU. Not modified, and not kept.
            bias: (N,) or None.
        """
        wide = weight.float()
        self.scale = wide.abs().amax(dim=1).clamp_min(1e-30) / _LARGEST
        whole = torch.round(wide / self.scale[:, None]).to(torch.int8)
        self.zero_points = torch.zeros(len(wide), dtype=torch.int32)
        self.weight = torch.ops.onednn.qlinear_prepack(whole, None)
        self.bias = None if bias is None else bias.to(weight.dtype)

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        """(rows, K) -> (rows, N), of x's type."""
        scale = x.abs().amax(dim=1, keepdim=True).float().clamp_min_(1e-30).div_(_LARGEST)
        whole = torch.div(x, scale).add_(_ZERO_POINT).round_().to(torch.uint8)
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            whole, 1.0, _ZERO_POINT, self.weight, self.scale, self.zero_points, None, 1.0, 0, x.dtype, "none", [], ""
        )
        y = y.mul_(scale.to(x.dtype))
        y = y if self.bias is None else y.add_(self.bias)
        return F.gelu(y) if gelu else y


def build_linear(weight: Tensor, bias: Tensor | None, switches: Switches) -> LinearLike:
    """Lay a linear layer out as the switches say, where device and number type allow it.

    Args:
        weight: (N, K). Not modified.
        bias: (N,) or None.
        switches: `int8` and `packed` are looked at, in this order.

    Raises:
        InputError: `int8` on a processor that cuts off sums of bytes.
    """
    if switches.int8 and can_pack(weight):
        if not sums_bytes_whole():
            raise InputError(
                "int8=on: this processor has no VNNI: sums of products of bytes are cut off at 16 bits. Leave it out."
            )
        return Int8Linear(weight, bias)
    if switches.packed and can_pack(weight):
        return PackedLinear(weight, bias, switches.fused_gelu)
    return PlainLinear(weight, bias)
