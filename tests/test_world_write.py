"""A world as files: each reads back as what was rendered, a stopped call goes on, tables say what the scenes hold."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from bindsearch.cli import run
from bindsearch.errors import InputError, MismatchError, UnknownNameError
from bindsearch.listing import Listing
from bindsearch.modalities.imu import ImuModality
from bindsearch.sources import Source
from bindsearch.world import write as writing
from bindsearch.world.audio import RATE_HZ, render_waves
from bindsearch.world.depth import FAR_M, render_depths
from bindsearch.world.files import COLDEST_C, HOTTEST_C, RATES, SUFFIXES, from_levels, to_levels, to_millimetres
from bindsearch.world.image import render_images
from bindsearch.world.imu import RATE_HZ as IMU_RATE_HZ
from bindsearch.world.imu import render_imus
from bindsearch.world.points import render_points
from bindsearch.world.scene import NAMED, NUMBERS, sample, split_seeds
from bindsearch.world.text import write_captions
from bindsearch.world.thermal import HIGHEST_C, LOWEST_C, render_thermals
from bindsearch.world.video import RATE_FPS, render_videos
from bindsearch.world.view import render_views, view_scenes
from bindsearch.world.write import World, read_world, write_world

N, SIZE = 5, 64
START = 20


@pytest.fixture(scope="module")
def scenes():
    return sample(split_seeds("test", N, START))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(N, folder, seed=int(split_seeds("test", 1, START)[0]), size_px=SIZE, language="both")
    return folder


def test_every_modality_has_its_file_and_is_known_again(world):
    listed = list(Listing([world]))
    for number in range(N):
        of_scene = {item.modality: item.key for item in listed if item.key.startswith(f"scene-{number:05d}")}
        assert {*of_scene} == {*SUFFIXES} - {"points"}
        assert all(of_scene[name].endswith(SUFFIXES[name]) for name in {*of_scene} - {"text"})
        assert (world / f"scene-{number:05d}.ply").is_file() and (world / f"scene-{number:05d}.de.txt").is_file()
    assert not [path.name for path in world.iterdir() if path.name.startswith(".")]


def test_pictures_hold_what_was_rendered(world, scenes):
    images, metres = render_images(scenes, SIZE), render_depths(scenes, SIZE)
    degrees_c = render_thermals(scenes, SIZE)
    for number in range(N):
        stem = world / f"scene-{number:05d}"
        with Image.open(f"{stem}.png") as picture:
            assert np.array_equal(np.asarray(picture), images[number])
        with Image.open(f"{stem}.depth.png") as picture:
            found = np.asarray(picture)
            assert picture.text == {"unit": "mm"} and found.dtype == np.uint16
            assert np.abs(found / 1000 - metres[number]).max() < 0.00051
            assert np.array_equal(found == 0, metres[number] == 0)
        with Image.open(f"{stem}.thermal.png") as picture:
            found = np.asarray(picture)
            assert picture.text == {"unit": "0 is -40 C, 65535 is 120 C"} and found.dtype == np.uint16
            assert np.abs(from_levels(found) - degrees_c[number]).max() < 0.0013


def test_scales_hold_all_that_the_world_can_say():
    assert (COLDEST_C, HOTTEST_C) == (LOWEST_C, HIGHEST_C)
    assert FAR_M <= 65.535 and to_millimetres([FAR_M, 99.0, 0.0, 0.0001]).tolist() == [60_000, 65_535, 0, 1]
    assert to_levels([-60.0, -40.0, 40.0, 120.0, 500.0]).tolist() == [0, 0, 32768, 65535, 65535]
    assert RATES == {"video": RATE_FPS, "audio": RATE_HZ, "imu": IMU_RATE_HZ}


def test_sounds_videos_motion_and_points_hold_what_was_rendered(world, scenes):
    waves, signals, points = render_waves(scenes), render_imus(scenes), render_points(scenes)
    films = render_videos(scenes, SIZE)
    for number in range(N):
        stem = world / f"scene-{number:05d}"
        wave, rate = soundfile.read(f"{stem}.wav", dtype="float32")
        assert rate == RATE_HZ and np.abs(wave - waves[number]).max() < 1 / 16384
        imu = ImuModality()
        media = imu.decode(Source.of(f"{stem}.imu.csv"), imu.config())
        assert media.rate_hz == 200 and media.array.shape == (6, 2000)
        assert np.abs(media.array - signals[number]).max() < 6e-5
        with av.open(f"{stem}.mp4") as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
            assert container.streams.video[0].average_rate == 8
            assert container.streams.video[0].codec_context.name == "h264"
        assert frames.shape == films[number].shape == (16, SIZE, SIZE, 3)
        assert np.abs(frames.astype(float) - films[number]).mean() < 8
        data = (world / f"scene-{number:05d}.ply").read_bytes()
        head, body = data.split(b"end_header\n", 1)
        assert b"format binary_little_endian 1.0" in head and f"element vertex {len(points[number])}\n".encode() in head
        assert np.array_equal(np.frombuffer(body, "<f4").reshape(-1, 3), points[number])


def test_texts_and_tables_say_what_the_scenes_hold(world, scenes):
    english, german = write_captions(scenes).texts, write_captions(scenes, "german").texts
    rows = pq.read_table(world / "attributes.parquet", use_threads=False).to_pylist()
    assert [row["stem"] for row in rows] == [f"scene-{number:05d}" for number in range(N)]
    for number, (row, label) in enumerate(zip(rows, scenes.labels(), strict=True)):
        assert {name: row[name] for name in ("seed", *NAMED, *NUMBERS)} == label
        assert (row["split"], row["caption"], row["caption_german"]) == ("test", english[number], german[number])
        assert (world / f"scene-{number:05d}.txt").read_text(encoding="utf-8") == english[number] + "\n"
        assert (world / f"scene-{number:05d}.de.txt").read_text(encoding="utf-8") == german[number] + "\n"
    listed = list(Listing([world / "files.parquet"]))
    assert len(listed) == N * 8  # seven modalities, texts in two languages; points have no encoder
    for item in listed:
        number = int(item.key[6:11])
        assert item.group == f"scene-{number:05d}" and item.attributes["motion"] == rows[number]["motion"]
        assert item.caption == (german if item.key.endswith(".de.txt") else english)[number]
        assert item.size_bytes and (item.attributes.get("language") is None) == (item.modality != "text")
    record = json.loads((world / "world.json").read_text())
    assert record["thermal_levels_c"] == {"0": -40.0, "65535": 120.0} and record["depth_unit"] == "mm"


def test_a_second_call_writes_what_is_missing_alone(world, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(world, folder)
    lost = [folder / name for name in ("scene-00001.depth.png", "scene-00003.imu.csv", "scene-00004.de.txt")]
    bytes_before = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    for path in lost:
        path.unlink()
    written = []
    real = writing.encode
    monkeypatch.setattr(writing, "encode", lambda value, modality: written.append(modality) or real(value, modality))
    call = {"seed": int(split_seeds("test", 1, START)[0]), "size_px": SIZE, "language": "both"}
    write_world(N, folder, **call)
    assert sorted(written) == ["depth", "imu", "text"]
    assert {path.name: path.read_bytes() for path in sorted(folder.iterdir())} == bytes_before
    write_world(N + 2, folder, **{**call, "language": "english"}, modalities=["audio"])  # more of the same world
    assert (folder / "scene-00006.wav").is_file() and not (folder / "scene-00006.png").exists()
    there = read_world(folder)
    assert there is not None and there.n == N + 2 and set(there.modalities) == set(SUFFIXES)
    assert pq.read_table(folder / "attributes.parquet", use_threads=False).num_rows == N + 2
    listed = pq.read_table(folder / "files.parquet", use_threads=False).column("path").to_pylist()
    assert {name for name in listed if name > f"scene-{N:05d}"} == {"scene-00005.wav", "scene-00006.wav"}
    assert all((folder / name).is_file() for name in listed) and len(listed) == N * 8 + 2


def test_a_stopped_call_leaves_whole_files_and_goes_on(tmp_path, monkeypatch):
    call = {"seed": 11, "size_px": 32, "modalities": ("image", "audio")}
    write_world(30, tmp_path / "whole", **call)
    real, left = writing.encode, [25]

    def stop(value, modality):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return real(value, modality)

    monkeypatch.setattr(writing, "encode", stop)
    with pytest.raises(KeyboardInterrupt):
        write_world(30, tmp_path / "cut", **call)
    assert 0 < len(list((tmp_path / "cut").glob("scene-*"))) < 60
    monkeypatch.setattr(writing, "encode", real)
    write_world(30, tmp_path / "cut", **call)
    whole, cut = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "cut"))
    assert whole == cut


def test_several_processes_write_the_same(tmp_path):
    call = {"seed": 11, "size_px": 32, "modalities": ("image", "text")}
    write_world(40, tmp_path / "one", **call)
    write_world(40, tmp_path / "two", **call, workers=2)
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two and len(one) == 83


@pytest.mark.parametrize(
    ("size_px", "modalities", "workers", "length"),
    [(64, ("text",), 1, 393), (256, tuple(SUFFIXES), 1, 16), (1024, tuple(SUFFIXES), 1, 8), (4096, ("video",), 1, 1)],
)
def test_blocks_fit_memory(size_px, modalities, workers, length):
    blocks = list(writing._blocks(World(1000, 0, size_px, modalities=modalities), workers))
    assert len(blocks[0]) == min(length, 500) and [number for block in blocks for number in block] == list(range(1000))


def test_ctrl_c_ends_the_workers_at_once_and_leaves_whole_files(tmp_path):
    """It was heeded after all blocks; a second one left the process and its workers asleep for good."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "bindsearch", "world", "write", "4000", "-o", str(out), "--size", "64", "-q"]
    command += ["--modalities", "image,video", "--workers", "2", "--seed", "11"]
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        while not list(out.glob("scene-*")):
            assert parent.poll() is None
            time.sleep(0.02)
        os.killpg(parent.pid, signal.SIGINT)  # as Ctrl-C does
        begun_s = time.monotonic()
        time.sleep(0.2)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGINT)
        said = parent.communicate(timeout=30)[1]  # to its end, which workers that are left would hold back
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
    assert time.monotonic() - begun_s < 10  # for writing what was queued, far longer than on an idle machine
    assert parent.returncode in (130, -signal.SIGINT) and "interrupted" in said and "Traceback" not in said
    assert 0 < len(list(out.glob("scene-*"))) < 8000 and not list(out.glob(".*"))
    write_world(4, out, seed=11, size_px=64, modalities=("image", "video"))
    for path in out.glob("scene-*.mp4"):
        with av.open(str(path)) as video:
            assert video.streams.video[0].frames
    for path in out.glob("scene-*.png"):
        with Image.open(path) as picture:
            picture.load()
            assert picture.size == (64, 64)


