"""The index beside FAISS's IndexFlatIP: build, memory, bytes, opening, and overlap against queries a second.

python -m benchmarks.bench_index                                     # 100,000 rows: all stages, report
python -m benchmarks.bench_index run --rows 3000000 --rounds 2       # goes on where it was interrupted
python -m benchmarks.bench_index run --rows 100000 --backend ivf-rabitq
python -m benchmarks.bench_index report                              # results/index.json, plots, scoreboard
python -m benchmarks.bench_index law                                 # bindsearch/index/growth.json

Both sides run in turn, each a process of its own on one thread: they do not fit into memory together at 3M x 1024.
Rows, their cross-modal queries and a hard set: benchmarks/vectors.py. Settings are chosen by the planner's tuner on
the draw "tune" of each set; what is reported was measured on the draw "fresh". CPU time decides; wall time stands
beside it. A stage's figures lie in WORK/ROWS/NAME/STAGE.json; delete one to measure it again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.index_plots import draw_growth, draw_overlap
from benchmarks.record import drop_scores, machine, write_result, write_score
from benchmarks.resources import run_watched
from benchmarks.vectors import QUERIES, Law, write_queries, write_rows
from bindsearch.index.growth import FILE as GROWTH
from bindsearch.index.growth import exponent

COMMAND = "python -m benchmarks.bench_index"
WORK = Path("runs/index")
VECTORS = Path("runs/vectors")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
SCALES = {
    "flat": "stream",
    "faiss-flat": "stream",
    "bytes": "stream",
    "rabitq": "code",
    "ivf-rabitq": "code",
    "ivf-pq": "code",
}
"""Backend -> the rate that its time depends on most; others: products."""
BARS = {("in", "0.97"): 1000, ("offset", "0.97"): 1000, ("in", "0.99"): 750, ("offset", "0.99"): 750}
BARS |= {("hard", "0.98"): 300}
WITH_BYTES = "+bytes"
"""Ending of a backend's name where byte codes for exact search stand beside it, which also score its candidates."""
FULL = 3_000_000
REPORTED_FROM = 100_000
"""Smaller sizes serve the planner's law and trials alone."""
OURS = "ivf-pq"
"""The backend that headline figures are of."""


def run(rows: int, backend: str, row_dtype: str, rounds: int, held_out: int, byte_codes: bool = False) -> Path:
    """Run every stage that has no figures yet; gives the folder of the figures."""
    law = Law()
    name = f"{backend}{WITH_BYTES if byte_codes else ''}-{row_dtype}"
    folder = WORK / str(rows) / name
    folder.mkdir(parents=True, exist_ok=True)
    store = write_rows(VECTORS / str(rows), rows, law)
    queries = write_queries(VECTORS / "queries", 2000, law)
    config: dict[str, Any] = {
        "dim": law.dim,
        "store": str(store),
        "index": str(folder / "index"),
        "truth": str(WORK / str(rows) / f"truth-{row_dtype}.npz"),
        "recipe": {"backend": backend, "row_dtype": row_dtype, "byte_codes": byte_codes},
        "tune": {kind: str(queries["tune", kind]) for kind in QUERIES},
        "held_out": held_out,
    }
    _stage(folder, "build", "build", config)
    config["settings"] = _stage(folder, "tune", "tune", config)["figures"]["sets"]
    _stage(folder, "open", "open", config)
    theirs = WORK / str(rows) / f"flat-{row_dtype}"
    theirs.mkdir(parents=True, exist_ok=True)
    for number in range(rounds):
        _stage(theirs, "flat", f"flat-{number}", config)
        _stage(folder, "ours", f"ours-{number}", config)
    return folder


