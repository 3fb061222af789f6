"""One decode worker, from inside: its task, its jobs, and its main loop."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

from bindsearch.embed.decoding import Outcome, cut_item, decode_item, warm_up
from bindsearch.errors import BindSearchError
from bindsearch.types import Item

_GRACE_S = 10.0


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

    def do(self, item: Item) -> Outcome:
        """Do it, in this process and without a time limit."""
        return cut_item(item, self.configs, self.window_s) if self.cut else decode_item(item, self.configs)


@dataclass
class Job:
    """One item on its way to a worker; `tries` counts the deaths it has seen."""

    number: int
    item: Item
    tries: int = 0


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
            if message.item.modality not in warm and not task.cut:
                warm_up(message.item, task.configs)
                warm.add(message.item.modality)
            link.send(("began", message.number))
            signal.setitimer(signal.ITIMER_REAL, task.item_limit_s + _GRACE_S)  # should the parent die, so does this
            outcome = task.do(message.item)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Exception as error:  # no fault of an item: said in the parent
            link.send(("fatal", f"{type(error).__name__}: {error}"))
            return
        link.send(("done", outcome))
