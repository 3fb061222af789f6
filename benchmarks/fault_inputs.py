"""What the runs of bench_faults.py embed: small files of which one in twenty is broken, and which those are."""

from __future__ import annotations

import io
import json
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

PICTURES, SOUNDS, TEXTS, MORE = 140, 40, 100, 60
BROKEN_EVERY = 20
LONG_S, WINDOW_S, RATE_HZ = 9.0, 2.0, 8000


@dataclass(frozen=True)
class Inputs:
    """Sources of a run.

    Attributes:
        first: sources of a first run.
        second: those of a second one: the same and a folder more.
        broken: keys of the items that cannot be embedded, of the first and of the second run.
    """

    first: list[str]
    second: list[str]
    broken: tuple[frozenset[str], frozenset[str]]


def make_inputs(folder: Path, seed: int) -> Inputs:
    """Write the files, unless they are there; the same seed gives the same bytes.

    Args:
        folder: where they go; its files are not written again, so that their times stay.
        seed: of what they show and of which are broken.
    """
    rng = np.random.default_rng(seed)
    media, more = folder / "media", folder / "more"
    files: dict[Path, bytes] = {}
    for number in range(PICTURES):
        files[media / f"{number % 7}" / f"{number:03d}.png"] = _picture(rng)
    for number in range(SOUNDS):
        files[media / "sounds" / f"{number:03d}.wav"] = _sound(rng, 0.3)
    files[media / "sounds" / "long.wav"] = _sound(rng, LONG_S)
    for number in range(MORE):
        files[more / f"more{number:03d}.png"] = _picture(rng)
    broken = []
    for place, path in enumerate(sorted(files)):
        if place % BROKEN_EVERY == seed % BROKEN_EVERY and path.name != "long.wav":
            files[path] = _break(files[path], int(rng.integers(3)))
            broken.append(path)
    lines = [json.dumps({"text": f"words number {number} of {seed}"}) for number in range(TEXTS)]
    bad_lines = range(seed % BROKEN_EVERY, TEXTS, BROKEN_EVERY)
    for number in bad_lines:
        lines[number] = lines[number][:-4]
    files[folder / "texts.jsonl"] = "\n".join(lines).encode()
    for path, data in files.items():
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    first = {path.relative_to(media).as_posix() for path in broken if media in path.parents}
    first |= {f"texts.jsonl#{number}" for number in bad_lines}
    second = first | {path.relative_to(more).as_posix() for path in broken if more in path.parents}
    sources = [str(media), str(folder / "texts.jsonl")]
    return Inputs(sources, [*sources, str(more)], (frozenset(first), frozenset(second)))


def _picture(rng: np.random.Generator) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def _sound(rng: np.random.Generator, seconds: float) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(rng.integers(-9000, 9000, int(seconds * RATE_HZ), dtype=np.int16).tobytes())
    return stream.getvalue()


def _break(data: bytes, how: int) -> bytes:
    """Cut a file in its header, empty it, or put other bytes in its place."""
    return (data[:30], b"", bytes(reversed(data)))[how]
