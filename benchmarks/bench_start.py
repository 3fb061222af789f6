"""What starting costs: `bindsearch --help` beside a bare typer program, queries beside `import torch`.

    python -m benchmarks.bench_start [--quick] [--only small|huge]

CPU time (user + system) of whole processes, both sides in turn in one run, medians of RUNS. The large rows ask an index
of 100,000 rows in the space imagebind-huge with random weights in bfloat16, mapped: words that were never asked, words
whose embedding is kept, a vector, an item. Its files (1.5 GB) are written once, to runs/start. Byte code is written
and used, as in any installed package, whatever the environment says.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.huge_text import ITEMS as HUGE_ITEMS
from benchmarks.huge_text import write_index as write_huge_index
from benchmarks.huge_text import write_space
from benchmarks.record import RESULTS, spread, write_result, write_score

RUNS = 7
ITEMS = 10_000
FOLDER = Path(__file__).parent.parent / "runs" / "start"
COMMAND = "python -m benchmarks.bench_start"
TORCH = [sys.executable, "-c", "import torch"]
TORCH_LEFT = [sys.executable, "-c", "import os, torch; os._exit(0)"]
"""`import torch` without taking it apart at the end, as the command line leaves too (ADR 0146)."""
WORDS = "a dog on the beach"
LOAD = """
import sys, time, torch
from bindsearch.models.spaces import load_space
before = time.process_time()
space = load_space(sys.argv[1], dtype="bfloat16", switches="single")
space._towers["text"]
print(time.process_time() - before)
"""
BARE = """
import typer
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
groups = {{}}
for words in {commands!r}:
    owner = app
    if len(words) == 2:
        owner = groups.setdefault(words[0], typer.Typer(rich_markup_mode=None))
    @owner.command(words[-1])
    def command(name: str = "x") -> None:
        "Do one thing."
for name, group in groups.items():
    app.add_typer(group, name=name)
app()
"""


def cpu_seconds(command: list[str], **environment: str) -> float:
    """Run a command and give the user and system time of the process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=surroundings(**environment))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def surroundings(**environment: str) -> dict[str, str]:
    """Give the environment of a measured process: byte code is kept, no settings but those given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BINDSEARCH_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**kept, **environment}


def in_turn(ours: list[str], theirs: list[str], runs: int, **environment: str) -> tuple[list[float], list[float]]:
    """Measure both sides alternately, after one warm-up of each."""
    cpu_seconds(ours, **environment)
    cpu_seconds(theirs, **environment)
    pairs = [(cpu_seconds(ours, **environment), cpu_seconds(theirs, **environment)) for _ in range(runs)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def bare_program(folder: Path) -> list[str]:
    """Write a typer program with as many commands as ours, each with one option and one line of help."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
    from make_docs import COMMANDS

    groups = {words[0] for words in COMMANDS if len(words) == 2}
    leaves = [words for words in COMMANDS if words and not (len(words) == 1 and words[0] in groups)]
    path = folder / "bare.py"
    path.write_text(BARE.format(commands=leaves), encoding="utf-8")
    return [sys.executable, str(path), "--help"]


def write_index(folder: Path) -> Path:
    """Build an index of 10k seeded unit vectors in the space of bindsearch-mini, through the importer."""
    from bindsearch.exchange import import_store
    from bindsearch.index.build import build_index
    from bindsearch.models.spaces import load_space

    space = load_space("bindsearch-mini")
    rows = np.random.default_rng(7).standard_normal((ITEMS, space.dim)).astype(np.float32)
    np.save(folder / "vectors.npy", rows / np.linalg.norm(rows, axis=1, keepdims=True))
    import_store(folder / "vectors.npy", folder / "embeddings", "npy", space_id=space.space_id, modality="image")
    build_index(folder / "embeddings", folder / "index")
    return folder / "index"


