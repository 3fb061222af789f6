"""Budgets: what an index may cost, read from words, and which of them has to give where they cannot all be met."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from bindsearch.errors import BudgetError, InputError

_BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTES |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True)
class Budget:
    """What is asked of an index.

    Attributes:
        recall: overlap_at_10 with the exact answers, in (0, 1].
        memory_bytes: that searches keep reading: codes, lists, graphs, and the rows where all of them are scanned;
            None: no limit. Rows that only refine stay on disk, mapped.
        latency_ms: CPU milliseconds of a query asked alone; None: no limit.
    """

    recall: float = 0.95
    memory_bytes: int | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            InputError: naming the number.
        """
        if not 0 < self.recall <= 1:
            raise InputError(f"--recall: expected a share above 0 and up to 1, got {self.recall}.")
        for name, value in (("--memory", self.memory_bytes), ("--latency", self.latency_ms)):
            if value is not None and value <= 0:
                raise InputError(f"{name}: expected more than 0, got {value}.")

    @classmethod
    def parse(cls, recall: float, memory: str | None, latency: str | None) -> Budget:
        """Read a budget from the words of a command line; see `parse_bytes` and `parse_ms`."""
        memory_bytes = None if memory is None else parse_bytes(memory)
        return cls(recall, memory_bytes, None if latency is None else parse_ms(latency))


@dataclass(frozen=True)
class Cost:
    """What a candidate takes, predicted or measured.

    Attributes:
        name: of the candidate.
        recall: the largest overlap that it gives within the asked latency, or 1.
        memory_bytes, latency_ms: as of Budget, at the asked overlap; latency None: not known before it is measured.
        measured: whether it was built and measured; False: it is a forecast, and its overlap what is asked.
    """

    name: str
    recall: float
    memory_bytes: int
    latency_ms: float | None
    measured: bool = False

    def misses(self, budget: Budget, slack: float = 1.0) -> dict[str, str]:
        """Say what of a budget is not met, and what it would have to be; latency may be `slack` times as long."""
        wanted: dict[str, str] = {}
        if budget.memory_bytes is not None and self.memory_bytes > budget.memory_bytes:
            wanted["--memory"] = format_bytes(self.memory_bytes)
        if self.recall < budget.recall:
            wanted["--recall"] = f"{_floor(self.recall):.3g}"
        late = budget.latency_ms is not None and self.latency_ms is not None
        if late and (self.latency_ms or 0.0) > (budget.latency_ms or 0.0) * slack:
            wanted["--latency"] = format_ms(self.latency_ms or 0.0)
        return wanted


def _floor(recall: float) -> float:
    """Round a share down to three digits, so that asking for it succeeds."""
    return int(recall * 1000) / 1000


def refuse(budget: Budget, costs: Iterable[Cost], where: str) -> BudgetError:
    """Build the error of a budget that nothing meets, naming the nearest ones that can be met, or may by forecast.

    Nearest are those with the fewest things to relax; of each set of things the candidate that misses it by the least
    factor.

    Args:
        budget: what was asked.
        costs: of all candidates.
        where: what it was asked for, at the start of the message.
    """
    best: dict[tuple[str, ...], tuple[float, str]] = {}
    for cost in costs:
        misses = cost.misses(budget)
        if not misses or not _floor(cost.recall):  # a recall of 0 cannot be asked for
            continue
        named = " ".join(f"{option} {value}" for option, value in misses.items())
        key, factor = tuple(misses), _excess(cost, budget)
        if key not in best or factor < best[key][0]:
            best[key] = (factor, f"{named} ({cost.name}){'' if cost.measured else ', by forecast'}")
    fewest = min((len(key) for key in best), default=0)
    near = [text for key, (_, text) in sorted(best.items(), key=lambda each: each[1][0]) if len(key) == fewest]
    asked = f"recall {budget.recall:g}"
    if budget.memory_bytes is not None:
        asked += f", memory {format_bytes(budget.memory_bytes)}"
    if budget.latency_ms is not None:
        asked += f", latency {format_ms(budget.latency_ms)}"
    advice = "; or ".join(near) if near else "no candidate is known"
    return BudgetError(f"{where}: {asked} cannot be met together. Nearest that can: {advice}.")


def _excess(cost: Cost, budget: Budget) -> float:
    """Say by what factor a candidate overshoots a budget, all misses multiplied."""
    factor = 1.0
    if budget.memory_bytes:
        factor *= max(1.0, cost.memory_bytes / budget.memory_bytes)
    if budget.latency_ms and cost.latency_ms:
        factor *= max(1.0, cost.latency_ms / budget.latency_ms)
    return factor * max(1.0, (1 - cost.recall + 1e-3) / (1 - budget.recall + 1e-3))


def parse_bytes(text: str) -> int:
    """Read "2GB", "1.5 GiB", "800MB", "4096" as bytes.

    Raises:
        InputError: it is no such thing.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in _BYTES:
        raise InputError(f"--memory: expected bytes such as 2GB, 1.5GiB or 800MB, got {text!r}.")
    return round(float(match[1]) * _BYTES[match[2].upper()])


def parse_ms(text: str) -> float:
    """Read "5ms", "0.2 s", "800us" as milliseconds; a bare number is milliseconds.

    Raises:
        InputError: it is no such thing.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(us|ms|s)?\s*", text)
    if not match:
        raise InputError(f"--latency: expected a time such as 5ms, 0.2s or 800us, got {text!r}.")
    return float(match[1]) * _MS[match[2] or "ms"]


def format_bytes(count: float) -> str:
    """Write bytes so that `parse_bytes` reads at least as many back: 3 digits, rounded up."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        scaled = count / _BYTES[unit]
        if scaled < 999.5 or unit == "TB":
            return f"{_three_digits_up(scaled)}{unit}"
    raise AssertionError("unreachable: TB takes all")  # pragma: no cover


def format_ms(value: float) -> str:
    """Write milliseconds so that `parse_ms` reads at least as many back."""
    return f"{_three_digits_up(value)}ms"


def _three_digits_up(value: float) -> str:
    if value <= 0:
        return "0"
    digits = 2 - math.floor(math.log10(value))
    whole = math.ceil(round(value * 10.0**digits, 6))
    text = f"{whole / 10**digits:.{digits}f}" if digits > 0 else str(whole * 10**-digits)
    return text.rstrip("0").rstrip(".") if "." in text else text
