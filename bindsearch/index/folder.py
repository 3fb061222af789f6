"""The index on disk: immutable segments, tombstones and a manifest whose replacement is the only commit.

A change writes new files, then replaces index.json in one step; a reader keeps the snapshot that it opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindsearch.errors import MismatchError
from bindsearch.index.base import Progress, no_progress
from bindsearch.index.commit import commit, sweep, writing
from bindsearch.index.manifest import Manifest, read_manifest
from bindsearch.index.snapshot import Snapshot
from bindsearch.index.source import BLOCK_ROWS, VectorSource, open_source

if TYPE_CHECKING:
    from bindsearch.index.change import Added
    from bindsearch.types import IntArray


class IndexFolder:
    """An open index folder: the newest snapshot known to this process, and the changes, each of them atomic.

    Searching is thread-safe. A change made through this object moves it to the new snapshot; other readers keep theirs
    until `reload`.

    Attributes:
        path: the folder.
        snapshot: to search in; take it once where several reads must see one state.
    """

    def __init__(self, path: Path, snapshot: Snapshot) -> None:
        """Use `open`."""
        self.path, self.snapshot = path, snapshot

    @classmethod
    def open(cls, path: str | Path) -> IndexFolder:
        """Open an index in milliseconds; see `Snapshot.open` for what is checked and raised."""
        return cls(Path(path), Snapshot.open(Path(path)))

    def reload(self) -> None:
        """Move to the newest snapshot on disk."""
        self.snapshot = Snapshot.open(self.path)

    @property
    def manifest(self) -> Manifest:
        """The manifest of the snapshot."""
        return self.snapshot.manifest

    @property
    def count(self) -> int:
        """The number of living items."""
        return self.snapshot.manifest.count

    def info(self) -> dict[str, Any]:
        """Say what the index holds and what it was made with."""
        return self.snapshot.info()

    def verify(self, sample: int = 32) -> dict[str, Any]:
        """Read every byte of the newest state and compare; see `Snapshot.verify`. What this object searches stays.

        Raises:
            MismatchError: naming the first file that is not as it was written.
        """
        while True:
            newest = Snapshot.open(self.path)
            try:
                return newest.verify(sample)
            except FileNotFoundError as error:
                if read_manifest(self.path) == newest.manifest:  # else it was changed while we read
                    raise MismatchError(
                        f"{error.filename}: the file is missing, index.json names it. Build the index again."
                    ) from error

    # ---- changing ----------------------------------------------------------------------------------------------------

    def add(self, embeddings: str | Path | VectorSource, block_rows: int = BLOCK_ROWS) -> Added:
        """Add the items of a source, replacing those whose vector or item row differs; equal ones are passed over.

        What the source marks as gone leaves every later answer, where the index has it from the same file. A centred
        index keeps its means and takes them from what is added, so that old and new rows stay comparable. Additions are
        segments of their own, searched exactly; small ones of like size are folded into one as they come.

        Args:
            embeddings: of the same space: folder of an embedding store, or an open one.
            block_rows: rows in memory at once.

        Returns:
            How many items were added, replaced, unchanged and gone.

        Raises:
            MismatchError: another space, dimension, or tower or preset of a modality that the index has; or both are
                of an unknown space and `embeddings` is not the folder that the index was built from; or the index is
                centred and has no mean of a modality that is added.
            InputError: a bad vector, an id twice; or another process has been changing the index for a minute.
        """
        from bindsearch.index import change  # whoever only searches does without the writing half

        source, name = open_source(embeddings)
        with self._changing():
            manifest, done = change.add(self.snapshot, source, name, block_rows)
            self._commit(manifest)
            while folded := change.fold(self.snapshot, block_rows):
                self._commit(folded)
        return done

    def remove(self, ids: IntArray) -> int:
        """Take items out of every later answer; their rows stay on disk until `compact`.

        Args:
            ids: (m,) int64; unknown ones are passed over. Not modified.

        Returns:
            How many items were removed.
        """
        from bindsearch.index import change

        with self._changing():
            manifest, removed = change.remove(self.snapshot, ids)
            self._commit(manifest)
        return removed

    def compact(self, block_rows: int = BLOCK_ROWS, progress: Progress = no_progress) -> None:
        """Write the living rows as one segment, built by the index's recipe; removed ones take no more room."""
        from bindsearch.index import change

        with self._changing():
            self._commit(change.compact(self.snapshot, block_rows, progress))

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock, on the newest state, without what a killed writer left."""
        with writing(self.path):
            self.reload()
            sweep(self.path, self.manifest)
            yield

    def _commit(self, manifest: Manifest | None) -> None:
        """Commit what a change wrote, where it changed anything, and move to it."""
        if manifest is not None:
            commit(self.path, manifest)
            self.reload()
