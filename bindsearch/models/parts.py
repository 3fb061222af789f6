"""Parts at the two ends of a tower: stems with their positions (media -> tokens), heads (token -> d), logit scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bindsearch.errors import InputError, ShapeError
from bindsearch.models.architecture import HeadConfig, ScaleConfig, StemConfig

STEM_EPS = 1e-5
EPS = 1e-6


class Linear(nn.Linear):
    """A linear layer that leaves its parameters empty: they are loaded, or drawn by `bind.initialise`."""

    def reset_parameters(self) -> None:
        """Draw nothing."""


class Conv2d(nn.Conv2d):
    """A 2-D convolution that leaves its parameters empty."""

    def reset_parameters(self) -> None:
        """Draw nothing."""


class Conv3d(nn.Conv3d):
    """A 3-D convolution that leaves its parameters empty."""

    def reset_parameters(self) -> None:
        """Draw nothing."""


class Positions(nn.Module):
    """Class tokens and the learned table that is added to every token.

    Args:
        grid: patches along each axis, time first where there is a time axis.
        width: D.
        num_cls_tokens: rows before the patches; 0 for text.
        resizable: interpolate the table's spatial rows for other square grids.
        device: where the parameters live; "meta" when they are loaded later.
    """

    def __init__(
        self, grid: tuple[int, ...], width: int, num_cls_tokens: int, resizable: bool, device: torch.device | str
    ) -> None:
        super().__init__()
        self.grid, self.first, self.resizable = grid, num_cls_tokens, resizable
        rows = math.prod(grid) + num_cls_tokens
        self.pos_embed = nn.Parameter(torch.empty(1, rows, width, device=device))
        if num_cls_tokens:
            self.cls_token = nn.Parameter(torch.empty(1, num_cls_tokens, width, device=device))

    def forward(self, patches: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Put the class tokens in front and add the table.

        Args:
            patches: (B, L, D) float; not modified.
            grid: the patches' own grid, the product of which is L.

        Returns:
            (B, num_cls_tokens + L, D).

        Source: the reference's behaviour: only spatial rows are interpolated, bicubic (a = -0.75, half-pixel centres),
            given as a scale factor sqrt(L / rows); a still picture takes the rows of time 0.
        """
        if not self.first:
            return patches + self.pos_embed[:, : patches.shape[1]]
        tokens = torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1)
        return tokens + self.table(grid)

    def table(self, grid: tuple[int, ...]) -> Tensor:
        """Give the rows for a grid: (1, num_cls_tokens + L, D)."""
        if grid == self.grid:
            return self.pos_embed
        side, target = self.grid[-1], grid[-1]
        rows = self.pos_embed[:, self.first : self.first + side * side]
        if side != target:
            square = rows.reshape(1, side, side, -1).permute(0, 3, 1, 2)
            wide = square if square.dtype in (torch.float32, torch.float64) else square.float()
            scale = math.sqrt(target * target / (side * side))
            resized = torch.ops.aten.upsample_bicubic2d.default(wide, [target, target], False, scale, scale)
            rows = resized.to(rows.dtype).permute(0, 2, 3, 1).reshape(1, target * target, -1)
        return torch.cat((self.pos_embed[:, : self.first], rows), dim=1)


class Stem(nn.Module):
    """What all stems share: their numbers, and the check of what comes in."""

    def __init__(self, config: StemConfig) -> None:
        super().__init__()
        self.config = config

    def check(self, x: Tensor) -> None:
        """Refuse anything but a float array of (N, *shape); frames may be one, a still picture.

        Raises:
            ShapeError: naming the expected shape or dtype.
        """
        shape = self.config.shape
        still = (shape[0], 1, *shape[2:]) if len(shape) == 4 else shape
        if tuple(x.shape[1:]) not in (shape, still):
            raise ShapeError(f"expected shape {self.expected()}, got {tuple(x.shape)}.")
        if not x.dtype.is_floating_point:
            raise ShapeError(f"expected a floating-point array of shape {self.expected()}, got dtype {x.dtype}.")

    def expected(self) -> str:
        """Write the shape that this stem takes."""
        shape = self.config.shape
        still = f" float, a still picture as (N, {shape[0]}, 1, {shape[2]}, {shape[3]})" if len(shape) == 4 else ""
        return f"(N, {', '.join(map(str, shape))}){still}"


