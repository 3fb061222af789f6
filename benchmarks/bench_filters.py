"""Filtered search beside brute force over the rows that pass, and beside the unfiltered search, at any size.

python -m benchmarks.bench_filters --rows 100000              # benchmarks/results/filters-100000.json
python -m benchmarks.bench_filters --rows 3000000 --backends ivf-pq ivf-pq+bytes
python -m benchmarks.bench_filters --rows 50000 --costs       # measure bindsearch/search/costs.json anew

Filters are `size < x` on a column drawn evenly, so that 0.01, 1, 10 and 50 % of the rows pass; sets of queries and rows
are those of benchmarks/vectors.py. Both sides run in this process in turn, on one thread, CPU time: brute force gathers
the rows that pass, block by block, and scores them in float32 by BLAS and the best 40 again in float64; ours is
`SearchIndex.search_many` with its masks at hand. The predicate's own time (the first search of a filter) stands apart.
Indexes are those of bench_index where it has built them, else built here; "+bytes": with byte codes beside.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.bench_index import OURS, WITH_BYTES, WORK
from benchmarks.record import machine, spread, write_result, write_score
from benchmarks.vectors import QUERIES, SIZES, Law, write_rows
from bindsearch.index.build import build_index
from bindsearch.index.recipe import Recipe
from bindsearch.search import SearchIndex, open_index
from bindsearch.search.routes import Choice, search_segment

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float = NDArray[np.float32]
    Int = NDArray[np.int64]

SHARES = (0.0001, 0.01, 0.1, 0.5)
BATCHES = (1, 64)
K = 10
RUNS = 3
BUDGET_MS = 20.0
OVERLAP = 0.99
BLOCK = 4096


def open_or_build(folder: Path, rows: int, backend: str, row_dtype: str) -> SearchIndex:
    """Open the index of so many rows by a backend, built by its own defaults where it is not there."""
    path = WORK / str(rows) / f"{backend}-{row_dtype}" / "index"
    if not (path / "index.json").exists():
        path = folder / f"filters-{rows}" / f"{backend}-{row_dtype}"
    if not (path / "index.json").exists():
        store = write_rows(folder / str(rows), rows, Law())
        name = backend.removesuffix(WITH_BYTES)
        build_index(store, path, Recipe(name, row_dtype=row_dtype, byte_codes=name != backend))
    return open_index(path)


def cpu_ms(work: Callable[[], Any], runs: int) -> list[float]:
    """Give the CPU milliseconds of each of some runs, after one that is not counted."""
    work()
    times = []
    for _ in range(runs):
        begin = time.process_time()
        work()
        times.append((time.process_time() - begin) * 1e3)
    return times


def brute_force(index: SearchIndex, mask: NDArray[np.bool_], queries: Float) -> Int:
    """Give the ids of the best K rows that pass, (q, K); -1 where there are fewer."""
    backend = index.folder.snapshot.segments[0].index
    places = np.flatnonzero(mask)
    best = np.full((queries.shape[0], 0), -np.inf, dtype=np.float32)
    found = np.full((queries.shape[0], 0), -1, dtype=np.int64)
    for start in range(0, places.size, BLOCK):
        here = places[start : start + BLOCK]
        scores = queries @ backend._rows[here].astype(np.float32).T
        best, found = (
            np.concatenate([best, scores], axis=1),
            np.concatenate([found, np.broadcast_to(here, scores.shape)], axis=1),
        )
        if best.shape[1] > 4 * K:
            top = np.argpartition(-best, 4 * K, axis=1)[:, : 4 * K]
            best, found = np.take_along_axis(best, top, axis=1), np.take_along_axis(found, top, axis=1)
    answers = np.full((queries.shape[0], K), -1, dtype=np.int64)
    for row in range(queries.shape[0]):
        rows = backend._rows[found[row]].astype(np.float64)
        exact = (rows @ queries[row].astype(np.float64)).astype(np.float32)
        ids = backend.ids[found[row]]
        order = np.lexsort((ids, -exact))[:K]
        answers[row, : order.size] = ids[order]
    return answers


def overlap(found: list[Int], truth: Int) -> float:
    """Give the mean share of the true best that was found, over queries that have any."""
    shares = []
    for here, there in zip(found, truth, strict=True):
        real = there[there >= 0]
        if real.size:
            shares.append(float(np.isin(real, here).mean()))
    return float(np.mean(shares)) if shares else 1.0


def batches(queries: Float, size: int) -> Iterator[Float]:
    """Cut (q, d) queries into batches of at most `size` rows, in order."""
    for start in range(0, queries.shape[0], size):
        yield queries[start : start + size]


def measure(
    index: SearchIndex, queries: Float, truth: Int, size: int, timed: int, where: str, runs: int
) -> dict[str, Any]:
    """Measure one filter with one set in batches of one size: answers of all queries, times of the first `timed`."""
    selection = index.select(where=where)
    if selection is None:
        raise SystemExit(f"{where}: filters nothing")
    found: list[Int] = []
    routes: dict[str, int] = {}
    for part in batches(queries, size):
        for hits in index.search_many(part, K, where):
            found.append(hits.ids)
        for step in hits.plans[0].steps:
            routes[step.route] = routes.get(step.route, 0) + 1
    some = queries[:timed]
    ours = cpu_ms(lambda: [index.search_many(part, K, where) for part in batches(some, size)], runs)
    plain = cpu_ms(lambda: [index.search_many(part, K) for part in batches(some, size)], runs)
    theirs = cpu_ms(lambda: brute_force(index, selection.masks[0], queries[:size]), runs)
    return {
        "survivors": selection.count,
        "routes": routes,
        "overlap_at_10": overlap(found, truth),
        "ours_ms": spread([each / len(some) for each in ours]),
        "unfiltered_ms": spread([each / len(some) for each in plain]),
        "brute_force_ms": spread([each / size for each in theirs]),
    }


def predicate_ms(index: SearchIndex, where: str) -> dict[str, float]:
    """Measure a filter that was not asked before, and the same again."""
    begin = time.process_time()
    index.select(where=where)
    first = time.process_time()
    index.select(where=where)
    return {"first": (first - begin) * 1e3, "again": (time.process_time() - first) * 1e3}


def measure_backend(
    folder: Path, rows: int, backend: str, row_dtype: str, timed: dict[int, int], truths: dict[tuple[str, str], Int]
) -> list[dict[str, Any]]:
    """Measure all filters, sets and batches on one index; true answers are found once and kept in `truths`."""
    index = open_or_build(folder, rows, backend, row_dtype)
    found = []
    for share in SHARES:
        where = f"size < {round(share * SIZES)}"
        predicate = predicate_ms(index, where)
        selection = index.select(where=where)
        if selection is None:
            raise SystemExit(f"{where}: filters nothing")
        for kind in QUERIES:
            queries = Law().queries(kind, max(timed.values()), "fresh")
            if (where, kind) not in truths:
                answers = [brute_force(index, selection.masks[0], part) for part in batches(queries, BATCHES[-1])]
                truths[where, kind] = np.concatenate(answers)
            for size in BATCHES:
                row = {"backend": backend, "row_dtype": row_dtype, "share": share, "set": kind, "batch": size}
                measured = measure(index, queries, truths[where, kind], size, timed[size], where, RUNS)
                row |= {"queries": len(queries), "predicate_ms": predicate, **measured}
                row["limit_ms"] = max(row["unfiltered_ms"]["median"], BUDGET_MS)
                found.append(row)
                print(
                    f"{backend:12} {share:7.2%} {kind:6} B={size:<3} overlap {row['overlap_at_10']:.4f} "
                    f"ours {row['ours_ms']['median']:8.3f} ms, unfiltered {row['unfiltered_ms']['median']:8.3f}, "
                    f"brute force {row['brute_force_ms']['median']:8.3f}, predicate {predicate['first']:.1f} ms, "
                    f"{row['routes']}",
                    flush=True,
                )
    return found


# ---- costs.json ------------------------------------------------------------------------------------------------------

GRID_SHARES = (0.001, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.45, 0.55, 0.7, 0.85, 1.0)
GRID_QUERIES = (1, 4, 16, 64)
COSTED = (("flat", "float32"), ("flat", "float16"), ("faiss-flat", "float32"), ("bytes", "float16"))


def measure_costs(folder: Path, rows: int) -> dict[str, Any]:
    """Measure gathering and masking over a grid of shares and numbers of queries."""
    found: dict[str, Any] = {"survivors": {}, "masked": {}}
    for backend, row_dtype in COSTED:
        segment = open_or_build(folder, rows, backend, row_dtype).folder.snapshot.segments[0]
        if backend == "flat":
            one, many = (_timed(segment, 1.5 / rows, size, "rows") for size in (1, GRID_QUERIES[-1]))
            each = max(0.0, (many - one) / (GRID_QUERIES[-1] - 1))
            table = _cost_table(segment, "rows", max(0.0, one - each), each)
            found["survivors"][row_dtype] = table
        found["masked"][f"{backend}/{row_dtype}"] = _cost_table(segment, "mask", 0.0, 0.0)
    facts = machine()
    found["patience_ms"] = BUDGET_MS / 2  # a forecast may be off by a factor of two
    found["measured"] = {name: str(facts[name]) for name in ("processor", "commit")} | {"rows": str(rows)}
    return found


def _cost_table(segment: Any, route: str, search_s: float, query_s: float) -> dict[str, Any]:
    """Measure a route over the grid; what is paid beside the rows is given and taken off."""
    count, dim = segment.index.ids.shape[0], segment.index.dim
    lines = []
    for size in GRID_QUERIES:
        times = [_timed(segment, share, size, route) - search_s - size * query_s for share in GRID_SHARES]
        lines.append([round(max(0.0, each) * 1e9 / (count * dim), 6) for each in times])
        print(f"{segment.index.name} {segment.index.row_dtype} {route} B={size}: {lines[-1]}", flush=True)
    shares, table = list(GRID_SHARES), lines
    if route == "rows":  # nothing passes, nothing is read
        shares, table = [0.0, *shares], [[0.0, *line] for line in lines]
    fixed = {"search_ns": round(search_s * 1e9), "query_ns": round(query_s * 1e9)}
    return {"shares": shares, "queries": list(GRID_QUERIES), "ns": table, **fixed}


def _timed(segment: Any, share: float, size: int, route: str) -> float:
    """Give the CPU seconds of a search of a segment by a route, the least of three."""
    rng = np.random.default_rng(round(1e4 * share))
    count = segment.index.ids.shape[0]
    mask = np.zeros(count, dtype=bool)
    mask[rng.permutation(count)[: max(1, round(share * count))]] = True
    queries = Law().queries("offset", size, "tune")
    return min(cpu_ms(lambda: search_segment(segment, queries, K, mask, Choice(route, ""), {}), 3)) * 1e-3


def main() -> None:
    """Measure, write the result and, from 1M rows on, the scoreboard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/vectors"))
    parser.add_argument("--backends", nargs="+", default=["bytes", OURS, f"{OURS}{WITH_BYTES}"])
    parser.add_argument("--row-dtype", default="float16")
    parser.add_argument("--queries", type=int, nargs=2, default=[32, 256], help="timed at batch 1 and at batch 64")
    parser.add_argument("--costs", action="store_true", help="measure bindsearch/search/costs.json and stop")
    options = parser.parse_args()
    if options.costs:
        path = Path(__file__).parent.parent / "bindsearch" / "search" / "costs.json"
        text = json.dumps(measure_costs(options.folder, options.rows), indent=1)
        lines = re.sub(r"\[\s+([^\[\]]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
        path.write_text(lines + "\n", encoding="utf-8")
        return
    timed = dict(zip(BATCHES, options.queries, strict=True))
    truths: dict[tuple[str, str], Int] = {}
    found = [
        row
        for backend in options.backends
        for row in measure_backend(options.folder, options.rows, backend, options.row_dtype, timed, truths)
    ]
    worst = min(row["overlap_at_10"] for row in found)
    slowest = max(row["ours_ms"]["median"] / row["limit_ms"] for row in found)
    name = f"filters-{options.rows}"
    write_result(
        name, {"rows": options.rows, "k": K, "measured": found, "worst_overlap": worst, "slowest_share": slowest}
    )
    print(f"worst overlap {worst:.4f} (at least {OVERLAP}), slowest {slowest:.3f} of what is allowed")
    if options.rows >= 1_000_000:
        command = f"python -m benchmarks.bench_filters --rows {options.rows}"
        at = f"filters at {options.rows:,}"
        write_score(f"{at}: worst overlap_at_10", worst, "share", f"at least {OVERLAP}", command)
        write_score(f"{at}: slowest, of max(unfiltered, {BUDGET_MS:g} ms)", slowest, "share", "at most 1", command)


if __name__ == "__main__":
    main()
