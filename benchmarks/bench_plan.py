"""The planner held to what it says: 24 budgets, built indexes shared, measured again on fresh queries.

python -m benchmarks.bench_plan --rows 100000 1000000        # 12 budgets a size
python -m benchmarks.bench_plan --rows 20000 --budgets 3

A budget that was held before is read from runs/plan; delete that folder to hold all anew.
For every budget the planner forecasts and orders candidates; the first is built (or taken from an earlier budget, when
it was built already), tuned on the draw "tune" and measured on the draw "fresh", which it never saw. Held: forecast
bytes that searches keep reading within 10 % of the files; overlap on fresh queries no more than 0.01 below the one
asked for; latency of a query alone within 2 x of the forecast, and within 2 x of what the manifest says. A budget that
it refuses must name nearest ones; the first of these is then asked for and must be taken.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import write_result, write_score
from benchmarks.resources import Clock
from benchmarks.vectors import QUERIES, Law, write_queries, write_rows
from bindsearch.errors import BudgetError
from bindsearch.index.budget import Budget
from bindsearch.index.build import build_index
from bindsearch.index.folder import IndexFolder
from bindsearch.index.plan import Forecast, K, make_plan, measure
from bindsearch.index.recipe import Recipe
from bindsearch.index.snapshot import Snapshot

COMMAND = "python -m benchmarks.bench_plan"
WORK = Path("runs/plan")
VECTORS = Path("runs/vectors")
FRESH = 500
BUDGETS: tuple[tuple[float, float | None, float | None], ...] = (
    (0.90, None, None),
    (0.95, None, None),
    (0.99, None, None),
    (0.95, 0.25, None),
    (0.97, 0.25, None),
    (0.99, 0.25, None),
    (0.90, None, 0.1),
    (0.95, None, 0.1),
    (0.98, None, 0.2),
    (0.95, 0.25, 0.1),
    (0.97, 0.12, 0.2),
    (1.00, None, None),
)
"""(recall, memory as a share of the float32 rows, latency as a share of IndexFlatIP's forecast); None: no limit."""


def budgets(rows: int, dim: int, count: int) -> list[Budget]:
    """Turn the shares into budgets at a size."""
    whole = make_plan(rows, dim, Budget(1.0), [Recipe("faiss-flat")]).forecasts[0]
    made = []
    for recall, memory, latency in BUDGETS[:count]:
        limit = None if latency is None else latency * (whole.latency_ms or 300.0 * rows / 1e6)
        made.append(Budget(recall, None if memory is None else int(memory * rows * dim * 4), limit))
    return made


def held(number: int, budget: Budget, rows: int, queries: dict[tuple[str, str], Path], law: Law) -> dict[str, Any]:
    """Hold a budget, or read what came of it in a run that was stopped later."""
    path = WORK / str(rows) / f"budget-{number:02}.json"
    if not path.is_file():
        row = {"rows": rows, **hold(budget, rows, queries, law)}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row), encoding="utf-8")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def hold(budget: Budget, rows: int, queries: dict[tuple[str, str], Path], law: Law) -> dict[str, Any]:
    """Plan, build or take, tune and measure again: one row of the result."""
    try:
        plan = make_plan(rows, law.dim, budget)
    except BudgetError as error:
        return {"budget": vars(budget), "refused": str(error), "nearest": nearest(error, budget)}
    refused = []
    for forecast in plan.order:
        folder = built(forecast, rows)
        tuned, ways = measure(folder.snapshot, budget, [queries["tune", kind] for kind in QUERIES])
        if all(way.misses(budget) for way in ways):
            refused.append({"recipe": forecast.name, "misses": ways[0].misses(budget)})
            continue
        return {
            "budget": vars(budget),
            "passed over": refused,
            **compare(forecast, tuned, folder.snapshot, budget, law),
        }
    return {"budget": vars(budget), "passed over": refused, "refused": "measured"}


def nearest(error: BudgetError, budget: Budget) -> dict[str, Any]:
    """Read the first relaxation that a refusal names, and say whether a budget relaxed so is planned."""
    text = str(error).partition("Nearest that can:")[2].partition(";")[0]
    found = dict(re.findall(r"(--\w+) (\S+)", text))
    relaxed = Budget.parse(
        float(found.get("--recall", budget.recall)),
        found.get("--memory", None if budget.memory_bytes is None else str(budget.memory_bytes)),
        found.get("--latency", None if budget.latency_ms is None else f"{budget.latency_ms:.6f}ms"),
    )
    return {"named": found, "relaxed": vars(relaxed)}


