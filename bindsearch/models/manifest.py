"""space.json: what a folder of weights is, and the ids that follow from it. Loads no torch."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bindsearch.config import canonical_json, content_hash, from_json_dict, to_json_dict
from bindsearch.errors import InputError, WeightsError
from bindsearch.models.architecture import ArchitectureConfig, HeadConfig, StemConfig, TrunkConfig

FORMAT = "bindsearch-space/1"
FILE = "space.json"
ANCHOR = "vision"
MODALITIES_OF = {"vision": ("image", "video")}
"""Modalities of a tower whose name is not its modality."""

_TRAINING_ONLY = ("drop_path", "dropout")


@dataclass(frozen=True)
class TowerRecord:
    """One tower's file.

    Attributes:
        file: name inside the folder.
        size_bytes, sha256: of the file.
        weights: hash of the weights themselves, the same for float32 and bfloat16 files; see `weights.content_id`.
        log_scale: the logit scale as a natural logarithm, before the clamp; None for a tower without one.
    """

    file: str
    size_bytes: int
    sha256: str
    weights: str
    log_scale: float | None = None


@dataclass(frozen=True)
class Parent:
    """The space that towers were bound to: it is another one's, and stays as it is.

    Attributes:
        location: what `load_space` takes; a relative path is meant from the folder of the manifest.
        space_id: that it must have: the joint space is this one.
        anchor: modality whose frozen embeddings the towers were trained against.
        anchor_tower: id of the tower that made them.
    """

    location: str
    space_id: str
    anchor: str
    anchor_tower: str


@dataclass(frozen=True)
class SpaceCard:
    """What everybody may know of a space before any tower is loaded.

    Attributes:
        name, space_id, dim, licence: of the space.
        towers: modality -> name of its tower; its keys are the modalities, in the house's order.
        tower_ids: tower -> id that names the space it was bound to.
        clip_shapes: modality -> shape of one clip, without batch and clip axes.
        log_scales: tower -> logit scale as a natural logarithm, where it has one.
        scale_limit: the logit scale is clamped to this.
        scale_from_tower: the logit scales are not in `log_scales` but known by the loaded towers.
        preprocess: modality -> numbers that replace the preset's.
        source: where the weights came from.
    """

    name: str
    space_id: str
    dim: int
    towers: dict[str, str]
    tower_ids: dict[str, str]
    clip_shapes: dict[str, tuple[int, ...]]
    log_scales: dict[str, float] = field(default_factory=dict)
    scale_limit: float = 100.0
    scale_from_tower: bool = False
    preprocess: dict[str, dict[str, Any]] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    licence: str = ""


@dataclass(frozen=True)
class SpaceManifest:
    """What a space is.

    Attributes:
        name: as in ids, such as "bindsearch-mini".
        architecture: the towers' numbers.
        dtype: "float32", "bfloat16" or "float16": what the files hold; not part of an id.
        towers: by name; empty for weights that are drawn from a seed.
        modalities: what may be encoded; () means all that the towers can.
        preprocess: modality -> numbers that replace the preset's (sizes, id map), part of the preset's id.
        source: where the weights came from: file, sha256, url, whatever is known.
        licence: of the weights.
        parent: the space that the towers joined, each named after its modality; None for a space of its own.
        format: of this file.
    """

    name: str
    architecture: ArchitectureConfig
    dtype: str = "float32"
    towers: dict[str, TowerRecord] = field(default_factory=dict)
    modalities: tuple[str, ...] = ()
    preprocess: dict[str, dict[str, Any]] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
    parent: Parent | None = None
    format: str = FORMAT

    @property
    def space_id(self) -> str:
        """Name and hash of the anchor tower and head: `bindsearch-mini@4f2c91ab03de`; the parent's where it joined one.

        Towers that were bound to a frozen space add to it: what they encode is compared with what it encodes.
        """
        if self.parent is not None:
            return self.parent.space_id
        if ANCHOR not in self.towers:
            raise WeightsError(f"{self.name}: has no {ANCHOR} tower, so it is no space of its own.")
        return f"{self.name}@{self._hash(ANCHOR)}"

    def tower_id(self, tower: str) -> str:
        """Name a tower and the space it was bound to: `audio:91ab07d2c1f4@bindsearch-mini@4f2c91ab03de`."""
        return f"{tower}:{self._hash(tower)}@{self.space_id}"

    def all_modalities(self) -> tuple[str, ...]:
        """List the modalities that can be encoded, in the house's order."""
        found = [m for tower in self.architecture.towers for m in MODALITIES_OF.get(tower, (tower,))]
        return in_order(self.modalities or tuple(found))

    def card(self) -> SpaceCard:
        """Sum up what is known before any tower is loaded."""
        joined = self.parent is not None
        towers = {modality: modality if joined else tower_of(modality) for modality in self.all_modalities()}
        stems = {modality: self.architecture.tower(tower).stem.shape for modality, tower in towers.items()}
        return SpaceCard(
            name=self.name,
            space_id=self.space_id,
            dim=self.architecture.dim,
            towers=towers,
            tower_ids={tower: self.tower_id(tower) for tower in self.towers},
            clip_shapes={m: (shape[0], *shape[2:]) if m == "image" else shape for m, shape in stems.items()},
            log_scales={name: record.log_scale for name, record in self.towers.items() if record.log_scale is not None},
            preprocess=self.preprocess,
            source=self.source,
            licence=self.licence,
        )

    def _hash(self, tower: str) -> str:
        numbers = encoding_numbers(self.architecture, tower)
        return content_hash({"numbers": numbers, "weights": self.towers[tower].weights})


