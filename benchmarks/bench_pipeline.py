"""From files to a store: the pipeline beside the sum of its parts, and videos beside decoding all of their frames.

python -m benchmarks.bench_pipeline                 # about 6 minutes on 2 quiet cores
python -m benchmarks.bench_pipeline --quick         # small, for a busy machine; no rows on the scoreboard

1. bindsearch-mini over JPEGs of 1024x768 and over WAVs of 10 s (44.1 kHz). Alone, in one thread, as process CPU time:
   decode (reading included), preprocess, and the model in batches of 32. Then `run_embed` over many files, in a process
   of its own: wall time of the whole call, workers' start included; both RUNS times in turn. The bar: items a second
   >= 0.85 x cores / (decode + preprocess + model). "Work share" is that sum over all CPU time that the run took an
   item, workers and all: what a machine with nothing else to do could reach of cores / sum. "Cores share" is that sum
   over the same sum measured in one process a core at once: what cores take from each other, whoever uses them.
2. Videos of 10 s, 1280x720, 25 frames a second, H.264, key frame every 2 s (must: 2.5x) and a single one (reported):
   CPU time of decoding and converting all frames, in turn with the frames that are wanted by bindsearch-mini (3 clips
   of 1 s) and by imagebind-huge (5 clips of 2 s); the frames are compared byte for byte.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.media_files import write_jpegs, write_once, write_video, write_wavs
from benchmarks.record import spread, write_result, write_score
from benchmarks.resources import Clock

COMMAND = "python -m benchmarks.bench_pipeline"
FOLDER = Path(__file__).parent.parent / "runs" / "pipeline"
RUNS, BATCH, ALONE = 3, 32, 256
KINDS = {"image": ("jpeg 1024x768", write_jpegs, 8000), "audio": ("wav 10 s", write_wavs, 4000)}
VIDEOS = {"key frame every 2 s": 50, "single key frame": 100_000}


def alone(modality: str, folder: Path, count: int) -> dict[str, float]:
    """Measure each part by itself in one thread: CPU seconds an item, the least of RUNS."""
    import torch

    from bindsearch.embed.batching import forward_batches
    from bindsearch.embed.freed import keep_freed_memory
    from bindsearch.models.spaces import load_space

    keep_freed_memory()
    torch.set_num_threads(1)
    space = load_space("bindsearch-mini", device="cpu")
    kind, config = space.modality(modality), space.config(modality)
    paths = sorted(folder.iterdir())[:count]
    least = dict.fromkeys(("decode", "preprocess", "model"), float("inf"))
    for _ in range(RUNS + 1):  # the first one warms up
        with Clock() as decode:
            media = [kind.decode(kind.source_of(path), config) for path in paths]
        with Clock() as preprocess:
            arrays = [kind.preprocess(each, config) for each in media]
        with Clock() as model:
            for first in range(0, len(arrays), BATCH):
                for x in forward_batches(arrays[first : first + BATCH]):
                    space.encode_raw(modality, x)
        for name, clock in (("decode", decode), ("preprocess", preprocess), ("model", model)):
            least[name] = min(least[name], clock.cpu_s / len(paths))
    return least


def embed_once(folder: Path, workers: int | None) -> dict[str, Any]:
    """Embed a folder in this process and say what it took, its workers included."""
    from bindsearch.embed import EmbedOptions, run_embed
    from bindsearch.embed.freed import keep_freed_memory
    from bindsearch.models.spaces import load_space

    keep_freed_memory()  # as `bindsearch embed` does
    space = load_space("bindsearch-mini", device="cpu")
    for modality in ("image", "audio"):  # loaded beforehand: a start-up is measured elsewhere
        kind, config = space.modality(modality), space.config(modality)
        space.encode(modality, kind.preprocess(kind.example(0), config)[None])
    out = FOLDER / "out"
    shutil.rmtree(out, ignore_errors=True)
    cpu, begin = time.process_time(), time.perf_counter()
    report = run_embed([folder], out, space, options=EmbedOptions(workers=workers))
    wall = time.perf_counter() - begin
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(out)
    count = report.embedded.total()
    return {
        "items": count,
        "wall_s": wall,
        "items_s": count / wall,
        "cpu_s_an_item": (time.process_time() - cpu + children.ru_utime + children.ru_stime) / count,
        "shares": report.shares(),
        "idle": report.idle(),
        "advice": report.advice(),
    }


def in_process(function: str, variable: tuple[str, str]) -> Any:
    """Call a function of this file in a process of its own, with a variable set; its answer comes as JSON."""
    code = f"import json; from benchmarks import bench_pipeline as b; print(json.dumps(b.{function}))"
    environment = dict([*os.environ.items(), variable])
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def at_once(function: str, variable: tuple[str, str], count: int) -> list[Any]:
    """Call a function in some processes at once."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: in_process(function, variable), range(count)))


