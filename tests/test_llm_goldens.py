"""The adapter on a stock Llama against the reference's figures, rung by rung: rows, network, layers, answers."""

from __future__ import annotations

from functools import cache
from typing import Any

import golden_llm as golden
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bindsearch.cache import VisualCache, mix
from bindsearch.llm.bind_network import BindNetwork
from bindsearch.llm.checkpoints import adapter_shapes, build_connector, build_lora, config_of, describe
from bindsearch.llm.generate import Sampling, generate, nucleus, stream
from bindsearch.llm.keys import (
    checkpoint_key,
    is_adapter_key,
    place_of,
    rotary_rows,
    rotary_rows_back,
    trains_in,
)
from bindsearch.llm.llama_files import empty_llama
from bindsearch.llm.model import AdapterLlama


@cache
def plain(attention: str = "sdpa", merge_lora: bool = True) -> AdapterLlama:
    """Shared between tests that change nothing."""
    return golden.model(attention=attention, merge_lora=merge_lora)


def test_rotary_rows_are_the_references() -> None:
    g = golden.figures("rope_permutation")
    for meta, hf in (("wq_meta", "wq_hf"), ("wk_meta", "wk_hf"), ("bq_meta", "bq_hf")):
        assert torch.equal(rotary_rows(g[meta], 16), g[hf])
        assert torch.equal(rotary_rows_back(g[hf], 16), g[meta])
    assert torch.equal(rotary_rows(torch.arange(64), 16), g["perm"])


