"""Videos: PyAV in, streamed; (S, 3, 2, H, W) clips and crops out. Only the frames that are looked at are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import IO, TYPE_CHECKING, Any, ClassVar

from bindsearch.errors import DecodeError, InputError
from bindsearch.modalities.base import Modality, ModalityConfig, check_choice, check_media, check_positive
from bindsearch.modalities.clips import clip_starts, windows
from bindsearch.modalities.containers import (
    SEEK_FRAMES,
    FrameTimes,
    open_container,
    read_frames,
    read_times,
    seek_frames,
)
from bindsearch.modalities.image import CLIP_MEAN, CLIP_STD, normalise
from bindsearch.modalities.recent import Last
from bindsearch.registry import MODALITIES
from bindsearch.sources import Source
from bindsearch.types import Media, Span

if TYPE_CHECKING:
    import numpy as np


_FRAME_BYTES = 48  # that a frame's time takes in a list, a key frame's twice


@dataclass(frozen=True)
class VideoConfig(ModalityConfig):
    """Numbers and switches of a video.

    Attributes:
        size_px: side of the square that the tower sees.
        clips, clip_s: number and length of the clips, spread evenly.
        frames: frames of a clip, the first and the last among them.
        crops: squares along the longer side: 3 (start, middle, end) or 1 (middle).
        mean, std: of each channel, in units of 1.
        rotate: turn frames as the display matrix says.
        max_pixels: width times height of a frame above which it is refused.
        window_s, long_s: videos longer than long_s are cut in windows of window_s; None leaves them whole.
        times: "own" finds frames by the times at which they are shown where the rate varies; "average" takes a frame's
            number over the average rate for its time.
        max_aspect: long side over short side above which a video is refused: its scaled frames would fill the memory.
    """

    size_px: int = 224
    clips: int = 5
    clip_s: float = 2.0
    frames: int = 2
    crops: int = 3
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    rotate: bool = True
    max_pixels: int = 8192 * 8192
    window_s: float | None = 10.0
    long_s: float = 60.0
    times: str = "own"
    max_aspect: float = 50.0

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        check_positive(self, "size_px", "clips", "clip_s", "frames", "max_pixels", "max_aspect")
        check_choice(self, "times", ("own", "average"))
        if self.crops not in (1, 3):
            raise InputError(f"VideoConfig.crops: expected 1 or 3, got {self.crops}.")

    def unhashed(self) -> tuple[str, ...]:
        """Name `times` and `max_aspect` where they are the preset's, so that they changed no id."""
        times = "average" if self.preset == "reference" else "own"
        old = {"times": self.times == times, "max_aspect": self.max_aspect == VideoConfig.max_aspect}
        return tuple(name for name, is_old in old.items() if is_old)


@dataclass(frozen=True)
class VideoPlan:
    """What of a video will be looked at, known before a pixel is decoded.

    Attributes:
        name: the source.
        rate_hz: average frames a second.
        frames: how many there are.
        duration_s: how long they are shown.
        first: index of the first frame of the span.
        clips: of each clip, start in seconds within the span and the indices of its frames within the video.
        crops: squares a frame.
    """

    name: str
    rate_hz: float
    frames: int
    duration_s: float
    first: int
    clips: tuple[tuple[float, tuple[int, ...]], ...]
    crops: int

    @property
    def wanted(self) -> tuple[int, ...]:
        """Indices of all frames that are needed, sorted."""
        return tuple(sorted({index for _, indices in self.clips for index in indices}))

    def __str__(self) -> str:
        """Print as a table."""
        length = f"{self.frames} frames at {self.rate_hz:.6g} Hz ({self.duration_s:.2f} s)"
        head = f"{self.name}: {length}; {self.crops} crops a clip"
        rows = [
            f"  clip {number}  from {start:8.3f} s  frames {', '.join(map(str, indices))}"
            for number, (start, indices) in enumerate(self.clips)
        ]
        return "\n".join([head, *rows])


