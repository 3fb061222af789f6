"""Filters: masks against plain Python, every route against brute force, SQL, attributes as columns, what is kept."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest
from fake_store import FakeStore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bindsearch.errors import InputError, MissingExtraError, UnknownNameError
from bindsearch.index.attributes import FILE, attribute_columns
from bindsearch.index.base import IndexBackend
from bindsearch.index.build import build_index
from bindsearch.index.faiss_index import FaissFlatIndex
from bindsearch.index.flat import FlatIndex
from bindsearch.index.recipe import NO_MARGIN
from bindsearch.search import Shape, ask, columns, open_index
from bindsearch.search.columns import values_of
from bindsearch.search.costs import Cost, Costs, measured_costs
from bindsearch.search.ranking import Effort
from bindsearch.search.routes import Choice, _efforts, choose_route, search_segment
from bindsearch.search.selectors import MaskCache, Scope, select
from bindsearch.search.survivors import Survivors
from bindsearch.search.where import parse_filter
from bindsearch.types import to_text

ANY = np.ones((1, 16), dtype=np.float32)
CALM = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


class Table(FakeStore):
    """A store whose columns are random, with missing values, and whose attributes are of every kind."""

    def __init__(self, n=240, seed=0, prefix="item"):
        super().__init__(n=n, dim=16, seed=seed, prefix=prefix)
        rng = np.random.default_rng(seed + 1)

        def some(values, missing=0.2):
            return [None if rng.random() < missing else value for value in values]

        sizes = some(rng.integers(-5, 6, n).tolist())
        starts = some([round(float(each), 1) for each in rng.normal(0, 2, n)])
        captions = some(rng.choice(["a dog", "a cat", "", "dogs", "it's", "%_"], n).tolist())
        changes = {
            "size": pa.array(sizes, pa.int64()),
            "start_s": pa.array(starts, pa.float64()),
            "end_s": pa.array([None if each is None else each + 1 for each in starts], pa.float64()),
            "caption": pa.array(captions, pa.string()),
        }
        marks = zip(
            some(rng.integers(0, 4, n).tolist()),
            some(rng.choice(["red", "blue"], n).tolist()),
            some((rng.random(n) < 0.5).tolist()),
            strict=True,
        )
        rows = [
            {name: value for name, value in zip(("level", "colour", "sharp"), mark, strict=True) if value is not None}
            for mark in marks
        ]
        changes["attributes"] = pa.array([json.dumps(row) if row else None for row in rows], pa.string())
        for name, values in changes.items():
            self.table = self.table.set_column(self.table.column_names.index(name), name, values)
        self.plain = [
            {**row, "level": None, "colour": None, "sharp": None, **json.loads(row["attributes"] or "{}")}
            for row in self.table.to_pylist()
        ]


@pytest.fixture(scope="module")
def table():
    return Table()


@pytest.fixture(scope="module")
def index(table, tmp_path_factory):
    path = tmp_path_factory.mktemp("filters") / "index"
    build_index(table, path)
    return open_index(path)


# ---- expressions, evaluated three ways -------------------------------------------------------------------------------

NUMBERS = ("size", "start_s", "level")
WORDS = ("caption", "colour", "modality")
COMPARE = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def like(text, pattern):
    """Say whether `pattern` with % and _ is the whole text; written out plainly."""
    if not pattern:
        return not text
    if pattern[0] == "%":
        return any(like(text[at:], pattern[1:]) for at in range(len(text) + 1))
    return bool(text) and pattern[0] in ("_", text[0]) and like(text[1:], pattern[1:])


AWKWARD = st.text(
    st.sampled_from(["a", "B", "%", "_", "\\", "'", "\n", ".", "*", "[", "(", "$", " ", "#", "\0", "é", "\udce9"])
)


@CALM
@given(texts=st.lists(AWKWARD.map(to_text), min_size=1, max_size=30), pattern=AWKWARD)
def test_a_pattern_means_what_it_says_whatever_the_text_holds(texts, pattern):
    wanted = [like(text, to_text(pattern)) for text in texts]
    column = pa.chunked_array([[*texts, None]], pa.string())
    for negated in ("", "not "):
        found = parse_filter(f"x {negated}like {literal(pattern)}").mask(lambda name: column)
        assert found.tolist() == [*(each != bool(negated) for each in wanted), False]


@pytest.mark.parametrize("sign", COMPARE)
@pytest.mark.parametrize(
    "number", [2**63, -(2**63) - 1, 2**64, -(2**64), 10**38, -(10**38), 2**63 - 1, -(2**63), 1e300]
)
@pytest.mark.parametrize(
    "kind", [pa.string(), pa.int64(), pa.uint64(), pa.int8(), pa.decimal128(38, 0), pa.decimal128(9, 2)]
)
def test_a_number_beyond_a_column_is_more_or_less_than_all_of_it(kind, number, sign):
    ends = {pa.int8(): (-128, 127), pa.uint64(): (0, 2**64 - 1), pa.decimal128(9, 2): (-(10**7) + 1, 10**7 - 1)}
    low, high = ends.get(kind, (-(2**63), 2**63 - 1))
    values = [low, 1, high, None]
    column = pa.chunked_array(
        [pa.array([str(each) if kind == pa.string() and each else each for each in values], kind)]
    )
    found = parse_filter(f"r {sign} {number}").mask(lambda name: column)
    assert found.tolist() == [each is not None and COMPARE[sign](each, int(number)) for each in values]


def test_a_backslash_in_a_name_is_found_by_a_pattern():
    names = [to_text("caf\udce9 1.png"), "caf\\_1.png", "caf_1.png", "C:\\dogs\\1.png", "two\nlines.png"]
    column = pa.chunked_array([names], pa.string())

    def found(pattern):
        return parse_filter(f"key like {literal(pattern)}").mask(lambda name: column).nonzero()[0].tolist()

    assert found("caf\udce9_1%") == [0]
    assert found("%\\%\\%.png") == [3]
    assert found("caf\\__.png") == [1]
    assert found("caf_1.png") == [2]
    assert found("%o\n%.p_g") == [4]
    assert found("%") == found("%%") == found("%_%") == [0, 1, 2, 3, 4]
    assert found("") == []


def literal(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


@st.composite
def column_tests(draw):
    """A comparison, as (text, function of a row that gives True, False or None)."""
    numeric = draw(st.booleans())
    name = draw(st.sampled_from(NUMBERS if numeric else WORDS))
    values = (
        st.integers(-6, 6) | st.sampled_from([0.5, -1.5])
        if numeric
        else st.sampled_from(["a dog", "red", "image", "", "it's"])
    )
    kind = draw(st.sampled_from(["compare", "in", "null", "like", "bool"]))
    if kind == "bool":
        wanted = draw(st.booleans())
        return f"sharp = {literal(wanted)}", lambda row: None if row["sharp"] is None else row["sharp"] is wanted
    if kind == "null":
        return f"{name} is null", lambda row: row[name] is None
    if kind == "like" and not numeric:
        pattern = draw(st.sampled_from(["%dog%", "a ___", "%", "", "_%", "%e%", "b%"]))
        return f"{name} like {literal(pattern)}", lambda row: None if row[name] is None else like(row[name], pattern)
    if kind == "in":
        several = draw(st.lists(values, min_size=1, max_size=3))
        text = f"{name} in ({', '.join(map(literal, several))})"
        return text, lambda row: None if row[name] is None else row[name] in several
    value, sign = draw(values), draw(st.sampled_from(sorted(COMPARE)))
    return f"{name} {sign} {literal(value)}", lambda row: None if row[name] is None else COMPARE[sign](row[name], value)


def negated(part):
    text, passes = part
    return f"not ({text})", lambda row: None if passes(row) is None else not passes(row)


def joined(word, left, right):
    decides = word == "or"

    def passes(row):
        both = (left[1](row), right[1](row))
        return decides if decides in both else None if None in both else not decides

    return f"({left[0]}) {word} ({right[0]})", passes


EXPRESSIONS = st.recursive(
    column_tests(),
    lambda inner: inner.map(negated) | st.builds(joined, st.sampled_from(["and", "or"]), inner, inner),
    max_leaves=6,
)


@given(part=EXPRESSIONS)
@CALM
def test_a_filter_passes_what_python_and_sql_pass(index, table, part):
    text, passes = part
    expected = [passes(row) is True for row in table.plain]
    assert index.select(where=text).masks[0].tolist() == expected
    assert index.select(sql=text).masks[0].tolist() == expected
    assert index.select(where=text, modality="image").masks[0].tolist() == [
        good and row["modality"] == "image" for good, row in zip(expected, table.plain, strict=True)
    ]


@given(part=EXPRESSIONS, k=st.integers(1, 30), seed=st.integers(0, 5))
@settings(parent=CALM, max_examples=15)
def test_a_filtered_answer_is_the_best_of_what_passes(index, table, part, k, seed):
    text, passes = part
    query = np.random.default_rng(seed).standard_normal((1, 16)).astype(np.float32)
    hits = index.search(query, k, where=text)
    everything = index.search(query, len(index))
    expected = [hit for hit in everything if passes(table.plain[int(hit.key[-4:])]) is True][:k]
    assert [(hit.key, hit.score) for hit in hits] == [(hit.key, hit.score) for hit in expected]


def test_an_integer_and_a_floating_point_number_compare_as_numbers(index):
    count = index.select(where="size < 0.5").count
    assert count == index.select(where="size <= 0").count > 0


# ---- routes ----------------------------------------------------------------------------------------------------------

ROWS, DIM = 3000, 24


def unit(rng, count, dim=DIM):
    rows = rng.standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def as_segment(index, removed=0):
    return SimpleNamespace(index=index, entry=SimpleNamespace(name="one", rows=index.ids.size, removed=removed))


def brute_force(index, mask, queries, k):
    """Score the rows of a mask in float64, one after the other."""
    places = np.flatnonzero(mask)
    rows = index.rows(index.ids[places]).astype(np.float64)
    units = queries.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    scores = np.clip((rows[None] * units[:, None]).sum(axis=2), -1, 1).astype(np.float32)
    found_scores = np.full((queries.shape[0], k), -np.inf, dtype=np.float32)
    found_ids = np.full((queries.shape[0], k), -1, dtype=np.int64)
    for row in range(queries.shape[0]):
        order = np.lexsort((index.ids[places], -scores[row]))[:k]
        found_scores[row, : order.size] = scores[row, order]
        found_ids[row, : order.size] = index.ids[places[order]]
    return found_scores, found_ids


@pytest.fixture(scope="module", params=["float32", "float16"])
def rows_and_ids(request):
    rng = np.random.default_rng(3)
    rows = unit(rng, ROWS)
    rows[100:140] = rows[99]  # ties
    ids = rng.permutation(10 * ROWS)[:ROWS].astype(np.int64)
    return ids, rows, request.param


@pytest.mark.parametrize("backend", [FlatIndex, FaissFlatIndex])
@pytest.mark.parametrize("route", ["rows", "mask", "drop"])
@pytest.mark.parametrize("passing", [1, 5, 300, 1500, 2990, ROWS])
def test_every_route_of_an_exact_backend_is_brute_force(rows_and_ids, backend, route, passing):
    ids, rows, dtype = rows_and_ids
    index = backend.build(ids, rows, dtype)
    rng = np.random.default_rng(passing)
    index.remove(ids[rng.choice(ROWS, 7, replace=False)])
    mask = np.zeros(ROWS, dtype=bool)
    mask[rng.choice(ROWS, passing, replace=False)] = True
    mask[99:140] = passing > 5
    mask &= index.alive
    for asked, k in ((1, 10), (6, 25)):
        queries = np.concatenate([rows[99:100], unit(rng, asked)])[:asked]
        expected = brute_force(index, mask, queries, k)
        scores, found, step = search_segment(as_segment(index, 7), queries, k, mask, Choice(route, "asked"), {})
        np.testing.assert_array_equal(found, expected[1])
        np.testing.assert_array_equal(scores, expected[0])
        assert step.survivors == np.count_nonzero(mask)


def test_survivors_are_read_in_blocks_and_merged(rows_and_ids, monkeypatch):
    monkeypatch.setattr("bindsearch.search.survivors._BLOCK_ROWS", 64)
    monkeypatch.setattr("bindsearch.search.survivors._SCORES_AT_ONCE", 300)
    ids, rows, dtype = rows_and_ids
    index = FlatIndex.build(ids, rows, dtype)
    mask = np.random.default_rng(1).random(ROWS) < 0.4
    mask[500:900] = True
    queries = unit(np.random.default_rng(2), 5)
    found = Survivors(index, np.flatnonzero(mask)).search(queries, 12)
    expected = brute_force(index, mask, queries, 12)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])


def test_one_query_alone_gets_what_float32_finds_among_rows_that_hardly_differ():
    """Products in float16 cannot tell these rows apart; they only choose whom float32 is asked about."""
    rng = np.random.default_rng(11)
    centre = rng.standard_normal(64)
    rows = centre + 0.004 * rng.standard_normal((4000, 64))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    rows[1000:1020] = rows[7]  # ties, decided by id
    index = FlatIndex.build(rng.permutation(4000).astype(np.int64), rows, "float16")
    mask = rng.random(4000) < 0.7
    mask[[7, *range(1000, 1020)]] = True
    survivors = Survivors(index, np.flatnonzero(mask))
    queries = np.concatenate([rows[[7, 50]], unit(rng, 20, 64)])
    for query in queries:
        scores, places = survivors._scan(query[None], 26, None, {})
        np.testing.assert_allclose(scores, survivors._scan(np.stack([query, query]), 26, None, {})[0][:1], atol=1e-6)
        assert (np.diff(scores) <= 0).all() and np.unique(places).size == 26
        expected = brute_force(index, mask, query[None], 12)
        found = survivors.search(query[None], 12)
        np.testing.assert_array_equal(found[1], expected[1])
        np.testing.assert_array_equal(found[0], expected[0])


class Cells(IndexBackend):
    """A plain inverted file over random centres: approximate, with FAISS's nprobe."""

    name = "cells"
    exact = False
    settings: ClassVar[dict[str, int]] = {"nprobe": 1}
    centres = 64

    def _scan(self, queries, fetch, mask, settings):
        centres = unit(np.random.default_rng(0), self.centres, self.dim)
        cell = np.argmax(self._rows.astype(np.float32) @ centres.T, axis=1)
        near = np.argsort(-(queries @ centres.T), axis=1)[:, : settings["nprobe"]]
        scores = queries @ self._rows.astype(np.float32).T
        for row in range(queries.shape[0]):
            scores[row, ~np.isin(cell, near[row])] = -np.inf
        if mask is not None:
            scores[:, ~mask] = -np.inf
        places = np.argsort(-scores, axis=1)[:, :fetch]
        best = np.take_along_axis(scores, places, axis=1)
        return best, np.where(np.isneginf(best), -1, places)


