"""The index commands: build by a budget or a recipe, look at one, change one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bindsearch.cli.options import BuildFirst, JsonOption, QuietOption, make_group, print_facts, print_json, say
from bindsearch.errors import InputError

if TYPE_CHECKING:
    from bindsearch.index.base import Progress
    from bindsearch.index.budget import Budget
    from bindsearch.index.manifest import Manifest
    from bindsearch.index.recipe import Recipe
    from bindsearch.search import SearchIndex

index_app = make_group("Build an index over embeddings, and look at one.", BuildFirst)


RecallOption = Annotated[
    float | None, typer.Option("--recall", help="Plan: share of the ten exact answers to find, as 0.95.")
]
MemoryOption = Annotated[
    str | None, typer.Option("--memory", help="Plan: bytes that searches keep reading, as 2GB or 800MiB.")
]
LatencyOption = Annotated[str | None, typer.Option("--latency", help="Plan: CPU time of a query asked alone, as 5ms.")]
QueriesOption = Annotated[
    list[Path] | None,
    typer.Option("--queries", help="Embeddings of queries like those to come: settings are tuned on them."),
]
HeldOutOption = Annotated[
    int | None, typer.Option("--held-out", min=20, help="Queries a modality to tune on; default: 500.")
]


@index_app.command("build")
def index_build(
    embeddings: Annotated[Path, typer.Argument(help="Folder that `bindsearch embed` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the index.")],
    recall: RecallOption = None,
    memory: MemoryOption = None,
    latency: LatencyOption = None,
    queries: QueriesOption = None,
    held_out: HeldOutOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan of what these options build, and stop.")
    ] = False,
    backend: Annotated[
        str | None, typer.Option(help="faiss-flat (exact, the default), flat, bytes, rabitq, ivf-rabitq, ...")
    ] = None,
    row_dtype: Annotated[str | None, typer.Option("--row-dtype", help="float32 or float16.")] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="Recipe file, as indexes/visual-cache.json.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an index that is already there.")] = False,
    centre: Annotated[
        bool,
        typer.Option("--centre", help="Take each modality's mean from its rows and its queries (the modality gap)."),
    ] = False,
    centre_with: Annotated[
        list[Path] | None,
        typer.Option("--centre-with", help="Further embeddings that the means are over, as of texts to ask with."),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Build an index over embeddings: `bindsearch index EMBEDDINGS -o INDEX`.

    With a budget (--recall, --memory, --latency) or --queries, candidates are forecast, the best is built, and its
    settings are tuned on held-out queries; a budget that cannot be met exits 6 and names the nearest one that can.
    Other options go before what a --recipe says.
    """
    from bindsearch.index.build import build_index
    from bindsearch.index.heldout import COUNT
    from bindsearch.index.plan import Wish, build_planned, plan_for
    from bindsearch.index.rates import kept_note
    from bindsearch.index.recipe import Recipe

    budget, choices = _choices((recall, memory, latency), bool(queries), recipe, backend, row_dtype)
    recipes = tuple(each if isinstance(each, Recipe) else Recipe(each) for each in choices)
    if budget is None and held_out is not None:
        raise InputError(
            f"--held-out {held_out}: nothing is tuned without a budget. Say one, as --recall 0.95, or leave it away."
        )
    if dry_run or budget is not None:
        plan = plan_for(embeddings, budget, recipes)
        if dry_run and as_json:
            print_json(plan.to_json())
        elif dry_run or not quiet:
            (typer.echo if dry_run else say)(plan.to_text())
            note = "" if quiet else kept_note()
            if note:
                say(note)
    if dry_run:
        return
    beside, progress = tuple(centre_with or ()), show_progress(quiet or as_json)
    if budget is None:
        folder = build_index(embeddings, output, choices[0], force, centre, beside, progress=progress)
    else:
        wish = Wish(tuple(queries or ()), held_out or COUNT, recipes, force, centre, beside)
        folder = build_planned(embeddings, output, budget, wish, progress)
        if not quiet:
            say(tuned_text(folder.manifest))
    if as_json:
        print_json(folder.info())
    elif not quiet:
        say(
            f"{output}: {folder.count} items in {folder.manifest.space_id}. "
            f"Next: bindsearch query {output} --text '...'"
        )


