"""Clips of a batch before they are encoded: which of them are equal, and where they lie in memory. Loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from bindsearch.types import IntArray

_SAMPLES = 64
_ALIGNMENT = 64


def distinct(clips: np.ndarray[Any, Any]) -> tuple[IntArray, IntArray | None]:
    """Find clips that are equal byte for byte; a short video's are, and so are blank pictures.

    Args:
        clips: (N, ...). Not modified.

    Returns:
        int64 numbers of the first of each kind, in order, (n,); and for each clip its place among them, (N,), or None
        where all differ.
    """
    count = len(clips)
    flat = clips.reshape(count, -1) if count else clips.reshape(0, 1)
    step = max(1, flat.shape[1] // _SAMPLES)
    alike: dict[bytes, list[int]] = {}
    back = np.empty(count, dtype=np.int64)
    first: list[int] = []
    for number in range(count):
        known = alike.setdefault(flat[number, ::step].tobytes(), [])
        place = next((each for each in known if _same(flat[first[each]], flat[number])), None)
        if place is None:
            place = len(first)
            known.append(place)
            first.append(number)
        back[number] = place
    return np.array(first, dtype=np.int64), None if len(first) == count else back


def _same(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    """Compare bytes: -0.0 is not 0.0 here, and NaN is itself."""
    return bool((np.ascontiguousarray(one).view(np.uint8) == np.ascontiguousarray(other).view(np.uint8)).all())


def aligned(clips: np.ndarray[Any, Any], chosen: IntArray) -> np.ndarray[Any, Any]:
    """Take some clips, in memory that starts at a multiple of 64 bytes.

    Where memory starts may decide how a kernel cuts its loops, and with it the last bit of the result.

    Args:
        clips: (N, ...). Not modified.
        chosen: (n,) int64.

    Returns:
        (n, ...), a view of `clips` where it already is what is wanted.
    """
    whole = len(chosen) == len(clips) and clips.flags.c_contiguous and np.array_equal(chosen, np.arange(len(clips)))
    if whole and clips.flags.writeable and clips.ctypes.data % _ALIGNMENT == 0:
        return clips
    shape = (len(chosen), *clips.shape[1:])
    size = int(np.prod(shape)) * clips.dtype.itemsize
    room = np.empty(size + _ALIGNMENT, dtype=np.uint8)
    begin = -room.ctypes.data % _ALIGNMENT
    out: np.ndarray[Any, Any] = room[begin : begin + size].view(clips.dtype).reshape(shape)
    np.take(clips, chosen, axis=0, out=out)
    return out
