"""The recipes against miniature copies of each official layout, and what they say of themselves."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from miniatures import make_esc50, make_nyu, make_sun, write_csv, write_mp4, write_wav

from bindsearch.errors import InputError, MissingInputError, UnknownNameError, UnsupportedError
from bindsearch.evaluate import list_recipes, load_prompts, load_recipe, name_vectors, read_rows, run_recipe
from bindsearch.evaluate.layouts import list_items
from bindsearch.evaluate.recipe import presets_for
from bindsearch.evaluate.report import to_text
from bindsearch.models.spaces import load_space

DOCS = Path(__file__).parent.parent / "docs"
RECIPES = Path(__file__).parent.parent / "bindsearch" / "evaluate" / "recipes"


@pytest.fixture(scope="module")
def tiny():
    return load_space("tiny")


def test_esc50_averages_its_folds(tmp_path, tiny):
    make_esc50(tmp_path / "ESC-50")
    recipe = load_recipe("esc50")
    result = run_recipe(recipe, tmp_path / "ESC-50", tmp_path / "run", tiny)
    row = result["rows"]["audio"]
    assert result["items"] == {"audio": {"here": 25, "paper": 2000}} and row["classes"] == 50
    assert row["accuracy_at_1"]["value"] == pytest.approx(np.mean([fold["value"] for fold in row["folds"].values()]))
    assert len(row["folds"]) == 5 and sum(each["n"] for each in row["per_class"].values()) == 25
    (beside,) = result["paper"]
    assert beside["paper"] == 0.669 and beside["here"] == row["accuracy_at_1"]
    # by plain numpy: the class vectors of 50 names through 80 prompts
    rows = read_rows(tmp_path / "run" / "embeddings")
    prompts = load_prompts("clip80")
    vectors = []
    for each in recipe.classes:
        embedded = tiny.embed("text", prompts.fill(each.names[0])).astype(float).mean(axis=0)
        vectors.append(embedded / np.linalg.norm(embedded))
    best = np.argmax(rows.vectors.astype(float) @ np.array(vectors).T, axis=1)
    right = [recipe.classes[place].label == label for place, label in zip(best, rows.columns["label"], strict=True)]
    assert row["accuracy_at_1"]["value"] == pytest.approx(np.mean(right))


def test_a_broken_clip_counts_as_wrong_at_1_and_at_5_alike(tmp_path, tiny):
    make_esc50(tmp_path / "data", folds=2)
    (tmp_path / "data" / "audio" / "1-1000-A-0.wav").write_bytes(b"no sound")
    result = run_recipe(load_recipe("esc50"), tmp_path / "data", tmp_path / "run", tiny)
    row = result["rows"]["audio"]
    assert (row["queries"], row["missed"]) == (10, 1)
    assert row["per_class"]["dog"]["n"] == 2 and [fold["n"] for fold in row["folds"].values()] == [5, 5]
    # by plain numpy: folds are of one size here, so that their mean is that of all, the broken one among them
    rows = read_rows(tmp_path / "run" / "embeddings")
    classes = load_recipe("esc50").classes
    vectors = name_vectors(tiny, classes, load_prompts("clip80"))
    order = np.argsort(-(rows.vectors.astype(float) @ vectors.T), axis=1)
    place = {each.label: number for number, each in enumerate(classes)}
    rank = [row.tolist().index(place[label]) for row, label in zip(order, rows.columns["label"], strict=True)]
    assert row["accuracy_at_1"]["value"] == pytest.approx(sum(each < 1 for each in rank) / 10)
    assert row["accuracy_at_5"]["value"] == pytest.approx(sum(each < 5 for each in rank) / 10)
    assert "audio: 1 of 10 queries count as failures" in to_text(result)


def test_a_second_run_embeds_nothing(tmp_path, tiny, monkeypatch):
    make_esc50(tmp_path / "data", names=("dog", "rain"), folds=1)
    recipe = load_recipe("esc50")
    first = run_recipe(recipe, tmp_path / "data", tmp_path / "run", tiny)

    def refuse(*_arguments):
        raise AssertionError("encoded again")

    monkeypatch.setattr(type(tiny), "encode_raw", refuse)
    assert run_recipe(recipe, tmp_path / "data", tmp_path / "run", tiny) == first


def test_audiocaps_leaves_out_lost_clips(tmp_path, tiny):
    root = tmp_path / "audiocaps"
    clips = [("aB-1_x", 30), ("zz", 10), ("gone", 0), ("q", 5)]
    rows = [
        {
            "audiocap_id": 10 * number + caption,
            "youtube_id": name,
            "start_time": start,
            "caption": f"sound {number} {caption}",
        }
        for number, (name, start) in enumerate(clips)
        for caption in range(5)
    ]
    write_csv(root / "dataset" / "test.csv", rows)
    for number, name in enumerate(("aB-1_x_30.wav", "Yzz.wav", "30.flac")):  # three ways of naming
        write_wav(root / "audio" / name, number)
    result = run_recipe(load_recipe("audiocaps"), root, tmp_path / "run", tiny)
    row = result["rows"]["audio"]
    assert (row["queries"], row["gallery"], row["missed"]) == (15, 3, 0)
    assert {each["figure"] for each in result["paper"]} == {"recall_at_1", "recall_at_10"}
    assert row["recall_at_10"]["value"] == 1  # three clips fit ten places
    (root / "audio" / "test").mkdir()  # or in a folder of the split
    for path in (root / "audio").glob("*.*"):
        path.rename(root / "audio" / "test" / path.name)
    assert run_recipe(load_recipe("audiocaps"), root, tmp_path / "below", tiny)["rows"] == result["rows"]
    for path in (root / "audio" / "test").iterdir():
        path.unlink()
    with pytest.raises(MissingInputError, match=r"captions alone.*youtube_id"):
        run_recipe(load_recipe("audiocaps"), root, tmp_path / "other", tiny)


def test_clotho_asks_each_caption(tmp_path, tiny):
    root = tmp_path / "clotho"
    names = ["rain on roof.wav", "Dogs, two (far).wav", "engine.wav"]
    for number, name in enumerate(names):
        write_wav(root / "evaluation" / name, number, 3.0)
    captions = {f"caption_{number}": f"words {number}" for number in range(1, 6)}
    write_csv(root / "clotho_captions_evaluation.csv", [{"file_name": name, **captions} for name in names])
    row = run_recipe(load_recipe("clotho"), root, tmp_path / "run", tiny)["rows"]["audio"]
    assert (row["queries"], row["gallery"]) == (15, 3)
    # the same five captions for each recording: of five equal queries one in three is right, whatever the space says
    assert row["recall_at_1"]["value"] == pytest.approx(1 / 3)
    (root / "evaluation" / names[1]).unlink()
    with pytest.raises(MissingInputError, match=r"1 of 3 files.*Dogs, two.*zenodo"):
        run_recipe(load_recipe("clotho"), root, tmp_path / "run", tiny)


def test_videos_without_any_sound_are_missed_by_sound_alone(tmp_path, tiny):
    root, rows = tmp_path / "msrvtt", []
    for number in range(2):
        write_mp4(root / "videos" / "all" / f"video{number}.mp4", number, sound=False)
        rows.append({"key": f"ret{number}", "video_id": f"video{number}", "sentence": f"a thing {number}"})
    write_csv(root / "MSRVTT_JSFUSION_test.csv", rows)
    result = run_recipe(load_recipe("msrvtt"), root, tmp_path / "run", tiny)
    found = result["rows"]
    assert (found["audio"]["queries"], found["audio"]["missed"], found["audio"]["gallery"]) == (2, 2, 0)
    assert found["audio"]["recall_at_10"]["value"] == 0 and "median_rank" not in found["audio"]
    assert found["video"]["recall_at_10"]["value"] == 1 and found["video"]["missed"] == 0
    assert "audio: 2 of 2 queries count as failures" in to_text(result)


def test_msrvtt_sums_pictures_and_sound(tmp_path, tiny):
    root = tmp_path / "msrvtt"
    rows = []
    for number in range(5):
        name = f"video{7010 + number}"
        write_mp4(root / "videos" / "all" / f"{name}.mp4", number, sound=number != 3)
        rows.append(
            {"key": f"ret{number}", "vid_key": f"msr{7010 + number}", "video_id": name, "sentence": f"a thing {number}"}
        )
    write_csv(root / "MSRVTT_JSFUSION_test.csv", rows)
    result = run_recipe(load_recipe("msrvtt"), root, tmp_path / "run", tiny)
    assert {name: count["here"] for name, count in result["items"].items()} == {"video": 5, "audio": 4, "text": 5}
    found = result["rows"]
    assert (found["audio"]["gallery"], found["audio"]["missed"]) == (4, 1)  # the silent one stays in as a miss
    assert (found["video+audio"]["gallery"], found["video+audio"]["partial"]) == (5, 1)
    assert (
        found["audio"]["recall_at_10"]["value"] == pytest.approx(0.8) and found["video"]["recall_at_10"]["value"] == 1
    )
    embedded = read_rows(tmp_path / "run" / "embeddings")
    of = {
        (m, p): v.astype(float)
        for m, p, v in zip(embedded.modality, embedded.columns["pair"], embedded.vectors, strict=True)
    }
    names = [row["video_id"] for row in rows]
    sums = [0.95 * of["video", name] + 0.05 * of.get(("audio", name), 0) for name in names]
    gallery = np.array([total / np.linalg.norm(total) for total in sums])
    texts = np.array([of["text", name] for name in names])
    best = np.argmax(texts @ gallery.T, axis=1)
    assert found["video+audio"]["recall_at_1"]["value"] == pytest.approx(np.mean(best == np.arange(5)))


def test_nyu_reads_depth_and_the_tenth_class(tmp_path, tiny):
    depths = make_nyu(tmp_path / "nyu")
    recipe = load_recipe("nyu-d")
    space = tiny.with_preset(presets_for(recipe, None))
    result = run_recipe(recipe, tmp_path / "nyu", tmp_path / "run", space)
    rows = read_rows(tmp_path / "run" / "embeddings")
    assert dict(zip(rows.columns["key"], rows.columns["label"], strict=True)) == {
        "0002": "others", "0003": "kitchen", "0004": "others", "0006": "living_room"
    }  # fmt: skip
    assert result["rows"]["depth"]["classes"] == 10 and result["presets"]["depth"].startswith("millimetres:")
    assert len(recipe.classes[-1].names) == 18
    from PIL import Image

    written = np.asarray(Image.open(tmp_path / "run" / "prepared" / "0002.png"))
    assert written.dtype == np.uint16 and np.abs(written / 1000 - depths[1].T).max() <= 0.0005


def test_sun_takes_each_sensors_optics(tmp_path, tiny):
    millimetres = make_sun(tmp_path / "sun")
    recipe = load_recipe("sun-d")
    space = tiny.with_preset(presets_for(recipe, None))
    result = run_recipe(recipe, tmp_path / "sun", tmp_path / "run", space)
    assert result["items"]["depth"] == {"here": 3, "paper": 4660} and len(recipe.classes) == 19
    from PIL import Image

    for name, baseline_m in (("kv2/a/1", 0.075), ("realsense/c/3", 0.095)):
        written = np.asarray(Image.open(tmp_path / "run" / "prepared" / f"SUNRGBD-{name.replace('/', '-')}.png")) / 1000
        disparity = 0.075 * 518.857901 / written  # what the preset makes of it
        wanted = baseline_m * 529.5 / (millimetres[name] / 1000)
        assert np.abs(disparity / wanted - 1).max() < 1.5e-3


def test_llvip_cuts_persons_and_boxes_without(tmp_path, tiny):
    from PIL import Image

    root = tmp_path / "LLVIP"
    (root / "infrared" / "test").mkdir(parents=True)
    (root / "Annotations").mkdir()
    rng = np.random.default_rng(10)
    boxes = {"190001": [(10, 20, 40, 90)], "190002": [(0, 0, 30, 60), (50, 10, 90, 80)]}
    for name, here in boxes.items():
        grey = rng.integers(0, 255, (120, 200), dtype=np.uint8)
        Image.fromarray(np.stack([grey] * 3, axis=-1)).save(root / "infrared" / "test" / f"{name}.jpg", quality=95)
        objects = "".join(
            f"<object><name>person</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
            for a, b, c, d in here
        )
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    result = run_recipe(load_recipe("llvip"), root, tmp_path / "run", tiny)
    assert result["items"]["thermal"]["here"] == 6
    assert {name: each["n"] for name, each in result["rows"]["thermal"]["per_class"].items()} == {
        "person": 3,
        "background": 3,
    }
    prepared = tmp_path / "run" / "prepared"
    picture = np.asarray(Image.open(root / "infrared" / "test" / "190002.jpg").convert("L"))
    assert np.array_equal(np.asarray(Image.open(prepared / "190002-person-1.png")), picture[10:80, 50:90])
    empty = np.asarray(Image.open(prepared / "190002-background-0.png"))
    assert empty.shape == (60, 30)
    views = np.lib.stride_tricks.sliding_window_view(picture, empty.shape)
    ((top, left),) = np.argwhere((views == empty).all(axis=(2, 3)))
    assert all(left + 30 <= a or c <= left or top + 60 <= b or d <= top for a, b, c, d in boxes["190002"])


def test_what_was_cut_of_other_files_is_cut_anew(tmp_path):
    from PIL import Image

    def make(root, box, level):
        (root / "infrared" / "test").mkdir(parents=True)
        (root / "Annotations").mkdir()
        grey = np.random.default_rng(level).integers(0, 256, (100, 150), dtype=np.uint8)
        Image.fromarray(grey).save(root / "infrared" / "test" / "1.jpg")
        edges = "".join(
            f"<{name}>{at}</{name}>" for name, at in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        (root / "Annotations" / "1.xml").write_text(f"<a><object><bndbox>{edges}</bndbox></object></a>")

    def cut(root, recipe=None, out="shared"):
        rows = list_items(recipe or load_recipe("llvip"), tmp_path / root, tmp_path / out)
        return [np.asarray(Image.open(row["path"])) for row in rows]

    def same(one, other):
        return [np.array_equal(*each) for each in zip(one, other, strict=True)]

    make(tmp_path / "a", (10, 10, 30, 60), 0)
    make(tmp_path / "b", (40, 20, 90, 50), 1)
    first = cut("a")
    assert same(cut("b"), cut("b", out="fresh")) == [True, True] and same(cut("a"), first) == [True, True]
    seeded = replace(load_recipe("llvip"), options={"seed": 7})
    assert same(cut("a", seeded), first) == [True, False]
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").iterdir()}
    cut("a", seeded)
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").iterdir()}


def test_depth_of_other_data_is_written_anew(tmp_path, tiny):
    from PIL import Image

    depths = make_nyu(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with h5py.File(tmp_path / "b" / "nyu_depth_v2_labeled.mat", "r+") as file:
        file["depths"][...] = file["depths"][...] * 0.5
    recipe = load_recipe("nyu-d")
    space = tiny.with_preset(presets_for(recipe, None))
    for root, factor in (("a", 1), ("b", 0.5)):
        run_recipe(recipe, tmp_path / root, tmp_path / "run", space)
        written = np.asarray(Image.open(tmp_path / "run" / "prepared" / "0002.png"))
        assert np.abs(written / 1000 - factor * depths[1].T).max() <= 0.0006
        fresh = run_recipe(recipe, tmp_path / root, tmp_path / f"fresh-{root}", space)
        assert fresh["rows"] == run_recipe(recipe, tmp_path / root, tmp_path / "run", space)["rows"]
        rows = {name: read_rows(tmp_path / name / "embeddings") for name in ("run", f"fresh-{root}")}
        of = [dict(zip(each.columns["key"], each.vectors, strict=True)) for each in rows.values()]
        assert set(of[0]) == set(of[1]) and all(np.allclose(of[0][key], of[1][key], atol=1e-3) for key in of[0])
    make_sun(tmp_path / "sun")
    recipe = load_recipe("sun-d")
    row = list_items(recipe, tmp_path / "sun", tmp_path / "cut")[0]
    before = np.asarray(Image.open(row["path"])).astype(float)
    lens = tmp_path / "sun" / row["key"] / "intrinsics.txt"
    focal, _, rest = lens.read_text().partition(" ")
    lens.write_text(f"{2 * float(focal)} {rest}")
    list_items(recipe, tmp_path / "sun", tmp_path / "cut")
    assert np.abs(np.asarray(Image.open(row["path"])) - before / 2).max() <= 1


def test_recipes_that_cannot_be_meant(tmp_path):
    good = json.loads((RECIPES / "esc50.json").read_text(encoding="utf-8"))
    path = tmp_path / "mine.json"
    path.write_bytes("\ufeff{}".encode("utf-16"))
    with pytest.raises(InputError, match=r"mine\.json: not valid JSON"):
        load_recipe(path)
    path.write_text(json.dumps({**good, "needs": good["needs"][:1]}))
    with pytest.raises(InputError, match="needs: expected 2 entries, as every layout reads them, got 1"):
        load_recipe(path)
    path.write_text(json.dumps({**good, "paper": [{**good["paper"][0], "figure": "acuracy_at_1"}]}))
    with pytest.raises(
        UnknownNameError, match=r"figure of the paper in .*'acuracy_at_1'.*Did you mean 'accuracy_at_1'"
    ):
        load_recipe(path)


@pytest.mark.parametrize("name", list_recipes())
def test_missing_files_say_what_to_download_where(name, tmp_path, tiny):
    recipe = load_recipe(name)
    with pytest.raises(MissingInputError) as caught:
        run_recipe(recipe, tmp_path / "nothing", tmp_path / "run", tiny)
    for need in recipe.needs:
        assert need.any_of[0] in str(caught.value) and need.where in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_files_of_another_kind_are_refused(tmp_path, tiny):
    root = tmp_path / "clotho"
    write_csv(root / "clotho_captions_evaluation.csv", [{"file": "a.wav", "caption": "words"}])
    (root / "evaluation").mkdir()
    with pytest.raises(InputError, match=r"expected a column 'file_name', got file, caption. Is it the official file"):
        run_recipe(load_recipe("clotho"), root, tmp_path / "run", tiny)
    make_nyu(tmp_path / "nyu")
    (tmp_path / "nyu" / "splits.mat").write_bytes(b"no Matlab file at all" * 20)
    with pytest.raises(InputError, match=r"splits.mat: cannot be read as a Matlab file"):
        run_recipe(load_recipe("nyu-d"), tmp_path / "nyu", tmp_path / "run", tiny)
    make_sun(tmp_path / "sun")
    shutil.rmtree(tmp_path / "sun" / "SUNRGBD" / "kv1")
    with pytest.raises(MissingInputError, match=r"1 of the test folders .* SUNRGBD/kv1/d/4.*SUNRGBD.zip"):
        run_recipe(load_recipe("sun-d"), tmp_path / "sun", tmp_path / "run", tiny)


def test_a_recipe_of_ones_own(tmp_path, tiny):
    make_esc50(tmp_path / "data", names=("dog", "rain"), folds=1)
    data = json.loads((RECIPES / "esc50.json").read_text(encoding="utf-8"))
    data |= {"name": "mine", "templates": "plain", "classes": [{"label": "dog", "names": ["dog"]}], "paper": []}
    (tmp_path / "mine.json").write_text(json.dumps(data))
    row = run_recipe(load_recipe(tmp_path / "mine.json"), tmp_path / "data", tmp_path / "run", tiny)["rows"]["audio"]
    assert (row["queries"], row["without"], row["accuracy_at_1"]["value"]) == (1, 1, 1)  # rain is no class of it
    (tmp_path / "mine.json").write_text(json.dumps({**data, "tsk": "classify"}))
    with pytest.raises(InputError, match="unknown field 'tsk'"):
        load_recipe(tmp_path / "mine.json")
    paper = [{"row": "sound", "figure": "accuracy_at_1", "value": 0.5, "source": "nowhere"}]
    (tmp_path / "mine.json").write_text(json.dumps({**data, "paper": paper}))
    with pytest.raises(UnknownNameError, match=r"Unknown row of the paper in .* 'sound'"):
        load_recipe(tmp_path / "mine.json")
    (tmp_path / "mine.json").write_text(json.dumps({**data, "classes": []}))
    with pytest.raises(InputError, match="needs modalities and classes"):
        load_recipe(tmp_path / "mine.json")


@pytest.mark.parametrize("name", list_recipes())
def test_recipes_are_whole(name):
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.paper and recipe.items and recipe.needs
    rows = {answer.name for answer in recipe.answers} or set(recipe.modalities)
    figures = {f"recall_at_{k}" for k in recipe.ks} | {"accuracy_at_1"}
    assert all(each.row in rows and each.figure in figures and 0 < each.value < 1 for each in recipe.paper)
    names = [word for each in recipe.classes for word in each.names]
    assert len(names) == len(set(names)) and all("_" not in word for word in names)


def test_the_page_on_measuring_is_true():
    page, cli = ((DOCS / name).read_text(encoding="utf-8") for name in ("evaluate.md", "cli.md"))
    rows = {
        row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `") and "--" not in row.split("`")[1]
    }
    assert set(rows) == set(list_recipes())
    for name, row in rows.items():
        recipe = load_recipe(name)
        assert any(f"`{each}" in row for need in recipe.needs for each in need.any_of)
        firsts = [each for each in recipe.paper if each.figure.endswith("_at_1")]
        assert all(f"{100 * each.value:.1f}" in row for each in firsts), row
    for words in re.findall(r"`(--[a-z-]+)", page):
        assert f"{words} " in cli, words


def test_a_space_without_the_modality_is_refused(tmp_path):
    make_nyu(tmp_path / "nyu")

    class Deaf:
        modalities, space_id = ("image", "text"), "deaf@1"

    with pytest.raises(UnsupportedError, match=r"deaf@1 has no depth.*imagebind-huge"):
        run_recipe(load_recipe("nyu-d"), tmp_path / "nyu", tmp_path / "run", Deaf())
