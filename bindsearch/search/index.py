"""Search: a query in, hits out; identity checked, filters pushed down, items joined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.config import setting_with_origin
from bindsearch.errors import InputError, MissingInputError
from bindsearch.index.checks import unit_queries
from bindsearch.index.folder import IndexFolder
from bindsearch.index.identity import Identity
from bindsearch.index.source import Embeddings, open_source, several
from bindsearch.query import Embedding
from bindsearch.search.answer import Wanted, answer_arranged, answer_plainly
from bindsearch.search.arrange import PLAIN, Ranked, Shape
from bindsearch.search.calibrate import Background, draw_background, load_background, save_background
from bindsearch.search.centred import Asked, place_queries
from bindsearch.search.efforts import effort_for, in_groups
from bindsearch.search.fitting import check_fits, check_space_known
from bindsearch.search.hits import Hits
from bindsearch.search.keys import ONE, find_key, resolve_items
from bindsearch.search.ranges import RangeRanker, iter_range
from bindsearch.search.ranking import AS_TUNED, Effort, Ranker
from bindsearch.search.selectors import MaskCache, Scope, Selection, select
from bindsearch.search.where import Filter
from bindsearch.types import span_key

if TYPE_CHECKING:
    import pyarrow as pa

    from bindsearch.index.change import Added
    from bindsearch.index.manifest import Manifest
    from bindsearch.index.snapshot import Snapshot
    from bindsearch.types import FloatArray

RANGE_LIMIT = 10_000
"""Most answers of a range search that are kept in memory, unless more are asked for."""


DIVERSE_RANGE_LIMIT = 4096
"""The same where a command orders a whole range by unlikeness, which takes time as the square of it."""


def open_index(path: str | Path | None = None) -> SearchIndex:
    """Open an index to search in.

    Args:
        path: its folder; None: the setting `index` (BINDSEARCH_INDEX, then the configuration file), else the only index
            under indexes/.

    Raises:
        MissingInputError: there is none, or several to choose from.
        MismatchError: the index is damaged, or of another format version.
    """
    chosen, origin = setting_with_origin("index", path)
    if chosen is None:
        found = sorted(each.parent for each in Path("indexes").glob("*/index.json"))
        if len(found) != 1:
            what = "no index under indexes/" if not found else f"several indexes: {', '.join(map(str, found))}"
            raise MissingInputError(
                f"no index named, and {what}. Name one (bindsearch query INDEX ...), set BINDSEARCH_INDEX, "
                "or build one: bindsearch index EMBEDDINGS -o indexes/NAME"
            )
        chosen = found[0]
    try:
        return SearchIndex(IndexFolder.open(chosen))
    except MissingInputError as error:
        if origin in ("flag", "default"):
            raise
        raise MissingInputError(f"{error} (The path comes from {origin}.)") from error


class SearchIndex:
    """An index and its item table, ready to be asked. Searching is thread-safe.

    Attributes:
        folder: what lies on disk.
    """

    def __init__(self, folder: IndexFolder) -> None:
        """Use `open_index`."""
        self.folder = folder
        self._masks = MaskCache()

    @property
    def path(self) -> Path:
        """The index folder."""
        return self.folder.path

    @property
    def manifest(self) -> Manifest:
        """Space, towers, presets, counts."""
        return self.folder.manifest

    def __len__(self) -> int:
        """Count the items."""
        return self.folder.count

    def __repr__(self) -> str:
        """Say where, how many and of what space."""
        counts = ", ".join(f"{count} {name}" for name, count in self.manifest.modalities.items())
        return f"<SearchIndex {self.path}: {counts or 'no items'} in {self.manifest.space_id}>"

    # ---- asking ------------------------------------------------------------------------------------------------------

    def search(
        self,
        query: Embedding | FloatArray,
        k: int = 10,
        where: str | Filter | None = None,
        modality: str | None = None,
        exclude: Iterable[str | int] = (),
        exclude_self: bool = False,
        *,
        sql: str | None = None,
        shape: Shape = PLAIN,
        effort: Effort = AS_TUNED,
    ) -> Hits:
        """Find the items nearest to a query.

        Args:
            query: an embedding, or a bare (1, d) float32 vector. Not modified.
            k: how many answers at most.
            where: a filter on item columns, such as "size > 1000 and caption like '%dog%'"; see `where.py`.
            modality: answer with items of this one alone.
            exclude: keys or ids that may not be answers.
            exclude_self: leave out the items that are terms of the query.
            sql: a filter in SQL, with the extra `sql`; see `sql.py`.
            shape: how answers are arranged: grouped, without near duplicates, diverse, calibrated, paged.
            effort: how hard to look.

        Raises:
            MismatchError: the query is of another space, or another tower or preset made a modality that both have; or
                a cursor is of another generation or question.
            ShapeError: of another dimension.
            InputError: the filter cannot be read, the query's terms cancel out, k is below 1.
            UnknownNameError: a column or a modality that the index does not have.
        """
        return self.search_many(
            [query], k, where, modality, exclude, exclude_self, sql=sql, shape=shape, effort=effort
        )[0]

    def search_many(
        self,
        queries: Sequence[Embedding | FloatArray] | FloatArray,
        k: int = 10,
        where: str | Filter | None = None,
        modality: str | None = None,
        exclude: Iterable[str | int] = (),
        exclude_self: bool = False,
        *,
        sql: str | None = None,
        shape: Shape = PLAIN,
        effort: Effort = AS_TUNED,
    ) -> list[Hits]:
        """Find the items nearest to each of several queries; the answers are those of `search`, in one pass.

        Args:
            queries: embeddings, or (q, d) float32. Not modified.
            k: as in `search`.
            where: likewise.
            modality: likewise.
            exclude: likewise.
            exclude_self: likewise; each query leaves out its own items alone.
            sql: likewise.
            shape: likewise.
            effort: likewise.

        Raises:
            As `search`; InputError: a cursor for more than one query.
        """
        if not len(queries):
            return []
        if k < 1:
            raise InputError(f"k: expected at least 1, got {k}.")
        if shape.after is not None and len(queries) > 1:
            raise InputError("--after goes on with the list of one query; ask for one.")
        exclude = (exclude,) if isinstance(exclude, ONE) else tuple(exclude)  # read once, for every group
        snapshot = self.folder.snapshot
        k = min(k, max(1, snapshot.manifest.count))
        efforts = [effort_for(snapshot, query, effort) for query in queries]
        if any(each != efforts[0] for each in efforts):
            rest = (k, where, modality, exclude, exclude_self)
            return in_groups(
                efforts,
                lambda rows, own: self.search_many(
                    [queries[row] for row in rows], *rest, sql=sql, shape=shape, effort=own
                ),
            )
        asked = self._place(snapshot, queries)
        scope = Scope(where, sql, modality, exclude)
        wanted = Wanted(k, exclude_self, scope.describe())

        def ranker(selection: Selection | None) -> Ranker:
            return Ranker(snapshot, selection, efforts[0])

        if shape.is_plain:
            return answer_plainly(asked, ranker(select(snapshot, scope, self._masks)), wanted)
        return self._arranged(snapshot, asked, scope, wanted, shape, ranker)

    def _arranged(
        self,
        snapshot: Snapshot,
        asked: Asked,
        scope: Scope,
        wanted: Wanted,
        shape: Shape,
        ranker: Callable[[Selection | None], Ranker],
    ) -> list[Hits]:
        """Arrange what a ranker gives of a scope; of calibrated answers one a modality."""
        names = list(snapshot.manifest.modalities) if scope.modality is None else [scope.modality]
        if not shape.calibrated or not names:  # an emptied index has no modality
            return answer_arranged(asked, {"": ranker(select(snapshot, scope, self._masks))}, wanted, shape, None)
        rankers = {name: ranker(select(snapshot, scope.of(name), self._masks)) for name in names}
        return answer_arranged(asked, rankers, wanted, shape, self.background(snapshot))

    def search_range(
        self,
        query: Embedding | FloatArray,
        least: float,
        limit: int = RANGE_LIMIT,
        where: str | Filter | None = None,
        modality: str | None = None,
        sql: str | None = None,
        *,
        exclude_self: bool = False,
        shape: Shape = PLAIN,
    ) -> Hits:
        """Find every item that scores at least so much, best first; `notes` say where there are more than `limit`.

        Args:
            query: as in `search`.
            least: cosine; an item that scores just this is an answer.
            limit: how many at most, so that memory is bounded; `iter_range` has no limit.
            where: as in `search`.
            modality: likewise.
            sql: likewise.
            exclude_self: likewise.
            shape: how the items of the range are arranged.

        Raises:
            As `search`; InputError: pages, which `search` gives; a limit below 1, or a least score that is no number.
        """
        if limit < 1:
            raise InputError(f"limit: expected at least 1, got {limit}.")
        if shape.is_paged:
            raise InputError("a range is given whole: ask for its pages with search(query, k, shape=...).")
        snapshot = self.folder.snapshot
        asked = self._place(snapshot, [query])
        own = np.array(asked.own_ids(0) if exclude_self else [], dtype=np.int64)
        exclude = tuple(own[snapshot.locate(own)[0] >= 0].tolist())  # items of other indexes are no answers anyway
        totals: list[int] = []

        def ranker(selection: Selection | None) -> Ranker:
            return RangeRanker(snapshot, selection, least=least, limit=limit, totals=totals)

        hits = self._arranged(snapshot, asked, Scope(where, sql, modality, exclude), Wanted(limit), shape, ranker)[0]
        if sum(totals) > limit:
            what = f"of the best {limit:,}" if len(hits) < limit else f"the best {limit:,}"
            hits.notes += (f"{sum(totals):,} items score at least {least:g}; these are {what}",)
        return hits

    def iter_range(
        self,
        query: Embedding | FloatArray,
        least: float,
        where: str | Filter | None = None,
        modality: str | None = None,
        sql: str | None = None,
    ) -> Iterator[Hits]:
        """Iterate over every item that scores at least so much, a block of rows at a time, in no order between blocks.

        Arguments and errors as of `search_range`.
        """
        snapshot = self.folder.snapshot
        asked = self._place(snapshot, [query])
        selection = select(snapshot, Scope(where, sql, modality), self._masks)
        for scores, ids in iter_range(snapshot, asked.vectors, least, selection):
            yield Hits(snapshot, Ranked(scores, ids), asked.queries[0])

    def _place(self, snapshot: Snapshot, queries: Sequence[Embedding | FloatArray] | FloatArray) -> Asked:
        """Check queries and centre them as the index is."""
        for query in queries:
            if isinstance(query, Embedding):
                self.check(query)
        asked = place_queries(snapshot, queries)
        unit_queries(asked.vectors, snapshot.manifest.dim)  # refused here, whatever runs
        return asked

    def select(
        self, where: str | Filter | None = None, modality: str | None = None, sql: str | None = None
    ) -> Selection | None:
        """Say what a filter lets pass, and what finding out took; None where nothing is filtered."""
        return select(self.folder.snapshot, Scope(where, sql, modality), self._masks)

    # ---- calibration -------------------------------------------------------------------------------------------------

    def background(self, snapshot: Snapshot | None = None) -> Background:
        """Give what percentiles are over: the background beside the index, else samples drawn now.

        Raises:
            MismatchError: it was altered, or is of another space or centring.
        """
        snapshot = self.folder.snapshot if snapshot is None else snapshot
        stored = load_background(snapshot)
        return self.draw_background(()) if stored is None else stored

    def draw_background(self, beside: Embeddings | Sequence[Embeddings] = ()) -> Background:
        """Draw samples of each modality; see `calibrate.draw_background`.

        Args:
            beside: further embeddings of the same space, for modalities that the index is asked with and does not hold.
        """
        snapshot = self.folder.snapshot

        def masks(modality: str) -> Iterable[Any]:
            found = select(snapshot, Scope(modality=modality), self._masks)
            return () if found is None else found.masks

        return draw_background(snapshot, masks, [open_source(each) for each in several(beside)])

    def save_background(self, beside: Embeddings | Sequence[Embeddings] = ()) -> Background:
        """Draw a background and keep it beside the index."""
        background = self.draw_background(beside)
        save_background(self.folder.snapshot, background)
        return background

    # ---- identity ----------------------------------------------------------------------------------------------------

    def check(self, query: Embedding | Identity) -> None:
        """Refuse a query that was not made for this index; see `fitting.check_fits`."""
        check_fits(self.folder.snapshot, query)

    def check_space_known(self) -> None:
        """Refuse to encode anything for an index of imported vectors that nobody vouches for.

        Raises:
            MismatchError: with what to type.
        """
        check_space_known(self.folder.snapshot)

    def item(self, key: str | int) -> Embedding:
        """Make a query of an item of the index.

        Args:
            key: as in the hits: "photos/bird.jpg", "talk.wav#t=5,10"; or an id.

        Raises:
            MissingInputError: no such item, or several spans of it.
        """
        snapshot = self.folder.snapshot
        ids = resolve_items(snapshot, [key])
        if ids.size != 1:
            rows = snapshot.table(ids[:3], ["start_s", "end_s"]).to_pylist()
            spans = ", ".join(span_key(str(key), (row["start_s"], row["end_s"])) for row in rows)
            raise MissingInputError(f"{self.path}: {key} has {ids.size} spans. Name one: {spans}, ...")
        modality = snapshot.table(ids, ["modality"])["modality"][0].as_py()
        whole = self.manifest.identity
        identity = Identity(
            whole.space_id,
            {name: tower for name, tower in whole.tower_ids.items() if name == modality},
            {name: preset for name, preset in whole.preset_ids.items() if name == modality},
        )
        means = snapshot.centring.id if snapshot.centring else None
        return Embedding.of_vector(snapshot.rows(ids), str(key), identity, modality, int(ids[0]), means)

    def has(self, key: str) -> bool:
        """Say whether the index has an item, or spans of an item, of that key."""
        return bool(find_key(self.folder.snapshot, key).size)

    # ---- looking -----------------------------------------------------------------------------------------------------

    def items(self, ids: Iterable[str | int] | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Give rows of the item table.

        Args:
            ids: ids or keys, in the order wanted; None: every item.
            columns: which; None: all.

        Raises:
            MissingInputError: an item is not there.
        """
        snapshot = self.folder.snapshot
        return snapshot.table(snapshot.ids() if ids is None else resolve_items(snapshot, ids), columns)

    def vectors(self, ids: Iterable[str | int] | None = None) -> FloatArray:
        """Give the unit rows of items, (m, d) float32, centred if the index is; arguments and errors as in `items`."""
        snapshot = self.folder.snapshot
        return snapshot.rows(snapshot.ids() if ids is None else resolve_items(snapshot, ids))

    def verify(self) -> dict[str, Any]:
        """Read every byte: checksums, counts, unit rows, a sample searched exactly; see `Snapshot.verify`."""
        return self.folder.verify()

    # ---- changing ----------------------------------------------------------------------------------------------------

    def add(self, embeddings: Embeddings) -> Added:
        """Add or replace items from embeddings of the same space; see `IndexFolder.add`."""
        return self.folder.add(embeddings)

    def remove(self, items: Iterable[str | int]) -> int:
        """Take items out by key (with all their spans) or id; gives how many.

        Raises:
            MissingInputError: an item is not there.
        """
        return self.folder.remove(resolve_items(self.folder.snapshot, items))

    def compact(self) -> None:
        """Rewrite the index without its removed rows."""
        self.folder.compact()
