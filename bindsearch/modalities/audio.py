"""Sounds: a recording, or the sound track of a video, in; (S, 1, mels, frames) log-mel pictures out."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, ClassVar

from bindsearch.errors import DecodeError, InputError
from bindsearch.modalities.base import Modality, ModalityConfig, check_choice, check_media, check_positive
from bindsearch.modalities.clips import clip_starts, windows
from bindsearch.modalities.containers import counted_seconds, frames_before, open_container, sound_seconds
from bindsearch.registry import MODALITIES
from bindsearch.sources import Source, describe_head
from bindsearch.types import Media, Span

if TYPE_CHECKING:
    import numpy as np

RATES_HZ = (1000, 1_000_000)
"""Rates of recordings that are taken for real; others come from damaged heads."""

_BLOCK_SAMPLES = 1 << 18
_SAMPLES_A_BYTE = 8192
"""Samples that a byte of a file can stand for at most: of silence, FLAC and Vorbis hold up to some 6,000."""


@dataclass(frozen=True)
class AudioConfig(ModalityConfig):
    """Numbers and switches of a sound.

    Attributes:
        rate_hz: samples a second that the filterbank works at; a multiple of 200.
        clip_s, clips: length and number of the clips, spread evenly over the recording.
        mels, frames: size of one clip's picture; shorter clips are padded on the right, longer ones cut.
        low_hz, high_hz: range of the mel triangles.
        mean, std: of the log energies; padding is 0 before they are applied.
        channel: "mean" mixes all channels; "first" takes channel 0 and never hears the others.
        centre: "copy" takes each clip's mean from a copy of it; "in_place" from the shared recording, so that clips
            which overlap see samples that the clip before has shifted.
        max_amplitude: larger values are refused; a wave is in [-1, 1].
        max_values: samples times channels above which nothing more is read.
        window_s, long_s: recordings longer than long_s are cut in windows of window_s; None leaves them whole.
    """

    rate_hz: int = 16000
    clip_s: float = 2.0
    clips: int = 3
    mels: int = 128
    frames: int = 204
    low_hz: float = 20.0
    high_hz: float = 8000.0
    mean: float = -4.268
    std: float = 9.138
    channel: str = "mean"
    centre: str = "copy"
    max_amplitude: float = 16.0
    max_values: int = 100_000_000
    window_s: float | None = 10.0
    long_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        check_positive(self, "rate_hz", "clip_s", "clips", "mels", "frames", "std", "max_amplitude", "max_values")
        check_choice(self, "channel", ("mean", "first"))
        check_choice(self, "centre", ("copy", "in_place"))
        if self.rate_hz % 200:
            raise InputError(f"AudioConfig.rate_hz: expected a multiple of 200, got {self.rate_hz}.")
        if not 0 <= self.low_hz < self.high_hz <= self.rate_hz / 2:
            got = f"{self.low_hz:g}, {self.high_hz:g}"
            raise InputError(f"AudioConfig: expected 0 <= low_hz < high_hz <= {self.rate_hz / 2:g}, got {got}.")

    @property
    def frame_samples(self) -> int:
        """Samples of one frame of 25 ms; a shorter sound has no picture."""
        return self.rate_hz * 25 // 1000


class AudioModality(Modality[AudioConfig]):
    """Recordings; soundfile reads them, or else FFmpeg through PyAV, which also reads the sound of a video."""

    name = "audio"
    suffixes = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff", ".au", ".wma")
    unit = "amplitude"
    tower = "audio"
    config_class = AudioConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "reference": {"channel": "first", "centre": "in_place", "max_amplitude": 1e9, "window_s": None},
    }

    def _decode(self, source: Source, config: AudioConfig, span: Span | None) -> Media:
        import numpy as np

        if source.kind == "value":
            wave, rate = _of_array(source)
            if span is not None:
                wave = wave[:, int(span[0] * rate) : int(span[1] * rate)]
        else:
            wave, rate = _read(source, config, span)
        if not RATES_HZ[0] <= rate <= RATES_HZ[1]:
            what = f"{rate} samples a second, expected {RATES_HZ[0]} to {RATES_HZ[1]}: the head is damaged"
            raise DecodeError(source.name, what)
        if wave.shape[1] == 0:
            where = "" if span is None else f" in {span[0]:g}-{span[1]:g} s"
            raise DecodeError(source.name, f"no audio samples after decoding{where} (0.00 s)")
        peak = max(float(wave.max()), -float(wave.min()))
        if not math.isfinite(peak):  # a NaN anywhere is the maximum
            raise DecodeError(source.name, "holds samples that are NaN or infinite")
        if peak > config.max_amplitude:
            raise DecodeError(source.name, f"amplitude {peak:g}, expected -1 to 1; divide by the full scale first")
        notes = {"channels": wave.shape[0], "duration_s": wave.shape[1] / rate}
        return Media(self.name, np.ascontiguousarray(wave), self.unit, float(rate), source.name, notes)

    def preprocess(self, media: Media, config: AudioConfig) -> np.ndarray:
        """Resample, cut clips and take their log-mel pictures: (C, T) float32 -> (clips, 1, mels, frames) float32."""
        import numpy as np

        from bindsearch.modalities import mel

        check_media(media, self.name, rank=2, dtype="float32")
        rate = round(media.rate_hz or 0)
        if rate < 1:
            raise InputError(f"{media.name or 'audio'}: the media have no rate_hz.")
        wave = media.array
        if config.channel == "mean" and wave.shape[0] > 1:
            wave = wave.mean(axis=0, keepdims=True)
        wave = mel.resample(wave, rate, config.rate_hz)
        if wave.shape[1] < config.frame_samples:
            what = (
                f"{wave.shape[1] / config.rate_hz:.4f} s of sound; at least {config.frame_samples / config.rate_hz:g} s"
            )
            raise DecodeError(media.name, f"{what} are needed", "preprocess")
        out = np.empty((config.clips, 1, config.mels, config.frames), np.float32)
        for number, clip in enumerate(_clips(wave, config)):
            energies = mel.filterbank(clip, config.rate_hz, config.mels, config.low_hz, config.high_hz)
            picture = np.zeros((config.mels, config.frames), np.float32)
            kept = min(config.frames, energies.shape[0])
            picture[:, :kept] = energies[:kept].T
            out[number, 0] = (picture - np.float32(config.mean)) / np.float32(config.std)
        return out

    def spans(self, source: Source, config: AudioConfig, window_s: float | None) -> list[Span]:
        """Cut a recording in windows: of `window_s` if given, else as the configuration says."""
        if window_s is None:
            if config.window_s is None:
                return []
            duration = duration_s(source)
            return windows(duration, config.window_s, source.name) if duration > config.long_s else []
        return windows(duration_s(source), window_s, source.name)

    def example(self, seed: int) -> Media:
        """Make a chirp with partials and noise, of one or two channels, 0.5 to 4 s."""
        import numpy as np

        rng = np.random.default_rng([seed, 3])
        rate = int(rng.choice([16000, 22050, 44100]))
        time = np.arange(int(rng.uniform(0.5, 4.0) * rate)) / rate
        sweep = rng.uniform(200, 800) * time + rng.uniform(-60, 60) * time**2
        tone = sum(np.sin(2 * np.pi * partial * sweep) / partial for partial in (1, 2, 3))
        noise = rng.normal(0, 0.01, (int(rng.integers(1, 3)), time.size))
        wave = (0.2 * tone * np.exp(-time) + noise).astype(np.float32)
        return Media(self.name, wave, self.unit, float(rate), f"<example {seed}>")


def clip_bounds(samples: int, config: AudioConfig) -> list[tuple[int, int]]:
    """Give first and last-excluded sample of each clip.

    Args:
        samples: length of the recording at `config.rate_hz`.
        config: its clip_s, clips and rate_hz are used.

    Source: golden preprocess/audio_clip_starts.json.
    """
    starts = clip_starts(samples / config.rate_hz, config.clip_s, config.clips)
    bounds = []
    for start in starts:
        first = int(start * config.rate_hz)
        # a start is a fraction of a sample at times: the end is computed, not first + length
        last = int((start + _exact(config.clip_s)) * config.rate_hz)
        bounds.append((first, min(last, samples)))
    return bounds


def _exact(seconds: float) -> Any:
    from fractions import Fraction

    return Fraction(seconds)


def _clips(wave: np.ndarray, config: AudioConfig) -> list[np.ndarray]:
    """Cut (C, T) in clips of channel 0, each minus its mean over all channels; `wave` is not modified."""
    in_place = config.centre == "in_place"
    work = wave.copy() if in_place else wave
    clips = []
    for first, last in clip_bounds(wave.shape[1], config):
        clip = work[:, first:last]
        if in_place:
            clip -= clip.mean()
            clips.append(clip[0].copy())
        else:
            clips.append(clip[0] - clip.mean())
    return clips


def _of_array(source: Source) -> tuple[np.ndarray, int]:
    import numpy as np

    array = np.asarray(source.value)
    if not source.rate_hz or array.ndim != 2:
        raise InputError(
            f"{source.name}: an audio array is (C, T) and comes with its rate: Source.of(array, rate_hz=16000)."
        )
    if array.dtype.kind == "i":
        array = array.astype(np.float32) / np.float32(2 ** (8 * array.dtype.itemsize - 1))
    elif array.dtype.kind != "f":
        raise InputError(f"{source.name}: expected signed integers or floats, got {array.dtype}.")
    return array.astype(np.float32), round(source.rate_hz)


def _read(source: Source, config: AudioConfig, span: Span | None) -> tuple[np.ndarray, int]:
    """Read (C, T) float32 and the rate from a file, by soundfile if it knows the format, else by PyAV."""
    import soundfile

    with source.open() as file:
        head = file.read(1024)
        file.seek(0)
        if not head:
            raise DecodeError(source.name, "is empty")
        try:
            return _read_soundfile(file, source.name, config, span)
        except (soundfile.LibsndfileError, _NoLengthError):
            file.seek(0)
            return _read_av(file, source.name, config, span, head)


class _NoLengthError(Exception):
    """The head says no length, or one that no file of this size has: libsndfile would not find the end."""


class _Seekable:
    """A file that seeks to its nearest end where a damaged head sends it beyond: libsndfile cannot take an error."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._end = file.seek(0, os.SEEK_END)
        file.seek(0)

    def seek(self, to: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._file.tell(), os.SEEK_END: self._end}[whence]
        return self._file.seek(min(max(base + to, 0), self._end))

    def tell(self) -> int:
        return self._file.tell()

    def read(self, count: int = -1) -> bytes:
        return self._file.read(max(count, -1))


