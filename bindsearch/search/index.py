"""Search: a query in, hits out; identity checked, filters pushed down, items joined."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.config import setting_with_origin
from bindsearch.errors import InputError, MismatchError, MissingInputError, ShapeError, UnknownNameError
from bindsearch.index.change import Added
from bindsearch.index.folder import IndexFolder
from bindsearch.index.identity import Identity
from bindsearch.index.source import VectorSource
from bindsearch.query import Embedding
from bindsearch.search.hits import Hits
from bindsearch.search.where import Filter, parse_filter
from bindsearch.store import UNKNOWN
from bindsearch.types import item_id

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from bindsearch.index.manifest import Manifest
    from bindsearch.index.segment import Segment
    from bindsearch.index.snapshot import Snapshot
    from bindsearch.types import FloatArray, IntArray

    BoolArray = NDArray[np.bool_]

_SPAN = re.compile(r"(?s)(.+)#t=(\d+(?:\.\d*)?(?:e[+-]?\d+)?),(\d+(?:\.\d*)?(?:e[+-]?\d+)?)")


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
    ) -> Hits:
        """Find the items nearest to a query.

        Args:
            query: an embedding, or a bare (1, d) float32 vector. Not modified.
            k: how many answers at most.
            where: a filter on item columns, such as "size > 1000 and caption like '%dog%'"; see `where.py`.
            modality: answer with items of this one alone.
            exclude: keys or ids that may not be answers.
            exclude_self: leave out the items that are terms of the query.

        Raises:
            MismatchError: the query is of another space, or another tower or preset made a modality that both have.
            ShapeError: of another dimension.
            InputError: the filter cannot be read, the query's terms cancel out, k is below 1.
            UnknownNameError: a column or a modality that the index does not have.
        """
        return self.search_many([query], k, where, modality, exclude, exclude_self)[0]

    def search_many(
        self,
        queries: Sequence[Embedding | FloatArray] | FloatArray,
        k: int = 10,
        where: str | Filter | None = None,
        modality: str | None = None,
        exclude: Iterable[str | int] = (),
        exclude_self: bool = False,
    ) -> list[Hits]:
        """Find the items nearest to each of several queries; the answers are those of `search`, in one pass.

        Args:
            queries: embeddings, or (q, d) float32. Not modified.
            k: as in `search`.
            where: as in `search`.
            modality: as in `search`.
            exclude: as in `search`.
            exclude_self: as in `search`; each query leaves out its own items alone.

        Raises:
            As `search`.
        """
        snapshot = self.folder.snapshot
        for query in queries:
            if isinstance(query, Embedding):
                self.check(query)
        if not len(queries):
            return []
        placed = [_centre(query, snapshot) if isinstance(query, Embedding) else query for query in queries]
        asked = [query if isinstance(query, Embedding) else None for query in placed]
        if snapshot.centring is not None and None in asked:
            snapshot.centring.check(["vector"], str(self.path))
        vectors = np.concatenate([query.vector if isinstance(query, Embedding) else _bare(query) for query in placed])
        own = [_own_ids(query) if exclude_self else [] for query in asked]
        selectors = self._selectors(snapshot, where, modality, exclude)
        # own items are dropped from a longer answer, so that one batch serves all queries
        scores, ids = snapshot.search(vectors, k + max(map(len, own)), selectors)
        hits = []
        for row, query in enumerate(asked):
            kept = ~np.isin(ids[row], own[row]) if own[row] else slice(None)
            hits.append(Hits(snapshot, scores[row][kept][:k], ids[row][kept][:k], query))
        return hits

    def check(self, query: Embedding | Identity) -> None:
        """Refuse a query that was not made for this index.

        Raises:
            MismatchError: naming both values and what to type.
            ShapeError: another dimension.
        """
        manifest = self.manifest
        identity = query.identity if isinstance(query, Embedding) else query
        differs = manifest.identity.difference(identity)
        if differs is not None:
            manifest.identity.merged(identity, str(self.path), "the query", self._advice(*differs))
        if self.folder.snapshot.centring is not None:
            self.folder.snapshot.centring.check(identity.tower_ids, str(self.path))
        if isinstance(query, Embedding) and query.dim != manifest.dim:
            raise ShapeError(f"{self.path}: its vectors have dim {manifest.dim}, the query has dim {query.dim}.")

    def check_space_known(self) -> None:
        """Refuse to encode anything for an index of imported vectors that nobody vouches for.

        Raises:
            MismatchError: with what to type.
        """
        if self.manifest.space_id == UNKNOWN:
            raise MismatchError(
                f"{self.path}: its vectors were imported without their space, so that only --item and --vector can ask "
                f"it. {self._advice('space', UNKNOWN, '')}"
            )

    def _advice(self, what: str, ours: str, theirs: str) -> str:
        """Say what to type where a query differs; the arguments are those of `Identity.difference`."""
        rebuild = f"bindsearch index EMBEDDINGS -o {self.path} --force"
        if self.manifest.space_id == UNKNOWN:
            return f"Import again with the space: bindsearch import FILE -o EMBEDDINGS --space-id NAME@HASH; {rebuild}"
        preset = ours.partition(":")[0]
        if what.endswith(" preset"):
            if preset == theirs.partition(":")[0]:  # of one name, but other numbers
                return f"Rebuild: {rebuild}"
            return f"Leave --preset away, or give --preset {what.removesuffix(' preset')}={preset}"
        return f"Ask with --space {self.manifest.space_name}, or rebuild: {rebuild}"

    def item(self, key: str | int) -> Embedding:
        """Make a query of an item of the index.

        Args:
            key: as in the hits: "photos/bird.jpg", "talk.wav#t=5,10"; or an id.

        Raises:
            MissingInputError: no such item, or several spans of it.
        """
        snapshot = self.folder.snapshot
        ids = _resolve(snapshot, [key])
        if ids.size != 1:
            rows = snapshot.table(ids[:3], ["start_s", "end_s"]).to_pylist()
            spans = ", ".join(f"{key}#t={row['start_s']:g},{row['end_s']:g}" for row in rows)
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
        return bool(_find(self.folder.snapshot, key).size)

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
        return snapshot.table(snapshot.ids() if ids is None else _resolve(snapshot, ids), columns)

    def vectors(self, ids: Iterable[str | int] | None = None) -> FloatArray:
        """Give the unit rows of items, (m, d) float32, centred if the index is; arguments and errors as in `items`."""
        snapshot = self.folder.snapshot
        return snapshot.rows(snapshot.ids() if ids is None else _resolve(snapshot, ids))

    def verify(self) -> dict[str, Any]:
        """Read every byte: checksums, counts, unit rows, a sample searched exactly; see `Snapshot.verify`."""
        return self.folder.verify()

    # ---- changing ----------------------------------------------------------------------------------------------------

    def add(self, embeddings: str | Path | VectorSource) -> Added:
        """Add or replace items from embeddings of the same space; see `IndexFolder.add`."""
        return self.folder.add(embeddings)

    def remove(self, items: Iterable[str | int]) -> int:
        """Take items out by key (with all their spans) or id; gives how many.

        Raises:
            MissingInputError: an item is not there.
        """
        return self.folder.remove(_resolve(self.folder.snapshot, items))

    def compact(self) -> None:
        """Rewrite the index without its removed rows."""
        self.folder.compact()

    # ---- selecting ---------------------------------------------------------------------------------------------------

    def _selectors(
        self, snapshot: Snapshot, where: str | Filter | None, modality: str | None, exclude: Iterable[str | int]
    ) -> list[BoolArray | None] | None:
        """Turn filters into a mask a segment; None where nothing is filtered."""
        left_out = _resolve(snapshot, exclude)
        if where is None and modality is None and not left_out.size:
            return None
        if modality is not None and modality not in self.manifest.modalities:
            raise UnknownNameError(f"modality in {self.path}", modality, self.manifest.modalities)
        parsed = parse_filter(where) if isinstance(where, str) else where
        if parsed is not None:
            _check_columns(snapshot, parsed)
        return [_mask(segment, parsed, modality, left_out) for segment in snapshot.segments]


def _mask(segment: Segment, where: Filter | None, modality: str | None, left_out: IntArray) -> BoolArray:
    """Say which stored rows of a segment pass."""
    mask = np.ones(segment.entry.rows, dtype=bool)
    if where is not None:
        mask &= where.mask(lambda name: _read_column(segment, name))
    if modality is not None:
        import pyarrow.compute as pc

        mask &= pc.equal(segment.column("modality"), modality).to_numpy()
    if left_out.size:
        places = segment.index.positions(left_out)
        mask[places[places >= 0]] = False
    return mask


def _read_column(segment: Segment, name: str) -> pa.ChunkedArray:
    """Read a column of the item table, or a name out of the attributes; nulls where there is neither."""
    import pyarrow as pa

    if name in segment.column_names():
        return segment.column(name)
    values = [row.get(name) for row in _attributes(segment)]
    try:
        array = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # numbers here, words there
        array = pa.array([None if value is None else str(value) for value in values], pa.string())
    return pa.chunked_array([array])


def _attributes(segment: Segment) -> list[dict[str, Any]]:
    if "attributes" not in segment.column_names():
        return [{}] * segment.entry.rows
    return [json.loads(text) if text else {} for text in segment.column("attributes").to_pylist()]


def _check_columns(snapshot: Snapshot, where: Filter) -> None:
    """Refuse a filter on names that no item has.

    Raises:
        UnknownNameError: with the nearest name.
    """
    unknown = [name for name in where.columns if name not in snapshot.column_names()]
    if unknown:
        seen = {name for segment in snapshot.segments for row in _attributes(segment) for name in row}
        for name in unknown:
            if name not in seen:
                raise UnknownNameError(f"column in {snapshot.path}", name, {*snapshot.column_names(), *seen})


def _find(snapshot: Snapshot, key: str) -> IntArray:
    """Find the ids of a key: the item itself, else one span of it (KEY#t=START,END), else all its spans."""
    exact = np.array([item_id(key)], dtype=np.int64)
    match = _SPAN.fullmatch(key)
    named = match and np.array([item_id(match[1], (float(match[2]), float(match[3])))], dtype=np.int64)
    for ids in (exact, named):
        if ids is not None and snapshot.locate(ids)[0][0] >= 0:
            return ids
    import pyarrow.compute as pc

    found = [np.empty(0, dtype=np.int64)]
    for segment in snapshot.segments:
        ids = segment.index.ids[pc.equal(segment.column("key"), key).to_numpy()]
        found.append(ids[segment.index.positions(ids) >= 0])
    return np.concatenate(found)


def _resolve(snapshot: Snapshot, items: Iterable[str | int]) -> IntArray:
    """Give the ids of keys and ids.

    Raises:
        MissingInputError: naming the first that is not there.
    """
    found = [np.empty(0, dtype=np.int64)]
    for item in items:
        ids = _find(snapshot, item) if isinstance(item, str) else np.array([item], dtype=np.int64)
        if not ids.size or snapshot.locate(ids)[0][0] < 0:
            raise MissingInputError(f"{snapshot.path}: no item {item!r}. The keys stand in: bindsearch query --json")
        found.append(ids)
    return np.concatenate(found)


def _centre(query: Embedding, snapshot: Snapshot) -> Embedding:
    """Take from each term what was taken from the index's rows; terms that are items of it have it already.

    Raises:
        MismatchError: a term's modality has no mean, or it is an item of an index with other means.
        InputError: a term is the mean of its modality.
    """
    means = snapshot.centring
    here = None if means is None else means.id
    if all(term.centring == here for term in query.terms):
        return query
    terms = []
    for term in query.terms:
        if term.centring not in (None, here):
            raise MismatchError(
                f"{snapshot.path}: its rows are {here or 'not centred'}, the term {term.label!r:.80} is an item of "
                f"an index that is {term.centring}. Give the file itself in place of the item."
            )
        if means is not None and term.centring is None:
            means.check([term.modality], str(snapshot.path))
            vector = means.apply(term.vector[None], term.modality, f"the term {term.label!r:.80}")[0]
            vector.flags.writeable = False
            term = replace(term, vector=vector, centring=here)
        terms.append(term)
    return Embedding(tuple(terms), query.identity)


def _own_ids(query: Embedding | None) -> list[int]:
    return [] if query is None else [term.item_id for term in query.terms if term.item_id is not None]


def _bare(vector: FloatArray) -> FloatArray:
    """Give a bare query vector as (1, d)."""
    if getattr(vector, "dtype", None) != np.float32:
        raise InputError(
            f"query: expected an Embedding or a float32 array, got {getattr(vector, 'dtype', type(vector).__name__)}."
        )
    return vector.reshape(1, -1) if vector.size == vector.shape[-1] else vector
