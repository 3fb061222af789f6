"""Embeddings of texts kept on disk, so that a text that was asked before needs neither torch nor weights.

One small file a text, named after what decides its numbers: the tower's id, the types it is stored and computed in, the
device asked for, the token ids, and whether it was computed alone. No words are kept. Files appear whole (temporary
file, rename) and carry a checksum: a damaged one is as good as none, and is written again. They lie in 256 folders by
the first byte of their name; each folder holds at most 1/256 of the limit, the least recently used files go first, so
that the limit holds without a list of all files and whatever the number of processes that write.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.config import cache_dir, canonical_json, content_hash, setting_with_origin
from bindsearch.errors import InputError

if TYPE_CHECKING:
    from bindsearch.types import FloatArray

FOLDER = "texts"
LARGEST_BATCH = 4096
"""Batches of more texts than this are not kept: they would push everything else out."""

_MAGIC = b"bindsearch-text\x01"
_HEAD = struct.Struct("<16s32s32sI")  # magic, SHA-256 of all that follows it, key, number of components
_ENDING = ".vec"
_FOLDERS = 256
_STALE_S = 3600.0
_TOUCH_S = 3600.0
_MIB = 1 << 20


@dataclass(frozen=True)
class TextCache:
    """Embeddings of one tower's texts, on disk.

    Attributes:
        folder: of all towers' entries.
        limit_bytes: of all entries together; each of the 256 folders keeps its newest entry in any case.
        tower: JSON-able facts that decide the numbers beside the token ids: ids, types, device.
    """

    folder: Path
    limit_bytes: int
    tower: tuple[str, ...]

    def key(self, ids: Sequence[int], alone: bool) -> bytes:
        """Name an entry by 32 bytes.

        Args:
            ids: token ids of one text, padding included.
            alone: whether it is computed in a batch of its own. A batch rounds otherwise, so that both are kept apart:
                what comes from the cache is, bit for bit, what the same question had computed.
        """
        content = canonical_json([*self.tower, bool(alone), [int(each) for each in ids]])
        return hashlib.sha256(content.encode("ascii")).digest()

    def get(self, key: bytes, dim: int) -> FloatArray | None:
        """Read an entry.

        Args:
            key: from `key`.
            dim: d, the number of components it must have.

        Returns:
            (d,) float32 as it was stored; None where there is none, or a damaged one.
        """
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if len(data) != _HEAD.size + 4 * dim:
            return None
        magic, digest, own, count = _HEAD.unpack_from(data)
        if (magic, own, count) != (_MAGIC, key, dim):
            return None
        if hashlib.sha256(memoryview(data)[len(_MAGIC) + 32 :]).digest() != digest:
            return None
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _TOUCH_S:
                os.utime(path)  # the least recently used go first
        return np.frombuffer(data, dtype="<f4", offset=_HEAD.size).astype(np.float32)

    def put(self, key: bytes, row: FloatArray) -> None:
        """Write an entry; a disk that is full, read-only or not ours is no error: the next one computes it again.

        Args:
            key: from `key`.
            row: (d,) float32. Not modified.
        """
        path = self._path(key)
        body = key + struct.pack("<I", row.size) + np.ascontiguousarray(row, dtype="<f4").tobytes()
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns():x}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(_MAGIC + hashlib.sha256(body).digest() + body)
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            self._evict(path)
        except OSError:
            return

    def clear(self) -> int:
        """Remove every entry of every tower; gives how many there were."""
        count = 0
        for entry in self._files():
            with contextlib.suppress(OSError):
                Path(entry.path).unlink()
                count += entry.name.endswith(_ENDING)
        return count

    def size(self) -> tuple[int, int]:
        """Count the entries of all towers, and their bytes."""
        sizes = [_stat(entry)[1] for entry in self._files() if entry.name.endswith(_ENDING)]
        return len(sizes), sum(sizes)

    def _path(self, key: bytes) -> Path:
        name = key.hex()
        return self.folder / name[:2] / f"{name[2:]}{_ENDING}"

    def _files(self) -> Iterator[os.DirEntry[str]]:
        for number in range(_FOLDERS):
            yield from _listed(self.folder / f"{number:02x}")

    def _evict(self, newest: Path) -> None:
        """Bring the folder of a new entry under its share of the limit, and sweep what killed processes left."""
        now = time.time()
        entries = []
        for entry in _listed(newest.parent):
            used, size = _stat(entry)
            if entry.name.endswith(_ENDING):
                entries.append((entry.name == newest.name, used, size, entry.path))
            elif entry.name.endswith(".tmp") and now - used > _STALE_S:
                with contextlib.suppress(OSError):
                    Path(entry.path).unlink()
        total, share = sum(size for _, _, size, _ in entries), self.limit_bytes // _FOLDERS
        if total <= share:
            return
        for is_newest, _, size, path in sorted(entries):
            if total <= share * 3 // 4 or is_newest:  # room for some, so that not every writing clears up
                return
            with contextlib.suppress(OSError):
                Path(path).unlink()
            total -= size


def embed_texts(
    cache: TextCache,
    items: Sequence[np.ndarray[Any, Any]],
    dim: int,
    compute: Callable[[str, Sequence[np.ndarray[Any, Any]]], FloatArray],
) -> FloatArray:
    """Give the embeddings of texts: from the cache, the others computed in one batch and kept.

    Args:
        cache: of the tower.
        items: (1, L) int64 token ids each. Not modified.
        dim: d.
        compute: ("text", items) -> (n, d) float32 unit rows; called for what the cache lacks, if anything.

    Returns:
        (n, d) float32 unit rows, in the order given.
    """
    alone = len(items) == 1
    keys = [cache.key(item.reshape(-1).tolist(), alone) for item in items]
    rows = [cache.get(key, dim) for key in keys]
    lost = [place for place, row in enumerate(rows) if row is None]
    if lost:
        computed = compute("text", [items[place] for place in lost])
        for place, row in zip(lost, computed, strict=True):
            rows[place] = row
            if len(items) <= LARGEST_BATCH:
                cache.put(keys[place], row)
    return np.stack([row for row in rows if row is not None])


def open_text_cache(*tower: Any) -> TextCache | None:
    """Open the cache of a tower's texts in the user's cache folder, as the setting `text_cache_mb` says.

    Args:
        tower: what decides the numbers beside the token ids and the code; see `code_stamp`.

    Returns:
        The cache; None where it is switched off (0).

    Raises:
        InputError: the setting is no whole number from 0.
    """
    value, origin = setting_with_origin("text_cache_mb")
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"text_cache_mb (from {origin}): expected MiB, 0 for none, got {value!r}.")
    if value == 0:
        return None
    return TextCache(cache_dir() / FOLDER, value * _MIB, (code_stamp(), *(str(each) for each in tower)))


@cache
def code_stamp() -> str:
    """Name the code that computes: when the files of this package and torch's version were written, and their sizes.

    Another version rounds otherwise; what it computes is kept under other names. Imports nothing.
    """
    paths = sorted(Path(__file__).parent.glob("*.py"))
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        paths.append(Path(spec.origin).with_name("version.py"))
    facts = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths if path.is_file()]
    return content_hash(facts)


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _stat(entry: os.DirEntry[str]) -> tuple[float, int]:
    """Give when an entry was last used, and its size; zeros where another process has removed it."""
    try:
        facts = entry.stat()
    except OSError:
        return 0.0, 0
    return facts.st_mtime, facts.st_size
