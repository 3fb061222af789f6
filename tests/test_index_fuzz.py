"""Truncated, altered, foreign and wrong-version files of an index: refused with both values, never a wrong answer."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_store import FakeStore

from bindsearch.config import content_hash
from bindsearch.errors import BindSearchError, MismatchError
from bindsearch.index.build import build_index
from bindsearch.index.folder import IndexFolder
from bindsearch.index.manifest import describe_file, read_manifest, write_manifest
from bindsearch.index.recipe import Recipe
from bindsearch.registry import INDEXES

BOTH_VALUES = re.compile(
    r"manifest says|does not sort|this bindsearch reads|computed|expected .*got|the file is missing|not valid JSON|"
    r"truncated"
)


def build_all(folder):
    """One index a format: plain, centred, by a recipe; each with an addition and tombstones."""
    recipes = {"v1": "faiss-flat", "v2": "flat", "v3": Recipe("flat", row_dtype="float16", byte_codes=True)}
    for name, how in recipes.items():
        index = build_index(FakeStore(n=40), folder / name, how, centre=name == "v2")
        index.add(FakeStore(n=9, seed=2, prefix="more"))
        index.remove(FakeStore(n=40).ids[:3])
    return [folder / name for name in recipes]


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    return build_all(tmp_path_factory.mktemp("fuzz"))


def kind_of(path):
    """What a file is, whatever index and change it belongs to."""
    if path.parent.name == "tombstones":
        return "tombstones"
    return re.sub(r"-[0-9a-f]{12}", "", path.name)


def files_of(index):
    return sorted(path for path in index.rglob("*") if path.is_file() and path.suffix != ".lock")


def mutations(whole, others, rng):
    """Yield (name, bytes) that differ from the whole."""
    yield "empty", b""
    yield "one byte short", whole[:-1]
    yield "cut", whole[: int(rng.integers(1, len(whole)))]
    yield "longer", whole + b"\0"
    for _ in range(2):
        place = int(rng.integers(len(whole)))
        yield "one bit", whole[:place] + bytes([whole[place] ^ 1 << int(rng.integers(8))]) + whole[place + 1 :]
    start = int(rng.integers(len(whole)))
    yield "zeros", whole[:start] + bytes(min(64, len(whole) - start)) + whole[start + 64 :]
    yield "noise", rng.integers(0, 256, len(whole), dtype=np.uint8).tobytes()
    for other in others:
        if other != whole:
            yield "foreign", other


def read_everything(path):
    """What a user would: open, verify, search, read every item."""
    folder = IndexFolder.open(path)
    folder.verify()
    snapshot = folder.snapshot
    found = snapshot.search(FakeStore(n=5, seed=8).vectors, 4)
    return found, snapshot.table(np.sort(snapshot.ids())).to_pylist()


def is_same_json(left, right):
    """Say whether only blanks differ."""
    try:
        return json.loads(left) == json.loads(right)
    except ValueError:
        return False


def same(left, right):
    return all(map(np.array_equal, left[0], right[0])) and left[1] == right[1]


@pytest.mark.parametrize("small_bytes", [256 << 10, 0], ids=["checked at open", "left to verify"])
def test_two_hundred_broken_files_are_refused(indexes, tmp_path, monkeypatch, capsys, small_bytes):
    """With the checksums of small files left away at open, as of large files, nothing else breaks before verify."""
    monkeypatch.setattr("bindsearch.index.manifest.SMALL_FILE_BYTES", small_bytes)
    rng = np.random.default_rng(small_bytes % 97)
    tried: Counter[str] = Counter()
    for index in indexes:
        copy = tmp_path / index.name
        shutil.copytree(index, copy)
        truth = read_everything(copy)
        for path in files_of(copy):
            if path.suffix == ".json" and path.name != "index.json" and not small_bytes:
                continue  # always small
            whole = path.read_bytes()
            foreign = [
                each.read_bytes() for other in indexes for each in files_of(other) if kind_of(each) == kind_of(path)
            ]
            for name, broken in mutations(whole, foreign[:1] + foreign[-1:], rng):
                if broken == whole:
                    continue
                path.write_bytes(broken)
                tried[kind_of(path)] += 1
                if path.name == "index.json" and is_same_json(broken, whole):
                    assert same(read_everything(copy), truth)
                    continue
                with pytest.raises(BindSearchError) as error:
                    read_everything(copy)
                assert BOTH_VALUES.search(str(error.value)), (path, name, str(error.value))
                assert str(copy) in str(error.value)
            path.unlink()
            with (
                pytest.raises(MismatchError, match="missing")
                if path.name != "index.json"
                else pytest.raises(BindSearchError, match=r"no index.json")
            ):
                read_everything(copy)
            path.write_bytes(whole)
        assert same(read_everything(copy), truth)
    with capsys.disabled():
        print(f"\nbroken files: {tried.total()}: {dict(tried)}")  # noqa: T201
    assert tried.total() >= 200
    assert {
        "index.json",
        "vectors.npy",
        "ids.npy",
        "order.npy",
        "items.parquet",
        "tombstones",
        "index.means.npy",
    } <= set(tried)


BACKENDS = sorted(set(INDEXES.built_in) - {"flat", "faiss-flat"})


@pytest.mark.parametrize("small_bytes", [256 << 10, 0], ids=["checked at open", "left to verify"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_broken_files_of_a_backend_are_refused(tmp_path, monkeypatch, backend, small_bytes):
    """What stands beside the rows: codes, lists, graphs; FAISS's own file among them."""
    if backend == "svs":
        pytest.importorskip("svs")
    build = {"nlist": 8} if backend.startswith("ivf") else {}
    index = build_index(FakeStore(n=200), tmp_path / "index", Recipe(backend, row_dtype="float16", build=build)).path
    plain = {"vectors.npy", "ids.npy", "order.npy", "items.parquet", "attributes.arrow", "index.json"}
    monkeypatch.setattr("bindsearch.index.manifest.SMALL_FILE_BYTES", small_bytes)
    rng = np.random.default_rng(len(backend))
    own = [path for path in files_of(index) if path.name not in plain and path.suffix != ".json"]
    assert own
    for path in own:
        whole = path.read_bytes()
        for name, broken in mutations(whole, [], rng):
            if broken == whole:  # zeros over zeros
                continue
            path.write_bytes(broken)
            with pytest.raises(BindSearchError) as error:
                read_everything(index)
            assert str(path.name) in str(error.value) or str(index) in str(error.value), name
        path.write_bytes(whole)
    assert IndexFolder.open(index).verify()["count"] == 200