def measure_small(runs: int) -> dict[str, Any]:
    """Measure --help beside a bare program, and a text query of the bundled space beside `import torch`."""
    script = str(Path(sys.executable).parent / "bindsearch")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours, bare = in_turn([script, "--help"], bare_program(folder), runs)
        index = write_index(folder)
        words = ("query", str(index), "--text", WORDS, "--json", "--space", "bindsearch-mini")
        query, torch = in_turn([script, *words], TORCH, runs, BINDSEARCH_TEXT_CACHE_MB="0")
    help_ratio = spread(ours)["median"] / spread(bare)["median"]
    query_ratio = spread(query)["median"] / spread(torch)["median"]
    write_score("start: --help / bare typer program", help_ratio, "ratio", "<= 1.6", COMMAND, spread(ours))
    write_score("start: text query / import torch", query_ratio, "ratio", "<= 1.6", COMMAND, spread(query))
    print(f"--help {help_ratio:.2f} x a bare typer program; text query {query_ratio:.2f} x import torch")
    return {
        "help": {"bindsearch": spread(ours), "bare typer": spread(bare), "ratio": help_ratio},
        "text query": {"bindsearch": spread(query), "import torch": spread(torch), "ratio": query_ratio},
        "items": ITEMS,
    }


def measure_huge(runs: int) -> dict[str, Any]:
    """Measure queries of 100,000 rows in imagebind-huge, random weights in bfloat16, beside `import torch`."""
    script = str(Path(sys.executable).parent / "bindsearch")
    space = write_space(FOLDER / "imagebind-huge-text")
    index = write_huge_index(FOLDER, str(space))
    ask = [script, "query", str(index), "--json", "--space", str(space), "--dtype", "bfloat16"]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        cases = {
            "text": (("--text", WORDS), {"BINDSEARCH_TEXT_CACHE_MB": "0"}),
            "cached text": (("--text", WORDS), {"BINDSEARCH_CACHE_DIR": cache}),
            "vector": (("--vector", str(FOLDER / "query.npy")), {}),
            "item": (("--item", "vectors.npy#5"), {}),
        }
        for name, (words, environment) in cases.items():
            ours, torch = in_turn([*ask, *words], TORCH, runs, **environment)
            beyond = [one - other for one, other in zip(ours, torch, strict=True)]
            found[name] = {"bindsearch": spread(ours), "import torch": spread(torch), "beyond torch": spread(beyond)}
            counted = beyond if name == "text" else ours
            title = (
                f"start: imagebind-huge, {name} query{', CPU seconds beyond `import torch`' if name == 'text' else ''}"
            )
            write_score(title, statistics.median(counted), "CPU s", "<= 0.6", COMMAND, spread(counted))
            print(f"{title}: {statistics.median(counted):.3f} s (import torch {statistics.median(torch):.3f} s)")
    left = [cpu_seconds(TORCH_LEFT) for _ in range(runs + 1)][1:]
    rest = found["text"]["bindsearch"]["median"] - statistics.median(left)
    title = "start: imagebind-huge, text query, CPU seconds beyond `import torch` that exits without cleaning up"
    write_score(title, rest, "CPU s", "<= 0.6", COMMAND)
    print(f"{title}: {rest:.3f} s ({statistics.median(left):.3f} s)")
    found["import torch, left at once"] = spread(left)
    loads = [tower_load(space) for _ in range(runs + 1)][1:]
    write_score(
        "start: imagebind-huge, text tower load", statistics.median(loads), "CPU s", "<= 0.3", COMMAND, spread(loads)
    )
    print(f"text tower load: {statistics.median(loads):.3f} s")
    return {"queries": found, "tower load": spread(loads), "items": HUGE_ITEMS, "dtype": "bfloat16"}


def tower_load(space: Path) -> float:
    """Give the CPU seconds that opening the space and loading its text tower take in a fresh process with torch."""
    command = [sys.executable, "-c", LOAD, str(space)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=surroundings())
    return float(done.stdout)


def main() -> None:
    """Measure what is asked for, write the JSON and the scoreboard's rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three runs instead of seven, for a busy machine")
    parser.add_argument("--only", choices=("small", "huge"))
    asked = parser.parse_args()
    runs = 3 if asked.quick else RUNS
    path = RESULTS / "start.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    result.pop("machine", None)
    result.update(unit="CPU seconds of a whole process", threads=os.environ.get("OMP_NUM_THREADS", "all"))
    if asked.only != "huge":
        result.update(measure_small(runs))
    if asked.only != "small":
        result["imagebind-huge"] = measure_huge(runs)
    write_result("start", result)


if __name__ == "__main__":
    main()
