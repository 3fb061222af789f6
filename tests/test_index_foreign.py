"""FAISS files of others: what they hold comes out, whatever is wrong with them is a refusal, and no process hangs."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bindsearch.errors import BindSearchError, DecodeError, MissingInputError
from bindsearch.index.foreign import inspect_faiss_file, rows_of_faiss_file

COUNT, DIM = 600, 16
FLAT_HEADER = struct.Struct("<4siqqq")
"""Of an IndexFlat: type, dimension, rows, two unused numbers; then trained (1 byte), metric (int), number of floats."""


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).standard_normal((COUNT, DIM)).astype(np.float32)


def write_faiss(path, key, vectors, ids=None, metric=0):
    """Write an index by its factory name, in a process of its own: FAISS's threads stay out of this one."""
    np.save(path.with_suffix(".npy"), vectors)
    code = f"""
import faiss, numpy as np
vectors = np.load({str(path.with_suffix(".npy"))!r})
index = faiss.index_factory({vectors.shape[1]}, {key!r}, {metric})
faiss.omp_set_num_threads(1)
index.train(vectors)
ids = {ids!r}
index.add(vectors) if ids is None else index.add_with_ids(vectors, np.arange(*ids))
faiss.write_index(index, {str(path)!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    return path


@pytest.fixture(scope="module")
def flat(vectors, tmp_path_factory):
    return write_faiss(tmp_path_factory.mktemp("flat") / "knn.index", "Flat", vectors)


def read_all(path, **options):
    blocks = list(rows_of_faiss_file(path, **options))
    return np.concatenate([ids for ids, _ in blocks]), np.concatenate([rows for _, rows in blocks])


@pytest.mark.parametrize(
    ("key", "kind", "ids", "metric", "worst"),
    [
        ("Flat", "IndexFlatIP", None, 0, 0),
        ("Flat", "IndexFlatL2", None, 1, 0),
        ("IVF4,Flat", "IndexIVFFlat", None, 0, 0),
        ("HNSW8", "IndexHNSWFlat", None, 0, 0),
        ("IDMap,Flat", "IndexIDMap", (7, 7 + COUNT), 0, 0),
        ("IDMap2,IVF4,SQ8", "IndexIDMap2", (7, 7 + COUNT), 0, 0.03),
        ("SQfp16", "IndexScalarQuantizer", None, 0, 2e-3),
        ("OPQ16,IVF4,SQ8", "IndexPreTransform", None, 0, 0.05),
        ("SQ4,RFlat", "IndexRefineFlat", None, 0, 0),
    ],
)
def test_rows_come_out_as_faiss_gives_them_back(tmp_path, vectors, key, kind, ids, metric, worst):
    path = write_faiss(tmp_path / "knn.index", key, vectors, ids, metric)
    facts = inspect_faiss_file(path)
    assert (facts.kind, facts.count, facts.dim, facts.has_ids) == (kind, COUNT, DIM, ids is not None)
    assert facts.metric == ("inner product", "L2")[metric]
    assert facts.size_bytes == path.stat().st_size
    found, rows = read_all(path, block_rows=250)
    np.testing.assert_array_equal(found, np.arange(*(ids or (COUNT,))))
    np.testing.assert_allclose(rows, vectors, atol=worst + 1e-12)


def test_an_index_without_rows_gives_no_block(tmp_path):
    path = write_faiss(tmp_path / "knn.index", "Flat", np.zeros((0, 4), np.float32))
    assert inspect_faiss_file(path).count == 0
    assert list(rows_of_faiss_file(path)) == []


def test_a_kind_on_which_faiss_dies_is_refused(tmp_path, vectors):
    """FAISS 1.15 ends the process that asks a fast-scan IVFPQ for a row."""
    path = write_faiss(tmp_path / "knn.index", "IVF4,PQ8x4fs", vectors)
    with pytest.raises(DecodeError, match=r"knn.index: .*(ended by signal \d+, while opening it|cannot|not)"):
        inspect_faiss_file(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes, fewer than the header"),
        (b"IxFI", "4 bytes, fewer than the header"),
        (b"PK\x03\x04" + bytes(200), r"not a FAISS index that can be read: .*It begins with b'PK\\x03\\x04'"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "It begins with b'<!DO'"),
        (pickle.dumps({"knn": list(range(99))}), "not a FAISS index that can be read"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "It begins with b'vers'"),
    ],
)
def test_what_is_no_faiss_file_is_refused_in_one_line(tmp_path, data, message):
    path = tmp_path / "knn.index"
    path.write_bytes(data)
    with pytest.raises(DecodeError, match=message) as error:
        inspect_faiss_file(path)
    assert "\n" not in str(error.value) and "/project/" not in str(error.value)
    with pytest.raises(MissingInputError, match="does not exist"):
        inspect_faiss_file(tmp_path / "none.index")
    with pytest.raises(MissingInputError, match="is no file"):
        inspect_faiss_file(tmp_path)


@pytest.mark.parametrize(
    ("dim", "count", "floats"),
    [
        (DIM, COUNT, 1 << 38),  # a terabyte of floats
        (DIM, 1 << 50, COUNT * DIM),
        (DIM, -5, COUNT * DIM),
        (-4, COUNT, COUNT * DIM),
        (0, COUNT, COUNT * DIM),
        (1 << 30, COUNT, COUNT * DIM),
        (1, 1 << 62, 1 << 62),
        (1 << 20, 1 << 35, 1 << 55),
    ],
)
def test_huge_and_impossible_counts_are_refused_quickly(flat, tmp_path, dim, count, floats):
    data = bytearray(flat.read_bytes())
    kind, _, _, *unused = FLAT_HEADER.unpack_from(data)
    data[: FLAT_HEADER.size] = FLAT_HEADER.pack(kind, dim, count, *unused)
    place = FLAT_HEADER.size + 5
    assert struct.unpack_from("<q", data, place) == (COUNT * DIM,)
    struct.pack_into("<q", data, place, floats)
    path = tmp_path / "knn.index"
    path.write_bytes(data)
    before = time.process_time()
    with pytest.raises(DecodeError, match=r"knn.index: "):
        read_all(path)
    assert time.process_time() - before < 5


def test_a_time_limit_and_a_memory_limit_hold(flat):
    with pytest.raises(DecodeError, match=r"took longer than 0.01 s, while opening it"):
        inspect_faiss_file(flat, timeout_s=0.01)
    if sys.platform == "linux":
        with pytest.raises(DecodeError):
            inspect_faiss_file(flat, memory_bytes=4096)


def children():
    """Processes that this one started and has not waited for."""
    return {int(pid) for tasks in Path("/proc/self/task").glob("*/children") for pid in tasks.read_text().split()}


def test_a_reader_that_is_left_ends_its_child(flat):
    before = children()
    blocks = rows_of_faiss_file(flat, block_rows=10)
    next(blocks)
    started = children() - before
    assert started
    blocks.close()
    assert not started & children()  # ended and waited for


@pytest.mark.parametrize("key", ["Flat", "IVF4,Flat", "HNSW8", "OPQ16,IVF4,SQ8"])
def test_altered_files_are_read_or_refused_and_nothing_else(tmp_path, vectors, key):
    """A FAISS file has no checksum: altered rows cannot be told; this process lives, and nothing comes half."""
    path = write_faiss(tmp_path / "knn.index", key, vectors)
    whole = path.read_bytes()
    rng = np.random.default_rng(len(key))
    refused = 0
    for number in range(6):
        broken = bytearray(whole)
        if number % 3 == 0:
            broken = broken[: int(rng.integers(20, len(whole)))]
        else:  # one to eight bytes, of the first hundred or anywhere
            for _ in range(int(rng.integers(1, 9))):
                broken[int(rng.integers(0, 100 if number % 3 == 1 else len(whole)))] = int(rng.integers(256))
        path.write_bytes(broken)
        try:
            ids, rows = read_all(path, timeout_s=60)
        except BindSearchError as error:
            refused += 1
            assert str(error).startswith(str(path))
        else:
            assert ids.shape == (rows.shape[0],) and rows.ndim == 2
    assert refused >= 2


FORKED = """
import os, sys, time
import numpy as np
from fake_store import FakeStore
from bindsearch.errors import UnsupportedError
from bindsearch.index.build import build_index
from bindsearch.index.faiss_index import FaissFlatIndex, load_faiss

FaissFlatIndex.small_bytes = 0
folder = build_index(FakeStore(n=3000, dim=64), sys.argv[1])
load_faiss().omp_set_num_threads(2)
queries = FakeStore(n=64, dim=64, seed=5).vectors
before = folder.snapshot.search(queries, 5)
child = os.fork()
if child == 0:
    try:
        folder.snapshot.search(queries, 5)
        code = 3
    except UnsupportedError as error:
        code = 0 if "spawn" in str(error) else 4
    os._exit(code)
for _ in range(600):
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        break
    time.sleep(0.05)
else:
    os.kill(child, 9)
    sys.exit("the child hangs")
assert os.waitstatus_to_exitcode(status) == 0, status
again = folder.snapshot.search(queries, 5)
assert all(np.array_equal(left, right) for left, right in zip(before, again))
load_faiss().omp_set_num_threads(1)
child = os.fork()
if child == 0:  # one thread needs no others
    found = folder.snapshot.search(queries, 5)
    os._exit(0 if np.array_equal(found[1], before[1]) else 5)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_search_after_a_fork_is_refused_and_does_not_hang(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(tmp_path / "index")],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