def in_order(modalities: Iterable[str]) -> tuple[str, ...]:
    """Sort modalities in the house's order, unknown ones last."""
    order = ("image", "video", "text", "audio", "depth", "thermal", "imu")
    return tuple(sorted(modalities, key=lambda m: (order.index(m) if m in order else len(order), m)))


def joined_card(own: SpaceCard, parent: SpaceCard) -> SpaceCard:
    """Give the card of a space that towers joined: all of the parent's, and theirs in place of it.

    Args:
        own: of the towers that joined; its space id is the parent's.
        parent: of the space, which keeps its name, its scales and its preprocessing.
    """
    towers = {**parent.towers, **own.towers}
    kept = {tower: parent.tower_ids[tower] for tower in parent.towers.values() if tower not in own.towers}
    return dataclasses.replace(
        parent,
        name=own.name,
        towers={modality: towers[modality] for modality in in_order(towers)},
        tower_ids={**kept, **own.tower_ids},
        clip_shapes={**parent.clip_shapes, **own.clip_shapes},
        log_scales={**parent.log_scales, **own.log_scales},
        preprocess={**parent.preprocess, **own.preprocess},
        source=own.source,
        licence=own.licence or parent.licence,
    )


def tower_of(modality: str) -> str:
    """Name the tower that encodes a modality."""
    return next((tower for tower, names in MODALITIES_OF.items() if modality in names), modality)


def encoding_numbers(architecture: ArchitectureConfig, tower: str) -> dict[str, Any]:
    """Give the numbers that decide a tower's embeddings: no logit scale, nothing that only training uses.

    Fields at their default are left out, so that an id survives a new field in a later version.
    """
    config = architecture.tower(tower)
    parts = {"stem": (config.stem, StemConfig), "trunk": (config.trunk, TrunkConfig), "head": (config.head, HeadConfig)}
    numbers: dict[str, Any] = {"dim": architecture.dim, "num_cls_tokens": architecture.num_cls_tokens}
    for part, (values, cls) in parts.items():
        defaults = {f.name: f.default for f in dataclasses.fields(cls)}
        plain = to_json_dict(values)
        numbers[part] = {
            name: plain[name]
            for name, default in defaults.items()
            if name not in _TRAINING_ONLY and getattr(values, name) != default
        }
    return numbers


def relative_to(folder: Path, space: Path) -> str:
    """Write where a space lies as a parent's location in the manifest of a folder: both may move together."""
    return os.path.relpath(space.resolve(), folder.resolve())


def load_manifest(folder: Path) -> SpaceManifest:
    """Read a folder's space.json.

    Raises:
        WeightsError: it is missing, damaged, or of a format that this version does not read.
    """
    path = folder / FILE
    if not path.is_file():
        raise WeightsError(f"{folder}: no {FILE} there, so it is no folder of a space.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: not valid JSON ({error}). Convert or fetch the space again.") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        got = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise WeightsError(f"{path}: expected format {FORMAT!r}, got {got!r}. Convert the weights again.")
    try:
        return from_json_dict(SpaceManifest, data, str(path))
    except InputError as error:
        raise WeightsError(f"{error} Convert or fetch the space again.") from error


def save_manifest(manifest: SpaceManifest, folder: Path) -> None:
    """Write space.json: a temporary file, synced, renamed. It is written last: without it a folder is no space."""
    folder.mkdir(parents=True, exist_ok=True)
    canonical_json(to_json_dict(manifest))  # refuses NaN before anything is written
    temporary = folder / f"{FILE}.{os.getpid()}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(to_json_dict(manifest), file, indent=1, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / FILE)
