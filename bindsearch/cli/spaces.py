"""`bindsearch models`: spaces and their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bindsearch.cli.options import JsonOption, QuietOption, make_group, print_facts, print_json, say
from bindsearch.errors import InputError, MissingInputError

models_app = make_group("Spaces and their weights: list, info, fetch, convert, verify, path.")

NameArgument = Annotated[str, typer.Argument(help="Name of a space, see `bindsearch models list`, or a folder.")]


@models_app.command("list")
def models_list(as_json: JsonOption = False) -> None:
    """List the spaces that are known, and which are at hand."""
    from bindsearch.models.spaces import list_spaces

    rows = list_spaces()
    if as_json:
        print_json(rows)
        return
    width = max(len(row["name"]) for row in rows)
    status = max(len(row["status"]) for row in rows if row["modalities"])  # others are whole sentences
    for row in rows:
        typer.echo(f"{row['name']:<{width}}  {row['status']:<{status}}  {', '.join(row['modalities'])}")


@models_app.command("info")
def models_info(name: NameArgument, as_json: JsonOption = False) -> None:
    """Say what a space is: towers, sizes, ids, preprocessing, licence."""
    from bindsearch.models.spaces import info

    facts = info(name)
    if not as_json and "space_id" in facts:
        facts.setdefault("logit_scales", "known when a tower is loaded")
    print_facts(facts, as_json)


@models_app.command("path")
def models_path(name: NameArgument) -> None:
    """Print the folder where a space's weights lie, or would lie."""
    from bindsearch.models.spaces import path

    typer.echo(str(path(name)))


@models_app.command("fetch")
def models_fetch(
    name: NameArgument,
    source: Annotated[
        Path | None, typer.Option("--from", help="A checkpoint that you have, instead of a download.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Another place to download the checkpoint from.")] = None,
    sha256: Annotated[str | None, typer.Option(help="The checksum that the file must have.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32 or bfloat16: what the converted towers are stored in; default: what is here, else float32."
        ),
    ] = None,
    accept_licence: Annotated[bool, typer.Option("--accept-licence", help="Yes to the licence that is shown.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Fetch released weights: show the licence, download with resume, verify, convert to one file a tower."""
    from bindsearch.models.fetch import fetch_space, licence_of, nothing_to_fetch

    if reason := nothing_to_fetch(name):
        say(f"{name}: {reason}")
        return
    if source is not None and not source.is_file():
        raise MissingInputError(f"{source}: no such file. --from takes the checkpoint as released.")
    say(licence_of(name))
    if not accept_licence and not _accepted():
        say("not fetched: the licence was not accepted.")
        raise typer.Exit(2)
    folder = fetch_space(name, source=source, url=url, sha256=sha256, dtype=dtype, progress=not quiet, say=say)
    typer.echo(str(folder))


def _accepted() -> bool:
    """Ask the person.

    Raises:
        InputError: there is nobody to ask.
    """
    try:
        return typer.confirm("Do you accept this licence?", err=True)
    except typer.Abort as error:
        if isinstance(error.__context__, EOFError):
            raise InputError("nobody answers on stdin. To accept the licence shown above: --accept-licence") from error
        raise


@models_app.command("convert")
def models_convert(
    checkpoint: Annotated[Path, typer.Argument(help="imagebind_huge.pth, as released, or a converted folder.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder; default for a checkpoint: the cache.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    quiet: QuietOption = False,
) -> None:
    """Convert a checkpoint to one safetensors file a tower; no pickle in it is executed."""
    from bindsearch.models import weights
    from bindsearch.models.spaces import path

    if output is None and checkpoint.is_dir():
        raise InputError(f"{checkpoint}: a folder needs a place for the converted one. Name it: -o FOLDER")
    folder = output or path("imagebind-huge")
    weights.convert(checkpoint, folder, dtype=dtype, progress=not quiet)
    typer.echo(str(folder))


@models_app.command("verify")
def models_verify(name: NameArgument, as_json: JsonOption = False) -> None:
    """Read every byte of a space's weights and compare sizes, checksums and tower ids."""
    from bindsearch.models.spaces import own_folder
    from bindsearch.models.weights import verify

    print_facts(verify(own_folder(name)), as_json)
