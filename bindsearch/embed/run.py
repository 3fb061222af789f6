"""The batch embedder: list -> plan -> decode -> encode -> commit. Stopped at any moment, it goes on where it was."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from bindsearch.embed.batching import ShardRows
from bindsearch.embed.decoding import Cut, Decoded, Outcome
from bindsearch.embed.plan import planned_items
from bindsearch.embed.planning import EmbedOptions, Planner
from bindsearch.embed.report import Display, EmbedReport, Progress
from bindsearch.embed.workers import DecodePool
from bindsearch.errors import BindSearchError, MismatchError
from bindsearch.listing import BrokenItem, Listing
from bindsearch.store import LEDGER, Generation, Identity, commit_shard, commit_store, generation_folders
from bindsearch.store.files import sweep_temps
from bindsearch.store.generation import PLAN
from bindsearch.store.identity import UNKNOWN, Manifest
from bindsearch.types import Item

LOG = logging.getLogger(__name__)
LOCK = "run.lock"


def run_embed(
    sources: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    space: Any,
    *,
    options: EmbedOptions | None = None,
    progress: bool | Callable[[Progress], None] = False,
    stdin: TextIO | None = None,
) -> EmbedReport:
    """Embed what sources hold into a store; go on with an interrupted run; on a finished one embed what is new.

    Args:
        sources: see `listing.Listing`.
        out: folder of the store.
        space: from `load_space`.
        options: see there.
        progress: True draws a bar on stderr; or a function that is called after each batch.
        stdin: where the source "-" reads from.

    Returns:
        What was done. Bad inputs are in the ledger; `check_bad()` raises when they are too many.

    Raises:
        MissingInputError: a source does not exist, or the sources hold no media.
        InputError: a duplicate key, or a manifest that cannot be meant.
        MismatchError: the folder was made with another space or preset, or an unfinished run has another dtype.
        BindSearchError: another run writes there, or the disk is full; what was committed stays.
        KeyboardInterrupt: SIGINT or SIGTERM came; the shard in hand was committed first. A second one stops at once.
    """
    options = options or EmbedOptions()
    folder = Path(out)
    listing = Listing(sources, options.modality, options.text_column, stdin, skip=[folder])
    report = EmbedReport(str(folder), space.space_id, max_bad=options.max_bad, dry_run=options.dry_run)
    with DecodePool(options.worker_count()) as pool:
        run = _Run(folder, space, report, pool, Planner(folder, space, options, report, pool), progress)
        if options.dry_run:
            return run.rehearse(listing)
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder), interruptible(run.planner.interrupted, "shard"):
            try:
                return run.go(listing)
            finally:
                if [path.name for path in folder.iterdir()] == [LOCK]:  # nothing came of it: leave nothing behind
                    shutil.rmtree(folder)


@dataclass
class _Run:
    """One run, from its listing to its report."""

    folder: Path
    space: Any
    report: EmbedReport
    pool: DecodePool
    planner: Planner
    progress: bool | Callable[[Progress], None]

    def go(self, listing: Listing) -> EmbedReport:
        """Finish what an interrupted run planned, then plan and do what is new."""
        sweep(self.folder)
        there = self.check_settings()
        manifest = Manifest.load(self.folder)
        finished = manifest.generations if manifest else ()
        unfinished = [each for each in there if each.name not in finished or each.pending()]
        for generation in unfinished:
            self.report.kept_shards += len(generation.shard_names) - len(generation.pending())
            self.execute(generation)
        if unfinished:
            commit_store(self.folder)
        fresh = self.planner.plan(listing, self.folder)
        resumed = sum(shard["items"] for generation in unfinished for shard in generation.record["shards"])
        self.report.unchanged = max(0, self.report.unchanged - resumed)
        if fresh is not None:
            self.execute(fresh)
            commit_store(self.folder)
        self.count_store()
        return self.report

    def rehearse(self, listing: Listing) -> EmbedReport:
        """Make the plan in a temporary folder and report it."""
        there = self.check_settings()
        self.count_store()
        left = [(generation, number) for generation in there for number in generation.pending()]
        if not left:
            with tempfile.TemporaryDirectory(prefix="bindsearch-plan-") as scratch:
                fresh = self.planner.plan(listing, Path(scratch))
                self._count_planned([] if fresh is None else [(fresh, n) for n in range(len(fresh.shard_names))])
        self._count_planned(left)
        return self.report

    def _count_planned(self, shards: Iterable[tuple[Generation, int]]) -> None:
        for generation, number in shards:
            self.report.shards += 1
            for item in planned_items(generation, number):
                (self.report.bad if isinstance(item, BrokenItem) else self.report.embedded)[item.modality] += 1

    def check_settings(self) -> list[Generation]:
        """Give the generations that are there.

        Raises:
            MismatchError: they were made with other settings than this run's, or one that is to be finished computes
                in another dtype: a resumed run gives the bytes of an undisturbed one.
        """
        mine = Identity.of_space(self.space, self.space.modalities)
        there = [Generation.load(folder) for folder in generation_folders(self.folder)]
        for generation in there:
            made_with = generation.identity
            made_with.merged(mine, str(self.folder))
            if made_with.dtype not in (mine.dtype, UNKNOWN) and generation.pending():
                raise MismatchError(
                    f"{generation.folder}: not finished, begun with dtype {made_with.dtype}, this run has {mine.dtype}."
                    f" Finish it with --dtype {made_with.dtype}; what comes after may have another."
                )
        return there

    def execute(self, generation: Generation) -> None:
        """Make the shards of a plan that are not there yet, in order, each committed as soon as it is full.

        Raises:
            KeyboardInterrupt: a signal came; the shard in hand is committed.
        """
        pending = generation.pending()
        if pending and generation.record.get("imported"):
            raise BindSearchError(
                f"{generation.folder}: a shard of imported embeddings is damaged. Import them again, to another folder."
            )
        shards = generation.record["shards"]
        items = (item for number in pending for item in planned_items(generation, number))
        outcomes = self.pool.map(items, self.planner.task(generation.identity.preset_ids, cut=False))
        display = Display(self.progress, self.report, sum(shards[number]["items"] for number in pending))
        with display:
            for number in pending:
                rows = ShardRows(self.space)
                wanted = itertools.islice(outcomes, shards[number]["items"])
                while batch := self._next_batch(wanted, generation.record["batch_size"]):
                    with self._timed("model"):
                        rows.add_batch(batch)
                    display.advance(len(batch))
                with self._timed("write"):
                    matrix = rows.matrix()
                    commit_shard(
                        generation.folder, shards[number]["name"], matrix, rows.good, rows.bad, generation.identity
                    )
                self._count_rows(rows)
                if self.planner.interrupted.is_set():
                    raise KeyboardInterrupt

    def _next_batch(self, outcomes: Iterator[tuple[Item, Outcome]], size: int) -> list[tuple[Item, Outcome]]:
        with self._timed("decode"):
            batch = list(itertools.islice(outcomes, size))
        for _, outcome in batch:
            if not isinstance(outcome, Cut):
                self.report.decode_seconds += outcome.seconds
            if isinstance(outcome, Decoded):
                self.report.notes.update(outcome.notes)
        return batch

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.report.seconds[stage] += time.perf_counter() - started

    def _count_rows(self, rows: ShardRows) -> None:
        self.report.shards += 1
        self.report.embedded.update(row["modality"] for row in rows.good)
        self.report.bad.update(row["modality"] for row in rows.bad)

    def count_store(self) -> None:
        """Put into the report what the store holds now."""
        manifest = Manifest.load(self.folder)
        if manifest is not None:
            self.report.items, self.report.bad_items = sum(manifest.counts.values()), manifest.bad
            self.report.ledger = str(self.folder / LEDGER)


def sweep(folder: Path) -> None:
    """Remove what a killed run left behind: temporary files, and plans that were never committed."""
    sweep_temps(folder)
    for generation in folder.glob("g[0-9][0-9][0-9][0-9]"):
        if (generation / PLAN).is_file():
            sweep_temps(generation)
        else:
            shutil.rmtree(generation)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the kernel gives it back when the process ends, however it ends."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout as error:
        raise BindSearchError(f"{folder}: another run writes there. Wait for it, or choose another folder.") from error


@contextmanager
def interruptible(interrupted: threading.Event, piece: str) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into an event; the second one stops at once.

    Args:
        interrupted: set by the first one, and looked at by the caller between two pieces of work.
        piece: what is finished first, for the message.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(_number: int, _frame: Any) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()
        LOG.warning("interrupted: finishing the %s in hand; interrupt once more to stop at once", piece)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
