"""The contract of an index backend, and what makes every backend's answers the same numbers.

A backend holds n unit rows with their ids and proposes candidates for a query; the base class scores the candidates
exactly, in float64 from the stored rows, orders them by (score, id) and, for exact backends, proves that no other row
belongs into the answer (docs/adr/0040-exact-scores.md). So scores depend on neither backend nor batch nor threads.

FAISS's thread pool does not survive a fork: start worker processes by spawn or forkserver when a search ran before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from bindsearch.errors import InputError, ShapeError, UnsupportedError
from bindsearch.index.checks import check_ids, map_array, unit_queries, unit_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.types import FloatArray, IntArray

    BoolArray = NDArray[np.bool_]

ABILITIES = ("add", "remove", "selector")

_OVERFETCH = 16
_BLOCK_BYTES = 64 << 20


class IndexBackend(ABC):
    """n unit rows with ids; answers the k best rows of a batch of queries.

    Attributes:
        name: the registered name.
        abilities: which of ABILITIES this backend has; the others raise UnsupportedError.
        exact: whether `_scan` sees every row, so that the answer is proven to be the true one.

    Backends are read-only for readers: `search` may be called from many threads at once.
    """

    name: ClassVar[str]
    abilities: ClassVar[frozenset[str]] = frozenset(ABILITIES)
    exact: ClassVar[bool] = True

    def __init__(self, rows: FloatArray, ids: IntArray, order: IntArray | None = None) -> None:
        """Take over rows that were checked; see `build` for rows that were not.

        Args:
            rows: (n, d) float32, C-contiguous unit rows; may be memory-mapped. Not modified.
            ids: (n,) int64, each once. Not modified.
            order: (n,) int64, positions of the rows in ascending order of id; computed where None.
        """
        self._rows, self._ids = rows, ids
        self._order = np.argsort(ids, kind="stable") if order is None else order
        self._alive: BoolArray | None = None

    # ---- building ----------------------------------------------------------------------------------------------------

    @classmethod
    def build(cls, ids: IntArray, vectors: FloatArray) -> Self:
        """Build an index in memory.

        Args:
            ids: (n,) int64 in [0, 2**63), each once. Not modified.
            vectors: (n, d) float32, finite, no zero rows; normalised in a copy. Not modified.

        Raises:
            ShapeError: wrong shape or dtype.
            InputError: an id twice, a row that is not finite or is zero.
        """
        rows = unit_rows(vectors, "vectors")
        check_ids(ids, rows.shape[0])
        return cls(rows, ids.copy())

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open what `save` wrote, memory-mapped and read-only.

        Raises:
            FileNotFoundError: a file is missing.
            InputError: a file is truncated or not of the expected kind.
        """
        rows = map_array(folder / "vectors.npy", "float32", 2)
        ids = map_array(folder / "ids.npy", "int64", 1)
        order = map_array(folder / "order.npy", "int64", 1)
        if not rows.shape[0] == ids.shape[0] == order.shape[0]:
            raise InputError(
                f"{folder}: vectors.npy has {rows.shape[0]} rows, ids.npy {ids.shape[0]}, order.npy {order.shape[0]}. "
                "The files are not from one build; build the index again: bindsearch index EMBEDDINGS -o INDEX"
            )
        return cls(rows, ids, order)

    def save(self, folder: Path) -> None:
        """Write the living rows to a folder: vectors.npy, ids.npy, order.npy."""
        folder.mkdir(parents=True, exist_ok=True)
        keep = slice(None) if self._alive is None else self._alive
        ids = np.ascontiguousarray(self._ids[keep])
        np.save(folder / "vectors.npy", np.ascontiguousarray(self._rows[keep]), allow_pickle=False)
        np.save(folder / "ids.npy", ids, allow_pickle=False)
        np.save(folder / "order.npy", np.argsort(ids, kind="stable"), allow_pickle=False)

    # ---- facts -------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Count the rows that are not removed."""
        return int(self._ids.shape[0]) if self._alive is None else int(np.count_nonzero(self._alive))

    @property
    def dim(self) -> int:
        """The number of columns d."""
        return int(self._rows.shape[1])

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
        found = np.searchsorted(self._ids, ids, sorter=self._order)
        rows = np.asarray(self._order[np.minimum(found, count - 1)], dtype=np.int64)
        missing = self._ids[rows] != ids
        if self._alive is not None:
            missing |= ~self._alive[rows]
        return np.where(missing, -1, rows)

    def rows(self, ids: IntArray) -> FloatArray:
        """Give the stored unit rows of ids.

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
        return self._rows[where]

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
        rows = unit_rows(vectors, "vectors", self.dim)
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
        where = np.unique(self.positions(ids))
        where = where[where >= 0]
        if where.size:
            alive = self.alive
            alive[where] = False
            self._alive = alive
        return int(where.size)

    def _refuse_unless(self, ability: str) -> None:
        if ability not in self.abilities:
            raise UnsupportedError(f"index backend {self.name!r} cannot {ability}. 'faiss-flat' can.")

    # ---- search ------------------------------------------------------------------------------------------------------

    def search(
        self, queries: FloatArray, k: int, selector: BoolArray | IntArray | None = None
    ) -> tuple[FloatArray, IntArray]:
        """Find the k best rows of each query.

        Args:
            queries: (q, d) float32, finite, no zero rows; normalised in a copy. Not modified.
            k: at least 1; may exceed the number of rows.
            selector: (n,) bool over the stored rows, or (m,) int64 ids, of the rows that may be answers; None: all.

        Returns:
            scores (q, k) float32 cosines, higher is better, -inf where there is no answer; ids (q, k) int64, -1 there.
            Equal scores stand in ascending order of id.

        Raises:
            ShapeError: wrong shape or dtype of the queries or the selector; both numbers are named.
            InputError: k below 1, a query that is not finite or is zero.
            UnsupportedError: a selector where the backend has none.
        """
        units = unit_queries(queries, self.dim)
        if k < 1:
            raise InputError(f"k: expected at least 1, got {k}.")
        mask = self._mask(selector)
        allowed = int(self._ids.shape[0]) if mask is None else int(np.count_nonzero(mask))
        scores = np.full((units.shape[0], k), -np.inf, dtype=np.float32)
        ids = np.full((units.shape[0], k), -1, dtype=np.int64)
        if allowed == 0 or units.shape[0] == 0:
            return scores, ids
        fetch = min(allowed, k + max(_OVERFETCH, k // 4))
        step = max(1, _BLOCK_BYTES // (8 * self.dim * fetch))
        for start in range(0, units.shape[0], step):
            part = slice(start, start + step)
            self._search_block(units[part], fetch, mask, allowed, (scores[part], ids[part]))
        return scores, ids

    def _search_block(
        self,
        units: NDArray[np.float64],
        fetch: int,
        mask: BoolArray | None,
        allowed: int,
        out: tuple[FloatArray, IntArray],
    ) -> None:
        """Answer queries that fit in memory together. Overwrites `out`: scores and ids, (q, k) each."""
        coarse, places = self._scan(units.astype(np.float32), fetch, mask)
        exact = self._exact_scores(units, places)
        k = out[0].shape[1]
        for row in range(units.shape[0]):
            here, score = places[row], exact[row]
            if self.exact and fetch < allowed and not self._is_proven(coarse[row], score, k):
                here, score = self._widen(units[row : row + 1], score, k, mask)
            here, score = here[here >= 0], score[here >= 0]
            ids = self._ids[here]
            best = np.lexsort((ids, -score))[:k]
            out[0][row, : best.size], out[1][row, : best.size] = score[best], ids[best]

    def _margin(self) -> float:
        """Bound the error of a float32 dot product of two unit vectors: d additions, each rounded once."""
        return (self.dim + 2) * 2.0**-24

    def _is_proven(self, coarse: FloatArray, exact: FloatArray, k: int) -> bool:
        """Say whether every row outside the candidates must score below the k-th candidate."""
        kth = np.partition(exact, exact.size - k)[exact.size - k]
        return bool(float(coarse[-1]) + 2 * self._margin() < float(kth))

    def _widen(
        self, unit: NDArray[np.float64], exact: FloatArray, k: int, mask: BoolArray | None
    ) -> tuple[IntArray, FloatArray]:
        """Collect every row that may reach the k-th score (ties, near ties) and score it exactly."""
        bar = float(np.partition(exact, exact.size - k)[exact.size - k]) - 2 * self._margin()
        query, found = unit.astype(np.float32), []
        for start, block in self.blocks():
            reach = (query @ block.T)[0] >= bar
            if mask is not None:
                reach &= mask[start : start + block.shape[0]]
            found.append(np.flatnonzero(reach) + start)
        places = np.concatenate(found)
        step = max(1, _BLOCK_BYTES // (8 * self.dim))
        parts = [self._exact_scores(unit, places[None, at : at + step])[0] for at in range(0, places.size, step)]
        return places, np.concatenate(parts)

    def _exact_scores(self, units: NDArray[np.float64], places: IntArray) -> FloatArray:
        """Score rows in float64, rounded to float32 once; the sum's order depends on d alone.

        Args:
            units: (q, d) float64 unit rows. Not modified.
            places: (q, m) int64 row positions, -1 for none. Not modified.

        Returns:
            (q, m) float32; -inf for none.
        """
        rows = self._rows[np.maximum(places, 0)].astype(np.float64)  # (q, m, d)
        rows *= units[:, None, :]
        scores = np.clip(rows.sum(axis=2), -1.0, 1.0).astype(np.float32)
        return np.where(places < 0, np.float32(-np.inf), scores)

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
        """Iterate over (first position, rows) in blocks that fit a cache-sized share of memory."""
        step = max(1, _BLOCK_BYTES // (4 * self.dim))
        for start in range(0, self._rows.shape[0], step):
            yield start, self._rows[start : start + step]

    @abstractmethod
    def _scan(self, queries: FloatArray, fetch: int, mask: BoolArray | None) -> tuple[FloatArray, IntArray]:
        """Propose candidates.

        Args:
            queries: (q, d) float32 unit rows. Not modified.
            fetch: how many, at most the number of rows allowed by the mask.
            mask: (n,) bool of the rows allowed, or None for all. Not modified.

        Returns:
            scores (q, fetch) float32 in descending order, positions (q, fetch) int64; -1 for none. Exact backends give
            the `fetch` best by a float32 dot product.
        """
