"""One immutable part of an index: rows, ids and item table side by side.

Rows stand in the order they were embedded, or in one that suits the segment's backend; table_rows.npy then names the
row of the item table that belongs to each.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import struct
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from bindsearch.errors import InputError, MismatchError, ShapeError, UnknownNameError
from bindsearch.index.attributes import write_attributes
from bindsearch.index.base import IndexBackend, Progress, no_progress
from bindsearch.index.byte_codes import FACTS as CODES
from bindsearch.index.byte_index import open_codes, write_codes
from bindsearch.index.checks import ASKING, check_ids, map_array, read_asking, stored_rows
from bindsearch.index.manifest import SegmentEntry, check_file, describe_file, sync_folder
from bindsearch.index.recipe import Recipe
from bindsearch.registry import INDEXES

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from bindsearch.types import FloatArray, IntArray

    Block = tuple[IntArray, FloatArray, pa.Table]

REQUIRED_COLUMNS = ("id", "key", "modality", "source")
LEDGER_COLUMNS = ("status", "reason", "stage")
_GROUP_ROWS = 8192
_HEADER_BYTES = 128
_FEW_ROWS = 64


class Segment:
    """A mapped segment: its backend (removed rows taken out) and its item table, read when asked for.

    Files are opened once, here: later changes of the folder, deletion included, do not reach a reader.
    """

    def __init__(self, folder: Path, entry: SegmentEntry, backend: str, dim: int, row_dtype: str = "float32") -> None:
        """Open a segment.

        Args:
            folder: the index folder.
            entry: what the manifest says of the segment.
            backend: registered name, where the entry names none.
            dim: columns that its rows must have.
            row_dtype: how they must be stored.

        Raises:
            FileNotFoundError: a file is gone.
            MismatchError: sizes, counts or checksums of small files differ from the manifest.
        """
        self.entry = entry
        self.path = folder / "segments" / entry.name
        for name, file in entry.files.items():
            check_file(self.path / name, file, payload=False)
        try:
            self.index: IndexBackend = INDEXES[entry.backend or backend].open(self.path)
            if CODES in entry.files and self.index.codes is None:
                self.index.codes = open_codes(self.path, self.index)
            self.asking = read_asking(self.path) if ASKING in entry.files else None
            self._table_rows = self._map_table_rows()
        except ShapeError:
            raise
        except InputError as error:
            raise MismatchError(str(error)) from error
        if (self.index.ids.shape[0], self.index.dim) != (entry.rows, dim):
            raise MismatchError(
                f"{self.path}: rows of shape ({self.index.ids.shape[0]}, {self.index.dim}), "
                f"its manifest says ({entry.rows}, {dim}). Build the index again."
            )
        if self.index.row_dtype != row_dtype:
            raise MismatchError(
                f"{self.path}: rows of {self.index.row_dtype}, its manifest says {row_dtype}. Build the index again."
            )
        if entry.tombstones is not None and entry.tombstones_file is not None:
            removed = folder / "tombstones" / entry.tombstones
            check_file(removed, entry.tombstones_file, payload=True)
            try:
                found = self.index.remove(map_array(removed, "int64", 1))
            except MismatchError as error:  # of order.npy
                raise MismatchError(f"{self.path}/{error}") from error
            if found != entry.removed:
                raise MismatchError(f"{removed}: removes {found} rows, its manifest says {entry.removed}.")
        self._mapped = _map_bytes(self.path / "items.parquet")
        self._parquet: Any = None
        self._parquet_lock = threading.Lock()

    def table(self, positions: IntArray, columns: Sequence[str] | None = None) -> pa.Table:
        """Read rows of the item table.

        Args:
            positions: (m,) int64 row positions. Not modified.
            columns: which; None: all. Of one that other segments alone have, all values are null.

        Returns:
            m rows in the order of `positions`.

        Raises:
            MismatchError: the table is not of this segment's rows.
        """
        import pyarrow as pa

        rows = self.table_rows(positions)
        with self._parquet_lock:
            file = self._open_parquet()
            starts = self._group_starts(file)
            groups = np.searchsorted(starts, rows, side="right") - 1
            wanted = sorted(set(groups.tolist()))
            names = list(columns) if columns is not None else None
            lacking = [name for name in columns or () if name not in file.schema_arrow.names]
            if names is not None:
                names = [name for name in names if name not in lacking] + ["id"] * ("id" not in names)
            table = (
                file.read_row_groups(wanted, columns=names, use_threads=False)
                if wanted
                else file.schema_arrow.empty_table()
            )
        sizes = np.diff(np.append(starts, self.entry.rows))
        offset = dict(zip(wanted, np.cumsum([0, *(sizes[group] for group in wanted)]).tolist(), strict=False))
        local = rows - starts[groups] + np.array([offset[group] for group in groups.tolist()], dtype=np.int64)
        taken = take_rows(table, local)
        if taken["id"].to_pylist() != self.index.ids[positions].tolist():
            raise MismatchError(f"{self.path}/items.parquet: its ids are not those of ids.npy. Build the index again.")
        for name in dict.fromkeys(lacking):
            taken = taken.append_column(name, pa.nulls(taken.num_rows))
        return taken if columns is None else taken.select(list(columns))

    def table_rows(self, positions: IntArray) -> IntArray:
        """Give the rows of the item table of row positions, (m,) int64 both."""
        return positions if self._table_rows is None else self._table_rows[positions].astype(np.int64)

    def column(self, name: str) -> pa.ChunkedArray:
        """Read one whole column of the item table, (n,) in row order, removed rows included.

        Raises:
            UnknownNameError: there is no such column.
        """
        import pyarrow as pa

        values = self.table_column(name)
        return values if self._table_rows is None else values.take(pa.array(self._table_rows))

    def table_column(self, name: str) -> pa.ChunkedArray:
        """Read one whole column in the order of the item table: cheaper where rows are sorted; see `to_row_order`.

        Raises:
            UnknownNameError: there is no such column.
        """
        if name not in self.column_names():
            raise UnknownNameError("column", name, self.column_names())
        with self._parquet_lock:
            return self._open_parquet().read(columns=[name], use_threads=False)[name]

    def to_row_order(self, values: Any) -> Any:
        """Bring an array (n, ...), such as a mask over the item table, into row order; itself where both are one."""
        return values if self._table_rows is None else values[self._table_rows]

    def places_by_table(self) -> IntArray:
        """Give the row positions in the order of the item table, (n,) int64: whoever reads all items goes by these."""
        if self._table_rows is None:
            return np.arange(self.entry.rows, dtype=np.int64)
        places = np.empty(self.entry.rows, dtype=np.int64)
        places[self._table_rows] = np.arange(self.entry.rows, dtype=np.int64)
        return places

    def column_names(self) -> tuple[str, ...]:
        """List the columns of the item table."""
        with self._parquet_lock:
            return tuple(self._open_parquet().schema_arrow.names)

    def verify(self) -> None:
        """Read every byte and compare.

        Raises:
            MismatchError: naming the first thing that is not as it was written.
        """
        for name, file in self.entry.files.items():
            check_file(self.path / name, file, payload=True)
        ids = self.index.ids
        if hash_ids(ids) != self.entry.ids_sha256 or not np.array_equal(self.column("id").to_numpy(), ids):
            raise MismatchError(f"{self.path}: ids.npy, items.parquet and the manifest name different ids.")
        order = np.asarray(np.load(self.path / "order.npy", mmap_mode="r", allow_pickle=False))
        if not np.array_equal(np.sort(order), np.arange(ids.size)) or (np.diff(ids[order]) <= 0).any():
            raise MismatchError(f"{self.path}/order.npy: does not sort the ids.")
        if self._table_rows is not None and not np.array_equal(np.sort(self._table_rows), np.arange(ids.size)):
            raise MismatchError(f"{self.path}/table_rows.npy: does not name each row of the item table once.")

    def _map_table_rows(self) -> NDArray[np.int32] | IntArray | None:
        """Map table_rows.npy, where the segment has one.

        Raises:
            InputError: it has another number of rows, or names rows beyond them.
        """
        if "table_rows.npy" not in self.entry.files:
            return None
        path = self.path / "table_rows.npy"
        rows = map_array(path, ("int64", "int32"), 1)
        if rows.shape[0] != self.entry.rows:
            raise InputError(f"{path}: {rows.shape[0]} rows, its manifest says {self.entry.rows}.")
        return np.asarray(rows)

    def _open_parquet(self) -> Any:
        if self._parquet is None:
            import pyarrow as pa
            import pyarrow.parquet as pq

            try:
                # without Arrow's thread pools, here and in the reads: a process that ends right after a read is
                # aborted by them ("terminate called without an active exception"), and small reads gain nothing
                file = pq.ParquetFile(pa.BufferReader(pa.py_buffer(self._mapped)), pre_buffer=False)
            except pa.ArrowInvalid as error:
                raise MismatchError(f"{self.path}/items.parquet: not readable as Parquet ({error}).") from error
            if file.metadata.num_rows != self.entry.rows:
                raise MismatchError(
                    f"{self.path}/items.parquet: {file.metadata.num_rows} rows, the manifest says {self.entry.rows}."
                )
            self._parquet = file
        return self._parquet

    @staticmethod
    def _group_starts(file: Any) -> IntArray:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        return np.cumsum([0, *sizes[:-1]]).astype(np.int64)


def write_segment(
    folder: Path,
    generation: int,
    blocks: Iterable[Block],
    dim: int,
    recipe: Recipe | None = None,
    progress: Progress = no_progress,
    as_stored: bool = False,
    asking: FloatArray | None = None,
) -> tuple[SegmentEntry | None, dict[str, int]]:
    """Write a segment from blocks of items; memory holds one block, the ids, and what the recipe's backend needs.

    Args:
        folder: the index folder.
        generation: of the change that adds the segment.
        blocks: (ids (m,) int64, vectors (m, d) float32, item table of m rows).
        dim: the d expected.
        recipe: how it is stored and what is built beside the rows; None: float32 rows for the manifest's backend.
        progress: told how far the backend's files are.
        as_stored: the vectors are rows of an index of the recipe's row dtype, and stay bit for bit as they are.
        asking: (j, d) float32 directions that queries come from, for byte codes; see `byte_head.py`. Not modified.

    Returns:
        The entry for the manifest (None when there was no row) and the number of rows by modality. The segment lies
        under its final name, synced, but is no part of the index before the manifest names it.

    Raises:
        InputError: an id twice, a bad vector, a column is missing, a recipe that the backend cannot follow.
    """
    backend = None if recipe is None else INDEXES[recipe.backend]
    draft = folder / "segments" / f".draft-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        row_dtype = "float32" if recipe is None else recipe.row_dtype
        ids, modalities = _write_items(draft, blocks, dim, row_dtype, as_stored)
        if not ids.size:
            return None, {}
        write_attributes(draft)
        if asking is not None and asking.size:
            np.save(draft / ASKING, asking.astype(np.float32), allow_pickle=False)
        if recipe is not None and backend is not None:
            backend.build_files(draft, recipe.build, progress)
            if recipe.byte_codes and not (draft / CODES).exists():
                write_codes(draft, progress=progress)
            ids = np.load(draft / "ids.npy", allow_pickle=False)
        order = np.argsort(ids, kind="stable")
        # half the bytes, where the format version says so already
        small = recipe is not None and ids.size < 2**31
        np.save(draft / "order.npy", order.astype(np.int32) if small else order, allow_pickle=False)
        entry = _publish(folder, draft, generation, ids)
        return replace(entry, backend=recipe.backend if recipe is not None else ""), modalities
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_items(
    draft: Path, blocks: Iterable[Block], dim: int, row_dtype: str, as_stored: bool
) -> tuple[IntArray, dict[str, int]]:
    """Write vectors.npy, ids.npy and items.parquet; gives the ids and the number of rows by modality."""
    import pyarrow.parquet as pq

    kept_ids: list[IntArray] = [np.empty(0, dtype=np.int64)]
    modalities: dict[str, int] = {}
    writer: Any = None
    try:
        with (draft / "vectors.npy").open("wb") as stream:
            stream.write(b"\0" * _HEADER_BYTES)
            for ids, vectors, table in blocks:
                rows = vectors.astype(row_dtype) if as_stored else stored_rows(vectors, "vectors", dim, row_dtype)
                check_ids(ids, rows.shape[0])
                part = _item_rows(table, ids)
                stream.write(rows.data)
                if writer is None:
                    writer = pq.ParquetWriter(draft / "items.parquet", part.schema)
                writer.write_table(part.cast(writer.schema), row_group_size=_GROUP_ROWS)
                kept_ids.append(ids)
                for modality in part["modality"].to_pylist():
                    modalities[modality] = modalities.get(modality, 0) + 1
            all_ids = np.concatenate(kept_ids)
            _write_npy_header(stream, (all_ids.size, dim), row_dtype)
    finally:
        if writer is not None:
            writer.close()
    check_ids(all_ids, all_ids.size)
    np.save(draft / "ids.npy", all_ids, allow_pickle=False)
    return all_ids, dict(sorted(modalities.items()))


def _publish(folder: Path, draft: Path, generation: int, ids: IntArray) -> SegmentEntry:
    """Sync a draft and give it its name."""
    digest = hash_ids(ids)
    files = {}
    for path in sorted(draft.iterdir()):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        files[path.name] = describe_file(path)
    sync_folder(draft)
    name = f"{generation:06d}-{digest[:8]}"
    final = folder / "segments" / name
    shutil.rmtree(final, ignore_errors=True)  # left by a change that never got its manifest
    draft.replace(final)
    sync_folder(final.parent)
    return SegmentEntry(name=name, rows=int(ids.size), files=files, ids_sha256=digest)


def count_values(column: pa.ChunkedArray) -> dict[str, int]:
    """Count the values of a column: value -> how often."""
    return {str(pair["values"]): int(pair["counts"]) for pair in column.value_counts().to_pylist()}


def take_rows(table: pa.Table, rows: IntArray) -> pa.Table:
    """Give rows of a table in the order asked for; a few are sliced out, which saves importing Arrow's functions.

    Args:
        table: Not modified.
        rows: (m,) int64 row numbers. Not modified.
    """
    import pyarrow as pa

    if 0 < rows.size <= _FEW_ROWS:
        return pa.concat_tables([table.slice(row, 1) for row in rows.tolist()])
    return table.take(pa.array(rows, type=pa.int64()))


def hash_ids(ids: IntArray) -> str:
    """SHA-256 of ids as little-endian int64 in row order."""
    return hashlib.sha256(np.ascontiguousarray(ids, dtype="<i8").tobytes()).hexdigest()


def _item_rows(table: pa.Table, ids: IntArray) -> pa.Table:
    """Check a block's item table and leave out the ledger's columns."""
    missing = [name for name in REQUIRED_COLUMNS if name not in table.column_names]
    if missing:
        raise InputError(f"item table: the column {missing[0]!r} is missing. It has: {', '.join(table.column_names)}.")
    if not np.array_equal(table["id"].to_numpy(), ids):
        raise MismatchError(f"item table: its {table.num_rows} ids are not those of the {ids.size} vectors beside it.")
    return table.drop_columns([name for name in LEDGER_COLUMNS if name in table.column_names])


def _write_npy_header(stream: BinaryIO, shape: tuple[int, int], dtype: str) -> None:
    """Write the header of a .npy file over the room left at its start."""
    text = f"{{'descr': '{np.dtype(dtype).newbyteorder('<').str}', 'fortran_order': False, 'shape': {shape}, }}"
    stream.seek(0)
    stream.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", _HEADER_BYTES - 10))
    stream.write(text.ljust(_HEADER_BYTES - 11).encode("ascii") + b"\n")


def _map_bytes(path: Path) -> mmap.mmap:
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
