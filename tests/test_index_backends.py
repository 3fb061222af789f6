"""Every approximate index backend against the exact one: what it finds, and that what it gives is true."""

from __future__ import annotations

import multiprocessing
import shutil
import sys
import threading
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from fake_store import FakeStore
from test_index_formats import write_index

from bindsearch.errors import BindSearchError, InputError, MismatchError, MissingExtraError, UnsupportedError
from bindsearch.index import ivf, ivf_codes, kmeans, refined, small_products, svs
from bindsearch.index.base import no_progress
from bindsearch.index.build import build_index
from bindsearch.index.byte_index import open_codes
from bindsearch.index.list_file import ListLayout
from bindsearch.index.recipe import MARGIN, NO_MARGIN, Recipe
from bindsearch.registry import INDEXES
from bindsearch.search.routes import Choice, search_segment

DIM, ROWS = 64, 6000
FLOORS = {
    "ivf-pq": ({"nprobe": 4, "rerank": 20}, 0.82),
    "ivf-rabitq": ({"nprobe": 4, "rerank": 20}, 0.92),
    "ivf-sq8": ({"nprobe": 4, "rerank": 12}, 0.94),
    "rabitq": ({"rerank": 20}, 0.84),
    "hnsw": ({"efSearch": 10, "rerank": 10}, 0.98),
}
if find_spec("svs") is not None:
    FLOORS["svs"] = ({"window": 10, "rerank": 10}, 0.98)
"""Backend -> settings that look at little, and the overlap_at_10 that they must reach on the data below: what was
measured, rounded down to the next 0.02."""
APPROXIMATE = tuple(FLOORS)


def clustered(seed: int, n: int, d: int = DIM) -> np.ndarray:
    """Rows in 60 clusters of 8 dimensions seen through tanh, with noise in every column and a common mean."""
    law = np.random.default_rng(99)
    centres, layer, mean = law.standard_normal((60, 8)), law.standard_normal((8, d)), 0.3 * law.standard_normal(d)
    rng = np.random.default_rng(seed)
    points = 1.5 * centres[rng.integers(0, 60, n)] + 0.6 * rng.standard_normal((n, 8))
    return (np.tanh(0.4 * points @ layer) + mean + 0.25 * rng.standard_normal((n, d))).astype(np.float32)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(5)
    return rng.choice(2**62, ROWS, replace=False).astype(np.int64), clustered(0, ROWS), clustered(1, 100)


@pytest.fixture(scope="module", params=[(name, dtype) for name in APPROXIMATE for dtype in ("float16", "float32")])
def built(request, data):
    name, dtype = request.param
    ids, rows, queries = data
    return name, INDEXES[name].build(ids, rows, dtype), INDEXES["flat"].build(ids, rows, dtype), queries


def overlap(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.mean([np.isin(e, f).mean() for f, e in zip(found, expected, strict=True)]))


def everything(index) -> dict[str, int]:
    """Settings that leave nothing out."""
    return {name: NO_MARGIN if name.endswith(MARGIN) else ROWS for name in index.settings}


def test_margins_leave_out_what_queries_do_not_need(built, monkeypatch):
    """A margin looks at less, finds little less, and never gives fewer answers than there are."""
    name, index, flat, queries = built
    margins = [each for each in index.settings if each.endswith(MARGIN)]
    if not margins:
        pytest.skip(f"{name} has no margins")
    looked_at = []
    score = refined.score_places
    monkeypatch.setattr(
        refined, "score_places", lambda *given: looked_at.append(int((given[2] >= 0).sum())) or score(*given)
    )
    wide = {"nprobe": 12, "rerank": 300}
    wide = {knob: value for knob, value in wide.items() if knob in index.settings}
    _, truth = flat.search(queries, 10)
    _, uncut = index.search(queries, 10, settings=wide)
    assert np.array_equal(uncut, index.search(queries, 10, settings={**wide, **dict.fromkeys(margins, NO_MARGIN)})[1])
    _, cut = index.search(queries, 10, settings={**wide, **dict.fromkeys(margins, 1400)})
    assert looked_at[-1] < 0.8 * looked_at[0]
    assert overlap(cut, truth) > overlap(uncut, truth) - 0.02
    _, least = index.search(queries, 10, settings={**wide, **dict.fromkeys(margins, 1)})
    assert (least >= 0).all()  # whom a margin leaves too few is asked again without
    mask = np.zeros(ROWS, dtype=bool)
    mask[::400] = True
    _, few = index.search(queries, 10, mask, {**wide, **dict.fromkeys(margins, 1)})
    assert (few >= 0).all()
    chosen = flat.ids[::4]  # lists are not cut where most rows are out: answers lie farther from the query
    _, allowed = flat.search(queries, 10, np.isin(flat.ids, chosen))
    every = {**everything(index), "rerank": 1000, **{each: 1 for each in margins if each.startswith("nprobe")}}
    assert overlap(index.search(queries, 10, np.isin(index.ids, chosen), every)[1], allowed) > 0.99