class CellsWithoutSelector(Cells):
    name = "cells-without-selector"
    abilities = frozenset()


@pytest.mark.parametrize(("backend", "route"), [(Cells, "mask"), (CellsWithoutSelector, "drop")])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("law", ["even", "far"])
def test_an_approximate_backend_looks_wider_until_it_agrees_with_itself(backend, route, share, law):
    rng = np.random.default_rng(5)
    rows = unit(rng, ROWS)
    index = Cells(rows, np.arange(ROWS, dtype=np.int64))
    index.__class__ = backend
    queries = unit(rng, 40)
    far = np.argsort(np.argsort(rows @ queries[0])) < share * ROWS  # what passes lies far from the first query
    mask = rng.random(ROWS) < share if law == "even" else far
    scores, found, step = search_segment(as_segment(index), queries, 10, mask, Choice(route, "asked"), {"nprobe": 2})
    expected = brute_force(index, mask, queries, 10)
    overlap = np.mean([np.isin(found[row], expected[1][row]).mean() for row in range(40)])
    alone = [index.search(queries, 10, mask, {"nprobe": 2}) for _ in "1" if route == "mask"]
    assert overlap >= 0.99
    assert step.rounds > 1
    if alone and share < 0.5:
        assert np.mean([np.isin(alone[0][1][row], expected[1][row]).mean() for row in range(40)]) < overlap
    same = found >= 0
    np.testing.assert_array_equal((scores > -np.inf), same)


