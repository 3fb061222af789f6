"""One peer on the vectors of bench_peers, in an environment of its own: needs numpy and the peer, nothing else.

python peer_run.py PEER CONFIG.json OUTPUT.json

Builds on one thread from float32 rows, then sweeps the peer's own search knobs over queries of three sets: overlap with
the exact answers and CPU milliseconds a query in one batch. Sweeps stop when the overlap does.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

K = 10
TIE = 1e-6
Ask = Callable[[Any], Any]


class HnswLib:
    """hnswlib, float32, inner product."""

    module = "hnswlib"
    made_with: ClassVar[dict[str, Any]] = {"M": 32, "ef_construction": 200}

    def build(self, rows: Any, config: dict[str, Any]) -> None:
        """Build the graph."""
        import hnswlib

        self.index = hnswlib.Index(space="ip", dim=rows.shape[1])
        self.index.init_index(max_elements=len(rows), random_seed=1, **self.made_with)
        self.index.set_num_threads(1)
        for start in range(0, len(rows), 8192):
            self.index.add_items(rows[start : start + 8192], np.arange(start, min(start + 8192, len(rows))))
        self.path = Path(config["folder"]) / "hnswlib.bin"
        self.index.save_index(str(self.path))

    def sweep(self) -> Iterator[tuple[dict[str, int], Ask]]:
        """Widen ef."""
        for ef in (10, 14, 20, 28, 40, 56, 80, 112, 160, 224, 320, 448, 640):
            self.index.set_ef(ef)
            yield {"ef": ef}, lambda queries: self.index.knn_query(queries, k=K, num_threads=1)[0]


class USearch:
    """usearch, bfloat16, inner product."""

    module = "usearch"
    made_with: ClassVar[dict[str, Any]] = {"connectivity": 32, "expansion_add": 128}

    def build(self, rows: Any, config: dict[str, Any]) -> None:
        """Build the graph."""
        from usearch.index import Index

        self.index = Index(ndim=rows.shape[1], metric="ip", dtype="bf16", **self.made_with)
        for start in range(0, len(rows), 8192):
            block = rows[start : start + 8192]
            self.index.add(np.arange(start, start + len(block)), block, threads=1)
        self.path = Path(config["folder"]) / "usearch.bin"
        self.index.save(str(self.path))

    def sweep(self) -> Iterator[tuple[dict[str, int], Ask]]:
        """Widen the expansion."""
        for width in (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512):
            self.index.expansion_search = width
            yield {"expansion_search": width}, lambda queries: self.index.search(queries, K, threads=1).keys


class ScaNN:
    """ScaNN: tree, asymmetric hashing, reordering; as its documentation advises for this size."""

    module = "scann"
    made_with: ClassVar[dict[str, Any]] = {
        "leaves_to": "2 * sqrt(rows)",
        "dimensions_per_block": 2,
        "anisotropic_threshold": 0.2,
    }

    def build(self, rows: Any, config: dict[str, Any]) -> None:
        """Train and build."""
        import scann

        leaves = int(2 * len(rows) ** 0.5)
        builder = scann.scann_ops_pybind.builder(rows, K, "dot_product")
        builder = builder.tree(num_leaves=leaves, num_leaves_to_search=leaves // 10, training_sample_size=len(rows))
        builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100)
        self.searcher, self.leaves = builder.set_n_training_threads(1).build(), leaves
        self.path = Path(config["folder"]) / "scann"
        self.path.mkdir(exist_ok=True)
        self.searcher.serialize(str(self.path))

    def sweep(self) -> Iterator[tuple[dict[str, int], Ask]]:
        """Visit more leaves and reorder more."""
        for reorder in (100, 400):
            for share in (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.7, 1.0):
                leaves = max(1, int(share * self.leaves))
                knobs = {"leaves_to_search": leaves, "pre_reorder_num_neighbors": reorder}
                yield knobs, lambda queries, knobs=knobs: self.searcher.search_batched(queries, K, **knobs)[0]


class LeanVec:
    """Intel's scalable-vs: a Vamana graph over LeanVec codes (256 dimensions of 8 bits, then all of 8 bits).

    On other makers' processors the package ends the process where LeanVec is asked for; float16 stands in there.
    """

    module = "svs"
    made_with: ClassVar[dict[str, Any]] = {"graph_max_degree": 64, "window_size": 128, "alpha": 0.95}

    def build(self, rows: Any, config: dict[str, Any]) -> None:
        """Reduce, quantise and build the graph."""
        import svs

        folder = Path(config["folder"])
        made = svs.VamanaBuildParameters(**self.made_with)
        if "GenuineIntel" in Path("/proc/cpuinfo").read_text():
            codes, named = self._codes(svs, rows, folder / "rows.fvecs"), "LeanVec 256, 8 + 8 bit"
        else:
            codes, named = rows.astype(np.float16), "float16: LeanVec refuses this processor"
        self.index = svs.Vamana.build(made, codes, svs.DistanceType.MIP, num_threads=1)
        self.made_with = {**self.made_with, "codes": named}
        self.path = folder / "svs"
        self.path.mkdir(exist_ok=True)
        self.index.save(*(str(self.path / part) for part in ("config", "graph", "data")))

    def _codes(self, svs: Any, rows: Any, path: Path) -> Any:
        if not path.is_file():
            with path.open("wb") as stream:
                for start in range(0, len(rows), 8192):
                    block = np.ascontiguousarray(rows[start : start + 8192], dtype=np.float32)
                    out = np.empty((len(block), 1 + block.shape[1]), dtype=np.int32)
                    out[:, 0], out[:, 1:] = block.shape[1], block.view(np.int32)
                    stream.write(out.tobytes())
        loader = svs.VectorDataLoader(str(path), svs.DataType.float32, dims=rows.shape[1])
        return svs.LeanVecLoader(loader, 256, svs.LeanVecKind.lvq8, svs.LeanVecKind.lvq8)

    def sweep(self) -> Iterator[tuple[dict[str, int], Ask]]:
        """Widen the window."""
        for window in (10, 14, 20, 28, 40, 56, 80, 112, 160, 224, 320):
            self.index.search_window_size = window
            yield {"search_window_size": window}, lambda queries: self.index.search(queries, K)[0]


class AutoFaiss:
    """What autofaiss picks for the memory given, with the search knobs that its own tuner would turn."""

    module = "autofaiss"
    made_with: ClassVar[dict[str, Any]] = {"max_index_memory_usage": "4G", "metric_type": "ip"}

    def build(self, rows: Any, config: dict[str, Any]) -> None:
        """Let autofaiss choose and build."""
        import faiss
        from autofaiss import build_index

        faiss.omp_set_num_threads(1)
        folder = Path(config["folder"])
        np.save(folder / "rows.npy", np.asarray(rows, dtype=np.float32))
        self.path = folder / "autofaiss.index"
        self.index, _ = build_index(
            str(folder / "rows.npy"),
            index_path=str(self.path),
            index_infos_path=str(folder / "autofaiss.json"),
            file_format="npy",
            nb_cores=1,
            current_memory_available="12G",
            **self.made_with,
        )
        self.made_with = {**self.made_with, "chosen": json.loads((folder / "autofaiss.json").read_text())["index_key"]}

    def sweep(self) -> Iterator[tuple[dict[str, int], Ask]]:
        """Turn efSearch or nprobe, whichever the index has."""
        import faiss

        space = faiss.ParameterSpace()
        space.initialize(self.index)
        names = [space.parameter_ranges.at(at).name for at in range(space.parameter_ranges.size())]
        name = next((each for each in ("efSearch", "nprobe") if each in names), None)
        for value in (8, 16, 32, 64, 128, 256, 512, 1024) if name else (0,):
            if name:
                space.set_index_parameter(self.index, name, value)
            yield ({name: value} if name else {}), lambda queries: self.index.search(queries, K)[1]


PEERS: dict[str, Any] = {
    "hnswlib": HnswLib,
    "usearch": USearch,
    "scann": ScaNN,
    "scalable-vs": LeanVec,
    "autofaiss": AutoFaiss,
}


def size_of(path: Path) -> int:
    """Add up the bytes of a file or a folder."""
    return (
        sum(each.stat().st_size for each in path.rglob("*") if each.is_file()) if path.is_dir() else path.stat().st_size
    )


def measure(ask: Ask, rows: Any, queries: Any, least: Any) -> dict[str, float]:
    """Measure a knob's overlap by the exact scores of what was found, and its CPU milliseconds a query."""
    ask(queries[:50])
    begin = time.process_time()
    ids = np.asarray(ask(queries)).astype(np.int64)
    spent = (time.process_time() - begin) / len(queries) * 1e3
    found = rows[np.maximum(ids, 0)].astype(np.float32)  # (q, k, d)
    scores = np.where(ids >= 0, np.einsum("qkd,qd->qk", found, queries), -np.inf)
    right = np.minimum((scores >= least[:, None] - TIE).sum(axis=1), K) / K
    return {"overlap_at_10": float(right.mean()), "batch_ms": spent}


def main() -> None:
    """Build, sweep and write."""
    name, config_path, output = sys.argv[1:]
    config = json.loads(Path(config_path).read_text())
    rows = np.load(config["rows"], mmap_mode="r")
    queries, least = np.load(config["queries"]), np.load(config["truth"])
    peer = PEERS[name]()
    __import__(peer.module)
    wide = np.asarray(rows, dtype=np.float32)
    begin = time.process_time()
    peer.build(wide, config)
    built = time.process_time() - begin
    sets: dict[str, list[dict[str, Any]]] = {kind: [] for kind in queries.files}
    for knobs, ask in peer.sweep():
        for kind, points in sets.items():
            if len(points) < 2 or points[-1]["overlap_at_10"] < 0.998:
                points.append(
                    {"settings": knobs, **measure(ask, rows, queries[kind], least[kind][: len(queries[kind])])}
                )
    result = {"build_cpu_s": built, "bytes": size_of(peer.path), "made_with": peer.made_with, "sets": sets}
    Path(output).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
