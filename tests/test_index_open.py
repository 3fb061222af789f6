"""Opening an index of three million rows reads nothing large: sparse files of the full size stand for it."""

from __future__ import annotations

import resource
import struct
import time

import numpy as np
import pytest
from fake_store import SPACE

from bindsearch.index.folder import IndexFolder
from bindsearch.index.manifest import FileEntry, Manifest, SegmentEntry, describe_file, write_manifest
from bindsearch.index.recipe import Recipe

ROWS, DIM, GONE = 3_000_000, 1024, 30_000


def write_sparse_array(path, shape, dtype):
    """A .npy file of zeros that takes no room on the disk."""
    text = f"{{'descr': '{np.dtype(dtype).str}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    with path.open("wb") as stream:
        stream.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.encode("ascii"))
        stream.truncate(128 + int(np.prod(shape)) * np.dtype(dtype).itemsize)


@pytest.fixture
def large(tmp_path):
    """A manifest and files of a recipe's index; ids and their order are real, since tombstones need them."""
    segment = tmp_path / "segments" / "000001-00000000"
    segment.mkdir(parents=True)
    (tmp_path / "tombstones").mkdir()
    write_sparse_array(segment / "vectors.npy", (ROWS, DIM), "<f2")
    ids = np.random.default_rng(0).permutation(ROWS).astype(np.int64) * 1_000_003
    np.save(segment / "ids.npy", ids)
    np.save(segment / "order.npy", np.argsort(ids).astype(np.int32))
    write_sparse_array(segment / "items.parquet", (400 << 20,), "u1")
    removed = tmp_path / "tombstones" / "000001-00000000.000002.npy"
    np.save(removed, np.sort(ids[:GONE]))
    files = {path.name: FileEntry(path.stat().st_size, "not read at open") for path in segment.iterdir()}
    entry = SegmentEntry("000001-00000000", ROWS, files, "", GONE, removed.name, describe_file(removed), "flat")
    recipe = Recipe("flat", row_dtype="float16")
    write_manifest(
        tmp_path,
        Manifest(
            "flat", DIM, "toy", SPACE, ROWS - GONE, {"image": ROWS - GONE}, (entry,), recipe=recipe, row_dtype="float16"
        ),
    )
    return tmp_path


def test_three_million_rows_open_in_milliseconds(large):
    folder = IndexFolder.open(large)
    before = resource.getrusage(resource.RUSAGE_SELF)
    taken = []
    for _ in range(5):
        began = time.process_time()
        folder = IndexFolder.open(large)
        info = folder.info()
        taken.append(time.process_time() - began)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert (info["count"], info["removed"]) == (ROWS - GONE, GONE)
    assert min(taken) < 0.06
    assert after.ru_maxrss - before.ru_maxrss < 64 << 10, "kilobytes; the rows are 6 GB"
