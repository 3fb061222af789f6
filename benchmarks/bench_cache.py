"""Three million pictures of the world, for real: rendered, embedded, deduplicated, indexed and tuned, without files.

python -m benchmarks.bench_cache --keep 20000        # a trial: results/cache-20000.log, .json
python -m benchmarks.bench_cache                     # 3,000,000: results/cache-3000000.log, .json, scoreboard

What `bindsearch cache build --recipe indexes/visual-cache.json` does, in this process, with a line of the log a minute:
stage, how far, pictures a second, memory, disk. Interrupt it (once) and give the same command again: what was embedded
stays, a shard (1,024 pictures) is what a kill loses; the log and the seconds of each stage go on. The index itself is
written anew after an interruption. Run it with OMP_NUM_THREADS=1 and --workers 1 on two cores: one renders, one embeds.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, machine, write_result, write_score
from benchmarks.resources import children, resident_bytes

COMMAND = "OMP_NUM_THREADS=1 python -m benchmarks.bench_cache"
RECIPE = Path(__file__).parent.parent / "indexes" / "visual-cache.json"
FULL = 3_000_000
_EVERY_S = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


class BuildLog:
    """Lines of a log, and the seconds of each stage, over all runs of one build.

    Attributes:
        seconds: stage -> {"wall", "cpu"}: of this process and its workers.
        peak_bytes: anonymous memory of all processes together, at the lines of the log.
    """

    def __init__(self, folder: Path, log: Path) -> None:
        """Go on with what an earlier run left."""
        self._state, self._log = folder / "seconds.json", log
        state = json.loads(self._state.read_text(encoding="utf-8")) if self._state.is_file() else {}
        self.seconds: dict[str, dict[str, float]] = state.get("seconds", {})
        self.peak_bytes: int = state.get("peak_bytes", 0)
        self.runs: int = state.get("runs", 0) + 1
        self._stage, self._done, self._folder = "start", 0, folder
        self._said = self._mark = (0.0, 0.0, 0)
        self._at = (time.perf_counter(), _cpu_s())
        self.line(f"run {self.runs}, commit {machine()['commit']}, {machine()['processor']}")

    def line(self, words: str) -> None:
        """Write a line: time, words, memory."""
        memory = sum(resident_bytes(pid) for pid in (os.getpid(), *children(os.getpid())))
        self.peak_bytes = max(self.peak_bytes, memory)
        text = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}  {words}; {memory >> 20} MiB"
        print(text, flush=True)
        with self._log.open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Note how far a stage is; a line a minute, and one where a stage begins or ends."""
        wall, cpu = time.perf_counter(), _cpu_s()
        spent = self.seconds.setdefault(stage, {"wall": 0.0, "cpu": 0.0})
        spent["wall"] += wall - self._at[0]
        spent["cpu"] += max(0.0, cpu - self._at[1])
        self._at = (wall, cpu)
        fresh = stage != self._stage
        if fresh:
            self._stage, self._mark = stage, (wall, cpu, done)
        if fresh or done >= total or wall - self._said[0] > _EVERY_S:
            since = self._mark
            rate = (done - since[2]) / max(wall - since[0], 1e-9)
            each = (done - since[2]) / max(cpu - since[1], 1e-9)
            self.line(f"{stage} {done:,} of {total:,}; {rate:,.0f}/s, {each:,.0f} per CPU-second")
            self._said = (wall, cpu, done)
            self.save()

    def save(self) -> None:
        """Keep what the next run goes on with."""
        state = {"seconds": self.seconds, "peak_bytes": self.peak_bytes, "runs": self.runs}
        self._state.write_text(json.dumps(state), encoding="utf-8")


def _cpu_s() -> float:
    """Give the CPU seconds of this process and its live children."""
    total = time.process_time()
    for pid in children(os.getpid()):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        total += (int(fields[11]) + int(fields[12])) / _TICKS
    return total


def sizes(folder: Path) -> dict[str, int]:
    """Give the bytes of the folders of a build."""
    found = {}
    for part in sorted(each for each in folder.iterdir() if each.is_dir()):
        found[part.name] = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
    return found


def main() -> None:
    """Build, or go on building; keep the log and the figures."""
    from bindsearch.cache.build import Inputs, build_cache
    from bindsearch.cache.recipe import read_recipe
    from bindsearch.cli.options import ready_to_embed
    from bindsearch.config import to_json_dict
    from bindsearch.models.spaces import load_space

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=int, default=FULL)
    parser.add_argument("--folder", type=Path, default=Path("runs/cache"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--dtype", default="auto", help="that the towers compute in; a begun build keeps its own")
    arguments = parser.parse_args()
    ready_to_embed()  # as `bindsearch cache build` does
    home = arguments.folder / str(arguments.keep)
    home.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    log = BuildLog(home, RESULTS / f"cache-{arguments.keep}.log")
    recipe = replace(read_recipe(RECIPE), keep=arguments.keep)

    def embedded(progress: Any) -> None:
        log("embed", progress.done, progress.total)

    inputs = Inputs(
        load=lambda name: load_space(str(name), dtype=arguments.dtype),
        embed_progress=embedded,
        workers=arguments.workers,
    )
    try:
        record = build_cache(home / "cache", inputs, recipe, force=True, progress=log)
    except KeyboardInterrupt:
        log.line("interrupted; the same command goes on")
        log.save()
        raise SystemExit(130) from None
    log("tune", 1, 1)
    log.line(f"{record.kept:,} kept of {record.seen:,}, {record.repeated:,} repeated earlier ones")
    result = {
        "record": to_json_dict(record),
        "seconds": {
            stage: {name: round(each, 1) for name, each in spent.items()} for stage, spent in log.seconds.items()
        },
        "bytes": sizes(home),
        "peak_anonymous_bytes": log.peak_bytes,
        "runs": log.runs,
    }
    write_result(f"cache-{arguments.keep}", result)
    print(json.dumps(result, indent=1))
    if arguments.keep == FULL:
        wall = sum(spent["wall"] for spent in log.seconds.values()) / 3600
        write_score("a cache of 3,000,000 pictures of the world, built", wall, "hours", "1 to 2", COMMAND)


if __name__ == "__main__":
    main()
