"""Sound to log-mel pictures in numpy: windowed-sinc resampling and the Kaldi-type filterbank."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

LOG_FLOOR = float(np.finfo(np.float32).eps)
"""Power below which the logarithm stands still: 2^-23."""

PRE_EMPHASIS = 0.97
LOWPASS_WIDTH = 6
ROLLOFF = 0.99
_BLOCK_ROWS = 8192
_BANDS = 8
_BLOCK_VALUES = 1 << 20
_MAX_KERNEL_VALUES = 1 << 22


def resample(wave: np.ndarray, rate_hz: int, new_rate_hz: int) -> np.ndarray:
    """Change the sampling rate with a windowed sinc.

    Args:
        wave: (C, T) float32. Not modified.
        rate_hz: its samples a second.
        new_rate_hz: the wanted samples a second.

    Returns:
        (C, ceil(T * new / old)) float32; `wave` itself when the rates are equal.

    Source: golden preprocess/audio_internals.npz; sinc of width 6 zero crossings under a squared cosine, cut-off at
    0.99 of the lower Nyquist frequency.
    """
    if rate_hz == new_rate_hz:
        return wave
    divisor = math.gcd(rate_hz, new_rate_hz)
    old, new = rate_hz // divisor, new_rate_hz // divisor
    if old * new > _MAX_KERNEL_VALUES:
        return _resample_directly(wave, old, new)
    bands, taps, width = _sinc_bands(old, new)
    channels, length = wave.shape
    rows = length // old + 1
    padded = np.zeros((channels, (rows - 1) * old + taps), np.float32)
    padded[:, width : width + length] = wave
    target = -(-new * length // old)
    out = np.empty((channels, rows, new), np.float32)
    view = np.lib.stride_tricks.sliding_window_view(padded, taps, axis=1)[:, ::old]
    for first in range(0, rows, _BLOCK_ROWS):
        rows_here = slice(first, first + _BLOCK_ROWS)
        for phase, low, kernels in bands:
            heard = np.ascontiguousarray(view[:, rows_here, low : low + kernels.shape[0]])
            out[:, rows_here, phase : phase + kernels.shape[1]] = heard @ kernels
    return np.ascontiguousarray(out.reshape(channels, -1)[:, :target])


@lru_cache(maxsize=16)
def _sinc_bands(old: int, new: int) -> tuple[list[tuple[int, int, np.ndarray]], int, int]:
    """Cut the kernels in bands of phases, each without the taps at which all of its kernels are zero.

    One phase hears a few dozen of the taps that all phases together reach over: 35 of 475 from 44.1 to 16 kHz.

    Returns:
        Of each band its first phase, its first tap and its (taps, phases) float32 kernels; then the number of taps
        and how far they reach before the first sample.
    """
    kernels, width = _sinc_kernels(old, new)
    size = -(-new // _BANDS)
    bands = []
    for phase in range(0, new, size):
        band = kernels[:, phase : phase + size]
        heard = np.flatnonzero(band.any(axis=1))
        low, high = int(heard[0]), int(heard[-1]) + 1
        bands.append((phase, low, np.ascontiguousarray(band[low:high])))
    return bands, kernels.shape[0], width


def _sinc_kernels(old: int, new: int) -> tuple[np.ndarray, int]:
    """Give (taps, new) float32 kernels, one a phase, and how far they reach before the first sample."""
    cut_off = min(old, new) * ROLLOFF
    width = math.ceil(LOWPASS_WIDTH * old / cut_off)
    taps = np.arange(-width, width + old, dtype=np.float64)[:, None] / old
    # in double: the reference makes its kernels in float32, which moves the wave by up to 4e-5 (at 11,025 Hz)
    phases = -np.arange(new, dtype=np.float64)[None, :] / new
    time = np.clip((taps + phases) * cut_off, -LOWPASS_WIDTH, LOWPASS_WIDTH)
    window = np.cos(time * (math.pi / LOWPASS_WIDTH / 2)) ** 2
    return (np.sinc(time) * window * (cut_off / old)).astype(np.float32), width


def frame_count(samples: int, frame: int, hop: int) -> int:
    """Count the whole frames in a signal; a rest at the end is dropped."""
    return 0 if samples < frame else 1 + (samples - frame) // hop


def filterbank(wave: np.ndarray, rate_hz: int, mels: int, low_hz: float, high_hz: float) -> np.ndarray:
    """Compute log-mel energies of a mono signal in frames of 25 ms every 10 ms.

    Each frame: own mean removed, pre-emphasis 0.97 (the first sample against itself), symmetric Hann window, padded to
    a power of two, power spectrum, triangles, natural logarithm floored at 2^-23.

    Args:
        wave: (T,) float32, at least one frame long. Not modified.
        rate_hz: samples a second.
        mels: number of triangles, spaced evenly on 1127 ln(1 + f/700).
        low_hz: lower edge of the lowest triangle.
        high_hz: upper edge of the highest.

    Returns:
        (frames, mels) float32 natural-log energies.

    Source: golden preprocess/audio_internals.npz.
    """
    frame, hop = rate_hz * 25 // 1000, rate_hz // 100
    frames = np.lib.stride_tricks.sliding_window_view(wave, frame)[::hop]
    frames = frames - frames.mean(axis=1, keepdims=True, dtype=np.float32)
    emphasised = np.empty_like(frames)
    emphasised[:, 1:] = frames[:, 1:] - np.float32(PRE_EMPHASIS) * frames[:, :-1]
    emphasised[:, 0] = frames[:, 0] - np.float32(PRE_EMPHASIS) * frames[:, 0]
    emphasised *= hann_window(frame)
    size = 1 << (frame - 1).bit_length()
    spectrum = np.fft.rfft(emphasised, n=size, axis=1)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    energies = power[:, :-1] @ mel_bank(mels, size, rate_hz, low_hz, high_hz).T
    logs: np.ndarray = np.log(np.maximum(energies, np.float32(LOG_FLOOR)))
    return logs


def _resample_directly(wave: np.ndarray, old: int, new: int) -> np.ndarray:
    """Do the same for rates without a large common divisor: each output sample gets a kernel of its own.

    A table of all phases would take `old * new` numbers: 705 million from 44,099 to 16,000 Hz.
    """
    cut_off = min(old, new) * ROLLOFF
    reach = math.ceil(LOWPASS_WIDTH * old / cut_off)
    offsets = np.arange(-reach, reach + 2)
    target = -(-new * wave.shape[1] // old)
    padded = np.pad(wave, ((0, 0), (reach, reach + 2)))
    out = np.empty((wave.shape[0], target), np.float32)
    step = max(1, _BLOCK_VALUES // offsets.size)
    for first in range(0, target, step):
        place = np.arange(first, min(first + step, target)) * old
        whole, rest = place // new, (place % new) / new
        time = np.clip((offsets - rest[:, None]) * (cut_off / old), -LOWPASS_WIDTH, LOWPASS_WIDTH)
        kernel = np.sinc(time) * np.cos(time * (math.pi / LOWPASS_WIDTH / 2)) ** 2 * (cut_off / old)
        taps = padded[:, whole[:, None] + offsets + reach]
        out[:, first : first + place.size] = np.einsum("ctk,tk->ct", taps, kernel)
    return out


@lru_cache(maxsize=8)
def hann_window(frame: int) -> np.ndarray:
    """Give the symmetric Hann window, (frame,) float32: both ends are zero."""
    return np.hanning(frame).astype(np.float32)


@lru_cache(maxsize=8)
def mel_bank(mels: int, size: int, rate_hz: int, low_hz: float, high_hz: float) -> np.ndarray:
    """Give the triangles, (mels, size / 2) float32; the bin at the Nyquist frequency has no weight.

    Source: golden preprocess/audio_internals.npz, mel_banks_128x256. The steps are in float32 as in the reference:
    where a bin lies on a triangle's edge, its tiny weight depends on it.
    """
    low, high = (1127.0 * math.log(1.0 + edge / 700.0) for edge in (low_hz, high_hz))
    step = (high - low) / (mels + 1)
    number = np.arange(mels, dtype=np.float32)[:, None]
    left, centre, right = low + number * step, low + (number + 1.0) * step, low + (number + 2.0) * step
    bins = 1127.0 * np.log(1.0 + np.arange(size // 2, dtype=np.float32)[None, :] * (rate_hz / size) / 700.0)
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    bank: np.ndarray = np.maximum(np.float32(0), np.minimum(rising, falling))
    return bank
