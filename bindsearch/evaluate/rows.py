"""What is evaluated: embeddings with the columns that say what belongs together."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import InputError, MissingInputError, UnknownNameError
from bindsearch.listing.tables import TABLE_SUFFIXES
from bindsearch.truth import named_rows, names_of, text_of

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from bindsearch.embed import EmbedOptions
    from bindsearch.truth import Named
    from bindsearch.types import FloatArray

PAIR_COLUMNS = ("pair", "group")


@dataclass(frozen=True)
class Rows:
    """Embedded items and what their table says of them.

    Attributes:
        vectors: (n, d) float32 unit rows. Not to be modified.
        modality: (n,) str.
        columns: name -> n values; a missing one is None.
        space_id, space_name: what made the vectors.
        source: where they come from, for people.
        preset_ids: of the modalities.
        bad: how many inputs have no vector.
        lost: what their table says of each of these.
    """

    vectors: FloatArray
    modality: NDArray[np.str_]
    columns: Mapping[str, Sequence[Any]]
    space_id: str
    space_name: str
    source: str
    preset_ids: Mapping[str, str] = field(default_factory=dict)
    bad: int = 0
    lost: Sequence[Mapping[str, Any]] = ()

    def __len__(self) -> int:
        """Count the items."""
        return len(self.vectors)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that are there, in the order of their names."""
        return tuple(sorted(set(self.modality.tolist())))

    def column(self, name: str) -> Sequence[Any]:
        """Give a column.

        Raises:
            UnknownNameError: with the nearest name.
        """
        if name not in self.columns:
            hint = "Or add a table that has it: --table labels.csv"
            raise UnknownNameError(f"column of {self.source}", name, self.columns, hint)
        return self.columns[name]

    def where(self, modality: str) -> NDArray[np.int64]:
        """Give the places of a modality's items, (m,) int64."""
        return np.flatnonzero(self.modality == modality)

    def pair_column(self, wanted: str | None) -> str | None:
        """Choose the column whose equal values make a pair: the one wanted, else "pair" or "group" where it has values.

        Raises:
            UnknownNameError: the wanted one is not there.
        """
        if wanted is not None:
            self.column(wanted)
            return wanted
        for name in PAIR_COLUMNS:
            if any(text_of(value) is not None for value in self.columns.get(name, ())):
                return name
        return None

    def joined(self, path: Path, on: str | None = None, named: Named | None = None) -> Rows:
        """Add the columns of a table.

        Args:
            path: csv, tsv, jsonl or parquet.
            on: its column that names the items as `truth_of` says; None: the first of its usual ones that is there.
            named: what `truth.named_rows` gave of it, where it was read before. Not modified.

        Raises:
            MissingInputError: no such table, or no row in it.
            InputError: the table has no such column, two values for one name, or nothing of it fits an item.
        """
        found, keys = named or named_rows(path, on)
        names = ("key", "source", "group", "id")
        items = [
            dict(zip(names, values, strict=True))
            for values in zip(*(self.columns.get(name, [None] * len(self)) for name in names), strict=True)
        ]

        def row_of(item: Mapping[str, Any]) -> Mapping[str, Any] | None:
            return next((found[name] for name in names_of(dict(item), path.parent) if name in found), None)

        matched = [row_of(item) for item in items]
        if all(row is None for row in matched):
            raise InputError(
                f"{path}: no value of {' or '.join(map(repr, sorted(keys)))} fits an item of {self.source}: it names "
                f"{next(iter(found), '(nothing)')!r}, the items have keys such as {str(self.columns['key'][0])!r}."
            )
        added_names = dict.fromkeys(name for row in found.values() for name in row if name not in keys)
        added = {name: [None if row is None else row.get(name) for row in matched] for name in added_names}
        empty = dict.fromkeys(added_names)
        lost = [
            {**item, **empty, **{name: value for name, value in (row_of(item) or {}).items() if name in empty}}
            for item in self.lost
        ]
        return replace(self, columns={**self.columns, **added}, lost=lost)


