"""Naming: linear classifiers on the image embedding that speed up an image tower which starts from nothing.

The paper's image tower comes trained. Ours starts from random weights, and a contrastive loss alone leaves it on a
plateau for a thousand steps (ADR 0068); naming what a picture shows lifts it off. The classifiers are thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from bindsearch.world.scene import ABSENT, Scenes, names

NAMED = ("subject", "setting", "motion", "colour")
SCALE = 16.0
"""Multiplier of unit embeddings before the classifiers."""


class Naming(nn.Module):
    """One linear classifier an attribute.

    Args:
        dim: d of the embeddings.
        seed: of the weights.
    """

    def __init__(self, dim: int, seed: int) -> None:
        """Draw the weights: normal, 1 / sqrt(dim)."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        heads = {name: nn.Linear(dim, len(names(name))) for name in NAMED}
        self.heads = nn.ModuleDict(heads)
        with torch.no_grad():
            for head in heads.values():
                head.weight.normal_(0.0, dim**-0.5, generator=generator)
                head.bias.zero_()

    def forward(self, embeddings: Tensor, codes: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
        """Sum the attributes' mean cross entropies, weighted.

        Args:
            embeddings: (B, d) float, any norm. Not modified.
            codes: (B, 4) int64, columns as in NAMED; ABSENT counts for nothing.
            weights: one number an attribute.

        Returns:
            A scalar tensor.
        """
        rows = SCALE * F.normalize(embeddings.float(), dim=1)
        total = rows.new_zeros(())
        for column, (head, weight) in enumerate(zip(self.heads.values(), weights, strict=True)):
            seen = codes[:, column] != ABSENT
            if bool(seen.any()):
                total = total + weight * F.cross_entropy(head(rows[seen]), codes[seen, column])
        return total


def named_codes(scenes: Scenes) -> NDArray[np.int64]:
    """Give the named attributes of scenes as codes, (n, 4) int64; columns as in NAMED."""
    return np.stack([getattr(scenes, name) for name in NAMED], axis=1).astype(np.int64)
