"""Sums of embeddings of different modalities that ask for exactly one pair of subject and setting.

Weights are chosen by grid on scenes of the split `validation` and used once on scenes of the split `test`.
Source: ImageBind, section 4.2 and figure 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.shares import accuracy
from benchmarks.written import World, full_captions, rows_of, settings_alone
from bindsearch.train.measure import top_hits
from bindsearch.world.scene import Scenes, held_out

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.models.space import Space

GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    "subject + ambience": {"image of A": (1.0,), "ambience of Y": tuple(round(0.1 * k, 1) for k in range(2, 31))},
    "scene - text + ambience": {
        "image of A in X": (1.0,),
        "text X": tuple(round(-0.1 * k, 1) for k in range(17)),
        "ambience of Y": tuple(round(0.1 * k, 1) for k in range(2, 31)),
    },
}
BARS = {"subject + ambience": 0.60, "scene - text + ambience": 0.45}
Terms = dict[str, "NDArray[np.float32]"]


def pair_codes(subject: Any, setting: Any) -> NDArray[np.int16]:
    """Give one code a pair of subject and setting."""
    return (np.asarray(subject, np.int16) * 64 + np.asarray(setting, np.int16)).astype(np.int16)


def choose_settings(subject: Any, settings: Any, avoid: Any | None = None) -> NDArray[np.int64]:
    """Choose a place for each subject, (n,) rows of `settings`: the next one that it may meet and that is not `avoid`.

    Args:
        subject: (n,) codes. Not modified.
        settings: (m,) codes of the places at hand. Not modified.
        avoid: (n,) codes of settings that will not do. Not modified.
    """
    chosen = np.arange(len(subject)) % len(settings)
    for _ in range(len(settings)):
        wrong = settings[chosen] == held_out()[subject]
        if avoid is not None:
            wrong |= settings[chosen] == avoid
        if not wrong.any():
            return chosen
        chosen[wrong] = (chosen[wrong] + 1) % len(settings)
    raise ValueError("no setting is left for some subject; use more places")


def build_questions(
    space: Space, home: Path, split: str, n: int, gallery_n: int
) -> tuple[dict[str, tuple[Terms, NDArray[np.int16]]], tuple[Scenes, NDArray[np.float32]]]:
    """Embed the terms of all questions of a split, and the pictures that they are asked of.

    Returns:
        By kind of question the terms and (n,) codes of the wanted pairs; scenes and rows of the gallery.
    """
    gallery = World(f"{split}-full", split, gallery_n)
    alone = World(f"{split}-subjects", split, n, 100_000, "subject")
    places = World(f"{split}-settings", split, n, 200_000, "setting")
    within = World(f"{split}-within", split, n, 300_000)
    subjects, settings, scenes = alone.scenes, places.scenes, within.scenes
    sounds = rows_of(space, places, home, "audio")
    pick = choose_settings(subjects.subject, settings.setting)
    other = choose_settings(scenes.subject, settings.setting, scenes.setting)
    words = space.embed("text", list(full_captions(settings_alone(scenes), "text")))
    questions = {
        "subject + ambience": (
            {"image of A": rows_of(space, alone, home, "image"), "ambience of Y": sounds[pick]},
            pair_codes(subjects.subject, settings.setting[pick]),
        ),
        "scene - text + ambience": (
            {"image of A in X": rows_of(space, within, home, "image"), "text X": words, "ambience of Y": sounds[other]},
            pair_codes(scenes.subject, settings.setting[other]),
        ),
    }
    return questions, (gallery.scenes, rows_of(space, gallery, home, "image"))


def sum_terms(terms: Terms, weights: Mapping[str, float]) -> NDArray[np.float32]:
    """Add weighted terms: (n, d) float32; the length does not matter to what stands first."""
    total = np.zeros_like(next(iter(terms.values())))
    for name, weight in weights.items():
        total += np.float32(weight) * terms[name]
    return total


def choose_weights(terms: Terms, wanted: Any, gallery: tuple[Scenes, Any], grid: Mapping[str, Any]) -> dict[str, Any]:
    """Try every point of a grid: the best weights, and the share that they reach here."""
    scenes, images = gallery
    pairs = pair_codes(scenes.subject, scenes.setting)
    scores = {name: rows @ images.T for name, rows in terms.items()}
    best: dict[str, Any] = {"value": -1.0}
    for point in product(*grid.values()):
        weights = dict(zip(grid, point, strict=True))
        total = sum(np.float32(weight) * scores[name] for name, weight in weights.items())
        share = float((pairs[np.asarray(total).argmax(axis=1)] == wanted).mean())
        if share > best["value"]:
            best = {"value": share, "weights": weights}
    return {**best, "value": round(best["value"], 4)}


def measure_arithmetic(space: Space, home: Path, n: int, chosen_on: int) -> dict[str, Any]:
    """Choose weights on validation scenes and apply them once to test scenes.

    Args:
        space: as `load_space` gives it.
        home: folder of the written worlds.
        n: questions of the test split, and pictures that they are asked of.
        chosen_on: questions of the validation split.

    Returns:
        By kind of question: weights, the share of exact pairs with its interval, bar; plain sum, each term alone, every
        two of three terms, and chance beside it.
    """
    known, before = build_questions(space, home, "validation", chosen_on, n)
    asked, gallery = build_questions(space, home, "test", n, n)
    scenes, images = gallery
    pairs = pair_codes(scenes.subject, scenes.setting)
    figures: dict[str, Any] = {}
    for kind, (terms, wanted) in asked.items():
        grid = GRIDS[kind]
        best = choose_weights(known[kind][0], known[kind][1], before, grid)
        plain = {name: 1.0 if min(values) > 0 else -1.0 for name, values in grid.items()}
        trials = {"weighted sum": best["weights"], "plain sum": plain}
        trials |= {f"{name} alone": {name: 1.0} for name in grid}
        if len(grid) > 2:
            trials |= {f"without {left}": {k: w for k, w in plain.items() if k != left} for left in grid}
        row: dict[str, Any] = {
            name: accuracy(wanted, pairs[top_hits(sum_terms(terms, weights), images)])
            for name, weights in trials.items()
        }
        row["chance"] = round(float(np.mean([(pairs == code).mean() for code in wanted])), 4)
        row |= {"weights": best["weights"], "on validation": best["value"], "bar": BARS[kind]}
        row["met"] = row["weighted sum"]["value"] >= BARS[kind]
        figures[kind] = row
    return figures
