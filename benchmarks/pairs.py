"""Accuracy of every ordered pair of modalities, what it may be compared with, and which bars hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.shares import accuracy, interval, share_of
from bindsearch.train.measure import top_hits
from bindsearch.world.scene import Scenes, names

if TYPE_CHECKING:
    from numpy.typing import NDArray

VIEWS = ("image", "video", "text", "german", "audio", "depth", "thermal", "imu")
LABELS = {"text": "text (English)", "german": "text (German)"}
CARRIES: dict[str, tuple[str, ...]] = {
    "subject": ("image", "video", "text", "german", "audio", "depth", "thermal"),
    "setting": ("image", "video", "text", "german", "audio", "depth", "thermal"),
    "motion": ("image", "video", "text", "german", "depth", "thermal", "imu"),
}
TRAINED = frozenset(
    frozenset(pair)
    for pair in (
        ("image", "text"),
        ("image", "german"),
        ("video", "text"),
        ("video", "german"),
        ("audio", "image"),
        ("depth", "image"),
        ("thermal", "image"),
        ("imu", "video"),
    )
)
ONE_TOWER = frozenset(("image", "video"))
TRAINED_BAR, EMERGENT_SHARE = 0.90, 0.80


def kind_of(a: str, b: str) -> str:
    """Say what a pair is: "trained", "emergent" (its two never met), or "one tower" (image and video)."""
    if {a, b} == ONE_TOWER:
        return "one tower"
    return "trained" if frozenset((a, b)) in TRAINED else "emergent"


def links_of(a: str, b: str) -> list[str]:
    """List the trained pairs that an emergent pair hangs on: from a to the image tower, from the image tower to b.

    Images and videos share that tower; where a modality met both, the one that the other modality met is taken.
    """
    met = {view: [hub for hub in ("image", "video") if frozenset((view, hub)) in TRAINED] for view in (a, b)}
    shared = [hub for hub in met[a] if hub in met[b]]
    hubs = {view: (shared or met[view])[0] if met[view] else None for view in (a, b)}
    links = [f"{a}->{hubs[a]}"] if hubs[a] else []
    return links + ([f"{hubs[b]}->{b}"] if hubs[b] else [])


def shared_attributes(a: str, b: str) -> list[str]:
    """List what both modalities carry."""
    return [attribute for attribute, views in CARRIES.items() if a in views and b in views]


def has_bar(a: str, b: str, attribute: str) -> bool:
    """Say whether a figure must reach a bar: subject and setting, and for the IMU the motion."""
    return attribute != "motion" or "imu" in (a, b)


Embedded = tuple[Scenes, Mapping[str, "NDArray[np.float32]"]]
"""n scenes, and (n, d) unit rows a column of the report, in the scenes' order."""


def measure_pairs(
    scenes: Scenes, rows: Mapping[str, NDArray[np.float32]], beside: Embedded | None = None
) -> dict[str, dict[str, Any]]:
    """Give the top-1 accuracy of every ordered pair among all scenes, by attribute.

    Args:
        scenes: n scenes.
        rows: (n, d) unit rows a column of the report, in the scenes' order. Not modified.
        beside: other scenes with as many columns, which answer too and ask nothing. Not modified.

    Returns:
        "a->b" -> attribute -> share with its 95 % interval.
    """
    figures: dict[str, dict[str, Any]] = {}
    for a, b in permutations([view for view in VIEWS if view in rows], 2):
        attributes = shared_attributes(a, b)
        if attributes:
            answers = rows[b] if beside is None else np.concatenate([rows[b], beside[1][b]])
            hits = top_hits(rows[a], answers)
            figures[f"{a}->{b}"] = {}
            for attribute in attributes:
                asked = getattr(scenes, attribute)
                there = asked if beside is None else np.concatenate([asked, getattr(beside[0], attribute)])
                figures[f"{a}->{b}"][attribute] = accuracy(asked, there[hits])
    return figures


