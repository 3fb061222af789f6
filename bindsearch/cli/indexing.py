"""The index commands: build by a budget or a recipe, look at one, change one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bindsearch.cli.options import BuildFirst, JsonOption, make_group, print_facts, print_json, say

index_app = make_group("Build an index over embeddings, and look at one.", BuildFirst)


@index_app.command("build")
def index_build(
    embeddings: Annotated[Path, typer.Argument(help="Folder that `bindsearch embed` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the index.")],
    backend: Annotated[str, typer.Option(help="faiss-flat (exact) or flat (exact, numpy).")] = "faiss-flat",
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
) -> None:
    """Build an index over embeddings: `bindsearch index EMBEDDINGS -o INDEX`."""
    from bindsearch.index.build import build_index

    folder = build_index(embeddings, output, backend, force, centre, tuple(centre_with or ()))
    if as_json:
        print_json(folder.info())
    else:
        say(
            f"{output}: {folder.count} items in {folder.manifest.space_id}. "
            f"Next: bindsearch query {output} --text '...'"
        )


@index_app.command("info")
def index_info(
    index: Annotated[Path, typer.Argument(help="Folder of the index.")], as_json: JsonOption = False
) -> None:
    """Say what an index holds and what it was made with."""
    from bindsearch.index.folder import IndexFolder

    print_facts(IndexFolder.open(index).info(), as_json)


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


@index_app.command("compact")
def index_compact(index: Annotated[Path, typer.Argument(help="Folder of the index.")]) -> None:
    """Write the segments anew as one, without the rows that were removed."""
    from bindsearch.search import open_index

    found = open_index(index)
    found.compact()
    say(f"{index}: {len(found)} items in one segment.")