def built(forecast: Forecast, rows: int) -> IndexFolder:
    """Build a candidate, or open it where an earlier budget had it built."""
    folder = WORK / str(rows) / forecast.name.replace(" ", "-")
    if not (folder / "index.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        print(f"building {folder}", flush=True)
        build_index(VECTORS / str(rows), folder, forecast.recipe, force=True)
    return IndexFolder.open(folder)


def compare(forecast: Forecast, tuned: dict[str, Any], snapshot: Snapshot, budget: Budget, law: Law) -> dict[str, Any]:
    """Measure on fresh queries what the planner chose, and set it beside what it said."""
    sets = {}
    for kind, modality in QUERIES.items():
        queries = law.queries(kind, FRESH, "fresh")
        settings = tuned["modalities"][modality]["settings"]
        exact = snapshot.search_exact(queries, K)[0][:, K - 1]
        scores = snapshot.search(queries, K, settings=settings)[0]
        times = []
        for row in range(48):
            with Clock() as clock:
                snapshot.search(queries[row : row + 1], K, settings=settings)
            times.append(clock.cpu_s * 1e3)
        overlap = float(np.minimum((scores >= exact[:, None]).sum(axis=1), K).mean() / K)
        alone = statistics.median(times)
        sets[kind] = {
            "settings": settings,
            "overlap_at_10": round(overlap, 4),
            "above asked": round(overlap - budget.recall, 4),
            "alone_ms": round(alone, 4),
            "alone / said": round(alone / tuned["modalities"][modality]["ms"], 3),
        }
    slowest = max(each["alone_ms"] for each in sets.values())
    return {
        "recipe": forecast.name,
        "sets": sets,
        "bytes: forecast / files": round((forecast.read_bytes or 0) / tuned["read_bytes"], 4),
        "latency: slowest / forecast": None if forecast.latency_ms is None else round(slowest / forecast.latency_ms, 3),
    }


def verdict(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Give the worst of each promise over all budgets."""
    taken = [each for each in found if "sets" in each]
    ratios = [each["latency: slowest / forecast"] for each in taken if each["latency: slowest / forecast"]]
    said = [one["alone / said"] for each in taken for one in each["sets"].values()]
    return {
        "budgets": len(found),
        "taken": len(taken),
        "refused": len(found) - len(taken),
        "worst bytes error": max((abs(each["bytes: forecast / files"] - 1) for each in taken), default=None),
        "worst overlap below asked": min((o["above asked"] for e in taken for o in e["sets"].values()), default=None),
        "worst latency factor to forecast": max((max(r, 1 / r) for r in ratios), default=None),
        "worst latency factor to manifest": max((max(r, 1 / r) for r in said), default=None),
    }


def main() -> None:
    """Hold every budget at every size; write results/plan.json and the scoreboard's rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--budgets", type=int, default=len(BUDGETS), help="how many at each size")
    arguments = parser.parse_args()
    law = Law()
    queries = write_queries(VECTORS / "queries", 2000, law)
    found = []
    for rows in arguments.rows:
        write_rows(VECTORS / str(rows), rows, law)
        for number, budget in enumerate(budgets(rows, law.dim, arguments.budgets)):
            row = held(number, budget, rows, queries, law)
            print(json.dumps(row), flush=True)
            found.append(row)
    worst = verdict(found)
    print(json.dumps(worst, indent=1))
    write_result("plan", {"budgets": found, "worst": worst})
    if sum(arguments.rows) >= 1_000_000:
        command = f"{COMMAND} --rows {' '.join(map(str, arguments.rows))}"
        write_score("planner: worst error of forecast bytes", worst["worst bytes error"], "share", "<= 0.1", command)
        below = -min(0.0, worst["worst overlap below asked"])
        write_score("planner: worst overlap below the asked one", below, "overlap", "<= 0.01", command)
        factor = worst["worst latency factor to forecast"]
        write_score("planner: worst factor of latency to forecast", factor, "ratio", "<= 2", command)


if __name__ == "__main__":
    main()
