"""`bindsearch world`: procedural worlds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bindsearch.cli.options import make_group, say

world_app = make_group("Procedural worlds: scenes rendered into paired image, text and audio files.")


@world_app.command("write")
def world_write(
    n: Annotated[int, typer.Argument(min=1, help="How many scenes.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    split: Annotated[str, typer.Option(help="train, validation, test or demo; splits share no scene.")] = "demo",
    start: Annotated[int, typer.Option(min=0, help="Number of the first scene within the split.")] = 0,
    size_px: Annotated[int, typer.Option("--size", min=16, help="Side of the pictures, in pixels.")] = 256,
    kind: Annotated[str, typer.Option(help="full, subject (no setting), setting (no subject) or mixed.")] = "full",
) -> None:
    """Write scenes as ordinary files (png, wav, txt) with a Parquet of their attributes."""
    from bindsearch.world.scene import split_seeds
    from bindsearch.world.write import write_world

    seed = int(split_seeds(split, 1, start)[0])
    write_world(n, output, seed=seed, size_px=size_px, kind=kind)
    say(f"wrote {n} scenes to {output}. Next: bindsearch embed {output} -o EMBEDDINGS")
