"""The index on disk: immutable segments, tombstones and a manifest whose replacement is the only commit.

A change writes new files, then replaces index.json in one step; a reader keeps the snapshot that it opened.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bindsearch.errors import InputError, MismatchError, MissingInputError
from bindsearch.index.centring import FILE_GLOB, measure_means
from bindsearch.index.checks import unit_rows
from bindsearch.index.identity import Identity
from bindsearch.index.manifest import (
    CENTRED_VERSION,
    FORMAT_VERSION,
    FileEntry,
    Manifest,
    SegmentEntry,
    describe_file,
    read_manifest,
    sum_counts,
    sync_folder,
    write_manifest,
)
from bindsearch.index.segment import Segment, write_segment
from bindsearch.index.snapshot import Snapshot
from bindsearch.registry import INDEXES
from bindsearch.store import UNKNOWN

if TYPE_CHECKING:
    from bindsearch.index.segment import Block
    from bindsearch.types import IntArray


class VectorSource(Protocol):
    """What an index is built from; `bindsearch.store.EmbeddingStore` is one."""

    @property
    def manifest(self) -> Any:
        """Gives space_name, space_id, dim, tower_ids, preset_ids, tokenizer_id."""

    def iter_blocks(self, rows: int) -> Iterable[Block]:
        """Iterate over (ids, vectors, item table) in blocks of at most `rows` rows."""

    def gone_sources(self) -> dict[int, set[str]]:
        """Give what it held and holds no longer: id -> the sources of it."""


class IndexFolder:
    """An open index folder: the newest snapshot known to this process, and the changes, each of them atomic.

    Searching is thread-safe. A change made through this object moves it to the new snapshot; other readers keep theirs
    until `reload`.

    Attributes:
        path: the folder.
        snapshot: to search in; take it once where several reads must see one state.
    """

    def __init__(self, path: Path, snapshot: Snapshot) -> None:
        """Use `open`."""
        self.path, self.snapshot = path, snapshot

    @classmethod
    def open(cls, path: str | Path) -> IndexFolder:
        """Open an index in milliseconds; see `Snapshot.open` for what is checked and raised."""
        return cls(Path(path), Snapshot.open(Path(path)))

    def reload(self) -> None:
        """Move to the newest snapshot on disk."""
        self.snapshot = Snapshot.open(self.path)

    @property
    def manifest(self) -> Manifest:
        """The manifest of the snapshot."""
        return self.snapshot.manifest

    @property
    def count(self) -> int:
        """The number of living items."""
        return self.snapshot.manifest.count

    def info(self) -> dict[str, Any]:
        """Say what the index holds and what it was made with."""
        return self.snapshot.info()

    def verify(self, sample: int = 32) -> dict[str, Any]:
        """Read every byte and compare; see `Snapshot.verify`."""
        return self.snapshot.verify(sample)

    # ---- changing ----------------------------------------------------------------------------------------------------

    def add(self, embeddings: str | Path | VectorSource, block_rows: int = 4096) -> int:
        """Add the items of a source, replacing those whose vector or item row differs; equal ones are passed over.

        What the source marks as gone leaves every later answer, where the index has it from the same file. A centred
        index keeps its means and takes them from what is added, so that old and new rows stay comparable.

        Args:
            embeddings: of the same space: folder of an embedding store, or an open one.
            block_rows: rows in memory at once.

        Returns:
            How many items were added or replaced.

        Raises:
            MismatchError: another space, dimension, or tower or preset of a modality that the index has; or both are
                of an unknown space and `embeddings` is not the folder that the index was built from; or the index is
                centred and has no mean of a modality that is added.
        """
        source, name = _open_source(embeddings)
        with _writing(self.path):
            self.reload()
            old = self.manifest
            fix = f"Rebuild: bindsearch index EMBEDDINGS -o {self.path} --force"
            identity = old.identity.merged(identity_of(source, name), str(self.path), name or "the addition", fix)
            _check_dim(old.dim, source, str(self.path), name)
            _check_known(old, source, str(self.path), name)
            replaced: list[IntArray] = []
            blocks = source.iter_blocks(block_rows)
            if self.snapshot.centring is not None:
                blocks = self.snapshot.centring.blocks(blocks, str(self.path))
            blocks = self._changed(blocks, replaced)
            entry, modalities = write_segment(self.path, old.generation + 1, blocks, old.dim)
            buried = np.concatenate([*replaced, self._gone(source.gone_sources())])
            if entry is None and not buried.size:
                return 0
            entries, gone = self._bury(buried, old.generation + 1)
            new = dataclasses.replace(
                old,
                segments=entries if entry is None else (*entries, entry),
                tower_ids=dict(identity.tower_ids),
                preset_ids=dict(identity.preset_ids),
                tokenizer_id=identity.tokenizer_id,
                source=name or old.source,
            )
            self._commit(new, sum_counts(old.modalities, modalities, {k: -v for k, v in gone.items()}))
            return 0 if entry is None else entry.rows

    def remove(self, ids: IntArray) -> int:
        """Take items out of every later answer; their rows stay on disk until `compact`.

        Args:
            ids: (m,) int64; unknown ones are passed over. Not modified.

        Returns:
            How many items were removed.
        """
        with _writing(self.path):
            self.reload()
            old = self.manifest
            entries, gone = self._bury(ids, old.generation + 1)
            if gone:
                new = dataclasses.replace(old, segments=entries)
                self._commit(new, sum_counts(old.modalities, {k: -v for k, v in gone.items()}))
            return sum(gone.values())

    def compact(self, block_rows: int = 4096) -> None:
        """Rewrite the living rows as one segment, so that removed ones take no more room."""
        with _writing(self.path):
            self.reload()
            blocks = (block for part in self.snapshot.segments for block in _living(part, block_rows))
            entry, modalities = write_segment(self.path, self.manifest.generation + 1, blocks, self.manifest.dim)
            new = dataclasses.replace(self.manifest, segments=() if entry is None else (entry,))
            self._commit(new, modalities)

    def _changed(self, blocks: Iterable[Block], replaced: list[IntArray]) -> Iterator[Block]:
        """Pass on the items that are new or differ; collects the ids that they replace."""
        import pyarrow as pa

        replaced.append(np.empty(0, dtype=np.int64))
        for ids, vectors, table in blocks:
            known = np.flatnonzero(self.snapshot.locate(ids)[0] >= 0)
            changed = np.ones(ids.size, dtype=bool)
            if known.size:
                same = (self.snapshot.rows(ids[known]) == unit_rows(vectors[known], "vectors", self.manifest.dim)).all(
                    axis=1
                )
                before = self.snapshot.table(ids[known]).to_pylist()
                after = table.take(pa.array(known)).select(
                    [name for name in table.column_names if name in self.snapshot.column_names()]
                )
                equal = [old == new for old, new in zip(before, after.to_pylist(), strict=True)]
                changed[known] = ~(same & np.array(equal, dtype=bool))
            replaced.append(ids[known][changed[known]])
            yield ids[changed], vectors[changed], table.filter(pa.array(changed))

    def _gone(self, sources: Mapping[int, set[str]]) -> IntArray:
        """Give the ids of living items that have one of the sources which their embeddings no longer have."""
        ids = np.fromiter(sources, dtype=np.int64)
        known = ids[self.snapshot.locate(ids)[0] >= 0]
        here = self.snapshot.table(known, ["source"])["source"].to_pylist() if known.size else []
        same = [source in sources[each] for each, source in zip(known.tolist(), here, strict=True)]
        return np.asarray(known[np.array(same, dtype=bool)], dtype=np.int64)

    def _bury(self, ids: IntArray, generation: int) -> tuple[tuple[SegmentEntry, ...], dict[str, int]]:
        """Write the tombstones of ids; gives the changed entries and the number of removed items by modality."""
        numbers, places = self.snapshot.locate(np.unique(ids))
        entries: list[SegmentEntry] = []
        gone: dict[str, int] = {}
        (self.path / "tombstones").mkdir(exist_ok=True)
        for number, segment in enumerate(self.snapshot.segments):
            here = np.sort(places[numbers == number])
            entry = segment.entry
            if here.size:
                names = segment.table(here, ["modality"])["modality"].to_pylist()
                gone = sum_counts(gone, {name: names.count(name) for name in set(names)})
                alive = segment.index.alive
                alive[here] = False
                file = f"{entry.name}.{generation:06d}.npy"
                described = _write_ids(self.path / "tombstones" / file, segment.index.ids[~alive])
                removed = entry.rows - int(np.count_nonzero(alive))
                entry = dataclasses.replace(entry, removed=removed, tombstones=file, tombstones_file=described)
            if entry.removed < entry.rows:
                entries.append(entry)
        return tuple(entries), gone

    def _commit(self, manifest: Manifest, modalities: dict[str, int]) -> None:
        """Write the manifest of a change as the next generation, move to it and sweep what it no longer names."""
        generation = self.manifest.generation + 1
        new = dataclasses.replace(
            manifest, generation=generation, modalities=modalities, count=sum(modalities.values())
        )
        write_manifest(self.path, new)
        self.reload()
        _sweep(self.path, new)


def build_index(
    embeddings: str | Path | VectorSource,
    output: str | Path,
    backend: str = "faiss-flat",
    force: bool = False,
    centre: bool = False,
    centre_with: Sequence[str | Path | VectorSource] = (),
) -> IndexFolder:
    """Build an index over embeddings.

    Args:
        embeddings: folder of an embedding store, or an open one.
        output: folder of the index; created.
        backend: registered name.
        force: replace an index that is already there (readers keep the old one until they open again).
        centre: take the mean of its modality from each row, and later from each query; see `index.centring`.
        centre_with: further embeddings of the same space that the means are over, as for modalities that the index will
            only be asked with; they do not become items.

    Raises:
        MissingInputError: there is no store, or it holds no embedded item.
        InputError: `output` holds an index and force is not set, or holds other things.
        UnknownNameError: no such backend.
        MismatchError: embeddings to centre with are of another space, tower or preset.
    """
    source, name = _open_source(embeddings)
    output = Path(output)
    INDEXES[backend]  # an unknown name is refused before any work
    _check_output(output, force)
    identity = identity_of(source, name)
    dim = int(source.manifest.dim)
    if centre_with and not centre:
        raise InputError("--centre-with names what means are over: give --centre as well.")
    beside = [_open_source(each) for each in centre_with]
    for each, there in beside:
        identity = identity.merged(identity_of(each, there), name or "embeddings", there, "Embed both with one space.")
        _check_dim(dim, each, name or "embeddings", there)
    centring = measure_means([(source, name), *beside]) if centre else None
    (output / "segments").mkdir(parents=True, exist_ok=True)
    with _writing(output):
        generation = _last_generation(output) + 1
        blocks = source.iter_blocks(4096)
        entry, modalities = write_segment(
            output, generation, blocks if centring is None else centring.blocks(blocks, str(output)), dim
        )
        if entry is None:
            raise MissingInputError(f"{name or 'embeddings'}: no embedded item. Type: bindsearch embed SRC -o {name}")
        known = {*modalities, *(centring.names if centring else ())}
        manifest = Manifest(
            backend=backend,
            dim=dim,
            space_name=str(source.manifest.space_name),
            space_id=str(source.manifest.space_id),
            count=entry.rows,
            modalities=modalities,
            segments=(entry,),
            tower_ids={m: tower for m, tower in identity.tower_ids.items() if m in known},
            preset_ids={m: preset for m, preset in identity.preset_ids.items() if m in known},
            tokenizer_id=identity.tokenizer_id,
            source=name,
            built_with=_versions(),
            generation=generation,
            centring=None if centring is None else centring.save(output),
            format_version=FORMAT_VERSION if centring is None else CENTRED_VERSION,
        )
        write_manifest(output, manifest)
        _sweep(output, manifest)
    return IndexFolder.open(output)


def _open_source(embeddings: str | Path | VectorSource) -> tuple[VectorSource, str]:
    """Open a store where a path is given; gives it with its name."""
    if isinstance(embeddings, str | Path):
        from bindsearch.store import EmbeddingStore

        return EmbeddingStore.open(Path(embeddings)), str(embeddings)
    return embeddings, str(getattr(embeddings, "path", ""))


def identity_of(source: VectorSource, name: str) -> Identity:
    """Read the identity that embeddings carry.

    Raises:
        MismatchError: a tower of theirs was bound to another space.
    """
    manifest = source.manifest
    try:
        return Identity(manifest.space_id, dict(manifest.tower_ids), dict(manifest.preset_ids), manifest.tokenizer_id)
    except MismatchError as error:
        raise MismatchError(f"{name or 'embeddings'}: {error}") from error


def _check_dim(dim: int, source: VectorSource, here: str, there: str) -> None:
    if int(source.manifest.dim) != dim:
        raise MismatchError(f"{here}: built with dim {dim}, {there or 'the addition'} has dim {source.manifest.dim}.")


def _check_known(old: Manifest, source: VectorSource, here: str, there: str) -> None:
    """Refuse to put two imports of unknown spaces together: nothing says that it is one space."""
    unknown = old.space_id == source.manifest.space_id == UNKNOWN
    if unknown and not (there and Path(there).resolve() == Path(old.source).resolve()):
        raise MismatchError(
            f"{here}: built with space {UNKNOWN} from {old.source or 'embeddings without a folder'}, "
            f"{there or 'the addition'} comes from space {UNKNOWN}: these may be two. Name the space of both: "
            "bindsearch import FILE -o EMBEDDINGS --space-id NAME@HASH; then index them again."
        )


def _check_output(output: Path, force: bool) -> None:
    """Refuse to write an index over something else."""
    if not output.exists():
        return
    if not output.is_dir():
        raise InputError(f"{output}: is a file, expected a folder for the index.")
    names = {path.name for path in output.iterdir()}
    if "index.json" in names and not force:
        raise InputError(
            f"{output}: holds an index already. Replace it with --force, or extend it: "
            f"bindsearch index add {output} EMBEDDINGS"
        )
    foreign = sorted(name for name in names if not name.startswith("index.") and name not in ("segments", "tombstones"))
    if foreign:
        raise InputError(f"{output}: holds {foreign[0]!r}, which is no part of an index. Choose a new folder.")


def _last_generation(folder: Path) -> int:
    """Give the newest generation that any file of the folder was written by, so that no name is used twice."""
    names = [path.name for part in ("segments", "tombstones") for path in (folder / part).glob("[0-9]*")]
    numbers = [int(number) for name in names for number in re.findall(r"(?:^|\.)(\d{6,})(?=[-.])", name)]
    with suppress(MissingInputError, MismatchError):  # no index yet, or one that is replaced because it is broken
        numbers.append(read_manifest(folder).generation)
    return max(numbers, default=0)


def _living(segment: Segment, block_rows: int) -> Iterator[Block]:
    """Iterate over the rows of a segment that are not removed."""
    places = np.flatnonzero(segment.index.alive)
    for start in range(0, places.size, block_rows):
        here = places[start : start + block_rows]
        ids = segment.index.ids[here]
        yield ids, segment.index.rows(ids), segment.table(here)


def _write_ids(path: Path, ids: IntArray) -> FileEntry:
    """Write ids to a new file, synced."""
    temporary = path.with_name(f".draft-{os.getpid()}")
    with temporary.open("wb") as stream:
        np.save(stream, np.ascontiguousarray(ids), allow_pickle=False)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_folder(path.parent)
    return describe_file(path)


def _sweep(folder: Path, manifest: Manifest) -> None:
    """Delete what the manifest does not name: replaced segments, old tombstones, drafts of killed changes.

    Readers that have them open keep them; one that is opening now sees them missing and reads the new manifest.
    """
    named = {entry.name for entry in manifest.segments}
    for path in (folder / "segments").glob("*"):
        if path.name not in named:
            shutil.rmtree(path, ignore_errors=True)
    means = manifest.centring.file if manifest.centring else None
    for path in (each for each in folder.glob(FILE_GLOB) if each.name != means):
        with suppress(OSError):
            path.unlink()
    kept = {entry.tombstones for entry in manifest.segments}
    for path in (folder / "tombstones").glob("*"):
        if path.name not in kept:
            with suppress(OSError):
                path.unlink()


def _versions() -> dict[str, str]:
    """Name the versions that an index was built with."""
    return {name: metadata.version(name) for name in ("bindsearch", "numpy", "pyarrow")}


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that one process changes it at a time.

    Raises:
        InputError: another process held it for a minute.
    """
    import filelock

    lock = filelock.FileLock(folder / "index.lock")
    try:
        lock.acquire(timeout=60)
    except filelock.Timeout as error:
        raise InputError(f"{folder}: another process is changing this index. Try again when it is done.") from error
    try:
        yield
    finally:
        lock.release()
