"""Pools: scenes rendered once, preprocessed as `embed` does, kept on disk, and read by every epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindsearch.registry import MODALITIES
from bindsearch.types import Media
from bindsearch.world.scene import Scenes, sample, split_seeds

SHARD = 2000
MEL_SCALE = 48.0
"""Mel features are kept as int8: feature times this, cut at ±127 (features lie in about ±2)."""


def image_rows(scenes: Scenes, numbers: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Render pictures at the size that the tower sees, (n, H, W, 3) uint8; `normalise_images` does the rest."""
    from bindsearch.world.image import render_images

    return render_images(scenes, int(numbers["size_px"]))


def audio_rows(scenes: Scenes, numbers: Mapping[str, Any]) -> NDArray[np.int8]:
    """Render sounds and preprocess their first clip, (n, M, T) int8 of MEL_SCALE a unit."""
    from bindsearch.world.audio import RATE_HZ, render_waves

    modality = MODALITIES["audio"]
    config = modality.config("default", **numbers)
    out: list[NDArray[np.int8]] = []
    for wave in render_waves(scenes):
        media = Media("audio", wave[None], "amplitude", rate_hz=float(RATE_HZ), name="scene")
        clip = modality.preprocess(media, config)[0, 0]
        out.append(np.clip(np.rint(clip * MEL_SCALE), -127, 127).astype(np.int8))
    return np.stack(out)


RENDERERS: dict[str, Callable[[Scenes, Mapping[str, Any]], NDArray[Any]]] = {"image": image_rows, "audio": audio_rows}


def pool_scenes(first: int, count: int, partial: float, split: str = "train") -> Scenes:
    """Give the scenes of a pool: `count` mixed ones of a split from number `first` on."""
    return sample(split_seeds(split, count, first), "mixed", partial)


def _write_shard(job: tuple[str, Path, int, int, float, dict[str, Any]]) -> Path:
    modality, path, first, count, partial, numbers = job
    rows = RENDERERS[modality](pool_scenes(first, count, partial), numbers)
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, rows)
    temporary.replace(path)
    return path


def render_pool(
    modality: str, folder: Path, span: tuple[int, int], partial: float, numbers: dict[str, Any], workers: int = 2
) -> NDArray[Any]:
    """Render a pool, or read what a run before this one rendered.

    Args:
        modality: image or audio.
        folder: of the shards; shards that exist are kept.
        span: number of the first scene in the training split, and how many.
        partial: see `sample`.
        numbers: the modality's numbers of the space.
        workers: processes.

    Returns:
        (n, ...) rows as RENDERERS[modality] gives them, in memory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first, total = span
    jobs = []
    paths = []
    for at in range(first, first + total, SHARD):
        count = min(SHARD, first + total - at)
        path = folder / f"{modality}-{at:08d}-{count}-{round(partial * 1000)}.npy"
        paths.append(path)
        if not path.exists():
            jobs.append((modality, path, at, count, partial, numbers))
    if jobs:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as processes:
            for done, path in enumerate(processes.map(_write_shard, jobs), 1):
                print(f"pool {modality}: {done}/{len(jobs)} shards ({path.name})", flush=True)  # noqa: T201
    return np.concatenate([np.load(path, allow_pickle=False) for path in paths])
