"""The one place that renames: names in ImageBind's checkpoint <-> (tower, name inside our tower)."""

from __future__ import annotations

from bindsearch.errors import InputError
from bindsearch.models.architecture import TOWERS

_PARTS = {
    "modality_preprocessors": "stem",
    "modality_trunks": "trunk",
    "modality_heads": "head",
    "modality_postprocessors": "scale",
}
_STEM = {
    "vision": "rgbt_stem",
    "audio": "rgbt_stem",
    "depth": "depth_stem",
    "thermal": "rgbt_stem",
    "imu": "imu_stem",
}
_PREFIXES = {ours: theirs for theirs, ours in _PARTS.items()}
DERIVED = ("stem.mask",)
"""Names inside a tower that hold no weights: they follow from the architecture."""


def _pairs(tower: str, part: str) -> tuple[tuple[str, str], ...]:
    """List the (checkpoint, ours) beginnings that differ in one part of one tower; the rest keeps its name."""
    if part == "trunk":
        return (("pre_transformer_layer.0.", "pre_norm."),)
    if part == "head":
        norm, proj = {"text": ("proj.0.", "proj.1."), "imu": ("0.", "3.")}.get(tower, ("0.", "2."))
        return ((norm, "norm."), (proj, "proj."))
    if part == "scale":
        return (("1.", ""),)
    if tower == "text":
        return (("token_embedding.weight", "token_embedding"), ("pos_embed", "positions.pos_embed"))
    table = "pos_embed" if tower == "imu" else "pos_embedding_helper.pos_embed"
    proj = "proj.1.weight" if tower == "vision" else "proj.weight"
    return (
        ("cls_token", "positions.cls_token"),
        (table, "positions.pos_embed"),
        (f"{_STEM[tower]}.{proj}", "proj.weight"),
        (f"{_STEM[tower]}.norm_layer.", "norm."),
    )


def tower_key(checkpoint_key: str) -> tuple[str, str]:
    """Rename a checkpoint's key.

    Args:
        checkpoint_key: a name of imagebind_huge.pth, as `modality_heads.imu.3.weight`.

    Returns:
        The tower and the key in that tower's state dict, as `("imu", "head.proj.weight")`.

    Raises:
        InputError: the key belongs to no tower.
    """
    prefix, _, rest = checkpoint_key.partition(".")
    tower, _, name = rest.partition(".")
    if prefix not in _PARTS or tower not in TOWERS or not name:
        raise InputError(f"{checkpoint_key!r} is no key of an ImageBind checkpoint.")
    part = _PARTS[prefix]
    for theirs, ours in _pairs(tower, part):
        if name.startswith(theirs):
            return tower, f"{part}.{ours}{name.removeprefix(theirs)}"
    return tower, f"{part}.{name}"


def checkpoint_key(tower: str, key: str) -> str:
    """Rename a tower's key back; the inverse of `tower_key`.

    Args:
        tower: one of TOWERS.
        key: a name in that tower's state dict.

    Returns:
        The checkpoint's name.

    Raises:
        InputError: the key names no part of a tower.
    """
    part, _, name = key.partition(".")
    if part not in _PREFIXES or tower not in TOWERS or not name:
        raise InputError(f"{key!r} is no key of the {tower} tower.")
    for theirs, ours in _pairs(tower, part):
        if name.startswith(ours):
            return f"{_PREFIXES[part]}.{tower}.{theirs}{name.removeprefix(ours)}"
    return f"{_PREFIXES[part]}.{tower}.{name}"
