"""Image embeddings of scenes and of named pictures, made once and kept on disk as float16 shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.config import content_hash
from bindsearch.errors import DecodeError, InputError, UnsupportedError
from bindsearch.listing.folders import file_facts
from bindsearch.listing.naming import is_uri, to_path
from bindsearch.makers import maker_of
from bindsearch.world.files import render_values, to_source
from bindsearch.world.scene import Scenes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.models.spaces import Space
    from bindsearch.types import FloatArray

Say = Callable[[str], None]
_BLOCK = 250
"""Pictures that are embedded at once, and kept as one shard: what a kill loses at most."""


def embed_scenes(space: Space, modality: str, scenes: Scenes, size_px: int = 64) -> FloatArray:
    """Render scenes in a modality and embed them as their files would be: (n, d) float32 unit rows."""
    parts = []
    for at in range(0, len(scenes), _BLOCK):
        values = render_values(scenes.rows(slice(at, at + _BLOCK)), modality, size_px)
        parts.append(space.embed(modality, [to_source(value, modality, "scene") for value in values]))
    return np.concatenate(parts) if parts else np.zeros((0, space.dim), dtype=np.float32)


@dataclass(frozen=True)
class PictureRows:
    """Embeddings of pictures, each name once.

    Attributes:
        rows: (m, d) float16, of the pictures that can be read.
        places: name -> its row.
        bad: name -> why it cannot be read.
    """

    rows: NDArray[np.float16]
    places: dict[str, int]
    bad: dict[str, str]

    def of(self, names: Sequence[str]) -> NDArray[np.float16]:
        """Give the rows of names, none of which is bad: (n, d) float16."""
        return self.rows[[self.places[name] for name in names]]


def read_pictures(space: Space, folder: Path, names: Sequence[str], say: Say = print) -> PictureRows:
    """Embed pictures by their names: files, or addresses such as world:17#image; those that cannot be read are told.

    A shard is named after what it was made of, files with their sizes and times, and made anew when one of them has
    changed. What could not be read is tried again by every call.

    Args:
        space: that embeds.
        folder: of the shards.
        names: of pictures, some perhaps several times.
        say: where lines of progress go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    distinct = list(dict.fromkeys(names))
    reader = reader_ids(space)
    parts: list[NDArray[np.float16]] = []
    places: dict[str, int] = {}
    bad: dict[str, str] = {}
    for at in range(0, len(distinct), _BLOCK):
        some = distinct[at : at + _BLOCK]
        path = folder / f"image-{_id_of(reader, some)}.npy"
        there = np.load(path, allow_pickle=False) if path.is_file() else np.full((len(some), 1), np.nan, np.float16)
        missing = np.flatnonzero(np.isnan(there[:, 0]))
        made = _embedded(space, [some[place] for place in missing], bad)
        if made or not path.is_file():
            there = _filled(there, missing, [made.get(some[place]) for place in missing])
            temporary = path.with_suffix(".tmp.npy")
            np.save(temporary, there)
            temporary.replace(path)
            say(f"embedded {at + len(some)} of {len(distinct)} pictures")
        good = [place for place, name in enumerate(some) if name not in bad]
        places |= {some[place]: len(places) + number for number, place in enumerate(good)}
        if good:
            parts.append(there[good])
    rows = np.concatenate(parts) if parts else np.zeros((0, space.dim), dtype=np.float16)
    return PictureRows(rows, places, bad)


def named_rows(space: Space, folder: Path, names: Sequence[str], say: Say = print) -> NDArray[np.float16]:
    """Give the embeddings of pictures by their names, all of which can be read; arguments as of `read_pictures`.

    Returns:
        (n, d) float16.

    Raises:
        DecodeError: a picture cannot be read; it is named.
    """
    found = read_pictures(space, folder, names, say)
    for name, reason in found.bad.items():
        raise DecodeError(name, reason)
    return found.of(names)


def _embedded(space: Space, names: Sequence[str], bad: dict[str, str]) -> dict[str, FloatArray]:
    """Embed pictures in one batch, or in halves where one of them cannot be read; notes in `bad` which and why.

    Returns:
        Name -> (d,) float32 of those that can be read.
    """
    if not names:
        return {}
    try:
        return dict(zip(names, space.embed("image", _sources(list(names))), strict=True))
    except (DecodeError, InputError, UnsupportedError) as error:
        if len(names) == 1:
            bad[names[0]] = error.what if isinstance(error, DecodeError) else str(error)
            return {}
    half = len(names) // 2
    return _embedded(space, names[:half], bad) | _embedded(space, names[half:], bad)


def _filled(
    rows: NDArray[np.float16], places: NDArray[np.int64], made: Sequence[FloatArray | None]
) -> NDArray[np.float16]:
    """Put embeddings at places of a copy of (n, d) rows, no numbers where there is none; (n, 1) rows become as wide."""
    width = next((len(row) for row in made if row is not None), rows.shape[1])
    out = np.full((len(rows), width), np.nan, dtype=np.float16)
    if rows.shape[1] == width:
        out[:] = rows
    for place, row in zip(places, made, strict=True):
        if row is not None:
            out[place] = row
    return out


def reader_ids(space: Space) -> dict[str, str]:
    """Say what embeds pictures: the space, its image tower, and how it prepares them."""
    return {"space": space.space_id, "tower": space.tower_id("image"), "preset": space.preset_id("image")}


def _id_of(reader: dict[str, str], names: Sequence[str]) -> str:
    return content_hash({**reader, "pictures": [[name, *_facts_of(name)] for name in names]})


def _facts_of(name: str) -> tuple[int | None, float | None]:
    """Give size and time of a file; of what is made from its address or lies elsewhere, none."""
    return (None, None) if maker_of(name) or is_uri(name) else file_facts(to_path(name))


def _sources(names: list[str]) -> list[Any]:
    """Give sources of names; those that are made, all at once where they have one maker."""
    maker = maker_of(names[0])
    alike = maker is not None and all(maker_of(name) is maker for name in names)
    return maker.make(names) if maker is not None and alike else list(names)
