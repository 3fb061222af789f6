"""The contract of an index backend, and what makes every backend's answers the same numbers.

A backend holds n unit rows with their ids and proposes candidates for a query; the base class scores the candidates
exactly, in float64 from the stored rows, orders them by (score, id) and, for exact backends, proves that no other row
belongs into the answer (docs/adr/0040-exact-scores.md). So scores depend on neither backend nor batch nor threads.
The truth is the float64 product of the unit query with the rows as stored: rows of float16 are rounded unit rows, not
normalised again.

FAISS's thread pool does not survive a fork: start worker processes by spawn or forkserver when a search ran before.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from bindsearch.errors import InputError
from bindsearch.index.checks import check_ids, map_array, stored_rows, unit_queries, wide_rows
from bindsearch.index.recipe import ROW_DTYPES, SearchSettings, check_settings
from bindsearch.index.rows import StoredRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.index.byte_codes import ByteCodes
    from bindsearch.index.rows import RowArray
    from bindsearch.types import BoolArray, FloatArray, IntArray

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) while files are built; what is counted depends on the stage."""

_OVERFETCH = 16
_SPARE = 4  # of candidates that were ranked by float16 products and prove nothing
_NOBODY = np.iinfo(np.int64).max
_CACHE_BYTES = 1 << 20
_BLOCK_BYTES = 64 << 20


def no_progress(stage: str, done: int, total: int) -> None:
    """Show nothing; arguments as of Progress."""


@dataclass(frozen=True)
class ExactReport:
    """What it took to prove the answers of an exact search.

    Attributes:
        rows_touched_full: (q,) int64, rows of each query that were scored from their stored numbers.
        rows_scanned: rows that were looked at in any form, codes included.
        widened: (q,) int64, rows that were scored because the first candidates did not prove the answer; 0: they did.
    """

    rows_touched_full: IntArray
    rows_scanned: int
    widened: IntArray

    def plus(self, other: ExactReport) -> ExactReport:
        """Add the report of the same queries over other rows."""
        return ExactReport(
            self.rows_touched_full + other.rows_touched_full,
            self.rows_scanned + other.rows_scanned,
            self.widened + other.widened,
        )


