"""Arrays in files: .npy, HDF5, and single-channel PNG and TIFF, read without running or following anything in them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bindsearch.errors import DecodeError, InputError
from bindsearch.modalities.image import open_picture
from bindsearch.sources import Source, describe_head

if TYPE_CHECKING:
    import numpy as np

MAX_VALUES = 100_000_000
"""Entries of an array above which it is not read."""

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_NPY_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True)
class FileArray:
    """An array as it stands in a file.

    Attributes:
        array: of the file's own dtype.
        kind: "npy", "hdf5", "png", "tiff", "memory", or another picture format.
        attributes: HDF5 attributes of the dataset and the file; the picture's mode.
    """

    array: np.ndarray
    kind: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


def read_array(
    source: Source,
    limit_bytes: int,
    datasets: Sequence[str],
    index: int | None = None,
    formats: tuple[str, ...] = (),
) -> FileArray:
    """Read one array from whatever the bytes say that it is.

    Args:
        source: a file, bytes, an array or a picture. Not modified.
        limit_bytes: size of the file above which it is not read.
        datasets: HDF5 dataset names to look for, the first that exists wins; if none does, the file's only dataset.
        index: which entry along the first axis of a dataset that holds many; None takes all of it.
        formats: Pillow's names of picture formats that are read too.

    Raises:
        DecodeError: no such file, too large, damaged, pickled objects, or links to other files.
    """
    if source.kind == "value":
        return _of_value(source)
    with source.open() as file:
        head = file.read(1024)
    if not head:
        raise DecodeError(source.name, "is empty")
    if head.startswith(_HDF5_MAGIC):
        return read_hdf5(source, limit_bytes, datasets, index)
    data = source.read_bytes(limit_bytes)
    if head.startswith(_NPY_MAGIC):
        return FileArray(read_npy(data, source.name), "npy")
    if formats:
        return _read_picture(data, source.name, formats)
    raise DecodeError(source.name, f"neither .npy nor HDF5: the bytes look like {describe_head(head)}")


def read_npy(data: bytes, name: str) -> np.ndarray:
    """Read a .npy file of plain numbers.

    Raises:
        DecodeError: damaged, cut short, too large, or holding Python objects, which are never unpickled.
    """
    import numpy as np

    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
    except (ValueError, OSError) as error:
        raise DecodeError(name, f"damaged .npy header: {error}") from error
    if dtype.hasobject:
        raise DecodeError(
            name, "holds Python objects; these are not unpickled. Save numbers: np.save(f, x.astype(float))"
        )
    if dtype.kind not in "iufb":
        raise DecodeError(name, f"holds {dtype}, expected numbers")
    _check_count(name, shape)
    wanted = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if len(data) - file.tell() < wanted:
        raise DecodeError(name, f"cut short: {wanted} bytes of numbers announced, {len(data) - file.tell()} are there")
    array: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    return array


def read_hdf5(source: Source, limit_bytes: int, datasets: Sequence[str], index: int | None) -> FileArray:
    """Read one dataset of an HDF5 file; see `read_array`.

    External links, external storage and virtual datasets are refused: they read other files.
    """
    import h5py

    known = source.size
    if known is not None and known > limit_bytes and index is None:
        raise DecodeError(source.name, f"{known} bytes, over the limit of {limit_bytes}", "read")
    with source.open() as file, h5py.File(file, "r") as root:
        dataset = _find_dataset(root, datasets, source.name)
        if dataset.is_virtual or dataset.external:
            raise DecodeError(source.name, f"dataset {dataset.name} lies in other files, which are not read")
        if dataset.dtype.kind not in "iufb":
            raise DecodeError(source.name, f"dataset {dataset.name} holds {dataset.dtype}, expected numbers")
        shape = dataset.shape if index is None else dataset.shape[1:]
        _check_count(source.name, shape or ())
        if index is not None and not 0 <= index < dataset.shape[0]:
            raise InputError(f"{source.name}: index {index}, but {dataset.name} has {dataset.shape[0]} entries.")
        attributes = {**_attributes(root), **_attributes(dataset), "dataset": dataset.name}
        return FileArray(dataset[()] if index is None else dataset[index], "hdf5", attributes)


def _find_dataset(root: Any, names: Sequence[str], source_name: str) -> Any:
    import h5py

    for name in names:
        link = root.get(name, getlink=True) if name in root.keys() else None  # noqa: SIM118 - a group's `in` follows links
        if isinstance(link, h5py.ExternalLink):
            raise DecodeError(source_name, f"{name} is a link to another file, which is not read")
        if link is not None and isinstance(root.get(name), h5py.Dataset):
            return root[name]
    local = [key for key in root.keys() if not isinstance(root.get(key, getlink=True), h5py.ExternalLink)]  # noqa: SIM118
    found = [root[key] for key in local if isinstance(root.get(key), h5py.Dataset)]
    if len(found) == 1:
        return found[0]
    there = ", ".join(local[:8]) or "nothing"
    raise DecodeError(source_name, f"no dataset named {' or '.join(names)} at the top; there is {there}")


def _attributes(thing: Any) -> dict[str, Any]:
    values = {}
    for key in list(thing.attrs)[:64]:
        value = thing.attrs[key]
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        values[str(key)] = value.tolist() if hasattr(value, "tolist") else value
    return values


def _of_value(source: Source) -> FileArray:
    import numpy as np

    if hasattr(source.value, "dtype"):
        array = np.asarray(source.value)
        if array.dtype.kind not in "iufb":
            raise DecodeError(source.name, f"holds {array.dtype}, expected numbers")
        return FileArray(array, "memory")
    return FileArray(np.asarray(source.value), "memory", {"mode": source.value.mode})


def _read_picture(data: bytes, name: str, formats: tuple[str, ...]) -> FileArray:
    import numpy as np

    with open_picture(data, name, formats) as picture:
        _check_count(name, picture.size)
        picture.load()
        if picture.mode in ("P", "PA"):
            raise DecodeError(name, "is a palette picture: its numbers are colours' places, not values")
        return FileArray(np.asarray(picture), str(picture.format).lower(), {"mode": picture.mode})


def _check_count(name: str, shape: Sequence[int]) -> None:
    count = 1
    for size in shape:
        count *= int(size)
    if count > MAX_VALUES:
        raise DecodeError(name, f"{'x'.join(map(str, shape))} values, over the limit of {MAX_VALUES}")
    if count == 0:
        raise DecodeError(name, f"holds no values (shape {tuple(shape)})")


def scale_and_crop(grid: np.ndarray, size_px: int) -> np.ndarray:
    """Scale the shorter side (bicubic, antialiased) and cut the centre.

    Args:
        grid: (H, W) float32. Not modified.
        size_px: side of the result.

    Returns:
        (size_px, size_px) float32; values can overshoot at edges.
    """
    import numpy as np
    from PIL import Image

    from bindsearch.modalities.image import crop_offset, resized_size

    picture = Image.fromarray(np.ascontiguousarray(grid, dtype=np.float32))
    width, height = resized_size(*picture.size, size_px)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = crop_offset(width, size_px), crop_offset(height, size_px)
    crop: np.ndarray = np.asarray(picture)[top : top + size_px, left : left + size_px]
    return np.ascontiguousarray(crop)


def check_grid(array: np.ndarray, name: str, max_aspect: float) -> None:
    """Refuse an array that is no picture of one channel.

    Raises:
        DecodeError: naming the shape.
    """
    if array.ndim != 2:
        raise DecodeError(name, f"expected one picture (H, W), got shape {array.shape}; for one of many, set `index`")
    if max(array.shape) > max_aspect * min(array.shape):
        raise DecodeError(name, f"{array.shape[1]}x{array.shape[0]}: one side is over {max_aspect:g} times the other")
