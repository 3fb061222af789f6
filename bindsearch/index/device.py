"""Exact search on a GPU by torch: the same rows, the same numbers as on the CPU.

The rows lie on the device as float16, or pass through it in tiles where they do not fit. A product a tile, the largest
score of each group of rows, and only groups that can matter are looked into: the scores of a large batch are never
sorted whole. What the device proposes is scored in float64 from the stored rows by the base class, and proven against
what float16 and the device's sums may have lost; where that proves nothing, the device looks again for every row that
may reach the k-th score. So answers equal those of `flat` bit for bit.

Everything here runs on the device "cpu" as well; there it is no faster than `flat`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from bindsearch.errors import UnsupportedError
from bindsearch.index.faiss_index import faiss_wheels, load_faiss
from bindsearch.index.flat import FlatIndex

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from bindsearch.index.base import IndexBackend
    from bindsearch.index.recipe import SearchSettings
    from bindsearch.index.rows import RowArray
    from bindsearch.index.snapshot import Snapshot
    from bindsearch.types import BoolArray, FloatArray, IntArray

GROUP_ROWS = 64

_SCORE_BYTES = 1 << 30
_CPU_SCORE_BYTES = 32 << 20
_QUERIES_AT_ONCE = 4096
_HELD_SHARE = 0.8
_HALF = 2.0**-11


class DeviceIndex(FlatIndex):
    """Exact search on a torch device; see `IndexBackend`. Not registered: it is a place, not a kind of file.

    Attributes:
        device: what torch calls it.
        half: whether products are of float16 numbers (sums are of float32 in any case).
    """

    name: ClassVar[str] = "flat on a device"
    abilities: ClassVar[frozenset[str]] = frozenset({"remove", "selector"})

    def __init__(self, rows: RowArray, ids: IntArray, order: IntArray | None = None, device: str = "cuda") -> None:
        """Take over rows as `IndexBackend` does, and put them on a device where they fit.

        Args:
            rows: (n, d) float32 or float16 unit rows; may be memory-mapped. Not modified.
            ids: (n,) int64, each once. Not modified.
            order: (n,) positions of the rows in ascending order of id; computed where None.
            device: "cuda", "cuda:N" or "cpu".

        Raises:
            UnsupportedError: torch has no such device.
        """
        super().__init__(rows, ids, order)
        self.device = check_device(device)
        self.half = self.device != "cpu" or rows.dtype == np.float16
        self._held: Any = None
        if self.device != "cpu" and self._fits():
            self._held = self._upload()

    @classmethod
    def of(cls, index: IndexBackend, device: str) -> Self:
        """Put the rows of an open index on a device; rows removed from it stay removed."""
        placed = cls(index._rows, index._ids, index._order, device)
        placed._alive = index._alive
        return placed

    @property
    def held(self) -> bool:
        """Whether the device holds all rows, so that a search moves only queries and answers."""
        return self._held is not None

    def _fits(self) -> bool:
        """Say whether the rows and one matrix of scores fit into what is free on the device."""
        import torch

        free, _ = torch.cuda.mem_get_info(self.device)
        return bool(self._rows.size * 2 + 2 * _SCORE_BYTES <= free * _HELD_SHARE)

    def _upload(self) -> Any:
        import torch

        held = torch.empty(self._rows.shape, dtype=torch.float16, device=self.device)
        step = max(1, _SCORE_BYTES // (4 * self.dim))
        for start in range(0, self._rows.shape[0], step):
            held[start : start + step] = torch.from_numpy(self._half_rows(start, start + step)).to(self.device)
        return held

    def _half_rows(self, start: int, stop: int) -> NDArray[Any]:
        """Give rows as the device takes them, a copy (torch refuses arrays that cannot be written)."""
        return np.array(self._rows[start:stop], dtype=np.float16 if self.half else np.float32)

    # ---- search ------------------------------------------------------------------------------------------------------

    def _margin(self) -> float:
        """Bound the error of a score of the device.

        float32: d additions, as of the base class, but a GPU may cut off where a CPU rounds: twice that. float16: the
        rounding of the query, and of rows stored as float32, each within 2^-11 of its length and 2^-25 a component
        (numbers too small for float16's full precision).
        """
        error = 2 * super()._margin()
        if self.half:
            rounded = 1 if self._rows.dtype == np.float16 else 2
            error += 1.001 * rounded * (_HALF + float(np.sqrt(self.dim)) * 2.0**-25)
        return error

    def _scan(
        self,
        queries: FloatArray,
        fetch: int,
        mask: BoolArray | None,
        settings: SearchSettings,  # noqa: ARG002 - it has none
    ) -> tuple[FloatArray, IntArray]:
        """See `IndexBackend._scan`; scores are within `_margin` of the true ones."""
        parts = [
            self._scan_batch(queries[start : start + _QUERIES_AT_ONCE], fetch, mask)
            for start in range(0, queries.shape[0], _QUERIES_AT_ONCE)
        ]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _scan_batch(self, queries: FloatArray, fetch: int, mask: BoolArray | None) -> tuple[FloatArray, IntArray]:
        import torch

        asked = self._put(queries)
        best = torch.empty((queries.shape[0], 0), dtype=torch.float32, device=self.device)
        places = torch.empty((queries.shape[0], 0), dtype=torch.int64, device=self.device)
        for start, scores in self._tiles(asked, mask):
            top, where = _largest(scores, fetch)
            best, places = torch.cat([best, top], dim=1), torch.cat([places, where + start], dim=1)
            best, order = best.topk(min(fetch, best.shape[1]), dim=1)
            places = places.gather(1, order)
        places[best == -torch.inf] = -1
        return best.cpu().numpy(), places.cpu().numpy()

    def _widen(
        self, unit: NDArray[np.float64], exact: FloatArray, k: int, mask: BoolArray | None
    ) -> tuple[IntArray, FloatArray]:
        """See `IndexBackend._widen`; the device looks for the rows."""
        bar = max(self._bar(exact, k), float(np.finfo(np.float32).min))  # rows that the mask forbids are at -inf
        asked = self._put(unit.astype(np.float32))
        found = [
            start + (scores[:, 0] >= bar).nonzero()[:, 0].cpu().numpy() for start, scores in self._tiles(asked, mask)
        ]
        places = np.concatenate(found)
        step = max(1, _CPU_SCORE_BYTES // (8 * self.dim))
        parts = [self._exact_scores(unit, places[None, at : at + step])[0] for at in range(0, places.size, step)]
        return places, np.concatenate([np.empty(0, dtype=np.float32), *parts])

    def _put(self, queries: FloatArray) -> Any:
        """Put queries on the device, (d, q)."""
        import torch

        kind = torch.float16 if self.half else torch.float32
        return torch.from_numpy(np.ascontiguousarray(queries)).to(self.device).to(kind).T

    def _tiles(self, asked: Any, mask: BoolArray | None) -> Iterator[tuple[int, Any]]:
        """Go through (first row, (rows, q) float32 scores on the device); -inf where the mask forbids."""
        import torch

        room = _SCORE_BYTES if self.device != "cpu" else _CPU_SCORE_BYTES
        step = max(GROUP_ROWS, room // (4 * max(asked.shape[1], self.dim)) // GROUP_ROWS * GROUP_ROWS)
        for start in range(0, self._rows.shape[0], step):
            stop = min(start + step, self._rows.shape[0])
            if mask is not None and not mask[start:stop].any():
                continue
            if self._held is not None:
                rows = self._held[start:stop]
            else:
                rows = torch.from_numpy(self._half_rows(start, stop)).to(self.device)
            scores = _product(rows, asked)
            if mask is not None:
                scores[torch.from_numpy(~mask[start:stop]).to(self.device)] = -torch.inf
            yield start, scores


def _product(rows: Any, asked: Any) -> Any:
    """Multiply (m, d) rows with (d, q) queries; sums and results are float32."""
    import torch

    if rows.dtype == torch.float32:
        # a product of float32 must not be of TF32: its bound is float32's
        before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False
        try:
            return rows @ asked
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    if rows.is_cuda:
        try:
            return torch.mm(rows, asked, out_dtype=torch.float32)
        except TypeError:  # torch before 2.8
            pass
    return _product(rows.float(), asked.float())


def _largest(scores: Any, count: int) -> tuple[Any, Any]:
    """Give the `count` largest scores of each query and their rows, in descending order.

    The rows lie in the `count` groups with the largest maxima: each group left out is beaten by that many rows.

    Args:
        scores: (m, q) float32. Not modified.
        count: at least 1.

    Returns:
        scores (q, min(count, m)) and rows (q, min(count, m)) int64.
    """
    import torch

    size, asked = scores.shape
    whole = size // GROUP_ROWS
    if whole <= count:
        best, rows = scores.T.topk(min(count, size), dim=1)
        return best, rows
    groups = scores[: whole * GROUP_ROWS].view(whole, GROUP_ROWS, asked)
    liked = groups.amax(dim=1).T.topk(count, dim=1).indices  # (q, count)
    rows = (liked[:, :, None] * GROUP_ROWS + torch.arange(GROUP_ROWS, device=scores.device)).view(asked, -1)
    rest = torch.arange(whole * GROUP_ROWS, size, device=scores.device).expand(asked, -1)
    rows = torch.cat([rows, rest], dim=1)
    best, order = scores.T.gather(1, rows).topk(count, dim=1)
    return best, rows.gather(1, order)


def check_device(device: str) -> str:
    """Refuse a device that torch does not have.

    Returns:
        "cpu", or "cuda:N" with its number.

    Raises:
        UnsupportedError: one line that says what is missing.
    """
    if device == "cpu":
        return device
    import torch

    kind, _, number = device.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise UnsupportedError(f"--device {device}: an index is searched on cpu, cuda or cuda:N.")
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"torch {torch.__version__} finds none" if built else f"torch {torch.__version__} is built without CUDA"
        raise UnsupportedError(
            f"--device {device}: no GPU ({why}). Without --device the same answers come from the CPU."
        )
    if int(number or 0) >= torch.cuda.device_count():
        raise UnsupportedError(
            f"--device {device}: this machine has {torch.cuda.device_count()} GPU(s), counted from 0."
        )
    return f"cuda:{int(number or 0)}"


def snapshot_on(snapshot: Snapshot, device: str) -> Snapshot:
    """Give a snapshot whose segments are searched exactly on a device; item tables and files are shared.

    Raises:
        UnsupportedError: torch has no such device.
    """
    check_device(device)
    segments = []
    for segment in snapshot.segments:
        placed = copy.copy(segment)
        placed.index = DeviceIndex.of(segment.index, device)
        segments.append(placed)
    return replace(snapshot, segments=tuple(segments))


# ---- faiss-gpu -------------------------------------------------------------------------------------------------------


class FaissGpu:
    """FAISS on GPUs: one resources object for all indexes that are put there."""

    def __init__(self, device: str = "cuda") -> None:
        """Take the GPU.

        Args:
            device: "cuda" or "cuda:N".

        Raises:
            UnsupportedError: two wheels are installed, the wheel is built without GPUs, or there is no GPU: one line.
            MissingExtraError: no wheel is installed.
        """
        wheels = faiss_wheels()
        named = ", ".join(f"{name} {version}" for name, version in wheels.items())
        if len(wheels) > 1:
            raise UnsupportedError(
                f"--device {device}: {named} own the same files, which of them answers is chance. "
                f"Type: pip uninstall -y {' '.join(wheels)} && pip install 'bindsearch[gpu]'"
            )
        self._faiss = load_faiss()
        if not hasattr(self._faiss, "StandardGpuResources"):
            raise UnsupportedError(
                f"--device {device}: {named or 'the installed faiss'} is built without GPUs. "
                f"Type: pip uninstall -y {' '.join(wheels)} && pip install 'bindsearch[gpu]'"
            )
        count, number = int(self._faiss.get_num_gpus()), int(device.partition(":")[2] or 0)
        if number >= count:
            raise UnsupportedError(
                f"--device {device}: FAISS finds {count} GPU(s). The same answers come from the CPU."
            )
        self.number = number
        self.resources = self._faiss.StandardGpuResources()

    def flat(self, rows: RowArray) -> Any:
        """Put rows on the GPU as a flat float16 index of inner products; in blocks.

        Args:
            rows: (n, d) float32 or float16 unit rows; may be memory-mapped. Not modified.
        """
        config = self._faiss.GpuIndexFlatConfig()
        config.device, config.useFloat16 = self.number, True
        index = self._faiss.GpuIndexFlatIP(self.resources, int(rows.shape[1]), config)
        step = max(1, _SCORE_BYTES // (4 * rows.shape[1]))
        for start in range(0, rows.shape[0], step):
            index.add(np.ascontiguousarray(rows[start : start + step], dtype=np.float32))
        return index

    def from_cpu(self, index: Any) -> Any:
        """Clone a FAISS index to the GPU: flat and IVF indexes as they are, IndexHNSWCagra as CAGRA.

        Raises:
            UnsupportedError: FAISS has no GPU form of it; its own words are given.
        """
        options = self._faiss.GpuClonerOptions()
        options.useFloat16 = True
        try:
            return self._faiss.index_cpu_to_gpu(self.resources, self.number, index, options)
        except RuntimeError as error:
            kind = type(self._faiss.downcast_index(index)).__name__
            raise UnsupportedError(f"FAISS has no GPU form of {kind}: {error}. Search it on the CPU.") from error

    def cagra(self, rows: RowArray, degree: int = 64) -> Any:
        """Build a CAGRA graph on the GPU.

        Args:
            rows: (n, d) float32 or float16 unit rows. Not modified.
            degree: of the graph.

        Raises:
            UnsupportedError: the wheel is built without cuVS.
        """
        if not hasattr(self._faiss, "GpuIndexCagra"):
            raise UnsupportedError("CAGRA: the installed faiss is built without cuVS. Its wheel is faiss-gpu-cuvs.")
        config = self._faiss.GpuIndexCagraConfig()
        config.device, config.graph_degree, config.intermediate_graph_degree = self.number, degree, 2 * degree
        metric = self._faiss.METRIC_INNER_PRODUCT
        index = self._faiss.GpuIndexCagra(self.resources, int(rows.shape[1]), metric, config)
        index.train(np.ascontiguousarray(rows, dtype=np.float32))
        return index


def save_cagra(index: Any, path: Path) -> None:
    """Write a CAGRA graph as an IndexHNSWCagra, which CPUs search and `FaissGpu.from_cpu` reads back."""
    faiss = load_faiss()
    on_cpu = faiss.IndexHNSWCagra()
    index.copyTo(on_cpu)
    faiss.write_index(on_cpu, str(path))
