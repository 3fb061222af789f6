"""One decode worker, from inside: its task, its jobs, and its main loop."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

from bindsearch.embed.arena import Arena, Piece
from bindsearch.embed.decoding import NO_MEMORY, Failed, Outcome, cut_item, decode_items, warm_up
from bindsearch.embed.freed import keep_freed_memory
from bindsearch.errors import BindSearchError
from bindsearch.types import Item

PARENTS = (signal.SIGINT, signal.SIGTERM)
"""Signals that the parent alone acts on: it finishes its shard and then ends its workers."""
_GRACE_S = 10.0
_NEVER_S = 1e8  # of a limit without end: what a clock of the system can still count
_PIECE, _PIECE_BYTES, _PIECE_S = 32, 16 << 20, 0.2  # outcomes of a block that are sent together
OUT_OF_MEMORY = 12
"""Exit code of a worker that ran out of memory over an item."""


@dataclass(frozen=True)
class Task:
    """What workers are to do with each item.

    Attributes:
        configs: preprocessing by modality.
        cut: find spans in place of decoding.
        window_s: length of the spans.
        item_limit_s: wall time that one item may take.
    """

    configs: Mapping[str, Any]
    cut: bool = False
    window_s: float | None = None
    item_limit_s: float = 30.0

    def do(self, items: Sequence[Item]) -> Iterator[Outcome]:
        """Do it, in this process and without a time limit: an outcome an item."""
        if self.cut:
            return (cut_item(item, self.configs, self.window_s) for item in items)
        return decode_items(items, self.configs)


@dataclass
class Job:
    """Items on their way to a worker, most often one: a block is media that are made together.

    Attributes:
        number: of the first item in the stream.
        items: in order.
        tries: how many deaths of workers it has seen.
        made: its items are made together; else they are small things that only travel together.
    """

    number: int
    items: tuple[Item, ...]
    tries: int = 0
    made: bool = False

    @property
    def limits(self) -> int:
        """How many items' time it may take: things that are made together come all at once at the end."""
        return len(self.items) if self.made else 1

    def singles(self) -> list[Job]:
        """Give a job for each item."""
        return [Job(self.number + place, (item,)) for place, item in enumerate(self.items)]

    def rest(self, done: int) -> Job:
        """Give what is left of it after so many items."""
        return Job(self.number + done, self.items[done:], self.tries, self.made)


def serve(descriptor: int, memory: int | None = None) -> None:
    """Be a worker: take a task and jobs from a link, send back what comes of them, until the link closes.

    The parent has started this process with its own signals blocked: they would interrupt the imports.

    Args:
        descriptor: of the link's socket.
        memory: descriptor of what is shared with the parent, if anything is.
    """
    for ignored in PARENTS:
        signal.signal(ignored, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PARENTS)  # what waited is ignored now
    with contextlib.suppress(OSError):  # where memory runs out, the kernel takes a worker and not the run
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    keep_freed_memory()
    logging.getLogger("bindsearch").addHandler(logging.NullHandler())
    logging.getLogger("bindsearch").propagate = False
    link: Any = connection.Connection(descriptor)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        _serve(link, None if memory is None else Arena(memory))


def _serve(link: Any, arena: Arena | None) -> None:
    task: Task | None = None
    warm: set[str] = set()
    link.send(("ready", None))
    while True:
        message = link.recv()
        if isinstance(message, Task):
            task, warm = message, set()
            continue
        left = 0
        try:
            if task is None:
                raise BindSearchError("a job came before its task")
            if message.items[0].modality not in warm and not task.cut:
                warm_up(message.items[0], task.configs)
                warm.add(message.items[0].modality)
            link.send(("began", message.number))
            limit_s = task.item_limit_s * len(message.items)
            signal.setitimer(
                signal.ITIMER_REAL, min(limit_s + _GRACE_S, _NEVER_S)
            )  # should the parent die, so does this
            outcomes = task.do(message.items)
            left = len(message.items)
            while left:
                piece = _next_piece(outcomes)
                if not message.tries and any(_lacked_memory(outcome) for outcome in piece):
                    os._exit(OUT_OF_MEMORY)  # others may have taken it: the item is tried once more, in a fresh process
                left -= len(piece)
                if not left:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                link.send(("done", Piece(piece) if arena is None else arena.pack(piece)))
        except Exception as error:  # no fault of an item: said in the parent
            if isinstance(error, MemoryError) and left:
                os._exit(OUT_OF_MEMORY)
            link.send(("fatal", f"{type(error).__name__}: {error}"))
            return


def _next_piece(outcomes: Iterator[Outcome]) -> list[Outcome]:
    """Take what is to be sent together: until it is many, or large, or took long."""
    piece: list[Outcome] = []
    nbytes, until_s = 0, time.monotonic() + _PIECE_S
    for outcome in outcomes:
        piece.append(outcome)
        nbytes += outcome.nbytes
        if len(piece) == _PIECE or nbytes > _PIECE_BYTES or time.monotonic() > until_s:
            break
    return piece


def _lacked_memory(outcome: Outcome) -> bool:
    return isinstance(outcome, Failed) and outcome.reason == NO_MEMORY
