"""Tables of docs/answers.md, written from benchmarks/results: answers, chosen blends, mixtures, connectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from index_tables import rows

from bindsearch.world.instructions import ATTRIBUTES, CLOSED

Report = Mapping[str, Any]
SHOWN = (*ATTRIBUTES, *CLOSED)
MODALITIES = ("image", "video", "audio", "depth", "thermal", "imu")


def kind_name(kind: str) -> str:
    """Say a kind of question in words."""
    return f"is it that {kind.removeprefix('is_')}?" if kind.startswith("is_") else kind


def by_size(report: Report) -> list[str]:
    """Name the caches, the smallest first."""
    return sorted(report["caches"], key=report["caches"].__getitem__)


def share(found: Mapping[str, Any]) -> str:
    """Write a share of right answers with its interval."""
    return f"{found['value']:.3f} ({found['low']:.3f}–{found['high']:.3f})"


def answers(report: Report) -> str:
    """Lay out right answers: a line a modality and kind of question; cells of caches end in what the cache adds."""
    caches = by_size(report)
    head = ["given", "question", "majority", "zeroed", "shuffled", "no cache", *caches]
    lines = []
    for modality in MODALITIES:
        for kind in SHOWN:
            found = report["answers"][modality][kind]
            line = [modality, kind_name(kind), f"{found['majority']:.3f}", f"{found['zeroed']['value']:.3f}"]
            line += [f"{found['shuffled']['value']:.3f}", share(found["without"])]
            lines.append([*line, *(f"{found[name]['value']:.3f} ({gained(found[name]['gain'])})" for name in caches)])
    return rows(head, lines)


def gained(found: Mapping[str, Any]) -> str:
    """Write what a cache adds, in points, with its interval; bold where zero lies outside."""
    words = f"{100 * found['value']:+.1f}, {100 * found['low']:+.1f} to {100 * found['high']:+.1f}"
    return f"**{words}**" if found["low"] > 0 or found["high"] < 0 else words


def seeds(report: Report) -> str:
    """Lay out each connector by itself, of every modality's first kinds, without a cache and with the largest."""
    largest = by_size(report)[-1:]
    lines = []
    for modality in MODALITIES:
        kinds = report["answers"][modality]
        for kind in ("subject", "colour", "setting", "motion"):
            for name in ("without", *largest):
                cells = [f"{value:.3f}" for value in kinds[kind][name]["pairs"]]
                lines.append([modality, kind, "no cache" if name == "without" else name, *cells])
    return rows(["given", "question", "cache", *[f"seed {n}" for n in range(len(report["pairs"]))]], lines)


def chosen(report: Report) -> str:
    """Lay out the blends that were chosen on other scenes."""
    lines = []
    for modality in MODALITIES:
        for name in by_size(report):
            blend = report["chosen"][f"{modality}, {name}"]
            lines.append([modality, name, str(blend["k"]), f"{blend['t']:g}", f"{blend['w']:g}"])
    return rows(["given", "cache", "k", "t", "w"], lines)


def swept(report: Report) -> str:
    """Lay out the sweep around the chosen blend: a line a modality and kind, a cell a value of each number."""
    values = {
        axis: sorted({each["at"] for each in report["swept"] if each["axis"] == axis}) for axis in ("w", "k", "t")
    }
    found = {
        (each["modality"], each["kind"], each["axis"], each["at"]): each["right"]["value"] for each in report["swept"]
    }
    head = ["given", "question", *[f"{axis} {value:g}" for axis in values for value in values[axis]]]
    lines = []
    for modality, kind in dict.fromkeys((each["modality"], each["kind"]) for each in report["swept"]):
        cells = [f"{found[modality, kind, axis, value]:.3f}" for axis in values for value in values[axis]]
        lines.append([modality, kind, *cells])
    return rows(head, lines)


def mixed(report: Report) -> str:
    """Lay out mixtures beside their parts."""
    lines = []
    for kind, ways in report["both needed"].items():
        first, second = kind.split("_")
        for name, found in ways.items():
            if name != "chosen":
                lines.append([f"{first} and {second}", name, *[share(found[part]) for part in (first, second, "both")]])
    return rows(["asked", "given", "subject", "the other", "both"], lines)


def connectors(report: Report) -> str:
    """Lay out the connectors: a line each."""
    kinds = [kind for kind in SHOWN if kind in next(iter(report["rows"].values()))["answers"]["image"]]
    others = [("audio", "subject"), ("depth", "subject"), ("thermal", "subject")]
    head = ["connector", "parameters", "tokens a second", *[f"image: {kind_name(kind)}" for kind in kinds]]
    head += [f"{modality}: {kind}" for modality, kind in others]
    lines = []
    for name, found in report["rows"].items():
        speeds = found["tokens a second, answering"]
        line = [name, f"{found['parameters']:,}", f"{sum(speeds) / len(speeds):,.0f}"]
        line += [share(found["answers"]["image"][kind]) for kind in kinds]
        for modality, kind in others:
            given = found["answers"].get(modality)
            line.append(share(given[kind]) if given else "")
        lines.append(line)
    return rows(head, lines)


TABLES: dict[str, tuple[str, Callable[[Report], str]]] = {
    "answers": ("answers", answers),
    "answers by seed": ("answers", seeds),
    "answers chosen": ("answers", chosen),
    "answers swept": ("answers", swept),
    "answers mixed": ("answers", mixed),
    "connectors": ("connectors", connectors),
}
