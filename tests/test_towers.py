"""The six towers against the reference's figures, rung by rung, and what they refuse."""

from __future__ import annotations

import hashlib
import math
from collections import Counter

import golden_towers as golden
import numpy as np
import pytest
import torch

from bindsearch.config import from_json_dict, to_json_dict
from bindsearch.errors import InputError, ShapeError, UnknownNameError
from bindsearch.models.bind import (
    ArchitectureConfig,
    HeadConfig,
    ScaleConfig,
    StemConfig,
    TowerConfig,
    TrunkConfig,
    build_tower,
    load_architecture,
)
from bindsearch.models.keys import checkpoint_key, tower_key
from bindsearch.models.parts import Positions
from bindsearch.models.recipe import Recipe, draw, draw_tower
from bindsearch.models.weights import checkpoint_shapes

FLOAT64, FLOAT32 = 1e-12, 5e-6
GOOD = golden.cases(quirks=False)


def modality_of(model: str, case: str) -> str:
    return golden.read(f"{model}/inputs.json")["inputs"][case]["modality"]


def want64(model: str, case: str) -> np.ndarray:
    return golden.outputs(model)[f"out64/{case}"]


@pytest.mark.parametrize(("model", "case"), GOOD)
def test_float64_output_is_the_references(model: str, case: str) -> None:
    name = modality_of(model, case)
    clips, per_item = golden.clips_of(name, golden.case_input(model, case), torch.float64)
    got = golden.reference_output(golden.tower(model, name, torch.float64), clips, per_item)
    assert golden.error(got, want64(model, case)) <= FLOAT64


@pytest.mark.parametrize(("model", "case"), GOOD)
def test_float32_ladder(model: str, case: str) -> None:
    name, want = modality_of(model, case), golden.outputs(model)
    tower = golden.tower(model, name, torch.float32)
    clips, per_item = golden.clips_of(name, golden.case_input(model, case), torch.float32)
    with torch.inference_mode():
        entering = tower.stem(clips)
        leaving = tower.trunk(entering)
        head = tower.head(leaving, tower.head.pooled_index(clips) if name == "text" else None)
    picked = [0, 1, 2, entering.shape[1] - 1]
    assert golden.error(entering[:, picked].numpy(), want[f"tokens_in/{case}"]) <= FLOAT32
    assert golden.error(leaving[:, picked].numpy(), want[f"tokens_out/{case}"]) <= FLOAT32
    assert golden.error(head.numpy(), want[f"head/{case}"]) <= FLOAT32
    if f"clip/{case}" in want:
        unit = torch.nn.functional.normalize(head, dim=-1, eps=1e-12) * tower.logit_scale()
        assert golden.error(unit.numpy(), want[f"clip/{case}"]) <= FLOAT32
    got = golden.reference_output(tower, clips, per_item)
    assert golden.error(got, want[f"out/{case}"]) <= FLOAT32
    ours, theirs = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (got.astype(float), want64(model, case))
    )
    assert (ours * theirs).sum(1).min() >= 1 - 1e-9


@pytest.mark.parametrize(("model", "case"), GOOD)
def test_bfloat16_stays_near(model: str, case: str) -> None:
    name, want = modality_of(model, case), want64(model, case)
    clips, per_item = golden.clips_of(name, golden.case_input(model, case), torch.bfloat16)
    tower = golden.tower(model, name, torch.bfloat16)
    with torch.inference_mode():
        unit = torch.nn.functional.normalize(tower(clips).double(), dim=-1, eps=1e-12)
    got = (unit * tower.logit_scale()).reshape(len(want), per_item, -1).mean(1).numpy()
    assert golden.error(got, want) <= 5e-2
    cosines = (got * want).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)
    assert cosines.min() >= 0.999


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("model", "case"), GOOD)
def test_a_batch_equals_its_singles(model: str, case: str, dtype: torch.dtype) -> None:
    name = modality_of(model, case)
    tower = golden.tower(model, name, dtype)
    clips, _ = golden.clips_of(name, golden.case_input(model, case), dtype)
    with torch.inference_mode():
        together = torch.nn.functional.normalize(tower(clips), dim=-1)
        apart = torch.cat([torch.nn.functional.normalize(tower(clip[None]), dim=-1) for clip in clips])
    bound = 2e-6 if dtype is torch.float32 else 1e-12
    assert golden.error(together.numpy(), apart.numpy()) <= bound


