"""The tower that joins a frozen space: one of ours, a timm backbone with a linear head, or a projector on features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bindsearch.errors import InputError, UnsupportedError
from bindsearch.models.architecture import (
    ArchitectureConfig,
    HeadConfig,
    ScaleConfig,
    StemConfig,
    TowerConfig,
    TrunkConfig,
    load_architecture,
    load_preprocess,
)
from bindsearch.models.bind import Tower, build_tower
from bindsearch.models.foreign_stems import FeaturesStem, TimmStem, backbone_levels, backbone_width, build_backbone
from bindsearch.models.manifest import FILE, Parent, SpaceManifest, load_manifest, relative_to, tower_of
from bindsearch.models.spaces import Space, bundled_folder
from bindsearch.models.weights import getters, save_space
from bindsearch.registry import MODALITIES
from bindsearch.row_table import load_row_table
from bindsearch.train.bind_config import BindConfig, NewTowerConfig

PICTURES = ("image", "video", "depth", "thermal")
LEARNED_START = 0.07
"""Temperature that a learned one starts from. Source: CLIP, section 2.5."""


@dataclass(frozen=True)
class TowerPlan:
    """What will be trained.

    Attributes:
        modality: whose tower it is; also its name.
        architecture: holds this tower alone; d is the frozen space's.
        preprocess: numbers that replace the modality's own.
        pretrained: start the backbone from its released weights.
    """

    modality: str
    architecture: ArchitectureConfig
    preprocess: dict[str, Any]
    pretrained: bool = False

    @property
    def config(self) -> TowerConfig:
        """Numbers of the tower."""
        return self.architecture.towers[self.modality]


def plan_tower(config: BindConfig, modality: str, space: Space) -> TowerPlan:
    """Work out the tower's numbers from what was asked for and from the frozen space.

    Args:
        config: of the run.
        modality: of side b.
        space: the frozen one.

    Raises:
        InputError: what was asked for does not fit the modality.
        UnknownNameError: no such backbone or architecture.
    """
    tower = config.tower
    if (tower.kind == "projector") != (modality == "features"):
        raise InputError(
            f"a projector goes from features to the joint space, and nothing else does: the tower is {tower.kind!r}, "
            f"side b is {modality!r}. Features of another encoder: --features TABLE --tower projector"
        )
    temperature = config.schedule.temperature
    scale = ScaleConfig(1.0 / (temperature or LEARNED_START), trained=temperature is None)
    if tower.kind == "projector":
        numbers: dict[str, Any] = (
            {"width": load_row_table(config.pairs.features).width} if config.pairs.features else {}
        )
        if not numbers:
            raise InputError("a projector needs the table of features: --features feats.npz (see docs/train.md).")
        made = _around(StemConfig("features", (numbers["width"],)), numbers["width"], tower, scale)
        return _plan(modality, made, space, numbers)
    if tower.kind == "timm":
        numbers = _timm_numbers(tower, modality, space)
        shape = _input_shape(modality, numbers)
        width = backbone_width(tower.backbone, shape)
        made = _around(StemConfig("timm", shape, backbone=tower.backbone), width, tower, scale)
        return _plan(modality, made, space, numbers, pretrained=tower.pretrained)
    return _own_plan(tower, modality, space, scale)


def _plan(
    modality: str,
    made: TowerConfig,
    space: Space,
    numbers: dict[str, Any],
    cls_tokens: int = 1,
    pretrained: bool = False,
) -> TowerPlan:
    architecture = ArchitectureConfig(f"{space.name}+{modality}", space.dim, {modality: made}, cls_tokens)
    return TowerPlan(modality, architecture, numbers, pretrained)


def _around(stem: StemConfig, width: int, tower: NewTowerConfig, scale: ScaleConfig) -> TowerConfig:
    """Put a head on a stem that gives one token: a trunk without blocks between them."""
    head = HeadConfig(hidden=tower.hidden, dropout=tower.dropout)
    return TowerConfig(stem, TrunkConfig(width, blocks=0, heads=1), head, scale)


def _own_plan(tower: NewTowerConfig, modality: str, space: Space, scale: ScaleConfig) -> TowerPlan:
    architecture, preprocess = _architecture_of(tower.architecture)
    name = modality if modality in architecture.towers else tower_of(modality)
    found = architecture.tower(name)
    numbers = dict(preprocess.get(modality, {}))
    if tower.size_px is not None and numbers.get("size_px") != tower.size_px:
        raise InputError(
            f"size_px {tower.size_px}: the {name} tower of {tower.architecture} is made for {numbers.get('size_px')}. "
            "Write an architecture of that size (docs/train.md), or leave size_px away."
        )
    trunk = replace(found.trunk, drop_path=tower.drop_path or found.trunk.drop_path)
    head = replace(found.head, hidden=tower.hidden or found.head.hidden, dropout=tower.dropout or found.head.dropout)
    made = TowerConfig(found.stem, trunk, head, scale)
    return _plan(modality, made, space, numbers, architecture.num_cls_tokens)


def _architecture_of(name: str) -> tuple[ArchitectureConfig, Mapping[str, Mapping[str, Any]]]:
    """Read an architecture with its preprocessing: of a space's folder, of the bundled one, or a JSON file."""
    for folder in (Path(name), bundled_folder(name)):
        if (folder / FILE).is_file():
            manifest = load_manifest(folder)
            return manifest.architecture, manifest.preprocess
    return load_architecture(name), load_preprocess(name)


