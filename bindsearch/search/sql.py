"""Filters in SQL, by DuckDB (the extra `sql`): a condition on the item table, or a SELECT that names ids.

    size > 1000 and regexp_matches(key, '^2024/')
    SELECT id FROM items WHERE size > (SELECT avg(size) FROM items) ORDER BY mtime DESC LIMIT 500

The one table is `items`: the item table of what is in the index now, with the attributes as columns. Of columns whose
names differ in case alone it has the one that the statement spells. The database lives
in memory for one statement, which must be a SELECT: no file, no extension, no variable of Python and no setting can be
reached from it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import InputError, MissingExtraError
from bindsearch.search.columns import OWN, column_names, mixed_columns, read_column
from bindsearch.types import to_text

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from bindsearch.index.segment import Segment
    from bindsearch.index.snapshot import Snapshot
    from bindsearch.types import BoolArray

_ROW = "row_of_items"
_ID = "id"
_NO_NAMES = re.compile(r"'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/", re.DOTALL)  # texts and remarks
_SETTINGS: dict[str, Any] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",
    "memory_limit": "2GB",
    "threads": "1",
}


def select_by_sql(snapshot: Snapshot, text: str) -> list[BoolArray]:
    """Evaluate SQL over the items of a snapshot.

    Args:
        snapshot: the index.
        text: a condition, or a SELECT with a column `id`.

    Returns:
        One (rows of the segment,) bool mask over the stored rows a segment; removed rows never pass.

    Raises:
        MissingExtraError: DuckDB is not installed.
        InputError: it is not SQL, or not one SELECT, or has no column `id`; in DuckDB's words.
    """
    text = to_text(text)  # bytes that are no UTF-8 as the item table writes them
    try:
        import duckdb
    except ModuleNotFoundError as error:
        raise MissingExtraError("duckdb", "sql", "--sql") from error
    database = duckdb.connect(":memory:", config=_SETTINGS)
    try:
        statement, by_id = _parse(duckdb, database, text)
        database.register("items", _items(snapshot, text))
        database.execute("SET lock_configuration = true")
        found = database.execute(statement).fetchnumpy()
    except duckdb.Error as error:
        raise InputError(f"--sql {text!r:.200}: {_first_line(error)} Columns: {_names(snapshot)}.") from error
    finally:
        database.close()
    if not by_id:
        return _masks_of_rows(snapshot, _whole_numbers(found[_ROW]))
    if "id" not in found:
        raise InputError(
            f"--sql {text!r:.200}: it gives {', '.join(found)}, expected a column id. Select the ids of items."
        )
    ids = found["id"]
    if ids.dtype.kind not in "iu":
        raise InputError(f"--sql {text!r:.200}: the column id holds {ids.dtype}, expected the ids of items.")
    return _masks_of_ids(snapshot, _whole_numbers(ids))


def _parse(duckdb: Any, database: Any, text: str) -> tuple[str, bool]:
    """Give the statement to run, and whether it is a SELECT of its own, which names ids.

    Raises:
        InputError: several statements, or one that is no SELECT.
    """
    condition = f"SELECT {_ROW} FROM items WHERE (\n{text}\n)"  # noqa: S608  # read-only, of one table in memory
    for statement, by_id in ((text, True), (condition, False)):
        try:
            parsed = database.extract_statements(statement)
        except duckdb.Error as error:
            if by_id:  # no statement: it may be a condition
                continue
            raise InputError(f"--sql {text!r:.200}: {_first_line(error)}") from error
        if len(parsed) == 1 and parsed[0].type == duckdb.StatementType.SELECT:
            return statement, by_id
        if parsed:
            break
    raise InputError(f"--sql {text!r:.200}: expected a condition, or one SELECT that gives ids.")


def _items(snapshot: Snapshot, text: str) -> pa.Table:
    """Gather the living items of all segments, with the columns that a statement may name."""
    import pyarrow as pa

    words = set(re.findall(r"\w+", text.lower()))
    every = "*" in text or bool(words & {"columns", "natural", "summarize", "describe"})
    names = [name for name in column_names(snapshot) if every or name.lower() in text.lower()]
    names = _as_spelled(names, text)
    parts = []
    first = 0
    mixed = mixed_columns(snapshot, names)
    for segment in snapshot.segments:
        columns = {name: read_column(segment, name, name in mixed) for name in dict.fromkeys(["id", *names])}
        columns[_ROW] = pa.chunked_array([np.arange(first, first + segment.entry.rows)])
        part = pa.table(columns)
        if segment.entry.removed:
            part = part.filter(pa.array(_alive_by_table(segment)))
        parts.append(part)
        first += segment.entry.rows
    return pa.concat_tables(parts, promote_options="permissive")


def _as_spelled(names: list[str], text: str) -> list[str]:
    """Leave out columns whose names differ in case alone from one that the statement spells, as SQL takes them for one.

    Raises:
        InputError: the statement spells such a name in several ways, or as none of the columns is.
    """
    code = _NO_NAMES.sub(" ", text)
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(name.lower(), []).append(name)
    left_out = set()
    for lower, several in alike.items():
        used = {each.group() for each in re.finditer(rf"(?<!\w){re.escape(lower)}(?!\w)", code, re.IGNORECASE)}
        if len(several) == 1 or not used:
            continue
        meant = used.pop()
        if used or meant not in several or (lower == _ID and meant != _ID):
            raise InputError(
                f"--sql {text!r:.200}: the columns {' and '.join(map(repr, several))} differ in case alone, which SQL "
                f"does not tell apart: expected one of them, spelled so throughout. Both can be named in --where: "
                f'--where "{several[0]} is not null and {several[1]} is not null"'
            )
        left_out |= set(several) - {meant}
    return [name for name in names if name not in left_out]


def _alive_by_table(segment: Segment) -> BoolArray:
    """Say which rows are not removed, in the order of the item table."""
    return np.asarray(segment.index.alive[segment.places_by_table()], dtype=bool)


def _masks_of_rows(snapshot: Snapshot, rows: NDArray[np.int64]) -> list[BoolArray]:
    """Turn row numbers over all item tables into masks."""
    total = sum(segment.entry.rows for segment in snapshot.segments)
    whole = np.zeros(total, dtype=bool)
    if rows.size and not 0 <= rows.min() <= rows.max() < total:
        raise InputError("--sql: a condition was closed and a SELECT of its own followed. Give the SELECT alone.")
    whole[rows] = True
    masks = []
    first = 0
    for segment in snapshot.segments:
        masks.append(np.asarray(segment.to_row_order(whole[first : first + segment.entry.rows]), dtype=bool))
        first += segment.entry.rows
    return masks


def _masks_of_ids(snapshot: Snapshot, ids: NDArray[np.int64]) -> list[BoolArray]:
    """Turn ids into masks; unknown ones are passed over."""
    masks = []
    for segment in snapshot.segments:
        mask = np.zeros(segment.entry.rows, dtype=bool)
        places = segment.index.positions(ids)
        mask[places[places >= 0]] = True
        masks.append(mask)
    return masks


def _whole_numbers(values: Any) -> NDArray[np.int64]:
    """Give a column of DuckDB's without its missing values."""
    if isinstance(values, np.ma.MaskedArray):
        values = values.compressed()
    return np.asarray(values, dtype=np.int64)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") + "."


def _names(snapshot: Snapshot) -> str:
    columns = snapshot.column_names()
    own = sorted(set(column_names(snapshot)) - set(columns))
    return ", ".join([*columns, *(f'"{name}"' if name.startswith(OWN) else name for name in own)])
