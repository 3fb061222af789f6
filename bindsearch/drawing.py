"""What pictures are drawn with: palettes, spectrograms, fonts, wrapped words."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from bindsearch.types import FloatArray

# levels from low to high, evenly spaced
HEAT = ((4, 3, 18), (52, 12, 86), (118, 22, 110), (188, 48, 84), (236, 98, 40), (252, 172, 46), (255, 250, 200))
FAR = ((252, 244, 190), (158, 216, 108), (66, 176, 124), (38, 126, 142), (56, 82, 138), (54, 40, 104), (28, 12, 52))
_STEPS = 240
_FONTS = ("NotoSans-{}.ttf", "DejaVuSans{}.ttf", "Arial{}.ttf", "Helvetica{}.ttc")


def apply_palette(levels: NDArray[Any], palette: tuple[tuple[int, int, int], ...]) -> NDArray[np.uint8]:
    """Colour (H, W) levels in [0, 1] by linear steps through a palette: (H, W, 3) uint8."""
    stops = np.linspace(0, 1, len(palette))
    channels = [np.interp(levels, stops, [colour[axis] for colour in palette]) for axis in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def spectrogram(wave: FloatArray, rate_hz: float, size: tuple[int, int]) -> Image:
    """Picture a wave (T,): time to the right, pitch upwards on a log scale from 60 Hz, 60 dB of loudness in colour.

    Args:
        wave: (T,) float32. Not modified.
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
    levels = np.clip((decibels - decibels.max()) / 60 + 1, 0, 1)[::-1]
    return Image.fromarray(apply_palette(levels, HEAT)).resize(size, Image.Resampling.BICUBIC)


def draw_words(draw: Any, words: str, box: tuple[int, int, int, int], colour: str, size: int) -> None:
    """Wrap words into a box, in its middle; what does not fit ends in an ellipsis."""
    left, top, right, bottom = box
    room, height, font = right - left - 20, size + 5, font_of(size)
    most = max(1, (bottom - top - 12) // height)
    lines: list[str] = []
    for word in words.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and draw.textlength(joined, font) <= room:
            lines[-1] = joined
        elif len(lines) == most:
            lines[-1] = fit(f"{lines[-1]} …", size, room)
            break
        else:
            lines.append(fit(word, size, room))
    place = (top + bottom - len(lines) * height) / 2
    for number, line in enumerate(lines):
        middle = (left + right - draw.textlength(line, font)) / 2
        draw.text((middle, place + number * height), line, colour, font)


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


def fit(text: str, size: int, width: int, keep_end: bool = False) -> str:
    """Shorten a text to a width in pixels, with an ellipsis at its end, or at its start where the end says more."""
    font = font_of(size)
    text = "".join(char if char.isprintable() else " " for char in text)[:2000]
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        part = f"…{text[-middle:]}" if keep_end else f"{text[:middle]}…"
        low, high = (middle, high) if font.getlength(part) <= width else (low, middle - 1)
    return (f"…{text[-low:]}" if keep_end else f"{text[:low]}…") if low else "…"
