"""A user's pairs: a manifest of files two by two -> items of both sides, and which of them belong together."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindsearch.config import content_hash
from bindsearch.errors import InputError, MissingInputError, UnknownNameError
from bindsearch.linked import link_rows
from bindsearch.listing.folders import file_facts
from bindsearch.listing.naming import Namer, is_uri, place_of, to_path
from bindsearch.listing.tables import is_blank, table_rows
from bindsearch.makers import Maker, maker_of
from bindsearch.row_table import RowTable, load_row_table
from bindsearch.sources import ROW_SCHEME
from bindsearch.train.bind_config import DEFAULT_LABEL, PairsConfig
from bindsearch.truth import text_of
from bindsearch.types import Item, to_text

PairRow = tuple[str, str, str | None]
WORDS = "text:"
"""Beginning of the key of a text that stands in the manifest."""


@dataclass
class Pairs:
    """Pairs of items.

    Attributes:
        anchors, others: the different items of each side, by key; of a file that is written in several ways the first.
        rows: (anchor key, other key, label or None) a pair, in the manifest's order, each different pair once.
        bad: ledger lines of rows that cannot be meant: key, side, reason.
        anchor, modality: of the sides.
        features: hash of the table that side b is looked up in; "" without one.
        made: what lists the anchors where they are made from names and lie in no file; "" otherwise.
    """

    anchor: str
    modality: str
    anchors: dict[str, Item] = field(default_factory=dict)
    others: dict[str, Item] = field(default_factory=dict)
    rows: list[PairRow] = field(default_factory=list)
    bad: list[dict[str, Any]] = field(default_factory=list)
    features: str = ""
    made: str = ""

    @property
    def id(self) -> str:
        """Hash of the pairs, of their files' sizes and of the table of features: the same wherever they lie.

        What the files hold is not in it: see `same_files.check_files`.
        """
        sizes = [side[key].size_bytes for side in (self.anchors, self.others) for key in sorted(side)]
        rows = [list(row) for row in self.rows]
        return content_hash({"rows": rows, "sizes": sizes, "features": self.features})


def read_pairs(config: PairsConfig) -> Pairs:
    """Read a manifest of pairs; see `PairsConfig`.

    Raises:
        MissingInputError: no such manifest or table, or no pair in it.
        InputError: columns are missing, or a side's modality is not known.
        UnknownNameError: the columns of labels that were asked for are not there.
    """
    maker = maker_of(config.manifest)
    if maker is not None:
        return _made_pairs(config, maker)
    path = Path(config.manifest)
    if not path.is_file():
        raise MissingInputError(f"{path}: no such manifest of pairs.")
    table = load_row_table(config.features) if config.features else None
    rows = list(table_rows(path))
    first = next((row for row in rows if not isinstance(row, str)), None)
    if first is None:
        raise MissingInputError(f"{path}: no pair in it. Write one a row: path_a, path_b.")
    _check_label(config, {str(name) for row in rows if not isinstance(row, str) for name in row})
    pairs = Pairs(
        _modality_of(first, "a", config.anchor, path),
        _modality_of(first, "b", "features" if table else config.modality, path),
    )
    if table is not None:
        pairs.features = content_hash([sorted(table.places.items()), hashlib.sha256(table.rows.tobytes()).hexdigest()])
    reader = _Reader(path, pairs, table)
    for number, row in enumerate(rows):
        reader.take(row, f"{path.name}, row {number}", config.label)
    if not pairs.rows:
        raise MissingInputError(f"{path}: not one row names a pair; the first: {pairs.bad[0]['reason']}")
    return pairs


def _made_pairs(config: PairsConfig, maker: Maker) -> Pairs:
    """Pair media that are made and belong to one group: a scene's picture and its sound.

    Raises:
        InputError: the modalities are not said, or not made.
    """
    if not config.anchor or not config.modality or config.features:
        raise InputError(f"{config.manifest}: say which two modalities to pair: --anchor image --modality audio")
    pairs = Pairs(config.anchor, config.modality)
    pairs.made = maker.narrowed(config.manifest, [config.anchor])
    groups: dict[str | None, list[Item]] = {}
    for item in maker.items(config.manifest, config.anchor):
        pairs.anchors[item.key] = item
        groups.setdefault(item.group, []).append(item)
    others = list(maker.items(config.manifest, config.modality))
    _check_label(config, {name for other in others for name in other.attributes})
    for other in others:
        pairs.others[other.key] = other
        for anchor in groups.get(other.group, []):
            pairs.rows.append((anchor.key, other.key, _label_of(other.attributes, config.label)))
    return pairs


def _check_label(config: PairsConfig, columns: Collection[str]) -> None:
    """Refuse labels that were asked for and are not there; the usual column may be missing.

    Raises:
        UnknownNameError: with the nearest name.
    """
    for name in (each.strip() for each in config.label.split(",")):
        if config.label != DEFAULT_LABEL and name not in columns:
            raise UnknownNameError(f"column of labels in {config.manifest}", name, columns)


def _label_of(row: Mapping[str, Any], label: str) -> str | None:
    """Join the values of the columns that a label names; None where one is blank."""
    texts = [text_of(row.get(name.strip())) for name in label.split(",")]
    return None if None in texts else "/".join(map(str, texts))


@dataclass
class _Reader:
    path: Path
    pairs: Pairs
    table: RowTable | None
    seen: set[tuple[str, str]] = field(default_factory=set)
    files: dict[tuple[str, str], Item] = field(default_factory=dict)

    def take(self, row: Mapping[str, Any] | str, where: str, label: str) -> None:
        """Add a row, or a line to the ledger."""
        if isinstance(row, str):
            self.pairs.bad.append({"key": where, "side": "", "stage": "list", "reason": row})
            return
        items: list[Item] = []
        for side, modality in (("a", self.pairs.anchor), ("b", self.pairs.modality)):
            found = self._item(row, side, modality)
            if isinstance(found, str):
                self.pairs.bad.append({"key": where, "side": side, "stage": "list", "reason": found})
                return
            items.append(found if found.literal is not None else self.files.setdefault((side, found.source), found))
        anchor, other = items
        if (anchor.key, other.key) in self.seen:
            return
        self.seen.add((anchor.key, other.key))
        self.pairs.anchors.setdefault(anchor.key, anchor)
        self.pairs.others.setdefault(other.key, other)
        self.pairs.rows.append((anchor.key, other.key, _label_of(row, label)))

    def _item(self, row: Mapping[str, Any], side: str, modality: str) -> Item | str:
        words, written = row.get(f"text_{side}"), row.get(f"path_{side}")
        if modality == "text" and not is_blank(words):
            text = to_text(str(words))
            return Item(f"{WORDS}{text}", "text", place_of(self.path), literal=text)
        if is_blank(written):
            return f"no path_{side}"
        name = to_text(str(written)).replace(os.sep, "/").removeprefix("./")
        if side == "b" and self.table is not None:
            if name not in self.table.places:
                return f"{name}: no row of that key in {self.table.path}; its keys are such as {self.table.example()!r}"
            mtime_s = file_facts(self.table.path)[1]
            return Item(name, "features", f"{ROW_SCHEME}{place_of(self.table.path)}!/{name}", mtime_s=mtime_s)
        if is_uri(name):
            return Item(name, modality, name)
        place = place_of(self.path.parent / to_path(name))
        size_bytes, mtime_s = file_facts(to_path(place))
        return Item(name, modality, place, size_bytes=size_bytes, mtime_s=mtime_s)


def _modality_of(row: Mapping[str, Any], side: str, wanted: str, path: Path) -> str:
    """Tell the modality of a side from what was asked for, else from the first row.

    Raises:
        InputError: no column, or a suffix that says nothing.
    """
    columns = (f"path_{side}", f"text_{side}")
    if not set(columns) & set(row):
        raise InputError(
            f"{path}: expected a column {columns[0]!r} or {columns[1]!r}, got {', '.join(map(str, row)) or 'none'}. "
            "A manifest of pairs has path_a (the frozen side) and path_b (the side that is bound)."
        )
    if wanted:
        return wanted
    if columns[0] not in row:
        return "text"
    found = Namer().of_named(str(row[columns[0]]))
    if found is None:
        flag = "--anchor" if side == "a" else "--modality"
        raise InputError(f"{path}: {row[columns[0]]!r} does not say its modality by its suffix. Say it: {flag} NAME")
    return found


def components(rows: Sequence[PairRow], both_sides: bool = True) -> NDArray[np.int64]:
    """Give one number to all pairs that share a file, directly or through others: (n,) int64.

    Args:
        rows: of `Pairs`. Words that stand in the manifest are no file: two pairs may share them.
        both_sides: False looks at side b alone.
    """
    files = ([f"b{row[1]}", f"a{row[0]}"] if both_sides else [f"b{row[1]}"] for row in rows)
    return link_rows([name for name in names if not name[1:].startswith(WORDS)] for names in files)


def hold_out(rows: Sequence[PairRow], share: float, at_most: int) -> NDArray[np.bool_]:
    """Choose the pairs that are measured on, by hashes of their names: about the same ones when pairs are added.

    Args:
        rows: of `Pairs`.
        share: of the pairs, about.
        at_most: so many.

    Returns:
        (n,) bool. No file is on both sides of the cut; where files of side a tie all pairs together, no file of side b.

    Raises:
        InputError: nothing can be held out.
    """
    chosen = np.zeros(len(rows), dtype=np.bool_)
    for both_sides in (True, False):
        chosen = _chosen(rows, components(rows, both_sides), min(round(share * len(rows)), at_most))
        if chosen.sum() >= 2 and not chosen.all():
            return chosen
    if chosen.all():
        raise InputError(
            f"{len(rows)} pairs: a share of {share:g} holds all of them out, and none is left to train on. Bring more "
            "pairs, or lower --held-out."
        )
    raise InputError(
        f"{len(rows)} pairs: no two of them can be held out for measuring (share {share:g}). Bring more pairs, or "
        "raise --held-out."
    )


def _chosen(rows: Sequence[PairRow], groups: NDArray[np.int64], wanted: int) -> NDArray[np.bool_]:
    draws = np.ones(int(groups.max()) + 1)
    for group, (anchor, other, _) in zip(groups.tolist(), rows, strict=True):
        digest = hashlib.blake2b(f"{anchor}\0{other}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        draws[group] = min(draws[group], int.from_bytes(digest, "big") / 2**64)
    sizes = np.bincount(groups)
    chosen = np.zeros(len(sizes), dtype=bool)
    for group in np.argsort(draws, kind="stable"):
        if sizes[group] <= wanted:
            chosen[group] = True
            wanted -= int(sizes[group])
        if wanted <= 0:
            break
    return chosen[groups]
