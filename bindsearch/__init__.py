"""bindsearch: one joint space for every modality, an index over it, answers you can look at.

>>> space = bindsearch.load_space("bindsearch-mini")
>>> index = bindsearch.open_index("indexes/demo")
>>> hits = index.search(space.image("bird.jpg") + 0.5 * space.audio("waves.wav") - space.text("night"), k=10)
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "Classifier": "bindsearch.zeroshot",
    "EmbeddingStore": "bindsearch.store",
    "Embedding": "bindsearch.query",
    "Hit": "bindsearch.types",
    "Hits": "bindsearch.search",
    "Item": "bindsearch.types",
    "Media": "bindsearch.types",
    "SearchIndex": "bindsearch.search",
    "Space": "bindsearch.models.spaces",
    "VisualCache": "bindsearch.cache",
    "classify": "bindsearch.zeroshot",
    "load_space": "bindsearch.models.spaces",
    "open_index": "bindsearch.search",
    "open_store": "bindsearch.store",
}

__all__ = sorted([*_WHERE, "__version__"])


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import bindsearch` loads neither torch nor faiss."""
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'bindsearch' has no attribute {name!r}. Public names: {', '.join(__all__)}")


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)
