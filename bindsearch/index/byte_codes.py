"""A derived file of int8 codes a row: exact search reads a half or a quarter of the bytes of the rows themselves.

Of each block of rows there is a scale s; a row x has the codes c and the residual e = x - s c, whose length is stored,
rounded up. A query u has the codes p with the step t, and f = u - t p. In real numbers

    <u, x> = t s <p, c> + <f, x> + t <p, e>,      so      |<u, x> - t s <p, c>| <= |f| max|x| + |t p| |e|:

the bound of `byte_table.py` with the slack |e|, the weight |t p| and the fixed |f| max|x|. It holds for every row and
every query; nothing about it is probable. A heavy row does not spoil its block: beyond twice the median peak of a block
codes are cut off, and the residual says so.

Beside the codes of all columns stand heads (`byte_head.py`), codes of the leading directions, that rule most rows out
where queries and rows agree on few directions.

What float arithmetic may lose. N = <p, c> is an exact integer below 2**31 (d <= 2**17). Lengths are rounded up
(`byte_table.up`). The rest is a handful of float64 operations on numbers below 4, wrong by less than 1e-14, and the
float64 score itself, wrong by less than (d + 2) 2**-53 and rounded to float32 once, by at most 2**-25: rows are held
against the k-th score less 2**-23, which covers all of it (docs/adr/0095-exact-by-byte-codes.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import InputError
from bindsearch.index.byte_head import Directions, off_orthonormal
from bindsearch.index.byte_table import BLOCK_ROWS, LEVELS, Asked, ByteTable, quantise, up
from bindsearch.index.checks import map_array, wide_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from bindsearch.index.byte_table import Wide
    from bindsearch.types import FloatArray, IntArray

FACTS = "codes.json"
FORMAT = 1
HEAD_WIDTH = 128
"""Directions of a head where nobody says otherwise: an eighth of 1024 columns (docs/adr/0096-heads.md)."""

_CHUNK_BLOCKS = 16
_SAMPLE_ROWS = 16384
HEAD_FROM_DIM = 4 * HEAD_WIDTH
HEAD_FROM_ROWS = 32768
_LONGEST = 1.1
_WIDEST = 1 << 17


@dataclass(frozen=True)
class ByteCodes:
    """Codes of n rows, in the order of the rows.

    Attributes:
        full: codes of all d columns; one slack.
        means: (blocks, d) int8, each block's mean code: says where a query's best rows may be, proves nothing.
        longest: the greatest length of a row, rounded up.
        heads: codes of leading directions, or None.
        directions: what heads are made with, or None.
        longest_head: the greatest length of the part of a row that its head codes stand for, rounded up.
    """

    full: ByteTable
    means: Any
    longest: float
    heads: ByteTable | None = None
    directions: Directions | None = None
    longest_head: float = 0.0

    def __len__(self) -> int:
        """Count the rows."""
        return int(self.full.codes.shape[0])

    @property
    def dim(self) -> int:
        """The number of columns d of the rows."""
        return int(self.full.codes.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of everything that stands beside the rows."""
        tables = [self.full] if self.heads is None else [self.full, self.heads]
        parts = [part for table in tables for part in (table.codes, table.scales, table.slacks, table.tops)]
        return sum(int(part.nbytes) for part in parts) + int(self.means.nbytes)

    def ask(self, units: Wide) -> Asked:
        """Code queries for `full`: (q, d) float64 unit rows. Not modified."""
        codes, steps = quantise(units, np.abs(units).max(axis=1))
        coded = codes * steps[:, None]
        lost = up(np.linalg.norm(units - coded, axis=1)).astype(np.float64)
        weights = up(np.linalg.norm(coded, axis=1)).astype(np.float64)
        return Asked(codes, steps, lost * self.longest, weights[:, None])

    def ask_heads(self, units: Wide) -> Asked:
        """Code queries for `heads`: (q, d) float64 unit rows. Not modified."""
        if self.directions is None:
            raise InputError("byte codes: built without heads. Build them again with head_width > 0.")
        return self.directions.ask(units, self.longest_head)

    @classmethod
    def build(
        cls,
        folder: Path,
        rows: Any,
        head_width: int | None = None,
        asking: FloatArray | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> ByteCodes:
        """Write the codes of rows into a folder, in blocks; memory holds one chunk of 8192 rows.

        Args:
            folder: where; its other files are left alone.
            rows: (n, d) float32 or float16 unit rows, n >= 1; may be memory-mapped. Not modified.
            head_width: directions of the heads; 0: none; None: HEAD_WIDTH where there are enough rows and columns.
            asking: (j, d) float32 directions that heads hold first: means of queries of modalities that will ask.
            progress: called with (stage, done, total) rows.

        Raises:
            InputError: rows that are no unit rows, more than 2**17 columns, or a head_width that cannot be meant.
        """
        count, dim = rows.shape
        if head_width is None:
            head_width = HEAD_WIDTH if dim >= HEAD_FROM_DIM and count >= HEAD_FROM_ROWS else 0
        if not 0 <= head_width <= dim or dim > _WIDEST:
            raise InputError(
                f"byte codes: expected at most {_WIDEST} columns and 0 <= head_width <= columns, "
                f"got {dim} columns and head_width {head_width}."
            )
        directions = None
        if head_width:
            wide = None if asking is None else asking.astype(np.float64)
            directions = Directions.find(_sample(rows), head_width, wide)
        _write(folder, rows, directions, progress)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> ByteCodes:
        """Open what `build` wrote, memory-mapped and read-only.

        Raises:
            FileNotFoundError: a file is missing.
            InputError: a file is truncated, of another format, or not of one build with the others.
        """
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if facts.get("format") != FORMAT:
            raise InputError(f"{folder / FACTS}: expected format {FORMAT}, got {facts.get('format')}. Build it again.")
        count, dim, width = int(facts["rows"]), int(facts["dim"]), int(facts["head_width"])
        blocks = -(-count // BLOCK_ROWS)
        full = ByteTable(
            _mapped(folder / "codes.npy", "int8", (count, dim)),
            _mapped(folder / "codes_scales.npy", "float32", (blocks,)),
            _mapped(folder / "codes_slacks.npy", "float32", (count, 1)),
            _mapped(folder / "codes_tops.npy", "float32", (blocks, 1)),
        )
        means = _mapped(folder / "codes_means.npy", "int8", (blocks, dim))
        if not width:
            return cls(full, means, float(facts["longest"]))
        basis = _mapped(folder / "heads_basis.npy", "float32", (width, dim))
        scale = float(facts["head_scale"])
        heads = ByteTable(
            _mapped(folder / "heads.npy", "int8", (count, width)),
            np.full(blocks, scale, dtype=np.float32),
            _mapped(folder / "heads_slacks.npy", "float32", (count, 2)),
            _mapped(folder / "heads_tops.npy", "float32", (blocks, 2)),
        )
        directions = Directions(basis, scale, off_orthonormal(basis))
        return cls(full, means, float(facts["longest"]), heads, directions, float(facts["longest_head"]))


def _mapped(path: Path, dtype: str, shape: tuple[int, ...]) -> Any:
    """Map a file, refusing another shape than the facts say."""
    array = map_array(path, dtype, len(shape))
    if array.shape != shape:
        raise InputError(f"{path}: expected shape {shape}, got {array.shape}. Build the index again.")
    return array


def _sample(rows: Any) -> Wide:
    """Give at most _SAMPLE_ROWS rows from all over, (m, d) float64."""
    step = max(1, rows.shape[0] // _SAMPLE_ROWS)
    return wide_rows(np.ascontiguousarray(rows[::step][:_SAMPLE_ROWS])).astype(np.float64)


def _chunks(rows: Any) -> Iterator[tuple[int, Wide]]:
    step = _CHUNK_BLOCKS * BLOCK_ROWS
    for start in range(0, rows.shape[0], step):
        yield start, wide_rows(rows[start : start + step]).astype(np.float64)


def _write(
    folder: Path, rows: Any, directions: Directions | None, progress: Callable[[str, int, int], None] | None
) -> None:
    """Write every file, one chunk of rows after the other; the facts last."""
    count, dim = rows.shape
    blocks = -(-count // BLOCK_ROWS)
    width = 0 if directions is None else directions.basis.shape[0]

    def fresh(name: str, dtype: str, *shape: int) -> Any:
        return np.lib.format.open_memmap(folder / name, mode="w+", dtype=np.dtype(dtype), shape=shape)

    codes, means = fresh("codes.npy", "int8", count, dim), fresh("codes_means.npy", "int8", blocks, dim)
    scales, slacks = fresh("codes_scales.npy", "float32", blocks), fresh("codes_slacks.npy", "float32", count, 1)
    tops = fresh("codes_tops.npy", "float32", blocks, 1)
    arrays = [codes, means, scales, slacks, tops]
    if directions is not None:
        heads, head_slacks = fresh("heads.npy", "int8", count, width), fresh("heads_slacks.npy", "float32", count, 2)
        head_tops = fresh("heads_tops.npy", "float32", blocks, 2)
        arrays += [heads, head_slacks, head_tops]
    longest = longest_head = 0.0
    for start, chunk in _chunks(rows):
        here = slice(start, start + chunk.shape[0])
        there = slice(start // BLOCK_ROWS, -(-here.stop // BLOCK_ROWS))
        longest = max(longest, float(up(np.sqrt(np.einsum("ij,ij->i", chunk, chunk).max(keepdims=True)))[0]))
        if not longest <= _LONGEST:
            raise InputError(f"byte codes: expected unit rows, got one of the length {longest:.4g} before {here.stop}.")
        edges = np.arange(0, chunk.shape[0], BLOCK_ROWS)
        if directions is not None:
            heads[here], head_slacks[here], length = directions.code(chunk)
            head_tops[there] = np.maximum.reduceat(head_slacks[here], edges, axis=0)
            longest_head = max(longest_head, length)
        codes[here], scales[there], slacks[here], means[there] = _code(chunk, edges)
        tops[there] = np.maximum.reduceat(slacks[here], edges, axis=0)
        if progress is not None:
            progress("codes", here.stop, count)
    for array in arrays:
        array.flush()
    facts = {"format": FORMAT, "rows": count, "dim": dim, "longest": longest, "head_width": width}
    if directions is not None:
        np.save(folder / "heads_basis.npy", directions.basis, allow_pickle=False)
        facts.update(head_scale=directions.scale, longest_head=longest_head)
    (folder / FACTS).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _code(chunk: Wide, edges: IntArray) -> tuple[Any, FloatArray, FloatArray, Any]:
    """Code a chunk of whole blocks. Overwrites chunk: the residuals.

    Returns:
        codes (m, d) int8, scales (blocks,) float32, slacks (m, 1) float32, mean codes (blocks, d) int8.
    """
    peaks = np.abs(chunk).max(axis=1)
    sizes = np.diff(np.append(edges, chunk.shape[0]))
    middles = np.array([np.median(peaks[at : at + size]) for at, size in zip(edges, sizes, strict=True)])
    ends = np.minimum(np.maximum.reduceat(peaks, edges), 2 * middles)
    scales = (np.where(ends > 0, ends, 1.0) / LEVELS).astype(np.float32)
    steps = np.repeat(scales.astype(np.float64), sizes)[:, None]
    whole = chunk / steps
    np.rint(whole, out=whole)
    np.clip(whole, -LEVELS, LEVELS, out=whole)
    codes = whole.astype(np.int8)
    means = np.rint(np.add.reduceat(whole, edges, axis=0) / sizes[:, None]).astype(np.int8)
    whole *= steps
    chunk -= whole
    slacks = up(np.sqrt(np.einsum("ij,ij->i", chunk, chunk)))[:, None]
    return codes, scales, slacks, means
