"""Centring: each modality's mean taken from its rows and its queries, so that the modality gap is no part of scores.

    row   -> unit(row - mean of its modality)          when the index is built and added to
    term  -> unit(term - mean of its modality)         of a query, before terms are weighted and added

The means are those of the embeddings that the index was built from (and of those named beside them, for modalities that
are only asked with); they lie in the index, named by their hash, and are never changed by adding or removing items.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import InputError, MismatchError
from bindsearch.index.checks import map_array, unit_rows
from bindsearch.index.manifest import CentringEntry, check_file, describe_file, sync_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.index.segment import Block
    from bindsearch.types import FloatArray

    Real = NDArray[np.float64]

LEAST_ITEMS = 10
"""A mean over fewer items says more of the items than of their modality."""
SMALLEST_NORM = 1e-6
FILE_GLOB = "index.means*"
"""The means, and what a killed change left of them."""


@dataclass(frozen=True, eq=False)
class Centring:
    """The means of some modalities.

    Attributes:
        means: modality -> (d,) float64, the mean of unit rows. Not to be modified.
        counts: modality -> how many items the mean is over.
    """

    means: Mapping[str, Real]
    counts: Mapping[str, int]

    @property
    def id(self) -> str:
        """Name and hash of the means, as in "centred:4f2c91ab03de"."""
        digest = hashlib.sha256(",".join(self.names).encode("ascii") + self._table().tobytes())
        return f"centred:{digest.hexdigest()[:12]}"

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities that have a mean, in the order of the file's rows."""
        return tuple(sorted(self.means))

    def _table(self) -> Real:
        return np.stack([self.means[name] for name in self.names]).astype("<f8")

    def check(self, modalities: Iterable[str], where: str) -> None:
        """Refuse modalities without a mean.

        Args:
            modalities: that rows or queries are of.
            where: the index, for messages.

        Raises:
            MismatchError: naming the modality, those that have a mean, and what to type.
        """
        for modality in modalities:
            if modality == "vector" and modality not in self.means:
                raise MismatchError(
                    f"{where}: is centred by modality, and cannot be asked with bare vectors, whose modality nobody "
                    "knows. Ask with a file or words, or rebuild it without --centre: bindsearch index EMBEDDINGS "
                    f"-o {where} --force"
                )
            if modality not in self.means:
                raise MismatchError(
                    f"{where}: is centred by modality, and has no mean of {modality}; it has means of "
                    f"{', '.join(self.names)}. Rebuild it: bindsearch index EMBEDDINGS -o {where} --force --centre "
                    "--centre-with MORE_EMBEDDINGS"
                )

    def apply(self, rows: FloatArray, modality: str, what: str) -> FloatArray:
        """Centre rows of one modality.

        Args:
            rows: (n, d) float32, normalised in a copy. Not modified.
            modality: one that has a mean.
            what: the rows' name, for messages.

        Returns:
            (n, d) float32 unit rows: unit(unit(row) - mean).

        Raises:
            InputError: a row that is the mean has no direction left.
        """
        moved = unit_rows(rows, what).astype(np.float64) - self.means[modality]
        norms = np.sqrt((moved * moved).sum(axis=1, keepdims=True))
        if (norms < SMALLEST_NORM).any():
            place = int(np.argmin(norms))
            raise InputError(
                f"{what}: row {place} is the mean of its modality ({modality}), so that nothing is left of it when "
                "centred. Leave the item out, or build the index without --centre."
            )
        return np.asarray(moved / norms, dtype=np.float32)

    def blocks(self, blocks: Iterable[Block], where: str) -> Iterator[Block]:
        """Centre the rows of blocks, each by its item's modality; errors as in `check` and `apply`."""
        for ids, vectors, table in blocks:
            kinds = np.array(table["modality"].to_pylist())
            moved = np.empty(vectors.shape, dtype=np.float32)
            for modality in np.unique(kinds).tolist():
                self.check([modality], where)
                here = kinds == modality
                moved[here] = self.apply(vectors[here], modality, f"{where}: vectors")
            yield ids, moved, table

    def save(self, folder: Path) -> CentringEntry:
        """Write the means into an index folder, synced; gives the entry for its manifest."""
        path = folder / f"index.means-{self.id.partition(':')[2]}.npy"
        temporary = folder / f"index.means.tmp-{os.getpid()}"
        with temporary.open("wb") as stream:
            np.save(stream, self._table(), allow_pickle=False)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_folder(folder)
        counts = {name: int(self.counts[name]) for name in self.names}
        return CentringEntry(self.id, path.name, describe_file(path), counts)

    @classmethod
    def load(cls, folder: Path, entry: CentringEntry, dim: int) -> Centring:
        """Read the means of an index.

        Raises:
            FileNotFoundError: the file is gone (the caller may find a newer manifest).
            MismatchError: it is not as it was written.
        """
        path = folder / entry.file
        check_file(path, entry.described, payload=True)
        table = map_array(path, "float64", 2)
        if table.shape != (len(entry.counts), dim):
            raise MismatchError(f"{path}: expected {len(entry.counts)} rows of {dim}, got shape {table.shape}.")
        found = cls(dict(zip(sorted(entry.counts), np.array(table), strict=True)), dict(entry.counts))
        if found.id != entry.id:
            raise MismatchError(f"{path}: holds the means {found.id}, its manifest says {entry.id}.")
        return found


def measure_means(sources: Iterable[tuple[Any, str]], block_rows: int = 4096) -> Centring:
    """Take the mean of each modality's unit rows over some embeddings.

    Args:
        sources: pairs of an open store and its name.
        block_rows: rows in memory at once.

    Raises:
        InputError: a modality has fewer than LEAST_ITEMS items.
    """
    sums: dict[str, Real] = {}
    counts: dict[str, int] = {}
    for source, name in sources:
        for _, vectors, table in source.iter_blocks(block_rows):
            kinds, rows = np.array(table["modality"].to_pylist()), unit_rows(vectors, f"{name}: vectors")
            for modality in np.unique(kinds).tolist():
                part = rows[kinds == modality].astype(np.float64)
                sums[modality] = sums.get(modality, np.zeros(part.shape[1])) + part.sum(axis=0)
                counts[modality] = counts.get(modality, 0) + len(part)
    for modality, count in counts.items():
        if count < LEAST_ITEMS:
            raise InputError(
                f"--centre: {count} {modality} item(s); a mean over fewer than {LEAST_ITEMS} says little of the "
                "modality. Leave --centre away, or name embeddings with more of them: --centre-with EMBEDDINGS"
            )
    return Centring({name: total / counts[name] for name, total in sums.items()}, counts)
