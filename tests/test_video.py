import io
from fractions import Fraction

import av
import numpy as np
import pytest
from hostile import video_bytes
from preprocess_recipes import PREPROCESS, read_json, video_frames

from bindsearch.errors import DecodeError, InputError
from bindsearch.modalities import containers, video
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


@pytest.mark.parametrize("start_s", [0, 100])
@pytest.mark.parametrize("kind", ["mp4", "matroska", "mpegts"])
def test_variable_frame_rate(kind, start_s):
    """A frame a second, then 25 a second, then a minute of three pictures: each is met at its own time."""
    at_s = [*range(20), *(20 + number / 25 for number in range(100)), 24, 50, 80]
    source = Source.of(numbered(123, kind=kind, times=[round((time + start_s) * 25) for time in at_s]))
    assert VIDEO.spans(source, DEFAULT, None)[-1] == (70.0, pytest.approx(80 + 80 / 122, abs=0.01))
    spans = [(0.0, 10.0), (10.0, 20.0), (20.0, 22.0), (23.0, 45.0), (30.0, 40.0), (70.0, 81.0)]
    shown = []
    for span in spans:
        media = VIDEO.decode(source, DEFAULT, span)
        numbers = [number_of(frame) for frame in media.array]
        assert numbers == media.notes["frame_indices"]
        shown.append((at_s[numbers[0]], round(at_s[numbers[-1]], 2)))
    assert shown == [(0, 9), (10, 19), (20, 21.96), (23, 24), (24, 24), (80, 80)]  # 24 s is on display up to 50
    plan = VIDEO.plan(source, VIDEO.config(clips=3))
    assert (plan.frames, plan.rate_hz) == (123, pytest.approx(123 / plan.duration_s))
    starts = [start for start, _ in plan.clips]
    assert starts == pytest.approx([0, 39.33, 78.66], abs=0.01)
    assert [[at_s[index] for index in indices] for _, indices in plan.clips] == [[0, 1], [24, 24], [80, 80]]
    with pytest.raises(DecodeError, match=r"no frame in 90-95 s; the video has 80\.66 s"):
        VIDEO.decode(source, DEFAULT, (90.0, 95.0))


def test_frames_within_a_clip_follow_in_time():
    at_s = [0, 1, 2, *(2 + number / 25 for number in range(1, 50)), 4, 8, 12]
    source = Source.of(numbered(55, times=[round(time * 25) for time in at_s]))
    plan = VIDEO.plan(source, VIDEO.config(clips=1, clip_s=4.5, frames=5))
    assert [at_s[index] for index in plan.clips[0][1]] == [0, 1, 2, 3, 4]


def test_a_rate_that_the_head_has_wrong():
    """A recorder writes 25 frames a second in its head and delivers 5."""
    source = Source.of(numbered(400, kind="matroska", times=list(range(0, 2000, 5))))
    assert VIDEO.spans(source, DEFAULT, None)[-1] == (70.0, 80.0)
    assert VIDEO.plan(source, DEFAULT, (10.0, 20.0)).wanted[0] == 50
    assert str(VIDEO.plan(source, DEFAULT)).splitlines()[0].endswith("400 frames at 5 Hz (80.00 s); 3 crops a clip")


def test_reference_counts_frames_whatever_their_times():
    times = [*range(0, 500, 25), *range(500, 600)]
    source = Source.of(numbered(120, kind="matroska", times=times))
    plan = VIDEO.plan(source, REFERENCE)
    assert plan.clips == tuple(clip_frames(120, plan.rate_hz, REFERENCE))
    assert plan.duration_s == 120 / plan.rate_hz
    assert plan.clips != VIDEO.plan(source, DEFAULT).clips


@pytest.mark.parametrize(
    ("kind", "rate"), [("mp4", 25), ("matroska", 30), ("flv", Fraction(30000, 1001)), ("mpegts", 24)]
)
@pytest.mark.parametrize("first", [0, 77])
def test_a_constant_rate_gives_the_frames_of_the_average_rate(kind, rate, first):
    """Also where the container rounds times to milliseconds, begins late, or two frames come a little late."""
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(500):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            late = 0.4 if number in (49, 50) else 0
            frame.pts, frame.time_base = int((number + first + late) * 1000), 1 / Fraction(rate) / 1000
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    source, average = Source.of(out.getvalue()), VIDEO.config(times="average")
    assert VIDEO.spans(source, DEFAULT, 2.0) == VIDEO.spans(source, average, 2.0)
    for span in (None, (2.0, 4.0), (1.999, 4.6), (10.0, 20.0)):
        assert VIDEO.plan(source, DEFAULT, span) == VIDEO.plan(source, average, span)


