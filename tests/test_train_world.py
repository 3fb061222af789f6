"""Training on the world: batches, rows of the pool against files, the stages of tools/train_mini.py, its figures."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bindsearch.config import from_json_dict, to_json_dict
from bindsearch.errors import InputError, MismatchError, MissingInputError, UnknownNameError
from bindsearch.models.bind import build_tower, load_architecture
from bindsearch.registry import MODALITIES
from bindsearch.train.binding import embed_rows, embed_videos
from bindsearch.train.config import StageConfig, TrainConfig, load_train_config
from bindsearch.train.measure import accuracy, interval, named_shares, other_hits, pair_figures, top_hits
from bindsearch.train.pairs import PREPARE, BatchDrawer, TextRows, alike, normalise_clips, normalise_images
from bindsearch.train.pool import MEL_SCALE, RENDERERS, frames_rows, pool_scenes, render_pool, video_rows
from bindsearch.train.stages import load_numbers, prepare, run_stages
from bindsearch.world.scene import sample, split_seeds

TESTS = Path(__file__).parent


def test_batches_share_attributes_and_hold_no_row_twice():
    scenes = pool_scenes(0, 6000, 0.24)
    config = StageConfig("s", "text", steps=1, batch=128, pool=6000, shared_setting=0.5, shared_subject=0.25)
    drawer = BatchDrawer(scenes, config, 128)
    plain = BatchDrawer(scenes, replace(config, shared_setting=0.0, shared_subject=0.0), 128)
    for seed in range(5):
        batch = drawer.rows(np.random.default_rng(seed))
        assert len(batch) == 128 == len(set(batch.tolist()))
        pairs = (scenes.setting[batch][:, None] == scenes.setting[batch][None]).mean()
        loose = plain.rows(np.random.default_rng(seed))
        assert pairs > 1.3 * (scenes.setting[loose][:, None] == scenes.setting[loose][None]).mean()
    assert np.array_equal(drawer.rows(np.random.default_rng(9)), drawer.rows(np.random.default_rng(9)))


def test_alike_is_agreement_in_the_named_attributes():
    scenes = sample(split_seeds("train", 200), "mixed")
    subject = scenes.subject[:, None] == scenes.subject[None]
    setting = scenes.setting[:, None] == scenes.setting[None]
    motion = scenes.motion[:, None] == scenes.motion[None]
    assert np.array_equal(alike(scenes), subject & setting)
    assert np.array_equal(alike(scenes, ("subject", "setting", "motion")), subject & setting & motion)
    assert np.array_equal(alike(scenes, ("motion",)), motion)


def test_captions_of_a_batch_are_in_equal_shares_of_languages_and_styles(mini):
    scenes = sample(split_seeds("train", 120))
    ids, fits = mini["text"].draw(scenes, np.random.default_rng(1), ("english", "german"), ("plain", "full"))
    assert ids.shape == (120, 32) and fits.shape == (120, 120) and fits.diagonal().all()
    full = mini["text"].draw(scenes, np.random.default_rng(1), ("english",), ("full",))[1]
    assert fits.sum() > 2 * full.sum()  # plain captions are true of more scenes
    german = mini["text"].draw(scenes, np.random.default_rng(1), ("german",), ("full",))[0]
    english = mini["text"].draw(scenes, np.random.default_rng(1), ("english",), ("full",))[0]
    assert np.array_equal(
        ids, mini["text"].draw(scenes, np.random.default_rng(1), *[("english", "german"), ("plain", "full")])[0]
    )
    assert (german != english).any(dim=1).all()


@pytest.fixture(scope="module")
def mini():
    """Numbers of the mini, and its captions."""
    numbers = load_numbers("bindsearch-mini")
    return {"numbers": numbers, "text": TextRows(numbers["text"])}


def train_mini():
    """Load tools/train_mini.py as a module."""
    path = TESTS.parent / "tools" / "train_mini.py"
    if str(path.parent) not in sys.path:  # where its neighbour lies
        sys.path.append(str(path.parent))
    found = importlib.util.spec_from_file_location("train_mini", path)
    module = importlib.util.module_from_spec(found)
    sys.modules["train_mini"] = module
    found.loader.exec_module(module)
    return module


def test_pictures_without_augmentation_are_what_embed_sees(mini):
    from bindsearch.types import Media
    from bindsearch.world.image import render_images

    numbers = mini["numbers"]["image"]
    pixels = render_images(sample(split_seeds("test", 4)), 64)
    modality = MODALITIES["image"]
    config = modality.config("default", **numbers)
    seen = np.stack([modality.preprocess(Media("image", row, "level"), config)[0] for row in pixels])
    trained = normalise_images(pixels, numbers, None).numpy()
    assert trained.shape == (4, 3, 1, 64, 64) and np.abs(seen - trained[:, :, 0]).max() < 1e-6
    moved = normalise_images(pixels, numbers, np.random.default_rng(1)).numpy()
    assert moved.shape == trained.shape and np.abs(moved - trained).mean() > 0.05


def test_clips_of_the_pool_are_the_frames_that_embed_chooses(mini):
    from bindsearch.types import Media
    from bindsearch.world.video import RATE_FPS, render_videos

    scenes, numbers = sample(split_seeds("test", 5)), mini["numbers"]["video"]
    modality = MODALITIES["video"]
    config = modality.config("default", **numbers)
    seen = np.stack(
        [modality.preprocess(Media("video", v, "level", float(RATE_FPS)), config) for v in render_videos(scenes, 64)]
    )
    kept = video_rows(scenes, numbers)
    assert kept.shape == (5, 3, 2, 64, 64, 3) and seen.shape == (5, 3, 3, 2, 64, 64)
    for clip in range(3):
        assert np.abs(seen[:, clip] - normalise_clips(kept[:, clip], numbers, None).numpy()).max() < 1e-5
    first = np.repeat(kept[:, 0, :1], 2, axis=1)
    moved = normalise_clips(first, numbers, np.random.default_rng(3))
    assert torch.equal(moved[:, :, 0], moved[:, :, 1])  # both frames of a clip are augmented alike


def test_frames_of_the_image_tower_are_the_first_and_the_last_of_the_video(mini):
    from bindsearch.world.video import render_videos

    scenes = sample(split_seeds("test", 3))
    kept, whole = frames_rows(scenes, mini["numbers"]["video"]), render_videos(scenes, 64)
    assert np.array_equal(kept, whole[:, [0, -1]])


def test_a_video_is_the_mean_of_its_clips():
    clips = np.arange(2 * 3 * 2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 3, 2, 4, 4, 3)
    numbers = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    tower = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(96, 5))
    rows = [
        F.normalize(tower(normalise_clips(clips[:, clip], numbers, None).bfloat16().float()), dim=1).detach().numpy()
        for clip in range(3)
    ]
    mean = np.mean(rows, axis=0)
    found = embed_videos(tower, clips, numbers)
    assert np.abs(found - mean / np.linalg.norm(mean, axis=1, keepdims=True)).max() < 0.02  # bfloat16
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-6


@pytest.mark.parametrize("modality", ["audio", "depth", "thermal", "imu"])
def test_rows_of_the_pool_are_what_embed_sees_in_the_files(modality, mini, tmp_path):
    from bindsearch.sources import Source
    from bindsearch.world.files import SUFFIXES, encode, render_values

    scenes, numbers = sample(split_seeds("test", 4)), mini["numbers"][modality]
    reader = MODALITIES[modality]
    config = reader.config("default", **numbers)
    seen = []
    for number, value in enumerate(render_values(scenes, modality, 64)):
        path = tmp_path / f"{number}{SUFFIXES[modality]}"
        path.write_bytes(encode(value, modality))
        seen.append(reader.preprocess(reader.decode(Source.of(path), config), config)[0])
    kept = RENDERERS[modality](scenes, numbers)
    trained = PREPARE[modality](kept, None).numpy()
    wanted = np.stack(seen)
    allowed = 0.5 / MEL_SCALE if modality == "audio" else 2.0**-11 * np.abs(wanted)  # how the pool keeps them
    assert trained.shape == wanted.shape and (np.abs(trained - wanted) <= allowed + 1e-6).all()
    moved = PREPARE[modality](kept, np.random.default_rng(2)).numpy()
    assert moved.shape == trained.shape and np.isfinite(moved).all() and np.abs(moved - trained).mean() > 0.003
    assert np.array_equal(moved, PREPARE[modality](kept, np.random.default_rng(2)).numpy())


def test_pool_is_kept_and_read_again(tmp_path):
    numbers = {"size_px": 16}
    first = render_pool("image", tmp_path, (10, 30), 0.2, numbers, workers=1)
    kept = list(tmp_path.iterdir())
    stamp = kept[0].stat().st_mtime_ns
    again = render_pool("image", tmp_path, (10, 30), 0.2, numbers, workers=1)
    assert np.array_equal(first, again) and first.shape == (30, 16, 16, 3)
    assert len(kept) == 1 and kept[0].stat().st_mtime_ns == stamp


def packaged():
    return load_train_config(str(resources.files("bindsearch.train") / "mini.json"))


def test_packaged_configuration_reads_and_unknown_fields_are_refused(tmp_path):
    config = packaged()
    assert [stage.modality for stage in config.stages if not stage.train_anchor] == ["audio", "depth", "thermal", "imu"]
    assert {stage.modality for stage in config.stages if stage.train_anchor} == {"text"}
    assert config.stages[-1].anchor == "video" and config.checkpoint_every_s < 600
    assert from_json_dict(TrainConfig, to_json_dict(config)) == config
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({**to_json_dict(config), "sead": 1}), encoding="utf-8")
    with pytest.raises(InputError, match="sead"):
        load_train_config(broken)
    with pytest.raises(MissingInputError, match="nowhere"):
        load_train_config(tmp_path / "nowhere.json")
    with pytest.raises(InputError, match="shared_setting"):
        StageConfig("s", "text", steps=1, shared_setting=0.8, shared_subject=0.5)
    with pytest.raises(InputError, match="video_share"):
        StageConfig("s", "text", steps=1, video_share=0.5, clips=10)
    with pytest.raises(UnknownNameError, match="maks"):
        StageConfig("s", "text", steps=1, false_negatives="maks")


def test_minis_towers_fit_into_twelve_megabytes_and_know_the_worlds_words():
    architecture = load_architecture("bindsearch-mini")
    towers = {name: build_tower(architecture, name) for name in architecture.towers}
    assert sorted(towers) == ["audio", "depth", "imu", "text", "thermal", "vision"]
    numbers = sum(value.numel() for tower in towers.values() for value in tower.state_dict().values())
    assert numbers * 2 < 11_900_000  # float16, and room for headers and space.json
    assert architecture.towers["text"].stem.vocabulary == len(load_numbers("bindsearch-mini")["text"]["id_map"])
    assert all(tower.head.hidden is None for tower in towers.values())  # linear heads, as in the paper


def small(stages):
    """The packaged configuration with stages of a few steps on a few scenes."""
    config = packaged()
    few = {"steps": 3, "batch": 24, "pool": 60, "warmup_steps": 2}
    made = [replace(stage, **few, clips=30 if stage.clips else 0, first_scene=0) for stage in config.stages]
    return replace(config, validation=30, measure_every=3, log_every=1, stages=tuple(made[at] for at in stages))


def bundled_bytes():
    """What a run beside the bundled space must leave alone."""
    tool = train_mini()
    files = [*tool.BUNDLED.iterdir(), *tool.RESULTS.glob("mini_training.*")]
    return {path: path.stat().st_mtime_ns for path in files}


def test_stages_of_the_world_run_are_skipped_when_done_and_start_anew_from_a_seed(tmp_path, monkeypatch, capsys):
    tool, kept, threads = train_mini(), bundled_bytes(), torch.get_num_threads()
    config = small([0, *range(len(packaged().stages) - 4, len(packaged().stages))])
    (tmp_path / "small.json").write_text(json.dumps(to_json_dict(config)), encoding="utf-8")
    folder = tmp_path / "run"

    def called(*more):
        every = [str(folder), "--config", str(tmp_path / "small.json"), "--workers", "0", "--threads", str(threads)]
        monkeypatch.setattr(sys, "argv", ["train_mini.py", *every, *map(str, more)])
        tool.main()
        return capsys.readouterr().out

    said = called("--output", tmp_path / "space")
    assert "image, video, text, audio, depth, thermal, imu" in said and "done before" not in said
    notes = json.loads((folder / "video-imu.json").read_text(encoding="utf-8"))
    assert {key for key in notes["curve"][-1] if "->" in key} >= {"imu->video motion", "imu->text motion"}
    again = called("--output", tmp_path / "again", "--partial")
    assert again.count("done before") == 5 and "step" not in again
    other = called("--output", tmp_path / "other", "--seed", 7)
    assert other.count("done before") == 1
    spaces = {name: tmp_path / name for name in ("space", "again", "other")}
    for name in ("vision", "text", "depth"):
        files = {key: (space / f"{name}.safetensors").read_bytes() for key, space in spaces.items()}
        assert files["space"] == files["again"] and (files["space"] == files["other"]) == (name != "depth"), name
    assert not (tmp_path / "space" / "naming.safetensors").exists()
    curves = json.loads((folder / "mini_training.json").read_text(encoding="utf-8"))
    assert list(curves["stages"]) == [stage.name for stage in config.stages]
    assert (folder / "mini_training.svg").read_bytes().startswith(b"<?xml")
    assert (folder / "seed-7" / "mini_training.log").read_text(encoding="utf-8").count("stage 1/5") == 3
    check_cards(spaces, curves)
    run = prepare(config, folder, 0, print)
    check_space(run, run_stages(run, config.stages, print, None), tmp_path / "space")
    longer = replace(config, stages=(replace(config.stages[0], steps=4), *config.stages[1:]))
    (tmp_path / "small.json").write_text(json.dumps(to_json_dict(longer)), encoding="utf-8")
    with pytest.raises(MismatchError, match=r"image-text-plain\.safetensors: written by configuration"):
        called("--output", tmp_path / "space")
    (folder / "image-text-plain.safetensors").unlink()  # another image tower: what was bound to the old one is refused
    with pytest.raises(MismatchError, match=r"image-audio\.safetensors: .* data is vision@\S+ there, vision@"):
        called("--output", tmp_path / "space")
    with pytest.raises(SystemExit):
        called("--seed", 7)
    assert "say --output FOLDER" in capsys.readouterr().err
    assert bundled_bytes() == kept


def check_cards(spaces, curves):
    """What the cards say is what the run measured."""
    cards = {name: (space / "README.md").read_text(encoding="utf-8") for name, space in spaces.items()}
    assert cards["space"] == cards["again"] and "after the image tower: 7" in cards["other"]
    assert json.loads((spaces["space"] / "space.json").read_text(encoding="utf-8"))["source"]["seed"] == 20
    last = curves["stages"]["image-audio"]["curve"][-1]
    row = next(line for line in cards["space"].splitlines() if line.startswith("| audio → text |"))
    assert "never paired" in row and f"{last['audio->text subject']:.3f} (" in row
    weak = next(part for part in cards["space"].split("\n\n") if part.startswith("**Weak spots**"))
    assert f"subject, audio → text ({last['audio->text subject']:.2f})" in " ".join(weak.split())


def check_space(run, towers, folder):
    """What is written embeds files as the towers embed the pool's rows."""
    from bindsearch.models.spaces import load_space
    from bindsearch.world.files import SUFFIXES, encode, render_values

    space = load_space(str(folder))
    scenes = sample(split_seeds("test", 3))
    for modality in ("image", "video", "audio", "depth", "thermal", "imu"):
        paths = []
        for number, value in enumerate(render_values(scenes, modality, 64)):
            paths.append(folder.parent / f"{number}{SUFFIXES[modality]}")
            paths[-1].write_bytes(encode(value, modality))
        found = space.embed(modality, paths)
        kept = RENDERERS[modality](scenes, run.numbers[modality])
        tower = towers["vision" if modality in ("image", "video") else modality]
        if modality in ("image", "video"):
            clips = kept[:, None, None] if modality == "image" else kept
            wanted = embed_videos(tower, clips, run.numbers[modality])
        else:
            inputs = PREPARE[modality](kept, None)
            wanted = embed_rows(tower, 3, lambda part, inputs=inputs: inputs[part])
        assert ((found * wanted).sum(axis=1) > 0.995).all(), modality  # float16, bfloat16, and the mp4's loss


