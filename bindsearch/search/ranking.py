"""Items ranked for queries: segments searched by their routes and merged, with a record of what ran."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bindsearch.config import to_json_dict
from bindsearch.search.costs import measured_costs
from bindsearch.search.routes import Step, choose_route, search_segment

if TYPE_CHECKING:
    from bindsearch.index.recipe import SearchSettings
    from bindsearch.index.snapshot import Snapshot
    from bindsearch.search.selectors import Selection
    from bindsearch.types import FloatArray, IntArray


@dataclass(frozen=True)
class Plan:
    """What a search ran and why.

    Attributes:
        queries: how many were asked together; the times are for all of them.
        items: living items of the index.
        survivors: those that pass the filter.
        scope: the filter as a line; empty: none.
        predicate_s: what evaluating the filter took; kept: its masks were at hand from an earlier search.
        steps: one a segment.
        search_s: wall time of the search, without the filter and the join of item columns.
    """

    queries: int
    items: int
    survivors: int
    scope: str = ""
    predicate_s: float = 0.0
    kept: bool = False
    steps: tuple[Step, ...] = ()
    search_s: float = 0.0

    def lines(self) -> list[str]:
        """Write the plan for people."""
        found = []
        if self.scope:
            how = "at hand from before" if self.kept else f"evaluated in {self.predicate_s * 1e3:.1f} ms"
            found.append(f"filter {self.scope}: {self.survivors:,} of {self.items:,} items pass, {how}")
        many = f" for {self.queries} queries" if self.queries > 1 else ""
        found.append(f"search{many}: {self.search_s * 1e3:.1f} ms" + ("" if self.steps else ", every passing row read"))
        return found + [f"  {step.line()}" for step in self.steps]

    def to_json(self) -> dict[str, Any]:
        """Give the plan as plain JSON types."""
        return to_json_dict(self)


@dataclass(frozen=True)
class Effort:
    """How hard to look.

    Attributes:
        exact: prove the answers, of approximate segments as well.
        settings: of approximate segments; None: as tuned.
    """

    exact: bool = False
    settings: SearchSettings | None = None


AS_TUNED = Effort()


@dataclass(frozen=True)
class Ranker:
    """Ranks the items of a snapshot that a selection lets pass.

    Attributes:
        snapshot: the state of the index.
        selection: what passes; None: everything.
        effort: how hard to look.
        plans: what ran so far.
    """

    snapshot: Snapshot
    selection: Selection | None = None
    effort: Effort = AS_TUNED
    plans: list[Plan] = field(default_factory=list)

    @property
    def items(self) -> int:
        """How many items may be answers."""
        return self.snapshot.manifest.count if self.selection is None else self.selection.count

    @property
    def proven(self) -> bool:
        """Whether the best k are those, whatever k and whatever is asked beside."""
        return self.effort.exact or all(segment.index.exact for segment in self.snapshot.segments)

    def rank(self, vectors: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
        """Find the k best items of each query; what ran is added to `plans`.

        Args:
            vectors: (q, d) float32, centred where the index is. Not modified.
            k: at least 1.

        Returns, Raises: as `Snapshot.search`.
        """
        began = time.perf_counter()
        selection = self.selection
        if self.effort.exact:
            found, steps = self._rank_proven(vectors, k)
        elif selection is None:
            found = self.snapshot.search(vectors, k, None, self.effort.settings)
            steps = self._whole_steps()
        else:
            found, steps = self._rank_selected(vectors, k, selection)
        plan = plan_of(self.snapshot, selection, int(vectors.shape[0]), time.perf_counter() - began, steps)
        self.plans.append(plan)
        return found

    def _rank_selected(
        self, vectors: FloatArray, k: int, selection: Selection
    ) -> tuple[tuple[FloatArray, IntArray], tuple[Step, ...]]:
        """Search each segment by its route and merge."""
        settings = self.snapshot.chosen_settings(self.effort.settings)
        found, steps = [], []
        for segment, mask, survivors in zip(self.snapshot.segments, selection.masks, selection.counts, strict=True):
            choice = choose_route(segment.index, survivors, vectors.shape[0], measured_costs())
            scores, ids, step = search_segment(segment, vectors, k, mask, choice, settings)
            found.append((scores, ids))
            steps.append(step)
        return self.snapshot.merge(vectors, k, found), tuple(steps)

    def _rank_proven(self, vectors: FloatArray, k: int) -> tuple[tuple[FloatArray, IntArray], tuple[Step, ...]]:
        """Search each segment exactly and merge; the steps say what the proof took."""
        found, steps = [], []
        for number, segment in enumerate(self.snapshot.segments):
            began = time.perf_counter()
            living = segment.entry.rows - segment.entry.removed
            survivors = living if self.selection is None else self.selection.counts[number]
            mask = None if self.selection is None else self.selection.masks[number]
            scores, ids, report = segment.index.search_exact(vectors, k, mask)
            found.append((scores, ids))
            touched = float(report.rows_touched_full.mean()) if report.rows_touched_full.size else 0.0
            why = f"proven; {touched:,.0f} rows read in full a query, {report.rows_scanned:,} in any form"
            took = time.perf_counter() - began
            steps.append(Step(segment.entry.name, segment.index.name, living, survivors, "exact", why, seconds=took))
        return self.snapshot.merge(vectors, k, found), tuple(steps)

    def _whole_steps(self) -> tuple[Step, ...]:
        """Say what an unfiltered search runs in each segment."""
        chosen = self.snapshot.chosen_settings(self.effort.settings)
        steps = []
        for segment in self.snapshot.segments:
            living = segment.entry.rows - segment.entry.removed
            own = {name: chosen.get(name, value) for name, value in segment.index.settings.items()}
            why = "nothing is filtered, every answer is proven" if segment.index.exact else "nothing is filtered"
            steps.append(Step(segment.entry.name, segment.index.name, living, living, "whole", why, own))
        return tuple(steps)


def plan_of(
    snapshot: Snapshot, selection: Selection | None, queries: int, seconds: float, steps: Sequence[Step] = ()
) -> Plan:
    """Put together what is known of a search that took so long."""
    items = snapshot.manifest.count
    return Plan(
        queries=queries,
        items=items,
        survivors=items if selection is None else selection.count,
        scope="" if selection is None else selection.text,
        predicate_s=0.0 if selection is None else selection.seconds,
        kept=selection is not None and selection.kept,
        steps=tuple(steps),
        search_s=seconds,
    )
