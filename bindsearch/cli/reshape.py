"""The index commands that make indexes of indexes: merge, split, reindex."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bindsearch.cli.indexing import index_app, show_progress
from bindsearch.cli.options import QuietOption, say
from bindsearch.errors import InputError


def merge(
    indexes: Annotated[list[Path], typer.Argument(help="Folders of at least two indexes of one space.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new index.")],
    prefer: Annotated[
        str | None,
        typer.Option("--prefer", help="Which wins where two differ on an item: first or last; else refused."),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Make one index of several; they stay as they are, and the new one is built as the first of them."""
    from bindsearch.index.merge import merge_indexes

    merged = merge_indexes(indexes, output, prefer, progress=show_progress(quiet))
    if not quiet:
        say(f"{output}: {merged.folder.count} items of {len(indexes)} indexes, {merged.shared} of them in several.")


def split(
    index: Annotated[Path, typer.Argument(help="Folder of the index; it stays as it is.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder; each part is an index OUTPUT/NAME.")],
    by_modality: Annotated[bool, typer.Option("--by-modality", help="One part a modality.")] = False,
    parts: Annotated[int | None, typer.Option("--parts", help="N parts; an item's key decides its part.")] = None,
    where: Annotated[
        str | None, typer.Option("--where", help="Two parts: `passes`, what passes this filter, and the `rest`.")
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Make several indexes of one: by modality, into N parts, or by a filter."""
    from bindsearch.index.split import parts_by_count, parts_by_masks, parts_by_modality, split_index
    from bindsearch.search import open_index

    if by_modality + (parts is not None) + (where is not None) != 1:
        raise InputError("split: give one of --by-modality, --parts N and --where FILTER.")
    found = open_index(index)
    snapshot = found.folder.snapshot
    if by_modality:
        chosen = parts_by_modality(snapshot)
    elif parts is not None:
        chosen = parts_by_count(snapshot, parts)
    else:
        selection = found.select(where)
        chosen = parts_by_masks(snapshot, None if selection is None else selection.masks)
    made = split_index(snapshot, output, chosen, show_progress(quiet))
    for name, part in made.items() if not quiet else ():
        say(f"{output / name}: {part.count} items.")


def reindex(
    index: Annotated[Path, typer.Argument(help="Folder of the index.")],
    embeddings: Annotated[Path, typer.Argument(help="Folder of its items' embeddings in the new space.")],
    centre_with: Annotated[
        list[Path] | None,
        typer.Option("--centre-with", help="Further embeddings that the means of a centred index are over."),
    ] = None,
    drop_missing: Annotated[
        bool, typer.Option("--drop-missing", help="Go on where the embeddings lack items of the index.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Build an index again when its space has changed: the same recipe and options over new embeddings.

    It answers as before until the last step. Settings that were tuned are dropped (`bindsearch index tune`), so are a
    cache's record and a background beside it.
    """
    from bindsearch.index import build
    from bindsearch.index.folder import IndexFolder

    before = IndexFolder.open(index).manifest
    folder = build.reindex(index, embeddings, tuple(centre_with or ()), drop_missing, progress=show_progress(quiet))
    if quiet:
        return
    now = folder.manifest
    say(f"{index}: {now.count} items in {now.space_id}; before, {before.count} in {before.space_id}.")
    if before.tuned:
        say(f"Its search settings were tuned in the old space. Choose them anew: bindsearch index tune {index} ...")


for command in (merge, split, reindex):
    index_app.command()(command)
