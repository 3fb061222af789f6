"""From a ranking to the answers shown: cut, grouped, without near duplicates, diverse, paged; one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from bindsearch.errors import InputError
from bindsearch.search.columns import column_names, values_of
from bindsearch.search.diverse import hide_duplicates, order_diverse
from bindsearch.search.groups import first_of_group, group_columns
from bindsearch.search.pages import Cursor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.index.snapshot import Snapshot
    from bindsearch.types import FloatArray, IntArray

    Rank = Callable[[int], "Ranked"]

_FIRST_DEPTH = 256
_LAST_DEPTH = 16_384


@dataclass(frozen=True)
class Shape:
    """How answers are arranged.

    Attributes:
        min_score: cosine below which nothing is an answer.
        group_by: "source", for the file that spans are of, or a column or attribute; the best item of each group
            answers for it.
        duplicates: cosine between answers above which the worse one is hidden behind the better one.
        diversity: lambda of maximal marginal relevance, 1 by score alone; see `diverse.order_diverse`.
        calibrated: order by percentile in place of score; see `calibrate.py`.
        after: a cursor: go on behind that answer.
        paged: give a cursor with every answer.

    Raises:
        InputError: a number out of its range, or two orders at once.
    """

    min_score: float | None = None
    group_by: str | None = None
    duplicates: float | None = None
    diversity: float | None = None
    calibrated: bool = False
    after: str | None = None
    paged: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.min_score is not None and not -1 <= self.min_score <= 1:
            raise InputError(f"--min-score {self.min_score:g}: expected a cosine from -1 to 1.")
        if self.duplicates is not None and not -1 < self.duplicates <= 1:
            raise InputError(f"--hide-duplicates {self.duplicates:g}: expected a cosine above -1 and at most 1.")
        if self.diversity is not None and not 0 <= self.diversity <= 1:
            raise InputError(f"--diverse {self.diversity:g}: expected a balance from 0 to 1.")
        if self.calibrated and self.diversity is not None:
            raise InputError("--calibrate and --diverse are two orders of one list: give one of them.")

    @property
    def is_plain(self) -> bool:
        """Whether answers stand as they are ranked, from the first one."""
        return self == PLAIN

    @property
    def is_range(self) -> bool:
        """Whether a least score is all that is said."""
        return self.min_score is not None and self == Shape(self.min_score)

    def options(self) -> list[object]:
        """Give what a cursor's list depends on."""
        return [getattr(self, each.name) for each in fields(self) if each.name not in ("after", "paged")]


PLAIN = Shape()


@dataclass(frozen=True)
class Ranked:
    """Items in their order, best first.

    Attributes:
        scores: (n,) float32 cosines.
        ids: (n,) int64.
        shares: (n,) float64 share of the background that scores more; None where nothing is calibrated.
        spans: what each answers for as the best of its group; empty where nothing is grouped.
        duplicates: what each hides; empty where nothing is hidden.
    """

    scores: FloatArray
    ids: IntArray
    shares: NDArray[np.float64] | None = None
    spans: tuple[tuple[Hidden, ...], ...] = ()
    duplicates: tuple[tuple[Hidden, ...], ...] = ()

    def take(self, places: IntArray | slice) -> Ranked:
        """Give some of them, in the order of `places`."""
        wanted = np.arange(self.ids.size)[places].tolist()
        return Ranked(
            self.scores[places],
            self.ids[places],
            None if self.shares is None else self.shares[places],
            tuple(self.spans[place] for place in wanted) if self.spans else (),
            tuple(self.duplicates[place] for place in wanted) if self.duplicates else (),
        )


@dataclass(frozen=True)
class Hidden:
    """An item that stands behind an answer.

    Attributes:
        item_id: its id; score: its own score.
        cosine: with the answer, of a near duplicate; None: it is of the same group.
    """

    item_id: int
    score: float
    cosine: float | None = None


@dataclass(frozen=True)
class Page:
    """What is shown of a ranking.

    Attributes:
        answers: at most k.
        first_rank: rank of the first answer.
        depth: how many items were ranked to find them.
        notes: what the reader should know.
    """

    answers: Ranked
    first_rank: int = 1
    depth: int = 0
    notes: tuple[str, ...] = field(default=())