def test_another_world_in_the_folder_is_refused(tmp_path):
    write_world(2, tmp_path, seed=5, size_px=32, modalities=("text",))
    for other, words in (({"seed": 6}, "seed 5, asked for 6"), ({"size_px": 64}, "size_px 32, asked for 64")):
        with pytest.raises(MismatchError, match=words):
            write_world(2, tmp_path, **{"seed": 5, "size_px": 32, "modalities": ("text",), **other})
    with pytest.raises(MismatchError, match="named like scene-00000; 200000 are named like scene-000000"):
        write_world(200_000, tmp_path, seed=5, size_px=32, modalities=("text",))
    record = json.loads((tmp_path / "world.json").read_text())
    (tmp_path / "world.json").write_text(json.dumps({**record, "format": "bindsearch-world/1"}))
    with pytest.raises(MismatchError, match=r"drawn as bindsearch-world/1, this version draws bindsearch-world/2"):
        write_world(2, tmp_path, seed=5, size_px=32, modalities=("text",))
    (tmp_path / "world.json").write_text('{"n": 3}')
    with pytest.raises(InputError, match="not the record of a world: KeyError"):
        write_world(2, tmp_path, seed=5, size_px=32, modalities=("text",))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        ({"n": 0}, InputError, "n >= 1"),
        ({"seed": -1}, InputError, "seed >= 0"),
        ({"seed": 1 << 63}, InputError, "seeds up to"),
        ({"size_px": 33}, InputError, "an even number for videos, got 33"),
        ({"size_px": 8}, InputError, "expected 16 to 4096"),
        ({"size_px": 8192}, InputError, "expected 16 to 4096"),
        ({"kind": "whole"}, UnknownNameError, "kind of scene"),
        ({"modalities": ("sound",)}, UnknownNameError, "modality of a written world 'sound'"),
        ({"language": "french"}, UnknownNameError, "Known: both, english, german"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, call, error, words):
    with pytest.raises(error, match=words):
        write_world(**{"n": 2, "out_dir": tmp_path / "out", **call})
    assert not (tmp_path / "out").exists()


