"""Columns that a filter or a grouping may name: of the item table, then the names in its attributes."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from bindsearch.errors import UnknownNameError
from bindsearch.index.attributes import FILE, attribute_columns, far_from_zero, map_attributes, text_of

if TYPE_CHECKING:
    import pyarrow as pa

    from bindsearch.index.segment import Segment
    from bindsearch.index.snapshot import Snapshot
    from bindsearch.types import IntArray

OWN = "attributes."
"""Before the name of an attribute that is named like a column of the item table."""

_parsed: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
_parsed_lock = threading.Lock()


def mixed_columns(snapshot: Snapshot, names: Iterable[str]) -> frozenset[str]:
    """Say which attributes are of one kind in one segment and of another in another: these are read as text everywhere.

    A segment's attributes are typed by its own rows alone, so that one that came from JSON may hold numbers, or true
    and false, where one that came from CSV holds text. Whole numbers that float64 does not hold, and others, are of two
    kinds too, as they are where both stand in one segment.
    """
    mixed = set()
    tables = [attribute_table(segment) for segment in snapshot.segments] if len(snapshot.segments) > 1 else []
    for name in set(names) - set(snapshot.column_names()):
        columns = [column for table in tables if (column := _named(table, name)) is not None]
        kinds = {_kind_of(column.type) for column in columns} - {"null"}
        if len(kinds) > 1 or (kinds == {"number"} and _is_torn(columns)):
            mixed.add(name)
    return frozenset(mixed)


def _is_torn(columns: Sequence[pa.ChunkedArray]) -> bool:
    """Say whether columns of numbers hold whole ones that are no float64, and others that are none but that."""
    import pyarrow as pa

    whole = [column for column in columns if pa.types.is_integer(column.type)]
    others = any(pa.types.is_floating(column.type) for column in columns)
    return others and any(far_from_zero(column) for column in whole)


def _kind_of(type_: pa.DataType) -> str:
    """Name what types that can be joined have in common."""
    import pyarrow as pa

    kinds = {
        "text": (pa.types.is_string, pa.types.is_large_string),
        "number": (pa.types.is_integer, pa.types.is_floating),
    }
    return next((kind for kind, tests in kinds.items() if any(test(type_) for test in tests)), str(type_))


def read_column(segment: Segment, name: str, as_text: bool = False) -> pa.ChunkedArray:
    """Read a column of the item table, or a name out of the attributes; nulls where there is neither.

    Args:
        segment: of the index.
        name: of the column; `attributes.NAME` is the attribute whatever columns there are.
        as_text: give text whatever the column holds; see `mixed_columns`.

    Returns:
        (n,) in the order of the item table, removed rows included.
    """
    import pyarrow as pa

    if as_text:
        return text_of(read_column(segment, name))

    if name in segment.column_names():
        return segment.table_column(name)
    found = _named(attribute_table(segment), name)
    return pa.chunked_array([pa.nulls(segment.entry.rows)]) if found is None else found


def _named(attributes: pa.Table, name: str) -> pa.ChunkedArray | None:
    """Give an attribute by its name, or with `attributes.` before it; None where there is none."""
    names = attributes.column_names
    return next((attributes[each] for each in (name, name.removeprefix(OWN)) if each in names), None)


def values_of(snapshot: Snapshot, ids: IntArray, names: Sequence[str]) -> pa.Table:
    """Read columns, as a filter may name them, for some items.

    Args:
        snapshot: the index.
        ids: (m,) int64 of items that are in it. Not modified.
        names: of columns of the item table, or of attributes.

    Returns:
        (m,) rows, in the order of `ids`.
    """
    import pyarrow as pa

    own = [name for name in names if name in snapshot.column_names()]
    table = snapshot.table(ids, own) if own else None
    mixed = mixed_columns(snapshot, names)
    columns = {
        name: table[name] if table is not None and name in own else _attribute_of(snapshot, ids, name, name in mixed)
        for name in names
    }
    return pa.table(columns)


def _attribute_of(snapshot: Snapshot, ids: IntArray, name: str, as_text: bool) -> pa.ChunkedArray:
    import pyarrow as pa

    numbers, places = snapshot.locate(ids)
    parts, order = [], []
    for number, segment in enumerate(snapshot.segments):
        here = np.flatnonzero(numbers == number)
        column = read_column(segment, name, as_text)
        parts.append(pa.table({name: column.take(pa.array(segment.table_rows(places[here])))}))
        order.append(here)
    joined = pa.concat_tables(parts, promote_options="permissive")[name]
    return joined.take(pa.array(np.argsort(np.concatenate(order))))


def attribute_table(segment: Segment) -> pa.Table:
    """Give the attributes of a segment as columns: mapped where they were derived when it was written, else parsed.

    Parsing costs about 1.6 s a million rows and is done once for an open segment.
    """
    with _parsed_lock:
        if segment not in _parsed:
            _parsed[segment] = _open_attributes(segment)
        return _parsed[segment]


def _open_attributes(segment: Segment) -> pa.Table:
    import pyarrow as pa

    if FILE in segment.entry.files:
        mapped = map_attributes(segment.path, segment.entry.rows)
        if mapped is not None:
            return mapped
    if "attributes" not in segment.column_names():
        return pa.table({})
    return attribute_columns(segment.table_column("attributes").chunks)


def column_names(snapshot: Snapshot) -> tuple[str, ...]:
    """List every name that a filter may use: columns first, then attributes, `attributes.size` where both have one."""
    names = list(snapshot.column_names())
    columns = set(names)
    for segment in snapshot.segments:
        names += [OWN + name if name in columns else name for name in attribute_table(segment).column_names]
    return tuple(dict.fromkeys(names))


def check_columns(snapshot: Snapshot, columns: Iterable[str]) -> None:
    """Refuse names that no item has.

    Raises:
        UnknownNameError: with the nearest name.
    """
    unknown = [name for name in columns if name not in snapshot.column_names()]
    if unknown:
        known = column_names(snapshot)
        for name in unknown:
            if name not in known:
                raise UnknownNameError(f"column in {snapshot.path}", name, known)