@pytest.mark.parametrize("name", ["ivf-pq", "ivf-rabitq"])
def test_byte_codes_leave_the_answers_and_spare_rows(tmp_path, monkeypatch, name):
    """Where codes for exact search stand beside, they say which candidates need not be read from the rows."""
    store = FakeStore(n=4000, dim=DIM)
    store.vectors = clustered(3, 4000)
    index = build_index(store, tmp_path / "index", Recipe(name, "float16", byte_codes=True)).snapshot
    (part,) = index.segments
    read = []
    score = refined.score_places
    monkeypatch.setattr(
        refined, "score_places", lambda *given: read.append((given[0].dtype, (given[2] >= 0).sum())) or score(*given)
    )
    queries = clustered(4, 60)
    settings = {"nprobe": 20, "rerank": 400}
    settings = {knob: value for knob, value in settings.items() if knob in part.index.settings}
    scores, ids = index.search(queries, 10, settings=settings)
    assert [dtype for dtype, _ in read] == [np.int8, np.float16]
    assert read[1][1] < 0.6 * read[0][1]
    part.index.codes = None
    plain_scores, plain_ids = index.search(queries, 10, settings=settings)
    assert np.array_equal(ids, plain_ids)
    assert np.array_equal(scores, plain_scores)
    few = np.flatnonzero(np.isin(part.index.ids, store.ids[:7]))
    part.index.codes = open_codes(part.path, part.index)
    mask = np.zeros(4000, dtype=bool)
    mask[few] = True
    assert sorted(index.search(queries[:1], 10, [mask], settings=settings)[1][0]) == sorted(
        [*store.ids[:7], -1, -1, -1]
    )


def asked_at_an_angle(seed: int, n: int) -> np.ndarray:
    """Queries of another modality: beside the rows by one constant vector, as long as a row is."""
    gap = np.random.default_rng(98).standard_normal(DIM)
    rows = clustered(seed, n)
    return (rows + np.linalg.norm(rows, axis=1).mean() * gap / np.linalg.norm(gap)).astype(np.float32)


def test_codes_hold_first_where_queries_come_from_and_where_rows_differ(tmp_path):
    """Directions are orthonormal, the asked ones first, and candidates by code are better for it."""
    store, others = FakeStore(n=4000, dim=DIM), FakeStore(n=200, dim=DIM)
    store.vectors, others.vectors = clustered(3, 4000), asked_at_an_angle(5, 200)
    recipe = Recipe("ivf-pq", "float16", {"nlist": 20})
    queries = asked_at_an_angle(4, 100)
    found = {}
    for name, given in {"plain": (), "asked": (others,)}.items():
        index = build_index(store, tmp_path / name, recipe, queries=given).snapshot
        part = index.segments[0].path
        directions = np.load(part / "rotation.npy") * np.load(part / "rotation_scales.npy")[:, None]
        assert np.allclose(directions @ directions.T, np.eye(DIM), atol=0.02)
        asking = index.asking
        assert (asking is None) == (not given)
        if asking is not None:
            assert np.allclose(np.linalg.norm(asking @ directions[: len(asking)].T, axis=1), 1, atol=0.02)
        _, truth, _ = index.search_exact(queries, 10)
        found[name] = overlap(index.search(queries, 10, settings={"nprobe": 20, "rerank": 40})[1], truth)
    assert found["asked"] > found["plain"] + 0.02, found
    with pytest.raises(MismatchError, match=f"dim {DIM}, .* has dim 16"):
        build_index(store, tmp_path / "other", recipe, queries=(FakeStore(dim=16),))


