"""docs/real-weights.md, command by command, on stand-ins with random weights in the layouts of the real files.

The towers are those of the architecture "tiny" under the name imagebind-huge, the Llama and the adapter the reference's
golden miniatures, whose keys are those of the full list (720 of 7B) layer by layer. Bad input comes by the same
commands, and is refused by name.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bindsearch.cli import run
from bindsearch.llm import fingerprint_of, inspect_adapter, record_base
from bindsearch.llm.checkpoints import read_adapter
from bindsearch.llm.fingerprint import recorded_base
from bindsearch.llm.llama_files import find_llama, load_llama
from bindsearch.models import weights
from bindsearch.world.write import write_world

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "real-weights.md"
GOLDEN = Path(__file__).parent / "golden" / "imagebind_llm"
WIDTH, DIM = 64, 32
ASK = ["ask", "What is this?", "--audio", "waves.wav", "--space", "weights/imagebind-huge"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def stand_in_towers(path: Path) -> None:
    spec = importlib.util.spec_from_file_location("write_huge", ROOT / "tools" / "write_huge_checkpoint.py")
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    scales = {"text": 30.0, "audio": 20.0, "depth": 5.0, "thermal": 10.0, "imu": 5.0}
    writer.write(path, "tiny", writer.Recipe(7, 2.0, logit_scales=scales))


def stand_in_media(home: Path) -> None:
    write_world(16, home / "photos", seed=900, modalities=("image",))
    write_world(24, home / "sounds", seed=950, modalities=("audio",))
    shutil.copy(next((home / "sounds").glob("*.wav")), home / "waves.wav")
    shutil.copy(next((home / "photos").glob("*.png")), home / "beach.png")


def stand_in_llamas(home: Path) -> None:
    shutil.copytree(GOLDEN / "tiny_llama", home / "llama")
    shutil.copy(GOLDEN / "adapter_tiny.pth", home / "7B.pth")
    llama = load_llama(find_llama(home / "llama"), False, torch.float32)
    llama.save_pretrained(home / "llama-hf")
    shutil.copy(GOLDEN / "tiny_llama" / "tokenizer.model", home / "llama-hf")
    torch.save({"model": load_file(GOLDEN / "v2_adapter.safetensors")}, home / "BIAS-7B.pth")


def stand_in_llava(home: Path) -> None:
    torch.manual_seed(4)
    sizes = {"0.weight": (WIDTH, DIM), "0.bias": (WIDTH,), "2.weight": (WIDTH, WIDTH), "2.bias": (WIDTH,)}
    state = {f"model.mm_projector.{key}": 0.1 * torch.randn(size) for key, size in sizes.items()}
    torch.save(state, home / "mm_projector.bin")
    lora = home / "llava-lora"
    lora.mkdir()
    torch.save({f"base_model.model.{key}": value for key, value in state.items()}, lora / "non_lora_trainables.bin")
    (lora / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}), encoding="utf-8")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    factors = {name.format("A"): torch.randn(4, WIDTH), name.format("B"): torch.randn(WIDTH, 4)}
    save_file(factors, lora / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with every file that the page names."""
    import faiss

    place = tmp_path_factory.mktemp("real")
    stand_in_towers(place / "imagebind_huge.pth")
    stand_in_media(place)
    stand_in_llamas(place)
    stand_in_llava(place)
    index = faiss.IndexFlatIP(DIM)
    rows = np.random.default_rng(5).standard_normal((40, DIM)).astype(np.float32)
    index.add(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    faiss.write_index(index, str(place / "knn.index"))
    facts = inspect_adapter(place / "BIAS-7B.pth")
    np.save(place / "patches.npy", np.random.default_rng(6).standard_normal((1, 5, facts.dim)).astype(np.float32))
    return place


@pytest.fixture
def there(home, monkeypatch):
    """Work in that folder, with the architecture that the stand-in has."""
    monkeypatch.chdir(home)
    for name in ("load_architecture", "load_preprocess"):
        real = getattr(weights, name)
        monkeypatch.setattr(
            weights, name, lambda asked, real=real: real("tiny" if asked == "imagebind-huge" else asked)
        )
    return home


def commands() -> list[list[str]]:
    return [shlex.split(line) for block in blocks("sh") for line in block.splitlines() if line.strip()]


def space_id() -> str:
    return str(weights.load_manifest(Path("weights/imagebind-huge")).space_id)


def test_every_command_of_the_page(there, capsys):
    said: dict[str, str] = {}
    for words in commands():
        if words[0] == "pip":
            assert words[:2] == ["pip", "install"]
            continue
        if words[:2] == ["python", "-c"]:
            exec(words[2], {})
        else:
            assert words[0] == "bindsearch"
            argv = [word.replace("imagebind-huge@HASH", space_id()) if "HASH" in word else word for word in words[1:]]
            assert run(argv) == 0, f"{shlex.join(words)}: {capsys.readouterr().err}"
        said[shlex.join(words)] = capsys.readouterr().out
    answers = {line: out for line, out in said.items() if line.startswith("bindsearch ask")}
    assert len(answers) == 6
    assert all(out.strip() for out in answers.values())
    mixed = json.loads(next(out for line, out in answers.items() if "--json" in line))
    assert {term["modality"]: term["weight"] for term in mixed["terms"]} == {"audio": 0.5, "image": 1.0}
    assert len(mixed["cached"]) == 10
    assert mixed["answers"][0]["answer"]
    assert (there / "carried.png").stat().st_size > 5000
    assert "imagebind-llm" in next(out for line, out in said.items() if "inspect_adapter" in line)
    assert recorded_base("7B.pth") == fingerprint_of(load_llama(find_llama(Path("llama")), False, torch.float32))
    for block in blocks("python"):
        exec(block, {})
        assert capsys.readouterr().out.strip()


def test_the_stand_ins_keys_are_those_of_the_full_list(home):
    full = json.loads((GOLDEN / "adapter_keys_7B.json").read_text(encoding="utf-8"))
    names = set(full["7B (RMSNorm bridge)"])
    layers = inspect_adapter(home / "7B.pth").layers
    kept = {name for name in names if not (found := re.search(r"layers\.(\d+)\.", name)) or int(found[1]) < layers}
    assert len(names) == 720
    assert set(read_adapter(home / "7B.pth")) == kept


# ---- which Llama it is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_fingerprint_is_of_the_weights_alone(home, dtype):
    meta = load_llama(find_llama(home / "llama"), True, torch.float32)
    hf = load_llama(find_llama(home / "llama-hf"), False, dtype)
    assert fingerprint_of(meta) == fingerprint_of(hf)
    with torch.no_grad():
        hf.model.layers[1].mlp.up_proj.weight.add_(1e-3 * torch.randn(1))
    assert fingerprint_of(hf).weights != fingerprint_of(meta).weights
    assert fingerprint_of(hf).config == fingerprint_of(meta).config


def test_another_base_than_the_recorded_one_is_refused_with_both_values(home, tmp_path, capsys, there):
    shutil.copy("7B.pth", tmp_path / "7B.pth")
    right = json.loads(record_base(tmp_path / "7B.pth", "llama").read_text(encoding="utf-8"))
    other = load_llama(find_llama(Path("llama")), False, torch.float32)
    with torch.no_grad():
        other.model.layers[0].self_attn.q_proj.weight.mul_(-1)
    other.save_pretrained(tmp_path / "plain")
    shutil.copy("llama/tokenizer.model", tmp_path / "plain")
    wrong = [*ASK, "--no-cache", "--adapter", str(tmp_path / "7B.pth"), "--llama", str(tmp_path / "plain")]
    towers_ready()
    assert run(wrong) == 5
    err = capsys.readouterr().err
    assert right["weights"] in err
    assert fingerprint_of(other).weights in err
    assert run([*wrong[:-1], "llama"]) == 0


def test_our_own_adapters_carry_their_base(home, tmp_path):
    from bindsearch import llm

    model = llm.load(home / "7B.pth", home / "llama", dtype="float32", merge_lora=False)
    for name in ("mine.pth", "mine.safetensors"):
        llm.save_adapter(tmp_path / name, model.connector, model.lora, model.llama, model.base)
        assert recorded_base(tmp_path / name) == model.base
        assert llm.load(tmp_path / name, home / "llama", dtype="float32").base == model.base


# ---- bad input, by the command line ----------------------------------------------------------------------------------


def towers_ready() -> None:
    if not Path("weights/imagebind-huge/space.json").is_file():
        assert (
            run(["models", "convert", "imagebind_huge.pth", "--dtype", "bfloat16", "-o", "weights/imagebind-huge"]) == 0
        )
    if not Path("indexes/cache/index.json").is_file():
        assert run(["cache", "build", "photos", "-o", "indexes/cache", "--space", "weights/imagebind-huge", "-q"]) == 0


class Trap:
    """Says so when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


def refused(argv, code, *words, capsys) -> None:
    capsys.readouterr()
    assert run(argv) == code, capsys.readouterr().err
    err = capsys.readouterr().err
    assert "Traceback" not in err
    for word in words:
        assert word in err, err


def test_wrong_checkpoints_are_refused_and_nothing_is_unpickled(there, tmp_path, capsys):
    towers_ready()
    ask = [*ASK, "--no-cache", "--llama", "llama", "--adapter"]
    torch.save({"model": {"something.weight": torch.ones(2)}}, tmp_path / "other.pth")
    refused([*ask, str(tmp_path / "other.pth")], 7, "other.pth", "something.weight", capsys=capsys)
    state = dict(torch.load("7B.pth", weights_only=True)["model"])
    state.pop("image_bind_norm_2.weight")
    torch.save({"model": state}, tmp_path / "cut.pth")
    refused([*ask, str(tmp_path / "cut.pth")], 7, "image_bind_norm_2.weight", capsys=capsys)
    (tmp_path / "half.pth").write_bytes(Path("7B.pth").read_bytes()[:50_000])
    refused([*ask, str(tmp_path / "half.pth")], 7, "half.pth", capsys=capsys)
    for name in ("trap.pth", "mm_projector.bin"):
        torch.save({"model": Trap()}, tmp_path / name)
        refused([*ask, str(tmp_path / name)], 7, name, capsys=capsys)
    refused(["models", "convert", "7B.pth", "-o", str(tmp_path / "x")], 7, "7B.pth", capsys=capsys)
    assert not Path("unpickled").exists()
    refused([*ask, "nowhere.pth"], 3, "nowhere.pth", capsys=capsys)


def test_a_llama_of_another_size_is_refused(there, tmp_path, capsys):
    from transformers import LlamaConfig, LlamaForCausalLM

    towers_ready()
    pieces = load_llama(find_llama(Path("llama")), False, torch.float32).config.vocab_size
    config = LlamaConfig(
        hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=pieces
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "small")
    shutil.copy("llama/tokenizer.model", tmp_path / "small")
    ask = [*ASK, "--no-cache", "--llama", str(tmp_path / "small"), "--adapter"]
    refused([*ask, "7B.pth"], 5, "adapter 64, Llama 48", capsys=capsys)
    refused([*ask, "mm_projector.bin"], 5, "projector 64, Llama 48", capsys=capsys)


def test_caches_that_cannot_serve_are_refused(there, tmp_path, capsys):
    towers_ready()
    ask = [*ASK, "--llama", "llama", "--adapter", "7B.pth", "--cache"]
    rows = np.random.default_rng(0).standard_normal((20, DIM)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    build = ["cache", "build", str(tmp_path / "rows.npy"), "--space-id", "another@0123456789ab", "-o"]
    assert run([*build, str(tmp_path / "other")]) == 0
    refused([*ask, str(tmp_path / "other")], 5, "another@0123456789ab", space_id(), capsys=capsys)
    assert run(["cache", "build", "photos", "-o", str(tmp_path / "few"), "--keep", "3", "-q",
                "--space", "weights/imagebind-huge", "--embeddings", "indexes/cache.embeddings"]) == 0  # fmt: skip
    refused([*ask, str(tmp_path / "few"), "--cache-size", "4"], 2, "1 to 3", "got 4", capsys=capsys)
    refused([*ask, str(tmp_path / "nowhere")], 3, "nowhere", capsys=capsys)
    refused([*ask, "indexes/cache", "--cache-weight", "1.5"], 2, "cache-weight", capsys=capsys)


def test_features_that_are_not_finite_are_refused(there, tmp_path, capsys):
    towers_ready()
    rows = np.ones((3, DIM), np.float32)
    rows[1, 4] = np.nan
    np.save(tmp_path / "rows.npy", rows)
    move = ["cache", "enhance", "indexes/cache", "--vectors"]
    refused([*move, str(tmp_path / "rows.npy")], 2, "row 1", "nan", capsys=capsys)
    build = ["cache", "build", str(tmp_path / "rows.npy"), "--space-id", "toy@0123456789ab", "-o", str(tmp_path / "c")]
    refused(build, 2, "row 1", capsys=capsys)
    np.save(tmp_path / "pickled.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    refused([*move, str(tmp_path / "pickled.npy")], 2, "pickled.npy", capsys=capsys)
    refused([*move, str(tmp_path / "none.npy")], 3, "none.npy", capsys=capsys)
    assert not Path("unpickled").exists()


def test_an_empty_cache_is_refused(there, tmp_path, capsys):
    towers_ready()
    assert run(["embed", "sounds", "-o", str(tmp_path / "sounds"), "--space", "weights/imagebind-huge", "-q"]) == 0
    assert run(["index", str(tmp_path / "sounds"), "-o", str(tmp_path / "index")]) == 0
    ask = [*ASK, "--llama", "llama", "--adapter", "7B.pth", "--cache", str(tmp_path / "index")]
    refused(ask, 3, "no image", "cache build", capsys=capsys)
    refused(["cache", "build", str(tmp_path / "sounds"), "-o", str(tmp_path / "c")], 3, "no image", capsys=capsys)
