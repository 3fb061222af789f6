"""Weights drawn from a seed and a key's name: the public tiny space, and checkpoints for tests of size and parity.

The rules are those of the parity goldens (see tests/golden/imagebind): numpy only, float32, one generator a key, so
that one tensor can be drawn without the others. They make outputs depend on inputs, which training's start does not.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bindsearch.models.architecture import ArchitectureConfig
from bindsearch.models.keys import checkpoint_key

if TYPE_CHECKING:
    from bindsearch.types import FloatArray

_SMALL = (
    "stem.proj.weight",
    "stem.proj.1.weight",
    "norm_layer.weight",
    "norm_layer.bias",
    "cls_token",
    "pos_embed",
    "token_embedding.weight",
    "attn.out_proj.weight",
    "attn.out_proj.bias",
    "mlp.fc2.weight",
    "mlp.fc2.bias",
    "pre_transformer_layer.0.weight",
    "pre_transformer_layer.0.bias",
)


@dataclass(frozen=True)
class Recipe:
    """What the weights are drawn from.

    Attributes:
        seed: of every generator, beside the key's name.
        qkv_gain: multiplies the packed attention projections.
        small_gain: multiplies everything that enters the residual stream.
        logit_scales: multiplier of each tower that has one.
    """

    seed: int
    qkv_gain: float = 1.0
    small_gain: float = 1.0
    logit_scales: dict[str, float] | None = None


def generator(seed: int, name: str) -> np.random.Generator:
    """Give numpy's default generator seeded with (seed, crc32 of the name)."""
    return np.random.default_rng([seed, zlib.crc32(name.encode("utf-8"))])


def draw(recipe: Recipe, key: str, shape: tuple[int, ...]) -> FloatArray:
    """Draw one tensor.

    Args:
        recipe: seed and gains.
        key: its name in a checkpoint, as `modality_heads.imu.3.weight`.
        shape: its shape.

    Returns:
        float32 of `shape`.

    Source: the weight recipe of the parity goldens.
    """
    last = key.rsplit(".", 1)[-1]
    if last == "log_logit_scale":
        scale = (recipe.logit_scales or {})[key.split(".")[1]]
        return np.full(shape, math.log(scale), dtype=np.float32)
    if last == "mask":
        return np.triu(np.full(shape, -np.inf, dtype=np.float32), 1)
    z = generator(recipe.seed, key).standard_normal(shape, dtype=np.float32)
    if last in ("cls_token", "pos_embed") or key.endswith("token_embedding.weight"):
        z *= np.float32(0.5)
    elif last in ("bias_k", "bias_v"):
        pass
    elif "bias" in last:
        z *= np.float32(0.1)
    elif len(shape) == 1:
        z = np.float32(1.0) + np.float32(0.2) * z
    else:
        gain = recipe.qkv_gain if last == "in_proj_weight" else 1.0
        z *= np.float32(gain / math.sqrt(math.prod(shape[1:])))
    if recipe.small_gain != 1.0 and key.endswith(_SMALL):
        z *= np.float32(recipe.small_gain)
    return z


def draw_tower(recipe: Recipe, config: ArchitectureConfig, name: str) -> Iterator[tuple[str, FloatArray]]:
    """Draw every tensor of one tower, as (key in the tower's state dict, float32)."""
    from bindsearch.models.bind import build_tower

    for key, tensor in build_tower(config, name).state_dict().items():
        yield key, draw(recipe, checkpoint_key(name, key), tuple(tensor.shape))
