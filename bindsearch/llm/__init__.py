"""A language model that reads the joint space: connectors, their files, generation. Extra: llm.

>>> from bindsearch import llm
>>> model = llm.load(adapter="7B.pth", llama="llama-7b", dtype="bfloat16")
>>> for piece in model.answer(space.audio("bird.wav").vector, "What is making this sound?", stream=True): ...
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "AdapterFacts": "bindsearch.llm.checkpoints",
    "BaseFingerprint": "bindsearch.llm.fingerprint",
    "AdapterLlama": "bindsearch.llm.model",
    "Connection": "bindsearch.llm.base",
    "Connector": "bindsearch.llm.base",
    "Dialogue": "bindsearch.llm.dialogue",
    "LlavaConnector": "bindsearch.llm.llava",
    "Pair": "bindsearch.llm.pair",
    "Sampling": "bindsearch.llm.generate",
    "inspect_adapter": "bindsearch.llm.checkpoints",
    "load": "bindsearch.llm.model",
    "load_llava": "bindsearch.llm.llava_model",
    "load_pair": "bindsearch.llm.pair",
    "load_projector": "bindsearch.llm.llava_files",
    "fingerprint_of": "bindsearch.llm.fingerprint",
    "record_base": "bindsearch.llm.fingerprint",
    "save_adapter": "bindsearch.llm.checkpoints",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: importing bindsearch.llm loads neither torch nor transformers."""
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'bindsearch.llm' has no attribute {name!r}. Public names: {', '.join(__all__)}")


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)
