"""Settings of an approximate cache: chosen by how near moved embeddings come to where exact search moves them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from bindsearch.cache import VisualCache
from bindsearch.cache.build import Inputs, build_cache
from bindsearch.cache.recipe import CacheRecipe, CacheRecord, Tuning
from bindsearch.cache.tuning import retune_cache
from bindsearch.cli import run
from bindsearch.errors import InputError
from bindsearch.exchange import import_store
from bindsearch.index.recipe import Recipe
from bindsearch.index.tuned import OWN_ROWS
from bindsearch.store import open_store

DIM = 48


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def store(folder, rows, modality):
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), DIM)
    names = [f"{modality}/{number}" for number in range(len(rows))]
    table = pa.table({"key": names, "modality": [modality] * len(rows), "embedding": values})
    pq.write_table(table, folder.with_suffix(".parquet"))
    import_store(folder.with_suffix(".parquet"), folder, space_id="toy@0123456789ab")
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A cache of 6,000 rows in 60 lists, tuned on 300 sounds that lie beside the pictures; its record, the sounds."""
    home = tmp_path_factory.mktemp("tuned")
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((40, DIM))
    rows = unit(centres[rng.integers(0, 40, 6000)] + 0.5 * rng.standard_normal((6000, DIM)))
    gap = rng.standard_normal(DIM)
    sounds = unit(centres[rng.integers(0, 40, 600)] + 1.2 * rng.standard_normal((600, DIM)) + 0.5 * gap)
    images, asked = store(home / "images", rows, "image"), store(home / "sounds", sounds[:300], "audio")
    recipe = CacheRecipe(
        near_duplicate=None,
        index=Recipe("ivf-pq", "float16", {"nlist": 60}),
        tuning=Tuning(overlap=0.9, error=1e-3, count=300),
    )
    record = build_cache(home / "cache", Inputs((str(images),), queries=(asked,)), recipe)
    return home / "cache", record, sounds, asked


def errors(cache, vectors, settings=None):
    right = cache.enhance(vectors, exact=True).astype(np.float64)
    return 1 - (cache.enhance(vectors, settings=settings) * right).sum(axis=1)


def test_moved_embeddings_are_as_near_as_the_recipe_says(built):
    path, record, sounds, asked = built
    cache = VisualCache.open(path)
    stored = open_store(asked).vectors()  # rounded, and what was tuned on
    assert errors(cache, stored).max() <= 1e-3
    assert np.quantile(errors(cache, sounds[300:]), 0.99) <= 1e-3
    assert errors(cache, sounds[:300], {"nprobe": 1, "rerank": 10}).max() > 1e-2  # it is no matter of course
    found = record.measured["audio"]
    assert found["largest_error"] == pytest.approx(errors(cache, stored).max(), abs=1e-7)
    assert CacheRecord.load(path) == record
    tuned = cache.index.manifest.tuned
    assert tuned["settings"] == found["settings"] == tuned["modalities"]["audio"]["settings"]
    assert found["overlap"] > 0.9  # what was asked for was not enough, and was raised


