"""Zero-shot classification: prompts, class vectors, probabilities, none of these, calibration, stores, the command."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bindsearch.embed import EmbedOptions, run_embed
from bindsearch.errors import (
    DecodeError,
    InputError,
    MismatchError,
    MissingInputError,
    ShapeError,
    UnknownNameError,
    UnsupportedError,
)
from bindsearch.models.spaces import load_space
from bindsearch.store import Identity, open_store
from bindsearch.store.files import read_parquet
from bindsearch.truth import named_rows, truth_of
from bindsearch.types import to_text
from bindsearch.verdicts import page_html, to_json, to_table
from bindsearch.zeroshot import (
    NONE,
    Classifier,
    Labels,
    Templates,
    build_classifier,
    calibrate,
    classify,
    classify_store,
    list_templates,
    load_calibration,
    load_templates,
    read_labels,
    save_calibration,
)
from bindsearch.zeroshot.calibration import Calibration, Fit, Quality, measure
from bindsearch.zeroshot.prompts import class_vectors
from bindsearch.zeroshot.tables import write_labels

TEXTS = {"dogs": "a dog on a beach", "cats": "a cat in a city", "rain": "rain falls on a car", "bell": "a bell rings"}


@pytest.fixture(scope="module")
def space():
    return load_space("tiny")


@pytest.fixture(scope="module")
def store(space, tmp_path_factory):
    """Four texts and a manifest's attribute, embedded in the seeded tiny space."""
    home = tmp_path_factory.mktemp("texts")
    lines = ["text,key,kind", *(f"{text},{key},{key[0]}" for key, text in TEXTS.items())]
    (home / "texts.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run_embed([home / "texts.csv"], home / "embeddings", space, options=EmbedOptions(workers=0), progress=False)
    return open_store(home / "embeddings")


def toy(labels: int = 6, dim: int = 12, seed: int = 0, scale: float = 10.0, **changes) -> Classifier:
    """A classifier of random directions."""
    rows = np.random.default_rng(seed).standard_normal((labels, dim))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    identity = Identity("toy", "toy@0123456789ab", dim, "float32", {"text": "text:1", "image": "vision:1"})
    names = tuple(f"label {number}" for number in range(labels))
    return Classifier(names, rows, {"image": scale, "audio": 2 * scale}, identity, "toy:0", **changes)


def near(vectors: np.ndarray, codes: np.ndarray, noise: float, seed: int) -> np.ndarray:
    """Unit rows near some vectors."""
    spread = np.random.default_rng(seed).standard_normal((len(codes), vectors.shape[1])) * noise
    rows = vectors[codes] + spread / np.sqrt(vectors.shape[1])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


# ---- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_templates())
def test_every_set_is_data_with_its_source(name):
    templates = load_templates(name)
    assert templates.source and templates.language in ("english", "german")
    assert len(set(templates.templates)) == len(templates.templates)
    assert all("zebra" in prompt and "{" not in prompt for prompt in templates.fill("zebra"))


def test_the_eighty_of_clip_are_eighty():
    templates = load_templates("clip80").templates
    assert len(templates) == 80
    assert {"a photo of a {}.", "itap of my {}.", "the {} in a video game.", "a origami {}."} <= set(templates)


def test_articles_follow_the_next_letter():
    templates = Templates("own", ("{a} {}", "{a} red {} of {a} {}"[:10], "see {a} {}."))
    assert templates.fill("airplane") == ["an airplane", "a red airplane", "see an airplane."]
    assert templates.fill("dog")[0] == "a dog"


def test_labels_are_read_from_words_and_files(tmp_path):
    assert read_labels("bird, rain,car").names == ("bird", "rain", "car")
    (tmp_path / "l.txt").write_text("bird\n\nsmall, red car\n", encoding="utf-8")
    assert read_labels(f"@{tmp_path / 'l.txt'}").names == ("bird", "small, red car")
    (tmp_path / "l.json").write_text('{"person": ["person", "man"], "street": "road"}', encoding="utf-8")
    found = read_labels(f"@{tmp_path / 'l.json'}")
    assert found.names == ("person", "street") and found.phrases == (("person", "man"), ("road",))


@pytest.mark.parametrize("bad", ["", " , ", "bird,bird", "@nowhere.txt"])
def test_labels_that_cannot_be_meant(bad, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingInputError if bad.startswith("@") else InputError):
        read_labels(bad)


def test_a_label_twice_in_json_is_refused(tmp_path):
    (tmp_path / "l.json").write_text('{"dog": "dog", "cat": "cat", "dog": ["puppy"]}', encoding="utf-8")
    with pytest.raises(InputError, match=r"l\.json: 'dog' is there twice\. Name it once"):
        read_labels(f"@{tmp_path / 'l.json'}")


def test_templates_that_cannot_be_meant(tmp_path):
    with pytest.raises(UnknownNameError, match="plain"):
        load_templates("plian")
    (tmp_path / "t.txt").write_text("a picture\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"expected one \{\}"):
        load_templates(tmp_path / "t.txt")
    (tmp_path / "t.txt").write_text("ein Bild: {}\n", encoding="utf-8")
    assert load_templates(tmp_path / "t.txt").fill("Hund") == ["ein Bild: Hund"]


def test_a_class_vector_is_the_mean_of_normalised_prompts(space):
    labels = Labels.of({"dog": ["dog", "puppy"], "cat": "cat"})
    templates = load_templates("world")
    found = class_vectors(space, labels, templates)
    prompts = [text for phrase in ("dog", "puppy") for text in templates.fill(phrase)]
    mean = space.embed("text", prompts).astype(np.float64).mean(axis=0)
    assert np.allclose(found[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert found.shape == (2, space.dim) and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


# ---- probabilities ---------------------------------------------------------------------------------------------------


def test_probabilities_are_the_softmax_at_the_modalitys_scale():
    classifier = toy()
    rows = near(classifier.vectors, np.arange(6), 1.0, seed=1)
    scores = classifier.scores(rows)
    for modality, scale in (("image", 10.0), ("audio", 20.0)):
        plain = np.exp(scale * (rows @ classifier.vectors.T).astype(np.float64))
        plain /= plain.sum(axis=1, keepdims=True)
        assert np.allclose(classifier.probabilities(scores, modality), plain, atol=1e-6)
    with pytest.raises(ShapeError, match="12"):
        classifier.scores(rows[:, :5])


def test_scales_come_from_the_space(space):
    classifier = build_classifier(space, ["dog", "cat"])
    assert classifier.scales["image"] == classifier.scales["text"] == pytest.approx(space.logit_scale("text"))
    assert classifier.scales["audio"] == pytest.approx(space.logit_scale("audio"))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), threshold=st.floats(-0.9, 0.9))
def test_none_wins_exactly_below_its_cosine(seed, threshold):
    classifier = toy(seed=seed, with_none=True, none_score=threshold)
    rows = near(classifier.vectors, np.arange(6), 3.0, seed=seed + 1)
    scores = classifier.scores(rows)
    shares = classifier.probabilities(scores, "image")
    clear = np.abs(scores.max(axis=1) - threshold) > 1e-4
    assert shares.shape == (6, 7) and np.allclose(shares.sum(axis=1), 1, atol=1e-5)
    assert np.array_equal((shares.argmax(axis=1) == 6)[clear], (scores.max(axis=1) < threshold)[clear])


def test_without_a_calibration_none_goes_by_doubt():
    classifier = toy(with_none=True)
    scores = np.array([[0.9, 0, 0, 0, 0, 0], [0.1, 0.1, 0.1, 0.1, 0.1, 0.1]], dtype=np.float32)
    shares = classifier.probabilities(scores, "image")
    assert shares.argmax(axis=1).tolist() == [0, 6] and shares[1, 6] == pytest.approx(5 / 6, abs=1e-6)
    assert np.allclose(shares.sum(axis=1), 1, atol=1e-6)


# ---- calibration -----------------------------------------------------------------------------------------------------


def test_calibration_finds_the_scale_that_made_the_truth():
    classifier = toy(labels=8, dim=16, scale=60.0)
    rng = np.random.default_rng(3)
    rows = near(classifier.vectors, rng.integers(0, 8, 3000), 2.0, seed=4)
    shares = np.exp(12.0 * classifier.scores(rows).astype(np.float64))
    shares /= shares.sum(axis=1, keepdims=True)
    truth = [classifier.labels[rng.choice(8, p=row)] for row in shares]
    fit = calibrate(classifier, rows, ["image"] * 3000, truth).fits["image"]
    assert fit.scale == pytest.approx(12.0, rel=0.08)
    assert fit.after.ece < 0.03 and fit.before.ece > 5 * fit.after.ece
    assert fit.after.nll < fit.before.nll and fit.after.accuracy == fit.before.accuracy


def test_none_is_learned_without_ever_seeing_an_outsider():
    whole = toy(labels=24, dim=32, seed=7)
    known = Classifier(whole.labels[:12], whole.vectors[:12], whole.scales, whole.identity, "toy:0")
    rng = np.random.default_rng(8)
    seen = rng.integers(0, 12, 1500)
    rows = near(whole.vectors, seen, 1.0, seed=9)
    fitted = calibrate(known, rows, ["image"] * 1500, [whole.labels[code] for code in seen])
    judge = Classifier(known.labels, known.vectors, known.scales, known.identity, "toy:0", True, None, fitted)
    asked = rng.integers(0, 24, 2000)
    scores = judge.scores(near(whole.vectors, asked, 1.0, seed=10))
    best = judge.probabilities(scores, "image").argmax(axis=1)
    outside = asked >= 12
    assert (best[outside] == 12).mean() > 0.9
    assert (best[~outside] == asked[~outside]).mean() > 0.9
    doubt = Classifier(known.labels, known.vectors, known.scales, known.identity, "toy:0", True)
    assert (doubt.probabilities(scores, "image").argmax(axis=1)[outside] == 12).mean() < (best[outside] == 12).mean()


def test_items_that_are_all_right_leave_the_scale_finite():
    classifier = toy(labels=4, dim=64)
    codes = np.arange(40) % 4
    rows = near(classifier.vectors, codes, 0.1, seed=2)
    fit = calibrate(classifier, rows, ["image"] * 40, [classifier.labels[code] for code in codes]).fits["image"]
    assert 5 < fit.scale < 200 and fit.after.accuracy == 1.0 and fit.none_score is not None


def test_a_calibration_is_kept_and_refused_elsewhere(tmp_path, space):
    classifier = build_classifier(space, list(TEXTS), modalities=["text"])
    rows = np.repeat(space.embed("text", list(TEXTS.values())), 5, axis=0)
    truth = [name for name in TEXTS for _ in range(5)]
    fitted = calibrate(classifier, rows, ["text"] * 20, truth)
    path = save_calibration(fitted, tmp_path / "deep" / "c.json")
    assert load_calibration(path) == fitted
    assert build_classifier(space, ["a", "b"], calibration=fitted).scale_of("text") == fitted.fits["text"].scale
    with pytest.raises(MismatchError, match="tiny"):
        build_classifier(load_space("tiny:5"), ["a", "b"], calibration=fitted)
    (tmp_path / "other.json").write_text('{"format": "another/1"}', encoding="utf-8")
    with pytest.raises(UnsupportedError, match="another/1"):
        load_calibration(tmp_path / "other.json")


def test_calibration_needs_labelled_items():
    classifier = toy()
    rows = near(classifier.vectors, np.arange(6), 1.0, seed=1)
    with pytest.raises(InputError, match="found 6 in all"):
        calibrate(classifier, rows, ["image"] * 6, list(classifier.labels))


def test_quality_is_what_its_words_say():
    shares = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.5, 0.5]])
    found = measure(shares, np.array([0, 1, 1, 0]))
    assert found.accuracy == 0.75
    # bins of 1/15: 0.9 (two items, one right), 0.7 (one, right), 0.5 (one, right)
    assert found.ece == pytest.approx((2 * abs(0.9 - 0.5) + 0.3 + 0.5) / 4)
    assert found.nll == pytest.approx(-np.log([0.9, 0.1, 0.7, 0.5]).mean(), rel=1e-5)


