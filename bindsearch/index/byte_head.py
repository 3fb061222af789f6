"""The leading directions of rows as int8 codes: most rows are ruled out by an eighth of their bytes.

V holds `width` directions as rows, nearly orthonormal: those asked for first (where queries come from another modality,
the mean of such queries: rows hardly differ along it, but a query that keeps it in its rest weakens every bound), then
the leading eigenvectors of the rows' second moments. V is taken as the float32 numbers that it is; eta bounds the
spectral norm of VV' - I. A row x has the codes c, y = scale * c, and the rest e = x - V'y.

The bound. For a query u and any vector a, in real numbers,

    <u, x> = <Vu, y> + <u - V'a, e> + <a, Ve>.

With a = Vu as computed, its codes p and step t, and f = a - t p,

    <u, x> <= t scale <p, c> + |f| max|y| + |u - V'a| |e| + |a| |Ve|,

which is the form of `byte_table.py`: slacks (|e|, |Ve|), weights (|u - V'a|, |a|), fixed |f| max|y|. Nothing here needs
V to be orthonormal; only the lengths of the rest are cheaper to bound when it nearly is. With z = Vx,

    |e|^2 = |x|^2 - 2<z, y> + |V'y|^2 <= |x|^2 - |z|^2 + |z - y|^2 + eta |y|^2,
    |Ve| = |z - y - (VV' - I)y| <= |z - y| + eta |y|.

z and a are float64 products: what they lose is below 1e-11, inside `up` and MARGIN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bindsearch.index.byte_table import LEVELS, Asked, quantise, up

if TYPE_CHECKING:
    from bindsearch.index.byte_table import Bytes, Wide
    from bindsearch.types import FloatArray

_ROUNDING = 1e-10


@dataclass(frozen=True)
class Directions:
    """What heads are made with.

    Attributes:
        basis: (width, d) float32, V; its rows are nearly orthonormal.
        scale: the value of one step of a code.
        eta: a bound of the spectral norm of VV' - I.
    """

    basis: FloatArray
    scale: float
    eta: float

    @classmethod
    def find(cls, sample: Wide, width: int, asking: Wide | None = None) -> Directions:
        """Choose directions.

        Args:
            sample: (m, d) float64 rows. Not modified.
            width: how many directions, at most d.
            asking: (j, d) float64 directions to hold first, j < width, such as means of queries; or None. Not modified.
        """
        _, vectors = np.linalg.eigh(sample.T @ sample)
        leading = vectors[:, ::-1].T
        wanted = leading if asking is None else np.concatenate([asking, leading])
        basis = np.linalg.qr(wanted[: min(width, sample.shape[1])].T)[0].T.astype(np.float32)
        peak = float(np.abs(sample @ basis.T.astype(np.float64)).max(initial=0.0))
        scale = float(np.float32((peak or 1.0) / LEVELS))
        return cls(np.ascontiguousarray(basis), scale, off_orthonormal(basis))

    def code(self, rows: Wide) -> tuple[Bytes, FloatArray, float]:
        """Code rows.

        Args:
            rows: (m, d) float64. Not modified.

        Returns:
            codes (m, width) int8; slacks (m, 2) float32, bounds of |e| and |Ve|; the greatest |y|, rounded up.
        """
        seen = rows @ self.basis.T.astype(np.float64)  # (m, width)
        codes = np.clip(np.rint(seen / self.scale), -LEVELS, LEVELS).astype(np.int8)
        kept = codes * self.scale
        lost = np.einsum("ij,ij->i", seen - kept, seen - kept)
        lengths = np.einsum("ij,ij->i", kept, kept)
        rest = np.einsum("ij,ij->i", rows, rows) - np.einsum("ij,ij->i", seen, seen) + lost + self.eta * lengths
        within = np.sqrt(lost) + self.eta * np.sqrt(lengths)
        slacks = np.stack([up(np.sqrt(np.maximum(rest, 0) + _ROUNDING)), up(within)], axis=1)
        return codes, slacks, float(up(np.sqrt(lengths.max(initial=0.0, keepdims=True)))[0])

    def ask(self, units: Wide, longest: float) -> Asked:
        """Code queries.

        Args:
            units: (q, d) float64 unit rows. Not modified.
            longest: the greatest |y| of the rows.
        """
        basis = self.basis.astype(np.float64)
        seen = units @ basis.T  # (q, width)
        codes, steps = quantise(seen, np.maximum(np.abs(seen).max(axis=1), 1e-30))
        lost = np.linalg.norm(seen - codes * steps[:, None], axis=1)
        rest = np.linalg.norm(units - seen @ basis, axis=1)
        lengths = [up(each).astype(np.float64) for each in (lost, rest, np.linalg.norm(seen, axis=1))]
        return Asked(codes, steps, lengths[0] * longest, np.stack(lengths[1:], axis=1))


def off_orthonormal(basis: FloatArray) -> float:
    """Bound the spectral norm of VV' - I by the Frobenius norm, rounded up."""
    wide = basis.astype(np.float64)
    return float(np.linalg.norm(wide @ wide.T - np.eye(basis.shape[0]))) * (1 + 1e-9) + 1e-12
