"""Worlds as files, and their embeddings by `space.embed`; both are kept, so that a benchmark goes on where it was."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.world.scene import ABSENT, SPLITS, Scenes, sample, split_seeds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.models.space import Space

BLOCK = 250
"""Files whose prepared arrays are held at once."""

LANGUAGES = {"text": "english", "german": "german"}
"""Columns of the report that are texts, and their language."""


@dataclass(frozen=True)
class World:
    """Scenes of a split that are written as files.

    Attributes:
        name: folder of the files.
        split: see `scene.SPLITS`.
        n: scenes.
        start: number of the first scene within its split.
        kind: full, subject or setting; see `scene.sample`.
        size_px: side of the pictures.
    """

    name: str
    split: str
    n: int
    start: int = 0
    kind: str = "full"
    size_px: int = 256

    @property
    def scenes(self) -> Scenes:
        """What the files show."""
        return sample(split_seeds(self.split, self.n, self.start), self.kind)


def write_files(world: World, home: Path, modalities: tuple[str, ...], workers: int = 2) -> Path:
    """Write the files that are not there yet; give their folder."""
    from bindsearch.world.write import write_world

    seed = SPLITS[world.split] + world.start
    folder = home / world.name
    write_world(world.n, folder, seed, world.size_px, world.kind, modalities, workers=workers, progress=True)
    return folder


def rows_of(space: Space, world: World, home: Path, view: str) -> NDArray[np.float32]:
    """Embed one column of a written world.

    Args:
        space: as `load_space` gives it.
        world: its files.
        home: folder of all worlds; embeddings are kept in it by tower, preset and world, and read again.
        view: a modality, or "german" for the captions in that language. Captions name subject, setting and motion.

    Returns:
        (n, d) float32 unit rows in the scenes' order.
    """
    modality = "text" if view in LANGUAGES else view
    name = f"{world.name}-{view}-{world.n}-{space.tower_id(modality)}-{space.preset_id(modality)}.npy"
    path = home / "embeddings" / name.replace("/", "_").replace(":", "_")
    if path.exists():
        return np.load(path, allow_pickle=False)
    if view in LANGUAGES:
        rows = space.embed("text", list(full_captions(world.scenes, view)))
    else:
        paths = list_files(world, write_files(world, home, (modality,)), modality)
        rows = np.concatenate([space.embed(modality, paths[at : at + BLOCK]) for at in range(0, world.n, BLOCK)])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, rows)
    temporary.replace(path)
    return rows


def list_files(world: World, folder: Path, modality: str) -> list[Path]:
    """List a modality's files in the scenes' order."""
    from bindsearch.world.files import SUFFIXES

    return [folder / f"scene-{number:05d}{SUFFIXES[modality]}" for number in range(world.n)]


def full_captions(scenes: Scenes, view: str) -> tuple[str, ...]:
    """Describe scenes by subject, setting and motion in the language of a column."""
    from bindsearch.world.text import write_captions

    return write_captions(scenes, language=LANGUAGES[view], style="full").texts


def settings_alone(scenes: Scenes) -> Scenes:
    """Give the same scenes without their subjects: what a text names that says the setting alone."""
    absent = np.full(len(scenes), ABSENT, dtype=np.int16)
    gone: dict[str, Any] = dict.fromkeys(("subject", "motion", "colour", "count", "place", "size"), absent)
    return dataclasses.replace(scenes, **gone)
