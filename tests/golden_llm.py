"""The tiny Llama, its adapter and the reference's figures, for the tests of bindsearch.llm."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from bindsearch.llm.model import AdapterLlama, load

FOLDER = Path(__file__).parent / "golden" / "imagebind_llm"
LLAMA = FOLDER / "tiny_llama"
ADAPTER = FOLDER / "adapter_tiny.pth"
V2 = FOLDER / "v2_adapter.safetensors"

LOGITS, HIDDEN, LOSS = 1e-4, 1e-4, 1e-5


@cache
def figures(name: str) -> dict[str, torch.Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


@cache
def read(name: str) -> Any:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def adapter() -> dict[str, torch.Tensor]:
    """The reference's adapter file, as a table that a test may change."""
    return dict(torch.load(ADAPTER, weights_only=True)["model"])


def model(path: Path = ADAPTER, llama: Path = LLAMA, **options: Any) -> AdapterLlama:
    """A fresh model in float32: tests may change it."""
    if path == V2:
        options.setdefault("visual_heads", 4)
    return load(path, llama, **{"dtype": "float32", **options})


def feature() -> torch.Tensor:
    """The inputs of full_forward (2, 32): the reference normalises them before its bind network."""
    return torch.nn.functional.normalize(figures("full_forward")["image_feature"], dim=1)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    return float((got.float() - want).abs().max())


def logits_error(of: AdapterLlama) -> float:
    """Largest difference of a logit to the reference's full forward."""
    want = figures("full_forward")
    return error(of.logits(feature(), want["tokens"]), want["logits"])


def steps(of: AdapterLlama, features: torch.Tensor, tokens: torch.Tensor, first: int = 10) -> torch.Tensor:
    """Logits of the last token of a prefill of `first`, then of one token at a time, through the KV cache."""
    rows = []
    past = None
    with torch.no_grad(), of.connection.inject(features):
        for start, end in [(0, first), *((at, at + 1) for at in range(first, tokens.shape[1]))]:
            out = of.llama(input_ids=tokens[:, start:end], past_key_values=past, use_cache=True)
            past = out.past_key_values
            rows.append(out.logits[:, -1])
    return torch.stack(rows, dim=1)


def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the next token where its label is not 0."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=0)