def test_accuracy_has_wilsons_interval():
    figures = accuracy(np.array([1, 2, 3, 4] * 5), np.array([1, 2, 3, 0] * 5))
    assert figures["value"] == 0.75 and figures["n"] == 20
    assert figures["low"] == pytest.approx(0.5313, abs=2e-3) and figures["high"] == pytest.approx(0.8881, abs=2e-3)
    assert (interval(0.0, 30)["low"], interval(1.0, 30)["high"]) == (0.0, 1.0)


def test_top_hits_and_shares():
    scenes = sample(split_seeds("test", 50))
    eye = np.eye(50, dtype=np.float32)
    assert np.array_equal(top_hits(eye, eye, block=7), np.arange(50))
    shares = named_shares(scenes, scenes, np.arange(50))
    assert [shares[name]["value"] for name in ("subject", "setting", "both")] == [1, 1, 1]
    moved = named_shares(scenes, scenes, np.roll(np.arange(50), 1))
    assert moved["subject"]["value"] == pytest.approx((scenes.subject == np.roll(scenes.subject, 1)).mean())


def test_other_hits_leave_a_row_itself_out_and_figures_name_what_both_carry():
    scenes = sample(split_seeds("test", 40))
    rng = np.random.default_rng(3)
    unit = rng.standard_normal((40, 8)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    hits = other_hits(unit, block=7)
    assert (hits != np.arange(40)).all()
    scores = unit @ unit.T - 9 * np.eye(40)
    assert np.array_equal(hits, scores.argmax(axis=1))
    motions = np.eye(8, dtype=np.float32)[scenes.motion]
    figures = pair_figures(
        scenes, {"imu": motions, "text": motions, "audio": unit}, (("imu", "text"), ("audio", "text"))
    )
    assert figures["imu->text motion"] == 1.0
    assert sorted(figures) == ["audio->text setting", "audio->text subject", "imu->text motion"]
