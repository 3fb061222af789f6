"""The frame cameras of the world: colour, distance and heat of one painting agree and move together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bindsearch.errors import InputError
from bindsearch.world import sprites
from bindsearch.world.depth import FAR_M, render_depths
from bindsearch.world.frames import OPACITIES, ambient_c, ground_heat, paint_frames, subject_heat
from bindsearch.world.image import render_images
from bindsearch.world.motion import AGES_S, STILL_S, exposure_times, poses
from bindsearch.world.scene import ABSENT, Scenes, names, sample, split_seeds
from bindsearch.world.shapes import PLANES, Canvas
from bindsearch.world.sprites import paint_sprites
from bindsearch.world.thermal import HIGHEST_C, LOWEST_C, render_thermals
from bindsearch.world.video import RATE_FPS, TIMES_S, render_videos

RENDERERS = {"image": render_images, "depth": render_depths, "thermal": render_thermals, "video": render_videos}
TOLERANCE = {"image": 1, "video": 1, "depth": 1e-3, "thermal": 1e-3}


def moving(scenes: Scenes, motion: str) -> Scenes:
    code = names("motion").index(motion)
    return replace(scenes, motion=np.full(len(scenes), code, dtype=np.int16))


def seen(scenes: Scenes, size_px: int = 64) -> np.ndarray:
    """Coverage of every exposure, (n, H, W): where the subject changes the distances of the painting."""
    cover = np.zeros((len(scenes), size_px, size_px), dtype=np.float32)
    empty = replace(scenes, subject=np.full(len(scenes), ABSENT, dtype=np.int16))
    for sign, some in ((1, scenes), (-1, empty)):
        for rows, _, canvas in paint_frames(some, size_px, (STILL_S,), ("near",)):
            cover[rows] += sign * canvas.near
    return np.abs(cover) > 0.02


def test_shapes_and_dtypes():
    scenes = sample(split_seeds("test", 5), "mixed")
    times = (0.0, 1.0, 1.5)
    assert render_images(scenes, 32).shape == (5, 32, 32, 3) and render_images(scenes, 32).dtype == np.uint8
    assert render_videos(scenes, 32, times).shape == (5, 3, 32, 32, 3)
    assert render_depths(scenes, 32).shape == (5, 32, 32) and render_depths(scenes, 32).dtype == np.float32
    assert render_thermals(scenes, 32).shape == (5, 32, 32) and render_thermals(scenes, 32).dtype == np.float32
    assert len(TIMES_S) == 16 and RATE_FPS == 8 and STILL_S in TIMES_S
    empty = scenes.rows(slice(0, 0))
    assert render_images(empty).shape == (0, 64, 64, 3) and render_depths(empty).shape == (0, 64, 64)


@pytest.mark.parametrize("modality", RENDERERS)
def test_a_row_depends_on_its_scene_alone(modality):
    render, tolerance = RENDERERS[modality], TOLERANCE[modality]
    scenes = sample(split_seeds("validation", 40), "mixed")
    together = render(scenes, 40).astype(np.float64)
    assert np.array_equal(together, render(scenes, 40))
    backwards = render(scenes.rows(np.arange(40)[::-1]), 40)[::-1]
    alone = np.concatenate([render(scenes.rows(slice(row, row + 1)), 40) for row in (0, 13, 39)])
    for other, mine in ((backwards, together), (alone, together[[0, 13, 39]])):
        # a distance may fall on the other side of a quantum: nearly all pixels agree to rounding
        assert (np.abs(other - mine) <= tolerance).mean() > 0.9995


@pytest.mark.parametrize("modality", ["image", "thermal"])
def test_a_large_frame_scaled_down_is_the_small_one(modality):
    scenes = sample(split_seeds("validation", 24))
    small = RENDERERS[modality](scenes, 64).astype(np.float64)
    large = RENDERERS[modality](scenes, 256)
    down = np.stack([np.asarray(Image.fromarray(row).resize((64, 64), Image.Resampling.BICUBIC)) for row in large])
    apart, other = np.abs(small - down).mean(), np.abs(small - np.roll(down, 1, axis=0)).mean()
    assert apart < other / 8


def test_the_frame_of_the_still_time_is_the_picture():
    scenes = sample(split_seeds("test", 30), "mixed")
    frames = render_videos(scenes, 48, (0.5, STILL_S))
    assert np.array_equal(frames[:, 1], render_images(scenes, 48))


def test_frames_differ_where_something_moves_and_nowhere_else():
    base = sample(split_seeds("test", 24))
    for motion in names("motion"):
        scenes = moving(base, motion)
        frames = np.zeros((2, 24, 48, 48), dtype=np.float32)
        for rows, number, canvas in paint_frames(scenes, 48, (0.85, 1.1), ("near",)):
            frames[number, rows] = canvas.near
        changed = (np.abs(frames[0] - frames[1]) > 0.02).any(axis=(1, 2))
        assert changed.all() if motion != "still" else not changed.any(), motion
        same = (frames[0] == frames[1]).mean(axis=(1, 2))
        assert np.median(same) > 0.3, "the ground stays as it is"


def test_a_moving_subject_leaves_a_paler_trail_behind_it():
    base = sample(split_seeds("test", 200))
    one = base.rows(np.flatnonzero(base.count == 0)[:60])
    moved = moving(one, "slide")
    pose = poses(moved, np.array([STILL_S - AGES_S[0], STILL_S]))
    way = np.sign(pose.dx[:, 1] - pose.dx[:, 0])
    x = ((np.arange(64) + 0.5) / 64)[None, None, :]
    trail, whole = seen(moving(one, "still")), seen(moved)
    middle = [np.array([(part * x[0]).sum() / part.sum() for part in cover]) for cover in (trail, whole)]
    there = middle[1] - middle[0] - pose.dx[:, 1]  # where the middle of all exposures lies from the newest one
    clear = np.abs(pose.dx[:, 1] - pose.dx[:, 0]) > 0.1
    assert clear.sum() > 20
    assert (np.sign(there[clear]) == -way[clear]).mean() > 0.9
    assert list(OPACITIES) == sorted(OPACITIES) and OPACITIES[-1] == 1.0


def test_a_still_shows_a_tremble_between_its_sides_over_afterimages_at_them():
    shaking = moving(sample(split_seeds("test", 300)), "shake")
    times = exposure_times(shaking, STILL_S)
    assert times.shape == (300, 3) and (times[:, 2] == STILL_S).all() and (times[:, :2] < STILL_S).all()
    dx = poses(shaking, times).dx / shaking.reach[:, None] / 0.07
    one, other = (np.median(part) for part in dx.T[:2])
    assert one < -1 and other > 1 and np.median(np.abs(dx[:, 2])) < 0.5
    way = poses(shaking, np.linspace(STILL_S - 0.3, STILL_S, 60)).dx / shaking.reach[:, None] / 0.07
    assert (dx[:, 0] <= way.min(axis=1) + 0.35).mean() > 0.9 and (dx[:, 1] >= way.max(axis=1) - 0.35).mean() > 0.9
    alone = exposure_times(shaking.rows(slice(7, 8)), STILL_S)
    assert np.array_equal(alone[0], times[7])


def test_a_still_shows_what_approaches_while_it_goes_away():
    leaving = moving(sample(split_seeds("test", 300)), "approach")
    zoom = poses(leaving, exposure_times(leaving, STILL_S)).zoom
    assert (zoom[:, 0] > zoom[:, 2]).all() and (zoom[:, 1] > zoom[:, 2]).all()


def test_count_is_the_number_of_copies():
    base = moving(sample(split_seeds("test", 48)), "still")
    area = []
    for count in range(3):
        scenes = replace(base, count=np.full(48, count, dtype=np.int16), scale=np.full(48, 0.12, dtype=np.float32))
        area.append(seen(scenes).sum(axis=(1, 2)))
    assert 1.6 < np.median(area[1] / area[0]) < 2.3
    assert 2.3 < np.median(area[2] / area[0]) < 3.4


def test_all_cameras_see_the_subject_at_the_same_place():
    seeds = split_seeds("validation", 60)
    full, bare = sample(seeds), sample(seeds, "setting")
    bare = replace(bare, setting=full.setting, count=full.count, distance_m=full.distance_m)
    masks = []
    for plane in PLANES:
        gap = np.zeros((60, 64, 64), dtype=np.float32)
        for sign, some in ((1, full), (-1, bare)):
            for rows, _, canvas in paint_frames(some, 64, (STILL_S,), (plane,)):
                level = getattr(canvas, plane)
                gap[rows] += sign * (level.sum(axis=1) if plane == "rgb" else level)
        masks.append(np.abs(gap) > {"rgb": 0.05, "near": 0.02, "heat": 0.5}[plane])
    for one, two in ((0, 1), (1, 2)):
        overlap = (masks[one] & masks[two]).sum(axis=(1, 2)) / (masks[one] | masks[two]).sum(axis=(1, 2))
        assert np.median(overlap) > 0.85


def test_depth_is_metric():
    scenes = moving(sample(split_seeds("validation", 300)), "still")
    scenes = scenes.rows(np.flatnonzero(scenes.count == 0))
    depths, cover = render_depths(scenes), seen(scenes)
    assert depths.min() == 0 and depths.max() <= FAR_M
    measured = np.array([np.median(d[m & (d > 0)]) for d, m in zip(depths, cover, strict=True)])
    ratio = measured / scenes.distance_m
    assert 0.75 < np.median(ratio) < 1.0  # relief stands out towards the camera
    assert np.corrcoef(np.log(measured), np.log(scenes.distance_m))[0, 1] > 0.9
    outdoors = np.isin(scenes.setting, [names("setting").index(name) for name in ("beach", "city", "desert", "meadow")])
    sky = (depths[outdoors][:, :3] == 0).mean(axis=(1, 2))
    assert np.median(sky) > 0.5


def test_thermal_tells_the_subject_from_its_ground():
    scenes = moving(sample(split_seeds("validation", 400)), "still")
    warm = render_thermals(scenes)
    assert warm.min() >= LOWEST_C and warm.max() <= HIGHEST_C
    assert np.abs(subject_heat(scenes)).min() >= 9.9
    by_setting = [np.median(warm[scenes.setting == code]) for code in range(8)]
    assert names("setting")[int(np.argmin(by_setting))] == "snow"
    assert names("setting")[int(np.argmax(by_setting))] == "desert"
    kettle, frog = (scenes.subject == names("subject").index(name) for name in ("kettle", "frog"))
    own = ambient_c(scenes) + ground_heat(scenes) + subject_heat(scenes)
    assert np.median(own[kettle]) > 80 and np.median(own[frog]) < 40


def test_no_part_is_cut_by_the_rectangle_it_is_painted_in(monkeypatch):
    base = sample(split_seeds("train", 24 * 12))
    scenes = replace(base, subject=np.repeat(np.arange(24), 12).astype(np.int16))
    windowed = paint_sprites(scenes, 72, PLANES)
    monkeypatch.setattr(sprites, "_bounds", lambda name, k: (-2.0, -2.0, 2.0, 2.0))
    assert np.abs(windowed - paint_sprites(scenes, 72, PLANES)).max() < 0.02
    cover = windowed[:, -1]
    assert cover.min() >= 0 and cover.max() <= 1 + 1e-6
    assert cover.mean(axis=(1, 2)).min() > 0.06 and cover.mean(axis=(1, 2)).max() < 0.6
    border = np.concatenate([cover[:, 0], cover[:, -1], cover[:, :, 0], cover[:, :, -1]], axis=1)
    assert border.mean() < 0.01, "a sprite holds its subject whole"


def test_white_subjects_and_bright_light_do_not_clip():
    white = names("colour").index("white")
    scenes = sample(split_seeds("train", 300))
    scenes = replace(scenes, colour=np.full(300, white, dtype=np.int16))
    bright = (render_images(scenes) == 255).mean(axis=(1, 2, 3))
    assert bright.mean() < 0.01


def test_view_moves_the_ground():
    rise = []
    for view in range(3):
        scenes = sample(split_seeds("train", 60), "setting")
        beach = np.full(60, names("setting").index("beach"), dtype=np.int16)
        scenes = replace(scenes, setting=beach, view=np.full(60, view, dtype=np.int16))
        rise.append((render_depths(scenes) == 0).mean())
    assert rise[0] > rise[1] + 0.05 > rise[2] + 0.1


def test_a_canvas_paints_wanted_planes_alone():
    canvas = Canvas(2, 8, ("near",))
    assert canvas.rgb.shape == (2, 3, 0, 0) and canvas.heat.shape == (2, 0, 0)
    canvas.paint(np.full((1, 1, 1), 0.5, dtype=np.float32), np.ones((2, 3), dtype=np.float32), 2.0, 30.0)
    assert np.allclose(canvas.near, 1.0)
    canvas.paint(np.ones((1, 1, 1), dtype=np.float32), np.ones((2, 3), dtype=np.float32))
    assert np.allclose(canvas.near, 1.0), "a mark has no distance of its own"
    twin = canvas.copy()
    twin.near += 1
    assert np.allclose(canvas.near, 1.0)


def test_wrong_sizes_and_times_are_refused():
    scenes = sample(split_seeds("train", 1))
    with pytest.raises(InputError, match="size_px"):
        render_depths(scenes, 7)
    with pytest.raises(InputError, match="times_s"):
        render_videos(scenes, 32, ())
