"""What the comparison of connectors reads: the image tower's tokens, as rows of a space of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.bench_connectors import Patches
from bindsearch.models.spaces import load_space
from bindsearch.train.picture_rows import named_rows

PICTURES = ["world:3#image", "world:4#image"]


@pytest.fixture(scope="module")
def space():
    return load_space("bindsearch-mini")


def test_patches_are_the_tokens_that_the_towers_head_reads(space, tmp_path):
    patches = Patches(space)
    rows = named_rows(patches, tmp_path, PICTURES, say=lambda _: None)
    assert rows.shape == (len(PICTURES), patches.length * patches.dim)
    tokens = torch.from_numpy(rows.astype(np.float32)).reshape(len(PICTURES), patches.length, patches.dim)
    with torch.inference_mode():
        heads = torch.nn.functional.normalize(patches.tower.head(tokens, None), dim=1).numpy()
    plain = named_rows(space, tmp_path, PICTURES, say=lambda _: None)
    assert (heads * plain).sum(axis=1).min() > 0.999
    assert len(list(tmp_path.glob("image-*.npy"))) == 2, "tokens and embeddings of the same pictures share a shard"
