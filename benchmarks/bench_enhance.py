"""The visual cache against the reference's loop: a batch of 256 embeddings moved towards their ten nearest of N images.

python -m benchmarks.bench_enhance --rows 100000       # a trial: results/enhance-100000.json
python -m benchmarks.bench_enhance                     # 3,000,000 x 1024: results/enhance.json, scoreboard

The reference answers rightly for one query alone, so that a batch is a loop: IndexFlatIP search, one reconstruct a
neighbour, the blend. Ours takes the batch at once over one index (lists of product codes, byte codes beside the rows):
exactly, by the byte codes; and approximately, with the settings that `cache tune` chose on other queries for an overlap
of 0.99 and moved embeddings within 1e-3 of exact. Each part runs in a process of its own, with its resident memory (of
which mapped files may be dropped). Wall time counts on a quiet machine, CPU time on a busy one. Vectors and queries:
benchmarks/vectors.py; queries are the hard ones, from beyond the rows' region, unless --queries says otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.record import spread, write_result, write_score
from benchmarks.vectors import QUERIES, Law, write_queries, write_rows

if TYPE_CHECKING:
    from bindsearch.types import FloatArray

COMMAND = "python -m benchmarks.bench_enhance"
FULL, BATCH = 3_000_000, 256
K, T, W = 10, 20.0, 0.5
PARTS = ("reference", "exact", "approximate")
OVERLAP, ERROR, TUNED_ON = 0.99, 1e-3, 512
LOOPED = 32
"""Queries that the reference's loop is timed on: each takes the same work."""
RUNS = 5


