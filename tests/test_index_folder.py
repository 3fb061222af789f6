"""The index on disk: building, changing, snapshots, and files that are not as they were written."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from fake_store import SPACE, FakeStore, make_manifest
from test_store import row, write_generation

from bindsearch.config import content_hash
from bindsearch.errors import BindSearchError, InputError, MismatchError, MissingInputError, UnknownNameError
from bindsearch.index.build import build_index
from bindsearch.index.change import Added
from bindsearch.index.folder import IndexFolder
from bindsearch.index.manifest import read_manifest
from bindsearch.search import open_index
from bindsearch.store import commit_store
from bindsearch.types import item_id, to_text

BACKENDS = ("flat", "faiss-flat")


@pytest.fixture
def store():
    return FakeStore()


@pytest.fixture(params=BACKENDS)
def folder(request, store, tmp_path):
    return build_index(store, tmp_path / "index", backend=request.param)


def test_a_built_index_says_what_it_is(folder, store):
    info = folder.info()
    assert info["count"] == folder.count == 30
    assert info["modalities"] == {"audio": 10, "image": 10, "text": 10}
    assert (info["space_id"], info["dim"], info["metric"], info["segments"]) == (SPACE, 16, "cosine", 1)
    assert info["tower_ids"] == store.manifest.tower_ids
    assert info["preset_ids"] == store.manifest.preset_ids
    assert folder.manifest.space_name == "toy"
    found = folder.verify()
    (part,) = found.pop("segments")
    assert found.pop("worst_norm_error") == part.pop("worst_norm_error") < 1e-7
    assert found == {
        "index": str(folder.path),
        "status": "ok",
        "count": 30,
        "size_bytes": info["size_bytes"],
        "sample_searched": 30,
    }
    (entry,) = folder.manifest.segments
    assert part == {
        "name": entry.name,
        "backend": folder.manifest.backend,
        "rows": 30,
        "removed": 0,
        "files": len(entry.files),
        "size_bytes": info["size_bytes"],
        "sample_searched": 30,
    }
    # the ledger's columns stay with the embeddings
    assert folder.snapshot.column_names() == tuple(
        name for name in store.table.column_names if name not in ("status", "reason", "stage")
    )


def test_rows_and_items_are_those_of_the_store_in_the_order_asked(folder, store):
    asked = np.random.default_rng(0).permutation(store.ids)[:17]
    places = [store.ids.tolist().index(i) for i in asked.tolist()]
    np.testing.assert_allclose(folder.snapshot.rows(asked), store.units[places], atol=6e-8)
    table = folder.snapshot.table(asked, ["key", "size", "start_s"])
    assert table.to_pylist() == store.table.select(["key", "size", "start_s"]).take(places).to_pylist()
    assert folder.snapshot.table(asked[:0]).num_rows == 0
    with pytest.raises(MissingInputError, match="no item has the id 5"):
        folder.snapshot.rows(np.array([store.ids[0], 5]))


def test_two_builds_write_the_same_bytes(store, tmp_path):
    for name in ("a", "b"):
        build_index(store, tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert [str(f) for f in files if f.suffix == ".npy"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_blocks_and_row_groups_do_not_show(tmp_path, monkeypatch):
    monkeypatch.setattr("bindsearch.index.segment._GROUP_ROWS", 7)
    store = FakeStore(n=100)
    small = build_index(store, tmp_path / "small")
    places = np.random.default_rng(1).permutation(100)[:40]
    table = small.snapshot.table(store.ids[places], ["key", "caption"])
    assert table.to_pylist() == store.table.select(["key", "caption"]).take(places).to_pylist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_segments_answer_like_one_index(tmp_path, backend):
    stores = [FakeStore(n=n, seed=seed, prefix=f"s{seed}") for seed, n in enumerate((40, 1, 25))]
    folder = build_index(stores[0], tmp_path / "index", backend=backend)
    for store in stores[1:]:
        assert folder.add(store) == Added(added=store.ids.size)
    assert len(folder.snapshot.segments) == 3
    queries = np.concatenate([store.vectors[:3] for store in stores])
    before = folder.snapshot.search(queries, 20)
    folder.compact()
    assert len(folder.snapshot.segments) == 1
    for left, right in zip(before, folder.snapshot.search(queries, 20), strict=True):
        np.testing.assert_array_equal(left, right)
    assert folder.verify()["count"] == 66


def test_adding_replaces_what_differs_and_passes_over_what_does_not(folder, store):
    newer = FakeStore(n=32)
    newer.vectors[:30] = store.vectors
    newer.vectors[3] += 1
    sizes = newer.table["size"].to_pylist()
    sizes[7] = 12345
    newer.table = newer.table.set_column(newer.table.column_names.index("size"), "size", [sizes])
    assert folder.add(newer) == Added(added=2, replaced=2, unchanged=28)  # one vector, one item row, two new items
    assert folder.count == 32
    assert folder.info()["removed"] == 2
    np.testing.assert_allclose(folder.snapshot.rows(newer.ids), newer.units, atol=6e-8)
    assert folder.snapshot.table(newer.ids[7:8], ["size"]).to_pylist() == [{"size": 12345}]
    assert folder.verify()["status"] == "ok"
    assert folder.add(newer) == Added(unchanged=32)
    folder.compact()
    assert (folder.count, folder.info()["removed"]) == (32, 0)
    assert folder.verify()["status"] == "ok"


def test_what_the_embeddings_mark_as_gone_leaves_the_index(tmp_path):
    """Only rows of the same file go: an item of the same name that came from another store stays."""
    out, other = tmp_path / "emb", tmp_path / "other"
    write_generation(out, 1, [("image-00000", [row("a"), row("b"), row("c")], [])])
    commit_store(out)
    write_generation(other, 1, [("image-00000", [row("b", source="/elsewhere/b")], [])])
    commit_store(other)
    index, mixed = build_index(out, tmp_path / "index"), build_index(out, tmp_path / "mixed")
    mixed.add(other)
    write_generation(out, 2, [], gone=["a", "b"])
    commit_store(out)
    assert index.add(out) == Added(unchanged=1, gone=2)
    assert index.snapshot.ids().tolist() == [item_id("c")]
    assert (index.count, index.info()["modalities"]) == (1, {"image": 1})
    assert index.verify()["status"] == "ok"
    generation = index.manifest.generation
    assert index.add(out) == Added(unchanged=1)
    assert index.manifest.generation == generation, "nothing left to do"
    mixed.add(out)
    assert sorted(mixed.snapshot.ids().tolist()) == sorted([item_id("b"), item_id("c")])
    write_generation(out, 3, [("image-00000", [row("a"), row("d")], [])], gone=["c"])
    commit_store(out)
    assert index.add(out) == Added(added=2, gone=1)
    assert sorted(index.snapshot.ids().tolist()) == sorted([item_id("a"), item_id("d")])
    write_generation(out, 4, [], gone=["a", "d"])
    commit_store(out)
    index.add(out)
    assert index.count == 0


def test_removed_items_are_gone_for_new_readers_and_stay_for_old_ones(folder, store):
    reader = IndexFolder.open(folder.path)
    assert folder.remove(np.append(store.ids[:12], 77)) == 12
    assert (folder.count, reader.count) == (18, 30)
    assert folder.manifest.modalities == {"audio": 6, "image": 6, "text": 6}
    folder.compact()  # deletes the files that the old reader has open
    found = reader.snapshot.search(store.vectors[:5], 1)
    np.testing.assert_array_equal(found[1][:, 0], store.ids[:5])
    assert reader.snapshot.table(store.ids[:2], ["key"]).to_pylist() == [{"key": "item/0000"}, {"key": "item/0001"}]
    assert not np.isin(folder.snapshot.search(store.vectors[:5], 30)[1], store.ids[:12]).any()
    reader.reload()
    assert reader.count == 18
    folder.remove(store.ids)
    assert folder.count == 0
    assert (folder.snapshot.search(store.vectors[:2], 3)[1] == -1).all()
    assert folder.verify()["count"] == 0
    assert folder.snapshot.table(store.ids[:0], ["key"]).num_rows == 0
    assert folder.add(store) == Added(added=30)


def test_reading_items_starts_no_threads(folder):
    """A process that ends right after Arrow's pools have started is aborted, now and then."""
    code = f"""
import os, sys
from bindsearch.search import open_index
index = open_index({str(folder.path)!r})
before = len(os.listdir("/proc/self/task"))
import pyarrow.parquet
loaded = len(os.listdir("/proc/self/task"))
index.search(index.item("item/0001"), where="size > 300 and colour = 'red'", modality="image").to_json()
print(before, loaded - before, len(os.listdir("/proc/self/task")) - loaded)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120, env=environment
    )
    assert done.stdout.split()[2] == "0", done.stdout


# ---- identity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space_id": "toy@ffff"}, r"space toy@0123456789ab, .* comes from toy@ffff"),
        ({"dim": 8}, "dim 16, .* has dim 8"),
        (
            {"tower_ids": {"audio": f"audio:bb@{SPACE}"}},
            r"audio tower audio:aa@toy@0123456789ab, .* audio:bb@toy@0123456789ab",
        ),
        ({"preset_ids": {"image": "reference:9"}}, "image preset default:image, .* reference:9"),
        ({"tokenizer_id": "other"}, "tokenizer tok, .* other"),
        ({"tower_ids": {"imu": "imu:cc@elsewhere@12"}}, r"imu tower imu:cc@elsewhere@12 was bound to .* elsewhere@12"),
    ],
)
def test_what_was_not_made_for_it_is_refused_with_both_values(folder, changes, message):
    other = FakeStore(prefix="other", dim=changes.get("dim", 16))
    other.manifest = make_manifest(**{"dim": 16, **changes})
    with pytest.raises(MismatchError, match=message):
        folder.add(other)
    assert IndexFolder.open(folder.path).count == 30


def test_a_modality_is_added_without_touching_the_others(folder):
    other = FakeStore(prefix="motion", modalities=("imu",))
    before = folder.info()
    folder.add(other)
    info = folder.info()
    assert info["tower_ids"] == {**before["tower_ids"], "imu": f"imu:aa@{SPACE}"}
    assert info["modalities"] == {**before["modalities"], "imu": 30}


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_building_over_something_is_refused_unless_forced(folder, store, tmp_path):
    with pytest.raises(InputError, match=r"holds an index already.*--force.*index add"):
        build_index(store, folder.path)
    reader = IndexFolder.open(folder.path)
    rebuilt = build_index(FakeStore(n=5), folder.path, force=True)
    assert (rebuilt.count, reader.count, rebuilt.manifest.generation) == (5, 30, 2)
    assert reader.snapshot.table(store.ids[:1], ["key"]).to_pylist() == [{"key": "item/0000"}]
    assert len(list((folder.path / "segments").iterdir())) == 1
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(b"x")
    for force in (False, True):
        with pytest.raises(InputError, match=r"'a.jpg', which is no part of an index"):
            build_index(store, photos, force=force)
    with pytest.raises(InputError, match="is a file"):
        build_index(store, photos / "a.jpg")
    with pytest.raises(UnknownNameError, match="Did you mean 'flat'"):
        build_index(store, tmp_path / "new", backend="flt")
    assert not (tmp_path / "new").exists()


def test_broken_sources_are_refused_and_leave_no_index(store, tmp_path):
    twice = FakeStore()
    twice.ids = twice.ids.copy()
    twice.ids[29] = twice.ids[0]
    twice.table = twice.table.set_column(0, "id", [twice.ids])
    shuffled = FakeStore()
    shuffled.ids = shuffled.ids[::-1].copy()
    bare = FakeStore()
    bare.table = bare.table.drop_columns(["key"])
    broken = FakeStore()
    broken.vectors[4] = np.nan
    empty = FakeStore(n=0)
    for number, (source, error, message) in enumerate(
        [
            (twice, InputError, "comes twice"),
            (shuffled, MismatchError, "ids are not those of the 30 vectors"),
            (bare, InputError, "column 'key' is missing"),
            (broken, InputError, "row 4 has the norm nan"),
            (empty, MissingInputError, "no embedded item"),
        ]
    ):
        out = tmp_path / str(number)
        with pytest.raises(error, match=message):
            build_index(source, out)
        assert not out.exists()
        with pytest.raises(MissingInputError, match="does not exist"):
            IndexFolder.open(out)
        assert build_index(store, out).count == 30
        assert len(list((out / "segments").iterdir())) == 1


def test_a_missing_index_says_what_to_type(tmp_path):
    with pytest.raises(MissingInputError, match=r"does not exist. Type: bindsearch index EMBEDDINGS"):
        IndexFolder.open(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(MissingInputError, match="is a file"):
        IndexFolder.open(tmp_path / "file")


# ---- files that are not as they were written -------------------------------------------------------------------------


def data_files(folder):
    return sorted(path for path in folder.path.rglob("*") if path.is_file() and path.suffix in (".npy", ".parquet"))


def open_and_read(path):
    opened = IndexFolder.open(path)
    opened.snapshot.search(np.ones((1, 16), dtype=np.float32), 3)
    return opened.verify()


def test_every_truncated_file_is_refused_at_open(folder):
    folder.remove(np.array([item_id("item/0001")]))
    files = [*data_files(folder), folder.path / "index.json"]
    assert len(files) == 6
    for path in files:
        whole = path.read_bytes()
        for keep in (0, 1, len(whole) // 2, len(whole.rstrip()) - 1):
            path.write_bytes(whole[:keep])
            with pytest.raises(MismatchError, match=path.name):
                IndexFolder.open(folder.path)
        path.unlink()
        with pytest.raises(BindSearchError, match=path.name):
            IndexFolder.open(folder.path)
        path.write_bytes(whole)
    assert open_and_read(folder.path)["count"] == 29


def test_every_altered_byte_is_found(folder):
    """A flipped bit anywhere: a plain error at open for small files, never a crash and never a silent answer."""
    folder.remove(np.array([item_id("item/0001")]))
    rng = np.random.default_rng(0)
    for path in [*data_files(folder), folder.path / "index.json"]:
        whole = path.read_bytes()
        for place in sorted({0, 7, len(whole) - 1, *rng.integers(0, len(whole), 12).tolist()}):
            broken = bytearray(whole)
            broken[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(broken)
            with pytest.raises(BindSearchError, match=r"\w"):
                open_and_read(folder.path)
        path.write_bytes(whole)
    assert open_and_read(folder.path)["count"] == 29


def test_large_payloads_are_left_to_verify(store, tmp_path, monkeypatch):
    """At open nothing large is read: an altered row is found by verify, with both checksums."""
    monkeypatch.setattr("bindsearch.index.manifest.SMALL_FILE_BYTES", 100)
    folder = build_index(store, tmp_path / "index")
    path = next(p for p in data_files(folder) if p.name == "vectors.npy")
    whole = bytearray(path.read_bytes())
    whole[-3] ^= 0x40
    path.write_bytes(whole)
    opened = IndexFolder.open(folder.path)
    with pytest.raises(MismatchError, match=r"vectors.npy: its checksum is .* its manifest says"):
        opened.verify()


def rewrite_manifest(folder, change):
    path = folder.path / "index.json"
    data = json.loads(path.read_text())
    data.pop("checksum")
    change(data)
    data["checksum"] = content_hash(data, 64)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(format_version=2), "format version 2, this bindsearch reads 1"),
        (lambda data: data.update(format_version=3), "format version 3, this bindsearch reads 1"),
        (lambda data: data.update(format="clip-index"), "expected format 'bindsearch-index', got 'clip-index'"),
        (lambda data: data.update(dim=17), r"rows of shape \(30, 16\), its manifest says \(30, 17\)"),
        (lambda data: data["segments"][0].update(rows=31), r"rows of shape \(30, 16\), its manifest says \(31, 16\)"),
        (lambda data: data.update(wings=2), "unknown field 'wings'"),
        (lambda data: data.pop("dim"), "dim"),
        (lambda data: data.update(backend="tree"), "Unknown index backend 'tree'"),
    ],
)
def test_a_consistent_manifest_with_other_content_is_refused(folder, change, message):
    rewrite_manifest(folder, change)
    with pytest.raises(BindSearchError, match=message):
        IndexFolder.open(folder.path)


def test_miscounted_modalities_are_found_by_verify(folder):
    rewrite_manifest(folder, lambda data: data.update(modalities={"image": 30}))
    with pytest.raises(MismatchError, match=r"its manifest says \{'image': 30\}"):
        IndexFolder.open(folder.path).verify()


def test_an_item_table_of_other_rows_is_not_joined(folder, store, tmp_path):
    """Same sizes, same counts, other order: the ids of the answer must be those of the vectors."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = next(p for p in data_files(folder) if p.name == "items.parquet")
    table = pq.read_table(path)
    pq.write_table(table.take(pa.array(range(29, -1, -1))), path)

    def accept(data):
        import hashlib

        whole = path.read_bytes()
        entry = {"size_bytes": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}
        data["segments"][0]["files"]["items.parquet"] = entry

    rewrite_manifest(folder, accept)
    opened = IndexFolder.open(folder.path)
    with pytest.raises(MismatchError, match=r"ids are not those of ids.npy"):
        opened.snapshot.table(store.ids[:3])
    with pytest.raises(MismatchError, match="name different ids"):
        opened.verify()


