"""Evaluate embeddings, a manifest or a folder: everything that their columns allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindsearch.errors import InputError, MismatchError, MissingInputError
from bindsearch.evaluate.matrix import measure_labels, measure_pairs, plain
from bindsearch.evaluate.metrics import check_ties
from bindsearch.evaluate.rows import Rows, embed_rows, is_store, read_rows
from bindsearch.evaluate.zero_shot import ClassName, labels_of, load_prompts, measure_zero_shot, name_vectors
from bindsearch.makers import maker_of
from bindsearch.truth import named_rows

if TYPE_CHECKING:
    from bindsearch.embed import EmbedOptions
    from bindsearch.truth import Named
    from bindsearch.zeroshot.prompts import Templates


@dataclass(frozen=True)
class Question:
    """What to measure.

    Attributes:
        pair: column whose equal values make a pair; None: "pair" or "group", where there is one.
        labels: columns: does the best answer share the value.
        zero_shot: columns whose values are class names, found by prompts.
        templates: see `zero_shot.load_prompts`; None: clip80.
        ks: of recall_at_k.
        ties: see `metrics.TIES`.
        drop_own: what is paired with the query is no answer when labels are measured.
        table, on: a table of further columns, and which of them names the items; see `Rows.joined`.
    """

    pair: str | None = None
    labels: tuple[str, ...] = ()
    zero_shot: tuple[str, ...] = ()
    templates: str | None = None
    ks: tuple[int, ...] = (1, 5, 10)
    ties: str = "pessimistic"
    drop_own: bool = False
    table: Path | None = None
    on: str | None = None

    @cached_property
    def named(self) -> Named | None:
        """What the table says of each name, read once; None without a table."""
        return None if self.table is None else named_rows(self.table, self.on)

    @cached_property
    def prompts(self) -> Templates:
        """The templates, read once."""
        return load_prompts(self.templates or "clip80")

    def check(self) -> None:
        """Refuse what no rows could answer, before any are embedded.

        Raises:
            UnknownNameError: no such rule for ties, prompts, or column that names the items.
            MissingInputError: no such table.
            InputError: the table or the prompts cannot be read, or an option belongs to one that is not there.
        """
        check_ties(self.ties)
        if self.zero_shot:
            _ = self.prompts
        elif self.templates is not None:
            raise InputError(f"--templates {self.templates} is for --zero-shot COLUMN, and none is given.")
        if self.table is not None:
            _ = self.named
        elif self.on is not None:
            raise InputError(f"--on {self.on} names a column of a table, and none is given. Add --table labels.csv")
        if self.drop_own and not self.labels:
            raise InputError("--drop-own is for labels, and none are asked for. Add --label COLUMN")


def open_rows(
    source: Path,
    output: Path | None,
    load: Callable[[], Any],
    options: EmbedOptions | None = None,
    progress: bool = False,
) -> Rows:
    """Read embeddings, or embed a manifest or folder first.

    Args:
        source: embeddings, a manifest, or a folder of media.
        output: folder for the embeddings of a manifest or folder; under it `embeddings`.
        load: gives the space; called only where something must be embedded.
        options: of the embedder.
        progress: draw a bar.

    Raises:
        InputError: something must be embedded and no output is named.
        MissingInputError: there is no such source.
    """
    if is_store(source):
        return read_rows(source)
    if output is None:
        if not (source.exists() or maker_of(str(source)) or str(source).startswith("@")):
            raise MissingInputError(f"{source}: no such file or folder.")
        raise InputError(f"{source}: holds no embeddings. Name a folder to embed it into: -o runs/NAME")
    return embed_rows(source, output / "embeddings", load(), options, progress)


def evaluate_rows(rows: Rows, question: Question, load: Callable[[], Any]) -> dict[str, Any]:
    """Measure what is asked.

    Args:
        rows: what is embedded. Not modified.
        question: what to measure.
        load: gives the space, for prompts.

    Returns:
        Plain JSON types: source, space_id, ties, items, bad; pairs (column, rows), labels and zero_shot (column ->
        rows) where they were asked for.

    Raises:
        InputError: there is nothing to measure.
        MismatchError: the space that `load` gives is not the one of the embeddings.
        UnknownNameError: no such column.
    """
    if question.table is not None:
        rows = rows.joined(question.table, question.on, question.named)
    pair = rows.pair_column(question.pair)
    if pair is None and not question.labels and not question.zero_shot:
        raise InputError(
            f"{rows.source}: no column says what belongs together. Name one with --pair, --label or --zero-shot; "
            f"there are: {', '.join(sorted(rows.columns))}."
        )
    result: dict[str, Any] = {
        "source": rows.source,
        "space_id": rows.space_id,
        "ties": question.ties,
        "items": {modality: int(rows.where(modality).size) for modality in rows.modalities},
        "bad": rows.bad,
    }
    if question.pair is not None or (pair is not None and not question.labels and not question.zero_shot):
        result["pairs"] = {"column": pair, "rows": plain(measure_pairs(rows, str(pair), question.ks, question.ties))}
    if question.drop_own and pair is None:
        raise InputError(f"{rows.source}: --drop-own needs a column of pairs. Name it: --pair COLUMN")
    own = pair if question.drop_own else None
    if question.labels:
        result["labels"] = {
            column: plain(measure_labels(rows, column, own, question.ks[:1], question.ties))
            for column in question.labels
        }
    if question.zero_shot:
        result["zero_shot"] = _zero_shot(rows, question, load())
    return result


def _zero_shot(rows: Rows, question: Question, space: Any) -> dict[str, Any]:
    """Classify every modality but text by prompts made of the labels' own words.

    Raises:
        MismatchError: the prompts would be in another space.
        InputError: a column without a value, or that text alone has.
    """
    if space.space_id != rows.space_id:
        raise MismatchError(
            f"{rows.source}: made with space {rows.space_id}, the prompts would come from {space.space_id}. "
            f"Type: --space {rows.space_name}"
        )
    found: dict[str, Any] = {}
    for column in question.zero_shot:
        given = rows.column(column)
        labels = sorted({label for value in given for label in labels_of(value)})
        if not labels:
            raise InputError(f"{rows.source}: the column {column!r} holds no value.")
        having = [name for name in rows.modalities if any(labels_of(given[place]) for place in rows.where(name))]
        if having == ["text"]:
            raise InputError(
                f"{rows.source}: only items of the modality text have a value of {column!r}, and text is not "
                f"classified. Give the others that column (--table labels.csv), or measure texts: --label {column}"
            )
        classes = [ClassName.of_label(label) for label in labels]
        vectors = name_vectors(space, classes, question.prompts)
        found[column] = [
            plain(measure_zero_shot(rows, modality, column, classes, vectors, None, question.ties))
            for modality in having
            if modality != "text"
        ]
    return found
