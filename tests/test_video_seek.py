"""Frames found by seeking and passing over equal those of the plain path; where that is not sure, it is taken."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from bindsearch.modalities import containers
from bindsearch.modalities.containers import (
    SEEK_FRAMES,
    FrameTimes,
    open_container,
    read_frames,
    read_times,
    seek_frames,
    stretches,
)
from bindsearch.modalities.video import resize_short_side
from bindsearch.registry import MODALITIES
from bindsearch.sources import Source

FRAMES = 130
VIDEO = MODALITIES["video"]
MINI = VIDEO.config(clips=3, clip_s=1.0, crops=1, size_px=64)

_X264 = {"preset": "veryfast", "sc_threshold": "0"}
KINDS = {
    "key every 2 s": ("libx264", "mp4", _X264),
    "pyramid of B-frames": ("libx264", "mp4", {**_X264, "bf": "5", "b-pyramid": "normal", "refs": "4", "weightp": "2"}),
    "open GOP": ("libx264", "mp4", {**_X264, "x264-params": "open-gop=1:bframes=3:keyint=25"}),
    "open GOP in a stream": ("libx264", "mpegts", {**_X264, "x264-params": "open-gop=1:bframes=3:keyint=25"}),
    "intra refresh in a stream": ("libx264", "mpegts", {**_X264, "x264-params": "intra-refresh=1:bframes=0:keyint=20"}),
    "one key frame": ("libx264", "matroska", {**_X264, "g": "9999"}),
    "key frames alone": ("libx264", "mp4", {**_X264, "g": "1"}),
    "interlaced": ("libx264", "mpegts", {**_X264, "flags": "+ildct+ilme", "x264-params": "interlaced=1"}),
    "flv": ("libx264", "flv", _X264),
    "hevc": ("libx265", "mp4", {"preset": "ultrafast", "x265-params": "log-level=none:open-gop=1:keyint=25"}),
    "vp9": ("libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "1", "g": "25"}),
    "mpeg4 with B-frames": ("mpeg4", "mp4", {"bf": "2", "g": "25"}),
    "mpeg4 in avi": ("mpeg4", "avi", {"bf": "2", "g": "25"}),
    "mpeg2": ("mpeg2video", "mpegts", {"bf": "2", "g": "12"}),
    "no times": ("libx264", "h264", _X264),
}


def encoded(codec, kind, options, times=None):
    """Encode a square that moves over a ground of noise that drifts: what a wrong reference would show."""
    rng = np.random.default_rng(8)
    ground = rng.integers(0, 256, (96, 144 + FRAMES, 3), np.uint8)
    ground = (ground.astype(np.uint16) + np.roll(ground, 1, 0) + np.roll(ground, 1, 1)).astype(np.uint16) // 3
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 144, 96, "yuv420p"
        stream.codec_context.gop_size = int(options.get("g", 50))
        for number in range(FRAMES):
            picture = ground[:, number : number + 144].astype(np.uint8)
            picture[30:50, number : number + 12] = (250, number, 20)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = int(times[number]), Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def both_ways(data, wanted):
    """Give what seeking finds and what reading through finds."""
    with open_container(io.BytesIO(data), "a video", data[:64]) as container:
        scan = read_times(container, "a video")
        sought = seek_frames(container, scan, wanted, True) if scan.timed and scan.keys else None
    with open_container(io.BytesIO(data), "a video", data[:64]) as container:
        return sought, read_frames(container, scan, wanted, True), scan


@pytest.mark.parametrize("kind", KINDS)
def test_seeking_gives_the_frames_of_the_plain_path(kind):
    data = encoded(*KINDS[kind])
    rng = np.random.default_rng(len(kind))
    complete = 0
    for wanted in ([0, 24, 52, 76, 105, 129], [77], *(sorted(rng.choice(FRAMES, 4, replace=False)) for _ in range(4))):
        wanted = [int(index) for index in wanted]
        sought, plain, scan = both_ways(data, wanted)
        assert len(scan.pts) == FRAMES
        assert sorted(plain) == wanted
        if sought is None:
            assert kind == "no times"
            continue
        for index, frame in sought.items():
            assert np.array_equal(frame, plain[index]), (wanted, index)
        complete += len(sought) == len(wanted)
    if KINDS[kind][0] == "libx264" and kind not in ("no times", "intra refresh in a stream"):
        assert complete == 6, "these are found without falling back"


def test_variable_rate_is_met_by_time():
    times = np.cumsum([0, *np.random.default_rng(1).integers(1, 6, FRAMES - 1)])
    data = encoded("libx264", "matroska", _X264, times)
    sought, plain, _ = both_ways(data, [3, 60, 61, 128])
    assert sorted(sought) == [3, 60, 61, 128]
    assert all(np.array_equal(sought[index], plain[index]) for index in plain)


@pytest.mark.parametrize("kind", ["key every 2 s", "open GOP in a stream", "hevc", "no times"])
def test_a_whole_clip_is_the_same(kind, monkeypatch):
    source = Source.of(encoded(*KINDS[kind]))
    media = VIDEO.decode(source, MINI)
    monkeypatch.setattr("bindsearch.modalities.video._worth_seeking", lambda scan, plan: False)
    assert np.array_equal(VIDEO.decode(source, MINI).array, media.array)


def test_few_frames_cost_few_packets(monkeypatch):
    """Of a key frame every 50, the stretch before frame 105 is not decoded, and of the rest not every frame."""
    data = encoded(*KINDS["pyramid of B-frames"])
    handed = []
    real = containers._to_rgb
    monkeypatch.setattr(containers, "_to_rgb", lambda frame, rotate: handed.append(frame.pts) or real(frame, rotate))
    sought, _, scan = both_ways(data, [105])
    assert list(sought) == [105]
    assert len(handed) == 2  # each way turned one frame into colours
    assert stretches(scan, [105]) == [(scan.pts[100], [105])]


def test_stretches_end_where_a_seek_spares_enough():
    scan = FrameTimes(list(range(0, 2000, 10)), [0, 500, 1000, 1500])
    assert stretches(scan, [0, 49, 50, 99]) == [(0, [0, 49, 50, 99])]
    near, far = 100 - SEEK_FRAMES, 100 - SEEK_FRAMES - 1
    assert stretches(scan, [near, 120]) == [(500, [near, 120])]
    assert stretches(scan, [far, 120]) == [(500, [far]), (1000, [120])]
    assert stretches(scan, [160]) == [(1500, [160])]


def test_damage_in_the_middle_falls_back_to_what_was_read(monkeypatch):
    data = bytearray(encoded(*KINDS["open GOP in a stream"]))
    middle = len(data) // 2
    data[middle : middle + 2000] = np.random.default_rng(2).integers(0, 256, 2000, np.uint8).tobytes()
    media = VIDEO.decode(Source.of(bytes(data)), MINI)
    assert media.array.shape == (6, 96, 144, 3)


@pytest.mark.parametrize(("height", "width", "size"), [(72, 128, 22), (90, 50, 97), (45, 45, 45), (30, 77, 64)])
def test_the_resampling_is_bit_equal_to_rows_then_columns(height, width, size):
    from bindsearch.modalities.video import _neighbours

    frames = np.random.default_rng(5).integers(0, 256, (3, height, width, 3), np.uint8)
    ours = resize_short_side(frames, size)
    low, high, weight = _neighbours(height, ours.shape[1])
    rows = frames[:, low].astype(np.float32)
    rows += weight[:, None, None] * (frames[:, high].astype(np.float32) - rows)
    low, high, weight = _neighbours(width, ours.shape[2])
    left = rows[:, :, low]
    left += weight[:, None] * (rows[:, :, high] - left)
    assert np.array_equal(ours, left)
