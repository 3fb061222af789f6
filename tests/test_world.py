"""The world: a scene is its seed, whatever the batch; pictures, sounds and captions say the same."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from bindsearch.errors import InputError, UnknownNameError
from bindsearch.world.audio import RATE_HZ, SAMPLES, render_waves
from bindsearch.world.grounds import GROUNDS
from bindsearch.world.image import render_images
from bindsearch.world.scene import ABSENT, SPLITS, draw, held_out, names, sample, split_seeds, table
from bindsearch.world.shapes import Canvas, bar, box, ellipse, polygon, ring
from bindsearch.world.write import write_world

FIRST_DRAW = 0.21318060159683228


def test_tables_name_the_same_subjects_and_settings():
    assert len(names("subject")) == 24
    assert len(names("setting")) == 8
    assert {"dog", "bird", "car"} <= set(names("subject"))
    assert set(table("voices")) == set(names("subject"))
    assert set(GROUNDS) == set(names("setting"))


def test_draws_depend_on_seed_and_name_alone():
    seeds = split_seeds("train", 1000)
    a = draw(seeds, "one", 3)
    assert np.array_equal(a[500:510], draw(seeds[500:510], "one", 3))
    assert abs(float(a.mean()) - 0.5) < 0.02
    assert abs(float(np.corrcoef(a[:, 0], draw(seeds, "two"))[0, 1])) < 0.1
    assert abs(float(np.corrcoef(a[:-1, 0], a[1:, 0])[0, 1])) < 0.1
    assert a.min() >= 0 and a.max() < 1
    # the streams are stored in every artefact's meaning: these numbers must never change
    assert draw(np.array([7], dtype=np.uint64), "subject").tolist() == pytest.approx([FIRST_DRAW])


def test_splits_share_no_seed():
    starts = sorted(SPLITS.values())
    assert all(b - a >= 1 << 40 for a, b in itertools.pairwise(starts))
    with pytest.raises(UnknownNameError, match="'test'"):
        split_seeds("tset", 3)


def test_every_subject_and_setting_occurs_evenly():
    scenes = sample(split_seeds("train", 24_000))
    for attribute, count in (("subject", 24), ("setting", 8)):
        shares = np.bincount(getattr(scenes, attribute), minlength=count) * count / len(scenes)
        assert shares.min() > 0.85 and shares.max() < 1.15, attribute


@pytest.mark.parametrize("split", SPLITS)
def test_a_subject_meets_its_held_out_setting_in_one_split_alone(split):
    scenes = sample(split_seeds(split, 20_000))  # what every modality is rendered from, so that none shows such a pair
    met = set(zip(scenes.subject.tolist(), scenes.setting.tolist(), strict=True))
    kept = set(enumerate(held_out().tolist()))
    every = set(itertools.product(range(len(names("subject"))), range(len(names("setting")))))
    assert met == (kept if split == "compositional" else every - kept)


def test_kinds_leave_out_what_they_say():
    seeds = split_seeds("train", 4000)
    assert (sample(seeds, "subject").setting == ABSENT).all()
    assert (sample(seeds, "setting").subject == ABSENT).all()
    mixed, full = sample(seeds, "mixed", partial=0.3), sample(seeds)
    lone = (mixed.subject == ABSENT) | (mixed.setting == ABSENT)
    assert 0.26 < lone.mean() < 0.34
    assert not ((mixed.subject == ABSENT) & (mixed.setting == ABSENT)).any()
    assert np.array_equal(mixed.subject[~lone], full.subject[~lone])
    with pytest.raises(InputError, match="partial"):
        sample(seeds, "mixed", partial=1.5)


@pytest.mark.parametrize("render", [lambda s: render_images(s, 48), render_waves])
def test_rendering_does_not_depend_on_the_batch(render):
    scenes = sample(split_seeds("test", 40), "mixed")
    together = render(scenes)
    for row in (0, 7, 39):
        alone = render(scenes.rows(slice(row, row + 1)))[0]
        assert np.abs(alone.astype(np.float64) - together[row]).max() <= (1 if alone.dtype == np.uint8 else 1e-5)
    backwards = render(scenes.rows(np.arange(40)[::-1]))[::-1]
    assert np.abs(backwards.astype(np.float64) - together).max() <= (1 if together.dtype == np.uint8 else 1e-5)


def test_a_large_picture_scaled_down_is_the_small_one():
    scenes = sample(split_seeds("validation", 24))
    small = render_images(scenes, 64).astype(np.float64)
    large = render_images(scenes, 256)
    down = np.stack([np.asarray(Image.fromarray(row).resize((64, 64), Image.Resampling.BICUBIC)) for row in large])
    assert np.abs(small - down).mean() < 4.0  # of 255; two different scenes differ by about 60
    assert np.abs(small - np.roll(down, 1, axis=0)).mean() > 30


def test_subject_is_where_the_scene_says():
    seeds = split_seeds("validation", 60)
    scenes = sample(seeds)
    empty = sample(seeds, "setting")
    change = np.abs(render_images(scenes, 64).astype(np.float64) - render_images(empty, 64)).sum(axis=3) > 40
    x = (np.arange(64) + 0.5) / 64
    seen = [
        (float((part * x[None]).sum() / part.sum()), float((part * x[:, None]).sum() / part.sum())) for part in change
    ]
    assert np.abs(np.array(seen)[:, 0] - scenes.x).mean() < 0.06
    assert np.abs(np.array(seen)[:, 1] - scenes.y).mean() < 0.08


def test_waves_are_sound():
    waves = render_waves(sample(split_seeds("test", 48), "mixed"))
    assert waves.shape == (48, SAMPLES) and waves.dtype == np.float32
    assert np.isfinite(waves).all() and np.abs(waves).max() <= 1
    loud = np.sqrt((waves**2).mean(axis=1))
    assert loud.min() > 0.01 and loud.max() < 0.3


def test_signed_distances_at_known_points():
    u, v = np.array([[[0.0, 3.0, 0.0]]], dtype=np.float32), np.array([[[0.0, 0.0, 2.0]]], dtype=np.float32)
    assert box(u, v, 1.0, 1.0)[0, 0].tolist() == pytest.approx([-1, 2, 1])
    assert ring(u, v, 2.0, 0.5)[0, 0].tolist() == pytest.approx([1.5, 0.5, -0.5])
    assert bar(u, v, (-1.0, 0.0, 1.0, 0.0), 0.5, 0.5)[0, 0].tolist() == pytest.approx([-0.5, 1.5, 1.5])
    assert ellipse(u, v, 1.0, 1.0)[0, 0, 1:].tolist() == pytest.approx([2, 1], rel=1e-4)
    square = [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]
    for corners in (square, square[::-1]):
        assert polygon(u, v, corners)[0, 0].tolist() == pytest.approx([-1, 2, 1], abs=1e-4)


def test_canvas_covers_half_a_pixel_at_the_edge():
    canvas = Canvas(1, 4)
    cover = canvas.coverage(canvas.x - np.float32(0.5) + 0 * canvas.y)
    assert cover[0, 0].tolist() == pytest.approx([1, 1, 0, 0])
    cover = canvas.coverage(canvas.x - np.float32(0.375) + 0 * canvas.y)
    assert cover[0, 0].tolist() == pytest.approx([1, 0.5, 0, 0])


def test_write_world_writes_ordinary_files_and_the_same_again(tmp_path):
    path = write_world(5, tmp_path / "one", seed=900, size_px=96)
    rows = pq.read_table(path).to_pylist()
    assert [row["stem"] for row in rows] == [f"scene-{k:05d}" for k in range(5)]
    wanted = sample(np.arange(900, 905, dtype=np.uint64)).labels()
    assert [row["subject"] for row in rows] == [label["subject"] for label in wanted]
    with Image.open(tmp_path / "one" / "scene-00003.png") as picture:
        assert picture.size == (96, 96) and picture.mode == "RGB"
    wave, rate = soundfile.read(tmp_path / "one" / "scene-00003.wav")
    assert (rate, wave.shape) == (RATE_HZ, (SAMPLES,))
    assert (tmp_path / "one" / "scene-00003.txt").read_text(encoding="utf-8").strip() == rows[3]["caption"]
    write_world(5, tmp_path / "two", seed=900, size_px=96)
    for one in sorted((tmp_path / "one").iterdir()):
        if one.suffix != ".mp4":  # the encoder may give other bytes for the same frames
            assert one.read_bytes() == (tmp_path / "two" / one.name).read_bytes(), one.name
    with pytest.raises(UnknownNameError, match="audio"):
        write_world(1, tmp_path / "three", modalities=("sound",))
    with pytest.raises(InputError, match="n >= 1"):
        write_world(0, tmp_path / "three")


def test_labels_are_json():
    label = sample(split_seeds("demo", 3), "subject").labels()[1]
    assert label["setting"] is None and label["subject"] in names("subject")
    assert json.loads(json.dumps(label)) == label
