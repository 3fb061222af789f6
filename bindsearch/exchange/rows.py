"""What every layout has in common: blocks of vectors with rows of items, and how foreign columns are read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.config import canonical_json
from bindsearch.errors import InputError
from bindsearch.store import Identity, item_schema
from bindsearch.types import item_id

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import pyarrow as pa

    Block = tuple[np.ndarray, pa.Table]

UNIT_ERROR = 2e-3
"""A float16 row whose norm is this close to 1 is taken as it is, so that what was exported comes back bit for bit."""
KEY_COLUMNS = ("key", "image_path", "path", "uri", "url", "name", "filename", "keys", "id")


@dataclass(frozen=True)
class Export:
    """What a layout writes.

    Attributes:
        identity: what the vectors are made with.
        rows: how many there are.
        blocks: (n, d) float16 unit rows with an item table of n rows, in order.
    """

    identity: Identity
    rows: int
    blocks: Iterable[Block]


@dataclass(frozen=True)
class Import:
    """What a layout reads.

    Attributes:
        identity: what the file says of itself; None where it says nothing.
        blocks: (n, d) vectors of any float dtype with n rows of columns, in order.
    """

    identity: Identity | None
    blocks: Iterator[tuple[np.ndarray, Sequence[Mapping[str, Any]]]]


def identity_text(identity: Identity) -> str:
    """Write an identity as JSON, for a file's metadata."""
    return canonical_json(identity.to_json())


def identity_of(text: str | bytes | None, where: Path) -> Identity | None:
    """Read what `identity_text` wrote; None where there is none.

    Raises:
        InputError: it is damaged.
    """
    if not text:
        return None
    try:
        return Identity.from_json(json.loads(text), str(where))
    except ValueError as error:
        raise InputError(f"{where}: its identity cannot be read: {error}") from error


def check_matrix(vectors: np.ndarray, where: str) -> np.ndarray:
    """Refuse what are no vectors.

    Raises:
        InputError: naming shape and dtype.
    """
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or vectors.shape[1] == 0:
        raise InputError(f"{where}: expected vectors (n, d) of floats, got {vectors.shape} {vectors.dtype}.")
    return vectors


def settle_row(columns: Mapping[str, Any], name: str, modality: str | None, where: str) -> dict[str, Any]:
    """Make a row of the item table of what a file says about a vector.

    Args:
        columns: of the file. Those of the item table are taken over; the key may stand under another name
            (image_path, path, url, ...); the rest become attributes. Not modified.
        name: the key where none is given.
        modality: of rows that name none.
        where: file and row, for messages.

    Raises:
        InputError: no modality, or a key with a NUL character.
    """
    schema = item_schema()
    own: dict[str, Any] = {each: columns.get(each) for each in schema.names}
    key_column = next((each for each in KEY_COLUMNS if columns.get(each) is not None), None)
    own["key"] = key = str(columns[key_column]) if key_column else name
    own["modality"] = own["modality"] or modality
    if not own["modality"]:
        raise InputError(f"{where}: the file does not say which modality its rows are. Say it: --modality NAME.")
    if "\x00" in key:
        raise InputError(f"{where}: the key holds a NUL character.")
    span = None if own["start_s"] is None else (float(own["start_s"]), float(own["end_s"]))
    own.update(id=item_id(key, span), source=own["source"] or key, status="ok", reason=None, stage=None)
    if own["attributes"] is None:
        others = [each for each in columns if each not in own and each != key_column]
        extra = {each: columns[each] for each in others if columns[each] is not None}
        own["attributes"] = canonical_json(json.loads(json.dumps(extra, default=str))) if extra else None
    return own


def settle_vectors(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Make unit rows.

    Args:
        vectors: (n, d) of any float dtype. Not modified.

    Returns:
        (n, d) float16 or float32 rows, of unit length where that is possible, and their (n,) float32 norms as given.
    """
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if vectors.dtype == np.float16 and bool((np.abs(norms - 1) <= UNIT_ERROR).all()):
        return vectors, norms.astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = vectors.astype(np.float64) / norms[:, None]
    return unit.astype(np.float32), norms.astype(np.float32)
