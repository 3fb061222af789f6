"""A scene as a caption: templates, synonyms and word order drawn by the seed; the words are data, a file a language."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindsearch.errors import UnknownNameError
from bindsearch.world.scene import Scenes, draw, names, table

LANGUAGES = ("english",)
SAID = ("subject", "setting", "colour", "size", "place", "light")


@dataclass(frozen=True)
class Captions:
    """Captions and what each of them says.

    Attributes:
        texts: n captions.
        said: (n, 6) bool: whether a caption names the attribute; columns as in SAID.
    """

    texts: tuple[str, ...]
    said: NDArray[np.bool_]


def write_captions(scenes: Scenes, language: str = "english", variant: int = 0) -> Captions:
    """Describe each scene in one sentence.

    Args:
        scenes: n scenes.
        language: a table of words in `data/`.
        variant: number of the wording; another number gives other words for the same scene.

    Returns:
        Captions of length n; each is true of its scene and depends on it, the language and the variant alone.

    Raises:
        UnknownNameError: no such language.
    """
    if language not in LANGUAGES:
        raise UnknownNameError("language", language, LANGUAGES)
    words = table(language)
    chances = draw(scenes.seed, f"caption.{language}.{variant}", len(SAID) + 2)
    texts, said = [], np.zeros((len(scenes), len(SAID)), dtype=bool)
    for row in range(len(scenes)):
        kind = (
            "full"
            if scenes.subject[row] >= 0 and scenes.setting[row] >= 0
            else ("subject" if scenes.subject[row] >= 0 else "setting")
        )
        templates = words["templates"][kind]
        template = templates[int(chances[row, -1] * len(templates))]
        slots = _choose_words(scenes, row, words, chances[row])
        used = set(re.findall(r"{(\w+)}", template)) - {"a"}
        said[row] = [attribute in used or (attribute == "setting" and "setting_alone" in used) for attribute in SAID]
        texts.append(_fill(template, slots, words["articles"]))
    return Captions(tuple(texts), said)


def _choose_words(scenes: Scenes, row: int, words: dict[str, Any], chance: NDArray[np.float32]) -> dict[str, str]:
    slots: dict[str, str] = {}
    for column, attribute in enumerate(SAID):
        code = int(getattr(scenes, attribute)[row])
        if code < 0:
            continue
        name = names(attribute)[code]
        slots[attribute] = _pick(words[attribute][name], float(chance[column]))
        if attribute == "setting":
            slots["setting_alone"] = _pick(words["setting_alone"][name], float(chance[column]))
    return slots


def _pick(choices: list[str], chance: float) -> str:
    return choices[int(chance * len(choices))]


def _fill(template: str, slots: dict[str, str], articles: dict[str, str]) -> str:
    text = re.sub(r"{(\w+)}", lambda match: "{a}" if match[1] == "a" else slots[match[1]], template)
    text = re.sub(r"{a} (?=[aeiou])", articles["before_vowel"] + " ", text)
    text = text.replace("{a}", articles["otherwise"])
    return re.sub(r"\ban (?=[^aeiou\W])", "a ", text) if re.search(r"\ban [^aeiou\W]", text) else text


def is_true_of(
    codes: NDArray[np.int16], said: NDArray[np.bool_], others: NDArray[np.int16] | None = None
) -> NDArray[np.bool_]:
    """Say which captions are true of which scenes: the pairs that are no negatives of each other.

    Args:
        codes: (n, A) attribute codes of the captions' own scenes. Not modified.
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
    """Give the attributes that captions can name as codes, (n, 6) int16; columns as in SAID."""
    return np.stack([getattr(scenes, attribute) for attribute in SAID], axis=1).astype(np.int16)


def vocabulary(language: str = "english") -> list[str]:
    """List every text whose words captions are made of: the words a tokenizer must keep whole."""
    words = table(language)
    flat: list[str] = [*words["articles"].values()]
    for group, entries in words.items():
        if group == "templates":
            flat += [re.sub(r"{\w+}", " ", template) for kind in entries.values() for template in kind]
        elif group != "articles":
            flat += [word for choices in entries.values() for word in choices]
    return flat
