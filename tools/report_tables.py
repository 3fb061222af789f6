"""Marked tables of pages: those of docs/emergence.md here, those of docs/scaling.md in index_tables.py."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import answer_tables
import index_tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
LABELS = {"text": "text", "german": "German text"}
ORDER = ("image", "video", "text", "german", "audio", "depth", "thermal", "imu")
STATES = ("stored", "centred")
MISSING = "*Not measured yet.*"
MARK = re.compile(r"<!-- table: ([a-z -]+) -->.*?<!-- /table -->", re.DOTALL)

Report = Mapping[str, Any]


def interval(figure: Mapping[str, Any]) -> str:
    """Say a share and its 95 % interval."""
    return f"{figure['value']:.3f} ({figure['low']:.3f}–{figure['high']:.3f})"


def rows(head: list[str], lines: list[list[str]]) -> str:
    """Lay out a table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def views_of(pairs: Report, attribute: str) -> list[str]:
    """List the modalities that some pair compares on an attribute, in the report's order."""
    have = {view for pair, row in pairs.items() if attribute in row["attributes"] for view in pair.split("->")}
    return [view for view in ORDER if view in have]


def matrix(pairs: Report, attribute: str, bars: bool) -> str:
    """Lay out one attribute: rows ask, columns answer; trained pairs bold, one tower in italics."""
    views = views_of(pairs, attribute)
    lines = []
    for a in views:
        cells = [LABELS.get(a, a)]
        for b in views:
            row = pairs.get(f"{a}->{b}")
            cells.append(cell(row, attribute, bars) if row and attribute in row["attributes"] else "")
        lines.append(cells)
    return rows(["asks ↓ answers →", *[LABELS.get(view, view) for view in views]], lines)


def cell(row: Report, attribute: str, bars: bool) -> str:
    """Say one accuracy; bold where the pair was trained, with ↓ where it stays below its bar."""
    entry = row["attributes"][attribute]
    text = f"{entry['value']:.3f}" + ("" if entry.get("met", True) or not bars else " ↓")
    return {"trained": f"**{text}**", "one tower": f"*{text}*"}.get(row["kind"], text)


def matrices(key: str, bars: bool = True) -> Callable[[Report], str]:
    """Lay out all attributes of a part of the report."""

    def write(report: Report) -> str:
        pairs = report[key]
        parts = []
        for attribute in ("subject", "setting", "motion"):
            if views_of(pairs, attribute):
                chance = next(
                    row["attributes"][attribute]["chance"] for row in pairs.values() if attribute in row["attributes"]
                )
                parts.append(f"{attribute.capitalize()} (chance {chance:.3f}):\n\n{matrix(pairs, attribute, bars)}")
        return "\n\n".join(parts)

    return write


def means(report: Report) -> str:
    """Lay out the mean and the least figure of subject and setting over all pairs of two towers, split by split."""
    parts = {
        "pairs": "`test`, among 2,000 of its own",
        "compositional": "never met, among 2,000 never met",
        "compositional among all": "never met, among those and the 2,000 of `test`",
    }
    lines = []
    for key, said in parts.items():
        figures = [
            row["attributes"][name]["value"]
            for row in report[key].values()
            if row["kind"] != "one tower"
            for name in ("subject", "setting")
            if name in row["attributes"]
        ]
        lines.append([said, f"{sum(figures) / len(figures):.3f}", f"{min(figures):.3f}"])
    return rows(["scenes that ask", "mean", "least"], lines)


def named_pairs(report: Report) -> str:
    """Lay out the emergent pairs with their links, intervals, seeds and bars."""
    lines = []
    for pair, row in report["pairs"].items():
        for attribute, entry in row["attributes"].items():
            if row["kind"] != "emergent" or "bar" not in entry:
                continue
            a, b = (LABELS.get(view, view) for view in pair.split("->"))
            links = ", ".join(
                f"{link.replace('->', '→').replace('german', 'German text')} "
                f"{report['pairs'][link]['attributes'][attribute]['value']:.3f}"
                for link in row["links"]
                if attribute in report["pairs"][link]["attributes"]
            )
            seeds = entry.get("seeds", [])
            spread = f"{min(seeds):.3f}–{max(seeds):.3f}" if len(seeds) > 1 else ""
            share = f"{entry['share']:.2f}" + ("" if entry["met"] else " **below 0.80**")
            lines.append([f"{a} → {b}", attribute, interval(entry), spread, links, share])
    return rows(["never paired", "attribute", "top-1 (95 %)", "seeds", "its links", "of the weaker"], lines)


def verdicts(report: Report) -> str:
    """Say how many pairs reach their bars, and which do not."""
    lines = []
    for kind, words in (("trained", "Trained pairs at 0.90 or more"), ("emergent", "Emergent pairs at their bar")):
        entries = [
            (pair, attribute, entry)
            for pair, row in report["pairs"].items()
            if row["kind"] == kind
            for attribute, entry in row["attributes"].items()
            if "bar" in entry
        ]
        short = [
            f"{pair.replace('->', '→')} ({attribute}, {e['value']:.3f})"
            for pair, attribute, e in entries
            if not e["met"]
        ]
        lines.append(
            f"- {words}: {len(entries) - len(short)} of {len(entries)}."
            + (f" Below: {', '.join(short)}." if short else "")
        )
    nothing = ", ".join(pair.replace("->", "→") for pair in report["share nothing"])
    lines.append(f"- Pairs that carry nothing in common: {nothing or 'none'}.")
    return "\n".join(lines)


