"""Every exact index backend against the plain definition of the answer, by value; test_index_backends: the others."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bindsearch.errors import InputError, MissingExtraError, ShapeError, UnknownNameError, UnsupportedError
from bindsearch.index import base, faiss_index
from bindsearch.index import rows as stored
from bindsearch.index.base import IndexBackend
from bindsearch.index.faiss_index import FaissFlatIndex, faiss_wheels
from bindsearch.index.rows import ABILITIES
from bindsearch.registry import INDEXES

BACKENDS = tuple(name for name in INDEXES if INDEXES[name].exact)


@pytest.fixture(autouse=True)
def _faiss_itself(monkeypatch):
    """Let no scan be small, so that the FAISS backend means FAISS here; one test below compares the two kernels."""
    monkeypatch.setattr(FaissFlatIndex, "small_bytes", 0)


@pytest.fixture(params=BACKENDS)
def backend(request):
    return INDEXES[request.param]


def make_rows(seed: int, n: int, d: int, copies: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random ids and rows; the first `copies` rows are repeated at the end, so that scores tie."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d)).astype(np.float32)
    if copies:
        rows[-copies:] = rows[:copies]
    return rng.choice(2**62, size=n, replace=False).astype(np.int64), rows


def plain_answer(ids, rows, queries, k, allowed=None):
    """The definition: float64 cosines, rounded once, ordered by (score, id)."""
    rows64, queries64 = rows.astype(np.float64), queries.astype(np.float64)
    rows64 /= np.linalg.norm(rows64, axis=1, keepdims=True)
    queries64 /= np.linalg.norm(queries64, axis=1, keepdims=True)
    scores = (queries64 @ rows64.T).astype(np.float32)
    keep = np.ones(ids.size, dtype=bool) if allowed is None else allowed
    out = []
    for row in scores:
        order = [place for place in np.lexsort((ids, -row)) if keep[place]][:k]
        out.append((row[order], ids[order]))
    return out


def assert_same(found, expected, tolerance=1.3e-7):
    """Scores agree to float32 rounding; ids agree wherever neighbouring scores differ by more than that."""
    for row, (scores, ids) in enumerate(expected):
        got_scores, got_ids = found[0][row, : scores.size], found[1][row, : scores.size]
        np.testing.assert_allclose(got_scores, scores, atol=tolerance, rtol=0)
        differs = got_ids != ids
        for place in np.flatnonzero(differs):
            ties = np.abs(scores - scores[place]) <= tolerance
            assert got_ids[place] in ids[ties] or (ties[-1] and place >= np.argmax(ties)), (row, place)
        assert (found[1][row, scores.size :] == -1).all()
        assert np.isneginf(found[0][row, scores.size :]).all()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), n=st.integers(1, 300), d=st.integers(1, 70), q=st.integers(1, 9), k=st.integers(1, 400)
)
@pytest.mark.parametrize("name", BACKENDS)
def test_answers_are_the_plain_ones(name, seed, n, d, q, k):
    ids, rows = make_rows(seed, n, d)
    queries = np.random.default_rng(seed + 1).standard_normal((q, d)).astype(np.float32)
    found = INDEXES[name].build(ids, rows).search(queries, k)
    assert found[0].shape == found[1].shape == (q, k)
    assert found[0].dtype == np.float32
    assert found[1].dtype == np.int64
    # rows are stored as float32 unit rows: one rounding a component more than the plain answer
    assert_same(found, plain_answer(ids, rows, queries, k), tolerance=2e-7)


def test_backends_agree_bit_for_bit():
    ids, rows = make_rows(3, 5000, 96, copies=40)
    queries = np.concatenate([rows[:20], np.random.default_rng(4).standard_normal((20, 96)).astype(np.float32)])
    answers = [INDEXES[name].build(ids, rows).search(queries, 25) for name in BACKENDS]
    for scores, found in answers[1:]:
        np.testing.assert_array_equal(scores, answers[0][0])
        np.testing.assert_array_equal(found, answers[0][1])


@pytest.mark.parametrize("q", [1, 2, 3, 64, 200])
def test_batch_equals_singles_bit_for_bit(backend, q):
    """FAISS takes another kernel from three queries on and another again beyond a block: the scores may not show it."""
    ids, rows = make_rows(5, 4000, 64, copies=100)
    index = backend.build(ids, rows)
    queries = rows[:: 4000 // q][:q] + np.float32(0.01)
    scores, found = index.search(queries, 30)
    for row in range(0, q, max(1, q // 20)):
        one_scores, one_found = index.search(queries[row : row + 1], 30)
        np.testing.assert_array_equal(one_scores[0], scores[row])
        np.testing.assert_array_equal(one_found[0], found[row])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 120), copies=st.integers(0, 150))
@pytest.mark.parametrize("name", BACKENDS)
def test_top_k_is_a_prefix_of_top_k_plus_1(name, seed, k, copies):
    ids, rows = make_rows(seed, 320, 16, copies=copies)
    index = INDEXES[name].build(ids, rows)
    queries = rows[:6]
    scores, found = index.search(queries, k)
    more_scores, more_found = index.search(queries, k + 1)
    np.testing.assert_array_equal(more_scores[:, :k], scores)
    np.testing.assert_array_equal(more_found[:, :k], found)
    assert (np.diff(more_scores, axis=1) <= 0).all()


def test_ties_beyond_what_was_fetched_are_resolved_by_id(backend):
    """2,000 equal rows: the answer is the 5 smallest ids, wherever they are stored."""
    rng = np.random.default_rng(0)
    row = rng.standard_normal((1, 32)).astype(np.float32)
    others = rng.standard_normal((500, 32)).astype(np.float32)
    rows = np.concatenate([others, np.repeat(row, 2000, axis=0)])
    ids = rng.permutation(2500).astype(np.int64)
    scores, found = backend.build(ids, rows).search(row, 5)
    np.testing.assert_array_equal(found[0], np.sort(ids[500:])[:5])
    np.testing.assert_array_equal(scores[0], np.ones(5, dtype=np.float32))


def test_near_ties_are_ordered_by_their_exact_scores(backend):
    """Scores 3e-8 apart are one in a float32 product of 768 terms; the order must still be the true one."""
    rng = np.random.default_rng(1)
    d, n = 768, 400
    query = rng.standard_normal(d)
    query /= np.linalg.norm(query)
    side = rng.standard_normal(d)
    side -= side @ query * query
    side /= np.linalg.norm(side)
    angles = np.linspace(0.9, 0.9 + 400 * 4e-8, n)
    rows = (np.cos(angles)[:, None] * query + np.sin(angles)[:, None] * side).astype(np.float32)
    ids = rng.permutation(n).astype(np.int64)
    index = backend.build(ids, rows)
    found = index.search(query[None].astype(np.float32), 7)
    stored = index.rows(ids).astype(np.float64)
    unit = query.astype(np.float32).astype(np.float64)
    unit /= np.linalg.norm(unit)
    exact = (stored * unit).sum(axis=1).astype(np.float32)
    order = np.lexsort((ids, -exact))[:7]
    np.testing.assert_array_equal(found[0][0], exact[order])
    np.testing.assert_array_equal(found[1][0], ids[order])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1), as_ids=st.booleans())
@pytest.mark.parametrize("name", BACKENDS)
def test_selector_answers_only_with_what_it_allows(name, seed, share, as_ids):
    ids, rows = make_rows(seed, 200, 24)
    rng = np.random.default_rng(seed)
    allowed = rng.random(200) < share
    selector = rng.permutation(ids[allowed]) if as_ids else allowed
    queries = rng.standard_normal((4, 24)).astype(np.float32)
    found = INDEXES[name].build(ids, rows).search(queries, 12, selector)
    assert_same(found, plain_answer(ids, rows, queries, 12, allowed), tolerance=2e-7)


def test_removed_rows_never_come_back(backend, tmp_path):
    ids, rows = make_rows(7, 300, 20)
    index = backend.build(ids, rows)
    gone = ids[::3]
    assert index.remove(np.concatenate([gone, gone[:5], np.array([123], dtype=np.int64)])) == gone.size
    assert index.remove(gone) == 0
    assert len(index) == 200
    kept = ~np.isin(ids, gone)
    found = index.search(rows[:10], 300)
    assert not np.isin(found[1], gone).any()
    assert_same(found, plain_answer(ids[kept], rows[kept], rows[:10], 300), tolerance=2e-7)
    # a selector does not bring them back
    assert not np.isin(index.search(rows[:10], 300, np.ones(300, dtype=bool))[1], gone).any()
    assert (index.search(rows[:10], 5, gone)[1] == -1).all()
    with pytest.raises(InputError, match=str(int(gone[0]))):
        index.rows(gone[:1])
    index.save(tmp_path)
    assert backend.open(tmp_path).ids.shape == (200,)


def test_added_rows_are_found_as_if_built_at_once(backend):
    if "add" not in backend.abilities:
        with pytest.raises(UnsupportedError, match=f"{backend.name!r} cannot add"):
            backend.build(*make_rows(8, 20, 20)).add(*make_rows(9, 2, 20))
        return
    ids, rows = make_rows(8, 250, 20)
    index = backend.build(ids[:100], rows[:100])
    index.remove(ids[:10])
    index.add(ids[100:], rows[100:])
    found = index.search(rows[::9], 20)
    assert_same(found, plain_answer(ids[10:], rows[10:], rows[::9], 20), tolerance=2e-7)
    with pytest.raises(InputError, match=f"{int(ids[100])} is already there"):
        index.add(ids[100:101], rows[100:101])


def test_save_and_open_give_the_same(backend, tmp_path):
    ids, rows = make_rows(9, 700, 33, copies=50)
    index = backend.build(ids, rows)
    index.save(tmp_path / "x")
    opened = backend.open(tmp_path / "x")
    for left, right in zip(index.search(rows[:40], 15), opened.search(rows[:40], 15), strict=True):
        np.testing.assert_array_equal(left, right)
    np.testing.assert_array_equal(opened.rows(ids[::7]), index.rows(ids[::7]))
    norms = np.linalg.norm(opened.rows(ids).astype(np.float64), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-7)
    assert len(opened) == 700
    assert opened.dim == 33
    with pytest.raises(UnsupportedError, match=r"read-only|cannot add"):
        opened.add(np.array([1], dtype=np.int64), rows[:1])


def test_build_and_search_leave_their_inputs_alone(backend):
    ids, rows = make_rows(10, 50, 8)
    copies = ids.copy(), rows.copy()
    queries, selector = rows[:3] * np.float32(7), np.arange(50) % 2 == 0
    before = queries.copy(), selector.copy()
    index = backend.build(ids, rows)
    index.search(queries, 4, selector)
    for now, then in zip((ids, rows, queries, selector), (*copies, *before), strict=True):
        np.testing.assert_array_equal(now, then)
    # the scale of a query says nothing
    for left, right in zip(index.search(rows[:3], 4), index.search(queries, 4), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q: q.astype(np.float64), "expected dtype float32, got float64"),
        (lambda q: q.astype(np.float16), "expected dtype float32, got float16"),
        (lambda q: q[:, :5], r"expected shape \(any, 8\), got \(3, 5\)"),
        (lambda q: q[0], r"expected shape \(any, 8\), got \(8,\)"),
        (lambda q: q.tolist(), "expected shape"),
        (lambda q: np.where(np.arange(8) == 2, np.float32(np.nan), q), "row 0 has the norm nan"),
        (lambda q: np.where(np.arange(8) == 2, np.float32(np.inf), q), "row 0 has the norm inf"),
        (lambda q: q * np.float32(0), "row 0 has the norm 0.0"),
    ],
)
def test_queries_that_cannot_be_meant_are_refused_with_both_values(backend, change, message):
    ids, rows = make_rows(11, 30, 8)
    with pytest.raises(InputError, match=message):
        backend.build(ids, rows).search(change(rows[:3].copy()), 2)


def test_other_refusals(backend):
    ids, rows = make_rows(12, 30, 8)
    index = backend.build(ids, rows)
    with pytest.raises(InputError, match="at least 1, got 0"):
        index.search(rows[:1], 0)
    with pytest.raises(ShapeError, match=r"\(30,\), got \(29,\)"):
        index.search(rows[:1], 1, np.ones(29, dtype=bool))
    with pytest.raises(ShapeError, match="float64"):
        index.search(rows[:1], 1, np.ones(30))
    with pytest.raises(InputError, match=f"{int(ids[0])} comes twice"):
        backend.build(np.concatenate([ids[:29], ids[:1]]), rows)
    with pytest.raises(InputError, match=r"\[0, 2\*\*63\), got -4"):
        backend.build(np.arange(-4, 26), rows)
    with pytest.raises(ShapeError, match=r"\(30,\) int64, got \(30,\) int32"):
        backend.build(ids.astype(np.int32), rows)
    with pytest.raises(InputError, match="row 4 has the norm nan"):
        broken = rows.copy()
        broken[4, 0] = np.nan
        backend.build(ids, broken)
    with pytest.raises(UnknownNameError, match="Did you mean 'faiss-flat'"):
        INDEXES["fais-flat"]


@pytest.mark.parametrize("k", [1, 7])
def test_an_index_without_allowed_rows_answers_nothing(backend, k):
    ids, rows = make_rows(13, 30, 8)
    index = backend.build(ids, rows)
    for scores, found in (
        index.search(rows[:2], k, np.zeros(30, dtype=bool)),
        backend.build(ids[:0], rows[:0]).search(rows[:2], k),
    ):
        assert scores.shape == (2, k)
        assert np.isneginf(scores).all()
        assert (found == -1).all()


@pytest.mark.parametrize("ability", ABILITIES)
def test_a_backend_without_an_ability_says_so(ability):
    class Lacking(INDEXES["flat"]):
        name = "lacking"
        abilities = frozenset(ABILITIES) - {ability}

    ids, rows = make_rows(14, 10, 4)
    index = Lacking.build(ids, rows)
    calls = {
        "add": lambda: index.add(ids[:1], rows[:1]),
        "remove": lambda: index.remove(ids[:1]),
        "selector": lambda: index.search(rows[:1], 1, ids),
    }
    with pytest.raises(UnsupportedError, match=f"'lacking' cannot {ability}"):
        calls[ability]()


def test_searching_from_many_threads_gives_the_same(backend):
    ids, rows = make_rows(15, 3000, 48, copies=200)
    index = backend.build(ids, rows)
    batches = [rows[start : start + size] for start, size in ((0, 1), (10, 2), (20, 5), (50, 90))]
    expected = [index.search(batch, 12) for batch in batches]
    wrong = []

    def ask():
        for _ in range(5):
            for batch, answer in zip(batches, expected, strict=True):
                found = index.search(batch, 12)
                if not all(np.array_equal(a, b) for a, b in zip(found, answer, strict=True)):
                    wrong.append(batch.shape)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_proof_that_cannot_be_given_widens_the_search(monkeypatch):
    """Without overfetching, the candidates never prove the answer: it must come out right all the same."""
    ids, rows = make_rows(16, 2000, 12, copies=30)
    truth = INDEXES["flat"].build(ids, rows).search(rows[:20], 9)
    monkeypatch.setattr(base, "_OVERFETCH", 0)
    monkeypatch.setattr(IndexBackend, "_margin", lambda _: 1e-3)
    for name in BACKENDS:
        found = INDEXES[name].build(ids, rows).search(rows[:20], 9)
        np.testing.assert_array_equal(found[0], truth[0])
        np.testing.assert_array_equal(found[1], truth[1])


def test_many_small_blocks_give_the_same(monkeypatch):
    ids, rows = make_rows(17, 1000, 12, copies=30)
    truth = INDEXES["flat"].build(ids, rows).search(rows[:50], 9)
    for each in (base, stored):
        monkeypatch.setattr(each, "_BLOCK_BYTES", 4096)
    found = INDEXES["flat"].build(ids, rows).search(rows[:50], 9)
    np.testing.assert_array_equal(found[0], truth[0])
    np.testing.assert_array_equal(found[1], truth[1])


# ---- what is FAISS's alone -------------------------------------------------------------------------------------------


def test_the_blas_threshold_is_restored_after_a_search():
    import faiss

    ids, rows = make_rows(18, 100, 16)
    before = faiss.cvar.distance_compute_blas_threshold
    seen = []
    index = FaissFlatIndex.build(ids, rows)
    with faiss_index._blas_for_batches(faiss, 16):
        index.search(rows[:5], 3)
        seen.append(faiss.cvar.distance_compute_blas_threshold)
    assert seen == [48]
    assert faiss.cvar.distance_compute_blas_threshold == before


def test_a_small_scan_does_not_import_faiss_and_a_large_one_does():
    code = """
