"""The codes of inverted files, a backend each: `ivf-pq`, `ivf-rabitq`, `ivf-sq8`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bindsearch.errors import InputError
from bindsearch.index.ivf import Coder, IvfIndex, Learnt, Sample
from bindsearch.index.rotation import Rotation, find_directions, group_widths
from bindsearch.registry import INDEXES

if TYPE_CHECKING:
    from bindsearch.types import FloatArray, IntArray

_CODEWORDS = 16
_MANY_COLUMNS = 768
_WIDTHS = (1, 2, 4, 8, 12)
"""Columns of a group that FAISS has kernels for; more are padded to these."""


def code_groups(dim: int, code_columns: int = 0) -> int:
    """Give the number of groups of columns of a product code: an even one, as the kernel takes two at a time.

    Args:
        dim: columns of the rows.
        code_columns: columns a group, on the average; 0: 4, and 6 where there are many, most of which hardly matter.
    """
    return -(-dim // (2 * (code_columns or (6 if dim >= _MANY_COLUMNS else 4)))) * 2


class IvfPqIndex(IvfIndex):
    """Product codes of 4 bits, scanned in registers (FAISS's PQ fast-scan).

    As one table a query serves all its lists, a list costs a tenth of what it costs with RaBitQ's codes, of the same
    size and with the same neighbours found (docs/adr/0092). What a row differs by from its list's mean is seen along
    directions: where queries come from, if that is known, and where rows differ most, 4 bits each; those that matter
    less share 4 bits (`rotation.py`, docs/adr/0116). Further number of a recipe: code_columns, how many columns have 4
    bits, on the average; 0: `code_groups`.
    """

    name: ClassVar[str] = "ivf-pq"
    build_numbers: ClassVar[Mapping[str, int]] = {**IvfIndex.build_numbers, "code_columns": 0}
    asks: ClassVar[bool] = True

    @classmethod
    def _learn(cls, faiss: Any, learnt: Learnt, sample: Sample, numbers: Mapping[str, int]) -> Learnt:
        """See `IvfIndex._learn`: a codebook of (groups, 17, width), 16 words a group and its columns, -1 for none."""
        dim = sample.rows.shape[1]
        groups = code_groups(dim, numbers["code_columns"])
        directions, weights, alone = find_directions(sample.rows, sample.residuals, sample.asking, groups // 2)
        learnt = replace(learnt, rotation=Rotation.of(directions))
        columns = _dealt(group_widths(weights, min(groups, dim), alone), groups)
        quantizer = _quantizer(faiss, groups, columns.shape[1])
        dealt = _take_columns(learnt.rotation(sample.residuals), columns)
        quantizer.train(np.resize(dealt, (max(dealt.shape[0], 4 * _CODEWORDS), dealt.shape[1])))
        words = faiss.vector_to_array(quantizer.centroids).reshape(groups, _CODEWORDS, columns.shape[1])
        named = np.where(columns < 0, -1, columns + dim)[:, None, :].astype(np.float32)
        return replace(learnt, codebook=np.concatenate([words, named], axis=1))

    @classmethod
    def _code_bytes(cls, learnt: Learnt) -> int:
        return int(learnt.codebook.shape[0]) // 2

    def _queries_for(self, queries: FloatArray) -> FloatArray:
        return _take_columns(self._learnt.rotation(queries), _columns(self._learnt))

    @classmethod
    def _coder(cls, faiss: Any, learnt: Learnt) -> Coder:
        groups, columns = learnt.codebook.shape[0], _columns(learnt)

        def plain(coarse: Any, lists: int) -> Any:
            index = faiss.IndexIVFPQ(coarse, coarse.d, lists, groups, 4, faiss.METRIC_INNER_PRODUCT)
            faiss.copy_array_to_vector(_words(learnt), index.pq.centroids)
            return index

        def view(rows: FloatArray) -> FloatArray:
            return _take_columns(learnt.rotation(rows), columns)

        return _FaissCoder(faiss, learnt.means, plain, faiss.IndexIVFPQFastScan, view)

    @classmethod
    def _searcher(cls, faiss: Any, learnt: Learnt) -> tuple[Any, tuple[Any, ...]]:
        groups, _, width = learnt.codebook.shape
        columns, most = _columns(learnt), learnt.directions.shape[1]
        if columns.size and not -1 <= int(columns.min()) <= int(columns.max()) < most:
            raise InputError(
                f"codebook.npy is of columns up to {int(columns.max())}, rows have {most} columns: "
                "it belongs to another rotation, or an older version. Build the index again."
            )
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
    def _learn(cls, faiss: Any, learnt: Learnt, sample: Sample, numbers: Mapping[str, int]) -> Learnt:  # noqa: ARG003
        quantizer = faiss.ScalarQuantizer(sample.residuals.shape[1], faiss.ScalarQuantizer.QT_8bit)
        quantizer.train(sample.residuals)
        return replace(learnt, codebook=np.asarray(faiss.vector_to_array(quantizer.trained)).reshape(1, 2, -1))

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

    def __init__(
        self,
        faiss: Any,
        means: FloatArray,
        plain: Any,
        packed: Any,
        view: Callable[[FloatArray], FloatArray] = np.ascontiguousarray,
    ) -> None:
        """Make a coder.

        Args:
            faiss: the module.
            means: (lists, d) float32. Not modified.
            plain: makes a FAISS index of so many lists, from its coarse quantizer.
            packed: makes the fast-scan index of it.
            view: brings rows and means into the columns that are coded; linear, C-contiguous.
        """
        self._faiss, self._means, self._plain, self._packed, self._view = faiss, means, plain, packed, view

    def __call__(self, block: FloatArray, numbers: IntArray, sizes: IntArray) -> Iterator[bytes]:
        """See `Coder`."""
        faiss = self._faiss
        rows, means = self._view(block), self._view(self._means[numbers])
        nearest = np.repeat(np.arange(numbers.size, dtype=np.int64), sizes)
        coarse = faiss.IndexFlatIP(rows.shape[1])
        coarse.add(means)
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


def _dealt(widths: IntArray, groups: int) -> IntArray:
    """Deal out rotated columns to groups, one after the other: (groups, width) int64, -1 for none."""
    widest = int(widths.max())
    columns = np.full((groups, next((each for each in _WIDTHS if each >= widest), widest)), -1, dtype=np.int64)
    for group, (end, width) in enumerate(zip(np.cumsum(widths).tolist(), widths.tolist(), strict=True)):
        columns[group, :width] = np.arange(end - width, end)
    return columns


def _columns(learnt: Learnt) -> IntArray:
    """Give the columns that product codes are of, (groups, width) int64, -1 for none.

    In the codebook those of rotated rows are counted from d on, so that it is of no use without its rotation.
    """
    named = learnt.codebook[:, _CODEWORDS, :].astype(np.int64)
    return np.where(named == -1, -1, named - learnt.rotation.scales.size)


def _words(learnt: Learnt) -> FloatArray:
    """Give what a FAISS quantizer was trained to, as one row of numbers."""
    return np.ascontiguousarray(learnt.codebook[:, :_CODEWORDS]).ravel()


def _take_columns(vectors: FloatArray, columns: IntArray) -> FloatArray:
    """Give the columns of groups one after the other, zeros for -1: (m, groups * width) float32."""
    padded = np.zeros((vectors.shape[0], vectors.shape[1] + 1), dtype=np.float32)
    padded[:, :-1] = vectors
    taken: FloatArray = np.take(padded, columns.ravel(), axis=1, mode="wrap")  # -1 is the last column, of zeros
    return taken


for _backend in (IvfPqIndex, IvfRabitqIndex, IvfSq8Index):
    INDEXES.register(_backend.name, _backend)
