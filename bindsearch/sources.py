"""Where bytes come from: a path, a URI, bytes, a member of a tar, an array, a picture or a literal text.

A source is cheap: nothing is opened before it is read. Reading never hangs and never trusts a name: a directory,
a FIFO, a socket, a device or an unreadable file is a DecodeError of stage "read".
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from bindsearch.errors import DecodeError, InputError
from bindsearch.makers import maker_of
from bindsearch.types import to_text

if TYPE_CHECKING:
    from bindsearch.members import Member
    from bindsearch.types import Item

MAX_BYTES = 1 << 30
"""Upper limit of `Source.read_bytes` where the caller names none: 1 GiB."""

ROW_SCHEME = "row://"
"""A vector in a table: row://TABLE!/KEY; see row_table.py."""

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Source:
    """One thing to decode. Build it with `Source.of`, `of_item`, `literal` or `tar_member`.

    Attributes:
        kind: "path", "uri", "bytes", "tar", "row" (of a table of vectors), "value" (an array or a picture) or "text".
        name: how messages call it.
        location: the path or URI, for a member or a row the path of the tar or the table; "" otherwise.
        value: the bytes, array, picture or text itself, where there is no location.
        member, offset, length_bytes: name inside a tar (key in a table) and where its bytes lie; None: look it up.
        rate_hz: samples or frames a second of an array with a time axis.
    """

    kind: str
    name: str
    location: str = ""
    value: Any = None
    member: str | None = None
    offset: int | None = None
    length_bytes: int | None = None
    rate_hz: float | None = None

    @classmethod
    def of(cls, thing: Any, name: str | None = None, rate_hz: float | None = None) -> Source:
        """Make a source of anything that holds or names media.

        Args:
            thing: a Source, a path (str or Path), a URI with a scheme ("https://…", "s3://…", "file://…",
                "tar://PATH!/MEMBER", "row://TABLE!/KEY"), bytes, a numpy array, a pair (array, rate in Hz) or a PIL
                image. Arrays are kept, not copied. Not modified.
            name: how messages call it; by default the path, or what kind of thing it is.
            rate_hz: samples or frames a second, for an array with a time axis.

        Raises:
            InputError: for any other type, or a name of media that cannot be made.
        """
        if isinstance(thing, Source):
            return thing
        if isinstance(thing, bytes | bytearray | memoryview):
            return cls("bytes", name or f"<{len(thing)} bytes>", value=bytes(thing))
        if isinstance(thing, os.PathLike):
            return cls("path", name or str(thing), location=os.fsdecode(thing))
        if isinstance(thing, str):
            return cls._of_text(thing, name)
        if isinstance(thing, tuple) and len(thing) == 2 and hasattr(thing[0], "dtype"):
            return cls.of(thing[0], name, float(thing[1]))
        if hasattr(thing, "shape") and hasattr(thing, "dtype"):
            return cls("value", name or f"<array {tuple(thing.shape)}>", value=thing, rate_hz=rate_hz)
        if hasattr(thing, "size") and hasattr(thing, "mode") and hasattr(thing, "convert"):
            return cls("value", name or f"<picture {thing.size[0]}x{thing.size[1]}>", value=thing)
        raise InputError(
            f"A source is a path, a URI, bytes, an array or a PIL image, not {type(thing).__name__}: {thing!r:.80}."
        )

    @classmethod
    def _of_text(cls, text: str, name: str | None) -> Source:
        if text.startswith("tar://"):
            path, mark, member = text[len("tar://") :].partition("!/")
            if not mark:
                raise InputError(f"{text}: a tar source is written tar://PATH!/MEMBER.")
            return cls.tar_member(path, member, name=name)
        if text.startswith(ROW_SCHEME):
            path, mark, key = text[len(ROW_SCHEME) :].partition("!/")
            if not mark or not key:
                raise InputError(f"{text}: a row of a table of vectors is written {ROW_SCHEME}TABLE!/KEY.")
            return cls("row", name or key, path, member=key)
        if text.startswith("file://"):
            from urllib.parse import unquote, urlsplit

            return cls("path", name or text, location=unquote(urlsplit(text).path))
        if _SCHEME.match(text):
            return cls("uri", name or text, location=text)
        if (maker := maker_of(text)) is not None:
            return replace(maker.make([text])[0], name=name or text)
        return cls("path", name or text, location=text)

    @classmethod
    def literal(cls, text: str, name: str | None = None) -> Source:
        """Make a source of a text itself, not of a file that holds one."""
        return cls("text", name or repr(text if len(text) <= 40 else text[:37] + "..."), value=text)

    @classmethod
    def tar_member(
        cls,
        path: str | os.PathLike[str],
        member: str,
        offset: int | None = None,
        length_bytes: int | None = None,
        name: str | None = None,
    ) -> Source:
        """Make a source of one member of an uncompressed tar.

        Args:
            path: the tar.
            member: name inside it.
            offset: where the member's data begin; without it the tar is searched when opened.
            length_bytes: how long they are.
            name: how messages call it; by default "PATH!/MEMBER".
        """
        location = os.fsdecode(path)
        return cls("tar", name or f"{location}!/{member}", location, None, member, offset, length_bytes)

    @classmethod
    def of_item(cls, item: Item) -> Source:
        """Make the source of an item: its literal text, its tar member, or its path or URI."""
        if item.literal is not None:
            return cls.literal(item.literal, name=item.key)
        if item.member is not None:
            return cls.tar_member(item.source, item.member, item.offset, item.size_bytes, name=item.key)
        return cls.of(item.source, name=item.key)

    @property
    def suffix(self) -> str:
        """Last suffix of the name in lower case, with its dot; "" where there is none."""
        text = self.member if self.member is not None else self.location
        return PurePosixPath(text.replace("\\", "/")).suffix.lower()

    @property
    def size(self) -> int | None:
        """Size in bytes where it is known without reading, else None.

        Raises:
            DecodeError: the path cannot be read.
        """
        if self.kind == "bytes":
            return len(self.value)
        if self.kind == "text":
            return len(self.value.encode("utf-8", "surrogatepass"))
        if self.kind == "tar":
            return self.length_bytes
        if self.kind == "path":
            return self._stat().st_size
        return None

    def open(self) -> IO[bytes]:
        """Open for binary reading; seekable. The caller closes it.

        Returns:
            A file of bytes. A text opens as its UTF-8 bytes.

        Raises:
            DecodeError: stage "read": missing, no regular file, no permission, no such member, no such host.
            InputError: the source is an array or a picture and has no bytes.
        """
        if self.kind == "bytes":
            return io.BytesIO(self.value)
        if self.kind == "text":
            return io.BytesIO(self.value.encode("utf-8", "surrogatepass"))
        if self.kind == "value":
            raise InputError(f"{self.name}: an array or picture in memory has no bytes to open.")
        if self.kind == "row":
            from bindsearch.row_table import row_bytes

            return io.BytesIO(row_bytes(self.location, self.member or ""))
        placed = self.located()
        try:
            if self.kind == "uri":
                return self._open_uri()
            raw = self._open_path()
        except OSError as error:
            raise DecodeError(self.name, _plain(error), "read") from error
        if self.kind == "path":
            return io.BufferedReader(raw)
        return io.BufferedReader(_Window(raw, placed.offset or 0, placed.length_bytes or 0))

    def located(self) -> Source:
        """Give a member of a tar with the place of its bytes, looked up where it is not known; others as they are.

        Raises:
            DecodeError: stage "read": no such tar, no such member.
        """
        found = locate([self])[0]
        if isinstance(found, DecodeError):
            raise found
        return found

    def read_bytes(self, limit_bytes: int = MAX_BYTES) -> bytes:
        """Read everything.

        Args:
            limit_bytes: more than this is refused, without reading it.

        Raises:
            DecodeError: stage "read", as `open`, or over the limit.
        """
        known = self.size
        if known is not None and known > limit_bytes:
            raise DecodeError(self.name, f"{known} bytes, over the limit of {limit_bytes}", "read")
        with self.open() as file:
            try:
                data = file.read(limit_bytes + 1)
            except OSError as error:
                raise DecodeError(self.name, _plain(error), "read") from error
        if len(data) > limit_bytes:
            raise DecodeError(self.name, f"more than the limit of {limit_bytes} bytes", "read")
        return data

    def sha256(self) -> str:
        """Hash the bytes, in pieces; an array with its dtype and shape, a picture with its mode and size.

        Raises:
            DecodeError: as `open`.
        """
        if self.kind == "value":
            return self._hash_value()
        digest = hashlib.sha256()
        with self.open() as file:
            try:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
            except OSError as error:
                raise DecodeError(self.name, _plain(error), "read") from error
        return digest.hexdigest()

    def _hash_value(self) -> str:
        if hasattr(self.value, "dtype"):
            import numpy as np

            array = np.ascontiguousarray(self.value)
            head, body = f"{array.dtype.str}{array.shape}", array.tobytes()
        else:
            head, body = f"{self.value.mode}{self.value.size}", self.value.tobytes()
        return hashlib.sha256(head.encode("ascii") + body).hexdigest()

    def _stat(self) -> os.stat_result:
        try:
            found = Path(self.location).stat()
        except (OSError, ValueError) as error:
            raise DecodeError(self.name, _plain(error), "read") from error
        if not stat.S_ISREG(found.st_mode):
            raise DecodeError(self.name, f"is {_file_type(found.st_mode)}, not a file", "read")
        return found

    def _open_path(self) -> io.FileIO:
        self._stat()
        # not blocking: between the look and the opening the file may have become a FIFO
        descriptor = os.open(self.location, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            os.close(descriptor)
            raise DecodeError(self.name, f"is {_file_type(mode)}, not a file", "read")
        return io.FileIO(descriptor, "rb")

    def _open_uri(self) -> IO[bytes]:
        import fsspec

        try:
            file: IO[bytes] = fsspec.open(self.location, "rb").open()
        except (ImportError, ValueError, RuntimeError) as error:
            raise DecodeError(self.name, f"cannot be opened: {error}", "read") from error
        return file

    def _is_lost(self) -> bool:
        """Say whether this is a member of a tar of which nobody knows where its bytes lie."""
        return self.kind == "tar" and (self.offset is None or self.length_bytes is None)


def locate(sources: Sequence[Source]) -> list[Source | DecodeError]:
    """Look up where the bytes of members of tars lie; each tar is looked through once.

    Args:
        sources: of any kind. Not modified.

    Returns:
        The sources in order; a member that was not looked up yet with its place, or why it has none.
    """
    names: dict[str, set[str]] = {}
    for each in sources:
        if each._is_lost():
            names.setdefault(each.location, set()).add(to_text(each.member or ""))
    found = {location: _look_up(location, wanted) for location, wanted in names.items()}
    return [_placed(each, found[each.location]) if each._is_lost() else each for each in sources]


def _look_up(location: str, names: Collection[str]) -> Mapping[str, Member]:
    """Find members of a tar by name; where one cannot be had, its trouble says why."""
    import tarfile

    from bindsearch.members import Member, find_members, say_damage

    found: Mapping[str, Member] = {}
    trouble = "no such member in the tar, or it is no file"
    try:
        with io.BufferedReader(Source("path", location, location)._open_path()) as file:
            found = find_members(file, names)
    except DecodeError as error:
        trouble = error.what
    except (tarfile.TarError, ValueError, RecursionError) as error:
        trouble = f"cannot be read as a tar: {say_damage(error)}"
    except OSError as error:
        trouble = _plain(error)
    return {name: found.get(name, Member(name, trouble=trouble)) for name in names}


def _placed(source: Source, members: Mapping[str, Member]) -> Source | DecodeError:
    member = members[to_text(source.member or "")]
    if member.trouble:
        return DecodeError(source.name, member.trouble, "read")
    return replace(source, offset=member.offset, length_bytes=member.size_bytes)


class _Window(io.RawIOBase):
    """A seekable view of `length` bytes of a file from `offset`; closes the file with itself."""

    def __init__(self, file: io.FileIO, offset: int, length: int) -> None:
        self._file, self._offset, self._length, self._at = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, to: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = max(0, base + to)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._length - self._at))
        if wanted <= 0:
            return 0
        self._file.seek(self._offset + self._at)
        got = self._file.readinto(memoryview(buffer)[:wanted]) or 0
        self._at += got
        return got

    def close(self) -> None:
        self._file.close()
        super().close()


