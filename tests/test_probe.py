"""Linear probes: fitting, curves over draws, no leak between halves, files without pickle, the command."""

from __future__ import annotations

import csv
import json
import os
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from bindsearch.embed import EmbedOptions, run_embed
from bindsearch.errors import InputError, MismatchError, MissingExtraError, MissingInputError, ShapeError
from bindsearch.models.spaces import load_space
from bindsearch.probe import apply_probe, few_shot, fit_probe, load_probe, plot_curves, read_labelled, save_probe
from bindsearch.store import open_store

WORDS = ("dog", "cat", "bell")


def groups(labels: int, n: int, noise: float, dim: int = 16, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Unit rows around random directions, and their labels."""
    rng = np.random.default_rng(seed)
    centres, codes = rng.standard_normal((labels, dim)), np.arange(n) % labels
    rows = centres[codes] + noise * rng.standard_normal((n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), [f"l{code}" for code in codes]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Texts of three kinds in the seeded tiny space."""
    home = tmp_path_factory.mktemp("texts")
    rows = [f"{word} {number},{word}" for word in WORDS for number in range(12)]
    (home / "texts.csv").write_text("\n".join(["text,word", *rows]) + "\n", encoding="utf-8")
    space = load_space("tiny")
    run_embed([home / "texts.csv"], home / "embeddings", space, options=EmbedOptions(workers=0), progress=False)
    return open_store(home / "embeddings")


@pytest.fixture
def bindsearch(capsys, monkeypatch):
    """Run the command in this process: exit code, stdout, stderr."""
    from bindsearch.cli import run

    for name in [name for name in os.environ if name.startswith("BINDSEARCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BINDSEARCH_TEXT_CACHE_MB", "0")

    def call(*words):
        capsys.readouterr()
        code = run(["probe", *map(str, words)])
        return SimpleNamespace(returncode=code, **capsys.readouterr()._asdict())

    return call


# ---- the classifier --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [2, 5])
def test_probabilities_are_those_of_scikit_learn(labels):
    from sklearn.linear_model import LogisticRegression

    rows, names = groups(labels, 60, 0.8)
    probe = fit_probe(rows, names)
    plain = LogisticRegression(C=1000.0, max_iter=5000).fit(rows, names)
    assert probe.labels == tuple(plain.classes_)
    assert np.allclose(probe.probabilities(rows), plain.predict_proba(rows), atol=1e-4)
    assert probe.predict(rows) == plain.predict(rows).tolist()
    with pytest.raises(ShapeError, match="16"):
        probe.predict(rows[:, :3])


def test_a_probe_needs_two_labels():
    rows, _ = groups(2, 4, 0.1)
    with pytest.raises(InputError, match="at least two labels, got 'a'"):
        fit_probe(rows, ["a"] * 4)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    rows, names = groups(2, 4, 0.1)
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(MissingExtraError, match=r"bindsearch\[probe\]"):
        fit_probe(rows, names)


# ---- the curve -------------------------------------------------------------------------------------------------------


def test_more_examples_help_and_a_seed_repeats_the_draws():
    rows, names = groups(6, 600, 1.2)
    curve = few_shot(rows, names, shots=(1, 8, 32), repeats=4, seed=3)
    means = [cell.mean for cell in curve.cells]
    assert means[0] + 0.1 < means[1] < means[2] and means[0] > curve.chance
    assert curve.tested == 300 and curve.labels == 6 and curve.majority == pytest.approx(1 / 6)
    again = few_shot(rows, names, shots=(1, 8, 32), repeats=4, seed=3)
    assert again.to_json() == curve.to_json()
    assert few_shot(rows, names, shots=(1,), repeats=4, seed=4).cells[0].draws != curve.cells[0].draws
    cell = curve.cells[0].to_json()
    assert cell["deviation"] == pytest.approx(np.std(cell["draws"], ddof=1), abs=1e-4)


def test_what_belongs_together_never_stands_on_both_sides():
    """Labels by chance, every row there four times: only a leak can name them."""
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((100, 64)).astype(np.float32)
    rows = np.repeat(rows / np.linalg.norm(rows, axis=1, keepdims=True), 4, axis=0)
    names = [f"l{code}" for code in np.repeat(rng.integers(0, 2, 100), 4)]
    units = [str(number) for number in np.repeat(np.arange(100), 4)]
    fair = few_shot(rows, names, shots=(20,), repeats=6, units=units).cells[0].mean
    leaky = few_shot(rows, names, shots=(80,), repeats=6).cells[0].mean
    assert 0.35 < fair < 0.65 and leaky > 0.85


def test_shots_that_cannot_be_drawn_are_left_out_and_named():
    rows, names = groups(3, 30, 0.2)
    names = [name if name != "l2" or place < 9 else "l0" for place, name in enumerate(names)]  # three of l2
    curve = few_shot(rows, names, shots=(1, 2, 4), test_share=0.34)
    assert [cell.shots for cell in curve.cells] == [1, 2] and curve.left_out == ((4, "l2"),)
    with pytest.raises(InputError, match="'l2' has 2 examples"):
        few_shot(rows, names, shots=(4,), test_share=0.34)
    for wrong in ({"shots": (0,)}, {"shots": ()}, {"repeats": 0}, {"test_share": 1.0}):
        with pytest.raises(InputError):
            few_shot(rows, names, **wrong)


def test_a_test_share_that_leaves_nothing_to_test_is_to_be_raised():
    rows, names = groups(2, 40, 0.2)
    with pytest.raises(InputError, match=r"a test share of 0\.01 leaves no item to test.*Raise --test-share to 0\.05"):
        few_shot(rows, names, shots=(1,), test_share=0.01)
    assert few_shot(rows, names, shots=(1,), repeats=1, test_share=0.05).tested == 2
    with pytest.raises(InputError, match=r"no label has more than 1 examples\. Label more items"):
        few_shot(rows[:2], names[:2], shots=(1,), test_share=0.5)


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan"), float("inf")])
def test_a_penalty_that_cannot_be_meant_is_a_usage_error(penalty, bindsearch, store):
    with pytest.raises(InputError, match=r"expected an inverse penalty \(--c\) above 0"):
        fit_probe(*groups(2, 8, 0.1), penalty)
    assert bindsearch(store.path, "--column", "word", f"--c={penalty}").returncode == 2


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["p.npz", "p.json"])
def test_a_probe_comes_back_bit_for_bit(name, tmp_path):
    rows, names = groups(4, 80, 0.5)
    probe = fit_probe(rows, names, space_id="toy@1", modalities=["image"], facts={"column": "kind"})
    found = load_probe(save_probe(probe, tmp_path / "deep" / name))
    assert np.array_equal(found.weights, probe.weights) and np.array_equal(found.bias, probe.bias)
    assert (found.labels, found.space_id, found.modalities) == (probe.labels, "toy@1", ("image",))
    assert found.facts == probe.facts and found.predict(rows) == probe.predict(rows)


def test_nothing_is_unpickled_and_damage_is_said(tmp_path):
    probe = fit_probe(*groups(3, 30, 0.5))
    good = save_probe(probe, tmp_path / "p.npz").read_bytes()
    with (tmp_path / "pickled.npz").open("wb") as file:
        np.savez(file, weights=np.array([{"a": 1}], dtype=object), bias=probe.bias, about=np.array("{}"))
    (tmp_path / "cut.npz").write_bytes(good[: len(good) // 2])
    (tmp_path / "text.npz").write_bytes(b"no archive")
    (tmp_path / "short.json").write_text('{"format": "bindsearch-probe/1"}', encoding="utf-8")
    (tmp_path / "other.json").write_text('{"format": "x", "weights": [], "bias": []}', encoding="utf-8")
    for name in ("pickled.npz", "cut.npz", "text.npz", "short.json", "other.json"):
        with pytest.raises(InputError, match=name) as caught:
            load_probe(tmp_path / name)
        assert "pickled (object)" not in str(caught.value)
    with pytest.raises(MissingInputError, match="--save"):
        load_probe(tmp_path / "none.npz")


def test_a_plot_is_drawn(tmp_path):
    rows, names = groups(3, 60, 0.5)
    path = plot_curves({"image": few_shot(rows, names, shots=(1, 2))}, tmp_path / "plots" / "c.svg", "kinds")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<?xml") and "<svg" in text
    before = path.read_bytes()
    plot_curves({"image": few_shot(rows, names, shots=(1, 2))}, path, "kinds")
    assert path.read_bytes() == before


# ---- stores and the command ------------------------------------------------------------------------------------------


def test_a_store_is_probed_and_labelled(store, tmp_path):
    known = read_labelled(store, "word")
    assert len(known.labels) == 36 and set(known.labels) == set(WORDS)
    probe = known.fit("word", 1000.0)
    verdicts = apply_probe(store, probe)
    assert verdicts.labels == list(known.labels)  # it has seen them all
    assert verdicts[0].score is None and verdicts[0].probability == pytest.approx(
        probe.probabilities(known.rows[:1]).max(), abs=1e-6
    )
    (tmp_path / "half.csv").write_text(f"key,kind\n{store.items().to_pylist()[0]['key']},first\n", encoding="utf-8")
    assert read_labelled(store, "kind", tmp_path / "half.csv").labels == ("first",)
    with pytest.raises(MismatchError, match="elsewhere"):
        apply_probe(store, fit_probe(known.rows, known.labels, space_id="elsewhere@1"))


def test_spans_of_one_recording_are_one_unit_whatever_their_keys(tmp_path):
    from PIL import Image

    for name in "abcd":
        Image.new("RGB", (8, 8), (9 * ord(name) % 255, 9, 9)).save(tmp_path / f"{name}.png")
    lines = [
        "a.png,k0,,dog,",
        "a.png,k1,,dog,",
        "b.png,k2,g,cat,",
        "./a.png,k3,g,cat,",
        "c.png,k4,,dog,",
        "d.png,k5,,dog,",
    ]
    lines += [",k6,,dog,one text", ",k7,,dog,another text"]
    (tmp_path / "all.csv").write_text("\n".join(["path,key,group,word,text", *lines]) + "\n", encoding="utf-8")
    folder = tmp_path / "embeddings"
    run_embed([tmp_path / "all.csv"], folder, load_space("tiny"), options=EmbedOptions(workers=0), progress=False)
    known = read_labelled(folder, "word")
    keys = [row["key"] for row in open_store(folder).items().to_pylist()]
    units = dict(zip(keys, known.units, strict=True))
    assert len({units[f"k{number}"] for number in range(4)}) == 1  # through the file, and through the group
    assert len(set(units.values())) == 5  # texts of one list are not one recording


def test_a_probe_is_refused_where_a_tower_was_trained_anew(bindsearch, store, tmp_path):
    known = read_labelled(store, "word")
    probe = known.fit("word", 1000.0)
    (tower,) = probe.tower_ids.values()
    assert probe.tower_ids == {"text": store.manifest.identity.tower_ids["text"]}
    for name in ("p.npz", "p.json"):
        assert load_probe(save_probe(probe, tmp_path / name)).tower_ids == probe.tower_ids
    other = replace(probe, tower_ids={"text": "text:000000000000@tiny", "audio": "of no item here"})
    with pytest.raises(MismatchError, match=f"made with tower of text {tower}, the probe with text:000000000000@tiny"):
        apply_probe(store, other)
    done = bindsearch(store.path, "--apply", save_probe(other, tmp_path / "other.json"))
    assert done.returncode == 5 and "fit the probe anew" in done.err
    data = json.loads((tmp_path / "p.json").read_text())
    del data["tower_ids"]  # as it was saved before towers were kept
    (tmp_path / "old.json").write_text(json.dumps(data))
    done = bindsearch(store.path, "--apply", tmp_path / "old.json")
    assert done.returncode == 0 and "does not say which tower of text" in done.err
    assert "note:" not in bindsearch(store.path, "--apply", tmp_path / "p.json").err


def test_a_probe_labels_what_it_was_fitted_on(bindsearch, tmp_path):
    from PIL import Image

    rows = [f"{word} {number},,{word}" for word in WORDS for number in range(2)]
    for number in range(2):
        Image.new("RGB", (8, 8), (90 * number, 9, 9)).save(tmp_path / f"{number}.png")
        rows.append(f",{number}.png,")
    (tmp_path / "all.csv").write_text("\n".join(["text,path,word", *rows]) + "\n", encoding="utf-8")
    folder = tmp_path / "embeddings"
    run_embed([tmp_path / "all.csv"], folder, load_space("tiny"), options=EmbedOptions(workers=0), progress=False)
    saved = save_probe(read_labelled(folder, "word").fit("word", 1000.0), tmp_path / "p.json")
    done = bindsearch(folder, "--apply", saved, "-o", tmp_path / "l.jsonl")
    assert done.returncode == 0 and "note: 2 items of image have no label" in done.err and "--only image" in done.err
    lines = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    assert [line["modality"] for line in lines] == ["text"] * 6
    done = bindsearch(folder, "--apply", saved, "--only", "image", "--json")
    assert done.returncode == 0 and done.out.count('"image"') == 2 and "note:" not in done.err
    deaf = replace(load_probe(saved), modalities=("audio",))
    with pytest.raises(MissingInputError, match=r"the probe was fitted on audio.*--only"):
        apply_probe(folder, deaf)
    assert len(apply_probe(folder, replace(deaf, modalities=()))) == 8


def test_a_plot_of_another_ending_is_refused_before_the_work(bindsearch, store, tmp_path, monkeypatch):
    monkeypatch.setattr("bindsearch.probe.curve.fit_probe", lambda *_: pytest.fail("measured first"))
    saved = tmp_path / "p.npz"
    done = bindsearch(store.path, "--column", "word", "--plot", tmp_path / "p.txt", "--save", saved)
    assert done.returncode == 2 and "expected a name that ends in .svg, .png, .pdf" in done.err
    assert not saved.exists() and not (tmp_path / "p.txt").exists()


def test_the_command_measures_saves_and_labels(bindsearch, store, tmp_path):
    saved, plot = tmp_path / "p.npz", tmp_path / "c.svg"
    done = bindsearch(
        store.path,
        "--column",
        "word",
        "--shots",
        "1,2,4,99",
        "--repeats",
        "3",
        "--save",
        saved,
        "--plot",
        plot,
        "--json",
    )
    assert done.returncode == 0, done.err
    figures = json.loads(done.out)["text"]
    assert [cell["shots"] for cell in figures["cells"]] == [1, 2, 4] and figures["tested"] == 18
    assert plot.is_file() and "99 shots are left out" in done.err
    done = bindsearch(store.path, "--column", "word", "--shots", "1,77,99", "--repeats", "1")
    assert [line for line in done.err.splitlines() if "left out" in line] == [
        f"note: text: 77, 99 shots are left out, {min(WORDS)!r} has too few examples."
    ]
    done = bindsearch(store.path, "--apply", saved, "-o", tmp_path / "l.csv", "--html", tmp_path / "l.html")
    assert done.returncode == 0, done.err
    with (tmp_path / "l.csv").open(encoding="utf-8", newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [word for word in WORDS for _ in range(12)]
    assert "a linear probe of 36 examples" in (tmp_path / "l.html").read_text(encoding="utf-8")


def test_the_command_says_what_to_type(bindsearch, store, tmp_path):
    cases = [
        ((store.path,), 2, "--column"),
        ((store.path, "--column", "wrod"), 2, "Did you mean 'word'"),
        ((store.path, "--column", "word", "--shots", "few"), 2, "1,2,4,8"),
        ((store.path, "--column", "word", "-o", tmp_path / "x.csv"), 2, "--apply"),
        ((store.path, "--apply", tmp_path / "none.npz"), 3, "--save"),
        ((store.path, "--apply", tmp_path / "none.npz", "--column", "word", "--c", "3"), 2, "--column, --c measures"),
        (
            (store.path, "--apply", "none.npz", "--shots", "3", "--repeats", "9", "--test-share", "0.3", "--seed", "0"),
            2,
            "--shots, --repeats, --test-share, --seed measures",
        ),
        ((store.path, "--apply", tmp_path / "none.npz", "-o", "labels.txt"), 2, "kind of table"),
        ((tmp_path / "nowhere", "--column", "word", "--save", "probe.pkl"), 2, "kind of probe file"),
        ((tmp_path / "nowhere", "--column", "word"), 3, "bindsearch embed"),
    ]
    for words, code, said in cases:
        done = bindsearch(*words)
        assert done.returncode == code and said in done.err and not done.out, (words, done.err)


def test_a_modality_with_too_few_examples_keeps_no_other_from_being_measured(bindsearch, store):
    known = read_labelled(store, "word")
    kinds = tuple("text" if number % 4 else "audio" for number in range(36))  # three sounds a label
    mixed = replace(known, modalities=kinds)
    curves, without = mixed.curves((4,), 2, 0.5, 1000.0, 0)
    assert list(curves) == ["text"] and curves["text"].items == 27
    assert list(without) == ["audio"] and "has 1 examples" in without["audio"]
    with pytest.raises(InputError) as caught:
        mixed.curves((40,), 2, 0.5, 1000.0, 0)
    assert [line.split("'")[0] for line in str(caught.value).splitlines()] == ["probe: audio: ", "probe: text: "]
    labels = tuple("dog" if kind == "audio" else label for kind, label in zip(kinds, known.labels, strict=True))
    assert list(replace(known, labels=labels, modalities=kinds).curves((4,), 1, 0.5, 1000.0, 0)[1]) == ["audio"]
    done = bindsearch(store.path, "--column", "word", "--shots", "40")
    assert done.returncode == 2 and "probe: text: 'bell' has 6 examples" in done.err
