"""Hits to things people look at: a table, JSON, a page, a contact sheet, a notebook cell.

Every function takes Hits, or the Answers to many queries. Text from files, keys and captions is escaped for where it
goes: HTML by the template engine, the terminal by showing control characters.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
import sys
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindsearch.config import readable_json
from bindsearch.search import Answers, Hits, display_key
from bindsearch.search.hits import percent_text
from bindsearch.types import Hit

if TYPE_CHECKING:
    from PIL.Image import Image

    from bindsearch.preview import Panel, Preview
    from bindsearch.sheet import Tile

PAGE_BYTES = 32 << 20
"""Upper limit of the pictures and sounds on one page; what comes later is left out and says so."""
NOTEBOOK_BYTES = 6 << 20
_CAPTION_CELLS = 60
_LINE_CELLS = 160


def as_answers(found: Hits | Answers) -> Answers:
    """Give the answers to one query as the answers to a list of one."""
    return Answers((found,)) if isinstance(found, Hits) else found


# ---- JSON ------------------------------------------------------------------------------------------------------------


def to_json(found: Hits | Answers) -> str:
    """Write hits as JSON: a list of hits; for many queries a list of {"query": id, "hits": [...]}.

    Fields of a hit: rank, score (cosine), key, modality, source, start_s, end_s, id, then the other columns of the item
    table (attributes as an object), contributions where they were asked for, and what an arrangement adds: percentile,
    spans, duplicates, cursor. Many queries also have their plans, where they are to be explained.
    """
    answers = as_answers(found)
    lists = [hits.to_json(answers.explain) for hits in answers.hits]
    if not answers.many:
        return readable_json(lists[0], indent=1)
    named: list[dict[str, Any]] = []
    for hits, rows in zip(answers.hits, lists, strict=True):
        named.append({"query": hits.query_id, "hits": rows})
        if answers.explain:
            named[-1]["plans"] = [plan.to_json() for plan in hits.plans]
    return readable_json(named, indent=1)


# ---- the terminal ----------------------------------------------------------------------------------------------------


def to_table(found: Hits | Answers, explain: bool = False, width: int | None = None) -> str:
    """Write hits as lines for a terminal: rank, score, modality, key, caption.

    Args:
        found: the answers. Not modified.
        explain: add a line a hit that says what each term adds.
        width: columns of the terminal; None: those of the terminal, and no limit where stdout is none.
    """
    answers = as_answers(found)
    if width is None and sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
    bold = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    parts = []
    for hits in answers.hits:
        head = ""
        if answers.many:
            asked = visible(hits.query.describe() if hits.query is not None else "a vector")
            head = f"query {visible(str(hits.query_id))}: {asked}\n"
        parts.append(head + _table(hits, explain or answers.explain, width, bold))
    return "\n\n".join(parts)


def _table(hits: Hits, explain: bool, width: int | None, bold: bool) -> str:
    if not len(hits):
        return "no item passes"
    rows = [
        (
            f"{hit.rank}",
            _score_cell(hits, hit),
            hit.modality,
            visible(display_key(hit)),
            behind_words(hit) + visible(caption_of(hit)),
        )
        for hit in hits
    ]
    widths = [max(cells(row[column]) for row in rows) for column in range(4)]
    room = (width or _LINE_CELLS) - sum(widths) - 8
    if width is not None and room < 20:  # the key gives way, to half the line at most
        widths[3] = max(min(widths[3], width // 2), widths[3] + room - 20)
        room = width - sum(widths) - 8
    lines = []
    for hit, row in zip(hits, rows, strict=True):
        rank, score, modality, key, caption = row
        score = f"\x1b[1m{score}\x1b[0m" if bold else score
        key = pad(cut(key, widths[3]), widths[3])
        caption = cut(caption, max(0, min(room, _CAPTION_CELLS) if width is not None else _CAPTION_CELLS))
        lines.append(f"{rank:>{widths[0]}}  {score}  {pad(modality, widths[2])}  {key}  {caption}".rstrip())
        if explain and hit.contributions:
            added = "  ".join(f"{value:+.4f} {visible(name)}" for name, value in _parts(hits, hit))
            lines.append(f"{'':>{widths[0]}}  = {cut(added, width - widths[0] - 4) if width else added}")
    return "\n".join(lines)


def _score_cell(hits: Hits, hit: Hit) -> str:
    """Write a hit's score, behind its percentile where the answers are in that order."""
    if not hits.is_calibrated:
        return f"{hit.score:7.4f}"
    text = percent_text(hit.percentile)
    return f"{text + '%' if text else '-':>11} {hit.score:7.4f}"