import sys
import numpy as np
from bindsearch.registry import INDEXES
rows = np.random.default_rng(0).standard_normal((2000, 32)).astype("float32")
index = INDEXES["faiss-flat"].build(np.arange(2000), rows)
small = index.search(rows[:3], 5)
print("faiss" in sys.modules)
type(index).small_bytes = 100_000
large = index.search(rows[:3], 5)
print("faiss" in sys.modules)
print(all(np.array_equal(a, b) for a, b in zip(small, large)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["False", "True", "True"]


@pytest.fixture
def _load_anew():
    faiss_index.load_faiss.cache_clear()
    yield
    faiss_index.load_faiss.cache_clear()


@pytest.mark.usefixtures("_load_anew")
def test_faiss_wheels_are_listed_and_a_missing_one_is_named(monkeypatch):
    assert set(faiss_wheels()) & {"faiss-cpu", "faiss-gpu"}
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'bindsearch\[cpu\]'"):
        faiss_index.load_faiss()


@pytest.mark.usefixtures("_load_anew")
def test_two_faiss_wheels_are_said(monkeypatch, caplog):
    found = {"faiss-cpu": "1.15.1", "faiss-gpu": "1.14.0"}

    def version(name):
        if name not in found:
            raise faiss_index.metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(faiss_index.metadata, "version", version)
    assert faiss_wheels() == found
    faiss_index.load_faiss()
    assert "faiss-cpu 1.15.1, faiss-gpu 1.14.0 own the same files" in caplog.text
    assert "pip uninstall -y faiss-cpu faiss-gpu && pip install 'bindsearch[cpu]'" in caplog.text


@pytest.mark.usefixtures("_load_anew")
def test_a_broken_faiss_says_how_to_repair_it(monkeypatch, tmp_path):
    (tmp_path / "faiss.py").write_text("raise ImportError('libfaiss.so: undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    with pytest.raises(UnsupportedError, match=r"undefined symbol.*pip uninstall -y faiss"):
        faiss_index.load_faiss()
