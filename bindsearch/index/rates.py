"""What this machine does a second: a calibration of a few hundred milliseconds, kept in the cache by machine.

Three rates carry the time model of the planner: products of matrices (batches over rows, clustering), reading memory
(one query over rows), and scanning codes of one bit a column (FAISS's fast scan). CPU time of one thread, so that other
programs disturb them little.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from bindsearch.config import cache_dir, content_hash

_SPAN_S = 0.08
_ROWS, _DIM, _BATCH = 16384, 1024, 64
_CODES = 4096


@dataclass(frozen=True)
class Rates:
    """Speeds of one core.

    Attributes:
        product: float32 products of a batch of queries with rows, in 1e9 multiply-adds a second.
        stream: reading float32 rows for one query, in 1e9 bytes a second.
        code: rows of one-bit codes of 1024 columns that a query is compared with, in 1e6 a second; 0: not measured.
    """

    product: float
    stream: float
    code: float = 0.0

    def of(self, name: str) -> float:
        """Give a rate by its name; that of products stands in for codes where these were not measured."""
        value = float(getattr(self, name))
        return value or self.product


def machine_rates(with_codes: bool = True, fresh: bool = False) -> Rates:
    """Give this machine's rates: measured once, then from the cache.

    Args:
        with_codes: measure the scan of codes too; loads faiss.
        fresh: measure again.
    """
    path = _cache_file()
    kept = None if fresh else _read(path)
    if kept is not None and (kept.code or not with_codes):
        return kept
    found = measure_rates(with_codes)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.tmp-{os.getpid()}")
        draft.write_text(json.dumps(asdict(found)) + "\n", encoding="utf-8")
        draft.replace(path)
    except OSError:  # a cache that cannot be written costs the next run these milliseconds
        pass
    return found


def kept_note() -> str:
    """Say when the rates that are kept were measured, and how to have them measured anew; empty where none are."""
    path = _cache_file()
    try:
        measured = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
    except OSError:
        return ""
    return (
        f"Times are forecast by this machine's rates of {measured:%Y-%m-%d %H:%M}. Were other programs busy then? To "
        f"have them measured anew, delete {path}"
    )


def measure_rates(with_codes: bool = True) -> Rates:
    """Measure the rates now."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((_ROWS, _DIM), dtype=np.float32)
    batch = rng.standard_normal((_BATCH, _DIM), dtype=np.float32)
    size = rows.size
    product = size * _BATCH / _seconds(lambda: batch @ rows.T) / 1e9
    stream = rows.nbytes / _seconds(lambda: rows @ batch[0]) / 1e9
    return Rates(product, stream, _code_rate(rows[:_CODES], batch) if with_codes else 0.0)


def _code_rate(rows: np.ndarray, batch: np.ndarray) -> float:
    """Measure FAISS's fast scan; 0 where there is no FAISS that has it."""
    from bindsearch.errors import BindSearchError
    from bindsearch.index.faiss_index import load_faiss

    try:
        faiss = load_faiss()
        index = faiss.IndexRaBitQFastScan(rows.shape[1], faiss.METRIC_INNER_PRODUCT)
    except (BindSearchError, AttributeError):
        return 0.0
    index.train(rows)
    index.add(rows)
    return float(len(rows) * len(batch) / _seconds(lambda: index.search(batch, 10)) / 1e6)


def _seconds(work: Callable[[], object]) -> float:
    """Give the least CPU time of a call over as many as fit _SPAN_S, after one that is not counted."""
    work()
    best, begin = float("inf"), time.process_time()
    while time.process_time() - begin < _SPAN_S:
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return max(best, 1e-9)


def _cache_file() -> Path:
    from importlib import metadata

    what = (platform.machine(), _processor(), metadata.version("numpy"), 1)
    return cache_dir() / f"rates-{content_hash(list(what))}.json"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        return "".join(line for line in lines[:40] if line.startswith(("model name", "flags", "cpu family")))
    return platform.processor()


def _read(path: Path) -> Rates | None:
    try:
        return Rates(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
