"""Tables of docs/scaling.md, written from benchmarks/results: index, peers, plan, exact, filters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Report = Mapping[str, Any]


def rows(head: list[str], lines: list[list[str]]) -> str:
    """Lay out a table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def index(report: Report) -> str:
    """Lay out what indexes take: a line a recipe and size."""
    head = ["recipe", "rows", "build, CPU min", "anonymous GB", "codes MB", "rows GB", "open + first, ms"]
    lines = []
    for name, by_rows in sorted(report["recipes"].items()):
        for size in sorted(by_rows, key=int):
            each = by_rows[size]
            built, held = each["build"], each["bytes"]
            line = [name, f"{int(size):,}", f"{built['cpu_min']:.2f}", f"{built['peak_anonymous_gb']:.2f}"]
            line += [f"{held['read_bytes'] / 1e6:.1f}", f"{held['files']['vectors.npy'] / 1e9:.2f}"]
            lines.append([*line, f"{each['open and first query']['ms']:.0f}"])
    return rows(head, lines)


def speed(report: Report) -> str:
    """Lay out overlap and queries a second, as chosen by the planner for each target."""
    head = ["recipe", "rows", "queries", "asked", "overlap", "a second", "× IndexFlatIP", "× on BLAS"]
    lines = []
    for name, by_rows in sorted(report["recipes"].items()):
        for size in sorted(by_rows, key=int):
            for kind, found in by_rows[size]["sets"].items():
                for target, each in found["targets"].items():
                    line = [name, f"{int(size):,}", kind, target, f"{each['overlap_at_10']:.4f}"]
                    line += [f"{1000 / each['batch_ms']:,.0f}", f"{each['x shipped']:,.0f}", f"{each['x blas']:,.1f}"]
                    lines.append(line)
    return rows(head, lines)


def growth(report: Report) -> str:
    """Lay out the fitted powers of N."""
    fitted = {name: powers for name, powers in sorted(report["growth"].items()) if powers}
    names = list(dict.fromkeys(name for powers in fitted.values() for name in powers))
    lines = [[name, *[f"{powers[name]:.2f}" if name in powers else "" for powers in fitted.values()]] for name in names]
    return rows(["grows like N to the", *fitted], lines)


def peers(report: Report) -> str:
    """Lay out the peers: a line a size and program."""
    key = "queries a second at 0.95"
    head = ["rows", "program", "build, CPU s", "MB", "in", "offset", "hard"]
    lines = []
    for size, sides in sorted(report["by rows"].items(), key=lambda each: int(each[0])):
        for name, side in sides.items():
            speeds = [f"{side[key][kind]:,.0f}" if side[key][kind] else "–" for kind in ("in", "offset", "hard")]
            line = [f"{int(size):,}", name, f"{side['build_cpu_s']:,.0f}", f"{side['bytes'] / 1e6:,.0f}", *speeds]
            lines.append(line)
    return rows(head, lines)


def planner(report: Report) -> str:
    """Lay out the worst of what the planner promised."""
    return rows(["over all budgets", ""], [[name, str(value)] for name, value in report["worst"].items()])


def exact(report: Report) -> str:
    """Lay out proven search: a line a set and batch; wall time counts where several threads work."""
    clock = "wall_ms" if report["threads"] > 1 else "cpu_ms"
    head = ["queries", "a batch", "ms a query", "× IndexFlatIP", "× on BLAS", "rows read in full", "overlap"]
    lines = []
    for kind, sides in report["sets"].items():
        for batch, each in sides["bytes"].items():
            line = [kind, batch, f"{each[clock]:.2f}", f"{each[f'shipped / ours, {clock}']:.1f}"]
            line += [f"{each[f'blas / ours, {clock}']:.1f}", f"{each['rows_touched_full']['mean']:,.0f}"]
            lines.append([*line, f"{each['overlap_at_10']:.4f}"])
    return rows(head, lines)


def filters(report: Report) -> str:
    """Lay out filtered search: a line a recipe, share of rows that pass, and batch; the worst of the three sets."""
    head = ["recipe", "passes", "a batch", "overlap", "ms a query", "unfiltered", "brute force", "predicate, ms", "how"]
    groups: dict[tuple[str, float, int], list[Any]] = {}
    for each in report["measured"]:
        groups.setdefault((each["backend"], each["share"], each["batch"]), []).append(each)
    lines = []
    for (name, share, batch), found in groups.items():
        line = [name, f"{share:.2%}", str(batch), f"{min(each['overlap_at_10'] for each in found):.4f}"]
        for side in ("ours_ms", "unfiltered_ms", "brute_force_ms"):
            line.append(f"{max(each[side]['median'] for each in found):.2f}")
        how = sorted({route for each in found for route in each["routes"]})
        lines.append([*line, f"{found[0]['predicate_ms']['first']:.0f}", ", ".join(how)])
    return rows(head, lines)


TABLES: dict[str, tuple[str, Callable[[Report], str]]] = {
    "index": ("index", index),
    "index speed": ("index", speed),
    "index growth": ("index", growth),
    "index peers": ("peers", peers),
    "index planner": ("plan", planner),
    "index exact": ("exact-3000000", exact),
    "index filters": ("filters-3000000", filters),
}
