"""A space of another package goes the whole way by the commands, and is refused where another space was indexed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
OPEN_CLIP = "open_clip:ViT-S-32-alt/random:3"
WORDS = {"dog.txt": "a dog", "sea.txt": "waves on the sea at night", "car.txt": "an old red car"}


NO_CACHE = {"BINDSEARCH_TEXT_CACHE_MB": "0"}


def bindsearch(*words: str | Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BINDSEARCH_")}
    command = [sys.executable, "-m", "bindsearch", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env={**clean, **NO_CACHE}, timeout=240, cwd=ROOT)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("open_clip")
    media = home / "media"
    media.mkdir()
    g = np.random.default_rng(4)
    for number in range(4):
        levels = g.integers(0, 256, (7, 9, 3), dtype=np.uint8)
        Image.fromarray(levels).resize((180, 140)).save(media / f"{number}.png")
    for name, words in WORDS.items():
        (media / name).write_text(words, encoding="utf-8")
    for name, space in (("foreign", OPEN_CLIP), ("own", "bindsearch-mini")):
        for command in (
            ("embed", media, "-o", home / f"{name}-embeddings", "--space", space),
            ("index", home / f"{name}-embeddings", "-o", home / name),
        ):
            done = bindsearch(*command)
            assert done.returncode == 0, done.stderr
    return home


def test_it_finds_what_was_embedded(home: Path) -> None:
    asked = [({"text": words}, name) for name, words in WORDS.items()]
    asked += [({"image": str(home / "media" / f"{number}.png")}, f"{number}.png") for number in range(4)]
    queries = home / "queries.jsonl"
    queries.write_text("".join(json.dumps(query) + "\n" for query, _ in asked), encoding="utf-8")
    done = bindsearch("query", home / "foreign", "--from", queries, "-k", "2", "--json")
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert [answer["hits"][0]["key"] for answer in answers] == [key for _, key in asked]
    for answer in answers:
        assert answer["hits"][0]["score"] == pytest.approx(1.0, abs=2e-3)
        assert answer["hits"][1]["score"] < 0.999


@pytest.mark.parametrize(
    ("index", "space", "kind"), [("own", OPEN_CLIP, "image"), ("foreign", "bindsearch-mini", "text")]
)
def test_a_query_of_the_other_space_is_refused_with_both_ids(home: Path, index: str, space: str, kind: str) -> None:
    thing = "a dog" if kind == "text" else str(home / "media" / "0.png")
    done = bindsearch("query", home / index, f"--{kind}", thing, "--space", space, "--json")
    assert done.returncode == 5
    assert done.stdout == ""
    assert f"{OPEN_CLIP}@" in done.stderr
    assert "bindsearch-mini@" in done.stderr
