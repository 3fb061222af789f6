"""Embeddings of texts kept on disk: the same bits, bounded, safe between processes; a hit loads no torch."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bindsearch.errors import InputError
from bindsearch.models.spaces import load_space
from bindsearch.models.text_cache import LARGEST_BATCH, TextCache, open_text_cache

TEXTS = ["a dog on the beach", "a bell at night", "rain"]


@pytest.fixture
def cache(tmp_path: Path) -> TextCache:
    return TextCache(tmp_path / "texts", 64 << 20, ("tower", "float32"))


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Switch the cache on, in a folder of its own."""
    monkeypatch.setenv("BINDSEARCH_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("BINDSEARCH_TEXT_CACHE_MB", "8")
    return tmp_path / "texts"


def row_of(number: int, dim: int = 16) -> np.ndarray:
    return np.random.default_rng(number).standard_normal(dim).astype(np.float32)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.vec"))


def test_what_is_put_comes_back_bit_for_bit(cache):
    row = np.array([0.1, -0.0, 1e-42, 3.0], dtype=np.float32)
    key = cache.key([5, 6, 7], alone=True)
    assert cache.get(key, 4) is None
    cache.put(key, row)
    found = cache.get(key, 4)
    assert found.tobytes() == row.tobytes()
    found[0] = 9  # a copy: the next one reads what was stored
    assert cache.get(key, 4).tobytes() == row.tobytes()


def test_what_decides_the_numbers_decides_the_key(cache):
    other = TextCache(cache.folder, cache.limit_bytes, ("tower", "bfloat16"))
    keys = {
        cache.key([5, 6], alone=True),
        cache.key([5, 6], alone=False),
        cache.key([5, 6, 0], alone=True),
        cache.key([56], alone=True),
        other.key([5, 6], alone=True),
    }
    assert len(keys) == 5
    assert cache.key(np.array([5, 6]).tolist(), alone=True) in keys


@pytest.mark.parametrize("alone", [True, False])
def test_a_cached_embedding_is_the_computed_one(on, monkeypatch, alone):
    texts = TEXTS[:1] if alone else TEXTS
    monkeypatch.setenv("BINDSEARCH_TEXT_CACHE_MB", "0")
    plain = load_space("tiny:3").embed("text", texts)
    assert not on.exists()
    monkeypatch.setenv("BINDSEARCH_TEXT_CACHE_MB", "8")
    first = load_space("tiny:3").embed("text", texts)
    assert len(entries(on)) == len(texts)
    again = load_space("tiny:3")
    assert again.embed("text", texts).tobytes() == first.tobytes() == plain.tobytes()
    assert again.loaded == ()
    assert again.embed("text", []).shape == (0, again.dim)


def test_only_what_is_missing_is_computed(on):
    space = load_space("tiny:3")
    before = space.embed("text", TEXTS)
    entries(on)[0].unlink()
    again = load_space("tiny:3")
    assert np.abs(again.embed("text", TEXTS[::-1]) - before[::-1]).max() < 1e-6
    assert again.loaded == ("text",)
    assert len(entries(on)) == len(TEXTS)


def test_spaces_types_and_other_modalities_do_not_mix(on):
    rows = {}
    for name, dtype in (("tiny:3", "float32"), ("tiny:3", "bfloat16"), ("tiny:4", "float32")):
        rows[name, dtype] = load_space(name, dtype=dtype).embed("text", TEXTS[:1])
    assert len(entries(on)) == 3
    assert len({row.tobytes() for row in rows.values()}) == 3
    space = load_space("tiny:3")
    space.embed("depth", [np.ones((8, 8), np.float32)])
    assert len(entries(on)) == 3


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "longer", "another key", "folder"])
def test_a_damaged_entry_is_ignored_and_written_again(on, damage):
    first = load_space("tiny:3").embed("text", TEXTS[:1])
    path = entries(on)[0]
    data = bytearray(path.read_bytes())
    if damage == "bit":
        data[-3] ^= 4
    elif damage == "another key":
        data[60] ^= 1
    new = {"cut": data[:-1], "empty": b"", "longer": data + b"\0"}.get(damage, data)
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes(bytes(new))
    space = load_space("tiny:3")
    assert space.embed("text", TEXTS[:1]).tobytes() == first.tobytes()
    assert space.loaded == ("text",)
    if damage != "folder":  # what cannot be replaced is computed each time
        assert load_space("tiny:3").embed("text", TEXTS[:1]).tobytes() == first.tobytes()
        assert entries(on)[0].stat().st_size == len(data)
    assert not list(on.glob("*/.*"))


def test_the_limit_holds_and_the_least_recently_used_go(tmp_path):
    entry = 84 + 4 * 16
    cache = TextCache(tmp_path, 256 * 8 * entry, ())
    keys = [bytes([7]) + number.to_bytes(31, "big") for number in range(40)]  # all in one of the 256 folders
    for age, key in enumerate(keys[:8]):
        cache.put(key, row_of(age))
        path = cache._path(key)
        os.utime(path, (time.time() - 90_000 + age, time.time() - 90_000 + age))
    assert cache.size() == (8, 8 * entry)
    assert cache.get(keys[0], 16) is not None  # used now: it stays
    cache.put(keys[8], row_of(8))
    assert cache.size()[1] <= 6 * entry
    assert cache.get(keys[0], 16) is not None
    assert cache.get(keys[1], 16) is None
    assert cache.get(keys[8], 16) is not None
    for number, key in enumerate(keys):
        cache.put(key, row_of(number))
        assert cache.size()[1] <= 8 * entry
        assert cache.get(key, 16).tobytes() == row_of(number).tobytes()


