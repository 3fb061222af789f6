"""The planner: budgets, forecasts, settings found by measurement, held-out queries, and what stands in the manifest."""

from __future__ import annotations

import json
import logging
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_store import MODALITIES, SPACE, FakeStore
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import row, write_generation

from bindsearch.cli import run
from bindsearch.errors import BudgetError, InputError, MismatchError, UnknownNameError
from bindsearch.index import growth, plan, rates, tune
from bindsearch.index.budget import Budget, Cost, format_bytes, format_ms, parse_bytes, parse_ms, refuse
from bindsearch.index.build import build_index
from bindsearch.index.folder import IndexFolder
from bindsearch.index.heldout import held_out
from bindsearch.index.identity import Identity
from bindsearch.index.manifest import write_manifest
from bindsearch.index.rates import Rates
from bindsearch.index.recipe import Recipe
from bindsearch.index.sizes import disk_bytes, read_bytes, stored_read_bytes
from bindsearch.index.tuned import most_demanding, settings_for
from bindsearch.query import Embedding, Term
from bindsearch.registry import INDEXES
from bindsearch.search import SearchIndex
from bindsearch.store import commit_store

RATES = Rates(product=50.0, stream=20.0, code=100.0)


@pytest.fixture(autouse=True)
def known_rates(monkeypatch):
    """The same forecasts on every machine."""
    monkeypatch.setattr(plan, "machine_rates", lambda with_codes=True: RATES)


@pytest.fixture
def table(monkeypatch):
    """Measurements that grow as they do in real ones: exact scans like N, lists like the root of it."""

    def entry(scales_with, **ms_by_rows):
        points = [{"rows": int(rows[1:]), "build_s": int(rows[1:]) / 1e4, "ms": ms} for rows, ms in ms_by_rows.items()]
        return {"scales_with": scales_with, "dim": 16, "rates": vars(RATES), "points": points}

    table = {
        "recipes": {
            "faiss-flat float32": entry("stream", r1000={"1": 0.3}, r100000={"1": 30.0}),
            "flat float16": entry("stream", r1000={"1": 0.6}, r100000={"1": 60.0}),
            "bytes float16": entry("product", r1000={"1": 0.1}, r100000={"1": 10.0}),
            "ivf-rabitq float16": entry("code", r1000={"0.9": 0.1, "0.99": 0.2}, r100000={"0.9": 1.0, "0.99": 2.0}),
        }
    }
    monkeypatch.setattr(growth, "_table", lambda: table)
    return table


