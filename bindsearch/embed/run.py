"""The batch embedder: list -> plan -> decode -> encode -> commit. Stopped at any moment, it goes on where it was.

Several processes may run it on one folder at once: lease.py says who does what, the plan says what there is to do.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from bindsearch.embed.batching import ShardRows
from bindsearch.embed.decoding import Outcome
from bindsearch.embed.lease import Crew, Lease, LostLeaseError, Member, task_mark
from bindsearch.embed.plan import PlannedByAnotherError, planned_items
from bindsearch.embed.planning import EmbedOptions, Planner, check_lists_nothing
from bindsearch.embed.report import Display, EmbedReport, Progress
from bindsearch.embed.workers import DecodePool
from bindsearch.embed.writing import Writer
from bindsearch.errors import BindSearchError, MismatchError, MissingInputError
from bindsearch.listing import BrokenItem, Listing
from bindsearch.listing.collect import STDIN
from bindsearch.sources import each_source
from bindsearch.store import LEDGER, Generation, Identity, commit_shard, commit_store, generation_folders
from bindsearch.store.files import sweep_temps
from bindsearch.store.generation import PLAN, places_of_generations
from bindsearch.store.identity import UNKNOWN, Manifest
from bindsearch.types import Item

LOG = logging.getLogger(__name__)
POLL_S = 0.1
"""How often a process that waits for others looks what they have done."""
JOIN_LIMIT_S = 120.0
"""How long one that only helps waits for somebody to help."""
FINISH = signal.SIGUSR1
"""Says: finish the piece in hand. However often it comes, it stops nothing at once."""


def run_embed(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    space: Any,
    *,
    options: EmbedOptions | None = None,
    progress: bool | Callable[[Progress], None] = False,
    stdin: TextIO | None = None,
) -> EmbedReport:
    """Embed what sources hold into a store; go on with an interrupted run; on a finished one embed what is new.

    Where another process is at work on the same folder, this one joins it: shards are taken by lease, what a dead one
    has left is taken over, and the store is committed when the last shard is. It returns when all is done.

    Args:
        sources: one or several, see `listing.Listing`; none where `options.join` is set.
        out: folder of the store.
        space: from `load_space`.
        options: see there.
        progress: True draws a bar on stderr; or a function that is called after each batch.
        stdin: where the source "-" reads from.

    Returns:
        What was done by this process. Bad inputs are in the ledger; `check_bad()` raises when they are too many.

    Raises:
        MissingInputError: a source does not exist, the sources hold no media, or nobody is there to join.
        InputError: a duplicate key, a manifest that cannot be meant, or something to list for one that only helps.
        MismatchError: the folder was made with another space or preset, or an unfinished run has another dtype.
        BindSearchError: the disk is full; what was committed stays.
        KeyboardInterrupt: SIGINT or SIGTERM came; the shard in hand was committed first. A second one stops at once.
    """
    options = options or EmbedOptions()
    folder = Path(out)
    if options.join:
        listing = None
        check_lists_nothing(
            {
                "sources": list(each_source(sources)),
                "--modality": options.modality,
                "--text-column": options.text_column,
                "--window": options.window_s,
            }
        )
    else:
        listing = Listing(sources, options.modality, options.text_column, stdin, skip=[folder])
    report = EmbedReport(str(folder), space.space_id, max_bad=options.max_bad, dry_run=options.dry_run)
    report.workers, report.processes = options.worker_count(), options.place.local_count
    with DecodePool(options.worker_count()) as pool:
        planner = Planner(folder, space, options, report, pool)
        crew = Crew(folder, Member.here(_task(listing, options), str(options.place), options.silence_s))
        run = _Run(folder, space, report, pool, planner, progress, listing, crew)
        if options.dry_run:
            return run.rehearse()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with interruptible(planner.interrupted, "shard"), crew:
                return run.go()
        finally:
            with contextlib.suppress(OSError):  # nothing came of it: leave nothing behind
                folder.rmdir()


def _task(listing: Listing | None, options: EmbedOptions) -> str | None:
    """Hash what a process is to list, so that those with one task need one plan; stdin is nobody else's."""
    if listing is None:
        return None
    alone = [os.getpid(), time.time_ns()] if STDIN in listing.origins else []
    return task_mark(listing.origins, options.modality, options.text_column, options.window_s, alone)


