"""The stages of `bench_index`, each a process of its own that writes one JSON file.

python -m benchmarks.index_stages STAGE OUTPUT.json '{"store": ..., "index": ..., ...}'

Both sides see the same rows: those that the index stores (float16), read from its vectors.npy; so that overlap compares
searches and not roundings. CPU time is of one thread, set by the caller's environment and by FAISS's own switch.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.resources import Clock
from benchmarks.vectors import QUERIES, Law

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float = NDArray[np.float32]

K = 10
BATCH = 500
SHIPPED_BATCH = 100
TARGETS = (0.9, 0.95, 0.97, 0.98, 0.99)
TIE = 1e-6
"""Scores of two programs that differ by less are one score: each rounds its own sum."""

Config = dict[str, Any]


def build(config: Config) -> dict[str, Any]:
    """Build the index from the shards of the store, knowing where queries come from: the draw "tune"."""
    from bindsearch.index.build import build_index
    from bindsearch.index.recipe import Recipe
    from bindsearch.index.sizes import stored_read_bytes

    with Clock() as clock:
        folder = build_index(
            config["store"],
            config["index"],
            Recipe(**config["recipe"]),
            force=True,
            queries=list(config["tune"].values()),
        )
    files = {name: file.size_bytes for part in folder.manifest.segments for name, file in part.files.items()}
    return {
        "cpu_s": clock.cpu_s,
        "wall_s": clock.wall_s,
        "rows": folder.count,
        "files": files,
        "beside_rows_bytes": sum(files.values()) - files["vectors.npy"] - files["items.parquet"],
        "read_bytes": stored_read_bytes(folder.manifest),
    }


def tune(config: Config) -> dict[str, Any]:
    """Choose settings for every target on the queries of the draw "tune", a set each."""
    from bindsearch.index.heldout import held_out
    from bindsearch.index.plan import knobs_of
    from bindsearch.index.snapshot import Snapshot
    from bindsearch.index.tune import Tuner, snapshot_search

    snapshot = Snapshot.open(Path(config["index"]))
    with Clock() as truth:
        samples = held_out(snapshot, list(config["tune"].values()), K, config["held_out"])
    kinds = {modality: kind for kind, modality in QUERIES.items()}
    found: dict[str, Any] = {}
    with Clock() as clock:
        for sample in samples:
            tuner = Tuner(snapshot_search(snapshot), sample, knobs_of(snapshot), K)
            tuned = {target: tuner(target) for target in TARGETS}
            found[kinds[sample.modality]] = {
                "targets": {
                    str(target): each.to_json(K) | {"met": each.chosen is not None, "curve": None}
                    for target, each in tuned.items()
                },
                "curve": tuned[TARGETS[-1]].to_json(K)["curve"],
            }
    return {"cpu_s": clock.cpu_s, "truth_cpu_s": truth.cpu_s, "sets": found}


def open_first(config: Config) -> dict[str, Any]:
    """Open the index and answer one query, imports done and the page cache warm."""
    import bindsearch.search  # noqa: F401
    from bindsearch.index.snapshot import Snapshot

    query = _fresh(config, "offset")[:1]
    path = Path(config["index"])
    Snapshot.open(path).search(query, K)
    times = []
    for _ in range(5):
        with Clock() as clock:
            Snapshot.open(path).search(query, K)
        times.append(clock.wall_s * 1e3)
    return {"ms": statistics.median(times), "least_ms": min(times), "most_ms": max(times)}


def ours(config: Config) -> dict[str, Any]:
    """Measure our side on fresh queries: every target's settings and the curve, in batches of 500 and alone."""
    from bindsearch.index.snapshot import Snapshot

    snapshot = Snapshot.open(Path(config["index"]))
    least = np.load(config["truth"])
    found: dict[str, Any] = {}
    for kind, tuned in config["settings"].items():
        queries = _fresh(config, kind)
        search = _ours(snapshot)
        known: dict[str, Any] = {}

        def at(settings: dict[str, int], alone: bool) -> dict[str, Any]:
            key = json.dumps([settings, alone], sort_keys=True)
            if key not in known:  # noqa: B023
                known[key] = _measure(search, queries, settings, least[kind], alone)  # noqa: B023
            return known[key]  # noqa: B023

        found[kind] = {
            "targets": {
                target: at(each["settings"], True) | {"met": each["met"], "settings": each["settings"]}
                for target, each in tuned["targets"].items()
            },
            "curve": [at(each["settings"], False) | {"settings": each["settings"]} for each in tuned["curve"]],
        }
    return {"sets": found}


