"""Zero-shot accuracy: class names become prompts, prompts become class vectors, the nearest class is the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import InputError
from bindsearch.evaluate.metrics import DECIMALS, Figure, bootstrap, join_judged, judge_scores, wilson
from bindsearch.evaluate.rows import Rows
from bindsearch.truth import text_of
from bindsearch.zeroshot.prompts import Labels, Templates, class_vectors, load_templates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.types import FloatArray

_ITEMS_AT_ONCE = 4096


@dataclass(frozen=True)
class ClassName:
    """A class and the words for it.

    Attributes:
        label: its value in the data.
        names: words put into the prompts; the class's score is the greatest over them.
    """

    label: str
    names: tuple[str, ...]

    @classmethod
    def of_label(cls, label: str) -> ClassName:
        """Take a label's own words: "sea_waves" is "sea waves"."""
        return cls(label, (label.replace("_", " ").strip(),))


def load_prompts(name: str) -> Templates:
    """Load templates: a bundled set, a file, or one template itself ("a photo of a {}"); see `load_templates`."""
    return Templates("given", (name,)) if "{}" in name else load_templates(name)


def name_vectors(space: Any, classes: Sequence[ClassName], templates: Templates) -> FloatArray:
    """Encode the names of classes, each through all templates, as CLIP does.

    Args:
        space: one with text.
        classes: what can be answered.
        templates: from `load_prompts`.

    Returns:
        (sum of names, d) float32 unit rows, in the order of classes and names.
    """
    names = tuple(name for each in classes for name in each.names)
    return class_vectors(space, Labels(names, tuple((name,) for name in names)), templates)


def measure_zero_shot(
    rows: Rows,
    modality: str,
    column: str,
    classes: Sequence[ClassName],
    vectors: FloatArray,
    fold: str | None = None,
    ties: str = "pessimistic",
) -> dict[str, Any]:
    """Measure how often the nearest class is right.

    Args:
        rows: what is embedded. Not modified.
        modality: whose items are classified.
        column: their labels: one, or a list of several (then the classes' mAP is the figure to look at).
        classes: all that can be answered.
        vectors: (sum of names, d) float32: the class vectors, of all names in order. Not modified.
        fold: column of folds: accuracy is the mean over them.
        ties: see `metrics.TIES`.

    Returns:
        modality, queries, missed (those of them that could not be embedded: they stay in, as failures), without (items
        of no label), classes, accuracy_at_1, accuracy_at_5 (of more than five classes), chance_at_1, map (over classes,
        macro), folds, and per_class: label -> accuracy and count.

    Raises:
        InputError: no item has a label that is a class.
    """
    places = {each.label: number for number, each in enumerate(classes)}
    given = rows.column(column)
    asked = [place for place in rows.where(modality).tolist() if labels_of(given[place])]
    labels = [[places[label] for label in labels_of(given[place]) if label in places] for place in asked]
    kept = np.array([place for place, known in zip(asked, labels, strict=True) if known], dtype=np.int64)
    if not kept.size:
        some = sorted({label for place in asked[:200] for label in labels_of(given[place])})[:5]
        raise InputError(
            f"{rows.source}: no {modality} has one of the {len(classes)} classes as its {column!r}; "
            f"labels there are, for example: {', '.join(some) or 'none'}."
        )
    gone = [row for row in rows.lost if row["modality"] == modality]
    gone_labels = [[places[label] for label in labels_of(row.get(column)) if label in places] for row in gone]
    every = [known for known in (*labels, *gone_labels) if known]
    right = np.zeros((len(every), len(classes)), dtype=bool)  # those without a vector stand last
    for number, known in enumerate(every):
        right[number, known] = True
    missed = len(every) - int(kept.size)
    scores = _class_scores(rows.vectors[kept], vectors, classes)
    step = max(1, (8 << 20) // max(1, len(classes)))
    judged = join_judged(
        [
            judge_scores(scores[at : at + step], right[: kept.size][at : at + step], None, ties)
            for at in range(0, kept.size, step)
        ],
        ties,
    )
    folds = None
    if fold is not None:
        lost_folds = [row.get(fold) for row, known in zip(gone, gone_labels, strict=True) if known]
        folds = [*(rows.column(fold)[place] for place in kept.tolist()), *lost_folds]

    def hits(k: int) -> NDArray[np.float64]:
        return np.concatenate([judged.hits(k), np.zeros(missed)])

    record: dict[str, Any] = {
        "modality": modality,
        "queries": len(every),
        "missed": missed,
        "without": int(rows.where(modality).size - kept.size),
        "classes": len(classes),
        "ties": judged.ties_matter(),
        "accuracy_at_1": _accuracy(hits(1), folds),
        "chance_at_1": round(float(judged.chance(1).mean()), 6),
    }
    if len(classes) > 5:
        record["accuracy_at_5"] = _accuracy(hits(5), folds)
    record["map"] = _macro_precision(scores, right, ties)
    if folds is not None:
        record["folds"] = _by_fold(hits(1), folds)
    record["per_class"] = _per_class(classes, right, hits(1))
    return record


def labels_of(value: Any) -> list[str]:
    """Give the labels of an item, as texts: one, those of a list, or none."""
    texts = (text_of(each) for each in (value if isinstance(value, list | tuple) else [value]))
    return [text for text in texts if text is not None]


def _class_scores(items: FloatArray, vectors: FloatArray, classes: Sequence[ClassName]) -> NDArray[np.float64]:
    """Score items against classes, the greatest over a class's names: (n, c) float64."""
    starts = np.cumsum([0, *(len(each.names) for each in classes[:-1])])
    wide = vectors.astype(np.float64).T
    parts = [
        np.maximum.reduceat(
            np.round(items[at : at + _ITEMS_AT_ONCE].astype(np.float64) @ wide, DECIMALS), starts, axis=1
        )
        for at in range(0, len(items), _ITEMS_AT_ONCE)
    ]
    return np.concatenate(parts)


def _macro_precision(scores: NDArray[np.float64], right: NDArray[np.bool_], ties: str) -> Any:
    """Give the mean over classes of the average precision of their items, as AudioSet is measured.

    Rows of `right` beyond those of `scores` are items without a vector, which no class finds.
    """
    there = right.any(axis=0)
    embedded = right[: len(scores), there]
    judged = judge_scores(scores.T[there], embedded.T, None, ties)
    return bootstrap(judged.precision * embedded.sum(axis=0) / right[:, there].sum(axis=0))


def _accuracy(hit: NDArray[np.float64], folds: Sequence[Any] | None) -> Figure:
    """Average over folds where there are some; the interval is that of all items together."""
    if folds is None:
        return wilson(float(hit.mean()), len(hit))
    return wilson(float(np.mean([figure.value for figure in _by_fold(hit, folds).values()])), len(hit))


def _by_fold(hit: NDArray[np.float64], folds: Sequence[Any]) -> dict[str, Figure]:
    of = np.array([str(text_of(fold)) for fold in folds])
    return {name: wilson(float(hit[of == name].mean()), int((of == name).sum())) for name in sorted(set(of.tolist()))}


def _per_class(
    classes: Sequence[ClassName], right: NDArray[np.bool_], hit: NDArray[np.float64]
) -> dict[str, dict[str, float]]:
    """Give accuracy and count by class, for the classes that occur."""
    return {
        each.label: {"accuracy": round(float(hit[right[:, place]].mean()), 6), "n": int(right[:, place].sum())}
        for place, each in enumerate(classes)
        if right[:, place].any()
    }
