"""Answers: items, scores and why; the item table is joined when it is first looked at."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from bindsearch.errors import UnsupportedError
from bindsearch.types import Hit, span_key

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from bindsearch.index.manifest import Manifest
    from bindsearch.index.snapshot import Snapshot
    from bindsearch.query import Embedding
    from bindsearch.search.arrange import Ranked
    from bindsearch.search.pages import Cursor
    from bindsearch.search.ranking import Plan

_BLOCK_HITS = 4096
_OWN_COLUMNS = ("id", "key", "modality", "source", "start_s", "end_s")


class Hits(Sequence[Hit]):
    """The answers to one query, best first.

    Attributes:
        ids: (k,) int64. Not to be modified.
        scores: (k,) float32 cosines in descending order. Not to be modified.
        query: what was asked, or None where it was a bare array.
        query_id: name of the query among many, or None.
        shares: (k,) float64, of calibrated answers: the share of the background that scores more; None: not calibrated.
        plans: what was searched and why, one a search.
        notes: what whoever reads the answers should know, a line each.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        answers: Ranked,
        query: Embedding | None = None,
        *,
        first_rank: int = 1,
        cursor: Cursor | None = None,
        plans: Sequence[Plan] = (),
        notes: Sequence[str] = (),
    ) -> None:
        """Take the answers to one query.

        Args:
            snapshot: the state of the index that was searched.
            answers: in their order. Not modified.
            query: see the attributes.
            first_rank: rank of the first answer.
            cursor: of any place in the list, where answers are paged.
            plans: see the attributes.
            notes: likewise.
        """
        self.scores, self.ids, self.shares = answers.scores, answers.ids, answers.shares
        self.query = query
        self.query_id: str | None = None
        self.plans, self.notes = tuple(plans), tuple(notes)
        self._answers, self._snapshot = answers, snapshot
        self._first_rank, self._cursor = first_rank, cursor
        self._hits: tuple[Hit, ...] | None = None

    def __len__(self) -> int:
        """Count the answers; fewer than k where the index or the filter holds fewer."""
        return int(self.ids.size)

    @overload
    def __getitem__(self, place: int) -> Hit: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[Hit, ...]: ...

    def __getitem__(self, place: int | slice) -> Hit | tuple[Hit, ...]:
        """Give an answer, or a slice of them."""
        return self._joined()[place]

    def __iter__(self) -> Iterator[Hit]:
        """Iterate over the answers, best first."""
        return iter(self._joined())

    @property
    def index_path(self) -> str:
        """The folder of the index that answered."""
        return str(self._snapshot.path)

    @property
    def manifest(self) -> Manifest:
        """The manifest of the index as it was searched."""
        return self._snapshot.manifest

    @property
    def preset_ids(self) -> Mapping[str, str]:
        """Modality -> preset that the index's items were read with."""
        return self._snapshot.manifest.preset_ids

    def has_item(self, item_id: int) -> bool:
        """Say whether the index as it was searched holds an item."""
        return bool(self._snapshot.locate(np.array([item_id], dtype=np.int64))[0][0] >= 0)

    def item(self, item_id: int) -> Hit:
        """Give any item of the index as it was searched, with rank 0 and score 0: to show a term that is an item.

        Raises:
            MissingInputError: no such item.
        """
        return _make_hit(0, 0.0, self._snapshot.table(np.array([item_id], dtype=np.int64)).to_pylist()[0], {})

    @property
    def is_calibrated(self) -> bool:
        """Whether the answers have percentiles and stand in their order."""
        return self.shares is not None

    def contributions(self) -> NDArray[np.float64]:
        """Say what each term of the query adds to each score: (k, terms) float64; (k, 0) for a bare array."""
        if self.query is None:
            return np.empty((len(self), 0))
        found = np.empty((len(self), len(self.query.terms)))
        for start in range(0, len(self), _BLOCK_HITS):
            part = slice(start, start + _BLOCK_HITS)
            found[part] = self.query.contributions(self._snapshot.rows(self.ids[part]))
        return found

    def to_json(self, explain: bool = False) -> list[dict[str, Any]]:
        """Give the answers as plain JSON types; the ids are text, since 63 bits do not fit a JSON reader's numbers.

        Args:
            explain: add `contributions`, term -> what it adds to the score.
        """
        found = []
        for hit in self:
            row: dict[str, Any] = {
                "rank": hit.rank,
                "score": float(str(np.float32(hit.score))),
                "key": hit.key,
                "modality": hit.modality,
                "source": hit.source,
                "start_s": hit.span[0] if hit.span else None,
                "end_s": hit.span[1] if hit.span else None,
                "id": str(hit.id),
                **hit.columns,
            }
            if explain:
                row["contributions"] = dict(hit.contributions)
            found.append(row | self._extras(hit))
        return found

    def _extras(self, hit: Hit) -> dict[str, Any]:
        """Give the fields that only some arrangements have."""
        extras: dict[str, Any] = {}
        if hit.percentile is not None:
            extras["percentile"] = hit.percentile
        if self._answers.spans:
            extras["spans"] = [_brief(other) for other in hit.spans]
        if self._answers.duplicates:
            extras["duplicates"] = [_brief(other) for other in hit.duplicates]
        if hit.cursor is not None:
            extras["cursor"] = hit.cursor
        return extras

    def to_arrow(self) -> pa.Table:
        """Give the answers as an Arrow table: rank, score, percentile of calibrated ones, every item column."""
        import pyarrow as pa

        table = self._snapshot.table(self.ids)
        ranks = pa.array(np.arange(self._first_rank, self._first_rank + len(self), dtype=np.int64))
        if self.shares is not None:
            table = table.add_column(0, "percentile", pa.array(100 * (1 - self.shares)))
        return table.add_column(0, "score", pa.array(self.scores)).add_column(0, "rank", ranks)

    def to_pandas(self) -> Any:
        """Give the answers as a pandas frame.

        Raises:
            UnsupportedError: pandas is not installed.
        """
        try:
            importlib.import_module("pandas")
        except ImportError as error:
            raise UnsupportedError("to_pandas needs pandas. Type: pip install pandas. Or use to_arrow().") from error
        return self.to_arrow().to_pandas()

    def __repr__(self) -> str:
        """Show the number of answers and the best ones, in a few lines."""
        lines = [f"<Hits: {len(self)} of {self.index_path}>"]
        lines += [f"  {hit.rank}. {hit.score:.3f} {hit.modality} {display_key(hit)}" for hit in self[:3]]
        return "\n".join([*lines, "  ..."] if len(self) > 3 else lines)

    def _repr_html_(self) -> str:
        """Show the answers in a notebook, with pictures and players."""
        render = importlib.import_module("bindsearch.render")  # stands above this layer and is needed only here
        return str(render.notebook_html(self))

    def _joined(self) -> tuple[Hit, ...]:
        if self._hits is None:
            rows = self._snapshot.table(self.ids).to_pylist() if len(self) else []
            names = self.query.names() if self.query is not None else ()
            parts = self.contributions().tolist()
            behind = self._behind()
            found = []
            for place, (score, row, part) in enumerate(zip(self.scores, rows, parts, strict=True)):
                hit = _make_hit(self._first_rank + place, float(score), row, dict(zip(names, part, strict=True)))
                found.append(self._with_extras(place, hit, behind))
            self._hits = tuple(found)
        return self._hits

    def _with_extras(self, place: int, hit: Hit, behind: Mapping[int, Hit]) -> Hit:
        """Add to an answer what its arrangement says of it."""
        answers = self._answers
        spans = answers.spans[place] if answers.spans else ()
        duplicates = answers.duplicates[place] if answers.duplicates else ()
        share = float("nan") if self.shares is None else float(self.shares[place])
        percentile = None if math.isnan(share) else 100 * (1 - share)
        cursor = None if self._cursor is None else str(replace(self._cursor, rank=hit.rank, item_id=hit.id))
        return replace(
            hit,
            percentile=percentile,
            spans=tuple(replace(behind[each.item_id], score=each.score) for each in spans),
            duplicates=tuple(replace(behind[each.item_id], score=each.score) for each in duplicates),
            cursor=cursor,
        )

    def _behind(self) -> dict[int, Hit]:
        """Join the items that stand behind answers: id -> item."""
        hidden = [each for group in (*self._answers.spans, *self._answers.duplicates) for each in group]
        if not hidden:
            return {}
        ids = np.array(sorted({each.item_id for each in hidden}), dtype=np.int64)
        return {row["id"]: _make_hit(0, 0.0, row, {}) for row in self._snapshot.table(ids).to_pylist()}


