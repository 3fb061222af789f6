"""What starting costs: `bindsearch --help` beside a bare typer program, a text query beside `import torch`.

CPU time (user + system) of whole processes, both sides in turn in one run, medians of RUNS.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.record import spread, write_result, write_score

RUNS = 7
ITEMS = 10_000
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
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def in_turn(ours: list[str], theirs: list[str]) -> tuple[list[float], list[float]]:
    """Measure both sides alternately, after one warm-up of each."""
    cpu_seconds(ours)
    cpu_seconds(theirs)
    pairs = [(cpu_seconds(ours), cpu_seconds(theirs)) for _ in range(RUNS)]
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


def main() -> None:
    """Measure both pairs, write the JSON and the scoreboard's rows."""
    script = Path(sys.executable).parent / "bindsearch"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours, bare = in_turn([str(script), "--help"], bare_program(folder))
        index = write_index(folder)
        query, torch = in_turn(
            [str(script), "query", str(index), "--text", "a dog on the beach", "--json", "--space", "bindsearch-mini"],
            [sys.executable, "-c", "import torch"],
        )
    help_ratio = spread(ours)["median"] / spread(bare)["median"]
    query_ratio = spread(query)["median"] / spread(torch)["median"]
    write_result(
        "start",
        {
            "unit": "CPU seconds of a whole process",
            "help": {"bindsearch": spread(ours), "bare typer": spread(bare), "ratio": help_ratio},
            "text query": {"bindsearch": spread(query), "import torch": spread(torch), "ratio": query_ratio},
            "items": ITEMS,
        },
    )
    command = "python -m benchmarks.bench_start"
    write_score("start: --help / bare typer program", help_ratio, "ratio", "<= 1.6", command, spread(ours))
    write_score("start: text query / import torch", query_ratio, "ratio", "<= 1.6", command, spread(query))
    print(f"--help {help_ratio:.2f} x a bare typer program; text query {query_ratio:.2f} x import torch")


if __name__ == "__main__":
    main()
