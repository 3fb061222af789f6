"""A small picture of anything: thumbnails, false colour, waves, lines, words; what cannot be read says why.

Nothing here raises for bad media: an item whose file is gone or broken becomes a preview that says so.
"""

from __future__ import annotations

import io
import mimetypes
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.drawing import FAR, HEAT, apply_palette, spectrogram
from bindsearch.errors import BindSearchError, DecodeError
from bindsearch.listing.folders import file_facts
from bindsearch.listing.naming import to_path
from bindsearch.makers import maker_of
from bindsearch.registry import MODALITIES
from bindsearch.sources import Source, locate
from bindsearch.types import Hit, Media, Span

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from bindsearch.query import Term
    from bindsearch.types import FloatArray

SIZE_PX = 320
_SOUND_S = 15.0
_VIDEO_BYTES = 2 << 20
_WORDS = 600
_COMPARED_BYTES = 64 << 20
_POINTS = 240
_MP3_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_VIDEO_TYPES = ("video/mp4", "video/webm")

_NOTHING = (120, 120, 126)


@dataclass(frozen=True)
class Panel:
    """Curves that share a scale.

    Attributes:
        name: what they show.
        lines: (curves, points) float32 in [-1, 1].
        filled: two curves, low and high, whose space between is filled: an envelope.
    """

    name: str
    lines: FloatArray
    filled: bool = False


@dataclass(frozen=True)
class Preview:
    """What there is to see of an item or a term.

    Attributes:
        title: its name, for people.
        modality: of it.
        picture: RGB, at most SIZE_PX on a side, or None.
        panels: curves, for sounds and motion.
        words: for texts.
        clip: bytes that a browser plays, and their type; or None.
        note: a fact: "3.2 s", "1.1–6.8 m".
        trouble: why there is nothing to see; empty where there is.
    """

    title: str
    modality: str
    picture: Image | None = None
    panels: tuple[Panel, ...] = ()
    words: str = ""
    clip: tuple[bytes, str] | None = None
    note: str = ""
    trouble: str = ""


def preview_hit(hit: Hit, presets: Mapping[str, str], with_clip: bool = False) -> Preview:
    """Show an item of an index.

    Args:
        hit: the item. Not modified.
        presets: modality -> preset id that the index was built with, so that depth is read in its unit.
        with_clip: also make the bytes that a browser plays.
    """
    return next(preview_hits([hit], presets, with_clip))


def preview_hits(hits: Iterable[Hit], presets: Mapping[str, str], with_clip: bool = False) -> Iterator[Preview]:
    """Show items of an index in order, as `preview_hit` does one; each tar among them is looked through once."""
    hits = list(hits)
    places = iter(locate([_member_of(hit) for hit in hits if hit.columns.get("member")]))
    for hit in hits:
        yield _preview_hit(hit, next(places) if hit.columns.get("member") else None, presets, with_clip)


def _member_of(hit: Hit) -> Source:
    return Source.tar_member(to_path(hit.source), str(hit.columns["member"]))


def _preview_hit(hit: Hit, member: Source | DecodeError | None, presets: Mapping[str, str], with_clip: bool) -> Preview:
    words = hit.columns.get("caption")
    if hit.modality == "text" and words:  # a literal text: its source is the list or table that held it
        return Preview(hit.key, "text", words=str(words)[:_WORDS])
    if isinstance(member, DecodeError):
        return Preview(hit.key, hit.modality, trouble=member.what)
    maker = None if member else maker_of(hit.source)
    try:
        if maker is not None:
            source = Source.of(maker.for_viewing(hit.source, SIZE_PX))
        else:
            source = member or Source.of(to_path(hit.source))
    except BindSearchError as error:
        return Preview(hit.key, hit.modality, trouble=str(error))
    if maker is None and _has_changed(hit, source):
        return Preview(
            hit.key, hit.modality, trouble="the file has changed since it was embedded: embed and index again"
        )
    return preview(source, hit.modality, hit.span, presets.get(hit.modality, "default"), hit.key, with_clip)


def _has_changed(hit: Hit, source: Source) -> bool:
    """Say whether a file or a member of a tar is another than the one that was embedded.

    It is by its size; or by its bytes, where the time of its file, or of the tar, differs. The checksum of a fused item
    is of all its parts: such a one is told by the size of the leading part alone.
    """
    known_bytes, known_s, sha256 = (hit.columns.get(name) for name in ("size", "mtime", "sha256"))
    is_fused = "fuse" in (hit.columns.get("attributes") or {})
    _, mtime_s = file_facts(to_path(hit.source))
    if mtime_s is None or known_bytes is None:
        return False
    try:
        size_bytes = source.size
        if size_bytes is None or size_bytes != known_bytes:
            return size_bytes is not None
        if mtime_s == known_s or sha256 is None or is_fused or size_bytes > _COMPARED_BYTES:
            return False
        return bool(source.sha256() != sha256)
    except (DecodeError, OSError):
        return False


