"""Which stored rows may be answers, as a mask a segment; masks are kept, so that a filter is paid for once."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from bindsearch.errors import UnknownNameError
from bindsearch.search.columns import check_columns, mixed_columns, read_column
from bindsearch.search.keys import resolve_items
from bindsearch.search.sql import select_by_sql
from bindsearch.search.where import Filter, parse_filter

if TYPE_CHECKING:
    from bindsearch.index.segment import Segment
    from bindsearch.index.snapshot import Snapshot
    from bindsearch.types import BoolArray, IntArray

_CACHE_BYTES = 64 << 20


@dataclass(frozen=True)
class Scope:
    """What may be an answer.

    Attributes:
        where: a filter on item columns; see `where.py`.
        sql: a condition or a query in SQL; see `sql.py`.
        modality: items of this one alone.
        exclude: keys or ids that may not be answers.
    """

    where: str | Filter | None = None
    sql: str | None = None
    modality: str | None = None
    exclude: tuple[str | int, ...] = ()

    def of(self, modality: str) -> Scope:
        """Give the same scope, narrowed to a modality."""
        return replace(self, modality=modality)

    def describe(self) -> str:
        """Write the filter as a line; empty where nothing is filtered."""
        where = self.where.text if isinstance(self.where, Filter) else self.where
        parts = [
            "" if where is None else where,
            "" if self.sql is None else f"sql: {' '.join(self.sql.split())}",
            "" if self.modality is None else f"modality {self.modality}",
            f"without {', '.join(map(str, self.exclude))}" if self.exclude else "",
        ]
        return " · ".join(part for part in parts if part)


@dataclass(frozen=True)
class Selection:
    """What a scope lets pass in a snapshot.

    Attributes:
        masks: one a segment, (rows of the segment,) bool over the stored rows; removed rows never pass.
        counts: how many pass, one a segment.
        text: the scope as a line.
        seconds: what finding out took.
        kept: whether the masks were at hand from an earlier search.
    """

    masks: tuple[BoolArray, ...]
    counts: tuple[int, ...]
    text: str
    seconds: float
    kept: bool

    @property
    def count(self) -> int:
        """How many items pass."""
        return sum(self.counts)


class MaskCache:
    """Masks of earlier filters, the least recently used leave first. Thread-safe."""

    def __init__(self, limit_bytes: int = _CACHE_BYTES) -> None:
        """Keep at most so many bytes."""
        self._limit = limit_bytes
        self._masks: OrderedDict[Hashable, BoolArray] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> BoolArray | None:
        """Give a mask, not to be modified, or None."""
        with self._lock:
            mask = self._masks.get(key)
            if mask is not None:
                self._masks.move_to_end(key)
            return mask

    def put(self, key: Hashable, mask: BoolArray) -> None:
        """Keep a mask; it must not be modified any more."""
        mask.flags.writeable = False
        with self._lock:
            old = self._masks.pop(key, None)
            self._bytes += mask.nbytes - (0 if old is None else old.nbytes)
            self._masks[key] = mask
            while self._bytes > self._limit and self._masks:
                self._bytes -= self._masks.popitem(last=False)[1].nbytes


def select(snapshot: Snapshot, scope: Scope, cache: MaskCache) -> Selection | None:
    """Find the rows that a scope lets pass.

    Args:
        snapshot: the index.
        scope: what may be an answer.
        cache: of this index; masks of a segment hold for as long as there is the segment, since it never changes.

    Returns:
        The selection; None where nothing is filtered.

    Raises:
        UnknownNameError: a column or a modality that the index does not have.
        InputError: the filter cannot be read, or compares a column with another type.
        MissingInputError: an excluded item is not there.
        MissingExtraError: SQL without DuckDB.
    """
    began = time.perf_counter()
    left_out = resolve_items(snapshot, scope.exclude)
    if scope.where is None and scope.sql is None and scope.modality is None and not left_out.size:
        return None
    if scope.modality is not None and scope.modality not in snapshot.manifest.modalities:
        raise UnknownNameError(f"modality in {snapshot.path}", scope.modality, snapshot.manifest.modalities)
    where = parse_filter(scope.where) if isinstance(scope.where, str) else scope.where
    made: list[int] = []
    parts = [_of_sql(snapshot, scope.sql, cache, made), _of_columns(snapshot, where, scope.modality, cache, made)]
    masks = []
    for number, segment in enumerate(snapshot.segments):
        masks.append(_living(segment, [part[number] for part in parts if part is not None], left_out))
    counts = tuple(int(np.count_nonzero(mask)) for mask in masks)
    return Selection(tuple(masks), counts, scope.describe(), time.perf_counter() - began, not made)


def _living(segment: Segment, masks: Iterable[BoolArray], left_out: IntArray) -> BoolArray:
    """Join masks and leave out removed and excluded rows; gives one of them as it is where that is all."""
    found: BoolArray | None = None
    for mask in masks:
        found = mask if found is None else found & mask
    if found is None:
        found = np.ones(segment.entry.rows, dtype=bool)
    if segment.entry.removed:
        found = found & segment.index.alive
    places = segment.index.positions(left_out)
    if (places >= 0).any():
        found = found.copy()
        found[places[places >= 0]] = False
    return found


def _of_columns(
    snapshot: Snapshot, where: Filter | None, modality: str | None, cache: MaskCache, made: list[int]
) -> list[BoolArray] | None:
    """Evaluate a filter and a modality, a mask a segment; appends to `made` where one was not at hand."""
    if where is None and modality is None:
        return None
    found = []
    checked, mixed = False, frozenset[str]()
    for number, segment in enumerate(snapshot.segments):
        key = (segment.entry.mark, None if where is None else where.text, modality)
        mask = cache.get(key)
        if mask is None:
            if where is not None and not checked:
                check_columns(snapshot, where.columns)
                mixed, checked = mixed_columns(snapshot, where.columns), True
            mask = segment.to_row_order(_evaluate(segment, where, modality, mixed))
            cache.put(key, mask)
            made.append(number)
        found.append(mask)
    return found


def _evaluate(segment: Segment, where: Filter | None, modality: str | None, mixed: Collection[str]) -> BoolArray:
    """Say which rows of the item table pass, in its order; of the columns `mixed` text is compared."""
    mask = None if where is None else where.mask(lambda name: read_column(segment, name, name in mixed))
    if modality is None:
        return np.ones(segment.entry.rows, dtype=bool) if mask is None else mask
    import pyarrow.compute as pc

    same = pc.equal(segment.table_column("modality"), modality).to_numpy()
    return np.asarray(same if mask is None else mask & same, dtype=bool)


def _of_sql(snapshot: Snapshot, text: str | None, cache: MaskCache, made: list[int]) -> list[BoolArray] | None:
    """Evaluate SQL; its masks hold for one state of the index, since a query may look at all items."""
    if text is None:
        return None
    state = tuple((part.entry.mark, part.entry.tombstones_file) for part in snapshot.segments)
    keys = [(number, state, "sql", text) for number in range(len(snapshot.segments))]
    masks = [cache.get(key) for key in keys]
    if any(mask is None for mask in masks):
        masks = list(select_by_sql(snapshot, text))
        made.extend(range(len(masks)))
        for key, mask in zip(keys, masks, strict=True):
            if mask is not None:
                cache.put(key, mask)
    return [mask for mask in masks if mask is not None]
