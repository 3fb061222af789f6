"""Runs of real embed processes that are struck, resumed, and compared with undisturbed ones, byte for byte.

python -m benchmarks.bench_faults                       # 200 runs: results/faults.json, faults.svg; resumable
python -m benchmarks.bench_faults --runs 10 --folder runs/trial --quick

A run draws, from its seed, inputs (one in twenty broken), a first or a second generation, decode workers, one to three
faults and the stage each is aimed at; then it is resumed and compared. The faults:

    kill     SIGKILL to the run                      slow     each fsync delayed by strace, then SIGKILL
    term     SIGTERM to the run                      worker   SIGKILL to a decode worker
    space    a file system of a few pages fills up   oom      a decode worker in a memory cgroup, killed by the kernel
    starve   the run may take no more memory         memory   a decode worker may take no more memory: MemoryError
    crew     three processes on one folder, one of them is killed and the others take over

Where a mount, strace or cgroups are not permitted, the result says so: RLIMIT_FSIZE, a kill alone, SIGKILL instead.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.fault_inputs import Inputs, make_inputs
from benchmarks.fault_victim import STAGES, Victim, can_mount, start
from benchmarks.record import RESULTS, write_result, write_score
from bindsearch.embed.place import Place

COMMAND = "python -m benchmarks.bench_faults"
KINDS = ("kill", "term", "space", "slow", "worker", "oom", "memory", "starve", "crew")
WEIGHTS = (6, 4, 4, 2, 2, 2, 2, 2, 2)
INPUT_SETS = 6
CREW = 3
AIMS = (4, 2, 2, 3, 3, 2)
TIMES = {"listing": 1, "plan": 2, "decode": 1, "model": 8, "write": 4, "commit": 1}
DELAY_S = {"listing": 0.05, "plan": 0.01, "decode": 0.3, "model": 0.005, "write": 0.005, "commit": 0.01}
PAGE, ROOM, LEASE_PAGES = 4096, "64m", 4


class Bench:
    """The runs, their inputs, and what undisturbed ones make of them.

    Attributes:
        folder: where everything lies.
        space: loaded and warm.
        mounted: runs lie in a small file system of their own.
    """

    def __init__(self, folder: Path) -> None:
        """Load the space; the victims inherit it."""
        import torch

        from bindsearch.models.spaces import load_space

        torch.set_num_threads(1)
        self.folder = folder.resolve()
        self.space = load_space("tiny", device="cpu")
        for modality in ("image", "text", "audio"):
            kind, config = self.space.modality(modality), self.space.config(modality)
            self.space.encode(modality, kind.preprocess(kind.example(0), config)[None])
        self.mounted = can_mount(self.folder / "disk")
        self._whole: dict[tuple[int, int], tuple[Inputs, dict[str, str]]] = {}

    def whole(self, number: int, generation: int) -> tuple[Inputs, dict[str, str]]:
        """Give a set of inputs and the checksums of what an undisturbed run makes of it; made once.

        Args:
            number: of the set.
            generation: 0 for a first run, 1 for a second one over more sources.
        """
        if (number, generation) not in self._whole:
            home = self.folder / f"set{number}"
            inputs = make_inputs(home, number)
            out = home / f"whole{generation}"
            shutil.rmtree(out, ignore_errors=True)
            if generation:
                self.whole(number, 0)
                shutil.copytree(home / "whole0", out)
            victim = start(self.space, inputs.second if generation else inputs.first, out, workers=1)
            if (ended := victim.wait()) != (0, None):
                raise SystemExit(f"{out}: an undisturbed run ended with {ended}: {_words(out)}")
            if problems := _check_ledger(out, inputs.broken[generation]):
                raise SystemExit(f"{out}: {problems}")
            self._whole[number, generation] = inputs, digests(out)
        return self._whole[number, generation]

    def run(self, seed: int) -> dict[str, Any]:
        """Do one run: faults, resumed, compared."""
        rng = random.Random(seed)
        number, generation = seed % INPUT_SETS, int(rng.random() < 0.25)
        inputs, expected = self.whole(number, generation)
        sources = inputs.second if generation else inputs.first
        whole = self.folder / f"set{number}" / f"whole{generation}"
        began_s, faults = time.perf_counter(), []
        with self.disk(seed) as disk:
            out = disk / "out"
            if generation:
                shutil.copytree(self.folder / f"set{number}" / "whole0", out)
            for _ in range(rng.choice((1, 1, 2, 3))):
                kind = rng.choices(KINDS, WEIGHTS)[0]
                faults.append(self.strike(kind, rng, sources, out, whole))
            victim = start(self.space, sources, out, rng.choice((0, 0, 1, 2)))
            problems = [each["problem"] for each in faults if each["problem"]]
            if (ended := victim.wait()) != (0, None):
                problems.append(f"resumed, it ended with {ended}: {_words(out)}")
            problems += _check_ledger(out, inputs.broken[generation]) + _check_bytes(out, expected)
        return {
            "seed": seed,
            "generation": generation + 1,
            "faults": faults,
            "problems": problems,
            "seconds": round(time.perf_counter() - began_s, 2),
        }

    @contextmanager
    def disk(self, seed: int) -> Iterator[Path]:
        """Give a run a place of its own: a small file system, where one can be mounted."""
        disk = self.folder / "disk" / str(seed)
        shutil.rmtree(disk, ignore_errors=True)
        disk.mkdir(parents=True)
        if self.mounted:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "none", str(disk)], check=True)
        try:
            yield disk
        finally:
            if self.mounted:
                subprocess.run(["umount", str(disk)], check=True)
            shutil.rmtree(disk, ignore_errors=True)

    def strike(self, kind: str, rng: random.Random, sources: list[str], out: Path, whole: Path) -> dict[str, Any]:
        """Start a run, strike it, wait for its end.

        Returns:
            "kind", "aimed" and "stage", "hit" (False where the run was quicker), "means", "code", "died", "problem".
        """
        aimed = rng.choices(STAGES, AIMS)[0]
        fault: dict[str, Any] = {"kind": kind, "aimed": aimed, "stage": aimed, "hit": False, "means": kind}
        times, delay_s = rng.randint(1, TIMES[aimed]), rng.uniform(0, DELAY_S[aimed])
        workers = rng.choice((1, 2)) if kind in ("worker", "oom", "memory", "starve") else rng.choice((0, 0, 1, 2))
        if kind == "space":
            self._fill(fault, rng, sources, out, whole, workers)
            return fault
        others: list[Victim] = []
        slow = (lambda victim: fault.update(means=victim.slow_disk() or "kill")) if kind == "slow" else None
        place = Place(1, CREW) if kind == "crew" else None
        victim = start(self.space, sources, out, workers, place, slow)
        if kind == "crew":
            others = [start(self.space, sources, out, 0, Place(each, CREW)) for each in range(2, CREW + 1)]
        if victim.await_stage(aimed, times):
            time.sleep(delay_s)
            fault["hit"] = _hit(kind, victim, rng, fault)
        code, died = victim.wait()
        fault.update(code=code, died=died)
        fault["problem"] = _judge(kind, fault, _words(out))
        for other in others:
            if (ended := other.wait()) != (0, None):
                fault["problem"] = f"a process beside the killed one ended with {ended}: {_words(out)}"
        if kind in ("worker", "oom", "memory", "crew") and code in (0, None) and not fault["problem"]:
            done = (kind != "crew" and code == 0) or kind == "crew"
            fault["problem"] = "; ".join(_check_bytes(out, digests(whole))) if done else ""
        if kind == "starve" and not code and died is None:
            fault["hit"] = False
        return fault

    def _fill(
        self, fault: dict[str, Any], rng: random.Random, sources: list[str], out: Path, whole: Path, workers: int
    ) -> None:
        """Run with so little room that it ends; then give the room back."""
        used = _pages(out)
        pages = rng.randint(1, max(2, _pages(whole) + LEASE_PAGES - used))
        if not self.mounted:
            fault["means"] = "RLIMIT_FSIZE"
            limit = rng.choice((500, 2000, 4000, 8000))
            victim = start(
                self.space, sources, out, workers,
                before=lambda victim: resource.prlimit(victim.pid, resource.RLIMIT_FSIZE, (limit, limit)),
            )  # fmt: skip
        else:
            subprocess.run(["mount", "-o", f"remount,size={(used + pages) * PAGE}", str(out.parent)], check=True)
            victim = start(self.space, sources, out, workers)
        code, died = victim.wait()
        if self.mounted:
            subprocess.run(["mount", "-o", f"remount,size={ROOM}", str(out.parent)], check=True)
        fault.update(code=code, died=died, hit=code == 1, stage=victim.failed_stage())
        words = _words(out)
        right = code == 0 or (code == 1 and ("Make room" in words or not words))
        fault["problem"] = "" if right else f"a full disk ended it with {code}, {died}: {words}"


def _hit(kind: str, victim: Victim, rng: random.Random, fault: dict[str, Any]) -> bool:
    """Deliver a fault; False where there is nobody to strike any more."""
    fault["stage"] = victim.stage(fault["aimed"])
    workers = victim.workers()
    if kind in ("kill", "slow", "crew", "term"):
        with suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGTERM if kind == "term" else signal.SIGKILL)
            return True
        return False
    if kind == "starve":
        return victim.limit_memory(victim.pid, rng.randint(0, 1 << 20))
    if not workers:
        return False
    worker = rng.choice(workers)
    if kind == "memory":
        fault["means"] = "RLIMIT_AS"
        return victim.limit_memory(worker, rng.randint(0, 1 << 20))
    if kind == "oom" and victim.starve_worker(worker):
        fault["means"] = "memory cgroup"
        return True
    fault["means"] = "SIGKILL"
    with suppress(ProcessLookupError):
        os.kill(worker, signal.SIGKILL)
        return True
    return False


def _judge(kind: str, fault: dict[str, Any], words: str) -> str:
    """Say what is wrong with how a struck run ended; "" where nothing is."""
    code, died = fault["code"], fault["died"]
    if code == 0:
        if kind in ("kill", "slow", "crew", "term"):  # the run was over before it was struck
            fault["hit"] = False
        return ""
    allowed: dict[str, bool] = {
        "kill": died == signal.SIGKILL,
        "slow": died == signal.SIGKILL,
        "crew": died == signal.SIGKILL,
        "term": code == 130 or died == signal.SIGTERM,
        "memory": code == 1 and "worker" in words,  # it ran out before its first item: the run ends and says so
        "oom": False,
        "worker": False,
        "starve": died != signal.SIGABRT or "alloc" in words,
    }
    return "" if allowed[kind] else f"{kind} ended it with {code}, {died}: {words}"


def digests(folder: Path) -> dict[str, str]:
    """Give the checksum of every file of a folder, by its path there."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _check_bytes(out: Path, expected: dict[str, str]) -> list[str]:
    """Compare a folder with the undisturbed one; a temporary file or a lease left there is one too many."""
    found = digests(out) if out.is_dir() else {}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return [f"{len(wrong)} files differ: {', '.join(wrong[:4])}"] if wrong else []


