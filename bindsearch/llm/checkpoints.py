"""Adapter files of ImageBind-LLM and LLaMA-Adapter V2: read, described, compared key by key, written back."""

from __future__ import annotations

import argparse
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bindsearch.errors import InputError, MismatchError, MissingInputError, WeightsError, reason_of
from bindsearch.llm.keys import checkpoint_key, is_adapter_key, place_of, rotary_rows, rotary_rows_back
from bindsearch.llm.llama_files import adapter_terms, linear_sizes
from bindsearch.models.weights import check_keys

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM

    from bindsearch.llm.adapter_v2 import AdapterV2Connector
    from bindsearch.llm.base import Connector
    from bindsearch.llm.bind_network import BindConnector
    from bindsearch.llm.fingerprint import BaseFingerprint
    from bindsearch.llm.lora import LoraTerms

State = Mapping[str, torch.Tensor]
RELEASED_HEADS = 16
"""Of V2's visual blocks, in the released files and where a file does not say."""
_HEADS = "visual_heads"


@dataclass(frozen=True)
class AdapterFacts:
    """What an adapter file is, told from its keys.

    Attributes:
        kind: "imagebind-llm" or "llama-adapter-v2".
        phase: "pretrain" (no biases, no LoRA) or "finetune" (either of them, or both).
        norm: of the bind network: "rmsnorm", "layernorm" (first release); "" for V2.
        dim: of what the connector reads.
        width, layers, heads: of the Llama that it was made for.
        inner: width inside that Llama's MLPs; 0 where no term tells it.
        hidden: width inside the bind network, or of V2's visual path.
        lora_rank: 0 without LoRA.
        query_layers, query_tokens, depth: V2: layers that attend, tokens of each, visual blocks. 0 otherwise.
        keys, values: how many tensors and numbers the file holds.
        biases: whether it brings biases of the Llama's linears.
        key_heads, head_dim: of the Llama; 0 where no term tells them.
        new_gates: V2: whether there is one more scalar a layer, as in the released files with LoRA.
    """

    kind: str
    phase: str
    norm: str
    dim: int
    width: int
    layers: int
    heads: int
    inner: int
    hidden: int
    lora_rank: int
    query_layers: int = 0
    query_tokens: int = 0
    depth: int = 0
    keys: int = 0
    values: int = 0
    biases: bool = False
    key_heads: int = 0
    head_dim: int = 0
    new_gates: bool = False


