"""Unit rows with their ids: what every backend holds, in memory or memory-mapped, some of them removed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bindsearch.errors import InputError, MismatchError, ShapeError, UnsupportedError
from bindsearch.index.checks import check_ids, stored_rows, wide_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.types import BoolArray, FloatArray, IntArray

    RowArray = NDArray[np.float32] | NDArray[np.float16]

ABILITIES = ("add", "remove", "selector")

_BLOCK_BYTES = 64 << 20


class StoredRows:
    """n unit rows with ids: found by id, added, removed, chosen by a selector, read in blocks.

    Attributes:
        name: of the backend that holds them, for messages.
        abilities: which of ABILITIES it has; the others raise UnsupportedError.
    """

    name: ClassVar[str]
    abilities: ClassVar[frozenset[str]] = frozenset(ABILITIES)

    def __init__(self, rows: RowArray, ids: IntArray, order: IntArray | None = None) -> None:
        """Take over rows that were checked.

        Args:
            rows: (n, d) float32 or float16, C-contiguous unit rows; may be memory-mapped. Not modified.
            ids: (n,) int64, each once. Not modified.
            order: (n,) int64 or int32, positions of the rows in ascending order of id; computed where None.
        """
        self._rows, self._ids = rows, ids
        self._order = np.argsort(ids, kind="stable") if order is None else order
        self._alive: BoolArray | None = None

    # ---- facts -------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Count the rows that are not removed."""
        return int(self._ids.shape[0]) if self._alive is None else int(np.count_nonzero(self._alive))

    @property
    def dim(self) -> int:
        """The number of columns d."""
        return int(self._rows.shape[1])

    @property
    def row_dtype(self) -> str:
        """How rows are stored: "float32" or "float16"."""
        return str(self._rows.dtype.name)

    @property
    def ids(self) -> IntArray:
        """(n,) int64 ids of all stored rows, removed ones included, in row order. Not to be modified."""
        return self._ids

    @property
    def alive(self) -> BoolArray:
        """(n,) bool: which stored rows are not removed. A copy."""
        return np.ones(self._ids.shape[0], dtype=bool) if self._alive is None else self._alive.copy()

    def positions(self, ids: IntArray) -> IntArray:
        """Find the rows of ids.

        Args:
            ids: (m,) int64. Not modified.

        Returns:
            (m,) int64 row positions; -1 where an id is unknown or removed.
        """
        count = self._ids.shape[0]
        if count == 0:
            return np.full(ids.shape[0], -1, dtype=np.int64)
        try:
            found = np.searchsorted(self._ids, ids, sorter=self._order)
        except ValueError as error:
            raise MismatchError(f"order.npy: does not sort the ids ({error}). Build the index again.") from error
        rows = np.asarray(self._order[np.minimum(found, count - 1)], dtype=np.int64)
        missing = self._ids[rows] != ids
        if self._alive is not None:
            missing |= ~self._alive[rows]
        return np.where(missing, -1, rows)

    def rows(self, ids: IntArray) -> FloatArray:
        """Give the stored rows of ids; rows of float16 are unit to within `recipe.norm_tolerance`.

        Args:
            ids: (m,) int64. Not modified.

        Returns:
            (m, d) float32, a copy.

        Raises:
            InputError: an id is unknown or removed.
        """
        where = self.positions(ids)
        if (where < 0).any():
            raise InputError(f"index: no item has the id {int(ids[np.argmin(where)])}.")
        return np.asarray(self._rows[where], dtype=np.float32)

    # ---- change (in memory) ------------------------------------------------------------------------------------------

    def add(self, ids: IntArray, vectors: FloatArray) -> None:
        """Append rows in memory. Overwrites nothing on disk.

        Args:
            ids: (m,) int64, new and each once. Not modified.
            vectors: (m, d) float32. Not modified.

        Raises:
            InputError, ShapeError: as in `build`, or an id is already there.
            UnsupportedError: the index is memory-mapped; an index folder adds a segment instead.
        """
        self._refuse_unless("add")
        if not self._rows.flags.writeable:
            raise UnsupportedError(
                f"{self.name}: a memory-mapped index is read-only. Add to its folder: SearchIndex.add(store)."
            )
        rows = stored_rows(vectors, "vectors", self.dim, self.row_dtype)
        check_ids(ids, rows.shape[0])
        known = np.isin(ids, self._ids)
        if known.any():
            raise InputError(f"index: the id {int(ids[np.argmax(known)])} is already there. Remove it first.")
        alive = None if self._alive is None else np.concatenate([self._alive, np.ones(ids.shape[0], dtype=bool)])
        self._rows, self._ids = np.concatenate([self._rows, rows]), np.concatenate([self._ids, ids])
        self._order, self._alive = np.argsort(self._ids, kind="stable"), alive

    def remove(self, ids: IntArray) -> int:
        """Take rows out of every later answer; the stored rows stay until `save`.

        Args:
            ids: (m,) int64; unknown ones are passed over. Not modified.

        Returns:
            How many rows were removed.
        """
        self._refuse_unless("remove")
        where = self.positions(ids)
        alive, before = self.alive, len(self)
        alive[where[where >= 0]] = False
        if int(np.count_nonzero(alive)) < before:
            self._alive = alive
        return before - len(self)

    def _refuse_unless(self, ability: str) -> None:
        if ability not in self.abilities:
            raise UnsupportedError(f"index backend {self.name!r} cannot {ability}. 'faiss-flat' can.")

    # ---- choosing ----------------------------------------------------------------------------------------------------

    def _count(self, mask: BoolArray | None) -> int:
        return int(self._ids.shape[0]) if mask is None else int(np.count_nonzero(mask))

    def _mask(self, selector: BoolArray | IntArray | None) -> BoolArray | None:
        """Turn a selector and the removed rows into one mask; None means every row."""
        if selector is None:
            return self._alive
        self._refuse_unless("selector")
        count = self._ids.shape[0]
        if selector.dtype == np.bool_:
            if selector.shape != (count,):
                raise ShapeError(f"selector: expected shape ({count},), got {selector.shape}.")
            chosen = selector.astype(bool)
            return chosen if self._alive is None else chosen & self._alive
        if selector.dtype != np.int64 or selector.ndim != 1:
            raise ShapeError(
                f"selector: expected ({count},) bool or (m,) int64, got {selector.shape} {selector.dtype}."
            )
        where = self.positions(selector.astype(np.int64))
        mask = np.zeros(count, dtype=bool)
        mask[where[where >= 0]] = True
        return mask

    def blocks(self) -> Iterator[tuple[int, FloatArray]]:
        """Iterate over (first position, (m, d) float32 rows) in blocks that fit a cache-sized share of memory."""
        step = max(1, _BLOCK_BYTES // (4 * self.dim))
        for start in range(0, self._rows.shape[0], step):
            yield start, wide_rows(self._rows[start : start + step])
