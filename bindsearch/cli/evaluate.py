"""`bindsearch evaluate` and `bindsearch gap`: figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bindsearch.cli.disk import file_to_write
from bindsearch.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    PresetOption,
    QuietOption,
    SpaceOption,
    open_space,
    print_json,
    say,
)
from bindsearch.errors import InputError

if TYPE_CHECKING:
    from bindsearch.embed import EmbedOptions

OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Folder of the run: embeddings and what is prepared; a second run resumes."),
]
PlotOption = Annotated[
    Path | None, typer.Option("--plot", callback=file_to_write, help="Draw it (.svg, .png, .pdf); needs matplotlib.")
]


def evaluate(
    source: Annotated[
        Path | None, typer.Argument(help="Embeddings, a manifest (csv, jsonl, parquet), a folder; a recipe's data.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Run a benchmark: a bundled name (see --list), or a JSON file.")
    ] = None,
    output: OutputOption = None,
    pair: Annotated[
        str | None, typer.Option(help="Column whose equal values belong together; default: pair, else group.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Column: does the best answer share the value? Repeatable.")
    ] = None,
    zero_shot: Annotated[
        list[str] | None, typer.Option("--zero-shot", help="Column of class names, found by prompts. Repeatable.")
    ] = None,
    templates: Annotated[
        str | None, typer.Option(help="Prompts: clip80 (default), plain, ..., a file, or 'a photo of a {}' itself.")
    ] = None,
    table: Annotated[Path | None, typer.Option(help="Table of further columns, such as labels.")] = None,
    on: Annotated[
        str | None, typer.Option(help="Its column that names the items; default: key, path, stem, ...")
    ] = None,
    ks: Annotated[
        list[int] | None, typer.Option("-k", min=1, help="k of recall at k; repeatable; default 1, 5, 10.")
    ] = None,
    ties: Annotated[str, typer.Option(help="Equal scores: pessimistic or expected.")] = "pessimistic",
    drop_own: Annotated[
        bool, typer.Option("--drop-own", help="With --label: what is paired with the query is no answer.")
    ] = False,
    html: Annotated[Path | None, typer.Option("--html", callback=file_to_write, help="Write a page.")] = None,
    plot: PlotOption = None,
    space: SpaceOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    preset: PresetOption = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Decoding processes; 0 decodes in this one.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    list_them: Annotated[bool, typer.Option("--list", help="List the bundled recipes and stop.")] = False,
    describe_it: Annotated[
        bool, typer.Option("--describe", help="Say what the recipe expects on disk and what the paper says, and stop.")
    ] = False,
) -> None:
    """Measure retrieval, labels and zero-shot classes, with 95 % intervals; or repeat a benchmark of the paper."""
    if list_them or describe_it:
        _show_recipes(recipe, as_json)
        return
    if source is None:
        raise InputError("nothing to evaluate. Name embeddings, a manifest or a folder; or: bindsearch evaluate --list")
    from bindsearch.evaluate import report
    from bindsearch.evaluate.run import Question, evaluate_rows, open_rows

    if plot is not None:
        report.check_plot(plot, recipe is not None or not zero_shot or bool(pair or label))
    options = _options(workers)
    if recipe is not None and (pair or label or zero_shot or templates or table or on or ks or drop_own):
        raise InputError(
            "--recipe says what is asked: leave --pair, --label, --zero-shot, --templates, --table, --on, --drop-own "
            "and -k away. Your own recipe may say otherwise: --recipe mine.json"
        )
    if recipe is not None:
        result = _run_recipe(recipe, source, output, (space, device, dtype, preset), options, ties, not quiet)
    else:
        question = Question(
            pair,
            tuple(label or ()),
            tuple(zero_shot or ()),
            templates,
            tuple(ks or (1, 5, 10)),
            ties,
            drop_own,
            table,
            on,
        )
        question.check()
        rows = open_rows(source, output, lambda: open_space(space, device, dtype, preset), options, not quiet)
        how = preset or dict(rows.preset_ids)
        result = evaluate_rows(rows, question, lambda: open_space(space, device, dtype, how, recorded=rows.space_name))
    if html is not None:
        say(f"wrote {report.write_html(result, html)}")
    if plot is not None:
        say(f"wrote {report.write_plot(result, plot)}")
    if as_json:
        print_json(result)
    else:
        typer.echo(report.to_text(result))


def _options(workers: int | None) -> EmbedOptions:
    from bindsearch.config import setting
    from bindsearch.embed import EmbedOptions

    return EmbedOptions(workers=setting("workers", workers))


def _show_recipes(name: str | None, as_json: bool) -> None:
    """List the recipes, or describe one."""
    from bindsearch.config import to_json_dict
    from bindsearch.evaluate.recipe import describe, list_recipes, load_recipe

    found = [load_recipe(each) for each in ([name] if name else list_recipes())]
    if as_json:
        print_json([to_json_dict(each) for each in found])
    elif name:
        typer.echo(describe(found[0]))
    else:
        width = max(len(each.name) for each in found)
        for each in found:
            typer.echo(f"{each.name:<{width}}  {each.title}")


def _run_recipe(
    name: str,
    data: Path,
    output: Path | None,
    opened: tuple[str | None, str | None, str | None, str | None],
    options: EmbedOptions,
    ties: str,
    progress: bool,
) -> dict[str, Any]:
    """Run a recipe into a folder of its own; its presets hold unless --preset names others."""
    from bindsearch.config import setting
    from bindsearch.evaluate.metrics import check_ties
    from bindsearch.evaluate.recipe import check_space, load_recipe, presets_for, run_recipe

    check_ties(ties)
    recipe = load_recipe(name)
    recipe.check(data)
    space = open_space(*opened)
    check_space(recipe, space)
    space = space.with_preset(presets_for(recipe, setting("preset", opened[3])))
    folder = output or Path("runs") / f"{recipe.name}-{space.space_id.replace('@', '-').replace('/', '-')}"
    result = run_recipe(recipe, data, folder, space, options=options, ties=ties, progress=progress)
    if progress:
        say(f"embeddings: {folder / 'embeddings'}")
    return result


def gap(
    embeddings: Annotated[Path, typer.Argument(help="Folder that `bindsearch embed` wrote.")],
    pair: Annotated[
        str | None, typer.Option(help="Column whose equal values are true pairs; default: pair, else group.")
    ] = None,
    plot: PlotOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the modality gap: how far apart modalities lie, as stored and with their means taken away."""
    from bindsearch import gap as gaps
    from bindsearch.evaluate.report import check_plot
    from bindsearch.evaluate.rows import read_rows

    if plot is not None:
        check_plot(plot)
    rows = read_rows(embeddings)
    result = gaps.measure_gap(rows, pair)
    if plot is not None:
        say(f"wrote {gaps.write_plot(rows, result, plot)}")
    if as_json:
        print_json(result)
    else:
        typer.echo(gaps.to_text(result))
