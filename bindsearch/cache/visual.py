"""The visual cache: an embedding moved towards its nearest cached images, for any batch.

    cache = VisualCache.open("indexes/visual-cache")
    vectors = cache.enhance(space.embed("audio", ["waves.wav"]))

Training-free, after ImageBind-LLM; the formulas stand in `blend.py`. The reference is right for one query at a time;
here each row of a batch is answered as if it were alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.cache.blend import (
    CACHE_SIZE,
    INVERSE_TEMPERATURE,
    WEIGHT,
    attention,
    blend,
    check_blend,
    check_rows,
    masked_ids,
    mix_raw,
    retrieved,
)
from bindsearch.cache.recipe import CacheRecord, Enhancement
from bindsearch.cache.rows import BackendRows, CachedRows, IndexRows
from bindsearch.config import to_json_dict
from bindsearch.errors import InputError, ShapeError
from bindsearch.query import Embedding
from bindsearch.registry import INDEXES
from bindsearch.search import SearchIndex, open_index
from bindsearch.search.hits import parse_attributes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from bindsearch.index.identity import Identity
    from bindsearch.index.recipe import SearchSettings
    from bindsearch.types import FloatArray, IntArray

POINT_SCALE = 5.0
"""What the reference divides a point cloud's pre-norm embedding by, before it goes into a picture."""
_SHOWN = ("id", "key", "source", "member", "size", "mtime", "sha256", "attributes")
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class Retrieved:
    """What a cache found for a batch of queries.

    Attributes:
        ids: (B, k) int64 ids of cached images, nearest first; -1 where an approximate search found no more.
        weights: (B, k) float32, what each adds to `features`; a row sums to 1.
        features: (B, d) float32 unit rows: the weighted average of the images' rows, normalised.
    """

    ids: IntArray
    weights: FloatArray
    features: FloatArray


