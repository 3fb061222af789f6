"""Files for the benchmarks of reading: JPEGs, WAVs, PNGs and videos with structure, the same each time."""

from __future__ import annotations

import os
import shutil
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

DISTINCT = 64
RATE_HZ, SECONDS = 44_100, 10
SIZE, FRAMES = (1280, 720), 250


def write_once(folder: Path, name: str, write: object) -> Path:
    """Make a folder by a function of its path, once: a half-made one does not get its name."""
    final, half = folder / name, folder / f"{name}.half"
    if not final.exists():
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        write(half)  # type: ignore[operator]
        half.rename(final)
    return final


def picture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Make (height, width, 3) uint8: soft blobs under grain, which JPEG keeps at about 0.2 bytes a pixel."""
    soft = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    base = np.asarray(soft.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    grain = rng.integers(-12, 13, (-(-height // 2), -(-width // 2), 1)).repeat(2, 0).repeat(2, 1)
    return np.clip(base + grain[:height, :width], 0, 255).astype(np.uint8)


def write_jpegs(folder: Path, count: int, size: tuple[int, int] = (1024, 768)) -> None:
    """Write so many JPEG files of quality 85; DISTINCT differ, the rest are hard links."""
    rng = np.random.default_rng(1)
    for number in range(count):
        path = folder / f"{number:06d}.jpg"
        if number < DISTINCT:
            Image.fromarray(picture(rng, *size)).save(path, quality=85)
        else:
            os.link(folder / f"{number % DISTINCT:06d}.jpg", path)


def write_wavs(folder: Path, count: int) -> None:
    """Write so many WAV files of 10 s, 44.1 kHz, mono, 16 bits; DISTINCT differ, the rest are hard links."""
    rng = np.random.default_rng(2)
    time = np.arange(SECONDS * RATE_HZ) / RATE_HZ
    for number in range(count):
        path = folder / f"{number:06d}.wav"
        if number >= DISTINCT:
            os.link(folder / f"{number % DISTINCT:06d}.wav", path)
            continue
        phase = 2 * np.pi * (rng.uniform(200, 800) * time + rng.uniform(-20, 20) * time**2)
        sound = 0.3 * np.sin(phase) + 0.1 * np.sin(3 * phase) + rng.normal(0, 0.02, time.size)
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, RATE_HZ, time.size, "NONE", ""))
            file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())


def frames(count: int) -> Iterator[np.ndarray]:
    """Yield frames of 1280x720: a pan over grain with a square that crosses it."""
    rng = np.random.default_rng(3)
    ground = picture(rng, SIZE[0] + count, SIZE[1] + count // 2)
    for number in range(count):
        frame = ground[number // 2 : number // 2 + SIZE[1], number : number + SIZE[0]].copy()
        left = 5 * number % (SIZE[0] - 80)
        frame[300:380, left : left + 80] = (200, 30, 60)
        yield frame


def write_video(path: Path, key_every: int, count: int = FRAMES, codec: str = "libx264") -> None:
    """Encode so many frames at 25 a second, with a key frame every `key_every` frames and at no cut."""
    import av

    options = {"preset": "medium", "crf": "23", "sc_threshold": "0", "keyint_min": str(key_every)}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.gop_size = key_every
        for frame in frames(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
