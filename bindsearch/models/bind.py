"""A tower from its numbers: stem -> trunk -> head, without weights (weights.py has them)."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from bindsearch.errors import ShapeError
from bindsearch.models.architecture import (
    TOWERS,
    ArchitectureConfig,
    HeadConfig,
    ScaleConfig,
    StemConfig,
    TowerConfig,
    TrunkConfig,
    load_architecture,
)
from bindsearch.models.parts import GroupNorm, Head, LayerNorm, LogitScale, Positions, TextStem, build_stem
from bindsearch.models.trunk import Attention, Trunk

__all__ = [
    "TOWERS",
    "ArchitectureConfig",
    "HeadConfig",
    "ScaleConfig",
    "StemConfig",
    "Tower",
    "TowerConfig",
    "TrunkConfig",
    "build_tower",
    "initialise",
    "load_architecture",
]


class Tower(nn.Module):
    """One encoder of a space.

    Args:
        name: of the tower, for messages.
        config: its numbers.
        dim: d.
        num_cls_tokens: of the architecture; text has none.
        device: where the empty parameters live.
    """

    def __init__(
        self, name: str, config: TowerConfig, dim: int, num_cls_tokens: int, device: torch.device | str
    ) -> None:
        super().__init__()
        self.name, self.config, self.dim = name, config, dim
        self.stem = build_stem(config.stem, config.trunk.width, num_cls_tokens, device)
        self.trunk = Trunk(config.trunk, device)
        self.head = Head(config.head, config.trunk.width, dim, device)
        self.scale = LogitScale(config.scale, device)

    def forward(self, x: Tensor) -> Tensor:
        """Encode one clip an entry.

        Args:
            x: (N, *stem shape): vision (N, 3, T, H, W), or T = 1 for still pictures; audio (N, 1, M, T);
                depth, thermal (N, 1, H, W); imu (N, 6, T); features (N, F); float of the tower's dtype. text
                (N, context) int64.
                Not modified.

        Returns:
            (N, d): the head's output, neither normalised nor scaled.

        Raises:
            ShapeError: naming the tower, the expected and the given shape.

        Text is cut to the longest pooled position of the batch before the trunk: what follows a pooled token cannot
        reach it through the causal mask (a test holds the equality).
        """
        self.check(x)
        if self.config.head.pool != "end":
            return self.head(self.trunk(self.stem(x)), None)  # type: ignore[no-any-return]
        pooled = self.head.pooled_index(x)
        if self.config.trunk.causal and x.shape[0]:
            x = x[:, : int(pooled.max()) + 1]
        return self.head(self.trunk(self.stem(x)), pooled)  # type: ignore[no-any-return]

    def check(self, x: Tensor) -> None:
        """Refuse an input that the stem would misread.

        Raises:
            ShapeError: naming the tower, the expected and the given shape.
        """
        try:
            self.stem.check(x)
        except ShapeError as error:
            raise ShapeError(f"{self.name} tower: {error}") from None

    def logit_scale(self) -> float:
        """Give the multiplier that a softmax over this tower's cosines uses, clamped."""
        return float(self.scale().detach())


def build_tower(config: ArchitectureConfig, name: str, seed: int | None = None) -> Tower:
    """Build one tower.

    Args:
        config: the architecture.
        name: of the tower in the architecture: vision, text, audio, depth, thermal, imu, features.
        seed: None builds on the meta device, without memory and without drawing a number, to be filled by
            `load_state_dict(..., assign=True)`; a number draws the weights that training starts from.

    Returns:
        The tower: in eval mode when it waits for weights, in training mode when it was drawn.

    Raises:
        UnknownNameError: the architecture has no such tower.
    """
    with torch.random.fork_rng(devices=[]):  # a timm backbone draws its weights as it is built
        torch.manual_seed(0 if seed is None else seed)
        tower = Tower(name, config.tower(name), config.dim, config.num_cls_tokens, "meta" if seed is None else "cpu")
    if seed is None:
        return tower.eval()
    initialise(tower, seed)
    return tower


@torch.no_grad()
def initialise(tower: Tower, seed: int) -> None:
    """Draw the weights that training starts from; overwrites the tower's parameters.

    Each tensor has its own generator, seeded by (seed, tower name, key): adding a part leaves the others' draws alone.
    Linear layers: normal, 1 / sqrt(fan in), the ones that end a residual branch divided by sqrt(2 * blocks);
    convolutions: normal, sqrt(2 / fan in); tables and class tokens: normal 0.02; norms 1 and 0; biases 0. A timm
    backbone keeps its own draw.
    """
    for path, module in tower.named_modules():
        if path.startswith("stem.backbone"):
            continue
        for key, deviation in _deviations(module, path, tower.config.trunk.blocks).items():
            seeds = hashlib.sha256(f"{seed}/{tower.name}/{path}.{key}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(seeds[:8], "big") >> 1)
            module.get_parameter(key).normal_(0.0, deviation, generator=generator)
        if isinstance(module, LayerNorm | GroupNorm):
            module.weight.fill_(1.0)
            module.bias.fill_(0.0)
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d) and module.bias is not None:
            module.bias.fill_(0.0)
        elif isinstance(module, Attention):
            module.in_proj_bias.fill_(0.0)
        elif isinstance(module, LogitScale) and module.log_logit_scale is not None:
            module.log_logit_scale.fill_(math.log(float(module.config.initial or 1.0)))


def _deviations(module: nn.Module, path: str, blocks: int) -> dict[str, float]:
    """Give the standard deviation of each parameter of one module that is drawn."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
        ends_branch = path.endswith(("out_proj", "fc2"))
        gain = 1.0 / math.sqrt(2.0 * blocks) if ends_branch else math.sqrt(2.0) if ".convs." in path else 1.0
        return {"weight": gain / math.sqrt(module.weight[0].numel())}
    if isinstance(module, Attention):
        biases = {} if module.bias_k is None else {"bias_k": 0.02, "bias_v": 0.02}
        return {"in_proj_weight": 1.0 / math.sqrt(module.in_proj_weight.shape[1]), **biases}
    if isinstance(module, Positions):
        return {key: 0.02 for key, _ in module.named_parameters(recurse=False)}
    return {"token_embedding": 0.02} if isinstance(module, TextStem) else {}
