"""Figures against their definitions, the recipes against miniature copies of each official layout."""

from __future__ import annotations

import csv
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bindsearch.cli import run
from bindsearch.errors import InputError, MismatchError, MissingInputError, UnknownNameError, UnsupportedError
from bindsearch.evaluate import (
    ClassName,
    Rows,
    bootstrap,
    judge,
    list_recipes,
    load_recipe,
    measure_labels,
    measure_pairs,
    measure_zero_shot,
    read_rows,
    run_recipe,
    wilson,
)
from bindsearch.evaluate.metrics import average_precision, judge_scores
from bindsearch.evaluate.recipe import fuse, presets_for
from bindsearch.models.spaces import load_space

DOCS = Path(__file__).parent.parent / "docs"


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def toy_rows(vectors, modality, **columns):
    columns = {"key": [str(number) for number in range(len(vectors))], **columns}
    return Rows(unit(np.asarray(vectors, dtype=float)), np.array(modality), columns, "toy@0", "toy", "toy rows")


# ---- metrics against brute force -------------------------------------------------------------------------------------


def orders_of(scores):
    """All orders of items that respect descending scores."""
    places = sorted(range(len(scores)), key=lambda place: -scores[place])
    blocks = [list(block) for _, block in itertools.groupby(places, key=lambda place: scores[place])]
    for parts in itertools.product(*(itertools.permutations(block) for block in blocks)):
        yield [place for part in parts for place in part]


def precision_of(order, right):
    found, total = 0, 0.0
    for rank, place in enumerate(order, start=1):
        if right[place]:
            found += 1
            total += found / rank
    return total / found if found else 0.0


def first_of(order, right):
    return next((rank for rank, place in enumerate(order, start=1) if right[place]), len(order) + 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6))
def test_ties_are_all_orders(items):
    scores = np.array([[float(score) for score, _ in items]])
    right = np.array([[truth for _, truth in items]])
    orders = list(orders_of(scores[0].tolist()))
    precisions = [precision_of(order, right[0]) for order in orders]
    ranks = [first_of(order, right[0]) for order in orders]
    worst, mean = (judge_scores(scores, right, None, ties) for ties in ("pessimistic", "expected"))
    assert worst.precision[0] == pytest.approx(min(precisions))
    assert mean.precision[0] == pytest.approx(np.mean(precisions))
    assert worst.ranks()[0] == max(ranks)
    assert mean.ranks()[0] == pytest.approx(np.mean(ranks))
    for k in range(1, len(items) + 2):
        assert worst.hits(k)[0] == float(right.any() and max(ranks) <= k)
        assert mean.hits(k)[0] == pytest.approx(np.mean([right.any() and rank <= k for rank in ranks]))


def test_hits_by_hand():
    scores = np.array([[0.9, 0.5, 0.5, 0.1], [0.9, 0.5, 0.5, 0.1], [0.2, 0.3, 0.4, 0.5]])
    right = np.array([[0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]], dtype=bool)
    found = judge_scores(scores, right)
    assert found.ranks().tolist() == [3, 1, 5]
    assert found.hits(2).tolist() == [0, 1, 0] and found.hits(3).tolist() == [1, 1, 0]
    assert found.precision.tolist() == pytest.approx([1 / 3, (1 + 2 / 4) / 2, 0])
    assert judge_scores(scores, right, None, "expected").hits(2).tolist() == [0.5, 1, 0]
    assert found.chance(2).tolist() == pytest.approx([2 / 4, 1 - 1 / 6, 0])
    assert found.ties_matter() == 1


def test_what_is_barred_is_no_answer():
    scores, right = np.array([[1.0, 0.9, 0.8]]), np.array([[True, False, True]])
    found = judge_scores(scores, right, np.array([[True, False, False]]))
    assert (found.ranks()[0], found.gallery[0], found.right[0], found.precision[0]) == (2, 2, 1, 0.5)


def test_average_precision_is_scikit_learns():
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(3)
    scores, right = rng.standard_normal((20, 40)), rng.random((20, 40)) < 0.2
    expected = [average_precision_score(truth, score) for truth, score in zip(right, scores, strict=True)]
    for ties in ("pessimistic", "expected"):
        assert average_precision(scores, right, ties) == pytest.approx(expected)


