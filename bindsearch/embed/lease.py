"""Who does what, where several processes work on one output folder: members with a heartbeat, leases without locks.

    OUT/leases/NAME.member          a process: host, pid, what it is to do; its modification time is the heartbeat
    OUT/leases/g0001-image-00003.1  a lease: who has this piece of work; the highest number holds
    OUT/leases/plan.1, store.1      the same for planning and for the manifest

Nothing here needs file locks, which many shared file systems lack or fake: a file appears whole under a name that only
one process can get (a hard link of a finished file, or O_EXCL where there are no links). Who takes over from the dead
makes the next number, so an old holder that wakes up finds that it holds nothing. A lease keeps two processes from
doing the same work; that the result is right even if they do rests on the store: private temporary names, same input,
same bytes. See docs/adr/0140.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bindsearch.errors import BindSearchError
from bindsearch.processes import home, is_running, started
from bindsearch.store.files import full_disk_said, writer_mark

LOG = logging.getLogger(__name__)
FOLDER = "leases"
MEMBER_ENDING = ".member"
SILENCE_S = 60.0
"""Seconds without a heartbeat after which a process of another machine counts as dead."""
BEATS = 6
"""Heartbeats in that time."""
_LEASE = re.compile(r"(?P<name>.+)\.(?P<number>\d+)")
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}


class LostLeaseError(BindSearchError):
    """Another process has taken over what this one was doing, because it was silent for too long."""


@dataclass(frozen=True)
class Member:
    """A process at work on a folder.

    Attributes:
        name: of the member, never used twice.
        host, pid, started: where it runs; when it started, in the system's own clock, "" where that is not known.
        home: host, boot and process namespace: who shares it can see the process.
        writer: what its temporary names begin with.
        task: hash of what it lists; None where it only helps.
        place: "2/4", the number it was given.
        silence_s: how long its heart may miss before it counts as dead.
    """

    name: str
    host: str
    pid: int
    started: str
    home: str
    writer: str
    task: str | None
    place: str
    silence_s: float

    @classmethod
    def here(cls, task: str | None, place: str, silence_s: float) -> Member:
        """Describe this process."""
        pid = os.getpid()
        name = f"{writer_mark()}-{secrets.token_hex(4)}"
        return cls(name, socket.gethostname(), pid, started(pid), home(), writer_mark(), task, place, silence_s)


@dataclass(eq=False)
class Lease:
    """The right to do one piece of work. Use as a context manager, or give it back with `release`."""

    crew: Crew
    name: str
    number: int

    @property
    def path(self) -> Path:
        """The lease's file."""
        return self.crew.folder / f"{self.name}.{self.number}"

    def check(self) -> None:
        """Make sure that it is still this process's.

        Raises:
            LostLeaseError: it was taken over.
        """
        held = self.crew.holder(self.name)
        if held is None or (held["owner"], held["number"]) != (self.crew.me.name, self.number):
            raise LostLeaseError(
                f"{self.name}: another process has taken this over, since this one gave no sign of life for "
                f"{self.crew.me.silence_s:g} s. What is committed stays; run the same command again to go on."
            )

    def settle(self) -> None:
        """Note that the work is done; the file stays, for those who wait to know by whom."""
        path = self.path
        self.crew.forget(self)
        with contextlib.suppress(OSError):
            (self.crew.folder / f"{path.name}.done").touch()

    def release(self) -> None:
        """Give it back; the files of those it was taken from go as well."""
        self.crew.forget(self)
        for number in range(self.number, 0, -1):
            with contextlib.suppress(OSError):
                (self.crew.folder / f"{self.name}.{number}").unlink()

    def __enter__(self) -> Lease:
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give it back, unless it is settled."""
        if self in self.crew.held:
            self.release()


@dataclass(eq=False)
class Crew:
    """The processes at work on a folder, as one of them sees it. Use as a context manager: being in it is membership.

    Attributes:
        out: the output folder.
        me: this process.
        held: leases of this process.
        met: names of members with this one's task that it has seen alive.
    """

    out: Path
    me: Member
    held: list[Lease] = field(default_factory=list)
    met: set[str] = field(default_factory=set)
    _heard: dict[str, tuple[int, float]] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event)
    _heart: threading.Thread | None = None

    @property
    def folder(self) -> Path:
        """Where leases lie."""
        return self.out / FOLDER

    def __enter__(self) -> Crew:
        """Become a member."""
        self._register()
        self._heart = threading.Thread(target=self._beat, name="bindsearch-heartbeat", daemon=True)
        self._heart.start()
        self.others()
        return self

    def __exit__(self, *_: object) -> None:
        """Give all leases back and leave; the last one out removes what the dead have left."""
        self._ended.set()
        if self._heart is not None:
            self._heart.join()
        for lease in list(self.held):
            lease.release()
        with contextlib.suppress(OSError):
            self._file_of(self.me.name).unlink()
        self._clean()

    def path_of(self, member: Member) -> Path:
        """Give the file whose modification time is a member's heartbeat."""
        return self._file_of(member.name)

    def _file_of(self, member: str) -> Path:
        return self.folder / (member + MEMBER_ENDING)

    def _register(self) -> None:
        data = json.dumps(asdict(self.me), sort_keys=True).encode("ascii")
        while not self._create(self._file_of(self.me.name), data):
            if self._file_of(self.me.name).exists():
                return

    def _beat(self) -> None:
        while not self._ended.wait(self.me.silence_s / BEATS):
            try:
                os.utime(self._file_of(self.me.name))
            except FileNotFoundError:  # taken for dead, and cleaned away
                with contextlib.suppress(BindSearchError, OSError):
                    self._register()
            except OSError:
                LOG.debug("no heartbeat", exc_info=True)

    def _create(self, path: Path, data: bytes) -> bool:
        """Make a file that was not there, whole; False where another process was quicker, or the folder is gone.

        Raises:
            BindSearchError: the disk is full.
        """
        temp = self.folder / f"{self.me.name}-{secrets.token_hex(3)}.new"
        with full_disk_said(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                temp.write_bytes(data)
                try:
                    os.link(temp, path)
                except FileExistsError:
                    return temp.stat().st_nlink == 2  # a network file system may have lost the answer to a first try
                except OSError as error:
                    if error.errno not in _NO_LINKS:
                        raise
                    _create_alone(path, data)
            except (FileNotFoundError, FileExistsError):
                return False
            finally:
                with contextlib.suppress(OSError):
                    temp.unlink()
        return True

    def others(self) -> list[Member]:
        """List the other members that are alive."""
        found = [member for member in self.members() if member.name != self.me.name and self.is_alive(member)]
        self.met.update(member.name for member in found if member.task == self.me.task)
        return found

    def writers(self) -> set[str]:
        """Give the marks of the processes that may have temporary files here."""
        return {self.me.writer, *(member.writer for member in self.others())}

    def members(self) -> Iterator[Member]:
        """Yield all members that have not left, dead or alive."""
        for path in sorted(self.folder.glob(f"*{MEMBER_ENDING}")):
            member = self._member(path.name.removesuffix(MEMBER_ENDING))
            if member is not None:
                yield member

    def _member(self, name: str) -> Member | None:
        facts = _read(self._file_of(name))
        try:
            return None if facts is None else Member(**facts)
        except TypeError:
            return None

    def is_alive(self, member: Member) -> bool:
        """Say whether a member is at work: its process runs, where that can be seen, and its heart beats."""
        if member.home == self.me.home and not is_running(member.pid, member.started):
            return False
        return not self._is_silent(self._file_of(member.name), member.silence_s)

    def _is_silent(self, path: Path, silence_s: float) -> bool:
        """Say whether a file was not touched for so long, on this process's own clock: clocks of hosts may differ."""
        try:
            with path.open("rb") as file:  # opened, so that a network file system asks its server
                beat = os.fstat(file.fileno()).st_mtime_ns
        except OSError:
            return True
        now_s = time.monotonic()
        last, since_s = self._heard.get(path.name, (None, now_s))
        if beat != last:
            self._heard[path.name] = beat, now_s
            return False
        return now_s - since_s > silence_s

    def numbers(self) -> dict[str, int]:
        """Give the highest number of each lease that is there."""
        found: dict[str, int] = {}
        with contextlib.suppress(FileNotFoundError):
            for path in self.folder.iterdir():
                if match := _LEASE.fullmatch(path.name):
                    found[match["name"]] = max(int(match["number"]), found.get(match["name"], 0))
        return found

    def holder(self, name: str) -> dict[str, Any] | None:
        """Tell who holds a lease: {"owner", "number", "done"}, dead or alive; None where nobody does."""
        number = self.numbers().get(name)
        if number is None:
            return None
        facts = _read(self.folder / f"{name}.{number}") or {"owner": ""}
        done = (self.folder / f"{name}.{number}.done").exists()
        return {"owner": facts.get("owner", ""), "number": number, "done": done}

    def is_free(self, name: str, number: int) -> bool:
        """Say whether what a lease of this number says no longer binds: its holder is dead, or has settled it."""
        path = self.folder / f"{name}.{number}"
        if (self.folder / f"{path.name}.done").exists():
            return True
        facts = _read(path)
        if facts is None:
            return self._is_silent(path, self.me.silence_s)  # being written, or its writer was killed over it
        member = self._member(str(facts.get("owner")))
        if member is not None and member.task == self.me.task and self.is_alive(member):
            self.met.add(member.name)
        return member is None or not self.is_alive(member)

    def free(self, names: Iterable[str]) -> bool:
        """Say whether one of these leases could be taken now."""
        numbers = self.numbers()
        return any(name not in numbers or self.is_free(name, numbers[name]) for name in names)

    def take(self, name: str) -> Lease | None:
        """Take a lease, from the dead if need be; None while somebody alive holds it.

        After it, look again whether the work is still to be done: who held it before may have finished.

        Raises:
            BindSearchError: the disk is full.
        """
        number = self.numbers().get(name, 0)
        if number and not self.is_free(name, number):
            return None
        lease = Lease(self, name, number + 1)
        facts = {"owner": self.me.name, "host": self.me.host, "pid": self.me.pid}
        if not self._create(lease.path, json.dumps(facts, sort_keys=True).encode("ascii")):
            return None
        self.held.append(lease)
        return lease

    def forget(self, lease: Lease) -> None:
        """Count a lease as held no longer."""
        if lease in self.held:
            self.held.remove(lease)

    def _clean(self) -> None:
        """Remove the files of the dead if nobody is left, and the folder if it is empty."""
        with contextlib.suppress(OSError):
            left = list(self.folder.iterdir())  # listed first: who comes after that is a member before it takes a lease
            if not self.others():
                for path in left:
                    path.unlink(missing_ok=True)
            self.folder.rmdir()


def _create_alone(path: Path, data: bytes) -> None:
    """Make a file that was not there; for file systems without hard links."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def task_mark(*facts: Any) -> str:
    """Hash what a process lists: members with one mark need one plan."""
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode("utf-8"), digest_size=8).hexdigest()
