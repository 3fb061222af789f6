"""Search settings of a cache, chosen by what comes out of it: moved embeddings, asked for as users will ask.

Settings are tuned on held-out queries of the modalities that will ask, as those of any index. An overlap is not enough
for a cache: one first neighbour that is missed weighs up to half of the sum. So the overlap asked for is raised until
no held-out embedding comes out farther than `error` from where exact search moves it (docs/adr/0155). A query that is
itself a cached row is moved by the others alone: it would find itself, and weigh most.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.cache.recipe import CacheRecipe, CacheRecord, Enhancement, Tuning, queries_beside
from bindsearch.cache.rows import IndexRows, OtherRows
from bindsearch.cache.visual import VisualCache
from bindsearch.index.commit import commit, writing
from bindsearch.index.folder import IndexFolder
from bindsearch.index.heldout import held_out
from bindsearch.index.knobs import Knobs
from bindsearch.index.plan import knobs_of
from bindsearch.index.sizes import stored_read_bytes
from bindsearch.index.source import several
from bindsearch.index.tune import CONFIDENCE, Sample, Tuned, Tuner, snapshot_search
from bindsearch.index.tuned import OWN_ROWS, most_demanding
from bindsearch.store import Manifest

if TYPE_CHECKING:
    from bindsearch.index.snapshot import Snapshot
    from bindsearch.index.source import Embeddings
    from bindsearch.types import FloatArray

LOG = logging.getLogger(__name__)
HIGHEST = 0.9999
"""Overlaps above this are not aimed at: a sample of some hundred queries cannot tell them apart."""
_SPREAD = 2.0
"""How many times better the worst of the held-out embeddings has to come out, as settings were chosen on them."""


def tune_snapshot(
    snapshot: Snapshot,
    recipe: CacheRecipe,
    queries: Embeddings | Sequence[Embeddings] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Choose the settings of a cache.

    Args:
        snapshot: of its index.
        recipe: says how exactly, and with which numbers embeddings are moved.
        queries: stores of embeddings like those that will be moved; none: rows of the index itself.

    Returns:
        What the manifest holds as `tuned`; and what was measured, a modality each, for the cache's record:
        overlap, largest and mean error (1 - cosine), queries, their stores (whole paths), milliseconds a query. Both
        empty for exact indexes, and where a single row would ask for itself.

    Raises:
        InputError: numbers of the blend that cannot be meant.
        MissingInputError, MismatchError: as `held_out`.
    """
    knobs = knobs_of(snapshot).uncut()  # an embedding that comes out wrong is one query's, not a mean's
    if knobs.exact:
        return {}, {}
    recipe.enhancement.check()
    rows = IndexRows(snapshot, recipe.modality)
    numbers = replace(recipe.enhancement, cache_size=min(recipe.enhancement.cache_size, len(rows)))
    found: dict[str, Tuned] = {}
    measured: dict[str, Any] = {}
    for sample in _samples(held_out(snapshot, _placed(queries), numbers.cache_size, recipe.tuning.count), recipe):
        if len(rows) == 1 and sample.modality == recipe.modality and (sample.own >= 0).any():
            continue  # a single row has no other to be moved by
        cache = VisualCache(OtherRows(rows, sample.own))
        tuner = Tuner(snapshot_search(snapshot, sample.selectors), sample, knobs, numbers.cache_size)
        tuned, errors = _raised(cache, sample, tuner, knobs, recipe.tuning, numbers)
        point = tuned.chosen or tuned.best
        found[sample.modality] = tuned
        measured[sample.modality] = {
            "overlap": round(point.overlap, 5),
            "largest_error": float(errors.max()),
            "mean_error": float(errors.mean()),
            "queries": len(sample),
            "source": sample.source,
            "settings": point.settings,
            "search_ms": round(point.ms, 4),
        }
        if errors.max() > recipe.tuning.error:
            LOG.warning(
                "%s: %s embeddings come out up to %.1e from where exact search moves them, %.0e was asked for. "
                "Exact: cache enhance --exact, or build with --backend bytes",
                snapshot.path, sample.modality, errors.max(), recipe.tuning.error,
            )  # fmt: skip
    if not found:
        return {}, {}
    tuned_facts = {
        "k": numbers.cache_size,
        "confidence": CONFIDENCE,
        "asked": {"recall": recipe.tuning.overlap, "error": recipe.tuning.error, "held_out": recipe.tuning.count},
        "settings": most_demanding((each.chosen or each.best).settings for each in found.values()),
        "modalities": {modality: each.to_json(numbers.cache_size) for modality, each in found.items()},
        "read_bytes": stored_read_bytes(snapshot.manifest),
        "rows": snapshot.manifest.count,
    }
    return tuned_facts, measured


