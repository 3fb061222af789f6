"""Shards are written by a thread of their own while the next one is encoded: one at a time, in order, none lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

Job = Callable[[], Any]


class Writer:
    """Does one job at a time beside the caller, who waits to hand over a second. Use as a context manager.

    A job that fails is the last one: its error is raised in the caller's thread, at the next `put` or at the end.
    Leaving the context waits for what was put, also where the caller's own work failed: a shard that is full is
    committed, whatever happens after it.

    Attributes:
        busy_s: wall time spent on jobs so far.
    """

    def __init__(self) -> None:
        self.busy_s = 0.0
        self._state = threading.Condition()  # guards the three below
        self._job: Job | None = None
        self._closing = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Writer:
        """Start the thread."""
        self._thread = threading.Thread(target=self._main, name="bindsearch-write", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish what was put; raise what failed, unless the caller's own error is on its way."""
        with self._state:
            self._closing = True
            self._state.notify_all()
        if self._thread is not None:
            self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def put(self, job: Job) -> None:
        """Hand over a job; waits while another one is in hand.

        Raises:
            BaseException: whatever an earlier job raised; this one is not done.
        """
        self.wait()
        with self._state:
            self._job = job
            self._state.notify_all()

    def wait(self) -> None:
        """Wait until everything put is done.

        Raises:
            BaseException: whatever a job raised.
        """
        with self._state:
            self._state.wait_for(lambda: self._job is None or self._error is not None)
            if self._error is not None:
                raise self._error

    def _main(self) -> None:
        while True:
            with self._state:
                self._state.wait_for(lambda: self._job is not None or self._closing)
                job = self._job
            if job is None:
                return
            started = time.perf_counter()
            try:
                job()
            except BaseException as error:  # raised again in the caller's thread
                with self._state:
                    self._error = error
            with self._state:
                self.busy_s += time.perf_counter() - started
                self._job = None
                self._state.notify_all()
                if self._error is not None:
                    return
