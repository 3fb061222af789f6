"""A real embed process that says what it is doing, so that a fault can be aimed at a stage; and how to strike it."""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.resources import children
from bindsearch.embed import EmbedOptions, planning, run_embed
from bindsearch.embed import run as running
from bindsearch.embed.place import Place

STAGES = ("listing", "plan", "decode", "model", "write", "commit")
BATCH, SHARD, WINDOW_S = 16, 40, 2.0
CGROUPS = Path("/sys/fs/cgroup/memory")
HANGS_S = 300.0
_SLOW_US = 40_000


@dataclass
class Victim:
    """A forked process that embeds. The parent is warm, so that a kill costs no start-up; nothing else is shared.

    Attributes:
        pid: of the process, which leads a session of its own.
        events: pipe on which it writes the number of each stage that it enters.
        page: shared: the stage it is in, whether a shard is being written, the stage that failed + 1.
    """

    pid: int
    events: int
    page: mmap.mmap
    entered: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    status: int | None = None
    strace: subprocess.Popen[bytes] | None = None
    cgroup: Path | None = None

    def stage(self, aimed: str | None = None) -> str:
        """Name the stage it is in; a shard is written beside decoding and encoding, so both may be true."""
        return "write" if aimed == "write" and self.page[1] else STAGES[self.page[0]]

    def failed_stage(self) -> str:
        """Name the stage that an error came from."""
        return STAGES[self.page[2] - 1] if self.page[2] else self.stage()

    def await_stage(self, stage: str, times: int, limit_s: float = 120.0) -> bool:
        """Wait until it has entered a stage so many times; False where it ended before."""
        until_s = time.monotonic() + limit_s
        while self.entered[stage] < times:
            ready, _, _ = select.select([self.events], [], [], max(0.0, until_s - time.monotonic()))
            data = os.read(self.events, 1) if ready else b""
            if not data:
                return False
            self.entered[STAGES[data[0]]] += 1
        return True

    def workers(self) -> list[int]:
        """List its decode workers."""
        return children(self.pid)

    def wait(self) -> tuple[int | None, int | None]:
        """Wait for its end; give the exit code or the signal that ended it."""
        if self.status is None:
            self.status = self._reap()
            os.close(self.events)
            if self.strace is not None:
                self.strace.terminate()
                self.strace.wait()
            self._await_session()
        status = self.status
        return (
            os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        )

    def _reap(self) -> int:
        """Wait for its end; one that hangs is killed by SIGABRT, which no fault sends."""
        until_s = time.monotonic() + HANGS_S
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return status
            if time.monotonic() > until_s:
                os.kill(self.pid, signal.SIGABRT)
                until_s += HANGS_S
            time.sleep(0.005)

    def _await_session(self, limit_s: float = 40.0) -> None:
        """Wait until nothing of its session is left: workers end with their parent.

        Raises:
            SystemExit: one stays.
        """
        until_s = time.monotonic() + limit_s
        while left := _session(self.pid):
            if time.monotonic() > until_s:
                raise SystemExit(f"processes outlive the run: {left}")
            time.sleep(0.02)
        if self.cgroup is not None:
            self.cgroup.rmdir()

    def slow_disk(self) -> str:
        """Delay each fsync, in the kernel where strace may; give the means."""
        command = ["strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=fsync"]
        command += ["-e", f"inject=fsync:delay_enter={_SLOW_US}", "-p", str(self.pid)]
        self.strace = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while self.strace.poll() is None:
            if "TracerPid:\t0" not in Path(f"/proc/{self.pid}/status").read_text(encoding="ascii", errors="replace"):
                return "strace"
            time.sleep(0.005)
        self.strace = None
        return ""

    def starve_worker(self, worker: int) -> bool:
        """Put a worker into a memory cgroup without room, so that the kernel kills it; False where there are none."""
        cgroup = CGROUPS / f"bindsearch-faults-{worker}"
        try:
            cgroup.mkdir()
            (cgroup / "memory.limit_in_bytes").write_text("65536", encoding="ascii")
            (cgroup / "cgroup.procs").write_text(str(worker), encoding="ascii")
        except OSError:
            with contextlib.suppress(OSError):
                cgroup.rmdir()
            return False
        self.cgroup = cgroup
        return True

    def limit_memory(self, pid: int, more_bytes: int) -> bool:
        """Let a process have only so much more address space than it has."""
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[0])
            limit = pages * resource.getpagesize() + more_bytes
            resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
        except OSError:
            return False
        return True


