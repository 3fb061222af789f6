"""Inverted files: rows sorted by the centroid nearest to them; a search looks at the lists of few centroids.

    build   k-means on a sample -> nearest centroid of every row -> rows sorted on disk -> codes of each list
    search  int8 products find the lists to look at -> FAISS scans their codes -> the best of them are scored from rows

The codes are those of one backend each: `ivf-pq` (4 bits a direction or several), `ivf-rabitq` (a sign a column),
`ivf-sq8` (a byte a column). A code stands for what a row differs from the mean of its list. Files beside the rows:

    centroids.npy     (lists, d) int8, directions of the means of the lists, and centroid_scales.npy (lists,) float32:
                      the mean of a list is its scale times its direction
    list_sizes.npy    (lists,) int64
    lists.bin         codes and positions; see list_file.py
    codebook.npy      what the codes mean, where they need it
    rotation.npy      (d, d) int8 directions that codes see rows along, where they need them, and rotation_scales.npy
                      (d,) float32; see rotation.py
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Self

import numpy as np

from bindsearch.errors import InputError
from bindsearch.index.base import Progress, no_progress
from bindsearch.index.checks import map_array, read_asking, wide_rows
from bindsearch.index.faiss_index import load_faiss
from bindsearch.index.kmeans import assign, default_lists, list_means, train_centroids, unit_or_axis
from bindsearch.index.list_file import ListLayout
from bindsearch.index.recipe import MARGIN, MARGIN_STEPS, NO_MARGIN
from bindsearch.index.refined import LIVING, RefinedIndex, check_numbers, row_selector
from bindsearch.index.rotation import Rotation
from bindsearch.index.small_products import NearCentroids, to_int8

if TYPE_CHECKING:
    from bindsearch.index.recipe import SearchSettings
    from bindsearch.index.small_products import Int8Array
    from bindsearch.types import BoolArray, FloatArray, IntArray

_BLOCK_ROWS = 8192
_TRAIN_ROWS = 32768


class IvfIndex(RefinedIndex):
    """An inverted file over rows sorted by list; see `IndexBackend`.

    Numbers of a recipe: nlist (lists; 0: `kmeans.default_lists`), sample (rows a list that k-means sees), rounds.
    Search settings: nprobe (most lists looked at), rerank (most candidates scored from the rows), and a margin of each:
    lists whose direction, and candidates whose code, falls short of the query's best list, and of its last wanted
    candidate, by more 10,000ths of a cosine are left out.

    Attributes:
        block_rows: rows that FAISS's kernel for these codes takes together.
    """

    settings: ClassVar[Mapping[str, int]] = {
        "nprobe": 32,
        "rerank": 400,
        "nprobe_margin": NO_MARGIN,
        "rerank_margin": NO_MARGIN,
    }
    build_numbers: ClassVar[Mapping[str, int]] = {"nlist": 0, "sample": 48, "rounds": 8}
    block_rows: ClassVar[int] = 32

    def __init__(self, rows: Any, ids: IntArray, order: IntArray | None = None) -> None:
        """Take over rows; `open` adds the lists."""
        super().__init__(rows, ids, order)
        self._near: NearCentroids
        self._learnt: Learnt
        self._sizes: IntArray
        self._living: tuple[BoolArray, IntArray] | None = None
        self._faiss_index: Any = None
        self._kept: tuple[Any, ...] = ()

    # ---- what the codes are ------------------------------------------------------------------------------------------

    @classmethod
    def _learn(cls, faiss: Any, learnt: Learnt, sample: Sample, numbers: Mapping[str, int]) -> Learnt:  # noqa: ARG003
        """Learn what codes mean from a sample, lists being known already; here codes need nothing."""
        return learnt

    @classmethod
    @abstractmethod
    def _code_bytes(cls, learnt: Learnt) -> int:
        """Give the bytes of a row's code."""

    @classmethod
    @abstractmethod
    def _coder(cls, faiss: Any, learnt: Learnt) -> Coder:
        """Make the coder of rows."""

    @classmethod
    @abstractmethod
    def _searcher(cls, faiss: Any, learnt: Learnt) -> tuple[Any, tuple[Any, ...]]:
        """Make a FAISS index without lists, and what must live as long as it."""

    def _queries_for(self, queries: FloatArray) -> FloatArray:
        """Bring queries into the columns that codes are of; here they are."""
        return queries

    # ---- building ----------------------------------------------------------------------------------------------------

    @classmethod
    def check_build(cls, build: Mapping[str, Any]) -> None:
        """See `IndexBackend.check_build`."""
        check_numbers(cls.name, build, cls.build_numbers)

    @classmethod
    def build_files(cls, folder: Path, build: Mapping[str, Any], progress: Progress = no_progress) -> None:
        """Sort the rows by list and write the lists; see `IndexBackend.build_files`."""
        numbers = check_numbers(cls.name, build, cls.build_numbers)
        faiss = load_faiss()
        rows = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
        sizes = cls._sort_by_list(folder, rows, numbers, progress)
        rows = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
        directions, scales = _as_int8(list_means(rows, sizes))
        np.save(folder / "centroids.npy", directions, allow_pickle=False)
        np.save(folder / "centroid_scales.npy", scales, allow_pickle=False)
        np.save(folder / "list_sizes.npy", sizes, allow_pickle=False)
        learnt = Learnt(directions, scales)
        learnt = cls._learn(faiss, learnt, _sample(rows, learnt.means, sizes, read_asking(folder)), numbers)
        if learnt.codebook.size:
            np.save(folder / "codebook.npy", learnt.codebook, allow_pickle=False)
        learnt.rotation.save(folder)
        layout = ListLayout(sizes, cls._code_bytes(learnt), cls.block_rows)
        coder = cls._coder(faiss, learnt)
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
        directions = map_array(folder / "centroids.npy", "int8", 2)
        scales = map_array(folder / "centroid_scales.npy", "float32", 1)
        sizes = map_array(folder / "list_sizes.npy", "int64", 1)
        learnt = Learnt(directions, scales, rotation=Rotation.open(folder, index.dim))
        if (book := folder / "codebook.npy").exists():
            learnt = replace(learnt, codebook=map_array(book, "float32", 3))
        good = directions.shape == (sizes.size, index.dim) and scales.shape == sizes.shape
        if not good or sizes.min(initial=0) < 0 or sizes.sum() != index.ids.size:
            raise InputError(
                f"{folder}: centroids of shape {directions.shape}, {scales.size} scales, {sizes.size} lists of "
                f"{sizes.sum()} rows, expected ({sizes.size}, {index.dim}) and {index.ids.size} rows. "
                "Build the index again."
            )
        faiss = load_faiss()
        layout = ListLayout(np.asarray(sizes), cls._code_bytes(learnt), cls.block_rows)
        lists = layout.open(faiss, folder / "lists.bin")
        searcher, kept = cls._searcher(faiss, learnt)
        searcher.replace_invlists(lists, False)
        searcher.ntotal = index.ids.size
        index._near, index._learnt, index._sizes = NearCentroids(directions), learnt, np.asarray(sizes)
        index._faiss_index, index._kept = searcher, (lists, *kept)
        return index

    # ---- searching ---------------------------------------------------------------------------------------------------

    def most(self, setting: str) -> int:
        """See `IndexBackend.most`: no more lists can be looked at than there are."""
        if setting.endswith(MARGIN):
            return NO_MARGIN
        return self._near.count if setting == "nprobe" and self._faiss_index is not None else super().most(setting)

    def _candidates(
        self, queries: FloatArray, count: int, mask: BoolArray | None, settings: SearchSettings
    ) -> tuple[IntArray, FloatArray | None]:
        """See `RefinedIndex._candidates`. More lists than nprobe are looked at where they would hold too few rows."""
        faiss = load_faiss()
        lists = self._near.count
        probe = min(lists, max(settings.get("nprobe", 1), -(-2 * count * lists // self._count(mask))))
        codes, query_scales = to_int8(queries, one_scale=False)
        margin, margins = settings.get("nprobe_margin", NO_MARGIN), None
        if margin < NO_MARGIN and 2 * self._count(mask) >= self.ids.shape[0]:
            # where few rows are allowed, answers lie farther out than those that the margin was tuned on
            margins = np.float32(margin / MARGIN_STEPS * self._learnt.length) / query_scales
        near, products = self._near.probe(codes, probe, margins)
        bias = products.astype(np.float32)
        bias *= query_scales[:, None] * self._learnt.scales[near]
        asked = np.ascontiguousarray(self._queries_for(queries))
        distances = np.empty((queries.shape[0], count), dtype=np.float32)
        places = np.empty((queries.shape[0], count), dtype=np.int64)
        parameters = self._parameters(faiss, near.shape[1])
        parameters.sel, _bits = row_selector(faiss, mask)
        self._faiss_index.search_preassigned_c(
            *(queries.shape[0], faiss.swig_ptr(asked), count),
            *(faiss.swig_ptr(near), faiss.swig_ptr(bias)),
            *(faiss.swig_ptr(distances), faiss.swig_ptr(places)),
            *(False, parameters),
        )
        if mask is not None and mask is self._alive and probe < lists:
            stored, living = self._list_rows(mask)
            looked = near >= 0
            share = np.where(looked, living[near], 0).sum(axis=1) / np.where(looked, stored[near], 0).sum(axis=1).clip(
                1
            )
            places[share < LIVING * self._count(mask) / mask.size] = -1
        return places, distances

    def _list_rows(self, alive: BoolArray) -> tuple[IntArray, IntArray]:
        """Count the rows of each list, and those that are not removed: (lists,) int64 each."""
        if self._living is None or self._living[0] is not alive:
            upto = np.concatenate([[0], np.cumsum(alive, dtype=np.int64)])
            ends = np.cumsum(self._sizes)
            self._living = alive, upto[ends] - upto[ends - self._sizes]
        return self._sizes, self._living[1]

    def _parameters(self, faiss: Any, probe: int) -> Any:
        """Make the parameters of a FAISS search; they belong to one call, so that threads do not meet."""
        return faiss.SearchParametersIVF(nprobe=probe)


@dataclass(frozen=True)
class Learnt:
    """What lists and codes are relative to.

    Attributes:
        directions: (lists, d) int8, all of one length.
        scales: (lists,) float32; scale times direction is the mean of a list.
        codebook: what the codes mean, as the backend lays it out; empty where they need none.
        rotation: of the columns before they are coded.
    """

    directions: Int8Array
    scales: FloatArray
    codebook: FloatArray = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    rotation: Rotation = field(default_factory=Rotation)

    @cached_property
    def length(self) -> float:
        """The length of the directions; a product with one, over it, is a cosine."""
        return float(np.linalg.norm(self.directions[:1].astype(np.float64))) or 1.0

    @property
    def means(self) -> FloatArray:
        """(lists, d) float32 means of the lists, as coding and searching know them."""
        means: FloatArray = self.directions.astype(np.float32)
        means *= self.scales[:, None]
        return means


@dataclass(frozen=True)
class Sample:
    """What codes are learnt from.

    Attributes:
        rows: (m, d) float32.
        residuals: (m, d) float32, what each differs by from the mean of its list.
        asking: (j, d) float32 directions that queries come from, or None.
    """

    rows: FloatArray
    residuals: FloatArray
    asking: FloatArray | None


class Coder(ABC):
    """Codes rows, the lists of a block at a time."""

    @abstractmethod
    def __call__(self, block: FloatArray, numbers: IntArray, sizes: IntArray) -> Iterator[bytes]:
        """Give the packed codes of each list.

        Args:
            block: (m, d) float32 rows of whole lists, in their order. Not modified.
            numbers: (g,) int64 of the lists.
            sizes: (g,) int64 rows of each; their sum is m.
        """


def _write_lists(stream: BinaryIO, rows: Any, layout: ListLayout, coder: Coder, progress: Progress) -> None:
    """Code the rows, a block of whole lists or a piece of a large list at a time, and append all lists."""
    starts, sizes = layout.starts, layout.sizes
    for first, last in _groups(sizes):
        start, end = int(starts[first]), int(starts[last - 1] + sizes[last - 1])
        # pieces are whole blocks of the kernel, so that their codes follow each other
        for at in range(start, max(end, start + 1), _BLOCK_ROWS if last - first == 1 else end - start or 1):
            block = wide_rows(rows[at : min(end, at + _BLOCK_ROWS)])
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


def _as_int8(means: FloatArray) -> tuple[Int8Array, FloatArray]:
    """Round the directions of (lists, d) means to int8, all of one length; gives them and (lists,) float32 scales."""
    lengths = np.linalg.norm(means, axis=1).astype(np.float32)
    directions, scales = to_int8(unit_or_axis(means), one_scale=True)
    return directions, lengths * scales


def _sample(rows: Any, means: FloatArray, sizes: IntArray, asking: FloatArray | None) -> Sample:
    """Sample rows evenly over all lists."""
    numbers = np.repeat(np.arange(sizes.size), sizes)
    chosen = np.linspace(0, rows.shape[0] - 1, min(_TRAIN_ROWS, rows.shape[0])).astype(np.int64)
    found: FloatArray = rows[chosen].astype(np.float32)
    return Sample(found, found - means[numbers[chosen]], asking)
