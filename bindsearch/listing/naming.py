"""What a file's name says: its modality, its stem, its key."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import PurePosixPath

from bindsearch.errors import UnknownNameError
from bindsearch.registry import MODALITIES
from bindsearch.types import to_text

CAPTION_SUFFIX = ".txt"
_URI = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
_ESCAPED = re.compile(r"\\udc([89a-f][0-9a-f])")


@lru_cache(maxsize=1)
def suffix_table() -> dict[str, str]:
    """Map suffix -> modality; of a name with several, the longest counts: .depth.png is depth and .png is an image.

    A suffix that two modalities claim belongs to the one registered first by name.
    """
    pairs: dict[str, str] = {}
    for name in MODALITIES:
        for suffix in MODALITIES[name].suffixes:
            pairs.setdefault(suffix.lower(), name)
    return pairs


@dataclass(frozen=True)
class Namer:
    """Tells the modality and the stem of a name.

    Attributes:
        forced: the modality that --modality asks for, or None to go by suffix.
    """

    forced: str | None = None
    _forced_endings: tuple[str, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        """Check the name and work out which files of a folder it applies to.

        Raises:
            UnknownNameError: no such modality.
        """
        if self.forced is None:
            return
        if self.forced not in MODALITIES:
            raise UnknownNameError("modality", self.forced, MODALITIES.names())
        suffixes = list(MODALITIES[self.forced].suffixes)
        if self.forced == "audio":  # the sound track of a video
            suffixes += MODALITIES["video"].suffixes
        endings = sorted({f".{suffix.lower().rsplit('.', 1)[-1]}" for suffix in suffixes})
        object.__setattr__(self, "_forced_endings", tuple(endings))

    def look(self, name: str) -> tuple[str, str] | None:
        """Tell modality and stem of a file found in a folder or a tar.

        Args:
            name: file name or path.

        Returns:
            (modality, the name without the suffix that told it), or None: no media, or not of the forced modality.
        """
        low = name.lower()
        if self.forced is not None:
            for suffix in self._forced_endings:
                if low.endswith(suffix):
                    return self.forced, name[: -len(suffix)]
            return None
        table, start = suffix_table(), low.rfind("/") + 1
        dot = low.find(".", start + 1)  # a name that is nothing but a suffix is hidden
        while dot != -1:  # longest suffix first
            modality = table.get(low[dot:])
            if modality is not None:
                return modality, name[: dot - len(low)]
            dot = low.find(".", dot + 1)
        return None

    def of_named(self, name: str) -> str | None:
        """Tell the modality of a file that was named one by one: the forced one whatever the suffix."""
        if self.forced is not None:
            return self.forced
        found = self.look(_path_of_uri(name))
        return found[0] if found else None


def is_utf8(text: str) -> bool:
    """Say whether a text can be written as UTF-8: bytes that could not be read as it stand as surrogates."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def is_uri(text: str) -> bool:
    """Say whether a text starts with a scheme, such as s3:// or https://."""
    return _URI.match(text) is not None


def _path_of_uri(text: str) -> str:
    return text.split("?", 1)[0].split("#", 1)[0] if is_uri(text) else text


def suffix_of(name: str) -> str:
    """Give the last suffix in lower case for the count of ignored files; "(none)" where there is none."""
    return PurePosixPath(name).suffix.lower() or "(none)"


def place_of(path: str | os.PathLike[str]) -> str:
    """Give a path from the root, as text; symbolic links in it stay as they are."""
    return to_text(os.path.abspath(path))  # noqa: PTH100  # resolve() would follow links


def to_path(text: str) -> str:
    """Undo `to_text`, where a file of that exact name does not exist."""
    if not _ESCAPED.search(text) or os.path.lexists(text):
        return text
    return _ESCAPED.sub(lambda match: chr(0xDC00 + int(match.group(1), 16)), text)
