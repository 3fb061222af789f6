"""What the planner measured of an index, as it stands in the manifest, and which settings a query gets of it.

    {"k": 10, "confidence": 0.95, "asked": {"recall": 0.95, ...}, "settings": {"nprobe": 24, "rerank": 80},
     "modalities": {"text": {"settings": {...}, "overlap_at_10": 0.962, "overlap_low": 0.953, "ms": 0.9, "qps": 1500,
                             "queries": 1000, "source": "runs/questions", "curve": [{...}, ...]}},
     "read_bytes": 460000000, "rows": 1000000, "changed": 1200}

`settings` beside `modalities` are the most demanding ones of all modalities; a query of a modality that nobody tuned
for gets these. `rows` are the items that were measured on, `changed` counts those that were added, replaced or removed
since; indexes of earlier versions do not say. Beyond CHANGED_MOST the figures are taken out (`after_change`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bindsearch.index.recipe import MARGIN

CHANGED_MOST = 0.05
"""Share of the measured items that may change before what was measured of them holds no longer."""
OWN_ROWS = "rows of the index"
"""Where queries come from that nobody named."""


def settings_for(tuned: Mapping[str, Any] | None, modalities: Iterable[str] = ()) -> dict[str, int]:
    """Choose the settings of a query.

    Args:
        tuned: of a manifest; None: nothing was tuned. Not modified.
        modalities: of the query's terms; where there are several, each knob takes its largest value.

    Returns:
        Knob -> value; empty where nothing was tuned, and for exact indexes.
    """
    if not tuned:
        return {}
    known = tuned.get("modalities", {})
    names = list(modalities)
    if not names or any(name not in known for name in names):
        return dict(tuned.get("settings", {}))
    return most_demanding([known[name]["settings"] for name in names])


def most_demanding(settings: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Give the largest value of each knob over several settings; a margin that is not in all of them cuts nothing."""
    every = list(settings)
    best: dict[str, int] = {}
    for each in every:
        for name, value in each.items():
            best[name] = max(best.get(name, 0), int(value))
    return {name: value for name, value in best.items() if MARGIN not in name or all(name in each for each in every)}


def summary(tuned: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Give what was measured and still holds, a modality each, without the curves."""
    return {
        name: {key: value for key, value in found.items() if key != "curve"}
        for name, found in tuned.get("modalities", {}).items()
        if holds(tuned)
    }


def holds(tuned: Mapping[str, Any] | None) -> bool:
    """Say whether what was measured is true of the items that are there; also where nothing, or no change, is known."""
    return not tuned or tuned.get("changed", 0) <= CHANGED_MOST * tuned.get("rows", 0)


def after_change(
    tuned: Mapping[str, Any] | None, rows: int, changed: int, read_bytes: int, own: Mapping[str, int] | None = None
) -> dict[str, Any] | None:
    """Give what is left of a tuning when items have changed.

    Up to CHANGED_MOST of the measured items all of it is. Beyond, the figures go. Settings stay for segments that are
    as they were; where those were built anew, each is the larger of what was tuned and of the backend's own: nobody
    knows how far is far enough (docs/living.md). What was asked for, and on whose queries, stays: to tune again.

    Args:
        tuned: of the manifest before; None: nothing was tuned. Not modified.
        rows: items before the change, of a tuning that does not say on how many it was measured.
        changed: items added, replaced or removed since it was measured, those of this change included.
        read_bytes: that searches now keep reading.
        own: settings of the backend, where the segments that it searches were built anew; None: they were not.
    """
    if not tuned:
        return None
    now = {**tuned, "rows": tuned.get("rows", rows), "changed": changed, "read_bytes": read_bytes}
    if holds(now):
        return now
    now.pop("forecast", None)
    beside = [] if own is None else [own]
    now["settings"] = most_demanding([now.get("settings", {}), *beside])
    now["modalities"] = {
        name: {"settings": most_demanding([found["settings"], *beside]), "source": found.get("source", "")}
        for name, found in now.get("modalities", {}).items()
    }
    return now