def _check_ledger(out: Path, broken: frozenset[str]) -> list[str]:
    """Compare the ledger with what is known to be broken."""
    try:
        rows = [json.loads(line) for line in (out / "bad.jsonl").read_text(encoding="ascii").splitlines()]
        manifest = json.loads((out / "manifest.json").read_bytes())
    except OSError as error:
        return [f"no ledger: {error}"]
    keys = [row["key"] for row in rows]
    if sorted(keys) != sorted(broken) or manifest["bad"] != len(broken):
        return [f"the ledger is wrong: {sorted(set(keys) ^ broken)[:4]}, {len(keys)} rows for {len(broken)} broken"]
    if not all(row["stage"] and row["reason"] for row in rows):
        return ["the ledger says of some not why"]
    return []


def _words(out: Path) -> str:
    path = Path(f"{out}.words")
    words = path.read_text(encoding="utf-8") if path.is_file() else ""
    path.unlink(missing_ok=True)
    return words


def _pages(folder: Path) -> int:
    """Count the pages that the files of a folder take on a tmpfs."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return sum(-(-size // PAGE) for size in sizes)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Count runs, and the faults that hit, by stage, by kind and by means."""
    hits = [fault for row in rows for fault in row["faults"] if fault["hit"]]
    return {
        "runs": len(rows),
        "equal": sum(not row["problems"] for row in rows),
        "faults": len(hits),
        "missed": sum(len(row["faults"]) for row in rows) - len(hits),
        "by_stage": {stage: sum(fault["stage"] == stage for fault in hits) for stage in STAGES},
        "by_kind": dict(sorted(Counter(fault["kind"] for fault in hits).items())),
        "by_means": dict(sorted(Counter(fault["means"] for fault in hits).items())),
        "problems": [{"seed": row["seed"], "problems": row["problems"]} for row in rows if row["problems"]],
    }


