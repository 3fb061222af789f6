import io
import math
from fractions import Fraction

import av
import numpy as np
import pytest
import scipy.io.wavfile
import soundfile
from hostile import video_bytes
from preprocess_recipes import PREPROCESS, audio_wave, read_json

from bindsearch.errors import DecodeError, InputError
from bindsearch.modalities import containers, mel
from bindsearch.modalities.audio import clip_bounds, duration_s
from bindsearch.modalities.clips import windows
from bindsearch.registry import MODALITIES
from bindsearch.sources import Source
from bindsearch.types import Media

AUDIO = MODALITIES["audio"]
REFERENCE, DEFAULT = AUDIO.config("reference"), AUDIO.config()
CASES = read_json("preprocess/audio.json")["cases"]


@pytest.fixture(scope="module")
def internals():
    with np.load(PREPROCESS / "audio_internals.npz") as file:
        yield {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def samples():
    with np.load(PREPROCESS / "audio_samples.npz") as file:
        yield {name: file[name] for name in file.files}


def media(wave, rate):
    return Media("audio", np.asarray(wave, np.float32), "amplitude", float(rate), "test")


def tone(seconds, rate=16000, hz=440.0, channels=1):
    wave = 0.3 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)
    return np.stack([wave * (number + 1) / channels for number in range(channels)]).astype(np.float32)


def test_filterbank_parts(internals):
    assert np.abs(mel.mel_bank(128, 512, 16000, 20.0, 8000.0) - internals["mel_banks_128x256"]).max() <= 5e-5
    assert np.abs(mel.hann_window(400) - internals["hann_symmetric_400"]).max() <= 3e-7
    energies = mel.filterbank(internals["fbank_2s_input"][0], 16000, 128, 20.0, 8000.0)
    assert energies.shape == (198, 128)
    # un-normalised logarithms: the reference itself is 6e-5 from its fp64 here
    assert np.abs(energies - internals["fbank_2s_fp64"]).max() <= 1e-4 * 9.138


def test_resampled_waves(internals):
    names = [name for name in internals if name.startswith("resampled/")]
    assert len(names) == 10
    for name in names:
        facts = CASES[name.removeprefix("resampled/")]
        wave = audio_wave(name.removeprefix("resampled/"), facts)
        got = mel.resample(wave, facts["sr"], 16000)
        assert got.shape == internals[name].shape
        assert np.abs(got - internals[name]).max() <= 2e-5


@pytest.mark.parametrize("case", CASES)
def test_reference_pictures(case, samples):
    facts = CASES[case]
    x = AUDIO.preprocess(media(audio_wave(case, facts), facts["sr"]), REFERENCE)
    assert x.shape == (3, 1, 128, 204)
    error = np.abs(x[:, 0, ::4, ::3] - samples[case])
    # bands above the Nyquist frequency of 8 and 22.05 kHz hold rounding noise only
    low_rate = facts["sr"] in (8000, 22050)
    assert error.max() <= (1e-3 if low_rate else 1e-4)
    assert error.mean() <= 1e-5
    assert np.abs(x.mean(axis=(1, 2, 3)) - facts["mean"]).max() <= 1e-5
    assert np.abs(x.std(axis=(1, 2, 3)) - facts["std"]).max() <= 1e-4
    assert [list(bounds) for bounds in clip_bounds(facts["n_16k"], REFERENCE)] == facts["clip_samples"]


def test_clip_starts_table():
    rows = read_json("preprocess/audio_clip_starts.json")["rows"]
    assert len(rows) == 311
    for length, *starts in rows:
        assert clip_bounds(length, REFERENCE) == [(start, min(start + 32000, length)) for start in starts]


@pytest.mark.filterwarnings("ignore")
def test_filterbank_equals_torchaudio():
    import torch
    import torchaudio

    wave = np.random.default_rng(5).normal(0, 0.1, (1, 24_000)).astype(np.float32)
    for mels, low, high in ((128, 20.0, 8000.0), (64, 50.0, 7000.0), (23, 0.0, 4000.0)):
        theirs = torchaudio.compliance.kaldi.fbank(
            torch.from_numpy(wave),
            htk_compat=True,
            sample_frequency=16000,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=mels,
            dither=0.0,
            low_freq=low,
            high_freq=high,
        ).numpy()
        ours = mel.filterbank(wave[0], 16000, mels, low, high)
        # logarithms: torchaudio itself moves by 1.5e-4 between fp32 and fp64 here
        assert np.abs(ours - theirs).max() <= 5e-4
        assert np.abs(ours - theirs).mean() <= 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rate", [8000, 11025, 12000, 32000, 44100, 96000])
