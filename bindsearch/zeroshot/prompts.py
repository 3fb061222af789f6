"""Prompts: labels and the phrases that stand for them, templates as data, class vectors.

A class vector is the mean of its normalised prompts, normalised again (Radford et al. 2021, section 3.1.4).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.config import content_hash
from bindsearch.errors import InputError, MissingInputError, UnknownNameError

if TYPE_CHECKING:
    from bindsearch.types import FloatArray

DEFAULT_TEMPLATES = "plain"
_FOLDER = resources.files("bindsearch.zeroshot") / "templates"
_ENCODE_AT_ONCE = 512
_ARTICLE = re.compile(r"\{a\}(\s+)(\w)")


@dataclass(frozen=True)
class Templates:
    """A set of prompt templates.

    Attributes:
        name: of the set; of a file its stem.
        templates: each with one `{}` for the label; `{a}` in front of a word becomes "a" or "an".
        language, source: what language they are in and who wrote them.
    """

    name: str
    templates: tuple[str, ...]
    language: str = ""
    source: str = ""

    @property
    def id(self) -> str:
        """Name and hash of the templates, such as "plain:1a2b3c4d"."""
        return f"{self.name}:{content_hash(list(self.templates), 8)}"

    def fill(self, phrase: str) -> list[str]:
        """Put a phrase into every template; equal prompts are kept once."""
        return list(dict.fromkeys(_with_article(template.replace("{}", phrase)) for template in self.templates))


@dataclass(frozen=True)
class Labels:
    """Classes: their names, and the phrases that stand for each in prompts.

    Attributes:
        names: at least one, none twice.
        phrases: one tuple a name; of a plain label the label itself.
    """

    names: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, labels: Labels | Sequence[str] | Mapping[str, Sequence[str] | str], where: str = "labels") -> Labels:
        """Make labels of a list of names, or of a mapping of names to phrases.

        Raises:
            InputError: no label, a label twice, or one without a phrase.
        """
        if isinstance(labels, Labels):
            return labels
        if isinstance(labels, str):
            labels = labels.split(",")
        pairs = labels.items() if isinstance(labels, Mapping) else ((name, name) for name in labels)
        names, phrases = [], []
        for name, said in pairs:
            own = [said] if isinstance(said, str) else list(said)
            if not all(isinstance(text, str) and text.strip() for text in (name, *own)) or not own:
                raise InputError(f"{where}: {name!r:.60}: expected a name and at least one phrase, got {said!r:.60}.")
            names.append(name.strip())
            phrases.append(tuple(text.strip() for text in own))
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or not names:
            raise InputError(f"{where}: " + (f"the label {twice[0]!r} is there twice." if twice else "no label in it."))
        return cls(tuple(names), tuple(phrases))


def read_labels(text: str) -> Labels:
    """Read labels as they are written on the command line.

    Args:
        text: "bird,rain,car"; or "@FILE": a .json object of names and phrases or list of names, or a text with one
            label a line.

    Raises:
        MissingInputError: no such file.
        InputError: no label, a label twice, or a file that cannot be read.
    """
    if not text.startswith("@"):
        return Labels.of([part for part in text.split(",") if part.strip()], "--labels")
    path = Path(text[1:])
    words = _read_text(path, "--labels")
    if path.suffix.lower() != ".json":
        return Labels.of([line for line in words.splitlines() if line.strip()], str(path))
    found = _parse_json(words, path)
    if not isinstance(found, list | dict):
        raise InputError(f"{path}: expected a list of labels or an object of labels and phrases.")
    return Labels.of(found, str(path))


def list_templates() -> tuple[str, ...]:
    """List the sets that come with bindsearch."""
    return tuple(
        sorted(entry.name.removesuffix(".json") for entry in _FOLDER.iterdir() if entry.name.endswith(".json"))
    )


def load_templates(name: str | Path | Templates = DEFAULT_TEMPLATES) -> Templates:
    """Load a set of templates.

    Args:
        name: one of `list_templates`, or a file: .json as ours, or a text with one template a line.

    Raises:
        UnknownNameError: neither a name nor a file.
        InputError: a template without exactly one `{}`, or no template.
    """
    if isinstance(name, Templates):
        return name
    if str(name) in list_templates():
        text, where, own = (_FOLDER / f"{name}.json").read_text(encoding="utf-8"), Path(f"{name}.json"), str(name)
    elif Path(name).suffix or Path(name).is_file():
        where, own = Path(name), Path(name).stem
        text = _read_text(where, "--templates")
    else:
        raise UnknownNameError("set of templates", str(name), list_templates(), "Or give a file: one template a line.")
    data: Any = {"templates": [line for line in text.splitlines() if line.strip()]}
    if where.suffix.lower() == ".json":
        data = _parse_json(text, where)
        data = {"templates": data} if isinstance(data, list) else data
    templates = data.get("templates") if isinstance(data, dict) else None
    if not isinstance(templates, list) or not templates:
        raise InputError(f'{where}: no template in it. Write one a line, such as "a picture of a {{}}".')
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise InputError(f"{where}: {template!r:.80}: expected one {{}} for the label.")
    return Templates(own, tuple(templates), str(data.get("language", "")), str(data.get("source", "")))


def class_vectors(space: Any, labels: Labels, templates: Templates) -> FloatArray:
    """Encode labels.

    Args:
        space: with a text tower.
        labels: K classes.
        templates: to put every phrase into.

    Returns:
        (K, d) float32 unit rows: the mean of each class's normalised prompts, normalised again.

    Raises:
        UnknownNameError: the space reads no text.
        InputError: the prompts of a class cancel out.
    """
    prompts = [[text for phrase in phrases for text in templates.fill(phrase)] for phrases in labels.phrases]
    flat = list(dict.fromkeys(text for texts in prompts for text in texts))
    place = {text: number for number, text in enumerate(flat)}
    parts = [
        space.embed("text", flat[start : start + _ENCODE_AT_ONCE]) for start in range(0, len(flat), _ENCODE_AT_ONCE)
    ]
    rows = np.concatenate(parts)
    means = np.stack([rows[[place[text] for text in texts]].mean(axis=0, dtype=np.float64) for texts in prompts])
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    if (norms < 1e-3).any():
        name = labels.names[int(np.argmin(norms))]
        raise InputError(f"label {name!r}: its prompts cancel out. Give it other phrases, or fewer templates.")
    vectors: FloatArray = (means / norms).astype(np.float32)
    return vectors


def _with_article(text: str) -> str:
    def choose(match: re.Match[str]) -> str:
        return f"{'an' if match[2].lower() in 'aeiou' else 'a'}{match[1]}{match[2]}"

    return _ARTICLE.sub(choose, text).replace("{a}", "a")


def _read_text(path: Path, flag: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise MissingInputError(f"{flag} {path}: there is no such file.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{flag} {path}: not UTF-8 text ({error}).") from error


def _parse_json(text: str, path: Path) -> Any:
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice.extend(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return dict(pairs)

    try:
        found = json.loads(text, object_pairs_hook=once)
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}).") from error
    if twice:
        raise InputError(f"{path}: {twice[0]!r:.60} is there twice. Name it once, with all its phrases in one list.")
    return found
