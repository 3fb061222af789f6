"""Calibration: a scale a modality, fitted on labelled items, so that a probability of 0.8 is right 8 times in 10.

One number a modality multiplies the cosines (temperature scaling, Guo et al. 2017). "None of these" is one more class
whose cosine is the same for every item; it is fitted on the same items with their own label taken out of the list.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.config import from_json_dict, to_json_dict
from bindsearch.errors import InputError, MismatchError, MissingInputError, UnsupportedError
from bindsearch.store.files import commit_json

if TYPE_CHECKING:
    from bindsearch.types import FloatArray, IntArray
    from bindsearch.zeroshot.classifier import Classifier

    Reals = np.ndarray[Any, np.dtype[np.float64]]

FORMAT = "bindsearch-calibration/1"
SCALE_LIMITS = (0.1, 1000.0)
OUTSIDE = -1
"""Truth of an item that is none of the labels."""
_BINS, _FOLDS, _MOST_ITEMS, _FEWEST = 15, 5, 20_000, 10
_SOFT_START, _SPREAD_ITEMS = 5.0, 0.1


@dataclass(frozen=True)
class Quality:
    """How well probabilities tell the truth.

    Attributes:
        accuracy: share of items whose most probable label is theirs.
        ece: expected calibration error: mean distance of confidence from accuracy over 15 bins of confidence.
        nll: mean negative log of the probability given to the truth, in nats.
    """

    accuracy: float
    ece: float
    nll: float


@dataclass(frozen=True)
class Fit:
    """What was fitted for one modality.

    Attributes:
        scale: multiplier of cosines without "none of these".
        none_scale, none_score: multiplier, and cosine of "none of these", where that is a class; None: too few labels.
        items: how many were labelled.
        before, after: quality at the scale before, and at the fitted one on items that the fit did not see (5 folds).
        none_after: likewise with "none of these": each item asked once with all labels, once without its own.
    """

    scale: float
    none_scale: float | None
    none_score: float | None
    items: int
    before: Quality
    after: Quality
    none_after: Quality | None = None


@dataclass(frozen=True)
class Calibration:
    """Fits by modality, and the space they hold in.

    Attributes:
        space_id: of the space; tower_ids: of text and the modalities.
        templates: id of the templates used; labels: those used.
        none_share: share of items that were taken to be none of the labels.
    """

    space_id: str
    tower_ids: dict[str, str]
    templates: str
    labels: tuple[str, ...]
    fits: dict[str, Fit]
    none_share: float = 0.5
    format: str = field(default=FORMAT)

    def check(self, space: Any) -> None:
        """Refuse another space or tower.

        Raises:
            MismatchError: naming both.
        """
        if space.space_id != self.space_id:
            raise MismatchError(
                f"calibration: fitted in space {self.space_id}, this is {space.space_id}. Fit it anew: bindsearch "
                "classify calibrate"
            )
        for modality, tower in self.tower_ids.items():
            if modality in space.modalities and space.tower_id(modality) != tower:
                raise MismatchError(
                    f"calibration: fitted with {tower}, the space has {space.tower_id(modality)}. Fit it anew: "
                    "bindsearch classify calibrate"
                )


def save_calibration(calibration: Calibration, path: str | Path) -> Path:
    """Write a calibration as JSON. Folders on the way are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    commit_json(path, to_json_dict(calibration))
    return path


