"""What items truly are: a column of a table, joined to the items by key, path, stem or group."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bindsearch.errors import InputError, MissingInputError, UnknownNameError
from bindsearch.listing.tables import table_rows

KEY_COLUMNS = ("key", "path", "file", "filename", "stem", "name", "group", "id")
_ITEM_COLUMNS = ("group", "caption", "modality")


def truth_of(records: Sequence[Mapping[str, Any]], column: str, table: str | Path | None = None) -> list[str | None]:
    """Give the value of a column for every item.

    Args:
        records: items with key, source, group and attributes, as a store's item table holds them. Not modified.
        column: of the table; without one, of the items' own attributes (the other columns of the manifest that was
            embedded), or "group", "caption" or "modality".
        table: csv, tsv, jsonl or parquet whose rows name their item in the first of these columns that is there: key,
            path, file, filename, stem, name, group, id. A name fits an item by its key, its path, its key without
            suffix, its group, or its file name with or without suffix; the first that fits anything counts.

    Returns:
        n texts; None where the item has no value. Whole numbers and truths are written as such ("3", "true").

    Raises:
        MissingInputError: no such table.
        UnknownNameError: no such column.
        InputError: a row that cannot be read, two values for one name, or no item that is named.
    """
    if table is None:
        return _of_attributes(records, column)
    named = dict(_named_values(Path(table), column))
    folder = Path(table).parent
    found: list[str | None] = []
    for record in records:
        names = names_of(record, folder)
        found.append(next((named[name] for name in names if name in named), None))
    if records and not any(value is not None for value in found):
        raise InputError(
            f"{table}: none of its {len(named)} names fits an item: it names {next(iter(named), '(nothing)')!r:.60}, "
            f"the items have keys such as {records[0]['key']!r:.60}."
        )
    return found


def _of_attributes(records: Sequence[Mapping[str, Any]], column: str) -> list[str | None]:
    if column in _ITEM_COLUMNS:
        return [_text_of(record.get(column)) for record in records]
    known: set[str] = set()
    found = []
    for record in records:
        attributes = json.loads(record["attributes"]) if record.get("attributes") else {}
        known |= set(attributes)
        found.append(_text_of(attributes.get(column)))
    if column not in known:
        raise UnknownNameError("column of the items", column, known | set(_ITEM_COLUMNS), "Or name a table of labels.")
    return found


def _named_values(table: Path, column: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the value of every row that has both."""
    if not table.is_file():
        raise MissingInputError(f"{table}: there is no such table.")
    seen: dict[str, str] = {}
    any_row = False
    for number, row in enumerate(table_rows(table)):
        if isinstance(row, str):
            raise InputError(f"{table}, {row}")
        any_row = True
        if column not in row:
            raise UnknownNameError(f"column of {table}", column, [str(name) for name in row])
        key_column = key_column_of(table, row, column)
        name, value = _text_of(row[key_column]), _text_of(row[column])
        if name is None or value is None:
            continue
        name = name.removeprefix("./")
        if seen.setdefault(name, value) != value:
            raise InputError(f"{table}, row {number}: {name!r} is {value!r} here and {seen[name]!r} before.")
        yield name, value
    if not any_row:
        raise MissingInputError(f"{table}: no row in it.")


def key_column_of(table: Path, row: Mapping[str, Any], value_column: str | None = None) -> str:
    """Choose the column that names the items of a table: the first of KEY_COLUMNS that is there.

    Raises:
        InputError: there is none.
    """
    found = next((name for name in KEY_COLUMNS if name in row and name != value_column), None)
    if found is None:
        raise InputError(
            f"{table}: which items are these rows? Expected a column {', '.join(KEY_COLUMNS[:-1])} or "
            f"{KEY_COLUMNS[-1]}, got {', '.join(map(str, row))}."
        )
    return found


def names_of(record: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Yield the names by which a table may call an item, the most exact first.

    Args:
        record: an item with key, and source, group and id where it has them. Not modified.
        folder: of the table; paths in it start there.
    """
    key = str(record["key"])
    yield key
    if record.get("id") is not None:
        yield str(record["id"])
    source = str(record.get("source") or "")
    yield source
    if source and "://" not in source:
        relative = os.path.relpath(source, folder or ".")
        yield relative.replace(os.sep, "/")
    yield key.rpartition(".")[0] or key
    if record.get("group"):
        yield str(record["group"])
        yield str(record["group"]).rpartition("/")[2]
    last = key.rpartition("/")[2]
    yield last
    yield last.rpartition(".")[0] or last


def _text_of(value: Any) -> str | None:
    if value is None or value == "" or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
