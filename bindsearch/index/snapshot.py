"""One state of an index folder, as a reader sees it: its manifest and its mapped segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.config import to_json_dict
from bindsearch.errors import MismatchError, MissingInputError, UnknownNameError
from bindsearch.index.base import ExactReport
from bindsearch.index.centring import Centring
from bindsearch.index.checks import unit_queries
from bindsearch.index.manifest import Manifest, read_manifest
from bindsearch.index.recipe import SearchSettings, check_settings
from bindsearch.index.segment import REQUIRED_COLUMNS, Segment, take_rows
from bindsearch.index.upkeep import advice
from bindsearch.index.verify import verify_snapshot

if TYPE_CHECKING:
    import pyarrow as pa

    from bindsearch.types import BoolArray, FloatArray, IntArray


@dataclass(frozen=True)
class Snapshot:
    """A state of an index: searching it, reading rows and items of it. Thread-safe; later changes do not reach it.

    Attributes:
        path: the index folder.
        manifest: what the state consists of.
        segments: mapped, in the manifest's order.
        centring: what was taken from the rows and must be taken from queries; None: nothing.
    """

    path: Path
    manifest: Manifest
    segments: tuple[Segment, ...]
    centring: Centring | None = None

    @classmethod
    def open(cls, path: Path) -> Snapshot:
        """Open the newest state: manifest, sizes, headers, counts and small files are checked; nothing large is read.

        Raises:
            MissingInputError: there is no index.
            MismatchError: a file is missing, truncated, altered, or of another format version.
        """
        manifest = read_manifest(path)
        while True:
            try:
                return cls.of(path, manifest)
            except (FileNotFoundError, MismatchError) as error:
                newer = read_manifest(path)
                if newer == manifest:
                    if isinstance(error, MismatchError):
                        raise
                    raise MismatchError(
                        f"{error.filename}: the file is missing, index.json names it. Build the index again: "
                        f"bindsearch index EMBEDDINGS -o {path} --force"
                    ) from error
                manifest = newer  # replaced between our reading it and opening its files; some of them may be swept

    @classmethod
    def of(cls, path: Path, manifest: Manifest) -> Snapshot:
        """Open the state that a manifest describes, committed or not.

        Raises:
            FileNotFoundError: a file is missing.
            MismatchError: a file is not as the manifest says.
        """
        segments = tuple(
            Segment(path, entry, manifest.backend, manifest.dim, manifest.row_dtype) for entry in manifest.segments
        )
        centring = Centring.load(path, manifest.centring, manifest.dim) if manifest.centring else None
        return cls(path, manifest, segments, centring)

    @property
    def asking(self) -> FloatArray | None:
        """Give the directions that queries come from, (j, d) float32, as the index was built with; None: none named."""
        return next((part.asking for part in self.segments if part.asking is not None), None)

    def search(
        self,
        queries: FloatArray,
        k: int,
        selectors: Sequence[BoolArray | None] | None = None,
        settings: SearchSettings | None = None,
        exact: bool = False,
    ) -> tuple[FloatArray, IntArray]:
        """Find the k best items of each query over all segments.

        Args:
            queries: (q, d) float32; of a centred index centred already. Not modified.
            k: at least 1.
            selectors: one (rows of the segment,) bool mask or None a segment; None: every item.
            settings: of approximate segments; None: what the planner chose for this index, else the backends' own.
            exact: prove the answers; see `search_exact`.

        Returns, Raises: as `IndexBackend.search`.
        """
        if exact:
            scores, ids, _ = self.search_exact(queries, k, selectors)
            return scores, ids
        chosen = self.chosen_settings(settings)
        found = []
        for part, mask in self._parts(selectors):
            own = {name: value for name, value in chosen.items() if name in part.index.settings}
            found.append(part.index.search(queries, k, mask, own))
        return self.merge(queries, k, found)

    def search_exact(
        self, queries: FloatArray, k: int, selectors: Sequence[BoolArray | None] | None = None
    ) -> tuple[FloatArray, IntArray, ExactReport]:
        """Find the k best items of each query, proven; arguments and errors as of `search`.

        Returns:
            scores (q, k) float32, ids (q, k) int64, and what the proof took over all segments.
        """
        none = np.zeros(queries.shape[0] if getattr(queries, "ndim", 0) else 0, dtype=np.int64)
        report = ExactReport(none, 0, none)
        found = []
        for part, mask in self._parts(selectors):
            scores, ids, taken = part.index.search_exact(queries, k, mask)
            found.append((scores, ids))
            report = report.plus(taken)
        return *self.merge(queries, k, found), report

    def _parts(self, selectors: Sequence[BoolArray | None] | None) -> Iterator[tuple[Segment, BoolArray | None]]:
        masks = [None] * len(self.segments) if selectors is None else selectors
        return zip(self.segments, masks, strict=True)

    @property
    def setting_names(self) -> frozenset[str]:
        """The search settings that any segment reads."""
        return frozenset(name for part in self.segments for name in part.index.settings)

    def chosen_settings(self, settings: SearchSettings | None) -> SearchSettings:
        """Give the settings of a search: those asked for, else the planner's.

        Raises:
            InputError: one that no segment reads.
        """
        if settings is not None:
            check_settings(settings, dict.fromkeys(self.setting_names, 1))
            return settings
        tuned = (self.manifest.tuned or {}).get("settings", {})
        check_settings(tuned, tuned)
        return dict(tuned)

    def merge(
        self, queries: FloatArray, k: int, found: Sequence[tuple[FloatArray, IntArray]]
    ) -> tuple[FloatArray, IntArray]:
        """Merge the answers of the segments: (q, k) scores and ids each, in their order.

        Args:
            queries: as of `search`; their number and k give the shape where there is no segment.
            k: as of `search`.
            found: one pair a segment. Not modified.
        """
        if len(found) == 1:
            return found[0]
        if not found:
            shape = (unit_queries(queries, self.manifest.dim).shape[0], k)
            return np.full(shape, -np.inf, dtype=np.float32), np.full(shape, -1, dtype=np.int64)
        scores = np.concatenate([part[0] for part in found], axis=1)
        ids = np.concatenate([part[1] for part in found], axis=1)
        best = np.lexsort((ids, -scores), axis=1)[:, :k]
        return np.take_along_axis(scores, best, axis=1), np.take_along_axis(ids, best, axis=1)

    def ids(self) -> IntArray:
        """Give the ids of all living items, (count,) int64, in row order."""
        return np.concatenate(
            [np.empty(0, dtype=np.int64), *(part.index.ids[part.index.alive] for part in self.segments)]
        )

    def locate(self, ids: IntArray) -> tuple[IntArray, IntArray]:
        """Find the segment number and the row of each id, (m,) int64 each; -1 where it is unknown or removed."""
        numbers = np.full(ids.size, -1, dtype=np.int64)
        places = np.full(ids.size, -1, dtype=np.int64)
        for number, segment in enumerate(self.segments):
            here = segment.index.positions(ids)
            numbers[here >= 0], places[here >= 0] = number, here[here >= 0]
        return numbers, places

    def rows(self, ids: IntArray) -> FloatArray:
        """Give the stored rows of ids, (m, d) float32.

        Raises:
            MissingInputError: an id is not in the index.
        """
        numbers, places = self._found(ids)
        rows = np.empty((ids.size, self.manifest.dim), dtype=np.float32)
        for number, segment in enumerate(self.segments):
            here = numbers == number
            rows[here] = segment.index.rows(segment.index.ids[places[here]])
        return rows

    def table(self, ids: IntArray, columns: Sequence[str] | None = None) -> pa.Table:
        """Give the rows of the item table of ids, in their order.

        Raises:
            MissingInputError: an id is not in the index.
            UnknownNameError: a column that no segment has.
        """
        import pyarrow as pa

        numbers, places = self._found(ids)
        if not self.segments:
            return pa.table({name: pa.array([], pa.string()) for name in columns or REQUIRED_COLUMNS})
        parts: list[pa.Table] = []
        order: list[IntArray] = []
        for number, segment in enumerate(self.segments):
            here = np.flatnonzero(numbers == number)
            if here.size or not parts:
                self._check_columns(segment, columns)
                parts.append(segment.table(places[here], columns))
                order.append(here)
        joined = parts[0] if len(parts) == 1 else pa.concat_tables(parts, promote_options="permissive")
        places = np.argsort(np.concatenate(order))
        return joined if np.array_equal(places, np.arange(places.size)) else take_rows(joined, places)

    def _check_columns(self, segment: Segment, columns: Sequence[str] | None) -> None:
        """Refuse columns that neither a segment nor any other has; these are not looked at where the one has all."""
        own = segment.column_names() if columns else ()
        for name in columns or ():
            if name not in own and name not in self.column_names():
                raise UnknownNameError(f"column in {self.path}", name, self.column_names())

    def column_names(self) -> tuple[str, ...]:
        """List the columns of the item tables, those of any segment."""
        names = [name for segment in self.segments for name in segment.column_names()]
        return tuple(dict.fromkeys(names))

    def _found(self, ids: IntArray) -> tuple[IntArray, IntArray]:
        numbers, places = self.locate(ids)
        if (numbers < 0).any():
            raise MissingInputError(f"{self.path}: no item has the id {int(ids[np.argmin(numbers)])}.")
        return numbers, places

    def info(self) -> dict[str, Any]:
        """Say what the index holds and what it was made with."""
        manifest = self.manifest
        entries = [entry for part in manifest.segments for entry in part.files.values()]
        return {
            "index": str(self.path),
            "space_name": manifest.space_name,
            "space_id": manifest.space_id,
            "backend": manifest.backend,
            "recipe": None if manifest.recipe is None else to_json_dict(manifest.recipe),
            "tuned": manifest.tuned,
            "count": manifest.count,
            "modalities": manifest.modalities,
            "dim": manifest.dim,
            "metric": manifest.metric,
            "row_dtype": manifest.row_dtype,
            "segments": len(manifest.segments),
            "removed": sum(part.removed for part in manifest.segments),
            "advice": advice(manifest, str(self.path)),
            "size_bytes": sum(entry.size_bytes for entry in entries),
            "tower_ids": manifest.tower_ids,
            "preset_ids": manifest.preset_ids,
            "tokenizer_id": manifest.tokenizer_id,
            "source": manifest.source,
            "centring": manifest.centring and {"id": manifest.centring.id, "counts": manifest.centring.counts},
            "built_with": manifest.built_with,
            "generation": manifest.generation,
            "format_version": manifest.format_version,
        }

    def verify(self, sample: int = 32) -> dict[str, Any]:
        """Read every byte: checksums, ids, counts by modality, unit rows, and a sample searched exactly.

        Args:
            sample: how many rows to search for, spread evenly over each segment.

        Returns:
            What was checked, to show.

        Raises:
            MismatchError: naming the first thing that is not as it was written.
        """
        return verify_snapshot(self, sample)
