"""What a run of the embedder did: counts, rates, where the time went."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bindsearch.embed.bottleneck import advice
from bindsearch.embed.decoding import Cut, Decoded, Outcome
from bindsearch.errors import TooManyBadError

STAGES = ("decode", "model", "write")
"""What the main thread does: waits for decoded items, runs the model, waits for the writer."""
BUSY = ("decode", "preprocess", "model", "write")

_LIVE_S = 10.0
_STAGE_WORDS = {"decode": "waiting for decode", "model": "model", "write": "waiting for write"}
NOT_IN_SPACE = " (not in the space)"


@dataclass
class EmbedReport:
    """What a run did.

    Attributes:
        output: the folder.
        space_id: what it was made with.
        embedded, bad: items of this run by modality, with a vector and without.
        ignored: files that are no media, by suffix; a modality that the space lacks stands as "audio (not in space)".
        hidden, linked: hidden files and folders skipped; links to folders listed already.
        unchanged, gone: items that were there before and are as they were; that were there and are no more.
        unchanged_bad: those of the unchanged ones that are bad, as before.
        shards, kept_shards: shards written by this run; found committed from an interrupted one.
        items, bad_items: in the store now.
        max_bad: share of bad inputs that is allowed.
        ledger: file that says why each bad input is bad.
        notes: warnings counted, such as "text: truncated".
        remarks: sentences about the run as a whole.
        seconds: wall time of the run: listing, and the main thread's waiting for decode, model, waiting for the writer.
        busy: time that work took wherever it was done, added up: reading and decoding, preprocessing, model, write.
        workers: decode processes; 0 where the main thread decodes.
        processes: that share this machine's CPUs, this one among them.
        quicker: what would make the model quicker here: "a GPU", "--dtype bfloat16".
        dry_run: True where only the plan was made.
    """

    output: str
    space_id: str
    embedded: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    linked: int = 0
    unchanged: int = 0
    unchanged_bad: int = 0
    gone: int = 0
    shards: int = 0
    kept_shards: int = 0
    items: int = 0
    bad_items: int = 0
    max_bad: float = 0.1
    ledger: str | None = None
    notes: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("list", *STAGES), 0.0))
    busy: dict[str, float] = field(default_factory=lambda: dict.fromkeys(BUSY, 0.0))
    workers: int = 0
    processes: int = 1
    quicker: tuple[str, ...] = ()
    dry_run: bool = False

    def count_outcome(self, outcome: Outcome) -> None:
        """Add the time that an item took in its worker, and its warnings."""
        if isinstance(outcome, Cut):
            return
        if isinstance(outcome, Decoded):
            self.notes.update(outcome.notes)
            self.busy["preprocess"] += outcome.preprocess_seconds
            self.busy["decode"] -= outcome.preprocess_seconds
        self.busy["decode"] += outcome.seconds

    @property
    def working_seconds(self) -> float:
        """Wall time of the run without its listing."""
        return sum(self.seconds[stage] for stage in STAGES)

    def idle(self) -> dict[str, float]:
        """Give the share of the working time that each stage stood still.

        Returns:
            "decode" (the workers' mean), "model" and "write": 0 is a stage that is busy all the time, and with it
            the one that the run waits for.
        """
        wall = self.working_seconds
        if not wall:
            return dict.fromkeys(STAGES, 0.0)
        decoding = self.busy["decode"] + self.busy["preprocess"]
        busy = {
            "decode": decoding / max(self.workers, 1),
            "model": self.seconds["model"],
            "write": self.busy["write"],
        }
        return {stage: min(1.0, max(0.0, 1.0 - seconds / wall)) for stage, seconds in busy.items()}

    def advice(self) -> str:
        """Say in one plain sentence what the run waited for and what would help; "" after too little work."""
        return advice(self)

    @property
    def bad_share(self) -> float:
        """Share of the store's inputs that are bad."""
        total = self.items + self.bad_items
        return self.bad_items / total if total else 0.0

    def shares(self) -> dict[str, float]:
        """Give the shares of the working time: waiting for decode, model, write; they add up to 1."""
        total = self.working_seconds
        return {stage: self.seconds[stage] / total if total else 0.0 for stage in STAGES}

    def rate(self) -> float:
        """Give items a second of working time, good and bad."""
        total = self.working_seconds
        return (self.embedded.total() + self.bad.total()) / total if total else 0.0

    def to_json(self) -> dict[str, Any]:
        """Write plain JSON types."""
        facts: dict[str, Any] = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        for name in ("embedded", "bad", "ignored", "notes"):
            facts[name] = dict(sorted(facts[name].items()))
        facts["seconds"] = {name: round(value, 3) for name, value in self.seconds.items()}
        facts["busy"] = {name: round(value, 3) for name, value in self._busy().items()}
        facts["idle"] = {name: round(value, 4) for name, value in self.idle().items()}
        facts["advice"] = self.advice()
        facts["bad_share"] = round(self.bad_share, 6)
        facts["shares"] = {name: round(value, 4) for name, value in self.shares().items()}
        facts["items_per_second"] = round(self.rate(), 3)
        return facts

    def to_text(self) -> str:
        """Write a few lines for a person."""
        done = "to embed" if self.dry_run else "embedded"
        lines = [f"{self.output}: {_counted(self.embedded) or 'nothing new'} {done}; space {self.space_id}"]
        if not self.dry_run:
            lines.append(f"  in the store: {self.items} items")
        for label, count in (
            ("unchanged", self.unchanged - self.unchanged_bad),
            ("unchanged, bad as before", self.unchanged_bad),
            ("gone", self.gone),
            ("hidden files skipped", self.hidden),
            ("links to folders already listed", self.linked),
        ):
            if count:
                lines.append(f"  {label}: {count}")
        foreign = Counter({name: count for name, count in self.ignored.items() if name.endswith(NOT_IN_SPACE)})
        rest = self.ignored - foreign
        if rest:
            lines.append(f"  ignored, no media: {_counted(rest)}")
        if foreign:
            lines.append(f"  ignored, {_counted(foreign)}: --space imagebind-huge reads all seven modalities")
        if self.bad_items:
            bad = f"{self.bad_items} ({self.bad_share:.1%})"
            lines.append(f"  bad: {bad}; reasons in {self.ledger}")
        lines += [f"  note: {name}: {count}" for name, count in sorted(self.notes.items())]
        lines += [f"  note: {remark}" for remark in self.remarks]
        if self.kept_shards:
            lines.append(f"  resumed: {self.kept_shards} shards were committed by an interrupted run")
        if self.dry_run:
            lines.append(f"  {self.shards} shards would be written")
        elif self.shards:
            lines += self._bottleneck_lines()
        return "\n".join(lines)

    def _busy(self) -> dict[str, float]:
        return {**self.busy, "model": self.seconds["model"]}

    def _bottleneck_lines(self) -> list[str]:
        """Say how fast it went, where the time went, and what would help."""
        count = max(self.embedded.total() + self.bad.total(), 1)
        shares = ", ".join(f"{_STAGE_WORDS[name]} {share:.0%}" for name, share in self.shares().items())
        busy = ", ".join(f"{name} {1e3 * seconds / count:.3g} ms" for name, seconds in self._busy().items())
        idle = ", ".join(f"{name} {share:.0%}" for name, share in self.idle().items())
        where = f"{self.workers} decode workers" if self.workers else "decoding in the main process"
        lines = [
            f"  {self.shards} shards, {self.rate():.1f} items/s; the run's time: {shares}",
            f"  work an item: {busy} ({where}); idle: {idle}",
        ]
        said = self.advice()
        return [*lines, f"  {said}"] if said else lines

    def check_bad(self) -> None:
        """Refuse a result with too many bad inputs; what is good is committed all the same.

        Raises:
            TooManyBadError: naming the share, the limit and the ledger.
        """
        if self.bad_share > self.max_bad and not self.dry_run:
            raise TooManyBadError(
                f"{self.output}: {self.bad_items} of {self.items + self.bad_items} inputs are bad "
                f"({self.bad_share:.1%}), over --max-bad {self.max_bad:g}. All good ones are embedded; "
                f"the reasons are in {self.ledger}."
            )


@dataclass(frozen=True)
class Progress:
    """How far a run is, for a caller's own display.

    Attributes:
        done, total: items of this run.
        report: counts and times so far.
    """

    done: int
    total: int
    report: EmbedReport


class Display:
    """Shows how far a run is: a bar on stderr, a caller's function, or nothing."""

    def __init__(self, progress: bool | Callable[[Progress], None], report: EmbedReport, total: int) -> None:
        """Draw nothing yet, but for the empty bar."""
        self._report, self._total, self._done = report, total, 0
        self._call = progress if callable(progress) else None
        self._bar: Any = None
        self._marks = [(time.monotonic(), dict(report.seconds))]
        if progress is True:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="item", disable=None)  # None: only where stderr is a terminal

    def __enter__(self) -> Display:
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def advance(self, count: int) -> None:
        """Show that so many more items are done."""
        self._done += count
        if self._bar is not None:
            self._bar.set_postfix_str(self._live(), refresh=False)
            self._bar.update(count)
        if self._call is not None:
            self._call(Progress(self._done, self._total, self._report))

    def _live(self) -> str:
        """Tell what the last seconds were spent on: "waits: decode 71% write 0%, model 29%"."""
        now_s, seconds = time.monotonic(), dict(self._report.seconds)
        if now_s - self._marks[0][0] > 2 * _LIVE_S:
            self._marks = [self._marks[-1], (now_s, seconds)]
        spent = {stage: seconds[stage] - self._marks[0][1][stage] for stage in STAGES}
        total = sum(spent.values()) or 1.0
        shares = {stage: value / total for stage, value in spent.items()}
        return f"waits: decode {shares['decode']:.0%} write {shares['write']:.0%}, model {shares['model']:.0%}"


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
