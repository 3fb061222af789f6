"""Vectors to measure indexes with: clustered rows, and queries that ask from beside them.

python -m benchmarks.vectors runs/vectors --rows 100000          # ROWS/ and queries/, embedding stores of shards
python -m benchmarks.vectors runs/vectors --rows 100000 --facts  # and how near the nearest are, against brute force

The law of a row: a cluster is drawn among CLUSTERS by Zipf's law (weight 1/rank), a latent point of LATENT numbers
around its centre, and seen through one random layer: tanh(latent @ W) + mean + noise; then scaled to length 1 and
stored as float16. So there are few dimensions underneath, dense and sparse regions, a common mean as joint spaces have
it, and noise in every column. Three sets of queries ask for the rows:

    in      image   rows of the same law: what an index tuned on its own rows is tuned for
    offset  text    the same, moved by one constant vector (the modality gap): outside the rows' region
    hard    audio   SIGNAL parts of a row's direction, GAP of the gap's, NOISE of a random one

Each set names a modality of its own, so that settings are tuned and chosen a modality. Two draws of each: "tune" may be
used to choose settings, "fresh" only to measure. Everything is seeded by block: the first 100,000 of 1M rows are the
100,000 rows, and an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.store import EmbeddingStore, Identity, commit_shard, commit_store
from bindsearch.store.files import commit_bytes, commit_json
from bindsearch.store.generation import GONE, PLAN, Generation
from bindsearch.store.identity import FORMAT, FORMAT_VERSION
from bindsearch.types import item_id

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float = NDArray[np.float32]

BLOCK = 16384
QUERIES = {"in": "image", "offset": "text", "hard": "audio"}
"""Set -> the modality that its queries carry."""
DRAWS = {"tune": 1, "fresh": 2}
SIZES = 1_000_000
"""The column `size` is drawn from 0..SIZES - 1: `size < 100` lets one row in 10,000 through."""


@dataclass(frozen=True)
class Law:
    """The numbers of the law; changing one gives other vectors.

    Attributes:
        dim: columns of a row.
        latent, clusters, centre_sd, spread: of the latent points.
        layer_sd: of the sum that tanh takes, a latent number of variance 1.
        mean_sd, noise_sd: of a column, beside tanh's.
        gap_sd: of a column of the offset, in the units of tanh (before scaling to length 1).
        signal, gap, noise: lengths that a hard query is made of.
    """

    dim: int = 1024
    latent: int = 64
    clusters: int = 2000
    centre_sd: float = 1.5
    spread: float = 0.6
    layer_sd: float = 0.6
    mean_sd: float = 0.25
    noise_sd: float = 0.25
    gap_sd: float = 0.8
    signal: float = 0.55
    gap: float = 0.9
    noise: float = 0.75
    seed: int = 20261121

    @cached_property
    def parts(self) -> dict[str, Float]:
        """Draw what is fixed: centres, layer, mean, gap, and the clusters' weights."""
        rng = np.random.default_rng([self.seed, 0])
        weights = 1 / np.arange(1, self.clusters + 1)
        drawn = {
            "centres": self.centre_sd * rng.standard_normal((self.clusters, self.latent)),
            "layer": self.layer_sd / np.sqrt(self.latent) * rng.standard_normal((self.latent, self.dim)),
            "mean": self.mean_sd * rng.standard_normal(self.dim),
            "gap": rng.standard_normal(self.dim),
        }
        return {**{name: each.astype(np.float32) for name, each in drawn.items()}, "weights": weights / weights.sum()}

    def draw(self, count: int, rng: np.random.Generator) -> Float:
        """Draw rows of the law before they are scaled to length 1: (count, dim) float32."""
        parts = self.parts
        chosen = rng.choice(self.clusters, count, p=parts["weights"])
        points = rng.standard_normal((count, self.latent), dtype=np.float32)
        points *= np.float32(self.spread)
        points += parts["centres"][chosen]
        rows = np.tanh(points @ parts["layer"])
        rows += parts["mean"]
        noise = rng.standard_normal((count, self.dim), dtype=np.float32)
        noise *= np.float32(self.noise_sd)
        rows += noise
        return rows

    def rows(self, block: int, count: int = BLOCK) -> NDArray[np.float16]:
        """Draw the first `count` rows of a block: (count, dim) float16 unit rows."""
        return unit(self.draw(BLOCK, np.random.default_rng([self.seed, 1, block]))[:count]).astype(np.float16)

    def queries(self, kind: str, count: int, draw: str = "fresh") -> Float:
        """Draw queries: (count, dim) float32 unit rows; kind of QUERIES, draw of DRAWS."""
        rng = np.random.default_rng([self.seed, 2, DRAWS[draw], list(QUERIES).index(kind)])
        rows = self.draw(count, rng)
        if kind == "in":
            return unit(rows)
        gap = self.parts["gap"]
        if kind == "offset":
            return unit(rows + np.float32(self.gap_sd) * gap)
        noise = unit(rng.standard_normal(rows.shape, dtype=np.float32))
        return unit(self.signal * unit(rows) + self.gap * unit(gap[None]) + self.noise * noise)

    @property
    def identity(self) -> Identity:
        """Name the law as if it were a space, so that vectors of two laws are never compared."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]
        towers = {modality: f"synthetic-{kind}:{digest}" for kind, modality in QUERIES.items()}
        return Identity(
            "synthetic", f"synthetic@{digest}", self.dim, "float32", towers, dict.fromkeys(towers, "none:0")
        )


def unit(rows: Float) -> Float:
    """Scale rows to length 1, in a copy."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def blocks_of(rows: int) -> Iterator[tuple[int, int]]:
    """Go through the blocks of so many rows: (number, rows of it)."""
    for block in range(-(-rows // BLOCK)):
        yield block, min(BLOCK, rows - block * BLOCK)


def write_rows(folder: Path, rows: int, law: Law) -> Path:
    """Write an embedding store of image rows, or the shards of it that are missing; gives the folder."""
    names = [(f"rows-{rows}-{block:05d}", block, count) for block, count in blocks_of(rows)]
    shards = [{"name": name, "kind": "synthetic", "items": count} for name, _, count in names]
    generation = _plan(folder, law, shards)
    if (folder / "manifest.json").exists() and not generation.pending():
        return folder
    for name, block, count in names:
        if not generation.is_done(name):
            vectors = law.rows(block, count)
            commit_shard(
                generation.folder, name, vectors, _items("row", block * BLOCK, count, "image"), [], law.identity
            )
    commit_store(folder)
    return folder


def write_queries(folder: Path, count: int, law: Law) -> dict[tuple[str, str], Path]:
    """Write a store a draw and set: (draw, set) -> folder."""
    folders = {}
    for draw in DRAWS:
        for kind, modality in QUERIES.items():
            name = f"{draw}-{kind}"
            folders[draw, kind] = there = folder / name
            generation = _plan(there, law, [{"name": name, "kind": "synthetic", "items": count}])
            if (there / "manifest.json").exists() and generation.is_done(name):
                continue
            vectors = law.queries(kind, count, draw)
            commit_shard(generation.folder, name, vectors, _items(name, 0, count, modality), [], law.identity)
            commit_store(there)
    return folders


def _plan(folder: Path, law: Law, shards: list[dict[str, Any]]) -> Generation:
    """Write the plan of a store's one generation, or read it where it is there; another law's is refused."""
    generation = folder / "g0001"
    record = {"sources": ["synthetic"], "imported": True, "shards": shards, "gone": 0}
    if not (generation / PLAN).exists():
        generation.mkdir(parents=True, exist_ok=True)
        commit_bytes(generation / GONE, b"")
        whole = {"format": FORMAT, "format_version": FORMAT_VERSION, **law.identity.to_json(), **record}
        commit_json(generation / PLAN, whole)
    found = Generation.load(generation)
    if found.identity.space_id != law.identity.space_id or found.record["shards"] != shards:
        raise SystemExit(f"{folder}: holds other vectors ({found.identity.space_id}). Choose another folder.")
    return found


def _items(name: str, start: int, count: int, modality: str) -> list[dict[str, Any]]:
    """Make item rows: a key each, a size to filter by, a group of about 20."""
    keys = [f"{name}-{number:08d}" for number in range(start, start + count)]
    sizes = np.random.default_rng([7, start]).integers(0, SIZES, count).tolist()
    fixed = {"modality": modality, "start_s": None, "end_s": None, "member": None, "mtime": None, "sha256": None}
    rest = {"norm": 1.0, "status": "ok", "reason": None, "stage": None, "caption": None, "attributes": None}
    return [
        {"id": item_id(key), "key": key, "source": key, "size": size, "group": f"group-{(start + at) // 20}"}
        | fixed
        | rest
        for at, (key, size) in enumerate(zip(keys, sizes, strict=True))
    ]


def nearest(store: EmbeddingStore, queries: Float, k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Search by brute force over the float16 rows as stored: scores (q, k) in float64 and ids, best first.

    A product in float32 picks k + 40 candidates a block of rows, float64 decides among them.
    """
    best = np.empty((len(queries), 0))
    ids = np.empty((len(queries), 0), dtype=np.int64)
    wide = queries.astype(np.float64)
    for half, table in store.iter_half_blocks():
        block = half.astype(np.float32)
        here = table.column("id").to_numpy()
        scores = queries @ block.T
        keep = min(k + 40, block.shape[0])
        top = np.argpartition(scores, block.shape[0] - keep, axis=1)[:, -keep:]
        exact = np.stack([block[places].astype(np.float64) @ query for places, query in zip(top, wide, strict=True)])
        best, ids = np.concatenate([best, exact], axis=1), np.concatenate([ids, here[top]], axis=1)
        order = np.lexsort((ids, -best), axis=1)[:, :k]
        best, ids = np.take_along_axis(best, order, axis=1), np.take_along_axis(ids, order, axis=1)
    return best, ids


def facts(store: EmbeddingStore, law: Law, count: int = 500) -> dict[str, Any]:
    """Say how near the nearest rows are to each set of queries, and how many dimensions hold 90 % of the variance."""
    found: dict[str, Any] = {}
    for kind in QUERIES:
        scores, _ = nearest(store, law.queries(kind, count), 10)
        found[kind] = {"top-1 cosine": round(float(scores[:, 0].mean()), 3)}
        found[kind]["top-10 cosine"] = round(float(scores[:, 9].mean()), 3)
    sample = law.rows(0, 8192).astype(np.float64)
    values = np.linalg.eigvalsh(np.cov(sample.T))[::-1]
    found["dimensions of 90 % of the variance"] = int(np.searchsorted(np.cumsum(values) / values.sum(), 0.9)) + 1
    return found


def main() -> None:
    """Write the stores; print the facts where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--facts", action="store_true")
    arguments = parser.parse_args()
    law = Law(dim=arguments.dim)
    rows = write_rows(arguments.folder / str(arguments.rows), arguments.rows, law)
    write_queries(arguments.folder / "queries", arguments.queries, law)
    print(f"{rows}: {arguments.rows} rows of {law.identity.space_id}")
    if arguments.facts:
        print(json.dumps(facts(EmbeddingStore.open(rows), law), indent=1))


if __name__ == "__main__":
    main()