def read_adapter(path: Path) -> dict[str, torch.Tensor]:
    """Read an adapter file; whole training checkpoints give their adapter part.

    Args:
        path: .pth in torch's zip format, or .safetensors. Keys that are older (`llma.`) are given today's names.

    Returns:
        The reference's name -> tensor, on the CPU, in the file's dtype (mapped where the file allows it).

    Raises:
        MissingInputError: no such file.
        WeightsError: damaged, or holding things that are no tensors. Nothing of the file is executed.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file. Bring an adapter: 7B.pth, 7B-pretrained.pth, 7B-beta.pth, ...")
    if path.suffix == ".safetensors":
        state: Any = _read_safetensors(path)
    else:
        state = read_torch(path)
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path}: expected a table of tensors, or one under the name 'model'.")
    named = {f"llama.{key[5:]}" if key.startswith("llma.") else key: value for key, value in state.items()}
    kept = {key: value for key, value in named.items() if is_adapter_key(key)}
    return {key: value for key, value in kept.items() if (place := place_of(key)) is None or place.part != "drop"}


def read_torch(path: Path) -> Any:
    """Read a checkpoint in torch's zip format, mapped; nothing of it is executed.

    Raises:
        WeightsError: damaged, or holding things that are no tensors and no plain values.
    """
    if not zipfile.is_zipfile(path):
        raise WeightsError(
            f"{path}: no checkpoint in torch's zip format (damaged, cut short, or another kind of file)."
        )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # training checkpoints keep their arguments
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path}: refused or damaged: {reason_of(error)}") from error


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: cannot be read as safetensors ({error}). Fetch it again.") from error


def records_of(connector: Connector, base: BaseFingerprint | None) -> dict[str, Any]:
    """Give what a file of ours says beside its tensors: the Llama it was made for, and V2's visual heads.

    Args:
        connector: Not modified.
        base: of the Llama; None where it is not known.
    """
    from bindsearch.llm.adapter_v2 import AdapterV2Connector

    said: dict[str, Any] = {} if base is None else {"base": base.to_json()}
    return said | ({_HEADS: connector.visual.heads} if isinstance(connector, AdapterV2Connector) else {})


def heads_of(path: Path, given: int | None = None) -> int:
    """Give the heads of V2's visual blocks: as the file records them, else as given, else the released files'.

    Raises:
        MismatchError: others are given than those recorded.
        WeightsError: what is recorded is no number of heads.
    """
    said: Any = None
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_HEADS)
        said = int(text) if text is not None and text.isdecimal() else text
    elif isinstance(held := read_torch(path), dict):
        said = held.get(_HEADS)
    if said is None or isinstance(said, torch.Tensor):  # a table of tensors alone: no record of ours
        return RELEASED_HEADS if given is None else given
    if not isinstance(said, int) or said < 1:
        raise WeightsError(f"{path}: expected {_HEADS} as a number of 1 or more, got {said!r}. Fetch it again.")
    if given not in (None, said):
        raise MismatchError(f"{path}: trained with {said} visual heads, asked for {given}. Leave visual_heads out.")
    return said


def inspect_adapter(path: str | Path) -> AdapterFacts:
    """Tell what an adapter file is: connector, phase, variant and the size of Llama it was made for.

    Raises:
        MissingInputError, WeightsError: as `read_adapter`; no adapter that is known here; keys missing or strange.
    """
    state = read_adapter(Path(path))
    facts = describe(state, str(path))
    check_state(state, facts, str(path))
    return facts


def describe(state: State, where: str) -> AdapterFacts:
    """Read kind, variant, phase and sizes from names and shapes.

    Raises:
        WeightsError: the keys are of no adapter that is known here.
    """
    bind = "image_bind_proj.weight" in state and "prefix_query.weight" in state
    v2 = "adapter_query.weight" in state and "clip_proj.weight" in state
    gates = {key: value for key, value in state.items() if key.endswith(".attention.gate")}
    if bind == v2 or not gates:
        few = ", ".join(sorted(state)[:4])
        llava = any("mm_projector." in key for key in state)
        hint = " It looks like a LLaVA projector: of a pair it is read with llm.load_pair(folder)." if llava else ""
        raise WeightsError(
            f"{where}: no adapter of ImageBind-LLM (image_bind_proj, prefix_query, gates) or LLaMA-Adapter V2 "
            f"(clip_proj, adapter_query, gates); its {len(state)} keys begin: {few}.{hint}"
        )
    heads = next(iter(gates.values())).numel()
    rank, keys = rank_of(state), _rows(state, ".lora_wk_l2.weight")
    biases = any(key.endswith(".bias") and key.startswith("llama.layers.") for key in state)
    head_dim = _rows(state, ".lora_wq_l2.weight", ".attention.wq.bias") // max(heads, 1)
    common = {
        "phase": "finetune" if rank or biases else "pretrain",
        "layers": len(gates),
        "heads": heads,
        "inner": _rows(state, ".feed_forward.w1.bias", ".lora_w1_l2.weight"),
        "lora_rank": rank,
        "keys": len(state),
        "values": sum(value.numel() for value in state.values()),
        "biases": biases,
        "key_heads": keys // head_dim if head_dim else 0,
        "head_dim": head_dim,
        "new_gates": any(key.endswith(".attention.new_gate") for key in state),
    }
    try:
        return _bind_facts(state, common) if bind else _v2_facts(state, common)
    except (KeyError, IndexError) as error:
        raise WeightsError(f"{where}: an adapter without {error}: damaged, or cut short.") from error


def _rows(state: State, *ends: str) -> int:
    """Count the rows of the first tensor whose name ends so; 0 where there is none."""
    return next((len(value) for end in ends for key, value in state.items() if key.endswith(end) and value.ndim), 0)


def _bind_facts(state: State, common: dict[str, Any]) -> AdapterFacts:
    width, dim = state["image_bind_proj.weight"].shape
    norm = "layernorm" if "image_bind_norm_1.bias" in state else "rmsnorm"
    hidden = state["image_bind_f1_1.weight"].shape[0]
    return AdapterFacts("imagebind-llm", norm=norm, dim=dim, width=width, hidden=hidden, **common)


def _v2_facts(state: State, common: dict[str, Any]) -> AdapterFacts:
    hidden, dim = state["clip_proj.weight"].shape
    tokens = state["visual_query.weight"].shape[0]
    rows, width = state["adapter_query.weight"].shape
    return AdapterFacts(
        "llama-adapter-v2",
        norm="",
        dim=dim,
        width=width,
        hidden=hidden,
        query_layers=rows // tokens,
        query_tokens=tokens,
        depth=len({key.split(".")[1] for key in state if key.startswith("visual_blocks.")}),
        **common,
    )


def build_connector(facts: AdapterFacts, visual_heads: int = RELEASED_HEADS) -> Connector:
    """Build the connector that a file describes; parameters as torch draws them.

    Args:
        facts: from `describe`.
        visual_heads: heads of V2's visual blocks, which no tensor tells: 16 in the released files.
    """
    if facts.kind == "imagebind-llm":
        return _bind_connector(facts)
    return _v2_connector(facts, visual_heads)


def _bind_connector(facts: AdapterFacts) -> BindConnector:
    from bindsearch.llm.bind_network import BindConnector

    norm: Any = facts.norm
    return BindConnector(facts.dim, facts.width, facts.hidden, facts.layers, facts.heads, norm)


def _v2_connector(facts: AdapterFacts, visual_heads: int) -> AdapterV2Connector:
    from bindsearch.llm.adapter_v2 import AdapterV2Connector, VisualConfig

    visual = VisualConfig(facts.dim, facts.hidden, facts.depth, visual_heads, facts.query_tokens)
    return AdapterV2Connector(
        visual, facts.width, facts.heads, facts.layers, facts.query_layers, new_gates=facts.new_gates
    )


def build_lora(facts: AdapterFacts, config: LlamaConfig) -> LoraTerms | None:
    """Build the low-rank terms that a file describes, or None where it has none."""
    return lora_terms(facts.lora_rank, config)


def lora_terms(rank: int, config: LlamaConfig) -> LoraTerms | None:
    """Build low-rank terms for a Llama; None for rank 0."""
    from bindsearch.llm.lora import LoraTerms

    return LoraTerms(linear_sizes(config), config.num_hidden_layers, rank) if rank else None


def rank_of(state: State) -> int:
    """Tell the rank of the low-rank terms in an adapter's names; 0 without any."""
    return _rows(state, ".lora_wq_l1.weight")