# ---- views -----------------------------------------------------------------------------------------------------------


def test_a_sheet_shows_every_scene_in_every_modality(tmp_path):
    path = view_scenes([3, 4], tmp_path / "new" / "sheet.png", size_px=96)
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width > 1200 and 250 < picture.height < 350
        pixels = np.asarray(picture.convert("RGB")).astype(float)
    view = render_views(sample(np.array([4], dtype=np.uint64)), 96)[0]
    seen = pixels[20 + 30 + 114 + 10 :][:96, 270 : 270 + 96]  # the second scene's picture, in 128 colours
    assert np.abs(seen - view.image).mean() < 12
    assert np.abs(seen[::-1] - view.image).mean() > 20
    assert view.title[0].endswith(str(view.label["subject"]))
    assert str(view.label["motion"]) in view.title[1] and str(view.label["setting"]) in view.title[1]


def test_a_page_plays(tmp_path):
    text = view_scenes([7], tmp_path / "page.html", size_px=96).read_text(encoding="utf-8")
    found = dict(re.findall(r'src="data:(video/mp4|audio/wav);base64,([^"]+)"', text))
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(found["audio/wav"])))
    assert (rate, len(wave)) == (16000, 32000)
    with av.open(io.BytesIO(base64.b64decode(found["video/mp4"]))) as container:
        assert len(list(container.decode(video=0))) == 16
    scene = sample(np.array([7], dtype=np.uint64))
    for language in ("english", "german"):
        assert write_captions(scene, language).texts[0] in text
    assert "://" not in re.sub(r'base64,[^"]+', "", text)  # nothing outside it


