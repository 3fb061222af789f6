"""Probes of a store's items: which of them have a label, their curves, and labels for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import InputError, MissingInputError
from bindsearch.linked import link_rows
from bindsearch.probe.curve import Curve, few_shot
from bindsearch.probe.linear import LinearProbe, fit_probe
from bindsearch.store import EmbeddingStore, open_store
from bindsearch.truth import truth_of
from bindsearch.zeroshot.label import item_blocks, verdicts_of
from bindsearch.zeroshot.verdict import Verdicts, rank

if TYPE_CHECKING:
    from bindsearch.types import FloatArray


@dataclass(frozen=True, eq=False)
class Labelled:
    """The labelled items of a store.

    Attributes:
        store: where they are.
        rows: (n, d) float32 unit rows.
        labels, modalities, units: n names; items of one unit (spans of one file, whatever their keys, and files of one
            group) belong together.
    """

    store: EmbeddingStore
    rows: FloatArray
    labels: tuple[str, ...]
    modalities: tuple[str, ...]
    units: tuple[str, ...]

    def curves(
        self, shots: Sequence[int], repeats: int, test_share: float, inverse_penalty: float, seed: int
    ) -> tuple[dict[str, Curve], dict[str, str]]:
        """Measure every modality by itself; see `few_shot`.

        Returns:
            Modality -> its curve; and modality -> why it has none, such as too few examples.

        Raises:
            InputError: none can be measured.
        """
        found: dict[str, Curve] = {}
        without: dict[str, str] = {}
        kinds = np.array(self.modalities)
        for modality in sorted(set(self.modalities)):
            here = np.flatnonzero(kinds == modality)
            try:
                found[modality] = few_shot(
                    self.rows[here],
                    [self.labels[place] for place in here],
                    shots,
                    repeats,
                    units=[self.units[place] for place in here],
                    test_share=test_share,
                    inverse_penalty=inverse_penalty,
                    seed=seed,
                )
            except InputError as error:
                without[modality] = str(error).removeprefix("probe: ")
        if not found:
            raise InputError("\n".join(f"probe: {modality}: {reason}" for modality, reason in without.items()))
        return found, without

    def fit(self, column: str, inverse_penalty: float) -> LinearProbe:
        """Fit one probe on all of them."""
        kinds = sorted(set(self.modalities))
        made_by = self.store.manifest.identity
        towers = {name: tower for name, tower in made_by.tower_ids.items() if name in kinds}
        facts = {"column": column}
        return fit_probe(self.rows, self.labels, inverse_penalty, made_by.space_id, kinds, facts, towers)


def read_labelled(
    store: EmbeddingStore | str | Path, column: str, table: str | Path | None = None, modality: str | None = None
) -> Labelled:
    """Read the items of a store that have a label.

    Args:
        store: the store or its folder.
        column: that holds the label.
        table: see `truth.truth_of`; None: the items' own attributes.
        modality: the only one to read.

    Raises:
        MissingInputError: no store, no table, or no item with a label.
    """
    store = store if isinstance(store, EmbeddingStore) else open_store(store)
    blocks = list(item_blocks(store, None if modality is None else (modality,)))
    records = [record for _, table in blocks for record in table.to_pylist()]
    truth = truth_of(records, column, table)
    here = [place for place, label in enumerate(truth) if label is not None]
    if not here:
        raise MissingInputError(f"{store.path}: no item has a value of {column!r}.")
    rows = np.concatenate([rows for rows, _ in blocks])[here]
    kept = [records[place] for place in here]
    return Labelled(
        store,
        rows,
        tuple(str(truth[place]) for place in here),
        tuple(str(record["modality"]) for record in kept),
        tuple(map(str, link_rows(_ties(record) for record in kept).tolist())),
    )


def _ties(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Name what an item shares with others that belong to it: its key, its group, its file."""
    ties: list[tuple[str, ...]] = [("key", str(record["key"]))]
    if record.get("group"):
        ties.append(("group", str(record["group"])))
    if record.get("source") and record["modality"] != "text":  # a text's may be the list that it stands in
        ties.append(("file", str(record["source"]), str(record.get("member") or "")))
    return ties


def apply_probe(
    store: EmbeddingStore | str | Path, probe: LinearProbe, *, modality: str | None = None, top: int = 3
) -> Verdicts:
    """Label the items of a store whose modalities the probe was fitted on, or those of one modality.

    Args:
        store: the store or its folder.
        probe: fitted in the same space, on embeddings of the same towers.
        modality: the only one to label, seen in fitting or not; None: those that were, all where the probe names none.
        top: labels to keep an item.

    Returns:
        Verdicts; their scores are missing: a probe has no cosines. `facts` has `left`, how many items of which other
        modalities have no label, and `unchecked`, modalities whose tower the probe does not name.

    Raises:
        MismatchError: the probe was fitted in another space, or with another tower of a modality.
        MissingInputError: no store there, or no such item in it.
    """
    store = store if isinstance(store, EmbeddingStore) else open_store(store)
    probe.check(store.manifest.identity, str(store.path))
    counts, known = store.manifest.counts, probe.modalities
    wanted = [modality] if modality is not None else [name for name in counts if not known or name in known]
    if counts and not wanted:
        raise MissingInputError(
            f"{store.path}: holds {', '.join(counts)}, the probe was fitted on {', '.join(known)}. Label what is there "
            f"all the same: --only {next(iter(counts))}"
        )
    towers = store.manifest.identity.tower_ids

    def judge(rows: FloatArray, kinds: list[str]) -> tuple[Any, Any, Any]:
        del kinds
        shares = probe.probabilities(rows)
        return rank(shares, np.full_like(shares, np.nan), top)

    facts = {
        "space": probe.space_id,
        "probe": dict(probe.facts),
        "modalities": list(known),
        "left": {name: count for name, count in counts.items() if name not in wanted} if modality is None else {},
        "unchecked": [name for name in wanted if name in known and name in towers and name not in probe.tower_ids],
    }
    return verdicts_of(store, wanted or None, probe.labels, judge, facts)
