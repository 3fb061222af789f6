"""The inertial sensor and the points: mechanics, not looks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bindsearch.world.imu import GRAVITY, RATE_HZ, SAMPLES, render_imus, true_motion
from bindsearch.world.motion import IMU_S, poses
from bindsearch.world.scene import Scenes, names, sample, split_seeds

MOTIONS = names("motion")


def moving(motion: str, n: int, start: int = 0) -> Scenes:
    """Give n scenes of one motion."""
    scenes = sample(split_seeds("test", 12 * n + 60, start))
    return scenes.rows(np.flatnonzero(scenes.motion == MOTIONS.index(motion))[:n])


def test_the_window_is_ten_seconds_at_the_towers_rate():
    scenes = sample(split_seeds("test", 5), "mixed")
    signal = render_imus(scenes)
    assert SAMPLES == IMU_S * RATE_HZ
    assert signal.shape == (5, 6, SAMPLES) and signal.dtype == np.float32 and np.isfinite(signal).all()


def test_a_row_depends_on_its_scene_alone():
    scenes = sample(split_seeds("test", 70), "mixed")
    together = render_imus(scenes)
    for row in (0, 63, 64, 69):
        assert np.abs(render_imus(scenes.rows(slice(row, row + 1)))[0] - together[row]).max() < 1e-4


def test_what_stands_still_feels_gravity_alone():
    true = true_motion(moving("still", 8), swaying=False)
    assert np.abs(np.linalg.norm(true[:, :3], axis=1) - GRAVITY).max() < 1e-6
    assert np.abs(true[:, 3:]).max() < 1e-9
    level = true_motion(moving("still", 8), swaying=False, mounted=False)
    assert np.abs(level[:, 1] - GRAVITY).max() < 1e-6 and np.abs(level[:, [0, 2]]).max() < 1e-6


def test_the_sensor_is_tilted_by_up_to_25_degrees_and_still_near_gravity_on_average():
    scenes = moving("still", 60)
    true = true_motion(scenes, swaying=False)
    tilt = np.degrees(np.arccos(true[:, 1, 0] / GRAVITY))
    assert tilt.max() < 25.01 and tilt.max() > 20 and tilt.min() < 5
    felt = np.linalg.norm(render_imus(scenes)[:, :3].mean(axis=2), axis=1)
    assert np.abs(felt - GRAVITY).max() < 2.0


@settings(max_examples=10, deadline=None)
@given(start=st.integers(0, 100_000), motion=st.sampled_from(["spin", "shake"]))
def test_the_gyroscope_integrates_to_the_angle(start, motion):
    scenes = moving(motion, 3, start)
    times = np.arange(SAMPLES) / RATE_HZ
    angle = poses(scenes, times).angle
    rate = true_motion(scenes, swaying=False, mounted=False)[:, 5]
    steps = (rate[:, 1:] + rate[:, :-1]) / (2 * RATE_HZ)
    turned = np.concatenate([np.zeros((len(scenes), 1)), np.cumsum(steps, axis=1)], axis=1)
    assert np.abs(turned - (angle - angle[:, :1])).max() < 0.02


@settings(max_examples=10, deadline=None)
@given(start=st.integers(0, 100_000), motion=st.sampled_from(["slide", "bounce", "approach"]))
def test_the_accelerometer_integrates_twice_to_the_way(start, motion):
    scenes = moving(motion, 3, start)
    times = np.arange(SAMPLES) / RATE_HZ
    pose, distance = poses(scenes, times), scenes.distance_m.astype(float)[:, None]
    way = np.stack([pose.dx * distance, -pose.dy * distance, -distance / pose.zoom], axis=1)
    force = true_motion(scenes, swaying=False, mounted=False)[:, :3]
    force[:, 1] -= GRAVITY
    speed = np.cumsum(force, axis=2) / RATE_HZ
    found = np.cumsum(speed, axis=2) / RATE_HZ
    line = np.stack([np.ones(SAMPLES), times])  # start and speed at the start are not in an accelerometer
    for signal in (found, way):
        signal -= np.einsum("naj,jt->nat", signal @ np.linalg.pinv(line), line)
    assert np.abs(found - way).max() < 0.02 * np.ptp(way)


def test_a_subject_that_hops_is_weightless_in_flight():
    true = true_motion(moving("bounce", 6), swaying=False, mounted=False)
    upward = true[:, 1]
    for row in upward:
        assert np.median(row) < GRAVITY and row.max() > 2 * GRAVITY  # thrown down slowly, thrown up briefly


def test_turning_about_the_view_axis_carries_gravity_round():
    true = true_motion(moving("spin", 6), swaying=False, mounted=False)
    assert np.abs(np.linalg.norm(true[:, :3], axis=1) - GRAVITY).max() < 1e-6
    assert (true[:, 0].max(axis=1) > 0.95 * GRAVITY).all() and (true[:, 0].min(axis=1) < -0.95 * GRAVITY).all()


def test_a_subject_that_looks_left_carries_its_sensor_turned_round():
    scenes = moving("slide", 12)
    there = dataclasses.replace(scenes, facing=np.ones_like(scenes.facing))
    back = dataclasses.replace(scenes, facing=-np.ones_like(scenes.facing))
    one, two = (np.linalg.norm(true_motion(s, swaying=False)[:, :3], axis=1).max(axis=1) for s in (there, back))
    assert one == pytest.approx(two, rel=0.01)
    x_one, x_two = (true_motion(s, swaying=False)[:, 0] for s in (there, back))
    for a, b in zip(x_one, x_two, strict=True):
        assert np.corrcoef(a, b)[0, 1] < -0.5


def test_nuisances_are_as_large_as_many_a_motion():
    scenes = sample(split_seeds("test", 120))
    scenes = scenes.rows(scenes.motion >= 0)
    signal, true = render_imus(scenes)[:, :3], true_motion(scenes)[:, :3]
    ratio = (signal - true).std(axis=(1, 2)) / (true - true.mean(axis=2, keepdims=True)).std(axis=(1, 2))
    assert 0.3 < np.median(ratio) < 10
