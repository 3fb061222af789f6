"""`bindsearch cache`: the visual cache, built, looked at, asked, read from and written for others."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bindsearch.cli.disk import file_to_write
from bindsearch.cli.options import (
    WEIGHED,
    DeviceOption,
    DtypeOption,
    JsonOption,
    QuietOption,
    SpaceOption,
    make_group,
    medium_options,
    open_space,
    print_facts,
    print_json,
    ready_to_embed,
    say,
    with_options,
)
from bindsearch.errors import InputError

if TYPE_CHECKING:
    from bindsearch.cache import VisualCache
    from bindsearch.cache.recipe import Enhancement
    from bindsearch.types import FloatArray

cache_app = make_group("The visual cache: embeddings moved towards their nearest cached images.")

CacheArgument = Annotated[Path, typer.Argument(help="Folder of the cache; any index that holds images is one.")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Folder of the cache, an index.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is already there.")]
RecipeOption = Annotated[Path | None, typer.Option("--recipe", help="What it is made by: indexes/visual-cache.json.")]
QueriesOption = Annotated[
    list[Path] | None,
    typer.Option("--queries", help="Embeddings like those that it will move: an approximate index is tuned on them."),
]
SpaceIdOption = Annotated[str | None, typer.Option(help="Space of the features, where the file doesn't say.")]


@cache_app.command("build")
def cache_build(
    output: OutputOption,
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="Images, world:0..1000, embeddings, or features (.npy, .parquet, .h5, clip-retrieval)."),
    ] = None,
    recipe: RecipeOption = None,
    keep: Annotated[int | None, typer.Option(min=1, help="How many images at most, after duplicates.")] = None,
    near_duplicate: Annotated[
        float | None, typer.Option(help="Least cosine at which an image repeats an earlier one; 0.98 to 1.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="Index backend, such as faiss-flat.")] = None,
    row_dtype: Annotated[str | None, typer.Option(help="float32 or float16.")] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="Where images are embedded to; default: beside the cache.")
    ] = None,
    queries: QueriesOption = None,
    space_id: SpaceIdOption = None,
    space: SpaceOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Decoding processes; 0 decodes in this one.")] = None,
    max_bad: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of bad inputs above which to exit 4.")] = 0.1,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Build a cache of images without near duplicates; an interrupted run goes on."""
    ready_to_embed()
    from dataclasses import replace

    from bindsearch.cache.build import Inputs, build_cache
    from bindsearch.cache.recipe import CacheRecipe, read_recipe
    from bindsearch.config import setting, to_json_dict

    made = read_recipe(recipe) if recipe else CacheRecipe()
    made = replace(
        made,
        keep=keep or made.keep,
        space=space or made.space,
        near_duplicate=near_duplicate if near_duplicate is not None else made.near_duplicate,
        index=made.index.overridden(backend, row_dtype),
    )
    inputs = Inputs(
        tuple(sources or ()),
        embeddings,
        space_id,
        cache(lambda name: open_space(name, device, dtype, None)),  # asked for by every step
        not quiet,
        setting("workers", workers),
        tuple(queries or ()),
        max_bad,
    )
    record = build_cache(output, inputs, made, force)
    if as_json:
        print_json(to_json_dict(record))
    elif not quiet:
        say(
            f"{output}: {record.kept} images; {record.repeated} of {record.seen} repeated earlier ones; "
            f"{record.others} items of other modalities left out. Next: bindsearch cache info {output}"
        )


