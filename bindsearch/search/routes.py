"""Routes: how a search under a filter runs in each segment, chosen from how many rows pass, and what ran.

    none      no row passes: nothing runs
    rows      the rows that pass are gathered and scored, exactly; the others are not read
    mask      the backend searches with the rows that pass as its selector
    codes     byte codes beside the backend decide which of the rows that pass are scored; exact
    drop      the backend has no selector: it searches deeper and what does not pass is dropped

Exact backends give the same answers on every route; the cheapest is taken by the measured costs (`costs.py`). For an
approximate backend `rows` and `codes` are preferred as long as a query should take no more than 10 ms; else
its settings were tuned without a filter, so they are taken fourfold until two settings in a row agree on the answers
(docs/adr/0105).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bindsearch.index.recipe import MARGIN, NO_MARGIN
from bindsearch.search.costs import Costs
from bindsearch.search.survivors import Survivors

if TYPE_CHECKING:
    from bindsearch.index.base import IndexBackend
    from bindsearch.index.recipe import SearchSettings
    from bindsearch.index.segment import Segment
    from bindsearch.types import BoolArray, FloatArray, IntArray

    Found = tuple[FloatArray, IntArray]

_STEP = 4
"""Between two efforts: 2 agrees too early (overlap 0.94 in the worst case tried, against 0.995), and costs no less."""
ROUTES = ("none", "rows", "codes", "mask", "drop", "whole", "exact")


@dataclass(frozen=True)
class Step:
    """What ran in one segment.

    Attributes:
        segment: its name; backend: that of its rows.
        rows: living rows; survivors: those that pass.
        route: one of ROUTES; "whole" and "exact": without a filter.
        why: in words.
        settings: of the last search of the backend, where it has any.
        rounds: searches of the backend.
        seconds: wall time; 0 where only the whole search was timed.
    """

    segment: str
    backend: str
    rows: int
    survivors: int
    route: str
    why: str
    settings: Mapping[str, int] = field(default_factory=dict)
    rounds: int = 1
    seconds: float = 0.0

    def line(self) -> str:
        """Write the step as a line."""
        knobs = "".join(f", {name} {value}" for name, value in self.settings.items())
        again = f", {self.rounds} rounds" if self.rounds > 1 else ""
        took = f", {self.seconds * 1e3:.1f} ms" if self.seconds else ""
        return (
            f"{self.segment} ({self.backend}): {self.survivors:,} of {self.rows:,} rows, {self.route}: {self.why}"
            f"{knobs}{again}{took}"
        )


@dataclass(frozen=True)
class Choice:
    """A route and why it was taken."""

    route: str
    why: str


def choose_route(index: IndexBackend, survivors: int, queries: int, costs: Costs) -> Choice:
    """Choose how to search a segment under a filter.

    Args:
        index: the segment's backend.
        survivors: living rows that pass.
        queries: how many are asked together.
        costs: as measured.
    """
    rows = int(index.ids.shape[0])
    if survivors == 0:
        return Choice("none", "no row passes")
    cost = costs.survivors.get(index.row_dtype)
    gathered = 0.0 if cost is None else cost.seconds(rows, survivors, queries, index.dim)
    if "selector" not in index.abilities and (index.exact or gathered / queries * 1e3 > costs.patience_ms):
        return Choice("drop", f"{index.name} has no selector")
    if not index.exact:
        return _choose_exact_or_mask(index, survivors, queries, costs, gathered)
    own = costs.masked.get(f"{index.name}/{index.row_dtype}")
    if own is None:
        return Choice("rows", f"nothing is measured for {index.name} under a mask")
    masked = own.seconds(rows, survivors, queries, index.dim)
    words = f"about {gathered * 1e3:.1f} ms for {queries}, under a mask {masked * 1e3:.1f}"
    return Choice("rows" if gathered <= masked else "mask", words)


def _choose_exact_or_mask(index: IndexBackend, survivors: int, queries: int, costs: Costs, gathered: float) -> Choice:
    """Choose for an approximate backend: an exact route where one is patient enough, else its own search."""
    times = {"rows": gathered}
    by_codes = costs.masked.get(f"bytes/{index.row_dtype}")
    if index.codes is not None and by_codes is not None:
        times["codes"] = by_codes.seconds(int(index.ids.shape[0]), survivors, queries, index.dim)
    route = min(times, key=lambda name: times[name])
    each = times[route] / queries * 1e3
    if each <= costs.patience_ms:
        return Choice(route, f"exact in about {each:.1f} ms a query, at most {costs.patience_ms:g}")
    return Choice("mask", f"exact would take about {each:.0f} ms a query, more than {costs.patience_ms:g}")


def search_segment(
    segment: Segment,
    units: FloatArray,
    k: int,
    mask: BoolArray,
    choice: Choice,
    settings: SearchSettings,
) -> tuple[FloatArray, IntArray, Step]:
    """Search one segment under a filter.

    Args:
        segment: the segment.
        units: (q, d) float32. Not modified.
        k: at least 1.
        mask: (n,) bool over its stored rows, of living rows only. Not modified.
        choice: the route.
        settings: of the index, as tuned; those that the backend does not read are passed over.

    Returns:
        scores (q, k) float32 and ids (q, k) int64 as of `IndexBackend.search`, and what ran.
    """
    began = time.perf_counter()
    index, survivors = segment.index, int(np.count_nonzero(mask))
    own = {name: settings.get(name, value) for name, value in index.settings.items()}
    rounds = 1
    if choice.route == "none":
        found = _nothing(units.shape[0], k)
        own = {}
    elif choice.route == "rows":
        found = _search_rows(index, units, k, mask)
        own = {}
    elif choice.route == "codes":
        found = index.search_exact(units, k, mask)[:2]
        own = {}
    elif choice.route == "mask" and index.exact:
        found = index.search(units, k, mask)
    else:
        found, own, rounds = _search_until_agreed(index, units, k, mask, own, choice.route)
    took = time.perf_counter() - began
    living = segment.entry.rows - segment.entry.removed
    step = Step(segment.entry.name, index.name, living, survivors, choice.route, choice.why, own, rounds, took)
    return *found, step


def _nothing(queries: int, k: int) -> Found:
    return np.full((queries, k), -np.inf, dtype=np.float32), np.full((queries, k), -1, dtype=np.int64)


def _search_rows(index: IndexBackend, units: FloatArray, k: int, mask: BoolArray) -> Found:
    return Survivors(index, np.flatnonzero(mask)).search(units, k)


def _search_until_agreed(
    index: IndexBackend, units: FloatArray, k: int, mask: BoolArray, settings: dict[str, int], route: str
) -> tuple[Found, dict[str, int], int]:
    """Search with four times the effort until two efforts in a row give the same answers; queries that agree are done.

    Where the effort would reach every survivor, what is left is answered from the survivors, exactly.
    """
    survivors = int(np.count_nonzero(mask))
    wanted = min(k, survivors)
    found = _nothing(units.shape[0], k)
    open_ = np.arange(units.shape[0])
    before: IntArray | None = None
    rounds = 0
    for used, fetch in _efforts(index, settings, k, survivors, route):
        rounds += 1
        scores, ids = _search_once(index, units[open_], k, mask, used, fetch if route == "drop" else None)
        found[0][open_], found[1][open_] = scores, ids
        settings = used
        full = (ids >= 0).sum(axis=1) == wanted
        agreed = full if index.exact else (full & (before == ids).all(axis=1) if before is not None else full & False)
        open_, before = open_[~agreed], ids[~agreed]
        if not open_.size:
            return found, settings, rounds
    scores, ids = _search_rows(index, units[open_], k, mask)
    found[0][open_], found[1][open_] = scores, ids
    return found, settings, rounds + 1


def _efforts(
    index: IndexBackend, settings: dict[str, int], k: int, survivors: int, route: str
) -> Iterator[tuple[dict[str, int], int]]:
    """Give settings and depths of search, each four times the one before, until they reach as far as all survivors."""
    rows = int(index.ids.shape[0])
    fetch = -(-k * rows // survivors)
    far = survivors if route == "mask" else rows
    effort = 1
    while True:
        used = {name: value * effort for name, value in settings.items()}
        used |= {name: min(value, NO_MARGIN) for name, value in used.items() if name.endswith(MARGIN)}
        yield used, min(fetch * effort, rows)
        looked_at = [value for name, value in used.items() if not name.endswith(MARGIN)]
        reach = max(looked_at, default=0) if route == "mask" else fetch * effort
        if reach >= far or (route == "mask" and not used):
            return
        effort *= _STEP


def _search_once(
    index: IndexBackend, units: FloatArray, k: int, mask: BoolArray, settings: dict[str, int], fetch: int | None
) -> Found:
    """Search under a mask, or `fetch` deep without one and drop what does not pass."""
    if fetch is None:
        return index.search(units, k, mask, settings)
    scores, ids = index.search(units, fetch, None, settings)
    found = _nothing(units.shape[0], k)
    for row in range(units.shape[0]):
        places = index.positions(ids[row])
        kept = np.flatnonzero((places >= 0) & mask[places])[:k]
        found[0][row, : kept.size], found[1][row, : kept.size] = scores[row, kept], ids[row, kept]
    return found