def test_scenes_without_subject_are_shown_too(tmp_path):
    assert view_scenes([3], tmp_path / "empty.jpg", kind="setting", size_px=96).stat().st_size > 10_000


@pytest.mark.parametrize(
    ("seeds", "name", "size_px", "words"),
    [
        ([1], "a.gif", 96, "ends in .png, .jpg or .html"),
        ([], "a.png", 96, "1 to 100 scenes, got 0"),
        ([1], "a.png", 97, "even number of pixels"),
    ],
)
def test_views_that_cannot_be(tmp_path, seeds, name, size_px, words):
    with pytest.raises(InputError, match=words):
        view_scenes(seeds, tmp_path / name, size_px=size_px)


def test_a_jpeg_that_would_be_too_tall_is_refused_before_anything_is_drawn(tmp_path, monkeypatch):
    import bindsearch.world.view as viewing

    views = [SimpleNamespace(image=np.zeros((size, 8, 3), dtype=np.uint8)) for size in (626, 640)]
    monkeypatch.setattr(viewing, "render_views", lambda *_: pytest.fail("drawn"))
    with pytest.raises(InputError, match=r"640 take 66,860\. Type --size 626, name 97 scenes, or .*png"):
        view_scenes(range(100), tmp_path / "tall.jpg", size_px=640)
    monkeypatch.setattr(viewing, "cells", lambda view: [("narrow", Image.new("RGB", (8, view.image.shape[0] + 18)))])
    for count, view in ((100, views[0]), (97, views[1])):  # what is advised
        monkeypatch.setattr(viewing, "render_views", lambda *_, count=count, view=view: [view] * count)
        path = view_scenes(range(count), tmp_path / "fits.JPG", size_px=view.image.shape[0])
        with Image.open(path) as picture:
            assert picture.height == 60 + count * (view.image.shape[0] + 28) <= 65500


