"""All of `bindsearch bench`: which parts, in which order, in how much time; and the table of what came out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from bindsearch.bench.timing import Figure
from bindsearch.config import cache_dir
from bindsearch.errors import BindSearchError, InputError, UnknownNameError

PARTS = ("limits", "rates", "start", "index")


@dataclass(frozen=True)
class BenchOptions:
    """What is measured.

    Attributes:
        space: whose towers; "imagebind-huge" is measured with random weights where its own are not at hand.
        device: "auto", "cpu", "cuda", "cuda:1".
        dtypes: number types that towers compute in, one after the other.
        seconds: what all of it should take, about.
        parts: of PARTS.
    """

    space: str = "bindsearch-mini"
    device: str = "auto"
    dtypes: tuple[str, ...] = ("float32", "fast")
    seconds: float = 60.0
    parts: tuple[str, ...] = PARTS

    def __post_init__(self) -> None:
        """Refuse parts that do not exist, and no time at all or no end of it."""
        for part in self.parts:
            if part not in PARTS:
                raise UnknownNameError("part of the benchmark", part, PARTS)
        if not 0 < self.seconds < math.inf:
            raise InputError(f"--seconds: expected a number above 0, got {self.seconds:g}.")


@dataclass(frozen=True)
class Report:
    """What came out.

    Attributes:
        machine: facts about the machine: name -> value.
        options: what was asked for.
        figures: in the order in which they were measured.
        notes: what a reader must know: a busy machine, random weights, what could not be measured.
    """

    machine: dict[str, str]
    options: BenchOptions
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Give everything as plain data."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Write the report to be pasted into an issue: facts, one table, notes."""
        facts = "; ".join(f"{name}: {value}" for name, value in self.machine.items())
        lines = [f"**bindsearch bench** of {self.options.space}", "", facts, ""]
        rates = [each for each in self.figures if each.part == "rates"]
        if rates:
            lines += [*_rates_table(rates), ""]
        others = [each for each in self.figures if each.part != "rates"]
        if others:
            lines += ["| what | measured | runs from – to | how |", "|---|---:|---:|---|"]
        for each in others:
            spread = f"{number(each.low)} – {number(each.high)}" if each.runs > 1 else "one run"
            lines.append(f"| {each.name} | {number(each.value)} {each.unit} | {spread} | {each.note} |")
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines)


def _rates_table(figures: list[Figure]) -> list[str]:
    """Write the rates with one line a modality: what is measured of it side by side."""
    cells: dict[str, dict[str, str]] = {}
    columns: dict[str, None] = {}
    for each in figures:
        modality, _, what = each.name.partition(", ")
        columns[what] = None
        cells.setdefault(modality, {})[what] = f"{number(each.value)} {each.unit.replace(f'{modality}/', '/')}"
    notes = {each.name.partition(", ")[0]: each.note for each in figures}
    lines = [f"| modality | {' | '.join(columns)} | how |", f"|---|{'---:|' * len(columns)}---|"]
    for modality, found in cells.items():
        lines.append(f"| {modality} | {' | '.join(found.get(what, '') for what in columns)} | {notes[modality]} |")
    return lines


def number(value: float) -> str:
    """Write a number with three digits that count, no exponent."""
    if value >= 1000:
        return f"{value:,.0f}"
    digits = max(0, 2 - len(str(int(value))) + 1) if value >= 1 else 3
    return f"{value:.{digits}f}"


def run_bench(options: BenchOptions, say: Callable[[str, int, int], None] | None = None) -> Report:
    """Measure this machine.

    Args:
        options: what.
        say: told of each step before it begins: its name, its number, how many there are.

    Returns:
        The report; what could not be measured is among its notes.

    Raises:
        UnknownNameError: no such space.
        InputError: no such device.
    """
    notes: list[str] = []
    machine = facts()
    busy = _busy()
    if busy:
        notes.append(busy)
    steps = list(_steps(options, notes))
    figures: list[Figure] = []
    for place, (name, measure) in enumerate(steps):
        if say is not None:
            say(name, place, len(steps))
        try:
            for figure in measure():
                figures.append(figure)  # kept where a later one fails
        except (BindSearchError, ImportError, OSError) as error:
            notes.append(f"{name}: not measured: {error}")
    if say is not None:
        say("done", len(steps), len(steps))
    return Report(machine, options, tuple(figures), tuple(notes))


Step = tuple[str, Callable[[], "Iterator[Figure] | list[Figure]"]]


def _steps(options: BenchOptions, notes: list[str]) -> Iterator[Step]:
    """List what is to be done, each as a name and a function that gives figures."""
    import torch

    from bindsearch.bench import limits, rates, scan, start
    from bindsearch.models.spaces import info, load_space

    info(options.space)  # refuses a name that is none, whatever is measured
    opened = [load_space("tiny", device=options.device, dtype=dtype) for dtype in options.dtypes]
    device, dtypes = torch.device(opened[0].device), tuple(dict.fromkeys(each.dtype for each in opened))
    share = options.seconds / 60.0
    if "limits" in options.parts:
        for kind in (torch.float32, torch.bfloat16):
            name = f"matrix products, {str(kind).removeprefix('torch.')}"
            yield name, lambda kind=kind: [limits.matrix_rate(device, kind, 3.0 * share)]  # type: ignore[misc]
        yield "memory", lambda: [limits.memory_rate(device, 2.0 * share)]
        yield "disk", lambda: [limits.disk_rate(cache_dir())]
    started = options.space
    if {"rates", "start"} & set(options.parts):
        space, is_random = rates.open_bench_space(options.space, options.device, dtypes[0])
        if is_random:
            started = BenchOptions.space
            notes.append(
                f"{options.space}: its weights are not at hand; encoding is measured with {rates.RANDOM}, which run as "
                f"fast, and starting with {started}."
            )
    if "rates" in options.parts:
        each = 20.0 * share / (len(space.modalities) * len(dtypes))
        for modality in space.modalities:
            for dtype in dtypes:
                yield (
                    f"{modality}, {dtype}",
                    lambda modality=modality, dtype=dtype: rates.modality_figures(  # type: ignore[misc]
                        lambda: rates.open_bench_space(options.space, options.device, dtype),
                        modality,
                        each,
                        prepares=dtype == dtypes[0],
                    ),
                )
    if "start" in options.parts:
        yield "starting processes", lambda: start.start_figures(started, options.device, max(1, round(2 * share)))
    if "index" in options.parts:
        yield "searching", lambda: scan.scan_figures(6.0 * share)


def facts() -> dict[str, str]:
    """Say what the machine is, in a few words each; imports torch."""
    import torch

    from bindsearch import __version__
    from bindsearch.doctor import machine

    found = {finding.name: finding.value for finding in machine()}
    found["python"] = found["python"].split(" ")[0]  # without its path, which is nobody's business
    found["processor"] = processor()
    found["torch"] = f"{torch.__version__}, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        found["GPU"] = ", ".join(torch.cuda.get_device_name(each) for each in range(torch.cuda.device_count()))
    return {"bindsearch": __version__, **found}


def processor() -> str:
    """Name the processor."""
    import platform
    from pathlib import Path

    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _busy() -> str:
    """Say that others use the processor, where they do; empty where not."""
    if not hasattr(os, "getloadavg"):
        return ""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load < 0.3 * cores:
        return ""
    return f"The machine was busy when this began (load {load:.1f} on {cores} cores): left alone it is faster."
