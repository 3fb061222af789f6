"""The vectors that indexes are measured with: by block, resumable, with queries beside; result files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import record
from benchmarks.vectors import BLOCK, QUERIES, Law, nearest, write_queries, write_rows
from bindsearch.errors import MismatchError
from bindsearch.index.build import build_index
from bindsearch.store import EmbeddingStore

LAW = Law(dim=64, latent=8, clusters=50)


def test_fewer_rows_are_the_first_of_more():
    assert np.array_equal(LAW.rows(0, 300)[:200], LAW.rows(0, 200))
    assert not np.array_equal(LAW.rows(1, 200), LAW.rows(0, 200))
    norms = np.linalg.norm(LAW.rows(0, 300).astype(np.float64), axis=1)
    assert np.abs(norms - 1).max() < 1e-3


def test_an_interrupted_run_goes_on(tmp_path):
    folder = write_rows(tmp_path / "rows", BLOCK + 40, LAW)
    whole = EmbeddingStore.open(folder).vectors()
    assert whole.shape == (BLOCK + 40, 64)
    (folder / "manifest.json").unlink()
    done = sorted((folder / "g0001").glob("*.done.json"))
    assert len(done) == 2
    before = done[0].stat().st_mtime_ns
    done[1].unlink()
    write_rows(folder, BLOCK + 40, LAW)
    assert np.array_equal(EmbeddingStore.open(folder).vectors(), whole)
    assert done[0].stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match="holds other vectors"):
        write_rows(folder, BLOCK + 40, Law(dim=64, latent=8, clusters=51))


def test_queries_lie_beside_the_rows_and_name_a_modality(tmp_path):
    store = EmbeddingStore.open(write_rows(tmp_path / "rows", 4000, LAW))
    folders = write_queries(tmp_path / "queries", 60, LAW)
    near = {}
    for kind, modality in QUERIES.items():
        fresh = LAW.queries(kind, 60, "fresh")
        assert not (fresh @ LAW.queries(kind, 60, "tune").T > 0.999).any()
        asked = EmbeddingStore.open(folders["tune", kind])
        assert dict(asked.manifest.counts) == {modality: 60}
        near[kind] = nearest(store, fresh, 1)[0].mean()
    assert near["in"] > near["offset"] + 0.1 > near["hard"] + 0.1


def test_two_laws_are_two_spaces(tmp_path):
    index = build_index(write_rows(tmp_path / "rows", 50, LAW), tmp_path / "index")
    other = write_rows(tmp_path / "other", 50, Law(dim=64, latent=8, clusters=50, noise_sd=0.3))
    with pytest.raises(MismatchError, match="synthetic@"):
        index.add(other)


def test_brute_force_finds_the_nearest(tmp_path):
    store = EmbeddingStore.open(write_rows(tmp_path / "rows", 500, LAW))
    queries = LAW.queries("hard", 7)
    rows = np.concatenate([half for half, _ in store.iter_half_blocks()]).astype(np.float64)
    scores, ids = nearest(store, queries, 5)
    every = queries.astype(np.float64) @ rows.T
    best = np.argsort(-every, axis=1, kind="stable")[:, :5]
    assert np.array_equal(ids, store.ids()[best])
    np.testing.assert_allclose(scores, np.take_along_axis(every, best, axis=1), rtol=1e-12)


def test_a_result_names_no_folder_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    path = record.write_result("x", {"source": str(Path("runs/a").absolute()), "value": 0.5})
    found = json.loads(path.read_text(encoding="utf-8"))
    assert (found["source"], found["value"]) == (str(Path("runs/a")), 0.5)
