"""What every layout has in common: blocks of vectors with rows of items, and how foreign columns are read."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.config import canonical_json
from bindsearch.errors import InputError, UnknownNameError
from bindsearch.listing.cells import plain_rows
from bindsearch.registry import MODALITIES
from bindsearch.store import Identity, item_schema
from bindsearch.types import item_id, to_text

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
    if text is None:
        return None
    try:
        record = json.loads(text)
        if not isinstance(record, dict):
            raise TypeError(f"expected a JSON object, got {type(record).__name__}")
        return Identity.from_json(record, str(where))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where}: what it says of its space cannot be read: {error}. Export it again: bindsearch export "
            "EMBEDDINGS -o FILE"
        ) from error


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
        InputError: no modality, a key with a NUL character, half a span, or a cell that its column cannot hold.
        UnknownNameError: a modality that is in no registry.
    """
    own: dict[str, Any] = {field.name: _cell(field, columns.get(field.name), where) for field in _taken_over()}
    key_column = next((each for each in KEY_COLUMNS if columns.get(each) is not None), None)
    own["key"] = key = _text(columns[key_column]) if key_column else name
    own["modality"] = own["modality"] or modality
    if not own["modality"]:
        raise InputError(f"{where}: the file does not say which modality its rows are. Say it: --modality NAME.")
    check_modality(own["modality"], where)
    if "\x00" in key:
        raise InputError(f"{where}: the key holds a NUL character.")
    span = _span(own["start_s"], own["end_s"], where)
    own.update(id=item_id(key, span), source=own["source"] or key, status="ok", reason=None, stage=None)
    own["attributes"] = _attributes(columns, {*item_schema().names, key_column} - {"attributes"})
    return own


def check_modality(name: str, where: str) -> None:
    """Refuse a modality that is in no registry.

    Raises:
        UnknownNameError: naming the place and the nearest name.
    """
    if name not in MODALITIES.built_in and name not in MODALITIES:
        raise UnknownNameError("modality", name, MODALITIES.names(), hint=f"({where})")


def cells_of(table: pa.RecordBatch | pa.Table, path: Path, first: int = 0) -> list[Mapping[str, Any]]:
    """Give a piece of a file's columns as rows of Python values.

    Args:
        table: the piece. Not modified.
        path: of the file, for messages.
        first: number of the piece's first row in the file.

    Raises:
        InputError: a cell that nothing can be made of; its row is named.
    """
    rows: list[Mapping[str, Any]] = []
    for row in plain_rows(table, first):
        if isinstance(row, str):
            raise InputError(f"{path}: {row}. Write the file again, or without that column.")
        rows.append(row)
    return rows


@functools.cache
def _taken_over() -> tuple[pa.Field, ...]:
    """Give the columns of the item table that a file's cells go to as they are; the rest are settled."""
    settled = ("id", "key", "status", "reason", "stage", "attributes")
    return tuple(field for field in item_schema() if field.name not in settled)


def _cell(field: pa.Field, value: Any, where: str) -> Any:
    """Make a cell of the item table of a file's; NaN is an empty one.

    Raises:
        InputError: no number where the column holds numbers.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    kind = str(field.type)
    if kind == "string":
        return _text(value)
    whole = kind == "int64"
    try:
        if isinstance(value, bool):
            raise TypeError("a truth value is no number")
        number = int(value) if whole else float(value)
        if whole and ((number != float(value) and number != value) or not -(2**63) <= number < 2**63):
            raise ValueError("not a whole number of 64 bits")
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{where}: column {field.name!r}: expected a {'whole ' if whole else ''}number, got {value!r:.80}. Give "
            "the column another name there, and it becomes an attribute."
        ) from error
    return number


def _text(value: Any) -> str:
    """Write any cell as text: lists and records as JSON."""
    if isinstance(value, bytes):
        return bytes_text(value)
    return canonical_json(_plain(value)) if isinstance(value, list | dict) else str(value)


def bytes_text(value: bytes) -> str:
    r"""Read bytes as UTF-8, whatever a file calls their encoding; others become \udcNN, as in names of files."""
    return to_text(value.decode("utf-8", "surrogateescape"))


def _span(start_s: float | None, end_s: float | None, where: str) -> tuple[float, float] | None:
    """Give a span of both its ends, or none.

    Raises:
        InputError: one end alone, or not finite.
    """
    if start_s is None and end_s is None:
        return None
    if start_s is None or end_s is None or not (math.isfinite(start_s) and math.isfinite(end_s)):
        raise InputError(
            f"{where}: a span needs both ends in seconds, got start_s {start_s} and end_s {end_s}. Give both, or leave "
            "both empty."
        )
    return start_s, end_s


def _attributes(columns: Mapping[str, Any], own: Collection[str | None]) -> str | None:
    """Write the attributes: the file's own where they are a JSON object, else an object of all other columns."""
    given = columns.get("attributes")
    if isinstance(given, dict):
        return canonical_json(_plain(given))
    if isinstance(given, str) and _is_object(given):
        return given
    extra = {name: value for name, value in columns.items() if name not in own and value is not None}
    return canonical_json(_plain(extra)) if extra else None


def _is_object(text: str) -> bool:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return isinstance(json.loads(text, parse_constant=refuse), dict)
    except (ValueError, RecursionError):
        return False


def _plain(value: Any) -> Any:
    """Turn cells into what JSON can hold: NaN becomes null, infinities and other kinds their text."""
    text = json.dumps(value, default=str)
    return json.loads(text, parse_constant=lambda name: None if name == "NaN" else name)


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
