"""One side of bench_towers, in its own process: a full-size tower of random weights, its speed and some vectors.

python -m benchmarks.tower_run --what audio --side fast --threads 1 --vectors out.npy

Prints one JSON record. Weights are drawn key by key from seeds, so that every side has the same ones: normal,
1 / sqrt(fan in) for layers, 0.02 for tables and biases, norms near 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from benchmarks.media_files import write_once, write_video, write_wavs
from bindsearch.embed.freed import keep_freed_memory
from bindsearch.models.architecture import load_architecture
from bindsearch.models.bind import Tower, build_tower
from bindsearch.models.clips import distinct
from bindsearch.models.packed import PackedLinear
from bindsearch.models.quick import QuickTower
from bindsearch.models.switches import switches_of
from bindsearch.models.trunk import Attention
from bindsearch.registry import MODALITIES
from bindsearch.sources import Source
from bindsearch.types import Media

SPACE = "imagebind-huge"
PLAIN_BATCH = 8
TRUTH_CLIPS = 2
START, END = 49406, 49407


@dataclass(frozen=True)
class What:
    """What is embedded: the tower, the items of one measurement, clips an item, and how many of them differ.

    Attributes:
        tokens: mean number of a text.
        file: of a modality; items are files of so many seconds, and reading them is part of what is measured.
    """

    tower: str
    items: int
    clips: int = 1
    distinct_clips: int = 1
    tokens: int = 0
    file: str = ""
    seconds: float = 0.0


WHATS = {
    "image": What("vision", 8),
    "audio": What("audio", 4, clips=3, distinct_clips=3, file="audio", seconds=10.0),
    "text": What("text", 64, tokens=12),
    "query": What("text", 1, tokens=12),
    "depth": What("depth", 16),
    "thermal": What("thermal", 8),
    "imu": What("imu", 16),
    "video": What("vision", 1, clips=15, distinct_clips=15, file="video", seconds=10.0),
    "short-video": What("vision", 1, clips=15, distinct_clips=3, file="video", seconds=1.5),
}
SIDES = {
    "plain": ("float32", ""),
    "float32": ("float32", "fast"),
    "fast": ("bfloat16", "fast"),
    "int8": ("bfloat16", "fast,int8=on"),
    "truth": ("float64", "fast"),
}
"""Number type and switches; "plain" is `bind.Tower` with attention by plain products and texts padded to 77."""
FOLDER = Path(__file__).parent.parent / "runs" / "towers"
VIDEO_HZ = 25


def draw_tower(name: str, dtype: torch.dtype) -> Tower:
    """Build a full-size tower of random weights."""
    tower = build_tower(load_architecture(SPACE), name)
    state = {}
    for key, shape in [(key, value.shape) for key, value in tower.state_dict().items()]:
        seed = int.from_bytes(hashlib.sha256(f"{name}/{key}".encode()).digest()[:7], "big")
        generator = torch.Generator().manual_seed(seed)
        values = torch.empty(shape)
        if key.startswith("scale"):
            values.fill_(2.0)
        elif "norm" in key and key.endswith("weight"):
            values.normal_(1.0, 0.1, generator=generator)
        elif len(shape) < 2 or any(part in key for part in ("pos_embed", "cls_token", "token_embedding", "bias_")):
            values.normal_(0.0, 0.02, generator=generator)
        else:
            values.normal_(0.0, values[0].numel() ** -0.5, generator=generator)
        state[key] = values.to(dtype)
    tower.load_state_dict(state, strict=True, assign=True)
    return tower.requires_grad_(False).eval()


def draw_clips(what: What) -> np.ndarray[Any, Any]:
    """Draw the clips of all items: (items * clips, ...), float32 or int64, as a space hands them to a tower."""
    rng = np.random.default_rng(7)
    shape = load_architecture(SPACE).towers[what.tower].stem.shape
    if what.tokens:
        ids = np.zeros((what.items, *shape), dtype=np.int64)
        for row in range(what.items):
            length = what.tokens + (0 if what.items == 1 else int(rng.integers(-6, 7)))  # mean 12 with both ends
            ids[row, 0], ids[row, length - 1] = START, END
            ids[row, 1 : length - 1] = rng.integers(1, START, length - 2)
        return ids
    size = (shape[0], 1, *shape[2:]) if what.tower == "vision" else shape
    return rng.standard_normal((what.items * what.clips, *size), dtype=np.float32)


def write_files(what: What) -> list[Path]:
    """Write the files of one measurement once: WAVs of 44.1 kHz, or videos of 1280x720 with a key frame every 2 s."""

    def write(folder: Path) -> None:
        if what.file == "audio":
            write_wavs(folder, what.items)
        else:
            write_video(folder / "v.mp4", 2 * VIDEO_HZ, int(what.seconds * VIDEO_HZ))

    return sorted(write_once(FOLDER, f"{what.file}-{what.seconds:g}-{what.items}", write).iterdir())


def read_files(what: What, paths: list[Path], side: str) -> np.ndarray[Any, Any]:
    """Read files into clips, as `draw_clips`; the plain side decodes and converts every frame of a video."""
    kind = MODALITIES[what.file]
    config, clips = kind.config(), []
    for path in paths:
        if side == "plain" and what.file == "video":
            with av.open(str(path)) as container:
                frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
            media = Media("video", frames, kind.unit, float(VIDEO_HZ), str(path))
        else:
            media = kind.decode(Source.of(path), config)
        clips.append(kind.preprocess(media, config))
    return np.concatenate(clips)


def plain_encoder(name: str) -> Callable[[np.ndarray[Any, Any]], Tensor]:
    """Make the plain side: eager attention in float32, texts padded, batches of 8, every clip computed."""
    tower = draw_tower(name, torch.float32)
    for module in tower.modules():
        if isinstance(module, Attention):
            module.training = True  # nothing but the choice of attention looks at it: plain products
    pools_end = tower.config.head.pool == "end"

    def encode(clips: np.ndarray[Any, Any]) -> Tensor:
        out = []
        for start in range(0, len(clips), PLAIN_BATCH):
            x = torch.from_numpy(clips[start : start + PLAIN_BATCH])
            pooled = tower.head.pooled_index(x) if pools_end else None
            out.append(tower.head(tower.trunk(tower.stem(x)), pooled))
        return torch.cat(out)

    return encode


def quick_encoder(name: str, dtype: str, switches: str) -> tuple[Callable[[np.ndarray[Any, Any]], Tensor], QuickTower]:
    """Make our side, as `Space` runs it."""
    tower = QuickTower(draw_tower(name, getattr(torch, dtype)), switches_of(switches))

    def encode(clips: np.ndarray[Any, Any]) -> Tensor:
        first, back = distinct(clips)
        clips = clips if back is None else clips[first]
        rows = torch.empty(len(clips), tower.dim, dtype=torch.float64)
        for chosen in tower.batches(clips):
            x = torch.from_numpy(clips[chosen])
            rows[torch.from_numpy(chosen)] = tower(x.to(tower.input_dtype) if x.is_floating_point() else x).double()
        return rows if back is None else rows[torch.from_numpy(back)]

    return encode, tower


def flop(what: What, clips: np.ndarray[Any, Any]) -> float:
    """Count what our side computes for an item: layers and attention, the last block for the pooled token."""
    config = load_architecture(SPACE).towers[what.tower]
    trunk, width = config.trunk, config.trunk.width
    lengths = (
        (clips == END).argmax(axis=1) + 1.0
        if what.tokens
        else np.full(what.items * what.distinct_clips, np.prod(config.stem.grid) + 1.0)
    )
    seen = lengths + trunk.kv_bias
    whole = 24 * lengths * width**2 + 4 * lengths * seen * width
    last = 4 * lengths * width**2 + 20 * width**2 + 4 * seen * width
    stem = 2 * (lengths - 1) * width * config.stem.shape[0] * np.prod(config.stem.kernel or (0,))
    return float(((trunk.blocks - 1) * whole + last + (0 if what.tokens else stem)).sum() / what.items)


def gemm_rate(what: What, rows: int) -> float:
    """Measure the packed bfloat16 product's rate at the tower's own shapes: GFLOP a CPU second, best of 3."""
    width = load_architecture(SPACE).towers[what.tower].trunk.width
    spent, done = 0.0, 0.0
    for inputs, outputs in ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)):
        x = torch.randn(rows, inputs).bfloat16()
        layer = PackedLinear(torch.randn(outputs, inputs).bfloat16(), torch.zeros(outputs).bfloat16(), False)
        layer(x)
        spent += min(cpu_s(lambda x=x, layer=layer: layer(x)) for _ in range(3))  # type: ignore[misc]
        done += 2.0 * rows * inputs * outputs
    return done / spent / 1e9


def cpu_s(work: Callable[[], Any]) -> float:
    """Give the CPU seconds of one call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def main() -> None:
    """Measure one side and print its record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", choices=WHATS, required=True)
    parser.add_argument("--side", choices=SIDES, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--vectors", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    what, (dtype, switches) = WHATS[arguments.what], SIDES[arguments.side]
    paths = write_files(what) if what.file else []
    clips = read_files(what, paths, arguments.side) if paths else draw_clips(what)
    record: dict[str, Any] = {"what": arguments.what, "side": arguments.side, "threads": arguments.threads}
    with torch.inference_mode():
        tower = None
        if arguments.side == "plain":
            encode = plain_encoder(what.tower)
        else:
            keep_freed_memory()  # as `bindsearch embed` does
            encode, tower = quick_encoder(what.tower, dtype, switches)
        vectors = torch.nn.functional.normalize(encode(clips[:TRUTH_CLIPS]).double(), dim=-1)  # warms up as well
        if arguments.vectors:
            np.save(arguments.vectors, vectors.numpy())
        walls, cpus = [], []
        for _ in range(0 if arguments.side == "truth" else arguments.runs):
            begin = time.perf_counter()
            work = (lambda: encode(read_files(what, paths, arguments.side))) if paths else (lambda: encode(clips))
            cpus.append(cpu_s(work) / what.items)
            walls.append((time.perf_counter() - begin) / what.items)
        record |= {"cpu_s": cpus, "wall_s": walls, "gflop": flop(what, clips) / 1e9}
        if arguments.side == "fast" and tower is not None:
            rows = int(what.items * what.distinct_clips * (np.prod(tower.config.stem.grid) + 1))
            if what.tokens:
                rows = int(((clips == END).argmax(axis=1) + 1).sum())
            record["gemm_gflop_s"] = gemm_rate(what, min(rows, 2056))
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
