"""The planner: budgets, forecasts, settings found by measurement, held-out queries, and what stands in the manifest."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_store import SPACE, FakeStore, questions
from hypothesis import given
from hypothesis import strategies as st
from test_store import row, write_generation

from bindsearch.cli import run
from bindsearch.errors import BudgetError, InputError, MismatchError, UnknownNameError
from bindsearch.index import growth, plan, rates
from bindsearch.index.budget import Budget, Cost, format_bytes, format_ms, parse_bytes, parse_ms, refuse
from bindsearch.index.build import build_index
from bindsearch.index.folder import IndexFolder
from bindsearch.index.identity import Identity
from bindsearch.index.manifest import write_manifest
from bindsearch.index.rates import Rates
from bindsearch.index.recipe import MARGIN, NO_MARGIN, Recipe
from bindsearch.index.sizes import FACTS_BYTES, disk_bytes, read_bytes, stored_read_bytes
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


def test_a_refusal_names_no_recall_of_0():
    costs = [Cost("useless", 0.0004, 10, 1.0, measured=True), Cost("poor", 0.4, 2000, 9.0, measured=True)]
    said = str(refuse(Budget(0.9, 1000, 2.0), costs, "x"))
    assert "useless" not in said and said.endswith("Nearest that can: --memory 2KB --recall 0.4 --latency 9ms (poor).")


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


def test_a_scan_grows_by_so_much_a_row(table):
    measured = [(1000.0, 1.5), (2000.0, 2.0), (4000.0, 3.0)]
    assert [growth.straight(measured, size) for size in (1000, 1500, 4000, 10_000)] == pytest.approx([1.5, 1.75, 3, 6])
    assert growth.straight(measured, 1) > 0
    found = growth.growth_of(Recipe("faiss-flat", "float32"))
    assert found.ms(200_000, 16, 0.9, RATES) == pytest.approx(60.0)


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


ADVICE = re.compile(r"((?:--\w+ \S+ )+)\(([^)]+)\)")


@pytest.mark.parametrize("recall", [0.6, 0.95, 0.999, 1.0])
@pytest.mark.parametrize("measured", [True, False])
def test_every_budget_that_a_refusal_names_is_planned(recall, measured):
    """With the measurements that come along: whoever follows the advice gets the candidate that it names."""
    recipes = [each for each in plan.candidates() if not measured or growth.growth_of(each)]
    memories, latencies = (None, "1KB", "5MB", "60MB", "300MB"), (None, "1us", "300us", "20ms")
    followed = set()
    for rows, memory, latency in itertools.product((300, 100_000), memories, latencies):
        asked = {"--recall": str(recall), "--memory": memory, "--latency": latency}
        try:
            plan.make_plan(rows, 1024, Budget.parse(recall, memory, latency), recipes)
        except BudgetError as error:
            advice = ADVICE.findall(str(error).partition("Nearest that can: ")[2])
            assert advice, error
            for options, name in advice:
                words = options.split()
                named = asked | dict(zip(words[::2], words[1::2], strict=True))
                budget = Budget.parse(float(named["--recall"]), named["--memory"], named["--latency"])
                order = plan.make_plan(rows, 1024, budget, recipes).order
                assert name in [each.name for each in order], error
                followed |= set(words[::2])
    assert followed >= ({"--memory", "--latency"} if measured else {"--memory"})


def test_what_is_approximate_is_offered_below_recall_1(table):
    with pytest.raises(BudgetError, match=r"Nearest that can: --recall 0\.99 \(ivf-rabitq float16\), by forecast\.$"):
        plan.make_plan(1000, 16, Budget(1.0), [Recipe("ivf-rabitq", "float16")])
    with pytest.raises(BudgetError, match=r"--latency \S+ \(bytes float16\), by forecast; or --recall 0\.99 \(ivf-"):
        plan.make_plan(100_000, 16, Budget(1.0, None, 3.0))
    found = plan.make_plan(1000, 16, Budget(1.0))
    assert {each.recipe.backend: each.recall for each in found.forecasts}["ivf-rabitq"] == plan.NEARLY_ALL
    assert re.search(r"ivf-rabitq float16 .* at overlap 0\.99$", found.to_text(), re.MULTILINE)
    assert not re.search(r"bytes float16 .* at overlap", found.to_text())


@pytest.mark.parametrize("parent", ["flat", "bytes", "hnsw", "ivf-rabitq"])
def test_a_backend_that_reads_its_numbers_where_it_builds_is_planned(parent, on_disk, tmp_path, monkeypatch):
    class Levels(INDEXES[parent]):
        """A plugin: nothing but its own build_files knows its numbers."""

        name = "levels"

        @classmethod
        def build_files(cls, folder, build, progress=None):
            if set(build) - {"levels"}:
                raise InputError(f"recipe: the backend 'levels' takes levels, got {', '.join(build)}.")

    monkeypatch.setitem(INDEXES._things, "levels", Levels)
    found = plan.make_plan(1000, 16, Budget(0.9), [Recipe("levels", build={"levels": 3})])
    assert [each.name for each in found.order] == ["levels float32"]
    with pytest.raises(InputError, match="takes levels, got nlist"):
        build_index(on_disk[0], tmp_path / "index", Recipe("levels", build={"nlist": 3}))


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


def test_a_graph_of_one_link_a_node_is_refused(tmp_path):
    with pytest.raises(InputError, match="M of 'hnsw' expected a whole number from 2 on, got 1"):
        build_index(FakeStore(30), tmp_path / "index", Recipe("hnsw", "float16", {"M": 1}))  # a crash of FAISS before


@pytest.mark.parametrize(("rows", "dim"), [(40, 384), (700, 32)])
def test_bytes_are_forecast_as_they_are_measured(tmp_path, rows, dim):
    store = FakeStore(rows, dim=dim)
    for recipe in (
        Recipe("faiss-flat"),
        Recipe("flat", "float16"),
        Recipe("bytes", "float16"),
        Recipe("bytes", "float16", {"head_width": 16}),
        Recipe("rabitq", "float16"),
        Recipe("ivf-sq8", "float16"),
    ):
        built = build_index(store, tmp_path / "index", recipe, force=True)
        spare = read_bytes(recipe, rows, dim) - stored_read_bytes(built.manifest)
        assert 0 <= spare <= 2 * FACTS_BYTES, recipe


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


def test_memory_that_a_refusal_names_is_enough(tmp_path):
    """Of a small index headers are a good part; what was not built is called a forecast."""
    store, memory = FakeStore(40, dim=384), "1KB"
    wish = plan.Wish(count=20, recipes=(Recipe("bytes", "float16"), Recipe("flat", "float16")))
    with pytest.raises(BudgetError, match=r"--memory \S+ \(bytes float16\), by forecast\.") as caught:
        plan.build_planned(store, tmp_path / "index", Budget.parse(0.95, memory, None), wish)
    memory = re.search(r"--memory (\S+)", str(caught.value)).group(1)
    built = plan.build_planned(store, tmp_path / "index", Budget.parse(0.95, memory, None), wish)
    assert stored_read_bytes(built.manifest) <= parse_bytes(memory)


def test_what_was_measured_is_no_forecast():
    costs = [Cost("built", 0.9, 10, 1.0, measured=True), Cost("planned", 0.95, 2000, None)]
    said = str(refuse(Budget(0.95, 1000), costs, "x"))
    assert "--recall 0.9 (built);" in said or "--recall 0.9 (built)." in said
    assert "--memory 2KB (planned), by forecast" in said


def test_queries_that_cannot_ask_are_refused_before_anything_is_built(tmp_path, table, monkeypatch):
    monkeypatch.setattr(plan, "build_index", lambda *_: pytest.fail("built"))
    for bad in (questions(space_id="other@0123456789ab"), questions(dim=8)):
        with pytest.raises(MismatchError):
            plan.build_planned(FakeStore(60), tmp_path / "index", Budget(0.9), plan.Wish(queries=(bad,)))


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
        assert found["overlap_low"] >= 0.9
        assert {name for name in known if not name.endswith(MARGIN)} <= set(found["settings"]) <= set(known)
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
        Embedding((Term(asked.units[row], 1.0, "q", kind, "q"),), Identity(SPACE)) for row, kind in enumerate(kinds)
    ]
    hits = index.search_many(queries, k=5)
    for query, kind, found in zip(queries, kinds, hits, strict=True):
        uncut = {name: NO_MARGIN for name in INDEXES[recipe.backend].settings if name.endswith(MARGIN)}
        assert found.plans[0].steps[0].settings == uncut | chosen.get(kind, tuned["settings"])
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


def test_a_plan_says_how_to_have_the_rates_measured_anew(on_disk, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BINDSEARCH_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(plan, "machine_rates", rates.machine_rates)
    measured = iter([Rates(5.0, 2.0, 10.0), RATES])  # on a busy machine; on a quiet one
    monkeypatch.setattr(rates, "measure_rates", lambda _: next(measured))
    command = ["index", str(on_disk[0]), "-o", str(tmp_path / "index"), "--recall", "0.9", "--dry-run"]
    assert run(command) == 0
    (kept,) = tmp_path.glob("rates-*.json")
    assert re.search(rf"rates of \d{{4}}-\d\d-\d\d.*{re.escape(f'delete {kept}')}", capsys.readouterr().err)
    kept.unlink()
    assert run([*command, "--json"]) == 0
    done = capsys.readouterr()
    assert json.loads(done.out)["rates"]["product"] == RATES.product and not done.err


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
    tuned = json.loads(capsys.readouterr().out)
    assert tuned["modalities"]["text"]["queries"] == 20
    assert tuned["asked"]["recall"] == 0.9  # as it was built for


def test_queries_held_out_of_nothing_are_refused(on_disk, tmp_path, capsys):
    assert run(["index", str(on_disk[0]), "-o", str(tmp_path / "index"), "--held-out", "30"]) == 2
    assert "--held-out 30: nothing is tuned without a budget" in capsys.readouterr().err
    assert not (tmp_path / "index").exists()


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


def test_options_go_before_a_recipe(on_disk, tmp_path, capsys, table):
    file, output = tmp_path / "mine.json", tmp_path / "index"
    file.write_text(json.dumps({"recipe": {"backend": "bytes", "row_dtype": "float16"}, "budget": {"recall": 0.9}}))
    words = ["index", str(on_disk[0]), "-o", str(output), "--recipe", str(file), "--held-out", "20"]
    assert run([*words, "--backend", "flat", "--row-dtype", "float32", "--recall", "0.8", "--quiet"]) == 0
    manifest = IndexFolder.open(output).manifest
    assert manifest.recipe == Recipe("flat", "float32") and manifest.tuned["asked"]["recall"] == 0.8
    for bad in (["--recall", "0"], ["--memory", ""], ["--latency", ""], ["--row-dtype", "float64"]):
        for own in (words, words[:4]):
            assert run([*own, *bad, "--dry-run"]) == 2
            assert "expected" in capsys.readouterr().err, bad
    assert run([*words, "--backend", "flatt", "--dry-run"]) == 2
    assert "Did you mean 'flat'?" in capsys.readouterr().err


def test_another_backend_takes_none_of_a_recipes_numbers(on_disk, tmp_path, table):
    file, output = tmp_path / "mine.json", tmp_path / "index"
    numbers = {"nlist": 4}
    file.write_text(json.dumps({"recipe": {"backend": "ivf-rabitq", "row_dtype": "float16", "build": numbers}}))
    words = ["index", str(on_disk[0]), "-o", str(output), "--recipe", str(file), "--held-out", "20", "--quiet"]
    for backend, kept in (("bytes", {}), ("ivf-rabitq", numbers)):
        assert run([*words, "--backend", backend, "--force"]) == 0
        assert IndexFolder.open(output).manifest.recipe == Recipe(backend, "float16", kept)
    assert run([*words, "--row-dtype", "float32", "--force"]) == 0
    assert IndexFolder.open(output).manifest.recipe == Recipe("ivf-rabitq", "float32", numbers)


def test_a_dry_run_promises_no_overlap_of_what_is_not_tuned(on_disk, tmp_path, capsys, table):
    command = ["index", str(on_disk[0]), "-o", str(tmp_path / "index"), "--dry-run"]
    assert run([*command, "--backend", "ivf-rabitq"]) == 0
    out = capsys.readouterr().out
    assert "overlap" not in out and re.search(
        r"ivf-rabitq float16 .* \?  not tuned; --recall tunes it$", out, re.MULTILINE
    )
    assert run([*command, "--backend", "ivf-rabitq", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (forecast,) = found["forecasts"]
    assert found["budget"] is None and forecast["recall"] is None and forecast["latency_ms"] is None
    assert forecast["build_s"] is not None and found["order"] == ["ivf-rabitq float16"]
    assert run(command) == 0
    out = capsys.readouterr().out
    assert "overlap" not in out and re.search(r"faiss-flat float32 .*[0-9]ms$", out, re.MULTILINE)
    assert run([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["forecasts"][0]["recall"] == 1.0
    assert run([*command, "--backend", "ivf-rabitq", "--recall", "0.9"]) == 0
    out = capsys.readouterr().out
    assert "forecast at overlap 0.9," in out and "not tuned" not in out and re.search(r"[0-9]ms$", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"budget": {"memory": 500000000}}, "budget.memory: expected str, got 500000000"),
        ({"budget": {"memory": "much"}}, "budget: --memory: expected bytes such as 2GB, 1.5GiB or 800MB, got 'much'"),
        ({"budget": {"latency": 10}}, "budget.latency: expected str, got 10"),
        ({"budget": {"recall": "high"}}, "budget.recall: expected float, got 'high'"),
        ({"budget": {"recall": "0.9"}}, "budget.recall: expected float, got '0.9'"),
        ({"budget": {"recall": None}}, "budget.recall: expected float, got None"),
        ({"budget": {"recall": 0}}, "budget: --recall: expected a share above 0 and up to 1, got 0.0"),
        ({"budget": {"recal": 0.99}}, "budget: unknown field 'recal'. Known: latency, memory, recall"),
        ({"budget": []}, "budget: expected an object with latency, memory, recall, got []"),
        ({"budgets": {}}, "unknown field 'budgets'"),
        ({"recipe": "flat"}, "recipe: expected an object with backend,"),
        ({"recipe": {"backend": "flat", "build": []}}, "recipe.build: expected dict, got []"),
        ({"recipe": {"backend": "flat", "build": {"nlist": 4}}}, "the backend 'flat' takes no numbers, got nlist"),
        ({"recipe": {"backend": "svs", "build": {"nlist": 4}}}, "the backend 'svs' has degree, window, leanvec; got"),
        ({"recipe": {"backend": "ivf-pq", "build": {"nlist": "many"}}}, "nlist of 'ivf-pq' expected a whole number"),
        ({"recipe": {"backend": "bytes", "build": {"head_width": "all"}}}, "head_width of 'bytes' expected a whole"),
        ({"recipe": {"backend": "hnsw", "build": {"M": 1}}}, "M of 'hnsw' expected a whole number from 2 on, got 1"),
    ],
)
def test_a_recipe_file_is_read_field_by_field(on_disk, tmp_path, capsys, changed, said):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"recipe": {"backend": "flat"}} | changed))
    assert run(["index", str(on_disk[0]), "-o", str(tmp_path / "index"), "--recipe", str(file), "--dry-run"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [[], ["--backend", "flat"], ["--row-dtype", "float16"], ["--backend", "bytes"], ["--recall", "0.9"]],
    ids=" ".join,
)
def test_what_a_dry_run_plans_is_built(words, on_disk, tmp_path, capsys, table):
    output = tmp_path / "index"
    command = ["index", str(on_disk[0]), "-o", str(output), *words]
    assert run([*command, "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["order"][0]
    tuned = ["--held-out", "20"] if "--recall" in words else []
    assert run([*command, *tuned, "--quiet"]) == 0
    manifest = IndexFolder.open(output).manifest
    assert f"{manifest.backend} {manifest.row_dtype}" == planned


def test_recipes_that_come_along_can_be_read():
    folder = Path(__file__).parent.parent / "indexes"
    files = sorted(folder.glob("*.json"))
    assert files
    for file in files:
        recipe, budget = plan.read_recipe(file)
        assert recipe.row_dtype in ("float16", "float32") and 0 < budget.recall <= 1