@pytest.mark.parametrize(("model", "case"), golden.cases(quirks=True))
def test_inputs_that_the_reference_misreads_are_refused(model: str, case: str) -> None:
    name = modality_of(model, case)
    clips, _ = golden.clips_of(name, golden.case_input(model, case), torch.float32)
    tower = golden.tower(model, name, torch.float32)
    wanted = ", ".join(map(str, tower.config.stem.shape))
    with pytest.raises(ShapeError, match=rf"{name} tower: expected shape \(N, {wanted}\).*got \({clips.shape[0]}, "):
        tower(clips)


RAISES = [(model, case) for model in golden.TINY for case in golden.read(f"{model}/inputs.json")["raises"]]


@pytest.mark.parametrize(("model", "case"), RAISES)
def test_inputs_on_which_the_reference_raises_are_refused(model: str, case: str) -> None:
    facts = golden.read(f"{model}/inputs.json")["raises"][case]
    x = np.zeros(facts["shape"], dtype=np.float32)
    tower = golden.tower(model, facts["modality"], torch.float32)
    clips, _ = golden.clips_of(facts["modality"], x, torch.float32)
    with pytest.raises(ShapeError, match=r"expected shape \(N, "):
        tower(clips)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("vision", (1, 3, 2, 13, 13)), ("vision", (1, 3, 224, 224)), ("audio", (1, 1, 128, 203)), ("imu", (1, 6, 1999))],
)
def test_other_sizes_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="expected shape"):
        golden.tower("tiny_a", name, torch.float32)(torch.zeros(shape))


def test_integers_where_floats_belong_are_refused() -> None:
    tower = golden.tower("tiny_a", "audio", torch.float32)
    with pytest.raises(ShapeError, match="floating-point"):
        tower(torch.zeros(1, 1, 128, 204, dtype=torch.int16))
    with pytest.raises(ShapeError, match=r"got .* of torch\.uint8"):
        golden.tower("tiny_a", "vision", torch.float32)(torch.zeros(1, 3, 1, 224, 224, dtype=torch.uint8))


def test_text_refuses_ids_of_another_tokenizer_and_other_lengths() -> None:
    tower = golden.tower("tiny_a", "text", torch.float32)
    ids = torch.zeros(1, 77, dtype=torch.int64)
    ids[0, 3] = 49408
    with pytest.raises(InputError, match=r"0\.\.49407, got 0\.\.49408"):
        tower(ids)
    with pytest.raises(ShapeError, match=r"\(N, 77\), got \(1, 76\)"):
        tower(ids[:, 1:])
    with pytest.raises(ShapeError, match="int64"):
        tower(torch.zeros(1, 77))


def test_cutting_text_behind_the_end_token_changes_nothing() -> None:
    tower = golden.tower("tiny_a", "text", torch.float64)
    ids = torch.from_numpy(golden.case_input("tiny_a", "text"))
    short = ids[:2]  # both end long before 77, so that forward() cuts
    assert int(tower.head.pooled_index(short).max()) < 20
    with torch.inference_mode():
        cut = tower(short)
        whole = tower.head(tower.trunk(tower.stem(short)), tower.head.pooled_index(short))
        changed = short.clone()
        changed[:, 30:] = 777
        assert golden.error(cut.numpy(), whole.numpy()) <= FLOAT64
        assert torch.equal(cut, tower(changed))


