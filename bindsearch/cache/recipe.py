"""What a cache is made by, as data, and what it was made of; indexes/visual-cache.json is a recipe."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bindsearch.cache.blend import CACHE_SIZE, INVERSE_TEMPERATURE, WEIGHT, check_blend
from bindsearch.cache.duplicates import check_threshold
from bindsearch.config import from_json_dict, to_json_dict
from bindsearch.errors import InputError, MismatchError, MissingInputError
from bindsearch.exchange.rows import check_modality
from bindsearch.index.commit import CACHE_RECORD
from bindsearch.index.recipe import Recipe
from bindsearch.registry import INDEXES
from bindsearch.store.files import commit_json

FORMAT = "bindsearch-cache"
FORMAT_VERSION = 1
RECORD = CACHE_RECORD
"""Beside index.json: what the cache was made of. An index without it serves as a cache as well."""


@dataclass(frozen=True)
class Enhancement:
    """The numbers of the blend; see `VisualCache.enhance`. Records of caches may hold any."""

    cache_size: int = CACHE_SIZE
    inverse_temperature: float = INVERSE_TEMPERATURE
    weight: float = WEIGHT

    def check(self) -> None:
        """Refuse what nothing can be blended with.

        Raises:
            InputError: a `cache_size` below 1; others as of `check_blend`.
        """
        if self.cache_size < 1:
            raise InputError(f"cache_size: expected at least 1, got {self.cache_size}.")
        check_blend(self.inverse_temperature, self.weight)


@dataclass(frozen=True)
class Tuning:
    """How exactly an approximate index must serve its cache; see `tuning.tune_snapshot`.

    Attributes:
        queries: source of held-out queries, as "world:validation:0..400#text,audio": embedded in the recipe's space
            where nobody names any and the cached rows are of that space.
        overlap: share of the true neighbours to find at least.
        error: largest 1 - cosine, over held-out queries, between an embedding as moved and as exact search moves it.
        count: held-out queries a modality.
    """

    queries: str = ""
    overlap: float = 0.99
    error: float = 1e-3
    count: int = 500

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            InputError: an overlap beyond 0 to 1, an error not above 0, or fewer than 20 queries.
        """
        if not 0 < self.overlap < 1 or not self.error > 0 or self.count < 20:
            raise InputError(
                "cache recipe: tuning expected an overlap between 0 and 1, an error above 0 and 20 queries or more, "
                f"got {self.overlap}, {self.error}, {self.count}."
            )


@dataclass(frozen=True)
class CacheRecipe:
    """What a cache is made by.

    Attributes:
        source: what is embedded where nobody names a source. A "{last}" in it is a number that grows until `keep` items
            stay, as in "world:0..{last}".
        keep: how many items the cache shall hold; None: all.
        space: that the source is embedded in.
        modality: of what is cached.
        near_duplicate: least cosine at which an item repeats an earlier one and is left out; None: only equal rows.
        index: what the index is built by.
        enhancement: what a user of the cache blends with, where nobody says.
        tuning: how exactly an approximate index must serve it.
    """

    source: str = ""
    keep: int | None = None
    space: str | None = None
    modality: str = "image"
    near_duplicate: float | None = 0.999
    index: Recipe = field(default_factory=lambda: Recipe("faiss-flat"))
    enhancement: Enhancement = field(default_factory=Enhancement)
    tuning: Tuning = field(default_factory=Tuning)

    def __post_init__(self) -> None:
        """Refuse what cannot be kept.

        Raises:
            InputError: `keep` below 1, a growing source without it, or a `near_duplicate` out of its range.
            UnknownNameError: no such modality.
        """
        check_modality(self.modality, "cache recipe")
        check_threshold(self.near_duplicate)
        if self.keep is not None and self.keep < 1:
            raise InputError(f"cache recipe: keep expected at least 1, got {self.keep}.")
        if "{last}" in self.source and self.keep is None:
            raise InputError(f"cache recipe: source {self.source!r} grows until `keep` items stay: say how many.")

    def check(self) -> None:
        """Refuse what no cache can be built by, before hours of embedding; records of caches may hold any.

        Raises:
            InputError: numbers that nothing can be blended with, or that the index's backend refuses.
            UnknownNameError: no such backend.
        """
        self.enhancement.check()
        INDEXES[self.index.backend].check_build(self.index.build)


@dataclass(frozen=True)
class CacheRecord:
    """What a cache was made of.

    Attributes:
        recipe: that it was made by.
        source: what was read, as the caller named it.
        seen: items of the modality that were looked at.
        repeated: of these, left out as near duplicates.
        others: items of other modalities, left out.
        kept: items that went into the cache.
        generation: the first of the index that it was written for; 1 also of records of earlier versions.
        measured: of an approximate index, a modality of held-out queries each; see `tuning.tune_snapshot`. It stays as
            it was when the cache was built or last tuned, whatever changes: `index.tuned.holds` says whether it holds.
    """

    recipe: CacheRecipe
    source: str
    seen: int
    repeated: int
    others: int
    kept: int
    measured: dict[str, Any] = field(default_factory=dict)
    generation: int = 1
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    def save(self, folder: Path) -> None:
        """Write it beside the index."""
        data = to_json_dict(self)
        if self.generation == 1:
            del data["generation"]
        commit_json(folder / RECORD, data)

    @classmethod
    def load(cls, folder: Path, first_generation: int = 1) -> CacheRecord | None:
        """Read what `save` wrote; None where there is none, or only that of another index.

        Args:
            folder: of the index.
            first_generation: of its manifest; a record of an earlier one is of an index that this one replaced, of a
                later one of an index that has replaced it.

        Raises:
            MismatchError: it is damaged, or of another format.
        """
        path = folder / RECORD
        if not path.is_file():
            return None
        try:
            data: Any = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(data, dict) or (data.get("format"), data.get("format_version")) != (FORMAT, 1):
                raise InputError(f"{path}: expected format {FORMAT!r} {FORMAT_VERSION}.")
            found = from_json_dict(cls, data, str(path))
            return found if found.generation == first_generation else None
        except ValueError as error:
            raise MismatchError(
                f"{path}: cannot be read ({str(error).rstrip('.')}). Build the cache again, or delete it."
            ) from error


def queries_beside(cache: Path) -> Path:
    """Name the folder that a recipe's queries are embedded to, beside its cache."""
    return cache.with_name(cache.name + ".queries")


def read_recipe(path: str | Path) -> CacheRecipe:
    """Read a recipe: "cache" holds the fields of `CacheRecipe`, "recipe" beside it what the index is built by.

    The same file is a recipe of `bindsearch index`.

    Raises:
        MissingInputError: no such file.
        InputError: not valid JSON, an unknown field, or a value that cannot be meant.
        UnknownNameError: no such backend.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}: no such recipe. One to begin with: indexes/visual-cache.json") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(data, dict) or not isinstance(data.get("cache"), dict):
        raise InputError(f'{path}: expected {{"cache": {{"source": ...}}, "recipe": {{"backend": ...}}}}.')
    index = {"index": data["recipe"]} if "recipe" in data else {}
    recipe = from_json_dict(CacheRecipe, {**data["cache"], **index}, str(path))
    recipe.check()
    return recipe
