"""The visual cache: the reference's figures, batches, and what is refused."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from fake_store import FakeStore
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import bindsearch
from bindsearch.cache import VisualCache, blend, mix
from bindsearch.cache.rows import BackendRows
from bindsearch.cache.visual import mix_raw_parts
from bindsearch.errors import InputError, MismatchError, MissingInputError, ShapeError
from bindsearch.index.build import build_index
from bindsearch.index.identity import Identity
from bindsearch.query import Embedding
from bindsearch.registry import INDEXES
from bindsearch.search import open_index

GOLDEN = Path(__file__).parent / "golden" / "imagebind_llm"
META = json.loads((GOLDEN / "meta.json").read_text(encoding="utf-8"))
TOLERANCE = 5e-6


@pytest.fixture(scope="module")
def grid():
    return load_file(GOLDEN / "cache_grid.safetensors")


@pytest.fixture(scope="module")
def cache(grid):
    return VisualCache.of_vectors(grid["index_vectors"])


@pytest.fixture(scope="module")
def mixtures():
    return load_file(GOLDEN / "cache_multimodal.safetensors")


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def cells(grid):
    for a, k in enumerate(grid["ks"].tolist()):
        for b, t in enumerate(grid["temperatures"].tolist()):
            for c, w in enumerate(grid["weights"].tolist()):
                yield (k, t, w), grid["enhanced"][a, b, c]


# ---- the reference's figures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [name for name in INDEXES.names() if INDEXES[name].exact])
def test_the_whole_grid(grid, backend):
    cache = VisualCache.of_vectors(grid["index_vectors"], backend)
    mixed = mix([grid["queries"]], [1.0])
    np.testing.assert_allclose(mixed, grid["no_cache"], atol=TOLERANCE, rtol=0)
    compared = 0
    for (k, t, w), expected in cells(grid):
        found = cache.enhance(mixed, k, t, w)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0, err_msg=f"k {k}, t {t}, w {w}")
        compared += expected.shape[0]
    assert compared == 4 * 4 * 4 * 8


def test_neighbours_are_the_references(grid, cache):
    found = cache.retrieve(grid["queries"], cache_size=500)
    clear = np.abs(np.diff(grid["topk_sims"], axis=1)) > 1e-6
    clear = np.concatenate([clear[:, :1], clear[:, 1:] & clear[:, :-1], clear[:, -1:]], axis=1)
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(found.ids[clear], grid["topk_ids"][clear])
    np.testing.assert_allclose(found.weights.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("number", range(len(META["cache_multimodal_cases"])))
def test_mixtures(mixtures, cache, number):
    parts = META["cache_multimodal_cases"][number]["parts"]
    mixed = mix([mixtures["inputs"][[row]] for _, row, _ in parts], [weight for _, _, weight in parts])
    for name, found in (
        ("no_cache", mixed),
        ("cache", cache.enhance(mixed)),
        ("cache_w.8", cache.enhance(mixed, 5, 40, 0.8)),  # k and t found by search: they are written nowhere
    ):
        np.testing.assert_allclose(found[0], mixtures[f"{number}.{name}"], atol=TOLERANCE, rtol=0, err_msg=name)
    norms = META["cache_multimodal_norms"][number]
    assert float(np.linalg.norm(mixed)) == pytest.approx(norms[0], abs=2e-6)


@pytest.mark.parametrize("number", range(len(META["image_generate_cases"])))
def test_image_output(mixtures, cache, number):
    expected = load_file(GOLDEN / "image_generate_embeds.safetensors")
    names = {"Image": "image", "Point": "points"}
    parts = {
        names[label]: (mixtures["inputs"][[row]], float(weight))
        for label, (row, weight) in META["image_generate_cases"][number].items()
    }
    for name, found in (("raw", mix_raw_parts(parts)), ("cache", cache.enhance_raw(parts))):
        wanted = expected[f"{number}.{name}"].reshape(1, -1)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


# ---- wrong variants must fail the figures ----------------------------------------------------------------------------


def wrong_enhance(rows, f, k, t, w, *, soft=True, unit_found=True, unit_out=True, order=-1, broadcast=False):
    """The formula with one step of it wrong."""
    products = f @ rows.T
    ids = np.argsort(order * products, axis=1, kind="stable")[:, :k]
    near = np.take_along_axis(products, ids, axis=1)
    a = np.exp(t * (near - near.max(axis=1, keepdims=True))) if soft else np.ones_like(near)
    a /= a.sum(axis=1, keepdims=True)
    r = np.einsum("qk,qkd->qd", a, rows[ids])
    if broadcast:  # (B, k) @ (B, k, d): what the reference does with a batch, its first row for all
        r = np.broadcast_to(np.einsum("qk,kd->qd", a, rows[ids[0]]), r.shape)
    r = unit(r) if unit_found else r
    y = (1 - w) * f + w * r
    return unit(y) if unit_out else y


@pytest.mark.parametrize(
    "wrong",
    [
        {"soft": False},
        {"unit_found": False},
        {"unit_out": False},
        {"order": 1},
        {"broadcast": True},
        {"swapped": True},
        {"divided": True},
    ],
    ids=str,
)
def test_wrong_variants_miss_the_figures(grid, wrong):
    rows, f = grid["index_vectors"].astype(np.float64), grid["no_cache"].astype(np.float64)
    right, worst = 0.0, 0.0
    for (k, t, w), expected in cells(grid):
        settings_ = (k, t, w)
        options = dict(wrong)
        if options.pop("swapped", False):
            settings_ = (k, t, 1 - w)
        if options.pop("divided", False):
            settings_ = (k, 1 / t if t else 0, w)
        right = max(right, float(np.abs(wrong_enhance(rows, f, k, t, w) - expected).max()))
        worst = max(worst, float(np.abs(wrong_enhance(rows, f, *settings_, **options) - expected).max()))
    assert right <= TOLERANCE
    assert worst > 100 * TOLERANCE


def test_a_normalised_mixture_misses_the_figures(mixtures, cache):
    worst = 0.0
    for number, case in enumerate(META["cache_multimodal_cases"]):
        mixed = mix([mixtures["inputs"][[row]] for _, row, _ in case["parts"]], [w for _, _, w in case["parts"]])
        worst = max(worst, float(np.abs(cache.enhance(unit(mixed)) - mixtures[f"{number}.cache"]).max()))
    assert worst == pytest.approx(0.098, abs=0.005)


def test_points_that_are_not_divided_miss_the_figures(mixtures):
    expected = load_file(GOLDEN / "image_generate_embeds.safetensors")["2.raw"]
    parts = META["image_generate_cases"][2]
    rows = [mixtures["inputs"][[row]] for row, _ in parts.values()]
    assert np.abs(blend.mix_raw(rows, [weight for _, weight in parts.values()]) - expected).max() > 0.05


# ---- properties ------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 60),
    batch=st.integers(1, 9),
    dim=st.integers(2, 40),
    t=st.floats(0, 200),
    w=st.floats(0, 1),
    data=st.data(),
)
def test_rows_of_a_batch_do_not_see_each_other(seed, n, batch, dim, t, w, data):
    rng = np.random.default_rng(seed)
    cache = VisualCache.of_vectors(rng.standard_normal((n, dim)).astype(np.float32), "flat")
    queries = rng.standard_normal((batch, dim)).astype(np.float32)
    k = data.draw(st.integers(1, n))
    together = cache.enhance(queries, k, t, w)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    singles = np.concatenate([cache.enhance(queries[row : row + 1], k, t, w) for row in range(batch)])
    np.testing.assert_allclose(together, singles, atol=1e-6)
    order = rng.permutation(batch)
    np.testing.assert_allclose(cache.enhance(queries[order], k, t, w), together[order], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3), k=st.integers(1, 20))
def test_weight_0_gives_the_unit_input_and_weight_1_what_was_found(seed, scale, k):
    rng = np.random.default_rng(seed)
    cache = VisualCache.of_vectors(rng.standard_normal((20, 24)).astype(np.float32), "flat")
    queries = (rng.standard_normal((3, 24)) * scale).astype(np.float32)
    np.testing.assert_allclose(cache.enhance(queries, k, weight=0), unit(queries), atol=2e-7)
    np.testing.assert_allclose(cache.enhance(queries, k, weight=1), cache.retrieve(queries, k).features, atol=2e-7)


def test_a_large_batch_in_blocks_is_the_same(grid, monkeypatch):
    cache = VisualCache.of_vectors(grid["index_vectors"])
    queries = np.random.default_rng(3).standard_normal((70, 64)).astype(np.float32)
    whole = cache.enhance(queries, 50)
    monkeypatch.setattr("bindsearch.cache.visual._BLOCK_BYTES", 8 * 50 * 64 * 7)
    np.testing.assert_allclose(cache.enhance(queries, 50), whole, atol=1e-6)
    assert cache.enhance(queries[:0], 50).shape == (0, 64)
    assert cache.retrieve(queries[:0], 50).ids.shape == (0, 50)


def test_tensors_come_back_as_tensors(grid, cache):
    torch = pytest.importorskip("torch")
    plain = cache.enhance(grid["no_cache"])
    wide = torch.tensor(grid["no_cache"], requires_grad=True)
    np.testing.assert_array_equal(cache.enhance(wide).numpy(), plain)
    half = torch.tensor(grid["no_cache"]).bfloat16()
    moved = cache.enhance(half)
    assert moved.dtype == torch.float32
    np.testing.assert_allclose(moved.numpy(), plain, atol=0.02)
    np.testing.assert_array_equal(moved.numpy(), cache.enhance(half.float().numpy()))  # what comes out is not rounded
    with pytest.raises(ShapeError, match=r"expected floats, got torch\.int64"):
        cache.enhance(torch.ones(2, grid["no_cache"].shape[1], dtype=torch.int64))
    given_before = grid["no_cache"].copy()
    cache.enhance(grid["no_cache"])
    np.testing.assert_array_equal(grid["no_cache"], given_before)


class Sparse(BackendRows):
    """Finds only the first three of k, as an index that probes few lists does."""

    def search(self, queries, k, settings=None, exact=False):
        scores, ids = super().search(queries, k, settings, exact)
        scores[:, 3:], ids[:, 3:] = -np.inf, -1
        return scores, ids


def test_missing_hits_add_nothing(grid):
    backend = INDEXES["flat"].build(np.arange(500, dtype=np.int64) + 7, grid["index_vectors"])
    few, all_ = VisualCache(Sparse(backend)), VisualCache(BackendRows(backend))
    queries = grid["no_cache"]
    np.testing.assert_allclose(few.enhance(queries, 10), all_.enhance(queries, 3), atol=1e-6)
    found = few.retrieve(queries, 10)
    assert (found.ids[:, 3:] == -1).all()
    assert (found.weights[:, 3:] == 0).all()


APPROXIMATE = [name for name in INDEXES.names() if not INDEXES[name].exact and (name != "svs" or find_spec("svs"))]


@pytest.mark.parametrize("backend", APPROXIMATE)
def test_values_are_stored_rows_whatever_searches(backend):
    """An approximate backend may find others, but what it finds is blended from whole rows by true products."""
    rng = np.random.default_rng(5)
    rows = unit(rng.standard_normal((30, 32))[rng.integers(0, 30, 3000)] + 0.6 * rng.standard_normal((3000, 32)))
    rows = rows.astype(np.float32)
    queries = (0.7 * unit(rows[:40] + 0.3 * rng.standard_normal((40, 32)))).astype(np.float32)
    cache, exact = VisualCache.of_vectors(rows, backend), VisualCache.of_vectors(rows)
    found = cache.retrieve(queries, 10)
    same = np.mean([np.isin(a, b).mean() for a, b in zip(found.ids, exact.retrieve(queries, 10).ids, strict=True)])
    assert same > 0.8
    wide = exact.rows.rows(np.arange(3000)).astype(np.float64)
    moved = cache.enhance(queries, 10)
    for row, query in enumerate(queries.astype(np.float64)):
        ids = found.ids[row][found.ids[row] >= 0]
        a = np.exp(20 * (wide[ids] @ query))
        y = unit(0.5 * query + 0.5 * unit((a / a.sum()) @ wide[ids]))
        np.testing.assert_allclose(moved[row], y, atol=1e-6)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("queries", "options", "error", "words"),
    [
        (np.full((2, 64), np.nan, np.float32), {}, InputError, "row 0 has the norm nan"),
        (np.full((2, 64), np.inf, np.float32), {}, InputError, "row 0 has the norm inf"),
        (np.eye(3, 64, dtype=np.float32) - np.eye(1, 64, dtype=np.float32), {}, InputError, "norm 0.0"),
        (np.ones((2, 32), np.float32), {}, ShapeError, r"\(any, 64\), got \(2, 32\)"),
        (np.ones(64, np.float32), {}, ShapeError, r"got \(64,\)"),
        (np.ones((2, 64), np.int64), {}, ShapeError, "expected floats, got int64"),
        (np.ones((1, 64), np.float32), {"cache_size": 501}, InputError, "1 to 500, as many images as cache holds"),
        (np.ones((1, 64), np.float32), {"cache_size": 0}, InputError, "1 to 500"),
        (np.ones((1, 64), np.float32), {"weight": 1.01}, InputError, "weight: expected a number from 0 to 1"),
        (np.ones((1, 64), np.float32), {"weight": float("nan")}, InputError, "weight"),
        (np.ones((1, 64), np.float32), {"inverse_temperature": -1}, InputError, "inverse_temperature"),
        (np.ones((1, 64), np.float32), {"inverse_temperature": float("inf")}, InputError, "inverse_temperature"),
    ],
)
def test_bad_calls_are_refused_by_name(cache, queries, options, error, words):
    with pytest.raises(error, match=words):
        cache.enhance(queries, **options)


def test_a_query_that_cancels_out_is_refused():
    cache = VisualCache.of_vectors(np.eye(2, 4, dtype=np.float32))
    half = np.sqrt(0.5)
    queries = np.array([[1, 0, 0, 0], [-half, -half, 0, 0]], np.float32)  # at t = 0 both rows weigh the same
    with pytest.raises(InputError, match="query 1 cancel out"):
        cache.enhance(queries, 2, 0.0)


@pytest.mark.parametrize(
    ("weights", "words"),
    [([0, 0], "not all 0"), ([1, -1], "from 0 on"), ([1, float("nan")], "finite"), ([1], "one weight a part")],
)
def test_bad_mixtures_are_refused(weights, words):
    parts = [np.ones((1, 4), np.float32), np.ones((1, 4), np.float32)]
    with pytest.raises(InputError, match=words):
        mix(parts, weights)


def test_parts_of_different_shapes_are_refused():
    with pytest.raises(ShapeError, match="parts of shapes"):
        mix([np.ones((1, 4), np.float32), np.ones((2, 4), np.float32)], [1, 1])


# ---- over an index on disk -------------------------------------------------------------------------------------------


@pytest.fixture
def mixed_index(tmp_path):
    build_index(FakeStore(60, 16), tmp_path / "index")
    return tmp_path / "index"


def test_only_images_of_a_mixed_index_are_cached(mixed_index):
    index = open_index(mixed_index)
    cache = bindsearch.VisualCache.open(mixed_index)
    assert len(cache) == 20
    queries = FakeStore(60, 16).vectors[:6]
    found = cache.retrieve(queries, cache_size=20)
    kinds = index.items(found.ids.ravel().tolist(), ["modality"])["modality"].to_pylist()
    assert set(kinds) == {"image"}
    alone = VisualCache.of_vectors(FakeStore(60, 16).units[::3])
    np.testing.assert_allclose(cache.enhance(queries, 5), alone.enhance(queries, 5), atol=1e-6)
    assert len(VisualCache.open(mixed_index, modality=None)) == 60
    assert "20 images" in repr(cache)


def test_all_neighbours_of_a_batch_are_looked_up_at_once(mixed_index, monkeypatch):
    """Each row of the batch read all columns of its neighbours' groups anew."""
    cache = VisualCache.open(mixed_index)
    snapshot, read = cache.index.folder.snapshot, []
    table = type(snapshot).table
    monkeypatch.setattr(type(snapshot), "table", lambda *asked: read.append(asked[2]) or table(*asked))
    queries = np.random.default_rng(1).standard_normal((7, cache.rows.dim)).astype(np.float32)
    shown = cache.explain(queries, 3)
    assert len(read) == 1 and "caption" not in read[0] and "key" in read[0]
    monkeypatch.undo()
    found = cache.retrieve(queries, 3)
    for row, one in enumerate(shown):
        assert [each["id"] for each in one["neighbours"]] == [str(each) for each in found.ids[row].tolist()]
        items = cache.index.items(found.ids[row].tolist()).to_pylist()
        assert [each["key"] for each in one["neighbours"]] == [each["key"] for each in items]
        assert [each["size"] for each in one["neighbours"]] == [each["size"] for each in items]
        assert all(each["sha256"] is None for each in one["neighbours"])  # the table lacks that column
    assert cache.explain(queries[:0], 3) == []


