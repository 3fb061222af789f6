"""Training: the loss against its formula, batches that are hard, a resumed run that equals an undisturbed one."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bindsearch.config import from_json_dict, to_json_dict
from bindsearch.errors import InputError, MismatchError, MissingInputError, ShapeError
from bindsearch.models.architecture import (
    ArchitectureConfig,
    HeadConfig,
    ScaleConfig,
    StemConfig,
    TowerConfig,
    TrunkConfig,
)
from bindsearch.models.bind import build_tower
from bindsearch.train.config import StageConfig, TrainConfig, load_train_config
from bindsearch.train.loop import Batch, Stage, learning_rate, step_generator, train_stage
from bindsearch.train.loss import info_nce
from bindsearch.train.measure import accuracy, named_shares, top_hits
from bindsearch.train.pairs import BatchDrawer, alike, mel_batch, normalise_images
from bindsearch.train.pool import MEL_SCALE, audio_rows, pool_scenes, render_pool
from bindsearch.world.scene import sample, split_seeds


def rows(seed, count=6, dim=5):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_loss_is_the_formula():
    a, b, scale = rows(1), rows(2), 7.0
    x, y = a.double() / a.double().norm(dim=1, keepdim=True), b.double() / b.double().norm(dim=1, keepdim=True)
    s = (scale * x @ y.T).numpy()
    total = 0.0
    for i in range(6):
        total += np.log(np.exp(s[i]).sum()) - s[i, i]
        total += np.log(np.exp(s[:, i]).sum()) - s[i, i]
    assert float(info_nce(a, b, scale)) == pytest.approx(total / 12, rel=1e-5)


def test_masked_pairs_are_no_negatives():
    a, b = rows(1), rows(2)
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[0, 3] = True
    s = 3.0 * F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    s = s.masked_fill(mask, float("-inf"))
    wanted = (F.cross_entropy(s, torch.arange(6)) + F.cross_entropy(s.T, torch.arange(6))) / 2
    assert float(info_nce(a, b, 3.0, mask)) == pytest.approx(float(wanted), rel=1e-6)
    assert float(info_nce(a, b, 3.0, mask)) < float(info_nce(a, b, 3.0))
    everything = torch.ones(6, 6, dtype=torch.bool)
    assert float(info_nce(a, b, 3.0, everything)) == pytest.approx(0.0, abs=1e-6)  # its own pair is never masked


def test_loss_refuses_what_is_not_paired():
    with pytest.raises(ShapeError, match=r"\(6, 5\) and \(4, 5\)"):
        info_nce(rows(1), rows(2, 4), 1.0)
    with pytest.raises(ShapeError, match="mask"):
        info_nce(rows(1), rows(2), 1.0, torch.zeros(5, 6, dtype=torch.bool))


def test_rate_rises_and_falls_to_zero():
    config = StageConfig("s", "text", steps=100, warmup_steps=10, learning_rate=2.0, batch=2, pool=2)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == pytest.approx(2.0)
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))
    assert rates[55] == pytest.approx(1.0, abs=0.02) and rates[99] < 0.001


def test_batches_share_attributes_and_hold_no_row_twice():
    scenes = pool_scenes(0, 6000, 0.24)
    config = StageConfig("s", "text", steps=1, batch=128, pool=6000, shared_setting=0.5, shared_subject=0.25)
    drawer = BatchDrawer(scenes, config)
    plain = BatchDrawer(scenes, replace(config, shared_setting=0.0, shared_subject=0.0))
    for seed in range(5):
        batch = drawer.rows(np.random.default_rng(seed))
        assert len(batch) == 128 == len(set(batch.tolist()))
        pairs = (scenes.setting[batch][:, None] == scenes.setting[batch][None]).mean()
        loose = plain.rows(np.random.default_rng(seed))
        assert pairs > 1.3 * (scenes.setting[loose][:, None] == scenes.setting[loose][None]).mean()
    assert np.array_equal(drawer.rows(np.random.default_rng(9)), drawer.rows(np.random.default_rng(9)))


def test_alike_is_same_subject_and_setting():
    scenes = sample(split_seeds("train", 200), "mixed")
    wanted = (scenes.subject[:, None] == scenes.subject[None]) & (scenes.setting[:, None] == scenes.setting[None])
    assert np.array_equal(alike(scenes), wanted)


def test_pictures_without_augmentation_are_what_embed_sees():
    from bindsearch.registry import MODALITIES
    from bindsearch.types import Media
    from bindsearch.world.image import render_images

    pixels = render_images(sample(split_seeds("test", 4)), 64)
    modality = MODALITIES["image"]
    config = modality.config("default", size_px=64)
    numbers = {"mean": config.mean, "std": config.std}
    seen = np.stack([modality.preprocess(Media("image", row, "level"), config)[0] for row in pixels])
    trained = normalise_images(pixels, numbers, None).numpy()[:, :, 0]
    assert np.abs(seen - trained).max() < 1e-6
    moved = normalise_images(pixels, numbers, np.random.default_rng(1)).numpy()
    assert moved.shape == (4, 3, 1, 64, 64) and np.abs(moved[:, :, 0] - trained).mean() > 0.05


def test_sounds_of_the_pool_are_what_embed_sees():
    from bindsearch.registry import MODALITIES
    from bindsearch.types import Media
    from bindsearch.world.audio import RATE_HZ, render_waves

    scenes = sample(split_seeds("test", 3))
    numbers = {"mels": 64, "frames": 204, "clips": 1}
    modality = MODALITIES["audio"]
    config = modality.config("default", **numbers)
    seen = [
        modality.preprocess(Media("audio", w[None], "amplitude", rate_hz=RATE_HZ), config)[0]
        for w in render_waves(scenes)
    ]
    kept = mel_batch(audio_rows(scenes, numbers), None).numpy()
    assert np.abs(np.stack(seen) - kept).max() <= 0.5 / MEL_SCALE + 1e-6
    masked = mel_batch(audio_rows(scenes, numbers), np.random.default_rng(2)).numpy()
    assert masked.shape == kept.shape and np.abs(masked - kept).mean() > 0.005


def test_pool_is_kept_and_read_again(tmp_path):
    numbers = {"size_px": 16}
    first = render_pool("image", tmp_path, (10, 30), 0.2, numbers, workers=1)
    kept = list(tmp_path.iterdir())
    stamp = kept[0].stat().st_mtime_ns
    again = render_pool("image", tmp_path, (10, 30), 0.2, numbers, workers=1)
    assert np.array_equal(first, again) and first.shape == (30, 16, 16, 3)
    assert len(kept) == 1 and kept[0].stat().st_mtime_ns == stamp


def tiny():
    trunk = TrunkConfig(width=16, blocks=2, heads=2, drop_path=0.2)
    depth = TowerConfig(
        StemConfig("patch", (1, 8, 8), (4, 4), (4, 4)), trunk, HeadConfig(dropout=0.1), ScaleConfig(10.0, True)
    )
    return ArchitectureConfig("toy", 8, {"depth": depth, "thermal": depth})


def toy_stage(folder, steps=12):
    towers = {name: build_tower(tiny(), name, seed=3) for name in ("depth", "thermal")}
    data = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    config = StageConfig("toy", "thermal", steps=steps, batch=16, pool=64, warmup_steps=4, learning_rate=3e-3)

    def draw(rng):
        which = torch.from_numpy(rng.choice(64, 16, replace=False))
        noisy = data[which] + 0.1 * torch.from_numpy(rng.standard_normal((16, 1, 8, 8)).astype(np.float32))
        return Batch(lambda: towers["depth"](data[which]), lambda: towers["thermal"](noisy), None)

    return Stage(config, 5, dict(towers), draw, towers["thermal"].scale, dict, folder, (1e9, 1000, 1000))


def weights(stage):
    return {f"{name}.{key}": value for name, tower in stage.towers.items() for key, value in tower.state_dict().items()}


def test_resumed_training_equals_undisturbed_training_bit_for_bit(tmp_path):
    said = []
    whole = toy_stage(tmp_path / "whole")
    train_stage(whole, say=said.append)
    broken = toy_stage(tmp_path / "broken")
    train_stage(broken, stop_after=5, say=said.append)
    resumed = toy_stage(tmp_path / "broken")  # a new process would start from these weights
    train_stage(resumed, say=said.append)
    assert any("resumed at step 5" in line for line in said)
    for key, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[key]), key
    assert not torch.equal(weights(whole)["depth.head.proj.weight"], weights(broken)["depth.head.proj.weight"])


def test_training_lowers_the_loss(tmp_path):
    stage = toy_stage(tmp_path, steps=150)
    lines = []
    stage.times = (1e9, 1000, 10)
    train_stage(stage, say=lines.append)
    losses = [float(line.split("loss ")[1].split()[0]) for line in lines if "loss " in line and "step" in line[:12]]
    assert losses[-1] < 0.6 * losses[0], losses


def test_checkpoint_of_other_numbers_is_refused(tmp_path):
    stage = toy_stage(tmp_path)
    train_stage(stage, stop_after=2, say=lambda line: None)
    other = toy_stage(tmp_path, steps=13)
    with pytest.raises(MismatchError, match=r"toy\.safetensors: written by configuration"):
        train_stage(other, say=lambda line: None)


def test_steps_have_generators_of_their_own():
    draws = {
        float(step_generator(seed, stage, step).random()) for seed in (1, 2) for stage in ("a", "b") for step in (0, 1)
    }
    assert len(draws) == 8
    assert step_generator(1, "a", 7).random() == step_generator(1, "a", 7).random()


def test_packaged_configuration_reads_and_unknown_fields_are_refused(tmp_path):
    from importlib import resources

    config = load_train_config(str(resources.files("bindsearch.train") / "mini.json"))
    assert [stage.modality for stage in config.stages] == ["text", "text", "audio"]
    assert from_json_dict(TrainConfig, to_json_dict(config)) == config
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({**to_json_dict(config), "sead": 1}), encoding="utf-8")
    with pytest.raises(InputError, match="sead"):
        load_train_config(broken)
    with pytest.raises(MissingInputError, match="nowhere"):
        load_train_config(tmp_path / "nowhere.json")
    with pytest.raises(InputError, match="shared_setting"):
        StageConfig("s", "text", steps=1, shared_setting=0.8, shared_subject=0.5)


def test_accuracy_has_wilsons_interval():
    figures = accuracy(np.array([1, 2, 3, 4] * 5), np.array([1, 2, 3, 0] * 5))
    assert figures["value"] == 0.75 and figures["n"] == 20
    assert figures["low"] == pytest.approx(0.5313, abs=2e-3) and figures["high"] == pytest.approx(0.8881, abs=2e-3)


def test_top_hits_and_shares():
    scenes = sample(split_seeds("test", 50))
    eye = np.eye(50, dtype=np.float32)
    assert np.array_equal(top_hits(eye, eye, block=7), np.arange(50))
    shares = named_shares(scenes, scenes, np.arange(50))
    assert [shares[name]["value"] for name in ("subject", "setting", "both")] == [1, 1, 1]
    moved = named_shares(scenes, scenes, np.roll(np.arange(50), 1))
    assert moved["subject"]["value"] == pytest.approx((scenes.subject == np.roll(scenes.subject, 1)).mean())
