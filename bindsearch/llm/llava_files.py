"""LLaVA's files: projectors alone, and LoRA checkpoints with their non-LoRA part; nothing of them is executed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bindsearch.errors import InputError, MismatchError, MissingInputError, UnsupportedError, WeightsError
from bindsearch.llm.llava import LlavaConnector
from bindsearch.models.weights import read_checkpoint

if TYPE_CHECKING:
    from torch import nn

NON_LORA = "non_lora_trainables.bin"
LORA_CONFIG = "adapter_config.json"
_WORDS = ("embed_tokens", "lm_head")
"""What the names of a Llama's own word embeddings have in them."""
_PREFIX = re.compile(r"^(?:base_model\.model\.)?(?:model\.)*")
_LORA = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_PATTERNS = ("rank_pattern", "alpha_pattern")
"""PEFT's: part of a linear's name, or a regular expression -> its own rank or alpha."""


@dataclass(frozen=True)
class NonLora:
    """What is trained beside LoRA, or alone.

    Attributes:
        projector: names as `LlavaConnector.mm_projector` has them.
        newline: image_newline, or None.
        others: what belongs elsewhere (token embeddings, a vision tower), by its name without prefixes.
    """

    projector: dict[str, torch.Tensor]
    newline: torch.Tensor | None
    others: dict[str, torch.Tensor]


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a table of tensors, .bin or .safetensors; nothing of it is executed.

    Raises:
        MissingInputError: no such file.
        WeightsError: damaged, or holding other things.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file. A LLaVA projector is called mm_projector.bin.")
    if path.suffix != ".safetensors":
        return read_checkpoint(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: cannot be read as safetensors ({error}). Fetch it again.") from error


def split_state(state: Mapping[str, torch.Tensor], where: str) -> NonLora:
    """Sort what mm_projector.bin or non_lora_trainables.bin holds; prefixes of wrappers are taken away.

    Raises:
        WeightsError: no projector in it.
    """
    named = {_PREFIX.sub("", key): value for key, value in state.items()}
    projector = {key.removeprefix("mm_projector."): value for key, value in named.items() if "mm_projector." in key}
    if not projector:
        raise WeightsError(f"{where}: no mm_projector in it, but {', '.join(sorted(named)[:4]) or 'nothing'}.")
    others = {key: value for key, value in named.items() if "mm_projector." not in key and key != "image_newline"}
    return NonLora(projector, named.get("image_newline"), others)


def connector_of(parts: NonLora, where: str) -> LlavaConnector:
    """Build the connector that weights are of; kind and sizes are told from their names and shapes.

    Raises:
        WeightsError: names or shapes that belong to no projector known here; they are listed.
    """
    shapes = {key: tuple(value.shape) for key, value in parts.projector.items()}
    first = shapes.get("weight") or shapes.get("0.weight")
    count = len(shapes) // 2
    if first is None or len(first) != 2:
        raise WeightsError(f"{where}: expected weight or 0.weight of a projector, got {', '.join(sorted(shapes))}.")
    kind = "linear" if "weight" in shapes else f"mlp{count}x_gelu"
    connector = LlavaConnector(kind, first[1], first[0], parts.newline is not None)
    wanted = {key: tuple(value.shape) for key, value in connector.mm_projector.state_dict().items()}
    if wanted != shapes:
        differ = sorted(set(wanted.items()) ^ set(shapes.items()))
        raise WeightsError(f"{where}: not a projector {kind}: {', '.join(f'{key} {size}' for key, size in differ)}.")
    connector.mm_projector.load_state_dict({key: value.float() for key, value in parts.projector.items()})
    if parts.newline is not None and connector.image_newline is not None:
        if parts.newline.shape != connector.image_newline.shape:
            raise WeightsError(f"{where}: image_newline {tuple(parts.newline.shape)}, expected ({first[0]},).")
        connector.image_newline.data.copy_(parts.newline)
    return connector


def load_projector(path: str | Path) -> LlavaConnector:
    """Load a projector: a file of it alone, or the folder of a LoRA checkpoint (its non-LoRA part).

    Raises:
        MissingInputError, WeightsError: as of `read_tensors`, `split_state` and `connector_of`.
    """
    return connector_of(*read_projector(Path(path)))


def read_projector(path: Path) -> tuple[NonLora, str]:
    """Read what is trained beside LoRA, and give the file's name with it; arguments and errors as `load_projector`."""
    if path.is_dir():
        path = path / (NON_LORA if (path / NON_LORA).is_file() else "mm_projector.bin")
    return split_state(read_tensors(path), str(path)), str(path)


def check_no_words(parts: NonLora, where: str) -> None:
    """Refuse word embeddings that were trained with a projector: the Llama's own would be read instead.

    Raises:
        UnsupportedError: naming them.
    """
    words = sorted(name for name in parts.others if any(word in name for word in _WORDS))
    if words:
        raise UnsupportedError(
            f"{where}: holds trained word embeddings ({', '.join(words)}), which are not read here: without them it "
            "would answer as another model. Write them into the Llama's own files and leave them out of this one."
        )


def merge_lora(llama: nn.Module, folder: str | Path) -> int:
    """Add the LoRA terms of a PEFT checkpoint to a stock Llama's weights. Overwrites its weights.

    Args:
        llama: the base model, not quantised.
        folder: holds adapter_config.json and adapter_model.safetensors or .bin.

    Returns:
        How many weights were changed.

    Raises:
        MissingInputError: a file is not there.
        UnsupportedError: DoRA, trained biases, or transposed factors.
        InputError: adapter_config.json holds no ranks and scales.
        MismatchError: a term of a weight that the Llama does not have, or of another shape or rank; nothing is changed
            then.
    """
    folder = Path(folder)
    config = _read_config(folder / LORA_CONFIG)
    file = next((folder / name for name in _ADAPTERS if (folder / name).is_file()), folder / _ADAPTERS[0])
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in read_tensors(file).items():
        found = _LORA.fullmatch(key)
        if found is None:
            raise UnsupportedError(f"{file}: {key} is no LoRA term; this checkpoint trained more than LoRA.")
        factors.setdefault(found[1].removeprefix("base_model.model."), {})[found[2]] = value
    weights = dict(llama.named_parameters())
    terms: dict[str, torch.Tensor] = {}
    for name, pair in factors.items():
        weight = weights.get(f"{name}.weight")
        if set(pair) != {"A", "B"} or weight is None:
            raise MismatchError(f"{file}: {name} has factors {', '.join(sorted(pair))}; the Llama has no such weight.")
        if pair["A"].ndim != 2 or pair["B"].shape[1:] != pair["A"].shape[:1]:
            shapes = ", ".join(str(tuple(pair[factor].shape)) for factor in "AB")
            raise MismatchError(f"{file}: {name} has factors of shapes {shapes}: no product. Fetch it again.")
        scale = _scale(config, name, len(pair["A"]), f"{folder / LORA_CONFIG}: {name}")
        delta = scale * (pair["B"].float() @ pair["A"].float())
        if delta.shape != weight.shape:
            raise MismatchError(f"{file}: {name} is {tuple(delta.shape)}, in the Llama {tuple(weight.shape)}.")
        terms[f"{name}.weight"] = delta
    with torch.no_grad():
        for name, delta in terms.items():
            weights[name].add_(delta.to(weights[name]))
    return len(terms)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}: no such file; it says rank and scale of the LoRA terms.") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(data, dict) or not isinstance(data.get("r"), int) or data["r"] < 1:
        raise InputError(f"{path}: expected an object with the rank r.")
    for name, harmless in (("use_dora", False), ("fan_in_fan_out", False), ("bias", "none")):
        if data.get(name, harmless) != harmless:
            raise UnsupportedError(
                f"{path.parent}: {name} is {data[name]!r}; merged here is LoRA with {name} {harmless!r}."
            )
    for name in _PATTERNS:
        given = data.get(name) or {}
        if not isinstance(given, dict) or not all(
            isinstance(value, int | float) and 0 < value < math.inf for value in given.values()
        ):
            raise InputError(f"{path}: {name}: expected an object of names and numbers above 0, got {given!r:.80}.")
        for pattern in given:
            _matches(pattern, "", f"{path}: {name}")
    return data