def test_a_limit_below_one_entry_keeps_the_newest(tmp_path):
    cache = TextCache(tmp_path, 256, ())
    for number in range(3):
        key = bytes([7]) + number.to_bytes(31, "big")
        cache.put(key, row_of(number))
        assert cache.get(key, 16) is not None
        assert cache.size()[0] == 1


def test_drafts_of_killed_processes_are_swept(cache):
    key = cache.key([1], alone=True)
    folder = cache._path(key).parent
    folder.mkdir(parents=True)
    old, young = folder / ".old.1.2.tmp", folder / ".young.1.2.tmp"
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    cache.put(key, row_of(1))
    assert not old.exists() and young.exists()
    assert cache.size()[0] == 1
    assert cache.clear() == 1
    assert not list(cache.folder.glob("*/*"))


def test_a_place_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BINDSEARCH_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setenv("BINDSEARCH_TEXT_CACHE_MB", "8")
    assert load_space("tiny:3").embed("text", TEXTS).shape == (3, load_space("tiny:3").dim)


def test_a_full_disk_is_no_error_and_leaves_no_draft(cache, monkeypatch):
    def full(self, data):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    key = cache.key([1], alone=True)
    cache.put(key, row_of(1))
    assert cache.get(key, 16) is None
    assert not list(cache.folder.glob("*/.*")) and not list(cache.folder.glob("*/*"))


def test_a_batch_that_would_push_all_else_out_is_not_kept(on, monkeypatch):
    monkeypatch.setattr("bindsearch.models.text_cache.LARGEST_BATCH", 2)
    load_space("tiny:3").embed("text", TEXTS)
    assert entries(on) == []
    assert LARGEST_BATCH > 1000


@pytest.mark.parametrize("value", ["-1", "much"])
def test_a_limit_that_cannot_be_meant_is_refused(monkeypatch, value):
    monkeypatch.setenv("BINDSEARCH_TEXT_CACHE_MB", value)
    with pytest.raises(InputError, match=f"(?i)text_cache_mb.*{value}"):
        open_text_cache("tower")


def _race(folder: str, seed: int, rounds: int) -> int:
    """Write and read the same keys as other processes; gives how many reads were not as they must be."""
    cache = TextCache(Path(folder), 256 * 10 * 150, ())
    rng = np.random.default_rng(seed)
    wrong = 0
    for _ in range(rounds):
        number = int(rng.integers(0, 30))
        key = bytes([number % 2]) + number.to_bytes(31, "big")
        if rng.random() < 0.5:
            cache.put(key, row_of(number))
        elif (found := cache.get(key, 16)) is not None and found.tobytes() != row_of(number).tobytes():
            wrong += 1
    return wrong


def test_processes_that_write_the_same_entries_read_none_but_whole_ones(tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        wrong = pool.starmap(_race, [(str(tmp_path), seed, 300) for seed in range(3)])
    assert wrong == [0, 0, 0]
    cache = TextCache(tmp_path, 1 << 20, ())
    count, size_bytes = cache.size()
    assert 10 <= count <= 20 and size_bytes <= 20 * 150
    assert not list(tmp_path.glob("*/.*"))


def query(index: Path, *words: str, **environment: str) -> tuple[list[str], str]:
    """Run a query in a process of its own: heavy packages that it loaded, and what it printed."""
    code = (
        "import sys\nfrom bindsearch.cli import run\n"
        f"assert run(['query', {str(index)!r}, *{list(words)!r}, '--json']) == 0\n"
        "heavy = ('torch', 'faiss', 'safetensors', 'PIL', 'pyarrow.compute', 'tqdm', 'tarfile', 'bindsearch.preview')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BINDSEARCH_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**clean, **environment}
    )
    loaded: list[str] = json.loads(done.stderr.splitlines()[-1].replace("'", '"'))
    return loaded, done.stdout


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the tiny space over random rows, through the importer."""
    from bindsearch.exchange import import_store
    from bindsearch.index.build import build_index

    folder = tmp_path_factory.mktemp("index")
    space = load_space("tiny:3")
    rows = np.random.default_rng(1).standard_normal((200, space.dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.save(folder / "rows.npy", rows)
    np.save(folder / "query.npy", rows[5])
    import_store(folder / "rows.npy", folder / "embeddings", "npy", space_id=space.space_id, modality="image")
    build_index(folder / "embeddings", folder / "index")
    return folder / "index"


def test_a_vector_an_item_and_a_cached_text_load_nothing_heavy(index, tmp_path):
    vector = query(index, "--vector", str(index.parent / "query.npy"))
    item = query(index, "--item", "rows.npy#5")
    assert vector[0] == item[0] == []
    words = ("--text", "a dog on the beach", "--space", "tiny:3")
    first = query(index, *words, BINDSEARCH_CACHE_DIR=str(tmp_path))
    cached = query(index, *words, BINDSEARCH_CACHE_DIR=str(tmp_path))
    plain = query(index, *words, BINDSEARCH_CACHE_DIR=str(tmp_path), BINDSEARCH_TEXT_CACHE_MB="0")
    assert "torch" in first[0] and "torch" in plain[0]
    assert cached[0] == []
    assert first[1] == cached[1] == plain[1]
