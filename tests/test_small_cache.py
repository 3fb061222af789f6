"""The bundled cache, and the picture of what carried an answer."""

from __future__ import annotations

import numpy as np
import pytest

from bindsearch.cache import VisualCache, bundled_cache
from bindsearch.cache.bundled import FOLDER
from bindsearch.carriers import save_carriers
from bindsearch.models.spaces import load_space

MAKE = "Run python tools/make_small_cache.py"


@pytest.fixture(scope="module")
def space():
    return load_space("bindsearch-mini")


def test_it_is_small_and_of_the_mini(space):
    cache = bundled_cache()
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    assert size <= 2_000_000
    assert cache.index.manifest.space_id == space.space_id, MAKE
    assert cache.index.manifest.preset_ids["image"] == space.preset_id("image"), MAKE
    cache.index.folder.verify()


def test_its_rows_are_what_the_mini_makes_of_its_addresses(space):
    cache = bundled_cache()
    ids = cache.rows.ids()[[0, 1400, 2799]]
    items = cache.index.items(ids.tolist(), ["key", "source"]).to_pylist()
    made = np.concatenate([space.image(item["key"]).vector for item in items])
    assert (made * cache.rows.rows(ids)).sum(axis=1).min() > 0.999, MAKE
    assert all(item["key"] == item["source"] and item["key"].startswith("world:5000") for item in items)


def test_no_scene_of_it_is_one_that_measurements_take():
    seeds = {int(key.split(":")[1].split("#")[0]) for key in _keys(bundled_cache())}
    assert min(seeds) >= 50_000_000  # the train split; benchmarks and tests number their scenes from 0 on


def _keys(cache):
    return cache.index.items(cache.rows.ids().tolist(), ["key"])["key"].to_pylist()


def test_the_picture_shows_the_images_that_carried(space, tmp_path):
    from PIL import Image

    cache = bundled_cache()
    seed = "world:50000003#image"
    vector = space.image(seed).vector
    near = cache.explain(vector)[0]["neighbours"]
    assert near[0]["key"] == seed
    path = save_carriers(tmp_path / "deep" / "carried.png", "a scene of the cache itself", near)
    sheet = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert sheet.shape[1] > 1000
    drawn = np.asarray(Image.open(_rendered(seed, tmp_path)).convert("RGB").resize((161, 161), 1)).astype(int)
    tile = sheet[62 : 62 + 161, 53 : 53 + 161]  # the first tile: the scene finds itself
    assert np.abs(tile - drawn).mean() < 6
    other = np.asarray(Image.open(_rendered("world:50000777#image", tmp_path)).convert("RGB").resize((161, 161), 1))
    assert np.abs(tile - other.astype(int)).mean() > 20


def _rendered(address, folder):
    from PIL import Image

    from bindsearch.preview import preview_hit
    from bindsearch.types import Hit

    shown = preview_hit(Hit(1, 1.0, 0, address, "image", address), {})
    assert isinstance(shown.picture, Image.Image)
    shown.picture.save(folder / "one.png")
    return folder / "one.png"


def test_pictures_that_are_gone_say_so(tmp_path):
    from bindsearch.cache.build import Inputs, build_cache

    np.save(tmp_path / "rows.npy", np.eye(4, dtype=np.float32))
    build_cache(tmp_path / "cache", Inputs((str(tmp_path / "rows.npy"),), space_id="toy@0123456789ab"))
    cache = VisualCache.open(tmp_path / "cache")
    near = cache.explain(np.ones((1, 4), np.float32), 4)[0]["neighbours"]
    assert save_carriers(tmp_path / "sheet.png", "nothing to see", near).is_file()
