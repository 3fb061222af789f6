"""Fetch released weights: licence, lock, download or a file at hand, check, convert."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bindsearch.config import cache_dir, setting
from bindsearch.errors import InputError, MissingInputError, WeightsError
from bindsearch.models.download import Fetched, Patience, Wanted, download, silent
from bindsearch.models.manifest import FILE, load_manifest
from bindsearch.models.releases import Release, release_of, releases
from bindsearch.models.weights import check_dtype, check_target, convert, load_whole, sha256_of

BYTES_KEPT = {"float32": 1.0, "bfloat16": 0.5}
"""Converted size over the size of the checkpoint."""


def licence_of(name: str) -> str:
    """Write what a person must know before the download.

    Raises:
        UnknownNameError: no released weights of that name.
    """
    release = release_of(name)
    size = f"{release.size_bytes / 1e9:.1f} GB" if release.size_bytes else "size not known"
    known = (
        f"sha256 {release.sha256} ({release.sha256_origin})" if release.sha256 else "its checksum is not known to us"
    )
    return (
        f"{name}: {release.file}, {size}, from {release.url}\n"
        f"licence: {release.licence}, {release.licence_url}\n{release.licence_note}\n{known}"
    )


def nothing_to_fetch(name: str) -> str:
    """Say why a space needs no fetching; "" where it does, or is not known."""
    from bindsearch.models import spaces  # noqa: F401  # registers them
    from bindsearch.registry import SPACES

    head = name.partition(":")[0]
    if head in releases() or head not in SPACES:
        return ""
    status = SPACES[head].status()
    here = status in ("bundled", "from a seed")
    return f"{status}, nothing to fetch." if here else "fetched at first use; nothing to do now."


def fetch_space(
    name: str,
    source: Path | None = None,
    url: str | None = None,
    sha256: str | None = None,
    dtype: str | None = None,
    progress: bool = False,
    say: Callable[[str], None] = silent,
) -> Path:
    """Bring released weights into the cache, converted; the caller has shown the licence.

    Args:
        name: of the space, as in the packaged table.
        source: a checkpoint that the user has; nothing is downloaded, and it is left where it is.
        url: another place to download from.
        sha256: the checksum that the file must have, in place of the table's; its size is not compared then.
        dtype: "float32" or "bfloat16"; None takes what is here, else float32.
        progress: bars on stderr.
        say: told what is going on.

    Returns:
        The folder of the space.

    Raises:
        UnknownNameError: no released weights of that name.
        InputError: another dtype; the cache holds another space under that name.
        MissingInputError: `source` does not exist.
        WeightsError: offline; no connection; no space; wrong size, checksum or contents.
    """
    release = release_of(name)
    if url is not None:
        release = replace(release, url=url)
    if sha256 is not None:
        release = replace(release, sha256=sha256.lower(), sha256_origin="given with --sha256", size_bytes=None)
    return fetch_release(name, release, cache_dir() / name, source, dtype, progress, say)


def fetch_release(
    name: str,
    release: Release,
    folder: Path,
    source: Path | None = None,
    dtype: str | None = None,
    progress: bool = False,
    say: Callable[[str], None] = silent,
    patience: Patience | None = None,
) -> Path:
    """Bring one release into a folder; see `fetch_space`.

    Two processes that ask at once download once: the second waits, and finds the folder.
    """
    check_dtype(dtype or "float32")
    downloads = folder.parent / "downloads"
    facts = (release.size_bytes, release.sha256, release.sha256_origin)
    wanted = Wanted(release.url, downloads / release.file, *facts, name)
    with _locked(wanted.beside(".lock"), say):
        check_target(folder, name)
        if source is None and _is_here(name, folder, dtype, say):
            return folder
        dtype = dtype or _dtype_here(folder)
        if source is not None:
            checked = check_file(source, release, progress)
        elif setting("offline") and not wanted.target.is_file():
            raise offline_error(wanted)
        else:
            _check_room(wanted, folder, dtype)
            checked = download(wanted, say, progress, patience)
        origin = {"sha256": checked.sha256, "sha256_compared_with": checked.origin}
        if source is None:
            origin["url"] = release.url
        convert(checked.path, folder, dtype=dtype, progress=progress, source=origin, architecture=name)
        if source is None:
            wanted.target.unlink()
            say(f"{folder}: converted; the downloaded {release.file} was removed.")
    return folder


def _is_here(name: str, folder: Path, dtype: str | None, say: Callable[[str], None]) -> bool:
    """Say whether the space is at hand as wanted, and whole as far as the sizes of its files tell.

    Raises:
        InputError: it is at hand in float32, from which bfloat16 is made without a download.
    """
    if not (folder / FILE).is_file():
        return False
    try:
        here = load_whole(folder).dtype
    except WeightsError as error:
        say(str(error))
        return False
    if dtype in (None, here):
        say(f"{folder}: {name} is here already, {here}. Check it: bindsearch models verify {name}")
        return True
    if here == "float32":
        raise InputError(
            f"{folder}: {name} is here in float32. Make {dtype} of it without a download: "
            f"bindsearch models convert {folder} -o FOLDER --dtype {dtype}"
        )
    return False


def _dtype_here(folder: Path) -> str:
    """Give the type that a damaged space was converted to; float32 where no manifest says so."""
    try:
        here = load_manifest(folder).dtype
    except WeightsError:
        return "float32"
    return here if here in BYTES_KEPT else "float32"


def check_file(source: Path, release: Release, progress: bool = False) -> Fetched:
    """Compare a file that the user brings with what is known of the release; the file is left as it is.

    Raises:
        MissingInputError: no such file.
        WeightsError: another size or checksum; the message says how to take it all the same.
    """
    if not source.is_file():
        raise MissingInputError(f"{source}: no such file. Bring {release.file}, or leave --from away to download it.")
    size = source.stat().st_size
    if release.size_bytes is not None and size != release.size_bytes:
        raise WeightsError(
            f"{source}: expected {release.size_bytes} bytes, got {size}: not the released {release.file}. To take this "
            f"file all the same: bindsearch models convert {source}"
        )
    got = sha256_of(source, progress)
    if release.sha256 is not None and got != release.sha256:
        raise WeightsError(
            f"{source}: expected sha256 {release.sha256} ({release.sha256_origin}), got {got}. To take this file all "
            f"the same, add --sha256 {got}"
        )
    return Fetched(source, size, got, release.sha256_origin if release.sha256 else "nothing: no checksum is known")


def offline_error(wanted: Wanted) -> WeightsError:
    """Say what is missing, how large, with which checksum, and where it goes."""
    return WeightsError(
        f"{wanted.name}: offline (BINDSEARCH_OFFLINE or bindsearch.toml), and {wanted.url} was not fetched before. "
        f"{wanted.how_to_bring}"
    )


def _check_room(wanted: Wanted, folder: Path, dtype: str) -> None:
    """Refuse a download whose file and conversion would not fit together, before the first byte.

    Raises:
        WeightsError: naming the bytes that are needed and those that are free.
    """
    if wanted.size_bytes is None:
        return
    part = wanted.beside(".part")
    here = wanted.target if wanted.target.is_file() else part
    arrived = here.stat().st_size if here.is_file() else 0
    need = wanted.size_bytes - arrived + int(wanted.size_bytes * BYTES_KEPT[dtype])
    free = shutil.disk_usage(folder.parent).free
    if free < need:
        raise WeightsError(
            f"{folder.parent}: no space: {need} bytes are needed for the download and its conversion, {free} are free. "
            "Make room, set BINDSEARCH_CACHE_DIR to a larger disk, or take --dtype bfloat16."
        )


@contextmanager
def _locked(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock between processes; a lock of a process that died is free."""
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"{path.parent}: cannot be made: {error.strerror}. Set BINDSEARCH_CACHE_DIR.") from error
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{path.name.removesuffix('.lock')}: another process is fetching it; waiting.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
