"""Naming things: classify (labels in words), probe (labels from examples)."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bindsearch.cli.disk import file_to_write, labels_to_write, probe_to_write
from bindsearch.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    PresetOption,
    SpaceOption,
    WholeHelp,
    make_group,
    medium_options,
    open_space,
    print_json,
    say,
    with_options,
)
from bindsearch.errors import InputError, TooManyBadError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bindsearch.probe import Curve
    from bindsearch.store import EmbeddingStore
    from bindsearch.zeroshot import Classifier, Verdicts


class RunFirst(WholeHelp):
    """`bindsearch classify --audio x.wav ...` means `bindsearch classify run --audio x.wav ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` in front when the first word is no subcommand."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


classify_app = make_group(
    "Say which of your labels fits a file, a text or a whole folder of embeddings; no training.", RunFirst
)

LabelsOption = Annotated[
    str,
    typer.Option(
        "--labels",
        help="Labels with commas between, or @FILE: one a line, or JSON with the phrases that stand for each.",
    ),
]
TemplatesOption = Annotated[
    str, typer.Option("--templates", help="Prompts that labels are put into: plain, sound, clip80, world, or a file.")
]
OnlyOption = Annotated[str | None, typer.Option("--only", help="Take the items of this modality alone.")]
TruthOption = Annotated[
    Path | None,
    typer.Option("--truth", help="Table of true labels (csv, jsonl, parquet); default: the items' own attributes."),
]
ColumnOption = Annotated[str, typer.Option("--column", help="Column that holds the true label.")]
SHOWN = 20
SHOTS, REPEATS, TEST_SHARE = "1,2,4,8", 5, 0.5


@classify_app.command("run")
def classify_run(
    labels: LabelsOption,
    embeddings: Annotated[
        Path | None, typer.Argument(help="Folder that `bindsearch embed` wrote; or give files by the options below.")
    ] = None,
    templates: TemplatesOption = "plain",
    none: Annotated[
        bool, typer.Option("--none", help="Allow the answer 'none of these'; --calibration says when it is given.")
    ] = False,
    none_below: Annotated[
        float | None,
        typer.Option(help="As --none, given where no label reaches this cosine; instead of a calibration."),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="File that `bindsearch classify calibrate` wrote, for honest probabilities.")
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="Add the files and texts up to one; bird.jpg@0.3 is a weight.")
    ] = False,
    top: Annotated[int, typer.Option("--top", min=1, help="Labels to show an item.")] = 3,
    only: OnlyOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", callback=labels_to_write, help="Write a row an item: .parquet, .csv or .jsonl."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", callback=file_to_write, help="Write a page with pictures and players.")
    ] = None,
    space: SpaceOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    preset: PresetOption = None,
    as_json: JsonOption = False,
    **things: list[str],
) -> None:
    """Say which label fits each thing best, and how likely: `bindsearch classify --audio x.wav --labels bird,rain`.

    Without `run` it is the same command. A probability is the softmax of the cosines times the modality's scale.
    """
    from bindsearch.query import parse_terms
    from bindsearch.zeroshot import build_classifier, classify_store, classify_terms, load_calibration, read_labels
    from bindsearch.zeroshot.label import taken_as

    specs = parse_terms([(name, text) for name, texts in things.items() for text in texts or ()])
    if (embeddings is None) == (not specs):
        raise InputError("name either a folder of embeddings, or files by --image, --audio, ...: one of the two.")
    if embeddings is not None and together:
        raise InputError(f"--together adds up files and texts; of {embeddings} every item has its own labels.")
    if embeddings is None and only is not None:
        raise InputError(f"--only {only} chooses among the items of a folder of embeddings, and files are given.")
    fitted = load_calibration(calibration) if calibration is not None else None
    chosen = read_labels(labels)
    may_be_none = none_below if none_below is not None else none

    def build(opened: Any, modalities: tuple[str, ...], mixed: bool = False) -> Classifier:
        made = build_classifier(opened, chosen, templates, modalities=modalities, none=may_be_none, calibration=fitted)
        _say_doubts(made, (taken_as(modalities),) if mixed else modalities)
        return made

    if embeddings is None:
        opened = open_space(space, device, dtype, preset)
        classifier = build(opened, tuple(dict.fromkeys(spec.kind for spec in specs)), together)
        verdicts = classify_terms(classifier, opened, specs, together, top)
    else:
        verdicts = classify_store(
            embeddings,
            lambda store: build(
                _space_of(store, space, device, dtype, preset), (only,) if only else tuple(store.manifest.counts)
            ),
            modality=only,
            top=top,
        )
    _show(verdicts, output, html, as_json, whole=embeddings is None)


