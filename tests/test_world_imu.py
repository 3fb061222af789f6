"""The inertial sensor and the points: mechanics, not looks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bindsearch.errors import InputError
from bindsearch.world.frames import paint_frames
from bindsearch.world.imu import GRAVITY, RATE_HZ, SAMPLES, render_imus, true_motion
from bindsearch.world.motion import IMU_S, STILL_S, poses
from bindsearch.world.points import render_points
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
    found = np.cumsum(speed, axis=2)[:, :, :-1] / RATE_HZ  # a force moves the sample after it
    way, times = way[:, :, 1:], times[1:]
    line = np.stack([np.ones(SAMPLES - 1), times])  # start and speed at the start are not in an accelerometer
    for signal in (found, way):
        signal -= np.einsum("naj,jt->nat", signal @ np.linalg.pinv(line), line)
    assert np.abs(found - way).max() < 1e-6 * np.ptp(way)


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


def test_points_project_onto_the_subject_of_the_picture():
    size = 64
    scenes = moving("still", 48)  # a moving one leaves afterimages where it no longer is
    points = render_points(scenes)
    assert points.shape == (48, 1024, 3) and points.dtype == np.float32
    pixels = np.floor((points[..., :2] / points[..., 2:] + 0.5) * size).astype(int)
    subject = subject_masks(scenes, size)
    seen = (pixels >= 0).all(axis=2) & (pixels < size).all(axis=2)
    on, covered = [], []
    for row in range(len(scenes)):
        x, y = pixels[row][seen[row]].T
        on.append(subject[row, y, x].mean())
        hit = np.zeros((size + 2, size + 2), dtype=bool)
        for dx, dy in ((0, 0), (1, 0), (0, 1), (-1, 0), (0, -1)):
            hit[1 + y + dy, 1 + x + dx] = True
        covered.append(hit[1:-1, 1:-1][subject[row]].mean())
    assert np.mean(on) > 0.97 and np.mean(covered) > 0.9


def subject_masks(scenes: Scenes, size: int) -> np.ndarray:
    """Say which pixels the subject covers now, (n, size, size) bool: what opaque paint on it would change."""
    still = dataclasses.replace(scenes, subject=np.full_like(scenes.subject, -1))
    masks = np.zeros((len(scenes), size, size), dtype=bool)
    frames = paint_frames(scenes, size, (STILL_S,), ("rgb",)), paint_frames(still, size, (STILL_S,), ("rgb",))
    for (rows, _, full), (_, _, empty) in zip(*frames, strict=True):
        masks[rows] = np.abs(full.rgb - empty.rgb).max(axis=1) > 0.01
    return masks


@settings(max_examples=8, deadline=None)
@given(start=st.integers(0, 100_000), n_points=st.integers(1, 700))
def test_points_are_metres_at_the_subjects_distance(start, n_points):
    scenes = sample(split_seeds("test", 4, start))
    points = render_points(scenes, n_points)
    assert np.array_equal(points[2:3], render_points(scenes.rows(slice(2, 3)), n_points))
    away = (scenes.distance_m / poses(scenes, np.array([STILL_S])).zoom[:, 0])[:, None]
    size = (scenes.scale * scenes.distance_m)[:, None]
    assert (np.abs(points[..., 2] - away) <= 1.05 * size).all()
    assert len(np.unique(points[0], axis=0)) > 0.98 * n_points


def test_a_scene_without_a_subject_has_no_surface():
    assert not render_points(sample(split_seeds("test", 3), "setting"), 10).any()
    with pytest.raises(InputError, match="n_points"):
        render_points(sample(split_seeds("test", 3)), 0)
