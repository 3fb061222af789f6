"""A world as ordinary files: png, wav, txt, and a Parquet of what each scene holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bindsearch.errors import InputError, UnknownNameError
from bindsearch.world.scene import Scenes, sample

ATTRIBUTES = "attributes.parquet"
SUFFIXES = {"image": ".png", "audio": ".wav", "text": ".txt"}
BLOCK = 64


def write_world(
    n: int,
    out_dir: str | Path,
    seed: int = 0,
    size_px: int = 256,
    kind: str = "full",
    modalities: tuple[str, ...] = ("image", "audio", "text"),
) -> Path:
    """Write n scenes; scene i has the seed `seed + i`, so that the same call writes the same bytes.

    Args:
        n: how many.
        out_dir: folder; made where it is missing. Files of the same names are overwritten.
        seed: of the first scene; see `scene.split_seeds` for seeds that training never meets.
        size_px: side of the pictures.
        kind: full, subject, setting or mixed; see `scene.sample`.
        modalities: which files a scene gets, all with the stem `scene-<number>`.

    Returns:
        Path of the table: one row a scene, with its stem, seed, attributes by name, position and caption.

    Raises:
        InputError: n or seed makes no sense.
        UnknownNameError: unknown kind or modality.
    """
    if n < 1 or seed < 0:
        raise InputError(f"write_world: expected n >= 1 and seed >= 0, got n = {n}, seed = {seed}.")
    for modality in modalities:
        if modality not in SUFFIXES:
            raise UnknownNameError("modality of a written world", modality, SUFFIXES)
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    digits = max(5, len(str(n - 1)))
    rows: list[dict[str, Any]] = []
    for start in range(0, n, BLOCK):
        numbers = range(start, min(start + BLOCK, n))
        scenes = sample(np.array([seed + number for number in numbers], dtype=np.uint64), kind)
        stems = [f"scene-{number:0{digits}d}" for number in numbers]
        captions = _write_block(scenes, folder, stems, modalities, size_px)
        for stem, caption, label in zip(stems, captions, scenes.labels(), strict=True):
            rows.append({"stem": stem, "caption": caption, **label})
    return _write_table(rows, folder / ATTRIBUTES)


def _write_block(
    scenes: Scenes, folder: Path, stems: list[str], modalities: tuple[str, ...], size_px: int
) -> tuple[str, ...]:
    from bindsearch.world.text import write_captions

    captions = write_captions(scenes).texts
    if "text" in modalities:
        for stem, caption in zip(stems, captions, strict=True):
            (folder / f"{stem}.txt").write_text(caption + "\n", encoding="utf-8")
    if "image" in modalities:
        from PIL import Image

        from bindsearch.world.image import render_images

        for stem, picture in zip(stems, render_images(scenes, size_px), strict=True):
            Image.fromarray(picture).save(folder / f"{stem}.png", compress_level=3)
    if "audio" in modalities:
        import soundfile

        from bindsearch.world.audio import RATE_HZ, render_waves

        for stem, wave in zip(stems, render_waves(scenes), strict=True):
            soundfile.write(folder / f"{stem}.wav", wave, RATE_HZ, subtype="PCM_16")
    return captions


def _write_table(rows: list[dict[str, Any]], path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
    return path
