"""Weights of a space on disk: save, load as a memory map, convert a released checkpoint, verify every byte."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindsearch.errors import InputError, MissingInputError, WeightsError, reason_of
from bindsearch.models.architecture import load_architecture, load_preprocess
from bindsearch.models.keys import DERIVED, checkpoint_key, tower_key
from bindsearch.models.manifest import FILE, Parent, SpaceManifest, load_manifest, relative_to, save_manifest
from bindsearch.models.tower_file import (
    Getter,
    check_finite,
    content_id,
    counts_for_id,
    remove_leftovers,
    write_tower,
)

if TYPE_CHECKING:
    import torch

    from bindsearch.models.bind import Tower

CONVERTED = ("float32", "bfloat16")
"""What weights are converted to: ids stay. Float16 rounds before `content_id` does, which gives other ids."""
_SHOWN = 12
_CHUNK_BYTES = 1 << 22


def save_space(
    folder: Path,
    manifest: SpaceManifest,
    towers: Mapping[str, Mapping[str, Getter]],
    dtype: str = "float32",
    progress: bool = False,
) -> SpaceManifest:
    """Write a space: one file a tower, then space.json as the commit point.

    A space that was there stays one until the first of its towers is replaced.

    Args:
        folder: made where it is missing. Towers that it holds already and that are not in `towers` stay.
        manifest: without records of the towers that are written.
        towers: tower -> key -> a function that gives the tensor; for a module in memory see `getters`.
        dtype: what the files hold: "float32", "bfloat16" or "float16".
        progress: a bar on stderr.

    Returns:
        The manifest that was written.

    Raises:
        InputError, WeightsError: as `write_tower`.
    """
    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    records = dict(manifest.towers)
    for name in tqdm(sorted(towers), desc=folder.name, unit="tower", disable=not progress):
        records[name] = write_tower(folder / f"{name}.safetensors", towers[name], dtype, _no_space(folder))
    written = replace(manifest, towers=records, dtype=dtype)
    save_manifest(written, folder)
    return written


def _no_space(folder: Path) -> Callable[[], None]:
    """Give what makes a folder no space while towers are replaced: its record would vouch for other weights."""
    return lambda: (folder / FILE).unlink(missing_ok=True)


def getters(tower: torch.nn.Module) -> dict[str, Getter]:
    """Give a tower's tensors for `save_space`, detached and on the CPU when asked for."""
    return {key: _getter(value) for key, value in tower.state_dict().items()}


def _getter(tensor: torch.Tensor) -> Getter:
    return lambda: tensor.detach().cpu()


def load_tower(folder: Path, manifest: SpaceManifest, name: str, dtype: torch.dtype, device: torch.device) -> Tower:
    """Load one tower.

    The file is mapped: where its numbers have the wanted type, parameters are views of the map, and pages that are
    never used are never read. No initialiser runs.

    Args:
        folder: of the space.
        manifest: of the space.
        name: of the tower.
        dtype: of the parameters.
        device: where they go.

    Returns:
        The tower in eval mode, without gradients.

    Raises:
        WeightsError: the file is missing, cut, damaged, or does not fit the architecture; keys are listed.
    """
    from bindsearch.models.bind import build_tower

    tower = build_tower(manifest.architecture, name)
    wanted = {key: tuple(tensor.shape) for key, tensor in tower.state_dict().items()}
    state = _mapped(folder, manifest, name, wanted)
    for key, tensor in state.items():
        kind = dtype if tensor.is_floating_point() and counts_for_id(key) else tensor.dtype
        state[key] = tensor.to(device, kind)
    tower.load_state_dict(state, strict=True, assign=True)
    return tower.to(device).requires_grad_(False).eval()  # a timm backbone may have tables that no file holds


def _mapped(
    folder: Path, manifest: SpaceManifest, name: str, wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, torch.Tensor]:
    """Map one tower's file and give its tensors, after comparing names and shapes."""
    from safetensors import SafetensorError, safe_open

    path = check_size(folder, manifest, name)
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            keys = list(file.keys())
            found = {key: tuple(file.get_slice(key).get_shape()) for key in keys}
            check_keys(found, wanted, str(path))
            return {key: file.get_tensor(key) for key in keys}
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: cannot be read as safetensors ({error}). Delete it, then fetch or convert it again."
        ) from error


def check_size(folder: Path, manifest: SpaceManifest, name: str) -> Path:
    """Give the path of a tower's file, refusing one that is missing or has another size than recorded.

    Raises:
        WeightsError: naming the file and both sizes.
    """
    record = manifest.towers.get(name)
    if record is None:
        raise WeightsError(f"{folder}: the space {manifest.name!r} has no {name} tower.")
    path = folder / record.file
    if not path.is_file():
        raise WeightsError(f"{path}: missing. Fetch or convert the space {manifest.name!r} again.")
    size = path.stat().st_size
    if size != record.size_bytes:
        raise WeightsError(f"{path}: expected {record.size_bytes} bytes, got {size}. Fetch or convert it again.")
    return path


