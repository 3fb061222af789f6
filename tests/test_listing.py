"""Listings: what is found, in which order, under which key, as which modality; what is ignored and what is broken."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bindsearch.errors import DecodeError, InputError, MissingInputError, UnknownNameError, UnsupportedError
from bindsearch.listing import BrokenItem, FusedItem, Listing, collect, parse_fusion
from bindsearch.listing.items import LONGEST_TEXT_BYTES
from bindsearch.listing.naming import to_path
from bindsearch.listing.tars import expand_braces
from bindsearch.sources import Source
from bindsearch.types import to_text


def write(root, *names, data=b"x"):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def pairs(items):
    return [(item.key, item.modality) for item in items]


# ------------------------------------------------------------------------------------------------------------- folders


def test_a_folder_is_walked_in_order_with_modalities_by_suffix(tmp_path):
    write(tmp_path, "b.jpg", "a.wav", "sub/c.mp4", "sub/deep/d.txt", "e.depth.png", "f.thermal.PNG", "g.imu.csv")
    write(tmp_path, "notes.md", "plain.csv", "archive.npy", "Makefile", ".hidden.jpg", ".git/x.jpg", ".jpg")
    listing = Listing([tmp_path])
    assert pairs(listing) == [
        ("a.wav", "audio"),
        ("b.jpg", "image"),
        ("e.depth.png", "depth"),
        ("f.thermal.PNG", "thermal"),
        ("g.imu.csv", "imu"),
        ("sub/c.mp4", "video"),
        ("sub/deep/d.txt", "text"),
    ]
    assert dict(listing.ignored) == {".md": 1, ".csv": 1, ".npy": 1, "(none)": 1}
    assert listing.hidden == 3


def test_sources_are_absolute_and_sizes_and_times_are_kept(tmp_path, monkeypatch):
    write(tmp_path, "in/a.jpg", data=b"12345")
    os.utime(tmp_path / "in/a.jpg", (1000, 1234.5))
    monkeypatch.chdir(tmp_path)
    (item,) = collect("in")
    assert (item.key, item.source) == ("a.jpg", str(tmp_path / "in" / "a.jpg"))
    assert (item.size_bytes, item.mtime_s) == (5, 1234.5)


def test_same_stems_are_grouped_by_path_and_never_by_name_alone(tmp_path):
    write(tmp_path, "one/x.jpg", "one/x.wav", "two/x.jpg", "two/y.jpg", "one/x.depth.png")
    groups = {item.key: item.group for item in collect(tmp_path)}
    assert groups == {
        "one/x.jpg": "one/x",
        "one/x.wav": "one/x",
        "one/x.depth.png": "one/x",
        "two/x.jpg": None,
        "two/y.jpg": None,
    }


def test_a_text_of_the_same_stem_is_caption_and_item(tmp_path):
    write(tmp_path, "a/x.jpg", "a/y.jpg", "b/x.jpg")
    write(tmp_path, "a/x.txt", data="  a dög on the beach\n".encode())
    found = {item.key: item for item in collect(tmp_path)}
    assert found["a/x.jpg"].caption == found["a/x.txt"].caption == "a dög on the beach"
    assert found["a/x.jpg"].group == found["a/x.txt"].group == "a/x"
    assert found["a/y.jpg"].caption is None
    assert found["b/x.jpg"].caption is None
    assert found["a/x.txt"].modality == "text"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-8"])
@pytest.mark.parametrize("words", ["ein Hündchen 🐕", "🐕 é" * 3000])
def test_captions_are_read_as_texts_are(tmp_path, encoding, words):
    data = (f"\ufeff{words}" if encoding == "utf-16-be" else words).encode(encoding)
    write(tmp_path, "x.txt", data=data)
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(tmp_path / "x.txt", "x.txt")
    found = [item.caption for item in Listing([tmp_path])]
    assert len(found) == 2
    assert all(caption and words.startswith(caption) for caption in found), "cut or garbled"


def test_captions_stay_when_only_images_are_asked_for(tmp_path):
    write(tmp_path, "x.jpg")
    write(tmp_path, "x.txt", data=b"words")
    listing = Listing([tmp_path], modality="image")
    (item,) = listing
    assert (item.key, item.caption, item.group) == ("x.jpg", "words", None)
    assert dict(listing.ignored) == {".txt": 1}


def test_modality_applies_to_files_that_could_be_of_it(tmp_path):
    write(tmp_path, "a.png", "b.depth.png", "c.jpg", "d.wav", "e.mp4")
    assert pairs(Listing([tmp_path], modality="depth")) == [("a.png", "depth"), ("b.depth.png", "depth")]
    assert pairs(Listing([tmp_path], modality="audio")) == [("d.wav", "audio"), ("e.mp4", "audio")]
    assert pairs(Listing([tmp_path / "d.wav"], modality="imu"))[0][1] == "imu", "a file that is named is taken at once"
    with pytest.raises(UnknownNameError, match="Did you mean 'depth'"):
        Listing([tmp_path], modality="deph")


def test_links_are_followed_once_and_never_in_circles(tmp_path):
    write(tmp_path, "outside/z.jpg")
    write(tmp_path, "in/a/x.jpg")
    (tmp_path / "in/a/up").symlink_to(tmp_path / "in")
    (tmp_path / "in/a/self").symlink_to(".")
    (tmp_path / "in/link").symlink_to(tmp_path / "outside")
    (tmp_path / "in/again").symlink_to(tmp_path / "outside")
    (tmp_path / "in/0.jpg").symlink_to(tmp_path / "outside/z.jpg")
    listing = Listing([tmp_path / "in"])
    assert [item.key for item in listing] == ["0.jpg", "a/x.jpg", "again/z.jpg"]
    assert listing.linked == 3


def test_the_output_folder_is_not_entered(tmp_path):
    write(tmp_path, "a.jpg", "out/b.jpg")
    assert [item.key for item in Listing([tmp_path], skip=[tmp_path / "out"])] == ["a.jpg"]


def test_a_folder_named_like_a_picture_is_broken_and_entered(tmp_path):
    write(tmp_path, "x.jpg/inside.png")
    folder, inside = collect(tmp_path)
    assert isinstance(folder, BrokenItem)
    assert (folder.key, folder.modality, folder.stage) == ("x.jpg", "image", "read")
    assert inside.key == "x.jpg/inside.png"


def test_names_that_are_no_utf8_make_text_that_leads_back(tmp_path):
    raw = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    (item,) = collect(tmp_path)
    assert item.key == "caf\\udce9.jpg"
    item.source.encode("utf-8")
    assert os.fsencode(to_path(item.source)) == raw


@given(st.binary(min_size=1, max_size=30).filter(lambda name: b"/" not in name and b"\x00" not in name))
def test_any_name_leads_back(name):
    text = to_text(os.fsdecode(b"/nowhere/" + name))
    text.encode("utf-8")
    if b"\\udc" not in name:
        assert os.fsencode(to_path(text)) == b"/nowhere/" + name


# --------------------------------------------------------------------------------------------------------------- lists


def test_file_lists_are_relative_to_themselves(tmp_path, monkeypatch):
    write(tmp_path, "media/a.jpg", "media/b.wav")
    (tmp_path / "media/files.lst").write_text("a.jpg\n\n./b.wav\r\nnotes.md\nhttps://host/pic.png?size=1\n")
    listing = Listing([tmp_path / "media/files.lst"])
    items = list(listing)
    assert pairs(items) == [("a.jpg", "image"), ("b.wav", "audio"), ("https://host/pic.png?size=1", "image")]
    assert items[1].source == str(tmp_path / "media/b.wav")
    assert items[2].source == "https://host/pic.png?size=1"
    assert dict(listing.ignored) == {".md": 1}
    monkeypatch.chdir(tmp_path)
    assert pairs(collect("@media/files.lst")) == pairs(items)


def test_what_is_there_under_a_name_with_an_at_sign_is_no_list(tmp_path, monkeypatch):
    write(tmp_path, "@photos/x.jpg", "@y.png", "z.wav")
    write(tmp_path, "list", data=b"z.wav\n")
    monkeypatch.chdir(tmp_path)
    listing = Listing(["@photos", "@y.png", "@list"])
    assert pairs(listing) == [("x.jpg", "image"), ("@y.png", "image"), ("z.wav", "audio")]
    assert listing.origins == [f"{tmp_path}/@photos", f"{tmp_path}/@y.png", f"@{tmp_path}/list"]


def test_a_manifest_stays_one_whatever_its_rows_are_read_as(tmp_path, monkeypatch):
    write(tmp_path, "x.imu.csv", "a.dat")
    write(tmp_path, "m.csv", data=b"path\na.dat\n")
    monkeypatch.chdir(tmp_path)
    assert pairs(Listing(["m.csv"], modality="image")) == [("a.dat", "image")]
    assert pairs(Listing(["m.csv"], modality="imu")) == [("m.csv", "imu")], "a recording that says so"
    assert pairs(Listing(["x.imu.csv"], modality="image")) == [("x.imu.csv", "image")]
    assert pairs(Listing(["x.imu.csv"])) == [("x.imu.csv", "imu")]


def test_stdin_holds_paths_or_texts(tmp_path, monkeypatch):
    write(tmp_path, "a.jpg")
    monkeypatch.chdir(tmp_path)
    (item,) = Listing(["-"], stdin=io.StringIO("a.jpg\n"))
    assert (item.key, item.source) == ("a.jpg", str(tmp_path / "a.jpg"))
    texts = list(Listing(["-"], modality="text", stdin=io.StringIO("a dog\n\nwaves at night\n")))
    assert [(item.key, item.literal, item.caption) for item in texts] == [
        ("stdin#1", "a dog", "a dog"),
        ("stdin#3", "waves at night", "waves at night"),
    ]


def test_a_line_of_stdin_that_is_not_utf8_is_bad_and_the_rest_goes_on(tmp_path, monkeypatch):
    lines = "a dog\nein Bär\nwaves\r\n".encode("latin-1")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), "utf-8", "strict"))
    one, two, three = Listing(["-"], modality="text")
    assert [one.literal, three.key, three.literal] == ["a dog", "stdin#3", "waves"]
    assert isinstance(two, BrokenItem)
    assert (two.key, two.reason) == ("stdin#2", "stdin, line 2: the text is not UTF-8")
    name = os.fsdecode(b"B\xe4r.jpg")
    write(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    (item,) = Listing(["-"], stdin=io.TextIOWrapper(io.BytesIO(b"B\xe4r.jpg\n"), "utf-8", "strict"))
    assert item.size_bytes is not None


def test_what_is_not_there_is_said_before_any_work(tmp_path):
    with pytest.raises(MissingInputError, match="gone: no such file or folder"):
        Listing([tmp_path / "gone"])
    with pytest.raises(MissingInputError, match="no sources"):
        Listing([])
    write(tmp_path, "x.tar.gz")
    with pytest.raises(UnsupportedError, match="Decompress it first"):
        Listing([tmp_path / "x.tar.gz"])


# ----------------------------------------------------------------------------------------------------------- manifests

ROWS = [
    {"path": "a.jpg", "key": "first", "caption": "a dog", "group": "g", "year": 1999, "tags": ["x", "y"]},
    {"path": "sub/b.wav", "start_s": 1.5, "end_s": 4},
    {"text": "just words", "lang": "en"},
    {"path": "c.dat", "modality": "imu"},
]


def as_manifest(kind, folder, rows):
    path = folder / f"list.{kind}"
    names = list(dict.fromkeys(name for row in rows for name in row))
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif kind == "csv":
        cells = [
            [json.dumps(row[n]) if isinstance(row.get(n), list) else row.get(n, "") for n in names] for row in rows
        ]
        lines = [",".join(f'"{str(cell).replace(chr(34), chr(34) * 2)}"' for cell in line) for line in [names, *cells]]
        path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist([{n: row.get(n) for n in names} for row in rows]), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_manifests_of_each_kind_say_the_same(kind, tmp_path):
    write(tmp_path, "a.jpg", "sub/b.wav", "c.dat")
    path = as_manifest(kind, tmp_path, ROWS)
    first, sound, text, motion = collect(path)
    assert (first.key, first.modality, first.caption, first.group) == ("first", "image", "a dog", "g")
    assert {name: str(value) for name, value in first.attributes.items() if name != "tags"} == {"year": "1999"}
    assert first.attributes["tags"] in (["x", "y"], '["x", "y"]')
    assert (sound.key, sound.span, sound.source) == ("sub/b.wav", (1.5, 4.0), str(tmp_path / "sub/b.wav"))
    assert (text.key, text.literal, text.caption) == (f"list.{kind}#2", "just words", "just words")
    assert text.attributes == {"lang": "en"}
    assert (motion.modality, motion.size_bytes) == ("imu", 1)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_text_column_makes_texts(kind, tmp_path):
    path = as_manifest(
        kind, tmp_path, [{"title": "one", "n": "7"}, {"title": "two", "n": "8"}, {"title": "", "n": "9"}]
    )
    one, two, blank = Listing([path], text_column="title")
    assert [(item.key, item.literal, dict(item.attributes)) for item in (one, two)] == [
        (f"list.{kind}#0", "one", {"n": "7"}),
        (f"list.{kind}#1", "two", {"n": "8"}),
    ]
    assert isinstance(blank, BrokenItem)
    assert "row 2: nothing to embed" in blank.reason


def test_a_line_of_json_may_lack_the_text_column(tmp_path):
    path = as_manifest("jsonl", tmp_path, [{"n": 7}, {"title": "two", "n": 8}])
    lacking, two = Listing([path], text_column="title")
    assert isinstance(lacking, BrokenItem)
    assert (two.key, two.literal) == ("list.jsonl#1", "two")
    with pytest.raises(InputError, match="expected a column 'titel', got n"):
        list(Listing([path], text_column="titel"))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"path": "a.jpg", "modality": "imagee"}, "Did you mean 'image'"),
        ({"path": "a.wav", "start_s": 3, "end_s": 2}, "expected 0 <= start_s < end_s, got 3 and 2"),
        ({"path": "a.wav", "start_s": 3}, "expected two numbers"),
        ({"key": "k", "fuse": "video*0.95 + sound*0.05"}, "names the modality 'sound'"),
        ({"key": "k", "fuse": "image*1e999 + text", "image": "a.jpg", "text": "a"}, "weights finite and not 0"),
        ({"path": "a.jpg", "key": "a\x00b"}, "NUL"),
    ],
)
def test_rows_that_cannot_be_meant_are_broken_and_the_others_are_not(row, words, tmp_path):
    path = as_manifest("jsonl", tmp_path, [{"path": "fine.jpg"}, row, {"path": "also.jpg"}])
    fine, broken, also = collect(path)
    assert (fine.key, also.key) == ("fine.jpg", "also.jpg")
    assert isinstance(broken, BrokenItem)
    assert (broken.key, broken.modality, broken.source) == ("list.jsonl#1", "row", str(path))
    assert "row 1" in broken.reason
    assert words in broken.reason


def not_utf8(*values):
    """An Arrow column of texts, whatever bytes they hold."""
    return pa.array(values, pa.binary()).cast(pa.string(), safe=False)


def test_times_that_python_cannot_hold_are_text_and_cells_that_are_none_are_one_broken_row(tmp_path):
    table = pa.table(
        {
            "path": not_utf8(b"a.jpg", b"\xff.jpg", b"c.jpg"),
            "seen": pa.array([1_000_000_000_000_000_001, 0, 1_000_000_000], pa.timestamp("ns")),
            "day": pa.array([0, 0, 2**30], pa.date32()),
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    first, broken, last = collect(tmp_path / "m.parquet")
    assert dict(first.attributes) == {"seen": "2001-09-09 01:46:40.000000001", "day": "1970-01-01"}
    assert (last.attributes["seen"], last.key) == ("1970-01-01 00:00:01", "c.jpg")
    assert "out of range" in last.attributes["day"]
    assert isinstance(broken, BrokenItem)
    assert broken.reason == f"{tmp_path / 'm.parquet'}, row 1: column 'path' of row 1: not UTF-8"
    pq.write_table(table.slice(1, 1), tmp_path / "m.parquet")
    with pytest.raises(InputError, match=r"m\.parquet, column 'path' of row 0: not UTF-8\. No other row can be read"):
        list(collect(tmp_path / "m.parquet"))


def test_lines_that_are_no_rows_are_broken(tmp_path):
    lines = [
        b'{"path": "a.jpg"}',
        b"{'path': 1}",
        b"",
        b"[1]",
        b'{"text": "\xff"}',
        b"[" * 100_000,
        b'{"path": "b.jpg"}',
    ]
    write(tmp_path, "x.jsonl", data=b"\n".join(lines))
    first, *broken, last = collect(tmp_path / "x.jsonl")
    assert (first.key, last.key) == ("a.jpg", "b.jpg")
    assert [item.key for item in broken] == ["x.jsonl#1", "x.jsonl#2", "x.jsonl#3", "x.jsonl#4"]
    for item, words in zip(
        broken, ("line 2: not JSON", "line 4: expected an object, got list", "utf-8", ""), strict=True
    ):
        assert isinstance(item, BrokenItem)
        assert words in item.reason
    write(tmp_path, "y.csv", data=b"path,caption\na.jpg,fine\nb.jpg,caf\xe9\nd.jpg,\n")
    first, latin, last = collect(tmp_path / "y.csv")
    assert (first.key, last.key) == ("a.jpg", "d.jpg")
    assert isinstance(latin, BrokenItem)
    assert "row 1: line 3: not UTF-8" in latin.reason


@pytest.mark.parametrize("size", [131_073, LONGEST_TEXT_BYTES])
def test_a_cell_of_a_csv_may_be_as_long_as_a_text(size, tmp_path):
    """Lines within a long quoted text are no rows."""
    text = ("a,b\n" * size)[:size]
    write(tmp_path, "x.csv", data=f'key,text\none,"{text}"\ntwo,short\n'.encode())
    one, two = collect(tmp_path / "x.csv")
    assert (one.key, one.literal, two.key, two.literal) == ("one", text, "two", "short")


def test_a_cell_that_is_too_long_for_a_text_is_one_broken_row(tmp_path):
    text = b"a,b\n" * (LONGEST_TEXT_BYTES // 4) + b"."
    write(tmp_path, "x.csv", data=b'key,text\none,"' + text + b'"\ntwo,short\n')
    one, two = collect(tmp_path / "x.csv")
    assert isinstance(one, BrokenItem)
    assert (one.key, two.key, two.literal) == ("one", "two", "short")
    assert "over the limit" in one.reason


@pytest.fixture
def small_cells(monkeypatch):
    before = csv.field_size_limit(131_072)
    monkeypatch.setattr("bindsearch.listing.tables._LONGEST_CELL", 200_000)
    yield
    assert csv.field_size_limit(before) == 200_000


def test_nothing_is_seen_of_a_csv_after_a_cell_without_end(small_cells, tmp_path):
    rows = "".join(f"r{number},text {number}\n" for number in range(20_000))
    write(tmp_path, "x.csv", data=f'key,text\na,fine\nb,"never closed\n{rows}'.encode())
    fine, broken = collect(tmp_path / "x.csv")
    assert (fine.key, fine.literal) == ("a", "fine")
    assert isinstance(broken, BrokenItem)
    assert broken.key == "x.csv#1"
    assert "row 1: after line 2: not CSV: field larger than field limit" in broken.reason
    assert "rows after line 2 are not seen" in broken.reason


def test_nothing_is_seen_of_a_csv_after_a_quote_that_is_never_closed(tmp_path):
    write(tmp_path, "x.csv", data=b'key,text\na,fine\nb,"never closed\nc,other\n')
    fine, broken = collect(tmp_path / "x.csv")
    assert (fine.key, fine.literal) == ("a", "fine")
    assert isinstance(broken, BrokenItem)
    assert "after line 2: a quote is never closed; rows after line 2 are not seen" in broken.reason
    write(tmp_path, "y.csv", data=b'key,text\na,fine\nb,"the last one')
    assert [item.literal for item in collect(tmp_path / "y.csv")] == ["fine", "the last one"]


def test_manifests_that_are_none_are_refused(tmp_path):
    write(tmp_path, "columns.csv", data=b"file,words\na.jpg,hello\n")
    with pytest.raises(InputError, match="expected a column 'path' or 'text' or 'fuse', got file, words"):
        list(collect(tmp_path / "columns.csv"))
    write(tmp_path, "broken.jsonl", data=b'{"path": \nand more\n')
    with pytest.raises(InputError, match=r"line 1: not JSON.* No other row can be read either"):
        list(collect(tmp_path / "broken.jsonl"))
    write(tmp_path, "latin.csv", data=b"path,\xe9\na.jpg,b\n")
    with pytest.raises(InputError, match="line 1: not a CSV in UTF-8"):
        list(collect(tmp_path / "latin.csv"))
    write(tmp_path, "broken.parquet", data=b"PAR1 and nothing")
    with pytest.raises(InputError, match="not a Parquet file"):
        list(collect(tmp_path / "broken.parquet"))


def test_a_row_with_nothing_to_embed_is_broken_and_not_fatal(tmp_path):
    path = as_manifest("jsonl", tmp_path, [{"path": "a.jpg"}, {"caption": "alone"}, {"path": "x.docx"}])
    fine, empty, unknown = collect(path)
    assert not isinstance(fine, BrokenItem)
    assert "no path and no text" in empty.reason
    assert "names no modality" in unknown.reason


def test_a_text_without_end_is_broken(tmp_path):
    path = as_manifest(
        "jsonl", tmp_path, [{"text": "x" * (LONGEST_TEXT_BYTES + 1)}, {"text": "x" * LONGEST_TEXT_BYTES}]
    )
    long, fine = collect(path)
    assert isinstance(long, BrokenItem)
    assert fine.size_bytes == LONGEST_TEXT_BYTES
    assert len(fine.caption) == 2000


def test_fused_rows_have_a_column_a_part(tmp_path):
    write(tmp_path, "v.mp4", "s.wav")
    row = {"key": "clip", "fuse": "video*0.95 + audio*0.05", "video": "v.mp4", "audio": "s.wav", "split": "test"}
    (item,) = collect(as_manifest("jsonl", tmp_path, [row]))
    assert isinstance(item, FusedItem)
    assert [(part.modality, part.weight, Path(part.source).name) for part in item.parts] == [
        ("video", 0.95, "v.mp4"),
        ("audio", 0.05, "s.wav"),
    ]
    assert (item.key, item.modality, item.source) == ("clip", "video", str(tmp_path / "v.mp4"))
    assert item.attributes == {"fuse": "video*0.95 + audio*0.05", "video": "v.mp4", "audio": "s.wav", "split": "test"}
    (broken,) = collect(as_manifest("jsonl", tmp_path, [{**row, "audio": ""}]))
    assert "that column is empty" in broken.reason


def test_fusions_are_read_as_written():
    known = ("audio", "image", "text")
    assert parse_fusion("image+audio", known, "x") == (("image", 1.0), ("audio", 1.0))
    assert parse_fusion(" image * .5 - text*2e-1 ", known, "x") == (("image", 0.5), ("text", -0.2))
    for wrong in ("", "image", "image audio", "image*0 + audio", "image + image", "image*x + audio", "2*image + audio"):
        with pytest.raises(InputError, match=r"^x: fuse"):
            parse_fusion(wrong, known, "x")


# ---------------------------------------------------------------------------------------------------------------- tars


def make_tar(path, members, fmt=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=fmt) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


MEMBERS = [
    ("0001.jpg", b"picture one"),
    ("0001.txt", b"a caption"),
    ("0001.json", b"{}"),
    ("0002.jpg", b"picture two"),
    ("sub/0003.depth.png", b"depth"),
    ("sub/0003.wav", b"sound"),
    ("ünïcödé " + "x" * 120 + ".png", b"long name"),
]


@pytest.mark.parametrize("fmt", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tars_are_scanned_without_unpacking(fmt, tmp_path):
    path = make_tar(tmp_path / "000.tar", MEMBERS, fmt)
    listing = Listing([tmp_path])
    items = list(listing)
    assert [item.key for item in items] == [f"000.tar/{name}" for name, _ in MEMBERS if not name.endswith(".json")]
    data = path.read_bytes()
    expected = dict(MEMBERS)
    for item in items:
        assert item.source == str(path)
        assert data[item.offset : item.offset + item.size_bytes] == expected[item.member]
    found = {item.member: item for item in items}
    assert found["0001.jpg"].caption == "a caption"
    assert found["0001.jpg"].group == found["0001.txt"].group == "000.tar/0001"
    assert found["0002.jpg"].group is None
    assert found["sub/0003.wav"].group == "000.tar/sub/0003"
    assert found["sub/0003.depth.png"].modality == "depth"
    assert dict(listing.ignored) == {".json": 1}


def test_a_tar_that_is_cut_gives_what_is_whole_and_says_where(tmp_path):
    path = make_tar(tmp_path / "a.tar", [(f"{n:04d}.jpg", bytes([n]) * 3000) for n in range(5)])
    whole = path.read_bytes()
    path.write_bytes(whole[: 3 * 3584 + 512 + 1000])
    items = list(collect(path))
    good = [item.key.rsplit("/", 1)[1] for item in items if not isinstance(item, BrokenItem)]
    assert good == ["0000.jpg", "0001.jpg", "0002.jpg"]
    broken = [item for item in items if isinstance(item, BrokenItem)]
    assert [item.modality for item in broken] == ["image", "tar"]
    assert "cut" in broken[0].reason
    assert "cut" in broken[1].reason


def add_sparse(tar, name, fmt):
    """Add a member of 1,500 bytes, of which 512 lie in the tar, from byte 900 on."""
    if fmt == tarfile.PAX_FORMAT:
        member = tarfile.TarInfo("GNUSparseFile.0/" + name)
        member.pax_headers = {"GNU.sparse.map": "900,512", "GNU.sparse.size": "1500", "GNU.sparse.name": name}
        member.size = 512
        tar.addfile(member, io.BytesIO(b"s" * 512))
        return
    member = tarfile.TarInfo(name)
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (900, 512)
    header[483:495] = b"%011o\0" % 1500
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    tar.fileobj.write(header + b"s" * 512)
    tar.offset += len(header) + 512


@pytest.mark.parametrize("fmt", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_sparse_members_are_broken_and_the_others_are_not(fmt, tmp_path):
    """What lies in the tar of them is a map and some pieces, not the file."""
    with tarfile.open(tmp_path / "a.tar", "w", format=fmt) as tar:
        add_sparse(tar, "a.txt", fmt)
        member = tarfile.TarInfo("b.txt")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"whole"))
    sparse, whole = collect(tmp_path / "a.tar")
    assert isinstance(sparse, BrokenItem)
    assert (sparse.member, sparse.modality, sparse.caption) == ("a.txt", "text", None)
    assert sparse.reason == "a sparse member; pack it without --sparse"
    assert (whole.member, whole.caption) == ("b.txt", "whole")
    with pytest.raises(DecodeError, match="a sparse member; pack it without --sparse"):
        Source.of(f"tar://{tmp_path}/a.tar!/a.txt").read_bytes()
    assert Source.of(f"tar://{tmp_path}/a.tar!/b.txt").read_bytes() == b"whole"


def link(tar, name, target, kind=tarfile.LNKTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    tar.addfile(member)


@pytest.mark.parametrize("fmt", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_links_in_a_tar_are_items_as_they_are_in_a_folder(fmt, tmp_path):
    folder = tmp_path / "in"
    write(folder, "a.txt", data=b"a text")
    write(folder, "sub/z.txt", data=b"the last")
    (folder / "b.txt").hardlink_to(folder / "a.txt")
    (folder / "c.txt").symlink_to("a.txt")
    (folder / "sub" / "d.txt").symlink_to("../c.txt")
    (folder / "sub" / "e.txt").symlink_to("z.txt")
    with tarfile.open(tmp_path / "in.tar", "w", format=fmt) as tar:
        for path in (folder / name for name in ("a.txt", "b.txt", "c.txt", "sub/d.txt", "sub/e.txt", "sub/z.txt")):
            tar.add(path, "./" + str(path.relative_to(folder)))
    listed = [(item.key, item.caption, Source.of_item(item).read_bytes()) for item in collect(folder)]
    packed = list(collect(tmp_path / "in.tar"))
    root = f"{tmp_path}/in.tar/./"
    assert [(i.key.removeprefix(root), i.caption, Source.of_item(i).read_bytes()) for i in packed] == listed
    assert len(listed) == 6
    assert Source.of(f"tar://{tmp_path}/in.tar!/./b.txt").read_bytes() == b"a text"


def test_links_in_a_tar_that_lead_to_no_file_are_broken(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link(tar, "out.jpg", "../x.jpg", tarfile.SYMTYPE)
        link(tar, "one.jpg", "two.jpg", tarfile.SYMTYPE)
        link(tar, "two.jpg", "one.jpg", tarfile.SYMTYPE)
        link(tar, "lost.jpg", "nowhere.jpg")
        link(tar, "latest", "sub", tarfile.SYMTYPE)
        add_sparse(tar, "holes.txt", tarfile.PAX_FORMAT)
        link(tar, "same.txt", "holes.txt")
    listing = Listing([tmp_path / "a.tar"])
    broken = {item.member: item.reason for item in listing if isinstance(item, BrokenItem)}
    assert broken == {
        "out.jpg": "a link to ../x.jpg, which is no file in the tar",
        "one.jpg": "a link to two.jpg, which is no file in the tar",
        "two.jpg": "a link to one.jpg, which is no file in the tar",
        "lost.jpg": "a link to nowhere.jpg, which is no file in the tar",
        "holes.txt": "a sparse member; pack it without --sparse",
        "same.txt": "a sparse member; pack it without --sparse",
    }
    assert dict(listing.ignored) == {"(none)": 1}


def test_a_tar_damaged_in_the_middle_is_not_taken_for_its_end(tmp_path):
    path = make_tar(tmp_path / "a.tar", [(f"{n:04d}.jpg", bytes(3000)) for n in range(4)])
    data = bytearray(path.read_bytes())
    data[2 * 3584 : 2 * 3584 + 300] = b"\xaa" * 300
    path.write_bytes(bytes(data))
    items = list(collect(path))
    assert len(items) == 3
    assert isinstance(items[2], BrokenItem)
    assert "damaged at byte 7168" in items[2].reason


def nest(header, depth=2000):
    """Put a header behind many that each hold a long name for the next."""
    outer = tarfile.TarInfo("././@LongLink")
    outer.type, outer.size = tarfile.GNUTYPE_LONGNAME, 2
    return (outer.tobuf(tarfile.GNU_FORMAT) + b"x\0".ljust(512, b"\0")) * depth + header


@pytest.mark.timeout(60)
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("damage", ["back", "sparse", "nested"])
def test_a_tar_whose_headers_lead_nowhere_is_one_broken_item(damage, first, tmp_path):
    """A size below zero leads back to the header before; names of names of names never come to a file."""
    write(tmp_path, "a.txt", data=b"beside it")
    before = [("m.txt", b"first"), ("n.txt", b"second")]
    whole = make_tar(tmp_path / "t.tar", [] if first else before, tarfile.GNU_FORMAT).read_bytes()
    good = whole.rstrip(b"\0")
    good += bytes(-len(good) % 512)
    bad = tarfile.TarInfo("z.jpg")
    bad.size = -1536
    if damage == "sparse":
        bad.type = tarfile.GNUTYPE_SPARSE
    header = bad.tobuf(tarfile.GNU_FORMAT)
    if damage == "nested":
        bad.size = 0
        header = nest(bad.tobuf(tarfile.GNU_FORMAT))
    (tmp_path / "t.tar").write_bytes(good + header + bytes(10240))
    *items, broken = collect(tmp_path)
    assert [item.key for item in items] == (["a.txt"] if first else ["a.txt", "t.tar/m.txt", "t.tar/n.txt"])
    assert (broken.key, broken.hides, broken.stage) == ("t.tar", True, "read")
    why = "cannot be read as a tar: headers within headers" if first and damage == "nested" else f"byte {len(good)}: "
    assert why in broken.reason
    with pytest.raises(DecodeError, match=r"no such member|cannot be read as a tar"):
        Source.of(f"tar://{tmp_path}/t.tar!/z.jpg").read_bytes()


@pytest.mark.parametrize("data", [b"", b"no tar at all " * 100, bytes(700)])
def test_what_is_no_tar_is_broken_or_empty(data, tmp_path):
    (tmp_path / "a.tar").write_bytes(data)
    items = list(collect(tmp_path / "a.tar"))
    assert all(isinstance(item, BrokenItem) for item in items)
    assert len(items) == (0 if data == bytes(700) else 1)


def test_braces_name_many_tars(tmp_path, monkeypatch):
    for number in range(3):
        make_tar(tmp_path / f"{number:03d}.tar", [("x.jpg", b"1")])
    monkeypatch.chdir(tmp_path)
    assert [item.key for item in collect("{000..002}.tar")] == [f"{n:03d}.tar/x.jpg" for n in range(3)]
    with pytest.raises(MissingInputError, match=r"003\.tar"):
        Listing(["{000..003}.tar"])


def test_braces_expand_as_a_shell_does():
    assert list(expand_braces("a")) == ["a"]
    assert list(expand_braces("{8..11}x")) == ["8x", "9x", "10x", "11x"]
    assert list(expand_braces("{a,b}-{00..01}")) == ["a-00", "a-01", "b-00", "b-01"]
    with pytest.raises(InputError, match="runs backwards"):
        list(expand_braces("{9..1}"))


def test_a_bare_source_is_a_list_of_one(tmp_path):
    write(tmp_path, "a.jpg", "b.jpg")
    assert pairs(Listing(tmp_path)) == pairs(Listing(str(tmp_path))) == pairs(Listing([tmp_path]))
