"""Questions about scenes and their answers, made from captions and positions; and what a given answer says.

A question is asked about one attribute, about two ("What is it and where is it?"), or whether something is so. Its
answer is the attribute's first word in the world's language, so that it can be read back and compared.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import numpy as np

from bindsearch.errors import UnknownNameError
from bindsearch.llm.conversations import Conversation, Turn
from bindsearch.world.phrases import load_wording
from bindsearch.world.scene import ABSENT, Codes, Floats, Scenes, draw, names, table
from bindsearch.world.text import write_captions

ATTRIBUTES = ("subject", "colour", "count", "place", "setting", "motion")
CLOSED = tuple(f"is_{attribute}" for attribute in ("subject", "colour", "setting", "motion"))
PAIRS = ("subject_setting", "subject_colour")
KINDS = (*ATTRIBUTES, *CLOSED, *PAIRS, "describe")
UNKNOWN = -2
"""What `read_answer` gives where an answer names nothing of the attribute, or several things."""
YES, NO = 1, 0
_NOTHING, _NOWHERE = "Nothing.", "I cannot tell."
_DEFAULT = (*ATTRIBUTES, "subject", "colour", "motion", *CLOSED, *PAIRS, "describe")
_NAMED = re.compile(r"{.*?}")


@dataclass(frozen=True)
class Question:
    """One question about each of n scenes.

    Attributes:
        kind: one of KINDS.
        turns: n questions with their right answers.
        codes: (n,) of the right answers: an attribute's code, ABSENT where the scene has none, YES or NO; for
            `describe` and PAIRS those of the first attribute.
    """

    kind: str
    turns: tuple[Turn, ...]
    codes: Codes


def first_words(attribute: str) -> tuple[str, ...]:
    """Give the words that answers name an attribute's values by, in the order of their codes.

    Raises:
        UnknownNameError: questions are not asked about it.
    """
    if attribute not in ATTRIBUTES:
        raise UnknownNameError("attribute of answers", attribute, ATTRIBUTES)
    words = table("english")[attribute]
    if attribute == "subject":
        return tuple(words[value][0][0] for value in names(attribute))
    if attribute == "motion":
        return tuple(words[value][0]["ing"] for value in names(attribute))
    if attribute == "count":
        return names("count")
    return tuple(words[value][0] for value in names(attribute))


def ask(scenes: Scenes, kind: str, variant: int = 0, plain: bool = False) -> Question:
    """Ask one question about each scene.

    Args:
        scenes: n scenes.
        kind: one of KINDS.
        variant: number of the wording, and of what yes-or-no questions ask for.
        plain: take the kind's first wording for every scene, which names nothing of it.

    Raises:
        UnknownNameError: no such kind.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of question", kind, KINDS)
    chances = draw(scenes.seed, f"question.{kind}.{variant}", 4)
    if kind in CLOSED:
        return _closed(scenes, kind, chances, plain)
    if kind == "describe":
        said = write_captions(scenes, variant=variant, style="full" if plain else "varied").texts
        answers = [_sentence(text) for text in said]
        codes = scenes.subject
    elif kind in PAIRS:
        answers = [_pair(scenes, row, kind.split("_")[1]) for row in range(len(scenes))]
        codes = scenes.subject
    else:
        codes = getattr(scenes, kind)
        answers = [_answer(kind, int(code), int(scenes.count[row])) for row, code in enumerate(codes)]
    questions = [
        _wording(kind, 0.0 if plain else float(chances[row, 0]), scenes, row, float(chances[row, 1]))
        for row in range(len(scenes))
    ]
    return Question(kind, tuple(map(Turn, questions, answers)), codes)


