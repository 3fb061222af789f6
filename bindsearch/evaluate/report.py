"""Figures to things people read: text, a page, a heat map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from bindsearch.errors import InputError, MissingExtraError

Record = Mapping[str, Any]

PLOT_SUFFIXES = (".svg", ".png", ".pdf")


def tables(result: Record) -> list[dict[str, Any]]:
    """Lay a result out as tables, for the terminal and the page.

    Args:
        result: plain JSON types, from `run_recipe` or `evaluate_rows`.

    Returns:
        One record a table: title, head (n texts), rows (each n texts).
    """
    found = []
    if "paper" in result:
        head = ["row", "figure", "paper says", "here", "95 %", "queries"]
        found.append({"title": result["title"], "head": head, "rows": [_paper_row(each) for each in result["paper"]]})
        names = _figures(list(result["rows"].values()))
        rows = [[name, *_cells(record, names)] for name, record in result["rows"].items()]
        found.append({"title": "All figures", "head": ["row", "queries", *names], "rows": rows})
        counts = [[name, str(each["here"]), str(each["paper"])] for name, each in result["items"].items()]
        found.append({"title": "Items", "head": ["modality", "here", "paper"], "rows": counts})
        return found
    if result.get("pairs"):
        found.append(_matrix_table(f"Pairs by {result['pairs']['column']}", result["pairs"]["rows"]))
    for column, rows in result.get("labels", {}).items():
        found.append(_matrix_table(f"Best answers by {column}", rows))
    for column, rows in result.get("zero_shot", {}).items():
        names = _figures(rows)
        head = ["modality", "queries", "classes", *names]
        body = [[row["modality"], str(row["queries"]), str(row["classes"]), *_cells(row, names)[1:]] for row in rows]
        found.append({"title": f"Zero-shot: {column} by prompts", "head": head, "rows": body})
    return found


def _paper_row(each: Record) -> list[str]:
    here = each["here"]
    measured = ["not measured", "", ""] if here is None else [share(here), interval(here), str(here["n"])]
    return [each["row"], words(each["figure"]), f"{100 * each['paper']:.1f} %", *measured]


def _matrix_table(title: str, rows: Sequence[Record]) -> dict[str, Any]:
    names = _figures(rows)
    head = ["query", "answer", "queries", "gallery", *names, "chance"]
    body = []
    for row in rows:
        chance = next(f"{100 * row[name]:.2f} %" for name in row if name.startswith("chance_at_"))
        cells = _cells(row, names)
        body.append([row["query"], row["answer"], cells[0], str(row["gallery"]), *cells[1:], chance])
    return {"title": title, "head": head, "rows": body}


def _figures(rows: Sequence[Record]) -> list[str]:
    """Name the figures that any record has, in order."""
    return list(dict.fromkeys(name for row in rows for name, value in row.items() if _is_figure(value)))


def _is_figure(value: Any) -> bool:
    return isinstance(value, Mapping) and {"value", "low", "high", "n"} <= set(value)


def _cells(row: Record, names: Sequence[str]) -> list[str]:
    cells = [str(row["queries"])]
    for name in names:
        figure: Any = row.get(name)
        if not _is_figure(figure):
            cells.append("")
        elif name == "median_rank":
            cells.append(f"{figure['value']:g} ({figure['low']:g}–{figure['high']:g})")
        else:
            cells.append(f"{share(figure)} ({interval(figure)})")
    return cells


def share(figure: Record) -> str:
    """Write a share in percent."""
    return f"{100 * figure['value']:.1f} %"


def interval(figure: Record) -> str:
    """Write the ends of a share's interval in percent."""
    return f"{100 * figure['low']:.1f}–{100 * figure['high']:.1f}"


def words(name: str) -> str:
    """Write a figure's name for people: "recall_at_10" is "recall at 10"."""
    return name.replace("map", "mAP").replace("_", " ")


def to_text(result: Record) -> str:
    """Write a result as aligned tables."""
    parts = []
    for table in tables(result):
        rows = [[words(cell) for cell in table["head"]], *table["rows"]]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        parts.append("\n".join([table["title"], *lines]))
    return "\n\n".join([*parts, *_foot(result)])


def _foot(result: Record) -> list[str]:
    lines = [f"space {result['space_id']}; ties {result['ties']}; intervals of 95 %"]
    if result.get("bad"):
        lines.append(f"{result['bad']} inputs have no vector; see bad.jsonl beside the embeddings.")
    counted = [*result.get("rows", {}).items()]
    counted += [
        (f"{row['modality']} by {name}", row) for name, rows in result.get("zero_shot", {}).items() for row in rows
    ]
    lines += [
        f"{name}: {row['missed']} of {row['queries']} queries count as failures: they, or what they ask for, could "
        "not be embedded."
        for name, row in counted
        if row.get("missed")
    ]
    return ["\n".join([*lines, *(f"* {note}" for note in result.get("notes", ()))])]