@contextlib.contextmanager
def _sound_file(file: IO[bytes]) -> Iterator[Any]:
    """Open a file from its start with libsndfile, which reads one on disk by itself: no call to Python a few kB.

    Raises:
        LibsndfileError: it does not know the format.
        _NoLengthError: it does not know how long the recording is, as of a streamed FLAC, whose head says 0.
    """
    import soundfile

    size_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    if type(file) is not io.BufferedReader or not isinstance(file.raw, io.FileIO):  # a member of a tar is a part of one
        with soundfile.SoundFile(_Seekable(file)) as sound:
            yield _of_length(sound, size_bytes)
        return
    number = file.fileno()
    at = os.lseek(number, 0, os.SEEK_CUR)
    try:
        os.lseek(number, 0, os.SEEK_SET)
        with soundfile.SoundFile(number, closefd=False) as sound:
            yield _of_length(sound, size_bytes)
    finally:  # the buffer above it believes to know where it stands
        os.lseek(number, at, os.SEEK_SET)


def _of_length(sound: Any, size_bytes: int) -> Any:
    if sound.frames > size_bytes * _SAMPLES_A_BYTE:
        raise _NoLengthError
    return sound


def _read_soundfile(file: IO[bytes], name: str, config: AudioConfig, span: Span | None) -> tuple[np.ndarray, int]:
    import numpy as np

    with _sound_file(file) as sound:
        rate, channels = sound.samplerate, sound.channels
        wanted = None
        if span is not None:
            first = int(span[0] * rate)
            if first >= sound.frames:
                return np.zeros((channels, 0), np.float32), rate
            sound.seek(first)
            wanted = int(span[1] * rate) - first
        blocks, got = [], 0
        while wanted is None or got < wanted:
            size = _BLOCK_SAMPLES if wanted is None else min(_BLOCK_SAMPLES, wanted - got)
            block = sound.read(size, dtype="float32", always_2d=True)
            if not len(block):
                break
            blocks.append(block)
            got += len(block)
            _check_length(got * channels, config, name)
    wave = np.concatenate(blocks).T if blocks else np.zeros((channels, 0), np.float32)
    return wave, rate