class VisualCache:
    """Cached image features that other embeddings are moved towards. Thread-safe.

    Attributes:
        rows: what is searched and where values come from.
        index: the open index, for its items; None for a cache in memory.
    """

    def __init__(self, rows: CachedRows, index: SearchIndex | None = None) -> None:
        """Use `open` or `of_vectors`; or bring rows of one's own, such as those searched on an accelerator."""
        self.rows, self.index = rows, index
        self._record = None if index is None else CacheRecord.load(index.path, index.manifest.first_generation)

    @classmethod
    def open(cls, index: str | Path | SearchIndex, modality: str | None = "image") -> VisualCache:
        """Open a cache over an index, whatever its backend.

        Args:
            index: folder, or an open index; the cache keeps the state that it finds.
            modality: cache items of this one alone; None: all.

        Raises:
            MissingInputError: no index there, or none of the modality in it.
            MismatchError: the index is damaged, or centred.
        """
        found = index if isinstance(index, SearchIndex) else open_index(index)
        rows = IndexRows(found.folder.snapshot, modality)
        rows.check_plain()
        return cls(rows, found)

    @classmethod
    def of_vectors(cls, vectors: FloatArray, backend: str = "faiss-flat") -> VisualCache:
        """Make a cache in memory; the ids are the places of the rows.

        Args:
            vectors: (n, d) float32, finite, no zero rows, n >= 1; normalised in a copy. Not modified.
            backend: registered name.

        Raises:
            MissingInputError: no rows.
            ShapeError, InputError: as of `IndexBackend.build`.
        """
        ids = np.arange(vectors.shape[0], dtype=np.int64)
        return cls(BackendRows(INDEXES[backend].build(ids, vectors)))

    def __len__(self) -> int:
        """Count the cached images."""
        return len(self.rows)

    def __repr__(self) -> str:
        """Say where, how many and of what space."""
        space = f" in {self.index.manifest.space_id}" if self.index is not None else ""
        return f"<VisualCache {self.rows.name}: {len(self)} images, d = {self.rows.dim}{space}>"

    def check(self, query: Embedding | Identity) -> None:
        """Refuse embeddings that were not made in the cache's space.

        Raises:
            MismatchError: naming both.
        """
        if self.index is not None:
            self.index.check(query)

    @property
    def enhancement(self) -> Enhancement:
        """What to blend with, where nobody says: the recipe's numbers, else the reference's."""
        return Enhancement() if self._record is None else self._record.recipe.enhancement

    def info(self) -> dict[str, Any]:
        """Say what the cache holds, what it was made of, what memory it takes, and whether it wants tuning again."""
        facts: dict[str, Any] = {"cache": self.rows.name, "images": len(self), "dim": self.rows.dim}
        if self.index is None:
            return facts
        manifest, record = self.index.manifest, self._record
        about = self.index.folder.info()
        names = ("space_id", "backend", "row_dtype", "size_bytes", "advice")
        facts |= {name: about[name] for name in names}
        facts["other_items"] = manifest.count - len(self)
        facts["rows_bytes"] = manifest.count * manifest.dim * np.dtype(manifest.row_dtype).itemsize
        facts |= to_json_dict(self.enhancement)
        if record is not None:
            facts |= {"built_from": record.source, "seen": record.seen, "repeated": record.repeated}
            facts["near_duplicate"] = record.recipe.near_duplicate
        return facts

    def explain(
        self,
        embeddings: Any,
        cache_size: int = CACHE_SIZE,
        inverse_temperature: float = INVERSE_TEMPERATURE,
        exact: bool = False,
    ) -> list[dict[str, Any]]:
        """Show which cached images an embedding is moved by; arguments and errors as of `retrieve`.

        Returns:
            One a row of the batch: its number, how many features, the neighbours' id (as text), key, weight, and what
            tells where their files lie and whether they have changed: source, member of a tar, size, mtime, sha256,
            attributes (those of fused items name their parts).
        """
        found = self.retrieve(embeddings, cache_size, inverse_temperature, exact=exact)
        items = self._items(np.unique(found.ids[found.ids >= 0]))
        shown = []
        for row, (ids, weights) in enumerate(zip(found.ids, found.weights.tolist(), strict=True)):
            neighbours = [
                {**items[each], "weight": round(weight, 6)}
                for each, weight in zip(ids[ids >= 0].tolist(), weights, strict=False)
            ]
            shown.append({"row": row, "features": len(neighbours), "neighbours": neighbours})
        return shown

    def _items(self, ids: IntArray) -> dict[int, dict[str, Any]]:
        """Look up what is shown of cached images, by id; a cache in memory knows their ids alone."""
        if self.index is None:
            return {each: {"id": str(each), "key": str(each), "source": ""} for each in ids.tolist()}
        snapshot = self.index.folder.snapshot
        there = set(snapshot.column_names())  # tables that were imported lack some
        rows = snapshot.table(ids, [name for name in _SHOWN if name in there]).to_pylist()
        return {
            row["id"]: {name: row.get(name) for name in _SHOWN}
            | {"id": str(row["id"]), "attributes": parse_attributes(row.get("attributes"))}
            for row in rows
        }

    def enhance(
        self,
        embeddings: Any,
        cache_size: int = CACHE_SIZE,
        inverse_temperature: float = INVERSE_TEMPERATURE,
        weight: float = WEIGHT,
        settings: SearchSettings | None = None,
        exact: bool = False,
    ) -> Any:
        """Move embeddings towards their nearest cached images.

        Args:
            embeddings: (B, d) floats of any norm above 0, such as those of `mix` (their norm counts: a shorter row
                looks for its neighbours less sharply and weighs less in the blend); an array, a tensor, or an
                `Embedding`, whose space is checked. Not modified.
            cache_size: k, at most the number of cached images.
            inverse_temperature: multiplies the inner products before the softmax.
            weight: of what was found, 0 to 1; at 0 the unit input comes back.
            settings: of an approximate index; None: what it was tuned to.
            exact: whether the neighbours are proven to be the nearest.

        Returns:
            (B, d) float32 unit rows; a tensor where a tensor was given, on its device.

        Raises:
            ShapeError: not (B, d) floats of the cache's dimension.
            InputError: a row that is not finite or is zero; k above the number of images; a setting out of its range;
                a row that cancels out with what was found for it.
            MismatchError: an `Embedding` of another space.
        """
        vectors = self._vectors(embeddings)
        check_blend(inverse_temperature, weight)
        out = np.empty(vectors.shape, dtype=np.float32)
        for part, found in self._found(vectors, cache_size, inverse_temperature, settings, exact):
            out[part] = blend(vectors[part], found[2], weight)
        if not hasattr(embeddings, "detach"):
            return out
        import torch

        return torch.from_numpy(out).to(embeddings.device)

    def retrieve(
        self,
        embeddings: Any,
        cache_size: int = CACHE_SIZE,
        inverse_temperature: float = INVERSE_TEMPERATURE,
        settings: SearchSettings | None = None,
        exact: bool = False,
    ) -> Retrieved:
        """Say what `enhance` blends embeddings with; arguments and errors as there."""
        vectors = self._vectors(embeddings)
        check_blend(inverse_temperature, 0)
        parts = [each for _, each in self._found(vectors, cache_size, inverse_temperature, settings, exact)]
        if not parts:
            empty = np.empty((0, cache_size))
            return Retrieved(empty.astype(np.int64), empty.astype(np.float32), vectors)
        ids, weights, features = (np.concatenate([part[place] for part in parts]) for place in range(3))
        return Retrieved(ids, weights.astype(np.float32), features.astype(np.float32))

    def enhance_raw(
        self,
        parts: Mapping[str, tuple[FloatArray, float]],
        cache_size: int = CACHE_SIZE,
        inverse_temperature: float = INVERSE_TEMPERATURE,
        weight: float = WEIGHT,
    ) -> FloatArray:
        """Enhance pre-norm embeddings and give the norm back: what ImageBind-LLM's image output is conditioned on.

        Args:
            parts: modality -> ((B, d) float embeddings before normalisation, weight). Those named "points" are divided
                by POINT_SCALE. Not modified.
            cache_size: as in `enhance`.
            inverse_temperature: as in `enhance`.
            weight: as in `enhance`.

        Returns:
            (B, d) float32, each row as long as the mixture of its parts; errors as in `enhance` and `mix_raw`.
        """
        mixed = mix_raw_parts(parts)
        norms = np.linalg.norm(mixed.astype(np.float64), axis=1, keepdims=True)
        units = (mixed / norms).astype(np.float32)
        moved = self.enhance(units, cache_size, inverse_temperature, weight)
        return np.asarray(moved * norms, dtype=np.float32)

    def _vectors(self, embeddings: Any) -> FloatArray:
        """Give what came in as a float32 array, checked."""
        if isinstance(embeddings, Embedding):
            self.check(embeddings)
            embeddings = embeddings.vector
        if hasattr(embeddings, "detach"):
            if not embeddings.is_floating_point():
                kind = embeddings.dtype
                raise ShapeError(f"{self.rows.name}: embeddings: expected floats, got {kind}. Convert: x.float().")
            embeddings = embeddings.detach().float().cpu().numpy()
        return check_rows(embeddings, f"{self.rows.name}: embeddings", self.rows.dim)

    def _found(
        self,
        vectors: FloatArray,
        cache_size: int,
        inverse_temperature: float,
        settings: SearchSettings | None,
        exact: bool,
    ) -> Iterator[tuple[slice, tuple[IntArray, NDArray[np.float64], NDArray[np.float64]]]]:
        """Yield rows of the batch with their ids (b, k), weights (b, k) and unit features (b, d)."""
        if cache_size < 1 or cache_size > len(self):
            raise InputError(
                f"cache_size: expected 1 to {len(self)}, as many images as {self.rows.name} holds, got {cache_size}."
            )
        if not vectors.shape[0]:
            return
        _, ids = self.rows.search(vectors, cache_size, settings, exact)
        step = max(1, _BLOCK_BYTES // (8 * cache_size * self.rows.dim))
        for start in range(0, vectors.shape[0], step):
            part = slice(start, start + step)
            safe, there = masked_ids(ids[part])
            rows = self.rows.rows(safe.ravel()).reshape(*safe.shape, self.rows.dim)
            weights = attention(vectors[part], rows, there, inverse_temperature)
            yield part, (ids[part], weights, retrieved(rows, weights))


def mix_raw_parts(parts: Mapping[str, tuple[FloatArray, float]]) -> FloatArray:
    """Mix pre-norm embeddings as the reference's image output does without a cache; see `VisualCache.enhance_raw`."""
    scaled: Sequence[FloatArray] = [
        rows / np.float32(POINT_SCALE) if modality == "points" else rows for modality, (rows, _) in parts.items()
    ]
    return mix_raw(scaled, [weight for _, weight in parts.values()])
