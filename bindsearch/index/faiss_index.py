"""Exact search by FAISS over the mapped rows. The only file that imports faiss.

FAISS's flat inner-product search runs on the same row file as the numpy truth (`knn_inner_product` over the mapping):
opening costs milliseconds, the rows exist once, and no FAISS file from elsewhere is ever parsed.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bindsearch.errors import MissingExtraError, UnsupportedError
from bindsearch.index.flat import FlatIndex
from bindsearch.registry import INDEXES

if TYPE_CHECKING:
    from bindsearch.index.recipe import SearchSettings
    from bindsearch.types import BoolArray, FloatArray, IntArray

LOG = logging.getLogger(__name__)

_WHEELS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu11", "faiss-gpu-cu12")
_SMALL_BYTES = 512 << 20
_scanned_bytes = 0  # by numpy, in this process
_is_orphan = False


class FaissFlatIndex(FlatIndex):
    """Exact search by FAISS; see `IndexBackend`.

    Attributes:
        small_bytes: as long as faiss is not loaded, numpy does the scans until they come to so many bytes (rows times
            queries, over all indexes of the process): the import costs more CPU time than numpy loses on them. The
            answers are the same numbers (docs/adr/0041, 0146).
    """

    name: ClassVar[str] = "faiss-flat"
    small_bytes: int = _SMALL_BYTES

    def _scan(
        self, queries: FloatArray, fetch: int, mask: BoolArray | None, settings: SearchSettings
    ) -> tuple[FloatArray, IntArray]:
        """See `IndexBackend._scan`."""
        small = "faiss" not in sys.modules and _takes(self._rows.nbytes * queries.shape[0], self.small_bytes)
        if small or self._rows.dtype != np.float32:  # FAISS reads rows of float32 alone in place
            return super()._scan(queries, fetch, mask, settings)
        faiss = load_faiss()
        count, (asked, dim) = self._rows.shape[0], queries.shape
        scores = np.empty((asked, fetch), dtype=np.float32)
        places = np.empty((asked, fetch), dtype=np.int64)
        selector = None
        if mask is not None:
            bits = np.packbits(mask, bitorder="little")
            selector = faiss.IDSelectorBitmap(count, faiss.swig_ptr(bits))
        with _blas_for_batches(faiss, dim):
            faiss.knn_inner_product(
                *(faiss.swig_ptr(array) for array in (np.ascontiguousarray(queries), self._rows)),
                *(dim, asked, count, fetch),
                *(faiss.swig_ptr(scores), faiss.swig_ptr(places)),
                selector,
            )
        return scores, places


def _takes(size_bytes: int, small_bytes: int) -> bool:
    """Say whether numpy does a scan of so many bytes, and count it."""
    global _scanned_bytes
    with _threshold_lock:
        if _scanned_bytes + size_bytes >= small_bytes:
            return False
        _scanned_bytes += size_bytes
        return True


_threshold_lock = threading.Lock()
_threshold_users = 0
_threshold_before = 0


@contextmanager
def _blas_for_batches(faiss: Any, dim: int) -> Iterator[None]:
    """Let FAISS use BLAS from three queries on; as shipped it waits for q * d >= 128,000 and is 13 times slower at 64.

    The threshold is one number for the process: it is set by the first search under way and restored by the last.
    """
    global _threshold_users, _threshold_before
    with _threshold_lock:
        if _threshold_users == 0:
            _threshold_before = int(faiss.cvar.distance_compute_blas_threshold)
            faiss.cvar.distance_compute_blas_threshold = 3 * dim
        _threshold_users += 1
    try:
        yield
    finally:
        with _threshold_lock:
            _threshold_users -= 1
            if _threshold_users == 0:
                faiss.cvar.distance_compute_blas_threshold = _threshold_before


@lru_cache(maxsize=1)
def load_faiss() -> Any:
    """Import faiss; says so, once, where two wheels own its files. To be called before every use: see `_forked`.

    Raises:
        MissingExtraError: no wheel is installed; the message holds the install line.
        UnsupportedError: the installed one cannot be imported, or this process was forked from one that had loaded it.
    """
    if _is_orphan and sys.modules["faiss"].omp_get_max_threads() > 1:
        raise UnsupportedError(
            "faiss: this process was forked from one that had loaded FAISS, whose threads did not come along: a search "
            "would hang. Start workers by spawn or forkserver: multiprocessing.get_context('spawn')."
        )
    wheels = faiss_wheels()
    named = ", ".join(f"{name} {version}" for name, version in wheels.items())
    repair = f"pip uninstall -y {' '.join(wheels)} && pip install 'bindsearch[cpu]' (or 'bindsearch[gpu]')"
    if len(wheels) > 1:
        LOG.warning("%s own the same files; one has overwritten the other. Type: %s", named, repair)
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise MissingExtraError("faiss-cpu", "cpu", "The index backend 'faiss-flat'") from error
    except ImportError as error:
        raise UnsupportedError(f"faiss ({named}) cannot be imported: {error}. Type: {repair}") from error
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forked)
    return faiss


def _forked() -> None:
    """Know, in a forked child, that FAISS's threads stayed behind: `load_faiss` is asked again and refuses."""
    global _is_orphan
    _is_orphan = True
    load_faiss.cache_clear()


def faiss_wheels() -> dict[str, str]:
    """List the installed FAISS wheels and their versions, without importing faiss."""
    found = {}
    for wheel in _WHEELS:
        try:
            found[wheel] = metadata.version(wheel)
        except metadata.PackageNotFoundError:
            continue
    return found


def version() -> str:
    """Import faiss and give its version."""
    return str(load_faiss().__version__)


INDEXES.register(FaissFlatIndex.name, FaissFlatIndex)
