"""A Llama from disk: Meta's layout or Hugging Face's, into the library's stock model. Nothing is unpickled."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from bindsearch.errors import MismatchError, MissingExtraError, MissingInputError, UnsupportedError, WeightsError
from bindsearch.llm.keys import BIASED, LINEARS, place_of, rotary_rows
from bindsearch.models.weights import check_keys, read_checkpoint

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM

Layout = Literal["meta", "hf"]
_CONTEXT = 2048
_QUANTISED: dict[str, dict[str, Any]] = {
    "8bit": {"load_in_8bit": True},
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}


@dataclass(frozen=True)
class LlamaFiles:
    """Where a Llama lies.

    Attributes:
        layout: "meta" (params.json, consolidated.*.pth) or "hf" (config.json, safetensors or .bin).
        folder: that holds the weights.
        weights: the files, in order.
        tokenizer: tokenizer.model, beside them or one level up; None if there is none.
    """

    layout: Layout
    folder: Path
    weights: tuple[Path, ...]
    tokenizer: Path | None


def find_llama(folder: Path) -> LlamaFiles:
    """Tell the layout of a folder: the weights' own, or one above it, as Meta's download has it.

    Raises:
        MissingInputError: no such folder, no Llama in it, or several.
    """
    if not folder.is_dir():
        raise MissingInputError(f"{folder}: no such folder. Bring a LLaMA's, in Meta's or in Hugging Face's layout.")
    places = [folder] if _layout(folder) else sorted(sub for sub in folder.iterdir() if sub.is_dir() and _layout(sub))
    if len(places) != 1:
        found = ", ".join(str(place.name) for place in places) or "no params.json or config.json"
        raise MissingInputError(f"{folder}: expected one Llama (params.json or config.json), found {found}.")
    place = places[0]
    layout = _layout(place)
    weights = _meta_weights(place) if layout == "meta" else _hf_weights(place)
    if layout is None or not weights:
        wanted = "consolidated.*.pth" if layout == "meta" else "*.safetensors or pytorch_model*.bin"
        raise MissingInputError(f"{place}: no weights ({wanted}). Finish the download.")
    tokenizers = [path for path in (place / "tokenizer.model", place.parent / "tokenizer.model") if path.is_file()]
    return LlamaFiles(layout, place, weights, tokenizers[0] if tokenizers else None)


def _layout(folder: Path) -> Layout | None:
    if (folder / "params.json").is_file():
        return "meta"
    return "hf" if (folder / "config.json").is_file() else None


def _meta_weights(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(folder.glob("consolidated.*.pth")))


def _hf_weights(folder: Path) -> tuple[Path, ...]:
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        index = next(iter(folder.glob(f"{pattern.split('*')[0]}*.index.json")), None)
        if index is not None:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise MissingInputError(
                    f"{folder}: {index.name} names {', '.join(missing)}: not there. Finish the download."
                )
            return tuple(folder / name for name in names)
        if found := sorted(folder.glob(pattern)):
            return tuple(found)
    return ()


def load_llama(
    files: LlamaFiles,
    biases: bool,
    dtype: torch.dtype,
    device: str = "cpu",
    attention: str = "sdpa",
    quantize: Literal["8bit", "4bit"] | None = None,
) -> LlamaForCausalLM:
    """Load the base.

    Args:
        files: from `find_llama`. Not modified.
        biases: give the seven linears biases of zero, which an adapter's terms replace.
        dtype: of the weights.
        device: where they go.
        attention: the library's name of its implementation: "sdpa", "eager", ...
        quantize: 8 or 4 bits, by bitsandbytes.

    Returns:
        The library's stock model, in eval mode, without gradients.

    Raises:
        MissingExtraError: transformers (or bitsandbytes) is not installed.
        WeightsError: a damaged file, or keys or shapes that are not the configuration's: listed by name.
        MismatchError: the weights of another kind of model.
    """
    facts = read_facts(files)
    if quantize is not None:
        return _quantised(files, _hf_config(facts, biases), quantize, dtype, device, attention)
    if files.layout == "meta":
        raw = _meta_state(files, facts)
        config = _meta_config(files, facts, biases, raw)
    else:
        raw, config = _hf_state(files), _hf_config(facts, biases)
    state = {key: tensor.to(device, dtype) for key, tensor in raw.items()}
    llama = empty_llama(config, attention)
    wanted = {key: tuple(tensor.shape) for key, tensor in llama.state_dict().items()}
    if config.tie_word_embeddings:
        state.setdefault("lm_head.weight", state.get("model.embed_tokens.weight", torch.empty(0)))
    if biases:
        for key in set(wanted) - set(state):
            if key.endswith("_proj.bias"):
                state[key] = torch.zeros(wanted[key], dtype=dtype, device=device)
    check_keys({key: tuple(tensor.shape) for key, tensor in state.items()}, wanted, str(files.folder))
    llama.load_state_dict(state, strict=True, assign=True)
    if config.tie_word_embeddings:
        llama.tie_weights()
    return settled(llama, device)


def empty_llama(config: LlamaConfig, attention: str = "sdpa") -> LlamaForCausalLM:
    """Build the stock model on the meta device: names and shapes, no memory."""
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM._from_config(config, attn_implementation=attention)


def settled(llama: LlamaForCausalLM, device: str) -> LlamaForCausalLM:
    """Give a model whose weights are set its rotation tables and plain generation settings; eval mode, no gradients."""
    from transformers import GenerationConfig

    rotary = type(llama.model.rotary_emb)
    llama.model.rotary_emb = rotary(llama.config).to(device)  # built on meta with the rest, and held by no file
    llama.generation_config = GenerationConfig()
    return llama.eval().requires_grad_(False)


def read_facts(files: LlamaFiles) -> dict[str, Any]:
    """Read params.json or config.json.

    Raises:
        MissingExtraError: transformers is not installed.
        MismatchError: not a Llama.
        WeightsError: broken or incomplete.
    """
    if importlib.util.find_spec("transformers") is None:
        raise MissingExtraError("transformers", "llm", "A language model")
    path = files.folder / ("params.json" if files.layout == "meta" else "config.json")
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path}: no JSON ({error}). Fetch it again.") from error
    if files.layout == "hf":
        if facts.get("model_type") != "llama":
            raise MismatchError(f"{path}: expected model_type llama, got {facts.get('model_type')!r}. Bring a Llama.")
        return facts
    missing = [key for key in ("dim", "n_heads", "n_layers") if key not in facts]
    if missing:
        raise WeightsError(f"{path}: no {', '.join(missing)}: not the params.json of a Llama.")
    return facts


def _hf_config(facts: Mapping[str, Any], biases: bool) -> LlamaConfig:
    from transformers import LlamaConfig

    kept = {key: value for key, value in facts.items() if key not in ("torch_dtype", "dtype")}
    config: LlamaConfig = LlamaConfig.from_dict({**kept, "attention_bias": biases, "mlp_bias": biases})
    return config


def _meta_config(
    files: LlamaFiles, facts: Mapping[str, Any], biases: bool, state: Mapping[str, torch.Tensor]
) -> LlamaConfig:
    """Make a configuration of params.json and, for the sizes that it leaves open, the shapes of the weights."""
    from transformers import LlamaConfig

    words, inner = "model.embed_tokens.weight", "model.layers.0.mlp.gate_proj.weight"
    for key in (words, inner):
        if key not in state:
            raise WeightsError(f"{files.folder}: no {key} (in Hugging Face's names) in the weights: cut short.")
    return LlamaConfig(
        vocab_size=state[words].shape[0],
        intermediate_size=state[inner].shape[0],
        hidden_size=facts["dim"],
        num_hidden_layers=facts["n_layers"],
        num_attention_heads=facts["n_heads"],
        num_key_value_heads=facts.get("n_kv_heads") or facts["n_heads"],
        rms_norm_eps=facts.get("norm_eps", 1e-5),
        rope_parameters={"rope_type": "default", "rope_theta": float(facts.get("rope_theta", 10000.0))},
        max_position_embeddings=_CONTEXT,
        attention_bias=biases,
        mlp_bias=biases,
    )


def _meta_state(files: LlamaFiles, facts: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Read Meta's files, join the shards of larger models, rename, and turn rotary rows."""
    shards = [read_checkpoint(path) for path in files.weights]
    return dict(renamed(join_shards(shards), facts["dim"] // facts["n_heads"], str(files.folder)))


def renamed(state: Mapping[str, torch.Tensor], head_dim: int, where: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Give the base's own weights of a state in Meta's names by Hugging Face's; tables that are computed are dropped.

    Raises:
        WeightsError: names that are not a base Llama's, listed.
    """
    places = {key: place_of(key) for key in state}
    strange = sorted(key for key, place in places.items() if place is None or place.part not in ("llama", "drop"))
    if strange:
        more = ", ..." if len(strange) > 8 else ""
        raise WeightsError(f"{where}: not a base Llama: {len(strange)} strange keys: {', '.join(strange[:8])}{more}.")
    for key, place in places.items():
        if place is not None and place.part == "llama":
            yield place.key, rotary_rows(state[key], head_dim) if place.rotary else state[key]


def join_shards(shards: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Join what Meta's model-parallel files hold: rows of wq, wk, wv, w1, w3, output; columns of wo, w2, embeddings."""
    if len(shards) == 1:
        return shards[0]
    joined = {}
    for key, first in shards[0].items():
        parts = [shard[key] for shard in shards if key in shard]
        if first.ndim == 1 or place_of(key) is None:
            joined[key] = first
        else:
            columns = key.endswith((".wo.weight", ".w2.weight", "tok_embeddings.weight"))
            joined[key] = torch.cat(parts, dim=1 if columns else 0)
    return joined


def _hf_state(files: LlamaFiles) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    state: dict[str, torch.Tensor] = {}
    for path in files.weights:
        try:
            part = load_file(path) if path.suffix == ".safetensors" else read_checkpoint(path)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path}: cannot be read as safetensors ({error}). Fetch it again.") from error
        state.update(part)
    return {key: value for key, value in state.items() if not key.endswith("rotary_emb.inv_freq")}


def _quantised(
    files: LlamaFiles, config: LlamaConfig, quantize: str, dtype: torch.dtype, device: str, attention: str
) -> LlamaForCausalLM:
    """Load with weights of 8 or 4 bits, as the library offers it."""
    if quantize not in _QUANTISED:
        raise UnsupportedError(f"quantize: expected one of {', '.join(_QUANTISED)}, got {quantize!r}.")
    for package in ("bitsandbytes", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "llm-quantized", f"A Llama of {quantize}")
    if files.layout == "meta":
        raise UnsupportedError(
            f"{files.folder}: {quantize} weights are made by the library from its own layout. Convert once: "
            "llm.load(...).llama.save_pretrained(FOLDER), copy tokenizer.model beside it, then load that folder."
        )
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    options = dict(_QUANTISED[quantize])
    if quantize == "4bit":
        options |= {"bnb_4bit_compute_dtype": dtype, "bnb_4bit_use_double_quant": True}
    llama = LlamaForCausalLM.from_pretrained(
        files.folder,
        config=config,
        dtype=dtype,
        device_map={"": device},
        attn_implementation=attention,
        quantization_config=BitsAndBytesConfig(**options),
    )
    return llama.eval().requires_grad_(False)


def linear_sizes(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Give (inputs, outputs) of the seven linears of a layer by their names (q_proj, ...)."""
    width, inner = config.hidden_size, config.intermediate_size
    head_dim = config.head_dim
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    sizes = {
        "q_proj": (width, queries),
        "k_proj": (width, keys),
        "v_proj": (width, keys),
        "o_proj": (queries, width),
        "gate_proj": (width, inner),
        "up_proj": (width, inner),
        "down_proj": (inner, width),
    }
    return {hf.split(".")[1]: sizes[hf.split(".")[1]] for hf in LINEARS.values()}


def adapter_terms(config: LlamaConfig, biases: bool) -> set[str]:
    """Name the tensors of a Llama that an adapter replaces: its norms, and after fine-tuning five biases a layer."""
    names = {"model.norm.weight"}
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        names |= {f"{prefix}.input_layernorm.weight", f"{prefix}.post_attention_layernorm.weight"}
        if biases:
            names |= {f"{prefix}.{LINEARS[meta]}.bias" for meta in BIASED}
    return names
