"""What the planner measured of an index, as it stands in the manifest, and which settings a query gets of it.

    {"k": 10, "confidence": 0.95, "asked": {"recall": 0.95, ...}, "settings": {"nprobe": 24, "rerank": 80},
     "modalities": {"text": {"settings": {...}, "overlap_at_10": 0.962, "overlap_low": 0.953, "ms": 0.9, "qps": 1500,
                             "queries": 1000, "source": "runs/questions", "curve": [{...}, ...]}},
     "resident_bytes": 460000000}

`settings` beside `modalities` are the most demanding ones of all modalities; a query of a modality that nobody tuned
for gets these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bindsearch.index.recipe import MARGIN


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
    """Give what was measured, a modality each, without the curves."""
    return {
        name: {key: value for key, value in found.items() if key != "curve"}
        for name, found in tuned.get("modalities", {}).items()
    }
