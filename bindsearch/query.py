"""The algebra: weighted sums and differences of embeddings of any modality of one space.

    query = space.image("bird.jpg") + 0.5 * space.audio("waves.wav") - space.text("night")

Each term is a unit vector with a weight; at use the weighted terms are summed and the sum is normalised. An embedding
keeps its terms, so that a score can be explained as the sum of what each term adds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import InputError, ShapeError, UnknownNameError
from bindsearch.index.identity import Identity
from bindsearch.registry import MODALITIES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.types import FloatArray

_BLOCK_ROWS = 1024
SMALLEST_NORM = 1e-3
"""A sum shorter than this share of its terms' weights has no direction worth the name: the terms cancel out."""

_WEIGHT = re.compile(r"(?s)(.+)@([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)")


@dataclass(frozen=True, eq=False)
class Term:
    """One part of a query.

    Attributes:
        vector: (d,) float32 unit vector, read-only.
        weight: finite; negative moves away.
        label: what it is, for people: the words, a path, a key.
        modality: of the thing, or "vector" where it is not known.
        source: what was encoded, for a picture of it; None: nothing to show.
        item_id: of the item of an index that it is, or None.
        centring: id of the means that were taken from the vector already, of an item of a centred index; None: none.
    """

    vector: FloatArray
    weight: float
    label: str
    modality: str
    source: Any = None
    item_id: int | None = None
    centring: str | None = None

    @property
    def short(self) -> str:
        """The label without the folders of a path."""
        if self.modality == "text" or "/" not in self.label.rstrip("/"):
            return self.label
        return self.label.rstrip("/").rpartition("/")[2]


