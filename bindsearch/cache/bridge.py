"""A query carried over the modality gap: blended with the cached images nearest to it, as a language model's input is.

    y = unit((1 - w) q + w r)      q the query as the index wants it, r what the cache finds for it

What is found is a term of the query like any other, so that scores are explained with it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bindsearch.cache.recipe import Enhancement
from bindsearch.cache.rows import IndexRows
from bindsearch.cache.visual import VisualCache
from bindsearch.errors import MismatchError
from bindsearch.index.identity import Identity
from bindsearch.query import Embedding
from bindsearch.search import SearchIndex
from bindsearch.search.centred import centre_query


def bridge_to(
    index: SearchIndex,
    cache: SearchIndex | None = None,
    enhancement: Enhancement | None = None,
    exact: bool = False,
) -> Callable[[Embedding], Embedding]:
    """Give a function that carries queries towards images before they are searched for.

    Args:
        index: that will be asked.
        cache: whose images are looked at; None: the index's own.
        enhancement: what to blend with; None: as the cache's recipe says, with at most as many images as there are.
        exact: whether the images are proven to be the nearest.

    Returns:
        Query -> query. One whose terms are images alone comes back as it is.

    Raises:
        MissingInputError: no image in the cache.
        InputError: numbers that nothing can be blended with.
        MismatchError: the cache is centred otherwise than the index, or of another space.
    """
    held = cache or index
    rows = IndexRows(held.folder.snapshot)
    snapshot = index.folder.snapshot
    own = None if snapshot.centring is None else snapshot.centring.id
    if rows.centring != own:
        raise MismatchError(
            f"{index.path}: its rows are {own or 'not centred'}, those of the cache {held.path} are "
            f"{rows.centring or 'not centred'}. Give --bridge alone, to carry queries by the index's own images."
        )
    index.check(held.manifest.identity)
    found = VisualCache(rows, held)
    numbers = enhancement or found.enhancement
    numbers.check()
    size = min(numbers.cache_size, len(rows))
    identity = _of_images(held)

    def carry(query: Embedding) -> Embedding:
        if all(term.modality == "image" for term in query.terms) or numbers.weight == 0:
            return query
        found.check(query)
        placed = centre_query(query, snapshot)
        near = found.retrieve(placed.vector, size, numbers.inverse_temperature, exact=exact)
        total = sum(term.weight * term.vector.astype(np.float64) for term in placed.terms)
        label = f"{size} cached images"
        other = Embedding.of_vector(near.features, label, identity, "image", centring=own)
        kept = (1 - numbers.weight) / float(np.linalg.norm(total))
        return placed * kept + other * numbers.weight

    return carry


def _of_images(index: SearchIndex) -> Identity:
    """Give the identity of an index's images alone."""
    whole = index.manifest.identity
    return Identity(
        whole.space_id,
        {name: tower for name, tower in whole.tower_ids.items() if name == "image"},
        {name: preset for name, preset in whole.preset_ids.items() if name == "image"},
    )