def _timm_numbers(tower: NewTowerConfig, modality: str, space: Space) -> dict[str, Any]:
    if modality in ("text", "imu", "features"):
        raise UnsupportedError(f"a timm backbone sees pictures and spectrograms, not {modality}. Use --tower own.")
    numbers = dict(space.card.preprocess.get(modality, {}))
    if modality in PICTURES and tower.size_px is not None:
        numbers["size_px"] = tower.size_px
    if modality in ("image", "video") and tower.pretrained:
        numbers |= backbone_levels(tower.backbone)
    return numbers


def _input_shape(modality: str, numbers: dict[str, Any]) -> tuple[int, ...]:
    """Give the shape of one input without its batch axis; a still picture has one frame."""
    kind = MODALITIES[modality]
    shape = tuple(kind.preprocess(kind.example(0), kind.config("default", **numbers)).shape[1:])
    return (shape[0], 1, *shape[1:]) if modality == "image" else shape


def start_tower(plan: TowerPlan, seed: int) -> Tower:
    """Build the tower with the weights that training starts from.

    Raises:
        WeightsError: released weights were asked for and cannot be had.
    """
    tower = build_tower(plan.architecture, plan.modality, seed=seed)
    if plan.pretrained and isinstance(tower.stem, TimmStem):
        stem = plan.config.stem
        tower.stem.backbone = build_backbone(stem.backbone, stem.shape, pretrained=True)
    return tower


def take_statistics(tower: Tower, rows: Callable[[], torch.Tensor]) -> None:
    """Standardise a projector's inputs by the rows that it trains on; other towers stay as they are.

    Args:
        tower: overwritten where it is a projector.
        rows: gives (n, F) float32; not asked for other towers, whose inputs may be larger than memory.
    """
    if isinstance(tower.stem, FeaturesStem):
        tower.stem.set_statistics(rows())


def write_joined_space(
    folder: Path, tower: Tower, plan: TowerPlan, space: Space, name: str, facts: tuple[str, dict[str, Any]]
) -> SpaceManifest:
    """Write the tower as a space that joins the frozen one: what `load_space` opens, with all that the other encodes.

    Args:
        folder: made where it is missing.
        tower: trained.
        plan: its numbers.
        space: the frozen one.
        name: of the new space.
        facts: modality of the anchors; and what is known of the training, recorded as the source.

    Returns:
        The manifest that was written.
    """
    anchor, source = facts
    location = space.location
    if (Path(location) / FILE).is_file():
        location = relative_to(folder, Path(location))
    manifest = SpaceManifest(
        name=name,
        architecture=plan.architecture,
        modalities=(plan.modality,),
        preprocess={plan.modality: plan.preprocess},
        source=source,
        licence=f"as its training data and as {space.name} ({space.card.licence or 'unknown'})",
        parent=Parent(location, space.space_id, anchor, space.tower_id(anchor)),
    )
    return save_space(folder, manifest, {plan.modality: getters(tower)})
