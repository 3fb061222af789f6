"""Files and folders that cannot be written or read: said in plain words, before the work where that can be seen."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from bindsearch.errors import BindSearchError, InputError, MissingInputError

_OWN = re.compile(r"^\.|\.tmp|~|\.lock$")
"""What names of files have that a person neither gave nor knows: drafts, locks."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


def file_to_write(path: Path | None) -> Path | None:
    """Check a file that is written when the work is done, as the callback of an option.

    Raises:
        InputError: it is a folder, it would lie in a file, or there is no permission to write it.
    """
    if path is None:
        return path
    if path.is_dir():
        raise _refusal(errno.EISDIR, path)
    there = next(each for each in (path, *path.absolute().parents) if each.exists())
    if there != path and not there.is_dir():
        raise _refusal(errno.ENOTDIR, path)
    if not os.access(there, os.W_OK):
        raise _refusal(errno.EACCES, path)
    return path


def picture_to_write(path: Path | None) -> Path | None:
    """Check a picture that is written when the work is done, as the callback of an option.

    Raises:
        InputError: as of `file_to_write`, or an ending that names no kind of picture.
    """
    from bindsearch.drawing import check_ending

    return _checked(path, check_ending)


def labels_to_write(path: Path | None) -> Path | None:
    """Check a table of labels, as `picture_to_write` a picture.

    Raises:
        InputError: as of `file_to_write`.
        UnknownNameError: an ending that names no kind of table.
    """
    from bindsearch.zeroshot.tables import check_table

    return _checked(path, check_table)


def probe_to_write(path: Path | None) -> Path | None:
    """Check the file of a probe, as `picture_to_write` a picture.

    Raises:
        InputError: as of `file_to_write`.
        UnknownNameError: an ending that names no kind of probe file.
    """
    from bindsearch.probe.linear import check_probe_file

    return _checked(path, check_probe_file)


def _checked(path: Path | None, check: Callable[[Path], object]) -> Path | None:
    path = file_to_write(path)
    if path is not None:
        check(path)
    return path


def said_plainly(error: OSError, words: Sequence[str]) -> BindSearchError | None:
    """Turn the system's error about a file into one that names it and says what to do.

    Args:
        error: of the system.
        words: of the command line: a draft or a lock that cannot be written is called by the path that was given.

    Returns:
        What is to be said, with its exit code; None where no file is named, or where one lacks that nobody asked for.
    """
    name = error.filename2 or error.filename
    if not isinstance(name, str | bytes) or not name or error.errno is None:
        return None
    path = Path(os.fsdecode(name))
    if error.errno == errno.ENOENT and (
        _OWN.search(path.name) or not any(_is_near(each, path) for each in _paths(words))
    ):
        return None
    return _refusal(error.errno, _as_given(path, words), error.strerror or "")


def _as_given(path: Path, words: Sequence[str]) -> Path:
    """Give the path of the command line that a file of ours stands for; a file with a name of its own stays."""
    if not _OWN.search(path.name):
        return path
    near = [each for each in _paths(words) if _holds(each.absolute(), path.absolute())]
    return max(near, key=lambda each: len(each.absolute().parts), default=path.parent)


def _paths(words: Sequence[str]) -> list[Path]:
    """Give the words of a command line that may be paths."""
    given = (Path(word.partition("=")[2] if word.startswith("--") else word) for word in words)
    return [each for each in given if each.name]


def _is_near(given: Path, path: Path) -> bool:
    """Say whether one path is the other, or lies in it."""
    one, other = given.absolute(), path.absolute()
    return one == other or one in other.parents or other in one.parents


def _holds(given: Path, path: Path) -> bool:
    """Say whether a file lies in what was given, or beside it as its draft."""
    return given in path.parents or (given.parent == path.parent and given.name in path.name)


def _refusal(number: int, path: Path, says: str = "") -> BindSearchError:
    """Say what stands in the way of a path, and what to do."""
    if number == errno.EISDIR:
        return InputError(f"{path}: is a folder, expected a file. Name a file in it: {path}/NAME")
    file = next((each for each in (path, *path.parents) if each.is_file()), None)
    if number in (errno.ENOTDIR, errno.EEXIST) and file is not None:
        return InputError(f"{file}: is a file where a folder belongs. Name another place, or move the file away.")
    if number == errno.EEXIST:
        return InputError(f"{path}: is already there. Name another place, or move it away.")
    if number in _DENIED:
        why = "the place is read-only" if number == errno.EROFS else "no permission"
        return InputError(f"{path}: {why}. Name another place, or see whose it is: ls -ld {path.parent} {path}")
    if number == errno.ENOENT:
        return MissingInputError(f"{path}: no such file or folder. Is the path right? See: ls {path.parent}")
    if number == errno.ENAMETOOLONG:
        return InputError(f"{path}: the name is too long for this file system. Name a shorter one.")
    if number in _FULL:
        return BindSearchError(f"{path}: no room left. Make room and run the same command again.")
    if number in (errno.EMFILE, errno.ENFILE):
        return BindSearchError(
            f"{path}: too many files are open. Raise the limit (ulimit -n 65536; its hard one: ulimit -Hn) and run the "
            "same command again."
        )
    return BindSearchError(f"{path}: {says}. Is the disk in order? The traceback: bindsearch --debug COMMAND ...")
