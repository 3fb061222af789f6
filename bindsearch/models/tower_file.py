"""One tower's file: safetensors, written as a stream, one tensor in memory at a time, and hashed on the way."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindsearch.errors import InputError, WeightsError
from bindsearch.models.manifest import TowerRecord
from bindsearch.processes import is_running

if TYPE_CHECKING:
    import torch

STORED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Names of number types: ours and those of the safetensors header."""

Getter = Callable[[], "torch.Tensor"]


def content_id(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Hash weights, whatever float type they are kept in.

    Args:
        tensors: (key, tensor) in the order of the keys, without logit scales. Not modified.

    Returns:
        SHA-256 in hexadecimal over each key, shape and the values rounded to bfloat16 (nearest, ties to even): the
        float32 file and the bfloat16 file made from it have the same id, and both can be checked.
    """
    digest = hashlib.sha256()
    for key, tensor in tensors:
        _digest_tensor(digest, key, tensor)
    return digest.hexdigest()


def _digest_tensor(digest: hashlib._Hash, key: str, tensor: torch.Tensor) -> None:
    import torch

    digest.update(f"{key}\0{list(tensor.shape)}\0".encode())
    digest.update(_bytes_of(tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor))


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def counts_for_id(key: str) -> bool:
    """Say whether a key's values decide embeddings; logit scales do not."""
    return not key.startswith("scale.")


def check_finite(where: str, key: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor, of any shape and dtype, that holds NaN or infinite values.

    Raises:
        WeightsError: naming the tensor.
    """
    import torch

    if not bool(torch.isfinite(tensor).all()):
        raise WeightsError(f"{where}: {key} holds values that are not finite; nothing was written.")


def _temporary(path: Path, pid: int | str) -> Path:
    """Name what a process of this machine writes a file under until it is complete."""
    return path.with_name(f"{path.name}.{socket.gethostname()}.{pid}.tmp")


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished towers that processes of this machine left in a folder when they were killed."""
    for left in folder.glob("*.tmp"):
        tower, pid = left.name.partition(".")[0], left.name.split(".")[-2]
        ours = left == _temporary(folder / f"{tower}.safetensors", pid)
        if ours and pid.isdecimal() and not is_running(int(pid)):
            left.unlink(missing_ok=True)


def write_tower(
    path: Path, tensors: Mapping[str, Getter], dtype: str, guard: Callable[[], None] | None = None
) -> TowerRecord:
    """Write one tower as safetensors, one tensor in memory at a time.

    Args:
        path: of the file; it appears when it is complete (temporary file, sync, rename).
        tensors: key in the tower's state dict -> a function that gives its tensor; called twice (shape, then bytes).
        dtype: "float32", "bfloat16" or "float16"; integer tensors and the logit scale keep theirs.
        guard: called right before the file gets its name.

    Returns:
        The file's record.

    Raises:
        InputError: unknown dtype.
        WeightsError: the disk is full, or a tensor is not finite.
    """
    if dtype not in STORED:
        raise InputError(f"unknown dtype {dtype!r} for weights. Known: {', '.join(STORED)}.")
    header, offset = _header(tensors, dtype)
    file_digest, id_digest = hashlib.sha256(), hashlib.sha256()
    log_scale: float | None = None
    temporary = _temporary(path, os.getpid())
    try:
        with temporary.open("wb") as file:
            file.write(header)
            file_digest.update(header)
            for key in sorted(tensors):
                source = tensors[key]()
                check_finite(path.name, key, source)
                kept = source.to(_stored_dtype(key, source, dtype))
                if counts_for_id(key):
                    _digest_tensor(id_digest, key, kept)  # what is in the file, so that verify finds the same id
                else:
                    log_scale = float(source)
                stored = _bytes_of(kept)
                file.write(stored)
                file_digest.update(stored)
            file.flush()
            os.fsync(file.fileno())
        if guard is not None:
            guard()
        temporary.replace(path)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free
        raise WeightsError(
            f"{path}: cannot be written: {error.strerror}. {offset + len(header)} bytes are needed, {free} are free."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return TowerRecord(path.name, offset + len(header), file_digest.hexdigest(), id_digest.hexdigest(), log_scale)


def _stored_dtype(key: str, tensor: torch.Tensor, dtype: str) -> torch.dtype:
    import torch

    if not tensor.is_floating_point():
        return tensor.dtype
    return getattr(torch, dtype) if counts_for_id(key) else torch.float32


def _header(tensors: Mapping[str, Getter], dtype: str) -> tuple[bytes, int]:
    """Build the safetensors header and give the number of bytes that follow it."""
    import torch

    names = {getattr(torch, ours): theirs for ours, theirs in STORED.items()} | {torch.int64: "I64"}
    entries: dict[str, Any] = {}
    offset = 0
    for key in sorted(tensors):
        tensor = tensors[key]()
        kind = _stored_dtype(key, tensor, dtype)
        end = offset + tensor.numel() * kind.itemsize
        entries[key] = {"dtype": names[kind], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offset