def load_whole(folder: Path) -> SpaceManifest:
    """Read a folder's space.json and compare the towers' sizes with it; reads no tower, see `verify`.

    Raises:
        WeightsError: it is no folder of a space, or a tower's file is missing or of another size.
    """
    manifest = load_manifest(folder)
    for name in manifest.towers:
        check_size(folder, manifest, name)
    return manifest


def check_dtype(dtype: str) -> None:
    """Refuse a type that weights are not converted to.

    Raises:
        InputError: naming those that they are.
    """
    if dtype not in CONVERTED:
        raise InputError(f"unknown dtype {dtype!r} for converted weights. Known: {', '.join(CONVERTED)}.")


def check_target(folder: Path, name: str) -> None:
    """Refuse to write a space over another one; what is no space, or a damaged one, may be replaced.

    Raises:
        InputError: naming both.
    """
    try:
        there = load_manifest(folder).name
    except WeightsError:
        return
    if there != name:
        raise InputError(
            f"{folder}: holds the space {there!r}, which {name!r} would replace. Name another folder (models convert "
            "-o FOLDER), or move that one away."
        )


def check_keys(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuse weights whose names or shapes are not exactly the architecture's.

    Raises:
        WeightsError: listing what is missing, what is unexpected and what has another shape.
    """
    problems = [
        ("missing", sorted(set(wanted) - set(found))),
        ("unexpected", sorted(set(found) - set(wanted))),
        (
            "of another shape",
            [
                f"{key} (expected {wanted[key]}, got {found[key]})"
                for key in sorted(set(found) & set(wanted))
                if tuple(found[key]) != tuple(wanted[key])
            ],
        ),
    ]
    said = [
        f"{len(keys)} {what}: {', '.join(keys[:_SHOWN])}{', ...' if len(keys) > _SHOWN else ''}"
        for what, keys in problems
        if keys
    ]
    if said:
        raise WeightsError(
            f"{where}: not these weights ({len(wanted)} keys wanted, {len(found)} found). {'; '.join(said)}."
        )


def checkpoint_shapes(name: str = "imagebind-huge") -> dict[str, tuple[int, ...]]:
    """Give every key of a released checkpoint with its shape: weights, logit scales and the causal mask."""
    from bindsearch.models.bind import build_tower

    architecture = load_architecture(name)
    shapes: dict[str, tuple[int, ...]] = {}
    for tower in architecture.towers:
        for key, tensor in build_tower(architecture, tower).state_dict().items():
            shapes[checkpoint_key(tower, key)] = tuple(tensor.shape)
    context = architecture.tower("text").stem.shape[0]
    for key in DERIVED:
        shapes[checkpoint_key("text", key)] = (context, context)
    return shapes


def convert(
    checkpoint: Path,
    folder: Path,
    dtype: str = "float32",
    progress: bool = False,
    source: Mapping[str, Any] | None = None,
    architecture: str = "imagebind-huge",
) -> SpaceManifest:
    """Convert imagebind_huge.pth to a folder with one safetensors file a tower.

    The checkpoint is mapped and read by torch's restricted unpickler, which builds tensors and runs no code of the
    file; towers are written one at a time.

    Args:
        checkpoint: the released file (torch's zip format), or the folder of a converted space, see `recast`.
        folder: made where it is missing; files of an earlier conversion are replaced.
        dtype: "float32" or "bfloat16"; for the folder of a space as `recast` says.
        progress: a bar on stderr.
        source: what is known of the checkpoint, recorded in space.json; its size and SHA-256 are added.
        architecture: whose names and shapes the checkpoint must have; also the space's name.

    Returns:
        The manifest that was written.

    Raises:
        MissingInputError: no such file.
        InputError: another dtype; or `folder` holds another space.
        WeightsError: not a checkpoint, or not exactly the 1,311 keys and shapes of ImageBind, in finite floating-point
            numbers; disk full. What `folder` held stays until the first tower is replaced.
    """
    from bindsearch.models.releases import releases

    if checkpoint.is_dir():
        return recast(checkpoint, folder, dtype, progress)
    check_dtype(dtype)
    check_target(folder, architecture)
    if not checkpoint.is_file():
        raise MissingInputError(f"{checkpoint}: no such file. Bring imagebind_huge.pth, or: bindsearch models fetch.")
    state = read_checkpoint(checkpoint)
    check_keys(
        {key: tuple(tensor.shape) for key, tensor in state.items()}, checkpoint_shapes(architecture), str(checkpoint)
    )
    towers: dict[str, dict[str, Getter]] = {}
    for key, tensor in state.items():
        tower, ours = tower_key(key)
        if ours in DERIVED:
            _check_mask(tensor, f"{checkpoint}: {key}")
        else:
            if not tensor.is_floating_point():
                raise WeightsError(f"{checkpoint}: {key}: expected floating-point numbers, got {tensor.dtype}.")
            # write_tower looks as well, but by then earlier towers of the space that was there are replaced: what this
            # costs, one more reading of the file, keeps that space
            check_finite(f"{checkpoint}: {tower}", ours, tensor)
            towers.setdefault(tower, {})[ours] = _getter(tensor)
    known = releases()
    facts = {"file": checkpoint.name, "size_bytes": checkpoint.stat().st_size, **(source or {})}
    facts.setdefault("sha256", sha256_of(checkpoint, progress))
    manifest = SpaceManifest(
        name=architecture,
        architecture=load_architecture(architecture),
        preprocess=load_preprocess(architecture),
        source=facts,
        licence=known[architecture].licence if architecture in known else "",
    )
    return save_space(folder, manifest, towers, dtype, progress)


def recast(space: Path, folder: Path, dtype: str, progress: bool = False) -> SpaceManifest:
    """Write a space's towers once more, in another type; ids stay.

    Args:
        space: folder of the space. Not modified.
        folder: another one.
        dtype: "bfloat16", or the type that the files have.
        progress: a bar on stderr.

    Returns:
        The manifest that was written.

    Raises:
        InputError: the same folder; one that holds another space; another dtype, such as float32 of bfloat16 files,
            which would only be larger.
        WeightsError: a file is missing or damaged; disk full.
    """
    from bindsearch.models.bind import build_tower

    manifest = load_manifest(space)
    if dtype != manifest.dtype:
        check_dtype(dtype)
    if folder.resolve() == space.resolve():
        raise InputError(f"{folder}: the space itself. Name another folder: -o FOLDER")
    if dtype == "float32" and manifest.dtype != dtype:
        raise InputError(
            f"{space}: holds {manifest.dtype}; float32 of it would be larger and no better. Type --dtype bfloat16"
        )
    check_target(folder, manifest.name)
    towers: dict[str, dict[str, Getter]] = {}
    for name in manifest.towers:
        shapes = {
            key: tuple(value.shape) for key, value in build_tower(manifest.architecture, name).state_dict().items()
        }
        tensors = _mapped(space, manifest, name, shapes)
        towers[name] = {key: _getter(tensor) for key, tensor in tensors.items()}
    parent = None if manifest.parent is None else _seen_from(folder, manifest.parent, space)
    return save_space(folder, replace(manifest, parent=parent), towers, dtype, progress)


def _seen_from(folder: Path, parent: Parent, space: Path) -> Parent:
    """Give a parent as the manifest of another folder names it: a folder beside the space keeps its place."""
    beside = space / parent.location
    return replace(parent, location=relative_to(folder, beside)) if (beside / FILE).is_file() else parent


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Map a checkpoint's tensors; nothing in the file is executed.

    Raises:
        WeightsError: not torch's zip format, damaged, or holding anything but a table of tensors.
    """
    import torch

    if not zipfile.is_zipfile(path):
        raise WeightsError(
            f"{path}: no checkpoint in torch's zip format (damaged, cut short, or another kind of file)."
        )
    try:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path}: refused or damaged: {reason_of(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise WeightsError(f"{path}: expected a table of tensors, got {type(state).__name__} holding other things.")
    return state


def _check_mask(mask: torch.Tensor, where: str) -> None:
    """Refuse a text mask that is not the causal one, which is built and not loaded."""
    import torch

    causal = torch.full(mask.shape, float("-inf")).triu(1)
    if not torch.equal(mask.float(), causal):
        raise WeightsError(f"{where}: expected the causal mask (0, and minus infinity above the diagonal).")


def sha256_of(path: Path, progress: bool = False) -> str:
    """Hash a file, with a bar on stderr if asked for."""
    from tqdm import tqdm

    digest = hashlib.sha256()
    size = path.stat().st_size
    with (
        path.open("rb") as file,
        tqdm(total=size, desc=f"sha256 {path.name}", unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def verify(folder: Path, report: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Read every byte of a space's weights and compare sizes, checksums, names, shapes and ids.

    Args:
        folder: of the space. Not modified.
        report: told of each tower that is done.

    Returns:
        Facts for people: name, space id, and a line a tower.

    Raises:
        WeightsError: the first thing that differs, with both values.
    """
    from bindsearch.models.bind import build_tower

    manifest = load_manifest(folder)
    facts: dict[str, Any] = {"name": manifest.name, "folder": str(folder), "space_id": manifest.space_id}
    facts["dtype"] = manifest.dtype
    for name, record in sorted(manifest.towers.items()):
        path = check_size(folder, manifest, name)
        got = sha256_of(path)
        if got != record.sha256:
            raise WeightsError(
                f"{path}: expected sha256 {record.sha256}, got {got}. Delete it, then fetch or convert it again."
            )
        shapes = {
            key: tuple(value.shape) for key, value in build_tower(manifest.architecture, name).state_dict().items()
        }
        state = _mapped(folder, manifest, name, shapes)
        weights = content_id((key, state[key]) for key in sorted(state) if counts_for_id(key))
        if weights != record.weights:
            raise WeightsError(f"{path}: expected weights {record.weights}, got {weights}: {FILE} is not this file's.")
        facts[name] = f"ok  {record.size_bytes} bytes  {manifest.tower_id(name)}"
        if report is not None:
            report(f"{name}: ok")
    return facts