def test_one_frame_is_a_frame_repeated() -> None:
    tower = golden.tower("tiny_a", "vision", torch.float32)
    frame = torch.from_numpy(golden.case_input("tiny_a", "vision_image"))[:, :, None]
    assert torch.equal(tower(frame), tower(frame.repeat(1, 1, 2, 1, 1)))


def test_logit_scales_are_clamped_to_100() -> None:
    scales = {name: golden.tower("tiny_b", name, torch.float64).logit_scale() for name in golden.state("tiny_b")}
    want = {"vision": 1.0, "text": 100.0, "audio": 3.25, "depth": 99.5, "thermal": 100.0, "imu": 0.7}
    assert scales == pytest.approx(want, rel=1e-6)


def test_positions_are_resized_for_every_square_grid() -> None:
    table = Positions((1, 14, 14), 3, 1, True, "cpu")
    torch.nn.init.normal_(table.pos_embed)
    torch.nn.init.normal_(table.cls_token)
    for side in range(1, 65):
        rows = table.table((1, side, side))
        assert rows.shape == (1, 1 + side * side, 3)
        assert torch.equal(rows[:, 0], table.pos_embed[:, 0])
        assert bool(torch.isfinite(rows).all())


# names, sizes, numbers


def test_the_checkpoint_has_exactly_the_references_1311_keys() -> None:
    want = {key: tuple(shape) for key, shape, _ in golden.read("huge_keys.json")["keys"]}
    assert len(want) == 1311
    assert checkpoint_shapes() == want


def test_renaming_is_one_to_one_and_goes_back() -> None:
    keys = [key for key, _, _ in golden.read("huge_keys.json")["keys"]]
    renamed = [tower_key(key) for key in keys]
    assert len(set(renamed)) == len(keys)
    assert [checkpoint_key(*pair) for pair in renamed] == keys
    for key in ("vision.blocks.0", "modality_heads.points.0.weight", "modality_trunks.vision"):
        with pytest.raises(InputError, match="no key of an ImageBind checkpoint"):
            tower_key(key)
    with pytest.raises(InputError, match="no key of the vision tower"):
        checkpoint_key("vision", "blocks.0.weight")


def test_full_size_parameter_counts() -> None:
    config, want = load_architecture("imagebind-huge"), golden.read("huge_param_counts.json")
    theirs = {"stem": "preprocessors", "trunk": "trunks", "head": "heads", "scale": "postprocessors"}
    total = 0
    for name in config.towers:
        counts: Counter[str] = Counter()
        for key, parameter in build_tower(config, name).named_parameters():
            counts[f"modality_{theirs[key.split('.')[0]]}"] += parameter.numel()
        total += sum(counts.values())
        assert dict(counts) == {part: n for part, n in want[name].items() if part != "total" and n}
    assert total == want["ALL"]["total"] == 1_200_781_057


