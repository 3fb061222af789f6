"""A query carried over the modality gap: the blend of the visual cache as a term of the query."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fake_store import SPACE, FakeStore

from bindsearch.cache import VisualCache
from bindsearch.cache.bridge import bridge_to
from bindsearch.cache.recipe import CacheRecipe, CacheRecord, Enhancement
from bindsearch.cli import run
from bindsearch.errors import MismatchError, MissingInputError
from bindsearch.index.build import build_index
from bindsearch.index.identity import Identity
from bindsearch.index.recipe import Recipe
from bindsearch.query import Embedding
from bindsearch.search import SearchIndex, open_index

NUMBERS = Enhancement(5, 30.0, 0.4)


@pytest.fixture
def index(tmp_path):
    build_index(FakeStore(60, 16), tmp_path / "index")
    return open_index(tmp_path / "index")


def ask(seed=1, modality="audio", space=SPACE):
    vector = np.random.default_rng(seed).standard_normal((1, 16)).astype(np.float32)
    return Embedding.of_vector(vector, f"{modality} {seed}", Identity(space), modality)


def test_it_is_the_blend_of_the_cache(index):
    query = ask(1) + 0.5 * ask(2, "text")
    carried = bridge_to(index, enhancement=NUMBERS)(query)
    expected = VisualCache.open(index).enhance(query.vector, 5, 30.0, 0.4)
    np.testing.assert_allclose(carried.vector, expected, atol=1e-6)
    assert carried.names() == (*query.names(), "image 5 cached images")
    hits = index.search(carried, k=7)
    np.testing.assert_allclose(hits.contributions().sum(axis=1), hits.scores, atol=1e-6)


def test_images_alone_are_not_carried(index):
    carry = bridge_to(index, enhancement=NUMBERS)
    picture = ask(3, "image")
    assert carry(picture) is picture
    assert carry(picture + ask(4)) is not picture
    sound = ask(4)
    assert bridge_to(index, enhancement=Enhancement(weight=0.0))(sound) is sound


def test_a_cache_of_its_own_and_its_recipe(index, tmp_path):
    other = FakeStore(30, 16, seed=5, prefix="other", modalities=("image",))
    build_index(other, tmp_path / "cache")
    CacheRecord(CacheRecipe(enhancement=NUMBERS), "x", 30, 0, 0, 30).save(tmp_path / "cache")
    query = ask(6)
    carried = bridge_to(index, open_index(tmp_path / "cache"))(query)
    expected = VisualCache.of_vectors(other.units).enhance(query.vector, 5, 30.0, 0.4)
    np.testing.assert_allclose(carried.vector, expected, atol=1e-6)


def test_centred_indexes_are_bridged_in_their_own_frame(index, tmp_path):
    build_index(FakeStore(60, 16), tmp_path / "centred", centre=True)
    centred = open_index(tmp_path / "centred")
    query = ask(7)
    carried = bridge_to(centred, enhancement=NUMBERS)(query)
    means = centred.folder.snapshot.centring
    placed = means.apply(query.vector, "audio", "x")
    expected = VisualCache.of_vectors(centred.vectors(FakeStore(60, 16).ids[::3].tolist())).enhance(
        placed, 5, 30.0, 0.4
    )
    np.testing.assert_allclose(carried.vector, expected, atol=1e-5)
    assert len(centred.search(carried, k=3)) == 3
    with pytest.raises(MismatchError, match="not centred"):
        bridge_to(centred, index)
    with pytest.raises(MismatchError, match="are centred"):
        bridge_to(index, centred)


def test_what_cannot_carry_is_refused(index, tmp_path):
    build_index(FakeStore(30, 16, modalities=("audio",)), tmp_path / "sounds")
    with pytest.raises(MissingInputError, match="no image"):
        bridge_to(open_index(tmp_path / "sounds"))
    build_index(FakeStore(30, 16, modalities=("image",), space_id="other@0123456789ab"), tmp_path / "alien")
    with pytest.raises(MismatchError, match="other@0123456789ab"):
        bridge_to(index, open_index(tmp_path / "alien"))
    with pytest.raises(MismatchError, match="alien@0123456789ab"):
        bridge_to(index)(ask(8, space="alien@0123456789ab"))


class Gapped(FakeStore):
    """Modalities in narrow cones of their own, as in a real space."""

    def __init__(self, n=1500, dim=16):
        super().__init__(n, dim)
        kinds = self.table["modality"].to_pylist()
        cones = {name: 4 * np.eye(dim)[place] for place, name in enumerate(("image", "audio", "text"))}
        self.vectors = (self.vectors + np.stack([cones[kind] for kind in kinds])).astype(np.float32)


def test_beside_other_items_the_nearest_images_are_found(tmp_path):
    """The backend's own search ends among the texts, which lie nearer to a text than any image does."""
    store = Gapped()
    mixed = VisualCache.open(SearchIndex(build_index(store, tmp_path / "mixed", Recipe("hnsw", build={"M": 8}))))
    alone = VisualCache.of_vectors(store.units[::3])
    texts = store.units[2:900:3]
    np.testing.assert_allclose(mixed.enhance(texts), alone.enhance(texts), atol=1e-6)
    np.testing.assert_array_equal(mixed.retrieve(texts).ids, store.ids[::3][alone.retrieve(texts).ids])
    np.testing.assert_array_equal(mixed.rows.ids(), store.ids[::3])
    carried = bridge_to(mixed.index)(Embedding.of_vector(texts[:1], "text", Identity(SPACE), "text"))
    np.testing.assert_allclose(carried.vector, alone.enhance(texts[:1]), atol=1e-6)


def test_exact_reaches_the_bridge(tmp_path, capsys):
    """Also where the images are an approximate index of their own, which no filter makes exact."""
    store = FakeStore(1500, 16, modalities=("image",))
    folder = build_index(store, tmp_path / "images", Recipe("hnsw", build={"M": 2, "efConstruction": 4}))
    index, query = SearchIndex(folder), ask(3)
    expected = VisualCache.of_vectors(store.units).enhance(query.vector, 5, 30.0, 0.4)
    np.testing.assert_allclose(bridge_to(index, None, NUMBERS, exact=True)(query).vector, expected, atol=1e-6)
    assert np.abs(bridge_to(index, None, NUMBERS)(query).vector - expected).max() > 1e-3
    np.save(tmp_path / "q.npy", query.vector)
    base = ["query", str(folder.path), "--vector", str(tmp_path / "q.npy"), "--bridge", "--json", "--exact", "-k", "1"]
    assert run(base) == 0
    numbers = Enhancement()
    moved = VisualCache.open(folder.path).enhance(
        query.vector, numbers.cache_size, numbers.inverse_temperature, numbers.weight, exact=True
    )
    score = json.loads(capsys.readouterr().out)[0]["score"]
    assert score == pytest.approx(float((store.units @ moved[0]).max()), abs=1e-6)


def test_query_with_a_bridge(index, tmp_path, capsys):
    np.save(tmp_path / "q.npy", ask(9).vector)
    base = ["query", str(index.path), "--vector", str(tmp_path / "q.npy"), "--json", "-k", "60"]
    assert run(base) == 0
    plain = json.loads(capsys.readouterr().out)
    assert run([*base, "--bridge", "--explain"]) == 0
    carried = json.loads(capsys.readouterr().out)
    assert plain != carried
    text = json.dumps(carried)
    assert "image 10 cached images" in text
    assert run([*base, "--bridge-cache", str(tmp_path / "nowhere")]) == 3
    assert "nowhere: does not exist. Type: bindsearch cache build" in capsys.readouterr().err
