"""The hostile folder, decoded: a DecodeError with a reason or, where legal, media; never another error or a hang."""

import io
import os
import random
import resource
import time

import h5py
import hostile
import numpy as np
import pytest

from bindsearch.errors import DecodeError
from bindsearch.registry import MODALITIES
from bindsearch.sources import Source

SECONDS = 15  # 0.7 s is the longest on a quiet machine; an embed run allows 30
MEGABYTES = 700


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    return hostile.write_hostile(tmp_path_factory.mktemp("hostile"))


def test_the_folder_is_large_and_of_every_kind(entries):
    bad = [why for _, modality, why in entries if modality and not why.startswith("legal:")]
    assert len(bad) >= 80
    assert {modality for _, modality, _ in entries} == {*MODALITIES, None}
    assert len({path for path, _, _ in entries}) == len(entries)
    assert all(os.path.lexists(path) for path, _, _ in entries)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", list(MODALITIES))
def test_each_is_refused_with_a_reason_or_read(entries, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    modality = MODALITIES[name]
    config = modality.config()
    wrong = []
    for path, of, why in entries:
        if of != name:
            continue
        before, memory = time.monotonic(), _peak_megabytes()
        try:
            modality.preprocess(modality.decode(Source.of(path), config), config)
            outcome = "legal"
        except DecodeError as error:
            outcome = "bad"
            assert error.what, path
            assert error.stage in ("read", "decode", "preprocess")
        if (outcome == "legal") != why.startswith("legal:"):
            wrong.append(f"{path.name!r} ({why}) came out {outcome}")
        assert time.monotonic() - before < SECONDS, path
        assert _peak_megabytes() - memory < MEGABYTES, path
    assert not wrong
    assert not list(tmp_path.iterdir())  # what a pickle would have written


def _peak_megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_names_stand_in_the_reasons(entries):
    for path, modality, why in entries:
        if modality == "image" and why == "empty":
            with pytest.raises(DecodeError) as caught:
                MODALITIES["image"].decode(Source.of(path), MODALITIES["image"].config())
            assert str(caught.value) == f"{path}: is empty"


def _good_files():
    depth, motion = io.BytesIO(), io.BytesIO()
    with h5py.File(depth, "w") as file:
        file["depth"] = np.ones((30, 40), np.float32)
    with h5py.File(motion, "w") as file:
        file["imu"] = np.ones((6, 400))
        file.attrs["rate_hz"] = 200.0
    pictures = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
    return [
        *(("image", hostile.picture_bytes(kind)) for kind in pictures),
        *(("audio", hostile.sound_bytes(0.3, kind=kind)) for kind in ("WAV", "FLAC", "OGG", "AIFF")),
        *(("video", hostile.video_bytes(6, kind)) for kind in ("mp4", "matroska", "avi", "mpegts")),
        ("audio", hostile.video_bytes(6, sound=True)),
        ("depth", hostile.depth_bytes()),
        ("depth", hostile.npy_bytes(np.ones((30, 40), np.float32))),
        ("depth", depth.getvalue()),
        ("imu", motion.getvalue()),
        ("imu", hostile.imu_text().encode()),
        ("imu", hostile.npy_bytes(np.ones((6, 300)))),
        ("text", "a dög barks".encode()),
    ]


@pytest.mark.timeout(240)
def test_damaged_files_of_every_kind_end_in_a_reason_or_in_media():
    """Cut, changed at some bytes (the head more often), or with bytes taken out: 25 times each."""
    rng, counts = random.Random(5), {"read": 0, "refused": 0}
    configs = {name: MODALITIES[name].config() for name in MODALITIES}
    configs["video"] = MODALITIES["video"].config(size_px=16, clips=1, crops=1)
    for name, data in _good_files() * 25:
        damaged, kind = bytearray(data), rng.random()
        if kind < 0.3:
            del damaged[rng.randrange(len(damaged)) :]
        elif kind < 0.8:
            for _ in range(rng.choice([1, 2, 8, 40])):
                reach = min(len(damaged), rng.choice([64, 400, 10**9]))
                damaged[rng.randrange(reach)] = rng.choice([0, 255, rng.randrange(256)])
        else:
            start = rng.randrange(len(damaged))
            del damaged[start : start + rng.randrange(1, 50)]
        before = time.monotonic()
        try:
            media = MODALITIES[name].decode(Source.of(bytes(damaged)), configs[name])
            assert np.isfinite(MODALITIES[name].preprocess(media, configs[name])).all()
            counts["read"] += 1
        except DecodeError as error:
            assert error.what
            counts["refused"] += 1
        assert time.monotonic() - before < SECONDS, (name, data[:16])
    assert min(counts.values()) > 100
