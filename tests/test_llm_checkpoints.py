"""Files: both layouts of a base, shards, every variant of an adapter, what is refused and how it is called."""

from __future__ import annotations

import argparse
import json
import pickle
import shutil
import sys
from pathlib import Path

import golden_llm as golden
import pytest
import torch
from safetensors.torch import load_file, save_file

from bindsearch import llm
from bindsearch.errors import MismatchError, MissingExtraError, MissingInputError, UnknownNameError, WeightsError
from bindsearch.llm.checkpoints import adapter_state, read_adapter, save_adapter
from bindsearch.llm.llama_files import find_llama, load_llama


def base() -> dict[str, torch.Tensor]:
    return torch.load(golden.LLAMA / "7B/consolidated.00.pth", weights_only=True)


@pytest.fixture(scope="module")
def hf(tmp_path_factory) -> Path:
    """The same Llama in Hugging Face's layout, written by the library."""
    folder = tmp_path_factory.mktemp("hf")
    load_llama(find_llama(golden.LLAMA), biases=False, dtype=torch.float32).save_pretrained(folder)
    shutil.copy(golden.LLAMA / "tokenizer.model", folder)
    return folder


def same(folder: Path) -> None:
    """Every weight equals the one that Meta's layout gives, and the golden holds."""
    want, got = golden.model().llama.state_dict(), golden.model(llama=folder).llama.state_dict()
    assert want.keys() == got.keys()
    assert all(torch.equal(want[key], got[key]) for key in want)
    assert golden.logits_error(golden.model(llama=folder)) <= golden.LOGITS


def test_both_layouts_are_equal(hf: Path) -> None:
    assert find_llama(hf).layout == "hf"
    assert find_llama(golden.LLAMA) == find_llama(golden.LLAMA / "7B")
    assert find_llama(golden.LLAMA).layout == "meta"
    same(hf)


def test_sharded_safetensors(hf: Path, tmp_path: Path) -> None:
    load_llama(find_llama(hf), biases=False, dtype=torch.float32).save_pretrained(tmp_path, max_shard_size="300KB")
    shutil.copy(golden.LLAMA / "tokenizer.model", tmp_path)
    assert len(find_llama(tmp_path).weights) > 2
    same(tmp_path)
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(MissingInputError, match="model-00002"):
        find_llama(tmp_path)


def test_old_bin_files(hf: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.model"):
        shutil.copy(hf / name, tmp_path)
    state = load_file(hf / "model.safetensors")
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)  # older files hold it
    torch.save(state, tmp_path / "pytorch_model.bin")
    same(tmp_path)


def test_two_shards_of_meta(tmp_path: Path) -> None:
    """Larger models come split: rows of some matrices, columns of others, norms whole in each."""
    (tmp_path / "13B").mkdir()
    shutil.copy(golden.LLAMA / "7B/params.json", tmp_path / "13B")
    shutil.copy(golden.LLAMA / "tokenizer.model", tmp_path)
    halves: list[dict[str, torch.Tensor]] = [{}, {}]
    for key, tensor in base().items():
        columns = key.endswith(("wo.weight", "w2.weight")) or key.startswith("tok_embeddings")
        parts = [tensor, tensor] if tensor.ndim == 1 else tensor.chunk(2, dim=1 if columns else 0)
        for half, part in zip(halves, parts, strict=True):
            half[key] = part.clone()
    for at, half in enumerate(halves):
        torch.save(half, tmp_path / f"13B/consolidated.0{at}.pth")
    same(tmp_path)


def test_grouped_keys_of_later_llamas(tmp_path: Path) -> None:
    """Two key heads for four query heads: values are shared by the heads that share a key."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from bindsearch.llm.bind_network import BindConnector

    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    llama = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()
    full = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4)).eval()
    state = llama.state_dict()
    for key in list(state):
        if key.endswith(("k_proj.weight", "v_proj.weight")):
            state[key] = state[key].view(2, 16, 64).repeat_interleave(2, dim=0).reshape(64, 64)
    full.load_state_dict(state)
    connector = BindConnector(32, 64, 128, 2, 4).requires_grad_(False)
    for gate in connector.gates:
        gate.normal_()
    ids, feature = torch.arange(12)[None], torch.randn(1, 32)
    out = []
    for model in (llama, full):
        with connector.connect(model) as connection, connection.inject(feature), torch.no_grad():
            out.append(model(input_ids=ids).logits)
    assert golden.error(out[0], out[1]) <= 1e-5
    with torch.no_grad():
        assert golden.error(llama(input_ids=ids).logits, out[0]) > 1e-2


def test_loads_what_the_library_loads(tmp_path: Path) -> None:
    """Shared keys, a head tied to the words, and a rotation base as older files spell it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    facts = json.loads((tmp_path / "config.json").read_text())
    del facts["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(facts | {"rope_theta": 500.0, "torch_dtype": "float16"}))
    want = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    got = load_llama(find_llama(tmp_path), biases=False, dtype=torch.float32)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(got(input_ids=ids).logits, want(input_ids=ids).logits)
        assert float(got.model.rotary_emb.inv_freq[1]) == pytest.approx(500 ** (-1 / 8))
    assert got.lm_head.weight is got.model.embed_tokens.weight
    biased = load_llama(find_llama(tmp_path), biases=True, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(biased(input_ids=ids).logits, want(input_ids=ids).logits)


def test_written_adapter_is_the_one_that_was_read(tmp_path: Path) -> None:
    of = golden.model(merge_lora=False)
    for name in ("again.pth", "again.safetensors"):
        save_adapter(tmp_path / name, of.connector, of.lora, of.llama)
        got, want = read_adapter(tmp_path / name), golden.adapter()
        assert got.keys() == want.keys()
        assert all(torch.equal(got[key], want[key]) for key in want)
    assert set(torch.load(tmp_path / "again.pth", weights_only=True)) == {"model"}
    v2 = golden.model(golden.V2, merge_lora=False)
    want = golden.figures("v2_adapter")
    got = adapter_state(v2.connector, v2.lora, v2.llama)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], want[key]) for key in want)


