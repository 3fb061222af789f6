"""The world's sounds: the subject is heard over the ambience, in a room, at no level that gives it away."""

from __future__ import annotations

import dataclasses

import numpy as np

from bindsearch.world.ambience import AMBIENCES
from bindsearch.world.audio import RATE_HZ, SAMPLES, blend, render_waves
from bindsearch.world.audio import _echo as echo
from bindsearch.world.audio import _voice as speak
from bindsearch.world.scene import Scenes, names, sample, split_seeds, table
from bindsearch.world.sound import Array, level

WINDOW = 512


def energy(sound: Array) -> np.ndarray:
    """Energy in cells of 32 ms and a third of an octave, (n, frames, bands)."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, WINDOW, axis=1)[:, :: WINDOW // 2] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(frames, axis=2)) ** 2
    edges = np.unique(np.searchsorted(np.fft.rfftfreq(WINDOW, 1 / RATE_HZ), np.geomspace(60, 7500, 25)))
    return np.add.reduceat(power, edges[:-1], axis=2)


def heard_share(scenes: Scenes) -> float:
    """Share of one subject's energy that lies in cells where it is 3 dB over the ambience; n = 1."""
    voice = level(speak(scenes, table("voices")[names("subject")[scenes.subject[0]]]))
    ground = level(AMBIENCES[names("setting")[scenes.setting[0]]](scenes.seed))
    near, far = (energy(np.fft.irfft(part, SAMPLES, axis=1)) for part in blend(voice, ground, scenes.seed))
    return float((near * (near > 2 * far)).sum() / near.sum())


def test_every_subject_is_heard_over_every_ambience():
    scenes = sample(split_seeds("test", 150))
    shares = np.array([heard_share(scenes.rows(slice(row, row + 1))) for row in range(len(scenes))])
    assert np.median(shares) > 0.9
    assert np.percentile(shares, 5) > 0.5


def test_echoes_come_late_and_differ_between_rooms():
    click = np.zeros((8, SAMPLES), dtype=np.float32)
    click[:, 100] = 1
    wet = echo(click, split_seeds("test", 8))
    first = int(0.005 * RATE_HZ)
    assert np.array_equal(wet[:, : 100 + first], click[:, : 100 + first])
    counts = (wet != 0).sum(axis=1)
    assert counts.min() >= 2 and counts.max() <= 6
    energies = (wet**2).sum(axis=1)
    assert energies.max() < 1.6 and len(np.unique(energies.round(4))) == 8


def test_loudness_says_nothing_about_the_subject():
    scenes = sample(split_seeds("test", 8))
    same = dataclasses.replace(scenes, subject=np.zeros_like(scenes.subject))
    loud = [np.sqrt((render_waves(s) ** 2).mean(axis=1)) for s in (scenes, same)]
    assert np.allclose(loud[0], loud[1], rtol=0.02)