def _session(leader: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            facts = path.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
            if int(facts[3]) == leader and facts[0] not in "ZX":
                found.append(int(path.parent.name))
    return found


def start(
    space: Any,
    sources: list[str],
    out: Path,
    workers: int,
    place: Place | None = None,
    before: Callable[[Victim], Any] | None = None,
) -> Victim:
    """Fork a process that embeds.

    Args:
        space: loaded, its towers as well.
        sources: what it embeds.
        out: into which folder.
        workers: how many decode for it.
        place: which of several it is.
        before: called with the victim before it begins.
    """
    page = mmap.mmap(-1, 3)
    events, told = os.pipe()
    wait, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.close(events)
            os.close(go)
            os.read(wait, 1)
            _mark(page, told)
            options = EmbedOptions(
                batch_size=BATCH,
                shard_size=SHARD,
                window_s=WINDOW_S,
                workers=workers,
                max_bad=1.0,
                place=place or Place(),
            )
            run_embed(sources, out, space, options=options)
            code = 0
        except KeyboardInterrupt:
            code = 130
        except BaseException as error:
            Path(f"{out}.words").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        finally:
            os._exit(code)
    os.close(told)
    os.close(wait)
    victim = Victim(pid, events, page)
    if before is not None:
        before(victim)
    os.write(go, b"!")
    os.close(go)
    return victim


def _mark(page: mmap.mmap, told: int) -> None:
    """Have this process note each stage it enters, on the page and on the pipe. Nothing else is changed."""

    def enter(stage: str) -> None:
        page[0] = STAGES.index(stage)
        os.write(told, bytes([page[0]]))

    def staged(stage: str, after: str | None, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            enter(stage)
            try:
                value = function(*args, **kwargs)
            except BaseException:
                page[2] = page[2] or STAGES.index(stage) + 1
                raise
            if after is not None:
                page[0] = STAGES.index(after)
            return value

        return call

    real_commit = running.commit_shard

    def commit_shard(*args: Any, **kwargs: Any) -> Any:
        page[1] = 1
        os.write(told, bytes([STAGES.index("write")]))
        try:
            return real_commit(*args, **kwargs)
        except BaseException:
            page[2] = page[2] or STAGES.index("write") + 1
            raise
        finally:
            page[1] = 0

    planner, run = planning.Planner, running._Run
    planner._plan_items = staged("listing", "plan", planner._plan_items)  # type: ignore[method-assign]
    planning.PlanWriter.finish = staged("plan", None, planning.PlanWriter.finish)  # type: ignore[method-assign]
    planning.PlanWriter.commit = staged("plan", None, planning.PlanWriter.commit)  # type: ignore[method-assign]
    run.execute = staged("decode", None, run.execute)  # type: ignore[method-assign]
    running.ShardRows.add_batch = staged("model", "decode", running.ShardRows.add_batch)  # type: ignore[method-assign]
    running.commit_store = staged("commit", None, running.commit_store)
    running.commit_shard = commit_shard


def can_mount(folder: Path) -> bool:
    """Say whether a small file system of its own can be mounted here."""
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.which("mount") is None:
        return False
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder)], capture_output=True)
    if done.returncode == 0:
        subprocess.run(["umount", str(folder)], check=True)
    return done.returncode == 0
