"""Recipes: a benchmark as data. What must lie on disk, what is asked, and what the paper says.

A recipe is a JSON file under recipes/. `run_recipe` lists the data set's files in its official layout (layouts.py),
embeds them into a folder (a second run resumes), measures, and puts the paper's figures beside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.config import from_json_dict
from bindsearch.errors import InputError, MissingInputError, UnknownNameError, UnsupportedError
from bindsearch.evaluate.matrix import plain, summarise
from bindsearch.evaluate.metrics import check_ties, judge
from bindsearch.evaluate.rows import Rows, codes, embed_rows
from bindsearch.evaluate.zero_shot import ClassName, load_prompts, measure_zero_shot, name_vectors

if TYPE_CHECKING:
    from bindsearch.embed import EmbedOptions
    from bindsearch.types import FloatArray

TASKS = ("classify", "retrieve")
NEEDS = 2
"""Entries of `needs` that every layout looks for: its table or pictures, then its media or notes."""


@dataclass(frozen=True)
class NeededFile:
    """A file or folder of a data set's distribution.

    Attributes:
        any_of: paths under the data folder, any of which will do.
        what: in words.
        where: where it is to be had.
    """

    any_of: tuple[str, ...]
    what: str
    where: str


@dataclass(frozen=True)
class Answer:
    """What a text is to find: one modality, or a weighted sum of several of one thing.

    Attributes:
        name: of the row in the report.
        weights: modality -> weight of its unit vector; a thing that lacks one of several goes without it.
    """

    name: str
    weights: dict[str, float]


@dataclass(frozen=True)
class PaperFigure:
    """A published figure.

    Attributes:
        row: of the report: a modality that is classified, or an answer's name.
        figure: "accuracy_at_1", "recall_at_10", ...
        value: as a share.
        source: where it stands.
    """

    row: str
    figure: str
    value: float
    source: str


@dataclass(frozen=True)
class Recipe:
    """A benchmark.

    Attributes:
        name, title: of the benchmark.
        task: one of TASKS.
        layout: how the files are read; see layouts.py.
        needs: what must lie in the data folder.
        items: how many things the paper's test set has, by modality.
        modalities: what is embedded, text apart.
        templates: set of prompt templates, for classification.
        classes: for classification.
        fold: column of folds.
        answers: for retrieval.
        ks: of recall_at_k.
        presets: modality -> preprocessing, where the data need their own.
        options: numbers of the layout, such as a seed.
        paper: the published figures.
        notes: what is known to differ, or not known.
    """

    name: str
    title: str
    task: str
    layout: str
    needs: tuple[NeededFile, ...]
    items: dict[str, int]
    modalities: tuple[str, ...]
    templates: str = "clip80"
    classes: tuple[ClassName, ...] = ()
    fold: str | None = None
    answers: tuple[Answer, ...] = ()
    ks: tuple[int, ...] = (1, 5, 10)
    presets: dict[str, str] = field(default_factory=dict)
    options: dict[str, float] = field(default_factory=dict)
    paper: tuple[PaperFigure, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def figures(self) -> tuple[str, ...]:
        """What its rows will have: accuracies of a classification, recalls at its `ks` of a retrieval."""
        if self.task == "classify":
            return ("accuracy_at_1", *(["accuracy_at_5"] if len(self.classes) > 5 else []), "map")
        return (*(f"recall_at_{k}" for k in self.ks), "median_rank", "map")

    def find(self, root: Path, number: int) -> Path:
        """Give the first path of a needed file that exists.

        Raises:
            MissingInputError: as `check`.
        """
        for name in self.needs[number].any_of:
            if (root / name).exists():
                return root / name
        self.check(root)
        raise MissingInputError(f"{root}: no {self.needs[number].what}.")

    def check(self, root: Path) -> None:
        """Refuse a folder that lacks files, saying what to download where.

        Raises:
            MissingInputError: naming every missing file, what it is and where it is to be had.
        """
        missing = [need for need in self.needs if not any((root / name).exists() for name in need.any_of)]
        if not missing:
            return
        lines = [f"{root}: {'is not there' if not root.is_dir() else 'is not complete'} for {self.title}. Missing:"]
        for need in missing:
            lines.append(f"  {' or '.join(need.any_of)}: {need.what}. Get it: {need.where}")
        lines.append(f"Expected layout: bindsearch evaluate --recipe {self.name} --describe")
        raise MissingInputError("\n".join(lines))


def list_recipes() -> tuple[str, ...]:
    """Name the bundled recipes."""
    folder = resources.files("bindsearch.evaluate") / "recipes"
    return tuple(sorted(each.name.removesuffix(".json") for each in folder.iterdir() if each.name.endswith(".json")))


def load_recipe(name: str | Path) -> Recipe:
    """Load a recipe.

    Args:
        name: of a bundled one, or a JSON file.

    Raises:
        UnknownNameError: no such recipe.
        MissingInputError: no such file.
        InputError: not a recipe.
    """
    if str(name).endswith(".json"):
        path: Any = Path(name)
        if not path.is_file():
            raise MissingInputError(f"{name}: there is no such recipe.")
    else:
        if str(name) not in list_recipes():
            raise UnknownNameError("recipe", str(name), list_recipes())
        path = resources.files("bindsearch.evaluate") / "recipes" / f"{name}.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise InputError(f"{name}: not valid JSON ({error}).") from error
    recipe = from_json_dict(Recipe, data, str(name))
    if recipe.task not in TASKS:
        raise UnknownNameError(f"task of {name}", recipe.task, TASKS)
    rows = recipe.modalities if recipe.task == "classify" else tuple(answer.name for answer in recipe.answers)
    for each in recipe.paper:
        if each.row not in rows:
            raise UnknownNameError(f"row of the paper in {name}", each.row, rows)
        if each.figure not in recipe.figures:
            raise UnknownNameError(f"figure of the paper in {name}", each.figure, recipe.figures)
    if not rows or (recipe.task == "classify" and not recipe.classes):
        wanted = "modalities and classes" if recipe.task == "classify" else "answers"
        raise InputError(f"{name}: a recipe of the task {recipe.task!r} needs {wanted}.")
    if len(recipe.needs) < NEEDS:
        raise InputError(
            f"{name}: needs: expected {NEEDS} entries, as every layout reads them, got {len(recipe.needs)}. Look at a "
            "bundled one: bindsearch evaluate --recipe esc50 --describe --json"
        )
    return recipe


def describe(recipe: Recipe) -> str:
    """Say what a recipe expects on disk, what it asks and what the paper says."""
    lines = [f"{recipe.name}: {recipe.title}", "", "On disk:"]
    for need in recipe.needs:
        lines += [f"  {' or '.join(need.any_of)}", f"      {need.what}. {need.where}"]
    lines += ["", "Test set: " + ", ".join(f"{count} {name}" for name, count in recipe.items.items())]
    if recipe.task == "classify":
        lines.append(f"Asked: {len(recipe.classes)} classes through the templates {recipe.templates!r}")
    else:
        lines.append("Asked: texts for " + "; ".join(_sum_of(answer) for answer in recipe.answers))
    lines += ["", "The paper says:"]
    lines += [f"  {each.row}: {each.figure} {each.value:.3f} ({each.source})" for each in recipe.paper]
    return "\n".join([*lines, *(["", "Notes:"] if recipe.notes else []), *(f"  {note}" for note in recipe.notes)])


def _sum_of(answer: Answer) -> str:
    return f"{answer.name} ({' + '.join(f'{weight:g} {name}' for name, weight in answer.weights.items())})"


def run_recipe(
    recipe: Recipe,
    data: Path,
    output: Path,
    space: Any,
    *,
    options: EmbedOptions | None = None,
    ties: str = "pessimistic",
    progress: bool = False,
) -> dict[str, Any]:
    """Run a benchmark.

    Args:
        recipe: which.
        data: its files, in the official layout.
        output: folder for what is prepared and embedded; a second run goes on there.
        space: from `load_space`, with the recipe's presets (see `space_for`).
        options: of the embedder.
        ties: see `metrics.TIES`.
        progress: draw a bar.

    Returns:
        Plain JSON types: recipe, title, space_id, presets, items (found and in the paper, by modality), bad, one record
        a row of figures, and `paper`: row, figure, paper, here with its interval, source.

    Raises:
        MissingInputError: files are missing; says what to download where.
        UnsupportedError: the space lacks a modality of the benchmark.
        UnknownNameError: no such rule for ties.
    """
    from bindsearch.evaluate.layouts import list_items

    check_ties(ties)
    check_space(recipe, space)
    recipe.check(data)
    output.mkdir(parents=True, exist_ok=True)
    manifest = output / "items.jsonl"
    items = list_items(recipe, data, output / "prepared")
    text = "".join(json.dumps(item, ensure_ascii=True) + "\n" for item in items)
    if not manifest.is_file() or manifest.read_text(encoding="utf-8") != text:
        manifest.write_text(text, encoding="utf-8")
    rows = embed_rows(manifest, output / "embeddings", space, options, progress)
    if recipe.task == "classify":
        found = _classify(recipe, rows, space, ties)
    else:
        _check_any(recipe, rows)
        found = {answer.name: measure_answer(rows, answer, recipe.ks, ties) for answer in recipe.answers}
    counts = {name: {"here": int(rows.where(name).size), "paper": count} for name, count in recipe.items.items()}
    return {
        "recipe": recipe.name,
        "title": recipe.title,
        "source": str(data),
        "space_id": rows.space_id,
        "presets": {name: space.preset_id(name) for name in (*recipe.modalities, "text")},
        "ties": ties,
        "items": counts,
        "bad": rows.bad,
        "rows": plain(found),
        "paper": _beside(recipe, found),
        "notes": list(recipe.notes),
    }


def check_space(recipe: Recipe, space: Any) -> None:
    """Refuse a space that cannot encode the benchmark.

    Raises:
        UnsupportedError: naming what it lacks.
    """
    lacking = [name for name in (*recipe.modalities, "text") if name not in space.modalities]
    if lacking:
        raise UnsupportedError(
            f"{recipe.title}: needs {', '.join((*recipe.modalities, 'text'))}; {space.space_id} has no "
            f"{' and no '.join(lacking)}. Take another: --space imagebind-huge"
        )


def presets_for(recipe: Recipe, wanted: str | None) -> str:
    """Give the preset to load a space with: the one wanted, and the recipe's own for the modalities that it names."""
    own = [f"{modality}={name}" for modality, name in recipe.presets.items() if f"{modality}=" not in (wanted or "")]
    return ",".join([wanted or "default", *own])


