"""LLaMA-Adapter V2 on a stock Llama against the reference's figures, and its wrong variants."""

from __future__ import annotations

import golden_llm as golden
import pytest
import torch

from bindsearch.errors import InputError, MismatchError, ShapeError, WeightsError
from bindsearch.llm.adapter_v2 import AdapterV2Connection
from bindsearch.llm.checkpoints import (
    AdapterFacts,
    adapter_shapes,
    build_connector,
    build_lora,
    config_of,
    save_adapter,
)
from bindsearch.llm.keys import rotary_rows
from bindsearch.llm.llama_files import empty_llama
from bindsearch.llm.model import load


def v2(**options):
    return golden.model(golden.V2, **options)


def logits_error(of) -> float:
    g = golden.figures("v2_forward")
    return golden.error(of.logits(g["clip_feats"], g["tokens"]), g["logits"])


def test_facts() -> None:
    facts = v2().facts
    assert (facts.kind, facts.phase, facts.lora_rank) == ("llama-adapter-v2", "finetune", 16)
    assert (facts.dim, facts.hidden, facts.depth) == (48, 32, 2)
    assert (facts.query_layers, facts.query_tokens, facts.layers) == (3, 10, 4)


def test_visual_tokens() -> None:
    g = golden.figures("v2_forward")
    with torch.no_grad():
        assert golden.error(v2().connector.visual_tokens(g["clip_feats"]), g["visual_query"]) <= 2e-5


