"""The paper's ablations, small: one tower bound to a frozen image tower in many ways, each with the same few steps.

python -m benchmarks.ablations --folder runs/ablations     # goes on where it was stopped; skips what is done
python -m benchmarks.ablations --folder DIR --trial        # three steps of every variant; writes no result

Variants, sizes and the paper's claims are data: benchmarks/variants.json. Results: results/ablations.json and .svg.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.ablation_run import FIRST_STAGE, SHIPPED, Anchors, Bench, run_job, slug
from benchmarks.record import write_result, write_score
from bindsearch.config import content_hash

COMMAND = "python -m benchmarks.ablations"
PLAN = Path(__file__).parent / "variants.json"
TRIAL = {"pool": 640, "validation": 60}
Job = tuple[dict[str, Any], str]


def load_plan(trial: bool) -> dict[str, Any]:
    """Read the variants; a trial is cut to three steps and few scenes."""
    plan: dict[str, Any] = json.loads(PLAN.read_text(encoding="utf-8"))
    if trial:
        plan["validation"] = TRIAL["validation"]
        for stage in ("first_stage", "second_stage"):
            plan[stage] |= {"steps": 3, "pool": TRIAL["pool"], "warmup_steps": 1}
    return plan


def first_jobs(plan: Mapping[str, Any]) -> list[Job]:
    """List the image towers that are trained before anything is bound to them."""
    wanted = dict.fromkeys(variant["image_tower"] for variant in plan["variants"] if "image_tower" in variant)
    return [({"name": FIRST_STAGE, "seed": 1}, tower) for tower in wanted]


def second_jobs(plan: Mapping[str, Any]) -> list[Job]:
    """List what is bound: every variant, every modality."""
    return [(variant, modality) for variant in plan["variants"] for modality in plan["modalities"]]


def hash_of(bench: Bench, job: Job) -> str:
    """Hash all that a result depends on but the code."""
    variant, modality = job
    plan, which = bench.plan, variant.get("image_tower", SHIPPED)
    facts: dict[str, Any] = {"variant": variant, "modality": modality, "validation": plan["validation"]}
    if variant["name"] == FIRST_STAGE:
        facts |= {"stage": plan["first_stage"], "tower": plan["towers"][modality]}
    else:
        facts |= {"stage": plan["second_stage"], "tower": plan["towers"][modality], "anchor": Anchors(bench, which).id}
    return content_hash(facts)


def result_path(bench: Bench, job: Job) -> Path:
    """Say where a job's result lies."""
    return bench.folder / "results" / f"{slug(job[0]['name'], job[1])}.json"


def read_result(bench: Bench, job: Job) -> dict[str, Any] | None:
    """Read a job's result; None where it is not done, or was done with other numbers."""
    path = result_path(bench, job)
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result if result["hash"] == hash_of(bench, job) else None


def prepare(bench: Bench) -> None:
    """Render the pools and embed the anchors that all variants share, before several processes ask for them."""
    base, scenes = {"name": "base"}, bench.validation
    stage = bench.second_stage(base, bench.plan["modalities"][0])
    for modality in ("image", *bench.plan["modalities"]):
        bench.pool(modality, stage)
    bench.pool("image", bench.first_stage("image"))
    anchors = Anchors(bench, SHIPPED)
    anchors.images("pool", lambda: bench.pool("image", stage))
    anchors.texts("validation", scenes)