def load_calibration(path: str | Path) -> Calibration:
    """Read what `save_calibration` wrote.

    Raises:
        MissingInputError: no such file.
        UnsupportedError: another kind of file, or of a later format.
        InputError: damaged.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingInputError(f"--calibration {path}: there is no such file.") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}).") from error
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise UnsupportedError(
            f"{path}: expected format {FORMAT!r}, got {found!r}. Write one: bindsearch classify calibrate"
        )
    return from_json_dict(Calibration, data, str(path))


# ---- fitting ---------------------------------------------------------------------------------------------------------


def calibrate(
    classifier: Classifier,
    rows: FloatArray,
    modalities: Sequence[str],
    truth: Sequence[str | None],
    none_share: float = 0.5,
    seed: int = 0,
) -> Calibration:
    """Fit the scale of every modality among labelled items.

    Args:
        classifier: labels and scales to begin with; its own calibration is left aside.
        rows: (n, d) float32 unit rows. Not modified.
        modalities: n names.
        truth: n labels; a label that the classifier does not have counts as none of these; None leaves the item out.
        none_share: share of items that are none of the labels where the classifier will be used.
        seed: of the folds and, above 20,000 items a modality, of the draw.

    Returns:
        A calibration with a fit for each modality that has at least 10 items of known labels.

    Raises:
        InputError: no modality has that many, or a share outside (0, 1).
    """
    if not 0 < none_share < 1:
        raise InputError(f"none_share: expected a share between 0 and 1, got {none_share}.")
    codes = {name: number for number, name in enumerate(classifier.labels)}
    wanted = np.array([OUTSIDE - 1 if name is None else codes.get(name, OUTSIDE) for name in truth], dtype=np.int64)
    names = np.array(list(modalities))
    rng = np.random.default_rng(seed)
    fits: dict[str, Fit] = {}
    for modality in sorted(set(names.tolist())):
        here = np.flatnonzero((names == modality) & (wanted >= OUTSIDE))
        here = rng.permutation(here)[:_MOST_ITEMS]
        if (wanted[here] >= 0).sum() >= _FEWEST:
            start = classifier.scales.get(modality, 1.0)
            fits[modality] = _fit_modality(classifier.scores(rows[here]), wanted[here], start, none_share)
    if not fits:
        known, asked = int((wanted >= 0).sum()), ", ".join(classifier.labels)
        raise InputError(
            f"calibrate: at least {_FEWEST} items of one modality need one of the labels {asked:.80}; found {known} in "
            "all. Look at the names in --truth."
        )
    towers = {name: tower for name, tower in classifier.identity.tower_ids.items() if name in ("text", *fits)}
    return Calibration(classifier.identity.space_id, towers, classifier.templates, classifier.labels, fits, none_share)


def _fit_modality(scores: FloatArray, truth: IntArray, start: float, none_share: float) -> Fit:
    """Fit one modality; rows come in random order."""
    known = truth >= 0
    plain = _Cases(scores[known], truth[known], np.ones(int(known.sum())))
    before = measure(_shares(plain.scores, start, None), plain.truth)
    fold = np.arange(len(plain.truth)) % _FOLDS
    held = np.zeros_like(plain.scores, dtype=np.float64)
    for part in range(_FOLDS):
        scale, _ = _solve(plain.take(fold != part), with_none=False)
        held[fold == part] = _shares(plain.scores[fold == part], scale, None)
    scale, _ = _solve(plain, with_none=False)
    fit = Fit(_round(scale), None, None, int(known.sum()), before, measure(held, plain.truth))
    if scores.shape[1] < 2:
        return fit
    both = _with_none(scores, truth, none_share)
    unit = both.origin % _FOLDS
    shares = np.zeros((len(both.truth), scores.shape[1] + 1))
    for part in range(_FOLDS):
        own_scale, bias = _solve(both.take(unit != part), with_none=True)
        shares[unit == part] = _shares(both.scores[unit == part], own_scale, bias)
    own_scale, bias = _solve(both, with_none=True)
    right = np.where(both.truth < 0, scores.shape[1], both.truth)
    return dataclasses.replace(
        fit,
        none_scale=_round(own_scale),
        none_score=_round(bias / own_scale),
        none_after=measure(shares, right, both.weights),
    )


@dataclass(frozen=True)
class _Cases:
    """Cosines (n, K), -inf: a label that is not offered; truths (n,), -1: none of them; weights and origins (n,)."""

    scores: Any
    truth: Any
    weights: Any
    origin: Any = None

    def take(self, which: Any) -> _Cases:
        origin = None if self.origin is None else self.origin[which]
        return _Cases(self.scores[which], self.truth[which], self.weights[which], origin)


def _with_none(scores: FloatArray, truth: IntArray, none_share: float) -> _Cases:
    """Ask every item of a known label twice: with all labels, and with its own left out: then it is none of them."""
    known, strange = np.flatnonzero(truth >= 0), np.flatnonzero(truth < 0)
    without = scores[known].astype(np.float64)
    without[np.arange(len(known)), truth[known]] = -np.inf
    outside = len(known) + len(strange)
    return _Cases(
        np.concatenate([scores[known], without, scores[strange]]).astype(np.float64),
        np.concatenate([truth[known], np.full(outside, OUTSIDE)]),
        np.concatenate([np.full(len(known), (1 - none_share) / len(known)), np.full(outside, none_share / outside)]),
        np.concatenate([known, known, strange]),
    )


def _shares(scores: Any, scale: float, bias: float | None) -> Reals:
    logits = scale * np.asarray(scores, dtype=np.float64)
    if bias is not None:
        logits = np.concatenate([logits, np.full((len(logits), 1), bias)], axis=1)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Reals = shifted / shifted.sum(axis=1, keepdims=True)
    return shares


def _solve(cases: _Cases, with_none: bool) -> tuple[float, float]:
    """Minimise the weighted negative log-likelihood over the scale and the logit of "none": convex, by Newton's steps.

    As in Platt (1999), a little of every truth, together a tenth of an item, is spread over all labels, so that few
    items that are all right do not make the scale endless.

    Returns:
        The scale, within SCALE_LIMITS, and the logit.
    """
    offered = np.isfinite(cases.scores)  # (n, K)
    x = np.where(offered, cases.scores, 0.0).astype(np.float64)
    weights = cases.weights / cases.weights.sum()
    none_is_right = cases.truth < 0
    count = offered.sum(axis=1) + with_none
    spread = _SPREAD_ITEMS / len(x)
    own = np.where(none_is_right, 0.0, x[np.arange(len(x)), np.maximum(cases.truth, 0)])
    own = (1 - spread) * own + spread * x.sum(axis=1) / count
    own_none = ((1 - spread) * none_is_right + spread / count) * with_none
    at = np.array([_SOFT_START, 0.3 * _SOFT_START * with_none])

    def loss(point: Any) -> tuple[float, Reals]:
        logits = np.where(offered, point[0] * x, -np.inf)
        if with_none:
            logits = np.concatenate([logits, np.full((len(x), 1), point[1])], axis=1)
        top = logits.max(axis=1, keepdims=True)
        shifted = np.exp(logits - top)
        total = shifted.sum(axis=1, keepdims=True)
        value = (top + np.log(total))[:, 0] - point[0] * own - point[1] * own_none
        return float((weights * value).sum()), shifted / total

    value, shares = loss(at)
    for _ in range(100):
        inner = shares[:, : x.shape[1]]
        mean, square = (inner * x).sum(axis=1), (inner * x * x).sum(axis=1)
        none = shares[:, -1] if with_none else np.zeros(len(x))
        slope = np.array([(weights * (mean - own)).sum(), (weights * (none - own_none)).sum()])
        cross = -(weights * mean * none).sum()
        bend = np.array([[(weights * (square - mean**2)).sum(), cross], [cross, (weights * none * (1 - none)).sum()]])
        bend += np.diag([1e-9, 1e-9 if with_none else 1.0])
        step, size = np.linalg.solve(bend, -slope), 1.0
        new, new_value, new_shares = at, value, shares
        while size > 1e-6:
            new = at + size * step
            new[0] = min(max(new[0], SCALE_LIMITS[0]), SCALE_LIMITS[1])
            new_value, new_shares = loss(new)
            if new_value <= value:
                break
            size /= 2
        else:
            break
        moved = float(np.abs(new - at).max())
        at, value, shares = new, new_value, new_shares
        if moved < 1e-6:
            break
    return float(at[0]), float(at[1])


# ---- measuring -------------------------------------------------------------------------------------------------------


def measure(shares: Any, truth: Any, weights: Any = None) -> Quality:
    """Measure probabilities against the truth.

    Args:
        shares: (n, K) probabilities, rows sum to 1. Not modified.
        truth: (n,) columns that are right.
        weights: (n,) of the items; None: all the same.

    Returns:
        Accuracy, expected calibration error over 15 bins of equal width, and negative log-likelihood.
    """
    weights = np.ones(len(truth)) if weights is None else np.asarray(weights, dtype=np.float64)
    weights = weights / weights.sum()
    sure, right = shares.max(axis=1), shares.argmax(axis=1) == truth
    bins = np.minimum((sure * _BINS).astype(np.int64), _BINS - 1)
    gaps = np.bincount(bins, weights * (sure - right), minlength=_BINS)
    given = shares[np.arange(len(truth)), truth]
    return Quality(
        accuracy=_round(float((weights * right).sum())),
        ece=_round(float(np.abs(gaps).sum())),
        nll=_round(float(-(weights * np.log(np.maximum(given, 1e-12))).sum())),
    )


def quality_table(calibration: Calibration) -> Mapping[str, Mapping[str, Any]]:
    """Give the fits by modality as plain JSON types."""
    return {modality: to_json_dict(fit) for modality, fit in calibration.fits.items()}


def _round(value: float) -> float:
    return float(f"{value:.6g}")
