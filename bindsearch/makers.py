"""Media that lie nowhere and are made from their names: `world:17#image`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from bindsearch.errors import InputError
from bindsearch.registry import MAKERS

if TYPE_CHECKING:
    from bindsearch.sources import Source
    from bindsearch.types import Item

_NAME = re.compile(r"([a-z][a-z0-9-]*):(?!//)")


class Maker(Protocol):
    """Makes media from names in place of reading them; `registry.MAKERS` holds one a scheme."""

    def canonical(self, name: str) -> str:
        """Give the one way to write a name; InputError where it cannot be meant."""

    def items(self, name: str, modality: str | None = None) -> Iterator[Item]:
        """List what a name stands for; the source of each item is a name that stands for it alone."""

    def make(self, names: Sequence[str]) -> list[Source]:
        """Make items' media: sources that hold values. Many at once may be quicker than one by one."""

    def bytes_of(self, name: str) -> int:
        """Tell about how many bytes an item's media take when they are made."""

    def narrowed(self, name: str, modalities: Sequence[str]) -> str:
        """Name only some modalities of what a name stands for; InputError where that cannot be meant."""

    def for_viewing(self, name: str, size_px: int) -> str:
        """Name the same item, with pictures large enough for people."""


def maker_of(text: str) -> Maker | None:
    """Give what makes the media that a name such as `world:17#image` stands for; None for paths and URIs.

    A file of that exact name wins.
    """
    match = _NAME.match(text)
    if match is None or not _is_maker(match.group(1)) or os.path.lexists(text):
        return None
    maker: Maker = MAKERS[match.group(1)]
    return maker


def narrow(text: str, modalities: Sequence[str]) -> str:
    """Name only some modalities of media that are made.

    Raises:
        InputError: the text names no media that are made: what a file is, its name says.
    """
    maker = maker_of(text)
    if maker is None:
        raise InputError(
            f"{text}: --modalities is for sources such as world:0..1000. A folder's files are what their names say; "
            "to read all of them as one modality: --modality NAME."
        )
    return maker.narrowed(text, modalities)


@lru_cache(maxsize=64)
def _is_maker(scheme: str) -> bool:
    return scheme in MAKERS
