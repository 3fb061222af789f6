"""Trains toy stages in a process of its own, to be killed, or to be one of several that torchrun starts.

python tests/train_driver.py FOLDER STEPS CHUNK,CHUNK.. SLEEP_S
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch

from bindsearch.models.architecture import (
    ArchitectureConfig,
    HeadConfig,
    ScaleConfig,
    StemConfig,
    TowerConfig,
    TrunkConfig,
)
from bindsearch.models.bind import build_tower
from bindsearch.train import loop
from bindsearch.train.config import StageConfig
from bindsearch.train.loop import Batch, Stage, train_stage
from bindsearch.train.naming import Naming
from bindsearch.train.processes import join_processes

BATCH = 16


def tiny(drop_path=0.2, dropout=0.1):
    trunk = TrunkConfig(width=16, blocks=2, heads=2, drop_path=drop_path)
    stem = StemConfig("patch", (1, 8, 8), (4, 4), (4, 4))
    depth = TowerConfig(stem, trunk, HeadConfig(dropout=dropout), ScaleConfig(10.0, True))
    return ArchitectureConfig("toy", 8, {"depth": depth, "thermal": depth})


def toy_stage(folder, steps=12, chunk=None, random=True, false_negatives="mask"):
    architecture = tiny() if random else tiny(0.0, 0.0)
    towers = {name: build_tower(architecture, name, seed=3) for name in ("depth", "thermal")}
    naming = Naming(architecture.dim, seed=6)
    data = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    config = StageConfig(
        "toy", "thermal", steps, BATCH, chunk=chunk, pool=64, warmup_steps=4, learning_rate=3e-3,
        false_negatives=false_negatives,
    )  # fmt: skip

    def draw(rng):
        which = torch.from_numpy(rng.choice(64, BATCH, replace=False))
        noisy = data[which] + 0.1 * torch.from_numpy(rng.standard_normal((BATCH, 1, 8, 8)).astype(np.float32))
        alike = which[:, None] % 9 == which[None, :] % 9
        own = data[which]
        codes = torch.stack([which % many for many in (24, 8, 6, 9)], dim=1)
        return Batch(
            BATCH,
            lambda part: towers["depth"](own[part]),
            lambda part: towers["thermal"](noisy[part]),
            alike,
            lambda rows: 0.3 * naming(rows, codes),
        )

    return Stage(
        config, 5, {**towers, "naming": naming}, draw, towers["thermal"].scale, dict, folder, (1e9, 1000, 1000)
    )


def main() -> None:
    folder, steps, sleep_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[4])
    torch.set_num_threads(1)
    loop.has_bfloat16 = lambda: False
    join_processes()

    def say(line):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        time.sleep(sleep_s)

    for chunk in map(int, sys.argv[3].split(",")):  # 0: the batch at once
        stage = toy_stage(folder / f"chunk-{chunk}", steps, chunk or None, random=sleep_s > 0)
        if sleep_s:  # to be killed: a checkpoint after every step
            stage.times = (0.0, 1000, 1)
        train_stage(stage, say=say)


if __name__ == "__main__":
    main()
