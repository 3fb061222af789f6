"""Export a store to a layout, import one from a layout."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import (
    BindSearchError,
    InputError,
    MismatchError,
    MissingInputError,
    TooManyBadError,
    UnknownNameError,
)
from bindsearch.exchange.rows import Export, Import, check_modality, settle_row, settle_vectors
from bindsearch.store import UNKNOWN, EmbeddingStore, Identity, commit_shard, commit_store
from bindsearch.store.files import commit_bytes, commit_json, full_disk_said
from bindsearch.store.generation import GONE, PLAN, generation_folders
from bindsearch.store.identity import FORMAT, FORMAT_VERSION

if TYPE_CHECKING:
    from bindsearch.exchange.rows import Block

    Rows = list[dict[str, Any]]

LOG = logging.getLogger(__name__)
LAYOUTS = {
    "npy": "bindsearch.exchange.npy",
    "parquet": "bindsearch.exchange.parquet",
    "hdf5": "bindsearch.exchange.hdf5",
    "clip-retrieval": "bindsearch.exchange.clip_retrieval",
}
SHARD_ROWS = 4096


def export_store(
    embeddings: str | os.PathLike[str],
    output: str | os.PathLike[str],
    layout: str = "parquet",
    *,
    modality: str | None = None,
) -> int:
    """Write a store's current items for another program.

    Args:
        embeddings: folder of the store.
        output: file (parquet, hdf5) or folder (npy, clip-retrieval) to write; an earlier export is replaced.
        layout: one of LAYOUTS.
        modality: export items of this one only.

    Returns:
        How many rows were written.

    Raises:
        UnknownNameError: no such layout.
        MissingInputError: no store there, or nothing of that modality in it.
        UnsupportedError: the layout cannot hold these modalities.
        InputError: clip-retrieval's own files lie in the output folder; or that is a folder and the layout a file, or
            the other way round.
    """
    module, there = find_layout(layout), Path(output)
    if there.exists() and there.is_dir() == module.ONE_FILE:
        wanted, got = ("a file", "a folder") if module.ONE_FILE else ("a folder", "a file")
        raise InputError(f"{output}: is {got}, expected {wanted}. {layout} is written as one; name another with -o.")
    store = EmbeddingStore.open(embeddings)
    counts = store.manifest.counts
    rows = sum(counts.values()) if modality is None else counts.get(modality, 0)
    if not rows:
        raise MissingInputError(f"{embeddings}: nothing to export; it holds {dict(counts)}.")
    blocks = store.iter_half_blocks() if modality is None else _only(store.iter_half_blocks(), modality)
    with full_disk_said(Path(output)):
        module.write(Export(store.manifest.identity, rows, blocks), Path(output))
    return rows


def _only(blocks: Iterable[Block], modality: str) -> Iterator[Block]:
    for half, table in blocks:
        rows = np.flatnonzero([each == modality for each in table.column("modality").to_pylist()])
        if len(rows):
            yield half[rows], table.take(rows)


def import_store(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    layout: str = "parquet",
    *,
    space_id: str | None = None,
    modality: str | None = None,
) -> int:
    """Read embeddings that another program wrote into a new store.

    Args:
        source: file or folder in the layout.
        output: folder of the store; must not hold one.
        layout: one of LAYOUTS.
        space_id: what the vectors were made with, as `bindsearch models info` prints it. Without it, and where the file
            does not say, the space is "unknown": such vectors can be compared with those of the same import only. Where
            the named space is at hand, its id and dimension must be these.
        modality: of rows that name none.

    Returns:
        How many rows were read. Rows are made unit rows; one without a direction goes to the ledger of bad inputs and
        counts as read: the store's `manifest.bad` says how many.

    Raises:
        InputError: the source is not in that layout, a cell is not what its column holds, a key is there twice, or a
            store is there already.
        UnknownNameError: no such layout or modality.
        TooManyBadError: no row has a direction.
        MismatchError: the file says another space than `space_id`, or the space of that name has another id or
            dimension.
    """
    module = find_layout(layout)
    if modality is not None:
        check_modality(modality, "--modality")
    path, folder = Path(source), Path(output)
    if not path.exists():
        raise MissingInputError(f"{path}: no such file or folder.")
    if generation_folders(folder):
        raise InputError(f"{folder}: holds embeddings already. Choose another output folder.")
    found: Import = module.read(path)
    generation = folder / "g0001"
    shutil.rmtree(generation, ignore_errors=True)
    generation.mkdir(parents=True)
    try:
        with full_disk_said(folder):
            return _import(found, folder, path, space_id, modality)
    except BaseException:
        if not (generation / PLAN).exists():
            shutil.rmtree(generation)
        raise


def _import(found: Import, folder: Path, path: Path, space_id: str | None, modality: str | None) -> int:
    """Write the shards as they are read, then what makes them a store."""
    shards: Rows = []
    identity: Identity | None = None
    used: dict[str, None] = {}
    usable = 0
    for number, (vectors, rows) in enumerate(_shards(found, path.name, modality, str(path))):
        identity = identity or settle_identity(found.identity, space_id, vectors.shape[1], path)
        good, bad = _part(vectors, rows)
        usable += len(good)
        used.update(dict.fromkeys(row["modality"] for row in rows))
        name = f"imported-{number:05d}"
        commit_shard(folder / "g0001", name, vectors[good], [rows[each] for each in good], bad, identity)
        shards.append({"name": name, "kind": "imported", "items": len(rows)})
    if identity is None:
        raise MissingInputError(f"{path}: holds no rows.")
    read: int = sum(shard["items"] for shard in shards)
    if not usable:
        raise TooManyBadError(
            f"{path}: none of its {read} rows has a direction: every vector is zero or not finite. Nothing is written; "
            "look at what wrote the file."
        )
    _commit(folder, folder / "g0001", replace(identity, **_named(identity, used)), shards, path)
    return read


def find_layout(name: str) -> Any:
    """Import the module of a layout.

    Raises:
        UnknownNameError: no such layout.
    """
    if name not in LAYOUTS:
        raise UnknownNameError("layout", name, LAYOUTS)
    return importlib.import_module(LAYOUTS[name])


def _shards(
    found: Import, name: str, modality: str | None, where: str
) -> Iterator[tuple[np.ndarray, list[dict[str, Any]]]]:
    """Cut what is read into shards; rows with their id, key and norm settled, keys checked for doubles."""
    seen: set[int] = set()
    at = 0
    for vectors, columns in found.blocks:
        unit, norms = settle_vectors(vectors)
        rows = [
            settle_row(row, f"{name}#{at + number}", modality, f"{where}, row {at + number}")
            for number, row in enumerate(columns)
        ]
        for row, norm in zip(rows, norms.tolist(), strict=True):
            if row["id"] in seen:
                raise InputError(f"{where}: key {row['key']!r} is there twice.")
            seen.add(row["id"])
            row["norm"] = row["norm"] if row["norm"] is not None else norm
        at += len(rows)
        for start in range(0, len(rows), SHARD_ROWS):
            yield unit[start : start + SHARD_ROWS], rows[start : start + SHARD_ROWS]


def _part(vectors: np.ndarray, rows: Rows) -> tuple[list[int], Rows]:
    """Tell rows with a direction from those without."""
    fine = np.isfinite(vectors).all(axis=1) & (np.abs(np.linalg.norm(vectors.astype(np.float32), axis=1) - 1) < 0.1)
    reason = "the vector is zero or not finite"
    bad = [
        {**rows[each], "norm": None, "status": "bad", "stage": "read", "reason": reason}
        for each in np.flatnonzero(~fine)
    ]
    return np.flatnonzero(fine).tolist(), bad


def settle_identity(found: Identity | None, space_id: str | None, dim: int, where: Path) -> Identity:
    """Decide what vectors are made with: what the file says, else what the caller says, else unknown.

    Raises:
        InputError: `space_id` is of another form.
        MismatchError: two of file, caller and the space of that name differ.
    """
    if space_id is not None and "@" not in space_id:
        raise InputError(f"space id {space_id!r}: expected NAME@HASH, as `bindsearch models info NAME` prints it.")
    if found is not None:
        if space_id not in (None, found.space_id):
            raise MismatchError(f"{where}: made with space {found.space_id}, but --space-id says {space_id}.")
        if found.dim != dim:
            raise MismatchError(f"{where}: says dimension {found.dim}, its vectors have {dim}.")
        return found
    if space_id is None:
        LOG.warning("%s: does not say its space; marked as %r. State it: --space-id NAME@HASH", where, UNKNOWN)
        space_id = UNKNOWN
    else:
        _check_claim(space_id, dim, where)
    return Identity(space_id.rpartition("@")[0] or space_id, space_id, dim, UNKNOWN)


def _check_claim(space_id: str, dim: int, where: Path) -> None:
    """Compare a stated space with the one of that name, if it is at hand; loads no tower.

    Raises:
        MismatchError: another id or dimension; both values are named.
    """
    from bindsearch.models.spaces import load_space

    name = space_id.rpartition("@")[0]
    try:
        space = load_space(name)
    except BindSearchError:  # a space of somebody else's, or without its weights: nothing to compare with
        return
    fix = f"See: bindsearch models info {name}; vectors of another space need a name of their own: --space-id NAME@HASH"
    if space.space_id != space_id:
        raise MismatchError(f"{where}: --space-id says {space_id}, the space {name} here is {space.space_id}. {fix}")
    if space.dim != dim:
        raise MismatchError(f"{where}: its vectors have dimension {dim}, those of {space_id} have {space.dim}. {fix}")


def _named(identity: Identity, used: Iterable[str]) -> dict[str, Any]:
    """Keep the towers and presets of the modalities in use."""
    return {
        "tower_ids": {name: value for name, value in identity.tower_ids.items() if name in set(used)},
        "preset_ids": {name: value for name, value in identity.preset_ids.items() if name in set(used)},
    }


def _commit(folder: Path, generation: Path, identity: Identity, shards: Rows, source: Path) -> None:
    commit_bytes(generation / GONE, b"")
    record = {"sources": [f"import:{source.absolute()}"], "imported": True, "shards": shards, "gone": 0}
    commit_json(generation / PLAN, {"format": FORMAT, "format_version": FORMAT_VERSION, **identity.to_json(), **record})
    commit_store(folder)
