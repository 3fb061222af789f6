"""Miniature copies of the layouts in which benchmarks are distributed: a few seeded files each."""

from __future__ import annotations

import csv
import itertools

import numpy as np


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_wav(path, seed, seconds=1.0):
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    time = np.arange(int(16000 * seconds)) / 16000
    wave = 0.3 * np.sin(2 * np.pi * (200 + 150 * seed) * time) + 0.05 * rng.standard_normal(time.size)
    soundfile.write(path, wave.astype(np.float32), 16000, subtype="PCM_16")


def write_mp4(path, seed, sound):
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=8)
        pictures.width = pictures.height = 64
        pictures.pix_fmt = "yuv420p"
        waves = container.add_stream("aac", rate=16000) if sound else None
        base = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        for number in range(16):
            frame = av.VideoFrame.from_ndarray(np.roll(base, 3 * number, axis=1), format="rgb24")
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode(None))
        if waves is not None:
            wave = (0.3 * np.sin(np.arange(32000) * (0.05 + 0.02 * seed))).astype(np.float32)
            for start in range(0, 32000, 1024):
                part = wave[None, start : start + 1024]
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 16000, start
                container.mux(waves.encode(frame))
            container.mux(waves.encode(None))


def make_esc50(root, names=("dog", "rain", "sea_waves", "siren", "hen"), folds=5):
    rows = []
    for fold, (number, name) in itertools.product(range(1, folds + 1), enumerate(names)):
        file = f"{fold}-{1000 + number}-A-{number}.wav"
        write_wav(root / "audio" / file, 10 * fold + number, 0.5)
        rows.append(
            {
                "filename": file,
                "fold": fold,
                "target": number,
                "category": name,
                "esc10": "False",
                "src_file": 1,
                "take": "A",
            }
        )
    write_csv(root / "meta" / "esc50.csv", rows)


def make_nyu(root):
    import h5py
    from scipy.io import savemat

    root.mkdir(parents=True)
    scenes = ["bedroom", "office_kitchen", "kitchen", "excercise_room", "bedroom", "living_room"]
    rng = np.random.default_rng(8)
    depths = rng.uniform(0.7, 9, (6, 64, 48)).astype(np.float32)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
        file["depths"] = depths
        refs = []
        for number, scene in enumerate(scenes):
            file[f"#refs#/{number}"] = np.array([[ord(letter)] for letter in scene], dtype=np.uint16)
            refs.append(file[f"#refs#/{number}"].ref)
        types = file.create_dataset("sceneTypes", (1, 6), dtype=h5py.ref_dtype)
        types[0] = refs
    savemat(root / "splits.mat", {"trainNdxs": np.array([[1]]), "testNdxs": np.array([[2], [3], [4], [6]])})
    return depths


def make_sun(root):
    from PIL import Image
    from scipy.io import savemat

    scenes = {"kv2/a/1": "bathroom", "xtion/b/2": "idk", "realsense/c/3": "study_space", "kv1/d/4": "office"}
    rng = np.random.default_rng(9)
    millimetres = {}
    for name, scene in scenes.items():
        folder = root / "SUNRGBD" / name
        (folder / "depth_bfx").mkdir(parents=True)
        (folder / "scene.txt").write_text(scene)
        (folder / "intrinsics.txt").write_text("529.5 0.0 365.0\n0.0 529.5 265.0\n0 0 1")
        values = rng.integers(600, 7900, (40, 50)).astype(np.uint16)
        millimetres[name] = values
        Image.fromarray((values << 3) | (values >> 13)).save(folder / "depth_bfx" / "0000.png")
    cells = np.empty((1, 4), dtype=object)
    for place, name in enumerate(scenes):
        cells[0, place] = f"/n/fs/sun3d/data//SUNRGBD/{name}/"
    path = root / "SUNRGBDtoolbox" / "traintestSUNRGBD"
    path.mkdir(parents=True)
    savemat(path / "allsplit.mat", {"alltest": cells, "alltrain": cells[:, :1]})
    return millimetres
