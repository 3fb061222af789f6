"""bindsearch-mini as bundled: its size, what it finds on unseen scenes and the demo's questions."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from bindsearch.models.spaces import load_space
from bindsearch.train.measure import CARRIED, named_shares, top_hits
from bindsearch.world.files import SUFFIXES
from bindsearch.world.scene import SPLITS, sample
from bindsearch.world.text import write_captions
from bindsearch.world.write import write_world

ROOT = Path(str(resources.files("bindsearch"))).parent
FOLDER = ROOT / "bindsearch" / "models" / "spaces" / "bindsearch-mini"
MODALITIES = ("image", "video", "text", "audio", "depth", "thermal", "imu")
TRAINED = (("image", "text"), ("video", "text"), ("image", "audio"), ("image", "depth"), ("image", "thermal"))
LINK = {"text": "image", "audio": "image", "depth": "image", "thermal": "image", "imu": "video"}
"""The kind of rows of the image tower that a modality was trained with."""
SCENES = 240
MARGIN = 0.04
"""Two standard errors of a share of 0.9 among 240 scenes: benchmarks/results/emergence.json holds the bars at 2,000."""


@pytest.fixture(scope="module")
def space():
    return load_space("bindsearch-mini")


def embedded(space, folder, seed, n, kind="full", modalities=MODALITIES):
    """Write scenes as files and embed the files, as `bindsearch embed` does."""
    write_world(n, folder, seed=seed, size_px=128, kind=kind, modalities=modalities)
    paths = {m: [folder / f"scene-{k:05d}{SUFFIXES[m]}" for k in range(n)] for m in modalities}
    return sample(np.arange(n, dtype=np.uint64) + np.uint64(seed), kind), {
        m: space.embed(m, paths[m]) for m in modalities
    }


@pytest.fixture(scope="module")
def demo(space, tmp_path_factory):
    """Unseen scenes, seven files each."""
    scenes, rows = embedded(space, tmp_path_factory.mktemp("demo"), SPLITS["demo"], SCENES)
    rows["text"] = space.embed("text", list(write_captions(scenes, style="full").texts))  # every one names the motion
    return scenes, rows


@pytest.fixture(scope="module")
def shares(demo):
    """Top-1 accuracy of every ordered pair, by attribute: "asked->found attribute"."""
    scenes, rows = demo
    found = {}
    for a in MODALITIES:
        for b in MODALITIES:
            hits = top_hits(rows[a], rows[b])
            for attribute in set(CARRIED[a]) & set(CARRIED[b]) if a != b else ():
                codes = getattr(scenes, attribute)
                found[a, b, attribute] = float(np.mean(codes[hits] == codes))
    return found


def curves():
    return json.loads((ROOT / "benchmarks" / "results" / "mini_training.json").read_text(encoding="utf-8"))


def test_bundle_is_small_and_says_what_it_is():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 12_000_000
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "photograph" in text and "imagebind-huge" in text and "What it cannot do" in text
    manifest = json.loads((FOLDER / "space.json").read_text(encoding="utf-8"))
    assert manifest["dtype"] == "float16" and tuple(manifest["modalities"]) == MODALITIES
    assert sorted(manifest["towers"]) == ["audio", "depth", "imu", "text", "thermal", "vision"]


def test_the_cards_figures_are_those_of_the_run(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from mini_card import card, space_bytes

    from bindsearch.models.manifest import load_manifest

    wanted = card(load_manifest(FOLDER), space_bytes(FOLDER), curves())
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == wanted  # python tools/train_mini.py RUN --partial


def test_the_curves_are_those_of_the_packaged_configuration():
    from bindsearch.config import to_json_dict
    from bindsearch.train.config import load_train_config

    packaged = to_json_dict(load_train_config(ROOT / "bindsearch" / "train" / "mini.json"))
    kept = curves()
    assert kept["config"] == json.loads(json.dumps(packaged))
    assert list(kept["stages"]) == [stage["name"] for stage in packaged["stages"]]
    for stage in packaged["stages"]:
        assert kept["stages"][stage["name"]]["curve"][-1]["step"] == stage["steps"], stage["name"]


def test_every_word_of_the_world_is_one_clip_word():
    from bindsearch.modalities.bpe import load_tokenizer
    from bindsearch.world.text import vocabulary

    kept = tuple(json.loads((FOLDER / "space.json").read_text(encoding="utf-8"))["preprocess"]["text"]["id_map"])
    small, full = load_tokenizer(kept), load_tokenizer(None)
    for text in vocabulary():
        assert [kept[number] for number in small.encode(text)] == full.encode(text), text
    assert small.encode("zyxgrüß 東京")  # what it does not know falls apart into bytes, and is no error


def test_trained_pairs_find_subject_and_setting_and_the_sensor_its_motion(shares):
    both_ways = [(a, b) for pair in TRAINED for a, b in (pair, pair[::-1])]
    asked = [(a, b, attribute) for a, b in both_ways for attribute in ("subject", "setting")]
    asked += [("imu", "video", "motion"), ("video", "imu", "motion")]
    below = {key: shares[key] for key in asked if shares[key] < 0.90 - MARGIN}
    assert not below, below


def test_emergent_pairs_reach_four_fifths_of_their_weaker_link(shares):
    """Pairs that never met: their links are those of each side with the image tower, as the report names them."""
    below = {}
    for a, b, attribute in shares:
        if {a, b} & {"image", "video"} or (attribute == "motion" and "imu" not in (a, b)):
            continue
        weaker = min(shares[a, LINK[a], attribute], shares[LINK[b], b, attribute])
        if shares[a, b, attribute] < 0.80 * weaker - MARGIN:
            below[a, b, attribute] = (shares[a, b, attribute], weaker)
    assert not below, below
    for a, b, attribute in (("audio", "text", "subject"), ("depth", "audio", "subject"), ("imu", "text", "motion")):
        assert shares[a, b, attribute] > 0.60, (a, b)


def test_what_shares_nothing_finds_nothing(demo):
    """A sound does not tell the motion: a sensor scores sounds of its own motion, or subject, as it does others."""
    scenes, rows = demo
    scores = rows["imu"] @ rows["audio"].T
    other = ~np.eye(len(scenes), dtype=bool)
    for codes in (scenes.motion, scenes.subject):
        same = codes[:, None] == codes[None, :]
        gap = scores[same & other].mean() - scores[~same].mean()
        assert abs(gap) < 0.1 * scores.std()


def test_german_captions_find_what_english_ones_say(space, demo, tmp_path):
    scenes, rows = demo
    write_world(SCENES, tmp_path, seed=SPLITS["demo"], modalities=("text",), language="german")
    german = space.embed("text", [tmp_path / f"scene-{k:05d}.de.txt" for k in range(SCENES)])
    for found in ("text", "image", "audio"):
        got = named_shares(scenes, scenes, top_hits(german, rows[found]))
        assert got["subject"]["value"] >= 0.80 and got["setting"]["value"] >= 0.80, (found, got)


def test_a_place_plus_a_sound_is_the_pair(space, demo, tmp_path):
    """The sum finds exactly the pair among 240 pictures; its terms alone do not. The bar is 0.60 among 2,000."""
    scenes, rows = demo
    places, place = embedded(space, tmp_path / "places", SPLITS["demo"] + 600_000, 150, "setting", ("image",))
    voices, voice = embedded(space, tmp_path / "voices", SPLITS["demo"] + 700_000, 150, "subject", ("audio",))
    there = {(int(a), int(b)) for a, b in zip(scenes.subject, scenes.setting, strict=True)}
    wanted = list(zip(voices.subject.tolist(), places.setting.tolist(), strict=True))
    asked = [k for k, pair in enumerate(wanted) if pair in there]

    def exact(queries):
        hits = np.argmax(queries @ rows["image"].T, axis=1)
        return np.mean([(scenes.subject[hits[k]], scenes.setting[hits[k]]) == wanted[k] for k in asked])

    alone = max(exact(place["image"]), exact(voice["audio"]))
    together = exact(place["image"] + voice["audio"])
    assert len(asked) >= 60 and together >= 0.50 and together >= 1.5 * alone, (together, alone)


def test_the_bundle_verifies():
    """Sizes, checksums and tower ids as read from the very bytes that are shipped."""
    from bindsearch.models.weights import verify

    facts = verify(FOLDER)
    assert facts["space_id"] == load_space("bindsearch-mini").space_id
