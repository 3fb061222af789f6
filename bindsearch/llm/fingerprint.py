"""Which Llama a connector was made for: two hashes, recorded with the connector and compared when both are loaded.

A connector read by another Llama of the same size gives fluent nonsense and no error: 7B.pth was trained on
Open-Chinese-LLaMA and fits plain LLaMA 7B key by key. The weights' hash is over signs of numbers spread over all
matrices, so that it is the same in float32, bfloat16 and float16, and in Meta's and Hugging Face's layout; a base that
was trained on, however little, has other signs. Norms and biases are left out: an adapter replaces them.

Recorded in files of ours: .pth beside "model" under "base", .safetensors in the metadata. For files of others:
`record_base` writes FILE.base.json beside them, once somebody has seen that the pair answers sense.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bindsearch.errors import MismatchError, WeightsError
from bindsearch.store.files import commit_json

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

SIDE = ".base.json"
_SIGNS = 4096
"""Of each matrix at most; 7B has 226 matrices."""
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)


@dataclass(frozen=True)
class BaseFingerprint:
    """A Llama in two hashes of 16 hexadecimal digits.

    Attributes:
        config: of its sizes.
        weights: of the signs of its matrices.
    """

    config: str
    weights: str

    def __str__(self) -> str:
        """Write both."""
        return f"config {self.config}, weights {self.weights}"

    def to_json(self) -> dict[str, str]:
        """Give plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any, where: str) -> BaseFingerprint:
        """Read what `to_json` gave.

        Raises:
            WeightsError: it is no fingerprint.
        """
        if isinstance(data, Mapping) and all(isinstance(data.get(name), str) for name in ("config", "weights")):
            return cls(data["config"], data["weights"])
        raise WeightsError(f"{where}: expected a base of config and weights, got {str(data)[:80]}.")


def fingerprint_of(llama: LlamaForCausalLM) -> BaseFingerprint:
    """Take the fingerprint of a Llama as it came from disk: not quantised, before low-rank terms are merged.

    Args:
        llama: the library's model, on any device, in any float dtype. Not modified.
    """
    sizes = {name: int(getattr(llama.config, name)) for name in _SIZES}
    digest = hashlib.sha256()
    for name, tensor in sorted(llama.state_dict().items()):
        if tensor.ndim != 2:
            continue
        flat = tensor.detach().reshape(-1)
        places = torch.linspace(0, flat.numel() - 1, min(_SIGNS, flat.numel()), dtype=torch.float64).long()
        signs = torch.signbit(flat[places.to(flat.device)]).cpu().numpy()
        digest.update(name.encode("ascii") + signs.tobytes())
    config = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode("ascii")).hexdigest()
    return BaseFingerprint(config[:16], digest.hexdigest()[:16])


def recorded_base(path: str | Path) -> BaseFingerprint | None:
    """Read which Llama a connector's file says it was made for; None where neither it nor a file beside it says so.

    Raises:
        WeightsError: what stands there is no fingerprint. Nothing is executed.
    """
    path = Path(path)
    side = path.with_name(path.name + SIDE)
    if side.is_file():
        try:
            return BaseFingerprint.from_json(json.loads(side.read_text(encoding="utf-8")), str(side))
        except ValueError as error:
            raise WeightsError(f"{side}: no JSON ({error}). Delete it, or record the base again.") from error
    if not path.is_file():
        return None
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            said = (file.metadata() or {}).get("base")
        return None if said is None else BaseFingerprint.from_json(json.loads(said), str(path))
    from bindsearch.llm.checkpoints import read_torch

    held = read_torch(path)
    said = held.get("base") if isinstance(held, dict) else None
    return None if said is None or isinstance(said, torch.Tensor) else BaseFingerprint.from_json(said, str(path))


def check_base(recorded: BaseFingerprint | None, found: BaseFingerprint | None, connector: str, llama: str) -> None:
    """Refuse another Llama than the one recorded; where either is not known, nothing is said.

    Raises:
        MismatchError: with both values.
    """
    if recorded is not None and found is not None and recorded != found:
        what = "another size" if recorded.config != found.config else "other weights"
        raise MismatchError(
            f"{connector} was made for a Llama of {recorded}; {llama} is one of {found}: {what}. "
            "With it answers are fluent nonsense. Bring the Llama it was trained on."
        )


def record_base(connector: str | Path, llama: str | Path) -> Path:
    """Write beside a connector of others which Llama it goes with; loading it with another is refused from then on.

    Args:
        connector: file of an adapter or a projector, or a folder.
        llama: folder of the Llama, as of `llm.load`.

    Returns:
        The file written, CONNECTOR.base.json.
    """
    from bindsearch.llm.llama_files import find_llama, load_llama

    base = fingerprint_of(load_llama(find_llama(Path(llama)), False, torch.bfloat16))
    connector = Path(connector)
    side = connector.with_name(connector.name + SIDE)
    commit_json(side, base.to_json())
    return side
