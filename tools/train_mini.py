"""Train bindsearch-mini from nothing: draw the world, bind text, then the other modalities, to images; write the space.

`bindsearch train bindsearch/train/mini.json -o RUN` does the same for a space of one's own. This script writes the
bundled one: its folder gets a card, README.md, whose figures are those of the run.

python tools/train_mini.py runs/mini                      # every stage; resumes where it was stopped
python tools/train_mini.py runs/mini --stage image-text   # no further than this stage
python tools/train_mini.py runs/mini --lanes              # stages on the frozen image tower in two processes
python tools/train_mini.py runs/mini --partial            # write the space with the towers that are trained so far
python tools/train_mini.py runs/mini --seed 2 --output runs/mini/space-2    # stage 2 again from another seed

A stage that is done is read back in a second. Stages that train the image tower keep the configuration's seed; with
`--seed` the others start from that one, in a folder of their own, on the same first stage.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from mini_card import space_bytes, write_card

from bindsearch.models.bind import Tower
from bindsearch.train.binding import NAMING, Run
from bindsearch.train.config import StageConfig, TrainConfig, load_train_config
from bindsearch.train.curves import write_curves
from bindsearch.train.loop import Stage, train_stage
from bindsearch.train.stages import Say, logged, prepare, run_stages, write_space

PACKAGE = Path(str(resources.files("bindsearch")))
BUNDLED = PACKAGE / "models" / "spaces" / "bindsearch-mini"
RESULTS = PACKAGE.parent / "benchmarks" / "results"
LIMIT_BYTES = 12_000_000


def wanted_stages(config: TrainConfig, last: str | None, only: Sequence[str] | None) -> tuple[StageConfig, ...]:
    """Give the stages up to one; or those that train the image tower, and some others."""
    names = [stage.name for stage in config.stages]
    stages = config.stages[: names.index(last) + 1] if last else config.stages
    return tuple(stage for stage in stages if only is None or stage.train_anchor or stage.name in only)


def lanes_of(config: TrainConfig) -> list[list[str]]:
    """Share the stages that bind to the image tower's stills among two processes: the first of them, and the rest."""
    names = [stage.name for stage in config.stages if not stage.train_anchor and stage.anchor == "image"]
    return [lane for lane in (names[:1], names[1:]) if lane]


def run_lanes(arguments: argparse.Namespace, config: TrainConfig) -> None:
    """Run each lane in a process of its own, of one thread and one that renders, and wait for both."""
    common = [str(arguments.folder), "--config", str(arguments.config), "--threads", "1", "--workers", "1"]
    if arguments.seed is not None:
        common += ["--seed", str(arguments.seed)]
    processes = [
        subprocess.Popen([sys.executable, str(Path(__file__)), *common, "--only", *lane]) for lane in lanes_of(config)
    ]
    try:
        failed = [process.args for process in processes if process.wait()]
    except BaseException:
        for process in processes:
            process.terminate()
        raise
    if failed:
        raise SystemExit(f"stopped: {' '.join(map(str, failed[0]))}")  # type: ignore[arg-type]


def write_mini(run: Run, towers: dict[str, Tower], folder: Path, seed: int | None, say: Say) -> None:
    """Write the trained towers as a space, and say how large it is."""
    source: dict[str, Any] = {"made_by": "tools/train_mini.py", "seed": run.config.seed}
    if seed is not None:
        source["seed_of_stage_2"] = seed
    written = write_space(run, towers, folder, source)
    size = space_bytes(folder)
    say(f"{written.space_id}: {', '.join(written.modalities)}; {size} bytes in {folder}")
    if size > LIMIT_BYTES:
        say(f"{folder}: {size} bytes, over the limit of {LIMIT_BYTES}. Narrow a tower in {run.config.space}.json.")


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read what is asked for."""
    parser.add_argument("folder", type=Path, help="checkpoints, pools and log")
    parser.add_argument("--config", type=Path, default=PACKAGE / "train" / "mini.json")
    parser.add_argument("--output", type=Path, help="space to write; the bundled one where it is not given")
    parser.add_argument(
        "--curves",
        type=Path,
        help="JSON of the curves, a plot and the log beside it; benchmarks/results/mini_training.json for the bundled "
        "space, otherwise in the folder (with --seed, in that seed's folder)",
    )
    parser.add_argument("--stage", help="stop after this stage, write no space")
    parser.add_argument(
        "--only", nargs="+", metavar="STAGE", help="those that train the image tower and these; no space, no curves"
    )
    parser.add_argument(
        "--lanes",
        action="store_true",
        help="bind audio in one process, depth and thermal in another, each as with --threads 1 --workers 1",
    )
    parser.add_argument("--partial", action="store_true", help="train nothing: write the towers that are done")
    parser.add_argument("--seed", type=int, help="of the stages that leave the image tower as it is; needs --output")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    return parser.parse_args()


def main() -> None:
    """Train, then write the space."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments = parsed(parser)
    writes = arguments.partial or (arguments.stage is None and arguments.only is None)
    if arguments.seed is not None and writes and arguments.output is None:
        parser.error(f"--seed {arguments.seed} would take the bundled space's place: say --output FOLDER.")
    if arguments.lanes and (arguments.partial or not writes):
        parser.error("--lanes runs all stages: leave --stage, --only and --partial away.")
    config = load_train_config(arguments.config)
    names = [stage.name for stage in config.stages]
    for name in (arguments.stage, *(arguments.only or ())):
        if name is not None and name not in names:
            parser.error(f"{name} is no stage; the stages are {', '.join(names)}.")
    torch.set_num_threads(arguments.threads)
    own = arguments.folder if arguments.seed is None else arguments.folder / f"seed-{arguments.seed}"
    own.mkdir(parents=True, exist_ok=True)
    began = time.time()
    bundled = writes and arguments.output is None
    curves = arguments.curves or (RESULTS if bundled else own) / "mini_training.json"
    with logged(arguments.folder / "train.log", lambda line: print(line, flush=True)) as say:
        towers, run = trained(arguments, config, say)
        if arguments.only is None:
            written = write_curves(config, list(dict.fromkeys((arguments.folder, own))), curves)
        if writes:
            output = arguments.output or BUNDLED
            write_mini(run, towers, output, arguments.seed, say)
            write_card(output, written)
        named = ", ".join(name for name in towers if name != NAMING)
        say(f"trained {named} in {(time.time() - began) / 60:.1f} min")
    if arguments.only is None:
        copy_log(arguments.folder / "train.log", curves.with_suffix(".log"))


def trained(arguments: argparse.Namespace, config: TrainConfig, say: Say) -> tuple[dict[str, Tower], Run]:
    """Run the stages that are asked for; gives the towers, and what the stages share."""

    def train(stage: Stage) -> dict[str, Any]:
        return train_stage(stage, say=say)

    run = prepare(config, arguments.folder, arguments.workers, say)
    if arguments.lanes:
        run_stages(run, wanted_stages(config, None, ()), say, train)
        run_lanes(arguments, config)
    stages = wanted_stages(config, arguments.stage, arguments.only)
    return run_stages(run, stages, say, None if arguments.partial else train, arguments.seed), run


def copy_log(log: Path, copy: Path) -> None:
    """Copy the log; paths in it start at the project."""
    text = log.read_text(encoding="utf-8")
    copy.write_text(text.replace(f"{PACKAGE.parent}/", ""), encoding="utf-8")


if __name__ == "__main__":
    main()
