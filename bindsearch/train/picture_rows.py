"""Image embeddings of scenes and of named pictures, made once and kept on disk as float16 shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.config import content_hash
from bindsearch.listing.folders import file_facts
from bindsearch.listing.naming import is_uri, to_path
from bindsearch.makers import maker_of
from bindsearch.train.pool import SHARD
from bindsearch.world.files import render_values, to_source
from bindsearch.world.scene import Scenes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.models.spaces import Space
    from bindsearch.types import FloatArray

Say = Callable[[str], None]
_BLOCK = 250


def embed_scenes(space: Space, modality: str, scenes: Scenes, size_px: int = 64) -> FloatArray:
    """Render scenes in a modality and embed them as their files would be: (n, d) float32 unit rows."""
    parts = []
    for at in range(0, len(scenes), _BLOCK):
        values = render_values(scenes.rows(slice(at, at + _BLOCK)), modality, size_px)
        parts.append(space.embed(modality, [to_source(value, modality, "scene") for value in values]))
    return np.concatenate(parts) if parts else np.zeros((0, space.dim), dtype=np.float32)


def named_rows(space: Space, folder: Path, names: Sequence[str], say: Say = print) -> NDArray[np.float16]:
    """Give the embeddings of pictures by their names: files, or addresses such as world:17#image.

    A shard is named after what it was made of, files with their sizes and times, and made anew when a file has changed.

    Args:
        space: that embeds.
        folder: of the shards.
        names: of n pictures.
        say: where lines of progress go.

    Returns:
        (n, d) float16.

    Raises:
        DecodeError: a picture cannot be read; it is named.
    """

    def made(at: int) -> FloatArray:
        parts = [names[start : start + _BLOCK] for start in range(at, min(at + SHARD, len(names)), _BLOCK)]
        return np.concatenate([space.embed("image", _sources(list(part))) for part in parts])

    own = _id_of(space, names)
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for at in range(0, len(names), SHARD):
        path = folder / f"image-{own}-{at:08d}.npy"
        if not path.is_file():
            temporary = path.with_suffix(".tmp.npy")
            np.save(temporary, made(at).astype(np.float16))
            temporary.replace(path)
            say(f"embedded {min(at + SHARD, len(names))} of {len(names)} pictures")
        parts.append(np.load(path, allow_pickle=False))
    rows: NDArray[np.float16] = np.concatenate(parts)
    return rows


def reader_ids(space: Space) -> dict[str, str]:
    """Say what embeds pictures: the space, its image tower, and how it prepares them."""
    return {"space": space.space_id, "tower": space.tower_id("image"), "preset": space.preset_id("image")}


def _id_of(space: Space, names: Sequence[str]) -> str:
    return content_hash({**reader_ids(space), "pictures": [[name, *_facts_of(name)] for name in names]})


def _facts_of(name: str) -> tuple[int | None, float | None]:
    """Give size and time of a file; of what is made from its address or lies elsewhere, none."""
    return (None, None) if maker_of(name) or is_uri(name) else file_facts(to_path(name))


def _sources(names: list[str]) -> list[Any]:
    """Give sources of names; those that are made, all at once where they have one maker."""
    maker = maker_of(names[0])
    alike = maker is not None and all(maker_of(name) is maker for name in names)
    return maker.make(names) if maker is not None and alike else list(names)