def test_resampling_equals_torchaudio(rate):
    import torch
    import torchaudio

    wave = np.random.default_rng(rate).normal(0, 0.2, (2, rate // 3)).astype(np.float32)
    theirs = torchaudio.functional.resample(torch.from_numpy(wave).double(), rate, 16000).numpy()
    ours = mel.resample(wave, rate, 16000)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-6


def test_both_ways_to_resample_agree(monkeypatch):
    wave = np.random.default_rng(4).normal(0, 0.2, (2, 9000)).astype(np.float32)
    for old, new in ((441, 160), (2, 1), (1, 2), (160, 441)):
        table = mel.resample(wave, old * 100, new * 100)
        direct = mel._resample_directly(wave, old, new)
        assert direct.shape == table.shape
        assert np.abs(direct - table).max() < 1e-6


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000])
def test_bands_of_phases_equal_the_whole_table(rate):
    wave = np.random.default_rng(rate).normal(0, 0.2, (2, rate)).astype(np.float32)
    divisor = math.gcd(rate, 16000)
    old, new = rate // divisor, 16000 // divisor
    kernels, width = mel._sinc_kernels(old, new)
    padded = np.pad(wave, ((0, 0), (width, kernels.shape[0])))
    rows = rate // old
    taps = np.stack([padded[:, row * old : row * old + kernels.shape[0]] for row in range(rows)], axis=1)
    plain = (taps.astype(np.float64) @ kernels).reshape(2, -1)
    assert np.abs(mel.resample(wave, rate, 16000)[:, : plain.shape[1]] - plain).max() < 3e-7


@pytest.mark.timeout(30)
@pytest.mark.parametrize("rate", [1009, 44_099, 999_983])
def test_odd_rates_cost_neither_time_nor_memory(rate):
    wave = tone(2.0, rate, hz=300.0)
    x = AUDIO.preprocess(media(wave, rate), DEFAULT)
    assert np.abs(x - AUDIO.preprocess(media(tone(2.0, hz=300.0), 16000), DEFAULT))[:, :, 20:30, 10:150].max() < 0.2


def test_rates_that_no_recorder_has_are_refused():
    for rate in (1, 999, 5_000_000):
        with pytest.raises(DecodeError, match=f"{rate} samples a second, expected 1000 to 1000000"):
            AUDIO.decode(Source.of(np.zeros((1, 9000), np.float32), rate_hz=rate), DEFAULT)


@pytest.mark.parametrize(
    ("dtype", "levels", "full_scale"),
    [
        (np.int16, [0, 1, -1, 32767, -32768], 2**15),
        (np.int32, [0, 65536, -65536, 2**31 - 2**8, -(2**31)], 2**31),
        (np.float32, [0.0, 0.1, -0.7, 1.0, -1.0], 1),
    ],
)
def test_levels_written_by_scipy_are_exact(dtype, levels, full_scale):
    written = np.tile(np.array(levels, dtype), (200, 1)).reshape(-1, 1).repeat(2, axis=1)
    written[:, 1] //= 2 if full_scale > 1 else 1
    out = io.BytesIO()
    scipy.io.wavfile.write(out, 22050, written)
    got = AUDIO.decode(Source.of(out.getvalue()), DEFAULT)
    assert got.rate_hz == 22050
    assert np.array_equal(got.array, (written.T.astype(np.float64) / full_scale).astype(np.float32))


def test_unsigned_bytes_written_by_scipy():
    out = io.BytesIO()
    scipy.io.wavfile.write(out, 8000, np.array([128, 255, 0, 192] * 100, np.uint8))
    got = AUDIO.decode(Source.of(out.getvalue()), DEFAULT).array
    assert got[0, :4].tolist() == [0.0, 127 / 128, -1.0, 0.5]


@pytest.mark.parametrize(
    ("kind", "subtype", "tolerance"),
    [("WAV", "PCM_16", 1e-4), ("FLAC", None, 1e-4), ("OGG", "VORBIS", 0.05), ("MP3", None, 0.05), ("AIFF", None, 1e-4)],
)
def test_containers_that_soundfile_reads(kind, subtype, tolerance):
    out = io.BytesIO()
    soundfile.write(out, tone(1.5, 22050)[0], 22050, format=kind, subtype=subtype)
    got = AUDIO.decode(Source.of(out.getvalue()), DEFAULT)
    assert got.rate_hz == 22050
    length = min(got.array.shape[1], 33075)
    assert length > 32000
    assert np.abs(got.array[0, 2000:30000] - tone(1.5, 22050)[0, 2000:30000]).max() < tolerance


