"""A scene in all its modalities, for people: a contact sheet (PNG, JPEG), or a page that plays (HTML)."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bindsearch.drawing import (
    FAR,
    HEAT,
    PICTURE_ENDINGS,
    apply_palette,
    draw_words,
    font_of,
    save_picture,
    spectrogram,
)
from bindsearch.errors import InputError
from bindsearch.world.files import IMU_STEPS, RATES, encode, from_levels, render_values
from bindsearch.world.scene import Scenes, sample

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE_PX = 192
MOST = 100
"""Scenes of one view."""
STRIP = (4, 2)
"""Frames of the strip, across and down: every second one of the clip."""
ENDINGS = (*PICTURE_ENDINGS, ".html")
_GAP_PX, _EDGE_PX, _HEAD_PX, _BAR_PX = 10, 20, 30, 18
_PAPER, _CARD, _INK, _SOFT, _LINE = "#f6f6f4", "#ffffff", "#1d1f23", "#6a6f78", "#d9dbdf"
_AXES = ("#c8453d", "#3f8a2f", "#2f6fde")
_NOTHING = (150, 150, 156)
_TALLEST_PX = 65500
"""Of a JPEG: what libjpeg writes at most."""
_COLOURS = 128  # of a PNG: a third of the bytes, and no difference to the eye


@dataclass(frozen=True)
class SceneView:
    """One scene, rendered in every modality.

    Attributes:
        label: its attributes by name.
        captions: English, German.
        image: (H, W, 3) uint8.
        frames: (T, H, W, 3) uint8.
        wave: (T,) int16.
        metres: (H, W) float32, 0 where nothing came back.
        degrees_c: (H, W) float32.
        imu: (6, T) float64 in m/s^2 and rad/s.
        points: (P, 3) float32 metres: x right, y down, z away.
    """

    label: dict[str, Any]
    captions: tuple[str, str]
    image: NDArray[np.uint8]
    frames: NDArray[np.uint8]
    wave: NDArray[np.int16]
    metres: NDArray[np.float32]
    degrees_c: NDArray[np.float32]
    imu: NDArray[np.float64]
    points: NDArray[np.float32]

    @property
    def title(self) -> tuple[str, str, str]:
        """Name what a person should see: the subjects, the setting and the motion, then the rest."""
        of = self.label
        count = {"two": "two × ", "three": "three × "}.get(of["count"] or "", "")
        what = f"{count}{of['subject']}" if of["subject"] else "no subject"
        place = ", ".join(part for part in (of["setting"] or "no setting", of["motion"]) if part)
        rest = [of["colour"], of["size"], of["place"], of["light"], f"seen {of['view']}"]
        return what, place, ", ".join(part for part in rest if part)


def render_views(scenes: Scenes, size_px: int = SIZE_PX) -> list[SceneView]:
    """Render scenes in every modality.

    Args:
        scenes: n scenes.
        size_px: side of pictures and frames; even.
    """
    of = {name: render_values(scenes, name, size_px) for name in ("image", "video", "audio", "depth", "thermal")}
    of |= {name: render_values(scenes, name, size_px) for name in ("imu", "points")}
    english, german = (render_values(scenes, "text", size_px, language) for language in ("english", "german"))
    return [
        SceneView(
            label,
            (english[row], german[row]),
            of["image"][row],
            of["video"][row],
            of["audio"][row],
            of["depth"][row].astype(np.float32) / 1000,
            from_levels(of["thermal"][row]),
            of["imu"][row] / IMU_STEPS,
            of["points"][row],
        )
        for row, label in enumerate(scenes.labels())
    ]


def view_scenes(seeds: Sequence[int], path: str | Path, kind: str = "full", size_px: int = SIZE_PX) -> Path:
    """Draw scenes in every modality.

    Args:
        seeds: of the scenes.
        path: ends in .png or .jpg (a contact sheet) or .html (a page that plays sound and video).
        kind: see `scene.sample`.
        size_px: side of pictures and frames; even.

    Returns:
        The path. Folders on the way are made.

    Raises:
        InputError: another ending, no seed, more than 100, a size that cannot be, or a JPEG that would be too tall.
    """
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise InputError(f"{path}: a view ends in .png, .jpg or .html.")
    if not 1 <= len(seeds) <= MOST:
        what = f"a view shows 1 to {MOST} scenes, got {len(seeds)}"
        raise InputError(f"{what}. To have more of them: bindsearch world write")
    if size_px % 2 or not 96 <= size_px <= 1024:
        raise InputError(f"size: expected an even number of pixels from 96 to 1024, got {size_px}.")
    if path.suffix.lower() in (".jpg", ".jpeg"):
        _check_fits_jpeg(len(seeds), size_px, path)
    from PIL.Image import Dither

    views = render_views(sample(np.array(seeds, dtype=np.uint64), kind), size_px)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".html":
        path.write_text(page_html(views), encoding="utf-8")
    else:
        sheet = contact_sheet(views)
        small = sheet.quantize(_COLOURS, dither=Dither.NONE) if path.suffix.lower() == ".png" else sheet
        save_picture(small, path)
    return path


# ---- the sheet -------------------------------------------------------------------------------------------------------


def _sheet_height(count: int, size_px: int) -> int:
    """Say how many pixels tall a sheet of `count` scenes is."""
    return 2 * _EDGE_PX + _HEAD_PX + count * (size_px + _BAR_PX + _GAP_PX) - _GAP_PX


def _check_fits_jpeg(count: int, size_px: int, path: Path) -> None:
    """Refuse a sheet that is taller than a JPEG can be, before anything is rendered."""
    height = _sheet_height(count, size_px)
    if height <= _TALLEST_PX:
        return
    most = (_TALLEST_PX - _sheet_height(0, size_px)) // (size_px + _BAR_PX + _GAP_PX)
    size = ((_TALLEST_PX - _sheet_height(count, 0)) // count) // 2 * 2
    raise InputError(
        f"{path}: a JPEG has at most {_TALLEST_PX:,} rows of pixels, {count} scenes of size {size_px} take {height:,}. "
        f"Type --size {size}, name {most} scenes, or end the name in .png."
    )


def contact_sheet(views: Sequence[SceneView]) -> Image:
    """Draw a row a scene: what it is, its captions, then a cell a modality."""
    from PIL import Image, ImageDraw

    rows = [[(name, cell) for name, cell in cells(view)] for view in views]
    widths = [cell.width for _, cell in rows[0]]
    left = [_EDGE_PX + sum(widths[:place]) + place * _GAP_PX for place in range(len(widths))]
    tall = rows[0][0][1].height + _GAP_PX
    size = (left[-1] + widths[-1] + _EDGE_PX, _sheet_height(len(rows), views[0].image.shape[0]))
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (name, _) in enumerate(rows[0]):
        draw.text((left[place] + 2, _EDGE_PX), name, _SOFT, font_of(14, bold=True))
    for number, row in enumerate(rows):
        for place, (_, cell) in enumerate(row):
            sheet.paste(cell, (left[place], _EDGE_PX + _HEAD_PX + number * tall))
    return sheet


def cells(view: SceneView) -> list[tuple[str, Image]]:
    """Draw each modality of a scene: its heading and its picture, all of one height."""
    side = view.image.shape[0]
    height = side + _BAR_PX
    return [
        ("scene", _about(view, (240, height))),
        ("image", _padded(view.image, height, f"{side} × {side}")),
        (f"video: 8 of {len(view.frames)} frames", _strip(view.frames, height)),
        ("depth", _scaled(view.metres, FAR, "{:.1f} m", logarithmic=True)),
        ("thermal", _scaled(view.degrees_c, HEAT, "{:.0f} °C", logarithmic=False)),
        ("audio", _sound(view.wave, (200, height))),
        ("imu (10 s)", _inertial(view.imu, (220, height))),
        ("points: front, side", _cloud(view.points, (200, height))),
    ]


def _card(size: tuple[int, int], colour: str = _CARD) -> tuple[Image, Any]:
    from PIL import Image, ImageDraw

    card = Image.new("RGB", size, colour)
    return card, ImageDraw.Draw(card)


def _about(view: SceneView, size: tuple[int, int]) -> Image:
    card, draw = _card(size)
    what, place, rest = view.title
    for line, words, bold, colour in ((5, what, True, _INK), (28, place, True, _INK), (47, rest, False, _SOFT)):
        points = 18 if line == 5 else (15 if bold else 11)
        while points > 9 and font_of(points, bold=bold).getlength(words) > size[0] - 16:
            points -= 1
        draw.text((8, line), words, colour, font_of(points, bold=bold))
    draw.text((8, size[1] - 16), f"seed {view.label['seed']}", _SOFT, font_of(10))
    middle = (64 + size[1] - 16) // 2
    for language, words, top, bottom in (
        ("en", view.captions[0], 64, middle),
        ("de", view.captions[1], middle, size[1] - 16),
    ):
        draw.line((8, top, size[0] - 8, top), _LINE)
        draw.text((8, top + 3), language, _SOFT, font_of(10, bold=True))
        draw_words(draw, words, (12, top, size[0] + 6, bottom + 4), _INK, 12)
    return card


def _padded(picture: NDArray[np.uint8], height: int, note: str) -> Image:
    from PIL import Image

    card, draw = _card((picture.shape[1], height))
    card.paste(Image.fromarray(np.ascontiguousarray(picture)), (0, 0))
    draw.text((4, picture.shape[0] + 2), note, _SOFT, font_of(11))
    return card


def _strip(frames: NDArray[np.uint8], height: int) -> Image:
    from PIL import Image

    across, down = STRIP
    side = frames.shape[1] // down
    card, draw = _card((across * side + (across - 1) * 2, height))
    for number in range(across * down):
        small = Image.fromarray(np.ascontiguousarray(frames[2 * number])).resize((side - 1, side - 1))
        card.paste(small, (number % across * (side + 2), number // across * (side + 1)))
    seconds = len(frames) / RATES["video"]
    draw.text((4, frames.shape[1] + 2), f"{seconds:g} s, read row by row", _SOFT, font_of(11))
    return card


def _scaled(
    grid: NDArray[np.float32], palette: tuple[tuple[int, int, int], ...], form: str, logarithmic: bool
) -> Image:
    """Colour (H, W) values from their 1st to their 99th percentile, with a bar that says both; 0 metres is grey."""
    from PIL import Image

    measured = grid > 0 if logarithmic else np.ones(grid.shape, dtype=bool)
    low, high = np.percentile(grid[measured], [1, 99]) if measured.any() else (1.0, 2.0)
    high = max(float(high), float(low) + 1e-3)
    share = np.log(np.maximum(grid, 1e-3) / low) / np.log(high / low) if logarithmic else (grid - low) / (high - low)
    colours = apply_palette(np.clip(share, 0, 1), palette)
    colours[~measured] = _NOTHING
    card = _padded(colours, grid.shape[0] + _BAR_PX, "")
    ends, font = (form.format(low), form.format(high)), font_of(11)
    from PIL import ImageDraw

    draw = ImageDraw.Draw(card)
    starts = [int(draw.textlength(text, font)) + 8 for text in ends]
    bar = np.repeat(np.linspace(0, 1, grid.shape[1] - sum(starts))[None], 8, axis=0)
    card.paste(Image.fromarray(apply_palette(bar, palette)), (starts[0], grid.shape[0] + 6))
    draw.text((4, grid.shape[0] + 2), ends[0], _SOFT, font)
    draw.text((card.width - starts[1] + 4, grid.shape[0] + 2), ends[1], _SOFT, font)
    return card


def _sound(pcm: NDArray[np.int16], size: tuple[int, int]) -> Image:
    """Draw a spectrogram above the wave."""
    wave = (pcm / 32768).astype(np.float32)
    card, draw = _card(size)
    room = size[1] - _BAR_PX
    tall = room * 65 // 100
    card.paste(spectrogram(wave, RATES["audio"], (size[0], tall)), (0, 0))
    edges = np.linspace(0, wave.size, size[0] + 1).astype(np.int64)
    low, high = np.minimum.reduceat(wave, edges[:-1]), np.maximum.reduceat(wave, edges[:-1])
    loudest, middle, reach = max(float(np.abs(wave).max()), 1e-6), (tall + room) / 2, (room - tall) / 2 - 3
    for x in range(size[0]):
        draw.line((x, middle - reach * high[x] / loudest, x, middle - reach * low[x] / loudest + 1), "#c07a12")
    draw.text((4, room + 2), f"{wave.size / RATES['audio']:g} s, 60 Hz to 8 kHz", _SOFT, font_of(11))
    return card


def _inertial(imu: NDArray[np.float64], size: tuple[int, int]) -> Image:
    """Draw acceleration above rotation: x red, y green, z blue."""
    card, draw = _card(size)
    room = size[1] - _BAR_PX
    half = room // 2
    edges = np.linspace(0, imu.shape[1], 2 * size[0] + 1).astype(np.int64)[:-1]
    shown = imu[:, edges]
    for top, three, unit in ((0, shown[:3], "m/s²"), (half, shown[3:], "rad/s")):
        low, high = float(three.min()), float(three.max())
        reach = max(high - low, 1e-6)
        for line, colour in zip(three, _AXES, strict=True):
            heights = top + half - 4 - (line - low) / reach * (half - 18)
            draw.line([(x / 2, y) for x, y in enumerate(heights.tolist())], colour, 1)
        draw.text((4, top), f"{low:.1f} to {high:.1f} {unit}", _SOFT, font_of(10))
        draw.line((0, top + half - 1, size[0], top + half - 1), _LINE)
    for number, (axis, colour) in enumerate(zip("xyz", _AXES, strict=True)):
        draw.text((4 + 12 * number, room + 2), axis, colour, font_of(11, bold=True))
    return card


def _cloud(points: NDArray[np.float32], size: tuple[int, int]) -> Image:
    """Draw points from the front and from the side, on one scale."""
    card, draw = _card(size)
    half, room = size[0] // 2, size[1] - _BAR_PX
    if not points.any():
        draw_words(draw, "no subject", (0, 0, size[0], room), _SOFT, 12)
        return card
    middle = (points.max(axis=0) + points.min(axis=0)) / 2
    extent = float((points.max(axis=0) - points.min(axis=0)).max())
    scale = min(half - 8, room - 8) / max(extent, 1e-6)
    shade = (points[:, 2] - points[:, 2].min()) / max(float(np.ptp(points[:, 2])), 1e-6)
    colours = apply_palette(np.clip(0.25 + 0.6 * shade, 0, 1)[None], FAR)[0]
    for row in np.argsort(-points[:, 2]):
        right, down, away = (points[row] - middle) * scale
        colour = tuple(int(level) for level in colours[row])
        for place, across in ((0, right), (1, away)):
            x, y = half * (place + 0.5) + across, room / 2 + down
            draw.rectangle((x - 0.5, y - 0.5, x + 0.5, y + 0.5), colour)
    draw.line((half, 4, half, room - 4), _LINE)
    note = f"{extent:.1f} m, {points[:, 2].mean():.1f} m away"
    draw.text((4, room + 2), note, _SOFT, font_of(11))
    return card


# ---- the page --------------------------------------------------------------------------------------------------------


def page_html(views: Sequence[SceneView]) -> str:
    """Make a page of scenes, one file without anything outside it; sound and video play."""
    import jinja2

    folder = Path(__file__).parent.parent / "pages"
    loader = jinja2.FileSystemLoader(folder)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    shown = []
    for view in views:
        pictures = {name.split(" ")[0].removesuffix(":"): _uri(cell) for name, cell in cells(view)}
        shown.append(
            {
                "title": view.title,
                "seed": view.label["seed"],
                "captions": view.captions,
                "pictures": pictures,
                "video": _data_uri(encode(view.frames, "video"), "video/mp4"),
                "sound": _data_uri(encode(view.wave, "audio"), "audio/wav"),
            }
        )
    return str(environment.get_template("world.html").render(scenes=shown))


def _uri(cell: Image) -> str:
    stream = io.BytesIO()
    cell.save(stream, "JPEG", quality=88)
    return _data_uri(stream.getvalue(), "image/jpeg")


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
