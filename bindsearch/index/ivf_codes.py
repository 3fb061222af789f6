"""The codes of inverted files, a backend each: `ivf-pq`, `ivf-rabitq`, `ivf-sq8`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bindsearch.index.ivf import Coder, IvfIndex, Learnt
from bindsearch.registry import INDEXES

if TYPE_CHECKING:
    from bindsearch.types import FloatArray, IntArray

_CODEWORDS = 16


class IvfPqIndex(IvfIndex):
    """Product codes of 4 bits for every few columns, scanned in registers (FAISS's PQ fast-scan).

    As one table a query serves all its lists, a list costs a tenth of what it costs with RaBitQ's codes, of the same
    size and with the same neighbours found (docs/adr/0092). Further number of a recipe: code_columns, how many columns
    share 4 bits. Columns are dealt out by their variance, so that each group has as much to say.
    """

    name: ClassVar[str] = "ivf-pq"
    build_numbers: ClassVar[Mapping[str, int]] = {**IvfIndex.build_numbers, "code_columns": 4}

    @classmethod
    def _train(cls, faiss: Any, residuals: FloatArray, numbers: Mapping[str, int]) -> FloatArray:
        """Give (groups, 17, columns): 16 code words of each group, and the columns it is of, -1 for none."""
        dim, width = residuals.shape[1], numbers["code_columns"]
        groups = -(-dim // (2 * width)) * 2  # the kernel takes two at a time
        by_variance = np.argsort(-residuals.var(axis=0), kind="stable")
        columns = np.full(groups * width, -1, dtype=np.int64)
        columns[:dim] = by_variance
        columns = columns.reshape(width, groups).T  # the widest go to groups of their own
        quantizer = _quantizer(faiss, groups, width)
        sample = _take_columns(residuals, columns)
        quantizer.train(np.resize(sample, (max(sample.shape[0], 4 * _CODEWORDS), sample.shape[1])))
        words = faiss.vector_to_array(quantizer.centroids).reshape(groups, _CODEWORDS, width)
        return np.concatenate([words, columns[:, None, :].astype(np.float32)], axis=1)

    @classmethod
    def _code_bytes(cls, learnt: Learnt) -> int:
        return int(learnt.codebook.shape[0]) // 2

    def _queries_for(self, queries: FloatArray) -> FloatArray:
        return _take_columns(queries, _columns(self._learnt))

    @classmethod
    def _coder(cls, faiss: Any, learnt: Learnt) -> Coder:
        groups = learnt.codebook.shape[0]

        def plain(coarse: Any, lists: int) -> Any:
            index = faiss.IndexIVFPQ(coarse, coarse.d, lists, groups, 4, faiss.METRIC_INNER_PRODUCT)
            faiss.copy_array_to_vector(_words(learnt), index.pq.centroids)
            return index

        columns = _columns(learnt)
        return _FaissCoder(faiss, _take_columns(learnt.means, columns), plain, faiss.IndexIVFPQFastScan, columns)

    @classmethod
    def _searcher(cls, faiss: Any, learnt: Learnt) -> tuple[Any, tuple[Any, ...]]:
        groups, _, width = learnt.codebook.shape
        coarse = faiss.IndexFlatIP(groups * width)  # stays empty: lists are chosen by `NearCentroids`
        lists = learnt.directions.shape[0]
        index = faiss.IndexIVFPQFastScan(
            coarse, groups * width, lists, groups, 4, faiss.METRIC_INNER_PRODUCT, cls.block_rows
        )
        faiss.copy_array_to_vector(_words(learnt), index.pq.centroids)
        index.is_trained = index.by_residual = True
        return index, (coarse,)


class IvfRabitqIndex(IvfIndex):
    """RaBitQ's codes: a sign a column and two numbers a row, scanned in registers (FAISS's fast-scan).

    Source: Gao and Long, RaBitQ, SIGMOD 2024.
    """

    name: ClassVar[str] = "ivf-rabitq"

    @classmethod
    def _code_bytes(cls, learnt: Learnt) -> int:
        return -(-int(learnt.directions.shape[1]) // 8) + 8

    @classmethod
    def _coder(cls, faiss: Any, learnt: Learnt) -> Coder:
        def plain(coarse: Any, lists: int) -> Any:
            return faiss.IndexIVFRaBitQ(coarse, coarse.d, lists, faiss.METRIC_INNER_PRODUCT)

        return _FaissCoder(faiss, learnt.means, plain, faiss.IndexIVFRaBitQFastScan)

    @classmethod
    def _searcher(cls, faiss: Any, learnt: Learnt) -> tuple[Any, tuple[Any, ...]]:
        lists, dim = learnt.directions.shape
        coarse = faiss.IndexFlatIP(dim)
        coarse.add(learnt.means)
        index = faiss.IndexIVFRaBitQFastScan(coarse, dim, lists, faiss.METRIC_INNER_PRODUCT, cls.block_rows, True)
        index.is_trained = True
        return index, (coarse,)

    def _parameters(self, faiss: Any, probe: int) -> Any:
        parameters = faiss.IVFRaBitQSearchParameters()
        parameters.nprobe, parameters.qb = probe, 8
        return parameters


class IvfSq8Index(IvfIndex):
    """A byte a column, of what a row differs from its list's mean (FAISS's scalar quantizer)."""

    name: ClassVar[str] = "ivf-sq8"
    block_rows: ClassVar[int] = 1
    settings: ClassVar[Mapping[str, int]] = {**IvfIndex.settings, "rerank": 40}

    @classmethod
    def _train(cls, faiss: Any, residuals: FloatArray, numbers: Mapping[str, int]) -> FloatArray:  # noqa: ARG003
        quantizer = faiss.ScalarQuantizer(residuals.shape[1], faiss.ScalarQuantizer.QT_8bit)
        quantizer.train(residuals)
        return np.asarray(faiss.vector_to_array(quantizer.trained)).reshape(1, 2, -1)

    @classmethod
    def _code_bytes(cls, learnt: Learnt) -> int:
        return int(learnt.directions.shape[1])

    @classmethod
    def _coder(cls, faiss: Any, learnt: Learnt) -> Coder:
        quantizer = faiss.ScalarQuantizer(learnt.directions.shape[1], faiss.ScalarQuantizer.QT_8bit)
        faiss.copy_array_to_vector(_words(learnt), quantizer.trained)
        return _Sq8Coder(learnt.means, quantizer)

    @classmethod
    def _searcher(cls, faiss: Any, learnt: Learnt) -> tuple[Any, tuple[Any, ...]]:
        lists, dim = learnt.directions.shape
        coarse = faiss.IndexFlatIP(dim)
        coarse.add(learnt.means)
        kind = faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexIVFScalarQuantizer(coarse, dim, lists, kind, faiss.METRIC_INNER_PRODUCT, True)
        faiss.copy_array_to_vector(_words(learnt), index.sq.trained)
        index.is_trained = True
        return index, (coarse,)


class _Sq8Coder(Coder):
    def __init__(self, means: FloatArray, quantizer: Any) -> None:
        self._means, self._quantizer = means, quantizer

    def __call__(self, block: FloatArray, numbers: IntArray, sizes: IntArray) -> Iterator[bytes]:
        """See `Coder`."""
        codes = self._quantizer.compute_codes(block - np.repeat(self._means[numbers], sizes, axis=0))
        start = 0
        for size in sizes.tolist():
            yield codes[start : start + size].tobytes()
            start += size


class _FaissCoder(Coder):
    """Codes a block by a small FAISS index of its lists alone, and takes their packed bytes out of it."""

    def __init__(self, faiss: Any, means: FloatArray, plain: Any, packed: Any, columns: IntArray | None = None) -> None:
        """Make a coder.

        Args:
            faiss: the module.
            means: (lists, d) float32, of the columns that are coded. Not modified.
            plain: makes a FAISS index of so many lists, from its coarse quantizer.
            packed: makes the fast-scan index of it.
            columns: of a row that are coded, in order; None: all as they stand.
        """
        self._faiss, self._means, self._plain, self._packed, self._columns = faiss, means, plain, packed, columns

    def __call__(self, block: FloatArray, numbers: IntArray, sizes: IntArray) -> Iterator[bytes]:
        """See `Coder`."""
        faiss = self._faiss
        rows = np.ascontiguousarray(block if self._columns is None else _take_columns(block, self._columns))
        nearest = np.repeat(np.arange(numbers.size, dtype=np.int64), sizes)
        coarse = faiss.IndexFlatIP(rows.shape[1])
        coarse.add(self._means[numbers])
        plain = self._plain(coarse, numbers.size)
        plain.is_trained = True
        plain.add_core(rows.shape[0], faiss.swig_ptr(rows), None, faiss.swig_ptr(nearest))
        packed = self._packed(plain)
        lists = faiss.downcast_InvertedLists(packed.invlists)
        for number in range(numbers.size):
            count = -(-lists.list_size(number) // lists.n_per_block) * lists.block_size
            yield faiss.rev_swig_ptr(lists.get_codes(number), count).tobytes() if count else b""


def _quantizer(faiss: Any, groups: int, width: int) -> Any:
    quantizer = faiss.ProductQuantizer(groups * width, groups, 4)
    quantizer.cp.min_points_per_centroid = 1  # fewer rows than it likes are no reason to write to stderr
    return quantizer


def _columns(learnt: Learnt) -> IntArray:
    """Give the columns that product codes are of, (groups, width) int64, -1 for none."""
    return np.asarray(learnt.codebook[:, _CODEWORDS, :], dtype=np.int64)


def _words(learnt: Learnt) -> FloatArray:
    """Give what a FAISS quantizer was trained to, as one row of numbers."""
    return np.ascontiguousarray(learnt.codebook[:, :_CODEWORDS]).ravel()


def _take_columns(vectors: FloatArray, columns: IntArray) -> FloatArray:
    """Give the columns of groups one after the other, zeros for -1: (m, groups * width) float32."""
    flat = columns.ravel()
    taken = np.take(vectors, np.maximum(flat, 0), axis=1)
    taken[:, flat < 0] = 0
    return taken


for _backend in (IvfPqIndex, IvfRabitqIndex, IvfSq8Index):
    INDEXES.register(_backend.name, _backend)
