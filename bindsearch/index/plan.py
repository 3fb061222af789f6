"""From a budget to an index: forecast every candidate, build the one that should do, measure it, and say what it does.

    candidates.json   recipes as data
    sizes.py          bytes, from the formats
    growth.py         time, from measurements and this machine's rates (rates.py)
                      -> the plan, printed before any work
    build.py          builds in blocks
    heldout.py        queries of the modalities that will ask
    tune.py           settings, by measurement (knobs.py looks for them, together.py joins those of several samples)
                      -> what was measured, in the manifest

An exact index that fits the budget is taken before any other; among the others the one forecast to be fastest. What
was measured decides: a candidate that falls short of the budget is given up for the next one.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindsearch.config import from_json_dict
from bindsearch.errors import BudgetError, InputError, MissingInputError
from bindsearch.index.base import Progress, no_progress
from bindsearch.index.budget import Budget, Cost, format_bytes, format_ms, refuse
from bindsearch.index.build import build_index
from bindsearch.index.commit import commit, writing
from bindsearch.index.growth import growth_of
from bindsearch.index.heldout import COUNT, check_queries, held_out
from bindsearch.index.knobs import Knobs
from bindsearch.index.rates import Rates, machine_rates
from bindsearch.index.recipe import Recipe
from bindsearch.index.sizes import disk_bytes, read_bytes, stored_read_bytes
from bindsearch.index.source import Embeddings, open_source
from bindsearch.index.together import tune_together
from bindsearch.index.tune import CONFIDENCE, Sample, Tuned
from bindsearch.index.tuned import most_demanding
from bindsearch.registry import INDEXES

if TYPE_CHECKING:
    from bindsearch.index.folder import IndexFolder
    from bindsearch.index.snapshot import Snapshot

LOG = logging.getLogger(__name__)
CANDIDATES = Path(__file__).with_name("candidates.json")
K = 10
"""Answers a query that overlap is measured on."""
FORECAST_FACTOR = 2.0
"""How far off a forecast of time may be: who is late by less is built and measured before being refused."""
EXACT_WITHOUT_LIMIT_MS = 20.0
"""Where no latency is asked for, an exact index is taken if a query is forecast to stay below this."""
NEARLY_ALL = 0.99
"""The overlap that an index which does not see every row is offered at where all answers are asked for: 500 held-out
queries, all answered perfectly, confirm 0.998."""

_BLOCK = 65536


@dataclass(frozen=True)
class Forecast:
    """What a candidate is expected to take.

    Attributes:
        recipe: the candidate.
        exact: whether it sees every row.
        recall: the overlap that it is forecast at: the one asked for; NEARLY_ALL where that is 1 and it is not exact.
            Where none is asked for: 1 where it is exact, else None, since nothing is tuned.
        read_bytes, disk_bytes: that searches keep reading; all of the segment. None: its format is not known here.
        latency_ms: of a query asked alone at that overlap; None: no overlap, or nobody measured this backend.
        recall_within: the largest overlap within the latency asked for; None: no latency asked for, or not measured.
        build_s: CPU seconds of building; None: not measured.
    """

    recipe: Recipe
    exact: bool
    recall: float | None
    read_bytes: int | None
    disk_bytes: int | None
    latency_ms: float | None
    recall_within: float | None
    build_s: float | None

    @property
    def name(self) -> str:
        """Backend and row dtype."""
        return f"{self.recipe.backend} {self.recipe.row_dtype}"

    def costs(self, budget: Budget) -> list[Cost]:
        """Give the ways of taking it: at its overlap, and within the latency asked for at a lower one."""
        memory, recall = self.read_bytes or 0, self.recall or 0.0
        ways = [Cost(self.name, recall, memory, self.latency_ms)]
        if self.recall_within is not None and 0.5 < self.recall_within < recall:
            ways.append(Cost(self.name, self.recall_within, memory, budget.latency_ms))
        return ways

    def to_json(self) -> dict[str, Any]:
        """Write plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """What may be built for a budget.

    Attributes:
        budget: what is asked; None: nothing, so that nothing is tuned.
        rows, dim: of the embeddings.
        rates: of this machine.
        forecasts: of all candidates.
        order: those worth building, best first.
    """

    budget: Budget | None
    rows: int
    dim: int
    rates: Rates
    forecasts: tuple[Forecast, ...]
    order: tuple[Forecast, ...]

    def to_json(self) -> dict[str, Any]:
        """Write plain JSON types."""
        return {
            "budget": None if self.budget is None else asdict(self.budget),
            "rows": self.rows,
            "dim": self.dim,
            "rates": asdict(self.rates),
            "forecasts": [each.to_json() for each in self.forecasts],
            "order": [each.name for each in self.order],
        }

    def to_text(self) -> str:
        """Write a table for people: one line a candidate, the one to build first marked."""
        overlap = "" if self.budget is None else f" at overlap {self.budget.recall:g}"
        lines = [f"{self.rows} rows x {self.dim}; forecast{overlap}, one query on one core"]
        lines.append(f"  {'candidate':<22}{'memory':>9}{'disk':>9}{'build':>9}{'query':>10}")
        for each in self.forecasts:
            mark = "->" if self.order and each is self.order[0] else " ·" if each in self.order else "  "
            memory = "?" if each.read_bytes is None else format_bytes(each.read_bytes)
            disk = "?" if each.disk_bytes is None else format_bytes(each.disk_bytes)
            build = "?" if each.build_s is None else f"{each.build_s:.0f}s"
            query = "?" if each.latency_ms is None else format_ms(each.latency_ms)
            lines.append(f"{mark} {each.name:<21}{memory:>9}{disk:>9}{build:>9}{query:>10}{self._remark(each)}")
        return "\n".join(lines)

    def _remark(self, forecast: Forecast) -> str:
        """Say where a candidate is forecast at another overlap than the one asked for, or at none."""
        if forecast.recall is None:
            return "  not tuned; --recall tunes it"
        other = self.budget is not None and forecast.recall != self.budget.recall
        return f"  at overlap {forecast.recall:g}" if other else ""


