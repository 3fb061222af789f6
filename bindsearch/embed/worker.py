"""One decode worker, from inside: its task, its jobs, and its main loop."""

from __future__ import annotations

import contextlib
import itertools
import logging
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

from bindsearch.embed.decoding import Outcome, cut_item, decode_items, warm_up
from bindsearch.errors import BindSearchError
from bindsearch.types import Item

_GRACE_S = 10.0
_PIECE = 32  # outcomes of a block that are sent together


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
    """

    number: int
    items: tuple[Item, ...]
    tries: int = 0

    def rest(self, done: int) -> Job:
        """Give what is left of it after so many items."""
        return Job(self.number + done, self.items[done:], self.tries)


def serve(descriptor: int) -> None:
    """Be a worker: take a task and jobs from a link, send back what comes of them, until the link closes.

    Args:
        descriptor: of the link's socket.
    """
    for ignored in (signal.SIGINT, signal.SIGTERM):  # the parent finishes its shard and then ends its workers
        signal.signal(ignored, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # where memory runs out, the kernel takes a worker and not the run
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    logging.getLogger("bindsearch").addHandler(logging.NullHandler())
    logging.getLogger("bindsearch").propagate = False
    link: Any = connection.Connection(descriptor)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        _serve(link)


def _serve(link: Any) -> None:
    task: Task | None = None
    warm: set[str] = set()
    link.send(("ready", None))
    while True:
        message = link.recv()
        if isinstance(message, Task):
            task, warm = message, set()
            continue
        try:
            if task is None:
                raise BindSearchError("a job came before its task")
            if message.items[0].modality not in warm and not task.cut:
                warm_up(message.items[0], task.configs)
                warm.add(message.items[0].modality)
            link.send(("began", message.number))
            limit_s = task.item_limit_s * len(message.items)
            signal.setitimer(signal.ITIMER_REAL, limit_s + _GRACE_S)  # should the parent die, so does this
            outcomes = task.do(message.items)
            left = len(message.items)
            while left:
                piece = list(itertools.islice(outcomes, _PIECE))
                left -= len(piece)
                if not left:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                link.send(("done", piece))
        except Exception as error:  # no fault of an item: said in the parent
            link.send(("fatal", f"{type(error).__name__}: {error}"))
            return
