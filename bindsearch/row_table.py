"""Tables of vectors keyed by path: what another encoder made of files, as .npz, .npy with keys, Parquet or a store.

.npz       one array a key; or two arrays, `keys` (text) and any other one (n, F)
.npy       (n, F), beside a text file of the same stem (.keys.txt or .txt) with one key a line
Parquet    a column `path` or `key`, and one column of lists of numbers
a folder   that `bindsearch embed` or `bindsearch export --format npy` wrote: keys and vectors
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindsearch.errors import BindSearchError, DecodeError, InputError, MissingInputError, UnknownNameError

if TYPE_CHECKING:
    import pyarrow as pa

    from bindsearch.types import FloatArray

SUFFIXES = (".npz", ".npy", ".parquet")
KEY_COLUMNS = ("path", "key", "file", "name")
_NPY_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True, eq=False)
class RowTable:
    """Vectors of one length, each under a key.

    Attributes:
        path: of the file or folder.
        places: key -> row.
        rows: (n, F) float32.
    """

    path: str
    places: dict[str, int]
    rows: FloatArray

    @property
    def width(self) -> int:
        """F, numbers a row."""
        return int(self.rows.shape[1])

    def row(self, key: str) -> FloatArray:
        """Give the vector of a key: (F,) float32.

        Raises:
            DecodeError: no such key.
        """
        place = self.places.get(key)
        if place is None:
            raise DecodeError(
                key, f"no row of that key in {self.path}; its keys are such as {self.example()!r}", "read"
            )
        found: FloatArray = self.rows[place]
        return found

    def example(self) -> str:
        """Give a key, for messages."""
        return next(iter(self.places), "")


def load_row_table(path: str | os.PathLike[str]) -> RowTable:
    """Read a table of vectors; the last few stay in memory as long as their files do not change.

    Raises:
        MissingInputError: no such file or folder.
        InputError: it holds no vectors with keys, or not all of one length, or numbers that are not finite.
    """
    name = os.path.abspath(path)  # noqa: PTH100  # resolve() would follow links
    try:
        found = Path(name).stat()
    except (OSError, ValueError) as error:
        raise MissingInputError(f"{os.fspath(path)}: no such table of vectors.") from error
    return _cached(name, found.st_mtime_ns, found.st_size)


def is_row_table(path: str | os.PathLike[str]) -> bool:
    """Say whether a path is a table of vectors: by suffix, a .npy by the keys beside it, a folder by its files."""
    here = Path(path)
    if here.is_dir():
        return (here / "manifest.json").is_file() or (here / "embeddings.npy").is_file()
    if here.suffix.lower() == ".npy":
        return _keys_beside(here) is not None
    return here.suffix.lower() in SUFFIXES


def read_npy(path: str | os.PathLike[str], name: str = "", mapped: bool = False) -> Any:
    """Read a .npy file that a user brings; nothing in it is unpickled.

    Args:
        path: of the file.
        name: what messages call it; "" is its path.
        mapped: leave the numbers on disk.

    Returns:
        An array of any shape and dtype.

    Raises:
        MissingInputError: no such file.
        InputError: another kind of file, a damaged one, or Python objects in place of numbers.
    """
    import numpy as np

    name = name or os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            if file.read(len(_NPY_MAGIC)) != _NPY_MAGIC:
                raise InputError(
                    f"{name}: not a .npy file of numbers; it begins as another kind of file. Write one: "
                    "numpy.save('vectors.npy', array)"
                )
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError as error:
        raise MissingInputError(f"{name}: there is no such file.") from error
    except InputError:
        raise
    except (ValueError, OSError, EOFError) as error:
        objects = "allow_pickle" in str(error) or "Python objects" in str(error)
        why = "Python objects, which are not unpickled" if objects else f"damaged ({error})"
        raise InputError(f"{name}: not a .npy file of numbers: {why}. Write it again from numbers.") from error


def row_bytes(path: str, key: str) -> bytes:
    """Give one row as the bytes of a .npy file.

    Raises:
        DecodeError: the table or the key is not there, or the table cannot be read.
    """
    import numpy as np

    try:
        row = load_row_table(path).row(key)
    except InputError as error:
        raise DecodeError(key, str(error), "read") from error
    file = io.BytesIO()
    np.save(file, row)
    return file.getvalue()


@lru_cache(maxsize=4)
def _cached(name: str, _mtime_ns: int, _size_bytes: int) -> RowTable:
    path = Path(name)
    try:
        if path.is_dir():
            keys, rows = _of_folder(path)
        elif path.suffix.lower() == ".npz":
            keys, rows = _of_npz(path)
        elif path.suffix.lower() == ".npy":
            keys, rows = _of_npy(path)
        elif path.suffix.lower() == ".parquet":
            keys, rows = _of_parquet(path)
        else:
            raise UnknownNameError("kind of table of vectors", path.suffix or path.name, SUFFIXES)
    except (BindSearchError, ImportError, MemoryError):
        raise
    except Exception as error:  # the readers of foreign formats raise anything on hostile bytes
        raise InputError(f"{path}: cannot be read as a table of vectors: {error}") from error
    return _checked(path, keys, rows)


def _checked(path: Path, keys: list[str], rows: Any) -> RowTable:
    import numpy as np

    if getattr(rows, "ndim", 0) != 2 or rows.dtype.kind not in "iuf" or not rows.size:
        shape, kind = getattr(rows, "shape", None), getattr(rows, "dtype", type(rows).__name__)
        raise InputError(f"{path}: expected vectors of one length, (n, F) numbers, got shape {shape} of {kind}.")
    if len(keys) != len(rows):
        raise InputError(f"{path}: {len(rows)} vectors, but {len(keys)} keys.")
    values = np.ascontiguousarray(rows, dtype=np.float32)
    lost = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(lost):
        raise InputError(f"{path}: the vector of {keys[int(lost[0])]!r} is not finite ({len(lost)} such vectors).")
    plain = [key.replace(os.sep, "/").removeprefix("./") for key in keys]
    places = {key: place for place, key in enumerate(plain)}
    if len(places) != len(plain):
        twice = next(key for place, key in enumerate(plain) if places[key] != place)
        raise InputError(f"{path}: the key {twice!r} is there twice.")
    values.setflags(write=False)
    return RowTable(str(path), places, values)


def _of_npz(path: Path) -> tuple[list[str], Any]:
    import numpy as np

    with path.open("rb") as stream, np.lib.npyio.NpzFile(stream) as file:  # np.load takes what is no zip for a pickle
        names = list(file.files)
        if len(names) == 2 and "keys" in names:
            other = next(name for name in names if name != "keys")
            return [str(key) for key in file["keys"].tolist()], file[other]
        arrays = [file[name].reshape(-1) for name in names]
    lengths = sorted({len(array) for array in arrays})
    if len(lengths) > 1:
        raise InputError(f"{path}: vectors of different lengths, {lengths[0]} to {lengths[-1]}.")
    return names, np.stack(arrays) if arrays else np.zeros((0, 0))


def _keys_beside(path: Path) -> Path | None:
    beside = (path.with_suffix(".keys.txt"), path.with_suffix(".txt"))
    return next((each for each in beside if each.is_file()), None)


def _of_npy(path: Path) -> tuple[list[str], Any]:
    beside = _keys_beside(path)
    if beside is None:
        raise InputError(f"{path}: whose vectors are these? Write one key a line to {path.with_suffix('.keys.txt')}.")
    keys = [line for line in beside.read_text(encoding="utf-8").splitlines() if line.strip()]
    return keys, read_npy(path)


def _of_parquet(path: Path) -> tuple[list[str], Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            schema = file.schema_arrow
            keyed = [name for name in KEY_COLUMNS if name in schema.names]
            lists = [field.name for field in schema if _is_list(pa, field.type)]
            if not keyed or len(lists) != 1:
                raise InputError(
                    f"{path}: expected a column {' or '.join(map(repr, KEY_COLUMNS))} and one column of lists of "
                    f"numbers, got {', '.join(schema.names)}."
                )
            table = file.read(columns=[keyed[0], lists[0]], use_threads=False)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: not a Parquet file: {error}") from error
    return [str(key) for key in table.column(keyed[0]).to_pylist()], _matrix(table.column(lists[0]), path)


def _is_list(pa: Any, kind: pa.DataType) -> bool:
    nested: bool = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return nested and bool(pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def _matrix(column: Any, path: Path) -> Any:
    import numpy as np

    whole = column.combine_chunks()
    lengths = {len(row) for row in whole}
    if column.null_count or len(lengths) > 1:
        raise InputError(f"{path}: vectors of different lengths ({min(lengths)} to {max(lengths)}), or missing ones.")
    values = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks])
    return values.reshape(len(column), -1)


def _of_folder(path: Path) -> tuple[list[str], Any]:
    from bindsearch.store import open_store

    if (path / "embeddings.npy").is_file():
        from bindsearch.store.files import read_parquet

        keys = read_parquet(path / "items.parquet", ["key"]).column("key").to_pylist()
        return keys, read_npy(path / "embeddings.npy")
    store = open_store(path)
    return store.items(["key"]).column("key").to_pylist(), store.vectors()