# ---- changes that do not come to their end ---------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["write_segment", "write_ids", "write_manifest", "sweep"])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("change", ["add", "remove", "compact", "rebuild"])
def test_an_interrupted_change_leaves_the_old_index_or_the_new_one(store, tmp_path, monkeypatch, step, moment, change):
    """Every step of every change breaks off, on either side of it: no state in between is ever opened."""
    import bindsearch.index.build
    import bindsearch.index.change
    import bindsearch.index.commit

    part = {"write_segment": "build" if change == "rebuild" else "change", "write_ids": "change"}.get(step, "commit")
    module = getattr(bindsearch.index, part)
    folder = build_index(store, tmp_path / "index")
    folder.remove(store.ids[:2])
    newer = FakeStore(n=35, seed=1)
    old, new = 28, {"add": 35, "remove": 25, "compact": 28, "rebuild": 35}[change]
    whole = getattr(module, step)

    def broken(*args, **kwargs):
        if moment == "after":
            whole(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, step, broken)
    calls = {
        "add": lambda: folder.add(newer),
        "remove": lambda: folder.remove(store.ids[:5]),
        "compact": folder.compact,
        "rebuild": lambda: build_index(newer, folder.path, force=True),
    }
    with suppress(KeyboardInterrupt):
        calls[change]()
    monkeypatch.undo()
    committed = (step, moment) == ("write_manifest", "after") or step == "sweep"
    never_called = (step == "write_segment" and change == "remove") or (
        step == "write_ids" and change in ("compact", "rebuild")
    )
    opened = IndexFolder.open(folder.path)
    assert opened.count == (new if committed or never_called else old)
    assert opened.verify()["status"] == "ok"
    # what was left over is in nobody's way, and is swept by the next change
    assert opened.add(FakeStore(n=40, seed=2)).changed == 40
    named = {entry.name for entry in opened.manifest.segments}
    assert {path.name for path in (folder.path / "segments").iterdir()} == named
    assert opened.verify()["count"] == 40


