"""Exact search beside FAISS's IndexFlatIP: time a query, rows read in full, every answer compared.

python -m benchmarks.bench_exact                                      # 100,000 rows, one thread
python -m benchmarks.bench_exact --rows 3000000 --threads 2 --queries 1000 --rounds 3
python -m benchmarks.bench_exact --as-drawn                           # rows in no order, instead of by likeness

The sides are processes of their own that run in turn, as they do not fit into memory together at 3M x 1024:

    shipped    IndexFlatIP of float32 rows, batches of 100, as the wheel comes
    blas       the same with FAISS's switch to BLAS from three queries on, batches of 256
    flat       bindsearch's flat path over the stored rows: 8 single queries, a batch of 64
    bytes      bindsearch's proven search by byte codes: batches of 1, 64 and 256
    limits     what the machine can: GB/s of reading memory, products of int8 numbers a second

Rows and the three sets of queries: benchmarks/vectors.py; rows are float16, sorted by likeness as the lists of
an IVF index sort them (--as-drawn: not), and FAISS is given the same numbers. Every answer of `bytes` is compared with
those of `blas`: an id that is not among FAISS's must have FAISS's score to within float32's rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.record import spread, write_result, write_score
from benchmarks.resources import Clock, run_watched
from benchmarks.vectors import BLOCK, QUERIES, Law, blocks_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

COMMAND = "python -m benchmarks.bench_exact"
WORK = Path("runs/exact")
K = 10
BATCHES = (1, 64, 256)
SINGLES = 24
CENTRES = 1024
TIE = 1e-6
SIDES = ("shipped", "blas", "flat", "bytes", "limits")
BARS = {"64": 45.0, "256": 90.0, "1": 3.0}
"""Batch -> how many times fewer milliseconds a query than `shipped` at two cores and 3M rows."""
FULL = 3_000_000


# ---- rows ------------------------------------------------------------------------------------------------------------


def prepare(rows: int, in_order: bool) -> Path:
    """Write rows, ids and byte codes, unless they are there; gives their folder."""
    from bindsearch.index.byte_codes import ByteCodes

    folder = WORK / f"{rows}-{'sorted' if in_order else 'drawn'}"
    if (folder / "took.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    law = Law()
    shape = (rows, law.dim)
    drawn = np.lib.format.open_memmap(folder / "drawn.npy", mode="w+", dtype=np.float16, shape=shape)
    for block, count in blocks_of(rows):
        start = block * BLOCK
        drawn[start : start + count] = law.rows(block, count)
    order = by_likeness(drawn) if in_order else np.arange(rows)
    stored = np.lib.format.open_memmap(folder / "vectors.npy", mode="w+", dtype=np.float16, shape=shape)
    for start in range(0, rows, 1 << 16):
        stored[start : start + (1 << 16)] = drawn[order[start : start + (1 << 16)]]
    stored.flush()
    (folder / "drawn.npy").unlink()
    np.save(folder / "ids.npy", order.astype(np.int64))
    np.save(folder / "order.npy", np.argsort(order, kind="stable"))
    asking = np.stack([law.queries(kind, 500, "tune").mean(axis=0) for kind in QUERIES])
    with Clock() as clock:
        codes = ByteCodes.build(folder, stored, asking=asking)
    took = {"build_cpu_s": clock.cpu_s, "beside_rows_bytes": codes.nbytes, "rows_bytes": int(stored.nbytes)}
    (folder / "took.json").write_text(json.dumps(took), encoding="utf-8")
    return folder


def by_likeness(rows: NDArray[np.float16]) -> NDArray[np.int64]:
    """Sort rows by the sampled row that each is most like."""
    centres = rows[:: max(1, rows.shape[0] // CENTRES)][:CENTRES].astype(np.float32)
    nearest = np.empty(rows.shape[0], dtype=np.int64)
    for start in range(0, rows.shape[0], 1 << 14):
        nearest[start : start + (1 << 14)] = (rows[start : start + (1 << 14)].astype(np.float32) @ centres.T).argmax(1)
    return np.argsort(nearest, kind="stable")


# ---- sides, each in a process of its own -----------------------------------------------------------------------------


def time_batches(
    queries: NDArray[np.float32], batch: int, search: Callable[[NDArray[np.float32]], Any]
) -> tuple[dict[str, float], list[Any]]:
    """Search batch by batch, after one to warm up; gives milliseconds a query and the answers."""
    search(queries[:batch])
    answers = []
    with Clock() as clock:
        for start in range(0, queries.shape[0], batch):
            answers.append(search(queries[start : start + batch]))
    each = 1e3 / queries.shape[0]
    return {"cpu_ms": clock.cpu_s * each, "wall_ms": clock.wall_s * each, "queries": queries.shape[0]}, answers


def side_faiss(folder: Path, queries: dict[str, Any], threads: int, blas: bool) -> dict[str, Any]:
    """Measure IndexFlatIP; the answers of `blas` are kept for comparing."""
    from bindsearch.index.faiss_index import load_faiss

    faiss = load_faiss()
    faiss.omp_set_num_threads(threads)
    rows, ids = np.load(folder / "vectors.npy", mmap_mode="r"), np.load(folder / "ids.npy")
    index = faiss.IndexFlatIP(rows.shape[1])
    for start in range(0, rows.shape[0], 1 << 16):
        index.add(rows[start : start + (1 << 16)].astype(np.float32))
    batch = 256 if blas else 100
    if blas:
        faiss.cvar.distance_compute_blas_threshold = 3 * rows.shape[1]
    found: dict[str, Any] = {}
    for kind, asked in queries.items():
        some = asked if blas else asked[:100]
        times, answers = time_batches(some, batch, lambda part: index.search(part, K))
        found[kind] = {str(batch): times}
        if blas:
            scores = np.concatenate([answer[0] for answer in answers])
            places = np.concatenate([answer[1] for answer in answers])
            np.savez(folder / f"blas-{kind}.npz", scores=scores, ids=ids[places])
    return found


def side_flat(folder: Path, queries: dict[str, Any]) -> dict[str, Any]:
    """Measure the flat path: 8 single queries against a batch of 64."""
    from bindsearch.index.faiss_index import FaissFlatIndex
    from bindsearch.index.flat import FlatIndex

    rows = np.load(folder / "vectors.npy", mmap_mode="r")
    kind = FaissFlatIndex if rows.dtype == np.float32 else FlatIndex
    index = kind(rows, np.load(folder / "ids.npy"), np.load(folder / "order.npy"))
    found: dict[str, Any] = {}
    for name, asked in queries.items():
        singles, _ = time_batches(asked[:8], 1, lambda part: index.search(part, K))
        batch, _ = time_batches(asked[:64], 64, lambda part: index.search(part, K))
        found[name] = {"1": singles, "64": batch, "batch of 64 / 8 singles": 8 * batch["cpu_ms"] / singles["cpu_ms"]}
    return found


def side_bytes(folder: Path, queries: dict[str, Any]) -> dict[str, Any]:
    """Measure the proven search, and compare every answer with those of `blas`."""
    from bindsearch.index.byte_index import BytesIndex

    with Clock() as clock:
        index = BytesIndex.open(folder)
    rows, found = index._rows, {"open_ms": {"wall_ms": clock.wall_s * 1e3, "cpu_ms": clock.cpu_s * 1e3}}
    for asked in queries.values():
        index.search_exact(asked, K)  # what is mapped is in memory from here on, as FAISS's rows are
    for kind, asked in queries.items():
        found[kind] = {}
        for batch in BATCHES:
            some = asked[:SINGLES] if batch == 1 else asked
            times, answers = time_batches(some, batch, lambda part: index.search_exact(part, K))
            reports = [answer[2] for answer in answers]
            touched = np.concatenate([report.rows_touched_full for report in reports])
            scores = np.concatenate([answer[0] for answer in answers])
            ids = np.concatenate([answer[1] for answer in answers])
            found[kind][str(batch)] = {
                **times,
                "rows_touched_full": {"mean": float(touched.mean()), "most": int(touched.max())},
                "widened": float(np.concatenate([report.widened for report in reports]).mean()),
                "overlap_at_10": overlap(folder / f"blas-{kind}.npz", some, scores, ids, (rows, index)),
            }
    return found


def overlap(
    truth: Path, queries: NDArray[np.float32], scores: NDArray[np.float32], ids: NDArray[np.int64], held: Any
) -> float:
    """Give the share of FAISS's ten best that are among ours, where one whose score ties with the tenth counts."""
    rows, index = held
    with np.load(truth, allow_pickle=False) as kept:
        theirs = kept["ids"][: queries.shape[0]]
    units = queries.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    hits = 0
    for place in range(queries.shape[0]):
        lost = np.setdiff1d(theirs[place], ids[place])
        true = rows[index.positions(lost)].astype(np.float64) @ units[place]
        hits += K - int((true > float(scores[place, -1]) + TIE).sum())
    return hits / (K * queries.shape[0])


