"""One shard: float16 rows, a table of items, and the done-file that commits them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import BindSearchError, InputError
from bindsearch.store.files import Guard, commit_bytes, commit_json, read_json, read_parquet
from bindsearch.store.identity import FORMAT, FORMAT_VERSION, Identity, check_format
from bindsearch.types import check_shape

if TYPE_CHECKING:
    import pyarrow as pa

    from bindsearch.types import FloatArray, IntArray

DONE_ENDING = ".done.json"
LARGEST_FLOAT16_NORM_ERROR = 2e-3
"""A unit row rounded to float16 keeps its norm within this; further off means that it is no unit row."""


def item_schema() -> pa.Schema:
    """Give the columns of the item table, in order."""
    import pyarrow as pa

    text, whole, real = pa.string(), pa.int64(), pa.float64()
    return pa.schema(
        [
            pa.field("id", whole, nullable=False),
            pa.field("key", text, nullable=False),
            pa.field("modality", text, nullable=False),
            pa.field("start_s", real),
            pa.field("end_s", real),
            pa.field("source", text, nullable=False),
            pa.field("member", text),
            pa.field("size", whole),
            pa.field("mtime", real),
            pa.field("sha256", text),
            pa.field("norm", pa.float32()),
            pa.field("status", text, nullable=False),
            pa.field("reason", text),
            pa.field("stage", text),
            pa.field("caption", text),
            pa.field("group", text),
            pa.field("attributes", text),
        ]
    )


@dataclass(frozen=True)
class Shard:
    """A committed shard, as its done-file tells.

    Attributes:
        folder, name: where it lies: <folder>/<name>.npy, .parquet and .done.json.
        rows: rows of the vectors, which are the first rows of the table, in the same order.
        bad: rows of the table after those: bad inputs, without a vector.
        dim: joint dimension d.
        files: size and checksum by file name.
    """

    folder: Path
    name: str
    rows: int
    bad: int
    dim: int
    files: Mapping[str, Mapping[str, Any]]

    @classmethod
    def load(cls, folder: Path, name: str) -> Shard:
        """Read a done-file and check that the files it vouches for are there with their sizes.

        Raises:
            BindSearchError: no done-file, or a file is missing or has another size.
        """
        path = folder / (name + DONE_ENDING)
        if not path.exists():
            raise BindSearchError(
                f"{path}: not there. Run the same `bindsearch embed` again: it makes this shard anew."
            )
        data = read_json(path)
        check_format(data, path)
        shard = cls(folder, name, data["rows"], data["bad"], data["dim"], data["files"])
        for file, facts in shard.files.items():
            there = folder / file
            size = there.stat().st_size if there.is_file() else None
            if size != facts["bytes"]:
                raise shard.damaged(there, f"{facts['bytes']} bytes", "no file" if size is None else f"{size} bytes")
        return shard

    def damaged(self, path: Path, expected: str, got: str) -> BindSearchError:
        """Build the error for a file that is not what the done-file says."""
        return BindSearchError(
            f"{path}: expected {expected}, got {got}: truncated or altered since it was written. Delete "
            f"{self.folder / (self.name + DONE_ENDING)} and run the same `bindsearch embed` again: it makes this shard "
            "anew."
        )

    def read_checked(self, ending: str) -> bytes:
        """Read one of the shard's files and compare its checksum.

        Raises:
            BindSearchError: altered.
        """
        file = self.name + ending
        data = (self.folder / file).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if digest != self.files[file]["sha256"]:
            raise self.damaged(self.folder / file, f"sha256 {self.files[file]['sha256'][:12]}", digest[:12])
        return data

    def half_rows(self) -> np.ndarray:
        """Read the rows as they lie on disk: (rows, d) float16; checksum compared."""
        try:
            rows = np.load(io.BytesIO(self.read_checked(".npy")), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise BindSearchError(f"{self.folder / self.name}.npy: no float16 rows: {error}") from error
        if rows.shape != (self.rows, self.dim) or rows.dtype != np.float16:
            expected = f"({self.rows}, {self.dim}) float16"
            raise self.damaged(self.folder / f"{self.name}.npy", expected, f"{rows.shape} {rows.dtype}")
        return np.asarray(rows)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the item table, good rows first, bad ones after; checksum compared."""
        import pyarrow as pa

        table = read_parquet(pa.BufferReader(self.read_checked(".parquet")), columns)
        if table.num_rows != self.rows + self.bad:
            path = self.folder / f"{self.name}.parquet"
            raise self.damaged(path, f"{self.rows + self.bad} rows", f"{table.num_rows}")
        return table

    def ids(self) -> IntArray:
        """Read the ids of all rows, good ones first, without comparing the checksum of the whole table."""
        table = read_parquet(self.folder / f"{self.name}.parquet", ["id"])
        return np.asarray(table.column("id").to_numpy(), dtype=np.int64)


def commit_shard(
    folder: Path,
    name: str,
    vectors: FloatArray,
    good: Sequence[Mapping[str, Any]],
    bad: Sequence[Mapping[str, Any]],
    identity: Identity,
    guard: Guard | None = None,
) -> Shard:
    """Write a shard: vectors, then the table, then the done-file, which is the commit point.

    Args:
        folder: of the generation.
        name: of the shard.
        vectors: (n, d) float32 or float16 unit rows. Not modified.
        good: n rows of the item table, row i for vector i.
        bad: rows of bad inputs.
        identity: recorded in the table and the done-file.
        guard: see `files.commit_file`.

    Returns:
        The shard as committed. The same input gives the same bytes.

    Raises:
        InputError: rows that are not finite or not of unit length, or counts that differ.
        BindSearchError: the disk is full.
    """
    check_shape(vectors, (len(good), identity.dim), f"{name}: vectors")
    half = vectors.astype(np.float16)
    check_unit(half, name)
    files = {
        f"{name}.npy": commit_bytes(folder / f"{name}.npy", npy_bytes(half), guard),
        f"{name}.parquet": commit_bytes(folder / f"{name}.parquet", _parquet_bytes([*good, *bad], identity), guard),
    }
    done = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "space_id": identity.space_id,
        "dim": identity.dim,
        "rows": len(good),
        "bad": len(bad),
        "files": files,
    }
    commit_json(folder / (name + DONE_ENDING), done, guard)
    return Shard(folder, name, len(good), len(bad), identity.dim, files)


def check_unit(rows: np.ndarray, what: str) -> None:
    """Refuse rows that are not finite or not of unit length to float16 rounding.

    Raises:
        InputError: naming the first such row and its norm.
    """
    norms = np.linalg.norm(rows.astype(np.float32), axis=1)
    wrong = np.flatnonzero(~(np.abs(norms - 1) <= LARGEST_FLOAT16_NORM_ERROR))
    if wrong.size:
        raise InputError(f"{what}: expected unit rows, got norm {norms[wrong[0]]:g} in row {wrong[0]}.")


def npy_bytes(array: np.ndarray) -> bytes:
    """Write an array as the bytes of a .npy file; never pickles."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def _parquet_bytes(rows: Sequence[Mapping[str, Any]], identity: Identity) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = item_schema().with_metadata({"format": FORMAT, "space_id": identity.space_id})
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", version="2.6")
    return bytes(sink.getvalue())
