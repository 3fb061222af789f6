"""The plan of a run: which items make which shards and batches, fixed in a file before any work."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from bindsearch.config import canonical_json
from bindsearch.errors import InputError
from bindsearch.listing import BrokenItem, FusedItem, Part
from bindsearch.store.files import commit_bytes, commit_json, read_parquet, sync_folder, temp_path
from bindsearch.store.generation import GONE, PLAN, PLAN_ROWS, Generation
from bindsearch.store.identity import FORMAT, FORMAT_VERSION, Identity
from bindsearch.types import Item, Span

if TYPE_CHECKING:
    import pyarrow as pa

    from bindsearch.types import IntArray

BROKEN_KIND = "broken"
_IDS_AT_ONCE, _PASSES = 1 << 18, 16
_GROUP_ROWS = 1 << 14
_FACTS = json.JSONEncoder(sort_keys=True, default=str)


@dataclass(frozen=True)
class PlannedRow:
    """One row of a plan.

    Attributes:
        item: what to embed; a BrokenItem is already known to be bad.
        unit: id of the item as it was listed, before a long recording was cut in spans.
        print: fingerprint of all that was known when it was listed, but for the modification time.
        origin: number of the source that it came from.
    """

    item: Item
    unit: int
    print: int
    origin: int


def kind_of(item: Item) -> str:
    """Name what a shard of such items holds: a modality, "video+audio" for fused ones, or "broken"."""
    if isinstance(item, BrokenItem):
        return BROKEN_KIND
    if isinstance(item, FusedItem):
        return "+".join(part.modality for part in item.parts)
    return item.modality


def fingerprint(item: Item, window_s: float | None) -> int:
    """Hash all that is known of an item before it is read, but for its modification time, to 63 bits.

    Args:
        item: as listed.
        window_s: how long it is to be cut; None where it is not, or as its modality says.
    """
    facts = [
        kind_of(item), window_s, item.key, item.modality, item.source, item.span, item.member, item.size_bytes,
        item.literal, item.caption, item.group, dict(item.attributes), _parts_json(item),
        (item.stage, item.reason) if isinstance(item, BrokenItem) else None,
    ]  # fmt: skip
    data = _FACTS.encode(facts).encode("ascii")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 1


def plan_schema() -> pa.Schema:
    """Give the columns of a plan's rows."""
    import pyarrow as pa

    text, whole, real = pa.string(), pa.int64(), pa.float64()
    names = {
        "id": whole, "unit": whole, "print": whole, "origin": pa.int32(), "key": text, "modality": text,
        "start_s": real, "end_s": real, "source": text, "member": text, "offset": whole, "size": whole, "mtime": real,
        "literal": text, "caption": text, "group": text, "attributes": text, "parts": text, "reason": text,
        "stage": text,
    }  # fmt: skip
    return pa.schema(list(names.items()))


def _to_row(planned: PlannedRow) -> dict[str, Any]:
    item = planned.item
    return {
        **item.columns(),
        "unit": planned.unit,
        "print": planned.print,
        "origin": planned.origin,
        "offset": item.offset,
        "literal": item.literal,
        "caption": item.caption,
        "group": item.group,
        "attributes": canonical_json(dict(item.attributes)) if item.attributes else None,
        "parts": _parts_json(item),
        "reason": item.reason if isinstance(item, BrokenItem) else None,
        "stage": item.stage if isinstance(item, BrokenItem) else None,
    }


def _parts_json(item: Item) -> str | None:
    if not isinstance(item, FusedItem):
        return None
    return canonical_json([dataclasses.asdict(part) for part in item.parts])


def _to_item(row: Mapping[str, Any]) -> Item:
    span: Span | None = None if row["start_s"] is None else (row["start_s"], row["end_s"])
    facts: dict[str, Any] = {
        "key": row["key"],
        "modality": row["modality"],
        "source": row["source"],
        "span": span,
        "member": row["member"],
        "offset": row["offset"],
        "size_bytes": row["size"],
        "mtime_s": row["mtime"],
        "literal": row["literal"],
        "caption": row["caption"],
        "group": row["group"],
        "attributes": json.loads(row["attributes"]) if row["attributes"] else {},
    }
    if row["reason"] is not None:
        return BrokenItem(**facts, reason=row["reason"], stage=row["stage"])
    if row["parts"] is not None:
        return FusedItem(**facts, parts=tuple(Part(**part) for part in json.loads(row["parts"])))
    return Item(**facts)


class PlannedByAnotherError(Exception):
    """Another process gave its plan the name that this one was to have."""