def test_judging_in_blocks_is_judging_at_once(monkeypatch):
    rng = np.random.default_rng(4)
    queries, gallery = unit(rng.standard_normal((30, 8))), unit(rng.standard_normal((50, 8)))
    right = rng.random((30, 50)) < 0.1
    whole = judge(queries, gallery, lambda block: right[block])
    monkeypatch.setattr("bindsearch.evaluate.metrics._BLOCK_BYTES", 8 * 50 * 7)
    parts = judge(queries, gallery, lambda block: right[block])
    assert np.array_equal(whole.ranks(), parts.ranks()) and np.array_equal(whole.precision, parts.precision)
    order = np.argsort(-(queries.astype(float) @ gallery.T.astype(float)), axis=1)
    brute = [
        next((rank for rank, place in enumerate(row, 1) if truth[place]), 51)
        for row, truth in zip(order, right, strict=True)
    ]
    assert whole.ranks().tolist() == brute


def test_equal_rows_tie_whatever_their_place():
    rng = np.random.default_rng(5)
    row = rng.standard_normal(300)
    gallery = unit(np.vstack([rng.standard_normal((37, 300)), np.tile(row, (9, 1)), rng.standard_normal((14, 300))]))
    right = np.zeros((1, 60), dtype=bool)
    right[0, 45] = True
    found = judge(unit(row[None] + 0.1), gallery, lambda block: right[block])
    assert found.tied_wrong[0] == 8


def test_wilson_is_statsmodels_formula():
    # Newcombe 1998, table I: 81 of 263 and 15 of 148 and 0 of 20 and 1 of 29, without continuity correction
    for count, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = wilson(count / n, n)
        assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)
    with pytest.raises(InputError, match="at least one trial"):
        wilson(0.5, 0)


def test_bootstrap_covers_and_draws_groups_together():
    rng = np.random.default_rng(6)
    alone = bootstrap(rng.standard_normal(400), seed=1)
    assert (alone.high - alone.low) == pytest.approx(2 * 1.96 / 20, rel=0.15)
    repeated = np.repeat(rng.standard_normal(80), 5)
    wide = bootstrap(repeated, groups=np.repeat(np.arange(80), 5), seed=1)
    narrow = bootstrap(repeated, seed=1)
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(np.sqrt(5), rel=0.2)
    middle = bootstrap(np.array([1.0, 2, 3, 100]), "median", seed=0)
    assert middle.value == 2.5 and middle.low >= 1 and middle.high <= 100


# ---- matrices --------------------------------------------------------------------------------------------------------


def test_pairs_by_hand():
    vectors = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0.1, 0], [0.9, 1, 0], [0, 1, 0.9]]
    rows = toy_rows(vectors, ["image"] * 3 + ["text"] * 3, pair=["a", "b", "c", "a", "b", "c"])
    found = {(row["query"], row["answer"]): row for row in measure_pairs(rows, "pair", ks=(1, 2))}
    assert set(found) == {("image", "text"), ("text", "image")}  # nothing of one modality belongs together
    # texts: a -> a; b -> b; c -> b, then c.  images: a -> a; b -> c (0.743 over 0.743.. of b), c -> c
    there = found["text", "image"]
    assert there["recall_at_1"].value == pytest.approx(2 / 3) and there["recall_at_2"].value == 1
    assert there["map"].value == pytest.approx((1 + 1 + 0.5) / 3) and there["median_rank"].value == 1
    assert there["chance_at_1"] == pytest.approx(1 / 3, abs=1e-6)


def test_a_query_is_not_its_own_answer_and_lonely_ones_are_counted():
    vectors = np.eye(5)
    rows = toy_rows(vectors, ["audio"] * 5, pair=["a", "a", "b", None, "c"])
    (row,) = measure_pairs(rows, "pair", ks=(1,))
    assert (row["queries"], row["without"], row["gallery"]) == (2, 2, 3)
    assert row["recall_at_1"].value == 0  # all scores are zero: ties are resolved against us
    (row,) = measure_pairs(rows, "pair", ks=(1,), ties="expected")
    assert row["recall_at_1"].value == pytest.approx(1 / 3)


def test_labels_with_and_without_the_own_pair():
    vectors = [[1, 0], [0, 1], [1, 0.05], [0.05, 1], [1, 0.5]]
    rows = toy_rows(
        vectors,
        ["image", "image", "text", "text", "text"],
        pair=["p", "q", "p", "q", "r"],
        subject=["x", "y", "x", "y", "y"],
    )
    with_own = {(row["query"], row["answer"]): row for row in measure_labels(rows, "subject")}
    assert with_own["image", "text"]["accuracy_at_1"].value == 1
    without = {(row["query"], row["answer"]): row for row in measure_labels(rows, "subject", own="pair")}
    # image p (x): its own text was the only other x, so no partner is left; image q (y): the best other is text r (y)
    assert without["image", "text"]["queries"] == 1 and without["image", "text"]["without"] == 1
    assert without["image", "text"]["accuracy_at_1"].value == 1
    with pytest.raises(UnknownNameError, match="subject"):
        measure_labels(rows, "subjct")


