"""The eight settings as sounds: their rhythm and texture tell them apart, their spectra overlap on purpose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bindsearch.world.scene import Seeds, draw, spread
from bindsearch.world.sound import RATE_HZ, TAU, TIME, Array, band, level, pings, slow, tone, tremolo, white, wide


def octave(seeds: Seeds, name: str, reach: float = 0.5) -> Array:
    """Draw a pitch factor within ±reach octaves, (n,)."""
    return np.exp2(spread(seeds, name, -reach, reach))


def surf(seeds: Seeds) -> Array:
    """Waves that rise slowly and break."""
    beat = wide(spread(seeds, "surf.rate", 0.7, 1.1)) * TIME + wide(draw(seeds, "surf.phase"))
    beat = beat - np.floor(beat)
    swell: Array = np.where(beat < 0.72, (beat / np.float32(0.72)) ** 2.5, ((1 - beat) / np.float32(0.28)) ** 1.5)
    return band(white(seeds, "surf"), 900 * octave(seeds, "surf.hz"), 1.3) * (np.float32(0.12) + swell)


def rustle(seeds: Seeds) -> Array:
    """Leaves: many short flurries."""
    flurry = slow(seeds, "rustle.a", 14.0) ** 3 * (np.float32(0.3) + slow(seeds, "rustle.b", 2.0))
    return band(white(seeds, "rustle"), 2200 * octave(seeds, "rustle.hz"), 1.1) * flurry


def traffic(seeds: Seeds) -> Array:
    """Rumble under a siren that wails up and down."""
    rumble = band(white(seeds, "traffic"), 260 * octave(seeds, "traffic.hz"), 1.2)
    turn = np.sin(TAU * (wide(spread(seeds, "siren.rate", 1.1, 1.7)) * TIME + wide(draw(seeds, "siren.phase"))))
    hz = wide(850 * octave(seeds, "siren.hz", 0.6)) * np.exp2(np.float32(0.45) * turn)
    phase = tone(hz)
    return rumble + np.float32(0.8) * (np.sin(phase) + np.float32(0.4) * np.sin(2 * phase))


def wind(seeds: Seeds) -> Array:
    """Whistle, wandering and breathy."""
    bend = slow(seeds, "wind.bend", 2.2) * 2 - 1
    hz = wide(700 * octave(seeds, "wind.hz", 0.6)) * np.exp2(np.float32(0.7) * bend)
    jitter = band(white(seeds, "wind.jitter"), 60, 1.0)
    whistle = np.sin(tone(hz * (1 + np.float32(0.12) * jitter)))
    breath = band(white(seeds, "wind"), 500 * octave(seeds, "wind.low"), 1.2)
    out: Array = (whistle + np.float32(0.35) * breath) * (np.float32(0.25) + slow(seeds, "wind.gust", 2.0))
    return out


def steps(seeds: Seeds) -> Array:
    """Footsteps in crusted snow: two crunches a second, each a crackle."""
    beat = wide(spread(seeds, "steps.rate", 1.9, 2.6)) * TIME + wide(draw(seeds, "steps.phase"))
    beat = beat - np.floor(beat)
    crunch: Array = np.where(beat < 0.5, np.abs(np.sin(np.float32(np.pi) * beat * 2)) ** np.float32(0.5), 0)
    noise = white(seeds, "steps")
    crackle = noise * (draw(seeds, "steps.crackle", noise.shape[1]) < 0.012)
    return band(crackle, 1700 * octave(seeds, "steps.hz"), 1.4) * (crunch + np.float32(0.03))


def crickets(seeds: Seeds) -> Array:
    """Trills in groups, two insects of two pitches."""
    total = np.zeros_like(slow(seeds, "crickets", 1.0))
    for k in range(2):
        hz = 3300 * octave(seeds, f"crickets.hz{k}", 0.45)
        group = wide(spread(seeds, f"crickets.rate{k}", 1.6, 2.6)) * TIME + wide(draw(seeds, f"crickets.phase{k}"))
        chirps = np.clip((np.float32(0.55) - (group - np.floor(group))) * 12, 0, 1)
        pulse = tremolo(seeds, f"crickets.am{k}", spread(seeds, f"crickets.fast{k}", 24, 34), 1.0)
        total += chirps * pulse**2 * np.sin(TAU * wide(hz) * TIME)
    return total


def drips(seeds: Seeds) -> Array:
    """Drip; drops ring and come back as echoes."""
    drops = pings(seeds, "drips", 4, (800, 1500), 0.045, bend=3.0)
    gaps = (spread(seeds, "drips.gap", 0.11, 0.18) * RATE_HZ).astype(int)
    total = drops.copy()
    for row, gap in enumerate(gaps):
        for k in (1, 2, 3):
            total[row, k * gap :] += np.float32(0.55**k) * drops[row, : -k * gap]
    return total + np.float32(0.02) * band(white(seeds, "drips.air"), 200, 1.0)


def frying(seeds: Seeds) -> Array:
    """Sizzle like a pan, over a humming fridge and a clink or two."""
    noise = white(seeds, "frying")
    spit = level(
        band(noise * (draw(seeds, "frying.spit", noise.shape[1]) < 0.004), 3000 * octave(seeds, "frying.hz", 0.6), 1.2)
    )
    hum_hz = wide(100 * octave(seeds, "frying.hum", 0.3))
    hum = np.sin(TAU * hum_hz * TIME) + np.float32(0.6) * np.sin(TAU * 3 * hum_hz * TIME)
    clink = pings(seeds, "frying.clink", 2, (2200, 3200), 0.08)
    out: Array = spit + np.float32(0.35) * hum + np.float32(1.6) * clink
    return out


AMBIENCES: dict[str, Callable[[Seeds], Array]] = {
    "beach": surf,
    "forest": rustle,
    "city": traffic,
    "desert": wind,
    "snow": steps,
    "meadow": crickets,
    "cave": drips,
    "kitchen": frying,
}
