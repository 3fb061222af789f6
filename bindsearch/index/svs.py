"""Intel's graph index (scalable-vs), an optional extra: the fastest seen on Intel's processors with LeanVec codes.

Codes and graph are read into memory at open: it is no index for a machine that has little of it.
"""

from __future__ import annotations

import importlib
import json
import platform
import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from bindsearch.errors import InputError, MissingExtraError, UnsupportedError
from bindsearch.index.base import Progress, no_progress
from bindsearch.index.refined import RefinedIndex, check_numbers
from bindsearch.index.small_products import thread_count
from bindsearch.registry import INDEXES

if TYPE_CHECKING:
    from bindsearch.index.recipe import SearchSettings
    from bindsearch.types import BoolArray, FloatArray, IntArray

_PARTS = ("config", "graph", "data")
_PREFIX = "svs."
_SIZES = "svs_sizes.json"


class SvsIndex(RefinedIndex):
    """A Vamana graph over float16 rows, or over LeanVec codes on Intel's processors; see `IndexBackend`.

    Numbers of a recipe: degree (links a node), window (nodes kept in sight while building), leanvec (columns of the
    first LeanVec code; 0: float16 rows). Search settings: window (nodes kept in sight), rerank.

    Source: Aguerrebere and others, Similarity search in the blink of an eye with compressed indices, VLDB 2023; Tepper
    and others, LeanVec, 2023.
    """

    name: ClassVar[str] = "svs"
    settings: ClassVar[Mapping[str, int]] = {"window": 64, "rerank": 40}
    build_numbers: ClassVar[Mapping[str, int]] = {"degree": 64, "window": 128, "leanvec": 0}

    def __init__(self, rows: Any, ids: IntArray, order: IntArray | None = None) -> None:
        """Take over rows; `open` adds the graph."""
        super().__init__(rows, ids, order)
        self._graph: Any = None
        self._lock = threading.Lock()  # the window is a state of the graph, not of a search

    @classmethod
    def check_build(cls, build: Mapping[str, Any]) -> None:
        """See `IndexBackend.check_build`."""
        check_numbers(cls.name, build, cls.build_numbers)

    @classmethod
    def build_files(cls, folder: Path, build: Mapping[str, Any], progress: Progress = no_progress) -> None:
        """Link the rows; see `IndexBackend.build_files`. Memory: rows as float16, or their codes, and the links."""
        numbers = check_numbers(cls.name, build, cls.build_numbers)
        svs = load_svs(numbers["leanvec"] > 0)
        rows = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
        progress("link", 0, rows.shape[0])
        made = svs.VamanaBuildParameters(graph_max_degree=numbers["degree"], window_size=numbers["window"], alpha=0.95)
        with tempfile.TemporaryDirectory(dir=folder) as there:
            data = rows.astype(np.float16)
            if numbers["leanvec"]:
                svs.np_to_svs(data.astype(np.float32), str(Path(there) / "rows.svs"))
                loader = svs.VectorDataLoader(str(Path(there) / "rows.svs"), svs.DataType.float32, rows.shape[1])
                data = svs.LeanVecLoader(loader, min(numbers["leanvec"], rows.shape[1]))
            graph = svs.Vamana.build(made, data, svs.DistanceType.MIP, num_threads=thread_count())
            graph.save(*(str(Path(there) / part) for part in _PARTS))
            for part in _PARTS:
                for path in (Path(there) / part).iterdir():
                    path.replace(folder / f"{_PREFIX}{part}.{path.name}")
        sizes = {path.name: path.stat().st_size for path in sorted(folder.glob(f"{_PREFIX}*"))}
        (folder / _SIZES).write_text(json.dumps(sizes), encoding="utf-8")
        progress("link", rows.shape[0], rows.shape[0])

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the graph into memory and map the rows; see `IndexBackend.open`."""
        index = super().open(folder)
        if not len(index):
            return index
        _check_sizes(folder)
        leanvec = b"leanvec" in (folder / f"{_PREFIX}data.svs_config.toml").read_bytes().lower()
        svs = load_svs(leanvec)
        with tempfile.TemporaryDirectory() as there:
            _spread(folder, Path(there))
            config, graph, data = (str(Path(there) / part) for part in _PARTS)
            loader = svs.LeanVecLoader(data) if leanvec else svs.VectorDataLoader(data, svs.DataType.float16)
            try:
                index._graph = svs.Vamana(config, svs.GraphLoader(graph), loader, svs.DistanceType.MIP)
            except RuntimeError as error:
                raise InputError(f"{folder}: the svs files are not readable ({error}). Build it again.") from error
        return index

    def _candidates(
        self, queries: FloatArray, count: int, mask: BoolArray | None, settings: SearchSettings
    ) -> tuple[IntArray, FloatArray | None]:
        """See `RefinedIndex._candidates`. It has no filter: more is asked for, and what is not allowed left out."""
        stored = self.ids.shape[0]
        more = 0 if mask is None else max(settings["window"], 16 + -(-2 * count * stored // self._count(mask)))
        asked = min(stored, max(count, more))
        with self._lock:
            self._graph.search_window_size = max(settings["window"], asked)
            found = self._graph.search(queries, asked)[0].astype(np.int64)
        if mask is not None:
            out = ~mask[found]
            found = np.take_along_axis(found, np.argsort(out, axis=1, kind="stable"), axis=1)[:, :count]
            found[~mask[found]] = -1
        return np.asarray(found), None


def load_svs(leanvec: bool) -> Any:
    """Import scalable-vs.

    Raises:
        MissingExtraError: it is not installed; the message holds the install line.
        UnsupportedError: LeanVec codes on another maker's processor, where the package ends the process.
    """
    if leanvec and not is_intel():
        raise UnsupportedError(
            "svs: LeanVec codes need an Intel processor. Build with leanvec 0 (float16 rows), or choose 'ivf-pq'."
        )
    try:
        return importlib.import_module("svs")
    except ModuleNotFoundError as error:
        raise MissingExtraError("scalable-vs", "svs", "The index backend 'svs'") from error


def is_intel() -> bool:
    """Say whether the processor is one of Intel's."""
    facts = Path("/proc/cpuinfo")
    return "GenuineIntel" in (facts.read_text() if facts.exists() else platform.processor())


def _check_sizes(folder: Path) -> None:
    """Refuse files that are not as long as they were written: the package reads short ones without a word.

    Raises:
        InputError: naming the file and both sizes.
    """
    try:
        sizes = dict(json.loads((folder / _SIZES).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{folder / _SIZES}: not readable ({error}). Build the index again.") from error
    for name, size in sizes.items():
        found = (folder / name).stat().st_size
        if found != size:
            raise InputError(f"{folder / name}: {found} bytes, it was written with {size}. Build the index again.")


def _spread(folder: Path, there: Path) -> None:
    """Lay the files of a segment out as the package expects them, by links where the system has them."""
    for path in folder.glob(f"{_PREFIX}*"):
        part, name = path.name.removeprefix(_PREFIX).split(".", 1)
        (there / part).mkdir(exist_ok=True)
        try:
            (there / part / name).symlink_to(path.resolve())
        except OSError:
            shutil.copyfile(path, there / part / name)


INDEXES.register(SvsIndex.name, SvsIndex)
