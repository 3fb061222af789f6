"""Training: the loss against its formula, chunks, processes and killed runs against the plain step."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from train_driver import tiny, toy_stage

from bindsearch.errors import BindSearchError, MismatchError, ShapeError, UnknownNameError
from bindsearch.models.bind import build_tower, load_architecture
from bindsearch.train import loop, processes
from bindsearch.train.checkpoint import begin_notes, hash_weights, save_checkpoint
from bindsearch.train.config import StageConfig
from bindsearch.train.loop import backward, learning_rate, step_generator, train_stage
from bindsearch.train.loss import info_nce
from bindsearch.train.processes import own_rows
from bindsearch.train.steps import run_steps

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


def test_running_statistics_are_the_mean_over_the_processes(monkeypatch):
    """Each process normalises by its own rows; what is kept of them must not be one process's alone."""
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(2, track_running_stats=False))
    net.register_buffer("fixed", torch.tensor([1.0, 7.0]))
    net[1].running_mean += torch.tensor([1.0, 2.0, 3.0])
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    monkeypatch.setattr(processes.dist, "all_reduce", lambda flat: flat.add_(10.0))
    processes.average_statistics([net])
    assert net[1].running_mean.tolist() == [5.5, 6.0, 6.5] and net[1].running_var.tolist() == [5.5] * 3
    assert net.fixed.tolist() == [1.0, 7.0] and int(net[1].num_batches_tracked) == 0


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
        assert float(trained.detach().abs().mean()) > 0.01


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


@pytest.mark.parametrize("what", ["cut", "empty", "another"])
def test_a_damaged_checkpoint_is_refused_with_what_to_do(tmp_path, what):
    stage = toy_stage(tmp_path)
    train_stage(stage, stop_after=2, say=lambda line: None)
    if what == "another":
        save_file({"x": torch.zeros(2)}, stage.path)
    else:
        stage.path.write_bytes(stage.path.read_bytes()[: 0 if what == "empty" else -40])
    with pytest.raises(BindSearchError, match=r"toy\.safetensors: damaged, or no checkpoint .*Remove it, and the same"):
        train_stage(toy_stage(tmp_path), say=lambda line: None)


FULL_DISK = """
import subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from train_driver import toy_stage
from bindsearch.errors import BindSearchError
from bindsearch.train.checkpoint import save_checkpoint, begin_notes, steps_done
from bindsearch.train.loop import build_optimiser

disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "none", disk], check=True)
stage = toy_stage(disk)
optimiser = build_optimiser(stage.towers, stage.config)
save_checkpoint(stage.path, stage.towers, optimiser, {**begin_notes(stage.facts), "step": 1})
size = stage.path.stat().st_size
subprocess.run(["mount", "-o", f"remount,size={size + size // 2}", disk], check=True)
try:
    save_checkpoint(stage.path, stage.towers, optimiser, {**begin_notes(stage.facts), "step": 2})
except BindSearchError as error:
    print(error)
print(steps_done(stage.path), [path.name for path in disk.iterdir()])
"""


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    disk, script = tmp_path / "disk", tmp_path / "script.py"
    disk.mkdir()
    script.write_text(FULL_DISK)
    command = ["unshare", "--mount", "--map-root-user", sys.executable, str(script), str(disk), str(TESTS)]
    probe = subprocess.run([*command[:3], "true"], capture_output=True)
    if probe.returncode:
        pytest.skip(f"no mount namespaces here: {probe.stderr!r}")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words, kept = done.stdout.splitlines()
    assert "toy.safetensors: no space left on the device" in words
    assert kept == "1 ['toy.safetensors']"


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(tmp_path):
    stage = toy_stage(tmp_path)
    stage.times = (0.0, 1000, 1000)  # a checkpoint after every step
    whole, drawn = stage.draw, []

    def draw(rng):
        drawn.append(1)
        batch = whole(rng)
        return replace(batch, added=lambda rows: rows.sum() * float("nan")) if len(drawn) == 6 else batch

    stage.draw = draw
    said = r"toy: after step 6 of 12, at learning rate 0\.00\d+, the loss is nan; .*toy\.safetensors keeps step 5\."
    with pytest.raises(BindSearchError, match=said):
        train_stage(stage, say=lambda line: None)
    kept = toy_stage(tmp_path)
    assert train_stage(kept, say=lambda line: None)["step"] == 12  # goes on from what was kept
    assert all(bool(torch.isfinite(value).all()) for value in weights(kept).values())


def test_weights_that_are_no_numbers_are_neither_saved_nor_taken(tmp_path):
    stage = toy_stage(tmp_path)
    optimiser = loop.build_optimiser(stage.towers, stage.config)

    def take(step):
        if step == 3:  # as a gradient that overflows after a loss that did not
            next(stage.towers["depth"].parameters()).data.fill_(float("inf"))
        return 1.0

    with pytest.raises(BindSearchError, match=r"after step 4 .* its weights are not finite; no checkpoint was written"):
        run_steps(stage, stage.towers, optimiser, take, stop_after=4, say=lambda line: None)
    save_checkpoint(stage.path, stage.towers, optimiser, {**begin_notes(stage.facts), "step": 4})
    with pytest.raises(BindSearchError, match=r"toy\.safetensors: holds weights that are not finite.*Remove it"):
        train_stage(toy_stage(tmp_path), say=lambda line: None)


def test_steps_have_generators_of_their_own():
    draws = {
        float(step_generator(seed, stage, step).random()) for seed in (1, 2) for stage in ("a", "b") for step in (0, 1)
    }
    assert len(draws) == 8
    assert step_generator(1, "a", 7).random() == step_generator(1, "a", 7).random()


def test_weights_of_every_kind_of_number_have_a_hash():
    import hashlib

    tower = torch.nn.Linear(3, 2)
    tower.register_buffer("count", torch.tensor(7))
    digest = hashlib.sha256()
    for name, value in sorted(tower.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    assert hash_weights(tower) == digest.hexdigest()[:12]  # checkpoints bear hashes that were taken like this
    half = tower.to(torch.bfloat16)
    before = hash_weights(half)
    with torch.no_grad():
        half.weight[0, 0] += 1
    assert len(before) == 12 and before != hash_weights(half)
