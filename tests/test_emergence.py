"""What the report of emergence rests on: which pairs are trained, what bars hang on, sums, claims."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ablations import PLAN, judge, second_jobs
from benchmarks.arithmetic import choose_settings, choose_weights, pair_codes
from benchmarks.pairs import (
    CARRIES,
    VIEWS,
    average,
    kind_of,
    links_of,
    measure_pairs,
    share_none,
    translate,
    worst,
)
from benchmarks.pairs import judge as judge_pairs
from bindsearch.world.scene import held_out, sample, split_seeds


def turned(rows: np.ndarray, by: int) -> np.ndarray:
    """Unit rows of which each stands where the one `by` places on stood."""
    return np.roll(rows, by, axis=0)


@pytest.fixture(scope="module")
def scenes():
    return sample(split_seeds("test", 40))


@pytest.fixture(scope="module")
def rows(scenes):
    """Forty directions at right angles, one a scene, alike in every modality."""
    return {view: np.eye(40, dtype=np.float32) for view in VIEWS}


def test_every_modality_meets_the_image_tower_and_nothing_else():
    trained = {(a, b) for a in VIEWS for b in VIEWS if a != b and kind_of(a, b) == "trained"}
    assert all({"image", "video"} & set(pair) for pair in trained)
    assert {next(iter(set(pair) - {"image", "video"})) for pair in trained} == set(VIEWS) - {"image", "video"}
    assert kind_of("image", "video") == "one tower" and kind_of("german", "text") == "emergent"


def test_links_are_trained_pairs_through_the_image_tower():
    assert links_of("audio", "text") == ["audio->image", "image->text"]
    assert links_of("imu", "text") == ["imu->video", "video->text"]
    assert links_of("imu", "depth") == ["imu->video", "image->depth"]
    assert links_of("audio", "video") == ["audio->image"]
    assert links_of("video", "depth") == ["image->depth"]
    for a in VIEWS:
        for b in VIEWS:
            if a != b and kind_of(a, b) == "emergent":
                assert {kind_of(*link.split("->")) for link in links_of(a, b)} == {"trained"}


def test_what_shares_nothing_is_listed():
    assert share_none(VIEWS) == ["audio->imu", "imu->audio"]
    assert "audio" not in CARRIES["motion"] and "imu" not in CARRIES["subject"]


def test_an_emergent_pair_is_judged_by_its_weaker_link(scenes, rows):
    changed = {**rows, "audio": turned(rows["audio"], 1)}
    same = float(np.mean(scenes.subject == np.roll(scenes.subject, 1)))
    judged = judge_pairs(average([measure_pairs(scenes, changed)]))
    entry = judged["audio->depth"]["attributes"]["subject"]
    assert entry["value"] == entry["weaker_link"] == pytest.approx(same, abs=1e-4)
    assert entry["bar"] == pytest.approx(0.8 * same, abs=1e-4) and entry["met"]
    trained = judged["audio->image"]["attributes"]["subject"]
    assert trained["bar"] == 0.9 and not trained["met"]
    assert "bar" not in judged["image->depth"]["attributes"]["motion"]
    assert judged["imu->text"]["attributes"]["motion"]["bar"] == 0.8
    assert worst(judged, "trained")[0] in ("audio->image", "image->audio")


def test_scenes_beside_answer_and_ask_nothing(scenes, rows):
    alone = measure_pairs(scenes, rows)["audio->image"]["subject"]
    assert alone["value"] == 1.0
    others = replace(scenes, subject=(scenes.subject + 1) % 24)
    nearer = {view: matrix if view == "audio" else 2 * matrix for view, matrix in rows.items()}
    among = measure_pairs(scenes, rows, (others, nearer))["audio->image"]["subject"]
    assert among["value"] == 0.0 and among["n"] == alone["n"] == len(scenes)


def test_seeds_are_averaged_and_kept(scenes, rows):
    other = {**rows, "audio": turned(rows["audio"], 1)}
    figure = average([measure_pairs(scenes, rows), measure_pairs(scenes, other)])["audio->image"]["subject"]
    one, two = figure["seeds"]
    assert one == 1.0 and two < 0.5 and figure["value"] == pytest.approx((one + two) / 2, abs=1e-4)
    assert figure["low"] < figure["value"] < figure["high"]


def test_equal_captions_count_once(scenes, rows):
    texts = [f"scene {number}" for number in range(40)]
    moved = {"text": rows["text"], "german": turned(rows["german"], 1)}
    exact = translate(scenes, {"text": texts, "german": texts}, {"text": rows["text"], "german": rows["german"]})
    assert exact["german->text"]["its own caption, R@1"]["value"] == 1.0
    wrong = translate(scenes, {"text": texts, "german": texts}, moved)
    assert wrong["german->text"]["its own caption, R@1"]["value"] == 0.0
    alike = translate(scenes, {"text": ["one"] * 40, "german": ["one"] * 40}, moved)
    assert alike["german->text"]["its own caption, R@1"]["value"] == 1.0
    assert alike["german->text"]["different captions"] == 1


def test_questions_never_ask_for_a_pair_that_no_scene_has():
    subjects, settings = sample(split_seeds("test", 500)).subject, sample(split_seeds("validation", 500)).setting
    chosen = choose_settings(subjects, settings, avoid=settings)
    assert (settings[chosen] != held_out()[subjects]).all() and (settings[chosen] != settings).all()


def test_weights_are_those_that_find_most(scenes):
    pairs = pair_codes(scenes.subject, scenes.setting)
    names, codes = np.unique(pairs, return_inverse=True)
    images = np.eye(len(names), dtype=np.float32)[codes]
    right, noise = images.copy(), turned(images, 7)
    terms = {"right": right, "noise": np.float32(1.5) * noise}
    grid = {"right": (1.0,), "noise": (0.0, 0.5, 1.0)}
    best = choose_weights(terms, pairs, (scenes, images), grid)
    assert best == {"value": 1.0, "weights": {"right": 1.0, "noise": 0.0}}


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ({"base": 0.5, "MLP head": 0.3}, "reproduced"),
        ({"base": 0.5, "MLP head": 0.49}, "**not reproduced**: no difference"),
        ({"base": 0.5, "MLP head": 0.7}, "**not reproduced**"),
    ],
)
def test_a_claim_holds_only_beyond_noise(scores, verdict):
    claim = {"about": "head", "paper": "linear", "shown": {"linear": "base", "MLP": "MLP head"}}
    assert judge({**claim, "better": [["base", "MLP head"]]}, scores, 0.05)["verdict"] == verdict
    assert judge(claim, scores, 0.05)["verdict"] == "the paper does not say"


def test_claims_name_variants_that_run():
    plan = json.loads(Path(PLAN).read_text(encoding="utf-8"))
    run = {(variant["name"], modality) for variant, modality in second_jobs(plan)}
    for claim in plan["claims"]:
        named = {*claim["shown"].values(), *(name for pair in claim.get("better", []) for name in pair)}
        assert {(name, claim["modality"]) for name in named} <= run
