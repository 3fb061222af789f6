"""The held-out queries that an index is tuned on: of the modalities that will ask it.

Queries of another modality fall beside the indexed rows, and settings that suffice for rows do not for them. So samples
are taken, first that gives any, from

    1. stores that are named (`--queries STORE`), each modality in them apart;
    2. the index itself, where it holds several modalities, in two samples a modality of the same rows: they ask for
       rows of the others, as a query with a filter does, and for all rows but themselves, as one without does;
    3. the index's own rows, each left out of its own answers, with a warning: this promises too much.

What holds on both samples of a modality is found by `together.py` (docs/adr/0148).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bindsearch.errors import MissingInputError
from bindsearch.index.identity import Identity
from bindsearch.index.source import Embeddings, VectorSource, check_dim, identity_of, open_source, several
from bindsearch.index.tune import Sample
from bindsearch.index.tuned import OWN_ROWS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.index.centring import Centring
    from bindsearch.index.snapshot import Snapshot
    from bindsearch.types import FloatArray, IntArray

LOG = logging.getLogger(__name__)
COUNT = 500
"""Queries a modality that are held out, as many as there are."""

FEWEST = 20
"""Rows of a modality that are too few to ask: no settings could be confirmed on them. As answers they are too few too:
searches score every one of so few, so that any settings find them."""

_BLOCK = 8192
_NO_MEAN = 3.0
"""A mean of n unit rows is shorter than this over sqrt(n) where they point anywhere."""


@dataclass(frozen=True)
class Asked:
    """Queries of one modality before their answers are known; attributes as of `Sample`.

    Attributes:
        selectors: a mask a segment of the rows that may be answers; None: all.
    """

    modality: str
    source: str
    queries: FloatArray
    own: IntArray
    selectors: tuple[NDArray[np.bool_], ...] | None = None


def held_out(snapshot: Snapshot, stores: Embeddings | Sequence[Embeddings], k: int, count: int = COUNT) -> list[Sample]:
    """Collect samples with their true answers, by exact search.

    Args:
        snapshot: of the index to tune.
        stores: embeddings of queries; may be none.
        k: answers a query.
        count: queries a modality.

    Returns:
        One sample a modality; of an index of several that asks itself two, the one over the other modalities first,
        where these hold FEWEST rows or more.

    Raises:
        MissingInputError: the index, or a store of queries, is empty.
        MismatchError: queries of another space, tower or preset.
    """
    if not snapshot.manifest.count:
        raise MissingInputError(
            f"{snapshot.path}: holds no item, so that nothing can be measured. Add some: "
            f"bindsearch index add {snapshot.path} EMBEDDINGS"
        )
    named = several(stores)
    asked = _from_stores(snapshot, named, count) if named else _from_index(snapshot, count)
    samples = []
    for each in asked:
        extra = int((each.own >= 0).any())
        scores, ids, _ = snapshot.search_exact(each.queries, k + extra, each.selectors)
        least, answers = _least(scores, ids, each.own, k)
        samples.append(Sample(each.modality, each.source, each.queries, least, each.own, each.selectors, answers))
    return samples


def check_queries(embeddings: Embeddings, stores: Embeddings | Sequence[Embeddings]) -> None:
    """Refuse queries that cannot ask for embeddings, before anything is built.

    Raises:
        MissingInputError: a store is not there.
        MismatchError: queries of another space, tower, preset or dimension.
    """
    source, name = open_source(embeddings)
    for store in several(stores):
        _check_store(identity_of(source, name), int(source.manifest.dim), name or "embeddings", store)


def _check_store(identity: Identity, dim: int, here: str, store: Embeddings) -> tuple[VectorSource, str]:
    """Open a store of queries and compare it; gives it with its name."""
    source, name = open_source(store)
    fix = "Embed the queries with the space of the index."
    identity.merged(identity_of(source, name), here, name or "the queries", fix)
    check_dim(dim, source.manifest.dim, here, name or "the queries")
    return source, name


def _least(scores: FloatArray, ids: IntArray, own: IntArray, k: int) -> tuple[FloatArray, int]:
    """Give the score of each query's k-th answer that is not itself; of fewer answers, of the last; and how many.

    A query that no row can answer gets the score -inf, which `overlap_at_k` reads as nothing to be missed.
    """
    kept = np.where((ids >= 0) & (ids != own[:, None]), scores, -np.inf)
    best = -np.sort(-kept, axis=1)[:, :k]
    last = np.maximum(np.isfinite(best).sum(axis=1) - 1, 0)
    least = np.asarray(np.take_along_axis(best, last[:, None], axis=1)[:, 0], dtype=np.float32)
    return least, int(last.min(initial=k - 1)) + 1


def query_means(stores: Embeddings | Sequence[Embeddings], centring: Centring | None = None) -> FloatArray | None:
    """Take the mean of each modality's queries, where they have one: (j, d) float32 unit rows, or None.

    Args:
        stores: embeddings of queries; those that tuning takes are taken.
        centring: of the index that they will ask.
    """
    means = []
    found, _ = _sampled([open_source(store) for store in several(stores)], COUNT)
    for modality, (_, rows) in sorted(found.items()):
        if centring is not None:
            centring.check([modality], "queries")
            rows = centring.apply(rows, modality, f"queries of {modality}")
        units = rows.astype(np.float64) / np.linalg.norm(rows, axis=1, keepdims=True)
        mean = units.mean(axis=0)
        length = float(np.linalg.norm(mean))
        if length > _NO_MEAN / np.sqrt(len(units)):
            means.append(mean / length)
    return np.stack(means).astype(np.float32) if means else None


def _from_stores(snapshot: Snapshot, stores: Sequence[Embeddings], count: int) -> list[Asked]:
    """Take queries from stores."""
    manifest = snapshot.manifest
    found, sources = _sampled(
        [_check_store(manifest.identity, manifest.dim, str(snapshot.path), store) for store in stores], count
    )
    if not found:
        raise MissingInputError(f"{', '.join(map(str, stores))}: no embedded item to ask with.")
    asked = []
    for modality, (_, rows) in sorted(found.items()):
        if snapshot.centring is not None:
            snapshot.centring.check([modality], str(snapshot.path))
            rows = snapshot.centring.apply(rows, modality, f"queries of {modality}")
        asked.append(Asked(modality, " + ".join(sources[modality]), rows, np.full(len(rows), -1, dtype=np.int64)))
    return asked


def _sampled(
    stores: Sequence[tuple[VectorSource, str]], count: int
) -> tuple[dict[str, tuple[IntArray, FloatArray]], dict[str, dict[str, None]]]:
    """Take of each modality the rows with the smallest ids, which are hashes; gives (ids, rows), and whose they are."""
    found: dict[str, tuple[IntArray, FloatArray]] = {}
    sources: dict[str, dict[str, None]] = {}
    for source, name in stores:
        for ids, vectors, table in source.iter_blocks(_BLOCK):
            kinds = np.asarray(table["modality"].to_pylist())
            for each in dict.fromkeys(kinds.tolist()):
                here = kinds == each
                sources.setdefault(each, {})[name] = None
                found[each] = _smallest(found.get(each), (ids[here], vectors[here]), count)
    return found, sources


def _smallest(
    kept: tuple[IntArray, FloatArray] | None, more: tuple[IntArray, FloatArray], count: int
) -> tuple[IntArray, FloatArray]:
    """Join rows to those kept, and keep the `count` of smallest id."""
    ids, rows = more
    if kept is not None:
        ids, rows = np.concatenate([kept[0], ids]), np.concatenate([kept[1], rows])
    first = np.argsort(ids, kind="stable")[:count]
    return ids[first], rows[first]


def _from_index(snapshot: Snapshot, count: int) -> list[Asked]:
    """Take rows of the index as queries."""
    modality = [segment.column("modality").to_numpy().astype(str) for segment in snapshot.segments]
    ids = np.concatenate([segment.index.ids for segment in snapshot.segments])
    alive = np.concatenate([segment.index.alive for segment in snapshot.segments])
    every = np.concatenate(modality)
    names = sorted(snapshot.manifest.modalities)
    few = [name for name in names if snapshot.manifest.modalities[name] < FEWEST]
    if few and len(few) < len(names):
        LOG.warning(
            "%s: not tuned for questions by %s, of which it holds fewer than %d; they get the most demanding settings",
            snapshot.path,
            ", ".join(few),
            FEWEST,
        )
    asked = []
    for name in names if len(few) == len(names) else [each for each in names if each not in few]:
        places = np.flatnonzero((every == name) & alive)
        own = ids[places[_spread(len(places), count)]]
        queries = snapshot.rows(own)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        if sum(snapshot.manifest.modalities.values()) - snapshot.manifest.modalities[name] >= FEWEST:
            asked.append(Asked(name, OWN_ROWS, queries, own, tuple(part != name for part in modality)))
        asked.append(Asked(name, OWN_ROWS, queries, own))
    if len(names) == 1:
        LOG.warning(
            "%s: tuned on its own %s rows, as no queries are at hand. Queries of another modality do worse than such "
            "settings promise; name some that are like those to come: --queries EMBEDDINGS",
            snapshot.path,
            names[0],
        )
    return asked


def _spread(total: int, count: int) -> IntArray:
    """Choose `count` places of `total`, evenly."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))
