"""From rows with times, or a rate, to samples at equal steps, and which of them were recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bindsearch.errors import DecodeError

if TYPE_CHECKING:
    import numpy as np

    from bindsearch.modalities.imu import ImuConfig
    from bindsearch.modalities.imu_file import Recording

BRIDGED_STEPS, BRIDGED_S = 5, 0.05
"""A sample further from every row than both (in usual steps, in seconds) was not recorded."""

_CRAMMED, _FEW = 4, 0.01
_HINT = "set source_rate_hz to the rows a second, and rows are taken as evenly spaced"


@dataclass(frozen=True)
class Grid:
    """A recording at equal steps.

    Attributes:
        values: (6, T) float64 m/s² and rad/s; finite.
        known: (6, T) bool, False where nothing was recorded.
        rate_hz: samples a second.
    """

    values: np.ndarray
    known: np.ndarray
    rate_hz: float

    def part(self, start_s: float, end_s: float) -> Grid:
        """Cut out a span of time."""
        first, last = round(start_s * self.rate_hz), round(end_s * self.rate_hz)
        return Grid(self.values[:, first:last], self.known[:, first:last], self.rate_hz)


def lay_on_grid(values: np.ndarray, recording: Recording, config: ImuConfig, name: str) -> Grid:
    """Give samples at equal steps; values untouched where rows already are.

    Args:
        values: (6, T) float64, NaN where a cell is empty. Not modified.
        recording: its times or rate are used.
        config: its missing, source_rate_hz and max_samples are used.
        name: of the source, for messages.

    Raises:
        DecodeError: neither times nor a rate, times that cannot be told apart, or of no inertial recording.
    """
    import numpy as np

    rate = recording.rate_hz or config.source_rate_hz
    if recording.times_s is not None:
        if not np.isfinite(recording.times_s).all():
            raise DecodeError(name, "times are missing or NaN")
        order = np.argsort(recording.times_s, kind="stable")
        times, values = _without_doubles(recording.times_s[order], values[:, order])
        spread = spread_times(times)
        if spread is not None:
            return _by_times(spread, values, config, name)
        if not rate:
            what = f"{times.size} rows share {np.unique(times).size} times, too coarse to say the rate; {_HINT}"
            raise DecodeError(name, what)
    if not rate:
        raise DecodeError(name, "has neither times nor a rate; set source_rate_hz (or an attribute rate_hz in HDF5)")
    return Grid(_filled(values, config), np.isfinite(values), float(rate))


def spread_times(times: np.ndarray) -> np.ndarray | None:
    """Spread rows that share a time evenly up to the next one: times that were rounded, or written in bursts.

    The first and the last time may stand for fewer rows than the others: these follow at the usual step, up to the
    second time and from the last one on. None spreads over a gap.

    Args:
        times: (T,) float64 seconds, sorted. Not modified.

    Returns:
        (T,) strictly increasing; `times` itself where all differ; None where the rate cannot be told from them.
    """
    import numpy as np

    distinct, counts = np.unique(times, return_counts=True)
    if distinct.size == times.size:
        return times
    if distinct.size < 4:
        return None
    apart = np.diff(distinct)
    steps = apart / counts[:-1]
    usual = float(np.median(np.repeat(steps[1:], counts[1:-1])))
    crammed = (steps * _CRAMMED < usual) & (counts[:-1] > 1)
    if counts[:-1][crammed].sum() > _FEW * times.size:
        return None
    steps = np.append(np.where(steps > 1.5 * usual, usual, steps), usual)
    starts = distinct.copy()
    if apart[0] < 1.5 * np.median(apart):
        starts[0] = distinct[1] - counts[0] * steps[0]
    within = np.arange(times.size) - np.repeat(np.cumsum(counts) - counts, counts)
    spread = np.repeat(starts, counts) + within * np.repeat(steps, counts)
    even = np.linspace(spread[0], spread[-1], times.size)
    rounded_to = float(np.median(apart))
    return even if np.abs(even - spread).max() <= rounded_to else spread


def _without_doubles(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop rows that repeat the one before, time and values, if this leaves times that differ and half of the rows."""
    import numpy as np

    same = (values[:, 1:] == values[:, :-1]) | (np.isnan(values[:, 1:]) & np.isnan(values[:, :-1]))
    fresh = np.concatenate([[True], (np.diff(times) > 0) | ~same.all(axis=0)])
    left = times[fresh]
    if 2 * left.size < times.size or (np.diff(left) == 0).any():
        return times, values
    return left, values[:, fresh]


def _by_times(times: np.ndarray, values: np.ndarray, config: ImuConfig, name: str) -> Grid:
    """Lay rows with times that differ on a grid of their usual step."""
    import numpy as np

    if times.size < 2:
        raise DecodeError(name, "has fewer than two different times")
    step = float(np.median(np.diff(times)))
    rate = 1 / step
    if not 1 <= rate <= 20_000:
        what = f"times {step:g} s apart ({rate:g} Hz) are no inertial recording; set time_unit to s, ms, us or ns"
        raise DecodeError(name, what)
    known, filled = np.isfinite(values), _filled(values, config)
    mean_step = (times[-1] - times[0]) / (times.size - 1)
    ideal = times[0] + np.arange(times.size) * mean_step
    if abs(mean_step - step) < 1e-3 * step and np.abs(times - ideal).max() < 0.05 * step:
        return Grid(filled, known, _round_rate(1 / float(mean_step)))
    count = int((times[-1] - times[0]) / step + 1e-6) + 1
    if count > config.max_samples:
        raise DecodeError(name, f"the times span {times[-1] - times[0]:g} s: {count} samples, over the limit")
    at = times[0] + np.arange(count) * step
    after = np.clip(np.searchsorted(times, at), 1, times.size - 1)
    nearest = np.where(at - times[after - 1] <= times[after] - at, after - 1, after)
    near = np.abs(at - times[nearest]) <= max(BRIDGED_STEPS * step, BRIDGED_S)
    laid = np.stack([np.interp(at, times, row) for row in filled])
    if config.missing == "zero":
        laid[:, ~near] = 0
    return Grid(laid, known[:, nearest] & near, _round_rate(rate))


def _filled(values: np.ndarray, config: ImuConfig) -> np.ndarray:
    """Replace what is not finite by straight lines between its neighbours in the channel, or by 0; a copy if any is."""
    import numpy as np

    good = np.isfinite(values)
    if good.all():
        return values
    filled = np.where(good, values, 0.0)
    if config.missing == "interpolate":
        places = np.arange(values.shape[1])
        for row, known in enumerate(good):
            if known.any():
                filled[row] = np.interp(places, places[known], values[row, known])
    return filled


def _round_rate(rate: float) -> float:
    """Take a rate that is whole but for rounding as whole."""
    whole = round(rate)
    return float(whole) if whole and abs(rate - whole) < 1e-4 * whole else rate