def unturned(rows, *_):
    """Find directions for rows as they are: every column its own, all worth the same."""
    return np.eye(rows.shape[1], dtype=np.float32), np.ones(rows.shape[1]), 0


def test_codes_of_rotated_rows_find_more_than_codes_of_columns(data, monkeypatch):
    ids, rows, queries = data
    settings = {"nprobe": ROWS, "rerank": 30}
    _, truth = INDEXES["flat"].build(ids, rows).search(queries, 10)
    found = []
    for find in (ivf_codes.find_directions, unturned):
        monkeypatch.setattr(ivf_codes, "find_directions", find)
        index = INDEXES["ivf-pq"].build(ids, rows)
        found.append(overlap(index.search(queries, 10, settings=settings)[1], truth))
    assert found[0] > found[1] + 0.02, found


def test_codes_of_columns_as_they_were_made_before_still_open(data, tmp_path, monkeypatch):
    ids, rows, queries = data
    monkeypatch.setattr(ivf_codes, "find_directions", unturned)
    INDEXES["ivf-pq"].build(ids, rows).save(tmp_path)
    for name in ("rotation.npy", "rotation_scales.npy"):
        (tmp_path / name).unlink()
    book = np.load(tmp_path / "codebook.npy")
    book[:, 16] = np.where(book[:, 16] < 0, -1, book[:, 16] - DIM)
    np.save(tmp_path / "codebook.npy", book)
    _, found = INDEXES["ivf-pq"].open(tmp_path).search(queries, 10, settings={"nprobe": ROWS, "rerank": 600})
    _, truth = INDEXES["flat"].build(ids, rows).search(queries, 10)
    assert overlap(found, truth) > 0.98


def test_a_codebook_without_its_rotation_is_refused(data, tmp_path):
    ids, rows, _ = data
    INDEXES["ivf-pq"].build(ids[:1000], rows[:1000]).save(tmp_path)
    for name in ("rotation.npy", "rotation_scales.npy"):
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match=r"codebook.npy is of columns up to 108, rows have 64 columns"):
        INDEXES["ivf-pq"].open(tmp_path)


def test_a_rotation_of_other_columns_is_refused(data, tmp_path):
    ids, rows, _ = data
    INDEXES["ivf-pq"].build(ids[:1000], rows[:1000]).save(tmp_path)
    np.save(tmp_path / "rotation.npy", np.ones((DIM, DIM - 1), dtype=np.int8))
    with pytest.raises(InputError, match=r"rotation.npy .* shapes \(64, 63\) and \(64,\), rows have 64 columns"):
        INDEXES["ivf-pq"].open(tmp_path)


def test_every_approximate_backend_is_tested_here():
    assert {name for name in INDEXES if not INDEXES[name].exact} == {*APPROXIMATE, "svs"}


def test_svs_says_what_it_needs(monkeypatch, data):
    ids, rows, _ = data
    monkeypatch.setitem(sys.modules, "svs", None)
    with pytest.raises(MissingExtraError, match=r"'svs' needs the package 'scalable-vs'.*bindsearch\[svs\]"):
        INDEXES["svs"].build(ids[:20], rows[:20])
    monkeypatch.setattr(svs, "is_intel", lambda: False)
    with pytest.raises(UnsupportedError, match="LeanVec codes need an Intel processor"):
        INDEXES["svs"].build(ids[:20], rows[:20], build={"leanvec": 32})


def test_it_finds_most_of_the_true_answers(built):
    name, index, flat, queries = built
    settings, floor = FLOORS[name]
    found, truth = index.search(queries, 10, settings=settings), flat.search(queries, 10)
    assert overlap(found[1], truth[1]) >= floor
    # what it misses it misses for want of looking
    assert overlap(index.search(queries, 10, settings=everything(index))[1], truth[1]) == 1.0


