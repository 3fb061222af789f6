"""Pools: scenes rendered once, preprocessed as `embed` does, kept on disk, and read by every epoch."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindsearch.config import content_hash
from bindsearch.registry import MODALITIES
from bindsearch.world.motion import CLIP_S
from bindsearch.world.scene import VERSION, Scenes, sample, split_seeds

SHARD = 2000
MEL_SCALE = 48.0
"""Mel features are kept as int8: feature times this, cut at ±127 (features lie in about ±2)."""

Renderer = Callable[[Scenes, Mapping[str, Any]], NDArray[Any]]


def image_rows(scenes: Scenes, numbers: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Render pictures at the size that the tower sees, (n, H, W, 3) uint8; `normalise_images` does the rest."""
    from bindsearch.world.image import render_images

    return render_images(scenes, int(numbers["size_px"]))


def frames_rows(scenes: Scenes, numbers: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Render the first and the last of T frames spread over a whole video, (n, T, H, W, 3) uint8.

    The image tower is trained on these; `embed` looks at shorter clips, several a video (docs/adr/0085).
    """
    whole = {**numbers, "clips": 1, "clip_s": CLIP_S}
    return video_rows(scenes, whole)[:, 0]


def video_rows(scenes: Scenes, numbers: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Render the frames of the clips that `embed` looks at, (n, S, T, H, W, 3) uint8."""
    from bindsearch.modalities.video import clip_frames
    from bindsearch.world.video import RATE_FPS, render_videos

    config = MODALITIES["video"].config("default", **numbers)
    clips = [picked for _, picked in clip_frames(round(CLIP_S * RATE_FPS), float(RATE_FPS), config)]
    shown = sorted({frame for picked in clips for frame in picked})
    frames = render_videos(scenes, config.size_px, [frame / RATE_FPS for frame in shown])
    kept: NDArray[np.uint8] = frames[:, [[shown.index(frame) for frame in picked] for picked in clips]]
    return kept


def file_rows(modality: str, scenes: Scenes, numbers: Mapping[str, Any]) -> NDArray[np.float32]:
    """Render what the files of a modality hold, decode and preprocess it: the first clip of each, (n, ...) float32."""
    from bindsearch.world.files import render_values, to_source

    reader = MODALITIES[modality]
    config = reader.config("default", **numbers)
    values = render_values(scenes, modality, int(numbers.get("size_px", 64)))
    decoded = (reader.decode(to_source(value, modality, "scene"), config) for value in values)
    return np.stack([reader.preprocess(media, config)[0] for media in decoded])


def audio_rows(scenes: Scenes, numbers: Mapping[str, Any]) -> NDArray[np.int8]:
    """Render sounds and preprocess their first clip, (n, M, T) int8 of MEL_SCALE a unit."""
    clips = file_rows("audio", scenes, numbers)[:, 0]
    kept: NDArray[np.int8] = np.clip(np.rint(clips * MEL_SCALE), -127, 127).astype(np.int8)
    return kept


def _half_rows(modality: str) -> Renderer:
    return lambda scenes, numbers: file_rows(modality, scenes, numbers).astype(np.float16)


RENDERERS: dict[str, Renderer] = {
    "image": image_rows,
    "frames": frames_rows,
    "video": video_rows,
    "audio": audio_rows,
    "depth": _half_rows("depth"),
    "thermal": _half_rows("thermal"),
    "imu": _half_rows("imu"),
}
"""Rows as they are kept: image (H, W, 3), frames (T, H, W, 3) and video (S, T, H, W, 3) uint8 levels, audio (M, T)
int8; depth and thermal (1, H, W) and imu (6, T) float16 as their towers take them."""


def pool_scenes(first: int, count: int, partial: float, split: str = "train") -> Scenes:
    """Give the scenes of a pool: `count` mixed ones of a split from number `first` on."""
    return sample(split_seeds(split, count, first), "mixed", partial)


def _write_shard(job: tuple[str, Path, int, int, float, dict[str, Any]]) -> Path:
    modality, path, first, count, partial, numbers = job
    rows = RENDERERS[modality](pool_scenes(first, count, partial), numbers)
    temporary = path.with_suffix(f".{os.getpid()}.tmp.npy")  # another run may render the same shard beside this one
    np.save(temporary, rows)
    temporary.replace(path)
    return path


def print_line(line: str) -> None:
    """Print what is done; a script that trains shows what it waits for."""
    print(line, flush=True)  # noqa: T201


def _leave_signals() -> None:
    """Leave Ctrl-C, which reaches all processes of a terminal, to the one that waits for the shards."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def render_pool(
    modality: str,
    folder: Path,
    span: tuple[int, int],
    partial: float,
    numbers: dict[str, Any],
    workers: int = 2,
    say: Callable[[str], None] = print_line,
) -> NDArray[Any]:
    """Render a pool, or read what a run before this one rendered.

    Args:
        modality: a key of RENDERERS.
        folder: of the shards; shards that exist are kept. A world of another VERSION has others.
        span: number of the first scene in the training split, and how many.
        partial: see `sample`.
        numbers: the modality's numbers of the space; a shard of other numbers is not taken.
        workers: processes; 0 renders in this one.
        say: told of each shard that a process has rendered.

    Returns:
        (n, ...) rows as RENDERERS[modality] gives them, in memory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first, total = span
    named = content_hash({"world": VERSION, **numbers}, 8)
    jobs = []
    paths = []
    for at in range(first, first + total, SHARD):
        count = min(SHARD, first + total - at)
        path = folder / f"{modality}-{at:08d}-{count}-{round(partial * 1000)}-{named}.npy"
        paths.append(path)
        if not path.exists():
            jobs.append((modality, path, at, count, partial, numbers))
    if jobs and workers:
        with ProcessPoolExecutor(workers, get_context("spawn"), _leave_signals) as processes:
            try:
                for done, path in enumerate(processes.map(_write_shard, jobs), 1):
                    say(f"pool {modality}: {done}/{len(jobs)} shards ({path.name})")
            except BaseException:
                processes.shutdown(cancel_futures=True)  # the shards in hand are finished and kept
                raise
    else:
        for job in jobs:
            _write_shard(job)
    shards = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]
    rows = np.empty((total, *shards[0].shape[1:]), shards[0].dtype)
    return np.concatenate(shards, out=rows)