def _choices(
    asked: tuple[float | None, str | None, str | None],
    tuned: bool,
    recipe: Path | None,
    backend: str | None,
    row_dtype: str | None,
) -> tuple[Budget | None, list[str | Recipe]]:
    """Decide what is built: one of several, by a plan for a budget; or, the budget None, the one that is named.

    Args:
        asked: --recall, --memory, --latency.
        tuned: whether there are queries to tune on.
        recipe: --recipe.
        backend: --backend, before the recipe's.
        row_dtype: --row-dtype, before the recipe's.
    """
    from bindsearch.index.budget import Budget
    from bindsearch.index.plan import candidates, read_recipe
    from bindsearch.index.recipe import Recipe

    recall, memory, latency = asked
    if recipe is not None:
        found, named = read_recipe(recipe)
        own = Budget.parse(named.recall if recall is None else recall, memory, latency)
        budget = Budget(own.recall, own.memory_bytes or named.memory_bytes, own.latency_ms or named.latency_ms)
        return budget, [found.overridden(backend, row_dtype)]
    if tuned or any(each is not None for each in asked):
        return Budget.parse(0.95 if recall is None else recall, memory, latency), [*candidates(row_dtype, backend)]
    backend = backend or "faiss-flat"
    plain = row_dtype is None and backend in ("flat", "faiss-flat")
    return None, [backend if plain else Recipe(backend, row_dtype or "float16")]