# ---- processes -------------------------------------------------------------------------------------------------------


def add_in_process(path, seed):
    store = FakeStore(n=10, seed=seed, prefix=f"p{seed}")
    IndexFolder.open(path).add(store)


def test_writers_take_turns_and_readers_always_find_a_whole_index(store, tmp_path):
    path = build_index(store, tmp_path / "index").path
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=add_in_process, args=(path, seed)) for seed in (1, 2, 3)]
    for writer in writers:
        writer.start()
    counts = set()
    while any(writer.is_alive() for writer in writers):
        opened = IndexFolder.open(path)
        counts.add(opened.count)
        assert opened.snapshot.search(store.vectors[:1], 1)[1][0, 0] == store.ids[0]
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert counts <= {30, 40, 50, 60}
    assert open_and_read(path)["count"] == 60
    assert read_manifest(path).generation == 4


def test_keys_of_names_that_are_no_utf8(tmp_path):
    name = os.fsdecode(b"bad\xff.txt")
    store = FakeStore(n=3)
    store.ids[1] = item_id(to_text(name))
    keys = store.table["key"].to_pylist()
    keys[1] = to_text(name)
    for column, values in (("id", store.ids), ("key", keys)):
        store.table = store.table.set_column(store.table.column_names.index(column), column, [values])
    build_index(store, tmp_path / "index")
    index = open_index(tmp_path / "index")
    assert index.has(name)
    assert index.items([name])["key"].to_pylist() == [to_text(name)]
    assert index.remove([name]) == 1
    with pytest.raises(MissingInputError, match=r"no item 'bad"):
        index.remove(name)


@pytest.mark.parametrize("where", ["index", "new/index"])
def test_a_build_that_fails_leaves_no_folder(tmp_path, where):
    with pytest.raises(MissingInputError, match="no embedded item"):
        build_index(FakeStore(n=0), tmp_path / where)

    def never(_snapshot):
        raise MismatchError("not this one")

    with pytest.raises(MismatchError, match="not this one"):
        build_index(FakeStore(), tmp_path / where, judge=never)
    assert list(tmp_path.iterdir()) == []


def test_a_build_that_fails_leaves_what_was_there(tmp_path):
    (tmp_path / "empty").mkdir()
    before = build_index(FakeStore(), tmp_path / "index").manifest
    for path in (tmp_path / "empty", tmp_path / "index"):
        with pytest.raises(MissingInputError, match="no embedded item"):
            build_index(FakeStore(n=0), path, force=True)
    assert (tmp_path / "empty").is_dir()
    assert IndexFolder.open(tmp_path / "index").manifest == before
