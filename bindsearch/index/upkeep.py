"""When an index that was changed wants to be put in order: what to fold, and when to advise `compact` and `tune`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bindsearch.index.manifest import Manifest, SegmentEntry
from bindsearch.index.tuned import OWN_ROWS, holds

FOLD_WIDTH = 8
"""How many small segments of like size there may be before they become one (docs/adr/0099)."""
FOLD_FLOOR_ROWS = 1024
"""Segments up to this size count as of one size: writing them anew costs less than telling them apart."""
FOLD_LIMIT_BYTES = 1 << 30
"""Rows that one fold may write; above it `compact` is advised instead."""
SCAN_ADVICE_BYTES = 64 << 20
"""Added rows that every query scans before `compact` is advised: about 5 ms a query of one thread."""
REMOVED_ADVICE = 0.25
"""Share of removed rows from which `compact` is advised."""


def segments_to_fold(manifest: Manifest) -> set[int]:
    """Choose the segments that shall become one: the smallest size of which there are FOLD_WIDTH; empty: none.

    Sizes are counted in powers of FOLD_WIDTH above FOLD_FLOOR_ROWS, so that a row is written anew once a power. What
    another recipe than that of additions built stays as it is.
    """
    limit = FOLD_LIMIT_BYTES // _row_bytes(manifest)
    sizes: dict[int, list[int]] = {}
    for number, entry in enumerate(manifest.segments):
        if _is_addition(manifest, entry):
            size, bound = 0, FOLD_FLOOR_ROWS
            while _rows(entry) > bound:
                size, bound = size + 1, bound * FOLD_WIDTH
            sizes.setdefault(size, []).append(number)
    for _, numbers in sorted(sizes.items()):
        if len(numbers) >= FOLD_WIDTH and sum(_rows(manifest.segments[number]) for number in numbers) <= limit:
            return set(numbers)
    return set()


def advice(manifest: Manifest, here: str = "INDEX") -> list[str]:
    """Say what would make an index quicker, smaller or true again, with the reason; empty: nothing.

    Args:
        manifest: of the index.
        here: its folder, for what to type.
    """
    reasons = []
    stored = sum(entry.rows for entry in manifest.segments)
    removed = sum(entry.removed for entry in manifest.segments)
    if removed > REMOVED_ADVICE * stored:
        reasons.append(f"{removed:,} of {stored:,} stored rows are removed")
    if manifest.recipe is not None and manifest.recipe.backend != _small_backend(manifest):
        added = rows_beside(manifest)
        if added * _row_bytes(manifest) > SCAN_ADVICE_BYTES:
            reasons.append(f"{added:,} added rows are scanned beside what {manifest.recipe.backend} holds")
        elif manifest.segments and all(_is_addition(manifest, entry) for entry in manifest.segments):
            reasons.append(f"all rows of {manifest.recipe.backend} were replaced or removed; what was added is scanned")
    most = FOLD_WIDTH * 2
    if len(manifest.segments) > most:
        reasons.append(f"{len(manifest.segments)} segments are searched one by one")
    return ([f"compact: {'; '.join(reasons)}"] if reasons else []) + tuning_advice(manifest, here)


def tuning_advice(manifest: Manifest, here: str) -> list[str]:
    """Say that what was measured holds no longer, and what to type; empty where it holds."""
    tuned = manifest.tuned or {}
    if holds(tuned):
        return []
    asked = tuned.get("asked", {})
    how = "cache tune" if "error" in asked else "index tune"
    sources = {each.get("source", "") for each in tuned.get("modalities", {}).values()} - {OWN_ROWS}
    named = sorted({name or "EMBEDDINGS" for source in sources for name in source.split(" + ")})
    typed = shlex.join([here, *_options(asked), *(word for name in named for word in ("--queries", name))])
    return [
        f"tune: {tuned['changed']:,} items changed since search settings were measured on {tuned['rows']:,}: "
        f"bindsearch {how} {typed}"
    ]


def _options(asked: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was asked of a tuning as options of `index tune` or, with an error, of `cache tune`."""
    names = {"recall": "--overlap" if "error" in asked else "--recall", "error": "--error", "held_out": "--held-out"}
    names |= {"memory_bytes": "--memory", "latency_ms": "--latency"}
    for name, option in names.items():
        if asked.get(name) is not None:
            yield from (option, f"{asked[name]:.15g}")


def rows_beside(manifest: Manifest) -> int:
    """Count the living rows that were added beside what the recipe built; 0 where additions are built likewise."""
    if manifest.recipe is None or manifest.recipe.backend == _small_backend(manifest):
        return 0
    return sum(_rows(entry) for entry in manifest.segments if _is_addition(manifest, entry))


def _small_backend(manifest: Manifest) -> str:
    return manifest.backend if manifest.small_recipe is None else manifest.small_recipe.backend


def _is_addition(manifest: Manifest, entry: SegmentEntry) -> bool:
    """Say whether a segment is built as additions are."""
    return (entry.backend or manifest.backend) == _small_backend(manifest)


def _rows(entry: SegmentEntry) -> int:
    return entry.rows - entry.removed


def _row_bytes(manifest: Manifest) -> int:
    return np.dtype(manifest.row_dtype).itemsize * manifest.dim
