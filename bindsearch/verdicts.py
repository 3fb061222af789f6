"""Verdicts to things people look at: a table, JSON, a page, a notebook cell."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindsearch.config import readable_json
from bindsearch.preview import Preview, preview_hits
from bindsearch.render import (
    NOTEBOOK_BYTES,
    PAGE_BYTES,
    PageBudget,
    cells,
    cut,
    pad,
    page_templates,
    page_view,
    visible,
)
from bindsearch.types import Hit, span_key
from bindsearch.zeroshot.label import MIXED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bindsearch.zeroshot.verdict import Verdict, Verdicts

PAGE_ITEMS = 200
"""Things on one page; of more the first are shown and the rest are counted."""
_KEY_CELLS, _LABEL_CELLS = 48, 32


def to_json(verdicts: Verdicts) -> str:
    """Write verdicts as JSON: a list of objects with key, modality, label, probability, score (cosine) and ranked."""
    return readable_json(verdicts.to_json(), indent=1)


def to_table(verdicts: Verdicts, limit: int | None = None) -> str:
    """Write one line a thing: key, modality, then its labels with their probabilities, the best first.

    Args:
        verdicts: Not modified.
        limit: lines to write; more are left out, and what every label got is counted below.
    """
    shown = verdicts if limit is None else verdicts.head(limit)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    rows = []
    for verdict in shown:
        ranked = [f"{share:.2f} {cut(visible(label), _LABEL_CELLS)}" for label, share, _ in verdict.ranked]
        rows.append([cut(visible(_name_of(verdict)), _KEY_CELLS), str(verdict.item["modality"]), *ranked])
    columns = max((len(row) for row in rows), default=0)
    widths = [max((cells(row[place]) for row in rows), default=0) for place in range(columns)]
    lines = ["  ".join(pad(text, wide) for text, wide in zip(row, widths, strict=True)).rstrip() for row in rows]
    if width:
        lines = [cut(line, width) for line in lines]
    if len(verdicts) > len(shown):
        counts = ", ".join(f"{visible(name)} {count}" for name, count in verdicts.counts().items())
        lines += [f"... and {len(verdicts) - len(shown)} more.", f"all {len(verdicts)}: {counts}"]
    return "\n".join(lines)


def write_html(verdicts: Verdicts, path: str | Path) -> Path:
    """Write a page: one file without anything outside it. Folders on the way are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page_html(verdicts), encoding="utf-8", errors="backslashreplace")
    return path


def page_html(verdicts: Verdicts, limit_bytes: int = PAGE_BYTES) -> str:
    """Make a page of the first PAGE_ITEMS things, each with its picture or player and its labels as bars."""
    content = _content(verdicts, limit_bytes)
    title = f"{len(verdicts)} classified — bindsearch"
    template = page_templates().get_template("page.html")
    return str(template.render(title=title, body="verdicts.html", **content))


def notebook_html(verdicts: Verdicts, limit_bytes: int = NOTEBOOK_BYTES) -> str:
    """Make a fragment for a notebook cell."""
    return str(page_templates().get_template("verdicts.html").render(**_content(verdicts.head(24), limit_bytes)))


def _content(verdicts: Verdicts, limit_bytes: int) -> dict[str, Any]:
    from markupsafe import Markup

    css = (Path(__file__).parent / "pages" / "hits.css").read_text(encoding="utf-8")
    budget = PageBudget(limit_bytes)
    first = verdicts.head(PAGE_ITEMS)
    shown = [_shown(verdict, view, budget) for verdict, view in zip(first, _previews(first), strict=True)]
    return {
        "answers": [],
        "css": Markup(css),  # noqa: S704  # our own file, no input in it
        "facts": _facts(verdicts, len(shown)),
        "counts": [(visible(name), count) for name, count in verdicts.counts().items()] if len(verdicts) > 1 else [],
        "verdicts": shown,
    }


def _shown(verdict: Verdict, view: Preview, budget: PageBudget) -> dict[str, Any]:
    ranked = [
        {
            "label": visible(label),
            "share": f"{share:.2f}",
            "width": f"{share * 100:.1f}",
            "title": "" if score is None else f"cosine {score:.4f}",
        }
        for label, share, score in verdict.ranked
    ]
    return {
        "label": visible(verdict.label),
        "share": f"{verdict.probability:.2f}",
        "exact": f"{verdict.probability:.6f}",
        "key": visible(_name_of(verdict)),
        "source": visible(str(verdict.item.get("source") or "")),
        "view": page_view(view, budget),
        "ranked": ranked,
    }


def _previews(verdicts: Verdicts) -> Iterator[Preview]:
    """Show things in order: what lies in files as hits are shown, mixtures and bare texts by their names."""
    views = preview_hits([_hit_of(each) for each in verdicts if _has_file(each)], verdicts.preset_ids, with_clip=True)
    for each in verdicts:
        yield next(views) if _has_file(each) else Preview(each.key, str(each.item["modality"]), words=each.key)


def _has_file(verdict: Verdict) -> bool:
    return verdict.item["modality"] != MIXED and bool(verdict.item.get("source"))


def _hit_of(verdict: Verdict) -> Hit:
    item = verdict.item
    span = (float(item["start_s"]), float(item["end_s"])) if item.get("start_s") is not None else None
    columns = {name: item.get(name) for name in ("member", "caption")}
    return Hit(1, verdict.probability, 0, verdict.key, str(item["modality"]), str(item["source"]), span, columns)


def _facts(verdicts: Verdicts, shown: int) -> str:
    if "probe" in verdicts.facts:
        count = f"{shown} of {len(verdicts):,} items"
        return (
            f"{count} · {verdicts.facts['space']} · a linear probe of {verdicts.facts['probe'].get('items')} examples"
        )
    fitted = sorted(name for name, scale in verdicts.facts.get("scales", {}).items() if scale["calibrated"])
    how = f"calibrated for {', '.join(fitted)}" if fitted else "not calibrated"
    count = f"{shown} of {len(verdicts):,} items" if shown < len(verdicts) else f"{len(verdicts):,} items"
    return f"{count} · {verdicts.facts.get('space', '')} · prompts {verdicts.facts.get('templates', '')} · {how}"


def _name_of(verdict: Verdict) -> str:
    """Name a thing as people know it, with its span where it has one."""
    item = verdict.item
    if item.get("start_s") is None:
        return verdict.key
    return span_key(verdict.key, (item["start_s"], item["end_s"]))