class PatchStem(Stem):
    """One convolution that cuts (N, C, [T,] H, W) into patches; vision, audio, depth and thermal of ImageBind."""

    def __init__(self, config: StemConfig, width: int, num_cls_tokens: int, device: torch.device | str) -> None:
        super().__init__(config)
        make = Conv3d if len(config.kernel) == 3 else Conv2d
        self.proj = make(config.shape[0], width, config.kernel, config.stride, bias=False, device=device)  # type: ignore[arg-type]
        self.norm = LayerNorm(width, STEM_EPS, device) if config.norm == "layer" else None
        self.positions = Positions(config.grid, width, num_cls_tokens, config.resizable, device)

    def check(self, x: Tensor) -> None:
        """Refuse what the reference misreads: other frame counts, other sizes, pictures that are not square."""
        if not self.config.resizable or x.ndim != 5:
            super().check(x)
            return
        channels, frames = self.config.shape[:2]
        side = self.config.kernel[-1]
        square = x.shape[3] == x.shape[4] and x.shape[4] >= side
        if x.shape[1] != channels or x.shape[2] not in (1, frames) or not square or not x.dtype.is_floating_point:
            raise ShapeError(f"expected shape {self.expected()}, got {tuple(x.shape)} of {x.dtype}.")

    def expected(self) -> str:
        """Write the shape that this stem takes."""
        return super().expected() + ("; other sizes only square" if self.config.resizable else "")

    def forward(self, x: Tensor) -> Tensor:
        """Cut into patches, project, normalise where the tower does, add positions.

        Args:
            x: (N, *shape) float; one frame alone is repeated to fill the kernel. Not modified.

        Returns:
            (N, num_cls_tokens + patches, D), patches in order time, rows, columns.
        """
        if x.ndim == 5 and x.shape[2] == 1:
            x = x.expand(-1, -1, self.config.kernel[0], -1, -1)
        y = self.proj(x)
        grid = tuple(y.shape[2:])
        patches = y.flatten(2).transpose(1, 2)
        if self.norm is not None:
            patches = self.norm(patches)
        return self.positions(patches, grid)  # type: ignore[no-any-return]


