"""What pictures are drawn with: palettes, spectrograms, fonts, wrapped words."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from bindsearch.types import FloatArray

# levels from low to high, evenly spaced
HEAT = ((4, 3, 18), (52, 12, 86), (118, 22, 110), (188, 48, 84), (236, 98, 40), (252, 172, 46), (255, 250, 200))
FAR = ((252, 244, 190), (158, 216, 108), (66, 176, 124), (38, 126, 142), (56, 82, 138), (54, 40, 104), (28, 12, 52))
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg")
_STEPS = 240
_SILENT_DB = 90.0  # of loudness below a tone as loud as can be: what 16 bits hold
_FONTS = ("NotoSans-{}.ttf", "DejaVuSans{}.ttf", "Arial{}.ttf", "Helvetica{}.ttc")
_WIDE_FONTS = (
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc"),
    *("DroidSansFallbackFull.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf"),
    *("msyh.ttc", "msgothic.ttc", "malgun.ttf"),
)
_JOINERS = "\u00ad\u200c\u200d\u2060"  # within words, and seen only in what they do to their neighbours
_NO_CHARACTER = "\U0010fffd"  # for private use, in the last plane of all


def apply_palette(levels: NDArray[Any], palette: tuple[tuple[int, int, int], ...]) -> NDArray[np.uint8]:
    """Colour (H, W) levels in [0, 1] by linear steps through a palette: (H, W, 3) uint8."""
    stops = np.linspace(0, 1, len(palette))
    channels = [np.interp(levels, stops, [colour[axis] for colour in palette]) for axis in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def spectrogram(wave: FloatArray, rate_hz: float, size: tuple[int, int]) -> Image:
    """Picture a wave (T,): time to the right, pitch upwards on a log scale from 60 Hz, 60 dB of loudness in colour.

    The loudest is brightest, unless it is softer than 16 bits can tell from silence, which stays dark.

    Args:
        wave: (T,) float32 in [-1, 1]. Not modified.
        rate_hz: samples a second.
        size: width and height of the picture.
    """
    from PIL import Image

    window = max(64, int(0.04 * rate_hz))
    steps = min(_STEPS, max(2, wave.size // 32))
    starts = np.linspace(0, max(0, wave.size - window), steps).astype(np.int64)
    padded = np.pad(wave, (0, max(0, window - wave.size)))
    frames = padded[starts[:, None] + np.arange(window)] * np.hanning(window)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2  # (steps, bins)
    pitches_hz = np.geomspace(60, max(120.0, rate_hz / 2 * 0.98), 96)
    bins = pitches_hz / rate_hz * window
    rows = np.stack([np.interp(bins, np.arange(power.shape[1]), step) for step in power], axis=1)
    decibels = 10 * np.log10(rows + 1e-12)
    full_db = 20 * np.log10(np.hanning(window).sum() / 2)  # of a tone as loud as can be
    levels = np.clip((decibels - max(decibels.max(), full_db - _SILENT_DB)) / 60 + 1, 0, 1)[::-1]
    return Image.fromarray(apply_palette(levels, HEAT)).resize(size, Image.Resampling.BICUBIC)


def draw_words(draw: Any, words: str, box: tuple[int, int, int, int], colour: str, size: int) -> None:
    """Wrap words into a box, in its middle; what does not fit ends in an ellipsis.

    A word that is wider than the box, such as a sentence in Chinese or an address, goes on in the next line.
    """
    left, top, right, bottom = box
    room, height, font = right - left - 20, size + 5, font_for(words, size)
    most = max(1, (bottom - top - 12) // height)
    lines: list[str] = []
    for word in _printable(words).split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= room:
            lines[-1] = joined
        else:
            lines += _broken(word, font, room)
        if len(lines) > most:
            lines[most - 1 :] = [fit(f"{lines[most - 1]} …", size, room)]
            break
    place = (top + bottom - len(lines) * height) / 2
    for number, line in enumerate(lines):
        middle = (left + right - font.getlength(line)) / 2
        draw.text((middle, place + number * height), line, colour, font)


def _broken(word: str, font: Any, room: int) -> list[str]:
    """Cut a word into pieces that are at most `room` pixels wide, or one letter with its marks and joined ones."""
    pieces = [""]
    for char in word:
        joined = unicodedata.category(char)[0] == "M" or char in _JOINERS or pieces[-1].endswith("\u200d")
        if pieces[-1] and not joined and font.getlength(pieces[-1] + char) > room:
            pieces.append("")
        pieces[-1] += char
    return pieces


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() or char in _JOINERS else " " for char in text)[:2000]


@lru_cache(maxsize=16)
def font_of(size: int, bold: bool = False) -> Any:
    """Load a font with many alphabets where the machine has one, else Pillow's own."""
    from PIL import ImageFont

    for pattern in _FONTS:
        plain = "Regular" if pattern.startswith("Noto") else ""
        weight = ("-Bold" if "DejaVu" in pattern else "Bold") if bold else plain
        try:
            return ImageFont.truetype(pattern.format(weight), size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def font_for(text: str, size: int, bold: bool = False) -> Any:
    """Load the font of `font_of`, or one that draws more of what is wide in a text (Chinese, Japanese, Korean)."""
    wide = {char for char in text if unicodedata.east_asian_width(char) in "WF"}
    fonts = (font_of(size, bold), *_wide_fonts(size)) if wide else (font_of(size, bold),)
    return max(fonts, key=lambda font: sum(_draws(font, char) for char in wide))


@lru_cache(maxsize=16)
def _wide_fonts(size: int) -> tuple[Any, ...]:
    """Load the first font with Chinese, Japanese and Korean that the machine has, or none."""
    from PIL import ImageFont

    for name in _WIDE_FONTS:
        try:
            return (ImageFont.truetype(name, size),)
        except OSError:
            continue
    return ()


@lru_cache(maxsize=4096)
def _draws(font: Any, char: str) -> bool:
    """Say whether a font has a character: it looks different from one that no font has."""
    return bytes(font.getmask(char)) != bytes(font.getmask(_NO_CHARACTER))


def fit(text: str, size: int, width: int, keep_end: bool = False) -> str:
    """Shorten a text to a width in pixels, with an ellipsis at its end, or at its start where the end says more."""
    font = font_for(text, size)
    text = _printable(text)
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        part = f"…{text[-middle:]}" if keep_end else f"{text[:middle]}…"
        low, high = (middle, high) if font.getlength(part) <= width else (low, middle - 1)
    return (f"…{text[-low:]}" if keep_end else f"{text[:low]}…") if low else "…"


def check_ending(path: str | Path) -> None:
    """Refuse a name whose ending is that of no picture which `save_picture` writes.

    Raises:
        InputError: an ending that is none of PICTURE_ENDINGS.
    """
    path = Path(path)
    if path.suffix.lower() not in PICTURE_ENDINGS:
        raise InputError(
            f"{path}: expected a picture that ends in .png, .jpg or .jpeg, got {path.suffix or 'no ending'}. "
            f"Name it {path.parent / path.stem}.png"
        )


def save_picture(picture: Image, path: str | Path) -> Path:
    """Write a picture as its ending says, PNG or JPEG. Folders on the way are made. Errors as of `check_ending`."""
    check_ending(path)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".png":
        picture.save(path, "PNG", optimize=True)
    else:
        picture.save(path, "JPEG", quality=88)
    return path