# ---- the command line ------------------------------------------------------------------------------------------------


def test_commands(tmp_path, capsys):
    out = str(tmp_path / "w")
    asked = ["world", "write", "3", "-o", out, "--size", "32", "--modalities", "image,text", "--workers", "0", "-q"]
    assert run([*asked, "--split", "compositional", "--language", "german"]) == 0
    assert capsys.readouterr().err == ""
    assert sorted(path.name for path in (tmp_path / "w").glob("scene-00002*")) == [
        "scene-00002.de.txt",
        "scene-00002.png",
    ]
    rows = pq.read_table(tmp_path / "w" / "attributes.parquet", use_threads=False).to_pylist()
    assert [row["split"] for row in rows] == ["compositional"] * 3
    assert run([*asked, "--seed", "4", "--start", "2"]) == 2
    assert "Leave away --split and --start" in capsys.readouterr().err
    assert run(["world", "view", "test:3", "world:demo:0..2", "-o", str(tmp_path / "v.png"), "--size", "96"]) == 0
    assert (tmp_path / "v.png").is_file()
    assert run(["world", "view", "3,size=224", "-o", str(tmp_path / "v.png")]) == 2
    assert "3,size=224: a view shows all modalities" in capsys.readouterr().err
    assert run(["world", "view", "0..90", "test:0..20", "-o", str(tmp_path / "v.png")]) == 2
    assert "1 to 100 scenes, got 110" in capsys.readouterr().err
    assert run([*asked, "--split", "test", "--start", str(2**40 - 2)]) == 2
    assert "a split has scenes 0 to" in capsys.readouterr().err
    assert run(["world", "write", str(10**14), "-o", out]) == 2
    assert f"scenes 0 to {10**14 - 1} are asked for, a split has" in (said := capsys.readouterr().err)
    assert "Type fewer scenes." in said
    assert run(["world", "write", "1", "-o", out, "--start", str(2**40)]) == 2
    assert "Type a smaller --start." in capsys.readouterr().err
    for own, kind in (("setting", "subject"), ("full", "setting")):
        assert run(["world", "view", f"5,kind={own}", "--kind", kind, "-o", str(tmp_path / "no.png")]) == 2
        assert f"5,kind={own}: asks for scenes of kind {own}, --kind for {kind}." in capsys.readouterr().err
    assert run(["world", "view", "dog", "-o", str(tmp_path / "v.png")]) == 2
    assert "expected whole numbers of scenes" in capsys.readouterr().err
    assert run(["embed", "world:9..3", "-o", str(tmp_path / "e"), "--space", "tiny"]) == 2
    assert run(["embed", out, "-o", str(tmp_path / "e"), "--space", "tiny", "--modalities", "image"]) == 2
    assert "--modalities is for sources such as world:0..1000" in capsys.readouterr().err
    assert (
        run(["embed", "world:0..6", "-o", str(tmp_path / "e"), "--space", "tiny", "--modalities", "image,text", "-q"])
        == 0
    )