class PlanWriter:
    """Writes a plan while items stream in; memory holds one shard a kind.

    Rows of one kind fill a shard; full shards are written in row groups of 16,384 rows or more, since what a file says
    of its row groups is held in memory, by who writes it and by who reads it. What is left over at the end becomes the
    last shards, in the order of the kinds' names.

    Attributes:
        final: the generation's folder; it appears whole, when the plan is committed.
        folder: the temporary one that it is written in.
    """

    def __init__(self, final: Path, shard_size: int) -> None:
        """Make the temporary folder and open the file of rows in it."""
        import pyarrow.parquet as pq

        self.final, self.folder, self.shard_size = final, temp_path(final), shard_size
        shutil.rmtree(self.folder, ignore_errors=True)  # of a killed process of our host and number, as containers have
        self.folder.mkdir(parents=True)
        self.shards: list[dict[str, Any]] = []
        self._open: dict[str, list[dict[str, Any]]] = {}
        self._kinds: Counter[str] = Counter()
        self._full: list[pa.Table] = []  # shards of the row group that is being filled
        self._groups = self._count = 0
        self._path = self.folder / PLAN_ROWS
        self._file: IO[bytes] = self._temp.open("wb")
        self._writer = pq.ParquetWriter(
            self._file, plan_schema(), compression="zstd", version="2.6", write_statistics=False
        )

    @property
    def _temp(self) -> Path:
        return temp_path(self._path)

    def add(self, planned: PlannedRow) -> None:
        """Add a row to the open shard of its kind."""
        kind = kind_of(planned.item)
        rows = self._open.setdefault(kind, [])
        rows.append(_to_row(planned))
        if len(rows) == self.shard_size:
            self._flush(kind)

    def _flush(self, kind: str) -> None:
        import pyarrow as pa

        rows = self._open.pop(kind)
        first = sum(table.num_rows for table in self._full)
        self._full.append(pa.Table.from_pylist(rows, schema=plan_schema()))
        self._count += len(rows)
        name = f"{kind}-{self._kinds[kind]:05d}"
        self._kinds[kind] += 1
        self.shards.append({"name": name, "kind": kind, "items": len(rows), "group": self._groups, "first": first})
        if first + len(rows) >= _GROUP_ROWS:
            self._write_group()

    def _write_group(self) -> None:
        import pyarrow as pa

        if self._full:
            whole = pa.concat_tables(self._full)
            self._writer.write_table(whole, row_group_size=whole.num_rows)
            self._groups += 1
            self._full.clear()

    def finish(self) -> int:
        """Write what is left and give the rows file its name.

        Returns:
            How many rows the plan has.

        Raises:
            InputError: two rows have one id: the same key and span twice, or two keys whose hashes collide.
        """
        for kind in sorted(self._open):
            self._flush(kind)
        self._write_group()
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        twice = first_twice(self._temp, self._count)
        if twice is not None:
            self._refuse(twice)
        os.replace(self._temp, self._path)  # noqa: PTH105  # as commit_file
        sync_folder(self.folder)
        return self._count

    def abandon(self) -> None:
        """Remove the folder of a plan that will not be committed."""
        for part in (self._writer, self._file):
            with contextlib.suppress(OSError, ValueError):  # what is still in its buffer no longer matters
                part.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _refuse(self, twice: int) -> None:
        table = read_parquet(self._temp, ["id", "key", "source", "member"])
        rows = table.take(np.flatnonzero(table.column("id").to_numpy() == twice)).to_pylist()
        raise InputError(say_twice(rows[0], rows[1]))

    def commit(self, identity: Identity, record: Mapping[str, Any], gone: Sequence[Mapping[str, Any]]) -> Generation:
        """Write the ledger of what is gone and the plan's record, and give the folder its name: one plan can have it.

        Raises:
            PlannedByAnotherError: another process has planned this generation.
        """
        lines = "".join(canonical_json(dict(row)) + "\n" for row in gone)
        commit_bytes(self.folder / GONE, lines.encode("ascii"))
        whole = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **identity.to_json(),
            **record,
            "shards": self.shards,
            "gone": len(gone),
        }
        commit_json(self.folder / PLAN, whole)
        try:
            os.rename(self.folder, self.final)  # noqa: PTH104  # as commit_file
        except OSError as error:
            if not self.final.exists():
                raise
            raise PlannedByAnotherError(f"{self.final}: planned by another process") from error
        sync_folder(self.final.parent)
        return Generation(self.final, whole)


def first_twice(path: Path, rows: int) -> int | None:
    """Find an id that stands twice in a plan's rows, or None; memory does not grow with the rows, up to 4 million.

    Args:
        path: of the rows.
        rows: how many there are.
    """
    import pyarrow.parquet as pq

    passes = min(max(1, -(-rows // _IDS_AT_ONCE)), _PASSES)
    for turn in range(passes):
        parts: list[IntArray] = []
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(_IDS_AT_ONCE // 4, columns=["id"], use_threads=False):
                ids = batch.column(0).to_numpy()
                parts.append(ids[ids % passes == turn])
        mine = np.sort(np.concatenate([np.empty(0, dtype=np.int64), *parts]))
        again = np.flatnonzero(mine[1:] == mine[:-1])
        if again.size:
            return int(mine[again[0]])
    return None


def say_twice(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Put in words that two rows have one id, naming both."""
    names = [
        f"{row['key']!r} ({row['source']}{'!/' + row['member'] if row['member'] else ''})" for row in (first, second)
    ]
    if first["key"] != second["key"]:
        return f"the keys {names[0]} and {names[1]} have the same 63-bit id. Rename one of them."
    return (
        f"key {names[0]} is there twice, also as {names[1]}. Give the common parent folder as the one source, or list "
        "the files in a manifest with a column 'key'."
    )


def planned_items(generation: Generation, number: int) -> list[Item]:
    """Read the items of one shard of a plan, in order; in plans of earlier versions a shard is a row group."""
    shard = generation.record["shards"][number]
    table = read_parquet(generation.folder / PLAN_ROWS, row_group=shard.get("group", number))
    return [_to_item(row) for row in table.slice(shard.get("first", 0), shard["items"]).to_pylist()]


def span_item(item: Item, span: Span) -> Item:
    """Make the item of one span of a recording."""
    return dataclasses.replace(item, span=span)