def side_limits(threads: int) -> dict[str, Any]:
    """Measure what the machine can on one thread: reading memory, products of int8 numbers."""
    from bindsearch.index.byte_table import Multiplier, pack

    rng = np.random.default_rng(0)
    words = np.ones(1 << 26, dtype=np.int64)  # 512 MB: beyond any cache
    codes = rng.integers(-127, 128, (512, 1024), dtype=np.int8)  # in L2
    packed, multiplier = pack(rng.integers(-127, 128, (64, 1024), dtype=np.int8)), Multiplier()
    stream, product = [], []
    for _ in range(5):
        with Clock() as clock:
            words.max()
        stream.append(words.nbytes / clock.cpu_s / 1e9)
        with Clock() as clock:
            for _ in range(200):
                multiplier.multiply(codes, packed, 64)
        product.append(200 * 512 * 1024 * 64 / clock.cpu_s / 1e9)
    return {"threads": threads, "stream_gb_s": max(stream), "product_gmac_s": max(product)}


def run_side(side: str, folder: Path, output: Path, threads: int, count: int) -> None:
    """Measure one side and write its JSON."""
    law = Law()
    queries = {kind: law.queries(kind, count, "fresh") for kind in QUERIES}
    if threads == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # ours takes as many threads as there are cores
    if side in ("shipped", "blas"):
        found = side_faiss(folder, queries, threads, side == "blas")
    elif side == "flat":
        found = side_flat(folder, queries)
    else:
        found = side_bytes(folder, queries) if side == "bytes" else side_limits(threads)
    output.write_text(json.dumps(found), encoding="utf-8")


