"""Symmetric InfoNCE over unit embeddings; pairs that fit although they are no pair are left out, or count as pairs.

Source: ImageBind, section 3.2: the sum of the losses of both directions over a batch's similarities.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bindsearch.errors import ShapeError, UnknownNameError
from bindsearch.train.config import FALSE_NEGATIVES


def info_nce(
    anchors: Tensor,
    others: Tensor,
    scale: Tensor | float,
    alike: Tensor | None = None,
    false_negatives: str = "mask",
) -> Tensor:
    """Compute the mean of both directions' cross entropies.

    Args:
        anchors: (B, d) float, any norm; row i is paired with row i of `others`. Not modified.
        others: (B, d) float, any norm. Not modified.
        scale: multiplier of the cosines, 1 / temperature.
        alike: (B, B) bool; [i, j] says that anchor i and other j fit although they are not a pair. The diagonal is
            ignored. None: all others are negatives.
        false_negatives: what becomes of them. "mask": left out of both denominators; "positive": the target is spread
            evenly over a row's pairs, in each direction; "keep": they stay negatives.

    Returns:
        A scalar tensor.

    Raises:
        ShapeError: the two do not have the same shape, or `alike` does not fit.
        UnknownNameError: no such way with false negatives.
    """
    if anchors.shape != others.shape or anchors.ndim != 2:
        raise ShapeError(f"info_nce: expected two arrays (B, d), got {tuple(anchors.shape)} and {tuple(others.shape)}.")
    if false_negatives not in FALSE_NEGATIVES:
        raise UnknownNameError("way with false negatives", false_negatives, FALSE_NEGATIVES)
    count = anchors.shape[0]
    logits = scale * F.normalize(anchors.float(), dim=1) @ F.normalize(others.float(), dim=1).T
    if alike is not None:
        if alike.shape != (count, count):
            raise ShapeError(f"info_nce: expected a mask ({count}, {count}), got {tuple(alike.shape)}.")
        own = torch.eye(count, dtype=torch.bool, device=logits.device)
        if false_negatives == "positive":
            return _spread(logits, (alike | own).float())
        if false_negatives == "mask":
            logits = logits.masked_fill(alike & ~own, float("-inf"))
    pairs = torch.arange(count, device=logits.device)
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def _spread(logits: Tensor, fits: Tensor) -> Tensor:
    """Cross entropies against even targets over each row's, and each column's, fitting ones."""
    rows = F.cross_entropy(logits, fits / fits.sum(1, keepdim=True))
    columns = F.cross_entropy(logits.T, fits.T / fits.T.sum(1, keepdim=True))
    return (rows + columns) / 2
