"""A pair: a Llama and the connector that was trained for it, in one folder with a manifest.

    pair.json             what it is: space, connector, files and their checksums, how it was made
    adapter.safetensors   the connector, norms and LoRA terms in ImageBind-LLM's names, or those of its kind
    llama/                config.json, model.safetensors, tokenizer.model

`mini-talk` is bundled: it reads bindsearch-mini's joint space and answers about the procedural world.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindsearch.config import from_json_dict, to_json_dict
from bindsearch.errors import MismatchError, MissingInputError, UnknownNameError, WeightsError
from bindsearch.llm.tiny import need_extra

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from bindsearch.llm.base import Connector
    from bindsearch.llm.lora import LoraTerms
    from bindsearch.llm.model import AdapterLlama

FILE = "pair.json"
FORMAT = "bindsearch-pair/1"
ADAPTER, LLAMA = "adapter.safetensors", "llama"
BUNDLED = Path(__file__).parent / "pairs" / "mini-talk"


@dataclass(frozen=True)
class PairManifest:
    """What a pair is.

    Attributes:
        name: of the pair.
        space: what `load_space` takes to embed what it reads.
        space_id: of the joint space that it was trained on.
        connector: kind of the connector: imagebind-llm, llama-adapter-v2 or llava.
        trained_on: modalities of the training pairs.
        llama: folder of the Llama, from the manifest's own where it is relative.
        prompts: template that it was trained on and is asked with: alpaca, or llava for LLaVA's connector.
        files: name -> SHA-256 of the bundled files.
        source: how it was made.
        licence: of the weights.
    """

    name: str
    space: str
    space_id: str
    connector: str
    trained_on: tuple[str, ...] = ("image", "text")
    llama: str = LLAMA
    prompts: str = "alpaca"
    files: dict[str, str] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    licence: str = "Apache-2.0"
    format: str = FORMAT


@dataclass(frozen=True)
class Pair:
    """A pair that is loaded.

    Attributes:
        manifest: what it is.
        model: answers questions.
        folder: where it lies.
    """

    manifest: PairManifest
    model: AdapterLlama
    folder: Path

    def check_space(self, space_id: str) -> None:
        """Refuse embeddings of another space.

        Raises:
            MismatchError: naming both.
        """
        if space_id != self.manifest.space_id:
            raise MismatchError(
                f"{self.folder}: reads embeddings of {self.manifest.space_id}, these come from {space_id}. "
                f"Embed with {self.manifest.space}, or train a connector: bindsearch train-llm --space ..."
            )


def read_manifest(folder: Path) -> PairManifest:
    """Read pair.json.

    Raises:
        MissingInputError: no pair there.
        WeightsError: damaged, or of a later format.
    """
    path = folder / FILE
    if not path.is_file():
        raise MissingInputError(f"{folder}: no pair of Llama and connector ({FILE}). Make one: bindsearch train-llm.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path}: no JSON ({error}). Fetch it again.") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise WeightsError(f"{path}: expected format {FORMAT}, got {found!r}.")
    return from_json_dict(PairManifest, data, str(path))


def load_pair(folder: str | Path | None = None, dtype: str = "float32", device: str = "cpu") -> Pair:
    """Load a pair.

    Args:
        folder: with a pair.json; None: the bundled one.
        dtype: of the Llama's weights in memory; see `llm.load`.
        device: "cpu", "cuda", ...

    Raises:
        MissingExtraError: transformers or sentencepiece is not installed.
        MissingInputError: no pair there.
        WeightsError: a file is missing, or is not the one that the manifest names.
        UnknownNameError: a template of prompts that the connector does not have.
    """
    need_extra("Asking a language model")
    folder = BUNDLED if folder is None else Path(folder)
    manifest = read_manifest(folder)
    check_files(folder, manifest.files)
    adapter, llama = folder / ADAPTER, folder / manifest.llama
    if manifest.connector == "llava":
        from bindsearch.llm.llava_model import load_llava_pair

        return Pair(manifest, load_llava_pair(adapter, llama, manifest.prompts, dtype, device), folder)
    if manifest.prompts != "alpaca":
        raise UnknownNameError(f"prompts of {folder / FILE}", manifest.prompts, ["alpaca"])
    from bindsearch.llm.model import load

    return Pair(manifest, load(adapter, llama, dtype, device), folder)


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """Compare files with their checksums.

    Raises:
        WeightsError: one is missing or another; it is named.
    """
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise WeightsError(f"{path}: missing. The manifest of the pair names it: fetch the pair again.")
        found = _sha256(path)
        if found != expected:
            raise WeightsError(f"{path}: expected SHA-256 {expected[:12]}, got {found[:12]}. Fetch the pair again.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_pair(
    folder: Path,
    manifest: PairManifest,
    connector: Connector,
    llama: LlamaForCausalLM,
    lora: LoraTerms | None = None,
    tokenizer: Path | None = None,
) -> PairManifest:
    """Write a pair; weights in float16.

    Args:
        folder: written to.
        manifest: its files are filled in.
        connector: of any kind. Not modified.
        llama: written beside it where the manifest's llama is the folder of the pair's own; its norms and biases go
            into the adapter in any case. Not modified.
        lora: terms that were trained beside the weights, or None. Not modified.
        tokenizer: of the Llama, copied where the Llama is written.

    Returns:
        The manifest as written.
    """
    import torch
    from safetensors.torch import save_file

    from bindsearch.llm.checkpoints import adapter_state, records_of
    from bindsearch.llm.fingerprint import fingerprint_of
    from bindsearch.llm.tiny import save_llama

    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.to(torch.float16) for key, value in adapter_state(connector, lora, llama).items()}
    said = records_of(connector, fingerprint_of(llama))
    save_file(state, folder / ADAPTER, {name: json.dumps(value) for name, value in said.items()})
    written = [ADAPTER]
    if manifest.llama == LLAMA and tokenizer is not None:
        save_llama(llama, folder / LLAMA, torch.float16)
        (folder / LLAMA / "tokenizer.model").write_bytes(tokenizer.read_bytes())
        written += [f"{LLAMA}/{name}" for name in ("config.json", "model.safetensors", "tokenizer.model")]
    for name in written:
        (folder / name).chmod(0o644)  # safetensors leaves its files to their owner alone
    manifest = dataclasses.replace(manifest, files={name: _sha256(folder / name) for name in written})
    text = json.dumps(to_json_dict(manifest), indent=1, sort_keys=True)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")
    return manifest


def pair_bytes(folder: Path) -> int:
    """Count the bytes of a pair's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
