"""Decode workers: processes that may hang or be killed without harm to the run. Order is kept, queues are bounded."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe, connection
from typing import Any

from bindsearch.embed.arena import Arena, make_memory
from bindsearch.embed.blocks import Blocks
from bindsearch.embed.decoding import Failed, Outcome
from bindsearch.embed.worker import OUT_OF_MEMORY, PARENTS, Job, Task
from bindsearch.errors import BindSearchError
from bindsearch.types import Item

START_LIMIT_S = 120.0
"""Wall time that a worker may take to start, and to load what a modality needs, before its first item begins."""
BUFFER_BYTES = 256 << 20
"""Decoded arrays that may wait for the model; beyond this no further item is handed out."""
_LOOK_S = 1.0
"""How often the time is looked at: so much of an item's limit may be lost where this process was stopped."""
_DEPTH = 2  # jobs that one worker holds at a time
_TRIES = 2
_EARLY_DEATHS = 3


@dataclass
class _Worker:
    """A worker process as its parent sees it; jobs are done in order, so the first is the one in hand."""

    process: subprocess.Popen[bytes]
    link: Any
    arena: Arena | None = None
    jobs: deque[Job] = field(default_factory=deque)
    since_s: float = field(default_factory=time.monotonic)
    ready: bool = False
    began: bool = False

    def deadline_s(self, item_limit_s: float) -> float:
        """Tell when to give up on it."""
        if self.ready and not self.jobs:
            return float("inf")
        return self.since_s + (item_limit_s * self.jobs[0].limits if self.began else START_LIMIT_S)

    def turn(self, began: bool) -> None:
        """Note that the job in hand begins, or that the one before has ended."""
        self.began, self.since_s = began, time.monotonic()

    def kill(self) -> str:
        """End the process, and say how it ended."""
        self.process.kill()
        code = self.process.wait()
        self.link.close()
        if code == OUT_OF_MEMORY:
            return "out of memory"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


class DecodePool:
    """Maps items to outcomes, in order, in worker processes; media that are made go to a worker in blocks.

    A worker over the time limit is killed and its item fails ("took longer than 30 s"). When a worker dies, its item is
    tried once more, in case the item was not at fault; a second death fails it. Use as a context manager: leaving it
    kills the workers.

    Args:
        workers: number of processes; 0 does everything in this one, without time limit.
        window: items that may be handed out and not yet taken; blocks may exceed it.
    """

    def __init__(self, workers: int, window: int = 64) -> None:
        self.size, self.window = workers, max(window, 2 * workers)
        self.workers: list[_Worker] = []
        self._run: _Run | None = None

    def __enter__(self) -> DecodePool:
        """Give itself; workers start with the first item."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.close()

    def map(self, items: Iterable[Item], task: Task) -> Iterator[tuple[Item, Outcome]]:
        """Do a task on each item; one map at a time.

        Args:
            items: read ahead by at most `window`, from another thread.
            task: what to do.

        Yields:
            Each item with its outcome, in the order of the items.

        Raises:
            BindSearchError: workers cannot be started, or something fails that is no fault of an item.
        """
        if self.size == 0:
            yield from _here(items, task)
            return
        run = self._run = _Run(self, iter(items), task)
        try:
            yield from run.results()
        finally:
            run.stop()
            self._run = None

    def close(self) -> None:
        """Kill the workers and wait for them."""
        if self._run is not None:
            self._run.stop()
        for worker in self.workers:
            worker.kill()
        self.workers.clear()

    def start_worker(self, task: Task) -> _Worker:
        """Start one more process; it takes jobs at once and does them when it is ready."""
        ours, theirs = Pipe()
        memory = make_memory()
        serve = f"from bindsearch.embed.worker import serve; serve({theirs.fileno()}, {memory})"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with blocked(PARENTS):  # inherited: `serve` ignores them, but it has not been imported yet
            process = subprocess.Popen(
                [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {serve}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), *([] if memory is None else [memory])],
                env=environment,
            )
        theirs.close()
        worker = _Worker(process, ours, None if memory is None else Arena(memory))
        if memory is not None:
            os.close(memory)  # the mapping stays
        worker.link.send(task)
        self.workers.append(worker)
        return worker


@contextlib.contextmanager
def blocked(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """Keep signals from this thread, and from processes that it starts; the other threads get them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _here(items: Iterable[Item], task: Task) -> Iterator[tuple[Item, Outcome]]:
    """Do a task on each item in this process, to the bits that a worker gives: numpy's products on one thread."""
    from threadpoolctl import ThreadpoolController

    blocks = Blocks(items)
    with ThreadpoolController().limit(limits=1, user_api="blas"):
        while block := blocks.take():
            for item, outcome in zip(block, task.do(block), strict=True):
                blocks.note(item.modality, outcome.nbytes)
                yield item, outcome