def draw_plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw how many faults hit each stage, a colour a kind."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "faults"
    from matplotlib import pyplot

    hits = Counter((fault["stage"], fault["kind"]) for row in rows for fault in row["faults"] if fault["hit"])
    figure, axis = pyplot.subplots(figsize=(7.5, 3.6), layout="constrained")
    below = dict.fromkeys(STAGES, 0)
    for kind in KINDS:
        counts = [hits[stage, kind] for stage in STAGES]
        axis.bar(STAGES, counts, bottom=[below[stage] for stage in STAGES], label=kind)
        below = {stage: below[stage] + count for stage, count in zip(STAGES, counts, strict=True)}
    equal = sum(not row["problems"] for row in rows)
    axis.set(ylabel="faults", title=f"{equal} of {len(rows)} struck runs, resumed, equal undisturbed ones")
    axis.legend(fontsize=7, ncols=3)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _own_mounts() -> None:
    """Start this program anew in a mount namespace of its own, where that is permitted."""
    for options in (["--mount"], ["--mount", "--map-root-user"]):
        command = ["unshare", *options]
        if shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            arguments = [sys.executable, "-m", "benchmarks.bench_faults", "--inside", *sys.argv[1:]]
            os.execvp("unshare", [*command, *arguments])


def main() -> int:
    """Do the runs that are not done, then write what came of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="seed of the first run")
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"))
    parser.add_argument("--quick", action="store_true", help="write nothing to results")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.inside:
        _own_mounts()
    os.environ["OMP_NUM_THREADS"] = "1"
    arguments.folder.mkdir(parents=True, exist_ok=True)
    log = arguments.folder / "runs.jsonl"
    done = [json.loads(line) for line in log.read_text(encoding="ascii").splitlines()] if log.is_file() else []
    wanted = range(arguments.first, arguments.first + arguments.runs)
    rows = {row["seed"]: row for row in done if row["seed"] in wanted}
    bench = Bench(arguments.folder)
    for seed in wanted:
        if seed not in rows:
            rows[seed] = bench.run(seed)
            with log.open("a", encoding="ascii") as file:
                file.write(json.dumps(rows[seed]) + "\n")
            hits = ", ".join(f"{each['kind']} at {each['stage']}" for each in rows[seed]["faults"] if each["hit"])
            sys.stderr.write(f"{seed}: {hits or 'missed'}; {rows[seed]['problems'] or 'equal'}\n")
    found = summary([rows[seed] for seed in wanted])
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    if not arguments.quick:
        draw_plot([rows[seed] for seed in wanted], RESULTS / "faults.svg")
        write_result("faults", {"means": {"file system of its own": bench.mounted}, **found})
        write_score("faults_equal_runs", found["equal"], "runs of 200", "200", COMMAND)
        least = min(found["by_stage"].values())
        write_score("faults_least_by_stage", least, "faults", "> 0 at every stage", COMMAND)
    return len(found["problems"])


if __name__ == "__main__":
    sys.exit(min(main(), 1))
