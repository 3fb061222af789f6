"""Only what a command needs is imported; the end of the process loses nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bindsearch.cli import COMMANDS, build_app


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_a_command_imports_its_own_module_alone():
    done = python(
        "import sys\nfrom bindsearch.cli import run\ncode = run(['query', '--help'])\n"
        "mine = sorted(name for name in sys.modules if name.startswith('bindsearch.cli.'))\n"
        "print(code, mine, file=sys.stderr)"
    )
    assert done.stderr.strip() == "0 ['bindsearch.cli.disk', 'bindsearch.cli.options', 'bindsearch.cli.walk']"


def test_every_command_is_there_alone_and_among_all():
    import typer

    whole = typer.main.get_command(build_app())
    assert whole.list_commands(None) == list(COMMANDS)
    for name in COMMANDS:
        alone = typer.main.get_command(build_app(name))
        assert alone.list_commands(None) == [name]
        params = [one.name for one in whole.commands[name].params]
        assert [one.name for one in alone.commands[name].params] == params


@pytest.mark.parametrize("code", [0, 3])
def test_the_end_runs_what_was_registered_and_keeps_the_code_and_the_output(code):
    done = python(
        "import atexit, sys, bindsearch.cli as cli\n"
        "atexit.register(lambda: print('registered', flush=False))\n"
        f"cli.run = lambda args: print('x' * 100_000) or {code}\n"
        "cli.main()"
    )
    assert done.returncode == code
    assert done.stdout == "x" * 100_000 + "\nregistered\n"
    assert done.stderr == ""


def test_a_living_thread_is_waited_for():
    done = python(
        "import threading, time, bindsearch.cli as cli\n"
        "def work():\n    time.sleep(0.3)\n    print('done')\n"
        "cli.run = lambda args: threading.Thread(target=work).start() or 0\n"
        "cli.main()"
    )
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m bindsearch --help | head -c 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("U", "")
