"""Changes of an index: each writes new files beside the old ones and gives the manifest that would make it so.

    add       new and changed items become one more segment; what they replace is buried by tombstones
    remove    tombstones
    fold      several small segments of like size become one, so that their number stays logarithmic
    compact   all living rows become one segment, built by the index's recipe

What was tuned stays with the items that it was measured on; see `tuned.after_change`.

None of them is a change before `commit` has replaced index.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bindsearch.errors import MismatchError
from bindsearch.index.base import Progress, no_progress
from bindsearch.index.checks import stored_rows
from bindsearch.index.commit import write_ids
from bindsearch.index.manifest import Manifest, SegmentEntry, sum_counts
from bindsearch.index.segment import LEDGER_COLUMNS, Segment, count_values, write_segment
from bindsearch.index.sizes import stored_read_bytes
from bindsearch.index.snapshot import Snapshot
from bindsearch.index.source import BLOCK_ROWS, VectorSource, check_dim, check_known, identity_of
from bindsearch.index.tuned import after_change
from bindsearch.index.upkeep import rows_beside, segments_to_fold
from bindsearch.registry import INDEXES

if TYPE_CHECKING:
    import pyarrow as pa

    from bindsearch.index.segment import Block
    from bindsearch.types import BoolArray, IntArray


@dataclass(frozen=True)
class Added:
    """What an addition did, in items.

    Attributes:
        added: that the index did not have.
        replaced: that it had with another vector or item row.
        unchanged: that it had as they are; passed over.
        gone: that it had and that the embeddings mark as gone.
    """

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    gone: int = 0

    @property
    def changed(self) -> int:
        """The items that were written: new ones and replacements."""
        return self.added + self.replaced

    def __str__(self) -> str:
        """Say it in words: "3 added, 1 replaced, 20 unchanged"."""
        gone = f", {self.gone} gone" if self.gone else ""
        return f"{self.added} added, {self.replaced} replaced, {self.unchanged} unchanged{gone}"


def add(snapshot: Snapshot, source: VectorSource, name: str, block_rows: int) -> tuple[Manifest | None, Added]:
    """Write the items of a source that are new or differ as a segment, and bury those that they replace.

    Args:
        snapshot: the newest state, held by the lock.
        source: of the same space.
        name: what the caller calls the source.
        block_rows: rows in memory at once.

    Returns:
        The manifest to commit (None: nothing changes) and what it does.

    Raises:
        MismatchError: as in `IndexFolder.add`.
    """
    old, here = snapshot.manifest, str(snapshot.path)
    fix = f"Rebuild: bindsearch index EMBEDDINGS -o {here} --force"
    identity = old.identity.merged(identity_of(source, name), here, name or "the addition", fix)
    check_dim(old.dim, source.manifest.dim, here, name)
    check_known(old, source, here, name)
    blocks: Iterable[Block] = source.iter_blocks(block_rows)
    if snapshot.centring is not None:
        blocks = snapshot.centring.blocks(blocks, here)
    comparison = _Comparison(snapshot)
    entry, modalities = write_segment(
        snapshot.path, old.generation + 1, comparison.changed(blocks), old.dim, old.small_recipe
    )
    identity = identity.within({*old.tower_ids, *old.preset_ids, *modalities})
    replaced, vanished = comparison.replaced(), _gone(snapshot, source.gone_sources())
    done = Added(
        0 if entry is None else entry.rows - replaced.size, int(replaced.size), comparison.unchanged, int(vanished.size)
    )
    buried = np.concatenate([replaced, vanished])
    if entry is None and not buried.size:
        return None, done
    entries, gone = bury(snapshot, buried)
    new = dataclasses.replace(
        old,
        segments=entries if entry is None else (*entries, entry),
        tower_ids=dict(identity.tower_ids),
        preset_ids=dict(identity.preset_ids),
        tokenizer_id=identity.tokenizer_id,
        source=name or old.source,
    )
    counts = sum_counts(old.modalities, modalities, {k: -v for k, v in gone.items()})
    return next_state(new, counts, done.changed + done.gone), done


def remove(snapshot: Snapshot, ids: IntArray) -> tuple[Manifest | None, int]:
    """Write tombstones for ids; gives the manifest to commit (None: none was there) and how many items it removes."""
    entries, gone = bury(snapshot, ids)
    if not gone:
        return None, 0
    old = snapshot.manifest
    counts = sum_counts(old.modalities, {k: -v for k, v in gone.items()})
    removed = sum(gone.values())
    return next_state(dataclasses.replace(old, segments=entries), counts, removed), removed


def compact(snapshot: Snapshot, block_rows: int = BLOCK_ROWS, progress: Progress = no_progress) -> Manifest:
    """Write all living rows as one segment, built by the index's recipe."""
    old = snapshot.manifest
    blocks = living(snapshot.segments, block_rows)
    entry, modalities = write_segment(
        snapshot.path, old.generation + 1, blocks, old.dim, old.recipe, progress, as_stored=True, asking=snapshot.asking
    )
    new = dataclasses.replace(old, segments=() if entry is None else (entry,))
    return next_state(new, modalities, joining=rows_beside(old))


