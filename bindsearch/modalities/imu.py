"""Inertial recordings: six channels with time or rate in, (S, 6, 2000) windows at 200 Hz out.

Channels: accelerometer x y z in m/s² with gravity, then gyroscope x y z in rad/s. A window is 10 s. (The reference says
"5 s, 2000 steps" and has no loader; the same group's loader for the same data takes ±5 s at 200 Hz.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from bindsearch.errors import DecodeError, InputError
from bindsearch.modalities.base import Modality, ModalityConfig, check_choice, check_media, check_positive
from bindsearch.modalities.clips import clip_starts, windows
from bindsearch.modalities.imu_file import Recording, read_recording
from bindsearch.modalities.imu_grid import Grid, lay_on_grid
from bindsearch.modalities.imu_units import ACCEL_UNITS, GRAVITY, GYRO_UNITS, TIME_UNITS
from bindsearch.modalities.recent import Last
from bindsearch.registry import MODALITIES
from bindsearch.sources import Source
from bindsearch.types import Media, Span

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ImuConfig(ModalityConfig):
    """Numbers and switches of an inertial recording.

    Attributes:
        rate_hz, samples: what the tower takes: 200 Hz, 2000 samples a window.
        clips: windows an item is averaged over, spread evenly; a single one lies in the middle.
        source_rate_hz: rate of a file that has neither a time column nor a rate attribute, or whose times are too
            coarse to say it (so many rows share one); None refuses such files.
        columns: names of the six channels in the file's order of meaning; None finds them by their usual names.
        time_column: name of the time column; None finds it by its usual names.
        time_unit: "auto" (from the column's name, else seconds), "s", "ms", "us" or "ns".
        accel_unit: "auto" (from the columns' names or the file's attributes, m/s^2 where these say none), or a name in
            ACCEL_UNITS.
        gyro_unit: "auto" (likewise, else rad/s), or a name in GYRO_UNITS.
        missing: "interpolate" fills gaps in a channel, or in time, from their neighbours; "zero" puts 0.
        max_missing: share of missing values (empty cells, and samples in gaps of time) above which what is read, the
            recording or one span of it, is refused.
        min_s: shorter recordings are refused.
        mean, std: subtracted and divided by; the reference has none.
        window_s, long_s: recordings longer than long_s are cut in windows of window_s; None leaves them whole.
        max_samples, limit_bytes: limits of what is read.
    """

    rate_hz: float = 200.0
    samples: int = 2000
    clips: int = 1
    source_rate_hz: float | None = None
    columns: tuple[str, ...] | None = None
    time_column: str | None = None
    time_unit: str = "auto"
    accel_unit: str = "auto"
    gyro_unit: str = "auto"
    missing: str = "interpolate"
    max_missing: float = 0.5
    min_s: float = 0.1
    mean: float = 0.0
    std: float = 1.0
    window_s: float | None = 10.0
    long_s: float = 15.0
    max_samples: int = 5_000_000
    limit_bytes: int = 256 * 2**20

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        check_positive(self, "rate_hz", "samples", "clips", "std", "min_s", "max_samples", "limit_bytes")
        check_choice(self, "time_unit", ("auto", *TIME_UNITS))
        check_choice(self, "accel_unit", ("auto", *ACCEL_UNITS))
        check_choice(self, "gyro_unit", ("auto", *GYRO_UNITS))
        check_choice(self, "missing", ("interpolate", "zero"))
        if self.columns is not None and len(self.columns) != 6:
            raise InputError(f"ImuConfig.columns: expected six names, got {len(self.columns)}.")


_LAST: Last[tuple[Grid, tuple[str, ...]]] = Last(lambda made: made[0].values.nbytes + made[0].known.nbytes)
"""The recording whose windows are being decoded."""


class ImuModality(Modality[ImuConfig]):
    """Accelerometer and gyroscope over time."""

    name = "imu"
    suffixes = (".imu.csv", ".imu.tsv", ".imu.npy", ".imu.h5", ".imu.hdf5")
    unit = "m/s^2 and rad/s"
    tower = "imu"
    config_class = ImuConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "reference": {"missing": "zero", "source_rate_hz": 200.0, "window_s": None},
    }

    def _decode(self, source: Source, config: ImuConfig, span: Span | None) -> Media:
        import numpy as np

        def read() -> tuple[Grid, tuple[str, ...]]:
            recording = read_recording(source, config)
            return lay_on_grid(_to_si(recording, config), recording, config, source.name), recording.channels

        grid, channels = read() if span is None else _LAST.of(source, config, read)
        if span is not None:
            grid = grid.part(*span)
        where = "" if span is None else f" in {span[0]:g}-{span[1]:g} s"
        seconds = grid.values.shape[1] / grid.rate_hz
        if seconds < config.min_s:
            raise DecodeError(source.name, f"{seconds:g} s of samples{where}; at least {config.min_s:g} s are needed")
        missing_share = _check_recorded(grid.known, config, source.name, where)
        notes = {"duration_s": seconds, "missing_share": missing_share, "channels": list(channels)}
        array = grid.values.astype(np.float32, order="C")  # a copy: the grid may be held for the next window
        return Media(self.name, array, self.unit, grid.rate_hz, source.name, notes)

    def preprocess(self, media: Media, config: ImuConfig) -> np.ndarray:
        """Resample, cut windows and pad with zeros at the end: (6, T) float32 -> (clips, 6, samples) float32."""
        import numpy as np

        check_media(media, self.name, rank=2, dtype="float32")
        if media.array.shape[0] != 6 or not media.rate_hz:
            raise InputError(f"{media.name or 'imu'}: expected (6, T) with rate_hz, got {media.array.shape}.")
        signal = change_rate(media.array, media.rate_hz, config.rate_hz)
        room = max(signal.shape[1] - config.samples, 0)
        starts = [room // 2] if config.clips == 1 else _starts(signal.shape[1], config)
        out = np.zeros((config.clips, 6, config.samples), np.float32)
        for number, start in enumerate(starts):
            window = signal[:, start : start + config.samples]
            out[number, :, : window.shape[1]] = (window - np.float32(config.mean)) / np.float32(config.std)
        return out

    def spans(self, source: Source, config: ImuConfig, window_s: float | None) -> list[Span]:
        """Cut a recording in windows: of `window_s` if given, else as the configuration says."""
        if window_s is None and config.window_s is None:
            return []
        all_of_it = replace(config, missing="zero", max_missing=1.0)  # each window is looked at when it is read
        duration = float(self.decode(source, all_of_it).notes["duration_s"])
        if window_s is None and duration <= config.long_s:
            return []
        return windows(duration, window_s if window_s is not None else config.window_s or duration, source.name)

    def example(self, seed: int) -> Media:
        """Make a walk: gravity, steps and a slow turn, 2 to 12 s."""
        import numpy as np

        rng = np.random.default_rng([seed, 7])
        rate = float(rng.choice([50.0, 100.0, 200.0]))
        time = np.arange(int(rng.uniform(2, 12) * rate)) / rate
        pace = 2 * math.pi * rng.uniform(1.2, 2.4)
        signal = rng.normal(0, 0.05, (6, time.size))
        signal[1] += GRAVITY + 2 * np.sin(pace * time)
        signal[0] += np.sin(pace / 2 * time)
        signal[5] += 0.4 * np.sin(0.5 * time)
        return Media(self.name, signal.astype(np.float32), self.unit, rate, f"<example {seed}>")


def _starts(length: int, config: ImuConfig) -> list[int]:
    starts = clip_starts(length / config.rate_hz, config.samples / config.rate_hz, config.clips)
    return [int(start * int(config.rate_hz)) for start in starts]


def _to_si(recording: Recording, config: ImuConfig) -> np.ndarray:
    """Give (6, T) float64 in m/s² and rad/s."""
    import numpy as np

    accel = recording.accel_unit if config.accel_unit == "auto" else config.accel_unit
    gyro = recording.gyro_unit if config.gyro_unit == "auto" else config.gyro_unit
    values = recording.values.astype(np.float64)
    values[:3] *= ACCEL_UNITS[accel]
    values[3:] *= GYRO_UNITS[gyro]
    return values


def _check_recorded(known: np.ndarray, config: ImuConfig, name: str, where: str) -> float:
    """Refuse samples of which too many were never recorded, or a channel of which none was; gives the missing share.

    Args:
        known: (6, T) bool of the span. Not modified.
        config: its max_missing and missing are used.
        name: of the source, for messages.
        where: the span, for messages.
    """
    share = float(1 - known.mean())
    if share > config.max_missing:
        what = f"{share:.0%} of the values are missing or NaN{where} (max_missing {config.max_missing:.0%})"
        raise DecodeError(name, what)
    for row, of_channel in enumerate(known):
        if config.missing == "interpolate" and not of_channel.any():
            raise DecodeError(name, f"channel {row} has no value at all{where}")
    return share


def change_rate(signal: np.ndarray, rate_hz: float, new_rate_hz: float) -> np.ndarray:
    """Bring a signal to another rate: the mean of each step where samples are dropped, straight lines between others.

    Args:
        signal: (6, T) float32. Not modified.
        rate_hz: its samples a second.
        new_rate_hz: the wanted samples a second.

    Returns:
        (6, T') float32; `signal` itself when the rates are equal.
    """
    import numpy as np

    if abs(rate_hz - new_rate_hz) < 1e-6 * new_rate_hz:
        return signal
    length = signal.shape[1]
    count = max(1, int(length * new_rate_hz / rate_hz + 1e-9))
    wanted = np.arange(count) / new_rate_hz
    values = signal.astype(np.float64)
    width = int(rate_hz / new_rate_hz)
    if width >= 2:
        sums = np.cumsum(np.pad(values, ((0, 0), (1, 0))), axis=1)
        low = np.clip(np.arange(length) - width // 2, 0, length)
        high = np.clip(low + width, 0, length)
        values = (sums[:, high] - sums[:, low]) / (high - low)
    times = np.arange(length) / rate_hz
    return np.stack([np.interp(wanted, times, row) for row in values]).astype(np.float32)


MODALITIES.register("imu", ImuModality())
