"""Walk a folder: sorted, each real folder once, hidden files skipped and counted, pairs and captions kept."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bindsearch.listing.items import BrokenItem
from bindsearch.listing.naming import CAPTION_SUFFIX, Namer, place_of, suffix_of
from bindsearch.listing.tars import CAPTION_BYTES, caption_of_bytes, scan_tar
from bindsearch.types import Item, to_text

TAR_SUFFIX = ".tar"


@dataclass
class FolderWalk:
    """The walk over one folder.

    Attributes:
        root: the folder; keys are paths relative to it.
        namer: tells modalities.
        skip: folders that are not entered, as real paths: the output's own.
        ignored: files that are no media, by suffix; added to.
        count: called with "hidden", "linked" or "left_out" (a folder of `skip`) for each thing skipped.
    """

    root: Path
    namer: Namer
    skip: frozenset[str]
    ignored: Counter[str]
    count: Callable[[str], None]
    _seen: set[tuple[int, int]] = field(default_factory=set)
    _linked: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Item]:
        """Yield the items: real folders first, then the folders that symbolic links lead to, each once."""
        yield from self._tree("")
        while self._linked:
            yield from self._tree(self._linked.pop(0))

    def _tree(self, start: str) -> Iterator[Item]:
        """Walk from a folder named relative to the root ("" is the root) down, files of a folder before its folders."""
        stack = [start]
        while stack:
            relative = stack.pop()
            path = self.root / relative
            try:
                facts = path.stat()
                names = sorted(os.scandir(path), key=lambda entry: os.fsencode(entry.name))
            except OSError as error:
                yield self._broken_folder(relative, error)
                continue
            if os.path.realpath(path) in self.skip:
                self.count("left_out")
                continue
            if (facts.st_dev, facts.st_ino) in self._seen:
                self.count("linked")
                continue
            self._seen.add((facts.st_dev, facts.st_ino))
            folders: list[str] = []
            yield from self._folder(relative, names, folders)
            stack.extend(reversed(folders))

    def _broken_folder(self, relative: str, error: OSError) -> BrokenItem:
        reason = "no permission to read it" if isinstance(error, PermissionError) else (error.strerror or str(error))
        return BrokenItem(to_text(relative or "."), "folder", place_of(self.root / relative), reason=reason, hides=True)

    def _folder(self, relative: str, entries: list[os.DirEntry[str]], folders: list[str]) -> Iterator[Item]:
        """Yield the items of one folder and note the folders in it."""
        media: list[tuple[str, str, str]] = []  # name, modality, stem
        captions: dict[str, str] = {}  # stem -> name
        tars: list[str] = []
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                self.count("hidden")
                continue
            below = f"{relative}/{name}" if relative else name
            is_folder = _is_folder(entry)
            if is_folder:
                (self._linked if entry.is_symlink() else folders).append(below)
            look = self.namer.look(name)
            if look and is_folder:
                yield self._named_folder(below, look[0])
            elif look:
                media.append((name, *look))
            elif name.lower().endswith(TAR_SUFFIX) and not is_folder:
                tars.append(below)
            elif not is_folder:
                self.ignored[suffix_of(name)] += 1
            if not is_folder and name.lower().endswith(CAPTION_SUFFIX):
                captions[name[: -len(CAPTION_SUFFIX)]] = name
        yield from self._media(relative, media, captions)
        for below in tars:
            yield from scan_tar(self.root / below, to_text(below), self.namer, self.ignored)

    def _named_folder(self, relative: str, modality: str) -> BrokenItem:
        source = place_of(self.root / relative)
        reason = "is a directory, not a file; what is in it is listed"
        return BrokenItem(to_text(relative), modality, source, reason=reason, stage="read")

    def _media(self, relative: str, media: list[tuple[str, str, str]], captions: dict[str, str]) -> Iterator[Item]:
        """Yield the media files of a folder, those of one stem with their group, each with the stem's caption."""
        stems = Counter(stem for _, _, stem in media)
        texts: dict[str, str | None] = {}
        above = os.path.join(place_of(self.root / relative), "")  # noqa: PTH118  # as text: a million times
        folder = os.path.join(self.root, relative, "")  # noqa: PTH118
        for name, modality, stem in media:
            key = f"{relative}/{name}" if relative else name
            group = f"{relative}/{stem}" if relative else stem
            if stem in captions and stem not in texts:
                texts[stem] = read_caption(self.root / relative / captions[stem])
            size_bytes, mtime_s = file_facts(folder + name)
            yield Item(
                key=to_text(key),
                modality=modality,
                source=above + to_text(name),
                size_bytes=size_bytes,
                mtime_s=mtime_s,
                group=to_text(group) if stems[stem] > 1 else None,
                caption=texts.get(stem),
            )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of symbolic links, or no permission to follow one
        return False


def file_facts(path: str | os.PathLike[str]) -> tuple[int | None, float | None]:
    """Give size in bytes and modification time in seconds of a file, or None for both where they cannot be had."""
    try:
        facts = os.stat(path)  # noqa: PTH116  # a Path takes twice as long to make as its file to look at
    except (OSError, ValueError):
        return None, None
    return (facts.st_size, facts.st_mtime) if stat.S_ISREG(facts.st_mode) else (None, None)


def read_caption(path: Path) -> str | None:
    """Read the caption that a text file holds; None where it is blank or cannot be read."""
    if file_facts(path)[0] is None:
        return None
    try:
        with path.open("rb") as file:
            return caption_of_bytes(file.read(CAPTION_BYTES))
    except OSError:
        return None
