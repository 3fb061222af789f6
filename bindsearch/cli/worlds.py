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
    seed: Annotated[int, typer.Option(help="First seed; scene i has seed + i.")] = 1_000_000,
    size_px: Annotated[int, typer.Option(min=16, help="Side of the pictures.")] = 256,
) -> None:
    """Write scenes as ordinary files (png, wav, txt) with a Parquet of their attributes."""
    from bindsearch.world.write import write_world

    write_world(n, output, seed=seed, size_px=size_px)
    say(f"wrote {n} scenes to {output}. Next: bindsearch embed {output} -o {output}-embeddings")