def read_rows(folder: str | Path, columns: Sequence[str] | None = None, ids: NDArray[np.int64] | None = None) -> Rows:
    """Read an embedding store.

    Args:
        folder: what `bindsearch embed` wrote.
        columns: keep these alone; None: all of the item table and all attributes. An attribute that has the name of a
            column of the table, such as "size", is there as "attributes.size".
        ids: (n,) int64: of the items to keep, and of the bad ones to count; None: all.

    Raises:
        MissingInputError: no store there, or nothing in it.
    """
    from bindsearch.store import EmbeddingStore

    store = EmbeddingStore.open(folder)
    if not len(store):
        raise MissingInputError(f"{folder}: holds no embedded item. Type: bindsearch embed SRC -o {folder}")
    table, bad = store.items(), store.items(status="bad")
    if ids is not None:
        table, bad = (each.take(np.flatnonzero(np.isin(each.column("id").to_numpy(), ids))) for each in (table, bad))
    found, lost = _columns_of(table), _columns_of(bad)
    if columns is not None:
        found = {name: found[name] for name in columns if name in found}
    return Rows(
        vectors=store.vectors(None if ids is None else table.column("id").to_numpy()),
        modality=np.array(table.column("modality").to_pylist()),
        columns=found,
        space_id=store.manifest.space_id,
        space_name=store.manifest.space_name,
        source=str(folder),
        preset_ids=dict(store.manifest.preset_ids),
        bad=bad.num_rows,
        lost=[dict(zip(lost, values, strict=True)) for values in zip(*lost.values(), strict=True)],
    )


def _columns_of(table: pa.Table) -> dict[str, Sequence[Any]]:
    """Give the columns of an item table, and those of its attributes."""
    attributes = [json.loads(text) if text else {} for text in table.column("attributes").to_pylist()]
    found: dict[str, Sequence[Any]] = {
        f"attributes.{name}" if name in table.column_names else name: [row.get(name) for row in attributes]
        for name in dict.fromkeys(name for row in attributes for name in row)
    }
    found.update({name: table.column(name).to_pylist() for name in table.column_names if name != "attributes"})
    return found


def embed_rows(source: str | Path, output: Path, space: Any, options: EmbedOptions | None, progress: bool) -> Rows:
    """Embed a manifest or a folder (resuming what is there), and read what it lists now.

    Args:
        source: what `bindsearch embed` takes.
        output: folder of the embeddings. What else it holds, of other sources, is not read.
        space: from `load_space`.
        options: of the embedder.
        progress: draw a bar.

    Raises:
        MissingInputError: nothing of the source could be embedded.
        As `run_embed` and `read_rows`.
    """
    from bindsearch.embed import EmbedOptions, listed_ids, run_embed
    from bindsearch.listing import Listing
    from bindsearch.listing.collect import STDIN
    from bindsearch.store import LEDGER

    name, options = str(source), options or EmbedOptions()
    typed = sys.stdin.buffer.read().decode("utf-8", "surrogateescape") if name == STDIN else ""
    run_embed([name], output, space, options=options, progress=progress, stdin=io.StringIO(typed))
    listing = Listing([name], options.modality, options.text_column, io.StringIO(typed), skip=[output])
    rows = read_rows(output, ids=listed_ids(listing, output))
    if not len(rows):
        raise MissingInputError(f"{name}: not one of its items could be embedded; the reasons: {output / LEDGER}")
    return rows


def is_store(path: Path) -> bool:
    """Say whether a folder holds embeddings."""
    from bindsearch.store import generation_folders

    return (path / "manifest.json").is_file() or bool(generation_folders(path))


def is_table(path: Path) -> bool:
    """Say whether a file is a manifest, by its suffix."""
    return path.suffix.lower() in TABLE_SUFFIXES


def codes(values: Sequence[Any]) -> NDArray[np.int64]:
    """Give values numbers: those of one text (`truth.text_of`) have one number, a blank one has -1: (n,) int64."""
    numbers: dict[str, int] = {}
    texts = (text_of(value) for value in values)
    return np.array([-1 if text is None else numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int64)
