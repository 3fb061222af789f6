"""Embeddings in and out: export, import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bindsearch.cli.options import say

FormatOption = Annotated[str, typer.Option("--format", help="npy, parquet, hdf5 or clip-retrieval.")]


def export_embeddings(
    embeddings: Annotated[Path, typer.Argument(help="Folder that `bindsearch embed` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File or folder to write.")],
    layout: FormatOption = "parquet",
    modality: Annotated[str | None, typer.Option(help="Write the rows of this modality alone.")] = None,
) -> None:
    """Write embeddings for another program: npy, Parquet, HDF5, or the clip-retrieval layout."""
    from bindsearch.exchange import export_store

    say(f"wrote {export_store(embeddings, output, layout, modality=modality)} rows to {output}")


def import_embeddings(
    source: Annotated[Path, typer.Argument(help="File or folder in one of the layouts.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the embeddings.")],
    layout: FormatOption = "parquet",
    space_id: Annotated[
        str | None, typer.Option(help="Space the vectors were made in, where the file doesn't say.")
    ] = None,
    modality: Annotated[str | None, typer.Option(help="Modality of the rows, where the file doesn't say.")] = None,
) -> None:
    """Read embeddings that another program wrote."""
    from bindsearch.exchange import import_store
    from bindsearch.store import LEDGER, open_store

    read = import_store(source, output, layout, space_id=space_id, modality=modality)
    bad = open_store(output).manifest.bad
    left = f"; {bad} {'has' if bad == 1 else 'have'} no direction, see {output / LEDGER}" if bad else ""
    say(f"read {read - bad} {'row' if read - bad == 1 else 'rows'} into {output}{left}")
