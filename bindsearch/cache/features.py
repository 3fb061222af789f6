"""Feature files as what a cache is built from: npy, Parquet, HDF5, clip-retrieval; rows keep their float32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import InputError, MissingInputError
from bindsearch.exchange.rows import settle_row
from bindsearch.exchange.transfer import find_layout, settle_identity
from bindsearch.store import Identity, item_schema

if TYPE_CHECKING:
    import pyarrow as pa

    from bindsearch.types import FloatArray, IntArray

_SUFFIXES = {".npy": "npy", ".parquet": "parquet", ".h5": "hdf5", ".hdf5": "hdf5"}


class FeatureSource:
    """Rows of a feature file as an index takes them; see `index.source.VectorSource`.

    Attributes:
        manifest: the identity: space_name, space_id, dim, tower_ids, preset_ids, tokenizer_id.
        path: of the file or folder.
    """

    def __init__(self, path: Path, layout: str, space_id: str | None, modality: str) -> None:
        """Open a file of features.

        Args:
            path: file or folder.
            layout: a name of `exchange.LAYOUTS`.
            space_id: what the vectors were made with, where the file does not say.
            modality: of rows that name none.

        Raises:
            InputError: not in that layout, or without rows.
            MismatchError: the file says another space than `space_id`.
        """
        self.path, self._layout, self._modality = path, layout, modality
        found = find_layout(layout).read(path)
        first = next(iter(found.blocks), None)
        if first is None or not first[0].shape[0]:
            raise MissingInputError(f"{path}: holds no rows.")
        self.manifest: Identity = settle_identity(found.identity, space_id, first[0].shape[1], path)

    def iter_blocks(self, rows: int) -> Iterator[tuple[IntArray, FloatArray, pa.Table]]:
        """Iterate over (ids, float32 unit rows, item table) in blocks of at most `rows` rows.

        Raises:
            InputError: a row that is not finite or is zero; it is named.
        """
        at = 0
        for vectors, columns in find_layout(self._layout).read(self.path).blocks:
            for start in range(0, vectors.shape[0], rows):
                part = np.asarray(vectors[start : start + rows])
                yield item_block(part, columns[start : start + rows], at, (self.path, self._modality))
                at += part.shape[0]

    def gone_sources(self) -> dict[int, set[str]]:
        """Give nothing: a file says nothing of what it held before."""
        return {}


def item_block(
    vectors: np.ndarray, columns: Any, at: int, told: tuple[Path, str]
) -> tuple[IntArray, FloatArray, pa.Table]:
    """Make a block of items of feature rows.

    Args:
        vectors: (m, d) of any float dtype. Not modified.
        columns: m rows of what the file says of them. Not modified.
        at: number of the first row in the file.
        told: the file, and the modality of rows that name none.

    Returns:
        ids (m,) int64, (m, d) float32 unit rows, item table.

    Raises:
        InputError: a row that is not finite or is zero; it is named.
    """
    import pyarrow as pa

    path, modality = told
    wide = vectors.astype(np.float64)
    norms = np.sqrt((wide * wide).sum(axis=1))
    bad = ~np.isfinite(norms) | (norms == 0)
    if bad.any():
        place = int(np.argmax(bad))
        raise InputError(
            f"{path}: row {at + place} has the norm {norms[place]}; expected a finite norm above 0. Import the file "
            "first, which keeps a ledger of such rows: bindsearch import FILE -o EMBEDDINGS; then build from those."
        )
    rows = [
        settle_row(row, f"{path.name}#{at + number}", modality, f"{path}, row {at + number}")
        for number, row in enumerate(columns)
    ]
    for row, norm in zip(rows, norms.tolist(), strict=True):
        row["norm"] = row["norm"] if row["norm"] is not None else norm
    table = pa.Table.from_pylist(rows, schema=item_schema())
    ids = np.asarray(table["id"].to_numpy(), dtype=np.int64)
    return ids, np.asarray(wide / norms[:, None], dtype=np.float32), table


def layout_of(path: Path) -> str | None:
    """Name the layout that a file or folder is in, by its name and what lies in it; None: it is none of features."""
    if path.is_file():
        return _SUFFIXES.get(path.suffix.lower())
    if (path / "embeddings.npy").is_file():
        return "npy"
    return "clip-retrieval" if (path / "img_emb").is_dir() else None
