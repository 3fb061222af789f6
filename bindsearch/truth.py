"""What items truly are: a column of a table, joined to the items by key, path, stem or group."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bindsearch.errors import InputError, MissingInputError, UnknownNameError
from bindsearch.listing.tables import is_blank, table_rows

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
    table = Path(table)
    texts = {name: text_of(row[column]) for name, row in named_rows(table, None, column)[0].items()}
    named = {name: text for name, text in texts.items() if text is not None}
    folder = table.parent
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
        return [text_of(record.get(column)) for record in records]
    known: set[str] = set()
    found = []
    for record in records:
        attributes = json.loads(record["attributes"]) if record.get("attributes") else {}
        known |= set(attributes)
        found.append(text_of(attributes.get(column)))
    if column not in known:
        raise UnknownNameError("column of the items", column, known | set(_ITEM_COLUMNS), "Or name a table of labels.")
    return found


Named = tuple[dict[str, dict[str, Any]], set[str]]
"""Name -> column -> value, and the columns that hold the names."""


def named_rows(table: Path, on: str | None = None, only: str | None = None) -> Named:
    """Read what a table says of each name; of a name that is there several times, what all its rows say together.

    Args:
        table: csv, tsv, jsonl or parquet.
        on: the column of the names; None: of each row the first of KEY_COLUMNS that is there.
        only: read this column alone; None: all.

    Returns:
        Name (without "./") -> column -> value as the file has it, None where it is blank; and the columns that hold the
        names, which are among no row's values. Rows without a name are passed over. A line of JSON has columns of its
        own: what it lacks is blank.

    Raises:
        MissingInputError: no such table, or no row in it.
        UnknownNameError: no row has such a column.
        InputError: a row that cannot be read, two values for one name, or no row with a column of names.
    """
    if not table.is_file():
        raise MissingInputError(f"{table}: there is no such table.")
    found: dict[str, dict[str, Any]] = {}
    keys: set[str] = set()
    columns: dict[str, None] = {}
    number = -1
    for number, row in enumerate(table_rows(table)):
        if isinstance(row, str):
            raise InputError(f"{table}, {row}")
        columns.update(dict.fromkeys(row))
        key_column = on or next((each for each in KEY_COLUMNS if each in row and each != only), None)
        if key_column is None or key_column not in row:
            continue
        keys.add(key_column)
        name = _name_of(row[key_column])
        if name is not None:
            name = name.removeprefix("./")
            said = {only: row.get(only)} if only else {each: row[each] for each in row if each != key_column}
            _add_said(found.setdefault(name, {}), said, f"{table}, row {number}: {name!r}")
    if number < 0:
        raise MissingInputError(f"{table}: no row in it.")
    for wanted in (only, on):
        if wanted is not None and wanted not in columns:
            raise UnknownNameError(f"column of {table}", wanted, [str(name) for name in columns])
    if not keys:
        raise InputError(
            f"{table}: which items are these rows? Expected a column {', '.join(KEY_COLUMNS[:-1])} or "
            f"{KEY_COLUMNS[-1]}, got {', '.join(map(str, columns))}."
        )
    return found, keys


def _add_said(own: dict[str, Any], said: Mapping[str, Any], where: str) -> None:
    """Add what a row says of a name to what is known of it; overwrites `own`.

    Raises:
        InputError: another row says otherwise.
    """
    for column, value in said.items():
        if text_of(value) is None:
            own.setdefault(column, None)
        elif own.get(column) is None:
            own[column] = value
        elif text_of(own[column]) != text_of(value):
            raise InputError(f"{where}: {column} is {text_of(value)!r} here and {text_of(own[column])!r} before.")


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


def text_of(value: Any) -> str | None:
    """Give the text of a label, the same from every file: 1 and 1.0 are "1", True is "true"; None: blank.

    Blanks around it are no part of it, as in `--labels "dog, cat"`.
    """
    text = _name_of(value)
    return text.strip() or None if text is not None else None


def _name_of(value: Any) -> str | None:
    """Give the text of a name, blanks and all: files may have them."""
    if is_blank(value):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