@index_app.command("tune")
def index_tune(
    index: Annotated[Path, typer.Argument(help="Folder of the index.")],
    recall: Annotated[
        float | None,
        typer.Option("--recall", help="Share of the ten exact answers to find; default: as last asked, at first 0.95."),
    ] = None,
    memory: MemoryOption = None,
    latency: LatencyOption = None,
    queries: QueriesOption = None,
    held_out: HeldOutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Choose the search settings of an index anew, for other queries or another recall; nothing is rebuilt."""
    from bindsearch.index.budget import Budget
    from bindsearch.index.folder import IndexFolder
    from bindsearch.index.heldout import COUNT
    from bindsearch.index.plan import retune

    folder = IndexFolder.open(index)
    if recall is None:
        recall = (folder.manifest.tuned or {}).get("asked", {}).get("recall", Budget.recall)
    tuned = retune(folder, Budget.parse(recall, memory, latency), tuple(queries or ()), held_out or COUNT)
    if as_json:
        print_json(tuned)
    else:
        say(tuned_text(folder.manifest))


@index_app.command("info")
def index_info(
    index: Annotated[Path, typer.Argument(help="Folder of the index.")], as_json: JsonOption = False
) -> None:
    """Say what an index holds, what it was made with, and what was measured of it."""
    from bindsearch.index.folder import IndexFolder
    from bindsearch.index.tuned import summary

    folder = IndexFolder.open(index)
    facts = folder.info()
    if as_json:
        print_facts(facts, as_json)
        return
    tuned = facts.pop("tuned")
    print_facts({name: value for name, value in facts.items() if value is not None or name != "recipe"}, as_json)
    if tuned:
        typer.echo("")
        typer.echo(tuned_text(folder.manifest))
        for modality, found in summary(tuned).items():
            typer.echo(f"  {modality}: tuned on {found['queries']} queries of {found['source']}")


@index_app.command("verify")
def index_verify(
    index: Annotated[Path, typer.Argument(help="Folder of the index.")], as_json: JsonOption = False
) -> None:
    """Read every byte of an index: checksums, row counts, a sample searched exactly."""
    from bindsearch.index.folder import IndexFolder

    print_facts(IndexFolder.open(index).verify(), as_json)


@index_app.command("add")
def index_add(
    index: Annotated[Path, typer.Argument(help="Folder of the index.")],
    embeddings: Annotated[Path, typer.Argument(help="Folder that `bindsearch embed` wrote.")],
) -> None:
    """Add items from embeddings of the same space; those that differ are replaced, equal ones passed over."""
    from bindsearch.search import open_index

    found = open_index(index)
    done = found.add(embeddings)
    say(f"{index}: {done}; {len(found)} items.")
    _say_to_tune(found)


@index_app.command("remove")
def index_remove(
    index: Annotated[Path, typer.Argument(help="Folder of the index.")],
    keys: Annotated[list[str], typer.Argument(help="Item keys.")],
) -> None:
    """Remove items by key; their rows stay until compaction and are never returned."""
    from bindsearch.search import open_index

    found = open_index(index)
    removed = found.remove(keys)
    say(f"{index}: {removed} removed, {len(found)} left.")
    _say_to_tune(found)


@index_app.command("compact")
def index_compact(index: Annotated[Path, typer.Argument(help="Folder of the index.")]) -> None:
    """Write the segments anew as one, without the rows that were removed."""
    from bindsearch.search import open_index

    found = open_index(index)
    found.compact()
    say(f"{index}: {len(found)} items in one segment.")
    _say_to_tune(found)


def _say_to_tune(found: SearchIndex) -> None:
    """Say, where it is so, that what was measured of an index is true no longer, and what to type."""
    from bindsearch.index.upkeep import tuning_advice

    for line in tuning_advice(found.manifest, str(found.path)):
        say(line)


@index_app.command("background")
def index_background(
    index: Annotated[Path, typer.Argument(help="Folder of the index.")],
    beside: Annotated[
        list[Path] | None,
        typer.Option("--with", help="Further embeddings, of modalities of which the index holds none or few."),
    ] = None,
) -> None:
    """Keep samples of each modality beside an index, which `query --calibrate` places scores in."""
    from bindsearch.search import open_index

    kept = open_index(index).save_background(tuple(beside or ()))
    sizes = ", ".join(f"{rows.shape[0]} of {kept.counts[name]:,} {name}" for name, rows in kept.rows.items())
    say(f"{index}: background of {sizes}.")


def tuned_text(manifest: Manifest) -> str:
    """Write what was measured as a table: one line a query modality; of what holds no longer, the settings in use."""
    from bindsearch.index.budget import format_bytes
    from bindsearch.index.sizes import stored_read_bytes
    from bindsearch.index.tuned import holds, summary

    tuned = manifest.tuned or {}
    overlap, reading = f"overlap_at_{tuned.get('k', 10)}", format_bytes(stored_read_bytes(manifest))
    lines = [f"{manifest.backend} {manifest.row_dtype}: searches keep reading {reading}"]
    if not holds(tuned):
        used = " ".join(f"{name} {value}" for name, value in tuned["settings"].items())
        return f"{lines[0]}\n  nothing is measured of these items; settings in use: {used or 'those of the backend'}"
    lines.append(f"  {'queries':<10}{overlap:>14}{'at least':>10}{'alone':>10}{'a second':>10}  settings")
    for modality, found in summary(tuned).items():
        settings = " ".join(f"{name} {value}" for name, value in found["settings"].items()) or "exact"
        lines.append(
            f"  {modality:<10}{found[overlap]:>14.4f}{found['overlap_low']:>10.4f}{found['ms']:>8.2f}ms"
            f"{found['qps']:>10.0f}  {settings}"
        )
    return "\n".join(lines)


def show_progress(quiet: bool) -> Progress:
    """Give what shows a bar a stage on stderr; nothing where quiet, or where stderr is no terminal."""
    from bindsearch.index.base import no_progress

    if quiet:
        return no_progress
    from tqdm import tqdm

    bars: dict[str, tqdm[None]] = {}

    def show(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            bars[stage] = tqdm(total=total, desc=stage, unit_scale=True, leave=False, disable=None)
        bars[stage].update(done - bars[stage].n)
        if done >= total:
            bars.pop(stage).close()

    return show