def test_the_scores_it_gives_are_the_true_ones(built):
    name, index, flat, queries = built
    scores, ids = index.search(queries, 10, settings=FLOORS[name][0])
    for row in range(0, 100, 9):
        own_scores, own_ids = flat.search(queries[row : row + 1], 10, ids[row])
        np.testing.assert_array_equal(scores[row], own_scores[0])
        np.testing.assert_array_equal(ids[row], own_ids[0])


def test_a_batch_answers_as_its_queries_one_by_one(built):
    name, index, _, queries = built
    scores, ids = index.search(queries, 10, settings=FLOORS[name][0])
    for row in range(0, 100, 11):
        one = index.search(queries[row : row + 1], 10, settings=FLOORS[name][0])
        np.testing.assert_array_equal(one[1][0], ids[row])
        np.testing.assert_array_equal(one[0][0], scores[row])


def test_exact_search_is_exact_over_any_backend(built):
    _, index, flat, queries = built
    scores, ids, report = index.search_exact(queries, 20)
    truth = flat.search(queries, 20)
    np.testing.assert_array_equal(scores, truth[0])
    np.testing.assert_array_equal(ids, truth[1])
    assert report.rows_scanned >= ROWS


@pytest.mark.parametrize("share", [0.002, 0.1, 0.7])
def test_a_selector_lets_no_other_row_through(built, share):
    name, index, flat, queries = built
    allowed = np.random.default_rng(3).random(ROWS) < share
    ids = index.ids[allowed]
    mask = allowed[np.argsort(np.argsort(np.arange(ROWS)))]
    for selector in (ids, mask):
        found = index.search(queries, 10, selector, FLOORS[name][0])
        assert np.isin(found[1][found[1] >= 0], ids).all()
        assert (found[1] >= 0).sum() == queries.shape[0] * min(10, ids.size)
        truth = flat.search(queries, 10, ids)
        # few allowed rows are all scored
        assert overlap(found[1], truth[1]) == 1.0 if ids.size <= 40 else overlap(found[1], truth[1]) >= 0.85


def test_more_answers_than_rows(built):
    name, index, flat, queries = built
    scores, ids = index.search(queries[:2], ROWS + 7, settings=FLOORS[name][0])
    truth = flat.search(queries[:2], ROWS + 7)
    np.testing.assert_array_equal(scores, truth[0])
    np.testing.assert_array_equal(ids, truth[1])
    assert (ids[:, ROWS:] == -1).all()


