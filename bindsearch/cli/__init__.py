"""The command line: one thin function per command. The only package that imports typer."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Annotated, Any

import typer

from bindsearch.cli.disk import said_plainly
from bindsearch.cli.options import WholeHelp, say
from bindsearch.errors import BindSearchError

COMMANDS = {
    "embed": "walk.embed",
    "index": "reshape.index_app",
    "query": "walk.query",
    "cache": "caching.cache_app",
    "ask": "asking.ask",
    "classify": "classify.classify_app",
    "probe": "classify.probe",
    "evaluate": "evaluate.evaluate",
    "gap": "evaluate.gap",
    "inspect": "machine.inspect_file",
    "models": "spaces.models_app",
    "export": "exchange.export_embeddings",
    "import": "exchange.import_embeddings",
    "train": "training.train",
    "train-llm": "asking.train_llm",
    "world": "worlds.world_app",
    "doctor": "machine.doctor",
    "bench": "machine.bench",
    "config": "machine.config_app",
}
"""Commands in the order of the walk: name -> module of this package and the function or group in it."""

_INTERRUPTED = 130
_GO_ON = (
    ("embed",),
    ("evaluate",),
    ("train",),
    ("train-llm",),
    ("cache", "build"),
    ("models", "fetch"),
    ("world", "write"),
)
"""Commands that go on where they were stopped."""
_COLLECT_AFTER = 100_000
"""Objects made between two rounds of the garbage collector, which costs a tenth of a start at Python's 700."""


class InOrder(WholeHelp):
    """Lists the commands in the order of the walk."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Give the names in the order of COMMANDS."""
        names = super().list_commands(ctx)
        return [name for name in COMMANDS if name in names]


def build_app(only: str | None = None) -> typer.Typer:
    """Build the command line.

    Args:
        only: the one command that is going to run: what belongs to the others is not imported. None: all of them.
    """
    built = typer.Typer(
        cls=InOrder,
        help="One joint space for every modality: embed folders of mixed media, index them, query by anything.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    built.callback(invoke_without_command=True)(_root)
    for name, place in COMMANDS.items():
        if only in (None, name):
            module, _, thing = place.partition(".")
            found = getattr(importlib.import_module(f"bindsearch.cli.{module}"), thing)
            if isinstance(found, typer.Typer):
                built.add_typer(found, name=name)
            else:
                built.command(name)(found)
    return built


def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback; before COMMAND.")] = False,  # noqa: ARG001
) -> None:
    if version:
        from bindsearch import __version__

        typer.echo(__version__)
        raise typer.Exit


def __getattr__(name: str) -> Any:
    """Build the whole command line when somebody asks for `app`."""
    if name == "app":
        return build_app()
    raise AttributeError(f"module 'bindsearch.cli' has no attribute {name!r}.")


def main() -> None:
    """Run the command line and exit with the code of errors.py."""
    gc.set_threshold(_COLLECT_AFTER, *gc.get_threshold()[1:])
    code = run(sys.argv[1:])
    _leave(code)
    sys.exit(code)


def _leave(code: int) -> None:
    """End the process at once where nothing is left to be done: taking Python and torch apart costs 0.1 to 0.5 s.

    What was registered to run at the end runs. Where other threads or child processes are alive, or the output cannot
    be flushed, nothing happens, and the process ends as any other.
    """
    others = sys.modules.get("multiprocessing")
    if threading.active_count() > 1 or (others is not None and others.active_children()):
        return
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # a pipe that was closed
        return
    os._exit(code)


def _interrupted(args: list[str]) -> str:
    """Say what an interrupt has left: of commands that commit as they go, what to type to go on."""
    words = [arg for arg in args if not arg.startswith("-")]
    if any(tuple(words[: len(each)]) == each for each in _GO_ON):
        return "interrupted; what was committed stays. Run the same command again to go on."
    return "interrupted."


def run(args: list[str]) -> int:
    """Run the command line on arguments.

    Returns:
        The exit code: 0 done, 1 unexpected, 2 usage, 3 input missing, 4 too many bad, 5 mismatch, 6 budget, 7 weights,
        130 interrupted.
    """
    debug = "--debug" in args
    try:
        built = build_app(args[0] if args and args[0] in COMMANDS else None)
        code = built(args=args, standalone_mode=False, prog_name="bindsearch")
        if code == _INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except BindSearchError as error:
        if debug:
            raise
        say(f"error: {error}")
        return error.exit_code
    except typer.Abort:
        say("stopped at the question; nothing was done.")
        return _INTERRUPTED
    except KeyboardInterrupt:
        say(_interrupted(args))
        return _INTERRUPTED
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
        plain = said_plainly(error, args) if isinstance(error, OSError) else None
        if plain is not None:
            say(f"error: {plain}")
            return plain.exit_code
        say(f"unexpected error: {type(error).__name__}: {error}. For the traceback: bindsearch --debug COMMAND ...")
        return 1