# ---- budgets in words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [("2GB", 2 * 10**9), ("1.5 GiB", 1610612736), ("800MB", 8 * 10**8), ("4096", 4096), ("3kb", 3000)],
)
def test_bytes_in_words(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize(("text", "ms"), [("5ms", 5.0), ("0.2 s", 200.0), ("800us", 0.8), ("7", 7.0)])
def test_times_in_words(text, ms):
    assert parse_ms(text) == pytest.approx(ms)


@pytest.mark.parametrize("text", ["", "GB", "-2GB", "2 parsecs", "2GBs", "1e3"])
def test_what_is_no_budget_is_refused_with_an_example(text):
    with pytest.raises(InputError, match=r"--memory: expected bytes such as 2GB"):
        parse_bytes(text)
    with pytest.raises(InputError, match=r"--latency: expected a time such as 5ms"):
        parse_ms(text)


@given(st.floats(min_value=1.0, max_value=1e13))
def test_a_number_written_as_a_budget_is_enough_when_read_back(value):
    assert value <= parse_bytes(format_bytes(value)) + 0.5
    assert parse_bytes(format_bytes(value)) <= value * 1.0102 + 1
    assert value * (1 - 1e-6) <= parse_ms(format_ms(value)) <= value * 1.0102


@pytest.mark.parametrize("bad", [{"recall": 0.0}, {"recall": 1.01}, {"memory_bytes": 0}, {"latency_ms": -1.0}])
def test_budgets_that_mean_nothing_are_refused(bad):
    with pytest.raises(InputError, match=r"^--(recall|memory|latency): expected"):
        Budget(**bad)


def test_a_refusal_names_the_candidate_that_misses_least():
    budget = Budget(0.95, 100_000_000, 5.0)
    costs = [
        Cost("big", 0.95, 150_000_000, 2.0),  # misses memory alone
        Cost("bigger", 0.95, 400_000_000, 1.0),
        Cost("slow", 0.95, 90_000_000, 8.0),  # misses latency alone
        Cost("both", 0.95, 110_000_000, 5.5),
    ]
    text = str(refuse(budget, costs, "indexes/x"))
    assert text.startswith("indexes/x: recall 0.95, memory 100MB, latency 5ms cannot be met together.")
    assert "--memory 150MB (big)" in text and "--latency 8ms (slow)" in text
    assert "bigger" not in text and "both" not in text


# ---- forecasts -------------------------------------------------------------------------------------------------------


@given(st.floats(0.2, 2.0), st.floats(1e-6, 1e-3), st.floats(10, 1e8))
def test_a_power_law_is_carried_on(power, factor, at):
    measured = [(size, factor * size**power) for size in (1e3, 1e4, 1e6)]
    assert growth.power_law(measured, at) == pytest.approx(factor * at**power, rel=1e-6)
    assert growth.exponent(measured) == pytest.approx(power)


def test_between_sizes_measured_values_are_kept():
    measured = [(1000.0, 1.0), (10000.0, 7.0), (100000.0, 30.0)]
    assert [growth.power_law(measured, size) for size, _ in measured] == pytest.approx([1.0, 7.0, 30.0])
    assert 1.0 < growth.power_law(measured, 3000.0) < 7.0


def test_a_forecast_follows_rows_columns_recall_and_the_machine(table):
    found = growth.growth_of(Recipe("ivf-rabitq", "float16"))
    assert found.ms(100_000, 16, 0.9, RATES) == pytest.approx(1.0)
    assert found.ms(10_000, 16, 0.9, RATES) == pytest.approx(math.sqrt(0.1))
    assert found.ms(100_000, 32, 0.99, RATES) == pytest.approx(4.0)
    assert found.ms(100_000, 16, 0.9, Rates(1.0, 1.0, 50.0)) == pytest.approx(2.0)  # half the rate of codes
    middle = found.ms(100_000, 16, 0.95, RATES)
    assert 1.0 < middle < 2.0
    assert found.recall_within(100_000, 16, middle, RATES) == pytest.approx(0.95, abs=1e-6)
    assert growth.growth_of(Recipe("ivf-rabitq", "float32")) is None


def test_an_exact_index_within_the_budget_goes_first(table):
    order = [each.name for each in plan.make_plan(1000, 16, Budget(0.9, None, 1.0)).order]
    assert order[:3] == ["bytes float16", "faiss-flat float32", "flat float16"]
    order = [each.name for each in plan.make_plan(100_000, 16, Budget(0.9, None, 2.0)).order]
    assert order[0] == "ivf-rabitq float16"
    assert "faiss-flat float32" not in order


def test_a_plan_that_cannot_be_met_is_refused_before_any_work(table):
    recipes = [Recipe("faiss-flat"), Recipe("bytes", "float16")]
    with pytest.raises(BudgetError, match=r"Nearest that can: .*--latency 10ms \(bytes float16\)") as caught:
        plan.make_plan(100_000, 16, Budget(0.9, None, 1.0), recipes)
    assert caught.value.exit_code == 6
    with pytest.raises(BudgetError, match=r"--memory 6\.41MB \(faiss-flat float32\)"):
        plan.make_plan(100_000, 16, Budget(0.9, 1_000_000), [Recipe("faiss-flat")])


def test_the_nearest_budget_that_a_refusal_names_is_planned(table):
    recipes = [Recipe("faiss-flat"), Recipe("bytes", "float16")]
    with pytest.raises(BudgetError) as caught:
        plan.make_plan(100_000, 16, Budget(0.9, None, 1.0), recipes)
    named = re.search(r"--latency (\S+)", str(caught.value)).group(1)
    assert plan.make_plan(100_000, 16, Budget.parse(0.9, None, named), recipes).order


def test_recall_1_is_left_to_exact_indexes(table):
    recipes = [Recipe(name, "float16") for name in ("bytes", "ivf-rabitq") if name in INDEXES]
    assert {each.recipe.backend for each in plan.make_plan(1000, 16, Budget(1.0), recipes).order} == {"bytes"}


def test_the_planner_knows_no_settings_by_heart():
    for name in ("plan.py", "candidates.json", "tuned.py", "budget.py"):
        text = Path(plan.__file__).with_name(name).read_text(encoding="utf-8")
        code = re.sub(r'"""(.|\n)*?"""', "", text) if name.endswith(".py") else text
        assert not re.search(r"nprobe|efSearch|search_window|rerank", code), name


def test_candidates_may_be_narrowed():
    assert {each.row_dtype for each in plan.candidates(row_dtype="float16")} == {"float16"}
    assert [each.backend for each in plan.candidates(backend="bytes")] == ["bytes"]
    with pytest.raises(UnknownNameError, match="faiss-flat"):
        plan.candidates(backend="faiss-flatt")


# ---- the search for settings -----------------------------------------------------------------------------------------


class Surface:
    """Overlap and time of two knobs, known in closed form: what a search for settings should find is known too."""

    def __init__(self, lists=40.0, candidates=60.0, ceiling=1.0, list_ms=0.01, candidate_ms=0.002):
        self.shape = lists, candidates, ceiling
        self.price = list_ms, candidate_ms
        self.asked = []

    def __call__(self, settings):
        self.asked.append(settings)
        lists, candidates, ceiling = self.shape
        breadth, depth = settings["nprobe"], settings["rerank"]
        overlap = ceiling * (1 - math.exp(-breadth / lists)) * (1 - math.exp(-depth / candidates))
        cost = 0.05 + self.price[0] * breadth + self.price[1] * depth
        return tune.Point(dict(settings), overlap, overlap, cost)

    def best(self, target):
        grid = [self({"nprobe": b, "rerank": d}) for b in range(1, 513) for d in range(10, 1200, 6)]
        return min((point.ms for point in grid if point.overlap >= target), default=None)


KNOBS = tune.Knobs.of({"nprobe": 8, "rerank": 40}, {"nprobe": 512, "rerank": 100_000})


@settings(max_examples=12, deadline=None)
@given(st.floats(2, 80), st.floats(10, 150), st.floats(0.001, 0.03), st.floats(0.0002, 0.004))
def test_settings_are_found_near_the_cheapest_with_few_measurements(lists, candidates, list_ms, candidate_ms):
    surface = Surface(lists, candidates, 1.0, list_ms, candidate_ms)
    found = tune.cheapest(surface, KNOBS, 0.95, k=10)
    asked = len({json.dumps(each) for each in surface.asked})
    best = surface.best(0.95)
    assert found.overlap >= 0.95
    assert found.ms <= 1.25 * best
    assert asked < 90


def test_what_no_settings_reach_is_said():
    assert tune.cheapest(Surface(ceiling=0.9), KNOBS, 0.95, k=10) is None


def test_more_is_asked_for_more_and_less_where_candidates_suffice():
    found = [tune.cheapest(Surface(), KNOBS, target, k=10) for target in (0.8, 0.9, 0.95, 0.99)]
    assert [each.ms for each in found] == sorted(each.ms for each in found)
    easy = tune.cheapest(Surface(candidates=3.0), KNOBS, 0.95, k=10)
    assert easy.settings["rerank"] < found[2].settings["rerank"]


@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0, 1)), min_size=1, max_size=30))
def test_the_front_holds_what_nothing_beats(pairs):
    points = [tune.Point({"rerank": at}, overlap, overlap, ms) for at, (ms, overlap) in enumerate(pairs)]
    kept = tune.front(points)
    for point in points:
        beaten = any(o.ms <= point.ms and o.overlap >= point.overlap and o is not point for o in kept)
        assert point in kept or beaten
    assert [each.overlap for each in kept] == sorted({each.overlap for each in kept})


