"""Inverted files: rows sorted by the centroid nearest to them; a search looks at the lists of few centroids.

    build   k-means on a sample -> nearest centroid of every row -> rows sorted on disk -> codes of each list
    search  int8 products find the lists to look at -> FAISS scans their codes -> the best of them are scored from rows

The codes are those of one backend each: `ivf-pq` (4-bit codes of few columns), `ivf-rabitq` (a sign a column),
`ivf-sq8` (a byte a column). A code stands for what a row differs from the mean of its list. Files beside the rows:

    centroids.npy     (lists, d) float16, means of the lists
    list_sizes.npy    (lists,) int64
    lists.bin         codes and positions; see list_file.py
    codebook.npy      what the codes mean, where they need it
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Self

import numpy as np

from bindsearch.errors import InputError
from bindsearch.index.base import Progress, no_progress
from bindsearch.index.checks import map_array
from bindsearch.index.faiss_index import load_faiss
from bindsearch.index.kmeans import assign, default_lists, list_means, train_centroids, unit_or_axis
from bindsearch.index.list_file import ListLayout
from bindsearch.index.refined import RefinedIndex, check_numbers, row_selector
from bindsearch.index.small_products import NearCentroids, score_places, to_int8

if TYPE_CHECKING:
    from bindsearch.index.base import BoolArray
    from bindsearch.index.recipe import SearchSettings
    from bindsearch.types import FloatArray, IntArray

_BLOCK_ROWS = 8192
_TRAIN_ROWS = 32768


class IvfIndex(RefinedIndex):
    """An inverted file over rows sorted by list; see `IndexBackend`.

    Numbers of a recipe: nlist (lists; 0: `kmeans.default_lists`), sample (rows a list that k-means sees), rounds.
    Search settings: nprobe (lists looked at), rerank (candidates scored from the rows).

    Attributes:
        block_rows: rows that FAISS's kernel for these codes takes together.
    """

    settings: ClassVar[Mapping[str, int]] = {"nprobe": 32, "rerank": 400}
    build_numbers: ClassVar[Mapping[str, int]] = {"nlist": 0, "sample": 48, "rounds": 8}
    block_rows: ClassVar[int] = 32

    def __init__(self, rows: Any, ids: IntArray, order: IntArray | None = None) -> None:
        """Take over rows; `open` adds the lists."""
        super().__init__(rows, ids, order)
        self._means = np.empty((0, 0), dtype=np.float32)
        self._near: NearCentroids
        self._faiss_index: Any = None
        self._kept: tuple[Any, ...] = ()

    # ---- what the codes are ------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def _train(cls, faiss: Any, residuals: FloatArray, numbers: Mapping[str, int]) -> FloatArray:
        """Learn the codebook from (m, d) float32 residuals; an empty array where the codes need none."""

    @classmethod
    @abstractmethod
    def _coder(cls, faiss: Any, dim: int, means: FloatArray, codebook: FloatArray) -> Coder:
        """Make the coder of rows."""

    @classmethod
    @abstractmethod
    def _searcher(cls, faiss: Any, dim: int, means: FloatArray, codebook: FloatArray) -> tuple[Any, tuple[Any, ...]]:
        """Make a FAISS index without lists, and what must live as long as it."""

    @classmethod
    @abstractmethod
    def _code_bytes(cls, dim: int, codebook: FloatArray) -> int:
        """Give the bytes of a row's code."""

    @classmethod
    def _queries_for(cls, queries: FloatArray, codebook: FloatArray) -> FloatArray:  # noqa: ARG003
        """Bring queries into the columns that codes are of; here they are."""
        return queries

    # ---- building ----------------------------------------------------------------------------------------------------

    @classmethod
    def build_files(cls, folder: Path, build: Mapping[str, Any], progress: Progress = no_progress) -> None:
        """Sort the rows by list and write the lists; see `IndexBackend.build_files`."""
        numbers = check_numbers(cls.name, build, cls.build_numbers)
        faiss = load_faiss()
        rows = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
        sizes = cls._sort_by_list(folder, rows, numbers, progress)
        rows = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
        # as float16 from here on: coding and searching must know the same means
        means = list_means(rows, sizes).astype(np.float16)
        np.save(folder / "centroids.npy", means, allow_pickle=False)
        np.save(folder / "list_sizes.npy", sizes, allow_pickle=False)
        codebook = cls._train(faiss, _residuals(rows, means, sizes), numbers)
        if codebook.size:
            np.save(folder / "codebook.npy", codebook, allow_pickle=False)
        layout = ListLayout(sizes, cls._code_bytes(rows.shape[1], codebook), cls.block_rows)
        coder = cls._coder(faiss, rows.shape[1], means.astype(np.float32), codebook)
        with (folder / "lists.bin").open("wb") as stream:
            _write_lists(stream, rows, layout, coder, progress)

    @classmethod
    def _sort_by_list(cls, folder: Path, rows: Any, numbers: Mapping[str, int], progress: Progress) -> IntArray:
        """Find lists and bring the rows into their order on disk; gives (lists,) int64 sizes."""
        lists = min(rows.shape[0], numbers["nlist"] or default_lists(rows.shape[0]))
        centroids = train_centroids(rows, lists, numbers["sample"], numbers["rounds"], progress)
        nearest = assign(rows, centroids, progress)
        _sort_files(folder, rows, np.argsort(nearest, kind="stable"), progress)
        return np.bincount(nearest, minlength=lists).astype(np.int64)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map the files; see `IndexBackend.open`."""
        index = super().open(folder)
        means = map_array(folder / "centroids.npy", "float16", 2)
        sizes = map_array(folder / "list_sizes.npy", "int64", 1)
        book = folder / "codebook.npy"
        codebook = map_array(book, "float32", 3) if book.exists() else np.empty(0, dtype=np.float32)
        if means.shape != (sizes.size, index.dim) or sizes.min(initial=0) < 0 or sizes.sum() != index.ids.size:
            raise InputError(
                f"{folder}: centroids of shape {means.shape} for {sizes.size} lists of {sizes.sum()} rows, expected "
                f"({sizes.size}, {index.dim}) and {index.ids.size} rows. Build the index again."
            )
        index._attach(load_faiss(), folder, means.astype(np.float32), np.asarray(sizes), codebook)
        return index

    def _attach(self, faiss: Any, folder: Path, means: FloatArray, sizes: IntArray, codebook: FloatArray) -> None:
        layout = ListLayout(sizes, self._code_bytes(self.dim, codebook), self.block_rows)
        lists = layout.open(faiss, folder / "lists.bin")
        index, kept = self._searcher(faiss, self.dim, means, codebook)
        index.replace_invlists(lists, False)
        index.ntotal = int(sizes.sum())
        self._means, self._codebook = means, codebook
        self._near = NearCentroids(unit_or_axis(means))
        self._faiss_index, self._kept = index, (lists, *kept)

    # ---- searching ---------------------------------------------------------------------------------------------------

    def most(self, setting: str) -> int:
        """See `IndexBackend.most`: no more lists can be looked at than there are."""
        return max(1, int(self._means.shape[0])) if setting == "nprobe" else super().most(setting)

    def _candidates(
        self, queries: FloatArray, count: int, mask: BoolArray | None, settings: SearchSettings
    ) -> IntArray:
        """See `RefinedIndex._candidates`. More lists than nprobe are looked at where they would hold too few rows."""
        faiss = load_faiss()
        lists = self._near.count
        probe = min(lists, max(settings.get("nprobe", 1), -(-2 * count * lists // self._count(mask))))
        near = np.sort(self._near.probe(to_int8(queries, one_scale=False), probe), axis=1)
        bias = score_places(self._means, queries, near)
        asked = np.ascontiguousarray(self._queries_for(queries, self._codebook))
        distances = np.empty((queries.shape[0], count), dtype=np.float32)
        places = np.empty((queries.shape[0], count), dtype=np.int64)
        parameters = self._parameters(faiss, probe)
        parameters.sel, _bits = row_selector(faiss, mask)
        self._faiss_index.search_preassigned_c(
            *(queries.shape[0], faiss.swig_ptr(asked), count),
            *(faiss.swig_ptr(near), faiss.swig_ptr(bias)),
            *(faiss.swig_ptr(distances), faiss.swig_ptr(places)),
            *(False, parameters),
        )
        places.sort(axis=1)
        return places

    def _parameters(self, faiss: Any, probe: int) -> Any:
        """Make the parameters of a FAISS search; they belong to one call, so that threads do not meet."""
        return faiss.SearchParametersIVF(nprobe=probe)


class Coder:
    """Codes rows, the lists of a block at a time."""

    def __call__(self, block: FloatArray, numbers: IntArray, sizes: IntArray) -> Iterator[bytes]:
        """Give the packed codes of each list.

        Args:
            block: (m, d) float32 rows of whole lists, in their order. Not modified.
            numbers: (g,) int64 of the lists.
            sizes: (g,) int64 rows of each; their sum is m.
        """
        raise NotImplementedError


def _write_lists(stream: BinaryIO, rows: Any, layout: ListLayout, coder: Coder, progress: Progress) -> None:
    """Code the rows, a block of whole lists or a piece of a large list at a time, and append all lists."""
    starts, sizes = layout.starts, layout.sizes
    for first, last in _groups(sizes):
        start, end = int(starts[first]), int(starts[last - 1] + sizes[last - 1])
        # pieces are whole blocks of the kernel, so that their codes follow each other
        for at in range(start, max(end, start + 1), _BLOCK_ROWS if last - first == 1 else end - start or 1):
            block = np.asarray(rows[at : min(end, at + _BLOCK_ROWS)], dtype=np.float32)
            own = sizes[first:last] if last - first > 1 else np.array([block.shape[0]], dtype=np.int64)
            for number, codes in zip(range(first, last), coder(block, np.arange(first, last), own), strict=True):
                stream.write(codes)
                if last - first > 1 or at + _BLOCK_ROWS >= end:
                    layout.write_places(stream, number)
        progress("encode", end, rows.shape[0])


def _sort_files(folder: Path, rows: Any, order: IntArray, progress: Progress) -> None:
    """Bring vectors.npy and ids.npy into an order of rows, a block at a time, and write table_rows.npy."""
    ids = np.load(folder / "ids.npy", allow_pickle=False)
    np.save(folder / "ids.npy", ids[order], allow_pickle=False)
    small = order.astype(np.int32) if order.size < 2**31 else order
    np.save(folder / "table_rows.npy", small, allow_pickle=False)
    sorted_path = folder / "vectors.sorted"
    with sorted_path.open("wb") as stream:
        header = {"descr": rows.dtype.str, "fortran_order": False, "shape": rows.shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for start in range(0, order.size, _BLOCK_ROWS):
            stream.write(rows[order[start : start + _BLOCK_ROWS]].data)
            progress("sort", min(start + _BLOCK_ROWS, order.size), order.size)
    sorted_path.replace(folder / "vectors.npy")


def _groups(sizes: IntArray) -> Iterator[tuple[int, int]]:
    """Cut lists into groups of about _BLOCK_ROWS rows: (first, one past the last)."""
    first, held = 0, 0
    for number, size in enumerate(sizes.tolist()):
        if held and held + size > _BLOCK_ROWS:
            yield first, number
            first, held = number, 0
        held += size
    if first < sizes.size:
        yield first, int(sizes.size)


def _residuals(rows: Any, means: Any, sizes: IntArray) -> FloatArray:
    """Sample what rows differ by from the mean of their list: (m, d) float32, evenly over all lists."""
    numbers = np.repeat(np.arange(sizes.size), sizes)
    chosen = np.linspace(0, rows.shape[0] - 1, min(_TRAIN_ROWS, rows.shape[0])).astype(np.int64)
    return np.asarray(rows[chosen], dtype=np.float32) - means[numbers[chosen]].astype(np.float32)
