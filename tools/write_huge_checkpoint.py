#!/usr/bin/env python
"""Write a checkpoint with the names, shapes and size of imagebind_huge.pth, and random weights.

    python tools/write_huge_checkpoint.py /tmp/imagebind_huge.pth
    bindsearch models convert /tmp/imagebind_huge.pth -o /tmp/imagebind-huge

For tests of size and time where the released weights may not go. 4.8 GB, one tensor in memory at a time; the weights
follow the recipe of the full-size parity golden (seed 303), so that embeddings can be compared with it. `--architecture
tiny` writes a few megabytes with the same names.
"""

from __future__ import annotations

import argparse
import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bindsearch.models.architecture import load_architecture
from bindsearch.models.recipe import Recipe, draw
from bindsearch.models.weights import checkpoint_shapes

ALIGNMENT = 64


class Storage:
    """Stands for the bytes of one tensor in the pickle."""

    def __init__(self, key: int, size: int) -> None:
        self.key, self.size = key, size


class Tensor:
    """Stands for one contiguous float32 tensor in the pickle."""

    def __init__(self, key: int, shape: tuple[int, ...]) -> None:
        self.key, self.shape = key, shape

    def __reduce__(self) -> tuple[Any, ...]:
        strides = [1]
        for size in reversed(self.shape[1:]):
            strides.insert(0, strides[0] * size)
        size = int(np.prod(self.shape, dtype=np.int64))
        stride = tuple(strides) if self.shape else ()
        arguments = (Storage(self.key, size), 0, self.shape, stride, False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


class Pickler(pickle.Pickler):
    """Writes storages as torch's checkpoints name them."""

    def persistent_id(self, thing: Any) -> Any:
        """Name a storage by type, number, device and size; everything else is pickled as it is."""
        if isinstance(thing, Storage):
            return ("storage", torch.FloatStorage, str(thing.key), "cpu", thing.size)
        return None


def add(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """Store one entry, its data aligned as torch aligns them."""
    entry = zipfile.ZipInfo(f"archive/{name}")
    start = archive.fp.tell() + 30 + len(entry.filename) + 4  # type: ignore[union-attr]
    padding = -start % ALIGNMENT
    entry.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    archive.writestr(entry, data)


def write(path: Path, architecture: str, recipe: Recipe) -> int:
    """Write the checkpoint and give its size in bytes."""
    shapes = checkpoint_shapes(architecture)
    table = OrderedDict((name, Tensor(number, shape)) for number, (name, shape) in enumerate(shapes.items()))
    pickled = io.BytesIO()
    Pickler(pickled, protocol=2).dump(table)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        add(archive, "data.pkl", pickled.getvalue())
        add(archive, "byteorder", sys.byteorder.encode())
        for number, (name, shape) in enumerate(shapes.items()):
            values = np.ascontiguousarray(draw(recipe, name, shape))
            add(archive, f"data/{number}", values.reshape(-1).view(np.uint8).data)
        add(archive, "version", b"3\n")
    return path.stat().st_size


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--architecture", default="imagebind-huge")
    parser.add_argument("--seed", type=int, default=303)
    arguments = parser.parse_args()
    scales = {"text": 100.0, "audio": 20.0, "depth": 5.0, "thermal": 10.0, "imu": 5.0}
    towers = load_architecture(arguments.architecture).towers
    recipe = Recipe(arguments.seed, logit_scales=scales)
    size = write(arguments.path, arguments.architecture, recipe)
    print(f"{arguments.path}: {size} bytes, {len(towers)} towers")


if __name__ == "__main__":
    main()
