"""Full-size random towers: ours beside the plain float32 path, each side its own process in turns, in one run.

python -m benchmarks.bench_towers                          # all; an hour and a half on two quiet cores, 6 GB of memory
python -m benchmarks.bench_towers --what depth imu --quick # one run a side, CPU time on one thread alone
python -m benchmarks.bench_towers --mini                   # bfloat16 beside float32 on 2,000 scenes of the world
python -m benchmarks.bench_towers --draw                   # the plot and the scoreboard from what is measured

What is measured already stays, so an interrupted run goes on; --again measures anew. CPU seconds are of one thread,
wall seconds of two. The plain path: float32, eager attention, texts padded to 77, batches of 8, every clip computed;
of a video, every frame decoded and converted. Audio and videos are files, and both sides read them.
Cosines are with the same tower in float64. The packed product's rate is measured in the same process as our side.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import RESULTS, machine, spread, write_result, write_score
from bindsearch.models.packed import sums_bytes_whole

NAMES = ("image", "audio", "text", "query", "depth", "thermal", "imu", "short-video", "video")
SIDES = ("plain", "float32", "fast", "int8")
MUST = {"image": 4.5, "audio": 4.0, "text": 15.0, "query": 6.0, "depth": 3.5, "thermal": 3.5, "imu": 3.5,
        "short-video": 20.0, "video": 4.5}  # fmt: skip
LONG = ("short-video", "video")
"""Kinds whose plain side takes a minute: one run a round."""
SHARE = 0.58
COSINE = 0.9999
SCENES = 2000
K = 10


def run_side(what: str, side: str, threads: int, runs: int, vectors: Path) -> dict[str, Any]:
    """Run one side in its own process.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, "-m", "benchmarks.tower_run", "--what", what, "--side", side]
    command += ["--threads", str(threads), "--runs", str(runs), "--vectors", str(vectors)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def measure(what: str, sides: tuple[str, ...], rounds: int, runs: int, wall: bool) -> dict[str, Any]:
    """Measure one kind of item on all sides, in turns."""
    with tempfile.TemporaryDirectory(prefix="bindsearch-towers-") as scratch:
        paths = {side: Path(scratch) / f"{side}.npy" for side in (*sides, "truth")}
        cpu: dict[str, list[float]] = {side: [] for side in sides}
        walls: dict[str, list[float]] = {side: [] for side in sides}
        record: dict[str, Any] = {}
        for _ in range(rounds):
            for side in sides:
                one = run_side(what, side, 1, runs, paths[side])
                cpu[side] += one["cpu_s"]
                if side == "fast":
                    record["gflop"] = one["gflop"]
                    record.setdefault("packed_gemm_gflop_s", []).append(one["gemm_gflop_s"])
                if wall:
                    walls[side] += run_side(what, side, 2, runs, paths[side])["wall_s"]
        run_side(what, "truth", 1, 0, paths["truth"])
        truth = np.load(paths["truth"])
        record["cosine"] = {side: float((np.load(paths[side]) * truth).sum(axis=1).min()) for side in sides}
    record["cpu_s"] = {side: spread(values) for side, values in cpu.items()}
    record["ratio_cpu"] = {side: least(cpu["plain"]) / least(cpu[side]) for side in sides}
    record["ratio_cpu_of_medians"] = {side: record["cpu_s"]["plain"]["median"] / each["median"]
                                      for side, each in record["cpu_s"].items()}  # fmt: skip
    if wall:
        record["wall_s_two_threads"] = {side: spread(values) for side, values in walls.items()}
        record["ratio_wall"] = {side: least(walls["plain"]) / least(walls[side]) for side in sides}
    record["share_of_packed_gemm"] = record["gflop"] / least(cpu["fast"]) / max(record["packed_gemm_gflop_s"])
    record["load_average"] = os.getloadavg()[0]
    return record


def measured() -> dict[str, Any]:
    """Read what is measured already, by kind of item."""
    path = RESULTS / "towers.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["measured"] if path.exists() else {}
    return found


def keep(what: str, one: dict[str, Any]) -> dict[str, Any]:
    """Write one kind's record beside what other runs have written meanwhile, and give all."""
    found = measured() | {what: one}
    write_result("towers", {"measured": found})
    return found


def least(values: list[float]) -> float:
    """Give the least of some times: what a busy machine adds is no part of the work."""
    return min(values)


def measure_mini(scenes: int, scratch: Path) -> dict[str, Any]:
    """Embed scenes of the world with bindsearch-mini in both types: CPU seconds, and whose answers stay the same."""
    from bindsearch.embed.planning import EmbedOptions
    from bindsearch.embed.run import run_embed
    from bindsearch.models.spaces import load_space
    from bindsearch.store import open_store

    rows: dict[str, dict[str, Any]] = {}
    record: dict[str, Any] = {"scenes": scenes, "overlap_at_10": {}, "model_s": {}}
    for dtype in ("float32", "bfloat16"):
        space = load_space("bindsearch-mini", device="cpu", dtype=dtype)
        rows[dtype] = {}
        for modality in ("image", "text", "audio"):
            folder = scratch / f"{dtype}-{modality}"
            report = run_embed([f"world:0..{scenes}#{modality}"], folder, space, options=EmbedOptions(workers=0))
            record["model_s"].setdefault(modality, {})[dtype] = report.seconds["model"]
            store = open_store(folder)
            order = np.argsort(np.array(store.items(["key"]).column("key").to_pylist()))
            rows[dtype][modality] = store.vectors().astype(np.float64)[order]
    for asked, answering in (("text", "image"), ("text", "audio"), ("image", "audio"), ("image", "image")):
        best = [np.argsort(-(rows[d][asked] @ rows[d][answering].T), axis=1)[:, :K] for d in rows]
        same = [len(set(one) & set(other)) / K for one, other in zip(*best, strict=True)]
        record["overlap_at_10"][f"{asked} -> {answering}"] = float(np.mean(same))
    return record


def score(found: dict[str, Any]) -> None:
    """Put the headline figures on the scoreboard."""
    for what, each in found.items():
        command = f"python -m benchmarks.bench_towers --what {what}"
        if what == "mini":
            value = min(each["overlap_at_10"].values())
            mini = "python -m benchmarks.bench_towers --mini"
            write_score("towers: bf16 with fp32, mini, overlap_at_10, least", value, "share", ">= 0.99", mini)
            continue
        ratio = each.get("ratio_wall", each["ratio_cpu"])["fast"]
        write_score(f"towers: {what}, over the plain path", ratio, "x", f">= {MUST[what]}", command)
        write_score(f"towers: {what}, cosine with float64", each["cosine"]["fast"], "cosine", f">= {COSINE}", command)
        if what == "image":
            share = each["share_of_packed_gemm"]
            write_score("towers: image, share of the packed bf16 rate", share, "share", f">= {SHARE}", command)


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw how many times faster each side is than the plain path."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "towers"
    from matplotlib import pyplot

    names = [name for name in NAMES if name in found]
    figure, axis = pyplot.subplots(figsize=(9, 4))
    for number, side in enumerate(SIDES[1:]):
        values = [found[name]["ratio_cpu"].get(side, 0.0) for name in names]
        bars = axis.bar(np.arange(len(names)) + 0.27 * (number - 1), values, 0.26, label=side)
        axis.bar_label(bars, fmt="%.1f", fontsize=7)
    axis.scatter(np.arange(len(names)), [MUST[name] for name in names], marker="_", s=600, color="black", label="asked")
    axis.set_xticks(np.arange(len(names)), names)
    axis.set(yscale="log", ylabel="times the plain float32 path (CPU time)", title="imagebind-huge, random weights")
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Measure what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=NAMES, help="kinds of items; default: all")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--quick", action="store_true", help="one run a side, CPU time alone: for a busy machine")
    parser.add_argument("--again", action="store_true", help="measure anew what is there")
    parser.add_argument("--mini", action="store_true", help="compare bindsearch-mini in both types")
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    possible = [side for side in arguments.sides if side != "int8" or sums_bytes_whole()]
    found = measured()
    wanted = [] if arguments.draw else arguments.what or ([] if arguments.mini else list(NAMES))
    for what in wanted:
        if what in found and not arguments.again:
            continue
        begin = time.perf_counter()
        quick = arguments.quick
        sides = tuple(dict.fromkeys(("plain", "fast", *possible)))
        one = measure(what, sides, 1 if quick else 2, 1 if quick or what in LONG else 3, not quick)
        one |= {"took_s": time.perf_counter() - begin, "machine": machine(), "quick": quick}
        found = keep(what, one)
        print(what, json.dumps({key: found[what][key] for key in ("ratio_cpu", "cosine", "share_of_packed_gemm")}))
    if arguments.mini and ("mini" not in found or arguments.again):
        with tempfile.TemporaryDirectory(prefix="bindsearch-mini-") as scratch:
            found = keep("mini", measure_mini(arguments.scenes, Path(scratch)) | {"machine": machine()})
        print("mini", json.dumps(found["mini"]["overlap_at_10"]), json.dumps(found["mini"]["model_s"]))
    score(found)
    draw({name: each for name, each in found.items() if name != "mini"}, RESULTS / "towers.svg")


if __name__ == "__main__":
    main()
