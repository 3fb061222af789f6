"""The lists of an inverted file on disk, read in place by FAISS.

FAISS reads packed lists of its own files into memory; its OnDiskInvertedLists maps any file whose lists it is told the
places of. lists.bin holds, a list after the other: its codes as FAISS's kernel packs them, then the positions of its
rows, int64. Rows are sorted by list, so that a position is a row of vectors.npy. Opening takes a millisecond and no
memory; nothing of the file is parsed (docs/adr/0090).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from bindsearch.errors import InputError

if TYPE_CHECKING:
    from bindsearch.types import IntArray

_ID_BYTES = 8


@dataclass(frozen=True)
class ListLayout:
    """Where the lists of a file lie.

    Attributes:
        sizes: (lists,) int64 rows of each list.
        code_bytes: of one row.
        block_rows: rows that the kernel takes together: each list is filled up to a multiple of it.
    """

    sizes: IntArray
    code_bytes: int
    block_rows: int

    @cached_property
    def capacities(self) -> IntArray:
        """(lists,) int64 rows of each list with what it is filled up by."""
        return -(-self.sizes // self.block_rows) * self.block_rows

    @cached_property
    def starts(self) -> IntArray:
        """(lists,) int64 position of the first row of each list."""
        return np.cumsum(self.sizes) - self.sizes

    @property
    def total_bytes(self) -> int:
        """Size of the file."""
        return int(self.capacities.sum()) * (self.code_bytes + _ID_BYTES)

    def write_places(self, stream: BinaryIO, number: int) -> None:
        """Append the positions of a list, after its capacities[number] * code_bytes bytes of packed codes."""
        size, capacity = int(self.sizes[number]), int(self.capacities[number])
        places = np.full(capacity, -1, dtype=np.int64)
        places[:size] = np.arange(size) + int(self.starts[number])
        stream.write(places.data)

    def open(self, faiss: Any, path: Path) -> Any:
        """Map a file as FAISS lists; keep the result as long as an index uses it.

        Raises:
            FileNotFoundError: it is gone.
            InputError: it has another size than the lists need; both are named.
        """
        size = path.stat().st_size
        if size != self.total_bytes:
            raise InputError(f"{path}: {size} bytes, its lists need {self.total_bytes}. Build the index again.")
        lists = faiss.OnDiskInvertedLists()
        lists.nlist, lists.code_size = self.sizes.size, self.code_bytes
        lists.filename, lists.read_only, lists.totsize = str(path), True, size
        lists.prefetch_nthread = 0
        lists.lists.resize(self.sizes.size)
        bytes_each = self.capacities * (self.code_bytes + _ID_BYTES)
        # OnDiskOneList is (size, capacity, offset), three size_t; set one by one they would take a list 4 us
        record = np.stack([self.sizes, self.capacities, np.cumsum(bytes_each) - bytes_each], axis=1).astype(np.uint64)
        ctypes.memmove(int(lists.lists.data().this), record.ctypes.data, record.nbytes)
        if size:
            lists.do_mmap()
        return lists
