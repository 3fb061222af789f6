"""What drivers load once, before they fork: children inherit it. Imported before torch, which then takes one thread."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from bindsearch.models.spaces import load_space


def prepare():
    """Load the space and its towers."""
    torch.set_num_threads(1)
    space = load_space("tiny", device="cpu")
    for modality in ("image", "text"):
        kind, config = space.modality(modality), space.config(modality)
        space.encode(modality, kind.preprocess(kind.example(0), config)[None])
    return space
