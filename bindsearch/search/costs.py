"""What the ways to search under a filter cost, as measured: costs.json, written by benchmarks/bench_filters.py --costs.

A cost is a table over the share of rows that pass and the number of queries, in time a component of a stored row, so
that it carries over to other numbers of rows and columns. Machines differ in speed, and less in the ratio of two ways
to read the same rows, which is all that is asked here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from bindsearch.config import from_json_dict

_FILE = Path(__file__).parent / "costs.json"


@dataclass(frozen=True)
class Cost:
    """Processor time of a search, measured.

    Attributes:
        shares: of rows that pass, ascending.
        queries: asked together, ascending.
        ns: nanoseconds a component of a stored row: one tuple a number of queries, one number a share.
        search_ns, query_ns: what is paid beside that, once a search and once a query, however few rows pass.
    """

    shares: tuple[float, ...]
    queries: tuple[int, ...]
    ns: tuple[tuple[float, ...], ...]
    search_ns: float = 0.0
    query_ns: float = 0.0

    def seconds(self, rows: int, survivors: int, queries: int, dim: int) -> float:
        """Predict a search of `queries` queries over `rows` stored rows of `dim`, `survivors` of which pass.

        Between what was measured it goes straight, by share and by queries; more queries than were measured cost in
        proportion.
        """
        share = survivors / max(rows, 1)
        by_queries = [float(np.interp(share, self.shares, line)) for line in self.ns]
        most = self.queries[-1]
        each = float(np.interp(queries, self.queries, by_queries)) * max(1.0, queries / most)
        return 1e-9 * (self.search_ns + queries * self.query_ns + rows * dim * each)


@dataclass(frozen=True)
class Costs:
    """The measured costs.

    Attributes:
        survivors: row dtype -> gathering the rows that pass and scoring them.
        masked: "backend/row dtype" -> the backend's own search under a mask; of exact backends.
        patience_ms: an approximate index answers exactly from the survivors where that is forecast to take no longer a
            query: half of the 20 ms that a filtered query may take, as a forecast may be off by a factor of two.
        measured: where and when, for people.
    """

    survivors: dict[str, Cost] = field(default_factory=dict)
    masked: dict[str, Cost] = field(default_factory=dict)
    patience_ms: float = 10.0
    measured: dict[str, str] = field(default_factory=dict)


@lru_cache(maxsize=1)
def measured_costs() -> Costs:
    """Read costs.json."""
    return from_json_dict(Costs, json.loads(_FILE.read_text(encoding="utf-8")), where=str(_FILE))