class _Run:
    """One `map`: a thread hands out items and takes in outcomes, whatever the caller is busy with."""

    def __init__(self, pool: DecodePool, items: Iterator[Item], task: Task) -> None:
        self._pool, self._blocks, self._task = pool, Blocks(items), task
        self._state = threading.Condition()  # guards the six below
        self._done: dict[int, tuple[Item, Outcome]] = {}
        self._taken = self._bytes = 0
        self._finished = self._stopping = self._rung = False
        self._error: BaseException | None = None
        self._given = 0  # the rest belongs to the thread
        self._exhausted = False
        self._waiting: deque[Job] = deque()
        self._early_deaths = 0
        self._bell, self._ring = Pipe(duplex=False)
        self._thread = threading.Thread(target=self._main, name="bindsearch-decode", daemon=True)
        self._thread.start()

    def results(self) -> Iterator[tuple[Item, Outcome]]:
        """Yield the outcomes in order."""
        while True:
            with self._state:
                self._state.wait_for(lambda: self._taken in self._done or self._finished)
                if self._taken not in self._done:
                    if self._error is not None:
                        raise self._error
                    return
                item, outcome = self._done.pop(self._taken)
                self._taken += 1
                self._bytes -= outcome.nbytes
                self._wake()
            yield item, outcome

    def stop(self) -> None:
        """End the thread; workers with unfinished jobs are killed, so that nothing of them reaches the next map."""
        with self._state:
            self._stopping = True
            self._wake()
        self._thread.join()
        for worker in [each for each in self._pool.workers if each.jobs]:
            worker.kill()
            self._pool.workers.remove(worker)
        self._bell.close()
        self._ring.close()

    def _wake(self) -> None:
        if not self._rung and not self._finished:
            self._rung = True
            self._ring.send_bytes(b"!")

    def _main(self) -> None:
        error: BaseException | None = None
        try:
            for worker in self._pool.workers:
                worker.link.send(self._task)
            while not self._stopping and self._hand_out():
                self._take_in()
                self._check_deadlines()
        except BaseException as caught:  # raised again in the caller's thread
            error = caught
        with self._state:
            self._error, self._finished = error, True
            self._state.notify_all()

    def _hand_out(self) -> bool:
        """Give workers what they have room for; False when all is done."""
        while (job := self._next_job()) is not None:
            depth = _depth_of(job)
            idle = [worker for worker in self._pool.workers if not worker.jobs]
            if not idle and len(self._pool.workers) < self._pool.size:
                idle = [self._pool.start_worker(self._task)]
            worker = min(idle or self._pool.workers, key=lambda each: len(each.jobs))
            if len(worker.jobs) >= depth:
                self._waiting.appendleft(job)
                break
            if not worker.jobs:
                worker.turn(began=False)
            worker.jobs.append(job)
            with contextlib.suppress(OSError):  # a dead worker is noticed when its link is read
                worker.link.send(job)
        return bool(self._waiting or any(worker.jobs for worker in self._pool.workers) or not self._exhausted)

    def _next_job(self) -> Job | None:
        if self._waiting:
            return self._waiting.popleft()
        if self._exhausted or not self._has_room():
            return None
        items = self._blocks.take()
        if not items:
            self._exhausted = True
            return None
        self._given += len(items)
        return Job(self._given - len(items), items, made=self._blocks.making and len(items) > 1)

    def _has_room(self) -> bool:
        """Say whether more may be handed out: within the window, or of blocks one more than there are workers."""
        with self._state:
            ahead, waiting_bytes = self._given - self._taken, self._bytes
        if not ahead or waiting_bytes > BUFFER_BYTES:
            return not ahead
        jobs = sum(len(worker.jobs) for worker in self._pool.workers)
        room = max(self._pool.window, _DEPTH * (self._pool.size + 1) * self._blocks.together)
        return ahead < room or (self._blocks.making and jobs <= self._pool.size)

    def _take_in(self) -> None:
        """Wait for a message, the bell, a deadline or a moment, and take in what is there."""
        limit_s, asked_s = self._task.item_limit_s, time.monotonic()
        until_s = min((worker.deadline_s(limit_s) for worker in self._pool.workers), default=float("inf"))
        timeout_s = None if until_s == float("inf") else min(max(0.0, until_s - asked_s), _LOOK_S)
        by_link = {worker.link: worker for worker in self._pool.workers}
        there = connection.wait([*by_link, self._bell], timeout_s)
        if timeout_s is not None:
            self._forgive(time.monotonic() - asked_s - timeout_s)
        for link in there:
            if link is self._bell:
                self._bell.recv_bytes()
                with self._state:
                    self._rung = False
                continue
            worker = by_link[link]
            try:
                what, value = worker.link.recv()
            except (EOFError, OSError):
                self._bury(worker)
            else:
                self._hear(worker, what, value)

    def _forgive(self, late_s: float) -> None:
        """Count no time in which this process did not run: Ctrl-Z and a paused machine stop the workers as well."""
        if late_s > _LOOK_S:
            for worker in self._pool.workers:
                worker.since_s += late_s

    def _hear(self, worker: _Worker, what: str, value: Any) -> None:
        if what == "ready":
            worker.ready = True
            worker.turn(began=False)
        elif what == "began":
            worker.turn(began=True)
        elif what == "done":
            job = worker.jobs.popleft()
            outcomes = value.outcomes if worker.arena is None else worker.arena.unpack(value)
            self._settle(job, outcomes)
            if len(outcomes) < len(job.items):
                worker.jobs.appendleft(job.rest(len(outcomes)))
            worker.turn(began=len(outcomes) < len(job.items))
        else:
            raise BindSearchError(f"a decode worker cannot go on: {value}")

    def _settle(self, job: Job, outcomes: Sequence[Outcome]) -> None:
        """Note what came of the first items of a job."""
        with self._state:
            for place, outcome in enumerate(outcomes):
                self._done[job.number + place] = job.items[place], outcome
                self._bytes += outcome.nbytes
            self._state.notify_all()
        self._blocks.note(job.items[0].modality, outcomes[0].nbytes)

    def _check_deadlines(self) -> None:
        now_s = time.monotonic()
        for worker in list(self._pool.workers):
            if now_s < worker.deadline_s(self._task.item_limit_s):
                continue
            if not worker.began:
                raise BindSearchError(
                    f"a decode worker did not start within {START_LIMIT_S:g} s. Try --workers 0 to see why."
                )
            job, since_s = worker.jobs.popleft(), worker.since_s
            self._remove(worker)
            if len(job.items) > 1 and not job.made:  # one by one, each with a limit of its own
                self._waiting.extendleft(reversed(job.singles()))
                continue
            limit_s = self._task.item_limit_s
            outcome = Failed("worker", f"took longer than {limit_s:g} s", None, now_s - since_s)
            self._settle(job, [outcome] * len(job.items))

    def _bury(self, worker: _Worker) -> None:
        """Take over the jobs of a worker that died."""
        began = worker.began
        how = self._remove(worker)
        if not worker.ready:
            self._early_deaths += 1
            if self._early_deaths >= _EARLY_DEATHS:
                raise BindSearchError(f"decode workers die when they start ({how}). Try --workers 0 to see why.")
        if began:
            job = self._waiting.popleft()
            job.tries += 1
            if len(job.items) > 1:  # one by one, so that one at fault takes no other with it
                self._waiting.extendleft(reversed(job.singles()))
            elif job.tries < _TRIES:
                self._waiting.appendleft(job)
            else:
                self._settle(job, [Failed("worker", f"its decode worker was killed {_TRIES} times ({how})")])

    def _remove(self, worker: _Worker) -> str:
        """Kill a worker and put its jobs back in front of the queue."""
        how = worker.kill()
        self._pool.workers.remove(worker)
        self._waiting.extendleft(reversed(worker.jobs))
        worker.jobs.clear()
        return how


def _depth_of(job: Job) -> int:
    """Tell how many jobs a worker may hold when it is given this one.

    A block of made media goes to an idle worker alone: its message is larger than what a link holds, and one who is
    busy sending results does not read.
    """
    return 1 if job.made else _DEPTH
