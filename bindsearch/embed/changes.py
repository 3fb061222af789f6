"""What a listing brings that a store does not hold yet, and what it no longer brings."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.embed.decoding import source_of
from bindsearch.embed.plan import say_twice
from bindsearch.errors import InputError
from bindsearch.listing.collect import STDIN_PLACE
from bindsearch.listing.naming import to_path
from bindsearch.store import EmbeddingStore, Generation, generation_folders
from bindsearch.store.files import read_parquet
from bindsearch.store.generation import PLAN_ROWS
from bindsearch.types import Item

if TYPE_CHECKING:
    from bindsearch.types import IntArray

_NO_IDS: IntArray = np.empty(0, dtype=np.int64)


class KnownUnits:
    """What a store already holds, by unit: an item as it was listed, whole or later cut in spans.

    Memory: 34 bytes a row; the checksums are read only where a modification time has changed.
    """

    def __init__(
        self, out: Path, generations: Sequence[Generation], origins: Sequence[str], look: Mapping[str, Any]
    ) -> None:
        """Read the plans of the generations.

        Args:
            out: folder of the store.
            generations: oldest first; imported ones have no plan and are passed over. Of one that is not finished, what
                is planned counts as embedded.
            origins: names of this run's sources; a row from one of them that is not listed again is gone. Stdin ("-")
                has no memory: nothing is gone because it was not typed again.
            look: how this run reads its sources, as plans record it; what was read in another way is not listed again.
        """
        generations = [each for each in generations if not each.record.get("imported")]
        self._out, self._generations = out, generations
        columns: dict[str, list[np.ndarray]] = {name: [] for name in ("id", "unit", "print", "mtime", "listed")}
        dead = _NO_IDS
        for generation in reversed(generations):
            rows = _plan_columns(generation, ("id", "unit", "print", "mtime", "origin"))
            alive = ~np.isin(rows["id"], dead)
            same = reads_alike(generation.record, look)
            names = generation.record["sources"]
            again = np.array([same and name in origins and name != "-" for name in names], dtype=bool)
            rows["listed"] = again[rows.pop("origin")]
            for name, values in rows.items():
                columns[name].append(values[alive])
            dead = np.unique(np.concatenate([dead, rows["id"], generation.gone_ids()]))
        joined = {name: np.concatenate(parts) if parts else _NO_IDS for name, parts in columns.items()}
        order = np.argsort(joined["unit"], kind="stable")
        self.ids, self.units, self.prints = (joined[name][order] for name in ("id", "unit", "print"))
        self.mtimes_s = joined["mtime"][order].astype(np.float64)
        self.listed = joined["listed"][order].astype(bool)
        self.seen = np.zeros(len(self.ids), dtype=bool)

    def rows_of(self, unit: int) -> slice:
        """Give the rows that one listed item made before; empty where it is new."""
        first = int(self.units.searchsorted(unit))
        if first == len(self.units) or self.units[first] != unit:
            return slice(0, 0)
        return slice(first, int(self.units.searchsorted(unit, side="right")))

    def count_unchanged(self, item: Item, mark: int, older: int) -> int:
        """Tell how many rows of the store a listed item stands for, if nothing about it has changed.

        Args:
            item: as listed.
            mark: its fingerprint.
            older: the one that an earlier version made, which says the same.

        Returns:
            0 for a new or changed item. An item is unchanged if its fingerprint (size included) and its modification
            time are the same; or, with another time, if its bytes are. A bad one counts as changed with another time
            (so touching a file makes it be tried again), and when it could not be read and now can be.

        Raises:
            InputError: the item was listed before in this run.
        """
        rows = self.rows_of(item.id)
        if rows.start == rows.stop:
            return 0
        if self.seen[rows].any():
            place = {"key": item.key, "source": item.source, "member": item.member}
            raise InputError(say_twice(place, place))
        prints = self.prints[rows]
        if ((prints != mark) & (prints != older)).any() or not self._is_same(item, rows):
            return 0
        self.seen[rows] = True
        return int(rows.stop) - int(rows.start)

    def keep(self, item: Item) -> None:
        """Note that a listed item is there still, though this run cannot embed it."""
        self.seen[self.rows_of(item.id)] = True

    def count_bad(self, item: Item) -> int:
        """Tell how many of a listed item's rows in the store have no vector."""
        if not self._bad_unread:
            return 0
        return sum(each in self._bad_unread for each in self.ids[self.rows_of(item.id)].tolist())

    def _is_same(self, item: Item, rows: slice) -> bool:
        bad = [self._bad_unread[each] for each in self.ids[rows].tolist() if each in self._bad_unread]
        known_s = self.mtimes_s[rows]
        if not (np.isnan(known_s) if item.mtime_s is None else known_s == item.mtime_s).all():
            return not bad and self._has_same_bytes(item, int(self.ids[rows.start]))
        return not any(bad) or not _can_be_read(item)

    def _has_same_bytes(self, item: Item, known: int) -> bool:
        if known not in self._checksums:  # planned and not embedded yet: it will be read as it is then
            return True
        try:
            return source_of(item).sha256() == self._checksums[known]
        except (ImportError, MemoryError):
            raise
        except Exception:  # a URI of no known form, a foreign file system: embedding it will say what is wrong
            return False

    @cached_property
    def _store(self) -> EmbeddingStore:
        return EmbeddingStore.open(self._out, partial=True)

    @cached_property
    def _bad_unread(self) -> Mapping[int, bool]:
        """Tell of each bad row, by id, whether its bytes could not be read."""
        table = self._store.items(("id", "stage", "sha256"), status="bad")
        return {row["id"]: row["stage"] == "read" and row["sha256"] is None for row in table.to_pylist()}

    @cached_property
    def _checksums(self) -> Mapping[int, str]:
        table = self._store.items(("id", "sha256"))
        return dict(zip(table.column("id").to_pylist(), table.column("sha256").to_pylist(), strict=True))

    def check_place(self, item: Item) -> None:
        """Refuse to put an item in the place of another file's.

        A key that a source brings which an earlier run did not list may be another file's that has the same name. Where
        that one is no more, its folder was moved or renamed, and the item takes its place. A text that was typed lies
        nowhere: it takes the place of what is bad alone.

        Args:
            item: new or changed.

        Raises:
            InputError: the other file is still there; both are named. Or another text has the key of a typed one.
        """
        rows = self.rows_of(item.id)
        if rows.start == rows.stop or self.listed[rows].any():
            return
        if item.source == STDIN_PLACE and self.count_bad(item) < rows.stop - rows.start:
            raise InputError(
                f"key {item.key!r} is in {self._out} already, of something else than this text from stdin. Name the "
                "texts in a manifest with a column 'key', or embed them into another folder."
            )
        source = self._sources[item.id]
        if _are_two_files(source, item.source):
            raise InputError(
                f"key {item.key!r} is in {self._out} already, of {source}; got {item.source}. Give the common parent "
                "folder as the one source, choose another output folder, or list the files in a manifest with a column "
                "'key'."
            )

    @cached_property
    def _sources(self) -> Mapping[int, str]:
        """Give the file of each unit, for those that this run's sources did not bring."""
        wanted = set(self.units[~self.listed].tolist())
        found: dict[int, str] = {}
        for generation in self._generations:
            table = read_parquet(generation.folder / PLAN_ROWS, ["unit", "source"])
            pairs = zip(table.column("unit").to_pylist(), table.column("source").to_pylist(), strict=True)
            found |= {unit: source for unit, source in pairs if unit in wanted}
        return found

    def replace(self, unit: int, ids: Sequence[int]) -> None:
        """Note that a listed item is embedded again, as rows of these ids; its other rows will be gone."""
        rows = self.rows_of(unit)
        if rows.start == rows.stop:
            return
        self.listed[rows] = True
        self.seen[rows] |= np.isin(self.ids[rows], np.asarray(ids, dtype=np.int64))

    def gone(self, unread: Iterable[str] = ()) -> tuple[list[dict[str, int | str]], Counter[str]]:
        """Give what this run's sources held before and no longer hold.

        Args:
            unread: folders, tars and manifests that this run's listing could not read (to their end). What came from
                there, or lies there, is not known to be gone.

        Returns:
            {"id", "key"} of what is gone, by id; and how many rows are kept for each place that was not read.
        """
        wanted = set(self.ids[self.listed & ~self.seen].tolist())
        places = frozenset(unread)
        found: list[dict[str, int | str]] = []
        kept: Counter[str] = Counter()
        for generation in reversed(self._generations):
            if not wanted:
                break
            for row in _keys_of(generation, wanted):
                wanted.discard(row["id"])
                origin = generation.record["sources"][row["origin"]]
                place = _place_above(row["source"], places) or (origin if origin in places else None)
                if place is None:
                    found.append({"id": row["id"], "key": row["key"]})
                else:
                    kept[place] += 1
        return sorted(found, key=lambda row: row["id"]), kept