def behind_words(hit: Hit) -> str:
    """Say what stands behind a hit: "[+3 spans, best 0.312 at 5-10 s] [hides 2] ", or nothing."""
    words = ""
    if hit.spans:
        best = hit.spans[0]
        where = f" at {best.span[0]:g}-{best.span[1]:g} s" if best.span else ""
        words += f"[+{len(hit.spans)} of its group, next {best.score:.3f}{where}] "
    if hit.duplicates:
        words += f"[hides {len(hit.duplicates)}] "
    return words


def _parts(hits: Hits, hit: Hit) -> list[tuple[str, float]]:
    """Name what each term adds to a hit's score, briefly: "image bird.jpg", "−text night"."""
    terms = hits.query.terms if hits.query is not None else ()
    names = [f"{'−' if term.weight < 0 else ''}{term.modality} {term.short}" for term in terms]
    return list(zip(names, hit.contributions.values(), strict=False))


def caption_of(hit: Hit) -> str:
    """Give the words that go with a hit: its caption, or nothing."""
    return str(hit.columns.get("caption") or "")


def visible(text: str) -> str:
    r"""Show control characters and lone surrogates as \xNN, so that a key or a caption cannot steer a terminal."""
    unsafe = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(
        char if unicodedata.category(char) not in unsafe else ascii(char)[1:-1] for char in text.replace("\n", " ")
    )


def cells(text: str) -> int:
    """Count the columns that a text takes in a terminal: wide characters two, combining marks none."""
    return sum(
        0 if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me") else
        2 if unicodedata.east_asian_width(char) in ("W", "F") else 1
        for char in text
    )  # fmt: skip


def cut(text: str, width: int) -> str:
    """Shorten a text to so many columns, with an ellipsis."""
    if cells(text) <= width:
        return text
    kept, used = "", 0
    for char in text:
        if used + cells(char) > width - 1:
            break
        kept, used = kept + char, used + cells(char)
    return f"{kept}…" if width > 0 else ""


def pad(text: str, width: int) -> str:
    """Fill a text with blanks to so many columns."""
    return text + " " * max(0, width - cells(text))


# ---- HTML ------------------------------------------------------------------------------------------------------------


