"""Decoded arrays go from a worker to its parent through memory that both see; the link carries only where they lie.

The memory has no name and belongs to the two processes alone (memfd): it is gone when both are, however they end. A
worker writes pieces to slots in turn; the parent copies a piece out as soon as it hears of it, and counts it. Where no
slot is free, where a piece is larger than a slot, or on systems without memfd, arrays go over the link: nobody ever
waits for a slot.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bindsearch.embed.decoding import Decoded, Outcome

if TYPE_CHECKING:
    import numpy as np

SLOT_BYTES = 24 << 20
"""Of one slot; pages that no piece has reached take no memory."""
SLOTS = 3
_HEAD_BYTES = 4096  # the parent's count of pieces taken
_ALIGNMENT = 64
_SMALLEST_BYTES = 4096  # below this, a link is as quick

Place = tuple[int, str, tuple[int, ...]]
"""Offset in a slot, dtype, shape."""


@dataclass(frozen=True)
class Piece:
    """Outcomes on their way to the parent.

    Attributes:
        outcomes: in order; with a slot, their arrays are empty and lie there.
        slot: number of the slot, or -1: nothing lies anywhere else.
        nbytes: how much of the slot is used.
        places: of each outcome's arrays.
    """

    outcomes: Sequence[Outcome]
    slot: int = -1
    nbytes: int = 0
    places: Sequence[Sequence[Place]] = ()


class Arena:
    """The shared memory of one worker and its parent, seen from either side.

    Args:
        descriptor: of the memory; `make_memory` gives one. Stays the caller's.
    """

    def __init__(self, descriptor: int) -> None:
        import numpy as np

        self._map = mmap.mmap(descriptor, _HEAD_BYTES + SLOTS * SLOT_BYTES)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._taken = self._bytes[:8].view(np.uint64)  # written by the parent alone, eight bytes at once
        self._put = 0

    def pack(self, outcomes: Sequence[Outcome]) -> Piece:
        """Lay the arrays of outcomes in the next slot, if it is free and large enough; in the worker."""
        import numpy as np

        places: list[list[Place]] = []
        end = 0
        for outcome in outcomes:
            arrays = outcome.arrays if isinstance(outcome, Decoded) else ()
            row: list[Place] = []
            for array in arrays:
                row.append((end, array.dtype.str, array.shape))
                end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
            places.append(row)
        if not _SMALLEST_BYTES <= end <= SLOT_BYTES or self._put - int(self._taken[0]) >= SLOTS:
            return Piece(outcomes)
        slot = self._put % SLOTS
        start = _HEAD_BYTES + slot * SLOT_BYTES
        bare: list[Outcome] = []
        for outcome, row in zip(outcomes, places, strict=True):
            if not isinstance(outcome, Decoded):
                bare.append(outcome)
                continue
            for array, (offset, _, shape) in zip(outcome.arrays, row, strict=True):
                room = self._bytes[start + offset : start + offset + array.nbytes]
                np.copyto(room.view(array.dtype).reshape(shape), array)
            bare.append(replace(outcome, arrays=()))
        self._put += 1
        return Piece(bare, slot, end, places)

    def unpack(self, piece: Piece) -> Sequence[Outcome]:
        """Copy a piece's arrays out of its slot, which is free from then on; in the parent."""
        if piece.slot < 0:
            return piece.outcomes
        start = _HEAD_BYTES + piece.slot * SLOT_BYTES
        copied = self._bytes[start : start + piece.nbytes].copy()
        self._taken += 1
        whole: list[Outcome] = []
        for outcome, row in zip(piece.outcomes, piece.places, strict=True):
            if isinstance(outcome, Decoded):
                outcome = replace(outcome, arrays=tuple(_array_at(copied, place) for place in row))
            whole.append(outcome)
        return whole


def _array_at(data: np.ndarray, place: Place) -> np.ndarray:
    import numpy as np

    offset, dtype, shape = place
    count = 1
    for size in shape:
        count *= size
    found: np.ndarray = np.frombuffer(data, np.dtype(dtype), count, offset).reshape(shape)
    return found


def make_memory() -> int | None:
    """Make memory that has no name; its descriptor is the caller's to close. None where the system has none."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        descriptor = os.memfd_create("bindsearch-arrays")
    except OSError:
        return None
    try:
        os.ftruncate(descriptor, _HEAD_BYTES + SLOTS * SLOT_BYTES)
    except OSError:  # a limit on the size of files counts here too
        os.close(descriptor)
        return None
    return descriptor