def candidates(row_dtype: str | None = None, backend: str | None = None) -> list[Recipe]:
    """Read the recipes that may be planned, of those whose packages are here.

    Args:
        row_dtype: only those that store rows so; None: any.
        backend: only this one; None: any.

    Raises:
        UnknownNameError: no such backend.
        InputError: nothing is left.
    """
    table = json.loads(CANDIDATES.read_text(encoding="utf-8"))
    found = []
    for entry in table["candidates"]:
        recipe = from_json_dict(Recipe, entry["recipe"], str(CANDIDATES))
        if recipe.backend in INDEXES and all(importlib.util.find_spec(name) for name in entry.get("needs", [])):
            found.append(recipe)
    if backend is not None:
        INDEXES[backend]
        found = [each for each in found if each.backend == backend] or [Recipe(backend)]
    if row_dtype is not None:
        kept: list[Recipe] = []
        for each in (replace(one, row_dtype=row_dtype) for one in found):
            kept += [] if each in kept else [each]
        return kept
    return found


def make_plan(rows: int, dim: int, budget: Budget | None, recipes: Sequence[Recipe] | None = None) -> Plan:
    """Forecast candidates and order those that may meet a budget; builds nothing.

    Args:
        rows: of the embeddings.
        dim: columns of each.
        budget: what is asked; None: nothing, and the candidates are ordered as they are.
        recipes: the candidates; None: all.

    Raises:
        BudgetError: none can meet it, by bytes that are known or by a time that is far off.
        InputError: a recipe has numbers that its backend does not know.
    """
    recipes = candidates() if recipes is None else list(recipes)
    rates = machine_rates(with_codes=any(not INDEXES[each.backend].exact for each in recipes))
    forecasts = tuple(_forecast(each, rows, dim, budget, rates) for each in recipes)
    if budget is None:
        return Plan(budget, rows, dim, rates, forecasts, forecasts)
    order = tuple(sorted((each for each in forecasts if _may_do(each, budget)), key=lambda each: _rank(each, budget)))
    if not order:
        costs = [cost for each in forecasts for cost in each.costs(budget)]
        raise refuse(budget, costs, f"{rows} rows x {dim}")
    return Plan(budget, rows, dim, rates, forecasts, order)


def _forecast(recipe: Recipe, rows: int, dim: int, budget: Budget | None, rates: Rates) -> Forecast:
    """Forecast one candidate."""
    _check_build(recipe)
    exact = bool(INDEXES[recipe.backend].exact)
    recall = _forecast_recall(exact, budget)
    growth = growth_of(recipe)
    latency = within = build_s = None
    if growth is not None:
        latency = None if recall is None else growth.ms(rows, dim, recall, rates)
        build_s = growth.build_s(rows, dim, rates)
        if budget is not None and budget.latency_ms is not None and not exact:
            within = growth.recall_within(rows, dim, budget.latency_ms, rates)
    sizes = read_bytes(recipe, rows, dim), disk_bytes(recipe, rows, dim)
    return Forecast(recipe, exact, recall, *sizes, latency, within, build_s)


