"""Settings that hold on several samples of one modality: over all rows, and over those of the other modalities.

A query that no filter narrows looks at all rows, one that asks for another modality alone at fewer. What suffices for
one need not for the other: few rows are soon scored one and all, and lists are not cut by a margin where less than half
of the rows may be answers (docs/adr/0148). So each sample chooses; of both choices each knob takes its largest value;
and all samples confirm what comes of that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from bindsearch.index.knobs import Knobs
from bindsearch.index.recipe import MARGIN
from bindsearch.index.tune import Sample, Tuned, Tuner, snapshot_search
from bindsearch.index.tuned import most_demanding

if TYPE_CHECKING:
    from bindsearch.index.snapshot import Snapshot


@dataclass(frozen=True)
class _Part:
    """One sample: what it may turn, what tunes on it, and what that found."""

    knobs: Knobs
    tuner: Tuner
    found: Tuned

    @property
    def settings(self) -> dict[str, int]:
        """Give what was chosen, else what came nearest."""
        return (self.found.chosen or self.found.best).settings

    @property
    def margins(self) -> set[str]:
        """Name the margins that this sample decides on."""
        return {name for name in self.knobs.most if name.endswith(MARGIN)}


def tune_together(snapshot: Snapshot, samples: Sequence[Sample], knobs: Knobs, target: float, k: int) -> Tuned:
    """Choose the settings of one modality, such that each of its samples reaches a target.

    Args:
        snapshot: of the index.
        samples: of one modality, each with its own selectors.
        knobs: what can be turned.
        target: overlap to reach, with confidence.
        k: answers a query.

    Returns:
        As of `tune`. Of several samples: with the figures of the one that finds least, and the longer of their times.
    """
    if knobs.exact:  # every answer is proven: the last sample, over all rows, says what a query takes
        samples = samples[-1:]
    parts = []
    for sample in samples:
        own = knobs if sees_margins(snapshot, sample) else knobs.uncut()
        tuner = Tuner(snapshot_search(snapshot, sample.selectors), sample, own, k)
        parts.append(_Part(own, tuner, tuner(target)))
    if len(parts) == 1:
        return parts[0].found
    confirmed: list[Tuned] = []
    for settings in _tries(parts, knobs):
        together = _weakest([part.tuner.confirm(settings) for part in parts], target)
        if together.chosen is not None:
            return together
        confirmed.append(together)
    return max(confirmed, key=lambda each: each.best.low)


def sees_margins(snapshot: Snapshot, sample: Sample) -> bool:
    """Say whether searches of a sample are cut by margins: none is where few of a segment's rows may be answers."""
    if sample.selectors is None:
        return True
    parts = zip(snapshot.segments, sample.selectors, strict=True)
    return all(
        2 * np.count_nonzero(mask & part.index.alive) >= mask.size
        for part, mask in parts
        if any(name.endswith(MARGIN) for name in part.index.settings)
    )


def _tries(parts: Sequence[_Part], knobs: Knobs) -> Iterator[dict[str, int]]:
    """Give settings that should hold on all samples, then wider ones: without margins, then with doubled knobs.

    Where a sample found no settings that suffice it, wider ones were tried there.
    """
    settings = _joined(parts)
    yield settings
    if any(part.found.chosen is None for part in parts):
        return
    bare = {name: value for name, value in settings.items() if not name.endswith(MARGIN)}
    if bare != settings:
        yield bare
    while (wider := knobs.doubled(bare)) != bare:
        bare = wider
        yield bare


def _joined(parts: Sequence[_Part]) -> dict[str, int]:
    """Join what the samples chose; a margin that a sample cannot see is neither its choice nor its veto."""
    settings = most_demanding(part.settings for part in parts)
    for margin in {name for part in parts for name in part.margins}:
        settings.pop(margin, None)
        seen = [part.settings for part in parts if margin in part.margins]
        if all(margin in each for each in seen):
            settings[margin] = max(each[margin] for each in seen)
    return settings


def _weakest(found: Sequence[Tuned], target: float) -> Tuned:
    """Give what the least of several confirmations says; times are the longest."""
    least = min(found, key=lambda each: each.best.low)
    point = replace(
        least.best,
        overlap=min(each.best.overlap for each in found),
        likely=min(each.best.likely for each in found),
        ms=max(each.best.ms for each in found),
    )
    alone_ms = max(each.alone_ms for each in found)
    return replace(least, chosen=point if point.low >= target else None, best=point, alone_ms=alone_ms)