def _classify(recipe: Recipe, rows: Rows, space: Any, ties: str) -> dict[str, Any]:
    """Classify by prompts; one record a modality."""
    vectors = name_vectors(space, recipe.classes, load_prompts(recipe.templates))
    return {
        modality: measure_zero_shot(rows, modality, "label", recipe.classes, vectors, recipe.fold, ties)
        for modality in recipe.modalities
    }


def _check_any(recipe: Recipe, rows: Rows) -> None:
    """Refuse a run in which there is nothing to ask with, or nothing to find.

    Raises:
        MissingInputError: saying where the reasons are.
    """
    wanted = tuple(dict.fromkeys(name for answer in recipe.answers for name in answer.weights))
    if not rows.where("text").size or not np.isin(rows.modality, wanted).any():
        what = " or ".join(wanted) if rows.where("text").size else "text"
        raise MissingInputError(f"{rows.source}: no {what} could be embedded; see bad.jsonl there.")


def measure_answer(rows: Rows, answer: Answer, ks: Sequence[int], ties: str = "pessimistic") -> dict[str, Any]:
    """Measure text-to-X retrieval over things that may have several modalities, each text its own query.

    Args:
        rows: texts and answers; items of one "pair" are one thing. Not modified.
        answer: what a thing's vector is made of.
        ks: of recall_at_k.
        ties: see `metrics.TIES`.

    Returns:
        As `matrix.summarise`, with `missed`: queries whose thing has no vector; they stay in, as failures, so that a
        data set with holes cannot look better than a whole one. `partial`: things that lack one of several parts.
        Where no thing has a vector all are missed, and there is no median_rank.
    """
    value = codes(rows.column("pair"))
    texts = rows.where("text")
    things, gallery, partial = fuse(rows, value, answer.weights)
    of = value[texts]
    judged = judge(rows.vectors[texts], gallery, lambda block: of[block][:, None] == things[None], None, ties)
    record = summarise(judged, ks, "recall", of, 0, ranks=things.size > 0)
    return {
        "query": "text",
        "answer": answer.name,
        **record,
        "missed": int((judged.right == 0).sum()),
        "partial": partial,
    }