def fold(snapshot: Snapshot, block_rows: int = BLOCK_ROWS) -> Manifest | None:
    """Write small segments of like size as one; None where there are not enough of them."""
    old = snapshot.manifest
    chosen = segments_to_fold(old)
    if not chosen:
        return None
    parts = [part for number, part in enumerate(snapshot.segments) if number in chosen]
    blocks = living(parts, block_rows)
    entry, _ = write_segment(snapshot.path, old.generation + 1, blocks, old.dim, old.small_recipe, as_stored=True)
    kept = [entry for number, entry in enumerate(old.segments) if number not in chosen]
    return next_state(dataclasses.replace(old, segments=(*kept, *([] if entry is None else [entry]))), old.modalities)


def next_state(
    manifest: Manifest, modalities: Mapping[str, int], changed: int = 0, joining: int | None = None
) -> Manifest:
    """Give a changed manifest its generation, its counts and what is left of its tuning.

    Args:
        manifest: with its new segments, all else as before.
        modalities: living items by modality, afterwards.
        changed: items added, replaced or removed.
        joining: items that were searched beside what the recipe built and are now part of it, where that was built
            anew; None: it was not.
    """
    counts = dict(modalities)
    own = None if joining is None else INDEXES[manifest.backend].settings
    since = max(int((manifest.tuned or {}).get("changed", 0)) + changed, joining or 0)
    return dataclasses.replace(
        manifest,
        generation=manifest.generation + 1,
        modalities=counts,
        count=sum(counts.values()),
        tuned=after_change(manifest.tuned, manifest.count, since, stored_read_bytes(manifest), own),
    )


def living(
    segments: Sequence[Segment],
    block_rows: int = BLOCK_ROWS,
    schema: pa.Schema | None = None,
    masks: Sequence[BoolArray] | None = None,
) -> Iterator[Block]:
    """Iterate over the rows of segments that are not removed, in the order of their item tables.

    Args:
        segments: whose rows.
        block_rows: rows in memory at once.
        schema: of the tables; None: the columns of any segment, null where a segment does not have them.
        masks: one (rows of the segment,) bool a segment, of the rows wanted; None: all. Not modified.
    """
    if schema is None and segments:
        schema = joint_schema(segments)
    for number, part in enumerate(segments):
        wanted = part.index.alive if masks is None else part.index.alive & masks[number]
        places = part.places_by_table()
        places = places[wanted[places]]
        for start in range(0, places.size, block_rows):
            here = places[start : start + block_rows]
            ids = part.index.ids[here]
            yield ids, part.index.rows(ids), conform(part.table(here), schema)


