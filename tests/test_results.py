"""Results: near duplicates, diversity, groups, ranges, pages and percentiles, each against its plain definition."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow as pa
import pytest
from fake_store import FakeStore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bindsearch import render
from bindsearch.errors import InputError, MismatchError, MissingInputError, UnknownNameError
from bindsearch.index.build import build_index
from bindsearch.index.recipe import Recipe
from bindsearch.search import Answers, Effort, Shape, ask, depths, open_index
from bindsearch.search.calibrate import FILE, Scale, load_background
from bindsearch.search.diverse import hide_duplicates, order_diverse
from bindsearch.search.groups import first_of_group
from bindsearch.search.hits import display_key, percent_text
from bindsearch.search.pages import Cursor
from bindsearch.types import item_id

CALM = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
DIM = 12


class Spans(FakeStore):
    """Recordings cut into spans: 40 files of up to 6 spans, of three modalities; some rows are copies of others."""

    def __init__(self, files=40, seed=0):
        rng = np.random.default_rng(seed)
        spans = [(file, at) for file in range(files) for at in range(int(rng.integers(1, 7)))]
        super().__init__(n=len(spans), dim=DIM, seed=seed)
        for row in range(10, len(spans), 9):  # copies, some of them exact: ties
            self.vectors[row] = self.vectors[row - 10] + (0 if row % 2 else 0.01 * self.vectors[row - 9])
        keys = [f"file{file:02d}" for file, _ in spans]
        places = [(5.0 * at, 5.0 * at + 5) for _, at in spans]
        self.ids = np.array([item_id(*pair) for pair in zip(keys, places, strict=True)], dtype=np.int64)
        columns = {
            "id": pa.array(self.ids),
            "key": pa.array(keys),
            "source": pa.array([f"/nowhere/{key}.wav" for key in keys]),
            "modality": pa.array([("image", "audio", "text")[file % 3] for file, _ in spans]),
            "start_s": pa.array([start for start, _ in places]),
            "end_s": pa.array([end for _, end in places]),
        }
        for name, values in columns.items():
            self.table = self.table.set_column(self.table.column_names.index(name), name, values)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    path = tmp_path_factory.mktemp("results") / "index"
    build_index(Spans(), path)
    return open_index(path)


def query(seed=0):
    return np.random.default_rng(seed).standard_normal((1, DIM)).astype(np.float32)


def listed(hits):
    return [(hit.id, hit.score) for hit in hits]


def unit_rows(seed, count):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, 4)).astype(np.float32)
    rows[count // 2 :] = rows[: count - count // 2] + 0.05 * rng.standard_normal((count - count // 2, 4))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


# ---- near duplicates and diversity -----------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), count=st.integers(1, 40), threshold=st.floats(-0.5, 0.999))
@CALM
def test_near_duplicates_stand_behind_the_best_of_them(seed, count, threshold):
    rows = unit_rows(seed, count)
    behind, cosines = hide_duplicates(rows, threshold)
    kept = []
    for place in range(count):
        near = {other: float(rows[other] @ rows[place]) for other in kept}
        far = [other for other, cosine in near.items() if cosine > threshold + 1e-6]
        if behind[place] == place:
            kept.append(place)
            assert not far
        else:
            assert behind[place] in kept
            assert cosines[place] == pytest.approx(max(near.values()), abs=1e-5)
            assert cosines[place] > threshold
    again = hide_duplicates(rows[: count // 2 + 1], threshold)
    np.testing.assert_array_equal(behind[: count // 2 + 1], again[0])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("threshold", [0.9, 0.9999, 0.9999999, 1 - 1e-12, 1])
def test_copies_are_hidden_below_a_threshold_of_one_and_shown_at_it(dtype, threshold):
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((300, 256)).astype(np.float32)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype).astype(np.float32)
    of = rng.integers(0, 100, 200)
    rows[100:] = rows[of]
    if dtype == "float16":  # as far from unit as rows of float16 can be
        rows *= np.float32(1 - 2.0**-11)
    behind, cosines = hide_duplicates(rows, threshold)
    assert behind[:100].tolist() == list(range(100))
    assert behind[100:].tolist() == (list(range(100, 300)) if threshold == 1 else of.tolist())
    assert (cosines == 1).all()


@pytest.mark.parametrize("threshold", [-0.2, 0.3, 0.95])
def test_a_longer_list_arranges_the_beginning_likewise_to_the_last_bit(threshold):
    """Over several blocks of rows, of which a shorter list ends in the middle of one."""
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((700, 48)).astype(np.float32)
    rows[350:] = rows[:350] + 0.1 * rng.standard_normal((350, 48)).astype(np.float32)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True))[rng.permutation(700)]
    behind, cosines = hide_duplicates(rows, threshold)
    kept: list[int] = []
    for place, row in enumerate(rows):  # the plain way
        near = rows[kept] @ row if kept else np.array([-1.0])
        if near.max() > threshold:
            assert behind[place] == kept[int(np.argmax(near))]
            assert cosines[place] == pytest.approx(near.max(), abs=1e-6)
        else:
            assert behind[place] == place
            kept.append(place)
    scores = np.sort(rng.random(700).astype(np.float32))[::-1]
    order = order_diverse(scores, rows, depths.pools(depths.steps_of(700), 150), 0.5)
    for few in (1, 127, 128, 129, 300, 699):
        again = hide_duplicates(rows[:few], threshold)
        np.testing.assert_array_equal(again[0], behind[:few])
        np.testing.assert_array_equal(again[1], cosines[:few])
    for few in (1, 40, 65, 149):
        depth = min(depths.first_depth(few), 700)
        fewer = order_diverse(scores[:depth], rows[:depth], depths.pools(depths.steps_of(depth), few), 0.5)
        assert fewer.tolist() == order[:few].tolist()


def mmr_values(scores, rows, chosen, balance):
    """Give place -> value of each answer that is not chosen yet, by the definition, in float64."""
    wide = rows.astype(np.float64)
    return {
        place: balance * float(scores[place])
        - (1 - balance) * max((float(wide[place] @ wide[other]) for other in chosen), default=0.0)
        for place in range(len(scores))
        if place not in chosen
    }


@given(seed=st.integers(0, 10**6), count=st.integers(1, 25), wanted=st.integers(1, 12), balance=st.floats(0, 1))
@CALM
def test_maximal_marginal_relevance_is_the_naive_one(seed, count, wanted, balance):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, 5)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    scores = np.sort(rng.random(count).astype(np.float32))[::-1]
    found = order_diverse(scores, rows, np.full(min(wanted, count), count), balance).tolist()
    assert len(set(found)) == len(found) == min(count, wanted)
    assert found[0] == 0
    for turn in range(1, len(found)):
        values = mmr_values(scores, rows, found[:turn], balance)
        assert values[found[turn]] >= max(values.values()) - 1e-6
    half = max(1, len(found) // 2)
    assert found[:half] == order_diverse(scores, rows, np.full(half, count), balance).tolist()


def test_balance_one_is_the_order_by_score_and_less_spreads_the_answers(index):
    plain = index.search(query(), 12)
    assert listed(index.search(query(), 12, shape=Shape(diversity=1.0))) == listed(plain)

    def alike(hits):
        rows = index.vectors(hits.ids.tolist())
        products = rows @ rows.T
        return float(products[~np.eye(len(hits), dtype=bool)].mean())

    spread = index.search(query(), 12, shape=Shape(diversity=0.3))
    assert spread[0].id == plain[0].id
    assert alike(spread) < alike(plain) - 0.2


@given(seed=st.integers(0, 99), threshold=st.sampled_from([0.3, 0.7, 0.95, 0.9999]), k=st.integers(1, 30))
@CALM
def test_hidden_answers_are_near_what_hides_them_and_shown_ones_are_not(index, seed, threshold, k):
    hits = index.search(query(seed), k, shape=Shape(duplicates=threshold))
    rows = index.vectors(hits.ids.tolist())
    products = rows @ rows.T - np.eye(len(hits))
    assert products.max(initial=-1) <= threshold + 1e-5
    everything = index.search(query(seed), len(index))
    shown = {hit.id for hit in hits}
    hidden = {other.id: (hit, other) for hit in hits for other in hit.duplicates}
    for hit, other in hidden.values():
        assert other.score <= hit.score
        assert float(index.vectors([hit.id])[0] @ index.vectors([other.id])[0]) > threshold - 1e-5
    if len(hits) == k:
        passed = [hit for hit in everything if hit.score > hits[-1].score]
        assert {hit.id for hit in passed} <= shown | set(hidden)


# ---- groups ----------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 99), k=st.integers(1, 45))
@CALM
def test_spans_roll_up_to_their_file(index, seed, k):
    hits = index.search(query(seed), k, shape=Shape(group_by="source"))
    everything = index.search(query(seed), len(index))
    best, others = {}, {}
    for hit in everything:
        if hit.source in best:
            others[hit.source].append((hit.id, hit.score))
        else:
            best[hit.source], others[hit.source] = (hit.id, hit.score), []
    assert listed(hits) == list(best.values())[:k]
    assert [listed(hit.spans) for hit in hits] == [others[hit.source] for hit in hits]
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))


def test_any_column_makes_groups_and_a_missing_value_none():
    table = pa.table({"a": ["x", None, "x", None, "y"], "b": [1, None, 2, None, 1]})
    assert first_of_group(table).tolist() == [0, 1, 2, 3, 4]
    assert first_of_group(table.select(["a"])).tolist() == [0, 1, 0, 3, 4]
    assert first_of_group(table.select(["b"])).tolist() == [0, 1, 2, 3, 0]


def test_groups_by_a_column(index):
    hits = index.search(query(), 10, shape=Shape(group_by="modality"))
    assert {hit.modality for hit in hits} == {"image", "audio", "text"}
    assert sum(1 + len(hit.spans) for hit in hits) == len(index)
    with pytest.raises(UnknownNameError, match="column to group by"):
        index.search(query(), 10, shape=Shape(group_by="modalty"))


def test_groups_by_what_a_filter_may_name(tmp_path):
    """Attributes group as the same values in a column would, over segments and in rows that stand in another order."""
    build_index(FakeStore(n=40, dim=DIM), tmp_path / "index", Recipe("ivf-sq8", "float16", {"nlist": 4}))
    index = open_index(tmp_path / "index")
    index.add(FakeStore(n=20, dim=DIM, seed=4, prefix="more"))
    index.remove("item/0003")
    everything = index.search(query(), len(index))
    marks = index.items([hit.key for hit in everything])["attributes"].to_pylist()
    for name in ("colour", "level"):
        hits = index.search(query(), len(index), shape=Shape(group_by=name))
        seen, best = set(), []
        for hit, mark in zip(everything, marks, strict=True):
            value = json.loads(mark or "{}").get(name)
            if value is None or value not in seen:
                best.append(hit.key)
            seen.add(value)
        assert [hit.key for hit in hits] == best
    with pytest.raises(UnknownNameError, match="Did you mean 'colour'"):
        index.search(query(), 3, shape=Shape(group_by="color"))


def test_groups_by_what_segments_hold_in_different_kinds(tmp_path):
    """True and false in one, numbers in the other: their words are grouped."""

    def marked(prefix, values):
        store = FakeStore(n=len(values), dim=DIM, seed=len(values), prefix=prefix)
        words = pa.array([f'{{"seen": {value}}}' for value in values], pa.string())
        store.table = store.table.set_column(store.table.column_names.index("attributes"), "attributes", words)
        return store

    build_index(marked("one", ["true", "false", "true"]), tmp_path / "index")
    index = open_index(tmp_path / "index")
    index.add(marked("two", ["1", "0", "1", "0"]))
    hits = index.search(query(), len(index), shape=Shape(group_by="seen"))
    marks = index.items([hit.key for hit in hits])["attributes"].to_pylist()
    assert sorted(marks) == ['{"seen": 0}', '{"seen": 1}', '{"seen": false}', '{"seen": true}']


# ---- ranges ----------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 99), least=st.floats(-1, 1), where=st.sampled_from([None, "start_s < 10"]))
@CALM
def test_a_range_is_every_item_that_scores_enough(index, seed, least, where):
    everything = index.search(query(seed), len(index), where=where)
    expected = [(hit.id, hit.score) for hit in everything if hit.score >= np.float32(least)]
    assert listed(index.search_range(query(seed), least, where=where)) == expected
    parts = [listed(hits) for hits in index.iter_range(query(seed), least, where=where)]
    assert sorted(each for part in parts for each in part) == sorted(expected)
    assert all(parts)


def test_the_least_cosine_of_all_lets_every_item_through(tmp_path):
    """Also what is opposite to a row of float16 that is a little longer than 1: its score is cut off at -1."""
    store = FakeStore(n=200, dim=DIM)
    build_index(store, tmp_path / "index", Recipe("flat", "float16"))
    index = open_index(tmp_path / "index")
    rows = index.folder.snapshot.rows(store.ids)
    longest = np.argsort(-np.linalg.norm(rows.astype(np.float64), axis=1))[:5]
    for row in rows[longest]:
        assert index.search(-row[None], 200).scores[-1] == -1
        assert len(index.search_range(-row[None], -1.0)) == 200


def test_a_range_ends_where_it_was_bounded_and_says_so(index, monkeypatch):
    monkeypatch.setattr("bindsearch.search.survivors._BLOCK_ROWS", 16)
    monkeypatch.setattr("bindsearch.search.ranges._SCORED_AT_ONCE", 5)
    best = index.search(query(), 7)
    some = index.search_range(query(), -1.0, limit=7)
    assert listed(some) == listed(best)
    assert some.notes == (f"{len(index)} items score at least -1; these are the best 7",)
    tie = float(best[6].score)
    assert listed(index.search_range(query(), tie))[-1][1] == np.float32(tie)
    least = index.search(query(), 100, shape=Shape(min_score=tie))
    assert listed(least) == [each for each in listed(index.search(query(), 100)) if each[1] >= tie]


def test_bounds_and_ids_that_cannot_be_meant_are_refused_in_words(index):
    for limit in (0, -1):
        with pytest.raises(InputError, match=f"limit: expected at least 1, got {limit}"):
            index.search_range(query(), 0.1, limit=limit)
    with pytest.raises(InputError, match="least: expected a cosine from -1 to 1, got nan"):
        index.search_range(query(), float("nan"))
    with pytest.raises(InputError, match="least: expected a cosine"):
        next(index.iter_range(query(), float("nan")))
    for one in (2**64, 2**63, -1, -(2**70), np.uint64(2**63), 1.5):
        with pytest.raises(MissingInputError, match="no item"):
            index.item(one)
        with pytest.raises(MissingInputError, match="no item"):
            index.search(query(), exclude=[one])
    best = np.int64(index.search(query(), 1).ids[0])
    left = listed(index.search(query(), 5, exclude=best))
    assert left == listed(index.search(query(), 5, exclude=[int(best)])) == listed(index.search(query(), 6))[1:]
    assert index.item(best).vector.shape == (1, DIM)


# ---- pages -----------------------------------------------------------------------------------------------------------

SHAPES = {
    "plain": Shape(paged=True),
    "groups": Shape(group_by="source", paged=True),
    "without duplicates": Shape(duplicates=0.6, paged=True),
    "diverse": Shape(diversity=0.5, paged=True),
    "groups without duplicates": Shape(group_by="source", duplicates=0.9, min_score=-0.5, paged=True),
    "calibrated": Shape(calibrated=True, paged=True),
}


def pages(index, asked, size, shape, **scope):
    after, found = None, []
    while True:
        after_shape = Shape(**{**shape.__dict__, "after": after})
        hits = index.search(asked, size, shape=after_shape, **scope)
        if not len(hits):
            return found
        found += list(hits)
        after = hits[-1].cursor


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("size", [4, 7, 30])
def test_pages_put_together_are_the_whole_list(index, name, size):
    shape = SHAPES[name]
    asked = query(size)
    whole = list(index.search(asked, 60, where="start_s < 20", shape=shape))
    found = pages(index, asked, size, shape, where="start_s < 20")
    assert len(whole) > 12
    assert [hit.id for hit in found][: len(whole)] == [hit.id for hit in whole]
    assert [hit.rank for hit in found] == list(range(1, len(found) + 1))
    assert len({hit.id for hit in found}) == len(found)


def test_pages_go_on_in_the_middle_of_a_tie(tmp_path):
    store = FakeStore(n=50, dim=8)
    store.vectors[:] = store.vectors[0]
    store.vectors[40:] = -store.vectors[0]
    build_index(store, tmp_path / "index")
    index = open_index(tmp_path / "index")
    asked = store.vectors[:1]
    whole = index.search(asked, 50)
    assert len({hit.score for hit in whole}) == 2
    assert [hit.id for hit in pages(index, asked, 3, Shape(paged=True))] == whole.ids.tolist()


def test_a_list_longer_than_the_first_depth_goes_on(tmp_path):
    build_index(FakeStore(n=700, dim=8), tmp_path / "index")
    index = open_index(tmp_path / "index")
    asked = np.ones((1, 8), dtype=np.float32)
    whole = index.search(asked, 700)
    assert [hit.id for hit in pages(index, asked, 90, Shape(paged=True))] == whole.ids.tolist()
    assert index.search(asked, 600, shape=Shape(duplicates=0.9999)).ids.tolist() == whole.ids.tolist()[:600]


@pytest.fixture(scope="module")
def approximate(tmp_path_factory):
    """An index that finds more the deeper it is asked, in front of what it found before, too."""
    path = tmp_path_factory.mktemp("approximate") / "index"
    build_index(FakeStore(n=1500, dim=DIM, seed=2), path, Recipe("ivf-sq8", "float32", {"nlist": 96}))
    return open_index(path)


def test_a_deeper_ranking_of_an_approximate_index_finds_items_in_front(approximate):
    """What the tests below are about: without it they would say nothing."""
    best, deeper = (approximate.search(query(), depth).ids.tolist() for depth in (256, 512))
    assert deeper[:200] != best[:200]


@pytest.mark.parametrize("name", SHAPES)
def test_pages_of_an_approximate_index_are_the_whole_list(approximate, name):
    shape = Shape(**{**SHAPES[name].__dict__, "duplicates": SHAPES[name].duplicates and 0.97})
    whole = list(approximate.search(query(), 900, shape=shape))
    for size in (90, 170):
        found = pages(approximate, query(), size, shape)
        assert [hit.id for hit in found][: len(whole)] == [hit.id for hit in whole]
        assert [hit.rank for hit in found] == list(range(1, len(found) + 1))
        assert len({hit.id for hit in found}) == len(found) >= len(whole) > 300


def test_pages_of_an_approximate_index_lose_nothing_and_plain_answers_stand_best_first(approximate):
    found = pages(approximate, query(), 100, Shape(paged=True))
    assert len({hit.id for hit in found}) == len(approximate)
    for shape in (Shape(), Shape(duplicates=0.97), Shape(group_by="key")):
        scores = approximate.search(query(), 600, shape=shape).scores
        assert (np.diff(scores) <= 0).all()


def test_pages_of_queries_that_were_asked_together_go_on_alone(approximate):
    asked = np.concatenate([query(seed) for seed in range(3)])
    shape = Shape(paged=True)
    for row, hits in enumerate(approximate.search_many(asked, 300, where="size > 0", shape=shape)):
        alone = approximate.search(asked[row : row + 1], 500, where="size > 0", shape=shape)
        assert hits.ids.tolist() == alone.ids.tolist()[:300]


def test_a_cursor_that_has_another_place_now_is_refused(approximate, index):
    paged = approximate.search(query(), 20, shape=Shape(paged=True))
    moved = str(Cursor.read(paged[-1].cursor)).replace("-r20-", "-r19-")
    with pytest.raises(InputError, match=r"had rank 19, its rank is 20 now: .*Ask for the first page again"):
        approximate.search(query(), 20, shape=Shape(paged=True, after=moved))
    with pytest.raises(MismatchError, match="query, filter and options"):
        approximate.search(query(), 20, shape=Shape(paged=True, after=paged[-1].cursor), effort=Effort(exact=True))
    for rank in (0, 10**9 - 1):
        cursor = index.search(query(), 20, shape=Shape(paged=True))[-1].cursor.replace("-r20-", f"-r{rank}-")
        with pytest.raises(InputError, match=f"had rank {rank}, "):
            index.search(query(), 20, shape=Shape(paged=True, after=cursor))


@given(seed=st.integers(0, 50), few=st.integers(1, 99), many=st.integers(1, 300))
@settings(parent=CALM, max_examples=10)
def test_fewer_diverse_answers_are_the_beginning_of_more(approximate, seed, few, many):
    shape, exact = Shape(diversity=0.4), Effort(exact=True)
    more = approximate.search(query(seed), few + many, shape=shape, effort=exact)
    assert approximate.search(query(seed), few, shape=shape, effort=exact).ids.tolist() == more.ids.tolist()[:few]


def test_steps_and_pools_are_those_of_the_depths():
    assert [depths.depth_for(count) for count in (0, 1, 256, 257, 1024, 20_000)] == [256, 256, 256, 512, 1024, 32_768]
    assert [depths.first_depth(count) for count in (1, 64, 65, 5000, 20_000)] == [256, 256, 512, 16_384, 32_768]
    steps = depths.steps_of(1030)
    assert steps.tolist() == [depths.depth_for(place + 1) for place in range(1030)]
    assert depths.pools(steps, 130).tolist() == [256] * 64 + [512] * 64 + [1024] * 2
    grouped = np.array([256, 512, 512, 2048])  # hardly any answer is left of each depth
    assert depths.pools(grouped, 9).tolist() == [1, 3, 3, 4]


def test_a_cursor_of_another_list_is_refused_with_both_values(tmp_path):
    build_index(FakeStore(n=30), tmp_path / "index")
    index = open_index(tmp_path / "index")
    paged = Shape(paged=True)
    cursor = index.search(index.item("item/0003"), 4, shape=paged)[-1].cursor
    after = Shape(paged=True, after=cursor)
    assert index.search(index.item("item/0003"), 4, shape=after)[0].rank == 5
    with pytest.raises(MismatchError, match=r"cursor is of the question \w+, this one is \w+"):
        index.search(index.item("item/0004"), 4, shape=after)
    with pytest.raises(MismatchError, match="query, filter and options"):
        index.search(index.item("item/0003"), 4, where="size > 3", shape=after)
    with pytest.raises(MismatchError, match="query, filter and options"):
        index.search(index.item("item/0003"), 4, shape=Shape(after=cursor, duplicates=0.9))
    with pytest.raises(InputError, match="list of one query"):
        index.search_many([index.item("item/0003")] * 2, 4, shape=after)
    build_index(FakeStore(n=30, seed=1), tmp_path / "other")
    other = open_index(tmp_path / "other")
    with pytest.raises(MismatchError, match=r"other: the cursor is of the index \w{8}, this one is \w{8}: another one"):
        other.search(index.item("item/0003"), 4, shape=after)
    index.remove(["item/0009"])
    with pytest.raises(MismatchError, match="cursor is of generation 1, the index is at 2") as caught:
        index.search(index.item("item/0003"), 4, shape=after)
    assert caught.value.exit_code == 5
    for text in ("", "g1", "i1-g1-zz-r1-1", cursor + "x", "i00000000-g1-00000000-r-1-1"):
        with pytest.raises(InputError, match="not a cursor"):
            index.search(index.item("item/0003"), 4, shape=Shape(after=text))


@given(
    generation=st.integers(0, 10**9),
    rank=st.integers(0, 10**6),
    item=st.integers(0, 2**63 - 1),
    text=st.text(max_size=30),
)
@CALM
def test_a_cursor_is_read_as_it_was_written(generation, rank, item, text):
    cursor = Cursor("5e0c11aa", generation, "0a1b2c3d", rank, item)
    assert Cursor.read(str(cursor)) == cursor
    with pytest.raises(InputError, match="not a cursor"):
        Cursor.read(text)


def test_a_cursor_of_an_earlier_bindsearch_is_called_that(index):
    with pytest.raises(MismatchError, match=r"of an earlier bindsearch.* the first page again") as caught:
        index.search(query(), 4, shape=Shape(after="i5e0c11aa-g7-3f51eb85-r10-d256-1234567890"))
    assert caught.value.exit_code == 5


# ---- percentiles -----------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 10**6), count=st.integers(16, 400), scores=st.lists(st.floats(-1, 1), min_size=2, max_size=9)
)
@CALM
def test_percentiles_rise_with_the_score_beyond_the_background_too(seed, count, scores):
    background = np.sort(np.random.default_rng(seed).normal(0.1, 0.1, count))
    scale = Scale(background, "x")
    scores = np.sort(np.array(scores))
    shares = scale.share_above(scores)
    assert (np.diff(shares) <= 0).all()
    assert ((shares > 0) & (shares <= 1)).all()
    top = background[-1] + np.array([0.0, 0.01, 0.02])
    assert (np.diff(scale.share_above(top)) < 0).all()
    for share in (0.1, 0.5, 0.9):  # inside, it is what the background says
        score = np.quantile(background, share)
        assert scale.percentile(np.array([score]))[0] == pytest.approx(100 * share, abs=100 / count + 1e-6)


def test_the_tail_of_an_exponential_law_is_found():
    rng = np.random.default_rng(0)
    scale = Scale(np.sort(rng.exponential(0.05, 20_000)), "x")
    for share in (1e-3, 1e-4, 1e-5, 1e-6):
        score = -0.05 * np.log(share)
        assert np.log10(scale.share_above(np.array([score]))[0]) == pytest.approx(np.log10(share), rel=0.1)


def test_a_background_of_copies_is_one_step():
    shares = Scale(np.full(380, 0.5), "x").share_above(np.array([-1.0, 0.0, 0.5, 0.6, 1.0]))
    assert shares[0] == shares[1] == 1
    assert (np.diff(shares) <= 0).all() and 0 <= shares[-1] < 1e-6


def test_the_background_of_a_pair_is_the_background(index):
    asked = index.item(int(index.folder.snapshot.ids()[3]))
    background = index.draw_background()
    modality = asked.terms[0].modality
    scale = background.scale(asked, asked.vector, "audio")
    rows = background.rows[modality].astype(np.float64) @ background.rows["audio"].astype(np.float64).T
    count = rows.size - (rows.shape[0] if modality == "audio" else 0)
    assert scale.scores.size == count
    assert scale.name == f"{modality} -> audio"
    two = asked + index.item(int(index.folder.snapshot.ids()[9]))
    own = background.scale(two, two.vector, "audio")
    assert own.name == "this query -> audio"
    np.testing.assert_allclose(own.scores, np.sort(background.rows["audio"] @ two.vector[0]), atol=1e-6)
    assert background.scale(asked, asked.vector, "imu") is None


class Shifted(FakeStore):
    """Pictures score low with everything, texts high: no cosine can be compared between the two."""

    def __init__(self):
        super().__init__(n=300, dim=DIM, modalities=("image", "text", "audio"))
        shift = np.zeros(DIM, dtype=np.float32)
        shift[0] = 4
        of_text = np.array([kind == "text" for kind in self.table["modality"].to_pylist()])
        few = np.flatnonzero(np.array([kind == "audio" for kind in self.table["modality"].to_pylist()]))[10:]
        self.vectors[of_text] += shift
        kinds = np.array(self.table["modality"].to_pylist(), dtype=object)
        kinds[few] = "image"
        place = self.table.column_names.index("modality")
        self.table = self.table.set_column(place, "modality", pa.array(kinds.tolist()))


@pytest.fixture
def shifted(tmp_path):
    build_index(Shifted(), tmp_path / "index")
    return open_index(tmp_path / "index")


def test_calibrated_answers_put_modalities_in_one_list(shifted):
    asked = np.eye(DIM, dtype=np.float32)[:1] + 0.3
    plain = shifted.search(asked, 20)
    assert {hit.modality for hit in plain} == {"text"}
    hits = shifted.search(asked, 40, shape=Shape(calibrated=True))
    assert {"text", "image"} <= {hit.modality for hit in hits[:20]}
    known = [hit for hit in hits if hit.percentile is not None]
    assert [hit.percentile for hit in known] == sorted((hit.percentile for hit in known), reverse=True)
    for modality in ("text", "image"):
        alone = [hit.id for hit in shifted.search(asked, 300, modality=modality)]
        ours = [hit.id for hit in hits if hit.modality == modality]
        assert ours == alone[: len(ours)]
    # ten sounds are no background: they come last, without a percentile, and that is said
    everything = shifted.search(asked, 300, shape=Shape(calibrated=True))
    assert [hit.percentile for hit in everything[-10:]] == [None] * 10
    assert {hit.modality for hit in everything[-10:]} == {"audio"}
    assert any("no percentile for audio" in note for note in hits.notes)
    assert any("drawn for this search" in note for note in hits.notes)


def test_a_background_is_kept_beside_the_index_and_refused_where_it_does_not_fit(shifted):
    asked = np.eye(DIM, dtype=np.float32)[:1] + 0.3
    before = shifted.search(asked, 10, shape=Shape(calibrated=True))
    words = FakeStore(n=40, dim=DIM, seed=3, prefix="word", modalities=("imu",))
    kept = shifted.save_background([words])
    assert {name: rows.shape[0] for name, rows in kept.rows.items()} == {
        "image": 190,
        "text": 100,
        "audio": 10,
        "imu": 40,
    }
    after = shifted.search(asked, 10, shape=Shape(calibrated=True))
    assert after.ids.tolist() == before.ids.tolist()
    assert any("the background beside the index" in note for note in after.notes)
    stored = load_background(shifted.folder.snapshot)
    assert stored.counts == {"image": 190, "text": 100, "audio": 10, "imu": 40}
    shifted.remove(["item/0000"])
    assert any("1 changes ago" in note for note in shifted.search(asked, 3, shape=Shape(calibrated=True)).notes)
    assert shifted.verify()["status"] == "ok"
    shifted.compact()
    path = shifted.path / FILE
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(MismatchError, match="bindsearch index background"):
        shifted.search(asked, 3, shape=Shape(calibrated=True))
    path.write_bytes(data[:100])
    with pytest.raises(MismatchError, match="not readable"):
        shifted.search(asked, 3, shape=Shape(calibrated=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space_id": "other@00"}, "space toy@0123456789ab, the embeddings comes from other@00"),
        ({"preset_ids": {"audio": "reference:9"}}, "audio preset default:audio, the embeddings comes from reference:9"),
        ({"tower_ids": {"text": "text:bb"}}, "text tower text:aa@.* comes from text:bb"),
        ({"dim": DIM + 1}, f"dim {DIM}, the embeddings has dim {DIM + 1}"),
    ],
)
def test_embeddings_made_otherwise_are_no_background(shifted, changes, message):
    other = FakeStore(n=20, prefix="other", **{"dim": DIM, **changes})
    with pytest.raises(MismatchError, match=message):
        shifted.save_background([other])
    assert load_background(shifted.folder.snapshot) is None


def test_a_background_names_what_made_it(shifted):
    index = shifted.folder
    shifted.save_background([FakeStore(n=40, dim=DIM, prefix="word", modalities=("imu",))])
    assert set(load_background(index.snapshot).identity.tower_ids) == {"image", "text", "audio", "imu"}
    index.add(FakeStore(n=9, dim=DIM, prefix="more", modalities=("imu",), preset_ids={"imu": "reference:9"}))
    with pytest.raises(MismatchError, match=r"imu preset reference:9, .*default:imu\. Draw it again"):
        load_background(index.snapshot)
    made_by = ("tower_ids", "preset_ids", "tokenizer_id")
    facts = json.loads(np.load(index.path / FILE)["facts"].tobytes())
    kept = {name: value for name, value in facts.items() if name not in made_by}
    arrays = {name: array for name, array in np.load(index.path / FILE).items() if name != "facts"}
    np.savez(index.path / FILE, facts=np.frombuffer(json.dumps(kept).encode(), dtype=np.uint8), **arrays)
    assert load_background(index.snapshot).counts["imu"] == 40, "older files name the space alone"


def test_a_column_of_some_segments_is_empty_in_the_others(tmp_path):
    store = FakeStore(n=20, dim=DIM)
    store.table = store.table.drop_columns(["caption", "size"])
    build_index(store, tmp_path / "index")
    index = open_index(tmp_path / "index")
    index.add(FakeStore(n=30, dim=DIM, prefix="more"))
    assert len({segment.column_names() for segment in index.folder.snapshot.segments}) == 2
    asked = query()
    for _ in range(2):
        groups = index.search(asked, 50, shape=Shape(group_by="size"))
        assert len(groups) == 50  # 30 sizes, and an item without one is a group of its own
        assert sum(hit.columns.get("size") is not None for hit in groups) == 30
        table = index.items(columns=["key", "caption"])
        assert table.column_names == ["key", "caption"] and table["caption"].null_count == 20 + 15
        assert index.items(["item/0001", "item/0002"], ["size"])["size"].null_count == 2
        with pytest.raises(UnknownNameError, match="Did you mean 'caption'"):
            index.items(columns=["captoin"])
        index.compact()


def test_embeddings_beside_an_index_join_where_it_holds_too_few(shifted, caplog):
    """Of 10 audios no percentile is told; two stores add to them, and images are not needed."""
    more = [FakeStore(n=20, dim=DIM, seed=seed, prefix=f"more{seed}", modalities=("audio", "image")) for seed in (3, 4)]
    with caplog.at_level("WARNING"):
        drawn = shifted.draw_background([*more, more[0]])
    assert {name: rows.shape[0] for name, rows in drawn.rows.items()} == {"image": 190, "text": 100, "audio": 30}
    assert drawn.counts == {"image": 190, "text": 100, "audio": 30}
    assert "embeddings of image are not needed: the index holds 190 of its own" in caplog.text
    assert "audio" not in caplog.text


# ---- what is shown ---------------------------------------------------------------------------------------------------


def test_what_an_arrangement_adds_is_in_json_table_and_page(index):
    shape = Shape(group_by="source", duplicates=0.6, calibrated=True, paged=True)
    hits = index.search(query(), 6, shape=shape)
    rows = json.loads(json.dumps(hits.to_json()))
    assert [set(row) >= {"percentile", "spans", "duplicates", "cursor"} for row in rows] == [True] * 6
    some = next(place for place, hit in enumerate(hits) if hit.spans)
    assert rows[some]["spans"][0]["id"] == str(hits[some].spans[0].id)
    lines = render.to_table(hits, width=160).splitlines()
    assert f"[+{len(hits[some].spans)} of its group, next {hits[some].spans[0].score:.3f} at " in lines[some]
    assert f"{percent_text(hits[0].percentile)}%" in lines[0]
    hiding = [hit for hit in hits if hit.duplicates]
    assert hiding
    assert sum("[hides " in line for line in lines) == len(hiding)
    page = render.page_html(hits)
    assert f"{percent_text(hits[0].percentile)} %" in page
    assert re.search(r"\[hides \d+\]", page)
    assert "percentile" in hits.to_arrow().column_names
    plain = index.search(query(), 2).to_json()[0]
    assert not {"percentile", "spans", "duplicates", "cursor"} & set(plain)


def test_percentiles_are_written_as_precisely_as_they_differ_from_100():
    values = (12.345, 99.04, 99.876, 99.99962, None)
    assert [percent_text(value) for value in values] == ["12.3", "99.04", "99.88", "99.99962", ""]
    assert len(percent_text(100.0)) < 15


def test_orders_and_numbers_that_cannot_be_meant_are_refused():
    for wrong, message in [
        ({"min_score": 1.5}, "a cosine from -1 to 1"),
        ({"duplicates": -1.0}, "above -1 and at most 1"),
        ({"diversity": 1.2}, "a balance from 0 to 1"),
        ({"calibrated": True, "diversity": 0.5}, "two orders of one list"),
    ]:
        with pytest.raises(InputError, match=message):
            Shape(**wrong)


def test_a_least_score_alone_asks_for_everything_above_it(index):
    def no_space():
        raise AssertionError("nothing here needs a space")

    key = "file03#t=0,5"
    every = index.search(index.item(key), len(index))
    least = float(every[25].score)
    found = ask(index, [("item", key)], load=no_space, shape=Shape(min_score=least))
    assert listed(found.hits[0]) == [each for each in listed(every) if each[1] >= np.float32(least)]
    assert len(ask(index, [("item", key)], load=no_space, shape=Shape(min_score=least), k=4).hits[0]) == 4
    assert len(ask(index, [("item", key)], load=no_space).hits[0]) == 10
    talk = Answers(found.hits, explain=True).talk()
    assert talk[0].startswith("search: ")


ARRANGED = {
    "without itself": {"exclude_self": True},
    "without duplicates": {"duplicates": 0.9},
    "groups": {"group_by": "source"},
    "diverse": {"diversity": 0.5},
    "calibrated": {"calibrated": True},
}


@pytest.mark.parametrize("name", ARRANGED)
def test_a_least_score_asks_for_everything_above_it_however_it_is_arranged(approximate, index, name):
    for searched, key in ((index, "file03#t=0,5"), (approximate, "item/0007")):
        options = dict(ARRANGED[name])
        own = {"exclude_self": options.pop("exclude_self", False)}
        asked = [("item", key)]
        proven = Effort(exact=True)
        shape = Shape(min_score=0.1, **options)
        found = ask(searched, asked, load=lambda: None, shape=shape, **own).hits[0]
        every = ask(searched, asked, load=lambda: None, k=len(searched), shape=shape, effort=proven, **own).hits[0]
        assert len(found) > 10
        assert listed(found) == listed(every)
        assert [listed(hit.spans) for hit in found] == [listed(hit.spans) for hit in every]
        page = ask(searched, asked, load=lambda: None, shape=Shape(min_score=0.1, paged=True, **options), **own).hits[0]
        assert len(page) == 10


def test_an_arranged_range_says_where_it_was_bounded(index):
    hits = index.search_range(query(), -1.0, limit=30, shape=Shape(group_by="source"))
    best = [hit.source for hit in index.search(query(), 30)]
    assert [hit.source for hit in hits] == list(dict.fromkeys(best))
    assert hits.notes == (f"{len(index)} items score at least -1; these are of the best 30",)
    with pytest.raises(InputError, match="a range is given whole"):
        index.search_range(query(), 0.1, shape=Shape(paged=True))


def test_a_diverse_range_is_bounded_lower_and_says_so(index, monkeypatch):
    monkeypatch.setitem(ask.__globals__, "DIVERSE_RANGE_LIMIT", 20)
    asked = [("item", "file03#t=0,5")]
    hits = ask(index, asked, load=lambda: None, shape=Shape(min_score=-1.0, diversity=0.7)).hits[0]
    assert len(hits) == 20
    assert hits.notes == (f"{len(index)} items score at least -1; these are the best 20",)
    assert len(ask(index, asked, load=lambda: None, shape=Shape(min_score=-1.0, duplicates=0.9999)).hits[0]) > 20


def test_spans_and_duplicates_say_among_how_many_items_they_were_looked_for(approximate, index):
    hits = approximate.search(query(), 1, shape=Shape(group_by="modality", duplicates=0.9))
    assert hits.notes == ("spans and duplicates: those among the best 256 items; a greater -k looks deeper",)
    assert len(hits[0].spans) < 256
    assert index.search(query(), 1, shape=Shape(group_by="modality", duplicates=0.9)).notes == ()
    assert approximate.search(query(), 1, shape=Shape(diversity=0.9)).notes == ()


def test_plans_are_told_once_and_stand_in_the_json_of_many(index, tmp_path):
    path = tmp_path / "q.jsonl"
    lines = [{"item": "file03#t=0,5", "sql": "start_s < 10"}, {"item": "file04#t=0,5", "sql": "start_s < 10"}]
    path.write_text("\n".join(map(json.dumps, lines)))
    answers = ask(index, [], many=path, load=lambda: None, explain=True)
    talk = answers.talk()
    assert len(talk) == len(set(talk))
    assert talk[0].startswith("filter sql: start_s < 10: ")
    rows = json.loads(render.to_json(answers))
    assert rows[0]["plans"][0]["queries"] == 2
    assert rows[0]["plans"][0]["steps"][0]["route"] in ("rows", "mask")


# ---- the command line ------------------------------------------------------------------------------------------------


def command(*words):
    from typer.testing import CliRunner

    from bindsearch.cli import app

    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_command_line_arranges_answers_and_says_what_ran(index):
    asked = ("query", index.path, "--item", "file03#t=0,5")
    first = command(*asked, "-k", 3, "--paged", "--group-by", "source", "--hide-duplicates", 0.9, "--json")
    assert first.exit_code == 0, first.output
    rows = json.loads(first.stdout)
    assert {"spans", "duplicates", "cursor"} <= set(rows[0])
    rest = ("--group-by", "source", "--hide-duplicates", 0.9, "--after", rows[-1]["cursor"], "--json")
    assert [row["rank"] for row in json.loads(command(*asked, "-k", 3, *rest).stdout)] == [4, 5, 6]
    said = command(*asked, "-k", 2, "--where", "start_s < 10", "--calibrate", "--explain")
    assert said.exit_code == 0, said.output
    assert "percentiles: " in said.stderr
    assert "filter start_s < 10 · modality image: " in said.stderr
    assert "ms" in said.stderr
    assert "%" in said.stdout.splitlines()[0]
    every = json.loads(command(*asked, "--min-score", 0.2, "--sql", "start_s < 10", "--json").stdout)
    assert len(every) > 10
    assert min(row["score"] for row in every) >= 0.2
    none = command(*asked, "--where", "start_s > 1000", "--explain")
    assert none.stdout.strip() == "no item passes"
    assert f"0 of {len(index)} items pass" in none.stderr


def test_the_command_line_keeps_a_background(shifted):
    done = command("index", "background", shifted.path)
    assert done.exit_code == 0, done.output
    assert "10 of 10 audio, 190 of 190 image, 100 of 100 text" in done.stderr
    found = command("query", shifted.path, "--item", "item/0001", "-k", 3, "--calibrate")
    assert "the background beside the index" in found.stderr


def test_a_span_is_found_by_the_name_that_it_is_shown_by(tmp_path):
    spans = [(0.0, 5.0), (1 / 3, 2 / 3), (1234.567, 1239.567), (100000.5, 100010.5), (5.0, 1e7), (1e-7, 1e-6)]
    store = FakeStore(n=len(spans), dim=DIM)
    store.ids = np.array([item_id("talk.wav", span) for span in spans], dtype=np.int64)
    columns = {
        "id": pa.array(store.ids),
        "key": pa.array(["talk.wav"] * len(spans)),
        "start_s": pa.array([start for start, _ in spans]),
        "end_s": pa.array([end for _, end in spans]),
    }
    for name, values in columns.items():
        store.table = store.table.set_column(store.table.column_names.index(name), name, values)
    build_index(store, tmp_path / "index")
    index = open_index(tmp_path / "index")
    hits = index.search(np.ones((1, DIM), dtype=np.float32), 2**62)  # more than there are, and more than memory holds
    assert len(hits) == len(spans)
    shown = {display_key(hit): hit.id for hit in hits}
    assert {"talk.wav#t=0,5", "talk.wav#t=1234.567,1239.567"} < set(shown)
    for name, number in shown.items():
        assert index.item(name).terms[0].item_id == number
    with pytest.raises(MissingInputError) as said:
        index.item("talk.wav")
    assert all(index.has(name) for name in re.findall(r"talk\.wav#t=[^ ]+,[^ ,]+", str(said.value)))
