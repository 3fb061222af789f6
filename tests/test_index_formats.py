"""Index folders as earlier versions wrote them: they open, verify and answer, and plain small indexes are still such.

tests/golden/index/v1 and v2 were written at commit d4404d0 by `build_index(FakeStore(), ...)`: v1 with backend
faiss-flat, v2 with backend flat and centre=True.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_store import FakeStore

from bindsearch.config import content_hash
from bindsearch.errors import InputError, MismatchError
from bindsearch.index.build import build_index
from bindsearch.index.folder import IndexFolder
from bindsearch.index.manifest import describe_file, read_manifest, write_manifest
from bindsearch.index.recipe import Recipe, norm_tolerance
from bindsearch.index.segment import Segment, write_segment
from bindsearch.index.snapshot import Snapshot
from bindsearch.registry import INDEXES

GOLDEN = Path(__file__).parent / "golden" / "index"


@pytest.fixture(params=["v1", "v2"])
def golden(request, tmp_path):
    """A copy: a change of it must leave the golden alone."""
    shutil.copytree(GOLDEN / request.param, tmp_path / "index")
    return tmp_path / "index"


def test_an_index_of_an_earlier_format_opens_verifies_and_answers(golden):
    store = FakeStore()
    folder = IndexFolder.open(golden)
    assert folder.verify()["status"] == "ok"
    assert folder.manifest.recipe is None
    assert (folder.manifest.row_dtype, folder.manifest.segments[0].backend) == ("float32", "")
    rows = store.units if folder.snapshot.centring is None else folder.snapshot.rows(store.ids)
    scores, ids = folder.snapshot.search(rows, 1)
    np.testing.assert_array_equal(ids[:, 0], store.ids)
    assert (scores[:, 0] > 1 - 1e-6).all()


def test_an_index_of_an_earlier_format_can_be_changed_and_keeps_its_format(golden):
    before = json.loads((golden / "index.json").read_text())["format_version"]
    folder = IndexFolder.open(golden)
    assert folder.remove(FakeStore().ids[:3]) == 3
    folder.compact()
    after = json.loads((golden / "index.json").read_text())
    assert after["format_version"] == before
    assert not {"recipe", "tuned"} & set(after)
    assert "backend" not in after["segments"][0]
    assert IndexFolder.open(golden).count == 27


def test_a_plain_index_is_written_as_before(tmp_path):
    """Older readers must open it."""
    build_index(FakeStore(), tmp_path / "index", backend="faiss-flat")
    for path in sorted((GOLDEN / "v1").rglob("*.npy")):
        assert path.read_bytes() == (tmp_path / "index" / path.relative_to(GOLDEN / "v1")).read_bytes()
    old = json.loads((GOLDEN / "v1" / "index.json").read_text())
    new = json.loads((tmp_path / "index" / "index.json").read_text())
    assert set(old) == set(new)
    assert set(old["segments"][0]) == set(new["segments"][0])


def test_what_a_manifest_uses_decides_its_format_version(tmp_path):
    shutil.copytree(GOLDEN / "v1", tmp_path / "index")
    plain = read_manifest(tmp_path / "index")
    for change in (
        {"recipe": Recipe("flat", build={"nlist": 3, "metric": "word", "share": 0.5})},
        {"tuned": {"settings": {"nprobe": 3}}},
        {"row_dtype": "float16"},
        {"segments": (replace(plain.segments[0], backend="flat"),)},
    ):
        write_manifest(tmp_path / "index", replace(plain, **change))
        found = read_manifest(tmp_path / "index")
        assert found.format_version == 3
        assert replace(found, format_version=1) == replace(plain, **change)
    write_manifest(tmp_path / "index", plain)
    assert read_manifest(tmp_path / "index") == plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, "format version 3, this bindsearch reads 1"),
        ({"recipe": {"backend": "flat", "rows": 3}}, "format version 1"),
        ({"format_version": 3, "recipe": {"backend": "flat", "rows": 3}}, "unknown field 'rows'"),
        ({"format_version": 3, "recipe": {"backend": "flat", "build": {"nlist": None}}}, "nlist expected a number"),
        ({"format_version": 3, "row_dtype": "int8"}, "rows of float32, its manifest says int8"),
        ({"format_version": 3, "row_dtype": "float16"}, "rows of float32, its manifest says float16"),
    ],
)
def test_a_manifest_that_cannot_be_meant_is_refused(tmp_path, change, message):
    shutil.copytree(GOLDEN / "v1", tmp_path / "index")
    data = json.loads((tmp_path / "index" / "index.json").read_text())
    data.pop("checksum")
    data.update(change)
    data["checksum"] = content_hash(data, 64)
    (tmp_path / "index" / "index.json").write_text(json.dumps(data))
    with pytest.raises(MismatchError, match=message):
        IndexFolder.open(tmp_path / "index")


# ---- float16 rows ----------------------------------------------------------------------------------------------------


def write_index(path, store, recipe):
    """An index of one segment by a recipe, without `build_index`."""
    shutil.copytree(GOLDEN / "v1", path)
    entry, modalities = write_segment(path, 2, store.iter_blocks(7), store.manifest.dim, recipe)
    manifest = replace(
        read_manifest(path),
        recipe=recipe,
        row_dtype=recipe.row_dtype,
        dim=store.manifest.dim,
        segments=(entry,),
        modalities=modalities,
        count=entry.rows,
        generation=2,
    )
    write_manifest(path, manifest)
    return Snapshot.open(path)


def test_rows_of_float16_are_the_truth_as_stored(tmp_path):
    store = FakeStore(n=300, dim=48)
    snapshot = write_index(tmp_path / "index", store, Recipe("faiss-flat", row_dtype="float16"))
    rows = snapshot.rows(store.ids)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, store.units.astype(np.float16).astype(np.float32))
    rng = np.random.default_rng(1)
    queries = rng.standard_normal((9, 48)).astype(np.float32)
    units = queries.astype(np.float64) / np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
    expected = (units @ rows.astype(np.float64).T).astype(np.float32)
    scores, ids = snapshot.search(queries, 10)
    for row in range(9):
        best = np.lexsort((store.ids, -expected[row]))[:10]
        np.testing.assert_array_equal(ids[row], store.ids[best])
        np.testing.assert_allclose(scores[row], expected[row][best], atol=6e-8, rtol=0)
    for answer in (snapshot.search(queries, 10, exact=True), snapshot.search_exact(queries, 10)[:2]):
        np.testing.assert_array_equal(answer[0], scores)
        np.testing.assert_array_equal(answer[1], ids)
    report = snapshot.search_exact(queries, 10)[2]
    assert report.rows_scanned == 300
    np.testing.assert_array_equal(report.rows_touched_full, np.full(9, 300))


def test_rows_of_float16_verify_within_their_rounding_and_no_further(tmp_path):
    store = FakeStore(n=200, dim=24)
    snapshot = write_index(tmp_path / "index", store, Recipe("flat", row_dtype="float16"))
    checked = snapshot.verify()
    assert 1e-6 < checked["worst_norm_error"] < norm_tolerance("float16") < 5.1e-4
    assert checked["sample_searched"] == 32


def test_float16_rows_of_an_index_are_the_same_after_they_were_read_and_stored_again():
    """Compacting normalises again: the float16 grid must be a fixed point."""
    rng = np.random.default_rng(0)
    for dim in (2, 3, 16, 1024):
        rows = rng.standard_normal((500, dim)).astype(np.float32)
        ids = np.arange(500)
        first = INDEXES["flat"].build(ids, rows, row_dtype="float16")
        second = INDEXES["flat"].build(ids, first.rows(ids), row_dtype="float16")
        np.testing.assert_array_equal(first.rows(ids), second.rows(ids))


class Sorting(INDEXES["flat"]):
    """A backend that sorts the rows by their first component, as an inverted file sorts them by list."""

    name = "sorting"

    @classmethod
    def build_files(cls, folder, build, progress=None):
        rows, ids = np.load(folder / "vectors.npy"), np.load(folder / "ids.npy")
        order = np.argsort(rows[:, 0], kind="stable")
        np.save(folder / "vectors.npy", rows[order])
        np.save(folder / "ids.npy", ids[order])
        np.save(folder / "table_rows.npy", order.astype(np.int32))


@pytest.fixture
def _sorting(monkeypatch):
    monkeypatch.setitem(INDEXES._things, "sorting", Sorting)


@pytest.mark.usefixtures("_sorting")
def test_items_follow_rows_that_a_backend_sorted(tmp_path):
    store = FakeStore(n=120, dim=8)
    snapshot = write_index(tmp_path / "index", store, Recipe("sorting"))
    assert snapshot.verify()["status"] == "ok"
    segment: Segment = snapshot.segments[0]
    assert not np.array_equal(segment.index.ids, store.ids)
    ids = store.ids[[5, 80, 3, 5]]
    keys = store.table["key"].to_pylist()
    assert snapshot.table(ids, ["key"])["key"].to_pylist() == [keys[5], keys[80], keys[3], keys[5]]
    np.testing.assert_array_equal(segment.column("id").to_numpy(), segment.index.ids)
    mask = np.arange(120) % 3 == 0  # over the item table
    assert set(segment.index.ids[segment.to_row_order(mask)].tolist()) == set(store.ids[mask].tolist())
    np.testing.assert_array_equal(segment.index.ids[segment.places_by_table()], store.ids)


@pytest.mark.usefixtures("_sorting")
@pytest.mark.parametrize("values", [np.arange(119, dtype=np.int32), np.arange(120, dtype=np.float64)])
def test_table_rows_that_do_not_fit_are_refused(tmp_path, values):
    store = FakeStore(n=120, dim=8)
    snapshot = write_index(tmp_path / "index", store, Recipe("sorting"))
    path = snapshot.segments[0].path / "table_rows.npy"
    np.save(path, values)
    entry = snapshot.manifest.segments[0]
    changed = replace(entry, files={**entry.files, "table_rows.npy": describe_file(path)})
    write_manifest(tmp_path / "index", replace(snapshot.manifest, segments=(changed,)))
    with pytest.raises(MismatchError, match=r"table_rows\.npy: (119 rows|expected 1 axes)"):
        Snapshot.open(tmp_path / "index")


def test_settings_that_nobody_reads_are_refused(tmp_path):
    store = FakeStore()
    snapshot = write_index(tmp_path / "index", store, Recipe("flat"))
    with pytest.raises(InputError, match="'nprobe': this index has none"):
        snapshot.search(store.vectors, 3, settings={"nprobe": 3})
    with pytest.raises(InputError, match="'nprobe': this index has none"):
        snapshot.segments[0].index.search(store.vectors, 3, settings={"nprobe": 3})
    with pytest.raises(InputError, match="takes no numbers, got nlist"):
        write_index(tmp_path / "other", store, Recipe("flat", build={"nlist": 3}))
