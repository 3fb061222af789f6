"""Spaces by name: the bundled mini, imagebind-huge from the cache, tiny from a seed, open_clip, any folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindsearch.config import cache_dir
from bindsearch.errors import BindSearchError, InputError, MismatchError, UnknownNameError, WeightsError
from bindsearch.models.architecture import load_architecture, load_preprocess
from bindsearch.models.manifest import FILE, Parent, SpaceManifest, TowerRecord, joined_card, load_manifest
from bindsearch.models.releases import releases
from bindsearch.models.space import DTYPES, Space, TowerLoader, Towers
from bindsearch.models.switches import Switches, switches_of
from bindsearch.registry import SPACES

if TYPE_CHECKING:
    import torch

    from bindsearch.models.bind import Tower
    from bindsearch.models.manifest import SpaceCard
    from bindsearch.models.text_cache import TextCache

__all__ = ["Family", "Space", "info", "list_spaces", "load_space", "path"]

COMPUTE = "float32"
"""What "auto" computes in, whatever the files hold: see docs/adr/0012."""


@dataclass(frozen=True)
class Opened:
    """A space before it is dressed with device, dtype and preset.

    Attributes:
        card: what it is.
        load: gives a tower.
        location: what it is opened by.
        stored_dtype: of its files.
        status: whether its weights are here; looks on this machine alone.
    """

    card: SpaceCard
    load: TowerLoader
    location: str
    stored_dtype: str = COMPUTE
    status: Callable[[], str] = lambda: "at hand"


@dataclass(frozen=True)
class Family:
    """What is registered for a name: how a space is opened, and what is said of it without opening it.

    Attributes:
        open: the name's part after ":" (or "") -> the opened space.
        status: "bundled", "at hand", "not fetched", "drawn from a seed", ...; called by listings.
        modalities: what it encodes.
        folder: where its files are, or would be; None for a space without a folder of ours.
    """

    open: Callable[[str], Opened]
    status: Callable[[], str]
    modalities: tuple[str, ...]
    folder: Callable[[], Path | None] = lambda: None


def load_space(
    name_or_path: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    preset: str | Mapping[str, str] = "default",
    switches: str | Switches = "fast",
) -> Space:
    """Open a space; no tower is loaded before it is used.

    Args:
        name_or_path: a registered name ("bindsearch-mini", "imagebind-huge", "tiny:7",
            "open_clip:ViT-B-32/laion2b_s34b_b79k"), a folder with space.json, or the name of such a folder in the
            cache.
        device: "auto", "cpu", "cuda", "cuda:1".
        dtype: "auto" (float32), "float32", "bfloat16" or "float64": what the towers compute in; "fast" is bfloat16 on
            devices with instructions for it, else float32.
        preset: preprocessing, see `Space.with_preset`.
        switches: which tricks make the towers fast: "fast" (all that change no more than the last bits), "plain",
            "single" (a process that encodes one thing), or "fast,int8=on", see `models.switches`.

    Raises:
        UnknownNameError: no such space, dtype, preset or switch.
        WeightsError: its weights are not at hand; the message says how to get them.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, ("auto", *DTYPES))
    opened = _open(str(name_or_path))
    computed = COMPUTE if dtype == "auto" else DTYPES[dtype]
    tricks = switches_of(switches)
    towers = Towers(opened.load, tuple(opened.card.tower_ids), computed, device, tricks, opened.stored_dtype)

    def texts() -> TextCache | None:
        from bindsearch.models.text_cache import open_text_cache

        tower = opened.card.tower_ids[opened.card.towers["text"]]
        return open_text_cache(tower, opened.stored_dtype, towers.dtype_name, device, tricks)

    return Space(opened.card, towers, preset, opened.location, texts)


def _open(name: str) -> Opened:
    folder = _folder_named(name)
    if folder is not None:
        return open_folder(folder)
    head, _, argument = name.partition(":")
    if head not in SPACES:
        raise UnknownNameError("space", name, SPACES.names(), f"A folder with {FILE} is a space as well.")
    family: Family = SPACES[head]
    return family.open(argument)


def _folder_named(name: str) -> Path | None:
    """Give the folder of a space that is named by its path, or by its name in the cache."""
    here = Path(name).expanduser()
    if (here / FILE).is_file():
        return here
    if here.is_dir() and ("/" in name or here.name not in SPACES):
        raise WeightsError(f"{name}: no {FILE} in this folder, so it is no space.")
    cached = cache_dir() / name
    plain = "/" not in name and name not in (".", "..") and name not in SPACES
    return cached if plain and (cached / FILE).is_file() else None