def _stage(folder: Path, stage: str, name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Run one stage in a process of its own, or read what it found before."""
    path = folder / f"{name}.json"
    if not path.is_file():
        print(f"{folder}: {name}", flush=True)
        figures = folder / f"{name}.figures.json"
        command = [sys.executable, "-m", "benchmarks.index_stages", stage, str(figures), json.dumps(config)]
        took = run_watched(command, ONE_THREAD)
        whole = {"process": took, "machine": machine(), "figures": json.loads(figures.read_text(encoding="utf-8"))}
        draft = path.with_name(f"{path.name}.tmp-{os.getpid()}")
        draft.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        draft.replace(path)
        figures.unlink()
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def summary(folder: Path) -> dict[str, Any]:
    """Put the figures of a folder together: medians over the rounds, with their spread."""
    built, tuned, opened = (_read(folder / f"{name}.json") for name in ("build", "tune", "open"))
    rounds = [_read(path)["figures"]["sets"] for path in sorted(folder.glob("ours-*.json"))]
    dtype = folder.name.rsplit("-", 1)[1]
    theirs = [_read(path)["figures"]["sets"] for path in sorted((folder.parent / f"flat-{dtype}").glob("flat-*.json"))]
    sets: dict[str, Any] = {}
    for kind in QUERIES:
        base = {name: statistics.median(each[kind][name] for each in theirs) for name in theirs[0][kind]}
        targets = {}
        for target, first in rounds[0][kind]["targets"].items():
            same = [each[kind]["targets"][target] for each in rounds]
            times = [each["batch_ms"] for each in same]
            batch = statistics.median(times)
            targets[target] = {
                "settings": first["settings"],
                "promised": first["met"],
                "overlap_at_10": round(first["overlap_at_10"], 4),
                "batch_ms": round(batch, 4),
                "batch_ms_range": [round(min(times), 4), round(max(times), 4)],
                "alone_ms": round(statistics.median(each["alone_ms"] for each in same), 4),
                "x shipped": round(base["shipped_100_ms"] / batch, 1),
                "x blas": round(base["blas_500_ms"] / batch, 1),
            }
        sets[kind] = {"flat": base, "targets": targets, "curve": rounds[0][kind]["curve"]}
    figures = built["figures"]
    return {
        "rows": figures["rows"],
        "build": {
            "cpu_min": round(built["process"]["cpu_s"] / 60, 3),
            "wall_min": round(built["process"]["wall_s"] / 60, 3),
            "peak_anonymous_gb": round(built["process"]["peak_anonymous_bytes"] / 1e9, 3),
        },
        "bytes": {name: figures[name] for name in ("files", "beside_rows_bytes", "read_bytes")},
        "tune": {"cpu_s": tuned["figures"]["cpu_s"], "truth_cpu_s": tuned["figures"]["truth_cpu_s"]},
        "open and first query": opened["figures"],
        "sets": sets,
        "machine": built["machine"],
    }


def report() -> dict[str, Any]:
    """Write results/index.json, its plots and the scoreboard from every folder of figures that is complete."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(WORK.glob("*/*/ours-0.json")):
        if int(path.parent.parent.name) >= REPORTED_FROM:
            found.setdefault(path.parent.name, {})[path.parent.parent.name] = summary(path.parent)
    if not found:
        raise SystemExit(f"{WORK}: no figures. Type: {COMMAND} run --rows 100000")
    growth = {name: _exponents(by_rows) for name, by_rows in found.items()}
    result = {"recipes": found, "growth": growth}
    path = write_result("index", result)
    draw_overlap(found, path.with_name("index_overlap.svg"))
    draw_growth(found, growth, path.with_name("index_growth.svg"))
    _score(found)
    return result


def _exponents(by_rows: dict[str, Any]) -> dict[str, float]:
    """Fit the powers of N, where there are two sizes at least."""
    sizes = sorted(by_rows, key=int)
    if len(sizes) < 2:
        return {}
    series = {
        "build CPU time": [by_rows[size]["build"]["cpu_min"] for size in sizes],
        "peak anonymous memory": [by_rows[size]["build"]["peak_anonymous_gb"] for size in sizes],
        "bytes beside the rows": [by_rows[size]["bytes"]["beside_rows_bytes"] for size in sizes],
    }
    for kind in QUERIES:
        for target in by_rows[sizes[0]]["sets"][kind]["targets"]:
            values = [by_rows[size]["sets"][kind]["targets"][target]["batch_ms"] for size in sizes]
            series[f"query time, {kind}, {target}"] = values
    return {
        name: round(exponent([(float(size), max(value, 1e-9)) for size, value in zip(sizes, values, strict=True)]), 3)
        for name, values in series.items()
    }


def _score(found: dict[str, dict[str, Any]]) -> None:
    """Write the headline figures of the planner's own choice at the full size."""
    best = found.get(f"{OURS}-float16", {}).get(str(FULL))
    if best is None:
        return
    command = f"{COMMAND} run --rows {FULL}"
    drop_scores(command)  # their names hold what was found
    write_score("index 3M: build", best["build"]["cpu_min"], "CPU minutes", "<= 12", command)
    write_score("index 3M: build, anonymous memory", best["build"]["peak_anonymous_gb"], "GB", "<= 4", command)
    write_score("index 3M: bytes beside the rows", best["bytes"]["beside_rows_bytes"] / 1e9, "GB", "<= 0.5", command)
    write_score("index 3M: open and first query", best["open and first query"]["ms"], "ms", "<= 60", command)
    for (kind, target), bar in BARS.items():
        figures = best["sets"][kind]["targets"][target]
        name = f"index 3M: {kind}, queries a second / IndexFlatIP, overlap {figures['overlap_at_10']:.3f}"
        write_score(name, figures["x shipped"], "ratio", f">= {bar} at overlap >= {target}", command)


def write_law() -> Path:
    """Write into growth.json of the planner what was measured here; recipes that were not measured stay as they are.

    The points of a recipe are of one machine, whose rates stand beside them: they are replaced together.
    """
    from bindsearch.index.rates import measure_rates

    rates = vars(measure_rates())
    recipes: dict[str, Any] = {}
    for path in sorted(WORK.glob("*/*/tune.json"), key=lambda each: int(each.parent.parent.name)):
        backend, dtype = path.parent.name.rsplit("-", 1)
        if backend.endswith(WITH_BYTES):
            continue
        tuned, built = _read(path)["figures"]["sets"], _read(path.with_name("build.json"))
        ms = {}
        for target in next(iter(tuned.values()))["targets"]:
            rows = [each["targets"][target] for each in tuned.values()]
            if all(each["met"] for each in rows):
                ms[target] = round(max(each["ms"] for each in rows), 5)
        if all(not each["settings"] for one in tuned.values() for each in one["targets"].values()):
            ms = {"1": max(ms.values())}
        for less, more in reversed(list(itertools.pairwise(ms))):  # what reaches more reaches less
            ms[less] = min(ms[less], ms[more])
        entry = recipes.setdefault(
            f"{backend} {dtype}",
            {"scales_with": SCALES.get(backend, "product"), "dim": Law().dim, "rates": rates, "points": []},
        )
        if ms:
            point = {"rows": int(path.parent.parent.name), "build_s": round(built["figures"]["cpu_s"], 3), "ms": ms}
            entry["points"].append(point)
    law = _read(GROWTH)
    law["recipes"] |= {name: entry for name, entry in recipes.items() if entry["points"]}
    GROWTH.write_text(json.dumps(law, indent=1) + "\n", encoding="utf-8")
    return GROWTH


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Run, report or write the law."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("all", "run", "report", "law"), default="all")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--backend", default=OURS)
    parser.add_argument("--row-dtype", default="float16")
    parser.add_argument("--byte-codes", action="store_true", help="with byte codes for exact search beside the rows")
    parser.add_argument("--rounds", type=int, default=3, help="times that both sides are measured, in turn")
    parser.add_argument("--held-out", type=int, default=1000, help="queries a set to tune on")
    arguments = parser.parse_args()
    if arguments.what in ("all", "run"):
        run(
            arguments.rows,
            arguments.backend,
            arguments.row_dtype,
            arguments.rounds,
            arguments.held_out,
            arguments.byte_codes,
        )
    if arguments.what in ("all", "report"):
        for name, by_rows in report()["recipes"].items():
            for rows, figures in by_rows.items():
                print(f"{name}, {rows} rows: built in {figures['build']['cpu_min']} CPU minutes")
                for kind, found in figures["sets"].items():
                    for target, each in found["targets"].items():
                        print(f"  {kind:<7} {target:<5} {each['overlap_at_10']:.4f}  {each['x shipped']} x shipped")
    if arguments.what == "law":
        print(f"wrote {write_law()}")


if __name__ == "__main__":
    main()