# ---- files that fit their checksums, and are wrong -------------------------------------------------------------------


def accept(index, path):
    """Write a file's new size and checksum into the manifest, as somebody would who wants to be believed."""
    manifest = read_manifest(index)
    segments = tuple(
        replace(entry, files={**entry.files, path.name: describe_file(path)})
        if path.parent.name == entry.name
        else entry
        for entry in manifest.segments
    )
    write_manifest(index, replace(manifest, segments=segments))


def npy(change):
    def altered(path):
        array = np.load(path)
        np.save(path, change(array))

    return altered


def swapped(array):
    array[[0, 1]] = array[[1, 0]]
    return array


def longer_row(array):
    array[3] *= 1.25
    return array


def not_a_number(array):
    array[5, 2] = np.nan
    return array


def shuffled_table(path):
    table = pq.read_table(path)
    pq.write_table(table.take(pa.array(range(table.num_rows - 1, -1, -1))), path)


def other_modality(path):
    table = pq.read_table(path)
    place = table.column_names.index("modality")
    pq.write_table(table.set_column(place, "modality", [["image"] * table.num_rows]), path)


@pytest.mark.parametrize("name", ["v1", "v3"])
@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("ids.npy", npy(swapped), "name different ids|removes 1 rows, its manifest says 3"),
        ("ids.npy", npy(lambda ids: ids[:-1]), r"rows|ids"),
        ("ids.npy", npy(lambda ids: ids.astype(np.int32)), "expected 1 axes of int64, got .* of int32"),
        ("order.npy", npy(swapped), "does not sort the ids"),
        ("order.npy", npy(lambda order: order * 0), "does not sort the ids|removes"),
        ("order.npy", npy(lambda order: order + 1), "order.npy|removes 0 rows, its manifest says 3"),
        ("vectors.npy", npy(longer_row), "norm is off by"),
        ("vectors.npy", npy(not_a_number), "norm is off by nan"),
        ("vectors.npy", npy(lambda rows: rows.astype(np.float64)), "expected 2 axes of .* got .* of float64"),
        ("vectors.npy", npy(lambda rows: rows[:, :8].copy()), r"(its manifest says|codes of) \(40, 16\)"),
        ("items.parquet", shuffled_table, "name different ids"),
        ("items.parquet", other_modality, "its manifest says"),
    ],
)
def test_a_file_that_fits_its_checksum_and_is_wrong_is_found(indexes, tmp_path, name, file, change, message):
    copy = tmp_path / "copy"
    shutil.copytree(next(index for index in indexes if index.name == name), copy)
    path = copy / "segments" / read_manifest(copy).segments[0].name / file
    change(path)
    accept(copy, path)
    with pytest.raises(BindSearchError, match=message):
        read_everything(copy)


@pytest.mark.parametrize("version", [0, 1, 2, 3, 4, 99, "1", None])
def test_every_other_version_is_refused_with_both(indexes, tmp_path, version):
    for index in indexes:
        copy = tmp_path / index.name
        shutil.copytree(index, copy)
        data = json.loads((copy / "index.json").read_text())
        if data["format_version"] == version:
            continue
        data.pop("checksum")
        data["format_version"] = version
        data["checksum"] = content_hash(data, 64)
        (copy / "index.json").write_text(json.dumps(data))
        with pytest.raises(MismatchError, match=f"format version {version!r}, this bindsearch reads 1"):
            IndexFolder.open(copy)
