"""The matrix over all ordered pairs of modalities: does a query of one find what belongs to it in another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import InputError
from bindsearch.evaluate.metrics import Figure, Judged, bootstrap, judge, wilson
from bindsearch.evaluate.rows import Rows, codes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.types import BoolArray

    Codes = NDArray[np.int64]


def measure_pairs(
    rows: Rows, column: str, ks: Sequence[int] = (1, 5, 10), ties: str = "pessimistic"
) -> list[dict[str, Any]]:
    """Measure retrieval between all ordered pairs of modalities: items whose column has one value belong together.

    Within a modality an item is not its own answer.

    Args:
        rows: what is embedded. Not modified.
        column: equal values make a pair.
        ks: of recall_at_k.
        ties: see `metrics.TIES`.

    Returns:
        One record a pair of modalities that has at least one query with a partner: query, answer, queries, without
        (queries without a partner, left out), gallery, ties (queries whose best right answer ties with a wrong one),
        recall_at_k, chance_at_k, median_rank, map.

    Raises:
        InputError: no two items belong together.
    """
    value = codes(rows.column(column))
    found = []
    for query in rows.modalities:
        for answer in rows.modalities:
            judged, kept, without = _judge_pair(rows, value, (query, answer), ties)
            if judged is not None:
                figures = summarise(judged, ks, "recall", value[kept], without, ranks=True)
                found.append({"query": query, "answer": answer, **figures})
    if not found:
        raise InputError(f"{rows.source}: no two items have the same {column!r}; there is nothing to find.")
    return found


def measure_labels(
    rows: Rows, column: str, own: str | None = None, ks: Sequence[int] = (1,), ties: str = "pessimistic"
) -> list[dict[str, Any]]:
    """Measure, between all ordered pairs of modalities, whether the best answers carry the query's label.

    Args:
        rows: what is embedded. Not modified.
        column: the labels; items without one are neither asked nor answers.
        own: column of pairs: what belongs to the query itself is no answer, so that only other things of its label
            count. None: the query's own partners are answers like others.
        ks: accuracy_at_k says that one of the best k carries the label.
        ties: see `metrics.TIES`.

    Returns:
        One record a pair of modalities: query, answer, queries, without, gallery, ties, accuracy_at_k, chance_at_k and
        map.

    Raises:
        InputError: no two items have the same label.
    """
    value = codes(rows.column(column))
    mates = None if own is None else codes(rows.column(own))
    together = _drawn_together(rows, column, own)
    found = []
    for query in rows.modalities:
        for answer in rows.modalities:
            judged, kept, without = _judge_pair(rows, value, (query, answer), ties, mates)
            if judged is not None:
                figures = summarise(judged, ks, "accuracy", together[kept], without)
                found.append({"query": query, "answer": answer, **figures})
    if not found:
        raise InputError(f"{rows.source}: no two items have the same {column!r}; there is nothing to find.")
    return found


def _drawn_together(rows: Rows, column: str, own: str | None) -> Codes:
    """Give each item its number for the bootstrap of labels, (n,) int64: one a pair or group, else one an item.

    Items of one label are no group: a label's items are asked by themselves, and few labels say little of the spread.
    """
    alone = np.arange(len(rows))
    pair = own or rows.pair_column(None)
    if pair is None or pair == column:
        return alone
    groups = codes(rows.column(pair))
    return np.where(groups < 0, alone + len(rows), groups)


def _judge_pair(
    rows: Rows, value: Codes, pair: tuple[str, str], ties: str, mates: Codes | None = None
) -> tuple[Judged | None, Codes, int]:
    """Judge one ordered pair of modalities; gives also the queries' places and how many were left out."""
    asked, there = (rows.where(modality) for modality in pair)
    asked, there = asked[value[asked] >= 0], there[value[there] >= 0]

    def is_barred(queries: Codes) -> BoolArray:
        barred = queries[:, None] == there[None]
        if mates is not None:
            barred |= (mates[queries][:, None] == mates[there][None]) & (mates[queries] >= 0)[:, None]
        return np.asarray(barred, dtype=bool)

    def is_right(queries: Codes) -> BoolArray:
        return np.asarray(value[queries][:, None] == value[there][None], dtype=bool)

    step = max(1, (16 << 20) // max(1, there.size))
    has = np.concatenate(
        [np.empty(0, dtype=bool)]
        + [
            (is_right(asked[at : at + step]) & ~is_barred(asked[at : at + step])).any(axis=1)
            for at in range(0, asked.size, step)
        ]
    )
    kept = asked[has]
    if not kept.size:
        return None, kept, int(asked.size)
    judged = judge(
        rows.vectors[kept],
        rows.vectors[there],
        lambda block: is_right(kept[block]),
        (lambda block: is_barred(kept[block])) if pair[0] == pair[1] or mates is not None else None,
        ties,
    )
    return judged, kept, int(asked.size - kept.size)


def summarise(
    judged: Judged, ks: Sequence[int], name: str, groups: Codes | None, without: int = 0, ranks: bool = False
) -> dict[str, Any]:
    """Turn a judgement into figures.

    Args:
        judged: the queries. Not modified.
        ks: of NAME_at_k.
        name: "recall" or "accuracy".
        groups: queries of one number are drawn together by the bootstrap; None: each alone.
        without: how many queries were left out, for the record.
        ranks: give the median rank of the best right answer as well.
    """
    queries = int(judged.right.size)
    record: dict[str, Any] = {
        "queries": queries,
        "without": without,
        "gallery": int(judged.gallery.max(initial=0)),
        "ties": judged.ties_matter(),
    }
    for k in ks:
        record[f"{name}_at_{k}"] = wilson(float(judged.hits(k).mean()), queries)
        record[f"chance_at_{k}"] = round(float(judged.chance(k).mean()), 6)
    if ranks:
        record["median_rank"] = bootstrap(judged.ranks(), "median", groups)
    record["map"] = bootstrap(judged.precision, "mean", groups)
    return record


def plain(record: Any) -> Any:
    """Turn figures, wherever they stand in a record, into plain JSON types."""
    if isinstance(record, Figure):
        return record.to_json()
    if isinstance(record, dict):
        return {name: plain(value) for name, value in record.items()}
    return [plain(value) for value in record] if isinstance(record, list | tuple) else record
