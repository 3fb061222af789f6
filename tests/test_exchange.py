"""Export and import: every layout gives back what it was given, bit for bit; foreign files are read or refused."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import picture_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_store import DIM, IDENTITY, TEXT_IDENTITY, bad_row, row, unit, write_generation

from bindsearch.cli import run
from bindsearch.embed import EmbedOptions, run_embed
from bindsearch.errors import InputError, MismatchError, MissingInputError, UnknownNameError, UnsupportedError
from bindsearch.exchange import LAYOUTS, export_store, import_store
from bindsearch.index.build import build_index
from bindsearch.index.change import Added
from bindsearch.models.spaces import load_space
from bindsearch.store import commit_store, open_store
from bindsearch.types import to_text

BOTH = IDENTITY.merged(TEXT_IDENTITY, "x")
NAMES = {"npy": "out", "parquet": "out.parquet", "hdf5": "out.h5", "clip-retrieval": "out"}


def make_store(folder, rows, identity=BOTH):
    shutil.rmtree(folder, ignore_errors=True)
    half = (len(rows) + 1) // 2
    shards = [("a-00000", rows[:half], [bad_row("broken")]), ("b-00000", rows[half:], [])]
    write_generation(folder, 1, shards, identity=identity)
    commit_store(folder)
    return open_store(folder)


def bits(store):
    return [half.tobytes() for half, _ in store.iter_half_blocks()]


def same(one, two):
    assert b"".join(bits(one)) == b"".join(bits(two))
    assert one.items().to_pylist() == two.items().to_pylist()
    assert one.manifest.identity == two.manifest.identity
    assert one.manifest.counts == two.manifest.counts


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)
SPANS = st.none() | st.tuples(st.floats(0, 1e6), st.floats(0.5, 9))
ROWS = st.lists(
    st.tuples(TEXTS, st.none() | TEXTS, SPANS, st.none() | st.integers(0, 2**62), st.none() | st.floats(0, 2e9)),
    min_size=1,
    max_size=9,
    unique_by=lambda each: (each[0], each[2]),
)


def rows_of(drawn, modality=None):
    made = []
    for number, (key, caption, span, size, mtime) in enumerate(drawn):
        times = {} if span is None else {"start_s": span[0], "end_s": span[0] + span[1]}
        attributes = json.dumps({"n": number}) if number % 2 else None
        kind = modality or ("image", "text")[number % 2]
        more = {"size": size, "mtime": mtime, "sha256": f"{number:064x}", "attributes": attributes, "norm": 0.25}
        made.append(row(key, kind, caption=caption, **times, **more))
    return made


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=ROWS)
def test_every_layout_round_trips_any_unicode(tmp_path, layout, drawn):
    identity = IDENTITY if layout == "clip-retrieval" else BOTH
    store = make_store(tmp_path / "in", rows_of(drawn, "image" if layout == "clip-retrieval" else None), identity)
    identity = {name: getattr(store.manifest.identity, name) for name in ("tower_ids", "preset_ids")}
    used = set(store.manifest.counts)
    file, back = tmp_path / "file" / NAMES[layout], tmp_path / "back"
    for path in (tmp_path / "file", back):
        shutil.rmtree(path, ignore_errors=True)
    assert export_store(tmp_path / "in", file, layout) == len(drawn)
    assert import_store(file, back, layout) == len(drawn)
    again = open_store(back)
    named = {name: {m: v for m, v in values.items() if m in used} for name, values in identity.items()}
    store.manifest = replace(store.manifest, identity=replace(store.manifest.identity, **named))
    same(store, again)
    assert again.bad() == [], "bad inputs have no vector to hand over"


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_what_is_in_the_way_of_an_export_is_said_before_anything_is_read(tmp_path, layout, monkeypatch):
    make_store(tmp_path / "in", [row("a")])
    out = tmp_path / "out"
    is_file = layout in ("parquet", "hdf5")
    out.mkdir() if is_file else out.write_text("mine", encoding="utf-8")
    monkeypatch.setattr(type(open_store(tmp_path / "in")), "iter_half_blocks", None)
    with pytest.raises(InputError, match="is a folder, expected a file" if is_file else "is a file, expected a folder"):
        export_store(tmp_path / "in", out, layout)
    assert out.is_dir() if is_file else out.read_text(encoding="utf-8") == "mine"


def test_an_export_that_was_cut_off_does_not_carry_the_earlier_ones_space(tmp_path, monkeypatch, caplog):
    make_store(tmp_path / "in", [row("a", "image")], IDENTITY)
    make_store(tmp_path / "other", [row("b", "image")], replace(IDENTITY, space_id="other@0123"))
    export_store(tmp_path / "in", tmp_path / "out", "npy")

    def cut_off(path, data):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr("bindsearch.exchange.npy.commit_bytes", cut_off)
        export_store(tmp_path / "other", tmp_path / "out", "npy")
    assert import_store(tmp_path / "out", tmp_path / "back", "npy") == 1
    assert open_store(tmp_path / "back").manifest.space_id == "unknown" and "does not say its space" in caplog.text


def test_pairs_of_image_and_text_share_rows_in_clip_retrievals_layout(tmp_path):
    rows = [row(f"i{n}", group=f"g{n}", caption=f"text {n}") for n in range(4)]
    rows += [row(f"t{n}", "text", group=f"g{n}", caption=f"text {n}") for n in (2, 0, 3, 1)]
    store = make_store(tmp_path / "in", rows)
    export_store(tmp_path / "in", tmp_path / "out", "clip-retrieval")
    images = np.load(tmp_path / "out/img_emb/img_emb_0.npy")
    texts = np.load(tmp_path / "out/text_emb/text_emb_0.npy")
    metadata = pq.read_table(tmp_path / "out/metadata/metadata_0.parquet")
    assert metadata.column("image_path").to_pylist() == [f"/x/i{n}" for n in range(4)]
    assert metadata.column("caption").to_pylist() == [f"text {n}" for n in range(4)]
    half = np.concatenate([part for part, _ in store.iter_half_blocks()])
    assert np.array_equal(images, half[:4])
    assert np.array_equal(texts, half[4:][[1, 3, 0, 2]])
    import_store(tmp_path / "out", tmp_path / "back", "clip-retrieval")
    back = open_store(tmp_path / "back")
    assert sorted(back.items(["key"]).column("key").to_pylist()) == sorted(f"{m}{n}" for m in "it" for n in range(4))
    for key_id in store.ids().tolist():
        assert np.array_equal(back.vectors([key_id]), store.vectors([key_id]))


def test_clip_retrievals_layout_refuses_what_it_cannot_hold(tmp_path):
    make_store(tmp_path / "in", [row("i", group="g"), row("t", "text")])
    with pytest.raises(UnsupportedError, match="1 images and 1 texts that do not stand in pairs"):
        export_store(tmp_path / "in", tmp_path / "out", "clip-retrieval")
    assert export_store(tmp_path / "in", tmp_path / "out", "clip-retrieval", modality="text") == 1
    make_store(tmp_path / "in", [row("i"), row("s", "audio")])
    with pytest.raises(UnsupportedError, match="holds images and texts, not audio"):
        export_store(tmp_path / "in", tmp_path / "out", "clip-retrieval")


def test_an_export_in_clip_retrievals_layout_replaces_the_one_before(tmp_path):
    store = make_store(tmp_path / "in", [row("a"), row("b"), row("t", "text")])
    identity = store.manifest.identity
    for modality, keys in (("image", ["a", "b"]), ("text", ["t"])):
        export_store(tmp_path / "in", tmp_path / "out", "clip-retrieval", modality=modality)
        import_store(tmp_path / "out", tmp_path / modality, "clip-retrieval", space_id=identity.space_id)
        assert open_store(tmp_path / modality).items(["key"]).column("key").to_pylist() == keys
    foreign_clip_retrieval(tmp_path / "theirs", [0, 1])
    before = {path: path.read_bytes() for path in (tmp_path / "theirs").rglob("*.*")}
    with pytest.raises(InputError, match=r"img_emb_00\.npy: not written by bindsearch.* Choose another output folder"):
        export_store(tmp_path / "in", tmp_path / "theirs", "clip-retrieval", modality="text")
    assert {path: path.read_bytes() for path in (tmp_path / "theirs").rglob("*.*")} == before


def foreign_clip_retrieval(folder, partitions, dim=6):
    """Write what clip-retrieval writes: float16 rows, pandas-like metadata, partitions numbered with padding."""
    vectors = []
    for number in partitions:
        for name in ("img_emb", "metadata"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        part = unit(3, seed=number, dim=dim).astype(np.float16)
        np.save(folder / f"img_emb/img_emb_{number:02d}.npy", part)
        columns = {"image_path": [f"/data/{number}/{n}.jpg" for n in range(3)], "caption": ["a", None, "c"]}
        columns |= {"similarity": [0.1, 0.2, 0.3], "key": [f"{number}{n}" for n in range(3)]}
        pq.write_table(pa.table(columns), folder / f"metadata/metadata_{number:02d}.parquet")
        vectors.append(part)
    return np.concatenate(vectors)


def test_clip_retrievals_own_files_are_read(tmp_path, caplog):
    vectors = foreign_clip_retrieval(tmp_path / "in", [10, 9, 2])
    import_store(tmp_path / "in", tmp_path / "out", "clip-retrieval", space_id="openclip@123456")
    store = open_store(tmp_path / "out")
    assert store.manifest.space_id == "openclip@123456"
    assert store.manifest.space_name == "openclip"
    rows = store.items(["key", "caption", "modality", "attributes"]).to_pylist()
    order = [(number, n) for number in (2, 9, 10) for n in range(3)]
    assert [each["key"] for each in rows] == [f"/data/{number}/{n}.jpg" for number, n in order]
    assert rows[0]["modality"] == "image"
    assert [each["caption"] for each in rows[:3]] == ["a", None, "c"]
    assert json.loads(rows[1]["attributes"]) == {"similarity": 0.2}
    half = np.concatenate([part for part, _ in store.iter_half_blocks()])
    assert np.array_equal(half, np.concatenate([vectors[6:], vectors[3:6], vectors[:3]]))
    assert not caplog.records


def test_vectors_without_a_space_are_marked_unknown(tmp_path, caplog):
    np.save(tmp_path / "x.npy", unit(3))
    with caplog.at_level(logging.WARNING):
        import_store(tmp_path / "x.npy", tmp_path / "out", "npy", modality="audio")
    assert "marked as 'unknown'. State it: --space-id NAME@HASH" in caplog.text
    store = open_store(tmp_path / "out")
    assert (store.manifest.space_id, dict(store.manifest.tower_ids)) == ("unknown", {})
    assert store.items(["key", "modality"]).to_pylist()[2] == {"key": "x.npy#2", "modality": "audio"}
    with pytest.raises(InputError, match="expected NAME@HASH"):
        import_store(tmp_path / "x.npy", tmp_path / "other", "npy", space_id="mini", modality="audio")
    with pytest.raises(InputError, match=r"which modality its rows are\. Say it: --modality NAME"):
        import_store(tmp_path / "x.npy", tmp_path / "other", "npy", space_id="mini@1")


def test_a_stated_space_that_is_at_hand_must_fit(tmp_path):
    space = load_space("tiny:0")
    for name, dim in (("fits", space.dim), ("other", space.dim * 2)):
        np.save(tmp_path / f"{name}.npy", np.eye(3, dim, dtype=np.float32))
    options = {"layout": "npy", "modality": "audio"}
    with pytest.raises(
        MismatchError, match=rf"dimension {space.dim * 2}, those of {space.space_id} have {space.dim}\."
    ):
        import_store(tmp_path / "other.npy", tmp_path / "out", space_id=space.space_id, **options)
    with pytest.raises(MismatchError, match=f"says tiny:0@1234, the space tiny:0 here is {space.space_id}"):
        import_store(tmp_path / "fits.npy", tmp_path / "out", space_id="tiny:0@1234", **options)
    assert import_store(tmp_path / "fits.npy", tmp_path / "out", space_id=space.space_id, **options) == 3
    assert import_store(tmp_path / "other.npy", tmp_path / "foreign", space_id="somebodys@1234", **options) == 3


def test_two_imports_of_unknown_spaces_are_not_put_together(tmp_path):
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", unit(3))
        import_store(tmp_path / f"{name}.npy", tmp_path / name, "npy", modality="audio")
    index = build_index(tmp_path / "a", tmp_path / "index")
    with pytest.raises(MismatchError, match=r"b comes from space unknown: these may be two\..* --space-id NAME@HASH"):
        index.add(tmp_path / "b")
    assert index.count == 3
    assert index.add(tmp_path / "a") == Added(unchanged=3)


def test_a_stated_space_must_be_the_files_own(tmp_path):
    make_store(tmp_path / "in", [row("a")], IDENTITY)
    export_store(tmp_path / "in", tmp_path / "x.parquet")
    with pytest.raises(MismatchError, match="made with space toy@0123456789ab, but --space-id says other@1"):
        import_store(tmp_path / "x.parquet", tmp_path / "out", space_id="other@1")
    assert import_store(tmp_path / "x.parquet", tmp_path / "out", space_id=IDENTITY.space_id) == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_foreign_vectors_are_normalised_and_their_norm_is_kept(dtype, tmp_path):
    vectors = (unit(5) * np.array([[0.5], [1.0], [3.0], [20.0], [1.0]])).astype(dtype)
    np.save(tmp_path / "x.npy", vectors)
    import_store(tmp_path / "x.npy", tmp_path / "out", "npy", space_id="a@1", modality="image")
    store = open_store(tmp_path / "out")
    assert np.allclose(store.vectors(), unit(5), atol=1.5e-3)
    assert store.items(["norm"]).column("norm").to_pylist() == pytest.approx([0.5, 1, 3, 20, 1], rel=2e-3)


def test_rows_without_direction_are_bad_and_not_fatal(tmp_path):
    vectors = unit(4)
    vectors[1] = 0
    vectors[3, 2] = np.nan
    np.save(tmp_path / "x.npy", vectors)
    assert import_store(tmp_path / "x.npy", tmp_path / "out", "npy", space_id="a@1", modality="image") == 4
    store = open_store(tmp_path / "out")
    assert store.items(["key"]).column("key").to_pylist() == ["x.npy#0", "x.npy#2"]
    assert {bad["key"]: bad["reason"] for bad in store.bad()} == {
        "x.npy#1": "the vector is zero or not finite",
        "x.npy#3": "the vector is zero or not finite",
    }
    assert np.array_equal(store.vectors(), open_store(tmp_path / "out").vectors(store.ids()))


def test_foreign_parquet_needs_one_column_of_vectors(tmp_path):
    vectors = unit(3)
    for kind in (pa.list_(pa.float32(), DIM), pa.list_(pa.float64()), pa.large_list(pa.float32())):
        table = pa.table({"path": ["a", "b", "c"], "vec": pa.array(vectors.tolist(), kind), "label": [1, 2, 3]})
        pq.write_table(table, tmp_path / "x.parquet")
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        import_store(tmp_path / "x.parquet", tmp_path / "out", space_id="a@1", modality="image")
        store = open_store(tmp_path / "out")
        assert store.items(["key", "attributes"]).to_pylist()[1] == {"key": "b", "attributes": '{"label":2}'}
        assert np.allclose(store.vectors(), vectors, atol=1.5e-3)
    for columns, words in (
        ({"path": ["a"]}, "expected one column of lists of floats"),
        ({"one": [[1.0]], "two": [[1.0]]}, "expected one column of lists of floats"),
        ({"emb": [[1.0, 0.0], [1.0]]}, "vectors of one length, got 1, 2"),
        ({"emb": [[1.0], None]}, "vectors of one length"),
    ):
        pq.write_table(pa.table(columns), tmp_path / "x.parquet")
        with pytest.raises(InputError, match=words):
            import_store(tmp_path / "x.parquet", tmp_path / "none", space_id="a@1", modality="image")


def test_foreign_columns_become_what_the_item_table_holds(tmp_path):
    table = {
        "emb": unit(3).tolist(),
        "group": [1, None, 3],
        "caption": [["a", "ä"], None, ["b"]],
        "size": [12.0, float("nan"), 3.0],
        "start_s": [0, None, 1],
        "end_s": [2, None, 3],
        "attributes": ["red", '{"n": 1}', "[1]"],
        "quality": [float("nan"), 2.5, float("inf")],
    }
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    import_store(tmp_path / "x.parquet", tmp_path / "out", space_id="a@1", modality="audio")
    rows = open_store(tmp_path / "out").items().to_pylist()
    names = ("group", "caption", "size", "start_s", "end_s", "attributes")
    assert [tuple(each[name] for name in names) for each in rows] == [
        ("1", '["a","\\u00e4"]', 12, 0.0, 2.0, '{"attributes":"red","quality":null}'),
        (None, None, None, None, None, '{"n": 1}'),
        ("3", '["b"]', 3, 1.0, 3.0, '{"attributes":"[1]","quality":"Infinity"}'),
    ]
    assert build_index(tmp_path / "out", tmp_path / "index").count == 3


@pytest.mark.parametrize("layout", ["parquet", "npy", "clip-retrieval"])
def test_foreign_times_become_text_and_damaged_cells_name_the_row(layout, tmp_path):
    """Nanoseconds are more than Python's own times can hold."""
    columns = {"caption": ["one", "two"], "seen": pa.array([0, 1], pa.timestamp("ns"))}
    if layout == "parquet":
        vectors = rows = tmp_path / "in"
        columns["emb"] = unit(2).tolist()
    elif layout == "npy":
        vectors, rows = tmp_path / "in" / "embeddings.npy", tmp_path / "in" / "items.parquet"
    else:
        vectors, rows = tmp_path / "in/img_emb/img_emb_0.npy", tmp_path / "in/metadata/metadata_0.parquet"
    for folder in {rows.parent, vectors.parent}:
        folder.mkdir(parents=True, exist_ok=True)
    if layout != "parquet":
        np.save(vectors, unit(2))
    pq.write_table(pa.table(columns), rows)

    def taken(out):
        import_store(tmp_path / "in", tmp_path / out, layout=layout, space_id="a@1", modality="image")
        return open_store(tmp_path / out).items().to_pylist()

    assert [json.loads(row["attributes"])["seen"] for row in taken("out")] == [
        "1970-01-01 00:00:00",
        "1970-01-01 00:00:00.000000001",
    ]
    columns["caption"] = pa.array([b"one", b"\xff"], pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table(columns), rows)
    with pytest.raises(InputError, match=rf"{rows.name}: column 'caption' of row 1: not UTF-8\. Write the file again"):
        taken("none")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"size": ["7", "1x1"]}, r"row 1: column 'size': expected a whole number, got '1x1'\. Give the column another"),
        ({"size": [1.0, 1.5]}, r"row 1: column 'size': expected a whole number, got 1\.5"),
        ({"mtime": [[1.0], None]}, r"row 0: column 'mtime': expected a number, got \[1\.0\]"),
        ({"norm": [True, False]}, "row 0: column 'norm': expected a number, got True"),
        ({"start_s": [1.0, 2.0]}, r"row 0: a span needs both ends in seconds, got start_s 1\.0 and end_s None"),
        ({"start_s": [None, 2.0], "end_s": [3.0, 4.0]}, "row 0: a span needs both ends"),
        ({"modality": ["image", "img"]}, r"Unknown modality 'img'.*x\.parquet, row 1\)"),
    ],
)
def test_foreign_columns_that_fit_nowhere_name_the_row(tmp_path, columns, words):
    pq.write_table(pa.table({"emb": unit(2).tolist(), **columns}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=words):
        import_store(tmp_path / "x.parquet", tmp_path / "out", space_id="a@1", modality="audio")
    assert not (tmp_path / "out" / "g0001").exists()


def test_an_unknown_modality_is_refused_before_anything_is_read(tmp_path):
    np.save(tmp_path / "x.npy", unit(2))
    with pytest.raises(UnknownNameError, match="Did you mean 'image'"):
        import_store(tmp_path / "x.npy", tmp_path / "out", "npy", modality="imagee")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damaged", ["", '{"space_id": "toy', "[]", '{"space_id": 3}', "\xff"])
def test_a_damaged_identity_names_its_file_and_the_way_out(tmp_path, damaged):
    make_store(tmp_path / "in", [row("a")], IDENTITY)
    export_store(tmp_path / "in", tmp_path / "x", "npy")
    (tmp_path / "x" / "identity.json").write_text(damaged, encoding="latin-1")
    with pytest.raises(
        InputError, match=r"identity\.json: what it says of its space cannot be read: .*bindsearch export"
    ):
        import_store(tmp_path / "x", tmp_path / "out", "npy")


def test_the_command_tells_usable_rows_from_those_without_direction(tmp_path, capsys):
    vectors = unit(4)
    vectors[[0, 1]], vectors[3, 2] = 0, np.nan
    told = ["--format", "npy", "--space-id", "a@1", "--modality", "image"]
    for name, rows in (("some", vectors), ("none", np.zeros((3, DIM), dtype=np.float32)), ("all", unit(2))):
        np.save(tmp_path / f"{name}.npy", rows)
    out = tmp_path / "out"
    assert run(["import", str(tmp_path / "some.npy"), "-o", str(out), *told]) == 0
    assert capsys.readouterr().err.strip() == f"read 1 row into {out}; 3 have no direction, see {out / 'bad.jsonl'}"
    assert run(["import", str(tmp_path / "all.npy"), "-o", str(tmp_path / "all"), *told]) == 0
    assert capsys.readouterr().err.strip() == f"read 2 rows into {tmp_path / 'all'}"
    nothing = tmp_path / "nothing"
    assert run(["import", str(tmp_path / "none.npy"), "-o", str(nothing), *told]) == 4
    assert "none of its 3 rows has a direction" in capsys.readouterr().err
    np.save(tmp_path / "none.npy", unit(3))
    assert run(["import", str(tmp_path / "none.npy"), "-o", str(nothing), *told]) == 0


def test_hdf5_byte_strings_of_any_encoding_are_keys(tmp_path):
    """h5py calls byte strings ASCII whatever they hold; no two keys become one."""
    names = ["dög.png".encode(), b"\xff.png", b"\xfe.png"]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["features"] = unit(3)
        file["keys"] = np.array(names)
    import_store(tmp_path / "x.h5", tmp_path / "out", "hdf5", space_id="a@1", modality="image")
    keys = open_store(tmp_path / "out").items(["key"]).column("key").to_pylist()
    assert keys == [to_text(os.fsdecode(name)) for name in names] == ["dög.png", r"\udcff.png", r"\udcfe.png"]


@pytest.mark.parametrize("name", ["key", "keys"])
def test_foreign_hdf5_is_read_and_its_links_are_not_followed(name, tmp_path):
    vectors = unit(3)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["features"] = vectors
        file[name] = ["ä", "b", "c"]
        file["labels"] = np.arange(3)
    import_store(tmp_path / "x.h5", tmp_path / "out", "hdf5", space_id="a@1", modality="audio")
    store = open_store(tmp_path / "out")
    assert store.items(["key"]).column("key").to_pylist() == ["ä", "b", "c"]
    assert np.allclose(store.vectors(), vectors, atol=1.5e-3)
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["features"] = h5py.ExternalLink(str(tmp_path / "x.h5"), "features")
    with pytest.raises(InputError, match="expected a dataset named 'embeddings'"):
        import_store(tmp_path / "link.h5", tmp_path / "none", "hdf5", space_id="a@1", modality="audio")
    (tmp_path / "raw").write_bytes(vectors.tobytes())
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file.create_dataset("features", vectors.shape, "f4", external=[(str(tmp_path / "raw"), 0, vectors.nbytes)])
    with pytest.raises(InputError, match="lies in other files, which are not read"):
        import_store(tmp_path / "raw.h5", tmp_path / "none", "hdf5", space_id="a@1", modality="audio")


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_what_is_no_such_layout_is_refused(layout, tmp_path):
    (tmp_path / "x").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="x: "):
        import_store(tmp_path / "x", tmp_path / "out", layout, modality="image")
    with pytest.raises(MissingInputError, match="no such file"):
        import_store(tmp_path / "gone", tmp_path / "out", layout)