def reads_alike(record: Mapping[str, Any], look: Mapping[str, Any]) -> bool:
    """Say whether a plan's sources were read as a run reads its own; plans of earlier versions do not say how.

    Args:
        record: of the plan.
        look: `modality` and `text_column` of the run.
    """
    return all(record.get(name, value) == value for name, value in look.items())


def listed_ids(listing: Iterable[Item], out: Path) -> IntArray:
    """Give the ids of the rows that a store has of listed items, whichever source they first came from: (n,) int64.

    Args:
        listing: what a source holds now; iterated once.
        out: folder of the store.
    """
    known = KnownUnits(out, [Generation.load(folder) for folder in generation_folders(out)], (), {})
    listed = np.fromiter((item.id for item in listing), dtype=np.int64)
    return known.ids[np.isin(known.units, listed)]


def _place_above(source: str, places: frozenset[str]) -> str | None:
    """Name the one of some places that a source is, or lies in; the innermost."""
    while places and source:
        if source in places:
            return source
        above = os.path.dirname(source)  # noqa: PTH120  # as text: sources may be URIs
        source = above if above != source else ""
    return None


def _plan_columns(generation: Generation, names: Sequence[str]) -> dict[str, np.ndarray]:
    table = read_parquet(generation.folder / PLAN_ROWS, names)
    return {name: table.column(name).to_numpy(zero_copy_only=False) for name in names}


def _keys_of(generation: Generation, wanted: set[int]) -> Iterator[dict[str, Any]]:
    table = read_parquet(generation.folder / PLAN_ROWS, ["id", "key", "source", "origin"])
    hits = np.flatnonzero(np.isin(table.column("id").to_numpy(), list(wanted)))
    yield from table.take(hits).to_pylist()


def _are_two_files(one: str, other: str) -> bool:
    """Say whether two sources are files that are both there, and not the same one."""
    try:
        return not Path(to_path(one)).samefile(to_path(other))
    except OSError:
        return False


def _can_be_read(item: Item) -> bool:
    try:
        with source_of(item).open() as file:
            file.read(1)
    except (ImportError, MemoryError):
        raise
    except Exception:  # foreign file systems raise anything
        return False
    return True