def write_html(found: Hits | Answers, path: str | Path) -> Path:
    """Write a page: one file without anything outside it. Folders on the way are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page_html(found), encoding="utf-8", errors="backslashreplace")
    return path


def page_html(found: Hits | Answers, limit_bytes: int = PAGE_BYTES) -> str:
    """Make a page of the query with its terms and the hits with pictures, players, waves and lines."""
    answers = as_answers(found)
    named = [hits.query.describe() for hits in answers.hits if hits.query is not None]
    title = f"{named[0]:.80} — bindsearch" if named else "bindsearch"
    content = _content(answers, limit_bytes)
    return str(page_templates().get_template("page.html").render(title=title, body="hits.html", **content))


def notebook_html(hits: Hits, limit_bytes: int = NOTEBOOK_BYTES) -> str:
    """Make a fragment for a notebook cell; smaller than a page, so that notebooks stay light."""
    return str(page_templates().get_template("hits.html").render(**_content(Answers((hits,)), limit_bytes)))


@lru_cache(maxsize=1)
def page_templates() -> Any:
    """Give the templates of pages, with escaping on."""
    import jinja2

    folder = Path(__file__).parent / "pages"
    loader = jinja2.FileSystemLoader(folder)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)


@dataclass
class PageBudget:
    """Bytes that the page's pictures and sounds may still take, as they stand in it."""

    left: int

    def uri(self, data: bytes, kind: str) -> str | None:
        """Make a data URI, or None where the page is full."""
        head = f"data:{kind};base64,"
        size_bytes = len(head) + 4 * -(-len(data) // 3)
        if size_bytes > self.left:
            return None
        self.left -= size_bytes
        return head + base64.b64encode(data).decode("ascii")


def _content(answers: Answers, limit_bytes: int) -> dict[str, Any]:
    from markupsafe import Markup

    budget = PageBudget(limit_bytes)
    shown = [_answer(hits, answers, budget) for hits in answers.hits]
    css = (Path(__file__).parent / "pages" / "hits.css").read_text(encoding="utf-8")
    return {"answers": shown, "css": Markup(css)}  # noqa: S704  # our own file, no input in it


def _answer(hits: Hits, answers: Answers, budget: PageBudget) -> dict[str, Any]:
    from bindsearch.preview import preview_hits  # a table and JSON show no pictures and start without them

    best = max((abs(hit.score) for hit in hits), default=1.0) or 1.0
    rows = []
    for hit, shown in zip(hits, preview_hits(hits, hits.preset_ids, with_clip=True), strict=True):
        widest = max((abs(value) for value in hit.contributions.values()), default=1.0) or 1.0
        rows.append(
            {
                "rank": hit.rank,
                "score": f"{hit.score:.3f}",
                "exact": f"{hit.score:.7f}",
                "share": f"{max(0.0, hit.score) / best * 100:.1f}",
                "percentile": percent_text(hit.percentile),
                "behind": behind_words(hit).strip(),
                "key": visible(display_key(hit)),
                "source": visible(hit.source),
                "caption": caption_of(hit) if hit.modality != "text" else "",
                "view": page_view(shown, budget),
                "parts": [
                    {"name": name, "value": value, "width": f"{abs(value) / widest * 100:.0f}"}
                    for name, value in _parts(hits, hit)
                ]
                if answers.explain
                else [],
            }
        )
    return {
        "name": f"query {visible(str(hits.query_id))}" if answers.many else "",
        "terms": _terms(hits, budget),
        "facts": _facts(hits),
        "hits": rows,
    }


def _terms(hits: Hits, budget: PageBudget) -> list[dict[str, Any]]:
    terms = []
    for place, (term, view) in enumerate(term_previews(hits, with_clip=True)):
        terms.append(
            {
                "sign": "−" if term.weight < 0 else ("+" if place else ""),
                "weight": f"{abs(term.weight):g}" if abs(term.weight) != 1 else "",
                "label": "" if view.words and term.item_id is None else term.short,
                "view": page_view(view, budget),
            }
        )
    return terms


def term_previews(hits: Hits, with_clip: bool = False) -> list[tuple[Any, Preview]]:
    """Show the terms of the query of some hits: pairs of term and preview."""
    from bindsearch.preview import preview_hit, preview_term

    if hits.query is None:
        return []
    found = []
    for term in hits.query.terms:
        if term.item_id is not None and hits.has_item(term.item_id):  # shown as it is shown among the hits
            item = hits.item(term.item_id)
            found.append((term, preview_hit(item, hits.preset_ids, with_clip)))
        else:  # also an item of another index, or one that was removed
            found.append((term, preview_term(term, hits.query.identity.preset_ids, with_clip)))
    return found


def _facts(hits: Hits) -> str:
    manifest = hits.manifest
    counts = ", ".join(f"{count:,} {name}" for name, count in manifest.modalities.items())
    facts = f"{len(hits)} of {manifest.count:,} items ({counts}) · {hits.index_path} · {manifest.space_id}"
    scopes = [f"filter {plan.scope}: {plan.survivors:,} pass" for plan in hits.plans[:1] if plan.scope]
    return " · ".join([facts, *scopes, *hits.notes])


def page_view(shown: Preview, budget: PageBudget) -> dict[str, Any]:
    """Turn a preview into what the template writes down."""
    view: dict[str, Any] = {
        "title": shown.title,
        "modality": shown.modality,
        "words": shown.words,
        "note": shown.note,
        "trouble": shown.trouble,
        "panels": [_panel(panel) for panel in shown.panels],
        "picture": None,
        "sound": None,
        "video": None,
    }
    picture = None if shown.picture is None else _encode(shown.picture)
    left_out = []
    for name, data in (("picture", picture), ("video" if shown.modality == "video" else "sound", shown.clip)):
        if data is not None:
            view[name] = budget.uri(*data)
            left_out += [name] if view[name] is None else []
    if left_out:
        view["trouble"] = f"{' and '.join(left_out)} left out: the page is full"
    return view


def _encode(picture: Image) -> tuple[bytes, str]:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=84)
    return stream.getvalue(), "image/jpeg"


