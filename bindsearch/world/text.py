"""A scene as a caption: templates, synonyms and word order drawn by the seed; the words are data, a file a language."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bindsearch.errors import UnknownNameError
from bindsearch.world.phrases import SAID, Wording, load_wording
from bindsearch.world.scene import Scenes, draw

__all__ = ["LANGUAGES", "SAID", "STYLES", "Captions", "is_true_of", "said_codes", "vocabulary", "write_captions"]

LANGUAGES = ("english", "german")
STYLES = ("varied", "plain", "full")


@dataclass(frozen=True)
class Captions:
    """Captions and what each of them says.

    Attributes:
        texts: n captions.
        said: (n, 9) bool: whether a caption names the attribute; columns as in SAID. A caption in the plural names the
            number; "a dog" does not.
    """

    texts: tuple[str, ...]
    said: NDArray[np.bool_]


def write_captions(scenes: Scenes, language: str = "english", variant: int = 0, style: str = "varied") -> Captions:
    """Describe each scene in one sentence.

    Args:
        scenes: n scenes.
        language: english or german.
        variant: number of the wording; another number gives other words for the same scene.
        style: varied (templates of all kinds), plain (subject or setting or both, in short), full (subject, setting and
            motion, where the scene has them).

    Returns:
        Captions of length n; each is true of its scene and depends on it, the language, variant and style alone.

    Raises:
        UnknownNameError: no such language or style.
    """
    wording = _wording(language)
    if style not in STYLES:
        raise UnknownNameError("style of captions", style, STYLES)
    codes = said_codes(scenes)
    chances = draw(scenes.seed, f"caption.{language}.{variant}", len(SAID) + 2)
    present = (codes >= 0) @ (1 << np.arange(len(SAID)))
    columns = zip(present.tolist(), codes.tolist(), chances.tolist(), strict=True)
    texts, said = [], []
    for mask, code, chance in columns:
        text, named = wording.fill(wording.choose(style, mask, chance[-1], chance[-2]), code, chance)
        texts.append(text)
        said.append(named)
    return Captions(tuple(texts), wording.masks[np.array(said, dtype=int)])


def _wording(language: str) -> Wording:
    if language not in LANGUAGES:
        raise UnknownNameError("language", language, LANGUAGES)
    return load_wording(language)


def is_true_of(
    codes: NDArray[np.int16], said: NDArray[np.bool_], others: NDArray[np.int16] | None = None
) -> NDArray[np.bool_]:
    """Say which captions are true of which scenes: the pairs that are no negatives of each other.

    A caption that names an attribute is not true of a scene in which the attribute is absent: no one of two dogs is
    "the dog on the left". An attribute that is absent from the caption's own scene, marked as named, asks that it be
    absent.

    Args:
        codes: (n, A) attribute codes of the captions' own scenes, ABSENT where there is none. Not modified.
        said: (n, A) whether caption j names attribute a. Not modified.
        others: (m, A) codes of the scenes asked about; None means the same scenes. Not modified.

    Returns:
        (m, n) bool: [i, j] is whether caption j is true of scene i.
    """
    scenes = codes if others is None else others
    true = np.ones((len(scenes), len(codes)), dtype=bool)
    for a in range(codes.shape[1]):
        true &= ~said[None, :, a] | (scenes[:, None, a] == codes[None, :, a])
    return true


def said_codes(scenes: Scenes) -> NDArray[np.int16]:
    """Give the attributes that captions can name as codes, (n, 9) int16; columns as in SAID."""
    return np.stack([getattr(scenes, attribute) for attribute in SAID], axis=1).astype(np.int16)


def vocabulary(language: str | None = None) -> list[str]:
    """List every text whose words captions are made of: the words a tokenizer must keep whole.

    Args:
        language: one of LANGUAGES; None means all of them.

    Raises:
        UnknownNameError: no such language.
    """
    return [text for one in (LANGUAGES if language is None else (language,)) for text in _wording(one).every_text()]
