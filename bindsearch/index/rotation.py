"""A rotation of the columns before product codes, and how many of the rotated columns share a code.

Rows differ from the means of their lists in few directions. Seen along those, first where queries come from and then
the principal ones, the columns that matter get 4 bits each and the many that hardly do share theirs (docs/adr/0116):

    R  = directions as rows, orthonormal; int8 with a scale each, so that products are exact integers
    Rx = what codes are of; a score <q, x> is <Rq, Rx>

Being exact, Rx does not depend on how many vectors come together. What int8 loses of a vector is a hundredth of it in
all, spread over all directions: a tenth of what the codes lose.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import InputError
from bindsearch.index.checks import map_array
from bindsearch.index.small_products import to_int8

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from bindsearch.index.small_products import Int8Array
    from bindsearch.types import FloatArray, IntArray

    Wide = NDArray[np.float64]

_FILES = ("rotation.npy", "rotation_scales.npy")
LOST = (0.0115, 0.1105, 0.2350, 0.3413, 0.4361, 0.5072, 0.5589, 0.5979)
"""Share of the variance that 16 words lose of 1, 2, ... 8 columns: k-means on 20,000 Gaussian vectors, on as many.

Of one column: J. Max, Quantizing for minimum distortion, 1960.
"""


@dataclass(frozen=True)
class Rotation:
    """A rotation in int8.

    Attributes:
        codes: (d, d) int8, directions as rows; (0, 0): no rotation.
        scales: (d,) float32; scale times code is a direction.
    """

    codes: Int8Array = field(default_factory=lambda: np.empty((0, 0), dtype=np.int8))
    scales: FloatArray = field(default_factory=lambda: np.empty(0, dtype=np.float32))

    def __bool__(self) -> bool:
        """Say whether there is one."""
        return bool(self.codes.size)

    @classmethod
    def of(cls, directions: FloatArray) -> Rotation:
        """Round (d, d) float32 orthonormal directions."""
        return cls(*to_int8(np.ascontiguousarray(directions), one_scale=False))

    @classmethod
    def open(cls, folder: Path, dim: int) -> Rotation:
        """Map what `save` wrote for rows of `dim` columns; where there are no files, there is no rotation.

        Raises:
            InputError: a file is damaged, or of other columns.
        """
        if not (folder / _FILES[0]).exists():
            return cls()
        found = cls(map_array(folder / _FILES[0], "int8", 2), map_array(folder / _FILES[1], "float32", 1))
        if (found.codes.shape, found.scales.shape) != ((dim, dim), (dim,)):
            raise InputError(
                f"{folder}: rotation.npy and rotation_scales.npy of shapes {found.codes.shape} and "
                f"{found.scales.shape}, rows have {dim} columns. Build the index again."
            )
        return found

    def save(self, folder: Path) -> None:
        """Write rotation.npy and rotation_scales.npy; nothing where there is no rotation."""
        if self:
            np.save(folder / _FILES[0], self.codes, allow_pickle=False)
            np.save(folder / _FILES[1], self.scales, allow_pickle=False)

    @cached_property
    def _packed(self) -> Any:
        import numkong

        return numkong.dots_pack(self.codes)

    def __call__(self, vectors: FloatArray) -> FloatArray:
        """Rotate (n, d) float32 vectors, each on its own; as they are where there is no rotation. Not modified."""
        import numkong

        if not self:
            return vectors
        codes, scales = to_int8(vectors, one_scale=False)
        turned = np.asarray(numkong.dots_packed(codes, self._packed)).astype(np.float32)
        turned *= self.scales
        turned *= scales[:, None]
        return turned


def find_directions(
    rows: FloatArray, residuals: FloatArray, asking: FloatArray | None, most: int
) -> tuple[FloatArray, Wide, int]:
    """Choose directions from a sample.

    Args:
        rows: (m, d) float32. Not modified.
        residuals: (m, d) float32, what each differs by from the mean of its list. Not modified.
        asking: (j, d) float32 directions that queries come from, or None. Not modified.
        most: how many of them are taken.

    Returns:
        directions (d, d) float32, orthonormal rows: those asked for first, then principal directions of the residuals
        by what they do to a score, how much rows differ along them times how far queries like the rows reach; that
        weight of each, (d,) float64; how many were asked for.
    """
    wide, dim = residuals.astype(np.float64), rows.shape[1]
    asked = np.zeros((dim, 0)) if asking is None else np.linalg.qr(asking[:most].astype(np.float64).T)[0]
    left = wide - (wide @ asked) @ asked.T
    found = np.linalg.eigh(left.T @ left)[1][:, asked.shape[1] :]
    weights = np.square(wide @ found).mean(axis=0) * np.square(rows.astype(np.float64) @ found).mean(axis=0)
    ranks = np.argsort(-weights, kind="stable")
    directions = np.linalg.qr(np.concatenate([asked, found[:, ranks]], axis=1))[0].T
    first = np.full(asked.shape[1], weights.max(initial=0.0))
    return directions.astype(np.float32), np.concatenate([first, weights[ranks]]), asked.shape[1]


def group_widths(weights: Wide, groups: int, alone: int) -> IntArray:
    """Choose how many columns share each group's 4 bits, so that least is lost, by dynamic programming.

    Args:
        weights: (d,) of the columns, those that are to stand alone first, then descending. Not modified.
        groups: how many; at most d.
        alone: how many of the first groups have one column.

    Returns:
        (groups,) int64, from 1 to 8 each; columns beyond their sum are not worth a code.
    """
    dim = weights.size
    sums = np.concatenate([[0.0], np.cumsum(weights)])
    least = np.full(dim + 1, np.inf)
    least[0] = 0.0
    steps = np.zeros((groups, dim + 1), dtype=np.int64)
    for group in range(groups):
        here = np.full(dim + 1, np.inf)
        for width, lost in enumerate(LOST[: 1 if group < alone else dim], start=1):
            loss = least[:-width] + lost * (sums[width:] - sums[:-width])
            better = loss < here[width:]
            here[width:][better], steps[group, width:][better] = loss[better], width
        least = here
    widths, end = np.empty(groups, dtype=np.int64), int(np.argmin(least + sums[-1] - sums))
    for group in reversed(range(groups)):
        widths[group] = steps[group, end]
        end -= int(widths[group])
    return widths