def _brief(hit: Hit) -> dict[str, Any]:
    """Write an item that stands behind an answer."""
    return {
        "score": float(str(np.float32(hit.score))),
        "key": hit.key,
        "modality": hit.modality,
        "start_s": hit.span[0] if hit.span else None,
        "end_s": hit.span[1] if hit.span else None,
        "id": str(hit.id),
    }


def _make_hit(rank: int, score: float, row: dict[str, Any], contributions: dict[str, float]) -> Hit:
    """Make a hit of a row of the item table."""
    columns = {name: value for name, value in row.items() if name not in _OWN_COLUMNS}
    if "attributes" in columns:
        columns["attributes"] = parse_attributes(columns["attributes"])
    start, end = row.get("start_s"), row.get("end_s")
    return Hit(
        rank=rank,
        score=score,
        id=row["id"],
        key=row["key"],
        modality=row["modality"],
        source=row["source"],
        span=None if start is None or end is None else (start, end),
        columns=columns,
        contributions=contributions,
    )


def parse_attributes(cell: str | None) -> dict[str, Any]:
    """Read an item's attributes, a JSON object in a cell of the item table; of an empty cell there are none."""
    found: dict[str, Any] = json.loads(cell) if cell else {}
    return found


def percent_text(percentile: float | None) -> str:
    """Write a percentile as precisely as it differs from 100: "84.1", "99.87", "99.99962"; empty for none."""
    if percentile is None:
        return ""
    rest = max(100 - percentile, 1e-9)
    return f"{percentile:.{1 if rest >= 1 else min(9, 1 - math.floor(math.log10(rest)))}f}"


def display_key(hit: Hit) -> str:
    """Write an item's key, with its span where it has one: "talk.wav#t=5,10"; `--item` takes it so."""
    return hit.key if hit.span is None else span_key(hit.key, hit.span)