def write_html(result: Record, path: Path) -> Path:
    """Write one page without anything outside: the tables, shaded by value, and how they were measured."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    source = (resources.files("bindsearch.evaluate") / "page.html").read_text(encoding="utf-8")
    shown = [{**table, "head": [words(cell) for cell in table["head"]]} for table in tables(result)]
    page = environment.from_string(source).render(
        title=result.get("title") or f"Evaluation of {result['source']}",
        tables=shown,
        grids=[_grid(*each) for each in grids(result)],
        foot="\n".join(_foot(result)),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def grids(result: Record) -> list[tuple[str, list[str], dict[tuple[str, str], float]]]:
    """Give the matrices of a result: title, modalities, (query, answer) -> the share at the smallest k."""
    wanted = [("pairs", result["pairs"]["column"], result["pairs"]["rows"])] if result.get("pairs") else []
    wanted += [("labels", column, rows) for column, rows in result.get("labels", {}).items()]
    found = []
    for kind, column, rows in wanted:
        prefix = "recall_at_" if kind == "pairs" else "accuracy_at_"
        name = next(name for name in rows[0] if name.startswith(prefix))
        values = {(row["query"], row["answer"]): float(row[name]["value"]) for row in rows}
        names = sorted({name for pair in values for name in pair})
        found.append((f"{words(name)}, {column}", names, values))
    return found


def _grid(title: str, names: list[str], values: Mapping[tuple[str, str], float]) -> dict[str, Any]:
    """Lay a matrix out for the page: rows of cells with a text and a shade of 0 to 1."""
    cells = [
        [
            {"text": f"{100 * values[q, a]:.1f}" if (q, a) in values else "", "shade": values.get((q, a), 0.0)}
            for a in names
        ]
        for q in names
    ]
    return {"title": title, "names": names, "rows": list(zip(names, cells, strict=True))}


def check_plot(path: Path, drawable: bool = True) -> None:
    """Refuse a plot that cannot be drawn, before anything is measured.

    Args:
        path: of the plot.
        drawable: whether what is asked gives a matrix or a recipe's figures.

    Raises:
        InputError: another suffix than PLOT_SUFFIXES, or nothing to draw.
        MissingExtraError: matplotlib is not installed.
    """
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise InputError(f"--plot {path}: expected a name that ends in {', '.join(PLOT_SUFFIXES)}.")
    if not drawable:
        raise InputError(f"--plot {path}: there is no matrix to draw. Name a --pair or a --label column.")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("matplotlib", "evaluate", "a plot") from error


def write_plot(result: Record, path: Path) -> Path:
    """Draw the matrices as heat maps, or a recipe's figures beside the paper's.

    Raises:
        As `check_plot`.
    """
    shown = grids(result)
    check_plot(path, bool("paper" in result or shown))
    import matplotlib as mpl
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "bindsearch"}):
        if "paper" in result:
            figure = Figure(figsize=(7, 0.6 + 0.45 * len(result["paper"])), layout="constrained")
            _draw_paper(figure.subplots(), result)
        else:
            figure = Figure(figsize=(4.6 * len(shown), 4.2), layout="constrained")
            for axes, grid in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
                _draw_grid(axes, *grid)
        figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
    return path


def _draw_grid(axes: Any, title: str, names: list[str], values: Mapping[tuple[str, str], float]) -> None:
    import numpy as np

    table = np.array([[values.get((query, answer), np.nan) for answer in names] for query in names])
    axes.imshow(table, vmin=0, vmax=1, cmap="viridis")
    for row, column in np.argwhere(np.isfinite(table)).tolist():
        value = table[row, column]
        axes.text(
            column, row, f"{100 * value:.0f}", ha="center", va="center", color="black" if value > 0.6 else "white"
        )
    axes.set_xticks(range(len(names)), names, rotation=45)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("answer")
    axes.set_ylabel("query")
    axes.set_title(title, fontsize=10)


def _draw_paper(axes: Any, result: Record) -> None:
    rows = [each for each in result["paper"] if each["here"] is not None]
    places = range(len(rows))
    here = [100 * each["here"]["value"] for each in rows]
    ends = [
        [100 * (each["here"]["value"] - each["here"]["low"]) for each in rows],
        [100 * (each["here"]["high"] - each["here"]["value"]) for each in rows],
    ]
    axes.barh([place - 0.2 for place in places], [100 * each["paper"] for each in rows], 0.38, label="paper says")
    axes.barh([place + 0.2 for place in places], here, 0.38, xerr=ends, capsize=2, label="here")
    axes.set_yticks(list(places), [f"{each['row']}, {words(each['figure'])}" for each in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("percent")
    axes.set_title(result["title"], fontsize=9)
    axes.legend(fontsize=8)
