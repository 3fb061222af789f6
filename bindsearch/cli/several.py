"""Several processes of `embed` on one machine: which device each takes, and those that one command starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bindsearch.cli.options import say
from bindsearch.errors import InputError

if TYPE_CHECKING:
    from bindsearch.embed.place import Place


def device_count(device: str) -> int:
    """Count the GPUs that a device such as "cuda" or "auto" stands for; 0 for the CPU or one that is named."""
    if device not in ("auto", "cuda"):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def own_device(device: str, place: Place) -> str:
    """Give the device of one of several processes: its own GPU, where there are some and none is named."""
    gpus = device_count(device) if place.launched or place.local_count > 1 else 0
    return f"cuda:{place.local % gpus}" if gpus else device


def process_count(asked: int | None, place: Place, device: str) -> int:
    """Settle how many processes this command is to be: what is asked for, else one a GPU.

    Raises:
        InputError: asked for more than one where a launcher has started several.
    """
    if place.launched:
        if asked is not None and asked > 1:
            raise InputError(f"--processes {asked}: this process is already one of several ({place}). Leave it out.")
        return 1
    return asked if asked is not None else max(1, device_count(device))


@contextmanager
def helpers(output: Path, count: int, options: Sequence[str]) -> Iterator[None]:
    """Start processes that join the run of this one, and end with it: interrupted, they finish their shard in hand.

    Args:
        output: folder of the store.
        count: processes in all, this one among them.
        options: what they are called with beside their place.
    """
    from bindsearch.embed.run import FINISH

    command = [sys.executable, "-m", "bindsearch", "embed", "--join", "--output", str(output), "--quiet", *options]
    started = []
    for number in range(1, count):
        launched = {"RANK": number, "WORLD_SIZE": count, "LOCAL_RANK": number, "LOCAL_WORLD_SIZE": count}
        environment = {**os.environ, **{name: str(value) for name, value in launched.items()}}
        started.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
    try:
        yield
    except BaseException:
        for process in started:
            process.send_signal(FINISH)
        raise
    finally:
        codes = [process.wait() for process in started]
    for code in codes:
        if code != 0:
            say(f"note: one of the processes that helped ended with {_word(code)}; the others did its work")


def _word(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
