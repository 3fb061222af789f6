"""The demo's promise: a folder of unseen scenes answers words, a picture, a sound and picture + sound rightly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import bindsearch
from bindsearch.embed import run_embed
from bindsearch.index.build import build_index
from bindsearch.world.scene import names, sample, split_seeds
from bindsearch.world.text import write_captions
from bindsearch.world.write import write_world

SCENES = 240
QUADRUPLES = 20
SUFFIXES = {"text": ".txt", "image": ".png", "audio": ".wav"}


@pytest.fixture(scope="module")
def space() -> bindsearch.Space:
    return bindsearch.load_space("bindsearch-mini")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, space: bindsearch.Space) -> Path:
    """The demo's folder and its centred index, and 20 questions about a subject: words, a picture, a sound of it alone.

    The pictures are clear ones: one subject, standing still, by day, not small; the first 20 of the draw that are so.
    Shares over 600 questions, clear or not, centred or not, are in benchmarks/results/quadruples.json.
    """
    home = tmp_path_factory.mktemp("demo")
    write_world(SCENES, home / "world", seed=int(split_seeds("demo", 1)[0]), modalities=tuple(SUFFIXES))
    report = run_embed([home / "world"], home / "embeddings", space)
    assert report.to_json()["embedded"] == {"audio": SCENES, "image": SCENES, "text": SCENES}
    build_index(home / "embeddings", home / "index", centre=True)
    for number, seed in enumerate(clear_seeds(QUADRUPLES)):
        folder = home / "questions" / f"{number:02d}"
        write_world(1, folder, seed=seed, kind="subject", modalities=tuple(SUFFIXES))
        words = write_captions(sample(np.array([seed], dtype=np.uint64), "subject"), style="plain").texts[0]
        (folder / "scene-00000.txt").write_text(words, encoding="utf-8")
    return home


def clear_seeds(n: int) -> list[int]:
    """The first n seeds of the draw whose picture is clear."""
    scenes = sample(split_seeds("demo", 2_000, 50_000), "subject")
    clear = (scenes.count == names("count").index("one")) & (scenes.motion == names("motion").index("still"))
    clear &= (scenes.light == names("light").index("day")) & (scenes.size != names("size").index("small"))
    return [int(seed) for seed in scenes.seed[clear][:n]]


def subjects(folder: Path) -> dict[str, str]:
    import pyarrow.parquet as pq

    rows = pq.read_table(folder / "attributes.parquet", use_threads=False, pre_buffer=False).to_pylist()
    return {row["stem"]: row["subject"] for row in rows}


ASKED = [
    pytest.param(("text",), id="text"),
    pytest.param(("image",), id="image"),
    pytest.param(("audio",), id="audio"),
    pytest.param(("image", "audio"), id="image+audio"),
]


@pytest.mark.parametrize("asked", ASKED)
def test_four_of_the_top_five_are_right(home: Path, space: bindsearch.Space, asked: tuple[str, ...]) -> None:
    index = bindsearch.open_index(home / "index")
    right = subjects(home / "world")
    short: dict[str, int] = {}
    for folder in sorted((home / "questions").iterdir()):
        stem, subject = next(iter(subjects(folder).items()))
        terms = []
        for modality in asked:
            path = folder / f"{stem}{SUFFIXES[modality]}"
            source = path.read_text(encoding="utf-8").strip() if modality == "text" else path
            terms.append(getattr(space, modality)(source))
        query = terms[0] if len(terms) == 1 else terms[0] + terms[1]
        found = sum(right[Path(hit.key).stem] == subject for hit in index.search(query, k=5))
        if found < 4:
            short[f"{folder.name} {subject}"] = found
    assert not short, json.dumps(short)
