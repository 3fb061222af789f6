"""Memory while embedding a million small things: half texts in a manifest, half PNGs of 32 px in tars.

python -m benchmarks.bench_memory                      # 50,000 and then 1,000,000 items; about 20 minutes on 2 cores
python -m benchmarks.bench_memory --items 100000       # 50,000 and then 100,000
python -m benchmarks.bench_memory --quick              # 5,000 and then 20,000: shows that it runs, no row is written

`bindsearch embed` runs as a process; once a second its resident memory (VmRSS) and that of its decode workers is read
and added up. Two figures, both of the larger run's highest sum: over the highest of the run of 50,000 items, and over
the highest until 50,000 items were committed in the same run. What workers share with their parent counts for both.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.record import write_result, write_score
from benchmarks.resources import children, resident_bytes

COMMAND = "python -m benchmarks.bench_memory"
FOLDER = Path(__file__).parent.parent / "runs" / "memory"
BASE, STEP_S, PER_TAR = 50_000, 1.0, 25_000
_WORDS = (
    "dog",
    "bird",
    "car",
    "wave",
    "fox",
    "bell",
    "beach",
    "snow",
    "night",
    "trees",
    "red",
    "blue",
    "green",
    "runs",
)


def make_items(folder: Path, count: int) -> None:
    """Write count / 2 texts and as many PNGs, the same each time."""
    if (folder / "made").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    with (folder / "texts.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count // 2):
            file.write(json.dumps({"key": f"text {number}", "text": " ".join(rng.choice(_WORDS, 9))}) + "\n")
    pictures = []
    for _ in range(256):
        small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(small).resize((32, 32), Image.Resampling.BICUBIC).save(stream, "PNG")
        pictures.append(stream.getvalue())
    for first in range(0, count - count // 2, PER_TAR):
        with tarfile.open(folder / f"pictures-{first:08d}.tar", "w") as tar:
            for number in range(first, min(first + PER_TAR, count - count // 2)):
                data = pictures[number % len(pictures)]
                head = tarfile.TarInfo(f"{number:08d}.png")
                head.size = len(data)
                tar.addfile(head, io.BytesIO(data))
    (folder / "made").touch()


def measure(count: int, space: str, workers: int | None) -> dict[str, Any]:
    """Embed so many items in a process and watch it; give samples and what it reported."""
    sources, out = FOLDER / f"items-{count}", FOLDER / f"out-{count}"
    make_items(sources, count)
    shutil.rmtree(out, ignore_errors=True)
    given = [str(sources / "texts.jsonl"), *(str(path) for path in sorted(sources.glob("*.tar")))]
    command = [sys.executable, "-m", "bindsearch", "embed", *given, "-o", str(out), "--space", space, "--json", "-q"]
    command += [] if workers is None else ["--workers", str(workers)]
    begin = time.perf_counter()
    with (FOLDER / "report.json").open("w+", encoding="utf-8") as told:
        process = subprocess.Popen(command, stdout=told)
        samples: list[dict[str, Any]] = []
        while process.poll() is None:
            own, *others = (resident_bytes(pid, "VmRSS") for pid in (process.pid, *children(process.pid)))
            shards = sum(1 for _ in out.glob("g*/*.done.json")) if out.is_dir() else 0
            samples.append(
                {
                    "s": round(time.perf_counter() - begin, 1),
                    "items": min(1024 * shards, count),
                    "main": own,
                    "workers": sum(others),
                }
            )
            time.sleep(STEP_S)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}: exit {process.returncode}")
        told.seek(0)
        report = {name: value for name, value in json.load(told).items() if name not in ("output", "ledger")}
    shutil.rmtree(out)
    return {"items": count, "wall_s": round(time.perf_counter() - begin, 1), "report": report, "samples": samples}


def peak(samples: list[dict[str, Any]], until_items: int | None = None) -> dict[str, int]:
    """Give the highest sum of main process and workers, and the highest of each."""
    seen = [each for each in samples if until_items is None or each["items"] <= until_items]
    return {
        "sum": max(each["main"] + each["workers"] for each in seen),
        "main": max(each["main"] for each in seen),
        "workers": max(each["workers"] for each in seen),
    }


def thinned(run: dict[str, Any], keep: int = 200) -> dict[str, Any]:
    """Keep at most so many samples of a run."""
    step = max(1, len(run["samples"]) // keep)
    return {**run, "samples": run["samples"][::step]}


def main() -> None:
    """Measure both runs, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--base", type=int, default=BASE)
    parser.add_argument("--space", default="bindsearch-mini")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    count, base = (20_000, 5_000) if options.quick else (options.items, options.base)
    FOLDER.mkdir(parents=True, exist_ok=True)
    small = measure(base, options.space, options.workers)
    large = measure(count, options.space, options.workers)
    whole, first, alone = peak(large["samples"]), peak(large["samples"], base), peak(small["samples"])
    ratios = {name: whole["sum"] / before["sum"] for name, before in (("same run", first), ("own run", alone))}
    result = {
        "items": count,
        "base": base,
        "ratios": ratios,
        "peak_bytes": {"whole": whole, f"until {base}": first, f"run of {base}": alone},
        "small": thinned(small),
        "large": thinned(large),
    }
    print(json.dumps({"ratios": ratios, "peak_bytes": result["peak_bytes"], "wall_s": large["wall_s"]}, indent=2))
    print(large["report"]["items_per_second"], "items/s;", large["report"]["advice"])
    if options.quick:
        return
    write_result(f"memory-{count}", result)
    command = COMMAND if count == 1_000_000 else f"{COMMAND} --items {count}"
    name = f"embedding {count} items: resident memory over that at {base}"
    write_score(
        name, round(max(ratios.values()), 4), "ratio", "<= 1.1", command, {k: round(v, 4) for k, v in ratios.items()}
    )


if __name__ == "__main__":
    main()
