"""Manifests: rows of a csv, jsonl or parquet file become items."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from bindsearch.config import canonical_json
from bindsearch.errors import InputError, UnknownNameError
from bindsearch.listing.cells import plain_rows
from bindsearch.listing.folders import file_facts
from bindsearch.listing.items import (
    LONGEST_TEXT_BYTES,
    BrokenItem,
    FusedItem,
    Part,
    literal_item,
    make_caption,
    parse_fusion,
)
from bindsearch.listing.naming import Namer, is_uri, is_utf8, place_of, to_path
from bindsearch.makers import maker_of
from bindsearch.registry import MODALITIES
from bindsearch.types import Item, Span, to_text

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_OWN = ("path", "text", "modality", "key", "caption", "group", "start_s", "end_s", "fuse")
_BATCH_ROWS = 4096
_LONGEST_CELL = 16 * LONGEST_TEXT_BYTES
"""Characters of a cell of a CSV that are read at all; what is too long for a text is refused as one, row by row."""


class _Rest(str):
    """Why a row cannot be read, nor any after it."""


@dataclass(frozen=True)
class Manifest:
    """One manifest.

    Attributes:
        path: the file; paths in it are relative to its folder.
        namer: tells modalities of rows that name none.
        text_column: the column whose texts are the items, in place of `path` and `text`.
    """

    path: Path
    namer: Namer
    text_column: str | None = None

    def __iter__(self) -> Iterator[Item]:
        """Yield an item a row.

        Columns: `path` (or `text`: the text itself), and where wanted `modality`, `key` (default: the path as written;
        of a text "<manifest>#<row>", from 0), `caption`, `group`, `start_s` and `end_s`. A row with `fuse`
        ("video*0.95 + audio*0.05") has a column for each modality it names, holding that part's path (for text, the
        text itself). Every other column becomes an attribute. A row with nothing to embed, or with a value that cannot
        be meant, is a BrokenItem; of the latter the key is "<manifest>#<row>".

        Raises:
            InputError: no such column, or no row that can be read at all.
        """
        columns: tuple[str, ...] | None = None
        first_unread: str | None = None
        lines = self.path.suffix.lower() in (".jsonl", ".ndjson")  # a line of JSON has its own keys
        named = False
        for number, row in enumerate(self._rows()):
            where = f"{self.path}, row {number}"
            if isinstance(row, str):
                first_unread = first_unread or f"{self.path}, {row}"
                yield replace(self._broken(number, f"{where}: {row}"), hides=isinstance(row, _Rest))
                continue
            if columns is None:
                columns = tuple(row)
                if not lines:
                    self._check_columns(columns)
            named = named or self.text_column in row
            try:
                item = self._row_item(row, f"{self.path.name}#{number}", where)
            except InputError as error:
                item = self._broken(number, str(error))
            yield item
        if columns is None and first_unread is not None:
            raise InputError(f"{first_unread}. No other row can be read either: is it a manifest?")
        if columns is not None and lines and self.text_column and not named:
            self._check_columns(columns)

    def _broken(self, number: int, reason: str) -> BrokenItem:
        return BrokenItem(to_text(f"{self.path.name}#{number}"), "row", place_of(self.path), reason=to_text(reason))

    def _row_item(self, row: Mapping[str, Any], name: str, where: str) -> Item:
        values = {column: value for column, value in row.items() if not is_blank(value)}
        if "\x00" in str(values.get("key", "")):
            raise InputError(f"{where}: the key holds a NUL character.")
        return self._item(values, name, where)

    def _rows(self) -> Iterator[Mapping[str, Any] | str]:
        return table_rows(self.path)

    def _check_columns(self, columns: tuple[str, ...]) -> None:
        wanted = (self.text_column,) if self.text_column else ("path", "text", "fuse")
        if not set(wanted) & set(columns):
            raise InputError(
                f"{self.path}: expected a column {' or '.join(repr(name) for name in wanted if name)}, got "
                f"{', '.join(columns) or 'none'}. Name the column of texts with --text-column, or rename one to 'path'."
            )

    def _item(self, values: dict[str, Any], name: str, where: str) -> Item:
        span = _span_of(values, where)
        attributes = {key: _plain(value) for key, value in values.items() if key not in _OWN}
        base = Item(
            key=to_text(str(values.get("key", name))),
            modality="",
            source="",
            span=span,
            caption=_text_of(values.get("caption")),
            group=_text_of(values.get("group")),
            attributes=attributes,
        )
        if self.text_column:
            return self._text(base, values.get(self.text_column), where)
        if "fuse" in values:
            return self._fused(base, values, where)
        if "path" in values:
            return self._file(base, values, where)
        return self._text(base, values.get("text"), where)

    def _text(self, base: Item, text: Any, where: str) -> Item:
        source = place_of(self.path)
        if text is None:
            return BrokenItem(base.key, "row", source, reason=f"{where}: nothing to embed: no path and no text")
        if self.text_column:
            others = {name: value for name, value in base.attributes.items() if name != self.text_column}
            base = replace(base, attributes=others, caption=None if self.text_column == "caption" else base.caption)
        return literal_item(replace(base, source=source), str(text))

    def _file(self, base: Item, values: dict[str, Any], where: str) -> Item:
        written = str(values["path"])
        if (maker := maker_of(written)) is not None:
            return self._made(base, values, maker.items(written), where)
        modality = str(values["modality"]) if "modality" in values else self.namer.of_named(written)
        if "text" in values and base.caption is None:
            base = replace(base, caption=_text_of(values["text"]))
        key = base.key if "key" in values else to_text(written.removeprefix("./"))
        source = self._source(written)
        if modality is None:
            reason = "its suffix names no modality. Add a column 'modality'."
            return BrokenItem(key, "row", source, reason=f"{where}: {written}: {reason}")
        check_modality(modality, where)
        size_bytes, mtime_s = (None, None) if is_uri(source) else file_facts(to_path(source))
        return replace(base, key=key, modality=modality, source=source, size_bytes=size_bytes, mtime_s=mtime_s)

    def _made(self, base: Item, values: dict[str, Any], made: Iterator[Item], where: str) -> Item:
        """Join a row with the one item that its path is the name of; the row's own words win."""
        items = list(islice(made, 2))
        if len(items) != 1:
            what = f"{values['path']} names several items; a row is one, such as {items[0].key}"
            return BrokenItem(base.key, "row", place_of(self.path), reason=f"{where}: {what}")
        item = items[0]
        return replace(
            item,
            key=base.key if "key" in values else item.key,
            caption=base.caption or item.caption,
            group=base.group or item.group,
            attributes={**item.attributes, **base.attributes},
        )

    def _fused(self, base: Item, values: dict[str, Any], where: str) -> Item:
        terms = parse_fusion(str(values["fuse"]), MODALITIES.names(), where)
        parts = []
        for modality, weight in terms:
            if modality not in values:
                reason = f"{where}: fuse names {modality}, but that column is empty or missing"
                return BrokenItem(base.key, "row", place_of(self.path), reason=reason)
            parts.append(self._part(modality, weight, str(values[modality])))
        leading = max(parts, key=lambda part: abs(part.weight))
        used = {name: str(values[name]) for name in (*(name for name, _ in terms), "fuse")}
        return FusedItem(
            key=base.key,
            modality=leading.modality,
            source=leading.source or place_of(self.path),
            span=base.span,
            size_bytes=leading.size_bytes,
            mtime_s=leading.mtime_s,
            caption=base.caption or (make_caption(leading.literal) if leading.literal else None),
            group=base.group,
            attributes={**base.attributes, **used},
            parts=tuple(parts),
        )

    def _part(self, modality: str, weight: float, written: str) -> Part:
        if modality == "text":
            text = to_text(written)
            return Part(modality, weight, size_bytes=len(text.encode("utf-8")), literal=text)
        source = self._source(written)
        size_bytes, mtime_s = (None, None) if is_uri(source) or maker_of(source) else file_facts(to_path(source))
        return Part(modality, weight, source, size_bytes, mtime_s)

    def _source(self, written: str) -> str:
        return written if is_uri(written) or maker_of(written) else place_of(self.path.parent / written)