def test_nothing_to_find_is_said():
    with pytest.raises(InputError, match="nothing to find"):
        measure_pairs(toy_rows(np.eye(2), ["image", "text"], pair=["a", "b"]), "pair")


def test_zero_shot_by_hand():
    classes = (ClassName("dog", ("dog", "puppy")), ClassName("cat", ("cat",)))
    names = unit(np.array([[1, 0, 0.0], [0, 0, 1], [0, 1, 0]]))
    rows = toy_rows(
        [[1, 0.2, 0], [0, 0.2, 1], [0.2, 1, 0], [0, 1, 0.5], [1, 0, 0]],
        ["audio"] * 5,
        label=["dog", "dog", "cat", "dog", None],
        fold=["1", "1", "1", "2", "2"],
    )
    found = measure_zero_shot(rows, "audio", "label", classes, names, fold="fold")
    assert (found["queries"], found["without"]) == (4, 1)
    # the second is a dog through "puppy" alone; the fourth is taken for a cat; folds: 3 of 3 and 0 of 1
    assert found["accuracy_at_1"].value == pytest.approx(0.5)
    assert {name: figure.value for name, figure in found["folds"].items()} == {"1": 1.0, "2": 0.0}
    assert found["per_class"] == {"dog": {"accuracy": 0.666667, "n": 3}, "cat": {"accuracy": 1.0, "n": 1}}
    with pytest.raises(InputError, match=r"no audio has one of the 1 classes.*dog"):
        measure_zero_shot(rows, "audio", "label", (ClassName("car", ("car",)),), names[:1])


def test_several_labels_an_item_are_measured_by_map():
    classes = tuple(ClassName.of_label(name) for name in ("a", "b", "c"))
    rows = toy_rows([[1, 0.9, 0], [0, 1, 0.1], [0.1, 0, 1]], ["audio"] * 3, tags=[["a", "b"], ["b"], ["c"]])
    found = measure_zero_shot(rows, "audio", "tags", classes, np.eye(3, dtype=np.float32))
    assert found["accuracy_at_1"].value == 1 and found["map"].value == 1


def test_fusing_weights_and_holes():
    rows = toy_rows([[1, 0], [0, 1], [1, 1], [0, 1]], ["video", "audio", "video", "text"], pair=["p", "p", "q", "p"])
    things, vectors, partial = fuse(rows, np.array([0, 0, 1, 0]), {"video": 0.95, "audio": 0.05})
    assert things.tolist() == [0, 1] and partial == 1
    expected = np.array([0.95, 0.05]) / np.hypot(0.95, 0.05)
    assert vectors[0] == pytest.approx(expected, abs=1e-7) and vectors[1] == pytest.approx([0.5**0.5] * 2, abs=1e-7)


# ---- recipes: miniature copies of each layout ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    return load_space("tiny")


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_wav(path, seed, seconds=1.0):
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    time = np.arange(int(16000 * seconds)) / 16000
    wave = 0.3 * np.sin(2 * np.pi * (200 + 150 * seed) * time) + 0.05 * rng.standard_normal(time.size)
    soundfile.write(path, wave.astype(np.float32), 16000, subtype="PCM_16")


def write_mp4(path, seed, sound):
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=8)
        pictures.width = pictures.height = 64
        pictures.pix_fmt = "yuv420p"
        waves = container.add_stream("aac", rate=16000) if sound else None
        base = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        for number in range(16):
            frame = av.VideoFrame.from_ndarray(np.roll(base, 3 * number, axis=1), format="rgb24")
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode(None))
        if waves is not None:
            wave = (0.3 * np.sin(np.arange(32000) * (0.05 + 0.02 * seed))).astype(np.float32)
            for start in range(0, 32000, 1024):
                part = wave[None, start : start + 1024]
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 16000, start
                container.mux(waves.encode(frame))
            container.mux(waves.encode(None))


