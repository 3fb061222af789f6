"""The numbers of a space's towers: frozen dataclasses that are read from and written to JSON. Loads no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from bindsearch.config import from_json_dict
from bindsearch.errors import InputError, UnknownNameError

TOWERS = ("vision", "text", "audio", "depth", "thermal", "imu")
STEM_KINDS = ("patch", "conv", "imu", "text", "features", "timm")
STEM_NORMS = ("none", "layer", "group", "batch")


@dataclass(frozen=True)
class StemConfig:
    """How media become tokens.

    Attributes:
        kind: "patch" (one convolution, kernel by kernel), "conv" (a stack of strided convolutions), "imu", "text",
            "features" (a vector of another encoder, one token), "timm" (a timm backbone, one token).
        shape: one input without its batch axis: (3, T, H, W) vision, (1, M, T) audio, (1, H, W) depth and thermal,
            (6, T) imu, (context length,) text, (numbers,) features.
        kernel: patch: one size an axis after the channels; imu: samples a token; conv: side of every kernel.
        stride: patch: one step an axis; conv: one step a stage; imu and text: empty.
        norm: "layer" after a patch or imu projection (eps 1e-5), "group" or "batch" inside a conv stem, or "none".
        widths: conv only: channels after each stage.
        vocabulary: text only: rows of the token table.
        resizable: positions are interpolated for other square sizes; else only `shape` is taken.
        backbone: timm only: the model's name; the trunk's width is that of its pooled features.
    """

    kind: str
    shape: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    norm: str = "none"
    widths: tuple[int, ...] = ()
    vocabulary: int | None = None
    resizable: bool = False
    backbone: str = ""

    def __post_init__(self) -> None:
        """Refuse kinds and norms that do not exist, and sizes that do not fit each other."""
        if self.kind not in STEM_KINDS:
            raise UnknownNameError("stem kind", self.kind, STEM_KINDS)
        if self.norm not in STEM_NORMS:
            raise UnknownNameError("stem norm", self.norm, STEM_NORMS)
        if self.kind == "patch" and not len(self.kernel) == len(self.stride) == len(self.shape) - 1:
            raise InputError(f"patch stem: kernel {self.kernel} and stride {self.stride} must fit shape {self.shape}.")
        if self.kind == "conv" and (not self.widths or len(self.widths) != len(self.stride) or len(self.kernel) != 1):
            raise InputError(
                f"conv stem: one kernel side and one stride a width are needed, got kernel {self.kernel}, "
                f"stride {self.stride}, widths {self.widths}."
            )
        if self.kind == "text" and not self.vocabulary:
            raise InputError("text stem: `vocabulary` (rows of the token table) is missing.")
        if (self.kind == "timm") != bool(self.backbone):
            raise InputError(f"{self.kind} stem: `backbone` names a timm model, and only a timm stem has one.")
        if self.kind == "features" and len(self.shape) != 1:
            raise InputError(f"features stem: shape is (numbers,), got {self.shape}.")

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of patches along each axis for an input of `shape`."""
        if self.kind in ("features", "timm"):
            return (1,)
        if self.kind == "text":
            return self.shape
        if self.kind == "imu":
            return (self.shape[1] // self.kernel[0],)
        if self.kind == "conv":
            sides = self.shape[-2:]
            for step in self.stride:
                sides = ((sides[0] - 1) // step + 1, (sides[1] - 1) // step + 1)
            return (1, *sides) if len(self.shape) == 4 else sides
        return tuple(
            (size - side) // step + 1 for size, side, step in zip(self.shape[1:], self.kernel, self.stride, strict=True)
        )


@dataclass(frozen=True)
class TrunkConfig:
    """A stack of pre-norm blocks.

    Attributes:
        width: D, numbers a token.
        blocks, heads, mlp_ratio: depth, attention heads, hidden width of the MLP over D.
        pre_norm: a LayerNorm before the first block.
        kv_bias: one learned key and value beside those of the tokens.
        causal: a token sees only itself and those before it (and the learned key).
        drop_path: chance to skip the last block's branches while training; grows from 0 along the blocks.
    """

    width: int
    blocks: int
    heads: int
    mlp_ratio: float = 4.0
    pre_norm: bool = False
    kv_bias: bool = False
    causal: bool = False
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a width that the heads do not divide."""
        if self.width % self.heads:
            raise InputError(f"trunk: width {self.width} is not divisible by {self.heads} heads.")


@dataclass(frozen=True)
class HeadConfig:
    """From the pooled token to the joint space: norm, dropout (training), linear without bias.

    Attributes:
        pool: "first" (token 0), "end" (the end token of a text) or "mean" (of all tokens).
        end_id: with pool "end": the id to look for; None takes the first maximum of the ids, as CLIP does, which
            needs a vocabulary whose end token has the greatest id.
        hidden: width of an extra linear + GELU before the last linear; None for the paper's linear head.
        dropout: chance, while training, to zero a number before the linear.
    """

    pool: str = "first"
    end_id: int | None = None
    hidden: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse pools that do not exist."""
        if self.pool not in ("first", "end", "mean"):
            raise UnknownNameError("head pool", self.pool, ("first", "end", "mean"))


@dataclass(frozen=True)
class ScaleConfig:
    """The logit scale, kept apart from embeddings.

    Attributes:
        initial: the multiplier before training; None for a tower that has none (vision).
        trained: whether training moves it.
        limit: the multiplier is clamped to this.
    """

    initial: float | None = None
    trained: bool = False
    limit: float = 100.0


@dataclass(frozen=True)
class TowerConfig:
    """One tower: stem, trunk, head and logit scale."""

    stem: StemConfig
    trunk: TrunkConfig
    head: HeadConfig = HeadConfig()
    scale: ScaleConfig = ScaleConfig()


@dataclass(frozen=True)
class ArchitectureConfig:
    """All towers of a space.

    Attributes:
        name: of the architecture, for messages.
        dim: d, width of the joint space.
        towers: by name: vision, text, audio, depth, thermal, imu.
        num_cls_tokens: learned tokens before the patches of every tower but text; the first one is pooled, more are
            registers. The reference has 1.
    """

    name: str
    dim: int
    towers: dict[str, TowerConfig]
    num_cls_tokens: int = 1

    def __post_init__(self) -> None:
        """Refuse architectures without a class token."""
        if self.num_cls_tokens < 1:
            raise InputError(f"{self.name}: num_cls_tokens must be 1 or more, got {self.num_cls_tokens}.")

    def tower(self, name: str) -> TowerConfig:
        """Give one tower's numbers.

        Raises:
            UnknownNameError: naming the towers that there are.
        """
        if name not in self.towers:
            raise UnknownNameError(f"tower of {self.name}", name, self.towers)
        return self.towers[name]


def load_architecture(name_or_path: str | Path) -> ArchitectureConfig:
    """Read a packaged architecture by name, or a JSON file.

    Raises:
        UnknownNameError: no such packaged architecture and no such file.
        InputError: the JSON does not fit.
    """
    data = _read(name_or_path)
    return from_json_dict(ArchitectureConfig, data.get("architecture", data), str(name_or_path))


def load_preprocess(name_or_path: str | Path) -> dict[str, dict[str, Any]]:
    """Read the preprocessing numbers that go with an architecture: modality -> numbers; {} where it names none.

    Raises:
        UnknownNameError: no such packaged architecture and no such file.
    """
    numbers: dict[str, dict[str, Any]] = _read(name_or_path).get("preprocess", {})
    return numbers


def _read(name_or_path: str | Path) -> dict[str, Any]:
    folder = resources.files("bindsearch.models") / "configs"
    packaged = folder / f"{name_or_path}.json"
    if Path(name_or_path).suffix == ".json" and Path(name_or_path).is_file():
        text = Path(name_or_path).read_text(encoding="utf-8")
    elif packaged.is_file():
        text = packaged.read_text(encoding="utf-8")
    else:
        known = [entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json")]
        raise UnknownNameError("architecture", str(name_or_path), known)
    data: dict[str, Any] = json.loads(text)
    return data
