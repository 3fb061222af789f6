"""Write a benchmark's result and its rows on the scoreboard."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Say what ran: commit, processor, cores, versions."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    names = ("torch", "numpy", "faiss-cpu", "faiss-gpu", "pyarrow", "typer", "Pillow", "av", "soundfile")
    return {
        "commit": commit.stdout.strip(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in names if _version(name)},
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def spread(values: Sequence[float]) -> dict[str, float]:
    """Give median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": len(values)}


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write results/NAME.json with the machine beside the figures; paths are from the working folder."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    text = json.dumps({"machine": machine(), **result}, indent=2, sort_keys=True) + "\n"
    path.write_text(text.replace(f"{Path.cwd()}{os.sep}", ""), encoding="utf-8")
    return path


def write_score(name: str, value: float, unit: str, target: str, command: str, spread: Any = None) -> None:
    """Put one headline figure on results/scoreboard.json, in place of its older row."""
    path = RESULTS / "scoreboard.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    row = {
        "name": name,
        "value": value,
        "spread": spread,
        "unit": unit,
        "target": target,
        "command": command,
        "commit": machine()["commit"],
    }
    rows = sorted([old for old in rows if old["name"] != name] + [row], key=lambda one: str(one["name"]))
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def drop_scores(command: str) -> None:
    """Take the rows of a command off results/scoreboard.json: it is no more, or its rows are about to be named anew."""
    path = RESULTS / "scoreboard.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    kept = [row for row in rows if row["command"] != command]
    path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