def make_esc50(root, names=("dog", "rain", "sea_waves", "siren", "hen"), folds=5):
    rows = []
    for fold, (number, name) in itertools.product(range(1, folds + 1), enumerate(names)):
        file = f"{fold}-{1000 + number}-A-{number}.wav"
        write_wav(root / "audio" / file, 10 * fold + number, 0.5)
        rows.append(
            {
                "filename": file,
                "fold": fold,
                "target": number,
                "category": name,
                "esc10": "False",
                "src_file": 1,
                "take": "A",
            }
        )
    write_csv(root / "meta" / "esc50.csv", rows)


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
    from bindsearch.evaluate import load_prompts

    rows = read_rows(tmp_path / "run" / "embeddings")
    prompts = load_prompts("clip80")
    vectors = []
    for each in recipe.classes:
        embedded = tiny.embed("text", prompts.fill(each.names[0])).astype(float).mean(axis=0)
        vectors.append(embedded / np.linalg.norm(embedded))
    best = np.argmax(rows.vectors.astype(float) @ np.array(vectors).T, axis=1)
    right = [recipe.classes[place].label == label for place, label in zip(best, rows.columns["label"], strict=True)]
    assert row["accuracy_at_1"]["value"] == pytest.approx(np.mean(right))


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
    for path in (root / "audio").iterdir():
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


def make_nyu(root):
    import h5py
    from scipy.io import savemat

    root.mkdir(parents=True)
    scenes = ["bedroom", "office_kitchen", "kitchen", "excercise_room", "bedroom", "living_room"]
    rng = np.random.default_rng(8)
    depths = rng.uniform(0.7, 9, (6, 64, 48)).astype(np.float32)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
        file["depths"] = depths
        refs = []
        for number, scene in enumerate(scenes):
            file[f"#refs#/{number}"] = np.array([[ord(letter)] for letter in scene], dtype=np.uint16)
            refs.append(file[f"#refs#/{number}"].ref)
        types = file.create_dataset("sceneTypes", (1, 6), dtype=h5py.ref_dtype)
        types[0] = refs
    savemat(root / "splits.mat", {"trainNdxs": np.array([[1]]), "testNdxs": np.array([[2], [3], [4], [6]])})
    return depths


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


def make_sun(root):
    from PIL import Image
    from scipy.io import savemat

    scenes = {"kv2/a/1": "bathroom", "xtion/b/2": "idk", "realsense/c/3": "study_space", "kv1/d/4": "office"}
    rng = np.random.default_rng(9)
    millimetres = {}
    for name, scene in scenes.items():
        folder = root / "SUNRGBD" / name
        (folder / "depth_bfx").mkdir(parents=True)
        (folder / "scene.txt").write_text(scene)
        (folder / "intrinsics.txt").write_text("529.5 0.0 365.0\n0.0 529.5 265.0\n0 0 1")
        values = rng.integers(600, 7900, (40, 50)).astype(np.uint16)
        millimetres[name] = values
        Image.fromarray((values << 3) | (values >> 13)).save(folder / "depth_bfx" / "0000.png")
    cells = np.empty((1, 4), dtype=object)
    for place, name in enumerate(scenes):
        cells[0, place] = f"/n/fs/sun3d/data//SUNRGBD/{name}/"
    path = root / "SUNRGBDtoolbox" / "traintestSUNRGBD"
    path.mkdir(parents=True)
    savemat(path / "allsplit.mat", {"alltest": cells, "alltrain": cells[:, :1]})
    return millimetres


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


@pytest.mark.parametrize("name", list_recipes())
def test_missing_files_say_what_to_download_where(name, tmp_path, tiny):
    recipe = load_recipe(name)
    with pytest.raises(MissingInputError) as caught:
        run_recipe(recipe, tmp_path / "nothing", tmp_path / "run", tiny)
    for need in recipe.needs:
        assert need.any_of[0] in str(caught.value) and need.where in str(caught.value)
    assert not (tmp_path / "run").exists()


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


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Sixteen scenes of the demo's split as files, embedded by the bundled space."""
    from bindsearch.embed import EmbedOptions, run_embed
    from bindsearch.world.write import write_world

    folder = tmp_path_factory.mktemp("world")
    write_world(16, folder / "files", seed=2**34, size_px=64, modalities=("image", "audio", "text"))
    run_embed(
        [str(folder / "files")], folder / "embeddings", load_space("bindsearch-mini"), options=EmbedOptions(workers=0)
    )
    return folder


