"""A single HDF5 file: /embeddings (n, d) float16, a dataset for each item column under /items, the identity beside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bindsearch.errors import InputError
from bindsearch.exchange.rows import KEY_COLUMNS, Export, Import, bytes_text, check_matrix, identity_of, identity_text
from bindsearch.store import item_schema
from bindsearch.store.files import TEMP_ENDING, commit_written

_VECTORS = ("embeddings", "features", "vectors", "embedding", "train")
_ITEMS, _NULL, _META = "items", "_is_null", "bindsearch"
_ROWS = 8192
ONE_FILE = True
"""Whether the layout is one file; else it is a folder."""


def write(export: Export, out: Path) -> None:
    """Write the file. A column that has empty cells has a second dataset, NAME_is_null, that says which."""
    out.parent.mkdir(parents=True, exist_ok=True)

    def fill(temp: Path) -> None:
        temp.touch()  # where this is refused, the system's error names the file; h5py's doesn't
        _fill(temp, export)

    commit_written(out, out.with_name(out.name + TEMP_ENDING), fill)


def _fill(temp: Path, export: Export) -> None:
    import h5py

    with h5py.File(temp, "w") as file:
        file.attrs[_META] = identity_text(export.identity)
        vectors = file.create_dataset(_VECTORS[0], (export.rows, export.identity.dim), np.float16)
        kinds = {field.name: _kind_of(str(field.type)) for field in item_schema()}
        columns = {name: file.create_dataset(f"{_ITEMS}/{name}", (export.rows,), kind) for name, kind in kinds.items()}
        nulls = {name: np.zeros(export.rows, dtype=bool) for name in kinds}
        at = 0
        for half, table in export.blocks:
            here = slice(at, at + len(half))
            vectors[here] = half
            for name, dataset in columns.items():
                cells = table.column(name).to_pylist()
                nulls[name][here] = [cell is None for cell in cells]
                blank = "" if str(table.schema.field(name).type) == "string" else 0
                dataset[here] = [blank if cell is None else cell for cell in cells]
            at += len(half)
        for name, mask in nulls.items():
            if mask.any():
                file.create_dataset(f"{_ITEMS}/{name}{_NULL}", data=mask)


def _kind_of(arrow: str) -> Any:
    import h5py

    return {"string": h5py.string_dtype(), "int64": np.int64, "double": np.float64, "float": np.float32}[arrow]


def read(path: Path) -> Import:
    """Read such a file, or any with a dataset of vectors (embeddings, features, ...) and, if there, one of keys.

    Raises:
        InputError: not there, no HDF5, no vectors, or vectors kept in another file.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            text = file.attrs.get(_META)
            name = _find_vectors(file, path)
    except OSError as error:
        raise InputError(f"{path}: no HDF5 file: {error}") from error
    return Import(identity_of(text, path), _blocks(path, name))


def _find_vectors(file: Any, path: Path) -> str:
    import h5py

    plain = [name for name in file if isinstance(file.get(name, getlink=True), h5py.HardLink)]
    found = [name for name in plain if isinstance(file[name], h5py.Dataset) and file[name].ndim == 2]
    named = [name for name in _VECTORS if name in found]
    if not named and len(found) != 1:
        raise InputError(
            f"{path}: expected a dataset named {_VECTORS[0]!r} (n, d), found {', '.join(plain) or 'none'}."
        )
    name = named[0] if named else str(found[0])
    if file[name].external:
        raise InputError(f"{path}: /{name} lies in other files, which are not read.")
    return name


def _blocks(path: Path, name: str) -> Iterator[tuple[np.ndarray, Sequence[Mapping[str, Any]]]]:
    import h5py

    with h5py.File(path, "r") as file:
        vectors = file[name]
        group = file.get(_ITEMS) if isinstance(file.get(_ITEMS), h5py.Group) else file
        columns = {each: group[each] for each in group if _is_column(group, each, len(vectors))}
        for start in range(0, len(vectors), _ROWS):
            here = slice(start, min(start + _ROWS, len(vectors)))
            cells = {each: _cells(dataset, here) for each, dataset in columns.items() if not each.endswith(_NULL)}
            for each in cells:
                if each + _NULL in columns:
                    mask = columns[each + _NULL][here]
                    cells[each] = [None if null else cell for cell, null in zip(cells[each], mask, strict=True)]
            rows = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
            matrix = check_matrix(vectors[here], f"{path}: /{name}")
            yield matrix, rows or [{}] * len(matrix)


def _is_column(group: Any, name: str, rows: int) -> bool:
    import h5py

    if not isinstance(group.get(name, getlink=True), h5py.HardLink) or not isinstance(group[name], h5py.Dataset):
        return False
    ours = name.removesuffix(_NULL) in {*item_schema().names, *KEY_COLUMNS}
    return ours and group[name].shape == (rows,) and not group[name].external


def _cells(dataset: Any, rows: slice) -> list[Any]:
    import h5py

    if h5py.check_string_dtype(dataset.dtype) is not None:
        return [bytes_text(cell) for cell in dataset[rows]]
    cells: list[Any] = dataset[rows].tolist()
    return cells
