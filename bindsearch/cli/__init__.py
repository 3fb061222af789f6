"""The command line: one thin function per command. The only package that imports typer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from bindsearch.cli import (
    asking,
    caching,
    classify,
    evaluate,
    exchange,
    indexing,
    machine,
    reshape,
    spaces,
    training,
    walk,
    worlds,
)
from bindsearch.cli.options import say
from bindsearch.errors import BindSearchError

ORDER = (
    "embed",
    "index",
    "query",
    "cache",
    "ask",
    "classify",
    "probe",
    "evaluate",
    "gap",
    "inspect",
    "models",
    "export",
    "import",
    "train",
    "train-llm",
    "world",
    "doctor",
    "config",
)


class InOrder(TyperGroup):
    """Lists the commands in the order of the walk."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Give the names, those of ORDER first."""
        names = super().list_commands(ctx)
        return [name for name in ORDER if name in names] + [name for name in names if name not in ORDER]


app = typer.Typer(
    cls=InOrder,
    help="One joint space for every modality: embed folders of mixed media, index them, query by anything.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (reshape.merge, reshape.split, reshape.reindex):
    indexing.index_app.command()(command)
app.command("embed")(walk.embed)
app.add_typer(indexing.index_app, name="index")
app.command("query")(walk.query)
app.add_typer(caching.cache_app, name="cache")
app.command("ask")(asking.ask)
app.add_typer(classify.classify_app, name="classify")
app.command("probe")(classify.probe)
app.command("evaluate")(evaluate.evaluate)
app.command("gap")(evaluate.gap)
app.command("inspect")(machine.inspect_file)
app.add_typer(spaces.models_app, name="models")
app.command("export")(exchange.export_embeddings)
app.command("import")(exchange.import_embeddings)
app.command("train")(training.train)
app.command("train-llm")(asking.train_llm)
app.add_typer(worlds.world_app, name="world")
app.command("doctor")(machine.doctor)
app.add_typer(machine.config_app, name="config")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # noqa: ARG001
) -> None:
    if version:
        from bindsearch import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line and exit with the code of errors.py."""
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Run the command line on arguments.

    Returns:
        The exit code: 0 done, 1 unexpected, 2 usage, 3 input missing, 4 too many bad, 5 mismatch, 6 budget, 7 weights,
        130 interrupted.
    """
    debug = "--debug" in args
    try:
        code = app(args=args, standalone_mode=False, prog_name="bindsearch")
        return code if isinstance(code, int) else 0
    except BindSearchError as error:
        if debug:
            raise
        say(f"error: {error}")
        return error.exit_code
    except typer.Abort:
        say("stopped at the question; nothing was done.")
        return 130
    except KeyboardInterrupt:
        say("interrupted; what was committed stays. Run the same command again to go on.")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        show: Callable[[], None] | None = getattr(error, "show", None)
        if callable(show) and hasattr(error, "exit_code"):
            show()
            return int(error.exit_code)
        if debug:
            raise
        say(f"unexpected error: {type(error).__name__}: {error}. Run it again with --debug for the traceback.")
        return 1