def clip_frames(frames: int, rate_hz: float, config: VideoConfig) -> list[tuple[float, tuple[int, ...]]]:
    """Choose the frames of each clip.

    Args:
        frames: how many the video has; at least 1.
        rate_hz: average frames a second.
        config: its clips, clip_s and frames are used.

    Returns:
        Start in seconds and frame indices of each clip.

    Source: golden preprocess/video_frame_table.json: first = ceil(rate * start), end = min(ceil(rate * end), frames),
    then evenly spaced from the first to the last, truncated.
    """
    chosen = []
    for start in clip_starts(frames / rate_hz, config.clip_s, config.clips):
        first = min(math.ceil(rate_hz * float(start)), frames - 1)
        end = max(min(math.ceil(rate_hz * float(start + Fraction(config.clip_s))), frames), first + 1)
        last = end - first - 1
        picked = tuple(first + number * last // max(config.frames - 1, 1) for number in range(config.frames))
        chosen.append((float(start), picked))
    return chosen


def crop_offsets(height: int, width: int, config: VideoConfig) -> list[tuple[int, int]]:
    """Give top and left of each crop along the longer side.

    Source: golden preprocess/video_crops.json.
    """
    top, left = math.ceil((height - config.size_px) / 2), math.ceil((width - config.size_px) / 2)
    if config.crops == 1:
        return [(top, left)]
    if height > width:
        return [(0, left), (top, left), (height - config.size_px, left)]
    return [(top, 0), (top, left), (top, width - config.size_px)]


def resize_short_side(frames: np.ndarray, size_px: int) -> np.ndarray:
    """Scale so that the shorter side is `size_px`: bilinear, half-pixel centres, no antialiasing.

    Args:
        frames: (T, H, W, 3) uint8. Not modified.
        size_px: the shorter side; the other is truncated.

    Returns:
        (T, H', W', 3) float32 levels.

    Source: golden preprocess/video_samples.npz.
    """
    import numpy as np

    height, width = frames.shape[1:3]
    if width < height:
        new = math.floor(height / width * size_px), size_px
    else:
        new = size_px, math.floor(width / height * size_px)
    top, bottom, down = _neighbours(height, new[0])
    left, right, across = _neighbours(width, new[1])
    edges = []
    for column in (left, right):  # only the levels that are looked at become floats
        upper = frames[:, top[:, None], column].astype(np.float32)
        lower = frames[:, bottom[:, None], column].astype(np.float32)
        lower -= upper
        lower *= down[:, None, None]
        lower += upper
        edges.append(lower)
    scaled, other = edges
    other -= scaled
    other *= across[:, None]
    scaled += other
    return scaled


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import numpy as np

    at = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new) - np.float32(0.5)
    at = np.maximum(at, np.float32(0))
    low = np.minimum(at.astype(np.int64), old - 1)
    return low, np.minimum(low + 1, old - 1), (at - low).astype(np.float32)


