"""Training: the loss against its formula, chunks and processes against the plain step, rows against `embed`."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from train_driver import tiny, toy_stage

from bindsearch.config import from_json_dict, to_json_dict
from bindsearch.errors import InputError, MismatchError, MissingInputError, ShapeError, UnknownNameError
from bindsearch.models.bind import build_tower, load_architecture
from bindsearch.registry import MODALITIES
from bindsearch.train import loop
from bindsearch.train.binding import embed_rows
from bindsearch.train.config import StageConfig, TrainConfig, load_train_config
from bindsearch.train.loop import backward, learning_rate, step_generator, train_stage
from bindsearch.train.loss import info_nce
from bindsearch.train.measure import accuracy, interval, named_shares, other_hits, pair_figures, top_hits
from bindsearch.train.pairs import PREPARE, BatchDrawer, TextRows, alike, normalise_clips, normalise_images
from bindsearch.train.pool import MEL_SCALE, RENDERERS, pool_scenes, render_pool, video_rows
from bindsearch.train.processes import own_rows
from bindsearch.world.scene import sample, split_seeds

TESTS = Path(__file__).parent


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


def test_fitting_pairs_count_as_pairs_with_even_targets():
    a, b = rows(1), rows(2)
    fits = torch.eye(6, dtype=torch.bool)
    fits[0, 3] = fits[2, 3] = True
    s = 3.0 * F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    by_row, by_column = torch.log_softmax(s, 1), torch.log_softmax(s, 0)
    wanted = 0.0
    for i in range(6):
        wanted -= sum(float(by_row[i, j]) for j in range(6) if fits[i, j]) / int(fits[i].sum())
        wanted -= sum(float(by_column[j, i]) for j in range(6) if fits[j, i]) / int(fits[:, i].sum())
    assert float(info_nce(a, b, 3.0, fits & ~torch.eye(6, dtype=torch.bool), "positive")) == pytest.approx(
        wanted / 12, rel=1e-5
    )
    assert float(info_nce(a, b, 3.0, fits, "keep")) == pytest.approx(float(info_nce(a, b, 3.0)), rel=1e-6)
    with pytest.raises(UnknownNameError, match="masked"):
        info_nce(a, b, 3.0, fits, "masked")


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
    kept = [learning_rate(replace(config, final_rate=0.5), step) for step in range(100)]
    assert (
        kept[:10] == rates[:10] and kept[55] == pytest.approx(1.5, abs=0.02) and kept[99] == pytest.approx(1, abs=1e-3)
    )


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
    tool = train_mini()
    numbers = tool.load_numbers("bindsearch-mini")
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
        [modality.preprocess(Media("video", v, "level", float(RATE_FPS)), config)[0] for v in render_videos(scenes, 64)]
    )
    trained = normalise_clips(video_rows(scenes, numbers), numbers, None).numpy()
    assert trained.shape == (5, 3, 2, 64, 64) and np.abs(seen - trained).max() < 1e-5
    moved = normalise_clips(np.repeat(video_rows(scenes, numbers)[:, :1], 2, axis=1), numbers, np.random.default_rng(3))
    assert torch.equal(moved[:, :, 0], moved[:, :, 1])  # both frames of a clip are augmented alike


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


def gradients(stage):
    stage.folder.mkdir(parents=True, exist_ok=True)
    for tower in stage.towers.values():
        tower.train()
        tower.zero_grad(set_to_none=True)
    loss = backward(stage, 3)
    return loss, {
        f"{name}.{key}": parameter.grad
        for name, tower in stage.towers.items()
        for key, parameter in tower.named_parameters()
    }


@pytest.mark.parametrize("chunk", [1, 5, 8])
@pytest.mark.parametrize("way", ["mask", "positive", "keep"])
def test_chunks_give_the_gradients_of_the_whole_batch(chunk, way, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "has_bfloat16", lambda: False)
    loss, whole = gradients(toy_stage(tmp_path, random=False, false_negatives=way))
    cut_loss, cut = gradients(toy_stage(tmp_path, chunk=chunk, random=False, false_negatives=way))
    assert cut_loss == pytest.approx(loss, rel=1e-6)
    assert float(whole["thermal.scale.log_logit_scale"].abs()) > 1e-4
    for key, value in whole.items():
        if value is None:  # the scale of the tower that is not asked for it
            assert key == "depth.scale.log_logit_scale" and cut[key] is None
            continue
        assert torch.allclose(value, cut[key], rtol=1e-4, atol=1e-6 * float(whole["depth.head.proj.weight"].norm())), (
            key
        )


def test_chunks_see_the_same_random_numbers_twice_and_each_other_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "has_bfloat16", lambda: False)
    stage = toy_stage(tmp_path, chunk=4)
    seen = {}
    draw = stage.draw

    def spied(rng):
        batch = draw(rng)

        def others(part):
            rows = batch.others(part)
            seen.setdefault(part.start, []).append((rows.detach().clone(), torch.is_grad_enabled()))
            return rows

        return replace(batch, others=others)

    stage.draw = spied
    gradients(stage)
    assert sorted(seen) == [0, 4, 8, 12]
    for first, second in seen.values():
        assert torch.equal(first[0], second[0]) and (first[1], second[1]) == (False, True)
    still = toy_stage(tmp_path, chunk=4, random=False)
    masks = [(seen[at][0][0] != 0).sum() for at in seen]
    assert len(masks) == 4 and gradients(still)[0] != gradients(stage)[0]


def test_rows_of_processes_tile_the_batch(monkeypatch):
    from bindsearch.train import processes

    monkeypatch.setattr(processes, "world_size", lambda: 3)
    parts = []
    for number in range(3):
        monkeypatch.setattr(processes, "rank", lambda number=number: number)
        parts += list(range(16))[own_rows(16)]
    assert parts == list(range(16))


def driver(folder, steps, chunks, sleep_s, processes=1):
    """Start train_driver.py, alone or under torchrun."""
    launch = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    command = [sys.executable, *launch, str(TESTS / "train_driver.py"), str(folder), str(steps), chunks, str(sleep_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_two_processes_train_as_one(tmp_path, monkeypatch):
    together = driver(tmp_path, 6, "0,3", 0, processes=2)
    monkeypatch.setattr(loop, "has_bfloat16", lambda: False)
    alone = toy_stage(tmp_path / "alone", 6, random=False)
    train_stage(alone, say=lambda line: None)
    _, said = together.communicate(timeout=200)
    assert together.returncode == 0, said
    whole, cut = (load_file(tmp_path / f"chunk-{chunk}" / "toy.safetensors") for chunk in (0, 3))
    one = {f"tower/{key.replace('.', '/', 1)}": value for key, value in weights(alone).items()}
    assert set(one) == {key for key in whole if key.startswith("tower/")} and set(whole) == set(cut)
    start = build_tower(tiny(), "thermal", seed=3).state_dict()["head.proj.weight"]
    assert float((one["tower/thermal/head.proj.weight"] - start).abs().max()) > 1e-3
    for key, value in one.items():
        for other in (whole[key], cut[key]):
            difference = (value - other).abs()
            if key.endswith("in_proj_bias"):  # softmax takes no notice of a bias of the keys: Adam divides
                difference = torch.cat((difference[:16], difference[32:]))  # rounding by rounding there
            assert float(difference.max()) < 1e-5, key


def test_killed_and_resumed_training_equals_undisturbed_training_bit_for_bit(tmp_path):
    whole = driver(tmp_path / "whole", 14, "5", 0.001)
    for limit in (3, 8):
        killed = driver(tmp_path / "killed", 14, "5", 0.05)
        for line in killed.stdout:
            if f"step {limit}/14" in line:
                break
        killed.send_signal(signal.SIGKILL)
        killed.communicate(timeout=60)
        assert killed.returncode == -signal.SIGKILL
        assert finished_steps(tmp_path / "killed" / "chunk-5") in (limit - 1, limit)
    resumed = driver(tmp_path / "killed", 14, "5", 0.001)
    out, said = resumed.communicate(timeout=120)
    assert resumed.returncode == 0 and "resumed at step" in out, said
    _, said = whole.communicate(timeout=120)
    assert whole.returncode == 0, said
    a, b = (load_file(tmp_path / name / "chunk-5" / "toy.safetensors") for name in ("whole", "killed"))
    assert set(a) == set(b) and all(torch.equal(value, b[key]) for key, value in a.items())


def finished_steps(folder):
    from safetensors import safe_open

    with safe_open(str(folder / "toy.safetensors"), framework="pt") as file:
        return json.loads(file.metadata()["notes"])["step"]


def test_attention_while_training_is_the_fused_one():
    architecture = load_architecture("bindsearch-mini")
    inputs = {
        "text": torch.randint(1, 60, (5, 32), generator=torch.Generator().manual_seed(1)),
        "imu": torch.randn(5, 6, 2000, generator=torch.Generator().manual_seed(2)),
    }
    for name, x in inputs.items():  # causal; with the learned key and value
        tower = build_tower(architecture, name, seed=1)
        trained = tower.train()(x)
        assert torch.allclose(trained, tower.eval()(x), atol=1e-5), name
        assert float(trained.abs().mean()) > 0.01


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
    assert architecture.towers["text"].stem.vocabulary == len(
        train_mini().load_numbers("bindsearch-mini")["text"]["id_map"]
    )
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
    run = tool.prepare(config, folder, 0, print)
    check_space(run, tool.run_stages(run, None, None, True, print), tmp_path / "space")
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
            prepare = normalise_images if modality == "image" else normalise_clips
            inputs = prepare(kept, run.numbers[modality], None)
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