def adapter_shapes(connector: Connector, lora: LoraTerms | None, llama: LlamaForCausalLM) -> dict[str, tuple[int, ...]]:
    """List every key of an adapter file with its shape, from the modules themselves.

    Args:
        connector: on any device, also meta. Not modified.
        lora: its terms, or None. Not modified.
        llama: of the adapter's size and phase. Not modified.
    """
    state = llama.state_dict()
    shapes = {
        checkpoint_key("llama", key): tuple(state[key].shape)
        for key in adapter_terms(llama.config, bool(llama.config.mlp_bias))
    }
    for part, module in (("connector", connector), ("lora", lora)):
        if module is not None:
            for key, tensor in module.state_dict().items():
                shapes[checkpoint_key("lora" if part == "lora" else "connector", key)] = tuple(tensor.shape)
    return shapes


def config_of(facts: AdapterFacts) -> LlamaConfig:
    """Give a configuration of the size that an adapter was made for: enough to name its keys."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=facts.width,
        intermediate_size=facts.inner or facts.width,
        num_hidden_layers=facts.layers,
        num_attention_heads=facts.heads,
        num_key_value_heads=facts.key_heads or facts.heads,
        head_dim=facts.head_dim or facts.width // facts.heads,
        attention_bias=facts.biases,
        mlp_bias=facts.biases,
    )


def check_state(state: State, facts: AdapterFacts, where: str) -> None:
    """Refuse an adapter whose names and shapes are not exactly its kind's, or whose numbers are not finite.

    Raises:
        WeightsError: listing what is missing, unexpected, of another shape, or not finite.
    """
    from bindsearch.llm.llama_files import empty_llama

    config = config_of(facts)
    with torch.device("meta"):
        wanted = adapter_shapes(build_connector(facts, visual_heads=1), build_lora(facts, config), empty_llama(config))
    check_keys({key: tuple(value.shape) for key, value in state.items()}, wanted, where)
    check_finite(state, where)


def check_finite(state: State, where: str) -> None:
    """Refuse tensors that are not finite.

    Raises:
        WeightsError: listing them.
    """
    bad = sorted(key for key, value in state.items() if not bool(torch.isfinite(value).all()))
    if bad:
        raise WeightsError(f"{where}: {len(bad)} tensors hold NaN or infinite values: {', '.join(bad[:8])}.")


def check_fits(facts: AdapterFacts, config: LlamaConfig, adapter: str, llama: str) -> None:
    """Refuse a Llama of another size than the adapter's.

    Raises:
        MismatchError: with both sizes.
    """
    theirs = {
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "inner": config.intermediate_size,
        "key_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
    }
    ours = {name: getattr(facts, name) for name in theirs}
    differs = [name for name in theirs if ours[name] and ours[name] != theirs[name]]
    if differs:
        said = "; ".join(f"{name}: adapter {ours[name]}, Llama {theirs[name]}" for name in differs)
        raise MismatchError(f"{adapter} was not made for {llama} ({said}). Bring the Llama it was trained on.")


def fill(state: State, connector: Connector | None, lora: LoraTerms | None, llama: LlamaForCausalLM) -> None:
    """Copy an adapter into its modules. Overwrites the connector, the terms, and the Llama's norms and biases.

    Args:
        state: checked by `check_state` and `check_fits`. Not modified.
        connector: as `build_connector` made it. Overwritten. None: `state` holds nothing of it.
        lora: as `build_lora` made it, or None. Overwritten.
        llama: its norms and biases are overwritten.
    """
    head_dim = llama.config.head_dim
    parts: dict[str, dict[str, torch.Tensor]] = {"connector": {}, "lora": {}, "llama": {}}
    for key, tensor in state.items():
        place = place_of(key)
        if place is None:
            raise WeightsError(f"{key}: no key of an adapter.")
        parts[place.part][place.key] = rotary_rows(tensor, head_dim) if place.rotary else tensor
    if connector is not None:
        connector.load_state_dict(parts["connector"], strict=True)
    if lora is not None:
        lora.load_state_dict(parts["lora"], strict=True)
    with torch.no_grad():
        for key, tensor in parts["llama"].items():
            llama.get_parameter(key).copy_(tensor)


def adapter_state(connector: Connector, lora: LoraTerms | None, llama: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """Give an adapter in the reference's names and order of rows, as the original code loads it.

    Args:
        connector: as `fill` left it, or trained since. Not modified.
        lora: likewise; merged terms give the same numbers. Not modified.
        llama: its norms and biases go out. Not modified.
    """
    out: dict[str, torch.Tensor] = {}
    held = llama.state_dict()
    terms = {key: held[key] for key in adapter_terms(llama.config, bool(llama.config.mlp_bias))}
    rest = {"connector": connector.state_dict(), "lora": {} if lora is None else lora.state_dict()}
    for part, tensors in ({"llama": terms} | rest).items():
        for key, tensor in tensors.items():
            name = checkpoint_key(part, key)  # type: ignore[arg-type]
            place = place_of(name)
            turned = place is not None and place.rotary
            out[name] = (
                (rotary_rows_back(tensor, llama.config.head_dim) if turned else tensor).detach().cpu().contiguous()
            )
    return dict(sorted(out.items()))


def save_adapter(
    path: str | Path,
    connector: Connector,
    lora: LoraTerms | None,
    llama: LlamaForCausalLM,
    base: BaseFingerprint | None = None,
) -> None:
    """Write an adapter: .pth in the original's layout ({'model': tensors}), or .safetensors.

    Args:
        path: of the file.
        connector: as of `adapter_state`. Not modified.
        lora: likewise, or None. Not modified.
        llama: likewise. Not modified.
        base: which Llama it was made for (`AdapterLlama.base`), recorded beside the tensors as V2's visual heads are.

    Raises:
        InputError: another suffix.
    """
    path = Path(path)
    state, said = adapter_state(connector, lora, llama), records_of(connector, base)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path, {name: json.dumps(value) for name, value in said.items()} or None)
    elif path.suffix == ".pth":
        torch.save({"model": state} | said, path)
    else:
        raise InputError(f"{path}: expected a name that ends in .pth or .safetensors.")