def each_source(given: Any) -> Iterable[Any]:
    """Give sources one by one: a bare one, such as a path, a text, bytes or a picture, is a list of one."""
    if isinstance(given, str | bytes | bytearray | memoryview | os.PathLike) or not isinstance(given, Iterable):
        return [given]
    return given


def describe_head(head: bytes) -> str:
    """Say in plain words what the first bytes look like, for messages about a wrong suffix.

    Args:
        head: the first bytes of a file; a few hundred are enough.

    Returns:
        For example "empty", "an SVG drawing", "HTML", "a PDF", "plain text" or "unknown bytes 00 01 02 03".
    """
    if not head:
        return "empty"
    for mark, words in _MARKS:
        if head.startswith(mark):
            return words
    if head[:4] == b"RIFF":
        return {b"WAVE": "a WAV sound", b"AVI ": "an AVI video", b"WEBP": "a WebP picture"}.get(head[8:12], "RIFF data")
    if head[4:8] == b"ftyp":
        return "an MP4 or QuickTime file"
    low = head[:512].lower()
    if b"<svg" in low:
        return "an SVG drawing"
    if b"<html" in low or b"<!doctype html" in low:
        return "HTML"
    if all(byte in b"\t\n\r\f\x1b" or 32 <= byte < 127 or byte >= 128 for byte in head[:512]):
        return "plain text"
    return "unknown bytes " + head[:4].hex(" ")


_MARKS = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"II*\x00", "a TIFF picture"),
    (b"MM\x00*", "a TIFF picture"),
    (b"\x93NUMPY", "a numpy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"%PDF", "a PDF"),
    (b"%!PS", "PostScript"),
    (b"OggS", "an Ogg file"),
    (b"fLaC", "a FLAC sound"),
    (b"ID3", "an MP3 sound"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM file"),
    (b"\x7fELF", "a program"),
    (b"#EXTM3U", "a playlist"),
)


def _plain(error: Exception) -> str:
    known = {
        errno.ENOENT: "no such file",
        errno.EACCES: "no permission to read it",
        errno.ELOOP: "a loop of symbolic links",
        errno.EISDIR: "is a directory, not a file",
        errno.ENAMETOOLONG: "the name is too long for this file system",
    }
    number = getattr(error, "errno", None)
    return known.get(number or 0, str(error) or type(error).__name__)


def _file_type(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISBLK, "a block device"),
    )
    return next((words for test, words in kinds if test(mode)), "no regular file")