def rotated(x: torch.Tensor, start: int) -> torch.Tensor:
    """Hugging Face's rotation, by its own code, of (B, L, heads, head_dim)."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = empty_llama(config_of(describe(golden.adapter(), "tiny"))).config
    cos, sin = LlamaRotaryEmbedding(config)(x, torch.arange(start, start + x.shape[1])[None])
    return apply_rotary_pos_emb(x.transpose(1, 2), x.transpose(1, 2), cos, sin)[0].transpose(1, 2)


def test_rotary_scores_are_the_references() -> None:
    g = golden.figures("rope_permutation")
    start = int(g["position_offset"])

    def scores(turn: Any, bias: Any) -> torch.Tensor:
        q = (g["x"] @ turn(g["wq_meta"]).T + bias(g["bq_meta"])).unflatten(2, (4, 16))
        k = (g["x"] @ turn(g["wk_meta"]).T).unflatten(2, (4, 16))
        return torch.einsum("bqhd,bkhd->bhqk", rotated(q, start), rotated(k, start))

    def turn(rows: torch.Tensor) -> torch.Tensor:
        return rotary_rows(rows, 16)

    stated = golden.read("meta.json")
    assert golden.error(scores(turn, turn), g["scores"]) <= 2e-5
    assert golden.error(scores(turn, turn), torch.zeros_like(g["scores"])) > 10
    unturned = golden.error(scores(lambda rows: rows, lambda rows: rows), g["scores"])
    assert unturned == pytest.approx(stated["rope_score_diff_without_permutation"], rel=1e-4)
    half = golden.error(scores(turn, lambda rows: rows), g["scores"])
    assert half == pytest.approx(stated["rope_score_diff_bias_not_permuted"], rel=1e-4)


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_bind_network(norm: str) -> None:
    g = golden.figures("bind_rmsnorm" if norm == "rmsnorm" else "bind_legacy_layernorm")
    weights = golden.adapter() if norm == "rmsnorm" else g
    network = BindNetwork(32, 64, 256, norm)  # type: ignore[arg-type]
    prefix = "network."
    state = {
        place_of(key).key.removeprefix(prefix): value  # type: ignore[union-attr]
        for key, value in weights.items()
        if key.startswith("image_bind_")
    }
    network.load_state_dict(state, strict=True)
    with torch.no_grad():
        got = network(torch.nn.functional.normalize(g["input_feature"], dim=1))  # as the reference does before it
    assert golden.error(got, g["output"][:, 0]) <= 2e-5
    other = "layernorm" if norm == "rmsnorm" else "rmsnorm"
    wrong = BindNetwork(32, 64, 256, other)  # type: ignore[arg-type]
    wrong.load_state_dict(state, strict=False)
    with torch.no_grad():
        got = wrong(torch.nn.functional.normalize(g["input_feature"], dim=1))
    assert golden.error(got, g["output"][:, 0]) > 0.1


@pytest.mark.parametrize("merge_lora", [True, False], ids=["merged", "beside"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
class TestForward:
    def test_logits_and_loss(self, attention: str, merge_lora: bool) -> None:
        g = golden.figures("full_forward")
        got = plain(attention, merge_lora).logits(golden.feature(), g["tokens"])
        assert golden.error(got, g["logits"]) <= golden.LOGITS
        assert golden.error(golden.loss(got, g["labels"])[None], g["loss"]) <= golden.LOSS

    def test_every_layer(self, attention: str, merge_lora: bool) -> None:
        g = golden.figures("full_forward")
        of = plain(attention, merge_lora)
        seen: dict[str, torch.Tensor] = {}
        handles = []
        for at, layer in enumerate(of.llama.model.layers):
            handles.append(
                layer.self_attn.register_forward_hook(lambda m, a, out, at=at: seen.__setitem__(f"attn.{at}", out[0]))
            )
            handles.append(layer.register_forward_hook(lambda m, a, out, at=at: seen.__setitem__(f"hidden.{at}", out)))
        of.logits(golden.feature(), g["tokens"])
        for handle in handles:
            handle.remove()
        for name in sorted(seen):  # attn.0 .. attn.3, hidden.0 .. hidden.3
            assert golden.error(seen[name], g[name]) <= golden.HIDDEN, name
        assert len(seen) == 8

    def test_token_by_token(self, attention: str, merge_lora: bool) -> None:
        g = golden.figures("full_forward")
        got = golden.steps(plain(attention, merge_lora), golden.feature(), g["tokens"])
        assert golden.error(got, g["step_logits"]) <= golden.LOGITS


def test_visual_features() -> None:
    with torch.no_grad():
        got = plain().connector.network(golden.feature())
    assert golden.error(got, golden.figures("full_forward")["visual_feats"][:, 0]) <= 2e-5


ABLATIONS = {
    "no_gate": lambda key: key.endswith("attention.gate"),
    "no_lora": lambda key: ".lora_" in key,
    "no_bias": lambda key: key.startswith("llama.") and key.endswith(".bias"),
    "no_prefix": lambda key: key == "prefix_query.weight",
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations(name: str, tmp_path) -> None:
    state = {key: torch.zeros_like(t) if ABLATIONS[name](key) else t for key, t in golden.adapter().items()}
    torch.save({"model": state}, tmp_path / "adapter.pth")
    of = golden.model(tmp_path / "adapter.pth", merge_lora=False)
    want = golden.figures("full_forward_ablations")[name]
    assert golden.error(of.logits(golden.feature(), golden.figures("full_forward")["tokens"]), want) <= golden.LOGITS
    stated = golden.read("meta.json")["ablation_max_abs_logit_change"][name]
    assert golden.logits_error(of) == pytest.approx(stated, rel=1e-3)


def test_pretrain_phase(tmp_path) -> None:
    names = golden.read("trainable_keys.json")["finetune"]
    dropped = {key for key in names if ".lora_" in key or key.endswith(".bias")}
    state = {key: tensor for key, tensor in golden.adapter().items() if key not in dropped}
    save_file(state, tmp_path / "pretrained.safetensors")
    of = golden.model(tmp_path / "pretrained.safetensors")
    assert (of.facts.phase, of.lora, of.llama.config.mlp_bias) == ("pretrain", None, False)
    g, both = golden.figures("full_forward_pretrain_phase"), golden.figures("full_forward")
    got = of.logits(golden.feature(), both["tokens"])
    assert golden.error(got, g["logits"]) <= golden.LOGITS
    assert golden.error(golden.loss(got, both["labels"])[None], g["loss"]) <= golden.LOSS


@pytest.mark.parametrize(("dtype", "allowed"), [("bfloat16", 0.3), ("float16", 0.05)])
def test_half_types_drift_and_say_the_same(dtype: str, allowed: float) -> None:
    g = golden.figures("full_forward")
    got = golden.model(dtype=dtype).logits(golden.feature(), g["tokens"])
    assert golden.error(got, g["logits"]) <= allowed
    assert torch.equal(got.argmax(-1), g["logits"].argmax(-1))


@cache
def embeddings_of(name: str) -> torch.Tensor:
    """What a generation case puts into the connector: the mixture, then the cache's blend where the case has one."""
    case = golden.read("generation.json")[name]
    rows = [np.array(vector, dtype=np.float32) for _, vector, _ in case["inputs"]]
    mixed = mix(rows, [weight for _, _, weight in case["inputs"]])
    if case["knn"]:
        images = VisualCache.of_vectors(known_images())
        mixed = images.enhance(
            mixed, case.get("cache_size", 10), case.get("cache_t", 20), case.get("cache_weight", 0.5)
        )
    return torch.from_numpy(mixed)


