"""Exact search on a GPU: parity with the CPU, and time against the bytes that a pass must read.

python -m benchmarks.bench_gpu                            # 3M x 1024 of float16, batches of 1, 64 and 4096
python -m benchmarks.bench_gpu --rows 100000 --device cuda:1

The torch path (bindsearch/index/device.py) first, then faiss-gpu where a wheel with GPUs is installed: flat float16,
and CAGRA where it has cuVS. The floor of a batch is the larger of two times: reading every row once, and the products
at the rate of one large matrix product of float16, both measured here. Parity: every answer of the batch of 64 is
proven on the CPU as well, by byte codes; ids and scores must be equal. Without a GPU: one line, exit 2, no figures.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.bench_exact import prepare
from benchmarks.record import spread, write_result, write_score
from benchmarks.vectors import QUERIES, Law
from bindsearch.errors import BindSearchError, MissingExtraError

if TYPE_CHECKING:
    from bindsearch.index.device import DeviceIndex

COMMAND = "python -m benchmarks.bench_gpu"
K = 10
BATCHES = (1, 64, 4096)
RUNS = 7
PARITY_QUERIES = 64


def seconds(device: str, work: Any, runs: int = RUNS) -> list[float]:
    """Time something that runs on a device, after one warm-up."""
    import torch

    work()
    taken = []
    for _ in range(runs):
        torch.cuda.synchronize(device)
        begin = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - begin)
    return taken


def limits(device: str) -> dict[str, float]:
    """Measure what the device can: GB/s of reading, float16 products a second."""
    import torch

    words = torch.ones(1 << 30, dtype=torch.float16, device=device)  # 2 GB
    read = min(seconds(device, words.sum))
    side = torch.randn(8192, 8192, device=device).half()
    product = min(seconds(device, lambda: side @ side))
    return {"read_gb_s": words.nbytes / read / 1e9, "product_tflop_s": 2 * 8192**3 / product / 1e12}


def measure_torch(index: DeviceIndex, device: str, can: dict[str, float], dim: int) -> dict[str, Any]:
    """Time the scan on the device alone, and the whole search with its proof on the CPU."""
    law, found = Law(), {}
    rows = int(index.ids.shape[0])
    for batch in BATCHES:
        floor = max(rows * dim * 2 / can["read_gb_s"] / 1e9, 2 * rows * dim * batch / can["product_tflop_s"] / 1e12)
        found[str(batch)] = {"floor_ms": floor * 1e3}
        for kind in QUERIES:
            asked = law.queries(kind, batch, "fresh")
            scan = seconds(device, lambda asked=asked: index._scan(asked, K + 16, None, {}))
            whole = seconds(device, lambda asked=asked: index.search(asked, K), 3)
            found[str(batch)][kind] = {
                "scan_ms": spread([1e3 * one for one in scan]),
                "search_ms": spread([1e3 * one for one in whole]),
                "floor / scan": floor / statistics.median(scan),
                "queries_s": batch / statistics.median(whole),
            }
    return found


def measure_faiss(rows: Any, device: str) -> dict[str, Any]:
    """Time faiss-gpu where it is installed; else say why not."""
    from bindsearch.index.device import FaissGpu

    try:
        gpu = FaissGpu(device)
    except (BindSearchError, MissingExtraError) as error:
        return {"not measured": str(error)}
    law, found = Law(), {}
    for name, build in (("flat float16", gpu.flat), ("cagra", gpu.cagra)):
        try:
            begin = time.perf_counter()
            index = build(rows)
        except BindSearchError as error:
            found[name] = {"not measured": str(error)}
            continue
        found[name] = {"build_s": time.perf_counter() - begin}
        for batch in BATCHES:
            asked = law.queries("offset", batch, "fresh")
            taken = seconds(device, lambda asked=asked, index=index: index.search(asked, K))
            found[name][str(batch)] = spread([1e3 * one for one in taken])
        del index
    return found


def parity(folder: Path, placed: DeviceIndex) -> dict[str, Any]:
    """Compare answers with the CPU's proven ones; equal bit for bit."""
    from bindsearch.index.byte_index import BytesIndex

    cpu, law, found = BytesIndex.open(folder), Law(), {}
    for kind in QUERIES:
        asked = law.queries(kind, PARITY_QUERIES, "fresh")
        scores, ids, report = placed.search_exact(asked, K)
        true_scores, true_ids, _ = cpu.search_exact(asked, K)
        found[kind] = {
            "equal_scores": bool(np.array_equal(scores, true_scores)),
            "equal_ids": bool(np.array_equal(ids, true_ids)),
            "queries_widened": int((report.widened > 0).sum()),
        }
    return found


def main() -> int:
    """Measure, or say in one line why not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    from bindsearch.index.device import DeviceIndex, check_device

    try:
        device = check_device(options.device)
    except BindSearchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    import torch

    folder = prepare(options.rows, in_order=True)
    rows = np.load(folder / "vectors.npy", mmap_mode="r")
    can = limits(device)
    begin = time.perf_counter()
    placed = DeviceIndex(rows, np.load(folder / "ids.npy"), np.load(folder / "order.npy"), device)
    result = {
        "rows": options.rows,
        "gpu": torch.cuda.get_device_name(device),
        "unit": "milliseconds a batch, wall",
        "limits": can,
        "upload_s": time.perf_counter() - begin,
        "held": placed.held,
        "torch": measure_torch(placed, device, can, int(rows.shape[1])),
        "parity": parity(folder, placed),
    }
    del placed
    torch.cuda.empty_cache()
    result["faiss"] = measure_faiss(rows, device)
    write_result(f"gpu-{options.rows}", result)
    for batch, figures in result["torch"].items():
        share = figures["offset"]["floor / scan"]
        row = f"gpu exact {options.rows}: floor / scan, batch {batch}"
        write_score(row, share, "share of the limit", ">= 0.5", f"{COMMAND} --rows {options.rows}")
        print(f"batch {batch}: {figures['offset']['scan_ms']['median']:.2f} ms a scan, {share:.2f} of the limit")
    print(f"parity with the CPU: {result['parity']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
