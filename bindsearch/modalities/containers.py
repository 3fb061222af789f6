"""Containers of video and sound, opened by FFmpeg through PyAV: times of frames, and single frames by index."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
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

SEEK_FRAMES = 12
"""A seek has to spare more frames than this."""
SKIPPABLE = ("h264",)
"""Decoders told to pass over frames that are marked as no reference for others. HEVC is not among them: there the mark
speaks of one temporal layer alone."""

_MAX_FRAMES = 5_000_000
_BACK_S, _LOOK_PACKETS = 3, 500
_UNSEEN_S = 0.05  # frames that are so late make no video one of variable rate
_SOUND_BACK_S = 1.0  # a frame of sound is built upon those before it: of AAC upon one, of MP3 upon up to nine
_LASTING_FROM_0 = ("matroska,webm", "nut")  # the lengths in their heads count from time 0, by most writers


@dataclass(frozen=True)
class FrameTimes:
    """Times of all frames, from the packets alone.

    Attributes:
        pts: of each frame, in order of display and in the stream's time base; its number where `timed` is False.
        keys: of the key frames that decoding can begin at, sorted.
        timed: whether every frame has a time of its own.
        rate_hz: average frames a second, as the head says.
        tick_s: the stream's time base.
    """

    pts: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    timed: bool = True
    rate_hz: float = 0.0
    tick_s: Fraction = Fraction(1)

    @cached_property
    def steady(self) -> bool:
        """Say whether frames come at the average rate: none further than half a frame, or 50 ms, from its place."""
        import numpy as np

        if not self.timed:
            return True
        seconds = (np.asarray(self.pts, np.float64) - self.pts[0]) * float(self.tick_s)
        off_s = np.abs(seconds - np.arange(len(self.pts)) / self.rate_hz).max()
        return bool(off_s <= max(0.5 / self.rate_hz, _UNSEEN_S))

    @property
    def lasting_s(self) -> Fraction:
        """Count to the end of the last of several frames: as long as the one before it, or all on average."""
        whole, last = self.pts[-1] - self.pts[0], self.pts[-1] - self.pts[-2]
        return (whole + min(Fraction(whole, len(self.pts) - 1), Fraction(last))) * self.tick_s

    def seconds(self, index: int) -> Fraction:
        """Give the time of a frame, from the first one's."""
        return (self.pts[index] - self.pts[0]) * self.tick_s

    def shown(self, at_s: Fraction) -> int:
        """Give the frame on display at a time from the first one's."""
        return max(bisect.bisect_right(self.pts, self.pts[0] + at_s / self.tick_s) - 1, 0)

    def between(self, start_s: Fraction, end_s: Fraction) -> tuple[int, int]:
        """Give the first and last-excluded frame that begin in a stretch of time; or else the one on display."""
        first, last = (bisect.bisect_left(self.pts, self.pts[0] + at / self.tick_s) for at in (start_s, end_s))
        return (first, last) if last > first else (self.shown(start_s), self.shown(start_s) + 1)


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
    codec, head = stream.codec_context.name, bytes(stream.codec_context.extradata or b"")
    times: list[tuple[int | None, bool]] = []
    try:
        for packet in container.demux(stream):
            if packet.size and not getattr(packet, "is_discard", False):
                times.append((packet.pts, packet.is_keyframe and _starts_afresh(packet, codec, head)))
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
    return FrameTimes(order, keys, timed, rate, Fraction(stream.time_base))


def seek_frames(container: Any, scan: FrameTimes, wanted: Sequence[int], rotate: bool) -> dict[int, np.ndarray]:
    """Decode single frames, each from the key frame before it, passing over frames that no other frame is built from.

    Args:
        container: from `open_container`, at any place; its decoder not used yet.
        scan: of the same container; `timed`, with a key frame.
        wanted: frame numbers in order of display, sorted.
        rotate: turn frames as the display matrix says.

    Returns:
        Frame number -> (H, W, 3) uint8, the same bytes as of `read_frames`; fewer than wanted where that is not sure
        (a time is missing, a frame is marked as damaged, the decoder gave another one): then use `read_frames`.
    """
    import av

    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1  # decode workers are one a core already; threads cost a sixth more
    found: dict[int, np.ndarray] = {}
    try:
        for key, indices in stretches(scan, wanted):
            targets = {scan.pts[index]: index for index in indices}
            if not _decode_stretch(stream, _packets_from(container, stream, key), targets, rotate, found):
                break
    except av.FFmpegError:
        pass
    return found


