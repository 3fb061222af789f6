"""What the ways to search under a filter cost, as measured: costs.json, written by benchmarks/bench_filters.py --costs.

A cost is linear in what is touched: stored rows, rows that pass, and both times queries, each times the components of a
row. Machines differ in speed, and less in the ratio of two ways to read the same rows, which is all that is asked here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from bindsearch.config import from_json_dict

_FILE = Path(__file__).parent / "costs.json"


@dataclass(frozen=True)
class Cost:
    """Nanoseconds of processor time.

    Attributes:
        search, query: once a search, and once a query.
        stored: a component (of d) of a stored row, once a search.
        passing: a component of a row that passes, once a search.
        stored_query, passing_query: the same a query.
    """

    search: float = 0.0
    query: float = 0.0
    stored: float = 0.0
    passing: float = 0.0
    stored_query: float = 0.0
    passing_query: float = 0.0

    def seconds(self, rows: int, survivors: int, queries: int, dim: int) -> float:
        """Predict a search of `queries` queries over `rows` stored rows of `dim`, `survivors` of which pass."""
        stored = self.stored + queries * self.stored_query
        passing = self.passing + queries * self.passing_query
        return 1e-9 * (self.search + queries * self.query + dim * (rows * stored + survivors * passing))


@dataclass(frozen=True)
class Costs:
    """The measured costs.

    Attributes:
        survivors: row dtype -> gathering the rows that pass and scoring them.
        masked: "backend/row dtype" -> the backend's own search under a mask; of exact backends.
        patience_ms: an approximate index answers exactly from the survivors where that takes no longer a query.
        measured: where and when, for people.
    """

    survivors: dict[str, Cost] = field(default_factory=dict)
    masked: dict[str, Cost] = field(default_factory=dict)
    patience_ms: float = 20.0
    measured: dict[str, str] = field(default_factory=dict)


@lru_cache(maxsize=1)
def measured_costs() -> Costs:
    """Read costs.json."""
    return from_json_dict(Costs, json.loads(_FILE.read_text(encoding="utf-8")), where=str(_FILE))
