"""Settings found by measurement: the search for the cheapest, its margin, and the held-out queries it is made on."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from fake_store import MODALITIES, FakeStore, questions
from hypothesis import given, settings
from hypothesis import strategies as st

from bindsearch.cli import run
from bindsearch.errors import MismatchError, MissingInputError
from bindsearch.index import knobs, together, tune
from bindsearch.index.budget import Budget
from bindsearch.index.build import build_index
from bindsearch.index.heldout import held_out
from bindsearch.index.manifest import read_manifest
from bindsearch.index.plan import knobs_of, retune
from bindsearch.index.recipe import MARGIN, Recipe
from bindsearch.index.tuned import most_demanding, settings_for

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
        return knobs.Point(dict(settings), overlap, overlap, overlap, cost)

    def best(self, target):
        breadth, depth = np.meshgrid(np.arange(1, 513), np.arange(10, 1200))
        lists, candidates, ceiling = self.shape
        overlap = ceiling * (1 - np.exp(-breadth / lists)) * (1 - np.exp(-depth / candidates))
        cost = 0.05 + self.price[0] * breadth + self.price[1] * depth
        return cost[overlap >= target].min()


KNOBS = knobs.Knobs.of({"nprobe": 8, "rerank": 40}, {"nprobe": 512, "rerank": 100_000})


@settings(deadline=None)
@given(st.floats(2, 80), st.floats(10, 150), st.floats(0.001, 0.03), st.floats(0.0002, 0.004))
def test_settings_are_found_near_the_cheapest_with_few_measurements(lists, candidates, list_ms, candidate_ms):
    surface = Surface(lists, candidates, 1.0, list_ms, candidate_ms)
    found = knobs.cheapest(surface, KNOBS, 0.95, k=10)
    asked = len({json.dumps(each) for each in surface.asked})
    best = surface.best(0.95)
    assert found.overlap >= 0.95
    assert found.ms <= 1.25 * best
    assert asked < 100


def test_margins_are_found_where_queries_differ():
    """Half of the queries need a tenth of what the others need: a margin gives each its own, caps give all the most."""
    needs = np.array([4.0, 40.0])

    def measure(settings):
        lists = np.minimum(settings["nprobe"], needs * settings.get("nprobe_margin", 20_000) / 100)
        depth = np.minimum(settings["rerank"], 15 * needs * settings.get("rerank_margin", 20_000) / 100)
        overlap = float(((1 - np.exp(-lists / needs * 4)) * (1 - np.exp(-depth / (15 * needs) * 4))).mean())
        return knobs.Point(
            dict(settings), overlap, overlap, overlap, 0.05 + float(0.01 * lists.mean() + 0.002 * depth.mean())
        )

    most = {"nprobe": 512, "rerank": 100_000}
    capped = knobs.cheapest(measure, knobs.Knobs.of(most, most), 0.95, k=10)
    margins = {**most, "nprobe_margin": 20_000, "rerank_margin": 20_000}
    cut = knobs.cheapest(measure, knobs.Knobs.of(margins, margins), 0.95, k=10)
    assert cut.overlap >= 0.95
    assert {"nprobe_margin", "rerank_margin"} <= cut.settings.keys()
    assert cut.ms < 0.75 * capped.ms
    assert knobs.Knobs.of({"rerank_margin": 1, "rerank": 9, "nprobe_margin": 1, "nprobe": 3}, most).breadth == "nprobe"


def test_no_margin_is_looked_for_where_none_can_gain():
    """Where a search costs the same however few candidates are looked at, one try a knob says so."""
    surface, tried = Surface(), []

    def measure(settings):
        tried.append({name for name in settings if name.endswith("_margin")})
        return surface({"nprobe": settings["nprobe"], "rerank": settings["rerank"]})

    most = {"nprobe": 512, "rerank": 100_000, "nprobe_margin": 20_000, "rerank_margin": 20_000}
    found = knobs.cheapest(measure, knobs.Knobs.of(most, most), 0.95, k=10)
    assert [each for each in tried if each] == [{"nprobe_margin"}, {"rerank_margin"}]
    assert found.settings.keys() == {"nprobe", "rerank"}


def test_a_higher_target_is_begun_near_to_what_a_lower_one_found():
    anew, on = Surface(), Surface()
    low = knobs.cheapest(Surface(), KNOBS, 0.94, k=10)
    whole = knobs.cheapest(anew, KNOBS, 0.95, k=10)
    found = knobs.cheapest(on, KNOBS, 0.95, k=10, near=low)
    assert found.overlap >= 0.95
    assert found.ms <= 1.02 * whole.ms
    assert len({json.dumps(each) for each in on.asked}) < 0.9 * len({json.dumps(each) for each in anew.asked})


def test_what_no_settings_reach_is_said():
    assert knobs.cheapest(Surface(ceiling=0.9), KNOBS, 0.95, k=10) is None


def test_more_is_asked_for_more_and_less_where_candidates_suffice():
    found = [knobs.cheapest(Surface(), KNOBS, target, k=10) for target in (0.8, 0.9, 0.95, 0.99)]
    assert [each.ms for each in found] == sorted(each.ms for each in found)
    easy = knobs.cheapest(Surface(candidates=3.0), KNOBS, 0.95, k=10)
    assert easy.settings["rerank"] < found[2].settings["rerank"]


@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0, 1)), min_size=1, max_size=30))
def test_the_front_holds_what_nothing_beats(pairs):
    points = [knobs.Point({"rerank": at}, overlap, overlap, overlap, ms) for at, (ms, overlap) in enumerate(pairs)]
    kept = knobs.front(points)
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


def test_a_margin_that_one_lacks_cuts_nobody():
    both = [{"nprobe": 9, "nprobe_margin": 300}, {"nprobe": 30, "nprobe_margin": 500, "rerank_margin": 80}]
    assert most_demanding(both) == {"nprobe": 30, "nprobe_margin": 500}


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


def test_queries_come_from_the_stores_that_are_named_a_modality_each(tmp_path):
    folder = build_index(FakeStore(200), tmp_path / "index")
    samples = {each.modality: each for each in held_out(folder.snapshot, [questions()], 10, count=20)}
    assert sorted(samples) == ["audio", "text"]
    for each in samples.values():
        scores, _, _ = folder.snapshot.search_exact(each.queries, 10)
        assert len(each) == 20 and (each.own == -1).all()
        np.testing.assert_array_equal(each.least, scores[:, 9])


def test_one_store_by_itself_is_a_list_of_one(tmp_path):
    folder = build_index(FakeStore(200), tmp_path / "index")
    alone, listed = (held_out(folder.snapshot, given, 10, count=20) for given in (questions(), [questions()]))
    for one, other in zip(alone, listed, strict=True):
        np.testing.assert_array_equal(one.queries, other.queries)
    for call in (
        lambda: held_out(folder.snapshot, str(tmp_path / "none"), 5),
        lambda: build_index(FakeStore(9), tmp_path / "new", queries=str(tmp_path / "none")),
        lambda: build_index(FakeStore(9), tmp_path / "new", centre=True, centre_with=tmp_path / "none"),
    ):
        with pytest.raises(MissingInputError, match=f"{tmp_path}/none: "):
            call()


def test_another_sample_is_another_sample_and_the_same_is_the_same(tmp_path):
    folder = build_index(FakeStore(50), tmp_path / "index")
    one, same, other = (held_out(folder.snapshot, [questions(seed=seed)], 10, 20)[0].queries for seed in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_without_stores_each_modality_asks_for_the_others_and_for_all(tmp_path):
    folder = build_index(FakeStore(90), tmp_path / "index")
    samples = held_out(folder.snapshot, [], 5, count=12)
    assert [each.modality for each in samples] == [name for name in sorted(MODALITIES) for _ in range(2)]
    for each, whole in zip(samples[::2], samples[1::2], strict=True):
        (mask,) = each.selectors
        own = folder.snapshot.table(each.own, ["modality"])["modality"].to_pylist()
        assert set(own) == {each.modality} and np.count_nonzero(mask) == 60
        scores, ids = folder.snapshot.search(each.queries, 5, each.selectors)
        assert not set(folder.snapshot.table(ids.ravel(), ["modality"])["modality"].to_pylist()) & {each.modality}
        np.testing.assert_array_equal(each.least, scores[:, 4])
        np.testing.assert_array_equal(whole.queries, each.queries)
        scores, ids = folder.snapshot.search(whole.queries, 6, whole.selectors)
        assert whole.selectors is None and (ids[:, 0] == whole.own).all()  # a row is no answer to itself
        np.testing.assert_array_equal(whole.least, scores[:, 5])


def test_tuning_on_indexed_rows_says_that_it_promises_too_much(tmp_path, caplog):
    folder = build_index(FakeStore(40, modalities=("image",)), tmp_path / "index")
    with caplog.at_level(logging.WARNING):
        (sample,) = held_out(folder.snapshot, [], 5, count=10)
    assert "--queries" in caplog.text and "do worse" in caplog.text
    scores, ids, _ = folder.snapshot.search_exact(sample.queries, 6)
    assert (ids[:, 0] == sample.own).all()  # the row itself would be the best answer
    np.testing.assert_array_equal(sample.least, scores[:, 5])


def test_an_index_that_was_emptied_cannot_be_tuned(tmp_path, capsys):
    folder = build_index(FakeStore(n=3, modalities=("image",)), tmp_path / "index")
    folder.remove(folder.snapshot.ids())
    assert run(["index", "tune", str(folder.path)]) == 3
    assert f"index: holds no item, so that nothing can be measured. Add some: bindsearch index add {folder.path}" in (
        capsys.readouterr().err
    )


def test_one_row_has_no_other_to_miss(tmp_path, capsys):
    folder = build_index(FakeStore(n=1, modalities=("image",)), tmp_path / "index")
    assert run(["index", "tune", str(folder.path)]) == 0
    assert "0.0000" not in capsys.readouterr().err
    found = read_manifest(folder.path).tuned["modalities"]["image"]
    assert (found["overlap_at_10"], found["overlap_low"]) == (1.0, 1.0)


def test_queries_of_another_space_are_refused(tmp_path):
    folder = build_index(FakeStore(40), tmp_path / "index")
    with pytest.raises(MismatchError, match="other@0123456789ab"):
        held_out(folder.snapshot, [questions(space_id="other@0123456789ab")], 5)


def two_kinds(images, texts, dim=32, seed=0):
    """Images and texts around the same 40 points, mixed: a store, and which of its rows are images."""
    rng = np.random.default_rng(seed)
    store = FakeStore(images + texts, dim=dim, seed=seed)
    kinds = rng.permutation(["image"] * images + ["text"] * texts)
    centres = rng.standard_normal((40, dim)).astype(np.float32)
    store.vectors = centres[rng.integers(0, 40, images + texts)] + store.vectors
    place = store.table.column_names.index("modality")
    store.table = store.table.set_column(place, "modality", pa.array(kinds.tolist()))
    return store, kinds == "image"


def overlap_of(folder, queries, own, settings, selectors=None):
    """The overlap that settings reach with queries that are rows, each left out of its own answers."""
    scores, ids, _ = folder.snapshot.search_exact(queries, 11, selectors)
    others = -np.sort(-np.where(ids == own[:, None], -np.inf, scores), axis=1)
    found = folder.snapshot.search(queries, 11, selectors, settings)
    return tune.overlap_at_k(*found, others[:, 9], own, 10).mean()


@pytest.fixture
def priced(monkeypatch):
    """Time as settings say, whatever the machine does: less with margins, so that they are always worth having."""
    measured = tune.Measure._measure

    def measure(self, settings):
        ms = sum(value for name, value in settings.items() if not name.endswith(MARGIN))
        cheaper = sum(name.endswith(MARGIN) for name in settings)
        return replace(measured(self, settings), ms=ms / 4**cheaper)

    monkeypatch.setattr(tune.Measure, "_measure", measure)
    monkeypatch.setattr(tune, "_LEAST_S", 0.0)


def test_where_few_can_answer_all_of_them_are_a_whole_answer(tmp_path):
    store, _ = two_kinds(575, 25)
    folder = build_index(store, tmp_path / "index", Recipe("ivf-sq8", "float16"))
    samples = [each for each in held_out(folder.snapshot, (), 30) if each.selectors is not None]
    assert {each.modality: each.answers for each in samples} == {"image": 25, "text": 30}
    sample = samples[0]

    def search(queries, k, settings):
        return folder.snapshot.search(queries, k, sample.selectors, settings)

    assert tune.Measure(search, sample, 30)({"nprobe": 10_000, "rerank": 10_000}).overlap == 1.0
    assert retune(folder, Budget(recall=0.9))["settings"]


@pytest.mark.parametrize("texts", [5, 25])
def test_a_few_items_of_another_modality_do_not_decide_how_far_to_look(texts, tmp_path, priced):
    """So few are scored one and all, with any settings: images that ask for all items would find half of theirs."""
    store, images = two_kinds(2000, texts)
    folder = build_index(store, tmp_path / "index", Recipe("ivf-pq", "float16"))
    found = retune(folder, Budget(0.9), count=200)["modalities"]["image"]
    queries, own = store.units[images][::10], store.ids[images][::10]
    assert overlap_of(folder, queries, own, found["settings"]) >= 0.88
    assert found["overlap_low"] >= 0.9 and found["overlap_at_10"] < 1.0


def test_a_margin_that_a_filter_hides_is_not_chosen_under_it(tmp_path, priced):
    """Images ask for 800 texts of 2,000 items: lists are not cut there, so that any margin would do."""
    store, images = two_kinds(1200, 800)
    folder = build_index(store, tmp_path / "index", Recipe("ivf-sq8", "float16"))
    assert [together.sees_margins(folder.snapshot, each) for each in held_out(folder.snapshot, (), 10)] == [
        *(False, True),  # images, over texts and over all
        *(True, True),
    ]
    found = retune(folder, Budget(0.9), count=200)["modalities"]["image"]
    assert any(name.endswith(MARGIN) for name in found["settings"])  # as images that ask for all items allow it
    queries, own = store.units[images][::5], store.ids[images][::5]
    texts = [part.column("modality").to_numpy() == "text" for part in folder.snapshot.segments]
    assert overlap_of(folder, queries, own, found["settings"]) >= 0.88
    assert overlap_of(folder, queries, own, found["settings"], texts) >= 0.88


@pytest.mark.parametrize("asking", [(), [questions(200, dim=32)]], ids=["own rows", "stores"])
def test_one_sample_a_modality_is_tuned_by_itself(asking, tmp_path, priced):
    store, _ = two_kinds(600, 0)
    folder = build_index(store, tmp_path / "index", Recipe("ivf-rabitq", "float16"))
    samples = held_out(folder.snapshot, asking, 10)
    assert [each.modality for each in samples] == (["audio", "text"] if asking else ["image"])
    turned = knobs_of(folder.snapshot)
    for sample in samples:
        alone = tune.tune(tune.snapshot_search(folder.snapshot), sample, turned, 0.9, 10)
        assert together.tune_together(folder.snapshot, [sample], turned, 0.9, 10).chosen == alone.chosen is not None


def test_what_samples_do_not_confirm_together_is_widened(tmp_path, priced, monkeypatch):
    """Both choices are taken for too narrow: margins go first, then knobs are doubled."""
    store, _ = two_kinds(700, 500)
    folder = build_index(store, tmp_path / "index", Recipe("ivf-sq8", "float16"))
    confirm, asked = tune.Tuner.confirm, []

    def doubtful(self, settings):
        asked.append(dict(settings))
        found = confirm(self, settings)
        return found if len(asked) > 5 else replace(found, best=replace(found.best, low=0.0))

    monkeypatch.setattr(tune.Tuner, "confirm", doubtful)
    samples = [each for each in held_out(folder.snapshot, (), 10) if each.modality == "image"]
    found = together.tune_together(folder.snapshot, samples, knobs_of(folder.snapshot), 0.8, 10)
    first, bare, wider = asked[::2][:3]
    assert any(name.endswith(MARGIN) for name in first)
    assert bare == {name: value for name, value in first.items() if not name.endswith(MARGIN)}
    assert wider == knobs_of(folder.snapshot).doubled(bare)
    assert found.chosen is not None and found.chosen.settings == asked[-1]


def test_nobody_looks_further_than_for_perfect_answers():
    """A hundred queries confirm 0.990 at most, answered perfectly: asked for more, tuning ends there."""
    needs, asked = np.arange(100) % 40 + 1, []

    def search(queries, k, settings):
        asked.append(settings["nprobe"])
        right = settings["nprobe"] >= needs[queries[:, 0].astype(int)]
        scores = np.where(right[:, None], 1.0, 0.0) * np.ones((1, k))
        return scores.astype(np.float32), np.tile(np.arange(k), (len(queries), 1))

    queries = np.arange(100, dtype=np.float32)[:, None]
    sample = tune.Sample("text", "", queries, np.ones(100, dtype=np.float32), np.full(100, -1))
    most = knobs.Knobs.of({"nprobe": 1}, {"nprobe": 1 << 20})
    tuned = tune.tune(search, sample, most, 0.995, 10)
    assert tuned.chosen is None
    assert tuned.best.overlap == 1.0
    assert max(asked) <= 64
    assert tune.tune(search, sample, most, 0.985, 10).chosen is not None
