"""Several indexes of one space become one; what two of them say of an item must be the same, or one is told to win."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bindsearch.errors import InputError, MismatchError, MissingInputError
from bindsearch.index.base import Progress, no_progress
from bindsearch.index.change import conform, joint_schema, living, same_items
from bindsearch.index.checks import unit_rows
from bindsearch.index.commit import check_output, commit, creating, first_of, forget_beside, last_generation
from bindsearch.index.folder import IndexFolder
from bindsearch.index.recipe import Recipe
from bindsearch.index.segment import write_segment
from bindsearch.index.snapshot import Snapshot
from bindsearch.index.source import BLOCK_ROWS, check_dim, several
from bindsearch.store import UNKNOWN

if TYPE_CHECKING:
    import pyarrow as pa

    from bindsearch.index.manifest import Manifest
    from bindsearch.index.segment import Block
    from bindsearch.types import BoolArray, IntArray

WINNERS = ("first", "last")
_ELSEWHERE = "Merge into a new folder, and delete the old one when it is there."


@dataclass(frozen=True)
class Merged:
    """What a merge did.

    Attributes:
        folder: the new index, open.
        shared: items that several of the indexes had; they are in the new one once.
    """

    folder: IndexFolder
    shared: int


def merge_indexes(
    indexes: str | Path | Sequence[str | Path],
    output: str | Path,
    prefer: str | None = None,
    recipe: Recipe | None = None,
    progress: Progress = no_progress,
) -> Merged:
    """Build one index of the items of several; they stay as they are.

    Args:
        indexes: folders of indexes of one space, centred by the same means or not at all.
        output: folder of the new index; created.
        prefer: which index wins where two say different things of an item: "first" or "last" of those named; None:
            refuse.
        recipe: how the new index is built; None: as the first of them.
        progress: told how far the backend's files are.

    Raises:
        MissingInputError: an index is not there, or none holds an item.
        MismatchError: of other spaces, dimensions, towers, presets or means, or of unknown spaces.
        InputError: fewer than two indexes, or an item on which two differ and `prefer` is not given.
    """
    if prefer is not None and prefer not in WINNERS:
        raise InputError(f"prefer: expected {' or '.join(WINNERS)}, got {prefer!r}.")
    named = several(indexes)
    if len(named) < 2:
        raise InputError(f"merge: {len(named)} index(es) named, expected at least two.")
    output = Path(output)
    check_output(output, force=False, instead=_ELSEWHERE)
    snapshots = [Snapshot.open(Path(str(each))) for each in named]
    manifest = _join(snapshots, recipe)
    if prefer is None:
        for number, snapshot in enumerate(snapshots):
            _check_same(snapshot, snapshots[:number])
    with creating(output):
        # once more: another process may have built it while this one waited
        check_output(output, force=False, instead=_ELSEWHERE)
        blocks = _blocks(snapshots, manifest.row_dtype, last_wins=prefer == "last")
        generation = last_generation(output) + 1
        asking = next((each.asking for each in snapshots if each.asking is not None), None)
        entry, modalities = write_segment(
            output, generation, blocks, manifest.dim, manifest.recipe, progress, as_stored=True, asking=asking
        )
        if entry is None:
            raise MissingInputError(f"{', '.join(map(str, named))}: no items. Nothing to merge.")
        means = snapshots[0].centring
        state = dataclasses.replace(
            manifest,
            segments=(entry,),
            count=entry.rows,
            modalities=modalities,
            generation=generation,
            first_generation=first_of(output, generation),
            centring=None if means is None else means.save(output),
        )
        commit(output, state)
        forget_beside(output)
    return Merged(IndexFolder.open(output), sum(each.manifest.count for each in snapshots) - entry.rows)


def _join(snapshots: Sequence[Snapshot], recipe: Recipe | None) -> Manifest:
    """Check that indexes go together; gives the first one's manifest with the identity of all.

    Raises:
        MismatchError: naming both values.
    """
    first, here = snapshots[0].manifest, str(snapshots[0].path)
    identity = first.identity
    for snapshot in snapshots[1:]:
        other, there = snapshot.manifest, str(snapshot.path)
        identity = identity.merged(other.identity, here, there, "Index both anew in one space.")
        check_dim(first.dim, other.dim, here, there)
        ours, theirs = (each.centring.id if each.centring else "not centred" for each in (first, other))
        if ours != theirs:
            raise MismatchError(
                f"{here}: its rows are {ours}, those of {there} are {theirs}. Build both over the same means "
                "(--centre --centre-with), or neither."
            )
        if UNKNOWN == first.space_id == other.space_id and Path(first.source).resolve() != Path(other.source).resolve():
            raise MismatchError(
                f"{here}: built with space {UNKNOWN} from {first.source or 'somewhere'}, {there} from "
                f"{other.source or 'somewhere'}: these may be two. Name the space of both: "
                "bindsearch import FILE -o EMBEDDINGS --space-id NAME@HASH; then index them again."
            )
    chosen = first.recipe if recipe is None else recipe
    return dataclasses.replace(
        first,
        tower_ids=dict(identity.tower_ids),
        preset_ids=dict(identity.preset_ids),
        tokenizer_id=identity.tokenizer_id,
        recipe=chosen,
        backend=first.backend if chosen is None else chosen.backend,
        row_dtype="float32" if chosen is None else chosen.row_dtype,
        tuned=None,  # measured on the items of one of them
        source=", ".join(str(each.path) for each in snapshots),
    )


def _held(snapshots: Sequence[Snapshot], ids: IntArray) -> BoolArray:
    """Say which ids one of some snapshots holds, (m,) bool."""
    held = np.zeros(ids.size, dtype=bool)
    for snapshot in snapshots:
        held |= snapshot.locate(ids)[0] >= 0
    return held


def _blocks(snapshots: Sequence[Snapshot], row_dtype: str, last_wins: bool) -> Iterator[Block]:
    """Iterate over the items of all snapshots, each once, in their order; rows as an index of `row_dtype` has them."""
    import pyarrow as pa

    schema = _schema(snapshots)
    for number, snapshot in enumerate(snapshots):
        winners = snapshots[number + 1 :] if last_wins else snapshots[:number]
        widened = snapshot.manifest.row_dtype != row_dtype == "float32"
        for ids, rows, table in living(snapshot.segments, BLOCK_ROWS, schema):
            kept = ~_held(winners, ids)
            yield ids[kept], unit_rows(rows[kept], "vectors") if widened else rows[kept], table.filter(pa.array(kept))


def _schema(snapshots: Sequence[Snapshot]) -> pa.Schema | None:
    segments = [segment for snapshot in snapshots for segment in snapshot.segments]
    return joint_schema(segments) if segments else None


def _check_same(snapshot: Snapshot, earlier: Sequence[Snapshot]) -> None:
    """Refuse an item of which an earlier index says something else.

    Raises:
        InputError: naming the key, both indexes and what to type.
    """
    schema = _schema([*earlier, snapshot])
    for other in earlier:
        ids = snapshot.ids()
        shared = ids[other.locate(ids)[0] >= 0]
        for start in range(0, shared.size, BLOCK_ROWS):
            here = shared[start : start + BLOCK_ROWS]
            same = _same_vectors(other, snapshot, here)
            same &= same_items(other.table(here), conform(snapshot.table(here), schema))
            if not same.all():
                key = snapshot.table(here[~same][:1], ["key"])["key"][0].as_py()
                raise InputError(
                    f"{snapshot.path}: its item {key!r} is not what {other.path} has under that key. Say which wins: "
                    "--prefer first or --prefer last; or remove the item from one of them."
                )


def _same_vectors(one: Snapshot, other: Snapshot, ids: IntArray) -> BoolArray:
    """Say of which items two indexes were given one vector, (m,) bool.

    Rows of one dtype are compared bit for bit: normalising a stored row again changes its last bit. Of a float32 and a
    float16 row, the second is the first one rounded, or, of embeddings that were float16, the first is the second one
    normalised.

    Args:
        one: an index.
        other: one of the same dimension.
        ids: (m,) int64 that both hold. Not modified.
    """
    left, right = one.rows(ids), other.rows(ids)
    if one.manifest.row_dtype == other.manifest.row_dtype:
        return np.asarray((left == right).all(axis=1), dtype=bool)
    fine, coarse = (left, right) if one.manifest.row_dtype == "float32" else (right, left)
    rounded = (fine.astype(np.float16) == coarse).all(axis=1)
    return np.asarray(rounded | (fine == unit_rows(coarse, "vectors")).all(axis=1), dtype=bool)
