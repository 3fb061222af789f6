"""An index built in place of another: nothing that was kept beside the old one counts as the new one's."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from fake_store import FakeStore

from bindsearch.cache import VisualCache
from bindsearch.cache.build import Inputs, build_cache
from bindsearch.cache.recipe import RECORD, CacheRecipe, CacheRecord, Enhancement
from bindsearch.index import build as build_module
from bindsearch.index.build import build_index, reindex
from bindsearch.index.folder import IndexFolder
from bindsearch.index.merge import merge_indexes
from bindsearch.search import open_index
from bindsearch.search.calibrate import FILE, load_background

WEIGHED = CacheRecipe(enhancement=Enhancement(3, 5.0, 0.9))


@pytest.fixture
def cache(tmp_path):
    """A cache with numbers of its own and a background."""
    rows = FakeStore(60, modalities=("image",)).units
    np.save(tmp_path / "rows.npy", rows)
    build_cache(tmp_path / "cache", Inputs((str(tmp_path / "rows.npy"),), space_id="toy@0123456789ab"), WEIGHED)
    open_index(tmp_path / "cache").save_background()
    return tmp_path / "cache"


def check_forgotten(path):
    found = VisualCache.open(path)
    assert found.enhancement == Enhancement() and "built_from" not in found.info()
    assert load_background(IndexFolder.open(path).snapshot) is None


@pytest.mark.parametrize("way", [reindex, build_index])
def test_what_was_beside_the_old_index_goes_with_it(cache, way):
    assert VisualCache.open(cache).enhancement == WEIGHED.enhancement
    other = FakeStore(70, seed=3, modalities=("image",))
    how = {"drop_missing": True} if way is reindex else {"force": True}
    way(*((cache, other) if way is reindex else (other, cache)), **how)
    assert not (cache / RECORD).exists() and not (cache / FILE).exists()
    check_forgotten(cache)


def test_killed_before_they_are_deleted_they_are_passed_over(cache, monkeypatch):
    monkeypatch.setattr(build_module, "forget_beside", lambda folder: None)
    build_index(FakeStore(70, seed=3, modalities=("image",)), cache, force=True)
    assert (cache / RECORD).exists() and (cache / FILE).exists()
    check_forgotten(cache)
    open_index(cache).save_background()
    assert load_background(IndexFolder.open(cache).snapshot) is not None


@pytest.mark.parametrize("made", ["index", "cache"])
def test_a_cache_that_is_open_keeps_its_numbers(cache, tmp_path, made):
    found, index = VisualCache.open(cache), open_index(cache)
    before = found.info()
    if made == "index":
        build_index(FakeStore(70, seed=3, modalities=("image",)), cache, force=True)
    else:
        build_cache(cache, Inputs((str(tmp_path / "rows.npy"),), space_id="toy@0123456789ab"), force=True)
    assert found.enhancement == WEIGHED.enhancement and found.info() == before
    assert VisualCache.open(cache).enhancement == Enhancement()
    late = VisualCache.open(index)  # over the old rows, whose record is gone: not with the new one's
    assert "built_from" not in late.info()


def test_a_build_that_fails_keeps_them(cache):
    def refuse(snapshot):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(FakeStore(70, seed=3, modalities=("image",)), cache, force=True, judge=refuse)
    assert VisualCache.open(cache).enhancement == WEIGHED.enhancement
    assert load_background(IndexFolder.open(cache).snapshot) is not None


def test_a_cache_built_in_place_of_one_has_its_own_record(cache, tmp_path):
    inputs = Inputs((str(tmp_path / "rows.npy"),), space_id="toy@0123456789ab")
    record = build_cache(cache, inputs, CacheRecipe(), force=True)
    first = IndexFolder.open(cache).manifest.first_generation
    assert first == record.generation == 2
    assert CacheRecord.load(cache, first) == record
    open_index(cache).add(FakeStore(9, seed=4, prefix="more", modalities=("image",)))
    assert VisualCache.open(cache).info()["built_from"] == record.source  # changes are no replacement


@pytest.mark.parametrize("way", ["build", "merge"])
def test_a_build_that_was_killed_before_it_was_there_is_nothing_to_replace(tmp_path, way):
    path, parts = tmp_path / "index", [tmp_path / "a", tmp_path / "b"]
    for number, part in enumerate(parts):
        build_index(FakeStore(20, seed=number, prefix=part.name), part)
    (path / "segments" / "000001-killed").mkdir(parents=True)
    made = build_index(FakeStore(20), path) if way == "build" else merge_indexes(parts, path).folder
    assert (made.manifest.generation, made.manifest.first_generation) == (2, 1)
    (path / "index.json").unlink()
    (path / RECORD).write_text("{}")  # of an index whose manifest is lost
    made = build_index(FakeStore(20), path) if way == "build" else merge_indexes(parts, path).folder
    assert made.manifest.first_generation == made.manifest.generation == 3
    assert not (path / RECORD).exists()


def test_what_never_replaced_anything_is_of_the_formats_before(cache):
    kept = (cache / "index.json").read_text()
    assert "first_generation" not in kept and '"format_version": 3' in kept
    assert "generation" not in (cache / RECORD).read_text()
    shutil.copytree(cache, cache.with_name("copy"))
    assert VisualCache.open(cache.with_name("copy")).enhancement == WEIGHED.enhancement