def _ours(snapshot: Any) -> Callable[[Float, dict[str, int]], Float]:
    def search(queries: Float, settings: dict[str, int]) -> Float:
        scores: Float = snapshot.search(queries, K, settings=settings)[0]
        return scores

    return search


def _measure(
    search: Callable[[Float, dict[str, int]], Float],
    queries: Float,
    settings: dict[str, int],
    least: Float,
    alone: bool,
) -> dict[str, Any]:
    """Measure overlap and CPU milliseconds a query, in one batch and (where wanted) one by one."""
    search(queries[:BATCH], settings)  # pages and caches
    rounds = []
    for _ in range(3):
        with Clock() as clock:
            scores = search(queries[:BATCH], settings)
        rounds.append(clock.cpu_s / len(scores) * 1e3)
    right = np.minimum((scores >= least[:BATCH, None] - TIE).sum(axis=1), K) / K
    result = {
        "overlap_at_10": float(right.mean()),
        "batch_ms": statistics.median(rounds),
        "batch_ms_least": min(rounds),
    }
    if alone:
        singles = []
        for row in range(64):
            with Clock() as clock:
                search(queries[row : row + 1], settings)
            singles.append(clock.cpu_s * 1e3)
        result |= {"alone_ms": statistics.median(singles), "alone_p95_ms": float(np.quantile(singles, 0.95))}
    return result


def flat(config: Config) -> dict[str, Any]:
    """Measure FAISS's IndexFlatIP over the same rows as float32, and write the truth that overlap is counted against.

    As shipped in batches of 100 and alone; on BLAS at 500 (the threshold of its switch lowered), which also gives the
    scores of the true answers.
    """
    import faiss

    faiss.omp_set_num_threads(1)
    index = _flat_index(faiss, rows_file(Path(config["index"])))
    shipped = int(faiss.cvar.distance_compute_blas_threshold)
    found: dict[str, Any] = {}
    least = {}
    for kind in QUERIES:
        queries = _fresh(config, kind)
        faiss.cvar.distance_compute_blas_threshold = shipped
        rows: dict[str, Any] = {}
        for name, batch, rounds in (("shipped_100", SHIPPED_BATCH, 1), ("alone", 1, 5)):
            times = []
            for number in range(rounds):
                part = queries[number * batch : (number + 1) * batch]
                with Clock() as clock:
                    index.search(part, K)
                times.append(clock.cpu_s / len(part) * 1e3)
            rows[f"{name}_ms"] = statistics.median(times)
        faiss.cvar.distance_compute_blas_threshold = 1
        with Clock() as clock:
            scores, _ = index.search(queries[:BATCH], K)
        rows["blas_500_ms"] = clock.cpu_s / BATCH * 1e3
        found[kind], least[kind] = rows, scores[:, K - 1]
    path = Path(config["truth"])
    draft = path.with_name(f"tmp-{os.getpid()}-{path.name}")
    np.savez(draft, **least)
    draft.replace(path)
    return {"sets": found, "faiss": faiss.__version__, "rows": int(index.ntotal)}


def _flat_index(faiss: Any, path: Path) -> Any:
    """Fill an IndexFlatIP with float32 rows in blocks, so that they are in memory once."""
    rows = np.load(path, mmap_mode="r")
    index = faiss.IndexFlatIP(rows.shape[1])
    index.codes.resize(rows.size * 4)
    whole = faiss.rev_swig_ptr(index.get_xb(), rows.size).reshape(rows.shape)
    for start in range(0, len(rows), 65536):
        whole[start : start + 65536] = rows[start : start + 65536]
    index.ntotal = len(rows)
    return index


def rows_file(index: Path) -> Path:
    """Find the row file of an index of one segment."""
    from bindsearch.index.manifest import read_manifest

    (entry,) = read_manifest(index).segments
    return index / "segments" / entry.name / "vectors.npy"


def _fresh(config: Config, kind: str) -> Float:
    return Law(dim=config["dim"]).queries(kind, BATCH, "fresh")


STAGES: dict[str, Callable[[Config], dict[str, Any]]] = {
    "build": build,
    "tune": tune,
    "open": open_first,
    "ours": ours,
    "flat": flat,
}


def main() -> None:
    """Run a stage and write its figures in one step."""
    stage, output, config = sys.argv[1:]
    result = STAGES[stage](json.loads(config))
    draft = Path(f"{output}.tmp-{os.getpid()}")
    draft.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draft.replace(output)


if __name__ == "__main__":
    main()
