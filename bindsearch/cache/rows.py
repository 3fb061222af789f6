"""Where the cached images come from: an index on disk, or a backend in memory; full-precision rows in both.

Any backend can search for a cache, also one over coarse codes: the values that are averaged are always the stored rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from bindsearch.errors import MismatchError, MissingInputError
from bindsearch.search.ranking import Effort, Ranker
from bindsearch.search.selectors import MaskCache, Scope, Selection, select

if TYPE_CHECKING:
    from bindsearch.index.base import IndexBackend
    from bindsearch.index.recipe import SearchSettings
    from bindsearch.index.snapshot import Snapshot
    from bindsearch.types import FloatArray, IntArray


class CachedRows(Protocol):
    """What a cache is searched in and takes its values from."""

    name: str
    dim: int

    def __len__(self) -> int:
        """Count the cached rows."""

    def search(
        self, queries: FloatArray, k: int, settings: SearchSettings | None = None, exact: bool = False
    ) -> tuple[FloatArray, IntArray]:
        """Find the k nearest: scores (B, k) float32 and ids (B, k) int64, -1 where there is none."""

    def rows(self, ids: IntArray) -> FloatArray:
        """Give the rows of ids that are there, (m, d) float32."""


class IndexRows:
    """The images of an index folder, in one state of it; see `CachedRows`.

    Attributes:
        snapshot: the state.
        name, dim: the folder as the caller named it; columns.
    """

    def __init__(self, snapshot: Snapshot, modality: str | None = "image") -> None:
        """Take a state of an index.

        Args:
            snapshot: to search in.
            modality: cache items of this one alone; None: all.

        Raises:
            MissingInputError: the index holds nothing of it.
        """
        self.snapshot = snapshot
        self.name, self.dim = str(snapshot.path), snapshot.manifest.dim
        held = snapshot.manifest.modalities
        count = snapshot.manifest.count if modality is None else held.get(modality, 0)
        if count == 0:
            what = (
                f"holds {', '.join(f'{n} {name}' for name, n in held.items())}, no {modality}" if held else "is empty"
            )
            raise MissingInputError(
                f"{self.name}: {what}: there is nothing to take a cached neighbour from. "
                f"Type: bindsearch cache build IMAGES -o {self.name}"
            )
        self._count = count
        self._selection: Selection | None = None
        if modality is not None and count < snapshot.manifest.count:
            self._selection = select(snapshot, Scope(modality=modality), MaskCache())

    def __len__(self) -> int:
        """Count the cached rows."""
        return self._count

    @property
    def centring(self) -> str | None:
        """Id of the means that were taken from the rows; None: none."""
        return None if self.snapshot.centring is None else self.snapshot.centring.id

    def search(
        self, queries: FloatArray, k: int, settings: SearchSettings | None = None, exact: bool = False
    ) -> tuple[FloatArray, IntArray]:
        """Search as a query for this modality alone does: beside other items, on the routes of a filter."""
        return Ranker(self.snapshot, self._selection, Effort(exact, settings)).rank(queries, k)

    def rows(self, ids: IntArray) -> FloatArray:
        """Give the stored rows of ids."""
        return self.snapshot.rows(ids)

    def ids(self) -> IntArray:
        """Give the ids of all cached rows, (n,) int64, in row order."""
        if self._selection is None:
            return self.snapshot.ids()
        masks = zip(self.snapshot.segments, self._selection.masks, strict=True)
        return np.concatenate([segment.index.ids[mask] for segment, mask in masks])

    def check_plain(self) -> None:
        """Refuse a centred index, whose rows do not lie where the space puts pictures.

        Raises:
            MismatchError: with what to type.
        """
        if self.centring is not None:
            raise MismatchError(
                f"{self.name}: its rows are {self.centring}, and a cache blends vectors as the space makes them. "
                f"Build it without --centre: bindsearch cache build EMBEDDINGS -o CACHE"
            )


class OtherRows:
    """Cached rows of which each query of one batch leaves out its own; see `CachedRows`."""

    def __init__(self, rows: CachedRows, own: IntArray) -> None:
        """Take what is searched, and (B,) int64 the id of the cached row that each query is; -1: it is none."""
        self._rows, self._own = rows, own
        self.name, self.dim = rows.name, rows.dim

    def __len__(self) -> int:
        """Count the cached rows, those left out included."""
        return len(self._rows)

    def search(
        self, queries: FloatArray, k: int, settings: SearchSettings | None = None, exact: bool = False
    ) -> tuple[FloatArray, IntArray]:
        """Search for one row more and drop the query's own, or the last; `queries` is the whole batch."""
        extra = int((self._own >= 0).any())
        scores, ids = self._rows.search(queries, k + extra, settings, exact)
        order = np.argsort(ids == self._own[:, None], axis=1, kind="stable")[:, :k]  # its own row comes last
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)

    def rows(self, ids: IntArray) -> FloatArray:
        """Give the rows of ids."""
        return self._rows.rows(ids)


class BackendRows:
    """A backend in memory; see `CachedRows`."""

    def __init__(self, backend: IndexBackend, name: str = "cache") -> None:
        """Take a backend.

        Raises:
            MissingInputError: it is empty.
        """
        self._backend = backend
        self.name, self.dim = name, backend.dim
        if not len(backend):
            raise MissingInputError(f"{name}: is empty: there is nothing to take a cached neighbour from.")

    def __len__(self) -> int:
        """Count the cached rows."""
        return len(self._backend)

    def search(
        self, queries: FloatArray, k: int, settings: SearchSettings | None = None, exact: bool = False
    ) -> tuple[FloatArray, IntArray]:
        """Search as the backend does."""
        if exact:
            scores, ids, _ = self._backend.search_exact(queries, k)
            return scores, ids
        return self._backend.search(queries, k, None, settings)

    def rows(self, ids: IntArray) -> FloatArray:
        """Give the stored rows of ids."""
        return self._backend.rows(ids)