def _wording(kind: str, chance: float, scenes: Scenes, row: int, second: float) -> str:
    """Choose a question's wording; of one that names the subject, put the scene's in, where it has one."""
    choices = table("questions")[kind]
    text: str = choices[int(chance * len(choices))]
    if not _NAMED.search(text):
        return text
    code = int(scenes.subject[row])
    if code == ABSENT:
        return str(choices[0])
    nouns = load_wording("english").words["subject"][names("subject")[code]]
    noun = nouns[int(second * len(nouns))]
    several = int(scenes.count[row]) > 0
    if several and not text.endswith("{subjects} are there?"):
        return str(choices[0])
    return text.replace("{subject}", noun[0]).replace("{subjects}", noun[2])


def _closed(scenes: Scenes, kind: str, chances: Floats, plain: bool) -> Question:
    """Ask whether an attribute has a value: in half of the scenes that have one, it has.

    The answer first says what is there and then yes or no: a small model learns to compare two words that it has
    before it, and not to judge in one step (docs/adr/0158).
    """
    attribute = kind.removeprefix("is_")
    codes, many = getattr(scenes, attribute), len(names(attribute))
    other = np.floor(chances[:, 1] * (many - 1)).astype(np.int16)
    other = np.where(codes == ABSENT, other, (codes + 1 + other) % many)
    asked = np.where((chances[:, 2] < 0.5) & (codes != ABSENT), codes, other)
    choices, words = table("questions")[kind], first_words(attribute)
    turns = []
    for row, code in enumerate(asked.tolist()):
        text = choices[0 if plain else int(chances[row, 0] * len(choices))]
        noun = f"{_article(words[code])} {words[code]}"
        text = text.replace("{a subject}", noun).replace(f"{{{attribute}}}", words[code])
        so = "yes" if code == codes[row] else "no"
        turns.append(Turn(text, f"{_seen(attribute, int(codes[row]), int(scenes.count[row]))}, so {so}."))
    return Question(kind, tuple(turns), np.where(asked == codes, YES, NO).astype(np.int16))


def _answer(attribute: str, code: int, count: int) -> str:
    if code == ABSENT:
        return _NOWHERE if attribute in ("setting", "place") else _NOTHING
    if attribute == "subject":
        return _sentence(_noun(code, count))
    return _sentence(first_words(attribute)[code])


def _seen(attribute: str, code: int, count: int) -> str:
    """Say what an attribute is, as the first half of a sentence."""
    if code == ABSENT:
        return "I cannot tell where it is" if attribute == "setting" else "I see nothing"
    what = _noun(code, count) if attribute == "subject" else first_words(attribute)[code]
    return f"They are {what}" if count > 0 else f"It is {what}"


def _pair(scenes: Scenes, row: int, second: str) -> str:
    subject, count = int(scenes.subject[row]), int(scenes.count[row])
    other = int(getattr(scenes, second)[row])
    if subject == ABSENT:
        place = first_words("setting")[int(scenes.setting[row])] if second == "setting" else ""
        return _sentence(f"nothing {place}".strip())
    if second == "colour":
        return _sentence(_noun(subject, count, first_words("colour")[other]))
    where = f" {first_words('setting')[other]}" if other != ABSENT else ""
    return _sentence(_noun(subject, count) + where)


def _noun(subject: int, count: int, adjective: str = "") -> str:
    """Say "a dog" or, of several, "dogs"; with an adjective before the noun."""
    noun = table("english")["subject"][names("subject")[subject]][0]
    phrase = f"{adjective} {noun[2] if count > 0 else noun[0]}".strip()
    return phrase if count > 0 else f"{_article(phrase)} {phrase}"


def _article(phrase: str) -> str:
    return "an" if phrase[0] in "aeiou" else "a"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def write_instructions(
    scenes: Scenes, images: list[str] | None, variant: int = 0, kinds: tuple[str, ...] = _DEFAULT
) -> list[Conversation]:
    """Make one conversation about each scene.

    Args:
        scenes: n scenes.
        images: names of their pictures; None: conversations without any.
        variant: number of the wordings.
        kinds: of the questions, in their order; a kind may come more than once, in other wordings. Where several are
            there, or none, nobody is asked for a position.
    """
    asked = []
    for number, kind in enumerate(kinds):
        asked.append(ask(scenes, kind, variant * 100 + kinds[:number].count(kind)))
    conversations = []
    for row, seed in enumerate(scenes.seed.tolist()):
        turns = [one.turns[row] for one in asked if one.kind != "place" or scenes.place[row] != ABSENT]
        conversations.append(Conversation(str(seed), tuple(turns), None if images is None else images[row]))
    return conversations


