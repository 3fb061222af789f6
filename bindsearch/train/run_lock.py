"""One run at a time trains in a folder: two would write one checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bindsearch.errors import BindSearchError


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Hold a folder while a run trains in it; made where it is not there. A process that dies holds nothing.

    Raises:
        BindSearchError: another run holds it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "train.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BindSearchError(
            f"{folder}: another run trains there. Wait for it, then type the same command to go on; or choose another "
            "folder (-o)."
        ) from error
    try:
        yield
    finally:
        lock.release()
