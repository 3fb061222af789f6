"""Embeddings on disk: shards of float16 rows, an item table, a manifest that says what they are made with."""

from bindsearch.store.generation import Generation, generation_folders
from bindsearch.store.identity import UNKNOWN, Identity, Manifest
from bindsearch.store.reader import LEDGER, EmbeddingStore, commit_store, open_store, unit_rows
from bindsearch.store.shard import Shard, commit_shard, item_schema

__all__ = [
    "LEDGER",
    "UNKNOWN",
    "EmbeddingStore",
    "Generation",
    "Identity",
    "Manifest",
    "Shard",
    "commit_shard",
    "commit_store",
    "generation_folders",
    "item_schema",
    "open_store",
    "unit_rows",
]
