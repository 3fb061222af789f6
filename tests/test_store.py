"""The store: shards commit whole, readers see the latest generation, damage is said, the same gives the same."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bindsearch.errors import BindSearchError, InputError, MismatchError, MissingInputError, UnsupportedError
from bindsearch.store import (
    EmbeddingStore,
    Identity,
    Manifest,
    Shard,
    commit_shard,
    commit_store,
    item_schema,
    open_store,
    unit_rows,
)
from bindsearch.store import files as store_files
from bindsearch.store.files import commit_bytes, commit_json, read_parquet, sweep_temps
from bindsearch.store.reader import _among
from bindsearch.types import item_id

DIM = 8
IDENTITY = Identity(
    "toy",
    "toy@0123456789ab",
    DIM,
    "float32",
    {"image": "vision:aa@toy@0123456789ab"},
    {"image": "default:11"},
)
TEXT_IDENTITY = replace(
    IDENTITY, tower_ids={"text": "text:bb@toy"}, preset_ids={"text": "default:22"}, tokenizer_id="t"
)


def unit(n, seed=0, dim=DIM):
    return unit_rows(np.random.default_rng(seed).standard_normal((n, dim)))


def row(key, modality="image", **changes):
    span = (changes["start_s"], changes["end_s"]) if changes.get("start_s") is not None else None
    blank = dict.fromkeys(item_schema().names)
    own = {
        "id": item_id(key, span),
        "key": key,
        "modality": modality,
        "source": f"/x/{key}",
        "status": "ok",
        "norm": 0.5,
    }
    return {**blank, **own, **changes}


def bad_row(key, reason="cut short"):
    return row(key, status="bad", reason=reason, stage="decode", norm=None)


def write_generation(out, number, shards, gone=(), identity=IDENTITY, sources=("/x",)):
    """Commit a generation of shards of (name, good rows, bad rows); vectors are seeded by the name."""
    folder = out / f"g{number:04d}"
    folder.mkdir(parents=True)
    for name, good, bad in shards:
        vectors = unit(len(good), seed=sum(name.encode()) + number)
        commit_shard(folder, name, vectors, good, bad, identity)
    lines = "".join(json.dumps({"id": item_id(key), "key": key}) + "\n" for key in gone)
    commit_bytes(folder / "gone.jsonl", lines.encode())
    record = {"sources": list(sources), "shards": [{"name": n, "kind": "image", "items": 0} for n, _, _ in shards]}
    head = {"format": "bindsearch-embeddings", "format_version": 1}
    commit_json(folder / "plan.json", {**head, **identity.to_json(), **record, "gone": len(gone)})


@pytest.fixture
def out(tmp_path):
    """Two shards of one generation: four good rows, one bad."""
    write_generation(
        tmp_path / "out",
        1,
        [
            ("image-00000", [row("a"), row("b", start_s=0.0, end_s=2.5), row("ü 日本/🐕")], [bad_row("broken")]),
            ("image-00001", [row("d", caption="a dog", attributes='{"n":1}')], []),
        ],
    )
    commit_store(tmp_path / "out")
    return tmp_path / "out"


def test_rows_of_table_and_vectors_belong_together(out):
    store = open_store(out)
    assert store.items(["key"]).column("key").to_pylist() == ["a", "b", "ü 日本/🐕", "d"]
    assert store.items().schema.equals(item_schema())
    expected = unit_rows(
        np.concatenate([unit(3, sum(b"image-00000") + 1), unit(1, sum(b"image-00001") + 1)]).astype("f2")
    )
    assert np.array_equal(store.vectors(), expected)
    assert store.vectors().dtype == np.float32
    assert np.array_equal(store.vectors(slice(1, 3)), expected[1:3])
    ids = [item_id("d"), item_id("a"), item_id("d")]
    assert np.array_equal(store.vectors(ids), expected[[3, 0, 3]])
    assert store.ids().tolist() == [item_id("a"), item_id("b", (0.0, 2.5)), item_id("ü 日本/🐕"), item_id("d")]
    assert len(store) == 4
    with pytest.raises(InputError, match="no current item has the id 5"):
        store.vectors([5])


def test_blocks_cover_everything_in_order(out):
    store = open_store(out)
    blocks = list(store.iter_blocks(2))
    assert [len(ids) for ids, _, _ in blocks] == [2, 1, 1]
    assert np.array_equal(np.concatenate([ids for ids, _, _ in blocks]), store.ids())
    assert np.array_equal(np.concatenate([vectors for _, vectors, _ in blocks]), store.vectors())
    assert [key for _, _, table in blocks for key in table.column("key").to_pylist()] == ["a", "b", "ü 日本/🐕", "d"]


def test_the_manifest_says_what_is_there(out):
    manifest = Manifest.load(out)
    assert (manifest.space_id, manifest.dim, manifest.dtype, manifest.vector_dtype) == (
        "toy@0123456789ab",
        DIM,
        "float32",
        "float16",
    )
    assert (dict(manifest.counts), manifest.bad, manifest.gone) == ({"image": 4}, 1, 0)
    assert dict(manifest.tower_ids) == {"image": "vision:aa@toy@0123456789ab"}
    assert EmbeddingStore.open(out).verify() == {"items": 4, "bad": 1, "shards": 2}


def test_the_ledger_says_why(out):
    (bad,) = open_store(out).bad()
    assert (bad["key"], bad["stage"], bad["reason"]) == ("broken", "decode", "cut short")
    assert [json.loads(line) for line in (out / "bad.jsonl").read_text().splitlines()] == [bad]


def test_later_generations_stand_above_earlier_ones(out):
    write_generation(
        out,
        2,
        [("image-00000", [row("a", norm=0.9), row("new")], [bad_row("d")]), ("text-00000", [row("t", "text")], [])],
        gone=["ü 日本/🐕"],
    )
    before = open_store(out)
    assert len(before) == 4, "a generation that no manifest names is not seen"
    commit_store(out)
    store = open_store(out)
    assert store.items(["key"]).column("key").to_pylist() == ["b", "a", "new", "t"]
    assert store.items(["norm"]).column("norm").to_pylist()[1] == pytest.approx(0.9)
    assert [bad["key"] for bad in store.bad()] == ["broken", "d"]
    assert dict(store.manifest.counts) == {"image": 3, "text": 1}
    assert (store.manifest.bad, store.manifest.gone) == (2, 1)
    new = unit(2, sum(b"image-00000") + 2).astype("f2")
    assert np.array_equal(store.vectors([item_id("a")]), unit_rows(new[:1]))
    assert store.items(["key"], status=None).num_rows == 6
    write_generation(out, 3, [("image-00000", [row("ü 日本/🐕")], [])])
    commit_store(out)
    assert open_store(out).items(["key"]).column("key").to_pylist()[-1] == "ü 日本/🐕", "what was gone may come back"


def test_membership_by_bisection_is_membership():
    random = np.random.default_rng(0)
    for many in (0, 1, 50, 5000):
        known, ids = np.unique(random.integers(-9000, 9000, many)), random.integers(-9500, 9500, 700)
        assert np.array_equal(_among(ids, known), np.isin(ids, known))
        assert _among(ids[:0], known).size == 0


def test_a_shard_of_an_early_generation_does_not_sort_the_ids_of_the_later_ones(out, monkeypatch):
    """A thousand shards under two million later rows took ten minutes to open."""
    later = [row(f"new {number}") for number in range(300)]
    write_generation(out, 2, [(f"image-{number:05d}", later[number : number + 3], []) for number in range(0, 300, 3)])
    commit_store(out)
    before = EmbeddingStore.open(out).ids()
    write_generation(out, 3, [("image-00000", later[5:250], [])], gone=["new 7", "new 290"])
    sorted_sizes = []
    for name in ("isin", "unique"):
        plain = getattr(np, name)
        monkeypatch.setattr(np, name, lambda *a, plain=plain: sorted_sizes.append(np.size(a[-1])) or plain(*a))
    ids = commit_store(out).ids()
    assert sum(size > 200 for size in sorted_sizes) <= 2, sorted_sizes
    kept = np.setdiff1d(before, [item_id("new 290")])
    assert sorted(ids.tolist()) == sorted(kept.tolist())


def test_identities_of_generations_are_joined_or_refused(out):
    write_generation(out, 2, [("text-00000", [row("t", "text")], [])], identity=TEXT_IDENTITY)
    commit_store(out)
    manifest = open_store(out).manifest
    assert sorted(manifest.tower_ids) == ["image", "text"]
    assert manifest.tokenizer_id == "t"
    for changed, words in (
        ({"space_id": "other@1"}, "space toy@0123456789ab, this run has other@1"),
        ({"dim": 9}, "dimension 8, this run has 9"),
        ({"preset_ids": {"image": "reference:33"}}, "preset of image default:11, this run has reference:33"),
        (
            {"tower_ids": {"image": "vision:cc@toy"}},
            "tower of image vision:aa@toy@0123456789ab, this run has vision:cc@toy",
        ),
    ):
        with pytest.raises(MismatchError, match=words):
            manifest.identity.merged(replace(IDENTITY, **changed), "out")


def test_the_dtypes_of_generations_are_recorded_and_no_reason_to_refuse(out):
    for number, dtype in ((2, "bfloat16"), (3, "float32"), (4, "unknown")):
        write_generation(out, number, [], identity=replace(IDENTITY, dtype=dtype))
    commit_store(out)
    assert open_store(out).manifest.dtype == "bfloat16+float32+unknown"
    recorded = [json.loads((out / f"g000{number}/plan.json").read_text())["dtype"] for number in range(1, 5)]
    assert recorded == ["float32", "bfloat16", "float32", "unknown"]


def test_an_unfinished_first_run_is_no_store_but_can_be_looked_into(out):
    (out / "manifest.json").unlink()
    (out / "g0001" / "image-00001.done.json").unlink()
    with pytest.raises(MissingInputError, match="not finished: 1 of 2 shards are committed"):
        open_store(out)
    part = open_store(out, partial=True)
    assert len(part) == 3
    assert dict(part.manifest.counts) == {"image": 3}
    with pytest.raises(MissingInputError, match="no embeddings there"):
        open_store(out.parent / "nothing")


@pytest.mark.parametrize("ending", [".npy", ".parquet", ".done.json"])
@pytest.mark.parametrize("how", ["cut", "grown", "gone", "empty"])
def test_truncated_shards_are_refused_when_opened(out, ending, how):
    path = out / "g0001" / f"image-00000{ending}"
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": data[:-1], "grown": data + b"\x00", "empty": b""}[how])
    if ending == ".done.json" and how == "cut":
        assert json.loads(path.read_bytes()), "the last byte of a done-file is a line feed"
        path.write_bytes(data[:-3])
    with pytest.raises(BindSearchError, match="image-00000") as error:
        open_store(out)
    if ending != ".done.json":
        assert "run the same `bindsearch embed` again" in str(error.value)


@pytest.mark.parametrize("ending", [".npy", ".parquet"])
def test_altered_bytes_are_refused_when_read(out, ending):
    path = out / "g0001" / f"image-00000{ending}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    store = open_store(out) if ending == ".npy" else None
    with pytest.raises(BindSearchError, match="expected sha256"):
        (store or open_store(out)).verify()


def test_damaged_records_are_refused(out):
    manifest = out / "manifest.json"
    good = json.loads(manifest.read_bytes())
    manifest.write_text(json.dumps({**good, "format_version": 2}))
    with pytest.raises(UnsupportedError, match="format version 2; this bindsearch reads 1"):
        open_store(out)
    manifest.write_text(json.dumps({**good, "format": "something"}))
    with pytest.raises(UnsupportedError, match="expected format 'bindsearch-embeddings', got 'something'"):
        open_store(out)
    manifest.write_bytes(b'{"format": "bind')
    with pytest.raises(BindSearchError, match="truncated or altered"):
        open_store(out)


@pytest.mark.parametrize("left", [0, 4, 300])
def test_a_truncated_table_is_named_with_the_way_out(tmp_path, left):
    """Also plan.parquet, for which no checksum stands elsewhere."""
    path = tmp_path / "plan.parquet"
    pq.write_table(pa.table({"id": list(range(1000))}), path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(BindSearchError, match=r"plan\.parquet: cannot be read as Parquet: .*bindsearch embed SOURCES"):
        read_parquet(path, ["id"])
    with pytest.raises(FileNotFoundError):
        read_parquet(tmp_path / "gone.parquet")


def test_no_pickle_is_ever_read(out, tmp_path):
    path = out / "g0001" / "image-00000.npy"
    trap = np.array([{"a": 1}], dtype=object)
    np.save(path, trap, allow_pickle=True)
    data = path.read_bytes()
    done = out / "g0001" / "image-00000.done.json"
    record = json.loads(done.read_bytes())
    record["files"]["image-00000.npy"] = {"bytes": len(data), "sha256": __import__("hashlib").sha256(data).hexdigest()}
    done.write_text(json.dumps(record))
    with pytest.raises(BindSearchError, match="no float16 rows"):
        open_store(out).vectors()


def test_only_unit_rows_are_committed(tmp_path):
    for vectors, words in (
        (2 * unit(2), r"expected unit rows, got norm (2|1\.99)"),
        (np.full((2, DIM), np.nan, np.float32), "got norm nan in row 0"),
        (unit(3), r"expected shape \(2, 8\), got \(3, 8\)"),
        (unit(2, dim=4), r"expected shape \(2, 8\), got \(2, 4\)"),
    ):
        with pytest.raises(InputError, match=words):
            commit_shard(tmp_path, "s", vectors, [row("a"), row("b")], [], IDENTITY)
    assert not list(tmp_path.iterdir())


def test_a_shard_without_good_rows_is_a_shard(tmp_path):
    commit_shard(tmp_path, "s", np.zeros((0, DIM), np.float32), [], [bad_row("x")], IDENTITY)
    shard = Shard.load(tmp_path, "s")
    assert (shard.rows, shard.bad, shard.half_rows().shape) == (0, 1, (0, DIM))


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        commit_shard(
            tmp_path / name, "s", unit(3), [row("a"), row("b"), row("c", caption="é")], [bad_row("d")], IDENTITY
        )
    for ending in (".npy", ".parquet", ".done.json"):
        assert (tmp_path / "one" / f"s{ending}").read_bytes() == (tmp_path / "two" / f"s{ending}").read_bytes()


def test_readers_of_other_programs_read_the_rows(out):
    vectors = np.load(out / "g0001" / "image-00000.npy", mmap_mode="r", allow_pickle=False)
    assert vectors.shape == (3, DIM)
    assert vectors.dtype == np.float16


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(
            TEXTS, st.none() | TEXTS, st.none() | TEXTS, st.none() | st.tuples(st.floats(0, 1e6), st.floats(1, 9))
        ),
        min_size=1,
        max_size=12,
        unique_by=lambda each: (each[0], each[3]),
    )
)
def test_any_unicode_comes_back(tmp_path, rows):
    folder = tmp_path / "any"
    shutil.rmtree(folder, ignore_errors=True)
    good = []
    for key, caption, group, span in rows:
        times = {} if span is None else {"start_s": span[0], "end_s": span[0] + span[1]}
        good.append(row(key, caption=caption, group=group, **times))
    write_generation(folder, 1, [("image-00000", good, [])])
    commit_store(folder)
    assert open_store(folder).items().to_pylist() == good


def test_a_store_of_format_version_1_is_read_for_ever(tmp_path):
    """Two generations, a caption, a bad input, a changed listing; the figures stand beside the folder."""
    golden = Path(__file__).parent / "golden"
    facts = json.loads((golden / "store_v1.json").read_text())
    store = open_store(golden / "store_v1")
    assert store.verify() == {"items": 4, "bad": 1, "shards": 4}
    assert store.items().to_pylist() == facts["items"]
    assert store.bad() == facts["bad"]
    assert np.allclose(store.vectors().sum(axis=1), facts["half_sums"], atol=1e-5)
    assert np.allclose(store.vectors()[0], facts["first_row"], atol=1e-6)
    assert (store.manifest.gone, store.manifest.generations) == (1, ("g0001", "g0002"))
    copy = tmp_path / "copy"
    for name in ("manifest.json", "g0002/plan.json", "g0001/text-00000.done.json"):
        shutil.copytree(golden / "store_v1", copy)
        (copy / name).write_bytes((copy / name).read_bytes()[:-20])
        with pytest.raises(BindSearchError, match="truncated or altered"):
            open_store(copy)
        shutil.rmtree(copy)


# ---------------------------------------------------------------------------------------------------------------- files


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    commit_bytes(path, b"before")

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_files.os, "fsync", full)
    with pytest.raises(BindSearchError, match=r"no space left on the device\. What was committed stays"):
        commit_bytes(path, b"after")
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["x.json"]


def test_temporary_files_are_swept(tmp_path):
    commit_bytes(tmp_path / "keep.npy", b"1")
    (tmp_path / "left.npy.tmp").write_bytes(b"half")
    assert sweep_temps(tmp_path) == 1
    assert os.listdir(tmp_path) == ["keep.npy"]
