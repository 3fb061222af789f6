"""What scenes are called: `world:17#image`, `world:test:0..2000`, `world:0..100,size=256,kind=subject#image,audio`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from typing import Any

from bindsearch.errors import InputError, UnknownNameError
from bindsearch.world.files import LANGUAGE_SUFFIXES
from bindsearch.world.scene import KINDS, SPLIT_SIZE, SPLITS

SCHEME = "world"
MODALITIES = ("image", "video", "text", "audio", "depth", "thermal", "imu")
"""What scenes can be embedded as; their points have no encoder."""
LANGUAGES = (*LANGUAGE_SUFFIXES, "both")
SIZE_PX = 64
"""Side of pictures where the address names none: what bindsearch-mini sees."""
_OPTIONS_OF = {
    "image": ("size", "kind"), "video": ("size", "kind"), "depth": ("size", "kind"), "thermal": ("size", "kind"),
    "text": ("kind", "language"), "audio": ("kind",), "imu": ("kind",),
}  # fmt: skip
_FORM = re.compile(r"world:(?:([^:,#]*):)?([^:,#]*?)(?:\.\.([^:,#]*))?(?:,([^#]*))?(?:#(.*))?", re.DOTALL)
_FORMS = "world:17#image, world:0..1000 or world:test:0..2000,size=224#image,text"


@dataclass(frozen=True)
class Address:
    """Some scenes, and what of them.

    Attributes:
        split: train, validation, test, demo or compositional.
        first, last: numbers of scenes within the split; `last` is the first that no longer belongs to them.
        size: side of pictures and frames, in pixels.
        kind: see `scene.sample`.
        language: english, german or both.
        modalities: in the order of MODALITIES.
    """

    split: str
    first: int
    last: int
    size: int = SIZE_PX
    kind: str = "full"
    language: str = "english"
    modalities: tuple[str, ...] = field(default=MODALITIES)

    def __str__(self) -> str:
        """Write it as shortly as it can be read again."""
        end = f"..{self.last}" if self.last != self.first + 1 else ""
        tail = f"#{','.join(self.modalities)}" if self.modalities != MODALITIES else ""
        options = [option for modality in self.modalities for option in _OPTIONS_OF[modality]]
        return f"{self._place(self.first)}{end}{self._said(options)}{tail}"

    def _place(self, number: int) -> str:
        return f"{SCHEME}:{number}" if self.split == "train" else f"{SCHEME}:{self.split}:{number}"

    def _said(self, options: list[str] | tuple[str, ...]) -> str:
        return "".join(
            f",{each.name}={getattr(self, each.name)}"
            for each in fields(self)
            if each.name in options and getattr(self, each.name) != each.default
        )

    def scene(self, number: int) -> str:
        """Name a scene, whatever of it: what its items have in common."""
        return f"{self._place(number)}{self._said(('kind',))}"

    def item(self, number: int, modality: str, language: str = "english") -> str:
        """Name one item: one scene in one modality, with the options that tell in that modality."""
        said = replace(self, language=language)._said(_OPTIONS_OF[modality])
        return f"{self._place(number)}{said}#{modality}"

    @property
    def seeds(self) -> range:
        """Seeds of the scenes."""
        return range(SPLITS[self.split] + self.first, SPLITS[self.split] + self.last)


def split_of(seed: int) -> str | None:
    """Name the split that a seed belongs to; None beyond them all."""
    number = seed // SPLIT_SIZE
    return tuple(SPLITS)[number] if 0 <= number < len(SPLITS) else None


def parse(text: str) -> Address:
    """Read an address.

    Args:
        text: `world:[SPLIT:]FIRST[..LAST][,size=PIXELS][,kind=KIND][,language=LANGUAGE][#MODALITY,...]`; LAST no longer
            belongs to the range, and without it there is one scene. The split is train where none is named.

    Raises:
        InputError: not of this form, an empty range, or numbers beyond the split.
        UnknownNameError: an unknown split, option, kind, language or modality.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise InputError(f"{text}: expected a form like {_FORMS}.")
    split, first, last, options, modalities = match.groups()
    if split is not None and split not in SPLITS:
        raise UnknownNameError("split of the world", split, SPLITS, hint=f"({text})")
    numbers = [number for number in (first, last) if number is not None]
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise InputError(f"{text}: expected whole numbers of scenes, in a form like {_FORMS}.")
    low, high = int(first), int(last) if last is not None else int(first) + 1
    if low >= high:
        raise InputError(f"{text}: the range {low}..{high} holds no scene. Write the smaller number first.")
    if high > SPLIT_SIZE:
        raise InputError(
            f"{text}: a split has scenes 0 to {SPLIT_SIZE - 1}. Others are in another split: "
            f"{', '.join(f'world:{name}:0..100' for name in list(SPLITS)[1:])}."
        )
    said = _read_options(options, text)
    return Address(split or "train", low, high, modalities=_read_modalities(modalities, text), **said)


def _read_options(written: str | None, text: str) -> dict[str, Any]:
    known = {"kind": KINDS, "language": LANGUAGES}
    said: dict[str, Any] = {}
    for part in written.split(",") if written is not None else ():
        name, _, value = part.partition("=")
        if name == "size":
            if not (value.isascii() and value.isdigit() and 16 <= int(value) <= 4096):
                raise InputError(f"{text}: size: expected pixels from 16 to 4096, got {value!r}.")
            said[name] = int(value)
        elif name in known:
            if value not in known[name]:
                raise UnknownNameError(f"{name} of the world", value, known[name], hint=f"({text})")
            said[name] = value
        else:
            raise UnknownNameError("option of a world", name, ("size", *known), hint=f"({text})")
    return said


def _read_modalities(written: str | None, text: str) -> tuple[str, ...]:
    if written is None:
        return MODALITIES
    asked = written.split(",")
    for name in asked:
        if name not in MODALITIES:
            raise UnknownNameError("modality of a world", name, MODALITIES, hint=f"({text})")
    return tuple(name for name in MODALITIES if name in asked)