def measure_kind(modality: str, count: int, runs: int, workers: int | None, policy: str) -> dict[str, Any]:
    """Measure one kind of file: its parts alone, and the pipeline."""
    name, write, _ = KINDS[modality]
    folder = write_once(FOLDER, f"{name.replace(' ', '-')}-{count}", lambda half: write(half, count))
    sample, waiting = min(ALONE, count), ("OMP_WAIT_POLICY", policy)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parts_of, crowded, whole = [], [], []
    for _ in range(runs):  # in turn, since a machine that is shared has fast and slow minutes
        call, threads = f"alone({modality!r}, b.Path({str(folder)!r}), {sample})", ("OMP_NUM_THREADS", "1")
        parts_of.append(in_process(call, threads))
        crowded.append(statistics.mean(sum(parts.values()) for parts in at_once(call, threads, cores)))
        whole.append(in_process(f"embed_once(b.Path({str(folder)!r}), {workers})", waiting))
    sums = [sum(parts.values()) for parts in parts_of]
    return {
        "alone_cpu_ms": {part: 1e3 * statistics.median(parts[part] for parts in parts_of) for part in parts_of[0]},
        "cores": cores,
        "bound_items_s": cores / statistics.median(sums),
        "items_s": spread([each["items_s"] for each in whole]),
        "of the bound": spread([each["items_s"] * one / cores for each, one in zip(whole, sums, strict=True)]),
        "work share": spread([one / each["cpu_s_an_item"] for each, one in zip(whole, sums, strict=True)]),
        "cores share": spread([one / busy for busy, one in zip(crowded, sums, strict=True)]),
        "best": max(whole, key=lambda each: float(each["items_s"])),
        "runs": whole,
    }


def all_frames(path: Path) -> list[np.ndarray]:
    """Decode and convert every frame, as a plain reader does."""
    import av

    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def measure_videos(runs: int) -> dict[str, Any]:
    """Compare CPU times of all frames and of those that are wanted, in turn; and their bytes."""
    from bindsearch.models.spaces import load_space
    from bindsearch.registry import MODALITIES
    from bindsearch.sources import Source

    kind, found = MODALITIES["video"], {}
    wanted = {"mini": load_space("bindsearch-mini", device="cpu").config("video"), "huge": kind.config()}
    for name, every in VIDEOS.items():
        folder = write_once(FOLDER, f"video-{every}", lambda half, every=every: write_video(half / "v.mp4", every))
        path = folder / "v.mp4"
        taken: dict[str, list[float]] = {"all": [], "mini": [], "huge": []}
        equal, looked_at = True, {}
        for _ in range(runs):
            with Clock() as clock:
                plain = all_frames(path)
            taken["all"].append(clock.cpu_s)
            for space, config in wanted.items():
                with Clock() as clock:
                    media = kind.decode(Source.of(path), config)
                taken[space].append(clock.cpu_s)
                indices = media.notes["frame_indices"]
                looked_at[space] = len(indices)
                equal &= all(np.array_equal(plain[at], frame) for at, frame in zip(indices, media.array, strict=True))
        found[name] = {
            "bytes": path.stat().st_size,
            "cpu_ms": {each: spread([1e3 * value for value in values]) for each, values in taken.items()},
            "times faster": {
                space: statistics.median(a / b for a, b in zip(taken["all"], taken[space], strict=True))
                for space in wanted
            },
            "frames": looked_at,
            "equal": equal,
        }
    return found


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("files", "videos"))
    parser.add_argument("--workers", type=int, help="decode processes; default as `bindsearch embed`")
    parser.add_argument("--wait", default="PASSIVE", help="OMP_WAIT_POLICY; `bindsearch embed` takes PASSIVE")
    options = parser.parse_args()
    runs = 1 if options.quick else RUNS
    result: dict[str, Any] = {}
    if options.only != "videos":
        for modality, (name, _, count) in KINDS.items():
            one = measure_kind(modality, 400 if options.quick else count, runs, options.workers, options.wait)
            result[name] = one
            rate, bound, share = one["items_s"]["median"], one["bound_items_s"], one["of the bound"]["median"]
            print(
                f"{name}: {rate:.0f} items/s, {share:.2f} of {bound:.0f} (alone {one['alone_cpu_ms']}); "
                f"work share {one['work share']['median']:.2f}; "
                f"cores share {one['cores share']['median']:.2f}; idle {one['best']['idle']}"
            )
    if options.only != "files":
        result["videos"] = measure_videos(2 if options.quick else 5)
        for name, one in result["videos"].items():
            print(f"video 10 s 720p, {name}: {one['times faster']} times faster; equal frames: {one['equal']}")
    if options.quick:
        return
    if options.only is None:
        write_result("pipeline", result)
    for name in (each for each in result if each != "videos"):
        row = f"pipeline, {name}: items a second, share of what decoding, preprocessing and model alone allow"
        write_score(
            row,
            round(result[name]["of the bound"]["median"], 3),
            "share",
            ">= 0.85",
            COMMAND,
            result[name]["of the bound"],
        )
    for name, one in result.get("videos", {}).items():
        target = ">= 2.5" if name.startswith("key") else "reported"
        value = round(min(one["times faster"].values()), 2)
        row = f"video 10 s 720p H.264, {name}: over decoding and converting all frames"
        found = {f"frames of {space}": ratio for space, ratio in one["times faster"].items()}
        write_score(row, value, "times, the lesser", target, COMMAND, found)


if __name__ == "__main__":
    main()