@pytest.mark.parametrize("name", ["imagebind-huge", "tiny"])
def test_architectures_survive_json(name: str) -> None:
    config = load_architecture(name)
    assert from_json_dict(ArchitectureConfig, to_json_dict(config)) == config
    with pytest.raises(UnknownNameError, match="Did you mean 'imagebind-huge'"):
        load_architecture("imagebind-hug")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StemConfig("patsh", (3, 2, 8, 8)), "Did you mean 'patch'"),
        (lambda: StemConfig("patch", (3, 2, 8, 8), (4, 4), (4, 4)), "must fit shape"),
        (lambda: StemConfig("conv", (3, 8, 8), (3,), (2, 2), widths=(8,)), "one stride a width"),
        (lambda: StemConfig("text", (77,)), "vocabulary"),
        (lambda: TrunkConfig(10, 1, 3), "not divisible by 3"),
        (lambda: HeadConfig("average"), "Unknown head pool"),
        (lambda: ArchitectureConfig("x", 8, {}, num_cls_tokens=0), "num_cls_tokens"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


def test_the_recipe_draws_the_goldens_weights() -> None:
    facts = golden.read("tiny_b/config.json")
    recipe = Recipe(facts["seed"], facts["qkv_gain"], facts["small_gain"], facts["logit_scales"])
    for name, tensors in golden.state("tiny_b").items():
        for key, tensor in tensors.items():
            drawn = draw(recipe, checkpoint_key(name, key), tuple(tensor.shape))
            assert drawn.dtype == np.float32
            assert np.array_equal(drawn, tensor.numpy()), key


# small architectures


def small(stem: StemConfig, trunk: TrunkConfig, num_cls_tokens: int = 1, **more: object) -> ArchitectureConfig:
    tower = TowerConfig(stem, trunk, **more)  # type: ignore[arg-type]
    return ArchitectureConfig("small", 12, {"it": tower}, num_cls_tokens)


CONV = StemConfig("conv", (3, 2, 32, 32), (3,), (2, 2, 2), "group", (8, 16, 16))
MEL = StemConfig("conv", (1, 64, 80), (3,), (2, 2, 4), "batch", (8, 16, 16))


@pytest.mark.parametrize("stem", [CONV, MEL], ids=["video", "mel"])
@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_conv_stems(stem: StemConfig, norm: str) -> None:
    stem = from_json_dict(StemConfig, {**to_json_dict(stem), "norm": norm})
    tower = build_tower(small(stem, TrunkConfig(24, 2, 3, kv_bias=True)), "it", seed=5).eval()
    x = torch.randn(4, *stem.shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert tower.stem(x).shape == (4, 1 + math.prod(stem.grid), 24)
        y = tower(x)
        apart = torch.cat([tower(clip[None]) for clip in x])
    assert golden.error(y.numpy(), apart.numpy()) <= 2e-6
    assert float(torch.nn.functional.cosine_similarity(y[0], y[1], dim=0)) < 0.999
    with pytest.raises(ShapeError, match="expected shape"):
        tower(x[..., :-1])


def test_a_conv_stem_repeats_a_still_and_sees_both_frames() -> None:
    tower = build_tower(small(CONV, TrunkConfig(24, 1, 3)), "it", seed=5).eval()
    x = torch.randn(2, 3, 2, 32, 32, generator=torch.Generator().manual_seed(2))
    still = x[:, :, :1]
    with torch.inference_mode():
        assert torch.equal(tower(still), tower(still.repeat(1, 1, 2, 1, 1)))
        assert not torch.allclose(tower(x), tower(x.flip(2)))


def test_more_class_tokens_are_registers() -> None:
    stem = StemConfig("patch", (1, 32, 32), (8, 8), (8, 8), "layer")
    tower = build_tower(small(stem, TrunkConfig(16, 2, 2), num_cls_tokens=3), "it", seed=1).eval()
    tokens = tower.stem(torch.zeros(2, 1, 32, 32))
    assert tokens.shape == (2, 3 + 16, 16)
    assert torch.equal(tower.head(tokens, None), tower.head(tokens[:, :1], None))


def test_a_kept_end_id_pools_where_it_stands() -> None:
    stem, trunk = StemConfig("text", (9,), vocabulary=50), TrunkConfig(16, 2, 2, causal=True)
    tower = build_tower(small(stem, trunk, head=HeadConfig("end", end_id=7)), "it", seed=1).eval()
    ids = torch.tensor([[40, 3, 7, 7, 49, 0, 0, 0, 0]])
    assert tower.head.pooled_index(ids).tolist() == [2]
    greatest = build_tower(small(stem, trunk, head=HeadConfig("end")), "it", seed=1).eval()
    assert greatest.head.pooled_index(ids).tolist() == [4]
    with torch.inference_mode():
        assert not torch.allclose(tower(ids), greatest(ids))


def test_a_causal_trunk_with_a_learned_key_stays_causal() -> None:
    stem = StemConfig("text", (9,), vocabulary=50)
    trunk = TrunkConfig(16, 2, 2, causal=True, kv_bias=True)
    tower = build_tower(small(stem, trunk, head=HeadConfig("end")), "it", seed=1).eval()
    ids = torch.tensor([[40, 3, 7, 7, 20, 0, 0, 0, 0]])
    other = ids.clone()
    other[0, 5:] = 11
    with torch.inference_mode():
        before, after = tower.trunk(tower.stem(ids)), tower.trunk(tower.stem(other))
        assert torch.allclose(before[:, :5], after[:, :5], atol=1e-6)
        assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-3)
        bias = tower.trunk.blocks[0].attn.bias_v
        assert bias is not None
        bias.add_(1.0)
        assert not torch.allclose(tower.trunk(tower.stem(ids)), before, atol=1e-3)


def test_starting_weights_follow_the_seed_and_only_it() -> None:
    config = small(MEL, TrunkConfig(24, 2, 3, kv_bias=True), scale=ScaleConfig(20.0))
    first, again, other = (build_tower(config, "it", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["trunk.blocks.0.mlp.fc1.weight"], other["trunk.blocks.0.mlp.fc1.weight"])
    assert all(bool(torch.isfinite(value).all()) for value in first.values())
    assert float(first["scale.log_logit_scale"]) == pytest.approx(math.log(20.0))
    deeper = build_tower(small(MEL, TrunkConfig(24, 3, 3, kv_bias=True)), "it", seed=1).state_dict()
    assert torch.equal(first["trunk.blocks.1.attn.in_proj_weight"], deeper["trunk.blocks.1.attn.in_proj_weight"])


def test_dropout_and_drop_path_act_in_training_only() -> None:
    stem = StemConfig("imu", (6, 80), (8,), norm="layer")
    config = small(stem, TrunkConfig(16, 3, 2, drop_path=0.7), head=HeadConfig(dropout=0.5))
    tower = build_tower(config, "it", seed=1)
    assert tower.training
    x = torch.randn(8, 6, 80, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(0)
    assert not torch.allclose(tower(x), tower(x))
    tower.eval()
    assert torch.equal(tower(x), tower(x))
    assert [block.drop_path for block in tower.trunk.blocks] == pytest.approx([0.0, 0.35, 0.7])


def test_gradients_reach_every_parameter() -> None:
    config = small(CONV, TrunkConfig(24, 2, 3, kv_bias=True, pre_norm=True), scale=ScaleConfig(10.0, trained=True))
    tower = build_tower(config, "it", seed=1)
    (tower(torch.randn(4, 3, 2, 32, 32)) * tower.scale()).square().sum().backward()
    assert [key for key, p in tower.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_waiting_towers_take_no_memory() -> None:
    tower = build_tower(load_architecture("imagebind-huge"), "vision")
    assert {parameter.device.type for parameter in tower.parameters()} == {"meta"}
    assert not tower.training


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imu", "depth", "audio", "thermal", "text", "vision"])
def test_full_size_with_recipe_weights(name: str) -> None:
    facts = golden.read("huge_random/config.json")
    config = load_architecture("imagebind-huge")
    recipe = Recipe(facts["seed"], facts["qkv_gain"], facts["small_gain"], facts["logit_scales"])
    tower = build_tower(config, name)
    state = {key: torch.from_numpy(values) for key, values in draw_tower(recipe, config, name)}
    tower.load_state_dict(state, strict=True, assign=True)
    tower.requires_grad_(False)
    compared = 0
    for case, about in facts["inputs"].items():
        if about["modality"] != name:
            continue
        if name == "text":
            x = np.array(golden.read("tiny_a/inputs.json")["text_tokens"], dtype=np.int64)[[0, 2]]
        else:
            x = golden.draw_input(facts["seed"], case, about["shape"])
        assert hashlib.sha256(x.tobytes()).hexdigest() == about["sha256"]
        clips, per_item = golden.clips_of(name, x, torch.float32)
        got = golden.reference_output(tower, clips, per_item)
        assert golden.error(got, golden.outputs("huge_random")[f"out/{case}"]) <= FLOAT32
        compared += 1
    assert compared