def test_searching_from_many_threads_gives_the_same(built):
    name, index, _, queries = built
    expected = index.search(queries, 10, settings=FLOORS[name][0])
    wrong = []

    def ask(turn):
        part = slice(turn * 7, turn * 7 + 30)
        for _ in range(4):
            found = index.search(queries[part], 10, settings=FLOORS[name][0])
            if not (np.array_equal(found[1], expected[1][part]) and np.array_equal(found[0], expected[0][part])):
                wrong.append(turn)

    threads = [threading.Thread(target=ask, args=(turn,)) for turn in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.fixture(params=APPROXIMATE)
def backend(request):
    return INDEXES[request.param]


@pytest.mark.parametrize(("n", "d"), [(1, 16), (2, 3), (5, 1), (33, 7), (100, 130)])
def test_few_rows_and_any_number_of_columns(backend, n, d):
    rows = clustered(n, n, d)
    ids = np.arange(n, dtype=np.int64)[::-1] * 3
    index, flat = backend.build(ids, rows, "float16"), INDEXES["flat"].build(ids, rows, "float16")
    queries = clustered(n + 1, 4, d)
    found, truth = index.search(queries, n + 1), flat.search(queries, n + 1)
    np.testing.assert_array_equal(found[0], truth[0])
    np.testing.assert_array_equal(found[1], truth[1])


def test_an_index_without_rows_answers_nothing(backend):
    index = backend.build(np.empty(0, dtype=np.int64), np.empty((0, 8), dtype=np.float32))
    assert (index.search(clustered(1, 2, 8), 3)[1] == -1).all()


def test_the_order_of_rows_does_not_matter(backend, data):
    ids, rows, queries = data
    other = np.random.default_rng(2).permutation(900)
    left = backend.build(ids[:900], rows[:900])
    right = backend.build(ids[:900][other], rows[:900][other])
    answers = [index.search(queries, 10, settings=everything(index)) for index in (left, right)]
    np.testing.assert_array_equal(answers[0][0], answers[1][0])
    np.testing.assert_array_equal(answers[0][1], answers[1][1])


def test_saved_and_opened_it_answers_the_same_and_removed_rows_are_gone(backend, data, tmp_path):
    ids, rows, queries = data
    index = backend.build(ids[:2000], rows[:2000], "float16")
    index.save(tmp_path / "x")
    opened = backend.open(tmp_path / "x")
    for left, right in zip(index.search(queries, 10), opened.search(queries, 10), strict=True):
        np.testing.assert_array_equal(left, right)
    gone = opened.search(queries, 3)[1].ravel()
    assert opened.remove(gone) == np.unique(gone).size
    again = opened.search(queries, 10)[1]
    assert not np.isin(again, gone).any()
    assert (again >= 0).all()
    opened.save(tmp_path / "y")
    assert backend.open(tmp_path / "y").ids.size == 2000 - np.unique(gone).size
    with pytest.raises(UnsupportedError, match="cannot add"):
        opened.add(ids[:1], rows[:1])


@pytest.fixture(scope="module")
def neighbourhoods():
    """5,000 rows in 10 clusters of 500, and queries in the first one."""
    rng = np.random.default_rng(4)
    centres = rng.standard_normal((10, DIM)).astype(np.float32)
    rows = np.repeat(centres, 500, axis=0) + 0.5 * rng.standard_normal((5000, DIM)).astype(np.float32)
    queries = centres[:1] + 0.5 * rng.standard_normal((40, DIM)).astype(np.float32)
    return np.arange(5000, dtype=np.int64), rows, queries


@pytest.mark.parametrize("kept", [0, 3])
def test_where_a_neighbourhood_was_removed_it_answers_as_if_it_had_never_been(backend, neighbourhoods, kept):
    ids, rows, queries = neighbourhoods
    own = FLOORS[backend.name][0]
    index, whole = backend.build(ids, rows), backend.build(ids, rows)
    index.remove(ids[kept:500])
    exact, right, _ = index.search_exact(queries, 10)
    assert (right >= 0).all() and not ((right >= kept) & (right < 500)).any()
    scores, found = index.search(queries, 10, settings=own)
    assert (found >= 0).all() and not np.isin(found, ids[kept:500]).any()
    anew, _ = backend.build(ids[index.alive], rows[index.alive]).search(queries, 10, settings=own)
    segment = SimpleNamespace(index=whole, entry=SimpleNamespace(name="0", rows=5000, removed=0))
    filtered, _, _ = search_segment(segment, queries, 10, index.alive, Choice("mask", ""), {**backend.settings, **own})
    reached = [(each >= exact[:, 9:]).mean() for each in (scores, anew, filtered)]
    assert reached[0] >= min(reached[1:]) - 0.05, reached
    assert reached[2] >= 0.85, reached


def test_many_answers_are_given_where_most_rows_were_removed(backend, neighbourhoods):
    ids, rows, queries = neighbourhoods
    index = backend.build(ids, rows)
    index.remove(ids[:4700])
    for k in (100, 300):
        assert (index.search(queries, k, settings=dict.fromkeys(backend.settings, 1))[1] >= 0).all()


def test_few_removed_rows_cost_no_second_search(backend, neighbourhoods, monkeypatch):
    ids, rows, queries = neighbourhoods
    index = backend.build(ids, rows)
    index.remove(ids[::20])
    asked = []
    proposed = type(index)._proposed
    monkeypatch.setattr(type(index), "_proposed", lambda *given: asked.append(len(given[1])) or proposed(*given))
    assert (index.search(queries, 10)[1] >= 0).all()
    assert sum(asked) == len(queries)  # each of them once


def test_a_recipes_number_that_the_backend_does_not_have_is_refused(backend, data):
    ids, rows, _ = data
    with pytest.raises(InputError, match=f"'{backend.name}' has .*got 'wings'"):
        backend.build(ids[:50], rows[:50], build={"wings": 2})
    for name in backend.build_numbers:
        with pytest.raises(InputError, match=f"{name} of '{backend.name}' expected a whole number"):
            backend.build(ids[:50], rows[:50], build={name: -1})


def test_a_segment_of_it_verifies_and_keeps_items_and_rows_together(backend, tmp_path):
    store = FakeStore(n=400, dim=32)
    snapshot = write_index(tmp_path / "index", store, Recipe(backend.name, row_dtype="float16"))
    assert snapshot.manifest.format_version == 3
    assert snapshot.verify()["status"] == "ok"
    _, ids = snapshot.search(store.vectors, 1, settings=dict.fromkeys(backend.settings, 400))
    np.testing.assert_array_equal(ids[:, 0], store.ids)
    keys = snapshot.table(ids[:, 0], ["key"])["key"].to_pylist()
    assert keys == store.table["key"].to_pylist()


def _ask(folder, name, queries, out):
    out.put(INDEXES[name].open(folder).search(queries, 5))


def test_a_spawned_process_opens_the_same_files(backend, data, tmp_path):
    ids, rows, queries = data
    index = backend.build(ids[:500], rows[:500])
    index.save(tmp_path / "x")
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    process = context.Process(target=_ask, args=(tmp_path / "x", backend.name, queries[:5], out))
    process.start()
    found = out.get(timeout=120)
    process.join()
    for left, right in zip(found, index.search(queries[:5], 5), strict=True):
        np.testing.assert_array_equal(left, right)


# ---- files that are not as they were written -------------------------------------------------------------------------


def test_a_truncated_file_is_refused(backend, data, tmp_path):
    ids, rows, _ = data
    backend.build(ids[:300], rows[:300]).save(tmp_path)
    own = [path for path in sorted(tmp_path.iterdir()) if path.name not in ("ids.npy", "order.npy", "table_rows.npy")]
    assert len(own) >= 2
    for path in own:
        whole = path.read_bytes()
        path.write_bytes(whole[:-32])
        with pytest.raises(InputError, match=path.name):
            backend.open(tmp_path)
        path.write_bytes(whole)
    assert backend.open(tmp_path).ids.size == 300


@pytest.mark.parametrize(("name", "file"), [("ivf-pq", "lists.bin"), ("rabitq", "lists.bin"), ("hnsw", "hnsw.faiss")])
def test_altered_bytes_of_a_large_file_are_refused_or_answered_never_followed(data, tmp_path, name, file):
    """Only verifying reads every byte; a search may answer wrongly before, but not read where nothing is."""
    ids, rows, queries = data
    INDEXES[name].build(ids[:1000], rows[:1000], "float16").save(tmp_path)
    whole = (tmp_path / file).read_bytes()
    rng = np.random.default_rng(6)
    refused = 0
    for turn in range(40):
        altered = bytearray(whole)
        for at in rng.integers(0, len(whole), 1 + turn * 4):
            altered[at] = int(rng.integers(0, 256))
        (tmp_path / file).write_bytes(altered)
        try:
            _, found = INDEXES[name].open(tmp_path).search(queries[:20], 10, settings={"rerank": 30})
            assert np.isin(found[found >= 0], ids[:1000]).all()
        except BindSearchError:
            refused += 1
    assert refused


def test_lists_that_do_not_add_up_are_refused(data, tmp_path):
    ids, rows, _ = data
    INDEXES["ivf-pq"].build(ids[:300], rows[:300]).save(tmp_path)
    sizes = np.load(tmp_path / "list_sizes.npy")
    for wrong in (sizes[:-1], sizes + 1, -sizes):
        np.save(tmp_path / "list_sizes.npy", wrong)
        with pytest.raises(InputError, match=r"centroids of shape .* expected"):
            INDEXES["ivf-pq"].open(tmp_path)
    sizes[[0, 1]] += [64, -64]
    np.save(tmp_path / "list_sizes.npy", np.abs(sizes))
    with pytest.raises(InputError):
        INDEXES["ivf-pq"].open(tmp_path)


# ---- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ivf-pq", "ivf-rabitq", "ivf-sq8", "rabitq"])
def test_lists_written_in_pieces_are_the_same_bytes(monkeypatch, data, tmp_path, name):
    ids, rows, _ = data
    build = {"nlist": 3} if "nlist" in INDEXES[name].build_numbers else {}
    INDEXES[name].build(ids[:1000], rows[:1000], build=build).save(tmp_path / "whole")
    monkeypatch.setattr(ivf, "_BLOCK_ROWS", 64)
    INDEXES[name].build(ids[:1000], rows[:1000], build=build).save(tmp_path / "pieces")
    for file in ("lists.bin", "ids.npy", "vectors.npy", "list_sizes.npy"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "pieces" / file).read_bytes(), file


def test_list_layout_fills_lists_up_to_whole_blocks():
    layout = ListLayout(np.array([0, 1, 32, 33]), code_bytes=10, block_rows=32)
    assert layout.capacities.tolist() == [0, 32, 32, 64]
    assert layout.starts.tolist() == [0, 0, 1, 33]
    assert layout.total_bytes == 128 * 18


def test_threads_do_not_change_the_lists(monkeypatch, data):
    _, rows, _ = data
    units = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(small_products, "thread_count", lambda threads=threads: threads)
        monkeypatch.setattr(kmeans, "_BLOCK_ROWS", 512)
        centroids = kmeans.train_centroids(units, 40, 30, 4, no_progress)
        found.append((centroids, kmeans.assign(units, centroids, no_progress)))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])
    np.testing.assert_allclose(np.linalg.norm(found[0][0], axis=1), 1, atol=1e-6)
    # nearest in int8 is nearest in float32, or nearly so
    exact = units.astype(np.float32) @ found[0][0].T
    lost = exact.max(axis=1) - exact[np.arange(ROWS), found[0][1]]
    assert lost.max() < 0.02
    assert lost.mean() < 5e-4