def _panel(panel: Panel) -> dict[str, Any]:
    """Turn curves into SVG paths on a canvas that is 100 high."""
    heights = 50 - 46 * panel.lines.astype(float)  # (curves, points)
    count = heights.shape[1]
    if panel.filled:
        low, high = heights
        points = [f"{x} {low[x]:.1f}" for x in range(count)] + [f"{x} {high[x]:.1f}" for x in reversed(range(count))]
        paths = [f"M{'L'.join(points)}Z"]
    else:
        paths = [f"M{'L'.join(f'{x} {line[x]:.1f}' for x in range(count))}" for line in heights]
    return {"name": panel.name, "width": max(count - 1, 1), "paths": paths, "filled": panel.filled}


# ---- the contact sheet -----------------------------------------------------------------------------------------------


def _tile_head(hit: Hit) -> str:
    """Write rank and score of a tile, with what the arrangement adds."""
    percentile = f"   {percent_text(hit.percentile)}%" if hit.percentile is not None else ""
    more = f"   +{len(hit.spans)}" if hit.spans else ""
    hidden = f"   hides {len(hit.duplicates)}" if hit.duplicates else ""
    return f"{hit.rank}   {hit.score:.3f}{percentile}{more}{hidden}"


def write_sheet(found: Hits | Answers, path: str | Path) -> Path:
    """Write a contact sheet, PNG or JPEG by its ending; see `sheet.contact_sheet`. Folders on the way are made.

    Raises:
        InputError: another ending.
    """
    from bindsearch.drawing import check_ending, save_picture
    from bindsearch.sheet import Row, contact_sheet, left_out, room_for

    check_ending(path)
    answers = as_answers(found)
    counts = [(len(hits.query.terms) if hits.query is not None else 0, len(hits)) for hits in answers.hits]
    rows = []
    for hits, room in zip(answers.hits, room_for(counts), strict=False):
        name = f"query {visible(str(hits.query_id))}: " if answers.many else ""
        title = name + (hits.query.describe() if hits.query is not None else "a vector")
        rows.append(Row(title, _term_tiles(hits), _hit_tiles(hits, room)))
    foot = (_facts(answers.hits[0]) if answers.hits else "") + left_out(counts)
    return save_picture(contact_sheet(rows, foot), path)


def _term_tiles(hits: Hits) -> list[Tile]:
    from bindsearch.sheet import Tile

    tiles = []
    for place, (term, shown) in enumerate(term_previews(hits)):
        sign = "− " if term.weight < 0 else ("+ " if place else "")
        weight = f"{abs(term.weight):g} × " if abs(term.weight) != 1 else ""
        label = "" if shown.words and term.item_id is None else term.short
        tiles.append(Tile(shown, f"{sign}{weight}{term.modality}", label))
    return tiles


def _hit_tiles(hits: Hits, most: int) -> list[Tile]:
    from bindsearch.preview import preview_hits
    from bindsearch.sheet import Tile

    best = list(hits)[:most]
    views = preview_hits(best, hits.preset_ids)
    return [Tile(shown, _tile_head(hit), visible(display_key(hit))) for hit, shown in zip(best, views, strict=True)]