class ConvStem(Stem):
    """A stack of strided convolutions, norm and GELU, then a 1x1 projection; small towers learn faster with it.

    An input with a time axis (N, C, T, H, W) is merged over all its T frames by the first convolution.
    """

    def __init__(self, config: StemConfig, width: int, num_cls_tokens: int, device: torch.device | str) -> None:
        super().__init__(config)
        side = config.kernel[0]
        inputs = config.shape[0]
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for stage, (outputs, step) in enumerate(zip(config.widths, config.stride, strict=True)):
            bias = config.norm == "none"
            if stage == 0 and len(config.shape) == 4:
                kernel, pad = (config.shape[1], side, side), (0, side // 2, side // 2)
                self.convs.append(Conv3d(inputs, outputs, kernel, (1, step, step), pad, bias=bias, device=device))
            else:
                self.convs.append(Conv2d(inputs, outputs, side, step, side // 2, bias=bias, device=device))
            self.norms.append(conv_norm(config.norm, outputs, device))
            inputs = outputs
        self.proj = Conv2d(inputs, width, 1, bias=False, device=device)
        self.positions = Positions(config.grid, width, num_cls_tokens, False, device)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, project, add positions: (N, *shape) float -> (N, num_cls_tokens + rows * columns, D)."""
        if x.ndim == 5 and x.shape[2] == 1:
            x = x.expand(-1, -1, self.config.shape[1], -1, -1)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = conv(x)
            x = F.gelu(norm(y[:, :, 0] if y.ndim == 5 else y))  # the first one merges the frames
        y = self.proj(x)
        return self.positions(y.flatten(2).transpose(1, 2), self.config.grid)  # type: ignore[no-any-return]


class ImuStem(Stem):
    """Windows of samples, channel-major, through one linear layer: (N, 6, T) -> (N, 1 + T / kernel, D)."""

    def __init__(self, config: StemConfig, width: int, num_cls_tokens: int, device: torch.device | str) -> None:
        super().__init__(config)
        self.proj = Linear(config.shape[0] * config.kernel[0], width, bias=False, device=device)
        self.norm = LayerNorm(width, STEM_EPS, device) if config.norm == "layer" else None
        self.positions = Positions(config.grid, width, num_cls_tokens, False, device)

    def forward(self, x: Tensor) -> Tensor:
        """Cut into windows, project, normalise, add positions."""
        count, channels, samples = x.shape
        size = self.config.kernel[0]
        windows = x.reshape(count, channels, samples // size, size).permute(0, 2, 1, 3)  # (N, L, channels, kernel)
        patches = self.proj(windows.flatten(2))
        if self.norm is not None:
            patches = self.norm(patches)
        return self.positions(patches, self.config.grid)  # type: ignore[no-any-return]


class TextStem(Stem):
    """A table of token embeddings plus positions: (N, L) ids -> (N, L, D)."""

    def __init__(self, config: StemConfig, width: int, device: torch.device | str) -> None:
        super().__init__(config)
        self.token_embedding = nn.Parameter(torch.empty(int(config.vocabulary or 0), width, device=device))
        self.positions = Positions(config.grid, width, 0, False, device)

    def check(self, x: Tensor) -> None:
        """Refuse anything but integer ids of (N, context) inside the vocabulary."""
        if x.ndim != 2 or x.shape[1] != self.config.shape[0] or x.dtype not in (torch.int64, torch.int32):
            raise ShapeError(f"expected int64 ids of shape {self.expected()}, got {tuple(x.shape)} of {x.dtype}.")
        if x.numel() and (int(x.min()) < 0 or int(x.max()) >= self.token_embedding.shape[0]):
            raise InputError(
                f"token ids must lie in 0..{self.token_embedding.shape[0] - 1}, got {int(x.min())}..{int(x.max())}: "
                "the tokenizer is another one than this space's."
            )

    def forward(self, x: Tensor) -> Tensor:
        """Look the ids up and add positions."""
        tokens = F.embedding(x, self.token_embedding)
        return self.positions(tokens, (x.shape[1],))  # type: ignore[no-any-return]


class LayerNorm(nn.Module):
    """Normalise the last axis; parameters are left empty.

    Args:
        width: size of the last axis.
        eps: added to the variance: 1e-6 in trunks and heads, 1e-5 in stems.
        device: where the parameters live.
    """

    def __init__(self, width: int, eps: float, device: torch.device | str) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width, device=device))
        self.bias = nn.Parameter(torch.empty(width, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class GroupNorm(nn.GroupNorm):
    """A group norm that leaves its parameters empty."""

    def reset_parameters(self) -> None:
        """Draw nothing."""


def conv_norm(kind: str, channels: int, device: torch.device | str) -> nn.Module:
    """Build the norm between two convolutions: "group" (8 groups at most), "batch" or "none"."""
    if kind == "group":
        return GroupNorm(math.gcd(channels, 8), channels, device=device)
    if kind == "batch":
        return nn.BatchNorm2d(channels, device=device)
    if kind == "none":
        return nn.Identity()
    raise InputError(f"a conv stem takes norm 'group', 'batch' or 'none', not {kind!r}.")


def build_stem(config: StemConfig, width: int, num_cls_tokens: int, device: torch.device | str) -> Stem:
    """Build the stem of a kind; parameters are left empty on `device`."""
    if config.kind == "text":
        return TextStem(config, width, device)
    if config.kind in ("features", "timm"):
        from bindsearch.models.foreign_stems import FeaturesStem, TimmStem

        return FeaturesStem(config, width, device) if config.kind == "features" else TimmStem(config, width)
    kind = {"patch": PatchStem, "conv": ConvStem, "imu": ImuStem}[config.kind]
    return kind(config, width, num_cls_tokens, device)


class Head(nn.Module):
    """Pooled token -> joint space: norm, dropout while training, linear(s) without a last bias.

    The reference norms all tokens and then picks one in most towers; picking first gives the same numbers.
    """

    def __init__(self, config: HeadConfig, width: int, dim: int, device: torch.device | str) -> None:
        super().__init__()
        self.config = config
        self.norm = LayerNorm(width, EPS, device)
        self.hidden = Linear(width, config.hidden, device=device) if config.hidden else None
        self.proj = Linear(config.hidden or width, dim, bias=False, device=device)

    def pooled_index(self, ids: Tensor) -> Tensor:
        """Give the pooled position of each text.

        Args:
            ids: (N, L) int64. Not modified.

        Returns:
            (N,) int64: first `end_id`, or the first maximum where `end_id` is None.

        Source: the reference pools the arg-max of the ids; the end token has CLIP's greatest id.
        """
        if self.config.end_id is None:
            return ids.argmax(dim=1)
        return (ids == self.config.end_id).to(torch.uint8).argmax(dim=1)

    def forward(self, tokens: Tensor, pooled: Tensor | None) -> Tensor:
        """Pick, norm, project.

        Args:
            tokens: (N, L, D) from the trunk. Not modified.
            pooled: (N,) int64 positions; None for token 0, or for all where the head pools their mean.

        Returns:
            (N, d), not normalised.
        """
        if pooled is None:
            token = tokens.mean(dim=1) if self.config.pool == "mean" else tokens[:, 0]
        else:
            token = tokens[torch.arange(tokens.shape[0], device=tokens.device), pooled]
        token = F.dropout(self.norm(token), self.config.dropout, self.training)
        if self.hidden is not None:
            token = F.gelu(self.hidden(token))
        return self.proj(token)  # type: ignore[no-any-return]


class LogitScale(nn.Module):
    """The multiplier of a tower's unit embeddings before a softmax, as a logarithm; never part of an embedding."""

    def __init__(self, config: ScaleConfig, device: torch.device | str) -> None:
        super().__init__()
        self.config = config
        empty = torch.empty((), device=device)
        if config.initial is None:
            self.log_logit_scale: Tensor | None = None
        elif config.trained:
            self.log_logit_scale = nn.Parameter(empty)
        else:
            self.register_buffer("log_logit_scale", empty)

    def forward(self) -> Tensor:
        """Give min(exp(log scale), limit) as a scalar tensor; 1 for a tower without a scale."""
        if self.log_logit_scale is None:
            return torch.ones(())
        return self.log_logit_scale.exp().clamp(max=self.config.limit)