class IndexBackend(StoredRows, ABC):
    """n unit rows with ids; answers the k best rows of a batch of queries.

    Attributes:
        name: the registered name.
        abilities: which of `rows.ABILITIES` this backend has; the others raise UnsupportedError.
        exact: whether `_scan` sees every row, so that the answer is proven to be the true one.
        settings: the search settings that it reads, with what they are where nobody says.
        asks: whether its files are built for where queries come from, `checks.ASKING` in the folder.
        codes: byte codes of the rows, which `search_exact` reads instead of them; None: there are none.

    Backends are read-only for readers: `search` may be called from many threads at once.
    """

    exact: ClassVar[bool] = True
    settings: ClassVar[Mapping[str, int]] = {}
    asks: ClassVar[bool] = False

    def __init__(self, rows: RowArray, ids: IntArray, order: IntArray | None = None) -> None:
        """Take over rows that were checked, as `StoredRows` does; see `build` for rows that were not."""
        super().__init__(rows, ids, order)
        self._built_with: Mapping[str, Any] = {}
        self.codes: ByteCodes | None = None

    # ---- building ----------------------------------------------------------------------------------------------------

    @classmethod
    def build(
        cls,
        ids: IntArray,
        vectors: FloatArray,
        row_dtype: str = "float32",
        build: Mapping[str, Any] | None = None,
    ) -> Self:
        """Build an index of its own: in memory, or in a temporary folder where the backend has files.

        Args:
            ids: (n,) int64 in [0, 2**63), each once. Not modified.
            vectors: (n, d) float32, finite, no zero rows; normalised in a copy. Not modified.
            row_dtype: how rows are stored.
            build: numbers of the backend; see `build_files`.

        Raises:
            ShapeError: wrong shape or dtype.
            InputError: an id twice, a row that is not finite or is zero, a number that the backend does not know.
        """
        rows = stored_rows(vectors, "vectors", None, row_dtype)
        check_ids(ids, rows.shape[0])
        index = cls(rows, ids.copy())
        index._built_with = dict(build or {})
        if "add" in cls.abilities or not ids.size:
            return index
        folder = Path(tempfile.mkdtemp(prefix="bindsearch-"))
        clean = weakref.finalize(index, shutil.rmtree, folder, ignore_errors=True)
        index.save(folder)
        opened = cls.open(folder)
        opened._built_with = index._built_with
        weakref.finalize(opened, shutil.rmtree, folder, ignore_errors=True)
        clean.detach()
        return opened

    @classmethod
    def build_files(
        cls,
        folder: Path,  # noqa: ARG003 - for backends that have files
        build: Mapping[str, Any],
        progress: Progress = no_progress,  # noqa: ARG003
    ) -> None:
        """Write what the backend needs beside vectors.npy and ids.npy of a draft folder; here nothing.

        A backend may sort the rows: it then replaces both files and writes table_rows.npy, (n,) int32 or int64, the
        place of each row before. Files lie in the page cache; memory of its own stays within 4 GB at 3M x 1024.

        Args:
            folder: holds vectors.npy (n, d) of a row dtype and ids.npy (n,) int64, with n >= 1.
            build: numbers of the recipe.
            progress: told how far it is.

        Raises:
            InputError: `build` names a number that the backend does not know, or a value that cannot be meant.
        """
        cls.check_build(build)

    @classmethod
    def check_build(cls, build: Mapping[str, Any]) -> None:
        """Refuse numbers of a recipe, before anything is forecast or built by them; here any.

        It says in advance what the `build_files` of its class refuses. A subclass that brings a `build_files` of its
        own brings a `check_build` too, or its numbers are looked at where it builds, not before.

        Raises:
            InputError: a number that the backend does not know, or a value that cannot be meant.
        """
        if build:
            raise InputError(f"recipe: the backend {cls.name!r} takes no numbers, got {', '.join(build)}.")

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open what `save` wrote, memory-mapped and read-only.

        Raises:
            FileNotFoundError: a file is missing.
            InputError: a file is truncated or not of the expected kind.
        """
        rows = map_array(folder / "vectors.npy", ROW_DTYPES, 2)
        ids = map_array(folder / "ids.npy", "int64", 1)
        order = map_array(folder / "order.npy", ("int64", "int32"), 1)
        if not rows.shape[0] == ids.shape[0] == order.shape[0]:
            raise InputError(
                f"{folder}: vectors.npy has {rows.shape[0]} rows, ids.npy {ids.shape[0]}, order.npy {order.shape[0]}. "
                "The files are not from one build; build the index again: bindsearch index EMBEDDINGS -o INDEX"
            )
        return cls(rows, ids, order)

    def save(self, folder: Path) -> None:
        """Write the living rows to a folder: vectors.npy, ids.npy, order.npy and the files of the backend."""
        folder.mkdir(parents=True, exist_ok=True)
        keep = slice(None) if self._alive is None else self._alive
        np.save(folder / "vectors.npy", np.ascontiguousarray(self._rows[keep]), allow_pickle=False)
        np.save(folder / "ids.npy", np.ascontiguousarray(self._ids[keep]), allow_pickle=False)
        if len(self):
            self.build_files(folder, self._built_with)
        ids = np.load(folder / "ids.npy", allow_pickle=False)
        np.save(folder / "order.npy", np.argsort(ids, kind="stable"), allow_pickle=False)

    def most(self, setting: str) -> int:  # noqa: ARG002
        """Give the largest value of one of `settings` that changes anything; here the number of rows."""
        return max(1, int(self._ids.shape[0]))

    # ---- search ------------------------------------------------------------------------------------------------------

    def search(
        self,
        queries: FloatArray,
        k: int,
        selector: BoolArray | IntArray | None = None,
        settings: SearchSettings | None = None,
    ) -> tuple[FloatArray, IntArray]:
        """Find the k best rows of each query: those of `search_exact`, or most of them where the backend approximates.

        Args:
            queries: (q, d) float32, finite, no zero rows; normalised in a copy. Not modified.
            k: at least 1; may exceed the number of rows.
            selector: (n,) bool over the stored rows, or (m,) int64 ids, of the rows that may be answers; None: all.
            settings: of those that `settings` of the class names; the others keep their value there.

        Returns:
            scores (q, k) float32 cosines, higher is better, -inf where there is no answer; ids (q, k) int64, -1 there.
            Equal scores stand in ascending order of id.

        Raises:
            ShapeError: wrong shape or dtype of the queries or the selector; both numbers are named.
            InputError: k below 1, a query that is not finite or is zero, a setting that the backend does not have.
            UnsupportedError: a selector where the backend has none.
        """
        scores, ids, _ = self._search(queries, k, selector, settings)
        return scores, ids

    def search_exact(
        self, queries: FloatArray, k: int, selector: BoolArray | IntArray | None = None
    ) -> tuple[FloatArray, IntArray, ExactReport]:
        """Find the k best rows of each query, proven, whatever the backend; arguments and errors as of `search`.

        Returns:
            scores (q, k) float32 and ids (q, k) int64 as of `search`, and what the proof took.
        """
        from bindsearch.index.flat import FlatIndex

        if self.codes is not None:
            from bindsearch.index.byte_index import search_codes

            return search_codes(self, self.codes, queries, k, self._mask(selector))
        index: IndexBackend = self
        if not self.exact:
            index = FlatIndex(self._rows, self._ids, self._order)
            index._alive = self._alive
        scores, ids, widened = index._search(queries, k, selector, None)
        allowed = index._count(index._mask(selector))
        full = np.full(widened.shape, allowed, dtype=np.int64)
        return scores, ids, ExactReport(full, allowed, widened)

    def _search(
        self,
        queries: FloatArray,
        k: int,
        selector: BoolArray | IntArray | None,
        settings: SearchSettings | None,
    ) -> tuple[FloatArray, IntArray, IntArray]:
        """Answer as `search`; gives scores, ids and (q,) how many rows were scored because a proof failed."""
        units = unit_queries(queries, self.dim)
        if k < 1:
            raise InputError(f"k: expected at least 1, got {k}.")
        check_settings(settings, self.settings)
        chosen = {**self.settings, **(settings or {})}
        mask = self._mask(selector)
        allowed = self._count(mask)
        scores = np.full((units.shape[0], k), -np.inf, dtype=np.float32)
        ids = np.full((units.shape[0], k), -1, dtype=np.int64)
        widened = np.zeros(units.shape[0], dtype=np.int64)
        if allowed == 0 or units.shape[0] == 0:
            return scores, ids, widened
        spare = max(_OVERFETCH, k // 4) if self.exact else max(_SPARE, k // 8)
        fetch = min(allowed, k + spare)
        step = max(1, _BLOCK_BYTES // (8 * self.dim * fetch))
        for start in range(0, units.shape[0], step):
            part = slice(start, start + step)
            out = scores[part], ids[part], widened[part]
            coarse, places = self._scan(units[part].astype(np.float32), fetch, mask, chosen)
            exact = self._exact_scores(units[part], places)
            self._rank(exact, places, out)
            if self.exact and places.shape[1] < allowed:
                self._prove(units[part], coarse, exact, mask, out)
        return scores, ids, widened

    def _rank(self, exact: FloatArray, places: IntArray, out: tuple[FloatArray, IntArray, IntArray]) -> None:
        """Rank candidates by their exact scores, equal ones by id. Overwrites `out`: scores and ids (q, k)."""
        ids = np.where(places < 0, _NOBODY, self._ids[np.maximum(places, 0)])
        best = np.lexsort((ids, -exact), axis=1)[:, : out[0].shape[1]]
        found = np.take_along_axis(ids, best, axis=1)
        out[0][:, : best.shape[1]] = np.take_along_axis(exact, best, axis=1)
        out[1][:, : best.shape[1]] = np.where(found == _NOBODY, -1, found)

    def _prove(
        self,
        units: NDArray[np.float64],
        coarse: FloatArray,
        exact: FloatArray,
        mask: BoolArray | None,
        out: tuple[FloatArray, IntArray, IntArray],
    ) -> None:
        """Widen where rows that are no candidates may belong into the answer. Overwrites `out`, rows widened too."""
        k = out[0].shape[1]
        for row in range(units.shape[0]):
            if not self._is_proven(coarse[row], exact[row], k):
                one = slice(row, row + 1)
                places, scores = self._widen(units[one], exact[row], k, mask)
                self._rank(scores[None], places[None], (out[0][one], out[1][one], out[2][one]))
                out[2][row] = places.size

    def _margin(self) -> float:
        """Bound the error of a float32 dot product of two unit vectors: d additions, each rounded once.

        The last factor is for norms a little above 1: rows of float16 are at most 2^-11 above.
        """
        return (self.dim + 2) * 2.0**-24 * 1.001

    def _is_proven(self, coarse: FloatArray, exact: FloatArray, k: int) -> bool:
        """Say whether every row outside the candidates must score below the k-th candidate."""
        return bool(float(coarse[-1]) < self._bar(exact, k))

    def _bar(self, exact: FloatArray, k: int) -> float:
        """Give what a float32 product must reach for its row to reach the k-th score.

        At -1 scores are cut off: rows of float16 that are a little longer than 1 tie there, whatever their products.
        """
        kth = float(np.partition(exact, exact.size - k)[exact.size - k])
        return kth - 2 * self._margin() if kth > -1 else -np.inf

    def _widen(
        self, unit: NDArray[np.float64], exact: FloatArray, k: int, mask: BoolArray | None
    ) -> tuple[IntArray, FloatArray]:
        """Collect every row that may reach the k-th score (ties, near ties) and score it exactly."""
        bar = self._bar(exact, k)
        query, found = unit.astype(np.float32), []
        for start, block in self.blocks():
            reach = (query @ block.T)[0] >= bar
            if mask is not None:
                reach &= mask[start : start + block.shape[0]]
            found.append(np.flatnonzero(reach) + start)
        places = np.concatenate(found)
        return places, self._exact_scores(unit, places[None])[0]

    def _exact_scores(self, units: NDArray[np.float64], places: IntArray) -> FloatArray:
        """Score rows in float64, rounded to float32 once; the sum's order depends on d alone.

        Args:
            units: (q, d) float64 unit rows. Not modified.
            places: (q, m) int64 row positions, -1 for none. Not modified.

        Returns:
            (q, m) float32; -inf for none.
        """
        scores = np.empty(places.shape, dtype=np.float32)
        wide = max(1, min(places.shape[1], _BLOCK_BYTES // (8 * self.dim)))
        step = max(1, _CACHE_BYTES // (8 * self.dim * wide))
        for start in range(0, places.shape[0], step):
            for first in range(0, places.shape[1], wide):  # one round, unless very many are asked for
                part = slice(start, start + step), slice(first, first + wide)
                # float16 by way of float32: numpy takes 8 ns to widen a number to float64
                rows = wide_rows(self._rows[np.maximum(places[part], 0)]).astype(np.float64)
                rows *= units[part[0], None, :]  # (q, m, d)
                scores[part] = np.clip(rows.sum(axis=2), -1.0, 1.0)
        scores[places < 0] = -np.inf
        return scores

    @abstractmethod
    def _scan(
        self, queries: FloatArray, fetch: int, mask: BoolArray | None, settings: SearchSettings
    ) -> tuple[FloatArray, IntArray]:
        """Propose candidates.

        Args:
            queries: (q, d) float32 unit rows. Not modified.
            fetch: how many, at most the number of rows allowed by the mask.
            mask: (n,) bool of the rows allowed, or None for all. Not modified.
            settings: a value for each name in `settings` of the class.

        Returns:
            scores (q, m) float32 in descending order, positions (q, m) int64; -1 for none. Exact backends give the
            `fetch` best by a float32 dot product; others m <= fetch that they scored from the stored rows.
        """
