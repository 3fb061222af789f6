"""What approximate backends share: candidates by code or graph, scored from the stored rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bindsearch.errors import InputError, MismatchError
from bindsearch.index.base import IndexBackend
from bindsearch.index.byte_table import BLOCK_ROWS
from bindsearch.index.checks import wide_rows
from bindsearch.index.recipe import MARGIN, MARGIN_STEPS, NO_MARGIN, uncut
from bindsearch.index.small_products import score_places

if TYPE_CHECKING:
    from bindsearch.index.recipe import SearchSettings
    from bindsearch.types import BoolArray, FloatArray, IntArray


WINDOW = 8.0
_FEWEST = 8
_MORE = 12  # candidates beyond those that are scored exactly, however few are asked for
_DOUBLINGS = 6  # of the settings of a query that found too little; then all rows are scored
_BLOCK_BYTES = 16 << 20

LIVING = 0.75
"""Where less than this share of what a search of all rows looks at is left of it, it has to look farther."""


class RefinedIndex(IndexBackend):
    """A backend whose candidates are looked up in the rows; see `IndexBackend`.

    Every one has the search setting rerank: how many candidates a query are scored from the rows. Some have margins
    (docs/adr/0113): a query leaves out what its codes rule out by so much, where other queries need all of it.

    Attributes:
        build_numbers: numbers of a recipe, with what they are where it names none.
    """

    abilities: ClassVar[frozenset[str]] = frozenset({"remove", "selector"})
    exact: ClassVar[bool] = False
    settings: ClassVar[Mapping[str, int]] = {"rerank": 400}
    build_numbers: ClassVar[Mapping[str, int]] = {}

    def _scan(
        self, queries: FloatArray, fetch: int, mask: BoolArray | None, settings: SearchSettings
    ) -> tuple[FloatArray, IntArray]:
        """See `IndexBackend._scan`. Where few rows are allowed, or half of them asked for, all of them are scored."""
        allowed, count = self._count(mask), max(settings["rerank"], fetch + _MORE)
        if allowed <= max(count, 2 * fetch):
            every = np.arange(allowed, dtype=np.int64) if mask is None else np.flatnonzero(mask)
            places = np.broadcast_to(every, (queries.shape[0], allowed))
        else:
            places = self._proposed(queries, fetch, count, mask, settings)
            self._check_places(places)
            places = self._likely(queries, fetch, places)
        scores = score_places(self._rows, queries, places)
        if scores.shape[1] > fetch:
            top = np.argpartition(scores, scores.shape[1] - fetch, axis=1)[:, -fetch:]
            scores, places = np.take_along_axis(scores, top, axis=1), np.take_along_axis(places, top, axis=1)
        ranks = np.argsort(-scores, axis=1, kind="stable")
        return np.take_along_axis(scores, ranks, axis=1), np.take_along_axis(places, ranks, axis=1)

    def _proposed(
        self,
        queries: FloatArray,
        fetch: int,
        count: int,
        mask: BoolArray | None,
        settings: SearchSettings,
        doublings: int = _DOUBLINGS,
    ) -> IntArray:
        """Give candidates, ascending, -1 for none, cut by the margins; who gets too few is asked again, for more.

        Under a selector only without margins: what is looked at beyond, its caller says (`search/routes.py`).
        """
        places, estimates = self._candidates(queries, count, mask, settings)
        margin = settings.get("rerank_margin", NO_MARGIN)
        if estimates is not None and margin < NO_MARGIN:
            least = estimates[:, fetch - 1, None] - np.float32(margin / MARGIN_STEPS)
            places = np.where(estimates < least, -1, places)
        places.sort(axis=1)
        short = np.flatnonzero((places >= 0).sum(axis=1) < fetch)
        if not short.size:
            return places
        asked = queries[short]
        if (bare := uncut(settings)) != settings:
            more = self._proposed(asked, fetch, count, mask, bare, doublings)
        elif mask is not None and mask is not self._alive:
            return places
        elif doublings and (wider := self._doubled(settings)) != settings:
            count = min(2 * count, self._count(mask) - 1)
            more = self._proposed(asked, fetch, count, mask, wider, doublings - 1)
        else:
            more = self._nearest(asked, count, mask)
        places = np.pad(places, ((0, 0), (max(0, more.shape[1] - places.shape[1]), 0)), constant_values=-1)
        places[short] = np.pad(more, ((0, 0), (places.shape[1] - more.shape[1], 0)), constant_values=-1)
        return places

    def _doubled(self, settings: SearchSettings) -> dict[str, int]:
        """Double the settings that are no margins, as far as they change anything."""
        return {
            name: value if name.endswith(MARGIN) else max(value, min(2 * value, self.most(name)))
            for name, value in settings.items()
        }

    def _nearest(self, queries: FloatArray, count: int, mask: BoolArray | None) -> IntArray:
        """Find the `count` rows of the largest float32 products by reading every row that is allowed, ascending."""
        every = np.arange(self._ids.shape[0], dtype=np.int64) if mask is None else np.flatnonzero(mask)
        scores = np.empty((queries.shape[0], 0), dtype=np.float32)
        places = np.empty((queries.shape[0], 0), dtype=np.int64)
        step = max(1, _BLOCK_BYTES // (4 * (self.dim + queries.shape[0])))
        for start in range(0, every.size, step):
            part = every[start : start + step]
            products = queries @ wide_rows(self._rows[part]).T
            scores = np.concatenate([scores, products], axis=1)
            places = np.concatenate([places, np.broadcast_to(part, products.shape)], axis=1)
            if scores.shape[1] > count:
                best = np.argpartition(scores, scores.shape[1] - count, axis=1)[:, -count:]
                scores, places = np.take_along_axis(scores, best, axis=1), np.take_along_axis(places, best, axis=1)
        places.sort(axis=1)
        return places

    def _likely(self, queries: FloatArray, fetch: int, places: IntArray) -> IntArray:
        """Leave of candidates those that byte codes, where there are some, put near the best; see docs/adr/0114.

        A row of codes is half as long as one of float16. What stays is within WINDOW deviations of the codes' error,
        were it spread evenly over all columns.
        """
        if self.codes is None or self._rows.dtype == np.float32 or places.shape[1] < _FEWEST * fetch:
            return places
        table, asked = self.codes.full, self.codes.ask(queries.astype(np.float64))
        rough = score_places(table.codes, asked.codes, places)
        rough *= table.scales[np.maximum(places, 0) // BLOCK_ROWS]
        error = np.float32(WINDOW * table.tops.max() / np.sqrt(self.dim)) / asked.steps.astype(np.float32)
        last = np.partition(rough, places.shape[1] - fetch, axis=1)[:, -fetch, None]
        likely = rough >= last - 2 * error[:, None]
        kept = max(fetch, int(likely.sum(axis=1).max()))
        if kept >= places.shape[1]:
            return places
        chosen = np.where(likely, places, -1)
        chosen.sort(axis=1)
        return np.ascontiguousarray(chosen[:, -kept:])

    def _check_places(self, places: IntArray) -> None:
        """Refuse rows that there are not: bytes of large files are read when a search needs them, not at open.

        Raises:
            MismatchError: a file names a row that does not exist.
        """
        if places.size and not -1 <= int(places.min()) <= int(places.max()) < self._ids.shape[0]:
            worst = int(places.max() if places.max() >= self._ids.shape[0] else places.min())
            raise MismatchError(
                f"index backend {self.name!r}: its files name row {worst}, there are {self._ids.shape[0]}: they were "
                "altered. Type: bindsearch index verify INDEX"
            )

    @abstractmethod
    def _candidates(
        self, queries: FloatArray, count: int, mask: BoolArray | None, settings: SearchSettings
    ) -> tuple[IntArray, FloatArray | None]:
        """Propose rows by the files beside them.

        Args:
            queries: (q, d) float32 unit rows. Not modified.
            count: how many; fewer than are allowed.
            mask: (n,) bool of the rows allowed, or None for all. Not modified.
            settings: a value for each name in `settings` of the class.

        Returns:
            (q, count) int64 row positions, -1 for none, writeable; and their scores by the files beside the rows,
            best first, or None where there are none. A query that looked mostly at rows that were removed gets none:
            it is asked again with larger settings.
        """


def check_numbers(backend: str, build: Mapping[str, Any], known: Mapping[str, int]) -> dict[str, int]:
    """Complete the numbers of a recipe; where the backend's own is 0, 0 says that it chooses.

    Raises:
        InputError: one that the backend does not have, or that is no whole number.
    """
    for name, value in build.items():
        if name not in known:
            raise InputError(f"recipe: the backend {backend!r} has {', '.join(known) or 'no numbers'}; got {name!r}.")
        least = 0 if known[name] == 0 else 1
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"recipe: {name} of {backend!r} expected a whole number from {least} on, got {value!r}.")
    return {**known, **build}


def row_selector(faiss: Any, mask: BoolArray | None) -> tuple[Any, Any]:
    """Make a FAISS selector of rows, and what must live as long as it; (None, None) where all are allowed."""
    if mask is None:
        return None, None
    bits = np.packbits(mask, bitorder="little")
    return faiss.IDSelectorBitmap(mask.size, faiss.swig_ptr(bits)), bits