# ---- things and stores -----------------------------------------------------------------------------------------------


def test_things_are_classified_in_the_order_given(space):
    verdicts = classify(["dog", "cat", "bell"], space, text=["dog", "bell", "cat"], templates=Templates("x", ("{}",)))
    assert verdicts.labels == ["dog", "bell", "cat"]
    assert [verdict.score for verdict in verdicts] == pytest.approx([1, 1, 1], abs=1e-4)
    first = verdicts[0]
    assert first.probability == pytest.approx(first.ranked[0][1]) and len(first.ranked) == 3
    assert sum(share for _, share, _ in first.ranked) == pytest.approx(1, abs=1e-5)


def test_things_together_are_one(space):
    alone = classify(["dog", "cat"], space, text=["a dog", "a cat"], templates=Templates("x", ("{}",)))
    one = classify(["dog", "cat"], space, text=["a dog", "a cat"], templates=Templates("x", ("{}",)), together=True)
    assert len(one) == 1 and one[0].key == "a dog + a cat"
    rows = space.embed("text", ["a dog", "a cat", "dog", "cat"]).astype(np.float64)
    both = rows[0] + rows[1]
    expected = both @ rows[2:].T / np.linalg.norm(both)
    assert {label: score for label, _, score in one[0].ranked} == pytest.approx(
        {"dog": expected[0], "cat": expected[1]}, abs=1e-5
    )
    assert len(alone) == 2