def _scale(config: Mapping[str, Any], name: str, rank: int, where: str) -> float:
    """Give what a term is multiplied by.

    Args:
        config: as `_read_config` gave it.
        name: of the linear.
        rank: of the term: rows of its A.
        where: for messages.

    Raises:
        MismatchError: the configuration gives that linear another rank.
    """
    expected = _of_linear(config, "rank_pattern", name, config["r"])
    if rank != expected:
        raise MismatchError(
            f"{where}: expected rank {expected}, the term has {rank}. Bring the adapter_config.json saved with it."
        )
    alpha = _of_linear(config, "alpha_pattern", name, config.get("lora_alpha", rank))
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_linear(config: Mapping[str, Any], patterns: str, name: str, otherwise: Any) -> Any:
    """Give the number of the first pattern that fits a linear, else the common one."""
    given = (config.get(patterns) or {}).items()
    return next((value for pattern, value in given if _matches(pattern, name, patterns)), otherwise)


def _matches(pattern: str, name: str, where: str) -> bool:
    """Say whether a pattern of PEFT's means a linear: all of its name, or what follows one of its dots."""
    try:
        return re.match(rf"(?:.*\.)?(?:{pattern})$", name) is not None
    except re.error as error:
        raise InputError(f"{where}: {pattern!r} is no regular expression ({error}).") from error