def translation(report: Report) -> str:
    """Lay out what a caption in one language finds among those of the other."""
    found = report.get("translation", {})
    names = [name for name, figure in next(iter(found.values()), {}).items() if isinstance(figure, dict)]
    lines = []
    for pair, row in found.items():
        a, b = ({"german": "German", "text": "English"}[view] for view in pair.split("->"))
        lines.append([f"{a} → {b}", *[interval(row[name]) for name in names]])
    return rows(["", *names], lines)


def sums(report: Report) -> str:
    """Lay out the arithmetic: the weighted sum with its bar, and everything beside it."""
    parts = []
    for kind, row in report.get("arithmetic", {}).items():
        weights = ", ".join(f"{weight:g} × {name}" for name, weight in row["weights"].items())
        lines = [
            [name, interval(figure)] for name, figure in row.items() if isinstance(figure, dict) and "low" in figure
        ]
        lines += [["chance", f"{row['chance']:.4f}"]]
        parts.append(
            f"{kind}: weights {weights} (reached {row['on validation']:.3f} where they were chosen; bar {row['bar']}, "
            f"{'met' if row['met'] else '**not met**'}).\n\n{rows(['query', 'exact pair, top-1'], lines)}"
        )
    return "\n\n".join(parts)


def neighbours(report: Report) -> str:
    """Lay out the nearest neighbours on raw input."""
    found = report.get("nearest neighbour", {})
    names = ("subject", "setting", "motion")
    lines = [[raw, *[interval(row[name]) if name in row else "" for name in names]] for raw, row in found.items()]
    return rows(["nearest of 5,000 on", *names], lines)


def position(report: Report) -> str:
    """Lay out what of a subject's position can be decoded."""
    found = report["position"]
    names = list(next(iter(found.values())))
    lines = [
        [
            LABELS.get(view, view),
            *[f"{row[name]['value']:.2f} ({row[name]['low']:.2f}–{row[name]['high']:.2f})" for name in names],
        ]
        for view, row in found.items()
    ]
    return rows(["embedding of", *[f"R² of {name}" for name in names]], lines)


def gaps(report: Report) -> str:
    """Lay out how far apart two modalities lie, as stored and with each one's mean taken away."""
    stored, centred = ({(row["a"], row["b"]): row for row in report["gap"][state]["pairs"]} for state in STATES)
    lines = []
    for pair, row in stored.items():
        after = centred[pair]
        cells = [f"{row[name]:.2f} / {after[name]:.2f}" for name in ("alignment", "uniformity", "nearer_own")]
        lines.append([f"{pair[0]}, {pair[1]}", f"{row['centroid_distance']:.2f}", *cells])
    return rows(["modalities", "distance of means", "alignment", "uniformity", "nearer to their own mean"], lines)


def gap_search(report: Report) -> str:
    """Lay out what centring does to search in a folder of all modalities."""
    lines = []
    for name, row in report["search"]["by modality"].items():
        cells = [
            f"{row['stored'][figure]['value']:.3f} / {row['centred'][figure]['value']:.3f}"
            for figure in ("right in ten", "own modality in ten", "mean average precision")
        ]
        lines.append([name, row["attribute"], *cells, f"{row['even share']:.3f}"])
    head = [
        "asks",
        "right is",
        "right in ten",
        "own modality in ten",
        "mean average precision",
        "its share of the folder",
    ]
    return rows(head, lines)


def claims(report: Report) -> str:
    """Lay out what the paper says beside what came out here."""
    lines = [[row["about"], row["paper"], row["here"], row["verdict"]] for row in report["claims"]]
    return rows(["about", "the paper says", "here", "verdict"], lines)


def variants(report: Report) -> str:
    """Lay out every variant's figures."""
    lines = []
    for row in report["variants"]:
        cells = [f"{row['figures'][name]:.3f}" if name in row["figures"] else "" for name in report["columns"]]
        lines.append([row["name"], row["modality"], *cells, f"{row['seconds'] / 60:.1f}"])
    return rows(["variant", "bound", *report["columns"], "min"], lines)


TABLES: dict[str, tuple[str, Callable[[Report], str]]] = {
    "pairs": ("emergence", matrices("pairs")),
    "verdicts": ("emergence", verdicts),
    "emergent pairs": ("emergence", named_pairs),
    "translation": ("emergence", translation),
    "pairs never seen": ("emergence", matrices("compositional", bars=False)),
    "means": ("emergence", means),
    "pairs never seen among all": ("emergence", matrices("compositional among all", bars=False)),
    "arithmetic": ("emergence", sums),
    "raw": ("emergence", neighbours),
    "position": ("emergence", position),
    "gap": ("gap", gaps),
    "gap search": ("gap", gap_search),
    "claims": ("ablations", claims),
    "variants": ("ablations", variants),
    **index_tables.TABLES,
    **answer_tables.TABLES,
}


def fill(text: str) -> str:
    """Write every marked table of a page anew."""

    def write(match: re.Match[str]) -> str:
        source, table = TABLES[match[1]]
        path = RESULTS / f"{source}.json"
        body = table(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else MISSING
        return f"<!-- table: {match[1]} -->\n\n{body}\n\n<!-- /table -->"

    return MARK.sub(write, text)