def test_what_cannot_be_read_is_left_out_and_said(space, tmp_path):
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing")
    verdicts = classify(["a", "b"], space, image=[tmp_path / "broken.png", tmp_path / "red.png"])
    assert len(verdicts) == 1 and verdicts[0].key.endswith("red.png")
    assert len(verdicts.bad) == 1 and "broken.png" in verdicts.bad[0][0]
    with pytest.raises(DecodeError, match=r"broken\.png"):
        classify(["a", "b"], space, image=tmp_path / "broken.png")
    with pytest.raises(UnknownNameError, match="smell"):
        classify(["a", "b"], space, smell="rose")


def test_a_store_gets_the_labels_its_items_get(space, store):
    labels = ["a dog on a beach", "a cat in a city"]
    verdicts = classify_store(store, build_classifier(space, labels))
    singly = classify(labels, space, text=list(TEXTS.values()))
    assert verdicts.labels == singly.labels and [verdict.key for verdict in verdicts] == list(TEXTS)
    assert np.allclose(verdicts.probability, singly.probability, atol=2e-2)  # the store keeps float16
    assert sum(verdicts.counts().values()) == 4
    with pytest.raises(MismatchError, match="tiny"):
        classify_store(store, build_classifier(load_space("tiny:5"), labels))
    with pytest.raises(UnknownNameError, match="text"):
        classify_store(store, build_classifier(space, labels), modality="audio")