def fuse(
    rows: Rows, value: np.ndarray[Any, np.dtype[np.int64]], weights: Mapping[str, float]
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], FloatArray, int]:
    """Add up what each thing has of some modalities, weighted and normalised.

    Args:
        rows: the items. Not modified.
        value: (n,) int64: the thing that each item is of. Not modified.
        weights: modality -> weight.

    Returns:
        The things (t,) int64, their vectors (t, d) float32 unit rows, and how many lack one of the modalities.
    """
    things = np.unique(value[np.isin(rows.modality, list(weights))])
    total = np.zeros((things.size, rows.vectors.shape[1]))
    parts = np.zeros(things.size, dtype=np.int64)
    for modality, weight in weights.items():
        here = rows.where(modality)
        places = np.searchsorted(things, value[here])
        count = np.bincount(places, minlength=things.size)
        np.add.at(total, places, weight * rows.vectors[here].astype(np.float64) / np.maximum(count[places], 1)[:, None])
        parts += count > 0
    total /= np.linalg.norm(total, axis=1, keepdims=True)
    return things, total.astype(np.float32), int((parts < len(weights)).sum())


def _beside(recipe: Recipe, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Put the paper's figures beside those measured."""
    return [
        {
            "row": each.row,
            "figure": each.figure,
            "paper": each.value,
            "here": plain(found[each.row].get(each.figure)),
            "source": each.source,
        }
        for each in recipe.paper
    ]
