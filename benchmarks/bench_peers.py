"""Peers on the same rows and queries as bench_index: build CPU time, bytes, queries a second at an overlap.

python -m benchmarks.bench_peers --rows 100000                      # hnswlib usearch scann scalable-vs
python -m benchmarks.bench_peers --rows 1000000 scalable-vs autofaiss

Each peer runs in a virtual environment under runs/peers, made here with pip and the versions pinned below, since their
pins clash with each other's and ours. Rows and truth come from bench_index, which must have run at that size. One
thread, CPU time; our side's figures are those of bench_index at the same size.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_index import ONE_THREAD, OURS, WORK, summary
from benchmarks.index_stages import BATCH, rows_file
from benchmarks.record import write_result, write_score
from benchmarks.resources import run_watched
from benchmarks.vectors import QUERIES, Law

ENVIRONMENTS = Path("runs/peers")
VERSIONS = {"hnswlib": "0.8.0", "usearch": "2.26.6", "scann": "1.4.2", "scalable-vs": "0.5.0", "autofaiss": "2.18.0"}
AT = 0.95
COMMAND = "python -m benchmarks.bench_peers"


def environment(peer: str) -> tuple[Path, dict[str, str]]:
    """Make a peer's virtual environment where it is not there; gives its Python and the versions in it."""
    folder = ENVIRONMENTS / peer
    python = folder / "bin" / "python"
    if not (folder / "versions.json").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", f"{peer}=={VERSIONS[peer]}"], check=True)
        listed = subprocess.run([*pip, "list", "--format", "json"], check=True, capture_output=True, text=True)
        versions = {each["name"]: each["version"] for each in json.loads(listed.stdout)}
        (folder / "versions.json").write_text(json.dumps(versions, indent=1), encoding="utf-8")
    return python, json.loads((folder / "versions.json").read_text(encoding="utf-8"))


def run(peer: str, rows: int, ours: Path) -> dict[str, Any]:
    """Measure one peer, or read what was measured before."""
    folder = WORK / str(rows) / f"peer-{peer}"
    path = folder / "figures.json"
    python, versions = environment(peer)
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "queries.npz", **{kind: Law().queries(kind, BATCH, "fresh") for kind in QUERIES})
        config = {
            "folder": str(folder),
            "rows": str(rows_file(ours / "index")),
            "queries": str(folder / "queries.npz"),
            "truth": str(WORK / str(rows) / "truth-float16.npz"),
        }
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        script = Path(__file__).with_name("peer_run.py")
        command = [str(python), str(script), peer, str(folder / "config.json"), str(folder / "found.json")]
        took = run_watched(command, ONE_THREAD)
        figures = json.loads((folder / "found.json").read_text(encoding="utf-8"))
        named = {name: versions[name] for name in versions if name in (peer, "numpy", "faiss-cpu", "tensorflow")}
        whole = {**figures, "process": took, "versions": named}
        path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def ms_at(points: list[dict[str, Any]], overlap: float) -> float | None:
    """Give the least CPU milliseconds a query of the points that reach an overlap; None where none does."""
    enough = [point["batch_ms"] for point in points if point["overlap_at_10"] >= overlap]
    return min(enough, default=None)


def compare(rows: int, peers: list[str], backend: str) -> dict[str, Any]:
    """Put all sides at one size into one table."""
    folder = WORK / str(rows) / backend
    if not (folder / "ours-0.json").is_file():
        raise SystemExit(f"{folder}: no figures. Type: python -m benchmarks.bench_index run --rows {rows}")
    ours = summary(folder)
    sides: dict[str, Any] = {
        "bindsearch": {
            "build_cpu_s": ours["build"]["cpu_min"] * 60,
            "bytes": ours["bytes"]["beside_rows_bytes"],
            "rows_mapped_bytes": ours["bytes"]["files"]["vectors.npy"],
            "sets": {kind: each["curve"] for kind, each in ours["sets"].items()},
        }
    }
    sides |= {peer: run(peer, rows, folder) for peer in peers}
    for side in sides.values():
        times = {kind: ms_at(points, AT) for kind, points in side["sets"].items()}
        side[f"queries a second at {AT}"] = {kind: ms and round(1000 / ms, 1) for kind, ms in times.items()}
    return sides


def main() -> None:
    """Run, write results/peers.json and the scoreboard's rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", default=["hnswlib", "usearch", "scann", "scalable-vs"])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--ours", default=f"{OURS}-float16")
    arguments = parser.parse_args()
    sides = compare(arguments.rows, arguments.peers, arguments.ours)
    key = f"queries a second at {AT}"
    for name, side in sides.items():
        print(f"{name:<12} build {side['build_cpu_s']:8.1f} CPU s  {side['bytes'] / 1e6:8.1f} MB  {side[key]}")
    path = Path(__file__).parent / "results" / "peers.json"
    old = json.loads(path.read_text(encoding="utf-8")).get("by rows", {}) if path.is_file() else {}
    write_result("peers", {"by rows": {**old, str(arguments.rows): sides}})
    mine, theirs = sides["bindsearch"], [side for name, side in sides.items() if name != "bindsearch"]
    if arguments.rows >= 1_000_000 and theirs:
        ratios = []
        for kind in QUERIES:
            fastest = max((side[key][kind] or 0.0 for side in theirs), default=0.0)
            ratios.append((mine[key][kind] or 0.0) / fastest if fastest else math.inf)
        command = f"{COMMAND} --rows {arguments.rows} {' '.join(arguments.peers)}"
        write_score("peers 1M: ours / fastest at 0.95, worst set", round(min(ratios), 3), "ratio", ">= 0.5", command)


if __name__ == "__main__":
    main()
