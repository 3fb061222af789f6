"""The embedder on real files with the tiny space: what a run makes, and what the next run makes of what changed."""

from __future__ import annotations

import dataclasses
import errno
import io
import itertools
import json
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from hostile import imu_text, picture_bytes, sound_bytes, video_bytes
from test_listing import make_tar

from bindsearch import types
from bindsearch.embed import EmbedOptions, inspect_source, planning, run_embed
from bindsearch.embed.batching import forward_batches
from bindsearch.embed.plan import PlannedByAnotherError, fingerprint
from bindsearch.embed.planning import Planner
from bindsearch.errors import (
    BindSearchError,
    DecodeError,
    InputError,
    MismatchError,
    MissingInputError,
    TooManyBadError,
)
from bindsearch.models.spaces import load_space
from bindsearch.registry import MODALITIES
from bindsearch.store import generation_folders, open_store
from bindsearch.store.files import temp_path

HERE = EmbedOptions(workers=0, batch_size=4, shard_size=10)


@pytest.fixture(scope="module")
def space():
    return load_space("tiny", device="cpu")


@pytest.fixture
def media(tmp_path):
    """Every modality, pairs, a caption, a file that is no media and a broken one."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for number in range(7):
        (folder / f"{number}.png").write_bytes(picture_bytes(seed=number, size=(40 + number, 30)))
    (folder / "3.txt").write_text("the third picture")
    (folder / "sub" / "a.wav").write_bytes(sound_bytes(1.0))
    time_s = np.arange(40000) / 16000
    soundfile.write(folder / "sub" / "b.wav", 0.3 * np.sin(2 * np.pi * 300 * time_s**2), 16000)
    (folder / "sub" / "film.mp4").write_bytes(video_bytes(12, sound=True))
    (folder / "sub" / "walk.imu.csv").write_text(imu_text())
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.md").write_text("no media")
    return folder


def contents(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def keys(out):
    return open_store(out).items(["key"]).column("key").to_pylist()


def test_a_run_embeds_what_the_space_itself_would(media, tmp_path, space):
    report = run_embed([media], tmp_path / "out", space, options=HERE)
    store = open_store(tmp_path / "out")
    assert report.embedded == {"image": 7, "text": 1, "audio": 2, "video": 1, "imu": 1}
    assert (report.bad, report.ignored) == ({"image": 1}, {".md": 1})
    assert (report.items, report.bad_items) == (12, 1)
    table = store.items().to_pylist()
    for row, vector in zip(table, store.vectors(), strict=True):
        source = media / row["key"]
        expected = space.embed(row["modality"], [source])[0]
        assert np.dot(vector, expected) > 1 - 1e-5, row["key"]
        assert row["sha256"] == __import__("hashlib").sha256(source.read_bytes()).hexdigest()
        assert (row["size"], row["mtime"]) == (source.stat().st_size, source.stat().st_mtime)
    by_key = {row["key"]: row for row in table}
    assert by_key["0.png"]["norm"] == pytest.approx(1, abs=1e-6), "one clip is a unit row before the mean"
    assert by_key["sub/b.wav"]["norm"] < 0.999999
    assert by_key["3.png"]["group"] == by_key["3.txt"]["group"] == "3"
    assert by_key["3.png"]["caption"] == "the third picture"
    assert sorted(store.manifest.tower_ids) == ["audio", "image", "imu", "text", "video"]
    assert store.manifest.tokenizer_id == space.tokenizer_id


def test_the_report_is_json_and_text(media, tmp_path, space):
    seen = []
    report = run_embed([media], tmp_path / "out", space, options=HERE, progress=seen.append)
    facts = json.loads(json.dumps(report.to_json()))
    assert facts["embedded"] == {"audio": 2, "image": 7, "imu": 1, "text": 1, "video": 1}
    assert sum(facts["shares"].values()) == pytest.approx(1, abs=1e-3)
    assert all(share > 0 for share in facts["shares"].values())
    assert seen[-1].done == seen[-1].total == 13
    assert [state.done for state in seen] == sorted(state.done for state in seen)
    text = report.to_text()
    assert "2 audio, 7 image, 1 imu, 1 text, 1 video embedded" in text
    assert "ignored, no media: 1 .md" in text
    assert "bad: 1 (7.7%); reasons in" in text


def test_the_same_input_gives_the_same_bytes_with_any_number_of_workers(media, tmp_path, space):
    run_embed([media], tmp_path / "one", space, options=HERE)
    other = EmbedOptions(workers=2, batch_size=4, shard_size=10)
    run_embed([media], tmp_path / "two", load_space("tiny", device="cpu"), options=other)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_plan_fixes_shards_of_one_kind(media, tmp_path, space):
    run_embed([media], tmp_path / "out", space, options=EmbedOptions(workers=0, batch_size=2, shard_size=3))
    plan = json.loads((tmp_path / "out/g0001/plan.json").read_text())
    sizes = [(shard["name"], shard["items"]) for shard in plan["shards"]]
    assert sizes == [
        ("image-00000", 3),
        ("image-00001", 3),
        ("audio-00000", 2),
        ("image-00002", 2),
        ("imu-00000", 1),
        ("text-00000", 1),
        ("video-00000", 1),
    ]
    assert plan["batch_size"] == 2
    assert plan["sources"] == [str(media)]


def test_a_second_run_does_nothing(media, tmp_path, space):
    run_embed([media], tmp_path / "out", space, options=HERE)
    before = contents(tmp_path / "out")
    report = run_embed([media], tmp_path / "out", space, options=HERE)
    assert (report.unchanged, report.shards, report.gone, report.items) == (13, 0, 0, 12)
    assert report.unchanged_bad == 1
    assert "in the store: 12 items\n  unchanged: 12\n  unchanged, bad as before: 1\n" in report.to_text()
    assert report.remarks == []
    assert contents(tmp_path / "out") == before


def test_a_second_run_embeds_what_is_new_or_changed_and_marks_what_is_gone(media, tmp_path, space):
    out = tmp_path / "out"
    run_embed([media], out, space, options=HERE)
    old = open_store(out)
    same = old.vectors([types.item_id("2.png")])
    (media / "new.png").write_bytes(picture_bytes(seed=70))
    (media / "1.png").write_bytes(picture_bytes(seed=71))
    (media / "0.png").unlink()
    (media / "broken.jpg").write_bytes(picture_bytes("JPEG", seed=72))
    (media / "5.png").write_bytes(b"broken now")
    os.utime(media / "2.png", (5, 5))
    report = run_embed([media], out, space, options=HERE)
    assert (report.embedded, report.bad) == ({"image": 3}, {"image": 1})
    assert (report.gone, report.unchanged) == (1, 9)
    store = open_store(out)
    pictures = ["1.png", "2.png", "3.png", "3.txt", "4.png", "6.png", "broken.jpg", "new.png"]
    assert sorted(keys(out)) == [*pictures, "sub/a.wav", "sub/b.wav", "sub/film.mp4", "sub/walk.imu.csv"]
    assert [row["key"] for row in store.bad()] == ["5.png"]
    assert len(store.manifest.generations) == 2
    assert np.array_equal(store.vectors([types.item_id("2.png")]), same)
    changed = store.vectors([types.item_id("1.png")])
    assert np.dot(changed[0], space.embed("image", [media / "1.png"])[0]) > 1 - 1e-5
    assert np.dot(changed[0], old.vectors([types.item_id("1.png")])[0]) < 1 - 1e-5
    assert run_embed([media], out, space, options=HERE).shards == 0


def test_a_changed_caption_reaches_the_table(media, tmp_path, space):
    out = tmp_path / "out"
    run_embed([media], out, space, options=HERE)
    (media / "3.txt").write_text("other words")
    assert run_embed([media], out, space, options=HERE).embedded == {"image": 1, "text": 1}
    captions = {row["key"]: row["caption"] for row in open_store(out).items().to_pylist()}
    assert captions["3.png"] == captions["3.txt"] == "other words"


def test_only_what_was_listed_again_can_be_gone(media, tmp_path, space):
    """Another source adds; stdin has no memory; what comes back is there again."""
    out, more = tmp_path / "out", tmp_path / "more"
    more.mkdir()
    (more / "x.png").write_bytes(picture_bytes(seed=80))
    (more / "y.png").write_bytes(picture_bytes(seed=81))
    run_embed([media], out, space, options=HERE)
    report = run_embed([more], out, space, options=HERE)
    assert (report.gone, report.items) == (0, 14)
    words = EmbedOptions(workers=0, modality="text")
    for embedded in ({"text": 1}, {}):
        report = run_embed(["-"], out, space, options=words, stdin=io.StringIO("text\n"))
        assert (report.gone, report.embedded, report.items) == (0, embedded, 15)
    data = (more / "x.png").read_bytes()
    (more / "x.png").unlink()
    report = run_embed([media, more], out, space, options=HERE)
    assert (report.gone, report.items) == (1, 14)
    assert "x.png" not in keys(out)
    (more / "x.png").write_bytes(data)
    assert run_embed([more], out, space, options=HERE).items == 15
    assert "x.png" in keys(out)


def test_another_look_at_a_source_takes_nothing_away(media, tmp_path, space):
    """What --modality, --text-column or a smaller space passes over is there; each look finds what it has lost."""
    out, words = tmp_path / "out", dataclasses.replace(HERE, modality="text")
    whole = run_embed([media], out, space, options=HERE)
    (media / "new.txt").write_text("read as text alone")
    report = run_embed([media], out, space, options=words)
    assert (report.gone, report.embedded, report.items) == (0, {"text": 2}, whole.items + 1), "3.txt without its group"

    class Blind:
        """The tiny space without eyes."""

        modalities = ("text", "audio")

        def __getattr__(self, name):
            return getattr(space, name)

    assert run_embed([media], out, Blind(), options=HERE).gone == 0
    (media / "new.txt").unlink()
    (media / "0.png").unlink()
    assert run_embed([media], out, Blind(), options=HERE).gone == 1
    assert run_embed([media], out, space, options=words).gone == 1
    assert sorted(keys(out)) == sorted(key for key in keys(out) if (media / key).exists())


def test_another_column_of_a_manifest_takes_nothing_away(media, tmp_path, space):
    (media / "pairs.csv").write_text("path,caption\n0.png,a dog\n1.png,a cat\n")
    out = tmp_path / "out"
    run_embed([media / "pairs.csv"], out, space, options=HERE)
    captions = dataclasses.replace(HERE, text_column="caption")
    for number in range(2):
        report = run_embed([media / "pairs.csv"], out, space, options=captions)
        assert (report.gone, report.items, report.unchanged) == (0, 4, 2 * number)
    assert sorted(keys(out)) == ["0.png", "1.png", "pairs.csv#0", "pairs.csv#1"]
    (media / "pairs.csv").write_text("path,caption\n0.png,a dog\n")
    assert run_embed([media / "pairs.csv"], out, space, options=captions).gone == 1
    assert run_embed([media / "pairs.csv"], out, space, options=HERE).gone == 1


def test_a_plan_that_does_not_say_how_it_read_is_taken_to_have_read_alike(media, tmp_path, space):
    out = tmp_path / "out"
    run_embed([media], out, space, options=HERE)
    plan = json.loads((out / "g0001/plan.json").read_text())
    assert (plan.pop("modality"), plan.pop("text_column")) == (None, None)
    (out / "g0001/plan.json").write_text(json.dumps(plan))
    (media / "0.png").unlink()
    assert run_embed([media], out, space, options=HERE).gone == 1


def test_other_settings_are_refused_with_both_values(media, tmp_path, space):
    out = tmp_path / "out"
    run_embed([media], out, space, options=HERE)
    before = contents(out)
    for other, words in (
        (load_space("tiny:1", device="cpu"), f"space {space.space_id}, this run has tiny:1@"),
        (load_space("tiny", device="cpu", preset="reference"), "preset of .* default:.*, this run has reference:"),
    ):
        with pytest.raises(MismatchError, match=words):
            run_embed([media], out, other, options=HERE)
    assert contents(out) == before


def test_another_dtype_adds_but_finishes_nothing_that_was_begun(media, tmp_path, space):
    out, wide = tmp_path / "out", load_space("tiny", device="cpu", dtype="float64")
    run_embed([media], out, space, options=HERE)
    before = contents(out)
    report = run_embed([media], out, wide, options=HERE)
    assert (report.unchanged, report.shards) == (13, 0)
    assert "note: float64 was not used: nothing is new, and" in report.to_text()
    assert contents(out) == before
    (media / "new.png").write_bytes(picture_bytes(seed=70))
    report = run_embed([media], out, wide, options=HERE)
    assert (report.embedded, report.remarks) == ({"image": 1}, [])
    assert open_store(out).manifest.dtype == "float32+float64"
    dtypes = [json.loads((out / f"g000{number}/plan.json").read_text())["dtype"] for number in (1, 2)]
    assert dtypes == ["float32", "float64"]
    whole = contents(out)
    (out / "g0002/image-00000.done.json").unlink()
    words = r"g0002: not finished, begun with dtype float64, this run has float32\. Finish it with --dtype float64"
    with pytest.raises(MismatchError, match=words) as error:
        run_embed([media], out, space, options=HERE)
    assert error.value.exit_code == 5
    run_embed([media], out, wide, options=HERE)
    assert contents(out) == whole


def test_a_row_that_cannot_be_meant_is_in_the_ledger(media, tmp_path, space):
    (media / "list.jsonl").write_text('{"path": "0.png"}\n{"path": "1.png", "modality": "termal"}\nno row\n')
    report = run_embed([media / "list.jsonl"], tmp_path / "out", space, options=HERE)
    assert (report.embedded, report.bad) == ({"image": 1}, {"row": 2})
    ledger = {row["key"]: row["reason"] for row in open_store(tmp_path / "out").bad()}
    assert "Did you mean 'thermal'" in ledger["list.jsonl#1"]
    assert "row 2: line 3: not JSON" in ledger["list.jsonl#2"]
    assert run_embed([media / "list.jsonl"], tmp_path / "out", space, options=HERE).unchanged == 3


@pytest.mark.parametrize("uri", ["tar://x.tar/a.jpg", "file://[abc/x.jpg", "row://table.npz", "odd://x/a.jpg"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_uri_of_no_known_form_costs_its_own_row_alone(uri, workers, media, tmp_path, space, monkeypatch):
    import fsspec

    def odd(*_, **__):
        raise KeyError("no such bucket")

    monkeypatch.setattr(fsspec, "open", odd)
    (media / "list.jsonl").write_text(f'{{"path": "0.png"}}\n{{"path": "{uri}", "modality": "image"}}\n')
    options = dataclasses.replace(HERE, workers=workers, max_bad=1)
    report = run_embed([media / "list.jsonl"], tmp_path / "out", space, options=options)
    assert (report.embedded, report.bad) == ({"image": 1}, {"image": 1})
    assert [row["key"] for row in open_store(tmp_path / "out").bad()] == [uri]
    again = run_embed([media / "list.jsonl"], tmp_path / "out", space, options=options)
    assert (again.unchanged, again.shards) == (2, 0)


def test_a_damaged_shard_is_made_anew(media, tmp_path, space):
    out = tmp_path / "out"
    run_embed([media], out, space, options=HERE)
    before = contents(out)
    (out / "g0001/image-00000.npy").write_bytes(b"short")
    (out / "g0001/audio-00000.done.json").unlink()
    with pytest.raises(BindSearchError, match="the same `bindsearch embed` again"):
        open_store(out)
    report = run_embed([media], out, space, options=HERE)
    assert (report.shards, report.embedded) == (2, {"image": 7, "audio": 2})
    assert (report.unchanged, report.unchanged_bad) == (0, 0)
    assert contents(out) == before


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(media, tmp_path, space):
    out = tmp_path / "out"
    dry = EmbedOptions(workers=0, shard_size=5, dry_run=True)
    report = run_embed([media], out, space, options=dry)
    assert report.embedded == {"image": 8, "text": 1, "audio": 2, "video": 1, "imu": 1}
    assert report.shards == 6
    assert not out.exists()
    assert "to embed" in report.to_text()
    report.check_bad()
    run_embed([media], out, space, options=HERE)
    before = contents(out)
    report = run_embed([media], out, space, options=dry)
    assert (report.embedded, report.unchanged) == ({}, 13)
    assert contents(out) == before


def test_a_dry_run_counts_what_is_unfinished_and_what_is_new(media, tmp_path, space):
    """What it says is what the run then does, before the first shard is there as well."""
    out = tmp_path / "out"
    dry = EmbedOptions(workers=0, shard_size=5, dry_run=True)
    sources = [media, tmp_path / "more"]
    run_embed([media], out, space, options=HERE)
    sources[1].mkdir()
    for number in range(3):
        (sources[1] / f"new{number}.png").write_bytes(picture_bytes(seed=50 + number))
    (out / "g0001/audio-00000.done.json").unlink()
    os.utime(media / "sub" / "a.wav")
    report = run_embed(sources, out, space, options=dry)
    assert (report.embedded, report.shards, report.unchanged) == ({"audio": 2, "image": 3}, 2, 11)
    for path in [*out.glob("g0001/*.done.json"), out / "manifest.json"]:
        path.unlink()
    said = run_embed(sources, out, space, options=dry)
    assert (said.unchanged, said.embedded["image"]) == (0, 11)
    done = run_embed(sources, out, space, options=HERE)
    assert (done.embedded + done.bad, done.shards) == (said.embedded, said.shards)


def test_too_many_bad_are_said_after_all_good_are_committed(tmp_path, space):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(10):
        data = picture_bytes(seed=number)
        (folder / f"{number}.png").write_bytes(data if number > 1 else data[:40])
    report = run_embed([folder], tmp_path / "out", space, options=HERE)
    with pytest.raises(TooManyBadError, match=r"2 of 10 inputs are bad \(20\.0%\), over --max-bad 0\.1") as error:
        report.check_bad()
    assert error.value.exit_code == 4
    assert len(open_store(tmp_path / "out")) == 8
    again = run_embed([folder], tmp_path / "out", space, options=HERE)
    with pytest.raises(TooManyBadError):
        again.check_bad()
    run_embed([folder], tmp_path / "out", space, options=EmbedOptions(workers=0, max_bad=0.2)).check_bad()


def test_sources_without_media_are_refused(tmp_path, space):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.docx").write_bytes(b"x")
    with pytest.raises(MissingInputError, match=r"no media found\. Ignored: 1 \.docx"):
        run_embed([tmp_path / "in"], tmp_path / "out", space, options=HERE)
    assert not (tmp_path / "out").exists()


def test_the_folder_of_the_embeddings_is_no_source(media, space):
    before = contents(media)
    with pytest.raises(MissingInputError, match=r"in is where the embeddings go, .*another folder for them: -o"):
        run_embed([media], media, space, options=HERE)
    assert contents(media) == before
    report = run_embed([media], media / "out", space, options=HERE)
    assert report.items == 12


@pytest.mark.parametrize("unread", ["in/sub", "in"])
def test_what_lies_in_a_folder_that_cannot_be_read_is_not_gone(unread, tmp_path, space, monkeypatch):
    """A share that is away for a moment takes nothing with it; what is gone beside it is gone."""
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "subway").mkdir()
    for name in ("a", "sub/b", "sub/deep/c", "subway/d"):
        (folder / f"{name}.txt").write_text(f"words of {name}")
    make_tar(folder / "sub" / "e.tar", [("f.txt", b"words in a tar")])
    whole = ["a.txt", "sub/b.txt", "sub/deep/c.txt", "sub/e.tar/f.txt", "subway/d.txt"]
    run_embed([folder], out, space, options=HERE)
    assert sorted(keys(out)) == whole
    (folder / "subway" / "d.txt").unlink()

    def scandir(path, really=os.scandir):
        if str(path).rstrip("/") == str(tmp_path / unread):
            raise OSError(errno.EIO, "Input/output error")
        return really(path)

    with monkeypatch.context() as away:
        away.setattr(os, "scandir", scandir)
        report = run_embed([folder], out, space, options=HERE)
        again = run_embed([folder], out, space, options=HERE)
    beside = unread == "in/sub"
    said = f"{3 if beside else 5} items under {tmp_path / unread} kept: it could not be read"
    assert (report.gone, report.remarks, again.gone, again.remarks) == (int(beside), [said], 0, [said])
    assert f"note: {said}" in report.to_text()
    assert sorted(keys(out)) == (whole[:4] if beside else whole)
    report = run_embed([folder], out, space, options=HERE)
    assert (report.embedded, report.remarks, sorted(keys(out))) == ({}, [], whole[:4])
    assert list(open_store(out).bad()) == []


@pytest.mark.parametrize("name", ["a.tar", "a.csv"])
def test_what_a_tar_or_manifest_may_still_hold_is_not_gone(name, tmp_path, space):
    """Cut in the middle, it says nothing of what came after; whole again, it does."""
    path, out = tmp_path / name, tmp_path / "out"
    if name == "a.tar":
        make_tar(path, [(f"{number}.txt", b"words %d" % number * 200) for number in range(4)])
    else:
        path.write_text("key,text\n" + "".join(f'{number},"words\n{number}"\n' for number in range(4)))
    run_embed([path], out, space, options=HERE)
    before, data = keys(out), path.read_bytes()
    path.write_bytes(data[: len(data) // 3] if name == "a.tar" else data[:-14])  # within quotes
    report = run_embed([path], out, space, options=dataclasses.replace(HERE, max_bad=1.0))
    assert report.gone == 0
    assert [remark.partition(" under ")[2] for remark in report.remarks] == [f"{path} kept: it could not be read"]
    assert len(before) == 4
    assert set(keys(out)) >= {before[0], before[3]}
    path.write_bytes(data)
    run_embed([path], out, space, options=HERE)
    assert sorted(keys(out)) == sorted(before)


def test_what_an_emptied_folder_held_is_gone(tmp_path, space):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(picture_bytes(seed=number))
    run_embed([folder], out, space, options=HERE)
    with pytest.raises(MissingInputError, match="no media found"):
        run_embed([folder], out, space, options=EmbedOptions(workers=0, modality="text"))
    for number in range(3):
        (folder / f"{number}.png").unlink()
    report = run_embed([folder], out, space, options=HERE)
    assert (report.gone, report.items) == (3, 0)
    assert "gone: 3" in report.to_text()
    assert (keys(out), open_store(out).manifest.gone) == ([], 3)
    before = contents(out)
    assert run_embed([folder], out, space, options=HERE).gone == 0
    assert contents(out) == before
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(MissingInputError, match="no media found"):
        run_embed([empty], out, space, options=HERE)
    (folder / "1.png").write_bytes(picture_bytes(seed=1))
    assert run_embed([folder], out, space, options=HERE).items == 1
    assert keys(out) == ["1.png"]


def test_a_modality_that_the_space_lacks_is_counted(media, tmp_path, space):
    class Blind:
        """The tiny space without eyes."""

        modalities = ("text", "audio")

        def __getattr__(self, name):
            return getattr(space, name)

    report = run_embed([media], tmp_path / "out", Blind(), options=HERE)
    assert report.embedded == {"text": 1, "audio": 2}
    assert report.ignored == {
        ".md": 1,
        "image (not in the space)": 8,
        "video (not in the space)": 1,
        "imu (not in the space)": 1,
    }


def test_duplicates_and_collisions_are_refused_naming_both(media, tmp_path, space, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(media / "1.png", other / "1.png")
    with pytest.raises(
        InputError, match=r"key '1\.png' \(.*in/1\.png\) is there twice, also as '1\.png' \(.*other/1\.png\)"
    ):
        run_embed([media, other], tmp_path / "out", space, options=HERE)
    with pytest.raises(InputError, match="is there twice"):
        run_embed([media, media], tmp_path / "out", space, options=HERE)
    run_embed([media], tmp_path / "out", space, options=HERE)
    with pytest.raises(InputError, match="is there twice"):
        run_embed([media, media], tmp_path / "out", space, options=HERE)
    real = types.item_id
    monkeypatch.setattr(types, "item_id", lambda key, span=None: real(key, span) % 3)
    with pytest.raises(InputError, match=r"have the same 63-bit id\. Rename one of them"):
        run_embed([media], tmp_path / "colliding", space, options=HERE)


def test_no_file_takes_the_place_of_another_folders(tmp_path, space):
    for folder, name, seed in (("a", "x", 1), ("a", "p", 2), ("b", "x", 3)):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}.png").write_bytes(picture_bytes("png", seed=seed))
    out = tmp_path / "out"
    run_embed([tmp_path / "a"], out, space, options=HERE)
    with pytest.raises(InputError, match=r"key 'x\.png' is in .*out already, of .*a/x\.png; got .*b/x\.png\. Give"):
        run_embed([tmp_path / "b"], out, space, options=HERE)
    assert len(open_store(out)) == 2
    (tmp_path / "a").rename(tmp_path / "moved")  # another name of the same folder brings the same items
    (tmp_path / "moved" / "x.png").write_bytes(picture_bytes("png", seed=4))
    report = run_embed([tmp_path / "moved"], out, space, options=HERE)
    assert (report.embedded.total(), report.bad_items, len(open_store(out))) == (2, 0, 2)


def test_typed_texts_take_the_place_of_no_others(tmp_path, space):
    """Their keys are line numbers: other texts would have replaced the first ones, and nothing would have said so."""
    out, words = tmp_path / "out", EmbedOptions(workers=0, modality="text", max_bad=1)

    def embed(data):
        stdin = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")
        return run_embed("-", out, space, options=words, stdin=stdin)

    assert embed(b"a dog\na cat\n\xff\n").embedded == {"text": 2}
    for texts in (b"a bird\n", b"a dog\n\xff\n"):
        with pytest.raises(InputError, match=r"key 'stdin#.' is in .*out already, of .*Name the texts in a manifest"):
            embed(texts)
    assert embed(b"a dog\na cat\n").unchanged == 2
    report = embed(b"a dog\na cat\na bird\nan owl\n")
    assert (report.unchanged, report.embedded, report.bad_items, report.items) == (2, {"text": 2}, 0, 4)


def test_lists_of_one_name_take_no_ones_place(tmp_path, space):
    out, words = tmp_path / "out", EmbedOptions(workers=0, modality="text")
    for folder, text in (("a", "a dog"), ("b", "a cat")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "captions.lst").write_text(f"{text}\n")
    run_embed(tmp_path / "a" / "captions.lst", out, space, options=words)
    with pytest.raises(InputError, match=r"of .*a/captions\.lst; got .*b/captions\.lst"):
        run_embed(tmp_path / "b" / "captions.lst", out, space, options=words)
    (tmp_path / "a" / "captions.lst").write_text("another dog\n")
    report = run_embed(f"@{tmp_path}/a/captions.lst", out, space, options=words)
    assert (report.embedded, report.items) == ({"text": 1}, 1), "the list itself has changed"


def test_long_recordings_become_spans(tmp_path, space):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "long.wav").write_bytes(sound_bytes(7.0, rate=8000))
    (folder / "short.wav").write_bytes(sound_bytes(1.0, rate=8000))
    (folder / "still.png").write_bytes(picture_bytes())
    (folder / "broken.wav").write_bytes(b"no sound")
    options = EmbedOptions(workers=1, window_s=2.0, max_bad=1)
    report = run_embed([folder], out, space, options=options)
    rows = [(row["key"], row["start_s"], row["end_s"]) for row in open_store(out).items().to_pylist()]
    spans = [row[1:] for row in rows if row[0] == "long.wav"]
    assert spans[0][0] == 0
    assert spans[-1][1] == pytest.approx(7.0)
    assert all(one[1] == pytest.approx(two[0]) for one, two in itertools.pairwise(spans))
    assert all(end - start <= 2.0 + 1e-9 for start, end in spans)
    assert report.bad == {"audio": 1}
    sounds = [row for row in open_store(out).items().to_pylist() if row["key"] == "long.wav"]
    assert len({row["sha256"] for row in sounds}) == 1
    assert len({row["id"] for row in sounds}) == len(sounds)
    again = run_embed([folder], out, space, options=options)
    assert (again.shards, again.gone) == (0, 0)
    whole = run_embed([folder], out, space, options=EmbedOptions(workers=0, max_bad=1))
    assert whole.gone == len(spans)
    assert [row["start_s"] for row in open_store(out).items().to_pylist() if row["key"] == "long.wav"] == [None]
    (folder / "long.wav").write_bytes(sound_bytes(3.0, rate=8000))
    run_embed([folder], out, space, options=EmbedOptions(workers=0, window_s=2.0, max_bad=1))
    left = [row for row in open_store(out).items().to_pylist() if row["key"] == "long.wav"]
    assert max(row["end_s"] for row in left) == pytest.approx(3.0)


def test_another_window_embeds_only_what_it_cuts(media, tmp_path, space, monkeypatch):
    out, cut = tmp_path / "out", dataclasses.replace(HERE, window_s=0.5)
    run_embed([media], out, space, options=HERE)
    report = run_embed([media], out, space, options=cut)
    assert (set(report.embedded), report.unchanged) == ({"audio", "video", "imu"}, 9)
    assert run_embed([media], out, space, options=HERE).unchanged == 9
    # a store of an earlier version, whose pictures know of the window
    monkeypatch.setattr(planning, "fingerprint", lambda item, _window_s: fingerprint(item, 0.5))
    old = run_embed([media], tmp_path / "old", space, options=cut)
    monkeypatch.undo()
    report = run_embed([media], tmp_path / "old", space, options=cut)
    assert (report.shards, report.items, report.unchanged) == (0, old.items, old.items + 1)


def test_a_video_without_sound_is_one_bad_sound(tmp_path, space):
    """As long as it is, it has no window that could be heard."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "silent.mp4").write_bytes(video_bytes(100))
    options = EmbedOptions(workers=0, window_s=1.0, modality="audio", max_bad=1)
    run_embed([tmp_path / "in"], tmp_path / "out", space, options=options)
    assert [row["reason"] for row in open_store(tmp_path / "out").bad()] == ["has no sound track"]


