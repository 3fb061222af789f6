"""Processes of this machine: who can be seen from here, when one started, whether it still runs; files of this one."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path


def home() -> str:
    """Name what a process must share with this one to be seen from it: host, boot, process namespace."""
    boot, space = "", ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    with contextlib.suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())
    return " ".join(word for word in (socket.gethostname(), boot, space) if word)


def started(pid: int) -> str:
    """Tell when a process started, in ticks since the boot; "" where the system does not say."""
    facts = _stat(pid)
    return facts[19] if facts else ""


def is_running(pid: int, begun: str = "") -> bool:
    """Say whether the process of this id, which `started` then, still runs; True where that cannot be known."""
    if os.name == "nt":  # there, signal 0 is no question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    facts = _stat(pid)
    return not facts or (facts[0] not in ("Z", "X") and (not begun or facts[19] == begun))


def _stat(pid: int) -> list[str]:
    """Give what stands behind the name in /proc/PID/stat: state first; [] where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def allow_open_files() -> None:
    """Let this process have as many files open as the system allows it, where it had asked for fewer."""
    try:
        import resource
    except ImportError:  # the system counts otherwise
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