def test_removed_images_are_cached_no_more(mixed_index):
    store = FakeStore(60, 16)
    index = open_index(mixed_index)
    before = VisualCache.open(mixed_index).retrieve(store.vectors[:1], 1)
    assert before.ids[0, 0] == store.ids[0]
    index.remove([int(store.ids[0])])
    after = VisualCache.open(mixed_index)
    assert len(after) == 19
    assert after.retrieve(store.vectors[:1], 19).ids[0].tolist().count(int(store.ids[0])) == 0


def test_a_cache_of_another_space_is_refused(mixed_index):
    cache = VisualCache.open(mixed_index)
    vector = np.ones((1, 16), np.float32)
    alien = Embedding.of_vector(vector, "a sound", Identity("other@123456789abc", {}, {}), "audio")
    with pytest.raises(MismatchError, match=r"toy@0123456789ab.*other@123456789abc"):
        cache.enhance(alien)
    known = Embedding.of_vector(vector, "a sound", Identity("toy@0123456789ab", {}, {}), "audio")
    np.testing.assert_array_equal(cache.enhance(known), cache.enhance(known.vector))


def test_empty_and_centred_caches_are_refused(tmp_path):
    store = FakeStore(60, 16)
    index = build_index(store, tmp_path / "centred", centre=True)
    with pytest.raises(MismatchError, match="its rows are centred:"):
        VisualCache.open(tmp_path / "centred")
    build_index(FakeStore(20, 16, modalities=("audio",)), tmp_path / "sounds")
    with pytest.raises(MissingInputError, match="holds 20 audio, no image"):
        VisualCache.open(tmp_path / "sounds")
    build_index(FakeStore(20, 16, modalities=("image",)), tmp_path / "bare")
    bare = open_index(tmp_path / "bare")
    bare.remove(FakeStore(20, 16).ids.tolist())
    with pytest.raises(MissingInputError, match="is empty"):
        VisualCache.open(tmp_path / "bare")
    with pytest.raises(MissingInputError, match="is empty"):
        VisualCache.of_vectors(np.empty((0, 8), np.float32))
    assert index.count == 60
