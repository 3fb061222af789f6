"""Embeddings to and from other programs: npy, Parquet, HDF5, the layout of clip-retrieval."""

from bindsearch.exchange.transfer import LAYOUTS, export_store, import_store

__all__ = ["LAYOUTS", "export_store", "import_store"]