def test_times_of_frames_changed_no_preset_id():
    """Embeddings of videos of constant rate are what they were; another choice than the preset's is told apart."""
    assert (DEFAULT.id, REFERENCE.id) == ("default:3333b1a1", "reference:6121a94d")
    assert VIDEO.config(times="average").id != DEFAULT.id
    assert VIDEO.config("reference", times="own").id != REFERENCE.id


def test_long_thin_videos_are_refused_before_a_frame_is_decoded(monkeypatch):
    """Scaled to 224 pixels, each frame would be 57,344 wide; pictures of that shape are refused, too."""
    monkeypatch.setattr(video, "read_frames", None)
    monkeypatch.setattr(video, "seek_frames", None)
    words = r"1024x16: one side is over 50 times the other \(max_aspect\); crop it first"
    for thing in (
        Source.of(video_bytes(3, size=(1024, 16))),
        Source.of(np.zeros((3, 16, 1024, 3), np.uint8), rate_hz=3),
    ):
        for preset in ("default", "reference"):
            with pytest.raises(DecodeError, match=words):
                VIDEO.decode(thing, VIDEO.config(preset))
    with pytest.raises(DecodeError, match=words) as refused:
        VIDEO.preprocess(Media("video", np.zeros((3, 16, 1024, 3), np.uint8), "level", 3.0), DEFAULT)
    assert refused.value.stage == "preprocess"
    small = VIDEO.config(max_aspect=64.0, size_px=8)
    assert VIDEO.decode(Source.of(np.zeros((3, 16, 1024, 3), np.uint8), rate_hz=3), small).array.shape[2] == 1024
    assert VIDEO.config(max_aspect=64.0).id != DEFAULT.id


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


def test_a_window_in_which_no_frame_begins_has_the_one_on_display():
    """As a recorder of slides makes them: a frame every two seconds."""
    frames = np.arange(5, dtype=np.uint8).repeat(40 * 40 * 3).reshape(5, 40, 40, 3)
    source = Source.of(frames, "slides", rate_hz=0.5)
    for second in range(10):
        media = VIDEO.decode(source, DEFAULT, (second, second + 1.0))
        assert (media.notes["frame_indices"], media.array.max()) == ([second // 2], second // 2)
    with pytest.raises(DecodeError, match=r"no frame in 10-11 s; the video has 10\.00 s"):
        VIDEO.decode(source, DEFAULT, (10, 11))
    with pytest.raises(DecodeError, match="no frame in 3-4 s"):
        VIDEO.decode(source, REFERENCE, (3, 4))


def test_windows_of_one_video_read_its_times_once(monkeypatch, tmp_path):
    """Else a long recording would cost the square of its length; other bytes of the same name are read anew."""
    path, counts = tmp_path / "long.mp4", []

    def read_times(container, name):
        counts.append(name)
        return containers.read_times(container, name)

    monkeypatch.setattr(video, "read_times", read_times)
    for frames in (250, 300):
        data = numbered(frames)
        path.write_bytes(data)
        for second in range(0, frames // 25, 2):
            window = VIDEO.decode(Source.of(path), DEFAULT, (second, second + 2))
            alone = VIDEO.decode(Source.of(data), DEFAULT, (second, second + 2))
            assert np.array_equal(window.array, alone.array)
            assert window.notes == alone.notes
    assert counts.count(str(path)) == 2
    VIDEO.decode(Source.of(path), DEFAULT)
    assert counts.count(str(path)) == 3, "a whole video leaves no times behind and takes none"


def test_small_spaces_are_data():
    config = VIDEO.config(size_px=64, clips=2, crops=1, frames=4)
    media = VIDEO.decode(Source.of(numbered(60)), config)
    assert media.notes["picks"] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert VIDEO.preprocess(media, config).shape == (2, 3, 4, 64, 64)
