"""The walk: embed and query; index stands in indexing.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bindsearch.cli.disk import file_to_write, picture_to_write
from bindsearch.cli.options import (
    WEIGHED,
    DeviceOption,
    DtypeOption,
    JsonOption,
    PresetOption,
    QuietOption,
    SpaceOption,
    SpeedOption,
    medium_options,
    open_space,
    print_json,
    ready_to_embed,
    say,
    split_list,
    with_options,
)
from bindsearch.errors import InputError, MissingInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from bindsearch.query import Embedding
    from bindsearch.search import SearchIndex


def embed(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder of the embeddings; a second run resumes, or joins one at work."),
    ],
    sources: Annotated[
        list[str] | None, typer.Argument(help="Folders, files, @lists, manifests, tars, world:0..1000, or -.")
    ] = None,
    space: SpaceOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    speed: SpeedOption = None,
    preset: PresetOption = None,
    modality: Annotated[str | None, typer.Option(help="Read every source as this modality.")] = None,
    modalities: Annotated[
        str | None, typer.Option(help="What to embed of a source such as world:0..1000: image,text,...")
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of a manifest that holds texts.")] = None,
    window_s: Annotated[float | None, typer.Option("--window", help="Cut long recordings into spans of S s.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Items a forward pass.")] = 32,
    shard_size: Annotated[int, typer.Option(min=1, help="Items a shard, the unit of commit.")] = 1024,
    workers: Annotated[int | None, typer.Option(min=0, help="Decoding processes; 0 decodes in this one.")] = None,
    max_bad: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of bad inputs above which to exit 4.")] = 0.1,
    item_limit_s: Annotated[
        float, typer.Option("--item-limit", min=0.1, help="Seconds that one item may take.")
    ] = 30.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes to be; default: one a GPU.", show_default=False)
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(help="i/n: be one of n that are started by hand; torchrun and SLURM say it in their variables."),
    ] = None,
    join: Annotated[bool, typer.Option("--join", help="Help a run on this folder; needs no sources.")] = False,
    silence_s: Annotated[
        float, typer.Option("--silence", min=1.0, help="Seconds until a silent process elsewhere counts as dead.")
    ] = 60.0,
    status: Annotated[
        bool, typer.Option("--status", help="Say who works on the folder and on what, and stop.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Embed media files into a store of shards; what is broken is reported and skipped.

    The same command, started once more on this or another machine that shares the folder, joins the run: each takes
    shards that nobody has, and what a dead one leaves is taken over (docs/many.md).
    """
    if status:
        _print_status(output, as_json)
        return
    ready_to_embed()
    from bindsearch.cli.several import helpers, own_device, process_count
    from bindsearch.config import setting
    from bindsearch.embed import EmbedOptions, run_embed
    from bindsearch.embed.place import Place
    from bindsearch.embed.run import JOIN_LIMIT_S

    place = Place.of(shard, os.environ)
    device = setting("device", device)
    count = process_count(processes, place, device) if not dry_run else 1
    if count > 1:
        place = Place(1, count, 0, count)
    options = EmbedOptions(
        modality=modality,
        text_column=text_column,
        window_s=window_s,
        batch_size=batch_size,
        shard_size=shard_size,
        workers=setting("workers", workers),
        max_bad=max_bad,
        item_limit_s=item_limit_s,
        dry_run=dry_run,
        place=place,
        join=join,
        silence_s=silence_s,
    )
    if (output / "index.json").is_file():
        raise InputError(f"{output}: holds an index. Name another folder for the embeddings, such as run/embeddings.")
    if modalities is not None:
        from bindsearch.embed.planning import check_lists_nothing
        from bindsearch.makers import narrow

        if join:
            check_lists_nothing({"--modalities": modalities})
        sources = [narrow(source, split_list(modalities)) for source in sources or ()]
    given = {"space": space, "device": device, "dtype": dtype, "speed": speed, "preset": preset, "workers": workers}
    given |= {"item-limit": item_limit_s, "silence": silence_s, "max-bad": 1.0}
    loaded = open_space(space, own_device(device, place), dtype, preset, speed)
    if join and not quiet:
        say(f"{output}: joins the run that is at work there; where there is none, waits {JOIN_LIMIT_S:g} s for one.")
    with helpers(output, count, [f"--{name}={value}" for name, value in given.items() if value is not None]):
        report = run_embed(sources or (), output, loaded, options=options, progress=not quiet)
    if as_json:
        print_json(report.to_json())
    elif not quiet:
        typer.echo(report.to_text())
    report.check_bad()


def _print_status(output: Path, as_json: bool) -> None:
    from bindsearch.embed.status import folder_status, status_text

    status = folder_status(output)
    if as_json:
        print_json(status)
    else:
        typer.echo(status_text(status))


