"""The bundled pair answers: pictures as it was taught, sounds and heat as it was not; `ask` says so at the prompt."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")

from bindsearch import load_space
from bindsearch.cache.bundled import FOLDER, bundled_cache
from bindsearch.cli import run
from bindsearch.llm.conversations import Chat
from bindsearch.llm.pair import BUNDLED, load_pair
from bindsearch.train.answer_measure import measure_answers
from bindsearch.train.picture_rows import embed_scenes
from bindsearch.world.instructions import read_answer
from bindsearch.world.scene import sample, split_seeds
from bindsearch.world.write import write_world

SCENES = 120


@pytest.fixture(scope="module")
def pair():
    return load_pair()


@pytest.fixture(scope="module")
def scenes():
    return sample(split_seeds("test", SCENES, 900_000))


@pytest.fixture(scope="module")
def rows(scenes):
    space = load_space("bindsearch-mini")
    return {modality: embed_scenes(space, modality, scenes) for modality in ("image", "audio", "thermal")}


def right(pair, scenes, rows, kind):
    chat = Chat(pair.model.tokenizer, context_tokens=pair.model.llama.config.max_position_embeddings)
    return measure_answers(pair.model.connection, chat, rows, scenes, [kind])[kind]


@pytest.mark.parametrize(
    ("kind", "floor"), [("subject", 0.9), ("colour", 0.85), ("setting", 0.95), ("is_subject", 0.85), ("is_motion", 0.6)]
)
def test_pictures_are_answered(pair, scenes, rows, kind, floor):
    assert right(pair, scenes, rows["image"], kind) >= floor


def test_sounds_and_heat_are_answered_without_training(pair, scenes, rows):
    cache = bundled_cache()
    for modality in ("audio", "thermal"):
        assert right(pair, scenes, cache.enhance(rows[modality]), "subject") >= 0.75
    zeros = np.zeros_like(rows["audio"])
    assert right(pair, scenes, zeros, "subject") <= 0.25


def test_the_bundle_is_small_and_nothing_in_it_is_pickled():
    files = [path for path in BUNDLED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".model", ".md"}


def test_ask_about_a_sound_at_the_prompt(tmp_path, capsys):
    seed = split_seeds("demo", 1, 31)
    write_world(1, tmp_path / "world", seed=int(seed[0]), kind="subject", modalities=("audio",))
    (sound,) = (tmp_path / "world").glob("*.wav")
    picture = tmp_path / "carried.png"
    shown = ["--show-cached", "--sheet", str(picture)]
    assert run(["ask", "What is making this sound?", "--audio", str(sound), "--json", *shown]) == 0
    (told,) = json.loads(capsys.readouterr().out)["answers"]
    assert read_answer("subject", told["answer"]) == int(sample(seed, "subject").subject[0])
    assert picture.stat().st_size > 1000


def test_a_cache_moves_no_picture(tmp_path, capsys):
    """Whether it is the bundled one or named: the model reads pictures as they are; what else is asked about moves."""
    seed = split_seeds("demo", 1, 31)
    write_world(1, tmp_path / "world", seed=int(seed[0]), kind="subject", modalities=("audio", "image"))
    picture, sound = (str(next((tmp_path / "world").glob(f"*.{kind}"))) for kind in ("png", "wav"))
    ask = ["ask", "What is it?", "--json", "--max-new-tokens", "2", "--show-cached", "--cache", str(FOLDER)]
    assert run([*ask, "--image", picture]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["cached"] == [] and f"{FOLDER}: not used: the model was trained on pictures" in err
    assert "no cached images: the model was trained on pictures" in err
    assert run([*ask, "--image", picture, "--audio", sound]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["cached"] and "not used" not in err
