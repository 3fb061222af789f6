"""What a process took: CPU seconds, peak anonymous memory, wall time; and CPU time inside one."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STEP_S = 0.02


def resident_bytes(pid: int, field: str = "RssAnon") -> int:
    """Give the anonymous resident memory of a process now, mapped files apart; with "VmRSS" all that is resident."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return 0
    return 0


def children(pid: int) -> list[int]:
    """Give the children of a process now; each of its threads lists those that it started."""
    found: set[int] = set()
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found.update(int(word) for word in listed.read_text(encoding="ascii").split())
        except OSError:  # the thread has ended meanwhile
            continue
    return sorted(found)


def run_watched(command: Sequence[str], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run a process to its end and say what it took; children of its own count where it waits for them.

    Raises:
        SystemExit: it failed.
    """
    begin = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, **(environment or {})})
    peak = [0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(STEP_S):
            peak[0] = max(peak[0], resident_bytes(process.pid))

    thread = threading.Thread(target=watch)
    thread.start()
    _, status, usage = os.wait4(process.pid, 0)
    done.set()
    thread.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {process.returncode}")
    return {
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
        "wall_s": round(time.perf_counter() - begin, 3),
        "peak_anonymous_bytes": peak[0],
    }


class Clock:
    """CPU and wall time of a block of this process: `with Clock() as clock: ...; clock.cpu_s`."""

    def __enter__(self) -> Clock:
        """Start."""
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.cpu_s, self.wall_s = time.process_time() - self._cpu, time.perf_counter() - self._wall