def _check_build(recipe: Recipe) -> None:
    """Have a backend refuse numbers, unless a class of it brings `build_files` alone: that one looks at them."""
    backend = INDEXES[recipe.backend]
    builder = next(each for each in backend.__mro__ if "build_files" in vars(each) or "check_build" in vars(each))
    if "check_build" in vars(builder):
        backend.check_build(recipe.build)


def _forecast_recall(exact: bool, budget: Budget | None) -> float | None:
    """Give the overlap that a candidate is forecast at; see `Forecast`."""
    if budget is None:
        return 1.0 if exact else None
    return budget.recall if exact or budget.recall < 1 else NEARLY_ALL


def _may_do(forecast: Forecast, budget: Budget) -> bool:
    """Say whether a candidate is worth building: bytes are exact, times may be off by FORECAST_FACTOR."""
    return not forecast.costs(budget)[0].misses(budget, FORECAST_FACTOR)


def _rank(forecast: Forecast, budget: Budget) -> tuple[bool, bool, float]:
    """Order: exact within the latency, then forecast to be within it, then the fastest."""
    late = forecast.latency_ms is None or forecast.latency_ms > (budget.latency_ms or EXACT_WITHOUT_LIMIT_MS)
    return late, not forecast.exact, forecast.latency_ms if forecast.latency_ms is not None else float("inf")


# ---- building --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """What a caller wants of an index beside the budget.

    Attributes:
        queries: stores to tune on; see `held_out`.
        count: held-out queries a modality.
        recipes: the candidates; None: all.
        force: replace an index that is there.
        centre, centre_with: see `build_index`.
    """

    queries: tuple[Embeddings, ...] = ()
    count: int = COUNT
    recipes: tuple[Recipe, ...] | None = None
    force: bool = False
    centre: bool = False
    centre_with: tuple[Embeddings, ...] = ()


def plan_for(embeddings: Embeddings, budget: Budget | None, recipes: Sequence[Recipe] | None = None) -> Plan:
    """Plan for embeddings, see `make_plan`; reads their counts alone.

    Raises:
        MissingInputError: no embedded item.
        BudgetError: see `make_plan`.
    """
    source, name = open_source(embeddings)
    rows = len(source) if isinstance(source, Sized) else sum(len(ids) for ids, _, _ in source.iter_blocks(_BLOCK))
    if not rows:
        raise MissingInputError(f"{name or 'embeddings'}: no embedded item. Type: bindsearch embed SRC -o {name}")
    return make_plan(rows, int(source.manifest.dim), budget, recipes)


def build_planned(
    embeddings: Embeddings,
    output: str | Path,
    budget: Budget,
    wish: Wish | None = None,
    progress: Progress = no_progress,
) -> IndexFolder:
    """Build an index that meets a budget, as measured on held-out queries; otherwise leave the folder as it was.

    Args:
        embeddings: to index.
        output: folder of the index.
        budget: what is asked.
        wish: the rest.
        progress: told how far it is.

    Raises:
        BudgetError: no candidate meets it; the nearest budgets that can be met, or may by forecast, are named.
        Others as `build_index` and `held_out`.
    """
    wish, output = wish or Wish(), Path(output)
    plan = plan_for(embeddings, budget, wish.recipes)
    check_queries(embeddings, wish.queries)
    costs = [cost for each in plan.forecasts if each not in plan.order for cost in each.costs(budget)]
    for forecast in plan.order:

        def judge(snapshot: Snapshot, forecast: Forecast = forecast) -> dict[str, Any]:
            tuned, ways = measure(snapshot, budget, wish.queries, wish.count)
            if all(way.misses(budget) for way in ways):
                costs.extend(ways)
                raise BudgetError(f"{forecast.name}: {ways[0].misses(budget)}")
            return {**tuned, "forecast": forecast.to_json() | {"recipe": forecast.name}}

        try:
            return build_index(
                embeddings,
                output,
                forecast.recipe,
                wish.force,
                wish.centre,
                wish.centre_with,
                judge,
                progress,
                wish.queries,
            )
        except BudgetError as error:
            LOG.warning("measured and given up: %s", error)
    raise refuse(budget, costs, str(output))


def measure(
    snapshot: Snapshot, budget: Budget, queries: Embeddings | Sequence[Embeddings] = (), count: int = COUNT
) -> tuple[dict[str, Any], list[Cost]]:
    """Tune an index for a budget.

    Args:
        snapshot: of the index.
        budget: its recall is tuned for; memory and latency are measured and compared by the caller.
        queries: stores to tune on.
        count: held-out queries a modality.

    Returns:
        What the manifest holds as `tuned`, and the ways of taking the index: as tuned, and within the latency asked for
        at the overlap that the curve has there.
    """
    name = snapshot.manifest.backend
    samples: dict[str, list[Sample]] = {}
    for sample in held_out(snapshot, queries, K, count):
        samples.setdefault(sample.modality, []).append(sample)
    knobs = knobs_of(snapshot)
    found = {name: tune_together(snapshot, each, knobs, budget.recall, K) for name, each in samples.items()}
    memory = stored_read_bytes(snapshot.manifest)
    tuned = {
        "k": K,
        "confidence": CONFIDENCE,
        "asked": {**asdict(budget), "held_out": count},
        "settings": most_demanding((each.chosen or each.best).settings for each in found.values()),
        "modalities": {modality: each.to_json(K) for modality, each in found.items()},
        "read_bytes": memory,
        "rows": snapshot.manifest.count,
    }
    reached = all(each.chosen is not None for each in found.values())
    recall = budget.recall if reached else min(each.best.low for each in found.values())
    alone = max(each.alone_ms for each in found.values())
    ways = [Cost(name, recall, memory, alone, measured=True)]
    if budget.latency_ms is not None and alone > budget.latency_ms:
        ways += _lower(name, found, memory, budget.latency_ms)
    return tuned, ways


def _lower(name: str, found: Mapping[str, Tuned], memory: int, latency_ms: float) -> list[Cost]:
    """Give what an index that is too slow reaches within a latency, where its curve has a point there."""
    recalls = []
    for each in found.values():
        beside = each.alone_ms - (each.chosen or each.best).ms  # what a query alone takes more than one of a batch
        fast = [point.low for point in each.curve if point.ms + beside <= latency_ms]
        recalls.append(max(fast, default=0.0))
    return [Cost(name, min(recalls), memory, latency_ms, measured=True)] if min(recalls) > 0 else []


def knobs_of(snapshot: Snapshot) -> Knobs:
    """Collect the knobs of an index's segments, each with the largest value that changes anything."""
    settings: dict[str, int] = {}
    most: dict[str, int] = {}
    for segment in snapshot.segments:
        settings |= segment.index.settings
        for knob in segment.index.settings:
            most[knob] = max(most.get(knob, 1), segment.index.most(knob))
    return Knobs.of(settings, most, exact=all(segment.index.exact for segment in snapshot.segments))


