"""Names of weights: the one place that knows Meta's, the adapters' and Hugging Face's.

Meta's and the adapters' layouts turn pairs of neighbouring rows of a head (RoPE), Hugging Face's turns row j with row
j + head_dim / 2: rows of wq, wk, of wq's bias and of the second LoRA factors of both change places.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Part = Literal["llama", "lora", "connector", "drop"]

LINEARS = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
ROTARY = ("attention.wq", "attention.wk")
BIASED = ("attention.wq", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
_NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_TOP = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_FACTORS = {"l1": "down", "l2": "up"}
_VISUAL = ("clip_proj.", "clip_proj_norm.", "visual_query.", "visual_blocks.", "visual_proj.", "visual_proj_norm.")

_LINEAR = re.compile(r"layers\.(\d+)\.((?:attention|feed_forward)\.w[qkvo123])\.(weight|bias)")
_LORA = re.compile(r"layers\.(\d+)\.(attention|feed_forward)\.lora_(w[qkvo123])_(l[12])\.weight")
_NORM = re.compile(r"layers\.(\d+)\.(attention_norm|ffn_norm)\.weight")
_GATE = re.compile(r"layers\.(\d+)\.attention\.(gate|new_gate)")
_ROPE = re.compile(r"(?:layers\.\d+\.attention\.inner_attention\.)?rope\.freqs")
_BRIDGE = re.compile(r"image_bind_(norm|f[123])_([1-9])\.(weight|bias)")


@dataclass(frozen=True)
class Place:
    """Where a tensor of a checkpoint goes.

    Attributes:
        part: the Llama, its low-rank terms, the connector, or nowhere (tables that are computed).
        key: in the state dict of that part.
        rotary: its rows are in Meta's rotary order and must be brought into Hugging Face's.
    """

    part: Part
    key: str
    rotary: bool = False


def place_of(key: str) -> Place | None:
    """Tell where a key of Meta's base files or of an adapter goes; None if it is no such key.

    Args:
        key: with or without the prefix `llama.` (older adapters spell it `llma.`).
    """
    name = re.sub(r"^(?:llama|llma)\.", "", key)
    if found := _LINEAR.fullmatch(name):
        layer, linear, kind = found.groups()
        if linear not in LINEARS:
            return None
        return Place("llama", f"model.layers.{layer}.{LINEARS[linear]}.{kind}", linear in ROTARY)
    if found := _LORA.fullmatch(name):
        layer, block, short, factor = found.groups()
        linear = f"{block}.{short}"
        if linear not in LINEARS:
            return None
        hf = LINEARS[linear].split(".")[1]
        return Place("lora", f"layers.{layer}.{hf}.{_FACTORS[factor]}.weight", linear in ROTARY and factor == "l2")
    if found := _NORM.fullmatch(name):
        return Place("llama", f"model.layers.{found[1]}.{_NORMS[found[2]]}.weight")
    if found := _GATE.fullmatch(name):
        return Place("connector", f"{found[2]}s.{found[1]}")
    if name in _TOP:
        return Place("llama", _TOP[name])
    if _ROPE.fullmatch(name):
        return Place("drop", name)
    return _connector_place(key)


def _connector_place(key: str) -> Place | None:
    if found := _BRIDGE.fullmatch(key):
        return Place("connector", f"network.blocks.{int(found[2]) - 1}.{found[1]}.{found[3]}")
    if key in ("image_bind_proj.weight", "image_bind_proj.bias"):
        return Place("connector", f"network.proj.{key.rsplit('.', 1)[1]}")
    if key == "prefix_query.weight":
        return Place("connector", "prefix.weight")
    if key == "adapter_query.weight" or key.startswith(_VISUAL):
        return Place("connector", key)
    return None


def checkpoint_key(part: Part, key: str) -> str:
    """Give the adapters' name of a tensor of ours: the inverse of `place_of`, with the prefix `llama.`."""
    back = {hf: meta for meta, hf in LINEARS.items()}
    short = {hf.split(".")[1]: meta for meta, hf in LINEARS.items()}
    norms = {hf: meta for meta, hf in _NORMS.items()}
    if part == "llama":
        top = {hf: meta for meta, hf in _TOP.items()}
        if key in top:
            return f"llama.{top[key]}"
        _, _, layer, rest = key.split(".", 3)
        name, kind = rest.rsplit(".", 1)
        return f"llama.layers.{layer}.{norms.get(name) or back[name]}.{kind}"
    if part == "lora":
        _, layer, hf, factor, _ = key.split(".")
        block, linear = short[hf].split(".")
        return f"llama.layers.{layer}.{block}.lora_{linear}_{'l1' if factor == 'down' else 'l2'}.weight"
    if found := re.fullmatch(r"(gate|new_gate)s\.(\d+)", key):
        return f"llama.layers.{found[2]}.attention.{found[1]}"
    if found := re.fullmatch(r"network\.blocks\.(\d+)\.(norm|f[123])\.(weight|bias)", key):
        return f"image_bind_{found[2]}_{int(found[1]) + 1}.{found[3]}"
    if key.startswith("network.proj."):
        return f"image_bind_proj.{key.rsplit('.', 1)[1]}"
    return "prefix_query.weight" if key == "prefix.weight" else key


def rotary_rows(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Bring rows from Meta's rotary order into Hugging Face's.

    Args:
        tensor: (heads * head_dim, ...), any dtype. Not modified.
        head_dim: of one head, even.

    Returns:
        The same rows: in each head row j is row 2j of before, row head_dim / 2 + j row 2j + 1.

    Source: golden rope_permutation.
    """
    return tensor.reshape(-1, head_dim // 2, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def rotary_rows_back(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Bring rows from Hugging Face's rotary order into Meta's: the inverse of `rotary_rows`."""
    return tensor.reshape(-1, 2, head_dim // 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def is_adapter_key(key: str) -> bool:
    """Tell whether an adapter file holds this key: everything but the encoder and the base's own weights.

    Source: the rule by which the reference's converter leaves 720 keys of a full model of 7B.
    """
    if key.startswith(("image_bind.", "clip.", "clip_transform.")):
        return False
    name = re.sub(r"^llma\.", "llama.", key)
    return not name.startswith("llama.") or any(word in name for word in ("bias", "gate", "lora", "norm"))


def trains_in(phase: str, key: str) -> bool:
    """Tell whether the reference trains a key (its own name) in phase `pretrain` or `finetune` of ImageBind-LLM."""
    if phase == "pretrain":
        return key.startswith(("image_bind_", "prefix_query")) or (key.startswith("llama.") and key.endswith("gate"))
    return key.startswith("llama.") and any(word in key for word in ("norm", "bias", "lora"))
