"""Naming: linear classifiers beside the contrastive loss, while the image tower is trained and only then."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
import torch
from train_driver import toy_stage

from bindsearch.errors import InputError, UnknownNameError, UnsupportedError
from bindsearch.models.bind import load_architecture
from bindsearch.train import loop
from bindsearch.train.binding import Run, build_stage
from bindsearch.train.config import StageConfig, load_train_config
from bindsearch.train.loop import backward, build_optimiser
from bindsearch.train.naming import NAMED, SCALE, Naming, named_codes
from bindsearch.world.scene import ABSENT, names, sample, split_seeds


def unit(seed, count=7, dim=8):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_loss_is_the_sum_of_mean_cross_entropies_over_what_is_there():
    naming, rows = Naming(8, seed=1), unit(2)
    codes = torch.from_numpy(np.random.default_rng(3).integers(0, 6, (7, 4)))
    codes[1, 0] = codes[4, 2] = codes[5, 2] = ABSENT
    x = rows.double().numpy()
    x = SCALE * x / np.linalg.norm(x, axis=1, keepdims=True)
    means = []
    for column, name in enumerate(NAMED):
        head = naming.heads[name]
        logits = x @ head.weight.detach().double().numpy().T + head.bias.detach().double().numpy()
        losses = (
            np.log(np.exp(logits).sum(axis=1)) - np.take_along_axis(logits, codes.numpy().clip(0)[:, [column]], 1)[:, 0]
        )
        means.append(losses[codes[:, column].numpy() != ABSENT].mean())
    wanted, weights = sum(means), (1.0, 0.5, 2.0, 0.25)
    assert float(naming(rows, codes).detach()) == pytest.approx(wanted, rel=1e-5)
    assert float(naming(3.0 * rows, codes).detach()) == pytest.approx(wanted, rel=1e-5)  # any norm
    assert float(naming(rows, codes, weights).detach()) == pytest.approx(float(np.dot(means, weights)), rel=1e-5)


def test_what_no_row_has_counts_for_nothing():
    naming, rows = Naming(8, seed=1), unit(2)
    codes = torch.full((7, 4), ABSENT)
    assert float(naming(rows, codes).detach()) == 0.0
    codes[:, 1] = 3
    one = naming(rows, codes)
    one.backward()
    assert naming.heads["setting"].weight.grad.abs().sum() > 0.1 and naming.heads["subject"].weight.grad is None


def test_codes_are_those_of_the_scenes():
    scenes = sample(split_seeds("train", 300), "mixed", 0.3)
    codes = named_codes(scenes)
    assert codes.shape == (300, 4) and codes.dtype == np.int64
    for column, name in enumerate(NAMED):
        assert np.array_equal(codes[:, column], getattr(scenes, name)), name
        assert codes[:, column].max() < len(names(name)) == Naming(8, 1).heads[name].out_features
    assert (codes[:, 0] == ABSENT).any() and (codes[:, 1] == ABSENT).any()


def test_weights_come_from_the_seed_alone():
    torch.manual_seed(1)
    first = Naming(8, seed=5).state_dict()
    torch.manual_seed(2)
    again, other = Naming(8, seed=5).state_dict(), Naming(8, seed=6).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not torch.equal(first["heads.subject.weight"], other["heads.subject.weight"])


def test_naming_learns_what_rows_show():
    """Codes that stand in the rows are named after a hundred steps; the rows' own gradient lowers the loss as well."""
    codes = torch.from_numpy(np.random.default_rng(1).integers(0, [24, 8, 6, 9], (256, 4)))
    rows = torch.cat([torch.eye(many)[codes[:, column]] for column, many in enumerate((24, 8, 6, 9))], dim=1)
    naming = Naming(rows.shape[1], seed=1)
    optimiser = torch.optim.SGD(naming.parameters(), lr=0.5)
    began = float(naming(rows, codes).detach())
    for _ in range(100):
        optimiser.zero_grad()
        naming(rows, codes).backward()
        optimiser.step()
    assert float(naming(rows, codes).detach()) < 0.1 * began
    right = [(head(rows).argmax(1) == codes[:, k]).float().mean() for k, head in enumerate(naming.heads.values())]
    assert min(right) == 1.0
    moved = rows.clone().requires_grad_()
    loss = Naming(rows.shape[1], seed=2)(moved, codes)
    loss.backward()
    lower = Naming(rows.shape[1], seed=2)(rows - 0.1 * moved.grad, codes)
    assert float(lower.detach()) < float(loss.detach())


def test_naming_reaches_the_anchors_tower_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "has_bfloat16", lambda: False)

    def gradients(added):
        stage = toy_stage(tmp_path, random=False)
        draw = stage.draw
        if not added:
            stage.draw = lambda rng: replace(draw(rng), added=None)
        build_optimiser(stage.towers, stage.config).zero_grad()
        loss = backward(stage, 3)
        return loss, {
            name: [parameter.grad for parameter in tower.parameters()] for name, tower in stage.towers.items()
        }

    with_loss, with_naming = gradients(True)
    without_loss, without = gradients(False)
    assert with_loss > without_loss + 0.5
    assert all(grad is None for grad in without["naming"]) and all(grad is not None for grad in with_naming["naming"])
    for a, b in zip(with_naming["thermal"], without["thermal"], strict=True):
        assert torch.equal(a, b)
    assert not torch.allclose(with_naming["depth"][0], without["depth"][0], rtol=1e-2)


def test_naming_and_clips_are_for_stages_that_train_the_image_tower():
    text = StageConfig("s", "text", steps=1, train_anchor=True, naming=0.5, video_share=0.25, clips=100)
    assert replace(text, naming=0.0, video_share=0.0, train_anchor=False).naming == 0.0
    with pytest.raises(InputError, match=r"naming 0\.5 .* train_anchor: true"):
        StageConfig("s", "audio", steps=1, naming=0.5)
    with pytest.raises(InputError, match=r"video_share 0\.25 .* train_anchor: true"):
        replace(text, naming=0.0, train_anchor=False)
    with pytest.raises(InputError, match="0 or more; got -1"):
        replace(text, naming=-1)
    with pytest.raises(InputError, match=r"subject, setting, motion and colour; got 1\.0, 2\.0"):
        replace(text, naming_weights=(1.0, 2.0))


def test_stages_that_cannot_be_meant_are_refused_before_anything_is_rendered(tmp_path):
    config = load_train_config(str(resources.files("bindsearch.train") / "mini.json"))
    run = Run(config, load_architecture("bindsearch-mini"), {}, tmp_path, 0)
    with pytest.raises(UnsupportedError, match="stage of text trains the image tower"):
        build_stage(run, StageConfig("s", "text", steps=1), {})
    with pytest.raises(UnsupportedError, match="stage of audio does not train the image tower"):
        build_stage(run, StageConfig("s", "audio", steps=1, train_anchor=True), {})
    with pytest.raises(UnknownNameError, match="termal"):
        build_stage(run, StageConfig("s", "termal", steps=1), {})
    with pytest.raises(InputError, match="no stage before it"):
        build_stage(run, StageConfig("s", "audio", steps=1), {})
    assert not list(tmp_path.iterdir())