def _show(verdicts: Verdicts, output: Path | None, html: Path | None, as_json: bool, whole: bool) -> None:
    from bindsearch import verdicts as shown
    from bindsearch.zeroshot.tables import write_labels

    if output is not None:
        say(f"wrote {len(verdicts)} rows to {write_labels(verdicts, output)}")
    if html is not None:
        say(f"wrote {shown.write_html(verdicts, html)}")
    if as_json:
        typer.echo(shown.to_json(verdicts))
    else:
        typer.echo(shown.to_table(verdicts, None if whole else SHOWN))
    for name, reason in verdicts.bad:
        say(f"{name}: {reason}. Left out.")
    if verdicts.bad:
        raise TooManyBadError(f"{len(verdicts.bad)} of {len(verdicts.bad) + len(verdicts)} things cannot be read.")


def _say_doubts(classifier: Classifier, modalities: tuple[str, ...]) -> None:
    """Say what the probabilities do not tell."""
    from bindsearch.zeroshot.label import MIXED

    fitted = classifier.calibration
    if fitted is not None:
        missing = ["several modalities taken together" if name == MIXED else name for name in modalities]
        missing = [name for name in missing if name not in fitted.fits]
        if missing:
            say(f"note: the calibration has no fit for {', '.join(missing)}; their probabilities are as trained.")
        if fitted.templates != classifier.templates:
            say(f"note: calibrated with prompts {fitted.templates}, these are {classifier.templates}.")
        if set(fitted.labels) != set(classifier.labels):
            say(f"note: calibrated with other labels: {', '.join(fitted.labels):.100}; probabilities may be off.")
    if classifier.with_none and any(classifier.none_of(name) is None for name in modalities):
        calibrate = "" if MIXED in modalities else "see `bindsearch classify calibrate`, or "
        say(f"note: --none without a calibration goes by doubt alone and misses most; {calibrate}give --none-below.")


