"""Verdicts: what a classifier says of items, kept as arrays; one item at a time when looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

    from bindsearch.types import FloatArray, IntArray


@dataclass(frozen=True)
class Verdict:
    """What a classifier says of one item.

    Attributes:
        label: the most probable; probability, score: its probability, and its cosine (None of "none of these").
        ranked: the best labels, each with probability and cosine, best first.
        item: columns of the item: key, modality, source, start_s, end_s and whatever is known.
    """

    label: str
    probability: float
    score: float | None
    ranked: tuple[tuple[str, float, float | None], ...]
    item: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Key of the item, or the path or words as given."""
        return str(self.item["key"])

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON types: the item's columns, then label, probability, score and the ranked labels."""
        own = {name: value for name, value in self.item.items() if name in _SHOWN and value is not None}
        if "id" in own:
            own["id"] = str(own["id"])  # 63 bits do not fit every JSON reader's numbers
        ranked = [_entry(*each) for each in self.ranked]
        return {**own, **_entry(self.label, self.probability, self.score), "ranked": ranked}


_SHOWN = ("id", "key", "modality", "source", "member", "start_s", "end_s")


def _entry(label: str, probability: float, score: float | None) -> dict[str, Any]:
    return {
        "label": label,
        "probability": round(probability, 6),
        "score": None if score is None else round(score, 6),
    }


class TableItems(Sequence[Mapping[str, Any]]):
    """The rows of an item table, made into records when they are looked at.

    Attributes:
        table: the rows.
    """

    def __init__(self, table: pa.Table) -> None:
        """Take the rows as they are."""
        self.table = table

    def __len__(self) -> int:
        """Count the rows."""
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, place: int) -> Mapping[str, Any]: ...

    @overload
    def __getitem__(self, place: slice) -> TableItems: ...

    def __getitem__(self, place: int | slice) -> Mapping[str, Any] | TableItems:
        """Give a record, or the rows of a slice."""
        if isinstance(place, slice):
            return TableItems(self.table.take(np.arange(len(self))[place]))
        record: dict[str, Any] = self.table.slice(range(len(self))[place], 1).to_pylist()[0]
        return record

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """Go through the records, some thousands in memory at once."""
        for batch in self.table.to_batches(max_chunksize=4096):
            yield from batch.to_pylist()


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What a classifier says of n items.

    Attributes:
        names: labels, in the order of the codes below.
        items: n records of the items' columns.
        codes: (n, k) int64 codes of the best labels, best first.
        probability: (n, k) float32, of those.
        score: (n, k) float32 cosines, NaN for "none of these".
        facts: of the whole: space, templates, scales.
        bad: what could not be read: name and reason.
        preset_ids: modality -> preset that the items were read with, for pictures of them.
    """

    names: tuple[str, ...]
    items: Sequence[Mapping[str, Any]]
    codes: IntArray
    probability: FloatArray
    score: FloatArray
    facts: Mapping[str, Any] = field(default_factory=dict)
    bad: tuple[tuple[str, str], ...] = ()
    preset_ids: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """Count the items."""
        return len(self.items)

    def __iter__(self) -> Iterator[Verdict]:
        """Go through the verdicts in the items' order."""
        for place, item in enumerate(self.items):
            yield self._verdict(place, item)

    def __getitem__(self, place: int) -> Verdict:
        """Give one verdict."""
        return self._verdict(place, self.items[place])

    def _verdict(self, place: int, item: Mapping[str, Any]) -> Verdict:
        ranked = tuple(
            (self.names[code], float(share), None if np.isnan(score) else float(score))
            for code, share, score in zip(self.codes[place], self.probability[place], self.score[place], strict=True)
        )
        return Verdict(*ranked[0], ranked, item)

    @property
    def labels(self) -> list[str]:
        """The most probable label of every item."""
        return [self.names[code] for code in self.codes[:, 0]]

    def counts(self) -> dict[str, int]:
        """Count the items a label, most frequent first; labels that nobody got are left out."""
        return dict(Counter(self.labels).most_common())

    def head(self, n: int) -> Verdicts:
        """Give the first n."""
        return replace(
            self,
            items=self.items[:n],
            codes=self.codes[:n],
            probability=self.probability[:n],
            score=self.score[:n],
        )

    def to_json(self) -> list[dict[str, Any]]:
        """Give every verdict as plain JSON types."""
        return [verdict.to_json() for verdict in self]

    def _repr_html_(self) -> str:
        """Show the first verdicts in a notebook."""
        from bindsearch.verdicts import notebook_html

        return notebook_html(self)


def rank(probability: FloatArray, scores: FloatArray, k: int) -> tuple[IntArray, FloatArray, FloatArray]:
    """Take each item's k most probable labels.

    Args:
        probability: (n, K or K + 1). Not modified.
        scores: (n, K) cosines; the last column of probabilities may have none. Not modified.
        k: how many; less where there are fewer.

    Returns:
        Codes (n, k) int64, probabilities (n, k) float32, cosines (n, k) float32 with NaN where there is none; labels of
        the same probability are in the order of the labels.
    """
    missing = probability.shape[1] - scores.shape[1]
    padded = np.concatenate([scores, np.full((len(scores), missing), np.nan, dtype=np.float32)], axis=1)
    codes = np.argsort(-probability, axis=1, kind="stable")[:, : max(1, min(k, probability.shape[1]))].astype(np.int64)
    return codes, np.take_along_axis(probability, codes, 1), np.take_along_axis(padded, codes, 1)