def test_training_checkpoints_and_older_names_load(tmp_path: Path) -> None:
    """The whole model, optimiser and an argparse.Namespace beside it, `llma` for `llama`, an encoder."""
    whole = {f"llma.{key}": tensor for key, tensor in base().items()}
    whole |= {key.replace("llama.", "llma."): tensor for key, tensor in golden.adapter().items()}
    whole["image_bind.modality_heads.vision.2.weight"] = torch.zeros(3)
    held = {"model": whole, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=1e-3), "epoch": 3}
    torch.save(held, tmp_path / "checkpoint.pth")
    assert golden.logits_error(golden.model(tmp_path / "checkpoint.pth")) <= golden.LOGITS


def test_inspect_tells_what_a_file_is(tmp_path: Path) -> None:
    facts = llm.inspect_adapter(golden.ADAPTER)
    assert (facts.kind, facts.phase, facts.norm, facts.keys) == ("imagebind-llm", "finetune", "rmsnorm", 104)
    assert (facts.width, facts.layers, facts.heads, facts.inner, facts.lora_rank) == (64, 4, 4, 192, 16)
    assert llm.inspect_adapter(golden.V2).kind == "llama-adapter-v2"


class Boom:
    """Tells on itself if anything unpickles it."""

    def __reduce__(self):
        return (sys.exit, ("unpickled",))


def write_pickle(path: Path) -> None:
    torch.save({"model": {"image_bind_proj.weight": Boom()}}, path)


def changed(path: Path, **changes: torch.Tensor | None) -> None:
    state = golden.adapter()
    for key, tensor in changes.items():
        if tensor is None:
            del state[key]
        else:
            state[key] = tensor
    torch.save({"model": state}, path)