def table_rows(path: Path) -> Iterator[Mapping[str, Any] | str]:
    """Read a csv, tsv, jsonl or parquet file row by row, its kind told by its suffix (any other is read as csv).

    Yields:
        Column -> value; of a row that cannot be read, where it is and why, as a text.

    Raises:
        InputError: the file is of another kind.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_rows(path)
    elif suffix in (".jsonl", ".ndjson"):
        yield from _json_rows(path)
    else:
        yield from _csv_rows(path, "\t" if suffix == ".tsv" else ",")


def check_modality(name: str, where: str) -> None:
    """Refuse a modality that is in no registry.

    Raises:
        UnknownNameError: naming the place and the nearest name.
    """
    if name not in MODALITIES:
        raise UnknownNameError("modality", name, MODALITIES.names(), hint=f"({where})")


def is_blank(value: Any) -> bool:
    """Say whether a cell of a table holds nothing: it is missing, empty, or no number (NaN)."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _text_of(value: Any) -> str | None:
    return None if value is None else to_text(str(value)).replace("\x00", "")


def _plain(value: Any) -> Any:
    """Make a value of a manifest fit for JSON: what JSON cannot hold becomes its text."""
    try:
        canonical_json(value)
    except (TypeError, ValueError):
        return str(value)
    return value


