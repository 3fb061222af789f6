"""What every command shares: the common options, and the two streams (stdout is data, stderr is talk)."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from bindsearch.errors import InputError
from bindsearch.registry import MODALITIES

if TYPE_CHECKING:
    from bindsearch.models.spaces import Space

SpaceOption = Annotated[
    str | None,
    typer.Option("--space", help="bindsearch-mini, imagebind-huge, open_clip:ARCH/TAG, or a folder with space.json."),
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
DtypeOption = Annotated[
    str | None,
    typer.Option("--dtype", help="auto (float32), float32, bfloat16, float64, or fast: what the machine is quick at."),
]
PresetOption = Annotated[
    str | None, typer.Option("--preset", help="Preprocessing: default, reference, or a named one.")
]
SpeedOption = Annotated[
    str | None,
    typer.Option("--speed", help="fast, plain, single, or switches: fast,int8=on,last_block=off (docs/speed.md)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, no notes.")]

_SENTENCE = 300
_SAID_FOR = {"upsert": "add", "update": "add", "insert": "add", "delete": "remove", "rebuild": "reindex"}
"""What others call subcommands of `index`."""


class WholeHelp(TyperGroup):
    """A group whose help shows its commands' first sentences whole, over several lines where they need them."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands; the base class cuts what does not fit on one line."""
        commands = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [(name, each.get_short_help_str(_SENTENCE)) for name, each in commands if each and not each.hidden]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


class BuildFirst(WholeHelp):
    """`bindsearch index EMBEDDINGS` means `bindsearch index build EMBEDDINGS`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `build` in front when the first word is no subcommand.

        Raises:
            InputError: it is nothing on the disk either, and is a word much like a subcommand.
        """
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            meant = _SAID_FOR.get(args[0]) or next(
                iter(get_close_matches(args[0], self.commands, n=1, cutoff=0.7)), None
            )
            if meant and args[0].isalpha() and not Path(args[0]).exists():
                raise InputError(f"unknown command {args[0]!r}; did you mean {meant}? Type: {ctx.command_path} {meant}")
            args = ["build", *args]
        return super().parse_args(ctx, args)


def make_group(help_text: str, cls: type[TyperGroup] = WholeHelp) -> typer.Typer:
    """Make a group of subcommands in the house style."""
    return typer.Typer(help=help_text, no_args_is_help=True, cls=cls, rich_markup_mode=None)


def split_list(text: str) -> tuple[str, ...]:
    """Split an option that lists names; blanks around them are none of theirs."""
    return tuple(part.strip() for part in text.split(","))


def say(text: str) -> None:
    """Talk to the person, on stderr."""
    typer.echo(text, err=True)


def ready_to_embed() -> None:
    """Set this process up for a long run beside decode workers, before torch is loaded.

    Threads that wait leave the core to the workers (ADR 139), and freed memory stays with the process (ADR 144).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from bindsearch.embed.freed import keep_freed_memory

    keep_freed_memory()


def print_json(value: Any) -> None:
    """Print data for a machine, on stdout."""
    from bindsearch.config import readable_json

    typer.echo(readable_json(value, indent=2))


def print_facts(facts: dict[str, Any], as_json: bool) -> None:
    """Print a flat record: JSON, or one aligned line a fact."""
    if as_json:
        print_json(facts)
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        typer.echo(f"{name:<{width}}  {text}")


def open_space(
    name: str | None,
    device: str | None,
    dtype: str | None,
    preset: str | Mapping[str, str] | None,
    switches: str | None = None,
    recorded: str | None = None,
) -> Space:
    """Load a space from flags, falling back to what an index or a store has recorded, then to the settings.

    An index's preset ids are taken as they are.

    `switches` is "single" for a process that encodes one thing: laying weights out for many would cost more than it.
    A setting `speed` other than the default wins over that; a flag given by the person wins over both.

    Raises:
        UnknownNameError, WeightsError: as `load_space`; of a recorded folder that is gone it says how to name another.
    """
    from bindsearch.config import DEFAULTS, setting
    from bindsearch.errors import UnknownNameError
    from bindsearch.models.spaces import load_space

    chosen = setting("speed", None if switches == "single" else switches)
    if switches == "single" and chosen == DEFAULTS["speed"]:
        chosen = switches
    try:
        return load_space(
            setting("space", name if recorded is None else name or recorded),
            device=setting("device", device),
            dtype=setting("dtype", dtype),
            preset=setting("preset", preset),
            switches=chosen,
        )
    except UnknownNameError as error:
        if name or error.kind != "space" or "/" not in (recorded or ""):
            raise
        hint = f"The folder {recorded} is gone; where it has moved: --space FOLDER."
        raise UnknownNameError("space", error.name, error.known, hint) from error


WEIGHED = "; repeatable; @0.3 at the end is a weight."


def medium_options(says: str) -> dict[str, str]:
    """Give the help of one option a modality: what it takes, then `says`."""
    return {name: f"{'Words' if name == 'text' else f'{name} file'}{says}" for name in MODALITIES.built_in}


def with_options(function: Callable[..., None], helps: Mapping[str, str]) -> Callable[..., None]:
    """Give a command repeatable options, by parameter name with their help, in place of **things."""
    signature = inspect.signature(function, eval_str=True)
    plain = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    made = []
    for name, text in helps.items():
        option = typer.Option(f"--{name}".replace("_", "-"), help=text, show_default=False)
        kind = inspect.Parameter.KEYWORD_ONLY
        made.append(inspect.Parameter(name, kind, default=None, annotation=Annotated[list[str], option]))
    function.__signature__ = signature.replace(parameters=[*plain, *made])  # type: ignore[attr-defined]
    function.__annotations__ = {each.name: each.annotation for each in (*plain, *made)}
    return function