def stretches(scan: FrameTimes, wanted: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Divide frames in stretches that are each decoded from one key frame.

    A stretch ends where the next frame's key frame lies more than SEEK_FRAMES beyond: a seek that spares fewer costs
    more than it saves.

    Args:
        scan: `timed`, with a key frame.
        wanted: frame numbers, sorted.

    Returns:
        Time of the key frame and the frames wanted, of each stretch.
    """
    parts: list[tuple[int, list[int]]] = []
    for index in wanted:
        key = scan.keys[max(bisect.bisect_right(scan.keys, scan.pts[index]) - 1, 0)]
        spared = bisect.bisect_left(scan.pts, key) - (parts[-1][1][-1] if parts else -SEEK_FRAMES - 1)
        if not parts or spared > SEEK_FRAMES:
            parts.append((key, [index]))
        else:
            parts[-1][1].append(index)
    return parts


def _packets_from(container: Any, stream: Any, key: int) -> Iterator[Any]:
    """Yield the packets from a key frame on; nothing where the container does not get there.

    A seek in a stream without an index may end behind the key frame asked for: then once more from well before it.
    """
    for back_s in (0, _BACK_S):
        container.seek(key - int(back_s / stream.time_base), stream=stream)
        packets = container.demux(stream)
        for packet in itertools.islice(packets, _LOOK_PACKETS):
            if packet.pts == key:
                yield packet
                yield from packets
                return


def _decode_stretch(
    stream: Any, packets: Iterator[Any], targets: dict[int, int], rotate: bool, found: dict[int, np.ndarray]
) -> bool:
    """Decode up to the last target (time -> frame number); False where one is missed."""
    context, last = stream.codec_context, max(targets)
    passing_over = "NONREF" if context.name in SKIPPABLE else "DEFAULT"
    for packet in packets:
        context.skip_frame = "DEFAULT" if packet.pts in targets else passing_over
        for frame in packet.decode():
            if frame.pts is None or frame.is_corrupt:
                return False
            if frame.pts in targets:
                found[targets[frame.pts]] = _to_rgb(frame, rotate)
            if frame.pts >= last:
                return frame.pts == last and all(index in found for index in targets.values())
    return False


def _starts_afresh(packet: Any, codec: str, head: bytes) -> bool:
    """Say whether nothing after a key frame is built from anything before it.

    H.264 and HEVC also mark pictures as key frames from which decoding recovers after a while (open groups of pictures,
    intra refresh); what is decoded from there can differ without a sign. Only IDR pictures count here.

    Args:
        packet: of the key frame.
        codec: FFmpeg's name.
        head: the stream's extra data, which says how units are divided.

    Source: ITU-T H.264, table 7-1 (type 5); ITU-T H.265, table 7-1 (types 19, 20).
    """
    if codec not in ("h264", "hevc"):
        return True
    data = bytes(packet)
    mask, shift, types, where = (0x1F, 0, (5,), 4) if codec == "h264" else (0x3F, 1, (19, 20), 21)
    places = _behind_lengths(data, (head[where] & 3) + 1) if head[:1] == b"\1" and len(head) > where else _marked(data)
    return any((data[at] >> shift) & mask in types for at in places)


def _marked(data: bytes) -> Iterator[int]:
    """Yield where units begin that have start codes before them."""
    at = data.find(b"\0\0\1")
    while 0 <= at < len(data) - 3:
        yield at + 3
        at = data.find(b"\0\0\1", at + 3)


def _behind_lengths(data: bytes, width: int) -> Iterator[int]:
    """Yield where units begin that have their lengths before them, in so many bytes."""
    at = width
    while at < len(data):
        yield at
        at += int.from_bytes(data[at - width : at], "big") + width


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


def frames_before(container: Any, stream: Any, sample: int, rate: int) -> tuple[int, Iterator[Any]]:
    """Seek to well before a sample, counted from the track's first one: a track need not begin at time 0.

    Args:
        container: from `open_container`, at its start.
        stream: of sound, in it.
        sample: above 0.
        rate: samples a second.

    Returns:
        The sample's number that the frames begin at, and the frames: from the track's start where no seek leads before
        the sample.
    """
    import av

    opening = list(itertools.islice(container.decode(stream), 2))
    zero_s = opening[0].time if opening and opening[0].time is not None else _start_s(container, stream)
    for back_s in (_SOUND_BACK_S, 10 * _SOUND_BACK_S):
        container.seek(int((zero_s + max(sample / rate - back_s, 0.0)) * av.time_base))
        frames = container.decode(stream)
        frame = next(frames, None)
        if frame is None or frame.time is None:
            break
        at = _number_of(frame.time - zero_s, opening, float(stream.time_base), rate)
        if at <= sample:
            return at, itertools.chain([frame], frames)
    container.seek(int(zero_s * av.time_base))
    return 0, container.decode(stream)


def _number_of(time_s: float, opening: list[Any], tick_s: float, rate: int) -> int:
    """Give the number of a frame's first sample; its time may be rounded to milliseconds, but frames are equally long.

    Args:
        time_s: of the frame, from the first one's.
        opening: the track's first two frames; the first may have been cut.
        tick_s: the unit of times.
        rate: samples a second.
    """
    near, off = time_s * rate, 2 * tick_s * rate
    if len(opening) == 2 and opening[1].samples > 4 * off:
        lead, size = opening[0].samples, opening[1].samples
        exact = max(lead + round((near - lead) / size) * size, 0)
        near = exact if abs(exact - near) <= off else near
    return max(round(near), 0)


def sound_seconds(container: Any) -> float:
    """Read how long the first sound track lasts from where it begins, in seconds.

    Args:
        container: from `open_container`, with a duration; at any place, and left at any place.
    """
    import av

    stream = container.streams.audio[0] if container.streams.audio else None
    start_s, seconds = _start_s(container, stream), float(container.duration / av.time_base)
    if stream is not None and start_s > 0 and container.format.name in _LASTING_FROM_0:
        end_s = _last_s(container, stream, start_s + seconds) or seconds
    else:
        end_s = seconds + (container.start_time or 0) / av.time_base
    return round(end_s - start_s, 6) if end_s > start_s else seconds


def counted_seconds(container: Any) -> float:
    """Count how long the first sound track lasts by its packets, where the container (a streamed one) does not say it.

    Args:
        container: from `open_container`, at its start; at its end afterwards.

    Returns:
        Seconds from where the track begins; 0 where there is none, or its packets have no times.
    """
    import av

    if not container.streams.audio:
        return 0.0
    start_s, end_s = None, 0.0
    try:
        for packet in container.demux(container.streams.audio[0]):
            if packet.pts is not None:
                start_s = float(packet.pts * packet.time_base) if start_s is None else start_s
                end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    except av.FFmpegError:
        pass  # damaged from here on: what came before counts
    return 0.0 if start_s is None else round(end_s - start_s, 6)


def _start_s(container: Any, stream: Any) -> float:
    import av

    if stream is not None and stream.start_time is not None:
        return float(stream.start_time * stream.time_base)
    return float((container.start_time or 0) / av.time_base)


def _last_s(container: Any, stream: Any, near_s: float) -> float:
    """Read the time at which the last packet ends; 0 where that cannot be read."""
    import av

    last = 0.0
    try:
        container.seek(int(near_s * av.time_base))
        for packet in container.demux(stream):
            if packet.pts is not None:
                last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    except av.FFmpegError:
        pass  # what came before counts
    return last