def open_folder(folder: Path) -> Opened:
    """Open a folder with space.json; reads nothing else.

    Raises:
        WeightsError: it is no folder of a space.
    """
    folder = folder.absolute()  # what is recorded of it is found from every working folder
    manifest = load_manifest(folder)

    def load(name: str, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        from bindsearch.models.weights import load_tower

        return load_tower(folder, manifest, name, dtype, device)

    own = Opened(manifest.card(), load, str(folder), manifest.dtype)
    return own if manifest.parent is None else _join(own, manifest.parent, folder)


def _join(own: Opened, parent: Parent, folder: Path) -> Opened:
    """Put towers that were bound to a space beside that space's own.

    Raises:
        WeightsError: the space is not at hand.
        MismatchError: it is another one now.
    """
    beside = folder / parent.location
    try:
        base = open_folder(beside) if (beside / FILE).is_file() else _open(parent.location)
    except (UnknownNameError, WeightsError) as error:
        raise WeightsError(
            f"{folder}: its towers were bound to the space {parent.location} ({parent.space_id}), which is not at "
            f"hand: {error}"
        ) from error
    if base.card.space_id != parent.space_id:
        raise MismatchError(
            f"{folder}: its towers were bound to {parent.space_id}, {parent.location} is {base.card.space_id} now. "
            "Bind them again (bindsearch train), or bring that space back."
        )

    def load(name: str, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        return (own if name in own.card.towers.values() else base).load(name, dtype, device)

    stored = own.stored_dtype if own.stored_dtype == base.stored_dtype else f"{own.stored_dtype}+{base.stored_dtype}"
    return Opened(joined_card(own.card, base.card), load, own.location, stored, base.status)


def tiny_manifest(seed: int) -> SpaceManifest:
    """Describe the public test space of a seed: all six towers, a few thousand numbers, no files."""
    architecture = load_architecture("tiny")
    records = {}
    for name, tower in architecture.towers.items():
        scale = tower.scale.initial
        log_scale = None if scale is None else math.log(scale)
        records[name] = TowerRecord("", 0, "", f"recipe/1/{seed}", log_scale)
    return SpaceManifest(
        name=f"tiny:{seed}",
        architecture=replace(architecture, name=f"tiny:{seed}"),
        towers=records,
        preprocess=load_preprocess("tiny"),
        licence="Apache-2.0",
    )


def _open_tiny(argument: str) -> Opened:
    try:
        seed = int(argument or "0")
    except ValueError as error:
        raise InputError(f"space 'tiny:{argument}': write tiny or tiny:SEED with a whole number.") from error
    if seed < 0:
        raise InputError(f"space 'tiny:{argument}': the seed must not be negative.")
    manifest = tiny_manifest(seed)

    def load(name: str, dtype: torch.dtype, device: torch.device) -> Tower:
        return drawn_tower(manifest, seed, name).to(device, dtype)

    return Opened(manifest.card(), load, manifest.name)


def drawn_tower(manifest: SpaceManifest, seed: int, name: str) -> Tower:
    """Build one tower of the tiny space from its seed, float32, in eval mode without gradients."""
    import torch

    from bindsearch.models.bind import build_tower
    from bindsearch.models.recipe import Recipe, draw_tower

    towers = manifest.architecture.towers
    scales = {name: each.scale.initial for name, each in towers.items() if each.scale.initial is not None}
    recipe = Recipe(seed, qkv_gain=2.0, logit_scales=scales)
    tower = build_tower(manifest.architecture, name)
    state = {key: torch.from_numpy(values) for key, values in draw_tower(recipe, manifest.architecture, name)}
    tower.load_state_dict(state, strict=True, assign=True)
    return tower.requires_grad_(False).eval()


def bundled_folder(name: str) -> Path:
    """Give the folder inside the package where a bundled space lies."""
    return Path(str(resources.files("bindsearch.models"))) / "spaces" / name


def _open_mini(argument: str) -> Opened:
    _no_argument("bindsearch-mini", argument)
    folder = bundled_folder("bindsearch-mini")
    if not (folder / FILE).is_file():
        raise WeightsError(f"bindsearch-mini: the bundled weights are missing in {folder}. Install the package again.")
    return replace(open_folder(folder), location="bindsearch-mini")


def _open_huge(argument: str) -> Opened:
    _no_argument("imagebind-huge", argument)
    return replace(open_folder(own_folder("imagebind-huge")), location="imagebind-huge")


def own_folder(name: str) -> Path:
    """Give the folder of a space's own weights; a released space must be there, under its own name.

    Raises:
        UnknownNameError, InputError: as `path`.
        WeightsError: a released space that was not fetched; the message says how.
        MismatchError: another space in the place of a released one.
    """
    folder = path(name)
    release = releases().get(name)
    if release is None:
        return folder
    if not (folder / FILE).is_file():
        raise WeightsError(
            f"{name}: no weights in {folder}. Fetch them ({(release.size_bytes or 0) / 1e9:.1f} GB, "
            f"{release.licence}): bindsearch models fetch {name}; or bring {release.file}: "
            f"bindsearch models fetch {name} --from {release.file}"
        )
    there = load_manifest(folder)
    if there.name != name:
        raise MismatchError(
            f"{folder}: expected the space {name!r}, got {there.space_id}. Move that folder away (a space can be named "
            f"by its folder), then: bindsearch models fetch {name}"
        )
    return folder


def _no_argument(name: str, argument: str) -> None:
    if argument:
        raise InputError(f"space {name!r} takes nothing after the name, got {argument!r}.")


def _present(folder: Path, yes: str, no: str) -> str:
    return yes if (folder / FILE).is_file() else no


SPACES.register(
    "tiny",
    Family(_open_tiny, lambda: "from a seed", ("image", "video", "text", "audio", "depth", "thermal", "imu")),
)
SPACES.register(
    "bindsearch-mini",
    Family(
        _open_mini,
        lambda: _present(bundled_folder("bindsearch-mini"), "bundled", "missing"),
        ("image", "text", "audio"),
        lambda: bundled_folder("bindsearch-mini"),
    ),
)
SPACES.register(
    "imagebind-huge",
    Family(
        _open_huge,
        lambda: _present(cache_dir() / "imagebind-huge", "at hand", "not fetched"),
        ("image", "video", "text", "audio", "depth", "thermal", "imu"),
        lambda: cache_dir() / "imagebind-huge",
    ),
)


def path(name: str) -> Path:
    """Give the folder where a space's weights lie, or would lie.

    Raises:
        UnknownNameError: no such space.
        InputError: the space has no folder of ours.
    """
    folder = _folder_named(name)
    if folder is not None:
        return folder
    head = name.partition(":")[0]
    if head not in SPACES:
        raise UnknownNameError("space", name, SPACES.names(), f"A folder with {FILE} is a space as well.")
    family: Family = SPACES[head]
    found = family.folder()
    if found is None:
        raise InputError(
            f"space {name!r} keeps no folder here: its status is {family.status()!r}. "
            f"What it is: bindsearch models info {name}; where each space lies: bindsearch models list --json"
        )
    return found


def list_spaces() -> list[dict[str, Any]]:
    """List the registered spaces and those in the cache: name, status, modalities and folder of each.

    The status of one that cannot be opened is "damaged: " and why; it has no modalities then. Of one that is whole but
    joined a space that is not at hand it is "parent missing: " and that space's id; its modalities are its own then.
    """
    families: dict[str, Family] = {name: SPACES[name] for name in SPACES}
    known = [(name, each, each.folder()) for name, each in families.items()]
    return [
        *(_row(name, each.status(), folder, partial(each.open, ""), each.modalities) for name, each, folder in known),
        *(_row(folder.name, "at hand", folder, partial(open_folder, folder)) for folder in _cached()),
    ]


def _row(
    name: str, status: str, folder: Path | None, opens: Callable[[], Opened], modalities: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Describe a space in a list, `modalities` where it has no files to tell."""
    if folder is not None and (folder / FILE).is_file():
        trouble, modalities = _state(folder, opens)
        status = trouble or status
    where = None if folder is None else str(folder)
    return {"name": name, "status": status, "modalities": list(modalities), "folder": where}


def _state(folder: Path, opens: Callable[[], Opened]) -> tuple[str, tuple[str, ...]]:
    """Say what is wrong with a folder's space, "" where nothing is, and what it can encode as it is."""
    from bindsearch.models.weights import load_whole

    parent: Parent | None = None
    own: tuple[str, ...] = ()
    try:
        manifest = load_whole(folder)
        own, parent = tuple(manifest.card().towers), manifest.parent
        return "", tuple(opens().card.towers)
    except BindSearchError as error:
        return (f"damaged: {error}", ()) if parent is None else (f"parent missing: {parent.space_id}", own)


def _cached() -> Iterator[Path]:
    """Folders of the cache that are spaces under no registered name."""
    base = cache_dir()
    if base.is_dir():
        yield from (entry for entry in sorted(base.iterdir()) if (entry / FILE).is_file() and entry.name not in SPACES)


def info(name: str) -> dict[str, Any]:
    """Say what a space is, as a flat record; loads no tower, and has no logit_scales where they are the towers' own.

    Raises:
        UnknownNameError: no such space.
    """
    facts: dict[str, Any] = {"name": name}
    release = releases().get(name)
    if release is not None:
        facts.update(licence=f"{release.licence} {release.licence_url}", url=release.url, paper=release.paper)
        facts.update(parameters=release.parameters, size_bytes=release.size_bytes)
    try:
        opened = _open(name)
    except UnknownNameError:
        raise
    except BindSearchError as error:
        return {**facts, "status": str(error)}
    card = opened.card
    space = Space(card, Towers(opened.load, tuple(card.tower_ids), COMPUTE, "cpu"), "default", opened.location)
    facts.update(
        status=opened.status(),
        space_id=card.space_id,
        location=opened.location,
        dim=card.dim,
        modalities=list(card.towers),
        stored_dtype=opened.stored_dtype,
        tower_ids=card.tower_ids,
        clip_shapes={modality: list(shape) for modality, shape in card.clip_shapes.items()},
        presets={modality: _preset_id(space, modality) for modality in card.towers},
        source=card.source,
    )
    if not card.scale_from_tower:  # else its weights would be loaded, or downloaded
        facts["logit_scales"] = {modality: round(space.logit_scale(modality), 4) for modality in card.towers}
    facts["licence"] = card.licence or facts.get("licence", "")
    return facts


def _preset_id(space: Space, modality: str) -> str:
    try:
        return space.preset_id(modality)
    except ImportError as error:
        return f"not here: {error}"
