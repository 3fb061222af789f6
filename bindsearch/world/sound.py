"""Building blocks of sounds: notes, partials, shaped noise, envelopes; n sounds of 2 s at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindsearch.world.scene import Seeds, draw, spread

Array = NDArray[np.float32]

RATE_HZ = 16000
SAMPLES = 32000
TAU = np.float32(2 * np.pi)
TIME = (np.arange(SAMPLES, dtype=np.float32) / np.float32(RATE_HZ))[None, :]


def wide(values: Any) -> Array:
    """Give (n,) numbers a trailing time axis; a plain number stays one."""
    array = np.asarray(values, dtype=np.float32)
    return array[:, None] if array.ndim == 1 else array


def tone(hz: Array) -> Array:
    """Integrate a frequency to a phase: (n, SAMPLES) Hz -> (n, SAMPLES) radians, wrapped."""
    turns = np.cumsum(hz.astype(np.float64) / RATE_HZ, axis=1)
    return ((turns - np.floor(turns)) * (2 * np.pi)).astype(np.float32)


def harmonics(phase: Array, hz: Array, count: int, tilt: float) -> Array:
    """Sum the first partials of a phase with amplitudes k ** -tilt; those above 7 kHz fade out.

    Source: sin(k a) = 2 cos(a) sin((k - 1) a) - sin((k - 2) a).
    """
    twice = np.float32(2) * np.cos(phase)
    before, now = np.zeros_like(phase), np.sin(phase)
    total = now.copy()
    for k in range(2, count + 1):
        before, now = now, twice * now - before
        total += np.float32(k**-tilt) * now * np.clip((np.float32(7000) - k * hz) * np.float32(0.001), 0, 1)
    return total


def white(seeds: Seeds, name: str) -> Array:
    """Draw white noise of unit variance, (n, SAMPLES)."""
    return (draw(seeds, name, SAMPLES) - np.float32(0.5)) * np.float32(12**0.5)


def band(noise: Array, centre_hz: Any, octaves: Any) -> Array:
    """Keep a band of noise, bell-shaped in octaves round its centre, at unit variance."""
    spectrum = np.fft.rfft(noise, axis=1)
    hz = np.maximum(np.fft.rfftfreq(SAMPLES, 1 / RATE_HZ), 1.0).astype(np.float32)[None, :]
    distance = (np.log2(hz) - np.log2(wide(centre_hz))) / wide(octaves)
    shaped = np.fft.irfft(spectrum * np.exp(np.float32(-0.5) * distance * distance), SAMPLES, axis=1).astype(np.float32)
    return level(shaped)


def level(sound: Array) -> Array:
    """Bring each sound to unit root mean square; silence stays silent."""
    out: Array = sound / (np.sqrt(np.mean(sound * sound, axis=1, keepdims=True)) + np.float32(1e-6))
    return out


def envelope(u: Array, shape: str) -> Array:
    """Give a note's loudness over its course u in [0, 1]."""
    if shape == "decay":
        loud: Array = np.exp(np.float32(-4.5) * u) * np.minimum(u * 60, 1)
    elif shape == "arch":
        loud = np.maximum(np.sin(np.float32(np.pi) * u), 0) ** np.float32(0.7)
    elif shape == "swell":
        loud = np.minimum(np.minimum(u * 5, (1 - u) * 3), 1)
    elif shape == "flat":
        loud = np.minimum(np.minimum(u * 25, (1 - u) * 20), 1)
    else:
        loud = np.ones_like(u)
    return loud


def slow(seeds: Seeds, name: str, rate_hz: float) -> Array:
    """Give a smooth random curve in [0, 1] that changes about rate_hz times a second, (n, SAMPLES)."""
    knots = int(np.ceil(rate_hz * 2)) + 2
    values = draw(seeds, name, knots)
    at = TIME[0] * np.float32((knots - 1.001) / 2)
    i = at.astype(int)
    share = at - i
    share = share * share * (3 - 2 * share)
    out: Array = values[:, i] * (1 - share) + values[:, i + 1] * share
    return out


def tremolo(seeds: Seeds, name: str, rate_hz: Any, depth: Any) -> Array:
    """Give a factor that swings between 1 and 1 - depth."""
    angle = TAU * (wide(rate_hz) * TIME + wide(draw(seeds, name)))
    out: Array = 1 - wide(depth) * (np.float32(0.5) + np.float32(0.5) * np.sin(angle))
    return out


def pings(seeds: Seeds, name: str, count: int, hz: tuple[float, float], decay_s: float, bend: float = 0.0) -> Array:
    """Strew decaying tones over the time, (n, SAMPLES)."""
    out = np.zeros((len(seeds), SAMPLES), dtype=np.float32)
    pitch = spread(seeds, name + ".pitch", 0.75, 1.33)
    for k in range(count):
        start = wide((k + draw(seeds, f"{name}.t{k}")) * np.float32(2.0 / count))
        t = np.maximum(TIME - start, 0)
        f = wide(spread(seeds, f"{name}.hz{k}", *hz) * pitch)
        out += (start <= TIME) * np.exp(-t / np.float32(decay_s)) * np.sin(TAU * f * t * (1 + np.float32(bend) * t))
    return out
