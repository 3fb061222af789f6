"""Containers of video and sound, opened by FFmpeg through PyAV: times of frames, and single frames by index."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from bindsearch.errors import DecodeError
from bindsearch.sources import describe_head

if TYPE_CHECKING:
    import numpy as np

CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,ogg,asf,ivf,nut,mxf,dv,h264,hevc,"
    "wav,w64,mp3,aac,flac,aiff,au,caf,amr,ac3,eac3,ape,wv,tta"
)
"""Demuxers that are used. Playlists, image sequences and others that open further files or URLs are not among them."""

_MAX_FRAMES = 5_000_000


@dataclass(frozen=True)
class FrameTimes:
    """Times of all frames, from the packets alone.

    Attributes:
        pts: of each frame, in order of display and in the stream's time base; its number where `timed` is False.
        keys: of the key frames, sorted.
        timed: whether every frame has a time of its own.
        rate_hz: average frames a second.
    """

    pts: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    timed: bool = True
    rate_hz: float = 0.0


def open_container(file: IO[bytes], name: str, head: bytes) -> Any:
    """Open a file of video or sound with FFmpeg, from known containers only and without access to other files.

    Args:
        file: seekable; the caller closes it.
        name: for messages.
        head: its first bytes, for messages.

    Raises:
        DecodeError: no such container.
    """
    import av

    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
    try:
        return av.open(file, mode="r", container_options=options, metadata_errors="replace")
    except (av.FFmpegError, ValueError, OSError) as error:
        what = f"cannot be opened as video or sound; the bytes look like {describe_head(head)}"
        raise DecodeError(name, what) from error


def read_times(container: Any, name: str) -> FrameTimes:
    """Read the times of all frames from the packets; nothing is decoded.

    Args:
        container: from `open_container`, at its start; at its end afterwards.
        name: for messages.

    Raises:
        DecodeError: the picture track has no frame, or more than five million.
    """
    import av

    stream = container.streams.video[0]
    times: list[tuple[int | None, bool]] = []
    try:
        for packet in container.demux(stream):
            if packet.size and not getattr(packet, "is_discard", False):
                times.append((packet.pts, packet.is_keyframe))
            if len(times) > _MAX_FRAMES:
                raise DecodeError(name, f"more than {_MAX_FRAMES} frames")
    except av.FFmpegError:
        pass  # cut short: what came before counts
    if not times:
        raise DecodeError(name, "has a picture track without a frame")
    pts = [time for time, _ in times if time is not None]
    timed = len(pts) == len(times) and len(set(pts)) == len(pts)
    keys = sorted(time for time, key in times if key and time is not None)
    order = sorted(pts) if timed else list(range(len(times)))
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    if not 0.001 < rate < 100_000:
        seconds = float((order[-1] - order[0]) * stream.time_base) if timed and len(order) > 1 else 0.0
        rate = (len(order) - 1) / seconds if seconds > 0 else 25.0
    return FrameTimes(order, keys, timed, rate)


def seek_frames(container: Any, scan: FrameTimes, wanted: Sequence[int], rotate: bool) -> dict[int, np.ndarray]:
    """Decode single frames, each from the key frame before it.

    Args:
        container: from `open_container`, at any place.
        scan: of the same container.
        wanted: frame numbers in order of display, sorted.
        rotate: turn frames as the display matrix says.

    Returns:
        Frame number -> (H, W, 3) uint8; fewer than wanted where seeking is not exact: then use `read_frames`.
    """
    import av

    stream = container.streams.video[0]
    found: dict[int, np.ndarray] = {}
    decoder, position = None, -1
    try:
        for index in wanted:
            target = scan.pts[index]
            key = scan.keys[max(bisect.bisect_right(scan.keys, target) - 1, 0)]
            if decoder is None or key > position:
                container.seek(key, stream=stream)
                decoder = container.decode(stream)
            for frame in decoder:
                position = frame.pts if frame.pts is not None else -1
                if position >= target:
                    break
            if position != target:
                return found
            found[index] = _to_rgb(frame, rotate)
    except av.FFmpegError:
        return found
    return found


def read_frames(container: Any, scan: FrameTimes, wanted: Sequence[int], rotate: bool) -> dict[int, np.ndarray]:
    """Decode from the start and keep the frames that are wanted.

    Args:
        container: from `open_container`, at its start.
        scan: of the same container.
        wanted: frame numbers in order of display, sorted.
        rotate: turn frames as the display matrix says.

    Returns:
        Frame number -> (H, W, 3) uint8; what cannot be decoded is missing.
    """
    import av

    number_of = {time: number for number, time in enumerate(scan.pts)} if scan.timed else {}
    waiting, found = set(wanted), {}
    count = 0
    try:
        for frame in container.decode(container.streams.video[0]):
            index = number_of.get(frame.pts, -1) if scan.timed else count
            count += 1
            if index in waiting:
                found[index] = _to_rgb(frame, rotate)
            if index >= wanted[-1]:
                break
    except av.FFmpegError:
        pass  # damaged from here on: the frames before count, the caller says which are missing
    return found


def _to_rgb(frame: Any, rotate: bool) -> np.ndarray:
    import numpy as np

    array: np.ndarray = frame.to_ndarray(format="rgb24")
    quarter_turns = round(getattr(frame, "rotation", 0) / 90) if rotate else 0
    return np.ascontiguousarray(np.rot90(array, quarter_turns)) if quarter_turns else array