def test_the_lower_bound_holds_and_shrinks_with_the_sample():
    rng = np.random.default_rng(5)
    share, k = 0.95, 10
    held = {}
    for count in (50, 500):
        bounds = [tune.lower_bound(rng.binomial(k, share, count) / k) for _ in range(600)]
        held[count] = np.mean(np.array(bounds) <= share), share - np.mean(bounds)
    assert held[50][0] >= 0.94 and held[500][0] >= 0.94
    assert held[500][1] < held[50][1] / 2 < 0.025
    assert tune.lower_bound(np.ones(20)) < 0.96 < tune.lower_bound(np.ones(400)) < 1.0


def test_overlap_counts_equal_scores_alike_and_leaves_the_query_out():
    scores = np.array([[0.9, 0.8, 0.8, 0.7], [1.0, 0.9, 0.5, 0.4], [0.3, -np.inf, -np.inf, -np.inf]], dtype=np.float32)
    ids = np.array([[1, 2, 3, 4], [7, 1, 2, 3], [5, -1, -1, -1]])
    least, own = np.array([0.8, 0.9, 0.3], dtype=np.float32), np.array([-1, 7, -1])
    assert tune.overlap_at_k(scores, ids, least, own, 2).tolist() == [1.0, 0.5, 0.5]


def test_settings_of_a_modality_or_the_most_demanding():
    tuned = {
        "settings": {"nprobe": 30, "rerank": 200},
        "modalities": {
            "text": {"settings": {"nprobe": 30, "rerank": 80}},
            "audio": {"settings": {"nprobe": 10, "rerank": 200}},
        },
    }
    assert settings_for(tuned, ["text"]) == {"nprobe": 30, "rerank": 80}
    assert settings_for(tuned, ["text", "audio"]) == {"nprobe": 30, "rerank": 200}
    assert settings_for(tuned, ["imu"]) == settings_for(tuned) == tuned["settings"]
    assert settings_for(None, ["text"]) == {}
    assert most_demanding([{}, {"nprobe": 2}, {"nprobe": 1, "rerank": 5}]) == {"nprobe": 2, "rerank": 5}