def _span_of(values: Mapping[str, Any], where: str) -> Span | None:
    ends = [values.get("start_s"), values.get("end_s")]
    if ends == [None, None]:
        return None
    try:
        start_s, end_s = (float(value) for value in ends)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{where}: start_s and end_s: expected two numbers of seconds, got {ends}.") from None
    if not 0 <= start_s < end_s < math.inf:
        raise InputError(f"{where}: expected 0 <= start_s < end_s, got {start_s:g} and {end_s:g}.")
    return start_s, end_s


def _csv_rows(path: Path, delimiter: str) -> Iterator[Mapping[str, Any] | str]:
    """Read a CSV; a quote that is never closed, or a cell without end, is the last thing that is seen of it."""
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))  # of the whole process: never lowered
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        ended: list[bool] = []
        reader = csv.DictReader(_lines_of(file, ended), delimiter=delimiter, restkey="")
        try:
            header = "".join(reader.fieldnames or ())
        except csv.Error as error:
            raise InputError(f"{path}, line 1: not a CSV: {error}") from error
        if not is_utf8(header):
            raise InputError(f"{path}, line 1: not a CSV in UTF-8.")
        while True:
            before = reader.line_num
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:  # the reader may stand within quotes: what it would read next are no rows
                yield _Rest(f"after line {before}: not CSV: {error}; rows after line {before} are not seen")
                return
            if ended and reader.line_num > before + 1:  # a row is given at the end of the file only if quotes are open
                yield _Rest(f"after line {before}: a quote is never closed; rows after line {before} are not seen")
                return
            row.pop("", None)  # cells beyond the header
            bad = any(not is_utf8(cell) for cell in row.values() if cell)
            yield f"line {reader.line_num}: not UTF-8" if bad else row


def _lines_of(file: TextIO, ended: list[bool]) -> Iterator[str]:
    """Yield the lines, and note in `ended` when another one was asked for and there was none."""
    yield from file
    ended.append(True)


def _json_rows(path: Path) -> Iterator[Mapping[str, Any] | str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                yield f"line {number}: not JSON: {error}"
                continue
            yield row if isinstance(row, dict) else f"line {number}: expected an object, got {type(row).__name__}"


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any] | str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
                yield from plain_rows(batch, first)
                first += batch.num_rows
    except (pa.ArrowException, ValueError, OSError) as error:
        raise InputError(f"{path}: not a Parquet file: {error}") from error