def _read_av(file: IO[bytes], name: str, config: AudioConfig, span: Span | None, head: bytes) -> tuple[np.ndarray, int]:
    with open_container(file, name, head) as container:
        if not container.streams.audio:
            raise DecodeError(name, "has no sound track")
        stream = container.streams.audio[0]
        rate = int(stream.rate or 0)
        if rate < 1:
            raise DecodeError(name, "the sound track has no rate")
        if span is None:
            return _join(container.decode(stream), math.inf, config, name), rate
        first, last = int(span[0] * rate), int(span[1] * rate)
        at, frames = frames_before(container, stream, first, rate) if first else (0, container.decode(stream))
        return _join(frames, last - at, config, name)[:, max(first - at, 0) : max(last - at, 0)], rate


def _join(frames: Iterable[Any], wanted: float, config: AudioConfig, name: str) -> np.ndarray:
    """Join frames to (C, T) float32, until so many samples are there."""
    import av
    import numpy as np

    resampler = av.AudioResampler(format="fltp")
    blocks: list[np.ndarray] = []
    got = 0
    for frame in frames:
        for part in resampler.resample(frame):
            blocks.append(part.to_ndarray())
            got += blocks[-1].shape[1]
        _check_length(got * (blocks[-1].shape[0] if blocks else 1), config, name)
        if got >= wanted:
            break
    return np.concatenate(blocks, axis=1) if blocks else np.zeros((1, 0), np.float32)


