"""Read a store: the current items, their vectors, the bad inputs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.config import canonical_json
from bindsearch.errors import BindSearchError, InputError, MissingInputError
from bindsearch.store.files import Guard, commit_bytes, commit_json
from bindsearch.store.generation import Generation, generation_folders
from bindsearch.store.identity import MANIFEST, Manifest
from bindsearch.store.shard import Shard, item_schema

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from bindsearch.types import FloatArray, IntArray

BLOCK_ROWS = 65536
LEDGER = "bad.jsonl"


class EmbeddingStore:
    """Embeddings on disk, as they stand after the latest complete generation.

    Build it with `open`. An item embedded again in a later generation appears once, as the later one; an item that is
    gone does not appear. Rows have a fixed order: generation, shard, row.

    Attributes:
        path: the folder.
        manifest: space, towers, presets, counts.
    """

    def __init__(
        self, path: Path, manifest: Manifest, generations: Sequence[tuple[Generation, Sequence[Shard]]]
    ) -> None:
        """Work out which rows are current."""
        self.path, self.manifest = path, manifest
        self._shards: list[Shard] = []
        self._kept: list[IntArray] = []  # rows of each shard's table that are current, good and bad
        self._ids: list[IntArray] = []  # ids of the current good rows
        self._settle(generations)
        self._starts = np.cumsum([0, *(len(ids) for ids in self._ids)])
        self._order: IntArray | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], partial: bool = False) -> EmbeddingStore:
        """Open a folder that `bindsearch embed` wrote.

        Args:
            path: the folder.
            partial: read an unfinished run's committed shards too, in place of the complete generations alone.

        Raises:
            MissingInputError: no store there, or its first run is not finished.
            BindSearchError: a file is truncated (size; checksums are compared when a shard is read).
            UnsupportedError: of a later format.
        """
        folder = Path(path)
        folders = generation_folders(folder)
        manifest = Manifest.load(folder)
        if manifest is None and not folders:
            raise MissingInputError(f"{folder}: {_what_is_there(folder)}")
        if not partial:
            if manifest is None:
                raise MissingInputError(f"{folder}: {_how_far(folders[0])}. Run the same `bindsearch embed` again.")
            folders = [folder / name for name in manifest.generations]
        generations = [Generation.load(each) for each in folders]
        found = [(generation, generation.shards(partial)) for generation in generations]
        if manifest is None or partial:
            identity = generations[0].identity
            for generation in generations[1:]:
                identity = identity.merged(generation.identity, str(folder))
            manifest = Manifest(identity, {}, 0, 0, tuple(each.name for each in generations), _sources(generations))
            store = cls(folder, manifest, found)
            store.manifest = store.counted()
            return store
        return cls(folder, manifest, found)

    def _settle(self, generations: Sequence[tuple[Generation, Sequence[Shard]]]) -> None:
        dead: IntArray = np.empty(0, dtype=np.int64)
        found: list[tuple[Shard, IntArray, IntArray]] = []
        for position, (generation, shards) in reversed(list(enumerate(generations))):
            ids = [shard.ids() for shard in shards]
            here: list[tuple[Shard, IntArray, IntArray]] = []
            for shard, own in zip(shards, ids, strict=True):
                kept = np.flatnonzero(~_among(own, dead))
                here.append((shard, kept, own[kept[kept < shard.rows]]))
            found = here + found
            if position:
                dead = np.unique(np.concatenate([dead, generation.gone_ids(), *ids]))
        for shard, kept, good in found:
            self._shards.append(shard)
            self._kept.append(kept)
            self._ids.append(good)

    def counted(self) -> Manifest:
        """Give the manifest with its counts taken anew from the tables and ledgers."""
        counts: dict[str, int] = {}
        for table in self._tables(("modality",), "ok"):
            for pair in table.column("modality").value_counts().to_pylist():
                counts[pair["values"]] = counts.get(pair["values"], 0) + pair["counts"]
        bad = sum(int((kept >= shard.rows).sum()) for shard, kept in zip(self._shards, self._kept, strict=True))
        folders = [self.path / name for name in self.manifest.generations]
        gone = sum(len(Generation.load(folder).gone_ids()) for folder in folders)
        return dataclasses.replace(self.manifest, counts=counts, bad=bad, gone=gone)

    def __len__(self) -> int:
        """Count the current items that have a vector."""
        return int(self._starts[-1])

    def __repr__(self) -> str:
        """Say where, how many and of what space."""
        return f"EmbeddingStore({str(self.path)!r}, {len(self)} items, {self.manifest.space_id})"

    def ids(self) -> IntArray:
        """Give the ids of the current items, in row order: (n,) int64."""
        return np.concatenate([np.empty(0, dtype=np.int64), *self._ids])

    def gone_sources(self) -> dict[int, set[str]]:
        """Give the items that are marked as gone and have not come back: id -> the sources that they once had here."""
        folders = [self.path / name for name in self.manifest.generations]
        marked = [Generation.load(folder).gone_ids() for folder in folders]
        gone = np.setdiff1d(np.concatenate([np.empty(0, dtype=np.int64), *marked]), self.ids())
        found: dict[int, set[str]] = {}
        for shard in self._shards if gone.size else ():
            table = shard.table(("id", "source"))
            here = table.take(np.flatnonzero(_among(table.column("id").to_numpy(), gone)))
            for row in here.to_pylist():
                found.setdefault(row["id"], set()).add(row["source"])
        return found

    def items(self, columns: Sequence[str] | None = None, status: str | None = "ok") -> pa.Table:
        """Give the item table of the current items.

        Args:
            columns: names to read; None is all.
            status: "ok" (row i belongs to row i of `vectors()`), "bad", or None for both.

        Raises:
            BindSearchError: a shard was altered.
        """
        import pyarrow as pa

        schema = item_schema()
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns])
        tables = [table.replace_schema_metadata(None) for table in self._tables(columns, status)]
        return pa.concat_tables([schema.empty_table(), *tables])

    def _tables(self, columns: Sequence[str] | None, status: str | None) -> Iterator[pa.Table]:
        if status not in ("ok", "bad", None):
            raise InputError(f"status: expected 'ok', 'bad' or None, got {status!r}.")
        for shard, kept in zip(self._shards, self._kept, strict=True):
            rows = kept if status is None else kept[(kept < shard.rows) == (status == "ok")]
            if len(rows):
                table = shard.table(columns)
                yield table if len(rows) == table.num_rows else table.take(rows)

    def bad(self) -> list[dict[str, Any]]:
        """Give the ledger of the current bad inputs: key, modality, span, source, member, stage, reason."""
        columns = ("key", "modality", "start_s", "end_s", "source", "member", "stage", "reason")
        rows: list[dict[str, Any]] = self.items(columns, status="bad").to_pylist()
        return rows

    def vectors(self, which: slice | Sequence[int] | IntArray | None = None) -> FloatArray:
        """Read vectors.

        Args:
            which: a slice of rows, or item ids in any order, or None for all. Not modified.

        Returns:
            (n, d) float32 unit rows: the float16 rows on disk, normalised once more in float32.

        Raises:
            InputError: an id that is not there.
            BindSearchError: a shard was altered.
        """
        if which is None or isinstance(which, slice):
            rows = np.arange(len(self))[which if which is not None else slice(None)]
        else:
            rows = self._rows_of(np.asarray(which, dtype=np.int64))
        return unit_rows(self._half(rows))

    def iter_blocks(self, rows: int = BLOCK_ROWS) -> Iterator[tuple[IntArray, FloatArray, pa.Table]]:
        """Go through the current items in blocks, reading each shard once.

        Args:
            rows: upper limit of items a block; blocks do not cross shards, so memory stays within one shard.

        Yields:
            Ids (n,) int64, vectors (n, d) float32 unit rows, item table of n rows.

        Raises:
            BindSearchError: a shard was altered.
        """
        for half, table in self.iter_half_blocks(rows):
            yield np.asarray(table.column("id").to_numpy(), dtype=np.int64), unit_rows(half), table

    def iter_half_blocks(self, rows: int = BLOCK_ROWS) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """Go through the current items as `iter_blocks` does, with the vectors as they lie on disk: (n, d) float16."""
        for shard, kept in zip(self._shards, self._kept, strict=True):
            good = kept[kept < shard.rows]
            if not len(good):
                continue
            half, table = shard.half_rows()[good], shard.table().take(good)
            for start in range(0, len(good), rows):
                yield half[start : start + rows], table.slice(start, rows)

    def verify(self) -> dict[str, Any]:
        """Read every byte and compare checksums, row counts and unit length.

        Raises:
            BindSearchError: naming the first damaged file.
        """
        seen = sum(len(ids) for ids, _, _ in self.iter_blocks())
        if seen != len(self):
            raise BindSearchError(f"{self.path}: expected {len(self)} items, read {seen}.")
        return {"items": seen, "bad": len(self.bad()), "shards": len(self._shards)}

    def _rows_of(self, ids: IntArray) -> IntArray:
        own = self.ids()
        if self._order is None:
            self._order = np.argsort(own, kind="stable")
        places = np.minimum(np.searchsorted(own, ids, sorter=self._order), max(len(own) - 1, 0))
        rows = self._order[places] if len(own) else np.empty(0, dtype=np.int64)
        if len(rows) != len(ids) or not np.array_equal(own[rows], ids):
            missing = sorted(set(ids.tolist()) - set(own.tolist()))
            raise InputError(f"{self.path}: no current item has the id {missing[0]} ({len(missing)} such ids).")
        return np.asarray(rows, dtype=np.int64)

    def _half(self, rows: IntArray) -> np.ndarray:
        out = np.empty((len(rows), self.manifest.dim), dtype=np.float16)
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(shard_of):
            here = shard_of == number
            shard, kept = self._shards[number], self._kept[number]
            good = kept[kept < shard.rows]
            out[here] = shard.half_rows()[good[rows[here] - self._starts[number]]]
        return out


def _among(ids: IntArray, known: IntArray) -> NDArray[np.bool_]:
    """Say which ids are among known ones, which are sorted: (n,) bool; np.isin sorts them anew for each shard."""
    if not known.size:
        return np.zeros(len(ids), dtype=bool)
    return np.asarray(known[np.minimum(np.searchsorted(known, ids), known.size - 1)] == ids)


def commit_store(folder: Path, guard: Guard | None = None) -> EmbeddingStore:
    """Make all generations in a folder the ones that readers see: write the ledger of bad inputs, then the manifest.

    Args:
        folder: of the store.
        guard: see `files.commit_file`.

    Raises:
        BindSearchError: the disk is full.
    """
    store = EmbeddingStore.open(folder, partial=True)
    lines = "".join(canonical_json(row) + "\n" for row in store.bad())
    commit_bytes(folder / LEDGER, lines.encode("ascii"), guard)
    commit_json(folder / MANIFEST, store.manifest.to_json(), guard)
    return store


def open_store(path: str | os.PathLike[str], partial: bool = False) -> EmbeddingStore:
    """Open a folder that `bindsearch embed` wrote; see `EmbeddingStore.open`."""
    return EmbeddingStore.open(path, partial)


def unit_rows(rows: np.ndarray) -> FloatArray:
    """Convert rows to float32 and give each length 1.

    Args:
        rows: (n, d) of any float dtype, none of them zero. Not modified.

    Returns:
        (n, d) float32.
    """
    wide = rows.astype(np.float32)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    return wide


def listed_sources(folder: Path) -> tuple[str, ...]:
    """Name the sources that embeddings in a folder are of, those of an unfinished run too; none where none are."""
    return _sources([Generation.load(each) for each in generation_folders(folder)])


def _sources(generations: Sequence[Generation]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for generation in generations for name in generation.record["sources"]))


def _what_is_there(folder: Path) -> str:
    """Say what a folder without embeddings is, and what to type next."""
    if (folder / "index.json").is_file():
        return "is an index, expected embeddings: the folder that `bindsearch embed SRC -o FOLDER` wrote."
    if folder.is_dir() and any(folder.iterdir()):
        return f"holds no embeddings. Make them: bindsearch embed {folder} -o EMBEDDINGS"
    return f"no embeddings there. Make them: bindsearch embed SRC -o {folder}"


def _how_far(folder: Path) -> str:
    generation = Generation.load(folder)
    total, left = len(generation.shard_names), len(generation.pending())
    return f"not finished: {total - left} of {total} shards are committed"
