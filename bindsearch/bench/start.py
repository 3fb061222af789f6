"""What starting takes: whole processes, from the first instruction to the last line."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bindsearch.bench.timing import Figure, time_figure
from bindsearch.errors import BindSearchError

WORDS = "a dog on the beach"
ROWS = 1000


def start_figures(space: str, device: str, runs: int) -> Iterator[Figure]:
    """Time processes: an import for comparison, then commands as a person types them.

    Args:
        space: what `load_space` takes; its text tower is asked where it has one.
        device: what they are told to compute on.
        runs: of each, after one that is not counted.

    Raises:
        BindSearchError: a process failed; what was measured before it is given.
    """
    with tempfile.TemporaryDirectory(prefix="bindsearch-bench-") as name:
        folder = Path(name)
        index, has_text = _write_index(folder, space)
        python = [sys.executable, "-c"]
        own = [sys.executable, "-m", "bindsearch"]
        query = [*own, "query", str(index), "--json"]
        words = ["--text", WORDS, "--space", space, "--device", device]
        cases: dict[str, tuple[list[str], dict[str, str]]] = {
            "import torch": ([*python, "import torch"], {}),
            "--help": ([*own, "--help"], {}),
            "query by a vector": ([*query, "--vector", str(folder / "query.npy")], {}),
        }
        if has_text:
            cases["query by words, first time"] = ([*query, *words], {"BINDSEARCH_TEXT_CACHE_MB": "0"})
            cases["query by words, asked before"] = ([*query, *words], {"BINDSEARCH_TEXT_CACHE_MB": "8"})
        for title, (command, settings) in cases.items():
            environment = {"BINDSEARCH_CACHE_DIR": _weights_home(folder), **settings}
            _run(title, command, environment)
            times = [_run(title, command, environment) for _ in range(runs)]
            cpu = sorted(each[1] for each in times)[len(times) // 2]
            yield time_figure("start", title, "s", [each[0] for each in times], note=f"{cpu:.2f} s of CPU time")


def _weights_home(folder: Path) -> str:
    """Give a cache folder that has the user's spaces, by links, and texts of its own."""
    from bindsearch.config import cache_dir

    home = folder / "cache"
    if not home.is_dir():
        home.mkdir()
        real = cache_dir()
        for entry in real.iterdir() if real.is_dir() else ():
            if (entry / "space.json").is_file():
                (home / entry.name).symlink_to(entry.resolve(), target_is_directory=True)
    return str(home)


def _write_index(folder: Path, space: str) -> tuple[Path, bool]:
    """Build a small index of random rows in a space; gives it and whether the space reads text."""
    from bindsearch.exchange import import_store
    from bindsearch.index.build import build_index
    from bindsearch.models.spaces import load_space

    loaded = load_space(space)
    rows = np.random.default_rng(0).standard_normal((ROWS, loaded.dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.save(folder / "rows.npy", rows)
    np.save(folder / "query.npy", rows[0])
    import_store(folder / "rows.npy", folder / "embeddings", "npy", space_id=loaded.space_id, modality="image")
    build_index(folder / "embeddings", folder / "index")
    return folder / "index", "text" in loaded.modalities


def _run(title: str, command: list[str], settings: dict[str, str]) -> tuple[float, float]:
    """Run a process; gives its wall-clock and CPU seconds."""
    before, began = os.times(), time.perf_counter()
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, errors="replace", env={**os.environ, **settings}
    )
    after, ended = os.times(), time.perf_counter()
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise BindSearchError(f"{title}: exit code {done.returncode}: {said[-1]}")
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return ended - began, cpu