def preview_term(term: Term, presets: Mapping[str, str], with_clip: bool = False) -> Preview:
    """Show a term of a query; arguments as in `preview_hit`."""
    preset = presets.get(term.modality, "default")
    if term.modality == "text" and isinstance(term.source, str | None):
        return Preview(term.label, "text", words=(term.source or term.label)[:_WORDS])
    if term.source is None or term.modality not in MODALITIES:
        return Preview(term.label, term.modality, trouble="a vector" if term.item_id is None else "an item")
    try:
        maker = maker_of(term.source) if isinstance(term.source, str) else None
        source = Source.of(term.source if maker is None else maker.for_viewing(term.source, SIZE_PX))
    except BindSearchError as error:
        return Preview(term.label, term.modality, trouble=str(error))
    return preview(source, term.modality, None, preset, term.label, with_clip)


def preview(
    source: Source, modality: str, span: Span | None, preset: str, title: str, with_clip: bool = False
) -> Preview:
    """Show a source.

    Args:
        source: where the bytes come from. Not modified.
        modality: as what to read it.
        span: the part to show, in seconds; None: the whole.
        preset: id or name of the preset to read it with.
        title: its name, for people.
        with_clip: also make the bytes that a browser plays.

    Returns:
        A preview; where the source cannot be read, one that says so.
    """
    try:
        source = source.located()
        if modality == "text":
            from bindsearch.modalities.text import decode_text

            words = source.value if source.kind == "text" else decode_text(source.read_bytes(1 << 20), title)
            return Preview(title, modality, words=words[:_WORDS])
        media = _decode(source, modality, span, preset)
        with_clip = with_clip and (span is None or modality != "video")  # a browser would play the whole video
        shown: Preview = _SHOW[modality](media, source, title, with_clip)
        if span is not None and modality == "video":  # its facts are those of the whole video
            return replace(shown, note=f"{min(span[1], media.notes['duration_s']) - span[0]:.1f} s")
        return shown
    except DecodeError as error:
        return Preview(title, modality, trouble=error.what)
    except Exception as error:  # a preview is never worth failing an answer for
        return Preview(title, modality, trouble=f"{type(error).__name__}: {error}")


def _decode(source: Source, modality: str, span: Span | None, preset: str) -> Media:
    kind = MODALITIES[modality]
    name = preset.partition(":")[0]
    numbers = {"size_px": SIZE_PX, "clips": 3, "crops": 1} if modality == "video" else {}
    config = kind.config(name if name in kind.presets else "default", **numbers)
    media: Media = kind.decode(source, config, span)
    return media


# ---- one function a modality -----------------------------------------------------------------------------------------


def _show_image(media: Media, source: Source, title: str, with_clip: bool) -> Preview:
    del source, with_clip
    height, width = media.array.shape[:2]
    return Preview(title, "image", _thumbnail(media.array), note=f"{width} × {height}")