def known_images() -> np.ndarray:
    import faiss

    index = faiss.read_index(str(golden.FOLDER / "knn_tiny32.index"))
    return index.reconstruct_n(0, index.ntotal)


@pytest.mark.parametrize("name", ["greedy_mix_cache", "greedy_mix_cache_custom", "greedy_mix_no_cache"])
def test_what_goes_into_the_cases_with_a_cache(name: str) -> None:
    """The plain formula in float64: mixture, not normalised again, softmax over the nearest, two normalisations."""
    case = golden.read("generation.json")[name]
    weights = np.array([weight for _, _, weight in case["inputs"]])
    units = [np.array(row) / np.linalg.norm(row) for _, row, _ in case["inputs"]]
    want = sum(weight * unit for weight, unit in zip(weights, units, strict=True)) / (weights.sum() + 1e-6)
    if case["knn"]:
        images = known_images().astype(np.float64)
        scores = (want @ images.T)[0]
        near = np.argsort(-scores)[: case.get("cache_size", 10)]
        share = np.exp(case.get("cache_t", 20) * scores[near])
        found = share @ images[near]
        weight = case.get("cache_weight", 0.5)
        want = (1 - weight) * want + weight * found / np.linalg.norm(found)
        want /= np.linalg.norm(want)
    assert golden.error(embeddings_of(name), torch.from_numpy(want).float()) <= 5e-6


