"""One index becomes several: by modality, by a filter, or into n parts; together they hold exactly what it held."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bindsearch.errors import InputError, MismatchError, MissingInputError
from bindsearch.index.base import Progress, no_progress
from bindsearch.index.change import joint_schema, living
from bindsearch.index.commit import commit
from bindsearch.index.folder import IndexFolder
from bindsearch.index.manifest import sync_folder
from bindsearch.index.segment import write_segment
from bindsearch.index.snapshot import Snapshot
from bindsearch.index.source import BLOCK_ROWS
from bindsearch.store.files import full_disk_said

if TYPE_CHECKING:
    from bindsearch.types import BoolArray, IntArray


@dataclass(frozen=True, eq=False)
class Parts:
    """Which part each row of an index goes to.

    Attributes:
        names: of the parts, which become folder names.
        numbers: one (rows of the segment,) int64 a segment, in row order: the part's place in `names`.
    """

    names: tuple[str, ...]
    numbers: Sequence[IntArray]


def parts_by_modality(snapshot: Snapshot) -> Parts:
    """Give each modality a part of its own."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names = tuple(sorted(snapshot.manifest.modalities))
    places = [pc.index_in(part.column("modality"), pa.array(names)) for part in snapshot.segments]
    return Parts(names, [pc.fill_null(each, 0).to_numpy().astype(np.int64) for each in places])  # null: removed rows


def parts_by_count(snapshot: Snapshot, count: int) -> Parts:
    """Spread items over parts by id, so that an item goes to the same part whenever and wherever this is done.

    Raises:
        MissingInputError: the index holds no item.
        InputError: `count` below 2, or above the number of items.
    """
    if count < 2:
        raise InputError(f"split: expected at least 2 parts, got {count}.")
    _check_not_empty(snapshot)
    items = snapshot.manifest.count
    if count > items:
        raise InputError(f"{snapshot.path}: {items} items cannot fill {count} parts. Give at most --parts {items}.")
    names = tuple(f"part-{number:05d}-of-{count:05d}" for number in range(1, count + 1))
    return Parts(names, [_spread(part.index.ids) % count for part in snapshot.segments])


def parts_by_masks(snapshot: Snapshot, masks: Sequence[BoolArray | None] | None) -> Parts:
    """Part the items that pass a filter ("passes") from the rest; masks as in `Snapshot.search`."""
    chosen = [None] * len(snapshot.segments) if masks is None else masks
    numbers = [
        np.zeros(part.entry.rows, dtype=np.int64) if mask is None else (~mask).astype(np.int64)
        for part, mask in zip(snapshot.segments, chosen, strict=True)
    ]
    return Parts(("passes", "rest"), numbers)


def split_index(
    snapshot: Snapshot, output: str | Path, parts: Parts, progress: Progress = no_progress
) -> dict[str, IndexFolder]:
    """Write the parts of an index as indexes of their own, OUTPUT/NAME; all of them appear at once, or none.

    Args:
        snapshot: the index; it stays as it is.
        output: folder of the parts; must not be there, or be empty.
        parts: which row goes where.
        progress: told how far the backend's files are.

    Returns:
        Name -> index, in the order of the names.

    Raises:
        MissingInputError: the index holds no item.
        InputError: `output` holds something, is the working folder or a mounted disk, or a part would hold no item.
        MismatchError: the parts do not hold exactly the whole: the index is damaged.
        BindSearchError: the disk is full; nothing of the parts is left.
    """
    _check_not_empty(snapshot)
    named, output = Path(output), Path(output).resolve()  # behind a link, which nothing can be moved over
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{named}: is there already. Name a new folder for the parts.")
    if output == Path.cwd() or output.is_mount():  # the parts appear by taking the folder's place
        what = "a disk is mounted there" if output.is_mount() else "is the working folder"
        raise InputError(f"{named}: {what}, which cannot be replaced. Name a new folder in it: -o {named / 'parts'}")
    _check_no_part_empty(snapshot, parts)
    output.parent.mkdir(parents=True, exist_ok=True)
    for left in output.parent.glob(f".{output.name}.draft-*"):  # of a killed split
        shutil.rmtree(left, ignore_errors=True)
    draft = output.parent / f".{output.name}.draft-{os.getpid()}"
    try:
        with full_disk_said(named):
            counts = [_write_part(snapshot, draft / name, parts, at, progress) for at, name in enumerate(parts.names)]
            if sum(counts) != snapshot.manifest.count:
                raise MismatchError(
                    f"{snapshot.path}: holds {snapshot.manifest.count} items, its parts {sum(counts)}. Look at it: "
                    f"bindsearch index verify {snapshot.path}"
                )
            sync_folder(draft)
            draft.replace(output)
            sync_folder(output.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return {name: IndexFolder.open(named / name) for name in parts.names}


def _spread(ids: IntArray) -> IntArray:
    """Mix the bits of ids, (n,) int64 to (n,) int64 from 0 on, so that ids counted in steps spread evenly too.

    Source: the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
    """
    mixed = ids.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed >> np.uint64(1)).astype(np.int64)


def _check_not_empty(snapshot: Snapshot) -> None:
    if not snapshot.manifest.count:
        raise MissingInputError(
            f"{snapshot.path}: holds no item, so that there is nothing to split. Add some: "
            f"bindsearch index add {snapshot.path} EMBEDDINGS"
        )


def _check_no_part_empty(snapshot: Snapshot, parts: Parts) -> None:
    counts = np.zeros(len(parts.names), dtype=np.int64)
    for segment, numbers in zip(snapshot.segments, parts.numbers, strict=True):
        counts += np.bincount(numbers[segment.index.alive], minlength=counts.size)
    if not counts.all():
        raise InputError(
            f"{snapshot.path}: the part {parts.names[int(np.argmin(counts))]!r} would hold none of its "
            f"{snapshot.manifest.count} items. Split it otherwise."
        )


def _write_part(snapshot: Snapshot, folder: Path, parts: Parts, number: int, progress: Progress) -> int:
    """Write one part; gives how many items it holds."""
    old = snapshot.manifest
    (folder / "segments").mkdir(parents=True)
    masks = [numbers == number for numbers in parts.numbers]
    blocks = living(snapshot.segments, BLOCK_ROWS, joint_schema(snapshot.segments), masks)
    entry, modalities = write_segment(
        folder, 1, blocks, old.dim, old.recipe, progress, as_stored=True, asking=snapshot.asking
    )
    if entry is None:
        return 0
    identity = old.identity.within({*modalities, *(snapshot.centring.names if snapshot.centring else ())})
    state = dataclasses.replace(
        old,
        segments=(entry,),
        count=entry.rows,
        modalities=modalities,
        generation=1,
        first_generation=1,
        tower_ids=dict(identity.tower_ids),
        preset_ids=dict(identity.preset_ids),
        centring=None if snapshot.centring is None else snapshot.centring.save(folder),
        tuned=None,  # measured on the whole
    )
    commit(folder, state)
    return entry.rows
