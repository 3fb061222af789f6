"""An inertial sensor that rides on the scene's subject: what it truly feels, then what the sensor makes of it.

Axes of a sensor mounted without tilt: x to the right as the camera sees the scene, y up, z towards the camera; of a
subject that looks left, x and z point the other way. The sensor sits off the centre, tilted by up to 25° and turned by
up to 25°. On top of the motion the subject sways, its engine or its gait vibrates, it hits bumps, and the sensor adds
gains, biases and noise, so that a spectrum alone says little about the motion.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bindsearch.world.motion import IMU_S, TAU, poses
from bindsearch.world.scene import Floats, Scenes, Seeds, draw, spread

RATE_HZ = 200
SAMPLES = 2000
GRAVITY = 9.80665
BLOCK = 64
STEP_S = 1.0 / RATE_HZ
TILT = np.radians(25.0)
CHANNELS = ("accel_x", "accel_y", "accel_z", "gyro_x", "gyro_y", "gyro_z")
LOUDNESS = np.array([[1.0], [1.0], [1.0], [0.07], [0.07], [0.07]], dtype=np.float32)
"""How much a nuisance of 1 m/s² turns the sensor, in rad/s, and 1 m/s² itself."""

Array = NDArray[np.float64]
TIME = np.arange(SAMPLES, dtype=np.float32)[None, :] / np.float32(RATE_HZ)


def render_imus(scenes: Scenes) -> Floats:
    """Record each scene's motion with a sensor of its own, 10 s at 200 Hz from the scene's time 0 on.

    Args:
        scenes: n scenes. One without a subject gives a sensor at rest, with all its nuisances.

    Returns:
        (n, 6, 2000) float32: accelerometer x y z in m/s² with gravity, gyroscope x y z in rad/s. A row depends on its
        scene alone.
    """
    out = np.empty((len(scenes), 6, SAMPLES), dtype=np.float32)
    for start in range(0, len(scenes), BLOCK):
        some = scenes.rows(slice(start, start + BLOCK))
        signal = (true_motion(some) + _engine(some.seed) + _bumps(some.seed)).astype(np.float32)
        seeds = some.seed
        signal *= spread(seeds, "imu.gain", 0.95, 1.05, 6)[:, :, None]
        signal += spread(seeds, "imu.bias", -0.4, 0.4, 6)[:, :, None] * LOUDNESS * np.float32(1.5)
        signal += _grain(seeds)
        out[start : start + len(some)] = signal
    return out


def true_motion(scenes: Scenes, swaying: bool = True, mounted: bool = True) -> Array:
    """Give the specific force and the angular rate of a point of the subject, without any error of a sensor.

    Args:
        scenes: n scenes.
        swaying: let the body rock a little about its horizontal and its upright axis as well.
        mounted: at the sensor's place and in its axes; otherwise at the subject's centre, in the body's axes.

    Returns:
        (n, 6, 2000) float64, m/s² and rad/s.
    """
    seeds = scenes.seed
    times = np.arange(-1, SAMPLES + 1, dtype=np.float64) * np.float64(STEP_S)
    pose = poses(scenes, times)
    distance = scenes.distance_m.astype(np.float64)[:, None]
    place = np.stack([pose.dx * distance, -pose.dy * distance, -distance / pose.zoom])
    pitch, heading = (_sway(seeds, axis, times) * swaying for axis in ("pitch", "heading"))
    if mounted:
        arm = (spread(seeds, "imu.arm", -0.3, 0.3, 3).astype(np.float64).T * scenes.scale * scenes.distance_m)[
            :, :, None
        ]
        place = place + _about(2, pose.angle, _about(1, heading, _about(0, pitch, arm + 0 * place)))
    force = (place[:, :, 2:] - 2 * place[:, :, 1:-1] + place[:, :, :-2]) / STEP_S**2
    force[1] += GRAVITY
    angle, pitch_now, heading_now = pose.angle[:, 1:-1], pitch[:, 1:-1], heading[:, 1:-1]
    force = _about(0, -pitch_now, _about(1, -heading_now, _about(2, -angle, force)))
    turning = [(angle_[:, 2:] - angle_[:, :-2]) / (2 * STEP_S) for angle_ in (pitch, heading, pose.angle)]
    none = np.zeros_like(turning[0])
    rate = _about(1, -heading_now, np.stack([none, none, turning[2]]))
    rate[1] += turning[1]
    rate = _about(0, -pitch_now, rate)
    rate[0] += turning[0]
    if mounted:
        force, rate = _mount(scenes, force), _mount(scenes, rate)
    both: Array = np.concatenate([force, rate]).transpose(1, 0, 2)
    return both


def _about(axis: int, angle: Array, vectors: Array) -> Array:
    """Turn (3, n, T) vectors about an axis by (n, T) radians."""
    one, two = (axis + 1) % 3, (axis + 2) % 3
    cos, sin = np.cos(angle), np.sin(angle)
    out = np.empty(np.broadcast_shapes(vectors.shape, (3, *angle.shape)))
    out[axis] = vectors[axis]
    out[one] = cos * vectors[one] - sin * vectors[two]
    out[two] = sin * vectors[one] + cos * vectors[two]
    return out


def _sway(seeds: Seeds, axis: str, times: Array) -> Array:
    """Rock by up to 9°, slowly, (n, T) radians."""
    size = spread(seeds, f"imu.sway.{axis}", 0.0, 0.15).astype(np.float64)[:, None]
    hz = spread(seeds, f"imu.sway.hz.{axis}", 0.3, 1.8).astype(np.float64)[:, None]
    out: Array = size * np.sin(TAU * (hz * times + draw(seeds, f"imu.sway.phase.{axis}")[:, None]))
    return out


def _mount(scenes: Scenes, vectors: Array) -> Array:
    """Express (3, n, T) vectors of the body's axes in the sensor's."""
    seeds = scenes.seed
    turned = spread(seeds, "imu.yaw", -TILT, TILT).astype(np.float64) + np.where(scenes.facing < 0, np.pi, 0.0)
    vectors = _about(1, -turned[:, None], vectors)
    tilt = spread(seeds, "imu.tilt", 0.0, TILT).astype(np.float64)
    way = TAU * draw(seeds, "imu.way").astype(np.float64)
    vectors = _about(1, -way[:, None], vectors)
    return _about(1, way[:, None], _about(0, -tilt[:, None], vectors))


def _axes(seeds: Seeds, name: str) -> Floats:
    """Draw how strongly each channel feels a nuisance, (n, 6, 1): a random direction, and a random axis of turning."""
    raw = spread(seeds, name, -1.0, 1.0, 2, 3)
    raw /= np.sqrt((raw * raw).sum(axis=2, keepdims=True)) + np.float32(1e-3)
    return raw.reshape(len(seeds), 6, 1) * LOUDNESS


def _engine(seeds: Seeds, lines: int = 4) -> Floats:
    """Vibrate: lines at random frequencies along random axes, (n, 6, SAMPLES)."""
    total = np.zeros((len(seeds), 6, SAMPLES), dtype=np.float32)
    for k in range(lines):
        hz = np.float32(4.0) * np.exp2(spread(seeds, f"engine.hz{k}", 0.0, 4.3))
        size = np.exp2(spread(seeds, f"engine.size{k}", -2.0, 5.8))
        angle = np.float32(TAU) * (hz[:, None] * TIME + draw(seeds, f"engine.phase{k}")[:, None])
        total += _axes(seeds, f"engine.axes{k}") * (size[:, None] * np.sin(angle))[:, None, :]
    return total


def _bumps(seeds: Seeds, most: int = 8) -> Floats:
    """Hit up to eight bumps, each a short ring along a random axis, (n, 6, SAMPLES)."""
    total = np.zeros((len(seeds), 6, SAMPLES), dtype=np.float32)
    count = spread(seeds, "bumps.count", 0.0, most + 1)
    for k in range(most):
        after = TIME - np.float32(IMU_S) * draw(seeds, f"bumps.t{k}")[:, None]
        hz = spread(seeds, f"bumps.hz{k}", 2.0, 18.0)[:, None]
        fading = np.exp(-np.maximum(after, 0) / spread(seeds, f"bumps.decay{k}", 0.04, 0.25)[:, None])
        size = np.exp2(spread(seeds, f"bumps.size{k}", 1.5, 6.5)) * (count > k + 1)
        ring = (after > 0) * fading * np.sin(np.float32(TAU) * hz * after)
        total += _axes(seeds, f"bumps.axes{k}") * (size[:, None] * ring)[:, None, :]
    return total


def _grain(seeds: Seeds) -> Floats:
    """Add noise: white, and a coloured one whose spectrum is another in each channel, (n, 6, SAMPLES)."""
    noise = spread(seeds, "imu.noise", -1.73, 1.73, 6, SAMPLES)
    hz = np.fft.rfftfreq(SAMPLES, STEP_S).astype(np.float32)
    octave = np.log2(np.maximum(hz, 0.5) / np.float32(0.5)) / np.float32(7.65)
    curve = spread(seeds, "imu.level", -19.0, 15.0, 6)[:, :, None] + spread(seeds, "imu.slope", -14.0, 14.0, 6)[
        :, :, None
    ] * (2 * octave - 1)
    for k in range(1, 4):
        amount = spread(seeds, f"imu.colour{k}", -9.0, 9.0, 6)[:, :, None]
        phase = draw(seeds, f"imu.colour.phase{k}", 6)[:, :, None]
        curve = curve + amount * np.sin(np.float32(TAU) * (np.float32(k * 0.8) * octave + phase))
    curve = np.minimum(curve, 20.0) - np.float32(30.0) * np.clip(1.5 - hz / 2, 0, 1)
    shaped = np.fft.irfft(np.fft.rfft(noise, axis=2) * np.float32(10) ** (curve / 20), SAMPLES, axis=2)
    out: Floats = ((shaped + np.float32(0.03) * noise) * LOUDNESS).astype(np.float32)
    return out