class Embedding:
    """A query: terms of one space, added up. Immutable; +, -, * and / by numbers give new ones. Can be pickled.

    Attributes:
        terms: in the order they were added.
        identity: space, and towers and presets of the terms' modalities.
    """

    __slots__ = ("identity", "terms")
    __array_ufunc__ = None  # so that numpy's numbers leave multiplication to us

    def __init__(self, terms: tuple[Term, ...], identity: Identity) -> None:
        """Use `of` or `of_vector`. The terms' vectors are made read-only."""
        for term in terms:
            term.vector.flags.writeable = False
        object.__setattr__(self, "terms", terms)
        object.__setattr__(self, "identity", identity)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse to change."""
        raise AttributeError(f"an Embedding is immutable: make a new one instead of setting {name!r}.")

    def __reduce__(self) -> tuple[type[Embedding], tuple[tuple[Term, ...], Identity]]:
        """Say how to make it again, for copies and other processes."""
        return Embedding, (self.terms, self.identity)

    terms: tuple[Term, ...]
    identity: Identity

    @classmethod
    def of(cls, space: Any, modality: str, vector: FloatArray, label: str, source: Any = None) -> Embedding:
        """Make a query of one encoded thing.

        Args:
            space: the space that encoded it.
            modality: one of the space's.
            vector: (d,) or (1, d) float32; normalised in a copy. Not modified.
            label: what it is, for people.
            source: what was encoded; by default the label (a path, or the words).

        Raises:
            ShapeError: a vector of another size or dtype; both are named.
            InputError: a vector that is not finite or is zero.
        """
        if vector.size != space.dim:
            raise ShapeError(f"{label}: expected {space.dim} numbers for {space.space_id}, got shape {vector.shape}.")
        identity = Identity(
            space_id=str(space.space_id),
            tower_ids={modality: str(space.tower_id(modality))},
            preset_ids={modality: str(space.preset_id(modality))},
            tokenizer_id=space.tokenizer_id if modality == "text" else None,
        )
        return cls((Term(_unit(vector, label), 1.0, label, modality, label if source is None else source),), identity)

    @classmethod
    def of_vector(
        cls,
        vector: FloatArray,
        label: str = "vector",
        identity: Identity | None = None,
        modality: str = "vector",
        item_id: int | None = None,
        centring: str | None = None,
    ) -> Embedding:
        """Make a query of a vector that is there already.

        Args:
            vector: (d,) or (1, d) float32; normalised in a copy. Not modified.
            label: what it is, for people.
            identity: what it was made with; None: not known, nobody checks that it belongs to the index's space.
            modality: of the thing it stands for.
            item_id: of the item of an index that it is.
            centring: id of the means that were taken from it already.

        Raises:
            ShapeError: not one vector of float32.
            InputError: not finite, or zero.
        """
        return cls(
            (Term(_unit(vector, label), 1.0, label, modality, None, item_id, centring),), identity or Identity(None)
        )

    @property
    def dim(self) -> int:
        """The number of components d."""
        return int(self.terms[0].vector.shape[0])

    @property
    def space_id(self) -> str | None:
        """The space of the terms; None where only bare vectors were given."""
        return self.identity.space_id

    @property
    def vector(self) -> FloatArray:
        """The query itself: (1, d) float32 unit row, the weighted terms summed and normalised.

        Raises:
            InputError: the sum is shorter than SMALLEST_NORM of the weights' sizes together.
        """
        _, total, norm = self._sum()
        return np.asarray(total / norm, dtype=np.float32)[None]

    def contributions(self, rows: FloatArray) -> NDArray[np.float64]:
        """Say what each term adds to the scores of rows.

        Args:
            rows: (n, d) float32 unit rows. Not modified.

        Returns:
            (n, terms) float64; a row sums to its score, up to rounding.
        """
        weights, _, norm = self._sum()
        weighted = np.stack(
            [term.vector.astype(np.float64) * (weight / norm) for term, weight in zip(self.terms, weights, strict=True)]
        )
        found = np.empty((rows.shape[0], len(self.terms)))
        for start in range(0, rows.shape[0], _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            found[part] = (rows[part].astype(np.float64)[:, None, :] * weighted).sum(axis=2)
        return found

    def names(self) -> tuple[str, ...]:
        """Name the terms, each name once: "audio waves.wav", "text night", "text night (2)"."""
        names: list[str] = []
        for term in self.terms:
            name, again = f"{term.modality} {term.label}", 2
            while name in names:
                name, again = f"{term.modality} {term.label} ({again})", again + 1
            names.append(name)
        return tuple(names)

    def describe(self) -> str:
        """Write the query as a line, without folders: "image bird.jpg + 0.5 × audio waves.wav − text night"."""
        words: list[str] = []
        for term in self.terms:
            size = abs(term.weight)
            sign = "− " if term.weight < 0 else ("+ " if words else "")
            words.append(f"{sign}{'' if size == 1 else f'{size:g} × '}{term.modality} {term.short}")
        return " ".join(words)

    def __repr__(self) -> str:
        """Show the query in a line."""
        return f"<Embedding {self.describe()!s:.120} of {self.space_id or 'an unknown space'}, d = {self.dim}>"

    def __add__(self, other: Embedding) -> Embedding:
        """Add the terms of another query.

        Raises:
            MismatchError: of another space, or with another tower or preset for the same modality.
            ShapeError: of another dimension.
        """
        if not isinstance(other, Embedding):
            return NotImplemented
        identity = self.identity.merged(
            other.identity, "the query", f"the term {other.describe()!r:.80}", "Take all terms from one space."
        )
        if self.dim != other.dim:
            raise ShapeError(f"the query: has dim {self.dim}, the term {other.describe()!r:.80} has dim {other.dim}.")
        return Embedding(self.terms + other.terms, identity)

    def __sub__(self, other: Embedding) -> Embedding:
        """Move away from another query."""
        return self + (-other) if isinstance(other, Embedding) else NotImplemented

    def __mul__(self, factor: float) -> Embedding:
        """Weight every term.

        Raises:
            InputError: a factor that is not finite.
        """
        if isinstance(factor, bool) or not isinstance(factor, int | float | np.integer | np.floating):
            return NotImplemented
        if not math.isfinite(factor):
            raise InputError(f"weight: expected a finite number, got {factor}.")
        return Embedding(tuple(replace(term, weight=term.weight * float(factor)) for term in self.terms), self.identity)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Embedding:
        """Divide every weight."""
        if divisor == 0:
            raise InputError("weight: a query cannot be divided by 0.")
        return self * (1 / divisor)

    def __neg__(self) -> Embedding:
        """Turn every weight's sign."""
        return self * -1

    def _sum(self) -> tuple[list[float], NDArray[np.float64], float]:
        """Give the weights, the sum and its norm, all over the power of two above the largest weight: no digit changes.

        Raises:
            InputError: the terms cancel out.
        """
        _, power = math.frexp(max(abs(term.weight) for term in self.terms))
        weights = [math.ldexp(term.weight, -power) for term in self.terms]
        total = np.zeros(self.dim, dtype=np.float64)
        for term, weight in zip(self.terms, weights, strict=True):
            total += weight * term.vector.astype(np.float64)
        norm, reach = math.sqrt(float((total * total).sum())), sum(abs(weight) for weight in weights)
        if norm <= SMALLEST_NORM * reach:
            share = norm / reach if reach else 0.0
            raise InputError(
                f"the query {self.describe()!r:.160}: its terms cancel out (the sum has {share:.1e} of the norm that "
                f"the weights allow, at least {SMALLEST_NORM:g} is needed). Change a weight or take a term away."
            )
        return weights, total, norm


