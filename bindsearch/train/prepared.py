"""What the two towers see of a user's pairs, made once and kept on disk: anchors' embeddings, the others' inputs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bindsearch.config import canonical_json, content_hash
from bindsearch.embed import EmbedOptions, run_embed
from bindsearch.embed.decoding import Decoded, Failed
from bindsearch.embed.worker import Task
from bindsearch.embed.workers import DecodePool
from bindsearch.errors import BindSearchError, MissingInputError
from bindsearch.processes import allow_open_files
from bindsearch.store import open_store
from bindsearch.store.files import commit_bytes
from bindsearch.types import Item

if TYPE_CHECKING:
    from bindsearch.modalities.base import ModalityConfig
    from bindsearch.models.spaces import Space
    from bindsearch.train.pair_files import Pairs
    from bindsearch.types import FloatArray

SHARD_ITEMS = 512
ITEM_LIMIT_S = 30.0

Ledger = list[dict[str, Any]]


def embed_anchors(pairs: Pairs, space: Space, folder: Path, workers: int, progress: bool) -> None:
    """Embed the anchors with the frozen space into a store; one that is there already is completed.

    Args:
        pairs: whose anchors.
        space: the frozen one.
        folder: of the store; a run that was stopped goes on in it.
        workers: decode processes.
        progress: a bar on stderr.

    Raises:
        MismatchError: the folder was made with another space.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source: str | Path = pairs.made
    if not pairs.made:
        source = folder.with_name(f"{folder.name}.jsonl")
        lines = (canonical_json(_listed(item)) + "\n" for item in pairs.anchors.values())
        commit_bytes(source, "".join(lines).encode("ascii"))
    run_embed([source], folder, space, options=EmbedOptions(workers=workers, max_bad=1.0), progress=progress)


def read_anchors(items: Sequence[Item], folder: Path) -> tuple[dict[str, FloatArray], Ledger]:
    """Read what `embed_anchors` embedded.

    Args:
        items: the anchors, in the order of the list that was embedded.
        folder: of the store.

    Returns:
        Key -> (d,) float32 unit row; and the ledger of those that cannot be read.

    Raises:
        MissingInputError, BindSearchError: as `EmbeddingStore.open`.
    """
    store = open_store(folder)
    sums: dict[str, FloatArray] = {}
    for key, row in zip(store.items(["key"]).column("key").to_pylist(), store.vectors(), strict=True):
        sums[key] = sums[key] + row if key in sums else row  # a long recording has a row a span
    wanted = {item.key for item in items}
    rows = {key: row / np.linalg.norm(row) for key, row in sums.items() if key in wanted}
    lines = {line["key"]: line for line in store.bad()}
    bad: Ledger = []
    for number, item in enumerate(items):
        line = lines.get(item.key)
        if line is None and item.key not in rows:
            line = lines.get(f"{folder.name}.jsonl#{number}")  # the row is named where its key is refused
        if line is not None:
            bad.append({"key": item.key, "side": "a", "stage": line["stage"], "reason": line["reason"]})
        elif item.key not in rows:
            bad.append({"key": item.key, "side": "a", "stage": "list", "reason": "not embedded"})
    return rows, bad


def _listed(item: Item) -> dict[str, Any]:
    if item.literal is not None:
        return {"key": item.key, "text": item.literal}
    return {"key": item.key, "path": item.source, "modality": item.modality}


@dataclass
class PreparedRows:
    """The inputs of the tower in training, clip by clip, in files that are mapped.

    Attributes:
        shards: (clips, ...) each: float16 (features: float32; texts: int64).
        shard, first, clips: where each item's clips lie, by key.
        bad: ledger of those that cannot be read.
    """

    shards: list[NDArray[Any]] = field(default_factory=list)
    shard: dict[str, int] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)
    clips: dict[str, int] = field(default_factory=dict)
    bad: Ledger = field(default_factory=list)

    def __contains__(self, key: object) -> bool:
        """Say whether an item could be prepared."""
        return key in self.shard

    def row(self, key: str, clip: int) -> NDArray[Any]:
        """Give one clip of an item, as it lies on disk."""
        row: NDArray[Any] = self.shards[self.shard[key]][self.first[key] + clip]
        return row

    def stack(self, keys: Sequence[str], clips: Sequence[int]) -> NDArray[Any]:
        """Stack one clip each: (B, ...) float32, of texts int64."""
        rows = np.stack([self.row(key, clip) for key, clip in zip(keys, clips, strict=True)])
        return rows if rows.dtype == np.int64 else rows.astype(np.float32)