@dataclass
class _Run:
    """One process's part of a run, from its listing to its report."""

    folder: Path
    space: Any
    report: EmbedReport
    pool: DecodePool
    planner: Planner
    progress: bool | Callable[[Progress], None]
    listing: Listing | None
    crew: Crew
    planned: bool = False
    begun: set[str] = field(default_factory=set)
    joined: bool = False
    waits_for: str = ""

    def go(self) -> EmbedReport:
        """Finish what is planned and not finished, then plan and do what is new, beside others who do the same."""
        sweep(self.folder, self.crew)
        since_s, resumed = time.monotonic(), list[Generation]()
        while True:
            unfinished = self._unfinished(self.check_settings())
            finished, remade = self._finished(), False
            for generation in unfinished:
                if not self.planned and generation.name not in self.begun:
                    resumed.append(generation)
                remade |= bool(self.execute(generation)) and generation.name in finished
            if unfinished:
                self.finish(remade)
            elif self._is_planned():
                break
            elif self.listing is not None:
                self._plan(self.listing, resumed)
            elif self._nobody_plans(since_s):
                break
        if self.report.embedded:
            self.report.quicker = self.space.quicker()
        self.count_store()
        if not self.report.shards:
            self._remark_dtype()
        return self.report

    def _unfinished(self, there: Sequence[Generation]) -> list[Generation]:
        finished = self._finished()
        return [each for each in there if each.name not in finished or each.pending()]

    def _finished(self) -> tuple[str, ...]:
        manifest = Manifest.load(self.folder)
        return manifest.generations if manifest else ()

    def _is_planned(self) -> bool:
        """Say whether this process, or one with the same task that it has seen at work, has planned what is new."""
        if self.planned or self.listing is None:
            return self.planned
        held = self.crew.holder("plan")
        return held is not None and held["done"] and held["owner"] in self.crew.met

    def _plan(self, listing: Listing, resumed: Sequence[Generation]) -> None:
        """Plan what is new, unless another process is at it; what was resumed in this run is not called unchanged."""
        lease = self.crew.take("plan")
        if lease is None:
            self._wait("plan")
            return
        with lease:
            if self._unfinished(self.check_settings()):  # planned between our look and our lease
                return
            sweep(self.folder, self.crew)
            for generation in places_of_generations(self.folder):
                if not (generation / PLAN).is_file():  # of a run by an older version that was killed over it
                    shutil.rmtree(generation)
            try:
                self.planner.plan(listing, self.folder)
            except PlannedByAnotherError:  # look again: what it planned, and then what is new beside that
                return
            shards = [shard for generation in resumed for shard in generation.shards()]
            bad = sum(shard.bad for shard in shards)
            self.report.unchanged = max(0, self.report.unchanged - bad - sum(shard.rows for shard in shards))
            self.report.unchanged_bad = max(0, self.report.unchanged_bad - bad)
            self.planned = True
            lease.settle()

    def _nobody_plans(self, since_s: float) -> bool:
        """Wait for others to plan something; True where nobody is left who could, and something was made.

        Raises:
            MissingInputError: nobody came.
        """
        if any(member.task is not None for member in self.crew.others()):
            self.joined = True
        elif self.joined or self.begun or self._finished():
            return True
        elif time.monotonic() - since_s > JOIN_LIMIT_S:
            raise MissingInputError(
                f"{self.folder}: nobody to join came within {JOIN_LIMIT_S:g} s. Start a run: bindsearch embed SRC -o "
                f"{self.folder}"
            )
        self._wait("plan")
        return False

    def _wait(self, name: str) -> None:
        """Wait a moment for another process, and say once for whom.

        Raises:
            KeyboardInterrupt: a signal came.
        """
        others = ", ".join(f"{member.host} (process {member.pid})" for member in self.crew.others())
        if others and self.waits_for != name:
            LOG.info("%s: waiting for %s: %s", self.folder, name, others)
            self.waits_for = name
        if self.planner.interrupted.wait(POLL_S):
            raise KeyboardInterrupt

    def finish(self, remade: bool) -> None:
        """Commit the store when all shards are there, unless another process does.

        Args:
            remade: this process has made a shard anew that the store has counted already.
        """
        while remade or self._unfinished([Generation.load(folder) for folder in generation_folders(self.folder)]):
            lease = self.crew.take("store")
            if lease is None:
                self._wait("store")
                continue
            with lease, contextlib.suppress(LostLeaseError):
                sweep(self.folder, self.crew)
                commit_store(self.folder, lease.check)
                return

    def rehearse(self) -> EmbedReport:
        """Report what is planned and not finished, and what is new: the plan of that is made in a temporary folder."""
        there = self.check_settings()
        self.count_store()
        self._count_planned((generation, number) for generation in there for number in generation.pending())
        left = self.report.embedded.total() + self.report.bad.total()
        if self.listing is not None:
            with tempfile.TemporaryDirectory(prefix="bindsearch-plan-") as scratch:
                fresh = self.planner.plan(self.listing, Path(scratch))
                self._count_planned([] if fresh is None else [(fresh, n) for n in range(len(fresh.shard_names))])
            self.report.unchanged = max(0, self.report.unchanged - left)
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
                in another dtype, or with other switches: a resumed run gives the bytes of an undisturbed one.
        """
        mine = Identity.of_space(self.space, self.space.modalities)
        there = [Generation.load(folder) for folder in generation_folders(self.folder)]
        speed = getattr(getattr(self.space, "switches", None), "id", None)
        for generation in there:
            made_with = generation.identity
            made_with.merged(mine, str(self.folder))
            if made_with.dtype not in (mine.dtype, UNKNOWN) and generation.pending():
                raise MismatchError(
                    f"{generation.folder}: not finished, begun with dtype {made_with.dtype}, this run has {mine.dtype}."
                    f" Finish it with --dtype {made_with.dtype}; what comes after may have another."
                )
            begun = generation.record.get("speed", speed)
            if speed is not None and begun != speed and generation.pending():
                raise MismatchError(
                    f"{generation.folder}: not finished, begun with speed {begun}, this run has {speed}. Finish it "
                    f"with --speed {begun}; what comes after may have another."
                )
        return there

    def execute(self, generation: Generation) -> int:
        """See to it that all shards of a plan are there: make those that nobody has, wait for those that others make.

        Returns:
            How many this process made, each committed as soon as it was full.

        Raises:
            KeyboardInterrupt: a signal came; the shard in hand is committed.
        """
        pending = generation.pending()
        if pending and generation.record.get("imported"):
            raise BindSearchError(
                f"{generation.folder}: a shard of imported embeddings is damaged. Import them again, to another folder."
            )
        if not (self.planned or self.crew.met or generation.name in self.begun):
            self.report.kept_shards += len(generation.shard_names) - len(pending)
        self.begun.add(generation.name)
        names, made = generation.shard_names, 0
        while pending:
            if self.planner.interrupted.is_set():
                raise KeyboardInterrupt
            if self.crew.free(f"{generation.name}-{names[number]}" for number in pending):
                made += self._work(generation, pending)
            else:
                self._wait("shards")
            pending = [number for number in pending if not generation.is_done(names[number])]
        return made

    def _work(self, generation: Generation, pending: Sequence[int]) -> int:
        """Make the shards that nobody has; return how many there were."""
        shards, made = generation.record["shards"], 0
        taken: deque[tuple[int, Lease]] = deque()
        task = self.planner.task(generation.identity.preset_ids, cut=False)
        outcomes: Any = self.pool.map(self._take(generation, pending, taken), task)
        display = Display(self.progress, self.report, sum(shards[number]["items"] for number in pending))
        try:
            with display, Writer() as writer:
                while first := self._next_batch(outcomes, 1):
                    number, lease = taken.popleft()
                    rows, made = ShardRows(self.space), made + 1
                    wanted = itertools.chain(first, itertools.islice(outcomes, shards[number]["items"] - 1))
                    while batch := self._next_batch(wanted, generation.record["batch_size"]):
                        with self._timed("model"):
                            rows.add_batch(batch)
                        display.advance(len(batch))
                    with self._timed("write"):  # waits while the shard before is still being written
                        writer.put(partial(self._commit, generation, lease, shards[number]["name"], rows))
                    if self.planner.interrupted.is_set():
                        raise KeyboardInterrupt
                with self._timed("write"):
                    writer.wait()
        finally:
            outcomes.close()
            for _, lease in taken:
                lease.release()
        return made

    def _take(self, generation: Generation, pending: Sequence[int], taken: deque[tuple[int, Lease]]) -> Iterator[Item]:
        """Yield the items of one shard after the other, each taken by lease when its turn comes.

        Args:
            generation: the plan.
            pending: numbers of its shards that were not done when somebody looked.
            taken: numbers and leases are put there, in the order of the items.
        """
        first = self.planner.options.place.first(len(generation.shard_names))
        for number in sorted(pending, key=lambda number: (number < first, number)):
            name = generation.shard_names[number]
            if self.planner.interrupted.is_set():
                return
            lease = self.crew.take(f"{generation.name}-{name}")
            if lease is None:
                continue
            if generation.is_done(name):
                lease.release()
                continue
            taken.append((number, lease))
            yield from planned_items(generation, number)

    def _commit(self, generation: Generation, lease: Lease, name: str, rows: ShardRows) -> None:
        """Write a shard, unless its lease was lost meanwhile: then it is somebody else's."""
        started = time.perf_counter()
        with lease:
            try:
                commit_shard(
                    generation.folder, name, rows.matrix(), rows.good, rows.bad, generation.identity, lease.check
                )
                self._count_rows(rows)
            except LostLeaseError as error:
                LOG.warning("%s", error)
        self.report.busy["write"] += time.perf_counter() - started

    def _next_batch(self, outcomes: Iterator[tuple[Item, Outcome]], size: int) -> list[tuple[Item, Outcome]]:
        with self._timed("decode"):
            batch = list(itertools.islice(outcomes, size))
        for _, outcome in batch:
            self.report.count_outcome(outcome)
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

    def _remark_dtype(self) -> None:
        """Say that this run's dtype was not used where the store has another and nothing was embedded."""
        manifest = Manifest.load(self.folder)
        mine = Identity.of_space(self.space, ()).dtype
        if manifest is not None and not {mine, UNKNOWN} & set(manifest.dtype.split("+")):
            self.report.remarks.append(
                f"{mine} was not used: nothing is new, and what is in the store was made with {manifest.dtype}. To "
                "embed all of it again: another folder, -o EMBEDDINGS"
            )

    def count_store(self) -> None:
        """Put into the report what the store holds now."""
        manifest = Manifest.load(self.folder)
        if manifest is not None:
            self.report.items, self.report.bad_items = sum(manifest.counts.values()), manifest.bad
            self.report.ledger = str(self.folder / LEDGER)


def sweep(folder: Path, crew: Crew) -> None:
    """Remove the temporary files that killed processes left behind, in the folder and in unfinished generations."""
    sweep_temps(folder, crew.writers)
    manifest = Manifest.load(folder)
    for generation in generation_folders(folder):
        if manifest is None or generation.name not in manifest.generations:
            sweep_temps(generation, crew.writers)


@contextmanager
def interruptible(interrupted: threading.Event, piece: str) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into an event; the second one stops at once.

    FINISH does as the first one does and counts as neither. A process sends it to those that it has started: what ended
    the one has often reached the others as well, as Ctrl-C reaches all processes of a terminal.

    Args:
        interrupted: set by the first one, and looked at by the caller between two pieces of work.
        piece: what is finished first, for the message.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    counted: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if number != FINISH:
            if counted:
                raise KeyboardInterrupt
            counted.append(number)
        if not interrupted.is_set():
            interrupted.set()
            LOG.warning("interrupted: finishing the %s in hand; interrupt once more to stop at once", piece)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, FINISH)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
