"""Whether the files of a run are still those that it began with: their contents, recorded beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bindsearch.config import canonical_json
from bindsearch.embed.decoding import source_of
from bindsearch.errors import DecodeError, MismatchError
from bindsearch.store.files import commit_bytes

if TYPE_CHECKING:
    from bindsearch.train.pair_files import Pairs
    from bindsearch.types import Item

_UNREAD = "unreadable"


def check_files(pairs: Pairs, record: Path, advance: Callable[[int], None] = lambda count: None) -> None:  # noqa: ARG005
    """Refuse a run whose files have other contents than when it began; note in a fresh one what they are.

    A file of the size and the modification time on record is taken to be the same; of any other all bytes are read, so
    that files that were copied or touched go on. Texts, made media and rows of tables are in `Pairs.id` already.

    Args:
        pairs: whose files.
        record: file beside the run: side and key -> size in bytes, modification time in seconds, SHA-256. Written.
        advance: told of so many files that are done.

    Raises:
        MismatchError: naming the first file that differs, both hashes.
    """
    began = json.loads(record.read_text(encoding="ascii")) if record.is_file() else {}
    now: dict[str, list[int | float | str | None]] = {}
    for name, item in _files_of(pairs):
        size_bytes, mtime_s, digest = began.get(name, (None, None, None))
        if [size_bytes, mtime_s] != [item.size_bytes, item.mtime_s]:
            found = _digest(item)
            if digest not in (None, found):
                raise MismatchError(
                    f"{record.parent}: was begun with another {item.source}: SHA-256 {digest:.12}, now {found:.12}. "
                    "Use another folder (-o), or the same files to go on."
                )
            digest = found
        now[name] = [item.size_bytes, item.mtime_s, digest]
        advance(1)
    if now != began:
        commit_bytes(record, (canonical_json(now) + "\n").encode("ascii"))


def _files_of(pairs: Pairs) -> Iterator[tuple[str, Item]]:
    for side, items in (("a", pairs.anchors), ("b", pairs.others)):
        for key, item in items.items():
            if item.size_bytes is not None and item.mtime_s is not None:
                yield f"{side} {key}", item


def _digest(item: Item) -> str:
    try:
        return source_of(item).sha256()
    except (DecodeError, OSError):
        return _UNREAD
