"""Write files that are there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bindsearch.errors import BindSearchError

if TYPE_CHECKING:
    import pyarrow as pa

TEMP_ENDING = ".tmp"
_FULL = {errno.ENOSPC: "no space left on the device", errno.EDQUOT: "the disk quota is used up", errno.EFBIG: "too big"}


Guard = Callable[[], None]
"""Called right before a file gets its name; raises where this process may no longer give it."""


def writer_mark() -> str:
    """Give what this process's temporary names begin with: two processes on one folder never share one."""
    host = hashlib.blake2b(socket.gethostname().encode(), digest_size=3).hexdigest()
    return f"{host}-{os.getpid():x}"


def temp_path(path: Path) -> Path:
    """Give the temporary name of a file or folder: WRITER~NAME.tmp beside it."""
    return path.with_name(f"{writer_mark()}~{path.name}{TEMP_ENDING}")


def commit_file(path: Path, write: Callable[[IO[bytes]], Any], guard: Guard | None = None) -> None:
    """Write a file under a temporary name, flush it to the disk, and give it its name.

    Args:
        path: the file; replaced if it is there.
        write: puts the content into an open binary file.
        guard: called between writing and renaming; what it raises leaves what was there before.

    Raises:
        BindSearchError: the disk is full; the temporary file is removed and what was there before stays.
    """
    with full_disk_said(path):
        _commit_file(path, write, guard)


def _commit_file(path: Path, write: Callable[[IO[bytes]], Any], guard: Guard | None) -> None:
    temp = temp_path(path)
    try:
        with temp.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if guard is not None:
            guard()
        os.replace(temp, path)  # noqa: PTH105  # the crash tests step in here, at the call itself
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def commit_written(path: Path, temp: Path, write: Callable[[Path], Any]) -> None:
    """Let a library write a file by name under a temporary one, flush it to the disk, and give it its name.

    Args:
        path: the file; replaced if it is there.
        temp: beside it; what lies there is written over.
        write: is given the temporary name.

    Raises:
        BindSearchError: the disk is full; the temporary file is removed and what was there before stays.
    """
    with full_disk_said(path):
        try:
            write(temp)
            with temp.open("rb+") as file:
                os.fsync(file.fileno())
            temp.replace(path)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextmanager
def full_disk_said(path: Path) -> Iterator[None]:
    """Turn the system's errors of a full disk into one that says what to do; others pass.

    Raises:
        BindSearchError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise BindSearchError(
            f"{path}: {_FULL[error.errno]}. What was committed stays. Make room and run the same command again."
        ) from error


def commit_bytes(path: Path, data: bytes, guard: Guard | None = None) -> dict[str, Any]:
    """Commit bytes as a file; see `commit_file`.

    Returns:
        {"bytes": size, "sha256": hexadecimal}, for a done-file.
    """
    commit_file(path, lambda file: file.write(data), guard)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def commit_json(path: Path, value: Any, guard: Guard | None = None) -> None:
    """Commit a JSON-able value as readable JSON, the same bytes for the same value."""
    commit_bytes(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode("ascii"), guard)


def sync_folder(path: Path) -> None:
    """Flush a folder's list of names to the disk, where the system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # a system that opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sweep_temps(folder: Path, living: Callable[[], Container[str]] = frozenset) -> int:
    """Remove the temporary files and folders that killed processes left in a folder.

    Args:
        folder: not searched deeper.
        living: gives the marks (`writer_mark`) of processes that may be writing there. It is called after the folder
            was listed, so that who came later is no loser.

    Returns:
        How many there were.
    """
    found = list(folder.glob(f"*{TEMP_ENDING}"))
    spared = living() if found else ()
    left = [path for path in found if path.name.partition("~")[0] not in spared]
    for path in left:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(left)


def read_parquet(source: Any, columns: Sequence[str] | None = None, row_group: int | None = None) -> pa.Table:
    """Read a Parquet file in this thread alone: Arrow's pools abort a process that ends right after they have started.

    Args:
        source: path or Arrow buffer.
        columns: names; None is all.
        row_group: number of the only one to read.

    Raises:
        BindSearchError: it is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = None if columns is None else list(columns)
    try:
        with pq.ParquetFile(source, pre_buffer=False) as file:
            if row_group is not None:
                return file.read_row_group(row_group, columns=names, use_threads=False)
            return file.read(columns=names, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's, and not about what is in the file
            raise
        what = source if isinstance(source, str | os.PathLike) else "table"
        raise BindSearchError(
            f"{what}: cannot be read as Parquet: {str(error).rstrip('.')}. It was truncated or altered. Restore "
            "it from a copy, or write it again into another folder (embeddings: bindsearch embed SOURCES -o FOLDER)."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BindSearchError: not there, or no JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BindSearchError(f"{path}: not there. Is {path.parent} a folder that `bindsearch embed` wrote?") from None
    except ValueError as error:
        raise BindSearchError(f"{path}: not JSON: {error}. It was truncated or altered.") from error
    if not isinstance(value, dict):
        raise BindSearchError(f"{path}: expected a JSON object, got {type(value).__name__}.")
    return value
