"""What embeddings are made with, and the manifest that says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bindsearch.config import from_json_dict
from bindsearch.errors import MismatchError, UnsupportedError
from bindsearch.store.files import read_json

FORMAT = "bindsearch-embeddings"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
UNKNOWN = "unknown"
"""Space or dtype of imported vectors that say nothing of it."""


@dataclass(frozen=True)
class Identity:
    """What makes two sets of embeddings comparable, and what was used beside it.

    Attributes:
        space_name: what `load_space` was called with, so that a query can load it again.
        space_id: name and hash of the anchor tower; "unknown" for imported vectors that nobody vouches for.
        dim: joint dimension d.
        dtype: what the towers computed in; "unknown" for imported vectors; where generations differ, all of them:
            "bfloat16+float32". Recorded; not part of the space's identity.
        tower_ids, preset_ids: by modality.
        tokenizer_id: of the text modality, None where there is none.
    """

    space_name: str
    space_id: str
    dim: int
    dtype: str
    tower_ids: Mapping[str, str] = field(default_factory=dict)
    preset_ids: Mapping[str, str] = field(default_factory=dict)
    tokenizer_id: str | None = None

    @classmethod
    def of_space(cls, space: Any, modalities: Iterable[str]) -> Identity:
        """Take the identity of a space for some of its modalities; loads no tower."""
        names = sorted(set(modalities))
        return cls(
            space_name=str(getattr(space, "location", space.name)),
            space_id=str(space.space_id),
            dim=int(space.dim),
            dtype=str(space.dtype).removeprefix("torch."),
            tower_ids={name: str(space.tower_id(name)) for name in names},
            preset_ids={name: str(space.preset_id(name)) for name in names},
            tokenizer_id=getattr(space.config("text"), "tokenizer_id", None) if "text" in names else None,
        )

    def merged(self, other: Identity, where: str) -> Identity:
        """Join the identity of what is there with that of what comes in; modalities may be added.

        Args:
            other: of what comes in.
            where: the folder, for the message.

        Raises:
            MismatchError: space, dimension, or a modality's tower, preset or tokenizer differ; names both.
        """
        for name, there, comes in self._pairs(other):
            if there != comes:
                raise MismatchError(
                    f"{where}: made with {name} {there}, this run has {comes}. Use what it was made with, or choose "
                    "another output folder."
                )
        return dataclasses.replace(
            self,
            dtype="+".join(sorted({*self.dtype.split("+"), *other.dtype.split("+")})),
            tower_ids={**self.tower_ids, **other.tower_ids},
            preset_ids={**self.preset_ids, **other.preset_ids},
            tokenizer_id=self.tokenizer_id or other.tokenizer_id,
        )

    def _pairs(self, other: Identity) -> list[tuple[str, Any, Any]]:
        pairs = [*_encoders(self, other), *_shared("preset", self.preset_ids, other.preset_ids)]
        if self.tokenizer_id and other.tokenizer_id:
            pairs.append(("tokenizer", self.tokenizer_id, other.tokenizer_id))
        return pairs

    def to_json(self) -> dict[str, Any]:
        """Write plain JSON types."""
        return {**dataclasses.asdict(self), "tower_ids": dict(self.tower_ids), "preset_ids": dict(self.preset_ids)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> Identity:
        """Read what `to_json` wrote, out of a record that may hold more.

        Raises:
            InputError: a field is missing or of the wrong type.
        """
        names = {item.name for item in dataclasses.fields(cls)}
        return from_json_dict(cls, {name: value for name, value in data.items() if name in names}, where)


def other_encoder(one: Any, other: Any) -> tuple[str, Any, Any] | None:
    """Find what encoded one set of vectors and not the other: space, dimension, or a tower of a modality of both.

    Args:
        one: with `space_id`, `dim` and `tower_ids`.
        other: likewise.

    Returns:
        What differs, and both values; None where nothing does.
    """
    return next((each for each in _encoders(one, other) if each[1] != each[2]), None)


def _encoders(one: Any, other: Any) -> list[tuple[str, Any, Any]]:
    plain = [("space", one.space_id, other.space_id), ("dimension", one.dim, other.dim)]
    return [*plain, *_shared("tower", one.tower_ids, other.tower_ids)]


def _shared(what: str, one: Mapping[str, str], other: Mapping[str, str]) -> list[tuple[str, Any, Any]]:
    return [(f"{what} of {name}", one[name], other[name]) for name in sorted(set(one) & set(other))]


@dataclass(frozen=True)
class Manifest:
    """The manifest of a store.

    Attributes:
        identity: what the vectors are made with.
        counts: current items by modality.
        bad, gone: current bad inputs; items marked as gone, all generations together.
        generations: folder names of the complete generations, oldest first.
        sources: what was listed, as absolute paths, URIs or "-".
        vector_dtype: of the rows on disk.
        format_version: of the folder.
    """

    identity: Identity
    counts: Mapping[str, int]
    bad: int
    gone: int
    generations: tuple[str, ...]
    sources: tuple[str, ...] = ()
    vector_dtype: str = "float16"
    format_version: int = FORMAT_VERSION

    @property
    def space_name(self) -> str:
        """Name that `load_space` takes."""
        return self.identity.space_name

    @property
    def space_id(self) -> str:
        """Id of the space."""
        return self.identity.space_id

    @property
    def dim(self) -> int:
        """Joint dimension d."""
        return self.identity.dim

    @property
    def dtype(self) -> str:
        """What the towers computed in."""
        return self.identity.dtype

    @property
    def tower_ids(self) -> Mapping[str, str]:
        """Tower id by modality."""
        return self.identity.tower_ids

    @property
    def preset_ids(self) -> Mapping[str, str]:
        """Preset id by modality."""
        return self.identity.preset_ids

    @property
    def tokenizer_id(self) -> str | None:
        """Id of the tokenizer, where texts are among the items."""
        return self.identity.tokenizer_id

    def to_json(self) -> dict[str, Any]:
        """Write plain JSON types, identity and the rest side by side."""
        return {
            "format": FORMAT,
            "format_version": self.format_version,
            **self.identity.to_json(),
            "counts": dict(sorted(self.counts.items())),
            "bad": self.bad,
            "gone": self.gone,
            "generations": list(self.generations),
            "sources": list(self.sources),
            "vector_dtype": self.vector_dtype,
        }

    @classmethod
    def load(cls, folder: Path) -> Manifest | None:
        """Read a store's manifest; None where no generation is complete.

        Raises:
            UnsupportedError: written by a later version, or another kind of folder.
            BindSearchError: truncated or altered.
        """
        path = folder / MANIFEST
        if not path.exists():
            return None
        data = read_json(path)
        check_format(data, path)
        return cls(
            identity=Identity.from_json(data, str(path)),
            counts=data["counts"],
            bad=data["bad"],
            gone=data["gone"],
            generations=tuple(data["generations"]),
            sources=tuple(data["sources"]),
            vector_dtype=data["vector_dtype"],
            format_version=data["format_version"],
        )


def check_format(data: Mapping[str, Any], path: Path) -> None:
    """Refuse a record of another kind or of a later format.

    Raises:
        UnsupportedError: naming both.
    """
    if data.get("format") != FORMAT:
        raise UnsupportedError(f"{path}: expected format {FORMAT!r}, got {data.get('format')!r}.")
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise UnsupportedError(
            f"{path}: format version {version}; this bindsearch reads {FORMAT_VERSION}. Update bindsearch, or embed "
            "again."
        )
