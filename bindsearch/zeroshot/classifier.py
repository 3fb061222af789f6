"""A classifier: class vectors, a scale a modality, and what "none of these" means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import InputError, MismatchError
from bindsearch.store import Identity
from bindsearch.store.identity import other_encoder
from bindsearch.types import check_shape
from bindsearch.zeroshot.calibration import Calibration, Fit
from bindsearch.zeroshot.prompts import DEFAULT_TEMPLATES, Labels, Templates, class_vectors, load_templates

if TYPE_CHECKING:
    from pathlib import Path

    from bindsearch.types import FloatArray

NONE = "none of these"
ANCHORED = ("image", "video", "text")
"""Modalities that were trained against text itself: their scale is the text tower's."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """Labels in a joint space.

    Attributes:
        labels: K names.
        vectors: (K, d) float32 unit rows, one a label.
        scales: modality -> multiplier of cosines in the softmax, before any calibration.
        identity: space and text tower that the vectors were made with.
        templates: id of the set that made them.
        with_none: whether an item may be none of the labels.
        none_score: cosine that a label must beat, given by hand; None: the calibration's, or the doubt without one.
        calibration: fitted scales, or None.
    """

    labels: tuple[str, ...]
    vectors: FloatArray
    scales: Mapping[str, float]
    identity: Identity
    templates: str = ""
    with_none: bool = False
    none_score: float | None = None
    calibration: Calibration | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The labels, and NONE at the end where it has a probability of its own."""
        return (*self.labels, NONE) if self.with_none else self.labels

    def fit_of(self, modality: str) -> Fit | None:
        """Give what was fitted for a modality, or None."""
        return self.calibration.fits.get(modality) if self.calibration is not None else None

    def scale_of(self, modality: str) -> float:
        """Give the multiplier of cosines for a modality: fitted where there is a calibration for it."""
        fit = self.fit_of(modality)
        if fit is not None:
            return fit.none_scale if self.with_none and fit.none_scale is not None else fit.scale
        return self.scales.get(modality, min(self.scales.values(), default=1.0))

    def none_of(self, modality: str) -> float | None:
        """Give the cosine that stands for "none of these", or None where only doubt tells."""
        fit = self.fit_of(modality)
        return self.none_score if self.none_score is not None else (fit.none_score if fit is not None else None)

    def scores(self, rows: FloatArray) -> FloatArray:
        """Compare items with the labels.

        Args:
            rows: (n, d) float32 unit rows. Not modified.

        Returns:
            (n, K) float32 cosines.

        Raises:
            ShapeError: rows of another width.
        """
        check_shape(rows, ("n", self.vectors.shape[1]), "items", f"The labels are in {self.identity.space_id}.")
        scores: FloatArray = rows @ self.vectors.T
        return scores

    def probabilities(self, scores: FloatArray, modality: str) -> FloatArray:
        """Turn cosines into probabilities.

        Args:
            scores: (n, K) float32 from `scores`. Not modified.
            modality: of the items; chooses the scale.

        Returns:
            (n, K) float32, or (n, K + 1) with NONE last; each row sums to 1. Where "none of these" has no score of its
            own, it gets the doubt about the best label, 1 - p, and every label's share is multiplied by p: NONE is
            first where p is below 0.618.
        """
        logits = self.scale_of(modality) * scores.astype(np.float64)
        if not self.with_none:
            return softmax(logits).astype(np.float32)
        none = self.none_of(modality)
        if none is not None:
            column = np.full((len(scores), 1), self.scale_of(modality) * none)
            return softmax(np.concatenate([logits, column], axis=1)).astype(np.float32)
        shares = softmax(logits)
        best = shares.max(axis=1, keepdims=True)
        return np.concatenate([shares * best, 1 - best], axis=1).astype(np.float32)

    def check(self, identity: Any, where: str) -> None:
        """Refuse items of another space, or of a tower that was bound anew since.

        Args:
            identity: with `space_id`, `dim` and `tower_ids`, of the items.
            where: the items' folder or name, for the message.

        Raises:
            MismatchError: naming both.
        """
        differs = other_encoder(identity, self.identity)
        if differs is not None:
            what, theirs, own = differs
            raise MismatchError(
                f"{where}: made with {what} {theirs}, the labels with {own}. Embed again, or name the space that "
                "the items are in with --space."
            )


def softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Give (n, K) float64 rows that sum to 1; logits are not modified."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: np.ndarray[Any, Any] = shifted / shifted.sum(axis=1, keepdims=True)
    return shares


def scale_against_text(space: Any, modality: str) -> float:
    """Give the scale of a modality's softmax over texts before calibration.

    Picture and text were trained together under the text tower's scale. Other modalities never met text: they take the
    scale that bound them to pictures. 1 means that training used none.
    """
    return float(space.logit_scale("text" if modality in ANCHORED else modality))


def build_classifier(
    space: Any,
    labels: Labels | Sequence[str] | Mapping[str, Sequence[str] | str],
    templates: str | Path | Templates = DEFAULT_TEMPLATES,
    *,
    modalities: Sequence[str] | None = None,
    none: bool | float = False,
    calibration: Calibration | None = None,
) -> Classifier:
    """Encode labels and gather the scales.

    Args:
        space: from `load_space`, with a text tower.
        labels: names, or a mapping of names to the phrases that stand for them.
        templates: name of a set, a file, or the set itself.
        modalities: what will be classified; None: all that the space reads.
        none: whether items may be none of the labels; a number is the cosine that a label must beat.
        calibration: from `calibrate` or `load_calibration`; refused if it was fitted in another space.

    Raises:
        UnknownNameError: the space reads no text, or no such templates.
        InputError: no label, one that is called as NONE is, or a cosine outside [-1, 1].
        MismatchError: the calibration is not of this space.
    """
    if not isinstance(none, bool) and not -1 <= none <= 1:
        raise InputError(f"none: expected a cosine between -1 and 1, got {none}.")
    found, chosen = Labels.of(labels), load_templates(templates)
    if none is not False and NONE in found.names:
        raise InputError(
            f"labels: {NONE!r} is what an item is called that is none of the labels. Leave that label out: --none asks "
            "for it already."
        )
    if calibration is not None:
        calibration.check(space)
    wanted = space.modalities if modalities is None else [name for name in modalities if name in space.modalities]
    vectors = class_vectors(space, found, chosen)
    return Classifier(
        labels=found.names,
        vectors=vectors,
        scales={name: scale_against_text(space, name) for name in (wanted or ["text"])},
        identity=Identity.of_space(space, ["text", *wanted]),
        templates=chosen.id,
        with_none=none is not False,
        none_score=None if isinstance(none, bool) else float(none),
        calibration=calibration,
    )
