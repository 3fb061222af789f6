"""Queries as an index wants them: centred as its rows are, as unit vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from bindsearch.errors import InputError, MismatchError, ShapeError
from bindsearch.query import Embedding

if TYPE_CHECKING:
    from bindsearch.index.snapshot import Snapshot
    from bindsearch.types import FloatArray


@dataclass(frozen=True)
class Asked:
    """Queries, ready to be searched for.

    Attributes:
        queries: one a query; None where it was a bare vector.
        vectors: (q, d) float32, centred where the index is.
    """

    queries: tuple[Embedding | None, ...]
    vectors: FloatArray

    def own_ids(self, row: int) -> list[int]:
        """Give the ids of the items that are terms of a query."""
        query = self.queries[row]
        return [] if query is None else [term.item_id for term in query.terms if term.item_id is not None]


def place_queries(snapshot: Snapshot, queries: Sequence[Embedding | FloatArray] | FloatArray) -> Asked:
    """Centre queries as the rows of an index are, and stack them.

    Args:
        snapshot: the index.
        queries: at least one; embeddings, or bare vectors. Not modified.

    Raises:
        MismatchError: a term's modality has no mean, or it is an item of an index with other means; or a bare vector is
            asked of a centred index.
        ShapeError: a bare vector is not one: (d,) or (1, d).
        InputError: a term is the mean of its modality, the terms cancel out, or a bare vector is not float32.
    """
    placed = [centre_query(query, snapshot) if isinstance(query, Embedding) else query for query in queries]
    asked = tuple(query if isinstance(query, Embedding) else None for query in placed)
    if snapshot.centring is not None and None in asked:
        snapshot.centring.check(["vector"], str(snapshot.path))
    vectors = np.concatenate([query.vector if isinstance(query, Embedding) else _bare(query) for query in placed])
    return Asked(asked, vectors)


def centre_query(query: Embedding, snapshot: Snapshot) -> Embedding:
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
            term = replace(term, vector=vector, centring=here)
        terms.append(term)
    return Embedding(tuple(terms), query.identity)


def _bare(vector: FloatArray) -> FloatArray:
    """Give a bare query vector (d,) or (1, d) float32 as (1, d); rows of several queries are none.

    Raises:
        InputError: not an array of float32.
        ShapeError: not one vector.
    """
    if getattr(vector, "dtype", None) != np.float32:
        raise InputError(
            f"query: expected an Embedding or a float32 array, got {getattr(vector, 'dtype', type(vector).__name__)}."
        )
    if not vector.size or vector.shape not in ((vector.size,), (1, vector.size)):
        raise ShapeError(
            f"query: expected one vector (d,) or (1, d), got shape {vector.shape}. Several queries: search_many(rows)."
        )
    return vector.reshape(1, -1)