@pytest.mark.parametrize("merge_lora", [True, False], ids=["merged", "beside"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", sorted(golden.read("generation.json")))
def test_greedy_answers_are_the_references(name: str, attention: str, merge_lora: bool) -> None:
    case = golden.read("generation.json")[name]
    of = plain(attention, merge_lora)
    for prompt, ids in zip(case["prompts"], case["prompt_ids"], strict=True):
        assert prompt is None or of.tokenizer.encode(prompt) == ids  # three cases were given as ids
    sampling = Sampling(max_new_tokens=case["max_gen_len"], temperature=0)
    got = generate(of.connection, embeddings_of(name), case["prompt_ids"], sampling, of.tokenizer.eos)
    assert got == case["output_ids"]
    assert [of.tokenizer.decode(row) for row in got] == case["text"]
    if len(got) == 1:
        ids = stream(of.connection, embeddings_of(name), case["prompt_ids"][0], sampling, of.tokenizer.eos)
        assert list(ids) == got[0]


def test_there_are_seven_cases() -> None:
    assert len(golden.read("generation.json")) == 7


@pytest.mark.parametrize(("temperature", "top_p"), [(0.1, 0.75), (0.7, 0.95), (1.0, 0.0), (1.0, 0.75)])
def test_nucleus(temperature: float, top_p: float) -> None:
    g = golden.figures("top_p_filter")
    shares, ids = nucleus(g["logits"], temperature, top_p)
    want = g[f"t{temperature}_p{top_p}"]
    assert golden.error(shares, want) <= 1e-6
    assert torch.equal(shares > 0, want > 0)
    first = g["logits"].argsort(dim=-1, descending=True)
    assert torch.equal(ids[shares > 0], first[shares > 0])  # beyond, shares of 0 tie


def seven_billion(variant: str) -> dict[str, tuple[int, ...]]:
    """The golden list of one of the three released files of 7B."""
    lists = golden.read("adapter_keys_7B.json")
    full = {key: tuple(shape) for key, shape in lists["7B (RMSNorm bridge)"].items()}
    if variant == "7B-beta":
        more = lists["7B-beta (legacy LayerNorm bridge)"]
        return full | {key: full[key.replace(".bias", ".weight")][:1] for key in more}
    return {k: s for k, s in full.items() if variant == "7B" or k not in lists["7B-pretrained (phase=pretrain)"]}


@pytest.mark.parametrize(
    ("variant", "keys", "network"),
    [("7B", 720, 608_190_464), ("7B-beta", 732, 608_313_344), ("7B-pretrained", 112, 608_190_464)],
)
def test_module_tree_of_7b_has_the_released_files_keys(variant: str, keys: int, network: int) -> None:
    want = seven_billion(variant)
    assert len(want) == keys
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in want.items()}
        facts = describe(state, variant)
        config = config_of(facts)
        connector, lora, llama = build_connector(facts), build_lora(facts, config), empty_llama(config)
    assert adapter_shapes(connector, lora, llama) == want
    assert sum(p.numel() for p in connector.network.parameters()) == network
    assert (facts.phase, facts.norm) == (
        "pretrain" if variant == "7B-pretrained" else "finetune",
        "layernorm" if variant == "7B-beta" else "rmsnorm",
    )
    assert (facts.dim, facts.width, facts.layers, facts.heads) == (1024, 4096, 32, 32)
    if variant == "7B":
        assert facts.values == 649_663_488
        assert (facts.inner, facts.hidden, facts.lora_rank) == (11008, 16384, 16)


def test_counts_of_what_each_phase_trains_in_7b() -> None:
    full = seven_billion("7B")
    counts = {p: sum(int(np.prod(s)) for k, s in full.items() if trains_in(p, k)) for p in ("pretrain", "finetune")}
    assert counts == {"pretrain": 608_322_560, "finetune": 41_340_928}


def test_what_each_phase_trains() -> None:
    base = {f"llama.{key}" for key in torch.load(golden.LLAMA / "7B/consolidated.00.pth", weights_only=True)}
    names = base | set(golden.adapter())
    for phase, want in golden.read("trainable_keys.json").items():
        assert {key for key in names if trains_in(phase, key)} == set(want), phase


def test_names_come_back() -> None:
    base = [f"llama.{key}" for key in torch.load(golden.LLAMA / "7B/consolidated.00.pth", weights_only=True)]
    v2 = list(golden.figures("v2_adapter"))
    for key in [*seven_billion("7B-beta"), *base, *v2]:
        place = place_of(key)
        assert place is not None, key
        assert place.part == "drop" or checkpoint_key(place.part, place.key) == key
    assert place_of("llama.layers.0.attention.wz.weight") is None
    assert place_of("mm_projector.weight") is None


def test_converter_rule_leaves_the_adapter() -> None:
    base = {f"llama.{key}" for key in torch.load(golden.LLAMA / "7B/consolidated.00.pth", weights_only=True)}
    full = base | set(golden.adapter()) | {"image_bind.modality_heads.vision.weight"}
    assert {key for key in full if is_adapter_key(key)} == set(golden.read("adapter_keys_tiny.json"))
    assert {k: list(v.shape) for k, v in golden.adapter().items()} == golden.read("adapter_keys_tiny.json")
