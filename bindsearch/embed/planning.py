"""Plan a run: what the sources hold that the store does not, cut in spans, dealt out to shards and batches."""

from __future__ import annotations

import dataclasses
import os
import shutil
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bindsearch.embed.batching import modalities_of
from bindsearch.embed.changes import KnownUnits, reads_alike
from bindsearch.embed.decoding import Cut, Failed, Outcome, has_spans
from bindsearch.embed.lease import SILENCE_S
from bindsearch.embed.place import Place
from bindsearch.embed.plan import PlannedRow, PlanWriter, fingerprint, span_item
from bindsearch.embed.report import NOT_IN_SPACE, EmbedReport
from bindsearch.embed.worker import Task
from bindsearch.embed.workers import DecodePool
from bindsearch.errors import InputError, MissingInputError
from bindsearch.listing import BrokenItem, Listing
from bindsearch.listing.collect import STDIN
from bindsearch.modalities.clips import CUT_STAGE
from bindsearch.sources import each_source
from bindsearch.store import Generation, Identity, generation_folders
from bindsearch.store.files import full_disk_said
from bindsearch.types import Item

_CHUNK_ITEMS = 1024


@dataclass(frozen=True)
class EmbedOptions:
    """What a run may be told beside its sources.

    Attributes:
        modality: read every source as this one.
        text_column: column of manifests that holds the texts.
        window_s: cut long recordings in spans of this length; None is each modality's own rule.
        batch_size: items a forward pass; fixed in the plan.
        shard_size: items a shard, the unit of commit; fixed in the plan.
        workers: decode processes; 0 decodes in this one, None takes one a CPU, at most 8, shared by the processes of
            this machine.
        max_bad: share of bad inputs above which `EmbedReport.check_bad` raises.
        item_limit_s: wall time that decoding one item may take.
        dry_run: make the plan, report it, write nothing.
        place: which of several processes this one is.
        join: help with what others have planned, plan nothing.
        silence_s: seconds without a sign of life after which another machine's process counts as dead.
    """

    modality: str | None = None
    text_column: str | None = None
    window_s: float | None = None
    batch_size: int = 32
    shard_size: int = 1024
    workers: int | None = None
    max_bad: float = 0.1
    item_limit_s: float = 30.0
    dry_run: bool = False
    place: Place = field(default_factory=Place)
    join: bool = False
    silence_s: float = SILENCE_S

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        for name in ("batch_size", "shard_size", "item_limit_s", "silence_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}: expected a number above 0, got {getattr(self, name)}.")
        if self.window_s is not None and not self.window_s > 0:
            raise InputError(f"window: expected seconds above 0, got {self.window_s}.")
        if self.workers is not None and self.workers < 0:
            raise InputError(f"workers: expected 0 or more, got {self.workers}.")

    @property
    def look(self) -> dict[str, Any]:
        """How sources are read, as a plan records it: what another look would bring is not gone for this one."""
        return {"modality": self.modality, "text_column": self.text_column}

    def worker_count(self) -> int:
        """Resolve `workers`; None shares the CPUs among the processes on this machine."""
        if self.workers is not None:
            return self.workers
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(8, max(1, cpus // self.place.local_count))


def check_lists_nothing(told: Mapping[str, Any]) -> None:
    """Refuse what says what is to be listed, and how, for a process that only helps with what others have planned.

    Args:
        told: what was given, by its name on the command line; None or empty where nothing was.

    Raises:
        InputError: something was.
    """
    given = [f"{name} {' '.join(map(str, each_source(value)))}" for name, value in told.items() if value]
    if given:
        raise InputError(
            f"--join helps with what others have planned and lists nothing itself; got {', '.join(given)}. To help: "
            "bindsearch embed --join -o OUT. To embed these: leave out --join; a run at work is joined then too."
        )


@dataclass
class Planner:
    """Plans what a run is to do, and counts what it leaves aside.

    Attributes:
        folder: of the store.
        space: what encodes.
        options: of the run.
        report: counts are put there.
        pool: looks at the length of recordings.
        interrupted: set when the run is to stop.
    """

    folder: Path
    space: Any
    options: EmbedOptions
    report: EmbedReport
    pool: DecodePool
    interrupted: threading.Event = field(default_factory=threading.Event)

    def plan(self, listing: Listing, where: Path) -> Generation | None:
        """List the sources and plan what is new or changed.

        Args:
            listing: what the sources hold; iterated once.
            where: folder that the generation's folder is made in.

        Returns:
            The committed plan, or None where nothing is new, changed or gone.

        Raises:
            MissingInputError: the sources hold nothing that can be embedded, and nothing of theirs is in the store.
            InputError: a key is there twice.
        """
        started = time.perf_counter()
        done = [Generation.load(folder) for folder in generation_folders(self.folder)]
        known = KnownUnits(self.folder, done, listing.origins, self.options.look)
        with full_disk_said(where):
            writer = PlanWriter(where / f"g{len(done) + 1:04d}", self.options.shard_size)
        try:
            with full_disk_said(writer.folder):
                found, unread = self._plan_items(listing, known, writer)
                planned = writer.finish()
                gone, kept = known.gone(unread)
            self.report.remarks += [_kept_said(place, count) for place, count in sorted(kept.items())]
            self.report.ignored += listing.ignored
            self.report.hidden, self.report.linked, self.report.gone = listing.hidden, listing.linked, len(gone)
            if not found and not self.report.kept_shards and not self._is_emptied(done, listing):
                raise MissingInputError(f"{', '.join(listing.names)}: no media found. {self._what_instead(listing)}")
            if not planned and not gone:
                shutil.rmtree(writer.folder)
                return None
            used = {part for shard in writer.shards for part in shard["kind"].split("+")} & set(self.space.modalities)
            record = {"sources": listing.origins, "batch_size": self.options.batch_size, **self.options.look}
            if switches := getattr(self.space, "switches", None):
                record["speed"] = switches.id  # another way of computing gives other last bits
            return writer.commit(Identity.of_space(self.space, used), record, gone)
        except BaseException:
            writer.abandon()
            raise
        finally:
            self.report.seconds["list"] += time.perf_counter() - started

    def _is_emptied(self, done: Sequence[Generation], listing: Listing) -> bool:
        """Tell whether sources that hold nothing now were listed before: all they held is gone, and that is no mistake.

        A modality that was asked for and that passes files over is taken for one.
        """
        alike = [each.record for each in done if reads_alike(each.record, self.options.look)]
        before = {name for record in alike for name in record["sources"]} - {STDIN}
        return not before.isdisjoint(listing.origins) and not (self.options.modality and self.report.ignored)

    def _what_instead(self, listing: Listing) -> str:
        if listing.left_out:
            return (
                f"{self.folder} is where the embeddings go, and what lies in it is not listed. Name another folder for "
                "them: -o EMBEDDINGS"
            )
        if not self.report.ignored:
            return "Nothing there has a name that says what it is."
        ignored = ", ".join(f"{count} {name}" for name, count in sorted(self.report.ignored.items()))
        how = "bindsearch embed SRC -o EMBEDDINGS --modality NAME"
        return f"Ignored: {ignored}. To read files whatever their suffix: {how}"

    def _plan_items(self, listing: Listing, known: KnownUnits, writer: PlanWriter) -> tuple[int, set[str]]:
        """Plan each new or changed item; return how many items were listed, and the places that could not be read."""
        found = 0
        unread: set[str] = set()
        changed: list[tuple[int, Item, int]] = []
        for origin, item in listing.with_origins():
            if lacking := self._lacking(item):
                self.report.ignored[lacking + NOT_IN_SPACE] += 1
                known.keep(item)
                continue
            found += 1
            if isinstance(item, BrokenItem) and item.hides:
                unread.add(item.source)
            mark, older = self._marks_of(item)
            unchanged = known.count_unchanged(item, mark, older)
            self.report.unchanged += unchanged
            self.report.unchanged_bad += known.count_bad(item) if unchanged else 0
            if not unchanged:
                known.check_place(item)
                changed.append((origin, item, mark))
            if len(changed) == _CHUNK_ITEMS:
                self._plan_chunk(changed, known, writer)
                changed.clear()
            if self.interrupted.is_set():
                raise KeyboardInterrupt
        self._plan_chunk(changed, known, writer)
        return found, unread

    def _marks_of(self, item: Item) -> tuple[int, int]:
        """Give an item's fingerprint, and the one of earlier versions: there --window was also in what is never cut."""
        older = fingerprint(item, self.options.window_s)
        if self.options.window_s is None or has_spans(item):
            return older, older
        return fingerprint(item, None), older

    def _lacking(self, item: Item) -> str | None:
        """Name a modality that an item needs and the space has not."""
        if isinstance(item, BrokenItem):
            return None
        return next((name for name in modalities_of(item) if name not in self.space.modalities), None)

    def _plan_chunk(self, changed: Sequence[tuple[int, Item, int]], known: KnownUnits, writer: PlanWriter) -> None:
        """Plan some items, long recordings among them cut in spans."""
        timed = [item for _, item, _ in changed if has_spans(item)]
        cuts = self.pool.map(timed, self.task({item.modality for item in timed}, cut=True)) if timed else iter(())
        for origin, item, mark in changed:
            outcome = next(cuts)[1] if has_spans(item) else None
            pieces = _pieces(item, outcome)
            known.replace(item.id, [piece.id for piece in pieces])
            for piece in pieces:
                writer.add(PlannedRow(piece, item.id, mark, origin))

    def task(self, modalities: Iterable[str], cut: bool) -> Task:
        """Make the task for workers: decode, or cut recordings in spans."""
        configs = {name: self.space.config(name) for name in sorted(modalities)}
        return Task(configs, cut, self.options.window_s, self.options.item_limit_s)


def _pieces(item: Item, outcome: Outcome | None) -> list[Item]:
    """Give what becomes of an item: its spans, itself, or what is known to be bad."""
    if isinstance(outcome, Cut) and outcome.spans:
        return [span_item(item, span) for span in outcome.spans]
    if isinstance(outcome, Failed) and outcome.stage == CUT_STAGE:
        known = {field.name: getattr(item, field.name) for field in dataclasses.fields(item) if field.init}
        return [BrokenItem(**known, reason=outcome.reason, stage=CUT_STAGE)]
    return [item]


def _kept_said(place: str, count: int) -> str:
    return f"{count} item{'s' if count > 1 else ''} under {place} kept: it could not be read"
