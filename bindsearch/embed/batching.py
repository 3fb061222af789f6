"""From decoded items to the rows of a shard: group equal shapes, encode, fuse, normalise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.config import canonical_json
from bindsearch.embed.decoding import Decoded, Failed, Outcome
from bindsearch.listing import FusedItem
from bindsearch.types import Item

if TYPE_CHECKING:
    from bindsearch.types import FloatArray

FORWARD_BYTES = 128 << 20
"""Upper limit of one forward pass's input; what is larger goes alone."""
SMALLEST_NORM = 1e-3
"""A weighted sum of unit rows below this has no direction to speak of."""
_ALIGNMENT = 64


@dataclass
class ShardRows:
    """The rows of a shard, filled batch by batch.

    Attributes:
        space: what encodes.
        good, bad: rows of the item table.
        vectors: (d,) float32 unit rows, one a good row.
    """

    space: Any
    good: list[dict[str, Any]] = field(default_factory=list)
    bad: list[dict[str, Any]] = field(default_factory=list)
    vectors: list[FloatArray] = field(default_factory=list)

    def add_batch(self, batch: Sequence[tuple[Item, Outcome]]) -> None:
        """Encode what was decoded and make a row of every item, in order.

        Args:
            batch: items of one kind with their outcomes. The same batch gives the same bits.
        """
        decoded = [(item, outcome) for item, outcome in batch if isinstance(outcome, Decoded)]
        raw = iter(self._encode(decoded))
        for item, outcome in batch:
            if isinstance(outcome, Decoded):
                settled = settle(item, next(raw))
                if isinstance(settled, Failed):
                    self.bad.append(_row(item, outcome.sha256, None, settled))
                else:
                    self.vectors.append(settled[0])
                    self.good.append(_row(item, outcome.sha256, settled[1], None))
            elif isinstance(outcome, Failed):
                self.bad.append(_row(item, outcome.sha256, None, outcome))

    def matrix(self) -> FloatArray:
        """Give the vectors of the good rows: (n, d) float32."""
        return np.stack(self.vectors) if self.vectors else np.zeros((0, self.space.dim), np.float32)

    def _encode(self, decoded: Sequence[tuple[Item, Decoded]]) -> list[list[FloatArray]]:
        """Encode all parts of all items; part arrays of one modality and shape go together.

        Returns:
            For each item, for each part: the (d,) float32 mean over its unit clips, not normalised.
        """
        groups: dict[tuple[str, tuple[int, ...]], list[tuple[int, int]]] = {}
        for number, (item, outcome) in enumerate(decoded):
            for place, (modality, array) in enumerate(zip(modalities_of(item), outcome.arrays, strict=True)):
                groups.setdefault((modality, array.shape), []).append((number, place))
        raw: list[list[Any]] = [[None] * len(outcome.arrays) for _, outcome in decoded]
        for (modality, _), members in groups.items():
            arrays = [decoded[number][1].arrays[place] for number, place in members]
            rows = (row for x in forward_batches(arrays) for row in self.space.encode_raw(modality, x))
            for (number, place), row in zip(members, rows, strict=True):
                raw[number][place] = row
        return raw


def modalities_of(item: Item) -> tuple[str, ...]:
    """Give the modality of each part of an item; a plain one is its own part."""
    return tuple(part.modality for part in item.parts) if isinstance(item, FusedItem) else (item.modality,)


def forward_batches(arrays: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Stack arrays of one shape, up to FORWARD_BYTES at a time.

    Args:
        arrays: each (S, ...). Not modified.

    Yields:
        (B, S, ...), starting at a multiple of 64 bytes: where memory starts may decide how a kernel cuts its loops, and
        with it the last bit of the result.
    """
    size = max(1, FORWARD_BYTES // max(1, arrays[0].nbytes))
    for start in range(0, len(arrays), size):
        part = arrays[start : start + size]
        shape, dtype = (len(part), *part[0].shape), part[0].dtype
        room = np.empty(int(np.prod(shape)) * dtype.itemsize + _ALIGNMENT, dtype=np.uint8)
        first = -room.ctypes.data % _ALIGNMENT
        x = room[first : first + int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)
        yield np.stack(part, out=x)


def settle(item: Item, raw: Sequence[FloatArray]) -> tuple[FloatArray, float] | Failed:
    """Make an item's unit row of what its parts were encoded to.

    Args:
        item: gives the weights, where it is fused.
        raw: for each part the (d,) float32 mean over its unit clips. Not modified.

    Returns:
        The (d,) float32 unit row and the norm before normalising; or why there is none.
    """
    if not all(np.isfinite(row).all() for row in raw):
        return Failed("encode", "the embedding is not finite")
    if isinstance(item, FusedItem):
        wide = np.stack(raw).astype(np.float64)
        units = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
        total = np.array([part.weight for part in item.parts]) @ units
    else:
        total = raw[0].astype(np.float64)
    norm = float(np.linalg.norm(total))
    if norm < SMALLEST_NORM:
        what = "its parts cancel each other" if isinstance(item, FusedItem) else "its clips cancel each other"
        return Failed("encode", f"{what}: the sum has norm {norm:.1e}")
    return (total / norm).astype(np.float32), norm


def _row(item: Item, sha256: str | None, norm: float | None, failed: Failed | None) -> dict[str, Any]:
    return {
        **item.columns(),
        "sha256": sha256,
        "norm": norm,
        "status": "bad" if failed else "ok",
        "reason": failed.reason if failed else None,
        "stage": failed.stage if failed else None,
        "caption": item.caption,
        "group": item.group,
        "attributes": canonical_json(dict(item.attributes)) if item.attributes else None,
    }
