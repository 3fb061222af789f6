"""Members of uncompressed tars: where their bytes lie, by the headers alone, links followed."""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import IO

from bindsearch.types import to_text

SPARSE = "a sparse member; pack it without --sparse"
"""Why a member of a tar whose holes were left out is refused: its bytes do not lie there in one piece."""


@dataclass(frozen=True)
class Member:
    """A file in a tar: where its bytes lie, or why they cannot be had.

    Attributes:
        name: as the tar has it; of a link its own.
        offset, size_bytes: of the bytes; of a link those of the member that it leads to.
        trouble: why they cannot be had; empty where they can.
    """

    name: str
    offset: int = 0
    size_bytes: int = 0
    trouble: str = ""


def list_members(tar: tarfile.TarFile, file: IO[bytes], troubles: list[str]) -> Iterator[Member]:
    """Yield the plain files and the links of a tar, in its order.

    Args:
        tar: opened without compression.
        file: what it was opened on; links are looked up in it by scans of their own.
        troubles: where the tar ends too early, this is said here; added to.
    """
    yield from _members(_headers(tar, troubles), file)


def find_members(file: IO[bytes], names: Collection[str]) -> dict[str, Member]:
    """Look up members of a tar, all in one scan of its headers; in three where one of them is a link.

    Args:
        file: the tar, on disk; left somewhere in it.
        names: of the members, as `to_text` writes them.

    Returns:
        Name -> member, without those that are not there; of several of one name the last. Of a tar that is cut or
        damaged, those that come before.

    Raises:
        TarError, OSError, ValueError, RecursionError: it cannot be read as a tar.
    """
    with tarfile.open(fileobj=file, mode="r:") as tar:
        wanted = (header for header in _headers(tar, []) if to_text(header.name) in names)
        return {to_text(member.name): member for member in _members(wanted, file)}


def _members(headers: Iterable[tarfile.TarInfo], file: IO[bytes]) -> Iterator[Member]:
    """Yield the plain files and the links among headers, in their order; links are looked up in the whole tar."""
    end = os.fstat(file.fileno()).st_size
    links: _Links | None = None
    for header in headers:
        if header.isreg():
            yield _whole(header, end)
        elif header.islnk() or header.issym():
            links = links or _Links(file, end)
            yield links.follow(header)


class _Links:
    """The links of a tar and the members that they lead to.

    Made when the first link is met, with two more scans of the headers: so memory grows with the links alone, and a
    tar without any, as nearly all are, or of which no link is wanted costs nothing.
    """

    def __init__(self, file: IO[bytes], end: int) -> None:
        """Scan the tar for its links, then for what they lead to."""
        self._links = {
            posixpath.normpath(header.name): _target_of(header)
            for header in _scanned(file)
            if header.islnk() or header.issym()
        }
        wanted = set(self._links.values())
        names = ((posixpath.normpath(header.name), header) for header in _scanned(file) if header.isreg())
        self._found = {name: _whole(header, end) for name, header in names if name in wanted}

    def follow(self, header: tarfile.TarInfo) -> Member:
        """Give the member under the link's own name, with the bytes of what it leads to, over other links too."""
        name, passed = _target_of(header), set[str]()
        while name not in self._found and name in self._links and name not in passed:
            passed.add(name)
            name = self._links[name]
        if name in self._found:
            return replace(self._found[name], name=header.name)
        return Member(header.name, trouble=f"a link to {to_text(header.linkname)}, which is no file in the tar")


def _target_of(header: tarfile.TarInfo) -> str:
    """Name what a link leads to: a hard link from the tar's root, a symbolic one from its own folder."""
    above = posixpath.dirname(header.name) if header.issym() else ""
    return posixpath.normpath(posixpath.join(above, header.linkname))


def _scanned(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Yield the headers as far as they can be read; what is wrong with the rest is said elsewhere."""
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        yield from _headers(tar, [])


def _whole(header: tarfile.TarInfo, end: int) -> Member:
    if header.issparse():
        return Member(header.name, trouble=SPARSE)
    trouble = ""
    if header.offset_data + header.size > end:
        trouble = f"cut: {header.size} bytes from {header.offset_data}, but the tar ends at {end}"
    return Member(header.name, header.offset_data, header.size, trouble)


def _headers(tar: tarfile.TarFile, troubles: list[str]) -> Iterator[tarfile.TarInfo]:
    """Yield the headers; one that leads back to those before it, as a size below zero does, is damage as any other."""
    at = 0
    try:
        while (header := tar.next()) is not None:
            if header.size < 0 or tar.offset <= at:
                raise tarfile.ReadError("its size leads back to what came before")
            at = tar.offset
            tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header; a listing must not grow with it
            yield header
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        troubles.append(f"cut or damaged at byte {at}: {say_damage(error)}; members after it are not seen")


def say_damage(error: Exception) -> str:
    """Put in words what is wrong with a tar, the same each time."""
    return "headers within headers without end" if isinstance(error, RecursionError) else str(error)
