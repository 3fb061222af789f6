"""Reading every byte of an index and comparing it with what was written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import MismatchError
from bindsearch.index.flat import FlatIndex
from bindsearch.index.manifest import sum_counts
from bindsearch.index.recipe import norm_tolerance
from bindsearch.index.segment import Segment, count_values

if TYPE_CHECKING:
    from bindsearch.index.snapshot import Snapshot
    from bindsearch.types import IntArray


def verify_snapshot(snapshot: Snapshot, sample: int) -> dict[str, Any]:
    """Check checksums, ids, counts by modality, unit rows, and a sample searched exactly, segment by segment.

    Args:
        snapshot: the state to check.
        sample: how many rows to search for, spread evenly over each segment.

    Returns:
        What was checked, to show.

    Raises:
        MismatchError: naming the first file that is not as it was written.
    """
    import pyarrow as pa

    path, manifest = snapshot.path, snapshot.manifest
    modalities: dict[str, int] = {}
    parts: list[dict[str, Any]] = []
    for segment in snapshot.segments:
        check_files(segment)
        alive = segment.index.alive
        modalities = sum_counts(modalities, count_values(segment.column("modality").filter(pa.array(alive))))
        parts.append(
            {
                "name": segment.entry.name,
                "backend": segment.entry.backend or manifest.backend,
                "rows": segment.entry.rows,
                "removed": segment.entry.removed,
                "files": len(segment.entry.files) + (segment.entry.tombstones is not None),
                "size_bytes": sum(entry.size_bytes for entry in segment.entry.files.values()),
                "worst_norm_error": _worst_norm(segment),
                "sample_searched": _search_sample(segment, np.flatnonzero(alive), sample),
            }
        )
    if modalities != manifest.modalities or sum(modalities.values()) != manifest.count:
        raise MismatchError(
            f"{path}: holds {modalities}, its manifest says {manifest.modalities}. Build the index again."
        )
    _check_disjoint(snapshot)
    return {
        "index": str(path),
        "status": "ok",
        "count": manifest.count,
        "segments": parts,
        "size_bytes": sum(part["size_bytes"] for part in parts),
        "worst_norm_error": max((part["worst_norm_error"] for part in parts), default=0.0),
        "sample_searched": sum(part["sample_searched"] for part in parts),
    }


def check_files(segment: Segment) -> None:
    """Compare every file of a segment with the manifest, those of its recipe included, and with each other.

    Raises:
        MismatchError: naming the first file that is not as it was written, is missing, or is nobody's.
    """
    segment.verify()
    named = set(segment.entry.files)
    try:
        found = {path.name for path in segment.path.iterdir()}
    except FileNotFoundError:  # swept after this snapshot was opened: its files live on in the mappings
        return
    for name in sorted(found - named):
        raise MismatchError(
            f"{segment.path / name}: the manifest names no such file. Remove it, or build the index again."
        )


def _check_disjoint(snapshot: Snapshot) -> None:
    """Refuse an item that lives in two segments.

    Raises:
        MismatchError: naming its id and both segments.
    """
    for number, segment in enumerate(snapshot.segments):
        ids = segment.index.ids[segment.index.alive]
        for other in snapshot.segments[:number]:
            twice = ids[other.index.positions(ids) >= 0]
            if twice.size:
                raise MismatchError(
                    f"{snapshot.path}: the item {int(twice[0])} lives in two segments, {other.entry.name} and "
                    f"{segment.entry.name}. Build the index again."
                )


def _worst_norm(segment: Segment) -> float:
    """Give the largest |norm - 1| of a segment's rows, refusing rows that are not unit.

    Raises:
        MismatchError: naming the norm.
    """
    worst = 0.0
    for _, block in segment.index.blocks():
        wide = block.astype(np.float64)
        worst = float(np.maximum(worst, np.abs(np.sqrt((wide * wide).sum(axis=1)) - 1).max()))  # keeps a NaN
    if not worst <= norm_tolerance(segment.index.row_dtype):  # NaN included
        raise MismatchError(f"{segment.path}/vectors.npy: a row's norm is off by {worst:.1e}, expected 1.")
    return worst


def _search_sample(segment: Segment, alive: IntArray, sample: int) -> int:
    """Search exactly for some of a segment's own rows and compare with the numpy truth; gives how many.

    Raises:
        MismatchError: naming the id whose answers differ.
    """
    if not alive.size or not sample:
        return 0
    places = alive[np.unique(np.linspace(0, alive.size - 1, min(sample, alive.size)).astype(np.int64))]
    ids = segment.index.ids
    queries = segment.index.rows(ids[places])
    truth = FlatIndex.open(Path(segment.path))
    truth.remove(ids[~segment.index.alive])
    found, expected = segment.index.search_exact(queries, 10)[:2], truth.search(queries, 10)
    lowest = 1 - norm_tolerance(segment.index.row_dtype)
    for row, place in enumerate(places.tolist()):
        same = np.array_equal(found[0][row], expected[0][row]) and np.array_equal(found[1][row], expected[1][row])
        if not same or found[0][row, 0] < lowest:
            raise MismatchError(
                f"{segment.path}: a search for the row of id {ids[place]} gives other answers than numpy."
            )
    return int(places.size)