def query(
    index: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of the index; default: BINDSEARCH_INDEX, bindsearch.toml, or the only one under indexes/."
        ),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option(
            "-k", min=1, help="How many answers; 10, or with --min-score all, but for pages.", show_default=False
        ),
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="Filter on item columns: \"size > 1000 and modality == 'image'\".")
    ] = None,
    sql: Annotated[
        str | None,
        typer.Option("--sql", help="Filter in SQL over the table items (extra sql): a condition, or SELECT id ..."),
    ] = None,
    only: Annotated[str | None, typer.Option("--only", help="Answer with this modality alone.")] = None,
    many: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help='File of queries, one JSON a line, such as {"text": "a dog", "k": 5}; - is stdin; docs/query.md.',
        ),
    ] = None,
    exclude_self: Annotated[
        bool, typer.Option("--exclude-self", help="Leave out the items asked with by --item.")
    ] = False,
    min_score: Annotated[
        float | None, typer.Option("--min-score", help="Answer with what scores at least this cosine.")
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            "--group-by",
            help="One answer a group, the best: source (the file that spans are of), or a column as in --where.",
        ),
    ] = None,
    hide_duplicates: Annotated[
        float | None,
        typer.Option("--hide-duplicates", help="Hide answers whose cosine with a better one is above this, as 0.95."),
    ] = None,
    diverse: Annotated[
        float | None,
        typer.Option("--diverse", help="Answers unlike each other: from 1, by score alone, to 0, by unlikeness (MMR)."),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Order by percentile, so that modalities stand in one list.")
    ] = False,
    paged: Annotated[
        bool, typer.Option("--paged", help="Give each hit a cursor in --json; go on with --after.")
    ] = False,
    after: Annotated[
        str | None, typer.Option("--after", help="A hit's cursor: answer with what comes behind it.")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Prove the answers, of approximate indexes as well.")] = False,
    bridge: Annotated[
        bool, typer.Option("--bridge", help="Blend a query that is no image with its nearest images of the index.")
    ] = False,
    bridge_cache: Annotated[
        Path | None, typer.Option("--bridge-cache", help="Blend it with the nearest images of this cache instead.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what each term adds to the score, and what ran and why.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", callback=file_to_write, help="Write a page with pictures and players.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", callback=picture_to_write, help="Write a contact sheet (PNG, JPEG).")
    ] = None,
    space: SpaceOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    preset: PresetOption = None,
    as_json: JsonOption = False,
    **terms: list[str],
) -> None:
    """Ask an index, by any modality or a sum of several.

    A term may end in a weight: bird.jpg@0.3 (a file of that exact name wins). Terms are normalised, weighted, added and
    normalised again; --minus-... subtracts.
    """
    from bindsearch.search import Effort, Shape, ask, open_index

    shape = Shape(min_score, group_by, hide_duplicates, diverse, calibrate, after, paged)
    found = open_index(index)
    wanted = [(name, text) for name, texts in terms.items() for text in texts or ()]
    answers = ask(
        found,
        wanted,
        many=many,
        load=lambda: open_space(
            space,
            device,
            dtype,
            preset or dict(found.manifest.preset_ids),
            "single" if many is None else None,
            found.manifest.space_name,
        ),
        k=k,
        where=where,
        modality=only,
        exclude_self=exclude_self,
        explain=explain,
        sql=sql,
        shape=shape,
        effort=Effort(exact),
        bridge=_bridge(found, bridge, bridge_cache, exact),
    )
    from bindsearch import render

    if html:
        say(f"wrote {render.write_html(answers, html)}")
    if sheet:
        say(f"wrote {render.write_sheet(answers, sheet)}")
    if as_json:
        typer.echo(render.to_json(answers))
    else:
        typer.echo(render.to_table(answers, explain=explain))
    for line in answers.talk():
        say(line)


def _bridge(
    index: SearchIndex, wanted: bool, cache: Path | None, exact: bool
) -> Callable[[Embedding], Embedding] | None:
    """Give what carries queries over the modality gap, where that is asked for."""
    if not wanted and cache is None:
        return None
    from bindsearch.cache.bridge import bridge_to
    from bindsearch.search import open_index

    if cache is not None and not (cache / "index.json").is_file():
        what = "holds no cache" if cache.exists() else "does not exist"
        raise MissingInputError(f"--bridge-cache {cache}: {what}. Type: bindsearch cache build SOURCES -o CACHE")
    return bridge_to(index, None if cache is None else open_index(cache), exact=exact)


def _term_options() -> dict[str, str]:
    """Give the help of one option a modality, item and vector, and of its --minus- twin."""
    helps: dict[str, str] = {}
    for sign, does in (("", " to look for"), ("minus_", " to move away from")):
        things = medium_options(does) | {"item": f"Key of an item of the index{does}", "vector": f".npy file{does}"}
        helps |= {f"{sign}{name}": f"{text}{WEIGHED}" for name, text in things.items()}
    return helps


with_options(query, _term_options())
