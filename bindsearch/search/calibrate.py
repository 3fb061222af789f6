"""Scores on one scale: how many of the pairs that nobody asked for score less, for a pair of modalities.

A cosine of 0.30 between a text and a picture means much, between two pictures nothing. So a score is placed in the
scores of a background: samples of items of each modality, kept beside the index. A query of one modality is placed
among all pairs of the two samples (text -> image); a sum of several terms, which is a pair of nothing, among its own
scores with the sample of the item's modality. Where a list mixes modalities, percentiles can be compared.

Beyond the best 2 % of the background the share that scores more is continued as an exponential, fitted to how far these
lie above the threshold (peaks over threshold), so that the best answers among millions do not all tie at 100.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import MismatchError
from bindsearch.index.commit import BACKGROUND
from bindsearch.index.identity import Identity
from bindsearch.index.source import check_dim, check_known, identity_of
from bindsearch.query import Embedding

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.index.snapshot import Snapshot
    from bindsearch.index.source import VectorSource
    from bindsearch.types import FloatArray, IntArray

LOG = logging.getLogger(__name__)
FILE = BACKGROUND
SAMPLE = 512
_FORMAT = 1
_TAIL = 0.02
_FEWEST = 16


@dataclass(frozen=True)
class Scale:
    """Where a score stands in a background.

    Attributes:
        scores: (n,) float64 background scores, ascending.
        name: of the background, for people: "text -> image".
    """

    scores: NDArray[np.float64]
    name: str

    def share_above(self, scores: NDArray[Any]) -> NDArray[np.float64]:
        """Give the share of the background that scores more, in (0, 1]; falls as the score rises, beyond it too.

        Args:
            scores: (m,) numbers. Not modified.
        """
        values = self.scores
        count = values.size
        first = min(count - 2, int(np.floor((1 - _TAIL) * (count - 1))))
        start = values[first]
        above = 1 - np.arange(count) / (count - 1)
        inside = np.interp(scores, values, above, left=1.0)
        beyond = values[first + 1 :] - start
        spread = max(float(beyond.mean()), 1e-9)
        tail = above[first] * np.exp(-np.maximum(np.asarray(scores, dtype=np.float64) - start, 0) / spread)
        found = np.where(np.asarray(scores) > start, tail, np.maximum(inside, above[first]))
        return np.asarray(found, dtype=np.float64)

    def percentile(self, scores: NDArray[Any]) -> NDArray[np.float64]:
        """Give the percentile of scores, in [0, 100)."""
        return 100 * (1 - self.share_above(scores))


@dataclass
class Background:
    """Samples of items, by modality.

    Attributes:
        rows: modality -> (m, d) float32 unit rows, as the index stores them (centred where it is).
        counts: modality -> how many items the sample was drawn from.
        identity: of what the samples were drawn from.
        stored: whether it was kept beside the index; False: drawn for this search.
        generation: of the index when it was drawn.
    """

    rows: dict[str, FloatArray]
    counts: dict[str, int]
    identity: Identity
    stored: bool = False
    generation: int = 0
    _pairs: dict[tuple[str, str], Scale] = field(default_factory=dict)

    def scale(self, query: Embedding | None, vector: FloatArray, modality: str) -> Scale | None:
        """Give the scale for the scores between a query and the items of a modality.

        Args:
            query: what was asked; None: a bare vector.
            vector: (d,) or (1, d) float32, normalised in a copy. Not modified.
            modality: of the items.

        Returns:
            The scale; None where the sample of the modality has fewer than 16 items.
        """
        items = self.rows.get(modality)
        if items is None or items.shape[0] < _FEWEST:
            return None
        asked = _only_modality(query)
        if asked is not None and self.rows.get(asked, items[:0]).shape[0] >= _FEWEST:
            if (asked, modality) not in self._pairs:
                self._pairs[asked, modality] = self._pair(asked, modality)
            return self._pairs[asked, modality]
        wide = vector.reshape(-1).astype(np.float64)
        own = items.astype(np.float64) @ (wide / np.linalg.norm(wide))
        return Scale(np.sort(own), f"this query -> {modality}")

    def _pair(self, asked: str, modality: str) -> Scale:
        products = self.rows[asked] @ self.rows[modality].T
        if asked == modality:  # an item is no background of itself
            products = products[~np.eye(products.shape[0], dtype=bool)]
        return Scale(np.sort(products.reshape(-1).astype(np.float64)), f"{asked} -> {modality}")


def _only_modality(query: Embedding | None) -> str | None:
    """Give the modality of a query of one term that is looked for; None for sums and bare vectors."""
    if query is None or len(query.terms) != 1 or query.terms[0].weight <= 0:
        return None
    return query.terms[0].modality


def draw_background(
    snapshot: Snapshot,
    mask_of: Callable[[str], Iterable[NDArray[np.bool_]]],
    beside: Iterable[tuple[VectorSource, str]] = (),
    sample: int = SAMPLE,
) -> Background:
    """Draw a sample of each modality of an index: the items with the smallest ids, which are hashes of their keys.

    Args:
        snapshot: the index.
        mask_of: gives the living rows of a modality, a mask a segment.
        beside: further embeddings of the same space, each with its name, as of texts that the index is asked with and
            does not hold; they join the index's own where it holds fewer than 16 items of their modality.
        sample: rows a modality, at most.

    Raises:
        MismatchError: embeddings of another space or dimension, or of which another tower or preset made a modality.
    """
    identity, here = snapshot.manifest.identity, str(snapshot.path)
    fix = f"Embed them as the items of the index were: with --space {snapshot.manifest.space_name}, the same --preset."
    drawn: dict[str, _Drawn] = {}
    for modality in snapshot.manifest.modalities:
        ids = np.concatenate(
            [part.index.ids[mask] for part, mask in zip(snapshot.segments, mask_of(modality), strict=True)]
        )
        first = _smallest(ids, sample)
        drawn[modality] = _Drawn(first, snapshot.rows(first), int(ids.size))
    enough = [modality for modality, own in drawn.items() if own.count >= _FEWEST]
    for source, name in beside:
        identity = identity.merged(identity_of(source, name), here, name or "the embeddings", fix)
        check_dim(snapshot.manifest.dim, source.manifest.dim, here, name or "the embeddings")
        check_known(snapshot.manifest, source, here, name)
        for modality, found in _of_source(snapshot, source, sample).items():
            if modality in enough:
                LOG.warning(
                    "%s: embeddings of %s are not needed: the index holds %d of its own",
                    snapshot.path, modality, drawn[modality].count,
                )  # fmt: skip
            else:
                drawn[modality] = drawn[modality].joined(found, sample) if modality in drawn else found
    rows = {modality: each.rows for modality, each in drawn.items()}
    counts = {modality: each.count for modality, each in drawn.items()}
    return Background(rows, counts, identity.within(rows), generation=snapshot.manifest.generation)


@dataclass(frozen=True)
class _Drawn:
    """A sample: (m,) int64 ids, (m, d) float32 unit rows, and how many items it was drawn from."""

    ids: IntArray
    rows: FloatArray
    count: int

    def joined(self, other: _Drawn, sample: int) -> _Drawn:
        """Join another sample; items that are in both samples count once, and its own rows stay."""
        both = np.concatenate([self.ids, other.ids])
        ids, places = np.unique(both, return_index=True)
        rows = np.concatenate([self.rows, other.rows])[places[:sample]]
        return _Drawn(ids[:sample], rows, self.count + other.count - (both.size - ids.size))


def _smallest(ids: IntArray, count: int) -> IntArray:
    return np.sort(ids if ids.size <= count else np.partition(ids, count)[:count])


def _of_source(snapshot: Snapshot, source: VectorSource, sample: int) -> dict[str, _Drawn]:
    """Draw a sample of each modality of embeddings, centred as the index is."""
    from bindsearch.index.checks import unit_rows

    blocks: Any = source.iter_blocks(4096)
    if snapshot.centring is not None:
        blocks = snapshot.centring.blocks(blocks, str(snapshot.path))
    kept: dict[str, tuple[IntArray, FloatArray]] = {}
    counts: dict[str, int] = {}
    for ids, vectors, table in blocks:
        names = np.array(table["modality"].to_pylist(), dtype=object)
        for modality in dict.fromkeys(names.tolist()):
            here = names == modality
            counts[modality] = counts.get(modality, 0) + int(here.sum())
            old_ids, old_rows = kept.get(modality, (ids[:0], vectors[:0]))
            all_ids, all_rows = np.concatenate([old_ids, ids[here]]), np.concatenate([old_rows, vectors[here]])
            order = np.argsort(all_ids, kind="stable")[:sample]
            kept[modality] = all_ids[order], all_rows[order]
    return {name: _Drawn(ids, unit_rows(found, "vectors"), counts[name]) for name, (ids, found) in kept.items()}


def save_background(snapshot: Snapshot, background: Background) -> Path:
    """Keep a background beside an index, in place of an older one; gives its path."""
    arrays: dict[str, Any] = {f"rows_{name}": rows.astype(np.float16) for name, rows in background.rows.items()}
    facts = {
        "format": _FORMAT,
        "space_id": snapshot.manifest.space_id,
        "tower_ids": dict(background.identity.tower_ids),
        "preset_ids": dict(background.identity.preset_ids),
        "tokenizer_id": background.identity.tokenizer_id,
        "centring": snapshot.centring.id if snapshot.centring else None,
        "generation": background.generation,
        "counts": background.counts,
        "sha256": _hash(arrays),
    }
    path = snapshot.path / FILE
    temporary = snapshot.path / f"{FILE}.tmp-{os.getpid()}"
    with temporary.open("wb") as stream:
        np.savez(stream, facts=np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8), **arrays)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    return path


def load_background(snapshot: Snapshot) -> Background | None:
    """Read the background beside an index; None where there is none, or only one of an index that was replaced.

    Raises:
        MismatchError: it was altered, or drawn from rows of another space, tower or preset, or centred otherwise.
    """
    path = snapshot.path / FILE
    again = f"Draw it again: bindsearch index background {snapshot.path}"
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        facts: Mapping[str, Any] = json.loads(arrays.pop("facts").tobytes())
    except FileNotFoundError:
        return None
    except Exception as error:  # zipfile, zlib, numpy and json each have their own
        raise MismatchError(f"{path}: not readable ({error}). {again}") from error
    if facts.get("format") != _FORMAT or facts.get("sha256") != _hash(arrays):
        raise MismatchError(f"{path}: altered, or of another format ({facts.get('format')!r}). {again}")
    if int(facts["generation"]) < snapshot.manifest.first_generation:
        return None
    here = (snapshot.manifest.space_id, snapshot.centring.id if snapshot.centring else None)
    there = (facts["space_id"], facts["centring"])
    if here != there:
        raise MismatchError(f"{path}: drawn from (space, centring) {there}, the index is {here}. {again}")
    made_by = {name: facts.get(name, {}) for name in ("tower_ids", "preset_ids")}  # older files name the space alone
    identity = Identity(facts["space_id"], **made_by, tokenizer_id=facts.get("tokenizer_id"))
    snapshot.manifest.identity.merged(identity, str(snapshot.path), str(path), again)
    rows = {name.removeprefix("rows_"): array.astype(np.float32) for name, array in arrays.items()}
    return Background(rows, dict(facts["counts"]), identity, True, int(facts["generation"]))


def _hash(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape} {arrays[name].dtype}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
