"""The contact sheet: a query's terms, then its hits, as tiles of one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bindsearch.drawing import draw_words, fit, font_for, font_of
from bindsearch.preview import Panel, Preview

if TYPE_CHECKING:
    from PIL.Image import Image

COLUMNS = 5
_TILE_PX, _PICTURE_PX, _GAP_PX, _EDGE_PX, _HEAD_PX = 220, 165, 14, 24, 34
_TEXT_PX = 46
_LINE_PX = _PICTURE_PX + _TEXT_PX + _GAP_PX
_LARGEST_PX = 30_000
_PAPER, _CARD, _WELL, _INK, _SOFT, _FRAME = "#f6f6f4", "#ffffff", "#ecedf0", "#1d1f23", "#6a6f78", "#d9dbdf"
_TERM = "#2f6fde"
_BADGES = {
    "image": "#2f6fde",
    "video": "#7a4fd0",
    "audio": "#c07a12",
    "text": "#4d5663",
    "depth": "#12877b",
    "thermal": "#c8453d",
    "imu": "#3f8a2f",
}
_LINES = ("#c8453d", "#3f8a2f", "#2f6fde")


@dataclass(frozen=True)
class Tile:
    """One picture with its two lines.

    Attributes:
        shown: what there is to see.
        head: rank and score, or sign, weight and modality.
        label: key, or name of the term.
    """

    shown: Preview
    head: str
    label: str


@dataclass(frozen=True)
class Row:
    """One query.

    Attributes:
        title: the query as a line.
        terms: its terms.
        hits: its answers, best first.
    """

    title: str
    terms: Sequence[Tile]
    hits: Sequence[Tile]


def contact_sheet(rows: Sequence[Row], foot: str = "", columns: int = COLUMNS) -> Image:
    """Draw queries and their answers.

    Args:
        rows: the queries. Not modified.
        foot: a line at the bottom.
        columns: tiles side by side.

    Returns:
        An RGB picture, at most 30,000 pixels high: of the first query that does not fit, the best answers that do are
        shown; the foot says how many answers and queries are left out.
    """
    from PIL import Image, ImageDraw

    step = _TILE_PX + _GAP_PX
    counts = [(len(row.terms), len(row.hits)) for row in rows]
    room, foot = room_for(counts, columns), foot + left_out(counts, columns)
    shown = [replace(row, hits=row.hits[:most]) for row, most in zip(rows, room, strict=False)]
    heights = [_height(len(row.terms), len(row.hits), columns) for row in shown]
    size = (2 * _EDGE_PX + columns * step - _GAP_PX, 2 * _EDGE_PX + sum(heights) + 18)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _EDGE_PX
    for row, height in zip(shown, heights, strict=True):
        draw.text((_EDGE_PX, top), fit(row.title, 17, size[0] - 2 * _EDGE_PX), _INK, font_for(row.title, 17, bold=True))
        below = top + _HEAD_PX + _lines(len(row.terms), columns) * _LINE_PX
        for tiles, first in ((row.terms, top + _HEAD_PX), (row.hits, below)):
            for number, tile in enumerate(tiles):
                at = (_EDGE_PX + number % columns * step, first + number // columns * _LINE_PX)
                _draw_tile(sheet, draw, tile, at, is_term=tiles is row.terms)
        top += height
    draw.text((_EDGE_PX, size[1] - _EDGE_PX - 8), fit(foot, 12, size[0] - 2 * _EDGE_PX), _SOFT, font_of(12))
    return sheet


def room_for(counts: Sequence[tuple[int, int]], columns: int = COLUMNS) -> list[int]:
    """Say how many answers of each query one sheet holds.

    Args:
        counts: of each query, its terms and its answers.
        columns: tiles side by side.

    Returns:
        One a query that has a place: all its answers; of the last, where not all fit, the best that do.
    """
    shown: list[int] = []
    room_px = _LARGEST_PX
    for terms, hits in counts:
        lines = (room_px - _height(terms, 0, columns)) // _LINE_PX
        if lines < min(_lines(hits, columns), 1):
            break
        shown.append(min(hits, lines * columns))
        room_px -= _height(terms, shown[-1], columns)
        if shown[-1] < hits:
            break
    return shown


def left_out(counts: Sequence[tuple[int, int]], columns: int = COLUMNS) -> str:
    """Say what `room_for` leaves out, for the foot of a sheet; nothing where all fits."""
    shown = room_for(counts, columns)
    answers = sum(hits for _, hits in counts[: len(shown)]) - sum(shown)
    words = f" · {answers} more answers are left out" if answers else ""
    return words + (f" · {len(counts) - len(shown)} more queries are left out" if len(shown) < len(counts) else "")


def _height(terms: int, hits: int, columns: int) -> int:
    return _HEAD_PX + (_lines(terms, columns) + _lines(hits, columns)) * _LINE_PX + _GAP_PX


def _lines(tiles: int, columns: int) -> int:
    return -(-tiles // columns)


def _draw_tile(sheet: Image, draw: Any, tile: Tile, at: tuple[int, int], is_term: bool) -> None:
    left, top = at
    shown = tile.shown
    box = (left, top, left + _TILE_PX - 1, top + _PICTURE_PX + _TEXT_PX - 1)
    draw.rounded_rectangle(box, 8, _CARD, _TERM if is_term else _FRAME, 3 if is_term else 1)
    inner = (left + 4, top + 4, left + _TILE_PX - 5, top + _PICTURE_PX - 1)
    draw.rectangle(inner, _WELL)
    if shown.trouble or (shown.picture is None and not shown.panels and not shown.words):
        draw_words(draw, shown.trouble or "nothing to show", inner, _SOFT, 12)
    elif shown.words:
        draw_words(draw, shown.words, inner, _INK, 15)
    else:
        _draw_media(sheet, draw, shown, inner)
    line = top + _PICTURE_PX + 4
    draw.text((left + 10, line), tile.head, _INK, font_of(13, bold=True))
    badge, font = shown.modality, font_of(11, bold=True)
    if not is_term:
        width = draw.textlength(badge, font)
        right = left + _TILE_PX - 9
        draw.rounded_rectangle((right - width - 10, line + 1, right, line + 16), 3, _BADGES.get(badge, _SOFT))
        draw.text((right - width - 5, line + 1), badge, _CARD, font)
    draw.text(
        (left + 10, line + 19), fit(tile.label, 12, _TILE_PX - 20, keep_end=True), _SOFT, font_for(tile.label, 12)
    )


def _draw_media(sheet: Image, draw: Any, shown: Preview, box: tuple[int, int, int, int]) -> None:
    """Draw a picture, curves, or a picture above curves."""
    left, top, right, bottom = box
    middle = bottom
    if shown.picture is not None:
        from PIL import Image as Pictures

        if shown.panels:
            middle = top + (bottom - top) * 62 // 100
            sheet.paste(shown.picture.resize((right - left + 1, middle - top)), (left, top))
        else:
            scale = min((right - left + 1) / shown.picture.width, (bottom - top + 1) / shown.picture.height)
            size = max(1, int(shown.picture.width * scale)), max(1, int(shown.picture.height * scale))
            small = shown.picture.resize(size, Pictures.Resampling.LANCZOS)
            sheet.paste(small, ((left + right + 1 - size[0]) // 2, (top + bottom + 1 - size[1]) // 2))
    if shown.panels:
        start = middle if shown.picture is not None else top
        share = (bottom - start + 1) // len(shown.panels)
        for number, panel in enumerate(shown.panels):
            _draw_panel(draw, panel, (left, start + number * share, right, start + (number + 1) * share - 1))


def _draw_panel(draw: Any, panel: Panel, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    middle, reach = (top + bottom) / 2, (bottom - top) / 2 * 0.9
    draw.line((left, middle, right, middle), _FRAME)
    count = panel.lines.shape[1]
    xs = [left + (right - left) * number / max(count - 1, 1) for number in range(count)]
    if panel.filled:
        for number, x in enumerate(xs):
            low, high = panel.lines[:, number].tolist()
            draw.line((x, middle - reach * high, x, middle - reach * low + 1), _BADGES["audio"])
        return
    for colour, line in zip(_LINES, panel.lines, strict=False):
        points = [(x, middle - reach * y) for x, y in zip(xs, line.tolist(), strict=True)]
        draw.line(points, colour, 1)
    draw.rectangle((left + 2, top + 1, left + 8 + draw.textlength(panel.name, font_of(10)), top + 14), _WELL)
    draw.text((left + 4, top + 1), panel.name, _SOFT, font_of(10))