def m4a(seconds=3.0, rate=16000):
    out = io.BytesIO()
    wave = tone(seconds, rate)
    with av.open(out, "w", format="mp4") as container:
        track = container.add_stream("aac", rate=rate, layout="mono")
        for first in range(0, wave.shape[1], 1024):
            block = np.ascontiguousarray(wave[:, first : first + 1024])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate, first
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return out.getvalue()


def main_frequency(wave, rate):
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(wave.size)))
    return spectrum.argmax() * rate / wave.size


def test_what_soundfile_cannot_read_goes_through_ffmpeg():
    got = AUDIO.decode(Source.of(m4a()), DEFAULT)
    assert got.rate_hz == 16000
    assert abs(got.notes["duration_s"] - 3) < 0.15
    assert abs(main_frequency(got.array[0, 8000:40000], 16000) - 440) < 2
    assert 0.25 < np.abs(got.array[0, 8000:40000]).max() < 0.35
    assert abs(duration_s(Source.of(m4a())) - 3) < 0.15


@pytest.mark.parametrize("form", ["wav", "flac", "m4a", "damaged"])
def test_a_file_on_disk_reads_as_its_bytes(tmp_path, form):
    """libsndfile reads a file on disk by its descriptor; what it cannot read, ffmpeg then reads from the start."""
    out = io.BytesIO()
    if form == "m4a":
        out.write(m4a(4.0))
    else:
        soundfile.write(out, tone(4.0, 22050).T, 22050, format="FLAC" if form == "flac" else "WAV", subtype="PCM_16")
    data = out.getvalue()[: -20_001 if form == "damaged" else None]
    path = tmp_path / f"sound.{form}"
    path.write_bytes(data)
    for span in (None, (0.5, 1.75)):
        on_disk, in_memory = (AUDIO.decode(Source.of(each), DEFAULT, span) for each in (path, data))
        assert np.array_equal(on_disk.array, in_memory.array)
        assert on_disk.rate_hz == in_memory.rate_hz
    assert duration_s(Source.of(path)) == duration_s(Source.of(data))


def test_the_sound_track_of_a_video():
    got = AUDIO.decode(Source.of(video_bytes(20, sound=True)), DEFAULT)
    assert abs(main_frequency(got.array[0, 4000:28000], 16000) - 440) < 2
    with pytest.raises(DecodeError, match="no sound track"):
        AUDIO.decode(Source.of(video_bytes(20)), DEFAULT)


def test_spans_read_only_their_part():
    rng = np.random.default_rng(2)
    wave = (0.1 * rng.standard_normal(16000 * 6)).astype(np.float32)
    out = io.BytesIO()
    soundfile.write(out, wave, 16000, format="WAV", subtype="FLOAT")
    source = Source.of(out.getvalue())
    got = AUDIO.decode(source, DEFAULT, (1.25, 3.5)).array
    assert np.array_equal(got[0], wave[20000:56000])
    with pytest.raises(DecodeError, match=r"no audio samples after decoding in 7-8 s"):
        AUDIO.decode(source, DEFAULT, (7.0, 8.0))
    with pytest.raises(InputError, match="start < end"):
        AUDIO.decode(source, DEFAULT, (3.0, 3.0))


def test_spans_through_ffmpeg():
    source = Source.of(m4a(6.0))
    whole = AUDIO.decode(source, DEFAULT).array[0]
    part = AUDIO.decode(source, DEFAULT, (2.0, 4.0)).array[0]
    assert part.size == 32000
    shifts = [
        np.abs(part[2000:30000] - whole[32000 + shift + 2000 : 32000 + shift + 30000]).max() for shift in (-8, 0, 8)
    ]
    assert shifts[1] < 0.02
    assert shifts[1] < min(shifts[0], shifts[2])