def joint_schema(segments: Sequence[Segment]) -> pa.Schema:
    """Give the columns that the item tables of segments have together."""
    import pyarrow as pa

    none = np.empty(0, dtype=np.int64)
    try:
        return pa.unify_schemas([part.table(none).schema for part in segments], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise MismatchError(f"item tables: a column has types that do not go together ({error}).") from error


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give a table the columns of a schema: in its order, of its types, null where the table has none."""
    import pyarrow as pa

    names = set(table.column_names)
    columns = [
        table[field.name].cast(field.type) if field.name in names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def bury(snapshot: Snapshot, ids: IntArray) -> tuple[tuple[SegmentEntry, ...], dict[str, int]]:
    """Write the tombstones of ids; gives the changed entries and the number of removed items by modality."""
    numbers, places = snapshot.locate(np.unique(ids))
    generation = snapshot.manifest.generation + 1
    entries: list[SegmentEntry] = []
    gone: dict[str, int] = {}
    (snapshot.path / "tombstones").mkdir(exist_ok=True)
    for number, segment in enumerate(snapshot.segments):
        here = np.sort(places[numbers == number])
        entry = segment.entry
        if here.size:
            gone = sum_counts(gone, count_values(segment.table(here, ["modality"])["modality"]))
            alive = segment.index.alive
            alive[here] = False
            file = f"{entry.name}.{generation:06d}.npy"
            described = write_ids(snapshot.path / "tombstones" / file, np.sort(segment.index.ids[~alive]))
            removed = entry.rows - int(np.count_nonzero(alive))
            entry = dataclasses.replace(entry, removed=removed, tombstones=file, tombstones_file=described)
        if entry.removed < entry.rows:
            entries.append(entry)
    return tuple(entries), gone


def same_rows(snapshot: Snapshot, ids: IntArray, block: Block) -> BoolArray:
    """Say which items of a block the index has as they are: the same stored row and the same item row.

    Args:
        snapshot: what to compare with.
        ids: (m,) int64, known ones, in the order of the block. Not modified.
        block: (ids, vectors, item table) of these m items. A column that only one of the two has is null in the other.

    Returns:
        (m,) bool.
    """
    _, vectors, table = block
    stored = stored_rows(vectors, "vectors", snapshot.manifest.dim, snapshot.manifest.row_dtype)
    same = (snapshot.rows(ids) == stored.astype(np.float32)).all(axis=1)
    return np.asarray(same & same_items(snapshot.table(ids), table), dtype=bool)


def same_items(before: pa.Table, table: pa.Table) -> BoolArray:
    """Say which rows of two item tables of m rows are the same, (m,) bool; columns as in `same_rows`."""
    same = np.ones(table.num_rows, dtype=bool)
    for name in dict.fromkeys([*before.column_names, *table.column_names]):
        if name not in LEDGER_COLUMNS:
            columns = [each[name] if name in each.column_names else None for each in (before, table)]
            same &= _same_values(columns[0], columns[1], table.num_rows)
    return same


def _same_values(left: pa.ChunkedArray | None, right: pa.ChunkedArray | None, count: int) -> BoolArray:
    """Compare two columns of `count` values one by one; missing values are the same, a column of None has no other."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if left is None or right is None:
        there = left if left is not None else right
        return np.ones(count, dtype=bool) if there is None else np.asarray(pc.is_null(there).to_numpy(), dtype=bool)
    try:
        equal = pc.fill_null(pc.equal(left, right.cast(left.type)), False)
        both = pc.and_(pc.is_null(left), pc.is_null(right))
        return np.asarray(pc.or_(equal, both).to_numpy(), dtype=bool)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # nested, or of a type that does not become the other
        return np.array([one == other for one, other in zip(left.to_pylist(), right.to_pylist(), strict=True)], bool)


class _Comparison:
    """Blocks of a source held against an index: passes on what is new or differs, and counts."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._replaced: list[IntArray] = [np.empty(0, dtype=np.int64)]
        self.unchanged = 0

    def changed(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """Pass on the items that the index does not have as they are."""
        import pyarrow as pa

        for ids, vectors, table in blocks:
            known = np.flatnonzero(self._snapshot.locate(ids)[0] >= 0)
            differs = np.ones(ids.size, dtype=bool)
            if known.size:
                block = ids[known], vectors[known], table.take(pa.array(known))
                differs[known] = ~same_rows(self._snapshot, ids[known], block)
            self._replaced.append(ids[known][differs[known]])
            self.unchanged += int(np.count_nonzero(~differs))
            yield ids[differs], vectors[differs], table.filter(pa.array(differs))

    def replaced(self) -> IntArray:
        """Give the ids, (m,) int64, that the items passed on replace."""
        return np.concatenate(self._replaced)


def _gone(snapshot: Snapshot, sources: Mapping[int, set[str]]) -> IntArray:
    """Give the ids of living items that have one of the sources which their embeddings no longer have."""
    ids = np.fromiter(sources, dtype=np.int64)
    known = ids[snapshot.locate(ids)[0] >= 0]
    here: Sequence[str] = snapshot.table(known, ["source"])["source"].to_pylist() if known.size else []
    same = [source in sources[each] for each, source in zip(known.tolist(), here, strict=True)]
    return np.asarray(known[np.array(same, dtype=bool)], dtype=np.int64)