def arrange(snapshot: Snapshot, rank: Rank, k: int, shape: Shape, cursor: Cursor | None = None) -> Page:
    """Arrange the answers to one query.

    The ranking is asked for in depths of 256, 512, 1024 ... items, so that a page and the next one see the same list,
    and deeper as long as fewer than k answers are left.

    Args:
        snapshot: the index.
        rank: gives the best n items in order, fewer where there are no more.
        k: how many answers at most.
        shape: how; its cursor is read by the caller.
        cursor: behind which answer to begin; None: at the first.

    Raises:
        UnknownNameError: no such column to group by.
        InputError: the answer of the cursor is not where it was.
    """
    wanted = k + (0 if cursor is None else cursor.rank)
    depth = _first_depth(wanted) if cursor is None else cursor.depth
    if shape.diversity is None:
        depth = max(depth, wanted)
    while True:
        found = rank(depth)
        whole = found.ids.size < depth
        if shape.min_score is not None:
            low = found.scores < np.float32(shape.min_score)
            whole |= bool(low.any()) and not shape.calibrated
            found = found.take(np.flatnonzero(~low))
        found = _arranged(snapshot, found, wanted, shape)
        fixed = cursor is not None and shape.diversity is not None  # its order depends on how many there are
        if found.ids.size >= wanted or whole or fixed or depth >= _LAST_DEPTH:
            break
        depth *= 2
    notes: list[str] = []
    if found.ids.size < wanted and not whole:
        notes.append(f"only the best {depth:,} items were arranged; there may be more answers behind them")
    start = 0 if cursor is None else _start_after(found, cursor, str(snapshot.path))
    return Page(found.take(slice(start, start + k)), start + 1, depth, tuple(notes))


def _first_depth(wanted: int) -> int:
    depth = _FIRST_DEPTH
    while depth < 4 * wanted and depth < _LAST_DEPTH:
        depth *= 2
    return depth


def _arranged(snapshot: Snapshot, found: Ranked, wanted: int, shape: Shape) -> Ranked:
    """Group, hide, and order."""
    if shape.group_by is not None and found.ids.size:
        found = _grouped(snapshot, found, shape.group_by)
    rows = None
    if shape.duplicates is not None and found.ids.size:
        rows = snapshot.rows(found.ids)
        found, kept = _without_duplicates(found, rows, shape.duplicates)
        rows = rows[kept]
    if shape.diversity is not None and found.ids.size:
        rows = snapshot.rows(found.ids) if rows is None else rows
        found = found.take(order_diverse(found.scores, rows, wanted, shape.diversity))
    return found


def _grouped(snapshot: Snapshot, found: Ranked, name: str) -> Ranked:
    """Let the best item of each group answer for it."""
    columns = group_columns(name, column_names(snapshot))
    first = first_of_group(values_of(snapshot, found.ids, columns))
    kept = np.flatnonzero(first == np.arange(first.size))
    behind: dict[int, list[Hidden]] = {place: [] for place in kept.tolist()}
    for place in np.flatnonzero(first != np.arange(first.size)).tolist():
        behind[int(first[place])].append(Hidden(int(found.ids[place]), float(found.scores[place])))
    return replace(found.take(kept), spans=tuple(tuple(each) for each in behind.values()))


def _without_duplicates(found: Ranked, rows: FloatArray, threshold: float) -> tuple[Ranked, IntArray]:
    """Hide near duplicates; gives what is left and its places."""
    first, cosines = hide_duplicates(rows, threshold)
    kept = np.flatnonzero(first == np.arange(first.size))
    behind: dict[int, list[Hidden]] = {place: [] for place in kept.tolist()}
    for place in np.flatnonzero(first != np.arange(first.size)).tolist():
        hidden = Hidden(int(found.ids[place]), float(found.scores[place]), float(cosines[place]))
        behind[int(first[place])].append(hidden)
    return replace(found.take(kept), duplicates=tuple(tuple(each) for each in behind.values())), kept


def _start_after(found: Ranked, cursor: Cursor, path: str) -> int:
    """Give the place behind the cursor's answer.

    Raises:
        InputError: it is not among the answers: an approximate index found others this time.
    """
    places = np.flatnonzero(found.ids == cursor.item_id)
    if not places.size:
        raise InputError(
            f"{path}: the answer of the cursor (rank {cursor.rank}) is not among the answers now. Ask for the "
            "first page with a greater -k, or prove the answers: --exact"
        )
    return int(places[0]) + 1
