"""How the segments of an index are built, and what a search of them may be told; both are data.

A recipe names a backend of the registry, how rows are stored, and the backend's own numbers; it stands in the manifest,
so that `compact` builds again what `build_index` built. Who chooses the numbers is `plan.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bindsearch.errors import InputError

SearchSettings = Mapping[str, int]
"""Knob -> value, by FAISS's names where FAISS has one: nprobe, efSearch; rerank: candidates scored from the rows;
nprobe_margin, rerank_margin: which of them a query may leave out."""

MARGIN = "_margin"
"""Ending of a knob that cuts another one, in 10,000ths of a cosine: what falls short by more is left out."""
NO_MARGIN = 20_000
"""The margin that cuts nothing: cosines are at most 2 apart."""

MARGIN_STEPS = 10_000
"""Steps of a margin to a cosine of 1."""

ROW_DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class Recipe:
    """What a segment is built by.

    Attributes:
        backend: registered name.
        row_dtype: of the stored rows, one of ROW_DTYPES. The answers are defined on the rows as stored.
        build: the backend's own numbers and words, such as {"nlist": 4096}; each backend documents its own.
        byte_codes: whether int8 codes for exact search stand beside the rows.

    Raises:
        InputError: a row dtype that is not known, or a number that JSON cannot hold.
    """

    backend: str
    row_dtype: str = "float32"
    build: dict[str, Any] = field(default_factory=dict)
    byte_codes: bool = False

    def __post_init__(self) -> None:
        """Refuse what no segment can be built by."""
        check_row_dtype(self.row_dtype)
        for name, value in self.build.items():
            if not isinstance(value, int | float | str) or isinstance(value, bool):
                raise InputError(f"recipe: {name} expected a number or a word, got {value!r}.")

    def overridden(self, backend: str | None, row_dtype: str | None) -> Recipe:
        """Give the recipe with what is not None put in its place; another backend has none of this one's numbers."""
        backend = backend or self.backend
        build = self.build if backend == self.backend else {}
        return replace(self, backend=backend, row_dtype=row_dtype or self.row_dtype, build=build)


def uncut(settings: SearchSettings) -> dict[str, int]:
    """Give settings with margins that cut nothing."""
    return {name: NO_MARGIN if name.endswith(MARGIN) else value for name, value in settings.items()}


def check_row_dtype(row_dtype: str) -> None:
    """Refuse a dtype that rows are not stored in.

    Raises:
        InputError: naming the known ones.
    """
    if row_dtype not in ROW_DTYPES:
        raise InputError(f"row_dtype: expected one of {', '.join(ROW_DTYPES)}, got {row_dtype!r}.")


def norm_tolerance(row_dtype: str) -> float:
    """Bound how far the norm of a stored unit row may be from 1.

    float32: the rounding of each component, far below 1e-6. float16: a component keeps 11 bits, so that each, and with
    them the norm, is off by at most 2^-11; below 6e-5 it is off by at most 2^-25 instead, which 1e-5 covers.
    """
    return 1e-6 if np.dtype(row_dtype) == np.float32 else 2.0**-11 + 1e-5


def check_settings(settings: SearchSettings | None, known: Mapping[str, int] | tuple[str, ...]) -> None:
    """Refuse settings that nobody reads, or that are no whole number from 1 on.

    Raises:
        InputError: naming the setting and the known ones.
    """
    for name, value in (settings or {}).items():
        if name not in known:
            raise InputError(f"search setting {name!r}: this index has {', '.join(known) or 'none'}.")
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
            raise InputError(f"search setting {name!r}: expected a whole number from 1 on, got {value!r}.")
