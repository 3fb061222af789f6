"""`bindsearch train`: bind a modality, or another encoder's features, to a frozen space; or make one from nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from bindsearch.cli.options import JsonOption, QuietOption, SpaceOption, print_json, say
from bindsearch.errors import InputError


def train(
    source: Annotated[
        Path, typer.Argument(help="Configuration (.json), or a manifest of pairs: columns path_a, path_b, label.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; a second run goes on in it.")],
    space: SpaceOption = None,
    anchor: Annotated[str | None, typer.Option(help="Modality of path_a, which the frozen space encodes.")] = None,
    modality: Annotated[str | None, typer.Option(help="Modality of path_b, whose tower is trained.")] = None,
    features: Annotated[
        Path | None, typer.Option(help="Table of another encoder's vectors by path_b: .npz, .npy, .parquet, a store.")
    ] = None,
    tower: Annotated[
        str | None, typer.Option(help="own, own:ARCHITECTURE, timm:NAME or projector (with --features the default).")
    ] = None,
    hidden: Annotated[int | None, typer.Option(min=1, help="Width of a hidden layer before the last linear.")] = None,
    size_px: Annotated[int | None, typer.Option("--size", min=16, help="Side of a timm tower's pictures.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Start a timm tower from released weights.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.  [default: 1000]")] = None,
    batch: Annotated[int | None, typer.Option(min=2, help="Pairs a step.  [default: 256]")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0, help="Of AdamW.  [default: 0.001]")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="Of the loss; 0 learns it.  [default: 0.07]")] = None,
    held_out: Annotated[float | None, typer.Option(help="Share of pairs to measure on.  [default: 0.1]")] = None,
    max_bad: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of broken pairs to exit 4 at.  [default: 0.1]")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of weights and batches.  [default: 0]")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the new space.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Decoding processes; 0 decodes in this one.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Bind a new tower to a frozen space on pairs of files; writes a space that index and query take.

    Flags replace what the configuration says. The same command goes on where a run was stopped; torchrun -m bindsearch
    train ... uses several processes. A configuration with stages makes a whole space from nothing, on the drawn world
    (of the flags it takes --seed, --name and --workers). Write-up: docs/train.md.
    """
    from bindsearch.config import setting
    from bindsearch.embed import EmbedOptions
    from bindsearch.train.config import holds_stages

    workers = EmbedOptions(workers=setting("workers", workers)).worker_count()
    if holds_stages(source):
        others: dict[str, Any] = {"--space": space, "--anchor": anchor, "--modality": modality, "--features": features}
        others |= {"--tower": tower, "--hidden": hidden, "--size": size_px, "--pretrained": pretrained or None}
        others |= {"--steps": steps, "--batch": batch, "--learning-rate": learning_rate, "--temperature": temperature}
        _refuse(source, {**others, "--held-out": held_out, "--max-bad": max_bad})
        _train_whole(source, output, seed, name or "", workers, as_json, quiet)
        return
    from bindsearch.models.download import silent
    from bindsearch.train.bind import RunOptions, run_bind
    from bindsearch.train.bind_config import load_bind_config
    from bindsearch.train.processes import rank

    config = load_bind_config(source)
    frozen = config.space if source.suffix.lower() == ".json" else setting("space")
    pairs = {"anchor": anchor, "modality": modality, "features": features and str(features), "held_out": held_out}
    built = {"hidden": hidden, "size_px": size_px, "pretrained": pretrained or None, **_tower_words(tower, features)}
    schedule: dict[str, Any] = {"steps": steps, "batch": batch, "learning_rate": learning_rate}
    config = dataclasses.replace(
        config,
        pairs=_with(config.pairs, {**pairs, "max_bad": max_bad}),
        tower=_with(config.tower, built),
        schedule=_with(config.schedule, schedule),
    )
    if temperature is not None:
        config = dataclasses.replace(
            config, schedule=dataclasses.replace(config.schedule, temperature=temperature or None)
        )
    config = _with(config, {"space": space or frozen, "seed": seed, "name": name})
    options = RunOptions(workers, progress=not quiet, say=silent if quiet else _say_beside_bars)
    report = run_bind(config, output, options)
    if rank():
        return  # of several processes, the first one speaks
    if as_json:
        print_json(report.to_json())
    elif not quiet:
        typer.echo(report.to_text())


def _refuse(source: Path, flags: dict[str, Any]) -> None:
    """Refuse flags that are of one new tower where the configuration has stages."""
    for flag, value in flags.items():
        if value is not None:
            raise InputError(
                f"{source}: holds the stages of a whole space; {flag} is for a new tower on a frozen one. Leave it "
                "away, or write what is meant into the stages."
            )


def _train_whole(
    source: Path, output: Path, seed: int | None, name: str, workers: int, as_json: bool, quiet: bool
) -> None:
    """Train every stage of a configuration, and report."""
    from bindsearch.models.download import silent
    from bindsearch.train.whole import WholeOptions, load_whole_config, run_whole

    config = _with(load_whole_config(source), {"seed": seed})
    options = WholeOptions(workers, not quiet, silent if quiet else _say_beside_bars, name)
    report = run_whole(config, output, options)
    if as_json:
        print_json(report.to_json())
    elif not quiet:
        typer.echo(report.to_text())


def _with(config: Any, values: dict[str, Any]) -> Any:
    """Replace the fields that were given."""
    return dataclasses.replace(config, **{name: value for name, value in values.items() if value is not None})


def _tower_words(tower: str | None, features: Path | None) -> dict[str, str]:
    """Read "timm:resnet18", "own:bindsearch-mini", "projector"; features mean a projector where nothing is said."""
    if tower is None:
        return {"kind": "projector"} if features is not None else {}
    kind, _, rest = tower.partition(":")
    named = {"timm": "backbone", "own": "architecture"}.get(kind)
    return {"kind": kind, **({named: rest} if named and rest else {})}


def _say_beside_bars(line: str) -> None:
    """Talk to the person without tearing a progress bar."""
    from tqdm import tqdm

    with tqdm.external_write_mode():
        say(line)