def average(runs: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Average the figures of several seeds.

    Args:
        runs: from `measure_pairs`, one a seed, over the same scenes. Not modified.

    Returns:
        As one of them; `value` is the mean, `seeds` the single values, `low` and `high` the interval of the mean share
        over the same number of queries.
    """
    figures: dict[str, dict[str, Any]] = {}
    for pair, attributes in runs[0].items():
        figures[pair] = {}
        for attribute, first in attributes.items():
            values = [run[pair][attribute]["value"] for run in runs]
            n, mean = int(first["n"]), float(np.mean(values))
            figures[pair][attribute] = {**interval(mean, n), "seeds": values}
    return figures


def judge(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Set every pair beside its bar.

    Args:
        figures: from `average`. Not modified.

    Returns:
        "a->b" -> kind, links, and by attribute the figure with chance and, where one is set, `bar` and `met`; for an
        emergent pair also `weaker_link` and the `share` of it.
    """
    judged: dict[str, dict[str, Any]] = {}
    for pair, attributes in figures.items():
        a, b = pair.split("->")
        kind = kind_of(a, b)
        links = links_of(a, b) if kind == "emergent" else []
        row: dict[str, Any] = {"kind": kind, "links": links, "attributes": {}}
        for attribute, figure in attributes.items():
            entry = {**figure, "chance": round(1 / len(names(attribute)), 4)}
            bar = TRAINED_BAR if kind == "trained" else None
            have = [figures[link][attribute]["value"] for link in links if attribute in figures.get(link, {})]
            if have:
                entry["weaker_link"] = min(have)
                entry["share"] = round(figure["value"] / min(have), 4) if min(have) else None
                bar = round(EMERGENT_SHARE * min(have), 4)
            if bar is not None and has_bar(a, b, attribute):
                entry |= {"bar": bar, "met": figure["value"] >= bar}
            row["attributes"][attribute] = entry
        judged[pair] = row
    return judged


def share_none(views: Sequence[str]) -> list[str]:
    """List the ordered pairs that carry nothing in common."""
    return [f"{a}->{b}" for a, b in permutations(views, 2) if not shared_attributes(a, b)]


def worst(judged: Mapping[str, Mapping[str, Any]], kind: str, measure: str = "value") -> tuple[str, str, Any]:
    """Give the pair, the attribute and the figure that stand lowest among those with a bar.

    Args:
        judged: from `judge`. Not modified.
        kind: trained or emergent.
        measure: "value", or "share" of the weaker link.
    """
    have = [
        (pair, attribute, entry)
        for pair, row in judged.items()
        if row["kind"] == kind
        for attribute, entry in row["attributes"].items()
        if "bar" in entry
    ]
    return min(have, key=lambda one: float(one[2][measure]))


def translate(scenes: Scenes, texts: Mapping[str, Sequence[str]], rows: Mapping[str, Any]) -> dict[str, Any]:
    """Ask with the captions of one language for those of the other, which never met: through images alone.

    Args:
        scenes: n scenes.
        texts: n captions for "text" and for "german"; equal captions count as one. Not modified.
        rows: (n, d) unit rows of both. Not modified.

    Returns:
        By direction: attributes of the top hit, all three at once, and the share of queries whose own scene's caption
        is among the best k different captions.
    """
    both = np.unique(
        scenes.subject.astype(np.int64) * 10000 + scenes.setting.astype(np.int64) * 100 + scenes.motion,
        return_inverse=True,
    )[1].astype(np.int16)
    figures: dict[str, Any] = {}
    for a, b in (("german", "text"), ("text", "german")):
        scores = rows[a] @ rows[b].T
        same = np.unique(np.asarray(texts[b]), return_inverse=True)[1]
        own = [row[same == text].max() + 1e-6 for row, text in zip(scores, same, strict=True)]
        better = [len(np.unique(same[row > mine])) for row, mine in zip(scores, own, strict=True)]
        hits = scores.argmax(axis=1)
        figure: dict[str, Any] = {
            name: accuracy(getattr(scenes, name), getattr(scenes, name)[hits])
            for name in ("subject", "setting", "motion")
        }
        figure["all three"] = accuracy(both, both[hits])
        for k in (1, 5, 10):
            figure[f"its own caption, R@{k}"] = share_of(np.asarray(better) < k)
        figure["different captions"] = len(np.unique(same))
        figures[f"{a}->{b}"] = figure
    return figures