def prepare_inputs(
    items: Sequence[Item],
    config: ModalityConfig,
    folder: Path,
    workers: int,
    advance: Callable[[int], None],
) -> PreparedRows:
    """Decode and preprocess items as `embed` does, shard by shard; shards that are there are read.

    Args:
        items: of one modality, each key once.
        config: its preprocessing.
        folder: of the shards, each named after what it was made of.
        workers: decode processes; 0 decodes in this one.
        advance: told of so many items that are done.

    Raises:
        BindSearchError: workers cannot be started, or a shard is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    allow_open_files()  # each shard that is mapped keeps its file open
    found = PreparedRows()
    with DecodePool(workers) as pool:
        for at in range(0, len(items), SHARD_ITEMS):
            part = items[at : at + SHARD_ITEMS]
            path = folder / f"{at // SHARD_ITEMS:05d}-{_id_of(part, config)}"
            if not path.with_suffix(".json").is_file():
                _prepare_shard(part, config, path, pool)
            _read_shard(path, found)
            advance(len(part))
    return found


def _id_of(items: Sequence[Item], config: ModalityConfig) -> str:
    facts = [[item.key, item.source, item.size_bytes, item.mtime_s, item.literal] for item in items]
    return content_hash({"config": config.id, "items": facts})


def _prepare_shard(items: Sequence[Item], config: ModalityConfig, path: Path, pool: DecodePool) -> None:
    task = Task({items[0].modality: config}, item_limit_s=ITEM_LIMIT_S)
    clips: list[NDArray[Any]] = []
    lines: list[dict[str, Any]] = []
    for item, outcome in pool.map(items, task):
        if isinstance(outcome, Decoded):
            clips.append(_kept(outcome.arrays[0], item.modality))
            lines.append({"key": item.key, "clips": len(outcome.arrays[0])})
        elif isinstance(outcome, Failed):
            lines.append({"key": item.key, "clips": 0, "stage": outcome.stage, "reason": outcome.reason})
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, np.concatenate(clips) if clips else np.zeros((0, 1), dtype=np.float16))
    os.replace(temporary, path.with_suffix(".npy"))  # noqa: PTH105
    commit_bytes(path.with_suffix(".json"), canonical_json(lines).encode("ascii"))


def _kept(array: NDArray[Any], modality: str) -> NDArray[Any]:
    return array if array.dtype == np.int64 or modality == "features" else array.astype(np.float16)


def _read_shard(path: Path, found: PreparedRows) -> None:
    try:
        rows = np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
        found.shards.append(rows.view(np.ndarray))  # numpy's own class of maps is slow to index
        lines = json.loads(path.with_suffix(".json").read_bytes())
    except (FileNotFoundError, EOFError, ValueError) as error:
        raise BindSearchError(f"{path}: damaged ({error}). Remove {path.parent} and run the same command.") from error
    at = 0
    for line in lines:
        if line["clips"]:
            found.shard[line["key"]], found.first[line["key"]] = len(found.shards) - 1, at
            found.clips[line["key"]] = line["clips"]
            at += line["clips"]
        else:
            found.bad.append({"key": line["key"], "side": "b", "stage": line["stage"], "reason": line["reason"]})


def check_any(left: int, pairs: int, ledger: str) -> None:
    """Refuse to train on next to nothing.

    Raises:
        MissingInputError: naming the ledger.
    """
    if left < 4:
        raise MissingInputError(
            f"{left} of {pairs} pairs can be read: too few to train on. The reasons are in {ledger}."
        )
