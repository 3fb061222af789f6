"""Exact search that reads less than the rows: bounds that hold, answers that are the flat index's, bit for bit."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from fake_store import FakeStore
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bindsearch.errors import InputError, MismatchError, UnsupportedError
from bindsearch.index import base, byte_scan, device
from bindsearch.index.build import build_index
from bindsearch.index.byte_codes import ByteCodes
from bindsearch.index.byte_index import BytesIndex
from bindsearch.index.byte_scan import Best, ByteScan
from bindsearch.index.byte_table import BLOCK_ROWS, Multiplier, greatest, pack
from bindsearch.index.device import DeviceIndex, FaissGpu, check_device
from bindsearch.index.flat import FlatIndex
from bindsearch.index.heldout import query_means
from bindsearch.index.merge import merge_indexes
from bindsearch.index.recipe import Recipe
from bindsearch.index.snapshot import Snapshot
from bindsearch.index.split import parts_by_count, split_index

KINDS = ("normal", "clustered", "duplicates", "near ties", "spikes", "constant", "sparse", "one direction")


def draw_rows(kind: str, n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """Rows that make life hard for codes, each in its own way: (n, d) float32, none zero."""
    rows = rng.standard_normal((n, d))
    if kind == "clustered":
        rows = rng.standard_normal((max(1, n // 50), d))[rng.integers(0, max(1, n // 50), n)] + 0.2 * rows
    elif kind == "duplicates":
        rows = rows[rng.integers(0, max(1, n // 20), n)]
    elif kind == "near ties":
        rows = rows[:1] + 1e-7 * rows
    elif kind == "spikes":
        rows[rng.random(n) < 0.3, rng.integers(0, d)] = 1e4
    elif kind == "constant":
        rows = np.ones((n, d)) * rng.choice([-1.0, 1.0, 3.0], (n, 1))
    elif kind == "sparse":
        rows = np.where(rng.random((n, d)) < 2 / d, rows, 0)
        rows[:, 0] += (rows == 0).all(axis=1)
    elif kind == "one direction":
        rows = rows[:1] + 0.01 * rows
    return rows.astype(np.float32)


def draw_queries(rows: np.ndarray, q: int, rng: np.random.Generator) -> np.ndarray:
    """Rows, rows turned about, rows with noise, and strangers."""
    asked = rows[rng.integers(0, rows.shape[0], q)].copy()
    asked[1::4] *= -1
    asked[2::4] += rng.standard_normal(asked[2::4].shape).astype(np.float32)
    asked[3::4] = rng.standard_normal(asked[3::4].shape)
    return asked


def unit(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def make_ids(n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(10 * n)[:n].astype(np.int64)


def assert_same(found, expected):
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def answer(codes: ByteCodes, index: FlatIndex, queries: np.ndarray, k: int, threads: int = 1, mask=None):
    """Search by codes with no more than k rows to give: scores, ids, and how many rows were read in full."""
    best = Best(unit(queries), k, index.ids, index._exact_scores)
    ByteScan(codes, best, mask, threads).run()
    return best.scores, index.ids[best.rows], best.touched


# ---- products --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 700), d=st.integers(1, 1100), q=st.integers(1, 130))
def test_products_of_codes_are_exact(seed, n, d, q):
    rng = np.random.default_rng(seed)
    rows, queries = (rng.integers(-127, 128, (count, d), dtype=np.int8) for count in (n, q))
    rows[0] = 127
    queries[0] = 127
    products = Multiplier().multiply(rows, pack(queries), q)
    assert products.dtype == np.int32
    np.testing.assert_array_equal(products, rows.astype(np.int64) @ queries.astype(np.int64).T)
    whole = n // 32 * 32
    if whole:
        expected = products[:whole].reshape(-1, 32, q).max(axis=1)
        np.testing.assert_array_equal(greatest(products[:whole].copy(), 32), expected)


# ---- bounds ----------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10**6),
    n=st.integers(1, 1200),
    d=st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 257])),
    half=st.booleans(),
    width=st.integers(1, 40),
)
@example(kind="spikes", seed=1, n=600, d=1100, half=True, width=128)
@example(kind="clustered", seed=2, n=600, d=1024, half=False, width=128)
def test_no_score_exceeds_its_bound(tmp_path_factory, kind, seed, n, d, half, width):
    rng = np.random.default_rng(seed)
    rows = unit(draw_rows(kind, n, d, rng)).astype(np.float16 if half else np.float32)
    units = unit(draw_queries(rows.astype(np.float32), 6, rng))
    asking = units[:2].astype(np.float32) if width > 3 and d > 3 else None
    codes = ByteCodes.build(tmp_path_factory.mktemp("codes"), rows, min(width, d), asking)
    truth = units.astype(np.longdouble) @ rows.astype(np.longdouble).T
    places, which = (each.ravel() for each in np.meshgrid(np.arange(n), np.arange(6)))
    assert codes.heads is not None
    for table, asked in ((codes.full, codes.ask(units)), (codes.heads, codes.ask_heads(units))):
        products = Multiplier().multiply(table.codes, asked.packed, 6)
        bounds = table.bounds(asked, places, which, products[places, which]).reshape(6, n)
        assert (bounds - truth >= -1e-13).all()
        # a row that reaches a bar reaches the floor of its block, at whatever bar
        bars = np.quantile(bounds, rng.random(), axis=1)
        floors = np.repeat(table.floors(asked, bars, 0, table.blocks), BLOCK_ROWS, axis=0)[:n].T
        assert (products.T[bounds >= bars[:, None]] >= floors[bounds >= bars[:, None]]).all()


def test_bounds_are_near_the_scores(tmp_path):
    """A bound of 1 would be true as well: at 1024 columns all codes are within 0.03, heads of all directions 0.06."""
    rng = np.random.default_rng(5)
    rows = unit(draw_rows("clustered", 2000, 1024, rng)).astype(np.float32)
    units = unit(draw_queries(rows, 8, rng))
    codes = ByteCodes.build(tmp_path, rows, 64)
    truth = units @ rows.astype(np.float64).T
    which, places = (each.ravel() for each in np.meshgrid(np.arange(8), np.arange(2000), indexing="ij"))
    asked = codes.ask(units)
    products = Multiplier().multiply(codes.full.codes, asked.packed, 8)
    bounds = codes.full.bounds(asked, places, which, products[places, which])
    assert (bounds - truth.ravel()).max() < 0.03
    asked = codes.ask_heads(units[:1])
    assert codes.heads is not None
    products = Multiplier().multiply(codes.heads.codes, asked.packed, 1)
    bounds = codes.heads.bounds(asked, np.arange(2000), np.zeros(2000, dtype=np.int64), products[:, 0])
    rest = asked.weights[0, 0] * codes.heads.slacks[:, 0]
    assert (bounds - truth[0] - 2 * rest).max() < 0.06


# ---- answers ---------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10**6),
    n=st.integers(1, 3000),
    d=st.one_of(st.integers(1, 70), st.sampled_from([127, 255])),
    q=st.sampled_from([1, 3, 9, 70]),
    k=st.integers(1, 60),
    half=st.booleans(),
    width=st.integers(0, 20),
    share=st.sampled_from([None, 0.0, 0.02, 0.9]),
    threads=st.sampled_from([1, 2]),
)
@example(kind="near ties", seed=3, n=1500, d=1100, q=9, k=20, half=True, width=20, share=None, threads=2)
def test_answers_are_those_of_the_flat_index(tmp_path_factory, kind, seed, n, d, q, k, half, width, share, threads):
    rng = np.random.default_rng(seed)
    ids, rows = make_ids(n, rng), draw_rows(kind, n, d, rng)
    flat = FlatIndex.build(ids, rows, "float16" if half else "float32")
    queries = draw_queries(rows, q, rng)
    codes = ByteCodes.build(tmp_path_factory.mktemp("codes"), flat._rows, min(width, d))
    mask = None if share is None else rng.random(n) < share
    allowed = n if mask is None else int(mask.sum())
    if not allowed:
        return
    expected = flat.search(queries, min(k, allowed), mask)
    with pytest.MonkeyPatch.context() as patch:
        # small rounds, so that bars rise while rows are still coming
        patch.setattr(byte_scan, "_ROUND_PAIRS", 1 << 14)
        patch.setattr(byte_scan, "_THREAD_PAIRS", 0)
        found = answer(codes, flat, queries, min(k, allowed), threads, mask)
    assert_same(found, expected)


@pytest.mark.parametrize("q", [1, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_not_read_cannot_belong_into_the_answer(tmp_path, kind, q):
    rng = np.random.default_rng(11)
    ids, rows = make_ids(2000, rng), draw_rows(kind, 2000, 96, rng)
    flat = FlatIndex.build(ids, rows)
    codes = ByteCodes.build(tmp_path, flat._rows, 24)
    queries = draw_queries(rows, q, rng)
    read = np.zeros((q, 2000), dtype=bool)
    units = unit(queries)
    names = {row.tobytes(): (units == row).all(axis=1) for row in units}  # equal queries read equal rows

    def score(units, places):
        for row, place in zip(units, places, strict=True):
            read[np.ix_(names[row.tobytes()], place[place >= 0])] = True
        return flat._exact_scores(units, places)

    best = Best(units, 10, ids, score)
    ByteScan(codes, best, None, 1).run()
    np.testing.assert_array_equal(best.touched, read.sum(axis=1))
    every = flat._exact_scores(units, np.arange(2000)[None].repeat(q, axis=0))
    kth = best.scores[:, -1:]
    assert (every[~read] < np.broadcast_to(kth, every.shape)[~read]).all()
    if kind in ("normal", "clustered"):
        assert read.mean() < 0.2  # and most rows are not read at all


def test_many_candidates_are_scored_in_blocks_to_the_last_bit(monkeypatch):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((5000, 48)).astype(np.float32)
    flat = FlatIndex.build(np.arange(5000, dtype=np.int64), rows, "float16")
    units = unit(rng.standard_normal((3, 48)).astype(np.float32))
    places = rng.permuted(np.tile(np.arange(-1, 5000), (3, 1)), axis=1)
    whole = flat._exact_scores(units, places)
    answers = flat.search(units.astype(np.float32), 4999)
    monkeypatch.setattr(base, "_BLOCK_BYTES", 1 << 17)
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(flat._exact_scores(units, places), whole)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5000 * 48 * 8  # the candidates of one query as float64
    for left, right in zip(flat.search(units.astype(np.float32), 4999), answers, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("masked", [False, True])
def test_rows_cut_off_at_minus_one_tie(tmp_path, masked):
    """Rows of float16 may be longer than 1: what is opposite scores -1 however long it is; the least ids come first."""
    rng = np.random.default_rng(0)
    rows = draw_rows("near ties", 90, 2, rng)
    rows[40:] = draw_rows("near ties", 50, 2, rng)
    ids = make_ids(90, rng)
    flat = FlatIndex.build(ids, rows, "float16")
    mask = np.arange(90) % 2 == 0 if masked else None
    allowed = ids if mask is None else ids[mask]
    queries = -flat._rows[[5, 50]].astype(np.float32)
    truth = flat._exact_scores(unit(queries), np.arange(90)[None].repeat(2, axis=0))
    keep = np.isin(ids, allowed)
    lost = 0
    for one, scores in zip(queries, truth, strict=True):
        k = int((scores[keep] > -1).sum()) + 2
        if k > allowed.size:
            continue
        lost += 1
        expected = np.flatnonzero(keep)[np.lexsort((ids[keep], -scores[keep]))[:k]]
        codes = ByteCodes.build(tmp_path, flat._rows, 1)
        for found in (
            flat.search(one[None], k, mask)[1],
            DeviceIndex.of(flat, "cpu").search(one[None], k, mask)[1],
            answer(codes, flat, one[None], k, 1, mask)[1],
        ):
            np.testing.assert_array_equal(found[0], ids[expected])
    assert lost  # rows did tie at -1


def test_equal_scores_are_decided_by_id_whatever_was_found_first(tmp_path):
    rng = np.random.default_rng(3)
    rows = np.repeat(draw_rows("normal", 40, 64, rng), 100, axis=0)
    ids = make_ids(4000, rng)
    flat = FlatIndex.build(ids, rows)
    codes = ByteCodes.build(tmp_path, flat._rows, 16)
    scores, found, touched = answer(codes, flat, rows[::100], 7)
    for row in range(40):
        same = np.sort(ids[row * 100 : row * 100 + 100])
        np.testing.assert_array_equal(found[row], same[:7])
    assert (touched >= 100).all()  # all that tie were read
    assert (scores == scores[:, :1]).all()


def test_without_residuals_the_answer_would_be_wrong(tmp_path):
    """The stored lengths are what decides between rows closer than codes can tell: with none, rows are lost."""
    rng = np.random.default_rng(8)
    rows = draw_rows("one direction", 3000, 200, rng)
    flat = FlatIndex.build(np.arange(3000, dtype=np.int64), rows)
    codes = ByteCodes.build(tmp_path, flat._rows, 0)
    queries = draw_queries(rows, 32, rng)[::4]
    expected = flat.search(queries, 10)
    assert_same(answer(codes, flat, queries, 10), expected)
    table = codes.full
    blind = ByteCodes(
        type(table)(table.codes, table.scales, np.zeros_like(table.slacks), np.zeros_like(table.tops)),
        codes.means,
        0.0,
    )
    assert not np.array_equal(answer(blind, flat, queries, 10)[1], expected[1])


def test_heads_are_taken_where_they_pay_and_rule_rows_out(tmp_path, monkeypatch):
    """Rows of few directions, in order of likeness, leave heads little to look at; strangers take all codes."""
    rng = np.random.default_rng(2)
    basis, centres = rng.standard_normal((12, 256)), 3 * rng.standard_normal((30, 12))
    points = np.repeat(centres, 600, axis=0) + rng.standard_normal((18_000, 12))
    rows = (points @ basis + 2 * rng.standard_normal((18_000, 256))).astype(np.float32)
    flat = FlatIndex.build(np.arange(18_000, dtype=np.int64), rows, "float16")
    codes = ByteCodes.build(tmp_path, flat._rows, 24)
    near, far = rows[:: 18_000 // 64][:64] + np.float32(0.1), rng.standard_normal((64, 256)).astype(np.float32)
    looked = []
    monkeypatch.setattr(
        byte_scan.ByteScan,
        "_scan",
        _noting(byte_scan.ByteScan._scan, lambda scan, queries, heads: looked.append(heads)),
    )
    for queries, taken in ((near, True), (near[:1], True), (far, False), (far[:1], False)):
        looked.clear()
        assert_same(answer(codes, flat, queries, 10), flat.search(queries, 10))
        assert set(looked) == {taken}
    mixed = np.concatenate([near[:5], far[:5]])
    looked.clear()
    assert_same(answer(codes, flat, mixed, 10), flat.search(mixed, 10))
    assert set(looked) == {True, False}


def _noting(method, note):
    def call(self, *arguments):
        note(self, *arguments)
        return method(self, *arguments)

    return call


def test_asked_directions_are_held(tmp_path):
    """Queries of another modality lie beside the rows: with their mean among the directions less is left of them."""
    rng = np.random.default_rng(4)
    rows = unit(draw_rows("clustered", 2000, 128, rng)).astype(np.float32)
    gap = unit(rng.standard_normal((1, 128)))
    units = unit(rows[:20].astype(np.float64) + gap)
    without = ByteCodes.build(tmp_path, rows, 40).ask_heads(units).weights[:, 0].mean()
    held = ByteCodes.build(tmp_path, rows, 40, gap.astype(np.float32)).ask_heads(units).weights[:, 0].mean()
    assert held < 0.6 * without


def test_reports_say_what_was_read():
    rng = np.random.default_rng(9)
    ids, rows = make_ids(9000, rng), draw_rows("clustered", 9000, 64, rng)
    index = BytesIndex.build(ids, rows)
    queries = draw_queries(rows, 12, rng)
    scores, found, report = index.search_exact(queries, 10)
    assert_same((scores, found), FlatIndex.build(ids, rows).search(queries, 10))
    assert report.rows_scanned == 9000
    assert report.rows_touched_full.shape == report.widened.shape == (12,)
    assert (report.rows_touched_full >= 10).all()
    assert (report.rows_touched_full < 4500).all()
    assert (report.widened < report.rows_touched_full).all()
    _, _, few = index.search_exact(queries, 10, np.arange(9000) % 100 == 0)
    assert few.rows_scanned == 90
    assert (few.rows_touched_full <= 90).all()


# ---- files -----------------------------------------------------------------------------------------------------------


def test_removed_rows_are_no_answers_and_files_are_read_back(tmp_path):
    rng = np.random.default_rng(6)
    ids, rows = make_ids(3000, rng), draw_rows("clustered", 3000, 48, rng)
    index, flat = BytesIndex.build(ids, rows, "float16", {"head_width": 12}), FlatIndex.build(ids, rows, "float16")
    queries = draw_queries(rows, 20, rng)
    gone = np.unique(flat.search(queries, 3)[1])
    assert index.remove(gone) == flat.remove(gone) == gone.size
    assert_same(index.search(queries, 10), flat.search(queries, 10))
    index.save(tmp_path)
    opened = BytesIndex.open(tmp_path)
    assert opened.codes is not None
    assert len(opened.codes) == len(opened) == 3000 - gone.size
    assert not opened.codes.full.codes.flags.owndata
    assert_same(opened.search(queries, 10), flat.search(queries, 10))
    with pytest.raises(UnsupportedError, match="cannot add"):
        opened.add(np.array([7], dtype=np.int64), rows[:1])


@pytest.mark.parametrize("name", ["codes.npy", "codes_slacks.npy", "heads.npy", "heads_basis.npy", "codes_means.npy"])
def test_files_of_other_rows_are_refused(tmp_path, name):
    rows = unit(draw_rows("normal", 1200, 40, np.random.default_rng(1))).astype(np.float32)
    ByteCodes.build(tmp_path, rows, 8)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=name):
        ByteCodes.open(tmp_path)
    np.save(tmp_path / name, np.zeros((3, 3), dtype=np.float32))
    with pytest.raises(InputError, match=name):
        ByteCodes.open(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError):
        ByteCodes.open(tmp_path)


def test_other_formats_and_other_rows_are_refused(tmp_path):
    rows = unit(draw_rows("normal", 300, 40, np.random.default_rng(1))).astype(np.float32)
    ByteCodes.build(tmp_path, rows, 8)
    facts = json.loads((tmp_path / "codes.json").read_text())
    (tmp_path / "codes.json").write_text(json.dumps({**facts, "format": 9}))
    with pytest.raises(InputError, match="expected format 1, got 9"):
        ByteCodes.open(tmp_path)
    with pytest.raises(InputError, match="head_width 41"):
        ByteCodes.build(tmp_path, rows, 41)
    with pytest.raises(InputError, match="unit rows"):
        ByteCodes.build(tmp_path, 2 * rows, 8)
    with pytest.raises(InputError, match="has head_width; got 'nlist'"):
        BytesIndex.build(np.arange(300, dtype=np.int64), rows, build={"nlist": 3})


@pytest.mark.parametrize(
    "recipe", [Recipe("flat", "float16", byte_codes=True), Recipe("bytes", build={"head_width": 9})]
)
def test_an_index_proves_by_its_codes(tmp_path, recipe):
    store = FakeStore(n=1500, dim=40)
    plain = build_index(store, tmp_path / "plain", Recipe("flat", recipe.row_dtype)).snapshot
    folder = build_index(store, tmp_path / "index", recipe)
    (segment,) = folder.snapshot.segments
    assert {"codes.npy", "codes.json", "codes_slacks.npy"} <= segment.entry.files.keys()
    queries = np.random.default_rng(3).standard_normal((12, 40)).astype(np.float32)
    scores, ids, report = folder.snapshot.search_exact(queries, 10)
    assert_same((scores, ids), plain.search_exact(queries, 10)[:2])
    assert (report.rows_touched_full < 750).all()
    folder.verify()
    codes = segment.path / "codes.npy"
    codes.write_bytes(codes.read_bytes()[:-1])
    with pytest.raises(MismatchError, match=r"codes\.npy"):
        Snapshot.open(tmp_path / "index")


def test_an_index_knows_where_its_queries_come_from(tmp_path):
    """The means of `queries` become directions of its codes, and stay so when it is compacted, split or merged."""
    store, asking = FakeStore(n=2000, dim=128), FakeStore(n=120, dim=128, seed=5, prefix="q", modalities=("text",))
    gap = unit(np.random.default_rng(7).standard_normal((1, 128)))
    asking.vectors = (unit(store.vectors[:120]) + gap).astype(np.float32)
    recipe = Recipe("bytes", "float16", {"head_width": 40})
    plain = build_index(store, tmp_path / "plain", recipe).snapshot
    told = build_index(store, tmp_path / "told", recipe, queries=[asking])
    assert plain.asking is None
    assert told.snapshot.asking.shape == (1, 128)
    mean = unit(unit(asking.vectors).mean(axis=0, keepdims=True))
    assert np.abs(told.snapshot.asking - mean).max() < 1e-6
    asked = (unit(store.vectors[200:240]) + gap).astype(np.float32)
    assert_same(told.snapshot.search_exact(asked, 10)[:2], plain.search_exact(asked, 10)[:2])

    def rest(snapshot):
        """What queries keep outside of the directions: with it grows every bound."""
        parts = [part.index.codes.ask_heads(unit(asked)) for part in snapshot.segments]
        return float(np.mean([each.weights[:, 0] for each in parts]))

    assert rest(told.snapshot) < 0.7 * rest(plain)
    told.remove(store.ids[:5])
    told.compact()
    parts = split_index(told.snapshot, tmp_path / "parts", parts_by_count(told.snapshot, 2))
    merged = merge_indexes([tmp_path / "plain", tmp_path / "told"], tmp_path / "merged", prefer="last").folder
    for snapshot in (told.snapshot, *(each.snapshot for each in parts.values()), merged.snapshot):
        assert snapshot.asking is not None
        assert rest(snapshot) < 0.7 * rest(plain)
    told.verify()


def test_queries_from_everywhere_give_no_direction():
    assert query_means([FakeStore(n=300, dim=64)]) is None


# ---- devices ---------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10**6),
    n=st.integers(1, 2500),
    d=st.integers(1, 80),
    q=st.integers(1, 20),
    k=st.integers(1, 90),
    half=st.booleans(),
    masked=st.booleans(),
)
@example(kind="near ties", seed=0, n=52, d=2, q=2, k=2, half=True, masked=False)  # opposite rows longer than 1: all -1
def test_a_device_gives_the_numbers_of_the_cpu(kind, seed, n, d, q, k, half, masked):
    rng = np.random.default_rng(seed)
    ids, rows = make_ids(n, rng), draw_rows(kind, n, d, rng)
    flat = FlatIndex.build(ids, rows, "float16" if half else "float32")
    mask = rng.random(n) < 0.4 if masked else None
    queries = draw_queries(rows, q, rng)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "_CPU_SCORE_BYTES", 200_000)  # several tiles
        patch.setattr(device, "_QUERIES_AT_ONCE", 7)
        assert_same(DeviceIndex.of(flat, "cpu").search(queries, k, mask), flat.search(queries, k, mask))


def test_what_float16_cannot_tell_apart_is_looked_for_again():
    rng = np.random.default_rng(12)
    ids, rows = make_ids(3000, rng), draw_rows("near ties", 3000, 64, rng)
    flat = FlatIndex.build(ids, rows, "float16")
    index = DeviceIndex.of(flat, "cpu")
    scores, found, report = index.search_exact(rows[:4], 5)
    assert_same((scores, found), flat.search(rows[:4], 5))
    assert (report.widened > 1000).all()


def test_removed_rows_stay_removed_on_a_device():
    rng = np.random.default_rng(12)
    ids, rows = make_ids(400, rng), draw_rows("normal", 400, 16, rng)
    flat = FlatIndex.build(ids, rows)
    flat.remove(ids[:200])
    found = DeviceIndex.of(flat, "cpu").search(rows[:9], 5)
    assert_same(found, flat.search(rows[:9], 5))
    assert not np.isin(found[1], ids[:200]).any()


def test_missing_devices_are_one_clear_line(monkeypatch):
    import torch

    with pytest.raises(UnsupportedError, match=r"^--device mps: an index is searched on cpu, cuda or cuda:N\.$"):
        check_device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedError, match=r"^--device cuda: no GPU \(torch .*\)\. Without --device .*CPU\.$"):
        check_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert check_device("cuda") == "cuda:0"
    assert check_device("cuda:1") == "cuda:1"
    with pytest.raises(UnsupportedError, match=r"^--device cuda:2: this machine has 2 GPU\(s\), counted from 0\.$"):
        check_device("cuda:2")


def test_faiss_without_gpus_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(device, "faiss_wheels", lambda: {"faiss-cpu": "1.10", "faiss-gpu": "1.10"})
    with pytest.raises(UnsupportedError, match=r"own the same files.*pip uninstall -y faiss-cpu faiss-gpu && pip inst"):
        FaissGpu()
    monkeypatch.setattr(device, "faiss_wheels", lambda: {"faiss-cpu": "1.10"})
    monkeypatch.setattr(device, "load_faiss", lambda: object())
    with pytest.raises(UnsupportedError, match=r"faiss-cpu 1\.10 is built without GPUs\. Type: pip uninstall"):
        FaissGpu()

    class NoGpu:
        StandardGpuResources = None

        @staticmethod
        def get_num_gpus():
            return 0

    monkeypatch.setattr(device, "load_faiss", lambda: NoGpu)
    with pytest.raises(UnsupportedError, match=r"FAISS finds 0 GPU\(s\)"):
        FaissGpu()
