"""Which of several processes this one is: said on the command line, or by torchrun or SLURM."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from bindsearch.errors import InputError

_SHARD = re.compile(r"(\d+)/(\d+)")
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),  # torchrun
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"),
)


@dataclass(frozen=True)
class Place:
    """The number of a process among those that were started together.

    It only says where in the plan a process begins, so that each has a stretch of its own: leases keep them apart, and
    who is through with its stretch goes on with what is left of the others'.

    Attributes:
        number: 1 to count.
        count: how many were started.
        local: number on this machine, from 0: which of its GPUs is to be used.
        local_count: how many of them run on this machine; they share its CPUs.
        launched: a launcher or `--shard` has said it.
    """

    number: int = 1
    count: int = 1
    local: int = 0
    local_count: int = 1
    launched: bool = False

    @classmethod
    def of(cls, shard: str | None, environment: Mapping[str, str]) -> Place:
        """Take `--shard i/n`, or else what torchrun or SLURM have put into the environment.

        Raises:
            InputError: not of the form i/n with 1 <= i <= n, or the environment's variables contradict each other.
        """
        found = cls._launched(environment)
        if shard is None:
            return found
        match = _SHARD.fullmatch(shard.strip())
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(f"--shard: expected i/n, counted from 1, such as 1/4 to 4/4; got {shard!r}.")
        return cls(int(match[1]), int(match[2]), found.local, found.local_count, True)

    @classmethod
    def _launched(cls, environment: Mapping[str, str]) -> Place:
        for names in _LAUNCHERS:
            values = [_whole(environment.get(name, "")) for name in names]
            rank, size, local, local_size = values
            said = [environment.get(name) for name in names[:2]]
            if None not in said and (rank is None or size is None or rank >= size):
                raise InputError(
                    f"{names[0]}={said[0]}, {names[1]}={said[1]}: expected a process counted from 0 and how many there "
                    f"are, as 0 and 2. Set both so, or neither: unset {names[0]} {names[1]}"
                )
            if rank is not None and size is not None and rank < size > 1:  # one of one is alone
                return cls(rank + 1, size, local or 0, max(1, local_size or 1), True)
        return cls()

    def first(self, shards: int) -> int:
        """Give the number of the shard, of so many, to begin with."""
        return (self.number - 1) * shards // self.count

    def __str__(self) -> str:
        """Write i/n."""
        return f"{self.number}/{self.count}"


def _whole(text: str) -> int | None:
    """Read a whole number; SLURM writes "4(x2)" for 4 tasks on each of 2 nodes."""
    match = re.match(r"\d+", text)
    return int(match[0]) if match else None