def delayed(kind, start_s, seconds=35, rate=16000):
    """Encode a tone that steps up every second, in a track whose first sample is at `start_s`."""
    time = np.arange(seconds * rate) / rate
    wave = (0.3 * np.sin(2 * np.pi * (200 + 20 * np.floor(time)) * time)).astype(np.float32)
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as container:
        track = container.add_stream("aac", rate=rate, layout="mono")
        for first in range(0, wave.size, 1024):
            frame = av.AudioFrame.from_ndarray(wave[None, first : first + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate, first + int(start_s * rate)
            frame.time_base = Fraction(1, rate)
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return out.getvalue()


@pytest.mark.parametrize(
    ("kind", "start_s"),
    [
        ("mpegts", 0),
        ("mpegts", 1.4),
        ("mpegts", 100),
        ("matroska", 0),
        ("matroska", 1.4),
        ("matroska", 100),
        ("nut", 100),
        ("mp4", 100),
    ],
)
def test_spans_count_from_where_the_track_begins(kind, start_s):
    """Broadcasts and cut recordings do not begin at time 0; and what is heard after a seek was heard without one."""
    source = Source.of(delayed(kind, start_s))
    whole = AUDIO.decode(source, DEFAULT).array
    spans = AUDIO.spans(source, DEFAULT, 10.0)
    assert [start for start, _ in spans] == [0.0, 10.0, 20.0, 30.0]
    assert abs(duration_s(source) - whole.shape[1] / 16000) < 0.1
    for start, end in spans:
        part = AUDIO.decode(source, DEFAULT, (start, end)).array
        assert end > 30 or part.shape[1] == 160_000
        assert np.array_equal(part, whole[:, int(start * 16000) : int(end * 16000)])
    odd = AUDIO.decode(source, DEFAULT, (12.3456, 14.0001)).array
    assert np.array_equal(odd, whole[:, int(12.3456 * 16000) : int(14.0001 * 16000)])


def test_a_head_that_lasts_from_the_tracks_start_is_believed():
    """Matroska's writers do not agree on where its duration counts from; the last packet decides."""
    data = delayed("matroska", 100)
    offset = data.index(b"\x44\x89\x88") + 3
    lasting = np.frombuffer(data[offset : offset + 8], ">f8")[0]
    assert abs(lasting - 135_000) < 200
    shorter = np.array(lasting - 100_000, ">f8").tobytes()
    assert duration_s(Source.of(data[:offset] + shorter + data[offset + 8 :])) == duration_s(Source.of(data))


def test_a_seek_that_leads_behind_the_span_is_taken_back(monkeypatch):
    source = Source.of(delayed("mpegts", 1.4))
    whole = AUDIO.decode(source, DEFAULT).array
    monkeypatch.setattr(containers, "_SOUND_BACK_S", -1.0)
    assert np.array_equal(AUDIO.decode(source, DEFAULT, (10.0, 12.0)).array, whole[:, 160_000:192_000])


def test_long_recordings_are_cut_in_windows():
    def source(seconds):
        return Source.of(np.zeros((1, int(seconds * 8000)), np.float32), rate_hz=8000)

    assert AUDIO.spans(source(59), DEFAULT, None) == []
    assert AUDIO.spans(source(95), DEFAULT, None) == [*((10.0 * n, 10.0 * n + 10) for n in range(9)), (90.0, 95.0)]
    assert AUDIO.spans(source(94), DEFAULT, None)[-1] == (80.0, 94.0)
    assert AUDIO.spans(source(95), REFERENCE, None) == []
    assert AUDIO.spans(source(7), DEFAULT, 2.0) == [(0.0, 2.0), (2.0, 4.0), (4.0, 6.0), (6.0, 7.0)]
    assert windows(0.5, 2.0) == []


def test_default_hears_all_channels_and_copies_its_clips():
    left_silent = np.concatenate([np.zeros((1, 32000), np.float32), tone(2.0)])
    heard = AUDIO.preprocess(media(left_silent, 16000), DEFAULT)
    deaf = AUDIO.preprocess(media(left_silent, 16000), REFERENCE)
    assert np.ptp(deaf[0, 0, :, :198]) < 1e-5
    assert np.ptp(heard[0, 0, :, :198]) > 0.5
    offset = tone(3.0) + np.float32(0.1)
    clean = AUDIO.preprocess(media(tone(3.0), 16000), DEFAULT)
    assert np.abs(AUDIO.preprocess(media(offset, 16000), DEFAULT) - clean).max() < 0.05
    assert np.abs(AUDIO.preprocess(media(offset, 16000), REFERENCE) - clean).max() > 0.2


def test_too_short_is_said():
    for samples, fits in ((399, False), (400, True)):
        short = media(np.ones((1, samples)), 16000)
        if fits:
            assert AUDIO.preprocess(short, DEFAULT).shape == (3, 1, 128, 204)
        else:
            with pytest.raises(DecodeError, match=r"0\.0249 s of sound; at least 0\.025 s") as caught:
                AUDIO.preprocess(short, DEFAULT)
            assert caught.value.stage == "preprocess"


def test_padding_and_silence_have_the_reference_levels():
    half = AUDIO.preprocess(media(np.zeros((1, 16000)), 16000), REFERENCE)
    assert half[0, 0, 0, 0] == pytest.approx(-1.278, abs=1e-3)
    assert half[0, 0, 0, 203] == pytest.approx(0.467, abs=1e-3)


def test_arrays_need_their_rate():
    with pytest.raises(InputError, match="rate_hz=16000"):
        AUDIO.decode(Source.of(tone(1.0)), DEFAULT)
    levels = (tone(1.0) * 32768).astype(np.int16)
    got = AUDIO.decode(Source.of(levels, rate_hz=16000), DEFAULT)
    assert np.array_equal(got.array, levels.astype(np.float32) / 32768)


def test_limits():
    with pytest.raises(DecodeError, match=r"more than 1000 samples \(max_values\)"):
        AUDIO.decode(Source.of(m4a()), AUDIO.config(max_values=1000))
    with pytest.raises(DecodeError, match=r"amplitude 3000"):
        AUDIO.decode(Source.of(np.full((1, 900), 3000, np.float32), rate_hz=16000), DEFAULT)


def test_small_spaces_are_data():
    config = AUDIO.config(clips=1, clip_s=1.28, mels=64, frames=128)
    assert AUDIO.preprocess(media(tone(2.0), 16000), config).shape == (1, 1, 64, 128)
    with pytest.raises(InputError, match="multiple of 200"):
        AUDIO.config(rate_hz=22_050)


# ------------------------------------------------------------------------------- lengths that the head does not say


def streamed(seconds, announced=0):
    """Write noise as FLAC and put another number of samples into its head: 0 where the writer could not go back."""
    noise = np.random.default_rng(2).uniform(-0.5, 0.5, int(seconds * 8000)).astype(np.float32)
    out = io.BytesIO()
    soundfile.write(out, noise, 8000, format="FLAC")
    data = bytearray(out.getvalue())
    data[21] = (data[21] & 0xF0) | announced >> 32
    data[22:26] = (announced & 0xFFFFFFFF).to_bytes(4, "big")
    return out.getvalue(), bytes(data)


@pytest.mark.parametrize("announced", [0, 2**36 - 1])
def test_a_flac_whose_head_does_not_say_its_length_is_measured_and_cut(announced, tmp_path):
    known, unknown = (Source.of(data) for data in streamed(63, announced))
    path = tmp_path / "streamed.flac"
    path.write_bytes(streamed(63, announced)[1])
    whole = AUDIO.decode(known, DEFAULT).array
    for source in (unknown, Source.of(path)):
        assert duration_s(source) == 63
        assert AUDIO.spans(source, DEFAULT, None) == AUDIO.spans(known, DEFAULT, None)
        assert np.array_equal(AUDIO.decode(source, DEFAULT).array, whole)
        for start, end in ((0.0, 10.0), (40.0, 50.0), (50.0, 63.0)):
            span = AUDIO.decode(source, DEFAULT, (start, end)).array
            assert np.array_equal(span, whole[:, int(start * 8000) : int(end * 8000)])
    with pytest.raises(DecodeError, match="no audio samples after decoding in 63-70 s"):
        AUDIO.decode(unknown, DEFAULT, (63.0, 70.0))


def test_windows_without_end_are_refused():
    with pytest.raises(DecodeError, match=r"a\.wav: 5e\+14 s in windows of 10 s are over 1,000,000 items"):
        windows(5e14, 10.0, "a.wav")
    with pytest.raises(DecodeError, match=r"60 s in windows of 1e-05 s .* --window"):
        AUDIO.spans(Source.of(np.zeros((1, 480_000), np.float32), rate_hz=8000), DEFAULT, 1e-5)


def test_what_is_to_be_typed_exists():
    with pytest.raises(DecodeError, match=r"more than 1000 samples \(max_values\); cut it in windows: --window 10$"):
        AUDIO.decode(Source.of(streamed(1)[0]), AUDIO.config(max_values=1000))