@cache_app.command("tune")
def cache_tune(
    cache: CacheArgument,
    queries: QueriesOption = None,
    overlap: Annotated[
        float | None, typer.Option(help="Share of the true neighbours to find at least; at first 0.99.")
    ] = None,
    error: Annotated[
        float | None, typer.Option(help="Largest 1 - cosine of a moved embedding to exact search's; at first 0.001.")
    ] = None,
    held_out: Annotated[
        int | None, typer.Option("--held-out", min=20, help="Queries a modality to tune on; at first 500.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Choose an approximate cache's search settings anew, on embeddings like those that it will move.

    What no option says is as when it was built or last tuned: how exactly, and on which queries if those are there.
    """
    from bindsearch.cache.tuning import retune_cache

    given = {"overlap": overlap, "error": error, "count": held_out}
    changed = {name: value for name, value in given.items() if value is not None}
    measured = retune_cache(cache, tuple(queries or ()), changed=changed)
    if as_json:
        print_json(measured)
        return
    for name, found in measured.items():
        say(
            f"{name}: overlap {found['overlap']:.4f}, largest error {found['largest_error']:.1e} over "
            f"{found['queries']} queries of {found['source']}, {found['search_ms']:.2f} ms a query"
        )
    if not measured:
        say(f"{cache}: its index is exact, or holds one image; there is nothing to choose.")


@cache_app.command("info")
def cache_info(cache: CacheArgument, as_json: JsonOption = False) -> None:
    """Say what a cache holds, what it was made of, and what memory it takes."""
    from bindsearch.cache import VisualCache

    print_facts(VisualCache.open(cache).info(), as_json)


@cache_app.command("import")
def cache_import(
    file: Annotated[Path, typer.Argument(help="FAISS file, such as knn.index; a child process reads it.")],
    output: OutputOption,
    space_id: SpaceIdOption = None,
    recipe: RecipeOption = None,
    queries: QueriesOption = None,
    force: ForceOption = False,
) -> None:
    """Read a FAISS file of features, such as ImageBind-LLM's knn.index; all rows are kept where no recipe is named."""
    from bindsearch.cache.build import Inputs
    from bindsearch.cache.foreign import check_type, import_faiss
    from bindsearch.cache.recipe import read_recipe

    note = check_type(file)[1]
    inputs = Inputs(load=lambda name: open_space(name, None, None, None), queries=tuple(queries or ()))
    made = read_recipe(recipe) if recipe else None
    record, facts = import_faiss(file, output, space_id, made, force, inputs=inputs)
    if note:
        say(f"note: {file}: {note}")
    if facts.metric != "inner product":
        say(f"note: {file}: compares by {facts.metric}; the cache compares by cosine, as the original must.")
    say(f"{output}: {record.kept} images from an {facts.kind}. Next: bindsearch cache info {output}")


@cache_app.command("export")
def cache_export(
    cache: CacheArgument,
    output: Annotated[Path, typer.Option("--output", "-o", callback=file_to_write, help="File to write: knn.index.")],
    rows: Annotated[str, typer.Option(help="flat (float32) or fp16.")] = "flat",
) -> None:
    """Write a FAISS file that the original code reads, and FILE.items.parquet with what each row is."""
    from bindsearch.cache import VisualCache
    from bindsearch.cache.foreign import export_faiss

    say(f"wrote {export_faiss(VisualCache.open(cache), output, rows)} rows to {output}")


def cache_enhance(
    cache: CacheArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", callback=file_to_write, help="File of the moved embeddings (.npy).")
    ] = None,
    vectors: Annotated[Path | None, typer.Option(help=".npy file of embeddings (n, d), each moved by itself.")] = None,
    cache_size: Annotated[int | None, typer.Option("-k", help="How many neighbours.")] = None,
    inverse_temperature: Annotated[float | None, typer.Option(help="Sharper weights where it is higher.")] = None,
    weight: Annotated[float | None, typer.Option(help="Of the neighbours, 0 to 1.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Prove that the neighbours are the nearest.")] = False,
    space: SpaceOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
    **terms: list[str],
) -> None:
    """Move embeddings towards their nearest cached images, and show those and their weights.

    Several terms are mixed as ImageBind-LLM does: by weight (bird.jpg@0.5) over the sum of weights, not normalised.
    """
    from bindsearch.cache import VisualCache

    found = VisualCache.open(cache)
    wanted = [(name, text) for name, texts in terms.items() for text in texts or ()]
    if bool(wanted) == (vectors is not None):
        raise InputError("give either --vectors or terms such as --audio waves.wav: what is to be moved?")
    rows = _read_rows(vectors) if vectors else _mixed(found, wanted, (space, device, dtype))
    numbers = _numbers(found, cache_size, inverse_temperature, weight)
    moved = found.enhance(rows, numbers.cache_size, numbers.inverse_temperature, numbers.weight, exact=exact)
    if output:
        import numpy as np

        written = output if output.suffix == ".npy" else output.with_name(f"{output.name}.npy")
        written.parent.mkdir(parents=True, exist_ok=True)
        np.save(written, moved, allow_pickle=False)
        say(f"wrote {moved.shape[0]} embeddings to {written}")
    shown = found.explain(rows, numbers.cache_size, numbers.inverse_temperature, exact)
    if as_json:
        print_json(shown)
        return
    for each in shown:
        typer.echo(f"embedding {each['row']}, moved by {each['features']} (weight {numbers.weight:g})")
        for one in each["neighbours"]:
            typer.echo(f"  {one['weight']:.4f}  {one['key']}")


def _numbers(
    cache: VisualCache, cache_size: int | None, inverse_temperature: float | None, weight: float | None
) -> Enhancement:
    """Take the numbers of the blend: those given, else those of the cache's recipe."""
    from bindsearch.cache.recipe import Enhancement

    own = cache.enhancement
    return Enhancement(
        min(own.cache_size, len(cache)) if cache_size is None else cache_size,
        own.inverse_temperature if inverse_temperature is None else inverse_temperature,
        own.weight if weight is None else weight,
    )


def _read_rows(path: Path) -> FloatArray:
    from bindsearch.row_table import read_npy

    rows: FloatArray = read_npy(path, f"--vectors {path}")
    return rows


def _mixed(cache: VisualCache, wanted: list[tuple[str, str]], how: tuple[str | None, str | None, str | None]) -> Any:
    """Embed terms and mix them."""
    from bindsearch.cache import mix
    from bindsearch.query import parse_terms
    from bindsearch.search import Request, build_queries

    specs = parse_terms(wanted)
    index = cache.index
    recorded = index.manifest.space_name if index is not None else None
    preset = dict(index.manifest.preset_ids) if index is not None else None
    requests = [Request((spec,)) for spec in specs]
    parts = build_queries(requests, index, lambda: open_space(*how, preset, recorded=recorded))
    return mix([part.vector for part in parts], [spec.weight for spec in specs])


cache_app.command("enhance")(with_options(cache_enhance, medium_options(WEIGHED)))
