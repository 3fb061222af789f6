"""A graph of near neighbours (HNSW) over a byte a column, its best nodes scored from the rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from bindsearch.errors import InputError
from bindsearch.index.base import Progress, no_progress
from bindsearch.index.faiss_index import load_faiss
from bindsearch.index.refined import LIVING, RefinedIndex, check_numbers, row_selector
from bindsearch.registry import INDEXES

if TYPE_CHECKING:
    from bindsearch.index.recipe import SearchSettings
    from bindsearch.types import BoolArray, FloatArray, IntArray

_BLOCK_ROWS = 8192
_TRAIN_ROWS = 32768


class HnswIndex(RefinedIndex):
    """A navigable graph (FAISS's HNSW); see `IndexBackend`. Its file hnsw.faiss is mapped, codes and links included.

    Numbers of a recipe: M (links a node), efConstruction. Search settings: efSearch (nodes kept in sight), rerank.
    Building is slow and holds codes and links in memory: dim + 8 M bytes a row.

    Source: Malkov and Yashunin, Efficient and robust approximate nearest neighbor search using HNSW graphs, 2018.
    """

    name: ClassVar[str] = "hnsw"
    settings: ClassVar[Mapping[str, int]] = {"efSearch": 64, "rerank": 40}
    build_numbers: ClassVar[Mapping[str, int]] = {"M": 32, "efConstruction": 80}

    def __init__(self, rows: Any, ids: IntArray, order: IntArray | None = None) -> None:
        """Take over rows; `open` adds the graph."""
        super().__init__(rows, ids, order)
        self._graph: Any = None

    @classmethod
    def check_build(cls, build: Mapping[str, Any]) -> None:
        """See `IndexBackend.check_build`. With one link a node the levels of a graph never end, and FAISS crashes."""
        check_numbers(cls.name, build, cls.build_numbers)
        if build.get("M", 2) < 2:
            raise InputError(f"recipe: M of {cls.name!r} expected a whole number from 2 on, got {build['M']}.")

    @classmethod
    def build_files(cls, folder: Path, build: Mapping[str, Any], progress: Progress = no_progress) -> None:
        """Link the rows, a block at a time; see `IndexBackend.build_files`."""
        cls.check_build(build)
        numbers = {**cls.build_numbers, **build}
        faiss = load_faiss()
        rows = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
        count, dim = rows.shape
        graph = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_8bit, numbers["M"], faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = numbers["efConstruction"]
        sample = np.linspace(0, count - 1, min(count, _TRAIN_ROWS)).astype(np.int64)
        graph.train(np.asarray(rows[sample], dtype=np.float32))
        for start in range(0, count, _BLOCK_ROWS):
            graph.add(np.asarray(rows[start : start + _BLOCK_ROWS], dtype=np.float32))
            progress("link", min(start + _BLOCK_ROWS, count), count)
        faiss.write_index(graph, str(folder / "hnsw.faiss"))

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map the files; see `IndexBackend.open`.

        The graph's size and checksum were compared with the manifest before: it is a file of ours.
        """
        index = super().open(folder)
        faiss, path = load_faiss(), folder / "hnsw.faiss"
        path.stat()  # raises FileNotFoundError, FAISS a RuntimeError
        try:
            graph = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise InputError(f"{path}: not readable as a FAISS index. Build the index again.") from error
        if not isinstance(graph, faiss.IndexHNSWSQ) or (graph.ntotal, graph.d) != (index.ids.size, index.dim):
            raise InputError(
                f"{path}: {type(graph).__name__} of {graph.ntotal} rows of {graph.d} columns, expected an HNSW graph "
                f"of {index.ids.size} rows of {index.dim}. Build the index again."
            )
        _check_graph(faiss, graph, path)
        index._graph = graph
        return index

    def _candidates(
        self, queries: FloatArray, count: int, mask: BoolArray | None, settings: SearchSettings
    ) -> tuple[IntArray, FloatArray | None]:
        """See `RefinedIndex._candidates`.

        Removed rows stay nodes of the graph. A walk of all of it keeps so many more in sight, and leaves them out
        afterwards: FAISS's own selector would let it end among them.
        """
        faiss = load_faiss()
        effort, stored = max(settings["efSearch"], count), self.ids.shape[0]
        if mask is not None and mask is self._alive:
            wide = min(stored, -(-effort * stored // self._count(mask)))
            places = self._walk(faiss.SearchParametersHNSW(efSearch=wide), queries, wide)
            out = (places < 0) | ~mask[places]
            places[out] = -1
            if wide < stored:
                places[(~out).sum(axis=1) < LIVING * effort] = -1
            first = np.argsort(out, axis=1, kind="stable")[:, :count]
            return np.take_along_axis(places, first, axis=1), None
        parameters = faiss.SearchParametersHNSW(efSearch=effort)
        parameters.sel, _bits = row_selector(faiss, mask)
        return self._walk(parameters, queries, count), None

    def _walk(self, parameters: Any, queries: FloatArray, count: int) -> IntArray:
        """Give the rows that FAISS finds, (q, count) int64, best first, -1 for none."""
        _, places = self._graph.search(np.ascontiguousarray(queries), count, params=parameters)
        self._check_places(places)
        return np.asarray(places, dtype=np.int64)


def _check_graph(faiss: Any, graph: Any, path: Path) -> None:
    """Refuse links that lead out of the graph: FAISS follows them without looking. Reads all links once.

    Raises:
        InputError: naming the file.
    """
    hnsw, count = graph.hnsw, graph.ntotal
    links = _view(faiss, hnsw.neighbors)
    offsets = faiss.vector_to_array(hnsw.offsets).astype(np.int64)
    levels = faiss.vector_to_array(hnsw.levels)
    of_level = faiss.vector_to_array(hnsw.cum_nneighbor_per_level)
    good = (
        (offsets.size, levels.size) == (count + 1, count)
        and 0 <= hnsw.entry_point < count
        and 0 <= hnsw.max_level < of_level.size - 1
        and levels.min() >= 1
        and levels.max() <= hnsw.max_level + 1
        and levels[hnsw.entry_point] == hnsw.max_level + 1
        and (np.diff(of_level) >= 0).all()
        and offsets[0] == 0
        and np.array_equal(np.diff(offsets), of_level[levels])
        and offsets[-1] == links.size
        and links.min(initial=-1) >= -1
        and links.max(initial=-1) < count
        and graph.storage.ntotal == count
    )
    if not good:
        raise InputError(f"{path}: its links lead out of its {count} rows: it was altered. Build the index again.")


def _view(faiss: Any, vector: Any) -> Any:
    """Look at a FAISS vector in place, be it its own or mapped."""
    size = vector.size()
    return faiss.rev_swig_ptr(vector.data(), size) if size else np.empty(0, dtype=np.int32)


INDEXES.register(HnswIndex.name, HnswIndex)
