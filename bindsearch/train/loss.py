"""Symmetric InfoNCE over unit embeddings, with the pairs left out that are no negatives.

Source: ImageBind, section 3.2: the sum of the losses of both directions over a batch's similarities.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bindsearch.errors import ShapeError


def info_nce(anchors: Tensor, others: Tensor, scale: Tensor | float, no_negative: Tensor | None = None) -> Tensor:
    """Compute the mean of both directions' cross entropies.

    Args:
        anchors: (B, d) float, any norm; row i is paired with row i of `others`. Not modified.
        others: (B, d) float, any norm. Not modified.
        scale: multiplier of the cosines, 1 / temperature.
        no_negative: (B, B) bool; [i, j] says that anchor i and other j fit although they are not a pair: they are
            left out of both denominators. The diagonal is ignored. None: all others are negatives.

    Returns:
        A scalar tensor.

    Raises:
        ShapeError: the two do not have the same shape, or the mask does not fit.
    """
    if anchors.shape != others.shape or anchors.ndim != 2:
        raise ShapeError(f"info_nce: expected two arrays (B, d), got {tuple(anchors.shape)} and {tuple(others.shape)}.")
    count = anchors.shape[0]
    logits = scale * F.normalize(anchors.float(), dim=1) @ F.normalize(others.float(), dim=1).T
    if no_negative is not None:
        if no_negative.shape != (count, count):
            raise ShapeError(f"info_nce: expected a mask ({count}, {count}), got {tuple(no_negative.shape)}.")
        own = torch.eye(count, dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(no_negative & ~own, float("-inf"))
    pairs = torch.arange(count, device=logits.device)
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2