def run_jobs(bench: Bench, jobs: Sequence[Job], arguments: argparse.Namespace) -> list[str]:
    """Run what is not done, a process each, some at a time; give the names of those that failed."""
    todo = [job for job in jobs if read_result(bench, job) is None]
    threads = str(max(1, (os.cpu_count() or 1) // arguments.workers))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}

    def run(job: Job) -> str:
        name = slug(job[0]["name"], job[1])
        command = [sys.executable, "-m", "benchmarks.ablations", "--folder", str(bench.folder), "--one", name]
        began = time.monotonic()
        log = bench.folder / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as stream:
            options = [*command, *(["--trial"] if arguments.trial else [])]
            done = subprocess.run(options, env=environment, stdout=stream, stderr=subprocess.STDOUT, check=False)
        print(
            f"{name}: {'failed, see ' + str(log) if done.returncode else 'done'} ({time.monotonic() - began:.0f} s)",
            flush=True,
        )
        return name if done.returncode else ""

    with ThreadPoolExecutor(arguments.workers) as threads_of:
        return [name for name in threads_of.map(run, todo) if name]


def score(figures: Mapping[str, float], measured_by: Sequence[str]) -> float:
    """Sum up a variant: the mean of its emergent figures, new modality to text."""
    return sum(figures[f"→text {name}"] for name in measured_by) / len(measured_by)


def noise_of(scores: Mapping[str, float], n: int) -> float:
    """Give the least difference that counts: the spread of the base over seeds, and two standard errors."""
    seeds = [value for name, value in scores.items() if name.split(",")[0] == "base"]
    share = scores["base"]
    return max(max(seeds) - min(seeds), 2 * math.sqrt(share * (1 - share) / n))


def judge(claim: Mapping[str, Any], scores: Mapping[str, float], noise: float) -> dict[str, str]:
    """Set a claim of the paper beside the figures.

    Args:
        claim: `shown` variants by short name; pairs (better, worse), or `equal` pairs; none of both where the paper
            says nothing. Not modified.
        scores: by variant, of the claim's modality. Not modified.
        noise: differences up to this do not count.

    Returns:
        A row of the table: about, paper, here, verdict.
    """
    here = ", ".join(f"{scores[variant]:.3f} ({short})" for short, variant in claim["shown"].items())
    better = [scores[a] - scores[b] for a, b in claim.get("better", [])]
    equal = [abs(scores[a] - scores[b]) for a, b in claim.get("equal", [])]
    right = sum(gap > noise for gap in better) + sum(gap <= noise for gap in equal)
    wrong = sum(gap < -noise for gap in better) + sum(gap > noise for gap in equal)
    if not better and not equal:
        verdict = "the paper does not say"
    elif wrong:
        verdict = "**not reproduced**"
    elif right == len(better) + len(equal):
        verdict = "reproduced"
    else:
        verdict = "in part" if right else "**not reproduced**: no difference"
    words = claim.get("paper", "–")
    return {"about": claim["about"], "paper": words, "here": f"{here}; noise {noise:.3f}", "verdict": verdict}


def collect(bench: Bench) -> dict[str, Any]:
    """Gather what is done: figures a variant, and the claims whose variants are all there."""
    plan = bench.plan
    results = [read_result(bench, job) for job in (*first_jobs(plan), *second_jobs(plan))]
    done = [result for result in results if result is not None]
    scores: dict[str, dict[str, float]] = {modality: {} for modality in plan["modalities"]}
    for result in done:
        if result["name"] != FIRST_STAGE:
            scores[result["modality"]][result["name"]] = round(score(result["figures"], plan["measured_by"]), 4)
            result["figures"]["score"] = scores[result["modality"]][result["name"]]
    claims = []
    for claim in plan["claims"]:
        have = scores[claim["modality"]]
        if all(variant in have for variant in ("base", *claim["shown"].values())):
            claims.append(judge(claim, have, noise_of(have, plan["validation"])))
    columns = [f"→{found} {name}" for found in ("image", "text") for name in plan["measured_by"]] + ["score"]
    sizes = {name: plan[name] for name in ("first_stage", "second_stage", "towers", "validation")}
    return {"sizes": sizes, "columns": columns, "variants": done, "claims": claims, "score": "mean of →text"}


def draw_plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw every variant's score, a panel a modality, the base and its noise as a band."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "ablations"
    from matplotlib import pyplot as plt

    modalities = list(dict.fromkeys(row["modality"] for row in result["variants"] if "score" in row["figures"]))
    figure, axes = plt.subplots(1, len(modalities), figsize=(6.2 * len(modalities), 5.2), squeeze=False, sharey=True)
    for axis, modality in zip(axes[0], modalities, strict=True):
        rows = [row for row in result["variants"] if row["modality"] == modality and "score" in row["figures"]]
        scores = {row["name"]: row["figures"]["score"] for row in rows}
        axis.barh(range(len(scores)), list(scores.values()), color="#4c78a8")
        if "base" in scores:
            noise = noise_of(scores, result["sizes"]["validation"])
            axis.axvspan(scores["base"] - noise, scores["base"] + noise, color="#f58518", alpha=0.25)
        axis.set_yticks(range(len(scores)), list(scores), fontsize=8)
        axis.invert_yaxis()
        axis.set_title(f"{modality} → text, mean of subject and setting", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def write_scores(result: Mapping[str, Any]) -> None:
    """Put on the scoreboard how many of the paper's claims came out here."""
    said = [row for row in result["claims"] if row["verdict"] != "the paper does not say"]
    right = sum(row["verdict"] == "reproduced" for row in said)
    write_score("ablations: claims of the paper reproduced", right, "claims", f"of {len(said)}; no bar", COMMAND)


def main() -> int:
    """Run what is not done, then write what is; give 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/ablations"), help="pools, checkpoints, results")
    parser.add_argument("--workers", type=int, default=2, help="variants at a time")
    parser.add_argument("--trial", action="store_true", help="three steps of everything; writes no result")
    parser.add_argument("--one", help="run one variant in this process")
    arguments = parser.parse_args()
    bench = Bench(load_plan(arguments.trial), arguments.folder, 0 if arguments.one else 2)
    first, second = first_jobs(bench.plan), second_jobs(bench.plan)
    if arguments.one:
        job = next(job for job in (*first, *second) if slug(job[0]["name"], job[1]) == arguments.one)
        run_job(bench, *job, result_path(bench, job), hash_of(bench, job))
        return 0
    began = time.monotonic()
    prepare(bench)
    failed = run_jobs(bench, first, arguments) or run_jobs(bench, second, arguments)
    result = collect(bench)
    for row in result["claims"]:
        print(f"{row['about']}: {row['here']} | {row['paper']} | {row['verdict']}")
    done, wanted = len(result["variants"]), len(first) + len(second)
    print(f"{time.monotonic() - began:.0f} s; {done} of {wanted} done; failed: {failed}")
    if not arguments.trial:
        draw_plot(result, write_result("ablations", result).with_suffix(".svg"))
        write_scores(result)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
