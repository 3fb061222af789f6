"""Several `bindsearch embed` commands on one folder beside one alone: disjoint, complete, the same bytes, one killed.

python -m benchmarks.bench_many            # results/many.json
python -m benchmarks.bench_many --quick    # fewer scenes, nothing written
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.bench_faults import digests
from benchmarks.record import write_result, write_score
from bindsearch.embed.status import folder_status
from bindsearch.errors import MissingInputError

COMMAND = "python -m benchmarks.bench_many"
COUNTS = (2, 4)
SHARD = 25


def begin(scenes: int, out: Path, number: int, count: int) -> subprocess.Popen[bytes]:
    """Start one of several commands; its report goes to stdout."""
    command = [sys.executable, "-m", "bindsearch", "embed", f"world:0..{scenes}", "--modalities", "image,text"]
    command += ["--output", str(out), "--space", "bindsearch-mini", "--device", "cpu", "--shard-size", str(SHARD)]
    command += ["--workers", "0", "--shard", f"{number}/{count}", "--json", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)


def together(scenes: int, out: Path, count: int, kill: bool) -> dict[str, Any]:
    """Run several commands on one folder to their end; kill one that is seen at work.

    Returns:
        "shards" by process, "killed", "held" (shards that the killed one had), "seconds".
    """
    shutil.rmtree(out, ignore_errors=True)
    began_s = time.perf_counter()
    started = [begin(scenes, out, number, count) for number in range(1, count + 1)]
    killed, held = None, []
    while kill and killed is None:
        try:
            busy = [each for each in folder_status(out)["processes"] if any("-" in name for name in each["holds"])]
        except MissingInputError:
            busy = []
        if len(busy) > 1 or (busy and any(process.poll() is not None for process in started)):
            killed, held = busy[-1]["pid"], busy[-1]["holds"]
            next(process for process in started if process.pid == killed).kill()
        time.sleep(0.01)
    shards = []
    for process in started:
        said, _ = process.communicate()
        if process.pid == killed:
            continue
        if process.returncode:
            raise SystemExit(f"a process ended with {process.returncode}")
        shards.append(json.loads(said)["shards"])
    return {
        "processes": count,
        "killed": killed is not None,
        "held_by_the_killed": len(held),
        "shards": shards,
        "seconds": round(time.perf_counter() - began_s, 1),
    }


def main() -> int:
    """Measure, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=Path("runs/many"))
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    scenes = min(200, arguments.scenes) if arguments.quick else arguments.scenes
    alone = together(scenes, arguments.folder / "alone", 1, kill=False)
    expected, total = digests(arguments.folder / "alone"), sum(alone["shards"])
    runs = [alone]
    for count in COUNTS:
        for kill in (False, True):
            out = arguments.folder / f"{count}{'-killed' if kill else ''}"
            found = together(scenes, out, count, kill)
            found["equal"] = digests(out) == expected
            found["disjoint"] = kill or sum(found["shards"]) == total
            runs.append(found)
            sys.stderr.write(f"{found}\n")
    right = sum(found["equal"] and found["disjoint"] for found in runs[1:])
    result = {"scenes": scenes, "shard_size": SHARD, "shards": total, "runs": runs, "right": right}
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    if not arguments.quick:
        write_result("many", result)
        write_score(
            "several processes on one folder: runs that equal one process byte for byte",
            right,
            "runs",
            "4 of 4",
            COMMAND,
        )
    return 0 if right == len(runs) - 1 else 1


if __name__ == "__main__":
    sys.exit(main())
