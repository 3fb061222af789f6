"""From queries that are ready, and what may answer them, to hits: plain ones in one batch, arranged ones each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bindsearch.search.arrange import Page, Ranked, Ranking, Shape, arrange
from bindsearch.search.hits import Hits
from bindsearch.search.pages import Cursor, hash_index, hash_question
from bindsearch.search.ranking import Plan, Ranker

if TYPE_CHECKING:
    from bindsearch.index.snapshot import Snapshot
    from bindsearch.search.calibrate import Background, Scale
    from bindsearch.search.centred import Asked
    from bindsearch.types import FloatArray, IntArray


@dataclass(frozen=True)
class Wanted:
    """What is wanted of each query.

    Attributes:
        k: how many answers at most.
        exclude_self: leave out the items that are terms of the query.
        scope: the filter as a line; a cursor belongs to one.
    """

    k: int
    exclude_self: bool = False
    scope: str = ""


def answer_plainly(asked: Asked, ranker: Ranker, wanted: Wanted) -> list[Hits]:
    """Give the best k items of each query.

    Args:
        asked: the queries. Not modified.
        ranker: what ranks items.
        wanted: how many.
    """
    own = _own_ids(asked, wanted)
    # own items are dropped from a longer answer, so that one batch serves all queries
    scores, ids = ranker.rank(asked.vectors, wanted.k + max(map(len, own)))
    hits = []
    for row, query in enumerate(asked.queries):
        answers = _without(scores[row], ids[row], own[row]).take(slice(wanted.k))
        hits.append(Hits(ranker.snapshot, answers, query, plans=ranker.plans))
    return hits


def answer_arranged(
    asked: Asked, rankers: dict[str, Ranker], wanted: Wanted, shape: Shape, background: Background | None
) -> list[Hits]:
    """Give the answers to each query, arranged.

    Args:
        asked: the queries; a cursor is of one. Not modified.
        rankers: of calibrated answers one a modality, by its name; else one by the name "".
        wanted: how many.
        shape: how they are arranged.
        background: of calibrated answers.

    Raises:
        InputError, MismatchError: the cursor is none, or of another list.
    """
    snapshot = next(iter(rankers.values())).snapshot
    own = _own_ids(asked, wanted)
    lists = _Lists(asked.vectors, rankers, shape.is_paged)
    hits = []
    for row, query in enumerate(asked.queries):
        vector = asked.vectors[row : row + 1]
        place = _cursor_for(snapshot, asked, row, [wanted.scope, wanted.exclude_self, *lists.efforts()], shape)
        scales = {name: background.scale(query, vector, name) for name in rankers} if background else None
        page = arrange(snapshot, _ranking(lists, row, own[row], scales), wanted.k, shape, place.read)
        notes = [*page.notes, *_calibration_notes(snapshot, background, scales)]
        hits.append(_as_hits(snapshot, asked, row, page, place, lists.plans(), notes))
    return hits


def _own_ids(asked: Asked, wanted: Wanted) -> list[list[int]]:
    return [asked.own_ids(row) if wanted.exclude_self else [] for row in range(len(asked.queries))]


def _without(scores: FloatArray, ids: IntArray, left_out: Sequence[int]) -> Ranked:
    """Leave out some items, and the places without an answer."""
    kept = ids >= 0
    if left_out:
        kept &= ~np.isin(ids, left_out)
    return Ranked(scores[kept], ids[kept])


class _Lists:
    """Rankings of several queries: the first depth for all of them in one batch, deeper ones where they are needed.

    An approximate index may answer a query of a batch otherwise than the query alone, as its next page will be asked
    for: such pages are ranked alone.
    """

    def __init__(self, vectors: FloatArray, rankers: dict[str, Ranker], paged: bool) -> None:
        self._vectors, self._rankers = vectors, rankers
        self.items = sum(each.items for each in rankers.values())
        self.proven = all(each.proven for each in rankers.values())
        self._together = self.proven or not paged
        self._first: tuple[int, dict[str, tuple[FloatArray, IntArray]]] | None = None

    def best(self, row: int, depth: int) -> dict[str, tuple[FloatArray, IntArray]]:
        """Give the best `depth` of each ranker for a query: (m,) scores and ids."""
        if self._first is None and self._together:
            self._first = depth, {name: each.rank(self._vectors, depth) for name, each in self._rankers.items()}
        if self._first is not None and self._first[0] == depth:
            return {name: (scores[row], ids[row]) for name, (scores, ids) in self._first[1].items()}
        found = {name: each.rank(self._vectors[row : row + 1], depth) for name, each in self._rankers.items()}
        return {name: (scores[0], ids[0]) for name, (scores, ids) in found.items()}

    def plans(self) -> list[Plan]:
        """Give what ran."""
        return [plan for each in self._rankers.values() for plan in each.plans]

    def efforts(self) -> list[object]:
        """Give how hard is looked, as far as a list of answers depends on it."""
        efforts = [each.effort for each in self._rankers.values()]
        return [(each.exact, sorted((each.settings or {}).items())) for each in efforts if not self.proven]


def _ranking(lists: _Lists, row: int, left_out: Sequence[int], scales: dict[str, Scale | None] | None) -> Ranking:
    """Give what ranks the items for one query."""

    def best(depth: int) -> Ranked:
        found = lists.best(row, depth + len(left_out))
        parts = {name: _without(*each, left_out) for name, each in found.items()}
        if scales is None:
            return next(iter(parts.values())).take(slice(depth))
        return _merged(parts, scales).take(slice(depth))

    return Ranking(best, lists.items, lists.proven)


def _merged(parts: dict[str, Ranked], scales: dict[str, Scale | None]) -> Ranked:
    """Merge the items of several modalities by how rare their scores are; those that nothing is known of come last."""
    scores = np.concatenate([part.scores for part in parts.values()])
    ids = np.concatenate([part.ids for part in parts.values()])
    shares = []
    for name, part in parts.items():
        scale = scales[name]
        shares.append(np.full(part.ids.size, np.nan) if scale is None else scale.share_above(part.scores))
    share = np.concatenate(shares)
    order = np.lexsort((ids, -scores, share))  # NaN sorts last
    return Ranked(scores[order], ids[order], share[order])


@dataclass(frozen=True)
class _Place:
    """Where a list is taken up, and the cursor that its own answers get."""

    read: Cursor | None
    own: Cursor | None


def _cursor_for(snapshot: Snapshot, asked: Asked, row: int, options: Sequence[object], shape: Shape) -> _Place:
    """Read the cursor and check that it is of this list: of these options, and of how answers are arranged.

    Raises:
        InputError, MismatchError: it is none, or of another list.
    """
    if not shape.is_paged:
        return _Place(None, None)
    question = hash_question(asked.queries[row], asked.vectors[row : row + 1], [*options, *shape.options()])
    own = Cursor(hash_index(snapshot.manifest), snapshot.manifest.generation, question, 0, 0)
    read = None if shape.after is None else Cursor.read(shape.after)
    if read is not None:
        read.check(own, str(snapshot.path))
    return _Place(read, own)


def _calibration_notes(
    snapshot: Snapshot, background: Background | None, scales: dict[str, Scale | None] | None
) -> list[str]:
    """Say what percentiles are over."""
    if background is None or scales is None:
        return []
    if background.stored:
        behind = snapshot.manifest.generation - background.generation
        what = "the background beside the index" + (f" ({behind} changes ago)" if behind else "")
    else:
        what = "samples drawn for this search (keep them: bindsearch index background)"
    names = [f"{scale.name} ({scale.scores.size:,} scores)" for scale in scales.values() if scale is not None]
    notes = [f"percentiles: {', '.join(names) or 'none'}; {what}"]
    unknown = [name for name, scale in scales.items() if scale is None]
    if unknown:
        notes.append(f"no percentile for {', '.join(unknown)}: the background has fewer than 16 items of it")
    return notes


def _as_hits(
    snapshot: Snapshot, asked: Asked, row: int, page: Page, place: _Place, plans: list[Plan], notes: list[str]
) -> Hits:
    return Hits(
        snapshot,
        page.answers,
        asked.queries[row],
        first_rank=page.first_rank,
        cursor=place.own,
        plans=plans,
        notes=notes,
    )