def _unit(vector: FloatArray, label: str) -> FloatArray:
    """Give one vector as (d,) float32 unit vector, a copy."""
    if vector.dtype != np.float32 or vector.shape not in ((vector.size,), (1, vector.size)) or not vector.size:
        raise ShapeError(f"{label}: expected one vector (d,) or (1, d) of float32, got {vector.shape} {vector.dtype}.")
    wide = vector.reshape(-1).astype(np.float64)
    norm = math.sqrt(float((wide * wide).sum()))
    if not math.isfinite(norm) or norm == 0:
        raise InputError(f"{label}: the vector has the norm {norm}; expected a finite norm above 0.")
    return np.asarray(wide / norm, dtype=np.float32)


# ---- terms as people write them --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TermSpec:
    """A term before it is encoded.

    Attributes:
        kind: a modality, "item" (a key of the index) or "vector" (a .npy file, or the numbers).
        value: path, URI, words, key; or the numbers of a vector.
        weight: finite.
    """

    kind: str
    value: str | tuple[float, ...]
    weight: float = 1.0


def term_kinds() -> tuple[str, ...]:
    """List what a term can be: the modalities, "item" and "vector"."""
    return (*MODALITIES.names(), "item", "vector")


def parse_term(text: str, kind: str, exists: Callable[[str], bool] | None = None) -> TermSpec:
    """Read a term as it is written on the command line.

    Args:
        text: "bird.jpg", "bird.jpg@0.3" (the weight), "at night@-1". A file of that exact name wins over the reading as
            a weight. Words that end in an @ and a number are written with a weight behind: "route@66@1".
        kind: see `TermSpec`.
        exists: says whether a thing of that exact name is there; None: a file, for all kinds but words.

    Raises:
        InputError: nothing before the weight, or a weight that is not finite.
    """
    match = _WEIGHT.fullmatch(text)
    if not text.strip():
        raise InputError(f"--{kind}: the term is empty.")
    is_there = exists or (_is_file if kind not in ("text", "item") else None)
    if match is None or (is_there is not None and is_there(text)):
        return TermSpec(kind, text)
    weight = float(match[2])
    if not math.isfinite(weight):
        raise InputError(f"--{kind} {text}: expected a finite weight, got {match[2]}.")
    return TermSpec(kind, match[1], weight)


def parse_terms(
    wanted: Iterable[tuple[str, str]], has_key: Callable[[str], bool] | None = None
) -> tuple[TermSpec, ...]:
    """Read terms with their kinds; a kind that begins with "minus_" or "minus-" turns the weight's sign.

    Args:
        wanted: pairs such as ("image", "bird.jpg@0.3"), ("minus_text", "night").
        has_key: says whether the index has an item of that exact key, for terms of kind "item".

    Raises:
        UnknownNameError: no such kind.
    """
    specs = []
    for name, text in wanted:
        kind = name.replace("-", "_").removeprefix("minus_")
        if kind not in term_kinds():
            raise UnknownNameError("kind of term", kind, term_kinds())
        spec = parse_term(text, kind, has_key if kind == "item" else None)
        specs.append(replace(spec, weight=-spec.weight) if kind != name else spec)
    return tuple(specs)


def _is_file(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long, or a NUL: no file of this name can be
        return False
