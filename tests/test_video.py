import io
from fractions import Fraction

import av
import numpy as np
import pytest
from hostile import video_bytes
from preprocess_recipes import PREPROCESS, read_json, video_frames

from bindsearch.errors import DecodeError, InputError
from bindsearch.modalities import video
from bindsearch.modalities.video import clip_frames, crop_offsets
from bindsearch.registry import MODALITIES
from bindsearch.sources import Source
from bindsearch.types import Media

VIDEO = MODALITIES["video"]
REFERENCE, DEFAULT = VIDEO.config("reference"), VIDEO.config()
CASES = read_json("preprocess/video.json")


def numbered(frames=600, codec="libx264", kind="mp4", gop=50, times=None, rotation=0, pixels="yuv420p"):
    """Encode a video whose frames show their number as twelve black or white bars."""
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 144, 32, pixels
        stream.codec_context.gop_size = gop
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            bars = np.array([255 * (number >> bit & 1) for bit in range(12)], np.uint8).repeat(12)
            frame = av.VideoFrame.from_ndarray(np.tile(bars[None, :, None], (32, 1, 3)), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def number_of(frame):
    return sum(1 << bit for bit in range(12) if frame[16, 12 * bit + 6].mean() > 128)


@pytest.mark.parametrize("case", CASES)
def test_reference_clips(case):
    facts = CASES[case]
    frames = video_frames(case, facts)
    source = Source.of(frames, case, rate_hz=facts["fps"])
    assert [list(indices) for _, indices in VIDEO.plan(source, REFERENCE).clips] == facts["picked_frames"]
    x = VIDEO.preprocess(VIDEO.decode(source, REFERENCE), REFERENCE)
    assert x.shape == (15, 3, 2, 224, 224)
    with np.load(PREPROCESS / "video_samples.npz") as samples:
        assert np.abs(x[..., ::16, ::16] - samples[case]).max() <= 5e-5
    assert np.abs(x.mean(axis=(1, 2, 3, 4)) - facts["mean"]).max() <= 1e-5
    # all frames at hand give the same as only those that the plan wants
    assert np.array_equal(VIDEO.preprocess(Media("video", frames, "level", facts["fps"]), REFERENCE), x)


def test_frame_table():
    rows = read_json("preprocess/video_frame_table.json")["rows"]
    assert len(rows) == 108
    for rate, frames, expected in rows:
        assert [list(indices) for _, indices in clip_frames(frames, rate, REFERENCE)] == expected


def test_crops_table():
    for height, width, expected in read_json("preprocess/video_crops.json")["rows"]:
        assert [list(offsets) for offsets in crop_offsets(height, width, REFERENCE)] == expected
        assert crop_offsets(height, width, VIDEO.config(crops=1)) == [tuple(expected[1])]


def test_resizing_equals_torch():
    import torch

    frames = np.random.default_rng(3).integers(0, 256, (2, 45, 71, 3), np.uint8)
    for size in (20, 45, 97):
        ours = video.resize_short_side(frames, size)
        tensor = torch.from_numpy(frames.astype(np.float32)).permute(0, 3, 1, 2)
        theirs = torch.nn.functional.interpolate(tensor, size=ours.shape[1:3], mode="bilinear", align_corners=False)
        assert np.abs(ours - theirs.permute(0, 2, 3, 1).numpy()).max() <= 1e-3


@pytest.mark.parametrize(
    ("codec", "kind"),
    [
        ("libx264", "mp4"),
        ("libx264", "matroska"),
        ("libx264", "mpegts"),
        ("mpeg4", "avi"),
        ("libvpx", "webm"),
        ("libx264", "flv"),
    ],
)
def test_exactly_the_planned_frames_are_decoded(codec, kind):
    source = Source.of(numbered(codec=codec, kind=kind))
    plan = VIDEO.plan(source, DEFAULT)
    assert plan.wanted[-1] > video.SEEK_FRAMES
    media = VIDEO.decode(source, DEFAULT)
    assert (plan.frames, plan.rate_hz) == (600, 25.0)
    assert plan.wanted == (0, 49, 138, 187, 275, 324, 413, 462, 550, 599)
    assert [number_of(frame) for frame in media.array] == list(plan.wanted)
    part = VIDEO.decode(source, DEFAULT, (10.0, 12.0))
    assert [number_of(frame) for frame in part.array] == [250, 299]


def test_seeking_and_reading_through_agree(monkeypatch):
    source = Source.of(numbered(gop=20))
    seeking = VIDEO.decode(source, DEFAULT)
    monkeypatch.setattr(video, "_worth_seeking", lambda scan, plan: False)
    assert np.array_equal(VIDEO.decode(source, DEFAULT).array, seeking.array)
    # a seek that finds nothing falls back to reading through
    monkeypatch.setattr(video, "_worth_seeking", lambda scan, plan: True)
    monkeypatch.setattr(video, "seek_frames", lambda *args: {})
    assert np.array_equal(VIDEO.decode(source, DEFAULT).array, seeking.array)


def test_the_file_is_streamed(monkeypatch, tmp_path):
    path = tmp_path / "long.mp4"
    path.write_bytes(numbered(400))
    monkeypatch.setattr(Source, "read_bytes", lambda *args: pytest.fail("the whole file was read"))
    assert VIDEO.decode(Source.of(path), DEFAULT).array.shape == (10, 32, 144, 3)


def test_the_plan_prints():
    text = str(VIDEO.plan(Source.of(numbered(125), "a.mp4"), DEFAULT))
    assert text.splitlines()[0] == "a.mp4: 125 frames at 25 Hz (5.00 s); 3 crops a clip"
    assert text.splitlines()[2] == "  clip 1  from    0.750 s  frames 19, 68"


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_rotation_of_phones(degrees, turns):
    plain = VIDEO.decode(Source.of(numbered(5)), DEFAULT).array
    turned = Source.of(numbered(5, rotation=degrees))
    assert np.array_equal(VIDEO.decode(turned, DEFAULT).array, np.rot90(plain, turns, axes=(1, 2)))
    assert np.array_equal(VIDEO.decode(turned, REFERENCE).array, plain)


def test_variable_frame_rate():
    times = np.cumsum([0, *np.random.default_rng(1).integers(1, 6, 99)])
    source = Source.of(numbered(100, kind="matroska", times=[int(time) for time in times]))
    plan = VIDEO.plan(source, DEFAULT)
    assert plan.frames == 100
    assert [number_of(frame) for frame in VIDEO.decode(source, DEFAULT).array] == list(plan.wanted)


def test_one_frame_gives_full_clips():
    media = VIDEO.decode(Source.of(numbered(1)), DEFAULT)
    assert media.notes["picks"] == [[0, 0]] * 5
    assert VIDEO.preprocess(media, DEFAULT).shape == (15, 3, 2, 224, 224)


def test_a_cut_video_gives_what_is_there():
    data = numbered(200, kind="mpegts", gop=10)
    media = VIDEO.decode(Source.of(data[: len(data) // 2]), DEFAULT)
    assert 50 < media.notes["frames"] < 150
    numbers = [number_of(frame) for frame in media.array]
    assert numbers == sorted(numbers)


def test_what_is_no_video_is_said():
    with pytest.raises(DecodeError, match=r"has no pictures; for its sound: --modality audio"):
        VIDEO.decode(Source.of(video_bytes(0, size=(0, 0), sound=True)), DEFAULT)
    with pytest.raises(DecodeError, match="plain text"):
        VIDEO.decode(Source.of(b"no film\n" * 99), DEFAULT)
    with pytest.raises(DecodeError, match="frames of 144x32 pixels"):
        VIDEO.decode(Source.of(numbered(3)), VIDEO.config(max_pixels=4000))
    with pytest.raises(DecodeError, match=r"no frame in 9-10 s; the video has 0\.40 s"):
        VIDEO.decode(Source.of(numbered(10)), DEFAULT, (9.0, 10.0))
    with pytest.raises(InputError, match="rate_hz=25"):
        VIDEO.decode(Source.of(np.zeros((3, 9, 9, 3), np.uint8)), DEFAULT)


def test_playlists_open_no_other_file(tmp_path):
    secret = tmp_path / "secret.ts"
    secret.write_bytes(numbered(10, kind="mpegts"))
    lists = {
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        "concat.mp4": f"ffconcat version 1.0\nfile '{secret}'\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(DecodeError, match="cannot be opened as video"):
            VIDEO.decode(Source.of(tmp_path / name), DEFAULT)


def test_spans():
    source = Source.of(np.zeros((900, 4, 4, 3), np.uint8), rate_hz=10)
    assert VIDEO.spans(source, DEFAULT, None) == [(10.0 * n, 10.0 * n + 10) for n in range(9)]
    assert VIDEO.spans(source, REFERENCE, None) == []
    assert VIDEO.spans(source, DEFAULT, 45.0) == [(0.0, 45.0), (45.0, 90.0)]


def test_small_spaces_are_data():
    config = VIDEO.config(size_px=64, clips=2, crops=1, frames=4)
    media = VIDEO.decode(Source.of(numbered(60)), config)
    assert media.notes["picks"] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert VIDEO.preprocess(media, config).shape == (2, 3, 4, 64, 64)