def _samples(found: Sequence[Sample], recipe: CacheRecipe) -> list[Sample]:
    """Take one sample a modality: where there are two, that whose answers may be rows of the cache's modality."""
    chosen: dict[str, Sample] = {}
    for sample in found:  # the one over the other modalities comes first
        if sample.modality not in chosen or recipe.modality == sample.modality:
            chosen[sample.modality] = sample
    return list(chosen.values())


def _raised(
    cache: VisualCache, sample: Sample, tuner: Tuner, knobs: Knobs, wanted: Tuning, numbers: Enhancement
) -> tuple[Tuned, FloatArray]:
    """Raise the overlap until the moved embeddings are near enough; gives the settings and each query's error.

    A sample confirms overlaps up to some point only (300 queries: 0.9967). From there on the knobs themselves are
    doubled, until the errors are within what was asked or there is no more to turn.
    """
    blend = (numbers.cache_size, numbers.inverse_temperature, numbers.weight)
    right = cache.enhance(sample.queries, *blend, exact=True).astype(np.float64)

    def errors_of(settings: dict[str, int]) -> FloatArray:
        moved = cache.enhance(sample.queries, *blend, settings)
        errors: FloatArray = 1 - (moved * right).sum(axis=1)
        return errors

    allowed, overlap = wanted.error / _SPREAD, wanted.overlap
    while True:
        tuned = tuner(overlap)
        settings = (tuned.chosen or tuned.best).settings
        errors = errors_of(settings)
        if errors.max() <= allowed:
            return tuned, errors
        if tuned.chosen is None or overlap >= HIGHEST:
            break
        overlap = min(HIGHEST, 1 - (1 - overlap) / 2)
    while errors.max() > allowed and (wider := knobs.doubled(settings)) != settings:
        settings, errors = wider, errors_of(wider)
    return tuner.confirm(settings), errors


def retune_cache(
    path: str | Path,
    queries: Embeddings | Sequence[Embeddings] = (),
    tuning: Tuning | None = None,
    changed: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Choose the settings of a cache that is there anew; rows and codes stay as they are.

    Args:
        path: the cache.
        queries: as in `tune_snapshot`; none: those that it was tuned on before, as far as they are there.
        tuning: what to reach; None: as its recipe says.
        changed: fields of `Tuning` that are to be otherwise.

    Returns:
        What was measured, a modality each; it stands in the cache's record, where there is one. Empty of an exact
        index, which stays as it is.
    """
    folder = IndexFolder.open(path)
    with writing(folder.path):
        folder.reload()
        record = CacheRecord.load(folder.path, folder.manifest.first_generation)
        recipe = CacheRecipe() if record is None else record.recipe
        wanted: dict[str, Any] = dict(changed or {})
        recipe = replace(recipe, tuning=replace(tuning or recipe.tuning, **wanted))
        named = several(queries) or (() if record is None else _queries_of(folder.path, record))
        tuned, measured = tune_snapshot(folder.snapshot, recipe, named)
        if not tuned:
            return {}
        manifest = folder.manifest
        commit(folder.path, replace(manifest, tuned=tuned, generation=manifest.generation + 1))
        if record is not None:
            replace(record, recipe=recipe, measured=measured).save(folder.path)
    return measured


def _placed(queries: Embeddings | Sequence[Embeddings]) -> list[Embeddings]:
    """Give stores of queries with their whole paths, by which a record finds them again from any folder."""
    return [
        Path(os.path.abspath(each)) if isinstance(each, str | Path) else each  # noqa: PTH100  # resolve() follows links
        for each in several(queries)
    ]


def _queries_of(cache: Path, record: CacheRecord) -> tuple[Path, ...]:
    """Give the stores of queries that a cache was tuned on, else those of its recipe beside it, if they are there.

    A store that no longer holds what it asked with is another one: records of before name them as they were typed.
    """
    asked: dict[str, set[str]] = {}
    for modality, found in record.measured.items():
        for name in str(found["source"]).split(" + "):
            if name not in ("", OWN_ROWS):
                asked.setdefault(name, set()).add(modality)
    there = tuple(Path(name) for name, modalities in asked.items() if modalities <= _held(Path(name)))
    gone = [name for name in asked if Path(name) not in there]
    if gone:
        LOG.warning(
            "%s: the queries that it was tuned on are gone, or hold no %s: %s. Name others: --queries EMBEDDINGS",
            cache,
            ", ".join(sorted(set().union(*(asked[name] for name in gone)))),
            ", ".join(gone),
        )
    beside = queries_beside(cache)
    return there or ((beside,) if record.recipe.tuning.queries and _held(beside) else ())


def _held(folder: Path) -> set[str]:
    """Give the modalities of a store; none where there is no store."""
    manifest = Manifest.load(folder)
    return set() if manifest is None else {name for name, count in manifest.counts.items() if count}