def test_pickled_arrays_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"x\.npy: not a \.npy file of numbers: Python objects"):
        import_store(tmp_path / "x.npy", tmp_path / "out", "npy", modality="image")


def test_doubles_counts_and_stores_that_are_there_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", unit(3))
    pq.write_table(pa.table({"path": ["a", "b", "a"], "emb": unit(3).tolist()}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="key 'a' is there twice"):
        import_store(tmp_path / "x.parquet", tmp_path / "out", modality="image")
    with pytest.raises(UnknownNameError, match="Did you mean 'parquet'"):
        export_store(tmp_path / "x", tmp_path / "y", "parket")
    make_store(tmp_path / "store", [row("a")])
    with pytest.raises(InputError, match="holds embeddings already"):
        import_store(tmp_path / "x.npy", tmp_path / "store", "npy", modality="image")
    with pytest.raises(MissingInputError, match="nothing to export"):
        export_store(tmp_path / "store", tmp_path / "y", modality="video")


def test_embedding_goes_on_over_an_import(tmp_path):
    """A run of the same space adds to imported rows and never marks them as gone; another space is refused."""
    space = load_space("tiny", device="cpu")
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture_bytes())
    np.save(tmp_path / "x.npy", unit(3, dim=space.dim))
    import_store(tmp_path / "x.npy", tmp_path / "out", "npy", space_id=space.space_id, modality="audio")
    report = run_embed([folder], tmp_path / "out", space, options=EmbedOptions(workers=0))
    assert (report.embedded, report.items, report.gone) == ({"image": 1}, 4, 0)
    (folder / "b.png").write_bytes(picture_bytes(seed=1))
    assert run_embed([folder], tmp_path / "out", space, options=EmbedOptions(workers=0)).items == 5
    assert dict(open_store(tmp_path / "out").manifest.counts) == {"audio": 3, "image": 2}
    with pytest.raises(MismatchError, match="this run has tiny:1@"):
        run_embed([folder], tmp_path / "out", load_space("tiny:1", device="cpu"), options=EmbedOptions(workers=0))


def test_real_embeddings_travel_through_every_layout(tmp_path):
    """What the embedder itself makes, spans and attributes among it, and not what a test makes up."""
    golden = open_store(Path(__file__).parent / "golden" / "store_v1")
    for layout in sorted(set(LAYOUTS) - {"clip-retrieval"}):
        export_store(golden.path, tmp_path / layout / NAMES[layout], layout)
        import_store(tmp_path / layout / NAMES[layout], tmp_path / layout / "back", layout)
        same(golden, open_store(tmp_path / layout / "back"))