def test_tables_hold_what_the_verdicts_say(space, store, tmp_path):
    classifier = build_classifier(space, ["dog", "cat", "bell"], none=0.99)
    verdicts = classify_store(store, classifier, top=4)
    assert set(verdicts.labels) == {NONE}
    table = read_parquet(write_labels(verdicts, tmp_path / "l.parquet")).to_pylist()
    assert [row["key"] for row in table] == list(TEXTS) and table[0]["id"] == verdicts.items[0]["id"]
    assert table[0]["label"] == NONE and table[0]["score"] is None and len(table[0]["labels"]) == 4
    assert sum(table[0]["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert table[0]["scores"][1] == pytest.approx(verdicts[0].ranked[1][2], abs=1e-6)
    with write_labels(verdicts, tmp_path / "l.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == verdicts.labels and rows[0]["label_2"] == verdicts[0].ranked[1][0]
    lines = write_labels(verdicts, tmp_path / "l.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["key"] for line in lines] == list(TEXTS)
    with pytest.raises(UnknownNameError, match="xlsx"):
        write_labels(verdicts, tmp_path / "l.xlsx")


def test_pages_and_tables_escape_what_they_show(space):
    verdicts = classify(["<b>dog</b>", "cat\x1b[31m"], space, text=["<script>alert(1)</script>"])
    page = page_html(verdicts)
    assert "<script>" not in page and "&lt;script&gt;" in page and "&lt;b&gt;dog" in page
    assert "http://" not in page and "https://" not in page
    table = to_table(verdicts)
    assert "\x1b" not in table and "\\x1b" in table
    assert json.loads(to_json(verdicts))[0]["modality"] == "text"


def test_a_long_table_counts_the_rest(space, store):
    verdicts = classify_store(store, build_classifier(space, ["dog", "cat"]))
    lines = to_table(verdicts, limit=1).splitlines()
    assert len(lines) == 3 and lines[1] == "... and 3 more." and lines[2].startswith("all 4: ")


def test_the_bundled_space_knows_puppies_for_dogs():
    from bindsearch.world.scene import names, sample, split_seeds
    from bindsearch.world.text import write_captions

    scenes = sample(split_seeds("demo", 192), "subject")
    scenes = scenes.rows(scenes.count == 0)  # one of them
    captions = write_captions(scenes, style="plain").texts  # puppies are dogs, locomotives are trains
    verdicts = classify(names("subject"), "bindsearch-mini", text=list(captions), templates="world")
    right = [label == names("subject")[code] for label, code in zip(verdicts.labels, scenes.subject, strict=True)]
    assert np.mean(right) > 0.9


# ---- true labels -----------------------------------------------------------------------------------------------------


def test_truth_joins_by_key_stem_path_and_group(tmp_path):
    records = [
        {"key": "a/one.png", "source": str(tmp_path / "media" / "a" / "one.png"), "group": "s1", "attributes": None},
        {"key": "two.wav", "source": "/elsewhere/two.wav", "group": "s2", "attributes": '{"kind": 3, "odd": true}'},
        {"key": "three.txt", "source": "", "group": None, "attributes": '{"kind": 4.0}'},
    ]
    tables = {
        "key,kind\na/one.png,x\ntwo,y\n": ["x", "y", None],
        "path,kind\nmedia/a/one.png,x\n/elsewhere/two.wav,y\n": ["x", "y", None],
        "stem,kind\ns1,x\nthree,z\none,never\n": ["x", None, "z"],
        "filename,kind\none.png,x\nthree.txt,\n": ["x", None, None],
    }
    for text, expected in tables.items():
        (tmp_path / "t.csv").write_text(text, encoding="utf-8")
        assert truth_of(records, "kind", tmp_path / "t.csv") == expected, text
    assert truth_of(records, "kind") == [None, "3", "4"] and truth_of(records, "odd") == [None, "true", None]
    assert truth_of(records, "group") == ["s1", "s2", None]


def test_blanks_around_a_label_make_no_other_label(tmp_path):
    records = [
        {"key": f"{name}.png", "source": "", "group": None, "attributes": None} for name in ("a", "b", " c", "d")
    ]
    records[1]["attributes"] = '{"kind": " dog ", "more": "  "}'
    (tmp_path / "t.csv").write_text("key,kind\na.png, dog\na.png,dog\na.png,  \nb.png,\tdog \n c.png,cat\nd.png, \n")
    assert truth_of(records, "kind", tmp_path / "t.csv") == ["dog", "dog", "cat", None]
    assert truth_of(records[1:2], "kind") == ["dog"] and truth_of(records[1:2], "more") == [None]


def test_a_line_of_json_without_the_column_says_nothing_of_its_item(tmp_path):
    records = [{"key": name, "source": "", "group": None, "attributes": None} for name in ("a.png", "b.png", "c.png")]
    table = tmp_path / "t.jsonl"
    lines = [{"key": "a.png", "more": 1}, {"key": "b.png", "kind": "x"}, {"kind": "y"}, {"file": "c.png", "kind": "z"}]
    table.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert truth_of(records, "kind", table) == [None, "x", "z"]
    found, keys = named_rows(table, "key")
    assert list(found) == ["a.png", "b.png"] and keys == {"key"}
    with pytest.raises(UnknownNameError, match=r"'kidn'\. Did you mean 'kind'\? Known: file, key, kind, more"):
        truth_of(records, "kidn", table)
    with pytest.raises(UnknownNameError, match="'kye'"):
        named_rows(table, "kye")
    table.write_text('{"kind": "x"}\n{"more": 1}\n', encoding="utf-8")
    with pytest.raises(InputError, match="which items are these rows"):
        truth_of(records, "kind", table)


def test_truth_that_cannot_be_meant(tmp_path):
    records = [{"key": "one.png", "source": "", "group": None, "attributes": None}]
    with pytest.raises(UnknownNameError, match="kind"):
        truth_of(records, "kind")
    with pytest.raises(MissingInputError):
        truth_of(records, "kind", tmp_path / "none.csv")
    cases = {
        "key,kind\none.png,x\none.png,y\n": "'x' before",
        "colour,kind\nred,x\n": "which items",
        "key,kind\nother.png,x\n": "other.png",
    }
    for text, what in cases.items():
        (tmp_path / "t.csv").write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=what):
            truth_of(records, "kind", tmp_path / "t.csv")
    with pytest.raises(UnknownNameError, match="kidn"):
        truth_of(records, "kidn", tmp_path / "t.csv")


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def bindsearch(capsys, monkeypatch):
    """Run the command in this process: exit code, stdout, stderr."""
    from bindsearch.cli import run

    for name in [name for name in os.environ if name.startswith("BINDSEARCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BINDSEARCH_TEXT_CACHE_MB", "0")

    def call(*words: str | Path) -> SimpleNamespace:
        capsys.readouterr()
        code = run(["classify", *map(str, words)])
        return SimpleNamespace(returncode=code, **capsys.readouterr()._asdict())

    return call


def test_the_command_classifies_files_and_stores(bindsearch, store, tmp_path):
    done = bindsearch("--text", "a dog", "--text", "a bell", "--labels", "dog,bell", "--space", "tiny", "--json")
    assert done.returncode == 0, done.err
    assert [row["key"] for row in json.loads(done.out)] == ["a dog", "a bell"]
    out, page = tmp_path / "out" / "l.parquet", tmp_path / "l.html"
    done = bindsearch(store.path, "--labels", "dog,bell,cat", "-o", out, "--html", page, "--none-below", "0.1")
    assert done.returncode == 0, done.err
    assert read_parquet(out).num_rows == 4 and "4 items" in page.read_text(encoding="utf-8")
    assert done.out.count("\n") == 4 and f"wrote 4 rows to {out}" in done.err


def test_the_command_calibrates(bindsearch, space, tmp_path):
    texts = [(f"{word} {number}", word) for word in ("dog", "cat", "bell") for number in range(8)]
    rows = "\n".join(["text,word", *(f"{text},{word}" for text, word in texts)])
    (tmp_path / "texts.csv").write_text(rows + "\n", encoding="utf-8")
    folder = tmp_path / "embeddings"
    run_embed([tmp_path / "texts.csv"], folder, space, options=EmbedOptions(workers=0), progress=False)
    fitted = tmp_path / "c.json"
    done = bindsearch("calibrate", folder, "--labels", "dog,cat", "--column", "word", "-o", fitted, "--json")
    assert done.returncode == 0, done.err
    assert "note: 8 items count as none of these; they are 'bell'" in done.err and "no item has" not in done.err
    figures = json.loads(done.out)["text"]
    assert figures["items"] == 16 and figures["none_score"] == load_calibration(fitted).fits["text"].none_score
    done = bindsearch(folder, "--labels", "dog,cat", "--none", "--calibration", fitted, "--json")
    assert done.returncode == 0 and "doubt" not in done.err and "other labels" not in done.err
    again = bindsearch(folder, "--labels", "cat,dgo", "--calibration", fitted)
    assert again.returncode == 0 and "note: calibrated with other labels: dog, cat;" in again.err
    typo = bindsearch("calibrate", folder, "--labels", "dog,cat,bel", "--column", "word", "-o", tmp_path / "d.json")
    assert typo.returncode == 0 and "note: no item has 'bel'." in typo.err and "are 'bell'" in typo.err
    assert {row["ranked"][0]["label"] for row in json.loads(done.out)} <= {"dog", "cat", NONE}


def test_a_calibration_that_things_taken_together_do_not_use_is_said(bindsearch, space, tmp_path):
    fit = Fit(20.0, 20.0, 0.2, 16, Quality(0.5, 0.1, 1.0), Quality(0.5, 0.05, 0.9))
    made = Calibration(space.space_id, {}, "plain", ("dog", "cat"), {"text": fit, "image": fit})
    fitted = save_calibration(made, tmp_path / "c.json")
    labels = ("--labels", "dog,cat", "--space", "tiny", "--none", "--calibration", fitted, "--together")
    page = tmp_path / "p.html"
    one = bindsearch("--text", "a dog", "--text", "a cat", *labels, "--html", page)
    assert "no fit for" not in one.err and "calibrated for text" in page.read_text(encoding="utf-8")
    both = bindsearch("--text", "a dog", "--image", "world:3#image", *labels, "--html", page)
    assert both.returncode == 0, both.err
    assert "note: the calibration has no fit for several modalities taken together" in both.err
    assert "goes by doubt alone and misses most; give --none-below" in both.err
    assert "not calibrated" in page.read_text(encoding="utf-8")
    apart = bindsearch("--text", "a dog", *labels[:-1], "--html", page)
    assert apart.returncode == 0 and "calibrated for text<" in page.read_text(encoding="utf-8")


def test_a_name_that_is_no_utf8_is_written_as_embed_writes_it(bindsearch, tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/non\xffutf.ppm")
    Image.new("RGB", (32, 32), "red").save(name)
    asked = ("--image", name, "--labels", "dog,cat", "--space", "tiny")
    done = bindsearch(*asked, "--json", "-o", tmp_path / "l.parquet", "--html", tmp_path / "l.html")
    assert done.returncode == 0, done.err
    assert "data:image" in (tmp_path / "l.html").read_text(encoding="utf-8")
    done.out.encode("utf-8")  # strict
    written = [json.loads(done.out)[0], read_parquet(tmp_path / "l.parquet").to_pylist()[0]]
    for ending in ("jsonl", "csv"):
        assert bindsearch(*asked, "-o", tmp_path / f"l.{ending}").returncode == 0
    written.append(json.loads((tmp_path / "l.jsonl").read_text(encoding="utf-8")))
    with (tmp_path / "l.csv").open(encoding="utf-8", newline="") as file:
        written += csv.DictReader(file)
    assert {row["key"] for row in written} == {row["source"] for row in written} == {to_text(name)}


def test_the_command_says_what_to_type(bindsearch, store, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    cases = [
        (("--labels", "a,b"), 2, "one of the two"),
        ((store.path, "--text", "x", "--labels", "a,b"), 2, "one of the two"),
        (("--image", tmp_path / "no.png", "--labels", "a,b"), 3, "no such file"),
        (("--image", tmp_path / "broken.png", "--labels", "a,b", "--space", "tiny"), 3, "broken.png"),
        (("--text", "x@0.5", "--labels", "a,b", "--space", "tiny"), 2, "--together"),
        ((store.path, "--labels", "a,b", "--together"), 2, "--together adds up files and texts"),
        (("--text", "x", "--labels", "a,b", "--only", "text"), 2, "--only text chooses among the items"),
        ((tmp_path / "nowhere", "--labels", "a,b", "-o", "labels.txt"), 2, "kind of table"),
        ((store.path, "--labels", "a,b", "--space", "tiny:5"), 5, "made with space"),
        (("--text", "x", "--labels", f"a,{NONE}", "--none", "--space", "tiny"), 2, "Leave that label out"),
        (("--text", "x", "--labels", f"a,{NONE}", "--none-below", "0", "--space", "tiny"), 2, "Leave that label out"),
    ]
    for words, code, said in cases:
        done = bindsearch(*words)
        assert done.returncode == code and said in done.err and not done.out, (words, done.err)


def test_one_broken_file_among_good_ones_exits_4(bindsearch, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    words = ("--text", "a dog", "--image", tmp_path / "broken.png", "--labels", "dog,bell", "--space", "tiny", "--json")
    done = bindsearch(*words)
    assert done.returncode == 4 and "broken.png" in done.err
    assert [row["key"] for row in json.loads(done.out)] == ["a dog"]


def test_scenes_that_are_drawn_are_classified_without_files(bindsearch):
    done = bindsearch("--image", "world:3..4#image", "--labels", "dog,bell", "--space", "tiny", "--json")
    assert done.returncode == 0, done.err
    assert json.loads(done.out)[0]["key"].startswith("world:3")
    done = bindsearch("--image", "world:nothing", "--labels", "dog,bell", "--space", "tiny")
    assert done.returncode == 2 and not done.out