@pytest.mark.parametrize("merge_lora", [True, False], ids=["merged", "beside"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_loss_and_token_by_token(attention: str, merge_lora: bool) -> None:
    g = golden.figures("v2_forward")
    of = v2(attention=attention, merge_lora=merge_lora)
    got = of.logits(g["clip_feats"], g["tokens"])
    assert golden.error(got, g["logits"]) <= golden.LOGITS
    assert golden.error(golden.loss(got, g["labels"]).reshape(g["loss"].shape), g["loss"]) <= golden.LOSS
    assert golden.error(golden.steps(of, g["clip_feats"], g["tokens"]), g["step_logits"]) <= golden.LOGITS


def test_wrong_heads_of_the_visual_blocks() -> None:
    assert logits_error(v2(visual_heads=2)) > 0.1


def test_wrong_merged_keys_and_values() -> None:
    of = v2(merge_lora=True)
    of.connection.close()
    of.connection = of.connector.connect(of.llama, lora=None)
    assert logits_error(of) > 0.1


def test_wrong_first_layers_instead_of_last() -> None:
    of = v2()
    of.connection.close()
    of.connector.query_layers = 4  # layer 0 would need rows of its own
    rows = of.connector.adapter_query.weight
    of.connector.adapter_query.weight = torch.nn.Parameter(torch.cat([rows[:10], rows]), requires_grad=False)
    of.connection = of.connector.connect(of.llama, of.lora)
    assert logits_error(of) > 0.1


def test_wrong_queries_before_their_rotation(monkeypatch) -> None:
    def unturned(self, module, args, kwargs) -> None:
        if self.state is not None:
            cos, sin = kwargs["position_embeddings"]
            self.state.rotation = (torch.ones_like(cos), torch.zeros_like(sin))

    monkeypatch.setattr(AdapterV2Connection, "_take_rotation", unturned)
    assert logits_error(v2()) > 0.1


def test_wrong_keys_in_the_other_order() -> None:
    of = v2(merge_lora=False)
    with torch.no_grad():
        for layer in of.llama.model.layers:
            layer.self_attn.k_proj.weight.copy_(rotary_rows(layer.self_attn.k_proj.weight, 16))
    assert logits_error(of) > 0.1


def test_wrong_without_the_second_gate() -> None:
    of = v2()
    with torch.no_grad():
        for gate in of.connector.new_gates:
            gate.fill_(1)
    assert logits_error(of) > 0.01


def test_without_a_request_the_llama_reads_text_alone() -> None:
    g = golden.figures("v2_forward")
    of = v2()
    with torch.no_grad():
        alone = of.llama(input_ids=g["tokens"]).logits
        for gate in of.connector.gates:
            gate.zero_()
    assert torch.equal(of.logits(g["clip_feats"], g["tokens"]), alone)


@pytest.mark.parametrize(("phase", "keys"), [("bias", 363), ("lora", 843)])
def test_module_tree_has_as_many_keys_as_the_released_files(phase: str, keys: int) -> None:
    facts = AdapterFacts(
        "llama-adapter-v2",
        "finetune",
        "",
        768,
        4096,
        32,
        32,
        11008,
        768,
        16 if phase == "lora" else 0,
        31,
        10,
        8,
        biases=True,
        new_gates=phase == "lora",
    )
    config = config_of(facts)
    with torch.device("meta"):
        connector, lora, llama = build_connector(facts), build_lora(facts, config), empty_llama(config)
    shapes = adapter_shapes(connector, lora, llama)
    assert len(shapes) == keys
    trained = sum(
        torch.Size(shape).numel() for key, shape in shapes.items() if not key.startswith("llama.") and "gate" not in key
    )
    assert round(trained / 1e6, 2) == 61.73
    assert shapes["adapter_query.weight"] == (310, 4096)


def test_refusals() -> None:
    of = v2()
    g = golden.figures("v2_forward")
    with pytest.raises(ShapeError, match=r"features \(B, 48\) or \(B, L, 48\), got \(2, 47\)"):
        of.logits(g["clip_feats"][:, 0, :47], g["tokens"])
    bad = g["clip_feats"].clone()
    bad[1, 2, 3] = torch.inf
    with pytest.raises(InputError, match="NaN or infinite"):
        of.logits(bad, g["tokens"])
    of.llama.config.hidden_size = 80
    with pytest.raises(MismatchError, match=r"width 64.*width 80"):
        of.connector.connect(of.llama)


def test_rows_of_a_joint_space_are_sequences_of_one() -> None:
    of = v2()
    g = golden.figures("v2_forward")
    rows = g["clip_feats"][:, 0]
    assert torch.equal(of.logits(rows, g["tokens"]), of.logits(rows[:, None], g["tokens"]))


@pytest.mark.parametrize("name", ["mine.pth", "mine.safetensors"])
def test_visual_heads_are_recorded(tmp_path, name: str) -> None:
    of = v2(merge_lora=False)
    save_adapter(tmp_path / name, of.connector, of.lora, of.llama, of.base)
    again = load(tmp_path / name, golden.LLAMA, "float32")
    assert again.connector.visual.heads == 4 and logits_error(again) <= golden.LOGITS
    with pytest.raises(MismatchError, match=r"trained with 4 visual heads, asked for 8"):
        load(tmp_path / name, golden.LLAMA, "float32", visual_heads=8)
    with pytest.raises(InputError, match=r"5 heads do not divide the visual path's width of 32"):
        v2(visual_heads=5)
    assert load(golden.V2, golden.LLAMA, "float32").connector.visual.heads == 16  # of others: the released files'


def test_records_of_strangers_are_read_with_care(tmp_path) -> None:
    torch.save({"model": golden.figures("v2_adapter"), "visual_heads": "many"}, tmp_path / "v2.pth")
    with pytest.raises(WeightsError, match="visual_heads as a number of 1 or more, got 'many'"):
        load(tmp_path / "v2.pth", golden.LLAMA, "float32")


def test_wrong_eps_and_wrong_gelu(monkeypatch) -> None:
    g = golden.figures("v2_forward")
    of = v2()
    for module in of.connector.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    with torch.no_grad():
        assert golden.error(of.connector.visual_tokens(g["clip_feats"]), g["visual_query"]) > 1e-4  # 2e-5 is allowed
    exact = torch.nn.functional.gelu
    monkeypatch.setattr(torch.nn.functional, "gelu", lambda x: exact(x, approximate="tanh"))
    with torch.no_grad():
        assert golden.error(v2().connector.visual_tokens(g["clip_feats"]), g["visual_query"]) > 5e-4