def clock(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Time a call: wall and CPU seconds, and what it gave."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return time.perf_counter() - wall, time.process_time() - cpu, found


def memory() -> dict[str, int]:
    """Say what this process holds in memory now: all of it, and what is not mapped from files; and its peak."""
    said = {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    rollup = Path("/proc/self/smaps_rollup")
    if rollup.is_file():
        for line in rollup.read_text(encoding="ascii").splitlines():
            name = {"Rss:": "resident_bytes", "Anonymous:": "anonymous_bytes"}.get(line.split()[0])
            if name:
                said[name] = int(line.split()[1]) * 1024
    return said


def reference(store: Path, queries: FloatArray) -> dict[str, Any]:
    """Run the loop: one query at a time, as the original code must be called."""
    import faiss

    from bindsearch.store import EmbeddingStore

    index = faiss.IndexFlatIP(queries.shape[1])
    for _, vectors, _ in EmbeddingStore.open(store).iter_blocks(16384):
        index.add(vectors)

    def one(query: FloatArray) -> FloatArray:
        sims, places = index.search(query[None], K)
        raised = np.exp(T * (sims[0] - sims[0].max()))
        found = (raised / raised.sum()) @ np.stack([index.reconstruct(int(place)) for place in places[0]])
        moved = (1 - W) * query + W * found / np.linalg.norm(found)
        return np.asarray(moved / np.linalg.norm(moved), dtype=np.float32)

    one(queries[0])
    looped = queries[:LOOPED]
    times = [clock(lambda: np.stack([one(query) for query in looped])) for _ in range(3)]
    share = len(looped)
    return {
        "wall_ms_a_query": spread([1e3 * each[0] / share for each in times]),
        "cpu_ms_a_query": spread([1e3 * each[1] / share for each in times]),
        "memory": memory(),
        "rows": np.stack([one(query) for query in looped]).tolist(),
    }


def build(store: Path, folder: Path, queries: Path) -> dict[str, Any]:
    """Build the index and choose its settings, where that is not done yet; gives what it took."""
    from bindsearch.cache.recipe import Tuning
    from bindsearch.cache.tuning import retune_cache
    from bindsearch.index.build import build_index
    from bindsearch.index.recipe import Recipe

    done = folder.with_suffix(".json")
    if done.exists():
        found: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        return found
    recipe = Recipe("ivf-pq", "float16", byte_codes=True)
    built = clock(lambda: build_index(store, folder, recipe, force=True, queries=[queries]))[:2]
    tuned = clock(lambda: retune_cache(folder, [queries], Tuning(overlap=OVERLAP, error=ERROR, count=TUNED_ON)))
    sizes = {str(path.name): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    found = {
        "built_s": {"wall": built[0], "cpu": built[1]},
        "tuned_s": {"wall": tuned[0], "cpu": tuned[1]},
        "tuned": tuned[2],
        "bytes": {name: size for name, size in sizes.items() if size > 1 << 20},
        "memory": memory(),
    }
    done.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def ours(folder: Path, exact: bool, queries: FloatArray) -> dict[str, Any]:
    """Enhance the whole batch at once."""
    from bindsearch.cache import VisualCache

    cache = VisualCache.open(folder)
    before, cpu, _ = clock(lambda: cache.enhance(queries, K, T, W, exact=exact))
    times = [clock(lambda: cache.enhance(queries, K, T, W, exact=exact)) for _ in range(RUNS)]
    found = cache.retrieve(queries, K, T, exact=exact)
    held = memory()
    true = cache.retrieve(queries, K, T, exact=True)
    moved, right = times[0][2], cache.enhance(queries, K, T, W, exact=True)
    overlaps = np.array([np.isin(a, b).mean() for a, b in zip(found.ids, true.ids, strict=True)])
    cosines = (moved.astype(np.float64) * right).sum(axis=1)
    return {
        "wall_ms_a_query": spread([1e3 * each[0] / len(queries) for each in times]),
        "cpu_ms_a_query": spread([1e3 * each[1] / len(queries) for each in times]),
        "first_call_s": {"wall": before, "cpu": cpu},
        "overlap": float(overlaps.mean()),
        "worst_cosine": float(cosines.min()),
        "mean_cosine": float(cosines.mean()),
        "memory": held,
        "rows": right[:LOOPED].tolist(),
    }


def run_part(arguments: argparse.Namespace, part: str) -> dict[str, Any]:
    """Run one part in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_enhance", "--part", part, "--queries", arguments.queries]
    command += ["--rows", str(arguments.rows), "--dim", str(arguments.dim), "--folder", str(arguments.folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{part}: ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure, print, write JSON, and at the full size scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=FULL)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--folder", type=Path, default=Path("runs/enhance"))
    parser.add_argument("--queries", choices=tuple(QUERIES), default="hard")
    parser.add_argument("--part", choices=("build", *PARTS), help="of the measurement, in this process")
    arguments = parser.parse_args()
    law = Law(dim=arguments.dim)
    home = arguments.folder / f"{arguments.rows}x{arguments.dim}"
    home.mkdir(parents=True, exist_ok=True)
    store, index = write_rows(home / "embeddings", arguments.rows, law), home / f"index-{arguments.queries}"
    queries = law.queries(arguments.queries, BATCH, "fresh")
    if arguments.part == "reference":
        print(json.dumps(reference(store, queries)))
    elif arguments.part == "build":
        asked = write_queries(arguments.folder / f"queries-{arguments.dim}", TUNED_ON, law)
        print(json.dumps(build(store, index, asked["tune", arguments.queries])))
    elif arguments.part:
        print(json.dumps(ours(index, arguments.part == "exact", queries)))
    else:
        built = run_part(arguments, "build")
        finish(arguments, {part: run_part(arguments, part) for part in PARTS}, built)


def finish(arguments: argparse.Namespace, parts: dict[str, Any], built: dict[str, Any]) -> None:
    """Print and keep what was measured."""
    result = {"rows": arguments.rows, "dim": arguments.dim, "queries": arguments.queries, "built": built}
    result |= compare(parts)
    print(json.dumps(result, indent=1))
    full = (arguments.rows, arguments.dim) == (FULL, 1024)
    ending = "" if arguments.queries == "hard" else f"-{arguments.queries}"
    write_result("enhance" + ending if full else f"enhance-{arguments.rows}{ending}", result)
    if not full:
        return
    for name, target in (("exact", 150), ("approximate", 700)):
        found = result["parts"][name]
        title = f"enhance: batch of {BATCH} over {FULL:,} x 1024, {name}, against the reference's loop{ending}"
        write_score(title, found["times_faster_wall"], "times", f">= {target}", COMMAND, found["wall_ms_a_query"])


def compare(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Set each part beside the reference: how many times faster, and whether the vectors agree."""
    loop = parts["reference"]
    rows = np.array(loop.pop("rows"))
    for found in parts.values():
        for clock_name in ("wall", "cpu"):
            name = f"{clock_name}_ms_a_query"
            found[f"times_faster_{clock_name}"] = round(loop[name]["median"] / found[name]["median"], 1)
        if "rows" in found:
            found["exact_against_reference"] = float(np.abs(np.array(found.pop("rows")) - rows).max())
    return {"batch": BATCH, "k": K, "threads": os.environ.get("OMP_NUM_THREADS", "all"), "parts": parts}


if __name__ == "__main__":
    main()
