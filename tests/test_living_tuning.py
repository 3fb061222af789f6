"""What was tuned belongs to the items that it was measured on: what stays of it when the index changes."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from fake_store import FakeStore

from bindsearch.cache import VisualCache
from bindsearch.cache.recipe import Tuning
from bindsearch.cache.tuning import retune_cache
from bindsearch.cli import run
from bindsearch.errors import InputError
from bindsearch.index.budget import Budget
from bindsearch.index.build import build_index
from bindsearch.index.folder import IndexFolder
from bindsearch.index.plan import retune
from bindsearch.index.recipe import NO_MARGIN, Recipe
from bindsearch.index.sizes import stored_read_bytes
from bindsearch.index.tuned import after_change, holds
from bindsearch.index.upkeep import tuning_advice
from bindsearch.registry import INDEXES

ASKED = Budget.parse(0.8, None, None)
OWN = INDEXES["ivf-rabitq"].settings


def clustered(n, seed, prefix):
    """Images around 20 centres, of which few settings find the nearest among few rows."""
    store = FakeStore(n, dim=32, seed=seed, prefix=prefix, modalities=("image",))
    centres = np.random.default_rng(1).standard_normal((20, 32)).astype(np.float32)
    store.vectors = centres[np.arange(n) % 20] + 0.8 * store.vectors
    return store


@pytest.fixture
def index(tmp_path):
    """600 images, tuned on themselves."""
    folder = build_index(clustered(600, 0, "old"), tmp_path / "index", Recipe("ivf-rabitq", "float16"))
    retune(folder, ASKED, count=100)
    return folder


def overlap(folder):
    snapshot = folder.snapshot
    queries = snapshot.rows(snapshot.ids()[::20])
    _, found = snapshot.search(queries, 11)
    _, right = snapshot.search(queries, 11, exact=True)
    return np.mean([len({*a[1:]} & {*b[1:]}) / 10 for a, b in zip(found.tolist(), right.tolist(), strict=True)])


def test_a_small_change_keeps_what_was_measured(index):
    before = index.manifest.tuned
    index.add(clustered(20, 5, "few"))
    index.remove(index.snapshot.ids()[:8])
    index.compact()
    after = index.manifest.tuned
    assert (after["rows"], after["changed"]) == (600, 28)
    assert after["modalities"] == before["modalities"] and after["settings"] == before["settings"]
    assert after["read_bytes"] == stored_read_bytes(index.manifest)
    assert not index.info()["advice"]
    index.remove(index.snapshot.ids()[:3])  # changes add up
    assert not holds(index.manifest.tuned)


def test_figures_of_other_items_are_not_shown(index, capsys):
    path, before = str(index.path), index.manifest.tuned
    index.add(clustered(3000, 7, "new"))
    assert index.manifest.tuned["settings"] == before["settings"]  # the lists are as they were
    assert "overlap" not in json.dumps(index.info()["tuned"])
    index.compact()
    assert "overlap" not in json.dumps(index.info()["tuned"])
    own = {name: value for name, value in OWN.items() if not name.endswith("_margin")}
    assert index.manifest.tuned["settings"] == {
        name: max(value, before["settings"].get(name, 0)) for name, value in own.items()
    } | {name: NO_MARGIN for name in before["settings"] if name.endswith("_margin")}
    typed = f"bindsearch index tune {path} --recall 0.8 --held-out 100"
    assert index.info()["advice"] == [f"tune: 3,000 items changed since search settings were measured on 600: {typed}"]
    assert run(["index", "info", path]) == 0
    said = capsys.readouterr().out
    assert "nothing is measured of these items" in said and "overlap" not in said and typed in said
    found = overlap(index)
    assert found > 0.9  # the tuned settings find 0.6 of them
    retune(index, ASKED, count=100)
    assert holds(index.manifest.tuned) and not index.info()["advice"]
    assert index.manifest.tuned["rows"] == 3600 and "changed" not in index.manifest.tuned


def test_what_was_tuned_with_rows_beside_the_lists_is_not_of_the_lists_that_come_of_them(index, capsys):
    index.add(clustered(600, 7, "new"))
    retune(index, ASKED, count=100)
    assert not index.info()["advice"]
    assert run(["index", "compact", str(index.path)]) == 0
    assert "tune: 600 items changed" in capsys.readouterr().err
    assert not holds(IndexFolder.open(index.path).manifest.tuned)


def test_a_tuning_of_an_earlier_version_counts_from_now_on():
    tuned = {"k": 10, "settings": {"nprobe": 3}, "modalities": {}, "read_bytes": 1}
    assert holds(tuned)
    kept = after_change(tuned, 100, 5, 2)
    assert kept == {**tuned, "rows": 100, "changed": 5, "read_bytes": 2}
    assert holds(kept) and not holds(after_change(kept, 105, 6, 2))
    assert after_change(None, 100, 50, 2) is None


def test_advice_says_what_was_asked_and_on_whose_queries(tmp_path):
    folder = build_index(clustered(100, 0, "old"), tmp_path / "index", Recipe("ivf-rabitq", "float16"))
    retune(folder, ASKED, [clustered(40, 3, "asked")], count=40)
    folder.remove(folder.snapshot.ids()[:20])
    (said,) = folder.info()["advice"]
    assert said.endswith(f"bindsearch index tune {folder.path} --recall 0.8 --held-out 40 --queries EMBEDDINGS")


@pytest.mark.parametrize("kind", ["index", "cache"])
def test_advice_can_be_typed_and_asks_for_the_same_again(tmp_path, kind, monkeypatch):
    """Also a budget, how many queries, and paths with blanks."""
    if kind == "index":
        asked = asdict(Budget.parse(0.9, "800MiB", "12.5ms")) | {"held_out": 60}
    else:
        asked = {"recall": 0.995, "error": 1e-4, "held_out": 60}
    tuned = {"asked": asked, "rows": 100, "changed": 50}
    tuned["modalities"] = {"text": {"source": "my runs/a"}, "audio": {"source": "my runs/a + b"}}
    folder = build_index(clustered(100, 0, "old"), tmp_path / "my index", Recipe("ivf-rabitq", "float16"))
    (said,) = tuning_advice(replace(folder.manifest, tuned=tuned), str(folder.path))
    words = shlex.split(said.partition(": bindsearch ")[2])
    assert words[:3] == [kind, "tune", str(folder.path)]

    def retune_index(found, budget, queries, count):
        assert (budget, queries, count) == (Budget.parse(0.9, "800MiB", "12.5ms"), named, 60)
        raise InputError("as asked")

    def retune_cache(found, queries, changed):
        assert (found, queries, changed) == (folder.path, named, {"overlap": 0.995, "error": 1e-4, "count": 60})
        raise InputError("as asked")

    named = (Path("b"), Path("my runs/a"))
    monkeypatch.setattr("bindsearch.index.plan.retune", retune_index)
    monkeypatch.setattr("bindsearch.cache.tuning.retune_cache", retune_cache)
    assert run(words) == InputError("").exit_code


def test_a_caches_info_says_when_its_record_is_of_other_items(index, capsys):
    retune_cache(index.path, tuning=Tuning("", 0.8, 0.1, 60))
    assert VisualCache.open(index.path).info()["advice"] == []
    index.reload()
    index.add(clustered(60, 7, "new"))
    assert run(["cache", "info", str(index.path)]) == 0
    typed = f"bindsearch cache tune {index.path} --overlap 0.8 --error 0.1 --held-out 60"
    assert f"60 items changed since search settings were measured on 600: {typed}" in capsys.readouterr().out
