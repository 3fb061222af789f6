"""Full-size random towers on a GPU in bfloat16: items a second, share of the matrix rate, parity with the CPU.

python -m benchmarks.bench_gpu_towers                      # images, audio files and texts; as they are and compiled
python -m benchmarks.bench_gpu_towers --what text --batch 1024 --compiled off graphs

The matrix rate is that of one large bfloat16 product, measured in the same run. Parity: cosines of two items with the
same tower in float32 on the CPU. Without a GPU: one line, exit 2, no figures. tests/test_fast_towers.py runs
`measure` on the CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.record import spread, write_result, write_score
from benchmarks.tower_run import TRUTH_CLIPS, WHATS, draw_clips, draw_tower, flop
from bindsearch.models.bind import Tower
from bindsearch.models.quick import QuickTower
from bindsearch.models.switches import Switches

COMMAND = "python -m benchmarks.bench_gpu_towers"
BATCH = {"image": 128, "audio": 128, "text": 1024}
SHARE = 0.55
RUNS = 5
SIDE = 8192


def seconds(device: str, work: Callable[[], Any], runs: int = RUNS) -> list[float]:
    """Time something that runs on a device, after two warm-ups (a graph is captured in the second)."""
    taken = []
    for number in range(runs + 2):
        _wait(device)
        begin = time.perf_counter()
        work()
        _wait(device)
        if number > 1:
            taken.append(time.perf_counter() - begin)
    return taken


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: str, side: int = SIDE) -> float:
    """Measure products of bfloat16: FLOP a second, the best of some runs."""
    square = torch.randn(side, side, device=device).bfloat16()
    return 2 * side**3 / min(seconds(device, lambda: square @ square))


def encode(tower: QuickTower, clips: np.ndarray[Any, Any], device: str) -> torch.Tensor:
    """Encode clips pass by pass, as a space does: (N, d) on the device."""
    out = torch.empty(len(clips), tower.dim, device=device, dtype=torch.float32)
    for chosen in tower.batches(clips):
        x = torch.from_numpy(clips[chosen]).to(device)
        rows = tower(x.to(tower.input_dtype) if x.is_floating_point() else x)
        out[torch.from_numpy(chosen).to(device)] = rows.float()
    return out


def measure(
    name: str, device: str, compiled: str, batch: int, rate: float, draw: Callable[[str, torch.dtype], Tower]
) -> dict[str, Any]:
    """Measure one kind of item.

    Args:
        name: a key of tower_run.WHATS.
        device: where.
        compiled: see `Switches`.
        batch: items encoded at once.
        rate: FLOP a second of the device.
        draw: (tower, dtype) -> tower on the CPU.
    """
    what = dataclasses.replace(WHATS[name], items=batch)
    clips = draw_clips(what)
    with torch.inference_mode():
        tower = QuickTower(draw(what.tower, torch.bfloat16).to(device), Switches(compiled=compiled))
        taken = seconds(device, lambda: encode(tower, clips, device))
        few = clips[:TRUTH_CLIPS]
        got = torch.nn.functional.normalize(encode(tower, few, device).double().cpu(), dim=-1)
        exact = encode(QuickTower(draw(what.tower, torch.float32), Switches()), few, "cpu").double()
    truth = torch.nn.functional.normalize(exact, dim=-1)
    per_second = batch / min(taken)
    return {
        "items": batch,
        "wall_s": spread(taken),
        "items_a_second": per_second,
        "share_of_matrix_rate": per_second * flop(what, clips) / rate,
        "cosine_with_cpu_float32": float((got * truth).sum(1).min()),
    }


def main() -> int:
    """Measure, or say in one line why not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=BATCH, default=list(BATCH))
    parser.add_argument("--batch", type=int, help="items encoded at once")
    parser.add_argument("--compiled", nargs="+", default=["off", "inductor", "graphs"])
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no GPU here: nothing is measured.", file=sys.stderr)
        return 2
    rate = matrix_rate(options.device)
    result: dict[str, Any] = {"gpu": torch.cuda.get_device_name(options.device), "bf16_flop_s": rate, "measured": {}}
    for name in options.what:
        found = {}
        for compiled in options.compiled:
            batch = options.batch or BATCH[name]
            found[compiled] = measure(name, options.device, compiled, batch, rate, draw_tower)
            print(name, compiled, found[compiled], flush=True)
        result["measured"][name] = found
        write_result("gpu-towers", result)
        best = max(each["share_of_matrix_rate"] for each in found.values())
        write_score(f"gpu towers: {name}, share of the bf16 matrix rate", best, "share", f">= {SHARE}", COMMAND)
    return 0


if __name__ == "__main__":
    sys.exit(main())
