"""What was last made of a file on disk, for the windows of one recording, which a worker decodes one after another."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from bindsearch.sources import Source

T = TypeVar("T")


class Last(Generic[T]):
    """Holds one thing, as long as the file that it was made of does not change and no other is asked for."""

    def __init__(self, nbytes: Callable[[T], int], limit_bytes: int = 64 << 20) -> None:
        """Hold nothing yet.

        Args:
            nbytes: tells how large a thing is.
            limit_bytes: what is larger is made anew each time.
        """
        self._nbytes, self._limit_bytes = nbytes, limit_bytes
        self._held: tuple[Any, T] | None = None

    def of(self, source: Source, settings: Any, make: Callable[[], T]) -> T:
        """Give what is held of a source, or make it; what has no file of its own is made each time.

        Args:
            source: a file or a member of a tar.
            settings: all else that it depends on, compared by value.
            make: makes it; what it raises is not held.
        """
        place = _place_on_disk(source)
        if place is None:
            return make()
        held = self._held
        if held is not None and held[0] == (place, settings):
            return held[1]
        self._held = held = None  # never two at a time
        made = make()
        if self._nbytes(made) <= self._limit_bytes:
            self._held = ((place, settings), made)
        return made


def _place_on_disk(source: Source) -> tuple[Any, ...] | None:
    """Name a source's bytes, so that other bytes have another name; None where that cannot be done."""
    if source.kind not in ("path", "tar"):
        return None
    try:
        facts = os.stat(source.location)  # noqa: PTH116  # once a window
    except (OSError, ValueError):
        return None
    whose = (source.location, source.member, source.offset, source.length_bytes)
    return (*whose, facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