@classify_app.command("calibrate")
def classify_calibrate(
    embeddings: Annotated[Path, typer.Argument(help="Folder of embeddings of items whose label is known.")],
    labels: LabelsOption,
    column: ColumnOption,
    output: Annotated[Path, typer.Option("--output", "-o", callback=file_to_write, help="The calibration, as JSON.")],
    truth: TruthOption = None,
    templates: TemplatesOption = "plain",
    none_share: Annotated[
        float, typer.Option(help="Share of items that are none of the labels where you will use it.")
    ] = 0.5,
    only: OnlyOption = None,
    space: SpaceOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    preset: PresetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit the probabilities on items whose label is known, and say how far they were off before and after.

    A few hundred items a modality will do; labels of the table that are not among --labels count as none of them.
    """
    import numpy as np

    from bindsearch.store import open_store
    from bindsearch.truth import truth_of
    from bindsearch.zeroshot import build_classifier, calibrate, read_labels, save_calibration
    from bindsearch.zeroshot.label import item_blocks

    store = open_store(embeddings)
    blocks = list(item_blocks(store, None if only is None else (only,)))
    records = [record for _, table in blocks for record in table.to_pylist()]
    known = truth_of(records, column, truth)
    opened = _space_of(store, space, device, dtype, preset)
    kinds = tuple(store.manifest.counts)
    classifier = build_classifier(opened, read_labels(labels), templates, modalities=kinds)
    classifier.check(store.manifest.identity, str(store.path))
    _say_unmatched(classifier.labels, known)
    rows = np.concatenate([part for part, _ in blocks])
    fitted = calibrate(classifier, rows, [record["modality"] for record in records], known, none_share)
    say(f"wrote {save_calibration(fitted, output)}")
    if as_json:
        from bindsearch.zeroshot.calibration import quality_table

        print_json(quality_table(fitted))
        return
    typer.echo("modality   items  accuracy  calibration error   scale  with none: accuracy  error  cosine")
    for name, fit in fitted.fits.items():
        last = ""
        if fit.none_after is not None and fit.none_score is not None:
            last = f"{fit.none_after.accuracy:20.3f}  {fit.none_after.ece:5.3f}  {fit.none_score:6.3f}"
        typer.echo(
            f"{name:<8} {fit.items:>7}  {fit.after.accuracy:8.3f}  {fit.before.ece:7.3f} -> {fit.after.ece:5.3f}   "
            f"{fit.scale:5.1f}  {last}".rstrip()
        )


def _say_unmatched(labels: Sequence[str], known: Sequence[str | None]) -> None:
    """Say which of the labels no item has, and how many items count as none of them: perhaps a word is misspelt."""
    counts = Counter(label for label in known if label is not None)
    unseen = [label for label in labels if label not in counts]
    others = {label: count for label, count in counts.items() if label not in labels}
    if unseen:
        say(f"note: no item has {', '.join(map(repr, unseen)):.200}.")
    if others:
        named = ", ".join(map(repr, others))
        say(f"note: {sum(others.values())} items count as none of these; they are {named:.200}.")


@classify_app.command("templates")
def classify_templates(
    name: Annotated[str | None, typer.Argument(help="A set, or a file; without one the sets are listed.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the sets of prompts, or show one."""
    from bindsearch.zeroshot import list_templates, load_templates

    sets = [load_templates(each) for each in ([name] if name else list_templates())]
    if as_json:
        print_json([dataclasses.asdict(each) for each in sets])
    elif name:
        typer.echo("\n".join(sets[0].templates))
    else:
        for each in sets:
            typer.echo(f"{each.name:<14} {len(each.templates):>3}  {each.language:<8} {each.templates[-1]}")


def _space_of(
    store: EmbeddingStore, space: str | None, device: str | None, dtype: str | None, preset: str | None
) -> Any:
    """Load the space that a store was made with."""
    from bindsearch.store import UNKNOWN

    known = store.manifest
    if space is None and known.space_id == UNKNOWN:
        raise InputError(
            f"{store.path}: nobody says which space its vectors are in. Say it when you import them: bindsearch import "
            "... --space-id NAME@HASH"
        )
    return open_space(space, device, dtype, preset or dict(known.preset_ids), recorded=known.space_name)


def probe(
    embeddings: Annotated[Path, typer.Argument(help="Folder that `bindsearch embed` wrote.")],
    column: Annotated[str | None, typer.Option("--column", help="Column that holds the label.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="Table of labels (csv, jsonl, parquet); default: the items' own attributes."),
    ] = None,
    shots: Annotated[
        str | None, typer.Option("--shots", help="Examples a label, with commas between; default: 1,2,4,8.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option("--repeats", min=1, help="Draws of examples for each number; default: 5.")
    ] = None,
    test_share: Annotated[
        float | None, typer.Option(help="Share of the items that only test, the same for all draws; default: 0.5.")
    ] = None,
    inverse_penalty: Annotated[
        float | None, typer.Option("--c", help="Inverse of the penalty on weights; default: 1000.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the draws; default: 0.")] = None,
    only: OnlyOption = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", callback=file_to_write, help="Draw the curve: .svg, .png or .pdf.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save", callback=probe_to_write, help="Fit on all labelled items and write the probe: .npz or .json."
        ),
    ] = None,
    apply: Annotated[
        Path | None, typer.Option("--apply", help="Label the items with a saved probe instead of measuring.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", callback=labels_to_write, help="With --apply: a row an item, .parquet, .csv or .jsonl."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", callback=file_to_write, help="With --apply: a page with pictures and players."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Learn labels from a few examples: a linear classifier on embeddings that stay as they are.

    Says how often it is right with 1, 2, 4 and 8 examples a label, on items that it did not learn from.
    """
    from bindsearch.evaluate.report import check_plot
    from bindsearch.probe import INVERSE_PENALTY, apply_probe, load_probe, plot_curves, read_labelled, save_probe

    if apply is not None:
        measuring = {"--column": column, "--labels": labels, "--plot": plot, "--save": save, "--c": inverse_penalty}
        measuring |= {"--shots": shots, "--repeats": repeats, "--test-share": test_share, "--seed": seed}
        if given := [name for name, value in measuring.items() if value is not None]:
            raise InputError(f"--apply labels with a probe that exists; {', '.join(given)} measures or makes one.")
        verdicts = apply_probe(embeddings, load_probe(apply), modality=only)
        _show(verdicts, output, html, as_json, whole=False)
        _say_left(verdicts, apply)
        return
    if output is not None or html is not None:
        raise InputError("--output and --html belong to --apply: fit a probe with --save, then label with --apply.")
    if column is None:
        raise InputError(
            "--column: name the column that holds the label, of --labels TABLE or of the items themselves."
        )
    if plot is not None:
        check_plot(plot)
    penalty = INVERSE_PENALTY if inverse_penalty is None else inverse_penalty
    known = read_labelled(embeddings, column, labels, only)
    draws = _numbers(shots or SHOTS), repeats or REPEATS, TEST_SHARE if test_share is None else test_share
    curves, without = known.curves(*draws, penalty, seed or 0)
    if save is not None:
        say(f"wrote {save_probe(known.fit(column, penalty), save)}")
    if plot is not None:
        say(f"wrote {plot_curves(curves, plot, f'{column}, {known.store.manifest.space_id}')}")
    _show_curves(curves, without, as_json)


def _show_curves(curves: Mapping[str, Curve], without: Mapping[str, str], as_json: bool) -> None:
    """Print the curves; say what has none, or no figure at some number of shots."""
    for name, reason in without.items():
        say(f"note: {name} is not measured: {reason}")
    for name, curve in curves.items():
        if curve.left_out:
            numbers = ", ".join(str(shots) for shots, _ in curve.left_out)
            say(f"note: {name}: {numbers} shots are left out, {curve.left_out[0][1]!r} has too few examples.")
    if as_json:
        print_json({name: curve.to_json() for name, curve in curves.items()})
        return
    for name, curve in curves.items():
        typer.echo(
            f"{name}: {curve.labels} labels, tested on {curve.tested} of {curve.items}; chance {curve.chance:.3f}"
        )
        for cell in curve.cells:
            spread = f"± {cell.deviation:.3f} over {len(cell.draws)} draws"
            typer.echo(f"  {cell.shots:>3} a label  {cell.mean:.3f} {spread}")


def _say_left(verdicts: Verdicts, path: Path) -> None:
    """Say what a probe left without a label, and what could not be checked."""
    seen = ", ".join(verdicts.facts["modalities"])
    for name, count in verdicts.facts["left"].items():
        say(f"note: {count} items of {name} have no label: {path} was fitted on {seen}. Label them too: --only {name}")
    if verdicts.facts["unchecked"]:
        names = ", ".join(verdicts.facts["unchecked"])
        say(f"note: {path} does not say which tower of {names} it was fitted with; only the space was compared.")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise InputError(f"--shots {text}: expected whole numbers with commas between, such as 1,2,4,8.") from error


with_options(classify_run, medium_options(" to classify; repeatable."))