def test_command_on_embeddings(world, tmp_path, capsys):
    page, plot = tmp_path / "page.html", tmp_path / "plot.svg"
    code = run(
        ["evaluate", str(world / "embeddings"), "--pair", "group", "--label", "subject", "--table",
         str(world / "files" / "attributes.parquet"), "--html", str(page), "--plot", str(plot), "--json"]
    )  # fmt: skip
    result = json.loads(capsys.readouterr().out)
    assert code == 0 and result["items"] == {"audio": 16, "image": 16, "text": 16}
    rows = {(row["query"], row["answer"]): row for row in result["pairs"]["rows"]}
    assert len(rows) == 6 and all(row["gallery"] == 16 for row in rows.values())
    store = read_rows(world / "embeddings")
    vectors = {m: store.vectors[store.where(m)].astype(float) for m in store.modalities}
    groups = {m: np.array(store.columns["group"])[store.where(m)] for m in store.modalities}
    for (query, answer), row in rows.items():
        best = groups[answer][np.argmax(vectors[query] @ vectors[answer].T, axis=1)]
        assert row["recall_at_1"]["value"] == pytest.approx(np.mean(best == groups[query]), abs=1e-6)
    assert len(result["labels"]["subject"]) >= 6
    assert page.read_text().count("<table") == 4 and plot.read_text().startswith("<?xml")
    assert run(["evaluate", str(world / "embeddings")]) == 0
    assert "text   image" in capsys.readouterr().out


def test_command_on_a_manifest_with_zero_shot(world, tmp_path, capsys):
    import pyarrow.parquet as pq

    rows = pq.read_table(world / "files" / "attributes.parquet", use_threads=False, pre_buffer=False).to_pylist()
    lines = [
        {"path": str(world / "files" / f"{row['stem']}{suffix}"), "subject": row["subject"], "scene": row["stem"]}
        for row in rows
        for suffix in (".png", ".wav")
    ]
    manifest = tmp_path / "items.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [
        "evaluate",
        str(manifest),
        "--pair",
        "scene",
        "--zero-shot",
        "subject",
        "--templates",
        "a {}",
        "--workers",
        "0",
        "-q",
    ]
    assert run([*command, "--json"]) == 2
    assert "-o runs/NAME" in capsys.readouterr().err
    assert run([*command, "-o", str(tmp_path / "run"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    found = {row["modality"]: row for row in result["zero_shot"]["subject"]}
    assert set(found) == {"audio", "image"} and {row["query"] for row in result["pairs"]["rows"]} == {"audio", "image"}
    assert found["image"]["accuracy_at_1"]["value"] > 4 * found["image"]["chance_at_1"]
    with pytest.raises(MismatchError, match="--space bindsearch-mini"):
        from bindsearch.evaluate.run import Question, evaluate_rows

        evaluate_rows(
            read_rows(tmp_path / "run" / "embeddings"), Question(zero_shot=("subject",)), lambda: load_space("tiny")
        )


def test_command_runs_a_recipe(tmp_path, capsys):
    make_esc50(tmp_path / "data", names=("dog", "rain"), folds=2)
    out, plot = tmp_path / "run", tmp_path / "plot.png"
    command = [
        "evaluate",
        str(tmp_path / "data"),
        "--recipe",
        "esc50",
        "--space",
        "tiny",
        "-o",
        str(out),
        "--workers",
        "0",
        "-q",
    ]
    assert run([*command, "--plot", str(plot), "--html", str(tmp_path / "page.html")]) == 0
    text = capsys.readouterr().out
    assert "paper says" in text and "66.9 %" in text and "2000" in text
    presets = read_rows(out / "embeddings").preset_ids
    assert presets["audio"].startswith("reference:")  # what the released loader does
    assert run([*command, "--preset", "audio=default", "-o", str(tmp_path / "other"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["presets"]["audio"].startswith("default:")
    assert plot.stat().st_size > 5000 and "66.9" in (tmp_path / "page.html").read_text()
    assert run(["evaluate", "--list"]) == 0
    assert set(list_recipes()) == {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert run(["evaluate", str(tmp_path / "none"), "--recipe", "esc50", "--space", "tiny"]) == 3
    assert "github.com/karolpiczak/ESC-50" in capsys.readouterr().err
    assert run(["evaluate", "--recipe", "esc51", "--list"]) == 2
    assert "Did you mean 'esc50'" in capsys.readouterr().err


def test_embeddings_that_say_nothing_are_refused(tmp_path, capsys):
    from bindsearch.embed import EmbedOptions, run_embed

    (tmp_path / "texts").mkdir()
    for number in range(3):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"words {number}")
    run_embed([str(tmp_path / "texts")], tmp_path / "emb", load_space("tiny"), options=EmbedOptions(workers=0))
    assert run(["evaluate", str(tmp_path / "emb"), "--label", "subject"]) == 2
    assert "Unknown column" in capsys.readouterr().err
    assert run(["evaluate", str(tmp_path / "emb"), "--plot", "x.bmp"]) == 2
    assert ".svg" in capsys.readouterr().err