class VideoModality(Modality[VideoConfig]):
    """Moving pictures; their sound is the modality audio."""

    name = "video"
    suffixes = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp", ".ogv")
    unit = "level"
    tower = "vision"
    config_class = VideoConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "reference": {"rotate": False, "window_s": None, "times": "average"},
    }

    def plan(self, source: Source, config: VideoConfig, span: Span | None = None) -> VideoPlan:
        """Say which frames will be looked at; printable. Reads the packets' times, decodes nothing.

        Raises:
            DecodeError: no video.
        """
        if source.kind == "value":
            array, rate = _of_array(source)
            return _plan(source.name, array.shape[0], rate, config, span)
        with source.open() as file, _open_video(file, source.name) as container:
            scan = read_times(container, source.name)
            return _plan_by_times(source.name, scan, config, span)

    def _decode(self, source: Source, config: VideoConfig, span: Span | None) -> Media:
        if source.kind == "value":
            array, rate = _of_array(source)
            _check_size(source.name, array.shape[2], array.shape[1], config, "decode")
            plan = _plan(source.name, array.shape[0], rate, config, span)
            return _media(plan, [array[index] for index in plan.wanted])
        with source.open() as file:
            with _open_video(file, source.name) as container:
                scan = _times_of(container, source, span)
                stream = container.streams.video[0]
                _check_size(source.name, stream.codec_context.width, stream.codec_context.height, config, "decode")
                plan = _plan_by_times(source.name, scan, config, span)
                found = seek_frames(container, scan, plan.wanted, config.rotate) if _worth_seeking(scan, plan) else {}
            if len(found) < len(plan.wanted):
                file.seek(0)
                with _open_video(file, source.name) as container:
                    found = read_frames(container, scan, plan.wanted, config.rotate)
        if not found:
            raise DecodeError(source.name, "no frame can be decoded")
        at_hand = sorted(found)
        frames = [found[max((have for have in at_hand if have <= index), default=at_hand[0])] for index in plan.wanted]
        missing = [index for index in plan.wanted if index not in found]
        return _media(plan, _same_size(frames, source.name), missing)

    def preprocess(self, media: Media, config: VideoConfig) -> np.ndarray:
        """Scale, crop and normalise: (T, H, W, 3) uint8 -> (clips * crops, 3, frames, size_px, size_px) float32.

        The clips' rows of the array stand in notes["picks"]; without it, they are chosen from all frames at rate_hz.
        Clips are the outer order, crops the inner one.
        """
        import numpy as np

        check_media(media, self.name, rank=4, dtype="uint8")
        _check_size(media.name, media.array.shape[2], media.array.shape[1], config, "preprocess")
        picks: Sequence[Sequence[int]] | None = media.notes.get("picks")
        if picks is None:
            if not media.rate_hz:
                raise InputError(f"{media.name or 'video'}: the media have no rate_hz.")
            picks = [rows for _, rows in clip_frames(media.array.shape[0], media.rate_hz, config)]
        wanted, places = np.unique(np.asarray(picks), return_inverse=True)
        scaled = resize_short_side(media.array[wanted], config.size_px)
        scaled = normalise(scaled.transpose(0, 3, 1, 2), config.mean, config.std)
        offsets = crop_offsets(scaled.shape[2], scaled.shape[3], config)
        side = config.size_px
        out = np.empty((len(picks) * len(offsets), 3, config.frames, side, side), np.float32)
        for number, rows in enumerate(places.reshape(len(picks), -1)):
            for inner, (top, left) in enumerate(offsets):
                crop = scaled[rows, :, top : top + side, left : left + side]
                out[number * len(offsets) + inner] = crop.transpose(1, 0, 2, 3)
        return out

    def spans(self, source: Source, config: VideoConfig, window_s: float | None) -> list[Span]:
        """Cut a video in windows: of `window_s` if given, else as the configuration says."""
        if window_s is None and config.window_s is None:
            return []
        plan = self.plan(source, config)
        duration = plan.duration_s
        if window_s is None and duration <= config.long_s:
            return []
        return windows(duration, window_s if window_s is not None else config.window_s or duration, source.name)

    def example(self, seed: int) -> Media:
        """Make a square that moves over a ground, 1 to 4 s at 10 Hz."""
        import numpy as np

        rng = np.random.default_rng([seed, 4])
        frames, height, width = (int(number) for number in rng.integers((10, 40, 40), (40, 90, 120)))
        video = np.empty((frames, height, width, 3), np.uint8)
        video[:] = rng.integers(0, 256, 3, dtype=np.uint8)
        colour, pace = rng.integers(0, 256, 3, dtype=np.uint8), float(rng.uniform(0.5, 3))
        for number in range(frames):
            left = int(number * pace) % (width - 12)
            video[number, height // 3 : height // 3 + 12, left : left + 12] = colour
        return Media(self.name, video, self.unit, 10.0, f"<example {seed}>")


_LAST: Last[FrameTimes] = Last(lambda scan: _FRAME_BYTES * len(scan.pts))
"""The times of the video whose windows are being decoded."""


def _times_of(container: Any, source: Source, span: Span | None) -> FrameTimes:
    """Read the times of all frames, for the windows of one video once."""
    if span is None:
        return read_times(container, source.name)
    return _LAST.of(source, None, lambda: read_times(container, source.name))


def _open_video(file: IO[bytes], name: str) -> Any:
    head = file.read(1024)
    file.seek(0)
    if not head:
        raise DecodeError(name, "is empty")
    container = open_container(file, name, head)
    if not container.streams.video:
        container.close()
        raise DecodeError(name, "has no pictures; for its sound: --modality audio")
    return container


def _check_size(name: str, width: int, height: int, config: VideoConfig, stage: str) -> None:
    """Refuse frames that are too large, or too long and thin."""
    if width * height > config.max_pixels:
        raise DecodeError(name, f"frames of {width}x{height} pixels, over {config.max_pixels} (max_pixels)", stage)
    if max(width, height) > config.max_aspect * min(width, height):
        what = f"{width}x{height}: one side is over {config.max_aspect:g} times the other (max_aspect); crop it first"
        raise DecodeError(name, what, stage)


def _plan(name: str, frames: int, rate_hz: float, config: VideoConfig, span: Span | None) -> VideoPlan:
    first, last = 0, frames
    if span is not None:
        first, last = math.ceil(span[0] * rate_hz), min(math.ceil(span[1] * rate_hz), frames)
        if last <= first and config.times == "own" and span[0] * rate_hz < frames:  # none begins in it: the one shown
            first = int(span[0] * rate_hz)
            last = first + 1
    if last <= first:
        where = "" if span is None else f" in {span[0]:g}-{span[1]:g} s"
        raise DecodeError(name, f"no frame{where}; the video has {frames / rate_hz:.2f} s")
    clips = tuple(
        (start, tuple(first + index for index in indices))
        for start, indices in clip_frames(last - first, rate_hz, config)
    )
    return VideoPlan(name, rate_hz, frames, frames / rate_hz, first, clips, config.crops)


def _plan_by_times(name: str, scan: FrameTimes, config: VideoConfig, span: Span | None) -> VideoPlan:
    """Plan by the frames' own times where these are not what the average rate says."""
    if config.times == "average" or scan.steady:
        return _plan(name, len(scan.pts), scan.rate_hz, config, span)
    frames, lasting_s = len(scan.pts), scan.lasting_s
    first, last = 0, frames
    if span is not None:
        if span[0] >= lasting_s:
            raise DecodeError(name, f"no frame in {span[0]:g}-{span[1]:g} s; the video has {float(lasting_s):.2f} s")
        first, last = scan.between(Fraction(span[0]), Fraction(span[1]))
    start_s, end_s = scan.seconds(first), scan.seconds(last) if last < frames else lasting_s
    clips = []
    for start in clip_starts(float(end_s - start_s), config.clip_s, config.clips):
        begin, end = scan.between(start_s + start, start_s + start + Fraction(config.clip_s))
        from_s, to_s = scan.seconds(begin), scan.seconds(min(end, last) - 1)
        step = (to_s - from_s) / max(config.frames - 1, 1)
        clips.append((float(start), tuple(scan.shown(from_s + number * step) for number in range(config.frames))))
    duration = float(lasting_s)
    return VideoPlan(name, frames / duration, frames, duration, first, tuple(clips), config.crops)


def _worth_seeking(scan: FrameTimes, plan: VideoPlan) -> bool:
    """Say whether single frames can be told apart by their times, and anything is spared by it."""
    return scan.timed and bool(scan.keys) and plan.wanted[-1] > SEEK_FRAMES


def _same_size(frames: list[np.ndarray], name: str) -> list[np.ndarray]:
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise DecodeError(name, f"frames change their size: {', '.join(f'{s[1]}x{s[0]}' for s in sorted(sizes))}")
    return frames


def _media(plan: VideoPlan, frames: list[np.ndarray], missing: Sequence[int] = ()) -> Media:
    import numpy as np

    row_of = {index: row for row, index in enumerate(plan.wanted)}
    notes: dict[str, Any] = {
        "picks": [[row_of[index] for index in indices] for _, indices in plan.clips],
        "frame_indices": list(plan.wanted),
        "frames": plan.frames,
        "duration_s": plan.duration_s,
    }
    if missing:
        notes["undecodable_frames"] = list(missing)
    return Media("video", np.stack(frames), "level", plan.rate_hz, plan.name, notes)


def _of_array(source: Source) -> tuple[np.ndarray, float]:
    import numpy as np

    array = np.asarray(source.value)
    if array.ndim != 4 or array.dtype != np.uint8 or array.shape[3] != 3 or not source.rate_hz:
        raise InputError(
            f"{source.name}: a video array is (T, H, W, 3) uint8 and comes with its rate: "
            f"Source.of(array, rate_hz=25); got {array.shape} {array.dtype}."
        )
    return array, source.rate_hz


MODALITIES.register("video", VideoModality())
