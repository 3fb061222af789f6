"""A linear classifier on frozen embeddings, and its file: arrays and a text, no pickle."""

from __future__ import annotations

import io
import json
import math
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import InputError, MismatchError, MissingExtraError, MissingInputError
from bindsearch.store.files import commit_bytes
from bindsearch.store.identity import Identity, other_encoder
from bindsearch.types import check_shape, check_suffix
from bindsearch.zeroshot.classifier import softmax

if TYPE_CHECKING:
    from bindsearch.types import FloatArray

FORMAT = "bindsearch-probe/1"
INVERSE_PENALTY = 1000.0
"""scikit-learn's C for unit rows; of 1 to 10,000 the best at 1 and 2 shots, and within 0.01 of the best above."""
SUFFIXES = (".npz", ".json")
_MOST_STEPS = 5000


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A linear classifier on unit rows.

    Attributes:
        labels: K names.
        weights, bias: (K, d) and (K,) float32; the softmax of `rows @ weights.T + bias` are the probabilities.
        space_id: of the space that the rows are in.
        modalities: that it was fitted on.
        facts: how it was made: items, column, inverse penalty.
        tower_ids: of the modalities; one that is missing is not known: probes that were saved before they were kept.
    """

    labels: tuple[str, ...]
    weights: FloatArray
    bias: FloatArray
    space_id: str = ""
    modalities: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    tower_ids: Mapping[str, str] = field(default_factory=dict)

    def check(self, identity: Identity, where: str) -> None:
        """Refuse items of another space, or of a tower that was trained anew since.

        Args:
            identity: of the items.
            where: their folder, for the message.

        Raises:
            MismatchError: naming both.
        """
        own = Identity("", self.space_id or identity.space_id, self.weights.shape[1], "", self.tower_ids)
        differs = other_encoder(identity, own)
        if differs is not None:
            what, theirs, mine = differs
            raise MismatchError(
                f"{where}: made with {what} {theirs}, the probe with {mine}. Embed again, or fit the probe anew: "
                "bindsearch probe ... --save"
            )

    def logits(self, rows: FloatArray) -> FloatArray:
        """Weigh items: (n, d) float32 unit rows, not modified -> (n, K) float32.

        Raises:
            ShapeError: rows of another width.
        """
        check_shape(
            rows, ("n", self.weights.shape[1]), "items", f"The probe was fitted in {self.space_id or 'a space'}."
        )
        found: FloatArray = rows @ self.weights.T + self.bias
        return found

    def probabilities(self, rows: FloatArray) -> FloatArray:
        """Give (n, K) float32 probabilities of (n, d) float32 unit rows, which are not modified."""
        shares: FloatArray = softmax(self.logits(rows).astype(np.float64)).astype(np.float32)
        return shares

    def predict(self, rows: FloatArray) -> list[str]:
        """Name the most probable label of each of (n, d) float32 unit rows."""
        return [self.labels[code] for code in self.logits(rows).argmax(axis=1)]


def fit_probe(
    rows: FloatArray,
    labels: Sequence[str],
    inverse_penalty: float = INVERSE_PENALTY,
    space_id: str = "",
    modalities: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
    tower_ids: Mapping[str, str] | None = None,
) -> LinearProbe:
    """Fit a multinomial logistic regression.

    Args:
        rows: (n, d) float32 unit rows. Not modified.
        labels: n names, at least two different ones.
        inverse_penalty: scikit-learn's C, above 0.
        space_id: of the space that the rows are in; kept with the probe.
        modalities: of the rows; kept.
        facts: kept, beside the number of items and the inverse penalty.
        tower_ids: of the modalities; kept.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        InputError: fewer than two labels, or an inverse penalty that is not above 0.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "probe", "a linear probe") from error
    if not 0 < inverse_penalty < math.inf:
        raise InputError(f"probe: expected an inverse penalty (--c) above 0, got {inverse_penalty:g}.")
    names = np.array(list(labels))
    known = sorted(set(names.tolist()))
    if len(known) < 2:
        raise InputError(f"probe: expected at least two labels, got {', '.join(map(repr, known)) or 'none'}.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes is greater", UserWarning)  # one shot a label
        model = LogisticRegression(C=inverse_penalty, max_iter=_MOST_STEPS).fit(rows, names)
    weights, bias = model.coef_.astype(np.float32), model.intercept_.astype(np.float32)
    if len(known) == 2:  # scikit-learn keeps one row for two labels
        weights, bias = np.concatenate([0 * weights, weights]), np.concatenate([0 * bias, bias])
    own = {"items": len(names), "inverse_penalty": inverse_penalty, **(facts or {})}
    found = tuple(str(name) for name in model.classes_)
    return LinearProbe(found, weights, bias, space_id, tuple(modalities), own, dict(tower_ids or {}))


def check_probe_file(path: str | Path) -> str:
    """Give the suffix of a file that a probe can be written to.

    Raises:
        UnknownNameError: another suffix.
    """
    return check_suffix(path, "kind of probe file", SUFFIXES)


def save_probe(probe: LinearProbe, path: str | Path) -> Path:
    """Write a probe as .npz (arrays and a text, no pickle) or as .json. Folders on the way are made.

    Raises:
        UnknownNameError: another suffix.
    """
    path, suffix = Path(path), check_probe_file(path)
    facts = {
        "format": FORMAT,
        "labels": list(probe.labels),
        "space_id": probe.space_id,
        "tower_ids": dict(probe.tower_ids),
        "modalities": list(probe.modalities),
        "facts": dict(probe.facts),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".json":
        arrays = {"weights": probe.weights.tolist(), "bias": probe.bias.tolist()}
        commit_bytes(path, (json.dumps({**facts, **arrays}, ensure_ascii=True) + "\n").encode("ascii"))
        return path
    file = io.BytesIO()
    np.savez(file, weights=probe.weights, bias=probe.bias, about=np.array(json.dumps(facts, ensure_ascii=True)))
    commit_bytes(path, file.getvalue())
    return path


def load_probe(path: str | Path) -> LinearProbe:
    """Read what `save_probe` wrote; nothing is unpickled.

    Raises:
        MissingInputError: no such file.
        InputError: damaged, or another kind of file.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInputError(
            f"{path}: there is no such probe. Make one: bindsearch probe EMBEDDINGS ... --save {path}"
        )
    try:
        if path.suffix.lower() == ".json":
            facts = json.loads(path.read_text(encoding="utf-8"))
            arrays = {name: np.array(facts[name], dtype=np.float32) for name in ("weights", "bias")}
        else:
            with path.open("rb") as opened, np.lib.npyio.NpzFile(opened) as file:  # no pickle is read, nor looked for
                arrays = {name: np.asarray(file[name], dtype=np.float32) for name in ("weights", "bias")}
                facts = json.loads(str(file["about"]))
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']!r}, expected {FORMAT!r}")
        labels = tuple(str(name) for name in facts["labels"])
        weights, bias = arrays["weights"], arrays["bias"]
        if weights.ndim != 2 or weights.shape[0] != len(labels) or bias.shape != (len(labels),):
            raise ValueError(f"{len(labels)} labels, weights {weights.shape}, bias {bias.shape}")
        if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
            raise ValueError("numbers that are not finite")
        towers = {str(name): str(tower) for name, tower in dict(facts.get("tower_ids", {})).items()}
        modalities = tuple(str(name) for name in facts["modalities"])
        return LinearProbe(labels, weights, bias, str(facts["space_id"]), modalities, dict(facts["facts"]), towers)
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as a probe: {error}") from error
