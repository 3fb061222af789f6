"""From a ranking to the answers shown: cut, grouped, without near duplicates, diverse, paged; one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from bindsearch.errors import InputError
from bindsearch.search.columns import column_names, values_of
from bindsearch.search.depths import FIRST, LAST, first_depth, pools, steps_of
from bindsearch.search.diverse import hide_duplicates, order_diverse
from bindsearch.search.groups import first_of_group, group_columns
from bindsearch.search.pages import Cursor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.index.snapshot import Snapshot
    from bindsearch.types import FloatArray, IntArray


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
    def is_paged(self) -> bool:
        """Whether the answers are a page of a list."""
        return self.paged or self.after is not None

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
        steps: (n,) int64 depth at which each was found, ascending; see `depths.py`. None: nobody asked.
        spans: what each answers for as the best of its group; empty where nothing is grouped.
        duplicates: what each hides; empty where nothing is hidden.
    """

    scores: FloatArray
    ids: IntArray
    shares: NDArray[np.float64] | None = None
    steps: IntArray | None = None
    spans: tuple[tuple[Hidden, ...], ...] = ()
    duplicates: tuple[tuple[Hidden, ...], ...] = ()

    def take(self, places: IntArray | slice) -> Ranked:
        """Give some of them, in the order of `places`."""
        wanted = np.arange(self.ids.size)[places].tolist()
        return Ranked(
            self.scores[places],
            self.ids[places],
            None if self.shares is None else self.shares[places],
            None if self.steps is None else self.steps[places],
            tuple(self.spans[place] for place in wanted) if self.spans else (),
            tuple(self.duplicates[place] for place in wanted) if self.duplicates else (),
        )

    def followed_by(self, other: Ranked) -> Ranked:
        """Give these and, behind them, those of another ranking that are not among them."""
        new = other.take(np.flatnonzero(~np.isin(other.ids, self.ids)))
        pairs = [
            None if ours is None or theirs is None else np.concatenate([ours, theirs])
            for ours, theirs in ((self.shares, new.shares), (self.steps, new.steps))
        ]
        return Ranked(
            np.concatenate([self.scores, new.scores]), np.concatenate([self.ids, new.ids]), pairs[0], pairs[1]
        )


@dataclass(frozen=True)
class Ranking:
    """What ranks the items for one query.

    Attributes:
        best: gives the best n items in order, fewer where there are no more, or where no more are found.
        items: how many may be answers.
        proven: whether the best n are those: then a longer ranking begins with a shorter one.
    """

    best: Callable[[int], Ranked]
    items: int
    proven: bool


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
        notes: what the reader should know.
    """

    answers: Ranked
    first_rank: int = 1
    notes: tuple[str, ...] = field(default=())


def arrange(snapshot: Snapshot, ranking: Ranking, k: int, shape: Shape, cursor: Cursor | None = None) -> Page:
    """Arrange the answers to one query.

    The ranking is asked for in depths of 256, 512, 1024 ... items, as long as fewer than k answers are left. A list
    that is paged is the same whatever its pages: of an approximate index each depth adds, behind what was found before
    it, the items that it alone finds. Answers that are not paged stand best first as the last depth ranks them.

    Args:
        snapshot: the index.
        ranking: of its items.
        k: how many answers at most.
        shape: how; its cursor is read by the caller.
        cursor: behind which answer to begin; None: at the first.

    Raises:
        UnknownNameError: no such column to group by.
        InputError: the answer of the cursor is not where it was.
    """
    start = 0 if cursor is None else cursor.rank
    wanted = min(start + k, ranking.items)
    grows = shape.is_paged and not ranking.proven
    depth = FIRST if grows else first_depth(wanted)
    enough = first_depth(wanted) if shape.diversity is not None else 0  # its order depends on what it may pick from
    listed: Ranked | None = None
    while True:
        found, whole = _ranked(ranking, depth, shape, grows)
        listed = found if listed is None or not grows else listed.followed_by(found)
        last = whole or depth >= max(LAST, first_depth(wanted))
        if last or (listed.ids.size >= wanted and depth >= enough):
            answers = _arranged(snapshot, listed, wanted, shape)
            if last or answers.ids.size >= wanted:
                break
        depth *= 2
    if cursor is not None:
        _check_place(answers, cursor, str(snapshot.path))
    return Page(answers.take(slice(start, wanted)), start + 1, _notes(answers.ids.size < wanted, whole, depth, shape))


def _ranked(ranking: Ranking, depth: int, shape: Shape, grows: bool) -> tuple[Ranked, bool]:
    """Rank so many items, keep those that score enough, and say whether there are no more of them."""
    found = ranking.best(depth)
    whole = found.ids.size < depth if ranking.proven else depth >= ranking.items
    found = replace(found, steps=np.full(found.ids.size, depth) if grows else steps_of(found.ids.size))
    if shape.min_score is not None:
        low = found.scores < np.float32(shape.min_score)
        whole |= bool(low.any()) and not shape.calibrated
        found = found.take(np.flatnonzero(~low))
    return found, whole


def _notes(few: bool, whole: bool, depth: int, shape: Shape) -> tuple[str, ...]:
    """Say what may lie behind the items that were ranked."""
    if whole:
        return ()
    if few:
        return (f"only the best {depth:,} items were arranged; there may be more answers behind them",)
    hidden = [
        *(["spans"] if shape.group_by is not None else []),
        *(["duplicates"] if shape.duplicates is not None else []),
    ]
    if not hidden:
        return ()
    return (f"{' and '.join(hidden)}: those among the best {depth:,} items; a greater -k looks deeper",)


def _arranged(snapshot: Snapshot, found: Ranked, wanted: int, shape: Shape) -> Ranked:
    """Group, hide, and order."""
    if shape.group_by is not None and found.ids.size:
        found = _grouped(snapshot, found, shape.group_by)
    rows = None
    if shape.duplicates is not None and found.ids.size:
        rows = snapshot.rows(found.ids)
        found, kept = _without_duplicates(found, rows, shape.duplicates)
        rows = rows[kept]
    if shape.diversity is not None and found.steps is not None and found.ids.size:
        rows = snapshot.rows(found.ids) if rows is None else rows
        found = found.take(order_diverse(found.scores, rows, pools(found.steps, wanted), shape.diversity))
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


def _check_place(answers: Ranked, cursor: Cursor, path: str) -> None:
    """Refuse a cursor whose answer does not have its rank.

    Raises:
        InputError: an approximate index found others this time.
    """
    if cursor.rank < 1 or answers.ids[cursor.rank - 1 : cursor.rank].tolist() != [cursor.item_id]:
        places = np.flatnonzero(answers.ids == cursor.item_id).tolist()
        now = f"its rank is {places[0] + 1} now" if places else "it is not among the answers now"
        raise InputError(
            f"{path}: the answer of the cursor had rank {cursor.rank}, {now}: this list is not the cursor's. Ask for "
            "the first page again, without --after; --exact proves the answers"
        )