REFUSED = {
    "gate missing": (
        lambda path: changed(path, **{"llama.layers.2.attention.lora_wk_l1.weight": None}),
        r"1 missing: llama\.layers\.2\.attention\.lora_wk_l1\.weight",
    ),
    "strange key": (lambda path: changed(path, surprise=torch.zeros(1)), r"1 unexpected: surprise"),
    "another shape": (
        lambda path: changed(path, **{"image_bind_f2_3.weight": torch.zeros(64, 255)}),
        r"image_bind_f2_3\.weight \(expected \(64, 256\), got \(64, 255\)\)",
    ),
    "not finite": (
        lambda path: changed(path, **{"image_bind_proj.bias": torch.full((64,), float("nan"))}),
        r"1 tensors hold NaN or infinite values: image_bind_proj\.bias",
    ),
    "no network": (lambda path: changed(path, **{"image_bind_f1_1.weight": None}), "image_bind_f1_1.weight"),
    "base weights": (lambda path: torch.save(base(), path), "no adapter of ImageBind-LLM"),
    "LLaVA projector": (
        lambda path: torch.save({"model.mm_projector.weight": torch.zeros(2, 2)}, path),
        "looks like a LLaVA projector",
    ),
    "pickle": (write_pickle, "refused or damaged"),
    "other pickle": (lambda path: path.write_bytes(pickle.dumps(Boom())), "no checkpoint in torch's zip format"),
    "cut short": (lambda path: path.write_bytes(golden.ADAPTER.read_bytes()[:200_000]), "adapter.pth: "),
    "numbers": (lambda path: torch.save({"model": {"a": 3}}, path), "expected a table of tensors"),
    "empty": (lambda path: torch.save({"model": {}}, path), "expected a table of tensors"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_adapters_are_refused_by_name(name: str, tmp_path: Path) -> None:
    write, match = REFUSED[name]
    write(tmp_path / "adapter.pth")
    with pytest.raises(WeightsError, match=match):
        golden.model(tmp_path / "adapter.pth")


def copied(tmp_path: Path) -> Path:
    folder = tmp_path / "llama"
    shutil.copytree(golden.LLAMA, folder)
    return folder


def test_wrong_bases_are_refused_by_name(tmp_path: Path, hf: Path) -> None:
    with pytest.raises(MissingInputError, match="nowhere: no such folder"):
        golden.model(llama=tmp_path / "nowhere")
    with pytest.raises(MissingInputError, match=r"expected one Llama \(params.json or config.json\)"):
        golden.model(llama=tmp_path)
    with pytest.raises(MissingInputError, match=r"no_adapter\.pth: no such file"):
        golden.model(tmp_path / "no_adapter.pth")
    folder = copied(tmp_path)
    state = base()
    del state["layers.1.attention.wk.weight"]
    torch.save(state, folder / "7B/consolidated.00.pth")
    with pytest.raises(WeightsError, match=r"1 missing: model\.layers\.1\.self_attn\.k_proj\.weight"):
        golden.model(llama=folder)
    torch.save(golden.adapter(), folder / "7B/consolidated.00.pth")
    with pytest.raises(WeightsError, match=r"not a base Llama: .* strange keys: image_bind_f1_1.weight"):
        golden.model(llama=folder)
    (folder / "7B/params.json").write_text("{}")
    with pytest.raises(WeightsError, match="no dim, n_heads, n_layers"):
        golden.model(llama=folder)
    (folder / "7B/params.json").write_text("{")
    with pytest.raises(WeightsError, match="no JSON"):
        golden.model(llama=folder)
    (folder / "7B/consolidated.00.pth").unlink()
    with pytest.raises(MissingInputError, match=r"no weights \(consolidated"):
        golden.model(llama=folder)
    (folder / "tokenizer.model").unlink()
    shutil.copy(golden.LLAMA / "7B/consolidated.00.pth", folder / "7B")
    with pytest.raises(MissingInputError, match=r"no tokenizer.model"):
        golden.model(llama=folder)
    (folder / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(WeightsError, match="no sentencepiece model"):
        golden.model(llama=folder)


def other_llama(folder: Path, hf: Path, **changes: object) -> Path:
    """Another Llama in Hugging Face's layout, random."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = json.loads((hf / "config.json").read_text()) | changes
    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(folder)
    shutil.copy(golden.LLAMA / "tokenizer.model", folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_hidden_layers": 3}, "layers: adapter 4, Llama 3"),
        ({"hidden_size": 128, "head_dim": 32}, "width: adapter 64, Llama 128"),
        ({"intermediate_size": 224}, "inner: adapter 192, Llama 224"),
        ({"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}, "heads: adapter 4, Llama 2"),
        ({"vocab_size": 600}, "512 pieces, the Llama has 600"),
    ],
)
def test_a_llama_of_another_size_is_refused(changes: dict, match: str, hf: Path, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=match):
        golden.model(llama=other_llama(tmp_path, hf, **changes))


def test_another_kind_of_model_is_refused(hf: Path, tmp_path: Path) -> None:
    shutil.copytree(hf, tmp_path / "x")
    config = json.loads((hf / "config.json").read_text()) | {"model_type": "mistral"}
    (tmp_path / "x/config.json").write_text(json.dumps(config))
    with pytest.raises(MismatchError, match="expected model_type llama, got 'mistral'"):
        golden.model(llama=tmp_path / "x")
    shutil.copy(hf / "config.json", tmp_path / "x")
    (tmp_path / "x/model.safetensors").write_bytes((hf / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        golden.model(llama=tmp_path / "x")


def test_options(hf: Path, monkeypatch) -> None:
    with pytest.raises(UnknownNameError, match="dtype 'bf16'"):
        golden.model(dtype="bf16")
    for quantize in ("8bit", "4bit"):
        with pytest.raises(MissingExtraError, match=r"bitsandbytes.*llm-quantized"):
            golden.model(llama=hf, quantize=quantize)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingExtraError, match=r"sentencepiece.*bindsearch.llm"):
        golden.model()


def test_light_import() -> None:
    import subprocess

    code = "import sys; from bindsearch import llm; print([n for n in ('torch', 'transformers') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_save_as_safetensors_loads(tmp_path: Path) -> None:
    save_file(golden.adapter(), tmp_path / "adapter.safetensors")
    assert golden.logits_error(golden.model(tmp_path / "adapter.safetensors")) <= golden.LOGITS


def test_nothing_is_said_where_nothing_is_wrong() -> None:
    """Neither the library's warnings nor its progress bars reach a user who asks a question."""
    import subprocess

    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import golden_llm as golden\n"
        "of = golden.model()\n"
        "print(repr(of.answer(golden.feature()[:1], 'What is it?')))\n"
    )
    line = [sys.executable, "-W", "error", "-c", code, str(Path(__file__).parent)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(("'", '"'))