def _show_video(media: Media, source: Source, title: str, with_clip: bool) -> Preview:
    frames = media.array
    clip = None
    kind = mimetypes.guess_type(source.name)[0]
    if with_clip and kind in _VIDEO_TYPES and source.kind != "value" and (source.size or _VIDEO_BYTES) < _VIDEO_BYTES:
        clip = source.read_bytes(_VIDEO_BYTES), str(kind)
    if with_clip and source.kind == "value":
        clip = _film(source)
    seconds = media.notes.get("duration_s")
    note = "" if seconds is None else f"{seconds:.1f} s"
    return Preview(title, "video", _thumbnail(frames[len(frames) // 2]), clip=clip, note=note)


def _film(source: Source) -> tuple[bytes, str] | None:
    """Encode frames that lie in no file for a browser, cut to an even size."""
    from bindsearch.world.files import encode_mp4

    frames, rate_hz = np.asarray(source.value), round(source.rate_hz or 0)
    height, width = frames.shape[1] // 2 * 2, frames.shape[2] // 2 * 2
    return (encode_mp4(frames[:, :height, :width], rate_hz), "video/mp4") if rate_hz else None


def _show_audio(media: Media, source: Source, title: str, with_clip: bool) -> Preview:
    del source
    wave = media.array.mean(axis=0, dtype=np.float64).astype(np.float32)  # (T,)
    rate_hz = float(media.rate_hz or 16000)
    edges = np.linspace(0, wave.size, min(_POINTS, wave.size) + 1).astype(np.int64)
    envelope = np.stack([np.minimum.reduceat(wave, edges[:-1]), np.maximum.reduceat(wave, edges[:-1])])
    loudest = max(float(np.abs(envelope).max()), 1e-6)
    return Preview(
        title,
        "audio",
        spectrogram(wave, rate_hz, (SIZE_PX, SIZE_PX // 2)),
        (Panel("wave", (envelope / loudest).astype(np.float32), filled=True),),
        clip=_sound(wave[: int(_SOUND_S * rate_hz)], rate_hz) if with_clip else None,
        note=f"{wave.size / rate_hz:.1f} s",
    )


def _show_depth(media: Media, source: Source, title: str, with_clip: bool) -> Preview:
    del source, with_clip
    near_is_high = "disparity" in media.unit
    measured = np.isfinite(media.array) & ((media.array > 0) | near_is_high)
    picture, low, high = _false_colour(media.array, FAR[::-1] if near_is_high else FAR, measured)
    return Preview(title, "depth", picture, note="inverse depth" if near_is_high else f"{low:.1f}–{high:.1f} m")


def _show_thermal(media: Media, source: Source, title: str, with_clip: bool) -> Preview:
    del source, with_clip
    picture, _, _ = _false_colour(media.array, HEAT, np.isfinite(media.array) & (media.array > 0))
    return Preview(title, "thermal", picture, note=f"{media.array.shape[1]} × {media.array.shape[0]}")


def _show_imu(media: Media, source: Source, title: str, with_clip: bool) -> Preview:
    del source, with_clip
    signal = media.array  # (6, T)
    edges = np.linspace(0, signal.shape[1], min(_POINTS, signal.shape[1]) + 1).astype(np.int64)
    means = np.add.reduceat(signal.astype(np.float64), edges[:-1], axis=1) / np.diff(edges)
    panels = []
    for name, three in (("acceleration", means[:3]), ("rotation", means[3:])):
        middle = (three.max() + three.min()) / 2
        reach = max(float(three.max() - three.min()) / 2, 1e-9)
        panels.append(Panel(name, ((three - middle) / reach).astype(np.float32)))
    seconds = f"{signal.shape[1] / media.rate_hz:.1f} s" if media.rate_hz else ""
    return Preview(title, "imu", panels=tuple(panels), note=seconds)


def _show_features(media: Media, source: Source, title: str, with_clip: bool) -> Preview:
    del source, with_clip
    row = media.array[np.linspace(0, len(media.array) - 1, min(_POINTS, len(media.array))).astype(np.int64)]
    levels = row / max(float(np.abs(row).max()), 1e-9)
    return Preview(title, "features", None, (Panel("numbers", levels[None]),), note=f"{len(media.array)} numbers")


_SHOW: dict[str, Any] = {
    "image": _show_image,
    "video": _show_video,
    "audio": _show_audio,
    "depth": _show_depth,
    "thermal": _show_thermal,
    "imu": _show_imu,
    "features": _show_features,
}


# ---- arrays to pictures ----------------------------------------------------------------------------------------------


def _thumbnail(array: NDArray[np.uint8]) -> Image:
    """Make a picture of (H, W, 3) uint8 that is at most SIZE_PX on a side. Extreme shapes are cut to 4:1."""
    from PIL import Image

    height, width = array.shape[:2]
    if max(height, width) > 4 * min(height, width):
        keep = 4 * min(height, width)
        top, left = max(0, (height - keep) // 2), max(0, (width - keep) // 2)
        array = array[top : top + keep, left : left + keep]
    picture = Image.fromarray(np.ascontiguousarray(array))
    picture.thumbnail((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS)
    if max(picture.size) < SIZE_PX // 2:  # tiny pictures stay sharp when shown large
        scale = SIZE_PX // (2 * max(picture.size)) + 1
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    return picture


def _false_colour(
    grid: FloatArray, palette: tuple[tuple[int, int, int], ...], valid: NDArray[np.bool_]
) -> tuple[Image, float, float]:
    """Colour (H, W) values between their 2nd and 98th percentile; grey where nothing was measured (`valid` is False).

    Returns:
        The thumbnail and the two percentiles.
    """
    low, high = np.percentile(grid[valid], [2, 98]) if valid.any() else (0.0, 1.0)
    levels = np.clip((np.where(valid, grid, low) - low) / max(float(high - low), 1e-9), 0, 1)
    colours = apply_palette(levels, palette)
    colours[~valid] = _NOTHING
    return _thumbnail(colours), float(low), float(high)


def _sound(wave: FloatArray, rate_hz: float) -> tuple[bytes, str]:
    """Encode a wave (T,) for a browser: MP3 where this libsndfile writes it, else 16-bit WAV."""
    import soundfile

    rate = round(rate_hz)
    if rate not in _MP3_RATES_HZ:
        seconds = np.arange(0, wave.size / rate_hz, 1 / 22050)
        wave, rate = np.interp(seconds, np.arange(wave.size) / rate_hz, wave).astype(np.float32), 22050
    stream = io.BytesIO()
    if "MP3" in soundfile.available_formats():
        soundfile.write(stream, np.clip(wave, -1, 1), rate, format="MP3")
        return stream.getvalue(), "audio/mpeg"
    soundfile.write(stream, np.clip(wave, -1, 1), rate, format="WAV", subtype="PCM_16")
    return stream.getvalue(), "audio/wav"
