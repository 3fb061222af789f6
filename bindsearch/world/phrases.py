"""Words of a language put together: noun phrases that agree in gender, number and case; templates with optional parts.

A template is text with slots in braces and optional parts in brackets, for example `{a [colour] subject.accusative}
{setting} [{light}]`. A slot is one of

- a noun phrase, whose last word is `subject` or `scenery`, with a case (`.accusative`) where it isn't the nominative,
  and before it `a` for the article and adjectives. Of several subjects a noun phrase always says the number;
- `motion.<form>`: a form of the motion's phrase, in the singular and the plural where they differ;
- a word of `agreeing`, chosen by the noun's gender (`p` in the plural);
- a phrase of an attribute: setting, place, light, view.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindsearch.world.scene import names, table

SAID = ("subject", "setting", "motion", "colour", "count", "size", "place", "light", "view")
SUBJECT, SETTING, MOTION, COUNT = (SAID.index(name) for name in ("subject", "setting", "motion", "count"))
PHRASES = ("setting", "place", "light", "view")
ADJECTIVES = ("colour", "size")
NOUNS = {"subject": SUBJECT, "scenery": SETTING}
PLURAL = "p"


@dataclass(frozen=True)
class Slot:
    """A place in a template.

    Attributes:
        kind: noun, motion, agree or phrase.
        name: of the noun's table, the motion's form, the agreeing word or the attribute.
        column: of the attribute in SAID, or -1.
        before: words before a noun.
        case: of a noun.
    """

    kind: str
    name: str
    column: int
    before: tuple[str, ...] = ()
    case: str = "nominative"


@dataclass(frozen=True)
class Template:
    """A template without optional parts.

    Attributes:
        parts: plain text and slots by turns.
        said: bits of the attributes, as in SAID, that it names of every scene.
        plural_says: the same for a scene of several subjects.
    """

    parts: tuple[str | Slot, ...]
    said: int
    plural_says: int


class Wording:
    """The words and templates of a language; build it with `load_wording`.

    Attributes:
        words: the table as in `data/`.
        templates: style -> kind -> templates, each as its versions with and without optional parts.
        masks: (512, 9) bool: the bits of a number; columns as in SAID.
    """

    def __init__(self, words: dict[str, Any]) -> None:
        """Take the templates apart."""
        self.words = words
        self.templates = {
            style: {kind: [self._versions(text) for text in texts] for kind, texts in kinds.items()}
            for style, kinds in words["templates"].items()
        }
        numbers = np.arange(1 << len(SAID))[:, None]
        self.masks: NDArray[np.bool_] = (numbers >> np.arange(len(SAID))[None, :]) & 1 == 1
        by_code = (*NOUNS, "motion", "colour", "size", "count", *PHRASES)
        self._by_code = {name: [words[name][value] for value in names(_attribute(name))] for name in by_code}
        self._usable: dict[tuple[str, int], list[list[Template]]] = {}
        self._noun_phrase = functools.lru_cache(maxsize=1 << 16)(self.noun_phrase)

    def _versions(self, text: str) -> list[Template]:
        pieces = re.split(r"\[(.*?)\]", text)
        choices = [(piece, "") if number % 2 else (piece,) for number, piece in enumerate(pieces)]
        return [
            self._parse(" ".join("".join(chosen).split()).replace(" ,", ",")) for chosen in itertools.product(*choices)
        ]

    def _parse(self, text: str) -> Template:
        parts: list[str | Slot] = []
        said = plural_says = 0
        for number, piece in enumerate(re.split(r"{(.*?)}", text)):
            if number % 2 == 0:
                parts += [piece] if piece else []
                continue
            slot = self._slot(piece)
            parts.append(slot)
            named = [SAID.index(word) for word in slot.before if word in SAID]
            said |= sum(1 << column for column in [*named, slot.column] if column >= 0)
            plural_says |= (1 << COUNT) if slot.name == "subject" else 0
        return Template(tuple(parts), said, said | plural_says)

    def _slot(self, text: str) -> Slot:
        *before, last = text.split()
        name, _, form = last.partition(".")
        if name in NOUNS:
            return Slot("noun", name, NOUNS[name], tuple(before), form or "nominative")
        if name == "motion":
            return Slot("motion", form, MOTION)
        if name in self.words["agreeing"]:
            return Slot("agree", name, -1)
        return Slot("phrase", name, SAID.index(name))

    def choose(self, style: str, present: int, first: float, second: float) -> Template:
        """Choose a template that needs nothing a scene lacks.

        Args:
            style: of the templates.
            present: bits of the attributes that the scene has, as in SAID.
            first: chance in [0, 1) of the template.
            second: chance of its optional parts.
        """
        usable = self._usable.get((style, present))
        if usable is None:
            kind = ("setting", "subject", "setting", "full")[present & 3]
            versions = [[one for one in every if not one.said & ~present] for every in self.templates[style][kind]]
            usable = self._usable[style, present] = [some for some in versions if some]
        some = usable[int(first * len(usable))]
        return some[int(second * len(some))]

    def fill(self, template: Template, code: list[int], chance: list[float]) -> tuple[str, int]:
        """Put a scene's words into a template.

        Args:
            template: from `choose`.
            code: the scene's attribute codes, as in SAID.
            chance: of each attribute's synonym, in [0, 1), as in SAID.

        Returns:
            The text, and the bits of the attributes that it names.
        """
        several = code[COUNT] > 0
        text = ""
        for part in template.parts:
            if isinstance(part, str):
                text += part
            elif part.kind == "noun":
                text += self._say_noun(part, code, chance)
            elif part.kind == "agree":
                gender = PLURAL if several else self._pick("subject", SUBJECT, code, chance)[1]
                text += self.words["agreeing"][part.name][gender]
            else:
                name = "motion" if part.kind == "motion" else part.name
                said = self._pick(name, part.column, code, chance)
                said = said[part.name] if name == "motion" else said
                text += said if isinstance(said, str) else said[several]
        if "  " in text:
            text = text.replace("  ", " ")
        return text.rstrip(), template.plural_says if several else template.said

    def _pick(self, name: str, column: int, code: list[int], chance: list[float]) -> Any:
        choices = self._by_code[name][code[column]]
        return choices[int(chance[column] * len(choices))]

    def _say_noun(self, slot: Slot, code: list[int], chance: list[float]) -> str:
        noun = tuple(self._pick(slot.name, slot.column, code, chance))
        number = self._pick("count", COUNT, code, chance) if slot.name == "subject" else ""
        several = slot.name == "subject" and code[COUNT] > 0
        adjectives = []
        for word in slot.before:
            if word in ADJECTIVES:
                adjectives.append(self._pick(word, SAID.index(word), code, chance))
            elif word == "count" and not several:
                adjectives.append(number)
            elif word in self.words["adjectives"]:
                adjectives.append(self.words["adjectives"][word])
        article = number if several else "a" if "a" in slot.before else ""
        return self._noun_phrase(noun, several, article, tuple(adjectives), slot.case)

    def noun_phrase(
        self, noun: tuple[str, ...], several: bool, article: str, adjectives: tuple[str, ...], case: str
    ) -> str:
        """Let article, adjectives and noun agree.

        Args:
            noun: singular in the nominative, gender, then plural and, where it differs, singular in the accusative.
            several: say it in the plural.
            article: "a" for the indefinite one, a numeral, or nothing.
            adjectives: their stems.
            case: nominative or accusative.
        """
        gender = PLURAL if several else noun[1]
        if article == "a":
            article = self.words["articles"][case][gender]
        word = noun[2] if several else noun[3] if case == "accusative" and len(noun) > 3 else noun[0]
        ending = self.words["endings"].get(case, {}).get(gender, "")
        text = " ".join([*([article] if article else []), *(stem + ending for stem in adjectives), word])
        if (pair := self.words.get("before_vowel")) and re.match(pair[0] + " [aeiou]", text):
            text = pair[1] + text[len(pair[0]) :]
        return text

    def every_text(self) -> Iterator[str]:
        """Give texts that hold, together, every word in every form that a caption can have."""
        for kinds in self.words["templates"].values():
            for text in itertools.chain.from_iterable(kinds.values()):
                yield re.sub(r"{.*?}|[][]", " ", text)
        yield from (word for forms in self.words["agreeing"].values() for word in forms.values())
        yield from (word for forms in self.words["articles"].values() for word in forms.values())
        yield from self.words.get("before_vowel", ())
        stems = [stem for name in (*ADJECTIVES, "count") for stems in self.words[name].values() for stem in stems]
        stems += self.words["adjectives"].values()
        endings = {"", *(end for forms in self.words["endings"].values() for end in forms.values())}
        bare = [] if self.words["endings"] else [""]
        yield from (stem + ending for stem in stems for ending in (endings - {""} or bare))
        yield from (word for name in ("count",) for words in self.words[name].values() for word in words)
        for name in NOUNS:
            yield from (form for nouns in self.words[name].values() for noun in nouns for form in (noun[0], *noun[2:]))
        for name in PHRASES:
            yield from (phrase for phrases in self.words[name].values() for phrase in phrases)
        for phrases in self.words["motion"].values():
            for form in itertools.chain.from_iterable(phrase.values() for phrase in phrases):
                yield from [form] if isinstance(form, str) else form


def _attribute(name: str) -> str:
    return "setting" if name == "scenery" else name


@functools.cache
def load_wording(language: str) -> Wording:
    """Build the wording of a language once; its table must exist in `data/`."""
    return Wording(table(language))