# ---- both sides ------------------------------------------------------------------------------------------------------


def run(rows: int, threads: int, count: int, rounds: int, in_order: bool) -> dict[str, Any]:
    """Prepare the rows, run the sides in turn, gather medians."""
    folder = prepare(rows, in_order)
    environment = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    taken: dict[str, list[Any]] = {side: [] for side in SIDES}
    memory: dict[str, Any] = {}
    for at in range(rounds):
        for side in SIDES:
            output = folder / f"{side}-{at}.json"
            command = [sys.executable, "-m", "benchmarks.bench_exact", "--side", side, "--folder", str(folder)]
            command += ["--output", str(output), "--threads", str(threads), "--queries", str(count)]
            memory[side] = run_watched(command, environment)["peak_anonymous_bytes"]
            taken[side].append(json.loads(output.read_text(encoding="utf-8")))
    result: dict[str, Any] = {
        "rows": rows,
        "threads": threads,
        "order": "by likeness" if in_order else "as drawn",
        "unit": "milliseconds a query; CPU time sums over threads",
        "peak_anonymous_bytes": memory,
        "limits": taken["limits"][0],
        "open_ms": spread([one.pop("open_ms")["wall_ms"] for one in taken["bytes"]]),
        **json.loads((folder / "took.json").read_text(encoding="utf-8")),
        "sets": {kind: _gather(kind, taken) for kind in QUERIES},
    }
    for figures in result["sets"].values():
        _compare(figures, result)
    return result


def _gather(kind: str, taken: dict[str, list[Any]]) -> dict[str, Any]:
    """Take medians over the rounds of one set of queries."""
    figures: dict[str, Any] = {}
    for side in SIDES[:-1]:
        parts = [one[kind] for one in taken[side]]
        figures[side] = {
            batch: {name: statistics.median(part[batch][name] for part in parts) for name in ("cpu_ms", "wall_ms")}
            for batch in parts[0]
            if batch.isdigit()
        }
        for batch, figure in figures[side].items():
            last = parts[-1][batch]
            figure.update({name: last[name] for name in last if name not in figure})
    figures["flat"]["batch of 64 / 8 singles"] = max(one[kind]["batch of 64 / 8 singles"] for one in taken["flat"])
    return figures


def _compare(figures: dict[str, Any], result: dict[str, Any]) -> None:
    """Put ratios and fractions of the limits beside the times of one set. Overwrites figures."""
    limits, dim = result["limits"], Law().dim
    for name, figure in figures["bytes"].items():
        for clock in ("cpu_ms", "wall_ms"):
            figure[f"shipped / ours, {clock}"] = figures["shipped"]["100"][clock] / figure[clock]
            figure[f"blas / ours, {clock}"] = figures["blas"]["256"][clock] / figure[clock]
        bound = result["rows"] * dim / (limits["stream_gb_s"] if name == "1" else limits["product_gmac_s"]) / 1e6
        figure["ms of all codes at the limit"] = bound
        figure["limit / ours, cpu"] = bound / figure["cpu_ms"]


def report(result: dict[str, Any]) -> None:
    """Write JSON and scoreboard, and print what matters."""
    name = f"exact-{result['rows']}" + ("" if result["order"] == "by likeness" else "-drawn")
    write_result(name, result)
    for kind, figures in result["sets"].items():
        shipped, blas = figures["shipped"]["100"], figures["blas"]["256"]
        print(f"{kind}: shipped {shipped['cpu_ms']:.2f} ms, blas {blas['cpu_ms']:.2f} ms of CPU a query")
        for batch, figure in figures["bytes"].items():
            print(
                f"  batch {batch}: {figure['cpu_ms']:.3f} ms CPU, {figure['wall_ms']:.3f} wall; "
                f"{figure['shipped / ours, cpu_ms']:.1f} x shipped, {figure['blas / ours, cpu_ms']:.1f} x blas; "
                f"read {figure['rows_touched_full']['mean']:.0f} rows, overlap {figure['overlap_at_10']:.4f}, "
                f"{figure['limit / ours, cpu']:.2f} of the limit"
            )
            if result["rows"] == FULL and result["order"] == "by likeness":
                ratio = figure["shipped / ours, wall_ms" if result["threads"] > 1 else "shipped / ours, cpu_ms"]
                row = f"exact: IndexFlatIP as shipped / ours, batch {batch}, {kind}"
                write_score(row, ratio, "ratio", f">= {BARS[batch]:g}", f"{COMMAND} --rows {FULL}")


def main() -> None:
    """Run everything, or one side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--queries", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--as-drawn", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run_side(options.side, options.folder, options.output, options.threads, options.queries)
    else:
        report(run(options.rows, options.threads, options.queries, options.rounds, not options.as_drawn))


if __name__ == "__main__":
    main()