def test_a_route_is_chosen_by_what_it_costs():
    index = FlatIndex.build(np.arange(ROWS, dtype=np.int64), unit(np.random.default_rng(0), ROWS))
    costs = Costs(
        survivors={"float32": Cost((0.0, 1.0), (1, 101), ((0.0, 1.0), (0.0, 11.0)))},
        masked={"flat/float32": Cost((0.0, 1.0), (1, 101), ((0.4, 0.4), (10.0, 10.0)))},
    )
    assert choose_route(index, 0, 1, costs).route == "none"
    assert choose_route(index, ROWS // 10, 1, costs).route == "rows"
    assert choose_route(index, ROWS, 1, costs).route == "mask"
    # gathering is paid once, scoring by each query: many queries gain more from fewer rows
    assert choose_route(index, ROWS // 2, 1, costs).route == "mask"
    assert choose_route(index, ROWS // 2, 200, costs).route == "rows"
    assert choose_route(index, ROWS, 1, Costs()).route == "rows"  # nothing measured: what is always right


def test_an_approximate_backend_is_asked_only_where_exact_takes_too_long():
    index = Cells(unit(np.random.default_rng(0), ROWS), np.arange(ROWS, dtype=np.int64))
    slow = Costs(survivors={"float32": Cost((0.0, 1.0), (1,), ((0.0, 100.0),))}, patience_ms=2.0)
    for survivors, route in ((10, "rows"), (ROWS, "mask")):
        choice = choose_route(index, survivors, 1, slow)
        assert choice.route == route
        assert "2" in choice.why
    index.__class__ = CellsWithoutSelector
    assert choose_route(index, ROWS, 1, slow).route == "drop"


def test_a_cost_goes_straight_between_what_was_measured():
    cost = Cost((0.0, 0.5, 1.0), (1, 3), ((0.0, 2.0, 4.0), (0.0, 4.0, 8.0)), search_ns=10.0, query_ns=5.0)
    assert cost.seconds(100, 50, 1, 8) == pytest.approx(1e-9 * (10 + 5 + 800 * 2))
    assert cost.seconds(100, 25, 2, 8) == pytest.approx(1e-9 * (10 + 10 + 800 * 1.5))
    assert cost.seconds(100, 100, 30, 8) == pytest.approx(1e-9 * (10 + 150 + 800 * 80))
    assert cost.seconds(0, 0, 1, 8) == pytest.approx(1e-9 * 15)


def test_the_measured_costs_are_there_and_more_rows_cost_more():
    costs = measured_costs()
    assert set(costs.survivors) == {"float32", "float16"}
    for cost in costs.survivors.values():
        for queries in (1, 64):
            times = [cost.seconds(1000, rows, queries, 1024) for rows in (10, 100, 1000)]
            assert times == sorted(times)
            assert times[0] > 0
    assert costs.measured["processor"]


# ---- over several segments -------------------------------------------------------------------------------------------


@pytest.fixture
def living(tmp_path):
    """An index of three segments, with removed items in two."""
    build_index(Table(n=60), tmp_path / "index")
    index = open_index(tmp_path / "index")
    index.add(Table(n=40, seed=1, prefix="more"))
    index.add(Table(n=30, seed=2, prefix="last"))
    index.remove(["item/0000", "item/0007", "more/0003"])
    return index


def test_a_plan_says_what_ran_in_each_segment(living):
    hits = living.search(ANY, 5, where="size > 2")
    (plan,) = hits.plans
    assert plan.survivors == sum(step.survivors for step in plan.steps) == living.select(where="size > 2").count
    assert [step.rows for step in plan.steps] == [58, 39, 30]
    lines = plan.lines()
    assert lines[0].startswith(
        f"filter size > 2: {plan.survivors} of 127 items pass, at hand from before"
        if plan.kept
        else f"filter size > 2: {plan.survivors} of 127 items pass, evaluated in "
    )
    assert all(word in lines[2] for word in ("58 rows", "faiss-flat", f"{plan.steps[0].route}: "))
    assert json.loads(json.dumps(plan.to_json()))["steps"][0]["route"] == plan.steps[0].route
    whole = living.search(ANY, 5).plans[0]
    assert {step.route for step in whole.steps} == {"whole"}
    assert whole.survivors == 127
    proven = living.search(ANY, 5, where="size > 2", effort=Effort(exact=True))
    assert {step.route for step in proven.plans[0].steps} == {"exact"}
    assert proven.ids.tolist() == hits.ids.tolist()
    none = living.search(ANY, 5, where="size > 1000")
    assert len(none) == 0
    assert {step.route for step in none.plans[0].steps} == {"none"}
    assert "0 of 127 items pass" in none.plans[0].lines()[0]


def test_a_filter_is_paid_for_once_and_after_an_addition_for_the_new_rows(living, monkeypatch):
    reads = []
    monkeypatch.setattr(
        "bindsearch.search.selectors.read_column",
        lambda segment, *rest: reads.append(segment.entry.name) or columns.read_column(segment, *rest),
    )
    first = living.search(ANY, 99, where="size > 0 and colour = 'red'")
    assert len(set(reads)) == 3
    assert not first.plans[0].kept
    reads.clear()
    again = living.search(ANY, 99, where="size > 0 and colour = 'red'")
    assert not reads
    assert again.plans[0].kept
    assert again.ids.tolist() == first.ids.tolist()
    living.remove([int(first.ids[0])])
    assert living.search(ANY, 99, where="size > 0 and colour = 'red'").ids.tolist() == first.ids.tolist()[1:]
    assert not reads
    living.add(Table(n=20, seed=5, prefix="new"))
    living.search(ANY, 99, where="size > 0 and colour = 'red'")
    assert len(set(reads)) == 1


def test_masks_that_are_kept_have_a_limit(living):
    cache = MaskCache(limit_bytes=300)
    snapshot = living.folder.snapshot
    for level in range(5):
        select(snapshot, Scope(where=f"level = {level}"), cache)
    assert cache._bytes <= 300
    assert select(snapshot, Scope(where="level = 4"), cache).kept
    assert not select(snapshot, Scope(where="level = 0"), cache).kept
    mask = select(snapshot, Scope(where="level = 0"), cache).masks[2]
    with pytest.raises(ValueError, match="read-only"):
        mask[0] = True


# ---- SQL -------------------------------------------------------------------------------------------------------------


def test_a_select_names_ids_over_all_living_items(living):
    table = {row["key"]: row for row in living.items().to_pylist()}
    largest = sorted((row["size"] for row in table.values() if row["size"] is not None), reverse=True)
    found = living.search(
        ANY, 99, sql="SELECT id FROM items WHERE size >= (SELECT quantile_disc(size, 0.9) FROM items)"
    )
    lowest = min(hit.columns["size"] for hit in found)
    assert sorted((hit.columns["size"] for hit in found), reverse=True) == [s for s in largest if s >= lowest]
    some = living.search(ANY, 99, sql="from items select id order by key desc limit 3")
    assert sorted(hit.key for hit in some) == sorted(sorted(table, reverse=True)[:3])
    assert len(living.search(ANY, 999, sql="SELECT * FROM items")) == 127
    both = living.search(ANY, 99, sql="colour = 'red'", where="size > 0", modality="image")
    assert sorted(both.ids.tolist()) == sorted(
        living.search(ANY, 99, where="colour = 'red' and size > 0 and modality = 'image'").ids.tolist()
    )


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM read_csv('/etc/hostname')",
        "SELECT * FROM '/etc/hostname'",
        "SELECT content FROM read_text('/etc/hostname')",
        "SELECT * FROM glob('/*')",
        "COPY items TO '/tmp/nothing.csv'",
        "ATTACH '/tmp/nothing.db'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "DROP TABLE items",
        "DELETE FROM items",
        "1 = 1); DROP TABLE items; --",
        "size > 0; SELECT 1",
        "size > 0) UNION SELECT (10000000",
        "SELECT * FROM living",
        "SELECT key FROM items",
        "SELECT key AS id FROM items",
        "nothing > 3",
        "size >",
        "",
        "SELECT 1.5 AS id",
    ],
)
def test_sql_reaches_nothing_but_the_items(living, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--sql"):
        living.search(ANY, sql=text)
    assert not list(tmp_path.glob("nothing*"))


def test_sql_without_duckdb_says_what_to_install(living, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "duckdb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'bindsearch\[sql\]'"):
        living.search(ANY, sql="size > 1")


def test_sql_with_a_comment_and_odd_names(living):
    assert living.select(sql="size > 1 -- those").count == living.select(where="size > 1").count
    assert living.select(sql='"LEVEL" = 2 and sharp').count == living.select(where="level = 2 and sharp = true").count


# ---- attributes as columns -------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5)
OBJECTS = st.dictionaries(st.sampled_from(["a", "b", "c d", "é"]), SCALARS | st.lists(st.integers(), max_size=2))


@given(rows=st.lists(st.none() | OBJECTS, max_size=30), cut=st.integers(1, 31))
@CALM
def test_attributes_become_typed_columns_wherever_blocks_end(rows, cut):
    texts = [None if row is None else json.dumps(row) for row in rows]
    whole = attribute_columns([pa.array(texts, pa.string())])
    parts = attribute_columns([pa.array(texts[at : at + cut], pa.string()) for at in range(0, len(texts), cut)])
    assert parts.to_pydict() == whole.to_pydict()
    assert parts.schema == whole.schema
    for name in ("a", "b", "c d", "é"):
        values = [None if row is None else row.get(name) for row in rows]
        there = [value for value in values if value is not None]
        if not there:
            assert name not in whole.column_names
            continue
        found = whole[name].to_pylist()
        assert [value is None for value in found] == [value is None for value in values]
        kinds = {type(value) for value in there}
        if kinds == {bool} or kinds == {str}:
            assert found == values
        if kinds == {int} and all(abs(value) < 2**63 for value in there):
            assert whole[name].type == pa.int64()
            assert found == values
        if kinds == {float}:
            assert whole[name].type == pa.float64()
            assert found == values


def test_attributes_are_mapped_where_they_were_derived_and_parsed_where_not(living, monkeypatch):
    snapshot = living.folder.snapshot
    assert all(FILE in segment.entry.files for segment in snapshot.segments)
    derived = [columns.attribute_table(segment).to_pydict() for segment in snapshot.segments]
    for segment in snapshot.segments:
        del segment.entry.files[FILE]
    columns._parsed.clear()
    assert [columns.attribute_table(segment).to_pydict() for segment in snapshot.segments] == derived
    assert derived[0]["colour"]
    with pytest.raises(UnknownNameError, match="Did you mean 'colour'"):
        living.search(ANY, where="color = 'red'")


def test_a_column_that_one_segment_lacks_is_missing_there(living):
    class Bare(FakeStore):
        def __init__(self):
            super().__init__(n=5, prefix="bare")
            self.table = self.table.drop_columns(["attributes"])

    living.add(Bare())
    assert living.select(where="colour is null or colour = 'red'").counts[-1] == 5
    assert living.select(where="colour = 'red'").counts[-1] == 0
    assert parse_filter("colour = 'red'").columns == ("colour",)


def test_margins_do_not_count_as_how_far_a_search_reaches():
    """Efforts go on until lists or candidates reach every row that passes; no margin grows beyond none at all."""
    rows = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)
    index = FlatIndex.build(np.arange(1000), rows)
    first = {"nprobe": 2, "rerank": 20, "nprobe_margin": 400, "rerank_margin": NO_MARGIN}
    efforts = [used for used, _ in _efforts(index, first, 10, 500, "mask")]
    assert [used["rerank"] for used in efforts] == [20, 80, 320, 1280]
    assert [used["nprobe_margin"] for used in efforts] == [400, 1600, 6400, NO_MARGIN]
    assert {used["rerank_margin"] for used in efforts} == {NO_MARGIN}


@pytest.mark.parametrize(
    ("where", "absent"),
    [
        ("colour == 'read'", ["Unknown value of the column 'colour' 'read'. Did you mean 'red'? Known: blue, red."]),
        (
            "size > 0 and colour in ('read', 'violet')",
            [
                "Unknown value of the column 'colour' 'read'. Did you mean 'red'? Known: blue, red.",
                "Unknown value of the column 'colour' 'violet'. Known: blue, red.",
            ],
        ),
        ("colour == 'red' and colour == 'blue'", []),
    ],
)
def test_a_filter_that_lets_nothing_pass_names_the_values_that_no_item_has(living, where, absent):
    assert ask(living, [("item", "item/0001")], load=lambda: None, where=where).talk() == absent


def test_a_filter_that_lets_something_pass_is_not_lectured(living):
    found = ask(living, [("item", "item/0001")], load=lambda: None, where="colour in ('red', 'blu')")
    assert len(found.hits[0]) and found.talk() == []


def store_of(name, attribute, n=30):
    """A store of which each item has one attribute, "zip"."""
    store = FakeStore(n=n, dim=16, prefix=name)
    values = pa.array([json.dumps({"zip": attribute(row)}) for row in range(n)])
    store.table = store.table.set_column(store.table.column_names.index("attributes"), "attributes", values)
    return store


def test_an_attribute_that_is_text_somewhere_is_compared_as_text_everywhere(tmp_path):
    build_index(store_of("numbers", lambda row: 10000 + row), tmp_path / "index")
    index = open_index(tmp_path / "index")
    index.add(store_of("texts", lambda row: f"{row}a"))
    asked = {
        "zip == '3a'": 1,
        "zip == '10003'": 1,
        "zip in ('10003', '4a')": 2,
        "zip like '1000%'": 10,
        "zip is not null": 60,
    }
    for _ in range(2):  # over two segments, then over one
        assert {where: len(index.search(ANY, 99, where=where)) for where in asked} == asked
        assert {where: len(index.search(ANY, 99, sql=where)) for where in asked} == asked
        with pytest.raises(InputError, match="holds text such as '0a'"):
            index.search(ANY, where="zip == 10003")
        index.compact()


def test_a_number_is_compared_as_the_column_holds_it(tmp_path):
    store = FakeStore(n=30, dim=16)
    norms = pa.array([12.3 if row % 3 else 0.1 for row in range(30)], pa.float32())
    store.table = store.table.set_column(store.table.column_names.index("norm"), "norm", norms)
    build_index(store, tmp_path / "index")
    index = open_index(tmp_path / "index")
    asked = {
        "norm == 12.3": 20,
        "norm in (12.3)": 20,
        "norm != 12.3": 10,
        "norm >= 12.3": 20,
        "norm <= 12.3": 30,
        "norm > 12.3": 0,
        "norm < 12.3": 10,
        "norm < 1e300": 30,
        "norm == 12": 0,
    }
    assert {where: len(index.search(ANY, 99, where=where)) for where in asked} == asked


def test_bytes_that_are_no_utf8_are_looked_for_as_the_table_writes_them(tmp_path):
    store = FakeStore(n=30, dim=16)
    captions = pa.array([to_text("dog \udcff") if row == 4 else None for row in range(30)], pa.string())
    store.table = store.table.set_column(store.table.column_names.index("caption"), "caption", captions)
    build_index(store, tmp_path / "index")
    index = open_index(tmp_path / "index")
    for condition in ("caption = 'dog \udcff'", "caption in ('dog \udcff', 'x')", "caption like '%\udcff'"):
        for asked in ({"where": condition}, {"sql": condition}):
            assert [hit.id for hit in index.search(ANY, 9, **asked)] == [store.ids[4]]
    for asked in ({"where": "caption = '\udcfe'"}, {"sql": "caption = '\udcfe'"}):
        found = ask(index, [("item", "item/0001")], load=lambda: None, **asked)
        assert not len(found.hits[0]) and isinstance(found.talk(), list)
    with pytest.raises(UnknownNameError):
        index.search(ANY, where="`\udcff` = 1")
    with pytest.raises(InputError):
        index.search(ANY, sql="\udcff ~ 1")


def test_whole_numbers_beyond_float64_beside_fractions_are_text_before_and_after_compacting(tmp_path):
    build_index(store_of("whole", lambda row: 2**53 + 1 + row), tmp_path / "index")
    index = open_index(tmp_path / "index")
    index.add(store_of("broken", lambda row: (row + 0.5, 1e20, 3.0)[row % 3]))
    asked = {
        f"zip == '{2**53 + 1}'": 1,
        f"zip == '{10**20}'": 10,
        "zip == '0.5'": 1,
        "zip == '3'": 10,
    }
    for _ in range(2):  # over two segments, then over one
        assert {where: len(index.search(ANY, 99, where=where)) for where in asked} == asked
        assert {where: len(index.search(ANY, 99, sql=where)) for where in asked} == asked
        groups = index.search(ANY, 99, shape=Shape(group_by="zip"))
        assert len(groups) == 30 + 10 + 1 + 1
        index.compact()


def test_a_mask_does_not_outlive_an_index_that_was_built_anew_in_its_place(tmp_path):
    store, path = FakeStore(n=60, dim=16), tmp_path / "index"
    build_index(store, path)
    index = open_index(path)
    asked = ({"where": "size > 3000"}, {"sql": "size > 3000"})
    before = [len(index.search(ANY, 99, **each)) for each in asked]
    shutil.rmtree(path)
    nothing = pa.array([0] * 60, pa.int64())
    store.table = store.table.set_column(store.table.column_names.index("size"), "size", nothing)
    build_index(store, path)
    index.folder.reload()
    assert before[0] == before[1] > 0
    assert [len(index.search(ANY, 99, **each)) for each in asked] == [0, 0]


LARGE = 2**53 + 3


@pytest.mark.parametrize(
    ("where", "passing"),
    [
        (f"t == {LARGE}", 1),
        (f"t > {LARGE}", 3),
        ("t > 1e15", 7),
        (f"t < {LARGE}.5", 4),
        (f"t == {10**30}", 0),
        (f"t < {10**30}", 7),
        (f"t in ({LARGE}, {10**30})", 1),
    ],
)
def test_large_whole_numbers_compare_exactly_and_with_everything(where, passing):
    column = pa.chunked_array([[2**53 + step for step in range(7)]])
    assert parse_filter(where).mask(lambda _: column).sum() == passing


def test_a_large_number_is_looked_for_in_cells_of_text():
    column = pa.chunked_array([["1234567890123456789", "7", ""]])
    assert parse_filter("t == 1234567890123456789").mask(lambda _: column).tolist() == [True, False, False]


TWEET = 1234567890123456700


@pytest.mark.parametrize(
    ("where", "passing"),
    [
        (f"t == {TWEET + 3}", [3]),
        (f"t in ({TWEET + 3}, {TWEET + 5}, 1.5)", [3, 5, 10]),
        (f"t > {TWEET + 7}", [8, 9, 13]),
        (f"t <= {TWEET + 1}", [0, 1, 10, 11, 12]),
        (f"t != {TWEET}", [*range(1, 14)]),
        ("t == 7", [11]),
        ("t == 1.5", [10]),
        ("t < 7.5", [10, 11, 12]),
        ("t < 1e300", [*range(14)]),
        (f"t == {2**64 - 1}", [13]),
        (f"t == {2**64}", []),
        (f"t in ({2**64 - 1}, -3)", [12, 13]),
    ],
)
@pytest.mark.parametrize("wide", [True, False])
def test_whole_numbers_in_cells_of_text_compare_exactly_beside_others(where, passing, wide):
    """With `wide` one of them does not fit 64 bits with a sign."""
    cells = [str(TWEET + step) for step in range(10)] + ["1.5", " +7 ", "-3"] + [str(2**64 - 1)] * wide
    column = pa.chunked_array([[*cells, "", None]])
    expected = [place for place in passing if place < len(cells)]
    assert np.flatnonzero(parse_filter(where).mask(lambda _: column)).tolist() == expected


MEMBERS = {
    "whole": pa.chunked_array([[1, 2, None, 2**53 + 1, -5]]),
    "floating": pa.chunked_array([[1.0, 0.5, None, float("nan"), -0.0, float("inf")]]),
    "short": pa.chunked_array([pa.array([1, 2, None, -5], pa.int8())]),
    "cells": pa.chunked_array([["1", "0.5", None, str(2**53 + 1), "", "nan", "-0.0"]]),
    "words": pa.chunked_array([["1", "a", None, "", "it's"]]),
    "large words": pa.chunked_array([pa.array(["1", "a", None], pa.large_string())]),
    "flags": pa.chunked_array([[True, None, False]]),
    "nothing": pa.chunked_array([pa.nulls(3)]),
}
ASKED = {
    "numbers": ["1", "0", "0.5", "-5", "9007199254740993", "9007199254740992", "1e3", str(10**30), "300"],
    "words": ["'1'", "'a'", "''", "'it''s'"],
    "flags": ["true", "false"],
}


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("kind", ASKED)
@pytest.mark.parametrize("word", ["in", "not in"])
def test_a_membership_is_a_comparison_with_each_value(name, kind, word):
    for several in (ASKED[kind], ASKED[kind][:1], ASKED[kind][1:3]):
        each = " or ".join(f"c = {value}" for value in several)
        plain = each if word == "in" else f"not ({each})"
        read = MEMBERS[name]
        try:
            expected = parse_filter(plain).mask(lambda _, read=read: read).tolist()
        except InputError:
            with pytest.raises(InputError, match="'c' holds"):
                parse_filter(f"c {word} ({', '.join(several)})").mask(lambda _, read=read: read)
        else:
            found = parse_filter(f"c {word} ({', '.join(several)})").mask(lambda _, read=read: read)
            assert found.tolist() == expected


@pytest.mark.parametrize("kind", ["list", "date"])
def test_lists_and_dates_have_no_members_to_compare(kind):
    days = pa.array([0, 1], pa.date32())
    column = pa.chunked_array([pa.array([[1], [2]]) if kind == "list" else days])
    with pytest.raises(InputError, match=f"'c' holds {kind}"):
        parse_filter("c in (1, 2)").mask(lambda _: column)


def test_many_values_are_looked_up_in_one_pass(monkeypatch):
    calls = []
    equal = pa.compute.equal
    monkeypatch.setattr("pyarrow.compute.equal", lambda *given: calls.append(1) or equal(*given))
    column = pa.chunked_array([list(range(5000))])
    where = f"c in ({', '.join(map(str, range(1000, 3000)))})"
    assert np.flatnonzero(parse_filter(where).mask(lambda _: column)).tolist() == list(range(1000, 3000))
    assert not calls


@pytest.mark.parametrize(
    ("named", "holds"),
    [
        ({"where": "attributes.size == 'medium'"}, 20),
        ({"sql": "\"attributes.size\" = 'medium'"}, 20),
        ({"where": "attributes.size == 'medium' and size > 0"}, 20),
        ({"where": "size > 0"}, 35),
    ],
)
def test_an_attribute_named_like_a_column_is_reached(tmp_path, named, holds):
    """A world's manifest has a size in words beside the bytes of the item table."""
    for part, prefix in enumerate(("item", "more")):
        store = FakeStore(n=20, dim=16, seed=part, prefix=prefix)
        texts = pa.array([json.dumps({"size": ("small", "medium")[row % 2]}) for row in range(20)])
        store.table = store.table.set_column(store.table.column_names.index("attributes"), "attributes", texts)
        sizes = pa.array([0 if part == 1 and row % 4 == 0 else 9 for row in range(20)], store.table["size"].type)
        store.table = store.table.set_column(store.table.column_names.index("size"), "size", sizes)
        if part:
            open_index(tmp_path / "index").add(store)
        else:
            build_index(store, tmp_path / "index")
    index = open_index(tmp_path / "index")
    assert index.select(**named).count == holds
    read = values_of(index.folder.snapshot, index.folder.snapshot.ids()[:4], ["attributes.size"])
    assert set(read["attributes.size"].to_pylist()) == {"small", "medium"}
    with pytest.raises(UnknownNameError, match=r"attributes\.size"):
        index.select(where="attributes.sise == 'medium'")


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """An index with columns whose names differ in case alone."""
    store = FakeStore(n=20, dim=16)
    rows = [{"Label": "A", "label": f"b{row}", "Size": "SL"[row % 2], "labels": row} for row in range(20)]
    texts = pa.array(list(map(json.dumps, rows)))
    store.table = store.table.set_column(store.table.column_names.index("attributes"), "attributes", texts)
    path = tmp_path_factory.mktemp("alike") / "index"
    build_index(store, path)
    return open_index(path)


@pytest.mark.parametrize(
    ("sql", "where"),
    [
        ("label = 'b3'", "label = 'b3'"),
        ("Label = 'A'", "Label = 'A'"),
        ("\"Label\" = 'A' -- not label", "Label = 'A'"),
        ("Size = 'L'", "Size = 'L'"),
        ("size > 0", "size > 0"),
        ("labels < 7 and key <> 'Label label'", "labels < 7"),
        ("SELECT id FROM items WHERE Size = 'S'", "Size = 'S'"),
        ("SELECT * FROM items WHERE label = 'b3'", "label = 'b3'"),
        ("SELECT * FROM items", "key is not null"),
    ],
)
def test_sql_reads_the_column_that_is_spelled(alike, sql, where):
    expected = alike.select(where=where).masks[0].tolist()
    assert alike.select(sql=sql).masks[0].tolist() == expected
    assert any(expected)


@pytest.mark.parametrize("sql", ["LABEL = 'A'", "label = 'b3' and Label = 'A'", "SIZE > 0"])
def test_sql_that_may_mean_either_of_two_columns_is_refused(alike, sql):
    with pytest.raises(InputError, match=r"columns '\w+' and '\w+' differ in case alone.* --where"):
        alike.select(sql=sql)