def test_kmeans_leaves_no_list_empty_while_rows_differ(data):
    _, rows, _ = data
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    centroids = kmeans.train_centroids(units, 200, 48, 8, no_progress)
    sizes = np.bincount(kmeans.assign(units, centroids, no_progress), minlength=200)
    assert np.count_nonzero(sizes) >= 198
    # equal rows: one list gets them all, nothing breaks
    same = np.repeat(units[:1], 50, axis=0)
    centroids = kmeans.train_centroids(same, 5, 48, 3, no_progress)
    assert np.isfinite(centroids).all()


def test_scores_of_places_are_near_the_exact_ones(data):
    _, rows, queries = data
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    asked = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    places = np.sort(np.random.default_rng(0).integers(-9, ROWS, (100, 37)).clip(-1), axis=1)
    for dtype, bound in (("float32", 1e-6), ("float16", 2.0**-11)):
        stored = units.astype(dtype)
        exact = np.einsum("qd,qmd->qm", asked.astype(np.float64), stored.astype(np.float64)[np.maximum(places, 0)])
        found = small_products.score_places(stored, asked, places)
        assert np.isneginf(found[places < 0]).all()
        assert np.abs(found - exact)[places >= 0].max() < bound


def test_default_lists_grow_with_the_root():
    assert [kmeans.default_lists(n) for n in (1, 3, 4, 100, 10_000, 100_000, 1_000_000, 3_000_000)] == [
        *(1, 1, 1, 25, 512, 1024, 4096, 8192)
    ]


def test_the_files_stay_small_beside_the_rows(tmp_path, data):
    """A code is half a byte for every four columns; 8 bytes of position; lists are filled up to 32 rows."""
    ids, rows, _ = data
    INDEXES["ivf-pq"].build(ids, rows, "float16", {"nlist": 16}).save(tmp_path)
    lists = (tmp_path / "lists.bin").stat().st_size
    assert ROWS * (DIM / 8 + 8) <= lists <= (ROWS + 16 * 32) * (DIM / 8 + 8)
    assert (tmp_path / "vectors.npy").stat().st_size == 128 + ROWS * DIM * 2
    shutil.rmtree(tmp_path)