def test_a_recording_that_does_not_say_its_length_is_cut_too(tmp_path, space):
    """What a pipe left behind: a FLAC whose head says that it has no samples."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    soundfile.write(folder / "streamed.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 8000 * 6), 8000)
    data = bytearray((folder / "streamed.flac").read_bytes())
    data[21], data[22:26] = data[21] & 0xF0, bytes(4)
    (folder / "streamed.flac").write_bytes(data)
    run_embed([folder], out, space, options=EmbedOptions(workers=0, window_s=2.0))
    rows = [(row["start_s"], row["end_s"]) for row in open_store(out).items().to_pylist()]
    assert sorted(rows) == [(0.0, 2.0), (2.0, 4.0), (4.0, 6.0)]


def test_a_recording_of_too_many_windows_is_in_the_ledger(tmp_path, space):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "long.wav").write_bytes(sound_bytes(7.0, rate=8000))
    report = run_embed([folder], out, space, options=EmbedOptions(workers=0, window_s=1e-6, max_bad=1))
    assert report.bad_items == 1
    ledger = {row["key"]: row["reason"] for row in open_store(out).bad()}
    assert "7 s in windows of 1e-06 s are over 1,000,000 items" in ledger["long.wav"]
    run_embed([folder], out, space, options=EmbedOptions(workers=0, window_s=2.0))
    assert len(open_store(out)) == 4
    assert not list(open_store(out).bad())


def test_fused_items_are_the_weighted_sum_of_unit_rows(media, tmp_path, space):
    row = {"key": "both", "fuse": "video*0.95 + audio*0.05", "video": "sub/film.mp4", "audio": "sub/film.mp4"}
    minus = {"key": "less", "fuse": "image - text*0.25", "image": "2.png", "text": "a dog"}
    nothing = {"key": "none", "fuse": "image - video", "image": "0.png", "video": "broken.jpg"}
    manifest = media / "fused.jsonl"
    manifest.write_text("\n".join(json.dumps(each) for each in (row, minus, nothing)))
    report = run_embed([manifest], tmp_path / "out", space, options=HERE)
    store = open_store(tmp_path / "out")
    film, sound = space.embed("video", [media / "sub/film.mp4"])[0], space.embed("audio", [media / "sub/film.mp4"])[0]
    both = 0.95 * film + 0.05 * sound
    less = space.embed("image", [media / "2.png"])[0] - 0.25 * space.embed("text", ["a dog"])[0]
    for key, expected in (("both", both), ("less", less)):
        got = store.vectors([types.item_id(key)])[0]
        assert np.allclose(got, expected / np.linalg.norm(expected), atol=1e-3), key
    rows = {each["key"]: each for each in store.items().to_pylist()}
    assert rows["both"]["modality"] == "video"
    assert rows["both"]["norm"] == pytest.approx(np.linalg.norm(both), rel=1e-4)
    assert json.loads(rows["both"]["attributes"])["fuse"] == "video*0.95 + audio*0.05"
    assert report.bad == {"image": 1}
    assert store.bad()[0]["reason"].startswith("video part: ")
    assert sorted(store.manifest.tower_ids) == ["audio", "image", "text", "video"]
    assert run_embed([manifest], tmp_path / "out", space, options=HERE).shards == 0


def test_the_span_of_a_fused_item_is_of_its_parts_with_a_time_axis(media):
    from bindsearch.embed.decoding import Decoded, decode_item
    from bindsearch.listing import FusedItem, Part

    np.save(media / "row.features.npy", np.arange(8.0))
    parts = (Part("audio", 1.0, str(media / "sub/b.wav")), Part("features", 1.0, str(media / "row.features.npy")))
    item = FusedItem("k", "audio", str(media / "sub/b.wav"), span=(0.5, 1.5), parts=parts)
    configs = {"audio": MODALITIES["audio"].config(), "features": MODALITIES["features"].config(width=8)}
    outcome = decode_item(item, configs)
    assert isinstance(outcome, Decoded), outcome
    assert outcome.arrays[1].tolist() == [list(range(8))]


def test_fused_parts_that_cancel_have_no_direction(tmp_path, space):
    (tmp_path / "x.mp4").write_bytes(video_bytes(1))
    (tmp_path / "m.jsonl").write_text(
        json.dumps({"key": "k", "fuse": "text - imu*0.0001", "text": "a", "imu": "gone.imu.csv"})
    )
    report = run_embed([tmp_path / "m.jsonl"], tmp_path / "out", space, options=EmbedOptions(workers=0, max_bad=1))
    assert report.bad == {"text": 1}
    from bindsearch.embed.batching import settle
    from bindsearch.listing import FusedItem, Part

    item = FusedItem("k", "image", "x", parts=(Part("image", 1.0), Part("video", -1.0)))
    row = np.ones(4, np.float32)
    failed = settle(item, [row, 3 * row])
    assert failed.reason == "its parts cancel each other: the sum has norm 0.0e+00"
    assert settle(item, [row, np.array([np.nan] * 4, np.float32)]).reason == "the embedding is not finite"


def test_tars_embed_as_the_files_in_them(media, tmp_path, space):
    members = [(path.name, path.read_bytes()) for path in sorted(media.glob("*.png"))]
    make_tar(tmp_path / "pictures.tar", members)
    run_embed([media], tmp_path / "files", space, options=HERE)
    run_embed([tmp_path / "pictures.tar"], tmp_path / "tar", space, options=HERE)
    files, tar = open_store(tmp_path / "files"), open_store(tmp_path / "tar")
    for name, _ in members:
        one, two = types.item_id(name), types.item_id(f"{tmp_path}/pictures.tar/{name}")
        assert np.allclose(files.vectors([one]), tar.vectors([two]), atol=1e-3)
    assert tar.items(["member"]).column("member").to_pylist() == [name for name, _ in members]
    os.utime(tmp_path / "pictures.tar", (9, 9))
    assert run_embed([tmp_path / "pictures.tar"], tmp_path / "tar", space, options=HERE).shards == 0


def test_texts_that_are_cut_are_counted(tmp_path, space):
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": "word " * n}) for n in (3, 200, 300)))
    report = run_embed([tmp_path / "t.jsonl"], tmp_path / "out", space, options=EmbedOptions(workers=1))
    assert report.notes == {"text: truncated": 2}
    assert "note: text: truncated: 2" in report.to_text()


def test_an_unreadable_file_is_tried_again_when_it_can_be_read(tmp_path, space):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture_bytes())
    (folder / "b.png").symlink_to(tmp_path / "later.png")
    options = EmbedOptions(workers=0, max_bad=1)
    run_embed([folder], out, space, options=options)
    assert open_store(out).bad()[0]["reason"] == "no such file"
    assert run_embed([folder], out, space, options=options).shards == 0
    (tmp_path / "later.png").write_bytes(picture_bytes(seed=3))
    assert run_embed([folder], out, space, options=options).embedded == {"image": 1}
    assert open_store(out).bad() == []


def test_generations_hold_no_clock_times(media, tmp_path, space, monkeypatch):
    """Two runs at different times, from the same files: not one byte differs."""
    run_embed([media], tmp_path / "one", space, options=HERE)
    import time

    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86400)
    run_embed([media], tmp_path / "two", space, options=HERE)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    table = pq.read_table(tmp_path / "one/g0001/image-00000.parquet")
    assert set(table.column("mtime").to_pylist()) <= {path.stat().st_mtime for path in media.rglob("*")}


def test_options_that_cannot_be_meant_are_refused():
    for options in ({"batch_size": 0}, {"shard_size": -1}, {"window_s": 0.0}, {"workers": -1}, {"item_limit_s": 0}):
        with pytest.raises(InputError, match="expected"):
            EmbedOptions(**options)
    assert EmbedOptions().worker_count() >= 1


def test_forward_batches_are_aligned_and_bounded(monkeypatch):
    from bindsearch.embed import batching

    arrays = [np.full((2, 3, 5), number, np.float32) for number in range(7)]
    monkeypatch.setattr(batching, "FORWARD_BYTES", 3 * arrays[0].nbytes)
    made = list(forward_batches(arrays))
    assert [len(x) for x in made] == [3, 3, 1]
    assert np.array_equal(np.concatenate(made), np.stack(arrays))
    assert all(x.ctypes.data % 64 == 0 and x.flags.c_contiguous for x in made)


def test_inspect_says_how_a_file_would_be_read(media, space):
    facts = json.loads(json.dumps(inspect_source(media / "sub" / "film.mp4", None, space)))
    assert facts["modality"] == "video"
    assert facts["preset"] == space.preset_id("video")
    assert facts["decoded"]["shape"][1:] == [48, 64, 3]
    assert facts["preprocessed"]["shape"][1:3] == [3, 2]
    assert inspect_source(media / "sub" / "film.mp4", "audio", space)["modality"] == "audio"
    assert inspect_source(media / "3.txt", None, space)["decoded"]["shape"] == [17]
    with pytest.raises(InputError, match="Say it: --modality NAME"):
        inspect_source(media / "notes.md", None, space)


def test_inspect_shows_the_span_that_would_be_embedded(media, space):
    """A recording that is too long as a whole is cut by a run, and a row of a manifest may name a part."""

    class Tight:
        """The tiny space with a limit that a minute of sound is over."""

        def config(self, modality):
            config = space.config(modality)
            return dataclasses.replace(config, max_values=200_000) if modality == "audio" else config

        def __getattr__(self, name):
            return getattr(space, name)

    (media / "long.wav").write_bytes(sound_bytes(70.0, rate=8000))
    facts = inspect_source(media / "long.wav", None, Tight())
    assert (facts["spans_s"][0], facts["spans_s"][-1], facts["shown_s"]) == ([0.0, 10.0], [60.0, 70.0], [0.0, 10.0])
    assert facts["decoded"]["shape"] == [1, 80_000]
    assert inspect_source(media / "0.png", None, space)["shown_s"] is None
    (media / "part.jsonl").write_text('{"path": "long.wav", "start_s": 5, "end_s": 8}')
    facts = inspect_source(media / "part.jsonl", None, Tight())
    assert (facts["spans_s"], facts["shown_s"], facts["decoded"]["shape"]) == ([], [5.0, 8.0], [1, 24_000])
    (media / "fused.jsonl").write_text(
        json.dumps({"key": "k", "fuse": "audio + text", "audio": "long.wav", "text": "x"})
    )
    sound = inspect_source(media / "fused.jsonl", None, space)["parts"][0]
    assert (sound["spans_s"], sound["shown_s"], sound["decoded"]["shape"]) == ([], None, [1, 560_000])


def test_inspect_says_what_is_wrong_with_a_container(media, tmp_path, space):
    (tmp_path / "cut.tar").write_bytes(b"no tar" * 100)
    (tmp_path / "list.jsonl").write_text('{"title": "no path"}\n')
    (tmp_path / "dir.png").mkdir()
    with pytest.raises(DecodeError, match=r"cut\.tar: cannot be read as a tar"):
        inspect_source(tmp_path / "cut.tar", None, space)
    with pytest.raises(DecodeError, match=r"list\.jsonl#0: .*, row 0: nothing to embed: no path and no text"):
        inspect_source(tmp_path / "list.jsonl", None, space)
    with pytest.raises(MissingInputError, match=r"dir\.png: no media found"):
        inspect_source(tmp_path / "dir.png", None, space)
    (tmp_path / "dir.png" / "a.md").touch()
    with pytest.raises(InputError, match=r"dir\.png: no suffix there names a modality: 1 \.md\. Say it"):
        inspect_source(tmp_path / "dir.png", None, space)


def test_inspect_describes_every_part_of_a_fused_item(media, space):
    row = {"key": "both", "fuse": "text*1 - image*0.1", "text": "a dog", "image": "0.png"}
    (media / "fused.jsonl").write_text(json.dumps(row))
    facts = json.loads(json.dumps(inspect_source(media / "fused.jsonl", None, space)))
    assert (facts["file"], facts["modality"]) == ("both", "text")
    words, picture = facts["parts"]
    assert (words["modality"], words["weight"], words["decoded"]["shape"]) == ("text", 1.0, [5])
    alone = inspect_source(media / "0.png", None, space)
    assert picture == {"weight": -0.1, **{name: alone[name] for name in alone if name != "file"}}


def test_a_plan_that_a_killed_process_of_our_name_left_is_written_anew(media, tmp_path, space):
    """In containers the host's name and the number of a process come again."""
    out = tmp_path / "out"
    left = temp_path(out / "g0001")
    left.mkdir(parents=True)
    (left / "plan.parquet").write_bytes(b"half")
    report = run_embed([media], out, space, options=HERE)
    assert sum(report.embedded.values()) == len(open_store(out)) > 7
    assert not list(out.glob("*.tmp"))


def test_who_finds_its_plan_already_made_looks_again(media, tmp_path, space, monkeypatch):
    plan, calls = Planner.plan, []

    def late(self, listing, where):
        calls.append(where)
        if len(calls) == 1:
            raise PlannedByAnotherError(str(where))
        return plan(self, listing, where)

    monkeypatch.setattr(Planner, "plan", late)
    run_embed([media], tmp_path / "out", space, options=HERE)
    assert len(calls) >= 2
    assert len(open_store(tmp_path / "out")) > 7


def test_the_ten_thousandth_generation_is_the_last(tmp_path):
    for name in ("g10000", "g0001", "g9999", "g999", "gallery"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "plan.json").write_text("{}")
    assert [folder.name for folder in generation_folders(tmp_path)] == ["g0001", "g9999", "g10000"]
