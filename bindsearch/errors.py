"""The exception tree.

BindSearchError (exit 1)
├── InputError, also ValueError (exit 2)   what was asked for cannot be meant
│   ├── ShapeError                         an array has the wrong shape or dtype
│   ├── UnknownNameError                   a name is in no registry; the nearest one is offered
│   └── MissingInputError (exit 3)         a path does not exist or holds nothing to do
├── DecodeError (exit 3)                   one source cannot be read: skipped in a run, fatal where it is all there is
├── TooManyBadError (exit 4)               finished, with more bad inputs than --max-bad allows
├── MismatchError (exit 5)                 two artefacts that were not made for each other
├── BudgetError (exit 6)                   a memory, time or recall budget that cannot be met
├── WeightsError (exit 7)                  weights are missing, incomplete or have the wrong checksum
├── UnsupportedError (exit 2)              a backend or format lacks this ability
└── MissingExtraError, also ImportError (exit 2)   an optional package is not installed

Every message says where, what, expected against got, and what to type next.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any

NAMES_SHOWN = 12
"""Upper limit of the known names in the message about an unknown one."""


class BindSearchError(Exception):
    """Root of everything that bindsearch raises on purpose. Can be pickled, so that worker processes can raise it."""

    exit_code = 1

    def __reduce__(self) -> tuple[Callable[..., BindSearchError], tuple[Any, ...], dict[str, Any]]:
        """Say how to make it again: of its message, since classes with parts take other arguments."""
        return _made_again, (type(self), *self.args), self.__dict__


def _made_again(kind: type[BindSearchError], *args: Any) -> BindSearchError:
    """Make an error of its message alone, passing over what its class does with the parts."""
    error = kind.__new__(kind, *args)
    super(BindSearchError, error).__init__(*args)
    return error


def reason_of(error: BaseException) -> str:
    """Give the first line of a foreign error's message, or its kind where it has no words."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class InputError(BindSearchError, ValueError):
    """What was asked for cannot be meant: fix the call, not the data."""

    exit_code = 2


class ShapeError(InputError):
    """An array has the wrong shape or dtype; the message names the expected one."""


class UnknownNameError(InputError):
    """A name is in no registry; the message offers the nearest known one."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        """Build the message from what was asked for and what there is."""
        self.kind, self.name, self.known = kind, name, tuple(sorted(set(known)))
        near = difflib.get_close_matches(name, self.known, n=1)
        did = f" Did you mean {near[0]!r}?" if near else ""
        tail = f" {hint}" if hint else ""
        super().__init__(f"Unknown {kind} {name!r}.{did} Known: {self._listed() or '(none)'}.{tail}")

    def _listed(self) -> str:
        """List the known names; of many the nearest ones, the nearest first."""
        if len(self.known) <= NAMES_SHOWN:
            return ", ".join(self.known)
        near = difflib.get_close_matches(self.name, self.known, n=NAMES_SHOWN, cutoff=0.0)
        return f"{', '.join(near)} and {len(self.known) - len(near):,} more"


class MissingInputError(InputError):
    """A path does not exist, or holds nothing to do."""

    exit_code = 3


class DecodeError(BindSearchError):
    """One source cannot be read as its modality.

    Args:
        where: name of the source, as the user knows it.
        what: what is wrong with it, without the name.
        stage: where it went wrong: read, decode or preprocess.
    """

    exit_code = 3

    def __init__(self, where: str, what: str, stage: str = "decode") -> None:
        """Keep the parts apart for the ledger."""
        self.where, self.what, self.stage = where, what, stage
        super().__init__(f"{where}: {what}")


class TooManyBadError(BindSearchError):
    """The run finished, with more bad inputs than --max-bad allows."""

    exit_code = 4


class MismatchError(BindSearchError):
    """Two artefacts that were not made for each other; the message names both values."""

    exit_code = 5


class BudgetError(BindSearchError):
    """A memory, time or recall budget that cannot be met; the message names the nearest that can."""

    exit_code = 6


class WeightsError(BindSearchError):
    """Weights are missing, incomplete or have the wrong checksum."""

    exit_code = 7


class UnsupportedError(BindSearchError):
    """A backend or format lacks this ability; the message names one that has it."""

    exit_code = 2


class MissingExtraError(BindSearchError, ImportError):
    """An optional package is not installed; the message holds the install line."""

    exit_code = 2

    def __init__(self, package: str, extra: str, why: str) -> None:
        """Name the package, the extra that brings it and what it is needed for."""
        super().__init__(f"{why} needs the package {package!r}. Install it: pip install 'bindsearch[{extra}]'")
