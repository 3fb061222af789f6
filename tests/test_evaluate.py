"""Figures against their definitions, and the command that measures them."""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from miniatures import make_esc50

from bindsearch.cli import run
from bindsearch.embed import EmbedOptions
from bindsearch.errors import InputError, MismatchError, MissingInputError, UnknownNameError
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
    report,
    run_recipe,
    wilson,
)
from bindsearch.evaluate.metrics import average_precision, judge_scores
from bindsearch.evaluate.recipe import fuse
from bindsearch.evaluate.rows import codes, embed_rows
from bindsearch.evaluate.run import Question, evaluate_rows
from bindsearch.models.spaces import load_space


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


def test_a_rule_for_ties_that_there_is_not_is_refused(tmp_path):
    scores, right = np.array([[0.5, 0.5]]), np.array([[True, False]])
    for measure in (
        lambda: judge_scores(scores, right, None, "Expected"),
        lambda: average_precision(scores, right, "Expected"),
        lambda: run_recipe(load_recipe("esc50"), tmp_path, tmp_path / "run", load_space("tiny"), ties="Expected"),
    ):
        with pytest.raises(UnknownNameError, match="Known: expected, pessimistic"):
            measure()


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


def test_intervals_of_labels_draw_queries_and_not_labels():
    rng = np.random.default_rng(0)
    labels = ["dog", "cat"] * 30
    (row,) = measure_labels(toy_rows(rng.standard_normal((60, 8)), ["image"] * 60, subject=labels), "subject")
    assert row["map"].high - row["map"].low > 0.02
    vectors = np.repeat(rng.standard_normal((30, 8)), 2, axis=0)
    group = [str(number // 2) for number in range(58)] + [None, None]
    same = [labels[number // 2] for number in range(60)]
    (alone,) = measure_labels(toy_rows(vectors, ["image"] * 60, subject=same), "subject")
    (grouped,) = measure_labels(toy_rows(vectors, ["image"] * 60, subject=same, group=group), "subject")
    assert grouped["map"].value == alone["map"].value
    assert grouped["map"].high - grouped["map"].low > 1.2 * (alone["map"].high - alone["map"].low)
    (by_label,) = measure_labels(toy_rows(vectors, ["image"] * 60, group=same), "group")
    assert (by_label["map"].low, by_label["map"].high) == (alone["map"].low, alone["map"].high)


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


def test_zero_shot_counts_what_could_not_be_embedded_as_wrong(tmp_path):
    classes = tuple(ClassName.of_label(name) for name in "abcdef")
    rows = toy_rows(np.eye(6)[:2], ["audio"] * 2, label=["a", "b"], fold=["1", "2"])
    lost = [
        {"key": "x", "modality": "audio", "label": "a", "fold": "1"},
        {"key": "y", "modality": "image", "label": "a", "fold": "1"},  # of another modality
        {"key": "z", "modality": "audio", "label": None, "fold": "1"},  # of no label
    ]
    found = measure_zero_shot(replace(rows, lost=lost), "audio", "label", classes, np.eye(6, dtype=np.float32), "fold")
    assert (found["queries"], found["missed"]) == (3, 1)
    # folds: 1 of 2 and 1 of 1, at 1 and at 5 alike; of "a" half is found, of "b" all
    assert found["accuracy_at_1"].value == found["accuracy_at_5"].value == pytest.approx(0.75)
    assert found["per_class"]["a"] == {"accuracy": 0.5, "n": 2} and found["map"].value == pytest.approx(0.75)
    # labels of a table reach them too
    (tmp_path / "labels.csv").write_text("key,kind\n0,a\n1,b\nx,a\n", encoding="utf-8")
    joined = replace(rows, lost=lost).joined(tmp_path / "labels.csv")
    assert [row["kind"] for row in joined.lost] == ["a", None, None]


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


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--pair", "group", "--ties", "optimistic"], 2, "Known: expected, pessimistic"),
        (["--zero-shot", "subject", "--templates", "clip800"], 2, "clip80"),
        (["--zero-shot", "subject", "--templates", "none.json"], 3, "none.json"),
        (["--label", "subject", "--templates", "plain"], 2, "--templates plain is for --zero-shot"),
        (["--label", "subject", "--table", "none.csv"], 3, "none.csv: there is no such table"),
        (["--label", "subject", "--table", "labels.csv", "--on", "nam"], 2, "Did you mean 'name'"),
        (["--label", "subject", "--on", "name"], 2, "--table labels.csv"),
        (["--pair", "group", "--drop-own"], 2, "--label COLUMN"),
        (["--recipe", "esc50", "--on", "name"], 2, "leave --pair"),
        (["--recipe", "esc50", "--ties", "optimistic"], 2, "Known: expected, pessimistic"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_embedded(words, code, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.csv").write_text("name,subject\na.png,dog\n", encoding="utf-8")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.txt").write_text("a dog", encoding="utf-8")
    assert run(["evaluate", "files", "-o", "out", *words]) == code
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


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
    for more in (["--label", "category"], ["--templates", "plain"]):
        assert run([*command, *more]) == 2
        assert "--recipe says what is asked" in capsys.readouterr().err
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
    assert run(["evaluate", str(tmp_path / "emb"), "--zero-shot", "subject", "--plot", "x.svg"]) == 2
    assert "there is no matrix to draw" in capsys.readouterr().err
    assert run(["evaluate", str(tmp_path / "nowhere")]) == 3
    assert "nowhere: no such file or folder" in capsys.readouterr().err
    assert run(["evaluate", "world:0..3"]) == 2
    assert "-o runs/NAME" in capsys.readouterr().err


def test_empty_cells_of_a_table_are_no_value(tmp_path):
    rows = Rows(
        np.eye(3, dtype=np.float32),
        np.array(["text"] * 3),
        {"key": ["a", "b", "c"], "group": [None] * 3},
        "s@1",
        "s",
        "x",
    )
    (tmp_path / "t.csv").write_text("stem,label,other\na,,1\nb,,\nc,dog,1\n")
    joined = rows.joined(tmp_path / "t.csv", "stem")
    assert (joined.column("label"), joined.column("other")) == ([None, None, "dog"], ["1", None, "1"])
    (tmp_path / "t.jsonl").write_text('{"stem": "a", "label": NaN}\n{"stem": "b", "label": NaN}\n{"stem": ""}\n')
    assert rows.joined(tmp_path / "t.jsonl", "stem").column("label") == [None, None, None]


def test_a_table_names_items_by_path_key_or_file_name(tmp_path):
    source = str(tmp_path / "pictures" / "b.png")
    columns = {"key": ["sounds/a.wav", "x", "c.png"], "source": [None, source, None], "group": [None] * 3}
    rows = Rows(np.eye(3, dtype=np.float32), np.array(["text"] * 3), columns, "s@1", "s", "x")
    (tmp_path / "labels.csv").write_text("path,label\na.wav,dog\npictures/b.png,bird\n./c.png,car\n")
    assert rows.joined(tmp_path / "labels.csv").column("label") == ["dog", "bird", "car"]
    (tmp_path / "other.csv").write_text("path,label\nz.wav,dog\n")
    with pytest.raises(InputError, match=r"it names 'z\.wav', the items have keys such as 'sounds/a\.wav'"):
        rows.joined(tmp_path / "other.csv")
    (tmp_path / "unnamed.csv").write_text("label\ndog\n")
    with pytest.raises(InputError, match="which items are these rows"):
        rows.joined(tmp_path / "unnamed.csv")
    with pytest.raises(UnknownNameError, match=r"--table labels\.csv"):
        rows.column("subject")


def test_a_value_is_the_same_from_every_file():
    values = [1, 1.0, "1", True, "true", 2.5, "2.5", None, "", float("nan"), 0]
    assert codes(values).tolist() == [0, 0, 0, 1, 1, 2, 2, -1, -1, -1, 3]
    eye = [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]]
    rows = toy_rows(eye, ["image"] * 2 + ["text"] * 2, pair=[1.0, 2.0, "1", "2"], kind=[0.0, 1, 0, "1"])
    assert {row["query"]: row["recall_at_1"].value for row in measure_pairs(rows, "pair")} == {"image": 1, "text": 1}
    found = measure_zero_shot(rows, "image", "kind", [ClassName("0", ("a",)), ClassName("1", ("b",))], rows.vectors[:2])
    assert (found["queries"], found["accuracy_at_1"].value) == (2, 1)
    blank = toy_rows(eye, ["image"] * 4, pair=["", float("nan"), None, ""], group=["a", "a", "b", "b"])
    assert blank.pair_column(None) == "group"


def test_a_table_may_have_blank_rows_and_repeats(tmp_path):
    columns = {"key": ["a.png", "1"], "source": [None] * 2, "group": [None] * 2}
    rows = Rows(np.eye(2, dtype=np.float32), np.array(["image"] * 2), columns, "s@1", "s", "x")
    table = tmp_path / "t.csv"
    table.write_text("key,label,more\na.png,dog,\n,,\n1,cat,x\na.png,dog,y\n,,\n")
    joined = rows.joined(table)
    assert (joined.column("label"), joined.column("more")) == (["dog", "cat"], ["y", "x"])
    (tmp_path / "t.jsonl").write_text('{"key": 1.0, "label": 3}\n{"path": "./a.png", "label": 4.0}\n')
    assert rows.joined(tmp_path / "t.jsonl").column("label") == [4.0, 3]
    table.write_text("key,label\na.png,dog\na.png,cat\n")
    with pytest.raises(InputError, match=r"t\.csv, row 1: 'a\.png': label is 'cat' here and 'dog' before"):
        rows.joined(table)
    with pytest.raises(UnknownNameError, match="'stem'"):
        rows.joined(table, "stem")
    with pytest.raises(MissingInputError, match="no such table"):
        rows.joined(tmp_path / "none.csv")


def test_text_alone_is_not_classified():
    rows = toy_rows([[1, 0], [0, 1]], ["text", "image"], subject=["dog", None])
    with pytest.raises(InputError, match=r"only items of the modality text have a value of 'subject', and text is not"):
        evaluate_rows(rows, Question(zero_shot=("subject",)), lambda: SimpleNamespace(space_id=rows.space_id))


def test_what_else_lies_in_the_folder_of_a_run_is_not_measured(tmp_path, monkeypatch):
    space = load_space("tiny")

    def write(name, *words):
        (tmp_path / "both.txt").write_text("words both")
        lines = [{"text": f"words {word}", "key": word} if word != "both" else {"path": "both.txt"} for word in words]
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return tmp_path / name

    def keys(source):
        options = EmbedOptions(workers=0)
        rows = embed_rows(source, tmp_path / "run", space, options, progress=False)
        assert len(rows.vectors) == len(rows.modality) == len(rows)
        for key, row in zip(rows.columns["key"], rows.vectors, strict=True):
            assert np.allclose(row, space.embed("text", [f"words {key.removesuffix('.txt')}"])[0], atol=1e-3)
        return sorted(rows.columns["key"]), rows.bad

    one = write("one.jsonl", "a1", "a2", "both")
    one.write_text(one.read_text() + '{"key": "bad"}\n')
    two = write("two.jsonl", "c1", "c2")
    assert keys(one) == (["a1", "a2", "both.txt"], 1)
    assert keys(two) == (["c1", "c2"], 0)  # not those of one.jsonl
    assert keys(one) == (["a1", "a2", "both.txt"], 1)  # nor the other way round
    write("two.jsonl", "c2", "c3", "both")  # edited; shares a file with the other
    assert keys(two) == (["both.txt", "c2", "c3"], 0)
    write("two.jsonl", "c3")
    assert keys(two) == (["c3"], 0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"both.txt\n")))
    assert keys("-") == (["both.txt"], 0)
    one.write_text('{"key": "bad"}\n')
    with pytest.raises(MissingInputError, match="not one of its items could be embedded"):
        keys(one)


def test_a_recipes_figures_stand_under_their_heads():
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10, "interval": "wilson"}
    rows = {"a": {"queries": 1, "map": figure}, "b": {"queries": 2, "recall_at_1": figure, "map": figure}}
    shown = report.tables({"title": "t", "paper": [], "rows": rows, "items": {}})[1]
    assert shown["head"] == ["row", "queries", "map", "recall_at_1"]
    assert [row[2:] for row in shown["rows"]] == [["50.0 % (40.0–60.0)", ""], ["50.0 % (40.0–60.0)"] * 2]