def retune(
    folder: IndexFolder, budget: Budget, queries: Embeddings | Sequence[Embeddings] = (), count: int = COUNT
) -> dict[str, Any]:
    """Tune an index that is there, for other queries or another recall; rows and codes stay as they are.

    Returns:
        What the manifest now holds as `tuned`.

    Raises:
        BudgetError: the index cannot meet the budget; its settings stay.
    """
    with writing(folder.path):
        folder.reload()
        tuned, ways = measure(folder.snapshot, budget, queries, count)
        if all(way.misses(budget) for way in ways):
            raise refuse(budget, ways, str(folder.path))
        manifest = folder.manifest
        commit(folder.path, replace(manifest, tuned=tuned, generation=manifest.generation + 1))
        folder.reload()
    return tuned


@dataclass(frozen=True)
class _BudgetWords:
    """A budget as a recipe file says it; see `Budget.parse`."""

    recall: float = 0.95
    memory: str | None = None
    latency: str | None = None


@dataclass(frozen=True)
class _RecipeFile:
    """What a recipe file may hold; `cache` is read by `cache.recipe`, `about` by people."""

    recipe: Recipe
    budget: _BudgetWords = field(default_factory=_BudgetWords)
    about: str = ""
    cache: dict[str, Any] = field(default_factory=dict)


def read_recipe(path: Path) -> tuple[Recipe, Budget]:
    """Read a recipe file such as indexes/visual-cache.json: a recipe, and the budget that it is tuned for.

    Raises:
        MissingInputError: it is not there.
        InputError: it is no such file, or holds an unknown field or a value that cannot be meant.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}: no such recipe.") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(data, dict) or "recipe" not in data:
        raise InputError(f'{path}: expected {{"recipe": {{"backend": ...}}, "budget": {{"recall": ...}}}}.')
    found = from_json_dict(_RecipeFile, data, str(path))
    try:
        return found.recipe, Budget.parse(found.budget.recall, found.budget.memory, found.budget.latency)
    except InputError as error:
        raise InputError(f"{path}: budget: {error}") from error
