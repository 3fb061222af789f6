"""`bindsearch world`: procedural worlds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bindsearch.cli.disk import file_to_write
from bindsearch.cli.options import QuietOption, make_group, say, split_list
from bindsearch.errors import InputError

world_app = make_group("Procedural worlds: scenes rendered into every modality, paired.")


@world_app.command("write")
def world_write(
    n: Annotated[int, typer.Argument(min=1, help="How many scenes.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; a second run goes on.")],
    modalities: Annotated[
        str | None, typer.Option(help="image,video,text,audio,depth,thermal,imu,points; default: all.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation, test, demo or compositional.")] = "demo",
    start: Annotated[int, typer.Option(min=0, help="Number of the first scene within the split.")] = 0,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the first scene, in place of both.")] = None,
    size_px: Annotated[int, typer.Option("--size", min=16, help="Side of pictures and frames, in pixels.")] = 256,
    kind: Annotated[str, typer.Option(help="full, subject (no setting), setting (no subject) or mixed.")] = "full",
    language: Annotated[str, typer.Option(help="Of texts: english (.txt), german (.de.txt) or both.")] = "english",
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that render; default: one a CPU.")] = None,
    quiet: QuietOption = False,
) -> None:
    """Write scenes as ordinary files (png, mp4, txt, wav, depth, thermal, imu, ply) with tables of what they hold."""
    from bindsearch.config import setting
    from bindsearch.embed import EmbedOptions
    from bindsearch.world.files import SUFFIXES
    from bindsearch.world.scene import SPLIT_SIZE, split_seeds
    from bindsearch.world.write import write_world

    if seed is not None and (start or split != "demo"):
        raise InputError("--seed names a scene by itself. Leave away --split and --start, or --seed.")
    if start + n > SPLIT_SIZE:
        what = f"scenes {start} to {start + n - 1} are asked for, a split has scenes 0 to {SPLIT_SIZE - 1}"
        raise InputError(f"{what}. Type {'fewer scenes' if start < SPLIT_SIZE else 'a smaller --start'}.")
    write_world(
        n,
        output,
        seed=seed if seed is not None else int(split_seeds(split, 1, start)[0]),
        size_px=size_px,
        kind=kind,
        modalities=split_list(modalities) if modalities is not None else tuple(SUFFIXES),
        language=language,
        workers=EmbedOptions(workers=setting("workers", workers)).worker_count(),
        progress=not quiet,
    )
    if not quiet:
        say(f"wrote {n} scenes to {output}. Next: bindsearch embed {output} -o EMBEDDINGS")


@world_app.command("view")
def world_view(
    scenes: Annotated[list[str], typer.Argument(metavar="SEED...", help="17, 0..10, test:3 or world:demo:0..5.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", callback=file_to_write, help="A sheet (.png, .jpg), or a page that plays (.html)."
        ),
    ],
    size_px: Annotated[int, typer.Option("--size", help="Side of pictures and frames, in pixels.")] = 192,
    kind: Annotated[str | None, typer.Option(help="full, subject (no setting), setting (no subject) or mixed.")] = None,
) -> None:
    """Draw scenes in all modalities, a row each."""
    from bindsearch.world.address import MODALITIES, SIZE_PX, parse
    from bindsearch.world.view import MOST, view_scenes

    asked = [parse(scene if scene.startswith("world:") else f"world:{scene}") for scene in scenes]
    kinds = {kind} if kind else {address.kind for address in asked}
    if len(kinds) > 1:
        raise InputError(f"one view shows one kind of scene, got {', '.join(sorted(kinds))}. Write a view each.")
    for written, address in zip(scenes, asked, strict=True):
        if kind and ",kind=" in written and address.kind != kind:
            raise InputError(f"{written}: asks for scenes of kind {address.kind}, --kind for {kind}. Type one of them.")
        if (address.size, address.language, address.modalities) != (SIZE_PX, "english", MODALITIES):
            raise InputError(f"{written}: a view shows all modalities and both languages, and --size is its size.")
    if (count := sum(len(address.seeds) for address in asked)) > MOST:
        raise InputError(f"a view shows 1 to {MOST} scenes, got {count}. To have more of them: bindsearch world write")
    seeds = [seed for address in asked for seed in address.seeds]
    say(f"wrote {view_scenes(seeds, output, kinds.pop(), size_px)}")