def test_tuning_anew_builds_nothing(built, capsys):
    path, _, _, asked = built
    before = {each: each.stat().st_mtime_ns for each in path.rglob("vectors.npy")}
    tight = retune_cache(path, [asked], Tuning(overlap=0.9, error=1e-6, count=300))
    assert tight["audio"]["largest_error"] <= 1e-6  # no times decide this, however busy the machine is
    cache = VisualCache.open(path)
    assert cache.index.manifest.tuned["settings"] == tight["audio"]["settings"]
    assert errors(cache, open_store(asked).vectors()).max() <= 1.1e-6
    assert run(["cache", "tune", str(path), "--queries", str(asked), "--overlap", "0.9", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["audio"]["largest_error"] <= 1e-3
    assert CacheRecord.load(path).measured == again
    assert {each: each.stat().st_mtime_ns for each in path.rglob("vectors.npy")} == before


def test_tuning_anew_without_options_takes_what_the_record_says(built, tmp_path, caplog):
    """Its queries and how exactly; it took pictures of its own, and forgot what was asked for."""
    path, _, sounds, asked = built
    cache = tmp_path / "cache"
    shutil.copytree(path, cache)
    wanted = Tuning("world:validation:0..60#audio", 0.8, 1e-2, 60)
    retune_cache(cache, [asked], wanted)
    assert run(["cache", "tune", str(cache)]) == 0
    record = CacheRecord.load(cache)
    assert record.recipe.tuning == wanted
    assert {name: (each["queries"], each["source"]) for name, each in record.measured.items()} == {
        "audio": (60, str(asked))
    }
    assert run(["cache", "tune", str(cache), "--error", "0.02", "--held-out", "40"]) == 0
    assert CacheRecord.load(cache).recipe.tuning == replace(wanted, error=0.02, count=40)
    assert not caplog.records
    # moved away from where it was tuned: its recipe's queries lie beside it
    gone = {name: {**each, "source": "gone"} for name, each in record.measured.items()}
    replace(record, measured=gone).save(cache)
    beside = store(tmp_path / "cache.queries", sounds[300:], "audio")
    assert run(["cache", "tune", str(cache)]) == 0
    assert CacheRecord.load(cache).measured["audio"]["source"] == str(beside)
    assert [each.getMessage().partition(": ")[2][:40] for each in caplog.records] == [
        "the queries that it was tuned on are gon"
    ]


def test_queries_are_found_from_any_folder_and_no_others_of_their_name_are_taken(built, tmp_path, monkeypatch, caplog):
    """The record kept them as typed and looked them up from the folder of the moment."""
    path, _, sounds, _ = built
    cache, (a, b) = tmp_path / "cache", (tmp_path / name for name in "ab")
    shutil.copytree(path, cache)
    for folder, modality in ((a, "audio"), (b, "text")):
        folder.mkdir()
        store(folder / "qs", sounds[:30], modality)
    monkeypatch.chdir(a)
    loose = ["--overlap", "0.5", "--error", "0.5", "--held-out", "20"]
    assert run(["cache", "tune", "../cache", "--queries", "qs", *loose]) == 0
    for folder in (tmp_path, b):
        monkeypatch.chdir(folder)
        assert run(["cache", "tune", str(cache)]) == 0
        record = CacheRecord.load(cache)
        assert {name: found["source"] for name, found in record.measured.items()} == {"audio": str(a / "qs")}
    assert not caplog.records
    # an older record: as typed
    replace(record, measured={"audio": {**record.measured["audio"], "source": "qs"}}).save(cache)
    assert run(["cache", "tune", str(cache)]) == 0
    assert CacheRecord.load(cache).measured["image"]["source"] == OWN_ROWS
    said = caplog.records[0].getMessage()
    assert str(cache) in said and "gone, or hold no audio: qs" in said and "--queries" in said
    replace(record, measured={"audio": {**record.measured["audio"], "source": "qs"}}).save(cache)
    monkeypatch.chdir(a)
    assert run(["cache", "tune", str(cache)]) == 0
    assert CacheRecord.load(cache).measured["audio"]["source"] == str(a / "qs")


def test_of_several_stores_those_that_are_gone_are_named(built, tmp_path, caplog):
    path, _, sounds, _ = built
    cache = tmp_path / "cache"
    shutil.copytree(path, cache)
    stores = [store(tmp_path / name, sounds[place : place + 30], "audio") for name, place in (("q1", 0), ("q2", 30))]
    retune_cache(cache, stores, Tuning(overlap=0.5, error=0.5, count=20))
    shutil.rmtree(stores[0])
    retune_cache(cache)
    assert CacheRecord.load(cache).measured["audio"]["source"] == str(stores[1])
    assert f"gone, or hold no audio: {stores[0]}" in caplog.text


def test_what_few_queries_cannot_confirm_is_reached_by_looking_farther(built, caplog):
    """60 queries confirm no overlap above 0.984; the errors are asked for all the same."""
    path, _, _, asked = built
    tight = retune_cache(path, [asked], Tuning(overlap=0.98, error=1e-6, count=60))
    assert tight["audio"]["queries"] == 60
    assert tight["audio"]["largest_error"] <= 0.5e-6
    assert not caplog.records
    assert all(value > 0 for value in tight["audio"]["settings"].values())
    retune_cache(path, [asked], Tuning(overlap=0.98, error=1e-30, count=60))  # no arithmetic reaches this
    assert "1e-30 was asked for" in caplog.text


def test_a_cached_row_is_moved_by_the_others_when_it_asks(tmp_path):
    """It would find itself first, and weigh most: unseen rows come out a thousand times farther off than that says."""
    rng = np.random.default_rng(5)
    rows = unit(rng.standard_normal((20, DIM))[rng.integers(0, 20, 1500)] + 0.8 * rng.standard_normal((1500, DIM)))
    loose = CacheRecipe(near_duplicate=None, index=Recipe("rabitq"), tuning=Tuning(overlap=0.5, error=0.5, count=60))
    path = tmp_path / "cache"
    record = build_cache(path, Inputs((str(store(tmp_path / "images", rows, "image")),)), loose)
    cache = VisualCache.open(path)
    ids = cache.rows.ids()
    own = ids[np.linspace(0, 1499, 60).astype(int)]
    asked = cache.rows.rows(own)

    def moved(**how):
        found = cache.rows.search(asked, 11, **how)[1]
        others = np.stack([row[row != one][:10] for row, one in zip(found, own, strict=True)])
        weighed = cache.rows.rows(others.ravel()).reshape(60, 10, DIM).astype(np.float64)
        weights = np.exp(20 * np.einsum("bkd,bd->bk", weighed, asked))
        return unit(asked / 2 + unit(np.einsum("bk,bkd->bd", weights, weighed)) / 2).astype(np.float64)

    by_hand = 1 - (moved() * moved(exact=True)).sum(axis=1)
    assert by_hand.max() > 1e-3
    assert record.measured["image"]["largest_error"] == pytest.approx(by_hand.max(), rel=0.01, abs=1e-6)


def test_a_cache_of_one_image_has_nothing_to_choose(tmp_path, capsys):
    np.save(tmp_path / "rows.npy", unit(np.random.default_rng(0).standard_normal((1, 8))))
    recipe = CacheRecipe(index=Recipe("rabitq"))
    inputs = Inputs((str(tmp_path / "rows.npy"),), space_id="toy@0123456789ab")
    assert build_cache(tmp_path / "cache", inputs, recipe).measured == {}
    assert run(["cache", "tune", str(tmp_path / "cache")]) == 0
    assert "one image" in capsys.readouterr().err


def test_an_exact_cache_has_nothing_to_choose(tmp_path, capsys):
    np.save(tmp_path / "rows.npy", unit(np.random.default_rng(0).standard_normal((50, 8))))
    record = build_cache(tmp_path / "cache", Inputs((str(tmp_path / "rows.npy"),), space_id="toy@0123456789ab"))
    assert record.measured == {}
    assert run(["cache", "tune", str(tmp_path / "cache")]) == 0
    assert "exact" in capsys.readouterr().err


def test_tuning_an_exact_cache_leaves_its_index_as_it_was(tmp_path, capsys):
    """Also what the planner measured of it, and its generation, which open cursors name."""
    images = store(tmp_path / "images", unit(np.random.default_rng(0).standard_normal((50, DIM))), "image")
    path = tmp_path / "index"
    assert run(["index", str(images), "-o", str(path), "--recall", "0.9", "--backend", "faiss-flat"]) == 0
    before = (path / "index.json").read_bytes()
    assert "overlap_at_10" in before.decode()
    assert run(["cache", "tune", str(path)]) == 0
    assert "nothing to choose" in capsys.readouterr().err
    assert (path / "index.json").read_bytes() == before


@pytest.mark.parametrize("wrong", [{"overlap": 1.0}, {"error": 0.0}, {"count": 5}])
def test_tuning_that_cannot_be_meant_is_refused(wrong):
    with pytest.raises(InputError, match="tuning expected"):
        Tuning(**wrong)
