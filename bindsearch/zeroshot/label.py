"""Label things: files and texts as given, or a whole store of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import DecodeError, InputError, MissingInputError, UnknownNameError
from bindsearch.query import SMALLEST_NORM, TermSpec
from bindsearch.registry import MODALITIES
from bindsearch.search.ask import check_there
from bindsearch.store import EmbeddingStore, open_store
from bindsearch.zeroshot.calibration import Calibration, load_calibration
from bindsearch.zeroshot.classifier import Classifier, build_classifier
from bindsearch.zeroshot.prompts import DEFAULT_TEMPLATES, Labels, Templates
from bindsearch.zeroshot.verdict import TableItems, Verdicts, rank

if TYPE_CHECKING:
    import pyarrow as pa

    from bindsearch.types import FloatArray

MIXED = "mixed"
"""Modality of several things taken together."""
_TOP, _AT_ONCE = 3, 32
_COLUMNS = ["id", "key", "modality", "start_s", "end_s", "source", "member", "caption", "group", "attributes"]


def classify(
    labels: Labels | Sequence[str] | Mapping[str, Sequence[str] | str],
    space: Any = None,
    *,
    templates: str | Path | Templates = DEFAULT_TEMPLATES,
    none: bool | float = False,
    calibration: Calibration | str | Path | None = None,
    together: bool = False,
    top: int = _TOP,
    **things: Any,
) -> Verdicts:
    """Say which label fits each thing best.

    >>> bindsearch.classify(["bird", "rain"], audio=["a.wav", "b.wav"], image="c.jpg")

    Args:
        labels: names, or a mapping of names to the phrases that stand for them.
        space: from `load_space`, or its name; None: the default space.
        templates: see `load_templates`.
        none: whether a thing may be none of the labels; a number is the cosine that a label must beat.
        calibration: from `calibrate`, or its file.
        together: add the things up to one, each of weight 1, in place of one verdict a thing.
        top: labels to keep a thing.
        things: modality -> one source or a list of them.

    Returns:
        Verdicts in the order given; what cannot be read is in `bad`.

    Raises:
        UnknownNameError: no such modality in the space.
        InputError: nothing to classify.
        DecodeError: nothing of it can be read.
    """
    if space is None or isinstance(space, str | Path):
        from bindsearch.config import setting
        from bindsearch.models.spaces import load_space

        space = load_space(setting("space", str(space) if space is not None else None))
    for modality in things:
        if modality not in space.modalities:
            raise UnknownNameError(f"modality of {space.name}", modality, space.modalities)
    if isinstance(calibration, str | Path):
        calibration = load_calibration(calibration)
    classifier = build_classifier(
        space, labels, templates, modalities=tuple(things), none=none, calibration=calibration
    )
    terms = [
        (modality, thing, 1.0)
        for modality, given in things.items()
        for thing in (given if isinstance(given, list | tuple) else [given])
    ]
    return _classify_things(classifier, space, terms, together, top)


def classify_terms(
    classifier: Classifier, space: Any, specs: Sequence[TermSpec], together: bool = False, top: int = _TOP
) -> Verdicts:
    """Classify things as they are written on the command line.

    Args:
        classifier: of the same space.
        space: encodes the things.
        specs: files and texts; a weight counts only where they are taken together.
        together: add them up to one.
        top: labels to keep a thing.

    Raises:
        InputError: nothing to classify, a kind that is no modality, or a weight where none counts.
        MissingInputError: a file is not there.
        DecodeError: nothing of it can be read.
    """
    for spec in specs:
        if spec.kind not in MODALITIES:
            raise UnknownNameError("modality", spec.kind, MODALITIES.names())
        if spec.weight != 1 and not together:
            raise InputError(
                f"--{spec.kind} {spec.value}@{spec.weight:g}: a weight counts only among things taken together. Add "
                "--together, or leave the weight away."
            )
        check_there(spec)
    return _classify_things(classifier, space, [(s.kind, s.value, s.weight) for s in specs], together, top)


def _classify_things(
    classifier: Classifier, space: Any, things: Sequence[tuple[str, Any, float]], together: bool, top: int
) -> Verdicts:
    if not things:
        raise InputError("nothing to classify. Give a file (--image, --audio, ...) or a folder of embeddings.")
    classifier.check(classifier.identity.of_space(space, {modality for modality, _, _ in things}), "the things")
    rows, bad = _embed_each(space, [(modality, thing) for modality, thing, _ in things])
    kept = [place for place, row in enumerate(rows) if row is not None]
    if not kept or (together and bad):
        raise DecodeError(bad[0][0], bad[0][1])
    vectors: FloatArray = np.stack([row for row in rows if row is not None])
    items = [_item_of(space, things[place][0], things[place][1]) for place in kept]
    if together and len(things) > 1:
        vectors, items = _add_up(vectors, [things[place][2] for place in kept], items)
    codes, shares, scores = _rank_rows(classifier, vectors, [str(item["modality"]) for item in items], top)
    presets = {modality: str(space.preset_id(modality)) for modality, _, _ in things}
    facts = facts_of(classifier, {str(item["modality"]) for item in items})
    return Verdicts(classifier.names, items, codes, shares, scores, facts, tuple(bad), presets)


def _embed_each(space: Any, things: Sequence[tuple[str, Any]]) -> tuple[list[FloatArray | None], list[tuple[str, str]]]:
    """Embed things, many at once; of those that cannot be read, say why."""
    rows: list[FloatArray | None] = [None] * len(things)
    bad: list[tuple[str, str]] = []
    for modality in dict.fromkeys(name for name, _ in things):
        places = [place for place, (name, _) in enumerate(things) if name == modality]
        for start in range(0, len(places), _AT_ONCE):
            part = places[start : start + _AT_ONCE]
            try:
                for place, row in zip(part, space.embed(modality, [things[place][1] for place in part]), strict=True):
                    rows[place] = row
            except DecodeError:
                for place in part:
                    try:
                        rows[place] = space.embed(modality, [things[place][1]])[0]
                    except DecodeError as error:
                        bad.append((error.where, error.what))
    return rows, bad


def _item_of(space: Any, modality: str, thing: Any) -> dict[str, Any]:
    """Give the columns of a thing that is in no store."""
    name = thing if isinstance(thing, str) else space.modality(modality).source_of(thing).name
    item = {"key": str(name), "modality": modality, "source": str(name)}
    if modality == "text" and isinstance(thing, str):
        item["caption"] = thing
    return item


def taken_as(modalities: Iterable[str]) -> str:
    """Name the modality of things taken together: theirs, or MIXED of several, which no calibration is fitted on."""
    kinds = set(modalities)
    return kinds.pop() if len(kinds) == 1 else MIXED


def _add_up(
    rows: FloatArray, weights: Sequence[float], items: Sequence[Mapping[str, Any]]
) -> tuple[FloatArray, list[dict[str, Any]]]:
    """Add weighted unit rows up to one."""
    total = (rows.astype(np.float64) * np.array(weights)[:, None]).sum(axis=0, keepdims=True)
    norm = float(np.linalg.norm(total))
    if norm < SMALLEST_NORM:
        raise InputError("the things cancel out when taken together. Change a weight, or leave --together away.")
    modality = taken_as(str(item["modality"]) for item in items)
    name = " + ".join(
        f"{'' if weight == 1 else f'{weight:g} × '}{str(item['key']).rpartition('/')[2] or item['key']}"
        for weight, item in zip(weights, items, strict=True)
    )
    return (total / norm).astype(np.float32), [{"key": name, "modality": modality, "source": ""}]


def classify_store(
    store: EmbeddingStore | str | Path,
    classifier: Classifier | Callable[[EmbeddingStore], Classifier],
    *,
    modality: str | None = None,
    top: int = _TOP,
) -> Verdicts:
    """Classify every item of a store, or those of one modality.

    Args:
        store: the store or its folder.
        classifier: of the same space; or a function that makes it, called with the store.
        modality: the only one to classify.
        top: labels to keep an item.

    Raises:
        MissingInputError: no store there, or no such items.
        MismatchError: the labels are not in the store's space.
    """
    store = store if isinstance(store, EmbeddingStore) else open_store(store)
    made = classifier if isinstance(classifier, Classifier) else classifier(store)
    made.check(store.manifest.identity, str(store.path))
    return verdicts_of(
        store,
        None if modality is None else (modality,),
        made.names,
        lambda rows, kinds: _rank_rows(made, rows, kinds, top),
        facts_of(made, store.manifest.counts if modality is None else (modality,)),
    )


def verdicts_of(
    store: EmbeddingStore,
    modalities: Sequence[str] | None,
    names: tuple[str, ...],
    judge: Callable[[FloatArray, list[str]], tuple[Any, Any, Any]],
    facts: Mapping[str, Any],
) -> Verdicts:
    """Go through a store's items, or those of some modalities, with a judge.

    Args:
        store: its items.
        modalities: the only ones; None: all.
        names: what the codes of the judge stand for.
        judge: (n, d) float32 unit rows and their n modalities -> codes, probabilities and scores, as `rank` gives them.
        facts: kept with the verdicts.

    Raises:
        MissingInputError: there are no such items.
    """
    import pyarrow as pa

    tables, parts = [], []
    for rows, table in item_blocks(store, modalities):
        parts.append(judge(rows, table.column("modality").to_pylist()))
        tables.append(table.drop_columns(["group", "attributes"]))
    codes, shares, scores = (np.concatenate(each) for each in zip(*parts, strict=True))
    items = TableItems(pa.concat_tables(tables))
    return Verdicts(names, items, codes, shares, scores, facts, (), dict(store.manifest.preset_ids))


def item_blocks(store: EmbeddingStore, modalities: Sequence[str] | None) -> Iterator[tuple[FloatArray, pa.Table]]:
    """Go through a store's items, or those of some modalities: (n, d) float32 unit rows, n rows of the table.

    Raises:
        MissingInputError: there are none.
        UnknownNameError: none of such a modality.
    """
    known = tuple(store.manifest.counts)
    for modality in modalities or ():
        if modality not in known:
            raise UnknownNameError(f"modality among the items of {store.path}", modality, known)
    if not len(store):
        raise MissingInputError(f"{store.path}: no item in it.")
    for _, rows, table in store.iter_blocks():
        table = table.select(_COLUMNS)
        if modalities is not None:
            here = np.flatnonzero(np.isin(table.column("modality").to_pylist(), list(modalities)))
            rows, table = rows[here], table.take(here)
        if len(rows):
            yield rows, table


def _rank_rows(classifier: Classifier, rows: FloatArray, kinds: Sequence[str], top: int) -> tuple[Any, Any, Any]:
    """Rank the labels of rows of several modalities, each through its own scale."""
    scores = classifier.scores(rows)
    shares = np.empty((len(rows), len(classifier.names)), dtype=np.float32)
    names = np.array(kinds)
    for modality in sorted(set(kinds)):
        here = names == modality
        shares[here] = classifier.probabilities(scores[here], modality)
    return rank(shares, scores, top)


def facts_of(classifier: Classifier, modalities: Iterable[str]) -> dict[str, Any]:
    """Say how probabilities came about: space, templates, scale of each modality judged and whether it was fitted."""
    scales = {
        kind: {
            "scale": round(classifier.scale_of(kind), 4),
            "none_score": classifier.none_of(kind) if classifier.with_none else None,
            "calibrated": classifier.fit_of(kind) is not None,
        }
        for kind in sorted(modalities)
    }
    return {"space": classifier.identity.space_id, "templates": classifier.templates, "scales": scales}
