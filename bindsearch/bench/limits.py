"""What the machine can do at most: matrix products, memory, disk."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bindsearch.bench.timing import Figure, rate_figure, seconds_of

if TYPE_CHECKING:
    import torch

ROWS = {"cpu": (1024, 1280, 5120), "cuda": (8192, 8192, 8192)}
"""Sizes m, k, n of the product; on a processor those of the widest tower's MLP with four pictures."""
MEMORY_BYTES = 256 << 20
DISK_BYTES = 256 << 20
_CHUNK_BYTES = 8 << 20


def matrix_rate(device: torch.device, dtype: torch.dtype, budget_s: float) -> Figure:
    """Measure products of a (m, k) with a (k, n) matrix whose second one stays as it is, as weights do.

    On a processor the second matrix is laid out for it beforehand where the library can, as the towers do.

    Args:
        device: where.
        dtype: float32 or bfloat16.
        budget_s: seconds for all runs.
    """
    import torch

    from bindsearch.models.packed import PackedLinear, PlainLinear, can_pack

    m, k, n = ROWS.get(device.type, ROWS["cpu"])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(m, k, generator=generator).to(device, dtype)
    weight = torch.randn(n, k, generator=generator).to(device, dtype)
    packed = can_pack(weight)
    layer = PackedLinear(weight, None, fused_gelu=False) if packed else PlainLinear(weight, None)

    def run() -> None:
        with torch.inference_mode():
            layer(x)
            finish(device)

    name = str(dtype).removeprefix("torch.")
    times = seconds_of(run, budget_s)
    note = f"{m} × {k} × {n}{', packed' if packed else ''}"
    return rate_figure("limits", f"matrix products, {name}", "GFLOP/s", 2e-9 * m * k * n, times, note)


def finish(device: torch.device) -> None:
    """Wait until a device has done what it was told."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def memory_rate(device: torch.device, budget_s: float) -> Figure:
    """Measure a copy of 256 MiB; bytes read and bytes written both count."""
    import torch

    source = torch.ones(MEMORY_BYTES // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)

    def run() -> None:
        target.copy_(source)
        finish(device)

    times = seconds_of(run, budget_s)
    return rate_figure("limits", "memory, copy", "GB/s", 2e-9 * MEMORY_BYTES, times, "256 MiB, read + written")


def disk_rate(folder: Path) -> Figure:
    """Measure reading a file of 256 MiB from start to end, after the system was told to forget it.

    Args:
        folder: where the file is written; made where it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="bench-", suffix=".tmp") as file:
        chunk = os.urandom(_CHUNK_BYTES)
        for _ in range(DISK_BYTES // _CHUNK_BYTES):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
        buffer = bytearray(_CHUNK_BYTES)
        forgets = hasattr(os, "posix_fadvise")

        def run() -> None:
            if forgets:
                with contextlib.suppress(OSError):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with Path(file.name).open("rb", buffering=0) as reader:
                while reader.readinto(buffer):
                    pass

        times = seconds_of(run, 0.0)
    note = "256 MiB" if forgets else "256 MiB, from the system's cache: it cannot be told to forget"
    return rate_figure("limits", "disk, read", "GB/s", 1e-9 * DISK_BYTES, times, note)