# ---- held-out queries ------------------------------------------------------------------------------------------------


def questions(n=60, seed=9, modalities=("text", "audio"), **changes):
    return FakeStore(n, seed=seed, prefix=f"question{seed}", modalities=modalities, **changes)


def test_queries_come_from_the_stores_that_are_named_a_modality_each(tmp_path):
    folder = build_index(FakeStore(200), tmp_path / "index")
    samples = {each.modality: each for each in held_out(folder.snapshot, [questions()], 10, count=20)}
    assert sorted(samples) == ["audio", "text"]
    for each in samples.values():
        scores, _, _ = folder.snapshot.search_exact(each.queries, 10)
        assert len(each) == 20 and (each.own == -1).all()
        np.testing.assert_array_equal(each.least, scores[:, 9])


def test_another_sample_is_another_sample_and_the_same_is_the_same(tmp_path):
    folder = build_index(FakeStore(50), tmp_path / "index")
    one, same, other = (held_out(folder.snapshot, [questions(seed=seed)], 10, 20)[0].queries for seed in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_without_stores_each_modality_asks_for_the_others(tmp_path):
    folder = build_index(FakeStore(90), tmp_path / "index")
    samples = held_out(folder.snapshot, [], 5, count=12)
    assert [each.modality for each in samples] == sorted(MODALITIES)
    for each in samples:
        (mask,) = each.selectors
        own = folder.snapshot.table(each.own, ["modality"])["modality"].to_pylist()
        assert set(own) == {each.modality} and np.count_nonzero(mask) == 60
        scores, ids = folder.snapshot.search(each.queries, 5, each.selectors)
        assert not set(folder.snapshot.table(ids.ravel(), ["modality"])["modality"].to_pylist()) & {each.modality}
        np.testing.assert_array_equal(each.least, scores[:, 4])


def test_tuning_on_indexed_rows_says_that_it_promises_too_much(tmp_path, caplog):
    folder = build_index(FakeStore(40, modalities=("image",)), tmp_path / "index")
    with caplog.at_level(logging.WARNING):
        (sample,) = held_out(folder.snapshot, [], 5, count=10)
    assert "--queries" in caplog.text and "do worse" in caplog.text
    scores, ids, _ = folder.snapshot.search_exact(sample.queries, 6)
    assert (ids[:, 0] == sample.own).all()  # the row itself would be the best answer
    np.testing.assert_array_equal(sample.least, scores[:, 5])


def test_queries_of_another_space_are_refused(tmp_path):
    folder = build_index(FakeStore(40), tmp_path / "index")
    with pytest.raises(MismatchError, match="other@0123456789ab"):
        held_out(folder.snapshot, [questions(space_id="other@0123456789ab")], 5)


# ---- building by a budget --------------------------------------------------------------------------------------------


def test_an_index_built_by_a_budget_says_what_was_measured(tmp_path, table):
    wish = plan.Wish(queries=(questions(),), count=20)
    folder = plan.build_planned(FakeStore(300), tmp_path / "index", Budget(0.95), wish)
    tuned = IndexFolder.open(folder.path).info()["tuned"]
    assert sorted(tuned["modalities"]) == ["audio", "text"]
    assert tuned["asked"]["recall"] == 0.95
    for found in tuned["modalities"].values():
        assert found["overlap_at_10"] == 1.0 and found["overlap_low"] >= 0.95  # exact at this size
        assert found["qps"] == pytest.approx(1000 / found["batch_ms"], rel=0.02)
        assert found["queries"] == 20 and found["ms"] > 0
    assert tuned["read_bytes"] == stored_read_bytes(folder.manifest)
    assert folder.verify()["status"] == "ok"


def test_a_budget_that_fails_when_measured_leaves_the_index_as_it_was(tmp_path, table):
    path = tmp_path / "index"
    before = build_index(FakeStore(30), path).manifest
    for point in table["recipes"]["bytes float16"]["points"]:
        point["ms"]["1"] = 1e-6  # a forecast that promises what nothing keeps
    budget = Budget(0.95, None, 1e-5)
    wish = plan.Wish(count=20, recipes=(Recipe("bytes", "float16"),), force=True)
    with pytest.raises(BudgetError, match=r"Nearest that can: --latency \S+ms \(bytes"):
        plan.build_planned(FakeStore(60), path, budget, wish)
    assert IndexFolder.open(path).manifest == before
    with pytest.raises(BudgetError):
        plan.build_planned(FakeStore(60), tmp_path / "new", budget, wish)
    assert not (tmp_path / "new").exists()


def test_an_index_is_tuned_anew_without_being_built(tmp_path):
    folder = build_index(FakeStore(80), tmp_path / "index")
    files = [entry.files for entry in folder.manifest.segments]
    plan.retune(folder, Budget(0.9), [questions()], count=20)
    assert sorted(folder.manifest.tuned["modalities"]) == ["audio", "text"]
    assert [entry.files for entry in folder.manifest.segments] == files
    with pytest.raises(BudgetError):
        plan.retune(folder, Budget(0.9, 10), [questions()], count=20)
    assert folder.manifest.tuned["asked"]["memory_bytes"] is None


APPROXIMATE = [each for each in plan.candidates() if not INDEXES[each.backend].exact]


@pytest.fixture(scope="module")
def clustered():
    """3,000 rows around 40 points, and queries of two modalities: one of the rows' law, one moved aside."""
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((40, 64)).astype(np.float32)
    store, asked = (
        FakeStore(3000, dim=64, modalities=("image",)),
        FakeStore(400, dim=64, prefix="q", modalities=("text", "audio")),
    )
    for each in (store, asked):
        noise = rng.standard_normal((len(each.ids), 64)).astype(np.float32)
        each.vectors = centres[rng.integers(0, 40, len(each.ids))] + 0.7 * noise
    asked.vectors[1::2] += 3.0 * rng.standard_normal(64).astype(np.float32)
    return store, asked


@pytest.mark.parametrize("recipe", APPROXIMATE, ids=lambda each: each.backend)
def test_every_approximate_backend_is_tuned_to_the_overlap_asked_for(recipe, clustered, tmp_path, table):
    store, asked = clustered
    table["recipes"].pop(f"{recipe.backend} {recipe.row_dtype}", None)
    wish = plan.Wish(queries=(asked,), count=150, recipes=(recipe,))
    folder = plan.build_planned(store, tmp_path / "index", Budget(0.9), wish)
    tuned = folder.manifest.tuned
    assert set(tuned["modalities"]) == {"audio", "text"}
    known = INDEXES[recipe.backend].settings
    for modality, found in tuned["modalities"].items():
        assert found["overlap_low"] >= 0.9 and set(found["settings"]) == set(known)
        fresh = asked.units[np.array(asked.table["modality"].to_pylist()) == modality]
        least = folder.snapshot.search_exact(fresh, 10)[0][:, 9]
        scores, _ = folder.snapshot.search(fresh, 10, settings=found["settings"])
        assert (scores >= least[:, None]).sum(axis=1).clip(max=10).mean() / 10 >= 0.89


@pytest.mark.parametrize("recipe", plan.candidates(), ids=lambda each: f"{each.backend}-{each.row_dtype}")
def test_bytes_are_forecast_from_the_formats(recipe, clustered, tmp_path):
    store, _ = clustered
    folder = build_index(store, tmp_path / "index", recipe)
    said, there = read_bytes(recipe, 3000, 64), stored_read_bytes(folder.manifest)
    assert said is not None and abs(said - there) <= 0.1 * there + 4096
    assert disk_bytes(recipe, 3000, 64) >= said


def test_a_query_is_asked_with_the_settings_of_its_modality(clustered, tmp_path, table):
    store, asked = clustered
    recipe = APPROXIMATE[0]
    wish = plan.Wish(queries=(asked,), count=100, recipes=(recipe,))
    folder = plan.build_planned(store, tmp_path / "index", Budget(0.9), wish)
    chosen = {"text": {"nprobe": 3, "rerank": 20}, "audio": {"nprobe": 5, "rerank": 60}}
    tuned = {"k": 10, "settings": {"nprobe": 5, "rerank": 60}, "read_bytes": 1}
    tuned["modalities"] = {name: {"settings": each} for name, each in chosen.items()}
    write_manifest(folder.path, replace(folder.manifest, tuned=tuned))
    index = SearchIndex(IndexFolder.open(folder.path))
    kinds = [*asked.table["modality"].to_pylist()[:6], "imu"]
    queries = [
        Embedding((Term(asked.units[row], 1.0, "q", kind, "q"),), Identity(SPACE))
        for row, kind in enumerate(kinds)
    ]
    hits = index.search_many(queries, k=5)
    for query, kind, found in zip(queries, kinds, hits, strict=True):
        assert found.plans[0].steps[0].settings == chosen.get(kind, tuned["settings"])
        assert [hit.id for hit in index.search(query, k=5)] == [hit.id for hit in found]


# ---- the machine's rates ---------------------------------------------------------------------------------------------


def test_rates_are_measured_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("BINDSEARCH_CACHE_DIR", str(tmp_path))
    first = rates.machine_rates(with_codes=False)
    assert first.product > 0.1 and first.stream > 0.1 and first.code == 0.0
    assert first.of("code") == first.product
    monkeypatch.setattr(rates, "measure_rates", lambda _: pytest.fail("measured again"))
    assert rates.machine_rates(with_codes=False) == first
    (kept,) = tmp_path.glob("rates-*.json")
    kept.write_text("{", encoding="utf-8")
    monkeypatch.setattr(rates, "measure_rates", lambda _: RATES)
    assert rates.machine_rates(with_codes=False) == RATES  # a broken cache is measured anew


# ---- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def on_disk(tmp_path):
    """A store of images and one of texts, written as embed writes them."""
    folders = []
    for name, modality in (("photos", "image"), ("questions", "text")):
        folders.append(tmp_path / name)
        write_generation(folders[-1], 1, [(name, [row(f"{name}{at}", modality) for at in range(60)], [])])
        commit_store(folders[-1])
    return folders


def test_a_dry_run_prints_the_plan_and_builds_nothing(on_disk, tmp_path, capsys, table):
    output = tmp_path / "index"
    assert run(["index", str(on_disk[0]), "-o", str(output), "--recall", "0.9", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "faiss-flat float32" in out and "->" in out and not output.exists()
    assert run(["index", str(on_disk[0]), "-o", str(output), "--memory", "1GB", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["budget"] == {"recall": 0.95, "memory_bytes": 10**9, "latency_ms": None}
    assert found["rows"] == 60 and found["order"][0] in {
        f"{e['recipe']['backend']} {e['recipe']['row_dtype']}" for e in found["forecasts"]
    }


def test_a_budget_on_the_command_line(on_disk, tmp_path, capsys, table):
    output = tmp_path / "index"
    words = ["index", str(on_disk[0]), "-o", str(output), "--recall", "0.9", "--queries", str(on_disk[1])]
    assert run([*words, "--held-out", "30"]) == 0
    assert "text" in capsys.readouterr().err
    assert run(["index", "info", str(output)]) == 0
    assert re.search(r"text +1\.0000", capsys.readouterr().out)
    assert run(["index", "info", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tuned"]["modalities"]["text"]["queries"] == 30
    assert run(["index", "tune", str(output), "--queries", str(on_disk[1]), "--held-out", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["modalities"]["text"]["queries"] == 20


def test_a_budget_that_cannot_be_met_exits_6(on_disk, tmp_path, capsys, table):
    assert run(["index", str(on_disk[0]), "-o", str(tmp_path / "index"), "--memory", "1kB"]) == 6
    said = capsys.readouterr().err
    assert "cannot be met" in said and "Nearest that can: --memory" in said


def test_a_recipe_from_a_file(on_disk, tmp_path, capsys, table):
    file, output = tmp_path / "mine.json", tmp_path / "index"
    file.write_text(json.dumps({"recipe": {"backend": "flat", "row_dtype": "float16"}, "budget": {"recall": 0.9}}))
    assert run(["index", str(on_disk[0]), "-o", str(output), "--recipe", str(file), "--queries", str(on_disk[1])]) == 0
    manifest = IndexFolder.open(output).manifest
    assert manifest.recipe == Recipe("flat", "float16") and manifest.tuned["asked"]["recall"] == 0.9
    file.write_text("{}")
    assert run(["index", str(on_disk[0]), "-o", str(tmp_path / "other"), "--recipe", str(file)]) == 2
    assert "expected" in capsys.readouterr().err


def test_recipes_that_come_along_can_be_read():
    folder = Path(__file__).parent.parent / "indexes"
    files = sorted(folder.glob("*.json"))
    assert files
    for file in files:
        recipe, budget = plan.read_recipe(file)
        assert recipe.row_dtype in ("float16", "float32") and 0 < budget.recall <= 1
