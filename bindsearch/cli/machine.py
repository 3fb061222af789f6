"""Looking around: doctor, config, inspect."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from bindsearch.cli.options import (
    DeviceOption,
    JsonOption,
    PresetOption,
    QuietOption,
    SpaceOption,
    make_group,
    open_space,
    print_json,
    say,
    split_list,
)

config_app = make_group("Settings: flag > BINDSEARCH_<NAME> > bindsearch.toml > default.")


def doctor(as_json: JsonOption = False) -> None:
    """Say what this machine has: devices, drivers, wheels and clashes, OpenMP, caches, spaces at hand."""
    from bindsearch.doctor import examine, problems

    findings = examine()
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        topic = ""
        for finding in findings:
            if finding.topic != topic:
                topic = finding.topic
                typer.echo(f"{topic}")
            typer.echo(f"  {finding.name:<16} {finding.value}")
    for problem in problems(findings):
        say(f"problem: {problem}")
    if problems(findings):
        raise typer.Exit(1)


@config_app.command("show")
def config_show(
    as_json: JsonOption = False,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
) -> None:
    """Print every setting and its value.

    A name that is no setting is refused in bindsearch.toml, and warned of in the environment; a blank value is none.
    """
    from bindsearch.config import DEFAULTS, setting_with_origin

    values = {name: setting_with_origin(name) for name in sorted(DEFAULTS)}
    if as_json:
        print_json({name: {"value": value, "origin": where} for name, (value, where) in values.items()})
        return
    width = max(map(len, values))
    for name, (value, where) in values.items():
        typer.echo(f"{name:<{width}} {value}" + (f"  (from {where})" if origin else ""))


def bench(
    space: SpaceOption = None,
    device: DeviceOption = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, bfloat16, fast, or several: float32,fast.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="What all of it should take, about.")] = 60.0,
    only: Annotated[str | None, typer.Option("--only", help="Parts: limits,rates,start,index.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure this machine: its limits, a space's towers, starting, searching; prints a table to paste."""
    from bindsearch.bench import PARTS, BenchOptions, run_bench
    from bindsearch.config import setting

    options = BenchOptions(
        space=setting("space", space),
        device=setting("device", device),
        dtypes=split_list(dtype) if dtype else BenchOptions.dtypes,
        seconds=seconds,
        parts=split_list(only) if only else PARTS,
    )

    def progress(name: str, place: int, count: int) -> None:
        say(f"[{place}/{count}] {name}")

    report = run_bench(options, None if quiet else progress)
    if as_json:
        print_json(report.to_json())
    else:
        typer.echo(report.to_markdown())


def inspect_file(
    file: Annotated[str, typer.Argument(help="A media file.")],
    modality: Annotated[str | None, typer.Option(help="Read it as this modality.")] = None,
    space: SpaceOption = None,
    preset: PresetOption = None,
) -> None:
    """Say how a file would be read: modality, clip plan, shapes, what preprocessing does to it."""
    from bindsearch.embed import inspect_source

    print_json(inspect_source(file, modality, open_space(space, None, None, preset)))
