"""How a change of an index folder comes to be: one writer, new files beside the old, one rename, a sweep.

    writing(folder)          the lock; drafts that a killed writer left are gone when it is held
    creating(folder)         likewise, of a new index: makes the folder, and takes it away where nothing comes of it
      new files              under names that no manifest names
      commit(folder, ...)    index.json replaced: the change is there, for whoever opens from now on
      sweep                  what the new manifest does not name

A process that is killed anywhere leaves the old state or the new one; what else it left, the next writer sweeps.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bindsearch.errors import InputError, MismatchError, MissingInputError
from bindsearch.index.centring import FILE_GLOB
from bindsearch.index.manifest import FileEntry, Manifest, describe_file, read_manifest, sync_folder, write_manifest
from bindsearch.store.files import full_disk_said

if TYPE_CHECKING:
    from bindsearch.types import IntArray

LOCK_WAIT_S = 60.0
_HOLD_TRIES = 20
BESIDE = CACHE_RECORD, BACKGROUND = "index.cache.json", "index.background.npz"
"""What may be kept beside an index of its items: it names the generation that it is of, and goes with the index."""
PARTS = ("segments", "tombstones")
DRAFT_GLOB = "index.json.tmp-*"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that one process changes it at a time.

    Raises:
        InputError: another process held it for LOCK_WAIT_S.
        BindSearchError: the disk is full; the index is as it was.
    """
    import filelock

    lock = filelock.FileLock(folder / "index.lock")
    try:
        lock.acquire(timeout=LOCK_WAIT_S)
    except filelock.Timeout as error:
        raise InputError(f"{folder}: another process is changing this index. Try again when it is done.") from error
    try:
        with full_disk_said(folder):
            yield
    finally:
        lock.release()


@contextmanager
def creating(folder: Path) -> Iterator[None]:
    """Make the folder of a new index, where there is none, and hold its lock; what fails leaves no folder behind.

    Raises:
        As `writing`.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with ExitStack() as held:
            _hold(folder, held)
            (folder / "segments").mkdir(parents=True, exist_ok=True)
            try:
                yield
            except BaseException:
                if made and not (folder / "index.json").exists():
                    shutil.rmtree(folder, ignore_errors=True)
                raise
    except BaseException:
        for path in made:
            with suppress(OSError):  # it is not empty: others use it
                path.rmdir()
        raise


def _hold(folder: Path, held: ExitStack) -> None:
    """Make a folder and take its lock; once more where a build that failed took both away while this one waited."""
    for tries_left in reversed(range(_HOLD_TRIES)):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            held.enter_context(writing(folder))
            return
        except FileNotFoundError:
            if not tries_left:
                raise


def commit(folder: Path, manifest: Manifest) -> None:
    """Make a manifest the state of the folder, and sweep what it does not name."""
    try:
        write_manifest(folder, manifest)
    except OSError:  # a full disk: what it holds is needed
        for path in folder.glob(DRAFT_GLOB):
            path.unlink()
        raise
    sweep(folder, manifest)


def sweep(folder: Path, manifest: Manifest) -> None:
    """Delete what the manifest does not name: replaced segments, old tombstones, drafts of killed changes.

    Readers that have them open keep them; one that is opening now sees them missing and reads the new manifest.
    """
    named = {entry.name for entry in manifest.segments}
    for path in (folder / "segments").glob("*"):
        if path.name not in named:
            shutil.rmtree(path, ignore_errors=True)
    means = manifest.centring.file if manifest.centring else None
    kept = {entry.tombstones for entry in manifest.segments}
    stale = [path for path in folder.glob(FILE_GLOB) if path.name != means]
    stale += [path for path in (folder / "tombstones").glob("*") if path.name not in kept]
    for path in (*stale, *folder.glob(DRAFT_GLOB)):
        with suppress(OSError):
            path.unlink()


def first_of(folder: Path, generation: int) -> int:
    """Give the `Manifest.first_generation` of an index that is about to be built: 1 where it replaces nothing."""
    return generation if any((folder / name).exists() for name in ("index.json", *BESIDE)) else 1


def forget_beside(folder: Path) -> None:
    """Delete what was kept beside an index that is now replaced.

    Killed before this, it is passed over by readers: it is of a generation before `Manifest.first_generation`.
    """
    for name in BESIDE:
        with suppress(OSError):
            (folder / name).unlink()


def write_ids(path: Path, ids: IntArray) -> FileEntry:
    """Write ids to a new file, synced."""
    temporary = path.with_name(f".draft-{os.getpid()}")
    with temporary.open("wb") as stream:
        np.save(stream, np.ascontiguousarray(ids), allow_pickle=False)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_folder(path.parent)
    return describe_file(path)


def last_generation(folder: Path) -> int:
    """Give the newest generation that any file of the folder was written by, so that no name is used twice."""
    names = [path.name for part in PARTS for path in (folder / part).glob("[0-9]*")]
    numbers = [int(number) for name in names for number in re.findall(r"(?:^|\.)(\d{6,})(?=[-.])", name)]
    with suppress(MissingInputError, MismatchError):  # no index yet, or one that is replaced because it is broken
        numbers.append(read_manifest(folder).generation)
    return max(numbers, default=0)


def check_output(output: Path, force: bool, instead: str = "") -> None:
    """Refuse to write an index over something else.

    Args:
        output: where it is to be.
        force: an index may be replaced.
        instead: what to do where it is one; "": what a build takes.

    Raises:
        InputError: `output` is a file, holds an index and force is not set, or holds other things.
    """
    if not output.exists():
        return
    if not output.is_dir():
        raise InputError(f"{output}: is a file, expected a folder for the index.")
    names = {path.name for path in output.iterdir()}
    if "index.json" in names and not force:
        instead = instead or f"Replace it with --force, or extend it: bindsearch index add {output} EMBEDDINGS"
        raise InputError(f"{output}: holds an index already. {instead}")
    foreign = sorted(name for name in names if not name.startswith("index.") and name not in PARTS)
    if foreign:
        raise InputError(f"{output}: holds {foreign[0]!r}, which is no part of an index. Choose a new folder.")