def _check_length(values: int, config: AudioConfig, name: str) -> None:
    if values > config.max_values:
        what = f"more than {config.max_values} samples (max_values); cut it in windows: --window 10"
        raise DecodeError(name, what)


def duration_s(source: Source) -> float:
    """Read the length of a recording in seconds from its header; from its packets, where a streamed one does not say.

    Raises:
        DecodeError: it cannot be opened, has no sound, or does not say how long it is.
    """
    if source.kind == "value":
        wave, rate = _of_array(source)
        return float(wave.shape[1] / rate)
    import soundfile

    with source.open() as file:
        head = file.read(1024)
        file.seek(0)
        try:
            with _sound_file(file) as sound:
                return float(sound.frames / sound.samplerate)
        except (soundfile.LibsndfileError, _NoLengthError) as error:
            file.seek(0)
            return _duration_av(file, source.name, head, count=isinstance(error, _NoLengthError))


def _duration_av(file: IO[bytes], name: str, head: bytes, count: bool) -> float:
    with open_container(file, name, head) as container:
        if not container.streams.audio:
            raise DecodeError(name, "has no sound track")
        count = count or container.duration is None
        seconds = counted_seconds(container) if count else sound_seconds(container)
        if not seconds > 0:
            raise DecodeError(name, f"does not say how long it is; the bytes look like {describe_head(head)}")
        return seconds


MODALITIES.register("audio", AudioModality())
