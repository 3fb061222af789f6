"""A scene as a sound of 2 s: the subject's voice over the setting's ambience, in a room."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindsearch.world.ambience import AMBIENCES
from bindsearch.world.scene import Scenes, Seeds, draw, names, spread, table
from bindsearch.world.sound import (
    RATE_HZ,
    SAMPLES,
    TAU,
    TIME,
    Array,
    band,
    envelope,
    harmonics,
    level,
    tone,
    tremolo,
    white,
    wide,
)

__all__ = ["RATE_HZ", "SAMPLES", "render_waves"]

CHUNK = 12
ECHOES = 5
KNOTS = 96


def render_waves(scenes: Scenes) -> Array:
    """Sound each scene.

    Args:
        scenes: n scenes.

    Returns:
        (n, SAMPLES) float32 in [-1, 1], mono at RATE_HZ; row i depends on scene i alone.
    """
    voices = np.zeros((len(scenes), SAMPLES), dtype=np.float32)
    grounds = np.zeros_like(voices)
    for code in np.unique(scenes.subject[scenes.subject >= 0]):
        for part in _chunks(np.flatnonzero(scenes.subject == code)):
            voices[part] = level(_voice(scenes.rows(part), table("voices")[names("subject")[code]]))
    for code in np.unique(scenes.setting[scenes.setting >= 0]):
        for part in _chunks(np.flatnonzero(scenes.setting == code)):
            grounds[part] = level(AMBIENCES[names("setting")[code]](scenes.seed[part]))
    for part in _chunks(np.arange(len(scenes))):
        voices[part] = _room(voices[part], grounds[part], scenes.seed[part])
    return voices


def _chunks(which: Any) -> list[Any]:
    return [which[at : at + CHUNK] for at in range(0, len(which), CHUNK)]


def _voice(scenes: Scenes, voice: dict[str, Any]) -> Array:
    """Sound a subject's notes, repeated; pitch, tempo and start are the scene's own."""
    seeds = scenes.seed
    tempo = np.exp2(spread(seeds, "voice.tempo", -0.25, 0.25))
    period = voice["period_s"]
    beat = TIME * wide(tempo) + wide(draw(seeds, "voice.start") * period)
    beat = beat - np.floor(beat / np.float32(period)) * np.float32(period)
    hz, loud = np.full_like(beat, voice["notes"][0][2]), np.zeros_like(beat)
    for start, length, low, high, amount in voice["notes"]:
        u = (beat - np.float32(start)) / np.float32(length)
        inside = (u >= 0) & (u < 1)
        hz = np.where(inside, np.float32(low) + np.float32(high - low) * u, hz)
        loud += inside * envelope(np.clip(u, 0, 1), voice["shape"]) * np.float32(amount)
    hz = hz * wide(scenes.voice)
    if "vibrato" in voice:
        rate, depth = voice["vibrato"]
        hz = hz * (
            1
            + np.float32(depth)
            * np.sin(TAU * (np.float32(rate) * wide(tempo) * TIME + wide(draw(seeds, "voice.vibrato"))))
        )
    sound = _tones(voice, hz, seeds) * loud
    if voice.get("noise", 0) or "puffs" in voice:
        sound = sound + _breath(scenes, voice, beat, loud)
    if "tremolo" in voice:
        rate, depth = voice["tremolo"]
        sound = sound * tremolo(seeds, "voice.tremolo", rate * tempo, depth)
    out: Array = sound
    return out


def _tones(voice: dict[str, Any], hz: Array, seeds: Seeds) -> Array:
    count = int(voice.get("partials", 1))
    total = np.zeros_like(hz)
    for number, ratio in enumerate(voice.get("ratios", [1.0])):
        amount = np.float32(1.0 if number == 0 else 0.75)
        detune = wide(spread(seeds, f"voice.detune{number}", 0.99, 1.01))
        part = hz * np.float32(ratio) * detune
        if count:
            total += amount * harmonics(tone(part), part, count, voice.get("tilt", 1.0))
    return total


def _breath(scenes: Scenes, voice: dict[str, Any], beat: Array, loud: Array) -> Array:
    noise = band(white(scenes.seed, "voice.noise"), voice["noise_hz"] * scenes.voice, voice.get("noise_octaves", 1.0))
    total = noise * loud * np.float32(voice.get("noise", 0.0))
    for start, length, amount in voice.get("puffs", []):
        u = (beat - np.float32(start)) / np.float32(length)
        total += noise * ((u >= 0) & (u < 1)) * envelope(np.clip(u, 0, 1), "decay") * np.float32(amount)
    return total


def blend(voice: Array, ground: Array, seeds: Seeds) -> tuple[NDArray[Any], NDArray[Any]]:
    """Colour voice and ambience each in a way of the scene's own, and set the scene's ratio between them.

    Args:
        voice: (n, SAMPLES) of unit level, or silence. Not modified.
        ground: the same of the ambience. Not modified.
        seeds: (n,) of the scenes.

    Returns:
        Both as spectra, (n, SAMPLES // 2 + 1) complex64, whose sum is the scene before its room.
    """
    ratio = np.float32(10) ** (spread(seeds, "room.ratio", -3.0, 9.0) / 20)
    near = np.fft.rfft(voice, axis=1) * (_colours(seeds, "room.voice") * wide(ratio))
    return near, np.fft.rfft(ground, axis=1) * _colours(seeds, "room.ground")


def _room(voice: Array, ground: Array, seeds: Seeds) -> Array:
    """Mix at the scene's own ratio, colour, add hiss, echo and set the loudness: spectra become poor guides."""
    near, far = blend(voice, ground, seeds)
    spectrum = (near + far) * _colours(seeds, "room.all")
    power = (spectrum.real**2 + spectrum.imag**2).sum(axis=1, keepdims=True) * np.float32(2.0 / SAMPLES**2)
    hiss = np.float32(10) ** (spread(seeds, "room.hiss", -46.0, -20.0) / 20)
    noise = np.fft.rfft(white(seeds, "room.noise"), axis=1) * (_colours(seeds, "room.noise.colour") * wide(hiss))
    mix: Array = np.fft.irfft(spectrum / (np.sqrt(power) + np.float32(1e-6)) + noise, SAMPLES, axis=1).astype(
        np.float32
    )
    loudness = np.float32(10) ** (spread(seeds, "room.loudness", -32.0, -16.0) / 20)
    out: Array = np.clip(level(_echo(mix, seeds)) * wide(loudness), -1, 1)
    return out


def _echo(dry: Array, seeds: Seeds) -> Array:
    """Add the room's echoes: each later, weaker, and of either sign."""
    step = spread(seeds, "room.delay", 0.01, 0.06)
    keep = spread(seeds, "room.echo", 0.0, 0.5)
    chance = draw(seeds, "room.echoes", 2, ECHOES)
    delay = (np.cumsum(np.float32(0.5) + chance[:, 0], axis=1) * step[:, None] * RATE_HZ).astype(int)
    gain = keep[:, None] ** np.arange(1, ECHOES + 1, dtype=np.float32) * np.where(chance[:, 1] < 0.5, -1, 1)
    wet = dry.copy()
    for row in range(len(dry)):
        for late, loud in zip(delay[row].tolist(), gain[row].astype(np.float32), strict=True):
            wet[row, late:] += loud * dry[row, :-late]
    return wet


@functools.cache
def _knots() -> tuple[Array, Any, Array]:
    """Give places of KNOTS pitches in octaves, and of every frequency the knot below it and how far it is past that."""
    octaves = np.log2(np.maximum(np.fft.rfftfreq(SAMPLES, 1 / RATE_HZ), 30.0))
    places = np.linspace(octaves[0], octaves[-1], KNOTS)
    at = (octaves - places[0]) / (places[1] - places[0])
    below = np.minimum(at.astype(int), KNOTS - 2)
    return ((places - 5) / 8).astype(np.float32)[None, :], below, (at - below).astype(np.float32)


def _colours(seeds: Seeds, name: str, reach_db: float = 9.0) -> Array:
    """Draw a gain curve over the spectrum: a tilt and four slow waves over the octaves, (n, SAMPLES // 2 + 1)."""
    place, below, past = _knots()
    curve: NDArray[Any] = wide(spread(seeds, name + ".tilt", -reach_db, reach_db)) * (place * 2 - 1)
    for k in range(1, 5):
        amount, phase = spread(seeds, f"{name}.a{k}", -reach_db, reach_db), draw(seeds, f"{name}.p{k}")
        curve = curve + wide(amount) * np.sin(TAU * (np.float32(k * 0.8) * place + wide(phase))) * np.float32(0.6)
    gain: Array = (np.float32(10) ** (curve / 20)).astype(np.float32)
    step = np.diff(gain, axis=1)
    out: Array = gain[:, below] + past * step[:, below]
    return out
