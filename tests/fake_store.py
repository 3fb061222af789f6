"""A store in memory with the surface that an index is built from; files and shards are tested with the real one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from bindsearch.types import item_id

SPACE = "toy@0123456789ab"
MODALITIES = ("image", "audio", "text")


def make_manifest(dim: int, space_id: str = SPACE, modalities=MODALITIES, **changes):
    return SimpleNamespace(
        **{
            "space_name": space_id.rpartition("@")[0],
            "space_id": space_id,
            "dim": dim,
            "tower_ids": {m: f"{m}:aa@{space_id}" for m in modalities},
            "preset_ids": {m: f"default:{m}" for m in modalities},
            "tokenizer_id": "tok",
            **changes,
        }
    )


class FakeStore:
    """n items with seeded rows; every third one an image, an audio, a text."""

    def __init__(self, n=30, dim=16, seed=0, prefix="item", modalities=MODALITIES, **changes):
        rng = np.random.default_rng(seed)
        self.manifest = make_manifest(dim, modalities=modalities, **changes)
        self.vectors = rng.standard_normal((n, dim)).astype(np.float32)
        keys = [f"{prefix}/{i:04d}" for i in range(n)]
        self.ids = np.array([item_id(key) for key in keys], dtype=np.int64)
        kinds = [modalities[i % len(modalities)] for i in range(n)]
        self.table = pa.table(
            {
                "id": pa.array(self.ids),
                "key": keys,
                "modality": kinds,
                "start_s": pa.array([float(i) if i % 5 == 0 else None for i in range(n)], pa.float64()),
                "end_s": pa.array([float(i + 1) if i % 5 == 0 else None for i in range(n)], pa.float64()),
                "source": [f"/nowhere/{key}" for key in keys],
                "member": pa.array([None] * n, pa.string()),
                "size": pa.array([100 * i for i in range(n)], pa.int64()),
                "norm": pa.array([0.5] * n, pa.float32()),
                "status": ["ok"] * n,
                "reason": pa.array([None] * n, pa.string()),
                "stage": pa.array([None] * n, pa.string()),
                "caption": pa.array([f"a dog, number {i}" if i % 2 else None for i in range(n)], pa.string()),
                "attributes": pa.array(
                    [f'{{"colour": "{("red", "blue")[i % 2]}", "level": {i}}}' if i % 4 else None for i in range(n)],
                    pa.string(),
                ),
            }
        )

    def iter_blocks(self, rows):
        for start in range(0, self.table.num_rows, rows):
            yield (
                self.ids[start : start + rows],
                self.vectors[start : start + rows],
                self.table.slice(start, rows),
            )

    def gone_sources(self):
        return {}

    @property
    def units(self):
        return (self.vectors / np.linalg.norm(self.vectors.astype(np.float64), axis=1, keepdims=True)).astype(
            np.float32
        )


def questions(n=60, seed=9, modalities=("text", "audio"), **changes):
    """A store of what is asked, in modalities in turn."""
    return FakeStore(n, seed=seed, prefix=f"question{seed}", modalities=modalities, **changes)