def write_readings(scenes: Scenes, variant: int = 0) -> list[Conversation]:
    """Make conversations without pictures: a scene is told in words, and asked about.

    What is asked is what the words say: the first turn gives every attribute that a scene has.
    """
    told = [_told(scenes, row, variant) for row in range(len(scenes))]
    made = []
    for row, each in enumerate(write_instructions(scenes, None, variant)):
        first = each.turns[0]
        start = Turn(f"{told[row]}\n{first.question}", first.answer)
        made.append(Conversation(each.id, (start, *each.turns[1:])))
    return made


def _told(scenes: Scenes, row: int, variant: int) -> str:
    """Tell all that questions ask about, in an order drawn by the seed, with synonyms."""
    words = table("english")
    chance = draw(scenes.seed[row : row + 1], f"told.{variant}", len(ATTRIBUTES), 2)[0]
    parts = []
    for number, attribute in enumerate(ATTRIBUTES):
        code = int(getattr(scenes, attribute)[row])
        if code == ABSENT:
            continue
        if attribute == "count":
            parts.append((chance[number, 1], names("count")[code]))
            continue
        values = words[attribute][names(attribute)[code]]
        value = values[int(chance[number, 0] * len(values))]
        text = value["ing"] if attribute == "motion" else value[0] if attribute == "subject" else value
        parts.append((chance[number, 1], text))
    return _sentence(", ".join(text for _, text in sorted(parts)))


def read_answer(attribute: str, text: str) -> int:
    """Read an attribute's code out of an answer.

    Args:
        attribute: one of ATTRIBUTES, or a kind of CLOSED.
        text: whatever was answered; synonyms and plurals count.

    Returns:
        The code; YES or NO; ABSENT where the answer says that there is none; UNKNOWN where it names no value, or two.
    """
    said = text.lower()
    if attribute in CLOSED:
        found = {word for word in re.findall(r"\w+", said) if word in ("yes", "no")}
        return UNKNOWN if len(found) != 1 else YES if "yes" in found else NO
    pattern, codes = _readers(attribute)
    named = {codes[match] for match in pattern.findall(said)}
    if len(named) == 1:
        return named.pop()
    absent = said.strip().startswith(("nothing", "none", "i cannot", "there is nothing"))
    return ABSENT if not named and absent else UNKNOWN


@functools.cache
def _readers(attribute: str) -> tuple[re.Pattern[str], dict[str, int]]:
    words = table("english")[attribute]
    codes: dict[str, int] = {}
    for code, value in enumerate(names(attribute)):
        for one in (*words[value], *([value] if attribute == "count" else [])):
            if attribute == "subject":
                forms = [one[0], *one[2:]]
            elif attribute == "motion":
                forms = [one["ing"], *one["verb"]]
            else:
                forms = [one]
            codes |= {form.lower(): code for form in forms}
    longest = sorted(codes, key=len, reverse=True)
    return re.compile(r"\b(" + "|".join(map(re.escape, longest)) + r")\b"), codes


def every_text() -> list[str]:
    """List the texts that questions and answers are made of: with captions, all that a tokenizer must know."""
    texts = [_NAMED.sub(" ", text) for choices in table("questions").values() for text in choices]
    texts += [_sentence(word) for attribute in ATTRIBUTES for word in first_words(attribute)]
    texts += [_sentence(_noun(code, count)) for code in range(len(names("subject"))) for count in (0, 1)]
    return [*texts, "Yes.", "No.", _NOTHING, _NOWHERE]
