"""Ways to get the adapter wrong: each is built, and each is as far off as the reference's own measurement says."""

from __future__ import annotations

import golden_llm as golden
import pytest
import torch

from bindsearch.llm import checkpoints
from bindsearch.llm.bind_network import BindNetwork
from bindsearch.llm.keys import LINEARS, place_of, rotary_rows_back
from bindsearch.llm.model import AdapterLlama


def stated(size: float) -> object:
    """The README gives two or three digits."""
    return pytest.approx(size, rel=0.02)


def test_the_right_one_is_right() -> None:
    assert golden.logits_error(golden.model()) <= golden.LOGITS


def test_merged_values_for_what_is_injected() -> None:
    of = golden.model(merge_lora=True)
    of.connection.close()
    of.connection = of.connector.connect(of.llama, lora=None)  # forgets that v_proj holds LoRA's product now
    assert golden.logits_error(of) == stated(5.9)


def test_bias_of_queries_not_turned() -> None:
    of = golden.model(merge_lora=False)
    with torch.no_grad():
        for layer in of.llama.model.layers:
            layer.self_attn.q_proj.bias.copy_(rotary_rows_back(layer.self_attn.q_proj.bias, 16))
    assert golden.logits_error(of) == stated(0.72)


def test_lora_rows_of_queries_and_keys_not_turned() -> None:
    of = golden.model(merge_lora=False)
    with torch.no_grad():
        for layer in range(4):
            for name in ("q_proj", "k_proj"):
                up = of.lora.branch(layer, name).up.weight
                up.copy_(rotary_rows_back(up, 16))
    assert golden.logits_error(of) == stated(4.9)


@pytest.mark.parametrize(
    ("kinds", "size"), [(("norm", "attention_norm"), 4.6), (("norm", "attention_norm", "ffn_norm"), 5.71)]
)
def test_norms_of_the_base(kinds: tuple[str, ...], size: float) -> None:
    """4.6 is stated for the norms before attention and at the end; with those of the MLPs it is 5.71."""
    of = golden.model()
    base = torch.load(golden.LLAMA / "7B/consolidated.00.pth", weights_only=True)
    with torch.no_grad():
        for key in base:
            if key.split(".")[-2] in kinds:
                of.llama.get_parameter(place_of(key).key).copy_(base[key])
    assert golden.logits_error(of) == stated(size)


def test_no_gates() -> None:
    of = golden.model()
    with torch.no_grad():
        for gate in of.connector.gates:
            gate.zero_()
    assert golden.logits_error(of) == stated(17.2)


def test_feature_added_to_the_words_as_the_paper_writes() -> None:
    of = golden.model()
    g = golden.figures("full_forward")
    with torch.no_grad():
        words = of.llama.model.embed_tokens(g["tokens"])
        seen = of.connector.network(golden.feature())[:, None]
        got = of.llama(inputs_embeds=words + seen).logits
    assert golden.error(got, g["logits"]) == stated(16.3)


def test_injection_without_the_learned_rows() -> None:
    of = golden.model()
    with torch.no_grad():
        of.connector.prefix.weight.zero_()
    assert golden.logits_error(of) == stated(3.104)


def test_feature_that_is_not_normalised() -> None:
    of = golden.model()
    g = golden.figures("full_forward")
    assert golden.error(of.logits(g["image_feature"], g["tokens"]), g["logits"]) > 5


def test_cache_of_another_feature() -> None:
    """Keys and values depend on what was injected: a prefix cached under another feature is wrong."""
    of = golden.model()
    g = golden.figures("full_forward")
    with torch.no_grad():
        with of.connection.inject(golden.feature().flip(0)):
            past = of.llama(input_ids=g["tokens"][:, :10], use_cache=True).past_key_values
        with of.connection.inject(golden.feature()):
            got = of.llama(input_ids=g["tokens"][:, 10:11], past_key_values=past, use_cache=True).logits[:, -1]
    assert golden.error(got, g["step_logits"][:, 1]) > 1


def test_a_legacy_file_with_its_layernorm_biases_dropped_is_another_network(tmp_path) -> None:
    legacy = golden.figures("bind_legacy_layernorm")
    state = golden.adapter() | {key: t for key, t in legacy.items() if key.startswith("image_bind_")}
    torch.save({"model": state}, tmp_path / "7B-beta.pth")
    right = golden.model(tmp_path / "7B-beta.pth")
    assert (right.facts.norm, right.facts.keys) == ("layernorm", 104 + 12)
    given = torch.nn.functional.normalize(legacy["input_feature"], dim=1)
    assert golden.error(right.connector.network(given).detach(), legacy["output"][:, 0]) <= 2e-5
    torch.save({"model": {k: t for k, t in state.items() if k in golden.adapter()}}, tmp_path / "cut.pth")
    wrong = golden.model(tmp_path / "cut.pth")
    assert golden.error(wrong.connector.network(given).detach(), legacy["output"][:, 0]) > 0.1


def test_lora_at_half_its_scale() -> None:
    of: AdapterLlama = golden.model(merge_lora=False)
    with torch.no_grad():
        for layer in range(4):
            for path in LINEARS.values():
                of.lora.branch(layer, path.split(".")[1]).up.weight.mul_(0.5)
    assert golden.logits_error(of) > 1


def test_wrong_files_are_refused_before_they_can_be_silently_half_loaded(tmp_path) -> None:
    """The reference loads an RMSNorm file into its legacy network and leaves 12 tensors random."""
    state = golden.adapter() | {"image_bind_norm_1.bias": torch.zeros(64)}
    torch.save({"model": state}, tmp_path / "mixed.pth")
    with pytest.raises(checkpoints.WeightsError, match=r"missing: image_bind_f1_1\.bias"):
        golden.model(tmp_path / "mixed.pth")


@pytest.mark.parametrize(("norm", "wrong"), [("rmsnorm", 1e-5), ("layernorm", 1e-6)])
def test_eps_of_the_bind_network(norm: str, wrong: float) -> None:
    g = golden.figures("bind_rmsnorm" if norm == "rmsnorm" else "bind_legacy_layernorm")
    weights = golden.adapter() if norm == "rmsnorm" else g
    network = BindNetwork(32, 64, 256, norm)  # type: ignore[arg-type]
    names = {key: place_of(key) for key in weights if key.startswith("image_bind_")}
    network.load_state_dict({place.key.removeprefix("network."): weights[key] for key, place in names.items()})
    for block in network.blocks:
        block.norm.eps = wrong
    with torch.no_grad():
        got = network(torch.nn.functional.normalize(g["input_feature"], dim=1))
    assert golden.error(got, g["output"][:, 0]) > 5e-4  # 2e-5 is allowed


def test_eps_of_the_llama() -> None:
    """A wrong one (1e-5, what a params.json without it means) is 6e-5 off, within what is allowed: read it."""
    of = golden.model()
    assert {m.variance_epsilon for m in of.llama.modules() if hasattr(m, "variance_epsilon")} == {1e-6}
    right = golden.logits_error(of)
    for module in of.llama.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1e-5
    assert golden.logits_error(of) > 2 * right
