"""The card of a space that `train_mini.py` trained: what it is, what it cannot do, what it reached, how it was made."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bindsearch.models.manifest import SpaceManifest, load_manifest
from bindsearch.train.measure import interval
from bindsearch.world.scene import names

ATTRIBUTES = ("subject", "setting", "motion")
SEEN = ("image", "video")
"""Kinds of rows that the image tower makes: what met them was trained, all other pairs have never been paired."""
WEAK = 0.8
"""Shares below this are named as weak spots."""
Figures = dict[tuple[str, str], dict[str, float]]

TEXT = """# {name}

A joint space of {modalities} with ImageBind's architecture
at small size ({size}, d = {dim}), bundled so that everything in bindsearch can be tried without a download.
Licence: {licence}. Space id: `{space_id}`.

## What it cannot do

**It was trained on scenes that this project draws, sounds, moves and describes, and on nothing else.** Photographs,
recordings and real sensors mean little to it: a photographed dog is not its dog. Its words are those of the world's
English and German captions; any other word falls apart into letters that it has never seen. For real media fetch the
released weights: `bindsearch models fetch imagebind-huge`.

It knows {subjects}
in {settings},
and {motions}. It has been told of {colours}, of one to three copies, of size, place, light and the
camera's height. It cannot read, count further, or tell who does what to whom. Pictures, distances and heat are seen at
64 x 64 px, a video as three clips of two frames, a sound as its first 2 s, an inertial sensor as 10 s at 200 Hz. Sounds
do not tell a motion, and an inertial sensor tells a motion and nothing else: these two share nothing.

{weak}

## Figures

Shares of {n:,} scenes of the validation split whose best answer carries the query's subject (chance {of_subject:.3f}),
setting ({of_setting:.3f}) and motion ({of_motion:.3f}), with 95 % intervals, as measured when training ended, on
rendered values. "german" is text in the second language. All pairs, among 2,000 scenes of the test split:
`docs/emergence.md`.

{table}

## How it was made

`python tools/train_mini.py runs/mini`, {seeds}: {minutes:.0f} minutes of steps, to which comes the drawing of the
world. Images, videos and texts are trained together; while they are, the image tower also learns to name the scenes'
subject, setting, motion and colour by labels (ADR 0068). Every other modality is trained onto the frozen image tower;
of labels it uses which scenes of a batch agree: they are no negatives, and for imu they count as pairs. Weights are
kept in float16. Curves and log: `mini_training.json`, `.svg` and `.log` in `benchmarks/results`.

{stages}
"""


def write_card(folder: Path, curves: Mapping[str, Any]) -> None:
    """Write the README.md of a space.

    Args:
        folder: of the space, with its space.json.
        curves: from `write_curves`; the last figures of each stage are told.
    """
    (folder / "README.md").write_text(card(load_manifest(folder), space_bytes(folder), curves), encoding="utf-8")


def space_bytes(folder: Path) -> int:
    """Sum up what a space takes without its card."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))


def card(manifest: SpaceManifest, size_bytes: int, curves: Mapping[str, Any]) -> str:
    """Fill the card in."""
    figures, n = last_figures(curves), int(curves["config"]["validation"])
    second = manifest.source.get("seed_of_stage_2")
    text = TEXT.format(
        name=manifest.name,
        modalities=listed(manifest.modalities),
        size=f"{size_bytes / 1e6:.1f} MB",
        dim=manifest.architecture.dim,
        licence=manifest.licence,
        space_id=manifest.space_id,
        subjects=counted("subject"),
        settings=counted("setting"),
        motions=counted("motion"),
        colours=f"{len(names('colour'))} colours",
        weak=weaknesses(figures),
        n=n,
        of_subject=1 / len(names("subject")),
        of_setting=1 / len(names("setting")),
        of_motion=1 / len(names("motion")),
        table=figure_table(figures, n),
        seeds=f"seed {curves['config']['seed']}" + ("" if second is None else f" (after the image tower: {second})"),
        minutes=sum(stage["seconds"] for stage in curves["stages"].values()) / 60,
        stages=stage_table(curves),
    )
    return "\n\n".join(wrapped(part) for part in text.rstrip("\n").split("\n\n")) + "\n"


def wrapped(part: str) -> str:
    """Break the lines of a paragraph anew; headings and tables stay."""
    return part if part.startswith(("#", "|")) else textwrap.fill(part, 120, break_on_hyphens=False)


def listed(words: tuple[str, ...]) -> str:
    """Join words: a, b and c."""
    return " and ".join((", ".join(words[:-1]), words[-1]) if len(words) > 1 else words)


def counted(attribute: str) -> str:
    """Count and name what the world has of an attribute."""
    return f"{len(names(attribute))} {attribute}s ({', '.join(names(attribute))})"


def last_figures(curves: Mapping[str, Any]) -> Figures:
    """Gather what each pair reached last: (asked, found) -> attribute -> share."""
    figures: Figures = {}
    for stage in curves["stages"].values():
        for key, value in (stage["curve"][-1] if stage["curve"] else {}).items():
            if "->" in key:
                pair, attribute = key.rsplit(" ", 1)
                asked, found = pair.split("->")
                figures.setdefault((asked, found), {})[attribute] = float(value)
    return figures


def kind_of(asked: str, found: str) -> str:
    """Say whether a pair was trained."""
    if asked in SEEN and found in SEEN:
        return "one tower"
    return "trained" if asked in SEEN or found in SEEN else "**never paired**"


def answers(asked: str, found: str) -> str:
    """Name what is searched; a row of the same kind does not find itself."""
    return f"other {found}s" if asked == found else found


def figure_table(figures: Figures, n: int) -> str:
    """Lay out the shares of n queries with their intervals."""
    lines = ["| query → answers | | subject | setting | motion |", "| --- | --- | --- | --- | --- |"]
    for (asked, found), shares in figures.items():
        told = {name: interval(share, n) for name, share in shares.items()}
        cells = [
            f"{told[name]['value']:.3f} ({told[name]['low']:.3f}–{told[name]['high']:.3f})" if name in told else ""
            for name in ATTRIBUTES
        ]
        lines.append(f"| {asked} → {answers(asked, found)} | {kind_of(asked, found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def weaknesses(figures: Figures) -> str:
    """Name the figures below WEAK, the weakest first."""
    below = sorted(
        (share, f"{attribute}, {asked} → {answers(asked, found)} ({share:.2f})")
        for (asked, found), shares in figures.items()
        for attribute, share in shares.items()
        if share < WEAK
    )
    if not below:
        return f"No figure of the table below is under {WEAK}."
    return f"**Weak spots**, all figures of the table below under {WEAK}: {'; '.join(said for _, said in below)}."


def stage_table(curves: Mapping[str, Any]) -> str:
    """Lay out the stages that were run."""
    lines = ["| stage | steps | pairs a step | minutes |", "| --- | --- | --- | --- |"]
    for stage in curves["config"]["stages"]:
        done = curves["stages"].get(stage["name"])
        if done is not None:
            minutes = f"{done['seconds'] / 60:.0f}"
            lines.append(f"| {stage['name']} | {stage['steps']:,} | {stage['batch']} | {minutes} |")
    return "\n".join(lines)
