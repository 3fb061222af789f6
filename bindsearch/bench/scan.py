"""How fast an exact index is searched, from memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bindsearch.bench.timing import Figure, seconds_of, time_figure
from bindsearch.registry import INDEXES

ROWS, DIM, COUNT = 100_000, 1024, 10
BACKEND = "faiss-flat"


def scan_figures(budget_s: float) -> Iterator[Figure]:
    """Search 100,000 random unit rows of 1,024 numbers for 10 answers: one query, then 64 at once.

    Args:
        budget_s: seconds for all runs, without drawing the rows.
    """
    rows = np.random.default_rng(0).standard_normal((ROWS, DIM), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    index = INDEXES[BACKEND].build(np.arange(ROWS, dtype=np.int64), rows)
    for asked, share in ((1, 0.4), (64, 0.6)):
        queries = np.ascontiguousarray(rows[:: ROWS // asked][:asked])
        times = seconds_of(lambda queries=queries: index.search(queries, COUNT), share * budget_s)  # type: ignore[misc]
        each = [one / asked for one in times]
        note = f"{ROWS:,} × {DIM} float32, exact ({BACKEND}), {1e-9 * rows.nbytes / min(each):.0f} GB/s of rows"
        yield time_figure(
            "index", f"search, {asked} at once" if asked > 1 else "search, one query", "ms/query", each, 1e3, note
        )
