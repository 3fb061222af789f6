"""From what a user names (folders, lists, manifests, tars, stdin) to items, in an order that never changes."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from bindsearch.errors import InputError, MissingInputError, UnsupportedError
from bindsearch.listing.folders import TAR_SUFFIX, FolderWalk, file_facts, read_caption
from bindsearch.listing.items import BrokenItem, literal_item
from bindsearch.listing.naming import Namer, is_uri, is_utf8, place_of, suffix_of, to_path
from bindsearch.listing.tables import TABLE_SUFFIXES, Manifest
from bindsearch.listing.tars import expand_braces, scan_tar
from bindsearch.makers import maker_of
from bindsearch.row_table import is_row_table, load_row_table
from bindsearch.sources import ROW_SCHEME, each_source
from bindsearch.types import Item, to_text

LIST_SUFFIXES = (".lst", ".list")
STDIN = "-"
STDIN_PLACE = "stdin"
"""What texts that were typed have for their source: they lie in no file."""
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass
class Listing:
    """What the given sources hold.

    Attributes:
        sources: folders, files, file lists (.lst, .list, @FILE), manifests (.csv, .tsv, .jsonl, .ndjson, .parquet),
            tars (brace patterns allowed), URIs of single files, or "-" for stdin; with modality "features" also tables
            of vectors, see row_table.py. A bare path or text is a list of one.
        modality: read every source as this one; None goes by suffix.
        text_column: column of manifests that holds the texts to embed.
        stdin: where "-" reads from; None is the process's own.
        skip: folders that are not entered.
        ignored: after iterating, the number of files that are no media, by suffix.
        hidden, linked: after iterating, the hidden files and folders skipped, and links to folders already listed.
        left_out: after iterating, the folders of `skip` that lay there.
    """

    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
    modality: str | None = None
    text_column: str | None = None
    stdin: TextIO | None = None
    skip: Iterable[Path] = ()
    ignored: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    linked: int = 0
    left_out: int = 0

    def __post_init__(self) -> None:
        """Check everything that can be checked before the first item.

        Raises:
            MissingInputError: a source does not exist, or none is given.
            UnsupportedError: a compressed tar.
            UnknownNameError: no such modality.
        """
        self._sources = list(each_source(self.sources))
        if not self._sources:
            raise MissingInputError("no sources given. Name a folder, a file, a manifest, a tar, or - for stdin.")
        self._namer = Namer(self.modality)
        self._skip = frozenset(os.path.realpath(folder) for folder in self.skip)
        self._expanded = [(origin, name) for origin, source in enumerate(self.names) for name in _expand(source)]
        for _, name in self._expanded:
            _check_there(name)

    @property
    def names(self) -> list[str]:
        """The sources as text, in the order given."""
        return [os.fspath(source) for source in self._sources]

    @property
    def origins(self) -> list[str]:
        """What each source is called in a plan: an absolute path, a URI, a name of made media, or "-"."""
        return [name if name == STDIN or is_uri(name) else _origin(name) for name in self.names]

    def __iter__(self) -> Iterator[Item]:
        """Yield the items, in order."""
        for _, item in self.with_origins():
            yield item

    def with_origins(self) -> Iterator[tuple[int, Item]]:
        """Yield each item with the number of the source it came from."""
        for origin, name in self._expanded:
            for item in self._of_source(name):
                yield origin, item

    def _of_source(self, name: str) -> Iterator[Item]:
        if name == STDIN:
            return self._of_lines(_numbered(lines_of(self.stdin or sys.stdin)), Path(), "stdin", STDIN_PLACE)
        if _names_list(name):
            return self._of_list(Path(name[1:]))
        if is_uri(name):
            return self._of_file(name, name, None)
        if (maker := maker_of(name)) is not None:
            return maker.items(name, self.modality)
        path = Path(name)
        if self.modality == "features" and is_row_table(path):
            return _rows_of(path)
        if path.is_dir():
            return iter(FolderWalk(path, self._namer, self._skip, self.ignored, self._count))
        low = name.lower()
        if low.endswith(LIST_SUFFIXES):
            return self._of_list(path)
        if low.endswith(TAR_SUFFIX):
            return scan_tar(path, to_text(_as_key(name)), self._namer, self.ignored)
        if low.endswith(TABLE_SUFFIXES) and (self.text_column or not self._is_media(name)):
            return iter(Manifest(path, self._namer, self.text_column))
        return self._of_file(name, _as_key(name), path)

    def _is_media(self, name: str) -> bool:
        """Say whether a table is a recording: by its name, or as one that the forced modality reads."""
        return self._namer.look(name) is not None or Namer().look(name) is not None

    def _count(self, what: str) -> None:
        setattr(self, what, getattr(self, what) + 1)

    def _of_list(self, path: Path) -> Iterator[Item]:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            yield from self._of_lines(_numbered(file), path.parent, path.name, place_of(path))

    def _of_lines(self, lines: Iterator[tuple[int, str]], folder: Path, name: str, place: str) -> Iterator[Item]:
        """Yield an item a line: a path relative to `folder`, or with --modality text the text itself, from `place`.

        A path may hold any bytes, which stand as surrogates; a text that does is no text.
        """
        for number, line in lines:
            if self.modality == "text" and not is_utf8(line):
                reason = f"{name}, line {number}: the text is not UTF-8"
                yield BrokenItem(f"{name}#{number}", "text", place, reason=reason, stage="read")
            elif self.modality == "text":
                yield literal_item(Item(f"{name}#{number}", "text", place), line)
            elif is_uri(line):
                yield from self._of_file(line, line, None)
            elif (maker := maker_of(line)) is not None:
                yield from maker.items(line, self.modality)
            else:
                line = to_path(line)
                path = folder / line
                if path.is_dir():
                    raise InputError(
                        f"{name}, line {number}: {line} is a folder. Give folders as sources of their own."
                    )
                yield from self._of_file(line, _as_key(line), path)

    def _of_file(self, name: str, key: str, path: Path | None) -> Iterator[Item]:
        """Yield the item of a file named one by one; a URI has no path."""
        modality = self._namer.of_named(name)
        if modality is None:
            self.ignored[suffix_of(name)] += 1
            return
        size_bytes, mtime_s = file_facts(path) if path is not None else (None, None)
        source = place_of(path) if path is not None else name
        caption = read_caption(path) if path is not None and modality == "text" else None
        yield Item(to_text(key), modality, source, size_bytes=size_bytes, mtime_s=mtime_s, caption=caption)


def collect(
    *sources: str | os.PathLike[str], modality: str | None = None, text_column: str | None = None
) -> Iterator[Item]:
    """List the items that sources hold; see `Listing` for what a source may be.

    Args:
        sources: what to list.
        modality: read every source as this one.
        text_column: column of manifests that holds the texts.

    Yields:
        Items in a fixed order. BrokenItem stands for what was found and cannot be embedded.

    Raises:
        MissingInputError: a source does not exist.
        InputError: a manifest that cannot be meant.
    """
    yield from Listing(sources, modality, text_column)


def _rows_of(path: Path) -> Iterator[Item]:
    """Yield an item a row of a table of vectors."""
    table, place = load_row_table(path), place_of(path)
    size_bytes, mtime_s = 4 * table.width, path.stat().st_mtime
    for key in sorted(table.places):
        source = f"{ROW_SCHEME}{place}!/{key}"
        yield Item(to_text(key), "features", to_text(source), size_bytes=size_bytes, mtime_s=mtime_s)


def _expand(name: str) -> Iterator[str]:
    """Expand a brace pattern; a file of that exact name wins."""
    if "{" in name and not is_uri(name) and not os.path.lexists(name):
        yield from expand_braces(name)
    else:
        yield name


def _check_there(name: str) -> None:
    if name == STDIN or is_uri(name):
        return
    if (maker := maker_of(name)) is not None:
        maker.canonical(name)
        return
    path = name[1:] if _names_list(name) else name
    if not os.path.lexists(path):
        raise MissingInputError(f"{to_text(path)}: no such file or folder.")
    if path.lower().endswith(_PACKED):
        raise UnsupportedError(
            f"{to_text(path)}: members of a compressed tar cannot be read one by one. Decompress it first (gunzip, "
            "unxz, ...), or unpack it to a folder."
        )


def _origin(name: str) -> str:
    if (maker := maker_of(name)) is not None:
        return maker.canonical(name)
    return f"@{place_of(name[1:])}" if _names_list(name) else place_of(name)


def _names_list(name: str) -> bool:
    """Say whether a source is @FILE; a folder or file of that exact name wins."""
    return name.startswith("@") and not os.path.lexists(name)


def _as_key(name: str) -> str:
    return name.replace(os.sep, "/").removeprefix("./")


def lines_of(stream: TextIO) -> Iterator[str]:
    """Give the lines of a stream; bytes that are not of its encoding become surrogates and end nothing."""
    buffer = getattr(stream, "buffer", None)
    if buffer is None:
        yield from stream
        return
    for line in buffer:
        yield line.decode(stream.encoding or "utf-8", "surrogateescape")


def _numbered(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, start=1):
        stripped = line.rstrip("\r\n")
        if stripped.strip():
            yield number, stripped
